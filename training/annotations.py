"""Annotation tables as people have them: what each row says, and why a row cannot be used.

One reader stands here for the index, for tools.evaluate and for tools.detect. `read` takes a Raven selection table, an
Audacity label track, our own events (.csv, .parquet), a layer of Sonic Visualiser (.svl), a result of BirdNET, Kaleidoscope
or BatDetect2, crowsetta's generic sequence, or another table whose columns have the words that people use. crowsetta reads
some of these too, but refuses a table for one row, and pandas turns the label 01 into 1: cells are text here until a number
is asked for.

Every row of a table is either a call or is dropped with its line and the reason. Nothing is guessed: a number may
have a decimal point or comma, but what could be read in two ways is dropped.

Programs open a recording at the rate in its header, so that in their tables the seconds of a slowed-down recording
are the slow ones; in our own and BatDetect2's they are true. `to_true` and `to_file` are the only places that convert.
"""

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from itertools import count
from pathlib import Path, PureWindowsPath
from xml.parsers import expat

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from denet_torch import audio
from denet_torch.files import refuse_pipes
from denet_torch.recorder import plausible
from training.dates import ZONE
from training.text_tables import (
    LONGEST_DATE,
    MAX_DATES,
    MAX_HEADING,
    NotATable,
    TooLarge,
    guessed,
    refuse_large,
    text_lines,
    whole,
)

