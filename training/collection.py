"""A collection of annotated recordings as one validated Parquet index.

    collection = open_collection("egyptian_fruit_bats")     # builds index.parquet where there is none
    collection.recordings.iloc[29]                          # file, treatment, samplerate, frames, ...
    collection.voice_of(29), collection.annotations_of(29)  # spans [start, stop) in the file's samples

`build_index` joins the two tables of the flying-fox collection (training/tables.py), or annotations in
another format (training/formats.py), with the headers of the audio files. Whatever is not kept, is
listed with its reason in a report beside the index, so that rows read = rows kept + rows reported as
dropped. Nothing is written in place of a good index until the new one is complete.
"""

import dataclasses
import json
import os
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from denet_torch import audio, recorder
from denet_torch.files import MAX_MESSAGE, printable, refuse_pipes, replacing
from denet_torch.files import reason as line_of
from denet_torch.schema import shown
from training import formats
from training.annotations import GOES_ON, is_background, is_text
from training.dates import date_in_name
from training.tables import (
    ANNOTATIONS,
    CODE_COLUMNS,
    FILE_INFO,
    FREQUENCY_COLUMNS,
    FRUIT_BATS,
    SEGMENTS,
    CollectionError,
    Reading,
    Table,
    is_factor,
)

INDEX_NAME = "index.parquet"
INDEX_VERSION = 3  # of the columns; an index of another one is built anew
SCAN_BLOCK = 5000  # headers between two saves of a scan
# Why a span is dropped that lies somewhere in its recording, nobody knows where.
LOST = (
    "unparsable number",
    "end before start",
    "no length",
    "blank field",
    "too few columns",
    "unknown code",
    "no File Offset (s)",
    GOES_ON,
)
EXPLAINED = ("noted", "passed over", "unknown")  # actions that a summary gives the detail of
HEADER_TYPES = {
    **dict.fromkeys(["file", "found", "reason", "fault", "recorded", "doubt"], "str"),
    **dict.fromkeys(["samplerate", "frames"], "int64"),
    "time_expansion": "float64",
}


@dataclass(frozen=True)
class Collection:
    """Recordings and the spans of both sources, [start, stop) in samples of the file from 0.

    recordings: one row each; file_id, file (below root), treatment, channel, recorded (NaT if nothing tells),
        samplerate (true rate, Hz; recordings may have different ones), frames (both <NA> in an index made without
        headers), complete (False if a span of it was dropped or nobody annotated it, so that what looks like
        background may be a call).
    voice: recording (row number in recordings), start, stop, sorted by these.
    annotations: recording, start, stop, then tables.CODE_COLUMNS, low_hz and high_hz (Hz, NaN where the
        table does not tell), sorted likewise.
    contexts: name of each context code. rows: table name -> {"read", "kept", "dropped"}.
    reading: how it was read; data_format is what it was recognised as.
    """

    root: Path
    recordings: pd.DataFrame
    voice: pd.DataFrame
    annotations: pd.DataFrame
    contexts: tuple[str, ...]
    time_expansion: float
    rows: dict[str, dict[str, int]]
    reading: Reading = Reading(FRUIT_BATS)

    @property
    def one_source(self) -> bool:
        """Whether the annotations stand for voiced segments too, since there is no other table."""
        return self.reading.data_format != FRUIT_BATS

    def path(self, recording: int) -> Path:
        """Where a recording lies."""
        return self.root / self.recordings["file"].iat[recording]

    def require_headers(self) -> None:
        """Raise CollectionError if the lengths of the recordings are not known."""
        if self.recordings["frames"].isna().any():
            raise CollectionError(f"{self.root}: was indexed without headers; index it again with them")

    def voice_of(self, recording: int) -> pd.DataFrame:
        """Voiced segments of a recording."""
        return _of(self.voice, recording)

    def annotations_of(self, recording: int) -> pd.DataFrame:
        """Annotated spans of a recording."""
        return _of(self.annotations, recording)


def _of(spans: pd.DataFrame, recording: int) -> pd.DataFrame:
    first, last = np.searchsorted(spans["recording"].to_numpy(), [recording, recording + 1])
    return spans.iloc[first:last]


