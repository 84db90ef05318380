"""Every format: what is written is what was read, bit for bit, and other programs take it."""

import gzip
import json
import shutil
from itertools import product
from operator import attrgetter
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from weight_cases import SMALL, asked, configs, draw_tensors, same

from denet_torch import DENet, load, save
from denet_torch.architecture import ATTENTION, keras_name, shapes, transposed
from denet_torch.schema import Decoding, Detection
from tools.weights.convert import convert, read_whole
from tools.weights.npz import write_npz
from tools.weights.safetensors_file import write_safetensors
from tools.weights.verify import differences

BOTH_WAYS = [".safetensors", ".h5", ".weights.h5", ".keras", ".npz", ".pt"]
GOLDEN = Path(__file__).resolve().parents[1].parent / "shared" / "golden"


@settings(max_examples=50, deadline=None)
@given(configs())
def test_shapes_are_the_models(config):
    with torch.device("meta"):
        state = DENet(**config).state_dict()
    assert shapes(config) == {name: tuple(t.shape) for name, t in state.items()}


@settings(max_examples=4, deadline=None)
@given(configs(), st.sampled_from(["float32", "float64"]))
def test_every_pair_of_formats_round_trips(tmp_path_factory, config, dtype):
    folder, tensors = tmp_path_factory.mktemp("pairs"), draw_tensors(config, dtype=dtype)
    write_npz(tensors, config, folder / "attention.npz")
    write_safetensors(tensors, config, folder / "start.safetensors")

    def step(source: Path, target: Path) -> None:
        attention = str(folder / "attention.npz") if source.name.endswith("x.h5") else None
        convert(source, target, attention, asked(config))

    for first, second in product(BOTH_WAYS, BOTH_WAYS):
        there, back, end = folder / f"x{first}", folder / f"y{second}", folder / "end.safetensors"
        if not there.exists():
            step(folder / "start.safetensors", there)
        step(there, back)
        if second == ".h5":
            back = back.rename(folder / "back_x.h5")
        step(back, end)
        weights, found, _ = read_whole(end, None, {})
        assert same(weights.tensors, tensors), f"{first} to {second}"
        assert all(found[key] == config[key] for key in ("input_shape", "n_classes", "sr", "before_pooling", "dropout"))


@settings(max_examples=10, deadline=None)
@given(configs())
@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".keras"])
def test_these_formats_hold_the_whole_architecture(tmp_path_factory, ending, config):
    folder = tmp_path_factory.mktemp("whole")
    write_safetensors(draw_tensors(config), config, folder / "start.safetensors")
    convert(folder / "start.safetensors", folder / f"x{ending}")
    _, found, notes = convert(folder / f"x{ending}", folder / "end.safetensors")
    assert found == config and not notes


@pytest.mark.parametrize("detection", [None, Detection(decoding=Decoding(0.7))])
def test_written_by_the_converter_or_by_save_is_the_same(tmp_path, detection):
    model = DENet(**SMALL)
    model.detection = detection
    save(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with safe_open(tmp_path / "a.safetensors", "np") as a, safe_open(tmp_path / "b.safetensors", "np") as b:
        assert a.metadata() == b.metadata()  # the checksum among it


def test_how_answers_are_read_travels_along(tmp_path):
    model = DENet(**SMALL)
    model.detection = Detection(("none", "bark", "sqüeak"), Decoding(0.7))
    save(model, tmp_path / "a.safetensors")
    for source, target in ((".safetensors", ".npz"), (".npz", ".safetensors"), (".safetensors", ".onnx")):
        *_, notes = convert(tmp_path / f"a{source}", tmp_path / f"a{target}")
        assert not notes
    assert load(tmp_path / "a.safetensors").detection == model.detection
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert json.loads(metadata["detection"]) == model.detection.as_dict()
    *_, notes = convert(tmp_path / "a.npz", tmp_path / "a.keras")
    assert notes == [".keras has no place for the class names and the threshold that belong to these weights"]


def test_pt_is_a_state_dict_for_a_strict_load(tmp_path):
    tensors = draw_tensors(SMALL)
    write_safetensors(tensors, SMALL, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "a.pt")
    model = DENet(**SMALL)
    model.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert same({name: model.state_dict()[name].numpy() for name in tensors}, tensors)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_torch_export_program(tmp_path, dtype, rounding):
    torch.manual_seed(0)
    model = DENet(**SMALL).to(dtype).eval()
    save(model, tmp_path / "a.safetensors")
    weights, *_ = convert(tmp_path / "a.safetensors", tmp_path / "a.pt2")
    assert max(differences(weights, SMALL, tmp_path / "a.pt2").values()) < 1e-6
    program = torch.export.load(tmp_path / "a.pt2")
    state = program.state_dict
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items() if name in shapes(SMALL))
    for batch in (1, 9):
        x = torch.randn(batch, 4, 100, dtype=dtype)
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=rounding)


