"""Runs one case on both sides, with the same numbers: the port's half is `port_side.py`, the TensorFlow reference's is here."""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import tensorflow as tf

import reference_tf
from parity_tests import weights
from parity_tests.port_side import (
    Case,
    Numbers,
    Result,
    build_port,
    compared_state,
    cotangent,
    draw,
    fed_masks,
    gradient_names,
    normal,
    run_port,
)

__all__ = ["build_port", "compared_state", "draw", "fed_masks", "gradient_names", "normal", "run_port"]


def run_reference(case: Case, numbers: Numbers, dtype: str, names: list[str]) -> Result:
    """Run the reference in `dtype`; `names` are the weights whose gradients are wanted."""
    layer = build_reference(case, numbers, dtype)
    result = {f"initial/{k}": initial_reference(case, dtype, k) for k in case.initial}
    kwargs = {"training": case.training} if isinstance(layer, tf.Module) else {}
    variables = [weights.variable(layer, name) for name in names]
    with feed_reference(numbers.seed):
        for x in numbers.inputs:
            with tf.GradientTape() as tape:
                x = tf.constant(x.astype(dtype))
                tape.watch(x)
                y = layer(x, **kwargs)
                total = tf.reduce_sum(y * cotangent(numbers, y.shape, dtype))
    result["y"] = y.numpy()
    if not case.training:
        result["y/inference"] = result["y"]
    for name, gradient in zip(["x", *names], tape.gradient(total, [x, *variables]), strict=True):
        result[f"grad/{name}"] = weights.from_keras(name, tf.convert_to_tensor(gradient).numpy())
    if case.training:
        result |= {f"state/{k}": weights.variable(layer, k).numpy() for k in numbers.state if "moving_" in k}
    return result


def build_reference(case: Case, numbers: Numbers, dtype: str) -> Callable:
    layer = case.reference(dtype)
    if isinstance(layer, tf.Module):
        if not layer.built:
            layer(tf.zeros(case.shape, dtype))  # creates the weights
        weights.set_reference(layer, numbers.state)
    return layer


def initial_reference(case: Case, dtype: str, name: str) -> np.ndarray:
    return weights.from_keras(name, weights.variable(case.reference(dtype), name).numpy())


def feed_reference(seed: int) -> contextlib.AbstractContextManager:
    """The dropout masks that `fed_masks` feeds the port, for the reference."""
    return fed_masks(seed, reference_tf.layers, lambda keep, like: tf.cast(keep.numpy(), like.dtype))


@contextlib.contextmanager
def kink_margins() -> Iterator[list[float]]:
    """Collect the distance of the nearest unit from a kink, as a part of its array's largest magnitude, while the reference runs.

    Kinks are the zero of ReLU and LeakyReLU, a tie of the two largest entries of a pool, and both ends of the hard sigmoid.
    Within rounding of one, float32 decides by its last bit which of two gradients a unit has, and two correct programs differ by
    whole units. Units that are on a kink by construction (equal entries in a frame that dropout emptied), here up to float64's
    rounding, are not counted: there both decisions give the same gradients.
    """
    margins = [np.inf]

    def watch(function, distance):
        def watched(x, *args, **kwargs):
            away = np.abs(distance(x.numpy())) / (np.abs(x).max() or 1)
            margins.append(away.min(initial=np.inf, where=away > 1e-12))
            return function(x, *args, **kwargs)

        return watched

    def pool_gap(x):
        windows = np.sort(x[:, : x.shape[1] // 3 * 3].reshape(len(x), -1, 3, x.shape[2]), axis=2)
        return windows[:, :, 2] - windows[:, :, 1]

    patches = [
        (module, name, watch(getattr(module, name), distance))
        for module, name, distance in (
            (reference_tf, "leaky_relu", lambda x: x),
            (reference_tf, "max_pool", pool_gap),
            (reference_tf.layers, "leaky_relu", lambda x: x),
            (reference_tf.layers, "max_pool", pool_gap),
            (reference_tf.layers, "hard_sigmoid", lambda x: np.abs(x) - 2.5),
            (tf.nn, "relu", lambda x: x),
        )
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(mock.patch.object(*patch))
        yield margins
