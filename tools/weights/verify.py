"""Running what was read and what was written on drawn inputs, to see that they compute the same."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from denet_torch.architecture import ATTENTION, NAMES, keras_name, transposed

from . import Weights
from .convert import read
from .torch_files import model

TOLERANCE = 1e-5  # of a probability: float32 noise is about 1e-6


def differences(weights: Weights, config: dict, target: Path) -> dict[str, float]:
    """The largest difference between the probabilities that `target` gives and those of each reference there is.

    The references: predictions recorded with the weights by the model that owns them, `reference_tf` where TensorFlow is
    installed, and, if there is neither, this port with the weights as they were read.
    """
    run, dtype = _runner(target, weights, config), weights.tensors["conv1.weight"].dtype
    found = {}
    if weights.recorded:
        x, y = weights.recorded
        found["predictions recorded with the weights"] = _difference(run(x[..., 0].astype(dtype)), y)
    x = np.random.default_rng(0).standard_normal((2, *config["input_shape"][:2])).astype(dtype)
    if importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tf_keras"):
        found["reference_tf on drawn inputs"] = _difference(run(x), _tensorflow(weights.tensors, config)(x))
    if not found:
        found["the port on drawn inputs, with the weights as read"] = _difference(run(x), _torch(weights.tensors, config)(x))
    return found


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def _runner(target: Path, weights: Weights, config: dict) -> Callable[[np.ndarray], np.ndarray]:
    """Waveforms (batch, seq_len, samples) to the probabilities that `target` gives."""
    if target.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(target)
        return lambda x: _softmax(session.run(["logits"], {"waveform": np.ascontiguousarray(x)})[0])
    if target.suffix == ".pt2":
        program = torch.export.load(target).module()
        return lambda x: _softmax(program(torch.tensor(x)).detach().numpy())
    written = read(target)
    attention = {name: weights.tensors[name] for name in ATTENTION}  # an original .h5 has none
    return _torch(attention | written.tensors, config)


def _torch(tensors: dict[str, np.ndarray], config: dict) -> Callable[[np.ndarray], np.ndarray]:
    net = model(tensors, config)
    return lambda x: net.predict_proba(torch.tensor(x)).numpy()


def _tensorflow(tensors: dict[str, np.ndarray], config: dict) -> Callable[[np.ndarray], np.ndarray]:
    import reference_tf

    net = reference_tf.DENet(**config, dtype=tensors["conv1.weight"].dtype.name)
    for name in NAMES:
        variable = net
        for part in keras_name(name).split("/"):
            variable = getattr(variable, part)
        variable.assign(transposed(name, tensors[name]))
    return lambda x: net.predict_proba(x).numpy()


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
