"""Measure how fast windows are loaded: by seeking, against reading whole files and slicing.

Both load the same windows (10 x 50 ms of 250 kHz recordings, resampled to 16 kHz, with labels) through a
data loader with two workers, in turns, so that a busy machine slows both; medians are printed. Then one
loader runs on and the memory of its workers is printed at intervals.

Example: python -m tools.benchmark_windows --rounds 5 --memory-windows 20000
"""

import argparse
import csv
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile
import torch
import torchaudio
from torch.utils.data import DataLoader
from tqdm import tqdm

import denet_program
from denet_torch.audio import Part
from training.collection import open_collection
from training.labels import Labeller
from training.synthetic import ANNOTATIONS_HEADER, FILE_INFO_HEADER, SAMPLERATE
from training.windows import RandomWindows

WORKERS = 2


class WholeFileWindows(RandomWindows):
    """The same windows, by loading and resampling the whole file."""

    def _read(self, path: Path, start: int) -> Part:
        sound, samplerate = soundfile.read(path, dtype="float32")
        whole = torchaudio.functional.resample(torch.from_numpy(sound), samplerate, self.rate)
        window = whole[start : start + self.window].numpy()
        return Part(window, len(window))


class SlicedFileWindows(RandomWindows):
    """Windows by loading the whole file and resampling a slice, whose edges come out wrong."""

    def _read(self, path: Path, start: int) -> Part:
        sound, samplerate = soundfile.read(path, dtype="float32")
        edges = np.array([start, start + self.window]) * samplerate // self.rate
        part = torch.from_numpy(sound[slice(*edges)])
        window = torchaudio.functional.resample(part, samplerate, self.rate)[: self.window].numpy()
        return Part(window, len(window))


def write_recordings(folder: Path, lengths: np.ndarray) -> None:
    """Recordings of these lengths (s), a call in each, as a collection."""
    rng = np.random.default_rng(0)
    (folder / "files101").mkdir()
    rows = []
    for index, samples in enumerate((lengths * SAMPLERATE).astype(int)):
        name = f"{120601000000 + index}000000.WAV"
        sound = (1000 * rng.standard_normal(samples)).astype(np.int16)
        soundfile.write(folder / "files101" / name, sound, SAMPLERATE, format="WAV")
        rows.append([index, 1, name, "files101", 1, "", 1, min(samples, 50_000)])
    for name, header, content in (
        ("FileInfo.csv", FILE_INFO_HEADER, rows),
        ("Annotations.csv", ANNOTATIONS_HEADER, []),
    ):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows([header, *content])


def windows_per_second(dataset: RandomWindows) -> float:
    """Once all workers are running: a worker's start takes as long as many windows."""
    batches = iter(DataLoader(dataset, 16, num_workers=WORKERS))
    for _ in range(4 * WORKERS):
        next(batches)
    started = time.perf_counter()
    windows = sum(len(batch["labels"]) for batch in batches)
    return windows / (time.perf_counter() - started)


def print_memory(dataset: RandomWindows) -> None:
    """Memory that the workers do not share with others, at ten points of an epoch."""
    shown = 0
    for index, _ in enumerate(DataLoader(dataset, 16, num_workers=WORKERS), 1):
        if 10 * index * 16 >= (shown + 1) * len(dataset):
            shown += 1
            workers = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
            memory = [worker.memory_full_info() for worker in workers]
            text = ", ".join(f"{m.rss / 2**20:.1f} MB, {m.uss / 2**20:.1f} of them unshared" for m in memory)
            print(f"{index * 16:6d} windows: workers hold {text}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loader (default: 5)")
    parser.add_argument("--windows", type=int, default=960, help="windows a turn (default: 960)")
    parser.add_argument("--recordings", type=int, default=60, help="default: 60")
    parser.add_argument(
        "--seconds",
        type=float,
        help="length of all recordings (default: log-normal with median 2.4 s, 0.02 to 34 s)",
    )
    parser.add_argument("--memory-windows", type=int, default=20_000, help="default: 20000")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    lengths = np.clip(2.4 * np.exp(0.8 * rng.standard_normal(args.recordings)), 0.02, 34)
    if args.seconds:
        lengths = np.full(args.recordings, args.seconds)
    kinds = {"seeking": RandomWindows, "whole": WholeFileWindows, "sliced": SlicedFileWindows}
    rates = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        write_recordings(Path(folder), lengths)
        collection = open_collection(folder)
        rows, labeller = np.arange(len(collection.recordings)), Labeller(collection)
        for turn in tqdm(range(args.rounds), desc="rounds"):
            for name, kind in kinds.items():
                dataset = kind(collection, rows, labeller, length=args.windows, seed=turn)
                rates[name].append(windows_per_second(dataset))
        print(f"{len(rows)} recordings of {lengths.min():.2f} to {lengths.max():.2f} s,")
        print(f"{lengths.mean():.2f} s on average, {args.rounds} rounds, {WORKERS} workers")
        medians = {name: statistics.median(values) for name, values in rates.items()}
        for name, text in (
            ("seeking", "seeking to the window"),
            ("whole", "whole file, resampled, sliced"),
            ("sliced", "whole file, sliced, resampled"),
        ):
            ratio = medians["seeking"] / medians[name]
            print(f"{text:30s} {medians[name]:7.0f} windows/s; seeking is {ratio:.1f} times as fast")
        if args.memory_windows:
            print_memory(RandomWindows(collection, rows, labeller, length=args.memory_windows))


if __name__ == "__main__":
    denet_program.run(main)
