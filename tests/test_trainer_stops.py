"""What stops a run, and what does not: signals to all of its processes, recordings that go bad, steps that are left out."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from test_trainer_resume import assert_same_end
from trainer_cases import as_options, tiny

import denet_program
import training.detector
import training.files
import training.fitting
from denet_torch.files import PARTIAL
from training import checkpoints, loop, runs
from training.loop import WEIGHTS, train
from training.run import main

ROOT = Path(__file__).resolve().parents[1]
MOMENTS = int(os.environ.get("DENET_MOMENTS", 2))
SEED = int(os.environ["DENET_SEED"])  # tests/conftest.py
BEGUN = 0.15  # s; before, the interpreter reads its own files
TROUBLE = re.compile("Traceback|Exception ignored|Error|terminate|Fatal")


@pytest.fixture(scope="module")
def whole(collection, tmp_path_factory):
    config = tiny(collection, tmp_path_factory.mktemp("stops") / "whole", epochs=6, epoch_windows=100, workers=2)
    train(replace(config, workers=0))
    return config


def not_ignored() -> None:
    """For a process that begins: shells have what runs in the background ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment_of_runs() -> dict[str, str]:
    """That of the tests, their path included: a run that found another `denet_torch/fast` would have other weights."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start(options: list[str], log: Path) -> subprocess.Popen:
    """A run in a process group of its own."""
    environment = environment_of_runs()
    command = [sys.executable, "-m", "training.run", *options]
    how = {"stdout": log.open("w"), "stderr": subprocess.STDOUT, "env": environment}
    return subprocess.Popen(command, start_new_session=True, preexec_fn=not_ignored, **how)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_to_the_whole_group_saves_and_says_how_to_go_on(whole, tmp_path, number, code):
    print(f"seed {SEED}")
    out, log = tmp_path / "run", tmp_path / "log"
    options = as_options(replace(whole, out=out))
    process = start(options, log)
    steps = random.Random(SEED).randrange(75)  # of 150: what is left takes far longer than to see it
    while not any(int(done) >= steps for done in re.findall(r"training: .*?(\d+)/150 ", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    os.killpg(process.pid, number)
    assert process.wait() == code, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said and f"--resume {out} goes on" in said, said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left
    assert main([*options, "--workers", "0", "--resume"]) == 0
    assert_same_end(whole.out, out)


def worked(process: subprocess.Popen) -> float:
    """Seconds of processor time that a process has had."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def denet(folder: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tools.command", *words]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment_of_runs(), "cwd": folder}
    return subprocess.Popen(command, start_new_session=True, preexec_fn=not_ignored, **how)


def ended(process: subprocess.Popen, code: int = 0, seen: str = "") -> str:
    """What a process said that ends with this code."""
    said, err = process.communicate()
    assert process.returncode == code, f"{seen}\n{said}\n{err}"
    return said + err.replace("\r", "\n")


def length(process: subprocess.Popen) -> float:
    """Seconds of processor time until it ends, as it should."""
    longest = 0.0
    while process.poll() is None:
        longest = max(longest, worked(process))
        time.sleep(0.005)
    ended(process)
    return longest


def interrupted(process: subprocess.Popen, moment: float) -> str:
    """What was seen of a process that Ctrl-C comes to after so many seconds of processor time: one line, or it had ended."""
    while process.poll() is None and worked(process) < moment:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate()
    seen = f"after {moment:.2f} s: {process.returncode}\n{said}\n{err}"
    assert process.returncode in (denet_program.STOPPED, 0), seen
    assert not TROUBLE.search(said + err), seen
    told = [line for line in (said + err.replace("\r", "\n")).splitlines() if line.startswith("stopped")]
    assert len(told) == (process.returncode != 0), seen
    return seen


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith((PARTIAL, checkpoints.PARTIAL))]


