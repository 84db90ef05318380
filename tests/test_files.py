"""File mode: one label a file, decided by the sum of log posteriors; from a collection to a table of answers."""

import copy
import csv
import io
import json
import math
import signal
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from data_cases import make_collection
from test_recorder import guan, write
from trainer_cases import as_options, tiny

import denet_torch
from denet_torch.audio import AudioError
from denet_torch.classification import classify, count_windows, default_hop, file_log_posteriors
from tools import classify as classify_tool
from tools import detect
from training import files, loop, registry, run
from training.files import file_labels, filters_moved, original_reach
from training.labels import TASKS
from training.synthetic import make_dataset

RATE, WINDOW, HOP = 4000, 800, 40


@pytest.fixture(scope="module")
def sincnet():
    torch.manual_seed(0)
    model = denet_torch.SincNet((20, HOP), 3, RATE, n_filters=(6, 5, 5), taps=(51, 5, 5), hidden=(16,))
    for parameter in (model.output.weight, *(layer.weight for layer in model.hidden)):
        parameter.data *= 20  # answers that differ
    return model.eval()


def naive(model, sound):
    """Log posteriors of one chunk after another, as the recipe says it."""
    total, start = np.zeros(model.n_classes), 0
    sound = np.pad(sound, (0, max(0, WINDOW - len(sound))))
    while start + WINDOW <= len(sound):
        with torch.no_grad():
            logits = model.logits(torch.tensor(sound[None, start : start + WINDOW]).to(model.output.weight))[0].double()
        values = [float(value) for value in logits]
        high = max(values)
        norm = high + math.log(sum(math.exp(value - high) for value in values))
        total += [value - norm for value in values]
        start += HOP
    return total


def test_decisions_equal_a_naive_second_implementation(sincnet, tmp_path):
    exact = copy.deepcopy(sincnet).double()
    rng = np.random.default_rng(0)
    lengths = [1, 5, 799, 800, 801, 839, 840, 841, 1600, 2400, 800 + 127 * HOP, 800 + 128 * HOP, 800 + 129 * HOP - 1]
    lengths += rng.integers(1, 2500, 204 - len(lengths)).tolist()
    assert len(lengths) >= 200
    differing = set()
    for number, length in enumerate(lengths):
        sound = (rng.uniform(0.01, 0.5) * rng.standard_normal(length)).clip(-1, 1).astype(np.float32)
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, sound, RATE, subtype="FLOAT")
        found, expected = file_log_posteriors(sincnet, path), naive(exact, sound)
        assert found.argmax() == expected.argmax(), length
        assert np.abs(file_log_posteriors(exact, path) - expected).max() <= 1e-5, length
        differing.add(int(found.argmax()))
    assert len(differing) > 1
    assert np.array_equal(file_log_posteriors(sincnet, path, batch_size=7).argmax(), found.argmax())


def test_windows():
    assert [count_windows(length, 800, 40) for length in (1, 799, 800, 839, 840, 1600)] == [1, 1, 1, 1, 2, 21]


def test_denet_names_files_too(tmp_path):
    torch.manual_seed(0)
    model = denet_torch.get_denet((4, 400), 3, sr=RATE, n_filters=4, gru_units=8, dense_units=(8, 8)).eval()
    sound = np.random.default_rng(0).standard_normal(5000).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    assert default_hop(model) == 800
    starts = range(0, 5000 - 1600 + 1, 800)
    windows = torch.tensor(np.stack([sound[s : s + 1600] for s in starts])).view(-1, 4, 400)
    expected = model.predict_proba(windows).double().log().sum((0, 1)).numpy()
    assert np.allclose(file_log_posteriors(model, tmp_path / "a.wav"), expected, atol=1e-4)


