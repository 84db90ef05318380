"""PyTorch's own files: a state dict (.pt) and a `torch.export` program (.pt2)."""

import io
import pickle
from pathlib import Path

import numpy as np
import torch

import denet_torch
from denet_torch.architecture import NAMES
from denet_torch.pickles import check_pickle
from denet_torch.schema import shown

from . import Weights, WeightsError
from .architecture import check_types
from .files import line, unzip


def read_pt(path: Path) -> Weights:
    """Weights of a state dict that `torch.save` wrote. Raises WeightsError. Nothing in the file is executed."""
    pickles = unzip(path, lambda name: name.lower().endswith("data.pkl"))  # checks sizes and CRCs before PyTorch reads
    if len(pickles) != 1:
        raise WeightsError(f"{path}: is no archive that torch.save wrote")
    try:
        check_pickle(*pickles.values())
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError, IndexError) as error:
        raise WeightsError(f"{path}: is no state dict, or damaged ({line(error)})") from None
    if not isinstance(state, dict) or not state:
        raise WeightsError(f"{path}: is no state dict")
    weights, size, total = Weights(path, {}, {}), path.stat().st_size, 0
    for name, tensor in state.items():
        if isinstance(name, str) and name.endswith("local_step"):  # training state, no weight
            continue
        if name not in NAMES or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise WeightsError(f"{path}: {name if isinstance(name, str) else shown(name)} is no weight of a DENet")
        if tensor.device.type != "cpu" or tensor.is_nested:
            raise WeightsError(f"{path}: {name} is no tensor of plain numbers")
        total += tensor.numel() * tensor.element_size()
        if not tensor.numel():
            raise WeightsError(f"{path}: {name} is {tuple(tensor.shape)}, which no weight is")
        if total > size:
            raise WeightsError(f"{path}: {name} is {tuple(tensor.shape)}, more than the file holds")
        if tensor.dtype not in (torch.float32, torch.float64):
            raise WeightsError(f"{path}: {name} is {tensor.dtype}; expected float32 or float64")
        weights.tensors[name], weights.origin[name] = plain(tensor).numpy(), name
    if not weights.tensors:
        raise WeightsError(f"{path}: holds no weights")
    check_types(weights)
    return weights


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor as they lie side by side, whatever it is a view of."""
    return tensor.detach().resolve_neg().contiguous()


def write_pt(tensors: dict[str, np.ndarray], config: dict, path: Path) -> None:
    """A state dict that `DENet(**config).load_state_dict(torch.load(path))` takes."""
    with open(path, "wb") as file:
        torch.save(model(tensors, config).state_dict(), file)


def write_pt2(tensors: dict[str, np.ndarray], config: dict, path: Path) -> None:
    """A `torch.export` program: waveforms (any batch, seq_len, samples) of the configured length to logits."""
    net = model(tensors, config)
    example = torch.zeros(2, net.seq_len, net.samples, dtype=net.conv1.weight.dtype)
    program = torch.export.export(net, (example,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    archive = io.BytesIO()  # its writer ends the process where a disk is full
    torch.export.save(program, archive)
    path.write_bytes(archive.getbuffer())


def model(tensors: dict[str, np.ndarray], config: dict) -> denet_torch.DENet:
    """DENet(**config) with these weights, in evaluation mode."""
    with torch.device("meta"):
        result = denet_torch.DENet(**config)
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    result.load_state_dict(state, assign=True)
    return result.eval()
