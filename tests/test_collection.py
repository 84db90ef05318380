import csv
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools import index_dataset
from training import collection as collection_module
from training.collection import build_index, open_collection, read_index, report_path, summary
from training.tables import CollectionError

FILE_INFO = (
    "FileID,Treatment ID,File name,File folder,Recording channel,Recording time,"
    "Voice start sample (1),Voice end sample (1),Voice start sample (2),Voice end sample (2)\n"
)
ANNOTATIONS = (
    "FileID,Emitter,Addressee,Context,Emitter pre-vocalization action,"
    "Addressee pre-vocalization action,Emitter post-vocalization action,"
    "Addressee post-vocalization action,Start sample,End sample\n"
)
# Four sound recordings of 1,000 samples, and the broken ones.
GOOD = {f"12060101104{i}196133.WAV": 1000 for i in range(4)}
BROKEN = ("missing.WAV", "empty.WAV", "header.WAV", "text.WAV")


def write_wav(path, samples, rate=250_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(samples, np.int16), rate, format="WAV")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    for name, samples in GOOD.items():
        write_wav(folder / "files101" / name, samples)
    write_wav(folder / "files101" / "header.WAV", 0)
    (folder / "files101" / "empty.WAV").touch()
    (folder / "files101" / "text.WAV").write_text("this is no sound")
    return folder


def write_tables(folder, file_info, annotations=""):
    (folder / "FileInfo.csv").write_text(FILE_INFO + file_info)
    (folder / "Annotations.csv").write_text(ANNOTATIONS + annotations)


def rows(table):
    return len(table) if isinstance(table, pd.DataFrame) else table


def test_tables_become_spans_counted_from_0(pool):
    first, second, third, _ = GOOD
    write_tables(
        pool,
        f"7,3,{first},files101,2,2012-06-01 01:10:42,101,200,301,400,501,600\n"
        f"9,3,{second},files101,2,anything\n"
        f"\n"
        f'"11",4,"{third}",files101,1,,1.0,1000.0,,,,\n',
        "11,-118,0,9,2,2,3,3,1,1000\n7,118,5,11,1,2,3,0,201,2000\n7,0,0,0,0,0,0,0,11,20\n",
    )
    found, report = build_index(pool)
    assert found.recordings["file"].tolist() == [f"files101/{n}" for n in (first, second, third)]
    assert found.recordings["treatment"].tolist() == ["3", "3", "4"]
    assert found.recordings["channel"].tolist() == ["2", "2", "1"]
    assert found.recordings["recorded"].dt.strftime("%y%m%d%H%M%S").tolist() == [
        "120601011040",
        "120601011041",
        "120601011042",
    ]
    assert found.recordings["samplerate"].tolist() == [250_000] * 3
    assert found.recordings["frames"].tolist() == [1000] * 3
    assert found.voice.to_numpy().tolist() == [
        [0, 100, 200],
        [0, 300, 400],
        [0, 500, 600],
        [2, 0, 1000],
    ]
    columns = ["recording", "start", "stop", "emitter", "addressee", "context"]
    assert found.annotations[columns].to_numpy().tolist() == [
        [0, 10, 20, 0, 0, 0],
        [0, 200, 1000, 118, 5, 11],
        [2, 0, 1000, -118, 0, 9],
    ]
    actions = ["emitter_before", "addressee_before", "emitter_after", "addressee_after"]
    assert found.annotations[actions].to_numpy()[1:].tolist() == [[1, 2, 3, 0], [2, 2, 3, 3]]
    assert report[["table", "line", "action", "reason"]].to_numpy().tolist() == [
        ["Annotations.csv", 3, "clipped", "past the end"]
    ]
    again = read_index(pool / "index.parquet")
    for name in ("recordings", "voice", "annotations"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))
    assert again.contexts == found.contexts and again.contexts[8] == "Landing"
    assert again.voice_of(1).empty and len(again.voice_of(0)) == 3
    assert again.path(0) == pool / "files101" / first


