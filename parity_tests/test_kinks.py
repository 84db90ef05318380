"""Recorded gradients of the attention branch and the sinc filters, up to the recording's own ReLU decisions (see kinks.py)."""

import numpy as np
import pytest
import torch

from parity_tests import kinks, weights
from parity_tests.golden.recipe import sample
from parity_tests.recordings import GRADIENT_BAR, build_model, read_model

# bar on the number of decisions: what a float32 error of 5e-6 can be expected to turn, not a handle to fit the rest with
MODELS = {"model_before_800": 40, "model_after_800": 10}


@pytest.mark.parametrize("name", MODELS)
def test_recorded_gradients_up_to_undecided_units(name, report):
    recording = read_model(name)
    model = build_model(recording).double().train()
    x = torch.tensor(recording.arrays["x"]).double()
    target = torch.tensor(recording.arrays["target"]).double()

    def loss(logits):
        return -(target * torch.log_softmax(logits, dim=-1)).sum(dim=-1).mean()

    compared = [
        weight
        for weight, _ in model.named_parameters()
        if weight.startswith(("attention.", "sinc.")) and weight != "attention.dense3.bias"  # its true gradient is 0
    ]
    recorded = {weight: recording.arrays[f"grad/{recording.keys[weight]}"].astype("float64") for weight in compared}

    def entries(gradients):  # of all compared weights in one row, each relative to the largest recorded
        rows = []
        for weight in compared:
            gradient = gradients.get(weight, torch.zeros(model.get_parameter(weight).shape, dtype=torch.float64))
            rows.append(sample(weights.to_keras(weight, gradient.numpy())) / np.abs(recorded[weight]).max())
        return torch.tensor(np.concatenate(rows))

    found = torch.autograd.grad(loss(model(x)), [model.get_parameter(weight) for weight in compared])
    changes = kinks.undecided_relus(model, x, loss)
    if not model.before_pooling:
        changes += kinks.undecided_pools(model, x, loss)
    missing = torch.tensor(np.concatenate([recorded[w] / np.abs(recorded[w]).max() for w in compared]))
    missing -= entries(dict(zip(compared, found, strict=True)))
    turned, left = kinks.explain(missing, torch.stack([entries(change) for change in changes]), GRADIENT_BAR)

    print(f"{name}: off by {missing.abs().max():.1e}; {left:.1e} once {len(turned)} of {len(changes)} undecided units turn")
    report.add("DENet", "gradient recording", left)
    assert left <= GRADIENT_BAR, f"DELayer or SincConv1D: gradient is off by {left:.1e} whichever way the undecided units go"
    assert len(turned) <= MODELS[name]


def test_a_wrong_gradient_is_not_explained():
    """The units' changes cannot make up for an error that is not theirs: wrong by a thousandth stays wrong."""
    torch.manual_seed(0)
    changes = 1e-3 * torch.randn(1000, 700, dtype=torch.float64) * (torch.rand(1000, 700) < 0.05)
    missing = 1e-3 * torch.randn(700, dtype=torch.float64)
    _, left = kinks.explain(missing, changes, GRADIENT_BAR)
    assert left > 10 * GRADIENT_BAR
    turned, left = kinks.explain(changes[[3, 141, 592]].sum(dim=0), changes, GRADIENT_BAR)
    assert sorted(turned) == [3, 141, 592] and left <= GRADIENT_BAR
