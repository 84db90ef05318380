"""Products of float32 matrices in a processor's tiles (Intel's AMX), which multiply bfloat16.

A float32 number is the sum of three bfloat16 ones, its parts. Of the nine products of the parts of two numbers the six largest
are made, what is left out is below 2^-24 of the product; and a tile adds up 32 products before they are rounded to what it holds.
So these sums are as near to float64 as those of float32.
"""

import ctypes
import platform
import sys

import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from .fourier import gather_vectors
from .product import FEATURES, Bfloat16, aligned, compiled, everywhere
from .threads import of_a_thread, share_out

PARTS = 3
PAIRS = (0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0)  # parts that are multiplied; from one to the next, one stays loaded
TILE, DEEP = 16, 32  # rows of a tile, and bfloat16 in each
BLOCK = 2 * TILE  # rows and columns that are made together
NUMBERS = TILE * DEEP  # in a tile


def _permitted() -> bool:
    """Whether the processor has tiles, and the system lets this process use them."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    if not (FEATURES.get("amx-bf16", False) and FEATURES.get("avx512bf16", False)):
        return False
    arch_prctl, request, tiles = 158, 0x1023, 18  # ARCH_REQ_XCOMP_PERM: registers are so large that one has to ask for them
    return ctypes.CDLL(None).syscall(arch_prctl, request, tiles) == 0


AMX = _permitted()


def _call(builder: ir.IRBuilder, name: str, *arguments) -> None:
    """An instruction on tiles: numbers of Python's are those of tiles."""
    values = [ir.Constant(ir.IntType(8), a) if isinstance(a, int) else a for a in arguments]
    kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), values)


def _fetch(builder: ir.IRBuilder, place: ir.Value) -> None:
    """A cache line, into the second level."""
    flag = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [place.type, flag, flag, flag])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8"), [place, flag(0), flag(2), flag(1)])


@intrinsic
def open_tiles(_):
    """Eight tiles of TILE rows of 64 bytes each, for this thread, until `close_tiles`."""

    def generate(context, builder, signature, arguments):
        shapes = bytes([1, 0, *[0] * 14, *[64, 0] * 8, *[0] * 16, *[TILE] * 8, *[0] * 8])
        shapes = cgutils.global_constant(builder, "tiles", cgutils.make_bytearray(shapes))
        _call(builder, "ldtilecfg", builder.bitcast(shapes, cgutils.voidptr_t))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def close_tiles(_):
    """Afterwards a thread has no tiles, which the system would have to save."""

    def generate(context, builder, signature, arguments):
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def product_of_parts(fetching: bool = False):
    """A compiled f(c, (at, row), a, (at, row, part), b, (at, step), steps, x, (at, row, rows)) makes c = a b.

    c[i, j] = sum over k < DEEP * steps of a[i, k] * b[k, j] for i, j < BLOCK. c is float32; parts of a and b are bfloat16, seen
    as int16. In memory, counted in numbers, part n of a[i, k] lies at at + n * part + i * row + k; rows of b from DEEP * s on lie
    from at + s * step on, as `columns_in_parts` has them in two tiles. If `fetching`, so many rows of x, DEEP * steps numbers of
    each, are fetched into the cache meanwhile.
    """

    @intrinsic
    def multiply_parts(_, c, c_place, a, a_place, b, b_place, steps, x, x_place):
        def generate(context, builder, signature, arguments):
            c, a, b, x = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 2, 4, 7))
            places = (cgutils.unpack_tuple(builder, arguments[n]) for n in (1, 3, 5, 8))
            (c_at, c_row), (a_at, a_row, a_part), (b_at, b_step), (x_at, x_row, x_rows) = places
            corners = [(r, v) for r in range(2) for v in range(2)]

            def number(value):
                return ir.Constant(ir.IntType(64), value)

            def at(array, *offsets):
                for offset in offsets:
                    array = builder.gep(array, [offset])
                return builder.bitcast(array, cgutils.voidptr_t)

            for r, v in corners:
                _call(builder, "tilezero", 2 * r + v)
            with cgutils.for_range(builder, arguments[6]) as step:
                a_of_step, b_of_step = builder.mul(step.index, number(DEEP)), builder.mul(step.index, b_step)
                if fetching:
                    with cgutils.for_range(builder, x_rows) as row:
                        for half in range(2):
                            _fetch(builder, at(x, x_at, builder.mul(row.index, x_row), a_of_step, number(half * HALF)))
                loaded = None, None
                for i, j in PAIRS:
                    for n in range(2):
                        if i != loaded[0]:
                            place = at(a, a_at, a_of_step, builder.mul(a_part, number(i)), builder.mul(a_row, number(n * TILE)))
                            _call(builder, "tileloadd64", 4 + n, place, builder.mul(a_row, number(2)))
                        if j != loaded[1]:
                            place = at(b, b_at, b_of_step, number((n * PARTS + j) * NUMBERS))
                            _call(builder, "tileloadd64", 6 + n, place, number(2 * DEEP))
                    loaded = i, j
                    for r, v in corners:
                        _call(builder, "tdpbf16ps", 2 * r + v, 4 + r, 6 + v)
            for r, v in corners:
                place = at(c, c_at, builder.mul(c_row, number(r * TILE)), number(v * TILE))
                _call(builder, "tilestored64", 2 * r + v, place, builder.mul(c_row, number(4)))
            return context.get_dummy_value()

        return types.void(c, c_place, a, a_place, b, b_place, steps, x, x_place), generate

    return multiply_parts


