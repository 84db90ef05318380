"""A fresh model starts from the distributions that the original's weights were measured to have."""

import json

import numpy as np
import pytest
import torch

import denet_torch
from parity_tests.recordings import FOLDER
from parity_tests.weights import MODEL_WEIGHTS, to_keras

RECORDED = json.loads((FOLDER / "initial_weights.json").read_text())
# Standard error of the standard deviation of n uniform draws, as a part of it: sqrt((9 / 5 - 1) / 4n).
UNIFORM_STD_ERROR = np.sqrt(0.2)


@pytest.fixture(scope="module")
def fresh():
    """The recorded model: attention after pooling, frames of 400 samples, 3 classes."""
    torch.manual_seed(0)
    model = denet_torch.get_denet((10, 400, 1), 3, before_pooling=False)
    return {name: to_keras(name, value.numpy()) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("name", "recorded"), list(zip(MODEL_WEIGHTS, RECORDED.values(), strict=True)), ids=MODEL_WEIGHTS)
def test_initial(name, recorded, fresh):
    values = fresh[name].astype("float64")
    assert list(values.shape) == recorded["shape"]
    if recorded["std"] == 0:  # zeros and ones
        assert (values == recorded["mean"]).all()
    elif name.startswith("sinc."):
        for figure in ("mean", "std", "min", "max"):
            assert getattr(values, figure)() == pytest.approx(recorded[figure], rel=1e-6)
    else:
        # both are samples of the same distribution: five standard errors of their difference
        spread = 5 * np.sqrt(2 / values.size) * recorded["std"]
        assert abs(values.mean() - recorded["mean"]) <= spread
        assert abs(values.std() - recorded["std"]) <= UNIFORM_STD_ERROR * spread
        if name.endswith("recurrent_kernel"):
            assert np.abs(values @ values.T - np.eye(len(values))).max() < 1e-5
        else:  # uniform: the ends are sharp
            bound = np.sqrt(3) * recorded["std"]
            limit = np.sqrt(6 / (np.prod(values.shape[:-2]) * sum(values.shape[-2:])))  # glorot
            assert limit == pytest.approx(bound, rel=5 * UNIFORM_STD_ERROR / np.sqrt(values.size))
            assert np.abs(values).max() <= limit * (1 + 1e-6)
