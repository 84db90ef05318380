"""Stops while threads are inside of compiled kernels: tests/kernel_stops.py, DENET_STOPS times each (100 in the long run)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

from guard_pages import with_malloc_checks


@pytest.mark.skipif(sys.platform != "linux", reason="each trial is a fork")
@pytest.mark.parametrize("trials", [["killed", "ended", "interrupted", "failed", "left"], ["forked"]], ids=" ".join)
def test_stops_inside_of_kernels(trials):
    seed = os.environ["DENET_SEED"]  # tests/conftest.py
    program, root = Path(__file__).with_name("kernel_stops.py"), Path(__file__).resolve().parents[1]
    command = [sys.executable, program, "--seed", seed, "--times", os.environ.get("DENET_STOPS", "4")]
    # The C library's heap that checks itself cannot be forked while a thread is in it.
    checks = os.environ | {"MALLOC_PERTURB_": "165"} if trials == ["forked"] else with_malloc_checks()
    environment = checks | {"PYTHONPATH": str(root)}
    found = subprocess.run([*command, "--trials", *trials], env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and not found.stderr, found.stdout + found.stderr
