"""SincNet's convolutions with their pools, and its norms, compiled: twins of the plain text in `denet_torch/sincnet.py`.

The sinc filters are long, and symmetric: their bands are made by Fourier transforms, and so are their gradients (`fourier`), in
blocks of a chunk that overlap by a filter. Two blocks of a chunk, never of two, are real and imaginary part of a signal: what is
rounded in one is of the size of the other. The short filters of many channels are products of matrices for each frequency of
short blocks; their gradients are plain products. What the pool throws away is never written.
"""

from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from ..operators import once
from .fourier import complex_sums, filtered, gather, order, scatter, size_for, spaced, transform, turns
from .product import aligned, compiled, product
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


def sinc_plan(half: Tensor, size: int, pools: int) -> tuple:
    """What `_sinc_pool` is told of filters: spectra (groups, size, LANES), in each group as many filters as there are lanes,
    filled up with zeros; how many filters there are, taps of half of one, and so on."""
    rows = order(size)
    response = F.pad(responses(half, size)[:, rows], (0, 0, 0, -len(half) % LANES))
    response = response.unflatten(0, (-1, LANES)).transpose(1, 2).contiguous().numpy()
    return response, len(half), half.shape[1], pools, rows, turns(size, response.dtype)


class SincPool(torch.autograd.Function):
    """`sincnet.sinc_pool`."""

    @staticmethod
    def forward(ctx, x: Tensor, half: Tensor) -> Tensor:
        samples, taps = x.shape[1], half.shape[1]
        size, pools, pairs = plan(samples, taps)
        steps = (samples - 2 * (taps - 1)) // 3
        y, code = x.new_empty(len(x), len(half), steps), torch.empty(len(x), len(half), steps, dtype=torch.int8)
        share_out(_sinc_pool, len(x), max(1, LANES // pairs), x.contiguous(), *sinc_plan(half, size, pools), y, code)
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


def largest_of_three(magnitudes: bool):
    """A compiled f(y, places, to, x, one, two, three): LANES numbers of y from `to` on are the largest, or largest magnitudes, of
    those of x from `one`, `two` and `three` on, counted as they lie. NaN stays NaN.

    Unless `places` is None, it keeps which of the three it was: of what is negative, if magnitudes are compared, that and 4; 8 of
    0, whose magnitude has no slope.
    """

    @intrinsic
    def pool(_, y, places, to, x, one, two, three):
        def generate(context, builder, signature, arguments):
            y, x = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 3))
            to, kept = arguments[2], signature.args[1] != types.none
            number = context.get_data_type(signature.args[0].dtype)
            bytes_each, vector = context.get_abi_sizeof(number), ir.VectorType(number, LANES)
            zero, codes = ir.Constant(vector, None), ir.VectorType(ir.IntType(8), LANES)
            of_one = ir.FunctionType(vector, [vector])
            magnitude = cgutils.get_or_insert_function(builder.module, of_one, f"llvm.fabs.v{LANES}f{8 * bytes_each}")

            def vector_at(array, place, kind=vector):
                return builder.bitcast(builder.gep(array, [place]), kind.as_pointer())

            def code(value):
                return ir.Constant(codes, [value] * LANES)

            best = largest = place = None
            for n, start in enumerate(arguments[4:]):
                value = builder.load(vector_at(x, start), align=bytes_each)
                size = builder.call(magnitude, [value]) if magnitudes else value
                if n:
                    above, none = builder.fcmp_ordered(">", size, largest), builder.fcmp_unordered("uno", size, size)
                    taken = builder.or_(above, none)
                    size, value = builder.select(taken, size, largest), builder.select(taken, value, best)
                best, largest, place = value, size, builder.select(taken, code(n), place) if n else code(0)
            builder.store(largest, vector_at(y, to), align=bytes_each)
            if kept:
                if magnitudes:
                    negative = builder.fcmp_ordered("<", best, zero)
                    place = builder.add(place, builder.select(negative, code(4), code(0)))
                    place = builder.select(builder.fcmp_ordered("==", best, zero), code(8), place)
                places = context.make_array(signature.args[1])(context, builder, arguments[1]).data
                builder.store(place, vector_at(places, to, codes), align=1)
            return context.get_dummy_value()

        return types.void(y, places, to, x, one, two, three), generate

    return pool


largest, largest_magnitude = largest_of_three(magnitudes=False), largest_of_three(magnitudes=True)


@compiled
def spectra_of(z, order, spectra):
    """What `_signals` finds, in z, one spectrum (size, 2) after the other: parts change places again, rows lie in `order`."""
    for i in range(len(z)):
        row = z[order[i]]
        for lane in range(LANES):
            spectra[lane, i, 0], spectra[lane, i, 1] = row[1, lane], row[0, lane]


@compiled
def pooled_rows(pools, row):
    """Where the lanes of what follow each other behind a pool lie: `pools` rows, of both parts of a signal."""
    rows = np.empty(2 * pools, np.int64)
    for i in range(2 * pools):
        rows[i] = i % pools * row + i // pools * LANES
    return rows


