"""Scores of detected events against a reference, per recording and overall, with confidence intervals.

Everything is counted per recording; the overall scores are ratios of the summed counts, and their 95 %
intervals those of sums over recordings drawn anew with replacement (percentile bootstrap).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tools.detect_report import write_tables_page
from tools.event_formats import match_files, read_events, write_csv
from training import annotations
from training.collection import replacing
from training.metrics import event_hits, most_pairs, rates, segment_counts
from training.options import tell

MAX_SEGMENTS = 10_000_000  # in a recording
DRAWS = 1000
SIDES = ("onset", "offset", "low_hz", "high_hz")
SCORES = {
    "event_f1": "event F1",
    "event_precision": "event precision",
    "event_recall": "event recall",
    "average_precision": "average precision",
    "segment_f1": "segment F1",
    "segment_precision": "segment precision",
    "segment_recall": "segment recall",
    "segment_error_rate": "segment error rate",
    "recognition_rate": "recognition rate",
    "miss_rate": "miss rate",
    "error_rate": "error rate",
    "false_positive_rate": "false positive rate",
}


@dataclass(frozen=True)
class Scores:
    """`recordings`: a row a file, `overall`: a row a score with value, low and high (95 %)."""

    recordings: pd.DataFrame
    overall: pd.DataFrame


def load(
    reference: Path,
    estimated: Path,
    recordings: Path | None = None,
    any_label: bool = False,
    time_expansion: float | None = None,
    label_column: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Reference and estimated events and the durations of all recordings searched.

    `recordings`: a table with file and duration (s), recordings.csv beside or in `estimated` by default. Reference
    events in other recordings stay in, under their own file. With `any_label` all are labelled "call".
    `time_expansion` and `label_column` are of the reference (see `read_events`), the first by default what `recordings`
    tells, which holds for `estimated` too. Raises ValueError.
    """
    recordings = recordings or (estimated if estimated.is_dir() else estimated.parent) / "recordings.csv"
    if not estimated.exists():
        raise ValueError(f"{estimated}: no such file")
    try:
        durations, told = annotations.searched(recordings)
    except FileNotFoundError:
        raise ValueError(f"{recordings}: no such file; it names all recordings searched") from None
    except annotations.NotATable as error:
        raise ValueError(f"{recordings}: {error}") from None
    if not durations:
        raise ValueError(f"{recordings}: names no recordings")
    told = 1 if told is None else told
    found = match_files(read_events(estimated, told), durations)
    if unknown := sorted(set(found.file) - durations.keys()):
        raise ValueError(f"{estimated}: {unknown[0]} is not in {recordings}")
    factor = told if time_expansion is None else time_expansion
    given = match_files(read_events(reference, factor, label_column, durations), durations)
    late = (given.onset >= given.file.map(durations).astype(float)).sum()
    if late:
        tell("warning", f"{reference}: {late} of {len(given)} events begin after the end of their recording; was it slowed down?")
    if any_label:
        given, found = given.assign(label="call"), found.assign(label="call")
    return given, found, durations


def text(scores: Scores) -> str:
    """The overall scores as lines."""
    return "\n".join(
        f"{SCORES[name]:<20} {row.value:6.3f}   {row.low:6.3f} to {row.high:.3f}"
        for name, row in scores.overall.iterrows()
    )


def write(scores: Scores, folder: Path) -> None:
    """Write scores.json (overall and per recording), recordings.csv and scores.html to `folder`."""
    write_csv(scores.recordings, folder / "recordings.csv")
    record = {"overall": _records(scores.overall), "recordings": _records(scores.recordings)}
    record["overall"] = dict(zip(scores.overall.index, record["overall"], strict=True))
    with replacing(folder / "scores.json") as file:
        file.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    overall = scores.overall.rename(index=SCORES, columns={"low": "95 % from", "high": "to"})
    how = dict(float_format="%.3f", na_rep="", border=0, justify="left")
    body = overall.to_html(**how) + "<h2>Recordings</h2>"
    body += scores.recordings.rename(columns=SCORES).to_html(index=False, **how)
    summary = f"{len(scores.recordings)} recordings; intervals from {DRAWS} draws of them"
    write_tables_page(folder / "scores.html", "Scores", summary, body)


