"""Functions as operators of PyTorch: with gradients, opaque to its compiler, known by shape to its fake tensors.

`torch.library.custom_op` does the same in fewer words, but loads the compiler when an operator is first called: a second and
0.1 GiB, for people who compile nothing.
"""

import functools
import weakref
from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("denet", "FRAGMENT")
for _reference in weakref.getweakrefs(LIBRARY):
    _reference.__callback__.detach()  # else the operators vanish when the interpreter ends, while other threads may be in one


def operator(
    schema: str,
    fake: Callable,
    save: Callable | None = None,
    backward: Callable | None = None,
    devices: tuple[str, ...] = ("CPU",),
) -> Callable:
    """Decorate a function on `devices` as the operator denet::NAME of `schema`, "(arguments) -> results".

    `fake` makes results without numbers, for the compiler. `save` (ctx, inputs, output) keeps what `backward` (ctx, *grads)
    needs; without them the operator is somebody's backward pass, which cannot be differentiated again.
    """

    def register(function: Callable) -> Callable:
        name = function.__name__
        LIBRARY.define(name + schema)
        for device in devices:
            LIBRARY.impl(name, on_its_gpu(function) if device == "CUDA" else function, device)
        torch.library.register_fake(f"denet::{name}", fake, lib=LIBRARY)
        torch.library.register_autograd(f"denet::{name}", backward or refuse, setup_context=save, lib=LIBRARY)
        return getattr(torch.ops.denet, name).default

    return register


def on_its_gpu(function: Callable) -> Callable:
    """A function that works on the GPU where its first argument lies: kernels start on the current one, which may be another."""

    @functools.wraps(function)
    def work(first: torch.Tensor, *others):
        with torch.cuda.device_of(first):
            return function(first, *others)

    return work


def refuse(*_):
    raise RuntimeError('fast paths are differentiated once: for gradients of gradients use `with denet_torch.using("plain")`')


def once(backward: Callable) -> Callable:
    """Decorate a backward pass that cannot be differentiated again: it says what can."""

    @functools.wraps(backward)
    def only_once(*args):
        if torch.is_grad_enabled():  # somebody wants a graph of the gradients
            refuse()
        return backward(*args)

    return only_once
