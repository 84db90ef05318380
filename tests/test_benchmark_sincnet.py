"""The benchmark says in one line that the original is not there, and counts operations."""

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
