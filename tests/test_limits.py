"""Each row of the table of limits in docs/files.md, by files just beyond it: one line that names file and trouble."""

import io
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import soundfile
import torch
from test_damaged_weights import edited_hdf5, edited_zip
from weight_cases import SMALL, whole_files

import denet_torch
from denet_torch import audio, checkpoint
from denet_torch.detection import event_table
from tools import detect_batch, scores
from tools.event_formats import read_events
from tools.weights.convert import read
from tools.weights.sincnet_pkl import read_sincnet
from training import checkpoints
from training.collection import open_collection
from training.config import parse
from training.loop import Progress

TEXT = h5py.string_dtype()
PAGE = Path(__file__).parents[1] / "docs" / "files.md"


def model_file(path, sha256=None, n_classes=3, detection="", **changes):
    """A DENet's weights with a right checksum, and changes: of arrays by name, of the architecture else."""
    model = denet_torch.DENet(**SMALL)
    tensors = dict(model.state_dict())
    arrays = {name.replace("__", "."): change for name, change in changes.items() if "__" in name or name == "extra"}
    config = json.dumps(model.config | {name: value for name, value in changes.items() if "__" not in name and name != "extra"})
    for name, change in arrays.items():
        if name == "extra":
            tensors |= {f"x{i}": torch.zeros(1) for i in range(change)}
        else:
            tensors[name] = tensors[name] * 0 + change
    metadata = {"denet": config, "detection": detection, "sha256": checkpoint.checksum(config + detection, tensors)}
    safetensors.torch.save_file(tensors, path, {key: value for key, value in metadata.items() if value})
    return denet_torch.load(path, sha256)


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return read(path)


def npz(path, array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(edited_zip(whole_files()[".npz"], lambda members: members.update({"conv1/bias.npy": buffer.getvalue()})))
    return read(path)


def hdf5(path, edit):
    path.write_bytes(edited_hdf5(whole_files()[".weights.h5"], edit))
    return read(path)


def run_checkpoint(path, **changes):
    model = torch.nn.Linear(2, 2)
    torch.save({"model": model.state_dict(), "progress": Progress().state_dict() | changes}, path)
    checkpoints.load(path, {"model": model, "progress": Progress()})


def torch_file(path, value):
    torch.save(value, path)
    return read(path)


def sound(path, samples, rate=4000, subtype="FLOAT"):
    soundfile.write(path, samples, rate, subtype, format="WAV")
    audio.probe(path, values=True)


def flac(path):
    """Its header says 2**36 - 1 samples."""
    soundfile.write(path, np.zeros(9000), 4000, format="FLAC")
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    path.write_bytes(data)
    audio.probe(path)


def listed(path):
    path = path.with_name("a.file.txt")
    path.write_text(path.name)
    detect_batch.collect([str(path)])


def table(path, text):
    path = path.with_name("a.file.csv")
    path.write_text(text)
    read_events(path)


def pipe(path):
    os.mkfifo(path)
    audio.probe(path)


def index(path, column, value):
    root = path.parent / "data"
    root.mkdir()
    soundfile.write(root / "a.wav", np.zeros(9000), 4000)
    (root / "a.txt").write_text("0.1\t0.2\tsong\n")
    open_collection(root)
    table = pq.read_table(root / "index.parquet")
    place = table.schema.get_field_index(column)
    changed = table.set_column(place, column, [[value]]).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, root / "index.parquet")
    shutil.copy(root / "index.parquet", path)
    open_collection(root)


def configuration(path, text):
    path.write_text(text)
    parse(["--config", str(path)])


def resolution(path):
    empty = event_table([])
    scores.score(empty, empty, {path.name: 2e7}, resolution=1.0)


