import sys

import crowsetta
import numpy as np
import pytest
import soundfile

from tools import index_dataset
from training.collection import build_index, open_collection
from training.labels import Labeller
from training.tables import CollectionError

RATE = 48_000


@pytest.fixture
def folder(tmp_path):
    for name in ("one.wav", "sub/two.flac", "three.WAV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(RATE), RATE)
    return tmp_path


# Calls in one.wav at 0.1 to 0.2 s (song) and 0.5 to 0.75 s (cry), in two.flac at 0 to 1 s (song).
def write_raven(folder):
    header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation\n"
    row = "{}\tSpectrogram 1\t1\t{}\t{}\t1000.0\t9000.0\t{}\n"
    text = header + row.format(1, 0.1, 0.2, "song") + row.format(2, 0.5, 0.75, "cry")
    (folder / "one.Table.1.selections.txt").write_text(text)
    (folder / "sub" / "two.txt").write_text(header + row.format(1, 0.0, 1.0, "song"))


def write_audacity(folder):
    (folder / "one.txt").write_text("0.1\t0.2\tsong\n0.5\t0.75\tcry\n")
    (folder / "sub" / "two.txt").write_text("0.0\t1.0\tsong\n")


def write_generic(folder):
    def annotation(path, onsets, offsets, labels):
        sequence = crowsetta.Sequence.from_keyword(
            labels=np.array(labels), onsets_s=np.array(onsets), offsets_s=np.array(offsets)
        )
        return crowsetta.Annotation(seq=sequence, annot_path="x.csv", notated_path=path)

    annotations = [
        annotation("/elsewhere/one.wav", [0.1, 0.5], [0.2, 0.75], ["song", "cry"]),
        annotation("/elsewhere/sub/two.flac", [0.0], [1.0], ["song"]),
        annotation("three.WAV", [2.0], [1.0], ["cry"]),  # ends before it starts
    ]
    crowsetta.formats.seq.GenericSeq(annots=annotations).to_file(folder / "annotations.csv")


@pytest.mark.parametrize(
    ("name", "write"),
    [("raven", write_raven), ("audacity", write_audacity), ("generic", write_generic)],
)
def test_formats(folder, name, write):
    write(folder)
    found, report = build_index(folder, data_format=name)
    assert found.recordings["file"].tolist() == ["one.wav", "sub/two.flac", "three.WAV"]
    assert found.contexts == ("cry", "song")
    spans = {
        file: found.annotations_of(i)[["start", "stop", "context"]].to_numpy().tolist()
        for i, file in enumerate(found.recordings["file"])
    }
    assert spans == {
        "one.wav": [[4800, 9600, 1], [24_000, 36_000, 0]],
        "sub/two.flac": [[0, 48_000, 1]],
        "three.WAV": [],
    }
    assert found.voice.equals(found.annotations[["recording", "start", "stop"]])
    dropped = 1 if name == "generic" else 0
    assert found.rows["Annotations.csv"] == {"read": 3 + dropped, "kept": 3, "dropped": dropped}
    again = open_collection(folder)
    labeller = Labeller(again, "voice", "context")
    assert labeller.classes == ("background", "cry", "song")
    one = again.recordings["file"].tolist().index("one.wav")
    labels = labeller(one, np.arange(11) * 4800).tolist()
    assert labels == [0, 2, 0, 0, 0, 1, 1, 1, 0, 0]


def test_tables_of_slowed_down_recordings_have_the_slow_seconds(folder):
    write_audacity(folder)
    found, _ = build_index(folder, data_format="audacity", time_expansion=10)
    # 0.1 s of the slow file are 4,800 of its samples, at a true rate of 480 kHz.
    assert found.recordings["samplerate"].tolist() == [480_000] * 3
    assert found.annotations[["start", "stop"]].to_numpy().tolist()[:2] == [[4800, 9600], [24_000, 36_000]]


@pytest.mark.parametrize("name", ["raven", "audacity", "generic"])
@pytest.mark.parametrize("content", ["not a table", "a b c\n1 2 3\n", "\0\0\0"])
def test_where_no_file_is_a_table_one_line_says_so(folder, monkeypatch, capsys, name, content):
    (folder / ("one.csv" if name == "generic" else "one.txt")).write_text(content)
    monkeypatch.setattr(sys, "argv", ["index_dataset", str(folder), "--format", name])
    code, (out, err) = index_dataset.main(), capsys.readouterr()
    assert code == 2 and not out
    said = err.replace("\r", "\n").splitlines()  # after the progress bar of the headers
    assert said[-1].startswith(f"error: {folder / 'one.'}") and sum("error" in line for line in said) == 1
    assert not list(folder.glob("*.parquet"))


def test_annotations_without_a_recording_are_reported(folder):
    write_audacity(folder)
    (folder / "four.txt").write_text("0.1\t0.2\tsong\n")
    found, report = build_index(folder, data_format="audacity")
    assert found.rows["Annotations.csv"] == {"read": 4, "kept": 3, "dropped": 1}
    dropped = report[report["action"] == "dropped"]
    assert dropped[["file", "line", "reason"]].to_numpy().tolist() == [["four.txt", 1, "no such recording"]]


def test_a_folder_without_tables_is_refused(folder):
    with pytest.raises(CollectionError, match="no generic tables"):
        build_index(folder, data_format="generic")
