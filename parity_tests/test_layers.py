"""Every layer and the whole model against `reference_tf`, over drawn shapes, rates, sizes and dropout switches."""

import functools
from statistics import median

import pytest

from parity_tests.cases import CASES
from parity_tests.checks import check_float32, check_reference
from parity_tests.report import ALL, Report

# A case of a recurrent layer, of the attention and of the model takes half a second, of any other some milliseconds.
EXAMPLES = {"GRU": 40, "Bidirectional": 30, "DELayer": 50, "DENet": 60}


@functools.cache
def compared(layer) -> tuple[list[float], Report]:
    """Ratios and figures of a layer's drawn cases, which two tests judge."""
    report = Report()
    return check_reference(layer, report, EXAMPLES.get(layer, 100)), report


@pytest.mark.parametrize("layer", CASES)
def test_reference(layer, report):
    ratios, figures = compared(layer)
    report.merge(figures.rows)
    assert 4 * len(ratios) >= figures.rows[layer]["cases"], f"{layer}: only {len(ratios)} cases off the kinks"
    check_float32(layer, report, ratios, figures.cases)


def test_float32_median(report):
    """Over all drawn cases the port's float32 error is in the median no larger than TensorFlow's own; ties would hide it."""
    ratios = [ratio for layer in CASES for ratio in compared(layer)[0] if ratio != 1]
    report.add(ALL, "median ratio", median(ratios))
    report.merge({ALL: {"cases": len(ratios)}})
    assert median(ratios) <= 1
