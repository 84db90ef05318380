"""What a recorder wrote beside the samples: when it recorded, by which factor it slowed down, where the samples lie.

Read from the chunks of a WAV file, RF64 among them: GUANO's, Wildlife Acoustics' (wamd), and the comment that AudioMoth writes.
"""

import contextlib
import logging
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import guano

from .files import refuse_pipes

TOLD = (b"guan", b"wamd", b"LIST", b"bext")  # chunks that say when or how something was recorded
LEFT_OVER = 1024  # bytes after the samples that are no chunk and no samples either
RIFFS = (b"RIFF", b"RF64", b"BW64")
UNKNOWN = 2**32 - 1  # the length of the samples by the header of an RF64 file, whose chunk ds64 has the right one
FASTEST = 1_200_000  # Hz; no recorder of sounds samples faster
LARGEST = 2**20  # bytes of such a chunk that are read
EARLIEST = 1985  # a recorder whose clock was never set writes 1970 or 1980
AUDIOMOTH = re.compile(r"Recorded at (\d\d:\d\d:\d\d(?:\.\d+)? \d\d/\d\d/\d{4})")
logging.getLogger("guano").setLevel(logging.ERROR)  # bad values stay texts, which are passed over here


@dataclass(frozen=True)
class Riff:
    """Chunks of a WAV file. samples: where they begin, in bytes, None if nowhere; stated: bytes of them by the header;
    present: bytes up to the next chunk or the end of the file, which differ where a header was left unfinished.
    rate: Hz by the header, 0 where it has none."""

    samples: int | None = None
    stated: int = 0
    present: int = 0
    told: dict[bytes, bytes] = field(default_factory=dict)
    rate: int = 0


@dataclass(frozen=True)
class Metadata:
    """When a recording began, as the recorder's clock showed it, and its time-expansion factor; None where nothing tells.

    date_only: nothing tells the time of the day, which is 0:00 then. doubt: why the factor may not be right, a line."""

    recorded: datetime | None = None
    time_expansion: float | None = None
    date_only: bool = False
    doubt: str = ""


def metadata(path: str | Path) -> Metadata:
    """What the chunks of a recording tell; nothing for other files than WAV."""
    try:
        chunks = riff(path)
    except (OSError, ValueError):  # ValueError: a name with a zero byte, which no file has
        return Metadata()
    told = chunks.told
    found = [_guano(told.get(b"guan", b""), chunks.rate), _wamd(told.get(b"wamd", b"")), _comments(told)]
    dated = next((one for one in found if one.recorded is not None), Metadata())
    factor = next((one.time_expansion for one in found if one.time_expansion is not None), None)
    return Metadata(dated.recorded, factor, dated.date_only, found[0].doubt)


def time_expansion(paths: Iterable[str | Path]) -> float:
    """The factor that all recordings were slowed down by, as their metadata tell; 1 where nothing tells.

    Raises ValueError if they differ, or cannot be: then the user has to say.
    """
    first = {}
    for path in paths:
        told = metadata(path)
        if told.doubt:
            raise ValueError(question(path, told.doubt))
        first.setdefault(told.time_expansion or 1, path)
    return one_factor(first)


def question(path: str | Path, doubt: str) -> str:
    """What the user is asked of a recording whose factor is in doubt."""
    return f"{path}: {doubt}; name its time expansion with --time-expansion, 1 if it was not slowed down"


def one_factor(first: dict[float, str | Path]) -> float:
    """The only factor, 1 of none; `first`: a recording of each. Raises ValueError if there are several."""
    if len(first) > 1:
        (one, a), (other, b) = sorted(first.items(), key=lambda item: -item[0])[:2]
        raise ValueError(
            f"{a}: its metadata say time expansion {one:g}, {b} has {other:g}; name the factor of all with --time-expansion, "
            "or keep them in two folders"
        )
    return next(iter(first), 1)


def riff(path: str | Path) -> Riff:
    """Where the samples of a WAV file lie, and the chunks of TOLD; an empty one for another file. Raises OSError."""
    refuse_pipes(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] not in RIFFS or head[8:] != b"WAVE":
            return Riff()
        end = file.seek(0, 2)
        place, told, samples, stated, present, rate, long = 12, {}, None, 0, 0, 0, 0
        while place + 8 <= end:
            file.seek(place)
            name, size = struct.unpack("<4sI", file.read(8))
            place += 8
            if name == b"ds64":
                _, long = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))
            elif name == b"fmt ":
                rate = int.from_bytes(file.read(8)[4:], "little")
            elif name == b"data" and samples is None:
                size = long if size == UNKNOWN else size
                samples, stated, present = place, size, min(size, end - place)
                if not _goes_on(file, place + size, end, filled=size > 0):
                    present = end - place
                    break
            elif name == b"LIST" and len(told.get(name, b"")) + size <= LARGEST:
                told[name] = told.get(name, b"") + file.read(size)  # of cues and of texts, in either order
            elif name in TOLD and name not in told and size <= LARGEST:
                told[name] = file.read(size)
            place += size + size % 2
        return Riff(samples, stated, present, told, rate)