@pytest.mark.parametrize("before_pooling", [True, False])
def test_onnx_equals_pytorch(tmp_path, before_pooling):
    config = SMALL | {"before_pooling": before_pooling, "input_shape": [4, 300, 1]}
    torch.manual_seed(0)
    save(DENet(**config), tmp_path / "a.safetensors")
    weights, *_ = convert(tmp_path / "a.safetensors", tmp_path / "a.onnx")
    assert max(differences(weights, config, tmp_path / "a.onnx").values()) < 1e-6
    file = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert {o.domain: o.version for o in file.opset_import}[""] == 20
    assert json.loads({p.key: p.value for p in file.metadata_props}["denet"]) == config
    model, session = load(tmp_path / "a.safetensors"), onnxruntime.InferenceSession(tmp_path / "a.onnx")
    rng = np.random.default_rng(0)
    for batch, seq_len in product((1, 7), (1, 10)):
        for _ in range(25):
            x = rng.uniform(0.01, 3) * rng.standard_normal((batch, seq_len, 300), dtype="float32")
            with torch.no_grad():
                expected = model(torch.from_numpy(x)).numpy()
            np.testing.assert_allclose(session.run(None, {"waveform": x})[0], expected, rtol=0, atol=1e-5)


def described(path: Path) -> list:
    """Everything about an HDF5 file but the numbers in its datasets, in the file's order."""
    found = []

    def visit(name, item):
        for key in item.attrs:
            attribute = item.attrs.get_id(key)
            found.append((name, key, attribute.shape, attribute.get_type().encode(), repr(item.attrs[key])))
        if isinstance(item, h5py.Dataset):
            found.append((name, item.shape, item.dtype, item.id.get_create_plist().get_layout(), item.maxshape))
        else:
            found.append((name, list(item)))

    with h5py.File(path) as file:
        visit("/", file)
        file.visititems(visit)
    return found


def test_h5_is_the_originals(tmp_path):
    if not GOLDEN.is_dir():
        pytest.skip("the original's weight file is not here (../shared/golden)")
    with gzip.open(GOLDEN / "weights_only_before_400.h5.gz") as packed, open(tmp_path / "original.h5", "wb") as file:
        shutil.copyfileobj(packed, file)
    convert(tmp_path / "original.h5", tmp_path / "a.safetensors", str(GOLDEN / "weights_only_before_400.npz"))
    convert(tmp_path / "a.safetensors", tmp_path / "back.h5")
    assert described(tmp_path / "back.h5") == described(tmp_path / "original.h5")
    with h5py.File(tmp_path / "back.h5") as back, h5py.File(tmp_path / "original.h5") as original:
        names = []
        original.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(names) == 30 and all(np.array_equal(back[name], original[name]) for name in names)


RECORDED = Path(__file__).resolve().parents[1] / "parity_tests" / "golden"


@pytest.mark.parametrize("recording", ["model_before_800", "model_after_800", "weights_only_before_400"])
def test_h5_names_are_those_of_recorded_models(tmp_path, recording):
    original = json.loads((RECORDED / f"{recording}.json").read_text())
    config = SMALL | {
        "input_shape": [original["seq_len"], original["samples"], 1],
        "n_classes": original["n_classes"],
        "before_pooling": original["before_pooling"],
        "dropout": 0.3 if recording.startswith("weights_only") else 0.0,
        "n_filters": 80,
    }
    write_safetensors(draw_tensors(config), config, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "a.h5")
    written = []
    with h5py.File(tmp_path / "a.h5") as file:
        for layer in file.attrs["layer_names"]:
            written += [name.decode() for name in file[layer].attrs["weight_names"].tolist()]
    assert set(written) == {name for name, _ in original["weights"] if "sequential" not in name}


def renumbered(source: Path, target: Path, shift: int) -> None:
    """The same `save_weights` file as a process writes it that has built models before: every counter is `shift` higher."""

    def later(name: str) -> str:
        head, *rest = name.split("/")
        stem, number = head.rsplit("_", 1)
        return "/".join([f"{stem}_{int(number) + shift}", *rest])

    with h5py.File(source) as old, h5py.File(target, "w") as new:
        layers = [name.decode() for name in old.attrs["layer_names"]]
        new.attrs["layer_names"] = np.array([later(name).encode() for name in layers])
        for layer in layers:
            group = new.create_group(later(layer))
            names = [name.decode() for name in old[layer].attrs["weight_names"].tolist()]
            group.attrs["weight_names"] = np.array([later(name).encode() for name in names])
            for name in names:
                group[later(name)] = old[layer][name][()]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_counters_in_layer_names_do_not_matter(tmp_path, dropout):
    config = SMALL | {"dropout": dropout}
    tensors = draw_tensors(config)
    write_safetensors(tensors, config, tmp_path / "a.safetensors")
    write_npz(tensors, config, tmp_path / "a.npz")
    convert(tmp_path / "a.safetensors", tmp_path / "a.h5")
    renumbered(tmp_path / "a.h5", tmp_path / "later.h5", 8)
    weights, found, _ = convert(tmp_path / "later.h5", tmp_path / "b.safetensors", str(tmp_path / "a.npz"))
    assert same(weights.tensors, tensors) and found == config
    assert weights.origin["dense3.bias"].startswith("time_distributed_" + ("33" if dropout else "28"))


