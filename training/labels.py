"""Frame labels from two sources that contradict each other.

FileInfo.csv has the voiced segments of every recording, Annotations.csv has spans with a context and an
emitter for some. Four strategies say what is a call:

    voice         the voiced segments
    annotation    the annotated spans
    intersection  annotated spans cut down to the voiced segments: silence and tail inside a span go
    union         either

A frame belongs to a call if at least `min_overlap` of it lies within calls; its class is the one that
covers most of it. An annotation that is itself called "background" is no call.
Frames that cannot be labelled are IGNORE and must not count in a loss or a score:
  - with `annotation` and `intersection`, all frames of a recording that was never annotated, which says
    nothing about its calls (two recordings in three, nearly all with calls in them); where annotations stand
    for voiced segments too, with every strategy;
  - calls whose class is not known: context and emitter of a voiced segment that is not annotated,
    emitters that are 0 (unknown) or negative (that bat or its addressee);
  - background in a recording of which a table's span was dropped, for it may have lain there;
  - with `mask_conflicts`, frames of an annotated recording that voice and annotation label differently.
"""

import copy
from dataclasses import dataclass

import numpy as np
import pandas as pd

from training.collection import Collection, background_codes
from training.tables import CODE_COLUMNS, CollectionError

IGNORE = -100
BACKGROUND = 0
MAX_PARTS = 10_000_000  # of annotated calls that are voiced
STRATEGIES = ("voice", "annotation", "intersection", "union")
WHO_AND_WHAT = tuple(name for name in CODE_COLUMNS if name != "context")  # codes above 0 are classes, 0 is unknown
TASKS = ("call", "context", *WHO_AND_WHAT)


@dataclass(frozen=True)
class Spans:
    """Sorted calls of a collection: [start, stop) in samples of recording, and the class, or IGNORE."""

    recording: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    label: np.ndarray

    def of(self, recording: int) -> "Spans":
        """Those of one recording."""
        return self.select(slice(*np.searchsorted(self.recording, [recording, recording + 1])))

    def select(self, rows: np.ndarray | slice) -> "Spans":
        """Some of them."""
        return Spans(self.recording[rows], self.start[rows], self.stop[rows], self.label[rows])

    def __len__(self) -> int:
        return len(self.recording)


