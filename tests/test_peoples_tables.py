"""Exports of programs and tables made by hand, as bioacousticians have them: each with the calls that it says."""

import unicodedata

import numpy as np
import pandas as pd
import pytest
from field_cases import HEADER, calls, raven, run, selection
from test_annotations import indexed, wav

from denet_torch import audio
from tools import event_formats
from training.annotations import NotATable, earliest, read, recognise
from training.collection import build_index, open_collection
from training.labels import Labeller

BIRDNET = [
    "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Common Name",
    "Species Code", "Confidence", "Begin Path", "File Offset (s)",
]  # fmt: skip
IDS = (
    "INDIR,OUTDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,DATE,TIME,AUTO ID*,PULSES,MATCHING,MATCH RATIO,Fc,Fmax,Fmin,MANUAL ID\n"
    "D:\\x,D:\\o,,a.wav,0,0.5,0.5,2023-06-01,21:00:00,PIPPIP,9,8,0.9,46,50,45,NYCLEI\n"
    "D:\\x,D:\\o,,a.wav,0,1.5,0.5,2023-06-01,21:00:00,PIPPIP,9,8,0.8,46,50,45,\n"
)
CLUSTERS = (
    "INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,Fmin,Fmean,Fmax,DATE,TIME,HOUR,TOP1MATCH*,TOP1DIST,VOCALIZATIONS,MANUAL ID\n"
    "/x,,a.wav,0,0.5,0.5,2000,2500,3000,2023-06-01,21:00:00,21,C1,0.1,1,\n"
    "/x,,a.wav,0,1.5,0.5,2000,2500,3000,2023-06-01,21:00:00,21,C2,0.1,1,\n"
)
TWO = [(0.5, 1.0, "x"), (1.5, 2.0, "01")]


@pytest.mark.parametrize(
    ("data_format", "name", "text", "expected"),
    [
        ("birdnet", "id.csv", IDS, [(0.5, 1.0, "NYCLEI"), (1.5, 2.0, "PIPPIP")]),
        ("birdnet", "cluster.csv", CLUSTERS, [(0.5, 1.0, "C1"), (1.5, 2.0, "C2")]),
        (
            "birdnet",
            "k.csv",
            "INDIR,FOLDER,IN FILE,OFFSET,DURATION,TOP1MATCH,TOP1DIST\n/x,,a.wav,0.5,0.5,Wren,0.3\n",
            [(0.5, 1, "Wren")],
        ),
        (
            "raven",
            "a.csv",
            '"","Selection","View","Begin.Time..s.","End.Time..s.","Low.Freq..Hz.","Annotation"\n'
            '"1",1,"Spectrogram 1",0.5,1,200,"x"\n"2",2,"Spectrogram 1",1.5,2,200,"01"\n',
            TWO,
        ),
        ("generic", "labels.csv", "filename,start,end,label\na.wav,0.5,1.0,x\na.wav,1.5,2,01\n", TWO),
        ("generic", "labels.txt", "file_name;start_time;end_time;Species\na.wav;0,5;1,0;x\na.wav;1,5;2;01\n", TWO),
        ("generic", "a.csv", "# by hand\nStart (s),Stop (s),Label\n0.5,1,x\n1.5,2,01\n", TWO),
        ("generic", "a.tsv", "begin\tduration\tcall_type\n0.5\t0.5\tx\n1.5\t0.5\t01\n", TWO),
        (
            "generic",
            "boxes.csv",
            "audio_file,annotation_file,annotation,start_time,end_time\n./a.wav,b.txt,x,.5,1\na.wav,b.txt,01,1.5,2\n",
            TWO,
        ),
        ("generic", "a.csv", "Audiofilename,Starttime,Endtime,Q\na.wav,0.5,1.0,POS\n", [(0.5, 1.0, "POS")]),
        ("generic", "a.csv", "TIME,VALUE,DURATION,LABEL\n0.5,440,0.5,x\n1.5,450,0.5,01\n", TWO),
        ("generic", "all.csv", '"sound.files","selec","start","end"\n"a.wav",1,0.5,1\n', [(0.5, 1.0, "call")]),
        ("events", "strong.tsv", "filename\tonset\toffset\tevent_label\na.wav\t0.5\t1.0\tx\na.wav\t1.5\t2\t01\n", TWO),
    ],
)
def test_exports(tmp_path, data_format, name, text, expected):
    """By the index, and as a reference."""
    wav(tmp_path / "a.wav")
    (tmp_path / name).write_text(text)
    found, _ = build_index(tmp_path)
    assert found.reading.data_format == data_format and found.rows["Annotations.csv"]["dropped"] == 0
    assert calls(tmp_path) == {"a.wav": expected}
    events = event_formats.match_files(event_formats.read_events(tmp_path), ["a.wav"])
    assert events[["file", "onset", "offset", "label"]].to_numpy().tolist() == [["a.wav", *row] for row in expected]


