"""The steps of a GRU, compiled: the twin of `layers.gru_steps`. The kernel is read as it lies in memory, once a step."""

import numpy as np
import torch
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from ...conditions import autocast_dtype
from ..operators import once, operator
from ..torch_ops import gru as products
from ..torch_ops.gru import like_states, save
from .product import COLUMNS, DEEP, ROWS, compiled, product
from .threads import LANES, of_a_thread, share_out

DEEP_BACK = 1024  # columns of the kernel, which takes gradients back, in one go
PANEL = 2**16  # numbers of a factor in one go: within a core's cache
SEQUENCES = 8 if ROWS == 10 else 4  # the rows of a tile: batches are often multiples of them

_multiply = product()
_add, _add_to_one = product(SEQUENCES, added=True, streamed=True), product(1, 2 * SEQUENCES, added=True)
_add_back = product(SEQUENCES, added=True)


def states(inputs: Tensor, recurrent_kernel: Tensor) -> Tensor:
    """`layers.gru_steps`."""
    return gru_states(inputs, recurrent_kernel, autocast_dtype(inputs) == torch.bfloat16)[0]


@once
def backward(ctx, grad: Tensor, *_) -> tuple[Tensor, Tensor, None]:
    recurrent_kernel, gates, h = ctx.saved_tensors
    grad_inputs = gru_gradients(grad, recurrent_kernel, gates, h)
    last, r = h[:, :-1], gates.chunk(3, dim=2)[1]
    if ctx.how:
        return grad_inputs, products.kernel_gradient(grad_inputs, last, r, torch.bfloat16), None
    return grad_inputs, kernel_gradient(grad_inputs, last, r), None


