"""The command: what it prints, infers, refuses and leaves behind."""

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from weight_cases import SMALL, draw_tensors, same

from denet_torch import load
from denet_torch.architecture import ATTENTION, keras_name
from tools.convert_weights import main
from tools.weights import contents, files
from tools.weights.convert import convert, read_whole
from tools.weights.npz import write_npz

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT.parent / "shared" / "golden"
CONFIG = SMALL | {"input_shape": [4, 300, 1]}


@pytest.fixture
def folder(tmp_path) -> Path:
    """original.h5 without the attention weights, attention.npz with nothing else, and all of them in all.npz."""
    tensors = draw_tensors(CONFIG)
    write_npz(tensors, CONFIG, tmp_path / "all.npz")
    convert(tmp_path / "all.npz", tmp_path / "original.h5")
    np.savez(tmp_path / "attention.npz", **{keras_name(name): tensors[name].T for name in ATTENTION})
    return tmp_path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def refused(capsys, folder: Path, *arguments) -> str:
    """The one line of an error, after which nothing new lies in `folder`."""
    before = sorted(folder.iterdir())
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert sorted(folder.iterdir()) == before
    return err


def test_names_what_it_maps(folder, capsys):
    target = folder / "a.safetensors"
    code, out, err = run(capsys, folder / "original.h5", target, "--attention", folder / "attention.npz")
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert any(line.split() == ["conv1.weight", "(60,", "1,", "5)", "time_distributed_6/kernel:0"] for line in lines)
    assert sum(line.split()[0] in draw_tensors(CONFIG) for line in lines) == len(draw_tensors(CONFIG))
    assert any(line.startswith("note: sr = 16000, which the file does not tell, and training has moved") for line in lines)
    assert "note: samples = 300, the roundest of the frame lengths that fit; say --samples if it is another" in lines
    assert lines[-1] == f"wrote {target}"
    assert same({k: v.numpy() for k, v in load(target).state_dict().items() if "step" not in k}, draw_tensors(CONFIG))


def test_without_attention_weights_it_says_why_and_what_to_do(folder, capsys):
    err = refused(capsys, folder, folder / "original.h5", folder / "a.safetensors")
    assert f"{folder / 'original.h5'}: holds no attention weights" in err
    assert "--attention FILE.npz" in err and "--attention init" in err and "keras224_export" in err


def test_fresh_attention_asks_for_its_position(folder, capsys):
    arguments = folder / "original.h5", folder / "a.safetensors", "--attention", "init"
    assert "--attention-position before" in refused(capsys, folder, *arguments)
    for position in ("before", "after"):
        assert run(capsys, *arguments, "--attention-position", position)[0] == 0
        model = load(folder / "a.safetensors")
        assert model.before_pooling == (position == "before")
        attention = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("attention")}
        assert all((tensor == 0).all() for name, tensor in attention.items() if name.endswith("bias"))
        limit = (6 / (128 + attention["attention.dense1.weight"].shape[1])) ** 0.5  # glorot uniform
        assert 0.9 * limit < attention["attention.dense1.weight"].abs().max() <= limit
        assert np.array_equal(model.conv1.weight.detach(), draw_tensors(CONFIG)["conv1.weight"])


@pytest.mark.parametrize("before_pooling", [True, False])
def test_the_attentions_weights_tell_its_position(folder, before_pooling):
    config = CONFIG | {"before_pooling": before_pooling, "input_shape": [4, 800, 1]}
    write_npz(draw_tensors(config), config, folder / "b.npz")
    convert(folder / "b.npz", folder / "b.h5")
    tensors = draw_tensors(config)
    np.savez(folder / "attention.npz", **{keras_name(name): tensors[name].T for name in ATTENTION})
    _, found, _ = read_whole(folder / "b.h5", str(folder / "attention.npz"), {"seq_len": 4})
    assert found == config


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--classes", 4, "--classes is 4, but the file has 3"),
        ("--samples", 800, "fits frames of 291 to 317 samples, not 800"),
        ("--attention-position", "after", "(attention/dense1/kernel) is (128, 140) in the file, (128, 30) expected"),
    ],
)
def test_what_is_said_is_checked(folder, capsys, option, value, message):
    arguments = folder / "original.h5", folder / "a.safetensors", "--attention", folder / "attention.npz", option, value
    assert message in refused(capsys, folder, *arguments).replace(f"{folder / 'attention.npz'}: ", "")