@compiled
def _sinc_pool(first, last, x, response, count, taps, pools, order, turns, y, code):
    size, steps, row = response.shape[1], y.shape[2], 2 * LANES
    pairs = -(-steps // (2 * pools))
    spectra, signals = np.empty((LANES, size, 2), x.dtype), aligned(size * 2 * LANES, x).reshape((size, 2, LANES))
    bands, best = aligned(spaced(size) * row, x), aligned(pools * row, x)
    decided = np.empty(pools * row, np.int8)
    places, counts, rows = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64), pooled_rows(pools, row)
    for signal in range((last - first) * pairs):
        chunk, start = first + signal // pairs, 2 * pools * (signal % pairs)
        if signal % LANES == 0:
            _signals(x, first, signal, 3 * pools, pairs, order, turns, signals)
            spectra_of(signals, order, spectra)
        for group in range(len(response)):
            filtered(bands.reshape((spaced(size), row)), spectra[signal % LANES], response[group], turns)
            for j in range(pools):
                at = taps - 1 + 3 * j
                one, two, three = spaced(at) * row, spaced(at + 1) * row, spaced(at + 2) * row
                for i in range(0, row, LANES):
                    if code is None:
                        largest_magnitude(best, None, j * row + i, bands, one + i, two + i, three + i)
                    else:
                        largest_magnitude(best, decided, j * row + i, bands, one + i, two + i, three + i)
            for lane in range(LANES):
                f = group * LANES + lane
                places[lane] = (chunk * count + f) * steps + start
                counts[lane] = min(2 * pools, steps - start) if f < count else 0
            scatter(y.reshape(y.size), places, counts, best, rows, 0)
            if code is not None:
                scatter(code.reshape(code.size), places, counts, decided, rows, 0)


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
    sound, z, to_sound = [aligned(size * 2 * LANES, x).reshape((size, 2, LANES)) for _ in range(3)]
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
    spectra = (weight.double() @ waves(size)[:taps]).to(weight.dtype)  # (out, in, half * 2)
    spectra = spectra.permute(2, 0, 1).unflatten(0, (-1, 2)).contiguous().numpy()
    return spectra, bias.numpy(), (size - taps + 1) // 3, order(size), turns(size, spectra.dtype)


@cache
def waves(size: int) -> Tensor:
    """Real and imaginary part of exp(-2 pi i t k / size) / size: (size, (size / 2 + 1) * 2), for steps t and frequencies k."""
    exponentials = np.exp(-2j * np.pi * np.outer(np.arange(size), np.arange(size // 2 + 1)) / size) / size
    return torch.from_numpy(exponentials.view(np.float64))


def needed(steps: int, taps: int) -> int:
    """Samples that `_conv_pool` reads of a channel, for so many steps behind the pool."""
    size = size_for(taps)
    pools = (size - taps + 1) // 3
    return (2 * -(-steps // (2 * pools)) - 1) * 3 * pools + size


@compiled
def _conv_pool(first, last, x, spectra, bias, pools, order, turns, y, code):
    half, _, count, channels = spectra.shape
    size, length, steps = 2 * (half - 1), x.shape[2], y.shape[2]
    pairs, both = -(-steps // (2 * pools)), 2 * LANES
    places, targets, counts = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    rows = pooled_rows(pools, count * both)
    sound = aligned(size * channels * both, x).reshape((size, channels, 2, LANES))
    products = aligned(2 * count * both, x).reshape((2, count, 2, LANES))  # with parts of a frequency's weights
    bands = aligned(size * count * both, x).reshape((size, count, 2, LANES))
    row = count * both
    best, decided = aligned(pools * row, x), np.empty(pools * row, np.int8)
    for signal in range(0, (last - first) * pairs, LANES):
        counts[:] = 0  # lanes without a signal keep the place of another, and are not written
        for lane in range(min(LANES, (last - first) * pairs - signal)):
            chunk, start = first + (signal + lane) // pairs, 2 * pools * ((signal + lane) % pairs)
            places[lane], targets[lane] = chunk * channels * length + 3 * start, chunk * count * steps + start
            counts[lane] = min(2 * pools, steps - start)
        for c in range(channels):
            for part in range(2):
                gather(sound, c, part, x.reshape(x.size), places, c * length + 3 * pools * part, order)
        transform(sound, turns)
        for k in range(size):
            a, b = (min(k, size - k) * 2 * count * channels, channels, 0, 1), (k * channels * both, both)
            if k % (half - 1) == 0:  # the first and the last of weights that are real are real
                _multiply(bands, (order[k] * count * both, both), spectra, a, sound, b, (count, both, 1, channels), bands)
            else:
                _multiply(products, (0, both), spectra, a, sound, b, (2 * count, both, 1, channels), products)
                complex_sums(bands[order[k]], products, 1 if k < half else -1)
        for f in range(count):
            bands[0, f] += bias[f]  # of frequency 0, which is in every step
        transform(bands, turns)
        for j in range(pools):
            one, two, three = (size - 3 * j) % size * row, (size - 3 * j - 1) * row, (size - 3 * j - 2) * row
            for i in range(0, row, LANES):
                if code is None:
                    largest(best, None, j * row + i, bands, one + i, two + i, three + i)
                else:
                    largest(best, decided, j * row + i, bands, one + i, two + i, three + i)
        for f in range(count):
            scatter(y.reshape(y.size), targets + f * steps, counts, best, rows, f * both)
            if code is not None:
                scatter(code.reshape(code.size), targets + f * steps, counts, decided, rows, f * both)


@compiled
def _conv_pool_back(first, last, x, turned, grad, code, to_x):
    taps, channels, count = turned.shape
    steps, length = grad.shape[2], x.shape[2]
    width = channels + -channels % LANES
    columns = length + -length % LANES
    margin = taps - 1  # zeros before and behind the gradients
    row = columns + margin + LANES
    total, unpooled = aligned(taps * count * width, x).reshape((taps, count, width)), np.zeros((count, row), x.dtype)
    by_step = aligned(length * width, x).reshape((length, width))
    out = aligned(channels * columns, x).reshape((channels, columns))
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
    stages = [(_sinc_pool, sinc_plan(half.detach(), size, pools), gamma, beta)]
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