CALL_COLUMNS = ["file", "onset", "offset", "label", "score", "low_hz", "high_hz", "line"]
CALL_TYPES = dict.fromkeys(["onset", "offset", "score", "low_hz", "high_hz"], "float64") | {
    "file": "str",
    "label": "str",
    "line": "int64",
}
GOES_ON = "goes on in another recording"  # reason: what of it lies there has no times
LINES_OF_A_CELL = 20
FIRST_ROWS = 50  # that tell what a table is
TITLES = {  # of columns, where `_name` makes them hard to read
    "begin time s": "Begin Time (s)",
    "end time s": "End Time (s)",
    "start s": "Start (s)",
    "end s": "End (s)",
    "onset s": "onset_s",
    "offset s": "offset_s",
    "start time": "start_time",
    "end time": "end_time",
}
LATEST = 1e9  # s; a number beyond this is no time in a recording
_SLASHED = re.compile(r"\s*(\d{1,2})([-./])(\d{1,2})\2\d{4}(?!\d)", re.ASCII)  # a date whose order is not known
_SCORED = re.compile(r"(.*\S)\s*[\t;](0?\.\d+|1\.0*|0\.\d*)\s*", re.ASCII)
_CLOCK = re.compile(r"\s*(?=.*(?::.*:|[.,]))(?:(\d{1,3}):)?([0-5]?\d):([0-5]?\d(?:[.,]\d+)?)\s*", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?\d{1,3},\d{3}", re.ASCII)
NO_CALLS = ("background", "nocall")  # the second of BirdNET, in tables of recordings in which it found none
UNLABELLED = "call"  # the label of all calls of a table that has no labels
MAX_OF_ONE = 4 << 20  # bytes of a layer or a result of BatDetect2, which are of one recording: a bracket becomes sixty
MAX_REMARKS = 1000  # lines before a heading


@dataclass
class Annotations:
    """What a table says. A row is a call with the columns CALL_COLUMNS: file (the recording that its row names, "" where it names
    none), onset and offset (s), label, score, low_hz and high_hz (Hz; NaN where not told) and line.

    read: rows of the table. remarks: line, file, action ("dropped", "clipped", "noted"), reason and detail. true_time: its
    seconds and frequencies are the true ones of a slowed-down recording. recorded: recordings and the texts of their dates and
    times, for `earliest`. offset_known: the times count from the start of the recording that a row names; False if they may
    count from the start of the first of several.
    """

    rows: list[tuple]
    read: int
    remarks: list[tuple[int, str, str, str, str]]
    true_time: bool = False
    offset_known: bool = True
    recorded: list[tuple[str, str]] = field(default_factory=list)

    @property
    def files(self) -> set[str]:
        """The recordings that rows name, those that cannot be used among them."""
        return ({row[0] for row in self.rows} | {remark[1] for remark in self.remarks}) - {""}


# What a table's columns are called, in the words that people use; as `_name` writes them.
FILES = (
    "file", "filename", "file name", "filepath", "file path", "audio file", "audiofile", "audiofilename", "audio filename",
    "sound file", "sound files", "wav file", "wavfile", "recording",
)  # fmt: skip
LABELS = (
    "annotation", "annotations", "species", "common name", "label", "labels", "class", "call type", "species code",
    "scientific name", "tag", "type", "class name", "event label", "category", "manual id",
    "species ebird code", "ebird code", "species id",
)  # fmt: skip
ONSETS = (
    "onset s", "start s", "start time s", "start time", "start", "starttime", "start seconds", "start sec", "begin s", "begin",
    "onset", "tmin", "t min", "t start", "window start", "time",
)  # fmt: skip
OFFSETS = (
    "offset s", "end s", "end time s", "end time", "end", "endtime", "end seconds", "end sec", "stop s", "stop time", "stop",
    "stop seconds", "tmax", "t max", "t end", "window end",
)  # fmt: skip
SCORES = ("score", "confidence", "probability", "prob")
KILOHERTZ = ("bottom freq", "top freq", "low freq khz", "high freq khz")  # columns of warbleR and DeepSqueak


@dataclass(frozen=True)
class Layout:
    """Names of a table's columns, as `_name` writes them, the first that is there counting; of labels the first with any.

    sign: a table has one of these besides its times, or it is another program's.
    """

    onset: tuple[str, ...]
    offset: tuple[str, ...]
    label: tuple[str, ...] = LABELS
    file: tuple[str, ...] = ()
    score: tuple[str, ...] = ()
    low: tuple[str, ...] = ()
    high: tuple[str, ...] = ()
    in_file: tuple[str, ...] = ()  # onset within the recording, where `onset` counts from the first of several
    duration: tuple[str, ...] = ()  # where there is no offset
    recorded: tuple[str, ...] = ("begin date time", "begin date", "recorded", "recording date", "date recorded", "date")
    true_time: bool = False
    folders: tuple[str, ...] = ()  # in which `file` lies, the innermost first: Kaleidoscope's
    sign: tuple[str, ...] = ()
    any_label: bool = False  # where a row has none in the first of the columns, the next one's is its label


LAYOUTS = {
    "raven": Layout(
        onset=("begin time s", "begin time", "start time s"),
        offset=("end time s", "end time", "stop time s"),
        duration=("delta time s",),
        file=("begin path", "begin file", "filename", "file name", "sound files"),
        score=("score", "confidence"),
        low=("low freq hz", "low frequency hz", "low freq", "low freq khz"),
        high=("high freq hz", "high frequency hz", "high freq", "high freq khz"),
        in_file=("file offset s",),
    ),
    "events": Layout(("onset",), ("offset",), ("label", *LABELS), FILES, ("score",), ("low hz",), ("high hz",), true_time=True),
    "batdetect2": Layout(
        ("start time",),
        ("end time",),
        ("class",),
        FILES,
        ("det prob",),
        ("low freq",),
        ("high freq",),
        true_time=True,
        sign=("det prob",),
    ),
    "birdnet": Layout(
        ("start s", "start", "offset"),
        ("end s", "end"),
        ("manual id", "common name", "scientific name", "auto id", "top1match"),  # Kaleidoscope: a person's word before its own
        ("in file", *FILES),
        ("confidence", "match ratio"),
        duration=("duration",),
        folders=("folder", "indir"),
        sign=("common name", "auto id", "top1match"),
        any_label=True,
    ),
    "generic": Layout(
        ONSETS,
        OFFSETS,
        ("label", *LABELS, "text", "q", "prediction", "name"),
        ("notated path", *FILES),
        SCORES,
        ("low freq hz", "low freq", "low hz", "low f", "low frequency", "min freq", "bottom freq"),
        ("high freq hz", "high freq", "high hz", "high f", "high frequency", "max freq", "top freq"),
        duration=("duration s", "duration"),
        sign=("onset s", "selec", "audiofilename", "tmin", "start seconds", "maxfreq", "prediction", *SCORES, *LABELS),
    ),
}
SUFFIXES = {
    "raven": (".txt", ".tsv", ".csv"),
    "audacity": (".txt", ".ann"),
    "generic": (".csv", ".tsv", ".txt"),
    "events": (".csv", ".tsv", ".txt", ".parquet"),
    "svl": (".svl",),
    "birdnet": (".csv", ".txt"),
    "batdetect2": (".csv", ".json"),
}


def read(path: Path, data_format: str | None = None, label_column: str | None = None) -> Annotations:
    """The annotations in a file of a format (a key of SUFFIXES), by default the one that it looks like.

    Raises NotATable, OSError.
    """
    refuse_pipes(path)
    if data_format is None:
        data_format = recognise(path)
    if path.suffix.lower() == ".parquet":
        return _parquet(path, label_column)
    if data_format == "svl":
        return _layer(path)
    if data_format == "batdetect2" and path.suffix.lower() == ".json":
        return _batdetect2(path)
    data = whole(path)
    lines = text_lines(data)
    found = _track(lines) if data_format == "audacity" else _table(lines, LAYOUTS[data_format], label_column)
    if line := guessed(data):
        found.remarks.append(
            (line, "", "noted", "not UTF-8", f"its letters are taken for those of Windows-1252: {lines[line - 1]!r}")
        )
    return found


def recognise(path: Path) -> str:
    """The format that a file looks like. Raises NotATable."""
    refuse_pipes(path)
    suffix = path.suffix.lower()
    for name, suffixes in {"svl": (".svl",), "batdetect2": (".json",), "events": (".parquet",), "audacity": (".ann",)}.items():
        if suffix in suffixes:
            if name == "batdetect2":
                _batdetect2(path)  # other programs' files are .json too
            return name
    lines = text_lines(whole(path))
    if found := _recognised(lines):
        return found
    first = next((line for line in lines if line.strip()), "")
    if suffix == ".txt" and not first or any(_begins_with_numbers(line, separator) for separator in "\t;" for line in lines):
        return "audacity"
    raise NotATable(f"is no table of events that is known here; its first line is {first[:80]!r}")


def _recognised(lines: list[str]) -> str | None:
    """The layout of a table whose first line names its columns."""
    for name, layout in LAYOUTS.items():
        header = _header(lines, layout, layout.sign)
        # Tables of other things have a start and an end too, which are dates.
        if header and (name != "generic" or _counts_seconds(lines, header, layout)):
            return name
    return None


def _counts_seconds(lines: list[str], header: "_Header", layout: Layout) -> bool:
    """Whether the first rows have a time in seconds, or no time at all."""
    rows = _rows(lines[: header.place + 1 + FIRST_ROWS], header)
    place = next(place for name in layout.onset for place, own in enumerate(header.keys) if own == name)
    texts = [cells[place] for _, cells in rows if place < len(cells) and cells[place].strip()]
    return not texts or any(not isinstance(_number(text), str) for text in texts)


def as_table(rows: list[tuple], time_expansion: float, extra: tuple[str, ...] = ()) -> pd.DataFrame:
    """Calls in true seconds and Hz, from rows of several tables: whether the table has true ones, `extra`, CALL_COLUMNS.

    Raises ValueError for a time expansion that is none.
    """
    audio.true_rate(1, time_expansion)
    table = pd.DataFrame(rows, columns=["true_time", *extra, *CALL_COLUMNS]).astype(CALL_TYPES)
    true = table.pop("true_time").astype(bool)
    return pd.concat([table[true], to_true(table[~true], time_expansion)]).sort_index()


def to_true(calls: pd.DataFrame, time_expansion: float) -> pd.DataFrame:
    """Calls in the seconds and Hz of a file that was slowed down by a factor, in true ones."""
    return _stretched(calls, 1 / time_expansion)


def to_file(calls: pd.DataFrame, time_expansion: float) -> pd.DataFrame:
    """The inverse of `to_true`."""
    return _stretched(calls, time_expansion)


def _stretched(calls: pd.DataFrame, factor: float) -> pd.DataFrame:
    if factor == 1:
        return calls
    times = {name: calls[name] * factor for name in ("onset", "offset")}
    return calls.assign(**times, **{name: calls[name] / factor for name in ("low_hz", "high_hz") if name in calls})


def is_background(label: str) -> bool:
    """Whether a label says that there is no call."""
    return re.sub("[ _-]", "", label.casefold()) in NO_CALLS


def is_first(calls: pd.DataFrame, where: str) -> pd.Series:
    """Which calls are not given a second time: same label and times in the same `where`, and no other frequencies.

    Raven lists a selection once for each view, of which the waveform may have no frequencies.
    """
    call, band = [where, "onset", "offset", "label"], ["low_hz", "high_hz"]
    rounded = calls.reindex(columns=[*call, *band]).round({"onset": 6, "offset": 6})
    first = ~rounded.duplicated([*call, *band])
    bare = rounded["low_hz"].isna() & rounded["high_hz"].isna()
    told = pd.MultiIndex.from_frame(rounded.loc[~bare, call])
    return first & ~(bare & pd.MultiIndex.from_frame(rounded[call]).isin(told))


def earliest(recorded: list[tuple[int, str]]) -> dict[int, datetime]:
    """The first date and time of each recording, of recordings and texts; what is none is passed over.

    Whether 01/06/2023 begins with the day, its points tell or the other texts; where nothing does it is no date.
    """
    orders = [match for _, text in recorded if (match := _SLASHED.match(text))]
    day_first = any(match.group(2) == "." or int(match.group(1)) > 12 for match in orders)
    month_first = any(int(match.group(3)) > 12 for match in orders)
    # The time is the recorder's clock's, whatever its zone.
    with_year = [(recording, ZONE.sub(r"\1", text)) for recording, text in recorded if re.search(r"\d{4}|\d[-./]\d", text)]
    parts = [([one for one in with_year if not _SLASHED.match(one[1])], False)]
    if day_first != month_first:
        parts.append(([one for one in with_year if _SLASHED.match(one[1])], day_first))
    first = {}
    for part, how in parts:
        texts = pd.Series([text for _, text in part], dtype="str")
        dates = pd.to_datetime(texts, format="mixed", dayfirst=how, errors="coerce", utc=True).dt.tz_localize(None)
        for (recording, _), date in zip(part, dates, strict=True):
            if plausible(date) is not None:
                first[recording] = min(date.to_pydatetime(), first.get(recording, datetime.max))
    return first


@dataclass
class _Rows:
    """Calls as they are read, and what there is to say of the others."""

    calls: list[tuple] = field(default_factory=list)
    remarks: list[tuple] = field(default_factory=list)
    read: int = 0

    def add(
        self, line: int, file: str, onset: float | str, offset: float | str, label: str, score: float, low: float, high: float
    ) -> None:
        """A row: a time that is no number is a text. A band whose low end lies above its high one is none."""
        self.read += 1
        if reason := _why_not(file, onset, offset, label):
            self.remarks.append((line, file, "dropped", *reason))
            return
        if onset < 0:
            self.remarks.append((line, file, "clipped", "before the start", f"{onset:g}..{offset:g} s"))
        band = (math.nan, math.nan) if low > high else (low, high)
        self.calls.append((file, max(0.0, onset), offset, label, score, *band, line))

    def note(self, line: int, reason: str, detail: str) -> None:
        """Something that is true of all rows."""
        self.remarks.append((line, "", "noted", reason, detail))

    def annotations(self, **facts) -> Annotations:
        return Annotations(self.calls, self.read, self.remarks, **facts)


def _why_not(file: str, onset: float | str, offset: float | str, label: str) -> tuple[str, str] | None:
    """Reason and detail of a call that cannot be used; times that are no numbers are texts."""
    if isinstance(onset, str) and isinstance(offset, str) and not (file + onset + offset + label).strip():
        return "blank row", ""
    for value, name in ((onset, "onset"), (offset, "offset")):
        if isinstance(value, str):
            return ("unparsable number", repr(value[:40])) if value.strip() else ("blank field", name)
    detail = f"{onset:g}..{offset:g} s"
    if offset < onset:
        return "end before start", detail
    if offset == onset:
        return "no length", detail
    if offset <= 0:
        return "before the start", detail
    return None if label.strip() else ("blank field", "label")


def is_text(name: str) -> bool:
    """Whether a file's name can be written to a table and read there; names may be any bytes.

    A carriage return is written as it is, and ends a line where the table is read.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\r" not in name


@dataclass(frozen=True)
class _Header:
    place: int  # of the header among the lines
    separator: str
    names: list[str]  # in lower case
    spaced: bool  # there is a space behind every separator, which is no part of a cell

    @cached_property
    def keys(self) -> list[str]:
        """The names as `_name` writes them."""
        return [_name(name) for name in self.names]


def _name(column: str) -> str:
    """A column's name in lower case without what programs write differently: R makes Begin.Time..s. of Begin Time (s)."""
    return re.sub(r"[\W_]+", " ", column.lower()).strip()


def _header(lines: list[str], layout: Layout, sign: tuple[str, ...] = ()) -> _Header | None:
    """The first line but blank ones and remarks, if it names the columns of a layout, and one of `sign`."""
    return _columns(lines, layout.onset, layout.offset + layout.duration, *filter(None, [sign]))


def _columns(lines: list[str], *needed: tuple[str, ...]) -> _Header | None:
    """The first line that has one of the names in each of `needed`; before it are only blank ones and remarks (#)."""
    for place, line in enumerate(lines[:MAX_REMARKS]):
        if len(line) > MAX_HEADING:
            raise TooLarge(f"its line {place + 1} has more than {MAX_HEADING} characters")
        for separator in "\t;,|" if line.strip() else "":
            cells = line.split(separator)
            spaced = len(cells) > 1 and all(cell.startswith(" ") for cell in cells[1:])
            header = _Header(place, separator, [_cell(cell).lower() for cell in _cells(line, separator, spaced)], spaced)
            if all(set(some) & set(header.keys) for some in needed):
                return header
        if line.strip() and not re.fullmatch("sep=.|#.*", line):
            break
    return None


def searched(path: Path) -> tuple[dict[str, float], float | None]:
    """Recordings and their lengths (s): the columns file and duration of a table; and its only time_expansion, None where it
    tells none. Raises NotATable, OSError."""
    lines = text_lines(whole(path))
    header = _columns(lines, ("file",), ("duration",))
    if header is None:
        raise NotATable("needs the columns file and duration")
    used = [(place, key) for place, key in enumerate(header.keys) if key in ("file", "duration", "time expansion")]
    rows = [
        (line, {key: cells[place] for place, key in used if place < len(cells)}) for line, cells in _rows(lines, header)
    ]
    number = _reader_of_numbers([row.get("duration", "") for _, row in rows])
    found, factors = {}, {_number(row.get("time expansion", "")) for _, row in rows}
    for line, row in rows:
        found[row.get("file", "")] = seconds = number(row.get("duration", ""))
        if isinstance(seconds, str):
            raise NotATable(f"line {line}: {seconds!r} is no duration")
    factor = factors.pop() if len(factors) == 1 else None
    return found, None if isinstance(factor, str) else factor


def _cell(text: str) -> str:
    return text.strip().strip('"').strip()


def _cells(line: str, separator: str, spaced: bool = False) -> list[str]:
    """Cells without their quotes, and without a space before them if `spaced`; a line whose quotes do not fit, as they are.
    Unlike csv.reader over a whole table, one such line does not swallow those after it."""
    if '"' in line:
        try:
            return next(csv.reader([line], delimiter=separator, strict=True, skipinitialspace=spaced))
        except csv.Error:
            pass
    return [cell.lstrip(" ") if spaced else cell for cell in line.split(separator)]


def _is_quoted(lines: list[str], separator: str) -> bool:
    """Whether quotes are not part of the cells. Raven writes labels as they are, spreadsheets quote some or all cells.

    Some: then every cell with a quote is one that needs it."""
    if separator != "\t" or lines[0].startswith('"'):
        return True
    cells = [cell for line in lines if '"' in line for cell in line.split("\t") if '"' in cell]
    return all(re.fullmatch(r'"(?:[^"]|"")*"', cell) and re.search('[,"\t]', cell[1:-1]) for cell in cells)


def _table(lines: list[str], layout: Layout, label_column: str | None) -> Annotations:
    """A table whose first line names its columns."""
    if not any(line.strip() for line in lines):
        return _Rows().annotations(true_time=layout.true_time)
    header = _header(lines, layout)
    if header is None:
        columns = " and ".join(f'"{TITLES.get(names[0], names[0])}"' for names in (layout.onset, layout.offset))
        raise NotATable(f"has no first line with the columns {columns}")
    return _calls(header.names, _rows(lines, header), layout, label_column, header.separator)


def _rows(lines: list[str], header: _Header) -> list[tuple[int, list[str]]]:
    """Line and cells of every row below a header."""
    quoted = _is_quoted(lines[header.place :], header.separator)
    rows, place = [], header.place + 1
    while place < len(lines):
        line, number = lines[place], place + 1
        place += 1
        if not line.strip(" \x1a"):
            continue
        cells = _cells(line, header.separator, header.spaced) if quoted else line.split(header.separator)
        if quoted and line.count('"') % 2:  # a cell may go on in the next lines
            for more in range(1, LINES_OF_A_CELL):
                whole = _cells("\n".join(lines[place - 1 : place + more]), header.separator, header.spaced)
                if len(whole) == len(header.names) and not any(cell.count('"') % 2 for cell in whole):
                    cells, place = whole, place + more
                    break
        rows.append((number, cells))
    return rows


def _calls(
    names: list[str], rows: list[tuple[int, list[str]]], layout: Layout, label_column: str | None, separator: str = "\t"
) -> Annotations:
    """Calls from rows of cells, each with its line, under columns named in lower case."""
    keys = [_name(name) for name in names]
    longer = [(line, cells) for line, cells in rows if any(map(str.strip, cells[len(names) :]))]
    whole = {}  # the last column of a longer row, whose text holds separators
    for line, cells in longer:
        last = max(place for place, text in enumerate(cells) if text.strip())
        whole[line] = separator.join(cells[len(names) - 1 : last + 1])

    def columns(wanted: tuple[str, ...]) -> list[list[str]]:
        places = [place for name in wanted for place, key in enumerate(keys) if key == name]
        found = [[cells[place] if place < len(cells) else "" for _, cells in rows] for place in places]
        if longer and len(names) - 1 in places:
            last = found[places.index(len(names) - 1)]
            last[:] = [whole.get(line, text) for (line, _), text in zip(rows, last, strict=True)]
        return found

    def column(wanted: tuple[str, ...]) -> list[str] | None:
        return next(iter(columns(wanted)), None)

    if label_column is not None and _name(label_column) not in keys:
        raise NotATable(f'has no column "{label_column}"; its columns are {", ".join(names)}')
    labelled = columns(layout.label if label_column is None else (_name(label_column),))
    labelled = [texts for texts in labelled if any(map(str.strip, texts))]
    labels = _first(labelled if layout.any_label else labelled[:1], len(rows))
    begin, end, placed = column(layout.onset), column(layout.offset), column(layout.in_file)
    duration = column(layout.duration) if end is None else None
    times = [text for texts in (begin, end, placed, duration) if texts for text in texts]
    number = _reader_of_numbers(times, clock=True)
    files = [file.strip().strip('"') for file in _first(columns(layout.file), len(rows))]
    for texts in filter(None, (column((name,)) for name in layout.folders)):
        inside = [text.strip() and f"{text.strip()}/" for text in texts]
        files = [file and folder + file for folder, file in zip(inside, files, strict=True)]
    found = _Rows()
    if longer:
        found.note(
            longer[0][0], "more cells than columns", f"of {len(longer)} rows, the last column takes them: {longer[0][1]!r}"
        )
    if clocks := [text for text in times if _CLOCK.fullmatch(text)]:
        found.note(rows[0][0], "clock times", f"{clocks[0].strip()} is read as the time since the start of the recording")
    if rows and not labelled:
        labels = [UNLABELLED] * len(rows)
        found.note(rows[0][0], "no labels", f'all are "{UNLABELLED}", unless one of its columns is named: {", ".join(names)}')
    scores = column(layout.score) or [""] * len(rows)
    bands = []
    for wanted in (layout.low, layout.high):
        name = next((name for name in wanted if name in keys), None)
        bands.append((1000.0 if name in KILOHERTZ else 1.0, column((name,)) or [""] * len(rows)))
    # A waveform's view has no frequencies: Raven writes there what the view is high.
    bare = [text.strip().lower().startswith("waveform") for text in column(("view",)) or [""] * len(rows)]
    ends = [file.strip() for file in column(("end file",)) or [""] * len(rows)]
    for i, (line, _) in enumerate(rows):
        onset = number(begin[i])
        offset = number(end[i]) if duration is None else _sum(onset, number(duration[i]))
        if placed is not None and files[i]:
            length = _sum(offset, -onset if isinstance(onset, float) else onset)
            onset = number(placed[i])
            offset = _sum(onset, length)
        band = [math.nan if bare[i] else unit * _or_nan(number(texts[i])) for unit, texts in bands]
        found.add(line, files[i], onset, offset, labels[i], _value(scores[i]), *band)
        if files[i] and ends[i] and PureWindowsPath(files[i]).name != PureWindowsPath(ends[i]).name:
            found.remarks.append((line, ends[i], "clipped", GOES_ON, files[i]))
    several = len({name for name in files if name}) > 1
    by_raven = {"begin path", "begin file"} & set(keys)  # whose sound may be all recordings end to end
    unknown = layout is LAYOUTS["raven"] and by_raven and placed is None and several
    dates = zip(files, column(layout.recorded) or [], strict=False)
    recorded = sorted({(file, text) for file, text in dates if len(text) <= LONGEST_DATE})
    if len(recorded) > MAX_DATES:
        raise TooLarge(f"has {len(recorded)} dates of recordings")
    return found.annotations(true_time=layout.true_time, offset_known=not unknown, recorded=recorded)


def _sum(one: float | str, other: float | str) -> float | str:
    """Of two numbers; the one that is none, if one is."""
    if isinstance(one, str):
        return one
    return other if isinstance(other, str) else one + other


def _first(columns: list[list[str]], count: int) -> list[str]:
    """Each row's text in the first of the columns that is not blank there."""
    return [next((column[i] for column in columns if column[i].strip()), "") for i in range(count)]


def _reader_of_numbers(texts: list[str], clock: bool = False):
    """A function from a text of a table to its number, or to the text if it is none.

    Whether 1,500 is one and a half or many, other numbers tell: with points among them a comma with three digits
    behind it can be either.
    """
    points = any("." in text for text in texts)
    return partial(_number, thousands=points, clock=clock)


def _number(text: str, thousands: bool = False, latest: float = LATEST, clock: bool = False) -> float | str:
    text = text.strip()
    if clock and (match := _CLOCK.fullmatch(text)):
        hours, minutes, seconds = match.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    # With a second comma, or a point, it is none.
    plain = text if thousands and _THOUSANDS.fullmatch(text) else text.replace(",", ".")
    if not _NUMBER.fullmatch(plain):
        return text
    value = float(plain)
    return value if abs(value) <= latest else text


def _value(text: str) -> float:
    """A score or frequency, NaN where there is none."""
    return _or_nan(_number(text))


def _or_nan(value: float | str) -> float:
    return math.nan if isinstance(value, str) else value


def _track(lines: list[str]) -> Annotations:
    """An Audacity label track: onset, offset, label; and after it, where it was made in a spectrogram, a line that begins
    with a backslash and has the frequencies."""
    found, rows = _Rows(), []
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip(" \x1a")]
    separator = next((s for s in "\t;," if any(_begins_with_numbers(line, s) for _, line in filled)), "\t")
    if filled and not any(separator in line for _, line in filled):
        raise NotATable("no line of it begins with two numbers and a tab between them")
    if other := _recognised(lines):
        raise NotATable(f"is no label track, but looks like a table of the format {other}")
    if filled and all(_is_of_layer(text.split(separator)) for _, text in filled):
        raise NotATable("its first three columns are numbers; save a layer of Sonic Visualiser as .svl, or name the columns")
    for line, text in filled:
        if text.startswith("\\") and rows and rows[-1][2] is None:
            rows[-1][2] = [*text.split(separator), "", ""][1:3]
        else:
            rows.append([line, [*text.split(separator, 2), "", ""][:3], None])
    # BirdNET and HawkEars write a score behind the label, parted from it by a tab or a semicolon.
    ends = [match.groups() if (match := _SCORED.fullmatch(cells[2])) else ("", "") for _, cells, _ in rows]
    scored = bool(rows) and all(score for _, score in ends)
    number = _reader_of_numbers([cell for _, cells, _ in rows for cell in cells[:2]])
    labelled = any(cells[2].strip() for _, cells, _ in rows)
    if rows and not labelled:
        found.note(rows[0][0], "no labels", f'all are "{UNLABELLED}"')
    for (line, (onset, offset, label), frequencies), (scored_label, score) in zip(rows, ends, strict=True):
        if scored:
            label = scored_label
        # Audacity writes -1 for a bound that was not drawn.
        low, high = (value if value >= 0 else math.nan for value in map(_value, frequencies or ("", "")))
        found.add(
            line,
            "",
            number(onset),
            number(offset),
            label if labelled else UNLABELLED,
            _value(score) if scored else math.nan,
            low,
            high,
        )
    return found.annotations()


