"""The detector of boxes: pictures, learning, the trainer, detection in parts, what is said without torchvision."""

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from trainer_cases import as_options, tiny

import denet_torch
from denet_torch.boxes import Layout, events
from denet_torch.detection import answer_seconds, count_answers, search
from denet_torch.schema import Decoding, Detection
from tools import detect
from training import detector, run
from training.config import Config, TrainingError
from training.registry import get_model
from training.runs import Stopped
from training.synthetic import make_dataset

SR, FRAME, SEQ_LEN = 8000, 400, 20  # images of a second


def with_tones(rng, seconds: float, calls: list[tuple]) -> np.ndarray:
    """Noise with a tone for each call (onset, offset, low, high), in the middle of its band."""
    sound = rng.normal(0, 0.02, round(seconds * SR))
    for onset, offset, low, high in calls:
        time = np.arange(round(onset * SR), min(round(offset * SR), len(sound))) / SR
        sound[round(onset * SR) :][: len(time)] += 0.3 * np.sin(np.pi * (low + high) * time)
    return sound.astype(np.float32)


def draw_call(rng, seconds: float) -> tuple:
    onset, length, low = rng.uniform(0, seconds - 0.3), rng.uniform(0.1, 0.25), rng.uniform(100, 3100)
    return onset, onset + length, low, low + 800


@pytest.mark.parametrize("samples, rate, columns", [(400, 8000, 64), (1102, 22_050, 256), (12_500, 250_000, 256)])
def test_what_is_learned_is_what_is_found(samples, rate, columns):
    """Where the columns do not end with the sequence, boxes were learned up to a column late: 7.6 ms of 2 s at 250 kHz."""
    pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    model = denet_torch.Boxes((40, samples), 2, rate, columns=columns)
    seconds = model.layout.seconds
    calls = pd.DataFrame({"onset": [0.0, 0.4, 0.9], "offset": [0.2, 0.6, 1.0]}) * seconds
    calls = calls.assign(low_hz=0.1 * rate, high_hz=0.3 * rate, label=1)
    target = model._target(torch.from_numpy(model.layout.within(calls, 0).to_numpy(np.float64)))
    found = model._in_seconds(target | {"scores": torch.ones(3)}, 0.0)
    np.testing.assert_allclose(found[:, :2], calls[["onset", "offset"]], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[:, 2:4], calls[["low_hz", "high_hz"]], rtol=1e-9)


def test_calls_that_overlap_take_their_time_from_the_background_once(monkeypatch):
    """Two calls at once from 1 to 7 s left -1 s of background in 12 s, and the false positive rate was below 0."""
    columns = ["file", "onset", "offset", "label"]
    reference = pd.DataFrame([("a.wav", 1.0, 7.0, "x"), ("a.wav", 1.0, 7.0, "y"), ("b.wav", 0.0, 1.0, "x")], columns=columns)
    side = detector.Side(["a.wav", "b.wav"], [10.0, 2.0], [np.zeros((0, 7))] * 2, reference)
    found = pd.DataFrame([("a.wav", 8.0, 9.0, "x", 0.9)], columns=[*columns, "score"])
    monkeypatch.setattr(detector.Side, "estimated", lambda *_: found)
    assert side.scores(None, None)["rates"]["false_positive_rate"] == pytest.approx(1 / 5)


