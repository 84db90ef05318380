"""A few cases of tests/stress.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")


@pytest.mark.skipif(sys.platform != "linux", reason="each run is a fork")
def test_nothing_is_lost_in_a_few_cases():
    program, root = Path(__file__).with_name("stress.py"), Path(__file__).resolve().parents[1]
    seed = os.environ["DENET_SEED"]  # tests/conftest.py
    command = [sys.executable, program, "--minutes", "0.3", "--seed", seed]
    environment = os.environ | {"PYTHONPATH": str(root), "MALLOC_PERTURB_": "165"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr
    assert " 0 lost" in f" {found.stdout.splitlines()[-1]}"
