"""From any format to any other: read, find the architecture, check, write."""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from denet_torch.architecture import ATTENTION
from denet_torch.files import reason, replacing

from . import Weights, WeightsError
from .architecture import check, lacks_attention, resolve
from .contents import contents
from .keras_h5 import write_keras_h5
from .keras_v3 import read_hdf5, read_keras, write_keras, write_weights_h5
from .npz import read_attention_npz, read_npz, write_npz
from .safetensors_file import read_safetensors, write_safetensors


def _later(module: str, function: str) -> Callable:
    """`function` of a module that imports a library which takes seconds, imported when it is called."""
    return lambda *arguments: getattr(importlib.import_module(f".{module}", __package__), function)(*arguments)


READERS = {  # by what `contents` finds
    "safetensors": read_safetensors,
    "HDF5": read_hdf5,
    "keras": read_keras,
    "npz": read_npz,
    "torch": _later("torch_files", "read_pt"),
    "checkpoint": _later("tensorflow_files", "read_checkpoint"),
    "graph": _later("tensorflow_files", "read_frozen"),
    "folder": _later("tensorflow_files", "read_folder"),
}
WRITERS = {
    ".safetensors": write_safetensors,
    ".h5": write_keras_h5,
    ".weights.h5": write_weights_h5,
    ".keras": write_keras,
    ".npz": write_npz,
    ".pt": _later("torch_files", "write_pt"),
    ".pt2": _later("torch_files", "write_pt2"),
    ".onnx": _later("onnx_file", "write_onnx"),
}
HOLD_DETECTION = (".safetensors", ".npz", ".onnx")


def convert(
    source: Path, target: Path, attention: str | None = None, asked: dict | None = None
) -> tuple[Weights, dict, list[str]]:
    """Convert the weights in `source`, whose contents tell its format, to `target`, whose ending does.

    `attention`: a file with the attention's weights, or "init" to start them fresh. `asked`: what the user says of
    DENet's arguments (the keys of `architecture.OPTIONS`), checked against the file. Returns the weights, the
    configuration and what the user should know. Raises WeightsError; `target` is then as it was.
    """
    format = ending(target)
    if not target.absolute().parent.is_dir():
        raise WeightsError(f"{target}: there is no folder {target.parent}")
    weights, config, notes = read_whole(source, attention, asked or {})
    try:
        with replacing(target) as temporary:
            detection = [weights.detection] if format in HOLD_DETECTION else []
            WRITERS[format](weights.tensors, config, temporary, *detection)
    except ImportError as error:
        raise WeightsError(f"{target}: {error.name} is needed to write it, and not installed") from None
    except (OSError, SafetensorError, RuntimeError) as error:  # h5py, PyTorch and zipfile have RuntimeErrors for a full disk
        raise WeightsError(f"{target}: cannot be written ({reason(error)})") from None
    if weights.detection and format not in HOLD_DETECTION:
        notes.append(f"{format} has no place for the class names and the threshold that belong to these weights")
    if format == ".h5":
        notes.append("the original's .h5 has no place for the attention's weights; convert to .npz too to keep them")
    return weights, config, notes


def read_whole(source: Path, attention: str | None, asked: dict) -> tuple[Weights, dict, list[str]]:
    """The weights of `source`, attention included, their configuration, and what was assumed. Raises WeightsError."""
    weights = read(source)
    if not lacks_attention(weights):
        if attention:
            raise WeightsError(f"{source}: has attention weights of its own; --attention is for files without")
    elif attention is None:
        raise WeightsError(
            f"{source}: holds no attention weights, which the original's Keras never saves. Give --attention FILE.npz "
            "(tools/keras224_export.py writes it), or --attention init and train the model further"
        )
    elif attention != "init":
        supplied = read_attention(Path(attention))
        weights.tensors |= supplied.tensors
        weights.origin |= {name: f"{attention}: {origin}" for name, origin in supplied.origin.items()}
        weights.known = supplied.known | weights.known
        weights.recorded = supplied.recorded
    config, notes = resolve(weights, asked)
    if attention == "init":
        weights.tensors |= _fresh_attention(config, weights.tensors["conv1.weight"].dtype)
        weights.origin |= {name: "drawn from its initial distribution" for name in ATTENTION}
        weights.assumed.append("the attention's weights were drawn, and are not those of the model that wrote the file")
    check(weights, config)
    return weights, config, weights.notes + notes


def _fresh_attention(config: dict, dtype: np.dtype) -> dict[str, np.ndarray]:
    import torch

    from denet_torch.layers import DELayer

    samples = config["input_shape"][1]
    torch.manual_seed(0)
    layer = DELayer(samples if config["before_pooling"] else samples // 3)
    return {f"attention.{name}": tensor.numpy().astype(dtype) for name, tensor in layer.state_dict().items()}


def read(path: Path) -> Weights:
    """The weights that lie at `path`, whatever its name. Raises WeightsError."""
    if not path.exists() and path.with_name(f"{path.name}.index").is_file():  # as TensorFlow names a checkpoint
        path = path.with_name(f"{path.name}.index")
    try:
        return READERS[contents(path)](path)
    except ImportError as error:
        raise WeightsError(f"{path}: {error.name} is needed to read it, and not installed") from None


def read_attention(path: Path) -> Weights:
    """The attention's weights in the file `path`, which may hold others too. Raises WeightsError."""
    if path.is_file() and contents(path) == "npz":
        return read_attention_npz(path)
    weights = read(path)
    if lacks_attention(weights):
        raise WeightsError(f"{path}: holds no attention weights either")
    weights.tensors = {name: weights.tensors[name] for name in ATTENTION}
    return weights


def ending(path: Path) -> str:
    """The longest key of WRITERS that the name of `path` ends in. Raises WeightsError if there is none."""
    matching = [ending for ending in WRITERS if path.name.endswith(ending)]
    if not matching:
        raise WeightsError(f"{path}: the ending tells what is written: {' '.join(WRITERS)}")
    return max(matching, key=len)