def test_frequencies_of_warbler_are_in_kilohertz(tmp_path):
    wav(tmp_path / "a.wav", rate=10_000)
    (tmp_path / "a.csv").write_text("sound.files,selec,start,end,bottom.freq,top.freq\na.wav,1,0.5,1,1.2,3.4\n")
    assert build_index(tmp_path)[0].annotations[["low_hz", "high_hz"]].to_numpy().tolist() == [[1200, 3400]]


@pytest.mark.parametrize("label", ["nocall", "No call", "no_call", "Background"])
def test_rows_that_say_that_there_is_no_call(tmp_path, label):
    """BirdNET writes one for a recording in which it found nothing."""
    for name in ("a", "b"):
        wav(tmp_path / f"{name}.wav")
        row = [1, "Spectrogram 1", 1, 0, 3, 0, 15000, label if name == "a" else "Wren", "x", 1.0, f"/x/{name}.wav", 0]
        raven(tmp_path / f"{name}.BirdNET.selection.table.txt", [row], BIRDNET)
    labeller = Labeller(build_index(tmp_path)[0], task="context")
    assert labeller.classes == ("background", "Wren")
    assert [labeller(i, np.array([0, 1000, 2000])).tolist() for i in (0, 1)] == [[0, 0], [1, 1]]
    assert event_formats.read_events(tmp_path).label.tolist() == ["Wren"]


def test_a_selection_in_two_views_is_one_call(tmp_path):
    """Raven gives the waveform's row the frequencies from 0 to half of the rate."""
    wav(tmp_path / "a.wav")
    views = [("Waveform 1", 0.0, 500.0), ("Spectrogram 1", 100.0, 200.0), ("Spectrogram 2", 100.0, 200.0)]
    raven(tmp_path / "a.txt", [selection(0.5, 1.0, "x", 1, *view) for view in views])
    found, report = build_index(tmp_path)
    assert found.annotations[["start", "stop", "low_hz", "high_hz"]].to_numpy().tolist() == [[500, 1000, 100, 200]]
    assert report["reason"].tolist() == ["duplicate"] * 2 and found.rows["Annotations.csv"] == {
        "read": 3,
        "kept": 1,
        "dropped": 2,
    }


def test_labels_are_those_of_the_first_column_that_has_any(tmp_path):
    wav(tmp_path / "a.wav")
    header = [*HEADER, "Species", "Notes"]
    raven(tmp_path / "a.txt", [[*selection(i, i + 0.5, ""), "x", "faint"] for i in range(2)], header)
    assert indexed(tmp_path)[0] == {"a.wav": [(0, 0.5, "x"), (1, 1.5, "x")]}
    assert indexed(tmp_path, label_column="NOTES")[0] == {"a.wav": [(0, 0.5, "faint"), (1, 1.5, "faint")]}


def test_a_table_of_other_recordings_says_nothing_of_its_own(tmp_path):
    """a.wav was renamed: that its table's rows are of old.wav does not make all of it background."""
    for name in ("a", "b"):
        wav(tmp_path / f"{name}.wav")
    raven(tmp_path / "a.txt", [[*selection(0.5, 1, "x"), "old.wav"]], [*HEADER, "Begin File"])
    raven(tmp_path / "b.txt", [selection(0.5, 1, "x")])
    found, report = build_index(tmp_path)
    assert Labeller(found).known.tolist() == [False, True]
    assert report[["line", "reason", "file"]].to_numpy().tolist() == [[2, "no such recording", "a.txt"], [0, "no table", "a.wav"]]


