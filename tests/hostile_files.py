"""Thousands of drawn hostile files of every kind, through the commands that read them: a program, run by test_hostile_corpus.py.

    python tests/hostile_files.py --files 5000 --seed 25

Each file is read properly, or the command says so in one printable line of at most 300 characters that names it; it takes at
most 5 s of computing and 3 times the larger of the file and what it declares plus 300 MB, beyond what a process has that did
the same with whole files; nothing is executed, left half written or left running. Commands are called in processes of some
hundred files each, so that a crash is seen. --kinds KIND --only NUMBER with the same seed draws one file again and says what the
command said.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import defaultdict
from importlib import import_module
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import hostile_cases
import psutil
import test_damaged_weights as weights
import torch
from hostile_cases import KINDS, Case, Good
from test_damaged_weights import computed

from denet_torch.files import MAX_MESSAGE, PARTIAL, SHORTEST_PATH, printable
from tools import command

SECONDS, MEGABYTES, TIMES = 5, 300, 3  # docs/files.md
PATIENCE = 600  # s: who takes longer waits for something, however busy the machine is
BATCH = 250  # files in a process
PROCESS = Path("/proc/self")
UP = "\x1b[A"  # of a progress bar below another


def memory(line: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = (PROCESS / "status").read_text().splitlines()
    return next(1024 * int(text.split()[1]) for text in lines if text.startswith(line))


def call(case: Case) -> tuple[int | None, str, str]:
    """Exit code (None of a traceback), stdout and stderr of the command."""
    out, err = io.StringIO(), io.StringIO()
    main = import_module(case.module).main if case.module else command.main
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        try:
            code = main(list(case.words))
        except SystemExit as error:
            code = error.code
        except BaseException:
            return None, out.getvalue(), err.getvalue() + traceback.format_exc(-8)
    return code, out.getvalue().replace(UP, ""), err.getvalue().replace(UP, "")


def said_wrong(case: Case, code: int | None, out: str, err: str) -> str:
    """What is wrong with what a command said, "" if nothing is."""
    if code is None:
        return "a traceback: " + err.strip().splitlines()[-1][:200]
    lines = [line.rpartition("\r")[2] for line in err.split("\n")]
    if odd := next(
        (line for line in [*lines, *out.split("\n")] if not line.replace("\t", "").replace("\r", "").isprintable()), ""
    ):
        return f"a terminal would obey {odd[:100]!r}"
    if "Traceback" in err + out:
        return "a traceback"
    if long := next((line for line in lines if len(line) > MAX_MESSAGE), ""):
        return f"a line of {len(long)} characters: {long[:100]}"
    errors = [line for line in lines if line.startswith("error: ")]
    if not code:
        return f"exit code 0 and {errors[0]}" if errors else ""
    if code != 2:
        return f"exit code {code}"
    if case.several and errors:
        return ""
    if len(errors) != 1:
        return f"{len(errors)} errors: {err[-200:]!r}"
    names = [printable(str(name))[: SHORTEST_PATH // 2 - 2] for name in case.files]  # what is left of its beginning at least
    return "" if any(name in errors[0] for name in names) else f"names no file: {errors[0]}"


def left(folder: Path, running: set[int]) -> str:
    """What nobody may leave in a folder, or running beside the processes `running`."""
    for path in folder.rglob("*"):
        if path.name == weights.CANARY:
            return "code was executed"
        if path.name.startswith(PARTIAL) or path.name == "target.safetensors":
            return f"{path.name} was left behind"
    return "" if children() <= running else "a process was left running"


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def judge(name: str, seed: int, number: int, good: Good, folder: Path, base: int, running: set[int]) -> dict:
    """Draw a file, let its command read it, and say what came of it."""
    rng = random.Random(f"{seed} {name} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    case = getattr(hostile_cases, name)(rng, folder, good)
    reads = case.reads or case.files[0]
    size = reads.stat().st_size if reads.is_file() else 0
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    base = max(base, memory("VmRSS"))  # a table of 4 MB with ragged lines takes a gigabyte to draw, and Python keeps some of it
    (PROCESS / "clear_refs").write_text("5")  # the peak begins anew
    before, started = computed(), time.monotonic()
    code, out, err = call(case)
    if "tensorflow" in sys.modules:  # what the library itself takes is no fault of a file: once more
        (PROCESS / "clear_refs").write_text("5")
        base, before = memory("VmRSS"), computed()
        code, out, err = call(case)
    seconds, waited, taken = computed() - before, time.monotonic() - started, memory("VmHWM") - base
    wrong = said_wrong(case, code, out, err)
    if not wrong and code == 0:
        try:
            case.accepted()
        except Exception as error:
            wrong = f"accepted, but {type(error).__name__}: {str(error)[:200]}"
    wrong = wrong or left(folder, running)
    if seconds > SECONDS:
        wrong = wrong or f"{seconds:.1f} s of computing"
    if taken > TIMES * max(size, case.declared) + (MEGABYTES << 20):
        wrong = wrong or f"{taken >> 20} MB for a file of {size} bytes that declares {case.declared}"
    shown = (
        f"{' '.join(case.words)}\n{out}{err}\n{seconds:.2f} s, {waited:.2f} s waited, {taken >> 20} MB, of a file of {size} bytes"
    )
    return {"read": code == 0, "wrong": wrong, "seconds": seconds, "megabytes": taken / 2**20, "said": shown, "size": size}


def work(jobs: list[tuple[str, int]], seed: int, good: Good, folder: Path, pipe: int) -> None:
    """In a process of its own: each of the jobs (kind, number); before and after it a line of JSON."""
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # what libraries say in C
    warm_up(good, folder)
    base, running = memory("VmRSS"), children()
    with open(pipe, "w", buffering=1) as results:
        for name, number in jobs:
            print(json.dumps([name, number, None]), file=results)
            found = judge(name, seed, number, good, folder, base, running)
            print(json.dumps([name, number, found]), file=results)
            if found["megabytes"] > MEGABYTES or "tensorflow" in sys.modules:
                break  # what it keeps is no fault of the next
    os._exit(0)


def warm_up(good: Good, folder: Path) -> None:
    """Load what commands load, with a whole file."""
    sound, out = good / "sounds" / "told.wav", folder.with_name("warm")
    detect = ["detect", str(sound), "--weights", str(good.model), "--output", str(out), "--report", "--formats", "raven", "svl"]
    convert = ["convert", str(good / "weights.pt"), str(out / "a.safetensors")]
    train = [
        "train",
        "--config",
        str(good / "run.yaml"),
        "--out",
        str(out / "run"),
        "--epochs",
        "1",
        "--data-dir",
        str(good / "collection"),
    ]
    classify = ["classify", str(sound), "--weights", str(good / "sincnet.safetensors"), "--output", str(out / "a.csv")]
    for words in (detect, convert, classify, train, ["suggest", str(good / "collection")]):
        code, *said = call(Case(words, []))
        assert code == 0, (words, *said)
    shutil.rmtree(out)


def run(jobs: list[tuple[str, int]], seed: int, good: Good, folder: Path):
    """The outcome of each job; processes that crash or hang are one."""
    while jobs:
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            os.close(readable)
            try:
                work(jobs[:BATCH], seed, good, folder, writable)
            except BaseException:
                traceback.print_exc(-3, file=sys.stdout)
                sys.stdout.flush()
                os._exit(3)
        os.close(writable)
        begun, done = None, 0
        with open(readable) as results:
            for line in lines_within(results, child):
                name, number, found = json.loads(line)
                if found is None:
                    begun = name, number
                else:
                    begun, done = None, done + 1
                    yield name, number, found
        status = os.waitpid(child, 0)[1]
        if os.waitstatus_to_exitcode(status) > 0:
            raise SystemExit(f"the test itself failed, at {begun}")
        if begun is not None:
            number = -os.waitstatus_to_exitcode(status)
            why = "waits, or takes very long" if number == signal.SIGKILL else f"ended by {signal.Signals(number).name}"
            yield *begun, {"read": False, "wrong": why, "seconds": 0, "megabytes": 0, "said": why, "size": 0}
        jobs = jobs[done + (begun is not None) :]


def lines_within(results, child: int):
    """Lines of a child's, which is killed if there is none for too long."""

    def end(*_) -> None:
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.alarm(2 * PATIENCE)  # it has to warm up
    for line in results:
        signal.alarm(PATIENCE)
        yield line
    signal.alarm(0)


