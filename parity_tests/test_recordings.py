"""Every recorded layer of the original, on both sides."""

import pytest

from parity_tests.checks import RECORDED, check_recordings


@pytest.mark.parametrize("side", ["port", "reference"])
@pytest.mark.parametrize("layer", RECORDED)
def test_recording(layer, side, report):
    check_recordings(layer, report, side)
