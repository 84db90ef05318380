"""The command for a GPU, run on the CPU with tiny sizes; the estimates and the page."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from test_docs import ROOT

from denet_torch import dispatch
from tools import command, gpu_estimate, gpu_parts


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    assert command.main(["gpu-report", "--dry", "--minutes", "600", "--out", str(out)]) == 0
    return json.loads((out / "report.json").read_text()), (out / "report.md").read_text()


def test_every_part_runs_and_is_written(dry):
    report, page = dry
    parts = report["parts"]
    assert sorted(parts) == ["a", "b", "c", "d", "e", "f"]
    for name, part in parts.items():
        assert "error" not in part, (name, part["error"])
        assert part["what"] in page
    assert parts["a"]["within"] and parts["b"]["within"]
    assert any(line.startswith("gru_steps (4, 4, 384): torch_ops; not numba_cpu") for line in parts["a"]["who computes"])
    assert 1e-7 < parts["a"]["relative difference"]["float16"]
    recorded = parts["a"]["recordings of the original"]
    assert recorded["within"] and recorded["largest error"]["float32"] < 2e-5 < recorded["largest error"]["bfloat16"]
    assert parts["a"]["drawn models, relative difference"]["within"]
    assert parts["c"]["float16"]["killed and resumed"] and 0 <= parts["c"]["float16"]["frame F1"] <= 1
    assert all(row["seconds"] > 0 for row in parts["d"]["rows"]) and len(parts["d"]["rows"]) == 4
    assert parts["e"]["times real time"] > 0
    assert parts["f"]["within"] and [row["resampled on"] for row in parts["f"]["rows"]] == ["loader", "device"]
    assert all(row["copied a second"] > 0 < row["trained on a second"] for row in parts["f"]["rows"])
    assert "CPU, dry run" in page and gpu_parts.measured(report) == {}


def failing(setting):
    """(a) Fails."""
    yield {"half": 1}
    raise RuntimeError("no kernel image")


def crashing(setting):
    """(b) Takes its process with it."""
    os.kill(os.getpid(), signal.SIGSEGV)
    yield {}


def sleeping(setting):
    """(c) Never ends."""
    (setting.out / "sleeps").touch()
    yield {"half": 2}
    time.sleep(600)


def quick(setting):
    """(e) Ends well."""
    yield {"left": setting.deadline - time.monotonic()}


def test_a_part_that_fails_crashes_or_takes_too_long_does_not_stop_the_others(tmp_path, monkeypatch):
    for part, work in {"a": failing, "b": crashing, "e": quick, "c": sleeping}.items():
        monkeypatch.setitem(gpu_parts.RUNS, part, work)
    now = time.monotonic  # a week has passed once the part that never ends has begun
    monkeypatch.setattr(gpu_parts.time, "monotonic", lambda: now() + 600_000 * (tmp_path / "sleeps").exists())
    parts = gpu_parts.run(list("abec"), tmp_path, dry=True, minutes=600)["parts"]
    assert parts["a"]["half"] == 1 and parts["a"]["error"] == "RuntimeError: no kernel image"
    assert parts["b"]["error"] == f"its process ended by itself, exit code {-signal.SIGSEGV}"
    assert parts["e"]["left"] > 0 and "error" not in parts["e"]
    assert parts["c"]["half"] == 2 and re.fullmatch(r"stopped after \d+ s, its share of the time", parts["c"]["error"])
    page = (tmp_path / "report.md").read_text()
    assert "no kernel image" in page and "stopped after" in page


def interrupted(setting):
    raise KeyboardInterrupt
    yield


def test_an_interrupted_part_leaves_the_telling_to_the_command():
    gpu_parts._send(interrupted, None, None)


def test_the_parts_share_the_time(tmp_path, monkeypatch):
    given, clock = {}, [1000.0]

    def in_a_process(work, setting, seconds):
        assert setting.deadline == pytest.approx(clock[0] + 0.9 * seconds)
        given[work] = seconds
        clock[0] += 10
        return {}

    monkeypatch.setattr(gpu_parts, "in_a_process", in_a_process)
    monkeypatch.setattr(gpu_parts.time, "monotonic", lambda: clock[0])
    gpu_parts.run(list("abcde"), tmp_path, dry=True, minutes=8.5)
    shares = [given[gpu_parts.RUNS[part]] for part in "abecd"]
    assert shares[0] == pytest.approx(60) and shares[-1] == pytest.approx(8.5 * 60 - 40)  # the last has all that is left


def test_a_run_over_its_share_is_stopped_and_said_to_be(tmp_path):
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    found = gpu_parts.one_run(words, tmp_path, "float16", time.monotonic() + 0.5, kill=False)
    assert found["error"].startswith("stopped after") and not found["killed and resumed"]


def test_without_a_checkout_the_recordings_are_said_to_be_missing(tmp_path):
    setting = "gpu_parts.Setting('cpu', True, __import__('pathlib').Path('.'), 0)"
    script = f"import sys; sys.path[:1] = []; from tools import gpu_parts; print(gpu_parts.recordings({setting}))"
    for package in ("tools", "training", "denet_torch", "denet_program.py"):  # as after an install of the wheel
        (tmp_path / "installed").mkdir(exist_ok=True)
        (tmp_path / "installed" / package).symlink_to(ROOT / package)
    for folder, said in ((tmp_path, "not run: no parity_tests"), (ROOT, "{'largest error'")):
        # -S: without the editable install, which would find the checkout; its site-packages are named instead
        sites = [str(tmp_path / "installed"), *[p for p in sys.path if p.endswith("site-packages")]]
        done = subprocess.run(
            [sys.executable, "-S", "-c", "\n" + script],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(["nowhere", *sites])},
            capture_output=True,
            text=True,
        )
        assert done.stdout.startswith(said), done.stderr


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_parts.torch.cuda, "is_available", lambda: False)
    assert command.main(["gpu-report", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: PyTorch sees no GPU on this machine")


def test_the_page_holds_the_estimates_and_what_was_measured(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text((ROOT / "docs" / "gpu.md").read_text())
    if "torch_ops" in dispatch.BACKENDS:  # what the table counts
        assert gpu_estimate.table() in page.read_text()  # written by the command, and nothing measured
    rows = [{"contender": "eager", "batch": 8, "seconds": 0.0123}, {"contender": "graphs", "batch": 8, "error": "x"}]
    found = gpu_parts.measured({"card": "NVIDIA H100 80GB HBM3", "parts": {"d": {"rows": rows}}})
    gpu_estimate.write_page(page, found)
    (line,) = [line for line in page.read_text().splitlines() if line.startswith("| H100 SXM | 8 |")]
    assert " 12.3 " in line
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no table"):
        gpu_estimate.write_page(page, found)


def test_of_another_make_of_the_card_nothing_is_claimed(tmp_path, capsys, monkeypatch):
    rows = {"d": {"rows": [{"contender": "eager", "batch": 8, "seconds": 0.0123}]}}
    for name in ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA L4"):
        assert gpu_parts.sheet(name) is None and gpu_parts.measured({"card": name, "parts": rows}) == {}
    assert gpu_parts.sheet("NVIDIA A100-SXM4-80GB") == gpu_estimate.CARDS[0]
    (tmp_path / "report.md").touch()
    (tmp_path / "gpu.md").write_text((ROOT / "docs" / "gpu.md").read_text())
    monkeypatch.setattr(gpu_parts, "run", lambda *_: {"card": "NVIDIA L4", "parts": rows})
    assert command.main(["gpu-report", "--out", str(tmp_path), "--page", str(tmp_path / "gpu.md")]) == 0
    assert "gets no measurement" in capsys.readouterr().err


def test_five_steps_notice_a_gradient_that_is_missing_on_one_side(tmp_path, monkeypatch):
    def without_one(model):
        copied = copy.deepcopy(model)
        copied.gru.forward_gru.recurrent_kernel.requires_grad_(len(made) == 0)  # the first is the CPU's
        made.append(copied)
        return copied

    made = []
    monkeypatch.setattr(gpu_parts, "copy", SimpleNamespace(deepcopy=without_one))
    (found,) = gpu_parts.five_steps(gpu_parts.Setting("cpu", True, tmp_path, 0.0))
    assert not found["within"] and min(found["relative difference"].values()) > 3e-3


def test_a_row_is_compiled_for_its_sizes_alone(tmp_path):
    """PyTorch makes a size variable that changes from one model to the next."""
    sizes = []

    def compiler(graph, inputs):
        sizes.append({type(size) for x in inputs if isinstance(x, torch.Tensor) for size in x.shape} | {*map(type, inputs)})
        return graph

    setting = gpu_parts.Setting("cpu", True, tmp_path, time.monotonic() + 600)
    for batch in (2, 3):
        gpu_parts.timed(setting, lambda model: torch.compile(model, backend=compiler), ("plain",), None, batch)
    assert sizes and all(kinds <= {int, torch.Tensor, torch.nn.Parameter} for kinds in sizes), sizes


def test_a_row_of_triton_is_not_of_others(tmp_path):
    pytest.importorskip("denet_torch.fast.triton_gpu")
    setting = gpu_parts.Setting("cpu", True, tmp_path, time.monotonic() + 600)
    row = gpu_parts.tried(gpu_parts.timed, setting, gpu_parts.with_triton, ("triton_gpu", "torch_ops"), None, 2)
    assert row["error"].startswith("ValueError: ") and "seconds" not in row


def test_what_is_compiled_comes_last_and_a_batch_together():
    cases = gpu_parts.in_order(["eager", "compiled", "graphs", "triton"], (8, 32))
    compiled = [("compiled", 8), ("graphs", 8), ("compiled", 32), ("graphs", 32)]
    assert cases == [("eager", 8), ("eager", 32), ("triton", 8), ("triton", 32), *compiled]


def test_a_kernels_time_is_counted_once():
    kinds = torch.autograd.DeviceType
    events = [  # as the profiler gives them: the operation, what it started, and an annotation around it on both sides
        SimpleNamespace(device_type=kinds.CPU, is_user_annotation=False, self_device_time_total=10),
        SimpleNamespace(device_type=kinds.CUDA, is_user_annotation=False, self_device_time_total=10),
        SimpleNamespace(device_type=kinds.CUDA, is_user_annotation=True, self_device_time_total=12),
        SimpleNamespace(device_type=kinds.CPU, is_user_annotation=True, self_device_time_total=0),
    ]
    assert gpu_parts.on_card(events) == 10


def test_what_is_counted():
    from tools.benchmark_runs import Case, operations

    whole, recurrent = gpu_estimate.step_operations(8)
    counted = sum(o.flops for o in whole if o.product)
    assert 0.9 < counted / operations(Case("train", 8, 10, 800, "before")) < 1.2  # by shapes and by hand
    assert 0 < len(recurrent) < len(whole)
