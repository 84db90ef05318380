"""The network and a step of the trainer on a CUDA device that is none (fake_card.py): where tensors lie, what is waited for."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from fake_card import Card, card, to_card, walk
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor
from trainer_cases import tiny

import denet_torch
from tools import detect, detect_batch
from training import loop, report, run, runs
from training.evaluation import choose_decoding, scores
from training.losses import cross_entropy, focal
from training.metrics import predict
from training.precision import Mixed
from training.registry import get_optimizer, get_schedule
from training.runs import Stop

SMALL = {"n_filters": 4, "gru_units": 8, "dense_units": (8, 8)}
MODELS = {
    "before pooling": partial(denet_torch.get_denet, (3, 200), 2, 4000, **SMALL),
    "after pooling": partial(denet_torch.get_denet, (3, 400), 2, before_pooling=False, **SMALL),
    "SincNet": partial(denet_torch.SincNet, (4, 400), 2, hidden=(8, 8)),
}
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def test_the_walk_is_the_backward_pass_of_pytorch():
    for make in MODELS.values():
        gradients = []
        model = make().double()
        for backward in (Tensor.backward, walk):
            torch.manual_seed(0)
            model.zero_grad()
            backward(model(torch.randn(3, model.seq_len, model.samples, dtype=torch.float64)).square().sum())
            gradients.append([parameter.grad for parameter in model.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)  # they add in another order


@pytest.mark.parametrize("on_the_host", [lambda x: x * torch.ones(4), lambda x: x * x.sum().item(), lambda x: x[x > 0]])
def test_the_card_finds_what_it_is_to_find(on_the_host):
    with card() as seen:
        x = torch.empty(4, device="cuda")
        with pytest.raises((RuntimeError, AssertionError)):
            on_the_host(x)
            clean(seen)


def clean(seen: Card) -> None:
    """Nothing was waited for, copied, or computed of tensors on both sides."""
    assert not (seen.waits or seen.copied or seen.mixed), (seen.waits, seen.copied, seen.mixed)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_forward_and_a_backward_pass_stay_on_the_card(name, dtype):
    with card() as seen:
        model = to_card(MODELS[name]().train())
        x, weights = torch.empty(3, model.seq_len, model.samples, device="cuda"), torch.ones(2, device="cuda")
        labels = torch.zeros(3, model.seq_len, dtype=torch.long, device="cuda")[:, model.answers]
        seen.forget()
        for loss in (cross_entropy, focal) if dtype == torch.float32 else (cross_entropy,):
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                logits = model(x)
            loss(logits, labels, weights).sum().backward()
        probabilities = model.predict_proba(x)
        predict(probabilities)
        clean(seen)
    assert probabilities.device.type == "cuda"
    for parameter in model.parameters():
        assert parameter.grad.device == parameter.device and parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("name", MODELS)
def test_detection_reads_each_batch_once(name, tmp_path):
    model = MODELS[name]()
    soundfile.write(tmp_path / "a.wav", np.zeros(30 * model.samples, np.float32), model.sr)
    with card() as seen:
        to_card(model)
        seen.forget()
        events = denet_torch.detect(model, tmp_path / "a.wav", batch_size=16, hop=1)
        batches = -(-(30 - model.seq_len + 1) // 16)
        assert seen.waits == {"_to_copy": batches} == seen.copied and not seen.mixed
    assert len(events) == 1  # every number read from this card is 0.5, as is the threshold


@pytest.fixture
def trainer(collection, tmp_path, request):
    """A trainer whose model, optimizer and scaler are on the card, and the card; of a precision and --resample-on."""
    precision, where = request.param
    config = tiny(collection, tmp_path / "run", class_weights=[1.0, 2.0], accumulate=2, epoch_windows=24, resample_on=where)
    made = loop.Trainer(config, loop.get_fabric(config), tmp_path, Stop(), lambda epoch, score: None)
    with card() as seen:
        plugin = {"16-mixed": Mixed("16-mixed", "cuda"), "bf16-mixed": Mixed("bf16-mixed", "cuda"), None: None}[precision]
        strategy = SingleDeviceStrategy(torch.device("cuda"), accelerator=CPUAccelerator(), precision=plugin)
        made.fabric = Fabric(strategy=strategy)
        made.precision = made.fabric.strategy.precision
        made.class_weights = made.class_weights.to("cuda")
        optimizer = get_optimizer("adam", to_card(made.model), 1e-3, 1.0)
        made.schedule = get_schedule("cosine", optimizer, 2, 10)
        made.module, made.optimizer = made.fabric.setup(made.model, optimizer, move_to_device=False)
        seen.forget()
        yield made, seen


@pytest.mark.filterwarnings("ignore:'pin_memory'")
@pytest.mark.parametrize(
    "trainer",
    [("16-mixed", "loader"), ("bf16-mixed", "loader"), (None, "loader"), ("16-mixed", "device"), (None, "device")],
    indirect=True,
)
def test_a_step_of_the_trainer_waits_once(trainer):
    trainer, seen = trainer
    trainer.module.train()
    for batches in list(trainer._epoch_batches())[:2]:
        assert {key for key, value in batches[0].items() if value.device.type == "cuda"} == {"waveform", "labels"}
        seen.forget()
        loss = trainer._step(batches)
        assert seen.waits == {"_to_copy": 1} and not seen.copied and not seen.mixed
    assert loss == 0.5 and trainer.progress.step == 2 and not trainer.progress.skipped


@pytest.mark.filterwarnings("ignore:'pin_memory'")
@pytest.mark.parametrize("trainer", [("16-mixed", "loader"), ("16-mixed", "device")], indirect=True)
def test_a_batch_is_copied_without_waiting(trainer):
    trainer, seen = trainer
    filters = 2 if trainer.config.resample_on == "device" else 0  # parts of the filters for the one rate of the recordings, once
    for _ in range(2):
        for batches in trainer._epoch_batches():
            assert len(batches) == 2 and {batch["waveform"].shape for batch in batches} == {(4, 4, 200)}
    assert seen.copied["_to_copy"] == 2 * 2 * 2 * 3 + filters and seen.blocking == 0 and not seen.waits and not seen.mixed


@pytest.mark.parametrize("trainer", [("16-mixed", "device")], indirect=True)
def test_batches_are_made_ahead_in_pinned_memory(trainer, monkeypatch):
    trainer, _ = trainer
    trainer.config = replace(trainer.config, workers=2)
    made = []

    class Loader(runs.Loader):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

        def __iter__(self):
            return iter(())

    monkeypatch.setattr(loop, "Loader", Loader)
    assert list(trainer._epoch_batches()) == []
    assert [(loader.pin_memory, loader.num_workers, loader.prefetch_factor) for loader in made] == [(True, 2, 2)]


@pytest.mark.parametrize("trainer", [(None, "device")], indirect=True)
def test_validation_and_its_scores(trainer):
    trainer, seen = trainer
    data = trainer.data
    predictions = trainer._predict(data.validation, "validation")
    assert seen.waits["_to_copy"] == seen.copied["_to_copy"] and not seen.mixed
    decoding = choose_decoding(predictions, data.labeller, data.collection)
    found = scores(predictions, data.labeller, data.collection, decoding)
    assert 0 <= found["frames"]["accuracy"] <= 1


@pytest.mark.parametrize("trainer", [(None, "device")], indirect=True)
def test_the_report_of_a_model_that_lies_there(trainer):
    trainer, seen = trainer
    predictions = trainer._predict(trainer.data.test, "test")
    result = loop.Result(trainer.out, trainer.out, trainer.model, trainer.data, trainer.progress, {}, predictions)
    seen.forget()
    assert report._attention(result, int(predictions.recording[0])) is not None
    assert "Pass band of each" in report._filters(result)[0]
    assert not seen.mixed


def test_fewer_gpus_than_asked_for_are_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert run.main(["--devices", "2", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: --devices 2: PyTorch sees 1 on this machine")


def test_too_little_memory_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.00 GiB")

    monkeypatch.setattr(run, "train", full)
    monkeypatch.setattr(detect_batch, "run", full)
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 4000)
    assert run.main(["--out", str(tmp_path / "run")]) == 2
    assert detect.main([str(tmp_path / "a.wav"), "--weights", "none", "--output", str(tmp_path / "found")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: the GPU's memory does not hold this") for line in lines)
