"""Kill, stop and starve training, detection and conversion again and again; nothing may be lost.

    .venv/bin/nox -s stress                  # an hour
    .venv/bin/nox -s stress -- --minutes 5

Each case is drawn: a run is killed (SIGKILL) or told to stop (SIGTERM, SIGINT, to one process or to its group) at some moment, or
finds a disk that is full after so many bytes, or two others at work on the same output. Then the same command is given until it
ends. Its result must be that of a run that was left alone, byte for byte, its folder must hold no other names, no process may be
left, and nobody may have printed a traceback or what the C library says of a corrupted heap. Runs are forks of this process,
which has imported everything and started no thread; they end as programs do (denet_program.py). Exit code: the number of things
that were lost.
"""

# ruff: noqa: E402  (one module is replaced before the others are imported)
import argparse
import contextlib
import importlib.machinery
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import denet_program

signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells ignore in what they run in the background
denet_program.take()

# torchmetrics imports it where it is installed, and it starts a thread, which no fork would have.
onnxruntime = sys.modules["onnxruntime"] = ModuleType("onnxruntime")
onnxruntime.InferenceSession, onnxruntime.__spec__ = object, importlib.machinery.ModuleSpec("onnxruntime", None)

import numpy as np
import soundfile
import torch
from test_trainer_resume import assert_same_end
from trainer_cases import as_options, tiny

from denet_torch.fast.numba_cpu import threads
from tools import convert_weights, detect, make_dataset
from training import run

for module in ("tools.detect_batch", "tools.detect_report", "tools.event_formats", "tools.weights.torch_files"):
    importlib.import_module(module)  # once, before the forks

PATIENCE = 300  # seconds for a run that is left alone
HEAP = re.compile("corrupted|double free|invalid (pointer|size)|(malloc|free)\\(|munmap|Fatal Python error|terminate called")
TARGETS = (".safetensors", ".h5", ".weights.h5", ".keras", ".npz", ".pt")


class Process:
    """A command, main(arguments), in a fork that leads a group of its own, and what it prints."""

    def __init__(self, main: Callable, arguments: list[str], limit: int | None = None):
        self.said, tell = os.pipe()
        sys.stdout.flush()
        self.id = os.fork()
        if self.id == 0:
            os.setpgid(0, 0)
            os.dup2(tell, 1)
            os.dup2(tell, 2)
            sys.modules["__main__"] = ModuleType("__main__")  # detection's processes need not import this file
            threads._parallel = threads._openmp()  # no thread was lost by the fork
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            denet_program.run(lambda: main(arguments))
        with contextlib.suppress(OSError):  # whoever of the two is first: a signal to the group may follow at once
            os.setpgid(self.id, self.id)
        os.close(tell)
        os.set_blocking(self.said, False)
        self.text, self.code = "", None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        until = time.monotonic() + seconds
        while self.code is None and time.monotonic() < until:
            done, status = os.waitpid(self.id, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
            self._listen()
            time.sleep(0.002)
        return self.code is not None

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.said, 65536):
                self.text += data.decode(errors="replace")

    def send(self, number: int, group: bool) -> bool:
        """Send a signal; False if the process was over before it came, as one must have been that SIGKILL did not end."""
        (os.killpg if group else os.kill)(self.id, number)
        return number != signal.SIGKILL or not self.wait(PATIENCE) or self.code != 0

    def end(self) -> list[str]:
        """Wait for its group; what is wrong with its end."""
        wrong = []
        if not self.wait(PATIENCE):
            wrong.append("did not end")
            os.kill(self.id, signal.SIGKILL)
            self.wait(PATIENCE)
        until = time.monotonic() + PATIENCE
        while self._group() and time.monotonic() < until:
            time.sleep(0.02)
        if self._group():
            wrong.append("left processes behind")
            os.killpg(self.id, signal.SIGKILL)
        self._listen()
        os.close(self.said)
        if HEAP.search(self.text):
            wrong.append("a corrupted heap")
        if "Traceback" in self.text or "Exception ignored" in self.text:
            wrong.append("a traceback")
        return wrong

    def _group(self) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.id, 0)
            return True
        return False


