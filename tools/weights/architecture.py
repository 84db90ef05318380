"""The architecture behind a set of weights: what they determine, what has to be said, and whether they fit it."""

import json
from pathlib import Path

import numpy as np

from denet_torch import schema
from denet_torch.architecture import ATTENTION, NAMES, attention_steps, is_variance, shapes
from denet_torch.files import reason

from . import Weights, WeightsError, rate

OPTIONS = {  # argument of DENet -> option of tools.convert_weights
    "n_classes": "--classes",
    "sr": "--sr",
    "seq_len": "--seq-len",
    "samples": "--samples",
    "before_pooling": "--attention-position",
    "dropout": "--dropout",
}
DEFAULTS = {"sr": 16000, "seq_len": 10, "dropout": 0.3, "train_attention": True, "attention_dropout": False}

# Arguments of DENet, input_shape in two, and what they can be.
ARGUMENTS = {"seq_len": schema.COUNT, "samples": schema.COUNT, **schema.COMMON, **schema.OWN["denet"]}
del ARGUMENTS["input_shape"]


def facts(source: Path | str, config: dict) -> dict:
    """`config`, as `source` states it, in the form of `Weights.known`; keys that DENet does not have are left out.

    Raises WeightsError on values that no DENet can have.
    """
    config = dict(config)
    shape = config.pop("input_shape", None)
    if shape is not None:
        if not isinstance(shape, list | tuple) or len(shape) not in (2, 3) or tuple(shape[2:]) not in ((), (1,)):
            raise WeightsError(f"{source}: states the input shape {shape!r}; expected [seq_len, samples, 1]")
        config |= {key: size for key, size in zip(("seq_len", "samples"), shape[:2], strict=True) if size is not None}
    known = {key: config[key] for key in ARGUMENTS if key in config}
    if wrong := [key for key, value in known.items() if not ARGUMENTS[key][0](value)]:
        raise WeightsError(f"{source}: {wrong[0]} = {schema.shown(known[wrong[0]])}, which no DENet has")
    return known


def resolve(weights: Weights, asked: dict) -> tuple[dict, list[str]]:
    """The arguments of DENet for `weights`, and a line for each that neither they nor `asked` (what the user says) determine.

    Raises WeightsError where the weights, the file's statements and the user contradict each other, and where the attention's
    position is still open.
    """
    measured = _measured(weights)
    for key, value in measured.items():
        if weights.known.get(key, value) != value:
            raise WeightsError(f"{weights.path}: states {key} = {weights.known[key]}, but its weights have {value}")
    said = weights.known | measured
    for key, value in asked.items():
        if said.get(key, value) != value:
            held = _shown(key, said[key])
            raise WeightsError(f"{weights.path}: {OPTIONS[key]} is {_shown(key, value)}, but the file has {held}")
    said |= facts("the options", asked)
    said |= _frame(weights, said)
    notes = []
    if "samples" not in weights.known and "samples" not in asked:
        roundest = f"samples = {said['samples']}, the roundest of the frame lengths that fit"
        notes.append(f"{roundest}; say {OPTIONS['samples']} if it is another")
    said |= _rate_of(weights, said, "sr" in asked, notes)
    for key, value in DEFAULTS.items():
        if key not in said:
            said[key] = value
            if key == "sr":
                moved = "training has moved its filters too far to tell"
                notes.append(f"sr = {value}, which the file does not tell, and {moved}; say {OPTIONS[key]} if it is another")
                weights.assumed.append(f"the sampling rate, {value} Hz, is assumed, and another one predicts something else")
            elif key in OPTIONS:
                notes.append(f"{key} = {value}, which the file does not tell; say {OPTIONS[key]} if it is another")
    config = {"input_shape": [said.pop("seq_len"), said.pop("samples"), 1]}
    return config | {key: said[key] for key in ARGUMENTS if key in said}, notes


