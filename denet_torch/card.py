"""README.md of a published model: what it hears, what its answers mean, how it scored, where it comes from."""

import json
from pathlib import Path
from typing import Any

from .detection import class_names
from .models import Model
from .schema import Detection

HEAD = """\
---
library_name: denet-torch
tags:
- audio
- bioacoustics
- sound-event-detection
---
"""
USE = """\
```python
import denet_torch

model = denet_torch.from_pretrained("this/repository")
{}(model, "recording.wav")
```
"""
GROUPS = ("frames", "events")  # of scores.json


def model_card(model: Model, run: str | Path | None = None) -> str:
    """Markdown with the head that the Hugging Face Hub reads. `run`: folder of the run that made the model, for its scores and
    provenance."""
    told = model.detection or Detection()
    rows = {
        "model": f"{model.name}, {sum(parameter.numel() for parameter in model.parameters()):,} parameters",
        "sampling rate": f"{model.sr:,} Hz: it hears what lies below {model.sr / 2000:g} kHz",
        "frame": f"{1000 * model.samples / model.sr:g} ms",
        "sequence": f"{model.seq_len} frames, {model.seq_len * model.samples / model.sr:g} s",
        "labels": ", ".join(class_names(model)),
    }
    if told.per == "frame":
        decoding = told.decoding
        rows["a call"] = f"has a frame of at least {decoding.threshold:g} call probability"
        if decoding.low_threshold is not None:
            rows["a call"] += f", and goes on down to {decoding.low_threshold:g}"
        gaps = {"joined below": decoding.min_gap, "dropped below": decoding.min_duration, "one call below": decoding.call_gap}
        rows |= {name: f"{seconds:g} s" for name, seconds in gaps.items() if seconds}
    call = "denet_torch.detect" if told.per == "frame" else "denet_torch.classification.classify"
    parts = [
        HEAD,
        f"# {Path(run).resolve().name if run else model.name}\n",
        _table("", "", rows),
        USE.format(call),
        *(_of_run(Path(run)) if run else []),
    ]
    return "\n".join(parts)


def _of_run(run: Path) -> list[str]:
    """Scores and provenance, as far as the run's folder has them."""
    parts, scores, facts = [], _json(run / "scores.json"), _json(run / "run.json")
    test, validation = scores.get("test", {}), scores.get("validation", {})
    for group in GROUPS:
        if test.get(group):
            both = {
                name.replace("_", " "): f"{_number(validation.get(group, {}).get(name))} | {_number(value)}"
                for name, value in test[group].items()
            }
            parts.append(f"## Scores of {group}\n\n" + _table("", "validation | never seen", both))
    if facts:
        versions = ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())
        rows = {
            "trained": facts.get("started", ""),
            "commit of denet-torch": facts.get("commit", "") or "not known",
            "with": f"Python {facts.get('python', '')}, {versions}",
            "index of the data (SHA-256)": facts.get("data_index_sha256", ""),
            "split": facts.get("split", ""),
        }
        parts.append("## Where it comes from\n\n" + _table("", "", rows))
    return parts


def _table(first: str, others: str, rows: dict[str, str]) -> str:
    columns = 1 + others.count("|") + 1
    lines = [f"| {first} | {others} |", "|" + "---|" * columns]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, (int, float)) else "none"


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}
