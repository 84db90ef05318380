"""Of what is compiled, what the contract of all fast paths does not ask: rounding, what is kept, threads."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fast_contract import arguments, attention_weights, doubled, error

from denet_torch import conditions, using
from denet_torch.architecture import attention_steps
from denet_torch.layers import band_convolutions, conv1d, convolve_waveform, gru_steps
from denet_torch.sincnet import conv_layers

pytest.importorskip("numba")

from denet_torch.fast import numba_cpu
from denet_torch.fast.numba_cpu import amx, bands, gru, product, threads, waveform

needs_bfloat16 = pytest.mark.skipif(not product.BFLOAT16, reason="this processor has no bfloat16 instructions")


def band_weights() -> list[torch.Tensor]:
    """Kernels and biases of the attention network's three convolutions, with gradients."""
    return [weight.requires_grad_() for weight in attention_weights()]


def plain(function, *args):
    with using("plain"):
        return function(*args)


@pytest.mark.parametrize("rows", [1, 3, bands.BANDS + 3])
@pytest.mark.parametrize("steps", [231, 232, 233, 249, 400, 813])
def test_bands_are_band_convolutions(rows, steps):
    torch.manual_seed(steps)
    x, weights = torch.randn(rows, steps, dtype=torch.float64, requires_grad=True), band_weights()
    expected, actual = plain(band_convolutions, x, *weights), numba_cpu.band_convolutions(x, *weights)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, (x, *weights), grad) for y in (actual, expected)))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_gradients_are_the_same_whatever_is_kept(dtype, monkeypatch):
    torch.manual_seed(0)
    x, weights = torch.randn(7, 260, requires_grad=True), [weight.detach().float().requires_grad_() for weight in band_weights()]
    each, found = 32 * (3 * attention_steps(260) + 6), []
    for kept in (0, 3 * each + 1, 7 * each):
        monkeypatch.setattr(conditions, "KEPT", kept)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y, rows = bands.band_convolutions(x, *weights, dtype == torch.bfloat16, conditions.may_keep())
        assert len(rows) == kept // each
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, *weights))))
    assert all(torch.equal(some, none) for more in found[1:] for some, none in zip(more, found[0], strict=True))


def test_a_forward_pass_in_parts_keeps_no_more_than_a_whole_one(monkeypatch):
    monkeypatch.setattr(conditions, "KEPT", 1000)
    assert conditions.may_keep() == 1000
    with conditions.one_of(4):
        assert conditions.may_keep() == 250
    with torch.no_grad():
        assert conditions.may_keep() == 0


class Rounded(torch.autograd.Function):
    """Numbers rounded to bfloat16, and their gradients as well."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, only_gradients: bool = False) -> torch.Tensor:
        return x.clone() if only_gradients else x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.bfloat16().to(grad.dtype), None


@needs_bfloat16
@pytest.mark.parametrize("rows", [2, bands.BANDS + 3])
@pytest.mark.parametrize("steps", [231, 249, 400])  # odd and even numbers of steps behind the layers
def test_bands_in_bfloat16(rows, steps, monkeypatch):
    """What is between the layers is rounded, and nothing else: float64 with that rounding comes to the same."""
    monkeypatch.setattr(bands, "ROUNDED", True)
    torch.manual_seed(steps)
    tensors = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (torch.randn(rows, steps), *band_weights())]
    x, w1, b1, w2, b2, w3, b3 = tensors
    h = Rounded.apply(F.relu(conv1d(x[:, :, None], w1, b1, stride=2)))
    h = Rounded.apply(F.relu(conv1d(h, w2, b2, stride=3)))
    expected = Rounded.apply(F.relu(conv1d(h, w3, b3, stride=3)).flatten(1), True)
    tensors_32 = [tensor.detach().float().requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        actual = numba_cpu.band_convolutions(*tensors_32)
    assert actual.dtype == torch.float32
    grad = torch.randn_like(expected)
    pairs = zip(
        (actual, *torch.autograd.grad(actual, tensors_32, grad.float())),
        (expected, *torch.autograd.grad(expected, tensors, grad)),
        strict=True,
    )
    for found, true in pairs:
        # now and then a float32 sum lies on the other side of the middle between two bfloat16 numbers
        assert (found - true).norm() <= 1e-4 * true.norm()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(frames=st.integers(1, 7), steps=st.integers(1, 90), filters=st.integers(10, 35), half=st.integers(1, 20))
def test_waveforms_are_convolve_waveform(frames, steps, filters, half):
    torch.manual_seed(steps)
    x = torch.randn(frames, steps, dtype=torch.float64)
    taps = torch.randn(filters, 2 * half + 1, dtype=torch.float64, requires_grad=True)
    expected, actual = plain(convolve_waveform, x, taps), waveform.convolve(x, taps).transpose(1, 2)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, taps, grad) for y in (actual, expected)))


def recurrence(batch: int, units: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that open some gates wholly and shut some, and a recurrent kernel."""
    torch.manual_seed(batch)
    inputs, kernel = 2 * torch.randn(batch, 4, 3 * units, dtype=dtype), torch.randn(units, 3 * units, dtype=dtype) / units**0.5
    return inputs.requires_grad_(), kernel.requires_grad_()


