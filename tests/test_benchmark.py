"""The benchmark on a case small enough for a test."""

import json

from tools.benchmark_runs import BASE, Case, markdown, operations, plot_scaling, relative_costs, run, scaling_cases


def test_contenders_agree_and_are_reported(tmp_path):
    case = Case("predict", 1, 2, 400, "after")
    names = ["port", "Keras 3 on PyTorch", "onnxruntime"]
    text = markdown(run([[case]], names, rounds=1, threads=1, out=tmp_path))
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == names
    assert all(row["seconds"] > 0 and row["peak_gib"] > 0 for row in rows), text  # none of them failed or differed
    assert (tmp_path / "times.png").stat().st_size and "share of peak" in text


def test_operations_of_a_step():
    """By hand: 2 x 10 frames of 400 samples, attention after pooling."""
    sinc = 400 * 251 * 80
    attention = 80 * (64 * 210 + 20 * 6300 + 5 * 2100 + 50 * 128 + 128 * 64 + 64) + 80 * 133
    convolutions = 129 * 300 + 39 * 18000
    rest = 2 * 3 * 2048 * (13 * 60 + 2048 * 9 // 10) + 2048 * 1024 + 1024 * 512 + 1024
    forward = 2 * 20 * (sinc + attention + convolutions + rest)
    assert operations(Case("predict", 2, 10, 400, "after")) == forward
    assert operations(Case("train", 2, 10, 400, "after")) == 3 * forward - 2 * 20 * sinc


def test_cost_per_unit_of_what_grows(tmp_path):
    groups = scaling_cases("predict", "before") + scaling_cases("train", "before")
    work = {str(case): case.batch * case.seq_len * case.samples for group in groups for case in group}
    quadratic = str(Case("train", **BASE | {"batch": 16 * BASE["batch"]}, attention="before"))
    rows = [{"case": case, "seconds": count * (16 if case == quadratic else 1)} for case, count in work.items()]
    relative = relative_costs(groups, rows)
    assert set(relative["predict, seq len"].values()) == {1.0}
    assert relative["train, batch"] == {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 16.0}
    plot_scaling(relative, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size
