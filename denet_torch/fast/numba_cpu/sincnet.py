"""SincNet's convolutions with their pools, and its norms, compiled: twins of the plain text in `denet_torch/sincnet.py`.

The sinc filters are long, and symmetric: their bands are made by Fourier transforms, and so are their gradients (`fourier`), in
blocks of a chunk that overlap by a filter. Two blocks of a chunk, never of two, are real and imaginary part of a signal: what is
rounded in one is of the size of the other. The short filters of many channels are products of matrices for each frequency of
short blocks; their gradients are plain products. What the pool throws away is never written.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators import once
from .fourier import complex_sums, filtered, gather, order, size_for, transform, turns
from .product import compiled, product
from .threads import LANES, share_out

CHUNKS = 16  # gradients of weights of so many are added up, then those of all
AT_ONCE = 8  # chunks of which the convolutions are made together
compiled_sums = partial(compiled, fastmath={"reassoc"})  # sums in any order, so that they fill the vectors
_multiply, _add = product(), product(added=True)  # a row in two tiles would be added twice: rows are multiples of ROWS


def plan(samples: int, taps: int) -> tuple[int, int, int]:
    """Steps of the transforms, pools in a block, and pairs of blocks in a chunk of `samples`, for half filters of `taps`."""
    size = size_for(2 * taps - 1)
    pools = (size - 2 * (taps - 1)) // 3
    return size, pools, -(-((samples - 2 * (taps - 1)) // 3) // (2 * pools))


def responses(half: Tensor, size: int) -> Tensor:
    """The spectra (filters, size) of filters whose middle and half behind it is `half` (filters, taps), over `size`."""
    spectrum = 2 * torch.fft.fft(half.double(), n=size).real - half[:, :1].double()
    return (spectrum / size).to(half.dtype)


class SincPool(torch.autograd.Function):
    """`sincnet.sinc_pool`."""

    @staticmethod
    def forward(ctx, x: Tensor, half: Tensor) -> Tensor:
        samples, taps = x.shape[1], half.shape[1]
        size, pools, pairs = plan(samples, taps)
        steps = (samples - 2 * (taps - 1)) // 3
        y, code = x.new_empty(len(x), len(half), steps), torch.empty(len(x), len(half), steps, dtype=torch.int8)
        rows = order(size)
        response = responses(half, size)[:, rows].contiguous()
        of_blocks = taps, pools, rows, turns(size, response.numpy().dtype)
        share_out(_sinc_pool, len(x), max(1, LANES // pairs), x.contiguous(), response, *of_blocks, y, code)
        ctx.save_for_backward(x, half, code)
        return y

    @staticmethod
    @once
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, half, code = ctx.saved_tensors
        taps = half.shape[1]
        size, pools, _ = plan(x.shape[1], taps)
        response = responses(half, size)
        of_blocks = taps, pools, order(size), turns(size, response.numpy().dtype)
        to_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        found = share_out(_sinc_pool_back, len(x), CHUNKS, x.contiguous(), response, *of_blocks, grad.contiguous(), code, to_x)
        to_half = torch.fft.fft(sum(torch.from_numpy(part).double() for part in found)).real[:, :taps] * (2 / size)
        to_half[:, 0] /= 2
        return to_x, to_half.to(half.dtype)


@compiled
def _signals(x, first, signal, step, pairs, order, turns, z):
    """The spectra, in the usual order, of LANES pairs of blocks from number `signal` on of chunks `first` and on, in z.

    Blocks begin every `step` samples. Imaginary and real parts have changed places, as a transform forth has them by one back.
    """
    for lane in range(LANES):
        chunk = first + (signal + lane) // pairs
        for part in range(2):
            start = (2 * ((signal + lane) % pairs) + part) * step
            known = min(len(z), max(0, x.shape[1] - start)) if chunk < len(x) else 0
            for i in range(known):
                z[order[i], 1 - part, lane] = x[chunk, start + i]
            for i in range(known, len(z)):
                z[order[i], 1 - part, lane] = 0
    transform(z, turns)


@compiled
def _turned(spectrum, order, y):
    """`spectrum`, whose parts have changed places, as it is and with its rows in `order`, in y."""
    for i in range(len(y)):
        y[i, 0], y[i, 1] = spectrum[order[i], 1], spectrum[order[i], 0]


@compiled
def _pool(ones, twos, threes, magnitudes, out, places):
    """The largest of three, or of their magnitudes, in `out`. If wanted, in `places` which it was: of what is negative, if
    magnitudes are compared, that and 4; 8 of 0, whose magnitude has no slope."""
    for j in range(len(out)):
        a, b, c = ones[j], twos[j], threes[j]
        second = (abs(b) > abs(a) if magnitudes else b > a) or b != b  # NaN stays NaN
        a = b if second else a
        third = (abs(c) > abs(a) if magnitudes else c > a) or c != c
        a = c if third else a
        out[j] = abs(a) if magnitudes else a
        if places is not None:
            place = np.int8(2) if third else np.int8(1) if second else np.int8(0)
            place += np.int8(4) if magnitudes and a < 0 else np.int8(0)
            places[j] = np.int8(8) if magnitudes and a == 0 else place


@compiled
def _sinc_pool(first, last, x, response, taps, pools, order, turns, y, code):
    size, steps = response.shape[1], y.shape[2]
    pairs = -(-steps // (2 * pools))
    spectrum, z = np.empty((size, 2, LANES), x.dtype), np.empty((size, 2, LANES), x.dtype)
    bands, best = z.reshape((size, 2 * LANES)), np.empty((pools, 2 * LANES), x.dtype)
    places = np.empty((pools, 2 * LANES), np.int8)
    for signal in range(0, (last - first) * pairs, LANES):
        _signals(x, first, signal, 3 * pools, pairs, order, turns, z)
        _turned(z, order, spectrum)
        for f in range(len(response)):
            filtered(z, spectrum, response[f], turns)
            for j in range(pools):
                row = taps - 1 + 3 * j
                if code is None:
                    _pool(bands[row], bands[row + 1], bands[row + 2], True, best[j], None)
                else:
                    _pool(bands[row], bands[row + 1], bands[row + 2], True, best[j], places[j])
            for lane in range(min(LANES, (last - first) * pairs - signal)):
                chunk, pair = first + (signal + lane) // pairs, (signal + lane) % pairs
                for part in range(2):
                    start, column = (2 * pair + part) * pools, part * LANES + lane
                    out = y[chunk, f, start : start + pools]
                    for j in range(len(out)):
                        out[j] = best[j, column]
                    if code is not None:
                        decided = code[chunk, f, start : start + pools]
                        for j in range(len(out)):
                            decided[j] = places[j, column]


@compiled_sums
def _correlate(sound, z, response, total, to_sound):
    """Adds the products of two spectra to `total`, summed over all signals, and `response` times z to `to_sound`."""
    for i in range(len(z)):
        one, other, back, value = sound[i], z[i], to_sound[i], total[i]
        for j in range(len(one)):
            value += one[j] * other[j]
        total[i] = value
        for j in range(len(one)):
            back[j] += response[i] * other[j]


@compiled
def _sinc_pool_back(first, last, x, response, taps, pools, order, turns, grad, code, to_x):
    count, size = response.shape
    steps = grad.shape[2]
    pairs = -(-steps // (2 * pools))
    total = np.zeros((count, size), x.dtype)
    sound, z = np.empty((size, 2, LANES), x.dtype), np.empty((size, 2, LANES), x.dtype)
    to_sound = np.empty((size, 2, LANES), x.dtype)
    used = 3 * steps + 2 * (taps - 1)  # behind them nothing has a gradient, not even one of rounding
    flat = (size, 2 * LANES)
    for signal in range(0, (last - first) * pairs, LANES):
        _signals(x, first, signal, 3 * pools, pairs, order, turns, sound)
        to_sound[:] = 0
        lanes = min(LANES, (last - first) * pairs - signal)
        for f in range(count):
            z[:] = 0
            for lane in range(lanes):
                chunk, pair = first + (signal + lane) // pairs, (signal + lane) % pairs
                for part in range(2):
                    start = (2 * pair + part) * pools
                    for j in range(min(pools, steps - start)):
                        place, g = code[chunk, f, start + j], grad[chunk, f, start + j]
                        if place < 8:
                            z[order[taps - 1 + 3 * j + place % 4], 1 - part, lane] = g if place < 4 else -g
            transform(z, turns)
            _correlate(sound.reshape(flat), z.reshape(flat), response[f], total[f], to_sound.reshape(flat))
        _turned(to_sound, order, z)
        transform(z, turns)
        for lane in range(lanes):
            chunk, pair = first + (signal + lane) // pairs, (signal + lane) % pairs
            for part in range(2):
                out = to_x[chunk, (2 * pair + part) * 3 * pools : used]
                for i in range(min(size, len(out))):
                    out[i] += z[i, part, lane]
    return total


class ConvPool(torch.autograd.Function):
    """`sincnet.conv_pool`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        steps = (x.shape[2] - weight.shape[2] + 1) // 3
        y, code = x.new_empty(len(x), len(weight), steps), torch.empty(len(x), len(weight), steps, dtype=torch.int8)
        padded = F.pad(x, (0, max(0, needed(steps, weight.shape[2]) - x.shape[2])))
        share_out(_conv_pool, len(x), AT_ONCE, padded.contiguous(), *conv_plan(weight, bias), y, code)
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