def test_attention_saved_by_a_mended_original(tmp_path):
    """Somebody who registered the attention network with its layer has its weights in the file."""
    tensors = draw_tensors(SMALL)
    write_safetensors(tensors, SMALL, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        names = [f"time_distributed_2/sequential_1/{name.replace('.', '_')}" for name in ATTENTION]
        names = [name.replace("_weight", "/kernel:0").replace("_bias", "/bias:0") for name in names]
        file["time_distributed_2"].attrs["weight_names"] = np.array([name.encode() for name in names])
        for stored, name in zip(names, ATTENTION, strict=True):
            file["time_distributed_2"][stored] = tensors[name].T
    weights, found, _ = convert(tmp_path / "a.h5", tmp_path / "b.safetensors", asked={"seq_len": 4})
    assert same(weights.tensors, tensors) and found == SMALL


class TestTensorFlow:
    """Files that tf_keras writes for reference_tf, and files for it."""

    @pytest.fixture(params=[True, False], ids=["registered", "unregistered"])
    def model(self, request):
        import tf_keras

        import reference_tf

        tf_keras.utils.set_random_seed(0)
        return reference_tf.DENet(**SMALL | {"train_attention": request.param, "before_pooling": True})

    def predictions(self, model):
        x = np.random.default_rng(0).standard_normal((2, 4, 100), dtype="float32")
        return x, model.predict_proba(x).numpy()

    def check(self, model, source, tmp_path):
        attention = None
        if not model.config["train_attention"] and source.name.endswith(("a.h5", ".index")):
            attention = str(tmp_path / "attention.npz")
            names = [keras_name(name) for name in ATTENTION]
            np.savez(attention, **{name: attrgetter(name.replace("/", "."))(model).numpy() for name in names})
        weights, *_ = convert(source, tmp_path / "a.safetensors", attention, asked(SMALL))
        for name, tensor in weights.tensors.items():
            assert np.array_equal(transposed(name, tensor), attrgetter(keras_name(name).replace("/", "."))(model))
        x, y = self.predictions(model)
        np.testing.assert_allclose(load(tmp_path / "a.safetensors").predict_proba(torch.from_numpy(x)), y, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras", ".index"])
    def test_from_tf_keras(self, model, tmp_path, ending):
        path = tmp_path / f"a{ending}"
        if ending == ".keras":
            model.save(path)
        else:
            model.save_weights(str(path).removesuffix(".index"))
        self.check(model, path, tmp_path)

    @pytest.mark.parametrize("how", ["model.export", "tf.saved_model.save"])
    def test_from_a_saved_model(self, how, tmp_path):
        import tensorflow as tf
        import tf_keras

        import reference_tf

        tf_keras.utils.set_random_seed(0)
        model = reference_tf.DENet(**SMALL)
        if how == "model.export":
            model.export(str(tmp_path / "saved"))
        else:
            tf.saved_model.save(model, str(tmp_path / "saved"))
        self.check(model, tmp_path / "saved", tmp_path)

    def test_from_a_training_checkpoint(self, tmp_path):
        import tensorflow as tf
        import tf_keras

        import reference_tf

        tf_keras.utils.set_random_seed(0)
        model, optimizer = reference_tf.DENet(**SMALL), tf_keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        path = tf.train.Checkpoint(net=model, optimizer=optimizer, epoch=tf.Variable(3)).save(str(tmp_path / "run"))
        self.check(model, Path(f"{path}.index"), tmp_path)

    @pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
    def test_to_tf_keras(self, model, tmp_path, ending):
        import tf_keras

        config = SMALL | {"train_attention": model.config["train_attention"]}
        write_safetensors(draw_tensors(config, seed=5), config, tmp_path / "a.safetensors")
        convert(tmp_path / "a.safetensors", tmp_path / f"a{ending}")
        if ending == ".keras":
            model = tf_keras.models.load_model(tmp_path / "a.keras")
        else:
            model.load_weights(str(tmp_path / "a.weights.h5"))
        x, y = self.predictions(model)
        np.testing.assert_allclose(load(tmp_path / "a.safetensors").predict_proba(torch.from_numpy(x)), y, rtol=0, atol=1e-6)