def test_a_call_that_goes_on_in_the_next_recording(tmp_path):
    for name in ("r1", "r2"):
        wav(tmp_path / f"{name}.wav")
    header = ["Begin Time (s)", "End Time (s)", "Begin File", "End File", "File Offset (s)", "Annotation"]
    raven(tmp_path / "all.txt", [[2.5, 3.7, "r1.wav", "r2.wav", 2.5, "x"], [5, 5.5, "r2.wav", "r2.wav", 2, "x"]], header)
    found, report = build_index(tmp_path)
    assert calls(tmp_path) == {"r1.wav": [(2.5, 3.0, "x")], "r2.wav": [(2.0, 2.5, "x")]}
    assert Labeller(found)(1, np.array([0, 1000, 2000, 2500])).tolist() == [-100, -100, 1]  # its end lies in the first 0.7 s
    assert report["reason"].tolist() == ["goes on in another recording", "past the end"]


@pytest.mark.parametrize("layout", ["audio/{}/rec.wav tables/{}/rec.txt", "{}/audio/rec.wav {}/annotations/rec.txt"])
def test_folders_of_tables_beside_those_of_recordings(tmp_path, layout):
    for site in ("s1", "s2"):
        recording, table = (tmp_path / name.format(site) for name in layout.split())
        wav(recording)
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(f"0.5\t1.0\t{site}\n")
    found = calls(tmp_path)
    assert {file: [label for *_, label in rows] for file, rows in found.items()} == {
        layout.split()[0].format(site): [site] for site in ("s1", "s2")
    }


