"""The flying-fox collection's two tables, row by row: what can be used and why the rest cannot.

Prat et al., Scientific Data 4:170143, 2017. FileInfo.csv is not a proper CSV file: after six columns a
row has as many start/end pairs as the recording has voiced segments, and the header names two. Every
line that is not blank is a row. Samples count from 1 and ends belong to their span in the tables; here
spans are [start, stop) counted from 0.

Whatever is dropped becomes one row of a report: table, line, file_id, action ("dropped"), reason, detail.
Spans that begin before the first sample are cut to the recording and reported as "clipped".
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pandas as pd

from training.text_tables import LONGEST_DATE, MAX_DATES, MAX_UNUSED, Lines, TooLarge

FRUIT_BATS = "fruit-bats"  # the name of this format among others
FILE_INFO = "FileInfo.csv"
SEGMENTS = "FileInfo.csv segments"
ANNOTATIONS = "Annotations.csv"

CONTEXTS = (
    "Unknown",
    "Separation",
    "Biting",
    "Feeding",
    "Fighting",
    "Grooming",
    "Isolation",
    "Kissing",
    "Landing",
    "Mating protest",
    "Threat-like",
    "General",
    "Sleeping",
)
RECORDING_COLUMNS = ["file_id", "file", "treatment", "channel", "recorded", "line"]
RECORDING_TYPES = {"file_id": "int64", "line": "int64"} | dict.fromkeys(
    ["file", "treatment", "channel", "recorded"], "str"
)
VOICE_COLUMNS = ["file_id", "start", "stop", "line"]
# Bat numbers: 0 is unknown; negative means that this bat emitted or was addressed, not known which.
CODE_COLUMNS = [
    "emitter",
    "addressee",
    "context",
    "emitter_before",
    "addressee_before",
    "emitter_after",
    "addressee_after",
]
ANNOTATION_COLUMNS = ["file_id", *CODE_COLUMNS, "start", "stop", "line"]
# Lowest and highest frequency of an annotated call (Hz), NaN where its table does not tell.
FREQUENCY_COLUMNS = ["low_hz", "high_hz"]
REPORT_COLUMNS = ["table", "line", "file_id", "action", "reason", "detail", "file"]
REPORT_TYPES = {"line": "int64", "file_id": "Int64"} | dict.fromkeys(
    ["table", "action", "reason", "detail", "file"], "str"
)


class CollectionError(ValueError):
    """A collection that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Reading:
    """How a collection is read; its index keeps this, to be brought up to date in the same way.

    data_format: a key of training.formats.READERS, None for what the folder looks like. label_column: the column of the
    labels, where it has another name than the usual ones. completely_annotated: recordings without a table hold no call.
    time_expansion: factor by which the recordings were slowed down, None for what their metadata say. rate: keep
    recordings of this true rate (Hz) only. headers: read the audio files'. Raises ValueError for anything else.
    """

    data_format: str | None = None
    label_column: str | None = None
    completely_annotated: bool = False
    time_expansion: float | None = None
    rate: int | None = None
    headers: bool = True

    def __post_init__(self) -> None:
        texts, flags = [self.data_format, self.label_column], [self.completely_annotated, self.headers]
        if not all(isinstance(text, str) for text in texts if text is not None) or {*map(type, flags)} != {bool}:
            raise ValueError("a format and a column have names; completely_annotated and headers are yes or no")
        if self.rate is not None and not isinstance(self.rate, Integral):
            raise ValueError(f"rate is {self.rate}; expected whole Hz")
        if self.time_expansion is not None and not is_factor(self.time_expansion):
            raise ValueError(f"time_expansion is {self.time_expansion}; expected a positive factor")


