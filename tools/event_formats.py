"""Detected events as tables, and as files of the programs in which people look at them and correct them.

Those programs open a recording at the rate in its header: in their files, times of a time-expanded
recording are the slow ones. The tables have true times. A recording without events has no file.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pyarrow
import pyarrow.parquet

from denet_torch.detection import EVENT_COLUMNS
from denet_torch.files import fitting, locked, partial_folder
from denet_torch.schema import class_columns
from tools.detect_batch import Results
from training import annotations, formats
from training.annotations import NotATable
from training.collection import replacing
from training.options import tell

OURS = ".{}-is-ours"  # tells that the folder of a program may be replaced
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # letters that no XML file may hold
SHOWN = 10  # rows that cannot be used, named one by one


def write(results: Results, folder: Path, names: list[str], time_expansion: float = 1) -> None:
    """Write events.csv and recordings.csv to `folder`, and each of `names` (keys of TABLES and PROGRAMS).

    A program's files lie in a folder of its name, which is replaced as a whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # of two that write to one folder the later one replaces what the earlier one wrote, whole
        _write(results, folder, names, time_expansion)


def _write(results: Results, folder: Path, names: list[str], time_expansion: float) -> None:
    for name in names:
        if name in PROGRAMS and any((folder / name).iterdir() if (folder / name).is_dir() else ()):
            if not (folder / OURS.format(name)).exists():
                raise ValueError(f"{folder / name}: was not written by detection and would be replaced; move it away")
    write_csv(results.events, folder / "events.csv")
    write_csv(results.recordings.assign(time_expansion=time_expansion), folder / "recordings.csv")
    for name in names:
        if name in TABLES:
            with replacing(folder / name) as file:
                TABLES[name](results, file)
    slow = annotations.to_file(results.events, time_expansion)
    recordings = _recordings(results, time_expansion)
    for name in names:
        if name in PROGRAMS:
            with partial_folder(folder) as scratch:
                new = scratch / name
                new.mkdir()
                PROGRAMS[name](slow, recordings, new)
                (folder / OURS.format(name)).touch()
                shutil.rmtree(folder / name, ignore_errors=True)
                new.rename(folder / name)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table with times to the microsecond."""
    with replacing(path) as file:
        table.round(6).to_csv(file, index=False)


def read_events(
    path: Path, time_expansion: float = 1, label_column: str | None = None, recordings: Iterable[str] = ()
) -> pd.DataFrame:
    """Events with the columns of EVENT_COLUMNS, low_hz and high_hz (Hz, NaN where not told) from a table or all in a folder.

    The tables are those of training/annotations.py: our own (.csv, .parquet), Raven's, Audacity's, generic sequences,
    layers (.svl), BirdNET's and BatDetect2's. A table whose rows name no recording is of the one it is named after, one of
    `recordings` if that can be. In tables of programs, the seconds are those of a file slowed down by `time_expansion`.
    Rows that cannot be used are named on stderr. Raises ValueError for what is no table, or has no row that can be used, and
    for tables of two formats of one recording, of which one may be no reference.
    """
    rows, unused, read, tables = [], [], [], {}
    known = formats.Recordings([str(one) for one in recordings])
    for file, name in _tables(path):
        try:
            data_format = annotations.recognise(file)
            table = annotations.read(file, data_format, label_column)
        except FileNotFoundError:
            raise ValueError(f"{file}: no such file") from None
        except (NotATable, OSError) as error:
            reason = f"{file}: {getattr(error, 'strerror', None) or error}"
            if file == path:
                raise ValueError(reason) from None
            unused.append(reason)
            continue
        dropped = [remark for remark in table.remarks if remark[2] == "dropped"]
        unused += [f"{file} line {line}: {why} ({detail})" for line, _, _, why, detail in dropped]
        if not table.offset_known:
            unused.append(f"{file}: no File Offset (s) tells where in its recording a call lies")
        else:
            owners = formats.recordings_of(name)
            own = next((one for one in owners if known.named(one)), owners[-1])
            if table.rows and (known.named(own) or not any(row[0] for row in table.rows)):
                tables.setdefault(own, {})[data_format] = name
            if len(several := tables.get(own, {})) > 1:
                both = " and ".join(f"{table} ({its})" for its, table in several.items())
                raise ValueError(f"{path}: {own} has {both}; give a folder that holds the tables meant alone")
            rows += [(table.true_time, row[0] or own, *row[1:]) for row in table.rows]
        read.append(table.read)
    if not read:
        raise ValueError(unused[0] if unused else f"{path}: no tables of events in this folder")
    events = annotations.as_table(rows, time_expansion)
    if unused and sum(read) and not rows:
        raise ValueError(unused[0])
    background = events["label"].map(annotations.is_background).astype(bool)
    if background.any():
        unused.append(f'{path}: {background.sum()} rows "background" or "nocall", which are no calls')
        events = events[~background].reset_index(drop=True)
    for line in [*unused[:SHOWN], *([f"{len(unused) - SHOWN} more"] if len(unused) > SHOWN else [])]:
        tell("not used", line)
    times = {name: events[name].round(6) for name in ("onset", "offset")}
    return events.assign(**times)[[*EVENT_COLUMNS, "low_hz", "high_hz"]]


def _tables(path: Path) -> list[tuple[Path, str]]:
    """Files and the names that tell their recordings."""
    if not path.is_dir():
        return [(path, path.name)]
    if (path / "events.csv").exists() and (path / "recordings.csv").exists():
        return [(path / "events.csv", "events.csv")]  # results of tools.detect
    return [(file, str(file.relative_to(path))) for file in formats.table_files(path)[0]]


def match_files(table: pd.DataFrame, files: Iterable[str]) -> pd.DataFrame:
    """`table` with every `file` replaced by the one of `files` that it means, and every event once; others stay as they are.

    That is the same path, or else the one recording whose path ends like it, whatever the audio suffix.
    Raises ValueError where several do.
    """
    files = list(files)
    recordings, exact = formats.Recordings(files), set(files)

    def meant(file: str) -> str:
        if file in exact:
            return file
        places = recordings.named(file)
        if len(places) > 1:
            raise ValueError(f"{file}: may be {files[places[0]]} or {files[places[1]]}")
        return files[places[0]] if places else file

    table = table.assign(file=table.file.map({file: meant(file) for file in table.file.unique()}).astype("str"))
    return table[annotations.is_first(table, "file")].reset_index(drop=True)


def frames(results: Results) -> Iterator[pd.DataFrame]:
    """Frame probabilities of a recording at a time: file, onset (s), and a column a class."""
    columns = class_columns(results.labels, ("file", "onset"))
    for file in results.recordings.file:
        table = pd.DataFrame(results.probabilities(file), columns=columns)
        table.insert(0, "file", file)
        table.insert(1, "onset", (table.index * results.frame).round(6))
        yield table


def frames_csv(results: Results, path: Path) -> None:
    for i, table in enumerate(frames(results)):
        table.to_csv(path, mode="a", header=i == 0, index=False, float_format="%.6f")


def frames_parquet(results: Results, path: Path) -> None:
    tables = (pyarrow.Table.from_pandas(table, preserve_index=False) for table in frames(results))
    first = next(tables)
    with pyarrow.parquet.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def raven(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """A selection table a recording, and combined.txt, which Raven pages through the recordings with.

    There the recordings lie end to end in the order of recordings.csv: open them in Raven in that order. The
    frequencies are those of the events, or all that a recording has.
    """
    table = pd.DataFrame(
        {
            "Selection": range(1, len(events) + 1),
            "View": "Spectrogram 1",
            "Channel": 1,
            "Begin Time (s)": events.onset,
            "End Time (s)": events.offset,
            "Low Freq (Hz)": _or(events.get("low_hz"), 0.0),
            "High Freq (Hz)": _or(events.get("high_hz"), events.file.map(recordings.rate).astype(float) / 2),
            "Begin Path": events.file.map(os.path.abspath),
            "File Offset (s)": events.onset,
            "Annotation": events.label.map(_one_line),
            "Score": events.score,
        }
    )
    for file, rows in table.groupby(events.file):
        path = _place(folder, recordings.place[file], ".Table.1.selections.txt")
        rows = rows.assign(Selection=range(1, len(rows) + 1))
        rows.round(6).to_csv(path, sep="\t", index=False)
    start = events.file.map(recordings.duration.cumsum() - recordings.duration).astype(float)
    for name in ("Begin Time (s)", "End Time (s)"):
        table[name] += start
    table.round(6).to_csv(folder / formats.COMBINED, sep="\t", index=False)


def _or(values: pd.Series | None, otherwise: pd.Series | float) -> pd.Series | float:
    return otherwise if values is None else values.fillna(otherwise)


def audacity(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """A label track a recording."""
    _write_tracks(events, recordings, folder, ".txt")


def sequence(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """crowsetta's generic sequence, all recordings in events.csv."""
    table = pd.DataFrame(
        {
            "label": events.label,
            "onset_s": events.onset,
            "offset_s": events.offset,
            "notated_path": events.file,
            "annot_path": "events.csv",
            "sequence": 0,
            "annotation": pd.factorize(events.file)[0],
        }
    )
    if len(table):
        table.sort_values("annotation", kind="stable").to_csv(folder / "events.csv", index=False)