@pytest.mark.parametrize("option, value", [("--sr", 8000), ("--seq-len", 5), ("--dropout", 0.5), ("--samples", 310)])
def test_what_the_file_states_is_checked(folder, capsys, option, value):
    err = refused(capsys, folder, folder / "all.npz", folder / "a.safetensors", option, value)
    assert f"{option} is {value}, but the file has" in err


@pytest.mark.parametrize("option, value", [("--sr", 0), ("--seq-len", -1), ("--dropout", 1)])
def test_what_no_model_has(folder, capsys, option, value):
    arguments = folder / "original.h5", folder / "a.safetensors", "--attention", folder / "attention.npz", option, value
    assert "the options: " in refused(capsys, folder, *arguments)


def test_what_the_file_does_not_state_can_be_said(folder, capsys):
    options = "--sr 250000 --seq-len 7 --dropout 0.1 --samples 299 --classes 3".split()
    run(capsys, folder / "original.h5", folder / "a.safetensors", "--attention", folder / "attention.npz", *options)
    config = load(folder / "a.safetensors").config
    assert config["input_shape"] == [7, 299, 1] and config["sr"] == 250000 and config["dropout"] == 0.1


def test_shapes_that_do_not_fit(folder, capsys):
    with np.load(folder / "all.npz") as arrays:
        arrays = dict(arrays)
    np.savez(folder / "wrong.npz", **arrays | {"dense2/kernel": np.zeros((7, 6), "float32")})
    err = refused(capsys, folder, folder / "wrong.npz", folder / "a.safetensors")
    assert err == f"error: {folder / 'wrong.npz'}: dense2.weight (dense2/kernel) is (6, 7) in the file, (6, 5) expected\n"


def test_a_gru_that_resets_after_the_product(folder, capsys):
    with np.load(folder / "all.npz") as arrays:
        arrays = dict(arrays)
    np.savez(folder / "wrong.npz", **arrays | {"gru/forward_gru/bias": np.zeros((2, 9), "float32")})
    assert "reset_after=True" in refused(capsys, folder, folder / "wrong.npz", folder / "a.safetensors")


@pytest.mark.parametrize("target", ["a.safetensors", "a.h5", "a.onnx"])
def test_missing_and_truncated_files(folder, capsys, target):
    assert "no such file" in refused(capsys, folder, folder / "none.h5", folder / target)
    (folder / "cut.h5").write_bytes((folder / "original.h5").read_bytes()[:-1])
    assert "cut.h5: cannot be read as HDF5" in refused(capsys, folder, folder / "cut.h5", folder / target)
    assert "no folder" in refused(capsys, folder, folder / "all.npz", folder / "none" / target)
    assert "the ending tells what is written" in refused(capsys, folder, folder / "all.npz", folder / "a.xyz")
    (folder / "text.h5").write_text("no weights")
    assert "is damaged, or none of" in refused(capsys, folder, folder / "text.h5", folder / target)
    assert "of its own" in refused(capsys, folder, folder / "all.npz", folder / target, "--attention", "init")


def test_a_failed_write_leaves_the_old_target(folder, capsys, monkeypatch):
    target = folder / "a.npz"
    target.write_bytes(b"precious")

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    assert "No space left on device" in refused(capsys, folder, folder / "all.npz", target)
    assert target.read_bytes() == b"precious"


