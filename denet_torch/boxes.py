"""Calls as boxes in a spectrogram, in time and frequency: a detector of torchvision's, behind the interface of the other models.

The detector is FCOS (Tian et al., *FCOS: Fully Convolutional One-Stage Object Detection*, 2019, arXiv 1904.01355) in torchvision
(BSD), from fresh weights, with a small backbone: a call is a plain thing beside what photographs show. An image is a sequence
of `seq_len` frames of `samples` samples; its rows go up to half of the rate. Images of a recording overlap, see `Layout`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import lap
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .audio import AudioError, probe, read, resampled_length
from .models import Model, register
from .schema import Decoding

EVENT_COLUMNS = ["file", "onset", "offset", "label", "score", "low_hz", "high_hz"]
FOUND = ["onset", "offset", "low_hz", "high_hz", "score", "start", "label"]  # columns of what `find` returns
LEAST_SCORE = 0.05  # of a box that is kept for decoding
LEAST_SHARE = 0.25  # of a call, or of the overlap: a shorter piece at an image's border is no box, the next image has it whole
SAME = 0.5  # share of the smaller of two boxes that both have, in the time that two images share, if they are one call
NEAR = 1.5  # pixels from an image's side within which a box is cut by it
STRIDE = 4  # pixels from one place where the detector looks for the middle of a box to the next
MAX_PIXELS = 2**18  # of the images that are searched at once; those of a batch of the default size are as many
SIDES = 10, 2**14  # pixels of an image
QUIET = 1e-8  # power of what 16 bits cannot tell from silence


@dataclass(frozen=True)
class Layout:
    """How recordings become images: seconds in an image and shared by two, pixels, and the frequency at the top (Hz).

    Images of one recording begin every `step` seconds, so that two neighbours share `overlap`; none shares a moment with more
    than one image before it. The last one is filled up.
    """

    seconds: float
    overlap: float
    width: int
    height: int
    top_hz: float

    def __post_init__(self) -> None:
        if not 0 < self.overlap <= self.seconds / 2:
            raise ValueError(f"images of {self.seconds:g} s that share {self.overlap:g} s; they can share up to half")
        if not SIDES[0] <= min(self.width, self.height) <= max(self.width, self.height) <= SIDES[1]:
            raise ValueError(f"images of {self.width} x {self.height} pixels; each side has {SIDES[0]} to {SIDES[1]}")

    @property
    def step(self) -> float:
        """Seconds from one image to the next."""
        return self.seconds - self.overlap

    def starts(self, duration: float) -> list[float]:
        """Where the images of a recording of `duration` seconds begin (s)."""
        return [i * self.step for i in range(max(1, math.ceil((duration - self.overlap) / self.step - 1e-9)))]

    def within(self, calls: pd.DataFrame, start: float) -> pd.DataFrame:
        """The parts of calls in the image at `start`: label, and the sides left, top, right, bottom as shares (0 to 1)."""
        ends = calls[["onset", "offset"]].to_numpy(float)
        left, right = ((ends - start) / self.seconds).clip(0, 1).T
        length, shown = ends[:, 1] - ends[:, 0], (right - left) * self.seconds
        whole = shown >= length - 1e-9
        kept = whole | (shown >= LEAST_SHARE * np.minimum(length, self.overlap))
        kept &= right > left
        top, bottom = (1 - calls[["high_hz", "low_hz"]].to_numpy(float) / self.top_hz).clip(0, 1).T
        columns = {"label": calls["label"].to_numpy(), "left": left, "top": top, "right": right, "bottom": bottom}
        return pd.DataFrame(columns)[kept]

    def join(self, boxes: np.ndarray, duration: float) -> np.ndarray:
        """Events (events, 5) of the boxes of one class in a recording, onset, offset, low, high, score, start (boxes, 6).

        In the time that two neighbours share, each box of one belongs to at most one of the other: those that have most in
        common. Of a call that an image shows whole, the box there counts; else all of its pieces together.
        """
        number = np.round(boxes[:, 5] / self.step).astype(int)
        owner = np.arange(len(boxes))
        for i in np.unique(number):
            ours, theirs = np.flatnonzero(number == i), np.flatnonzero(number == i + 1)
            if not len(theirs):
                continue
            start = (i + 1) * self.step
            common, union, smaller = _common(boxes[ours], boxes[theirs], start, start + self.overlap)
            fits = common >= SAME * smaller
            fits &= common > 0
            _, others, _ = lap.lapjv(-np.where(fits, common / union, 0), extend_cost=True)
            for a, b in enumerate(others):
                if b >= 0 and fits[a, b]:
                    owner[theirs[b]] = owner[ours[a]]
        pixel = NEAR * self.seconds / self.width
        events = []
        for one in np.unique(owner):
            pieces = boxes[owner == one]
            cut = (pieces[:, 0] < pieces[:, 5] + pixel) & (pieces[:, 5] > 0)
            last = pieces[:, 5] + self.seconds
            cut |= (pieces[:, 1] > last - pixel) & (last < duration - pixel)
            score = pieces[:, 4].max()
            if not cut.all():
                whole = pieces[~cut]
                best = whole[np.argmax(np.nan_to_num(whole[:, 4], nan=1.0))]
                events.append((*best[:4], score))
            else:
                onset, low = pieces[:, [0, 2]].min(axis=0)
                offset, high = pieces[:, [1, 3]].max(axis=0)
                events.append((onset, offset, low, high, score))
        return np.array(events, float).reshape(-1, 5)


def _common(ours: np.ndarray, theirs: np.ndarray, start: float, stop: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Areas (ours, theirs) within the time from start to stop: of both, of either, of the smaller of the two."""
    sides = []
    for boxes in (ours, theirs):
        left, right = np.clip(boxes[:, 0], start, stop), np.clip(boxes[:, 1], start, stop)
        sides.append((left, right, boxes[:, 2], boxes[:, 3], (right - left) * (boxes[:, 3] - boxes[:, 2])))
    (a0, a1, al, ah, area), (b0, b1, bl, bh, other) = sides
    wide = np.minimum(a1[:, None], b1) - np.maximum(a0[:, None], b0)
    tall = np.minimum(ah[:, None], bh) - np.maximum(al[:, None], bl)
    common = np.maximum(wide, 0) * np.maximum(tall, 0)
    return common, np.maximum(area[:, None] + other - common, 1e-12), np.minimum(area[:, None], other)


