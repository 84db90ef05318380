"""The layers of DENet in PyTorch, equal to the published Keras 2.2.4 code.

Arrays are channels last everywhere, (batch, steps, channels), as in the original. `reference_tf/layers.py` holds the
same names in the same order for TensorFlow: read the two side by side. A function under `@operation` has faster twins in
`denet_torch/fast` (see `dispatch.py`); what stands here is what they compute.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import attention_steps
from .conditions import whole
from .dispatch import operation

LEAKY_SLOPE = 0.3  # Keras's default; PyTorch's is 0.01


def dropout_mask(shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """Draw a mask of `shape`, 0 with probability `rate` and 1 / (1 - rate) elsewhere.

    Every dropout of the model draws here, so that a test can feed both sides the same masks.
    """
    keep = torch.rand(shape, device=like.device) >= rate
    return keep.to(like.dtype) / (1 - rate)


def hard_sigmoid(x: Tensor) -> Tensor:
    """Keras 2's clip(0.2 x + 0.5, 0, 1); `torch.nn.Hardsigmoid` and Keras 3 have x / 6 + 0.5."""
    return (0.2 * x + 0.5).clamp(0, 1)


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE)


def max_pool(x: Tensor, size: int = 3) -> Tensor:
    """Maximum of each `size` steps, (batch, steps, channels) -> (batch, steps // size, channels)."""
    x = x.transpose(1, 2).unsqueeze(2)  # images (batch, channels, 1, steps): pools take these with channels last in memory
    return F.max_pool2d(x, (1, size)).squeeze(2).transpose(1, 2)


def softmax(x: Tensor) -> Tensor:
    return F.softmax(x, dim=-1)


def mel_to_hz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