def _rate_of(weights: Weights, said: dict, by_user: bool, notes: list[str]) -> dict:
    """The sampling rate that the filters tell, where nobody says it; WeightsError where they contradict the user or leave
    several open. What a file states is believed: its filters may come from a model for another rate."""
    b1, band = weights.tensors["sinc.filt_b1"], weights.tensors["sinc.filt_band"]
    if b1.shape != band.shape or not (np.isfinite(b1).all() and np.isfinite(band).all()):
        return {}  # `check` says so
    distances = rate.distances(b1, band, said.get("sr"))
    rates, nearest = rate.fitting(distances, len(b1)), next(iter(distances))
    if not rates:
        assumed = DEFAULTS["sr"]
        if "sr" not in said and assumed not in rate.near(distances, len(b1)):
            near, far = (f"{distances[other]:.1e}" for other in (nearest, assumed))
            off = f"{near} cycles a sample (median) from where they start at {nearest} Hz, {far}"
            raise WeightsError(
                f"{weights.path}: training has moved the filters too far to tell the rate, but they are {off} at {assumed} Hz, "
                f"which else is assumed; say {OPTIONS['sr']}"
            )
        return {}
    fit = f"{distances[nearest]:.1e} cycles a sample (median) from those that training starts with at {nearest} Hz"
    if "sr" in said:
        if said["sr"] not in rates:
            off = f"the filters' cuts are {fit}, {distances[said['sr']]:.1e} at {said['sr']} Hz"
            if by_user:
                raise WeightsError(f"{weights.path}: {OPTIONS['sr']} is {said['sr']}, but {off}")
            notes.append(f"sr = {said['sr']}, as the file states, but {off}")
        return {}
    if len(rates) > 1:
        options = " or ".join(f"{OPTIONS['sr']} {rate}" for rate in sorted(rates))
        raise WeightsError(f"{weights.path}: the filters' cuts fit several sampling rates; say {options}")
    following = next(other for other in distances if other != nearest)
    notes.append(f"sr = {nearest}, inferred: the filters' cuts are {fit}, {distances[following]:.1e} at the next, {following} Hz")
    return {"sr": nearest}


def check(weights: Weights, config: dict) -> None:
    """Raise WeightsError unless `weights` are exactly the finite float32 or float64 weights of DENet(**config), and all that is
    said beside them is what `denet_torch.load` takes."""
    try:
        schema.architecture(config)
    except ValueError as error:
        raise WeightsError(f"{weights.path}: {error}") from None
    for name, shape in shapes(config).items():
        tensor = weights.tensors[name]
        if tensor.shape != shape:
            raise WeightsError(f"{weights.path}: {_where(weights, name)} is {tensor.shape} in the file, {shape} expected")
        if not np.isfinite(tensor).all():
            raise WeightsError(f"{weights.path}: {_where(weights, name)} holds values that are not finite numbers")
        if is_variance(name) and tensor.min() < 0:
            raise WeightsError(f"{weights.path}: {_where(weights, name)} holds negative numbers, which no variance is")
    if extra := weights.tensors.keys() - set(NAMES):
        raise WeightsError(f"{weights.path}: {min(extra)} is no weight of a DENet")
    try:
        if len(weights.detection) > schema.MAX_DETECTION:
            raise ValueError(f"they have more than {schema.MAX_DETECTION} characters")
        if weights.detection:
            schema.Detection.from_dict(json.loads(weights.detection), config["n_classes"])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{weights.path}: its labels and decoding cannot be used ({reason(error)})") from None
    if weights.recorded:
        x, y = weights.recorded
        if (x.shape[2], y.shape[2]) != (config["input_shape"][1], config["n_classes"]):
            of = f"of frames of {x.shape[2]} samples, and of {y.shape[2]} classes"
            raise WeightsError(f"{weights.path}: its recorded predictions are {of}, as its weights are not")


def check_types(weights: Weights) -> None:
    """Raise WeightsError unless all of `weights` are float32 or all float64, with as many axes as DENet's have."""
    axes = {name: len(shape) for name, shape in shapes(_ANY).items()}
    first = next(iter(weights.tensors.values())).dtype
    for name, tensor in weights.tensors.items():
        if tensor.dtype not in (np.float32, np.float64) or tensor.dtype != first:
            expected = "float32 or float64, the same for every weight"
            raise WeightsError(f"{weights.path}: {_where(weights, name)} is {tensor.dtype}; expected {expected}")
        if tensor.ndim != axes[name]:
            expected = f"{axes[name]} axes expected"
            if name.startswith("gru.") and tensor.ndim == 2:
                expected += " (two biases: a GRU with reset_after=True, which computes something else)"
            raise WeightsError(f"{weights.path}: {_where(weights, name)} is {tensor.shape} in the file, {expected}")


