"""Sequences of frames from a collection's recordings, read by seeking.

    data = open_datasets("egyptian_fruit_bats")         # .train, .validation, .test, .classes, ...
    data.train.set_epoch(3); data.train[0]

An item is a dict: waveform (seq_len, samples) float32 at the model's rate, labels (seq_len,) int64 with
IGNORE for frames that must not count, recording (row number in the collection), start (seconds) and
frames, the number of whole ones. Of a set that is `own_rate` the waveform is an `audio.Part`, to be resampled
later (training/resampling.py).

`RandomWindows` draws; an item depends on (seed, epoch, index) alone, not on the worker that makes it or on
what was made before, so a run resumes in mid-epoch by starting at a later index. `ExhaustiveWindows` covers
recordings from end to end, for evaluation.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from denet_torch import audio
from training.collection import INDEX_NAME, Collection, open_collection, report_path
from training.labels import BACKGROUND, IGNORE, Labeller, Spans, quiet_spans
from training.mixing import Mixer
from training.splits import SIDES, Split, draw_few, offers, split_collection
from training.tables import CollectionError

SHORTER = "is shorter than when it was indexed; index the collection again"
STRETCH = 8  # sequences, side by side, in a window for evaluation


@dataclass(frozen=True)
class Sampling:
    """Shares of random windows that are drawn on purpose; the rest lie anywhere.

    call: around a call, each class as often as any other. boundary: with the onset or offset of a call
    somewhere inside. quiet: where neither source has a call.
    """

    call: float = 0.4
    boundary: float = 0.2
    quiet: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.call, self.boundary, self.quiet)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"sampling shares are {shares}; expected at least 0, together at most 1")


class _Windows(Dataset):
    """Windows of `seq_len` frames of `samples` samples at `rate` Hz of some recordings.

    recordings: row numbers; those without labels, or shorter than a frame, are left out.
    """

    def __init__(
        self,
        collection: Collection,
        recordings: Sequence[int],
        labeller: Labeller,
        *,
        rate: int = 16000,
        samples: int = 800,
        seq_len: int = 10,
    ) -> None:
        recordings = np.asarray(recordings, np.int64)
        collection.require_headers()
        # Plain arrays: a data loader's workers share them instead of growing copies of their own.
        self._samplerate = collection.recordings["samplerate"].to_numpy(np.int64)
        # Samples at the model's rate.
        self._length = collection.recordings["frames"].to_numpy(np.int64) * rate // self._samplerate
        self._files = np.array([os.fsencode(file) for file in collection.recordings["file"]])
        self.root, self._time_expansion = collection.root, collection.time_expansion
        self._labeller = labeller
        # Whether a recording that cannot be read gives silence without labels, its item saying why ("failed"), or AudioError.
        self.tolerant = False
        self.own_rate = False  # whether waveforms are left at the recordings' own rates
        self.rate, self.samples, self.seq_len = rate, samples, seq_len
        long_enough = self._length[recordings] >= samples
        self.recordings = recordings[labeller.known[recordings] & long_enough]
        if not len(self.recordings):
            raise CollectionError(
                f"{collection.root}: none of {len(recordings)} recordings has labels and a whole frame"
            )

    @property
    def window(self) -> int:
        """Samples in a window, at the model's rate."""
        return self.seq_len * self.samples

    def _read(self, path: Path, start: int) -> audio.Part:
        return audio.read_part(
            path, start, self.window, rate=self.rate, time_expansion=self._time_expansion
        )

    def _item(self, recording: int, start: int) -> dict:
        """The window that begins at sample `start`, at the model's rate; silence after the end."""
        path = self.root / os.fsdecode(self._files[recording])
        failed = ""
        try:
            part = self._read(path, start)
            if part.count < min(self.window, self._length[recording] - start):
                raise audio.AudioError(f"{path}: {SHORTER}")
        except audio.AudioError as error:
            if not self.tolerant:
                raise
            part, failed = audio.Part(np.zeros(0, np.float32), 0), str(error)
        edges = np.arange(start, start + self.window + 1, self.samples)
        edges_in_file = edges * (self._samplerate[recording] / self.rate)
        labels = self._labeller(recording, edges_in_file)
        labels[(edges[1:] > self._length[recording]) | bool(failed)] = IGNORE
        return {
            "failed": failed,
            "waveform": part if self.own_rate else self._waveform(part),
            "labels": labels,
            "recording": int(recording),
            "start": start / self.rate,
            "frames": int(min(self.window, self._length[recording] - start) // self.samples),  # that are whole
        }

    def _waveform(self, part: audio.Part) -> np.ndarray:
        waveform = np.zeros(self.window, np.float32)
        waveform[: part.count] = part.resampled()
        return waveform.reshape(self.seq_len, self.samples)


class ExhaustiveWindows(_Windows):
    """Every whole frame of every recording, in windows that do not overlap, the last filled up."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        counts = -(-(self._length[self.recordings] // self.samples) // self.seq_len)
        self._last = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._last[-1])

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self._last, index, side="right"))
        first = self._last[place - 1] if place else 0
        return self._item(self.recordings[place], int(index - first) * self.window)


class RandomWindows(_Windows):
    """`length` windows an epoch at drawn places, by `sampling`, through `mixer` if there is one."""

    def __init__(
        self,
        collection: Collection,
        recordings: Sequence[int],
        labeller: Labeller,
        *,
        length: int,
        seed: int = 0,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        mixer: Mixer | None = None,
        **options,
    ) -> None:
        super().__init__(collection, recordings, labeller, **options)
        self.length, self.seed, self.sampling, self.mixer = length, seed, sampling, mixer
        # Shared, so that workers that live through several epochs see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._until = np.cumsum(self._length[self.recordings])
        spans = labeller.spans
        mine = np.isin(spans.recording, self.recordings) & (spans.label != IGNORE)
        self._calls = self._at_rate(spans.select(mine))
        self._classes = np.unique(self._calls.label)
        self._of_class = {c: np.flatnonzero(self._calls.label == c) for c in self._classes}
        quiet = quiet_spans(collection)
        lengths = (quiet.stop - quiet.start) * self.rate // self._samplerate[quiet.recording]
        mine = np.isin(quiet.recording, self.recordings) & (lengths >= self.window)
        self._quiet = self._at_rate(quiet.select(mine))

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Draw other windows; the same epoch gives the same ones."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        item = self._item(*self._place(rng))
        if self.mixer is not None and not item["failed"]:
            sound, item["labels"], item["mix"] = self.mixer(
                rng, item["waveform"].reshape(-1), item["labels"], self.rate
            )
            item["waveform"] = sound.reshape(self.seq_len, self.samples)
        return item

    def _place(self, rng: np.random.Generator) -> tuple[int, int]:
        """Recording, and first sample at the model's rate."""
        kind, sampling = rng.random(), self.sampling
        if kind < sampling.call + sampling.boundary and len(self._calls):
            if kind < sampling.call:
                rows = self._of_class[self._classes[rng.integers(len(self._classes))]]
                call = rows[rng.integers(len(rows))]
                # Half a frame of the call or more is inside.
                first = self._calls.start[call] - self.window + self.samples // 2
                last = self._calls.stop[call] - self.samples // 2
            else:
                call = rng.integers(len(self._calls))
                last = (self._calls.start, self._calls.stop)[rng.integers(2)][call]
                first = last - self.window
            recording = self._calls.recording[call]
        elif kind < sampling.call + sampling.boundary + sampling.quiet and len(self._quiet):
            gap = rng.integers(len(self._quiet))
            recording = self._quiet.recording[gap]
            first = self._quiet.start[gap] + 1
            last = self._quiet.stop[gap] - self.window
        else:
            place = np.searchsorted(self._until, rng.integers(self._until[-1]), side="right")
            recording = self.recordings[place]
            first, last = 0, self._length[recording]
        start = rng.integers(min(first, last), max(first, last) + 1)
        latest = max(0, self._length[recording] - self.window)
        return int(recording), int(min(max(0, start), latest))

    def _at_rate(self, spans: Spans) -> Spans:
        """Spans in samples at the model's rate."""
        start, stop = (
            end * self.rate // self._samplerate[spans.recording] for end in (spans.start, spans.stop)
        )
        return replace(spans, start=start, stop=stop)


class ByTurns(Dataset):
    """Windows of several sets of the same length by turns, so that a batch holds as many of each.

    recordings: those of the first set.
    """

    def __init__(self, *sets: RandomWindows) -> None:
        self.sets, self.recordings = sets, sets[0].recordings

    def __len__(self) -> int:
        return len(self.sets[0])

    def set_epoch(self, epoch: int) -> None:
        """See `RandomWindows`."""
        for one in self.sets:
            one.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict:
        return self.sets[index % len(self.sets)][index]


def whole_frames(collection: Collection, rate: int, samples: int) -> np.ndarray:
    """Number of whole frames of `samples` at `rate` Hz in each recording (recordings,)."""
    collection.require_headers()
    frames, samplerate = (collection.recordings[name].to_numpy(np.int64) for name in ("frames", "samplerate"))
    return frames * rate // samplerate // samples


@dataclass(frozen=True)
class Datasets:
    """A collection made ready for training. usable: (recordings,) bool, which ones have labels and a whole frame."""

    collection: Collection
    split: Split
    labeller: Labeller
    train: RandomWindows | ByTurns
    validation: ExhaustiveWindows
    test: ExhaustiveWindows
    usable: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, background first."""
        return self.labeller.classes

    @property
    def described_split(self) -> str:
        """What the recordings are split by, and how many are on each side, in a line."""
        sides = [len(side) for side in (self.split.train, self.split.validation, self.split.test)]
        undated = int(self.collection.recordings["recorded"][self.usable].isna().sum())
        alone = f" ({undated} of them without a date, each a day of its own)" if "day" in self.split.by and undated else ""
        others = ", ".join(f"{key} ({count})" for key, count in offers(self.collection, self.usable).items() if count > 2)
        chosen = np.isin(self.split.train, self.train.recordings).sum()
        only = f" (only {chosen} of them used)" if chosen < sides[0] else ""
        return (
            f"Split by {' and '.join(self.split.by)}: {sides[0]} recordings to train{only}, {sides[1]} to validate, "
            f"{sides[2]} to test, of {len(self.usable)}{alone}; --split-by offers {others}"
        )

    def sides(self) -> dict[str, dict]:
        """Of each side: recordings that are used, their seconds, and the calls of each class."""
        rows, spans, found = self.collection.recordings, self.labeller.spans, {}
        for name in SIDES:
            mine = np.unique(getattr(self, name).recordings)
            label = spans.label[np.isin(spans.recording, mine)]
            found[name] = {
                "recordings": len(mine),
                "seconds": round(float((rows["frames"] / rows["samplerate"]).iloc[mine].sum()), 3),
                "calls": {named: int((label == i).sum()) for i, named in enumerate(self.classes) if i != BACKGROUND},
            }
        return found

    def described_sides(self) -> list[str]:
        """`sides` as a line each."""
        lines = []
        for name, side in self.sides().items():
            calls = ", ".join(f"{count} {label}" for label, count in side["calls"].items())
            lines.append(f"{name}: {side['recordings']} recordings, {side['seconds']:.0f} s, calls: {calls}")
        return lines


def open_datasets(
    data_dir: str | Path,
    *,
    task: str = "call",
    strategy: str = "voice",
    min_overlap: float = 0.5,
    mask_conflicts: bool = False,
    split_by: Sequence[str] = (),
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    subset: float = 1.0,
    few: int = 0,
    reading: dict | None = None,
    length: int = 1000,
    seed: int = 0,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    mixer: Mixer | None = None,
    **window,
) -> Datasets:
    """Index (where there is none), label and split the collection in `data_dir`.

    split_by: some of splits.GROUPS; none of them leaves the choice to `split_collection`.
    subset: share of the training side's recordings to train on, the same ones for a seed. few: only so many of each class.
    reading: how the collection is read, as for `open_collection`.
    window: rate, samples and seq_len; validation and test are in stretches of STRETCH sequences.
    Raises CollectionError, ValueError.
    """
    collection = open_collection(data_dir, **(reading or {}))
    labeller = Labeller(collection, strategy, task, min_overlap, mask_conflicts)
    usable = labeller.known & (whole_frames(collection, window.get("rate", 16000), window.get("samples", 800)) > 0)
    if not len(collection.recordings):
        raise CollectionError(f"{collection.root}: none of its recordings can be used; {report_path(INDEX_NAME)} there says why")
    if len(labeller.classes) < 2:
        raise CollectionError(f"{collection.root}: no annotation names a class of the task {task}: there is nothing to learn")
    split = split_collection(collection, split_by, fractions, seed, usable)
    if not usable[labeller.spans.recording].any():
        raise CollectionError(f"{collection.root}: no call in {usable.sum()} recordings with labels: there is nothing to learn")
    order = np.random.default_rng(seed).permutation(len(split.train))
    train = np.sort(split.train[order[: max(1, round(subset * len(order)))]])
    if few:
        known = labeller.spans.select(labeller.spans.label != IGNORE)
        train = draw_few(train, known.recording, known.label, few, seed)
        if not len(train):
            raise CollectionError(f"{collection.root}: no recording of the training side holds a call; try another seed or split")
    stretch = window | {"seq_len": STRETCH * window.get("seq_len", 10)}
    return Datasets(
        collection,
        split,
        labeller,
        RandomWindows(
            collection,
            train,
            labeller,
            length=length,
            seed=seed,
            sampling=sampling,
            mixer=mixer,
            **window,
        ),
        ExhaustiveWindows(collection, split.validation, labeller, **stretch),
        ExhaustiveWindows(collection, split.test, labeller, **stretch),
        usable,
    )
