"""tools.compare: the scores of tools.evaluate side by side, the paired difference, and places of disagreement."""

import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from tools import compare, comparison, scores

FILES = ["a.wav", "b.wav", "c.wav", "d.wav"]
TRUE = [(file, 0.5 * i + 0.1, 0.5 * i + 0.3) for file in FILES[:3] for i in range(4)]


def write(folder, rows, files=FILES):
    folder.mkdir()
    table = pd.DataFrame(rows, columns=["file", "onset", "offset"]).assign(label="call", score=0.5)
    table.to_csv(folder / "events.csv", index=False)
    pd.DataFrame({"file": files, "duration": 2.5}).to_csv(folder / "recordings.csv", index=False)
    return folder / "events.csv"


@pytest.fixture
def tables(tmp_path):
    """The truth; a table with one call of b missed and another made up; one with another call of b missed and c missed."""
    one = TRUE[:4] + TRUE[5:] + [("b.wav", 2.1, 2.2)]
    other = TRUE[:5] + TRUE[6:8]
    return {name: write(tmp_path / name, rows) for name, rows in (("truth", TRUE), ("one", one), ("other", other))}


def test_scores_are_those_of_evaluate(tables):
    names = {name: tables[name] for name in ("one", "other")}
    result = comparison.compare(tables["truth"], names, collar=0.02)
    for name, path in names.items():
        alone = scores.score(*scores.load(tables["truth"], path), 0.02).overall
        ours = result.overall[result.overall["table"] == name].set_index("score")[["value", "low", "high"]]
        np.testing.assert_allclose(ours.to_numpy(), alone.to_numpy())
    row = result.differences.iloc[0]
    assert row.difference == "other - one" and row.value == pytest.approx(2 * 7 / 19 - 2 * 11 / 24)
    assert row.low <= row.value <= row.high


def test_a_table_beside_itself_differs_by_nothing(tables):
    result = comparison.compare(tables["truth"], {"one": tables["one"], "again": tables["one"]})
    assert result.differences[["value", "low", "high"]].eq(0).all(axis=None)
    assert result.places["disagreement"].eq(0).all()


def test_places_where_they_disagree_come_first(tables):
    places = comparison.compare(tables["truth"], {"one": tables["one"], "other": tables["other"]}, collar=0.02).places
    assert places["file"].tolist() == ["c.wav", "b.wav", "a.wav", "d.wav"]
    assert places["disagreement"].tolist() == [4, 3, 0, 0]  # of b, each misses another one


def test_only_what_all_searched_counts(tables, tmp_path):
    part = write(tmp_path / "part", TRUE[:4], ["/elsewhere/a.wav", "b.wav"])
    result = comparison.compare(tables["truth"], {"one": tables["one"], "part": part})
    assert list(result.durations) == ["a.wav", "b.wav"]
    alone = write(tmp_path / "alone", [], ["z.wav"])
    with pytest.raises(ValueError, match="no recording that all tables searched"):
        comparison.compare(tables["truth"], {"one": tables["one"], "alone": alone})


