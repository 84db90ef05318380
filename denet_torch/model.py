"""DENet, the whole network. Mirrors `reference_tf/__init__.py`."""

from collections.abc import Callable

import torch
from torch import Tensor

from . import conditions
from .architecture import attention_steps, conv_steps
from .layers import (
    BatchNorm,
    Bidirectional,
    Conv1D,
    DELayer,
    Dense,
    Dropout,
    LayerNorm,
    SincConv1D,
    SpatialDropout1D,
    leaky_relu,
    max_pool,
    softmax,
)
from .models import Model, register


@register("denet")
class DENet(Model):
    """The whole network: sinc filters, attention over the bands, two convolutions, a bidirectional GRU, three dense layers.

    `input_shape`: (seq_len, samples) or (seq_len, samples, 1), frames in a sequence and samples in a frame at `sr` Hz.
    `before_pooling`: attention on the bands before their pooling, otherwise after it. `dropout`: rate of every dropout.
    `train_attention=False` leaves the attention branch at its initial weights, as the original does (there it is not
    registered with its layer). `attention_dropout=True` also drops attention weights, which the original asks for and never does.
    `n_filters`, `gru_units`, `dense_units`: sizes, the original's by default.

    `detection`, saved with the weights, is how their trainer reads their answers (`denet_torch.schema.Detection`); None where
    nobody chose.

    Raises ValueError if a frame is too short for the convolutions.
    """

    FRONT_END = ("sinc.", "attention.", "conv1.", "norm1.", "conv2.", "norm2.")

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_classes: int,
        sr: int = 16000,
        before_pooling: bool = True,
        dropout: float = 0.3,
        *,
        train_attention: bool = True,
        attention_dropout: bool = False,
        n_filters: int = 80,
        gru_units: int = 2048,
        dense_units: tuple[int, int] = (1024, 512),
    ):
        super().__init__()
        if len(input_shape) not in (2, 3) or tuple(input_shape[2:]) not in ((), (1,)):
            raise ValueError(f"input_shape must be (seq_len, samples) or (seq_len, samples, 1), not {tuple(input_shape)}")
        self.seq_len, self.samples = input_shape[:2]
        self.n_classes, self.sr, self.before_pooling = n_classes, sr, before_pooling
        self.config = {
            "input_shape": [self.seq_len, self.samples, 1],
            "n_classes": n_classes,
            "sr": sr,
            "before_pooling": before_pooling,
            "dropout": dropout,
            "train_attention": train_attention,
            "attention_dropout": attention_dropout,
            "n_filters": n_filters,
            "gru_units": gru_units,
            "dense_units": list(dense_units),
        }
        band_steps = self.samples if before_pooling else self.samples // 3
        features = 60 * conv_steps(self.samples)
        if features < 60 or attention_steps(band_steps) < 1:
            raise ValueError(f"a frame of {self.samples} samples is too short for DENet's convolutions")

        self.sinc = SincConv1D(n_filters, 251, sr)
        self.attention = DELayer(band_steps, rate=dropout if attention_dropout else 0.0)
        self.attention.requires_grad_(train_attention)
        self.conv1 = Conv1D(1, 60, 5)
        self.norm1 = LayerNorm(60)
        self.conv2 = Conv1D(60, 60, 5)
        self.norm2 = LayerNorm(60)
        self.spatial_dropout = SpatialDropout1D(dropout)
        self.gru = Bidirectional(features, gru_units, dropout)
        self.dense1 = Dense(gru_units, dense_units[0])
        self.batch_norm1 = BatchNorm(dense_units[0])
        self.dense2 = Dense(dense_units[0], dense_units[1])
        self.batch_norm2 = BatchNorm(dense_units[1])
        self.dense3 = Dense(dense_units[1], n_classes)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, seq_len, n_classes) of waveforms (batch, seq_len, samples) or (batch, seq_len, samples, 1)."""
        x = self.frames(x)
        batch, seq_len, samples = x.shape
        x = x.reshape(batch * seq_len, samples, 1)  # each frame on its own
        x = in_parts(self.frame_features, x, self.frames_at_once(x))
        return self.classify(x.reshape(batch, seq_len, -1))

    def frame_features(self, x: Tensor) -> Tensor:
        """What the GRU reads of frames (frames, samples, 1): (frames, 60 * conv_steps), steps outer, channels inner."""
        x = self.sinc(x)  # (frames, samples, filters)
        if self.before_pooling:
            x = self.attention(x)  # (frames, samples, 1)
        x = self.spatial_dropout(leaky_relu(max_pool(x)))
        if not self.before_pooling:
            x = self.attention(x)  # (frames, samples // 3, 1)
        with conditions.whole(x):  # its gradients are divided by what may be the deviation of silence
            x = self.norm1(max_pool(self.conv1(x)))
        x = self.spatial_dropout(leaky_relu(x))
        x = self.spatial_dropout(leaky_relu(self.norm2(max_pool(self.conv2(x)))))
        return x.flatten(1)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (batch, seq_len, n_classes) of sequences of frame features (batch, seq_len, 60 * conv_steps)."""
        x = self.gru(x)  # (batch, seq_len, units)
        x = self.dropout(leaky_relu(self.batch_norm1(self.dense1(x))))
        x = self.dropout(leaky_relu(self.batch_norm2(self.dense2(x))))
        return self.dense3(x)

    def frames_at_once(self, x: Tensor) -> int:
        """So many frames whose bands take 20 MB on a CPU: those of all, and their gradients, would take most of the memory."""
        return max(8, (2**16 if x.device.type == "cpu" else 2**22) // self.samples)

    def frames(self, x: Tensor) -> Tensor:
        """x as (batch, seq_len, samples); ValueError if it is anything else."""
        if x.dim() == 4 and x.shape[3] == 1:
            x = x[..., 0]
        if x.dim() != 3 or x.shape[2] != self.samples:
            raise ValueError(f"input must be (batch, seq_len, {self.samples}), not {tuple(x.shape)}")
        return x

    @torch.no_grad()
    def predict_proba(self, x: Tensor) -> Tensor:
        """Class probabilities (batch, seq_len, n_classes) in evaluation mode, what the original's `predict` returns."""
        with self.evaluating():
            return softmax(self(x))

    @torch.no_grad()
    def predict_overlapping(self, frames: Tensor, starts: list[int], seq_len: int) -> Tensor:
        """`predict_proba` of the sequences of `seq_len` frames that begin at `starts` in waveforms (frames, samples).

        A frame that several of them share goes through filters, attention and convolutions once.
        """
        with self.evaluating():
            features = in_parts(self.frame_features, frames.unsqueeze(2), self.frames_at_once(frames))
            return softmax(self.classify(torch.stack([features[start : start + seq_len] for start in starts])))

    @torch.no_grad()
    def band_attention(self, x: Tensor) -> Tensor:
        """Attention weights (batch, seq_len, n_filters) of each frame's bands; each row sums to 1."""
        x = self.frames(x)
        batch, seq_len, samples = x.shape
        bands = self.sinc(x.reshape(batch * seq_len, samples, 1))
        if not self.before_pooling:
            bands = leaky_relu(max_pool(bands))
        return self.attention.attention(bands).view(batch, seq_len, -1)

    @classmethod
    def from_settings(cls, settings, n_classes: int) -> "DENet":
        return cls(
            (settings.seq_len, round(settings.frame_seconds * settings.sample_rate)),
            n_classes,
            settings.sample_rate,
            settings.before_pooling,
            settings.dropout,
            train_attention=settings.train_attention,
            n_filters=settings.n_filters,
            gru_units=settings.gru_units,
            dense_units=tuple(settings.dense_units),
        )

    def follow(self, settings) -> None:
        self.attention.requires_grad_(settings.train_attention)
        self.config["train_attention"] = settings.train_attention

    def rate_factors(self) -> dict[str, float]:
        # Adam moves all weights alike: units with thousands of them need smaller steps, and so do the cuts of the sinc filters
        # and the attention, on which everything after it is built.
        return dict.fromkeys(("sinc.", "attention.", "gru.", "dense1."), 1.0)

    def pass_bands(self) -> tuple[Tensor, Tensor]:
        low = self.sinc.filt_b1.detach().abs() * self.sr + 50
        return low, low + self.sinc.filt_band.detach().abs() * self.sr + 50


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """function(x), `size` rows of x at a time unless a compiler or an exporter watches."""
    if conditions.traced() or len(x) <= size:  # in this order: an exported number of frames may be any
        return function(x)
    parts = x.split(size)
    with conditions.one_of(len(parts)):
        return torch.cat([function(part) for part in parts])


def get_denet(
    input_shape: tuple[int, ...],
    n_classes: int,
    sr: int = 16000,
    before_pooling: bool = True,
    dropout: float = 0.3,
    **switches,
) -> DENet:
    """Build a fresh DENet; the original's signature and defaults. `switches`: the keyword-only arguments of `DENet`."""
    return DENet(input_shape, n_classes, sr, before_pooling, dropout, **switches)