def is_factor(value: object) -> bool:
    """Whether it can be the factor by which recordings were slowed down."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < value < float("inf")


@dataclass
class Table:
    """Rows that can be used, the number of rows read under each table's name, and the report.

    Annotations have either start and stop (samples) or, where a table counts in seconds, onset and offset (true ones).
    """

    rows: dict[str, pd.DataFrame]
    read: dict[str, int]
    report: pd.DataFrame


@dataclass
class _Report:
    path: Path
    rows: list[tuple] = field(default_factory=list)

    def add(self, table: str, line: int, file_id: int | None, action: str, why: tuple) -> None:
        self.rows.append((table, line, file_id, action, *why, self.path.name))
        if len(self.rows) > MAX_UNUSED:
            what = f"has more than {MAX_UNUSED} rows or segments that cannot be used, the last for {why[0]}"
            raise CollectionError(f"{self.path}: {TooLarge(what)}")

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=REPORT_COLUMNS).astype(REPORT_TYPES)


class _Drop(Exception):
    """Reason and detail of a row that cannot be used."""


def read_file_info(path: Path) -> Table:
    """Recordings (RECORDING_COLUMNS) and voiced segments (VOICE_COLUMNS) of a FileInfo.csv.

    Raises CollectionError if the file is missing, unreadable or has another header.
    """
    report, voice = _Report(path), array("q")
    recordings = {name: array("q") if name in ("file_id", "line") else [] for name in RECORDING_COLUMNS}
    once = {}  # texts that stand in many rows
    ids, files = set(), set()
    rows = segments = 0
    for line, cells in _rows(path, ["FileID", "Treatment ID", "File name", "File folder"]):
        rows += 1
        pairs = _pairs(cells[6:])
        segments += len(pairs)
        file_id = None
        try:
            file_id, file = _recording(cells)
            if file_id in ids or file in files:
                raise _Drop("duplicate", f"{file} or its FileID was given before")
        except _Drop as drop:
            report.add(FILE_INFO, line, file_id, "dropped", drop.args)
            for pair in pairs:
                why = ("recording dropped", "..".join(pair))
                report.add(SEGMENTS, line, file_id, "dropped", why)
            continue
        ids.add(file_id)
        files.add(file)
        texts = [once.setdefault(text, text) for text in (cells[1], *(cells[4:6] + ["", ""])[:2])]
        for column, value in zip(recordings.values(), (file_id, file, *texts, line), strict=True):
            column.append(value)
        seen = set()
        for pair in pairs:
            try:
                start, stop = _span(*pair)
                if (start, stop) in seen:
                    raise _Drop("duplicate", "..".join(pair))
            except _Drop as drop:
                report.add(SEGMENTS, line, file_id, "dropped", drop.args)
                continue
            seen.add((start, stop))
            if start < 0:
                report.add(
                    SEGMENTS, line, file_id, "clipped", ("before the start", "..".join(pair))
                )
            voice.extend((file_id, max(0, start), stop, line))
    frame = pd.DataFrame(recordings).astype(RECORDING_TYPES)
    return Table(
        {
            FILE_INFO: frame.assign(recorded=_recorded(frame, path)),
            SEGMENTS: _integers(voice, VOICE_COLUMNS),
        },
        {FILE_INFO: rows, SEGMENTS: segments},
        report.frame(),
    )


def read_annotations(path: Path) -> Table:
    """Annotated spans (ANNOTATION_COLUMNS) of an Annotations.csv.

    Raises CollectionError if the file is missing, unreadable or has another header.
    """
    report, annotations, seen = _Report(path), array("q"), set()
    rows = 0
    for line, cells in _rows(path, ["FileID", "Emitter", "Addressee", "Context"]):
        rows += 1
        file_id = None
        try:
            file_id = _integer(cells[0])
            if len(cells) < 10:
                raise _Drop("too few columns", f"{len(cells)} of 10")
            codes = [_integer(cell) for cell in cells[1:8]]
            if not 0 <= codes[2] < len(CONTEXTS):
                raise _Drop("unknown code", f"context {codes[2]}")
            row = (file_id, *codes, *_span(*cells[8:10]))
            once = array("q", row).tobytes()  # a fifth of the tuple
            if once in seen:
                raise _Drop("duplicate", "the same row was given before")
        except _Drop as drop:
            report.add(ANNOTATIONS, line, file_id, "dropped", drop.args)
            continue
        seen.add(once)
        *codes, start, stop = row
        if start < 0:
            why = ("before the start", f"{start + 1}..{stop}")
            report.add(ANNOTATIONS, line, file_id, "clipped", why)
        annotations.extend((*codes, max(0, start), stop, line))
    frame = _integers(annotations, ANNOTATION_COLUMNS)
    return Table({ANNOTATIONS: frame}, {ANNOTATIONS: rows}, report.frame())


def _integers(values: array, columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(np.array(values, np.int64).reshape(-1, len(columns)), columns=columns)


def _rows(path: Path, header: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every line after the header that is not blank."""
    try:
        lines = iter(Lines(path))
        found = _cells(next(lines))[: len(header)]
        if [cell.lower() for cell in found] != [cell.lower() for cell in header]:
            raise CollectionError(
                f"{path}: is no table of the collection; its first line should begin with {','.join(header)}"
            )
        for line, text in enumerate(lines, 2):
            if text.strip():
                yield line, _cells(text)
    except OSError as error:
        raise CollectionError(f"{path}: cannot be read ({error.strerror})") from None
    except TooLarge as error:
        raise CollectionError(f"{path}: {error}") from None


