"""SincNet (Ravanelli and Bengio, *Speaker recognition from raw waveform with SincNet*, 2018, arXiv 1808.00158) in PyTorch.

Equal to the published code (github.com/mravanelli/SincNet, MIT: `SincNet` and two `MLP`s, as cfg/SincNet_TIMIT.cfg has them):
one answer for a chunk of waveform, 200 ms in the paper. Here a chunk is `seq_len` frames of `samples` samples, a frame being the
hop from one chunk to the next, so that what reads recordings frame by frame reads them for both models.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditions import whole
from .dispatch import operation
from .layers import all_ranks_statistics, hz_to_mel, mel_to_hz, sinc_filters
from .models import Model, register

SLOPE = 0.2  # of LeakyReLU; Keras's default and DENet's is 0.3
POOL = 3


class SincFilters(nn.Module):
    """Learned band-pass filters.

    The parameters are in Hz: the low cut |low_hz| + 50 and the bandwidth |band_hz| + 50, the upper cut at most sr / 2. `taps` is
    made odd. First cuts are equally spaced in mel from 30 Hz to sr / 2 - 100.
    """

    def __init__(self, filters: int, taps: int, sr: float):
        super().__init__()
        self.taps, self.sr = taps + 1 - taps % 2, sr
        mel = torch.linspace(hz_to_mel(30), hz_to_mel(sr / 2 - 100), filters + 1, dtype=torch.float64, device="cpu")
        cuts = mel_to_hz(mel)  # on the CPU: see SincConv1D
        like = {"device": torch.get_default_device(), "dtype": torch.get_default_dtype()}
        self.low_hz = nn.Parameter(cuts[:-1].to(**like))
        self.band_hz = nn.Parameter(cuts.diff().to(**like))

    def filters(self) -> Tensor:
        """The filters (filters, taps), made in float64: their differences cancel, and there are few of them."""
        low, band = (cut.double() / self.sr for cut in (self.low_hz, self.band_hz))
        return sinc_filters(low, band, self.sr, self.taps, self.window(), 0.5).to(self.low_hz.dtype)

    def window(self) -> Tensor:
        """Half a Hamming window with steps of (taps / 2 - 1) / (taps // 2 - 1), 1 in the middle, and its mirror image (taps,)."""
        half = self.taps // 2
        n = torch.linspace(0, self.taps / 2 - 1, half, dtype=torch.float64, device=self.low_hz.device)
        left = 0.54 - 0.46 * torch.cos(2 * math.pi * n / self.taps)
        return torch.cat([left, left.new_ones(1), left.flip(0)])

    def pass_bands(self) -> tuple[Tensor, Tensor]:
        """Low and high cut of each filter (filters,), in Hz."""
        low = self.low_hz.detach().abs() + 50
        return low, (low + self.band_hz.detach().abs() + 50).clamp(max=self.sr / 2)


class SampleNorm(nn.Module):
    """Layer norm over the last axis alone, with the deviation of a sample (n - 1) and 1e-6 added to it.

    `gamma` and `beta` have `shape`, all axes but the batch's: each channel of each step has its own.
    """

    def __init__(self, *shape: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return norm(x, self.gamma, self.beta)


@operation
def norm(x: Tensor, gamma: Tensor, beta: Tensor, slope: float = 1.0) -> Tensor:
    """Norm over the last axis (see `SampleNorm`), then negative results times `slope`."""
    x = x.to(gamma.dtype)  # 1e-6 is lost in half precision, and sums of squares leave its range
    mean = x.mean(-1, keepdim=True)
    deviation = x.std(-1, keepdim=True)
    y = gamma * (x - mean) / (deviation + 1e-6) + beta
    return y if slope == 1 else F.leaky_relu(y, slope)


@operation
def sinc_pool(x: Tensor, filters: Tensor) -> Tensor:
    """Largest magnitude of each three steps of the bands of (batch, samples), (batch, filters, steps).

    `filters` (filters, taps) are symmetric.
    """
    return F.max_pool1d(F.conv1d(x[:, None], filters[:, None]).abs(), POOL)


@operation
def conv_pool(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Largest of each three steps of a convolution, (batch, channels, steps) -> (batch, len(weight), steps)."""
    return F.max_pool1d(F.conv1d(x, weight, bias), POOL)


@operation
def conv_layers(x: Tensor, filters: Tensor, slope: float, *weights: Tensor) -> Tensor:
    """Sinc filters and convolutions, each with pool, norm and leaky ReLU: (batch, samples) -> (batch, channels, steps).

    `weights`: gamma and beta of the filters' norm; weight, bias, gamma and beta of each convolution.
    """
    gamma, beta, *others = weights
    with whole(x):  # the gradient of a tap is a sum over all steps of all chunks
        x = sinc_pool(x, filters)
    x = norm(x, gamma, beta, slope)
    for weight, bias, gamma, beta in zip(*[iter(others)] * 4, strict=True):
        x = norm(conv_pool(x, weight, bias), gamma, beta, slope)
    return x


@operation
def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x times the transposed weight (out, in), and the bias: (rows, in) -> (rows, out)."""
    return F.linear(x, weight, bias)


class BatchNorm(nn.Module):
    """PyTorch's batch norm with a momentum of 0.05, over the rows (batch, features) of all ranks."""

    def __init__(self, features: int, momentum: float = 0.05, epsilon: float = 1e-5):
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        averages = self.running_mean, self.running_var
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed):
            return F.batch_norm(x, *averages, self.weight, self.bias, self.training, self.momentum, self.epsilon)
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        mean, variance, n = all_ranks_statistics(mean, variance, len(x))
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * (n / (n - 1))).to(self.running_var), self.momentum)
        return (x - mean) * (self.weight * torch.rsqrt(variance + self.epsilon)) + self.bias


