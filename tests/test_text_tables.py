"""Tables of text are bounded in lines, cells and what is told of them, so that memory and time are in proportion to the file."""

import random
import re

import large_tables
import numpy as np
import pandas as pd
import pytest

from tools.event_formats import read_events
from training import labels, text_tables
from training.labels import Spans
from training.text_tables import Lines, TooLarge, read_csv


def test_lines_are_those_of_the_whole_text(tmp_path, monkeypatch):
    rng = random.Random(25)
    path = tmp_path / "a.txt"
    for _ in range(200):
        monkeypatch.setattr(text_tables, "BLOCK", rng.randrange(4, 12))  # a mark of order fits in
        some = [b"\r", b"\n", b"\r\n", b"a", b"\xc3\xa4", b"\xff", b" ", b"\xef\xbb\xbf"]
        data = b"".join(rng.choices(some, k=rng.randrange(12)))
        path.write_bytes(data)
        wanted = re.split(b"\r\n|\n|\r", data.removeprefix(b"\xef\xbb\xbf"))
        assert list(Lines(path).bytes()) == wanted, data
        text = "".join(rng.choices(["\r", "\n", "a", "ä", "\U0001f4a3"], k=rng.randrange(12)))
        path.write_bytes(text.encode("utf-16"))
        assert list(Lines(path)) == re.split("\r\n|\n|\r", text), text


@pytest.mark.parametrize(
    ("limit", "least", "text"),
    [("MAX_LINE", 9, "1\t2\tabcdefghi\n"), ("LEFT", 2000, "1\t2\n" * 3), ("ROW", 1 << 30, "1\t2\n")],
)
def test_what_is_too_large_names_file_and_limit(tmp_path, monkeypatch, limit, least, text):
    monkeypatch.setattr(text_tables, limit, least)
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.txt: has .*: it is too large for a table$"):
        read_events(path)


def test_the_events_of_a_large_collection_are_read(tmp_path):
    """As detection writes them of as many recordings as the flying foxes' are; but no more rows than so many bytes hold."""
    rows, path = 300_000, tmp_path / "events.csv"
    line = "files{0}/{1:09}.WAV,{1}.25,{1}.5,call,0.987654,0.25,5234.5,1200.0,9800.5,8600.5,-43.21\n"
    heading = "file,onset,offset,label,score,duration,peak_hz,low_hz,high_hz,bandwidth_hz,level_db\n"
    path.write_text(heading + "".join(line.format(i // 10_000, i) for i in range(rows)))
    assert len(read_events(path)) == rows
    path.write_text("onset,offset,label\n" + "1,2,a\n" * rows)
    with pytest.raises(ValueError, match="300002 rows of .* cells, more than can be held"):
        read_events(path)


def test_pandas_gets_no_more_cells_than_it_can_hold(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2,,,,\n3\n4,5\n")
    found = read_csv(path, ["a", "b", "c"])
    assert found["a"].tolist() == [1, 3, 4] and found["b"].isna().tolist() == [False, True, False] and list(found) == ["a", "b"]
    monkeypatch.setattr(text_tables, "MAX_CELLS", 10)
    with pytest.raises(TooLarge, match="has 4 lines of up to 6 cells"):
        read_csv(path, ["a"])
    with pytest.raises(TooLarge, match="more than 3 lines"):
        read_csv(path, ["a"], most=3)


def test_calls_that_all_overlap_take_no_square_of_memory():
    count = 40_000
    start, stop = np.arange(count), np.full(count, count + 1)
    every = Spans(np.zeros(count, np.int64), start, stop, 1 + start % 3)
    found = labels._overlaps(every, every)
    assert found.start.tolist() == [0, 1, 2] and found.label.tolist() == [1, 2, 3] and (found.stop == count + 1).all()


def test_overlaps_are_those_of_each_pair():
    rng = np.random.default_rng(25)

    def drawn(count: int) -> pd.DataFrame:
        columns = rng.integers(0, 3, count), rng.integers(0, 90, count), rng.integers(1, 30, count), rng.integers(1, 4, count)
        recording, start, length, label = columns
        return pd.DataFrame({"recording": recording, "start": start, "stop": start + length, "label": label})

    for _ in range(50):
        voice, annotated = drawn(rng.integers(0, 20)), drawn(rng.integers(0, 20))
        found = labels._overlaps(*(Spans(*table.to_numpy(np.int64).T) for table in (voice, annotated)))
        pairs = voice.merge(annotated, on="recording")
        wanted = {
            (pair.recording, sample, pair.label_y)
            for pair in pairs.itertuples()
            for sample in range(max(pair.start_x, pair.start_y), min(pair.stop_x, pair.stop_y))
        }
        spans = zip(found.recording, found.start, found.stop, found.label, strict=True)
        assert {(one, sample, label) for one, start, stop, label in spans for sample in range(start, stop)} == wanted


@pytest.mark.parametrize("reader", large_tables.READERS)
def test_each_shape_is_read_or_refused(tmp_path, reader, capsys):
    (tmp_path / "audio").mkdir()
    for shape in large_tables.SHAPES:
        path = large_tables.write(reader, shape, 20_000, tmp_path)
        code, said = large_tables.main([reader, str(path)]), capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code == 2) and all("a.csv" in line or "a.txt" in line for line in errors), (shape, said)
