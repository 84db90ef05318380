import io
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from denet_torch import audio

RNG = np.random.default_rng(0)
ROUNDING = 1e-6  # a few float32 ulps of sums over hundreds of taps
SOUND = RNG.uniform(-0.9, 0.9, 30_011)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "recording.wav"
    soundfile.write(path, SOUND, 250_000, subtype="PCM_16")
    return path


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "PCM_U8"}, 2**-7),
        ("a.WAV", {"subtype": "PCM_16"}, 2**-15),
        ("a.wav", {"subtype": "PCM_24"}, 2**-23),
        ("a.wav", {"subtype": "PCM_32"}, 1e-7),
        ("a.wav", {"subtype": "FLOAT"}, 1e-7),
        ("a.wav", {"subtype": "DOUBLE"}, 1e-7),
        ("a.wav", {"subtype": "PCM_24", "format": "WAVEX"}, 2**-23),
        ("a.flac", {"subtype": "PCM_16"}, 2**-15),
        ("a.FLAC", {"subtype": "PCM_24", "format": "FLAC"}, 2**-23),
    ],
)
def test_formats_and_widths(tmp_path, name, options, tolerance):
    path = tmp_path / name
    soundfile.write(path, SOUND, 48_000, **options)
    assert audio.probe(path) == audio.AudioInfo(path, 48_000, len(SOUND), 1)
    part = audio.read(path, 1000, 500)
    assert part.dtype == np.float32
    np.testing.assert_allclose(part, SOUND[1000:1500], atol=1.5 * tolerance)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_channels_are_averaged(tmp_path, subtype):
    path = tmp_path / "stereo.wav"
    left, right = SOUND[:3000], SOUND[3000:6000]
    soundfile.write(path, np.column_stack([left, right]), 8000, subtype=subtype)
    np.testing.assert_allclose(audio.read(path), (left + right) / 2, atol=1e-4)
    assert audio.probe(path).channels == 2


def test_16_bit_values_are_those_of_libsndfile(recording):
    expected, _ = soundfile.read(recording, dtype="float32")
    np.testing.assert_array_equal(audio.read(recording), expected)


def test_parts_are_cut_at_both_ends(recording):
    assert len(audio.read(recording, 30_000, 500)) == 11
    assert len(audio.read(recording, 40_000, 500)) == 0
    assert len(audio.read(recording, 40_000, 500, rate=16_000)) == 0
    assert len(audio.read(recording, rate=16_000)) == 1921  # ceil(30,011 * 8 / 125)


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 2500),
    frames=st.integers(0, 2000),
    rate=st.sampled_from([16_000, 44_100, 96_000, 384_000, 159_920, 375_125]),  # the last two: one by one
)
def test_a_part_is_that_part_of_the_whole(recording, start, frames, rate):
    whole, _ = soundfile.read(recording, dtype="float64")
    whole = torchaudio.functional.resample(torch.from_numpy(whole), 250_000, rate).numpy()
    part = audio.read(recording, start, frames, rate=rate)
    np.testing.assert_allclose(part, whole[start : start + frames], atol=ROUNDING)


@settings(max_examples=30, deadline=None)
@given(
    seconds=st.floats(0.0005, 0.2),
    rate=st.sampled_from([16_000, 44_100, 250_000, 384_000, 47_999]),
)
def test_a_stream_is_the_whole(recording, seconds, rate):
    whole = audio.resample(audio.read(recording), 250_000, rate)
    blocks = list(audio.stream(recording, rate, seconds))
    assert {len(block) for block in blocks[:-1]} <= {max(1, round(seconds * rate))}
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=ROUNDING)


def test_no_sample_is_lost_from_lengths_beyond_float32():
    # torchaudio alone: ceil(float32(932438.016)) = 932438.
    assert audio.resample(torch.zeros(607_056), 250_000, 384_000).shape == (932_439,)


