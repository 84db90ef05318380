"""Train, validation and test sides such that no group of recordings is on two of them.

Groups are by `day` (of recording), `treatment`, `cage` (one recording channel in one treatment), `emitter`, `folder` or
`recording`; given several, recordings that share any of them stay together. Given none, they are by day if that makes
enough groups, else by recording. A recording without a date is a day of its own. A recording with calls of two
bats ties these together; an emitter of -118 counts as bat 118, which may have called. Recordings whose
emitter nobody noted belong to no group, hence to no side, when splitting by emitter.

A split is a CSV file of file,side whose name holds the hash of its content.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from training.collection import Collection, replacing
from training.tables import CollectionError
from training.text_tables import read_columns

SIDES = ("train", "validation", "test")
GROUPS = ("day", "treatment", "cage", "emitter", "folder", "recording")
AUTOMATIC = ("day", "recording")  # tried in this order


@dataclass(frozen=True)
class Split:
    """Row numbers of recordings on each side, in order, the hash of which file is where, and what it is split by."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    version: str
    by: tuple[str, ...] = ()


def split_collection(
    collection: Collection,
    by: Sequence[str] = (),
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    usable: np.ndarray | None = None,
) -> Split:
    """Deal the groups out so that the sides come near to `fractions` of the recordings.

    usable: (recordings,) bool, which ones can be trained or scored on; the others are on no side. Without `by`, the split is
    by the first of AUTOMATIC that gives every side a group. Raises CollectionError if there are fewer groups than sides.
    """
    usable = np.ones(len(collection.recordings), bool) if usable is None else usable
    least = np.count_nonzero(fractions)
    by = tuple(by) or next(((key,) for key in AUTOMATIC if _count(collection, [key], usable) >= least), AUTOMATIC[-1:])
    group = np.where(usable, group_recordings(collection, by), -1)
    groups, sizes = np.unique(group[group >= 0], return_counts=True)
    if (there := _count(collection, by, usable)) < least:
        raise CollectionError(
            f"{collection.root}: {_named(int(usable.sum()), 'recording')} with labels and a whole frame, split by "
            f"{' and '.join(by)}, fall into {_named(there, 'group')}; {least} sides need as many. "
            f"{_offer(collection, usable, least)}"
        )
    wanted = np.array(fractions, float) / sum(fractions) * sizes.sum()
    sides = np.flatnonzero(wanted)
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
    return replace(_as_split(collection, side), by=by)


def draw_few(recordings: np.ndarray, of: np.ndarray, label: np.ndarray, few: int, seed: int = 0) -> np.ndarray:
    """Some of the recordings, in order: `few` that hold each class, or all that do.

    of, label: (calls,) recording and class of each. In an order drawn with the seed, a recording is taken if it holds a class
    that fewer than `few` of those taken before hold.
    """
    shuffled = np.random.default_rng(seed).permutation(recordings)
    order = np.argsort(of, kind="stable")
    calls = [np.searchsorted(of[order], shuffled, side) for side in ("left", "right")]
    taken, count = [], Counter()
    for recording, first, last in zip(shuffled, *calls, strict=True):
        held = np.unique(label[order[first:last]]).tolist()
        if any(count[one] < few for one in held):
            taken.append(recording)
            count.update(held)
    return np.sort(np.array(taken, np.int64))


def offers(collection: Collection, usable: np.ndarray | None = None) -> dict[str, int]:
    """How many groups of usable recordings each of GROUPS makes, where it makes more than one."""
    usable = np.ones(len(collection.recordings), bool) if usable is None else usable
    counts = {key: _count(collection, [key], usable) for key in GROUPS}
    return {key: count for key, count in counts.items() if count > 1}


def _count(collection: Collection, by: Sequence[str], usable: np.ndarray) -> int:
    if "day" in by and collection.recordings["recorded"][usable].isna().all():
        return 0
    group = group_recordings(collection, by)[usable]
    return len(np.unique(group[group >= 0]))


def _offer(collection: Collection, usable: np.ndarray, least: int) -> str:
    """A sentence on what to do instead."""
    there = {key: count for key, count in offers(collection, usable).items() if count >= least}
    if there:
        return f"This collection offers --split-by {', '.join(f'{key} ({count} groups)' for key, count in there.items())}"
    if collection.one_source and not usable.all():
        return (
            f"{_named(int((~usable).sum()), 'recording')} without them: annotate more, or say with --completely-annotated that "
            "there is no call in those without a table"
        )
    return "Annotate more recordings, or cut long ones into several"


def _named(count: int, thing: str) -> str:
    return f"{count} {thing}" + "s" * (count != 1)


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
        table = read_columns(Path(path), {"file": str, "side": str})
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
        alone = pd.Series(rows, recordings.index).astype("str")
        value = recordings["recorded"].dt.floor("D").astype("str").where(recordings["recorded"].notna(), alone)
    elif key == "treatment":
        value = recordings["treatment"]
    elif key == "cage":
        value = recordings["treatment"] + "/" + recordings["channel"]
    elif key == "folder":
        value = recordings["file"].map(os.path.dirname)
    elif key == "recording":
        value = rows
    elif key == "emitter":
        known = collection.annotations[collection.annotations["emitter"] != 0]
        rows, value = known["recording"].to_numpy(), known["emitter"].abs()
    else:
        there = ", ".join(f"{key} ({count} groups)" for key, count in offers(collection).items())
        raise CollectionError(f"cannot split by {key!r}; {collection.root} offers {there or 'nothing: it has one recording'}")
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
