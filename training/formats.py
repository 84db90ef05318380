"""Annotations of other collections, made into the rows of training/tables.py.

A table belongs to the recording that its rows name (Raven's Begin File, a generic sequence), or else to the one it is
named after: `call.wav` is described by `call.txt`, `call.Table.1.selections.txt`, `call.wav.Table01.txt` and the like,
in its folder, or in the most similar folder that holds no recordings. A recording may have several tables; an empty one
says that it holds no call. A recording without a table is unknown, unless the collection is said to be completely annotated.

There is no second table: every annotated call is a voiced segment too. A label's place among the sorted labels is its
context; who called is unknown (0).
"""

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pandas as pd

from denet_torch import audio
from denet_torch.files import walk
from training import annotations, tables
from training.annotations import SUFFIXES, Annotations, NotATable
from training.tables import ANNOTATIONS, FILE_INFO, FRUIT_BATS, CollectionError, Reading, Table

# What programs put between a recording's name and the end of its table's.
_TABLE_WORD = re.compile(
    r"[._ -](?:tables?|selections?|labels?|annotations?|results?|scores?|detections?|events?|calls?|audacity|raven|birdnet|"
    r"batdetect2|hawkears|corrected|edited|reviewed|checked|verified|annotated|txt|csv)(?:[._ -]?\d+|[._ -]?\(\d+\))?$",
    re.IGNORECASE,
)
# A file of tools.detect with the calls of all recordings, beside one a recording, which a person corrects.
COMBINED = "combined.txt"
OWN_RESULTS = ("events.csv", "recordings.csv")  # of tools.detect: what lies below them are no annotations
OWN_FILES = re.compile(r"index\.(parquet|report\.csv|headers)|split-[0-9a-f]+\.csv")
MAX_LABELS = 10_000
FOREIGN = {  # tables that are not read, and what to do with them
    ".xlsx": "a spreadsheet: save it as .csv",
    ".xls": "a spreadsheet: save it as .csv",
    ".ods": "a spreadsheet: save it as .csv",
    ".textgrid": "Praat's: save it by Down to Table as .txt",
    ".eaf": "ELAN's: export it as tab-delimited text",
}


def read_fruit_bats(root: Path, how: Reading) -> tuple[Table, tuple[str, ...]]:
    """Both tables of the flying-fox collection and the names of its contexts."""
    file_info = tables.read_file_info(root / FILE_INFO)
    annotated = tables.read_annotations(root / ANNOTATIONS)
    both = Table(
        file_info.rows | annotated.rows,
        file_info.read | annotated.read,
        pd.concat([file_info.report, annotated.report], ignore_index=True),
    )
    return both, tables.CONTEXTS


def read_tables(root: Path, how: Reading) -> tuple[Table, tuple[str, ...]]:
    """All recordings below `root` and their calls in tables of one of the formats of training/annotations.py.

    Raises CollectionError if no table could be read.
    """
    if not how.headers:
        raise CollectionError(f"{root}: the seconds of {how.data_format} tables need the recordings' headers (no --no-headers)")
    return _Collected(root, how).table()


MIXED = "mixed"  # each table in the format that it looks like
READERS: dict[str, Callable[[Path, Reading], tuple[Table, tuple[str, ...]]]] = {
    FRUIT_BATS: read_fruit_bats,
    **dict.fromkeys([*SUFFIXES, MIXED], read_tables),
}


