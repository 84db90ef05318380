"""Resampling on the device (`--resample-on device`): the loader leaves training windows at their recordings' own rates.

    parts = gathered([item["waveform"] for item in items])    # in the loader's process
    waveforms = resampling(parts, fabric.to_device)           # in the training process

The numbers are the loader's up to the order of sums: the same samples, with the filters' margins, and the same filters.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from denet_torch import audio


class Parts(NamedTuple):
    """A batch of `audio.Part`: by ratio of rates the samples of its windows (windows, longest); of each window of the batch
    which of the ratios it has, its row there, and the part's `skipped` and `count`, (batch, 4) int64 on the CPU.
    """

    samples: dict[tuple[int, int], Tensor]
    places: Tensor


def gathered(parts: list[audio.Part]) -> Parts:
    """The parts as a batch; a shorter one is followed by silence."""
    ratios = list(dict.fromkeys(part.ratio for part in parts))
    groups, places = [[] for _ in ratios], []
    for part in parts:
        number = ratios.index(part.ratio)
        places.append([number, len(groups[number]), part.skipped, part.count])
        groups[number].append(torch.from_numpy(part.samples))
    samples = [pad_sequence(group, batch_first=True) for group in groups]
    return Parts(dict(zip(ratios, samples, strict=True)), torch.tensor(places))


class Resampling:
    """Makes the waveforms of a batch, (batch, seq_len, samples) on the device; filters are brought there once."""

    def __init__(self, seq_len: int, samples: int):
        self.shape = seq_len, samples
        self._filters = functools.lru_cache(lambda ratio, device: audio.resampler(*ratio).to(device))

    def __call__(self, waveforms: Tensor | Parts, to_device: Callable) -> Tensor:
        """`waveforms` that are resampled already are only copied, by `to_device`. Nothing here is waited for."""
        if isinstance(waveforms, Tensor):
            return to_device(waveforms)
        with _full_precision():
            outputs = [self._outputs(ratio, samples) for ratio, samples in to_device(waveforms.samples).items()]
        window, rows = self.shape[0] * self.shape[1], []
        for number, row, skipped, count in waveforms.places.tolist():
            part = outputs[number][row, skipped : skipped + count]
            rows.append(part if count == window else F.pad(part, (0, window - count)))
        return torch.stack(rows).unflatten(1, self.shape)

    def _outputs(self, ratio: tuple[int, int], samples: Tensor) -> Tensor:
        return samples if ratio[0] == ratio[1] else self._filters(ratio, samples.device)(samples)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in float32: the TF32 that --amp allows on a GPU would leave a waveform 11 bits."""
    # This name is read, because the other's getter raises once somebody has set it; the other is set, because it sets both.
    before = torch.backends.cuda.matmul.fp32_precision
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("high" if before == "tf32" else "highest")
