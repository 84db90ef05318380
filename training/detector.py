"""Training of a model that answers with boxes: `python -m training.run --model boxes --data-dir DIR`.

Recordings, split, labels and drawn windows are those of the other models; what is learned is the boxes that `denet export-yolo`
writes (`training.boxes`), cut to each window. The threshold and the weights kept are those with the best event F1 on the
validation side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from tqdm import tqdm

from denet_torch import Boxes, Model
from denet_torch.audio import AudioError, probe
from denet_torch.boxes import Layout
from denet_torch.detection import decode, joined
from denet_torch.schema import Decoding, Detection

from .boxes import Pictures, boxes_of
from .config import Config, TrainingError
from .fitting import WEIGHTS, Progress, fit
from .guards import Unreadable
from .labels import IGNORE, merge
from .metrics import event_scores, rates, segment_scores
from .registry import best_model, get_model, initial_model
from .runs import write_json
from .splits import write_split
from .windows import SHORTER, Datasets

# Options that have no use here: they are refused rather than passed over.
OF_FRAMES = (
    "overfit", "self_train", "freeze", "workers", "resample_on", "accumulate", "loss", "class_weights", "on_nonfinite", "amp",
    "compile", "profile", "best_by", "loggers",
)  # fmt: skip
THRESHOLDS = np.arange(0.1, 0.91, 0.05).round(2)  # scores of a box, of which the validation side chooses one


def calls_of(data: Datasets, recording: int, layout: Layout) -> pd.DataFrame:
    """Boxes of a recording's calls of known class, every one with its band; those above the highest row are left out."""
    calls = boxes_of(data.labeller, data.collection, recording)
    calls = calls[(calls["label"] != IGNORE) & ~(calls["low_hz"] >= layout.top_hz)]
    if not len(calls):
        return calls
    return Pictures(data.collection.path(recording), layout, data.collection.time_expansion).with_bands(calls)


class Batches:
    """Windows for training with their boxes.

    `draw(rng, n)` gives waveforms (n, seq_len, samples), the boxes of each, and frames (n, seq_len) that must not count. Of a
    recording that cannot be read any more they are silence, no box, and all frames.
    """

    def __init__(self, data: Datasets, layout: Layout, unreadable: Unreadable):
        self.windows, self.layout, self.unreadable, self.calls = data.train, layout, unreadable, {}
        for recording in tqdm(data.train.recordings, desc="boxes", unit="file"):
            try:
                self.calls[int(recording)] = calls_of(data, recording, layout)
            except AudioError as error:
                unreadable.add(int(recording), str(error))
        if not sum(map(len, self.calls.values())):
            raise TrainingError(f"{data.collection.root}: no call below {layout.top_hz:.0f} Hz on the training side")

    def draw(self, rng: np.random.Generator, number: int) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        self.windows.set_epoch(int(rng.integers(2**62)))
        items = [self._item(i) for i in range(number)]
        waveforms = torch.from_numpy(np.stack([item["waveform"] for item in items]))
        blank = torch.from_numpy(np.stack([item["labels"] == IGNORE for item in items]))
        return waveforms, [self._boxes(item) for item in items], blank

    def _item(self, index: int) -> dict:
        """A window; silence that does not count once its recording could not be read, for then its calls are not known."""
        item = self.windows[index]
        if item["failed"]:
            self.unreadable.add(item["recording"], item["failed"])
        if item["recording"] in self.unreadable.found:
            item["waveform"][:], item["labels"][:] = 0, IGNORE
        return item

    def _boxes(self, item: dict) -> torch.Tensor:
        if item["recording"] in self.unreadable.found or item.get("mix", {}).get("alone"):  # a background in its place
            return torch.zeros(0, 5)
        calls = self.calls[item["recording"]]
        return torch.from_numpy(self.layout.within(calls, item["start"]).to_numpy(np.float32).reshape(-1, 5))


@dataclass(frozen=True)
class Side:
    """What a model found in the recordings of one side, to be decoded: files, durations (s), the boxes of each, the reference."""

    files: list[str]
    durations: list[float]
    boxes: list[np.ndarray]
    reference: pd.DataFrame

    def estimated(self, model: Model, decoding: Decoding) -> pd.DataFrame:
        """Events by a decoding."""
        rows = zip(self.boxes, self.durations, self.files, strict=True)
        return joined(model, [decode(model, boxes, seconds, decoding, file) for boxes, seconds, file in rows])

    def scores(self, model: Model, decoding: Decoding) -> dict[str, dict[str, float]]:
        """Scores of events and segments, and the paper's rates; see training/metrics.py."""
        estimated, durations = self.estimated(model, decoding), dict(zip(self.files, self.durations, strict=True))
        calls = [merge(*table[["onset", "offset"]].to_numpy().T) for _, table in self.reference.groupby("file")]
        background = sum(self.durations) - sum(float((stop - start).sum()) for start, stop in calls)  # of two at once, one
        return {
            "events": event_scores(self.reference, estimated),
            "segments": segment_scores(self.reference, estimated, durations),
            "rates": rates(self.reference, estimated, background),
        }


