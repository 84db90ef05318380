"""Text tables of odd shapes and of any size, and the functions that read them: for tests/hostile_cases.py, as a kind of file.

    python tests/hostile_files.py --kinds large_tables --files 100
"""

import random
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from tools import season
from tools.event_formats import read_events
from training import annotations, beans, mixing, tables, text_tables
from training.splits import SIDES

HEADINGS = {
    "events": "file,onset,offset,label,score",
    "raven": "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tAnnotation\tBegin Date",
    "audacity": "0\t1\tx",
    "durations": "file,duration",
    "file_info": "FileID,Treatment ID,File name,File folder,Recording channel,Recording time,Voice start,Voice end",
    "annotations": "FileID,Emitter,Addressee,Context,Emitter pre,Addressee pre,Emitter post,Addressee post,Start,End",
    "beans": "File Name,Emitter",
    "season": "file,onset,offset,label,score,clock,site",
    "split": "file,side",
    "backgrounds": "filename,category",
}
ROWS: dict[str, Callable[[int], str]] = {
    "events": lambda i: f"a{i % 1000}.wav,{i % 10**6},{i % 10**6}.5,c,0.5",
    "raven": lambda i: f"{i}\t{i % 10**6}.1\t{i % 10**6}.2\ta{i}.wav\tx\t1/13/2020",
    "audacity": lambda i: f"{i % 10**6}\t{i % 10**6}.5\tc",
    "durations": lambda i: f"a{i}.wav,1",
    "file_info": lambda i: f"{i},1,f{i}.wav,d,1,2012-06-12,1,9,20,30",
    "annotations": lambda i: f"{i % 1000},1,2,3,0,0,0,0,{i + 1},{i + 9}",
    "beans": lambda i: f"121212{i}.wav,111",
    "season": lambda i: f"a{i % 1000}.wav,{i % 10**6},{i % 10**6}.5,c,0.5,2020-01-01 10:00:00,x",
    "split": lambda i: f"a{i}.wav,train",
    "backgrounds": lambda i: f"a{i}.wav,dog",
}
# Bytes below a heading, of about a size: the heading, what separates cells, a good row of a number, the size.
SHAPES: dict[str, Callable[[str, str, Callable[[int], str], int], bytes | str]] = {
    "good": lambda head, cell, row, size: f"{head}\n{filled(row, size)}",
    "short lines": lambda head, cell, row, size: f"{head}\n" + "a\n" * (size // 2),
    "blank lines": lambda head, cell, row, size: f"{head}\n" + "\n" * size,
    "half ends of lines": lambda head, cell, row, size: f"{head}\r" + "\r" * size,
    "empty cells": lambda head, cell, row, size: f"{head}\n" + (cell * 20 + "\n") * (size // 21),
    "many columns": lambda head, cell, row, size: head + cell * 90_000 + "\n" + "a\n" * (size // 2),
    "ever more cells": lambda head, cell, row, size: f"{head}\n{filled(lambda i: cell.join('1' * (i + 1)), size)}",
    "a long first row": lambda head, cell, row, size: f"{head}\n{cell * 200_000}\n{filled(row, size)}",
    "one line": lambda head, cell, row, size: f"{head}\n" + "x" * size,
    "one line of cells": lambda head, cell, row, size: f"{head}\n" + f"1{cell}" * (size // 2),
    "a quote without end": lambda head, cell, row, size: f'{head}\n"{filled(row, size)}',
    "quotes": lambda head, cell, row, size: f"{head}\n" + '"\n' * (size // 2),
    "zero bytes": lambda head, cell, row, size: f"{head}\n" + "\0" * size,
    "cells of zero bytes": lambda head, cell, row, size: f"{head}\n" + f"\0{cell}\0\n" * (size // 4),
    "the same row": lambda head, cell, row, size: f"{head}\n{filled(lambda i: row(1), size)}",
    "ever other names": lambda head, cell, row, size: f"{head}\n{filled(lambda i: cell.join(map(hex, range(i, i + 4))), size)}",
    "rows of letters": lambda head, cell, row, size: f"{head}\n{filled(lambda i: cell.join('x' * 8), size)}",
    "pairs": lambda head, cell, row, size: f"{head}\n1,1,a.wav,d,1,2012" + ",9,1" * (size // 4),
    "bytes of no text": lambda head, cell, row, size: f"{head}\n{filled(row, size)}".replace("1", "\xff").encode("latin-1"),
    "UTF-16": lambda head, cell, row, size: f"{head}\n{filled(row, size // 2)}".encode("utf-16"),
    "pictures": lambda head, cell, row, size: f"{head}\n{filled(lambda i: chr(0x1F4A3) * 9 + f'{cell}1{cell}2', size // 4)}",
}
READERS: dict[str, Callable[[Path], object]] = {
    "events": read_events,
    "raven": read_events,
    "audacity": read_events,
    "durations": annotations.searched,
    "file_info": tables.read_file_info,
    "annotations": tables.read_annotations,
    "beans": lambda path: beans.read_table(path.parent, path.name),
    "season": lambda path: season._table(path, ["file", "onset", "label"]),
    "split": lambda path: text_tables.read_csv(path, ["file", "side"], dtype="str")["side"].isin(SIDES),
    "backgrounds": lambda path: mixing.find_backgrounds(path.parent),
}


def filled(row: Callable[[int], str], size: int) -> str:
    """Rows of about `size` characters together."""
    lines, taken = [], 0
    for i in count():
        lines.append(row(i))
        taken += len(lines[-1]) + 1
        if taken >= size:
            return "\n".join(lines) + "\n"


def write(reader: str, shape: str, size: int, folder: Path) -> Path:
    """A table in a folder."""
    cell = "\t" if reader in ("raven", "audacity") else ","
    path = folder / ("a.txt" if cell == "\t" else "a.csv")
    data = SHAPES[shape](HEADINGS[reader], cell, ROWS[reader], size)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def draw(rng: random.Random, folder: Path) -> tuple[str, Path]:
    """A reader and a table for it."""
    reader = rng.choice(list(READERS))
    sizes = [1, 4, 4, 8] if READERS[reader] is read_events else [1, 4, 4, 20, 60]  # larger ones of events may take more (FOLD)
    (folder / "audio").mkdir()
    return reader, write(reader, rng.choice(list(SHAPES)), rng.choice(sizes) * 10**6, folder)


def main(words: list[str]) -> int:
    """Read a table (the reader's name, a file) as the commands do, and say in a line why it cannot be read."""
    from training.options import tell

    try:
        READERS[words[0]](Path(words[1]))
    except (ValueError, OSError) as error:
        tell("error", str(error) if words[1] in str(error) else f"{words[1]}: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
