"""`--resample-on device`: the windows are the loader's, whatever the rates in a batch, and a run with it resumes bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from data_cases import make_collection
from test_trainer_resume import assert_same_end, saved
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data._utils.pin_memory import pin_memory
from trainer_cases import tiny

from denet_torch import audio
from training import loop
from training.bfloat16 import emulated
from training.config import TrainingError
from training.evaluation import collate
from training.labels import IGNORE, Labeller
from training.resampling import Parts, Resampling
from training.runs import Loader, Stop, Stopped
from training.windows import RandomWindows

RATES = (250_000, 16_000, 44_100, 47_990, 8_000, 250_000)  # Hz; the model's is 16,000
SECONDS = (1.7, 0.9, 1.1, 0.8, 1.3, 0.21)  # the last has no whole window
# Of a sum of some 200 products of float32, below 1 in all, against float64: here 2.5e-7 at most in the loader and after it alike.
# The rest is for sums in another order, as a GPU has them; of TF32 it would be 1e-4.
ROUNDING = 1e-6


def whole_of(collection, recording):
    """A recording resampled in one piece, in float64."""
    sound, header = soundfile.read(collection.path(recording))
    ratio = audio._ratio(round(header * collection.time_expansion), 16_000)
    return torchaudio.functional.resample(torch.from_numpy(sound), *ratio).numpy()


@pytest.fixture(scope="module", params=[1, 10], ids=["", "slowed down by 10"])
def mixed(request, tmp_path_factory):
    """A collection of recordings of several rates."""
    root, rng = tmp_path_factory.mktemp("rates"), np.random.default_rng(0)
    frames = [round(seconds * rate) for seconds, rate in zip(SECONDS, RATES, strict=True)]
    calls = [(i, rate // 20, rate // 6) for i, rate in enumerate(RATES)]
    made = make_collection(frames, calls, root=root)
    made.recordings["samplerate"] = RATES
    object.__setattr__(made, "time_expansion", request.param)
    (root / "files101").mkdir()
    for i, rate in enumerate(RATES):
        soundfile.write(made.path(i), rng.uniform(-0.9, 0.9, frames[i]), rate // request.param, format="WAV")
    return made


def windows(collection, own_rate, **options):
    made = RandomWindows(collection, range(len(RATES)), Labeller(collection), length=96, seed=3, **options)
    made.own_rate = own_rate
    return made


def batches(dataset, workers=0):
    resampling = Resampling(dataset.seq_len, dataset.samples)
    for batch in Loader(dataset, batch_size=24, num_workers=workers, collate_fn=collate):
        rates = len(batch["waveform"].samples) if isinstance(batch["waveform"], Parts) else 0
        yield batch | {"waveform": resampling(batch["waveform"], lambda tensors: tensors), "rates": rates}


def test_a_window_is_the_loaders(mixed):
    seen = set()
    for ours, loaders in zip(batches(windows(mixed, True)), batches(windows(mixed, False)), strict=True):
        assert ours["rates"] >= 4 and not loaders["rates"]
        assert ours["waveform"].shape == (24, 10, 800) and ours["waveform"].dtype == torch.float32
        for key in ("labels", "recording", "start", "failed"):
            assert np.array_equal(ours[key], loaders[key]), key
        for recording, start, *both in zip(ours["recording"], ours["start"], ours["waveform"], loaders["waveform"], strict=True):
            first, expected = round(float(start) * 16_000), np.zeros(8000)
            part = whole_of(mixed, int(recording))[first : first + 8000]
            expected[: len(part)] = part
            for waveform in both:
                np.testing.assert_allclose(waveform.flatten(), expected, rtol=0, atol=ROUNDING)
            assert (both[0].flatten()[len(part) :] == 0).all()  # and no filter rings on past the end
            seen.add(int(recording))
    assert seen == set(range(len(RATES)))


def test_workers_make_the_same_bits(mixed):
    for one, other in zip(batches(windows(mixed, True)), batches(windows(mixed, True), workers=2), strict=True):
        assert torch.equal(one["waveform"], other["waveform"]) and torch.equal(one["labels"], other["labels"])


def test_recordings_that_cannot_be_read_are_silence(mixed, monkeypatch):
    lost, read = mixed.path(0), audio.read_part

    def reading(path, *args, **options):
        if path == lost:
            raise audio.AudioError(f"{path}: gone")
        return read(path, *args, **options)

    monkeypatch.setattr(audio, "read_part", reading)
    dataset = windows(mixed, True)
    dataset.tolerant = True
    batch = next(batches(dataset))
    gone = batch["recording"] == 0
    assert 0 < gone.sum() < 24 and (batch["waveform"][gone] == 0).all() and (batch["labels"][gone] == IGNORE).all()
    assert [bool(why) for why in batch["failed"]] == gone.tolist()
    dataset.recordings = np.array([0])
    item = dataset._item(0, 0)
    batch = collate([item, item])  # of nothing else
    assert (Resampling(10, 800)(batch["waveform"], lambda tensors: tensors) == torch.zeros(2, 10, 800)).all()


def test_a_batch_can_lie_in_pinned_memory(mixed, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor.shape) or tensor.clone())
    dataset = windows(mixed, True)
    batch = collate([dataset[i] for i in range(24)])["waveform"]
    found = pin_memory(batch)
    assert isinstance(found, Parts) and len(pinned) == 1 + len(batch.samples) > 4
    resampling = Resampling(10, 800)
    assert torch.equal(*(resampling(parts, lambda tensors: tensors) for parts in (batch, found)))


class Precisions(TorchDispatchMode):
    """Notes how precise float32 products are to be."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
            self.seen.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("allowed", ["older name", "newer name", ""])
