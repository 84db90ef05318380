"""docs/own_recordings.md, command by command, on recordings annotated in three formats."""

import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from field_cases import SMALL, raven, selection, wav

DOCS = Path(__file__).parents[1] / "docs" / "own_recordings.md"
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL) for line in block.splitlines() if line]
# A model and a course that a test has time for; what the page trains is the same command without them.
TINY = [*SMALL, "--epochs", "4", "--epoch-windows", "96", "--learning-rate", "3e-3", "--threads", "1"]


def make(folder: Path, data_format: str, count: int, first: int = 0) -> None:
    """Recordings of a tone at drawn times under noise, each with its annotations."""
    rows = []
    for i in range(first, first + count):
        name, onset = f"202306{1 + i % 28:02d}_210000", 0.3 + 0.05 * (i % 9)
        calls = [] if i % 7 == 6 else [(onset, onset + 0.4), (1.3, 1.7)]
        wav(folder / f"{name}.wav", 2, 16_000, calls, seed=i)
        if data_format == "raven":
            table = [selection(*call, "trill", number) for number, call in enumerate(calls, 1)]
            raven(folder / f"{name}.Table.1.selections.txt", table)
        elif data_format == "audacity":
            (folder / f"{name}.txt").write_text("".join(f"{start}\t{stop}\ttrill\n" for start, stop in calls))
        else:
            rows += [("trill", *call, f"{name}.wav", "all.csv", i, 0) for call in calls]
    if rows:
        columns = ["label", "onset_s", "offset_s", "notated_path", "annot_path", "sequence", "annotation"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "all.csv", index=False)


def execute(line: str, capsys) -> str:
    """What a command of the page prints; its Python ones run in this process, where PyTorch is loaded already."""
    words = shlex.split(line)
    if words[:2] == ["python", "-m"]:
        code = importlib.import_module(words[2]).main(words[3:] + TINY * (words[2] == "training.run"))
    else:
        code = subprocess.run(words).returncode
    said = capsys.readouterr()
    assert code == 0, f"{line}\n{said.out}\n{said.err}"
    return said.out


@pytest.mark.parametrize("data_format", ["raven", "audacity", "generic"])
def test_every_command_of_the_page(tmp_path, monkeypatch, capsys, data_format):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "my_recordings", data_format, 20)
    make(tmp_path / "new_recordings", "raven", 3, 21)
    said = {}
    for line in COMMANDS:
        if line.startswith("mkdir"):  # a person has corrected the tables and saved them beside the recordings
            corrected = tmp_path / "corrected"
            corrected.mkdir()
            for path in (tmp_path / "found" / "raven").glob("2023*"):
                table = pd.read_csv(path, sep="\t")
                table["Annotation"] = "trill"
                table.to_csv(corrected / path.name, sep="\t", index=False)
                recording = f"{path.name.partition('.')[0]}.wav"
                shutil.copy(tmp_path / "new_recordings" / recording, corrected / recording)
            assert len(list(corrected.glob("*.wav"))) == 3
        said[line] = execute(line, capsys)
    index, first, _, score, *_, second = said.values()
    calls = 2 * (20 - 2)
    assert f"Annotations: {calls} rows read, {calls} kept, 0 dropped" in index
    assert f"Format of the annotations: {data_format}" in index and "Dates: 20 of 20 recordings, 20 days" in index
    assert "Split by day" in first and "event F1" in first
    assert float(re.search(r"frame F1 of calls (\S+)", first).group(1)) > 0.8
    assert float(re.search(r"event F1 (\S+)", first).group(1)) > 0.5 and "F1" in score
    assert f"Format of the annotations: {'raven' if data_format == 'raven' else 'mixed'}" in second
