"""Weights for the tests of the layers."""

import torch


def band_weights() -> list[torch.Tensor]:
    """Kernels and biases of the attention network's three convolutions."""
    shapes = (30, 1, 7), (30,), (30, 30, 7), (30,), (10, 30, 7), (10,)
    return [torch.randn(shape, dtype=torch.float64).mul_(0.3).requires_grad_() for shape in shapes]
