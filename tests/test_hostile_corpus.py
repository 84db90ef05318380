"""Drawn hostile files of every kind, through the commands that read them: tests/hostile_files.py.

`DENET_FILES=5000` draws as many; two hundred without it. The seed is printed, and DENET_SEED sets it.
"""

import os
import subprocess
import sys
from pathlib import Path

import hostile_files
import pytest

FILES = os.environ.get("DENET_FILES", "200")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
def test_hostile_files_are_read_or_refused():
    command = [sys.executable, hostile_files.__file__, "--files", FILES, "--seed", os.environ["DENET_SEED"]]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ((0, "", ""), ""),
        ((2, "", "error: a.wav: is empty\n"), ""),
        ((2, "", "error: is empty\n"), "names no file"),
        ((2, "", "error: a.wav: x\nerror: a.wav: y\n"), "2 errors"),
        ((2, "", "error: a.wav: \x1b[2J\n"), "a terminal would obey"),
        ((2, "", f"error: a.wav: {'x' * 300}\n"), "a line of"),
        ((0, "", "error: a.wav: is empty\n"), "exit code 0"),
        ((None, "", "Traceback\nValueError: x\n"), "a traceback: ValueError: x"),
        ((1, "", ""), "exit code 1"),
    ],
)
def test_the_judge_sees(said, wrong):
    found = hostile_files.said_wrong(hostile_files.Case([], [Path("a.wav")]), *said)
    assert wrong in found and bool(wrong) == bool(found)