def open_collection(root: str | Path, index: str | Path | None = None, **reading) -> Collection:
    """Read the index of the collection in folder `root`, building it first if absent or outdated.

    reading: fields of `Reading`; one that differs from the index's own builds it anew, too. What is not given is as
    it was when the index was built. Raises CollectionError.
    """
    root = Path(root)
    index = root / INDEX_NAME if index is None else Path(index)
    if not index.exists():
        return build_index(root, index, **reading)[0]
    facts = _facts(index)
    before = Reading(**facts["reading"]) if "reading" in facts else Reading(FRUIT_BATS)
    wanted = dataclasses.replace(before, **reading)
    if wanted != before or _outdated(root, facts):
        return build_index(root, index, **vars(wanted))[0]
    return read_index(index, root)


def build_index(
    root: str | Path, index: str | Path | None = None, **reading
) -> tuple[Collection, pd.DataFrame]:
    """Write the index of `root` and its report (index.report.csv) and return both.

    reading: fields of `Reading`. An interrupted scan of headers goes on where it was.
    Raises CollectionError for a folder, table or recordings that cannot be used.
    """
    root = Path(root)
    index = root / INDEX_NAME if index is None else Path(index)
    asked = Reading(**reading)
    if not root.is_dir():
        raise CollectionError(f"{root}: no such folder")
    how = dataclasses.replace(asked, data_format=asked.data_format or formats.recognise(root, not asked.completely_annotated))
    stamps = formats.stamps(root, how.data_format if how.data_format == FRUIT_BATS else asked.data_format)
    try:
        scanned = None
        if how.headers and how.data_format != FRUIT_BATS:  # tables in seconds are read with the time expansion known
            scanned = scan_headers(root, pd.Series(filter(is_text, formats.recordings(root)), dtype="str"), _scan_path(index))
        how = _with_factor(how, root, scanned)
        table, contexts = formats.READERS[how.data_format](root, how)
        if how.headers and scanned is None:
            scanned = scan_headers(root, table.rows[FILE_INFO]["file"], _scan_path(index))
            how = _with_factor(dataclasses.replace(how, time_expansion=asked.time_expansion), root, scanned)
        collection, report = _join(root, table, contexts, scanned, how)
        with replacing(report_path(index)) as path:
            report.to_csv(path, index=False)
        _write_index(collection, index, asked, stamps)
    except OSError as error:
        raise CollectionError(f"{index}: cannot be written ({error.strerror or error})") from None
    _scan_path(index).unlink(missing_ok=True)
    return collection, report


def read_index(index: str | Path, root: str | Path | None = None) -> Collection:
    """Read an index; `root` is the folder that the recordings lie in, by default the index's own."""
    index = Path(index)
    facts = _facts(index)
    if facts.get("version") != INDEX_VERSION:
        raise CollectionError(f"{index}: is of another version of this program; index the collection again")
    try:
        table = pq.read_table(index)
        _check_columns(table)
        recordings = table.drop_columns(["voice", "annotations"]).to_pandas()
        collection = Collection(
            Path(root or index.parent),
            recordings.astype({"samplerate": "Int64", "frames": "Int64"}),
            _unpack(table["voice"]),
            _unpack(table["annotations"]),
            tuple(facts["contexts"]),
            facts["time_expansion"],
            facts["rows"],
            Reading(**facts["reading"] | {"data_format": facts["data_format"]}),
        )
        _check(collection)
    except MemoryError:
        raise
    except Exception as error:  # whatever pandas and pyarrow make of tables that are not ours
        raise CollectionError(f"{index}: is no index ({line_of(error)}); delete it and it is built anew") from None
    return collection


TEXTS, COUNTS, SPANS = ("file", "treatment", "channel"), ("file_id", "samplerate", "frames"), {"voice": [], "annotations": []}
SPANS["annotations"] = [*CODE_COLUMNS, *FREQUENCY_COLUMNS]
MAX_FRAMES = 2**34  # samples of a recording: 19 hours at 250 kHz; see training.labels
MAX_CODE = 2**53


