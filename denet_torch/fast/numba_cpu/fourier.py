"""Fourier transforms of LANES signals side by side, compiled by numba: convolutions with long symmetric filters.

Signals (size, width, 2, LANES) are real and imaginary parts, a row for each step or frequency; `size` is a power of 4. A vector
holds one step of LANES signals, so that no number ever changes its place within one. Two real signals go through real filters as
real and imaginary part of one. The spectrum of a filter that is symmetric about its first step is real.
"""

import functools

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .product import compiled, everywhere
from .threads import LANES

LEAST = 16  # steps of a transform
NEAR = 64  # rows that fit into a core's first cache
SIDE = 8  # of the squares in which `scatter` transposes
ROOM = 2.5  # least steps of a transform over those of a filter


def size_for(taps: int) -> int:
    """Steps of the transforms for filters of so many taps."""
    size = LEAST
    while size < ROOM * taps:
        size *= 4
    return size


@functools.cache
def order(size: int) -> np.ndarray:
    """Where the rows that `transform` begins with lie in the usual order, and the other way round: digits of base 4 reversed."""
    places = np.zeros(1, np.int64)
    while len(places) < size:
        places = (4 * places + np.arange(4)[:, None]).ravel()
    return places


@functools.cache
def turns(size: int, dtype: np.dtype) -> np.ndarray:
    """Cosine and sine of the angles by which each stage turns three of four values."""
    found, apart = [], 1
    while apart < size:
        angles = 2 * np.pi * np.arange(apart)[:, None] * np.arange(1, 4) / (4 * apart)
        found.append(np.stack([np.cos(angles), np.sin(angles)], axis=-1).ravel())
        apart *= 4
    return np.concatenate(found).astype(dtype)


Complex = tuple[ir.Value, ir.Value]


def _turned_by(builder: ir.IRBuilder, value: Complex, cos: ir.Value, sin: ir.Value) -> Complex:
    re, im = value
    bits = {ir.FloatType(): 32, ir.DoubleType(): 64}[re.type.element]
    fma_type = ir.FunctionType(re.type, [re.type] * 3)
    fma = cgutils.get_or_insert_function(builder.module, fma_type, f"llvm.fma.v{LANES}f{bits}")
    turned = builder.call(fma, [re, cos, builder.fneg(builder.fmul(im, sin))])
    return turned, builder.call(fma, [re, sin, builder.fmul(im, cos)])


def _of_four(builder: ir.IRBuilder, values: list[Complex]) -> list[Complex]:
    """The transform of four values."""
    add, subtract = builder.fadd, builder.fsub
    (a_re, a_im), (b_re, b_im), (c_re, c_im), (d_re, d_im) = values
    e_re, e_im, f_re, f_im = add(a_re, c_re), add(a_im, c_im), subtract(a_re, c_re), subtract(a_im, c_im)
    g_re, g_im, h_re, h_im = add(b_re, d_re), add(b_im, d_im), subtract(b_re, d_re), subtract(b_im, d_im)
    return [
        (add(e_re, g_re), add(e_im, g_im)),
        (subtract(f_re, h_im), add(f_im, h_re)),
        (subtract(e_re, g_re), subtract(e_im, g_im)),
        (add(f_re, h_im), subtract(f_im, h_re)),
    ]


