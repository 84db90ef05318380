"""The benchmark says in one line that the original is not there, and counts operations."""

import re

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


# In place of the original: the port, whose answers are of course the same.
SAME = """
import torch

from tools.benchmark_sincnet import network


class SincNet(torch.nn.Module):
    out_dim = 1

    def __init__(self, options):
        super().__init__()
        self.model = network(1)[0]

    def forward(self, x):
        return self.model.logits(x).log_softmax(-1)

    def load_state_dict(self, state, strict):
        pass


class MLP(torch.nn.Linear):
    def __init__(self, options):
        super().__init__(1, 1)

    def forward(self, x):
        return x

    def load_state_dict(self, state, strict):
        pass
"""


def test_what_it_prints(tmp_path, capsys):
    (tmp_path / "dnn_models.py").write_text(SAME)
    assert benchmark_sincnet.main([str(tmp_path), "--chunks", "4", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for task in ("training step", "evaluation"):
        for clock in ("", ", processor time"):
            (number,) = [number for number, line in enumerate(lines) if line.startswith(f"{task}{clock}: original ")]
            assert float(re.search(r"([\d.]+) times as fast", lines[number])[1]) > 0
            assert float(re.search(r"memory kept: .* ([\d.]+) times", lines[number + 1])[1]) > 0
    assert sum("a large matrix product" in line for line in lines) == 2


def test_answers_that_differ(tmp_path, capsys):
    (tmp_path / "dnn_models.py").write_text(SAME.replace("return x\n", "return 2 * x\n"))
    assert benchmark_sincnet.main([str(tmp_path), "--chunks", "4"]) == 2
    assert "log posteriors differ by" in capsys.readouterr().err
