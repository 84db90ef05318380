"""The command line of a run: what it writes and prints, its guards, and one clear line for whatever is wrong."""

import importlib.machinery
import importlib.util
import json
import math
import multiprocessing
import shutil
import sys
import types
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from trainer_cases import as_options, tiny

import denet_torch
from denet_torch.detection import frame_probabilities
from training import checkpoints, guards, loop, runs
from training.config import Config, TrainingError, as_dict, parse
from training.labels import IGNORE
from training.loggers import TensorBoard
from training.loop import WEIGHTS, get_fabric, train
from training.run import main
from training.runs import Stop


@pytest.fixture(scope="module")
def finished(collection, tmp_path_factory):
    """A run that has ended."""
    return train(tiny(collection, tmp_path_factory.mktemp("run") / "out"))


def error_of(capsys, options: list[str]) -> str:
    """The one line on stderr that is no progress bar, after an exit with 2."""
    assert main(options) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and captured.err.rstrip().endswith(lines[0])
    return lines[0]


def test_run_writes_what_it_says(finished, collection, capsys):
    out = finished.out
    assert {path.name for path in out.iterdir()} == {
        ".lock",
        "config.yaml",
        "run.json",
        "scores.json",
        "steps.csv",
        "epochs.csv",
        "tensorboard",
        f"split-{finished.data.split.version}.csv",
        WEIGHTS,
        *(path.name for path in checkpoints.newest_first(out)),
    }
    facts = json.loads((out / "run.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(facts["data_index_sha256"]) == 64 and facts["command"]
    found = json.loads((out / "scores.json").read_text())
    assert set(found["test"]) == {"frames", "events", "segments", "rates"}
    assert found["decoding"]["threshold"] == finished.progress.decoding["threshold"]
    assert found["best_by"] == "frames.f1"
    rows = finished.data.collection.recordings
    seconds = (rows["frames"] / rows["samplerate"]).iloc[finished.data.test.recordings].sum()
    assert found["data"]["test"]["seconds"] == pytest.approx(seconds, abs=1e-3)
    assert found["data"]["train"]["recordings"] == len(finished.data.split.train) and found["data"]["train"]["calls"]["call"] > 0
    steps, epochs = pd.read_csv(out / "steps.csv"), pd.read_csv(out / "epochs.csv")
    np.testing.assert_allclose(steps["loss"], finished.progress.losses)
    assert list(steps) == ["step", "loss", "learning_rate"] and steps["step"].tolist() == list(range(1, 7))
    assert epochs["validation.frames.f1"].tolist() == [one["validation"]["frames"]["f1"] for one in finished.progress.epochs]
    model = denet_torch.load(out / WEIGHTS)
    assert model.config == finished.model.config
    assert len(finished.progress.losses) == 6 and np.isfinite(finished.progress.losses).all()
    assert len(finished.progress.epochs) == 2


def test_several_classes_are_scored_each_and_the_best_weights_are_by_a_score_of_choice(collection, tmp_path, capsys):
    config = tiny(collection, tmp_path / "out", task="context", best_by="frames.average_precision", loggers=[])
    result = train(config)
    assert not (result.out / "tensorboard").exists()
    by_class = {name: values for name, values in result.test.items() if name.startswith("class ")}
    told = {"precision", "recall", "f1", "average_precision", "threshold"}
    assert by_class and all(set(one) == told for one in by_class.values())
    best = [one["validation"]["frames"]["average_precision"] for one in result.progress.epochs]
    assert result.progress.best_epoch == 1 + int(np.argmax(best)) and result.progress.best == max(best)
    said = capsys.readouterr().out
    assert f"test: {len(result.data.test.recordings)} recordings, " in said and "calls: " in said
    assert "frames.macro_f1: is of several classes" in error_of(
        capsys, as_options(tiny(collection, tmp_path / "one", best_by="frames.macro_f1"))
    )


def test_patience_ends_a_run_that_gets_no_better_and_a_resumed_one_where_it_ended(collection, tmp_path, capsys):
    still = tiny(collection, tmp_path / "out", epochs=9, patience=2, learning_rate=1e-12, warmup_steps=0)
    result = train(still)
    assert result.progress.best_epoch == 1 and result.progress.epoch == 3
    assert "no better frames.f1 since epoch 1: ended after epoch 3" in capsys.readouterr().out
    assert train(replace(still, resume=True)).progress.epoch == 3


def test_more_epochs_go_on_from_the_end_of_a_run_by_its_folder_alone(finished, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished.out, out)
    assert main(["--resume", str(out), "--epochs", "3"]) == 0
    assert "resuming from" in capsys.readouterr().out
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 3
    assert len(pd.read_csv(out / "epochs.csv")) == 3 and len(pd.read_csv(out / "steps.csv")) == 9
    assert "was started with epochs 3, not 2" in error_of(capsys, ["--resume", str(out), "--epochs", "2"])
    assert "no config.yaml there" in error_of(capsys, ["--resume", str(tmp_path / "none")])


@pytest.mark.parametrize("mode", ["frame", "file"])
def test_a_failed_start_leaves_no_folder(collection, tmp_path, capsys, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    wrong = ["--loss", "none"] if mode == "frame" else ["--model", "sincnet", "--sample-rate", "100", "--mode", "file"]
    for place in (["--out", str(tmp_path / "new")], []):
        error_of(capsys, ["--data-dir", str(collection), "--accelerator", "cpu", *wrong, *place])
        assert not (tmp_path / "new").exists() and not (tmp_path / "runs").exists()
    (tmp_path / "mine").mkdir()
    error_of(capsys, ["--data-dir", str(collection), "--accelerator", "cpu", *wrong, "--out", str(tmp_path / "mine")])
    assert (tmp_path / "mine").is_dir()


def on_tensorboard(out: Path, monkeypatch) -> dict[tuple[str, int], float]:
    """What TensorBoard shows of a run: values by name and step."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))  # it would load TensorFlow
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = event_accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    return {(name, event.step): event.value for name in read.Tags()["scalars"] for event in read.Scalars(name)}


def test_a_log_that_goes_on_forgets_steps_that_are_done_again(collection, tmp_path, monkeypatch):
    config = tiny(collection, tmp_path)
    for began, values in ((0, (1.0, 2.0, 3.0, 4.0)), (2, (5.0,))):
        log = TensorBoard(config, tmp_path, began)
        for step, value in enumerate(values, began + 1):
            log.log_metrics({"loss": value}, step)
    assert on_tensorboard(tmp_path, monkeypatch) == {("loss", 1): 1.0, ("loss", 2): 2.0, ("loss", 3): 5.0}


def test_weights_and_biases_gets_what_tensorboard_gets(collection, tmp_path, monkeypatch):
    logged = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)))
    began = {}
    spec = importlib.machinery.ModuleSpec("wandb", None)
    fake = types.SimpleNamespace(init=lambda **settings: began.update(settings) or run, __spec__=spec)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    result = train(tiny(collection, tmp_path / "out", loggers=["wandb", "tensorboard"], epochs=1))
    assert began["name"] == "out" and began["resume"] == "allow" and began["config"]["epochs"] == 1
    assert [step for step, values in logged if "loss" in values] == [1, 2, 3]
    (scores,) = [values for _, values in logged if "validation/frames/f1" in values]
    assert scores["validation/frames/f1"] == result.progress.epochs[0]["validation"]["frames"]["f1"]
    shown = on_tensorboard(tmp_path / "out", monkeypatch)
    assert shown == pytest.approx({(name, step): value for step, values in logged for name, value in values.items()}, nan_ok=True)
    monkeypatch.delitem(sys.modules, "wandb")
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(TrainingError, match=r"pip install 'denet-torch\[wandb\]'"):
            train(tiny(collection, tmp_path / "none", loggers=["wandb"]))


def test_test_recordings_are_never_seen(finished):
    data = finished.data
    sides = [set(split.recordings) for split in (data.train, data.validation, data.test)]
    assert not sides[0] & sides[1] and not (sides[0] | sides[1]) & sides[2]
    assert set(finished.predictions.recording) == sides[2]


def test_command_prints_scores_beside_the_majoritys_and_events(finished, collection, tmp_path, capsys):
    recording = collection / finished.data.collection.recordings["file"].iat[0]
    config = replace(
        tiny(collection, tmp_path / "out", amp=True, amp_dtype="bfloat16"), init_from=finished.out / WEIGHTS, detect=[recording]
    )
    assert main(as_options(config)) == 0
    said = capsys.readouterr().out
    assert "frame F1 of calls" in said and "always answering the commonest class: F1 0.000, accuracy 0.9" in said
    assert "onset" in said or "no events detected" in said
    assert str(tmp_path / "out") in said


def test_amp_leaves_waveforms_alone():
    fabric = get_fabric(Config(amp=True, amp_dtype="bfloat16"))
    layer, seen = torch.nn.Linear(4, 2), []
    layer.register_forward_pre_hook(lambda layer, inputs: seen.append((inputs[0].dtype, torch.is_autocast_enabled("cpu"))))
    assert fabric.setup(layer)(torch.ones(1, 4)).dtype == torch.float32  # what comes out is whole again
    assert seen == [(torch.float32, True)]


@pytest.mark.parametrize(
    "there, dtype, precision",
    [(True, "auto", "bf16-mixed"), (False, "auto", "32-true"), (False, "bfloat16", "bf16-mixed")],
)
def test_amp_on_a_cpu_is_bfloat16_only_where_it_pays(collection, tmp_path, monkeypatch, there, dtype, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": there})
    config = tiny(collection, tmp_path / "out", amp=True, amp_dtype=dtype)
    trainer = loop.Trainer(config, loop.get_fabric(config), tmp_path, Stop(), lambda epoch, score: None)
    assert trainer.precision.precision == precision
    assert any("no bfloat16 instructions" in line for line in trainer.progress.warnings) == (precision == "32-true")


def test_weights_of_the_run_find_what_the_run_scored(finished):
    """The saved weights give the probabilities in detection that were scored, up to the sequences at the end of a stretch."""
    model = denet_torch.load(finished.out / WEIGHTS)
    item = finished.data.test[0]
    collection = finished.data.collection
    ours = frame_probabilities(model, collection.root / collection.recordings["file"].iat[item["recording"]])
    both = item["frames"] - model.seq_len
    scored = finished.predictions.of(item["recording"])
    assert both > model.seq_len
    np.testing.assert_allclose(ours[:both], scored[:both], rtol=0, atol=1e-6)


def test_every_option_is_in_the_yaml_and_comes_back(tmp_path):
    config = parse(["--amp", "--no-train-attention", "--detect", "a.wav", "b.wav", "--learning-rate", "2e-4", "--out", "x"])
    assert config.amp and not config.train_attention and config.learning_rate == 2e-4
    assert [str(path) for path in config.detect] == ["a.wav", "b.wav"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(as_dict(config)))
    assert parse(["--config", str(tmp_path / "c.yaml")]) == config
    assert parse(["--config", str(tmp_path / "c.yaml"), "--no-amp"]) == replace(config, amp=False)


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for name in as_dict(Config()):
        assert "--" + name.replace("_", "-") in said


@pytest.mark.parametrize(
    "options, line",
    [
        (["--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--learning-rate", "-1"], "--learning-rate is -1.0; it must be above 0"),
        (["--learning-rate", "nan"], "learning_rate"),
        (["--subset", "2"], "--subset is 2.0; it must be at most 1"),
        (["--epochs", "many"], "epochs"),
        (["--snr-db", "20", "10"], "--snr-db takes the lowest and the highest ratio"),
        (["--dropout", "1"], "--dropout is 1.0; it must be at least 0 and below 1"),
        (["--task", "species"], "task"),
        (["--no-such-option"], "--no-such-option"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--optimizer", "lion"], "no optimizer is called 'lion'; there are adam, adamw, rmsprop, sgd"),
        (["--loss", "hinge"], "no loss is called 'hinge'; there are cross_entropy, focal"),
        (["--model", "sinknet"], "no model is called 'sinknet'; there are boxes, denet, sincnet"),
        (["--schedule", "step"], "no schedule is called 'step'"),
        (["--class-weights", "1", "2", "3"], "--class-weights has 3 numbers; there are 2 classes"),
        (["--frame-seconds", "0.001"], "too short"),
        (["--call-share", "0.95"], "--call-share"),
        (["--split-by", "cage", "moon"], "cannot split by 'moon'"),
        (["--init-from", "missing.safetensors"], "missing.safetensors: no such file"),
        (["--data-dir", "missing"], "missing: no such folder"),
        (["--backgrounds", "missing"], "missing"),
        (["--detect", "missing.wav"], "missing.wav: no such file"),
    ],
)
def test_bad_options_end_in_one_line(collection, tmp_path, capsys, options, line):
    config = as_options(tiny(collection, tmp_path / "out"))
    assert line in error_of(capsys, [*config, *options])
    assert not list((tmp_path / "out").glob("*.ckpt")) and not (tmp_path / "out" / WEIGHTS).exists()


def test_gpu_that_is_not_there(collection, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "no GPU" in error_of(capsys, [*as_options(tiny(collection, tmp_path / "out")), "--accelerator", "gpu"])


def test_folder_with_a_run_is_not_overwritten(finished, collection, capsys):
    before = (finished.out / "scores.json").read_bytes()
    assert "already holds a run" in error_of(capsys, as_options(tiny(collection, finished.out)))
    assert (finished.out / "scores.json").read_bytes() == before


def test_unwritable_folder(collection, tmp_path, capsys):
    (tmp_path / "file").write_text("")  # a folder without permissions would not stop root
    assert "cannot be written" in error_of(capsys, as_options(tiny(collection, tmp_path / "file" / "out")))


def test_two_runs_in_one_folder(collection, tmp_path, capsys):
    config = tiny(collection, tmp_path / "out", epochs=200)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.loop"])
    first = context.Process(target=train, args=(config,))
    first.start()
    try:
        while not list(config.out.glob("*.ckpt")):
            first.join(0.05)
            assert first.is_alive()
        for resume in ([], ["--resume"]):
            assert "another run is at work" in error_of(capsys, [*as_options(config), *resume])
    finally:
        first.kill()
        first.join()


def test_too_few_recordings_to_generate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "--recordings: 3 recordings cannot hold" in error_of(capsys, ["--recordings", "3"])


def test_resume_without_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "holds no run to resume" in error_of(capsys, ["--resume"])


def test_weights_that_do_not_fit_the_data(finished, collection, tmp_path, capsys):
    start = ["--init-from", str(finished.out / WEIGHTS)]
    config = as_options(tiny(collection, tmp_path / "out", sample_rate=8000))
    assert "200 samples at 4000 Hz, not 400 at 8000 Hz" in error_of(capsys, [*config, *start])


@pytest.mark.parametrize("labels", [["background", "call"], ["background", "pip"], None])
def test_weights_of_other_classes_give_all_but_their_last_layer(finished, collection, tmp_path, capsys, labels):
    model = denet_torch.load(finished.out / WEIGHTS)
    model.detection = labels and replace(model.detection, labels=tuple(labels))
    start, task = tmp_path / "start.safetensors", "context" if labels == ["background", "call"] else "call"
    denet_torch.save(model, start)
    config = tiny(collection, tmp_path / "out", task=task, init_from=start)
    trainer = loop.Trainer(config, loop.get_fabric(config), tmp_path, Stop(), lambda epoch, score: None)
    fresh = labels is not None
    assert ("all layers but the last (dense3)" in capsys.readouterr().out) == fresh
    for name, value in trainer.model.state_dict().items():
        same = value.shape == model.state_dict()[name].shape and torch.equal(value, model.state_dict()[name])
        assert same == (not fresh or not name.startswith("dense3")) or name == "dense3.bias" and labels
    assert trainer.model.n_classes == len(trainer.data.classes)


@pytest.mark.parametrize("workers", [0, 1])
def test_recording_that_goes_missing_or_shrinks(collection, tmp_path, capsys, workers):
    data = tmp_path / "data"
    shutil.copytree(collection, data)
    first = tiny(data, tmp_path / "out", epoch_windows=64, workers=workers)
    loop.prepare_data(first)
    files = sorted(data.glob("files*/1206*.WAV"))
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 4])
    line = error_of(capsys, as_options(first))
    assert "is shorter than when it was indexed" in line and any(str(path) in line for path in files)
    for path in files:
        path.unlink()
    line = error_of(capsys, as_options(replace(first, out=tmp_path / "out2")))
    assert "no such file" in line


def test_missing_recording_in_mid_run_loses_no_checkpoint(collection, tmp_path, capsys, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(collection, data)
    config = tiny(data, tmp_path / "out", epochs=3)
    save = checkpoints.save

    def save_then_lose(*arguments):
        save(*arguments)
        for path in data.glob("files*/1206*.WAV"):
            path.rename(path.with_suffix(".lost"))

    monkeypatch.setattr(checkpoints, "save", save_then_lose)
    assert "no such file" in error_of(capsys, as_options(config))
    monkeypatch.setattr(checkpoints, "save", save)
    for path in data.glob("files*/*.lost"):
        path.rename(path.with_suffix(".WAV"))
    resumed = train(replace(config, resume=True))
    whole = train(replace(config, out=tmp_path / "whole", data_dir=collection))
    assert resumed.progress.losses == whole.progress.losses


def poison(monkeypatch, step: int, value: float) -> None:
    """Make the loss of one step `value`."""
    plain = loop.get_loss("cross_entropy")
    calls = []

    def loss(logits, labels, weights):
        if logits.requires_grad:
            calls.append(1)
        return plain(logits, labels, weights) * (value if len(calls) == step and logits.requires_grad else 1)

    monkeypatch.setattr(loop, "get_loss", lambda name: loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_the_run_with_its_batch(collection, tmp_path, capsys, monkeypatch, value):
    poison(monkeypatch, 2, value)
    config = tiny(collection, tmp_path / "out")
    assert "step 1: the loss is" in error_of(capsys, as_options(config))
    batch = torch.load(tmp_path / "out" / "nonfinite-step1-rank0.pt", weights_only=True)
    assert batch["waveform"].shape == (4, 4, 200) and batch["labels"].shape == (4, 4)


def test_loss_that_is_not_finite_is_skipped_by_choice(collection, tmp_path, monkeypatch):
    poison(monkeypatch, 2, math.nan)
    result = train(tiny(collection, tmp_path / "out", on_nonfinite="skip"))
    assert result.progress.skipped == 1
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["skipped_steps"] == 1
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_learning_rate_that_is_too_high_is_named():
    assert "the loss has risen to 3.9: the learning rate is too high" in guards.epoch_warnings([0.7, 2.0, 9.0], [0.7, 0.6], 0)[0]
    assert guards.epoch_warnings([math.nan], [0.7, 0.6], 0)
    assert not guards.epoch_warnings([0.7, math.nan, 0.5], [0.7, 0.6], 0)


def test_model_with_one_answer_is_named():
    classes = ("background", "call")
    found = guards.one_answer(torch.tensor([1, 1, 0]), torch.tensor([0, 1, IGNORE]), classes)
    assert found[0].startswith("the model answers 'call' for every validation frame")
    assert not guards.one_answer(torch.tensor([1, 0]), torch.tensor([0, 1]), classes)
    assert not guards.one_answer(torch.tensor([0, 0]), torch.tensor([0, 0]), classes)


def test_batches_of_one_class_are_named(collection, tmp_path):
    config = tiny(collection, tmp_path / "out", batch_size=1, epoch_windows=8, call_share=0.0, boundary_share=0.0)
    assert any("batches hold frames of one class only" in line for line in train(config).progress.warnings)


def test_class_missing_from_a_split_is_named():
    assert guards.split_warnings("test", np.array([True, False]), ("call", "Landing")) == [
        "the test split has no Landing: nothing is learned or scored there; try another --seed or more data"
    ]
    assert guards.split_warnings("test", np.array([True, True]), ("call", "Landing")) == []


def test_contexts_are_learned_with_weights_and_focal_loss(collection, tmp_path):
    weights = [1.0] * 14
    result = train(tiny(collection, tmp_path / "out", task="context", loss="focal", class_weights=weights))
    assert result.model.n_classes == 14 and "macro_f1" in result.test["frames"]
    assert any("split has no" in line for line in result.progress.warnings)


def test_overfitting_a_few_batches_drives_the_loss_down(collection, tmp_path):
    config = tiny(
        collection, tmp_path / "out", overfit=2, epochs=60, learning_rate=3e-3, rate_factor=1.0, dropout=0.0,
        schedule="constant", warmup_steps=0,
    )  # fmt: skip
    losses = train(config).progress.losses
    assert len(losses) == 120
    assert np.mean(losses[-6:]) < 0.4 * np.mean(losses[:2])


def test_subset_is_a_reproducible_share(collection, tmp_path):
    whole = loop.open_data(tiny(collection, tmp_path)).train.recordings
    part = loop.open_data(tiny(collection, tmp_path, subset=0.5)).train.recordings
    assert 0.4 < len(part) / len(whole) < 0.6 and set(part) < set(whole)
    assert list(part) == list(loop.open_data(tiny(collection, tmp_path, subset=0.5)).train.recordings)


def test_profile_writes_a_trace(collection, tmp_path):
    train(tiny(collection, tmp_path / "out", profile=True))
    assert json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]


def test_original_attention_stays_as_it_was(collection, tmp_path):
    result = train(tiny(collection, tmp_path / "out", train_attention=False))
    torch.manual_seed(0)
    fresh = loop.get_model("denet", tiny(collection, tmp_path, train_attention=False), 2)
    torch.testing.assert_close(result.model.attention.conv1.weight, fresh.attention.conv1.weight, rtol=0, atol=0)
    assert not torch.equal(result.model.conv1.weight, fresh.conv1.weight)
    assert result.model.config["train_attention"] is False


def test_runs_that_start_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moment = types.SimpleNamespace(now=lambda: datetime(2026, 1, 1, 12))
    monkeypatch.setattr(runs, "datetime", moment)
    for _ in range(3):
        runs._choose(Config()).mkdir(parents=True)
    assert sorted(path.name for path in Path("runs").iterdir()) == [f"20260101-120000{end}" for end in ("", "-2", "-3")]