def recognise(root: Path, needed: bool = True) -> str:
    """The format that the tables in a folder have: a key of READERS.

    Only tables that mean a recording in the folder count. Raises CollectionError if there are none though they are `needed`,
    or if a recording has tables of several formats, of which some may be a program's results and no annotations.
    """
    if (root / FILE_INFO).exists():
        return FRUIT_BATS
    files = recordings(root)
    known, found, strange = Recordings([os.path.abspath(root / file) for file in files]), defaultdict(dict), ""
    paths, passed = table_files(root)
    for path in paths:
        name = os.path.abspath(path)
        owner = known.beside(name)
        owner = known.elsewhere(name) if owner is None else owner
        try:
            if not path.stat().st_size:
                needed &= owner is None  # a table of any format without a call
                continue
            data_format = annotations.recognise(path)
            named = () if owner is not None else annotations.read(path, data_format).files
        except (NotATable, OSError):
            continue
        places = {owner, *(place for file in named for place in known.named(file, os.path.dirname(name)))} - {None}
        if not places:
            strange = strange or f"{path.relative_to(root)} ({data_format}) is named after none of them; "
        for place in places:
            found[place].setdefault(data_format, name)
    for place, tables_of in found.items():
        if len(tables_of) > 1:
            several = " and ".join(f"{os.path.relpath(table, root)} ({name})" for name, table in tables_of.items())
            raise CollectionError(
                f"{root}: {files[place]} has {several}; name the format of the annotations with --data-format, or {MIXED} for all"
            )
    formats = {data_format for tables_of in found.values() for data_format in tables_of}
    foreign = [f"{path.relative_to(root)} is {why}; " for path, why in passed.items() if why in FOREIGN.values()]
    if not formats and needed:
        raise CollectionError(
            f"{root}: no annotations that belong to one of its {len(files)} recordings (see docs/data.md for the formats); "
            f"{''.join(foreign[:1])}{strange}name the format with --data-format to hear why a table is not read"
        )
    return "audacity" if not formats else formats.pop() if len(formats) == 1 else MIXED


def recordings(root: Path) -> list[str]:
    """Paths below `root` of all recordings in it."""
    return [str(path.relative_to(root)) for path in audio.find(root)]