def test_no_product_is_tf32(mixed, allowed):
    before = torch.get_float32_matmul_precision()
    try:
        if allowed == "older name":  # as --amp does on a GPU
            torch.set_float32_matmul_precision("high")
        elif allowed:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        with Precisions() as precisions:
            next(batches(windows(mixed, True)))
        assert precisions.seen and set(precisions.seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 == bool(allowed)
    finally:
        torch.set_float32_matmul_precision(before)


def first_batch(config):
    made = loop.Trainer(config, loop.get_fabric(config), config.out, Stop(), lambda epoch, score: None)
    with emulated(made.fabric):
        (batch,) = next(made._epoch_batches())
    return batch


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_trainers_batch_is_the_loaders(collection, tmp_path, dtype):
    half = {"amp": True, "amp_dtype": dtype} if dtype != "float32" else {}
    config = tiny(collection, tmp_path, **half)
    ours, loaders = first_batch(replace(config, resample_on="device")), first_batch(config)
    assert list(ours) == list(loaders)
    for key in ("labels", "recording", "start"):
        assert torch.equal(ours[key], loaders[key])
    torch.testing.assert_close(ours["waveform"], loaders["waveform"], rtol=0, atol=2 * ROUNDING)


@pytest.fixture(scope="module")
def device_run(collection, tmp_path_factory):
    """A run with the option, and its settings."""
    config = tiny(collection, tmp_path_factory.mktemp("run") / "whole", resample_on="device", epoch_windows=20)
    return config, loop.train(config)


def test_a_run_learns_what_it_learns_with_the_loader(device_run, tmp_path):
    config, ours = device_run
    loaders = loop.train(replace(config, out=tmp_path / "loader", resample_on="loader"))
    np.testing.assert_allclose(ours.progress.losses, loaders.progress.losses, rtol=1e-3)
    assert ours.data.train.own_rate and not loaders.data.train.own_rate


def test_a_run_that_is_stopped_goes_on_with_the_same_bits_and_other_workers(device_run, tmp_path, monkeypatch):
    config, whole = device_run
    config, plain = replace(config, out=tmp_path / "stopped"), loop.Trainer._stop_if_asked

    def stop_early(trainer, *args, **how):
        trainer.stop.code = 0 if trainer.progress.step == 3 else None
        plain(trainer, *args, **how)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop.Trainer, "_stop_if_asked", stop_early)
        loop.train(config)
    assert saved(config.out)["progress"]["step"] == 3
    with pytest.raises(TrainingError, match="was started with resample_on device, not loader"):
        loop.train(replace(config, resume=True, resample_on="loader"))
    loop.train(replace(config, resume=True, workers=2))
    assert_same_end(whole.out, config.out)


def test_what_does_not_go_together_is_refused(mixed, collection, tmp_path):
    with pytest.raises(TrainingError, match="--resample-on device: the loader mixes --backgrounds in after resampling"):
        tiny(collection, tmp_path / "run", resample_on="device", backgrounds=tmp_path)
    for mode in ({"mode": "file", "loggers": ["tensorboard"]}, {"model": "boxes"}):
        with pytest.raises(TrainingError, match="--resample-on: is of no use with"):
            loop.train(tiny(collection, tmp_path / "run", resample_on="device", **mode))
