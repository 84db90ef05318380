"""The convolutions of the attention network, compiled: the twin of `layers.band_convolutions`.

A band goes through the three of them within a core's cache, and again in the backward pass: what is kept does not grow with the
30 features. Features are filled up with zeros to WIDTH, whole vectors of a processor, and three steps of them are a row of a
matrix, a group: the strides of 3 go from group to group. So the first convolution, whose one channel would leave vector units
idle, is a product with windows of 11 samples, 6 apart, and the gradients of the weights are products as well. A band is cut, or
filled up with zeros, to whole groups: for c = conv_steps, c + 2 behind the second convolution and 3 c + 8 behind the first.
"""

import numpy as np
import torch
import torch.nn.functional as F
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from ...architecture import attention_steps
from ...conditions import autocast_dtype, may_keep
from ..operators import once, operator
from .product import BFLOAT16, FEATURES, ROWS, as_in, compiled, product
from .threads import LANES, share_out

WIDTH, OUT = 32, 16  # features, 30 and at last 10, filled up with zeros
BANDS = 64  # in one go: their gradients are added up, then those of all
# Intel's processors that have tiles make half as many products of bfloat16 a second, in vectors, as of float32.
ROUNDED = BFLOAT16 and not FEATURES.get("amx-bf16", False)

_multiply, _layer, _masked = product(), product(layer=True), product(masked=True)
_low_layer = product(7 if ROWS == 10 else 4, layer=True)  # where rows are few or sums short
# Of gradients of weights, which have 11 or 7 * WIDTH rows, in bfloat16 one more; a row in two tiles would be added twice.
_add_1, _add_7, _add_9, _add_11, _add_12 = (product(height, 2 if ROWS == 10 else 1, added=True) for height in (1, 7, 9, 11, 12))


SCHEMA = ", ".join(f"Tensor {name}" for name in ("x", "w1", "b1", "w2", "b2", "w3", "b3"))


def convolve_bands(x: Tensor, *weights: Tensor) -> Tensor:
    """`layers.band_convolutions`; under autocast what is between the layers is rounded to bfloat16 where that is faster."""
    rounded = ROUNDED and x.dtype == torch.float32 and autocast_dtype(x) == torch.bfloat16
    needed = any(tensor.requires_grad for tensor in (x, *weights))
    y, _ = band_convolutions(x, *weights, rounded, may_keep() if needed else 0)
    return y.flatten(1)


def save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.rounded, _ = inputs
    y, kept = output
    ctx.save_for_backward(*tensors, y, kept)
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)


@once
def backward(ctx, grad: Tensor, _) -> tuple[Tensor | None, ...]:
    return *band_gradients(grad, *ctx.saved_tensors, ctx.rounded, any(ctx.needs_input_grad[1:7])), None, None


def like_convolved(x: Tensor, w1: Tensor, *others) -> tuple[Tensor, Tensor]:
    *_, rounded, room = others
    steps = attention_steps(x.shape[1])
    kept = x.new_empty(rows_kept(len(x), steps, room), second_layer(steps), dtype=torch.int16 if rounded else x.dtype)
    return x.new_empty(len(x), steps, 10), kept


def second_layer(conv_steps: int) -> int:
    """Numbers that the second convolution makes of a band."""
    return (3 * conv_steps + 6) * WIDTH


def rows_kept(rows: int, conv_steps: int, room: int) -> int:
    return min(room // second_layer(conv_steps), rows)


@operator(f"({SCHEMA}, bool rounded, int room) -> (Tensor, Tensor)", fake=like_convolved, save=save, backward=backward)
def band_convolutions(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor, rounded: bool, room: int
) -> tuple[Tensor, Tensor]:
    """The attention's convolutions of bands x (rows, steps) -> (rows, conv_steps, 10).

    If `rounded`, what is between the layers is bfloat16. Returned as well are the second convolution's outputs of as many rows as
    `room` numbers hold.
    """
    conv_steps = attention_steps(x.shape[1])
    y, matrices = x.new_empty(len(x), conv_steps, 10), _matrices(*filled_up(rounded, w1, b1, w2, b2, w3, b3))
    kept = matrices[1].new_empty(rows_kept(len(x), conv_steps, room), second_layer(conv_steps))
    share_out(_forward, len(x), BANDS, x.contiguous(), *matrices, kept, y)
    return y, kept


def like_gradients(grad: Tensor, x: Tensor, *others) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (x, *others[:6]))


