"""Time and memory of converting a weight file of the original's size (150 MB), each conversion in a process of its own.

    python -m tools.benchmark_convert
    python -m tools.benchmark_convert --beside ../before   # beside the conversion of another checkout, in turn

Exits with 1 if a conversion takes more than 2 s beyond reading and writing the files, or more than 3 times the file's size in
memory.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import denet_program
from denet_torch.architecture import is_variance, shapes
from tools.weights.keras_h5 import write_keras_h5
from tools.weights.npz import write_npz

SECONDS, TIMES_SIZE = 2.0, 3.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each conversion, of which the median counts")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, whose conversion is timed as well")
    args = parser.parse_args()
    repeats, checkouts = args.repeats, [None, *filter(None, [args.beside])]
    ok = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A process starts with the peak memory of the one that started it: this one has to stay small.
        writer = multiprocessing.Process(target=write_sources, args=(folder,))
        writer.start()
        writer.join()
        print(f"{'conversion':24} {'MB':>6} {'s':>6} {'s read+write':>13} {'s beyond':>9} {'peak MB':>8} {'x size':>7}")
        for source, target in (("a.h5", "b.safetensors"), ("b.safetensors", "c.h5"), ("a.npz", "c.safetensors")):
            attention = ["--attention", str(folder / "a.npz")] if source == "a.h5" else []
            turns = [[convert(folder / source, folder / target, attention, c) for c in checkouts] for _ in range(repeats)]
            runs, *others = zip(*turns, strict=True)
            seconds, memory = median(runs, 0), max(run[1] for run in runs)
            plain = statistics.median(copy(folder / source, folder / "copy") for _ in range(repeats))
            size = (folder / source).stat().st_size
            ok &= seconds - plain <= SECONDS and memory <= TIMES_SIZE * size
            print(
                f"{f'{source} to {target}':24} {size / 1e6:6.1f} {seconds:6.2f} {plain:13.2f} {seconds - plain:9.2f} "
                f"{memory / 1e6:8.1f} {memory / size:7.2f}"
            )
            for other in others:
                wall, processor = (median(other, field) / median(runs, field) for field in (0, 2))
                print(f"  {args.beside}: {wall:.3f} times as long, {processor:.3f} times the processor's time")
    return 0 if ok else 1


def median(runs: tuple[tuple[float, int, float], ...], field: int) -> float:
    return statistics.median(run[field] for run in runs)


def write_sources(folder: Path) -> None:
    """a.h5 without the attention and a.npz with everything, random weights in both."""
    from denet_torch.schema import DEFAULTS  # loads PyTorch

    config = DEFAULTS["denet"] | {"input_shape": [10, 400, 1], "n_classes": 2}
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, dtype="float32") for name, shape in shapes(config).items()}
    tensors |= {name: np.abs(tensor) for name, tensor in tensors.items() if is_variance(name)}
    write_keras_h5(tensors, config, folder / "a.h5")
    write_npz(tensors, config, folder / "a.npz")


def convert(source: Path, target: Path, options: list[str], checkout: Path | None = None) -> tuple[float, int, float]:
    """Seconds of a process, its peak memory in bytes, its processor time in seconds; the code is that of `checkout`, if given."""
    command = [sys.executable, "-m", f"{__package__}.convert_weights", str(source), str(target), *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=checkout)  # where Python looks for modules first
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), usage.ru_utime + usage.ru_stime


def copy(source: Path, target: Path) -> float:
    """Seconds to read `source` and write as much to `target`, down to the disk."""
    start = time.perf_counter()
    with open(source, "rb") as read, open(target, "wb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
        os.fsync(written.fileno())
    return time.perf_counter() - start


if __name__ == "__main__":
    denet_program.run(main)
