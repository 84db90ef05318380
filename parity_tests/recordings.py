"""The recordings of the original in `golden/`: which layer each is of, and its weights by their names in the port."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from denet_torch import layers as port
from parity_tests.golden.recipe import draw
from parity_tests.sides import Case, Numbers
from parity_tests.weights import MODEL_WEIGHTS, from_keras, set_reference
from reference_tf import layers as reference

FOLDER = Path(__file__).parent / "golden"

SINC = ["filt_b1", "filt_band"]
GRU = ["kernel", "recurrent_kernel", "bias"]
ATTENTION = [f"{layer}{i}.{leaf}" for layer in ("conv", "dense") for i in (1, 2, 3) for leaf in ("weight", "bias")]


@dataclass
class Recording:
    """A layer's recording: both sides of the layer, and the port's names of its weights in the recorded order."""

    layer: str
    port: Callable[[], Callable]
    reference: Callable[[str], Callable]
    names: list[str]


def sinc(sr, **mel) -> Recording:
    return Recording(
        "SincConv1D",
        lambda: port.SincConv1D(80, 251, sr, **mel),
        lambda dtype: reference.SincConv1D(80, 251, sr, **mel, dtype=dtype),
        SINC,
    )


def attention(steps) -> Recording:
    return Recording("DELayer", lambda: port.DELayer(steps), lambda dtype: reference.DELayer(dtype=dtype), ATTENTION)


RECORDINGS = {
    "sinc_16k_init": sinc(16000),
    "sinc_16k_mel_init": sinc(16000, low_freq_mel=200, high_freq_mel=2000),
    "sinc_250k_init": sinc(250000),
    "sinc_16k": sinc(16000),
    "sinc_16k_short": sinc(16000),
    "sinc_250k": sinc(250000),
    "layer_norm": Recording(
        "LayerNorm", lambda: port.LayerNorm(60), lambda dtype: reference.LayerNorm(dtype=dtype), ["scale", "bias"]
    ),
    "de_sum": attention(266),
    "de_800x80": attention(800),
    "gru_seq": Recording("GRU", lambda: port.GRU(12, 16), lambda dtype: reference.GRU(16, dtype=dtype), GRU),
    "bigru_sum": Recording(
        "Bidirectional",
        lambda: port.Bidirectional(12, 16),
        lambda dtype: reference.Bidirectional(16, dtype=dtype),
        [f"{way}_gru.{leaf}" for way in ("forward", "backward") for leaf in GRU],
    ),
}


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def read(name: str) -> tuple[Case, Numbers, dict[str, np.ndarray]]:
    """A layer's recording as a case, its numbers, and the recorded result in the port's names and layouts."""
    recording, arrays = RECORDINGS[name], load(name)
    state, result = {}, {"y": arrays["y"], "y/inference": arrays["y"], "grad/x": arrays["grad/x"]}
    for key, array in arrays.items():
        kind, _, number = key.partition("/")
        if kind == "init":
            result[f"initial/{number}"] = array
        elif kind in ("weight", "grad") and key != "grad/x":
            weight = recording.names[int(number[:2])]
            (state if kind == "weight" else result)[weight if kind == "weight" else f"grad/{weight}"] = from_keras(weight, array)
    case = Case(
        {"recording": name},
        recording.port,
        recording.reference,
        arrays["x"].shape,
        initial=tuple(key.removeprefix("initial/") for key in result if key.startswith("initial/")),
        zero_gradients={"dense3.bias": "dense3.weight"} if recording.layer == "DELayer" else {},
    )
    return case, Numbers(state, [arrays["x"]], seed=0, cotangent=arrays["cotangent"]), result


def run_batch_norm(side: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """BatchNorm of one side through the recorded training steps: what it computed and what was recorded."""
    arrays = load("bn_train_steps")
    result = {}
    if side == "port":
        layer = port.BatchNorm(8)
        layer.load_state_dict({k: torch.tensor(arrays[k]) for k in ("gamma", "beta")}, strict=False)

        def run(x, training):
            return layer.train(training)(torch.tensor(x)).detach()

    else:
        layer = reference.BatchNorm()
        layer(arrays["x0"])
        set_reference(layer, {k: arrays[k] for k in ("gamma", "beta")})
        run = layer
    for step in range(3):
        result[f"y_train{step}"] = run(arrays[f"x{step}"], training=True).numpy()
        result[f"moving_mean{step}"] = layer.moving_mean.numpy().copy()
        result[f"moving_variance{step}"] = layer.moving_variance.numpy().copy()
        result[f"y_test{step}"] = run(arrays[f"x{step}"], training=False).numpy()
    return result, {key: arrays[key] for key in result}


@dataclass
class ModelRecording:
    """A recording of the whole model: its arrays, its arguments, and its weights drawn anew by `golden/recipe.py`.

    `state` holds the weights by their names in the port; `keys` the names under which the recording lists them.
    """

    arrays: dict[str, np.ndarray]
    arguments: dict
    state: dict[str, np.ndarray]
    keys: dict[str, str]


def read_model(name: str) -> ModelRecording:
    info = json.loads((FOLDER / f"{name}.json").read_text())
    keys = {weight: key for weight, (key, _) in zip(MODEL_WEIGHTS, info["weights"], strict=True)}
    state = {}
    for i, (weight, (key, shape)) in enumerate(zip(MODEL_WEIGHTS, info["weights"], strict=True)):
        if not weight.startswith("sinc."):  # the mel initialisation stays
            state[weight] = from_keras(weight, draw(info["weight_seed_base"] + i, shape, key))
    arguments = {k: info[k] for k in ("n_classes", "sr", "before_pooling")}
    return ModelRecording(load(name), {**arguments, "input_shape": (info["seq_len"], info["samples"], 1)}, state, keys)
