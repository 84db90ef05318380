"""Whatever stands in a table: no traceback, rows read = rows kept + rows reported, labels as written, times to the sample.

And what tools.detect writes, the index and tools.evaluate read back as the same events.
"""

import csv
import io
import math
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denet_torch.detection import Decoding, event_table
from tools import event_formats
from tools.detect_batch import Results
from training.collection import build_index

RATE, SECONDS = 1000, 20
FILES = ["a.wav", "b.wav"]
FIELD = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

number = st.one_of(
    st.integers(-5_000, SECONDS * 1000 + 5_000).map(lambda n: n / 1000),
    st.integers(0, SECONDS).map(float),
    st.sampled_from([0.0, -0.0004, 19.9999, 1e300, math.nan, math.inf]),
)
cell = st.one_of(number, number, number, st.sampled_from(["", " ", "x", "1.2.3", "1_0", "0x1", "--", "None", "²"]))
# No quote at the start: there a cell's own and a spreadsheet's cannot be told apart.
known = st.sampled_from(
    ["01", "1", "1.10", "1.1", "NA", "nan", "None", "a b", "Große", 'he said "hi"', "a, b", "a;b", "1,5", "-", "'x"]
)
letters = st.characters(codec="cp1252", exclude_categories=("Cc", "Zl", "Zp"), exclude_characters='"')
label = st.one_of(known, known, st.text(letters, max_size=6))
row = st.tuples(st.sampled_from(FILES), cell, cell, label)
rows = st.lists(row, max_size=8)
style = st.fixed_dictionaries(
    {
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
        "newline": st.sampled_from(["\n", "\r\n"]),
        "comma": st.booleans(),
        "separator": st.sampled_from(",;\t"),
    }
)


def as_text(value, comma: bool) -> str:
    """A number with four decimals or none, or the text that it is."""
    if isinstance(value, str):
        return value
    text = f"{value:.0f}" if value == value and abs(value) < 1e6 and value == int(value) else f"{value:.4f}"
    return text.replace(".", ",") if comma else text


def expected(drawn: list) -> set:
    """What of the rows is a call, as file, first and last sample and label."""
    unlabelled = not any(label.strip() for *_, label in drawn)  # then all are of calls
    found = set()
    for file, onset, offset, label in drawn:
        if isinstance(onset, str) or isinstance(offset, str) or not (math.isfinite(onset) and math.isfinite(offset)):
            continue
        if max(abs(onset), abs(offset)) > 1e9 or not onset < offset or offset <= 0 or not (label.strip() or unlabelled):
            continue
        onset, offset = (float(f"{value:.4f}") for value in (onset, offset))
        start = round(max(0, onset) * RATE)
        if onset < offset and start < SECONDS * RATE:
            stop = min(SECONDS * RATE, max(round(offset * RATE), start + 1))
            found.add((file, start, stop, label if label.strip() else "call"))
    return found


def check(folder: Path, data_format: str, drawn: list) -> None:
    found, report = build_index(folder, data_format=data_format, completely_annotated=True)
    dropped = report[(report["table"] == "Annotations.csv") & (report["action"] == "dropped")]
    assert len(drawn) == len(found.annotations) + len(dropped) == found.rows["Annotations.csv"]["read"]
    assert (dropped["line"] > 0).all() and (dropped["file"] != "").all() and (dropped["reason"] != "").all()
    files = found.recordings["file"].tolist()
    calls = {
        (files[one.recording], one.start, one.stop, found.contexts[one.context]) for one in found.annotations.itertuples()
    }
    assert calls == expected(drawn)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for name in FILES:
        soundfile.write(folder / name, np.zeros(SECONDS * RATE), RATE)
    return folder


def in_folder(sounds: Path, name: str, lines: list[str], how: dict) -> tempfile.TemporaryDirectory:
    """A collection with one more file."""
    folder = tempfile.TemporaryDirectory()
    for file in FILES:
        (Path(folder.name) / file).symlink_to(sounds / file)
    text = "".join(line + how["newline"] for line in lines)
    (Path(folder.name) / name).write_bytes(text.encode(how["encoding"]))
    return folder


