"""Weights of the port and of its TensorFlow reference: one name, one array, two layouts.

The name of a weight in the port's state dict is its attribute path in `reference_tf`, except that the `weight` of
PyTorch's Conv1d and Linear is Keras's `kernel`, with the axes reversed: Conv1D (out, in, taps) <-> (taps, in, out), Dense
(out, in) <-> (in, out). Nothing is rounded on the way.
"""

import numpy as np

# The order in which the recordings list a model's weights, by their names in the port.
MODEL_WEIGHTS = [
    "sinc.filt_b1",
    "sinc.filt_band",
    "conv1.weight",
    "conv1.bias",
    "norm1.scale",
    "norm1.bias",
    "conv2.weight",
    "conv2.bias",
    "norm2.scale",
    "norm2.bias",
    *(f"gru.{way}_gru.{leaf}" for way in ("forward", "backward") for leaf in ("kernel", "recurrent_kernel", "bias")),
    "dense1.weight",
    "dense1.bias",
    "batch_norm1.gamma",
    "batch_norm1.beta",
    "dense2.weight",
    "dense2.bias",
    "batch_norm2.gamma",
    "batch_norm2.beta",
    "dense3.weight",
    "dense3.bias",
    *(f"batch_norm{i}.moving_{leaf}" for i in (1, 2) for leaf in ("mean", "variance")),
    *(
        f"attention.{layer}.{leaf}"
        for layer in ("conv1", "conv2", "conv3", "dense1", "dense2", "dense3")
        for leaf in ("weight", "bias")
    ),
]


def to_keras(name: str, array: np.ndarray) -> np.ndarray:
    """`array`, the port's weight `name`, in Keras's layout. The way back is the same reversal."""
    return np.transpose(array) if name.split(".")[-1] == "weight" else array


from_keras = to_keras


def variable(layer, name: str):
    """The variable of a `reference_tf` layer that holds the port's weight `name`."""
    *owners, leaf = name.split(".")
    for owner in owners:
        layer = getattr(layer, owner)
    return getattr(layer, "kernel" if leaf == "weight" else leaf)


def set_reference(layer, state: dict[str, np.ndarray]) -> None:
    """Give a built `reference_tf` layer the port's weights `state`. Raises ValueError where a shape does not fit."""
    for name, array in state.items():
        variable(layer, name).assign(to_keras(name, array))
