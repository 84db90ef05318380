"""TensorFlow checkpoints (FILE.index beside FILE.data-...), SavedModel folders and frozen graphs, read by TensorFlow.

Of `reference_tf`, of the original in TensorFlow 1, or in tf.keras. Only variables and constants are read; no graph is loaded
or run.
"""

import faulthandler
import math
import os
from pathlib import Path

from denet_torch.architecture import ATTENTION, NAMES, PORT_NAMES, transposed

from . import Weights, WeightsError
from .architecture import check_types
from .files import MAX_RATIO, child_process, existing, line
from .keras_layers import LEAVES, assign, in_order, leaf_of

PATIENCE = 300  # s that a busy machine may take to load TensorFlow, or to read a weight
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
NO_WEIGHTS = ("optimizer", "save_counter", "keras_api")  # what may lie beside a model's layers
STATE = ("biased_mean", "biased_variance", "local_step")  # training state of a BatchNorm


def read_checkpoint(path: Path) -> Weights:
    """Weights of the checkpoint whose index file is `path`. Raises WeightsError."""
    if path.suffix != ".index":
        raise WeightsError(f"{path}: is a checkpoint's index, whose name has to end in .index, beside its .data file")
    return _read(path, existing(path))


def read_folder(path: Path) -> Weights:
    """Weights of a SavedModel folder or of a folder with one checkpoint. Raises WeightsError."""
    if (path / "saved_model.pb").is_file():
        return _read(path, existing(path / "variables" / "variables.index"))
    found = sorted(path.glob("*.index"))
    if len(found) != 1:
        raise WeightsError(f"{path}: is a folder without saved_model.pb and with {len(found)} checkpoints (.index); name a file")
    return _read(found[0], existing(found[0]))


def read_frozen(path: Path) -> Weights:
    """Weights of a frozen graph (its variables are constants), which is parsed and not loaded. Raises WeightsError."""
    data = existing(path).read_bytes()
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import graph_pb2

    try:
        graph = graph_pb2.GraphDef.FromString(data)
    except (DecodeError, RuntimeError) as error:
        raise WeightsError(f"{path}: cannot be read as a TensorFlow graph ({line(error)})") from None
    nodes = [node for node in graph.node if node.op == "Const" and leaf_of(node.name) in LEAVES]
    constants = {node.name: node.attr["value"].tensor for node in nodes}
    if not constants:
        raise WeightsError(f"{path}: is no weight file, nor a frozen graph that holds weights by their names")
    weights = Weights(path, {}, {})
    for name, origin in assign(path, sorted(constants, key=in_order)).items():
        tensor = constants[origin]
        shape = [axis.size for axis in tensor.tensor_shape.dim]
        if min(shape, default=0) < 0 or 8 * math.prod(shape) > MAX_RATIO * len(data):
            raise WeightsError(f"{path}: {origin} is {tuple(shape)}, more than the file holds")
        try:
            array = tf.make_ndarray(tensor)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WeightsError(f"{path}: {origin} cannot be read ({line(error)})") from None
        weights.tensors[name], weights.origin[name] = transposed(name, array), origin
    weights.tensors = {name: weights.tensors[name] for name in NAMES if name in weights.tensors}
    check_types(weights)
    return weights


def _read(path: Path, index: Path) -> Weights:
    """Weights of a checkpoint, which TensorFlow sees in a child process alone: some damaged ones end its process."""
    prefix = index.with_suffix("")
    size = sum(part.stat().st_size for part in index.parent.iterdir() if part.name.startswith(f"{prefix.name}.data-"))
    weights = Weights(path, {}, {})
    with child_process(_report, path, str(prefix), size) as receiver:
        try:
            while (answer := receiver.recv() if receiver.poll(PATIENCE) else EOFError()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                name, weights.origin[name], weights.tensors[name] = answer
        except EOFError:  # TensorFlow has ended it
            raise WeightsError(f"{path}: cannot be read as a TensorFlow checkpoint (its index is damaged)") from None
    check_types(weights)
    return weights


def _report(path: Path, prefix: str, size: int, sender) -> None:
    """Send (name, origin, array) of each weight, then None; or the error, once."""
    faulthandler.disable()  # a crash here is an answer, not an accident
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what TensorFlow says before it ends the process
    try:
        import tensorflow as tf

        try:
            reader = tf.train.load_checkpoint(prefix)
            kinds, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
            for name, origin in _places(path, shapes).items():
                if math.prod(shapes[origin]) * kinds[origin].size > size:
                    raise WeightsError(f"{path}: {origin} is {tuple(shapes[origin])}, more than the file holds")
                sender.send((name, origin, transposed(name, reader.get_tensor(origin))))
            sender.send(None)
        except (tf.errors.OpError, ValueError, RuntimeError, TypeError, IndexError, OverflowError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{path}: cannot be read as a TensorFlow checkpoint ({line(error)})") from None
    except (WeightsError, ImportError) as error:
        sender.send(error)


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
    if not prefixes:
        return _keras_places(path, origins)
    if len(prefixes) > 1:
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


def _keras_places(path: Path, origins: dict) -> dict[str, str]:
    """The same for the original: variables by their names in the graph (TensorFlow 1's Saver, simple_save), or by their
    places in a tf.keras model's layers. What else lies in a session, such as an optimizer's slots, is left out."""
    names = {}
    for origin in origins:
        name = origin.removesuffix(SUFFIX)
        if name.split("/")[0] not in NO_WEIGHTS and ".OPTIMIZER_SLOT" not in name and leaf_of(name) in LEAVES:
            names[name] = origin
    if not names:
        raise WeightsError(f"{path}: holds no DENet")
    found = assign(path, sorted(names, key=in_order))
    return {name: names[found[name]] for name in NAMES if name in found}