def test_files_with_several_classes_are_left_out_and_counted():
    collection = make_collection(
        [250_000] * 6,
        [(i, 0, 1000) for i in range(5)],
        [(0, 0, 1000, 1, 118), (0, 2000, 3000, 4, 118), (1, 0, 1000, 1, 118), (1, 2000, 3000, 1, 120),
         (2, 0, 1000, 1, 0), (2, 2000, 3000, 1, 120), (3, 0, 1000, 1, -118)],
    )  # fmt: skip
    labels, classes, excluded = file_labels(collection, "emitter")
    assert classes == ("118", "120") and labels.tolist() == [0, -1, 1, -1, -1, -1]
    assert excluded == {"several classes": 1, "no class": 3}
    labels, classes, excluded = file_labels(collection, "call")
    assert classes == ("background", "call") and labels.tolist() == [1, 1, 1, 1, 1, 0] and not excluded["no annotation"]
    for task in TASKS:
        assert len(file_labels(collection, task)[0]) == 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("files") / "data", 40, snr_db=(15, 20), one_caller=True)


@pytest.mark.parametrize(("of_calls", "calls"), [(True, 1), (True, 0), (False, 1)])
def test_a_chunk_without_a_call_teaches_no_class(sincnet, tmp_path, of_calls, calls):
    """Where calls are known, and the labels are theirs; a chunk that has a bit of one does."""
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    known = [np.array([[0.5, 0.6]] * calls).reshape(-1, 2)]
    chunks = files.Chunks(files.Files([tmp_path / "a.wav"], np.array([2]), tuple("abc"), known, of_calls=of_calls), sincnet, 0)
    found = []
    for start in (0, RATE // 2 - WINDOW, RATE // 2 - WINDOW + 1, round(0.6 * RATE) - 1, round(0.6 * RATE)):
        chunks._start = lambda i, rng, start=start: start
        _, targets = chunks.draw(np.random.default_rng(0), 2)
        assert targets.shape == (2, 3) and targets.sum(1).allclose(torch.ones(2))
        found.append(targets[0].tolist() == [0, 0, 1])
    assert found == [True] * 5 if not (of_calls and calls) else found == [False, False, True, True, False]


def tiny_sincnet(data, out, **changes):
    sizes = {"model": "sincnet", "mode": "file", "task": "context", "seq_len": 4, "n_filters": 6, "hidden_units": [16]}
    return tiny(data, out, **sizes, **changes)


def test_from_a_collection_to_answers(data, tmp_path, capsys):
    config = tiny_sincnet(data, tmp_path / "run", report=True)
    assert run.main(as_options(config)) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said and "commonest class" in said and "files left out" in said and "cuts moved by" in said
    answers = list(csv.DictReader(open(config.out / "answers.csv")))
    wrong = [row for row in answers if row["label"] != row["answer"]]
    scores = json.loads((config.out / "scores.json").read_text())
    assert scores["files"] == len(answers) and scores["accuracy"] == pytest.approx(1 - len(wrong) / len(answers))
    page = (config.out / "report.html").read_text()
    for heading in ("Course", "Confusion", "Sinc filters", "Files named otherwise", "Configuration"):
        assert f"<h2>{heading}</h2>" in page
    assert all(row["file"] in page for row in wrong) and "optimizer would have moved them" in page
    weights = config.out / "weights.safetensors"
    first = denet_torch.load(weights).state_dict()

    # Stopped after an epoch and resumed: the same weights.
    again = tiny_sincnet(data, tmp_path / "again", report=True)
    from training.loop import checkpoints

    original, saved = checkpoints.save, []

    def stop(folder, state, step, keep):
        original(folder, state, step, keep)
        saved.append(step)
        if len(saved) == 1:
            raise OSError("the power went")

    checkpoints.save = stop
    try:
        assert run.main(as_options(again)) == 2
    finally:
        checkpoints.save = original
    again.resume = True
    assert run.main(as_options(again)) == 0
    second = denet_torch.load(again.out / "weights.safetensors").state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)

    capsys.readouterr()
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    good = sorted((data / "files101").glob("1206*.WAV"))[:3]
    assert classify_tool.main([*map(str, good), str(bad), "--weights", str(weights)]) == 2
    said = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [row["file"] for row in rows] == list(map(str, good)) and "bad.wav" in said.err
    classes = denet_torch.load(weights).detection.labels
    for row in rows:
        posteriors = {name: float(row[name]) for name in classes}
        assert row["label"] == max(posteriors, key=posteriors.get) and abs(sum(posteriors.values()) - 1) < 1e-4
    table = tmp_path / "who.csv"
    assert classify_tool.main([str(data / "files101" / "120[67]*.WAV"), "--weights", str(weights), "--output", str(table)]) == 0
    assert len(table.read_text().splitlines()) >= 41

    assert detect.main([str(good[0]), "--weights", str(weights), "--output", str(tmp_path / "d")]) == 2
    assert "use denet classify" in capsys.readouterr().err