def search(
    model: Boxes, data: Datasets, recordings: np.ndarray, title: str, check: Callable[[], None], unreadable: Unreadable
) -> Side:
    """Find boxes in some recordings; those that cannot be read any more, or not whole, are not scored.

    Raises AudioError if there are too many of them.
    """
    collection, labels = data.collection, np.array(data.classes, dtype=object)
    files, durations, boxes, references = [], [], [], []
    for recording in tqdm(recordings, desc=title, unit="file", leave=False):
        path, file = collection.path(recording), collection.recordings["file"].iat[recording]
        try:
            info = probe(path, collection.time_expansion)
            if info.frames < collection.recordings["frames"].iat[recording]:
                raise AudioError(f"{path}: {SHORTER}")
            found = model.find(path, time_expansion=collection.time_expansion)
        except AudioError as error:
            unreadable.add(int(recording), str(error))
        else:
            boxes.append(found)
            durations.append(info.duration)
            calls = boxes_of(data.labeller, collection, recording)
            calls = calls[calls["label"] != IGNORE]
            calls = calls.assign(file=file, label=labels[calls["label"].to_numpy(int)])
            references.append(calls[["file", "onset", "offset", "label"]])
            files.append(file)
        check()
    if not files:
        raise AudioError(f"{path}: cannot be read any more, and with it all recordings that are to be scored")
    return Side(files, durations, boxes, pd.concat(references, ignore_index=True))


def choose_threshold(side: Side, model: Model) -> tuple[float, float, float]:
    """The threshold with the best event F1, of several alike the one in their middle; that F1; the mean over all thresholds."""
    decodings = [Decoding(float(threshold)) for threshold in THRESHOLDS]
    found = np.nan_to_num([event_scores(side.reference, side.estimated(model, decoding))["f1"] for decoding in decodings])
    best = np.flatnonzero(found == found.max())
    chosen = best[len(best) // 2]
    return float(THRESHOLDS[chosen]), float(found[chosen]), float(found.mean())


@dataclass
class BoxResult:
    """What a run ends with."""

    out: Path
    model: Model
    data: Datasets
    progress: Progress
    test: dict[str, dict[str, float]]
    scored: int  # recordings of the test side

    def summary(self) -> str:
        """Scores on the test side, and where the results lie."""
        events = self.test["events"]
        return "\n".join(
            [
                self.data.described_split,
                f"recordings never seen ({self.scored}), weights of epoch {self.progress.best_epoch}:",
                f"  event F1 {events['f1']:.3f} (200 ms collar), "
                f"precision {events['precision']:.3f}, recall {events['recall']:.3f}",
                f"results in {self.out}: scores.json, {WEIGHTS}",
            ]
        )


def train_boxes(config: Config, fabric: Fabric, out: Path, data: Datasets, check=lambda: None, on_epoch=None) -> BoxResult:
    """A run on the collection and split of `data`: train, evaluate the best weights once on the test side."""
    write_split(data.split, data.collection, out)
    torch.manual_seed(config.seed)
    model = _initial(config, data)
    unreadable = Unreadable(len(data.collection.recordings))
    batches = Batches(data, model.layout, unreadable)

    def loss_of(module, rng: np.random.Generator) -> torch.Tensor:
        sound, boxes, blank = batches.draw(rng, config.batch_size)
        boxes = [fabric.to_device(image) for image in boxes]
        return sum(module(fabric.to_device(sound), boxes, fabric.to_device(blank)).values())

    def validate() -> tuple[float, Detection, dict]:
        side = search(model, data, data.validation.recordings, "validation", check, unreadable)
        threshold, best, mean = choose_threshold(side, model)
        score = best + mean / 1000  # of epochs alike, the one that is surest of itself
        return score, Detection(tuple(data.classes), Decoding(threshold)), {"event F1": best, "threshold": threshold}

    progress = fit(fabric, model, config, out, loss_of, validate, check, on_epoch or (lambda epoch, score: None))
    best = best_model(out / WEIGHTS, model).to(fabric.device)
    side = search(best, data, data.test.recordings, "test", check, unreadable)
    test = side.scores(best, best.detection.decoding)
    record = {"best_epoch": progress.best_epoch, "decoding": best.detection.as_dict(), "epochs": progress.epochs, "test": test}
    record |= {"recordings": len(side.files), "excluded": unreadable.counted()}
    write_json(out / "scores.json", record)
    return BoxResult(out, best, data, progress, test, len(side.files))


def _initial(config: Config, data: Datasets) -> Model:
    if config.init_from is None:
        return get_model(config.model, config, len(data.classes))
    model = initial_model(config.init_from, with_boxes=True)
    if model.n_classes != len(data.classes) or model.sr != config.sample_rate:
        raise TrainingError(f"{config.init_from}: is no model of boxes of {len(data.classes)} classes at {config.sample_rate} Hz")
    return model.train()
