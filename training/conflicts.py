"""Where the two sources of calls contradict each other: numbers, and a picture of any recording.

Only annotated recordings count: where nobody annotated, there is nothing to contradict. What one source
alone holds to be call is of one of five kinds:

    extra call   a voiced segment that no annotation touches
    empty span   an annotated span without any voiced segment
    tail         what of a span comes after its last voiced segment
    silence      what of a span comes between its voiced segments
    offset       edges that differ: voice outside of its span, a span that begins before its voice
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from denet_torch import audio
from training.collection import Collection, background_codes, open_collection, replacing
from training.labels import IGNORE, STRATEGIES, Labeller, coverage, is_call, merge, subtract
from training.tables import CollectionError

KINDS = ("extra call", "empty span", "tail", "silence", "offset")
COLOURS = {"voice": "tab:blue", "annotation": "tab:orange", "intersection": "tab:green", "union": "tab:red"}


def write_report(root: str | Path, output: str | Path, **reading) -> pd.DataFrame:
    """Write conflicts.csv (see `summarise`) and KIND.png of one example a kind; return the table.

    reading: how the collection is read, as for `open_collection`.
    """
    collection = open_collection(root, **reading)
    collection.require_headers()
    conflicts = find_conflicts(collection)
    table = summarise(collection, conflicts)
    with replacing(Path(output) / "conflicts.csv") as partial:
        table.to_csv(partial)
    for kind, recording in examples(conflicts).items():
        draw_recording(collection, recording, Path(output) / f"{kind.replace(' ', '-')}.png")
    return table


def draw_by_name(root: str | Path, name: str, path: str | Path, **reading) -> None:
    """Draw the recording whose file is `name`, or ends in it. Raises CollectionError if none does."""
    collection = open_collection(root, **reading)
    files = collection.recordings["file"]
    found = np.flatnonzero((files == name) | files.str.endswith("/" + name))
    if not len(found):
        raise CollectionError(f"{root}: no recording {name} in the index (see its report)")
    collection.require_headers()
    draw_recording(collection, found[0], path)


def find_conflicts(collection: Collection) -> pd.DataFrame:
    """Stretches that one source alone calls a call: recording, kind, start, stop (samples)."""
    annotated = collection.annotations["recording"].unique()
    rows = []
    for recording in tqdm(annotated, desc="conflicts", unit="recording"):
        voice, spans = _sources(collection, recording)
        rows += [(recording, *piece) for piece in _voice_alone(voice, spans)]
        rows += [(recording, *piece) for piece in _annotation_alone(voice, spans)]
    found = pd.DataFrame(rows, columns=["recording", "kind", "start", "stop"])
    return found.astype(dict.fromkeys(["recording", "start", "stop"], "int64"))


def summarise(
    collection: Collection,
    conflicts: pd.DataFrame,
    frame_seconds: float = 0.05,
    min_overlap: float = 0.5,
) -> pd.DataFrame:
    """Recordings, seconds and frames in conflict of each kind, of any, and of all that is annotated.

    Frames are counted from the start of a recording; one is in conflict if the sources label it
    differently, and is of the kind that covers most of it.
    """
    frames = dict.fromkeys(KINDS, 0)
    samplerate = collection.recordings["samplerate"].to_numpy(np.int64)
    length = collection.recordings["frames"].to_numpy(np.int64)
    for recording, pieces in conflicts.groupby("recording"):
        edges = frame_edges(length[recording], frame_seconds * samplerate[recording])
        labels = [is_call(*ends, edges, min_overlap) for ends in _sources(collection, recording)]
        differ = labels[0] != labels[1]
        covered = [
            coverage(*(of_kind[end].to_numpy() for end in ("start", "stop")), edges)
            for of_kind in (pieces[pieces["kind"] == kind] for kind in KINDS)
        ]
        for kind in np.argmax(covered, axis=0)[differ]:  # covered: (kinds, frames)
            frames[KINDS[kind]] += 1
    seconds = (conflicts["stop"] - conflicts["start"]) / samplerate[conflicts["recording"]]
    by_kind = conflicts.groupby("kind")["recording"]
    annotated = collection.annotations["recording"].unique()
    duration = length[annotated] / samplerate[annotated]
    table = pd.DataFrame(
        {
            "recordings": by_kind.nunique().reindex(KINDS, fill_value=0),
            "seconds": seconds.groupby(conflicts["kind"]).sum().reindex(KINDS, fill_value=0.0),
            "frames": pd.Series(frames),
        }
    )
    table.loc["any"] = [conflicts["recording"].nunique(), *table[["seconds", "frames"]].sum()]
    whole_frames = (duration / frame_seconds + 1e-9).astype(int).sum()
    table.loc["all annotated"] = [len(annotated), duration.sum(), whole_frames]
    return table.astype({"recordings": int, "frames": int}).rename_axis("kind")


def examples(conflicts: pd.DataFrame) -> dict[str, int]:
    """The recording with the longest conflict of each kind that occurs."""
    length = conflicts["stop"] - conflicts["start"]
    longest = length.groupby(conflicts["kind"]).idxmax()
    return {kind: int(conflicts.loc[longest[kind], "recording"]) for kind in KINDS if kind in longest}


def draw_recording(
    collection: Collection, recording: int, path: str | Path, frame_seconds: float = 0.05
) -> None:
    """Write a picture: waveform, spectrogram, both sources, and the frame labels of every strategy."""
    facts = collection.recordings.iloc[recording]
    sound = audio.read(collection.path(recording), time_expansion=collection.time_expansion)
    seconds = len(sound) / facts["samplerate"]
    figure = Figure(figsize=(12, 8), layout="constrained")
    wave, spectrum, lanes = figure.subplots(3, height_ratios=[2, 3, 2], sharex=True)
    _draw_waveform(wave, sound, seconds)
    wave.set_title(f"{facts['file']}, {facts['samplerate'] / 1000:g} kHz", parse_math=False)
    _draw_spectrogram(spectrum, sound, facts["samplerate"])
    _draw_sources(lanes, collection, recording)
    _draw_labels(lanes, collection, recording, frame_seconds)
    lanes.set(xlim=(0, seconds), xlabel="time (s)")
    with replacing(path) as partial:
        figure.savefig(partial, format=Path(path).suffix[1:] or "png", dpi=100)


def frame_edges(length: int, frame: float) -> np.ndarray:
    """Edges (frames + 1,) of the whole frames of `frame` samples in `length` samples."""
    return np.arange(int(length / frame + 1e-9) + 1) * frame


def _sources(collection: Collection, recording: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Merged starts and stops of the voiced segments and of the annotated spans."""
    annotated = collection.annotations_of(recording)
    annotated = annotated[~annotated["context"].isin(background_codes(collection.contexts))]
    both = collection.voice_of(recording), annotated
    return [merge(spans["start"].to_numpy(), spans["stop"].to_numpy()) for spans in both]


