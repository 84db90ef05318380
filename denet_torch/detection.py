"""From a recording to events: probabilities of every frame, and the calls that they show.

Frames of `model.samples` samples at `model.sr` lie side by side from the start of the recording; a last
frame that is not full is filled with zeros. Sequences of `model.seq_len` frames begin every `hop` frames,
the last one where it still fits. A frame's probability is the mean over the sequences that hold it, so it
depends on the recording alone and not on how much of it is read or computed at once.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from . import audio, boxes, recorder
from .audio import AudioError, probe, read, resampled_length
from .models import Model
from .schema import Decoding, Detection

EVENT_COLUMNS = ["file", "onset", "offset", "label", "score"]


def detect(
    model: Model,
    sound: str | Path | np.ndarray | Iterable[str | Path],
    samplerate: int | None = None,
    *,
    hop: int | None = None,
    batch_size: int | None = None,
    time_expansion: float | None = None,
    **decoding,
) -> pd.DataFrame:
    """Find the calls in recordings: a row an event, with file, onset (s), offset (s), label, score; of a model
    that answers with boxes also low_hz and high_hz.

    `sound`: a recording, a folder (searched to the bottom), several of them, or a waveform in memory (`audio.from_array`) at
    `samplerate` Hz, whose file is called "array". `decoding`: fields of `Decoding` that replace those stored with the weights.
    `time_expansion`: factor by which the recordings were slowed down, by default what the metadata of each tell. The other
    arguments are those of `frame_probabilities`, labels and scores those of `events`. It computes where the model is:
    `model.to("cuda")`.

    Raises AudioError for a recording that cannot be used. Of several, those that cannot be used are named in a warning and in
    `.attrs["failures"]` of the table (path: reason), unless none can be used.
    """
    chosen, frame = stored_decoding(model, **decoding), model.samples / model.sr
    if not isinstance(sound, (str, Path)) and hasattr(sound, "__array__"):
        waveform, rate = audio.from_array(sound, samplerate, time_expansion or 1)
        heard = audio.resample(waveform, rate, model.sr)
        if len(heard) < model.samples:
            raise AudioError(f"{audio.ARRAY}: is {len(waveform) / rate:.4f} s long, shorter than one frame ({frame:.4f} s)")
        duration = len(waveform) / rate

        def part(start: int, samples: int) -> np.ndarray:
            return heard[start : start + samples]

        if model.answers_with_boxes:
            found = model.find_in(part, duration, batch_size=batch_size)
        else:
            total = -(-len(heard) // model.samples)
            found = mean_probabilities(model, _framed(part, model.samples), total, hop=hop, batch_size=batch_size)
            _check_finite(found, audio.ARRAY, 0, frame)
        return decode(model, found, duration, chosen, audio.ARRAY)
    one = isinstance(sound, (str, Path)) and not Path(sound).is_dir()
    paths = [path for item in ([sound] if isinstance(sound, (str, Path)) else sound) for path in _recordings(item)]
    tables, failures = [], {}
    for path in paths:
        try:
            factor = recorder.time_expansion([path]) if time_expansion is None else time_expansion
            found = search(model, path, hop=hop, batch_size=batch_size, time_expansion=factor)
            tables.append(decode(model, found, probe(path, factor).duration, chosen, path))
        except AudioError as error:
            if one:
                raise
            failures[str(path)] = str(error)
    if failures and not tables:
        raise AudioError("; ".join(failures.values()))
    for reason in failures.values():
        warnings.warn(f"not searched: {reason}", stacklevel=2)
    table = joined(model, tables)
    table.attrs["failures"] = failures
    return table


def _recordings(path: str | Path) -> list[str | Path]:
    """A recording, or those in a folder. Raises AudioError if there are none."""
    if not Path(path).is_dir():
        return [path]
    found = audio.find(path)
    if not found:
        raise AudioError(f"{path}: no recordings here")
    return found


def search(model: Model, path: str | Path, start: int = 0, stop: int | None = None, *, hop: int | None = None, **options):
    """What `decode` makes events of: frame probabilities (see `frame_probabilities`), or boxes of a model that answers with such
    (see `Boxes.find`), of the frames or images `start` to `stop`. Raises AudioError, and ValueError for a `hop` of images."""
    if not model.answers_with_boxes:
        return frame_probabilities(model, path, start, stop, hop=hop, **options)
    if hop is not None:
        raise ValueError("a hop is of models that answer frame by frame; these weights find boxes in images")
    return model.find(path, start, stop, **options)


def decode(model: Model, found: np.ndarray, duration: float, decoding: Decoding, file: str | Path) -> pd.DataFrame:
    """Events of what `search` found in a recording of `duration` seconds; those of boxes have low_hz and high_hz too."""
    if model.answers_with_boxes:
        return boxes.events(model.layout, found, duration, class_names(model), decoding, file)
    return events(found, model.samples / model.sr, duration, class_names(model), decoding, file)


def joined(model: Model, tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The events of several recordings as one table."""
    empty = boxes.event_table([]) if model.answers_with_boxes else event_table([])
    return pd.concat([empty, *tables], ignore_index=True)


