"""Convolutions, the steps of a GRU and products of few rows, compiled by numba for the CPU at hand.

This table says what is taken; numba, which takes a second to import, is loaded when something is.
"""

import functools
import importlib.util
import warnings

import torch
from torch import Tensor

from ...architecture import attention_steps

LEAST_FRAMES, LEAST_FILTERS = 8, 10  # of a convolution of waveforms: fewer do not wait for a compiler, or fill no tile
LEAST_BANDS, LEAST_STEPS = 512, 10  # bands of the attention's convolutions, and steps that they leave
LEAST_UNITS, WHOLE = 256, 16  # units of a GRU, and what they are a multiple of
LEAST_CHUNKS, TILE = 4, 10  # of SincNet, and what its channels are a multiple of
ROWS, LEAST_WEIGHTS = range(5, 11), 2**21  # of a product: reading the kernel is what it waits for
TILE_ROWS, BLOCK = range(64, 129), 32  # of a product in tiles: they fit into a core's cache; what its columns are a multiple of


INSTALLED = importlib.util.find_spec("numba") is not None


@functools.cache
def say_once() -> None:
    warnings.warn("numba is not installed: the network runs its plain text on the CPU, slower (pip install numba)", stacklevel=2)


def not_for(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"on {x.device.type}, not a CPU"
    if x.dtype not in (torch.float32, torch.float64):
        return f"{str(x.dtype).removeprefix('torch.')}, not float32 or float64"
    if not INSTALLED:
        if not torch.compiler.is_compiling():
            say_once()
        return "numba is not installed"
    return None


def waveform_not_for(x: Tensor, filters: Tensor) -> str | None:
    if len(x) < LEAST_FRAMES or len(filters) < LEAST_FILTERS:
        return f"fewer than {LEAST_FRAMES} frames or {LEAST_FILTERS} filters"
    if x.requires_grad and torch.is_grad_enabled():
        return "gradients of the waveform are wanted"
    if x.dtype != filters.dtype:
        return "waveform and filters are of two types"
    return not_for(x)


def bands_not_for(x: Tensor, w1: Tensor, *others: Tensor) -> str | None:
    if len(x) < LEAST_BANDS or attention_steps(x.shape[1]) < LEAST_STEPS:
        return f"fewer than {LEAST_BANDS} bands or {LEAST_STEPS} steps that are left"
    if x.dtype != w1.dtype:
        return "bands and weights are of two types"
    return not_for(x)


def gru_not_for(inputs: Tensor, recurrent_kernel: Tensor) -> str | None:
    if len(recurrent_kernel) < LEAST_UNITS or len(recurrent_kernel) % WHOLE:
        return f"fewer than {LEAST_UNITS} units or no multiple of {WHOLE}"
    if not inputs.numel():
        return "nothing to go through"
    if inputs.dtype != recurrent_kernel.dtype:
        return "inputs and kernel are of two types"
    return not_for(inputs)


def multiply_not_for(x: Tensor, kernel: Tensor) -> str | None:
    if x.numel() not in (rows * x.shape[-1] for rows in ROWS) or kernel.numel() < LEAST_WEIGHTS:
        return f"not {ROWS[0]} to {ROWS[-1]} rows and a kernel of {LEAST_WEIGHTS} numbers"
    if kernel.stride(1) != 1 or kernel.shape[1] % WHOLE:
        return f"rows of the kernel are not contiguous, or no multiple of {WHOLE}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the type of a plain product"
    if x.dtype != torch.float32 or kernel.dtype != torch.float32:
        return "not float32"
    return not_for(x)


def chunks_not_for(x: Tensor, *channels: int) -> str | None:
    if len(x) < LEAST_CHUNKS or any(count % TILE for count in channels):
        return f"fewer than {LEAST_CHUNKS} chunks, or channels that are no multiple of {TILE}"
    if torch.compiler.is_compiling():
        return "a compiler takes the plain text"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses types"
    return not_for(x)


def linear_not_for(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    if len(x) not in TILE_ROWS or weight.numel() < LEAST_WEIGHTS or len(weight) % BLOCK:
        return f"not {TILE_ROWS[0]} to {TILE_ROWS[-1]} rows and {LEAST_WEIGHTS} weights, or columns are no multiple of {BLOCK}"
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return "gradients are wanted"
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return "not float32"
    return chunks_not_for(x) or (None if tiles() else "a processor without tiles")


def tiles() -> bool:
    from . import amx

    return amx.AMX


def norm_not_for(x: Tensor, *others) -> str | None:
    return chunks_not_for(x)


def sinc_pool_not_for(x: Tensor, filters: Tensor) -> str | None:
    return chunks_not_for(x) or numbers_not_for(x, filters) or filters_not_for(filters)


def numbers_not_for(*tensors: Tensor) -> str | None:
    # A transform would spread them over all that it sees. A sum shows them, and takes no memory.
    return None if all(tensor.sum().isfinite() for tensor in tensors) else "what is no number, or infinite"


def filters_not_for(filters: Tensor) -> str | None:
    if filters.shape[1] % 2 == 0 or not torch.equal(filters, filters.flip(1)):
        return "filters that are not symmetric"
    return None


def conv_pool_not_for(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    return chunks_not_for(x, *weight.shape[:2]) or numbers_not_for(x, weight, bias)


def conv_layers_not_for(x: Tensor, filters: Tensor, slope: float, *weights: Tensor) -> str | None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, filters, *weights)):
        return "gradients are wanted"
    channels = (count for weight in weights[2::4] for count in weight.shape[:2])
    return chunks_not_for(x, *channels) or numbers_not_for(x, filters, *weights) or filters_not_for(filters)


def convolve_waveform(x: Tensor, filters: Tensor) -> Tensor:
    from .waveform import convolve

    return convolve(x, filters).transpose(1, 2)  # the bands are the rows that the attention reads


def band_convolutions(x: Tensor, *weights: Tensor) -> Tensor:
    from .bands import convolve_bands

    return convolve_bands(x, *weights)


def gru_steps(inputs: Tensor, recurrent_kernel: Tensor) -> Tensor:
    from .gru import states

    return states(inputs, recurrent_kernel)


def multiply(x: Tensor, kernel: Tensor) -> Tensor:
    from .product import few_rows

    return few_rows(x.flatten(0, -2), kernel).view(*x.shape[:-1], -1)


def norm(x: Tensor, gamma: Tensor, beta: Tensor, slope: float = 1.0) -> Tensor:
    from .sincnet import Norm

    return Norm.apply(x, gamma, beta, slope)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from .amx import linear

    return linear(x, weight, bias)


def sinc_pool(x: Tensor, filters: Tensor) -> Tensor:
    from .sincnet import SincPool

    return SincPool.apply(x, filters[:, filters.shape[1] // 2 :])


def conv_pool(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from .sincnet import ConvPool

    return ConvPool.apply(x, weight, bias)


def conv_layers(x: Tensor, filters: Tensor, slope: float, *weights: Tensor) -> Tensor:
    from . import chunks, sincnet

    further = x.dtype == torch.float32 and len(weights) > 2  # convolutions, of which the filters are none
    conv_layers = chunks.conv_layers if further and tiles() else sincnet.conv_layers
    return conv_layers(x, filters[:, filters.shape[1] // 2 :], slope, *weights)


OPERATIONS = {
    "convolve_waveform": (waveform_not_for, convolve_waveform),
    "band_convolutions": (bands_not_for, band_convolutions),
    "gru_steps": (gru_not_for, gru_steps),
    "multiply": (multiply_not_for, multiply),
    "linear": (linear_not_for, linear),
    "norm": (norm_not_for, norm),
    "sinc_pool": (sinc_pool_not_for, sinc_pool),
    "conv_pool": (conv_pool_not_for, conv_pool),
    "conv_layers": (conv_layers_not_for, conv_layers),
}
