"""What biologists measure of a call: peak, lowest and highest frequency, level, duration and the interval to the next.

Frequencies come from the call's mean power spectrum (Hann windows of about 4 ms, 16 ms at 16 kHz), of which the background is
taken off: the spectrum just before and after the call. The band is where what is left lies within 20 dB of its peak.
"""

import functools
import math
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch

from . import audio, recorder

MEASURES = ["duration", "peak_hz", "low_hz", "high_hz", "bandwidth_hz", "level_db", "interval"]
BELOW_PEAK = 20  # dB; what is weaker is not of the call's band
CONTEXT = 64  # steps of the window before and after a call, from which its background is told
LONGEST = 10.0  # s; of a longer call the first so many are measured
QUIET = 0.25  # the background is told by this quantile of the steps around the call, so that other calls there do not count
CHANCE = 1e-5  # that a band's noise counts as call
MARGIN = 1.5  # backgrounds are not as even as noise


@dataclass(frozen=True)
class Spectrum:
    """Peak, lowest and highest frequency of a call (Hz) and its level in that band (dB below a full-scale sine).

    All are NaN where nothing rises above the background.
    """

    peak_hz: float = math.nan
    low_hz: float = math.nan
    high_hz: float = math.nan
    level_db: float = math.nan


def window_size(rate: int) -> int:
    """Samples of the window of a spectrum at `rate` Hz: a power of two near 4 ms, at least 256."""
    return max(256, 2 ** round(math.log2(rate * 0.004)))


def power(waveform: np.ndarray, rate: int) -> torch.Tensor:
    """Power spectra of a waveform (samples,): (window_size // 2 + 1, steps), a step every quarter of the window."""
    size = window_size(rate)
    padded = torch.nn.functional.pad(torch.from_numpy(waveform), (0, max(0, size - len(waveform))))
    return torch.stft(padded, size, size // 4, window=torch.hann_window(size), return_complex=True).abs().square()


@functools.cache
def _exceeded(windows: float) -> float:
    """What the mean power of so many windows of noise exceeds with the probability CHANCE, as a multiple of the noise's mean."""
    shape = torch.tensor(windows, dtype=torch.float64)
    low, high = 1.0, 1 - math.log(CHANCE)
    while (middle := (low + high) / 2) not in (low, high):  # their sum has a gamma distribution
        low, high = (middle, high) if torch.special.gammaincc(shape, shape * middle) > CHANCE else (low, middle)
    return middle


def spectrum(waveform: np.ndarray, rate: int, onset: float, offset: float) -> Spectrum:
    """Measure the call from `onset` to `offset` (s) in a waveform float32 (samples,), of which the rest is its background."""
    size = window_size(rate)
    spectra = power(waveform, rate).numpy()
    time = np.arange(spectra.shape[1]) * (size // 4) / rate
    inside = (time >= onset) & (time <= offset)
    if not inside.any():
        inside[np.abs(time - (onset + offset) / 2).argmin()] = True
    # The power of noise is exponentially distributed: its quantile tells its mean.
    around = spectra[:, ~inside] if (~inside).sum() >= CONTEXT // 4 else spectra
    noise = np.quantile(around, QUIET, axis=1) / -math.log1p(-QUIET)
    independent = max(1.0, inside.sum() / 2)  # windows that lie a quarter apart share most of their samples
    limit = MARGIN * noise * _exceeded(independent)
    mean = spectra[:, inside].mean(axis=1)
    call = np.where(mean > limit, mean - noise, 0)
    call[[0, -1]] = 0  # a microphone's offset is no sound, and the last is half a band
    if not call.max() > 0:
        return Spectrum()
    band = np.flatnonzero(call >= call.max() * 10 ** (-BELOW_PEAK / 10))
    frequency = np.arange(len(call)) * rate / size
    # Parseval: both halves of the spectrum, over the window's length and energy. A sine from -1 to 1 has a mean square of 1/2.
    mean_square = 2 * call[band[0] : band[-1] + 1].sum() / (size * float(torch.hann_window(size).square().sum()))
    return Spectrum(
        float(frequency[call.argmax()]), float(frequency[band[0]]), float(frequency[band[-1]]), 10 * math.log10(2 * mean_square)
    )


def measure(events: pd.DataFrame, time_expansion: float | None = None) -> pd.DataFrame:
    """A table of events with the columns MEASURES beside its own, read from the recordings that it names.

    duration (s) and interval (s, from an onset to the next in the same recording); peak_hz, low_hz, high_hz, bandwidth_hz and
    level_db of `spectrum`. `time_expansion`: as of `detect`. Raises AudioError for a recording that cannot be read.
    """
    events = events.assign(duration=events.offset - events.onset, interval=interval(events))
    rows = {}
    for file, calls in events.groupby("file", sort=False):
        factor = recorder.time_expansion([file]) if time_expansion is None else time_expansion
        info = audio.probe(file, factor)
        context = CONTEXT * (window_size(info.samplerate) // 4)
        for call in calls.itertuples():
            onset, stop = round(call.onset * info.samplerate), round(min(call.duration, LONGEST) * info.samplerate)
            start = max(0, onset - context)
            waveform = audio.read(file, start, onset + stop + context - start, time_expansion=factor)
            begin = (onset - start) / info.samplerate
            rows[call.Index] = spectrum(waveform, info.samplerate, begin, begin + stop / info.samplerate)
    found = pd.DataFrame(list(rows.values()), list(rows), [field.name for field in fields(Spectrum)], dtype=float)
    events = events.assign(**found, bandwidth_hz=found.high_hz - found.low_hz)
    return events[[name for name in events if name not in MEASURES] + MEASURES]


def interval(events: pd.DataFrame) -> pd.Series:
    """Seconds from the onset of each event to the next onset in its recording; NaN of the last."""
    ordered = events.sort_values(["file", "onset"], kind="stable")
    return (ordered.groupby("file").onset.shift(-1) - ordered.onset).reindex(events.index)


def class_probabilities(events: pd.DataFrame, probabilities: np.ndarray, frame: float, labels: list[str]) -> pd.DataFrame:
    """The mean probability of each call class over the frames of each event: columns "p " and the class's name.

    `probabilities` (frames, n_classes) of frames of `frame` seconds, `labels` the names of all classes, the background first.
    """
    # Times are to the microsecond, so that an offset may lie so much behind the end of its last frame.
    means = [
        probabilities[round(event.onset / frame) : math.ceil((event.offset - 1e-6) / frame), 1:].mean(axis=0)
        for event in events.itertuples()
    ]
    columns = [f"p {label}" for label in labels[1:]]
    return pd.DataFrame(np.reshape(means, (len(events), len(columns))), events.index, columns, dtype=float)
