"""Where the course of a run is written: always as CSV, and to TensorBoard or Weights & Biases by name."""

import hashlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from .collection import replacing
from .config import Config, TrainingError, as_dict

STEPS, EPOCHS = "steps.csv", "epochs.csv"


class Logger(Protocol):
    """What takes the values of a step."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...


def check_loggers(config: Config) -> None:
    """Raise TrainingError for a logger that is not installed."""
    if "wandb" in config.loggers and importlib.util.find_spec("wandb") is None:
        raise TrainingError("--loggers wandb: is not installed; pip install 'denet-torch[wandb]'")


def open_loggers(config: Config, out: Path, step: int) -> list[Logger]:
    """The loggers that `config` names, of a run that goes on from `step`."""
    return [MAKERS[name](config, out, step) for name in config.loggers]


def _tensorboard(config: Config, out: Path, step: int) -> Logger:
    from lightning_fabric.loggers import TensorBoardLogger

    # TensorBoard imports TensorFlow where it is installed, for seconds, unless this module exists.
    sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")
    return TensorBoardLogger(out, name="tensorboard", version="", purge_step=step)


class WandB:
    """A run of Weights & Biases, in the project that WANDB_PROJECT names, else "denet"; WANDB_MODE=offline keeps it here."""

    def __init__(self, config: Config, out: Path, step: int):
        import wandb

        # The same run goes on after --resume: its identity is that of its folder.
        identity = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
        settings = {"project": os.environ.get("WANDB_PROJECT", "denet"), "config": as_dict(config)}
        self.run = wandb.init(name=out.name, id=identity, dir=str(out), resume="allow", **settings)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)


MAKERS: dict[str, Callable[[Config, Path, int], Logger]] = {"tensorboard": _tensorboard, "wandb": WandB}


def write_csv(out: Path, losses: list[float], rates: list[float], epochs: list[dict[str, Any]]) -> None:
    """steps.csv and epochs.csv of a run so far."""
    steps = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses, "learning_rate": rates[: len(losses)]})
    flat = pd.json_normalize(epochs, sep=".")
    for name, table in ((STEPS, steps), (EPOCHS, flat)):
        with replacing(out / name) as path:
            table.to_csv(path, index=False)