def _goes_on(file, place: int, end: int, filled: bool) -> bool:
    """Whether the file ends at `place`, or goes on with a chunk or, if it may be `filled` up, with zeros or a few bytes."""
    if place >= end - (LEFT_OVER if filled else 8):
        return place <= end + 1
    file.seek(place)
    following = file.read(4096)
    # Some programs forget the byte that makes the length of a chunk even, others add it.
    chunks = [struct.unpack("<4sI", following[i : i + 8]) for i in (0, 1) if len(following) >= i + 8]
    if filled and not any(following):
        return True
    return any(re.fullmatch(rb"[ -~]{4}", name) and size <= end - place - 8 for name, size in chunks)


def plausible(found: datetime | None) -> datetime | None:
    """A time that a recorder with a clock can have written, without its time zone; else None."""
    if not isinstance(found, datetime) or not EARLIEST <= found.year <= datetime.now().year + 1:
        return None
    return found.replace(tzinfo=None)


def _guano(chunk: bytes, rate: int) -> Metadata:
    if not chunk.strip(b"\0 \r\n"):
        return Metadata()
    try:
        found = guano.GuanoFile.from_string(chunk.rstrip(b"\0"))
    except ValueError:  # a line without a colon: all lines that have one count
        lines = [line for line in chunk.rstrip(b"\0").split(b"\n") if b":" in line]
        with contextlib.suppress(ValueError):
            return _guano(b"\n".join(lines), rate) if len(lines) < chunk.count(b"\n") + 1 else Metadata()
        return Metadata()
    recorded = plausible(found.get("Timestamp"))
    with contextlib.suppress(TypeError, ValueError, OverflowError):  # the last of an integer beyond all floats
        factor = float(found.get("TE", 1))
        if not 0 < factor < math.inf:
            return Metadata(recorded)
        return Metadata(recorded, factor, doubt=_doubt(factor, found.get("Samplerate"), rate))
    return Metadata(recorded)


def _doubt(factor: float, samplerate: object, rate: int) -> str:
    """How GUANO contradicts the file's header: its Samplerate is the header's times TE, though some write the header's."""
    told = samplerate if isinstance(samplerate, int | float) and 0 < samplerate < 1e300 else rate
    if not rate:
        return ""
    more = told / (factor * rate)
    # Recordings are slowed down by 5 to 20.
    slower = more == math.inf or round(more) >= 4 and abs(more - round(more)) < 0.01 * more
    too_fast = factor > 1 and factor * rate > FASTEST and more < 0.99
    return f"its metadata say time expansion {factor:g} and {told:g} Hz, its header {rate} Hz" if slower or too_fast else ""


def _wamd(chunk: bytes) -> Metadata:
    """Wildlife Acoustics' fields: number, length, content; 5 is the time, 15 the factor."""
    fields, place = {}, 0
    while place + 6 <= len(chunk):
        number, size = struct.unpack_from("<HI", chunk, place)
        fields[number] = chunk[place + 6 : place + 6 + size]
        place += 6 + size
    factor = int.from_bytes(fields.get(15, b"")[:2], "little")
    return Metadata(_time(fields.get(5, b"").decode("latin-1")[:19], "%Y-%m-%d %H:%M:%S"), factor or None)


def _comments(told: dict[bytes, bytes]) -> Metadata:
    """AudioMoth's comment, and the date of a Broadcast Wave file."""
    comment = AUDIOMOTH.search(told.get(b"LIST", b"").decode("latin-1"))
    seconds = "%S.%f" if comment and "." in comment.group(1) else "%S"
    if comment and (found := _time(comment.group(1), f"%H:%M:{seconds} %d/%m/%Y")):
        return Metadata(found)
    if comment and (found := _time(comment.group(1)[-10:], "%d/%m/%Y")):
        return Metadata(found, date_only=True)
    # 10 and 8 bytes after description, originator and its reference.
    date = re.sub("[:_/.]", "-", told.get(b"bext", b"")[320:338].decode("latin-1"))
    if found := _time(date, "%Y-%m-%d%H-%M-%S"):
        return Metadata(found)
    found = _time(date[:10], "%Y-%m-%d")
    return Metadata(found, date_only=found is not None)


def _time(text: str, form: str) -> datetime | None:
    try:
        return plausible(datetime.strptime(text, form))
    except ValueError:
        return None
