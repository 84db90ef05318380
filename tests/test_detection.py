from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import denet_torch
from denet_torch import detection, get_denet
from denet_torch.audio import AudioError
from denet_torch.detection import Decoding, find_runs
from denet_torch.schema import Detection

SR, SAMPLES, SEQ_LEN = 4000, 200, 6  # frames of 50 ms


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = dict(n_filters=4, gru_units=4, dense_units=(4, 4))
    model = get_denet((SEQ_LEN, SAMPLES), 3, sr=SR, **sizes)
    with torch.no_grad():  # spread the probabilities that random weights give
        x = torch.randn(8, SEQ_LEN, SAMPLES) * torch.logspace(-3, -0.5, 8)[:, None, None]
        model.dense3.weight.mul_(10)
        model.eval().dense3.bias.sub_(model(x).mean(dim=(0, 1)))
    return model


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """5.03 s at 10 kHz of noise whose loudness comes and goes: resampled, and no whole number of frames."""
    path = tmp_path_factory.mktemp("audio") / "noise.wav"
    rng = np.random.default_rng(0)
    loudness = np.repeat(10 ** rng.uniform(-3, -0.5, 51), 1000)[:50_300]
    soundfile.write(path, rng.standard_normal(50_300) * loudness, 10_000, subtype="FLOAT")
    return path


def by_hand(model, path, hop):
    """The same, all sequences at once from the waveform in memory."""
    waveform = denet_torch.audio.read(path, rate=model.sr)
    frames = -(-len(waveform) // SAMPLES)
    waveform = np.pad(waveform, (0, frames * SAMPLES - len(waveform))).reshape(frames, SAMPLES)
    seen = [[] for _ in range(frames)]
    for first in sorted({*range(0, frames - SEQ_LEN, hop), frames - SEQ_LEN}):
        x = torch.from_numpy(waveform[None, first : first + SEQ_LEN])
        for i, p in enumerate(model.predict_proba(x)[0].numpy()):
            seen[first + i].append(p)
    return np.array([np.mean(p, axis=0) for p in seen])


@pytest.mark.parametrize("hop", [1, 3, 6])
def test_frames_are_the_mean_of_their_sequences(model, recording, hop):
    p = detection.frame_probabilities(model, recording, hop=hop)
    assert p.shape == (101, 3) and p.dtype == np.float32
    np.testing.assert_allclose(p, by_hand(model, recording, hop), atol=1e-6)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)


cuttings = st.lists(st.integers(1, 100), unique=True, max_size=6)


@settings(deadline=None, max_examples=15)
@given(batch=st.integers(1, 50), cuts=cuttings, hop=st.integers(1, SEQ_LEN))
def test_a_slice_equals_that_of_the_whole_bit_for_bit(model, recording, batch, cuts, hop):
    how = dict(batch_size=batch, hop=hop)
    whole = detection.frame_probabilities(model, recording, **how)
    edges = [0, *sorted(cuts), None]
    slices = [
        detection.frame_probabilities(model, recording, *ends, **how) for ends in pairwise(edges)
    ]
    np.testing.assert_array_equal(np.concatenate(slices), whole)


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(1, 50))
def test_events_do_not_depend_on_the_length_of_the_blocks(model, recording, batch):
    whole = detection.frame_probabilities(model, recording, batch_size=1000)
    blocks = detection.frame_probabilities(model, recording, batch_size=batch)
    np.testing.assert_allclose(blocks, whole, atol=1e-6)
    ranked = np.sort(whole[:, 1:].sum(axis=1))[60:80]
    gap = np.diff(ranked).argmax()  # rounding cannot move a frame across a threshold in a gap
    decoding = Decoding(float(ranked[gap : gap + 2].mean()))
    tables = [
        detection.events(p, 0.05, 5.03, ["b", "x", "y"], decoding, recording)
        for p in (whole, blocks)
    ]
    assert len(tables[0]) > 3
    assert tables[0].drop(columns="score").equals(tables[1].drop(columns="score"))


def test_a_recording_shorter_than_a_sequence(model, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(450), SR)
    assert detection.frame_probabilities(model, tmp_path / "a.wav").shape == (3, 3)


def test_a_recording_shorter_than_a_frame_is_one_line(model, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(199), SR)
    with pytest.raises(AudioError, match=r"a\.wav: .*shorter than one frame") as error:
        denet_torch.detect(model, tmp_path / "a.wav")
    assert "\n" not in str(error.value)


def test_a_hop_that_leaves_frames_out_is_refused(model, recording):
    with pytest.raises(ValueError, match="hop"):
        detection.frame_probabilities(model, recording, hop=SEQ_LEN + 1)


def runs(p, **decoding):
    return find_runs(np.array(p), 0.05, Decoding(**decoding)).tolist()


def test_threshold_hysteresis_gap_duration_and_grouping():
    p = [0.9, 0.1, 0.4, 0.6, 0.4, 0.1, 0.1, 0.4, 0.4, 0.1, 0.5]
    assert runs(p) == [[0, 1], [3, 4], [10, 11]]
    assert runs(p, low_threshold=0.3) == [[0, 1], [2, 5], [10, 11]]
    assert runs(p, low_threshold=0.3, min_gap=0.1) == [[0, 5], [10, 11]]
    assert runs(p, low_threshold=0.3, min_gap=0.05) == [[0, 1], [2, 5], [10, 11]]
    assert runs(p, low_threshold=0.3, min_duration=0.15) == [[2, 5]]
    assert runs(p, min_duration=0.1, call_gap=10) == []  # short ones go before they are grouped
    assert runs(p, call_gap=0.15) == [[0, 4], [10, 11]]
    assert runs([0.0, 0.1]) == []
    assert runs([]) == []


