"""TensorFlow checkpoints (FILE.index beside FILE.data-...) and SavedModel folders of `reference_tf`, read by TensorFlow.

Only variables are read; no graph is loaded or run.
"""

import math
from pathlib import Path

from . import Weights, WeightsError
from .architecture import check_types
from .files import existing, line
from .names import ATTENTION, NAMES, PORT_NAMES, transposed

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
NO_WEIGHTS = ("optimizer", "save_counter", "keras_api")  # what may lie beside a model's layers
STATE = ("biased_mean", "biased_variance", "local_step")  # training state of a BatchNorm


def read_checkpoint(path: Path) -> Weights:
    """Weights of the checkpoint whose index file is `path`. Raises WeightsError."""
    return _read(path, existing(path))


def read_saved_model(path: Path) -> Weights:
    """Weights of the SavedModel folder `path`. Raises WeightsError."""
    if not (path / "saved_model.pb").is_file():
        raise WeightsError(f"{path}: is a folder without saved_model.pb, so no SavedModel")
    return _read(path, existing(path / "variables" / "variables.index"))


def _read(path: Path, index: Path) -> Weights:
    import tensorflow as tf

    prefix = index.with_suffix("")
    size = sum(part.stat().st_size for part in index.parent.iterdir() if part.name.startswith(f"{prefix.name}.data-"))
    weights = Weights(path, {}, {})
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        kinds, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
        for name, origin in _places(path, shapes).items():
            if math.prod(shapes[origin]) * kinds[origin].size > size:
                raise WeightsError(f"{path}: {origin} is {tuple(shapes[origin])}, more than the file holds")
            weights.tensors[name], weights.origin[name] = transposed(name, reader.get_tensor(origin)), origin
    except (tf.errors.OpError, ValueError, RuntimeError, TypeError, IndexError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: cannot be read as a TensorFlow checkpoint ({line(error)})") from None
    check_types(weights)
    return weights


def _places(path: Path, origins: dict) -> dict[str, str]:
    """{name here: name in the checkpoint}; Keras's `export` numbers the variables, every other way of saving names them."""
    if f"variables/0{SUFFIX}" in origins:
        count = sum(origin.startswith("variables/") for origin in origins)
        names = NAMES if count == len(NAMES) else [name for name in NAMES if name not in ATTENTION]
        if count != len(names):
            raise WeightsError(f"{path}: has {count} variables; DENet has {len(NAMES)}")
        return {name: f"variables/{i}{SUFFIX}" for i, name in enumerate(names)}
    first = f"sinc/filt_b1{SUFFIX}"
    prefixes = [origin.removesuffix(first) for origin in origins if origin.endswith(first)]
    if len(prefixes) != 1:
        raise WeightsError(f"{path}: holds {len(prefixes)} DENets; expected one")
    found = {}
    for origin in origins:
        inner = origin.removeprefix(prefixes[0])
        if not origin.startswith(prefixes[0]) or not origin.endswith(SUFFIX) or ".OPTIMIZER_SLOT" in origin:
            continue
        parts = inner.removesuffix(SUFFIX).split("/")
        if parts[0] in NO_WEIGHTS or parts[-1] in STATE:
            continue
        if "/".join(parts) not in PORT_NAMES:
            raise WeightsError(f"{path}: {origin} is no weight of a DENet")
        found[PORT_NAMES["/".join(parts)]] = origin
    return {name: found[name] for name in NAMES if name in found}
