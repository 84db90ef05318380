"""Names that are long or full of signs, one recording among several that goes bad: what was found in the others is written."""

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import denet_torch
from denet_torch import audio
from denet_torch.files import MAX_NAME, fitting
from denet_torch.schema import Decoding, Detection, class_columns
from tools import classify, detect, detect_report
from training.report import _confusion

SIGNS = r"$x$\foo$ {0} %s <b> & =1+1"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = denet_torch.DENet((4, 200, 1), 2, sr=4000, n_filters=4, gru_units=4, dense_units=(4, 4))
    model.detection = Detection(("background", SIGNS), Decoding(threshold=1e-6))
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    denet_torch.save(model, path)
    return path


def recording(path, seconds=0.5):
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(int(4000 * seconds)), 4000, format="WAV")
    return path


@pytest.mark.parametrize("stem", ["x" * 235, "x" * 246, "x" * 251, "\u00e9" * 125, SIGNS.replace("/", "")], ids=len)
def test_recordings_with_any_name_have_files_of_programs_and_pages(tmp_path, weights, stem):
    files = [str(recording(tmp_path / f"{name}.wav")) for name in (stem, stem[:-1] + "y")]
    formats = [name for name in detect.FORMATS if name != "frames.parquet"]
    words = [*files, "--weights", str(weights), "--output", str(tmp_path / "out"), "--report", "--formats", *formats]
    assert detect.main(words) == 0
    for place, count in (("raven", 3), ("audacity", 2), ("svl", 2), ("birdnet", 2), ("report", 3)):
        assert len(list((tmp_path / "out" / place).iterdir())) == count, place


def test_classes_that_are_called_as_columns_have_columns_of_their_own(tmp_path):
    assert class_columns(["a", "file", "p file", "p p file"], ("file", "onset")) == ["a", "p p p file", "p file", "p p file"]
    sound, weights = recording(tmp_path / "a.wav"), tmp_path / "a.safetensors"
    torch.manual_seed(0)
    model = denet_torch.DENet((4, 200, 1), 3, sr=4000, n_filters=4, gru_units=4, dense_units=(4, 4))
    model.detection = Detection(("onset", "file", "label"), Decoding(threshold=1e-6))
    denet_torch.save(model, weights)
    words = ["--weights", str(weights), "--output", str(tmp_path / "out"), "--formats", "frames.csv", "frames.parquet"]
    assert detect.main([str(sound), *words]) == 0
    for table in (pd.read_csv(tmp_path / "out" / "frames.csv"), pd.read_parquet(tmp_path / "out" / "frames.parquet")):
        assert [*table] == ["file", "onset", "p onset", "p file", "label"]
        assert set(table.file) == {str(sound)} and np.allclose(table[["p onset", "p file", "label"]].sum(axis=1), 1, atol=1e-5)
    net = denet_torch.SincNet((10, 40), 3, 4000, n_filters=[4, 4, 4], taps=[41, 5, 5], hidden=[8])
    net.detection = Detection(("label", "file", "c"), per="file")
    denet_torch.save(net, weights)
    assert classify.main([str(sound), "--weights", str(weights), "--output", str(tmp_path / "out.csv")]) == 0
    table = pd.read_csv(tmp_path / "out.csv")
    assert [*table] == ["file", "label", "p label", "p file", "c"] and table.file[0] == str(sound)
    assert table.label[0] in ("label", "file", "c") and np.isclose(table.iloc[0, 2:].sum(), 1)


def test_a_name_that_fits_stays_and_others_are_told_apart():
    assert fitting("a", ".txt") == "a.txt" and fitting("x" * 251, ".txt") == "x" * 251 + ".txt"
    names = {fitting("\u00e9" * 200 + end, ".txt") for end in "ab"}
    assert len(names) == 2 and all(240 < len(name.encode()) <= MAX_NAME and name.endswith(".txt") for name in names)


def test_a_recording_that_goes_bad_takes_no_other_page_away(tmp_path, weights, capsys, monkeypatch):
    good, bad, worse = (recording(tmp_path / f"{name}.wav") for name in ("good", "bad", "worse"))
    worse.write_bytes(b"")
    sound = detect_report._sound

    def going_bad(model, row, *rest):
        if row.file == str(bad):
            bad.write_bytes(b"RIFF")
        return sound(model, row, *rest)

    monkeypatch.setattr(detect_report, "_sound", going_bad)
    words = [*map(str, (good, bad, worse)), "--weights", str(weights), "--output", str(tmp_path / "out"), "--report"]
    assert detect.main(words) == 2
    said = capsys.readouterr().err
    assert f"error: {bad}: " in said and "it has no page" in said and f"error: {worse}: " in said
    index = (tmp_path / "out" / "report" / "index.html").read_text()
    assert (tmp_path / "out" / "report" / "good.wav.html").exists() and "good.wav.html" in index and "bad.wav.html" not in index


def test_what_was_not_searched_is_named_where_results_cannot_be_written(tmp_path, weights, capsys):
    good, bad = recording(tmp_path / "good.wav"), tmp_path / "bad.wav"
    bad.write_bytes(b"")
    (tmp_path / "out" / "raven").mkdir(parents=True)
    (tmp_path / "out" / "raven" / "mine.txt").write_text("x")
    words = [str(good), str(bad), "--weights", str(weights), "--output", str(tmp_path / "out"), "--formats", "raven"]
    assert detect.main(words) == 2
    said = capsys.readouterr().err
    assert f"error: {bad}: is empty" in said and "would be replaced; move it away" in said


def test_class_names_are_no_formulas(tmp_path, weights):
    path = recording(tmp_path / f"{SIGNS.replace('/', '')}.wav")
    events = denet_torch.detect(denet_torch.load(weights), path)
    assert len(events)
    denet_torch.plot(path, events).savefig(tmp_path / "a.png")
    assert "<img" in _confusion(np.eye(2), ("background", SIGNS), "")


def test_an_mp3_whose_header_says_more_than_its_frames_can_hold(tmp_path):
    """The count of frames is in a tag within the first one, which libsndfile believes."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, np.random.default_rng(0).standard_normal(48_000) / 10, 48_000, format="MP3")
    assert audio.probe(path).frames >= 48_000
    data = bytearray(path.read_bytes())
    place = max(data.find(b"Xing"), data.find(b"Info"))
    if place < 0:
        pytest.skip("this libsndfile writes no count")
    for count in (2**31 - 1, 100_000):
        data[place + 8 : place + 12] = count.to_bytes(4, "big")
        path.write_bytes(data)
        with pytest.raises(audio.AudioError, match=r"a\.mp3: "):
            audio.read(path)
