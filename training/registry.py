"""Models, losses, optimizers and schedules by name."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from denet_torch import MODELS, Model, checkpoint

from .config import Config, TrainingError
from .losses import cross_entropy, focal

LOSSES = {"cross_entropy": cross_entropy, "focal": focal}
OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
# Factor of the learning rate at a share (0 to 1) of the steps after the warm-up.
SCHEDULES = {
    "constant": lambda share: 1.0,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * min(1.0, share))),
    "linear": lambda share: 1 - min(1.0, share),
}


def get_model(name: str, config: Config, n_classes: int) -> Model:
    """A fresh model by the settings of a run."""
    kind = _find("model", MODELS, name)
    try:
        return kind.from_settings(config, n_classes)
    except ImportError as error:
        raise TrainingError(f"--model {name}: {error}") from None
    except (ValueError, TypeError) as error:  # sizes that do not fit together
        raise TrainingError(f"the model cannot be built: {error}") from None


def initial_model(path: Path, with_boxes: bool = False) -> Model:
    """The model to begin with, in float32. Raises CheckpointError, and TrainingError for one that answers in another way."""
    model = checkpoint.load(path).float()
    if model.answers_with_boxes != with_boxes:
        raise TrainingError(f"{path}: {'finds boxes; --model boxes trains it' if model.answers_with_boxes else 'finds no boxes'}")
    return model


def best_model(path: Path, model: Model) -> Model:
    """What a run kept at `path` of its `model` when it was best. Raises CheckpointError, and TrainingError for another model."""
    best = checkpoint.load(path)
    if best.name != model.name or best.config != model.config:
        raise TrainingError(f"{path}: holds another model than this run trains")
    return best


def freeze_front_end(model: Model) -> None:
    """Train only what comes after the features of the waveform."""
    if not model.FRONT_END:
        raise TrainingError(f"--freeze: a {model.name} has no front end that could stay as it is")
    for name, parameter in model.named_parameters():
        if name.startswith(model.FRONT_END):
            parameter.requires_grad_(False)


def get_loss(name: str) -> Callable:
    """A function of logits (..., n_classes), labels (...) and class weights or None; see training/losses.py."""
    return _find("loss", LOSSES, name)


def get_optimizer(
    name: str, model: Model, learning_rate: float, rate_factor: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """An optimizer of what is trained of `model`: layers learn at the model's `rate_factors` times the learning rate, or at
    `rate_factor` times that."""
    make = _find("optimizer", OPTIMIZERS, name)
    trained = [(layer, parameter) for layer, parameter in model.named_parameters() if parameter.requires_grad]
    by_factor: dict[float, list] = {}
    for layer, parameter in trained:
        factors = [factor for prefix, factor in model.rate_factors().items() if layer.startswith(prefix)]
        by_factor.setdefault(factors[0] if factors else rate_factor, []).append(parameter)
    groups = [{"params": parameters, "lr": factor * learning_rate} for factor, parameters in by_factor.items()]
    fused = {"fused": True} if name in ("adam", "adamw") else {}  # a tenth of the time on a CPU, one launch on a GPU
    return make(groups, lr=learning_rate, weight_decay=weight_decay, **fused)


def get_schedule(
    name: str, optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate rises from 0 for `warmup_steps`, then follows the named course until `steps`."""
    course = _find("schedule", SCHEDULES, name)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return course((step - warmup_steps) / max(1, steps - warmup_steps))

    # The first steps with float16 are left out until the scale fits: PyTorch would warn of a schedule that runs ahead of them.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before", UserWarning)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def current_rate(schedule: torch.optim.lr_scheduler.LRScheduler, learning_rate: float) -> float:
    """The rate that a highest `learning_rate` has come to, whatever the factors of single layers."""
    return learning_rate * schedule.get_last_lr()[0] / schedule.base_lrs[0]


def _find(kind: str, registry: dict, name: str):
    if name not in registry:
        raise TrainingError(f"no {kind} is called {name!r}; there are {', '.join(sorted(registry))}")
    return registry[name]