def group(phonemes: pd.DataFrame, call_gap: float) -> pd.DataFrame:
    """Events (EVENT_COLUMNS) of a recording less than `call_gap` (s) apart as one call, of any class.

    Its label is that of the highest score, without scores that of the longest.
    """
    rows = []
    for file, table in phonemes.groupby("file", sort=False):
        table = table.sort_values("onset", kind="stable")
        reach = table["offset"].cummax().shift()
        for _, call in table.groupby((table["onset"] - reach >= call_gap).cumsum()):
            weight = call["score"].fillna(call["offset"] - call["onset"])
            label = call["label"].iloc[int(weight.to_numpy().argmax())]
            band = call["low_hz"].min(), call["high_hz"].max()
            rows.append((file, call["onset"].min(), call["offset"].max(), label, call["score"].max(), *band))
    return pd.DataFrame(rows, columns=EVENT_COLUMNS).astype(phonemes.dtypes.to_dict())


def _layer(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """A convolution and a norm that needs no batch: there are few images in one."""
    convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, after), nn.ReLU(inplace=True))


class Backbone(nn.Module):
    """Images (batch, 1, height, width) to features (batch, channels, height / STRIDE, width / STRIDE) that see around them.

    Features of one size, the finest, are enough: calls are of a few sizes, and a narrow band has no place in coarse ones.
    """

    def __init__(self, channels: int):
        super().__init__()
        half, self.out_channels = channels // 2, channels
        self.fine = nn.Sequential(_layer(1, half), _layer(half, half, 2), _layer(half, channels, 2), _layer(channels, channels))
        self.middle = nn.Sequential(_layer(channels, 2 * channels, 2), _layer(2 * channels, 2 * channels))
        self.coarse = nn.Sequential(_layer(2 * channels, 2 * channels, 2), _layer(2 * channels, 2 * channels))
        self.from_middle, self.from_coarse = _layer(2 * channels, channels), _layer(2 * channels, 2 * channels)
        self.out = _layer(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(fine)
        middle = middle + F.interpolate(self.from_coarse(self.coarse(middle)), middle.shape[-2:])
        return self.out(fine + F.interpolate(self.from_middle(middle), fine.shape[-2:]))


@register("boxes")
class Boxes(Model):
    """FCOS over the spectrogram of a sequence.

    `input_shape`: (seq_len, samples) or (seq_len, samples, 1) at `sr` Hz. `columns`, `rows`: pixels of an image, at least about
    so many columns. `channels`: of the features, a multiple of 32. Raises ImportError without torchvision.
    """

    answers_with_boxes = True
    # Images of 2 s.
    DEFAULTS: ClassVar[dict] = {"seq_len": 40, "batch_size": 8, "learning_rate": 1e-3, "rate_factor": 1.0, "epochs": 5}

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_classes: int,
        sr: int = 16000,
        *,
        columns: int = 256,
        rows: int = 64,
        channels: int = 64,
    ):
        super().__init__()
        try:
            from torchvision.models.detection import FCOS
            from torchvision.models.detection.anchor_utils import AnchorGenerator
            from torchvision.models.detection.fcos import FCOSHead
        except ImportError:
            missing = "the model boxes is torchvision's: pip install 'denet-torch[boxes]'"
            raise ImportError(missing, name="torchvision") from None
        self.seq_len, self.samples = input_shape[:2]
        self.n_classes, self.sr = n_classes, sr
        self.config = {
            "input_shape": [self.seq_len, self.samples, 1],
            "n_classes": n_classes,
            "sr": sr,
            "columns": columns,
            "rows": rows,
            "channels": channels,
        }
        length = self.seq_len * self.samples
        self.hop = max(1, length // columns)
        self.size = 2 ** math.ceil(math.log2(max(2 * self.hop, 2 * rows)))  # samples of a spectrum
        width = -(-length // self.hop)
        if max(width * rows, length / 16) > MAX_PIXELS:
            raise ValueError(f"an image of {width} x {rows} pixels of {length} samples; expected at most {MAX_PIXELS} pixels")
        if channels % 32 or rows < 16 or width < 16:
            raise ValueError(f"an image of {width} x {rows} pixels and {channels} channels; expected 16 x 16, a multiple of 32")
        self.layout = Layout(length / sr, length / sr / 4, width, rows, sr / 2)
        with torch.device("cpu"):  # no weights, though a model may be built without memory
            # One place to look from at each feature; sizes are told in units of two of them.
            anchors = AnchorGenerator(((2 * STRIDE,),), ((1.0,),))
        sides = {"min_size": min(width, rows), "max_size": max(width, rows), "image_mean": [0.0], "image_std": [1.0]}
        limits = {"score_thresh": LEAST_SCORE, "nms_thresh": 0.5, "detections_per_img": 300, "center_sampling_radius": 0.75}
        head = FCOSHead(channels, 1, n_classes - 1, num_convs=2)
        # Sides come out of a ReLU: from 0, many never move again.
        nn.init.ones_(head.regression_head.bbox_reg.bias)
        self.detector = FCOS(Backbone(channels), n_classes - 1, anchor_generator=anchors, head=head, **sides, **limits)

    @classmethod
    def from_settings(cls, settings, n_classes: int) -> "Boxes":
        return cls((settings.seq_len, round(settings.frame_seconds * settings.sample_rate)), n_classes, settings.sample_rate)

    def forward(self, x: Tensor, boxes: list[Tensor] | None = None, blank: Tensor | None = None):
        """Losses by name, of boxes (boxes, 5) of each image as `Layout.within` has them; in evaluation mode what was found.

        x: waveforms (batch, seq_len, samples). blank: frames (batch, seq_len) of which nobody knows what they hold. Found is a
        list of dicts: boxes (boxes, 4) in pixels, scores, and labels from 0, the first class that is not the background.
        """
        images = list(self.images(x, blank))
        return self.detector(images, None if boxes is None else [self._target(image) for image in boxes])

    def images(self, x: Tensor, blank: Tensor | None = None) -> Tensor:
        """Levels (batch, 1, rows, columns) of waveforms above their background in each frequency, 20 dB as 1; the highest first.

        The background is what a quarter of the columns do not exceed.
        """
        x = x.reshape(len(x), -1)
        width, height = self.layout.width, self.layout.height
        with torch.autocast(x.device.type, enabled=False):
            left = (self.size - self.hop) // 2
            padded = F.pad(x, (left, (width - 1) * self.hop + self.size - left - x.shape[1]))
            window = torch.hann_window(self.size, dtype=x.dtype, device=x.device)
            spectra = torch.stft(padded, self.size, self.hop, window=window, center=False, return_complex=True)
            power = F.adaptive_max_pool2d(spectra[:, 1:].abs().square(), (height, width)) / self.size  # (batch, rows, columns)
        silent = power.mean(dim=1, keepdim=True) < QUIET
        level = 10 * torch.log10(power + QUIET)
        floor = level.masked_fill(silent, math.nan).nanquantile(0.25, dim=2, keepdim=True).nan_to_num()
        # A call all over an image is in its background too: no frequency lies far above the others.
        floor = torch.minimum(floor, floor.median(dim=1, keepdim=True).values + 20)
        level = ((level - floor) / 20).clamp(-1, 3).masked_fill(silent, 0)
        if blank is not None:
            frame = (torch.arange(width, device=x.device) * self.hop + self.hop // 2) // self.samples
            level = level.masked_fill(blank[:, None, frame.clamp(max=self.seq_len - 1)], 0)
        return level.flip(1)[:, None]

    def _target(self, boxes: Tensor) -> dict[str, Tensor]:
        """What FCOS learns from, in pixels. A side is at least so long that a place to look from lies inside."""
        size = boxes.new_tensor([self.layout.width, self.layout.height])
        # Shares are of the sequence, whose end lies within the last column: a column is `hop` samples.
        whole = boxes.new_tensor([self.seq_len * self.samples / self.hop, self.layout.height])
        first, last = boxes[:, 1:3] * whole, boxes[:, 3:5] * whole
        middle, half = (first + last) / 2, ((last - first) / 2).clamp(min=(STRIDE + 1) / 2)
        middle = torch.minimum(torch.maximum(middle, half), size - half)
        return {"boxes": torch.cat([middle - half, middle + half], dim=1), "labels": boxes[:, 0].long() - 1}

    def find(
        self,
        path: str | Path,
        start: int = 0,
        stop: int | None = None,
        *,
        batch_size: int | None = None,
        time_expansion: float = 1,
    ) -> np.ndarray:
        """Boxes (boxes, FOUND) in the images `start` to `stop` of a recording, times in its seconds. Raises AudioError."""
        sound = partial(read, path, rate=self.sr, time_expansion=time_expansion)
        found = self.find_in(sound, _duration(self, path, time_expansion), start, stop, batch_size=batch_size)
        if not np.isfinite(found).all():
            raise AudioError(f"{path}: the model's answers are not finite numbers: its samples or the weights are too large")
        return found

    @torch.inference_mode()
    def find_in(
        self,
        sound: Callable[[int, int], np.ndarray],
        duration: float,
        start: int = 0,
        stop: int | None = None,
        *,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """`find` in a recording of `duration` seconds, of which `sound` gives so many samples from one on, or as many as there
        are."""
        pixels = max(self.layout.width * self.layout.height, self.seq_len * self.samples // 16)
        starts, batch_size = self.layout.starts(duration)[start:stop], batch_size or max(1, min(16, MAX_PIXELS // pixels))
        place, found = next(self.parameters()), []
        with self.evaluating():
            for first in range(0, len(starts), batch_size):
                batch = starts[first : first + batch_size]
                images = np.stack([self._filled(sound, begin) for begin in batch])
                for begin, answer in zip(batch, self(torch.from_numpy(images).to(place)), strict=True):
                    found.append(self._in_seconds(answer, begin))
        return np.concatenate(found)

    def _filled(self, sound: Callable[[int, int], np.ndarray], start: float) -> np.ndarray:
        length = self.seq_len * self.samples
        part = sound(round(start * self.sr), length)
        return np.pad(part, (0, length - len(part))).reshape(self.seq_len, self.samples)

    def _in_seconds(self, answer: dict[str, Tensor], start: float) -> np.ndarray:
        left, top, right, bottom = answer["boxes"].double().cpu().numpy().T
        layout = self.layout
        columns = {
            "onset": start + left * self.hop / self.sr,
            "offset": start + right * self.hop / self.sr,
            "low_hz": (1 - bottom / layout.height) * layout.top_hz,
            "high_hz": (1 - top / layout.height) * layout.top_hz,
            "score": answer["scores"].double().cpu().numpy(),
            "start": np.full(len(left), start),
            "label": answer["labels"].cpu().numpy() + 1.0,
        }
        whole = (right - left >= 1) & (bottom - top >= 1)  # less than a pixel is no box
        return np.column_stack([columns[name] for name in FOUND])[whole]


def count_images(model: Boxes, path: str | Path, time_expansion: float = 1) -> int:
    """Number of images of a recording. Raises AudioError if it is shorter than a frame."""
    return len(model.layout.starts(_duration(model, path, time_expansion)))


def _duration(model: Boxes, path: str | Path, time_expansion: float) -> float:
    info = probe(path, time_expansion)
    if resampled_length(info.frames, info.samplerate, model.sr) < model.samples:
        frame = model.samples / model.sr
        raise AudioError(f"{path}: is {info.duration:.4f} s long, shorter than one frame ({frame:.4f} s)")
    return info.duration


def events(
    layout: Layout, boxes: np.ndarray, duration: float, labels: list[str], decoding: Decoding, file: str | Path
) -> pd.DataFrame:
    """Events (EVENT_COLUMNS) of the boxes (boxes, FOUND) of a recording of `duration` seconds, those of one call joined.

    A box counts from `decoding.threshold` on. Gaps and the least duration are as for frames.
    Raises ValueError for a low threshold.
    """
    if decoding.low_threshold is not None:
        raise ValueError("a low threshold is of models that answer frame by frame; these weights find boxes")
    boxes = boxes[boxes[:, 4] >= decoding.threshold]
    rows = []
    for label in np.unique(boxes[:, 6]):
        found = layout.join(boxes[boxes[:, 6] == label, :6], duration)
        found[:, :2] = found[:, :2].clip(0, duration)
        rows += [(str(file), *event[:2], labels[int(label)], event[4], *event[2:4]) for event in found if event[0] < event[1]]
    table = event_table(rows)
    if decoding.min_gap > 0:
        table = group(table, decoding.min_gap)
    table = table[table["offset"] - table["onset"] >= decoding.min_duration]
    if decoding.call_gap > 0:
        table = group(table, decoding.call_gap)
    return table.sort_values(["onset", "offset"], kind="stable", ignore_index=True)


def event_table(rows: list[tuple]) -> pd.DataFrame:
    """A table of events from rows of EVENT_COLUMNS, times to the microsecond."""
    numbers = dict.fromkeys(("onset", "offset", "score", "low_hz", "high_hz"), float)
    table = pd.DataFrame(rows, columns=EVENT_COLUMNS).astype(numbers | {"file": "str", "label": "str"})
    return table.round({"onset": 6, "offset": 6})