def test_recordings_whose_names_end_like_tables(tmp_path):
    for name in ("bat_labels", "Table 3", "index", "index.1"):
        wav(tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.txt").write_text(f"0.5\t1.0\t{name}\n")
    wav(tmp_path / "bat.wav")
    (tmp_path / "bat_labels.selections.txt").write_text("1.5\t2.0\tmore\n")
    (tmp_path / "recordings.csv").write_text("file,onset,offset,label\nbat.wav,0.5,1,y\n")
    found = {file: [label for *_, label in rows] for file, rows in calls(tmp_path, data_format="mixed").items()}
    assert found == {f"{name}.wav": [name] for name in ("Table 3", "index", "index.1")} | {
        "bat.wav": ["y"],
        "bat_labels.wav": ["bat_labels", "more"],
    }


def test_cells_of_several_lines(tmp_path):
    wav(tmp_path / "a.wav")
    (tmp_path / "a.csv").write_text('onset_s,offset_s,label,notes\n0.5,1,"x\ny","loud,\n\n""good"""\n1.5,2,01,"\n')
    kept, report = indexed(tmp_path, "generic")
    assert kept == {"a.wav": [(0.5, 1.0, "x\ny"), (1.5, 2.0, "01")]} and not report


@pytest.mark.parametrize(
    ("texts", "days"),
    [
        (["01/06/2023", "13/06/2023"], ["2023-06-01", "2023-06-13"]),
        (["01/06/2023", "06/13/2023"], ["2023-01-06", "2023-06-13"]),
        (["01.06.2023 21:00:00", "2.6.2023"], ["2023-06-01", "2023-06-02"]),
        (["01/06/2023", "02/06/2023"], []),
        (["13/06/2023", "06/13/2023", "2023/06/01"], ["2023-06-01"]),
        (["", "5", "next week"], []),
    ],
)
def test_the_order_of_day_and_month(texts, days):
    found = earliest(list(enumerate(texts)))
    assert [str(pd.Timestamp(day).date()) for day in found.values()] == days


def test_a_layer_as_text_is_no_label_track(tmp_path):
    """Sonic Visualiser's columns are time, value, duration, label: the value is no end."""
    (tmp_path / "a.txt").write_text("0.5\t440\t0.25\tx\n1.5\t450\t0.25\ty\n")
    with pytest.raises(NotATable, match="save a layer of Sonic Visualiser as .svl"):
        read(tmp_path / "a.txt", "audacity")
    wav(tmp_path / "a.wav")
    code, text = run("index", tmp_path)
    assert code == 2 and text.splitlines()[-1].startswith(f"error: {tmp_path / 'a.txt'}: its first three columns are numbers")
    (tmp_path / "a.txt").write_text("0.5\t1\t2\n1.5\t2\tx\t3\n")
    assert [row[3] for row in read(tmp_path / "a.txt").rows] == ["2", "x\t3"]


@pytest.mark.parametrize(
    "text", ["filename,start,end,site\na.wav,2023-06-01 21:00,2023-06-01 21:01,s1\n", "file,start,duration,type\na,21:00,60,x\n"]
)
def test_lists_of_recordings_are_no_annotations(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(NotATable):
        recognise(tmp_path / "list.csv")


def test_evaluation_knows_the_time_expansion_of_detection(tmp_path):
    """The reference has the slow seconds of its program, detection wrote true ones."""
    for factor, options in (("10", []), ("", ["--time-expansion", 10]), ("10", ["--time-expansion", 10])):
        (tmp_path / "found").mkdir(exist_ok=True)
        (tmp_path / "found" / "events.csv").write_text("file,onset,offset,label,score\n/x/a.wav,0.2,0.4,x,0.9\n")
        (tmp_path / "found" / "recordings.csv").write_text(f"file,duration,time_expansion\n/x/a.wav,1.0,{factor}\n")
        raven(tmp_path / "a.txt", [selection(2.0, 4.0, "x")])
        for estimated in ("found", "found/events.csv"):
            code, text = run("evaluate", "--reference", tmp_path / "a.txt", "--estimated", tmp_path / estimated, *options)
            assert code == 0 and "event F1              1.000" in text
    # A program's table of what was found has the slow seconds too, detection's own among them.
    (tmp_path / "truth.csv").write_text("file,onset,offset,label\n/x/a.wav,0.2,0.4,x\n")
    words = ["--recordings", tmp_path / "found" / "recordings.csv"]
    code, text = run("evaluate", "--reference", tmp_path / "truth.csv", "--estimated", tmp_path / "a.txt", *words)
    assert code == 0 and "event F1              1.000" in text
    (tmp_path / "found" / "recordings.csv").write_text("file,duration\n/x/a.wav,1.0\n")
    code, text = run("evaluate", "--reference", tmp_path / "a.txt", "--estimated", tmp_path / "found")
    assert "warning: " in text and "1 of 1 events begin after the end of their recording; was it slowed down?" in text


def test_an_index_follows_its_tables(tmp_path):
    wav(tmp_path / "a.wav")
    (tmp_path / "mine.csv").write_text("filename,start,end,label\na.wav,0.5,1.0,x\n")
    assert len(open_collection(tmp_path).annotations) == 1
    (tmp_path / "mine.csv").write_text("filename,start,end,label\na.wav,0.5,1.0,x\na.wav,2.5,2.6,y\n")
    assert open_collection(tmp_path).contexts == ("x", "y")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "cp1252", "mac_roman", "cp850", "cp1251", "shift_jis"])
def test_a_guess_of_the_encoding_is_reported(tmp_path, encoding):
    label = {"cp1251": "мышь", "shift_jis": "コウモリ"}.get(encoding, "Bär")
    wav(tmp_path / "a.wav")
    raven(tmp_path / "a.txt", [selection(0.5, 1, "x"), selection(1.5, 2, label, 2)], HEADER, encoding)
    kept, report = indexed(tmp_path)
    guessed = not encoding.startswith("utf")
    assert report == ([[3, "noted", "not UTF-8"]] if guessed else [])
    assert guessed or kept["a.wav"][1][2] == label
    assert encoding != "cp1252" or kept["a.wav"][1][2] == label


def test_labels_that_look_alike_are_named(tmp_path):
    wav(tmp_path / "a.wav")
    labels = ["bat", "Bat ", "wren", unicodedata.normalize("NFC", "Bär"), unicodedata.normalize("NFD", "Bär")]
    raven(tmp_path / "a.txt", [selection(i / 2, i / 2 + 0.4, label, i + 1) for i, label in enumerate(labels)])
    code, text = run("index", tmp_path)
    line = r"Different classes whose labels look alike: 'Bat ' and 'bat', 'Ba\u0308r' and 'B\xe4r'"
    assert code == 0 and line in text.splitlines() and len(open_collection(tmp_path).contexts) == 5


