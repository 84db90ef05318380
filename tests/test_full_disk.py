"""A disk that is full after so many bytes: one line that names the file, nothing half written, the process goes on."""

import contextlib
import errno
import os
import random
import resource

import pytest
import torch
from tensorboardX.event_file_writer import EventsWriter
from trainer_cases import as_options, tiny

import denet_torch
from tools import convert_weights, make_dataset
from tools.weights.convert import WRITERS
from training import checkpoints, guards, run
from training.config import TrainingError

SEED = int(os.environ["DENET_SEED"])  # tests/conftest.py


@contextlib.contextmanager
def files_of_at_most(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return denet_torch.get_denet((4, 400), 2, sr=8000, gru_units=16, dense_units=(8, 8)).eval()


@pytest.mark.parametrize("ending", [ending for ending in WRITERS if ending != ".onnx"])  # which takes long
def test_conversions(ending, model, tmp_path, capsys):
    source, target = tmp_path / "a.safetensors", tmp_path / f"b{ending}"
    denet_torch.save(model, source)
    target.write_bytes(b"what was there")
    size = source.stat().st_size
    for limit in (0, 1, random.Random(SEED).randrange(size // 2)):
        with files_of_at_most(limit):
            assert convert_weights.main([str(source), str(target)]) == 2, f"seed {SEED}"
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and said[0].startswith(f"error: {target}: cannot be written ("), said
        assert target.read_bytes() == b"what was there"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, target.name])
        if ending == ".pt2":
            return  # made for seconds
    assert convert_weights.main([str(source), str(target)]) == 0
    assert target.stat().st_size > size // 4


def test_models(model, tmp_path):
    with files_of_at_most(1000), pytest.raises(denet_torch.CheckpointError, match="a.safetensors: cannot be written"):
        denet_torch.save(model, tmp_path / "a.safetensors")
    assert not any(tmp_path.iterdir())


def test_checkpoints_and_batches(tmp_path):
    (tmp_path / "before").write_bytes(b"")
    for limit in (0, 1000, 5000):
        with files_of_at_most(limit):
            with pytest.raises(TrainingError, match="checkpoint of step 2 cannot be written \\(File too large\\)"):
                checkpoints.save(tmp_path, {"model": torch.nn.Linear(100, 100)}, 2, 3)
            with pytest.raises(OSError, match="batch.pt"):
                guards.save_batch(tmp_path / "batch.pt", {"waveform": torch.zeros(4000)}, 0.0, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["before"]


def test_logs(collection, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = tiny(collection, tmp_path / "run")
    monkeypatch.setattr(EventsWriter, "flush", full)
    assert run.main(as_options(config)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"error: {config.out}: the log of step 1 cannot be written (No space left on device)"
    assert checkpoints.find(config.out)[0].name.startswith("step-000000001-")


@pytest.mark.parametrize("limit", [0, 100_000])
def test_generated_recordings(limit, tmp_path, capsys):
    with files_of_at_most(limit):
        assert make_dataset.main([str(tmp_path / "data"), "--recordings", "8", "--max-seconds", "1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and str(tmp_path) in said, said
    assert not any(tmp_path.iterdir())