def count_answers(model: Model, path: str | Path, time_expansion: float = 1) -> int:
    """Number of frames, or of a model that answers with boxes of images, of a recording. Raises AudioError."""
    return (boxes.count_images if model.answers_with_boxes else count_frames)(model, path, time_expansion)


def answer_seconds(model: Model) -> float:
    """Seconds from one of these to the next."""
    return model.layout.step if model.answers_with_boxes else model.samples / model.sr


def count_frames(model: Model, path: str | Path, time_expansion: float = 1) -> int:
    """Number of frames of a recording. Raises AudioError if it is shorter than one."""
    info = probe(path, time_expansion)
    samples = resampled_length(info.frames, info.samplerate, model.sr)
    if samples < model.samples:
        frame = model.samples / model.sr
        raise AudioError(f"{path}: is {info.duration:.4f} s long, shorter than one frame ({frame:.4f} s)")
    return -(-samples // model.samples)


def frame_probabilities(
    model: Model,
    path: str | Path,
    start: int = 0,
    stop: int | None = None,
    *,
    hop: int | None = None,
    batch_size: int | None = None,
    time_expansion: float = 1,
) -> np.ndarray:
    """Class probabilities (frames, n_classes), float32, of the frames `start` to `stop` of a recording.

    They equal the same slice of the whole recording's, bit for bit. `hop`: frames from one sequence to the next, by default
    half of those that a sequence has answers for, at least one. `batch_size`: sequences computed at once (32 on a CPU, 64 on a
    GPU); only their samples are held in memory. Raises AudioError.
    """

    total = count_frames(model, path, time_expansion)
    frames = _framed(partial(read, path, rate=model.sr, time_expansion=time_expansion), model.samples)
    probabilities = mean_probabilities(model, frames, total, start, stop, hop=hop, batch_size=batch_size)
    _check_finite(probabilities, path, start, model.samples / model.sr)
    return probabilities


def _framed(read: Callable[[int, int], np.ndarray], samples: int) -> Callable[[int, int], np.ndarray]:
    """A function of the first frame and the one past the last to their waveforms (frames, samples), the last filled with zeros;
    `read` gives as many samples from a start as there are."""

    def frames(first: int, last: int) -> np.ndarray:
        waveform = read(first * samples, (last - first) * samples)
        filled = np.zeros((last - first, samples), np.float32)
        filled.reshape(-1)[: len(waveform)] = waveform
        return filled

    return frames


def _check_finite(probabilities: np.ndarray, name: str | Path, start: int, frame: float) -> None:
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        first = (start + int(finite.argmin())) * frame
        trouble = "the model's answers are not finite numbers: its samples or the weights are too large"
        raise AudioError(f"{name}: at {first:.2f} s {trouble}")


@torch.inference_mode()
def mean_probabilities(
    model: Model,
    frames: Callable[[int, int], np.ndarray],
    total: int,
    start: int = 0,
    stop: int | None = None,
    *,
    hop: int | None = None,
    batch_size: int | None = None,
) -> np.ndarray:
    """`frame_probabilities` of `total` frames, of which `frames(first, last)` gives waveforms (last - first, samples)."""
    stop = total if stop is None else min(stop, total)
    seq_len = min(model.seq_len, total)
    first_answer, answers = model.answers.start, model.answers.stop - model.answers.start
    hop = max(1, min(seq_len, answers) // 2) if hop is None else hop
    if not 0 < hop <= answers:
        raise ValueError(f"hop is {hop} frames; sequences with answers for {answers} frames need 1 to {answers}")
    parameter = next(model.parameters())
    batch_size = batch_size or (32 if parameter.device.type == "cpu" else 64)

    number = -(-(total - seq_len) // hop) + 1  # sequences in the recording
    nearest = max(0, (start - seq_len) // hop)  # the last one that may end before `start`
    # Batches begin where they do for the whole recording, so that every slice has the same bits.
    sums = np.zeros((stop - start, model.n_classes))
    counts = np.zeros((stop - start, 1))
    for i in range(nearest - nearest % batch_size, number, batch_size):
        batch = [min(j * hop, total - seq_len) for j in range(i, min(i + batch_size, number))]
        if batch[0] >= stop:
            break
        begin, end = batch[0], batch[-1] + seq_len
        waveforms = torch.from_numpy(frames(begin, end)).to(parameter)
        probabilities = model.predict_overlapping(waveforms, [first - begin for first in batch], seq_len)
        for first, sequence in zip(batch, probabilities.float().cpu().numpy(), strict=True):
            # Frames before the first answer and after the last one take the nearest.
            answered = min(first + first_answer, total - 1)
            a = max(0 if first == 0 else answered, start)
            b = min(total if first == total - seq_len else answered + len(sequence), stop)
            if a < b:
                sums[a - start : b - start] += sequence[np.clip(np.arange(a, b) - answered, 0, len(sequence) - 1)]
                counts[a - start : b - start] += 1
    return (sums / counts).astype(np.float32)


def events(
    probabilities: np.ndarray,
    frame: float,
    duration: float,
    labels: list[str],
    decoding: Decoding,
    file: str | Path,
) -> pd.DataFrame:
    """Decode probabilities (frames, n_classes) of frames of `frame` seconds into a table of events.

    An event's label is the class with the highest mean probability in it, its score the highest call
    probability. Events are in order, to the microsecond, and end at the latest at `duration` (s).
    """
    call = probabilities[:, 1:].sum(axis=1)
    rows = []
    for start, stop in find_runs(call, frame, decoding):
        onset, offset = round(start * frame, 6), round(min(stop * frame, duration), 6)
        label = labels[1 + probabilities[start:stop, 1:].mean(axis=0).argmax()]
        rows.append((str(file), onset, offset, label, float(call[start:stop].max())))
    return event_table(rows)


def event_table(rows: list[tuple]) -> pd.DataFrame:
    """A table of events from rows of file, onset, offset, label, score."""
    table = pd.DataFrame(rows, columns=EVENT_COLUMNS)
    return table.astype({"file": "str", "onset": float, "offset": float, "label": "str", "score": float})


def find_runs(p: np.ndarray, frame: float, decoding: Decoding) -> np.ndarray:
    """Events as runs of frames (events, 2), the first and one past the last, of call probabilities `p` (frames,)."""
    low = decoding.threshold if decoding.low_threshold is None else decoding.low_threshold
    edges = np.flatnonzero(np.diff(np.concatenate([[False], p >= low, [False]])))
    runs = edges.reshape(-1, 2)
    peaks = np.array([p[start:stop].max() for start, stop in runs])
    runs = runs[peaks >= decoding.threshold] if len(runs) else runs
    runs = _join(runs, _whole(decoding.min_gap, frame))
    runs = runs[runs[:, 1] - runs[:, 0] >= _whole(decoding.min_duration, frame)]
    return _join(runs, _whole(decoding.call_gap, frame))


def class_names(model: Model) -> list[str]:
    """Names of the model's classes, the background first: those stored with the weights, or general ones."""
    if model.detection and model.detection.labels:
        return list(model.detection.labels)
    if model.n_classes == 2:
        return ["background", "call"]
    return ["background", *(f"class {i}" for i in range(1, model.n_classes))]


def stored_decoding(model: Model, **changes) -> Decoding:
    """The decoding stored with the weights, else the default one, with `changes` to its fields."""
    stored = model.detection or Detection()
    if stored.per == "file":
        raise ValueError("these weights name whole files and find no events; use denet classify")
    return replace(stored.decoding, **changes)


def _whole(seconds: float, frame: float) -> int:
    return int(np.ceil(seconds / frame - 1e-6))  # 0.15 s are three frames of 0.05 s


def _join(runs: np.ndarray, gap: int) -> np.ndarray:
    if not len(runs):
        return runs
    apart = runs[1:, 0] - runs[:-1, 1] >= gap
    return np.stack([runs[np.r_[True, apart], 0], runs[np.r_[apart, True], 1]], axis=1)