def four(scaled: bool):
    """A compiled f(y, x, factors, turns, i, apart, at): transforms of four rows of x, i and those `apart` behind it, in y's.

    Before that they are turned by `turns` from `at` on; or, if `scaled`, multiplied by the factors of those rows. Where a row has
    a factor of each lane (size, LANES), that of x is one number (size, 2), which they make those of y.
    """

    @intrinsic
    def transform_four(_, y, x, factors, turns, i, apart, at):
        def generate(context, builder, signature, arguments):
            y, x, factors, turns = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in range(4))
            i, apart, at = arguments[4:]
            number = context.get_data_type(signature.args[0].dtype)
            bytes_each = context.get_abi_sizeof(number)
            vector = ir.VectorType(number, LANES)
            spread = signature.args[2].ndim == 2

            def number_of(value):
                return ir.Constant(ir.IntType(64), value)

            rows = [builder.add(i, builder.mul(apart, number_of(n))) for n in range(4)]

            def vector_at(array, n, part):
                place = builder.add(builder.mul(rows[n], number_of(2 * LANES)), number_of(part * LANES))
                return builder.bitcast(builder.gep(array, [place]), vector.as_pointer())

            def number_at(array, place):
                return everywhere(builder, builder.load(builder.gep(array, [place])), LANES)

            values = []
            for n in range(4):
                if spread:
                    double = builder.mul(rows[n], number_of(2))
                    re, im = (number_at(x, builder.add(double, number_of(part))) for part in range(2))
                    factor = builder.gep(factors, [builder.mul(rows[n], number_of(LANES))])
                    factor = builder.load(builder.bitcast(factor, vector.as_pointer()), align=bytes_each)
                else:
                    re, im = (builder.load(vector_at(x, n, part), align=bytes_each) for part in range(2))
                    factor = number_at(factors, rows[n]) if scaled else None
                if scaled:
                    re, im = builder.fmul(re, factor), builder.fmul(im, factor)
                elif n:
                    cos, sin = (number_at(turns, builder.add(at, number_of(2 * n - 2 + part))) for part in range(2))
                    re, im = _turned_by(builder, (re, im), cos, sin)
                values.append((re, im))
            results = _of_four(builder, values)
            for n, parts in enumerate(results):
                for part, value in enumerate(parts):
                    builder.store(value, vector_at(y, n, part), align=bytes_each)
            return context.get_dummy_value()

        return types.void(y, x, factors, turns, i, apart, at), generate

    return transform_four


_turn_four, _scale_four = four(scaled=False), four(scaled=True)


@intrinsic
def _turn_sixteen(_, x, turns, i, apart, first, second, between):
    """Two stages of the rows of x from i on that lie `apart`: what `_turn_four` makes of four times four of them by `turns` from
    `first` on, then, four times as far apart, from `second`, second + between, ... on. They stay in registers between the two."""

    def generate(context, builder, signature, arguments):
        x, turns = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in range(2))
        i, apart, first, second, between = arguments[2:]
        number = context.get_data_type(signature.args[0].dtype)
        bytes_each, vector = context.get_abi_sizeof(number), ir.VectorType(number, LANES)

        def size(value):
            return ir.Constant(ir.IntType(64), value)

        def vector_at(n, part):
            place = builder.mul(builder.add(i, builder.mul(apart, size(n))), size(2 * LANES))
            return builder.bitcast(builder.gep(x, [builder.add(place, size(part * LANES))]), vector.as_pointer())

        def turned(values, at):
            found = values[:1]
            for n in range(1, 4):
                places = (builder.gep(turns, [builder.add(at, size(2 * n - 2 + part))]) for part in range(2))
                cos, sin = (everywhere(builder, builder.load(place), LANES) for place in places)
                found.append(_turned_by(builder, values[n], cos, sin))
            return _of_four(builder, found)

        values = [tuple(builder.load(vector_at(n, part), align=bytes_each) for part in range(2)) for n in range(16)]
        for n in range(0, 16, 4):
            values[n : n + 4] = turned(values[n : n + 4], first)
        for n in range(4):
            values[n::4] = turned(values[n::4], builder.add(second, builder.mul(between, size(n))))
        for n, parts in enumerate(values):
            for part, value in enumerate(parts):
                builder.store(value, vector_at(n, part), align=bytes_each)
        return context.get_dummy_value()

    return types.void(x, turns, i, apart, first, second, between), generate


def _transposed(builder: ir.IRBuilder, rows: list[ir.Value], lanes: int) -> list[ir.Value]:
    """Squares of len(rows) numbers, which lie side by side in vectors of `lanes`, transposed each in its place."""
    lane, rows, apart = ir.IntType(32), list(rows), 1
    while apart < len(rows):  # swap what lies beside the diagonal of squares of twice so many rows
        for n in range(len(rows)):
            if not n & apart:
                first, second = rows[n], rows[n + apart]
                upper = [i if not i & apart else lanes + i - apart for i in range(lanes)]
                lower = [i + apart if not i & apart else lanes + i for i in range(lanes)]
                masks = (ir.Constant(ir.VectorType(lane, lanes), mask) for mask in (upper, lower))
                rows[n], rows[n + apart] = (builder.shuffle_vector(first, second, mask) for mask in masks)
        apart *= 2
    return rows


