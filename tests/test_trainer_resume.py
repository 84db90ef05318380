"""A run that is killed, told to stop, or finds a damaged checkpoint ends with the weights of one that was left alone."""

import errno
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
from dataclasses import replace

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from trainer_cases import as_options, tiny

from training import checkpoints, loop
from training.config import TrainingError
from training.loop import WEIGHTS, train
from training.run import main
from training.runs import CONFIG, Stopped
from training.synthetic import make_dataset

KILLS = 20
STATE = ("model", "optimizer", "schedule", "precision")


def saved(out) -> dict:
    path, damaged = checkpoints.find(out)
    assert not damaged
    return torch.load(path, weights_only=True)


def assert_same_end(one, other) -> None:
    first, second = saved(one), saved(other)
    torch.testing.assert_close({k: first[k] for k in STATE}, {k: second[k] for k in STATE}, rtol=0, atol=0)
    assert first["progress"]["losses"] == second["progress"]["losses"]
    assert json.dumps(first["progress"]["epochs"]) == json.dumps(second["progress"]["epochs"])  # a NaN equals no NaN
    torch.testing.assert_close(load_file(one / WEIGHTS), load_file(other / WEIGHTS), rtol=0, atol=0)


@pytest.fixture(scope="module")
def long_run(collection, tmp_path_factory):
    """Settings of a run with many checkpoints, and the folder of one that was left alone."""
    config = tiny(collection, tmp_path_factory.mktemp("run") / "whole", epochs=8, epoch_windows=40, checkpoint_steps=2)
    train(config)
    return config


def run_logged(config, log) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    train(config)


