"""Collections made in memory, without files."""

from pathlib import Path

import pandas as pd

from training.collection import Collection
from training.tables import CODE_COLUMNS, CONTEXTS


def make_collection(
    frames, voice=(), annotations=(), samplerate=250_000, root=".", complete=None, **columns
):
    """frames: length of each recording. voice: (recording, start, stop). annotations: (recording, start,
    stop, context, emitter). columns: file, treatment, channel, recorded, where they matter."""
    count = len(frames)
    recordings = pd.DataFrame(
        {
            "file_id": range(1, count + 1),
            "file": columns.get("file", [f"files101/{i}.WAV" for i in range(count)]),
            "treatment": columns.get("treatment", ["1"] * count),
            "channel": columns.get("channel", ["1"] * count),
            "recorded": pd.to_datetime(pd.Series(columns.get("recorded", [None] * count))),
            "samplerate": pd.array([samplerate] * count, dtype="Int64"),
            "frames": pd.array(frames, dtype="Int64"),
            "complete": [True] * count if complete is None else complete,
        }
    )
    voiced = pd.DataFrame(sorted(voice), columns=["recording", "start", "stop"], dtype="int64")
    spans = pd.DataFrame(
        sorted(annotations), columns=["recording", "start", "stop", "context", "emitter"], dtype="int64"
    )
    for name in CODE_COLUMNS:
        if name not in spans:
            spans[name] = 0
    return Collection(Path(root), recordings, voiced, spans, CONTEXTS, 1, {})


def seed_recording():
    """120601011047196133.WAV, whose tables contradict each other: FileInfo.csv has 47553-95094 and
    298537-349426, Annotations.csv has 298537-607056 with context 1, both counted from 1."""
    return make_collection(
        [607_056],
        [(0, 47_552, 95_094), (0, 298_536, 349_426)],
        [(0, 298_536, 607_056, 1, 118)],
        file=["files101/120601011047196133.WAV"],
    )
