"""Tables as programs and people write them, each with what it says."""

import json
import os
import unicodedata

import numpy as np
import pandas as pd
import pytest
import soundfile
from field_cases import HEADER, calls, raven, run, selection

from tools import event_formats
from training import annotations
from training.annotations import NotATable
from training.collection import build_index, open_collection
from training.labels import Labeller
from training.tables import CollectionError

ROW = selection(0.5, 1.0, "x")


def wav(path, seconds=3, rate=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * rate)), rate, format="WAV")


def indexed(folder, data_format="raven", **reading):
    found, report = build_index(folder, data_format=data_format, **reading)
    kept = {file: rows for file, rows in calls(folder).items() if rows}
    return kept, report[["line", "action", "reason"]].to_numpy().tolist()


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "a.TXT",
        "a.tsv",
        "a.Table.1.selections.txt",
        "a.Table.2.selections.txt",
        "a.wav.Table.1.selections.txt",
        "a.Table01.txt",
        "a.selections.txt",
        "a.BirdNET.selection.table.txt",
        "a_annotations.csv",
        "A.WAV.txt",
    ],
)
def test_a_table_is_named_after_its_recording(tmp_path, name):
    for other in ("a.wav", "a.b.wav", "ab.wav", "a_2.wav"):
        wav(tmp_path / other)
    raven(tmp_path / name, [ROW])
    assert indexed(tmp_path)[0] == {"a.wav": [(0.5, 1.0, "x")]}


def test_tables_in_a_folder_of_their_own(tmp_path):
    wav(tmp_path / "audio" / "a.wav")
    raven(tmp_path / "tables" / "a.txt", [ROW])
    assert indexed(tmp_path)[0] == {"audio/a.wav": [(0.5, 1.0, "x")]}
    # Beside its recording is a newer one; and another recording of this name would leave it open which is meant.
    raven(tmp_path / "audio" / "a.txt", [selection(1.5, 2.0, "y")])
    kept, report = indexed(tmp_path)
    assert kept == {"audio/a.wav": [(1.5, 2.0, "y")]} and report == [[2, "dropped", "no such recording"]]
    (tmp_path / "audio" / "a.txt").unlink()
    wav(tmp_path / "audio2" / "a.wav")
    assert indexed(tmp_path)[0] == {}


def test_several_tables_of_one_recording(tmp_path):
    wav(tmp_path / "a.wav")
    raven(tmp_path / "a.Table.1.selections.txt", [ROW])
    raven(tmp_path / "a.Table.2.selections.txt", [ROW, selection(1.5, 2.0, "y")])
    kept, report = indexed(tmp_path)
    assert kept == {"a.wav": [(0.5, 1.0, "x"), (1.5, 2.0, "y")]}
    assert report == [[2, "dropped", "duplicate"]]


@pytest.mark.parametrize("column", ["Begin File", "Begin Path"])
def test_a_table_names_its_recordings(tmp_path, column):
    for name in ("S1/a.wav", "S2/a.wav", "S2/b.wav"):
        wav(tmp_path / name)
    named = ["S1/a.wav", "S2/a.wav", "b.wav", "c.wav"]
    if column == "Begin Path":
        named[:2] = ["D:\\Data\\S1\\A.WAV", "/data/S2/a.wav"]
    rows = [selection(10 + i, 10.5 + i, "x", i) + [name, 0.5] for i, name in enumerate(named)]
    raven(tmp_path / "all.Table.1.selections.txt", rows, HEADER + [column, "File Offset (s)"])
    kept, report = indexed(tmp_path)
    assert kept == dict.fromkeys(("S1/a.wav", "S2/a.wav", "S2/b.wav"), [(0.5, 1.0, "x")])
    assert report == [[5, "dropped", "no such recording"]]