def test_the_command_writes_a_page_with_the_places(tables, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in FILES[:2]:
        soundfile.write(tmp_path / file, np.random.default_rng(0).normal(0, 0.1, 40_000), 16_000)
    words = ["--reference", tables["truth"], "--estimated", f"DENet={tables['one']}", f"<b>={tables['other']}", "--output", "out"]
    assert compare.main([str(word) for word in words]) == 0
    told = capsys.readouterr().out
    assert "DENet" in told and "event F1, <b> - DENet" in told
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("data:image/png") == 1 and "<b>" not in page and "c.wav: no such file" in page
    assert {row["table"] for row in json.loads((tmp_path / "out" / "comparison.json").read_text())["overall"]} == {"DENet", "<b>"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["one"], "two tables"),
        (["one", "one"], "give each a name"),
        (["one", "missing=none.csv"], "none.csv"),
        (["one", "=x"], "name"),
    ],
)
def test_bad_input_is_one_line(tables, capsys, words, expected):
    places = [str(tables[word]) if word in tables else word for word in words]
    assert compare.main(["--reference", str(tables["truth"]), "--estimated", *places]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and expected in told and "Traceback" not in told


def boxes(*rows):
    columns = ["file", "onset", "offset", "label", "score", "low_hz", "high_hz"]
    return pd.DataFrame([("a.wav", *row) for row in rows], columns=columns)


def test_boxes_are_right_by_their_overlap_in_time_and_frequency():
    true = boxes((0.0, 1.0, "x", np.nan, 0, 100), (2.0, 3.0, "x", np.nan, 0, 100), (4.0, 5.0, "x", np.nan, np.nan, np.nan))
    found = boxes((0.0, 1.0, "x", 0.9, 50, 150), (2.0, 3.0, "y", 0.8, 0, 100), (4.2, 5.0, "x", 0.7, 10, 20))
    assert scores.overlaps(true, found) == pytest.approx(np.diag([1 / 3, 0, 0.8]))
    for least, right in ((0.3, 2), (0.4, 1), (0.81, 0)):
        result = scores.score(true, found, {"a.wav": 6.0}, min_iou=least)
        assert result.overall.value.event_recall == pytest.approx(right / 3)
    # The best box would take the only partner of the other: most pairs count, not the first ones.
    true = boxes((0.0, 1.0, "x", np.nan, 0, 10), (0.5, 1.5, "x", np.nan, 0, 10))
    found = boxes((0.4, 1.2, "x", 0.9, 0, 10), (0.5, 1.9, "x", 0.8, 0, 10))
    assert scores.box_hits(true, found, 0.5) == 2
    with pytest.raises(ValueError, match="more than 0"):
        scores.score(true, found, {"a.wav": 2.0}, min_iou=0)


@pytest.mark.parametrize("factor", [1, 10])
def test_a_recording_that_was_slowed_down_is_shown_at_its_true_times(tmp_path, monkeypatch, factor):
    """A tone at 2.0 to 2.2 s of 2.5, at a quarter of the true rate: the picture is drawn of that second."""
    rate, shown = 16_000, []
    time = np.arange(round(2.5 * rate)) / rate
    sound = 0.01 * np.random.default_rng(0).normal(size=len(time))
    sound += ((time >= 2) & (time < 2.2)) * np.sin(np.pi * rate / 4 * time)
    soundfile.write(tmp_path / "a.wav", 0.5 * sound, rate // factor)
    file = [str(tmp_path / "a.wav")]
    names = {name: write(tmp_path / name, rows, file) for name, rows in {
        "truth": [(*file, 2.0, 2.2)], "one": [(*file, 2.0, 2.2)], "two": []}.items()}  # fmt: skip
    result = comparison.compare(names["truth"], {name: names[name] for name in ("one", "two")})
    original = comparison.spectrogram

    def spy(waveform, rate, columns):
        shown.append((len(waveform), rate, original(waveform, rate, columns)))
        return shown[-1][2]

    monkeypatch.setattr(comparison, "spectrogram", spy)
    comparison.write(result, tmp_path / "out")
    (length, true_rate, level), = shown
    assert true_rate == rate and length == 2.5 * rate
    row, column = np.unravel_index(level.argmax(), level.shape)
    assert row / level.shape[0] == pytest.approx(0.25, abs=0.02) and 2.0 <= 2.5 * column / level.shape[1] <= 2.2


def test_the_reference_may_be_of_slow_recordings(tmp_path):
    """Raven's seconds are those of the file that was slowed down."""
    (tmp_path / "a.Table.1.selections.txt").write_text(
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tKind\tBegin File\n1\tWaveform 1\t1\t5.0\t7.0\tcall\ta.wav\n"
    )
    names = [f"{name}={write(tmp_path / name, [('a.wav', 0.5, 0.7)], ['a.wav'])}" for name in ("one", "two")]
    words = ["--reference", tmp_path / "a.Table.1.selections.txt", "--estimated", *names, "--collar", "0.01"]
    words += ["--output", tmp_path / "o"]
    assert compare.main([str(word) for word in words] + ["--time-expansion", "10", "--label-column", "Kind"]) == 0
    overall = pd.read_csv(tmp_path / "o" / "comparison.csv")
    assert overall.loc[overall["score"] == "event_f1", "value"].eq(1).all()
