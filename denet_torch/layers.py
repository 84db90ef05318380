"""The layers of DENet in PyTorch, equal to the published Keras 2.2.4 code.

Arrays are channels last everywhere, (batch, steps, channels), as in the original. `reference_tf/layers.py` holds the
same names in the same order for TensorFlow: read the two side by side.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.3  # Keras's default; PyTorch's is 0.01
LEAST_ROWS = 10  # of a product in `kernels`
KEPT = 2**25  # numbers, of what the attention could compute again in a backward pass
FEW_ROWS = range(5, 11)  # of a product with a long kernel that goes to `kernels`: faster there than by oneDNN


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
    return pool(x.transpose(1, 2), size).transpose(1, 2)


def pool(x: Tensor, size: int, stride: int | None = None) -> Tensor:
    """`F.max_pool1d` of x (batch, channels, steps), as a 2-D pool, which leaves channels last in memory where they are."""
    return F.max_pool2d(x.unsqueeze(2), (1, size), (1, stride or size)).squeeze(2)


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
        cuts = mel_to_hz(torch.linspace(low_freq_mel, high_freq_mel, filters, dtype=torch.float64))
        b1, b2 = cuts.roll(1), cuts.roll(-1)
        b1[0], b2[-1] = 30, sr / 2 - 100
        self.filt_b1 = nn.Parameter((b1 / sr).to(torch.get_default_dtype()))
        self.filt_band = nn.Parameter(((b2 - b1) / sr).to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        filters = sinc_filters(self.filt_b1, self.filt_band, self.sr, self.taps)
        x = x[..., 0]
        if x.requires_grad or len(filters) < LEAST_ROWS or compiled_kernels(x, least=8) is None:
            return convolve_waveform(x, filters)
        return WaveformConvolution.apply(x, filters).transpose(1, 2)


def convolve_waveform(x: Tensor, filters: Tensor, block: int = 8) -> Tensor:
    """Convolution ("same") of waveforms (batch, steps) with `filters` (filters, taps) -> (batch, steps, filters).

    One matrix product makes `block` consecutive samples of every filter from one window of taps + block - 1 samples: windows are
    copied `block` times less often than for a product per sample, at the price of (taps + block - 1) / taps operations.
    """
    batch, steps = x.shape
    count, taps = filters.shape
    blocks = -(-steps // block)
    x = F.pad(x, (taps // 2, taps // 2 + blocks * block - steps))
    windows = x.unfold(1, taps + block - 1, block)  # (batch, blocks, taps + block - 1)
    shifted = torch.stack([F.pad(filters, (shift, block - 1 - shift)) for shift in range(block)])
    y = multiply(windows.flatten(0, 1), shifted.flatten(0, 1).T)  # (batch * blocks, block * filters)
    return y.view(batch, blocks * block, count)[:, :steps]


def compiled_kernels(x: Tensor, least: int = 1):
    """The module `kernels` if it takes x: float32 or float64 on a CPU, `least` rows or more; fewer do not wait for a compiler."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or len(x) < least:
        return None
    if torch.compiler.is_compiling():
        return None
    from . import kernels  # numba takes a second to import

    return kernels