def test_tables_that_are_not_read_are_named(tmp_path):
    wav(tmp_path / "a.wav")
    for name in ("a.xlsx", "~$a.xlsx", "a.TextGrid"):
        (tmp_path / name).write_bytes(b"PK\3\4")
    code, text = run("index", tmp_path)
    assert code == 2 and "a.TextGrid is Praat's: save it by Down to Table as .txt" in text
    (tmp_path / "a.txt").write_text("tmin\ttier\ttext\ttmax\n0.5\tcalls\tx\t1.0\n")  # what Praat saves then
    kept, report = indexed(tmp_path, None)
    assert kept == {"a.wav": [(0.5, 1.0, "x")]} and [row[1] for row in report] == ["passed over"] * 2


def test_folders_that_links_lead_to(tmp_path):
    for folder in ("here/own", "elsewhere/x"):
        wav(tmp_path / folder / "a.wav")
        (tmp_path / folder / "a.txt").write_text("0.5\t1.0\tx\n")
    (tmp_path / "here" / "link").symlink_to("../elsewhere")
    (tmp_path / "here" / "again").symlink_to("own")  # whose recordings are there once
    (tmp_path / "here" / "own" / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "x" / "round").symlink_to("..")
    assert [str(path.relative_to(tmp_path)) for path in audio.find(tmp_path / "here")] == ["here/link/x/a.wav", "here/own/a.wav"]
    assert calls(tmp_path / "here") == dict.fromkeys(["link/x/a.wav", "own/a.wav"], [(0.5, 1.0, "x")])
    assert len(audio.find(tmp_path / "here" / "again")) == 1  # also itself a link


def test_letter_case_tells_recordings_apart_where_files_do(tmp_path):
    for name in ("a.wav", "A.wav", "b.wav", "B.flac"):
        wav(tmp_path / name)
    for name in ("a.txt", "A.txt", "b.txt", "B.flac.txt"):
        (tmp_path / name).write_text(f"0.5\t1.0\t{name}\n")
    (tmp_path / "more.csv").write_text("file,start,end,label\nA.wav,2,2.5,A\na.wav,2,2.5,a\nB,2,2.5,B\n/x/b.WAV,2,2.5,b\n")
    found = {file: [label for *_, label in rows] for file, rows in calls(tmp_path, data_format="mixed").items()}
    assert found == {"A.wav": ["A.txt", "A"], "B.flac": ["B.flac.txt", "B"], "a.wav": ["a.txt", "a"], "b.wav": ["b.txt", "b"]}


def test_a_recording_whose_calls_all_lie_behind_its_end_is_no_background(tmp_path):
    """Its table may be of the whole night, of which it is a part."""
    for name, text in (("a", "3.5\t4\tx\n100\t101\tx\n"), ("b", "0.5\t1\tx\n3.5\t4\tx\n"), ("c", "")):
        wav(tmp_path / f"{name}.wav")
        (tmp_path / f"{name}.txt").write_text(text)
    found, report = build_index(tmp_path)
    assert Labeller(found).known.tolist() == [False, True, True] and found.recordings["complete"].tolist() == [False, True, True]
    assert report["reason"].tolist() == ["past the end"] * 3


def test_label_tracks_of_birdnet_have_a_confidence(tmp_path):
    wav(tmp_path / "a.wav")
    text = "0.5\t1.0\tEurasian Wren, Troglodytes troglodytes\t0.91\n1.5\t2.0\tEurasian Wren, Troglodytes troglodytes\t0.1132\n"
    (tmp_path / "a.BirdNET.results.txt").write_text(text)
    label = "Eurasian Wren, Troglodytes troglodytes"
    assert calls(tmp_path) == {"a.wav": [(0.5, 1.0, label), (1.5, 2.0, label)]}
    assert event_formats.read_events(tmp_path / "a.BirdNET.results.txt").score.tolist() == [0.91, 0.1132]
    (tmp_path / "a.BirdNET.results.txt").write_text("0,5;1,0;x, y\n1,5;2;01\n")
    assert calls(tmp_path) == {"a.wav": [(0.5, 1.0, "x, y"), (1.5, 2.0, "01")]}


