"""DENet (Greco et al. 2021) in PyTorch: sound events found frame by frame in raw audio."""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors; what runs stands below, as PyTorch takes a second to import, and help needs none
    from .boxes import Boxes
    from .checkpoint import CheckpointError, from_pretrained, load, save, save_pretrained
    from .detection import detect
    from .dispatch import explain, using
    from .measures import measure
    from .model import DENet, get_denet
    from .models import MODELS, Model, register
    from .plotting import plot
    from .sincnet import SincNet

__all__ = [
    "MODELS",
    "Boxes",
    "CheckpointError",
    "DENet",
    "Model",
    "SincNet",
    "detect",
    "explain",
    "from_pretrained",
    "get_denet",
    "load",
    "measure",
    "plot",
    "register",
    "save",
    "save_pretrained",
    "using",
]

_HOMES = {
    "boxes": ["Boxes"],
    "checkpoint": ["CheckpointError", "from_pretrained", "load", "save", "save_pretrained"],
    "detection": ["detect"],
    "dispatch": ["explain", "using"],
    "measures": ["measure"],
    "model": ["DENet", "get_denet"],
    "models": ["MODELS", "Model", "register"],
    "plotting": ["plot"],
    "sincnet": ["SincNet"],
}


def __getattr__(name: str) -> Any:
    """A public name, at whose first use all are imported, so that MODELS is complete; or a module of this package."""
    if name in __all__:
        for home, names in _HOMES.items():
            module = importlib.import_module(f".{home}", __name__)
            globals().update({public: getattr(module, public) for public in names})
        return globals()[name]
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