_ANY = {"input_shape": [1, 400, 1], "n_classes": 2, "before_pooling": True, "n_filters": 1, "gru_units": 1, "dense_units": [1, 1]}


def _measured(weights: Weights) -> dict:
    if missing := [name for name in NAMES if name not in weights.tensors and name not in ATTENTION]:
        raise WeightsError(f"{weights.path}: {missing[0]} is missing")
    size = {name: tensor.shape[0] for name, tensor in weights.tensors.items()}
    return {
        "n_classes": size["dense3.bias"],
        "n_filters": size["sinc.filt_b1"],
        "gru_units": size["gru.forward_gru.recurrent_kernel"],
        "dense_units": [size["dense1.bias"], size["dense2.bias"]],
    }


def _frame(weights: Weights, said: dict) -> dict:
    """`samples` and `before_pooling` that give the GRU and the attention network inputs of the sizes that they have."""
    gru = weights.tensors["gru.forward_gru.kernel"]
    steps, odd = divmod(gru.shape[0], 60)
    where = f"{weights.path}: {_where(weights, 'gru.forward_gru.kernel')} is {gru.shape} in the file"
    if odd or steps < 1:
        raise WeightsError(f"{where}, but its rows come in 60 features for each step")
    lowest = 27 * steps + 48  # conv_steps of this and of the 26 lengths after it is `steps`
    lengths = [n for n in range(lowest, lowest + 27) if said.get("samples", n) == n]
    if not lengths:
        raise WeightsError(f"{where}, which fits frames of {lowest} to {lowest + 26} samples, not {said['samples']}")
    positions = [said["before_pooling"]] if "before_pooling" in said else [True, False]
    left = {(n, p): attention_steps(n if p else n // 3) for n in lengths for p in positions}
    fits = [fit for fit, steps in left.items() if steps >= 1]
    if "attention.dense1.weight" in weights.tensors:
        shape = weights.tensors["attention.dense1.weight"].shape
        expected = sorted({(128, 10 * left[fit]) for fit in fits})
        fits = [fit for fit in fits if 10 * left[fit] == shape[1]]
        if not fits:
            listed = " or ".join(map(str, expected)) or "nothing (frames too short)"
            name = _where(weights, "attention.dense1.weight")
            raise WeightsError(f"{weights.path}: {name} is {shape} in the file, {listed} expected")
    if not fits:
        raise WeightsError(f"{where}: frames of {lengths[0]} samples are too short for the attention network")
    if len({p for _, p in fits}) > 1:
        raise WeightsError(
            f"{weights.path}: does not tell whether the attention comes before or after the pooling; "
            f"say {OPTIONS['before_pooling']} before or {OPTIONS['before_pooling']} after"
        )
    samples, before_pooling = min(fits, key=lambda fit: (-_roundness(fit[0]), fit[0]))
    return {"samples": samples, "before_pooling": before_pooling}


def _roundness(n: int) -> int:
    """The largest of 1000, 500, 100, 50, ... that divides n."""
    return next(unit for unit in (1000, 500, 100, 50, 20, 10, 5, 2, 1) if n % unit == 0)


def _where(weights: Weights, name: str) -> str:
    origin = weights.origin.get(name, name)
    return name if origin == name else f"{name} ({origin})"


def _shown(key: str, value) -> str:
    return {True: "before", False: "after"}[value] if key == "before_pooling" else str(value)


def lacks_attention(weights: Weights) -> bool:
    """True if `weights` hold none of the attention branch. Raises WeightsError if they hold a part of it."""
    missing = [name for name in ATTENTION if name not in weights.tensors]
    if missing and len(missing) < len(ATTENTION):
        raise WeightsError(f"{weights.path}: {missing[0]} is missing")
    return bool(missing)
