"""The folder of a run: made or found, locked, described; and what stops a run from outside."""

import fcntl
import hashlib
import json
import math
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

import denet_program
from denet_torch.schema import shown

from .checkpoints import newest_first
from .collection import replacing
from .config import FREE_ON_RESUME, Config, TrainingError, as_dict

RUNS = Path("runs")
CONFIG, FACTS = "config.yaml", "run.json"
KEPT = ("*.ckpt", "*.damaged", "*.safetensors", "*.pt")  # a folder that holds any of these is worth keeping
PACKAGES = ("torch", "torchaudio", "numpy", "lightning-fabric", "torchmetrics")


class Stopped(KeyboardInterrupt):
    """The run was told to stop, by SIGTERM (`code` 0) or Ctrl-C (130), and has saved what there was to save.

    Not an Exception: libraries that pass over those would pass over it.
    """

    def __init__(self, message: str, code: int = 0):
        super().__init__(message)
        self.code = code


class Stop:
    """What SIGTERM and SIGINT (Ctrl-C) do to a run.

    As long as there is nothing to save they raise Stopped at once. When `later` is set, they are noted in `code`, the exit code
    that they ask for, and whoever works ends at the next whole step; a second SIGINT raises KeyboardInterrupt.
    """

    CODES = {signal.SIGTERM: 0, signal.SIGINT: denet_program.STOPPED}

    def __init__(self):
        self.code: int | None = None
        self.later = False
        self.at_once = "stopped before there was anything to save; start it again"

    def came(self, number: int, frame: Any) -> None:
        """The signals' handler."""
        again, self.code = self.code == denet_program.STOPPED, self.CODES[number]
        if not self.later:
            denet_program.interrupt(Stopped(self.at_once, self.code), frame, lambda: not self.later)
        elif again and number == signal.SIGINT:
            denet_program.interrupt(KeyboardInterrupt(), frame)
        elif number == signal.SIGINT:
            # The line that says where it stopped follows on this one.
            print("\rstopping after this step (Ctrl-C again: at once, without saving) ... ", end="", file=sys.stderr, flush=True)

    def ask(self, told: str) -> None:
        """Raise Stopped, with what is told of it, if a signal came that was only noted."""
        if self.code is not None:
            raise Stopped(told, self.code)

    def tell_late(self) -> None:
        """Raise Stopped for a signal that came when nobody asked any more: all was done."""
        self.ask("stopped; the run was at its end and is whole")


class Loader(DataLoader):
    """A loader whose processes know no signals, which may go to the whole group: their parent tells them when to end."""

    def __init__(self, *arguments, **how):
        super().__init__(*arguments, worker_init_fn=_ignore_signals, **how)

    def __iter__(self):
        with denet_program.signals_wait():
            return super().__iter__()


def _ignore_signals(worker: int) -> None:
    for number in Stop.CODES:
        signal.signal(number, signal.SIG_IGN)
    denet_program.signals_come()


def on_zero(fabric: Fabric, function: Callable, *arguments) -> Any:
    """Call `function` on rank 0 and return its result on every rank; if it raises, the other ranks exit."""
    result = error = None
    if fabric.is_global_zero:
        try:
            result = function(*arguments)
        except (Exception, Stopped) as raised:
            error = raised
    failed, result = fabric.broadcast((error is not None, result))
    if error is not None:
        raise error
    if failed:
        raise SystemExit(2)  # rank 0 says why
    return result