def test_permissions_are_those_of_any_new_file(folder, capsys):
    run(capsys, folder / "all.npz", folder / "a.safetensors")
    (folder / "new").touch()
    assert (folder / "a.safetensors").stat().st_mode == (folder / "new").stat().st_mode


def test_neither_pytorch_nor_tensorflow_is_needed(folder):
    for target in ("a.safetensors", "a.h5", "a.keras", "a.weights.h5", "a.npz"):
        code = "import sys; sys.modules.update(torch=None, tensorflow=None); from tools.convert_weights import main; exit(main())"
        arguments = [folder / "original.h5", folder / target, "--attention", folder / "attention.npz"]
        subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_a_checkpoint_without_tensorflow(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (folder / "run.index").write_bytes(contents.TABLE)
    assert "tensorflow is needed to read it, and not installed" in refused(capsys, folder, folder / "run.index", folder / "a.npz")


def test_onnx_without_its_packages(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "tools.weights.onnx_file", raising=False)
    assert "onnxscript is needed to write it" in refused(capsys, folder, folder / "all.npz", folder / "a.onnx")


@pytest.mark.parametrize("ending", [".safetensors", ".h5"])
def test_verify_runs_both_sides(folder, capsys, ending):
    code, out, _ = run(capsys, folder / "all.npz", folder / f"a{ending}", "--verify")
    assert code == 0 and "largest difference of a probability from reference_tf on drawn inputs" in out


def test_verify_against_recorded_predictions_without_tensorflow(folder, capsys, monkeypatch):
    model = load_from_npz(folder)
    x = np.random.default_rng(0).standard_normal((2, 4, 300, 1), dtype="float32")
    with np.load(folder / "all.npz") as arrays:
        arrays = dict(arrays)
    y = model.predict_proba(torch.from_numpy(x)).numpy()
    np.savez(folder / "recorded.npz", **arrays, x=x, y=y)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, _ = run(capsys, folder / "recorded.npz", folder / "a.h5", "--verify")
    assert code == 0 and "probability from predictions recorded with the weights: " in out and "reference_tf" not in out
    np.savez(folder / "other.npz", **arrays, x=x, y=1 - y)
    code, _, err = run(capsys, folder / "other.npz", folder / "a.h5", "--verify")
    assert code == 1 and "differs by more than rounding" in err


def load_from_npz(folder: Path):
    convert(folder / "all.npz", folder / "model.safetensors")
    return load(folder / "model.safetensors")


def test_gzip_is_unpacked_in_bounds(folder, capsys):
    (folder / "original.h5.gz").write_bytes(gzip.compress((folder / "original.h5").read_bytes()))
    arguments = folder / "original.h5.gz", folder / "a.safetensors", "--attention", folder / "attention.npz"
    assert run(capsys, *arguments)[0] == 0
    (folder / "bomb.h5.gz").write_bytes(gzip.compress(bytes(10_000_000)))
    assert f"more than {files.MAX_RATIO} times" in refused(capsys, folder, folder / "bomb.h5.gz", folder / "b.safetensors")


@pytest.mark.parametrize("options", [[], ["--classes", "2", "--samples", "400", "--attention-position", "before"]])
def test_the_originals_file_predicts_what_it_predicted(tmp_path, capsys, options):
    if not GOLDEN.is_dir():
        pytest.skip("the original's weight file is not here (../shared/golden)")
    with gzip.open(GOLDEN / "weights_only_before_400.h5.gz") as packed, open(tmp_path / "original.h5", "wb") as file:
        shutil.copyfileobj(packed, file)
    live = GOLDEN / "weights_only_before_400.npz"
    code, _, _ = run(capsys, tmp_path / "original.h5", tmp_path / "a.safetensors", "--attention", live, *options)
    assert code == 0
    with np.load(live) as recorded:
        y = load(tmp_path / "a.safetensors").predict_proba(torch.from_numpy(recorded["x"])).numpy()
        assert np.abs(y - recorded["y"]).max() <= 1e-6
