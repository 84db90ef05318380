"""The short training loop: one device, one loss a step, a score an epoch. File mode and the detector of boxes train by it.

What a step draws depends on the seed and the step alone, so that a run which was stopped and goes on ends with the same weights.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from denet_torch import Model, checkpoint
from denet_torch.files import MAX_MESSAGE, printable
from denet_torch.schema import Detection

from . import checkpoints
from .config import Config, TrainingError, as_dict, flag
from .precision import SKIPS_IN_A_ROW, Mixed, read_numbers
from .registry import current_rate, get_optimizer, get_schedule
from .runs import Stopped

WEIGHTS = checkpoint.RUNS_WEIGHTS


@dataclass
class Progress:
    """How far a run has come, optimizer steps and whole epochs, and what it saw. initial_filters: low and high cuts (Hz).

    RECORDED: what each of `epochs` has beside its number, step and train_loss.
    """

    RECORDED: ClassVar[tuple[str, ...]] = ()
    step: int = 0
    epoch: int = 0
    skipped_in_a_row: int = 0
    best: float = -1.0
    best_epoch: int = 0
    initial_filters: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def refuse(config: Config, names: Iterable[str], where: str) -> None:
    """Raise TrainingError if an option is set that is of no use there."""
    usual = as_dict(Config())
    for name in names:
        if as_dict(config)[name] != usual[name]:
            raise TrainingError(f"{flag(name)}: is of no use with {where}")


def fit(
    fabric: Fabric,
    model: Model,
    config: Config,
    out: Path,
    loss_of: Callable[[torch.nn.Module, np.random.Generator], Tensor],
    validate: Callable[[], tuple[float, Detection, dict]],
    check: Callable[[], None] = lambda: None,
    on_epoch: Callable[[int, float], None] = lambda epoch, score: None,
) -> Progress:
    """Train, keep in `out` the weights with the best score, and go on from a checkpoint in `out`.

    `loss_of` draws with the generator of a step and returns its loss. `validate` gives the score of the model as it is, what is
    stored with its weights, and scores by name to keep and to print. `check` is called before the first step and after each, and
    may raise Stopped: what was done is saved. `on_epoch` is called after each epoch with its number and score.
    """
    epoch_steps = max(1, config.epoch_windows // config.batch_size)
    optimizer = get_optimizer(config.optimizer, model, config.learning_rate, config.rate_factor, config.weight_decay)
    schedule = get_schedule(config.schedule, optimizer, config.warmup_steps, epoch_steps * config.epochs)
    progress = Progress(initial_filters=[cut.tolist() for cut in model.pass_bands() or ()])
    precision = fabric.strategy.precision
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "precision": precision, "progress": progress}
    module, optimizer = fabric.setup(model, optimizer)
    path, damaged = checkpoints.find(out)
    for bad in damaged:
        tqdm.write(printable(f"warning: {bad} is damaged; using the one before", MAX_MESSAGE))
    if path is not None:
        checkpoints.load(path, state)
        tqdm.write(printable(f"resuming from {path}", MAX_MESSAGE))

    def save() -> None:
        checkpoints.save(out, state, progress.step, config.keep)

    def step() -> None:
        rng = np.random.default_rng([config.seed, progress.step])
        torch.manual_seed(int(rng.integers(2**63)))
        loss = loss_of(module, rng)
        fabric.backward(loss)
        norm = fabric.clip_gradients(module, optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
        value, norm = read_numbers(loss, norm)
        if math.isfinite(value) and math.isfinite(norm):
            optimizer.step()
            progress.skipped_in_a_row = 0
        else:
            progress.skipped_in_a_row += 1
            lowered = isinstance(precision, Mixed) and precision.leave_out()
            if not (lowered and math.isfinite(value)) or progress.skipped_in_a_row > SKIPS_IN_A_ROW:
                raise TrainingError(f"step {progress.step}: the loss is {value}; try a lower --learning-rate")
        progress.rates.append(current_rate(schedule, config.learning_rate))
        optimizer.zero_grad()
        schedule.step()
        progress.step += 1
        progress.losses.append(value)

    def end_epoch() -> float:
        score, detection, found = validate()
        mean = float(np.mean(progress.losses[-epoch_steps:]))
        progress.epoch += 1
        progress.epochs.append({"epoch": progress.epoch, "step": progress.step, "train_loss": mean} | found)
        told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        tqdm.write(f"epoch {progress.epoch}: loss {mean:.3f}, validation {told}")
        if score > progress.best:
            progress.best, progress.best_epoch = score, progress.epoch
            model.detection = detection
            checkpoint.save(model, out / WEIGHTS)
        return score

    bar = tqdm(total=epoch_steps * config.epochs, initial=progress.step, desc="training", unit="step")
    with bar:
        try:
            check()  # from here on signals wait for the end of a step
            while progress.epoch < config.epochs and not 0 < config.patience <= progress.epoch - progress.best_epoch:
                module.train()
                while progress.step < epoch_steps * (progress.epoch + 1):
                    step()
                    bar.set_postfix(loss=f"{progress.losses[-1]:.3f}", epoch=progress.epoch + 1, refresh=False)
                    bar.update()
                    if config.checkpoint_steps and progress.step % config.checkpoint_steps == 0:
                        save()
                    check()
                score = end_epoch()
                save()
                on_epoch(progress.epoch, score)
        except Stopped:
            save()
            raise
    return progress
