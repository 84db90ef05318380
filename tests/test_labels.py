import numpy as np
import pytest
from data_cases import make_collection, seed_recording
from hypothesis import given, settings
from hypothesis import strategies as st

from training.labels import IGNORE, STRATEGIES, Labeller, Spans, hidden_calls, merge, quiet_spans, subtract

# The 48 whole frames of the recording are 12,500 samples long. In halves of frames, its first call is
# from 7.6 to 15.2 and its second from 47.8 to 55.9: frames 4 to 7 and 24 to 27 hold half a frame of call
# or more. The annotation begins at 47.8 and runs to the end.
EDGES = np.arange(49) * 12_500
FIRST, SECOND, TAIL = slice(4, 8), slice(24, 28), slice(28, 48)
UNMASKED = {
    "voice": (FIRST, SECOND),
    "annotation": (SECOND, TAIL),
    "intersection": (SECOND,),
    "union": (FIRST, SECOND, TAIL),
}


def labels_of(calls, value=1, ignored=()):
    labels = np.zeros(48, np.int64)
    for part in calls:
        labels[part] = value
    for part in ignored:
        labels[part] = IGNORE
    return labels.tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_contradictory_recording(strategy):
    collection = seed_recording()
    assert Labeller(collection, strategy)(0, EDGES).tolist() == labels_of(UNMASKED[strategy])
    # The sources disagree about the first call and about the tail.
    masked = Labeller(collection, strategy, mask_conflicts=True)(0, EDGES)
    assert masked.tolist() == labels_of([SECOND], 1, [FIRST, TAIL])


def test_the_contradictory_recording_in_full():
    voice = Labeller(seed_recording(), "voice")(0, EDGES)
    # fmt: off
    assert voice.tolist() == [
        0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]
    # fmt: on


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_contexts_and_emitters_of_the_contradictory_recording(strategy):
    collection = seed_recording()
    context = Labeller(collection, strategy, "context")
    assert len(context.classes) == 14
    assert context.classes[:3] == ("background", "Unknown", "Separation")
    calls = UNMASKED[strategy]
    # Nobody noted the context of the first call; context 1 is class 2, after the background.
    unknown = [FIRST] if FIRST in calls else []
    assert context(0, EDGES).tolist() == labels_of(calls, 2, unknown)
    emitter = Labeller(collection, strategy, "emitter")
    assert emitter.classes == ("background", "118")
    assert emitter(0, EDGES).tolist() == labels_of(calls, 1, unknown)


def test_identities_that_are_0_or_negative_are_not_known():
    annotations = [(0, 0, 100, 0, 0), (0, 200, 300, 0, -118), (0, 400, 500, 0, 118), (0, 600, 700, 0, 7)]
    collection = make_collection([800], annotations=annotations)
    labeller = Labeller(collection, "annotation", "emitter")
    assert labeller.classes == ("background", "7", "118")
    labels = labeller(0, np.arange(9) * 100).tolist()
    assert labels == [IGNORE, 0, IGNORE, 0, 2, 0, 1, 0]
    # Context 0 is a class of its own: someone looked and could not tell.
    assert Labeller(collection, "annotation", "context")(0, np.arange(3) * 100).tolist() == [1, 0]


def test_what_nobody_annotated_is_not_background():
    collection = make_collection([1000], [(0, 100, 200)])
    edges = np.arange(11) * 100
    call = [0, 1] + [0] * 8
    assert Labeller(collection, "voice", mask_conflicts=True)(0, edges).tolist() == call
    assert Labeller(collection, "union")(0, edges).tolist() == call
    for strategy in ("annotation", "intersection"):
        assert Labeller(collection, strategy)(0, edges).tolist() == [IGNORE] * 10


def test_background_is_not_sure_where_a_span_was_dropped():
    collection = make_collection([1000, 1000], [(0, 100, 200), (1, 100, 200)], complete=[False, True])
    labeller, edges = Labeller(collection), np.arange(11) * 100
    assert labeller(0, edges).tolist() == [IGNORE, 1] + [IGNORE] * 8
    assert labeller(1, edges).tolist() == [0, 1] + [0] * 8
    quiet = quiet_spans(collection)
    assert quiet.recording.tolist() == [1, 1]
    assert list(zip(quiet.start, quiet.stop, strict=True)) == [(0, 100), (200, 1000)]


@pytest.mark.parametrize(("min_overlap", "calls"), [(0.01, 4), (0.25, 4), (0.26, 3), (0.75, 3), (0.76, 2), (1, 2)])
def test_the_least_overlap_decides_at_the_edges(min_overlap, calls):
    # A call from 25 to 375 covers 0.75, 1, 1, 0.75; shifted by half a frame from 75: 0.25, 1, 1, 0.75.
    collection = make_collection([1000], [(0, 75, 375)])
    assert Labeller(collection, min_overlap=min_overlap)(0, np.arange(11) * 100).sum() == calls


def test_edges_that_are_no_whole_samples():
    # 50 ms at 44.1 kHz are 2,205 samples, at 22,050 Hz 1,102.5.
    collection = make_collection([11_025], [(0, 1103, 2205)], samplerate=22_050)
    edges = np.arange(11) * 1102.5
    assert Labeller(collection, min_overlap=1)(0, edges).sum() == 0
    assert Labeller(collection, min_overlap=0.999)(0, edges).tolist()[:3] == [0, 1, 0]


