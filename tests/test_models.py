"""The model interface: a third model in this one file trains, resumes and detects, and no other file knows of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from trainer_cases import as_options, tiny

import denet_torch
from denet_torch import audio
from denet_torch.detection import frame_probabilities
from tools import detect
from training import run
from training.config import Config, TrainingError, parse
from training.loop import Trainer
from training.registry import get_model, get_optimizer
from training.runs import Stopped
from training.synthetic import make_dataset

SINCNET = {"seq_len": 20, "frame_seconds": 0.01, "learning_rate": 1e-3, "rate_factor": 1.0}
SIZES = {"seq_len": 4, "n_filters": 6, "hidden_units": [16]}


@denet_torch.register("toy")
class Toy(denet_torch.Model):
    """Energy of a frame and of the one before it, in two layers."""

    DEFAULTS = {"seq_len": 3, "learning_rate": 0.01}

    def __init__(self, seq_len: int, samples: int, sr: int, n_classes: int):
        super().__init__()
        self.seq_len, self.samples, self.sr, self.n_classes = seq_len, samples, sr, n_classes
        self.config = {"seq_len": seq_len, "samples": samples, "sr": sr, "n_classes": n_classes}
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, n_classes))

    @classmethod
    def from_settings(cls, settings, n_classes):
        return cls(settings.seq_len, round(settings.frame_seconds * settings.sample_rate), settings.sample_rate, n_classes)

    @property
    def answers(self):
        return slice(1, self.seq_len)

    def forward(self, x):
        energy = (x.var(dim=2) + 1e-6).log()
        return self.layers(torch.stack([energy[:, 1:], energy[:, :-1]], dim=2))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("models") / "data", 16, snr_db=(15, 20))


@pytest.mark.parametrize("model", ["toy", "sincnet"])
def test_trains_and_detects(model, data, tmp_path):
    config = tiny(data, tmp_path / "run", **SIZES, model=model, report=True)
    assert run.main(as_options(config)) == 0
    page, weights = (config.out / "report.html").read_text(), config.out / "weights.safetensors"
    assert ("Sinc filters" in page) == (model == "sincnet") and "Attention per band" not in page
    recording = next((data / "files101").glob("*.WAV"))
    loaded = denet_torch.load(weights)
    assert type(loaded) is denet_torch.MODELS[model] and loaded.detection.labels == ("background", "call")
    found = tmp_path / "found"
    assert detect.main([str(recording), "--weights", str(weights), "--output", str(found), "--report"]) == 0
    assert (found / "events.csv").exists() and (found / "report" / "index.html").exists()


@pytest.mark.parametrize("model", ["toy", "sincnet"])
def test_resumes_in_mid_run(model, data, tmp_path, monkeypatch):
    """The weights after a stop and --resume are those of a run without a stop."""
    whole, parts = (tiny(data, tmp_path / name, **SIZES, model=model, checkpoint_steps=1) for name in ("whole", "parts"))
    assert run.main(as_options(whole)) == 0
    original = Trainer._stop_if_asked

    def stop(trainer, save=True):
        original(trainer, save)
        if trainer.progress.step == 4:
            raise Stopped("enough")

    monkeypatch.setattr(Trainer, "_stop_if_asked", stop)
    run.main(as_options(parts))
    monkeypatch.setattr(Trainer, "_stop_if_asked", original)
    assert run.main(as_options(replace(parts, resume=True))) == 0
    first, second = (denet_torch.load(config.out / "weights.safetensors").state_dict() for config in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_slice_of_frames_equals_the_whole(data):
    """Frames before the first answer and after the last take the nearest; short recordings are filled up."""
    recording = next((data / "files101").glob("*.WAV"))
    torch.manual_seed(0)
    model = denet_torch.SincNet((20, 40), 3, 4000, n_filters=(6, 5, 5), taps=(51, 5, 5), hidden=(8,)).eval()
    whole = frame_probabilities(model, recording)
    assert np.allclose(whole.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(whole[:11], np.repeat(whole[:1], 11, axis=0)) and not np.array_equal(whole[10], whole[11])
    for start, stop in ((0, 5), (5, 30), (len(whole) - 3, len(whole)), (33, 34)):
        assert np.array_equal(frame_probabilities(model, recording, start, stop), whole[start:stop])
    sound = audio.read(recording, rate=4000)
    chunk = torch.from_numpy(sound[7 * 40 : 27 * 40])[None]
    assert np.allclose(model.logits(chunk).softmax(-1).detach().numpy()[0], whole[17], atol=1e-6)


def test_filters_move_with_a_learning_rate_of_their_own():
    """At least five times as far as by the original's RMSprop at its common learning rate, in as many steps."""
    settings = Config(model="sincnet", sample_rate=4000, n_filters=10, hidden_units=[16], **SINCNET)
    moved = {}
    for name in ("original", "own"):
        torch.manual_seed(0)
        model = get_model("sincnet", settings, 3)
        before = torch.stack(model.pass_bands())
        if name == "original":
            optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.95, eps=1e-8)
        else:
            optimizer = get_optimizer(settings.optimizer, model, settings.learning_rate, settings.rate_factor)
        for _ in range(20):
            labels = torch.randint(3, (16,))
            tone = torch.sin(torch.arange(800) / 4000 * 2 * torch.pi * (300 + 400 * labels[:, None]))
            loss = torch.nn.functional.cross_entropy(model((tone + 0.1 * torch.randn(16, 800)).view(16, 20, 40))[:, 0], labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        moved[name] = float((torch.stack(model.pass_bands()) - before).abs().mean())
    assert moved["own"] >= 5 * moved["original"] > 0, moved


def test_defaults_of_a_model():
    assert parse(["--model", "toy"]).seq_len == 3 and parse([]).seq_len == 10
    config = parse(["--model", "sincnet", "--batch-size", "4"])
    assert (config.seq_len, config.frame_seconds, config.batch_size) == (20, 0.01, 4)


def test_names():
    with pytest.raises(TrainingError, match="no model is called 'sinknet'; there are boxes, denet, sincnet, toy"):
        get_model("sinknet", Config(), 2)
    with pytest.raises(ValueError, match="called 'toy' already"):
        denet_torch.register("toy")(denet_torch.DENet)
    assert denet_torch.DENet.name == "denet"