# Exit codes by signal; one that comes before it is handled ends the process at once.
STOPPED = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 0), signal.SIGINT: (130, 0)}


class Stress:
    """The cases, and what came of them."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.tried, self.lost, self.number = Counter(), defaultdict(list), 0
        torch.set_num_threads(1)
        self._prepare()

    def _prepare(self) -> None:
        """The data, and the runs that are left alone."""
        data = self.folder / "data"
        self.data_options = ["--recordings", "16", "--seed", "1", "--max-seconds", "1.2"]
        self.made = self.folder / "made"
        self._whole(make_dataset.main, [str(self.made), *self.data_options])
        shutil.copytree(self.made, data)  # gets an index
        # Large enough for the compiled kernels. PyTorch's sums depend on the number of threads.
        sizes = dict(sample_rate=8000, n_filters=32, gru_units=256, epochs=2, epoch_windows=24, checkpoint_steps=2)
        self.configs, self.train_seconds = {}, {}
        for number in (1, 2):
            self.configs[number] = tiny(data, self.folder / f"whole-{number}", **sizes | {"threads": number})
            started = time.monotonic()
            self._whole(run.main, as_options(self.configs[number]))
            self.train_seconds[number] = time.monotonic() - started
        rng = np.random.default_rng(0)
        (self.folder / "recordings").mkdir()
        for number in range(4):
            sound = rng.standard_normal(8000 * 12) * 10 ** rng.uniform(-3, -1)
            soundfile.write(self.folder / "recordings" / f"{number}.wav", sound.clip(-1, 1), 8000)
        self.weights = self.configs[1].out / "weights.safetensors"
        started = time.monotonic()
        self.found = self.folder / "found"
        self._whole(detect.main, self._detection(self.found, jobs=2))
        self.detect_seconds = time.monotonic() - started
        for ending in TARGETS:
            self._whole(convert_weights.main, [str(self.weights), str(self.folder / f"converted{ending}")])

    def _whole(self, main: Callable, arguments: list[str]) -> None:
        process = Process(main, arguments)
        if wrong := process.end() + [f"exit code {process.code}"] * (process.code != 0):
            raise SystemExit(f"a run that nobody disturbed went wrong ({', '.join(wrong)}):\n{process.text}")

    def _detection(self, out: Path, jobs: int) -> list[str]:
        wanted = ["--formats", "raven", "audacity", "events.parquet", "--report", "--threshold", "0.3"]
        places = [self.folder / "recordings", "--weights", self.weights, "--output", out]
        return [*map(str, places), "--jobs", str(jobs), *wanted]

    def note(self, kind: str, wrong: list[str], process: Process) -> None:
        for each in wrong:
            self.lost[kind].append(each)
            print(f"{kind}, case {self.number}: {each}\n{process.text[-3000:]}", flush=True)

    def check_end(self, kind: str, process: Process, codes: tuple[int, ...]) -> None:
        wrong = process.end()
        if process.code not in codes:
            wrong.append(f"ended with {process.code}")
        self.note(kind, wrong, process)

    def check_same(self, kind: str, out: Path, whole: Path, process: Process) -> None:
        """The result is that of a run that was left alone, and no other names lie there."""
        wrong = []
        try:
            if (whole / "config.yaml").exists():
                assert_same_end(whole, out)
            elif contents(out) != contents(whole):
                wrong.append(f"unequal: {', '.join(differing(out, whole))}")
        except Exception as error:  # whatever is missing or damaged there
            wrong.append(f"unequal: {str(error).splitlines()[0]}")
        if more := names(out) ^ names(whole):
            wrong.append(f"left behind, or missing: {', '.join(sorted(more))}")
        self.note(kind, wrong, process)

    def place(self) -> Path:
        self.number += 1
        return self.folder / f"case-{self.number}" / "out"

    # kinds

    def killed_training(self) -> None:
        self._stopped_training("training killed", signal.SIGKILL)

    def terminated_training(self) -> None:
        self._stopped_training("SIGTERM", signal.SIGTERM)

    def interrupted_training(self) -> None:
        self._stopped_training("SIGINT", signal.SIGINT)

    def killed_detection(self) -> None:
        self._stopped_detection("detection killed", signal.SIGKILL)

    def terminated_detection(self) -> None:
        self._stopped_detection("SIGTERM", signal.SIGTERM)

    def interrupted_detection(self) -> None:
        self._stopped_detection("SIGINT", signal.SIGINT)

    def _stopped_training(self, kind: str, number: int) -> None:
        out = self.place()
        out.parent.mkdir()
        group = self.rng.random() < 0.5 and number != signal.SIGKILL
        number_of_threads = self.rng.choice((1, 1, 1, 2))
        config = self.configs[number_of_threads]
        options = as_options(replace(config, out=out, resume=True, workers=2 if group else 0))
        for stops in range(1, 7):  # a few in one run
            process = Process(run.main, options)
            if process.wait(self.rng.uniform(0, 1.2 * self.train_seconds[number_of_threads])) or stops == 6:
                break
            if not process.send(number, group):
                break
            self.tried[kind] += 1
            self.check_end(kind, process, STOPPED[number])
        self.check_end(kind, process, (0,))
        self.check_same(kind, out, config.out, process)

    def _stopped_detection(self, kind: str, number: int) -> None:
        out = self.place()
        for stops in range(1, 5):
            process = Process(detect.main, self._detection(out, jobs=2))
            if process.wait(self.rng.uniform(0, 1.2 * self.detect_seconds)) or stops == 4:
                break
            if not process.send(number, group=number == signal.SIGINT):
                break
            self.tried[kind] += 1
            self.check_end(kind, process, STOPPED[number])
        self.check_end(kind, process, (0,))
        self.check_same(kind, out, self.found, process)

    def full_disk(self) -> None:
        kind, out = "full disk", self.place()
        out.parent.mkdir()
        ending = self.rng.choice(TARGETS)
        target = out / f"converted{ending}"
        main, arguments, whole = self.rng.choice(
            [
                (run.main, as_options(replace(self.configs[1], out=out, resume=True)), self.configs[1].out),
                (detect.main, self._detection(out, jobs=1), self.found),
                (convert_weights.main, [str(self.weights), str(target)], self.folder / target.name),
                (make_dataset.main, [str(out / "data"), *self.data_options], self.made),
            ]
        )
        size = sum(path.stat().st_size for path in [whole, *whole.rglob("*")] if path.is_file())
        limit = int(self.rng.choice([self.rng.uniform(0, 1.2 * size), 10 ** self.rng.uniform(3, np.log10(size))]))
        made = out / "data" if main is make_dataset.main else target if main is convert_weights.main else out
        with small_disk(out, limit) as (mounted, grow):
            out.mkdir(exist_ok=True)
            self.tried[f"{kind} ({'a small file system' if mounted else 'files of limited size'})"] += 1
            process = Process(main, arguments, None if mounted else limit)
            wrong = process.end()
            last = (process.text.strip().splitlines() or [""])[-1]
            if process.code not in (0, 2):
                wrong.append(f"ended with {process.code}")
            elif process.code == 2 and not (last.startswith("error: ") and str(out.parent) in last and len(last) <= 600):
                wrong.append(f"says {last!r}, not what is full")
            if process.code == 2 and main in (convert_weights.main, make_dataset.main) and any(out.iterdir()):
                wrong.append(f"left behind: {', '.join(sorted(names(out)))}")
            self.note(kind, wrong, process)
            if process.code == 2:
                grow()
                process = Process(main, arguments)
                self.check_end(kind, process, (0,))
            if made.is_dir():
                self.check_same(kind, made, whole, process)
            elif made.read_bytes() != whole.read_bytes() and ending not in (".keras", ".npz"):  # archives hold the time
                self.note(kind, ["unequal"], process)

    def three_at_once(self) -> None:
        kind, out = "three at once", self.place()
        out.parent.mkdir()
        training = self.rng.random() < 0.3
        whole = self.configs[1].out if training else self.found
        if training:
            main, arguments = run.main, as_options(replace(self.configs[1], out=out, resume=True))
        else:
            main, arguments = detect.main, self._detection(out, jobs=1)
        self.tried[kind] += 1
        processes = [Process(main, arguments) for _ in range(3)]
        for process in processes:
            self.check_end(kind, process, (0, 2) if training else (0,))
            if process.code == 2 and "another run is at work" not in process.text:
                self.note(kind, [f"says {process.text.strip()[-200:]!r}"], process)
        self.check_same(kind, out, whole, processes[-1])

    KINDS = {  # how often each is drawn
        killed_training: 25, killed_detection: 35, terminated_training: 8, interrupted_training: 8, terminated_detection: 4,
        interrupted_detection: 4, full_disk: 30, three_at_once: 5,
    }  # fmt: skip

    def go_on(self, seconds: float) -> None:
        """Cases until the time is over, three at least: one of each kind first."""
        until = time.monotonic() + seconds
        kinds, shares = list(self.KINDS), list(self.KINDS.values())
        first = iter(self.rng.sample(kinds, len(kinds)))
        while time.monotonic() < until or self.number < 3:
            (next(first, None) or self.rng.choices(kinds, shares)[0])(self)
            shutil.rmtree(self.folder / f"case-{self.number}", ignore_errors=True)

    def summary(self) -> str:
        lines = [f"{'what':40} {'tried':>6} {'lost':>6}"]
        for kind in sorted(self.tried | {kind: 0 for kind in self.lost}):
            found = self.lost.get(kind.partition(" (")[0] if kind.startswith("full disk") else kind, [])
            lines.append(f"{kind:40} {self.tried[kind]:6} {len(found):6}")
        return "\n".join(lines)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[tuple[bool, Callable]]:
    """`folder` on a file system of `size` bytes, and what makes it large; (False, nothing) where the user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "stress", str(folder)]
    mounted = bool(shutil.which("mount")) and subprocess.run(mount, capture_output=True).returncode == 0
    grow = ["mount", "-o", "remount,size=1g", str(folder)]
    try:
        yield mounted, (lambda: subprocess.run(grow, check=True)) if mounted else (lambda: None)
    finally:
        if mounted and os.getpid() == PARENT:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts]


def names(folder: Path) -> set[str]:
    """Names below a folder, checkpoints numbered: those before the last, which is compared, may be of the step of a stop."""
    found = {str(path.relative_to(folder)) for path in files(folder)}
    kept = {name for name in found if name.endswith(".ckpt")}
    return found - kept | {f"checkpoint {i}" for i in range(len(kept))}


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes by name, without the sound in pages: Ogg streams have drawn numbers."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}
    return {name: re.sub(rb"data:audio/ogg;base64,[^\"]*", b"", data) for name, data in found.items()}


def differing(one: Path, other: Path) -> list[str]:
    first, second = contents(one), contents(other)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


PARENT = os.getpid()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="for the cases, once the runs are there that are left alone")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="denet-stress-"))
    stress, started = Stress(folder, options.seed), time.monotonic()
    stress.go_on(60 * options.minutes)
    print(stress.summary())
    lost = sum(map(len, stress.lost.values()))
    print(f"{lost} lost in {(time.monotonic() - started) / 60:.0f} minutes")
    shutil.rmtree(folder)
    return min(lost, 100)


if __name__ == "__main__":
    sys.exit(main())
