"""The convolutions of waveforms and bands, the steps of a GRU and products of few rows on a CPU, compiled by numba.

A window of a convolution is a row of a matrix whose rows overlap in memory. Libraries of matrix products do not take such
matrices; `_product` does, at the rate that they have for others. So no windows are copied, and a band goes through the three
convolutions of the attention network within a core's cache. A GRU's kernel is read as it lies in memory, once a step. What is
computed is said in layers.py, by `convolve_waveform`, `BandConvolutions` and `gru_steps`, the tested twins.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from .layers import BandConvolutions, handed_back

FEATURES = binding.get_host_cpu_features()
BFLOAT16 = FEATURES.get("avx512bf16", False)  # else bfloat16 would have to be emulated
VECTOR_BYTES = 64 if FEATURES.get("avx512f", False) else 32 if FEATURES.get("avx", False) else 16
ROWS = 10 if FEATURES.get("avx512f", False) or FEATURES.get("neon", False) else 5  # of a tile: its sums fill the registers
LANES = 16  # arrays have a multiple of so many columns, no processor's vectors hold more
WIDTH, OUT = BandConvolutions.WIDTH, 16  # features, 30 and at last 10, filled up with zeros
FRAMES, BANDS = 2, 64  # in one go: their gradients are added up, then those of all
UNITS, DEEP = 256, 8  # of a GRU in one go, and rows of its kernel: well within a core's cache
DEEP_BACK = 1024  # columns of the kernel, which takes gradients back
SEQUENCES = 8 if ROWS == 10 else 4  # of a GRU, the rows of its tiles: batches are often multiples of them


def compiled(function: Callable) -> Callable:
    """Compiled when first called, for the next process as well if there is a folder to keep it in."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model="numpy")(function)


