"""Tables of text are read here: how large they may be, their lines, and pandas' tables of chosen columns.

Each line or cell becomes an object of some fifty bytes, whatever its own size, so that it is their number that is bounded.
"""

import codecs
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from denet_torch.files import refuse_pipes

MAX_BYTES = 256 << 20
MAX_LINES = 450_000  # the flying-fox collection has 293,238 recordings; each takes 10 us
MAX_ROWS = 900_000  # where pandas reads, and of events; the flying-fox collection has 878,458 segments
MAX_LINE = 1_000_000  # bytes
MAX_HEADING = 20_000  # bytes of a first line: each column takes pandas a kilobyte, and its name is compared with many
MAX_CELLS = 50_000_000  # of a table that pandas reads
ROW, CELL, LEFT = 1200, 48, 250 << 20  # bytes that rows and cells take as Python's objects, and that they may; a row takes 15 us
FOLD = 26  # so many times its own size a large table may take: a collection's events are rows of 60 bytes or more
MAX_UNUSED = 250_000  # rows that are told one by one why they cannot be used
MAX_DATES = 100_000  # different ones; each that no standard writes takes 30 us
LONGEST_DATE = 60  # characters
BLOCK = 1 << 20
_END = re.compile(b"\r\n|\n|\r")  # str.splitlines splits at too much


class NotATable(ValueError):
    """A file that holds no table of the expected kind; the message says why, without the file's name."""


class TooLarge(NotATable):
    """A table that is beyond the limits."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: it is too large for a table")


def whole(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of a table whose cells are all held at once. Raises TooLarge and OSError."""
    refuse_pipes(path)
    if path.stat().st_size > most:
        raise TooLarge(f"has more than {most >> 20} MB")
    data = path.read_bytes()
    letters = np.frombuffer(data, np.uint8)
    # A text takes as many bytes for each of its letters as for the widest.
    width = 4 if letters.max(initial=0) >= 0xF0 else 2 if letters.max(initial=0) >= 0xC4 else 1
    rows = 1 + data.count(b"\n") + data.count(b"\r")
    refuse_large(len(data), rows, rows + max(data.count(mark) for mark in (b"\t", b";", b",", b"|")), width * len(data))
    ends = np.flatnonzero((letters == 10) | (letters == 13))
    if np.diff(ends, prepend=0, append=len(data)).max() > MAX_LINE:
        raise TooLarge(f"has a line of more than {MAX_LINE} bytes")
    return data


def refuse_large(size: int, rows: int, cells: int, letters: int) -> None:
    """Raise TooLarge if rows, and cells of so many bytes of letters, take more than a table of `size` bytes may."""
    if rows > MAX_ROWS or ROW * rows + CELL * cells + 2 * letters > max(size + LEFT, FOLD * size):
        raise TooLarge(f"has {rows} rows of {cells} cells, more than can be held; cut it into several")


class Lines:
    """The lines of a text in UTF-8, UTF-16, UTF-32, or else in Windows' Latin-1, which every byte has a letter in.

    They are read anew each time they are gone through, a block at a time. Raises TooLarge and OSError, then and here.
    """

    def __init__(self, path: Path, most: int = MAX_LINES) -> None:
        refuse_pipes(path)
        self.path, self.most = path, most
        with open(path, "rb") as file:
            if file.seek(0, 2) > MAX_BYTES:
                raise TooLarge(f"has more than {MAX_BYTES >> 20} MB")
            file.seek(0)
            self._encoding = _wide(file.read(200))

    def __iter__(self) -> Iterator[str]:
        # Line by line: one wrong byte must not change the umlauts of all others.
        return map(_decoded, self.bytes())

    def bytes(self) -> Iterator[bytes]:
        """They as bytes, without a mark of their order and without what ends them."""
        rest, count = b"", 0
        for block in self._blocks():
            *lines, rest = _END.split(rest + block)
            count += len(lines)
            if count >= self.most:
                raise TooLarge(f"has more than {self.most} lines")
            if len(rest) > MAX_LINE or max(map(len, lines), default=0) > MAX_LINE:
                raise TooLarge(f"has a line of more than {MAX_LINE} bytes")
            yield from lines
        yield rest

    def _blocks(self) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder(self._encoding)("replace") if self._encoding else None
        with open(self.path, "rb") as file:
            first, kept = True, b""
            while block := file.read(BLOCK):
                block = kept + (decoder.decode(block).encode() if decoder else block)
                block = block.removeprefix(codecs.BOM_UTF8) if first else block
                first, kept = False, b""
                if block.endswith(b"\r"):  # perhaps half of an end of line
                    block, kept = block[:-1], b"\r"
                yield block
            yield kept


def text_lines(data: bytes) -> list[str]:
    """The lines of a text, as `Lines` has them."""
    if encoding := _wide(data):
        data = data.decode(encoding, errors="replace").encode()
    return [_decoded(line) for line in _END.split(data.removeprefix(codecs.BOM_UTF8))]


def guessed(data: bytes) -> int:
    """The number of the first line of a text that is in none of the Unicode encodings, 0 of none."""
    if data.isascii() or _wide(data):
        return 0
    try:
        data.decode()
        return 0
    except UnicodeDecodeError as error:
        return len(_END.findall(data[: error.start])) + 1


def _wide(start: bytes) -> str | None:
    """The encoding of a text of two or four bytes a letter, by its first bytes; None of another."""
    if start[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if len(start) > 3:
        for name, letters in (("utf-16-le", start[1:200:2]), ("utf-16-be", start[0:200:2])):
            if letters.count(0) > 0.8 * len(letters):
                return name
    return None


def _decoded(line: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            pass
    return line.decode("latin-1")


def read_columns(path: Path, kinds: dict[str, type], most: int = MAX_ROWS) -> pd.DataFrame:
    """Columns of a table that we wrote, each of its kind: names are texts, be they all digits, or NA.

    Raises KeyError, ValueError and OSError.
    """
    return read_csv(path, kinds, most, dtype=kinds, keep_default_na=False)[list(kinds)]


def read_csv(path: Path, columns: Collection[str], most: int = MAX_ROWS, **how) -> pd.DataFrame:
    """pandas' table of a file, of those of the `columns` that it has. Raises ValueError and OSError.

    What a line has beyond the heading's cells is passed over.
    """
    count = widest = 0
    for count, line in enumerate(Lines(path, most).bytes()):
        if not count and len(line) > MAX_HEADING:
            raise TooLarge(f"its first line has more than {MAX_HEADING} bytes")
        widest = max(widest, line.count(b","))  # pandas gives each line as many cells as the longest has
    if count * widest > MAX_CELLS:
        raise TooLarge(f"has {count} lines of up to {widest + 1} cells")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        return pd.read_csv(path, usecols=lambda name: name in columns, index_col=False, **how)
