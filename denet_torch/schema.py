"""What a weight file says beside its weights: the architecture, the classes' names, how answers become events. Checked here.

Nothing in this module needs PyTorch.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from typing import Any

MAX_SECONDS = 1e6  # of a gap or a duration
MAX_LABEL = 1000  # characters
MAX_ARCHITECTURE, MAX_DETECTION = 10_000, 1_000_000  # characters that a file states them in
RATES = (100, 10_000_000)  # Hz: from infrasound to ten times what bat detectors write


@dataclass(frozen=True)
class Decoding:
    """How frame probabilities become events. Times are in seconds and rounded up to whole frames.

    A frame's call probability is that of all classes but the background, class 0. Frames at or above
    `low_threshold` in a row are a syllable if one of them reaches `threshold` (hysteresis; without
    `low_threshold` both are the same). Syllables less than `min_gap` apart are one, what is then shorter
    than `min_duration` is dropped, and those left that lie less than `call_gap` apart are one call.

    Raises ValueError for anything else than such numbers.
    """

    threshold: float = 0.5
    low_threshold: float | None = None
    min_gap: float = 0.0
    min_duration: float = 0.0
    call_gap: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():  # asdict copies what is inside, by recursion
            if not _number(value) and not (name == "low_threshold" and value is None):
                raise ValueError(f"{name} is {shown(value)}, not a number")
        low = self.threshold if self.low_threshold is None else self.low_threshold
        if not 0 < low <= self.threshold <= 1:
            raise ValueError(f"thresholds must be 0 < low <= threshold <= 1, not {low} and {self.threshold}")
        times = (self.min_gap, self.min_duration, self.call_gap)
        if min(times) < 0:
            raise ValueError("gaps and the minimum duration cannot be negative")
        if max(times) > MAX_SECONDS:
            raise ValueError(f"gaps and the minimum duration are at most {MAX_SECONDS:.0f} s")


@dataclass(frozen=True)
class Detection:
    """How the trainer of a model reads its answers: names of the classes, the background first, and the decoding.

    `labels` is empty where the classes have no names. `per`: what an answer is about, a frame or a whole "file", for which
    there is no background and nothing to decode. Raises ValueError for labels that are no text, or not of one class each.
    """

    labels: tuple[str, ...] = ()
    decoding: Decoding = field(default_factory=Decoding)
    per: str = "frame"

    def __post_init__(self):
        if isinstance(self.labels, list):
            object.__setattr__(self, "labels", tuple(self.labels))
        if not isinstance(self.labels, tuple) or not all(map(_is_label, self.labels)):
            raise ValueError(f"labels are {shown(self.labels)}, not a list of names")
        if twice := [label for label, times in Counter(self.labels).items() if times > 1]:
            raise ValueError(f"labels name two classes {shown(twice[0])}")
        if not isinstance(self.decoding, Decoding):
            raise ValueError(f"decoding is {shown(self.decoding)}, not a Decoding")
        if self.per not in ("frame", "file"):
            raise ValueError(f"an answer is per {shown(self.per)}, not per frame or file")

    def as_dict(self) -> dict[str, Any]:
        """As weight files hold it: the labels, if there are any, beside the fields of the decoding."""
        if self.per == "file":
            return {"labels": list(self.labels), "per": "file"}
        decoding = {name: value if value is None else float(value) for name, value in asdict(self.decoding).items()}
        return ({"labels": list(self.labels)} if self.labels else {}) | decoding

    @classmethod
    def from_dict(cls, stored: Any, n_classes: int | None = None) -> "Detection":
        """What `as_dict` gave, also without some of its keys. Raises ValueError, also if the labels are not of `n_classes`."""
        if not isinstance(stored, dict):
            raise ValueError(f"is {shown(stored)}, not an object of labels and decoding")
        names = {field.name for field in fields(Decoding)}
        if unknown := sorted(stored.keys() - names - {"labels", "per"}):
            raise ValueError(f"has {shown(unknown[0])}, which no decoding has")
        labels = stored.get("labels", [])
        if not isinstance(labels, list):
            raise ValueError(f"labels are {shown(labels)}, not a list of names")
        if labels and n_classes is not None and len(labels) != n_classes:
            raise ValueError(f"has labels of {len(labels)} classes, the model has {n_classes}")
        decoding = Decoding(**{name: value for name, value in stored.items() if name in names})
        return cls(tuple(labels), decoding, stored.get("per", "frame"))


def class_columns(labels: Sequence[str], own: Collection[str]) -> list[str]:
    """Names of the columns of classes in a table that has columns of its `own`: a class that is called as one of those has
    "p " before its name."""
    names: list[str] = []
    for label in labels:
        name = label
        while name in own or name != label and name in labels:
            name = f"p {name}"
        names.append(name)
    return names


def architecture(stored: Any, model: str = "denet") -> dict[str, Any]:
    """`stored` as the arguments of a model, those that it leaves out with their defaults. Raises ValueError for impossible ones.

    Of a model that has no table here only what is called as the arguments that all of ours have is checked.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"it is {shown(stored)}, not an object of arguments")
    own, defaults = OWN.get(model), DEFAULTS.get(model, {})
    if own is None:
        rules = {name: rule for name, rule in COMMON.items() if name in stored}
    else:
        rules = COMMON | own
        if unknown := sorted(stored.keys() - rules.keys()):
            raise ValueError(f"{shown(unknown[0])} is no argument")
    config = defaults | stored
    if missing := [name for name in rules if name not in config]:
        raise ValueError(f"{missing[0]} is missing")
    for name, (right, expected) in rules.items():
        if not right(config[name]):
            raise ValueError(f"{name} is {shown(config[name])}, expected {expected}")
    return config | ({"sr": int(config["sr"])} if "sr" in config else {})


