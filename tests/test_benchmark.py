"""The benchmark on a case small enough for a test."""

import json

from tools.benchmark_runs import Case, operations, run


def test_contenders_agree_and_are_reported(tmp_path):
    case = Case("predict", 1, 2, 400, "after")
    names = ["port", "Keras 3 on PyTorch", "onnxruntime"]
    text = run([[case]], names, rounds=1, threads=1, out=tmp_path)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["contender"] for row in rows] == names
    assert all(row["seconds"] > 0 and row["peak_gib"] > 0 for row in rows), text  # none of them failed or differed
    assert (tmp_path / "times.png").stat().st_size and "share of peak" in text


def test_operations_of_a_step():
    """By hand: 2 x 10 frames of 400 samples, attention after pooling."""
    sinc = 400 * 251 * 80
    attention = 80 * (64 * 210 + 20 * 6300 + 5 * 2100 + 50 * 128 + 128 * 64 + 64) + 80 * 133
    convolutions = 129 * 300 + 39 * 18000
    rest = 2 * 3 * 2048 * (13 * 60 + 2048) + 2048 * 1024 + 1024 * 512 + 1024
    forward = 2 * 20 * (sinc + attention + convolutions + rest)
    assert operations(Case("predict", 2, 10, 400, "after")) == forward
    assert operations(Case("train", 2, 10, 400, "after")) == 3 * forward - 2 * 20 * sinc
