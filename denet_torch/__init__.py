"""DENet (Greco et al. 2021) in PyTorch: sound events found frame by frame in raw audio."""

import importlib.util

from . import dispatch
from .boxes import Boxes
from .checkpoint import CheckpointError, from_pretrained, load, save, save_pretrained
from .detection import detect
from .dispatch import explain, using
from .measures import measure
from .model import DENet, get_denet
from .models import MODELS, Model, register
from .plotting import plot
from .sincnet import SincNet

if importlib.util.find_spec("denet_torch.fast"):  # without it all is there but speed
    from .fast import BACKENDS

    dispatch.add_backends(BACKENDS)

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
