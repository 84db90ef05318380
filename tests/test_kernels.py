"""The compiled convolutions and recurrence against the plain ones, which the parity tests compare with TensorFlow's."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import band_weights, in_parts

from denet_torch import kernels, layers
from denet_torch.layers import (
    LEAST_ROWS,
    DELayer,
    GRURecurrence,
    SincConv1D,
    WaveformConvolution,
    band_convolutions,
    band_convolutions_in_parts,
    compiled_kernels,
    conv1d,
    convolve_waveform,
    gru_steps,
)

needs_bfloat16 = pytest.mark.skipif(not kernels.BFLOAT16, reason="this processor has no bfloat16 instructions")


@pytest.fixture(autouse=True)
def for_the_fewest(monkeypatch):
    """The compiled functions are used for few rows as well, so that cases are small."""
    monkeypatch.setattr(layers, "compiled_kernels", lambda x, least=1: compiled_kernels(x))


@pytest.mark.parametrize("rows", [1, 3, kernels.BANDS + 3])
@pytest.mark.parametrize("steps", [231, 232, 233, 249, 400, 813])
def test_bands_are_band_convolutions(rows, steps):
    torch.manual_seed(steps)
    x, weights = torch.randn(rows, steps, dtype=torch.float64, requires_grad=True), band_weights()
    expected, actual = band_convolutions(x, *weights), in_parts(x, *weights)
    assert actual.grad_fn.compiled is (kernels if DELayer.conv_steps(steps) >= LEAST_ROWS else None)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, (x, *weights), grad) for y in (actual, expected)))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_gradients_are_the_same_whatever_is_kept(dtype):
    torch.manual_seed(0)
    x, weights = torch.randn(7, 260, requires_grad=True), [weight.detach().float().requires_grad_() for weight in band_weights()]
    each, found = 32 * (3 * DELayer.conv_steps(260) + 6), []
    for kept in (0, 3 * each + 1, 7 * each):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = in_parts(x, *weights, kept=kept)
        assert len(y.grad_fn.saved_tensors[-1]) == kept // each
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, *weights))))
    assert all(torch.equal(some, none) for more in found[1:] for some, none in zip(more, found[0], strict=True))


@pytest.mark.parametrize("steps", [100, 250])  # the plain ones, the compiled ones
def test_gradients_of_bands_that_are_read_elsewhere_too(steps):
    torch.manual_seed(steps)
    x, weights = torch.randn(5, steps, dtype=torch.float64, requires_grad=True), band_weights()
    expected, (actual, same) = band_convolutions(x, *weights), band_convolutions_in_parts(x, 0, *weights)
    grad, other = torch.randn_like(expected), torch.randn_like(x)
    torch.testing.assert_close(
        torch.autograd.grad((actual, same), (x, *weights), (grad, other)),
        torch.autograd.grad((expected, x.clone()), (x, *weights), (grad, other)),
    )


def test_bands_in_single_precision():
    torch.manual_seed(0)
    x, weights = torch.randn(70, 400, dtype=torch.float64, requires_grad=True), band_weights()
    grad = torch.randn(70, 200, dtype=torch.float64)
    expected = band_convolutions(x, *weights)
    x_32, *weights_32 = (tensor.detach().float().requires_grad_() for tensor in (x, *weights))
    actual = in_parts(x_32, *weights_32)
    pairs = zip(
        (actual, *torch.autograd.grad(actual, (x_32, *weights_32), grad.float())),
        (expected, *torch.autograd.grad(expected, (x, *weights), grad)),
        strict=True,
    )
    for found, true in pairs:
        assert (found - true).abs().max() <= 1e-5 * true.abs().max()


def test_bands_without_gradients_of_the_weights():
    torch.manual_seed(0)
    x, weights = torch.randn(3, 250, dtype=torch.float64, requires_grad=True), [w.detach() for w in band_weights()]
    expected, actual = (torch.autograd.grad(f(x, *weights).sum(), x) for f in (band_convolutions, in_parts))
    torch.testing.assert_close(actual, expected)


def test_bands_keep_what_is_no_number():
    torch.manual_seed(0)
    x = torch.randn(3, 250, dtype=torch.float64)
    x[1, 100] = torch.nan
    y = in_parts(x, *band_weights())
    assert y.isnan().any(dim=1).tolist() == [False, True, False]


class Rounded(torch.autograd.Function):
    """Numbers rounded to bfloat16, and their gradients as well."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, only_gradients: bool = False) -> torch.Tensor:
        return x.clone() if only_gradients else x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.bfloat16().to(grad.dtype), None


