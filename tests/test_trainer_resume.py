"""A run that is killed, told to stop, or finds a damaged checkpoint ends with the weights of one that was left alone."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch
import yaml
from trainer_cases import tiny

from training import checkpoints
from training.config import TrainingError
from training.loop import WEIGHTS, train
from training.run import main
from training.runs import CONFIG, Stopped

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
    assert first["progress"]["epochs"] == second["progress"]["epochs"]
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def long_run(collection, tmp_path_factory):
    """Settings of a run with many checkpoints, and the folder of one that was left alone."""
    config = tiny(collection, tmp_path_factory.mktemp("run") / "whole", epochs=6, epoch_windows=24, checkpoint_steps=2)
    train(config)
    return config


def run_logged(config, log) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    train(config)


def test_twenty_kills_change_nothing(long_run, tmp_path):
    config = replace(long_run, out=tmp_path / "killed", resume=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.loop"])
    chance = random.Random(0)
    killed = 0
    while killed < KILLS:
        process = context.Process(target=run_logged, args=(config, tmp_path / "log"))
        process.start()
        process.join(chance.uniform(0.1, 1.5))
        if process.exitcode is not None:
            assert process.exitcode == 0, (tmp_path / "log").read_text()
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
    assert killed >= 3, "the run ended before it was killed often enough"
    train(config)
    assert_same_end(long_run.out, config.out)
