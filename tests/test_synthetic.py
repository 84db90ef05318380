import hashlib
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
from test_recorder import guan, write

from tools import make_dataset as command
from training import synthetic
from training.collection import build_index
from training.synthetic import EMITTERS, SAMPLERATE, make_background, make_call, make_dataset, make_tables


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("synthetic") / "data", 40, seed=3, max_seconds=2)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_dataset(tmp_path / name, 8, seed, max_seconds=1)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_a_real_clip_is_heard_at_its_true_speed(tmp_path):
    sound = np.random.default_rng(0).integers(-9000, 9000, 5000).astype(np.int16)
    path = write(tmp_path / "slow.wav", SAMPLERATE // 10, [guan(TE=10)], sound)
    np.testing.assert_allclose(synthetic._read_clip(path), sound / 2**15, atol=1e-7)


def test_the_layout_is_that_of_the_collection(dataset):
    lines = (dataset / "FileInfo.csv").read_text().splitlines()
    assert lines[0].count(",") == 9
    assert len({line.count(",") for line in lines[1:]}) > 2
    assert max(line.count(",") for line in lines[1:]) > 9
    first = lines[1].split(",")
    path = dataset / first[3] / first[2]
    assert path.parent.name == "files101" and path.suffix == ".WAV"
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (250_000, 1, "PCM_16")
    assert 1 <= info.duration <= 2


def test_every_fault_is_there(dataset, tmp_path):
    found, report = build_index(dataset, tmp_path / "index.parquet")
    reasons = report.groupby("table")["reason"].agg(set)
    assert reasons["FileInfo.csv"] == {
        "file missing",
        "0 bytes",
        "header only",
        "duplicate",
        "unparsable number",
    }
    assert reasons["FileInfo.csv segments"] == {
        "end before start",
        "past the end",
        "unparsable number",
        "recording dropped",
    }
    assert reasons["Annotations.csv"] == {
        "end before start",
        "past the end",
        "unparsable number",
        "no such recording",
        "recording dropped",
        "duplicate",
    }
    # 40 sound ones, and one shorter than a frame
    assert len(found.recordings) == 41
    assert (found.recordings["frames"] < 12_500).sum() == 1
    assert (found.annotations["emitter"] < 0).any() and (found.annotations["emitter"] == 0).any()
    annotated = found.annotations.merge(found.recordings["frames"], left_on="recording", right_index=True)
    assert (annotated["stop"] == annotated["frames"]).any()  # tails to the end


def test_the_voiced_segments_are_the_truth(dataset, tmp_path):
    found, _ = build_index(dataset, tmp_path / "index.parquet")
    truth = pd.read_csv(dataset / "truth.csv")
    segments = found.voice.assign(recording=found.recordings["file"].to_numpy()[found.voice["recording"]])
    segments = segments[segments["recording"].isin(truth["recording"])]
    assert len(segments) == len(truth) == len(found.voice)
    np.testing.assert_allclose(segments["start"] / 250_000, truth["onset"], atol=1e-6)
    np.testing.assert_allclose(segments["stop"] / 250_000, truth["offset"], atol=1e-6)
    length = truth["offset"] - truth["onset"]
    assert length.between(0.05 - 1e-5, 0.3 + 1e-5).all()
    assert truth["snr_db"].between(-5, 20).all()
    assert truth["context"].between(0, 12).all() and truth["emitter"].isin(EMITTERS).all()
    assert length.sum() < 0.1 * found.recordings["frames"].sum() / 250_000
    assert 0 < found.recordings["file"].isin(truth["recording"]).sum() < 40  # some hold no call


def test_calls_are_in_the_sound(dataset):
    truth = pd.read_csv(dataset / "truth.csv")
    loud = truth[truth["snr_db"] > 12]
    assert len(loud) > 3
    for call in loud.itertuples():
        sound, _ = soundfile.read(dataset / call.recording)
        onset, offset = round(call.onset * 250_000), round(call.offset * 250_000)
        inside, before = sound[onset:offset], sound[max(0, onset - 20_000) : onset]
        if len(before) > 10_000:
            assert np.median(np.abs(inside)) > 1.5 * np.median(np.abs(before))


def test_calls_have_the_spectrum_of_the_bats():
    frequency = np.fft.rfftfreq(50_000, 1 / 250_000)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        call = make_call(rng, EMITTERS[seed], seed, 50_000)
        assert np.mean(call**2) == pytest.approx(1, rel=1e-3)
        power = np.abs(np.fft.rfft(call)) ** 2
        share = [
            power[(frequency >= low) & (frequency < high)].sum() / power.sum()
            for low, high in ((0, 8000), (5000, 30_000), (60_000, 100_000), (110_000, 125_000))
        ]
        assert share[0] > 0.2  # enough for a model that hears up to 8 kHz
        assert share[1] > 0.5
        assert 0 < share[3] < share[2] < 0.01


def test_backgrounds_have_unit_power():
    for seed in range(12):
        sound = make_background(np.random.default_rng(seed), 30_000)
        assert sound.dtype == np.float32 and sound.shape == (30_000,)
        assert np.mean(sound**2) == pytest.approx(1, rel=1e-2)


def test_clips_lie_behind_half_of_the_recordings(tmp_path):
    tone = np.sin(2 * np.pi * 1234 * np.arange(44_100) / 44_100)
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "tone.wav", tone, 44_100)
    out = make_dataset(tmp_path / "data", 24, max_seconds=1, background=tmp_path / "clips")
    with_tone = 0
    for path in out.rglob("*.WAV"):
        if path.stat().st_size > 400_000:
            sound, _ = soundfile.read(path)
            power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
            peak = np.argmax(power) * 250_000 / len(sound)
            with_tone += abs(peak - 1234) < 5
    assert 6 <= with_tone <= 18