@needs_bfloat16
@pytest.mark.parametrize("rows", [2, kernels.BANDS + 3])
@pytest.mark.parametrize("steps", [231, 249, 400])  # odd and even numbers of steps behind the layers
def test_bands_in_bfloat16(rows, steps):
    """What is between the layers is rounded, and nothing else: float64 with that rounding comes to the same."""
    torch.manual_seed(steps)
    tensors = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (torch.randn(rows, steps), *band_weights())]
    x, w1, b1, w2, b2, w3, b3 = tensors
    h = Rounded.apply(F.relu(conv1d(x[:, :, None], w1, b1, stride=2)))
    h = Rounded.apply(F.relu(conv1d(h, w2, b2, stride=3)))
    expected = Rounded.apply(F.relu(conv1d(h, w3, b3, stride=3)).flatten(1), True)
    tensors_32 = [tensor.detach().float().requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        actual = in_parts(*tensors_32)
    assert actual.grad_fn.compiled is kernels and actual.grad_fn.dtype == torch.bfloat16 and actual.dtype == torch.float32
    grad = torch.randn_like(expected)
    pairs = zip(
        (actual, *torch.autograd.grad(actual, tensors_32, grad.float())),
        (expected, *torch.autograd.grad(expected, tensors, grad)),
        strict=True,
    )
    for found, true in pairs:
        # now and then a float32 sum lies on the other side of the middle between two bfloat16 numbers
        assert (found - true).norm() <= 1e-4 * true.norm()


@needs_bfloat16
def test_bands_in_bfloat16_keep_what_is_no_number():
    torch.manual_seed(0)
    x = torch.randn(3, 250)
    x[1, 100] = torch.nan
    with torch.autocast("cpu", torch.bfloat16):
        y = in_parts(x, *(weight.detach().float() for weight in band_weights()))
    assert y.isnan().any(dim=1).tolist() == [False, True, False]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(frames=st.integers(1, 7), steps=st.integers(1, 90), filters=st.integers(LEAST_ROWS, 35), half=st.integers(1, 20))
def test_waveforms_are_convolve_waveform(frames, steps, filters, half):
    torch.manual_seed(steps)
    x = torch.randn(frames, steps, dtype=torch.float64)
    taps = torch.randn(filters, 2 * half + 1, dtype=torch.float64, requires_grad=True)
    expected, actual = convolve_waveform(x, taps), WaveformConvolution.apply(x, taps).transpose(1, 2)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, taps, grad) for y in (actual, expected)))


def test_sinc_convolution_differentiates_twice():
    torch.manual_seed(0)
    layer = SincConv1D(12, 31, 16000).double()
    x, slopes = torch.randn(3, 100, 1, dtype=torch.float64), []
    for with_gradients in (False, True):  # a waveform with gradients goes the plain way
        y = layer(x.requires_grad_(with_gradients))
        (slope,) = torch.autograd.grad(y.square().sum(), layer.filt_b1, create_graph=True)
        slopes.append(torch.autograd.grad(slope.square().sum(), layer.filt_band)[0])
    torch.testing.assert_close(*slopes)


