"""Every format that tools.event_formats writes is read back, the programs' by their own libraries."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import crowsetta
import numpy as np
import pandas as pd
import pytest
import sed_eval

from denet_torch.detection import Decoding, event_table
from tools import event_formats
from tools.detect_batch import Part, Results

FILES = ["in/a.WAV", "in/quiet.wav", "in/sub/a b.wav"]
EVENTS = [
    ("in/a.WAV", 0.05, 0.25, "call", 0.75),
    ("in/a.WAV", 1.5, 1.55, "ünknown", 0.5),
    ("in/sub/a b.wav", 0.0, 0.017, "call", 0.999),
]
LABELS = ["background", "call", "ünknown"]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recordings = [(file, 2.0 + i, 250_000, 0) for i, file in enumerate(FILES)]
    parts = {}
    for i, file in enumerate(FILES):
        pieces = np.random.default_rng(i).dirichlet([1, 1, 1], 4).astype("float32")
        np.save(f"{i}-0.npy", pieces[:3])
        np.save(f"{i}-3.npy", pieces[3:])
        bounds = ((0, 3), (3, 4))
        parts |= {file: [Part(file, a, b, tmp_path / f"{i}-{a}.npy") for a, b in bounds]}
    return Results(
        event_table(EVENTS),
        pd.DataFrame(recordings, columns=["file", "duration", "samplerate", "events"]),
        {},
        {event_formats.Path(file): pieces for file, pieces in parts.items()},
        LABELS,
        0.05,
        Decoding(),
        0.1,
    )


def written(results, name, folder, **how):
    event_formats.write(results, folder, [name], **how)
    return folder / name


def spans(rows):
    return [(float(a), float(b), str(label)) for a, b, label in rows]


OF_A, OF_B = [(0.05, 0.25, "call"), (1.5, 1.55, "ünknown")], [(0.0, 0.017, "call")]


@pytest.mark.parametrize("name", ["events.csv", "events.parquet"])
def test_events(results, tmp_path, name):
    path = tmp_path / "out" / name
    event_formats.write(results, tmp_path / "out", [name] if "parquet" in name else [])
    table = pd.read_parquet(path) if "parquet" in name else pd.read_csv(path)
    pd.testing.assert_frame_equal(table, results.events, check_dtype=False)
    recordings = pd.read_csv(tmp_path / "out" / "recordings.csv")
    pd.testing.assert_frame_equal(recordings, results.recordings.assign(time_expansion=1), check_dtype=False)


@pytest.mark.parametrize("name", ["frames.csv", "frames.parquet"])
def test_frames(results, tmp_path, name):
    path = written(results, name, tmp_path / "out")
    table = pd.read_parquet(path) if "parquet" in name else pd.read_csv(path)
    assert list(table.columns) == ["file", "onset", *LABELS]
    assert table.file.tolist() == [file for file in FILES for _ in range(4)]
    assert table.onset.tolist() == [0, 0.05, 0.1, 0.15] * 3
    expected = np.concatenate([results.probabilities(file) for file in FILES])
    np.testing.assert_allclose(table[LABELS], expected, atol=1e-6)


def test_raven(results, tmp_path):
    folder = written(results, "raven", tmp_path / "out")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.txt")}
    tables = ["a.Table.1.selections.txt", "sub/a b.Table.1.selections.txt"]
    assert names == {*tables, "combined.txt"}
    for name, expected in zip(tables, (OF_A, OF_B), strict=True):
        boxes = crowsetta.formats.bbox.Raven.from_file(folder / name).to_bbox()
        assert spans((box.onset, box.offset, box.label) for box in boxes) == expected
        assert {(box.low_freq, box.high_freq) for box in boxes} == {(0, 125_000)}


def test_raven_pages_through_all_recordings(results, tmp_path):
    path = written(results, "raven", tmp_path / "out") / "combined.txt"
    boxes = crowsetta.formats.bbox.Raven.from_file(path).to_bbox()
    assert [box.onset for box in boxes] == [0.05, 1.5, 5.0]  # 2 s and 3 s lie before the third file
    table = pd.read_csv(path, sep="\t")
    assert table["File Offset (s)"].tolist() == [0.05, 1.5, 0.0]
    assert table["Begin Path"].tolist() == [str(tmp_path / row[0]) for row in EVENTS]
    assert table["Selection"].tolist() == [1, 2, 3]


def test_audacity(results, tmp_path):
    folder = written(results, "audacity", tmp_path / "out")
    for name, expected in (("a.txt", OF_A), ("sub/a b.txt", OF_B)):
        track = crowsetta.formats.seq.AudSeq.from_file(folder / name)
        found = zip(track.start_times, track.end_times, track.labels, strict=True)
        assert spans(found) == expected


def test_generic_sequence(results, tmp_path):
    folder = written(results, "sequence", tmp_path / "out")
    annotations = crowsetta.formats.seq.GenericSeq.from_file(folder / "events.csv").annots
    assert [str(annotation.notated_path) for annotation in annotations] == [FILES[0], FILES[2]]
    for annotation, expected in zip(annotations, (OF_A, OF_B), strict=True):
        found = ((s.onset_s, s.offset_s, s.label) for s in annotation.seq.segments)
        assert spans(found) == expected


def test_svl(results, tmp_path):
    folder = written(results, "svl", tmp_path / "out")
    text = (folder / "a.svl").read_text(encoding="utf-8")
    assert "<!DOCTYPE sonic-visualiser>" in text and 'sampleRate="250000"' in text
    assert 'frame="12500"' in text and 'duration="50000"' in text
    layer = ElementTree.fromstring(text.encode()).find("display/layer")
    assert layer.get("plotStyle") == "1"  # 0, the program's own choice, draws lines behind the waveform
    for name, events in (("a.svl", EVENTS[:2]), ("sub/a b.svl", EVENTS[2:])):
        table = event_formats.read_events(folder / name)
        assert spans(table[["onset", "offset", "label"]].values) == spans(r[1:4] for r in events)
        assert table.score.tolist() == [event[4] for event in events]


def test_svl_holds_no_letter_that_xml_cannot(results, tmp_path):
    odd = replace(results, events=results.events.assign(label="a\x1b[2J\x00 \uffffb\tc"))
    event_formats.write(odd, tmp_path, ["svl"])
    assert {*event_formats.read_events(tmp_path / "svl" / "a.svl").label} == {"a\ufffd[2J\ufffd \ufffdb\tc"}


def test_ann(results, tmp_path):
    folder = written(results, "ann", tmp_path / "out")
    for name, expected in (("a.ann", OF_A), ("sub/a b.ann", OF_B)):
        found = sed_eval.io.load_event_list(str(folder / name))
        assert [(event.onset, event.offset) for event in found] == [e[:2] for e in expected]


def test_birdnet_and_kaleidoscope(results, tmp_path):
    bands = results.events.assign(low_hz=[2000.0, np.nan, 500.0], high_hz=[4000.5, np.nan, 900.0])
    began = ["2023-06-01 21:00:00.000", "", "2023-06-02 03:10:00.000"]
    results = Results(**{**vars(results), "events": bands, "recordings": results.recordings.assign(began=began)})
    folder = written(results, "birdnet", tmp_path / "out")
    table = pd.read_csv(folder / "sub" / "a b.BirdNET.results.csv")
    assert list(table) == ["Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File"]
    assert table.iloc[0].tolist() == [0, 0.017, "call", "call", 0.999, str(tmp_path / FILES[2])]
    path = written(results, "kaleidoscope", tmp_path / "out") / "kaleidoscope.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    first = table.iloc[0][["IN FILE", "OFFSET", "DURATION", "Fmin", "Fmax"]]
    assert first.tolist() == ["a.WAV", "0.05", "0.2", "2000.0", "4000.5"]
    assert table.iloc[2][["DATE", "TIME", "HOUR"]].tolist() == ["2023-06-02", "03:10:00", "03"]
    assert [Path(row["INDIR"]) / row["FOLDER"] / row["IN FILE"] for _, row in table.iterrows()] == [
        tmp_path / event[0] for event in EVENTS
    ]
    read = event_formats.read_events(path)
    assert read.label.tolist() == [event[3] for event in EVENTS]
    assert read.offset.tolist() == pytest.approx([event[2] for event in EVENTS])


def test_ravens_boxes_are_those_of_the_events(results, tmp_path):
    bands = results.events.assign(low_hz=[2000.0, np.nan, 500.0], high_hz=[4000.5, np.nan, 900.0])
    folder = written(Results(**{**vars(results), "events": bands}), "raven", tmp_path / "out", time_expansion=10)
    boxes = crowsetta.formats.bbox.Raven.from_file(folder / "a.Table.1.selections.txt").to_bbox()
    assert [(box.low_freq, box.high_freq) for box in boxes] == [(200, 400.05), (0, 12_500)]


def test_programs_get_the_times_and_rates_of_the_slow_file(results, tmp_path):
    folder = written(results, "raven", tmp_path / "out", time_expansion=10)
    table = pd.read_csv(folder / "a.Table.1.selections.txt", sep="\t")
    assert table["Begin Time (s)"].tolist() == [0.5, 15]
    assert set(table["High Freq (Hz)"]) == {12_500}
    folder = written(results, "svl", tmp_path / "out", time_expansion=10)
    assert event_formats.read_events(folder / "a.svl").offset.tolist() == [2.5, 15.5]
    assert pd.read_csv(tmp_path / "out" / "events.csv").onset.tolist() == [0.05, 1.5, 0]


def test_written_again_leaves_nothing_old(results, tmp_path):
    written(results, "audacity", tmp_path / "out")
    fewer = Results(**{**vars(results), "events": results.events[:2]})
    folder = written(fewer, "audacity", tmp_path / "out")
    assert [path.name for path in folder.rglob("*.txt")] == ["a.txt"]


@pytest.mark.parametrize("name", list(event_formats.PROGRAMS | event_formats.TABLES))
def test_no_events_at_all(results, tmp_path, name):
    silent = Results(**{**vars(results), "events": event_table([])})
    assert written(silent, name, tmp_path / "out").exists()


def test_names_that_differ_in_the_suffix_only_keep_their_own_files(results, tmp_path):
    rows = [("in/a.WAV", 0, 1, "call", 1), ("in/a.flac", 0, 2, "call", 1)]
    recordings = results.recordings[:2].assign(file=["in/a.WAV", "in/a.flac"])
    both = Results(**{**vars(results), "events": event_table(rows), "recordings": recordings})
    folder = written(both, "audacity", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"a.txt", "a.flac.txt"}


@pytest.mark.parametrize("text", ["", "no xml", "<sv><data/></sv>", "<sv><data><model/></data></sv>"])
def test_what_is_no_layer_is_one_line(tmp_path, text):
    (tmp_path / "a.svl").write_text(text)
    with pytest.raises(ValueError, match=r"a\.svl: is no layer") as error:
        event_formats.read_events(tmp_path / "a.svl")
    assert "\n" not in str(error.value)
