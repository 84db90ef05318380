"""tools.detect and tools.detect_batch: what it takes, what it writes, restart, processes, bad input."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import denet_torch
from denet_torch import detection, get_denet
from denet_torch.audio import AudioError
from tools import detect, detect_batch

ROOT = Path(__file__).resolve().parents[1]
SR, SAMPLES = 4000, 200  # frames of 50 ms


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    sizes = dict(n_filters=4, gru_units=4, dense_units=(4, 4))
    model = get_denet((6, SAMPLES), 2, sr=SR, **sizes)
    with torch.no_grad():  # spread the probabilities that random weights give
        x = torch.randn(8, 6, SAMPLES) * torch.logspace(-3, -0.5, 8)[:, None, None]
        model.dense3.weight.mul_(10)
        model.eval().dense3.bias.sub_(model(x).mean(dim=(0, 1)))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    denet_torch.save(model, path)
    return path


def noise(path, seconds=5.0, rate=SR, seed=0, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    samples = int(seconds * rate)
    loudness = np.repeat(10 ** rng.uniform(-3, -0.5, samples // 400 + 1), 400)[:samples]
    soundfile.write(path, rng.standard_normal(samples).clip(-3, 3) * loudness, rate, **how)
    return path


def run(*arguments):
    return detect.main([str(argument) for argument in (*arguments, "--batch-size", 100)])


def test_files_folders_patterns_and_lists(tmp_path):
    names = ["a.wav", "sub/b.WAV", "sub/deep/c.flac"]
    a, b, c = (noise(tmp_path / name, 0.1, format=name[-3:].upper() if name[-4] == "." else "FLAC")
               for name in names)
    (tmp_path / "sub" / "notes.md").write_text("no audio")
    (tmp_path / "list.txt").write_text(f"{c}\n\n{tmp_path / 'sub'}\n")
    assert detect_batch.collect([str(tmp_path)]) == [a, b, c]
    assert detect_batch.collect([f"{tmp_path}/**/*.WAV", str(a)]) == [b, a]
    assert detect_batch.collect([f"{tmp_path}/list.txt"]) == [c, b]
    assert detect_batch.collect(["missing.wav"]) == [Path("missing.wav")]
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "*.mp3"):
        with pytest.raises(AudioError, match="no recordings here"):
            detect_batch.collect([str(nothing)])


def test_writes_what_the_api_finds(tmp_path, weights, capsys):
    paths = [noise(tmp_path / f"{rate}.wav", rate=rate) for rate in (SR, 16_000, 44_100)]
    assert run(tmp_path, "--weights", weights, "--output", tmp_path / "out") == 0
    table = pd.read_csv(tmp_path / "out" / "events.csv")
    assert list(table.columns) == ["file", "onset", "offset", "label", "score"]
    model = denet_torch.load(weights)
    expected = denet_torch.detect(model, sorted(paths))
    assert len(table) > 10 and set(table.file) == set(map(str, paths))
    pd.testing.assert_frame_equal(table, expected, atol=1e-6, check_dtype=False)
    recordings = pd.read_csv(tmp_path / "out" / "recordings.csv")
    assert recordings.duration.tolist() == pytest.approx([5, 5, 5])
    assert recordings.events.sum() == len(table)
    assert f"{len(table)} events in 3 recordings" in capsys.readouterr().out


def test_a_bad_recording_stops_nothing_and_is_named_once(tmp_path, weights, capsys):
    good = noise(tmp_path / "good.wav", seconds=130)
    (tmp_path / "empty.wav").touch()
    cut = noise(tmp_path / "cut.flac", seconds=130)
    cut.write_bytes(cut.read_bytes()[:-20_000])
    code = run(tmp_path, "gone.wav", "--weights", weights, "--output", tmp_path / "out")
    errors = capsys.readouterr().err.splitlines()
    errors = [line for line in errors if line.startswith("error: ")]
    assert code == 2 and len(errors) == 3
    assert any("empty.wav" in line for line in errors)
    assert any("gone.wav" in line for line in errors)
    assert set(pd.read_csv(tmp_path / "out" / "events.csv").file) == {str(good)}


@pytest.mark.parametrize("option", [["--weights", "none.safetensors"], ["--threshold", "2"], ["--hop", "7"]])
def test_what_cannot_be_done_is_one_line_and_writes_nothing(tmp_path, weights, capsys, option):
    path = noise(tmp_path / "a.wav", 0.5)
    code = run(path, "--weights", weights, "--output", tmp_path / "out", *option)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert code == 2 and len(errors) == 1 and errors[0].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_only_bad_recordings_write_nothing(tmp_path, weights, capsys):
    soundfile.write(tmp_path / "short.wav", np.zeros(100), SR)
    assert run(tmp_path / "short.wav", "--weights", weights, "--output", tmp_path / "out") == 2
    assert "short.wav" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_threshold_computes_nothing(tmp_path, weights, monkeypatch):
    path = noise(tmp_path / "a.wav")
    assert run(path, "--weights", weights, "--output", tmp_path / "out") == 0
    first = pd.read_csv(tmp_path / "out" / "events.csv")
    monkeypatch.setattr(detect_batch, "frame_probabilities", None)  # would raise if it were called
    assert run(path, "--weights", weights, "--output", tmp_path / "out", "--threshold", 0.6) == 0
    second = pd.read_csv(tmp_path / "out" / "events.csv")
    assert 0 < len(second) != len(first)


def test_a_changed_recording_or_other_weights_are_computed_anew(tmp_path, weights):
    path = noise(tmp_path / "a.wav")
    assert run(path, "--weights", weights, "--output", tmp_path / "out") == 0
    first = pd.read_csv(tmp_path / "out" / "events.csv")
    noise(path, seed=1)
    assert run(path, "--weights", weights, "--output", tmp_path / "out") == 0
    second = pd.read_csv(tmp_path / "out" / "events.csv")
    assert not first.equals(second)
    model = denet_torch.load(weights)
    with torch.no_grad():
        model.dense3.bias.add_(torch.tensor([3.0, -3.0]))
    denet_torch.save(model, tmp_path / "other.safetensors")
    assert run(path, "--weights", tmp_path / "other.safetensors", "--output", tmp_path / "out") == 0
    assert len(pd.read_csv(tmp_path / "out" / "events.csv")) < len(second)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_several_processes_give_the_same(tmp_path, weights):
    for i in range(3):
        noise(tmp_path / "in" / f"{i}.wav", seconds=5 + 60 * (i == 1), seed=i)
    for jobs in (1, 2):
        output = tmp_path / str(jobs)
        assert run(tmp_path / "in", "--weights", weights, "--output", output, "--jobs", jobs) == 0
    assert files(tmp_path / "1") == files(tmp_path / "2")


def command(*arguments):
    return [sys.executable, *map(str, arguments)]


def test_killed_and_restarted_equals_uninterrupted(tmp_path, weights):
    for i in range(3):
        noise(tmp_path / "in" / f"{i}.wav", seconds=100, seed=i)
    order = [tmp_path / "in", "--weights", weights, "--output"]
    how = dict(cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    killed = command("-m", "tools.detect", *order, tmp_path / "killed", "--batch-size", 100)
    killed = subprocess.Popen(killed, **how)
    while len(list((tmp_path / "killed").glob("parts/*.npy"))) < 2:
        assert killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = len(list((tmp_path / "killed").glob("parts/*.npy")))
    assert 2 <= done < 6 and not (tmp_path / "killed" / "events.csv").exists()
    assert run(*order, tmp_path / "killed") == 0
    assert run(*order, tmp_path / "whole") == 0
    whole, restarted = files(tmp_path / "whole"), files(tmp_path / "killed")
    left_behind = [name for name in restarted if name.name.startswith(".")]  # half of a part
    assert {name: data for name, data in restarted.items() if name not in left_behind} == whole


def test_ranks_share_the_work_and_the_first_merges(tmp_path, weights):
    for i in range(3):
        noise(tmp_path / "in" / f"{i}.wav", seconds=5 + 60 * (i == 1), seed=i)
    (tmp_path / "in" / "empty.wav").touch()
    assert run(tmp_path / "in", "--weights", weights, "--output", tmp_path / "one") == 2
    ranks = command("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    order = ["-m", "tools.detect", tmp_path / "in", "--weights", weights, "--output"]
    done = subprocess.run(
        [*ranks, *map(str, [*order, tmp_path / "two", "--batch-size", 100])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stderr.count("error: ") >= 1 and "empty.wav" in done.stderr
    assert done.stdout.count("events in 3 recordings") == 1
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_time_expansion_gives_true_times(tmp_path, weights):
    path = noise(tmp_path / "a.wav")
    slow = tmp_path / "slow.wav"
    soundfile.write(slow, soundfile.read(path)[0], SR // 10)
    assert run(path, "--weights", weights, "--output", tmp_path / "1") == 0
    expanded = ["--time-expansion", 10]
    assert run(slow, "--weights", weights, "--output", tmp_path / "10", *expanded) == 0
    ours, theirs = (pd.read_csv(tmp_path / name / "events.csv") for name in ("1", "10"))
    assert len(ours) > 3 and ours.drop(columns="file").equals(theirs.drop(columns="file"))


def test_stored_decoding_is_used(tmp_path, weights):
    model = denet_torch.load(weights)
    assert detection.stored_decoding(model) == detection.Decoding()
    model.detection = {"labels": ["background", "bat"], "threshold": 0.7, "call_gap": 0.3}
    assert detection.stored_decoding(model, call_gap=0) == detection.Decoding(0.7)
    assert detection.class_names(model) == ["background", "bat"]