def _cells(text: str) -> list[str]:
    return [cell.strip(' \t\r\n"') for cell in text.split(",")]


def _pairs(cells: list[str]) -> list[tuple[str, str]]:
    """Start and end texts; rows may be padded with empty cells, and the last end may be missing."""
    padded = cells + [""] * (len(cells) % 2)
    return [pair for pair in zip(padded[::2], padded[1::2], strict=True) if any(pair)]


def _recording(cells: list[str]) -> tuple[int, str]:
    """FileID and folder/name."""
    file_id = _integer(cells[0])
    if len(cells) < 4 or not (cells[2] and cells[3]):
        raise _Drop("too few columns", f"{len(cells)} cells, file name and folder expected")
    name, folder = cells[2:4]
    # A table must not lead a reader outside of the collection's folder.
    if re.search(r"[/\\\0]", name + folder) or {name, folder} & {".", ".."}:
        raise _Drop("bad file name", f"{folder!r}, {name!r}")
    return file_id, f"{folder}/{name}"


def _span(start: str, end: str) -> tuple[int, int]:
    """[start, stop) counted from 0; start may be negative, stop is at least 1."""
    first, last = _integer(start), _integer(end)
    if last < first:
        raise _Drop("end before start", f"{first}..{last}")
    if last < 1:
        raise _Drop("before the start", f"{first}..{last}")
    return first - 1, last


def _integer(text: str) -> int:
    """Spreadsheets write 47553 as 47553.0 too; nothing else is a number here."""
    if text.isdecimal() and len(text) < 16:
        return int(text)
    try:
        value = float(text) if "." in text or "e" in text.lower() else int(text)
        if value != int(value) or abs(value) >= 2**53 or "_" in text:
            raise ValueError
        return int(value)
    except (ValueError, OverflowError):
        raise _Drop("unparsable number", repr(text[:40])) from None


def _recorded(recordings: pd.DataFrame, path: Path) -> pd.Series:
    """When it was recorded: names begin with yymmddhhmmss; else the column, where it is a time."""
    digits = pd.Series([file.rpartition("/")[2][:12] for file in recordings["file"]], dtype="str")
    named = pd.to_datetime(digits, format="%y%m%d%H%M%S", errors="coerce")
    texts = recordings["recorded"].where(named.isna() & (recordings["recorded"].str.len() <= LONGEST_DATE))
    if texts.nunique() > MAX_DATES:
        raise CollectionError(f"{path}: {TooLarge(f'has more than {MAX_DATES} dates')}")
    told = pd.to_datetime(texts, format="mixed", errors="coerce")
    return named.astype("datetime64[us]").fillna(told.astype("datetime64[us]"))
