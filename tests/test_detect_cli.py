"""tools.detect and tools.detect_batch: what it takes, what it writes, restart, processes, bad input."""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import denet_torch
from denet_torch import detection, get_denet, measures
from denet_torch.audio import AudioError
from denet_torch.schema import Detection
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


def test_lists_that_hold_themselves_or_each_other_many_times(tmp_path):
    (tmp_path / "a.txt").write_text("b.txt\n")
    (tmp_path / "b.txt").write_text("a.txt\n")
    with pytest.raises(AudioError, match=r"a\.txt: is a list that holds itself"):
        detect_batch.collect([str(tmp_path / "a.txt")])
    for i in range(19):  # would be 10 to the 19 names
        (tmp_path / f"{i}.txt").write_text(f"{i + 1}.txt\n" * 10)
    (tmp_path / "19.txt").write_text("a.wav\n")
    assert detect_batch.collect([str(tmp_path / "0.txt")]) == [Path("a.wav")]
    (tmp_path / "deep.txt").write_text("0.txt\n")
    with pytest.raises(AudioError, match="stands in more than 20 lists"):
        detect_batch.collect([str(tmp_path / "deep.txt")])


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
    model = denet_torch.load(weights)
    expected = denet_torch.detect(model, sorted(paths))
    assert list(table.columns) == [*expected, *measures.MEASURES, "p call", "clock", "site"]
    measured = table[measures.MEASURES]
    pd.testing.assert_frame_equal(measured, denet_torch.measure(expected)[measures.MEASURES], atol=1e-6, check_dtype=False)
    table = table[list(expected)]
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


@pytest.mark.parametrize(
    "option",
    [["--weights", "none.safetensors"], ["--threshold", "2"], ["--hop", "7"], ["--reference", "none.csv"]],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(tmp_path, weights, capsys, option):
    path = noise(tmp_path / "a.wav", 0.5)
    code = run(path, "--weights", weights, "--output", tmp_path / "out", *option)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert code == 2 and len(errors) == 1 and errors[0].startswith("error: ")
    assert not (tmp_path / "out").exists()


def riff(*chunks, size=None, form=b"WAVE"):
    """A RIFF file of chunks (name, content), padded to even lengths."""
    body = b"".join(
        name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2) for name, data in chunks
    )
    length = len(body) + 4 if size is None else size
    return b"RIFF" + length.to_bytes(4, "little") + form + body


