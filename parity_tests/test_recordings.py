"""Every recorded layer of the original, on both sides."""

import numpy as np
import pytest

from parity_tests import recordings
from parity_tests.checks import check_recordings

LAYERS = sorted({recording.layer for recording in recordings.RECORDINGS.values()})


@pytest.mark.parametrize("side", ["port", "reference"])
@pytest.mark.parametrize("layer", LAYERS)
def test_recording(layer, side, report):
    check_recordings(layer, report, side)
