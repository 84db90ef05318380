"""`denet suggest`: frame, rate and collar that suit the calls of a collection."""

import numpy as np
import pytest
import soundfile

from tools import suggest as command
from training.collection import open_collection
from training.suggestion import suggest


def collection(folder, seconds: list[float], rate: int, band: tuple[float, float] | None):
    """A recording with a Raven table of calls of these lengths, a second apart."""
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, rate * (len(seconds) + 1)), rate)
    header = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"]
    rows = [[str(i + 1), "Spectrogram 1", "1", f"{i:.6f}", f"{i + length:.6f}"] for i, length in enumerate(seconds)]
    if band:
        header += ["Low Freq (Hz)", "High Freq (Hz)"]
        rows = [row + [f"{hz:.1f}" for hz in band] for row in rows]
    lines = ["\t".join(row) for row in [[*header, "Annotation"], *(row + ["call"] for row in rows)]]
    (folder / "a.Table.1.selections.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    "seconds, rate, band, options, collar",
    [
        ([0.1, 0.2, 0.4] * 3, 44100, (1000, 7000), "--frame-seconds 0.05 --sample-rate 16000 --seq-len 10", 0.1),
        ([0.006] * 9, 256000, (22000, 80000), "--frame-seconds 0.005 --sample-rate 192000 --seq-len 20 --gru-units 256", 0.01),
        ([0.03] * 5, 48000, None, "--frame-seconds 0.02 --sample-rate 48000 --seq-len 10", 0.04),
        ([0.9] * 3, 16000, (100, 12000), "--frame-seconds 0.05 --sample-rate 16000 --seq-len 10", 0.2),  # more than was recorded
    ],
)
def test_what_suits(tmp_path, seconds, rate, band, options, collar, capsys):
    folder = collection(tmp_path / "data", seconds, rate, band)
    found = suggest(open_collection(folder, data_format="raven"))
    assert found.options() == options and found.collar == pytest.approx(collar)
    assert found.calls == len(seconds) and found.duration[1] == pytest.approx(np.median(seconds), abs=1e-4)
    assert command.main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert options in said and f"--collar {collar:g}" in said
    assert ("no table tells" in said) == (band is None)


def test_no_calls_is_one_line(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    (tmp_path / "a.txt").write_text("")
    assert command.main([str(tmp_path), "--format", "audacity"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
