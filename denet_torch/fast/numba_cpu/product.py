"""Products of matrices whose rows may overlap in memory, compiled by numba.

A window of a convolution is a row of a matrix whose rows overlap. Libraries of matrix products do not take such matrices; these
do, at the rate that they have for others, so that no windows are copied.
"""

from collections.abc import Callable

import numba
import numpy as np
import torch.nn.functional as F
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from ..operators import operator
from ..torch_ops.product import gradients, save_factors
from .threads import LANES, of_a_thread, share_out

FEATURES = binding.get_host_cpu_features()
BFLOAT16 = FEATURES.get("avx512bf16", False)  # else bfloat16 would have to be emulated
VECTOR_BYTES = 64 if FEATURES.get("avx512f", False) else 32 if FEATURES.get("avx", False) else 16
ROWS = 10 if FEATURES.get("avx512f", False) or FEATURES.get("neon", False) else 5  # of a tile: its sums fill the registers
LINE = 64  # bytes, of a core's cache
COLUMNS, DEEP = 256, 16  # of a kernel in one go: well within a core's cache


def compiled(function: Callable, **how) -> Callable:
    """Compiled when first called, for the next process as well if there is a folder to keep it in. `how`: numba's options."""
    how = {"nogil": True, "error_model": "numpy"} | how
    try:
        return numba.njit(cache=True, **how)(function)
    except RuntimeError:
        return numba.njit(**how)(function)


@compiled
def aligned(count, like):
    """So many zeros of the type of `like` from the beginning of a cache line on: what lies in two lines takes longer."""
    numbers = np.zeros(count + LINE // like.itemsize, like.dtype)
    start = -numbers.ctypes.data % LINE // like.itemsize
    return numbers[start : start + count]


def everywhere(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    """A vector with `scalar` in each of its lanes."""
    lane = ir.IntType(32)
    vector = builder.insert_element(ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined), scalar, lane(0))
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(lane, lanes), None))


class Bfloat16(ir.Type):
    """LLVM's type, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bfloat16)

    def __hash__(self) -> int:
        return hash(Bfloat16)


def product(height=ROWS, vectors=2, layer=False, masked=False, added=False, streamed=False):
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
    def multiply(_, c, c_place, a, a_place, b, b_place, counts, mask):
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
            words, pairs = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(Bfloat16(), 2 * lanes)
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

            def scalars_at(*offsets):
                """One number of a, or pair of them, in all lanes."""
                if not paired:
                    return everywhere(builder, builder.load(at(a, *offsets)), lanes)
                pair = builder.bitcast(at(a, *offsets), flag.as_pointer())
                return builder.bitcast(everywhere(builder, builder.load(pair, align=alignment), lanes), pairs)

            def store(y, *offsets):
                if rounded:
                    y = builder.bitcast(builder.fptrunc(y, ir.VectorType(Bfloat16(), lanes)), halves)
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

    return multiply


@intrinsic
def as_in(_, array, value):
    """The value as `array` holds it: float32 and float64 as it is, in int16 a bfloat16."""

    def generate(context, builder, signature, arguments):
        if signature.return_type != types.int16:
            return arguments[1]
        return builder.bitcast(builder.fptrunc(arguments[1], Bfloat16()), ir.IntType(16))

    return (types.int16 if array.dtype == types.int16 else value)(array, value), generate


_add_to_few = product(added=True, streamed=True)


@operator(
    "(Tensor x, Tensor kernel) -> Tensor",
    fake=lambda x, kernel: x.new_empty(len(x), kernel.shape[1]),
    save=save_factors,
    backward=gradients,
)
def few_rows(x: Tensor, kernel: Tensor) -> Tensor:
    """x @ kernel, (rows, in) @ (in, out) -> (rows, out); rows of the kernel, or a part of it, are contiguous, of whole LANES.

    The kernel is read once and fetched ahead, which oneDNN leaves undone; x is filled up with zeros to whole tiles.
    """
    kernel = kernel if kernel.stride(1) == 1 else kernel.contiguous()
    rows, columns, stride = len(x), kernel.shape[1], kernel.stride(0)
    x = F.pad(x, (0, 0, 0, -rows % ROWS))
    y = x.new_zeros(len(x), columns)
    numbers = kernel.as_strided((stride * (len(kernel) - 1) + columns,), (1,))
    # One call for each thread: to start one takes as long as to read megabytes.
    share_out(_few_rows, columns, of_a_thread(columns), x, numbers, stride, y)
    return y[:rows].clone() if rows % ROWS else y


@compiled
def _few_rows(first, last, x, kernel, stride, y):
    inner, columns = x.shape[1], y.shape[1]
    for column in range(first, last, COLUMNS):
        for row in range(0, inner, DEEP):
            counts = len(x), min(COLUMNS, last - column), 1, min(DEEP, inner - row)
            _add_to_few(y, (column, columns), x, (row, inner, 0, 1), kernel, (row * stride + column, stride), counts, y)
