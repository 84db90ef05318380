"""A model in one file: weights, architecture and a checksum, in the safetensors format."""

import ctypes
import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .models import MODELS, Model

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # the names that huggingface_hub's model mixin uses


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message is one line that begins with the path."""


def save(model: Model, path: str | Path) -> None:
    """Write `model` to the .safetensors file `path`, from which `load` rebuilds it with no other argument.

    The metadata holds `model.config` under the model's name ("denet"), `model.detection` where there is one, and a checksum
    over these and every weight ("sha256"). `local_step`, training state and no weight, is left out. `path` is replaced in one
    step, so that it is never half a file.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _weights(model).items()}
    config = json.dumps(model.config)
    detection = json.dumps(model.detection) if model.detection else ""
    metadata = {"format": "pt", model.name: config, "sha256": checksum(config + detection, tensors)}
    if detection:
        metadata["detection"] = detection
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata)
        temporary.chmod(mode)  # safetensors makes its files private
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> Model:
    """Rebuild the model that `save` or `tools.convert_weights` wrote to `path`: on the CPU, in evaluation mode, in its dtype.

    Raises CheckpointError if the file is missing, cut short, altered, or of no model in `MODELS`.
    """
    kind, config, detection, tensors = _read(Path(path))
    keep_freed_memory()
    try:
        with torch.device("meta"):  # no memory and no time for initial weights
            model = kind(**config)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path}: its architecture is not a {kind.__name__}'s ({_line(error)})") from None
    expected = _weights(model)
    if odd := sorted(expected.keys() ^ tensors.keys()):
        raise CheckpointError(f"{path}: {odd[0]} is {'missing' if odd[0] in expected else f'no weight of a {kind.__name__}'}")
    dtype = next(iter(tensors.values())).dtype
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(f"{path}: {name} is {tuple(tensor.shape)}, its architecture has {tuple(expected[name].shape)}")
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != dtype:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; expected float32 or float64, the same for every weight")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds values that are not finite numbers")
    steps = {name: torch.zeros((), dtype=torch.int64) for name in model.state_dict() if name.endswith("local_step")}
    model.load_state_dict(tensors | steps, assign=True)
    model.detection = detection
    return model.eval()


def keep_freed_memory(of_any_size: bool = False) -> None:
    """Let the C library keep what this process frees, rather than fetch memory from the system anew at each step.

    A page that the system hands out is cleared first. Blocks beyond 32 MB go back unless `of_any_size`, for training, where
    the gradients of the GRU's kernels are such blocks at each step: holes that they leave can take hundreds of megabytes. Where
    the library is not glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        if of_any_size:
            mallopt(M_MMAP_MAX, 0)


def save_pretrained(model: Model, folder: str | Path) -> None:
    """Write `model` to `folder` as model.safetensors and config.json, as the Hugging Face Hub has them.

    `hf upload NAME FOLDER` publishes the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(model.config, indent=2) + "\n")


def from_pretrained(name_or_folder: str | Path, revision: str | None = None, cache_dir: str | None = None) -> Model:
    """Load what `save_pretrained` wrote, from a folder, or, if there is none of that name, from that repository of the Hub.

    `revision` (a branch, tag or commit) and `cache_dir` are `huggingface_hub.hf_hub_download`'s. Raises CheckpointError.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        return load(folder / WEIGHTS_FILE)
    from huggingface_hub import hf_hub_download  # only those who download need it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return load(hf_hub_download(str(name_or_folder), WEIGHTS_FILE, revision=revision, cache_dir=cache_dir))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"{name_or_folder}: no such folder, and not to be had from the Hub ({_line(error)})") from None


def checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the metadata `text` and of every weight's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _weights(model: Model) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("local_step")}


def _read(path: Path) -> tuple[type[Model], dict, dict | None, dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder, not a weight file' if path.is_dir() else 'no such file'}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies begin at whole cache lines; weights in a file do not, and vectors that cross two lines are slower to read.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({_line(error)})") from None
    name = next((name for name in MODELS if name in metadata), None)
    if name is None or "sha256" not in metadata:
        raise CheckpointError(
            f"{path}: has no DENet architecture or other model's in its metadata (see python -m tools.convert_weights --help)"
        )
    if checksum(metadata[name] + metadata.get("detection", ""), tensors) != metadata["sha256"]:
        raise CheckpointError(f"{path}: damaged, its checksum does not match")
    try:
        config = json.loads(metadata[name])
        detection = json.loads(metadata.get("detection", "null"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its architecture cannot be read ({_line(error)})") from None
    return MODELS[name], config, detection, tensors


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
