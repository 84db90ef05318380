"""Checkpoints of a run: complete or absent, checked before use, the newest few kept.

A checkpoint is called step-STEP-DIGEST.ckpt after the first 16 digits of its own SHA-256, so that one rename makes both the file
and its checksum appear.
"""

import copy
import dataclasses
import hashlib
import math
import os
import pickle
import typing
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from denet_torch.architecture import is_variance
from denet_torch.files import reason
from denet_torch.pickles import check_archive
from denet_torch.schema import Decoding, shown

from .config import TrainingError

PARTIAL = ".partial.ckpt"
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")  # means that optimizers keep, of which roots are taken


class TrainingState:
    """What a model keeps while it is trained and no weight file holds: the steps behind batch norm's averages."""

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def state_dict(self) -> dict[str, torch.Tensor]:
        weights = self.model.state_dict()
        return {name: buffer for name, buffer in self.model.named_buffers() if name not in weights}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Raises LookupError unless `state` is of such a model, ValueError for what no step counts."""
        buffers = self.state_dict()
        if buffers.keys() != state.keys():
            raise LookupError("the steps behind batch norm's averages are of another model")
        for name, buffer in buffers.items():
            if state[name].shape != buffer.shape or (state[name] < 0).any():
                raise ValueError(f"{name} counts no steps")
            buffer.copy_(state[name])


def save(folder: Path, state: dict[str, Any], step: int, keep: int) -> None:
    """Write `state` as the checkpoint of `step` and remove all but the newest `keep`.

    What has a state_dict is saved by it. Raises TrainingError if the file cannot be written; the earlier ones stay.
    """
    state = {name: item.state_dict() if hasattr(item, "state_dict") else item for name, item in state.items()}
    partial = folder / PARTIAL
    try:
        write(state, partial)
        path = folder / f"step-{step:09d}-{_digest(partial)}.ckpt"
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(f"{folder}: the checkpoint of step {step} cannot be written ({reason(error)})") from None
    others = [other for other in newest_first(folder) if other != path]
    same_step = [other for other in others if other.name.startswith(f"step-{step:09d}-")]
    earlier = [other for other in others if other not in same_step]
    for other in same_step + earlier[keep - 1 :]:
        other.unlink()


def write(values: dict[str, Any], path: Path) -> None:
    """torch.save that raises OSError where the disk is full."""
    with open(path, "wb") as file:
        try:
            torch.save(values, file)
        except RuntimeError as error:  # of torch's writer, which hides it
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, state: dict[str, Any]) -> None:
    """Restore the items of `state` from a checkpoint; those without load_state_dict are replaced.

    Raises TrainingError for one that is not of this run: other items, weights that are no finite numbers, steps below 0.
    """
    try:
        check_archive(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or (missing := [name for name in state if name not in saved]):
            raise ValueError(f"{missing[0]} is missing" if isinstance(saved, dict) else "it is no dict")
        for name, item in state.items():
            _check(name, saved[name], item)
        for name, item in state.items():
            if hasattr(item, "load_state_dict"):
                item.load_state_dict(saved[name])
            else:
                state[name] = saved[name]
    except (pickle.UnpicklingError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise TrainingError(f"{path}: is no checkpoint of this run ({reason(error)}); delete it to go on from another") from None


def _check(name: str, saved: Any, item: Any) -> None:
    """Raise ValueError unless `saved` is what a run of ours saves of `item`, which has the sizes and settings of this run."""
    if name == "optimizer":
        _check_optimizer(saved, item)
    elif name == "progress":
        _check_progress(saved, item)
    elif hasattr(item, "state_dict"):
        _check_alike(name, saved, item.state_dict())


def _check_alike(name: str, saved: Any, own: Any) -> None:
    """Raise ValueError unless both are built alike, of finite numbers."""
    if isinstance(own, torch.Tensor):
        if not isinstance(saved, torch.Tensor) or saved.shape != own.shape or saved.dtype != own.dtype or saved.is_meta:
            raise ValueError(f"{name} is not {tuple(own.shape)} as in this run")
        if saved.layout != torch.strided or not bool(saved.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite numbers")
        if (is_variance(name) or name.split()[0] in SQUARES) and bool((saved < 0).any()):
            raise ValueError(f"{name} holds negative numbers, which no variance is")
    elif isinstance(own, dict):
        if not isinstance(saved, dict) or saved.keys() != own.keys():
            raise ValueError(f"{name} has other entries than in this run")
        for key in own:
            _check_alike(f"{name} {key}", saved[key], own[key])
    elif isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(own):
            raise ValueError(f"{name} has other entries than in this run")
        for mine, theirs in zip(saved, own, strict=True):
            _check_alike(name, mine, theirs)
    elif _is_number(own):
        if not _is_number(saved) or not math.isfinite(saved):
            raise ValueError(f"{name} is {shown(saved)}, no number")
    elif type(saved) is not type(own):
        raise ValueError(f"{name} is {shown(saved)}")


def _check_optimizer(saved: Any, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless `saved` is of such an optimizer: its settings but for the rate, what it keeps of each weight."""
    own = optimizer.state_dict()
    if not isinstance(saved, dict) or saved.keys() != own.keys() or not isinstance(saved["state"], dict):
        raise ValueError("the optimizer has other entries than in this run")
    _check_alike("optimizer", saved["param_groups"], own["param_groups"])
    for mine, theirs in zip(saved["param_groups"], own["param_groups"], strict=True):
        if odd := [name for name in theirs if name != "lr" and mine[name] != theirs[name]]:
            raise ValueError(f"{odd[0]} of the optimizer is {shown(mine[odd[0]])}, {shown(theirs[odd[0]])} in this run")
    weights, slots = [weight for group in optimizer.param_groups for weight in group["params"]], _slots(optimizer)
    for number, kept in saved["state"].items():
        if type(number) is not int or not 0 <= number < len(weights) or not isinstance(kept, dict) or kept.keys() != slots.keys():
            raise ValueError(f"the optimizer keeps something else of {shown(number)} than in this run")
        for name, own_slot in slots.items():
            like = torch.zeros_like(weights[number]) if own_slot is None else own_slot
            _check_alike(f"{name} {number} of the optimizer", kept[name], like)