RUNS = {
    "frames": {"epochs": 6, "epoch_windows": 100},
    "files": {"mode": "file", "model": "sincnet", "task": "context", "n_filters": 6, "hidden_units": [8], "epoch_windows": 100},
    "boxes": {"model": "boxes", "seq_len": 10, "rate_factor": 1.0, "epoch_windows": 16},
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", RUNS)
def test_ctrl_c_at_any_moment_of_a_run_is_one_line_and_loses_nothing(collection, tmp_path, kind):
    """MOMENTS drawn from the whole of a run, its imports and its end too; DENET_MOMENTS=10 draws ten.

    Moments are seconds of processor time: however much else the machine has to do, those of a run are the same.
    """
    if kind == "boxes":
        pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    print(f"seed {SEED}")
    settings = tiny(collection, tmp_path / "whole", checkpoint_steps=3, **RUNS[kind])
    whole, chance = length(denet(tmp_path, "train", *as_options(settings))), random.Random(SEED)
    for number in range(MOMENTS):
        out = tmp_path / f"run{number}"
        words = as_options(replace(settings, out=out))
        seen = interrupted(denet(tmp_path, "train", *words), chance.uniform(BEGUN, whole))
        assert not half_written(tmp_path), seen
        ended(denet(tmp_path, "train", *(["--resume", str(out)] if (out / runs.CONFIG).exists() else words)), seen=seen)
        assert_same_end(settings.out, out)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_at_any_moment_of_a_sweep_is_one_line_and_the_same_command_goes_on(collection, tmp_path):
    pytest.importorskip("optuna", reason="optuna is not installed")
    print(f"seed {SEED}")

    def command(name: str) -> list[str]:
        options = as_options(tiny(collection, tmp_path / name, epochs=1))
        return ["sweep", *options, "--trials", "2", "--search", "learning_rate"]

    whole, chance = length(denet(tmp_path, *command("whole"))), random.Random(SEED)
    for number in range(MOMENTS):
        words = command(f"sweep{number}")
        seen = interrupted(denet(tmp_path, *words), chance.uniform(BEGUN, whole))
        assert not half_written(tmp_path), seen
        ended(denet(tmp_path, *words), seen=seen)
        trials = pd.read_csv(tmp_path / f"sweep{number}" / "trials.csv")
        assert len(trials) == 2 and trials["score"].notna().all(), seen
        for trial in trials["trial"]:
            assert (tmp_path / f"sweep{number}" / f"trial-{trial:03d}" / "scores.json").exists(), seen


def test_signals_while_a_loaders_processes_start_end_none(monkeypatch):
    ignore = runs._ignore_signals

    def early(worker):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        ignore(worker)

    monkeypatch.setattr(runs, "_ignore_signals", early)
    assert torch.cat(list(runs.Loader(range(8), num_workers=2))).tolist() == list(range(8))


def test_a_signal_before_the_first_step_ends_at_once(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "open_data", lambda config: os.kill(os.getpid(), signal.SIGINT))
    assert main(as_options(replace(whole, out=tmp_path / "run"))) == 130
    assert capsys.readouterr().out.strip().splitlines()[-1] == "stopped before there was anything to save; start it again"


@pytest.mark.parametrize("kind", ["files", "boxes"])
def test_a_signal_within_the_first_step_waits_for_its_end(collection, tmp_path, capsys, monkeypatch, kind):
    """Half a step would be saved otherwise, and done again."""
    if kind == "boxes":
        pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    settings = tiny(collection, tmp_path / "whole", **RUNS[kind] | {"epochs": 1, "epoch_windows": 8})
    assert main(as_options(settings)) == 0
    read = training.fitting.read_numbers

    def interrupted(*values):
        monkeypatch.setattr(training.fitting, "read_numbers", read)
        signal.raise_signal(signal.SIGINT)
        return read(*values)

    monkeypatch.setattr(training.fitting, "read_numbers", interrupted)
    out = tmp_path / "run"
    assert main(as_options(replace(settings, out=out))) == 130
    assert capsys.readouterr().out.splitlines()[-1] == f"stopped; --resume {out} goes on"
    assert main(["--resume", str(out)]) == 0
    assert_same_end(settings.out, out)


def test_a_signal_within_an_import_is_not_told_once_a_run_saves(tmp_path, monkeypatch):
    """It is noted, and the next whole step ends the run."""
    (tmp_path / "slow_library.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with runs.stop_signals() as stop:
        import slow_library  # noqa: F401

        stop.later = True
        time.sleep(5 * denet_program.SOON)
    assert stop.code == 130


def test_a_signal_after_the_last_step_is_told_when_all_is_done(whole, tmp_path, monkeypatch):
    write = loop.write_json

    def interrupted(path, values):
        if path.name == "scores.json":
            signal.raise_signal(signal.SIGINT)
        write(path, values)

    monkeypatch.setattr(loop, "write_json", interrupted)
    config = replace(whole, out=tmp_path / "run", epochs=1, workers=0)
    with pytest.raises(runs.Stopped, match="was at its end and is whole"):
        train(config)
    assert (config.out / "scores.json").exists()


def test_a_signal_while_the_report_is_written_lets_it_be_written(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    from training import run

    write = run.write_report

    def interrupted(result):
        os.kill(os.getpid(), signal.SIGINT)
        write(result)

    monkeypatch.setattr(run, "write_report", interrupted)
    assert main(as_options(replace(whole, out=out, epochs=1, report=True, workers=0))) == 130
    assert (out / "report.html").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_recordings_do_not_end_a_run(collection, tmp_path, capsys, workers):
    data = tmp_path / "data"
    shutil.copytree(collection, data)
    config = tiny(data, tmp_path / "run", epochs=3, epoch_windows=60, workers=workers)
    loop.prepare_data(config)
    rng, windows = random.Random(SEED), loop.open_data(config)
    print(f"seed {SEED}")
    sides = rng.sample([windows.train, windows.validation, windows.test], 2)  # two of one may be all of it: no run goes on then
    missing, not_numbers = (windows.collection.path(rng.choice(side.recordings.tolist())) for side in sides)
    missing.unlink()
    sound, rate = soundfile.read(not_numbers)
    sound[::50] = np.nan
    soundfile.write(not_numbers, sound, rate, "FLOAT", format="WAV")
    assert main(as_options(config)) == 0
    said = capsys.readouterr().out
    assert (config.out / WEIGHTS).exists() and (config.out / "scores.json").exists()
    named = [path for path in (missing, not_numbers) if f"warning: {path}" in said]
    assert named and "left out" in said


@pytest.mark.parametrize("kind", RUNS)
def test_a_side_none_of_which_can_be_read_any_more_is_not_scored(collection, tmp_path, capsys, monkeypatch, kind):
    """Its recordings are too few to be too many."""
    if kind == "boxes":
        pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    data = tmp_path / "data"
    shutil.copytree(collection, data)
    config = tiny(data, tmp_path / "run", **RUNS[kind] | {"epochs": 1})
    monkeypatch.setattr(training.guards, "MAX_UNREADABLE", 0.9)
    describe = loop.describe

    def harming(*arguments):
        describe(*arguments)
        for path in data.glob("files*/*.WAV"):
            if path.relative_to(data).as_posix() in lost:
                path.unlink()

    train(replace(config, out=tmp_path / "other"))
    split = pd.read_csv(next((tmp_path / "other").glob("split-*.csv")))
    lost = set(split["file"][split["side"] == "validation"])
    for module in (loop, training.files):
        monkeypatch.setattr(module, "describe", harming)
    assert main(as_options(config)) == 2
    assert "recordings that are to be scored" in (err := capsys.readouterr().err) or "files that are to be scored" in err
    assert not (config.out / WEIGHTS).exists()


@pytest.mark.parametrize(("harm", "cached"), [("deleted", False), ("cut", False), ("not numbers", False), ("deleted", True)])
def test_recordings_that_go_bad_in_mid_run_do_not_end_training_of_files(collection, tmp_path, capsys, monkeypatch, harm, cached):
    """One of each side, when the first epoch has been validated."""
    data = tmp_path / "data"
    shutil.copytree(collection, data)
    config = tiny(data, tmp_path / "run", epochs=2, **RUNS["files"] | {"task": "call"})
    if not cached:
        monkeypatch.setattr(training.files, "CACHED", 0)
    harmed, evaluate = [], training.files.evaluate

    def harming(model, files, title="test", check=lambda: None):
        found = evaluate(model, files, title, check)
        sides = sorted(path.name for path in (config.out.glob("split-*.csv")))
        if not harmed and sides:
            table = pd.read_csv(config.out / sides[0])
            harmed.extend(harm_one_of_each_side(data, table, harm))
        return found

    monkeypatch.setattr(training.files, "evaluate", harming)
    assert main(as_options(config)) == 0
    said = capsys.readouterr().out
    scores = json.loads((config.out / "scores.json").read_text())
    if harm != "cut":  # a file that is shorter is scored by what there is
        answers = pd.read_csv(config.out / "answers.csv", keep_default_na=False).set_index("file")["answer"]
        assert answers[str(harmed[1])] == "" and (answers == "").sum() == 1
        assert f"warning: {harmed[1]}" in said and scores["excluded"]["cannot be read any more"] >= 1
        assert scores["files"] == len(answers) - 1
    if not cached:
        assert f"warning: {harmed[0]}" in said and said.count(str(harmed[0])) == 1


def harm_one_of_each_side(data: Path, split: pd.DataFrame, harm: str) -> list[Path]:
    """A recording of the training side and one of the test side, of which each can now be read no more, or not whole."""
    harmed = []
    for side in ("train", "test"):
        path = next(path for path in map(data.joinpath, split["file"][split["side"] == side]) if readable(path))
        harmed.append(path)
        sound, rate = soundfile.read(path)
        path.unlink()
        if harm != "deleted":
            sound = sound[:40] if harm == "cut" else np.where(np.arange(len(sound)) % 50, sound, np.nan)
            soundfile.write(path, sound, rate, "FLOAT", format="WAV")
    return harmed


@pytest.mark.parametrize("harm", ["deleted", "cut", "not numbers"])
@pytest.mark.parametrize("when", ["at the start", "after an epoch"])
def test_recordings_that_go_bad_do_not_end_training_of_boxes(collection, tmp_path, capsys, monkeypatch, harm, when):
    pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    data = tmp_path / "data"
    shutil.copytree(collection, data)
    config = tiny(data, tmp_path / "run", epochs=2, **RUNS["boxes"] | {"epoch_windows": 40})
    harmed, name = [], "Batches" if when == "at the start" else "search"
    whole = getattr(training.detector, name)

    def harming(*arguments):
        if not harmed:
            harmed.extend(harm_one_of_each_side(data, pd.read_csv(next(config.out.glob("split-*.csv"))), harm))
        return whole(*arguments)

    monkeypatch.setattr(training.detector, name, harming)
    assert main(as_options(config)) == 0
    said, scores = capsys.readouterr().out, json.loads((config.out / "scores.json").read_text())
    tested = pd.read_csv(next(config.out.glob("split-*.csv")))["side"].eq("test").sum()
    assert f"warning: {harmed[1]}" in said and scores["recordings"] == tested - 1
    assert scores["excluded"]["cannot be read any more"] == said.count("its windows are left out") >= 1
    if when == "at the start" or harm == "deleted":
        assert said.count(f"warning: {harmed[0]}") == 1


def test_boxes_of_a_recording_that_cannot_be_read_are_not_learned(collection, tmp_path):
    pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    config = tiny(collection, tmp_path / "run", **RUNS["boxes"])
    loop.prepare_data(config)
    data = loop.open_data(config)
    model = training.detector.get_model("boxes", config, 2)
    unreadable = training.guards.Unreadable(100)
    batches = training.detector.Batches(data, model.layout, unreadable)
    sound, boxes, blank = batches.draw(np.random.default_rng(0), 16)
    assert sum(map(len, boxes)) and sound.any(dim=(1, 2)).all() and not blank.all()
    for recording in data.train.recordings:
        unreadable.found.add(int(recording))
    sound, boxes, blank = batches.draw(np.random.default_rng(0), 16)
    assert not sum(map(len, boxes)) and not sound.any() and blank.all()
    assert np.isfinite(sum(model.train()(sound, boxes, blank).values()).item())


@pytest.mark.parametrize("kind", ["boxes", "files"])
def test_many_recordings_that_go_bad_end_training(collection, tmp_path, capsys, kind):
    if kind == "boxes":
        pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    data = tmp_path / "data"
    shutil.copytree(collection, data)
    config = tiny(data, tmp_path / "run", **RUNS[kind])
    loop.prepare_data(config)
    for path in sorted(data.glob("files*/*.WAV"))[::2]:
        path.unlink()
    assert main(as_options(config)) == 2
    assert "other recordings, too many to go on" in capsys.readouterr().err


def test_recordings_that_go_bad_do_not_end_beans(tmp_path, capsys, monkeypatch):
    from training import beans

    pytest.importorskip("sklearn", reason="scikit-learn is not installed (the extra beans)")
    (tmp_path / "audio").mkdir()
    rng, rows = np.random.default_rng(0), ["File Name,Emitter"]
    for i in range(60):
        rows.append(f"{120601 + i % 5}{i:06}.wav,{beans.EMITTERS[i % 2]}")
        soundfile.write(tmp_path / "audio" / rows[-1].split(",")[0], 0.1 * rng.standard_normal(4000), 4000, "FLOAT")
    (tmp_path / "annotations.csv").write_text("\n".join(rows) + "\n")
    lost, fit = [], beans.fit

    def harming(fabric, model, train, *rest):
        if not lost:
            lost.extend([train.paths[0], train.paths[1]])
            lost[0].unlink()
            soundfile.write(lost[1], np.full(4000, np.nan), 4000, "FLOAT")
        return fit(fabric, model, train, *rest)

    monkeypatch.setattr(beans, "fit", harming)
    options = ["--epochs", "1", "--epoch-windows", "16", "--batch-size", "16", "--sample-rate", "4000", "--hidden-units", "8"]
    monkeypatch.setattr(beans, "split_by_day", lambda table: None)
    assert beans.main([str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 0
    said = capsys.readouterr().out
    assert f"warning: {lost[0]}" in said and "accuracy" in said


def readable(path):
    try:
        return soundfile.info(path).frames > 0
    except soundfile.LibsndfileError:
        return False


def test_a_step_that_is_left_out_leaves_the_statistics_alone(collection, tmp_path, monkeypatch):
    config = tiny(collection, tmp_path / "run", on_nonfinite="skip")
    trainer = loop.Trainer(config, loop.get_fabric(config), tmp_path, runs.Stop(), lambda epoch, score: None)
    trainer.module.train()
    batch = next(trainer._epoch_batches())[0]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer._step([batch | {"waveform": batch["waveform"] * torch.nan}])
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert trainer.progress.skipped == 1
    trainer._step([batch])
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_a_run_that_ends_in_an_error_loses_no_step(collection, tmp_path, capsys, monkeypatch):
    config = tiny(collection, tmp_path / "run", epoch_windows=40)
    step = loop.Trainer._step

    def failing(trainer, batches):
        if trainer.progress.step == 7:
            batches[0]["waveform"][:] = torch.nan
        return step(trainer, batches)

    monkeypatch.setattr(loop.Trainer, "_step", failing)
    assert main(as_options(config)) == 2
    assert "step 7: the loss is nan" in capsys.readouterr().err
    path, _ = checkpoints.find(config.out)
    assert path.name.startswith("step-000000007-")


def test_resume_without_a_name_takes_no_older_run(collection, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    for name, file in (("20260101-000000", runs.CONFIG), ("20260102-000000", ".lock")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    config = tiny(collection, tmp_path / "any", resume=True)
    assert runs._choose(replace(config, out=None)).name == "20260102-000000"
