"""Two thousand damaged files, drawn from seeds: each ends in one clear error, soon, in little memory, and leaves nothing behind.

A damage that turns out to change nothing (a flipped bit in bytes that no reader looks at) is drawn again, and so is one that HDF5
cannot show: a bit of the address where a weight's bytes lie, after which the file is a whole one that holds other numbers.
"""

import functools
import gzip
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import struct
import sys
import time
import zipfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
from weight_cases import SMALL, draw_tensors, same, whole_files

from denet_torch.architecture import keras_name, transposed
from tools.weights import Weights, WeightsError, hdf5, npz, safetensors_file, tensorflow_files
from tools.weights.convert import convert, read

HDF5 = (".h5", ".weights.h5")
COUNTS = {  # 2,000 in all; those of .pt and of checkpoints, which load PyTorch and TensorFlow, apart
    "truncated": 300,
    "flipped": 500,
    "shape": 200,
    "dtype": 150,
    "missing": 150,
    "extra": 100,
    "not finite": 150,
    "statements": 60,
    "declared": 40,
    "links": 60,
    "storage": 50,
    "objects": 20,
    "bomb": 20,
}
TORCH_COUNTS = {"pt": 100}
TENSORFLOW_COUNTS = {"checkpoint": 100}
CANARY = "executed"


def flip(rng: random.Random, data: bytes, places: list[int] | range) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.choice(places)] ^= 1 << rng.randrange(8)
    return bytes(data)


@functools.cache
def structure(data: bytes) -> list[int]:
    """Where an HDF5 file has something else than weights and padding."""
    mask = np.frombuffer(data, np.uint8) != 0
    with h5py.File(io.BytesIO(data)) as file:
        for dataset in datasets(file).values():
            mask[dataset.id.get_offset() :][: dataset.nbytes] = False
    return np.flatnonzero(mask).tolist()


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def edited_hdf5(data: bytes, edit) -> bytes:
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        edit(file)
    return buffer.getvalue()


def edited_zip(data: bytes, edit) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def edited_arrays(ending: str, data: bytes, edit) -> bytes:
    """A file whose weights, as they are stored, `edit` has changed; its other contents and checksums are right."""
    if ending in HDF5:

        def change(file):
            arrays = {name: dataset[()] for name, dataset in datasets(file).items()}
            old = dict(arrays)
            edit(arrays)
            for name in old.keys() | arrays.keys():
                if name not in arrays or old.get(name) is not arrays[name]:
                    if name in file:
                        del file[name]
                    if name in arrays:
                        file[name] = arrays[name]

        return edited_hdf5(data, change)
    if ending == ".keras":
        key = "model.weights.h5"
        return edited_zip(data, lambda members: members.update({key: edited_arrays(".h5", members[key], edit)}))
    buffer = io.BytesIO()
    if ending == ".npz":
        with np.load(io.BytesIO(data)) as file:
            config, arrays = file["config"], {name: file[name] for name in file if name != "config"}
        edit(arrays)
        np.savez(buffer, config=config, **arrays)
        return buffer.getvalue()
    arrays = safetensors.numpy.load(data)
    text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["denet"]
    edit(arrays)
    metadata = {"denet": text, "sha256": safetensors_file.checksum(text, arrays)}
    return safetensors.numpy.save(arrays, metadata)


def drawn_name(rng: random.Random, arrays: dict) -> str:
    return rng.choice(sorted(arrays))


def wrong_shape(rng: random.Random, arrays: dict) -> None:
    name = drawn_name(rng, arrays)
    array = arrays[name]
    arrays[name] = rng.choice(
        [
            lambda: np.concatenate([array, array[:1]]),
            lambda: array[:-1],
            lambda: array[None],
            lambda: array.reshape(-1, 1),
            lambda: np.zeros((0, *array.shape[1:]), array.dtype),
            lambda: np.array(1, array.dtype),
            lambda: np.zeros((2, *array.shape), array.dtype),
        ]
    )()
    if arrays[name].shape == array.shape:
        arrays[name] = np.zeros(7919, array.dtype)