def test_events_have_label_score_and_end_with_the_recording():
    p = np.array([[0.1, 0.5, 0.4], [0.2, 0.7, 0.1], [0.9, 0.1, 0.0], [0.1, 0.2, 0.7]])
    table = detection.events(p, 0.05, 0.17, ["background", "a", "b"], Decoding(0.75), "x.wav")
    assert list(table.columns) == detection.EVENT_COLUMNS
    assert table.score.tolist() == pytest.approx([0.9, 0.9])
    assert table.drop(columns="score").values.tolist() == [
        ["x.wav", 0, 0.1, "a"],
        ["x.wav", 0.15, 0.17, "b"],
    ]


def test_detect_takes_the_stored_decoding_and_changes_to_it(model, recording):
    try:
        model.detection = Detection(("background", "a", "b"), Decoding(0.99999, min_gap=0.2))
        strict = denet_torch.detect(model, recording)
        both = [recording, recording]
        loose = denet_torch.detect(model, both, threshold=0.5, min_gap=0)
    finally:
        model.detection = None
    assert strict.empty and list(strict.columns) == detection.EVENT_COLUMNS
    assert len(loose) > 2 and set(loose.label) <= {"a", "b"}
    assert (loose.offset > loose.onset).all()
    first, second = loose[: len(loose) // 2], loose[len(loose) // 2 :]
    assert first.values.tolist() == second.values.tolist()


@pytest.mark.parametrize("kind", ["float32", "float64", "channels", "tensor"])
def test_an_array_is_searched_as_its_file_is(model, recording, kind):
    sound, rate = soundfile.read(recording)
    array = {"channels": np.stack([sound, sound], axis=1), "tensor": torch.from_numpy(sound)}.get(kind, sound)
    found = denet_torch.detect(model, array.astype(kind) if kind.startswith("float") else array, rate)
    expected = denet_torch.detect(model, recording)
    assert len(found) > 2 and set(found.file) == {"array"}
    np.testing.assert_allclose(found.score, expected.score, atol=1e-5)
    assert found.drop(columns=["file", "score"]).equals(expected.drop(columns=["file", "score"]))


def test_an_array_of_integers_is_that_of_floats(model, recording):
    sound, rate = soundfile.read(recording)
    whole = (sound * 32768).round().clip(-32768, 32767).astype(np.int16)
    assert denet_torch.detect(model, whole, rate).equals(denet_torch.detect(model, whole / 32768, rate))


@pytest.mark.parametrize(
    "array, told",
    [
        (np.zeros(0), "has no samples"),
        (np.zeros(10), "shorter than one frame"),
        (np.zeros((2, 9000)), "transpose it"),
        (np.zeros((9000, 2, 2)), "expected floats"),
        (np.full(9000, np.nan), "not finite"),
        (np.arange(9000.0), "whole numbers"),
        (np.arange(9000), "int64"),
        (np.array(["a"]), "expected floats"),
    ],
)
def test_an_array_that_is_no_sound_is_one_line(model, array, told):
    with pytest.raises(AudioError, match=f"^array: .*{told}") as error:
        denet_torch.detect(model, array, 4000)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="samplerate"):
        denet_torch.detect(model, np.zeros(9000))


def test_folders_and_several_recordings_with_bad_ones(model, recording, tmp_path):
    (tmp_path / "deep").mkdir()
    good = [tmp_path / "a.wav", tmp_path / "deep" / "b.wav"]
    for path in good:
        path.write_bytes(recording.read_bytes())
    (tmp_path / "bad.wav").write_bytes(b"")
    with pytest.warns(UserWarning, match="not searched: .*bad.wav: is empty"):
        found = denet_torch.detect(model, tmp_path)
    assert list(found.file.unique()) == [str(path) for path in good]
    assert list(found.attrs["failures"]) == [str(tmp_path / "bad.wav")]
    assert denet_torch.detect(model, [tmp_path / "deep", recording]).file.nunique() == 2
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "bad.wav", [tmp_path / "bad.wav"], tmp_path / "empty"):
        with pytest.raises(AudioError):
            denet_torch.detect(model, nothing)


def test_a_plot_shows_what_was_found(model, recording):
    found = denet_torch.measure(denet_torch.detect(model, recording))
    figure = denet_torch.plot(recording, found, found[:1], start=1, seconds=2)
    (axes,) = figure.axes
    shown = found[(found.offset > 1) & (found.onset < 3)]
    assert len(axes.patches) == len(shown) + (1 if found.offset[0] > 1 else 0)
    assert axes.get_xlim() == (1, 3) and axes.get_ylim() == (0, 5)
    box = axes.patches[0]
    assert box.get_y() * 1000 == pytest.approx(0 if np.isnan(shown.low_hz.iloc[0]) else shown.low_hz.iloc[0])
    array, rate = soundfile.read(recording)
    assert denet_torch.plot(array, samplerate=rate).axes
    with pytest.raises(AudioError, match="ends before 9 s"):
        denet_torch.plot(recording, start=9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0},
        {"threshold": 0.4, "low_threshold": 0.5},
        {"min_gap": -1},
        {"min_gap": np.inf},
        {"threshold": "0.5"},
        {"threshold": True},
        {"low_threshold": np.nan},
        {"call_gap": None},
    ],
)
def test_decoding_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ValueError):
        Decoding(**wrong)
