"""Under which conditions an operation is computed: autocast's type, who watches, what may be kept for the backward pass."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

KEPT = 2**25  # numbers that a forward pass may keep so that its backward pass computes less again

_parts = 1


def traced() -> bool:
    """Whether a compiler or an exporter watches, which would write down a loop as so many steps."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@contextmanager
def one_of(parts: int) -> Iterator[None]:
    """Within it a forward pass is done in so many parts, each of which may keep its share of what all may."""
    global _parts
    before, _parts = _parts, parts
    try:
        yield
    finally:
        _parts = before


def may_keep() -> int:
    """So many numbers, of those that it would otherwise compute again, an operation may keep for the backward pass."""
    return KEPT // _parts if torch.is_grad_enabled() else 0


def whole(x: Tensor) -> AbstractContextManager:
    """Within it autocast leaves alone what is computed from x: for numbers, or gradients, beyond what half precision holds."""
    return torch.autocast(x.device.type, enabled=False) if autocast(x) else nullcontext()


def autocast(x: Tensor) -> bool:
    """Whether autocast is at work on x's device; tensors without numbers have none."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast would have the products with x; x's own outside of autocast."""
    return torch.get_autocast_dtype(x.device.type) if autocast(x) else x.dtype
