"""SincNet's convolutions with their pools, and its norms, compiled: twins of the plain text in `denet_torch/sincnet.py`.

The sinc filters are symmetric: samples as far before the middle as behind it are added first, which halves the products. What
the pool throws away is never written. A chunk's arrays stay in a core's cache.
"""

from collections.abc import Callable

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators import once
from .product import compiled, product
from .threads import LANES, share_out

COLUMNS = 384  # of a chunk in one go, whole vectors and whole pools
CHUNKS = 16  # gradients of weights of so many are added up, then those of all
AT_ONCE = 4  # chunks that go through all layers while a core's cache holds them
_multiply, _add = product(), product(added=True)  # a row in two tiles would be added twice: rows are multiples of ROWS


class SincPool(torch.autograd.Function):
    """`sincnet.sinc_pool`."""

    @staticmethod
    def forward(ctx, x: Tensor, half: Tensor) -> Tensor:
        steps = (x.shape[1] - 2 * (half.shape[1] - 1)) // 3
        padded = F.pad(x, (0, COLUMNS + 2 * LANES))
        y, code = x.new_empty(len(x), len(half), steps), torch.empty(len(x), len(half), steps, dtype=torch.int8)
        share_out(_sinc_pool, len(x), 1, padded, half.contiguous(), y, code)
        ctx.save_for_backward(x, half, code)
        return y

    @staticmethod
    @once
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, half, code = ctx.saved_tensors
        count, taps = half.shape
        columns = taps + -taps % LANES
        padded, to_x = F.pad(x, (0, COLUMNS + 2 * LANES)), torch.zeros(len(x), x.shape[1] + COLUMNS + 2 * LANES, dtype=x.dtype)
        turned = F.pad(half, (0, columns - taps)).T.contiguous()  # (columns, filters)
        found = share_out(_sinc_pool_back, len(x), CHUNKS, padded, turned, grad.contiguous(), code, to_x, taps)
        return to_x[:, : x.shape[1]], sum(map(torch.from_numpy, found))[:, :taps]


