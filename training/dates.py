"""When a recording was made, from its name: the patterns that recorders write, whatever stands around them.

20230601_210000 (AudioMoth, Song Meter, BatLogger), 2023-06-01T21-00-00, 20230601210000, 230601_2100, 230601210000 (flying
foxes, SoundTrap), 01.06.2023, June_14_2016, and AudioMoth's older seconds since 1970 in hexadecimal. Where a file's name has no
date, the folders that it lies in may have one.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath

from denet_torch.recorder import metadata, plausible

ZONE = re.compile(r"(\d:\d\d(?:\.\d+)?)\s*(?:Z|UTC|GMT)?(?:[+-]\d\d:?\d\d)?\s*$")  # at the end of a time, the first group
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_YEAR, _MONTH, _DAY = r"(?P<year>19[89]\d|20\d\d)", r"(?P<month>0[1-9]|1[0-2])", r"(?P<day>0[1-9]|[12]\d|3[01])"
_SHORT_YEAR = r"(?P<short>0[5-9]|[12]\d)"  # not 00: numbers that count recordings begin so
_TIME = r"(?P<hour>[01]\d|2[0-3])[-_.:h ]?(?P<minute>[0-5]\d)(?:[-_.:m ]?(?P<second>[0-5]\d))?"
_PLAIN_TIME = r"(?P<hour>[01]\d|2[0-3])(?P<minute>[0-5]\d)(?P<second>[0-5]\d)"
_WORD = rf"(?<![a-z])(?P<word>{'|'.join(_MONTHS)})[a-z]*"
_PATTERNS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # Twelve digits, or twelve and others behind them: 200101010000 is of 2020. Fourteen have the whole year.
        rf"(?<!\d){_SHORT_YEAR}{_MONTH}{_DAY}{_PLAIN_TIME}(?=\d{{3}}|(?!\d))",
        rf"(?<!\d){_YEAR}(?P<gap>[-_. ]?){_MONTH}(?P=gap){_DAY}(?:[-_. t$@]{{0,3}}{_TIME}|(?!\d))",
        rf"(?<!\d){_DAY}(?P<gap>[-_.]){_MONTH}(?P=gap){_YEAR}(?:[-_. t$@]{{1,3}}{_TIME}|(?!\d))",
        rf"(?<!\d)(?P<day>\d\d?)[-_. ]?{_WORD}[-_. ]?{_YEAR}(?!\d)",
        rf"{_WORD}[-_. ]*(?P<day>\d\d?)[-_., ]+{_YEAR}(?!\d)",
        rf"(?<!\d){_YEAR}[-_. ]?{_WORD}[-_. ]?(?P<day>\d\d?)(?!\d)",
        rf"(?<!\d){_SHORT_YEAR}{_MONTH}{_DAY}[-_ t]{_TIME}",
        rf"(?<!\d){_SHORT_YEAR}{_MONTH}{_DAY}(?!\d)",
    )
]
_HEXADECIMAL = re.compile(r"(?=.*[A-F])[56][0-9A-F]{7}")


def date_in_name(file: str) -> datetime | None:
    """The date, and time where there is one, in a path; None if there is none that a recorder can have meant."""
    found = _found(PurePosixPath(file))
    return found and found[0]


def began(path: str | Path) -> datetime | None:
    """When a recording began, by its recorder's clock: from the file's metadata, else from its name. None where neither tells the
    time of the day."""
    told = metadata(path)
    if told.recorded and not told.date_only:
        return told.recorded
    found = _found(PurePosixPath(Path(path).as_posix()))
    return found[0] if found and found[1] else None


def site(path: str | Path) -> str:
    """Where a recorder stood: what its file's name has before the date, else the nearest folder whose name is no date."""
    path = PurePosixPath(Path(path).as_posix())
    for folder, name in enumerate((path.stem, *reversed(path.parent.parts))):
        starts = [match.start() for _, match in _matches(name)]
        before = name[: min(starts)] if starts else name if folder else ""
        if before.strip("-_. /"):
            return before.strip("-_. /")
    return ""


def _found(path: PurePosixPath) -> tuple[datetime, bool] | None:
    """The date in a path, and whether it has a time of the day."""
    if _HEXADECIMAL.fullmatch(path.stem):
        found = plausible(datetime(1970, 1, 1) + timedelta(seconds=int(path.stem, 16)))
        return (found, True) if found else None
    for name in (path.stem, *reversed(path.parent.parts)):
        for found, match in _matches(name):
            return found, bool(match.groupdict().get("hour"))
    return None


def _matches(name: str) -> Iterator[tuple[datetime, re.Match]]:
    """The dates in a name, and where they stand."""
    for pattern in _PATTERNS:
        for match in pattern.finditer(name):
            if found := _as_date(match.groupdict()):
                yield found, match


def _as_date(parts: dict[str, str | None]) -> datetime | None:
    year = int(parts["year"]) if "year" in parts else 2000 + int(parts["short"])
    month = _MONTHS.index(parts["word"].lower()) + 1 if "word" in parts else int(parts["month"])
    try:
        found = datetime(year, month, int(parts["day"]), *(int(parts.get(name) or 0) for name in ("hour", "minute", "second")))
    except ValueError:  # 31 June
        return None
    return plausible(found)
