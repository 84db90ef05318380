"""Every command line of README and docs is executed: here with small data, by another test, or as written by `nox -s commands`.

    python tests/test_docs_commands.py             the lines that take minutes or a network, as written, in a working copy
    python tests/test_docs_commands.py benchmark   those of them with that word

A line that is in none of the tables below is run here: the lines of a page in their order, in a copy of a folder that holds what
the pages speak of (`working_copy`). What can be run nowhere is listed with the reason.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from field_cases import SMALL
from test_docs import MODULES, PAGES, ROOT
from test_own_recordings import make
from weight_cases import SMALL as WEIGHTS
from weight_cases import draw_tensors

from tools import command
from tools.weights.convert import convert
from tools.weights.npz import write_npz
from training.synthetic import make_dataset

# Words of the pages that stand for something of the reader's, and what it is here.
WORDS = {
    "DIR": "recordings",
    "FOLDER": "recordings",
    "FILE": "weights.safetensors",
    "OUT": "out",
    "SEED": "0",
    "CLIPS": "street_sounds",
    "RECORDING.wav": "night.wav",
    "120601011047196133.WAV": "120601202038000000.WAV",  # of the real collection: one that is generated
}
WORDS_OF = {"docs/sincnet.md": {"DIR": "egyptian_fruit_bats"}}  # what has emitters
TRAIN = [*SMALL, "--threads", "1"]
SHORT = {  # what keeps a command short, added to the page's line
    "train": TRAIN,
    "train sincnet": "--n-filters 6 --hidden-units 8 --epochs 1 --epoch-windows 8 --batch-size 4 --threads 1 --no-report".split(),
    "make-dataset": "--recordings 8 --max-seconds 1.5".split(),
}
CODES = {"denet detect data/unseen ...": 2}  # some of its files cannot be read, on purpose

# In the tables a line stands as a whole, or by its beginning and "...", or by its page.

# Lines that another test executes.
OF_README = "test_docs.py::test_readmes_own_commands_from_annotated_recordings_to_a_score"
OF_FEW = "test_few_examples.py::test_every_command_of_the_page_but_the_study"
STUDY = "test_trainer_study.py::test_study_scores_each_variant_in_each_band"
ELSEWHERE = {
    "docs/own_recordings.md": "test_own_recordings.py::test_every_command_of_the_page",
    "denet suggest recordings": OF_README,
    "denet train --data-dir recordings --out runs/first": OF_README,
    "denet detect night.wav --weights runs/first/weights.safetensors --report": OF_README,
    "denet evaluate --reference truth.csv --estimated detections/events.csv": OF_README,
    "denet train --data-dir new_site --init-from runs/first --out runs/second": OF_FEW,
    "denet train --data-dir new_site --init-from runs/second --self-train 0.95 --out runs/third": OF_FEW,
    "denet paste-calls my_recordings street_sounds pasted --snr-db 0 20": OF_FEW,
    "denet train --data-dir pasted --split-by folder --init-from runs/first --out runs/pasted": OF_FEW,
    "denet study-few ...": "test_few_examples.py::test_the_study_goes_every_way_and_goes_on_where_it_was_stopped",
    "python -m pytest -s tests/test_command.py -k help_comes": "test_command.py::test_help_comes_at_once",
    "denet completion zsh": "test_command.py::test_completion_in_a_shell",
    "denet sweep ...": "test_trainer_sweep.py::test_two_processes_work_on_one_study",
    "denet study --out runs/study --seeds ...": STUDY,
    "denet train --amp --devices 4": "test_trainer_ranks.py::test_gradients_are_the_one_process_gradients",
    "denet yolo-config ...": "test_yolo.py::test_a_copy_of_a_model_configuration",
    "denet import-yolo ...": "test_yolo.py::test_generated_collection_there_and_back",
    "denet compare --reference boxes/reference.csv ...": "test_compare.py::test_the_command_writes_a_page_with_the_places",
    "denet train --model boxes --data-dir recordings/ ...": "test_boxes.py::test_the_trainer_stops_goes_on_and_tells_scores",
    "denet detect LIST.txt --weights runs/boxes ...": "test_boxes.py::test_detection_writes_frequencies_pages_and_goes_on",
    "python -m tools.convert_weights model_raw.pkl ...": "test_sincnet_pkl.py::test_converts_and_answers_the_same",
    "python -m training.beans DIR ...": "test_beans.py::test_trains_and_is_scored",
}
# Lines that the nox session `commands` executes as they are written, with what else they need than minutes.
LONG = {
    "python3 -m venv ...": "a package index",
    "pip install .": "a package index",
    'pip install "denet-torch[boxes]"': "the package in an index, or installed before",
    "docs/measurements/": "",
    "python -m tools.benchmark ...": "",
    "denet train --amp": "",
    "denet make-dataset data/emitters ...": "",
    "python -m training.run --mode file --model sincnet --task emitter --data-dir data/emitters ...": "",
    ".venv/bin/nox -s stress": "",
    ".venv/bin/python tests/hostile_files.py ...": "",
    "DENET_CALLS=2000 ...": "",
}
# Lines that are executed by nobody here.
NOWHERE = {
    "docker ...": "a Docker daemon; the steps are tested by tests/test_docker.py",
    "denet gpu-report --page ...": "a GPU: nox -s gpu",
    "torchrun --nnodes 2 ...": "two machines",
    "python -m tools.benchmark_sincnet FOLDER": "a clone of SincNet",
    "git clone ...": "a clone of YOLOR, and what follows in it",
    'pip install "torchvision ...': "the same",
    "cd ...": "the same",
    "python train.py ...": "the same",
    "python test.py ...": "the same",
    "denet detect FOLDER --weights FILE": "recordings of bats that are not ours to give",
}

PROGRAM = re.compile(r"(\w+=\S+ )*(denet|python3?|\S*bin/\w+|pip|git|docker|torchrun|cd|mkdir|cp|nox) ")


def command_lines(page: Path) -> list[str]:
    """The command lines of a page, in their order: of its sh blocks, its indented blocks, and between backticks in the text.

    Between backticks is a command line what has more words than a command's name, and does not end in an option.
    """
    text = re.sub(r"```(?!sh\n)\w+\n.*?```", "", page.read_text(), flags=re.DOTALL)
    blocks = re.compile(r"```sh\n(.*?)```|((?:^    \S.*\n)+)|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
    found = []
    for shell, indented, inline in blocks.findall(text):
        for line in re.sub(r"\\\n\s*", "", shell or indented or inline).splitlines():
            line = re.sub(r"[\[\]](?=-| |$)|(?<=\d)\]|(?<=DIR)\]", "", line.split("  #")[0]).strip()
            words = line.split()
            short = inline and (len(words) < (4 if words[:2] == ["python", "-m"] else 3) or words[-1].startswith("--"))
            if PROGRAM.match(line) and not short and (not inline or words[0] in ("denet", "python")):
                found.append(line)
    return found


def place(page: str, line: str, table: dict[str, str]) -> str | None:
    """The key of a table that a line of a page falls under, the most exact one."""

    def covers(key: str) -> bool:
        return line.startswith(key.removesuffix(" ...")) if key.endswith(" ...") else line == key or page.startswith(key)

    return max(filter(covers, table), key=len, default=None)


def sorted_out() -> dict[str, list[tuple[str, str, str]]]:
    """(page, line, key) of every line of every page, by where it is executed: "here", "elsewhere", "long" or "nowhere"."""
    found = {"here": [], "elsewhere": [], "long": [], "nowhere": []}
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for line in dict.fromkeys(command_lines(page)):
            keys = {where: place(name, line, table) for where, table in zip(found, ({}, ELSEWHERE, LONG, NOWHERE), strict=True)}
            where = max(keys, key=lambda where: len(keys[where] or ""))  # the most exact table; none of them: here
            found[where].append((name, line, keys[where]))
    return found


LINES = sorted_out()
PAGES_HERE = list(dict.fromkeys(page for page, _, _ in LINES["here"]))


def said(page: str, word: str) -> str:
    return (WORDS | WORDS_OF.get(page, {})).get(word, word)


def run(page: str, line: str) -> int:
    """Exit code of one of our commands, in this process and with what keeps it short."""
    words = [said(page, word) for word in shlex.split(line)]
    name, *rest = words[1:] if words[0] == "denet" else [MODULES[words[2]], *words[3:]]
    kind = f"{name} sincnet" if "sincnet" in rest else name
    return command.main([name, *rest, *SHORT.get(kind, [])])


def working_copy(folder: Path, small: bool = True) -> Path:
    """What the pages speak of, generated; `small`: with a run that has to be trained first."""
    for name, seed in (("recordings", 0), ("my_recordings", 8), ("corrected", 16)):
        make(folder / name, "raven", 8, seed)
    make(folder / "night", "raven", 1, 24)
    next((folder / "night").glob("*.wav")).rename(folder / "night.wav")
    shutil.rmtree(folder / "night")
    rows = [("night.wav", 1.3, 1.7, "trill", 0.9)]
    events = pd.DataFrame(rows, columns=["file", "onset", "offset", "label", "score"])
    for name in ("truth.csv", "corrected.csv"):
        events.to_csv(folder / name, index=False)
    (folder / "LIST.txt").write_text("night.wav\n")
    sounds = folder / "street_sounds"
    sounds.mkdir()
    soundfile.write(sounds / "a.wav", 0.01 * np.random.default_rng(0).standard_normal(80_000), 16_000)
    make_dataset(folder / "egyptian_fruit_bats", 16, seed=2, min_seconds=1.0, max_seconds=1.5, one_caller=True)
    tensors = draw_tensors(WEIGHTS | {"input_shape": [4, 300, 1]})
    write_npz(tensors, WEIGHTS | {"input_shape": [4, 300, 1]}, folder / "all.npz")
    convert(folder / "all.npz", folder / "original.h5")
    if small:
        here = Path.cwd()
        os.chdir(folder)
        try:
            assert command.main(["train", "--data-dir", "recordings", "--out", "runs/20260101-120000", *TRAIN]) == 0
        finally:
            os.chdir(here)
        for name in ("first", "RUN"):
            shutil.copytree(folder / "runs" / "20260101-120000", folder / "runs" / name)
        shutil.copy(folder / "runs" / "first" / "weights.safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    return working_copy(tmp_path_factory.mktemp("working") / "copy")


@pytest.mark.parametrize("page", PAGES_HERE)
def test_the_commands_of_a_page_run_in_their_order(copied, tmp_path, monkeypatch, capsys, page):
    shutil.copytree(copied, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    for line in [line for name, line, _ in LINES["here"] if name == page]:
        code = run(page, line)
        told = capsys.readouterr()
        expected = CODES.get(place(page, line, CODES), 0)
        assert code == expected, f"{page}: {line}\n{told.out}\n{told.err}"


def test_other_tests_that_execute_lines_exist():
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test


def test_the_tables_have_nothing_that_no_page_has():
    used = {key for lines in LINES.values() for _, _, key in lines}
    assert set(ELSEWHERE) | set(LONG) | set(NOWHERE) <= used
    assert len(LINES["here"]) >= 20  # most of what is short is not listed away


def test_lines_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`denet train` and `denet report detections corrected.csv`, `denet detect --reference`\n\n```sh\ndenet a b  # c\n"
        "denet d \\\n  e\n```\n\n    denet f [--g DIR] [--h 60]\n    my_recordings/x.wav\n\n```python\n    cd = 1\n```\n"
    )
    expected = ["denet report detections corrected.csv", "denet a b", "denet d e", "denet f --g DIR --h 60"]
    assert command_lines(page) == expected


def main(wanted: list[str]) -> int:
    """Execute the long lines that hold one of the words, or all; their number that failed."""
    lines = [(page, line, LONG[key]) for page, line, key in LINES["long"] if not wanted or any(word in line for word in wanted)]
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = working_copy(Path(temporary) / "copy", small=False)
        for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        bin_folder, fresh = Path(sys.executable).parent, folder / "fresh"
        for page, line, needs in lines:
            environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
            if line.startswith("pip "):  # in an environment of its own: it would replace the editable install here
                venv.create(fresh, with_pip=True)
                environment["PATH"] = f"{fresh / 'bin'}{os.pathsep}{environment['PATH']}"
            told = " ".join(said(page, word) for word in line.split(" "))
            if "-m venv" not in line and not (folder / ".venv").exists():
                told = told.replace(".venv/bin", str(bin_folder))
            print(f"{page}: {told}{f' (needs {needs})' if needs else ''}", flush=True)
            start = time.monotonic()
            code = subprocess.run(told, shell=True, cwd=folder, env=environment).returncode
            failed += code != CODES.get(place(page, line, CODES), 0)
            print(f"exit code {code} after {time.monotonic() - start:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