def test_twenty_kills_change_nothing(long_run, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.loop"])
    chance = random.Random(0)
    runs = [replace(long_run, out=tmp_path / "killed-0", resume=True)]
    killed = 0
    while killed < KILLS:
        process = context.Process(target=run_logged, args=(runs[-1], tmp_path / "log"))
        process.start()
        process.join(chance.uniform(0.1, 1.0))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode == -signal.SIGKILL:
            killed += 1
        else:  # it was quick enough to end: go on killing another
            assert process.exitcode == 0, (tmp_path / "log").read_text()
            runs.append(replace(runs[-1], out=tmp_path / f"killed-{len(runs)}"))
    train(runs[-1])
    for config in runs:
        assert_same_end(long_run.out, config.out)


def test_sigterm_saves_and_ends_with_0(long_run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "asked"
    options = [*as_options(replace(long_run, out=out)), "--checkpoint-steps", "0"]
    step = loop.Trainer._step

    def asked(trainer, batches):
        if trainer.progress.step == 33:
            signal.raise_signal(signal.SIGTERM)
        return step(trainer, batches)

    monkeypatch.setattr(loop.Trainer, "_step", asked)
    assert main(options) == 0
    assert "--resume" in capsys.readouterr().out
    assert saved(out)["progress"]["step"] == 34
    assert main([*options, "--resume"]) == 0
    assert_same_end(long_run.out, out)


def test_sigterm_while_the_test_split_is_scored_changes_no_checkpoint(long_run, tmp_path, monkeypatch):
    out = tmp_path / "late"
    shutil.copytree(long_run.out, out)
    before = checkpoints.newest_first(out)
    monkeypatch.setattr(loop, "scores", lambda *_: pytest.fail("the run was not stopped"))
    plain = loop.predict

    def predict_asked(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)

    monkeypatch.setattr(loop, "predict", predict_asked)
    with pytest.raises(Stopped):
        train(replace(long_run, out=out, resume=True))
    assert checkpoints.newest_first(out) == before
    assert_same_end(long_run.out, out)


def test_damaged_newest_checkpoint_is_passed_over(long_run, tmp_path, capsys):
    out = tmp_path / "damaged"
    shutil.copytree(long_run.out, out)
    newest, before = checkpoints.newest_first(out)
    with open(newest, "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    train(replace(long_run, out=out, resume=True))
    said = capsys.readouterr().out
    assert f"{newest.with_suffix('.damaged')} is damaged" in said
    assert f"resuming from {before}" in said
    assert_same_end(long_run.out, out)


def test_truncated_and_half_written_checkpoints_are_no_checkpoints(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, {"step": step}, step, keep=3)
    newest = checkpoints.newest_first(tmp_path)
    newest[0].write_bytes(newest[0].read_bytes()[:-1])
    newest[1].write_bytes(b"")
    (tmp_path / checkpoints.PARTIAL).write_bytes(b"half")
    found, damaged = checkpoints.find(tmp_path)
    assert found == newest[2]
    assert [path.name for path in damaged] == [path.with_suffix(".damaged").name for path in newest[:2]]


def test_last_few_checkpoints_are_kept(tmp_path):
    for step in (5, 10, 10, 15):
        checkpoints.save(tmp_path, {"step": step}, step, keep=2)
    assert [path.name[:14] for path in checkpoints.newest_first(tmp_path)] == ["step-000000015", "step-000000010"]


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_full_disk_keeps_the_checkpoints_there_are(tmp_path, monkeypatch, where):
    checkpoints.save(tmp_path, {"step": 1}, 1, keep=1)
    before = list(tmp_path.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile(io.FileIO):
        write = full

    if where == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(checkpoints, "open", FullFile, raising=False)
    with pytest.raises(TrainingError, match="step 2 cannot be written \\(No space left on device\\)"):
        checkpoints.save(tmp_path, {"step": 2, "model": torch.nn.Linear(300, 300)}, 2, keep=1)
    assert list(tmp_path.iterdir()) == before


def test_other_settings_do_not_resume(long_run, tmp_path):
    out = tmp_path / "other"
    shutil.copytree(long_run.out, out)
    with pytest.raises(TrainingError, match="was started with learning_rate 0.001, not 0.5"):
        train(replace(long_run, out=out, resume=True, learning_rate=0.5))
    assert yaml.safe_load((out / CONFIG).read_text())["learning_rate"] == 0.001


def test_what_is_no_file_is_no_checkpoint(tmp_path):
    """A pipe would be waited for, and a link to a device read without end."""
    name = "step-00000000{}-0123456789abcdef.ckpt"
    os.mkfifo(tmp_path / name.format(1))
    (tmp_path / name.format(2)).mkdir()
    (tmp_path / name.format(3)).symlink_to("/dev/zero")
    (tmp_path / name.format(4)).symlink_to(tmp_path / "nothing")
    checkpoints.save(tmp_path, {"a": 1}, 0, keep=1)
    found, damaged = checkpoints.find(tmp_path)
    assert found.name.startswith("step-000000000-") and not damaged


@pytest.mark.parametrize(
    "changes", [{"losses": [10**500]}, {"rates": [10**500]}, {"best": 10**500}, {"epoch_step": 2}, {"skipped": 2**63}], ids=str
)
def test_an_account_that_no_run_gives_is_refused(tmp_path, changes):
    progress = loop.Progress(step=1, losses=[1.0], rates=[0.1])
    state = {"progress": progress}
    checkpoints.save(tmp_path, state, 1, keep=2)
    checkpoints.load(checkpoints.find(tmp_path)[0], state)
    checkpoints.save(tmp_path, {"progress": progress.state_dict() | changes}, 2, keep=2)
    with pytest.raises(TrainingError, match="is no checkpoint of this run"):
        checkpoints.load(checkpoints.find(tmp_path)[0], state)


@pytest.mark.parametrize("mode", ["frame", "file"])
def test_a_run_goes_on_with_the_recordings_that_it_began_with(mode, tmp_path, capsys):
    """Of others the split is another: what the run is tested on it would have learned."""
    data, out = tmp_path / "data", tmp_path / "run"
    make_dataset(data, 16, seed=2, min_seconds=1.0, max_seconds=1.2)
    model = {"model": "sincnet", "task": "emitter"} if mode == "file" else {}
    config = tiny(data, out, mode=mode, split_by=["recording"], epochs=1, **model)
    assert main(as_options(config)) == 0
    used = pd.read_csv(next(out.glob("split-*.csv")))["file"].str.rpartition("/")[2]
    lines = (data / "FileInfo.csv").read_text().splitlines(keepends=True)
    (data / "FileInfo.csv").write_text("".join(line for line in lines if used[0] not in line))
    capsys.readouterr()
    again = [*as_options(replace(config, epochs=2)), "--resume"]
    assert main(again) == 2
    said = capsys.readouterr().err
    assert f"error: {out}: was trained by the split '" in said and "--init-from" in said
    (out / "run.json").write_text("[")
    assert main(again) == 2 and "run.json: is damaged; --resume goes on without it" in capsys.readouterr().err
