"""Measures of generated calls, whose frequencies, levels and times are known."""

import math

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import denet_torch
from denet_torch import measures
from denet_torch.audio import AudioError

NOISE = 0.001  # standard deviation


def call(rate: int, low: float, high: float, seconds: float, amplitude: float = 0.5) -> np.ndarray:
    """A sweep down from `high` to `low` Hz, or a tone, with short ramps."""
    time = np.arange(round(seconds * rate)) / rate
    sweep = np.sin(2 * np.pi * (high * time - (high - low) * time**2 / 2 / seconds))
    ramp = np.minimum(1, np.minimum(time, time[::-1]) / min(0.05 * seconds, 0.002))
    return amplitude * sweep * ramp


def among_noise(rate: int, calls: list[tuple[float, np.ndarray]], seconds: float = 1.0, noise: float = NOISE) -> np.ndarray:
    sound = np.random.default_rng(0).standard_normal(round(seconds * rate)) * noise
    for onset, samples in calls:
        sound[round(onset * rate) :][: len(samples)] += samples
    return sound.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([16_000, 48_000, 250_000]),
    st.floats(0.1, 0.9),
    st.floats(0.1, 0.9),
    st.floats(0.02, 0.2),
    st.floats(0.003, 0.9),
)
def test_frequencies_and_level_of_a_sweep(rate, one, other, seconds, amplitude):
    low, high = sorted((one * rate / 2, other * rate / 2))
    bin_hz = rate / measures.window_size(rate)
    sound = among_noise(rate, [(0.4, call(rate, low, high, seconds, amplitude))], noise=NOISE if amplitude > 0.1 else 1e-5)
    found = measures.spectrum(sound, rate, 0.4, 0.4 + seconds)
    # The window of 4 ms smears each edge by how far a sweep goes in it, and by its own two bands.
    smear = 3 * bin_hz + (high - low) * measures.window_size(rate) / rate / seconds
    assert abs(found.low_hz - low) <= smear and abs(found.high_hz - high) <= smear
    assert low - bin_hz <= found.peak_hz <= high + bin_hz
    assert abs(found.level_db - 20 * math.log10(amplitude)) < 1.5  # ramps take some of it


@pytest.mark.parametrize("decibels", [6, 10, 20])
def test_a_tone_in_noise_is_found_where_it_is(decibels):
    rate, noise = 16_000, 0.01
    tone = call(rate, 3000, 3000, 0.2, noise * math.sqrt(2) * 10 ** (decibels / 20))
    found = measures.spectrum(among_noise(rate, [(0.4, tone)], noise=noise), rate, 0.4, 0.6)
    assert found.peak_hz == 3000 and abs(found.low_hz - 3000) <= 125 and abs(found.high_hz - 3000) <= 125


def test_noise_alone_has_no_frequencies():
    rng = np.random.default_rng(1)
    found = [measures.spectrum(rng.standard_normal(8000).astype(np.float32) * 0.01, 16_000, 0.2, 0.3) for _ in range(100)]
    assert sum(math.isnan(one.peak_hz) for one in found) >= 98
    silence = measures.spectrum(np.zeros(8000, np.float32), 16_000, 0.2, 0.3)
    assert math.isnan(silence.peak_hz) and math.isnan(silence.level_db)


def test_two_harmonics_are_one_band():
    rate = 48_000
    sound = call(rate, 4000, 4000, 0.1, 0.3) + call(rate, 8000, 8000, 0.1, 0.2)
    found = measures.spectrum(among_noise(rate, [(0.4, sound)]), rate, 0.4, 0.5)
    assert found.peak_hz == pytest.approx(4000, abs=200)
    assert found.low_hz == pytest.approx(4000, abs=600) and found.high_hz == pytest.approx(8000, abs=600)


def table(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["file", "onset", "offset", "label"])


def test_a_table_is_measured_recording_by_recording(tmp_path):
    rate, paths = 250_000, [tmp_path / "a.wav", tmp_path / "b.wav"]
    soundfile.write(paths[0], among_noise(rate, [(0.2, call(rate, 30e3, 60e3, 0.01)), (0.5, call(rate, 45e3, 45e3, 0.01))]), rate)
    soundfile.write(paths[1], among_noise(rate, [(0.98, call(rate, 80e3, 80e3, 0.02))]), rate)
    rows = [(paths[0], 0.5, 0.51, "x"), (paths[1], 0.98, 1.0, "y"), (paths[0], 0.2, 0.21, "x")]
    found = denet_torch.measure(table(rows))
    assert list(found) == ["file", "onset", "offset", "label", *measures.MEASURES]
    assert found.duration.tolist() == pytest.approx([0.01, 0.02, 0.01])
    assert found.peak_hz.tolist()[:2] == pytest.approx([45e3, 80e3], abs=250)
    assert found.low_hz[2] == pytest.approx(30e3, abs=2500) and found.high_hz[2] == pytest.approx(60e3, abs=2500)
    assert (found.bandwidth_hz == found.high_hz - found.low_hz).all()
    assert found.interval[2] == pytest.approx(0.3) and found.interval[:2].isna().all()
    slow = tmp_path / "slow.wav"
    soundfile.write(slow, soundfile.read(paths[0])[0], rate // 10)
    true = denet_torch.measure(table([(slow, 0.5, 0.51, "x")]), time_expansion=10)
    assert true.peak_hz[0] == found.peak_hz[0] and true.level_db[0] == pytest.approx(found.level_db[0], abs=0.1)
    assert list(denet_torch.measure(table([]))) == list(found)
    with pytest.raises(AudioError, match="gone.wav: no such file"):
        denet_torch.measure(table([(tmp_path / "gone.wav", 0, 1, "x")]))


def test_class_probabilities_are_means_over_an_events_frames():
    probabilities = np.array([[1, 0, 0], [0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.1, 0.1, 0.8]], np.float32)
    rows = table([("a", 0.05, 0.15, "x"), ("a", 0.15, 0.17, "y")])  # the recording ends in the last frame
    found = measures.class_probabilities(rows, probabilities, 0.05, ["background", "x", "y"])
    assert list(found) == ["p x", "p y"]
    np.testing.assert_allclose(found, [[0.4, 0.3], [0.1, 0.8]], atol=1e-6)
    assert measures.class_probabilities(rows[:0], probabilities, 0.05, ["background", "x"]).shape == (0, 1)
    # Frames that are no whole microseconds: the offset of one in two is rounded up, and had the frame behind it too.
    frame, probabilities = 220 / 44100, np.eye(300)[:, :2]
    for first in range(300):
        probabilities[:] = [1, 0]
        probabilities[first, 1] = 1
        rows = pd.DataFrame({"onset": [round(first * frame, 6)], "offset": [round((first + 1) * frame, 6)]})
        assert measures.class_probabilities(rows, probabilities, frame, ["background", "x"]).iat[0, 0] == 1


@pytest.mark.parametrize("windows", [1.0, 1.5, 2.0, 30.5, 1000.0, 250_000.0])
def test_what_noise_exceeds_by_chance_is_a_quantile_of_the_gamma_distribution(windows):
    special = pytest.importorskip("scipy.special")
    expected = special.gammainccinv(windows, measures.CHANCE) / windows
    assert measures._exceeded(windows) == pytest.approx(expected, rel=1e-9)
