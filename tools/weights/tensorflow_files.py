"""TensorFlow checkpoints (FILE.index beside FILE.data-...) and SavedModel folders of `reference_tf`, read by TensorFlow.

Only variables are read; no graph is loaded or run.
"""

from pathlib import Path

from . import Weights, WeightsError
from .architecture import check_types
from .files import existing, line
from .names import NAMES, PORT_NAMES, transposed

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def read_checkpoint(path: Path) -> Weights:
    """Weights of the checkpoint whose index file is `path`. Raises WeightsError."""
    return _weights(path, existing(path))


def read_saved_model(path: Path) -> Weights:
    """Weights of the SavedModel folder `path`. Raises WeightsError."""
    return _weights(path, existing(path / "variables" / "variables.index"))


def _weights(path: Path, index: Path) -> Weights:
    try:
        import tensorflow as tf
    except ImportError:
        raise WeightsError(f"{path}: needs TensorFlow to be read (pip install 'denet-torch[tensorflow]')") from None
    prefix = index.with_suffix("")
    weights, size = Weights(path, {}, {}), sum(part.stat().st_size for part in prefix.parent.glob(f"{prefix.name}.data-*"))
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        kinds = reader.get_variable_to_dtype_map()
        for origin, shape in sorted(reader.get_variable_to_shape_map().items()):
            name = _port_name(origin)
            if name is None:
                continue
            if name in weights.tensors:
                raise WeightsError(f"{path}: {origin} and {weights.origin[name]} are the same weight")
            count = 1
            for n in shape:
                count *= n
            if count * kinds[origin].size > size:
                raise WeightsError(f"{path}: {origin} is {tuple(shape)}, more than the file holds")
            weights.tensors[name], weights.origin[name] = transposed(name, reader.get_tensor(origin)), origin
    except (tf.errors.OpError, ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: cannot be read as a TensorFlow checkpoint ({line(error)})") from None
    if not weights.tensors:
        raise WeightsError(f"{path}: holds no weights of a DENet")
    weights.tensors = {name: weights.tensors[name] for name in NAMES if name in weights.tensors}
    check_types(weights)
    return weights


def _port_name(origin: str) -> str | None:
    """"model/conv1/kernel/.ATTRIBUTES/VARIABLE_VALUE" -> "conv1.weight"; None for what is no weight of the model."""
    if not origin.endswith(SUFFIX) or ".OPTIMIZER_SLOT" in origin:
        return None
    parts = origin.removesuffix(SUFFIX).split("/")
    return next((PORT_NAMES[name] for i in range(len(parts)) if (name := "/".join(parts[i:])) in PORT_NAMES), None)