def _at(builder: ir.IRBuilder, array: ir.Value, *offsets: ir.Value) -> ir.Value:
    for offset in offsets:
        array = builder.gep(array, [offset])
    return array


def _number(value: int) -> ir.Value:
    return ir.Constant(ir.IntType(64), value)


HALF = DEEP // 2
VECTOR, WORDS = ir.VectorType(ir.FloatType(), HALF), ir.VectorType(ir.IntType(32), HALF)


def _load(builder: ir.IRBuilder, array: ir.Value, *offsets: ir.Value) -> ir.Value:
    return builder.load(builder.bitcast(_at(builder, array, *offsets), VECTOR.as_pointer()), align=4)


def _store_parts(builder: ir.IRBuilder, left: list[ir.Value], parts: ir.Value, place: ir.Value, apart: ir.Value) -> None:
    """The parts of DEEP numbers, two vectors, at place, place + apart, ... of an array."""
    row, halves = ir.VectorType(Bfloat16(), DEEP), ir.VectorType(ir.IntType(16), DEEP)
    both = ir.FunctionType(row, [VECTOR] * 2)
    rounded = cgutils.get_or_insert_function(builder.module, both, "llvm.x86.avx512bf16.cvtne2ps2bf16.512")
    for n in range(PARTS):
        part = builder.call(rounded, left[::-1])
        to = _at(builder, parts, place, builder.mul(apart, _number(n)))
        builder.store(part, builder.bitcast(to, row.as_pointer()), align=2)
        for half in range(2):
            which = ir.Constant(WORDS, list(range(half * HALF, (half + 1) * HALF)))
            numbers = builder.shuffle_vector(*[builder.bitcast(part, halves)] * 2, which)
            numbers = builder.shl(builder.zext(numbers, WORDS), ir.Constant(WORDS, [16] * HALF))
            left[half] = builder.fsub(left[half], builder.bitcast(numbers, VECTOR))


@intrinsic
def split(_, parts, place, apart, x, start):
    """The parts of x[start : start + DEEP] lie at place, place + apart, ... of `parts`. Both are counted as they lie."""

    def generate(context, builder, signature, arguments):
        parts, x = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 3))
        place, apart, start = arguments[1], arguments[2], arguments[4]
        _store_parts(builder, [_load(builder, x, start, _number(half * HALF)) for half in range(2)], parts, place, apart)
        return context.get_dummy_value()

    return types.void(parts, place, apart, x, start), generate


@intrinsic
def split_normed(_, parts, place, apart, x, start, gamma, beta, moments, column, slope):
    """`split` of what is normed before: of a number less moments[column + n], times as many numbers behind the first half of
    `moments`, times gamma[start + n], and beta[start + n]; negative results times `slope`. All arrays are counted as they lie."""

    def generate(context, builder, signature, arguments):
        arrays = {n: context.make_array(signature.args[n])(context, builder, arguments[n]) for n in (0, 3, 5, 6, 7)}
        parts, x, gamma, beta, moments = (array.data for array in arrays.values())
        place, apart, start, column, slope = (arguments[n] for n in (1, 2, 4, 8, 9))
        second = builder.udiv(arrays[7].nitems, _number(2))

        def normed(n):
            value = builder.fsub(_load(builder, x, start, n), _load(builder, moments, column, n))
            value = builder.fmul(value, _load(builder, moments, column, n, second))
            value = builder.fmul(value, _load(builder, gamma, start, n))
            value = builder.fadd(value, _load(builder, beta, start, n))
            open_ = builder.fcmp_ordered(">", value, ir.Constant(VECTOR, None))
            return builder.select(open_, value, builder.fmul(value, everywhere(builder, slope, HALF)))

        _store_parts(builder, [normed(_number(half * HALF)) for half in range(2)], parts, place, apart)
        return context.get_dummy_value()

    return types.void(parts, place, apart, x, start, gamma, beta, moments, column, slope), generate


