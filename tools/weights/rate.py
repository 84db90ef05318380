"""The sampling rate that sinc filters were made for: it decides where, in cycles per sample, their cuts start."""

import numpy as np

RATES = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 50000, 62500, 64000, 88200, 96000, 100000, 125000, 128000]
RATES += [176400, 192000, 200000, 240000, 250000, 256000, 300000, 312500, 320000, 384000, 400000, 441000, 480000, 500000, 1000000]
TOLERANCE = 1e-3  # cycles per sample, median over the cuts: beyond it training has moved them too far to tell
APART = 2.0  # a rate whose cuts are so many times as far as the nearest one's is ruled out
LEAST_FILTERS = 4


def initial_cuts(sr: float, filters: int) -> np.ndarray:
    """Low, then high cuts (2 * filters), in cycles per sample, that `SincConv1D` starts with, less the 50 Hz it adds."""
    hz = 700 * (10 ** (np.linspace(80, 2595 * np.log10(1 + sr / 1400), filters) / 2595) - 1)
    low, high = np.roll(hz, 1), np.roll(hz, -1)
    low[0], high[-1] = 30, sr / 2 - 100
    return np.concatenate([low, high]) / sr


def distances(b1: np.ndarray, band: np.ndarray, also: float | None = None) -> dict[float, float]:
    """Median distance, in cycles per sample, of cuts (filters,) from the initial ones at each of RATES and `also`, sorted."""
    low = np.abs(b1.astype(np.float64))
    cuts = np.concatenate([low, low + np.abs(band)])
    rates = RATES if also is None or also in RATES else [*RATES, also]
    # np.median takes 10 ms at its first call; these are an even number of distances, of which this is the middle's upper one
    found = {rate: float(np.sort(np.abs(cuts - initial_cuts(rate, len(b1))))[len(b1)]) for rate in rates}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def fitting(found: dict[float, float], filters: int) -> list[float]:
    """The rates that `distances` leaves open, nearest first; none where the filters do not tell."""
    nearest = next(iter(found.values()))
    return near(found, filters) if nearest <= TOLERANCE and filters >= LEAST_FILTERS else []


def near(found: dict[float, float], filters: int) -> list[float]:
    """The rates that the nearest one does not rule out, however far training has moved the filters; all of too few filters."""
    nearest = next(iter(found.values()))
    return [rate for rate, distance in found.items() if distance <= APART * nearest or filters < LEAST_FILTERS]
