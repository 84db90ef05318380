"""The steps of a GRU with a backward pass of its own: the twin of `layers.gru_steps` on any device."""

import torch
from torch import Tensor

from ...conditions import autocast_dtype
from ..operators import once
from .product import matmul


def gru_steps(inputs: Tensor, recurrent_kernel: Tensor) -> Tensor:
    return Recurrence.apply(inputs, recurrent_kernel)


class Recurrence(torch.autograd.Function):
    """The gradient of the recurrent kernel is one product over all steps.

    Autograd would add up one gradient of units x 3 units for each step, which costs more than all the products.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, recurrent_kernel: Tensor) -> Tensor:
        batch, steps, _ = inputs.shape
        units = len(recurrent_kernel)
        dtype = ctx.dtype = autocast_dtype(inputs)
        kernel_z, kernel_r, kernel_h = gate_kernels(recurrent_kernel, dtype)
        gates = torch.empty_like(inputs)  # z, r, hh
        h = inputs.new_zeros(batch, steps + 1, units)
        for step in range(steps):
            last = h[:, step]
            a_z, a_r, a_h = inputs[:, step].split(units, dim=1)
            z = (0.2 * (a_z + matmul(last.to(dtype), kernel_z)) + 0.5).clamp(0, 1)
            r = (0.2 * (a_r + matmul(last.to(dtype), kernel_r)) + 0.5).clamp(0, 1)
            hh = torch.tanh(a_h + matmul((r * last).to(dtype), kernel_h))
            gates[:, step] = torch.cat([z, r, hh], dim=1)
            h[:, step + 1] = z * last + (1 - z) * hh
        ctx.save_for_backward(inputs, recurrent_kernel, gates, h)
        return h[:, 1:].clone()

    @staticmethod
    @once
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        inputs, recurrent_kernel, gates, h = ctx.saved_tensors
        batch, steps, units = grad.shape
        last, (z, r, hh) = h[:, :-1], gates.split(units, dim=2)
        kernel_z, kernel_r, kernel_h = gate_kernels(recurrent_kernel, ctx.dtype)
        slope_z, slope_r = (0.2 * ((gate > 0) & (gate < 1)).to(gate.dtype) for gate in (z, r))  # the hard sigmoid's
        grad_inputs = torch.empty_like(inputs)
        carry = grad.new_zeros(batch, units)
        for step in reversed(range(steps)):
            dh = grad[:, step] + carry
            da_z = dh * (last[:, step] - hh[:, step]) * slope_z[:, step]
            da_h = dh * (1 - z[:, step]) * (1 - hh[:, step].square())
            da_r = torch.zeros_like(da_z)
            if step > 0:  # else the state before is 0
                d_reset = matmul(da_h.to(ctx.dtype), kernel_h.T).to(dh.dtype)
                da_r = d_reset * last[:, step] * slope_r[:, step]
                carry = dh * z[:, step] + d_reset * r[:, step]
                carry += matmul(da_z.to(ctx.dtype), kernel_z.T) + matmul(da_r.to(ctx.dtype), kernel_r.T)
            grad_inputs[:, step] = torch.cat([da_z, da_r, da_h], dim=1)
        del kernel_z, kernel_r, kernel_h  # before as much is taken for the gradients
        return grad_inputs, kernel_gradient(grad_inputs, last, r, ctx.dtype)


def kernel_gradient(grad_inputs: Tensor, last: Tensor, r: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient of the recurrent kernel, by products in `dtype`, from the inputs' and the state before each step."""
    units = last.shape[2]
    reset, last = (x.flatten(0, 1).to(dtype).T for x in (r * last, last))  # (units, batch * steps)
    rows = grad_inputs.flatten(0, 1).to(dtype).split(units, dim=1)
    grad_kernel = grad_inputs.new_empty(units, 3 * units)
    for part, x, gate in zip(grad_kernel.split(units, dim=1), (last, last, reset), rows, strict=True):
        part.copy_(matmul(x, gate))
    return grad_kernel


def gate_kernels(recurrent_kernel: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The parts of a recurrent kernel for z, r and hh, each contiguous: they are read at every step."""
    return [kernel.to(dtype).contiguous() for kernel in recurrent_kernel.split(len(recurrent_kernel), dim=1)]


def save(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """For an operator of (inputs, recurrent_kernel, how) whose result is (states, gates, states from 0 on)."""
    _, recurrent_kernel, ctx.how = inputs
    _, gates, h = output
    ctx.save_for_backward(recurrent_kernel, gates, h)
    ctx.mark_non_differentiable(gates, h)
    ctx.set_materialize_grads(False)


def like_states(inputs: Tensor, recurrent_kernel: Tensor, how) -> tuple[Tensor, Tensor, Tensor]:
    """Its result without numbers."""
    batch, steps, _ = inputs.shape
    units = len(recurrent_kernel)
    sizes = (batch, steps, units), (batch, steps, 3 * units), (batch, steps + 1, units)
    return tuple(inputs.new_empty(size) for size in sizes)
