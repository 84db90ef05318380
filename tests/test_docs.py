"""README and docs: command lines have options that there are, README's own run, the notebook runs, links lead somewhere."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from field_cases import SMALL, raven, selection, wav

from tools import command

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = {module: name for name, module in command.MODULES.items()}
WORDS = {"FACTOR": "10", "SEED": "1", "N": "2"}  # placeholders of numbers


def lines(page: Path) -> list[tuple[str, bool]]:
    """Command lines of a page, and whether they are whole: those in sh blocks and indented ones are."""
    text = page.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL) + re.findall(r"^    (\S.*)$", text, re.M)
    whole = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    found = [(line, True) for line in whole] + [(line, False) for line in re.findall(r"`([^`\n]+)`", text)]
    return [(line, is_whole) for line, is_whole in found if re.match(r"(\w+=\S+ )*(denet|python -m) ", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_has_options_that_there_are(page, capsys):
    for line, is_whole in lines(page):
        words = [WORDS.get(word, word) for word in shlex.split(re.sub(r"^(\w+=\S+ )*", "", line))]
        if words[0] == "denet":
            name, rest = words[1], words[2:]
            if name in ("--help", "--version", "version", "completion", "COMMAND"):
                continue
        else:
            module, rest = words[2], words[3:]
            assert find_spec(module), line
            if module not in MODULES:
                continue
            name = MODULES[module]
        parser = command.PARSERS[name]("denet")
        options = {option for action in parser._actions for option in action.option_strings}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{page.name}: {line}"
        if is_whole and not any(word.isupper() for word in rest) and name not in ("train", "sweep", "study"):
            try:
                parser.parse_args(rest)
            except SystemExit:
                pytest.fail(f"{page.name}: {line}: {capsys.readouterr().err}")


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not target.startswith(("http", "#")):
                assert (page.parent / target.split("#")[0]).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_readme_is_read_at_one_sitting():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 560
    assert ".venv/bin/pip install -e . && .venv/bin/python -m training.run --amp" in text
    assert ".venv/bin/pip install -e '.[all]' && .venv/bin/nox -s tests" in text


def test_readmes_own_commands_from_annotated_recordings_to_a_score(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    truth = []
    for i in range(20):
        name, onset = f"202306{1 + i % 28:02d}_210000", 0.3 + 0.05 * (i % 9)
        calls = [(onset, onset + 0.4), (1.3, 1.7)]
        wav(tmp_path / "recordings" / f"{name}.wav", 2, 16_000, calls, seed=i)
        table = [selection(*call, "trill", number) for number, call in enumerate(calls, 1)]
        raven(tmp_path / "recordings" / f"{name}.Table.1.selections.txt", table)
    calls = [(0.5, 0.9), (1.3, 1.7)]
    wav(tmp_path / "night.wav", 2, 16_000, calls, seed=99)
    truth = pd.DataFrame([("night.wav", *call, "call") for call in calls], columns=["file", "onset", "offset", "label"])
    truth.to_csv("truth.csv", index=False)
    section = (ROOT / "README.md").read_text().split("## Your own calls")[1]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[:1]
    tiny = [*SMALL, "--epochs", "4", "--epoch-windows", "96", "--learning-rate", "3e-3", "--threads", "1"]
    said = ""
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "denet"
        code = command.main(words[1:] + tiny * (words[1] == "train"))
        out, err = capsys.readouterr()
        assert code == 0, (line, out, err)
        said += out
    assert (tmp_path / "detections" / "report" / "index.html").exists()
    assert float(re.search(r"event F1 +(\S+)", said.split("score")[-1])[1]) > 0.5
    python = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, check=True)
    promised = re.search(r"# (\[.*\])", python)[1]
    assert done.stdout.strip() == promised


def test_the_notebook_runs(tmp_path):
    pytest.importorskip("ipykernel", reason="the docs extra is not installed")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "first_detection.ipynb", 4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    nbclient.NotebookClient(notebook, timeout=None, startup_timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == len(stored) and stored[-1]
    text = "".join(output.get("data", {}).get("text/plain", "") for cell in cells for output in cell.outputs)
    assert float(re.search(r"'f1': ([\d.]+)", text)[1]) > 0.6


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("furo", reason="the docs extra is not installed")
    words = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", ROOT / "docs", tmp_path / "out" / "site"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "get_denet" in (tmp_path / "out" / "site" / "api.html").read_text()
