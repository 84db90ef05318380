"""Detected events as tables, and as files of the programs in which people look at them and correct them.

Those programs open a recording at the rate in its header: in their files, times of a time-expanded
recording are the slow ones. The tables have true times. A recording without events has no file.
"""

import itertools
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import crowsetta
import pandas as pd
import pyarrow
import pyarrow.parquet

from denet_torch import audio
from denet_torch.detection import EVENT_COLUMNS, event_table
from tools.detect_batch import Results
from training.collection import replacing


def write(results: Results, folder: Path, formats: list[str], time_expansion: float = 1) -> None:
    """Write events.csv and recordings.csv to `folder`, and each of `formats` (keys of TABLES and PROGRAMS).

    A program's files lie in a folder of its name, which is replaced as a whole.
    """
    write_csv(results.events, folder / "events.csv")
    write_csv(results.recordings, folder / "recordings.csv")
    for name in formats:
        if name in TABLES:
            with replacing(folder / name) as file:
                TABLES[name](results, file)
    slow = results.events.assign(
        onset=results.events.onset * time_expansion, offset=results.events.offset * time_expansion
    )
    recordings = _recordings(results, time_expansion)
    for name in formats:
        if name in PROGRAMS:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                new = Path(scratch) / name
                new.mkdir()
                PROGRAMS[name](slow, recordings, new)
                shutil.rmtree(folder / name, ignore_errors=True)
                new.rename(folder / name)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table with times to the microsecond."""
    with replacing(path) as file:
        table.to_csv(file, index=False, float_format="%.6f")


def read_events(path: Path) -> pd.DataFrame:
    """Events with the columns file, onset, offset (s), label, score from a table or a folder of layers.

    A table is .csv or .parquet; `recording` is taken for `file`, and without them labels are "call" and
    scores NaN. A folder holds .svl files, each named after its recording. Raises ValueError.
    """
    if path.is_dir():
        tables = [
            read_svl(file).assign(file=str(file.relative_to(path).with_suffix("")))
            for file in sorted(path.rglob("*.svl"))
        ]
        if not tables:
            raise ValueError(f"{path}: no layers (.svl) in this folder")
        return pd.concat(tables, ignore_index=True)[EVENT_COLUMNS]
    try:
        table = (pd.read_parquet if path.suffix.lower() == ".parquet" else pd.read_csv)(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own are among them
        raise ValueError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]})") from None
    table = table.rename(columns={"recording": "file"})
    if missing := [name for name in ("file", "onset", "offset") if name not in table]:
        raise ValueError(f"{path}: has no column {missing[0]}")
    table = table.assign(label=table.get("label", "call"), score=table.get("score", float("nan")))
    try:
        table = event_table(table[EVENT_COLUMNS].to_records(index=False).tolist())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not (table.onset <= table.offset).all():
        raise ValueError(f"{path}: an event ends before it begins, or has no onset or offset")
    return table


def match_files(table: pd.DataFrame, files: Iterable[str]) -> pd.DataFrame:
    """`table` with every `file` replaced by the one of `files` that it means; others stay as they are.

    That is the same path, or else the one recording whose path ends like it, whatever the audio suffix.
    Raises ValueError where several do.
    """
    named = defaultdict(list)
    for file in files:
        named[_parts(file)[-1]].append(file)

    def meant(file: str) -> str:
        candidates = named[_parts(file)[-1]]
        if file in candidates:
            return file
        shared = [_shared(_parts(file), _parts(candidate)) for candidate in candidates]
        best = [c for c, count in zip(candidates, shared, strict=True) if count == max(shared)]
        if len(best) > 1:
            raise ValueError(f"{file}: may be {best[0]} or {best[1]}")
        return best[0] if best else file

    return table.assign(file=table.file.map({file: meant(file) for file in table.file.unique()}))


def _parts(file: str) -> tuple[str, ...]:
    path = Path(file)
    return (path.with_suffix("") if path.suffix.lower() in audio.SUFFIXES else path).parts


def _shared(ours: tuple[str, ...], theirs: tuple[str, ...]) -> int:
    """Number of equal parts at the end."""
    pairs = zip(reversed(ours), reversed(theirs), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def frames(results: Results) -> Iterator[pd.DataFrame]:
    """Frame probabilities of a recording at a time: file, onset (s), and a column a class."""
    for file in results.recordings.file:
        table = pd.DataFrame(results.probabilities(file), columns=results.labels)
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

    There the recordings lie end to end in the order of recordings.csv: open them in Raven in that order.
    """
    table = pd.DataFrame(
        {
            "Selection": range(1, len(events) + 1),
            "View": "Spectrogram 1",
            "Channel": 1,
            "begin_time_s": events.onset,
            "end_time_s": events.offset,
            "low_freq_hz": 0.0,
            "high_freq_hz": events.file.map(recordings.rate).astype(float) / 2,
            "Begin Path": events.file.map(os.path.abspath),
            "File Offset (s)": events.onset,
            "annotation": events.label,
            "Score": events.score,
        }
    )
    for file, rows in table.groupby(events.file):
        path = _place(folder, recordings.place[file], ".Table.1.selections.txt")
        rows = rows.assign(Selection=range(1, len(rows) + 1))
        crowsetta.formats.bbox.Raven(rows.round(6), path, "Annotation").to_file(path)
    start = events.file.map(recordings.duration.cumsum() - recordings.duration).astype(float)
    table = table.assign(begin_time_s=table.begin_time_s + start, end_time_s=table.end_time_s + start)
    path = folder / "combined.txt"
    crowsetta.formats.bbox.Raven(table.round(6), path, "Annotation").to_file(path)


