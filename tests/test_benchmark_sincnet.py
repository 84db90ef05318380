"""The benchmark says in one line that the original is not there."""

from tools import benchmark_sincnet


def test_absent_original(tmp_path, capsys):
    assert benchmark_sincnet.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "dnn_models.py: no such file" in error and "github.com/mravanelli/SincNet" in error and error.count("\n") == 1
