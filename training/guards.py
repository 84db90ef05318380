"""What goes wrong in training, said plainly with what to try."""

import math
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from denet_torch.audio import AudioError
from denet_torch.files import MAX_MESSAGE, printable

from .checkpoints import write
from .collection import Collection, replacing
from .config import TrainingError
from .labels import IGNORE, Labeller, hidden_calls, short_calls

MAX_UNREADABLE = 0.25  # of all recordings: more that cannot be read any more end the run
SHOWN = 5  # recordings named in a warning


class Unreadable:
    """Recordings that could not be read any more in a run: each is told once, and ends the run if there are many."""

    def __init__(self, recordings: int, warn: Callable[[str], None] | None = None):
        warn = warn or (lambda line: tqdm.write(printable(f"warning: {line}", MAX_MESSAGE)))
        self.recordings, self.warn, self.found = recordings, warn, set()

    def add(self, recording: Hashable, why: str) -> None:
        """Raises AudioError if there are too many."""
        if recording in self.found:
            return
        self.found.add(recording)
        self.warn(f"{why}; its windows are left out")
        if len(self.found) > max(1, MAX_UNREADABLE * self.recordings):
            raise AudioError(f"{why}; so are {len(self.found) - 1} other recordings, too many to go on")

    def counted(self) -> dict[str, int]:
        """How many there were, as what was left out is counted: by its reason."""
        return {"cannot be read any more": len(self.found)} if self.found else {}


def save_batch(path: Path, batch: dict[str, Tensor], loss: float, norm: float) -> None:
    """Write a batch that gave a loss or gradient that is not finite, for torch.load."""
    with replacing(path) as partial:
        write({"loss": loss, "gradient_norm": norm} | {k: v.cpu() for k, v in batch.items()}, partial)


def nonfinite(step: int, loss: float, norm: float, path: Path) -> TrainingError:
    what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
    return TrainingError(
        f"step {step}: {what}; the batch lies in {path}. Try a lower --learning-rate, or leave out such batches with "
        "--on-nonfinite skip"
    )


def data_warnings(collection: Collection, labeller: Labeller, sample_rate: int, frame_seconds: float) -> list[str]:
    """What frames of this length at this rate (Hz) will not show of a collection."""
    found = [short_calls(collection, labeller.spans, frame_seconds, labeller.min_overlap), hidden_calls(labeller.spans)]
    rates = collection.recordings["samplerate"]
    if (low := rates < sample_rate).any():
        named = [f"{row.file} ({row.samplerate} Hz)" for row in collection.recordings[low].head(SHOWN).itertuples()]
        found.append(
            f"{low.sum()} of {len(rates)} recordings have a lower sampling rate than the model's {sample_rate} Hz, whose upper "
            f"band is empty in them: {', '.join(named)}{', ...' if low.sum() > SHOWN else ''}"
        )
    lowest = collection.annotations["low_hz"]
    if (above := lowest >= sample_rate / 2).any():
        found.append(
            f"{above.sum()} of {len(lowest)} annotated calls lie above the {sample_rate / 2000:g} kHz that a model at "
            f"{sample_rate} Hz hears; --sample-rate {int(rates.max())} keeps all that the recordings hold"
        )
    return [line for line in found if line]


def split_warnings(name: str, present: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Classes that a split lacks; `present` (classes,) says which it has."""
    missing = [label for label, there in zip(classes, present, strict=True) if not there]
    if not missing:
        return []
    return [f"the {name} split has no {', '.join(missing)}: nothing is learned or scored there; try another --seed or more data"]


def epoch_warnings(losses: list[float], first: list[float], single_class: int) -> list[str]:
    """After an epoch with the `losses` of its steps: divergence from the `first` losses of the run, batches of one class only."""
    found = []
    last = [loss for loss in losses[-10:] if math.isfinite(loss)]  # steps that were left out are counted elsewhere
    mean = float(np.mean(last)) if last else math.nan
    if not mean <= 2 * float(np.mean(first)):
        found.append(f"the loss has risen to {mean:.3g}: the learning rate is too high; try a tenth of it")
    if single_class:
        found.append(
            f"{single_class} batches hold frames of one class only: try a larger --batch-size or another --call-share"
        )
    return found


def one_answer(predicted: Tensor, labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    """Whether a model gives one answer only to frames that are not all alike."""
    predicted, labels = predicted[labels != IGNORE], labels[labels != IGNORE]
    if len(predicted) and bool((predicted == predicted[0]).all()) and not bool((labels == labels[0]).all()):
        answer = classes[int(predicted[0])]
        return [
            f"the model answers {answer!r} for every validation frame. In the first epochs that is usual; if it stays, try "
            "another --learning-rate, --class-weights, or --overfit 4 to see whether it can learn at all"
        ]
    return []
