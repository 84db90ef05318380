"""What the trainer, evaluation, detection, reports and weight files ask of a model, and the models by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .schema import Detection

MODELS: dict[str, type["Model"]] = {}


def register(name: str) -> Callable[[type["Model"]], type["Model"]]:
    """Decorate a `Model`, so that `--model NAME` trains it and `load` reads its files. ValueError for a name in use."""

    def add(model: type["Model"]) -> type["Model"]:
        if MODELS.setdefault(name, model) is not model:
            raise ValueError(f"a model is called {name!r} already")
        model.name = name
        return model

    return add


class Model(nn.Module):
    """A network that reads `seq_len` frames of `samples` samples at `sr` Hz, of `n_classes` classes, class 0 the background.

    `forward` takes waveforms (batch, seq_len, samples) to logits (batch, answers, n_classes) of the frames `answers` of each
    sequence: all of them, unless a model says otherwise. `config` are the arguments that build the model anew; they and the
    weights are all that a file holds. `detection`, saved with them, is how the trainer reads the answers; None where nobody
    chose.
    """

    name: ClassVar[str]
    answers_with_boxes: ClassVar[bool] = False  # of whole images instead, as denet_torch.boxes.Boxes
    DEFAULTS: ClassVar[dict[str, Any]] = {}  # settings (training.config.Config) that suit this model better than the general ones
    FRONT_END: ClassVar[tuple[str, ...]] = ()  # parameters that make features of the waveform have names that begin so
    seq_len: int
    samples: int
    sr: int
    n_classes: int
    config: dict[str, Any]
    detection: Detection | None = None

    @classmethod
    def from_settings(cls, settings: Any, n_classes: int) -> "Model":
        """A fresh model by a run's settings (`training.config.Config`). Raises ValueError for sizes that do not fit together."""
        raise NotImplementedError

    def follow(self, settings: Any) -> None:
        """Change in a loaded model what a run's settings decide whatever the file says."""

    @property
    def answers(self) -> slice:
        """The frames of a sequence that `forward` answers for."""
        return slice(0, self.seq_len)

    def rate_factors(self) -> dict[str, float]:
        """Learning rates of the parameters whose names begin so, as multiples of a run's; all others take its `rate_factor`."""
        return {}

    def pass_bands(self) -> tuple[Tensor, Tensor] | None:
        """Low and high cuts in Hz (filters,) of the filters that read the waveform, if the model has such."""
        return None

    def band_attention(self, x: Tensor) -> Tensor | None:
        """Weights (batch, seq_len, filters) of each frame's bands, if the model weighs them."""
        return None

    @torch.no_grad()
    def predict_proba(self, x: Tensor) -> Tensor:
        """Class probabilities (batch, answers, n_classes) in evaluation mode."""
        with self.evaluating():
            return self(x).softmax(dim=-1)

    def predict_overlapping(self, frames: Tensor, starts: list[int], seq_len: int) -> Tensor:
        """`predict_proba` of the sequences of `seq_len` frames that begin at `starts` in waveforms (frames, samples).

        A model that does not answer for all frames has recordings shorter than its sequence filled up with silence.
        """
        if seq_len < self.seq_len and self.answers != slice(0, self.seq_len):
            frames, seq_len = F.pad(frames, (0, 0, 0, self.seq_len - seq_len)), self.seq_len
        return self.predict_proba(torch.stack([frames[start : start + seq_len] for start in starts]))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode while the block runs."""
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