def as_csv(cells: list[str], separator: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="").writerow(cells)
    return text.getvalue()


def one_file(drawn: list) -> list:
    return [("a.wav", *rest) for _, *rest in drawn]


@FIELD
@given(rows, style, st.sampled_from(["Annotation", "Species", "Common Name", "Label"]), st.booleans())
def test_raven(sounds, drawn, how, column, many):
    """Of one recording, or of several that the rows name; as Raven writes it, or a spreadsheet."""
    header = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", column]
    drawn = drawn if many else one_file(drawn)
    lines = ["\t".join(header + ["Begin File", "File Offset (s)"] * many)]
    for i, (file, onset, offset, text) in enumerate(drawn, 1):
        times = [as_text(value, how["comma"]) for value in (onset, offset)]
        cells = [str(i), "Spectrogram 1", "1", *times, str(100 + i), "200.5", text]
        lines.append("\t".join(cells + [file, times[0]] * many))
    name = "all.Table.1.selections.txt" if many else "a.Table.1.selections.txt"
    with in_folder(sounds, name, lines, how) as folder:
        check(Path(folder), "raven", drawn)


@FIELD
@given(rows, style, st.booleans())
def test_audacity(sounds, drawn, how, frequencies):
    lines = []
    for _, onset, offset, text in one_file(drawn):
        lines.append("\t".join([*(as_text(value, how["comma"]) for value in (onset, offset)), text]))
        if frequencies:
            lines.append("\\\t2000.000000\t4000.000000")
    with in_folder(sounds, "a.txt", lines, how) as folder:
        check(Path(folder), "audacity", one_file(drawn))


@FIELD
@given(rows, style)
def test_generic(sounds, drawn, how):
    comma = how["comma"] and how["separator"] != ","
    lines = [as_csv(["label", "onset_s", "offset_s", "notated_path", "annot_path", "sequence", "annotation"], how["separator"])]
    for file, onset, offset, text in drawn:
        times = [as_text(value, comma) for value in (onset, offset)]
        lines.append(as_csv([text, *times, f"/elsewhere/{file}", "calls.csv", "0", "0"], how["separator"]))
    with in_folder(sounds, "calls.csv", lines, how) as folder:
        check(Path(folder), "generic", drawn)


@FIELD
@given(rows, style)
def test_own_events(sounds, drawn, how):
    comma = how["comma"] and how["separator"] != ","
    lines = [as_csv(["file", "onset", "offset", "label", "score"], how["separator"])]
    for file, onset, offset, text in drawn:
        times = [as_text(value, comma) for value in (onset, offset)]
        lines.append(as_csv([file, *times, text, "0.5"], how["separator"]))
    with in_folder(sounds, "events.csv", lines, how) as folder:
        check(Path(folder), "events", drawn)


@FIELD
@given(
    st.binary(max_size=200) | st.text(max_size=100).map(str.encode),
    st.sampled_from(["raven", "audacity", "generic", "events"]),
)
def test_any_bytes_are_a_table_or_passed_over(sounds, content, data_format):
    how = {"newline": "\n", "encoding": "utf-8"}
    good = {
        "raven": ("b.Table.1.txt", ["Begin Time (s)\tEnd Time (s)\tSpecies", "1\t2\tx"]),
        "audacity": ("b.txt", ["1\t2\tx"]),
        "generic": ("b.csv", ["label,onset_s,offset_s,notated_path", "x,1,2,b.wav"]),
        "events": ("b.csv", ["label,onset,offset,file", "x,1,2,b.wav"]),
    }[data_format]
    with in_folder(sounds, *good, how) as folder:
        (Path(folder) / ("a.csv" if good[0].endswith("csv") else "a.txt")).write_bytes(content)
        found, report = build_index(folder, data_format=data_format)
        assert found.annotations_of(1)[["start", "stop"]].to_numpy().tolist() == [[1000, 2000]]
        assert found.rows["Annotations.csv"]["read"] >= 1