def _voice_alone(voice: tuple, spans: tuple) -> list[tuple[str, int, int]]:
    pieces = []
    for start, stop in zip(*subtract(*voice, *spans), strict=True):
        segment = np.searchsorted(voice[0], start, side="right") - 1
        touched = (spans[0] < voice[1][segment]) & (spans[1] > voice[0][segment])
        pieces.append(("offset" if touched.any() else "extra call", start, stop))
    return pieces


def _annotation_alone(voice: tuple, spans: tuple) -> list[tuple[str, int, int]]:
    pieces = []
    for start, stop in zip(*subtract(*spans, *voice), strict=True):
        span = np.searchsorted(spans[0], start, side="right") - 1
        inside = (voice[0] < spans[1][span]) & (voice[1] > spans[0][span])
        if not inside.any():
            kind = "empty span"
        elif start >= voice[1][inside].max():
            kind = "tail"
        elif stop <= voice[0][inside].min():
            kind = "offset"
        else:
            kind = "silence"
        pieces.append((kind, start, stop))
    return pieces


def _draw_waveform(axes, sound: np.ndarray, seconds: float) -> None:
    # Least and greatest sample of each of some thousand columns look like all of the samples.
    step = -(-len(sound) // 4000)
    columns = np.resize(sound, (len(sound) // step, step))  # (columns, step)
    time = np.linspace(0, seconds, len(columns))
    axes.fill_between(time, columns.min(axis=1), columns.max(axis=1), linewidth=0.5, color="navy")
    axes.set_ylabel("amplitude")


def _draw_spectrogram(axes, sound: np.ndarray, samplerate: int) -> None:
    window = min(1024, len(sound))
    hop = max(window // 4, len(sound) // 3000)
    power = torch.stft(
        torch.from_numpy(sound),
        window,
        hop,
        window=torch.hann_window(window),
        return_complex=True,
        pad_mode="constant",
    ).abs()  # (frequencies, columns)
    level = 20 * torch.log10(power + 1e-6).numpy()
    extent = (-hop / 2 / samplerate, (level.shape[1] - 0.5) * hop / samplerate, 0, samplerate / 2000)
    axes.imshow(
        level,
        origin="lower",
        aspect="auto",
        extent=extent,
        cmap="magma",
        vmin=level.max() - 90,
    )
    axes.set_ylabel("frequency (kHz)")


def _draw_sources(axes, collection: Collection, recording: int) -> None:
    samplerate = collection.recordings["samplerate"].iat[recording]
    for lane, spans in ((5, collection.voice_of(recording)), (4, collection.annotations_of(recording))):
        colour = COLOURS["voice" if lane == 5 else "annotation"]
        for span in spans.itertuples():
            left, width = span.start / samplerate, (span.stop - span.start) / samplerate
            axes.broken_barh([(left, width)], (lane + 0.1, 0.8), color=colour, alpha=0.7)
            if lane == 4:
                name = collection.contexts[span.context]
                text = f" {name}, emitter {span.emitter}"
                axes.text(left, lane + 0.5, text, va="center", fontsize=8, parse_math=False)


def _draw_labels(axes, collection: Collection, recording: int, frame_seconds: float) -> None:
    facts = collection.recordings.iloc[recording]
    edges = frame_edges(facts["frames"], frame_seconds * facts["samplerate"])
    for lane, strategy in enumerate(reversed(STRATEGIES)):
        labels = Labeller(collection, strategy)(recording, edges)
        for value, alpha in ((1, 0.9), (0, 0.1), (IGNORE, 0)):
            frames = np.flatnonzero(labels == value) * frame_seconds
            bars = [(left, frame_seconds) for left in frames]
            look = {"color": COLOURS[strategy], "alpha": alpha, "edgecolor": "white"}
            axes.broken_barh(bars, (lane + 0.2, 0.6), linewidth=0.3, **look)
    names = [f"frames: {strategy}" for strategy in reversed(STRATEGIES)]
    names += ["Annotations.csv", "FileInfo.csv"]
    axes.set(yticks=np.arange(6) + 0.5, ylim=(0, 6))
    axes.set_yticklabels(names)
