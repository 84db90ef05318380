"""Weights of the port and of its TensorFlow reference: one name, one array, two layouts.

The name of a weight in the port's state dict is its attribute path in `reference_tf`, except that the `weight` of
PyTorch's Conv1d and Linear is Keras's `kernel`, with the axes reversed: Conv1D (out, in, taps) <-> (taps, in, out), Dense
(out, in) <-> (in, out). Nothing is rounded on the way.
"""

import numpy as np

from denet_torch.architecture import ATTENTION, NAMES, keras_name, transposed

# The order in which the recordings list a model's weights, by their names in the port: those that Keras trains, then its
# running statistics, then the attention, which it does not know.
MODEL_WEIGHTS = sorted(NAMES, key=lambda name: (name in ATTENTION, "moving" in name))
to_keras = from_keras = transposed


def variable(layer, name: str):
    """The variable of a `reference_tf` layer that holds the port's weight `name`."""
    for part in keras_name(name).split("/"):
        layer = getattr(layer, part)
    return layer


def set_reference(layer, state: dict[str, np.ndarray]) -> None:
    """Give a built `reference_tf` layer the port's weights `state`. Raises ValueError where a shape does not fit."""
    for name, array in state.items():
        variable(layer, name).assign(to_keras(name, array))
