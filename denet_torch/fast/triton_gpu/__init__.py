"""The steps of a GRU on a GPU, compiled by Triton, which comes with PyTorch for CUDA.

With TRITON_INTERPRET=1 in the environment Triton runs its kernels on a CPU, slowly, and this backend takes what lies there: so it
is tested where there is no GPU.
"""

import functools
import importlib.util
import os
import warnings

import torch
from torch import Tensor

from ...files import reason

INSTALLED = importlib.util.find_spec("triton") is not None
LEAST_UNITS = 128  # of a GRU: fewer do not wait for their products
MOST_NUMBERS = 2**31  # of the inputs, which are counted in 32 bits


def gru_not_for(inputs: Tensor, recurrent_kernel: Tensor) -> str | None:
    if not INSTALLED:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if inputs.device.type != ("cpu" if interpreted else "cuda"):
        return f"on {inputs.device.type}, not a GPU" if not interpreted else "TRITON_INTERPRET is for a CPU"
    if inputs.dtype != recurrent_kernel.dtype:
        return "inputs and kernel are of two types"
    if inputs.dtype != torch.float32 and not (interpreted and inputs.dtype == torch.float64):
        return f"{str(inputs.dtype).removeprefix('torch.')}, not float32"
    if len(recurrent_kernel) < LEAST_UNITS or not 0 < inputs.numel() < MOST_NUMBERS:
        return f"fewer than {LEAST_UNITS} units, or too many numbers or none"
    if interpreted or torch.compiler.is_compiling():  # PyTorch's compiler needs the same, and says so itself
        return None
    return cannot_start()


@functools.cache
def cannot_start() -> str | None:
    """Why Triton starts no kernel on this machine: it builds what starts them, with a C compiler, which slim images lack."""
    try:
        from triton.runtime import driver

        getattr(driver.active, "utils", None)  # which are built
    except Exception as error:
        why = f"Triton starts no kernel here ({reason(error)})"
        warnings.warn(f"{why}: the GRU is computed by PyTorch's own operations, which takes longer", stacklevel=2)
        return why
    return None


def gru_steps(inputs: Tensor, recurrent_kernel: Tensor) -> Tensor:
    from .gru import states

    return states(inputs, recurrent_kernel)


OPERATIONS = {"gru_steps": (gru_not_for, gru_steps)}
