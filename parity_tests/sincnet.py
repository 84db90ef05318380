"""The recordings of SincNet in `golden/sincnet`, run on the port: what it computes, by the recorded names."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

from denet_torch import sincnet
from parity_tests.golden.sincnet.recipe import draw, sample
from tools.weights.sincnet_pkl import port_name

FOLDER = Path(__file__).parent / "golden" / "sincnet"
CASES = ("sincnet_16k", "sincnet_small_8k", "sincnet_250k")
FORWARD_BAR, GRADIENT_BAR, STEPS_BAR = 1e-12, 1e-10, 1e-10  # float64, relative to the array's largest magnitude
LEARNING_RATE = 1e-3
# Of a pool's largest magnitude: eight units of float32, about its error in what is pooled.
TIE = 2.0**-20


def read(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The configuration and the arrays of a recording."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return json.loads((FOLDER / f"{name}.json").read_text()), dict(file)


def build(info: dict, dtype: torch.dtype) -> tuple[sincnet.SincNet, dict[str, str]]:
    """The port with the weights of a recording, and the recorded name of each."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        sizes = {"n_filters": info["filters"], "taps": info["taps"], "hidden": info["hidden"]}
        model = sincnet.SincNet((1, info["samples"]), info["classes"], info["sr"], **sizes)
    finally:
        torch.set_default_dtype(before)
    state, names = model.state_dict(), {}
    for number, (part, name, shape) in enumerate(info["weights"]):
        ours = port_name(f"{part}/{name}")
        if ours is None:
            continue
        init = state[ours].numpy().reshape(shape) if ours.startswith("sinc.") else None
        values = draw(info["weight_seed_base"] + number, shape, name.split(".")[-1], init)
        state[ours] = torch.from_numpy(np.asarray(values)).to(dtype).view(state[ours].shape)
        names[ours] = f"{part}/{name}"
    model.load_state_dict(state)
    return model, names


@contextmanager
def tied_pools_closed(ties: list[torch.Tensor]):
    """Within it no gradient passes the windows of pools whose two largest values are within TIE of each other.

    There float32 may pass the gradient to another sample than float64 does, a difference of another kind than rounding. A forward
    pass in float64 appends to `ties` which windows these are, one in float32 takes them from there.
    """
    known = iter(list(ties))

    def closed(pool: Callable, convolved: Callable) -> Callable:
        def operate(x, weight, *bias):
            y = pool(x, weight, *bias)
            if not torch.is_grad_enabled():
                return y
            if x.dtype == torch.float64:
                values = convolved(x, weight, *bias).detach()
                first, second = values.unfold(-1, sincnet.POOL, sincnet.POOL).topk(2).values.unbind(-1)
                ties.append(first - second <= TIE * values.abs().max())
            return y.where(~(ties[-1] if x.dtype == torch.float64 else next(known)), y.detach())

        return operate

    sinc = closed(sincnet.sinc_pool, lambda x, filters: F.conv1d(x[:, None], filters[:, None]).abs())
    with patch.object(sincnet, "sinc_pool", sinc), patch.object(sincnet, "conv_pool", closed(sincnet.conv_pool, F.conv1d)):
        yield


def compute(info: dict, arrays: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """What the recording holds for `dtype`, computed by the port; keys without the type's name."""
    model, names = build(info, dtype)
    x, labels = torch.from_numpy(arrays["x"]).to(dtype), torch.from_numpy(arrays["labels"])
    model.eval()
    with torch.no_grad():
        filters = model.sinc.filters()
        found = {
            "log_posteriors_eval": F.log_softmax(model.logits(x), dim=-1),
            "filters_sample": sample(filters),
            "features_sample": sample(model.features(x)),
        }
        whole = arrays["float64/filters"]
        every = range(0, len(filters), -(-len(filters) // len(whole)))
        found["filters"] = filters[list(every)][: len(whole)]
    model.train()
    output = F.log_softmax(model.logits(x), dim=-1)
    loss = F.nll_loss(output, labels)
    loss.backward()
    found |= {"log_posteriors_train": output.detach(), "loss": loss.detach()}
    for name, parameter in model.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found |= {f"grad/{names[name]}": sample(grad), f"gradnorm/{names[name]}": grad.double().norm()}
    return {key: np.asarray(value) for key, value in found.items()}


def five_steps(info: dict, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Five steps of the original's RMSprop in float64: losses, every weight after them, and the answers."""
    model, names = build(info, torch.float64)
    x, labels = torch.from_numpy(arrays["x"]).double(), torch.from_numpy(arrays["labels"])
    optimizer = torch.optim.RMSprop(model.parameters(), lr=LEARNING_RATE, alpha=0.95, eps=1e-8)
    losses = []
    for _ in range(5):
        loss = F.nll_loss(F.log_softmax(model.logits(x), dim=-1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    found = {f"rmsprop/{names[name]}": sample(tensor) for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        found["rmsprop/log_posteriors_eval"] = F.log_softmax(model.eval().logits(x), dim=-1).numpy()
    return found | {"rmsprop/losses": np.array(losses)}


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest magnitude of `expected`; absolute where that is 0."""
    if np.shape(found) != np.shape(expected):
        return np.inf
    scale = np.abs(expected).max() or 1.0
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / scale)


def errors(found: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Error of each array against the float64 recording."""
    return {key: error(value, arrays[f"float64/{key}"]) for key, value in found.items()}