def wrong_type(rng: random.Random, arrays: dict) -> None:
    name = drawn_name(rng, arrays)
    arrays[name] = arrays[name].astype(rng.choice(["float64", "float16", "int32", "int64", "uint8", "bool"]))


def not_finite(rng: random.Random, arrays: dict) -> None:
    name = drawn_name(rng, arrays)
    arrays[name] = arrays[name].copy()
    arrays[name].flat[rng.randrange(arrays[name].size)] = rng.choice([np.nan, np.inf, -np.inf])


def extra_weight(rng: random.Random, arrays: dict) -> None:
    name = drawn_name(rng, arrays)
    new = name + str(rng.randrange(10)) if rng.random() < 0.5 else f"dense{rng.randrange(4, 99)}/kernel"
    arrays[new] = arrays[name].copy()


class Bomb:
    """What a pickle may do when it is loaded."""

    def __init__(self, folder: Path):
        self.command = f"touch {folder / CANARY}"

    def __reduce__(self):
        return os.system, (self.command,)


def links(rng: random.Random, folder: Path, bases: dict[str, bytes]) -> tuple[str, bytes]:
    """An HDF5 file some of whose contents lie elsewhere: in a pipe, which a reader would wait for."""
    pipe = folder / "outside.h5"
    if not pipe.exists():
        os.mkfifo(pipe)
    ending = rng.choice(HDF5)

    def edit(file):
        name = rng.choice(sorted(datasets(file)))
        dataset = file[name]
        shape, place = dataset.shape, rng.choice(["external", "soft", "storage", "virtual", "group", "loop"])
        if place == "loop":
            file[f"{name.split('/')[0]}/again"] = file["/"]
            return
        del file[name]
        if place == "external":
            file[name] = h5py.ExternalLink(str(pipe), name)
        elif place == "soft":
            file[name] = h5py.SoftLink(rng.choice(sorted(datasets(file))))
        elif place == "storage":
            file.create_dataset(name, shape, "f4", external=[(str(pipe), 0, int(np.prod(shape)) * 4)])
        elif place == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(str(pipe), name, shape)
            file.create_virtual_dataset(name, layout)
        else:
            file[name.split("/")[0] + "x"] = h5py.ExternalLink(str(pipe), "/")
            file[name] = np.zeros(shape, "f4")

    return ending, edited_hdf5(bases[ending], edit)


def storage(rng: random.Random, bases: dict[str, bytes]) -> tuple[str, bytes]:
    """An HDF5 file with a dataset that is packed, in chunks, huge and empty, of references or of text."""
    ending = rng.choice(HDF5)

    def edit(file):
        name = rng.choice(sorted(datasets(file)))
        values = file[name][()]
        del file[name]
        how = rng.choice(["packed", "chunks", "huge", "references", "text", "big-endian", "group"])
        if how == "packed":
            file.create_dataset(name, data=values, compression="gzip")
        elif how == "chunks":
            file.create_dataset(name, data=values, chunks=values.shape)
        elif how == "huge":
            file.create_dataset(name, (1 << rng.randrange(20, 40), *values.shape[1:]), "f4")
        elif how == "references":
            file.create_dataset(name, (3,), h5py.ref_dtype)
        elif how == "text":
            file[name] = np.array([b"weights"] * 3)
        elif how == "big-endian":
            file[name] = values.astype(">f4")
        else:
            file.create_group(name)

    return ending, edited_hdf5(bases[ending], edit)


