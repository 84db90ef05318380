"""The suite's own test: a fault planted in the port must turn its layer's checks red, by a message that names the layer.

A mutation is one or more edits of the port's source, compiled in memory. An edit whose text the port no longer has fails loudly:
then the fault has to be planted anew, not the mutation dropped.
"""

import inspect
import textwrap
from dataclasses import dataclass

import pytest

import denet_torch
from parity_tests.checks import RECORDED, check_recordings, check_reference
from parity_tests.report import Report

EXAMPLES = {"GRU": 20}  # drawn cases, else 6; the first that shows the fault ends the check


@dataclass
class Mutation:
    """`edits` are (name in `denet_torch`, text, replacement); `recorded`: the recordings of the layer show the fault, too."""

    fault: str
    layer: str
    edits: list[tuple[str, str, str]]
    recorded: bool = True


MUTATIONS = [
    Mutation("PyTorch's slope of LeakyReLU", "leaky_relu", [("layers.leaky_relu", "LEAKY_SLOPE", "0.01")]),
    Mutation("Keras 3's hard sigmoid", "hard_sigmoid", [("layers.hard_sigmoid", "(0.2 * x + 0.5)", "(x / 6 + 0.5)")]),
    Mutation("Keras 3's hard sigmoid in the GRU", "GRU", [("layers.gru_steps", "hard_sigmoid(", "F.hardsigmoid(")]),
    Mutation("reset after the product", "GRU", [("layers.gru_steps", "(r * h) @ recurrent_h", "r * (h @ recurrent_h)")]),
    Mutation("gates ordered r, z, h", "GRU", [("layers.gru_steps", "z, r = ", "r, z = ")]),
    Mutation("PyTorch's GRU update", "GRU", [("layers.gru_steps", "h = z * h + (1 - z) * hh", "h = (1 - z) * h + z * hh")]),
    Mutation(
        "one dropout mask for all gates",
        "GRU",
        [("layers.GRU.forward", '[dropout_mask((batch, 1, features), self.dropout, like=x) for _ in "zrh"]',
          "[dropout_mask((batch, 1, features), self.dropout, like=x)] * 3")],
        recorded=False,
    ),
    Mutation("backward outputs left in reverse", "Bidirectional", [
        ("layers.GRU.forward", "y.flip(1) if self.go_backwards else y", "y")
    ]),
    Mutation("epsilon under the root", "LayerNorm", [
        ("layers.LayerNorm.forward", "(torch.where(constant, 0, std) + 1e-6)", "(variance + 1e-6).sqrt()")
    ], recorded=False),  # 5e-7 where the variance is 1: less than float32 recordings show
    Mutation("sample standard deviation", "LayerNorm", [
        ("layers.LayerNorm.forward", "/ x.shape[-1]", "/ (x.shape[-1] - 1)")
    ]),
    Mutation("torch.hamming_window", "SincConv1D", [
        ("layers.sinc_filters", "(0.54 - 0.46 * torch.cos(2 * math.pi * n / taps))",
         "torch.hamming_window(taps, dtype=torch.float64)")
    ]),
    Mutation("filters not normalised", "SincConv1D", [("layers.sinc_filters", "/ band_pass.amax(dim=1, keepdim=True)", "")]),
    Mutation("mel taken as Hz", "SincConv1D", [
        ("layers.SincConv1D.__init__", "torch.linspace(low_freq_mel,", "torch.linspace(hz_to_mel(low_freq_mel),")
    ]),
    Mutation("SincNet's cuts without the least frequency", "SincConv1D", [
        ("layers.sinc_filters", "filt_b1.abs()[:, None] + 50 / sr", "filt_b1.abs()[:, None]")
    ]),
    Mutation("flatten with channels outside", "DELayer", [
        ("layers.band_convolutions", "h.flatten(1)", "h.transpose(1, 2).flatten(1)")
    ]),
    Mutation("softmax over the frames", "DELayer", [("layers.softmax", "dim=-1", "dim=0")]),
    Mutation("plain batch-norm statistics", "BatchNorm", [
        ("layers.BatchNorm.update", "share = ((1 - self.momentum) / (1 - self.momentum ** self.local_step.double()))",
         "share = torch.tensor(1 - self.momentum)"),
        ("layers.BatchNorm.update", "kept = (self.momentum * seen / (1 - self.momentum ** self.local_step.double()))",
         "kept = torch.tensor(self.momentum)"),
    ]),
    Mutation("sample variance averaged", "BatchNorm", [("layers.BatchNorm.update", "n / (n - 1.001)", "n / (n - 1)")]),
    Mutation("PyTorch's epsilon", "BatchNorm", [("layers.BatchNorm.forward", "self.epsilon", "1e-5")]),
    Mutation("dropout not scaled by spatial dropout's rate", "SpatialDropout1D", [
        ("layers.SpatialDropout1D.forward", "like=x)", "like=x) * (1 - self.rate)")
    ]),
    Mutation("dropout of whole channels where single entries drop", "Dropout", [
        ("layers.Dropout.forward", "tuple(x.shape)", "(x.shape[0], 1, x.shape[2])")
    ]),
    Mutation("a pool of two", "max_pool", [("layers.max_pool", "(1, size)", "(1, 2), (1, 3)")]),
    Mutation("flatten with channels outside", "DENet", [
        ("DENet.frame_features", "x.flatten(1)", "x.transpose(1, 2).flatten(1)")
    ]),
    Mutation("norm before the pool", "DENet", [
        ("DENet.frame_features", "self.norm1(max_pool(self.conv1(x)))", "max_pool(self.norm1(self.conv1(x)))")
    ]),
    Mutation("activation before the batch norm", "DENet", [
        ("DENet.classify", "leaky_relu(self.batch_norm1(self.dense1(x)))", "self.batch_norm1(leaky_relu(self.dense1(x)))")
    ]),
]  # fmt: skip


