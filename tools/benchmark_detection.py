"""Measure memory and speed of tools.detect on one long recording, and a stop in the middle.

A recording of noise with tones, 16 bit, is searched with a model at 16 kHz in a process of its own whose memory is
read twice a second. A second search is killed half way and started again; its events have to be the same.

Examples:
  python -m tools.benchmark_detection --hours 10 --small     ten hours, a small model, for the memory
  python -m tools.benchmark_detection --hours 0.1            the full model
  python -m tools.benchmark_detection --hours 0.2 --rate 250000
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile
import torch

import denet_program
import denet_torch

RATE = 16_000
SMALL = {"before_pooling": False, "n_filters": 2, "gru_units": 8, "dense_units": (8, 8)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=0.1)
    parser.add_argument("--small", action="store_true", help="2 filters, 8 GRU units, batches of 50")
    parser.add_argument("--rate", type=int, default=RATE, help="sampling rate of the recording (Hz); the model's is 16000")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return measure(Path(scratch), args.hours, args.small, args.rate)


def measure(folder: Path, hours: float, small: bool, rate: int) -> int:
    """Print the figures; 1 if the restarted search found other events."""
    weights, recording = folder / "weights.safetensors", folder / "long.wav"
    torch.manual_seed(0)
    model = denet_torch.get_denet((10, 800), 2, sr=RATE, **(SMALL if small else {}))
    with torch.no_grad():
        model.dense3.weight.mul_(10)  # spread the probabilities of random weights: some events
    denet_torch.save(model, weights)
    write_recording(recording, round(hours * 3600), rate)
    search = [sys.executable, "-m", f"{__package__}.detect", recording, "--weights", weights, "--device", "cpu"]
    search += ["--batch-size", "50"] * small

    started = time.monotonic()
    memory = watch([*search, "--output", folder / "whole"])
    seconds = time.monotonic() - started
    thirds = np.array_split(np.array(memory), 3)
    print(f"{hours} h at {rate} Hz, {'small' if small else 'full'} model, {torch.get_num_threads()} threads")
    print(f"{hours * 3600 / seconds:.1f} times real time, start, reading, resampling and decoding included")
    print("most memory in each third of the time: " + ", ".join(f"{t.max():.0f} MB" for t in thirds))

    parts = len(list((folder / "whole" / "parts").iterdir()))
    watch([*search, "--output", folder / "killed"], until=lambda: count(folder / "killed") >= parts // 2)
    print(f"killed after {count(folder / 'killed')} of {parts} parts and started again: ", end="")
    watch([*search, "--output", folder / "killed"])
    events = [(folder / name / "events.csv").read_bytes() for name in ("whole", "killed")]
    print(f"{len(events[0].splitlines()) - 1} events, {'the same' if events[0] == events[1] else 'OTHERS'}")
    return int(events[0] != events[1])


def write_recording(path: Path, seconds: int, rate: int) -> None:
    """Noise whose loudness and pitch change every second."""
    rng = np.random.default_rng(0)
    t = np.arange(rate) / rate
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for _ in range(seconds):
            tone = np.sin(2 * np.pi * rng.uniform(500, 7500) * t) * (rng.random() < 0.3)
            noise = rng.standard_normal(rate, dtype=np.float32)
            file.write(((noise * 0.1 + tone * 0.5) * 10 ** rng.uniform(-2, 0)).clip(-1, 1))


def watch(command: list, until=lambda: False) -> list[float]:
    """Run `command`, killed once `until` holds; its resident memory in MB, twice a second."""
    process = psutil.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    memory = []
    while process.poll() is None:
        if until():
            process.kill()
            process.wait()
            return memory
        memory.append(process.memory_info().rss / 2**20)
        time.sleep(0.5)
    if process.returncode:
        raise RuntimeError(f"the search ended with exit code {process.returncode}")
    return memory


def count(folder: Path) -> int:
    return len(list(folder.glob("parts/*.npy")))


if __name__ == "__main__":
    denet_program.run(main)