def columns_in_parts(matrix: Tensor) -> Tensor:
    """A float32 matrix (inner, columns) for `product_of_parts`: (steps, tiles of columns, PARTS, NUMBERS) of int16.

    It is filled up with zeros to whole steps and blocks. Two numbers of a column lie side by side, those of all columns follow.
    """
    left = F.pad(matrix.T, (0, -matrix.shape[0] % DEEP, 0, -matrix.shape[1] % BLOCK))
    parts = []
    for _ in range(PARTS):
        parts.append(left.bfloat16())
        left = left - parts[-1].float()
    pairs = torch.stack(parts).view(torch.int32).unflatten(1, (-1, TILE)).unflatten(3, (-1, DEEP // 2))
    return pairs.permute(3, 1, 0, 4, 2).contiguous().flatten(3).view(torch.int16)


_product = product_of_parts(fetching=True)
AT_ONCE = 32  # steps of a product whose parts are kept in a core's cache
ROW = (AT_ONCE + 1) * DEEP  # numbers from one row of parts to the next: rows as far apart as caches are wide would share places


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`sincnet.linear` of float32 without gradients; rows of `weight` are a multiple of BLOCK."""
    filled = F.pad(x, (0, -x.shape[1] % DEEP, 0, -len(x) % BLOCK)).contiguous()
    columns = torch.empty(filled.shape[1] // DEEP, len(filled) // TILE, PARTS, NUMBERS, dtype=torch.int16)
    share_out(_columns, len(filled) // TILE, 1, filled, np.arange(TILE), columns)
    y = x.new_zeros(len(weight), len(filled))
    share_out(_products, len(weight), -(-of_a_thread(len(weight)) // BLOCK) * BLOCK, weight.detach().contiguous(), columns, y)
    if not y.sum().isfinite():  # what is infinite has no parts
        return F.linear(x, weight, bias)
    return y[:, : len(x)].T + bias


@compiled
def _columns(first, last, x, order, columns):
    """`columns_in_parts` of the transposed matrix x, of the tiles from `first` to `last`."""
    inner, tiles = x.shape[1], columns.shape[1]
    numbers, parts, places = x.reshape(x.size), np.empty(PARTS * TILE * inner, np.int16), np.empty(TILE, np.int64)
    pairs, out = parts.view(np.float32), columns.reshape(columns.size).view(np.float32)  # which are only copied
    for tile in range(first, last):
        for i in range(0, TILE * inner, DEEP):
            split(parts, i, TILE * inner, numbers, tile * TILE * inner + i)
        for step in range(len(columns)):
            for part in range(PARTS):
                for lane in range(TILE):
                    places[lane] = (part * TILE + lane) * inner // 2
                to = ((step * tiles + tile) * PARTS + part) * (NUMBERS // 2 // TILE)
                gather_vectors(out, 1, to, pairs, places, step * DEEP // 2, order)


@compiled
def _products(first, last, weight, columns, y):
    inner, steps, tiles = weight.shape[1], columns.shape[0], columns.shape[1]
    numbers, rest = weight.reshape(weight.size), np.zeros(DEEP, weight.dtype)
    parts, block = aligned(PARTS * BLOCK * ROW, columns), np.empty((BLOCK, BLOCK), y.dtype)
    open_tiles()
    for step in range(0, steps, AT_ONCE):
        count = min(AT_ONCE, steps - step)
        whole = min(count, inner // DEEP - step)
        for row in range(first, last, BLOCK):
            for r in range(BLOCK):
                for s in range(whole):
                    split(parts, r * ROW + s * DEEP, BLOCK * ROW, numbers, (row + r) * inner + (step + s) * DEEP)
                if whole < count:
                    for i in range(inner % DEEP):
                        rest[i] = weight[row + r, inner - inner % DEEP + i]
                    split(parts, r * ROW + whole * DEEP, BLOCK * ROW, rest, 0)
            for tile in range(0, tiles, 2):
                b = (step * tiles + tile) * PARTS * NUMBERS, tiles * PARTS * NUMBERS
                further = (row + BLOCK + tile * BLOCK // tiles) * inner + step * DEEP, inner, 2 * BLOCK // tiles
                _product(block, (0, BLOCK), parts, (0, ROW, BLOCK * ROW), columns, b, count, numbers, further)
                for r in range(BLOCK):
                    to = y[row + r, tile * TILE : tile * TILE + BLOCK]
                    for i in range(BLOCK):  # a sum of sums, which are rounded less often
                        to[i] += block[r, i]
    close_tiles()
