import itertools
import re
import sys

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from data_cases import make_collection
from torch.utils.data import DataLoader

from tools import benchmark_windows
from training.collection import open_collection
from training.labels import IGNORE, Labeller
from training.mixing import Background, Mixer
from training.splits import split_collection
from training.tables import CollectionError
from training.windows import ExhaustiveWindows, RandomWindows, Sampling, open_datasets

SECONDS = (2.3, 0.02, 1.21, 0.3, 0.66)
CALLS = [(0, 200_000, 260_000), (0, 400_000, 430_000), (2, 30_000, 90_000), (3, 10_000, 60_000)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Recordings of these lengths, and their samples."""
    root, rng = tmp_path_factory.mktemp("windows"), np.random.default_rng(0)
    frames = [round(seconds * 250_000) for seconds in SECONDS]
    made = make_collection(frames, CALLS, root=root)
    (root / "files101").mkdir()
    for i, count in enumerate(frames):
        soundfile.write(made.path(i), rng.uniform(-0.9, 0.9, count), 250_000, format="WAV")
    return made


def whole(collection, recording, rate=16_000):
    sound, samplerate = soundfile.read(collection.path(recording))
    return torchaudio.functional.resample(torch.from_numpy(sound), samplerate, rate).numpy()


def naive_labels(recording, start, frames=10, whole_frames=None):
    """Labels by the centre half of the rule: frames of 12,500 samples, half of them in a call."""
    labels = []
    for k in range(frames):
        first = start * 250_000 + k * 12_500
        inside = sum(
            max(0, min(first + 12_500, b) - max(first, a)) for r, a, b in CALLS if r == recording
        )
        past = first + 12_500 > round(SECONDS[recording] * 250_000) + 1e-6
        labels.append(IGNORE if past else int(inside >= 6250 - 1e-3))
    return labels


def random_windows(collection, **options):
    options = {"length": 40, "seed": 3} | options
    return RandomWindows(collection, range(5), Labeller(collection), **options)


@pytest.mark.parametrize(
    "sampling", [Sampling(0, 0), Sampling(1, 0), Sampling(0, 1), Sampling(0, 0, 1), Sampling()]
)
def test_a_window_is_its_part_of_the_recording(made, sampling):
    for item in random_windows(made, sampling=sampling):
        assert item["waveform"].dtype == np.float32 and item["waveform"].shape == (10, 800)
        assert item["labels"].dtype == np.int64
        first = round(item["start"] * 16_000)
        expected = np.zeros(8000)
        part = whole(made, item["recording"])[first : first + 8000]
        expected[: len(part)] = part
        np.testing.assert_allclose(item["waveform"].reshape(-1), expected, atol=1e-6)
        assert item["labels"].tolist() == naive_labels(item["recording"], item["start"])


def test_only_the_window_is_read(made, monkeypatch):
    read, lengths = soundfile.SoundFile.read, []

    def counted(self, frames=-1, *args, **options):
        lengths.append(frames)
        return read(self, frames, *args, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    dataset = random_windows(made)
    for i in range(20):
        dataset[i]
    assert len(lengths) == 20
    # Half a second, and the resampler's 95 samples and up to a step of 125 on either side.
    assert max(lengths) <= 125_000 + 2 * (95 + 2 * 125)


def test_windows_depend_on_seed_epoch_and_index_alone(made):
    def keys(dataset, order):
        return {i: (dataset[i]["recording"], dataset[i]["start"]) for i in order}

    dataset = random_windows(made)
    first = keys(dataset, range(40))
    assert keys(dataset, reversed(range(40))) == first
    assert keys(random_windows(made), [17]) == {17: first[17]}  # as a resumed run asks for it
    assert keys(random_windows(made, seed=4), range(40)) != first
    dataset.set_epoch(1)
    assert keys(dataset, range(40)) != first
    dataset.set_epoch(0)
    assert keys(dataset, range(40)) == first


def test_workers_make_the_same_windows_and_hear_of_epochs(made):
    mixer = Mixer(noise=0.5, gain_db=(-6, 6), polarity=0.5)
    dataset = random_windows(made, mixer=mixer)
    loader = DataLoader(dataset, 4, num_workers=2, persistent_workers=True)
    for epoch in (0, 5):
        dataset.set_epoch(epoch)
        batches = torch.cat([batch["waveform"] for batch in loader])
        alone = np.stack([dataset[i]["waveform"] for i in range(40)])
        np.testing.assert_array_equal(batches.numpy(), alone)


def test_exhaustive_windows_hold_every_whole_frame_once(made):
    dataset = ExhaustiveWindows(made, range(5), Labeller(made), seq_len=4)
    items = [dataset[i] for i in range(len(dataset))]
    # 46, 0, 24, 6 and 13 whole frames
    counts = {0: 12, 2: 6, 3: 2, 4: 4}
    starts = [(item["recording"], round(item["start"], 6)) for item in items]
    expected = [(r, round(0.2 * i, 6)) for r, count in counts.items() for i in range(count)]
    assert starts == expected
    for item in items:
        assert item["labels"].tolist() == naive_labels(item["recording"], item["start"], 4)
    sound = np.concatenate([i["waveform"].reshape(-1) for i in items if i["recording"] == 2])
    np.testing.assert_allclose(sound, whole(made, 2)[: len(sound)], atol=1e-6)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_sampling_finds_calls_boundaries_and_quiet(made):
    def windows(*shares):
        return list(random_windows(made, sampling=Sampling(*shares), length=60))

    assert all(1 in item["labels"] for item in windows(1, 0))
    for item in windows(0, 1):
        ends = [end / 250_000 for r, *ends in CALLS for end in ends if r == item["recording"]]
        assert any(item["start"] - 1e-4 <= end <= item["start"] + 0.5 + 1e-4 for end in ends)
    quiet = windows(0, 0, 1)
    assert all(set(item["labels"]) == {0} for item in quiet)
    assert {item["recording"] for item in quiet} == {0, 2, 4}
    # Anywhere: long recordings more often, 2.3 to 1.21 s.
    drawn = [item["recording"] for item in windows(0, 0)]
    assert drawn.count(0) > drawn.count(2) > 0


def test_sampling_balances_classes():
    # 30 calls of context 11, one of 8.
    frames = [125_000] * 31
    notes = [(i, 25_000, 75_000, 11 if i else 8, 1) for i in range(31)]
    made = make_collection(frames, annotations=notes)
    labeller = Labeller(made, "annotation", "context")
    dataset = RandomWindows(made, range(31), labeller, length=1, sampling=Sampling(1, 0))
    places = [dataset._place(np.random.default_rng(i))[0] for i in range(400)]
    assert 160 < places.count(0) < 240


def test_shares_that_are_none_are_refused():
    for shares in ((0.7, 0.5), (-0.1, 0.2)):
        with pytest.raises(ValueError, match="shares"):
            Sampling(*shares)


def test_recordings_without_labels_or_a_whole_frame_are_left_out(made):
    assert random_windows(made).recordings.tolist() == [0, 2, 3, 4]
    with pytest.raises(CollectionError, match="none of 5 recordings has labels"):
        RandomWindows(made, range(5), Labeller(made, "annotation"), length=1)
    with pytest.raises(CollectionError, match="none of 1 recordings"):
        ExhaustiveWindows(made, [1], Labeller(made))


def test_time_expanded_recordings(made):
    # The same files, declared as slowed down by 10: ten times the rate, a tenth of the length.
    columns = {"frames": made.recordings["frames"].tolist()}
    fast = make_collection(columns["frames"], CALLS, samplerate=2_500_000, root=made.root)
    object.__setattr__(fast, "time_expansion", 10)
    dataset = ExhaustiveWindows(fast, [0], Labeller(fast), rate=160_000, samples=800, seq_len=2)
    slow = ExhaustiveWindows(made, [0], Labeller(made), rate=16_000, samples=800, seq_len=2)
    assert len(dataset) == len(slow)
    for one, other in itertools.islice(zip(dataset, slow, strict=True), 5):
        np.testing.assert_allclose(one["waveform"], other["waveform"], atol=1e-6)
        assert one["labels"].tolist() == other["labels"].tolist()
        assert one["start"] == pytest.approx(other["start"] / 10)


def test_backgrounds_are_mixed_in(made, tmp_path):
    tone = np.sin(np.arange(44_100) / 10)
    soundfile.write(tmp_path / "tone.wav", tone, 44_100)
    mixer = Mixer((Background(tmp_path / "tone.wav", 1.0, "tone"),), under=0.5, alone=0.5)
    plain, mixed = random_windows(made), random_windows(made, mixer=mixer)
    kinds = set()
    for before, after in zip(plain, mixed, strict=True):
        record = after["mix"]
        kinds.add(record["alone"])
        assert record["category"] == "tone" and record["background"].endswith("tone.wav")
        expected = np.zeros(10) if record["alone"] else before["labels"]
        np.testing.assert_array_equal(after["labels"], expected)
        assert np.abs(after["waveform"] - before["waveform"]).max() > 1e-3
    assert kinds == {True, False}
    batch = next(iter(DataLoader(mixed, 8)))
    assert len(batch["mix"]["background"]) == 8


def test_the_benchmark_prints_rates_and_memory(monkeypatch, capsys):
    words = "--rounds 1 --windows 160 --recordings 6 --memory-windows 320".split()
    monkeypatch.setattr(sys, "argv", ["benchmark_windows", *words])
    benchmark_windows.main()
    out = capsys.readouterr().out
    assert re.search(r"seeking to the window +[1-9]\d* windows/s", out)
    assert re.search(r"320 windows: workers hold \d+\.\d MB", out)


def test_open_datasets(collection):
    options = {"split_by": ["treatment"], "length": 12, "seed": 1, "seq_len": 5}
    data = open_datasets(collection, fractions=(0.6, 0.2, 0.2), **options)
    assert data.classes == ("background", "call")
    assert data.train[0]["waveform"].shape == (5, 800) and len(data.train) == 12
    found = open_collection(collection)
    long_enough = (found.recordings["frames"] >= 12_500).to_numpy(bool)  # others are on no side
    assert not long_enough.all()
    expected = split_collection(found, ["treatment"], (0.6, 0.2, 0.2), 1, long_enough)
    assert data.split.version == expected.version
    assert set(data.validation.recordings) <= set(expected.validation)
    assert set(data.test.recordings) <= set(expected.test)
    some = open_datasets(collection, fractions=(0.6, 0.2, 0.2), subset=0.5, **options).train.recordings
    again = open_datasets(collection, fractions=(0.6, 0.2, 0.2), subset=0.5, **options).train.recordings
    assert some.tolist() == again.tolist()
    assert set(some) < set(data.train.recordings) and len(some) >= 2
