"""Readers and writers of DENet's weights, one module per format family, and `convert`, which joins them.

All of them meet in one form: a dict from the port's names ("conv1.weight") to numpy arrays in the port's layout, beside
`DENet`'s arguments. Nothing here imports PyTorch or TensorFlow before a format needs it: a conversion between HDF5, npz and
safetensors takes neither their seconds nor their memory.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from denet_torch.files import MAX_MESSAGE, printable


class WeightsError(ValueError):
    """A weight file that cannot be converted; the message is one printable line that names the file and the trouble."""

    def __init__(self, message: str):
        super().__init__(printable(str(message), MAX_MESSAGE))


@dataclass
class Weights:
    """What a file holds: `tensors` by the port's names, the `origin` of each (its name in the file), and the arguments of
    DENet that the file states (`known`), `input_shape` as `seq_len` and `samples`. `recorded`: inputs (batch, seq_len,
    samples, 1) and what the model that owns the weights predicted for them, where the file has them. `detection`: the JSON of
    `DENet.detection`, "" where there is none. `assumed`: what decides predictions and nothing confirms, a line each."""

    path: Path
    tensors: dict[str, np.ndarray]
    origin: dict[str, str]
    known: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    recorded: tuple[np.ndarray, np.ndarray] | None = None
    detection: str = ""
    assumed: list[str] = field(default_factory=list)
