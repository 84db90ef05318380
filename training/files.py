"""File mode: one label for a whole recording, SincNet's recipe.

    python -m training.run --mode file --model sincnet --task emitter --data-dir DIR

A training step draws files, then a chunk of each; a file's class is decided by the sum of log posteriors over all its chunks
(`denet_torch.classification`). A file in which several classes call has no label: it is left out and counted. Where tables mark
the calls, a chunk without one teaches that all classes are as likely: most chunks are such, and what a network reads out of a
file's background would outweigh its calls in the sum.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from pandas import DataFrame
from tqdm import tqdm

from denet_torch import Model, audio
from denet_torch.classification import file_log_posteriors
from denet_torch.schema import Detection

from . import fitting
from .collection import INDEX_NAME, Collection, open_collection, replacing
from .config import Config, TrainingError, reading
from .fitting import WEIGHTS, Progress, refuse
from .guards import Unreadable
from .labels import Labeller
from .registry import best_model, freeze_front_end, get_model, initial_model
from .runs import describe, write_json
from .splits import SIDES, draw_few, split_collection, write_split

ANSWERS = "answers.csv"
# Options that have no use here: they are refused rather than passed over.
OF_FRAMES = (
    "labels", "boundary_share", "backgrounds", "subset", "overfit", "workers", "resample_on", "accumulate", "loss",
    "class_weights", "on_nonfinite", "compile", "profile", "detect", "best_by", "loggers", "self_train",
)  # fmt: skip
CACHED = 2**28  # samples, at the model's rate, held in memory; of larger sets chunks are read from the files


@dataclass(frozen=True)
class Files:
    """Recordings with one label each: paths, labels (files,), names of the classes, and [start, stop) in seconds of their calls.

    `excluded`: files left out, by reason. `seconds`: read no more than so much of each file. `of_calls`: labels are of calls, so
    that a chunk has none in a file whose calls are known and lie elsewhere. `unreadable`: what could not be read in this run,
    by path; `select` shares it.
    """

    paths: list[Path]
    labels: np.ndarray
    classes: tuple[str, ...]
    calls: list[np.ndarray]
    excluded: dict[str, int] = field(default_factory=dict)
    time_expansion: float = 1
    seconds: float = math.inf
    of_calls: bool = False
    unreadable: Unreadable | None = None

    def __post_init__(self):
        if self.unreadable is None:
            object.__setattr__(self, "unreadable", Unreadable(len(self.paths)))

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: Sequence[int]) -> "Files":
        """Some of them."""
        paths, calls = ([of_all[i] for i in rows] for of_all in (self.paths, self.calls))
        return replace(self, paths=paths, labels=self.labels[rows], calls=calls, excluded={})

    def majority(self) -> float:
        """Accuracy of always answering the commonest class."""
        return float(np.bincount(self.labels).max() / len(self)) if len(self) else float("nan")


def file_labels(collection: Collection, task: str) -> tuple[np.ndarray, tuple[str, ...], dict[str, int]]:
    """Label of each recording (recordings,), -1 where there is none; the classes' names; how many have none, by reason.

    Classes are those that `Labeller` finds in the annotations, without the background, and calls of unknown class are passed
    over; of the task "call" there are both, and a file without a voiced segment is background.
    """
    labeller = Labeller(collection, "voice" if task == "call" else "annotation", task)
    spans, count = labeller.spans, len(collection.recordings)
    if task == "call":
        labels = np.zeros(count, np.int64)
        labels[spans.recording] = 1
        labels[~labeller.known] = -1
        return labels, labeller.classes, {"no annotation": int((labels < 0).sum())}
    labels, several = np.full(count, -1), 0
    for recording in np.unique(spans.recording):
        known = np.unique(spans.of(recording).label)
        known = known[known > 0]
        several += len(known) > 1
        if len(known) == 1:
            labels[recording] = known[0] - 1
    reasons = {"several classes": several, "no class": int((labels < 0).sum()) - several}
    return labels, labeller.classes[1:], {reason: number for reason, number in reasons.items() if number}


def files_of(collection: Collection, task: str) -> tuple[Files, np.ndarray]:
    """The recordings that have a label, and their row numbers."""
    labels, classes, excluded = file_labels(collection, task)
    rows = np.flatnonzero(labels >= 0)
    if not len(rows):
        raise TrainingError(f"{collection.root}: no recording has one {task} alone")
    rates = collection.recordings["samplerate"].to_numpy(np.float64)
    calls = [collection.voice_of(i)[["start", "stop"]].to_numpy(np.float64) / rates[i] for i in rows]
    paths = [collection.path(i) for i in rows]
    return Files(paths, labels[rows], classes, calls, excluded, collection.time_expansion, of_calls=task != "call"), rows


class Chunks:
    """Chunks of files for training: `draw(rng, n)` gives waveforms (n, seq_len, samples) and wanted posteriors (n, n_classes).

    Of a file that cannot be read any more they are silence and 0, which is no loss.
    """

    def __init__(self, files: Files, model: Model, call_share: float):
        self.files, self.model, self.call_share = files, model, call_share
        lengths = [self._length(path) for path in files.paths]
        self.lengths = np.minimum(lengths, files.seconds * model.sr).astype(np.int64)
        self.cached = {} if self.lengths.sum() <= CACHED else None

    def draw(self, rng: np.random.Generator, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = rng.integers(len(self.files), size=number)
        shape = (self.model.seq_len, self.model.samples)
        starts = [self._start(i, rng) for i in chosen]
        chunks = [self._read(i, start) for i, start in zip(chosen, starts, strict=True)]
        silence = np.zeros(self.size, np.float32)
        sound = np.stack([silence if chunk is None else chunk for chunk in chunks]).reshape(number, *shape)
        targets = np.eye(len(self.files.classes), dtype=np.float32)[self.files.labels[chosen]]
        if self.files.of_calls:
            targets[[self._silent(i, start) for i, start in zip(chosen, starts, strict=True)]] = 1 / len(self.files.classes)
        targets[[chunk is None for chunk in chunks]] = 0
        return torch.from_numpy(sound), torch.from_numpy(targets)

    def _length(self, path: Path) -> int:
        """Samples of a file, at the model's rate; 0 of one that cannot be read."""
        try:
            info = audio.probe(path, self.files.time_expansion)
        except audio.AudioError as error:
            self.files.unreadable.add(path, str(error))
            return 0
        return audio.resampled_length(info.frames, info.samplerate, self.model.sr)

    @property
    def size(self) -> int:
        """Samples of a chunk."""
        return self.model.seq_len * self.model.samples

    def _start(self, i: int, rng: np.random.Generator) -> int:
        size, last = self.size, int(self.lengths[i]) - self.size
        calls = self.files.calls[i]
        if rng.random() < self.call_share and len(calls):
            start, stop = calls[rng.integers(len(calls))] * self.model.sr
            start = rng.uniform(start, max(start + 1, stop)) - size / 2  # the middle lies in a call
        else:
            start = rng.uniform(0, max(1, last + 1))
        return int(min(max(0, start), max(0, last)))

    def _silent(self, i: int, start: int) -> bool:
        """Whether the calls of file i are known and the chunk from `start` on holds nothing of one."""
        calls = self.files.calls[i] * self.model.sr
        return len(calls) > 0 and not ((calls[:, 0] < start + self.size) & (calls[:, 1] > start)).any()

    def _read(self, i: int, start: int) -> np.ndarray | None:
        """The chunk of file i from `start` on, filled up with silence; None if it cannot be read."""
        chunk = np.zeros(self.size, np.float32)
        try:
            found = self._sound(i, start, min(self.size, int(self.lengths[i]) - start))
        except audio.AudioError as error:
            self.files.unreadable.add(self.files.paths[i], str(error))
            return None
        chunk[: len(found)] = found
        return chunk

    def _sound(self, i: int, start: int, count: int) -> np.ndarray:
        path, options = self.files.paths[i], {"rate": self.model.sr, "time_expansion": self.files.time_expansion}
        if self.cached is not None and i not in self.cached:
            self.cached[i] = audio.read(path, 0, int(self.lengths[i]), **options)
        found = audio.read(path, start, count, **options) if self.cached is None else self.cached[i][start : start + count]
        if len(found) < count or not count:
            raise audio.AudioError(f"{path}: is shorter than when the run began, or could not be read then")
        return found


