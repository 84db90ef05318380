import hashlib
import json
import platform
import random
import socket
import subprocess
import sys
import time
import urllib.request

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from weight_cases import SMALL, configs

import denet_torch
from denet_torch import CheckpointError, DENet, checkpoint, load, save
from denet_torch.schema import Decoding, Detection


@pytest.fixture
def model() -> DENet:
    torch.manual_seed(0)
    return DENet(**SMALL)


def same_weights(a: DENet, b: DENet) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@settings(max_examples=25, deadline=None)
@given(configs())
def test_round_trip_rebuilds_the_model(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("model") / "a.safetensors"
    model = DENet(**config)
    save(model, path)
    loaded = load(path)
    assert loaded.config == config and not loaded.training
    assert same_weights(model, loaded)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    assert trained == {name: p.requires_grad for name, p in loaded.named_parameters()}


def test_loaded_model_predicts_and_trains_the_same(model, tmp_path):
    save(model.double(), tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors")
    x = torch.randn(2, 4, 100, dtype=torch.float64)
    assert torch.equal(model.predict_proba(x), loaded.predict_proba(x))
    loaded.train()(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in loaded.parameters())


def test_training_state_is_not_a_weight(model, tmp_path):
    model.train()(torch.randn(2, 4, 100))
    assert model.batch_norm1.local_step == 1
    save(model, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").batch_norm1.local_step == 0


def test_loading_does_not_draw_initial_weights(model, tmp_path):
    save(model, tmp_path / "a.safetensors")
    state = torch.get_rng_state()
    load(tmp_path / "a.safetensors")
    assert torch.equal(state, torch.get_rng_state())


LOADED = """
import sys, denet_torch
for path in sys.argv[1:]:
    denet_torch.load(path)
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""


def test_loading_does_not_load_pytorchs_compiler(model, tmp_path):
    """It takes more than a second, and comes with any of many functions on weights without memory."""
    after = DENet(**SMALL | {"input_shape": [4, 300, 1], "before_pooling": False})
    paths = []
    for name, one in {"model": model, "after": after, "sincnet": denet_torch.SincNet((4, 400), 2, hidden=(8, 8))}.items():
        paths.append(str(tmp_path / f"{name}.safetensors"))
        save(one, paths[-1])
    told = subprocess.run([sys.executable, "-c", LOADED, *paths], capture_output=True, text=True, check=True)
    assert told.stdout == "False False\n"


def test_loaded_weights_begin_at_whole_cache_lines(model, tmp_path):
    save(model, tmp_path / "a.safetensors")
    assert not any(weight.data_ptr() % 64 for weight in load(tmp_path / "a.safetensors").state_dict().values())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(("of_any_size", "kept"), [(False, [True, False]), (True, [True, True])])
def test_freed_memory_is_kept(of_any_size, kept):
    script = f"""
import torch
from denet_torch.memory import keep_freed_memory
keep_freed_memory({of_any_size})
def pages():
    return int(open("/proc/self/statm").read().split()[1])
for megabytes in (20, 60):
    before = pages()
    torch.ones(megabytes * 2**18)
    print(pages() - before > megabytes * 2**7)  # half of it
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(answer) for answer in kept]


def test_every_flipped_bit_shows(model, tmp_path):
    path = tmp_path / "a.safetensors"
    save(model, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    places = [rng.randrange(8 * header) for _ in range(150)] + [rng.randrange(8 * header, 8 * len(whole)) for _ in range(50)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="^" + str(path)):
            load(path)


def test_cut_short_at_any_place(model, tmp_path):
    path = tmp_path / "a.safetensors"
    save(model, path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            load(path)


def rewritten(path, change) -> None:
    """Apply `change(config, tensors)` to a file and give it a right checksum again."""
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["denet"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    config = change(config, tensors) or config
    text = json.dumps(config)
    safetensors.torch.save_file(tensors, path, {"denet": text, "sha256": checkpoint.checksum(text, tensors)})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c, t: t.__delitem__("conv1.bias"), "conv1.bias is missing"),
        (lambda c, t: t.update(conv9=torch.zeros(1)), "conv9 is no weight of a DENet"),
        (lambda c, t: t.update({"conv1.bias": torch.zeros(59)}), r"conv1.bias is \(59,\), its architecture has \(60,\)"),
        (lambda c, t: t.update({"conv1.bias": torch.zeros(60).half()}), "conv1.bias is torch.float16"),
        (lambda c, t: t.update({"conv1.bias": torch.zeros(60).double()}), "conv1.bias is torch.float64"),
        (lambda c, t: t.update({"conv1.bias": torch.full((60,), torch.nan)}), "conv1.bias holds values that are not finite"),
        (lambda c, t: t["batch_norm1.moving_variance"].sub_(5)[:0].tolist(), "holds negative numbers"),
        (lambda c, t: c | {"colour": 1}, "architecture is not a DENet's .'colour' is no argument"),
        (lambda c, t: c | {"gru_units": "many"}, "architecture is not a DENet's .gru_units is 'many', expected a whole number"),
        (lambda c, t: c | {"input_shape": [4, 10, 1]}, "too short"),
        (lambda c, t: [1, 2], "architecture is not a DENet's .it is .1, 2., not an object"),
        *[
            (lambda c, t, key=key, value=value: c | {key: value}, f"architecture is not a DENet's .{key} is ")
            for key, values in {
                "dropout": ("0.3", 2, 1, -0.1, float("nan"), None, True),
                "sr": (0, -1, float("nan"), float("inf"), 2e9, 10**400, 16000.5, "16000", [16000]),
                "input_shape": ([0, 100, 1], [-5, 100, 1], ["10", 100, 1], [10.5, 100, 1], [4, 100, 2], [4], 4, [10**9, 100, 1]),
                "dense_units": ([5], [5, 6, 7], [5, 0], 5),
                "before_pooling": (0, "yes"),
                "n_classes": (3.0, True),
            }.items()
            for value in values
        ],
    ],
)
def test_what_is_no_denet(model, tmp_path, change, message):
    path = tmp_path / "a.safetensors"
    save(model, path)
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load(tmp_path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no DENet architecture"):
        load(tmp_path / "a.safetensors")


def test_a_failed_save_leaves_what_was_there(model, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save(model, path)
    before = path.read_bytes()

    def fail(tensors, metadata, name):
        name.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_safetensors", fail)
    with pytest.raises(CheckpointError, match=f"^{path}: cannot be written .No space left on device.$"):
        save(model, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_pretrained_folder(model, tmp_path):
    denet_torch.save_pretrained(model, tmp_path / "published")
    assert {p.name for p in (tmp_path / "published").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert json.loads((tmp_path / "published" / "config.json").read_text()) == model.config
    assert same_weights(denet_torch.from_pretrained(tmp_path / "published"), model)


def test_a_model_card_tells_labels_rate_scores_and_provenance(model, tmp_path):
    run = tmp_path / "first"
    run.mkdir()
    scores = {"frames": {"f1": 0.9123, "roc_auc": None}, "events": {"f1": 0.8}}
    (run / "scores.json").write_text(json.dumps({"test": scores, "validation": {"frames": {"f1": 0.95}}}))
    (run / "run.json").write_text(json.dumps({"commit": "abc123+", "versions": {"torch": "2.11.0"}, "data_index_sha256": "f00"}))
    named = [f"kind {i}" for i in range(model.n_classes)]
    model.detection = Detection(tuple(named), Decoding(0.7, min_gap=0.1))
    try:
        denet_torch.save_pretrained(model, tmp_path / "published", run)
    finally:
        model.detection = None
    card = (tmp_path / "published" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: denet-torch\n") and "\n# first\n" in card
    told = [", ".join(named), f"{model.sr:,} Hz", "0.7 call probability", "| joined below | 0.1 s |"]
    for part in (*told, "| f1 | 0.950 | 0.912 |", "| roc auc | none | none |", "abc123+", "torch 2.11.0", "f00"):
        assert part in card, part
    (tmp_path / "published" / "README.md").write_text("mine")
    denet_torch.save_pretrained(model, tmp_path / "published")
    assert (tmp_path / "published" / "README.md").read_text() == "mine"


def test_a_runs_folder_is_its_weights(model, tmp_path):
    denet_torch.save(model, tmp_path / "weights.safetensors")
    assert same_weights(denet_torch.load(tmp_path), model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(denet_torch.CheckpointError, match="empty: is a folder without weights.safetensors"):
        denet_torch.load(tmp_path / "empty")


def test_pretrained_from_the_hub(model, tmp_path, monkeypatch):
    save(model, tmp_path / "cached.safetensors")
    calls = []

    def download(*arguments, **options):
        calls.append((arguments, options))
        return str(tmp_path / "cached.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(checkpoint, "_out_of_reach", lambda url: False)
    assert same_weights(denet_torch.from_pretrained("someone/denet-bats", revision="v1"), model)
    assert calls == [(("someone/denet-bats", "model.safetensors"), {"revision": "v1", "cache_dir": None})]


def test_pretrained_that_is_not_there(monkeypatch, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder, and not to be had from the Hub"):
        denet_torch.from_pretrained("neither a folder / nor a repository")

    def offline(*arguments, **options):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(CheckpointError, match=r"not to be had from the Hub \(offline\)"):
        denet_torch.from_pretrained("someone/denet-bats")
    with pytest.raises(CheckpointError, match="no such file"):
        denet_torch.from_pretrained(tmp_path)


def test_a_mistyped_folder_does_not_wait_for_a_hub_out_of_reach(monkeypatch, tmp_path):
    """The Hub's own library asks again and again, and sleeps between."""
    slept = []

    def nowhere(*_):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(CheckpointError, match="no such folder, and not to be had from the Hub"):
        denet_torch.from_pretrained("runs/frist", cache_dir=str(tmp_path))
    assert not slept


def test_how_to_detect_travels_with_the_weights(model, tmp_path):
    assert model.detection is None
    model.detection = Detection(("none", "bat", "owl"), Decoding(0.7))
    save(model, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").detection == model.detection


@pytest.mark.parametrize(
    "stored",
    [
        [],
        "0.5",
        {"threshold": "0.5"},
        {"threshold": 2},
        {"threshold": None},
        {"low_threshold": 0.9},
        {"min_gap": float("nan")},
        {"call_gap": 1e300},
        {"labels": "abc"},
        {"labels": ["a", "b"]},
        {"labels": ["a", "b", 3]},
        {"labels": ["a", "b", ""]},
        {"labels": ["a", "b", "\ud800"]},
        {"labels": ["a", "b", "x" * 100_000]},
        {"colour": 1},
    ],
)
def test_labels_and_decoding_are_checked(model, tmp_path, stored):
    path = tmp_path / "a.safetensors"
    save(model, path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    metadata["detection"] = json.dumps(stored)
    metadata["sha256"] = checkpoint.checksum(metadata["denet"] + metadata["detection"], tensors)
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="^" + str(path) + ": its labels and decoding cannot be used") as caught:
        load(path)
    assert len(str(caught.value)) <= 300


def test_files_of_earlier_versions_load(model, tmp_path):
    """The library's own writer, fewer arguments, a decoding without some of its fields, a rate as a float."""
    path = tmp_path / "a.safetensors"
    save(model, path)
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    config = {key: value for key, value in SMALL.items() if key not in ("dropout", "train_attention")} | {"sr": 16000.0}
    text, detection = json.dumps(config), json.dumps({"threshold": 0.7})
    metadata = {"denet": text, "detection": detection, "sha256": checkpoint.checksum(text + detection, tensors)}
    safetensors.torch.save_file(tensors, path, metadata)
    loaded = load(path)
    assert loaded.config == SMALL and same_weights(model, loaded) and loaded.detection == Detection((), Decoding(0.7))


def test_equal_models_give_equal_bytes(model, tmp_path):
    model.detection = Detection(("none", "bat", "owl"))
    script = """
import sys, denet_torch
denet_torch.save(denet_torch.load(sys.argv[1]), sys.argv[2])
"""
    save(model, tmp_path / "0.safetensors")
    for i in range(3):
        names = [str(tmp_path / f"{j}.safetensors") for j in (i, i + 1)]
        subprocess.run([sys.executable, "-c", script, *names], check=True)
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(4)}) == 1
    assert {name: tensor.dtype for name, tensor in safetensors.torch.load_file(tmp_path / "0.safetensors").items()}


def test_a_digest_that_is_given_is_checked(model, tmp_path):
    path = tmp_path / "a.safetensors"
    save(model, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert same_weights(load(path, sha256=digest.upper()), model)
    with pytest.raises(CheckpointError, match=f"another file than asked for: its SHA-256 is {digest}"):
        load(path, sha256="0" * 64)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_loading_changes_nothing_in_the_process(model, tmp_path):
    save(model, tmp_path / "a.safetensors")
    script = f"""
import ctypes, os
from denet_torch import load
def forbidden(*_):
    raise AssertionError("mallopt was called")
ctypes.CDLL = lambda *_: type("library", (), {{"mallopt": forbidden}})()
before = dict(os.environ)
load({str(tmp_path / "a.safetensors")!r})
assert before == dict(os.environ)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_weight_file_loads_as_people_write_it(tmp_path):
    """Strictly: a file holds all of a state dict, and a state dict nothing else."""
    model = DENet((2, 400), 2, n_filters=4, gru_units=4, dense_units=(4, 4))
    save(model, tmp_path / "a.safetensors")
    other = DENet((2, 400), 2, n_filters=4, gru_units=4, dense_units=(4, 4))
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
