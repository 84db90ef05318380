"""denet report: calls by site, night, hour and class, from results of denet detect."""

import numpy as np
import pandas as pd
import pytest

from tools import season
from tools.command import main

DETECTED = [
    # site, began, duration (s), calls: (onset, label)
    ("cave", "2023-06-01 21:50:00.000", 1200, [(10, "pip"), (700, "pip"), (701, "trill")]),  # over ten o'clock
    ("cave", "2023-06-02 03:00:00.000", 600, [(5, "pip")]),  # the same night
    ("cave", "2023-06-02 22:00:00.000", 600, []),
    ("hill", "2023-06-02 00:00:00.000", 60, [(1, "trill")]),
    ("hill", "", 30, [(1, "trill")]),
]


def results(folder, rows=DETECTED):
    """Tables as denet detect writes them."""
    folder.mkdir(parents=True)
    events, recordings = [], []
    for i, (site, began, duration, calls) in enumerate(rows):
        recordings.append((f"in/{i}.wav", duration, 250_000, len(calls), began, site))
        for onset, label in calls:
            clock = str(pd.Timestamp(began) + pd.Timedelta(seconds=onset)) if began else ""
            events.append((f"in/{i}.wav", onset, onset + 0.1, label, 0.9, clock, site))
    columns = ["file", "onset", "offset", "label", "score", "clock", "site"]
    pd.DataFrame(events, columns=columns).to_csv(folder / "events.csv", index=False)
    columns = ["file", "duration", "samplerate", "events", "began", "site"]
    pd.DataFrame(recordings, columns=columns).to_csv(folder / "recordings.csv", index=False)
    return folder


def test_summary_counts_calls_and_time(tmp_path, capsys):
    folder = results(tmp_path / "detections")
    assert main(["report", str(folder)]) == 0
    assert "6 calls in 5 recordings, 0.7 h, 2 nights; 1 call at unknown times" in capsys.readouterr().out
    table = pd.read_csv(folder / "summary.csv", dtype=str, keep_default_na=False)
    found = {tuple(row) for row in table.itertuples(index=False)}
    assert found == {
        ("cave", "2023-06-01", "21", "pip", "1", "600.0"),
        ("cave", "2023-06-01", "21", "trill", "0", "600.0"),
        ("cave", "2023-06-01", "22", "pip", "1", "600.0"),
        ("cave", "2023-06-01", "22", "trill", "1", "600.0"),
        ("cave", "2023-06-01", "3", "pip", "1", "600.0"),
        ("cave", "2023-06-01", "3", "trill", "0", "600.0"),
        ("cave", "2023-06-02", "22", "pip", "0", "600.0"),
        ("cave", "2023-06-02", "22", "trill", "0", "600.0"),
        ("hill", "2023-06-01", "0", "pip", "0", "60.0"),
        ("hill", "2023-06-01", "0", "trill", "1", "60.0"),
        ("hill", "", "", "pip", "0", "30.0"),
        ("hill", "", "", "trill", "1", "30.0"),
    }
    assert table.hour[:4].tolist() == ["21", "21", "22", "22"] and table.hour[4] == "3"
    page = (folder / "season.html").read_text()
    for part in ("Calls by site and class", "Calls by hour: all classes", "Calls by hour: trill", "2023-06-02", "unknown"):
        assert part in page


def test_results_of_many_folders_and_corrected_tables(tmp_path, capsys):
    one, other = results(tmp_path / "a" / "deep", DETECTED[:2]), results(tmp_path / "b", DETECTED[3:4])
    assert main(["report", str(tmp_path / "a"), str(other), "--output", str(tmp_path / "season")]) == 0
    whole = pd.read_csv(tmp_path / "season" / "summary.csv")
    assert whole.calls.sum() == 5
    corrected = pd.read_csv(one / "events.csv")[:2].drop(columns=["clock", "site"])
    corrected.file = "in/SITE_20230601_215000.wav"
    corrected.to_csv(tmp_path / "corrected.csv", index=False)
    assert main(["report", str(one), str(tmp_path / "corrected.csv")]) == 0
    table = pd.read_csv(one / "summary.csv", dtype=str)
    assert table.calls.astype(int).sum() == 2 and set(table[table.calls == "1"].site) == {"SITE"}


def test_a_recording_that_ends_with_the_hour_has_nothing_of_the_next():
    """It had 0 calls in 0 s, and the page a 0 where nothing was recorded."""
    began = pd.to_datetime(["2023-06-01 20:00:00", "2023-06-01 22:30:00", "2023-06-01 23:59:00"])
    effort = season._effort(pd.DataFrame({"site": "a", "began": began, "duration": [3600.0, 1800.0, 61.0]}))
    found = {tuple(row) for row in effort.itertuples(index=False)}
    day = "2023-06-01"
    assert found == {("a", day, "20", 3600.0), ("a", day, "22", 1800.0), ("a", day, "23", 60.0), ("a", day, "0", 1.0)}


