"""Every layer and the whole model against `reference_tf`, over drawn shapes, rates, sizes and dropout switches."""

import pytest

from parity_tests.cases import CASES
from parity_tests.checks import check_float32, check_reference

# A case of a recurrent layer, of the attention and of the model takes half a second, of any other some milliseconds.
EXAMPLES = {"GRU": 40, "Bidirectional": 30, "DELayer": 50, "DENet": 60}


@pytest.mark.parametrize("layer", CASES)
def test_reference(layer, report):
    examples = EXAMPLES.get(layer, 100)
    ratios = check_reference(layer, report, examples)
    assert 4 * len(ratios) >= examples, f"{layer}: only {len(ratios)} of {examples} cases off the kinks"
    check_float32(layer, report, ratios)