def score(
    reference: pd.DataFrame,
    estimated: pd.DataFrame,
    durations: dict[str, float],
    collar: float = 0.2,
    resolution: float = 1.0,
    seed: int = 0,
    min_iou: float | None = None,
) -> Scores:
    """Compare two tables of events (file, onset, offset, label, and score in `estimated`).

    Recordings are those of `durations` (s), whether they hold events or not; events elsewhere do not
    count. Event scores: an
    event is right if its label and onset are, to `collar` (s), and its offset, to the larger of `collar`
    and half the reference's length. Segment scores: in segments of `resolution` (s). Rates:
    those of the paper (`training.metrics.rates`) with the same intervals. Average precision: area below
    precision over recall of the events in order of their score, each taking the best free reference event
    by the same rule. NaN where there is nothing to divide by. With `min_iou` an event is right instead if its label is and
    its box has at least that intersection over union with the reference's, see `overlaps`. Raises ValueError.
    """
    longest = max(durations.values(), default=0)
    if not resolution * MAX_SEGMENTS >= longest:
        raise ValueError(f"--resolution is {resolution:g} s: more than {MAX_SEGMENTS} segments in a recording of {longest:.0f} s")
    if min_iou is not None and not 0 < min_iou <= 1:
        raise ValueError(f"the least intersection over union is {min_iou:g}; expected more than 0, at most 1")
    ours, theirs = dict(list(reference.groupby("file"))), dict(list(estimated.groupby("file")))
    counts, ranked = [], []
    for i, (file, duration) in enumerate(durations.items()):
        pair = ours.get(file, reference[:0]), theirs.get(file, estimated[:0])
        counts.append(_count(*pair, duration, collar, resolution, min_iou))
        hits = ranked_hits(*pair, collar, min_iou)
        ranked.append(np.column_stack([np.full(len(hits), i), hits]))
    counts, ranked = pd.DataFrame(counts), np.concatenate(ranked)  # (events, [recording, score, hit])
    ranked = ranked[np.argsort(-ranked[:, 1], kind="stable")]

    def scores(weights: np.ndarray) -> pd.DataFrame:
        """Scores with every recording counted `weights` times, (draws, recordings)."""
        found = _ratios(pd.DataFrame(weights @ counts.to_numpy(float), columns=counts.columns))
        totals = weights @ counts.reference.to_numpy(float)
        pairs = zip(weights, totals, strict=True)
        return found.assign(average_precision=[average_precision(ranked, w, n) for w, n in pairs])

    number = len(durations)
    draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), DRAWS)
    overall = scores(np.ones((1, number))).iloc[0]
    low, high = scores(draws).quantile([0.025, 0.975]).to_numpy()
    columns = {"value": overall, "low": low, "high": high}
    recordings = scores(np.eye(number)).assign(
        file=list(durations), reference=counts.reference, estimated=counts.estimated
    )
    order = ["file", "reference", "estimated", *SCORES]
    return Scores(recordings[order], pd.DataFrame(columns).loc[list(SCORES)])


def overlaps(reference: pd.DataFrame, estimated: pd.DataFrame) -> np.ndarray:
    """Intersection over union (reference, estimated) of the events of one recording; 0 where the labels differ.

    Over time and frequency where both have low_hz and high_hz, over time alone where one of them has not.
    """

    def sides(table: pd.DataFrame) -> list[np.ndarray]:
        return [np.asarray(table.get(name, pd.Series(np.nan, table.index)), float) for name in SIDES]

    (a0, a1, al, ah), (b0, b1, bl, bh) = ([side[:, None] for side in sides(reference)], sides(estimated))
    wide, tall = np.minimum(a1, b1) - np.maximum(a0, b0), np.minimum(ah, bh) - np.maximum(al, bl)
    both = ~np.isnan(tall)
    one, other = np.where(both, ah - al, 1.0), np.where(both, bh - bl, 1.0)
    common = np.maximum(wide, 0) * np.where(both, np.maximum(tall, 0), 1.0)
    union = (a1 - a0) * one + (b1 - b0) * other - common
    same = reference.label.to_numpy()[:, None] == estimated.label.to_numpy()
    return np.where(same & (union > 0), common / np.where(union > 0, union, 1), 0.0)


