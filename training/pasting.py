"""Real calls in front of other sounds: calls of a collection cut out and added to recordings that hold none.

A recording of the result has a stretch of one background and calls of one recording of the collection, at the lower of their two
rates, so that neither ends at a frequency where the other goes on. A call comes with a little of what is around it, faded in and
out there; its own background comes with it. The ratio is the power of the call, from onset to offset, to the mean power of the
stretch. TABLE says what lies where and what it was made of, and is read as the result's annotations.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from denet_torch import audio
from denet_torch.files import new_folder
from training import formats
from training.collection import INDEX_NAME, Collection, open_collection
from training.labels import IGNORE, Labeller
from training.options import refuse_snr
from training.tables import CollectionError

TABLE = "mix.csv"
PEAK = 0.99  # of full scale, at most
TRIES = 20  # draws of a call and a background for a recording
LEAST_POWER = 0.01  # of a call that must be left at the rate of its recording


@dataclass(frozen=True)
class Pasting:
    """How recordings are made: how many, seconds each, calls in one at most, ratios (dB), fades (s) and the seed of all draws."""

    recordings: int = 200
    seconds: float = 4.0
    calls: int = 3
    snr_db: tuple[float, float] = (-5.0, 20.0)
    fade: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for what cannot be."""
        if self.recordings < 1 or self.calls < 1:
            raise ValueError("--recordings and --calls must be at least 1")
        if not (np.isfinite(self.seconds) and self.seconds > 0 and 0 <= self.fade < 1):
            raise ValueError("--seconds must be above 0, --fade at least 0 and below 1")
        refuse_snr(self.snr_db)


@dataclass(frozen=True)
class Cut:
    """A call with its surroundings, faded (samples,), of which [first, last) is the call; row of the labeller's spans; label."""

    sound: np.ndarray
    first: int
    last: int
    row: int
    label: str


class Unusable(ValueError):
    """A call and a background that make no recording; the message says why."""