def plant(mutation: Mutation, monkeypatch) -> None:
    for path, old, new in mutation.edits:
        *owners, name = path.split(".")
        owner = denet_torch
        for part in owners:
            owner = getattr(owner, part)
        function = getattr(owner, name)
        source = getattr(function, "planted", None) or textwrap.dedent(inspect.getsource(function))
        assert old in source, f"{path} no longer has {old!r}: plant {mutation.fault!r} anew"
        source = source.replace(old, new).replace("super()", f"super({owner.__name__}, self)")
        module = inspect.getmodule(owner)
        found = {}
        exec(compile(source, f"<{mutation.fault}>", "exec"), vars(module), found)
        if inspect.isfunction(found[name]):
            found[name].planted = source
        monkeypatch.setattr(owner, name, found[name])


def failure(check, *args) -> str | None:
    try:
        check(*args)
    except AssertionError as error:
        return str(error)
    return None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.layer}-{m.fault.replace(' ', '_')}")
def test_planted_fault(mutation, monkeypatch):
    plant(mutation, monkeypatch)
    found = failure(check_reference, mutation.layer, Report(), EXAMPLES.get(mutation.layer, 6))
    assert found is not None, f"{mutation.fault} passes against the reference"
    assert found.startswith(f"{mutation.layer}: "), found
    if mutation.layer in RECORDED and mutation.recorded:
        found = failure(check_recordings, mutation.layer, Report())
        assert found is not None, f"{mutation.fault} passes against the recordings"
        assert found.startswith(f"{mutation.layer}: "), found


@pytest.mark.parametrize("layer", sorted({mutation.layer for mutation in MUTATIONS}))
def test_without_fault(layer):
    """The very checks that fail above pass on the port as it is."""
    check_reference(layer, Report(), EXAMPLES.get(layer, 6))
    if layer in RECORDED:
        check_recordings(layer, Report())
