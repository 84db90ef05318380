"""The base install stays light, and what modules import is declared; install_size.py tells the sizes by package."""

import ast
import sys
from importlib import metadata
from pathlib import Path

import pytest
from install_size import PROJECT, sizes
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("denet_torch", "reference_tf", "tools", "training")


def test_the_base_is_below_1600_megabytes_without_what_gpus_need_and_below_6000_with_it():
    try:
        found = sizes().values()
    except metadata.PackageNotFoundError as error:  # of an environment that was made by hand
        pytest.skip(f"{error.name} is not installed")
    cpu, gpu = map(sum, zip(*found, strict=True))
    assert 500e6 < cpu < 1600e6
    assert cpu + gpu < 6000e6


def test_what_is_imported_is_of_the_base_or_of_an_extra():
    """Not of what other packages happen to bring, or of the tests, whose packages benchmarks alone may take."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.keys() - {"test", "docs", "all"} for line in extras[extra])]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    declared |= {"triton", "llvmlite", "protobuf"}  # parts of PyTorch for GPUs, of numba, of TensorFlow
    of, ours = metadata.packages_distributions(), {*SHIPPED, "denet_program", "parity_tests"}
    for path in (path for package in SHIPPED for path in (ROOT / package).rglob("*.py") if "benchmark" not in path.name):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - ours:
                assert {*map(canonicalize_name, of.get(name, [name]))} & declared, f"{path.relative_to(ROOT)} imports {name}"
