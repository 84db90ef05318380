"""requirements.lock: every package of every extra, at the version that was tested, with the hashes of its files."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ENTRIES = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
LOCKED = dict(entry.split()[0].split("==") for entry in ENTRIES)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STATED = [Requirement(text) for some in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()] for text in some]


def test_every_package_has_hashes():
    assert len(ENTRIES) == len(LOCKED) > 200
    for entry in ENTRIES:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.+]+( ; .*)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry[:100]


def test_what_is_stated_is_locked_within_its_range_and_has_a_floor():
    for requirement in STATED:
        name = canonicalize_name(requirement.name)
        if name == "denet-torch" or name == "wandb":  # the extras themselves; not among [all]
            continue
        assert requirement.specifier.contains(LOCKED[name]), f"{requirement}: {LOCKED[name]}; compile requirements.lock anew"
        assert any(part.operator in (">=", "==") for part in requirement.specifier), f"{requirement} has no floor"


def test_this_environment_is_the_locked_one():
    for name, locked in LOCKED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = None
        if found not in (locked, None):
            pytest.skip(f"{name} is {found} here, {locked} in requirements.lock: ranges are tested, not the lock")