@operator(
    f"(Tensor grad, {SCHEMA}, Tensor y, Tensor kept, bool rounded, bool to_weights) -> ({', '.join(['Tensor'] * 7)})",
    fake=like_gradients,
)
def band_gradients(
    grad: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    b3: Tensor,
    y: Tensor,
    kept: Tensor,
    rounded: bool,
    to_weights: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x and the six weights, the latter 0 unless `to_weights`.

    `grad` (rows, conv_steps, 10) is that of y, which `band_convolutions` made of x and what is `kept` with it.
    """
    m1, w2, b2, w3, b3 = filled_up(rounded, w1, b1, w2, b2, w3, b3)
    to_x = F.pad(m1[:11].T.unflatten(0, (3, WIDTH))[:, :30], (0, 5)).flatten(0, 1)  # (place in group * in, samples)
    to_h1 = handed_back(w2[:30])
    # The third matrix for a group's second and third step, which are read by two steps only.
    backwards = [_rows(matrix) for matrix in (handed_back(w3), to_h1, to_h1[30:, WIDTH:], to_x)]
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    matrices = _matrices(m1, w2, b2, w3, b3)[:2]
    paired = True if rounded else None  # what numba sees is None it leaves out, with types that would not fit
    arguments = x.contiguous(), *matrices, *backwards, grad.contiguous(), y, kept, grad_x, to_weights, paired
    parts = share_out(_backward, len(x), BANDS, *arguments)
    gm1, *others = (sum(torch.from_numpy(part) for part in found) for found in zip(*parts, strict=True))
    (gw2, gb2), (gw3, gb3) = ((found[:-1].unflatten(0, (7, WIDTH)).permute(2, 1, 0), found[-1]) for found in others)
    by_step = gm1.view(12, 3, -1)[..., :30]
    gw1 = sum(by_step[2 * step : 2 * step + 7, step] for step in range(3)).T[:, None]
    found = gw1, by_step[11].sum(0), gw2[:30, :30], gb2[:30], gw3[:10, :30], gb3[:10]
    return grad_x, *(gradient.to(b1.dtype).contiguous() for gradient in found)


def filled_up(rounded: bool, *weights: Tensor) -> list[Tensor]:
    """The weights with zeros for WIDTH features; the first and its bias as a matrix (11 samples and a 1, 3 * WIDTH)."""
    w1, b1, w2, b2, w3, b3 = (weight.bfloat16() if rounded else weight for weight in weights)
    more = WIDTH - 30
    shifted = [F.pad(w1[:, 0], (2 * shift, 4 - 2 * shift, 0, more)) for shift in range(3)]  # (WIDTH, 11)
    m1 = torch.cat([torch.cat(shifted).T, F.pad(b1, (0, more)).repeat(3)[None]])
    return [m1, F.pad(w2, (0, 0, 0, more, 0, more)), F.pad(b2, (0, more)), F.pad(w3, (0, 0, 0, more)), b3]


def handed_back(w: Tensor) -> Tensor:
    """Weights w (out, in, 7) of a convolution in steps of 3 as a matrix (3 * out, 3 * in) that takes gradients back.

    A group of three steps is read by three steps of the result, the first of which has it as its last tap.
    """
    taps = F.pad(w.permute(2, 0, 1), (0, 0, 0, 0, 0, 2)).unflatten(0, (3, 3))  # (steps ago, place in group, out, in)
    return taps.flip(0).transpose(1, 2).flatten(2).flatten(0, 1).contiguous()


def _matrices(m1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> list[Tensor]:
    """Each layer's weights (window, features), the biases as last row."""
    matrices = [_rows(m1[:11], m1[11])]
    for w, b in ((w2, b2), (w3, b3)):
        more = -len(w) % LANES
        matrices.append(_rows(F.pad(w[:, :30].permute(2, 1, 0).flatten(0, 1), (0, more)), F.pad(b, (0, more))))
    return matrices


def _rows(matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """A matrix and a row of biases as `_product` takes them: those of bfloat16 in pairs of rows, as int16."""
    if matrix.dtype != torch.bfloat16:
        return (matrix if bias is None else torch.cat([matrix, bias[None]])).contiguous()
    matrix = F.pad(matrix, (0, 0, 0, len(matrix) % 2))
    if bias is not None:
        matrix = torch.cat([matrix, bias[None], torch.zeros_like(bias)[None]])
    return matrix.unflatten(0, (-1, 2)).transpose(1, 2).flatten(1).view(torch.int16)  # (rows / 2, columns * 2)


@compiled
def _first_layer(x, m1, window, h1):
    """The first convolution of one band; `window` gets its samples, filled up with zeros."""
    groups = len(h1) // (3 * WIDTH)
    unknown = False
    for i in range(min(len(x), len(window))):
        window[i] = as_in(window, x[i])
        unknown |= x[i] != x[i]
    _low_layer(h1, (0, 3 * WIDTH), window, (0, 6, 0, 1), m1, (0, 3 * WIDTH), (groups, 3 * WIDTH, 1, 11), h1)
    if unknown:
        _keep_unknown(x, m1, window, h1)


@compiled
def _keep_unknown(x, m1, window, h1):
    """NaN in the steps that read one, seven samples each, and not in all steps of their groups, which read eleven."""
    groups = len(h1) // (3 * WIDTH)
    count = min(len(x), len(window))
    for i in range(count):
        if x[i] != x[i]:
            window[i] = as_in(window, x.dtype.type(0))
    _low_layer(h1, (0, 3 * WIDTH), window, (0, 6, 0, 1), m1, (0, 3 * WIDTH), (groups, 3 * WIDTH, 1, 11), h1)
    for i in range(count):
        if x[i] != x[i]:
            window[i] = as_in(window, x[i])
            for step in range(max(i - 5, 0) // 2, min(i // 2 + 1, 3 * groups)):
                for feature in range(30):
                    h1[step * WIDTH + feature] = as_in(h1, x[i])


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
def _backward(first, last, x, m1, m2, to_h2, to_h1, to_others, to_x, grad, y, kept, grad_x, to_weights, paired):
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
                inside3[step * OUT + i] = as_in(g3, grad[row, step, i] if not y[row, step, i] <= 0 else x.dtype.type(0))
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
        grad_x[row, :count] = found[:count]
        grad_x[row, count:] = 0
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
