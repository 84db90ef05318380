"""Other operations of PyTorch than the plain text has, and backward passes written by hand."""

import torch
from torch import Tensor

from .gru import gru_steps
from .product import fits, linear, multiply


def gru_not_for(inputs: Tensor, recurrent_kernel: Tensor) -> str | None:
    if torch.compiler.is_compiling():
        return "a compiler takes the plain loop"
    return None


def multiply_not_for(x: Tensor, kernel: Tensor) -> str | None:
    if not (fits(x) and fits(kernel)):
        return "not float32 on a CPU with oneDNN"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the type of a plain product"
    if not x.numel():
        return "nothing to multiply"
    return None


def linear_not_for(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    return multiply_not_for(x, weight)


OPERATIONS = {
    "gru_steps": (gru_not_for, gru_steps),
    "multiply": (multiply_not_for, multiply),
    "linear": (linear_not_for, linear),
}