def test_without_file_offsets(tmp_path):
    for name in ("a.wav", "b.wav"):
        wav(tmp_path / name)
    header = HEADER + ["Begin File"]
    # The second call lies 1 s in: not after a.wav, which is 3 s long.
    raven(tmp_path / "all.txt", [ROW + ["a.wav"], selection(1.0, 1.5, "y", 2) + ["b.wav"]], header)
    assert indexed(tmp_path)[0] == {"a.wav": [(0.5, 1.0, "x")], "b.wav": [(1.0, 1.5, "y")]}
    # 4 s may be 1 s of b.wav, or past its end.
    raven(tmp_path / "all.txt", [ROW + ["a.wav"], selection(4.0, 4.5, "y", 2) + ["b.wav"]], header)
    kept, report = indexed(tmp_path)
    assert not kept and [one[1:] for one in report] == [["dropped", "no File Offset (s)"]] * 2
    raven(tmp_path / "all.txt", [ROW + ["a.wav"]], header)
    assert indexed(tmp_path)[0] == {"a.wav": [(0.5, 1.0, "x")]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(tmp_path, encoding):
    wav(tmp_path / "a.wav")
    raven(tmp_path / "a.txt", [selection(0.5, 1.0, "Größe"), selection(1.0, 1.5, "01", 2)], HEADER, encoding)
    assert [label for *_, label in indexed(tmp_path)[0]["a.wav"]] == ["Größe", "01"]


def test_one_wrong_byte_changes_no_other_line(tmp_path):
    wav(tmp_path / "a.wav")
    lines = ["0\t1\tGröße".encode(), b"1\t2\tM\xf6we", "2\t3\tÜ".encode()]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    assert [label for *_, label in indexed(tmp_path, "audacity")[0]["a.wav"]] == ["Größe", "Möwe", "Ü"]


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["0.5", "1"], [0.5, 1]),
        (["0,5", "1"], [0.5, 1]),
        ([" 1e-1 ", "+.5"], [0.1, 0.5]),
        (["1,500", "0,5"], [1.5, 0.5]),
        (["1,500", "0.5"], ["1,500", 0.5]),  # one and a half, or many
        (["1,50", "0.5"], [1.5, 0.5]),
        (["1,234.5", "1.234,5", "1_0", "0x1", "inf", "nan", "1e300", "", "1 s"], None),
    ],
)
def test_numbers(texts, numbers):
    number = annotations._reader_of_numbers(texts)
    assert [number(text) for text in texts] == (texts if numbers is None else numbers)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('Begin Time (s)\tEnd Time (s)\tAnnotation\n0\t1\the said "hi"\n1\t2\t"x"\n', ['he said "hi"', '"x"']),
        ('Begin Time (s)\tEnd Time (s)\tAnnotation\n0\t1\t"song, ""long"""\n1\t2\tx, y\n', ['song, "long"', "x, y"]),
        ('"Begin Time (s)"\t"End Time (s)"\t"Annotation"\n0\t1\t"01"\n1\t2\t"NA"\n', ["01", "NA"]),
        ('Begin Time (s);End Time (s);Annotation\n0,0;1,0;"a;b"\n1;2;"x\n', ["a;b", '"x']),
        ("sep=;\nBegin Time (s);End Time (s);Annotation\n0;1;a\n1;2;b\n", ["a", "b"]),
        ("Begin Time (s)\tEnd Time (s)\tSpecies\tnotes\n0\t1\tx\n1\t2\ty\tz\n", ["x", "y"]),
        ("Begin Time (s)\tEnd Time (s)\tCommon Name\tSpecies\n0\t1\ta\tb\n1\t2\ta\tc\n", ["b", "c"]),
    ],
)
def test_labels_as_written(tmp_path, text, labels):
    wav(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text(text)
    assert [label for *_, label in indexed(tmp_path)[0]["a.wav"]] == labels


def test_the_column_of_labels(tmp_path):
    wav(tmp_path / "a.wav")
    raven(tmp_path / "a.txt", [ROW], HEADER[:-1] + ["Sp_code"])
    kept, report = indexed(tmp_path)
    assert kept == {"a.wav": [(0.5, 1.0, "call")]} and report == [[2, "noted", "no labels"]]
    assert indexed(tmp_path, label_column="sp_code")[0] == {"a.wav": [(0.5, 1.0, "x")]}
    assert open_collection(tmp_path).reading.label_column == "sp_code"
    with pytest.raises(CollectionError, match='a.txt: has no column "nope"; its columns are selection'):
        build_index(tmp_path, data_format="raven", label_column="nope")


def test_names_of_any_bytes(tmp_path):
    wav(tmp_path / unicodedata.normalize("NFD", "Größe.wav"))
    raven(tmp_path / "Größe.txt", [ROW])
    for suffix, content in ((b".wav", (tmp_path / "Größe.txt").read_bytes()), (b".txt", b"0\t1\tx")):
        with open(os.fsencode(tmp_path) + b"/gr\xf6\xdfe" + suffix, "wb") as file:
            file.write(content)
    code, text = run("index", tmp_path, "--format", "raven")
    assert code == 0 and "Recordings: 2 rows read, 1 kept, 1 dropped" in text and "bad file name" in text
    assert list(calls(tmp_path).values()) == [[(0.5, 1.0, "x")]]
    assert r"gr\xf6\xdfe.wav" in (tmp_path / "index.report.csv").read_text()


def test_links_and_folders_in_the_place_of_tables(tmp_path):
    wav(tmp_path / "a.wav")
    raven(tmp_path / "a.txt", [ROW])
    (tmp_path / "b.txt").symlink_to("nowhere")
    (tmp_path / "c.txt").mkdir()
    kept, report = indexed(tmp_path)
    assert kept == {"a.wav": [(0.5, 1.0, "x")]} and report == [[0, "passed over", "no table"]]


def test_a_completely_annotated_collection(tmp_path):
    for name in ("a.wav", "b.wav"):
        wav(tmp_path / name)
    raven(tmp_path / "a.txt", [ROW])
    edges = np.arange(31) * 100.0
    build_index(tmp_path, data_format="raven")
    assert set(Labeller(open_collection(tmp_path))(1, edges)) == {-100}
    build_index(tmp_path, data_format="raven", completely_annotated=True)
    for strategy in ("voice", "annotation", "intersection", "union"):
        assert set(Labeller(open_collection(tmp_path), strategy)(1, edges)) == {0}
    raven(tmp_path / "a.txt", [ROW, selection(1.5, 2.0, "x", 2)])  # brought up to date as it was made
    again = open_collection(tmp_path)
    assert len(again.annotations) == 2 and set(Labeller(again)(1, edges)) == {0}
    (tmp_path / "a.txt").unlink()
    assert len(open_collection(tmp_path).annotations) == 0


def test_a_class_called_background_is_no_call(tmp_path):
    wav(tmp_path / "a.wav")
    raven(tmp_path / "a.txt", [selection(0, 3, "Background"), selection(1, 2, "y", 2)])
    found, _ = build_index(tmp_path, data_format="raven")
    edges = np.arange(4) * 1000.0
    for strategy in ("voice", "annotation", "intersection", "union"):
        for task, classes in (("call", ("background", "call")), ("context", ("background", "y"))):
            labeller = Labeller(found, strategy, task)
            assert labeller.classes == classes and labeller(0, edges).tolist() == [0, 1, 0]
    code, text = run("conflicts", tmp_path, "--output", tmp_path / "out")
    assert code == 0 and [line.split()[-3] for line in text.splitlines() if line.startswith("any ")] == ["0"]
    assert event_formats.read_events(tmp_path / "a.txt").label.tolist() == ["y"]


BIRDNET = "Start (s),End (s),Scientific name,Common name,Confidence,File\n1.0,2.5,Parus major,Great Tit,0.81,/x/a.wav\n"
BIRDNET_R = "filepath,start,end,scientific_name,common_name,confidence,lat\nC:\\x\\a.wav,1.0,2.5,Parus major,Great Tit,0.81,-1\n"
KALEIDOSCOPE = "INDIR,FOLDER,IN FILE,OFFSET,DURATION,common_name,confidence\n/x,x,a.wav,1.0,1.5,Great Tit,0.81\n"
BATDETECT2 = "id,det_prob,start_time,end_time,high_freq,low_freq,class,class_prob\n0,0.81,1.0,2.5,90000,30000,Great Tit,0.5\n"
JSON = json.dumps(
    {
        "annotation": [
            {"class": "Great Tit", "det_prob": 0.81, "start_time": 1.0, "end_time": 2.5, "high_freq": 90000, "low_freq": 30000}
        ],
        "time_exp": 1,
    }
)
LAYER = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE sonic-visualiser>\n<sv><data><model sampleRate="1000"/><dataset>'
    '<point frame="1000" value="0.81" duration="1500" label="Great Tit"/></dataset></data></sv>'
)