def stamps(root: Path, data_format: str | None) -> dict[str, list[int]] | str:
    """What changes when a table of a format, or of any, or a recording of a collection does."""
    if data_format == FRUIT_BATS:
        stats = {name: (root / name).stat() for name in (FILE_INFO, ANNOTATIONS) if (root / name).exists()}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    digest = hashlib.sha256()
    for path in [*audio.find(root), *table_files(root, data_format)[0]]:
        stat = path.stat() if path.exists() else path.lstat()  # a link that leads nowhere
        digest.update(os.fsencode(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
    return digest.hexdigest()


def table_files(root: Path, data_format: str | None = None) -> tuple[list[Path], dict[Path, str]]:
    """Files below `root` that may be tables of a format (any, if none is named), sorted; and what is passed over: why."""
    suffixes = SUFFIXES.get(data_format) or tuple({suffix for some in SUFFIXES.values() for suffix in some})
    found, passed = [], {}
    for here, folders, names in walk(root):
        if here != root and set(OWN_RESULTS) <= set(names):
            folders.clear()
            passed[here] = "results of tools.detect"
            continue
        # ._a.txt: what macOS keeps of a.txt on other systems' disks.
        folders[:] = [name for name in folders if not name.startswith(".")]
        some = [name for name in names if name.lower().endswith(suffixes) and not name.startswith(".")]
        if here == root:
            own = OWN_RESULTS[1:] if set(OWN_RESULTS) <= set(names) else ()
            some = [name for name in some if not OWN_FILES.fullmatch(name) and name not in own]
        if len(some) > 1 and COMBINED in some:
            some.remove(COMBINED)
            passed[here / COMBINED] = "has the calls of the tables beside it"
        found += [here / name for name in some]
        foreign = {
            here / name: FOREIGN.get(PurePosixPath(name.lower()).suffix) for name in names if not name.startswith((".", "~$"))
        }
        passed |= {path: why for path, why in foreign.items() if why}
    return sorted(found), passed


def recording_of(table: str) -> str:
    """The path of a table without all that programs add to the recording's, perhaps without the recording's suffix."""
    return recordings_of(table)[-1]


def recordings_of(table: str) -> list[str]:
    """Paths that the recording of a table may have, the longest first: "bat_labels.txt" may be of bat_labels.wav or bat.wav."""
    path = PurePosixPath(table)
    names = [path.stem]
    while (shorter := _TABLE_WORD.sub("", names[-1])) not in (names[-1], ""):
        names.append(shorter)
    return [str(path.with_name(name or path.name)) for name in names]


class Recordings:
    """Finds the recording that a table means among paths below one folder."""

    def __init__(self, files: list[str]) -> None:
        self._by_name = defaultdict(list)
        for place, file in enumerate(files):
            parts = _parts(file)
            self._by_name[parts[-1]].append((place, parts, _spelled(file)))
        self._folders = {_parts(file)[:-1] for file in files}
        common = os.path.commonprefix([list(folder) for folder in self._folders]) if files else []
        self._top = len(common)  # folders above all of them

    def named(self, file: str, folder: str = "") -> list[int]:
        """Places of those that a row of a table in `folder` may mean: the one of the same path, from the top or below the
        folder of all, or those whose paths end most like it, whatever the audio suffix; of equal ones that in the table's
        folder, and of those the one in the same letter case. None, one or several."""
        wanted, spelled = _parts(file), _spelled(file)
        found = self._by_name.get(wanted[-1], [])
        here = _parts(f"{folder}/x")[:-1]
        if len(wanted) == 1 and here in self._folders:  # one of the same name in another folder is another recording
            found = [one for one in found if one[1][: len(here)] == here]
        rank = [
            (
                _folded(path) == _folded(spelled),
                parts[self._top :] == wanted,
                _shared(wanted, parts),
                parts[:-1] == here,
                _alike(parts[:-1], here),
                _folded(path[-1:]) == _folded(spelled[-1:]),
                _shared(_stem(spelled), _stem(path)),
            )
            for _, parts, path in found
        ]
        best = max(rank, default=None)
        return [place for (place, *_), value in zip(found, rank, strict=True) if value == best]

    def beside(self, table: str) -> int | None:
        """Place of the one that a table is named after, in its own folder."""
        for name in recordings_of(table):
            parts, spelled = _parts(name), _spelled(name)
            found = [one for one in self._by_name.get(parts[-1], []) if one[1] == parts]
            # Of a.wav, A.wav and a.flac: the one whose suffix is in the table's name, and else the letters.
            near = [(_folded(path) == _folded(spelled), _stem(path) == _stem(spelled)) for *_, path in found]
            if found:
                return found[near.index(max(near))][0]
        return None

    def elsewhere(self, table: str) -> int | None:
        """Place of the one that a table in a folder without recordings is named after; of several that whose folders have most
        of the table's: site/audio/a.wav of site/tables/a.txt, audio/site/a.wav of tables/site/a.txt."""
        for name in map(_parts, recordings_of(table)):
            if name[:-1] in self._folders:
                return None
            found = self._by_name.get(name[-1], [])
            near = [_alike(name, parts) for _, parts, _ in found]
            if found:
                return found[near.index(max(near))][0] if near.count(max(near)) == 1 else None
        return None


def _spelled(file: str) -> tuple[str, ...]:
    """Parts of a path as any system writes it: macOS' file names have other accents."""
    return PurePosixPath(unicodedata.normalize("NFC", file).replace("\\", "/")).parts or ("",)


def _folded(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The same in lower case: Windows' and macOS' file names have none."""
    return tuple(part.casefold() for part in parts)


def _stem(parts: tuple[str, ...]) -> tuple[str, ...]:
    """A path without an audio suffix."""
    *folders, name = parts
    path = PurePosixPath(name)
    return (*folders, path.stem if path.suffix.lower() in audio.SUFFIXES else name)


def _parts(file: str) -> tuple[str, ...]:
    return _folded(_stem(_spelled(file)))


def _alike(ours: tuple[str, ...], theirs: tuple[str, ...]) -> int:
    """Number of equal parts at both ends."""
    return _shared(ours, theirs) + _shared(ours[::-1], theirs[::-1])


def _shared(ours: tuple[str, ...], theirs: tuple[str, ...]) -> int:
    """Number of equal parts at the end."""
    count = 0
    for one, other in zip(reversed(ours), reversed(theirs), strict=False):
        if one != other:
            break
        count += 1
    return count


class _Collected:
    """The recordings and calls of a folder, and the report of what is not used."""

    def __init__(self, root: Path, how: Reading) -> None:
        self.root, self.how, self.report = root, how, []
        found = recordings(root)
        self.files = [file for file in found if self._can_be_named(file)]
        self.found = len(found)
        self.recordings = Recordings([self._whole(file) for file in self.files])
        self.annotated = {place: how.completely_annotated for place in range(len(self.files))}
        self.read, self.calls = 0, []
        self.recorded: list[tuple[int, str]] = []

    def table(self) -> tuple[Table, tuple[str, ...]]:
        paths, passed = table_files(self.root, self.how.data_format)
        for path, reason in passed.items():
            self._remark(ANNOTATIONS, str(path.relative_to(self.root)), 0, None, "passed over", reason, "")
        sources = {str(path.relative_to(self.root)): self._annotations(path) for path in paths}
        readable = {name: found for name, found in sources.items() if isinstance(found, Annotations)}
        if paths and not readable and not self.how.completely_annotated:
            raise CollectionError(f"{paths[0]}: {sources[str(paths[0].relative_to(self.root))]}")
        if not paths and not self.how.completely_annotated:
            suffixes = SUFFIXES.get(self.how.data_format, ())
            named = f" (*{', *'.join(suffixes)})" if suffixes else ""
            raise CollectionError(f"{self.root}: no {self.how.data_format} tables{named}")
        owners = self._owners(readable)
        for name, found in sources.items():
            if isinstance(found, Annotations):
                self._place(name, found, owners.get(name))
            else:
                self._remark(ANNOTATIONS, name, 0, None, "passed over", "no table", found)
        calls = self._calls(self.calls).astype({"file_id": "int64", "source": "str"})
        first = annotations.is_first(calls, "file_id")
        for row in calls[~first].itertuples():
            detail = f"{row.onset:g}..{row.offset:g} s {row.label}"
            self._remark(ANNOTATIONS, row.source, row.line, row.file_id, "dropped", "duplicate", detail)
        return self._as_table(calls[first])

    def _as_table(self, calls: pd.DataFrame) -> tuple[Table, tuple[str, ...]]:
        labels = sorted(calls["label"].unique())
        if len(labels) > MAX_LABELS:
            raise CollectionError(
                f"{self.root}: its annotations have {len(labels)} labels, more than {MAX_LABELS}; name the column of the classes "
                "with --label-column"
            )
        context = calls["label"].map({label: code for code, label in enumerate(labels)}).astype("int64")
        calls = calls.assign(**dict.fromkeys(tables.CODE_COLUMNS, 0))
        calls["context"] = context
        for place, known in self.annotated.items():
            if not known:
                detail = "its frames are not background: nobody said that there is no call"
                self._remark(FILE_INFO, self.files[place], 0, place + 1, "unknown", "no table", detail)
        rows = [(i, file, "", "", "", 0) for i, file in enumerate(self.files, 1)]
        recorded = annotations.earliest(self.recorded)
        frame = pd.DataFrame(rows, columns=tables.RECORDING_COLUMNS).astype(tables.RECORDING_TYPES)
        frame["recorded"] = pd.Series([recorded.get(i) for i in range(len(rows))]).astype("datetime64[us]")
        frame["annotated"] = [self.annotated[i] for i in range(len(rows))]
        frame["source"] = frame["file"]
        table = Table(
            {FILE_INFO: frame, ANNOTATIONS: calls},
            {FILE_INFO: self.found, ANNOTATIONS: self.read},
            pd.DataFrame(self.report, columns=tables.REPORT_COLUMNS).astype(tables.REPORT_TYPES),
        )
        return table, tuple(labels)

    def _can_be_named(self, file: str) -> bool:
        if not (good := annotations.is_text(file)):
            trouble = "is not in UTF-8, or holds a carriage return; rename it"
            self._remark(FILE_INFO, file, 0, None, "dropped", "bad file name", trouble)
        return good

    def _whole(self, file: str) -> str:
        return os.path.abspath(self.root / file)

    def _annotations(self, path: Path) -> Annotations | str:
        """What a file says, or why it says nothing."""
        try:
            data_format = None if self.how.data_format == MIXED else self.how.data_format
            return annotations.read(path, data_format, self.how.label_column)
        except (NotATable, OSError) as error:
            return getattr(error, "strerror", None) or str(error)

    def _owners(self, found: dict[str, Annotations]) -> dict[str, int]:
        """The recording that each table is named after."""
        owners = {name: self.recordings.beside(self._whole(name)) for name in found}
        taken = {place for place in owners.values() if place is not None}
        far = {name: self.recordings.elsewhere(self._whole(name)) for name, place in owners.items() if place is None}
        folders = defaultdict(set)
        for name, place in far.items():
            folders[place].add(os.path.dirname(name))
        # An old copy of the tables in another folder is none of a second recording's.
        far = {name: place for name, place in far.items() if place not in taken and len(folders[place]) == 1}
        return {name: place for name, place in (owners | far).items() if place is not None}

    def _place(self, name: str, found: Annotations, owner: int | None) -> None:
        """Take the rows of a table; `owner`: the recording it is named after."""
        folder = os.path.dirname(self._whole(name))
        place_of = {"": owner}
        for file in found.files:
            places = self.recordings.named(file, folder)
            place_of[file] = places[0] if len(places) == 1 else None
        self.read += found.read
        for line, file, action, *why in found.remarks:
            place = place_of[file]
            self._remark(ANNOTATIONS, name, line, None if place is None else place + 1, action, *why)
        # A table whose rows are all of other recordings says nothing of the one that it is named after.
        spoken_of = {row[0] for row in found.rows} | {remark[1] for remark in found.remarks if remark[2] != "noted"}
        known = {place_of[file] for file in (spoken_of if found.read else {""})} - {None}
        self.annotated |= dict.fromkeys(known, True)
        dated = [(place_of.get(file), text) for file, text in found.recorded]
        self.recorded += [(place, text) for place, text in dated if place is not None]
        rows = [(place_of[row[0]], row) for row in found.rows]
        reason, also = "no such recording", ""
        good = [(found.true_time, place + 1, self._shown(name), *row) for place, row in rows if place is not None]
        if not found.offset_known and not self._counts_from_each_start(self._calls(good)):
            good, reason = [], "no File Offset (s)"
            also = ": its time in the recording is not known"
        for place, (file, *_, line) in rows if not good else [row for row in rows if row[0] is None]:
            file_id = None if place is None else place + 1
            self._remark(ANNOTATIONS, name, line, file_id, "dropped", reason, (file or name) + also)
        if not found.read and owner is None:
            self._remark(ANNOTATIONS, name, 0, None, "passed over", "no such recording", recording_of(name))
        self.calls += good

    def _calls(self, rows: list[tuple]) -> pd.DataFrame:
        return annotations.as_table(rows, self.how.time_expansion, ("file_id", "source"))

    def _counts_from_each_start(self, calls: pd.DataFrame) -> bool:
        """Whether times of a table of several recordings cannot count from the start of the first one.

        Raven lays recordings end to end. Then calls of one lie before or after all calls of another, and
        no sooner than the others are long.
        """
        ranges = calls.groupby("file_id").agg(onset=("onset", "min"), offset=("offset", "max")).sort_values("onset")
        begun, last = 0.0, 0.0
        for file_id, (onset, offset) in zip(ranges.index, ranges.to_numpy(), strict=True):
            if onset < last or onset < begun - 1e-6:
                return True
            try:
                begun += audio.probe(self.root / self.files[file_id - 1], self.how.time_expansion).duration
            except audio.AudioError:
                pass  # is dropped later
            last = offset
        return len(ranges) < 2

    def _remark(self, table: str, file: str, line: int, file_id: int | None, action: str, reason: str, detail: str) -> None:
        self.report.append((table, line, file_id, action, reason, self._shown(detail), self._shown(file)))

    @staticmethod
    def _shown(file: str) -> str:
        """A file's name, whatever its bytes, as text."""
        return file if file.isascii() else os.fsencode(file).decode(errors="backslashreplace")