def write_json(path: Path, values: dict) -> None:
    """A file of a run's folder; NaN is no JSON, and becomes null."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(_without_nan(values), indent=2) + "\n")


def _without_nan(value):
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@contextmanager
def run_folder(fabric: Fabric, config: Config) -> Iterator[Path]:
    """The run's folder, locked against a second run. Raises TrainingError if it cannot be used.

    A folder that was made here is removed again if the run fails before there is anything in it to go on from.
    """
    out, lock, new = None, None, False

    def claim() -> Path:
        nonlocal lock, new
        folder = _choose(config)
        new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / ".lock", "w")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"{folder}: another run is at work in this folder; choose another --out") from None
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be written ({error.strerror})") from None
        if config.resume:
            _check_same(folder, config)
        elif (folder / CONFIG).exists():
            raise TrainingError(f"{folder}: already holds a run; give --resume to go on with it, or another --out")
        return folder

    try:
        out = on_zero(fabric, claim)
        yield out
    except BaseException:
        if new and out is not None and not any(path for kind in KEPT for path in out.glob(kind)):
            shutil.rmtree(out)
            if out.parent == RUNS and not any(RUNS.iterdir()):
                RUNS.rmdir()
        raise
    finally:
        if lock is not None:
            lock.close()


def describe(folder: Path, config: Config, index: Path, split: str) -> None:
    """Write config.yaml, which `--config` reads, and run.json: command, versions, commit, hash of the data's index and split.

    Raises TrainingError if there are checkpoints that were trained by another split: what this one tests on they have learned.
    """
    if newest_first(folder) and (before := _split_of(folder)) not in (None, split):
        raise TrainingError(
            f"{folder}: was trained by the split {shown(before, 40)}, and {index.parent} is now split as {split}: recordings or "
            f"their annotations were added or taken away. Bring them back, or begin another run with --init-from {folder}"
        )
    with replacing(folder / CONFIG) as path:
        path.write_text(yaml.safe_dump(as_dict(config) | {"resume": False}, sort_keys=False))
    facts = {
        "command": [sys.executable, *sys.orig_argv[1:]],
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in PACKAGES},
        "data_index_sha256": hashlib.sha256(index.read_bytes()).hexdigest(),
        "split": split,
    }
    write_json(folder / FACTS, facts)


def _split_of(folder: Path) -> str | None:
    """The split that a run was begun with, as its run.json tells."""
    path = folder / FACTS
    try:
        return json.loads(path.read_text())["split"]
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise TrainingError(f"{path}: is damaged; --resume goes on without it if it is deleted") from None


def commit() -> str:
    """The git commit of this code, with + where files were changed since; empty outside of a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "+" * bool(changed)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT handled by a `Stop`, while the block runs."""
    stop = Stop()
    before = {number: signal.signal(number, stop.came) for number in Stop.CODES}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _choose(config: Config) -> Path:
    if config.out is not None:
        return config.out
    if config.resume:
        # One that was killed in its first seconds has a lock and nothing else: an older run is not what is meant.
        runs = sorted({path.parent for name in (CONFIG, ".lock") for path in RUNS.glob(f"*/{name}")})
        if not runs:
            raise TrainingError(f"{RUNS}/ holds no run to resume; name its folder with --out")
        return runs[-1]
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    others = len(list(RUNS.glob(f"{now}*")))  # started in this second
    return RUNS / (f"{now}-{others + 1}" if others else now)


def _check_same(folder: Path, config: Config) -> None:
    """Raise TrainingError if the run in `folder` was started with settings that make other weights."""
    if not (folder / CONFIG).exists():
        return
    try:
        before, now = yaml.safe_load((folder / CONFIG).read_text()), as_dict(config)
        if not isinstance(before, dict):
            raise ValueError
    except (yaml.YAMLError, ValueError, RecursionError):
        raise TrainingError(f"{folder / CONFIG}: is damaged; --resume goes on without it if it is deleted") from None
    for name in now:
        if name == "epochs" and type(before.get(name)) is int and now[name] > before[name]:
            continue  # the schedule goes on as that of the longer run
        if name not in FREE_ON_RESUME and before.get(name, now[name]) != now[name]:
            raise TrainingError(
                f"{folder}: was started with {name} {before.get(name)}, not {now[name]}; resume with the same settings "
                f"(--resume {folder})"
            )
