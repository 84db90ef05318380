"""tools.scores against sed_eval over whole collections and against counts made by hand; tools.evaluate."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sed_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from denet_torch.detection import event_table
from tools import evaluate, event_formats, scores

DURATIONS = {"a.wav": 12.0, "b.wav": 9.5, "quiet.wav": 30.0}
# Off the collar's edges, where rounding would decide.
TIMES = st.integers(0, 80).map(lambda n: round(n * 0.1 + 0.003, 3))
EVENT = st.tuples(
    st.sampled_from(["a.wav", "b.wav"]), TIMES, st.integers(1, 9), st.sampled_from("xy"), st.integers(1, 9)
)


def table(rows):
    return event_table([(f, on, round(on + n * 0.101, 4), label, s / 10) for f, on, n, label, s in rows])


@settings(max_examples=40, deadline=None)
@given(st.lists(EVENT, max_size=10), st.lists(EVENT, max_size=10))
def test_overall_equals_sed_eval_over_all_recordings(reference, estimated):
    reference, estimated = table(reference), table(estimated)
    labels = sorted({*reference.label, *estimated.label}) or ["x"]
    events = sed_eval.sound_event.EventBasedMetrics(labels, t_collar=0.2, percentage_of_length=0.5)
    segments = sed_eval.sound_event.SegmentBasedMetrics(labels, time_resolution=1.0)
    for file, duration in DURATIONS.items():
        lists = [
            [
                {"event_onset": e.onset, "event_offset": e.offset, "event_label": e.label}
                for e in events_of[events_of.file == file].itertuples()
            ]
            for events_of in (reference, estimated)
        ]
        if lists[0] or lists[1]:
            events.evaluate(*lists)
        segments.evaluate(*lists, evaluated_length_seconds=duration)
    ours = scores.score(reference, estimated, DURATIONS).overall.value
    for kind, theirs in (("event", events), ("segment", segments)):
        theirs = theirs.results_overall_metrics()["f_measure"]
        for name in ("precision", "recall"):
            assert ours[f"{kind}_{name}"] == pytest.approx(theirs[name], nan_ok=True)
        if ours[f"{kind}_precision"] + ours[f"{kind}_recall"] > 0:
            assert ours[f"{kind}_f1"] == pytest.approx(theirs["f_measure"])
    if len(reference):
        theirs = segments.results_overall_metrics()["error_rate"]["error_rate"]
        assert ours.segment_error_rate == pytest.approx(theirs)


REFERENCE = event_table(
    [
        ("a.wav", 1.0, 1.2, "x", 0),
        ("a.wav", 5.0, 5.2, "x", 0),
        ("a.wav", 8.0, 8.2, "y", 0),
        ("b.wav", 2.0, 2.3, "x", 0),
    ]
)
ESTIMATED = event_table(
    [
        ("a.wav", 1.05, 1.2, "x", 0.9),  # right
        ("a.wav", 3.0, 3.2, "x", 0.8),  # in the background
        ("a.wav", 8.0, 8.2, "x", 0.7),  # another class
        ("b.wav", 2.1, 2.2, "x", 0.6),  # right
        ("b.wav", 2.15, 2.3, "x", 0.5),  # fits too, but the reference is taken
    ]
)


def test_by_hand():
    found = scores.score(REFERENCE, ESTIMATED, DURATIONS)
    value = found.overall.value
    assert value.event_precision == 2 / 5 and value.event_recall == 2 / 4
    assert value.event_f1 == pytest.approx(4 / 9)
    assert [value.recognition_rate, value.miss_rate, value.error_rate] == [0.5, 0.25, 0.25]
    # Background: 51.5 s less 0.9 s of calls, in intervals of 1 s.
    assert value.false_positive_rate == pytest.approx(1 / 50.6)
    # Ranked: right, wrong, wrong, right, wrong; four in all.
    assert value.average_precision == pytest.approx((1 / 4) * 1 + (1 / 4) * (2 / 4))
    rows = found.recordings.set_index("file")
    assert rows.loc["b.wav", "event_recall"] == 1 and rows.loc["b.wav", "event_precision"] == 0.5
    assert rows.loc["quiet.wav", ["reference", "estimated", "false_positive_rate"]].tolist() == [0, 0, 0]
    assert np.isnan(rows.loc["quiet.wav", "event_f1"])


def test_a_false_event_counts_where_calls_leave_no_background():
    """Of a recording that is one call, an event behind its end: it was left out of the false ones."""
    reference = event_table([("a.wav", 0.0, 12.0, "x", 1.0)])
    estimated = event_table([("a.wav", 12.5, 13.0, "x", 0.9), ("b.wav", 1.0, 2.0, "x", 0.9)])
    found = scores.score(reference, estimated, {"a.wav": 12.0, "b.wav": 8.0})
    assert found.overall.value.false_positive_rate == pytest.approx(2 / 8)


def test_equal_scores_count_together():
    tied = ESTIMATED.assign(score=0.5)
    value = scores.score(REFERENCE, tied, DURATIONS).overall.value
    assert value.average_precision == pytest.approx(2 / 4 * 2 / 5)


def test_intervals_hold_the_value_and_come_from_the_recordings():
    rng = np.random.default_rng(0)
    files = [f"{i}.wav" for i in range(60)]
    reference = event_table([(file, 1.0, 1.2, "x", 0) for file in files])
    estimated = event_table([(file, 1.0, 1.2, "x", 0.5) for file in files if rng.random() < 0.7])
    durations = dict.fromkeys(files, 2.0)
    recall = scores.score(reference, estimated, durations).overall.loc["event_recall"]
    # As wide as that of 60 draws of 0.7: 2 x 1.96 standard errors.
    assert recall.low < recall.value < recall.high
    assert recall.high - recall.low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 60), rel=0.25)
    perfect = scores.score(reference, reference.assign(score=1.0), durations).overall
    assert perfect.loc["event_f1"].tolist() == [1, 1, 1]
    assert perfect.loc["average_precision"].tolist() == [1, 1, 1]


@pytest.fixture
def folder(tmp_path):
    event_formats.write_csv(REFERENCE.drop(columns="score"), tmp_path / "reference.csv")
    (tmp_path / "found").mkdir()
    event_formats.write_csv(
        ESTIMATED.assign(file="recordings/" + ESTIMATED.file), tmp_path / "found" / "events.csv"
    )
    recordings = pd.DataFrame({"file": "recordings/" + pd.Series(list(DURATIONS)), "duration": DURATIONS.values()})
    event_formats.write_csv(recordings, tmp_path / "found" / "recordings.csv")
    return tmp_path


def run(folder, *options, reference="reference.csv"):
    where = ["--reference", folder / reference, "--estimated", folder / "found" / "events.csv"]
    return evaluate.main([str(item) for item in (*where, *options)])


def test_table_json_and_page(folder, capsys):
    assert run(folder, "--output", folder / "scores") == 0
    out = capsys.readouterr().out
    assert "3 recordings, 4 events in the reference, 5 estimated" in out
    assert any(line.split()[:3] == ["event", "F1", "0.444"] for line in out.splitlines())
    record = json.loads((folder / "scores" / "scores.json").read_text())
    assert record["overall"]["event_f1"]["value"] == pytest.approx(4 / 9)
    assert record["overall"]["event_f1"]["low"] <= 4 / 9 <= record["overall"]["event_f1"]["high"]
    assert [row["event_f1"] for row in record["recordings"]][2] is None
    page = (folder / "scores" / "scores.html").read_text()
    assert "event F1" in page and "recordings/quiet.wav" in page and "0.444" in page
    assert len(pd.read_csv(folder / "scores" / "recordings.csv")) == 3


def test_any_label(folder, capsys):
    assert run(folder, "--any-label") == 0
    assert any(line.split()[:3] == ["event", "recall", "0.750"] for line in capsys.readouterr().out.splitlines())


def test_recordings_that_were_not_searched_are_left_out(folder, capsys):
    with open(folder / "reference.csv", "a") as file:
        file.write("other.wav,1.0,2.0,x\n")
    assert run(folder) == 0
    out = capsys.readouterr().out
    assert "4 events in the reference" in out and "1 events of recordings that were not searched" in out


def test_layers_and_truth_are_references_too(folder, capsys):
    rows = [f"somewhere/recordings/{e.file},{e.onset},{e.offset},3.0" for e in REFERENCE.itertuples()]
    (folder / "truth.csv").write_text("\n".join(["recording,onset,offset,snr_db", *rows]))
    assert run(folder, "--any-label", reference="truth.csv") == 0
    out = capsys.readouterr().out
    (folder / "layers").mkdir()
    head = '<sv><data><model sampleRate="1000"/><dataset>'
    for file, events in REFERENCE.groupby("file"):
        points = "".join(
            f'<point frame="{e.onset * 1000:.0f}" duration="{(e.offset - e.onset) * 1000:.0f}" label="?"/>'
            for e in events.itertuples()
        )
        (folder / "layers" / file.replace(".wav", ".svl")).write_text(f"{head}{points}</dataset></data></sv>")
    assert run(folder, "--any-label", reference="layers") == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.csv", None),
        ("empty.csv", ""),
        ("columns.csv", "file,start\na.wav,1\n"),
        ("words.csv", "file,onset,offset\na.wav,one,two\n"),
        ("turned.csv", "file,onset,offset\na.wav,2,1\n"),
        ("void.csv", "file,onset,offset\na.wav,,1\n"),
        ("binary.parquet", "PAR1"),
    ],
)
def test_a_bad_table_is_one_line(folder, capsys, name, text):
    if text is not None:
        (folder / name).write_text(text)
    assert run(folder, "--output", folder / "scores", reference=name) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and name in errors[0]
    assert not (folder / "scores").exists()


def test_without_the_list_of_recordings(folder, capsys):
    (folder / "found" / "recordings.csv").unlink()
    assert run(folder) == 2
    assert "recordings.csv: no such file" in capsys.readouterr().err


def test_the_list_of_recordings_from_a_spreadsheet(folder, capsys):
    assert run(folder) == 0
    out = capsys.readouterr().out
    lines = [f"recordings/{path};{seconds:.3f}".replace(".", ",").replace(",wav", ".wav") for path, seconds in DURATIONS.items()]
    text = "\r\n".join(["File;Duration", *lines, ""])
    (folder / "found" / "recordings.csv").write_bytes(text.encode("utf-16"))
    assert run(folder) == 0
    assert capsys.readouterr().out == out
    (folder / "found" / "recordings.csv").write_text("file,duration\na.wav,long\n")
    assert run(folder) == 2
    assert "recordings.csv: line 2: 'long' is no duration" in capsys.readouterr().err


def test_names_that_could_mean_two_recordings_are_refused():
    files = ["in/1/a.wav", "in/2/a.wav", "in/b.flac"]
    named = event_table([(name, 0, 1, "x", 0) for name in ("2/a.wav", "/far/b.wav", "c.wav")])
    assert event_formats.match_files(named, files).file.tolist() == ["in/2/a.wav", "in/b.flac", "c.wav"]
    with pytest.raises(ValueError, match="a.wav: may be in/1/a.wav or in/2/a.wav"):
        event_formats.match_files(event_table([("a.wav", 0, 1, "x", 0)]), files)


def test_no_score_needs_sed_eval():
    code = "import sys; sys.modules['sed_eval'] = None; import tools.scores, training.run"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
