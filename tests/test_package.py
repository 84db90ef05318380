"""The package as others import it: names without PyTorch until one is used, no circles, and fast paths wherever one begins."""

import ast
import os
import pickle
import pkgutil
import pydoc
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import denet_torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("denet_torch", "reference_tf", "tools", "training")


def python(code: str, root: Path = ROOT) -> str:
    """What a process of its own prints, in which the packages are those of `root`."""
    sites = [str(root), *(path for path in sys.path if path.endswith("site-packages"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sites)}
    # -S: without the editable install, which would find in the checkout what `root` lacks
    words = [sys.executable, "-S", "-c", code]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported(statements: list[ast.stmt], module: str, is_package: bool) -> set[str]:
    """Modules that these statements import, as they stand there; classes' and functions' bodies are left out."""
    found = set()
    for node in statements:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            found |= imported(node.body, module, is_package) | imported(node.orelse, module, is_package)
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Each module of the repository and those of it that it imports when it is imported."""
    paths = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {
        module: imported(ast.parse(path.read_text()).body, module, path.name == "__init__.py") & paths.keys() - {module}
        for module, path in paths.items()
    }


def test_no_module_imports_itself_by_way_of_others(graph):
    order = [*TopologicalSorter(graph).static_order()]
    assert order.index("denet_torch.fast") < order.index("denet_torch.dispatch") < order.index("denet_torch.layers")


def test_fast_paths_know_none_of_what_they_compute_and_one_module_knows_them(graph):
    fast = {module for module in graph if module.startswith("denet_torch.fast")}
    assert {module for module in graph.keys() - fast if graph[module] & fast} == {"denet_torch.dispatch"}
    above = {"denet_torch.dispatch", "denet_torch.layers", "denet_torch.model", "denet_torch.sincnet"}
    assert not [module for module in fast if graph[module] & above]


def test_names_are_those_that_editors_see():
    tree = ast.parse(Path(denet_torch.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {node.module: [alias.name for alias in node.names] for node in block.body}
    assert seen == denet_torch._HOMES
    assert sorted(denet_torch.__all__) == sorted(name for names in seen.values() for name in names)
    assert {*denet_torch.__all__} <= {*dir(denet_torch)}
    assert not {*denet_torch.__all__} & {module.name for module in pkgutil.iter_modules(denet_torch.__path__)}


def test_an_import_takes_no_pytorch_before_a_name_is_used():
    assert python("import sys, denet_torch; print({'torch', 'numpy'} & {*sys.modules})") == "set()"
    assert python("import denet_torch; print(denet_torch.layers.GRU.__name__, denet_torch.load.__name__)") == "GRU load"
    for wanted in ("denet_torch", "denet_torch.checkpoint"):
        assert python(f"from {wanted} import *; print(*sorted(MODELS), load.__name__)") == "boxes denet sincnet load"


def test_names_are_pickled_and_explained_and_others_are_errors():
    assert pickle.loads(pickle.dumps(denet_torch.DENet)) is denet_torch.DENet
    assert "save_pretrained(" in pydoc.plain(pydoc.render_doc(denet_torch))
    assert not hasattr(denet_torch, "nothing") and not hasattr(denet_torch, "_nothing")
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'denet_torch'"):
        from denet_torch import nothing  # noqa: F401


FIRST = """
import torch
from denet_torch{module} import {name}
from denet_torch import dispatch
{name}  # nothing else of the package was asked for
dispatch._notes = []
torch.manual_seed(0)
import denet_torch.layers as layers
layers.gru_steps(torch.randn(1, 2, 24), torch.randn(8, 24))
print([backend for _, backend, _ in dispatch._notes], len(dispatch.BACKENDS))
"""


@pytest.mark.parametrize("module, name", [("", "get_denet"), (".layers", "gru_steps"), (".sincnet", "SincNet")])
def test_fast_paths_are_there_wherever_one_begins_and_nothing_else_lacks_without_them(tmp_path, module, name):
    code = FIRST.format(module=module, name=name)
    assert python(code) == "['torch_ops'] 3"
    shutil.copytree(ROOT / "denet_torch", tmp_path / "denet_torch", ignore=shutil.ignore_patterns("fast", "__pycache__"))
    assert python(code, tmp_path) == "['plain'] 0"
