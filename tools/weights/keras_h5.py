"""Keras's .h5: what Keras 2.2.4 writes for the original (`save_weights`, `save`), and Keras 2 and tf_keras.

Layer names carry whatever counters their process had reached, so that layers are matched by order and kind.
"""

import json
import re
from pathlib import Path

import h5py
import numpy as np

from . import Weights, WeightsError
from .architecture import check_types, facts
from .files import line, read_bytes
from .hdf5 import read_tree
from .names import LAYERS, keras_name, transposed

# The layers that a Keras file has, each a run of the port's; the original's has no "attention".
BLOCKS = {
    "sinc": ["sinc"],
    "attention": [layer for layer in LAYERS if layer.startswith("attention.")],
    "conv1": ["conv1"],
    "norm1": ["norm1"],
    "conv2": ["conv2"],
    "norm2": ["norm2"],
    "gru": ["gru.forward_gru", "gru.backward_gru"],
    **{layer: [layer] for layer in ("dense1", "batch_norm1", "dense2", "batch_norm2", "dense3")},
}


def read_keras_h5(path: Path) -> Weights:
    """Weights of a Keras .h5 (or .h5.gz), the attention's only if the file holds them. Raises WeightsError."""
    tree = read_tree(path, read_bytes(path))
    root = "model_weights/" if "model_weights" in tree.attributes else ""
    top = tree.attributes[root.rstrip("/")]
    if "layer_names" not in top:
        raise WeightsError(f"{path}: has no attribute layer_names: no file that Keras's save or save_weights wrote")
    layers = {}  # of those with weights: {name: {weight's name: array}}
    for layer in top["layer_names"]:
        group = tree.attributes.get(f"{root}{layer}")
        if group is None or "weight_names" not in group:
            raise WeightsError(f"{path}: the layer {layer} that it lists is not in it")
        if layer in layers:
            raise WeightsError(f"{path}: lists the layer {layer} twice")
        names = group["weight_names"]
        if missing := [name for name in names if f"{root}{layer}/{name}" not in tree.datasets]:
            raise WeightsError(f"{path}: the weight {layer}/{missing[0]} that it lists is not in it")
        if names:
            layers[layer] = {name: tree.datasets[f"{root}{layer}/{name}"] for name in names}
    listed = {f"{root}{layer}/{name}" for layer, weights in layers.items() for name in weights}
    if extra := sorted(tree.datasets.keys() - listed):
        raise WeightsError(f"{path}: {extra[0]} is in it but not listed among its layers' weights")

    blocks = [block for block in BLOCKS if block != "attention" or len(layers) == len(BLOCKS)]
    if len(layers) != len(blocks):
        expected = f"DENet has {len(BLOCKS) - 1}, and one more where its attention is saved"
        raise WeightsError(f"{path}: has {len(layers)} layers with weights; {expected}")
    weights = Weights(path, {}, {})
    for (layer, found), block in zip(layers.items(), blocks, strict=True):
        names = [f"{part}.{leaf}" for part in BLOCKS[block] for leaf in LAYERS[part]]
        kinds, expected = [_kind(name) for name in found], [keras_name(name).rsplit("/")[-1] for name in names]
        if kinds != expected:
            raise WeightsError(f"{path}: the layer {layer} holds {', '.join(kinds)} where {block} has {', '.join(expected)}")
        for name, (origin, array) in zip(names, found.items(), strict=True):
            weights.tensors[name] = transposed(name, array)
            weights.origin[name] = origin
    check_types(weights)
    if "optimizer_weights" in tree.attributes:
        weights.notes.append("the optimizer's state is left out")
    if "model_config" in tree.attributes[""]:
        weights.known = _known(path, tree.attributes[""]["model_config"])
    elif len(top["layer_names"]) == len(_original_layers(dropout=0)):  # its dropout layers are built only if their rate is not 0
        weights.known = {"dropout": 0.0}
    return weights


def write_keras_h5(tensors: dict[str, np.ndarray], config: dict, path: Path) -> None:
    """The file that the original's `save_weights` writes for this architecture in a fresh process: without the attention."""
    with h5py.File(path, "w") as file:
        layers = _original_layers(config["dropout"])
        file.attrs["layer_names"] = np.array([name.encode() for name, _ in layers])
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.2.4"
        for layer, block in layers:
            group = file.create_group(layer)
            names = [f"{part}.{leaf}" for part in BLOCKS.get(block, ()) for leaf in LAYERS[part]]
            stored = [_original_name(layer, name) for name in names]
            group.attrs["weight_names"] = np.array([name.encode() for name in stored])
            for name, original in zip(names, stored, strict=True):
                group[original] = np.ascontiguousarray(transposed(name, tensors[name]))


def _original_layers(dropout: float) -> list[tuple[str, str]]:
    """(name, kind) of the original's layers; those of a kind in BLOCKS hold weights, the attention's layer does not."""
    drop = ["dropout"] if dropout else []
    front = ["sinc", "", "", "", *drop, "conv1", "", "norm1", "", *drop, "conv2", "", "norm2", "", *drop, "flatten"]
    back = ["dense1", "batch_norm1", "", *drop, "dense2", "batch_norm2", "", *drop, "dense3"]
    wrapped = [(f"time_distributed_{i}", kind) for i, kind in enumerate(front + back, 1)]
    return [("input_1", ""), *wrapped[: len(front)], ("bidirectional_1", "gru"), *wrapped[len(front) :]]


def _original_name(layer: str, name: str) -> str:
    part, leaf = keras_name(name).rsplit("/", 1)
    if part.startswith("norm"):
        leaf = f"layer_norm_{part[-1]}_{leaf}"
    if part.startswith("gru/"):
        leaf = f"{part[4:]}_1/{leaf}"
    return f"{layer}/{leaf}:0"


def _kind(name: str) -> str:
    """"time_distributed_8/layer_norm_1_scale:0" -> "scale" """
    return re.sub(r"^layer_norm(_\d+)?_", "", name.rsplit("/", 1)[-1].split(":")[0])


def _known(path: Path, model_config: str) -> dict:
    """What the configuration in a `save` file tells about the architecture."""
    try:
        layers = json.loads(model_config)["config"]["layers"]
        wrapped = [layer["config"].get("layer", layer) for layer in layers]
        kinds = [layer["class_name"] for layer in wrapped]
        known = {"before_pooling": kinds.index("DELayer") < kinds.index("MaxPooling1D")} if "DELayer" in kinds else {}
        if shape := layers[0]["config"].get("batch_input_shape"):
            known["input_shape"] = shape[1:]
        rates = [layer["config"]["rate"] for layer in wrapped if layer["class_name"] in ("SpatialDropout1D", "Dropout")]
        known["dropout"] = float(rates[0]) if rates else 0.0
        sinc = wrapped[kinds.index("SincConv1D")]["config"] if "SincConv1D" in kinds else {}
        if rate := sinc.get("fs", sinc.get("sr")):
            known["sr"] = rate
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: its model_config cannot be read ({line(error)})") from None
    return facts(path, known)