def test_every_fault_has_its_reason(pool):
    first, second, third, _ = GOOD
    lines = [
        f"1,1,{first},files101,1,,1,10,20,15,30,40,30,40,12x,9,50,,999,1000,1001,1010,0,5",
        f"1,1,{second},files101,1,,1,10",  # FileID again
        f"2,1,{first},files101,1,",  # file again
        f"x,1,{third},files101,1,",
        "4,1",
        "5,1,../secret.WAV,files101,1,",
        *(f"{20 + i},1,{name},files101,1,,1,10" for i, name in enumerate(BROKEN)),
    ]
    spans = [
        "1,1,0,11,0,0,0,0,1,10",
        "1,1,0,11,0,0,0,0,1,10",  # duplicate
        "1,1,0,13,0,0,0,0,1,10",  # context
        "1,1,0,11,0,0,0,0,10,1",
        "1,1,0,11,0,0,0,0,1e99,1",
        "1,1,0,11,0,0,0,0,2000,2001",
        "1,1,0",
        "20,1,0,11,0,0,0,0,1,10",
        "99,1,0,11,0,0,0,0,1,10",
    ]
    write_tables(pool, "\n".join(lines) + "\n", "\n".join(spans))
    found, report = build_index(pool)
    expected = [
        ("FileInfo.csv segments", 2, "dropped", "end before start"),
        ("FileInfo.csv segments", 2, "dropped", "duplicate"),
        ("FileInfo.csv segments", 2, "dropped", "unparsable number"),
        ("FileInfo.csv segments", 2, "dropped", "unparsable number"),  # no end
        ("FileInfo.csv segments", 2, "clipped", "before the start"),
        ("FileInfo.csv segments", 2, "dropped", "past the end"),
        ("FileInfo.csv", 3, "dropped", "duplicate"),
        ("FileInfo.csv segments", 3, "dropped", "recording dropped"),
        ("FileInfo.csv", 4, "dropped", "duplicate"),
        ("FileInfo.csv", 5, "dropped", "unparsable number"),
        ("FileInfo.csv", 6, "dropped", "too few columns"),
        ("FileInfo.csv", 7, "dropped", "bad file name"),
        ("FileInfo.csv", 8, "dropped", "file missing"),
        ("FileInfo.csv", 9, "dropped", "0 bytes"),
        ("FileInfo.csv", 10, "dropped", "header only"),
        ("FileInfo.csv", 11, "dropped", "not audio"),
        *(("FileInfo.csv segments", line, "dropped", "recording dropped") for line in range(8, 12)),
        ("Annotations.csv", 3, "dropped", "duplicate"),
        ("Annotations.csv", 4, "dropped", "unknown code"),
        ("Annotations.csv", 5, "dropped", "end before start"),
        ("Annotations.csv", 6, "dropped", "unparsable number"),
        ("Annotations.csv", 7, "dropped", "past the end"),
        ("Annotations.csv", 8, "dropped", "too few columns"),
        ("Annotations.csv", 9, "dropped", "recording dropped"),
        ("Annotations.csv", 10, "dropped", "no such recording"),
    ]
    listed = report[["table", "line", "action", "reason"]].itertuples(index=False, name=None)
    assert sorted(listed) == sorted(expected)
    assert found.voice[["start", "stop"]].to_numpy().tolist() == [[0, 5], [0, 10], [29, 40], [998, 1000]]
    assert found.rows == {
        "FileInfo.csv": {"read": 10, "kept": 1, "dropped": 9},
        "FileInfo.csv segments": {"read": 14, "kept": 4, "dropped": 10},
        "Annotations.csv": {"read": 9, "kept": 1, "dropped": 8},
    }
    assert found.recordings["complete"].tolist() == [False]
    written = pd.read_csv(report_path(pool / "index.parquet"))
    assert len(written) == len(report)


number = st.one_of(
    st.integers(-5, 1200).map(str),
    st.sampled_from(["", "12.0", "1.5", "nan", "inf", "1e3", "-", "0x10", "9" * 30, "1_0", "x", '"', "٣"]),
)
name = st.one_of(
    st.sampled_from([*GOOD, *BROKEN]), st.sampled_from(["", "..", "a/b.WAV", "\0.WAV", "ä ö.WAV"])
)
file_info_row = st.tuples(
    number, number, name, st.sampled_from(["files101", "files999", "", "/"]), number, number
).flatmap(lambda row: st.lists(number, max_size=9).map(lambda pairs: [*row, *pairs]))
cut = st.lists(st.one_of(number, name), max_size=12)
file_info_rows = st.lists(st.one_of(file_info_row, file_info_row, cut), max_size=8)
annotation_rows = st.lists(st.one_of(st.lists(number, min_size=10, max_size=10), cut), max_size=8)


