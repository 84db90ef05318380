"""The layers' own shortcuts against plain PyTorch, and their gradients where the original's fail."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import band_weights, in_parts

from denet_torch import DENet, get_denet
from denet_torch.layers import (
    GRU,
    BandConvolutions,
    DELayer,
    GRURecurrence,
    LayerNorm,
    band_convolutions,
    convolve_waveform,
    gru_steps,
    multiply,
)

SMALL = {"n_filters": 6, "gru_units": 8, "dense_units": (8, 8)}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=st.integers(1, 90), filters=st.integers(1, 5), half=st.integers(1, 20), block=st.integers(1, 9))
def test_convolve_waveform_is_a_convolution(steps, filters, half, block):
    torch.manual_seed(steps)
    x = torch.randn(2, steps, dtype=torch.float64)
    kernels = torch.randn(filters, 2 * half + 1, dtype=torch.float64)
    expected = F.conv1d(x[:, None], kernels[:, None], padding=half).transpose(1, 2)
    torch.testing.assert_close(convolve_waveform(x, kernels, block), expected)


@pytest.mark.parametrize("layout", ["whole", "part", "transposed"])
def test_gradient_of_a_kernel_lies_as_the_kernel(layout):
    """Else all of it is copied: of a GRU's gates, which are parts of its kernel, or of a dense layer's, which is transposed."""
    torch.manual_seed(0)
    whole = torch.randn(6, 12)
    kernel = {"whole": whole, "part": whole[:, 4:8], "transposed": whole.T}[layout].detach().requires_grad_()
    x = torch.randn(5, len(kernel))
    y = multiply(x, kernel)
    (gradient,) = torch.autograd.grad(y.square().sum(), kernel)
    torch.testing.assert_close(gradient, 2 * x.T @ y.detach())
    assert (gradient.stride(0) == 1) == (kernel.stride(0) == 1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=st.integers(79, 200), rows=st.integers(1, 7), at_once=st.integers(1, 8), kept=st.integers(0, 8))
def test_band_convolutions_in_parts_are_band_convolutions(steps, rows, at_once, kept):
    """Forwards and backwards, whatever the parts and however many rows' second convolution is kept."""
    torch.manual_seed(steps)
    x, weights = torch.randn(rows, steps, dtype=torch.float64, requires_grad=True), band_weights()
    expected = band_convolutions(x, *weights)
    with pytest.MonkeyPatch.context() as patch:
        groups = 3 * DELayer.conv_steps(steps) + 8
        patch.setattr(BandConvolutions, "CPU_BUDGET", at_once * groups * 96)
        actual = in_parts(x, *weights, kept=kept * (groups - 2) * 32)
        torch.testing.assert_close(actual, expected)
        grad = torch.randn_like(expected)
        gradients = torch.autograd.grad(actual, (x, *weights), grad)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (x, *weights), grad))


@pytest.mark.parametrize(("grad", "at_once"), [(True, 6), (False, 2)])
def test_second_convolution_is_kept_only_for_a_backward_pass(monkeypatch, grad, at_once):
    convolution, made, alive = F.conv2d, [], []

    def noted(*args, **options):
        y = convolution(*args, **options)
        made.append(weakref.ref(y))
        alive.append(sum(reference() is not None for reference in made))
        return y

    monkeypatch.setattr(F, "conv2d", noted)
    monkeypatch.setattr(BandConvolutions, "CPU_BUDGET", 1)  # a row at a time
    with torch.set_grad_enabled(grad):
        DELayer(100).scores(torch.randn(1, 100, 6))
    assert len(made) == 12
    assert max(alive) >= at_once if grad else max(alive) <= at_once


def test_band_convolutions_without_gradients_of_the_weights():
    torch.manual_seed(0)
    x, weights = torch.randn(3, 90, dtype=torch.float64, requires_grad=True), [w.detach() for w in band_weights()]
    expected, actual = (torch.autograd.grad(f(x, *weights).sum(), x) for f in (band_convolutions, in_parts))
    torch.testing.assert_close(actual, expected)


