"""The compiled convolutions against the plain ones, which the parity tests compare with TensorFlow's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import band_weights

from denet_torch import kernels, layers
from denet_torch.layers import (
    LEAST_ROWS,
    BandConvolutions,
    DELayer,
    SincConv1D,
    WaveformConvolution,
    band_convolutions,
    compiled_kernels,
    convolve_waveform,
)


@pytest.fixture(autouse=True)
def for_the_fewest(monkeypatch):
    """The compiled functions are used for few rows as well, so that cases are small."""
    monkeypatch.setattr(layers, "compiled_kernels", lambda x, least=1: compiled_kernels(x))


@pytest.mark.parametrize("rows", [1, 3, kernels.BANDS + 3])
@pytest.mark.parametrize("steps", [231, 232, 233, 249, 400, 813])
def test_bands_are_band_convolutions(rows, steps):
    torch.manual_seed(steps)
    x, weights = torch.randn(rows, steps, dtype=torch.float64, requires_grad=True), band_weights()
    expected, actual = band_convolutions(x, *weights), BandConvolutions.apply(x, *weights)
    assert actual.grad_fn.compiled is (kernels if DELayer.conv_steps(steps) >= LEAST_ROWS else None)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, (x, *weights), grad) for y in (actual, expected)))


def test_bands_in_single_precision():
    torch.manual_seed(0)
    x, weights = torch.randn(70, 400, dtype=torch.float64, requires_grad=True), band_weights()
    grad = torch.randn(70, 200, dtype=torch.float64)
    expected = band_convolutions(x, *weights)
    x_32, *weights_32 = (tensor.detach().float().requires_grad_() for tensor in (x, *weights))
    actual = BandConvolutions.apply(x_32, *weights_32)
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
    expected, actual = (torch.autograd.grad(f(x, *weights).sum(), x) for f in (band_convolutions, BandConvolutions.apply))
    torch.testing.assert_close(actual, expected)


def test_bands_keep_what_is_no_number():
    torch.manual_seed(0)
    x = torch.randn(3, 250, dtype=torch.float64)
    x[1, 100] = torch.nan
    y = BandConvolutions.apply(x, *band_weights())
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


def test_results_do_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    x, weights = torch.randn(200, 400, requires_grad=True), [w.detach().float().requires_grad_() for w in band_weights()]
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            y = BandConvolutions.apply(x, *weights)
            found.append((y, *torch.autograd.grad(y.square().sum(), (x, *weights))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_who_takes_the_compiled_functions():
    """Few rows and other types go the plain way; autocast does not, its convolutions are no faster."""
    x = torch.zeros(8, 400)
    assert compiled_kernels(x, least=8) is kernels
    assert compiled_kernels(x, least=9) is None
    assert compiled_kernels(x.bfloat16()) is None
    assert compiled_kernels(x.to("meta")) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert BandConvolutions.apply(x, *(weight.float() for weight in band_weights())).dtype == torch.float32
