"""model_raw.pkl of SincNet to .safetensors: every weight, nothing executed, one line for files that are something else."""

import pickle

import pytest
import torch

import denet_torch
from denet_torch.sincnet import SincNet
from tools import convert_weights
from tools.weights.sincnet_pkl import nearest_hop, original_parts


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = SincNet((20, 160), 5, 16000, n_filters=(8, 6, 6), hidden=(16, 12))
    for tensor in model.state_dict().values():
        tensor += 0.1 * torch.rand_like(tensor)
    return model.eval()


def original(model) -> dict:
    """The file's contents, with what the original owns and never uses."""
    found = original_parts(model)
    parts = {part: {name: torch.tensor(values) for name, values in found[part].items()} for part in found}
    parts["CNN_model_par"] |= {f"bn.0.{leaf}": torch.ones(8) for leaf in ("weight", "bias", "running_mean", "running_var")}
    parts["CNN_model_par"]["bn.0.num_batches_tracked"] = torch.tensor(3)
    parts["DNN1_model_par"] |= {"ln.0.gamma": torch.ones(16), "ln.0.beta": torch.ones(16)}
    parts["DNN2_model_par"] |= {"bn.0.weight": torch.ones(5), "ln.0.gamma": torch.ones(5)}
    return parts


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_converts_and_answers_the_same(model, tmp_path, capsys, zipped):
    source, target = tmp_path / "model_raw.pkl", tmp_path / "weights.safetensors"
    torch.save(original(model), source, _use_new_zipfile_serialization=zipped)
    assert convert_weights.main([str(source), str(target)]) == 0
    said = capsys.readouterr().out
    assert "sr = 16000, which the file does not tell" in said and "never uses are left out" in said
    assert "CNN_model_par/conv.0.low_hz_" in said
    loaded = denet_torch.load(target)
    assert type(loaded) is SincNet and loaded.config == model.config
    x = torch.randn(3, 20, 160)
    assert torch.equal(loaded(x), model(x))


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def broken(model, case: str) -> object:
    state = original(model)
    if case == "nan":
        state["DNN1_model_par"]["wx.0.bias"][0] = torch.nan
    elif case == "missing":
        del state["DNN1_model_par"]["wx.1.bias"]
    elif case == "no window":
        del state["CNN_model_par"]["ln0.gamma"]
    elif case == "shape":
        state["DNN2_model_par"]["wx.0.weight"] = torch.zeros(5, 3)
    elif case == "unknown":
        state["DNN1_model_par"]["attention"] = torch.zeros(3)
    elif case == "part":
        del state["DNN2_model_par"]
    elif case == "half":
        state["CNN_model_par"]["conv.1.bias"] = state["CNN_model_par"]["conv.1.bias"].half()
    elif case == "list":
        state = [1, 2]
    elif case == "code":
        state["CNN_model_par"]["conv.1.bias"] = Evil()
    return state


@pytest.mark.parametrize("case", ["nan", "missing", "no window", "shape", "unknown", "part", "half", "list", "code"])
def test_other_files_are_said_in_one_line(model, tmp_path, capsys, case):
    source, target = tmp_path / "model_raw.pkl", tmp_path / "weights.safetensors"
    torch.save(broken(model, case), source)
    assert convert_weights.main([str(source), str(target)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source}: ") and error.count("\n") == 1 and not target.exists()


def test_plain_pickles_and_cut_files(model, tmp_path, capsys):
    source, target = tmp_path / "model_raw.pkl", tmp_path / "weights.safetensors"
    source.write_bytes(pickle.dumps(Evil()))
    assert convert_weights.main([str(source), str(target)]) == 2
    torch.save(original(model), source)
    source.write_bytes(source.read_bytes()[:5000])
    assert convert_weights.main([str(source), str(target)]) == 2
    torch.save(original(model), source)
    assert convert_weights.main([str(source), str(tmp_path / "a.h5")]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_hops():
    assert [nearest_hop(chunk, sr) for chunk, sr in ((3200, 16000), (3000, 8000), (5000, 250000))] == [160, 75, 2500]
