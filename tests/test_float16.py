"""float16 with gradient scaling on a CPU: the scaler's state, steps left out, clipping, two ranks, what stays float32."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_trainer_ranks import in_ranks
from test_trainer_resume import assert_same_end, saved
from torch.amp import GradScaler
from trainer_cases import tiny

from denet_torch import get_denet, layers, sincnet
from training import loop
from training.bfloat16 import Float32Products, emulated
from training.labels import IGNORE
from training.losses import cross_entropy, focal
from training.precision import Mixed
from training.runs import Stop, Stopped

HALF = {"amp": True, "amp_dtype": "float16"}
SETTINGS = HALF | {"checkpoint_steps": 1, "epoch_windows": 60}
FIRST_SCALE = 2.0**28


@pytest.fixture(scope="module", autouse=True)
def too_large_a_scale():
    """PyTorch's first scale, 65,536, suits these gradients already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=FIRST_SCALE))
        yield


@pytest.fixture(scope="module")
def whole(collection, tmp_path_factory):
    """A run that was left alone."""
    config = tiny(collection, tmp_path_factory.mktemp("half") / "whole", **SETTINGS)
    return loop.train(config)


def test_the_scale_falls_until_gradients_are_finite_and_is_saved(whole):
    scaler = saved(whole.out)["precision"]
    assert scaler["scale"] == FIRST_SCALE / 2**whole.progress.skipped and whole.progress.skipped > 5
    assert 10 < scaler["_growth_tracker"] <= len(whole.progress.losses) - whole.progress.skipped  # steps since the last one
    assert np.isfinite(whole.progress.losses).all() and not whole.progress.skipped_in_a_row


@pytest.mark.parametrize("step", [3, 17])
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(whole, collection, tmp_path, monkeypatch, step):
    config = tiny(collection, tmp_path / "stopped", **SETTINGS)
    plain = loop.Trainer._stop_if_asked

    def stop_early(trainer, *args, **how):
        trainer.stop.code = 0 if trainer.progress.step == step else None
        plain(trainer, *args, **how)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop.Trainer, "_stop_if_asked", stop_early)
        loop.train(config)
    assert saved(config.out)["progress"]["step"] == step
    loop.train(replace(config, resume=True))
    assert_same_end(whole.out, config.out)


@pytest.fixture
def trainer(collection, tmp_path):
    config = tiny(collection, tmp_path / "run", dropout=0.0, clip_norm=1e-3, warmup_steps=0, **HALF)
    made = loop.Trainer(config, loop.get_fabric(config), tmp_path, Stop(), lambda epoch, score: None)
    made.module.train()
    with emulated(made.fabric):
        yield made


def set_scale(trainer: loop.Trainer, scale: float) -> None:
    trainer.precision.scaler = GradScaler("cpu", init_scale=scale)


def test_a_step_with_too_large_a_scale_is_left_out(trainer):
    batches = next(trainer._epoch_batches())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    set_scale(trainer, 2.0**40)
    trainer._step(batches)
    assert trainer.progress.skipped == 1 and trainer.precision.scaler.get_scale() == 2.0**39
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(before[name], value), name
    set_scale(trainer, 8.0)
    trainer._step(batches)
    assert trainer.progress.skipped == 1 and trainer.progress.skipped_in_a_row == 0
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_gradients_are_clipped_after_they_are_unscaled(trainer, monkeypatch):
    batches = next(trainer._epoch_batches())
    norms = []
    monkeypatch.setattr(trainer.optimizer, "zero_grad", lambda: norms.append(norm(trainer.model)))
    for scale in (4.0, 64.0):
        set_scale(trainer, scale)
        trainer.model.zero_grad()
        trainer._step(batches)
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-3)  # --clip-norm, whatever the scale


def norm(model: torch.nn.Module) -> float:
    return float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())


@pytest.mark.parametrize("mode", ["frame", "file"])
def test_both_modes_train(collection, tmp_path, mode):
    config = tiny(collection, tmp_path / mode, mode=mode, epochs=3, **HALF)
    result = loop.train(config)
    assert np.isfinite(result.progress.losses).all()
    assert saved(config.out)["precision"]["scale"] < FIRST_SCALE


def test_scaled_gradients_are_those_of_float32(collection):
    torch.manual_seed(0)
    model = get_denet((4, 400), 2, dropout=0.0, n_filters=4, gru_units=16, dense_units=(8, 8)).train()
    x, labels = torch.randn(6, 4, 400), torch.arange(24).reshape(6, 4) % 2

    def gradients(plugin: Mixed | None) -> torch.Tensor:
        model.zero_grad()
        with Float32Products(), torch.autocast("cpu", torch.float16, enabled=plugin is not None):
            loss = cross_entropy(model(x), labels).mean()
        if plugin is None:
            loss.backward()
        else:
            plugin.backward(loss, model)
            plugin.unscale_gradients(torch.optim.SGD(model.parameters(), 1.0))
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    plugin = Mixed("16-mixed", "cpu", GradScaler("cpu", init_scale=1024.0))
    half, full = gradients(plugin), gradients(None)
    assert F.cosine_similarity(half, full, dim=0) > 0.99 and (half.norm() / full.norm() - 1).abs() < 0.05


