"""Files of torch.save, looked at before PyTorch reads them: what they ask for, how much, how deep. Nothing here needs PyTorch."""

import pickle
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from .files import open_zip

# What a pickle of tensors, numbers, lists and dicts refers to, beside the types of the storages.
REBUILT = ("_rebuild_tensor_v2", "_rebuild_parameter")
GLOBALS = {"collections OrderedDict", "torch.serialization _get_layout", *(f"torch._utils {name}" for name in REBUILT)}
STORAGES = {f"torch {name}Storage" for name in ("Float", "Double", "Long", "Int", "Bool", "Half", "BFloat16", "Byte")}
ZIP = b"PK\3\4"
# PyTorch hashes keys by recursion: deeper ones than these many tuples could make end the process.
MAX_TUPLES = 20_000
MAX_PICKLE = 64 << 20  # bytes
MAX_STEPS = 2_000_000  # of the pickle's machine, in weights: a second or two
MAX_COURSE = 8_000_000  # in a checkpoint, which has two numbers of each step of training
REFUSED = set("BYTEARRAY8 NEXT_BUFFER EXT1 EXT2 EXT4 INST OBJ NEWOBJ NEWOBJ_EX PERSID STACK_GLOBAL BINBYTES8".split())


def check_archive(path: Path) -> None:
    """Raise pickle.UnpicklingError unless the file that torch.save wrote holds tensors and plain values only."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != ZIP:  # which is how PyTorch tells; before its version 1.6: five pickles, then bytes
                file.seek(0)
                for _ in range(5):
                    check_pickle(file)
                return
        with open_zip(path) as archive:
            members = [member for member in archive.infolist() if member.filename.lower().endswith("data.pkl")]
            if len(members) != 1 or members[0].file_size > MAX_PICKLE:
                raise pickle.UnpicklingError("it is no archive that torch.save wrote")
            check_pickle(archive.read(members[0]), MAX_COURSE)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError) as error:
        raise pickle.UnpicklingError(f"it is no archive that torch.save wrote: {error}") from None


def check_pickle(data: bytes | BinaryIO, most: int = MAX_STEPS) -> None:
    """Raise pickle.UnpicklingError for anything but tensors and plain values, in `most` steps."""
    if isinstance(data, bytes) and len(data) > MAX_PICKLE:
        raise pickle.UnpicklingError("it holds more entries than any state of ours")
    tuples = 0
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step > most:
                raise pickle.UnpicklingError("it holds more entries than any state of ours")
            tuples += opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
            if opcode.name == "GLOBAL" and argument not in GLOBALS | STORAGES:
                raise pickle.UnpicklingError(f"it asks for {argument!r:.60}, which is no tensor")
            if opcode.name in REFUSED or tuples > MAX_TUPLES:
                raise pickle.UnpicklingError("it holds more than tensors and plain values")
    except ValueError as error:
        raise pickle.UnpicklingError(f"its pickle is damaged: {error}") from None
