"""Our .safetensors, the format of `denet_torch.checkpoint`, read and written without PyTorch."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from denet_torch import files
from denet_torch.architecture import NAMES, checksum

from . import Weights, WeightsError
from .architecture import check_types, facts
from .files import existing, line, parsed


def read_safetensors(path: Path) -> Weights:
    """Weights and architecture of a file that `denet_torch.save` wrote, its checksum checked. Raises WeightsError."""
    try:
        with safe_open(existing(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: cannot be read as safetensors ({line(error)})") from None
    if not {"denet", "sha256"} <= metadata.keys():
        raise WeightsError(f"{path}: has no DENet architecture in its metadata")
    detection = metadata.get("detection", "")
    if checksum(metadata["denet"] + detection, tensors) != metadata["sha256"]:
        raise WeightsError(f"{path}: damaged, its checksum does not match")
    if unknown := tensors.keys() - set(NAMES):
        raise WeightsError(f"{path}: {min(unknown)} is no weight of a DENet")
    config = parsed(path, metadata["denet"], "architecture")
    weights = Weights(path, tensors, {name: name for name in tensors}, facts(path, config), detection=detection)
    check_types(weights)
    return weights


def write_safetensors(tensors: dict[str, np.ndarray], config: dict, path: Path, detection: str = "") -> None:
    """The file that `denet_torch.load` rebuilds the model from."""
    tensors = {name: tensors[name] for name in NAMES}
    text = json.dumps(config)
    metadata = {"format": "pt", "denet": text, "sha256": checksum(text + detection, tensors)}
    files.write_safetensors(tensors, metadata | ({"detection": detection} if detection else {}), path)