def fit(
    fabric: Fabric, model: Model, train: Files, validation: Files, config: Config, out: Path, check=lambda: None
) -> Progress:
    """Train as `fitting.fit` does; the score is the accuracy on the validation files. `check` is called after each file too."""
    chunks = Chunks(train, model, config.call_share)

    def loss_of(module, rng: np.random.Generator) -> torch.Tensor:
        sound, targets = (fabric.to_device(part) for part in chunks.draw(rng, config.batch_size))
        logits = module(sound)  # (batch, answers, n_classes)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.repeat_interleave(logits.shape[1], dim=0))
        return loss * (len(targets) / max(1, int(targets.any(dim=1).sum())))  # the mean over those that were read

    def validate() -> tuple[float, Detection, dict]:
        accuracy = evaluate(model, validation, "validation", check)["accuracy"]
        return accuracy, Detection(tuple(train.classes), per="file"), {"accuracy": accuracy}

    return fitting.fit(fabric, model, config, out, loss_of, validate, check)


def evaluate(model: Model, files: Files, title: str = "test", check: Callable[[], None] = lambda: None) -> dict:
    """Accuracy of file decisions, the majority's beside it, and the answers; files that are shorter than asked are read whole.

    Files that cannot be read any more are not scored; their answer is -1. `check` is called after each file, and may raise.
    Raises AudioError if there are too many.
    """
    answers = []
    for path in tqdm(files.paths, desc=title, unit="file", leave=False):
        try:
            total = file_log_posteriors(model, path, time_expansion=files.time_expansion, seconds=files.seconds)
            answers.append(int(total.argmax()))
        except audio.AudioError as error:
            files.unreadable.add(path, str(error))
            answers.append(-1)
        check()
    scored = files.select(np.flatnonzero(np.array(answers) >= 0))
    if not len(scored):
        raise audio.AudioError(f"{files.paths[0]}: cannot be read any more, and with it all files that are to be scored")
    right = (np.array(answers) == files.labels).sum()
    return {"accuracy": float(right / len(scored)), "majority": scored.majority(), "files": len(scored), "answers": answers}


