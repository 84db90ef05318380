"""Scores of frames and of events, and the choice of a decoding on the validation split.

Frame scores come from torchmetrics. Segment-based and event-based scores follow Mesaros, Heittola, Virtanen, "Metrics for
polyphonic sound event detection", Applied Sciences 6(6), 2016, and equal those of sed_eval on the same lists. Events are tables
with columns file, onset, offset (s), label.
"""

import sys
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
import torchmetrics.functional as tm
from networkx import Graph
from networkx.algorithms.bipartite import hopcroft_karp_matching
from torch import Tensor

from .labels import BACKGROUND, IGNORE


def frame_scores(probabilities: Tensor, labels: Tensor, threshold: float = 0.5) -> dict[str, float]:
    """Precision, recall, F1, average precision and area under the ROC of the frames of any call, and accuracy over all classes.

    `probabilities` (frames, n_classes), class 0 the background; `labels` (frames,), IGNORE where masked. With more than two
    classes `macro_f1` is the mean F1 of the classes that occur. `majority_accuracy` and `majority_f1` are the scores of
    always answering the commonest class. Average precision and ROC are NaN where only calls or no calls occur.
    """
    probabilities, labels = seen(probabilities, labels)
    call, is_call = 1 - probabilities[:, BACKGROUND], (labels != BACKGROUND).long()
    predicted = predict(probabilities, threshold)
    both = 0 < int(is_call.sum()) < len(is_call)
    share = float(is_call.float().mean()) if len(is_call) else float("nan")
    commonest = int(labels.bincount().argmax()) if len(labels) else BACKGROUND
    found = (predicted != BACKGROUND).long()
    if not len(labels):  # torchmetrics stops at it; it is as where there is no call
        found = is_call = torch.zeros(1, dtype=torch.long)
    scores = {
        "precision": float(tm.classification.binary_precision(found, is_call)),
        "recall": float(tm.classification.binary_recall(found, is_call)),
        "f1": float(tm.classification.binary_f1_score(found, is_call)),
        "average_precision": float(tm.classification.binary_average_precision(call, is_call)) if both else float("nan"),
        "roc_auc": float(tm.classification.binary_auroc(call, is_call)) if both else float("nan"),
        "accuracy": float((predicted == labels).float().mean()),
        "majority_accuracy": float((labels == commonest).float().mean()),
        "majority_f1": 0.0 if commonest == BACKGROUND else 2 * share / (1 + share),
    }
    if probabilities.shape[1] > 2:
        scores["macro_f1"] = 0.0 if not len(labels) else float(
            tm.classification.multiclass_f1_score(predicted, labels, probabilities.shape[1], average="macro")
        )
    return scores


def class_scores(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str], threshold: float = 0.5
) -> dict[str, dict[str, float]]:
    """Scores of the frames of each class that occurs but the background, by "class NAME"; arguments as of `frame_scores`.

    precision, recall, f1 of the classes that `predict` gives; average_precision, and the threshold, of the class's own
    probability: the one at which its frames are found with the best F1.
    """
    probabilities, labels = seen(probabilities, labels)
    predicted, found = predict(probabilities, threshold), {}
    for number, name in enumerate(classes):
        own = labels == number
        if number == BACKGROUND or not own.any():
            continue
        hits, answered = int((predicted[own] == number).sum()), int((predicted == number).sum())
        precision, recall, thresholds = tm.classification.binary_precision_recall_curve(probabilities[:, number], own.long())
        f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        found[f"class {name}"] = _precision_recall(hits, answered, int(own.sum())) | {
            "average_precision": float(tm.classification.binary_average_precision(probabilities[:, number], own.long())),
            "threshold": float(thresholds[f1[:-1].argmax()]),
        }
    return found


def predict(probabilities: Tensor, threshold: float = 0.5) -> Tensor:
    """Class of each frame: the likeliest call class where the calls together reach `threshold`, otherwise the background."""
    is_call = 1 - probabilities[..., BACKGROUND] >= threshold
    return torch.where(is_call, 1 + probabilities[..., 1:].argmax(dim=-1), BACKGROUND)