def _begins_with_numbers(line: str, separator: str) -> bool:
    cells = line.split(separator, 2)
    return len(cells) > 1 and not any("\t" in cell or isinstance(_number(cell), str) for cell in cells[:2])


def _is_of_layer(cells: list[str]) -> bool:
    """Whether a line may be of a layer of Sonic Visualiser as text: time, value, duration and label, and the value is no end."""
    return len(cells) > 3 and not any(isinstance(_number(cell), str) for cell in cells[:3])


POINT = ("frame", "duration", "label", "value", "extent")


def _layer(path: Path) -> Annotations:
    """The regions or boxes of a layer saved by Sonic Visualiser; a region's value is its score."""
    data, inside, rates, points = whole(path, MAX_OF_ONE), [], [], []  # inside: names of the elements that are open

    def start(name: str, attributes: dict[str, str]) -> None:
        inside.append(name)
        if len(inside) > 50:
            raise ValueError("its elements lie deeper than 50 in one another")
        if inside[1:] == ["data", "model"]:
            rates.append(attributes["sampleRate"])
        if inside[1:] == ["data", "dataset", "point"]:
            points.append({name: value for name, value in attributes.items() if name in POINT})

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, lambda name: inside.pop()
    try:
        parser.Parse(data, True)
        rate = float(rates[0])
        if not audio.RATES[0] <= rate <= audio.RATES[1]:
            raise ValueError(f"its sampleRate is {rate:g}")
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise NotATable(f"is no layer of regions ({error})") from None
    found = _Rows()
    for line, point in enumerate(points, 1):
        onset, length = (_number(point.get(name, ""), latest=LATEST * rate) for name in ("frame", "duration"))
        if not isinstance(onset, str):
            onset /= rate
            length = length if isinstance(length, str) else onset + length / rate
        value, extent = (_value(point.get(name, "")) for name in ("value", "extent"))
        of_box = (math.nan, value, value + extent)  # of a layer of boxes the value is the lower frequency
        rest = (value, math.nan, math.nan) if "extent" not in point else of_box
        found.add(line, "", onset, length, point.get("label", ""), *rest)
    return found.annotations()


