"""Checkpoints of a run: complete or absent, checked before use, the newest few kept.

A checkpoint is called step-STEP-DIGEST.ckpt after the first 16 digits of its own SHA-256, so that one rename makes both the file
and its checksum appear.
"""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from denet_torch.files import reason
from denet_torch.pickles import check_archive
from denet_torch.schema import Decoding, shown

from .config import TrainingError

PARTIAL = ".partial.ckpt"


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
        _check(saved)
        for name, item in state.items():
            if hasattr(item, "load_state_dict"):
                item.load_state_dict(saved[name])
            else:
                state[name] = saved[name]
    except (pickle.UnpicklingError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise TrainingError(f"{path}: is no checkpoint of this run ({reason(error)}); delete it to go on from another") from None


def _check(saved: dict[str, Any]) -> None:
    """Raise ValueError for what no run of ours writes."""
    for name, value in saved.get("model", {}).items():
        if not isinstance(value, torch.Tensor) or not bool(value.isfinite().all()):
            raise ValueError(f"{name} of the model holds values that are not finite numbers")
    for number, slot in saved.get("optimizer", {}).get("state", {}).items():
        for name, value in slot.items():
            if isinstance(value, torch.Tensor) and not bool(value.isfinite().all()):
                raise ValueError(f"{name} {number} of the optimizer holds values that are not finite numbers")
    progress = saved.get("progress", {})
    for name in ("step", "epoch", "epoch_step", "best_epoch", "skipped", "skipped_in_a_row", "single_class"):
        if name in progress and not (type(progress[name]) is int and progress[name] >= 0):
            raise ValueError(f"{name} is {shown(progress[name])}, no number of steps or epochs")
    for name, count in (("losses", "step"), ("rates", "step"), ("epochs", "epoch")):
        if name in progress and not (isinstance(progress[name], list) and len(progress[name]) == progress[count]):
            raise ValueError(f"{name} are not of {progress.get(count)} {count}s")
    if progress.get("decoding"):
        Decoding(**progress["decoding"])


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in `folder`."""
    return sorted(folder.glob("step-*-*.ckpt"), reverse=True)


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
