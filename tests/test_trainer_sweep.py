"""Sweeps: several processes on one study, pruning, the table and the plots, wrong options."""

import logging
import multiprocessing
import os
import signal
import threading
import types
from dataclasses import fields

import pandas as pd
import pytest
from trainer_cases import as_options, tiny

optuna = pytest.importorskip("optuna", reason="optuna is not installed")

from training import sweep as sweeps  # noqa: E402
from training.config import TrainingError  # noqa: E402
from training.runs import Stopped  # noqa: E402
from training.sweep import SweepConfig, main, sweep, table  # noqa: E402


def settings(collection, out, **changes) -> SweepConfig:
    shared = vars(tiny(collection, out, epochs=1))
    return SweepConfig(**(shared | changes))


def sweep_quietly(config) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sweep(config)


def test_two_processes_work_on_one_study(collection, tmp_path):
    config = settings(collection, tmp_path / "sweep", trials=4, search=["learning_rate", "loss"])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.sweep"])
    processes = [context.Process(target=sweep_quietly, args=(config,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    trials = pd.read_csv(config.out / "trials.csv")
    assert len(trials) in (4, 5)  # one may have been under way when the fourth ended
    assert list(trials["score"]) == sorted(trials["score"], reverse=True)
    assert trials["learning_rate"].between(1e-5, 3e-3).all() and trials["learning_rate"].nunique() == len(trials)
    assert (config.out / "history.png").stat().st_size > 1000
    for number in trials["trial"]:
        assert (config.out / f"trial-{number:03d}" / "scores.json").exists()
    before = len(trials)
    assert len(table(sweep(config))) == before  # enough: nothing is left to do


@pytest.mark.filterwarnings("error::optuna.exceptions.ExperimentalWarning")  # nobody who sweeps can do anything about them
def test_trials_behind_the_median_are_pruned(tmp_path, collection, monkeypatch):
    """Trials are as good as their learning rate says; the bad ones do not reach their last epoch."""
    reached = {}

    class Ended:
        def __init__(self, best):
            self.progress = type("Progress", (), {"best": best})

    def train(config, on_epoch, stop):
        score = 0.9 if len(reached) < 5 else 0.1
        for epoch in range(1, 5):
            reached[config.out.name] = epoch
            on_epoch(epoch, score)
        return Ended(score)

    monkeypatch.setattr(sweeps, "train", train)
    study = sweep(settings(collection, tmp_path / "sweep", trials=7))
    assert list(reached.values()) == [4] * 5 + [2] * 2
    assert list(table(study)["state"])[-2:] == ["pruned"] * 2


@pytest.mark.parametrize("raised, code", [(Stopped("stopped at step 1", 130), 130), (TrainingError("no call to train on"), 2)])
def test_what_ends_a_trial_is_one_line(tmp_path, collection, monkeypatch, capsys, caplog, raised, code):
    """Optuna logs it with a traceback if it may."""

    def train(config, on_epoch, stop):
        raise raised

    monkeypatch.setattr(sweeps, "train", train)
    monkeypatch.setattr(sweeps, "prepare_data", lambda config: None)
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    assert main(as_options(tiny(collection, tmp_path / "sweep"))) == code
    said = capsys.readouterr()
    assert not caplog.records
    assert (said.out + said.err).strip() == ("" if code == 130 else "error: ") + str(raised)


@pytest.mark.parametrize("moment", ["a trial begins", "a trial is written down", "a trial's run is at its end"])
def test_ctrl_c_in_optunas_own_work_waits_for_its_end(tmp_path, collection, monkeypatch, capsys, moment):
    """There it would leave a thread that never ends, or become an error of another name."""

    def train(config, on_epoch, stop):
        stop.later = True
        return types.SimpleNamespace(progress=types.SimpleNamespace(best=0.5))

    monkeypatch.setattr(sweeps, "train", train)
    monkeypatch.setattr(sweeps, "prepare_data", lambda config: None)
    owner, name = {
        "a trial begins": (optuna.storages._heartbeat.HeartbeatThread, "start"),
        "a trial is written down": (optuna.study._optimize, "_tell_with_warning"),
        "a trial's run is at its end": (sweeps, "train"),
    }[moment]
    plain = getattr(owner, name)

    def interrupted(*arguments, **how):
        done = plain(*arguments, **how)
        signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setattr(owner, name, interrupted)
    threads = threading.active_count()
    assert main([*as_options(tiny(collection, tmp_path / "sweep")), "--trials", "2"]) == 130
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "stopped; the same command goes on from here" and "Traceback" not in said.err
    assert threading.active_count() == threads
    study = optuna.load_study(study_name="denet", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["FAIL" if moment == "a trial begins" else "COMPLETE"]


def test_every_setting_in_the_space_is_one(collection):
    trial = optuna.trial.FixedTrial(
        {"learning_rate": 1e-3, "dropout": 0.1, "weight_decay": 1e-3, "call_share": 0.3, "batch_size": 8, "loss": "focal"}
        | {"optimizer": "sgd", "before_pooling": True}
    )
    drawn = {name: suggest(trial) for name, suggest in sweeps.SPACE.items()}
    assert drawn == trial.params
    assert set(drawn) <= {field.name for field in fields(SweepConfig)}


@pytest.mark.parametrize(
    "options, line",
    [
        ([], "--out: name the folder of the study"),
        (["--out", "x", "--search", "moon"], "--search moon: there are learning_rate"),
        (["--out", "x", "--trials", "0"], "--trials is 0"),
        (["--out", "x", "--resume"], "--resume: a sweep goes on by itself"),
        (["--out", "x", "--data-dir", "missing"], "missing: no such folder"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, monkeypatch, capsys, options, line):
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    said = capsys.readouterr().err
    assert line in said.splitlines()[-1] and "Traceback" not in said
    with pytest.raises(TrainingError):
        SweepConfig()
