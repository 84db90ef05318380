"""Tables of events side by side against one reference: scores, their differences, and where the tables disagree most."""

import base64
import html
import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from denet_torch import audio
from denet_torch.plotting import spectrogram
from tools.detect_report import write_tables_page
from tools.event_formats import match_files, write_csv
from tools.scores import DRAWS, SCORES, load, ranked_hits, score
from training.collection import replacing

PLACES = 12  # recordings that a page shows
SLOW = 0.05  # share by which a file may be longer than a table says without being slowed down
SHOWN_SECONDS = 10.0  # of a recording, around what the tables disagree on


@dataclass(frozen=True)
class Comparison:
    """`overall`: a row a score and table with value, low and high (95 %). `differences`: the event F1 of each table less that of
    the first, with the interval of the same draws of recordings for both. `places`: recordings, those with most disagreement
    first: file, then for each table the events right, missed and wrong, and `disagreement`: over all pairs of tables, the events
    of one that the other does not have."""

    overall: pd.DataFrame
    differences: pd.DataFrame
    places: pd.DataFrame
    events: dict[str, pd.DataFrame]
    durations: dict[str, float]


def compare(
    reference: Path,
    tables: dict[str, Path],
    recordings: Path | None = None,
    collar: float = 0.2,
    resolution: float = 1.0,
    any_label: bool = False,
    seed: int = 0,
    min_iou: float | None = None,
    time_expansion: float | None = None,
    label_column: str | None = None,
) -> Comparison:
    """Score `tables` (by name) against `reference` on the recordings that all of them searched.

    recordings: file and duration of these; without it each table's own recordings.csv. time_expansion, label_column: of the
    reference (see `event_formats.read_events`). Raises ValueError.
    """
    how = (recordings, any_label, time_expansion, label_column)
    loaded = {name: load(reference, path, *how) for name, path in tables.items()}
    first = next(iter(loaded))
    given, _, durations = loaded[first]
    events = {"reference": given}
    for name, (_, found, theirs) in loaded.items():
        names = match_files(pd.DataFrame({"file": list(theirs)}), durations)["file"]
        searched = set(names)
        durations = {file: seconds for file, seconds in durations.items() if file in searched}
        events[name] = match_files(found, loaded[first][2])
    if not durations:
        raise ValueError("there is no recording that all tables searched")
    events = {name: table[table["file"].isin(durations)].reset_index(drop=True) for name, table in events.items()}
    found = {name: score(events["reference"], events[name], durations, collar, resolution, seed, min_iou) for name in tables}
    overall = pd.concat({name: result.overall for name, result in found.items()}, names=["table", "score"]).reset_index()
    counts = {name: _counts(result.recordings) for name, result in found.items()}
    files = list(durations)
    draws = np.random.default_rng(seed).multinomial(len(files), np.full(len(files), 1 / len(files)), DRAWS)
    rows = []
    for name in list(tables)[1:]:
        value = (_f1(counts[name], np.ones((1, len(files)))) - _f1(counts[first], np.ones((1, len(files)))))[0]
        low, high = np.nanquantile(_f1(counts[name], draws) - _f1(counts[first], draws), [0.025, 0.975])
        rows.append((f"{name} - {first}", value, low, high))
    differences = pd.DataFrame(rows, columns=["difference", "value", "low", "high"])
    return Comparison(overall, differences, _places(files, counts, events, collar, min_iou), events, durations)


def text(comparison: Comparison) -> str:
    """Scores of all tables side by side, as lines."""
    table = comparison.overall
    names = list(dict.fromkeys(table["table"]))
    wide = max(24, *(len(name) + 2 for name in names))
    lines = [f"{'':<20}" + "".join(f"{name:<{wide}}" for name in names)]
    for key, title in SCORES.items():
        rows = table[table["score"] == key].set_index("table")
        cells = (f"{rows.value[n]:.3f} ({rows.low[n]:.3f} to {rows.high[n]:.3f})" for n in names)
        lines.append(f"{title:<20}" + "".join(f"{cell:<{wide}}" for cell in cells))
    for row in comparison.differences.itertuples():
        lines.append(f"event F1, {row.difference}: {row.value:+.3f} ({row.low:+.3f} to {row.high:+.3f})")
    return "\n".join(line.rstrip() for line in lines)


