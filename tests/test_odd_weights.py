"""Weight files that are right in their format and odd in what they hold: each is refused in one line, or means one thing only."""

import io
import json
import os
import pickle
import struct
import zipfile

import h5py
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from test_damaged_weights import edited_hdf5, edited_zip
from trainer_cases import as_options, tiny
from weight_cases import SMALL, draw_tensors, whole_files

import denet_torch
from denet_torch.architecture import checksum
from denet_torch.classification import file_log_posteriors
from denet_torch.files import write_safetensors
from denet_torch.pickles import check_archive
from denet_torch.schema import Detection
from tools import classify, detect
from tools.detect_batch import Job, load_model
from tools.weights import WeightsError
from tools.weights.convert import convert
from tools.weights.sincnet_pkl import original_parts, read_sincnet
from training import run as train

T = draw_tensors(SMALL)
DEEP = b"\x80\x02}(" + b")" + b"\x85" * 30_000 + b"K\x01u."  # a key of more tuples in tuples than PyTorch survives


def saved(value, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def members(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def zipped(contents) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents:
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(descr: str, shape: str, body: bytes = b"") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + body


def refused(tmp_path, ending: str, data: bytes, *matches: str) -> None:
    source, target = tmp_path / f"a{ending}", tmp_path / "b.safetensors"
    source.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        convert(source, target)
    assert str(caught.value).startswith(f"{source}: ") and str(caught.value).isprintable() and not target.exists()
    assert not matches or any(match in str(caught.value) for match in matches), caught.value


ARCHIVES = {  # Python's zipfile sees the whole weights in each, PyTorch or another reader something else
    "a twin": lambda data, other: zipped(members(data) + [(name.replace("/data", "/DATA"), x) for name, x in members(other)]),
    "its twin before": lambda data, other: zipped([(n.replace("/data", "/Data"), x) for n, x in members(other)] + members(data)),
    "two archives": lambda data, other: other + data,
    "bytes before": lambda data, other: b"PK\3\4" + bytes(30) + data,
    "bytes behind": lambda data, other: data + bytes(30),
    "a comment": lambda data, other: data[:-2] + struct.pack("<H", 22) + other[-22:],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("how", ARCHIVES)
def test_archives_in_which_another_program_finds_other_members_are_refused(tmp_path, how):
    state = {name: torch.from_numpy(array) for name, array in T.items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    data = ARCHIVES[how](saved(state), saved(zeros))
    refused(tmp_path, ".pt", data, "zip archive")
    (tmp_path / "a.ckpt").write_bytes(data)
    with pytest.raises(pickle.UnpicklingError):
        check_archive(tmp_path / "a.ckpt")


def test_the_pickle_that_is_searched_is_the_one_that_pytorch_reads(tmp_path):
    """It reads the layout before 1.6 where a file does not begin as an archive, whatever its end; this ended the process."""
    beginning = saved({}, old=True)[:-10]
    evil = beginning[: beginning.index(b"\x80\x02}q", 30)] if b"\x80\x02}q" in beginning[30:] else beginning
    (tmp_path / "a.pkl").write_bytes(evil + DEEP + zipped([("a/data.pkl", b"\x80\2}.")]))
    with pytest.raises(pickle.UnpicklingError, match="more than tensors"):
        check_archive(tmp_path / "a.pkl")


NPZ = {
    "letters of no size": lambda m: m.update({"config.npy": header("<U0", "(3,)")}),
    "a length that is True": lambda m: m.update({"x.npy": header("<f4", "(True,)", bytes(4))}),
    "axes too long": lambda m: m.update({"x.npy": header("<f4", f"(0, {2**30}, {2**30}, {2**30})")}),
    "one name with and without its suffix": lambda m: m.update({"conv1/bias": npy(np.zeros(60, "f4"))}),
    "a detection of numbers": lambda m: m.update({"detection.npy": npy(np.arange(3.0))}),
    "letters that are none": lambda m: m.update({"detection.npy": header("<U1", "()", b"\xff" * 4)}),
    "a config of a megabyte": lambda m: m.update({"config.npy": npy(np.array('{"x": [' + "[]," * 400_000 + "0]}"))}),
    "predictions of other frames": lambda m: m.update(predictions(77, 3)),
    "predictions of other classes": lambda m: m.update(predictions(100, 7)),
}


def predictions(samples: int, classes: int) -> dict[str, bytes]:
    return {"x.npy": npy(np.ones((1, 4, samples, 1), "f4")), "y.npy": npy(np.ones((1, 4, classes), "f4"))}


@pytest.mark.parametrize("how", NPZ)
def test_odd_npz(tmp_path, how):
    refused(tmp_path, ".npz", edited_zip(whole_files()[".npz"], NPZ[how]))


@pytest.mark.parametrize("type_", ["f2", "f8", ">f4"])
def test_recorded_predictions_are_of_any_type(tmp_path, type_, capsys):
    from tools.convert_weights import main

    found = {name: npy(np.load(io.BytesIO(data)).astype(type_)) for name, data in predictions(100, 3).items()}
    (tmp_path / "a.npz").write_bytes(edited_zip(whole_files()[".npz"], lambda m: m.update(found)))
    assert main([str(tmp_path / "a.npz"), str(tmp_path / "b.safetensors"), "--verify"]) == 1  # they are not its own
    assert "differs by more than rounding" in capsys.readouterr().err


STATED = {
    "a rate below all": ({"sr": 99}, ""),
    "half a Hz": ({"sr": 16000.5}, ""),
    "200,000 frames": ({"input_shape": [200_000, 100, 1]}, ""),
    "a long architecture": ({"x": [[]] * 400_000}, ""),
    "no JSON": ({}, "{"),
    "a list": ({}, "[]"),
    "labels of other classes": ({}, '{"labels": ["a"]}'),
    "a threshold beyond": ({}, '{"threshold": 1e999}'),
    "deep labels": ({}, "[" * 100_000),
    "long labels": ({}, json.dumps({"labels": ["x" * 900] * 1200})),
}


@pytest.mark.parametrize("what", STATED)
def test_what_denet_torch_does_not_load_is_not_converted(tmp_path, what):
    changes, detection = STATED[what]
    text = json.dumps(SMALL | changes)
    metadata = {"denet": text, "sha256": checksum(text + detection, T)} | ({"detection": detection} if detection else {})
    write_safetensors(T, metadata, tmp_path / "x")
    refused(tmp_path, ".safetensors", (tmp_path / "x").read_bytes())


def test_negative_variances_are_not_converted(tmp_path):
    name = "batch_norm1.moving_variance"
    text = json.dumps(SMALL)
    tensors = T | {name: -T[name]}
    write_safetensors(tensors, {"denet": text, "sha256": checksum(text, tensors)}, tmp_path / "x")
    refused(tmp_path, ".safetensors", (tmp_path / "x").read_bytes(), "no variance")


def test_odd_keras(tmp_path):
    long = {"config.json": '{"config": {"x": [' + "[]," * 400_000 + "0]}}"}
    for changed in (long, {"config.json": '{"config": [["n_classes", 3]]}'}):
        refused(tmp_path, ".keras", edited_zip(whole_files()[".keras"], lambda m, new=changed: m.update(new)), "config.json")
    rate = '{"config": {"layers": [{"class_name": "Dropout", "config": {"rate": 1' + "0" * 400 + "}}]}}"
    refused(tmp_path, ".h5", edited_hdf5(whole_files()[".h5"], lambda file: stated(file, rate)), "model_config")


def stated(file: h5py.File, config: str) -> None:
    file.attrs["model_config"] = config


def test_odd_state_dicts(tmp_path):
    state = {name: torch.from_numpy(array) for name, array in T.items()}
    deep = [
        (name, DEEP[:6] + b"\x85" * 15_000 + DEEP[-4:] if name.endswith("data.pkl") else x) for name, x in members(saved(state))
    ]
    refused(tmp_path, ".pt", zipped(deep), "no weight")
    refused(tmp_path, ".pt", saved(state | {"conv1.bias": torch.empty(0, 2**20)}), "no weight is")
    (tmp_path / "b.pt").write_bytes(saved(state | {"conv1.bias": torch.ones(1).expand(60)}))
    convert(tmp_path / "b.pt", tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors")["conv1.bias"].tolist() == [1.0] * 60


@pytest.fixture(scope="module")
def sincnet() -> denet_torch.SincNet:
    torch.manual_seed(0)
    return denet_torch.SincNet((10, 40), 3, 4000, n_filters=[4, 4, 4], taps=[41, 5, 5], hidden=[8]).eval()


SINCNET = {
    "a single number": ("CNN_model_par", "ln0.gamma", lambda old: torch.tensor(1.0)),
    "a number of 5,000 digits": ("CNN_model_par", f"conv.{'9' * 5000}.weight", lambda old: torch.zeros(4, 4, 5)),
    "negative variances": ("DNN1_model_par", "bn.0.running_var", lambda old: -old - 1),
    "no class": ("DNN2_model_par", "wx.0.bias", lambda old: old[:0]),
}


@pytest.mark.parametrize("what", SINCNET)
def test_odd_sincnet(tmp_path, sincnet, what):
    part, name, change = SINCNET[what]
    parts = {part: {k: torch.from_numpy(v.copy()) for k, v in some.items()} for part, some in original_parts(sincnet).items()}
    parts[part][name] = change(parts[part].get(name))
    torch.save(parts, tmp_path / "a.pkl")
    with pytest.raises(WeightsError, match=f"^{tmp_path / 'a.pkl'}: "):
        read_sincnet(tmp_path / "a.pkl", 4000)


def test_answers_of_a_file_that_are_no_numbers_are_told(tmp_path, sincnet, capsys):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(4000), 4000)
    state = {
        name: tensor * (1e38 if name.startswith(("convs", "hidden", "output")) else 1)
        for name, tensor in sincnet.state_dict().items()
    }
    huge = denet_torch.SincNet(**sincnet.config)
    huge.load_state_dict(state)
    denet_torch.save(huge, tmp_path / "a.safetensors")
    assert classify.main([str(tmp_path / "a.wav"), "--weights", str(tmp_path / "a.safetensors")]) == 2
    assert "not finite numbers" in capsys.readouterr().err
    assert np.isfinite(file_log_posteriors(sincnet, tmp_path / "a.wav")).all()


def test_a_job_of_detection_keeps_the_weights_that_it_began_with(tmp_path, sincnet):
    path = tmp_path / "a.safetensors"
    denet_torch.save(sincnet, path)
    job = Job(path, tmp_path)
    other = denet_torch.SincNet(**sincnet.config)
    other.load_state_dict({name: tensor + 0.5 for name, tensor in sincnet.state_dict().items()})
    denet_torch.save(other, path)
    with pytest.raises(denet_torch.checkpoint.CheckpointError, match="is another file than asked for"):
        load_model(job)
    assert job != Job(path, tmp_path)
    assert torch.equal(load_model(Job(path, tmp_path)).state_dict()["output.weight"], other.state_dict()["output.weight"])


def boxes(path):
    pytest.importorskip("torchvision", reason="torchvision is not installed (the extra boxes)")
    denet_torch.save(denet_torch.Boxes((4, 200), 2, 4000), path)
    return path


def as_float64(path):
    model = denet_torch.DENet([4, 200, 1], 2, 4000, n_filters=4, gru_units=8, dense_units=[8, 8])
    denet_torch.save(model.double(), path)
    return path


@pytest.mark.parametrize("changes", [{}, {"mode": "file", "model": "sincnet", "n_filters": 6, "hidden_units": [8]}], ids=str)
def test_a_model_that_finds_boxes_does_not_begin_a_run_of_another_kind(collection, tmp_path, capsys, changes):
    path = boxes(tmp_path / "a.safetensors")
    config = tiny(collection, tmp_path / "run", init_from=path, epochs=1, **changes)
    assert train.main(as_options(config)) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {path}: finds boxes; --model boxes trains it"


def test_weights_of_float64_begin_a_run(collection, tmp_path):
    config = tiny(collection, tmp_path / "run", init_from=as_float64(tmp_path / "a.safetensors"), epochs=1)
    assert train.main(as_options(config)) == 0


@pytest.mark.parametrize("changes", [{}, {"mode": "file", "model": "sincnet", "n_filters": 6, "hidden_units": [8]}], ids=str)
def test_the_weights_of_a_run_are_its_own(collection, tmp_path, capsys, sincnet, changes):
    config = tiny(collection, tmp_path / "run", epochs=1, **changes)
    assert train.main(as_options(config)) == 0
    (config.out / "scores.json").unlink()
    denet_torch.save(sincnet, config.out / "weights.safetensors")
    assert train.main(["--resume", str(config.out)]) == 2
    assert "weights.safetensors: holds another model than this run trains" in capsys.readouterr().err
    assert not (config.out / "scores.json").exists()


def test_commands_name_the_weights_that_answer_in_another_way(tmp_path, sincnet, capsys):
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(4000), 4000)
    sincnet.detection = Detection(("a", "b", "c"), per="file")
    denet_torch.save(sincnet, tmp_path / "files.safetensors")
    words = [str(tmp_path / "a.wav"), "--output", str(tmp_path / "out"), "--weights"]
    assert detect.main([*words, str(tmp_path / "files.safetensors")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'files.safetensors'}: names whole files")
    path = boxes(tmp_path / "boxes.safetensors")
    assert classify.main([*words, str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: finds boxes")


def test_images_are_of_a_bounded_size(tmp_path):
    path, other = boxes(tmp_path / "a.safetensors"), 4096
    with pytest.raises(ValueError, match="expected at most"):
        denet_torch.Boxes((4, 200), 2, 4000, rows=other)
    with pytest.raises(ValueError, match="expected at most"):
        denet_torch.Boxes((2**12, 2**12), 2, 4000)
    config = json.dumps(denet_torch.load(path).config | {"rows": other})
    tensors = load_file(path)
    metadata = {"boxes": config, "sha256": denet_torch.checkpoint.checksum(config, tensors)}
    path = tmp_path / "b.safetensors"  # tensors are the bytes of the other
    write_safetensors({name: tensor.numpy() for name, tensor in tensors.items()}, metadata, path)
    with pytest.raises(denet_torch.checkpoint.CheckpointError, match="expected at most"):
        denet_torch.load(path)


@pytest.mark.parametrize("name", [b"a\rb.wav", b"\xff.wav"])
def test_recordings_that_no_table_can_name_are_told(tmp_path, sincnet, capsys, name):
    """A carriage return in a table ends a line where it is read: what follows it would be another recording."""
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 8000)
    os.rename(tmp_path / "a.wav", os.fsencode(tmp_path) + b"/" + name)
    denet_torch.save(sincnet, tmp_path / "files.safetensors")
    as_float64(tmp_path / "frames.safetensors")
    for command, weights in ((detect, "frames"), (classify, "files")):
        assert (
            command.main([str(tmp_path), "--weights", str(tmp_path / f"{weights}.safetensors"), "--output", str(tmp_path / "x")])
            == 2
        )
        err = capsys.readouterr().err
        assert "rename it" in err and err.count("error: ") == 1
        assert not (tmp_path / "x").is_file()
    with pytest.raises(ValueError, match="not a list of names"):
        Detection(("a\rb",))
    with pytest.raises(ValueError, match="labels name two classes 'a'"):
        Detection(("b", "a", "c", "a"))