def test_gru_recurrence_is_gru_steps_forwards_backwards_and_twice_backwards():
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 9, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(GRURecurrence.apply(inputs, kernel), gru_steps(inputs, kernel))
    assert torch.autograd.gradcheck(GRURecurrence.apply, (inputs, kernel))
    assert torch.autograd.gradgradcheck(GRURecurrence.apply, (inputs, kernel))


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
def test_compiled_attention_is_attention(monkeypatch):
    torch.manual_seed(0)
    layer, x = DELayer(100).double(), torch.randn(2, 100, 3, dtype=torch.float64)
    expected = layer(x)
    parts, slices = [], BandConvolutions.parts
    monkeypatch.setattr(BandConvolutions, "parts", lambda x: parts.append(x) or slices(x))
    actual = torch.compile(layer, backend="aot_eager")(x)
    assert len(parts) == 1, "the compiler has taken the convolutions apart: it would keep everything for the backward pass"
    torch.testing.assert_close(actual, expected)
    weights = list(layer.parameters())
    gradients = [torch.autograd.grad(y.square().sum(), weights) for y in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_attention_differentiates_twice():
    layer = DELayer(130).double()
    x = torch.randn(2, 130, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


@pytest.mark.parametrize("layer", [DELayer(130), GRU(3, 4)], ids=["attention", "GRU"])
@pytest.mark.parametrize("frozen", ["weights", "input"])
def test_differentiates_twice_where_a_part_is_frozen(layer, frozen):
    layer = copy.deepcopy(layer).double()
    x = torch.randn(2, 130, 3, dtype=torch.float64, requires_grad=frozen != "input")
    if frozen == "weights":
        layer.requires_grad_(False)
    tensor = x if frozen == "weights" else next(layer.parameters())
    (slope,) = torch.autograd.grad(layer(x).square().sum(), tensor, create_graph=True)
    slope.square().sum().backward()
    assert tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0


def test_layer_norm_of_equal_channels_passes_no_gradient():
    layer = LayerNorm(60)
    x = torch.full((1, 2, 60), 0.1)
    x[0, 1] = torch.linspace(-1, 1, 60)
    x.requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert (y[0, 0] == 0).all() and (x.grad[0, 0] == 0).all() and x.grad[0, 1].abs().max() > 0


@pytest.mark.parametrize("x", [torch.zeros(2, 4, 400), torch.full((2, 4, 400), 0.5)], ids=["silence", "constant"])
@pytest.mark.parametrize("before_pooling", [True, False])
def test_gradients_are_finite_with_default_dropout(x, before_pooling):
    torch.manual_seed(0)
    model = get_denet((4, 400), 2, before_pooling=before_pooling, **SMALL)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, 1), torch.zeros(8, dtype=torch.long)).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert all(p.isfinite().all() for p in model.state_dict().values())


def test_bfloat16_autocast_is_close():
    torch.manual_seed(0)
    model = get_denet((4, 400), 2, dropout=0.0, **SMALL).eval()
    x = 0.1 * torch.randn(2, 4, 400)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(x)
        F.cross_entropy(actual.flatten(0, 1).float(), torch.zeros(8, dtype=torch.long)).backward()
    torch.testing.assert_close(actual.float(), expected, atol=0.02, rtol=0.02)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_train_attention_off_leaves_the_branch_alone_but_passes_its_gradient_on():
    model = get_denet((4, 400), 2, train_attention=False, **SMALL)
    model(torch.randn(2, 4, 400)).square().sum().backward()
    assert all(p.grad is None for p in model.attention.parameters())
    assert model.sinc.filt_b1.grad.abs().max() > 0


@pytest.mark.parametrize("shape", [(2, 4, 400), (2, 4, 400, 1)])
def test_input_shapes(shape):
    assert get_denet((4, 400), 3, **SMALL)(torch.randn(shape)).shape == (2, 4, 3)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="too short"):
        get_denet((10, 50), 2)
    with pytest.raises(ValueError, match="input_shape"):
        get_denet((10, 800, 2), 2)
    with pytest.raises(ValueError, match=r"\(batch, seq_len, 400\), not \(2, 4, 401\)"):
        get_denet((4, 400), 2, **SMALL)(torch.zeros(2, 4, 401))


def test_prediction_leaves_each_layer_in_its_mode():
    model = DENet((2, 400), 2, n_filters=4, gru_units=4, dense_units=(4, 4)).train()
    model.batch_norm1.eval()
    modes = [module.training for module in model.modules()]
    y = model.predict_proba(torch.zeros(1, 2, 400))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(y, model.eval().predict_proba(torch.zeros(1, 2, 400)))
