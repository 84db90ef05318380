"""Every fast backend against `reference_tf`, at sizes that it takes: the drawn cases of the plain text are too small for most."""

import zlib

import pytest

import denet_torch.layers as port
import reference_tf.layers as reference
from denet_torch import dispatch, using
from parity_tests import sides
from parity_tests.checks import REFERENCE_BAR, WORST_RATIO
from parity_tests.port_side import Case, errors

BACKENDS = sorted(dispatch.BACKENDS)


def attention(*shape) -> Case:
    return Case(
        {"shape": shape},
        lambda: port.DELayer(shape[1]),
        lambda dtype: reference.DELayer(dtype=dtype),
        shape,
        zero_gradients={"dense3.bias": "dense3.weight"},
    )


def recurrence(units, *shape) -> Case:
    return Case(
        {"units": units, "shape": shape},
        lambda: port.Bidirectional(shape[2], units),
        lambda dtype: reference.Bidirectional(units, dtype=dtype),
        shape,
    )


CASES = [attention(2, 217, 260), attention(8, 400, 70), recurrence(256, 1, 7, 30), recurrence(304, 12, 4, 40)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.settings))
@pytest.mark.parametrize("backend", BACKENDS)
def test_reference(backend, case):
    """Forwards and backwards in float64; in float32 as near to that as TensorFlow, within the factor allowed elsewhere."""
    fresh = sides.build_port(case)
    names = sides.gradient_names(fresh)
    numbers = sides.draw(case, sides.compared_state(fresh), zlib.crc32(repr(case.shape).encode()) // 2)
    truth = sides.run_reference(case, numbers, "float64", names)
    with using(backend):
        double, single = (errors(case, sides.run_port(case, numbers, dtype), truth) for dtype in ("float64", "float32"))
    for key, value in double.items():
        assert value <= REFERENCE_BAR, f"{backend}: {key} is off by {value:.1e} in float64"
    tensorflow = errors(case, sides.run_reference(case, numbers, "float32", names), truth)
    assert max(single.values()) <= WORST_RATIO * max(tensorflow.values())