class _Bfloat16(ir.Type):
    """LLVM's type, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat16)

    def __hash__(self) -> int:
        return hash(_Bfloat16)


def _product(height=ROWS, vectors=2, layer=False, masked=False, added=False, streamed=False):
    """A compiled f(c, (at, row), a, (at, row, outer, inner), b, (at, row), (rows, columns, outer, inner), mask) makes c = a b.

    c[i, j] = sum over o < outer and k < inner of a[i, o, k] * b[o, k, j] for i < rows, `height` or more, and j < columns, a
    multiple of LANES. In memory, counted in numbers, a[i, o, k] lies at at + i * row + o * outer + k * inner, row (o, k) of b
    at at + (o * inner + k) * row, inner being the number of k. Arrays are contiguous and of one type, float32 or float64. A
    `layer` adds the row behind those of b to each of c's, and negative results become 0. If `masked`, results become 0 where
    `mask`, which lies as c does, is not above 0. If `added`, the product is added to c. If `streamed`, as many further rows of b
    are fetched into the cache, for the next call.

    Or a and b are bfloat16, seen as int16, and c is that, too, or float32, in which sums are made. Then two k at a time are
    multiplied, so that for even k, a[i, o, k + 1] lies behind a[i, o, k], which lies where it would if a pair were one number
    with strides `row` and `outer` in numbers and `inner` in pairs, and row (o, k) of b has b[o, k, j] and b[o, k + 1, j] side by
    side (`_rows`).

    A tile is `height` rows and some `vectors` of columns, held in registers over all k; the last rows are made twice if need be.
    """

    @intrinsic
    def product(_, c, c_place, a, a_place, b, b_place, counts, mask):
        def generate(context, builder, signature, arguments):
            def size(value):
                return ir.Constant(ir.IntType(64), value)

            def at(array, *offsets):
                for offset in offsets:
                    array = builder.gep(array, [offset])
                return array

            def array_type(n):
                return signature.args[n].dtype

            c, a, b, mask = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 2, 4, 7))
            numbers = [cgutils.unpack_tuple(builder, arguments[n]) for n in (1, 3, 5, 6)]
            (c_at, c_row), (a_at, a_row, a_outer, a_inner), (b_at, b_row), (rows, columns, outer, inner) = numbers
            c, a, b, mask = at(c, c_at), at(a, a_at), at(b, b_at), at(mask, c_at)
            paired, rounded = (array_type(n) == types.int16 for n in (2, 0))
            number = context.get_data_type(types.float32 if paired else array_type(0))
            bytes_each = context.get_abi_sizeof(number)
            lanes, alignment = VECTOR_BYTES // bytes_each, 2 if paired else bytes_each
            vector, halves = ir.VectorType(number, lanes), ir.VectorType(ir.IntType(16), lanes)
            words, pairs = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(_Bfloat16(), 2 * lanes)
            zero = ir.Constant(vector, None)
            flag, byte = ir.IntType(32), ir.IntType(8).as_pointer()
            fetch_type = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
            fetch = cgutils.get_or_insert_function(builder.module, fetch_type, "llvm.prefetch.p0i8")
            if paired:
                steps_type, name = ir.FunctionType(vector, [vector, pairs, pairs]), "llvm.x86.avx512bf16.dpbf16ps.512"
                inner = builder.ashr(builder.add(inner, size(1)), size(1))
                a_inner, b_row = (builder.shl(stride, size(1)) for stride in (a_inner, b_row))
            else:
                steps_type, name = ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f{8 * bytes_each}"
            multiply_add = cgutils.get_or_insert_function(builder.module, steps_type, name)

            def add_product(total, scalars, values):
                return builder.call(multiply_add, [total, scalars, values] if paired else [scalars, values, total])

            def load(array, *offsets, kind=vector):
                return builder.load(builder.bitcast(at(array, *offsets), kind.as_pointer()), align=alignment)

            def load_of_b(*offsets):
                return load(b, *offsets, kind=pairs if paired else vector)

            def load_as_c(array, *offsets):
                """Numbers of an array of c's type."""
                if not rounded:
                    return load(array, *offsets)
                numbers = builder.zext(load(array, *offsets, kind=halves), words)
                return builder.bitcast(builder.shl(numbers, ir.Constant(words, [16] * lanes)), vector)

            def everywhere(scalar):
                scalar = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined), scalar, flag(0))
                return builder.shuffle_vector(scalar, scalar, ir.Constant(words, None))

            def scalars_at(*offsets):
                """One number of a, or pair of them, in all lanes."""
                if not paired:
                    return everywhere(builder.load(at(a, *offsets)))
                pair = builder.bitcast(at(a, *offsets), flag.as_pointer())
                return builder.bitcast(everywhere(builder.load(pair, align=alignment)), pairs)

            def store(y, *offsets):
                if rounded:
                    y = builder.bitcast(builder.fptrunc(y, ir.VectorType(_Bfloat16(), lanes)), halves)
                builder.store(y, builder.bitcast(at(c, *offsets), y.type.as_pointer()), align=alignment)

            def tile(first_row, first_column, width):
                """`height` rows and `width` vectors of columns."""
                index = [builder.add(first_row, size(r)) for r in range(height)]
                column = [builder.add(first_column, size(v * lanes)) for v in range(width)]
                column_of_b = [builder.shl(place, size(1)) if paired else place for place in column]
                cells = [(r, v) for r in range(height) for v in range(width)]
                sums = {cell: cgutils.alloca_once(builder, vector) for cell in cells}  # LLVM makes them registers
                start = [zero] * width
                if layer:
                    bias = [load_of_b(builder.mul(builder.mul(outer, inner), b_row), column_of_b[v]) for v in range(width)]
                    ones = builder.bitcast(ir.Constant(words, [0x3F803F80] * lanes), pairs) if paired else None
                    start = [add_product(zero, ones, values) if paired else values for values in bias]
                for r, v in cells:
                    builder.store(start[v], sums[r, v])
                with cgutils.for_range(builder, outer) as o, cgutils.for_range(builder, inner) as k:
                    row_of_b = builder.mul(builder.add(builder.mul(o.index, inner), k.index), b_row)
                    values = [load_of_b(row_of_b, column_of_b[v]) for v in range(width)]
                    if streamed:
                        for v in range(width):
                            further = builder.bitcast(at(b, row_of_b, column_of_b[v], builder.mul(inner, b_row)), byte)
                            builder.call(fetch, [further, flag(0), flag(2), flag(1)])  # to be read, second level, data
                    from_column = builder.add(builder.mul(o.index, a_outer), builder.mul(k.index, a_inner))
                    for r in range(height):
                        scalars = scalars_at(from_column, builder.mul(index[r], a_row))
                        for v in range(width):
                            builder.store(add_product(builder.load(sums[r, v]), scalars, values[v]), sums[r, v])
                for r, v in cells:
                    y, place = builder.load(sums[r, v]), (builder.mul(index[r], c_row), column[v])
                    if added:
                        y = builder.fadd(y, load_as_c(c, *place))
                    if layer or masked:  # NaN stays NaN
                        open_ = builder.fcmp_unordered(">", load_as_c(mask, *place) if masked else y, zero)
                        y = builder.select(open_, y, zero)
                    store(y, *place)

            last = builder.sub(rows, size(height))
            whole = builder.sdiv(columns, size(vectors * lanes))
            left = builder.mul(whole, size(vectors * lanes))
            tiles = builder.sdiv(builder.add(rows, size(height - 1)), size(height))
            with cgutils.for_range(builder, tiles) as t:
                row = builder.mul(t.index, size(height))
                row = builder.select(builder.icmp_signed("<", row, last), row, last)
                with cgutils.for_range(builder, whole) as wide:
                    tile(row, builder.mul(wide.index, size(vectors * lanes)), vectors)
                if vectors * lanes > LANES:
                    with cgutils.for_range_slice(builder, left, columns, size(lanes), left.type) as (column, _):
                        tile(row, column, 1)
            return context.get_dummy_value()

        return types.void(c, c_place, a, a_place, b, b_place, counts, mask), generate

    return product