def quiet_recordings(folder: str | Path) -> tuple[Collection, np.ndarray, str]:
    """A folder's recordings without calls: its collection, their rows, and how that is known, in a line.

    Where there are annotations, those that were annotated completely, without a call; otherwise all. Raises CollectionError if
    there is none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CollectionError(f"{folder}: no such folder")
    if (folder / INDEX_NAME).exists() or _is_annotated(folder):
        collection = open_collection(folder)
        quiet = collection.recordings["complete"].to_numpy(bool, copy=True)
        quiet[Labeller(collection, "union").spans.recording] = False
        how = f"of {len(quiet)} backgrounds, {quiet.sum()} are annotated as without a call and used"
    else:
        with tempfile.TemporaryDirectory() as elsewhere:  # nothing was said of this folder that a later index could keep
            collection = open_collection(folder, Path(elsewhere) / INDEX_NAME, completely_annotated=True)
        quiet = np.ones(len(collection.recordings), bool)
        how = f"{len(quiet)} backgrounds without annotations, all taken as without a call"
    if not quiet.any():
        raise CollectionError(
            f"{folder}: none of {len(quiet)} recordings is known to hold no call; annotate some of them with an empty table, or "
            "name a folder without annotations"
        )
    return collection, np.flatnonzero(quiet), how


def _is_annotated(folder: Path) -> bool:
    formats.recognise(folder, needed=False)  # raises for tables of several formats, which are a question for the user
    try:
        formats.recognise(folder)
    except CollectionError:
        return False
    return True


class Paster:
    """Makes recordings of calls of the recordings `rows` of a collection and of the recordings `quiet` of `backgrounds`.

    Calls of unknown class are left out. notes: why something was left out, and how often. Raises CollectionError if there is no
    call to paste.
    """

    def __init__(
        self,
        collection: Collection,
        labeller: Labeller,
        rows: np.ndarray,
        backgrounds: Collection,
        quiet: np.ndarray,
        how: Pasting,
    ) -> None:
        self.collection, self.labeller, self.backgrounds, self.quiet, self.how = collection, labeller, backgrounds, quiet, how
        self.notes: Counter[str] = Counter()
        spans = labeller.spans
        seconds = (spans.stop - spans.start) / collection.recordings["samplerate"].to_numpy(np.float64)[spans.recording]
        self.taken = (spans.label != IGNORE) & np.isin(spans.recording, rows) & (seconds <= how.seconds)
        self.sources = np.unique(spans.recording[self.taken])
        if not len(self.sources):
            raise CollectionError(f"{collection.root}: no call of known class that fits into {how.seconds:g} s")

    def write(self, out: Path) -> pd.DataFrame:
        """Write the recordings and TABLE, which is returned, to the new folder `out`.

        `out` appears only when complete. Raises FileExistsError, and CollectionError if a recording cannot be made.
        """
        rows = []
        with new_folder(out) as folder:
            for number in tqdm(range(self.how.recordings), desc="recordings", unit="file"):
                rows += self._recording(np.random.default_rng([self.how.seed, number]), number, folder)
            table = pd.DataFrame(rows)
            table.to_csv(folder / TABLE, index=False)
        return table

    def _recording(self, rng: np.random.Generator, number: int, root: Path) -> list[dict]:
        """Write one recording; its rows of TABLE."""
        for _ in range(TRIES):
            source, behind = int(rng.choice(self.sources)), int(rng.choice(self.quiet))
            own_rate = int(self.collection.recordings["samplerate"].iat[source])
            rate = min(own_rate, int(self.backgrounds.recordings["samplerate"].iat[behind]))
            cuts = self._cuts(rng, source, rate)
            try:
                stretch, start = self._stretch(rng, behind, rate)
                sound, placed = mix(rng, stretch, cuts, self.how.snr_db)
                break
            except (Unusable, audio.AudioError) as error:
                self.notes[str(error)] += 1
        else:
            raise CollectionError(f"no recording could be made in {TRIES} tries; such as: {next(reversed(self.notes))}")
        file = self._name(source, number)
        (root / file).parent.mkdir(exist_ok=True)
        scale = min(1.0, PEAK / float(np.abs(sound).max()))
        soundfile.write(root / file, scale * sound, rate, subtype="PCM_24")
        return [
            {
                "file": file,
                "onset": first / rate,
                "offset": (first + piece.last - piece.first) / rate,
                "label": piece.label,
                "snr_db": ratio,
                "gain_db": gain,
                "source": self.collection.recordings["file"].iat[source],
                "source_onset": self.labeller.spans.start[piece.row] / own_rate,
                "source_offset": self.labeller.spans.stop[piece.row] / own_rate,
                "background": self.backgrounds.recordings["file"].iat[behind],
                "background_onset": start / rate,
                "level_db": 20 * np.log10(scale),
            }
            for piece, first, ratio, gain in placed
        ]

    def _cuts(self, rng: np.random.Generator, source: int, rate: int) -> list[Cut]:
        """Some calls of a recording, those that can be used."""
        calls = rng.permutation(np.flatnonzero(self.taken & (self.labeller.spans.recording == source)))
        cuts = []
        for row in calls[: rng.integers(1, self.how.calls + 1)]:
            try:
                cuts.append(cut(self.collection, self.labeller, int(row), rate, self.how.fade))
            except (Unusable, audio.AudioError) as error:
                self.notes[str(error)] += 1
        return cuts

    def _stretch(self, rng: np.random.Generator, row: int, rate: int) -> tuple[np.ndarray, int]:
        """A drawn stretch of a background at `rate`, and its first sample."""
        path, facts = self.backgrounds.path(row), self.backgrounds.recordings
        total = audio.resampled_length(int(facts["frames"].iat[row]), int(facts["samplerate"].iat[row]), rate)
        length = min(total, round(self.how.seconds * rate))
        start = int(rng.integers(0, total - length + 1))
        sound = audio.read(path, start, length, rate=rate, time_expansion=self.backgrounds.time_expansion)
        if not np.var(sound) > 0:
            raise Unusable(f"{path}: is silent at {start / rate:.2f} s and sets no ratio")
        return sound, start

    def _name(self, source: int, number: int) -> str:
        """A folder for each source, so that --split-by folder keeps its calls on one side, and its date, for --split-by day."""
        recorded = self.collection.recordings["recorded"].iat[source]
        date = "" if pd.isna(recorded) else f"{recorded:%Y%m%d_%H%M%S}_"
        return f"source{source:07d}/{date}{number:05d}.wav"


def cut(collection: Collection, labeller: Labeller, row: int, rate: int, fade: float) -> Cut:
    """The call of a row of the labeller's spans at `rate` (Hz), with up to `fade` seconds more on either side.

    Faded in and out over that time, from where it begins: where another call or the recording's end leaves less room, into the
    call. Raises Unusable for one that overlaps another or of which hardly anything is left at `rate`.
    """
    recording = int(labeller.spans.recording[row])
    path, near = collection.path(recording), labeller.spans.of(recording)
    frames, own_rate = (int(collection.recordings[name].iat[recording]) for name in ("frames", "samplerate"))
    start, stop = int(labeller.spans.start[row]), int(labeller.spans.stop[row])
    others = near.select((near.start != start) | (near.stop != stop))
    if ((others.start < stop) & (others.stop > start)).any():
        raise Unusable(f"{path}: the call at {start / own_rate:.3f} s overlaps another")
    ends = [_at(end, own_rate, rate) for end in (others.stop[others.stop <= start].max(initial=0), start, stop)]
    ends.append(_at(others.start[others.start >= stop].min(initial=frames), own_rate, rate))
    before, first, last, after = ends
    last, ramp = max(last, first + 1), round(fade * rate)
    begin, end = max(before, first - ramp), min(after, last + ramp)
    sound = audio.read(path, begin, end - begin, rate=rate, time_expansion=collection.time_expansion)
    last = min(last, begin + len(sound))
    call = sound[first - begin : last - begin]
    if not len(call) or not np.var(call) > 0:
        raise Unusable(f"{path}: the call at {start / own_rate:.3f} s is silent")
    if rate < own_rate:
        whole = np.var(audio.read(path, start, stop - start, time_expansion=collection.time_expansion))
        if np.var(call) < LEAST_POWER * whole:
            raise Unusable(f"{path}: of the call at {start / own_rate:.3f} s nothing is left at the background's {rate} Hz")
    ramp = min(ramp, len(sound) // 2)
    if ramp:
        slope = np.sin(np.linspace(0, np.pi / 2, ramp, endpoint=False, dtype=np.float32)) ** 2
        sound[:ramp] *= slope
        sound[-ramp:] *= slope[::-1]
    return Cut(sound, first - begin, last - begin, row, labeller.classes[labeller.spans.label[row]])


def _at(sample: int, from_rate: int, to_rate: int) -> int:
    return round(int(sample) * to_rate / from_rate)


def mix(
    rng: np.random.Generator, stretch: np.ndarray, cuts: list[Cut], snr_db: tuple[float, float]
) -> tuple[np.ndarray, list[tuple[Cut, int, float, float]]]:
    """The stretch with calls at drawn places, none over another: (samples,), and each call, its first sample, ratio, gain (dB).

    Raises Unusable if there is no call, or if they are longer than the stretch.
    """
    if not cuts:
        raise Unusable("no call that can be used")
    sizes = [len(piece.sound) for piece in cuts]
    room = len(stretch) - sum(sizes)
    if room < 0:
        raise Unusable("calls that are longer than the stretch of the background")
    sound, placed = stretch.copy(), []
    gaps = np.sort(rng.integers(0, room + 1, len(cuts)))
    for piece, begin in zip(cuts, gaps + np.cumsum([0, *sizes[:-1]]), strict=True):
        ratio = float(rng.uniform(*snr_db))
        power = np.var(piece.sound[piece.first : piece.last])
        gain = float(np.sqrt(np.var(stretch) / power * 10 ** (ratio / 10)))
        sound[begin : begin + len(piece.sound)] += gain * piece.sound
        placed.append((piece, int(begin) + piece.first, ratio, 20 * np.log10(gain)))
    return sound, placed