CASES = {  # beginning of a row: what is beyond its limits; a function of a path, and what the line says
    "`.safetensors`": [
        (lambda path: model_file(path, extra=1001), "arrays, which no model has"),
        (lambda path: model_file(path, dense_units=[5] * 4000), "in more than 10000 characters"),
        (lambda path: model_file(path, detection=json.dumps({"labels": ["x" * 10**6]})), "in more than 1000000 characters"),
        (lambda path: model_file(path, sr=99), "sr is 99"),
        (lambda path: model_file(path, sr=10_000_001), "sr is 10000001"),
        (lambda path: model_file(path, input_shape=[100_001, 100, 1]), "input_shape is"),
        (lambda path: model_file(path, dropout=1), "dropout is 1"),
        (lambda path: model_file(path, conv1__bias=float("nan")), "conv1.bias holds values that are not finite"),
        (lambda path: model_file(path, batch_norm1__moving_variance=-1), "holds negative numbers, which no variance is"),
        (lambda path: model_file(path, sha256="0" * 64), "is another file than asked for: its SHA-256 is"),
    ],
    "`.pt`, checkpoints": [
        (lambda path: torch_file(path, {"conv1.bias": np.zeros(3)}), "is no state dict, or damaged"),
        (lambda path: torch_file(path, {"conv1.bias": [()] * 3, "x": tuple((i,) for i in range(20_001))}), "more than tensors"),
        (lambda path: run_checkpoint(path, step=-1), "step' of progress is -1"),
        (lambda path: run_checkpoint(path, step=2, rates=[0.1] * 2, losses=[0.1]), "losses are not of 2 steps"),
    ],
    "`.npz`, `.keras`, `.pt` archives": [
        (lambda path: archive(path, {f"{i}.npy": b"x" for i in range(10_001)}), "holds 10001 members"),
        (lambda path: archive(path, {"a.npy": bytes(10_000)}), "unpacks to more than 4 times its size"),
        (lambda path: npz(path, np.zeros((1,) * 9, np.float32)), "conv1/bias"),
        (lambda path: torch_file(path, {"conv1.bias": torch.zeros(1).expand(10**9)}), "more than the file holds"),
    ],
    "HDF5": [
        (lambda path: hdf5(path, lambda file: file.attrs.create("backend", "x" * (2**20 + 1), dtype=TEXT)), "too large"),
        (lambda path: hdf5(path, lambda file: file.update({"x": h5py.ExternalLink("a", "/")})), "is a link to another place"),
    ],
    "`model_raw.pkl`": [
        (lambda path: (path.write_bytes(pickle.dumps(print)), read_sincnet(path, 16000)), "nothing in it was executed"),
    ],
    "recordings": [
        (pipe, "is no file but a pipe"),
        (lambda path: sound(path, np.zeros(9000), 99), "its header says 99 Hz"),
        (lambda path: sound(path, np.zeros(9000), 100_000_001), "its header says 100000001 Hz"),
        (lambda path: sound(path, np.full(9000, np.nan)), "holds samples that are not finite numbers"),
        (lambda path: sound(path, np.full(9000, 10.5)), "its floats reach 10.5"),
        (flac, "of which its"),
    ],
    "lists of recordings": [(listed, "is a list that holds itself")],
    "tables of text": [
        (lambda path: table(path, "onset,offset,label\n" + "x" * 1_000_001), "has a line of more than 1000000 bytes"),
        (lambda path: table(path, "onset,offset,label\n" + "1,2,a\n" * 400_000), "has 400002 rows of"),
        (lambda path: table(path, "onset,offset,label\n1,2,a" + "," * 900_000 + "\n,," * 500_000), "more than can be held"),
        (lambda path: table(path, f"onset,offset,label{',' * 100_000}\n"), "its line 1 has more than 20000 characters"),
    ],
    "index": [
        (lambda path: index(path, "file", "../a.wav"), "is not below the collection's folder"),
        (lambda path: index(path, "frames", 0), "a recording's frames is not from 1"),
        (lambda path: index(path, "frames", 500), "a call lies outside of its recording"),
        (lambda path: index(path, "complete", "yes"), "the column complete holds something else"),
    ],
    "`--config`": [
        (lambda path: configuration(path, "# " * 600_000), "has more than"),
        (lambda path: configuration(path, "a: &a [1]\nb: *a\n"), "without aliases"),
        (lambda path: configuration(path, "epochs: secret\n"), "the value of epochs is of another kind"),
    ],
    "`parts/`": [],  # tests/test_hostile_files.py: they are computed again
    "`evaluate --resolution`": [(resolution, "--resolution is 1 s: more than 10000000 segments")],
}


def test_each_row_of_the_table_has_cases():
    rows = re.findall(r"^\| (?!file \||-)(.*?) \|", PAGE.read_text().split("\n## ")[0], re.MULTILINE)
    assert len(rows) >= len(CASES)
    for row in rows:
        assert sum(row.startswith(name) for name in CASES) == 1, f"{row}: add it to CASES"


@pytest.mark.parametrize(("row", "number"), [(row, i) for row, cases in CASES.items() for i in range(len(cases))])
def test_what_is_beyond_a_limit_is_refused_in_one_line(tmp_path, row, number):
    beyond, told = CASES[row][number]
    path = tmp_path / ("a.pkl" if "pkl" in row else "a.wav" if row == "recordings" else "a.file")
    with pytest.raises((ValueError, OSError)) as caught:
        beyond(path)
    said = str(caught.value)
    assert told in said and "\n" not in said and len(said) <= 300 + len(str(tmp_path)), said
    assert path.name in said or "index.parquet" in said or row == "`evaluate --resolution`", said
