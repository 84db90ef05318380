"""Matrix products in float32 on a CPU by oneDNN: the twins of `layers.multiply` and `sincnet.linear`.

PyTorch takes MKL, which leaves AVX-512 to Intel's processors: elsewhere half as fast.
"""

import torch
from torch import Tensor

from ..operators import operator

FEW_ROWS = 128  # of a product for which copying a part of a kernel does not pay
ONEDNN = torch.backends.mkldnn.is_available()


def fits(x: Tensor) -> bool:
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def multiply(x: Tensor, kernel: Tensor) -> Tensor:
    return product(x.flatten(0, -2), kernel).view(*x.shape[:-1], -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return multiply(x, weight.T) + bias


def matmul(x: Tensor, kernel: Tensor) -> Tensor:
    """x @ kernel of two matrices, by oneDNN where that takes them. Without gradients of gradients."""
    return product(x, kernel) if fits(x) else x @ kernel


def save_factors(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def gradients(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the factors x and kernel; the kernel's is laid out as the kernel is, so that nobody copies it."""
    x, kernel = ctx.saved_tensors
    to_x, to_kernel = ctx.needs_input_grad
    if to_kernel:
        kernel_gradient = matmul(grad.T, x).T if kernel.stride(0) == 1 else matmul(x.T, grad)
    return matmul(grad, kernel.T) if to_x else None, kernel_gradient if to_kernel else None


@operator(
    "(Tensor x, Tensor kernel) -> Tensor",
    fake=lambda x, kernel: x.new_empty(len(x), kernel.shape[1]),
    save=save_factors,
    backward=gradients,
)
def product(x: Tensor, kernel: Tensor) -> Tensor:
    """x @ kernel of two matrices in float32."""
    # A part of a matrix would go to oneDNN's reference code: it is copied if there are enough rows to make up for that.
    if len(x) < FEW_ROWS and not (kernel.is_contiguous() or kernel.T.is_contiguous()):
        return x @ kernel
    weight = kernel.T.contiguous() if kernel.stride(0) == 1 else kernel.contiguous().T
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, None, "none", [], "")
