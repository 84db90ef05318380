"""The compiled attention and GRU against `reference_tf`: their drawn cases have too few bands and units to use them."""

import zlib

import pytest

import denet_torch.layers as port
import reference_tf.layers as reference
from parity_tests import sides
from parity_tests.checks import REFERENCE_BAR, WORST_RATIO, errors
from parity_tests.sides import Case


@pytest.mark.parametrize("shape", [(2, 233, 3), (1, 400, 70), (2, 801, 40)], ids=str)
def test_compiled_attention(shape, monkeypatch):
    case = Case(
        {"shape": shape},
        lambda: port.DELayer(shape[1]),
        lambda dtype: reference.DELayer(dtype=dtype),
        shape,
        zero_gradients={"dense3.bias": "dense3.weight"},
    )
    assert check(case, monkeypatch)[0] == shape[0] * shape[2]


@pytest.mark.parametrize("shape", [(1, 7, 30), (5, 10, 20), (12, 4, 40)], ids=str)
@pytest.mark.parametrize("units", [256, 304])
def test_compiled_gru(shape, units, monkeypatch):
    case = Case(
        {"units": units, "shape": shape},
        lambda: port.Bidirectional(shape[2], units),
        lambda dtype: reference.Bidirectional(units, dtype=dtype),
        shape,
    )
    assert check(case, monkeypatch)[0] == shape[0]


def check(case: Case, monkeypatch) -> list[int]:
    """Forwards and backwards in float64; in float32 as near to that as TensorFlow, within the factor allowed elsewhere.

    Returns the rows of what was handed to the compiled functions.
    """
    used, compiled_kernels = [], port.compiled_kernels
    monkeypatch.setattr(port, "compiled_kernels", lambda x, least=1: used.append(len(x)) or compiled_kernels(x))
    fresh = sides.build_port(case)
    names = sides.gradient_names(fresh)
    numbers = sides.draw(case, sides.compared_state(fresh), zlib.crc32(repr(case.shape).encode()) // 2)
    truth = sides.run_reference(case, numbers, "float64", names)
    exact = errors(case, sides.run_port(case, numbers, "float64"), truth)
    for key, value in exact.items():
        assert value <= REFERENCE_BAR, f"{key} is off by {value:.1e} in float64"
    single = errors(case, sides.run_port(case, numbers, "float32"), truth)
    tensorflow = errors(case, sides.run_reference(case, numbers, "float32", names), truth)
    assert max(single.values()) <= WORST_RATIO * max(tensorflow.values())
    return used