def test_resampling_keeps_what_the_new_rate_holds_and_nothing_else():
    time = np.arange(250_000) / 250_000
    low = audio.resample(np.sin(2 * np.pi * 3000 * time).astype(np.float32), 250_000, 16_000)
    high = audio.resample(np.sin(2 * np.pi * 30_000 * time).astype(np.float32), 250_000, 16_000)
    expected = np.sin(2 * np.pi * 3000 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(low[100:-100], expected[100:-100], atol=5e-3)
    assert np.abs(high[100:-100]).max() < 5e-3


@pytest.mark.parametrize(("own", "rate"), [(47_999, 48_000), (10_001, 10_000), (44_101, 16_000)])
def test_rates_without_a_common_divisor_keep_the_time(tmp_path, own, rate):
    path, seconds = tmp_path / "long.wav", 100
    time = np.arange(seconds * own) / own
    soundfile.write(path, 0.9 * np.sin(2 * np.pi * 1000 * time), own, "FLOAT")
    first = (seconds - 1) * rate
    part = audio.read(path, first, 1000, rate=rate)
    expected = 0.9 * np.sin(2 * np.pi * 1000 * (first + np.arange(1000)) / rate)
    np.testing.assert_allclose(part, expected, atol=5e-3)  # a ratio of 1 for 1.00002 would be half a period off
    assert len(audio.read(path, rate=rate)) == seconds * rate == audio.resampled_length(seconds * own, own, rate)


def test_time_expansion_multiplies_the_rate(recording):
    info = audio.probe(recording, time_expansion=10)
    assert info.samplerate == 2_500_000
    assert info.duration == pytest.approx(30_011 / 2_500_000)
    expected = audio.resample(audio.read(recording), 2_500_000, 250_000)
    part = audio.read(recording, rate=250_000, time_expansion=10)
    np.testing.assert_array_equal(part, expected)
    blocks = audio.stream(recording, 250_000, 0.001, time_expansion=10)
    np.testing.assert_allclose(np.concatenate(list(blocks)), expected, atol=ROUNDING)
    same = audio.resample(audio.read(recording), 250_000, 250_000, time_expansion=10)
    np.testing.assert_array_equal(same, expected)
    for factor in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="time_expansion"):
            audio.probe(recording, time_expansion=factor)


@pytest.mark.parametrize(
    "header, factor, told",
    [
        (4039, 9.6, "4039 Hz times 9.6 is 38774.4 Hz, taken for 38774: times are 37 ms an hour too late"),
        (11_025, 0.1, "11025 Hz times 0.1 is 1102.5 Hz, taken for 1102: times are 1633 ms an hour too late"),
        (22_050, 250_000 / 22_050, ""),
        (12_345, 9.6, ""),
        (4039, 1, ""),
    ],
)
def test_a_true_rate_that_is_no_whole_number_is_told(tmp_path, header, factor, told):
    """Event times of such recordings drifted, and nothing said so."""
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), header)
    assert audio.probe(tmp_path / "a.wav", factor).fault == (told and f"{tmp_path / 'a.wav'}: {told}")


def test_streaming_holds_one_block(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(10_000_000, np.int16), 250_000)
    next(audio.stream(path, 16_000, 1.0))  # builds the resampler
    tracemalloc.start()
    for _ in audio.stream(path, 16_000, 1.0):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # 40 s are 40 MB as float32


def wav(samples=100, rate=8000):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(samples, np.int16), rate, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.wav", None, "file missing"),
        ("empty.wav", b"", "0 bytes"),
        ("header.wav", wav(0), "header only"),
        ("text.wav", b"no sound at all" * 10, "not audio"),
        ("short.wav", b"RIFF", "not audio"),
        ("bytes.raw", b"headerless", "not audio"),
        ("rateless.wav", wav(100)[:24] + bytes(4) + wav(100)[28:], "not audio"),
    ],
)
def test_unusable_files_say_why_in_one_line(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for use in (audio.probe, audio.read, lambda path: list(audio.stream(path, 16_000))):
        with pytest.raises(audio.AudioError) as caught:
            use(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert caught.value.reason == reason


def test_a_folder_and_samples_that_are_no_numbers(tmp_path):
    with pytest.raises(audio.AudioError, match="is a folder"):
        audio.probe(tmp_path)
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.array([0.0, np.nan, 0.5]), 8000, subtype="FLOAT")
    with pytest.raises(audio.AudioError, match="not finite"):
        audio.read(path)


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 43), st.integers(0, 255)), max_size=4),
    length=st.integers(0, 244),
)
def test_no_header_crashes_a_reader(tmp_path_factory, changes, length):
    content = bytearray(wav())
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "faulty.wav"
    path.write_bytes(content[:length])
    try:
        info = audio.probe(path)
        samples = audio.read(path)
        assert samples.shape == (info.frames,)
        assert np.isfinite(samples).all()
    except audio.AudioError as error:
        assert str(error).startswith(f"{path}: ")


def test_find_takes_suffixes_in_either_case(tmp_path):
    for name in ("b/two.WAV", "one.wav", "three.flac", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.name for path in audio.find(tmp_path)]
    assert sorted(names) == ["one.wav", "three.flac", "two.WAV"]
    with pytest.raises(audio.AudioError, match="no such folder"):
        audio.find(tmp_path / "gone")
