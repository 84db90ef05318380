"""Calls as boxes in spectrogram images: what detectors of objects in pictures are trained on.

    layout = Layout(seconds=2.0, overlap=0.5, width=640, height=320, top_hz=125_000)
    calls = boxes_of(data.labeller, data.collection, recording)   # onset, offset, label, low_hz, high_hz
    for start, picture in Pictures(...): ...                      # uint8 (height, width), the highest frequency in row 0
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from denet_torch import audio
from denet_torch.boxes import QUIET, Layout
from training.collection import Collection
from training.labels import IGNORE, Labeller, Spans, merge, subtract
from training.tables import FREQUENCY_COLUMNS

BOX_COLUMNS = ["onset", "offset", "label", "low_hz", "high_hz", "estimated"]
SAMPLED = 8  # images of a recording whose spectra say what its background is
BELOW, ABOVE = 5.0, 40.0  # dB below and above the background that are black and white
ENERGY = (0.05, 0.95)  # shares of a call's energy below the lower and the upper end of an estimated band


def boxes_of(labeller: Labeller, collection: Collection, recording: int) -> pd.DataFrame:
    """Calls of a recording (BOX_COLUMNS), seconds and Hz, by the labeller's strategy and task, in order of onset.

    A voiced segment or annotation is a box; where the strategy cuts or joins them, what it makes is. label is a class, or
    IGNORE for a call of an unknown one; low_hz and high_hz are NaN where no annotation tells (`estimated` then).
    """
    rate = float(collection.recordings["samplerate"].iat[recording])
    first, last = np.searchsorted(labeller.annotated.recording, [recording, recording + 1])
    notes = labeller.annotated.of(recording)
    bands = collection.annotations.iloc[labeller.annotated_row[first:last]]
    bands = bands.reindex(columns=FREQUENCY_COLUMNS).to_numpy(float)
    rows = []
    for start, stop, label in _ends(labeller.spans.of(recording)):
        inside = (notes.start >= start) & (notes.stop <= stop) & (notes.label == label)
        parts = _parts(labeller, collection, recording, inside, notes, (start, stop))
        if label == IGNORE or _union(parts) != [(start, stop)]:
            parts = [(start, stop, None)]
        for begin, end, row in parts:
            touched = (notes.start < end) & (notes.stop > begin) if row is None else [row]
            low, high = _hull(bands[touched])
            rows.append((begin / rate, end / rate, label, low, high, False))
    table = pd.DataFrame(rows, columns=BOX_COLUMNS).drop_duplicates(BOX_COLUMNS[:5])
    return table.sort_values(["onset", "offset"], kind="stable", ignore_index=True)


def blank_spans(labeller: Labeller, collection: Collection, recording: int) -> list[tuple[float, float]]:
    """Stretches (s) of which nobody knows whether they hold a call, or of which class: training counts no frame there."""
    rate = float(collection.recordings["samplerate"].iat[recording])
    spans = labeller.spans.of(recording)
    known = spans.select(spans.label != IGNORE)
    if collection.recordings["complete"].iat[recording]:
        unknown = spans.select(spans.label == IGNORE)
        start, stop = unknown.start, unknown.stop
    else:
        start, stop = np.array([0]), np.array([int(collection.recordings["frames"].iat[recording])])
    ends = zip(*subtract(start, stop, known.start, known.stop), strict=True)
    return [(int(a) / rate, int(b) / rate) for a, b in ends]


class Pictures:
    """Spectrogram images of one recording, and the bands of its calls.

    A pixel is the level above the recording's background in its frequency: black is BELOW dB under it, white ABOVE dB over.
    """

    def __init__(self, path: str | Path, layout: Layout, time_expansion: float = 1, blanks=()) -> None:
        self.path, self.layout, self.time_expansion, self.blanks = Path(path), layout, time_expansion, list(blanks)
        self.info = audio.probe(path, time_expansion)
        self.rate, self.duration = self.info.samplerate, self.info.duration
        self.size = max(64, 2 ** round(np.log2(self.rate * 0.004)))  # samples of a spectrum, 4 ms
        self.frequencies = np.arange(self.size // 2 + 1) * self.rate / self.size
        starts = layout.starts(self.duration)
        picked = starts[:: math.ceil(len(starts) / SAMPLED)]
        self._known = {start: self._power(start, self._times(start)) for start in picked}
        everything = np.concatenate([power[self._inside(start)] for start, power in self._known.items()])
        floor = 10 * np.log10(np.quantile(everything, 0.25, axis=0) + QUIET)
        # A recording that is one long call has it in its background too: no frequency lies far above the others.
        self._floor = np.minimum(floor, np.median(floor) + 20)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        for start in self.layout.starts(self.duration):
            yield start, self.image(start)

    def image(self, start: float) -> np.ndarray:
        """The image that begins at `start` (s), uint8 (height, width)."""
        layout = self.layout
        power = self._known[start] if start in self._known else self._power(start, self._times(start))
        level = 10 * np.log10(power + QUIET) - self._floor  # (width, bins)
        rows = min(layout.height, max(1, round(layout.height * self.rate / 2 / layout.top_hz)))
        grey = np.zeros((layout.height, layout.width), np.float32)
        grey[layout.height - rows :] = _as_rows(((level + BELOW) / (BELOW + ABOVE)).clip(0, 1), rows).T[::-1]
        grey[:, ~self._inside(start)] = 0
        middle = self._times(start)
        for onset, offset in self.blanks:
            grey[:, (middle >= onset) & (middle < offset)] = BELOW / (BELOW + ABOVE)
        return np.round(255 * grey).astype(np.uint8)

    def with_bands(self, calls: pd.DataFrame) -> pd.DataFrame:
        """`calls` (BOX_COLUMNS) with every band: what is not annotated is where most of a call's energy is, `estimated`.

        That is from 5 to 95 % (ENERGY) of what is above the background; all frequencies where there is nothing.
        """
        top = min(self.rate / 2, self.layout.top_hz)
        low, high = calls["low_hz"].to_numpy(float, copy=True), calls["high_hz"].to_numpy(float, copy=True)
        low[low < 0], high[high > top] = 0, top
        bad = (low >= top) | (high <= 0) | (low >= high)
        low[bad] = high[bad] = np.nan
        estimated = np.isnan(low) | np.isnan(high)
        if estimated.any():
            background = self._background(calls)
            for i in np.flatnonzero(estimated):
                band = self._band(calls["onset"].iat[i], calls["offset"].iat[i], background)
                low[i] = band[0] if np.isnan(low[i]) else low[i]
                high[i] = band[1] if np.isnan(high[i]) else high[i]
                if not low[i] < high[i]:
                    low[i], high[i] = band
        return calls.assign(low_hz=low, high_hz=high, estimated=estimated)

    def _band(self, onset: float, offset: float, background: np.ndarray) -> tuple[float, float]:
        times = np.linspace(onset, offset, int(np.clip(4 * (offset - onset) * self.rate / self.size, 3, 400)) + 2)[1:-1]
        energy = np.maximum(self._spectra(times).mean(axis=0) - background, 0)
        energy[self.frequencies > self.layout.top_hz] = 0
        total = np.cumsum(energy)
        if total[-1] <= QUIET:
            return 0.0, min(self.rate / 2, self.layout.top_hz)
        spacing = self.rate / self.size
        edges = np.append(0, total / total[-1])
        low, high = np.interp(ENERGY, edges, np.append(0, self.frequencies + spacing / 2))
        least = 2 * self.layout.top_hz / self.layout.height  # a box of a pixel or less could not be seen
        middle = np.clip((low + high) / 2, least / 2, min(self.rate / 2, self.layout.top_hz) - least / 2)
        return min(low, middle - least / 2), max(min(high, self.rate / 2), middle + least / 2)

    def _background(self, calls: pd.DataFrame) -> np.ndarray:
        """Mean power of each frequency outside of the calls, in the sampled images; of everything where calls are everywhere."""
        quiet, loud = [], []
        for start, power in self._known.items():
            times = self._times(start)
            call = np.zeros(len(times), bool)
            for onset, offset in calls[["onset", "offset"]].to_numpy(float):
                call |= (times > onset - 0.005) & (times < offset + 0.005)
            quiet.append(power[self._inside(start) & ~call])
            loud.append(power[self._inside(start)])
        quiet = np.concatenate(quiet)
        return quiet.mean(axis=0) if len(quiet) >= 8 else np.quantile(np.concatenate(loud), 0.25, axis=0)

    def _times(self, start: float) -> np.ndarray:
        """The middle of each column (s)."""
        return start + (np.arange(self.layout.width) + 0.5) * self.layout.seconds / self.layout.width

    def _inside(self, start: float) -> np.ndarray:
        """Columns whose middle lies in the recording; the first one in any case."""
        inside = self._times(start) < self.duration
        inside[0] = True
        return inside

    def _power(self, start: float, times: np.ndarray) -> np.ndarray:
        """Mean power (columns, bins) of two spectra in each column."""
        quarter = self.layout.seconds / self.layout.width / 4
        both = self._spectra(np.concatenate([times - quarter, times + quarter]))
        return both.reshape(2, len(times), -1).mean(axis=0)

    def _spectra(self, times: np.ndarray) -> np.ndarray:
        """Power (times, bins) of the spectra around `times` (s), silence before the start and after the end."""
        half = self.size // 2
        centres = np.round(times * self.rate).astype(np.int64)
        first, last = max(0, int(centres.min()) - half), int(centres.max()) + half
        sound = audio.read(self.path, first, last - first, time_expansion=self.time_expansion)
        before = max(0, half - int(centres.min()))
        sound = np.pad(sound, (before, max(0, last - first - len(sound)) + self.size))
        windows = sliding_window_view(sound, self.size)[centres - half - first + before]
        spectra = np.fft.rfft(windows * np.hanning(self.size).astype(np.float32), axis=1)
        return (np.abs(spectra) ** 2).astype(np.float64)


def _as_rows(level: np.ndarray, rows: int) -> np.ndarray:
    """(columns, bins) as (columns, rows): the highest of the bins of a row, or the nearest bin."""
    edges = np.linspace(0, level.shape[1], rows + 1)
    first = np.floor(edges[:-1]).astype(int)
    if rows >= level.shape[1]:
        return level[:, first]
    return np.maximum.reduceat(level, first, axis=1)


def _ends(spans: Spans) -> list[tuple[int, int, int]]:
    return [(int(a), int(b), int(c)) for a, b, c in zip(spans.start, spans.stop, spans.label, strict=True)]


def _parts(labeller: Labeller, collection: Collection, recording: int, inside, notes: Spans, place) -> list[tuple]:
    """Segments and annotations (start, stop, row of the annotation) that may make up the span at `place`."""
    if labeller.strategy not in ("voice", "annotation"):
        return []
    parts = [(int(notes.start[i]), int(notes.stop[i]), i) for i in np.flatnonzero(inside)]
    if labeller.strategy == "voice":
        voice = {(int(a), int(b)) for a, b in collection.voice_of(recording)[["start", "stop"]].to_numpy()}
        parts = [part for part in parts if part[:2] in voice]
        if labeller.task == "call":
            noted = {part[:2] for part in parts}
            parts += [(a, b, None) for a, b in sorted(voice - noted) if place[0] <= a and b <= place[1]]
    return parts


def _union(parts: list[tuple]) -> list[tuple[int, int]]:
    if not parts:
        return []
    start, stop = merge(*np.array([part[:2] for part in parts], np.int64).T)
    return list(zip(start.tolist(), stop.tolist(), strict=True))


def _hull(bands: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest frequency told, NaN where none is."""
    low, high = (side[~np.isnan(side)] for side in bands.reshape(-1, 2).T)
    return (low.min() if len(low) else np.nan), (high.max() if len(high) else np.nan)