@intrinsic
def _as_in(_, array, value):
    """The value as `array` holds it: float32 and float64 as it is, in int16 a bfloat16."""

    def generate(context, builder, signature, arguments):
        if signature.return_type != types.int16:
            return arguments[1]
        return builder.bitcast(builder.fptrunc(arguments[1], _Bfloat16()), ir.IntType(16))

    return (types.int16 if array.dtype == types.int16 else value)(array, value), generate


_multiply, _layer, _masked = _product(), _product(layer=True), _product(masked=True)
_low_layer = _product(7 if ROWS == 10 else 4, layer=True)  # where rows are few or sums short
_add, _add_to_one = _product(SEQUENCES, added=True, streamed=True), _product(1, 2 * SEQUENCES, added=True)
_add_to_few, _add_back = _product(added=True, streamed=True), _product(SEQUENCES, added=True)
# Of gradients of weights, which have 11 or 7 * WIDTH rows, in bfloat16 one more; a row in two tiles would be added twice.
_add_1, _add_7, _add_9, _add_11, _add_12 = (_product(height, 2 if ROWS == 10 else 1, added=True) for height in (1, 7, 9, 11, 12))


def convolve(x: Tensor, filters: Tensor) -> Tensor:
    """Convolution ("same") of waveforms x (frames, steps) with filters (filters, taps) -> (frames, filters, steps)."""
    y = x.new_empty(len(x), len(filters), x.shape[1])
    _share_out(_convolve, len(x), FRAMES, _filled(x, filters.shape[1]), filters.contiguous(), y)
    return y


def filter_gradients(x: Tensor, grad: Tensor, taps: int) -> Tensor:
    """Gradients (filters, taps) of the filters of `convolve`, from that of its result (frames, filters, steps)."""
    found = _share_out(_filter_gradients, len(x), FRAMES, _filled(x, taps), grad.contiguous(), taps + -taps % LANES)
    return sum(torch.from_numpy(part) for part in found)[:, :taps]