def recurrence(batch: int, units: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that open some gates wholly and shut some, and a recurrent kernel."""
    torch.manual_seed(batch)
    inputs, kernel = 2 * torch.randn(batch, 4, 3 * units, dtype=dtype), torch.randn(units, 3 * units, dtype=dtype) / units**0.5
    return inputs.requires_grad_(), kernel.requires_grad_()


@pytest.mark.parametrize("batch", [1, 3, 8, 11])
@pytest.mark.parametrize("units", [256, 272, 528])
def test_recurrence_is_gru_steps(batch, units):
    tensors = recurrence(batch, units)
    expected, actual = gru_steps(*tensors), GRURecurrence.apply(*tensors)
    assert actual.grad_fn.compiled is kernels
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, tensors, grad) for y in (actual, expected)))


@pytest.mark.parametrize("batch", [1, 5])
def test_recurrence_in_single_precision(batch):
    expected = gru_steps(*recurrence(batch, 512))
    actual = GRURecurrence.apply(*(tensor.float() for tensor in recurrence(batch, 512)))
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_recurrence_differentiates_twice():
    found = []
    for function in (gru_steps, GRURecurrence.apply):
        tensors = recurrence(2, 256)
        (slope,) = torch.autograd.grad(function(*tensors).square().sum(), tensors[0], create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), tensors))
    torch.testing.assert_close(*found)


def test_recurrence_keeps_what_is_no_number():
    inputs, kernel = (tensor.detach() for tensor in recurrence(3, 256))
    for gate in range(3):
        spoilt = inputs.clone()
        spoilt[1, 2, 256 * gate + 7] = torch.nan
        states = GRURecurrence.apply(spoilt, kernel).isnan()
        assert torch.equal(states, gru_steps(spoilt, kernel).isnan()) and states[1, 2].any() and not states[[0, 2]].any()


def test_tanh():
    small = 10.0 ** np.arange(-300, 3)
    x = np.concatenate([np.linspace(-25, 25, 10_001), small, -small, [0, np.inf, -np.inf]])
    assert np.isnan(kernels._tanh(np.nan))
    np.testing.assert_allclose([kernels._tanh(number) for number in x], np.tanh(x), rtol=1e-15)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_uses_threads_of_its_own():
    tensors, threads = recurrence(1, 512), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = GRURecurrence.apply(*tensors)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(GRURecurrence.apply(*tensors), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("openmp", [True, False])
def test_an_error_on_any_thread_is_raised(monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(kernels, "_parallel", None)

    def fail(first, last):
        raise ZeroDivisionError(first)

    with pytest.raises(ZeroDivisionError):
        kernels._share_out(fail, 8, 1)


@pytest.mark.parametrize("openmp", [True, False])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(kernels, "_parallel", None)
    torch.manual_seed(0)
    x, weights = torch.randn(200, 400, requires_grad=True), [w.detach().float().requires_grad_() for w in band_weights()]
    one, three = (recurrence(batch, 512, torch.float32) for batch in (1, 3))
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            y = in_parts(x, *weights)
            states = GRURecurrence.apply(*one), GRURecurrence.apply(*three)
            found.append((y, *torch.autograd.grad(y.square().sum(), (x, *weights)), *states))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_who_takes_the_compiled_functions(monkeypatch):
    """Few rows and other types go the plain way; autocast does not."""
    x = torch.zeros(8, 400)
    assert compiled_kernels(x, least=8) is kernels
    assert compiled_kernels(x, least=9) is None
    assert compiled_kernels(x.bfloat16()) is None
    assert compiled_kernels(x.to("meta")) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert in_parts(x, *(weight.float() for weight in band_weights())).dtype == torch.float32
        y = in_parts(x.double(), *band_weights())
        assert y.grad_fn.compiled is kernels and y.grad_fn.dtype == torch.float64
        monkeypatch.setattr(kernels, "BFLOAT16", False)
        y = in_parts(x, *(weight.float() for weight in band_weights()))
        assert y.grad_fn.compiled is kernels and y.grad_fn.dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 5, 10, 13])
@pytest.mark.parametrize(("inner", "columns"), [(1, 16), (50, 1040), (37, 272)])
def test_few_rows_are_a_product(rows, inner, columns):
    torch.manual_seed(rows)
    x, kernel = torch.randn(rows, inner, dtype=torch.float64), torch.randn(inner, 3 * columns, dtype=torch.float64)
    for part in (kernel, *kernel.split(columns, dim=1)):
        torch.testing.assert_close(kernels.few_rows(x, part), x @ part)


def test_few_rows_take_long_kernels(monkeypatch):
    taken = []
    monkeypatch.setattr(kernels, "few_rows", lambda x, kernel: taken.append(len(x)) or x @ kernel)
    kernel = torch.randn(1024, 6144)
    for part in (kernel, kernel[:, 2048:4096], kernel[:, :100], kernel.T):
        for rows in (4, 5, 10, 11):
            x = torch.randn(rows, len(part))
            torch.testing.assert_close(layers.product(x, part), x @ part, atol=1e-3, rtol=1e-4)
    assert taken == [5, 10, 5, 10]
