"""The protocol of BEANS' bats: the split is scikit-learn's, a generated collection in its layout trains and is scored."""

import json
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import soundfile

from training import beans

pytest.importorskip("sklearn", reason="scikit-learn (the extra beans) is not installed")

RATE = 8000


def write(root, files=80):
    """Ten bats, each with a tone of its own, over eight days; other bats' files between them."""
    rng = np.random.default_rng(0)
    (root / "audio").mkdir(parents=True)
    rows = []
    for number in range(files):
        emitter = (*beans.EMITTERS, 0, 118)[number % 12] if number % 6 else beans.EMITTERS[number % 10]
        day = datetime(2012, 6, 1) + timedelta(days=number // (files // 8))
        name = f"{day:%y%m%d}{number:09d}.WAV"
        t = np.arange(RATE // 2) / RATE
        sound = 0.3 * np.sin(2 * np.pi * (300 + 5 * emitter) * t) + 0.02 * rng.standard_normal(len(t))
        soundfile.write(root / "audio" / name, sound.astype(np.float32), RATE)
        rows.append((name, emitter))
    pd.DataFrame(rows, columns=["File Name", "Emitter"]).to_csv(root / "annotations.csv", index=False)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("beans") / "data", 120)


def test_split_is_scikit_learns(data):
    split = pytest.importorskip("sklearn.model_selection").train_test_split
    table = pd.read_csv(data / "annotations.csv")
    df = table[table["Emitter"].isin([111, 210, 211, 215, 216, 220, 226, 228, 230, 231])]
    df_train, df_rest = split(df, test_size=0.4, random_state=42, shuffle=True, stratify=df["Emitter"])
    df_valid, df_test = split(df_rest, test_size=0.5, random_state=42, shuffle=True, stratify=df_rest["Emitter"])
    df_train_low, _ = split(df_train, test_size=0.8, random_state=42, shuffle=True, stratify=df_train["Emitter"])
    found = beans.split_by_file(beans.read_table(data), data)
    for part, expected in {"train": df_train, "valid": df_valid, "test": df_test, "train-low": df_train_low}.items():
        assert found[part]["File Name"].tolist() == expected["File Name"].tolist()
        assert found[part]["Emitter"].tolist() == expected["Emitter"].tolist()


def test_split_by_day_keeps_days_together(data):
    parts = beans.split_by_day(beans.read_table(data))
    days = [set(rows["File Name"].str[:6]) for rows in parts.values()]
    assert all(days) and not (days[0] & days[1] or days[0] & days[2] or days[1] & days[2])
    assert sum(map(len, parts.values())) == len(beans.read_table(data))


@pytest.mark.parametrize("model", ["sincnet", "denet"])
def test_trains_and_is_scored(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(beans, "LEARNING_RATES", (1e-4, 1e-3))
    words = [str(data), "--model", model, "--out", str(tmp_path / "out"), "--epochs", "2", "--epoch-windows", "32"]
    words += ["--batch-size", "16", "--sample-rate", str(RATE), "--hidden-units", "16", "--gru-units", "8", "--threads", "1"]
    assert beans.main(words) == 0
    said = capsys.readouterr().out
    assert "split by file: accuracy" in said and "split by day: accuracy" in said and "always the commonest bat" in said
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores) == {"by file", "by day"} and set(scores["by file"]["validation"]) == {"0.0001", "0.001"}
    test = pd.read_csv(tmp_path / "out" / "by-file" / "annotations.test.csv")
    assert len(test) == scores["by file"]["files"]["test"]


def test_the_benchmarks_own_split_is_taken(data, tmp_path):
    table = beans.read_table(data)
    for part, rows in (("train", table[:40]), ("valid", table[40:50]), ("test", table[50:60])):
        rows.to_csv(tmp_path / f"annotations.{part}.csv", index=False)
    (tmp_path / "audio").mkdir()
    found = beans.own_split(tmp_path)
    assert found["test"]["File Name"].tolist() == table[50:60]["File Name"].tolist() and "train-low" not in found
    assert beans.own_split(data) is None


def test_wrong_layouts_are_said_in_one_line(data, tmp_path, capsys):
    def said(root):
        assert beans.main([str(root), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "no such folder" in said(tmp_path / "none")
    root = tmp_path / "root"
    root.mkdir()
    assert "annotations.csv: no such file" in said(root)
    (root / "annotations.csv").write_text("FileID,Emitter\n1,111\n")
    assert "columns File Name and Emitter" in said(root)
    (root / "annotations.csv").write_text("File Name,Emitter\na.wav,111\n")
    assert "audio: no such folder" in said(root)
    (root / "audio").mkdir()
    assert "cannot be split" in said(root)
    (root / "annotations.csv").write_text("File Name,Emitter\na.wav,5\n")
    assert "no file of the emitters" in said(root)
    (root / "annotations.csv").write_text((data / "annotations.csv").read_text())
    assert "no such file" in said(root)