def corpus(folder):
    """Odd recordings, by name: those that hold the sound of good.wav, and those that nobody can use."""
    good = noise(folder / "good.wav", 2.0)
    sound = soundfile.read(good)[0]
    pcm = (sound * 32767).round().astype("<i2").tobytes()
    fmt = (b"fmt ", struct.pack("<HHIIHH", 1, 1, SR, 2 * SR, 2, 16))
    data = (b"data", pcm)
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "IMA_ADPCM"):
        soundfile.write(folder / f"{subtype}.wav", sound, SR, subtype=subtype)
    soundfile.write(folder / "UPPER.WAV", sound, SR, format="WAV")
    soundfile.write(folder / "extensible.wav", sound, SR, format="WAVEX")
    soundfile.write(folder / "rf64.wav", sound, SR, format="RF64")
    soundfile.write(folder / "stereo.wav", np.stack([sound, sound], axis=1), SR)
    soundfile.write(folder / "eight.wav", np.stack([sound] * 8, axis=1), SR, format="WAVEX")
    soundfile.write(folder / "big-endian.aiff", sound, SR)
    soundfile.write(folder / "lossless.flac", sound, SR)
    before = [(b"bext", bytes(602)), (b"junk", b"odd"), (b"LIST", b"INFOICMT" + struct.pack("<I", 2) + b"x\0")]
    whole = {
        "chunks.wav": riff(*before, fmt, (b"fact", bytes(4)), data, (b"guan", b"GUANO|Version: 1.0")),
        "trailing.wav": riff(fmt, data) + b"left over by a recorder",
        "endless.wav": riff(fmt, size=2**32 - 1) + b"data" + b"\xff" * 4 + pcm,
        "unfinished.wav": riff(fmt, size=0) + b"data" + bytes(4) + pcm,  # its header says no samples
        "half.wav": riff(fmt, size=len(pcm) // 2 + 36) + b"data" + struct.pack("<I", len(pcm) // 2) + pcm,
        "spaces and ü #%.wav": good.read_bytes(),
    }
    broken = {
        "empty.wav": b"",
        "header-only.wav": riff(fmt, (b"data", b"")),
        "header-cut.wav": riff(fmt, data)[:30],
        "no-data.wav": riff(fmt),
        "text.wav": b"this is no sound\n" * 100,
        "html.wav": b"<html><body>404</body></html>",
        "zeros.wav": bytes(4096),
        "44.wav": bytes(range(44)),
        "no-channels.wav": riff((b"fmt ", struct.pack("<HHIIHH", 1, 0, SR, 0, 0, 16)), data),
        "no-rate.wav": riff((b"fmt ", struct.pack("<HHIIHH", 1, 1, 0, 0, 2, 16)), data),
        "unknown-codec.wav": riff((b"fmt ", struct.pack("<HHIIHH", 999, 1, SR, 2 * SR, 2, 16)), data),
        "one-sample.wav": riff(fmt, (b"data", pcm[:2])),
        "cut.flac": (folder / "lossless.flac").read_bytes()[:3000],
        "noise.flac": b"fLaC" + bytes(range(256)) * 20,
    }
    for name, content in {**whole, **broken}.items():
        (folder / name).write_bytes(content)
    soundfile.write(folder / "whole numbers.wav", (sound * 32767).round(), SR, subtype="FLOAT")
    soundfile.write(folder / "loud.wav", sound * 1e4, SR, subtype="DOUBLE")
    (folder / "phone.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    broken |= dict.fromkeys(["whole numbers.wav", "loud.wav", "phone.m4a"])
    for name in ("a.caf", "a.au", "a.w64", "a.rf64", "a.voc", "a.nist", "a.ircam", "a.wavex", "a.mat5", "a.pvf", "a.paf"):
        soundfile.write(folder / name, sound, SR, "PCM_16", format=name[2:].upper())
    (folder / "numbers.mat").write_bytes(b"MATLAB 5.0 MAT-file, of numbers")
    soundfile.write(folder / "nan.wav", np.where(np.arange(len(sound)) == 500, np.nan, sound), SR, subtype="FLOAT")
    broken["nan.wav"] = None
    return broken


def test_odd_recordings_are_searched_or_named_in_one_line(tmp_path, weights, capsys):
    broken = corpus(tmp_path / "in")
    assert run(tmp_path / "in", "--weights", weights, "--output", tmp_path / "out") == 2
    said = capsys.readouterr()
    lines = said.err.replace("\r", "\n").splitlines()
    notes = [line for line in lines if line.startswith("note: ")]
    assert all(any(name in note and "the header says" in note for note in notes) for name in ("unfinished.wav", "half.wav"))
    lines = [line for line in lines if line.startswith("error: ")]
    assert said.out.splitlines()[-1].endswith(f"; {len(broken)} skipped, with the reason above")
    searched = set(map(Path, pd.read_csv(tmp_path / "out" / "recordings.csv").file))
    named = {path for path in (tmp_path / "in").iterdir() if any(f"{path}: " in line for line in lines)}
    assert named == {tmp_path / "in" / name for name in broken}
    assert len(lines) == len(named) and searched | named == {*(tmp_path / "in").iterdir()} - {tmp_path / "in" / "numbers.mat"}
    assert not searched & named
    events = pd.read_csv(tmp_path / "out" / "events.csv").set_index("file")
    expected = events.loc[[str(tmp_path / "in" / "good.wav")]]
    assert len(expected) > 2
    for path in searched:
        if path.stem not in ("PCM_U8", "ALAW", "IMA_ADPCM"):  # these lose too much for equality
            found = events.loc[[str(path)]]
            pd.testing.assert_frame_equal(
                found.reset_index(drop=True), expected.reset_index(drop=True), atol=2e-3
            )


def test_only_bad_recordings_write_nothing(tmp_path, weights, capsys):
    soundfile.write(tmp_path / "short.wav", np.zeros(100), SR)
    assert run(tmp_path / "short.wav", "--weights", weights, "--output", tmp_path / "out") == 2
    assert "short.wav" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_threshold_computes_nothing(tmp_path, weights, monkeypatch):
    path = noise(tmp_path / "a.wav")
    assert run(path, "--weights", weights, "--output", tmp_path / "out") == 0
    first = pd.read_csv(tmp_path / "out" / "events.csv")
    monkeypatch.setattr(detect_batch, "search", None)  # would raise if it were called
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


KILLED = """
import os, signal, sys
from tools import detect, detect_batch
work, begun = detect_batch._work, []
def killed(job, part):
    begun.append(part)
    if len(begun) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(job, part)
detect_batch._work = killed
detect.main(sys.argv[1:])
"""


def test_killed_and_restarted_equals_uninterrupted(tmp_path, weights):
    for i in range(3):
        noise(tmp_path / "in" / f"{i}.wav", seconds=100, seed=i)
    order = [tmp_path / "in", "--weights", weights, "--output"]
    how = dict(cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    killed = subprocess.run(command("-c", KILLED, *order, tmp_path / "killed", "--batch-size", 100), **how)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "killed").glob("parts/*.npy"))) == 2 and not (tmp_path / "killed" / "events.csv").exists()
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