def test_recordings_of_two_recorders_with_one_name_are_two(tmp_path, capsys):
    """Recorders of one schedule write the same names: the time of the second one was left out, its calls were not."""
    for site in ("cave", "hill"):
        results(tmp_path / site, [(site, "2023-06-01 21:00:00", 600, [(10, "pip")])])
    assert main(["report", str(tmp_path), str(tmp_path / "hill")]) == 0
    assert "1 recording of the same name" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "summary.csv")
    assert table.site.tolist() == ["cave", "hill"] and table.calls.tolist() == [1, 1] and table.recorded_s.tolist() == [600, 600]
    (tmp_path / "corrected.csv").write_text("file,onset,offset,label\nin/0.wav,1,2,pip\n")
    assert main(["report", str(tmp_path), str(tmp_path / "corrected.csv")]) == 2
    assert "in/0.wav may be the recording of two folders" in capsys.readouterr().err


def test_corrected_calls_have_the_times_and_sites_of_their_recordings(tmp_path):
    """They were looked for in the recordings, which may lie elsewhere by now; and programs' tables of slowed-down ones were
    taken for true: a call of 700 s was placed 2 hours late."""
    folder = results(tmp_path / "found", DETECTED[:1])
    recordings = pd.read_csv(folder / "recordings.csv")
    recordings.assign(time_expansion=10).to_csv(folder / "recordings.csv", index=False)
    other = results(tmp_path / "other", DETECTED[1:2])
    for name in ("events.csv", "recordings.csv"):
        (other / name).write_text((other / name).read_text().replace("in/0.wav", "in/late.wav"))
    slow = "onset_s,offset_s,label,notated_path\n100,101,pip,0.wav\n7000,7001,pip,0.wav\n"
    slow += "5,6,trill,late.wav\n9,10,pip,SITE_20230603_210000.wav\n"
    (tmp_path / "slow.csv").write_text(slow)
    (tmp_path / "true.csv").write_text("file,onset,offset,label\nin/0.wav,10,10.1,pip\nin/0.wav,700,700.1,pip\n")
    calls, _ = season.read([folder, other, tmp_path / "slow.csv"])
    assert calls.file.tolist() == ["in/0.wav", "in/0.wav", "SITE_20230603_210000.wav", "in/late.wav"]
    expected = ["2023-06-01 21:50:10", "2023-06-01 22:01:40", "2023-06-03 21:00:00.9", "2023-06-02 03:00:05"]
    assert calls.clock.tolist() == list(pd.to_datetime(expected, format="mixed"))
    assert calls.site.tolist() == ["cave", "cave", "SITE", "cave"]
    calls, _ = season.read([folder, other, tmp_path / "true.csv"])
    assert calls.clock.tolist() == list(pd.to_datetime(expected[:2]))


def test_no_calls_and_no_results(tmp_path, capsys):
    silent = results(tmp_path / "silent", [("cave", "2023-06-01 21:50:00", 60, [])])
    assert main(["report", str(silent)]) == 0
    assert "0 calls in 1 recording" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for path in ("empty", "gone"):
        assert main(["report", str(tmp_path / path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
    (silent / "recordings.csv").write_text("file\nx\n")
    assert main(["report", str(silent)]) == 2
    assert "recordings.csv: has no column duration" in capsys.readouterr().err


def test_times_that_a_recorder_cannot_have_written_are_none():
    """A year of 1 ended `denet report` in a line that named no file."""
    clock = ["", "0001-01-01 00:00:00", "2020-02-03T01:02:03Z", "2020-02-03 01:02:03.5+02:00", "99999-01-01", "", "2020-02-03"]
    table = pd.DataFrame({"file": ["a/120601011047196133.WAV", *"bcdefg"], "onset": 1.0, "clock": clock})
    found = season._dated(table, "clock", table.onset).clock
    expected = ["2012-06-01 01:10:48", "", "2020-02-03 01:02:03", "2020-02-03 01:02:03.5", "", "", "2020-02-03"]
    assert found.equals(pd.Series(pd.to_datetime(expected, format="mixed"), name="clock").astype("datetime64[us]"))
    without = season._dated(table.drop(columns="clock"), "clock", 0.0).clock
    assert list(without.notna()) == [True] + 6 * [False]


def test_any_beginning_adds_up():
    rng = np.random.default_rng(0)
    began = pd.Timestamp("2023-06-01") + pd.to_timedelta(rng.uniform(0, 9e5, 50), unit="s")
    duration = rng.uniform(1, 3e4, 50)
    effort = season._effort(pd.DataFrame({"site": "a", "began": began, "duration": duration}))
    assert effort.recorded_s.sum() == pytest.approx(duration.sum())
