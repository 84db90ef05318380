"""Weights for the tests of the layers, and the attention's convolutions without the bands that they hand on."""

import torch

from denet_torch.layers import KEPT, band_convolutions_in_parts


def band_weights() -> list[torch.Tensor]:
    """Kernels and biases of the attention network's three convolutions."""
    shapes = (30, 1, 7), (30,), (30, 30, 7), (30,), (10, 30, 7), (10,)
    return [torch.randn(shape, dtype=torch.float64).mul_(0.3).requires_grad_() for shape in shapes]


def in_parts(x: torch.Tensor, *weights: torch.Tensor, kept: int = KEPT) -> torch.Tensor:
    return band_convolutions_in_parts(x, kept, *weights)[0]