def test_tables_alone(tmp_path):
    out = make_tables(tmp_path / "tables", 300, 100)
    assert sorted(path.name for path in out.iterdir()) == ["Annotations.csv", "FileInfo.csv"]
    found, report = build_index(out, headers=False)
    assert report.empty
    assert len(found.recordings) == 300 and len(found.annotations) == 100
    assert 1 < len(found.voice) / 300 < 6


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["make_dataset", *map(str, words)])
    return command.main(), *capsys.readouterr()


def test_the_command(tmp_path, monkeypatch, capsys):
    words = [tmp_path / "data", "--recordings", 8, "--seed", 1, "--max-seconds", 1]
    assert run(monkeypatch, capsys, *words)[0] == 0
    made = digest(tmp_path / "data")
    for faulty in (
        words,  # is there already
        [tmp_path / "b", "--recordings", 3],
        [tmp_path / "b", "--max-seconds", 0.1],
        [tmp_path / "b", "--background", tmp_path / "none"],
    ):
        code, out, err = run(monkeypatch, capsys, *faulty)
        assert code == 2 and not out
        assert err.startswith("error: ") and err.count("\n") == 1
    assert digest(tmp_path / "data") == made
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_nothing_is_left_of_an_interrupted_set(tmp_path, monkeypatch):
    write, count = soundfile.write, iter(range(3))

    def interrupted(*args, **options):
        if next(count) == 2:
            raise KeyboardInterrupt
        write(*args, **options)

    monkeypatch.setattr(soundfile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "data", 8, max_seconds=1)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_the_signal_to_noise_ratio(tmp_path, monkeypatch, capsys):
    words = ["--recordings", 8, "--seed", 3, "--max-seconds", 1]
    assert run(monkeypatch, capsys, tmp_path / "a", *words, "--snr-db", 10, 20)[0] == 0
    make_dataset(tmp_path / "b", 8, seed=3, max_seconds=1, snr_db=(10, 20))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    capsys.readouterr()
    code, _, err = run(monkeypatch, capsys, tmp_path / "c", *words, "--snr-db", 20, 10)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