def test_filters_move_at_least_5_times_as_far_as_by_the_originals_optimizer(data, tmp_path, monkeypatch):
    own = loop.train(tiny_sincnet(data, tmp_path / "own"))
    monkeypatch.setattr(denet_torch.SincNet, "rate_factors", lambda self: {})
    monkeypatch.setitem(registry.OPTIMIZERS, "rmsprop", partial(torch.optim.RMSprop, alpha=0.95, eps=1e-8))
    original = loop.train(tiny_sincnet(data, tmp_path / "original", optimizer="rmsprop"))
    moved = {name: filters_moved(run.model, run.progress) for name, run in (("own", own), ("original", original))}
    rounding = original.progress.step * np.spacing(np.float32(2000))  # of cuts of up to 2000 Hz
    assert 0 < moved["original"].max() <= original_reach(original.progress) + rounding
    assert moved["own"].mean() > 5 * moved["original"].mean()


def test_stopped_within_an_epoch_and_resumed(data, tmp_path, monkeypatch, capsys):
    whole, parts = tiny_sincnet(data, tmp_path / "whole"), tiny_sincnet(data, tmp_path / "parts")
    assert run.main(as_options(whole)) == 0
    draw, drawn = files.Chunks.draw, []

    def stop(self, *args):
        drawn.append(1)
        if len(drawn) == 2:
            signal.raise_signal(signal.SIGTERM)
        return draw(self, *args)

    monkeypatch.setattr(files.Chunks, "draw", stop)
    capsys.readouterr()
    assert run.main(as_options(parts)) == 0
    assert "goes on" in capsys.readouterr().out and len(drawn) == 2
    parts.resume = True
    assert run.main(as_options(parts)) == 0
    first, second = (denet_torch.load(config.out / "weights.safetensors").state_dict() for config in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first) and len(drawn) == 6


def test_options_of_frames_are_refused(data, tmp_path, capsys):
    assert run.main(as_options(tiny_sincnet(data, tmp_path / "run", loss="focal"))) == 2
    assert capsys.readouterr().err == "error: --loss: is of no use with --mode file\n"


def test_the_factor_of_the_metadata_is_taken(sincnet, tmp_path, capsys):
    """Of a recording that says that it was slowed down, the slow sound was classified."""
    sound = np.random.default_rng(0).integers(-9000, 9000, 900).astype(np.int16)
    slow = write(tmp_path / "slow.wav", RATE // 10, [guan(TE=10)], sound)
    plain = write(tmp_path / "plain.wav", RATE, [], sound)
    (expected,), (as_it_is,) = classify(sincnet, [plain]), classify(sincnet, [slow], time_expansion=1)
    for found in (*classify(sincnet, [slow]), *classify(sincnet, [slow], time_expansion=10)):
        assert found.drop(columns="file").equals(expected.drop(columns="file"))
    assert not as_it_is.drop(columns="file").equals(expected.drop(columns="file"))
    denet_torch.save(sincnet, tmp_path / "weights.safetensors")
    words = ["--weights", str(tmp_path / "weights.safetensors")]
    assert classify_tool.main([str(slow), *words]) == 0
    table = capsys.readouterr().out.replace("slow.wav", "plain.wav")
    assert classify_tool.main([str(plain), *words]) == 0 and capsys.readouterr().out == table
    assert classify_tool.main([str(slow), str(plain), *words]) == 2
    assert "name the factor of all with --time-expansion" in capsys.readouterr().err


def test_empty_recordings_are_said(sincnet, tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    (answer,) = classify(sincnet, [tmp_path / "empty.wav"])
    assert isinstance(answer, AudioError) and "empty.wav" in str(answer)