@pytest.mark.parametrize("batch", [1, 3, 8, 11])
@pytest.mark.parametrize("units", [256, 272, 528])
def test_recurrence_is_gru_steps(batch, units):
    tensors = recurrence(batch, units)
    expected, actual = plain(gru_steps, *tensors), gru.states(*tensors)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, tensors, grad) for y in (actual, expected)))


def test_tanh():
    small = 10.0 ** np.arange(-300, 3)
    x = np.concatenate([np.linspace(-25, 25, 10_001), small, -small, [0, np.inf, -np.inf]])
    assert np.isnan(gru._tanh(np.nan))
    np.testing.assert_allclose([gru._tanh(number) for number in x], np.tanh(x), rtol=1e-15)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_uses_threads_of_its_own():
    tensors, threads = recurrence(1, 512), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = gru.states(*tensors)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(gru.states(*tensors), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("openmp", [True, False])
def test_an_error_on_any_thread_is_raised(monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(threads, "_parallel", None)

    def fail(first, last):
        raise ZeroDivisionError(first)

    with pytest.raises(ZeroDivisionError):
        threads.share_out(fail, 8, 1)


@pytest.mark.parametrize("openmp", [True, False])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch, openmp):
    """With and without PyTorch's own threads; the contract asks it of every operation on the former."""
    if not openmp:
        monkeypatch.setattr(threads, "_parallel", None)
    one, three = (recurrence(batch, 512, torch.float32) for batch in (1, 3))
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append((gru.states(*one), gru.states(*three)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_processors_that_are_no_faster_in_bfloat16_stay_in_float32(monkeypatch):
    monkeypatch.setattr(bands, "ROUNDED", False)
    x, weights = torch.randn(3, 260), [weight.detach().float() for weight in band_weights()]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = numba_cpu.band_convolutions(x, *weights)
    assert torch.equal(rounded, numba_cpu.band_convolutions(x, *weights))


@pytest.mark.parametrize("tiles", [False, pytest.param(True, marks=pytest.mark.skipif(not amx.AMX, reason="no tiles"))])
def test_chunks_with_and_without_tiles(tiles, monkeypatch):
    """oneDNN, which computes in tiles of its own, finds them as it wants them."""
    monkeypatch.setattr(amx, "AMX", tiles)
    args, x = arguments("conv_layers", "two", torch.float32), torch.randn(64, 64).bfloat16()
    args[1] = args[1] + args[1].flip(1)
    before, found = x @ x, numba_cpu.conv_layers(*args)
    assert torch.equal(x @ x, before)
    truth = plain(conv_layers, *doubled(args))
    assert error(found, truth) <= 2 * max(error(plain(conv_layers, *args), truth), 2.0**-23)


@pytest.mark.parametrize("rows", [1, 5, 10, 13])
@pytest.mark.parametrize(("inner", "columns"), [(1, 16), (50, 1040), (37, 272)])
def test_few_rows_are_a_product(rows, inner, columns):
    torch.manual_seed(rows)
    x, kernel = torch.randn(rows, inner, dtype=torch.float64), torch.randn(inner, 3 * columns, dtype=torch.float64)
    for part in (kernel, *kernel.split(columns, dim=1)):
        torch.testing.assert_close(product.few_rows(x, part), x @ part)
