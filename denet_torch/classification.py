"""One class for a whole recording: the sum of log posteriors over its windows, as SincNet's authors decide who speaks.

A window is what a model reads at once (SincNet's chunk of 200 ms, DENet's sequence of frames). Windows begin every `hop` samples
as long as they lie in the recording, the one that ends with it included; a recording shorter than a window is filled up with
silence.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import recorder
from .audio import AudioError, probe, read, resampled_length
from .models import Model
from .schema import class_columns

BATCH = 128  # windows computed at once


def default_hop(model: Model) -> int:
    """Samples from one window to the next: half of the frames that a window has answers for, at least one (SincNet: 10 ms)."""
    answers = model.answers
    return max(1, (answers.stop - answers.start) // 2) * model.samples


def count_windows(length: int, window: int, hop: int) -> int:
    """Windows in a recording of `length` samples: at least one."""
    return max(0, length - window) // hop + 1


@torch.inference_mode()
def file_log_posteriors(
    model: Model,
    path: str | Path,
    *,
    hop: int | None = None,
    batch_size: int = BATCH,
    time_expansion: float = 1,
    seconds: float = math.inf,
) -> np.ndarray:
    """Sum of the log posteriors (n_classes,), float64, of all frames of all windows of a recording, or of its first `seconds`.

    Raises AudioError.
    """
    window, hop = model.seq_len * model.samples, hop or default_hop(model)
    info = probe(path, time_expansion)
    length = int(min(resampled_length(info.frames, info.samplerate, model.sr), seconds * model.sr))
    if length == 0:
        raise AudioError(f"{path}: holds no sound")
    number = count_windows(length, window, hop)
    total = np.zeros(model.n_classes)
    for first in range(0, number, batch_size):
        count = min(batch_size, number - first)
        span = (count - 1) * hop + window
        sound = np.zeros(span, np.float32)
        part = read(path, first * hop, min(span, length - first * hop), rate=model.sr, time_expansion=time_expansion)
        sound[: len(part)] = part
        total += window_log_posteriors(model, sound, hop).sum(axis=0)
    if not np.isfinite(total).all():
        raise AudioError(f"{path}: the model's answers are not finite numbers: its samples or the weights are too large")
    return total


@torch.inference_mode()
def window_log_posteriors(model: Model, sound: np.ndarray, hop: int) -> np.ndarray:
    """Log posteriors (windows, n_classes), float64, summed over each window's frames, of sound (samples,) at `model.sr`."""
    parameter = next(model.parameters())
    windows = torch.from_numpy(sound).to(parameter).unfold(0, model.seq_len * model.samples, hop)
    with model.evaluating():
        logits = model(windows.reshape(len(windows), model.seq_len, model.samples))
    return logits.double().log_softmax(-1).sum(1).cpu().numpy()


def class_names(model: Model) -> list[str]:
    """Names of the classes stored with the weights, or general ones."""
    return list((model.detection and model.detection.labels) or (f"class {i}" for i in range(model.n_classes)))


def classify(
    model: Model,
    paths: Iterable[str | Path],
    *,
    hop: int | None = None,
    batch_size: int = BATCH,
    time_expansion: float | None = None,
) -> Iterator[pd.DataFrame | AudioError]:
    """For each recording a table of one row: file, label, and the posterior of each class; AudioError for one that is unusable.

    `time_expansion`: factor by which the recordings were slowed down, by default what the metadata of each tell.
    Posteriors are the softmax of the summed log posteriors, which takes windows for independent: they are near 0 or 1.
    """
    names = class_names(model)
    columns = class_columns(names, ("file", "label"))
    for path in paths:
        try:
            factor = recorder.time_expansion([path]) if time_expansion is None else time_expansion
            total = file_log_posteriors(model, path, hop=hop, batch_size=batch_size, time_expansion=factor)
        except AudioError as error:
            yield error
            continue
        posterior = np.exp(total - np.logaddexp.reduce(total))
        row = {"file": str(path), "label": names[total.argmax()]} | dict(zip(columns, posterior, strict=True))
        yield pd.DataFrame([row])
