"""The port's half of a comparison: a case, the numbers it is run on, what comes out. Needs neither TensorFlow nor hypothesis.

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
import torch
from torch import nn

import denet_torch

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


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def compared_state(module: Callable) -> dict[str, np.ndarray]:
    """Weights and running statistics of a port's layer; the count of training steps is neither."""
    if not isinstance(module, nn.Module):
        return {}
    return {k: to_numpy(v).copy() for k, v in module.state_dict().items()}


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


def run_port(case: Case, numbers: Numbers, dtype: str, device: str = "cpu") -> Result:
    """Run the port in `dtype`, "float32" or "float64", on a device."""
    layer = build_port(case)
    result = {f"initial/{k}": compared_state(layer)[k].astype(dtype) for k in case.initial}
    if isinstance(layer, nn.Module):
        layer.load_state_dict({k: torch.tensor(v) for k, v in numbers.state.items()}, strict=False)
        layer.to(device, getattr(torch, dtype)).train(case.training)
    names = gradient_names(layer)
    with fed_masks(numbers.seed):
        for x in numbers.inputs:
            x = torch.tensor(x.astype(dtype), device=device, requires_grad=True)
            y = layer(x)
    result["y"] = to_numpy(y)
    if not case.training:
        with torch.no_grad():
            result["y/inference"] = to_numpy(layer(x))
    total = (y * torch.tensor(cotangent(numbers, y.shape, dtype), device=device)).sum()
    gradients = torch.autograd.grad(total, [x, *(layer.get_parameter(name) for name in names)])
    for name, gradient in zip(["x", *names], gradients, strict=True):
        result[f"grad/{name}"] = to_numpy(gradient)
    if case.training:
        result |= {f"state/{k}": v for k, v in compared_state(layer).items() if "moving_" in k}
    return result


def cotangent(numbers: Numbers, shape, dtype: str) -> np.ndarray:
    drawn = numbers.cotangent
    if drawn is None:
        drawn = normal(np.random.RandomState(numbers.seed + 1), tuple(shape))
    return drawn.astype(dtype)


@contextlib.contextmanager
def fed_masks(seed: int, layers=denet_torch.layers, like_its_input=torch.Tensor.to) -> Iterator[None]:
    """The dropout masks of `layers` come from numpy: both sides get the same ones when they ask for the same shapes in order."""
    rng = np.random.RandomState(seed + 2)

    def mask(shape, rate, like):
        keep = rng.uniform(size=tuple(int(n) for n in shape)) >= rate
        return like_its_input(torch.tensor(keep), like) / (1 - rate)

    with mock.patch.object(layers, "dropout_mask", mask):
        yield


def error(actual, expected, scale=None) -> float:
    """Largest difference, relative to the largest magnitude of `expected` (or of `scale`); absolute where that is 0."""
    if np.shape(actual) != np.shape(expected):
        return np.inf
    difference = np.abs(np.asarray(actual, "float64") - expected).max()
    magnitude = np.abs(expected if scale is None else scale).max()
    return float(difference / (magnitude or 1))


def errors(case: Case, actual: Result, expected: Result) -> dict[str, float]:
    """Error of each array of a result."""
    scales = {f"grad/{bias}": expected[f"grad/{weight}"] for bias, weight in case.zero_gradients.items()}
    return {key: error(actual[key], expected[key], scales.get(key)) for key in expected}
