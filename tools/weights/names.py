"""The port's weight names, in Keras's order, and what Keras calls them."""

import numpy as np

LAYERS = {
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
    return name.replace(".", "/").replace("/weight", "/kernel")


PORT_NAMES = {keras_name(name): name for name in NAMES}


def transposed(name: str, array: np.ndarray) -> np.ndarray:
    """Keras's layout to the port's and back: kernels (taps, in, out) <-> (out, in, taps) and (in, out) <-> (out, in)."""
    return array.T if name.endswith(".weight") else array
