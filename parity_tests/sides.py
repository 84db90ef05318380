"""Runs one case on both sides, the port and its TensorFlow reference, with the same numbers in and out as numpy arrays.

A result is a dict, in the port's names and layouts: `y` the output; `y/inference` the same where no gradient is wanted and the
port takes shorter paths (evaluation mode only); `state/NAME` running statistics after it; `initial/NAME` initial weights that
nothing random went into; `grad/x` and `grad/NAME` the gradients of sum(y * cotangent).
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf
import torch
from torch import nn

import denet_torch
import reference_tf
from parity_tests import weights

Result = dict[str, np.ndarray]


@dataclass
class Case:
    """One comparison. `settings` is what was drawn and `shape` the input's; `port` and `reference` build a layer, or a function.

    `warmup` counts training steps before the one that is compared; `initial` names the weights that are compared as built.
    `zero_gradients` maps a bias whose true gradient is zero to the weight by whose gradient its error is measured.
    """

    settings: dict[str, Any]
    port: Callable[[], Callable]
    reference: Callable[[str], Callable]
    shape: tuple[int, ...]
    training: bool = False
    warmup: int = 0
    initial: tuple[str, ...] = ()
    zero_gradients: dict[str, str] = field(default_factory=dict)


@dataclass
class Numbers:
    """What a case is run on, all of it exact in float32: weights by name and one input for each step.

    `seed` is that of the dropout masks and of the cotangent, unless one is given.
    """

    state: dict[str, np.ndarray]
    inputs: list[np.ndarray]
    seed: int
    cotangent: np.ndarray | None = None


def draw(case: Case, state: dict[str, np.ndarray], seed: int) -> Numbers:
    rng = np.random.RandomState(seed)
    inputs = [normal(rng, case.shape) for _ in range(case.warmup + 1)]
    return Numbers({name: draw_weight(rng, name, array) for name, array in state.items()}, inputs, seed)


def normal(rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype("float32")


def draw_weight(rng: np.random.RandomState, name: str, initial: np.ndarray) -> np.ndarray:
    """A weight like a trained one: nothing at the special values (zeros, ones, positive cuts) that fresh weights have."""
    leaf = name.split(".")[-1]
    values = rng.standard_normal(initial.shape)
    if leaf in ("filt_b1", "filt_band"):
        values = initial * (1 + 0.1 * values) * rng.choice([-1, 1], initial.shape)
    elif leaf in ("gamma", "scale"):
        values = 1 + 0.1 * values
    elif leaf == "moving_variance":
        values = np.abs(1 + 0.1 * values)
    elif initial.ndim == 1:
        values = 0.2 * values
    else:
        fan_in = initial[0].size if leaf == "weight" else len(initial)  # the GRU's kernels are (in, out)
        values = values * np.sqrt(2 / fan_in)
    return values.astype("float32")


def compared_state(module: Callable) -> dict[str, np.ndarray]:
    """Weights and running statistics of a port's layer; the count of training steps is neither."""
    if not isinstance(module, nn.Module):
        return {}
    return {k: v.numpy().copy() for k, v in module.state_dict().items()}


def gradient_names(module: Callable) -> list[str]:
    """The trained weights of a port's layer."""
    return [k for k, p in module.named_parameters() if p.requires_grad] if isinstance(module, nn.Module) else []


def build_port(case: Case) -> Callable:
    """The port's layer with its constants computed in float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return case.port()
    finally:
        torch.set_default_dtype(default)


def run_port(case: Case, numbers: Numbers, dtype: str) -> Result:
    """Run the port in `dtype`, "float32" or "float64"."""
    layer = build_port(case)
    result = {f"initial/{k}": compared_state(layer)[k].astype(dtype) for k in case.initial}
    if isinstance(layer, nn.Module):
        layer.load_state_dict({k: torch.tensor(v) for k, v in numbers.state.items()}, strict=False)
        layer.to(getattr(torch, dtype)).train(case.training)
    names = gradient_names(layer)
    with fed_masks(numbers.seed):
        for x in numbers.inputs:
            x = torch.tensor(x.astype(dtype), requires_grad=True)
            y = layer(x)
    result["y"] = y.detach().numpy()
    if not case.training:
        with torch.no_grad():
            result["y/inference"] = layer(x).numpy()
    total = (y * torch.tensor(cotangent(numbers, y.shape, dtype))).sum()
    gradients = torch.autograd.grad(total, [x, *(layer.get_parameter(name) for name in names)])
    for name, gradient in zip(["x", *names], gradients, strict=True):
        result[f"grad/{name}"] = gradient.numpy()
    if case.training:
        result |= {f"state/{k}": v for k, v in compared_state(layer).items() if "moving_" in k}
    return result


def run_reference(case: Case, numbers: Numbers, dtype: str, names: list[str]) -> Result:
    """Run the reference in `dtype`; `names` are the weights whose gradients are wanted."""
    layer = build_reference(case, numbers, dtype)
    result = {f"initial/{k}": initial_reference(case, dtype, k) for k in case.initial}
    kwargs = {"training": case.training} if isinstance(layer, tf.Module) else {}
    variables = [weights.variable(layer, name) for name in names]
    with fed_masks(numbers.seed):
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


def cotangent(numbers: Numbers, shape, dtype: str) -> np.ndarray:
    drawn = numbers.cotangent
    if drawn is None:
        drawn = normal(np.random.RandomState(numbers.seed + 1), tuple(shape))
    return drawn.astype(dtype)


@contextlib.contextmanager
def fed_masks(seed: int) -> Iterator[None]:
    """Both sides draw their dropout masks from numpy, the same ones when they ask for the same shapes in the same order."""
    rng = np.random.RandomState(seed + 2)

    def mask(shape, rate, like):
        keep = rng.uniform(size=tuple(int(n) for n in shape)) >= rate
        if isinstance(like, torch.Tensor):
            return torch.tensor(keep).to(like.dtype) / (1 - rate)
        return tf.cast(keep, like.dtype) / (1 - rate)

    with (
        mock.patch.object(denet_torch.layers, "dropout_mask", mask),
        mock.patch.object(reference_tf.layers, "dropout_mask", mask),
    ):
        yield


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