def test_boxes_of_sonic_visualiser(tmp_path):
    wav(tmp_path / "a.wav", rate=10_000)
    layer = '<sv><data><model sampleRate="10000" subtype="box"/><dataset>{}</dataset></data></sv>'
    (tmp_path / "a.svl").write_text(layer.format('<point frame="5000" value="1000" duration="5000" extent="500" label="x"/>'))
    assert calls(tmp_path) == {"a.wav": [(0.5, 1.0, "x")]}
    assert open_collection(tmp_path).annotations[["low_hz", "high_hz"]].to_numpy().tolist() == [[1000, 1500]]


@pytest.mark.parametrize(
    ("low", "high", "band"),
    [
        ("1000", "2000,5", [1000, 2000.5]),
        ("1,234", "2,345", None),
        ("1.234,5", "2", [None, 2]),
        ("3000", "2000", None),
        ("x", "", None),
    ],
)
def test_bands_that_cannot_be_read_in_one_way_are_none(tmp_path, low, high, band):
    wav(tmp_path / "a.wav", rate=10_000)
    raven(tmp_path / "a.txt", [selection(0.5, 1.0, "x", low=low, high=high)])
    found = build_index(tmp_path)[0].annotations[["low_hz", "high_hz"]].iloc[0]
    assert [None if np.isnan(value) else value for value in found] == (band or [None, None])


def test_tables_of_corrected_calls_and_of_other_programs(tmp_path):
    wav(tmp_path / "a.wav")
    raven(tmp_path / "a.Table.1.selections_corrected.txt", [selection(0.5, 1, "x")])
    (tmp_path / "a.json").write_text('{"annotations": [{"id": 1, "bbox": [1, 2, 3, 4]}]}')
    pd.DataFrame({"filename": ["a.wav"], "start": [1.5], "end": [2.0], "label": ["01"]}).to_parquet(tmp_path / "mine.parquet")
    assert calls(tmp_path, data_format="mixed") == {"a.wav": [(0.5, 1.0, "x"), (1.5, 2.0, "01")]}


def test_dates_are_those_of_the_recorders_clock():
    texts = [
        "2023-06-02T00:30:00+02:00",
        "2023-06-02T23:30:00-0500",
        "2023/06/02 23:30:00.5Z",
        "2023-06-02 00:30:00 UTC",
        "2023-06-02",
    ]
    assert {date.date().isoformat() for date in earliest(list(enumerate(texts))).values()} == {"2023-06-02"}
    assert len(earliest(list(enumerate(texts)))) == 5


def test_times_as_clocks_show_them(tmp_path):
    """Spreadsheets make hh:mm:ss of seconds. What may be minutes or hours is none; and a time of the day lies past the end."""
    wav(tmp_path / "a.wav", seconds=70)
    times = [
        ("00:00:00.500", "0:00:01"),
        ("0:01:02,5", "00:01:03"),
        ("01:04.25", "1:05,5"),
        ("1:06", "1:07"),
        ("21:00:01", "21:00:02"),
    ]
    raven(tmp_path / "a.txt", [selection(*pair, "x", i) for i, pair in enumerate(times)])
    kept, report = indexed(tmp_path)
    assert kept == {"a.wav": [(0.5, 1.0, "x"), (62.5, 63.0, "x"), (64.25, 65.5, "x")]}
    assert report == [[2, "noted", "clock times"], [5, "dropped", "unparsable number"], [6, "dropped", "past the end"]]


def test_times_beside_a_file_name_count_from_its_start(tmp_path):
    """Only Raven lays recordings end to end; the tables of published soundscapes have a Filename."""
    for name in ("a", "b", "c"):
        wav(tmp_path / f"{name}.wav", seconds=10)
    (tmp_path / "annotations.csv").write_text(
        "Filename,Start Time (s),End Time (s),Low Freq (Hz),High Freq (Hz),Species eBird Code\n"
        "a.flac,1,2,100,200,amerob\nb.flac,3,4,100,200,????\nc.flac,20,21,100,200,amerob\n"
    )
    kept, report = indexed(tmp_path, None)
    assert kept == {"a.wav": [(1.0, 2.0, "amerob")], "b.wav": [(3.0, 4.0, "????")]}
    assert report == [[4, "dropped", "past the end"]]


