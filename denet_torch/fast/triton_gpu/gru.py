"""The steps of a GRU in two launches each, forwards and back: the twin of `layers.gru_steps` on a GPU.

Half of a step is a product with a part of the recurrent kernel, and what follows from it for each of its numbers, in one kernel:
first the gates z and r and what the reset leaves of the state, then hh and the next state. PyTorch launches a dozen for a step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...conditions import autocast_dtype
from ..operators import once, operator
from ..torch_ops.gru import kernel_gradient, like_states, save

DEVICES = ("CUDA", "CPU")  # there the interpreter alone


def states(inputs: Tensor, recurrent_kernel: Tensor) -> Tensor:
    """`layers.gru_steps`."""
    return triton_gru(inputs, recurrent_kernel, autocast_dtype(inputs))[0]


@once
def backward(ctx, grad: Tensor, *_) -> tuple[Tensor, Tensor, None]:
    recurrent_kernel, gates, h = ctx.saved_tensors
    grad_inputs = triton_gru_gradients(grad, recurrent_kernel, gates, h, ctx.how)
    return grad_inputs, kernel_gradient(grad_inputs, h[:, :-1], gates.chunk(3, dim=2)[1], ctx.how), None


@operator(
    "(Tensor inputs, Tensor recurrent_kernel, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    fake=like_states,
    save=save,
    backward=backward,
    devices=DEVICES,
)
def triton_gru(inputs: Tensor, recurrent_kernel: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """States after each step of inputs (batch, steps, 3 * units), the gates z, r, hh as the inputs lie, and the states from 0 on.

    The states are (batch, steps, units) and (batch, steps + 1, units). Products take numbers in `dtype`, sums are float32.
    """
    batch, steps, _ = inputs.shape
    units = len(recurrent_kernel)
    inputs, kernel = inputs.contiguous(), recurrent_kernel.to(dtype).contiguous()
    gates, h = torch.empty_like(inputs), inputs.new_zeros(batch, steps + 1, units)
    reset = inputs.new_empty(batch, units)
    grid, how = launch(batch, units, inputs.dtype)
    for step in range(steps):
        _gates[grid](inputs, kernel, h, gates, reset, batch, steps, step, units, **how)
        _states[grid](inputs, kernel, h, gates, reset, batch, steps, step, units, **how)
    return h[:, 1:].clone(), gates, h


@operator(
    "(Tensor grad, Tensor recurrent_kernel, Tensor gates, Tensor h, ScalarType dtype) -> Tensor",
    fake=lambda grad, recurrent_kernel, gates, h, dtype: torch.empty_like(gates),
    devices=DEVICES,
)
def triton_gru_gradients(grad: Tensor, recurrent_kernel: Tensor, gates: Tensor, h: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradients of the inputs of `triton_gru`, as they lie, from that of the states after each step (batch, steps, units)."""
    batch, steps, units = grad.shape
    grad, kernel = grad.contiguous(), recurrent_kernel.to(dtype).contiguous()
    found, carry = torch.zeros_like(gates), grad.new_zeros(batch, units)
    grid, how = launch(batch, units, grad.dtype)
    for step in reversed(range(steps)):
        _state_gradients[grid](grad, kernel, h, gates, found, carry, batch, steps, step, units, step == steps - 1, **how)
        if step > 0:  # else the state before is 0
            _reset_gradients[grid](kernel, h, gates, found, carry, batch, steps, step, units, **how)
    return found


def launch(batch: int, units: int, dtype: torch.dtype) -> tuple[tuple[int, int], dict]:
    """The grid of programs, and how each works: on so many rows, columns, and so deep in its product at once."""
    rows, columns, deep = BLOCKS if batch > 16 else FEW
    how = {"ROWS": rows, "COLUMNS": columns, "DEEP": deep, "SUM": tl.float64 if dtype == torch.float64 else tl.float32}
    # Not `allow_tf32`, which raises once somebody has set this name.
    how["PRECISION"] = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return (triton.cdiv(batch, rows), triton.cdiv(units, columns)), how


# Rows, columns, depth. The interpreter pays for each program, a GPU for those that do not fit it.
GPU_BLOCKS, GPU_FEW = (64, 32, 32), (16, 32, 64)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
BLOCKS, FEW = ((64, 256, 512),) * 2 if triton.knobs.runtime.interpret else (GPU_BLOCKS, GPU_FEW)


