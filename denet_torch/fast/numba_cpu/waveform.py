"""The convolution of waveforms, compiled: the twin of `layers.convolve_waveform`, without gradients of the waveform."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators import once, operator
from .product import ROWS, compiled, product
from .threads import LANES, share_out

FRAMES = 2  # in one go: their gradients are added up, then those of all
STEPS = 256  # whose gradients are summed in one go: longer sums are rounded more

_multiply, _add = product(), product(added=True)


def save(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@once
def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
    x, filters = ctx.saved_tensors
    return None, filter_gradients(x, grad, filters.shape[1])


@operator(
    "(Tensor x, Tensor filters) -> Tensor",
    fake=lambda x, filters: x.new_empty(len(x), len(filters), x.shape[1]),
    save=save,
    backward=backward,
)
def convolve(x: Tensor, filters: Tensor) -> Tensor:
    """Convolution ("same") of waveforms x (frames, steps) with filters (filters, taps) -> (frames, filters, steps)."""
    y = x.new_empty(len(x), len(filters), x.shape[1])
    whole = F.pad(filters, (0, 0, 0, -len(filters) % ROWS))  # tiles: what is added to a row of two would be added twice
    share_out(_convolve, len(x), FRAMES, _filled(x, filters.shape[1]), whole.contiguous(), y)
    return y


@operator("(Tensor x, Tensor grad, int taps) -> Tensor", fake=lambda x, grad, taps: x.new_empty(grad.shape[1], taps))
def filter_gradients(x: Tensor, grad: Tensor, taps: int) -> Tensor:
    """Gradients (filters, taps) of the filters of `convolve`, from that of its result (frames, filters, steps)."""
    found = share_out(_filter_gradients, len(x), FRAMES, _filled(x, taps), grad.contiguous(), taps + -taps % LANES)
    return sum(torch.from_numpy(part) for part in found)[:, :taps].contiguous()


def _filled(x: Tensor, taps: int) -> Tensor:
    """Waveforms with zeros before and after them, as many as windows of `taps` samples and whole vectors of them need."""
    return F.pad(x, (taps // 2, taps // 2 + 2 * LANES))


@compiled
def _convolve(first, last, x, filters, y):
    rows, taps = filters.shape
    _, count, steps = y.shape
    columns = steps + -steps % LANES
    one = np.empty((rows, columns), x.dtype)
    half = taps // 2  # sums of half as many products are rounded less, and added once
    for frame in range(first, last):
        out = y[frame] if (rows, columns) == (count, steps) else one
        _multiply(out, (0, columns), filters, (0, taps, 0, 1), x[frame], (0, 1), (rows, columns, 1, half), out)
        _add(out, (0, columns), filters, (half, taps, 0, 1), x[frame], (half, 1), (rows, columns, 1, taps - half), out)
        if (rows, columns) != (count, steps):
            y[frame] = one[:count, :steps]


@compiled
def _filter_gradients(first, last, x, grad, columns):
    _, count, steps = grad.shape
    total, one = np.zeros((count, columns), x.dtype), np.empty((count, columns), x.dtype)
    for frame in range(first, last):
        for start in range(0, steps, STEPS):
            counts = count, columns, 1, min(STEPS, steps - start)
            _multiply(one, (0, columns), grad[frame], (start, steps, 0, 1), x[frame], (start, 1), counts, one)
            total += one
    return total
