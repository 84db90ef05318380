from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recorder import guan, write

from denet_torch import audio
from training.labels import IGNORE
from training.mixing import Background, Mixer, band_noise, find_backgrounds
from training.tables import CollectionError

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "audio" / "background"
RATE = 16_000


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esc")
    (folder / "audio").mkdir()
    (folder / "meta").mkdir()
    rng = np.random.default_rng(0)
    for name in ("1-100-A-0.wav", "1-200-A-1.wav"):
        soundfile.write(folder / "audio" / name, 0.1 * rng.standard_normal(44_100), 44_100)
    text = "filename,fold,target,category\n1-100-A-0.wav,1,0,dog\n1-200-A-1.wav,1,1,rooster\n"
    (folder / "meta" / "esc50.csv").write_text(text)
    return folder


def window(calls=(), frames=10):
    rng = np.random.default_rng(1)
    labels = np.zeros(frames, np.int64)
    labels[list(calls)] = 1
    sound = rng.standard_normal((frames, 800)) * np.where(labels, 0.5, 0.01)[:, None]
    return sound.reshape(-1).astype(np.float32), labels


def decibels(signal, noise):
    return 10 * np.log10(np.mean(signal**2) / np.mean(noise**2))


def test_an_esc_50_directory_names_its_categories(clips):
    found = find_backgrounds(clips)
    assert [(b.path.name, b.seconds, b.category) for b in found] == [
        ("1-100-A-0.wav", 1.0, "dog"),
        ("1-200-A-1.wav", 1.0, "rooster"),
    ]


@pytest.mark.skipif(not REAL.is_dir(), reason="no real clips in ../shared/audio/background")
def test_real_clips_from_any_folder():
    backgrounds = find_backgrounds(REAL)
    assert len(backgrounds) == 10
    assert {(b.seconds, b.category) for b in backgrounds} == {(5.0, "")}
    sound, labels = window([3, 4])
    for seed in range(10):
        mixed, _, record = Mixer(backgrounds, under=1)(np.random.default_rng(seed), sound, labels, RATE)
        assert Path(record["background"]).parent == REAL
        assert mixed.shape == sound.shape and np.isfinite(mixed).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), calls=st.sampled_from([(), (4,), (0, 1, 2)]))
def test_the_ratio_is_of_the_calls_to_the_background(clips, seed, calls):
    sound, labels = window(calls)
    mixer = Mixer(find_backgrounds(clips), under=1, snr_db=(-5, 20))
    mixed, same, record = mixer(np.random.default_rng(seed), sound, labels, RATE)
    frames = sound.reshape(10, 800)
    signal = frames[list(calls)] if calls else frames
    assert -5 <= record["snr_db"] <= 20 and not record["alone"]
    assert decibels(signal, mixed - sound) == pytest.approx(record["snr_db"], abs=0.01)
    np.testing.assert_array_equal(same, labels)
    # What was mixed in is the clip that the record names, from where it says.
    clip = audio.read(record["background"], rate=RATE)
    start = round(record["background_start"] * RATE)
    clip = clip[start : start + 8000]
    assert np.corrcoef(clip, mixed - sound)[0, 1] > 0.999
    assert record["category"] in ("dog", "rooster")


def test_alone_a_background_is_all_there_is(clips):
    sound, labels = window([1, 2])
    labels[5] = IGNORE
    mixer = Mixer(find_backgrounds(clips), alone=1)
    mixed, new, record = mixer(np.random.default_rng(0), sound, labels, RATE)
    assert record["alone"] and np.isnan(record["snr_db"])
    assert new.tolist() == [0] * 10 and labels[1] == 1
    assert decibels(mixed, sound) == pytest.approx(0, abs=0.01)
    assert abs(np.corrcoef(mixed, sound)[0, 1]) < 0.1


def test_gain_and_polarity(clips):
    sound, labels = window([1])
    signs = set()
    for seed in range(20):
        mixer = Mixer(gain_db=(-6, 6), polarity=0.5)
        mixed, _, record = mixer(np.random.default_rng(seed), sound, labels, RATE)
        assert -6 <= record["gain_db"] <= 6
        factor = 10 ** (record["gain_db"] / 20) * (-1 if record["flipped"] else 1)
        np.testing.assert_allclose(mixed, sound * factor, rtol=1e-5)
        assert mixed.dtype == np.float32
        signs.add(record["flipped"])
    assert signs == {True, False}


def test_noise_lies_in_its_band():
    rng = np.random.default_rng(0)
    for _ in range(20):
        noise, low, high = band_noise(rng, 8000, RATE)
        assert 50 <= low and 2 * low <= high <= RATE / 2
        power = np.abs(np.fft.rfft(noise)) ** 2
        frequency = np.fft.rfftfreq(8000, 1 / RATE)
        inside = (frequency >= low) & (frequency <= high)
        assert power[inside].sum() > 0.999 * power.sum() > 0
    sound, labels = window([2, 3])
    mixed, _, record = Mixer(noise=1)(np.random.default_rng(1), sound, labels, RATE)
    signal = sound.reshape(10, 800)[2:4]
    assert decibels(signal, mixed - sound) == pytest.approx(record["noise_snr_db"], abs=0.01)


def test_nothing_asked_for_changes_nothing():
    sound, labels = window([1])
    mixed, same, record = Mixer()(np.random.default_rng(0), sound, labels, RATE)
    np.testing.assert_array_equal(mixed, sound)
    np.testing.assert_array_equal(same, labels)
    assert record["background"] == "" and np.isnan(record["snr_db"]) and not record["flipped"]


def test_silence_stays_finite(clips):
    mixer = Mixer(find_backgrounds(clips), under=1, noise=1)
    mixed, *_ = mixer(np.random.default_rng(0), np.zeros(8000, np.float32), np.zeros(10, int), RATE)
    assert np.isfinite(mixed).all()


def test_a_short_background_repeats(tmp_path):
    soundfile.write(tmp_path / "tick.wav", np.r_[np.ones(400), -np.ones(400)], RATE)
    mixer = Mixer((Background(tmp_path / "tick.wav", 0.05, ""),), under=1)
    sound, labels = window()
    mixed, _, record = mixer(np.random.default_rng(0), sound, labels, RATE)
    added = (mixed - sound).reshape(10, 800)
    np.testing.assert_allclose(added, np.broadcast_to(added[0], added.shape), atol=1e-6)
    assert record["background_start"] == 0


def test_a_background_that_was_slowed_down_is_mixed_in_at_its_true_speed(tmp_path):
    """Under ultrasound it lay ten times too low."""
    tone = (9000 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 1600)).astype(np.int16)
    write(tmp_path / "slow.wav", 1600, [guan(TE=10)], tone)
    (found,) = find_backgrounds(tmp_path)
    assert (found.seconds, found.time_expansion) == (1.0, 10)
    sound, labels = window()
    mixed, _, record = Mixer((found,), alone=1)(np.random.default_rng(0), sound, labels, RATE)
    assert record["alone"] and np.abs(np.fft.rfft(mixed)).argmax() == 2000 * len(mixed) // RATE


def test_what_cannot_be_mixed_is_refused(tmp_path, clips):
    with pytest.raises(ValueError, match="none were given"):
        Mixer(under=0.5)
    with pytest.raises(ValueError, match="at most 1"):
        Mixer(find_backgrounds(clips), under=0.6, alone=0.6)
    with pytest.raises(CollectionError, match="no audio files"):
        find_backgrounds(tmp_path)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(audio.AudioError, match="broken.wav: cannot be read"):
        find_backgrounds(tmp_path)
