"""A file is what its bytes say: any content under any name, nested and partial files, and the rate that the filters tell."""

import gzip
from itertools import permutations
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from weight_cases import SMALL, draw_tensors, same

from denet_torch.architecture import ATTENTION, keras_name, transposed
from denet_torch.layers import SincConv1D
from tools.convert_weights import main
from tools.weights import WeightsError, keras_layers
from tools.weights.convert import convert, read, read_attention, read_whole
from tools.weights.npz import write_npz
from tools.weights.rate import RATES, distances, fitting, initial_cuts

TENSORS = draw_tensors(SMALL)
ENDINGS = [".safetensors", ".h5", ".weights.h5", ".keras", ".npz", ".pt"]
NAMES = ["w.01-0.23.hdf5", "weights", "W.H5", "w.hdf", "old.keras", "a.weights.h5", "m.index", "b.npz", "c.pt", "e.gz"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """whole.<ending> of every format, and whole.h5.gz."""
    folder = tmp_path_factory.mktemp("contents")
    write_npz(TENSORS, SMALL, folder / "whole.npz")
    for ending in ENDINGS:
        if ending != ".npz":
            convert(folder / "whole.npz", folder / f"whole{ending}")
    (folder / "whole.h5.gz").write_bytes(gzip.compress((folder / "whole.h5").read_bytes()))
    return folder


def converts(path: Path, files: Path) -> bool:
    weights = read(path)
    attention = None if ATTENTION[0] in weights.tensors else str(files / "whole.npz")
    weights, config, _ = read_whole(path, attention, {"seq_len": 4, "samples": 100, "before_pooling": True, "sr": 16000})
    return same(weights.tensors, TENSORS) and config["input_shape"] == [4, 100, 1]


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*ENDINGS, ".h5.gz"]), st.one_of(names.filter(lambda n: n not in (".", "..")), st.sampled_from(NAMES)))
@example(".h5", "old.keras")
@example(".h5", "a.weights.h5")
@example(".h5", "w.01-0.23.hdf5")
def test_any_content_under_any_name(files, tmp_path_factory, ending, name):
    path = tmp_path_factory.mktemp("named") / name
    try:
        path.write_bytes((files / f"whole{ending}").read_bytes())
    except OSError:  # longer in bytes than the file system takes
        return
    assert converts(path, files)


def test_any_two_formats_swapped(files, tmp_path):
    for mine, other in permutations([*ENDINGS, ".h5.gz"], 2):
        path = tmp_path / f"swapped{other}"
        path.write_bytes((files / f"whole{mine}").read_bytes())
        assert converts(path, files), f"{mine} named {other}"