def _slots(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What such an optimizer keeps of a weight after a step; None where that is of the weight's size."""
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.zeros(2)
    twin = copy.copy(optimizer)
    twin.param_groups, twin.state = [optimizer.param_groups[0] | {"params": [weight]}], defaultdict(dict)
    twin.step()
    kept = twin.state[weight]
    return {name: None if isinstance(value, torch.Tensor) and value.shape == (2,) else value for name, value in kept.items()}


def _check_progress(saved: Any, progress: Any) -> None:
    """Raise ValueError for fields of other types, or for an account of other steps and epochs than there were."""
    if not isinstance(saved, dict):
        raise ValueError("progress is no account of steps")
    kinds = {field.name: field.type for field in dataclasses.fields(progress)}
    for name, value in saved.items():
        if name not in kinds or not _fits(value, kinds[name]):
            raise ValueError(f"{shown(name)} of progress is {shown(value)}")
    whole = dataclasses.asdict(progress) | saved
    for name, count in (("losses", "step"), ("rates", "step"), ("epochs", "epoch")):
        if len(whole[name]) != whole[count]:
            raise ValueError(f"{name} are not of {whole[count]} {count}s")
    if not all(map(math.isfinite, [whole["best"], *whole["rates"]])):
        raise ValueError("rates or the best score are no finite numbers")
    if whole.get("epoch_step", 0) > whole["step"]:
        raise ValueError(f"epoch_step is {whole['epoch_step']} of {whole['step']} steps")
    if not (whole["epoch"] > 0) <= whole["best_epoch"] <= whole["epoch"]:
        raise ValueError(f"best_epoch is {whole['best_epoch']} of {whole['epoch']}")
    records = whole["epochs"]
    for record in records:
        if not {"epoch", "step", "train_loss", *progress.RECORDED} <= record.keys() or _outline(record) != _outline(records[0]):
            raise ValueError("epochs do not say what each of them gave")
    if whole.get("decoding"):
        Decoding(**whole["decoding"])


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from a file is of the type that a field has; dicts hold numbers by name, and such dicts."""
    if kind is int:
        return _is_number(value) and type(value) is int and value >= 0
    if kind is float:
        return _is_number(value)
    if kind is dict:
        numbers = isinstance(value, dict) and all(isinstance(name, str) for name in value)
        return numbers and all(one is None or _is_number(one) or _fits(one, dict) for one in value.values())
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(one, typing.get_args(kind)[0]) for one in value)
    return isinstance(value, kind)


def _outline(record: Any) -> Any:
    return {name: _outline(value) for name, value in record.items()} if isinstance(record, dict) else None


def _is_number(value: Any) -> bool:
    """Whether a value is a number that floats can hold; of integers those of 64 bits."""
    return type(value) is float or type(value) is int and abs(value) < 2**63


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in `folder`; what is no file, such as a pipe, is none, whatever its name."""
    return sorted(filter(Path.is_file, folder.glob("step-*-*.ckpt")), reverse=True)


def find(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest undamaged checkpoint in `folder`, or None, and the damaged ones that are newer, renamed to *.damaged."""
    (folder / PARTIAL).unlink(missing_ok=True)  # of a run that was killed: the folder is locked
    damaged = []
    for path in newest_first(folder):
        if _digest(path) == path.stem.split("-")[2]:
            return path, damaged
        damaged.append(path.rename(path.with_suffix(".damaged")))
    return None, damaged


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