# Times as tools.detect has them, to the microsecond, but at whole samples: a layer (.svl) has no others.
sample = st.integers(0, 2 * 250_000 - 1)
text = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=6).filter(str.strip)
event = st.tuples(
    st.sampled_from(["a.WAV", "sub/a.wav", "sub/b ö.wav"]),
    st.tuples(sample, sample).filter(lambda pair: pair[0] != pair[1]),
    st.one_of(known, text),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(event, min_size=1, max_size=6, unique_by=lambda one: (one[0], *sorted(one[1]))), st.sampled_from([1, 10]))
def test_what_detect_writes_is_read_back(drawn, expansion):
    rate = 250_000
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "in"
        files = sorted({file for file, *_ in drawn} | {"quiet.wav"})
        rows = [(str(folder / file), min(ends) / rate, max(ends) / rate, label, 0.5) for file, ends, label in drawn]
        rows = [row for row in rows if row[3].strip().casefold() != "background"]
        events = event_table(sorted(rows))
        recordings = recordings_table([str(folder / file) for file in files], rate)
        results = Results(events, recordings, {}, {}, [], 0.05, Decoding(), 0.1)
        formats = ["events.parquet", *event_formats.PROGRAMS]
        event_formats.write(results, Path(scratch) / "out", formats, expansion)
        paths = {"raven": "raven", "audacity": "audacity", "generic": "sequence", "svl": "svl", "ann": "ann"}
        paths |= {"birdnet": "birdnet", "kaleidoscope": "kaleidoscope"}
        paths |= {"events": "events.csv", "parquet": "events.parquet", "combined": "raven/combined.txt"}
        for name, place in paths.items():
            path = Path(scratch) / "out" / place
            read = event_formats.match_files(event_formats.read_events(path, expansion), recordings["file"])
            assert triples(read) == triples(events), name


def recordings_table(files: list[str], rate: int) -> pd.DataFrame:
    return pd.DataFrame({"file": files, "duration": 2.0, "samplerate": rate, "events": 0})


def triples(events: pd.DataFrame) -> list:
    return sorted(events[["file", "onset", "offset", "label"]].round(6).itertuples(index=False, name=None))


LABELS = ["01", "1.10", "NA", "a b", "a, b", "Größe", 'say "hi"', '"x"', '"a, b"', " x "]


@pytest.mark.parametrize("expansion", [1, 10])
@pytest.mark.parametrize("name", [*event_formats.PROGRAMS, "events.csv", "events.parquet"])
def test_what_detect_writes_is_indexed(tmp_path, name, expansion):
    """Calls of three recordings, two of the same name, at the rates that their slow files' headers have."""
    rate, files = 250_000, ["a.wav", "sub/a.wav", "sub/c ö.flac"]
    rows = []
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / file, np.zeros(2 * rate), rate // expansion)
        rows += [(str(tmp_path / file), 0.1 * i, 0.1 * i + 0.05, label, 0.5) for i, label in enumerate(LABELS)]
    recordings = recordings_table([str(tmp_path / file) for file in files], rate)
    results = Results(event_table(rows).round(6), recordings, {}, {}, [], 0.05, Decoding(), 0.1)
    event_formats.write(results, tmp_path / "out", [] if name == "events.csv" else [name], expansion)
    written = tmp_path / "out" / name
    for path in [written] if written.is_file() else list(written.rglob("*.*")):
        target = tmp_path / (path.name if written.is_file() else path.relative_to(written))
        if path.is_file():
            path.rename(target)
    data_format = {"sequence": "generic", "ann": "audacity", "kaleidoscope": "birdnet"}.get(name, name.partition(".")[0])
    found, _ = build_index(tmp_path, data_format=data_format, time_expansion=expansion)
    assert found.rows["Annotations.csv"] == {"read": 30, "kept": 30, "dropped": 0}
    calls = [
        (str(found.path(one.recording)), one.start / rate, one.stop / rate, found.contexts[one.context])
        for one in found.annotations.itertuples()
    ]
    assert sorted((f, round(a, 6), round(b, 6), label) for f, a, b, label in calls) == triples(event_table(rows))
