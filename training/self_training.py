"""Self-training: a model's own confident answers as labels of recordings that nobody annotated.

Recordings of a group (day, ...) that the validation or test side has are left alone. The answers are a table in the run's folder,
which a resumed run reads: file, onset and offset (s) of runs of frames, label; where it is blank the model was unsure, and
the loss passes over it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from lightning_fabric import Fabric

from denet_torch import Model
from denet_torch.files import reason

from .collection import replacing
from .config import TrainingError
from .evaluation import Predictions, predict
from .labels import BACKGROUND, IGNORE, Spans
from .runs import on_zero
from .splits import group_recordings
from .text_tables import read_columns
from .windows import STRETCH, ByTurns, Datasets, ExhaustiveWindows, RandomWindows, whole_frames

TABLE = "pseudo_labels.csv"
UNSURE = ""  # no label is blank
MOST = 3_000_000  # lines of the table: some for each recording without annotations


def self_train(
    fabric: Fabric, model: Model, data: Datasets, least: float, out: Path, leave_out: Callable, workers: int = 0
) -> Datasets:
    """The data with training windows by turns from the labelled recordings and from those that the model labels.

    An answer counts if one class has the probability `least` or more. Where there is a TABLE in `out` it is used, otherwise it is
    written. `leave_out`: see `predict`. Raises TrainingError if there is nothing to label.
    """
    if not on_zero(fabric, (out / TABLE).exists):
        table = label(fabric, model, data, least, leave_out, workers)
        on_zero(fabric, _write, table, out / TABLE)
    recordings, spans = read(out / TABLE, data)
    known = data.train
    windows = RandomWindows(
        data.collection,
        recordings,
        data.labeller.taught(recordings, spans),
        length=known.length,
        seed=known.seed,
        sampling=known.sampling,
        mixer=known.mixer,
        rate=known.rate,
        samples=known.samples,
        seq_len=known.seq_len,
    )
    windows.tolerant, windows.own_rate = known.tolerant, known.own_rate
    return replace(data, train=ByTurns(known, windows))


def unlabelled(data: Datasets) -> np.ndarray:
    """Rows of the recordings to label: those without labels and those of the training side that are not trained on."""
    collection, split = data.collection, data.split
    train = data.train
    waiting = ~data.labeller.known
    waiting[np.setdiff1d(split.train, train.recordings)] = True
    waiting &= whole_frames(collection, train.rate, train.samples) > 0
    group = group_recordings(collection, split.by)
    held = group[np.concatenate([split.validation, split.test])]
    return np.flatnonzero(waiting & (group >= 0) & ~np.isin(group, held))


def label(fabric: Fabric, model: Model, data: Datasets, least: float, leave_out: Callable, workers: int = 0) -> pd.DataFrame:
    """The model's answers for `unlabelled`, as TABLE has them."""
    recordings, train = unlabelled(data), data.train
    if not len(recordings):
        raise TrainingError(
            f"--self-train: {data.collection.root} has no recording without labels (one without a table, of no "
            f"{' or '.join(data.split.by)} that is validated or tested on), and --few leaves out none"
        )
    nothing = Spans(*np.zeros((4, 0), np.int64))
    stretch = {"rate": train.rate, "samples": train.samples, "seq_len": STRETCH * train.seq_len}
    windows = ExhaustiveWindows(data.collection, recordings, data.labeller.taught(recordings, nothing), **stretch)
    windows.tolerant = train.tolerant
    predictions = predict(fabric, model, windows, workers, title="pseudo-labels", leave_out=leave_out)
    return _runs(predictions, least, data)


def _runs(predictions: Predictions, least: float, data: Datasets) -> pd.DataFrame:
    """Frames of one answer side by side as a row."""
    names = np.array([*data.classes, UNSURE])
    sure, answer = (column.numpy() for column in predictions.probabilities.max(dim=1))
    answer = np.where(sure >= least, answer, len(names) - 1)
    there = predictions.labels.numpy() != IGNORE  # not past the end
    answer, recording, start = answer[there], predictions.recording[there], predictions.start[there]
    first = np.flatnonzero(np.diff(answer, prepend=-1) | np.diff(recording, prepend=-1))
    last = np.append(first[1:], len(answer)) - 1
    return pd.DataFrame(
        {
            "file": data.collection.recordings["file"].to_numpy()[recording[first]],
            "onset": start[first].round(6),
            "offset": (start[last] + predictions.frame).round(6),
            "label": names[answer[first]],
        }
    )


def _write(table: pd.DataFrame, path: Path) -> None:
    with replacing(path) as partial:
        table.to_csv(partial, index=False)


def _table(path: Path) -> pd.DataFrame:
    try:
        return read_columns(path, {"file": str, "onset": float, "offset": float, "label": str}, MOST)
    except (OSError, ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
        raise TrainingError(f"{path}: cannot be read ({reason(error)}); delete it and it is written anew") from None


def read(path: Path, data: Datasets) -> tuple[np.ndarray, Spans]:
    """Recordings of a TABLE, and the spans in which they are not background, IGNORE where the model was unsure."""
    table = _table(path)
    row = pd.Index(data.collection.recordings["file"]).get_indexer(table["file"])
    code = pd.Index([*data.classes, UNSURE]).get_indexer(table["label"])
    if (row < 0).any() or (code < 0).any() or not np.isfinite(table[["onset", "offset"]]).all(axis=None):
        raise TrainingError(f"{path}: is of another collection; delete it and it is written anew")
    rate = data.collection.recordings["samplerate"].to_numpy(np.float64)[row]
    start, stop = ((table[end].to_numpy() * rate).round().astype(np.int64) for end in ("onset", "offset"))
    code = np.where(code == len(data.classes), IGNORE, code)
    spans = Spans(row, start, stop, code).select(code != BACKGROUND)
    return np.unique(row), spans.select(np.lexsort((spans.start, spans.recording)))


def described(path: Path, data: Datasets) -> str:
    """How much of what the model was asked it was sure of, in a line."""
    table = _table(path)
    seconds = (table["offset"] - table["onset"]).groupby(table["label"]).sum().sort_values(ascending=False)
    shares = ", ".join(f"{label or 'unsure, passed over'} {share:.1%}" for label, share in (seconds / seconds.sum()).items())
    calls = {*seconds.index} - {UNSURE, data.classes[BACKGROUND]}
    nothing = "" if calls else "; no call among them: try a lower --self-train"
    return f"Self-training on {table['file'].nunique()} recordings without labels, {seconds.sum():.0f} s: {shares}{nothing}"
