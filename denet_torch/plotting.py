"""Pictures of sound and of what was found in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from . import audio, recorder
from .measures import power, window_size

if TYPE_CHECKING:  # matplotlib takes half a second, and those who draw nothing need none of it
    from matplotlib.figure import Figure

FOUND, GIVEN = "#0b57a4", "#1d6b2a"


def spectrogram(waveform: np.ndarray, rate: int, columns: int, rows: int = 320) -> np.ndarray:
    """Levels of a waveform (samples,) in dB below a full-scale sine, (rows, columns), from 0 Hz up; fewer where there are fewer.

    Each point is the largest of those it stands for, so that short calls stay visible.
    """
    full_scale = (window_size(rate) / 4) ** 2  # of a sine's band
    level = 10 * torch.log10(power(waveform, rate) / full_scale + 1e-12)  # (bands, steps)
    shape = min(rows, level.shape[0]), min(columns, level.shape[1])
    return torch.nn.functional.adaptive_max_pool2d(level[None], shape)[0].numpy()


def plot(
    sound: str | Path | np.ndarray,
    events: pd.DataFrame | None = None,
    reference: pd.DataFrame | None = None,
    *,
    start: float = 0.0,
    seconds: float = 10.0,
    samplerate: int | None = None,
    time_expansion: float | None = None,
) -> Figure:
    """A spectrogram of `seconds` from `start` on with the events found (blue) and, if given, those of a reference (green).

    `sound`, `samplerate` and `time_expansion` are as of `detect`, of one recording; tables may be of several. An event is a box
    where its table has low_hz and high_hz. `plot(...).savefig("a.png")` keeps it. Raises AudioError.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if isinstance(sound, (str, Path)):
        factor = recorder.time_expansion([sound]) if time_expansion is None else time_expansion
        rate, file = audio.probe(sound, factor).samplerate, str(sound)
        waveform = audio.read(sound, round(start * rate), round(seconds * rate), time_expansion=factor)
    else:
        whole, rate = audio.from_array(sound, samplerate, time_expansion or 1)
        file, waveform = audio.ARRAY, whole[round(start * rate) :][: round(seconds * rate)]
    if not len(waveform):
        raise audio.AudioError(f"{file}: ends before {start:g} s")
    end, top = start + len(waveform) / rate, rate / 2
    level = spectrogram(waveform, rate, 1500)
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    axes = figure.subplots()
    limits = {"vmin": max(np.median(level), level.max() - 80), "vmax": level.max()}
    axes.imshow(level, aspect="auto", origin="lower", extent=(start, end, 0, top / 1000), cmap="gray_r", **limits)
    for table, color in ((events, FOUND), (reference, GIVEN)):
        if table is None:
            continue
        for event in table[(table.file == file) & (table.offset > start) & (table.onset < end)].itertuples():
            low, high = (getattr(event, name, np.nan) for name in ("low_hz", "high_hz"))
            low, high = (0, top) if np.isnan(low) or np.isnan(high) else (low, high)
            corner, size = (event.onset, low / 1000), (event.offset - event.onset, (high - low) / 1000)
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=1.5))
            axes.text(event.onset, high / 1000, event.label, color=color, fontsize=8, va="bottom", clip_on=True, parse_math=False)
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)", xlim=(start, end), ylim=(0, top / 1000))
    axes.set_title(file, parse_math=False)  # a $ in a name is no formula
    return figure