@compiled
def _phases(x, out):
    """Every third sample of rows x (rows, steps), out[p, row, i] = x[row, 3 i + p]: what a pool compares lies in three arrays."""
    rows, steps = x.shape
    for row in range(rows):
        for p in range(3):
            for i in range((steps - p + 2) // 3):
                out[p, row, i] = x[row, 3 * i + p]


@compiled
def _fold(phases, middle, folded):
    """folded[k, j] = x[middle + 3 j - k] + x[middle + 3 j + k], and x[middle + 3 j] for k = 0."""
    taps, columns = folded.shape
    folded[0] = phases[middle % 3, 0, middle // 3 : middle // 3 + columns]
    for k in range(1, taps):
        low, high = middle - k, middle + k
        before, behind = phases[low % 3, 0, low // 3 :], phases[high % 3, 0, high // 3 :]
        for j in range(columns):
            folded[k, j] = before[j] + behind[j]


@compiled
def _sinc_pool(first, last, x, half, y, code):
    count, taps = half.shape
    steps, columns = y.shape[2], COLUMNS // 3
    row = columns + LANES  # of a power of two, few places of the cache would hold them all
    phases = np.zeros((3, 1, x.shape[1] // 3 + 1), x.dtype)
    folded, bands = np.empty((taps, row), x.dtype), np.empty((3, count, columns), x.dtype)
    for chunk in range(first, last):
        _phases(x[chunk : chunk + 1], phases)
        for start in range(0, steps, columns):
            for p in range(3):
                _fold(phases, 3 * start + p + taps - 1, folded[:, :columns])
                place = (p * count * columns, columns)
                _multiply(bands, place, half, (0, taps, 0, 1), folded, (0, row), (count, columns, 1, taps), bands)
            width = min(columns, steps - start)
            for f in range(count):
                ones, twos, threes = bands[0, f, :width], bands[1, f, :width], bands[2, f, :width]
                out = y[chunk, f, start : start + width]
                if code is None:
                    for j in range(width):
                        a, b, c = abs(ones[j]), abs(twos[j]), abs(threes[j])
                        a = b if b > a or b != b else a
                        out[j] = c if c > a or c != c else a
                    continue
                places = code[chunk, f, start : start + width]
                for j in range(width):
                    a, b, c = ones[j], twos[j], threes[j]
                    second = abs(b) > abs(a) or b != b  # NaN stays NaN
                    a = b if second else a
                    third = abs(c) > abs(a) or c != c
                    a = c if third else a
                    out[j] = abs(a)
                    place = np.int8(2) if third else np.int8(1) if second else np.int8(0)
                    place += np.int8(4) if a < 0 else np.int8(0)
                    places[j] = np.int8(8) if a == 0 else place


@compiled
def _sinc_pool_back(first, last, x, turned, grad, code, to_x, taps):
    columns, count = turned.shape
    steps = grad.shape[2]
    total = np.zeros((count, columns), x.dtype)
    unpooled = np.empty((count, COLUMNS), x.dtype)
    by_step = np.zeros((COLUMNS, columns), x.dtype)
    to_folded = np.empty((columns, COLUMNS), x.dtype)
    for chunk in range(first, last):
        turned_x = x[chunk, ::-1].copy()
        for start in range(0, steps, COLUMNS // 3):
            unpooled[:] = 0
            for f in range(count):
                for step in range(min(COLUMNS // 3, steps - start)):
                    place, g = code[chunk, f, start + step], grad[chunk, f, start + step]
                    if place < 4:
                        unpooled[f, 3 * step + place] = g
                    elif place < 8:
                        unpooled[f, 3 * step + place - 4] = -g
            middle = 3 * start + taps - 1
            for j in range(COLUMNS):
                before, behind = turned_x[len(turned_x) - 1 - middle - j :], x[chunk, middle + j :]
                for k in range(taps):
                    by_step[j, k] = before[k] + behind[k]
                by_step[j, 0] = behind[0]
            shape = (count, columns, 1, COLUMNS)
            _add(total, (0, columns), unpooled, (0, COLUMNS, 0, 1), by_step, (0, columns), shape, total)
            shape = (columns, COLUMNS, 1, count)
            _multiply(to_folded, (0, COLUMNS), turned, (0, count, 0, 1), unpooled, (0, COLUMNS), shape, to_folded)
            out = to_x[chunk]
            out[middle : middle + COLUMNS] += to_folded[0]
            for k in range(1, taps):
                before, behind = out[middle - k : middle - k + COLUMNS], out[middle + k : middle + k + COLUMNS]
                for j in range(COLUMNS):
                    before[j] += to_folded[k, j]
                for j in range(COLUMNS):
                    behind[j] += to_folded[k, j]
    return total


class ConvPool(torch.autograd.Function):
    """`sincnet.conv_pool`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        steps = (x.shape[2] - weight.shape[2] + 1) // 3
        y, code = x.new_empty(len(x), len(weight), steps), torch.empty(len(x), len(weight), steps, dtype=torch.int8)
        taps = weight.permute(2, 0, 1).contiguous()  # (taps, out, in)
        share_out(_conv_pool, len(x), 1, x.contiguous(), taps, bias, y, code)
        ctx.save_for_backward(x, weight, code)
        return y

    @staticmethod
    @once
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, code = ctx.saved_tensors
        to_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        turned = weight.permute(2, 1, 0).contiguous()  # (taps, in, out)
        grad = grad.contiguous()
        found = share_out(_conv_pool_back, len(x), CHUNKS, x.contiguous(), turned, grad, code, to_x)
        to_weight = sum(map(torch.from_numpy, found))[..., : weight.shape[1]]  # (taps, out, in)
        return to_x, to_weight.permute(1, 2, 0).contiguous(), grad.sum((0, 2))


@compiled
def _conv_pool(first, last, x, weight, bias, y, code):
    taps, count, channels = weight.shape
    steps, length = y.shape[2], x.shape[2]
    columns = steps + -steps % LANES
    row = columns + (length - 3 * steps) // 3 + LANES
    sound, bands = np.zeros((3, channels, row), x.dtype), np.empty((3, count, columns), x.dtype)
    for chunk in range(first, last):
        _phases(x[chunk], sound)
        for p in range(3):
            for f in range(count):
                bands[p, f] = bias[f]
            for tap in range(taps):
                a, shape = (tap * count * channels, channels, 0, 1), (count, columns, 1, channels)
                b = ((p + tap) % 3 * channels * row + (p + tap) // 3, row)
                _add(bands, (p * count * columns, columns), weight, a, sound, b, shape, bands)
        for f in range(count):
            ones, twos, threes = bands[0, f, :steps], bands[1, f, :steps], bands[2, f, :steps]
            out = y[chunk, f]
            if code is None:
                for j in range(steps):
                    a, b, c = ones[j], twos[j], threes[j]
                    a = b if b > a or b != b else a
                    out[j] = c if c > a or c != c else a
                continue
            places = code[chunk, f]
            for j in range(steps):
                a, b, c = ones[j], twos[j], threes[j]
                second = b > a or b != b  # NaN stays NaN
                a = b if second else a
                third = c > a or c != c
                out[j] = c if third else a
                places[j] = np.int8(2) if third else np.int8(1) if second else np.int8(0)


@compiled
def _conv_pool_back(first, last, x, turned, grad, code, to_x):
    taps, channels, count = turned.shape
    steps, length = grad.shape[2], x.shape[2]
    width = channels + -channels % LANES
    columns = length + -length % LANES
    margin = taps - 1  # zeros before and behind the gradients
    row = columns + margin + LANES
    total = np.zeros((taps, count, width), x.dtype)
    unpooled = np.zeros((count, row), x.dtype)
    by_step, out = np.zeros((length, width), x.dtype), np.empty((channels, columns), x.dtype)
    for chunk in range(first, last):
        unpooled[:] = 0
        for f in range(count):
            for step in range(steps):
                unpooled[f, margin + 3 * step + code[chunk, f, step]] = grad[chunk, f, step]
        for c in range(channels):
            for t in range(length):
                by_step[t, c] = x[chunk, c, t]
        out[:] = 0
        for tap in range(taps):
            c_place, shape = (tap * count * width, width), (count, width, 1, 3 * steps)
            _add(total, c_place, unpooled, (margin, row, 0, 1), by_step, (tap * width, width), shape, total)
            a, shape = (tap * channels * count, count, 0, 1), (channels, columns, 1, count)
            _add(out, (0, columns), turned, a, unpooled, (margin - tap, row), shape, out)
        to_x[chunk] = out[:, :length]
    return total


class Norm(torch.autograd.Function):
    """`sincnet.norm`: the norm of rows and a leaky ReLU."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor, slope: float) -> Tensor:
        x, rows = x.contiguous(), gamma.view(-1, x.shape[-1])
        batch = x.view(-1, *rows.shape)
        y, statistics = torch.empty_like(x), x.new_empty(*batch.shape[:2], 2)
        share_out(_norm, len(batch), 1, batch, rows, beta.view_as(rows), slope, y.view_as(batch), statistics)
        ctx.save_for_backward(x, gamma, y, statistics)
        ctx.slope = slope
        return y

    @staticmethod
    @once
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gamma, y, statistics = ctx.saved_tensors
        rows = gamma.view(-1, x.shape[-1])
        batch, to_x = x.view(-1, *rows.shape), torch.empty_like(x)
        parts = (batch, rows, y.view_as(batch), statistics, grad.contiguous().view_as(batch), ctx.slope, to_x.view_as(batch))
        found = share_out(_norm_back, len(batch), CHUNKS, *parts)
        to_gamma, to_beta = (sum(torch.from_numpy(part[i]) for part in found).view_as(gamma) for i in range(2))
        return to_x, to_gamma, to_beta, None


def compiled_sums(function: Callable) -> Callable:
    """As `compiled`; sums may be made in any order, so that they fill the vectors."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@compiled_sums
def _norm(first, last, x, gamma, beta, slope, y, statistics):
    rows, n = gamma.shape
    for b in range(first, last):
        for r in range(rows):
            one, total = x[b, r], 0.0
            for t in range(n):
                total += one[t]
            mean, square = total / n, 0.0
            for t in range(n):
                square += (one[t] - mean) ** 2
            deviation = np.sqrt(square / (n - 1))
            statistics[b, r, 0], statistics[b, r, 1] = mean, deviation
            middle, inverse = x.dtype.type(mean), x.dtype.type(1 / (deviation + 1e-6))
            out, scale, shift = y[b, r], gamma[r], beta[r]
            for t in range(n):
                value = (one[t] - middle) * inverse * scale[t] + shift[t]
                out[t] = value if value > 0 else value * x.dtype.type(slope)


@compiled_sums
def _norm_back(first, last, x, gamma, y, statistics, grad, slope, to_x):
    rows, n = gamma.shape
    to_gamma, to_beta = np.zeros((rows, n), x.dtype), np.zeros((rows, n), x.dtype)
    inner = np.empty(n, x.dtype)
    for b in range(first, last):
        for r in range(rows):
            mean, deviation = statistics[b, r, 0], statistics[b, r, 1]
            inverse = 1 / (deviation + x.dtype.type(1e-6))
            one, total, product = x[b, r], 0.0, 0.0
            for t in range(n):
                g = grad[b, r, t]
                g = g if y[b, r, t] > 0 else g * x.dtype.type(slope)
                centred = one[t] - mean
                to_beta[r, t] += g
                to_gamma[r, t] += g * centred * inverse
                inner[t] = g * gamma[r, t]
                total += inner[t]
                product += inner[t] * centred
            middle = x.dtype.type(total / n)
            along = x.dtype.type(product * inverse * inverse / (deviation * (n - 1)) if deviation > 0 else 0.0)
            for t in range(n):
                to_x[b, r, t] = (inner[t] - middle) * inverse - (one[t] - mean) * along
    return to_gamma, to_beta


def conv_layers(x: Tensor, half: Tensor, slope: float, *weights: Tensor) -> Tensor:
    """`sincnet.conv_layers` without gradients: what the pools decide is not kept."""
    gamma, beta, *others = (weight.detach().contiguous().numpy() for weight in weights)
    stages = [(_sinc_pool, (half.detach().contiguous().numpy(),), gamma, beta)]
    for weight, bias, gamma, beta in zip(*[iter(others)] * 4, strict=True):
        taps = np.ascontiguousarray(weight.transpose(2, 0, 1))  # (taps, out, in)
        stages.append((_conv_pool, (taps, bias), gamma, beta))
    y = x.new_empty(len(x), *gamma.shape)
    share_out(_conv_layers, len(x), AT_ONCE, F.pad(x, (0, COLUMNS + 2 * LANES)), stages, slope, y)
    return y


def _conv_layers(first, last, x, stages, slope, y):
    sound, count = x[first:last], last - first
    for pool, weights, gamma, beta in stages:
        pooled, statistics = np.empty((count, *gamma.shape), x.dtype), np.empty((count, len(gamma), 2), x.dtype)
        pool(0, count, sound, *weights, pooled, None)
        sound = np.empty_like(pooled)
        _norm(0, count, pooled, gamma, beta, slope, sound, statistics)
    y[first:last] = sound
