"""Frame, rate and collar that suit the calls of a collection, from the durations and frequencies of its annotations."""

import math
from dataclasses import dataclass

import numpy as np

from .collection import Collection
from .config import Config
from .labels import Labeller
from .tables import FREQUENCY_COLUMNS, CollectionError

RATES = (8000, 16000, 22050, 32000, 44100, 48000, 96000, 192000, 256000, 384000, 500000)  # Hz
COLLAR = 0.2  # s, sed_eval's usual one
SHORT_FRAME = 0.02  # s; below it, sequences of 10 frames hold less than most pulses and their interval
EDGES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Suggestion:
    """`frame_seconds` and `collar` in s, `sample_rate` in Hz, `seq_len` in frames; `durations` (s) and `frequencies` (lowest and
    highest, Hz; None where no table tells them) are what they come from, `calls` and `recordings` how much there was.

    `duration` has the 5th, 50th and 95th percentile."""

    frame_seconds: float
    sample_rate: int
    seq_len: int
    collar: float
    duration: tuple[float, float, float]
    frequencies: tuple[float, float] | None
    calls: int
    recordings: int

    def options(self) -> str:
        """What to add to `denet train`."""
        words = f"--frame-seconds {self.frame_seconds:g} --sample-rate {self.sample_rate} --seq-len {self.seq_len}"
        return words + (" --gru-units 256" if self.frame_seconds < SHORT_FRAME else "")


def suggest(collection: Collection) -> Suggestion:
    """What suits the calls of a collection. Raises CollectionError if it has none.

    A frame is at most as long as 95 % of the calls, so that some frame is half call wherever one begins, and at most the
    default's 50 ms. The rate is a usual one above twice the highest frequency of 95 % of the calls with a tenth for the
    filter's slope, and not above that of the recordings. The collar is half of the median call, two frames at the least and
    200 ms at the most.
    """
    spans = Labeller(collection).spans
    if not len(spans.start):
        raise CollectionError(f"{collection.root}: no annotated call to go by")
    rate = collection.recordings["samplerate"].to_numpy(np.int64)
    seconds = (spans.stop - spans.start) / rate[spans.recording]
    short, median, long = np.quantile(seconds, EDGES)
    frame = min(Config.frame_seconds, _rounded_down(short))
    bands = collection.annotations[FREQUENCY_COLUMNS].dropna()
    bands = bands[bands["high_hz"] > 0]
    frequencies, needed = None, rate.max()
    if len(bands):
        frequencies = float(bands["low_hz"].quantile(0.05)), float(bands["high_hz"].quantile(0.95))
        needed = 2.2 * frequencies[1]
    usual = [each for each in RATES if each >= needed]
    return Suggestion(
        frame_seconds=frame,
        sample_rate=int(min(usual[0] if usual else needed, rate.max())),
        seq_len=20 if frame < SHORT_FRAME else Config.seq_len,
        collar=min(COLLAR, max(2 * frame, _rounded_down(median / 2))),
        duration=(float(short), float(median), float(long)),
        frequencies=frequencies,
        calls=len(seconds),
        recordings=len(collection.recordings),
    )


def _rounded_down(seconds: float) -> float:
    """The next 1, 2 or 5 times a power of ten below."""
    power = 10.0 ** math.floor(math.log10(seconds) + 1e-9)
    return round(power * max(step for step in (1, 2, 5) if step * power <= seconds * (1 + 1e-9)), 9)
