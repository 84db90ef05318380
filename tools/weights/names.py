"""Modules of `denet_torch`, read from their files: `import denet_torch` loads PyTorch, which a conversion need not wait for."""

import importlib.util
from pathlib import Path
from types import ModuleType


def module(name: str) -> ModuleType:
    """`denet_torch.NAME`."""
    folder = importlib.util.find_spec("denet_torch").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(f"denet_torch.{name}", Path(folder, f"{name}.py"))
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


table = module("architecture")
LAYERS, NAMES, ATTENTION, PORT_NAMES = table.LAYERS, table.NAMES, table.ATTENTION, table.PORT_NAMES
keras_name, transposed, shapes, checksum = table.keras_name, table.transposed, table.shapes, table.checksum
conv_steps, attention_steps = table.conv_steps, table.attention_steps
