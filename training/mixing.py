"""Other sounds under calls or instead of them, and changes of level, sign and noise.

Nearly all recordings of the flying-fox collection hold calls; these mixes give a model other sounds to
say no to. Every mix records what it was made of. (Quiet stretches of the same recordings, and shifts in
time, come from where windows are drawn: training/windows.py.)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from denet_torch import audio, recorder
from denet_torch.files import reason
from training.labels import BACKGROUND
from training.tables import CollectionError
from training.text_tables import read_csv

COLUMNS = ["filename", "category"]  # of ESC-50


@dataclass(frozen=True)
class Background:
    """A recording of another sound; `category` is empty where no table names it. It was slowed down by `time_expansion`, as its
    metadata tell, and lasts true `seconds`."""

    path: Path
    seconds: float
    category: str
    time_expansion: float = 1


@dataclass(frozen=True)
class Mixer:
    """Augmentation of windows. Chances are per window, ranges are drawn from uniformly.

    backgrounds: sounds to mix in, see `find_backgrounds`.
    under: chance that one lies under the window at a signal-to-noise ratio of `snr_db`.
    alone: chance that one takes the window's place, at its level; all frames become background.
    noise: chance of Gaussian noise in a band of an octave or more, at `snr_db` too.
    gain_db: range of a factor for the window. polarity: chance that its sign turns.

    The signal of a ratio is the frames that hold calls, or the whole window where none does.
    """

    backgrounds: tuple[Background, ...] = ()
    under: float = 0.0
    alone: float = 0.0
    noise: float = 0.0
    snr_db: tuple[float, float] = (-5.0, 20.0)
    gain_db: tuple[float, float] = (0.0, 0.0)
    polarity: float = 0.0

    def __post_init__(self) -> None:
        if self.under + self.alone > 1 or min(self.under, self.alone, self.noise, self.polarity) < 0:
            raise ValueError(
                "chances of a mix must be at least 0, `under` and `alone` together at most 1"
            )
        if self.under + self.alone > 0 and not self.backgrounds:
            raise ValueError("mixing backgrounds in takes backgrounds; none were given")

    def __call__(
        self, rng: np.random.Generator, waveform: np.ndarray, labels: np.ndarray, rate: int
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """Mix one window, waveform (seq_len * samples,) and labels (seq_len,).

        Returns both and the record: background (path), category, background_start (s), snr_db, alone,
        noise_low and noise_high (Hz), noise_snr_db, gain_db, flipped; nan or empty for what was not done.
        """
        record = dict.fromkeys(
            ("background_start", "snr_db", "noise_low", "noise_high", "noise_snr_db"), float("nan")
        ) | {"background": "", "category": "", "alone": False}
        power = _signal_power(waveform, labels)
        kind = rng.random()
        if kind < self.under + self.alone:
            background = self.backgrounds[rng.integers(len(self.backgrounds))]
            start = rng.uniform(0, max(0, background.seconds - len(waveform) / rate))
            expansion = background.time_expansion
            sound = audio.read(background.path, int(start * rate), len(waveform), rate=rate, time_expansion=expansion)
            sound = np.resize(sound, len(waveform))  # short ones repeat
            record |= {"background": str(background.path), "category": background.category}
            record["background_start"] = int(start * rate) / rate
            if kind < self.under:
                record["snr_db"] = rng.uniform(*self.snr_db)
                waveform = waveform + _at_snr(sound, power, record["snr_db"])
            else:
                record["alone"] = True
                waveform = _at_snr(sound, float(np.mean(waveform**2)), 0.0)
                labels = np.full_like(labels, BACKGROUND)
        if rng.random() < self.noise:
            sound, record["noise_low"], record["noise_high"] = band_noise(rng, len(waveform), rate)
            record["noise_snr_db"] = rng.uniform(*self.snr_db)
            waveform = waveform + _at_snr(sound, power, record["noise_snr_db"])
        record["gain_db"] = rng.uniform(*self.gain_db)
        record["flipped"] = bool(rng.random() < self.polarity)
        factor = 10 ** (record["gain_db"] / 20) * (-1 if record["flipped"] else 1)
        return (waveform * factor).astype(np.float32), labels, record


def find_backgrounds(folder: str | Path) -> tuple[Background, ...]:
    """Sounds in a folder of audio files, or of an ESC-50 style one: meta/*.csv or *.csv with the columns
    filename and category, and the files below.

    Raises CollectionError if there are none, AudioError for one that cannot be read.
    """
    files = audio.find(folder)
    if not files:
        raise CollectionError(f"{folder}: no audio files in this folder")
    category = {}
    for table in [*Path(folder).glob("meta/*.csv"), *Path(folder).glob("*.csv")]:
        try:
            told = read_csv(table, COLUMNS, dtype="str", keep_default_na=False, encoding_errors="replace", on_bad_lines="skip")
        except pd.errors.EmptyDataError:
            continue
        except (OSError, ValueError) as error:
            raise CollectionError(f"{table}: cannot be read ({reason(error)})") from None
        if {*COLUMNS} <= {*told}:
            told = told[(told["filename"] != "") & (told["category"] != "")]
            category |= dict(zip(told["filename"], told["category"], strict=True))
    factors = [recorder.metadata(path).time_expansion or 1 for path in files]
    return tuple(
        Background(path, audio.probe(path, factor).duration, category.get(path.name, ""), factor)
        for path, factor in zip(files, factors, strict=True)
    )


def band_noise(rng: np.random.Generator, samples: int, rate: int) -> tuple[np.ndarray, float, float]:
    """Gaussian noise (samples,) between two drawn frequencies, at least an octave apart, and these."""
    low = np.exp(rng.uniform(np.log(50), np.log(rate / 8)))
    high = np.exp(rng.uniform(np.log(2 * low), np.log(rate / 2)))
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / rate)
    spectrum[(frequency < low) | (frequency > high)] = 0
    return np.fft.irfft(spectrum, samples).astype(np.float32), float(low), float(high)


def _signal_power(waveform: np.ndarray, labels: np.ndarray) -> float:
    frames = waveform.reshape(len(labels), -1)  # (seq_len, samples)
    calls = labels > BACKGROUND
    return float(np.mean((frames[calls] if calls.any() else frames) ** 2))


def _at_snr(sound: np.ndarray, signal_power: float, snr_db: float) -> np.ndarray:
    """The sound at the level that puts a signal of this power `snr_db` above it."""
    power = float(np.mean(sound**2))
    if power == 0:
        return sound
    return sound * np.float32(np.sqrt(signal_power / power * 10 ** (-snr_db / 10)))