@pytest.fixture(scope="module")
def small():
    """A small detector that has learned tones."""
    pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    torch.manual_seed(0)
    model = denet_torch.Boxes((SEQ_LEN, FRAME), 2, SR, columns=64, rows=32, channels=32)
    optimizer, rng = torch.optim.Adam(model.parameters(), 2e-3), np.random.default_rng(0)
    for _ in range(100):
        drawn = [[draw_call(rng, 1.0) for _ in range(rng.integers(3))] for _ in range(8)]
        sounds = np.stack([with_tones(rng, 1.0, calls) for calls in drawn]).reshape(8, SEQ_LEN, FRAME)
        tables = [pd.DataFrame(calls, columns=["onset", "offset", "low_hz", "high_hz"]).assign(label=1) for calls in drawn]
        boxes = [torch.from_numpy(model.layout.within(table, 0).to_numpy(np.float32).reshape(-1, 5)) for table in tables]
        sum(model(torch.from_numpy(sounds), boxes).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    # How sure it is of the last of the calls, 0.50 to 0.62 over eight seeds, hangs on the processor; that it is less sure of all
    # else does not.
    model.detection = Detection(("background", "tone"), Decoding(0.05))
    scores = denet_torch.detect(model, tones(), samplerate=SR)["score"].nlargest(len(CALLS) + 1)
    model.detection = Detection(("background", "tone"), Decoding(float(scores[-2:].mean())))
    return model


CALLS = [(0.3, 0.5, 800, 1600), (0.65, 0.9, 2500, 3300), (1.4, 1.62, 500, 1300), (2.2, 2.4, 3000, 3800), (3.1, 3.3, 1500, 2300)]


def tones() -> np.ndarray:
    return with_tones(np.random.default_rng(1), 3.6, CALLS)


@pytest.fixture
def recording(tmp_path):
    """A recording of several images, with calls over their borders, and its calls."""
    soundfile.write(tmp_path / "a.wav", tones(), SR, subtype="FLOAT")
    return tmp_path / "a.wav", CALLS


def test_a_small_detector_learns_tones(small, recording):
    path, calls = recording
    found = denet_torch.detect(small, path)
    assert list(found) == ["file", "onset", "offset", "label", "score", "low_hz", "high_hz"] and set(found["label"]) == {"tone"}
    assert len(found) == len(calls)
    for event, call in zip(found.itertuples(), calls, strict=True):
        assert abs(event.onset - call[0]) < 0.1 and abs(event.offset - call[1]) < 0.1
        assert abs(event.low_hz - call[2]) < 400 and abs(event.high_hz - call[3]) < 400


def test_images_of_a_part_are_those_of_the_whole(small, recording, tmp_path):
    path, _ = recording
    number = count_answers(small, path)
    assert number == 5 and answer_seconds(small) == 0.75
    whole = search(small, path)
    parts = [search(small, path, i, i + 2, batch_size=1) for i in range(0, number, 2)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-3)
    with pytest.raises(ValueError, match="hop"):
        search(small, path, hop=1)
    with pytest.raises(ValueError, match="low threshold"):
        denet_torch.detect(small, path, low_threshold=0.1)
    denet_torch.save(small, tmp_path / "w.safetensors")
    loaded = denet_torch.load(tmp_path / "w.safetensors")
    again = denet_torch.detect(small, path)
    pd.testing.assert_frame_equal(denet_torch.detect(loaded, path), again)
    in_memory = denet_torch.detect(small, soundfile.read(path, dtype="float32")[0], samplerate=SR)
    pd.testing.assert_frame_equal(in_memory.drop(columns="file"), again.drop(columns="file"), atol=1e-4)


def test_detection_writes_frequencies_pages_and_goes_on(small, recording, tmp_path, capsys):
    path, calls = recording
    denet_torch.save(small, tmp_path / "w.safetensors")
    words = [str(path), "--weights", str(tmp_path / "w.safetensors"), "--output", str(tmp_path / "out")]
    assert detect.main([*words, "--report", "--formats", "raven"]) == 0
    found = pd.read_csv(tmp_path / "out" / "events.csv")
    assert len(found) == len(calls) and (found["low_hz"] < found["high_hz"]).all()
    page = json.loads(re.search(r'json">(.*)</script>', (tmp_path / "out" / "report" / "a.wav.html").read_text("utf-8"))[1])
    assert [event["low_hz"] for event in page["events"]] == found["low_hz"].round(1).tolist()
    raven = next((tmp_path / "out" / "raven").rglob("*.txt")).read_text()
    assert "Low Freq (Hz)" in raven.splitlines()[0]
    capsys.readouterr()
    assert detect.main([*words, "--threshold", "0.99"]) == 0  # from what was computed
    assert "all was computed before" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "out" / "events.csv")) < len(found)
    assert detect.main([*words, "--formats", "frames.csv"]) == 2
    assert "frame by frame" in capsys.readouterr().err


def test_a_tone_is_bright_at_its_place():
    pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    model = denet_torch.Boxes((SEQ_LEN, FRAME), 2, SR, columns=80, rows=40)
    sound = with_tones(np.random.default_rng(0), 1.0, [(0.5, 0.6, 900, 1100)])
    sound[6000:] = 0  # digital silence is no call
    image = model.images(torch.from_numpy(sound.reshape(1, SEQ_LEN, FRAME)))[0, 0].numpy()
    layout = model.layout
    assert image.shape == (40, 80) == (layout.height, layout.width) and layout == Layout(1.0, 0.25, 80, 40, 4000)
    bright = np.argwhere(image > 1)  # 20 dB
    rows, columns = bright.T
    assert 28 <= rows.min() <= rows.max() <= 31 and 38 <= columns.min() <= columns.max() <= 49
    assert (image[:, 62:] == 0).all()
    blank = torch.zeros(1, SEQ_LEN, dtype=torch.bool)
    blank[0, 8:14] = True
    assert model.images(torch.from_numpy(sound.reshape(1, SEQ_LEN, FRAME)), blank).max() < 1