@pytest.mark.parametrize(
    ("data_format", "name", "text"),
    [
        ("birdnet", "a.BirdNET.results.csv", BIRDNET),
        ("birdnet", "BirdNET_R.csv", BIRDNET_R),
        ("birdnet", "kaleidoscope.csv", KALEIDOSCOPE),
        ("batdetect2", "a.wav.csv", BATDETECT2),
        ("batdetect2", "a.wav.json", JSON),
        ("svl", "a.svl", LAYER),
        ("events", "corrected.csv", "file,onset,offset,label,score,review\na.wav,1.0,2.5,Great Tit,0.81,\n"),
        ("events", "a.csv", "onset;offset;label;score\n1,0;2,5;Great Tit;0,81\n"),
        ("generic", "a.csv", "onset_s,offset_s,label\n1,2.5,Great Tit\n"),
        ("generic", "all.csv", "label,onset_s,offset_s,notated_path\nGreat Tit,1,2.5,/x/a.wav\n"),
    ],
)
def test_results_of_other_programs(tmp_path, data_format, name, text):
    """By the index, and as a reference, of which the format is recognised."""
    wav(tmp_path / "a.wav")
    (tmp_path / name).write_text(text)
    found, _ = build_index(tmp_path, data_format=data_format)
    assert calls(tmp_path) == {"a.wav": [(1.0, 2.5, "Great Tit")]}
    for place in (tmp_path / name, tmp_path):
        events = event_formats.match_files(event_formats.read_events(place), ["in/a.wav"])
        assert events.drop(columns=["score", "low_hz", "high_hz"]).to_numpy().tolist() == [["in/a.wav", 1.0, 2.5, "Great Tit"]]
        assert data_format == "generic" or events.score.tolist() == [0.81]
    if data_format == "batdetect2":
        assert found.annotations[["low_hz", "high_hz"]].to_numpy().tolist() == [[30000, 90000]]
        assert event_formats.read_events(tmp_path / name)[["low_hz", "high_hz"]].to_numpy().tolist() == [[30000, 90000]]