def _batdetect2(path: Path) -> Annotations:
    """BatDetect2's .json of a recording."""
    try:
        calls = json.loads("\n".join(text_lines(whole(path, MAX_OF_ONE))))["annotation"]
        calls = [{key: "" if value is None else str(value) for key, value in call.items()} for call in calls]
    except TooLarge:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotATable(f"is no result of BatDetect2 ({error})") from None
    names = ("start_time", "end_time", "class", "det_prob", "low_freq", "high_freq")
    found = _Rows()
    for line, call in enumerate(calls, 1):
        onset, offset, label, *rest = (call.get(name, "") for name in names)
        found.add(line, "", _number(onset), _number(offset), label, *map(_value, rest))
    return found.annotations(true_time=True)


def _parquet(path: Path, label_column: str | None) -> Annotations:
    """A table of named columns, events.parquet say."""
    try:
        with pq.ParquetFile(path) as file:
            names, facts = [name.lower() for name in file.schema_arrow.names], file.metadata
            layout = _recognised(["\t".join(f'"{name}"' for name in names)])
            if layout is None:
                raise NotATable("has no columns onset and offset")
            unpacked = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
            size = max(path.stat().st_size, unpacked)
            refuse_large(size, facts.num_rows, facts.num_rows * len(names), max(0, unpacked))
            rows = list(_parquet_rows(file))
    except NotATable:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise NotATable(f"cannot be read as a table ({(str(error).splitlines() or [''])[0]})") from None
    return _calls(names, rows, LAYOUTS[layout], label_column)


def _parquet_rows(file: pq.ParquetFile) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every row, equal cells of a column once in a batch."""
    numbers = count(1)
    for batch in file.iter_batches(1 << 14):
        for cells in zip(*map(_texts, batch.columns), strict=True):
            yield next(numbers), list(cells)


def _texts(column: pa.Array) -> list[str]:
    """The values of a column as text, empty where there is none."""
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    values = ["" if value is None or value != value else str(value) for value in coded.dictionary.to_pylist()]
    return ["" if code is None else values[code] for code in coded.indices.to_pylist()]