def _check_columns(table: pa.Table) -> None:
    """Raise ValueError unless an index has the columns of ours, of their types."""
    if wrong := {*table.column_names} ^ {*TEXTS, *COUNTS, *SPANS, "recorded", "complete"}:
        raise ValueError(f"the column {shown(min(wrong))} is missing or too much")
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    right = {name: pa.types.is_string(types[name]) or pa.types.is_large_string(types[name]) for name in TEXTS}
    right |= {name: pa.types.is_integer(types[name]) for name in COUNTS}
    right |= {"complete": pa.types.is_boolean(types["complete"]), "recorded": pa.types.is_timestamp(types["recorded"])}
    for name, more in SPANS.items():
        fields = {field.name: field.type for field in types[name].value_type} if _is_list_of_structs(types[name]) else {}
        numbers = {field: pa.types.is_floating if field in FREQUENCY_COLUMNS else pa.types.is_integer for field in fields}
        right[name] = [*fields] == ["start", "stop", *more] and all(numbers[field](kind) for field, kind in fields.items())
    for name in [name for name in right if name not in ("recorded", "samplerate", "frames")]:
        values = [table[name], *(table[name].combine_chunks().flatten().flatten() if right[name] and name in SPANS else ())]
        right[name] &= not any(value.null_count for value in values)
    if wrong := [name for name, good in right.items() if not good]:
        raise ValueError(f"the column {wrong[0]} holds something else than in an index of ours")


def _is_list_of_structs(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)


def _check(collection: Collection) -> None:
    """Raise ValueError if an index says what none of ours does: recordings elsewhere, lengths below 0, calls behind their end."""
    rows = collection.recordings
    for file in rows["file"]:
        parts = file.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or re.fullmatch("[A-Za-z]:", parts[0]) or "\0" in file:
            raise ValueError(f"{shown(file)} is not below the collection's folder")
    if rows["file"].duplicated().any():
        raise ValueError("a recording stands in two rows")
    known = rows[["samplerate", "frames"]].notna().to_numpy()
    if known.any() and not known.all():
        raise ValueError("a recording has no rate or no length")
    for name, (low, high) in {"samplerate": audio.RATES, "frames": (1, MAX_FRAMES - 1)}.items():
        if known.all() and not rows[name].between(low, high).all():
            raise ValueError(f"a recording's {name} is not from {low} to {high}")
    frames = rows["frames"].fillna(MAX_FRAMES).to_numpy(np.int64)
    for spans in (collection.voice, collection.annotations):
        if ((spans["start"] < 0) | (spans["stop"] <= spans["start"]) | (spans["stop"] > frames[spans["recording"]])).any():
            raise ValueError("a call lies outside of its recording")
    calls = collection.annotations
    codes = (calls[CODE_COLUMNS].abs() < MAX_CODE).to_numpy()
    if not calls["context"].between(0, len(collection.contexts) - 1).all() or not codes.all():
        raise ValueError("a call has a code that has no name")
    if not (calls[FREQUENCY_COLUMNS].isna() | (calls[FREQUENCY_COLUMNS].abs() < audio.RATES[1])).to_numpy().all():
        raise ValueError("a call's frequency is none")


def _check_facts(facts: Any) -> None:
    """Raise ValueError unless an index says of itself what ours do. One of an earlier version only has to say which."""
    if not isinstance(facts, dict) or "reading" in facts and type(facts.get("version")) is not int:
        raise ValueError("what it says of itself is no object")
    try:
        known = Reading(**facts.get("reading", {})).data_format in (None, *formats.READERS)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise ValueError("it was read in no way that is known here")
    if facts.get("version") != INDEX_VERSION:
        return
    if facts.get("data_format") not in [*formats.READERS] or "reading" not in facts or "stamps" not in facts:
        raise ValueError("it does not say what it was read from")
    if not isinstance(facts.get("contexts"), list) or not all(isinstance(name, str) and name for name in facts["contexts"]):
        raise ValueError("its classes are no list of names")
    if not is_factor(facts.get("time_expansion")):
        raise ValueError(f"the time expansion is {shown(facts.get('time_expansion'))}")
    rows = facts.get("rows")
    counts = [*rows.values()] if isinstance(rows, dict) else [None]
    if not all(isinstance(one, dict) and [*one] == ["read", "kept", "dropped"] for one in counts) or not all(
        type(number) is int and number >= 0 for one in counts for number in one.values()
    ):
        raise ValueError("it counts no rows")