class Hidden(nn.Linear):
    """A layer of the fully connected parts: weights uniform within a twenty-fourth of Glorot's bound, bias 0."""

    def reset_parameters(self) -> None:
        bound = math.sqrt(0.01 / (self.in_features + self.out_features))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


@register("sincnet")
class SincNet(Model):
    """The whole network: sinc filters and two convolutions, each pooled and normalised; hidden layers; classes.

    `input_shape`: (seq_len, samples) or (seq_len, samples, 1): a chunk is seq_len * samples samples at `sr` Hz. `n_filters`,
    `taps`: filters and their lengths of the three convolutions. `hidden`: units of the fully connected layers. A chunk's
    answer counts for the frame in its middle.

    Raises ValueError if a chunk is too short for the convolutions.
    """

    FRONT_END = ("input_norm.", "sinc.", "convs.", "norms.", "features_norm.")
    # The published recipe: chunks of 200 ms every 10 ms, 128 in a batch.
    DEFAULTS: ClassVar[dict] = {
        "seq_len": 20, "frame_seconds": 0.01, "batch_size": 128, "epoch_windows": 7680, "learning_rate": 1e-3, "rate_factor": 1.0
    }  # fmt: skip

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_classes: int,
        sr: int = 16000,
        *,
        n_filters: tuple[int, ...] = (80, 60, 60),
        taps: tuple[int, ...] = (251, 5, 5),
        hidden: tuple[int, ...] = (2048, 2048, 2048),
    ):
        super().__init__()
        if len(input_shape) not in (2, 3) or tuple(input_shape[2:]) not in ((), (1,)):
            raise ValueError(f"input_shape must be (seq_len, samples) or (seq_len, samples, 1), not {tuple(input_shape)}")
        if len(n_filters) != len(taps) or not n_filters:
            raise ValueError(f"n_filters and taps must be of as many convolutions, not {len(n_filters)} and {len(taps)}")
        self.seq_len, self.samples = input_shape[:2]
        self.n_classes, self.sr = n_classes, sr
        self.config = {
            "input_shape": [self.seq_len, self.samples, 1],
            "n_classes": n_classes,
            "sr": sr,
            "n_filters": list(n_filters),
            "taps": list(taps),
            "hidden": list(hidden),
        }
        self.sinc = SincFilters(n_filters[0], taps[0], sr)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, k) for a, b, k in zip(n_filters, n_filters[1:], taps[1:], strict=False))
        self.input_norm = SampleNorm(self.chunk)
        steps, norms = self.chunk, []
        for filters, length in zip(n_filters, [self.sinc.taps, *taps[1:]], strict=True):
            steps = (steps - length + 1) // POOL
            if steps < 2:  # one has no deviation
                raise ValueError(f"a chunk of {self.chunk} samples is too short for SincNet's convolutions")
            norms.append(SampleNorm(filters, steps))
        self.norms = nn.ModuleList(norms)
        self.features_norm = SampleNorm(n_filters[-1] * steps)
        sizes = [n_filters[-1] * steps, *hidden]
        self.hidden = nn.ModuleList(Hidden(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.batch_norms = nn.ModuleList(map(BatchNorm, hidden))
        self.output = Hidden(sizes[-1], n_classes)

    @classmethod
    def from_settings(cls, settings, n_classes: int) -> "SincNet":
        shape = (settings.seq_len, round(settings.frame_seconds * settings.sample_rate))
        filters = (settings.n_filters, 60, 60)
        return cls(shape, n_classes, settings.sample_rate, n_filters=filters, hidden=tuple(settings.hidden_units))

    def rate_factors(self) -> dict[str, float]:
        # The cuts are in Hz: at the learning rate of the weights they would not leave their places in a thousand steps.
        return {"sinc.": self.sr / 10}

    def pass_bands(self) -> tuple[Tensor, Tensor]:
        return self.sinc.pass_bands()

    @property
    def chunk(self) -> int:
        """Samples in a chunk."""
        return self.seq_len * self.samples

    @property
    def answers(self) -> slice:
        return slice(self.seq_len // 2, self.seq_len // 2 + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 1, n_classes) of waveforms (batch, seq_len, samples) or (batch, seq_len, samples, 1)."""
        return self.logits(x.reshape(len(x), -1))[:, None]

    def logits(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of chunks (batch, samples of a chunk); their log-softmax is what the original returns."""
        if x.dim() != 2 or x.shape[1] != self.chunk:
            raise ValueError(f"input must be chunks of {self.chunk} samples, not {tuple(x.shape)}")
        return self.classify(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Chunks (batch, samples) -> (batch, last filters * steps), channels outer, steps inner."""
        first, *others = self.norms
        weights = [first.gamma, first.beta]
        for conv, after in zip(self.convs, others, strict=True):
            weights += [conv.weight, conv.bias, after.gamma, after.beta]
        x = conv_layers(self.input_norm(x), self.sinc.filters(), SLOPE, *weights)
        return x.flatten(1)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of `features`."""
        x = self.features_norm(x)
        for layer, batch_norm in zip(self.hidden, self.batch_norms, strict=True):
            x = leaky_relu(batch_norm(layer(x)))
        return self.output(x)
