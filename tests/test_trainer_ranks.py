"""Two gloo processes, started as torchrun starts them, compute what one process computes."""

import multiprocessing
import os
from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch.distributed import TCPStore
from trainer_cases import tiny

from training import loop
from training.evaluation import Predictions
from training.loop import WEIGHTS


def train_in_float64(config, answer) -> None:
    """Train in double precision, in which a gradient that differs is a gradient that is wrong, and write the end to `answer`."""
    torch.set_default_dtype(torch.float64)
    loop.get_fabric = lambda config: Fabric(accelerator="cpu", devices=config.devices, precision="64-true")
    result = loop.train(config)
    torch.save({"predictions": vars(result.predictions), "test": result.test, "losses": result.progress.losses}, answer)


def in_rank(function, rank: int, port: int, config, answer) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
    function(config, answer)


def in_ranks(function, config, halves, folder) -> list[dict]:
    """What function(config, answer) wrote to `answer` in one process, and function(halves, answer) in two ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.loop"])
    answers = [folder / name for name in ("one-end", "rank0-end", "rank1-end")]
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has it: no port that others could take
    processes = [context.Process(target=function, args=(config, answers[0]))]
    processes += [context.Process(target=in_rank, args=(function, i, store.port, halves, answers[1 + i])) for i in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    return [torch.load(answer, weights_only=False) for answer in answers]


@pytest.fixture(scope="module")
def both(collection, tmp_path_factory):
    """Folders of one process's run and of two processes' with the same global batch, and what each of the three ended with.

    One step of SGD at rate 1 from the same weights: the weights differ by the gradients' difference.
    """
    folder = tmp_path_factory.mktemp("ranks")
    config = tiny(
        collection, folder / "one", batch_size=8, epochs=1, epoch_windows=8, dropout=0.0, optimizer="sgd", learning_rate=1.0,
        warmup_steps=0, schedule="constant", clip_norm=1e6, class_weights=[1.0, 3.0],
    )  # fmt: skip
    halves = replace(config, out=folder / "two", batch_size=4, devices=2)
    return config.out, halves.out, in_ranks(train_in_float64, config, halves, folder)


def test_gradients_are_the_one_process_gradients(both):
    one, two, ends = both
    torch.testing.assert_close(load_file(one / WEIGHTS), load_file(two / WEIGHTS), rtol=0, atol=1e-6)
    for end in ends[1:]:
        assert end["losses"] == pytest.approx(ends[0]["losses"], abs=1e-6)


def test_predictions_and_scores_of_both_ranks_are_the_whole(both):
    whole, *ranks = both[2]
    for rank in ranks:
        ours, theirs = Predictions(**rank["predictions"]), Predictions(**whole["predictions"])
        torch.testing.assert_close(ours.probabilities, theirs.probabilities, rtol=0, atol=1e-5)
        assert torch.equal(ours.labels, theirs.labels)
        assert (ours.recording == theirs.recording).all() and (ours.start == theirs.start).all()
        for group, values in whole["test"].items():
            assert rank["test"][group] == pytest.approx(values, abs=1e-5, nan_ok=True), group


def test_batch_norm_statistics_are_those_of_all_frames(both):
    one, two = (load_file(out / WEIGHTS) for out in both[:2])
    for name in ("batch_norm1.moving_mean", "batch_norm1.moving_variance", "batch_norm2.moving_variance"):
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6)
        assert one[name].abs().max() > 1e-3