def declared(rng: random.Random, bases: dict[str, bytes]) -> tuple[str, bytes]:
    """A file whose header promises more than there is."""
    size = 10 ** rng.randrange(6, 18)
    if rng.random() < 0.5:
        header = {"__metadata__": {"denet": "{}", "sha256": ""}, "conv1.bias": {"dtype": "F32", "shape": [size]}}
        header["conv1.bias"]["data_offsets"] = [0, 4 * size]
        text = json.dumps(header).encode()
        length = len(text) if rng.random() < 0.5 else size
        return ".safetensors", length.to_bytes(8, "little") + text + bytes(400)

    def edit(members):
        name = rng.choice(sorted(name for name in members if name != "config.npy"))
        buffer = io.BytesIO()
        shape = rng.choice([(size,), (size, size), (-1,), (1 << 62, 4)])
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
        members[name] = buffer.getvalue() + bytes(400)

    return ".npz", edited_zip(bases[".npz"], edit)


def statements(rng: random.Random, bases: dict[str, bytes]) -> tuple[str, bytes]:
    """A file that states an architecture that it does not have, or none that can be."""
    ending = rng.choice([".safetensors", ".npz", ".keras", ".h5"])
    key = rng.choice(["n_classes", "gru_units", "n_filters", "before_pooling", "input_shape", "dense_units"])
    value = rng.choice([-1, 0, 10**12, 77, "many", None, [1], {"a": 1}, 1e400, [4, 7919, 1]])
    config = {**SMALL, key: value}
    garbage = rng.choice(["", "{", "[1]", "[" * 100_000, "null", '"x"', "\\ud800"])
    text = json.dumps(config) if rng.random() < 0.7 else garbage
    if ending == ".h5":
        return ending, edited_hdf5(bases[ending], lambda file: file.attrs.update({"model_config": garbage[:1000] or "{"}))
    if ending == ".keras":
        wrapped = json.dumps({"config": config}) if text != garbage else garbage
        return ending, edited_zip(bases[ending], lambda members: members.update({"config.json": wrapped}))
    if ending == ".npz":

        def edit(members):
            buffer = io.BytesIO()
            np.save(buffer, np.array(text))
            members["config.npy"] = buffer.getvalue()

        return ending, edited_zip(bases[ending], edit)
    arrays = safetensors.numpy.load(bases[ending])
    return ending, safetensors.numpy.save(arrays, {"denet": text, "sha256": safetensors_file.checksum(text, arrays)})


def objects(rng: random.Random, folder: Path, bases: dict[str, bytes]) -> tuple[str, bytes]:
    """A pickle that runs a command, where weights are expected."""
    evil = pickle.dumps(Bomb(folder), protocol=rng.randrange(5))
    if rng.random() < 0.3:
        return rng.choice(list(bases)), evil
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(folder)] * 3, dtype=object), allow_pickle=True)
    member = rng.choice(["conv1/bias.npy", "config.npy", "x.npy", "attention/dense1/kernel.npy"])
    return ".npz", edited_zip(bases[".npz"], lambda members: members.update({member: rng.choice([buffer.getvalue(), evil])}))


def bomb(rng: random.Random, bases: dict[str, bytes]) -> tuple[str, bytes]:
    """A small file that unpacks to a large one."""
    zeros, ending = bytes(rng.randrange(20, 60) << 20), rng.choice([".keras", ".npz", ".h5.gz"])
    if ending == ".h5.gz":
        return ending, gzip.compress(bases[".h5"] + zeros, compresslevel=1)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if ending == ".keras":
            archive.writestr("config.json", json.dumps({"config": SMALL}))
            archive.writestr("model.weights.h5", zeros)
        else:
            archive.writestr("conv1/bias.npy", zeros)
    return ending, buffer.getvalue()


