"""Reading HDF5 files that nobody vouches for.

The HDF5 library crashes or loops on some damaged files. It therefore sees a file only in a child process with little time,
which reports where each dataset's bytes lie; the bytes themselves are taken from the file as they are. Links that leave the
file, external storage, filters (which may load plug-ins) and anything else that Keras does not write are refused.
"""

import faulthandler
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from . import WeightsError
from .files import child_process, line

SECONDS = 2  # of computing; the structure of a whole model takes 0.01 s
PATIENCE = 30  # s that a busy machine may take over them
MEMORY = 128 << 20  # bytes that the child may take
MAX_ATTRIBUTE = 1 << 20  # bytes
MAX_OBJECTS, MAX_DEPTH = 10_000, 20
OPTIMIZERS = ("optimizer_weights", "optimizer")  # Keras keeps their state beside the weights; it is not looked into
DTYPES = {"<f4": h5py.h5t.IEEE_F32LE, "<f8": h5py.h5t.IEEE_F64LE}


@dataclass
class Tree:
    """`datasets` by path, as read-only arrays over the file's bytes, and the attributes of the root ("") and of each group."""

    datasets: dict[str, np.ndarray]
    attributes: dict[str, dict]


def read_tree(path: Path, data: bytes) -> Tree:
    """The groups, attributes and datasets of the HDF5 file `data`. Raises WeightsError naming `path`."""
    if not data.startswith(b"\x89HDF\r\n\x1a\n"):
        raise WeightsError(f"{path}: is not an HDF5 file")
    with child_process(_report, data) as receiver:
        try:
            answer = receiver.recv() if receiver.poll(PATIENCE) else "its structure is damaged"
        except EOFError:  # the library crashed
            answer = "its structure is damaged"
    if isinstance(answer, str):
        raise WeightsError(f"{path}: cannot be read as HDF5 ({answer})")
    places, attributes = answer
    datasets, end = {}, 0
    for name, (shape, dtype, offset) in sorted(places.items(), key=lambda place: place[1][2]):
        count = math.prod(shape)
        if offset + count * np.dtype(dtype).itemsize > len(data):
            raise WeightsError(f"{path}: {name} is {tuple(shape)}, more than the file holds")
        if offset < end:
            raise WeightsError(f"{path}: {name} shares its bytes with another dataset")
        datasets[name] = np.frombuffer(data, dtype, count, offset).reshape(shape)
        end = offset + datasets[name].nbytes
    return Tree(datasets, attributes)


@contextmanager
def writing(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file; OSError where the disk is full, of which the library itself does not recover."""
    with FailsLater(path, "w+") as raw:
        try:
            with h5py.File(raw, "w") as file:
                yield file
        finally:
            if raw.error is not None:
                raise raw.error


class FailsLater(io.FileIO):
    """A file whose first error of writing is kept in `error`; from then on it takes what is written and drops it."""

    error: OSError | None = None

    def write(self, data) -> int:
        size = len(data)
        try:
            while len(data) and self.error is None:
                data = data[super().write(data) :]
        except OSError as error:
            self.error = error
        return size


def _report(data: bytes, sender) -> None:
    faulthandler.disable()  # a crash here is an answer, not an accident
    _limit()
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            answer = _index(file)
    except Exception as error:  # whatever the library makes of a damaged file
        answer = line(error)
    sender.send(answer)


def _limit() -> None:
    """Bound what this process may compute and take from here on, where the system can."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    except (ImportError, OSError, ValueError):  # not Linux
        pass


def _index(file: h5py.File) -> tuple[dict, dict]:
    """({dataset: (shape, dtype, offset in the file)}, {group: {attribute: value}})"""
    places, attributes, pending, seen = {}, {"": _attributes(file)}, [("", file, 0)], 0
    while pending:
        prefix, group, depth = pending.pop()
        for key in group:
            seen += 1
            if seen > MAX_OBJECTS or depth > MAX_DEPTH:
                raise ValueError("its groups are too many or too deep")
            name = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{name} is a link to another place; only the file itself is read")
            item = group[key]
            if isinstance(item, h5py.Group):
                attributes[name] = _attributes(item)
                if name not in OPTIMIZERS:
                    pending.append((f"{name}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                places[name] = _place(name, item)
            else:
                raise ValueError(f"{name} is neither a group nor a dataset")
    return places, attributes


def _attributes(group: h5py.Group) -> dict:
    values = {}
    for key in ("layer_names", "weight_names", "backend", "keras_version", "model_config"):
        if key in group.attrs:
            attribute = group.attrs.get_id(key)
            if math.prod(attribute.shape) * attribute.get_type().get_size() > MAX_ATTRIBUTE:
                raise ValueError(f"the attribute {key} is too large")
            value = group.attrs[key]
            texts = [text for text in np.asarray(value).ravel().tolist() if isinstance(text, (bytes, str))]
            if sum(map(len, texts)) > MAX_ATTRIBUTE:  # many texts may be one and the same in the file
                raise ValueError(f"the attribute {key} is too large")
            if key.endswith("_names"):
                values[key] = [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(value).ravel().tolist()]
            else:
                values[key] = value.decode() if isinstance(value, bytes) else str(value)
    return values


def _place(name: str, dataset: h5py.Dataset) -> tuple:
    creation = dataset.id.get_create_plist()
    if creation.get_external_count():
        raise ValueError(f"{name} is stored outside the file")
    if creation.get_layout() != h5py.h5d.CONTIGUOUS:
        raise ValueError(f"{name} is not stored in one piece, as Keras stores weights")
    kinds = [kind for kind, stored in DTYPES.items() if dataset.id.get_type() == stored]
    if not kinds:
        raise ValueError(f"{name} is {dataset.dtype}; expected float32 or float64")
    if dataset.id.get_offset() is None or dataset.id.get_storage_size() != dataset.nbytes:
        raise ValueError(f"{name} is {dataset.shape}, which is not what the file holds of it")
    return dataset.shape, kinds[0], dataset.id.get_offset()
