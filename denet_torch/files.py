"""Writing files so that they are whole or absent, and the same each time. Nothing in this module needs PyTorch."""

import errno
import hashlib
import json
import os
import shutil
import struct
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PARTIAL = ".partial-"  # what the names of unfinished files begin with
MAX_MESSAGE = 300  # characters
SHORTEST, SHORTEST_PATH = 60, 120  # characters that are left of a word that is cut, and of the path that a message is about
MAX_NAME = 255  # bytes of a file's
MAX_DIRECTORY = 4 << 20  # bytes of an archive's list of members: some 40,000
DTYPES = {"float64": "F64", "float32": "F32"}  # safetensors' names


class UserError(ValueError):
    """What cannot be done, told in one printable line of at most 300 characters that begins with the file it is about."""

    def __init__(self, message: str):
        super().__init__(printable(str(message), MAX_MESSAGE))


def walk(folder: str | Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """os.walk in the order of names; a folder that a link leads to is gone through once, if it does not lie in this one."""
    seen = [Path(os.path.realpath(folder))]
    for here, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in [name for name in folders if os.path.islink(os.path.join(here, name))]:
            real = Path(os.path.realpath(os.path.join(here, name)))
            if any(real.is_relative_to(one) or one.is_relative_to(real) for one in seen):
                folders.remove(name)
            seen.append(real)
        yield Path(here), folders, sorted(names)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A new empty file beside `path` that takes its place when the block ends without an error, and vanishes otherwise.

    Its name is short, whatever that of `path`, and has the same suffix. What a process that was killed left of its unfinished
    files is removed by the next one that writes to the same folder (`clear_partial`). Raises OSError, also for a pipe or a
    device, /dev/null say, in whose place a file would lie for all programs of the machine.
    """
    path = Path(path)
    refuse_pipes(path)
    parent = path.parent.resolve()
    if parent == Path("/dev") or parent.is_relative_to("/proc"):  # /dev/stdout, which may lead to a file
        raise OSError(errno.EINVAL, "would be a file among devices", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _cleared:
        clear_partial(path.parent)
        _cleared.add(path.parent)
    suffix = path.suffix if len(path.suffix.encode()) <= 20 else ""
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    partial = path.with_name(f"{PARTIAL}{name}-{os.getpid()}{suffix}")
    lock = None
    try:  # Ctrl-C may come as soon as the file is there
        lock = _locked(partial)
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # some writers make their files private
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk does not say which file
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def partial_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent`, whose content is renamed to where it belongs; it vanishes when the block ends.

    As with `replacing`, what a process that was killed left of its own is removed by the next that writes to the same folder.
    """
    parent.mkdir(parents=True, exist_ok=True)
    clear_partial(parent)
    with ExitStack() as stack:
        while True:
            folder = parent / f"{PARTIAL}{uuid.uuid4().hex}"
            folder.mkdir()
            with suppress(FileNotFoundError):  # `clear_partial` of another process was quicker than the lock
                stack.enter_context(locked(folder))
                folder.stat()
                break
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            yield folder
        except OSError as error:
            if error.errno is not None and error.filename is None:  # a full disk does not say which file
                error.filename = str(parent)
            raise


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder that becomes `out` when all is written. FileExistsError if that is there; OSError names it."""
    if out.exists():
        raise FileExistsError(f"{out}: exists already; choose a folder that does not")
    try:
        with partial_folder(out.parent) as partial:
            yield partial
            partial.rename(out)
    except OSError as error:
        raise OSError(f"{out}: cannot be written ({reason(error)})") from None


def fitting(stem: str, suffix: str) -> str:
    """A file's name: `stem` and `suffix`; where that is longer than file systems allow, the stem is cut, and has a digest."""
    if len(os.fsencode(stem + suffix)) <= MAX_NAME:
        return stem + suffix
    end = f"-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}{suffix}"
    return os.fsencode(stem)[: MAX_NAME - len(os.fsencode(end))].decode(errors="ignore") + end


def refuse_pipes(path: str | Path) -> None:
    """Raise OSError if `path` is a pipe or a device, which may keep a reader waiting for ever."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(errno.EINVAL, "is no file but a pipe or a device", str(path))


def open_zip(path: str | Path) -> zipfile.ZipFile:
    """The zip archive `path`; zipfile.BadZipFile if its list of members alone would take seconds to read, or if another program
    could find other members in it.

    PyTorch finds the list where its end says that it is, and members by their names in any case; Python allows for bytes before
    the archive, looks for the end of a large one in another place, and tells names by their case.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 98))
        tail = file.read()
    end, locator, wide = tail[-22:], tail[-42:-22], tail[-98:-42]
    if len(end) < 22 or not end.startswith(b"PK\5\6"):
        raise zipfile.BadZipFile("its end is missing, or something lies behind it")
    length, start = struct.unpack("<II", end[12:20])
    place = size - 22
    if locator.startswith(b"PK\6\7"):
        place -= 76
        length, start = struct.unpack("<QQ", wide[40:56].ljust(16, b"\0"))
        if not wide.startswith(b"PK\6\6") or int.from_bytes(locator[8:16], "little") != place:
            raise zipfile.BadZipFile("its end does not lie where it says")
    if length > MAX_DIRECTORY:
        raise zipfile.BadZipFile("its list of members is longer than that of any weight file")
    if start + length != place:
        raise zipfile.BadZipFile("its list of members does not lie where it says")
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    if len({name.lower() for name in names}) < len(names):
        archive.close()
        raise zipfile.BadZipFile("it holds two members of one name")
    return archive


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process has `folder` locked, and lock it while the block runs."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