def test_what_is_stored_with_the_weights_is_used(tmp_path, weights):
    model = denet_torch.load(weights)
    assert detection.stored_decoding(model) == detection.Decoding()
    model.detection = Detection(("background", "bat"), detection.Decoding(0.7, call_gap=0.3))
    denet_torch.save(model, tmp_path / "stored.safetensors")
    path = noise(tmp_path / "a.wav")
    assert run(path, "--weights", tmp_path / "stored.safetensors", "--output", tmp_path / "out") == 0
    found = pd.read_csv(tmp_path / "out" / "events.csv")
    expected = denet_torch.detect(denet_torch.load(weights), path, threshold=0.7, call_gap=0.3)
    assert set(found.label) == {"bat"} and found.score.min() >= 0.7
    assert found.onset.tolist() == expected.onset.tolist()


def test_formats_and_report(tmp_path, weights):
    path, out = noise(tmp_path / "a.wav"), tmp_path / "out"
    (tmp_path / "reference.csv").write_text("file,onset,offset\na.wav,1.0,1.25\n")
    options = ["--formats", "raven", "frames.csv", "--report", "--reference", tmp_path / "reference.csv"]
    assert run(path, "--weights", weights, "--output", out, *options) == 0
    assert (out / "raven" / "a.Table.1.selections.txt").exists()
    assert len(pd.read_csv(out / "frames.csv")) == 100
    assert '"reference": [{"onset": 1.0, "offset": 1.25, "label": "call"}]' in (
        out / "report" / "a.wav.html"
    ).read_text(encoding="utf-8")
    assert "a.wav.html" in (out / "report" / "index.html").read_text(encoding="utf-8")


def test_a_folder_without_audio_stops_no_other_path(tmp_path, weights, capsys):
    good = noise(tmp_path / "good" / "a.wav", 1)
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert run(tmp_path / "empty", good, tmp_path / "*.mp3", tmp_path / "none.txt", "--weights", weights, "--output", out) == 2
    said, err = capsys.readouterr()
    assert " in 1 recording, 1.0 s of audio" in said and "times real time" in said
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and "empty: no recordings here" in errors[0] and "none.txt" in errors[2]
    assert len(pd.read_csv(out / "recordings.csv")) == 1
    assert run(tmp_path / "empty", "--weights", weights, "--output", tmp_path / "out2") == 2
    assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_output_that_is_a_file_is_refused_before_computing(tmp_path, weights, capsys, output):
    (tmp_path / "file").write_text("mine")
    assert run(noise(tmp_path / "a.wav", 1), "--weights", weights, "--output", tmp_path / output) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --output ") and "is a file; name a folder" in err and err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["cuda", "cuda:3", "moon", "cuda:x"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, weights, capsys, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if torch.cuda.device_count() and name == "cuda":
        pytest.skip("there is a GPU")
    assert run(noise(tmp_path / "a.wav", 1), "--weights", weights, "--device", name, "--output", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --device {name}: ") and err.count("\n") == 1
    assert ("no GPU" in err) == name.startswith("cuda")


def test_the_pace_is_said_in_one_way(tmp_path, weights, capsys):
    words = [noise(tmp_path / "a.wav", 1), "--weights", weights, "--output", tmp_path / "out"]
    for pace in ("times real time", "all was computed before"):
        assert run(*words) == 0
        assert pace in capsys.readouterr().out
