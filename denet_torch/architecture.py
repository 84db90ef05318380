"""DENet in names and numbers: its weights, their shapes and layouts, and the steps of each layer. Needs no PyTorch.

A weight's name is its place in `DENet.state_dict()`, and its attribute path in `reference_tf`, except that the `weight` of
PyTorch's Conv1d and Linear is Keras's `kernel`. Its layout is PyTorch's; Keras's has the axes of such a kernel reversed.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LAYERS = {  # with weights, in the order of the network: names of their weights in Keras's order
    "sinc": ("filt_b1", "filt_band"),
    **{f"attention.{layer}": ("weight", "bias") for layer in ("conv1", "conv2", "conv3", "dense1", "dense2", "dense3")},
    "conv1": ("weight", "bias"),
    "norm1": ("scale", "bias"),
    "conv2": ("weight", "bias"),
    "norm2": ("scale", "bias"),
    "gru.forward_gru": ("kernel", "recurrent_kernel", "bias"),
    "gru.backward_gru": ("kernel", "recurrent_kernel", "bias"),
    "dense1": ("weight", "bias"),
    "batch_norm1": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense2": ("weight", "bias"),
    "batch_norm2": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense3": ("weight", "bias"),
}
NAMES = [f"{layer}.{leaf}" for layer, leaves in LAYERS.items() for leaf in leaves]
ATTENTION = [name for name in NAMES if name.startswith("attention.")]


def keras_name(name: str) -> str:
    """"attention.conv1.weight" -> "attention/conv1/kernel", the name of the object in `reference_tf` and in our .npz files."""
    *owners, leaf = name.split(".")
    return "/".join([*owners, "kernel" if leaf == "weight" else leaf])


PORT_NAMES = {keras_name(name): name for name in NAMES}


def transposed(name: str, array: np.ndarray) -> np.ndarray:
    """Keras's layout to the port's and back: kernels (taps, in, out) <-> (out, in, taps) and (in, out) <-> (out, in)."""
    return array.T if name.rsplit(".", 1)[-1] == "weight" else array


def conv_steps(samples: int) -> int:
    """Steps that reach the GRU from a frame of `samples`, 60 features each; below 1 the frame is too short."""
    return ((samples // 3 - 4) // 3 - 4) // 3


def attention_layers(steps: int) -> tuple[int, int, int]:
    """Steps behind each of the attention's convolutions (7 taps; strides 2, 3, 3) of bands of `steps`."""
    first = (steps - 7) // 2 + 1
    second = (first - 7) // 3 + 1
    return first, second, (second - 7) // 3 + 1


def attention_steps(steps: int) -> int:
    """Steps that the attention's convolutions leave of `steps`, 10 features each; below 1 the frame is too short."""
    return attention_layers(steps)[-1]


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of DENet(**config), in the port's layout."""
    samples, filters, units = config["input_shape"][1], config["n_filters"], config["gru_units"]
    dense1, dense2 = config["dense_units"]
    features = 60 * conv_steps(samples)
    bands = attention_steps(samples if config["before_pooling"] else samples // 3)
    kernels = {
        "attention.conv1": (30, 1, 7),
        "attention.conv2": (30, 30, 7),
        "attention.conv3": (10, 30, 7),
        "attention.dense1": (128, 10 * bands),
        "attention.dense2": (64, 128),
        "attention.dense3": (1, 64),
        "conv1": (60, 1, 5),
        "conv2": (60, 60, 5),
        "dense1": (dense1, units),
        "dense2": (dense2, dense1),
        "dense3": (config["n_classes"], dense2),
    }
    result = {"sinc.filt_b1": (filters,), "sinc.filt_band": (filters,)}
    for layer, shape in kernels.items():
        result |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    for layer in ("norm1", "norm2"):
        result |= {f"{layer}.scale": (60,), f"{layer}.bias": (60,)}
    for layer in ("gru.forward_gru", "gru.backward_gru"):
        result |= {f"{layer}.kernel": (features, 3 * units), f"{layer}.recurrent_kernel": (units, 3 * units)}
        result |= {f"{layer}.bias": (3 * units,)}
    for layer, size in (("batch_norm1", dense1), ("batch_norm2", dense2)):
        result |= {f"{layer}.{leaf}": (size,) for leaf in LAYERS[layer]}
    return {name: result[name] for name in NAMES}


def parameters(config: Mapping[str, Any]) -> int:
    """Numbers in the weights of DENet(**config), the batch norms' running statistics and the attention among them."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def is_variance(name: str) -> bool:
    """Whether a weight of any of the models is a variance, which is not negative."""
    return name.endswith(("moving_variance", "running_var"))


def checksum(text: str, tensors: Mapping[str, Any], raw: Callable = lambda array: array.reshape(-1).view(np.uint8)) -> str:
    """SHA-256, in hexadecimal, of the metadata `text` and of every weight's name, dtype, shape and bytes, which `raw` gives."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}".encode())
        digest.update(raw(tensor))
    return digest.hexdigest()
