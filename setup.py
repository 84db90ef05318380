"""A wheel holds `tools` and `training` as denet_torch.tools and denet_torch.training.

Other projects have folders of those names, which one of ours in site-packages would hide or be hidden by. In the checkout,
and in an editable install of it, they stay where they are.
"""

import ast
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

MOVED = ("tools", "training")
EDITABLE = "editable_wheel" in sys.argv


def moved(source: str, path: str) -> str:
    """Python source whose imports of the moved packages name their place in the wheel.

    Raises ValueError for an `import tools.x` without `as`, which would bind another name there.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in MOVED and alias.asname is None:
                    raise ValueError(f"{path}, line {node.lineno}: write `from {alias.name} import ...`")
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        else:
            continue
        for name in names:
            if name.split(".")[0] in MOVED:
                line = lines[node.lineno - 1]  # the name stands in the statement's first line
                lines[node.lineno - 1] = line[: node.col_offset] + line[node.col_offset :].replace(name, f"denet_torch.{name}", 1)
    return "".join(lines)


class BuildPy(build_py):
    """Copies modules, and names the moved packages anew in all of them."""

    def build_module(self, module, module_file, package):
        outfile, copied = super().build_module(module, module_file, package)
        if not self.editable_mode:
            text = Path(module_file).read_text(encoding="utf-8")
            Path(outfile).write_text(moved(text, str(module_file)), encoding="utf-8")
        return outfile, copied


packages = find_packages(include=["denet_torch*", "reference_tf*"])
home = find_packages(include=[f"{name}*" for name in MOVED])
setup(
    py_modules=["denet_program"],
    packages=packages + [f"denet_torch.{name}" for name in home] + (home if EDITABLE else []),
    package_dir={f"denet_torch.{name}": name for name in MOVED},
    cmdclass={"build_py": BuildPy},
)
