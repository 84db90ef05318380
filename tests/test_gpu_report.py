"""The command for a GPU, run on the CPU with tiny sizes; the estimates and the page."""

import json

import pytest
from test_docs import ROOT

from tools import command, gpu_estimate, gpu_parts


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    assert command.main(["gpu-report", "--dry", "--out", str(out)]) == 0
    return json.loads((out / "report.json").read_text()), (out / "report.md").read_text()


def test_every_part_runs_and_is_written(dry):
    report, page = dry
    parts = report["parts"]
    assert sorted(parts) == ["a", "b", "c", "d", "e"]
    for name, part in parts.items():
        assert "error" not in part, (name, part["error"])
        assert part["what"] in page
    assert parts["a"]["within"] and parts["b"]["within"]
    assert 1e-7 < parts["a"]["relative difference"]["float16"]
    assert parts["c"]["float16"]["killed and resumed"] and 0 <= parts["c"]["float16"]["frame F1"] <= 1
    assert all(row["seconds"] > 0 for row in parts["d"]["rows"]) and len(parts["d"]["rows"]) == 3
    assert parts["e"]["times real time"] > 0
    assert "CPU, dry run" in page and gpu_parts.measured(report) == {}


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    def failing(setting):
        """(a) Fails."""
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(gpu_parts.RUNS, "a", failing)
    report = gpu_parts.run(["a", "e"], tmp_path, dry=True, minutes=1)
    assert "no kernel image" in report["parts"]["a"]["error"] and "error" not in report["parts"]["e"]
    assert "no kernel image" in (tmp_path / "report.md").read_text()


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_parts.torch.cuda, "is_available", lambda: False)
    assert command.main(["gpu-report", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: PyTorch sees no GPU on this machine")


def test_the_page_holds_the_estimates_and_what_was_measured(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text((ROOT / "docs" / "gpu.md").read_text())
    assert gpu_estimate.table() in page.read_text()  # written by the command, and nothing measured
    rows = [{"contender": "eager", "batch": 8, "seconds": 0.0123}, {"contender": "graphs", "batch": 8, "error": "x"}]
    found = gpu_parts.measured({"card": "NVIDIA H100 80GB HBM3", "parts": {"d": {"rows": rows}}})
    gpu_estimate.write_page(page, found)
    (line,) = [line for line in page.read_text().splitlines() if line.startswith("| H100 SXM | 8 |")]
    assert " 12.3 " in line
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no table"):
        gpu_estimate.write_page(page, found)


def test_what_is_counted():
    from tools.benchmark_runs import Case, operations

    whole, recurrent = gpu_estimate.step_operations(8)
    counted = sum(o.flops for o in whole if o.product)
    assert 0.9 < counted / operations(Case("train", 8, 10, 800, "before")) < 1.2  # by shapes and by hand
    assert 0 < len(recurrent) < len(whole)