def seen(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The frames that are not masked."""
    return probabilities[labels != IGNORE], labels[labels != IGNORE]


def confusion(probabilities: Tensor, labels: Tensor, threshold: float = 0.5) -> np.ndarray:
    """Frames of each class (rows) that were called each class (columns)."""
    probabilities, labels = seen(probabilities, labels)
    n_classes = probabilities.shape[1]
    return tm.classification.multiclass_confusion_matrix(predict(probabilities, threshold), labels, n_classes).numpy()


def choose_threshold(probabilities: Tensor, labels: Tensor, recording: np.ndarray) -> float:
    """The threshold nearest to 0.5, from 0.05 to 0.95, whose F1 of call frames is within a standard error of the best.

    The best threshold of a few recordings is an accident of these; probabilities that are right are cut near 0.5.
    `recording` (frames,) is that of each frame. Standard errors are those of the differences of F1 to the best, by the jackknife
    over recordings, whose frames are not independent.
    """
    recordings, mine = np.unique(recording, return_inverse=True)
    mine = torch.from_numpy(mine)[labels != IGNORE]
    probabilities, labels = seen(probabilities, labels)
    thresholds = torch.arange(0.05, 0.951, 0.01)
    is_call = (labels != BACKGROUND)[:, None]
    found = 1 - probabilities[:, BACKGROUND, None] >= thresholds  # (frames, thresholds)

    def of_recordings(counted: Tensor) -> Tensor:  # (frames, n) -> (recordings, n)
        return torch.zeros(len(recordings), counted.shape[1], dtype=torch.float64).index_add_(0, mine, counted.double())

    counts = [of_recordings(counted) for counted in (found & is_call, found, is_call)]
    hits, *both = (count.sum(dim=0) for count in counts)
    f1 = 2 * hits / sum(both).clamp(min=1)
    # Without one recording each, (recordings, thresholds).
    hits, *both = (count.sum(dim=0) - count for count in counts)
    f1_without = 2 * hits / sum(both).clamp(min=1)
    less = f1_without[:, f1.argmax(), None] - f1_without
    error = (less.var(dim=0, correction=0) * (len(less) - 1)).sqrt()
    good = thresholds[f1.max() - f1 <= error]
    return round(float(good[(good - 0.5).abs().argmin()]), 2)


def rates(reference: pd.DataFrame, estimated: pd.DataFrame, background_seconds: float, resolution: float = 1.0) -> dict:
    """The paper's rates (Greco et al., 2021, section 4): each reference event is

    recognised   an estimated event of its class overlaps it                      recognition_rate = recognised / events
    wrong        only estimated events of other classes overlap it                error_rate = wrong / events
    missed       no estimated event overlaps it                                   miss_rate = missed / events

    so that the three sum to 1. false_positive_rate = estimated events that overlap no reference event / intervals of
    `resolution` seconds in the background, whose length is `background_seconds`. NaN where there is nothing to divide by.
    """
    recognised = wrong = false_positives = 0
    for ours, theirs in _by_file(reference, estimated):
        overlap = _overlap(ours, theirs)
        same = ours["label"].to_numpy()[:, None] == theirs["label"].to_numpy()
        right = (overlap & same).any(axis=1)
        recognised += right.sum()
        wrong += (overlap.any(axis=1) & ~right).sum()
        false_positives += (~overlap.any(axis=0)).sum()
    events = len(reference)
    return {
        "recognition_rate": _ratio(recognised, events),
        "error_rate": _ratio(wrong, events),
        "miss_rate": _ratio(events - recognised - wrong, events),
        "false_positive_rate": _ratio(false_positives, background_seconds / resolution),
    }


def event_scores(
    reference: pd.DataFrame, estimated: pd.DataFrame, collar: float = 0.2, length_share: float = 0.5
) -> dict[str, float]:
    """Event-based precision, recall and F1 over all classes.

    An estimated event is right if it has the label of a reference event, begins within `collar` (s) of it and ends within the
    larger of `collar` and `length_share` of the reference's length. Each event counts once: the largest matching.
    """
    return _precision_recall(event_hits(reference, estimated, collar, length_share), len(estimated), len(reference))


def event_hits(reference: pd.DataFrame, estimated: pd.DataFrame, collar: float = 0.2, length_share: float = 0.5) -> int:
    """Number of estimated events that are right; see `event_scores`."""
    hits = 0
    for ours, theirs in _by_file(reference, estimated):
        onset, offset = (ours[name].to_numpy()[:, None] for name in ("onset", "offset"))  # (reference, 1)
        fits = ours["label"].to_numpy()[:, None] == theirs["label"].to_numpy()
        fits &= np.abs(onset - theirs["onset"].to_numpy()) <= collar
        fits &= np.abs(offset - theirs["offset"].to_numpy()) <= np.maximum(collar, length_share * (offset - onset))
        hits += most_pairs(fits)
    return hits


def most_pairs(fits: np.ndarray) -> int:
    """Most pairs of a row and a column of `fits` (rows, columns) that fit, each row and each column in one pair at most."""
    rows, columns = (places.tolist() for places in np.nonzero(fits))
    graph = Graph()
    graph.add_edges_from(zip(rows, [~column for column in columns], strict=True))  # ~ makes them other nodes than the rows
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + len(graph))  # networkx calls itself for each pair along a chain of such as fit
    try:
        return len(hopcroft_karp_matching(graph, {*rows})) // 2
    finally:
        sys.setrecursionlimit(limit)


def segment_scores(
    reference: pd.DataFrame, estimated: pd.DataFrame, durations: dict[str, float], resolution: float = 1.0
) -> dict[str, float]:
    """Segment-based precision, recall, F1 and error rate over all classes.

    Recordings, `durations` (s) by file, are cut into segments of `resolution` seconds; a class is active in each that one of its
    events touches. Error rate = (substitutions + deletions + insertions) / active reference segments.
    """
    hits, ours, theirs, errors = segment_counts(reference, estimated, durations, resolution)
    return _precision_recall(hits, theirs, ours) | {"error_rate": _ratio(errors, ours)}


def segment_counts(
    reference: pd.DataFrame, estimated: pd.DataFrame, durations: dict[str, float], resolution: float = 1.0
) -> tuple[int, int, int, int]:
    """Active segments that both have, of the reference, of the estimate, and errors; see `segment_scores`."""
    classes = sorted({*reference["label"], *estimated["label"]})
    hits = ours_total = theirs_total = errors = 0
    files = {file: group for file, group in reference.groupby("file")}, {file: group for file, group in estimated.groupby("file")}
    for file, duration in durations.items():
        segments = int(np.ceil(duration / resolution))
        ours, theirs = (_roll(events.get(file), classes, segments, resolution) for events in files)
        hits += (ours & theirs).sum()
        ours_total, theirs_total = ours_total + ours.sum(), theirs_total + theirs.sum()
        errors += (np.maximum(ours.sum(axis=1), theirs.sum(axis=1)) - (ours & theirs).sum(axis=1)).sum()
    return int(hits), int(ours_total), int(theirs_total), int(errors)


def _roll(events: pd.DataFrame | None, classes: list[str], segments: int, resolution: float) -> np.ndarray:
    """Whether a class is active in a segment, (segments, classes)."""
    roll = np.zeros((segments, len(classes)), bool)
    for event in [] if events is None else events.itertuples():
        first, last = np.floor(event.onset / resolution), np.ceil(event.offset / resolution)
        roll[int(first) : int(last), classes.index(event.label)] = True
    return roll


def _by_file(reference: pd.DataFrame, estimated: pd.DataFrame) -> Iterable[tuple[pd.DataFrame, pd.DataFrame]]:
    """Reference and estimated events of each file that has either."""
    groups = dict(list(reference.groupby("file"))), dict(list(estimated.groupby("file")))
    for file in groups[0].keys() | groups[1].keys():
        yield groups[0].get(file, reference[:0]), groups[1].get(file, estimated[:0])


def _overlap(ours: pd.DataFrame, theirs: pd.DataFrame) -> np.ndarray:
    start = np.maximum(ours["onset"].to_numpy()[:, None], theirs["onset"].to_numpy())
    return start < np.minimum(ours["offset"].to_numpy()[:, None], theirs["offset"].to_numpy())


def _precision_recall(hits: int, estimated: int, reference: int) -> dict[str, float]:
    return {
        "precision": _ratio(hits, estimated),
        "recall": _ratio(hits, reference),
        "f1": _ratio(2 * hits, estimated + reference),
    }


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")