class Labeller:
    """Frame labels of a collection's recordings by one strategy, for one task.

    classes: names of the labels, in order: background first, then "call", the contexts, or the emitters.
    spans: the calls, by strategy and task. known: (recordings,) bool, False where labels are all IGNORE.
    """

    def __init__(
        self,
        collection: Collection,
        strategy: str = "voice",
        task: str = "call",
        min_overlap: float = 0.5,
        mask_conflicts: bool = False,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy is {strategy!r}; expected one of {', '.join(STRATEGIES)}")
        if not 0 < min_overlap <= 1:
            raise ValueError(f"min_overlap is {min_overlap}; expected more than 0, at most 1")
        self.min_overlap = min_overlap
        self.classes, code_label = _classes(collection, task)
        annotations = collection.annotations
        label = code_label.reindex(_codes(annotations, task), fill_value=IGNORE).to_numpy()
        voice, annotated = _as_spans(collection.voice), _as_spans(annotations, label)
        no_call = annotations["context"].isin(background_codes(collection.contexts)).to_numpy()
        extra_label = 1 if task == "call" else IGNORE
        complete = collection.recordings["complete"].to_numpy()
        has_annotation = np.zeros(len(complete), bool)
        has_annotation[annotated.recording] = True
        annotated = annotated.select(~no_call)
        self.annotated, self.annotated_row = annotated, np.flatnonzero(~no_call)  # of collection.annotations
        self.strategy, self.task = strategy, task
        self.spans = _combine(voice, annotated, strategy, extra_label)
        self.known = np.ones_like(has_annotation)
        if collection.one_source:
            self.known = has_annotation | complete
        elif strategy in ("annotation", "intersection"):
            self.known = has_annotation
        self._sources = (voice, annotated) if mask_conflicts else None
        self._masked = has_annotation
        self._complete = complete

    def taught(self, recordings: np.ndarray, spans: Spans) -> "Labeller":
        """A labeller that has the labels of `recordings` from `spans` alone; what lies outside of these is background."""
        other = copy.copy(self)
        rest = self.spans.select(~np.isin(self.spans.recording, recordings))
        both = [np.concatenate([getattr(part, name) for part in (rest, spans)]) for name in vars(spans)]
        other.spans = Spans(*both).select(np.lexsort(both[1::-1]))
        for name, value in (("known", True), ("_complete", True), ("_masked", False)):
            flags = getattr(self, name).copy()
            flags[recordings] = value
            setattr(other, name, flags)
        return other

    def __call__(self, recording: int, edges: np.ndarray) -> np.ndarray:
        """Labels (frames,) int64 of frames between `edges` (frames + 1,), in samples of the file."""
        frames = len(edges) - 1
        if not self.known[recording]:
            return np.full(frames, IGNORE)
        spans = self.spans.of(recording)
        spans = spans.select((spans.start < edges[-1]) & (spans.stop > edges[0]))
        labels = np.full(frames, BACKGROUND)
        if len(spans):
            labels[:] = _most_covering(spans, edges)
            labels[~self._calls(spans, edges)] = BACKGROUND
        if self._sources is not None and self._masked[recording]:
            voice, annotated = (spans.of(recording) for spans in self._sources)
            labels[self._calls(voice, edges) != self._calls(annotated, edges)] = IGNORE
        if not self._complete[recording]:
            labels[labels == BACKGROUND] = IGNORE
        return labels

    def _calls(self, spans: Spans, edges: np.ndarray) -> np.ndarray:
        return is_call(spans.start, spans.stop, edges, self.min_overlap)


def _most_covering(spans: Spans, edges: np.ndarray) -> np.ndarray:
    """The label that covers most of each frame, the lower of equals; one for all if there is no other."""
    labels = np.unique(spans.label)
    if len(labels) == 1:
        return labels
    mine = [spans.select(spans.label == label) for label in labels]
    return labels[np.argmax([coverage(one.start, one.stop, edges) for one in mine], axis=0)]


def quiet_spans(collection: Collection) -> Spans:
    """Stretches of complete recordings where neither source has a call, labelled background."""
    frames = collection.recordings["frames"].to_numpy(np.int64)
    everything = np.arange(len(frames)), np.zeros_like(frames), frames, np.zeros_like(frames)
    calls = zip(
        _joined(_as_spans(collection.voice)), _joined(_as_spans(collection.annotations)), strict=True
    )
    calls = [np.concatenate(ends) for ends in calls]
    quiet = _split(*subtract(*_joined(Spans(*everything)), *calls), BACKGROUND)
    return quiet.select(collection.recordings["complete"].to_numpy()[quiet.recording])


def short_calls(collection: Collection, spans: Spans, frame_seconds: float, min_overlap: float = 0.5) -> str:
    """A line on the calls that are too short to be `min_overlap` of any frame and label none; "" if there are none."""
    samplerate = collection.recordings["samplerate"].to_numpy(np.int64)
    seconds = (spans.stop - spans.start) / samplerate[spans.recording]
    short = seconds < min_overlap * frame_seconds - 1e-6
    if not short.any():
        return ""
    # Wherever a call lies, some frame of its length or less is half of it.
    catching = np.format_float_positional(np.quantile(seconds, 0.05), 2, fractional=False)
    return (
        f"{short.sum()} of {len(short)} annotated calls are shorter than {min_overlap * frame_seconds * 1000:.3g} ms, "
        f"{min_overlap:g} of a frame, and label none; --frame-seconds {catching} would catch nearly all"
    )


def hidden_calls(spans: Spans) -> str:
    """A line on the calls that lie under calls of other classes, at least half of each; "" if there are none."""
    hidden, spans = 0, spans.select(spans.label > 0)
    several = pd.Series(spans.label).groupby(spans.recording).nunique()
    for recording in several.index[several > 1]:
        calls = spans.of(recording)
        for label in np.unique(calls.label) if several[recording] * len(calls) < MAX_PARTS else ():
            mine, others = calls.select(calls.label == label), calls.select(calls.label != label)
            start, stop = merge(others.start, others.stop)
            # What of the others lies before a point is as good as linear between their edges.
            edges = np.column_stack([start, stop]).ravel()
            before = np.cumsum(np.column_stack([np.zeros_like(start), stop - start]).ravel())
            overlap = np.interp(mine.stop, edges, before) - np.interp(mine.start, edges, before)
            hidden += (overlap >= 0.5 * (mine.stop - mine.start)).sum()
    if not hidden:
        return ""
    return (
        f"{hidden} of {len(spans)} annotated calls lie half or more under calls of other classes: a frame has one class, the one "
        "that covers most of it"
    )


def is_call(
    start: np.ndarray, stop: np.ndarray, edges: np.ndarray, min_overlap: float
) -> np.ndarray:
    """Frames (frames,) of which at least `min_overlap` lies in the spans; see `coverage`."""
    # Edges are seconds times a rate: a frame that is covered exactly as required stays a call.
    return coverage(start, stop, edges) >= min_overlap * (edges[1:] - edges[:-1]) - 1e-3


def coverage(start: np.ndarray, stop: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Samples of each frame (frames,) that lie in any of the spans; `edges` is (frames + 1,)."""
    start, stop = merge(start, stop)
    # (spans, 1) against (frames,)
    overlap = np.minimum(stop[:, None], edges[1:]) - np.maximum(start[:, None], edges[:-1])
    return np.maximum(overlap, 0).sum(axis=0)


def merge(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans that overlap or touch as one, in order."""
    if len(start) < 2:
        return start, stop
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(stop[order])
    first = np.append(True, start[1:] > reach[:-1])
    return start[first], reach[np.append(first[1:], True)]


def subtract(
    start: np.ndarray, stop: np.ndarray, cut_start: np.ndarray, cut_stop: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What of the spans lies in none of the cuts, merged, in order."""
    points = np.concatenate([start, stop, cut_start, cut_stop])
    order = np.argsort(points, kind="stable")
    spans, cuts = np.ones_like(start), np.ones_like(cut_start)
    inside = np.cumsum(np.concatenate([spans, -spans, 0 * cuts, 0 * cuts])[order]) > 0
    cut = np.cumsum(np.concatenate([0 * spans, 0 * spans, cuts, -cuts])[order]) > 0
    left, right = points[order][:-1], points[order][1:]
    keep = (inside & ~cut)[:-1] & (left < right)
    return merge(left[keep], right[keep])


def _classes(collection: Collection, task: str) -> tuple[tuple[str, ...], pd.Series]:
    """Class names, and the label of every code of the data set that is a class."""
    if task == "call":
        return ("background", "call"), pd.Series({0: 1})
    if task == "context":
        codes = np.setdiff1d(np.arange(len(collection.contexts)), background_codes(collection.contexts))
        names = [collection.contexts[code] for code in codes]
    elif task in WHO_AND_WHAT:
        found = collection.annotations[task]
        codes = np.sort(found[found > 0].unique())
        names = tuple(str(code) for code in codes)
    else:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    return ("background", *names), pd.Series(np.arange(1, len(codes) + 1), index=codes)


def _codes(annotations: pd.DataFrame, task: str) -> np.ndarray:
    return np.zeros(len(annotations), int) if task == "call" else annotations[task].to_numpy()


def _as_spans(frame: pd.DataFrame, label: np.ndarray | None = None) -> Spans:
    columns = (frame[name].to_numpy(np.int64) for name in ("recording", "start", "stop"))
    return Spans(*columns, np.ones(len(frame), np.int64) if label is None else label)


def _combine(voice: Spans, annotated: Spans, strategy: str, extra_label: int) -> Spans:
    """The calls by a strategy; what is voiced outside of every annotation gets `extra_label`."""
    inside = _overlaps(voice, annotated)
    extra = _split(*subtract(*_joined(voice), *_joined(annotated)), extra_label)
    parts = {
        "voice": [inside, extra],
        "annotation": [annotated],
        "intersection": [inside],
        "union": [annotated, extra],
    }[strategy]
    label = np.concatenate([part.label for part in parts])
    start, stop = (np.concatenate(ends) for ends in zip(*map(_joined, parts), strict=True))
    # A segment that was cut where an annotation begins is one again where both sides are of a class.
    merged = _chained([_split(*merge(start[rows], stop[rows]), one) for one, rows in _by_label(label)])
    return merged.select(np.lexsort((merged.start, merged.recording)))


def _overlaps(voice: Spans, annotated: Spans) -> Spans:
    """What of the annotated spans of each label is voiced."""
    begin, end = merge(*_joined(voice))
    start, stop = _joined(annotated)
    found, parts = [], 0
    for label, rows in _by_label(annotated.label):
        left, right = merge(start[rows], stop[rows])
        first = np.searchsorted(end, left, "right")  # of the voiced spans that a span of this label meets
        count = np.maximum(np.searchsorted(begin, right, "left") - first, 0)
        parts += count.sum()
        if parts > MAX_PARTS:
            raise CollectionError(f"its calls overlap in more than {MAX_PARTS} ways: its tables are no annotations")
        span = np.repeat(np.arange(len(left)), count)
        voiced = np.arange(len(span)) + np.repeat(first - np.cumsum(count) + count, count)
        found.append(_split(np.maximum(left[span], begin[voiced]), np.minimum(right[span], end[voiced]), label))
    return _chained(found)


def _by_label(label: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Each label and the places where it stands."""
    order = np.argsort(label, kind="stable")
    labels, first = np.unique(label[order], return_index=True)
    return list(zip(labels, np.split(order, first[1:]), strict=True)) if len(labels) else []


def _chained(parts: list[Spans]) -> Spans:
    nothing = Spans(*np.zeros((4, 0), np.int64))
    columns = ([getattr(part, name) for part in (nothing, *parts)] for name in ("recording", "start", "stop", "label"))
    return Spans(*map(np.concatenate, columns))


# All recordings one after the other on one line, each with more room than a recording can have.
_ROOM_BITS = 34


def _joined(spans: Spans) -> tuple[np.ndarray, np.ndarray]:
    base = spans.recording << _ROOM_BITS
    return base + spans.start, base + spans.stop


def _split(start: np.ndarray, stop: np.ndarray, label: int) -> Spans:
    recording = start >> _ROOM_BITS
    base = recording << _ROOM_BITS
    return Spans(recording, start - base, stop - base, np.full(len(start), label))