class WaveformConvolution(torch.autograd.Function):
    """`convolve_waveform` on a CPU, compiled, without copies of windows and without gradients of the waveform.

    (batch, steps) -> (batch, filters, steps): the bands are the rows that the attention reads.
    """

    @staticmethod
    def forward(ctx, x: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(x, filters)
        ctx.compiled = compiled_kernels(x)
        return ctx.compiled.convolve(x, filters)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
        x, filters = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, gradients_with_history(convolve_waveform, (x, filters), grad.transpose(1, 2))[1]
        return None, ctx.compiled.filter_gradients(x, grad, filters.shape[1])


class Dense(nn.Linear):
    """Keras's Dense: glorot uniform kernel, zero bias."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return multiply(x, self.weight.T) + self.bias


def multiply(x: Tensor, kernel: Tensor) -> Tensor:
    """x @ kernel, (..., in) @ (in, out) -> (..., out)."""
    if not goes_to_onednn(x) or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return x @ kernel
    return Product.apply(x.flatten(0, -2), kernel).view(*x.shape[:-1], -1)


class Product(torch.autograd.Function):
    """`product` with gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return product(x, kernel)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradients_with_history(torch.mm, (x, kernel), grad)
        to_x, to_kernel = ctx.needs_input_grad
        if to_kernel:  # laid out as the kernel is, so that nobody copies it
            kernel_gradient = product(grad.T, x).T if kernel.stride(0) == 1 else product(x.T, grad)
        return product(grad, kernel.T) if to_x else None, kernel_gradient if to_kernel else None


def product(x: Tensor, kernel: Tensor, relu: bool = False) -> Tensor:
    """x @ kernel of two matrices; with `relu`, negative results become 0. Without gradients.

    float32 on a CPU goes to oneDNN. PyTorch takes MKL, which leaves AVX-512 to Intel's processors: elsewhere half as fast.
    A few rows times a long kernel go to `kernels`.
    """
    if len(x) in FEW_ROWS and is_long(kernel) and goes_to_onednn(x) and (compiled := compiled_kernels(x)):
        y = compiled.few_rows(x, kernel)
        return y.relu_() if relu else y
    # A part of a matrix would go to oneDNN's reference code: it is copied if there are enough rows to make up for that.
    whole = kernel.is_contiguous() or kernel.T.is_contiguous()
    if not goes_to_onednn(x) or not whole and len(x) < 128:
        y = x @ kernel
        return y.relu_() if relu else y
    weight = kernel.T.contiguous() if kernel.stride(0) == 1 else kernel.contiguous().T
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, None, "relu" if relu else "none", [], "")


def is_long(kernel: Tensor) -> bool:
    """Whether reading a kernel (in, out) is what a product of few rows waits for, and `kernels` can read it, a part as well."""
    return kernel.numel() >= 2**21 and kernel.stride(1) == 1 and kernel.shape[1] % 16 == 0