def _with_factor(how: Reading, root: Path, scanned: pd.DataFrame | None) -> Reading:
    """`how` with the time expansion that the recordings' metadata tell, where none is given."""
    if how.time_expansion is not None:
        return how
    if scanned is None:
        return dataclasses.replace(how, time_expansion=1.0)
    good = scanned[scanned["reason"] == ""]
    for row in good[good["doubt"] != ""].itertuples():
        raise CollectionError(recorder.question(root / row.file, row.doubt))
    first = good.drop_duplicates("time_expansion").set_index("time_expansion")["file"]
    try:
        factor = recorder.one_factor({factor: str(root / file) for factor, file in first.items()})
    except ValueError as error:
        raise CollectionError(str(error)) from None
    return dataclasses.replace(how, time_expansion=factor)


def _facts(index: Path) -> dict:
    """What an index says of itself. Raises CollectionError."""
    try:
        refuse_pipes(index)
        facts = json.loads(pq.read_schema(index).metadata[b"collection"])
        _check_facts(facts)
        return facts
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CollectionError(f"{index}: is no index of a collection ({line_of(error)})") from None


def summary(collection: Collection, report: pd.DataFrame) -> str:
    """What was read, kept and dropped, and why: a line each."""
    names, lines = _names(collection), row_counts(collection)
    for (table, action, reason), rows in report.groupby(["table", "action", "reason"]):
        first = rows.iloc[0]
        where = first["file"] + (f" line {first['line']}" if first["line"] else "")
        why = f": {first['detail']}" if action in EXPLAINED and first["detail"] else ""
        line = f"  {len(rows)} {action}: {reason} ({names.get(table, table)}); first: {where}{why}"
        lines.append(printable(line, MAX_MESSAGE))
    return "\n".join(lines + recording_facts(collection))


def row_counts(collection: Collection, lossy: bool = False) -> list[str]:
    """Rows read, kept and dropped of each table, a line each; with `lossy`, of those alone of which some were dropped."""
    names = _names(collection)
    return [
        f"{names.get(table, table)}: {rows['read']} rows read, {rows['kept']} kept, {rows['dropped']} dropped"
        for table, rows in collection.rows.items()
        if rows["dropped"] or not lossy
    ]


def _names(collection: Collection) -> dict[str, str]:
    return {FILE_INFO: "Recordings", ANNOTATIONS: "Annotations"} if collection.one_source else {}


