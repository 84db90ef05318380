"""The table of the architecture: what the model has, and nothing that needs PyTorch."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from weight_cases import SMALL

from denet_torch import DENet, get_denet
from denet_torch.architecture import ATTENTION, NAMES, PORT_NAMES, attention_layers, conv_steps, keras_name, parameters, shapes


@pytest.mark.parametrize("before_pooling", [True, False])
def test_names_and_shapes_are_the_models(before_pooling):
    with torch.device("meta"):
        model = get_denet((10, 800, 1), 2, before_pooling=before_pooling)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes(model.config) == state and set(state) == set(NAMES)
    assert parameters(model.config) == sum(math.prod(shape) for shape in state.values())


def test_keras_counts_what_the_original_has():
    with torch.device("meta"):
        config = get_denet((10, 800, 1), 2).config
    attention = sum(math.prod(shape) for name, shape in shapes(config).items() if name in ATTENTION)
    assert parameters(config) - attention == 47_733_638  # model.count_params() of the original


def test_names_go_both_ways():
    assert keras_name("attention.conv1.weight") == "attention/conv1/kernel" and keras_name("weight") == "kernel"
    assert {keras_name(name): name for name in NAMES} == PORT_NAMES


@pytest.mark.parametrize("samples", [300, 400, 801, 1000])
def test_steps_are_those_of_the_layers(samples):
    x = torch.zeros(1, 1, samples)
    lengths = []
    for channels, stride in ((30, 2), (30, 3), (10, 3)):
        x = torch.conv1d(x, torch.zeros(channels, x.shape[1], 7), stride=stride)
        lengths.append(x.shape[2])
    assert attention_layers(samples) == tuple(lengths)
    model = DENet((1, samples), 2, n_filters=2, gru_units=2, dense_units=(2, 2))
    assert model.frame_features(torch.zeros(1, samples, 1)).shape == (1, 60 * conv_steps(samples))


def test_the_converter_reads_it_without_pytorch():
    code = f"import sys; sys.modules['torch'] = None; from tools.weights.architecture import shapes; print(len(shapes({SMALL})))"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert int(done.stdout) == len(NAMES)
