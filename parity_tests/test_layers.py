"""Every layer and the whole model against `reference_tf`, over drawn shapes, rates, sizes and dropout switches."""

import pytest

from parity_tests.cases import CASES
from parity_tests.checks import check_reference

EXAMPLES = 25


@pytest.mark.parametrize("layer", CASES)
def test_reference(layer, report):
    check_reference(layer, report, EXAMPLES)