def damaged(kind: str, seed: int, folder: Path, bases: dict[str, bytes]) -> tuple[str, bytes]:
    """(ending, contents) of the damaged file that this seed draws."""
    rng = random.Random(f"{kind} {seed}")
    ending = rng.choice(list(bases))
    data = bases[ending]
    match kind:
        case "truncated":
            return ending, data[: rng.choice([0, 1, rng.randrange(len(data)), rng.randrange(len(data)), len(data) - 1])]
        case "flipped":
            return ending, flip(rng, data, structure(data) if ending in HDF5 else range(len(data)))
        case "shape" | "dtype" | "not finite" | "extra" | "missing":
            edit = {
                "shape": wrong_shape,
                "dtype": wrong_type,
                "not finite": not_finite,
                "extra": extra_weight,
                "missing": lambda rng, arrays: arrays.pop(drawn_name(rng, arrays)),
            }[kind]
            return ending, edited_arrays(ending, data, lambda arrays: edit(rng, arrays))
        case "statements":
            return statements(rng, bases)
        case "declared":
            return declared(rng, bases)
        case "links":
            return links(rng, folder, bases)
        case "storage":
            return storage(rng, bases)
        case "objects":
            return objects(rng, folder, bases)
        case "bomb":
            return bomb(rng, bases)
        case "pt":
            return ".pt", damaged_pt(rng, folder, bases)
    raise AssertionError(kind)


def damaged_pt(rng: random.Random, folder: Path, bases: dict[str, bytes]) -> bytes:
    import torch

    data = bases[".pt"]
    kinds = "cut flip pickle object bomb shape dtype nan missing extra view list"
    how = rng.choice(kinds.split())
    if how == "cut":
        return data[: rng.randrange(len(data))]
    if how == "flip":
        return flip(rng, data, range(len(data)))
    if how == "pickle":
        return pickle.dumps(rng.choice([Bomb(folder), {"conv1.bias": Bomb(folder)}, [1, 2], "weights"]))
    buffer = io.BytesIO()
    if how == "bomb":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("a/data.pkl", bytes(30 << 20))
        return buffer.getvalue()
    state = torch.load(io.BytesIO(data), weights_only=True)
    name = rng.choice(sorted(state))
    if how == "object":
        state[name] = Bomb(folder)
    elif how == "shape":
        state[name] = state[name][:-1] if len(state[name]) > 1 else state[name][None]
    elif how == "dtype":
        state[name] = state[name].to(rng.choice([torch.float64, torch.float16, torch.int8, torch.bfloat16, torch.complex64]))
    elif how == "nan":
        state[name] = state[name] * torch.nan
    elif how == "missing":
        del state[name]
    elif how == "extra":
        state[rng.choice(["dense9.weight", "", 3, ("a",)])] = state[name]
    elif how == "view":  # one number, seen as very many
        state[name] = torch.zeros(1).expand(10 ** rng.randrange(7, 15))
    else:
        state = rng.choice([list(state.values()), state[name], {}, 3])
    torch.save(state, buffer)
    return buffer.getvalue()