def _filled(x: Tensor, taps: int) -> Tensor:
    """Waveforms with zeros before and after them, as many as windows of `taps` samples and whole vectors of them need."""
    return F.pad(x, (taps // 2, taps // 2 + 2 * LANES))


@compiled
def _convolve(first, last, x, filters, y):
    count, taps = filters.shape
    steps = y.shape[2]
    columns = steps + -steps % LANES
    one = np.empty((count, columns), x.dtype)
    for frame in range(first, last):
        out = y[frame] if columns == steps else one
        _multiply(out, (0, columns), filters, (0, taps, 0, 1), x[frame], (0, 1), (count, columns, 1, taps), out)
        if columns != steps:
            y[frame] = one[:, :steps]


@compiled
def _filter_gradients(first, last, x, grad, columns):
    _, count, steps = grad.shape
    total, one = np.zeros((count, columns), x.dtype), np.empty((count, columns), x.dtype)
    for frame in range(first, last):
        _multiply(one, (0, columns), grad[frame], (0, steps, 0, 1), x[frame], (0, 1), (count, columns, 1, steps), one)
        total += one
    return total


def takes(x: torch.dtype, weights: torch.dtype) -> bool:
    """Whether `band_convolutions` takes bands and weights of these types: the same, or float32 and bfloat16."""
    return x == weights or (x, weights) == (torch.float32, torch.bfloat16) and BFLOAT16


def band_convolutions(
    x: Tensor, conv_steps: int, room: int, m1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor
) -> tuple[Tensor, Tensor]:
    """`BandConvolutions` of bands x (rows, steps) -> (rows, conv_steps, 10); weights as `BandConvolutions.kernels` has them.

    If those are bfloat16, so is what is between the layers. Returned as well are the second convolution's outputs of as many rows
    as `room` numbers hold.
    """
    y, matrices = x.new_empty(len(x), conv_steps, 10), _matrices(m1, w2, b2, w3, b3)
    each = (3 * conv_steps + 6) * WIDTH
    kept = matrices[1].new_empty(min(room // each, len(x)), each)
    _share_out(_forward, len(x), BANDS, x.contiguous(), *matrices, kept, y)
    return y, kept


def band_gradients(
    grad: Tensor,
    so_far: Tensor,
    y: Tensor,
    x: Tensor,
    kept: Tensor,
    m1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    to_weights: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x, m1, w2 (out, in, 7), b2, w3 (out, in, 7) and b3, those of the weights 0 unless `to_weights`.

    `grad` (rows, conv_steps, 10) is that of y, which `band_convolutions` made of x and what is `kept` with it; `so_far` is added
    to the gradient of x.
    """
    to_x = F.pad(m1[:11].T.unflatten(0, (3, WIDTH))[:, :30], (0, 5)).flatten(0, 1)  # (place in group * in, samples)
    to_h1 = handed_back(w2[:30])
    # The third matrix for a group's second and third step, which are read by two steps only.
    backwards = [_rows(matrix) for matrix in (handed_back(w3), to_h1, to_h1[30:, WIDTH:], to_x)]
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    matrices = _matrices(m1, w2, b2, w3, b3)[:2]
    paired = True if m1.dtype == torch.bfloat16 else None  # what numba sees is None it leaves out, with types that would not fit
    arguments = x.contiguous(), *matrices, *backwards, grad.contiguous(), so_far.contiguous(), y, kept, grad_x, to_weights, paired
    parts = _share_out(_backward, len(x), BANDS, *arguments)
    gm1, *others = (sum(torch.from_numpy(part) for part in found) for found in zip(*parts, strict=True))
    (gw2, gb2), (gw3, gb3) = ((found[:-1].unflatten(0, (7, WIDTH)).permute(2, 1, 0), found[-1]) for found in others)
    return grad_x, gm1, gw2, gb2, gw3[:10], gb3[:10]


def _matrices(m1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> list[Tensor]:
    """Each layer's weights (window, features), the biases as last row."""
    matrices = [_rows(m1[:11], m1[11])]
    for w, b in ((w2, b2), (w3, b3)):
        more = -len(w) % LANES
        matrices.append(_rows(F.pad(w[:, :30, 0].permute(2, 1, 0).flatten(0, 1), (0, more)), F.pad(b, (0, more))))
    return matrices


def _rows(matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """A matrix and a row of biases as `_product` takes them: those of bfloat16 in pairs of rows, as int16."""
    if matrix.dtype != torch.bfloat16:
        return (matrix if bias is None else torch.cat([matrix, bias[None]])).contiguous()
    matrix = F.pad(matrix, (0, 0, 0, len(matrix) % 2))
    if bias is not None:
        matrix = torch.cat([matrix, bias[None], torch.zeros_like(bias)[None]])
    return matrix.unflatten(0, (-1, 2)).transpose(1, 2).flatten(1).view(torch.int16)  # (rows / 2, columns * 2)


def _share_out(function: Callable, count: int, at_once: int, *arguments) -> list:
    """function(first, last, *arguments) for `at_once` of `count` after the other, on as many threads as PyTorch uses.

    The same go together on any number of threads, so that sums do not depend on it.
    """
    arrays = [argument.numpy() if isinstance(argument, Tensor) else argument for argument in arguments]
    starts = range(0, count, at_once)
    found, to_do, errors = [None] * len(starts), iter(enumerate(starts)), []

    def work(_=None) -> None:
        try:
            for i, first in to_do:
                found[i] = function(first, min(first + at_once, count), *arrays)
        except BaseException as error:  # a thread of OpenMP's has nobody to raise it to
            errors.append(error)

    threads = min(torch.get_num_threads(), len(starts))
    if threads == 1:
        work()
    elif _parallel:
        _parallel(_Work(work), None, threads, 0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(threads):
                pool.submit(work)
    if errors:
        raise errors[0]
    return found


_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _openmp() -> Callable | None:
    """What compilers call for a parallel region of GNU's OpenMP, in the library that PyTorch has loaded; None if it has not.

    So compiled functions run on the threads of PyTorch's own operations. Those wait busily for milliseconds for the next one,
    on the cores that other threads would need; kept from it they wake too slowly for small operations.
    """
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None
    if parallel is not None:
        parallel.argtypes, parallel.restype = [_Work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel


def _leave_openmp() -> None:
    """A forked process has none of the threads, and the library waits for them."""
    global _parallel
    _parallel = None


_parallel = _openmp()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_openmp)


def few_rows(x: Tensor, kernel: Tensor) -> Tensor:
    """x @ kernel, (rows, in) @ (in, out) -> (rows, out); rows of the kernel, or a part of it, are contiguous, of whole LANES.

    The kernel is read once and fetched ahead, which oneDNN leaves undone; x is filled up with zeros to whole tiles.
    """
    rows, columns, stride = len(x), kernel.shape[1], kernel.stride(0)
    x = F.pad(x, (0, 0, 0, -rows % ROWS))
    y = x.new_zeros(len(x), columns)
    numbers = kernel.as_strided((stride * (len(kernel) - 1) + columns,), (1,))
    # One call for each thread: to start one takes as long as to read megabytes.
    _share_out(_few_rows, columns, _of_a_thread(columns), x, numbers, stride, y)
    return y[:rows]


def _of_a_thread(columns: int) -> int:
    """So many of the columns that each thread has one piece, in whole LANES."""
    return -(-columns // (torch.get_num_threads() * LANES)) * LANES


@compiled
def _few_rows(first, last, x, kernel, stride, y):
    inner, columns = x.shape[1], y.shape[1]
    for column in range(first, last, UNITS):
        for row in range(0, inner, 2 * DEEP):
            counts = len(x), min(UNITS, last - column), 1, min(2 * DEEP, inner - row)
            _add_to_few(y, (column, columns), x, (row, inner, 0, 1), kernel, (row * stride + column, stride), counts, y)


def gru_states(inputs: Tensor, recurrent_kernel: Tensor) -> tuple[Tensor, Tensor]:
    """`gru_steps` of inputs (batch, steps, 3 * units): the gates z, r and hh as the inputs lie, and the states from 0 on.

    The states are (batch, steps + 1, units), `units` a multiple of LANES.
    """
    batch, steps, _ = inputs.shape
    units = len(recurrent_kernel)
    gates, h = torch.empty_like(inputs, memory_format=torch.contiguous_format), inputs.new_zeros(batch, steps + 1, units)
    state, reset = inputs.new_zeros(2, units, 1 if batch == 1 else batch + -batch % SEQUENCES)  # transposed, for whole tiles
    counters = torch.zeros(steps, 2, 2, dtype=torch.int64)
    arguments = counters, inputs.contiguous(), recurrent_kernel.contiguous(), state, reset, gates, h
    at_once = [UNITS, UNITS]
    if batch == 1:  # waits for memory: a thread reads pieces as long as can be, processors foresee where they go on
        at_once = [max(UNITS, _of_a_thread(columns)) for columns in (2 * units, units)]
    _share_out(_gru, torch.get_num_threads(), 1, tuple(at_once), *arguments)
    return gates, h


@intrinsic
def _raise_count(_, counters, step, half, which, by):
    """counters[step, half, which] += by, in one go for all threads; the number before."""

    def generate(context, builder, signature, arguments):
        counters = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        step, half, which, by = arguments[1:]
        index = builder.add(builder.shl(step, step.type(2)), builder.add(builder.shl(half, half.type(1)), which))
        return builder.atomic_rmw("add", builder.gep(counters, [index]), by, "seq_cst")

    return types.int64(counters, *[types.int64] * 4), generate


@compiled
def _piece(counters, step, half, done, count, at_once):
    """The next piece (first, last) of `count` for a thread that has `done` one, or none; empty when all threads are through."""
    pieces = -(-count // at_once)
    _raise_count(counters, step, half, 1, done)
    piece = _raise_count(counters, step, half, 0, 1)
    if piece >= pieces:
        while _raise_count(counters, step, half, 1, 0) < pieces:
            pass
    return piece * at_once, min((piece + 1) * at_once, count)


@compiled
def _gru(_, __, at_once, counters, inputs, kernel, state, reset, gates, h):
    units, rows = state.shape
    y = np.empty((rows, max(at_once)), state.dtype)
    for step in range(inputs.shape[1]):
        for half in range(2):
            columns, width = (2 - half) * units, at_once[half]
            first, last = _piece(counters, step, half, 0, columns, width)
            while first < last:
                if half == 0:
                    _gates(first, last, step, y, inputs, kernel, state, reset, gates, h)
                else:
                    _states(first, last, step, y, inputs, kernel, state, reset, gates, h)
                first, last = _piece(counters, step, half, 1, columns, width)


@compiled
def _gates(first, last, step, y, inputs, kernel, state, reset, gates, h):
    units, number = len(kernel), inputs.dtype.type
    _recurrent_product(y, first, last, step, state, kernel)
    for row in range(len(inputs)):
        for column in range(first, last):
            gate = number(0.2) * (inputs[row, step, column] + y[row, column - first]) + number(0.5)
            gates[row, step, column] = number(0) if gate < 0 else number(1) if gate > 1 else gate
        for unit in range(max(first - units, 0), last - units):
            reset[unit, row] = gates[row, step, units + unit] * h[row, step, unit]


@compiled
def _states(first, last, step, y, inputs, kernel, state, reset, gates, h):
    units, number = len(kernel), inputs.dtype.type
    _recurrent_product(y, 2 * units + first, 2 * units + last, step, reset, kernel)
    for row in range(len(inputs)):
        for unit in range(first, last):
            gates[row, step, 2 * units + unit] = _tanh(inputs[row, step, 2 * units + unit] + y[row, unit - first])
        for unit in range(first, last):
            z, hh = gates[row, step, unit], gates[row, step, 2 * units + unit]
            h[row, step + 1, unit] = z * h[row, step, unit] + (number(1) - z) * hh
        for unit in range(first, last):
            state[unit, row] = h[row, step + 1, unit]


@compiled
def _tanh(x):
    """Within rounding, and vectorised, as `math.tanh` is not: e / (e + 2), where e = exp(2 x) - 1 and 2 x = n ln 2 + r."""
    y = 2 * min(max(np.float64(x), -20.0), 20.0)
    n = np.floor(y * 1.4426950408889634 + 0.5)
    r = (y - n * 0.6931471803691238) - n * 1.9082149292705877e-10  # ln 2 in two parts
    series = 1.0
    for k in range(14, 1, -1):
        series = 1.0 + series * r * (1.0 / k)
    power = np.int64((np.int64(np.int32(n)) + 1023) << 52).view(np.float64)  # 2^n
    e = power * series * r + (power - 1.0)
    return e / (e + 2.0)


@compiled
def _recurrent_product(y, first, last, step, state, kernel):
    """y[:, : last - first] = `state`, transposed, times those columns of the kernel. The state before the first step is 0."""
    units, rows = state.shape
    width = y.shape[1]
    y[:] = 0
    if step == 0:
        return
    deep = DEEP if rows > SEQUENCES else 2 * DEEP  # rows of one tile leave room in the cache
    for unit in range(0, units, deep):
        counts = rows, last - first, 1, min(deep, units - unit)
        from_state, from_kernel = (unit * rows, 1, 0, rows), (unit * 3 * units + first, 3 * units)
        if rows == 1:
            _add_to_one(y, (0, width), state, from_state, kernel, from_kernel, counts, y)
        else:
            _add(y, (0, width), state, from_state, kernel, from_kernel, counts, y)


def gru_gradients(grad: Tensor, recurrent_kernel: Tensor, gates: Tensor, h: Tensor) -> Tensor:
    """Gradients of the inputs of `gru_states`, as they lie, from that of the states after each step (batch, steps, units)."""
    batch, steps, units = grad.shape
    carry, found = grad.new_zeros(batch, units), torch.empty_like(gates)
    transposed = grad.new_zeros(3 * units, batch + -batch % LANES)  # those found for one step, in whole vectors
    counters = torch.zeros(steps, 2, 2, dtype=torch.int64)
    arguments = counters, grad.contiguous(), recurrent_kernel.contiguous(), gates, h, carry, transposed, found
    _share_out(_gru_backward, torch.get_num_threads(), 1, *arguments)
    return found


@compiled
def _gru_backward(_, __, counters, grad, kernel, gates, h, carry, transposed, found):
    y = np.empty((UNITS, transposed.shape[1]), grad.dtype)
    for step in range(grad.shape[1] - 1, -1, -1):
        for half in range(2):
            first, last = _piece(counters, step, half, 0, len(kernel), UNITS)
            while first < last:
                if half == 0:
                    _state_gradients(first, last, step, y, grad, kernel, gates, h, carry, transposed, found)
                else:
                    _reset_gradients(first, last, step, y, grad, kernel, gates, h, carry, transposed, found)
                first, last = _piece(counters, step, half, 1, len(kernel), UNITS)


@compiled
def _state_gradients(first, last, step, y, grad, kernel, gates, h, carry, transposed, found):
    """Those of a step's z and hh, from its state's, for which what the next step hands back by z and r is still to be added."""
    units, number = len(kernel), grad.dtype.type
    _product_back(y, first, last, 0, 2 * units if step < grad.shape[1] - 1 else 0, kernel, transposed)
    for row in range(len(grad)):
        for unit in range(first, last):
            z, hh = gates[row, step, unit], gates[row, step, 2 * units + unit]
            slope = number(0.2) if z > 0 and z < 1 else number(0)
            dh = grad[row, step, unit] + carry[row, unit] + y[unit - first, row]
            carry[row, unit] = dh * z
            found[row, step, unit] = dh * (h[row, step, unit] - hh) * slope
            found[row, step, 2 * units + unit] = dh * (number(1) - z) * (number(1) - hh * hh)
        for unit in range(2 * units + first, 2 * units + last):
            transposed[unit, row] = found[row, step, unit]


@compiled
def _reset_gradients(first, last, step, y, grad, kernel, gates, h, carry, transposed, found):
    """Those of a step's r, from hh's; only now has nobody to read the next step's of z and r any more."""
    units, number = len(kernel), grad.dtype.type
    _product_back(y, first, last, 2 * units, 3 * units if step > 0 else 2 * units, kernel, transposed)  # the first state is 0
    for row in range(len(grad)):
        for unit in range(first, last):
            r, d_reset = gates[row, step, units + unit], y[unit - first, row]
            slope = number(0.2) if r > 0 and r < 1 else number(0)
            carry[row, unit] += d_reset * r
            found[row, step, units + unit] = d_reset * h[row, step, unit] * slope
        for unit in range(first, last):
            transposed[unit, row] = found[row, step, unit]
            transposed[units + unit, row] = found[row, step, units + unit]


@compiled
def _product_back(y, first, last, start, stop, kernel, transposed):
    """y[: last - first] = those rows of the kernel, its columns from `start` to `stop`, times those rows of `transposed`."""
    width, columns = kernel.shape[1], y.shape[1]
    y[:] = 0
    for column in range(start, stop, DEEP_BACK):
        counts, from_kernel = (last - first, columns, 1, min(DEEP_BACK, stop - column)), (first * width + column, width, 0, 1)
        _add_back(y, (0, columns), kernel, from_kernel, transposed, (column * columns, columns), counts, y)


@compiled
def _first_layer(x, m1, window, h1):
    """The first convolution of one band; `window` gets its samples, filled up with zeros."""
    groups = len(h1) // (3 * WIDTH)
    for i in range(min(len(x), len(window))):
        window[i] = _as_in(window, x[i])
    _low_layer(h1, (0, 3 * WIDTH), window, (0, 6, 0, 1), m1, (0, 3 * WIDTH), (groups, 3 * WIDTH, 1, 11), h1)


@compiled
def _second_layer(h1, m2, h2):
    """The second convolution; two steps at the end are left as they are: all that they do is to mask gradients that are 0."""
    steps = len(h2) // WIDTH - 2
    _layer(h2, (0, WIDTH), h1, (0, 3 * WIDTH, WIDTH, 1), m2, (0, WIDTH), (steps, WIDTH, 7, 30), h2)


@compiled
def _forward(first, last, x, m1, m2, m3, kept, y):
    conv_steps = y.shape[1]
    groups = 3 * conv_steps + 8
    window = np.zeros(6 * groups + LANES, m1.dtype)  # the last group reads 11, a pair or a vector more
    h1, not_kept = np.empty(groups * 3 * WIDTH, m1.dtype), np.zeros((groups - 2) * WIDTH, m1.dtype)
    out = np.empty((conv_steps, OUT), x.dtype)
    for row in range(first, last):
        h2 = kept[row] if row < len(kept) else not_kept
        _first_layer(x[row], m1, window, h1)
        _second_layer(h1, m2, h2)
        _low_layer(out, (0, OUT), h2, (0, 3 * WIDTH, WIDTH, 1), m3, (0, OUT), (conv_steps, OUT, 7, 30), out)
        y[row] = out[:, :10]


@compiled
def _backward(first, last, x, m1, m2, to_h2, to_h1, to_others, to_x, grad, so_far, y, kept, grad_x, to_weights, paired):
    conv_steps = grad.shape[1]
    groups, width = 3 * conv_steps + 8, 3 * WIDTH
    steps = groups - 2
    window = np.zeros(6 * groups + LANES, m1.dtype)  # the last group reads 11, a pair or a vector more
    h1, not_kept = np.empty(groups * width, m1.dtype), np.zeros(steps * WIDTH, m1.dtype)
    # Gradients, those of outputs between two rows of zeros, for steps that read beyond the ends.
    g3, g2 = np.zeros((conv_steps + 4) * OUT, m1.dtype), np.zeros((steps + 4) * WIDTH, m1.dtype)
    inside2, inside3 = g2[2 * WIDTH : -2 * WIDTH], g3[2 * OUT : -2 * OUT]
    g1, g0 = np.empty(groups * width, m1.dtype), np.empty((groups, 16), x.dtype)
    found = np.empty(6 * groups + 6, x.dtype)
    gm1, gw2 = np.zeros((12, width), x.dtype), np.zeros((7 * WIDTH + 1, WIDTH), x.dtype)
    gw3 = np.zeros((7 * WIDTH + 1, OUT), x.dtype)
    ones = np.ones(1, x.dtype)
    most = (groups + 1) // 2
    pairs_a, pairs_b = np.empty(most * (7 * WIDTH + LANES), np.int32), np.empty(most * width, np.int32)
    for row in range(first, last):
        h2 = kept[row] if row < len(kept) else not_kept
        _first_layer(x[row], m1, window, h1)
        if row >= len(kept):
            _second_layer(h1, m2, h2)
        for step in range(conv_steps):
            for i in range(10):
                inside3[step * OUT + i] = _as_in(g3, grad[row, step, i] if not y[row, step, i] <= 0 else x.dtype.type(0))
        _masked(inside2, (0, width), g3, (0, OUT, OUT, 1), to_h2, (0, width), (conv_steps + 2, width, 3, 10), h2)
        _masked(g1, (0, width), g2, (0, WIDTH, WIDTH, 1), to_h1, (0, width), (groups, WIDTH, 3, 30), h1)
        place, others = (WIDTH, width), (groups, 2 * WIDTH, 2, 30)
        _masked(g1, place, g2, (WIDTH, WIDTH, WIDTH, 1), to_others, (0, 2 * WIDTH), others, h1)
        _multiply(g0, (0, 16), g1, (0, width, WIDTH, 1), to_x, (0, 16), (groups, 16, 3, 30), g0)
        found[:] = 0
        for group in range(groups):
            for sample in range(11):
                found[6 * group + sample] += g0[group, sample]
        count = min(len(found), grad_x.shape[1])
        grad_x[row] = so_far[row]
        for i in range(count):
            grad_x[row, i] += found[i]
        if to_weights:
            _add_correlation(gm1, ones, window, 6, g1, pairs_a, pairs_b, paired)
            _add_correlation(gw2, ones, h1, width, inside2, pairs_a, pairs_b, paired)
            _add_correlation(gw3, ones, h2, width, inside3, pairs_a, pairs_b, paired)
    return gm1, gw2, gw3


@compiled
def _add_correlation(total, ones, a, a_row, b, pairs_a, pairs_b, paired):
    """total[i] += sum over the rows of b, each times a[row * a_row + i]; to the last of `total`, the sum of the rows."""
    last, columns = len(total) - 1, total.shape[1]
    rows = len(b) // columns
    if paired is None:
        counts = last, columns, 1, rows
        if last == 11:
            _add_11(total, (0, columns), a, (0, 1, 0, a_row), b, (0, columns), counts, total)
        else:
            _add_7(total, (0, columns), a, (0, 1, 0, a_row), b, (0, columns), counts, total)
        _add_1(total, (last * columns, columns), ones, (0, 0, 0, 0), b, (0, columns), (1, columns, 1, rows), total)
    else:
        width = last + LANES - last % LANES  # one more at least
        _pair_rows(pairs_a, width, a, a_row, last, rows)
        pairs_a[last : (rows + 1) // 2 * width : width] = 0x3F803F80  # two ones
        _pair_rows(pairs_b, columns, b, columns, columns, rows)
        counts, paired_a, paired_b = (last + 1, columns, 1, rows), pairs_a.view(np.int16), pairs_b.view(np.int16)
        if last == 11:
            _add_12(total, (0, columns), paired_a, (0, 2, 0, width), paired_b, (0, columns), counts, total)
        else:
            _add_9(total, (0, columns), paired_a, (0, 2, 0, width), paired_b, (0, columns), counts, total)


@intrinsic
def _pair_rows(_, pairs, width, rows, row, columns, count):
    """Pairs of bfloat16 from `count` rows, `columns` of rows[row * i :], each two side by side, the last with zeros if odd.

    They lie in rows of `width`, which are written to the end of a whole number of LANES.
    """

    def generate(context, builder, signature, arguments):
        pairs, rows = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 2))
        (width, row, columns, count), one = (arguments[n] for n in (1, 3, 4, 5)), ir.Constant(ir.IntType(64), 1)
        words, halves = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.IntType(16), LANES)

        def load(place):
            vector = builder.load(builder.bitcast(builder.gep(rows, [place]), halves.as_pointer()), align=2)
            return builder.zext(vector, words)

        with cgutils.for_range(builder, builder.ashr(builder.add(count, one), one)) as pair:
            first = builder.shl(pair.index, one)
            second = builder.add(first, one)
            is_row = builder.icmp_signed("<", second, count)
            with cgutils.for_range_slice(builder, one.type(0), columns, one.type(LANES), one.type) as (column, _):
                low = load(builder.add(builder.mul(first, row), column))
                high = load(builder.add(builder.mul(builder.select(is_row, second, first), row), column))
                high = builder.select(is_row, builder.shl(high, ir.Constant(words, [16] * LANES)), ir.Constant(words, None))
                to = builder.gep(pairs, [builder.add(builder.mul(pair.index, width), column)])
                builder.store(builder.or_(low, high), builder.bitcast(to, words.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(pairs, width, rows, row, columns, count), generate