@operator(
    "(Tensor inputs, Tensor recurrent_kernel, bool rounded) -> (Tensor, Tensor, Tensor)",
    fake=like_states,
    save=save,
    backward=backward,
)
def gru_states(inputs: Tensor, recurrent_kernel: Tensor, rounded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """States after each step of inputs (batch, steps, 3 * units), the gates z, r, hh as the inputs lie, and the states from 0 on.

    The states are (batch, steps, units) and (batch, steps + 1, units), `units` a multiple of LANES. `rounded`: the gradient of
    the kernel, a product, is made of bfloat16 numbers; all else is float32 under autocast as well: steps wait for memory, and
    so would bfloat16 copies of the kernel.
    """
    gates, h = _go_through(inputs, recurrent_kernel, inputs.shape[1] > 1)
    if h[:, -1].isnan().any():  # the plain text makes NaN at the first step, too, of a NaN in the kernel, times a state of 0
        gates, h = _go_through(inputs, recurrent_kernel, False)
    return h[:, 1:].clone(), gates, h


def _go_through(inputs: Tensor, recurrent_kernel: Tensor, from_nothing: bool) -> tuple[Tensor, Tensor]:
    """Gates, and states from 0 on; `from_nothing`: the first step's products, with a state of 0, are left out."""
    batch, steps, _ = inputs.shape
    units = len(recurrent_kernel)
    gates, h = torch.empty_like(inputs, memory_format=torch.contiguous_format), inputs.new_zeros(batch, steps + 1, units)
    state, reset = inputs.new_zeros(2, units, 1 if batch == 1 else batch + -batch % SEQUENCES)  # transposed, for whole tiles
    counters = torch.zeros(steps, 2, 2, dtype=torch.int64)
    arguments = counters, from_nothing, inputs.contiguous(), recurrent_kernel.contiguous(), state, reset, gates, h
    at_once = [COLUMNS, COLUMNS]
    if batch == 1:  # waits for memory: a thread reads pieces as long as can be, processors foresee where they go on
        at_once = [max(COLUMNS, of_a_thread(columns)) for columns in (2 * units, units)]
    share_out(_gru, torch.get_num_threads(), 1, tuple(at_once), *arguments)
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
def _gru(_, __, at_once, counters, from_nothing, inputs, kernel, state, reset, gates, h):
    units, rows = state.shape
    y = np.empty((rows, max(at_once)), state.dtype)
    for step in range(inputs.shape[1]):
        for half in range(2):
            columns, width = (2 - half) * units, at_once[half]
            first, last = _piece(counters, step, half, 0, columns, width)
            while first < last:
                if half == 0:
                    _gates(first, last, step, from_nothing, y, inputs, kernel, state, reset, gates, h)
                else:
                    _states(first, last, step, from_nothing, y, inputs, kernel, state, reset, gates, h)
                first, last = _piece(counters, step, half, 1, columns, width)


@compiled
def _gates(first, last, step, from_nothing, y, inputs, kernel, state, reset, gates, h):
    units, number = len(kernel), inputs.dtype.type
    _recurrent_product(y, first, last, from_nothing and step == 0, state, kernel)
    for row in range(len(inputs)):
        for column in range(first, last):
            gate = number(0.2) * (inputs[row, step, column] + y[row, column - first]) + number(0.5)
            gates[row, step, column] = number(0) if gate < 0 else number(1) if gate > 1 else gate
        for unit in range(max(first - units, 0), last - units):
            reset[unit, row] = gates[row, step, units + unit] * h[row, step, unit]


@compiled
def _states(first, last, step, from_nothing, y, inputs, kernel, state, reset, gates, h):
    units, number = len(kernel), inputs.dtype.type
    _recurrent_product(y, 2 * units + first, 2 * units + last, from_nothing and step == 0, reset, kernel)
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
def _recurrent_product(y, first, last, nothing, state, kernel):
    """y[:, : last - first] = `state`, transposed, times those columns of the kernel, or 0 if the state is `nothing`."""
    units, rows = state.shape
    width = y.shape[1]
    y[:] = 0
    if nothing:
        return
    deep = DEEP // 2 if rows > SEQUENCES else DEEP  # rows of one tile leave room in the cache
    for unit in range(0, units, deep):
        counts = rows, last - first, 1, min(deep, units - unit)
        from_state, from_kernel = (unit * rows, 1, 0, rows), (unit * 3 * units + first, 3 * units)
        if rows == 1:
            _add_to_one(y, (0, width), state, from_state, kernel, from_kernel, counts, y)
        else:
            _add(y, (0, width), state, from_state, kernel, from_kernel, counts, y)


@operator(
    "(Tensor grad, Tensor recurrent_kernel, Tensor gates, Tensor h) -> Tensor",
    fake=lambda grad, recurrent_kernel, gates, h: torch.empty_like(gates),
)
def gru_gradients(grad: Tensor, recurrent_kernel: Tensor, gates: Tensor, h: Tensor) -> Tensor:
    """Gradients of the inputs of `gru_states`, as they lie, from that of the states after each step (batch, steps, units)."""
    batch, steps, units = grad.shape
    carry, found = grad.new_zeros(batch, units), torch.empty_like(gates)
    transposed = grad.new_zeros(3 * units, batch + -batch % LANES)  # those found for one step, in whole vectors
    counters = torch.zeros(steps, 2, 2, dtype=torch.int64)
    arguments = counters, grad.contiguous(), recurrent_kernel.contiguous(), gates, h, carry, transposed, found
    share_out(_gru_backward, torch.get_num_threads(), 1, *arguments)
    return found


@compiled
def _gru_backward(_, __, counters, grad, kernel, gates, h, carry, transposed, found):
    y = np.empty((COLUMNS, transposed.shape[1]), grad.dtype)
    for step in range(grad.shape[1] - 1, -1, -1):
        for half in range(2):
            first, last = _piece(counters, step, half, 0, len(kernel), COLUMNS)
            while first < last:
                if half == 0:
                    _state_gradients(first, last, step, y, grad, kernel, gates, h, carry, transposed, found)
                else:
                    _reset_gradients(first, last, step, y, grad, kernel, gates, h, carry, transposed, found)
                first, last = _piece(counters, step, half, 1, len(kernel), COLUMNS)


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


@operator(
    "(Tensor grad_inputs, Tensor last, Tensor r) -> Tensor",
    fake=lambda grad_inputs, last, r: last.new_empty(last.shape[2], 3 * last.shape[2]),
)
def kernel_gradient(grad_inputs: Tensor, last: Tensor, r: Tensor) -> Tensor:
    """Gradient of the recurrent kernel, from the inputs' and the state before each step: three products, side by side at once."""
    units = last.shape[2]
    state, reset = (x.flatten(0, 1).T.contiguous() for x in (last, r * last))  # (units, batch * steps)
    found = last.new_empty(units, 3 * units)
    columns = max(2 * LANES, min(COLUMNS, PANEL // state.shape[1] // (2 * LANES) * 2 * LANES))
    share_out(_kernel_gradient, units, columns, state, reset, grad_inputs.contiguous(), found)
    return found


@compiled
def _kernel_gradient(first, last, state, reset, grad, found):
    units, rows = state.shape
    for gate in range(3):
        column = gate * units + first
        x = reset if gate == 2 else state
        counts = units, last - first, 1, rows
        _multiply(found, (column, 3 * units), x, (0, rows, 0, 1), grad, (column, 3 * units), counts, found)
