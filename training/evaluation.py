"""A model's answers over whole recordings, and their scores."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import Subset, default_collate
from tqdm import tqdm

from denet_torch import Model
from denet_torch.audio import AudioError, Part
from denet_torch.detection import EVENT_COLUMNS, Decoding, events, mean_probabilities

from .collection import Collection
from .labels import BACKGROUND, IGNORE, Labeller
from .metrics import choose_threshold, class_scores, event_scores, frame_scores, rates, segment_scores
from .resampling import gathered
from .runs import Loader
from .windows import ExhaustiveWindows

FRAME_KEYS = ("labels", "recording", "start", "failed")
MIN_DURATIONS = (0.0, 0.1)  # s, tried by `choose_decoding`
MIN_GAPS = (0.0, 0.1)


@dataclass(frozen=True)
class Predictions:
    """Frames of whole recordings, in order: probabilities (frames, n_classes), labels, recording and start (s) of each."""

    probabilities: Tensor
    labels: Tensor
    recording: np.ndarray
    start: np.ndarray
    frame: float  # s

    def of(self, recording: int) -> Tensor:
        """Probabilities of one recording, from its first frame on."""
        first, last = np.searchsorted(self.recording, [recording, recording + 1])
        return self.probabilities[first:last]


def collate(items: list[dict]) -> dict:
    """A batch of windows; of such at their recordings' own rates what `resampling.gathered` makes of the waveforms."""
    waveforms = [item["waveform"] for item in items]
    gather = gathered if isinstance(waveforms[0], Part) else default_collate
    return default_collate([{key: item[key] for key in FRAME_KEYS} for item in items]) | {"waveform": gather(waveforms)}


def predict(
    fabric: Fabric,
    model: Model,
    stretches: ExhaustiveWindows,
    workers: int = 0,
    check: Callable[[], None] = lambda: None,
    title: str = "evaluation",
    leave_out: Callable[[list[str], Tensor], None] = lambda failed, recordings: None,
) -> Predictions:
    """Probabilities as `denet_torch.detect` finds them in each stretch, shared out among the ranks; every rank gets the whole.

    `check` is called after each stretch and may raise. `leave_out` is called with the reason for which a stretch could not be
    read, "" if it could, in a list, and its recording. Raises AudioError if nothing is left to be scored.
    """
    # Ranks get equally many, the last few stretches twice if need be: what is computed twice is kept once.
    ranks, total = fabric.world_size, len(stretches)
    per_rank = -(-total // ranks)
    mine = [min(fabric.global_rank * per_rank + i, total - 1) for i in range(per_rank)]
    loader = Loader(Subset(stretches, mine), batch_size=None, num_workers=workers)
    parts = []
    for item in tqdm(loader, desc=title, unit="stretch", leave=False, disable=not fabric.is_global_zero):
        leave_out([item["failed"]], torch.tensor([item["recording"]]))
        waveforms = item["waveform"].numpy()  # (frames, samples), the last of them silence if not `item["frames"]` are whole
        probabilities = torch.zeros(len(waveforms), model.n_classes)
        with fabric.autocast():
            found = mean_probabilities(model, lambda first, last, x=waveforms: x[first:last], item["frames"])
        probabilities[: item["frames"]] = torch.from_numpy(found)
        probabilities[item["frames"] :, BACKGROUND] = 1
        start = torch.tensor(item["start"], dtype=torch.float64)  # in float32 an hour's last times would be 0.1 ms off
        facts = (item["labels"], item["recording"], start, bool(item["failed"]))
        parts.append([probabilities, *map(torch.as_tensor, facts)])
        check()
    columns = [torch.stack(column) for column in zip(*parts, strict=True)]
    if ranks > 1:
        columns = [fabric.all_gather(fabric.to_device(column)).flatten(0, 1)[:total].cpu() for column in columns]
    failed = columns.pop()
    keep = ~torch.isin(columns[2], columns[2][failed])  # a recording that cannot be read whole is not scored
    if not keep.any():
        raise AudioError(f"{stretches.root}: of all recordings that are to be scored none can be read any more")
    probabilities, labels, recording, start = (column[keep] for column in columns)
    frame = stretches.samples / stretches.rate
    frames = labels.shape[1]
    # (stretches, frames) -> (stretches * frames,)
    start = (start.numpy()[:, None] + frame * np.arange(frames)).ravel()
    return Predictions(
        probabilities.flatten(0, 1), labels.flatten(), recording.repeat_interleave(frames).numpy(), start, frame
    )


def choose_decoding(predictions: Predictions, labeller: Labeller, collection: Collection) -> Decoding:
    """The threshold by frame F1, then the smoothing with the best event F1."""
    threshold = choose_threshold(predictions.probabilities, predictions.labels, predictions.recording)
    choices = [Decoding(threshold, min_gap=gap, min_duration=length) for gap in MIN_GAPS for length in MIN_DURATIONS]
    reference = reference_events(predictions, labeller, collection)

    def score(decoding: Decoding) -> float:
        found = event_scores(reference, estimated_events(predictions, labeller, collection, decoding))
        return np.nan_to_num(found["f1"])

    return max(choices, key=score)  # of equal ones the first, the least smoothing


def reference_events(predictions: Predictions, labeller: Labeller, collection: Collection) -> pd.DataFrame:
    """The calls of the recordings, by the labels' strategy; those of unknown class are left out."""
    spans = labeller.spans
    spans = spans.select(np.isin(spans.recording, predictions.recording) & (spans.label != IGNORE))
    rate = collection.recordings["samplerate"].to_numpy(np.float64)[spans.recording]
    return pd.DataFrame(
        {
            "file": collection.recordings["file"].to_numpy()[spans.recording],
            "onset": spans.start / rate,
            "offset": spans.stop / rate,
            "label": np.array(labeller.classes)[spans.label],
        }
    )


def estimated_events(
    predictions: Predictions, labeller: Labeller, collection: Collection, decoding: Decoding
) -> pd.DataFrame:
    """The events that the probabilities show, for all recordings."""
    tables = [
        events(predictions.of(i).numpy(), predictions.frame, duration, list(labeller.classes), decoding, file)
        for i, file, duration in _recordings(predictions, collection)
    ]
    return pd.concat(tables or [pd.DataFrame(columns=EVENT_COLUMNS)], ignore_index=True)


def scores(
    predictions: Predictions, labeller: Labeller, collection: Collection, decoding: Decoding
) -> dict[str, dict[str, float]]:
    """Scores of frames, events and segments, the paper's rates, and of more than two classes each; see training/metrics.py."""
    reference = reference_events(predictions, labeller, collection)
    estimated = estimated_events(predictions, labeller, collection, decoding)
    durations = {file: duration for _, file, duration in _recordings(predictions, collection)}
    background_frames = int((predictions.labels == 0).sum())
    by_class = {}
    if len(labeller.classes) > 2:
        by_class = class_scores(predictions.probabilities, predictions.labels, labeller.classes, decoding.threshold)
    return {
        "frames": frame_scores(predictions.probabilities, predictions.labels, decoding.threshold),
        "events": event_scores(reference, estimated),
        "segments": segment_scores(reference, estimated, durations),
        "rates": rates(reference, estimated, background_frames * predictions.frame),
    } | by_class


def _recordings(predictions: Predictions, collection: Collection) -> list[tuple[int, str, float]]:
    """Row number, file and duration (s) of each recording."""
    rows = collection.recordings
    return [
        (int(i), rows["file"].iat[i], rows["frames"].iat[i] / rows["samplerate"].iat[i])
        for i in np.unique(predictions.recording)
    ]
