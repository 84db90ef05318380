"""The benchmark says in one line that the original is not there, and counts operations."""

import copy
import re

import torch

from denet_torch import SincNet
from tools import benchmark_sincnet


def test_absent_original(tmp_path, capsys):
    assert benchmark_sincnet.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "dnn_models.py: no such file" in error and "github.com/mravanelli/SincNet" in error and error.count("\n") == 1


def test_operations_of_a_chunk():
    model = SincNet((20, 10), 3, 4000, n_filters=(4, 3), taps=(51, 5), hidden=(7,))
    expected = 2 * (150 * 51 * 4 + 46 * 5 * 4 * 3 + 3 * 15 * 7 + 7 * 3)
    assert benchmark_sincnet.operations(model) == expected
    assert round(benchmark_sincnet.operations(SincNet((20, 160), 10, 16000)) / 1e6) == 220


class Plain(torch.nn.Module):
    """In place of the original: the port, whose answers are of course the same."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.logits(x).log_softmax(-1)


def test_what_it_prints(tmp_path, capsys, monkeypatch):
    (tmp_path / "dnn_models.py").write_text("")
    monkeypatch.setattr(benchmark_sincnet, "build", lambda original, model: [Plain(copy.deepcopy(model))])
    assert benchmark_sincnet.main([str(tmp_path), "--chunks", "4", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for task in ("training step", "evaluation"):
        for clock in ("", ", processor time"):
            (line,) = [line for line in lines if line.startswith(f"{task}{clock}: original ")]
            assert float(re.search(r"([\d.]+) times as fast", line)[1]) > 0
    assert sum("a large matrix product" in line for line in lines) == 2


def test_answers_that_differ(tmp_path, capsys, monkeypatch):
    (tmp_path / "dnn_models.py").write_text("")
    monkeypatch.setattr(benchmark_sincnet, "build", lambda original, model: [Plain(copy.deepcopy(model)), torch.nn.Softmax(1)])
    assert benchmark_sincnet.main([str(tmp_path), "--chunks", "4"]) == 2
    assert "log posteriors differ by" in capsys.readouterr().err
