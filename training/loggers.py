"""Where the course of a run is written: always as CSV, and to TensorBoard or Weights & Biases by name."""

import hashlib
import importlib.util
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from denet_torch.files import reason

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
    """The loggers that `config` names, of a run that goes on from `step`. Raises TrainingError if one cannot be written."""
    try:
        return [MAKERS[name](config, out, step) for name in config.loggers]
    except OSError as error:
        raise TrainingError(f"{out}: no log can be written there ({reason(error)})") from None


class TensorBoard:
    """A log for TensorBoard in the run's folder, which forgets what an earlier one has after `step`.

    It is written at once: tensorboardX's SummaryWriter has a thread for that, and waits for it for ever once a disk is full.
    """

    def __init__(self, config: Config, out: Path, step: int):
        (out / "tensorboard").mkdir(exist_ok=True)
        self.writer = EventsWriter(str(out / "tensorboard" / "events"), f".{os.getpid()}.{step}")
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):  # of others, scores where nothing is to find, tensorboardX prints a line, and draws nothing
                self._write(step, summary=scalar(name, value))
        self.writer.flush()

    def _write(self, step: int, **what) -> None:
        self.writer.write_event(Event(wall_time=time.time(), step=step, **what))


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


MAKERS: dict[str, Callable[[Config, Path, int], Logger]] = {"tensorboard": TensorBoard, "wandb": WandB}


def write_csv(out: Path, losses: list[float], rates: list[float], epochs: list[dict[str, Any]]) -> None:
    """steps.csv and epochs.csv of a run so far."""
    steps = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses, "learning_rate": rates[: len(losses)]})
    flat = pd.json_normalize(epochs, sep=".")
    for name, table in ((STEPS, steps), (EPOCHS, flat)):
        with replacing(out / name) as path:
            table.to_csv(path, index=False)