def audacity(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """A label track a recording."""
    for file, rows in events.groupby("file"):
        path = _place(folder, recordings.place[file], ".txt")
        columns = (rows[name].to_numpy() for name in ("onset", "offset", "label"))
        crowsetta.formats.seq.AudSeq(*columns, path).to_file(path)


def sequence(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """crowsetta's generic sequence, all recordings in events.csv."""
    path, annotations = folder / "events.csv", []
    for file, rows in events.groupby("file", sort=False):
        onsets, offsets, labels = (rows[name].to_numpy() for name in ("onset", "offset", "label"))
        seq = crowsetta.Sequence.from_keyword(labels=labels, onsets_s=onsets, offsets_s=offsets)
        annotations.append(crowsetta.Annotation(path.name, notated_path=file, seq=seq))
    if annotations:
        crowsetta.formats.seq.GenericSeq(annotations).to_file(path)


def svl(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """A layer of regions a recording for Sonic Visualiser; a region's value is its score."""
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
            ElementTree.SubElement(points, "point", place, label=row.label)
        display = ElementTree.SubElement(root, "display")
        ElementTree.SubElement(display, "layer", id="2", type="regions", name="calls", model="1")
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode")
        path = _place(folder, recordings.place[file], ".svl")
        head = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE sonic-visualiser>\n'
        path.write_text(head + text + "\n", encoding="utf-8")


def read_svl(path: Path) -> pd.DataFrame:
    """The regions of a layer saved by Sonic Visualiser: onset (s), offset (s), label, score.

    Raises ValueError if the file is no such layer.
    """
    try:
        root = ElementTree.parse(path).getroot()
        rate = float(root.find("data/model").attrib["sampleRate"])
        points = [point.attrib for point in root.findall("data/dataset/point")]
        onsets = [int(point["frame"]) / rate for point in points]
        lengths = [int(point["duration"]) / rate for point in points]
        rows = [
            (onset, onset + length, point.get("label", ""), float(point.get("value", "nan")))
            for onset, length, point in zip(onsets, lengths, points, strict=True)
        ]
    except (ElementTree.ParseError, AttributeError, KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: is no layer of regions ({error})") from None
    return pd.DataFrame(rows, columns=["onset", "offset", "label", "score"])


def ann(events: pd.DataFrame, recordings: pd.DataFrame, folder: Path) -> None:
    """A list of onset and offset a recording, as sed_vis and sed_eval read it."""
    for file, rows in events.groupby("file"):
        path = _place(folder, recordings.place[file], ".ann")
        columns = rows[["onset", "offset"]]
        columns.to_csv(path, sep="\t", header=False, index=False, float_format="%.6f")


TABLES = {
    "events.parquet": lambda results, path: results.events.to_parquet(path, index=False),
    "frames.csv": frames_csv,
    "frames.parquet": frames_parquet,
}
PROGRAMS = {"raven": raven, "audacity": audacity, "sequence": sequence, "svl": svl, "ann": ann}


def _recordings(results: Results, time_expansion: float) -> pd.DataFrame:
    """By file: rate of its header (Hz), duration at that rate (s), and its place below the folder of all."""
    files = [os.path.abspath(file) for file in results.recordings.file]
    top = os.path.commonpath([os.path.dirname(file) for file in files])
    return pd.DataFrame(
        {
            "rate": results.recordings.samplerate.to_numpy() / time_expansion,
            "duration": results.recordings.duration.to_numpy() * time_expansion,
            "place": [os.path.relpath(file, top) for file in files],
        },
        index=results.recordings.file,
    )


def _place(folder: Path, place: str, suffix: str) -> Path:
    """A new file in `folder` for the recording at `place`, named after it without its suffix if it can be."""
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    named = path.with_name(path.stem + suffix)
    return path.with_name(path.name + suffix) if named.exists() else named
