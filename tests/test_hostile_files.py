"""Drawn hostile files of kinds that are not weights of the corpora in test_damaged_weights.py: one line each, nothing executed.

The seed is printed and drawn anew each time; DENET_SEED sets it.
"""

import copy
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from weight_cases import SMALL

import denet_torch
from denet_torch import audio, files
from denet_torch.pickles import check_archive, check_pickle
from tools import detect_batch, scores
from tools.weights import WeightsError, hdf5
from tools.weights.convert import read
from training import checkpoints
from training.collection import open_collection
from training.config import TrainingError, parse
from training.loop import Progress
from training.options import show, tell
from training.tables import CollectionError

SEED = int(os.environ["DENET_SEED"])  # tests/conftest.py


@pytest.fixture
def rng() -> random.Random:
    print(f"seed {SEED}")
    return random.Random(SEED)


def test_pickles_that_hold_more_than_tensors(rng):
    good = io.BytesIO()
    torch.save({"a": torch.zeros(3), "b": [1, 2.5, "x", None, True]}, good)
    with zipfile.ZipFile(good) as archive:
        check_pickle(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
    values = (print, os.system, Path("x"), np.zeros(3), {1: range(3)})
    bad = [pickle.dumps(value, protocol=rng.randrange(2, 5)) for value in values]
    bad.append(b"\x80\x02}(" + b")" + b"\x85" * rng.randrange(30_000, 300_000) + b"K\x01u.")  # a key of tuples in tuples
    bad.append(b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b".")  # a bytearray of a terabyte
    bad += [b"\xff" + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200))) for _ in range(50)]  # "." alone is a pickle
    for data in bad:
        with pytest.raises(pickle.UnpicklingError):
            check_pickle(data)


def test_checkpoints_with_wrong_fields(rng, tmp_path):
    model = torch.nn.Linear(3, 2)
    progress = {"step": 2, "epoch": 0, "epoch_step": 2, "losses": [0.5, 0.4], "rates": [0.1, 0.1], "epochs": [], "decoding": {}}
    right = {"model": model.state_dict(), "progress": progress}
    state = {"model": model, "progress": Progress()}
    checkpoints.save(tmp_path, right, 2, keep=9)
    checkpoints.load(checkpoints.newest_first(tmp_path)[0], state)
    wrong = [
        right | {"progress": progress | change}
        for change in (
            {"step": -7}, {"step": 3}, {"step": 2.0}, {"epoch": "1"}, {"losses": "many"}, {"epochs": [{}]}, {"decoding": {"x": 1}}
        )
    ]
    wrong += [{"model": right["model"]}, {"model": {"weight": model.weight * torch.nan}, "progress": progress}, [1], 3]
    wrong += [right | {"model": {"weight": torch.zeros(rng.randrange(3, 9), 3), "bias": torch.zeros(2)}}]
    for i, content in enumerate(wrong):
        path = tmp_path / f"{i}.ckpt"
        torch.save(content, path)
        with pytest.raises(TrainingError, match=f"^{path}: is no checkpoint of this run") as caught:
            checkpoints.load(path, state)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize("of_optimizer", [False, True])
def test_checkpoints_with_negative_variances(tmp_path, of_optimizer):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    state, path = {"model": model, "optimizer": optimizer}, tmp_path / "c.ckpt"
    saved = {name: copy.deepcopy(item.state_dict()) for name, item in state.items()}
    torch.save(saved, path)
    checkpoints.load(path, state)
    (saved["optimizer"]["state"][3]["exp_avg_sq"] if of_optimizer else saved["model"]["1.running_var"])[1] = -1e-9
    torch.save(saved, path)
    with pytest.raises(TrainingError, match=f"^{path}: is no checkpoint of this run .* holds negative numbers"):
        checkpoints.load(path, state)


