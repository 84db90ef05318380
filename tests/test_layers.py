"""The layers' own shortcuts against plain PyTorch, and their gradients where the original's fail."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from denet_torch import get_denet
from denet_torch.layers import DELayer, GRURecurrence, LayerNorm, convolve_waveform, gru_steps, strided_conv

SMALL = {"n_filters": 6, "gru_units": 8, "dense_units": (8, 8)}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=st.integers(1, 90), filters=st.integers(1, 5), half=st.integers(1, 20), block=st.integers(1, 9))
def test_convolve_waveform_is_a_convolution(steps, filters, half, block):
    torch.manual_seed(steps)
    x = torch.randn(2, steps, dtype=torch.float64)
    kernels = torch.randn(filters, 2 * half + 1, dtype=torch.float64)
    expected = F.conv1d(x[:, None], kernels[:, None], padding=half).transpose(1, 2)
    torch.testing.assert_close(convolve_waveform(x, kernels, block), expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=st.integers(7, 90), out=st.integers(1, 5))
def test_strided_conv_is_a_convolution(steps, out):
    torch.manual_seed(steps)
    x = torch.randn(3, steps, dtype=torch.float64)
    weight, bias = torch.randn(out, 1, 7, dtype=torch.float64), torch.randn(out, dtype=torch.float64)
    expected = F.conv1d(x[:, None], weight, bias, stride=2).transpose(1, 2)
    torch.testing.assert_close(strided_conv(x, weight, bias)[:, : expected.shape[1]], expected)


def test_gru_recurrence_is_gru_steps_forwards_backwards_and_twice_backwards():
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 9, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(GRURecurrence.apply(inputs, kernel), gru_steps(inputs, kernel))
    assert torch.autograd.gradcheck(GRURecurrence.apply, (inputs, kernel))
    assert torch.autograd.gradgradcheck(GRURecurrence.apply, (inputs, kernel))


def test_attention_in_chunks_is_attention_at_once():
    torch.manual_seed(0)
    layer = DELayer(4000).double()
    x = torch.randn(4, 4000, 20, dtype=torch.float64, requires_grad=True)
    assert 3 * 15 * x[0].numel() < 2**22 < 4 * 15 * x[0].numel()  # chunks of three frames and of one
    at_once = torch.softmax(layer.scores(x), dim=1)
    torch.testing.assert_close(layer.attention(x), at_once)
    expected, actual = (torch.autograd.grad(y[:, 0].sum(), x)[0] for y in (at_once, layer.attention(x)))
    torch.testing.assert_close(actual, expected)


def test_attention_differentiates_twice():
    layer = DELayer(130).double()
    x = torch.randn(2, 130, 3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


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
