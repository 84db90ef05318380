"""Every compiled kernel on drawn arrays that lie against pages which nobody may touch: a program, run by test_guard_pages.py.

    python tests/guard_pages.py --calls 2000 --side end

What a kernel is given, and what it allocates itself, ends where such a page begins (`--side end`) or begins behind one (`start`);
the rest of its own pages holds a pattern that must still be there afterwards. Arguments that a kernel only reads lie in pages
that cannot be written. What it allocates is full of NaN, and what it finds must be equal, bit for bit, to what it finds in
ordinary memory. `--side heap`: blocks of the C library's, of exactly the arrays' sizes, for its own checks
(MALLOC_CHECK_, MALLOC_PERTURB_). A call is drawn by the seed, the kernel and its number; the last begun is written to --status,
so that it is known after a crash as well.
"""

import argparse
import ctypes
import functools
import importlib
import inspect
import json
import os
import sys
from collections import Counter
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numba.extending import is_jitted
from torch import Tensor

PAGE = os.sysconf("SC_PAGESIZE")
NONE, READ, WRITE = 0, 1, 2  # sys/mman.h
PRIVATE_ANONYMOUS = 0x22
PATTERN = 0xA5
MALLOC_DEBUG = "libc_malloc_debug.so.0"  # of glibc
TYPES = ("float32", "float64", "bfloat16")