@pytest.mark.parametrize(
    ("text", "label", "band"),
    [
        (
            "ID,Label,Accepted,Score,Begin Time (s),End Time (s),Low Freq (kHz),High Freq (kHz)\n1,USV,1,0.9,0.5,1,50.5,70\n",
            "USV",
            [50500, 70000],
        ),
        ("#,start,end,duration,maxfreq\n1,0.5,1,500,60\n", "call", [None, None]),
        ("name,start_seconds,stop_seconds\nsine,0.5,1\n", "sine", [None, None]),
        ("recording_id,songtype_id,species_id,t_min,f_min,t_max,f_max\na,1,14,0.5,1,1,2\n", "14", [None, None]),
    ],
)
def test_tables_of_programs_for_rodents_and_songs(tmp_path, text, label, band):
    wav(tmp_path / "a.wav")
    (tmp_path / "a.csv").write_text(text)
    found = build_index(tmp_path)[0]
    assert calls(tmp_path) == {"a.wav": [(0.5, 1.0, label)]}
    assert [None if np.isnan(value) else value for value in found.annotations[["low_hz", "high_hz"]].iloc[0]] == band


@pytest.mark.parametrize(
    ("name", "text", "label", "score"),
    [
        ("a_scores.txt", "0.5\t1\tCOYE;0.91\n", "COYE", 0.91),
        ("a_scores.txt", "0.5\t1\tCOYE;x\n", "COYE;x", None),
        ("scores.csv", "recording,name,start_time,end_time,score\na,COYE,0.5,1,0.912\n", "COYE", 0.912),
        ("output.csv", "File;Start (sec);End (sec);Class;Probability\na.wav;0,5;1;Blue Tit;0,42\n", "Blue Tit", 0.42),
        ("table.tsv", "filename\tt_start\tt_end\tprediction\tp\na.wav\t0.5\t1\tWren\t0.9\n", "Wren", None),
        ("detections.csv", "idx,filename,window_start,window_end,label,logits\n1,a.wav,0.5,1,comrav,1.23\n", "comrav", None),
    ],
)
def test_detections_of_other_programs(tmp_path, name, text, label, score):
    wav(tmp_path / "a.wav")
    (tmp_path / name).write_text(text)
    assert calls(tmp_path) == {"a.wav": [(0.5, 1.0, label)]}
    assert [None if np.isnan(one) else one for one in event_formats.read_events(tmp_path / name).score] == [score]


def test_a_row_that_names_a_recording_and_nothing_else_is_not_blank(tmp_path):
    for name in ("a", "b"):
        wav(tmp_path / f"{name}.wav")
    (tmp_path / "all.csv").write_text("filename,start,end,label\na.wav,0.5,1,x\nb.wav,,,\n,,,\n")
    kept, report = indexed(tmp_path, None)
    assert kept == {"a.wav": [(0.5, 1.0, "x")]}
    assert report[:2] == [[3, "dropped", "blank field"], [4, "dropped", "blank row"]]
    assert Labeller(open_collection(tmp_path)).known.tolist() == [True, False]


def test_labels_with_separators_that_nobody_quoted(tmp_path):
    wav(tmp_path / "a.wav")
    (tmp_path / "a.csv").write_text("start,end,label\n0.5,1,song, long\n1.5,2,x,,\n")
    kept, report = indexed(tmp_path, None)
    assert kept == {"a.wav": [(0.5, 1.0, "song, long"), (1.5, 2.0, "x")]}
    assert report == [[2, "noted", "more cells than columns"]]


def test_bare_names_mean_the_recordings_of_the_nearest_folder(tmp_path):
    for site in ("s1", "s2", "s3"):
        wav(tmp_path / "audio" / site / "001.wav")
        (tmp_path / "meta" / site).mkdir(parents=True)
        (tmp_path / "meta" / site / "labels.csv").write_text(f"filename,start,end,label\n001.wav,0.5,1,{site}\n")
    wav(tmp_path / "audio" / "s1" / "002.wav")
    wav(tmp_path / "audio" / "s2" / "deep" / "003.wav")
    text = "filename,start,end,label\n{}.wav,1.5,2,more\n"
    (tmp_path / "audio" / "s2" / "mine.csv").write_text(text.format("002"))  # of s2, where it is missing
    (tmp_path / "audio" / "s2" / "others.csv").write_text(text.format("003"))
    kept, report = indexed(tmp_path, None)
    assert kept == {f"audio/{site}/001.wav": [(0.5, 1.0, site)] for site in ("s1", "s2", "s3")} | {
        "audio/s2/deep/003.wav": [(1.5, 2.0, "more")]
    }
    assert [row for row in report if row[1] == "dropped"] == [[2, "dropped", "no such recording"]]


