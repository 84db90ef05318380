"""Train, validation and test sides such that no group of recordings is on two of them.

Groups are by `day` (of recording), `treatment`, `cage` (one recording channel in one treatment) or
`emitter`; given several, recordings that share any of them stay together. A recording with calls of two
bats ties these together; an emitter of -118 counts as bat 118, which may have called. Recordings whose
emitter nobody noted belong to no group, hence to no side, when splitting by emitter.

A split is a CSV file of file,side whose name holds the hash of its content.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from training.collection import Collection, replacing
from training.tables import CollectionError

SIDES = ("train", "validation", "test")
GROUPS = ("day", "treatment", "cage", "emitter")


@dataclass(frozen=True)
class Split:
    """Row numbers of recordings on each side, in order, and the hash of which file is where."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    version: str


def split_collection(
    collection: Collection,
    by: Sequence[str] = ("day",),
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Split:
    """Deal the groups out so that the sides come near to `fractions` of the recordings.

    Raises CollectionError if there are fewer groups than sides.
    """
    group = group_recordings(collection, by)
    groups, sizes = np.unique(group[group >= 0], return_counts=True)
    wanted = np.array(fractions, float) / sum(fractions) * sizes.sum()
    sides = np.flatnonzero(wanted)
    if len(groups) < len(sides):
        raise CollectionError(
            f"{collection.root}: recordings by {' and '.join(by)} fall into {len(groups)} group(s); "
            f"{len(sides)} sides need as many"
        )
    # Largest first, equal ones in drawn order, each to the side that lacks most.
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[np.argsort(-sizes[order], kind="stable")]
    side_of, filled = np.full(len(groups), -1), np.zeros(len(wanted))
    for rank, one in enumerate(order):
        empty = sides[filled[sides] == 0]
        candidates = empty if len(empty) == len(order) - rank else sides
        side = candidates[np.argmax((wanted - filled)[candidates])]
        side_of[one] = side
        filled[side] += sizes[one]
    side = np.full(len(group), -1)
    side[group >= 0] = side_of[np.searchsorted(groups, group[group >= 0])]
    return _as_split(collection, side)


def group_recordings(collection: Collection, by: Sequence[str]) -> np.ndarray:
    """Group number of each recording (recordings,), -1 for those that belong to none."""
    recordings = collection.recordings
    group = np.arange(len(recordings))
    ties = [_ties(collection, key) for key in by]
    while True:
        before = group.copy()
        for rows, codes in ties:
            least = np.full(codes.max(initial=-1) + 1, len(group))
            np.minimum.at(least, codes, group[rows])
            np.minimum.at(group, rows, least[codes])
        if (group == before).all():
            break
    for rows, _ in ties:
        group[np.setdiff1d(np.arange(len(group)), rows)] = -1
    return group


def write_split(split: Split, collection: Collection, folder: str | Path) -> Path:
    """Write split-HASH.csv to `folder`."""
    path = Path(folder) / f"split-{split.version}.csv"
    with replacing(path) as partial:
        _table(collection, _sides(split, len(collection.recordings))).to_csv(partial, index=False)
    return path


def read_split(path: str | Path, collection: Collection) -> Split:
    """Read a split of this collection. Raises CollectionError if it was changed or is of another."""
    try:
        table = pd.read_csv(path, dtype="str", keep_default_na=False)
        files, sides = table["file"], table["side"].map({side: i for i, side in enumerate(SIDES)})
    except (OSError, ValueError, KeyError) as error:
        raise CollectionError(f"{path}: is no split ({str(error).splitlines()[0]})") from None
    row = pd.Index(collection.recordings["file"]).get_indexer(files)
    if (row < 0).any():
        raise CollectionError(f"{path}: names {files[row < 0].iloc[0]}, which the collection lacks")
    side = np.full(len(collection.recordings), -1)
    side[row] = sides.fillna(-1)
    split = _as_split(collection, side)
    if sides.isna().any() or not Path(path).stem.endswith(split.version):
        raise CollectionError(f"{path}: was changed; its content has the hash {split.version}")
    return split


def _ties(collection: Collection, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Recordings and the codes of what they share; a recording may appear several times."""
    recordings = collection.recordings
    rows = np.arange(len(recordings))
    if key == "day":
        value = recordings["recorded"].dt.floor("D").astype("str")
    elif key == "treatment":
        value = recordings["treatment"]
    elif key == "cage":
        value = recordings["treatment"] + "/" + recordings["channel"]
    elif key == "emitter":
        known = collection.annotations[collection.annotations["emitter"] != 0]
        rows, value = known["recording"].to_numpy(), known["emitter"].abs()
    else:
        raise CollectionError(f"cannot split by {key!r}; expected some of {', '.join(GROUPS)}")
    return rows, pd.factorize(value)[0]


def _as_split(collection: Collection, side: np.ndarray) -> Split:
    rows = [np.flatnonzero(side == i) for i in range(len(SIDES))]
    lines = _table(collection, side).sort_values("file").to_csv(index=False)
    return Split(*rows, hashlib.sha256(lines.encode()).hexdigest()[:12])


def _sides(split: Split, recordings: int) -> np.ndarray:
    side = np.full(recordings, -1)
    for i, name in enumerate(SIDES):
        side[getattr(split, name)] = i
    return side


def _table(collection: Collection, side: np.ndarray) -> pd.DataFrame:
    some = side >= 0
    return pd.DataFrame(
        {"file": collection.recordings["file"][some], "side": np.array(SIDES)[side[some]]}
    )