def goes_to_onednn(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


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
        variance = mean_square(centred, correction=0)
        constant = ((x - x[..., :1]).detach().abs().sum(dim=-1, keepdim=True) == 0) | (variance == 0)
        std = torch.where(constant, 1, variance).sqrt()  # sqrt has no gradient at 0
        centred = torch.where(constant, 0, centred)
        return centred / (torch.where(constant, 0, std) + 1e-6) * self.scale + self.bias


def mean_square(centred: Tensor, correction: int) -> Tensor:
    """Variance (..., 1) of channels less their mean (..., channels). `torch.var` takes several times as long on a CPU."""
    return centred.square().sum(dim=-1, keepdim=True) / (centred.shape[-1] - correction)


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
    `kept` is how many numbers may be kept for a backward pass so that it computes less again.
    """

    def __init__(self, steps: int, rate: float = 0.0):
        super().__init__()
        self.conv1 = Conv1D(1, 30, 7, stride=2)
        self.conv2 = Conv1D(30, 30, 7, stride=3)
        self.conv3 = Conv1D(30, 10, 7, stride=3)
        self.dense1 = Dense(10 * self.conv_steps(steps), 128)
        self.dense2 = Dense(128, 64)
        self.dense3 = Dense(64, 1)
        self.dropout = Dropout(rate)

    @staticmethod
    def conv_steps(steps: int) -> int:
        """Steps that the three convolutions leave of `steps`; below 1 the frame is too short."""
        for stride in (2, 3, 3):
            steps = (steps - 7) // stride + 1
        return steps

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights (batch, bands) of x (batch, steps, bands); each row sums to 1."""
        return softmax(self.scores(x)[0])

    def scores(self, x: Tensor, kept: int = KEPT) -> tuple[Tensor, Tensor]:
        """One number for each band, x (batch, steps, bands) -> (batch, bands), and the bands (batch, bands, steps).

        Who else reads the bands is to read these: both gradients of them are then added up in one pass.
        """
        batch, steps, bands = x.shape
        h = x.transpose(1, 2).reshape(batch * bands, steps)
        weights = [tensor for conv in (self.conv1, self.conv2, self.conv3) for tensor in (conv.weight, conv.bias)]
        # Under `torch.compile` the answer is that it is exporting, too.
        if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
            h, x = band_convolutions(h, *weights), h
        else:
            h, x = band_convolutions_in_parts(h, kept, *weights)
        h = F.relu(self.dense1(h))
        h = F.relu(self.dense2(h))
        return self.dense3(h).view(batch, bands), x.view(batch, bands, steps)

    def forward(self, x: Tensor, kept: int = KEPT) -> Tensor:
        scores, bands = self.scores(x, kept)
        weights = self.dropout(softmax(scores))[:, None, :]
        return (weights.to(x.dtype) @ bands).transpose(1, 2)  # (batch, 1, bands) @ (batch, bands, steps)


def band_convolutions(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> Tensor:
    """The convolutions of the attention network on bands x (rows, steps) -> (rows, conv_steps * 10), steps outer."""
    h = F.relu(conv1d(x[:, :, None], w1, b1, stride=2))  # (rows, steps / 2, 30)
    h = F.relu(conv1d(h, w2, b2, stride=3))  # (rows, steps / 6, 30)
    h = F.relu(conv1d(h, w3, b3, stride=3))  # (rows, steps / 18, 10)
    return h.flatten(1)


def band_convolutions_in_parts(x: Tensor, kept: int, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """`band_convolutions` a few rows at a time, in memory that does not grow with the features, and x for its other readers.

    `kept` numbers more may be kept for the backward pass.
    """
    if not torch.is_grad_enabled():
        x, *weights = (tensor.detach() for tensor in (x, *weights))  # else the Function prepares for a backward pass
    apply = BandConvolutions.apply
    if torch.compiler.is_compiling():  # compiled it would keep everything for the backward pass
        apply = torch.compiler.disable(apply)  # as a decorator it would load the compiler with this module
    return apply(x, kept, *weights)


class BandConvolutions(torch.autograd.Function):
    """`band_convolutions` a few rows at a time, most of it computed again in the backward pass; and x itself.

    What is kept does not grow with the 30 features: x, the result, and the second convolution's output for as many rows as
    `room` numbers hold. What is worked on stays in the cache of a CPU. Features are filled up with zeros to WIDTH, whole vectors
    of a processor, and three steps of them are a row of a matrix, a group: the strides of 3 go from group to group. So the first
    convolution, whose one channel would leave vector units idle, is a product with windows of 12 samples, 6 apart, and the
    gradients of the weights are products as well.

    Rows are cut, or filled up with zeros, to whole groups: for c = conv_steps, c + 2 behind the second convolution and 3 c + 8
    behind the first.

    In float32 and float64 on a CPU `kernels` computes the same, a row at a time. Under autocast it rounds what is between the
    layers to bfloat16 if the processor multiplies that; sums stay float32.
    """

    WIDTH = 32
    CPU_BUDGET, GPU_BUDGET = 2**20, 2**27  # numbers in the first convolution's output of a part

    @staticmethod
    def forward(ctx, x: Tensor, room: int, *weights: Tensor) -> tuple[Tensor, Tensor]:
        conv_steps = DELayer.conv_steps(x.shape[1])
        ctx.compiled = compiled_kernels(x, least=512) if conv_steps >= LEAST_ROWS else None
        ctx.dtype = autocast_dtype(x)
        if ctx.compiled and not ctx.compiled.takes(x.dtype, ctx.dtype):
            ctx.dtype = x.dtype
        m1, *others = BandConvolutions.kernels(*(weight.to(ctx.dtype) for weight in weights))
        if not any(ctx.needs_input_grad):
            room = 0
        if ctx.compiled:
            y, h2 = ctx.compiled.band_convolutions(x, conv_steps, room, m1, *others)
            ctx.save_for_backward(x, y, *weights, h2)
            return y.flatten(1), x
        y = x.new_empty(len(x), conv_steps, 10, dtype=ctx.dtype)
        kept = []
        for part in BandConvolutions.parts(x):
            _, h1 = BandConvolutions.first_convolution(x[part].to(ctx.dtype), m1)
            h2 = F.conv2d(images(h1), *others[:2], stride=(1, 3)).relu_()  # (rows, WIDTH, 1, steps / 6)
            y[part] = F.conv2d(h2, *others[2:], stride=(1, 3)).relu_()[:, :, 0].transpose(1, 2)
            room -= h2.numel()
            if room >= 0:
                kept.append(h2)
        ctx.save_for_backward(x, y, *weights, *kept)
        return y.flatten(1), x

    @staticmethod
    def kernels(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, b3: Tensor) -> tuple[Tensor, ...]:
        """The weights as the products take them; the first and its bias as a matrix (11 samples and a 1, 3 * WIDTH)."""
        more = BandConvolutions.WIDTH - 30
        shifted = [F.pad(w1[:, 0], (2 * shift, 4 - 2 * shift, 0, more)) for shift in range(3)]  # (WIDTH, 11)
        m1 = torch.cat([torch.cat(shifted).T, F.pad(b1, (0, more)).repeat(3)[None]])
        w2, w3 = F.pad(w2, (0, 0, 0, more, 0, more)), F.pad(w3, (0, 0, 0, more))
        w2, w3 = (w.unsqueeze(2).contiguous(memory_format=torch.channels_last) for w in (w2, w3))  # (out, in, 1, taps)
        return m1, w2, F.pad(b2, (0, more)), w3, b3

    @staticmethod
    def parts(x: Tensor) -> list[slice]:
        """Slices of so many rows of x that the output of the first convolution stays small."""
        rows, steps = x.shape
        budget = BandConvolutions.CPU_BUDGET if x.device.type == "cpu" else BandConvolutions.GPU_BUDGET
        size = max(1, budget // (BandConvolutions.groups(steps) * 3 * BandConvolutions.WIDTH))
        return [slice(start, start + size) for start in range(0, rows, size)]

    @staticmethod
    def groups(steps: int) -> int:
        """Groups of three steps behind the first convolution."""
        return 3 * DELayer.conv_steps(steps) + 8

    @staticmethod
    def first_convolution(x: Tensor, m1: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (rows, groups, 12) of x (rows, steps), and what is made of them (rows, groups, 3 * WIDTH)."""
        groups = BandConvolutions.groups(x.shape[1])
        windows = x.new_empty(len(x), groups, 12)
        windows.copy_(F.pad(x, (0, 6 * groups + 6 - x.shape[1])).unfold(1, 12, 6))
        windows[..., 11] = 1  # three steps read 11 samples
        return windows, product(windows.flatten(0, 1), m1, relu=True).view(len(x), groups, -1)

    @staticmethod
    def backward(ctx, grad: Tensor, so_far: Tensor) -> tuple[Tensor | None, ...]:
        """From the gradient of the result and that of x so far, which its other readers have handed back."""
        x, y, *weights = ctx.saved_tensors
        weights, kept = weights[:6], iter(weights[6:])
        if torch.is_grad_enabled():
            grad_x, *to_weights = gradients_with_history(band_convolutions, (x, *weights), grad)
            return None if grad_x is None else grad_x + so_far, None, *to_weights
        matrices = BandConvolutions.kernels(*(weight.to(ctx.dtype) for weight in weights))
        to_weights = any(ctx.needs_input_grad[2:])
        grad = grad.view_as(y)  # (rows, steps / 18, 10)
        if ctx.compiled:
            grad_x, *found = ctx.compiled.band_gradients(grad, so_far, y, x, next(kept), *matrices, to_weights)
            return grad_x, None, *BandConvolutions.weight_gradients(*found)
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
        m1, w2, b2, w3, _ = matrices
        width = BandConvolutions.WIDTH
        to_x = F.pad(m1[:11].T, (0, 5))  # (3 * WIDTH, 16): 16 columns take half the time of 11
        to_h2 = F.pad(handed_back(w3), (0, 0, 0, 2))
        grad_x = torch.empty_like(x)
        shapes = (12, 3 * width), (width, width, 1, 7), (width,), (32, 3 * width)
        gm1, gw2, gb2, gm3 = (x.new_zeros(shape, dtype=weights[0].dtype) for shape in shapes)
        for part in BandConvolutions.parts(x):
            windows, h1 = BandConvolutions.first_convolution(x[part].to(y.dtype), m1)
            h2 = next(kept, None)
            if h2 is None:
                h2 = F.conv2d(images(h1), w2, b2, stride=(1, 3)).relu_()
            g3 = F.pad(grad[part].flatten(1), (20, 22)).unfold(1, 32, 10).reshape(-1, 32)  # three steps and two more numbers
            h2 = h2.permute(0, 2, 3, 1).view(len(g3), 3 * width)
            g2 = product(g3, to_h2)
            g2 = mask_(g2, h2)
            g2_images = images(g2.view(len(h1), -1, width))
            g1 = convolution_gradients(g2_images, images(h1), w2, (True, False, False))[0].permute(0, 2, 3, 1).view(h1.shape)
            g1 = mask_(g1, h1).flatten(0, 1)
            if to_weights:
                _, to_w2, to_b2 = convolution_gradients(g2_images, images(h1), w2, (False, True, True))
                gw2, gb2 = gw2 + to_w2, gb2 + to_b2
                gm1 += product(windows.flatten(0, 1).T, g1)
                gm3 += product(g3.T, h2)
            first, second, _ = product(g1, to_x).view(len(h1), -1, 16).split([6, 6, 4], dim=2)  # halves of overlapping windows
            g0 = F.pad(first, (0, 0, 0, 1))
            g0[:, 1:] += second
            grad_x[part] = g0.flatten(1)[:, : x.shape[1]] + so_far[part]
        gw3 = gm3[:30].view(3, 10, 3, width).flip(0).permute(1, 3, 0, 2).flatten(2)[..., :7]  # (10, WIDTH, 7)
        return grad_x, None, *BandConvolutions.weight_gradients(gm1, gw2[:, :, 0], gb2, gw3, grad.sum((0, 1), dtype=gb2.dtype))

    @staticmethod
    def weight_gradients(gm1: Tensor, gw2: Tensor, gb2: Tensor, gw3: Tensor, gb3: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the six weights from those of what `kernels` makes of them."""
        by_step = gm1.view(12, 3, -1)[..., :30]
        gw1 = sum(by_step[2 * step : 2 * step + 7, step] for step in range(3)).T[:, None]
        return gw1, by_step[11].sum(0), gw2[:30, :30], gb2[:30], gw3[:, :30], gb3


def handed_back(w: Tensor) -> Tensor:
    """Weights w (out, in, 1, 7) of a convolution in steps of 3 as a matrix (3 * out, 3 * in) that takes gradients back.

    A group of three steps is read by three steps of the result, the first of which has it as its last tap.
    """
    taps = F.pad(w[:, :, 0].permute(2, 0, 1), (0, 0, 0, 0, 0, 2)).unflatten(0, (3, 3))  # (steps ago, place in group, out, in)
    return taps.flip(0).transpose(1, 2).flatten(2).flatten(0, 1).contiguous()


def images(x: Tensor) -> Tensor:
    """Steps x (rows, steps, WIDTH), or groups of them, as images (rows, WIDTH, 1, steps) in the same memory."""
    return x.view(len(x), 1, -1, BandConvolutions.WIDTH).permute(0, 3, 1, 2)


def convolution_gradients(grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
    """Gradients of images x, weight and bias of a convolution in steps of (1, 3), those `wanted`."""
    geometry = (1, 3), (0, 0), (1, 1), False, (0, 0), 1
    return torch.ops.aten.convolution_backward(grad, x, weight, [len(weight)], *geometry, wanted)


def mask_(grad: Tensor, y: Tensor) -> Tensor:
    """`grad`, in place, where the ReLU's output y is above 0, and 0 elsewhere."""
    return torch.ops.aten.threshold_backward.grad_input(grad, y, 0, grad_input=grad)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type in which autocast would have the products with x; x's own outside of autocast."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def gradients_with_history(function: Callable, tensors: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `function` to be differentiated again, None where none is asked for; what a Function saves has no history."""
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    found = iter(torch.autograd.grad(function(*tensors), wanted, grad, create_graph=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in tensors)


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
        recurrence = gru_steps if torch.compiler.is_compiling() else GRURecurrence.apply
        y = recurrence(inputs, self.recurrent_kernel)
        return y.flip(1) if self.go_backwards else y  # Keras's Bidirectional hands both on in the order of time


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


class GRURecurrence(torch.autograd.Function):
    """`gru_steps` with a backward pass of its own: the gradient of the recurrent kernel is one product over all steps.

    Autograd would add up one gradient of units x 3 units for each step, which costs more than all the products. On a CPU
    `kernels` goes through the steps, forwards and back, in float32 under autocast as well: they wait for memory, and so would
    bfloat16 copies of the kernel.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, recurrent_kernel: Tensor) -> Tensor:
        batch, steps, _ = inputs.shape
        units = recurrent_kernel.shape[0]
        autocast = ctx.autocast = autocast_dtype(inputs)
        worthwhile = units >= 256 and units % 16 == 0  # and whole vectors
        ctx.compiled = compiled_kernels(inputs) if worthwhile else None
        if ctx.compiled:
            gates, h = ctx.compiled.gru_states(inputs, recurrent_kernel)
            ctx.save_for_backward(inputs, recurrent_kernel, gates, h)
            return h[:, 1:].clone()
        kernel_z, kernel_r, kernel_h = gate_kernels(recurrent_kernel, autocast)
        gates = torch.empty_like(inputs)  # z, r, hh
        h = inputs.new_zeros(batch, steps + 1, units)
        for step in range(steps):
            last = h[:, step]
            a_z, a_r, a_h = inputs[:, step].split(units, dim=1)
            z = hard_sigmoid(a_z + product(last.to(autocast), kernel_z))
            r = hard_sigmoid(a_r + product(last.to(autocast), kernel_r))
            hh = torch.tanh(a_h + product((r * last).to(autocast), kernel_h))
            gates[:, step] = torch.cat([z, r, hh], dim=1)
            h[:, step + 1] = z * last + (1 - z) * hh
        ctx.save_for_backward(inputs, recurrent_kernel, gates, h)
        return h[:, 1:].clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        inputs, recurrent_kernel, gates, h = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradients_with_history(gru_steps, (inputs, recurrent_kernel), grad)
        batch, steps, units = grad.shape
        last, (z, r, hh) = h[:, :-1], gates.split(units, dim=2)
        if ctx.compiled:
            grad_inputs = ctx.compiled.gru_gradients(grad, recurrent_kernel, gates, h)
            return grad_inputs, GRURecurrence.kernel_gradient(grad_inputs, last, r, ctx.autocast)
        kernel_z, kernel_r, kernel_h = gate_kernels(recurrent_kernel, ctx.autocast)
        slope_z, slope_r = (0.2 * ((gate > 0) & (gate < 1)).to(gate.dtype) for gate in (z, r))  # hard_sigmoid's
        grad_inputs = torch.empty_like(inputs)
        carry = grad.new_zeros(batch, units)
        for step in reversed(range(steps)):
            dh = grad[:, step] + carry
            da_z = dh * (last[:, step] - hh[:, step]) * slope_z[:, step]
            da_h = dh * (1 - z[:, step]) * (1 - hh[:, step].square())
            da_r = torch.zeros_like(da_z)
            if step > 0:  # else the state before is 0
                d_reset = product(da_h.to(ctx.autocast), kernel_h.T).to(dh.dtype)
                da_r = d_reset * last[:, step] * slope_r[:, step]
                carry = dh * z[:, step] + d_reset * r[:, step]
                carry += product(da_z.to(ctx.autocast), kernel_z.T) + product(da_r.to(ctx.autocast), kernel_r.T)
            grad_inputs[:, step] = torch.cat([da_z, da_r, da_h], dim=1)
        del kernel_z, kernel_r, kernel_h  # before as much is taken for the gradients
        return grad_inputs, GRURecurrence.kernel_gradient(grad_inputs, last, r, ctx.autocast)

    @staticmethod
    def kernel_gradient(grad_inputs: Tensor, last: Tensor, r: Tensor, dtype: torch.dtype) -> Tensor:
        """Gradient of the recurrent kernel, by products in `dtype`, from the inputs' and the state before each step."""
        units = last.shape[2]
        reset, last = (x.flatten(0, 1).to(dtype).T for x in (r * last, last))  # (units, batch * steps)
        rows = grad_inputs.flatten(0, 1).to(dtype).split(units, dim=1)
        grad_kernel = grad_inputs.new_empty(units, 3 * units)
        for part, x, gate in zip(grad_kernel.split(units, dim=1), (last, last, reset), rows, strict=True):
            part.copy_(product(x, gate))
        return grad_kernel


def gate_kernels(recurrent_kernel: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The parts of a recurrent kernel for z, r and hh, each contiguous: they are read at every step."""
    return [kernel.to(dtype).contiguous() for kernel in recurrent_kernel.split(len(recurrent_kernel), dim=1)]


class Bidirectional(nn.Module):
    """Sum of a GRU that reads forwards and one that reads backwards, each with its own weights and dropout masks."""

    def __init__(self, features: int, units: int, dropout: float = 0.0):
        super().__init__()
        self.forward_gru = GRU(features, units, dropout)
        self.backward_gru = GRU(features, units, dropout, go_backwards=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_gru(x) + self.backward_gru(x)


def all_ranks_statistics(mean: Tensor, variance: Tensor, n: int) -> tuple[Tensor, Tensor, float]:
    """Mean, variance and number of the frames of all ranks, from those of this rank's `n` frames; gradients reach every rank."""
    from torch.distributed.nn.functional import all_reduce

    total = float(all_reduce(mean.new_tensor(n)))
    common = all_reduce(mean * (n / total))
    spread = variance + (mean - common).square()
    return common, all_reduce(spread * (n / total)), total


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, running statistics as TensorFlow 1's zero-debiased moving average.

    After the first training step the running statistics equal that step's, whatever they were before; the variance that is
    averaged is multiplied by n / (n - 1.001), the batch itself is normalised by the plain variance. `local_step` counts the
    training steps behind the averages. It is training state and no weight: the original does not save it, so training
    that goes on from loaded weights forgets their statistics at its first step, here as there.
    """

    def __init__(self, channels: int, momentum: float = 0.99, epsilon: float = 1e-3):
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("moving_mean", torch.zeros(channels))
        self.register_buffer("moving_variance", torch.ones(channels))
        self.register_buffer("local_step", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.gamma.dtype)
        mean, variance = self.moving_mean, self.moving_variance
        if self.training:
            axes = tuple(range(x.dim() - 1))
            variance, mean = torch.var_mean(x, dim=axes, correction=0)
            n = x.numel() // x.shape[-1]
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                mean, variance, n = all_ranks_statistics(mean, variance, n)
            self.update(mean.detach(), variance.detach(), n)
        return (x - mean) * (self.gamma * torch.rsqrt(variance + self.epsilon)) + self.beta

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, n: float) -> None:
        """Average in the statistics of a batch of `n` frames."""
        # moving_k = biased_k / (1 - momentum^k), biased_k = momentum biased_{k-1} + (1 - momentum) value_k, biased_0 = 0
        seen = 1 - self.momentum ** self.local_step.double()
        self.local_step += 1
        share = ((1 - self.momentum) / (1 - self.momentum ** self.local_step.double())).to(mean.dtype)
        kept = (self.momentum * seen / (1 - self.momentum ** self.local_step.double())).to(mean.dtype)
        self.moving_mean.copy_(kept * self.moving_mean + share * mean)
        self.moving_variance.copy_(kept * self.moving_variance + share * variance * (n / (n - 1.001)))