@triton.jit
def _part(batch, units, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and units of this program, and which of them there are."""
    row, unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return row[:, None], unit[None, :], (row < batch)[:, None] & (unit < units)[None, :]


@triton.jit
def _add_product(
    total, x, x_row, row, batch, kernel, kernel_row, kernel_column, unit,
    units: tl.constexpr, DEEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + rows of x (batch, units) times columns of a kernel (units, units), whose rows and columns are so far apart."""
    for start in range(0, units, DEEP):
        k = start + tl.arange(0, DEEP)
        a = tl.load(x + row * x_row + k[None, :], (row < batch) & (k < units)[None, :], 0.0)
        b = tl.load(kernel + k[:, None] * kernel_row + unit * kernel_column, (k < units)[:, None] & (unit < units), 0.0)
        a = a.to(b.dtype)
        if INTERPRETED:  # it would multiply the bits of bfloat16
            a, b = a.to(total.dtype), b.to(total.dtype)
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
    return total


@triton.jit
def _hard_sigmoid(x):
    x = 0.2 * x + 0.5
    return tl.where(x < 0, 0.0, tl.where(x > 1, 1.0, x))  # NaN stays


@triton.jit
def _tanh(x):
    e = tl.exp(-2 * tl.abs(x))
    y = (1 - e) / (1 + e)
    return tl.where(x < 0, -y, y)


@triton.jit(do_not_specialize=["step"])
def _gates(
    inputs, kernel, h, gates, reset, batch, steps, step, units: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEEP: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, unit, there = _part(batch, units, ROWS, COLUMNS)
    last, at = h + step * units, (row * steps + step) * 3 * units + unit
    zero = tl.zeros((ROWS, COLUMNS), SUM)
    z = _add_product(zero, last, (steps + 1) * units, row, batch, kernel, 3 * units, 1, unit, units, DEEP, PRECISION)
    r = _add_product(zero, last, (steps + 1) * units, row, batch, kernel + units, 3 * units, 1, unit, units, DEEP, PRECISION)
    z = _hard_sigmoid(tl.load(inputs + at, there, 0.0) + z)
    r = _hard_sigmoid(tl.load(inputs + at + units, there, 0.0) + r)
    tl.store(gates + at, z, there)
    tl.store(gates + at + units, r, there)
    tl.store(reset + row * units + unit, r * tl.load(last + row * (steps + 1) * units + unit, there, 0.0), there)


@triton.jit(do_not_specialize=["step"])
def _states(
    inputs, kernel, h, gates, reset, batch, steps, step, units: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEEP: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, unit, there = _part(batch, units, ROWS, COLUMNS)
    at, state = (row * steps + step) * 3 * units + unit, (row * (steps + 1) + step) * units + unit
    hh = tl.zeros((ROWS, COLUMNS), SUM)
    hh = _add_product(hh, reset, units, row, batch, kernel + 2 * units, 3 * units, 1, unit, units, DEEP, PRECISION)
    hh = _tanh(tl.load(inputs + at + 2 * units, there, 0.0) + hh)
    z = tl.load(gates + at, there, 0.0)
    tl.store(gates + at + 2 * units, hh, there)
    tl.store(h + state + units, z * tl.load(h + state, there, 0.0) + (1 - z) * hh, there)


@triton.jit
def _slope(gate):
    """The hard sigmoid's, where it gave `gate`."""
    return 0.2 * ((gate > 0) & (gate < 1)).to(gate.dtype)


@triton.jit(do_not_specialize=["step"])
def _state_gradients(
    grad, kernel, h, gates, found, carry, batch, steps, step, units: tl.constexpr, LAST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEEP: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Those of a step's z and hh, from its state's, to which the next step hands back what it found for its z and r."""
    row, unit, there = _part(batch, units, ROWS, COLUMNS)
    at, state = (row * steps + step) * 3 * units + unit, (row * (steps + 1) + step) * units + unit
    dh = tl.zeros((ROWS, COLUMNS), SUM)
    if not LAST:
        after = found + (step + 1) * 3 * units
        dh = _add_product(dh, after, steps * 3 * units, row, batch, kernel, 1, 3 * units, unit, units, DEEP, PRECISION)
        after += units
        dh = _add_product(dh, after, steps * 3 * units, row, batch, kernel + units, 1, 3 * units, unit, units, DEEP, PRECISION)
    dh += tl.load(carry + row * units + unit, there, 0.0) + tl.load(grad + (row * steps + step) * units + unit, there, 0.0)
    z, hh = tl.load(gates + at, there, 0.0), tl.load(gates + at + 2 * units, there, 0.0)
    tl.store(found + at, dh * (tl.load(h + state, there, 0.0) - hh) * _slope(z), there)
    tl.store(found + at + 2 * units, dh * (1 - z) * (1 - hh * hh), there)
    tl.store(carry + row * units + unit, dh * z, there)


@triton.jit(do_not_specialize=["step"])
def _reset_gradients(
    kernel, h, gates, found, carry, batch, steps, step, units: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEEP: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """That of a step's r, from hh's, and what the state before gets by way of the reset."""
    row, unit, there = _part(batch, units, ROWS, COLUMNS)
    at, state = (row * steps + step) * 3 * units + unit, (row * (steps + 1) + step) * units + unit
    x, kernel, reset = found + (3 * step + 2) * units, kernel + 2 * units, tl.zeros((ROWS, COLUMNS), SUM)
    reset = _add_product(reset, x, steps * 3 * units, row, batch, kernel, 1, 3 * units, unit, units, DEEP, PRECISION)
    r, before = tl.load(gates + at + units, there, 0.0), carry + row * units + unit
    tl.store(found + at + units, reset * tl.load(h + state, there, 0.0) * _slope(r), there)
    tl.store(before, tl.load(before, there, 0.0) + reset * r, there)