@intrinsic
def gather_vectors(_, z, across, column, x, places, shift, order):
    """Vector order[i] * across + column of z is x[places[lane] + shift + i] of each lane, for i < LANES."""

    def generate(context, builder, signature, arguments):
        z, x, places, order = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 3, 4, 6))
        across, column, shift = arguments[1], arguments[2], arguments[5]
        number = context.get_data_type(signature.args[0].dtype)
        bytes_each, vector = context.get_abi_sizeof(number), ir.VectorType(number, LANES)

        def number_at(array, n):
            return builder.load(builder.gep(array, [ir.Constant(ir.IntType(64), n)]))

        rows = []
        for n in range(LANES):
            place = builder.gep(x, [builder.add(number_at(places, n), shift)])
            rows.append(builder.load(builder.bitcast(place, vector.as_pointer()), align=bytes_each))
        for n, row in enumerate(_transposed(builder, rows, LANES)):
            place = builder.add(builder.mul(number_at(order, n), across), column)
            place = builder.gep(z, [builder.mul(place, ir.Constant(ir.IntType(64), LANES))])
            builder.store(row, builder.bitcast(place, vector.as_pointer()), align=bytes_each)
        return context.get_dummy_value()

    return types.void(z, across, column, x, places, shift, order), generate


@intrinsic
def _scatter_vectors(_, y, places, counts, x, rows, n, shift):
    """y[places[lane] + i] = x[rows[i] + shift + lane] for n <= i < n + SIDE and each lane of which counts[lane] is no less than
    n + SIDE."""

    def generate(context, builder, signature, arguments):
        arrays = (context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in range(5))
        (y, places, counts, x, rows), (n, shift) = arrays, arguments[5:]
        number, index = context.get_data_type(signature.args[0].dtype), ir.IntType(64)
        bytes_each, row = context.get_abi_sizeof(number), ir.VectorType(number, LANES)
        piece, read = ir.VectorType(number, SIDE), []
        for i in range(SIDE):
            place = builder.add(builder.load(builder.gep(rows, [builder.add(n, index(i))])), shift)
            read.append(builder.load(builder.bitcast(builder.gep(x, [place]), row.as_pointer()), align=bytes_each))
        read, end = _transposed(builder, read, LANES), builder.add(n, index(SIDE))
        for lane in range(LANES):
            of_lane = ir.Constant(ir.VectorType(ir.IntType(32), SIDE), [lane // SIDE * SIDE + i for i in range(SIDE)])
            values = builder.shuffle_vector(read[lane % SIDE], read[lane % SIDE], of_lane)
            count = builder.load(builder.gep(counts, [index(lane)]))
            with builder.if_then(builder.icmp_signed(">=", count, end)):
                place = builder.gep(y, [builder.add(builder.load(builder.gep(places, [index(lane)])), n)])
                builder.store(values, builder.bitcast(place, piece.as_pointer()), align=bytes_each)
        return context.get_dummy_value()

    return types.void(y, places, counts, x, rows, n, shift), generate


@compiled
def scatter(y, places, counts, x, rows, shift):
    """y[places[lane] + i] = x[rows[i] + shift + lane] for each lane and i < counts[lane]. Arrays are counted as they lie."""
    for n in range(0, len(rows) - SIDE + 1, SIDE):
        _scatter_vectors(y, places, counts, x, rows, n, shift)
    for lane in range(LANES):
        for i in range(min(counts[lane], len(rows)) // SIDE * SIDE, counts[lane]):
            y[places[lane] + i] = x[rows[i] + shift + lane]


@compiled
def gather(z, w, part, x, places, shift, order):
    """z[order[i], w, part, lane] = x[places[lane] + shift + i] for all i < len(z)."""
    for i in range(0, len(z), LANES):
        gather_vectors(z, z.size // (len(z) * LANES), 2 * w + part, x, places, shift + i, order[i:])


@intrinsic
def _complex_sum(_, y, to, x, first, second, sign):
    """Signal `to` of y is signal `first` of x and `sign` times i times signal `second`, signals being counted as they lie."""

    def generate(context, builder, signature, arguments):
        y, x = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 2))
        to, first, second, sign = arguments[1], *arguments[3:]
        number = context.get_data_type(signature.args[0].dtype)
        bytes_each, vector = context.get_abi_sizeof(number), ir.VectorType(number, LANES)

        def vectors(array, place):
            places = (builder.add(builder.mul(place, ir.Constant(ir.IntType(64), 2 * LANES)), p) for p in parts)
            return [builder.bitcast(builder.gep(array, [place]), vector.as_pointer()) for place in places]

        parts = [ir.Constant(ir.IntType(64), part) for part in (0, LANES)]
        (a, b), (c, d) = ([builder.load(p, align=bytes_each) for p in vectors(x, place)] for place in (first, second))
        sign = everywhere(builder, sign, LANES)
        sums = builder.fsub(a, builder.fmul(sign, d)), builder.fadd(b, builder.fmul(sign, c))
        for value, place in zip(sums, vectors(y, to), strict=True):
            builder.store(value, place, align=bytes_each)
        return context.get_dummy_value()

    return types.void(y, to, x, first, second, sign), generate


@compiled
def complex_sums(y, x, sign):
    """y (width, 2, LANES) is x[0] and `sign` times i times x[1]."""
    for w in range(len(y)):
        _complex_sum(y, w, x, w, len(y) + w, y.dtype.type(sign))


@compiled
def _stages(x, turns, first, last, apart, stop):
    """The stages of rows first to last in which rows lie `apart`, four times that, and so on below `stop`."""
    width = x.size // (len(x) * 2 * LANES)
    while apart < stop:
        at = 2 * (apart - 1)
        for start in range(first, last, 4 * apart):
            for i in range(apart):
                for w in range(width):
                    _turn_four(x, x, turns, turns, (start + i) * width + w, apart * width, at + 6 * i)
        apart *= 4


@compiled
def transform(x, turns):
    """sum over n of x[n] exp(2 pi i k n / size) in row k of x, whose rows n lie in `order` before."""
    if len(x) == 16:
        width = x.size // (16 * 2 * LANES)
        for w in range(width):
            _turn_sixteen(x, turns, w, width, 0, 6, 6)
        return
    near = min(NEAR, len(x))
    for first in range(0, len(x), near):
        _stages(x, turns, first, first + near, 1, near)
    _stages(x, turns, 0, len(x), near, len(x))


@compiled
def spaced(row):
    """Where `filtered` leaves a row: rows that are read together do not share a place in a core's cache."""
    return row + row // NEAR


@compiled
def filtered(y, x, response, turns):
    """`transform` of x (size, 2, LANES) times `response` (size,), in the rows `spaced` of y; or of one signal x (size, 2) times
    those of as many filters (size, LANES). Rows of x and `response` lie in `order`.
    """
    size = len(x)
    near, apart = min(NEAR, size), min(NEAR, size)
    for first in range(0, size, near):
        rows = y[spaced(first) :]
        for i in range(0, near, 4):
            _scale_four(rows, x[first:], response[first:], turns, i, 1, 0)
        _stages(rows, turns, 0, near, 4, near)
    while apart < size:
        two, wide = 4 * apart < size, spaced(apart)
        for start in range(0, size, 16 * apart if two else 4 * apart):
            for i in range(apart):
                at, first = spaced(start) + spaced(i), 2 * (apart - 1) + 6 * i
                if two:
                    _turn_sixteen(y, turns, at, wide, first, 2 * (4 * apart - 1) + 6 * i, 6 * apart)
                else:
                    _turn_four(y, y, turns, turns, at, wide, first)
        apart *= 16 if two else 4