def conv_plan(weight: Tensor, bias: Tensor) -> tuple:
    """What `_conv_pool` is told of a convolution: spectra of its weights (half, 2, out, in), bias, pools in a block and so on."""
    taps = weight.shape[2]
    size = size_for(taps)
    spectrum = torch.view_as_real(torch.fft.rfft(weight.double(), n=size) / size)  # (out, in, half, 2)
    spectra = spectrum.permute(2, 3, 0, 1).to(weight.dtype).contiguous().numpy()
    return spectra, bias.numpy(), (size - taps + 1) // 3, order(size), turns(size, spectra.dtype)


def needed(steps: int, taps: int) -> int:
    """Samples that `_conv_pool` reads of a channel, for so many steps behind the pool."""
    size = size_for(taps)
    pools = (size - taps + 1) // 3
    return (2 * -(-steps // (2 * pools)) - 1) * 3 * pools + size


@compiled
def _conv_pool(first, last, x, spectra, bias, pools, order, turns, y, code):
    half, _, count, channels = spectra.shape
    size, steps, length = 2 * (half - 1), y.shape[2], x.shape[2]
    pairs, both = -(-steps // (2 * pools)), 2 * LANES
    chunks, starts, places = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    sound = np.empty((size, channels, 2, LANES), x.dtype)
    products = np.empty((2, count, 2, LANES), x.dtype)  # with real and imaginary parts of a frequency's weights
    bands = np.empty((size, count, 2, LANES), x.dtype)
    best, decided = np.empty((pools, count, 2, LANES), x.dtype), np.empty((pools, count, 2, LANES), np.int8)
    for signal in range(0, (last - first) * pairs, LANES):
        lanes = min(LANES, (last - first) * pairs - signal)
        for lane in range(lanes):
            chunks[lane], pair = first + (signal + lane) // pairs, (signal + lane) % pairs
            starts[lane], places[lane] = 2 * pools * pair, chunks[lane] * channels * length + 6 * pools * pair
        for c in range(channels):
            for part in range(2):
                gather(sound, c, part, x.reshape(x.size), places, c * length + 3 * pools * part, order)
        transform(sound, turns)
        for k in range(size):
            a, b = (min(k, size - k) * 2 * count * channels, channels, 0, 1), (k * channels * both, both)
            _multiply(products, (0, both), spectra, a, sound, b, (2 * count, both, 1, channels), products)
            complex_sums(bands[order[k]], products, 1 if k < half else -1)
        transform(bands, turns)
        for j in range(pools):
            ones, twos = bands[(size - 3 * j) % size].ravel(), bands[size - 3 * j - 1].ravel()
            threes, out = bands[size - 3 * j - 2].ravel(), best[j].ravel()
            if code is None:
                _pool(ones, twos, threes, False, out, None)
            else:
                _pool(ones, twos, threes, False, out, decided[j].ravel())
        for f in range(count):
            for lane in range(lanes):
                chunk, start = chunks[lane], starts[lane]
                for part in range(2):
                    for j in range(min(pools, steps - start - pools * part)):
                        y[chunk, f, start + pools * part + j] = best[j, f, part, lane] + bias[f]
                        if code is not None:
                            code[chunk, f, start + pools * part + j] = decided[j, f, part, lane]


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
    size, pools, _ = plan(x.shape[1], half.shape[1])
    rows = order(size)
    response = responses(half.detach(), size)[:, rows].contiguous().numpy()
    stages = [(_sinc_pool, (response, half.shape[1], pools, rows, turns(size, response.dtype)), gamma, beta)]
    lengths = []  # of channels, for the next convolution
    for weight, bias, gamma, beta in zip(*[iter(others)] * 4, strict=True):
        lengths.append(needed(gamma.shape[1], weight.shape[2]))
        stages.append((_conv_pool, conv_plan(torch.from_numpy(weight), torch.from_numpy(bias)), gamma, beta))
    y = x.new_empty(len(x), *gamma.shape)
    share_out(_conv_layers, len(x), AT_ONCE, x.contiguous(), stages, [*lengths, 0], slope, y)
    return y


def _conv_layers(first, last, x, stages, lengths, slope, y):
    sound, count = x[first:last], last - first
    for (pool, weights, gamma, beta), length in zip(stages, lengths, strict=True):
        rows, steps = gamma.shape
        pooled, statistics = np.empty((count, rows, steps), x.dtype), np.empty((count, rows, 2), x.dtype)
        pool(0, count, sound, *weights, pooled, None)
        sound = np.empty((count, rows, max(steps, length)), x.dtype)
        sound[:, :, steps:] = 0
        _norm(0, count, pooled, gamma, beta, slope, sound, statistics)
    y[first:last] = sound