def keras_file(path: Path, layers: dict[str, dict[str, np.ndarray]]) -> None:
    """A file with the layout of Keras 2's save_weights."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([layer.encode() for layer in layers])
        for layer, weights in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = np.array([name.encode() for name in weights])
            for name, array in weights.items():
                group[name] = array


def attention_layers() -> dict[str, dict[str, np.ndarray]]:
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name in ATTENTION:
        layer, leaf = keras_name(name).split("/")[1:]
        stored = f"time_distributed_2/sequential_1/{layer}/{leaf}:0"
        layers.setdefault(f"{layer}_of_mlp", {})[stored] = transposed(name, TENSORS[name])
    return layers


def test_a_model_in_a_model_and_its_attention_by_itself(files, tmp_path):
    with h5py.File(files / "whole.h5") as file:
        layers = [file[layer] for layer in file.attrs["layer_names"]]
        every = {name.decode(): layer[name][()] for layer in layers for name in layer.attrs["weight_names"].tolist()}
    moving = {name: array for name, array in every.items() if "moving" in name}  # Keras lists them last
    trained = {name: array for name, array in every.items() if name not in moving}
    nested = trained | moving
    for target, weights in (("nested.h5", {"input_2": {}, "model_1": nested}), ("sequential.h5", {"m": nested})):
        keras_file(tmp_path / target, weights)
        assert converts(tmp_path / target, files)
    keras_file(tmp_path / "mlp.h5", {"flatten_1": {}} | attention_layers())
    arrays = [transposed(name, TENSORS[name]) for name in ATTENTION]
    np.savez(tmp_path / "arr.npz", *arrays)
    for source in ("mlp.h5", "arr.npz"):
        found = read_attention(tmp_path / source).tensors
        assert same(found, {name: TENSORS[name] for name in ATTENTION})
        weights, *_ = convert(files / "whole.h5", tmp_path / "a.safetensors", str(tmp_path / source))
        assert same(weights.tensors, TENSORS)
    np.savez(tmp_path / "arr.npz", *arrays[:-1])
    with pytest.raises(WeightsError, match="arr.npz"):
        read_attention(tmp_path / "arr.npz")
    with pytest.raises(WeightsError, match="sinc.filt_b1 is missing"):
        convert(tmp_path / "mlp.h5", tmp_path / "b.safetensors")


def test_two_models_in_one_file(tmp_path):
    names = [f"a_{i}/{keras_name(name)}:0" for i in range(2) for name in TENSORS]
    with pytest.raises(WeightsError, match="holds 2 DENets"):
        keras_layers.assign(tmp_path, names)


def filters(sr: int, moved: float, n: int = 80, seed: int = 0) -> dict[str, np.ndarray]:
    """Cuts of filters that training has moved by `moved` cycles per sample each (standard deviation)."""
    rng = np.random.default_rng(seed)
    low, high = initial_cuts(sr, n).reshape(2, n)
    low, high = low + moved * rng.standard_normal(n), high + moved * rng.standard_normal(n)
    return {"sinc.filt_b1": low.astype("float32"), "sinc.filt_band": (high - low).astype("float32")}


def saved(folder: Path, sr: int, moved: float, seed: int = 0) -> Path:
    config = SMALL | {"n_filters": 80}
    write_npz(draw_tensors(config) | filters(sr, moved, seed=seed), config, folder / "all.npz")
    convert(folder / "all.npz", folder / "model.h5")
    return folder / "model.h5"


@pytest.mark.parametrize("sr", [8000, 16000, 44100, 250000])
@pytest.mark.parametrize("n", [4, 80])
def test_the_ladder_is_where_the_layer_starts(sr, n):
    layer = SincConv1D(n, 251, sr)
    low, high = initial_cuts(sr, n).reshape(2, n)
    assert torch.allclose(layer.filt_b1.abs(), torch.tensor(low, dtype=torch.float32), rtol=0, atol=1e-7)
    assert torch.allclose(layer.filt_band.abs(), torch.tensor(high - low, dtype=torch.float32), rtol=0, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([8000, 16000, 22050, 44100, 96000, 192000, 250000, 384000]), st.floats(0, 1.5e-4), st.integers(0, 99))
def test_the_filters_tell_the_rate(tmp_path_factory, sr, moved, seed):
    folder = tmp_path_factory.mktemp("rate")
    source, attention = saved(folder, sr, moved, seed), str(folder / "all.npz")
    np.savez(folder / "attention.npz", **{keras_name(name): transposed(name, draw_tensors(SMALL)[name]) for name in ATTENTION})
    attention = str(folder / "attention.npz")
    _, config, notes = convert(source, folder / "a.safetensors", attention)
    assert config["sr"] == sr and any(note.startswith(f"sr = {sr}, inferred: the filters' cuts are ") for note in notes)
    for wrong in {8000, 16000, 48000} - {sr}:
        with pytest.raises(WeightsError, match=f"--sr is {wrong}, but the filters' cuts are .* at {sr} Hz"):
            convert(source, folder / "b.safetensors", attention, {"sr": wrong})
    assert convert(source, folder / "c.safetensors", attention, {"sr": sr})[1]["sr"] == sr


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RATES), st.floats(1e-6, 1e-2), st.integers(0, 999))
def test_never_a_wrong_rate_in_silence(tmp_path_factory, sr, moved, seed):
    """The right rate, or a question, or a note that nothing confirms it; a wrong one only within 15 % of the right."""
    found = filters(sr, moved, seed=seed)
    open_rates = fitting(distances(found["sinc.filt_b1"], found["sinc.filt_band"]), 80)
    assert not open_rates or sr in open_rates or abs(open_rates[0] / sr - 1) < 0.15


def test_between_two_rates_it_asks(tmp_path):
    source = saved(tmp_path, 250000, 4e-4)
    np.savez(tmp_path / "attention.npz", **{keras_name(n): transposed(n, draw_tensors(SMALL)[n]) for n in ATTENTION})
    with pytest.raises(WeightsError, match="fit several sampling rates; say .*--sr 250000"):
        convert(source, tmp_path / "a.safetensors", str(tmp_path / "attention.npz"))
    assert convert(source, tmp_path / "a.safetensors", str(tmp_path / "attention.npz"), {"sr": 250000})[1]["sr"] == 250000


@pytest.mark.parametrize("sr", [192000, 250000])
def test_a_rate_that_moved_filters_contradict_is_not_assumed(tmp_path, sr):
    """As the trainer here moves them; 16 kHz would predict something else."""
    source = saved(tmp_path, sr, 4e-3)
    np.savez(tmp_path / "attention.npz", **{keras_name(n): transposed(n, draw_tensors(SMALL)[n]) for n in ATTENTION})
    with pytest.raises(WeightsError, match="too far to tell the rate, .* at 16000 Hz, which else is assumed; say --sr"):
        convert(source, tmp_path / "a.safetensors", str(tmp_path / "attention.npz"))
    assert convert(source, tmp_path / "a.safetensors", str(tmp_path / "attention.npz"), {"sr": sr})[1]["sr"] == sr


def test_verify_says_what_it_cannot_vouch_for(tmp_path, capsys):
    source = saved(tmp_path, 8000, 0.05)  # too far to tell
    np.savez(tmp_path / "attention.npz", **{keras_name(n): transposed(n, draw_tensors(SMALL)[n]) for n in ATTENTION})
    command = [str(source), str(tmp_path / "a.safetensors"), "--attention", str(tmp_path / "attention.npz"), "--verify"]
    assert main(command) == 3
    assert "not vouched for: the sampling rate, 16000 Hz, is assumed" in capsys.readouterr().err
    assert main([*command, "--sr", "8000"]) == 0 and capsys.readouterr().err == ""
    fresh = [*command[:3], "init", "--attention-position", "before", "--sr", "8000"]
    assert main([*fresh, "--verify"]) == 3 and "attention's weights were drawn" in capsys.readouterr().err
    near = saved(tmp_path, 8000, 1e-4)
    assert main([str(near), *command[1:]]) == 0 and "sr = 8000, inferred" in capsys.readouterr().out
