"""The layers' own shortcuts against plain PyTorch, and their gradients where the original's fail."""

import pytest
import torch
import torch.nn.functional as F

from denet_torch import DENet, dispatch, get_denet, using
from denet_torch.layers import GRU, DELayer, LayerNorm, multiply

SMALL = {"n_filters": 6, "gru_units": 8, "dense_units": (8, 8)}


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


@pytest.mark.parametrize("layer", [DELayer(130), GRU(3, 4)], ids=["attention", "GRU"])
def test_the_plain_text_differentiates_twice(layer):
    x = torch.randn(2, 130, 3, requires_grad=True)
    with using("plain"):
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its compiler
@pytest.mark.parametrize("backends", [["plain"], list(dispatch.BACKENDS)], ids=["plain", "fast"])
def test_torch_compile_takes_the_model_whole(backends):
    """One graph without a break, forwards and backwards, with the plain text and with the fast operators."""
    torch.manual_seed(0)
    model = get_denet((8, 400), 2, dropout=0.0, n_filters=64, gru_units=256, dense_units=(8, 8)).double()
    x = torch.randn(2, 8, 400, dtype=torch.float64)
    with using(*backends):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        results = [[y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))] for y in (compiled(x), model(x))]
    torch.testing.assert_close(*results)


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
