"""Which backend computes an operation of the network: the plain text in `layers.py`, or a faster twin under `fast`.

`BACKENDS` maps a backend's name to its operations, each a pair of functions of the plain one's arguments: the first answers None
if the backend takes them, else why not; the second computes. Backends are asked in this order, the plain text takes what is left.
The environment variable DENET_BACKENDS (names with commas between them) chooses as `using` does.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .backends import asked, known

if importlib.util.find_spec(f"{__package__}.fast"):  # without it all is there but speed
    from .fast import BACKENDS
else:
    BACKENDS: dict[str, dict[str, tuple[Callable, Callable]]] = {}

_chosen = asked(BACKENDS)  # None: all
_notes: list[tuple[str, str, dict[str, str]]] | None = None  # what `explain` listens to


def operation(plain: Callable) -> Callable:
    """Decorate a function that may have faster twins; its own text is the backend "plain"."""

    @functools.wraps(plain)
    def operate(*args):
        name, refused = plain.__name__, {}
        for backend, operations in BACKENDS.items():
            if name not in operations:
                continue
            why_not, compute = operations[name]
            refused[backend] = _barred(backend) or why_not(*args)
            if refused[backend] is None:
                break
        else:
            backend, compute = "plain", plain
        if _notes is not None:
            _notes.append((f"{name} {tuple(args[0].shape)}", backend, {b: reason for b, reason in refused.items() if reason}))
        return compute(*args)

    return operate


def _barred(backend: str) -> str | None:
    # The one rule for tracing: what is exported runs elsewhere, so it is plain. A compiler takes what PyTorch knows as operators.
    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing():
        return "the model is being exported"
    if _chosen is not None and backend not in _chosen:
        return f"not among {', '.join(_chosen)}"
    return None


@contextmanager
def using(*backends: str) -> Iterator[None]:
    """Within it only these backends are asked, the plain text takes what they leave; "plain" alone asks nobody.

    Raises ValueError for a name that is no backend.
    """
    global _chosen
    before, _chosen = _chosen, known(backends, BACKENDS)
    try:
        yield
    finally:
        _chosen = before


@torch.no_grad()
def explain(model: nn.Module, x: Tensor) -> None:
    """Print, for each operation of `model(x)`, the backend that takes it and why those asked before do not."""
    global _notes
    _notes = []
    try:
        model(x)
        for note in dict.fromkeys((what, backend, *refused.items()) for what, backend, refused in _notes):
            what, backend, *refused = note
            print(f"{what}: {backend}" + "".join(f"; not {other}: {reason}" for other, reason in refused))
    finally:
        _notes = None