def shown(value: Any, length: int = 60) -> str:
    """`value` as it can stand in a line of text for the user: one line without control characters, not longer than `length`."""
    if isinstance(value, str):
        text = repr(value[: length + 1])
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        text = f"an integer of {value.bit_length()} bits"
    elif isinstance(value, (list, tuple)) and len(value) > length:
        text = f"a list of {len(value)}"
    else:
        try:
            text = repr(value)
        except (RecursionError, ValueError):
            text = f"a {type(value).__name__}"
    return text if len(text) <= length else text[: length - 3] + "..."


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _is_label(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_LABEL:
        return False
    # Halves of a character are no UTF-8; a carriage return ends a line of a table where that is read, and is not quoted there.
    return not any("\ud800" <= character <= "\udfff" or character == "\r" for character in value)


def _count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _counts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and 0 < len(value) <= 100 and all(map(_count, value))


def _pair(value: Any) -> bool:
    return _counts(value) and len(value) == 2


def _shape(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) not in (2, 3) or not all(map(_count, value)):
        return False
    return tuple(value[2:]) in ((), (1,)) and value[0] <= MAX_FRAMES and value[0] * value[1] <= MAX_SAMPLES


def _rate(value: Any) -> bool:
    return _number(value) and value == int(value) and RATES[0] <= value <= RATES[1]


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value < 1


def _flag(value: Any) -> bool:
    return type(value) is bool


MAX_FRAMES, MAX_SAMPLES = 100_000, 2**27  # of a sequence
FLAG = (_flag, "true or false")
COUNT = (_count, "a whole number above 0")
COUNTS = (_counts, "whole numbers above 0")
# Argument of a model -> (whether a value can be it, what is expected)
COMMON = {
    "input_shape": (_shape, f"[seq_len, samples, 1] of at most {MAX_FRAMES} frames and {MAX_SAMPLES} samples"),
    "n_classes": COUNT,
    "sr": (_rate, f"whole Hz from {RATES[0]} to {RATES[1]}"),
}
OWN = {
    "denet": {
        "before_pooling": FLAG,
        "dropout": (_share, "a number from 0 to below 1"),
        "train_attention": FLAG,
        "attention_dropout": FLAG,
        "n_filters": COUNT,
        "gru_units": COUNT,
        "dense_units": (_pair, "two whole numbers above 0"),
    },
    "sincnet": {"n_filters": COUNTS, "taps": COUNTS, "hidden": COUNTS},
    "boxes": {"columns": COUNT, "rows": COUNT, "channels": COUNT},
}
DEFAULTS = {
    "denet": {
        "sr": 16000,
        "before_pooling": True,
        "dropout": 0.3,
        "train_attention": True,
        "attention_dropout": False,
        "n_filters": 80,
        "gru_units": 2048,
        "dense_units": [1024, 512],
    },
}