_cleared: set[Path] = set()


def clear_partial(folder: Path) -> None:
    """Remove the unfinished files and folders in `folder` that no running process is at work on."""
    if fcntl is None or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        left = [entry for entry in entries if entry.name.startswith(PARTIAL) and not entry.is_symlink()]
    for entry in left:
        try:
            is_folder = entry.is_dir()
            file = os.open(entry.path, (os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (shutil.rmtree if is_folder else os.unlink)(entry.path)
        except OSError:
            pass
        finally:
            os.close(file)


def _locked(path: Path) -> int:
    """A descriptor of the new empty file `path`, locked as long as it is open."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino == os.stat(path).st_ino:  # not removed by `clear_partial` before it was locked
                return file
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            return file
        os.close(file)


def write_safetensors(tensors: dict[str, np.ndarray], metadata: dict[str, str], path: Path) -> None:
    """Write float arrays as a .safetensors file: equal tensors and metadata give equal bytes, unlike the library's own writer."""
    header: dict = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # the library's order
    for name in names:
        array = tensors[name]
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(tensors[name]).astype(tensors[name].dtype.newbyteorder("<"), copy=False).data)


def reason(error: BaseException, length: int = 160) -> str:
    """Why something failed, in one line without control characters and of at most `length` characters."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return printable(text, length)


def printable(text: str, length: int | None = None) -> str:
    """`text` as it can go to a terminal: in one line, control characters and halves of characters escaped, cut to `length`.

    Names come from files, and a terminal obeys what is hidden in them. The longest words, which are paths and names, are cut
    first, in their middle, so that the others say what is the matter.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    if length is None or len(text) <= length:
        return text
    words = " ".join(word if len(word) <= length else _cut(word, length) for word in text.split(" "))
    words = (words if len(words) <= 10 * length else _cut(words, 10 * length)).split(" ")
    path = next((n for n, word in enumerate(words) if os.sep in word), None)
    while (excess := sum(map(len, words)) + len(words) - 1 - length) > 0:
        room = [len(word) - (SHORTEST_PATH if n == path else SHORTEST) for n, word in enumerate(words)]
        if max(room) <= 0:
            return _cut(" ".join(words), length)
        longest = room.index(max(room))
        words[longest] = _cut(words[longest], len(words[longest]) - min(excess, max(room) // 2 + 1))
    return " ".join(words)


def _cut(text: str, length: int) -> str:
    return f"{text[: length // 2 - 2]}...{text[len(text) - (length - length // 2 - 2) :]}"