def _alike(labels: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Groups of labels that differ in letter case, spaces or the bytes of an umlaut alone."""
    groups = {}
    for label in labels:
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", label).casefold().split()), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def recording_facts(collection: Collection) -> list[str]:
    """The format, sampling rates, time expansion and dates of a collection, and labels that may be meant to be one: a line each
    where there is something to say."""
    recordings, lines = collection.recordings, []
    if collection.one_source:
        lines.append(f"Format of the annotations: {collection.reading.data_format}")
    rates = recordings["samplerate"].dropna().value_counts()
    if collection.one_source or len(rates) > 1:
        of = [f"{count} recordings at {rate:,} Hz" for rate, count in rates.sort_index().items()]
        lines.append(f"Sampling rates: {', '.join(of)}")
    if collection.time_expansion != 1:
        lines.append(f"Time expansion {collection.time_expansion:g}: rates and times are the true ones")
    if collection.one_source:
        dated = recordings["recorded"].notna()
        days = recordings["recorded"].dt.floor("D").nunique()
        lines.append(f"Dates: {dated.sum()} of {len(dated)} recordings, {days} days")
        if alike := _alike(collection.contexts):
            groups = ", ".join(" and ".join(map(ascii, group)) for group in alike)
            lines.append(printable(f"Different classes whose labels look alike: {groups}", MAX_MESSAGE))
    return lines


def report_path(index: str | Path) -> Path:
    """Where the report of an index lies."""
    return Path(index).with_suffix(".report.csv")


def scan_headers(root: Path, files: pd.Series, saved: Path | None = None) -> pd.DataFrame:
    """Headers of `files` below `root`, one row each in their order (HEADER_TYPES).

    `found` is the file as it is spelled on disk (.WAV or .wav); `reason` is empty or says why the file
    cannot be used, `fault` how its header disagrees with it; `recorded` (ISO), `time_expansion` and `doubt` are what its
    metadata tell. Good headers are saved to `saved` every SCAN_BLOCK files and not read again.
    """

    def scan(file: str) -> tuple:
        for found in (file, _other_case(file)):
            try:
                info = audio.probe(root / found, values=True)
                told = recorder.metadata(root / found)
                recorded = told.recorded.isoformat() if told.recorded else ""
                factor = told.time_expansion or 1.0
                return file, found, "", info.fault, recorded, told.doubt, info.samplerate, info.frames, factor
            except audio.AudioError as error:
                if error.reason != "file missing":
                    return file, found, error.reason, "", "", "", 0, 0, 1.0
        return file, file, "file missing", "", "", "", 0, 0, 1.0

    done = _read_scan(saved)
    left = files[~files.isin(done["file"])].tolist()
    bar = tqdm(total=len(files), initial=len(files) - len(left), desc="headers", unit="file")
    with bar, ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        for first in range(0, len(left), SCAN_BLOCK):
            rows = []
            for row in pool.map(scan, left[first : first + SCAN_BLOCK]):
                rows.append(row)
                bar.update()
            done = pd.concat([done, pd.DataFrame(rows, columns=list(HEADER_TYPES))], ignore_index=True)
            if saved is not None and first + SCAN_BLOCK < len(left):
                with replacing(saved) as path:
                    done[done["reason"] == ""].to_parquet(path)
    return done.astype(HEADER_TYPES).set_index("file").loc[files].reset_index()


def _other_case(file: str) -> str:
    suffix = Path(file).suffix
    return file.removesuffix(suffix) + suffix.swapcase()


def _scan_path(index: Path) -> Path:
    return index.with_suffix(".headers")


def _read_scan(saved: Path | None) -> pd.DataFrame:
    if saved is not None and saved.exists():
        try:
            return pd.read_parquet(saved, columns=list(HEADER_TYPES))
        except (OSError, pa.ArrowException, ValueError):
            pass  # written by something else: scan again
    return pd.DataFrame(columns=list(HEADER_TYPES))


def _join(
    root: Path,
    table: Table,
    contexts: tuple[str, ...],
    scanned: pd.DataFrame | None,
    how: Reading,
) -> tuple[Collection, pd.DataFrame]:
    """A collection from its tables and headers, and the report of all that was dropped or cut."""
    report = [table.report]
    recordings = table.rows[FILE_INFO]
    if scanned is None:
        recordings = recordings.assign(samplerate=pd.NA, frames=pd.NA)
    else:
        scanned = _expanded(scanned, how.time_expansion).set_index("file").loc[recordings["file"]].reset_index()
        recordings, dropped = _join_headers(recordings, scanned, how.rate)
        report.append(dropped)
    recordings = _dated(recordings)
    recordings = recordings.astype({"samplerate": "Int64", "frames": "Int64"})
    spans = {}
    for name in [name for name in table.rows if name != FILE_INFO]:
        known = table.rows[FILE_INFO]["file_id"]
        spans[name], dropped = _place_spans(table.rows[name], name, recordings, known)
        report.append(dropped)
    report = pd.concat(report, ignore_index=True)
    lost = report[(report["table"] != FILE_INFO) & report["reason"].isin(LOST)]
    complete = ~recordings["file_id"].isin(lost["file_id"].dropna())
    # Of whose calls all lie behind the end: the table may be of a longer recording.
    late = report.loc[(report["table"] == ANNOTATIONS) & (report["reason"] == "past the end"), "file_id"].dropna()
    has_any = recordings.index.isin(recordings.index[np.unique(spans[ANNOTATIONS]["recording"].to_numpy(np.int64))])
    complete &= has_any | ~recordings["file_id"].isin(late)
    if "annotated" in recordings:
        complete &= recordings["annotated"]
    recordings = recordings.drop(columns=["annotated", "source"], errors="ignore").assign(complete=complete)
    kept = {FILE_INFO: recordings} | spans
    annotations = spans[ANNOTATIONS].reindex(
        columns=["recording", "start", "stop", *CODE_COLUMNS, *FREQUENCY_COLUMNS]
    )
    collection = Collection(
        root,
        recordings.drop(columns="line").reset_index(drop=True),
        _voice(spans.get(SEGMENTS), annotations, contexts),
        annotations.astype(dict.fromkeys(FREQUENCY_COLUMNS, "float64")),
        contexts,
        how.time_expansion,
        {name: _count(name, table.read[name], kept[name], report) for name in kept},
        how,
    )
    return collection, report


def _voice(segments: pd.DataFrame | None, annotations: pd.DataFrame, contexts: tuple[str, ...]) -> pd.DataFrame:
    """Voiced segments: of their own table, else every annotation that is not named after the background."""
    if segments is None:
        segments = annotations[~annotations["context"].isin(background_codes(contexts))]
    return segments[["recording", "start", "stop"]].reset_index(drop=True)


def background_codes(contexts: tuple[str, ...]) -> list[int]:
    """Codes of annotations by which somebody said that there is no call."""
    return [code for code, name in enumerate(contexts) if is_background(name)]


def _expanded(scanned: pd.DataFrame, time_expansion: float) -> pd.DataFrame:
    """Headers with the true rates; one that no sound has is no header that can be used."""
    rates = [audio.true_rate(header, time_expansion) for header in scanned["samplerate"]]
    possible = pd.Series([audio.RATES[0] <= rate <= audio.RATES[1] for rate in rates], scanned.index, dtype=bool)
    reason = scanned["reason"].mask((scanned["reason"] == "") & ~possible, "impossible rate")
    return scanned.assign(samplerate=[rate if fits else 0 for rate, fits in zip(rates, possible, strict=True)], reason=reason)


def _join_headers(
    recordings: pd.DataFrame, scanned: pd.DataFrame, rate: int | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recordings with their headers, and the report of those that cannot be used."""
    scanned = scanned.set_axis(recordings.index)
    reason = scanned["reason"]
    detail = recordings["file"]
    if rate is not None:
        other = (reason == "") & (scanned["samplerate"] != rate)
        reason = reason.mask(other, "other rate")
        detail = detail.mask(other, detail + " " + scanned["samplerate"].astype("str") + " Hz")
    good = reason == ""
    dropped = _reported(recordings[~good], FILE_INFO, "dropped", reason[~good], detail[~good])
    faulty = good & (scanned["fault"] != "")
    noted = _reported(recordings[faulty], FILE_INFO, "noted", "header disagrees", scanned.loc[faulty, "fault"])
    told = pd.to_datetime(scanned["recorded"].where(scanned["recorded"] != ""), format="ISO8601").astype("datetime64[us]")
    columns = {name: scanned.loc[good, name] for name in ("samplerate", "frames")}
    recordings = recordings[good].assign(
        file=scanned.loc[good, "found"], recorded=recordings["recorded"].fillna(told)[good], **columns
    )
    return recordings, pd.concat([dropped, noted])


def _dated(recordings: pd.DataFrame) -> pd.DataFrame:
    """With the dates in the names of those that neither a table nor the recorder dates."""
    blank = recordings["recorded"].isna()
    named = pd.Series([date_in_name(file) for file in recordings.loc[blank, "file"]], recordings.index[blank])
    return recordings.assign(recorded=recordings["recorded"].fillna(named.astype("datetime64[us]")))


def _place_spans(
    spans: pd.DataFrame, table: str, recordings: pd.DataFrame, known: pd.Series
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Spans of kept recordings, cut to their lengths and sorted, with `recording` for file_id."""
    recording = pd.Index(recordings["file_id"]).get_indexer(spans["file_id"])
    if "onset" in spans:
        spans = _in_samples(spans, recordings["samplerate"].to_numpy(np.int64), recording)
    frames = recordings["frames"].fillna(np.iinfo(np.int64).max).to_numpy(np.int64)
    length = np.zeros(len(spans), np.int64)
    length[recording >= 0] = frames[recording[recording >= 0]]
    reason = np.select(
        [~spans["file_id"].isin(known), recording < 0, spans["start"] >= length],
        ["no such recording", "recording dropped", "past the end"],
        "",
    )
    detail = (spans["start"] + 1).astype("str") + ".." + spans["stop"].astype("str")
    gone = reason != ""
    cut = ~gone & (spans["stop"] > length)
    report = pd.concat(
        [
            _reported(spans[gone], table, "dropped", reason[gone], detail[gone]),
            _reported(spans[cut], table, "clipped", "past the end", detail[cut]),
        ]
    )
    placed = spans.assign(recording=recording, stop=np.minimum(spans["stop"], length))[~gone]
    placed = placed.sort_values(["recording", "start", "stop"], kind="stable", ignore_index=True)
    return placed, report


def _in_samples(spans: pd.DataFrame, samplerate: np.ndarray, recording: np.ndarray) -> pd.DataFrame:
    """Spans with start and stop for onset and offset (s); a call shorter than a sample has one."""
    rate = np.ones(len(spans), np.int64)  # of recordings that were dropped, with their spans
    rate[recording >= 0] = samplerate[recording[recording >= 0]]
    start, stop = ((spans[name] * rate).round().astype("int64") for name in ("onset", "offset"))
    return spans.assign(start=start, stop=np.maximum(stop, start + 1))


def _reported(
    rows: pd.DataFrame, table: str, action: str, reason: object, detail: pd.Series
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "table": table,
            "line": rows["line"],
            "file_id": rows["file_id"].astype("Int64"),
            "action": action,
            "reason": reason,
            "detail": detail,
            "file": rows["source"] if "source" in rows else ANNOTATIONS if table == ANNOTATIONS else FILE_INFO,
        }
    )


def _count(name: str, read: int, kept: pd.DataFrame, report: pd.DataFrame) -> dict[str, int]:
    dropped = int(((report["table"] == name) & (report["action"] == "dropped")).sum())
    if read != len(kept) + dropped:  # not an assert: this is what the report promises
        raise RuntimeError(f"{name}: {read} rows read, {len(kept)} kept, {dropped} reported")
    return {"read": read, "kept": len(kept), "dropped": dropped}


def _write_index(collection: Collection, index: Path, asked: Reading, stamps: dict | str) -> None:
    facts = {
        "version": INDEX_VERSION,
        "contexts": collection.contexts,
        "time_expansion": collection.time_expansion,
        "rows": collection.rows,
        "reading": vars(asked),
        "data_format": collection.reading.data_format,
        "stamps": stamps,
    }
    count = len(collection.recordings)
    table = pa.Table.from_pandas(collection.recordings, preserve_index=False)
    table = table.append_column("voice", _pack(collection.voice, count))
    table = table.append_column("annotations", _pack(collection.annotations, count))
    table = table.replace_schema_metadata({"collection": json.dumps(facts)})
    with replacing(index) as path:
        pq.write_table(table, path, compression="zstd")


def _pack(spans: pd.DataFrame, recordings: int) -> pa.Array:
    """Spans as one list of structs per recording."""
    offsets = np.searchsorted(spans["recording"].to_numpy(), np.arange(recordings + 1))
    columns = spans.drop(columns="recording")
    structs = pa.StructArray.from_arrays(
        [pa.array(columns[name].to_numpy()) for name in columns], names=list(columns)
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)


def _unpack(column: pa.ChunkedArray) -> pd.DataFrame:
    lists = column.combine_chunks()
    spans = pa.Table.from_struct_array(lists.flatten()).to_pandas()
    lengths = lists.value_lengths().to_numpy()
    spans.insert(0, "recording", np.repeat(np.arange(len(lists)), lengths))
    return spans


def _outdated(root: Path, facts: dict) -> bool:
    """Whether a table or recording was changed or added since the index with these facts was made."""
    if "reading" not in facts:  # of the first version, which only knew one layout
        return (root / FILE_INFO).exists()
    if facts["version"] != INDEX_VERSION:
        return True
    data_format = FRUIT_BATS if facts["data_format"] == FRUIT_BATS else facts["reading"]["data_format"]
    return facts["stamps"] != formats.stamps(root, data_format)