class Memory:
    """Blocks of bytes on one `side` of a page that must not be touched."""

    def __init__(self, side: str):
        self.side, self.regions = side, {}
        self.libc = ctypes.CDLL(None, use_errno=True)
        word = ctypes.c_size_t
        self.libc.mmap.restype = self.libc.malloc.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = ctypes.c_void_p, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
        self.libc.mprotect.argtypes = ctypes.c_void_p, word, ctypes.c_int
        self.libc.munmap.argtypes = ctypes.c_void_p, word
        self.libc.malloc.argtypes, self.libc.free.argtypes = (word,), (ctypes.c_void_p,)

    def reserve(self, size: int) -> int:
        """The address of `size` new bytes of 0xFF."""
        size = max(size, 1)
        if self.side == "heap":
            address = self.libc.malloc(size)
            ctypes.memset(address, 0xFF, size)
            return address
        room = -(-size // PAGE) * PAGE
        base = self.libc.mmap(None, room + 2 * PAGE, NONE, PRIVATE_ANONYMOUS, -1, 0)
        first = base + PAGE
        assert not self.libc.mprotect(first, room, READ | WRITE), "no more memory can be mapped"
        address = first + room - size if self.side == "end" else first
        ctypes.memset(first, PATTERN, room)
        ctypes.memset(address, 0xFF, size)
        self.regions[address] = first, room, size
        return address

    def protect(self, address: int) -> None:
        """From now on the block can only be read."""
        if self.side != "heap":
            first, room, _ = self.regions[address]
            self.libc.mprotect(first, room, READ)

    def release(self, address: int) -> None:
        """Give a block back; AssertionError if bytes beside it were written."""
        if self.side == "heap":
            self.libc.free(address)
            return
        first, room, size = self.regions.pop(address)
        page = (ctypes.c_char * room).from_address(first).raw
        beside = page[: address - first] + page[address - first + size :]
        self.libc.munmap(first - PAGE, room + 2 * PAGE)
        assert beside == bytes([PATTERN]) * len(beside), "bytes beside an array were written"

    def place(self, array: np.ndarray) -> tuple[np.ndarray, int]:
        """A copy of an array, as its numbers lie, and the block's address."""
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (array.ctypes.data, array.ctypes.data)
        address = self.reserve(high - low)
        block = (ctypes.c_char * max(high - low, 1)).from_address(address)
        copy = np.ndarray(array.shape, array.dtype, block, array.ctypes.data - low, array.strides)
        copy[...] = array
        return copy, address

    def give_to_numba(self) -> None:
        """Compiled functions allocate here. What is linked before keeps its allocator."""
        from llvmlite import binding
        from numba.core.registry import cpu_target
        from numba.core.runtime import _nrt_python

        cpu_target.target_context  # noqa: B018  (names its own allocator)
        pointer = ctypes.c_void_p
        free = ctypes.CFUNCTYPE(None, pointer)(self.release)
        get_api = ctypes.CFUNCTYPE(pointer)(_nrt_python.c_helpers["get_api"])
        manage = ctypes.CFUNCTYPE(pointer, pointer, type(free))(ctypes.cast(get_api(), ctypes.POINTER(pointer))[2])

        @ctypes.CFUNCTYPE(pointer, ctypes.c_size_t, ctypes.c_uint)
        def allocate(size, alignment):
            return manage(self.reserve(size), free)

        self.kept = free, allocate  # as long as somebody may call them
        for name in ("NRT_MemInfo_alloc_aligned", "NRT_MemInfo_alloc_safe_aligned"):
            binding.add_symbol(name, ctypes.cast(allocate, pointer).value)


def with_malloc_checks() -> dict[str, str]:
    """An environment in which the C library checks its heap; it says so if only half of that is to be had."""
    checks = os.environ | {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}
    if any(Path(folder, MALLOC_DEBUG).exists() for folder in ("/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")):
        return checks | {"LD_PRELOAD": MALLOC_DEBUG}
    print(f"{MALLOC_DEBUG} is not there: MALLOC_CHECK_ does nothing, MALLOC_PERTURB_ alone is tried")
    return checks


# What each kernel writes; all else that it is given it only reads.
WRITTEN = {
    "_few_rows": "y",
    "_convolve": "y",
    "_filter_gradients": "",
    "_first_layer": "window h1",
    "_keep_unknown": "window h1",
    "_second_layer": "h2",
    "_forward": "kept y",
    "_backward": "grad_x",
    "_add_correlation": "total pairs_a pairs_b",
    "_piece": "counters",
    "_gru": "counters state reset gates h",
    "_gates": "y reset gates",
    "_states": "y state gates h",
    "_recurrent_product": "y",
    "_kernel_gradient": "found",
    "_gru_backward": "counters carry transposed found",
    "_state_gradients": "y carry transposed found",
    "_reset_gradients": "y carry transposed found",
    "_product_back": "y",
    "gather": "z",
    "scatter": "y",
    "complex_sums": "y",
    "_stages": "x",
    "transform": "x",
    "filtered": "y",
    "_signals": "z",
    "_turned": "y",
    "spectra_of": "spectra",
    "_correlate": "total to_sound",
    "_sinc_pool": "y code",
    "_sinc_pool_back": "to_x",
    "_conv_pool": "y code",
    "_conv_pool_back": "to_x",
    "_norm": "y statistics",
    "_norm_back": "to_x",
    "tiles": "c",
    "tiles_of_parts": "c",
    "_columns": "columns",
    "_products": "y",
    "_layers": "y",
    "_moments": "moments",
    "_norm_conv_pool": "out",
    "_last_norm": "y",
}
NUMBERS_ONLY = {"_tanh", "aligned", "spaced", "pooled_rows"}  # kernels that are given no array


class Run:
    """Calls of kernels, counted."""

    def __init__(self, memory: Memory, types: list[str], strides: bool):
        self.memory, self.types, self.strides, self.counts = memory, types, strides, Counter()

    def share_out(self, kernel, count, at_once, *arguments):
        """In place of `threads.share_out`, which it calls."""
        from denet_torch.fast.numba_cpu import threads

        arrays = [argument.detach().numpy() if isinstance(argument, Tensor) else argument for argument in arguments]
        return self.call(kernel, lambda *placed: threads.share_out(kernel, count, at_once, *placed), 2, arrays)

    def direct(self, kernel, *arguments):
        arrays = [argument.detach().numpy() if isinstance(argument, Tensor) else argument for argument in arguments]
        return self.call(kernel, kernel, 0, arrays)

    def call(self, kernel, function, skipped: int, arguments: list):
        """function(*arguments) with placed arrays, then with the arrays themselves, which comes to the same."""
        name = kernel.__name__
        names, written = list(inspect.signature(kernel.py_func).parameters)[skipped:], WRITTEN[name].split()
        placed, blocks = [], []
        for argument_name, argument in zip(names, arguments, strict=True):
            if isinstance(argument, np.ndarray):
                argument, address = self.memory.place(argument)
                blocks.append(address)
                if argument_name not in written:
                    self.memory.protect(address)
            placed.append(argument)
        found, expected = function(*placed), function(*arguments)
        for argument_name, ours, plain in zip(names, placed, arguments, strict=True):
            assert same(ours, plain), f"{name} finds another {argument_name} than in ordinary memory"
        assert same(found, expected), f"{name} finds something else than in ordinary memory"
        del placed, found, ours
        for address in blocks:
            self.memory.release(address)
        self.counts[name] += 1
        return expected


def same(one, other) -> bool:
    if isinstance(one, list | tuple):
        return all(map(same, one, other))
    return not isinstance(one, np.ndarray) or np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


class Draw:
    """One call's numbers."""

    def __init__(self, run: Run, seed: int, name: str, number: int):
        self.run, self.rng = run, np.random.default_rng([seed, *name.encode(), number])
        self.type = self.of(run.types)
        self.dtype = torch.float64 if self.type == "float64" else torch.float32
        self.rounded = self.type == "bfloat16"  # what takes no such numbers is given float32
        self.said = {}

    def to(self, last: int, first: int = 1) -> int:
        return int(self.rng.integers(first, last, endpoint=True))

    def of(self, choice):
        return choice[self.to(len(choice)) - 1]

    def tensor(self, *shape: int, strided: bool = False) -> Tensor:
        """Drawn numbers; `strided`: in memory as some caller may have them."""
        way = self.to(4) if strided and self.run.strides else 4
        whole = (*shape[:-1], 2 * shape[-1]) if way == 1 else (*shape[::-1],) if way == 2 else shape
        numbers = torch.from_numpy(self.rng.standard_normal(whole)).to(self.dtype)
        if way == 1:
            numbers = numbers[..., ::2]
        if way == 2:
            numbers = numbers.permute(*range(len(shape))[::-1])
        return numbers

    def wanted(self, *tensors: Tensor) -> list[Tensor]:
        return [tensor.requires_grad_() for tensor in tensors]


def backward(draw: Draw, y: Tensor, tensors: list[Tensor]) -> None:
    torch.autograd.grad(y, tensors, draw.tensor(*y.shape, strided=True))


def few_rows(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import product

    columns = 16 * draw.to(34)
    kernel = draw.tensor(draw.to(40), columns + 16 * draw.to(3, 0))
    product.few_rows(draw.tensor(draw.to(13), len(kernel), strided=True), kernel[:, -columns:])


def waveforms(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import waveform

    x = draw.tensor(draw.to(5), draw.to(600), strided=True)
    filters = draw.tensor(draw.to(35, 10), 2 * draw.to(40) + 1, strided=True)
    backward(draw, waveform.convolve(x, *draw.wanted(filters)), [filters])


def band_weights(draw: Draw) -> list[Tensor]:
    return [draw.tensor(*shape, strided=True) for shape in ((30, 1, 7), (30,), (30, 30, 7), (30,), (10, 30, 7), (10,))]


def band_convolutions(draw: Draw) -> None:
    from denet_torch.architecture import attention_steps
    from denet_torch.fast.numba_cpu import bands

    x = draw.tensor(draw.to(3) if draw.to(9) > 1 else bands.BANDS + draw.to(3), draw.to(330, 217), strided=True)
    if draw.to(3) == 1:
        x[draw.to(len(x)) - 1, draw.to(x.shape[1]) - 1] = torch.nan
    tensors = draw.wanted(x, *band_weights(draw))[draw.to(1, 0) :]  # with the gradient of x, or without
    room = draw.to(len(x) + 1, 0) * bands.second_layer(attention_steps(x.shape[1]))
    y, _ = bands.band_convolutions(x, *tensors[-6:], draw.rounded, room)
    backward(draw, y, tensors if draw.to(4) > 1 else tensors[:1])


def one_band(draw: Draw) -> dict:
    """Arrays of one band as `_forward` and `_backward` have them, filled with drawn numbers."""
    from denet_torch.architecture import attention_steps
    from denet_torch.fast.numba_cpu import bands

    def numbers(*shape):
        found = draw.tensor(*shape)
        return found.bfloat16().view(torch.int16) if draw.rounded else found

    samples = draw.to(330, 217)
    groups = 3 * attention_steps(samples) + 8
    m1, m2, m3 = bands._matrices(*bands.filled_up(draw.rounded, *band_weights(draw)))
    window = torch.zeros(6 * groups + bands.LANES, dtype=m1.dtype)
    h1, h2 = numbers(groups * 3 * bands.WIDTH), numbers((groups - 2) * bands.WIDTH)
    return dict(x=draw.tensor(samples), groups=groups, m1=m1, m2=m2, window=window, h1=h1, h2=h2, numbers=numbers)


def first_layer(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import bands

    band = one_band(draw)
    x, arrays = band["x"], [band[name] for name in ("m1", "window", "h1")]
    draw.run.direct(bands._first_layer, x, *arrays)
    x[[draw.to(len(x)) - 1 for _ in range(draw.to(3))]] = torch.nan
    x[-1 if draw.to(2) == 1 else 0] = torch.nan
    draw.run.direct(bands._keep_unknown, x, *arrays)
    draw.run.direct(bands._second_layer, band["h1"], band["m2"], band["h2"])


def correlations(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import bands

    band, width = one_band(draw), 3 * bands.WIDTH
    groups, numbers, conv_steps = band["groups"], band["numbers"], (band["groups"] - 8) // 3
    most = (groups + 1) // 2
    pairs = torch.empty(most * (7 * bands.WIDTH + bands.LANES), dtype=torch.int32), torch.empty(most * width, dtype=torch.int32)
    for each in pairs:
        each.fill_(-1)
    cases = [
        (12, width, numbers(6 * groups + bands.LANES), 6, groups),
        (7 * bands.WIDTH + 1, bands.WIDTH, band["h1"], width, groups - 2),
        (7 * bands.WIDTH + 1, bands.OUT, band["h2"], width, conv_steps),
    ]
    rows, columns, a, a_row, count = draw.of(cases)
    total, ones = draw.tensor(rows, columns), torch.ones(1, dtype=draw.dtype)
    paired = True if draw.rounded else None
    draw.run.direct(bands._add_correlation, total, ones, a, a_row, numbers(count * columns), *pairs, paired)


def gru(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import gru

    batch, units = draw.of([1, 1, draw.to(20)]), 16 * draw.of([16, 17, draw.to(34, 16)])
    inputs = draw.tensor(batch, draw.to(3), 3 * units, strided=True)
    tensors = draw.wanted(2 * inputs, draw.tensor(units, 3 * units, strided=True))
    if draw.to(20) == 1:
        tensors[1].data[0, 0] = torch.nan
    y, _, _ = gru.gru_states(*tensors, False)  # what is rounded is not compiled
    backward(draw, y, tensors)


def gru_parts(draw: Draw) -> None:
    """The steps of `_gru` and `_gru_backward`, each for a piece of the columns."""
    from denet_torch.fast.numba_cpu import gru
    from denet_torch.fast.numba_cpu.threads import LANES

    batch, steps, units = draw.of([1, 1, draw.to(20)]), draw.to(3), 16 * draw.to(34, 1)
    rows, step = 1 if batch == 1 else batch + -batch % gru.SEQUENCES, draw.to(steps) - 1
    inputs, kernel, h = draw.tensor(batch, steps, 3 * units), draw.tensor(units, 3 * units), draw.tensor(batch, steps + 1, units)
    state, reset, gates = draw.tensor(units, rows), draw.tensor(units, rows), draw.tensor(batch, steps, 3 * units)

    def piece(columns: int) -> tuple[int, int]:
        first = LANES * draw.to(columns // LANES - 1, 0)
        return first, first + LANES * draw.to((columns - first) // LANES)

    first, last = piece(2 * units)
    y = draw.tensor(rows, last - first + LANES * draw.to(2, 0))
    nothing = draw.to(3) == 1
    draw.run.direct(gru._recurrent_product, y, first, last, nothing, state, kernel)
    draw.run.direct(gru._gates, first, last, step, nothing, y, inputs, kernel, state, reset, gates, h)
    first, last = piece(units)
    y = draw.tensor(rows, last - first + LANES * draw.to(2, 0))
    draw.run.direct(gru._states, first, last, step, nothing, y, inputs, kernel, state, reset, gates, h)
    grad, carry, found = draw.tensor(batch, steps, units), draw.tensor(batch, units), draw.tensor(batch, steps, 3 * units)
    transposed = draw.tensor(3 * units, batch + -batch % LANES)
    y = draw.tensor(last - first + draw.of([0, draw.to(9)]), transposed.shape[1])
    back = first, last, step, y, grad, kernel, gates, h, carry, transposed, found
    draw.run.direct(gru._state_gradients, *back)
    draw.run.direct(gru._reset_gradients, *back)
    stop = 3 * units - draw.of([0, draw.to(units)])
    draw.run.direct(gru._product_back, y, first, last, draw.to(stop, 0), stop, kernel, transposed)
    counters, half, count, at_once = torch.zeros(steps, 2, 2, dtype=torch.int64), draw.to(1, 0), draw.to(700), draw.to(300)
    pieces = -(-count // at_once)
    counters[step, half] = draw.to(pieces, 0)  # that many are taken and done
    draw.run.direct(gru._piece, counters, step, half, 0, count, at_once)


def sinc_pool(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import sincnet

    taps = draw.to(30, 2)
    x = draw.tensor(draw.to(3), 2 * (taps - 1) + draw.of([draw.to(60, 3), draw.to(1500, 3)]), strided=True)
    tensors = draw.wanted(x, draw.tensor(10 * draw.to(3), taps, strided=True))
    backward(draw, sincnet.SincPool.apply(*tensors), tensors)
    x, half = (tensor.detach().contiguous() for tensor in tensors)
    size, pools, _ = sincnet.plan(x.shape[1], taps)
    y = x.new_zeros(len(x), len(half), (x.shape[1] - 2 * (taps - 1)) // 3)
    draw.run.direct(sincnet._sinc_pool, 0, len(x), x, *sincnet.sinc_plan(half, size, pools), y, None)


def sinc_parts(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import fourier, sincnet

    rows, steps = draw.to(20), draw.to(200)
    flat = [draw.tensor(rows, steps) for _ in range(3)]
    draw.run.direct(sincnet._correlate, *flat[:2], draw.tensor(rows), draw.tensor(rows), flat[2])
    draw.run.direct(sincnet._turned, draw.tensor(rows, 2, 16), draw.rng.permutation(rows), draw.tensor(rows, 2, 16))
    size, x = draw.of([64, 256]), draw.tensor(draw.to(9), draw.to(700))
    places, turns, z = fourier.order(size), fourier.turns(size, x.numpy().dtype), draw.tensor(size, 2, 16)
    draw.run.direct(sincnet._signals, x, draw.to(len(x)) - 1, draw.to(20, 0), draw.to(300), draw.to(3), places, turns, z)
    draw.run.direct(sincnet.spectra_of, z, places, draw.tensor(16, size, 2))


def transforms(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import fourier

    size, width = draw.of([16, 64, 256, 1024]), draw.to(5)
    x, turns = draw.tensor(size, 2, 16), fourier.turns(size, draw.tensor(1).numpy().dtype)
    draw.run.direct(fourier.filtered, torch.zeros(fourier.spaced(size), 2, 16, dtype=x.dtype), x, draw.tensor(size), turns)
    by_each = draw.tensor(size, 2), draw.tensor(size, 16)
    draw.run.direct(fourier.filtered, torch.zeros(fourier.spaced(size), 2, 16, dtype=x.dtype), *by_each, turns)
    x = draw.tensor(size, width, 2, 16)
    draw.run.direct(fourier.transform, x, turns)
    first, apart = 16 * (draw.to(size // 16) - 1), draw.of([1, 4])
    draw.run.direct(fourier._stages, x, turns, first, first + 16, apart, 16)
    draw.run.direct(fourier.complex_sums, draw.tensor(width, 2, 16), draw.tensor(2, width, 2, 16), draw.of([-1, 1]))
    sound = draw.tensor(size + draw.to(300))
    places = draw.rng.integers(0, len(sound) - size, 16, endpoint=True)
    shift = draw.of([0, 1]) * (len(sound) - size - int(places.max()))  # to the end of `sound`, every second time
    draw.run.direct(fourier.gather, x, draw.to(width) - 1, draw.to(1, 0), sound, places, shift, fourier.order(size))
    rows = draw.rng.permutation(draw.to(70))  # numbers for each lane, one behind the other in y, of rows in any order
    counts = draw.rng.integers(0, len(rows), 16, endpoint=True)
    y, shift = draw.tensor(int(counts.sum())), 16 * draw.to(1, 0)
    draw.run.direct(fourier.scatter, y, counts.cumsum() - counts, counts, draw.tensor(16 * len(rows) + shift), 16 * rows, shift)


def conv_pool(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import sincnet

    taps, channels, count = draw.to(6), 10 * draw.to(4), 10 * draw.to(3)
    shapes = (draw.to(18), channels, taps + draw.to(70, 2)), (count, channels, taps), (count,)
    tensors = draw.wanted(*(draw.tensor(*shape, strided=True) for shape in shapes))
    backward(draw, sincnet.ConvPool.apply(*tensors), tensors)
    x, weight, bias = (tensor.detach() for tensor in tensors)
    steps = (x.shape[2] - taps + 1) // 3
    x = torch.nn.functional.pad(x, (0, max(0, sincnet.needed(steps, taps) - x.shape[2]))).contiguous()
    y = x.new_zeros(len(x), count, steps)
    draw.run.direct(sincnet._conv_pool, 0, len(x), x, *sincnet.conv_plan(weight, bias), y, None)


def norm(draw: Draw) -> None:
    from denet_torch.fast.numba_cpu import sincnet

    rows, n = draw.to(12), draw.to(40)
    wider = n if draw.run.strides and draw.to(3) == 1 else 0
    gamma, beta = (draw.tensor(rows, n + wider)[:, :n] for _ in "12")
    tensors = draw.wanted(draw.tensor(draw.to(20), rows, n, strided=True), gamma, beta)
    backward(draw, sincnet.Norm.apply(*tensors, 0.2), tensors)


def has_tiles() -> bool:
    from denet_torch.fast.numba_cpu import amx

    return amx.AMX


def many_rows(draw: Draw) -> None:
    if not has_tiles():
        return
    from denet_torch.fast.numba_cpu import amx

    draw.dtype = torch.float32
    weight = draw.tensor(32 * draw.to(4), draw.to(1200), strided=True)
    amx.linear(draw.tensor(draw.to(70), weight.shape[1], strided=True), weight, draw.tensor(len(weight)))


def chunks(draw: Draw) -> None:
    if not has_tiles():
        return
    from denet_torch.fast.numba_cpu import chunks

    draw.dtype = torch.float32
    taps, filters, window, channels = draw.to(30, 2), draw.to(40), draw.to(6), draw.to(40)
    steps = draw.of([draw.to(40, window + 5), draw.to(400, window + 5)])
    pooled = (steps - window + 1) // 3
    shapes = (filters, steps), (filters, steps), (channels, filters, window), (channels,), (channels, pooled), (channels, pooled)
    x = draw.tensor(draw.to(5), 3 * steps + 2 * (taps - 1) + draw.to(2, 0), strided=True)
    weights = [draw.tensor(*shape, strided=True) for shape in shapes]
    chunks.conv_layers(x, draw.tensor(filters, taps, strided=True), 0.2, *weights)


def chunk_parts(draw: Draw) -> None:
    if not has_tiles():
        return
    from denet_torch.fast.numba_cpu import amx, chunks

    draw.dtype = torch.float32
    slope = np.float32(0.2)
    width, channels, steps, window = 16 * draw.to(4), draw.to(40), draw.to(300, 10), draw.to(6)
    sound, gamma, beta = (draw.tensor(steps + 1, width) for _ in range(3))
    draw.run.direct(chunks._moments, sound, draw.tensor(2, 2 * width))
    draw.run.direct(chunks._last_norm, sound, gamma, beta, slope, draw.tensor(draw.to(width), steps))
    out = draw.tensor((steps - window + 1) // 3 + 1, channels + -channels % 16)
    matrix = chunks.matrix_of(draw.tensor(channels, width, window))
    draw.run.direct(chunks._norm_conv_pool, sound, gamma, beta, slope, matrix, out)
    deep, block, (c_at, a_at, b_at) = draw.to(4), amx.BLOCK, (draw.to(20, 0) for _ in range(3))
    c_row, a_row, b_step = block + draw.to(20, 0), draw.to(70, 0), 2 * amx.PARTS * amx.NUMBERS + draw.to(20, 0)
    a_part = (block - 1) * a_row + deep * amx.DEEP
    c = draw.tensor(c_at + (block - 1) * c_row + block)
    a = draw.tensor(a_at + amx.PARTS * a_part).bfloat16().view(torch.int16)
    b = draw.tensor(b_at + (deep - 1) * b_step + 2 * amx.PARTS * amx.NUMBERS).bfloat16().view(torch.int16)
    x = draw.tensor(draw.to(100))
    places = (c_at, c_row), (a_at, a_row, a_part), (b_at, b_step), (draw.to(1000), draw.to(1000), draw.to(3, 0))
    # What is fetched may lie outside.
    draw.run.direct(tiles_of_parts(), c, places[0], a, places[1], b, places[2], deep, x, places[3])


@functools.cache
def tiles_of_parts():
    """A product of `amx`, compiled by itself."""
    from denet_torch.fast.numba_cpu import amx, product

    open_tiles, close_tiles, multiply = amx.open_tiles, amx.close_tiles, amx.product_of_parts(fetching=True)

    def tiles_of_parts(c, c_place, a, a_place, b, b_place, steps, x, x_place):
        open_tiles()
        multiply(c, c_place, a, a_place, b, b_place, steps, x, x_place)
        close_tiles()

    return product.numba.njit(nogil=True)(tiles_of_parts)


PRODUCTS = {  # the products that kernels are made of: raw addresses, which no array bounds
    "product": ("_add_to_few",),
    "waveform": ("_multiply", "_add"),
    "bands": ("_multiply", "_layer", "_masked", "_low_layer", "_add_1", "_add_7", "_add_9", "_add_11", "_add_12"),
    "gru": ("_multiply", "_add", "_add_to_one", "_add_back"),
    "fourier": (),
    "sincnet": ("_multiply", "_add"),
}


@functools.cache
def alone(module: str, name: str):
    """A product, compiled by itself, and what it was made with."""
    from denet_torch.fast.numba_cpu import product

    multiply = getattr(importlib.import_module(f"denet_torch.fast.numba_cpu.{module}"), name)

    def tiles(c, c_place, a, a_place, b, b_place, counts, mask):
        multiply(c, c_place, a, a_place, b, b_place, counts, mask)

    return product.numba.njit(nogil=True)(tiles), inspect.getclosurevars(multiply._defn).nonlocals


def tiles(module: str, name: str, draw: Draw) -> None:
    """A product of drawn strides, with arrays of exactly the numbers that its description names."""
    kernel, made = alone(module, name)
    height, pair = made["height"], 2 if draw.rounded else 1
    rows = height * draw.to(3) if made["added"] else height + draw.to(2 * height, 0)
    columns, outer, inner = 16 * draw.to(20), draw.to(4), draw.to(20)
    deep = -(-inner // pair)
    a_row, a_outer, a_inner = (draw.to(30, 0) for _ in range(3))
    c_row, b_row, (c_at, a_at, b_at) = columns + draw.to(20, 0), columns + draw.to(20, 0), (draw.to(20, 0) for _ in range(3))
    of_a = a_at + (rows - 1) * a_row + (outer - 1) * a_outer + (deep - 1) * a_inner * pair + pair
    of_b = b_at + (outer * deep - 1 + made["layer"]) * b_row * pair + columns * pair
    of_c = c_at + (rows - 1) * c_row + columns
    c, a, b, mask = (draw.tensor(size) for size in (of_c, of_a, of_b, of_c))
    if draw.rounded:
        a, b = (array.bfloat16().view(torch.int16) for array in (a, b))
        if draw.to(2) == 1:
            c, mask = (array.bfloat16().view(torch.int16) for array in (c, mask))
    places = (c_at, c_row), (a_at, a_row, a_outer, a_inner), (b_at, b_row), (rows, columns, outer, inner)
    draw.run.direct(kernel, c, places[0], a, places[1], b, places[2], places[3], mask)


DRAWS = {
    function.__name__: function
    for function in (
        few_rows, waveforms, band_convolutions, first_layer, correlations, gru, gru_parts, transforms, sinc_pool, sinc_parts,
        conv_pool, norm, many_rows, chunks, chunk_parts,
    )
}  # fmt: skip
DRAWS |= {f"{module}.{name}": functools.partial(tiles, module, name) for module in PRODUCTS for name in PRODUCTS[module]}


def modules() -> list[ModuleType]:
    tiles = ("amx", "chunks") if has_tiles() else ()
    return [importlib.import_module(f"denet_torch.fast.numba_cpu.{module}") for module in (*PRODUCTS, *tiles)]


def kernels() -> set[str]:
    """Names of all compiled functions."""
    return {name for module in modules() for name, value in vars(module).items() if is_jitted(value)}


def products() -> set[str]:
    """MODULE.NAME of all products."""
    made = [(module, name, getattr(value, "_defn", None)) for module in modules() for name, value in vars(module).items()]
    made = [(module, name) for module, name, defined in made if getattr(defined, "__name__", "") == "multiply"]
    return {f"{module.__name__.rpartition('.')[2]}.{name}" for module, name in made}


def only_avx2() -> None:
    """As on a processor without AVX-512; numba is told by NUMBA_CPU_NAME."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    features.update({name: False for name in features if name.startswith(("avx512", "amx"))})
    binding.get_host_cpu_features = lambda: features


def plant(module: str, function: str, old: str, new: str) -> None:
    """Alter the text of a function when its module is imported. numba keeps nothing that it compiles of it."""
    plain = SourceFileLoader.get_code

    def get_code(loader, name):
        if name != f"denet_torch.fast.numba_cpu.{module}":
            return plain(loader, name)
        before, start, rest = loader.get_source(name).partition(f"def {function}(")
        text, end, behind = rest.partition("\n\n\n")
        assert text.count(old) == 1, f"{function} no longer has {old!r} once: plant the fault anew"
        return compile(before + start + text.replace(old, new) + end + behind, "<planted>", "exec")

    SourceFileLoader.get_code = get_code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20, help="of each kernel")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--side", choices=("end", "start", "heap"), default="end")
    parser.add_argument("--draws", nargs="*", choices=DRAWS, default=list(DRAWS))
    parser.add_argument("--types", nargs="*", choices=TYPES, default=TYPES)
    parser.add_argument("--strides", action="store_true", help="arrays that do not lie in one piece, too")
    parser.add_argument("--avx2", action="store_true", help="as on a processor without AVX-512")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this call")
    parser.add_argument("--fault", nargs=4, metavar=("MODULE", "FUNCTION", "OLD", "NEW"), help="text to plant in the kernels")
    parser.add_argument("--status", help="file for the call that is begun")
    options = parser.parse_args()
    if options.avx2:
        only_avx2()
    if options.fault:
        plant(*options.fault)
    memory = Memory(options.side)
    if options.side != "heap":
        memory.give_to_numba()
    has_bfloat16 = modules()[0].BFLOAT16
    run = Run(memory, [name for name in options.types if name != "bfloat16" or has_bfloat16], options.strides)
    for module in modules():
        module.share_out = run.share_out
    status = os.open(options.status or os.devnull, os.O_WRONLY | os.O_CREAT)
    print(f"seed {options.seed}", flush=True)
    for name in options.draws:
        for number in range(options.calls) if options.only is None else [options.only]:
            threads = 1 + number % 4
            torch.set_num_threads(threads)
            said = f"--draws {name} --seed {options.seed} --side {options.side} --only {number}"
            os.pwrite(status, said.ljust(200).encode(), 0)
            try:
                DRAWS[name](Draw(run, options.seed, name, number))
            except AssertionError as error:
                print(f"{said}: {error}", flush=True)
                return 1
    print(json.dumps(run.counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