def test_configurations(rng, tmp_path):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    secret = f"root:secret{rng.random()}:0"
    call = "x: !!python/object/apply:os.system [exit]"
    deep = ("[" * 40_000, "{" * 40_000, "- " * 40_000)
    for text in (bomb, secret, *deep, "- 1\n- 2", "", call, "a: b: c", "# " * 600_000):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        began = time.process_time()
        with pytest.raises(TrainingError, match=f"^--config {path}: ") as caught:
            parse(["--config", str(path)])
        assert time.process_time() - began < 5
        assert "secret" not in str(caught.value) and len(str(caught.value)) < len(str(path)) + 100
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(TrainingError, match="is no file"):
        parse(["--config", str(tmp_path / "pipe.yaml")])


def test_pipes_named_like_recordings(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(audio.AudioError, match="is no file but a pipe"):
        audio.probe(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [1, 50])
def test_headers_that_cannot_be(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(64_000), rate)
    with pytest.raises(audio.AudioError, match=f"a.wav: its header says {rate} Hz"):
        audio.probe(tmp_path / "a.wav")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
@pytest.mark.parametrize(
    ("rate", "to_rate"),
    [
        *[(4000, 4039), (4039, 4000), (16_000, 249_989), (1_999_993, 16_000), (99_999_989, 16_000), (101, 250_000)],
        *[(11_025, 250_000), (None, None)],
    ],
)
def test_rates_without_a_common_divisor_take_little_memory(rng, rate, to_rate):
    rate, to_rate = (rate, to_rate) if rate else (rng.randrange(100, 10**8), rng.randrange(2000, 400_000))
    taken = f"""if True:
        import torch
        from pathlib import Path
        from denet_torch import audio
        def megabytes(line):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(text.split()[1]) / 1000 for text in lines if text.startswith(line))
        audio.resample(torch.zeros(3000), 44_100, 16_000)
        Path("/proc/self/clear_refs").write_text("5")
        before = megabytes("VmRSS")
        made = audio.resample(torch.zeros(3000), {rate}, {to_rate})
        print(len(made), megabytes("VmHWM") - before)
    """
    found = subprocess.run([sys.executable, "-c", taken], capture_output=True, text=True, check=True)
    length, megabytes = found.stdout.split()
    assert int(length) == -(-3000 * to_rate // rate) and float(megabytes) < 200 + int(length) * 8e-6


def test_an_index_that_leads_outside(rng, collection, tmp_path):
    import shutil

    import pyarrow.parquet as pq

    data = tmp_path / "data"
    shutil.copytree(collection, data)
    open_collection(data)
    index = data / "index.parquet"
    table = pq.read_table(index)
    for name in ("../x.wav", "/etc/x.wav", "a/../../x.wav", "C:\\x.wav", "..\\x.wav", "\\\\server\\x.wav"):
        files_ = table["file"].to_pylist()
        files_[rng.randrange(len(files_))] = name
        changed = table.set_column(table.schema.get_field_index("file"), "file", [files_])
        pq.write_table(changed.replace_schema_metadata(table.schema.metadata), index)
        with pytest.raises(CollectionError, match="is not below the collection's folder"):
            open_collection(data)


def test_damaged_parts_are_known(rng, tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(SEED).random((50, 2), np.float32))
    whole = buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
    part = detect_batch.Part(Path("a.wav"), 0, 50, tmp_path / "a.npy")
    part.file.write_bytes(whole)
    model = denet_torch.DENet(**SMALL | {"n_classes": 2})
    assert detect_batch._intact(part, model)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        part.file.write_bytes(rng.choice([damaged, whole[: rng.randrange(len(whole))]]))
        assert not detect_batch._intact(part, model)


def test_segments_without_number():
    empty = pd.DataFrame({name: [] for name in ("file", "onset", "offset", "label", "score")})
    with pytest.raises(ValueError, match="--resolution is 1e-09 s: more than"):
        scores.score(empty, empty, {"a.wav": 100.0}, 0.2, 1e-9)


def test_what_a_kill_leaves_is_removed_by_the_next_start(tmp_path):
    left = tmp_path / f"{files.PARTIAL}0123456789abcdef-1.npy"
    left.write_bytes(b"half")
    with files.replacing(tmp_path / "a.json") as path:
        path.write_text(json.dumps(1))
        files.clear_partial(tmp_path)  # another process: what is being written stays
        assert path.exists() and not left.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_nothing_is_left_of_a_file_that_was_only_begun(tmp_path, monkeypatch):
    locked = files._locked

    def interrupted(path):
        locked(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_locked", interrupted)
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a.json"):
        pass
    assert not list(tmp_path.iterdir())


def test_names_of_the_greatest_length_can_be_written(tmp_path):
    for name in ("x" * 255, "é" * 127, "x" * 251 + ".csv"):
        with files.replacing(tmp_path / name) as path:
            path.write_text("1")
        assert (tmp_path / name).read_text() == "1"


def test_nothing_printable_obeys():
    for text in ("\x1b[2J", "a\nerror: b", "\u202etxt", "\ud800"):
        assert files.printable(text).isprintable()
    assert 290 < len(files.printable("x" * 10_000, 300)) <= 300
    folder, name = "/home/" + "folder/" * 40, "n" * 10_000_000
    began = time.process_time()
    said = files.printable(f"{folder}a.npz: {name} of {name * 2} is no weight", 300)
    assert said.startswith("/home/folder/") and "/a.npz: nnn" in said and said.endswith("nnn is no weight") and len(said) <= 300
    assert len(files.printable("abc " * 1_000_000, 300)) <= 300 and len(files.printable(f"{'a' * 99} " * 50_000, 300)) <= 300
    assert time.process_time() - began < 5


def test_commands_say_one_line_that_a_terminal_does_not_obey(capsys):
    tell("error", "a.wav: \x1b[2J\nerror: forged " + "x" * 20_000 + " is damaged")
    said = capsys.readouterr().err
    assert said.endswith("is damaged\n") and said[:-1].isprintable() and len(said) <= 301
    show("\x1b]0;name\x07" + "y" * 20_000)
    said = capsys.readouterr().out
    assert said[:-1].isprintable() and len(said) <= 301


def test_attributes_that_unfold_are_refused(tmp_path):
    """Sixty thousand names that are one and the same in the file."""
    path = tmp_path / "names.h5"
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.attrs.create("layer_names", np.array(["x" * 100] * 2000, dtype=object), dtype=text)
        file.attrs.create("weight_names", np.array(["y" * 9999] * 200, dtype=object), dtype=text)
    with pytest.raises(WeightsError, match="names.h5: cannot be read as HDF5 .the attribute weight_names is too large"):
        read(path)


def test_the_child_that_reads_hdf5_is_bounded():
    def greedy(sender):
        hdf5._limit()
        try:
            sender.send(len(np.empty(64 * hdf5.MEMORY, np.uint8)))
        except MemoryError:
            sender.send("no memory")

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=greedy, args=(sender,))
    child.start()
    assert receiver.poll(None) and receiver.recv() == "no memory"
    child.join()


def test_archives_with_very_many_members(tmp_path):
    path = tmp_path / "many.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(60_000):
            archive.writestr(f"a-member-with-a-long-name-{i}-{'x' * 40}", b"")
    with pytest.raises(WeightsError, match="many.npz: .*its list of members is longer than that of any weight file"):
        read(path)


def test_pickles_of_very_many_steps_and_of_the_older_layout(tmp_path):
    with pytest.raises(pickle.UnpicklingError, match="more entries"):
        check_pickle(b"\x80\x02" + b"K\x01" * 2_100_000 + b".")
    torch.save({"losses": [0.5] * 1_100_000, "rates": [0.1] * 1_100_000}, tmp_path / "long_run.ckpt")
    check_archive(tmp_path / "long_run.ckpt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    check_archive(tmp_path / "old.pkl")
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(bytearray(10), protocol=5) * 5)
    with pytest.raises(pickle.UnpicklingError):
        check_archive(tmp_path / "old.pkl")


def test_equal_conversions_give_equal_bytes(tmp_path):
    """The library's own writer orders the metadata anew in each process."""
    code = "import sys; from weight_cases import *; from tools.weights.safetensors_file import write_safetensors as write; "
    code += "write(draw_tensors(SMALL), SMALL, sys.argv[1], '{}')"
    for name in ("a", "b", "c"):
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True, env=os.environ | {"PYTHONPATH": path})
    assert len({(tmp_path / name).read_bytes() for name in ("a", "b", "c")}) == 1