@dataclass
class FileResult:
    """What a run in file mode ends with."""

    out: Path
    model: Model
    files: dict[str, Files]
    excluded: dict[str, int]
    progress: Progress
    test: dict

    def answers(self) -> DataFrame:
        """The test files: file, label, answer."""
        files, names = self.files["test"], np.array(self.files["test"].classes)
        answered = np.append(names, "")[self.test["answers"]]  # -1: none
        columns = {"file": map(str, files.paths), "label": names[files.labels], "answer": answered}
        return DataFrame({name: list(values) for name, values in columns.items()})

    def summary(self) -> str:
        """Accuracy beside the majority's, what was left out, how far the filters moved."""
        left_out = ", ".join(f"{count} ({reason})" for reason, count in self.excluded.items()) or "none"
        lines = [
            f"files never seen ({self.test['files']}), weights of epoch {self.progress.best_epoch}:",
            f"  accuracy {self.test['accuracy']:.3f}; always answering the commonest class: {self.test['majority']:.3f}",
            f"  files left out: {left_out}",
        ]
        if self.progress.initial_filters:
            lines.append(f"  the sinc filters' cuts {described_move(self.model, self.progress)}")
        return "\n".join([*lines, f"results in {self.out}"])


def filters_moved(model: Model, progress) -> np.ndarray | None:
    """Ways (2, filters) in Hz of the low and high cuts of the filters since the start; None of a model without."""
    bands = model.pass_bands()
    if bands is None:
        return None
    return np.abs(np.array([cut.cpu().numpy() for cut in bands]) - np.array(progress.initial_filters))


def original_reach(progress) -> float:
    """Hz that the original's RMSprop (alpha 0.95) can move a cut at most by the learning rates of the weights.

    A step is the gradient over the root of a mean of squares in which its own weighs 0.05; upper cuts are sums of two parameters.
    """
    return 2 * sum(progress.rates) / math.sqrt(0.05)


def described_move(model: Model, progress) -> str:
    """How far the cuts moved, and beside it, if they have a learning rate of their own, how far they would without."""
    moved = filters_moved(model, progress)
    line = f"moved by {moved.mean():.3g} Hz in the mean, {moved.max():.3g} at most"
    if max(model.rate_factors().values(), default=1) <= 1:
        return line
    return f"{line}; the original's optimizer would have moved them by {original_reach(progress):.2g} Hz at most"


def train_files(config: Config, fabric: Fabric, out: Path, root: Path, check=lambda: None) -> FileResult:
    """A run in file mode on the collection in `root`: split, train, evaluate the best weights once on the test side."""
    refuse(config, OF_FRAMES, "--mode file")
    collection = open_collection(root, **reading(config))
    files, rows = files_of(collection, config.task)
    usable = np.isin(np.arange(len(collection.recordings)), rows)
    split = split_collection(collection, config.split_by, seed=config.seed, usable=usable)
    sides = {side: files.select(np.flatnonzero(np.isin(rows, getattr(split, side)))) for side in SIDES}
    if config.few:
        labels = sides["train"].labels
        all_of_them = np.arange(len(labels))
        sides["train"] = sides["train"].select(draw_few(all_of_them, all_of_them, labels, config.few, config.seed))
    for side, part in sides.items():
        if not len(part):
            raise TrainingError(f"{root}: no file with one {config.task} falls on the {side} side; split by something else")
    describe(out, config, root / INDEX_NAME, split.version)
    write_split(split, collection, out)
    torch.manual_seed(config.seed)
    if config.init_from is None:
        model = get_model(config.model, config, len(files.classes))
    else:
        model = initial_model(config.init_from)
        if model.n_classes != len(files.classes):
            raise TrainingError(f"{config.init_from}: has {model.n_classes} classes, the data have {len(files.classes)}")
        model.follow(config)
        if config.freeze:
            freeze_front_end(model)
    progress = fit(fabric, model, sides["train"], sides["validation"], config, out, check)
    best = best_model(out / WEIGHTS, model).to(fabric.device)
    test = evaluate(best, sides["test"], check=check)
    excluded = files.excluded | files.unreadable.counted()
    result = FileResult(out, best, sides, excluded, progress, test)
    record = {key: value for key, value in test.items() if key != "answers"}
    record |= {"best_epoch": progress.best_epoch, "validation": progress.best, "excluded": excluded}
    if (moved := filters_moved(best, progress)) is not None:
        record |= {"filters_moved_hz": float(moved.mean()), "original_reach_hz": original_reach(progress)}
    with replacing(out / ANSWERS) as path:
        result.answers().to_csv(path, index=False)
    write_json(out / "scores.json", record)
    return result
