"""Detected events as tables and as files that other programs read."""

from pathlib import Path

from tools.detect_batch import Results
from training.collection import replacing

WRITERS = {}


def write(results: Results, folder: Path, formats: list[str], time_expansion: float = 1) -> None:
    """Write events.csv and recordings.csv to `folder`, and each of `formats`."""
    for name in ("events", "recordings"):
        with replacing(folder / f"{name}.csv") as file:
            getattr(results, name).to_csv(file, index=False, float_format="%.6f")
    for name in formats:
        WRITERS[name](results, folder, time_expansion)