def computed() -> float:
    """Seconds of computing of this process and of the children that ended: what a busy machine does beside it does not count."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def outcome(source: Path, attention: str | None, tensors: dict) -> str:
    """The error in which a conversion ends, "" if it finds the weights in the file; AssertionError for anything else."""
    folder = source.parent
    before, start = sorted(os.listdir(folder)), computed()
    try:
        weights, *_ = convert(source, folder / "target.safetensors", attention)
    except WeightsError as error:
        message = str(error)
        assert str(source) in message and "\n" not in message, message
        assert sorted(os.listdir(folder)) == before, "something was left behind"
    else:
        assert same(weights.tensors, tensors) or moved(source, weights, tensors), "converted to other weights"
        (folder / "target.safetensors").unlink()
        message = ""
    assert computed() - start < 5
    assert CANARY not in os.listdir(folder), "code was executed"
    return message


def moved(source: Path, weights: Weights, tensors: dict) -> bool:
    """True if just one weight is another, and it is what h5py reads too."""
    changed = [name for name in tensors if not np.array_equal(weights.tensors[name], tensors[name])]
    if len(changed) > 1 or not source.name.endswith(HDF5):
        return False
    with h5py.File(source) as file:
        stored = datasets(file)
        values = next(stored[path][()] for path in stored if path.endswith(weights.origin[changed[0]]))
    return np.array_equal(transposed(changed[0], values), weights.tensors[changed[0]])


def peak_memory() -> int:
    """Of this process, in bytes. (Its ru_maxrss starts at that of the process that started it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def run_corpus(folder: Path, bases: dict[str, bytes], counts: dict[str, int]) -> tuple[Counter, int]:
    """Convert `counts[kind]` damaged files of each kind; how many there were of each, and the peak memory in bytes."""
    tensors, found = draw_tensors(SMALL), Counter()
    attention = folder / "attention.npz"
    npz.write_npz(tensors, SMALL, attention)
    for kind, count in counts.items():
        seed = 0
        while found[kind] < count:
            assert seed < 4 * count, f"most of kind {kind} are no damage"
            ending, data = damaged(kind, seed, folder, bases)
            source = folder / f"damaged{ending}"
            source.write_bytes(data)
            try:
                found[kind] += bool(outcome(source, str(attention) if ending in (".h5", ".h5.gz") else None, tensors))
            except Exception as error:
                raise AssertionError(f"{kind} {seed} ({ending}): {error!r}") from error
            source.unlink()
            seed += 1
    return found, max(peak_memory(), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def write_checkpoint(arrays: dict, prefix: Path) -> None:
    """A TensorFlow checkpoint with variables named as those of `reference_tf`."""
    import tensorflow as tf

    root = tf.train.Checkpoint()
    for name, array in arrays.items():
        node, (*parts, leaf) = root, name.split("/")
        for part in parts:
            if not hasattr(node, part):
                setattr(node, part, tf.train.Checkpoint())
            node = getattr(node, part)
        setattr(node, leaf, tf.Variable(array))
    root.write(str(prefix))


def forged(rng: random.Random, index: bytes) -> bytes:
    """A checkpoint's index, other bytes in its first block and the checksum right: by some of these TensorFlow ends its process.

    Behind a block lie its type, a byte, and its checksum; then the next block, where a number at the footer's start says.
    """
    from tensorboard.summary.writer.record_writer import masked_crc32c

    footer, next_block, bits = index[-48:], 0, 0
    for byte in footer:  # seven bits of the number each, the last one without the eighth
        next_block, bits = next_block | (byte & 127) << bits, bits + 7
        if byte < 128:
            break
    block = bytearray(index[: next_block - 4])
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = rng.randrange(len(block) - 1)
        block[place] = rng.choice([0, 255, block[place] | 128, rng.randrange(256)])
    return bytes(block) + struct.pack("<I", masked_crc32c(bytes(block))) + index[next_block:]


def run_checkpoints(folder: Path, count: int) -> tuple[Counter, int]:
    """`run_corpus` for TensorFlow checkpoints, of which the index, the data or a weight is damaged, or the index forged."""
    tensors, found = draw_tensors(SMALL), Counter()
    index, data = folder / "run.index", folder / "run.data-00000-of-00001"
    edits = {"shape": wrong_shape, "dtype": wrong_type, "not finite": not_finite, "extra": extra_weight}
    for seed in range(2 * count):
        rng = random.Random(f"checkpoint {seed}")
        how = rng.choice(["cut", "flip", "forged", "forged", "no data", "missing", *edits])
        arrays = {keras_name(name): transposed(name, tensor) for name, tensor in tensors.items()}
        if how == "missing":
            del arrays[drawn_name(rng, arrays)]
        elif how in edits:
            edits[how](rng, arrays)
        write_checkpoint(arrays, folder / "run")
        victim = rng.choice([index, data])
        if how == "no data":
            data.unlink()
        elif how == "forged":
            index.write_bytes(forged(rng, index.read_bytes()))
        elif how in ("cut", "flip"):
            contents = victim.read_bytes()
            cut = contents[: rng.randrange(len(contents))]
            victim.write_bytes(cut if how == "cut" else flip(rng, contents, range(len(contents))))
        try:
            found["checkpoint"] += bool(outcome(index, None, tensors))
        except Exception as error:
            raise AssertionError(f"checkpoint {seed} ({how}): {error!r}") from error
        data.unlink(missing_ok=True)
        if found["checkpoint"] == count:
            break
    return found, peak_memory()


@pytest.fixture(scope="module")
def bases() -> dict[str, bytes]:
    return whole_files()


def apart(function, *arguments) -> tuple[Counter, int]:
    """Run in a process of its own, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def test_the_corpus_is_two_thousand_files():
    assert sum((COUNTS | TORCH_COUNTS | TENSORFLOW_COUNTS).values()) == 2000


def test_damaged_files(tmp_path, bases):
    found, peak = apart(run_corpus, tmp_path, bases, COUNTS)
    assert found == COUNTS and peak < 2**30, f"{found}, {peak >> 20} MiB"


def test_damaged_state_dicts(tmp_path, bases):
    from tools.weights.torch_files import write_pt

    write_pt(draw_tensors(SMALL), SMALL, tmp_path / "a.pt")
    found, peak = apart(run_corpus, tmp_path, bases | {".pt": (tmp_path / "a.pt").read_bytes()}, TORCH_COUNTS)
    assert found == TORCH_COUNTS and peak < 2**30, f"{found}, {peak >> 20} MiB"


def test_damaged_checkpoints(tmp_path):
    found, peak = apart(run_checkpoints, tmp_path, TENSORFLOW_COUNTS["checkpoint"])
    assert found == TENSORFLOW_COUNTS and peak < 2**30, f"{found}, {peak >> 20} MiB"


def test_the_same_files_undamaged_convert(tmp_path, bases):
    npz.write_npz(draw_tensors(SMALL), SMALL, tmp_path / "attention.npz")
    for ending, data in bases.items():
        (tmp_path / f"whole{ending}").write_bytes(data)
        attention = str(tmp_path / "attention.npz") if ending == ".h5" else None
        assert outcome(tmp_path / f"whole{ending}", attention, draw_tensors(SMALL)) == ""


def test_a_damaged_attention_file_is_named(tmp_path, bases):
    (tmp_path / "a.h5").write_bytes(bases[".h5"])
    (tmp_path / "attention.npz").write_bytes(bases[".npz"][:-1])
    with pytest.raises(WeightsError, match=f"^{tmp_path / 'attention.npz'}: "):
        convert(tmp_path / "a.h5", tmp_path / "b.safetensors", str(tmp_path / "attention.npz"))


@pytest.mark.skipif(sys.platform == "win32", reason="the child process is a fork")
def test_a_crash_of_tensorflow_is_an_error(tmp_path, monkeypatch):
    arrays = {keras_name(name): transposed(name, tensor) for name, tensor in draw_tensors(SMALL).items()}
    write_checkpoint(arrays, tmp_path / "run")
    monkeypatch.setattr(tensorflow_files, "_places", lambda *_: os.abort())
    with pytest.raises(WeightsError, match=f"^{tmp_path / 'run.index'}: cannot be read as a TensorFlow checkpoint"):
        read(tmp_path / "run.index")


def test_a_crash_of_the_hdf5_library_is_an_error(tmp_path, bases, monkeypatch):
    monkeypatch.setattr(hdf5, "_index", lambda file: os.abort())
    (tmp_path / "a.h5").write_bytes(bases[".h5"])
    with pytest.raises(WeightsError, match="its structure is damaged"):
        convert(tmp_path / "a.h5", tmp_path / "b.safetensors")
    monkeypatch.setattr(hdf5, "_index", lambda file: time.sleep(60))
    monkeypatch.setattr(hdf5, "PATIENCE", 0.2)
    with pytest.raises(WeightsError, match="its structure is damaged"):
        convert(tmp_path / "a.h5", tmp_path / "b.safetensors")
