"""Detection in many recordings: several processes, several machines, and a restart.

The work is cut into parts, three minutes of a recording each. The probabilities of a finished part are a file
in FOLDER/parts, named by a digest of everything they depend on: a restart finds what is done, and other
weights or a changed recording never mix with it. Events are decoded from the parts, so that another
threshold costs no computation.
"""

import contextlib
import glob
import hashlib
import io
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache, partial
from multiprocessing import get_context, parent_process, resource_tracker
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed
from tqdm import tqdm

import denet_program
import denet_torch
from denet_torch import audio
from denet_torch.boxes import FOUND
from denet_torch.detection import (
    Decoding,
    answer_seconds,
    class_names,
    count_answers,
    decode,
    joined,
    search,
    stored_decoding,
)
from denet_torch.files import MAX_MESSAGE, clear_partial, printable
from denet_torch.measures import class_probabilities, measure
from denet_torch.memory import keep_freed_memory
from training import dates
from training.annotations import is_text
from training.collection import replacing
from training.options import COMPILING, counted, explained_if_slow
from training.text_tables import Lines, TooLarge

PART_SECONDS = 180
SHOWN = 20  # notes, and names in one


@dataclass(frozen=True)
class Job:
    """How answers are computed, and the folder that keeps them; see `denet_torch.detection.search`.

    `sha256` of the weights as they were at first: every process of a job has the same ones, whatever is written there meanwhile.
    """

    weights: Path
    folder: Path
    hop: int | None = None
    batch_size: int | None = None
    time_expansion: float = 1
    device: str = "cpu"
    sha256: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.weights.is_file():  # if not, loading it says so
            with open(self.weights, "rb") as file:
                object.__setattr__(self, "sha256", hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Part:
    """The frames, or images, `start` to `stop` of a recording; `file` holds the answers once computed."""

    path: Path
    start: int
    stop: int
    file: Path


@dataclass(frozen=True)
class Results:
    """What was found: events (a row each), the recordings searched and the reasons of the others.

    `events` has the columns of `detect`, `measures.measure` and `class_probabilities`, clock (when the event began, by the
    recorder's clock) and site; `recordings` has file, duration (s), samplerate (Hz), events, began (by the recorder's clock) and
    site, "" where nothing tells; `frame` is in seconds; `notes` are what one
    should know of recordings that were searched: headers that disagree, rates below the model's;
    `speed`: seconds of audio computed now in a second, NaN if all was there already.
    """

    events: pd.DataFrame
    recordings: pd.DataFrame
    failures: dict[Path, str]
    parts: dict[Path, list[Part]]
    labels: list[str]
    frame: float
    decoding: Decoding
    speed: float
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """What was found in how much, and how many recordings could not be searched."""
        if not len(self.recordings):
            return f"no recording could be searched{self.skipped()}"
        seconds = self.recordings.duration.sum()
        return f"{counted(len(self.events), 'event')} in {counted(len(self.recordings), 'recording')}, {seconds:.1f} s of audio"

    def skipped(self) -> str:
        """The number of recordings that could not be searched, if there are any, to end a line with."""
        return f"; {len(self.failures)} skipped, with the reason above" if self.failures else ""

    def probabilities(self, path: str | Path) -> np.ndarray:
        """Class probabilities (frames, n_classes) of a recording."""
        answers = _load(self.parts[Path(path)])
        if answers.ndim == 2 and answers.shape[1] == len(self.labels):
            return answers
        raise ValueError("these weights find boxes and do not answer frame by frame: there are no frame probabilities")


MAX_DEPTH = 20  # of lists in lists


def collect(paths: Iterable[str]) -> list[Path]:
    """Recordings in the order given, each once: files, folders with all below, patterns, and lists.

    A list is a .txt file with one of the others a line, relative to it. Raises AudioError for what finds nothing.
    """
    return _collect(paths, (), {})


def _collect(paths: Iterable[str], inside: tuple[str, ...], read: dict[str, list[Path]]) -> list[Path]:
    """inside: the lists that the paths stand in. read: what lists that were read hold."""
    found = []
    for path in paths:
        if os.path.isdir(path):  # Path.is_dir raises for names that are too long
            matches = audio.find(path)
        elif path.lower().endswith(".txt"):
            here = os.path.realpath(path)
            if here in inside or len(inside) == MAX_DEPTH:
                raise audio.AudioError(f"{path}: is a list that holds itself, or stands in more than {MAX_DEPTH} lists")
            if here not in read:
                listed = filter(None, map(str.strip, _lines(Path(path))))
                read[here] = _collect((_from_list(Path(path), line) for line in listed), (*inside, here), read)
            matches = read[here]
        elif glob.has_magic(path) and not os.path.exists(path):
            matches = sorted(map(Path, glob.glob(path, recursive=True)))
        else:
            matches = [Path(path)]  # if missing, it is reported with the other bad files
        if not matches:
            raise audio.AudioError(f"{path}: no recordings here")
        found += matches
    return list(dict.fromkeys(found))


def _lines(path: Path) -> Iterator[str]:
    """Lines of a list of recordings."""
    try:
        yield from Lines(path)
    except TooLarge as error:
        raise audio.AudioError(f"{path}: {error}") from None


def collect_each(paths: Iterable[str]) -> tuple[list[Path], list[str]]:
    """`collect`, and the reasons of the paths where it finds nothing. Raises AudioError if that is so of all."""
    found, reasons = [], []
    for path in paths:
        try:
            found += collect([path])
        except (audio.AudioError, OSError) as error:
            reasons.append(f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error))
    if not found:
        raise audio.AudioError("; ".join(reasons))
    return list(dict.fromkeys(found)), reasons