def count_rows_and_pairs(text):
    """A second count: lines that are not blank, and pairs of cells after the sixth that hold something."""
    lines = [line for line in text.split("\n") if line.strip(" \t\r\f\v\x1c\x1d\x1e\x85")]
    cells = [[cell.strip(' \t\r"') for cell in line.split(",")][6:] for line in lines]
    pairs = sum(1 for line in cells for i in range(0, len(line), 2) if any(line[i : i + 2]))
    return len(lines), pairs


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file_info=file_info_rows, annotations=annotation_rows)
def test_rows_read_are_rows_kept_and_rows_reported(pool, file_info, annotations):
    text = ["\n".join(",".join(row) for row in table) for table in (file_info, annotations)]
    write_tables(pool, *text)
    found, report = build_index(pool)
    dropped = report[report["action"] == "dropped"]["table"].value_counts()
    read, pairs = count_rows_and_pairs(text[0])
    for table, expected, kept in (
        ("FileInfo.csv", read, found.recordings),
        ("FileInfo.csv segments", pairs, found.voice),
        ("Annotations.csv", count_rows_and_pairs(text[1])[0], found.annotations),
    ):
        assert found.rows[table]["read"] == expected
        assert expected == len(kept) + dropped.get(table, 0)
    assert set(found.recordings["file"]) <= {f"files101/{name}" for name in GOOD}
    for spans in (found.voice, found.annotations):
        assert spans["recording"].between(0, len(found.recordings) - 1).all()
        assert ((0 <= spans["start"]) & (spans["start"] < spans["stop"]) & (spans["stop"] <= 1000)).all()
        assert spans["recording"].is_monotonic_increasing


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 43), st.integers(0, 255)), max_size=4),
    length=st.integers(0, 244),
)
def test_no_wav_header_crashes_the_index(tmp_path, changes, length):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(100, np.int16), 250_000, format="WAV")
    content = bytearray(file.getvalue())
    for place, value in changes:
        content[place] = value
    (tmp_path / "files101").mkdir(exist_ok=True)
    (tmp_path / "files101" / "a.WAV").write_bytes(content[:length])
    write_tables(tmp_path, "1,1,a.WAV,files101,1,,1,50,60,90\n", "1,1,0,11,0,0,0,0,1,100\n")
    found, report = build_index(tmp_path)
    dropped = report[report["action"] == "dropped"]["table"].value_counts()
    assert len(found.recordings) + dropped.get("FileInfo.csv", 0) == 1
    assert len(found.voice) + dropped.get("FileInfo.csv segments", 0) == 2
    assert len(found.annotations) + dropped.get("Annotations.csv", 0) == 1


def test_suffixes_in_the_other_case_are_found(tmp_path):
    write_wav(tmp_path / "files101" / "a.wav", 1000)
    write_tables(tmp_path, "1,1,a.WAV,files101,1,\n")
    assert build_index(tmp_path)[0].recordings["file"].tolist() == ["files101/a.wav"]


def test_every_recording_has_its_rate(tmp_path):
    for i, rate in enumerate([250_000, 250_000, 192_000]):
        write_wav(tmp_path / "files101" / f"{i}.WAV", 1000, rate)
    write_tables(tmp_path, "".join(f"{i},1,{i}.WAV,files101,1,\n" for i in range(3)))
    found, report = build_index(tmp_path)
    assert found.recordings["samplerate"].tolist() == [250_000, 250_000, 192_000] and report.empty
    assert "1 recordings at 192,000 Hz, 2 recordings at 250,000 Hz" in summary(found, report)
    found, report = build_index(tmp_path, rate=250_000)
    assert len(found.recordings) == 2
    assert report["reason"].tolist() == ["other rate"]
    found, _ = build_index(tmp_path, rate=1_920_000, time_expansion=10)
    assert found.recordings["samplerate"].tolist() == [1_920_000]
    assert open_collection(tmp_path).time_expansion == 10


def test_without_headers_lengths_are_unknown(pool):
    write_tables(pool, f"1,1,{BROKEN[0]},files101,1,,1,10\n", "1,1,0,11,0,0,0,0,1,99999\n")
    found, report = build_index(pool, headers=False)
    assert report.empty and found.recordings["frames"].isna().all()
    assert found.annotations["stop"].tolist() == [99_999]
    pd.testing.assert_frame_equal(read_index(pool / "index.parquet").recordings, found.recordings)
    with pytest.raises(CollectionError, match="was indexed without headers"):
        open_collection(pool).require_headers()