def write(comparison: Comparison, folder: Path) -> Path:
    """Write comparison.csv, places.csv, comparison.json and comparison.html to `folder`; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(comparison.overall, folder / "comparison.csv")
    write_csv(comparison.places, folder / "places.csv")
    facts = {name: json.loads(getattr(comparison, name).to_json(orient="records")) for name in ("overall", "differences")}
    with replacing(folder / "comparison.json") as file:
        file.write_text(json.dumps(facts, indent=2) + "\n")
    how = dict(float_format="%.3f", na_rep="", border=0, justify="left")
    shown = comparison.overall.assign(score=comparison.overall["score"].map(SCORES))
    cells = [f"{r.value:.3f} ({r.low:.3f} to {r.high:.3f})" for r in shown.itertuples()]
    names = list(dict.fromkeys(shown["table"]))
    wide = shown.assign(cell=cells).pivot(index="score", columns="table", values="cell")
    body = wide.loc[list(SCORES.values()), names].rename_axis(None).rename_axis(None, axis=1).to_html(border=0)
    body += "<h2>Difference in event F1</h2>" + comparison.differences.to_html(index=False, **how)
    body += "<h2>Where they disagree most</h2>" + comparison.places.head(PLACES).to_html(index=False, **how)
    for row in comparison.places[comparison.places["disagreement"] > 0].head(PLACES).itertuples():
        body += f"<h3>{html.escape(row.file)}</h3>{_picture(comparison, row.file)}"
    summary = f"{len(comparison.durations)} recordings that all tables searched; 95 % intervals from {DRAWS} draws of them"
    write_tables_page(folder / "comparison.html", "Comparison", summary, body)
    return folder / "comparison.html"


def _counts(recordings: pd.DataFrame) -> np.ndarray:
    """Right, reference and estimated events (recordings, 3)."""
    right = (recordings["event_recall"] * recordings["reference"]).fillna(0).round()
    return np.column_stack([right, recordings["reference"], recordings["estimated"]]).astype(float)


def _f1(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    right, reference, estimated = (weights @ counts).T
    whole = reference + estimated
    return np.where(whole > 0, 2 * right / np.maximum(whole, 1), np.nan)


def _places(files: list[str], counts: dict[str, np.ndarray], events: dict[str, pd.DataFrame], *rule) -> pd.DataFrame:
    table = pd.DataFrame({"file": files})
    for name, one in counts.items():
        right, missed, wrong = one[:, 0], one[:, 1] - one[:, 0], one[:, 2] - one[:, 0]
        for kind, values in (("right", right), ("missed", missed), ("wrong", wrong)):
            table[f"{name} {kind}"] = values.astype(int)
    by_file = {name: dict(list(events[name].groupby("file"))) for name in counts}
    table["disagreement"] = 0
    for one, other in itertools.combinations(counts, 2):
        pairs = [(by_file[one].get(file, events[one][:0]), by_file[other].get(file, events[other][:0])) for file in files]
        shared = [int(ranked_hits(ours, theirs, *rule)[:, 1].sum()) for ours, theirs in pairs]
        table["disagreement"] += [len(a) + len(b) - 2 * n for (a, b), n in zip(pairs, shared, strict=True)]
    return table.sort_values(["disagreement", "file"], ascending=[False, True], kind="stable", ignore_index=True)


def _picture(comparison: Comparison, file: str) -> str:
    """Spectrogram of a recording with the events of all tables below it, the boxes of those with frequencies in it."""
    try:
        # The file of a recording that was slowed down is longer than what the tables say.
        slow = audio.probe(file).duration / comparison.durations[file]
        factor = 1 if abs(slow - 1) < SLOW else slow
        info = audio.probe(file, factor)
    except (audio.AudioError, ZeroDivisionError) as error:
        return f"<p>{html.escape(str(error))}</p>"
    tables = {name: table[table["file"] == file] for name, table in comparison.events.items()}
    onsets = pd.concat([table["onset"] for table in tables.values()])
    middle = float(onsets.median()) if len(onsets) else 0.0
    start = float(np.clip(middle - SHOWN_SECONDS / 2, 0, max(0.0, info.duration - SHOWN_SECONDS)))
    stop = min(info.duration, start + SHOWN_SECONDS)
    try:
        place = round(start * info.samplerate), round((stop - start) * info.samplerate)
        sound = audio.read(file, *place, time_expansion=factor)
    except audio.AudioError as error:
        return f"<p>{html.escape(str(error))}</p>"
    level = spectrogram(sound, info.samplerate, 1200)
    figure = Figure(figsize=(12, 3 + 0.3 * len(tables)), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 0.3 * len(tables)])
    extent = (start, stop, 0, info.samplerate / 2000)
    low = max(np.median(level), level.max() - 80)
    top.imshow(level, origin="lower", aspect="auto", cmap="gray_r", vmin=low, extent=extent)
    top.set_ylabel("kHz")
    for row, table in enumerate(tables.values()):
        colour = f"C{row}"
        for event in table.itertuples():
            below.broken_barh([(event.onset, event.offset - event.onset)], (row - 0.4, 0.8), facecolors=colour)
            band = getattr(event, "low_hz", np.nan), getattr(event, "high_hz", np.nan)
            if np.isfinite(band).all():
                corner = event.onset, band[0] / 1000
                sides = event.offset - event.onset, (band[1] - band[0]) / 1000
                top.add_patch(_rectangle(corner, *sides, colour))
    below.set_yticks(range(len(tables)), list(tables), parse_math=False)
    below.set_ylim(len(tables) - 0.5, -0.5)
    below.set_xlim(start, stop)
    below.set_xlabel("s")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80)
    return f'<img alt="spectrogram and events" src="data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def _rectangle(corner: tuple[float, float], width: float, height: float, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, fill=False, edgecolor=colour)