def svl(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """A layer of regions a recording for Sonic Visualiser; a region's value is its score.

    They fill the pane's height (plotStyle 1, PlotSegmentation of its RegionLayer): as lines, a waveform hides them.
    """
    for file, rows in events.groupby("file"):
        rate = round(recordings.rate[file])
        root = ElementTree.Element("sv")
        data = ElementTree.SubElement(root, "data")
        model = dict(id="1", name="calls", sampleRate=str(rate), type="sparse", subtype="region")
        model |= dict(dimensions="3", resolution="1", notifyOnAdd="true", dataset="0", units="")
        model |= dict(start="0", end=str(round(recordings.duration[file] * rate)), valueQuantization="0")
        ElementTree.SubElement(data, "model", model, minimum="0", maximum="1")
        points = ElementTree.SubElement(data, "dataset", id="0", dimensions="3")
        for row in rows.itertuples():
            frame, end = round(row.onset * rate), round(row.offset * rate)
            place = dict(frame=str(frame), value=f"{row.score:.6f}", duration=str(end - frame))
            ElementTree.SubElement(points, "point", place, label=_NOT_XML.sub("\ufffd", row.label))
        display = ElementTree.SubElement(root, "display")
        ElementTree.SubElement(display, "layer", id="2", type="regions", name="calls", model="1", plotStyle="1")
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode")
        path = _place(folder, recordings.place[file], ".svl")
        head = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE sonic-visualiser>\n'
        path.write_text(head + text + "\n", encoding="utf-8")


def ann(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """A list of onset, offset and label a recording, as sed_vis and sed_eval read it."""
    _write_tracks(events, recordings, folder, ".ann")


def birdnet(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """BirdNET-Analyzer's CSV, a table a recording."""
    names = {"Start (s)": "onset", "End (s)": "offset", "Scientific name": "label", "Common name": "label", "Confidence": "score"}
    for file, rows in events.groupby("file"):
        table = pd.DataFrame({name: rows[column] for name, column in names.items()}).assign(File=os.path.abspath(file))
        write_csv(table, _place(folder, recordings.place[file], ".BirdNET.results.csv"))


def kaleidoscope(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """One table of all recordings with the columns by which Kaleidoscope finds a call; date and time are the recording's."""
    began, path = pd.to_datetime(events.file.map(recordings.began)), events.file.map(os.path.abspath)
    table = pd.DataFrame(
        {
            "INDIR": path.map(os.path.dirname),
            "FOLDER": "",
            "IN FILE": path.map(os.path.basename),
            "CHANNEL": 0,
            "OFFSET": events.onset,
            "DURATION": events.offset - events.onset,
            "Fmin": events.get("low_hz"),
            "Fmax": events.get("high_hz"),
            "DATE": began.dt.strftime("%Y-%m-%d"),
            "TIME": began.dt.strftime("%H:%M:%S"),
            "HOUR": began.dt.strftime("%H"),
            "AUTO ID": events.label.map(_one_line),
            "MATCH RATIO": events.score,
        }
    )
    write_csv(table, folder / "kaleidoscope.csv")


def _write_tracks(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path, suffix: str) -> None:
    """Lines of onset, offset and label. Unlike crowsetta's they have no quotes, which Audacity shows as part of a label."""
    for file, rows in events.groupby("file"):
        lines = [f"{row.onset:.6f}\t{row.offset:.6f}\t{_one_line(row.label)}\n" for row in rows.itertuples()]
        _place(folder, recordings.place[file], suffix).write_text("".join(lines), encoding="utf-8")


def _one_line(label: str) -> str:
    return re.sub(r"[\t\r\n]", " ", label)


TABLES = {
    "events.parquet": lambda results, path: results.events.to_parquet(path, index=False),
    "frames.csv": frames_csv,
    "frames.parquet": frames_parquet,
}
PROGRAMS = {
    "raven": raven,
    "audacity": audacity,
    "sequence": sequence,
    "svl": svl,
    "ann": ann,
    "birdnet": birdnet,
    "kaleidoscope": kaleidoscope,
}


def _recordings(results: Results, time_expansion: float) -> pd.DataFrame:
    """By file: rate of its header (Hz), duration at that rate (s), and its place below the folder of all."""
    files = [os.path.abspath(file) for file in results.recordings.file]
    top = os.path.commonpath([os.path.dirname(file) for file in files])
    places = [os.path.relpath(file, top) for file in files]
    # A recording's files are named after it without its suffix, or with it where another one has the name without.
    first = {os.path.splitext(place)[0]: place for place in sorted(places, reverse=True)}
    return pd.DataFrame(
        {
            "rate": results.recordings.samplerate.to_numpy() / time_expansion,
            "duration": results.recordings.duration.to_numpy() * time_expansion,
            "began": results.recordings["began"].to_numpy() if "began" in results.recordings else "",
            "place": [stem if first[stem := os.path.splitext(place)[0]] == place else place for place in places],
        },
        index=results.recordings.file,
    )


def _place(folder: Path, place: str, suffix: str) -> Path:
    """A new file in `folder` for a recording."""
    parent, stem = os.path.split(place)
    path = folder / parent / fitting(stem, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