def test_boxes_become_events_by_the_decoding():
    layout = Layout(2.0, 0.5, 256, 64, 8000)
    boxes = np.array(
        [
            [0.2, 0.3, 1000, 2000, 0.9, 0, 1],
            [0.35, 0.4, 1500, 2500, 0.8, 0, 1],
            [1.6, 1.7, 1000, 2000, 0.7, 0, 2],
            [1.6, 1.71, 1000, 2050, 0.6, 1.5, 2],  # the same call in the next image
            [1.6, 1.7, 3000, 4000, 0.3, 0, 2],
        ]
    )
    how = (3.0, ["background", "x", "y"])
    found = events(layout, boxes, *how, Decoding(0.5), "a")
    assert found[["onset", "label", "score"]].to_numpy().tolist() == [[0.2, "x", 0.9], [0.35, "x", 0.8], [1.6, "y", 0.7]]
    assert len(events(layout, boxes, *how, Decoding(0.2), "a")) == 4
    joined = events(layout, boxes, *how, Decoding(0.5, min_gap=0.1, min_duration=0.15), "a")
    assert joined[["onset", "offset", "low_hz", "high_hz"]].to_numpy().tolist() == [[0.2, 0.4, 1000, 2500]]
    assert not len(events(layout, boxes[:0], *how, Decoding(0.5), "a"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("boxes") / "data", 12, snr_db=(15, 20))


def boxes_run(data, out, **changes) -> Config:
    settings = {"model": "boxes", "seq_len": 10, "epoch_windows": 8, "batch_size": 4, "rate_factor": 1.0, "learning_rate": 1e-3}
    return tiny(data, out, **(settings | changes))


def test_the_trainer_stops_goes_on_and_tells_scores(data, tmp_path, capsys, monkeypatch):
    pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    whole, parts = (boxes_run(data, tmp_path / name, keep=1) for name in ("whole", "parts"))
    assert run.main(as_options(whole)) == 0
    told = capsys.readouterr().out
    assert "event F1" in told and "Split by" in told
    scores = json.loads((whole.out / "scores.json").read_text())
    assert [epoch["epoch"] for epoch in scores["epochs"]] == [1, 2] and scores["test"].keys() == {"events", "segments", "rates"}
    weights = denet_torch.load(whole.out / "weights.safetensors")
    assert weights.detection.labels == ("background", "call") and weights.answers_with_boxes
    original, steps = detector.Batches.draw, []

    def stop(self, rng, number):
        steps.append(number)
        if len(steps) == 4:
            raise Stopped("enough")
        return original(self, rng, number)

    monkeypatch.setattr(detector.Batches, "draw", stop)
    assert run.main(as_options(parts)) == 0
    monkeypatch.setattr(detector.Batches, "draw", original)
    assert run.main([*as_options(parts), "--resume"]) == 0
    again = denet_torch.load(parts.out / "weights.safetensors").state_dict()
    assert all(torch.equal(again[name], value) for name, value in weights.state_dict().items())
    assert run.main(as_options(boxes_run(data, tmp_path / "further", init_from=whole.out, epochs=1))) == 0


@pytest.mark.parametrize("changes, said", [
    ({"mode": "file"}, "--mode file: the model boxes finds boxes"),
    ({"amp": True}, "--amp: is of no use with --model boxes"),
    ({"overfit": 2}, "--overfit: is of no use with --model boxes"),
    ({"seq_len": 1, "frame_seconds": 0.001}, "the model cannot be built"),
])  # fmt: skip
def test_what_does_not_go_is_said(data, tmp_path, capsys, changes, said):
    pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    assert run.main(as_options(boxes_run(data, tmp_path / "run", **changes))) == 2
    assert said in capsys.readouterr().err


def test_without_torchvision_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)
    with pytest.raises(TrainingError, match=r"--model boxes: .*pip install 'denet-torch\[boxes\]'"):
        get_model("boxes", Config(model="boxes"), 2)
    with pytest.raises(ImportError):
        denet_torch.Boxes((SEQ_LEN, FRAME), 2, SR)


def test_weights_without_torchvision_say_what_to_install(small, recording, tmp_path, monkeypatch, capsys):
    denet_torch.save(small, tmp_path / "w.safetensors")
    monkeypatch.setitem(sys.modules, "torchvision.models.detection", None)
    assert detect.main([str(tmp_path), "--weights", str(tmp_path / "w.safetensors"), "--output", str(tmp_path / "out")]) == 2
    assert re.search(r"^error: .*w\.safetensors: .*denet-torch\[boxes\]", capsys.readouterr().err)