@pytest.mark.parametrize(
    ("name", "text", "true"),
    [
        ("a.svl", LAYER, False),
        ("a.txt", "1\t2.5\tx", False),
        ("a.wav.csv", BATDETECT2, True),
        ("a.BirdNET.results.csv", BIRDNET, False),
    ],
)
def test_times_of_slowed_down_recordings(tmp_path, name, text, true):
    (tmp_path / name).write_text(text)
    events = event_formats.read_events(tmp_path / name, 10)
    assert events[["onset", "offset"]].to_numpy().tolist() == ([[1.0, 2.5]] if true else [[0.1, 0.25]])


def test_frequencies_of_slowed_down_recordings(tmp_path):
    wav(tmp_path / "a.wav")
    raven(tmp_path / "a.txt", [ROW])
    found, _ = build_index(tmp_path, data_format="raven", time_expansion=10)
    assert found.annotations[["low_hz", "high_hz"]].to_numpy().tolist() == [[20005, 40005]]
    raven_of = pd.DataFrame({"onset": [1.0], "offset": [2.0], "low_hz": [20005.0], "high_hz": [40005.0]})
    slow = annotations.to_file(raven_of, 10)
    assert slow.to_numpy().tolist() == [[10, 20, 2000.5, 4000.5]]
    pd.testing.assert_frame_equal(annotations.to_true(slow, 10), raven_of)


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_a_time_expansion_that_is_none(tmp_path, factor):
    wav(tmp_path / "a.wav")
    raven(tmp_path / "a.txt", [ROW])
    code, text = run("index", tmp_path, "--format", "raven", "--time-expansion", factor)
    assert code == 2 and "expected a positive factor" in text
    with pytest.raises(ValueError, match="expected a positive factor"):
        event_formats.read_events(tmp_path / "a.txt", factor)


def test_rows_of_a_reference_that_cannot_be_used_are_named(tmp_path, capsys):
    raven(tmp_path / "a.txt", [ROW, selection(2, 1, "x", 2), selection("?", 1, "x", 3)])
    (tmp_path / "README.txt").write_text("Recorded at site 3.\n")
    assert len(event_formats.read_events(tmp_path)) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all(line.startswith("not used: ") for line in told)
    assert any("a.txt line 3: end before start" in line for line in told)


@pytest.mark.parametrize("text", ["", "no table", "a,b\n1,2\n", "\0\0\0\0"])
def test_what_is_no_table_is_one_line(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(NotATable) as error:
        annotations.read(tmp_path / "a.csv")
    assert "\n" not in str(error.value)
