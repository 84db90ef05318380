"""What a file is, told by its bytes: people name files as they like, and Keras let them."""

import zipfile
from pathlib import Path

from denet_torch.files import open_zip

from . import WeightsError
from .files import GZIP, existing, line

HDF5, ZIP = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04"
TABLE = bytes.fromhex("57fb808b247547db")  # the end of a checkpoint's index, a LevelDB table
GRAPH = b"\x0a"  # protobuf: a GraphDef begins with its first node
OLDER_TORCH = b"\x80"  # a pickle


def contents(path: Path) -> str:
    """The key of `convert.READERS` for `path`. Raises WeightsError if it is nothing that can be read."""
    if path.is_dir():
        return "folder"
    size = existing(path).stat().st_size
    with open(path, "rb") as file:
        head = file.read(16)
        file.seek(max(0, size - len(TABLE)))
        tail = file.read()
    if head.startswith((HDF5, GZIP)):
        return "HDF5"
    if head.startswith(ZIP):
        return _archive(path)
    if tail == TABLE:
        return "checkpoint"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size:
        return "safetensors"
    if head.startswith(GRAPH) and _is_node(head, size):  # TensorFlow takes seconds and half a gigabyte to say no
        return "graph"
    if head.startswith(OLDER_TORCH):
        raise WeightsError(f"{path}: is a pickle, which can run code and is not read; torch.save writes an archive today")
    known = "HDF5, .keras, .npz, .safetensors, .pt, a TensorFlow checkpoint, frozen graph or SavedModel"
    raise WeightsError(f"{path}: is damaged, or none of {known}")


def _is_node(head: bytes, size: int) -> bool:
    """Whether a field of protobuf follows that fits into a file of `size` bytes and begins with a node's name."""
    length = 0
    for place, byte in enumerate(head[1:11], 2):
        length |= (byte & 0x7F) << 7 * (place - 2)
        if byte < 0x80:
            return place + length <= size and head[place : place + 1] == GRAPH
    return False


def _archive(path: Path) -> str:
    try:
        with open_zip(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"{path}: cannot be read as a zip archive ({line(error)})") from None
    if "model.weights.h5" in names or "config.json" in names:
        return "keras"
    if any(name.endswith("data.pkl") for name in names):
        return "torch"
    if any(name.endswith((".pt", "models/model.json")) for name in names):
        raise WeightsError(f"{path}: is a torch.export program, which is written and not read")
    return "npz"
