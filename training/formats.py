"""Annotations of other collections, read through crowsetta into the rows of training/tables.py.

A recording is paired with its annotation file by name: for `call.wav` Raven's `call.Table.1.selections.txt`
or `call.txt`, Audacity's `call.txt`; a generic sequence (one CSV) names its recordings itself. Recordings
without an annotation file are kept, without spans.

One source of spans stands here for both of the flying-fox collection's tables: every annotated span is a
voiced segment too. A label's place among the sorted labels is its context; who called is unknown (0).
"""

from collections.abc import Iterator
from pathlib import Path

import crowsetta
import pandas as pd

from denet_torch import audio
from training import tables
from training.collection import read_fruit_bats
from training.tables import ANNOTATIONS, FILE_INFO, SEGMENTS, CollectionError, Table

Spans = list[tuple[float, float, str]]  # onset (s), offset (s), label


def read_raven(root: Path, time_expansion: float) -> tuple[Table, tuple[str, ...]]:
    """Recordings below `root` with Raven selection tables, labelled in the column Annotation."""
    spans = {path: list(_raven(path)) for path in _annotation_files(root)}
    return _as_tables(root, _paired(root, spans), time_expansion)


def read_audacity(root: Path, time_expansion: float) -> tuple[Table, tuple[str, ...]]:
    """Recordings below `root` with Audacity label tracks."""
    spans = {path: list(_audacity(path)) for path in _annotation_files(root)}
    return _as_tables(root, _paired(root, spans), time_expansion)


def read_generic(root: Path, time_expansion: float) -> tuple[Table, tuple[str, ...]]:
    """Recordings named in the generic sequences (*.csv with onset_s and offset_s) in `root`."""
    recordings: dict[str, list] = {}
    for path in sorted(root.glob("*.csv")):
        for annotation in _load(crowsetta.formats.seq.GenericSeq.from_file, path).annots:
            # The table may name the place where it was written: what counts is the name below root.
            file = _below(root, Path(annotation.notated_path))
            spans = recordings.setdefault(file, [])
            for segment in annotation.seq.segments:
                if segment.onset_s is None:
                    raise CollectionError(f"{path}: has no onset_s and offset_s (seconds)")
                spans.append((segment.onset_s, segment.offset_s, segment.label))
    if not recordings:
        raise CollectionError(f"{root}: no generic sequences (*.csv) in this folder")
    return _as_tables(root, recordings, time_expansion)


READERS = {
    "fruit-bats": read_fruit_bats,
    "raven": read_raven,
    "audacity": read_audacity,
    "generic": read_generic,
}


def _annotation_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() == ".txt")


def _load(reader, path: Path, **options):
    """What crowsetta reads from `path`; whatever it raises becomes one line."""
    try:
        return reader(path, **options)
    except Exception as error:  # pandas, pandera and crowsetta have a dozen kinds between them
        reason = str(error).strip().splitlines()[0][:200]
        raise CollectionError(f"{path}: cannot be read as annotations ({reason})") from None


def _raven(path: Path) -> Iterator[tuple[float, float, str]]:
    for box in _load(crowsetta.formats.bbox.Raven.from_file, path).to_bbox():
        yield box.onset, box.offset, box.label


def _audacity(path: Path) -> Iterator[tuple[float, float, str]]:
    track = _load(crowsetta.formats.seq.AudSeq.from_file, path)
    yield from zip(track.start_times, track.end_times, track.labels, strict=True)


def _paired(root: Path, annotated: dict[Path, Spans]) -> dict[str, Spans]:
    """Spans of every recording below root, found by the part of both names before Raven's suffix."""
    spans = {_stem(path): found for path, found in annotated.items()}
    files = audio.find(root)
    unpaired = sorted(set(spans) - {path.with_suffix("") for path in files})
    if unpaired:
        raise CollectionError(f"{unpaired[0]}: annotations without a recording of this name")
    return {str(path.relative_to(root)): spans.get(path.with_suffix(""), []) for path in files}


def _stem(path: Path) -> Path:
    name = path.name.removesuffix(path.suffix)
    return path.with_name(name.removesuffix(".selections").partition(".Table.")[0])


def _below(root: Path, path: Path) -> str:
    """The longest end of `path` that is a file below root, or its name."""
    for first in range(len(path.parts)):
        end = Path(*path.parts[first:])
        if not end.is_absolute() and ".." not in end.parts and (root / end).is_file():
            return str(end)
    return path.name


def _as_tables(
    root: Path, recordings: dict[str, Spans], time_expansion: float
) -> tuple[Table, tuple[str, ...]]:
    labels = sorted({label for spans in recordings.values() for *_, label in spans})
    context = {label: code for code, label in enumerate(labels)}
    files, annotations, report = [], [], []
    for file_id, (file, spans) in enumerate(sorted(recordings.items()), 1):
        files.append((file_id, file, "", "", "", 0))
        try:
            rate = audio.probe(root / file, time_expansion).samplerate
        except audio.AudioError:
            rate = 1  # the scan of headers drops the recording and its spans
        for line, (onset, offset, label) in enumerate(spans, 1):
            start, stop = round(onset * rate), round(offset * rate)
            codes = dict.fromkeys(tables.CODE_COLUMNS, 0) | {"context": context[label]}
            if not 0 <= start < stop:
                detail = f"{onset:g}..{offset:g} s"
                for table in (SEGMENTS, ANNOTATIONS):
                    why = ("end before start", detail)
                    report.append((table, line, file_id, "dropped", *why))
                continue
            annotations.append((file_id, *codes.values(), start, stop, line))
    annotated = pd.DataFrame(annotations, columns=tables.ANNOTATION_COLUMNS, dtype="int64")
    frame = pd.DataFrame(files, columns=tables.RECORDING_COLUMNS).astype(tables.RECORDING_TYPES)
    frame["recorded"] = pd.to_datetime(frame["recorded"]).astype("datetime64[us]")
    count = sum(len(spans) for spans in recordings.values())
    table = Table(
        {FILE_INFO: frame, SEGMENTS: annotated[tables.VOICE_COLUMNS], ANNOTATIONS: annotated},
        {FILE_INFO: len(files), SEGMENTS: count, ANNOTATIONS: count},
        pd.DataFrame(report, columns=tables.REPORT_COLUMNS).astype(tables.REPORT_TYPES),
    )
    return table, tuple(labels)