@pytest.mark.parametrize("name", ["a.Table.1.selections (1).txt", "a.Table.1.selections.txt.txt", "a_annotations_2.csv.txt"])
def test_names_that_systems_lengthen(tmp_path, name):
    wav(tmp_path / "a.wav")
    raven(tmp_path / name, [selection(0.5, 1, "x")])
    assert calls(tmp_path) == {"a.wav": [(0.5, 1.0, "x")]}


def test_references_are_of_the_recordings_that_were_searched(tmp_path):
    """bat_labels.txt is of bat_labels.wav, or else of bat.wav; a program's results beside annotations are a question."""
    (tmp_path / "bat_labels.txt").write_text("0.5\t1.0\tx\n")
    for recordings, own in ((["/x/bat_labels.wav", "/x/bat.wav"], "bat_labels"), (["/x/bat.wav"], "bat"), ([], "bat")):
        assert event_formats.read_events(tmp_path / "bat_labels.txt", recordings=recordings).file.tolist() == [own]
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "events.csv").write_text("file,onset,offset,label,score\n/x/bat_labels.wav,0.5,1,x,0.9\n")
    (tmp_path / "found" / "recordings.csv").write_text("file,duration\n/x/bat_labels.wav,3\n/x/bat.wav,3\n")
    run_it = ("evaluate", "--reference", tmp_path, "--estimated", tmp_path / "found")
    assert "event F1              1.000" in run(*run_it)[1]
    text = "Start (s),End (s),Scientific name,Common name,Confidence,File\n1,2,x,x,0.9,/x/bat_labels.wav\n"
    (tmp_path / "bat_labels.BirdNET.results.csv").write_text(text)
    code, text = run(*run_it)
    tables = "bat_labels.BirdNET.results.csv (birdnet) and bat_labels.txt (audacity)"
    assert code == 2 and text.endswith(f"bat_labels has {tables}; give a folder that holds the tables meant alone\n")


@pytest.mark.parametrize(
    "text",
    [
        'start, end, label\n0.5, 1.0, x\n1.5, 2.0, "y, z"\n',
        "start|end|label\n0.5|1.0|x\n1.5|2|y, z\n",
        "start;end;label;label\n0,5;1,0;;x\n1,5;2,0;;y, z\n",
        'Filename\tstart\tend\tlabel\n"D:\\x\\a.wav"\t0.5\t1\tx\n"D:\\x\\a.wav"\t1.5\t2\ty, z\n',
    ],
)
def test_tables_made_by_hand(tmp_path, text):
    wav(tmp_path / "a.wav")
    (tmp_path / "a.csv").write_text(text)
    assert calls(tmp_path) == {"a.wav": [(0.5, 1.0, "x"), (1.5, 2.0, "y, z")]}


def test_rows_without_seconds_do_not_hide_the_others(tmp_path):
    """crowsetta's sequences may have samples only, and some programs a row of units."""
    wav(tmp_path / "a.wav")
    (tmp_path / "a.csv").write_text("label,onset_s,offset_s,onset_sample\nx,,,500\ny,s,s,\nz,0.5,1.0,\n")
    kept, report = indexed(tmp_path, None)
    assert kept == {"a.wav": [(0.5, 1.0, "z")]}
    assert report == [[2, "dropped", "blank field"], [3, "dropped", "unparsable number"]]


def test_a_reference_without_any_event(tmp_path):
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "events.csv").write_text("file,onset,offset,label,score\na.wav,0.5,1,x,0.9\n")
    (tmp_path / "found" / "recordings.csv").write_text("file,duration\na.wav,3\n")
    (tmp_path / "a.txt").write_text("")
    code, text = run("evaluate", "--reference", tmp_path / "a.txt", "--estimated", tmp_path / "found")
    assert code == 0 and "0 events in the reference, 1 estimated" in text
