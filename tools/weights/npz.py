"""Our .npz: Keras's layout, names like "attention/conv1/kernel" (see `keras224_export`), DENet's arguments as JSON in "config".

Other .npz files can supply the attention: twelve arrays "attention/...", or arr_0 to arr_11, in Keras's order.
"""

import io
import json
import math
from pathlib import Path

import numpy as np

from denet_torch.architecture import ATTENTION, NAMES, PORT_NAMES, keras_name, transposed

from . import Weights, WeightsError
from .architecture import check_types, facts
from .files import line, parsed, unzip

MAX_MEMBERS = 1000  # DENet has 36


def read_npz(path: Path) -> Weights:
    """Weights of an .npz that `keras224_export.export` or `write_npz` wrote. Raises WeightsError."""
    arrays = read_arrays(path)
    known, recorded = _known(path, arrays), _recorded(arrays)
    detection = _text(path, "detection", arrays["detection"]) if "detection" in arrays else ""
    arrays = {name: array for name, array in arrays.items() if name not in ("config", "detection", "x", "y")}
    if unknown := [name for name in arrays if name not in PORT_NAMES]:
        raise WeightsError(f"{path}: {unknown[0]} is no weight of a DENet")
    weights = Weights(path, {}, {}, known, recorded=recorded, detection=detection)
    for origin, array in arrays.items():
        name = PORT_NAMES[origin]
        weights.tensors[name], weights.origin[name] = transposed(name, array), origin
    if not arrays:
        raise WeightsError(f"{path}: holds no weights")
    check_types(weights)
    return weights


def read_attention_npz(path: Path) -> Weights:
    """The attention's weights in an .npz, which may hold other things too. Raises WeightsError."""
    arrays = read_arrays(path)
    found = {name: array for name, array in arrays.items() if name.startswith("attention/") and array.size}
    positional = [f"arr_{i}" for i in range(len(ATTENTION))]  # np.savez(FILE, *network.get_weights())
    if not found and set(positional) == {name for name in arrays if name.startswith("arr_")}:
        found = {name: arrays[name] for name in positional}
    if len(found) != len(ATTENTION):
        raise WeightsError(f'{path}: has {len(found)} arrays named "attention/..."; the attention network has {len(ATTENTION)}')
    if set(found) == {keras_name(name) for name in ATTENTION}:
        found = {keras_name(name): found[keras_name(name)] for name in ATTENTION}
    weights = Weights(path, {}, {}, _known(path, arrays), recorded=_recorded(arrays))
    for name, (origin, array) in zip(ATTENTION, found.items(), strict=True):
        weights.tensors[name], weights.origin[name] = transposed(name, array), origin
    check_types(weights)
    if weights.recorded:
        weights.known = {"seq_len": arrays["x"].shape[1], "samples": arrays["x"].shape[2]} | weights.known
    return weights


def write_npz(tensors: dict[str, np.ndarray], config: dict, path: Path, detection: str = "") -> None:
    """Every weight and the architecture; `keras224_export.restore` puts them into a live original model."""
    arrays = {keras_name(name): transposed(name, tensors[name]) for name in NAMES}
    texts = {"config": json.dumps(config)} | ({"detection": detection} if detection else {})
    with open(path, "wb") as file:
        np.savez(file, **{name: np.array(text) for name, text in texts.items()}, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of plain numbers and text in an .npz, none larger than its bytes in the file. Raises WeightsError."""
    arrays, members = {}, unzip(path)
    if len(members) > MAX_MEMBERS:
        raise WeightsError(f"{path}: holds {len(members)} arrays, which no model has")
    for member, data in members.items():
        name, buffer = member.removesuffix(".npy"), io.BytesIO(data)
        try:
            version = np.lib.format.read_magic(buffer)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(buffer)
        except (ValueError, EOFError, SyntaxError, RecursionError, MemoryError) as error:
            raise WeightsError(f"{path}: {name} is not a numpy array ({line(error)})") from None
        if dtype.kind not in "fiubU":
            raise WeightsError(f"{path}: {name} is {dtype}, not numbers or text")
        if len(shape) > 8 or any(type(size) is not int or size >= 2**31 for size in shape):
            raise WeightsError(f"{path}: {name[:80]} says that it is {str(shape)[:80]}, which no weight is")
        count = math.prod(shape)
        if min(shape, default=0) < 0 or count * dtype.itemsize != len(data) - buffer.tell():
            raise WeightsError(f"{path}: {name} says that it is {shape}, but its bytes are fewer or more")
        if name in arrays:
            raise WeightsError(f"{path}: holds {name} twice")
        try:
            array = np.frombuffer(data, dtype, count, buffer.tell()) if count else np.empty(0, dtype)
            arrays[name] = array.reshape(shape, order="F" if fortran else "C")
        except ValueError as error:  # elements of no bytes, or axes that are too long together
            raise WeightsError(f"{path}: {name} is {shape} of {dtype} ({line(error)})") from None
    return arrays


def _text(path: Path, name: str, array: np.ndarray) -> str:
    """The one text that an array is. Raises WeightsError."""
    try:
        text = array.item()  # ValueError for several, and for numbers that are no letters
        if isinstance(text, str):
            return text
    except (ValueError, SystemError):
        pass
    raise WeightsError(f"{path}: {name} is {array.dtype} {array.shape}, not a text")


def _recorded(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    x, y = arrays.get("x"), arrays.get("y")
    fits = x is not None and y is not None and x.ndim == 4 and y.ndim == 3 and x.shape[:2] == y.shape[:2] and x.size and y.size
    return (x, y) if fits and x.shape[3] == 1 and {x.dtype.kind, y.dtype.kind} == {"f"} else None


def _known(path: Path, arrays: dict[str, np.ndarray]) -> dict:
    if "config" not in arrays:
        return {}
    return facts(path, parsed(path, _text(path, "config", arrays["config"]), "config"))