def test_an_interrupted_scan_goes_on(pool, monkeypatch):
    write_tables(pool, "".join(f"{i},1,{n},files101,1,\n" for i, n in enumerate(GOOD)))
    (pool / "index.parquet").unlink(missing_ok=True)
    monkeypatch.setattr(collection_module, "SCAN_BLOCK", 1)
    probed, probe = [], collection_module.audio.probe

    def interrupted(path, *args, **options):
        if len(probed) == 3:
            raise KeyboardInterrupt
        probed.append(path.name)
        return probe(path, *args, **options)

    monkeypatch.setattr(collection_module.audio, "probe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(pool)
    assert probed == list(GOOD)[:3] and not (pool / "index.parquet").exists()
    monkeypatch.setattr(collection_module.audio, "probe", lambda p, *a, **o: (probed.append(p.name), probe(p))[1])
    found, _ = build_index(pool)
    assert probed == list(GOOD)
    assert found.recordings["frames"].tolist() == [1000] * 4
    assert not list(pool.glob("*.headers"))


def test_an_index_is_built_when_absent_and_again_when_a_table_changed(pool, monkeypatch):
    first, second, *_ = GOOD
    (pool / "index.parquet").unlink(missing_ok=True)
    write_tables(pool, f"1,1,{first},files101,1,\n")
    assert len(open_collection(pool).recordings) == 1
    monkeypatch.setattr(collection_module, "_write_index", None)  # would fail if it built
    assert len(open_collection(pool).recordings) == 1
    monkeypatch.undo()
    write_tables(pool, f"1,1,{first},files101,1,\n2,1,{second},files101,1,\n")
    assert len(open_collection(pool).recordings) == 2


def run(*words, **options):
    words = [sys.executable, "-m", "tools.index_dataset", *map(str, words)]
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(words, capture_output=True, text=True, cwd=root, **options)


def test_a_full_disk_leaves_the_good_index(tmp_path):
    names = [f"{i:020d}.WAV" for i in range(300)]
    for name in names:
        write_wav(tmp_path / "files101" / name, 10)
    write_tables(tmp_path, f"1,1,{names[0]},files101,1,\n")
    build_index(tmp_path)
    good = (tmp_path / "index.parquet").read_bytes()
    report = report_path(tmp_path / "index.parquet").read_bytes()
    write_tables(tmp_path, "".join(f"{i},1,{n},files101,1,{i * 7919}\n" for i, n in enumerate(names)))
    done = run(
        tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'index.parquet'}: cannot be written")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "index.parquet").read_bytes() == good
    assert report_path(tmp_path / "index.parquet").read_bytes() == report
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"files101", "FileInfo.csv", "Annotations.csv", "index.parquet", "index.report.csv"}


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["index_dataset", *map(str, words)])
    code = index_dataset.main()
    return code, *capsys.readouterr()


@pytest.mark.parametrize("fault", ["no folder", "no table", "wrong header", "binary", "bad index place"])
def test_the_command_says_one_line(tmp_path, monkeypatch, capsys, fault):
    folder, words = tmp_path / "data", []
    if fault != "no folder":
        folder.mkdir()
    if fault in ("wrong header", "binary", "bad index place"):
        write_tables(folder, "")
    if fault == "wrong header":
        (folder / "Annotations.csv").write_text("a,b,c\n1,2,3\n")
    if fault == "binary":
        (folder / "FileInfo.csv").write_bytes(os.urandom(5000))
    if fault == "bad index place":
        words = ["--output", folder / "FileInfo.csv" / "index.parquet"]
    code, out, err = command(monkeypatch, capsys, folder, *words)
    lines = [line for line in err.splitlines() if "headers:" not in line and line.strip()]
    assert code == 2 and not out
    assert len(lines) == 1 and lines[0].startswith("error: ") and str(folder) in lines[0]
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_command_counts(pool, monkeypatch, capsys):
    write_tables(pool, f"1,1,{next(iter(GOOD))},files101,1,,1,10,9,8\n2,1,{BROKEN[0]},files101,1,\n")
    code, out, _ = command(monkeypatch, capsys, pool)
    assert code == 0
    assert "FileInfo.csv: 2 rows read, 1 kept, 1 dropped" in out
    assert "1 dropped: end before start (FileInfo.csv segments)" in out


def test_something_else_is_no_index(tmp_path):
    (tmp_path / "index.parquet").write_bytes(b"PAR1 and so on")
    with pytest.raises(CollectionError, match="is no index of a collection"):
        open_collection(tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "index.parquet")
    with pytest.raises(CollectionError, match="is no index of a collection"):
        open_collection(tmp_path)


def test_cells_with_commas_or_line_breaks_are_still_accounted_for(pool):
    file = io.StringIO()
    csv.writer(file).writerows([[1, 1, "a,b.WAV", "files101", 1, "x\ny"]])
    write_tables(pool, file.getvalue())
    found, report = build_index(pool)
    assert found.rows["FileInfo.csv"] == {"read": 2, "kept": 0, "dropped": 2}
    assert len(report[report["table"] == "FileInfo.csv"]) == 2
