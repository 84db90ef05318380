"""Keras's .h5: what Keras 2.2.4 writes for the original (`save_weights`, `save`), and Keras 2 and tf_keras.

Also of a model that holds a DENet (`Model(i, denet(i))`, a Sequential), whose weights one of its layers lists.
"""

import json
from pathlib import Path

import numpy as np

from denet_torch.architecture import LAYERS, NAMES, keras_name, transposed

from . import Weights, WeightsError
from .architecture import check_types, facts
from .files import line
from .hdf5 import Tree, writing
from .keras_layers import assign, in_order

# The layers that the original's file has, each a run of the port's; it has no "attention".
BLOCKS = {
    **{layer: [layer] for layer in ("sinc", "conv1", "norm1", "conv2", "norm2")},
    "gru": ["gru.forward_gru", "gru.backward_gru"],
    **{layer: [layer] for layer in ("dense1", "batch_norm1", "dense2", "batch_norm2", "dense3")},
}


def read_keras2(path: Path, tree: Tree) -> Weights:
    """Weights of a file with Keras 2's layout, of a DENet or of its attention network alone. Raises WeightsError."""
    root = "model_weights/" if "model_weights" in tree.attributes else ""
    top = tree.attributes[root.rstrip("/")]
    if "layer_names" not in top:
        raise WeightsError(f"{path}: has no attribute layer_names: no file that Keras's save or save_weights wrote")
    places, layer_of = {}, {}  # name of a weight within its layer -> of the dataset, of the layer
    listed = top["layer_names"]
    if len(set(listed)) < len(listed):
        raise WeightsError(f"{path}: lists a layer twice")
    for layer in listed:
        group = tree.attributes.get(f"{root}{layer}")
        if group is None or "weight_names" not in group:
            raise WeightsError(f"{path}: the layer {layer} that it lists is not in it")
        for name in group["weight_names"]:
            if f"{root}{layer}/{name}" not in tree.datasets:
                raise WeightsError(f"{path}: the weight {layer}/{name} that it lists is not in it")
            if f"{layer}/{name}" in places:
                raise WeightsError(f"{path}: lists the weight {layer}/{name} twice")
            places[f"{layer}/{name}"] = f"{root}{layer}/{name}"
            layer_of[f"{layer}/{name}"] = layer
    if extra := sorted(tree.datasets.keys() - set(places.values())):
        raise WeightsError(f"{path}: {extra[0]} is in it but not listed among its layers' weights")
    if not places:
        raise WeightsError(f"{path}: holds no weights")

    # Within a layer that is itself a model Keras lists what is not trained (moving averages, frozen layers) last.
    place = {layer: i for i, layer in enumerate(listed)}
    ordered = sorted(places, key=lambda name: (place[layer_of[name]], in_order(name)))
    weights, found = Weights(path, {}, {}), assign(path, ordered)
    for name in NAMES:
        if name in found:
            weights.tensors[name] = transposed(name, tree.datasets[places[found[name]]])
            weights.origin[name] = found[name].removeprefix(f"{layer_of[found[name]]}/")
    check_types(weights)
    if "optimizer_weights" in tree.attributes:
        weights.notes.append("the optimizer's state is left out")
    if "model_config" in tree.attributes[""]:
        weights.known = _known(path, tree.attributes[""]["model_config"])
    elif len(listed) == len(_original_layers(dropout=0)):  # its dropout layers are built only if their rate is not 0
        weights.known = {"dropout": 0.0}
    return weights


def write_keras_h5(tensors: dict[str, np.ndarray], config: dict, path: Path) -> None:
    """The file that the original's `save_weights` writes for this architecture in a fresh process: without the attention."""
    with writing(path) as file:
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


def _known(path: Path, model_config: str) -> dict:
    """What the configuration in a `save` file tells about the architecture."""
    try:
        layers = _flat(json.loads(model_config)["config"])
        wrapped = [layer["config"].get("layer", layer) for layer in layers]
        kinds = [layer["class_name"] for layer in wrapped]
        known = {"before_pooling": kinds.index("DELayer") < kinds.index("MaxPooling1D")} if "DELayer" in kinds else {}
        shapes = [shape for layer in layers if (shape := layer["config"].get("batch_input_shape"))]
        if shapes:
            known["input_shape"] = shapes[0][1:]
        _check_head(path, wrapped)
        rates = [layer["config"]["rate"] for layer in wrapped if layer["class_name"] in ("SpatialDropout1D", "Dropout")]
        known["dropout"] = float(rates[0]) if rates else 0.0
        sinc = wrapped[kinds.index("SincConv1D")]["config"] if "SincConv1D" in kinds else {}
        if rate := sinc.get("fs", sinc.get("sr")):
            known["sr"] = rate
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: its model_config cannot be read ({line(error)})") from None
    return facts(path, known)


def _check_head(path: Path, layers: list[dict]) -> None:
    """Raise WeightsError unless the last Dense of `layers` has a softmax, and nothing but dropout comes behind it."""
    last = max((i for i, layer in enumerate(layers) if layer["class_name"] == "Dense"), default=len(layers))
    behind = [layer for layer in layers[last:] if layer["class_name"] not in ("Dropout", "InputLayer")]
    head = ["softmax" if x["class_name"] == "Softmax" else x["config"].get("activation", x["class_name"]) for x in behind]
    if head not in ([], ["softmax"], ["linear", "softmax"]):
        kinds = ", ".join(map(str, head))
        raise WeightsError(f"{path}: behind its last dense layer the model has {kinds} where DENet has a softmax")


def _flat(config: dict | list) -> list[dict]:
    """The layers of a model's configuration, those of models within it in their place. (Old Sequentials have a plain list.)"""
    layers = config["layers"] if isinstance(config, dict) else config
    nested = lambda layer: isinstance(layer["config"], list) or "layers" in layer["config"]  # noqa: E731
    return [inner for layer in layers for inner in (_flat(layer["config"]) if nested(layer) else [layer])]