def refuse_name(path: Path) -> None:
    """Raise AudioError for a recording whose name no table can hold."""
    if not is_text(str(path)):
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise audio.AudioError(f"{shown}: has a name that is not in UTF-8, or holds a carriage return; rename it")


def folder_for_results(folder: Path) -> None:
    """Raise ValueError where no folder can be, before hours of computing."""
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"--output {folder}: {path} is a file; name a folder for the results")
            return


def device(name: str | None) -> str:
    """The device to compute on: `name`, or a GPU if there is one. Raises ValueError for one that is not there."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if name.startswith("cuda") and not torch.cuda.is_available():
            reason = "this machine has no GPU that PyTorch can use; leave --device out to compute on the processor"
        raise ValueError(f"--device {name}: {reason}") from None
    return name


def pace(speed: float) -> str:
    """How fast audio is computed, in words."""
    return "all was computed before" if math.isnan(speed) else f"{speed:.3g} times real time"


def _from_list(path: Path, line: str) -> str:
    """What a line of the list at `path` means: below the list's folder, or else where the program runs."""
    if "\0" in line:
        raise audio.AudioError(f"{path}: holds a line with a zero byte; it is no list of recordings")
    for name in (line, line.replace("\\", "/")):
        beside = str(path.parent / name)
        if os.path.exists(beside) or glob.has_magic(name) and glob.glob(beside, recursive=True):
            return beside
    return line


def run(job: Job, paths: list[Path], processes: int = 1, **decoding) -> Results | None:
    """Compute what `job.folder` does not hold yet and decode all of it.

    Under torchrun the parts are shared out among the ranks, which see the same folder; the first returns
    the results of all, the others None. A recording that cannot be used is one of `failures` and stops
    nothing. `decoding`: fields of `Decoding` that replace those stored with the weights. Raises
    CheckpointError, and ValueError for a hop or a decoding that makes no sense.
    """
    model = load_model(job)
    if model.detection and model.detection.per == "file":
        raise ValueError(f"{job.weights}: names whole files and finds no events; use denet classify")
    chosen = stored_decoding(model, **decoding)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    recordings, failures, notes = _plan(job, model, paths)
    mine = [part for parts in recordings.values() for part in parts][rank::ranks]
    broken, speed = _compute(job, mine, processes)
    failures |= broken
    if ranks > 1:
        failures = _gather(failures)
    if rank > 0:
        return None
    recordings = {path: parts for path, parts in recordings.items() if path not in failures}
    tables, rows = [], []
    for path, parts in tqdm(recordings.items(), desc="decode", unit="file", leave=False):
        info = audio.probe(path, job.time_expansion)
        found, began, site = _load(parts), dates.began(path), dates.site(path)
        table = decode(model, found, info.duration, chosen, path)
        measured = measure(table, job.time_expansion)
        if model.answers_with_boxes:  # which tell the band themselves
            measured = measured.assign(low_hz=table.low_hz, high_hz=table.high_hz, bandwidth_hz=table.high_hz - table.low_hz)
        else:
            means = class_probabilities(table, found, model.samples / model.sr, class_names(model))
            measured = pd.concat([measured, means], axis=1)
        clock = [clock_time(began, onset) for onset in table.onset]
        tables.append(measured.assign(clock=clock, site=site))
        rows.append((str(path), info.duration, info.samplerate, len(table), clock_time(began), site))
    return Results(
        pd.concat(tables, ignore_index=True) if tables else joined(model, []),
        pd.DataFrame(rows, columns=["file", "duration", "samplerate", "events", "began", "site"]),
        failures,
        recordings,
        class_names(model),
        model.samples / model.sr,
        chosen,
        speed,
        notes,
    )


def clock_time(began: datetime | None, seconds: float = 0) -> str:
    """The time `seconds` after `began`, to the millisecond; "" of None."""
    return "" if began is None else (began + timedelta(seconds=seconds)).isoformat(" ", "milliseconds")


@lru_cache(maxsize=1)
def load_model(job: Job) -> denet_torch.Model:
    """The model of `job.weights` on its device, loaded once. Raises CheckpointError, also if the file is another by now."""
    device = job.device
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # torchrun: one GPU a rank
    return denet_torch.load(job.weights, job.sha256).to(device)


def _load(parts: list[Part]) -> np.ndarray:
    return np.concatenate([np.load(part.file, allow_pickle=False) for part in parts])


