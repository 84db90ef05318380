"""Keras's newer formats as tf_keras and Keras 3 write them for `reference_tf`: .weights.h5, and .keras, a zip around one.

Weights are numbered within objects, and objects are named by the attributes or lists in which the saver met them first.
"""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np

from denet_torch.architecture import LAYERS, NAMES, transposed

from . import Weights, WeightsError
from .architecture import check_types, facts
from .files import parsed, read_bytes, unzip
from .hdf5 import read_tree, writing
from .keras_h5 import read_keras2

# tf_keras goes through a model's attributes in reverse order of the alphabet, and `layers` is one of them.
LISTED = {
    "attention": "layers/de_layer",
    "conv1": "layers/conv1d",
    "conv2": "layers/conv1d_1",
    "gru": "layers/bidirectional",
    "dense1": "layers/dense",
    "dense2": "layers/dense_1",
    "dense3": "layers/dense_2",
    "batch_norm1": "layers/batch_norm",
    "batch_norm2": "layers/batch_norm_1",
}
VERSION = "2.21.0"  # of the tf_keras whose layout this is


def read_hdf5(path: Path) -> Weights:
    """Weights of an HDF5 file, gzipped or not, whose layout tells Keras 2 from what is newer. Raises WeightsError."""
    return _hdf5(path, read_bytes(path), {})


def read_keras(path: Path) -> Weights:
    """Weights and architecture of a .keras. Raises WeightsError. Nothing in the archive is executed."""
    members = unzip(path, lambda name: name in ("config.json", "model.weights.h5"))
    if len(members) < 2:
        raise WeightsError(f"{path}: lacks config.json or model.weights.h5")
    config = parsed(path, members["config.json"], "config.json").get("config")
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: its config.json cannot be read (it has no config)")
    return _hdf5(path, members["model.weights.h5"], facts(path, config))


def write_weights_h5(tensors: dict[str, np.ndarray], config: dict, path: Path) -> None:
    """The file that `load_weights` of the `reference_tf` model of this architecture takes."""
    with writing(path) as file:
        _fill(file, tensors, config)


def write_keras(tensors: dict[str, np.ndarray], config: dict, path: Path) -> None:
    """The archive from which tf_keras's `load_model` rebuilds the `reference_tf` model (after `import reference_tf`)."""
    dtype = tensors["conv1.weight"].dtype.name
    description = {
        "module": "reference_tf",
        "class_name": "DENet",
        "config": {**config, "dtype": dtype, "name": "de_net"},
        "registered_name": "reference_tf>DENet",
        "build_config": {"input_shape": [1, *config["input_shape"][:2]]},
    }
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        _fill(file, tensors, config)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": VERSION}))
        archive.writestr("config.json", json.dumps(description))
        archive.writestr("model.weights.h5", weights.getbuffer())


def _hdf5(path: Path, data: bytes, known: dict) -> Weights:
    tree = read_tree(path, data)
    if "model_weights" in tree.attributes or "layer_names" in tree.attributes[""]:
        weights = read_keras2(path, tree)
        weights.known |= known
        return weights
    places = {}  # in the file -> name here
    for layer, leaves in LAYERS.items():
        for prefix in {layer.replace(".", "/"), _listed(layer)}:
            places |= {f"{prefix}/vars/{i}": f"{layer}.{leaf}" for i, leaf in enumerate(leaves)}
    weights = Weights(path, {}, {}, known)
    for origin, array in tree.datasets.items():
        name = places.get(origin)
        if name is None or name in weights.tensors:
            raise WeightsError(f"{path}: {origin} is {'there twice' if name else 'no weight of a DENet'}")
        weights.tensors[name], weights.origin[name] = transposed(name, array), origin
    if "optimizer" in tree.attributes:
        weights.notes = ["the optimizer's state is left out"]
    if not weights.tensors:
        raise WeightsError(f"{path}: holds no weights")
    weights.tensors = {name: weights.tensors[name] for name in NAMES if name in weights.tensors}
    check_types(weights)
    return weights


def _fill(file: h5py.File, tensors: dict[str, np.ndarray], config: dict) -> None:
    file.create_group("vars")
    for layer, leaves in LAYERS.items():
        # an attention that is not trained is not in the model's list of layers either
        hidden = layer.startswith("attention") and not config["train_attention"]
        group = file.create_group(f"{layer.replace('.', '/') if hidden else _listed(layer)}/vars")
        for i, leaf in enumerate(leaves):
            name = f"{layer}.{leaf}"
            group[str(i)] = np.ascontiguousarray(transposed(name, tensors[name]))


def _listed(layer: str) -> str:
    head, *rest = layer.split(".")
    return "/".join([LISTED.get(head, head), *rest])
