import sys

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from data_cases import make_collection, seed_recording

from tools import conflicts as conflicts_command
from training.conflicts import KINDS, examples, find_conflicts, summarise
from training.synthetic import make_dataset


def kinds_of(collection):
    found = find_conflicts(collection)
    return sorted(found[["kind", "start", "stop"]].itertuples(index=False, name=None))


def test_the_contradictory_recording():
    collection = seed_recording()
    assert kinds_of(collection) == [("extra call", 47_552, 95_094), ("tail", 349_426, 607_056)]
    table = summarise(collection, find_conflicts(collection))
    assert table["recordings"].tolist() == [1, 0, 1, 0, 0, 1, 1]
    # 47,542 and 257,630 samples; frames 4 to 7, and 28 to 47 of 48.
    assert table["seconds"].tolist() == pytest.approx([0.190168, 0, 1.03052, 0, 0, 1.220688, 2.428224])
    assert table["frames"].tolist() == [4, 0, 20, 0, 0, 24, 48]
    assert examples(find_conflicts(collection)) == {"extra call": 0, "tail": 0}


@pytest.mark.parametrize(
    ("voice", "annotations", "expected"),
    [
        ([(10, 20)], [(10, 20)], []),
        ([(10, 20)], [(15, 20)], [("offset", 10, 15)]),
        ([(10, 20)], [(5, 20)], [("offset", 5, 10)]),
        ([(10, 20)], [(12, 25)], [("offset", 10, 12), ("tail", 20, 25)]),
        ([(10, 20), (30, 40)], [(10, 40)], [("silence", 20, 30)]),
        ([(10, 20), (50, 60)], [(10, 20), (30, 40)], [("empty span", 30, 40), ("extra call", 50, 60)]),
        ([], [(30, 40)], [("empty span", 30, 40)]),
        ([(0, 90)], [(10, 20), (30, 40)], [("offset", 0, 10), ("offset", 20, 30), ("offset", 40, 90)]),
        ([(10, 20)], [(5, 12), (12, 30)], [("offset", 5, 10), ("tail", 20, 30)]),
    ],
)
def test_kinds(voice, annotations, expected):
    collection = make_collection(
        [100], [(0, *span) for span in voice], [(0, *span, 1, 1) for span in annotations]
    )
    assert kinds_of(collection) == sorted(expected)


def test_what_nobody_annotated_contradicts_nothing():
    collection = make_collection([100, 100], [(0, 10, 20)], [(1, 5, 9, 1, 1)])
    assert kinds_of(collection) == [("empty span", 5, 9)]
    table = summarise(collection, find_conflicts(collection), frame_seconds=10 / 250_000)
    assert table.loc["all annotated", "recordings"] == 1
    assert table.loc["all annotated", "frames"] == 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("conflicts") / "data", 20, max_seconds=1.5)


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["conflicts", *map(str, words)])
    return conflicts_command.main(), *capsys.readouterr()


def test_the_command_writes_a_table_and_pictures(dataset, tmp_path, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, dataset, "--output", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "conflicts.csv", index_col="kind")
    assert code == 0 and "tail" in out
    assert table.index.tolist() == [*KINDS, "any", "all annotated"]
    assert table.loc["tail", "recordings"] > 0
    pictures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {k.replace(" ", "-") for k in KINDS if table.loc[k, "recordings"]}


def test_the_command_draws_any_recording(dataset, tmp_path, monkeypatch, capsys):
    name = next(path.name for path in sorted(dataset.rglob("*.WAV")) if path.stat().st_size > 1e5)
    code, *_ = run(monkeypatch, capsys, dataset, "--recording", name, "--output", tmp_path / "a.png")
    assert code == 0
    picture = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    assert picture.shape == (800, 1200, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500  # a spectrogram has many colours


def test_the_command_says_one_line(dataset, tmp_path, monkeypatch, capsys):
    for words in (
        [dataset, "--recording", "none.WAV", "--output", tmp_path / "a.png"],
        [dataset / "nowhere", "--output", tmp_path / "out"],
    ):
        code, out, err = run(monkeypatch, capsys, *words)
        assert code == 2 and not out
        assert err.startswith("error: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