def hz_to_mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def sinc_filters(
    filt_b1: Tensor, filt_band: Tensor, sr: float, taps: int = 251, window: Tensor | None = None, highest: float | None = None
) -> Tensor:
    """Band-pass filters (filters, taps) between the cuts |b1| + 50/sr and low + |band| + 50/sr, in cycles per sample.

    Each filter is divided by the maximum of its own taps, then multiplied by 0.54 - 0.46 cos(2 pi n / taps) with n equally
    spaced from 0 to `taps`, both ends included (a symmetric window; `torch.hamming_window`'s default is the periodic one). The
    order of the operations is the original's: the difference of the two low-pass filters cancels, so that another order is
    another float32 result. `window` (taps,) replaces that window, `highest` (cycles per sample) limits the upper cuts: SincNet's.
    """
    exact = {"dtype": torch.float64, "device": filt_b1.device}  # constants are rounded once, as numpy's are in the original
    t = (torch.arange(1, taps // 2 + 1, **exact) / sr).to(filt_b1.dtype)  # s
    n = torch.linspace(0, taps, taps, **exact)
    if window is None:
        window = (0.54 - 0.46 * torch.cos(2 * math.pi * n / taps)).to(filt_b1.dtype)

    def low_pass(cut: Tensor) -> Tensor:  # (filters, 1) -> (filters, taps)
        angle = 2 * math.pi * (cut * sr) * t
        right = torch.sin(angle) / angle
        return 2 * cut * torch.cat([right.flip(1), torch.ones_like(cut), right], dim=1)

    low = filt_b1.abs()[:, None] + 50 / sr
    high = low + (filt_band.abs()[:, None] + 50 / sr)
    if highest is not None:
        high = high.clamp(max=highest)
    band_pass = low_pass(high) - low_pass(low)
    return band_pass / band_pass.amax(dim=1, keepdim=True) * window


class SincConv1D(nn.Module):
    """Convolution of a waveform with learned band-pass filters (paper, section 3.1; original `SincConv1D`).

    (batch, steps, 1) -> (batch, steps, filters), zero padded ("same"), no bias. The parameters are the low cut `filt_b1` and
    the bandwidth `filt_band` in units of the sampling rate `sr` (Hz).
    """

    def __init__(self, filters: int, taps: int, sr: float, low_freq_mel: float = 80, high_freq_mel: float | None = None):
        super().__init__()
        self.taps, self.sr = taps, sr
        if high_freq_mel is None:
            high_freq_mel = hz_to_mel(sr / 2)
        # On the CPU also where weights are made without numbers: to compute on "meta" loads PyTorch's compiler, for a second.
        cuts = mel_to_hz(torch.linspace(low_freq_mel, high_freq_mel, filters, dtype=torch.float64, device="cpu"))
        b1, b2 = cuts.roll(1), cuts.roll(-1)
        b1[0], b2[-1] = 30, sr / 2 - 100
        like = {"device": torch.get_default_device(), "dtype": torch.get_default_dtype()}
        self.filt_b1 = nn.Parameter((b1 / sr).to(**like))
        self.filt_band = nn.Parameter(((b2 - b1) / sr).to(**like))

    def forward(self, x: Tensor) -> Tensor:
        filters = sinc_filters(self.filt_b1, self.filt_band, self.sr, self.taps)
        with whole(x):  # the gradient of a tap is a sum over all steps of all frames
            return convolve_waveform(x[..., 0], filters)


@operation
def convolve_waveform(x: Tensor, filters: Tensor) -> Tensor:
    """Convolution ("same") of waveforms (batch, steps) with `filters` (filters, taps) -> (batch, steps, filters)."""
    taps = filters.shape[1]
    windows = F.pad(x, (taps // 2, taps // 2)).unfold(1, taps, 1)  # (batch, steps, taps)
    # In two halves, whose sums are rounded less than one of all the products, and half as much as `F.conv1d`'s on a CPU.
    return sum(multiply(w, f.T) for w, f in zip(windows.tensor_split(2, dim=2), filters.tensor_split(2, dim=1), strict=True))


class Dense(nn.Linear):
    """Keras's Dense: glorot uniform kernel, zero bias."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x, self.weight.T) + self.bias


@operation
def multiply(x: Tensor, kernel: Tensor) -> Tensor:
    """Product of x (..., in) and a kernel (in, out) -> (..., out)."""
    return x @ kernel


class Conv1D(nn.Conv1d):
    """Keras's Conv1D: "valid", channels last, glorot uniform kernel, zero bias.

    (batch, steps, in) -> (batch, (steps - taps) // stride + 1, out)
    """

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return conv1d(x, self.weight, self.bias, self.stride[0])


def conv1d(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """`torch.nn.functional.conv1d` of channels-last x, as a channels-last 2-D convolution: on a CPU twice as fast."""
    weight = weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # (out, in, 1, taps)
    y = F.conv2d(x.transpose(1, 2).unsqueeze(2), weight, bias, stride=(1, stride))
    return y.squeeze(2).transpose(1, 2)


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of one step: (x - mean) / (std + 1e-6) * scale + bias, population std.

    Not `torch.nn.LayerNorm`, which divides by sqrt(var + eps). On a step whose channels are all equal the original's gradient
    is NaN; here such a step passes no gradient to its input.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.scale.dtype)  # 1e-6 is lost in half precision
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.square().sum(dim=-1, keepdim=True) / x.shape[-1]  # `torch.var` takes several times as long
        constant = ((x - x[..., :1]).detach().abs().sum(dim=-1, keepdim=True) == 0) | (variance == 0)
        std = torch.where(constant, 1, variance).sqrt()  # sqrt has no gradient at 0
        centred = torch.where(constant, 0, centred)
        return centred / (torch.where(constant, 0, std) + 1e-6) * self.scale + self.bias


class SpatialDropout1D(nn.Module):
    """Dropout of whole channels of a frame: one mask entry per (batch, channel), held over the steps."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * dropout_mask((x.shape[0], 1, x.shape[2]), self.rate, like=x)


class Dropout(nn.Module):
    """Elementwise dropout."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * dropout_mask(tuple(x.shape), self.rate, like=x)


class DELayer(nn.Module):
    """Denoising-enhancement layer: attention over the bands of a frame (paper, section 3.2; original `DELayer`, sum_channels).

    (batch, steps, bands) -> (batch, steps, 1), the sum of the bands weighted by their attention. One small network maps each band
    to one number, a softmax over the bands makes them weights. The original loops over the bands; here they are
    folded into the batch. `rate` is the dropout of the attention weights, which the original asks for and never applies.
    """

    def __init__(self, steps: int, rate: float = 0.0):
        super().__init__()
        self.conv1 = Conv1D(1, 30, 7, stride=2)
        self.conv2 = Conv1D(30, 30, 7, stride=3)
        self.conv3 = Conv1D(30, 10, 7, stride=3)
        self.dense1 = Dense(10 * attention_steps(steps), 128)
        self.dense2 = Dense(128, 64)
        self.dense3 = Dense(64, 1)
        self.dropout = Dropout(rate)

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights (batch, bands) of x (batch, steps, bands); each row sums to 1."""
        batch, steps, bands = x.shape
        h = x.transpose(1, 2).reshape(batch * bands, steps)
        h = band_convolutions(h, *self.conv1.parameters(), *self.conv2.parameters(), *self.conv3.parameters())
        h = F.relu(self.dense1(h))
        h = F.relu(self.dense2(h))
        return softmax(self.dense3(h).view(batch, bands))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.dropout(self.attention(x))[:, None, :]
        with whole(x):  # gradients of a quiet frame are large: the layer norms that follow divide by its deviation
            return (weights.to(x.dtype) @ x.transpose(1, 2)).transpose(1, 2)  # (batch, 1, bands) @ (batch, bands, steps)


@operation
def band_convolutions(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> Tensor:
    """The convolutions of the attention network on bands x (rows, steps) -> (rows, conv_steps * 10), steps outer."""
    h = F.relu(conv1d(x[:, :, None], w1, b1, stride=2))  # (rows, steps / 2, 30)
    h = F.relu(conv1d(h, w2, b2, stride=3))  # (rows, steps / 6, 30)
    h = F.relu(conv1d(h, w3, b3, stride=3))  # (rows, steps / 18, 10)
    return h.flatten(1)


class GRU(nn.Module):
    """Gated recurrent unit with the reset gate before the recurrent product (Keras's reset_after=False).

    (batch, steps, in) -> (batch, steps, units). One bias, gates ordered z, r, h in `kernel` (in, 3 * units),
    `recurrent_kernel` (units, 3 * units) and `bias` (3 * units): hh = tanh(x Wh + (r * h) Uh + bh). `torch.nn.GRU` resets
    after the product. In training each gate has its own input dropout mask, held over the steps.
    """

    def __init__(self, features: int, units: int, dropout: float = 0.0, go_backwards: bool = False):
        super().__init__()
        self.units, self.dropout, self.go_backwards = units, dropout, go_backwards
        self.kernel = nn.Parameter(torch.empty(features, 3 * units))
        self.recurrent_kernel = nn.Parameter(torch.empty(units, 3 * units))
        self.bias = nn.Parameter(torch.zeros(3 * units))
        nn.init.xavier_uniform_(self.kernel)
        if not self.recurrent_kernel.is_meta:  # as in SincConv1D
            nn.init.orthogonal_(self.recurrent_kernel)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, features = x.shape
        if self.training and self.dropout > 0:
            masks = [dropout_mask((batch, 1, features), self.dropout, like=x) for _ in "zrh"]
            kernels = self.kernel.split(self.units, dim=1)
            inputs = torch.cat([multiply(x * m, k) for m, k in zip(masks, kernels, strict=True)], dim=2)
        else:
            inputs = multiply(x, self.kernel)
        inputs = inputs + self.bias  # (batch, steps, 3 * units)
        if self.go_backwards:
            inputs = inputs.flip(1)
        y = gru_steps(inputs, self.recurrent_kernel)
        return y.flip(1) if self.go_backwards else y  # Keras's Bidirectional hands both on in the order of time


@operation
def gru_steps(inputs: Tensor, recurrent_kernel: Tensor) -> Tensor:
    """States (batch, steps, units) of a GRU from its input products `inputs` (batch, steps, 3 * units), starting at 0."""
    batch, steps, _ = inputs.shape
    units = recurrent_kernel.shape[0]
    recurrent_zr, recurrent_h = recurrent_kernel.split([2 * units, units], dim=1)
    h = inputs.new_zeros(batch, units)
    outputs = []
    for step in range(steps):
        inputs_zr, inputs_h = inputs[:, step].split([2 * units, units], dim=1)
        z, r = hard_sigmoid(inputs_zr + h @ recurrent_zr).chunk(2, dim=1)
        hh = torch.tanh(inputs_h + (r * h) @ recurrent_h)
        h = z * h + (1 - z) * hh
        outputs.append(h)
    return torch.stack(outputs, dim=1)


class Bidirectional(nn.Module):
    """Sum of a GRU that reads forwards and one that reads backwards, each with its own weights and dropout masks."""

    def __init__(self, features: int, units: int, dropout: float = 0.0):
        super().__init__()
        self.forward_gru = GRU(features, units, dropout)
        self.backward_gru = GRU(features, units, dropout, go_backwards=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_gru(x) + self.backward_gru(x)


def all_ranks_statistics(mean: Tensor, variance: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of the frames of all ranks, from those of this rank's `n` frames; gradients reach every rank."""
    from torch.distributed.nn.functional import all_reduce

    total = all_reduce(mean.new_full((), n))  # stays on the device: whoever reads it waits
    common = all_reduce(mean * (n / total))
    spread = variance + (mean - common).square()
    return common, all_reduce(spread * (n / total)), total


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, running statistics as TensorFlow 1's zero-debiased moving average.

    After the first training step the running statistics equal that step's, whatever they were before; the variance that is
    averaged is multiplied by n / (n - 1.001), the batch itself is normalised by the plain variance. `local_step` counts the
    training steps behind the averages. It is training state and no weight: the original does not save it, so training
    that goes on from loaded weights forgets their statistics at its first step, here as there. A trainer's checkpoint keeps it.
    """

    def __init__(self, channels: int, momentum: float = 0.99, epsilon: float = 1e-3):
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_variance", torch.ones(channels))
        # Not in the state dict, and a number also where weights are built without memory, on the device "meta".
        self.register_buffer("local_step", torch.zeros((), dtype=torch.int64, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.gamma.dtype)
        mean, variance = self.moving_mean, self.moving_variance
        if self.training:
            variance, mean = torch.var_mean(x, dim=tuple(range(x.dim() - 1)), correction=0)
            n = x.numel() // x.shape[-1]
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                mean, variance, n = all_ranks_statistics(mean, variance, n)
            self.update(mean.detach(), variance.detach(), n)
        return (x - mean) * (self.gamma * torch.rsqrt(variance + self.epsilon)) + self.beta

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, n: int | Tensor) -> None:
        """Average in the statistics of a batch of `n` frames."""
        # moving_k = biased_k / (1 - momentum^k), biased_k = momentum biased_{k-1} + (1 - momentum) value_k, biased_0 = 0
        seen = 1 - self.momentum ** self.local_step.double()
        self.local_step += 1
        share = ((1 - self.momentum) / (1 - self.momentum ** self.local_step.double())).to(mean.dtype)
        kept = (self.momentum * seen / (1 - self.momentum ** self.local_step.double())).to(mean.dtype)
        self.moving_mean.copy_(kept * self.moving_mean + share * mean)
        self.moving_variance.copy_(kept * self.moving_variance + share * variance * (n / (n - 1.001)))