def ranked_hits(
    reference: pd.DataFrame, estimated: pd.DataFrame, collar: float, min_iou: float | None = None
) -> np.ndarray:
    """Score, and 1 if right or 0, of the events of one recording, (events, 2), best first."""
    free = np.ones(len(reference), bool)
    onset, offset = reference.onset.to_numpy(), reference.offset.to_numpy()
    tolerance = np.maximum(collar, 0.5 * (offset - onset))
    hits = []
    estimated = estimated.sort_values("score", ascending=False, kind="stable")
    shared = None if min_iou is None else overlaps(reference, estimated)
    for i, event in enumerate(estimated.itertuples()):
        if shared is not None:
            fits = free & (shared[:, i] >= min_iou)
            if fits.any():
                free[np.where(fits, shared[:, i], -1).argmax()] = False
            hits.append((event.score, fits.any()))
            continue
        away = np.abs(onset - event.onset)
        fits = free & (reference.label.to_numpy() == event.label) & (away <= collar)
        fits &= np.abs(offset - event.offset) <= tolerance
        if fits.any():
            free[np.where(fits, away, np.inf).argmin()] = False
        hits.append((event.score, fits.any()))
    return np.array(hits, float).reshape(-1, 2)


def box_hits(reference: pd.DataFrame, estimated: pd.DataFrame, min_iou: float) -> int:
    """Most pairs of events of one recording that have at least `min_iou` in common, each event in one pair."""
    return most_pairs(overlaps(reference, estimated) >= min_iou)


def average_precision(ranked: np.ndarray, weights: np.ndarray, total: float) -> float:
    """Area below precision over recall of events (recording, score, hit) in order of falling score.

    `weights`: how often each recording counts; `total`: reference events, counted so.
    """
    if not total or np.isnan(ranked[:, 1]).any():
        return float("nan")
    counted = weights[ranked[:, 0].astype(int)]
    hits, seen = np.cumsum(counted * ranked[:, 2]), np.cumsum(counted)
    last = np.append(ranked[1:, 1] != ranked[:-1, 1], True)[: len(ranked)]  # equal scores come together
    hits, seen = hits[last], seen[last]
    return float(np.sum(np.diff(hits, prepend=0) / total * hits / np.maximum(seen, 1)))


def _count(reference, estimated, duration, collar, resolution, min_iou) -> dict[str, float]:
    """What the scores of one recording are ratios of."""
    file = reference.file.iloc[0] if len(reference) else estimated.file.iloc[0] if len(estimated) else ""
    right, in_reference, in_estimated, wrong = segment_counts(reference, estimated, {file: duration}, resolution)
    background = (duration - _covered(reference, duration)) / resolution
    found = rates(reference, estimated, 1.0)  # in one second of background the rate is the number
    found = {name: np.nan_to_num(value) for name, value in found.items()}
    return {
        "reference": len(reference),
        "estimated": len(estimated),
        "right": event_hits(reference, estimated, collar) if min_iou is None else box_hits(reference, estimated, min_iou),
        "segments_reference": in_reference,
        "segments_estimated": in_estimated,
        "segments_right": right,
        "segments_wrong": wrong,
        "recognised": found["recognition_rate"] * len(reference),
        "missed": found["miss_rate"] * len(reference),
        "confused": found["error_rate"] * len(reference),
        "false": found["false_positive_rate"],
        "background": background,
    }


def _ratios(counts: pd.DataFrame) -> pd.DataFrame:
    def ratio(part, whole):
        return part / whole.where(whole > 0)

    return pd.DataFrame(
        {
            "event_f1": ratio(2 * counts.right, counts.reference + counts.estimated),
            "event_precision": ratio(counts.right, counts.estimated),
            "event_recall": ratio(counts.right, counts.reference),
            "segment_f1": ratio(
                2 * counts.segments_right, counts.segments_reference + counts.segments_estimated
            ),
            "segment_precision": ratio(counts.segments_right, counts.segments_estimated),
            "segment_recall": ratio(counts.segments_right, counts.segments_reference),
            "segment_error_rate": ratio(counts.segments_wrong, counts.segments_reference),
            "recognition_rate": ratio(counts.recognised, counts.reference),
            "miss_rate": ratio(counts.missed, counts.reference),
            "error_rate": ratio(counts.confused, counts.reference),
            "false_positive_rate": ratio(counts.false, counts.background),
        }
    )


def _records(table: pd.DataFrame) -> list[dict]:
    """Rows of a table, None for NaN, which JSON does not have."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _covered(table: pd.DataFrame, duration: float) -> float:
    """Seconds that events cover, those of two at once counted once."""
    covered = end = 0.0
    for onset, offset in table[["onset", "offset"]].clip(0, duration).sort_values("onset").to_numpy():
        covered += max(0.0, offset - max(onset, end))
        end = max(end, offset)
    return covered
