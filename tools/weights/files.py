"""Reading files with care: bounded reading, safe archives."""

import gzip
import json
import multiprocessing
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from denet_torch.files import open_zip

from . import WeightsError

GZIP = b"\x1f\x8b"
MAX_MEMBERS = 10_000  # of an archive
MAX_JSON = 1 << 20  # bytes; each bracket becomes a list of sixty
MAX_RATIO = 4  # weights are noise, which hardly packs: what unpacks to more is no weight file


@contextmanager
def child_process(report: Callable, *arguments) -> Iterator[Connection]:
    """What report(*arguments, sender) sends, in a child process, for libraries that some files end. It is killed at the end."""
    # fork shares the arguments with the child for nothing; where there is none (Windows) they are sent
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=report, args=(*arguments, sender), daemon=True)
    child.start()
    sender.close()
    try:
        yield receiver
    finally:
        child.kill()
        child.join()
        receiver.close()


def line(error: BaseException) -> str:
    """The first line of an error's message, or its name if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def existing(path: Path) -> Path:
    """`path` if it is a file that holds something; WeightsError otherwise."""
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder, not a weight file")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: is empty (0 bytes)")
    return path


def parsed(path: Path, text: str | bytes, what: str) -> dict:
    """The object that `text`, JSON that `path` has as its `what`, stands for. Raises WeightsError."""
    try:
        if len(text) > MAX_JSON:
            raise ValueError(f"it is longer than {MAX_JSON} characters")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its {what} cannot be read ({line(error)})") from None
    return found


def read_bytes(path: Path) -> bytes:
    """The contents of `path`, unpacked if they are gzipped."""
    with open(existing(path), "rb", buffering=0) as file:  # a buffer, once filled, costs a copy of all
        if file.read(2) != GZIP:
            file.seek(0)
            return file.read()
    limit = MAX_RATIO * path.stat().st_size
    try:
        with gzip.open(path) as file:
            data = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise WeightsError(f"{path}: cannot be unpacked ({line(error)})") from None
    if len(data) > limit:
        raise WeightsError(f"{path}: unpacks to more than {MAX_RATIO} times its size, which no weight file does")
    return data


def unzip(path: Path, wanted=lambda name: True) -> dict[str, bytes]:
    """Members of the zip archive `path` for whose names `wanted` holds, after checking sizes (before unpacking) and CRCs."""
    existing(path)
    try:
        with open_zip(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_RATIO * path.stat().st_size:
                raise WeightsError(f"{path}: unpacks to more than {MAX_RATIO} times its size, which no weight file does")
            if len(members) > MAX_MEMBERS:
                raise WeightsError(f"{path}: holds {len(members)} members, as no weight file does")
            for member in members:
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise WeightsError(f"{path}: {member.filename} is packed in a way that no weight file is")
            contents = {}
            for member in members:
                if wanted(member.filename):
                    contents[member.filename] = archive.read(member)  # checks the CRC
                else:
                    with archive.open(member) as file:
                        while file.read(1 << 20):
                            pass
            return contents
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: cannot be read as a zip archive ({line(error)})") from None