def _plan(
    job: Job, model: denet_torch.Model, paths: list[Path]
) -> tuple[dict[Path, list[Part]], dict[Path, str], list[str]]:
    """Parts of each recording, the reasons why there are none, and notes."""
    length = max(1, round(PART_SECONDS / answer_seconds(model)))
    recordings, failures, faults, low = {}, {}, [], []
    for path in tqdm(paths, desc="headers", unit="file", leave=False):
        try:
            refuse_name(path)
            total = count_answers(model, path, job.time_expansion)
            info = audio.probe(path, job.time_expansion)
        except audio.AudioError as error:
            failures[path] = str(error)
            continue
        faults += [info.fault] * bool(info.fault)
        low += [f"{path} ({info.samplerate} Hz)"] * (info.samplerate < model.sr)
        stat = path.stat()
        depends = (job.sha256, job.hop, job.time_expansion, str(path), stat.st_size, stat.st_mtime_ns)
        recordings[path] = []
        for start in range(0, total, length):
            stop = min(start + length, total)
            name = hashlib.sha256(repr((*depends, start, stop)).encode()).hexdigest()
            file = job.folder / "parts" / f"{name[:32]}.npy"
            recordings[path].append(Part(path, start, stop, file))
    if low:
        faults.append(f"below the model's {model.sr} Hz, so that its upper band is empty: {', '.join(low[:SHOWN])}" + _more(low))
    return recordings, failures, faults[:SHOWN] + [_more(faults)] * (len(faults) > SHOWN)


def _more(lines: list[str]) -> str:
    return f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""


def _compute(job: Job, parts: list[Part], processes: int) -> tuple[dict[Path, str], float]:
    """Compute the parts that have no file yet; the reasons of those that fail, and the seconds of audio computed in a second."""
    keep_freed_memory()
    model = load_model(job)
    step = answer_seconds(model)
    clear_partial(job.folder / "parts")
    todo = [part for part in parts if not _intact(part, model)]
    failures, speed, computed = {}, float("nan"), 0.0
    executor = None
    if processes > 1:
        threads = max(1, torch.get_num_threads() // processes)
        executor = ProcessPoolExecutor(max(1, min(processes, len(todo))), get_context("spawn"), _start, (threads,))
    bar = tqdm(
        desc="detect",
        total=sum(part.stop - part.start for part in parts),
        initial=sum(part.stop - part.start for part in set(parts) - set(todo)),
        unit_scale=step,  # seconds are shown; their sums could end beyond the total, of which tqdm warns
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s {remaining} left{postfix}",
    )
    try:
        resource_tracker.ensure_running()  # which lets signals come
        with denet_program.signals_wait():  # the workers are started here
            outcomes = (executor.map if executor else map)(partial(_work, job), todo)
        started = time.perf_counter()
        for i, part in enumerate(todo):
            with explained_if_slow(COMPILING) if i == 0 and job.device == "cpu" else contextlib.nullcontext():
                failure = next(outcomes)
            if failure:
                failures[part.path] = failure
            seconds = step * (part.stop - part.start)
            computed += seconds
            speed = computed / (time.perf_counter() - started)
            bar.set_postfix_str(pace(speed), refresh=False)
            bar.update(part.stop - part.start)
    finally:
        bar.close()
        if executor:
            executor.shutdown(cancel_futures=True)
    return failures, speed


def _start(threads: int) -> None:
    """Set up a worker: its share of the threads, a quiet end at Ctrl-C and when the parent ends."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    denet_program.signals_come()
    parent = parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _work(job: Job, part: Part) -> str | None:
    """Compute one part; the reason if its recording cannot be read."""
    try:
        found = search(
            load_model(job),
            part.path,
            part.start,
            part.stop,
            hop=job.hop,
            batch_size=job.batch_size,
            time_expansion=job.time_expansion,
        )
    except audio.AudioError as error:
        return str(error)
    buffer = io.BytesIO()
    np.save(buffer, found)
    data = buffer.getvalue()
    with replacing(part.file) as file:
        file.write_bytes(data + hashlib.sha256(data).digest())  # numpy does not look behind the array


def _intact(part: Part, model: denet_torch.Model) -> bool:
    """Whether the part's file is as `_work` wrote it, answers of this model; one that is not is computed anew."""
    if not part.file.is_file():
        return False
    data = part.file.read_bytes()
    whole = hashlib.sha256(data[:-32]).digest() == data[-32:] and _fits(part, data[:-32], model)
    if not whole:
        damaged = f"warning: {part.file} is damaged; {part.path} is searched there again"
        tqdm.write(printable(damaged, MAX_MESSAGE), file=sys.stderr)
    return whole


def _fits(part: Part, data: bytes, model: denet_torch.Model) -> bool:
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError):
        return False
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f" or not np.isfinite(found).all():
        return False
    if model.answers_with_boxes:
        return found.shape[1] == len(FOUND)
    return found.shape == (part.stop - part.start, model.n_classes)


def _gather(failures: dict[Path, str]) -> dict[Path, str]:
    """Failures of all ranks, once all are done, however much later than the first."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
    everyone = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, failures)
    torch.distributed.destroy_process_group()
    return {path: reason for each in everyone for path, reason in each.items()}
