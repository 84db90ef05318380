"""Which side of a ReLU or of a max-pooling tie the original's float32 fell on.

A gradient is a sum over units; where a unit's input is within rounding of its kink (a ReLU's zero, two equal entries of a pool),
float32 decides by its last bit which of two values that unit adds. Two correct float32 programs then differ by whole terms,
about 1e-3 of the attention branch's gradient, and either is right. So the recorded gradients of the attention branch and the
sinc filters are compared up to such decisions: every unit that lies within the float32 error of its kink is listed with the exact
change of the gradient that deciding it the other way makes (no free amplitude), and a subset of them must lead from the
port's float64 gradient to the recording within the bar. Everything else of the comparison is as strict as without.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from denet_torch import DENet
from denet_torch.layers import LEAKY_SLOPE, DELayer, leaky_relu, max_pool, sinc_filters

ATTENTION_ERROR = 6e-6  # largest float32 error of a pre-activation of the attention network on the recordings (5.1e-6 seen)
BAND_ERROR = 2e-5  # and of a band's sample

Gradients = dict[str, Tensor]


HIDDEN = ("conv1", "conv2", "conv3", "dense1", "dense2")  # layers of the attention network that a ReLU follows


def before_relus(layer: DELayer, h: Tensor, flip: tuple[str, int] | None = None) -> dict[str, Tensor]:
    """What goes into each ReLU, and the score (`dense3`), of bands h (copies, steps, 1); layer by layer, with no shortcut.

    The ReLU decision of unit `flip` = (layer name, index) is reversed.
    """
    before = {}
    for name in HIDDEN:
        before[name] = getattr(layer, name)(h.flatten(1) if name == "dense1" else h)
        active = before[name] > 0
        if flip and flip[0] == name:
            active = active ^ (torch.arange(active.numel()) == flip[1]).view(active.shape)
        h = before[name] * active
    before["dense3"] = layer.dense3(h)
    return before


def undecided_relus(model: DENet, x: Tensor, loss: Callable[[Tensor], Tensor]) -> list[Gradients]:
    """Gradient change of each undecided ReLU of the attention network, by weight name (attention.* and sinc.*)."""
    names = [name for name, _ in model.named_parameters() if name.startswith(("attention.", "sinc."))]
    weights = [model.get_parameter(name) for name in names]
    seen: dict[str, Tensor] = {}
    hooks = [
        model.attention.register_forward_hook(lambda _, bands, __: seen.__setitem__("bands", bands[0])),
        model.attention.dropout.register_forward_hook(lambda _, __, out: seen.__setitem__("attention", out)),
    ]
    value = loss(model(x))
    for hook in hooks:
        hook.remove()
    (grad,) = torch.autograd.grad(value, seen["attention"])
    attention = seen["attention"].detach()
    score_grad = (attention * (grad - (grad * attention).sum(dim=1, keepdim=True))).flatten()  # through the softmax

    with torch.no_grad():
        before = before_relus(model.attention, seen["bands"].transpose(1, 2).flatten(0, 1)[:, :, None])
    flips: dict[int, list[tuple[str, int]]] = {}
    for name in HIDDEN:
        for copy, unit in (before[name].flatten(1).abs() < ATTENTION_ERROR).nonzero().tolist():
            flips.setdefault(copy, []).append((name, unit))

    frames = x.reshape(-1, model.samples)
    changes = []
    for copy, units in flips.items():
        frame, band = divmod(copy, model.sinc.filt_b1.numel())

        def gradients(flip, frame=frame, band=band):
            cuts = model.sinc.filt_b1[band : band + 1], model.sinc.filt_band[band : band + 1]
            kernel = sinc_filters(*cuts, model.sinc.sr, model.sinc.taps)
            h = F.conv1d(frames[frame][None, None], kernel[:, None], padding=model.sinc.taps // 2).transpose(1, 2)
            if not model.before_pooling:
                h = leaky_relu(max_pool(h))
            return torch.autograd.grad(before_relus(model.attention, h, flip)["dense3"].squeeze(), weights)

        plain = gradients(None)
        for unit in units:
            flipped = gradients(unit)
            scale = score_grad[copy]
            changes.append(
                {name: scale * (b - a) for name, a, b in zip(names, plain, flipped, strict=True)}
            )
    return changes


def undecided_pools(model: DENet, x: Tensor, loss: Callable[[Tensor], Tensor]) -> list[Gradients]:
    """The same for the pooling and LeakyReLU of the bands themselves (attention after pooling): changes of sinc.* only."""
    filters, taps, sr = model.sinc.filt_b1.numel(), model.sinc.taps, model.sinc.sr
    seen = {}
    hook = model.sinc.register_forward_hook(lambda _, __, out: seen.__setitem__("bands", out))
    value = loss(model(x))
    hook.remove()
    bands = seen["bands"]  # (frames, samples, filters)
    grad = torch.autograd.grad(value, bands)[0]
    ones, zeros = torch.ones(filters, dtype=x.dtype), torch.zeros(filters, dtype=x.dtype)
    cuts = model.sinc.filt_b1.detach(), model.sinc.filt_band.detach()
    slopes = {  # d filter / d cut, (filters, taps): a filter depends on its own two numbers only
        "sinc.filt_b1": torch.func.jvp(lambda a, b: sinc_filters(a, b, sr, taps), cuts, (ones, zeros))[1],
        "sinc.filt_band": torch.func.jvp(lambda a, b: sinc_filters(a, b, sr, taps), cuts, (zeros, ones))[1],
    }
    steps = bands.shape[1] // 3
    windows = bands.detach()[:, : 3 * steps].unflatten(1, (steps, 3))  # (frames, steps, 3, filters)
    window_grads = grad[:, : 3 * steps].unflatten(1, (steps, 3))
    top, place = windows.topk(2, dim=2)
    padded = F.pad(x.reshape(-1, model.samples), (taps // 2, taps // 2))
    changes = []

    def change(frame, step, band, moves):
        total = {name: torch.zeros(filters, dtype=x.dtype) for name in slopes}
        for offset, amount in moves:
            t = 3 * step + offset
            for name, slope in slopes.items():
                total[name][band] += amount * padded[frame, t : t + taps] @ slope[band]
        return total

    for frame, step, band in (top[:, :, 0].abs() < BAND_ERROR).nonzero().tolist():
        at = place[frame, step, 0, band].item()
        slope_now = 1 if top[frame, step, 0, band] > 0 else LEAKY_SLOPE
        slope_then = LEAKY_SLOPE if slope_now == 1 else 1
        amount = window_grads[frame, step, at, band] * (slope_then / slope_now - 1)
        changes.append(change(frame, step, band, [(at, amount)]))
    for frame, step, band in (top[:, :, 0] - top[:, :, 1] < BAND_ERROR).nonzero().tolist():
        first, second = place[frame, step, :, band].tolist()
        amount = window_grads[frame, step, first, band]
        changes.append(change(frame, step, band, [(first, -amount), (second, amount)]))
    return changes


def explain(missing: Tensor, changes: Tensor, bar: float) -> tuple[list[int], float]:
    """Choose rows of `changes` (units, entries) whose sum is `missing` (entries,) to within `bar`.

    Greedy: the unit whose change shortens what is missing most, until none does. Returns the units and the largest entry left.
    """
    left, chosen = missing.clone(), []
    free = torch.ones(len(changes), dtype=torch.bool)
    lengths = changes.square().sum(dim=1)
    while left.abs().max() > bar and free.any():
        gain = torch.where(free, 2 * changes @ left - lengths, -torch.inf)
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        left, free[best] = left - changes[best], False
        chosen.append(best)
    return chosen, float(left.abs().max())
