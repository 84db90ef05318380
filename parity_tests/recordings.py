"""The recordings of the original in `golden/`: which layer each is of, its weights by their names in the port, the port's errors.

TensorFlow is imported where it is run, so that the port can be compared without it: `denet gpu-report` does.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import denet_torch
from denet_torch import layers as port
from parity_tests import port_side
from parity_tests.golden.recipe import draw, sample
from parity_tests.port_side import Case, Numbers, error, errors, to_numpy
from parity_tests.weights import MODEL_WEIGHTS, from_keras, set_reference, to_keras

FOLDER = Path(__file__).parent / "golden"

OUTPUT_BAR, GRADIENT_BAR = 1e-5, 2e-5  # a layer in float32, and what of the model is in float64, against a recording
PROBABILITY_BAR = 1e-6  # absolute
DECIDED_ELSEWHERE = ("attention.", "sinc.")  # test_kinks.py
ZERO_GRADIENTS = {"dense1.bias": "dense1.weight", "dense2.bias": "dense2.weight"}  # the batch's mean is subtracted

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


def reference():
    from reference_tf import layers

    return layers


def sinc(sr, **mel) -> Recording:
    return Recording(
        "SincConv1D",
        lambda: port.SincConv1D(80, 251, sr, **mel),
        lambda dtype: reference().SincConv1D(80, 251, sr, **mel, dtype=dtype),
        SINC,
    )


def attention(steps) -> Recording:
    return Recording("DELayer", lambda: port.DELayer(steps), lambda dtype: reference().DELayer(dtype=dtype), ATTENTION)


RECORDINGS = {
    "sinc_16k_init": sinc(16000),
    "sinc_16k_mel_init": sinc(16000, low_freq_mel=200, high_freq_mel=2000),
    "sinc_250k_init": sinc(250000),
    "sinc_16k": sinc(16000),
    "sinc_16k_short": sinc(16000),
    "sinc_250k": sinc(250000),
    "layer_norm": Recording(
        "LayerNorm", lambda: port.LayerNorm(60), lambda dtype: reference().LayerNorm(dtype=dtype), ["scale", "bias"]
    ),
    "de_sum": attention(266),
    "de_800x80": attention(800),
    "gru_seq": Recording("GRU", lambda: port.GRU(12, 16), lambda dtype: reference().GRU(16, dtype=dtype), GRU),
    "bigru_sum": Recording(
        "Bidirectional",
        lambda: port.Bidirectional(12, 16),
        lambda dtype: reference().Bidirectional(16, dtype=dtype),
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


def run_batch_norm(side: str, dtype="float32", device="cpu") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """BatchNorm of one side through the recorded training steps: what it computed and what was recorded.

    The port's is run in `dtype` and on `device`.
    """
    arrays = load("bn_train_steps")
    result = {}
    if side == "port":
        layer = port.BatchNorm(8)
        layer.load_state_dict({k: torch.tensor(arrays[k]) for k in ("gamma", "beta")}, strict=False)
        layer.to(device, getattr(torch, dtype))
        values = to_numpy

        def run(x, training):
            return layer.train(training)(torch.tensor(x).to(layer.gamma))

    else:
        layer = reference().BatchNorm()
        layer(arrays["x0"])
        set_reference(layer, {k: arrays[k] for k in ("gamma", "beta")})
        run, values = layer, np.array
    for step in range(3):
        result[f"y_train{step}"] = values(run(arrays[f"x{step}"], training=True))
        result[f"moving_mean{step}"] = values(layer.moving_mean).copy()
        result[f"moving_variance{step}"] = values(layer.moving_variance).copy()
        result[f"y_test{step}"] = values(run(arrays[f"x{step}"], training=False))
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


def build_model(recording: ModelRecording) -> denet_torch.DENet:
    with mock.patch("torch.nn.init.orthogonal_"):  # half a minute for weights that are replaced
        model = denet_torch.get_denet(**recording.arguments, dropout=0.0)
    model.load_state_dict({k: torch.tensor(v) for k, v in recording.state.items()}, strict=False)
    return model


def recorded_loss(model: denet_torch.DENet, recording: ModelRecording) -> torch.Tensor:
    """The loss of the recorded sequence, where and in what type the model is."""
    x, target = (torch.tensor(recording.arrays[name]).to(model.dense3.weight) for name in ("x", "target"))
    return -(target * torch.log_softmax(model(x), dim=-1)).sum(dim=-1).mean()


def gradient_errors(gradients: dict[str, np.ndarray], recording: ModelRecording) -> dict[str, float]:
    """Errors of a model's gradients, in Keras's layout by the port's names, and of their norms."""
    found = {}
    for name, gradient in gradients.items():
        scale = gradients[ZERO_GRADIENTS[name]] if name in ZERO_GRADIENTS else None
        key = recording.keys[name]
        found[f"gradient of {name}"] = error(sample(gradient), recording.arrays[f"grad/{key}"], scale)
        if name not in ZERO_GRADIENTS:
            norm = np.linalg.norm(gradient.astype("float64"))
            found[f"norm of the gradient of {name}"] = error(norm, recording.arrays[f"gradnorm/{key}"])
    return found


def port_gradients(model: denet_torch.DENet) -> dict[str, np.ndarray]:
    """Those in a model that are compared, in Keras's layout."""
    named = {name: p for name, p in model.named_parameters() if not name.startswith(DECIDED_ELSEWHERE)}
    return {name: to_keras(name, to_numpy(p.grad)) for name, p in named.items()}


def port_errors(name: str, dtype: str = "float32", device: str = "cpu") -> dict[str, float]:
    """Errors of what the port makes of a recording of a layer, or of the whole model, by what they are of.

    The model's gradients are compared in float64 alone: in float32 units within rounding of a kink fall on either side of it.
    """
    if name == "bn_train_steps":
        result, recorded = run_batch_norm("port", dtype, device)
        return {key: error(result[key], recorded[key]) for key in recorded}
    if name in RECORDINGS:
        case, numbers, recorded = read(name)
        return errors(case, port_side.run_port(case, numbers, dtype, device), recorded)
    recording = read_model(name)
    model = build_model(recording).to(device, getattr(torch, dtype)).eval()
    x = torch.tensor(recording.arrays["x"]).to(model.dense3.weight)
    found = {"probabilities": float(np.abs(to_numpy(model.predict_proba(x)) - recording.arrays["y"]).max())}
    if dtype == "float64":
        recorded_loss(model.train(), recording).backward()
        found |= gradient_errors(port_gradients(model), recording)
    return found


LAYERS = (*RECORDINGS, "bn_train_steps")
MODELS = ("model_before_800", "model_after_800")


def bar(of: str) -> float:
    """The bar of one of the errors that `port_errors` names."""
    if of == "probabilities":
        return PROBABILITY_BAR
    return GRADIENT_BAR if "grad" in of else OUTPUT_BAR