# What stays float32: numbers that half precision cannot hold, and what comes out if it is not asked to.


def test_layer_norm_of_large_numbers():
    x = 1000 * torch.randn(3, 5, 60).half()
    assert x.square().sum(dim=-1).isinf().any()
    norm = layers.LayerNorm(60)
    with torch.autocast("cpu", torch.float16):
        found = norm(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, norm(x.float()))


def test_layer_norm_of_small_numbers_keeps_its_epsilon():
    x = 1e-6 * torch.randn(3, 5, 60)
    assert not torch.tensor(1e-8).half()
    with torch.autocast("cpu", torch.float16):
        found = layers.LayerNorm(60)(x)
    torch.testing.assert_close(found, layers.LayerNorm(60)(x))


def test_batch_norm_of_large_numbers():
    x = 1000 * torch.randn(3, 5, 8).half()
    assert (x * x).sum().isinf()
    with torch.autocast("cpu", torch.float16):
        found = layers.BatchNorm(8).train()(x)
    torch.testing.assert_close(found, layers.BatchNorm(8).train()(x.float()))


def test_sincnets_norm_of_large_numbers():
    x = 1000 * torch.randn(3, 10, 60).half()
    assert x.square().sum(dim=-1).isinf().any()
    norm = sincnet.SampleNorm(10, 60)
    with torch.autocast("cpu", torch.float16):
        found = norm(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, norm(x.float()))


@pytest.mark.parametrize("make", [lambda: layers.SincConv1D(80, 251, 16000), lambda: sincnet.SincFilters(80, 251, 16000)])
def test_sinc_filters_are_those_of_float32(make):
    layer = make()

    def filters():
        if isinstance(layer, sincnet.SincFilters):
            return layer.filters()
        return layers.sinc_filters(layer.filt_b1, layer.filt_band, layer.sr, layer.taps)

    with torch.autocast("cpu", torch.float16):
        half = filters()
    assert half.dtype == torch.float32 and torch.equal(half, filters())


def test_gradients_of_quiet_frames():
    """The layer norm divides by their deviation: what lies before it has gradients that half precision does not hold."""
    torch.manual_seed(0)
    sizes = {"dropout": 0.0, "n_filters": 4, "gru_units": 8, "dense_units": (8, 8)}
    model = get_denet((4, 200), 2, 4000, **sizes).train()
    x, seen = 1e-3 * torch.randn(4, 4, 200), []
    model.conv1.register_full_backward_hook(lambda layer, inputs, outputs: seen.append(outputs[0]))
    with Float32Products(), torch.autocast("cpu", torch.float16):
        (model(x).float().square().mean() * 1024).backward()
    assert seen[0].dtype == torch.float32 and seen[0].half().isinf().any()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("loss", [cross_entropy, focal])
def test_the_loss_of_many_frames_and_large_logits(loss):
    logits = torch.tensor([[40000.0, -40000.0], [0.0, 12.0]]).half().repeat(500, 1)
    labels = torch.tensor([1, 0]).repeat(500)
    labels[-1] = IGNORE
    with torch.autocast("cpu", torch.float16):
        found = loss(logits, labels)
    assert found.half().sum().isinf()
    torch.testing.assert_close(found, loss(logits.float(), labels))


# Two ranks


def end_of_a_step(config, answer) -> None:
    """Train one step and write what it did to the weights, and the loss."""
    config = replace(config, epochs=1)
    fabric = loop.get_fabric(config)
    fabric.launch()
    trainer = loop.Trainer(config, fabric, config.out, Stop(), lambda epoch, score: None)
    set_scale(trainer, 64.0)
    trainer.module.train()
    before = torch.nn.utils.parameters_to_vector(trainer.model.parameters())
    with emulated(fabric):
        loss = trainer._step(next(trainer._epoch_batches()))
    gradient = before - torch.nn.utils.parameters_to_vector(trainer.model.parameters())
    state = {"gradient": gradient.detach(), "loss": loss, "scaler": trainer.precision.state_dict()}
    torch.save(state | {"skipped": trainer.progress.skipped}, answer)


def test_two_ranks_take_the_step_of_one_process(collection, tmp_path):
    config = tiny(
        collection, tmp_path / "one", batch_size=8, epoch_windows=8, dropout=0.0, optimizer="sgd", learning_rate=1.0,
        rate_factor=1.0, clip_norm=1e6, warmup_steps=0, schedule="constant", **HALF,
    )  # fmt: skip
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    halves = replace(config, out=tmp_path / "two", batch_size=4, devices=2)
    one, *ranks = in_ranks(end_of_a_step, config, halves, tmp_path)
    assert one["skipped"] == 0 and one["gradient"].norm() > 1e-3
    for rank in ranks:
        assert (rank["gradient"] - one["gradient"]).norm() < 1e-3 * one["gradient"].norm()
        assert rank["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert rank["scaler"] == one["scaler"]
    assert torch.equal(ranks[0]["gradient"], ranks[1]["gradient"])