LENGTH, FRAME = 60, 5
spans = st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 25)).map(
    lambda span: (span[0], min(LENGTH, sum(span)))
)
annotated = st.tuples(spans, st.integers(0, 2), st.sampled_from([-2, 0, 1, 2]))


def naive_labels(voice, annotations, strategy, task, least, mask):
    """Frame labels by looking at every sample."""
    voiced = [any(a <= i < b for a, b in voice) for i in range(LENGTH)]
    held = [[note for note in annotations if note[0][0] <= i < note[0][1]] for i in range(LENGTH)]
    codes = sorted({emitter for *_, emitter in annotations if emitter > 0})
    classes = []  # of each sample: the set of labels it holds
    for is_voiced, notes in zip(voiced, held, strict=True):
        found = set()
        for _, context, emitter in notes:
            if strategy in ("annotation", "union") or is_voiced:
                if task == "call":
                    found.add(1)
                elif task == "context":
                    found.add(1 + context)
                else:
                    found.add(1 + codes.index(emitter) if emitter > 0 else IGNORE)
        if is_voiced and not notes and strategy in ("voice", "union"):
            found.add(1 if task == "call" else IGNORE)
        classes.append(found)
    labels = []
    for first in range(0, LENGTH, FRAME):
        part = range(first, first + FRAME)
        if not annotations and strategy in ("annotation", "intersection"):
            labels.append({IGNORE})
            continue
        of_voice = sum(voiced[i] for i in part) >= least * FRAME
        of_notes = sum(bool(held[i]) for i in part) >= least * FRAME
        if mask and annotations and of_voice != of_notes:
            labels.append({IGNORE})
        elif sum(bool(classes[i]) for i in part) < least * FRAME:
            labels.append({0})
        else:
            count = {label: sum(label in classes[i] for i in part) for i in part for label in classes[i]}
            most = max(count.values())
            labels.append({label for label, number in count.items() if number == most})
    return labels


@settings(max_examples=300, deadline=None)
@given(
    voice=st.lists(spans, max_size=4),
    annotations=st.lists(annotated, max_size=4),
    strategy=st.sampled_from(STRATEGIES),
    task=st.sampled_from(["call", "context", "emitter"]),
    least=st.sampled_from([0.2, 0.5, 0.6, 1.0]),
    mask=st.booleans(),
)
def test_against_labels_made_sample_by_sample(voice, annotations, strategy, task, least, mask):
    collection = make_collection(
        [LENGTH, LENGTH],
        [(1, *span) for span in voice],
        [(1, *span, context, emitter) for span, context, emitter in annotations],
    )
    labeller = Labeller(collection, strategy, task, least, mask)
    labels = labeller(1, np.arange(0, LENGTH + 1, FRAME))
    expected = naive_labels(voice, annotations, strategy, task, least, mask)
    # Where classes cover as much of a frame, any of them will do.
    assert all(label in allowed for label, allowed in zip(labels, expected, strict=True)), (
        labels,
        expected,
    )
    # Part of the frames are labelled as they are among all.
    assert labeller(1, np.arange(3 * FRAME, 7 * FRAME + 1, FRAME)).tolist() == labels[3:7].tolist()


@settings(max_examples=100, deadline=None)
@given(some=st.lists(spans, max_size=5), cuts=st.lists(spans, max_size=5))
def test_merge_and_subtract_against_sets_of_samples(some, cuts):
    def ends(of):
        pairs = np.array(of, np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def samples(start, stop):
        return {i for a, b in zip(start, stop, strict=True) for i in range(a, b)}

    for found, expected in (
        (merge(*ends(some)), samples(*ends(some))),
        (subtract(*ends(some), *ends(cuts)), samples(*ends(some)) - samples(*ends(cuts))),
    ):
        assert samples(*found) == expected
        start, stop = found
        assert (start < stop).all() and (start[1:] > stop[:-1]).all()


def test_a_voiced_segment_stays_whole_where_an_annotation_begins_inside():
    collection = make_collection([1000], [(0, 100, 500)], [(0, 300, 700, 1, 5)])
    calls = Labeller(collection, "voice").spans
    assert (calls.start.tolist(), calls.stop.tolist()) == ([100], [500])
    contexts = Labeller(collection, "voice", "context").spans
    assert contexts.start.tolist() == [100, 300]
    assert contexts.label.tolist() == [IGNORE, 2]


@pytest.mark.parametrize("options", [{"strategy": "both"}, {"task": "species"}, {"min_overlap": 0}])
def test_unknown_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Labeller(seed_recording(), **options)


def test_calls_under_calls_of_other_classes_are_counted():
    def spans(*rows):
        return Spans(*(np.array(column, np.int64) for column in zip(*rows, strict=True)))

    assert hidden_calls(spans((0, 0, 100, 1), (0, 50, 150, 1), (1, 0, 100, 2))) == ""
    apart = ((0, 0, 100, 1), (0, 51, 151, 2), (1, 0, 100, 2))
    assert hidden_calls(spans(*apart)) == ""
    assert hidden_calls(spans(*apart, (1, 40, 60, 1))).startswith("1 of 4 annotated calls")
    # Two others that touch hide it together; the same class hides nothing.
    assert hidden_calls(spans((0, 0, 40, 1), (0, 10, 70, 2), (0, 30, 90, 2), (0, 40, 80, 3))).startswith("4 of 4")