def drawn(files: int, kinds: list[str]) -> list[tuple[str, int]]:
    """Kinds and numbers, of each kind its share."""
    shares = {kind.__name__: share for kind, share in KINDS.items() if not kinds or kind.__name__ in kinds}
    shares |= {name: 10 for name in kinds if name not in shares}
    total = sum(shares.values())
    return [(name, number) for name, share in shares.items() for number in range(max(1, round(files * share / total)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--kinds", nargs="*", default=[], metavar="KIND", help="the names of the functions in hostile_cases.py")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this file of the kind, and what the command said")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    jobs = drawn(options.files, options.kinds) if options.only is None else [(options.kinds[0], options.only)]
    rows, wrong = defaultdict(list), 0
    with tempfile.TemporaryDirectory() as scratch:
        good = Good(Path(scratch) / "good")
        make(good)
        for name, number, found in run(jobs, options.seed, good, Path(scratch) / "files"):
            rows[name].append(found)
            if options.only is not None:
                print(found["said"])
            if found["wrong"]:
                wrong += 1
                print(f"--seed {options.seed} --kinds {name} --only {number}: {found['wrong']}", flush=True)
    print(f"{'kind':<16} files  read  refused  s at most  MB at most")
    for name, found in [*rows.items(), ("all", [one for some in rows.values() for one in some])]:
        read = sum(one["read"] for one in found)
        slowest, most = (max(one[key] for one in found) for key in ("seconds", "megabytes"))
        print(f"{name:<16} {len(found):5} {read:5} {len(found) - read:8} {slowest:10.1f} {most:11.0f}")
    print(f"{wrong} wrong")
    return min(1, wrong)


def make(good: Good) -> None:
    """Write the whole files in a child: this process shall never have computed, so that it can fork."""
    good.folder.mkdir()
    child = os.fork()
    if not child:
        try:
            with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
                good.make()
            os._exit(0)
        except BaseException:
            traceback.print_exc(-3, file=sys.stdout)
            sys.stdout.flush()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the whole files cannot be made")


if __name__ == "__main__":
    sys.exit(main())
