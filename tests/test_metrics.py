"""Scores against sed_eval, against counts made by hand, and the choice of a threshold."""

import math

import numpy as np
import pandas as pd
import pytest
import sed_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.labels import IGNORE
from training.metrics import (
    choose_threshold,
    class_scores,
    confusion,
    event_scores,
    frame_scores,
    most_pairs,
    predict,
    rates,
    segment_scores,
)

COLUMNS = ["file", "onset", "offset", "label"]
DURATION = 12.0
# Times are multiples of 10 ms that lie off the collar's edges, where rounding would decide.
TIMES = st.integers(0, 1100).map(lambda n: round(n * 0.01 + 0.003, 3))
EVENT = st.tuples(st.sampled_from(["a.wav", "b.wav"]), TIMES, st.integers(1, 90), st.sampled_from(["x", "y"]))


def table(rows) -> pd.DataFrame:
    return pd.DataFrame([(f, on, round(on + n * 0.0101, 4), label) for f, on, n, label in rows], columns=COLUMNS)


def sed_eval_lists(events: pd.DataFrame, file: str) -> list[dict]:
    rows = events[events["file"] == file]
    return [dict(zip(["file", "event_onset", "event_offset", "event_label"], row, strict=True)) for row in rows.values]


@given(st.lists(EVENT, max_size=12), st.lists(EVENT, max_size=12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_event_and_segment_scores_equal_sed_evals(reference, estimated, near):
    reference, estimated = table(reference), table(estimated)
    if near:  # estimates that mostly match, and compete for the same reference
        shift = np.random.default_rng(len(reference)).integers(-3, 4, len(reference)) * 0.077
        moved = reference.assign(onset=(reference["onset"] + shift).clip(lower=0.0), offset=reference["offset"] + shift + 0.4)
        estimated = pd.concat([moved, estimated], ignore_index=True)
    events = sed_eval.sound_event.EventBasedMetrics(["x", "y"], t_collar=0.2, percentage_of_length=0.5)
    segments = sed_eval.sound_event.SegmentBasedMetrics(["x", "y"], time_resolution=1.0)
    for file in ("a.wav", "b.wav"):
        lists = sed_eval_lists(reference, file), sed_eval_lists(estimated, file)
        if lists[0] or lists[1]:  # sed_eval fails on two empty lists
            events.evaluate(*lists)
        segments.evaluate(*lists, evaluated_length_seconds=DURATION)
    ours = event_scores(reference, estimated)
    same_scores(ours, events.results_overall_metrics()["f_measure"])
    ours = segment_scores(reference, estimated, {"a.wav": DURATION, "b.wav": DURATION})
    theirs = segments.results_overall_metrics()
    same_scores(ours, theirs["f_measure"])
    if len(reference):
        assert ours["error_rate"] == pytest.approx(theirs["error_rate"]["error_rate"])


def same_scores(ours: dict, theirs: dict) -> None:
    for name, other in (("precision", "precision"), ("recall", "recall"), ("f1", "f_measure")):
        if name == "f1" and not ours["precision"] + ours["recall"] > 0:
            continue  # sed_eval has nan where no event is right
        assert ours[name] == pytest.approx(theirs[other], nan_ok=True), name


def test_each_event_matches_once():
    reference = table([("a.wav", 1.0, 30, "x"), ("a.wav", 1.1, 30, "x")])
    # The first estimate fits both references, the second only the first of them.
    estimated = table([("a.wav", 1.05, 30, "x"), ("a.wav", 0.85, 30, "x")])
    assert event_scores(reference, estimated)["f1"] == 1
    assert event_scores(reference, estimated[:1])["recall"] == 0.5


def test_frame_scores_by_hand():
    call = torch.tensor([0.9, 0.8, 0.4, 0.6, 0.1, 0.2, 0.3, 0.9])
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, IGNORE])
    found = frame_scores(torch.stack([1 - call, call], dim=1), labels)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["majority_accuracy"] == pytest.approx(4 / 7)
    assert found["majority_f1"] == 0
    # Ranked: call, call, not, call, ...: precision 1, 1 and 3/4 where a call is found.
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["roc_auc"] == pytest.approx(11 / 12)


def test_always_answering_call_is_named_where_calls_are_commonest():
    probabilities = torch.tensor([[0.1, 0.9]] * 4)
    found = frame_scores(probabilities, torch.tensor([1, 1, 1, 0]))
    assert found["majority_accuracy"] == 0.75
    assert found["majority_f1"] == pytest.approx(found["f1"]) == pytest.approx(6 / 7)


def test_one_kind_of_frame_has_no_average_precision():
    found = frame_scores(torch.tensor([[0.8, 0.2]] * 3), torch.zeros(3, dtype=torch.long))
    assert np.isnan(found["average_precision"]) and np.isnan(found["roc_auc"])


def test_classes_are_told_apart():
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.1, 0.5], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]])
    labels = torch.tensor([0, 2, 2, IGNORE])
    assert predict(probabilities).tolist() == [0, 2, 1, 2]
    assert confusion(probabilities, labels).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert frame_scores(probabilities, labels)["f1"] == 1  # call or not
    # F1 of 1 for the background, 0 for class 1, 2/3 for class 2
    assert frame_scores(probabilities, labels)["macro_f1"] == pytest.approx(5 / 9)


def test_threshold_is_where_f1_is_highest():
    call = torch.tensor([0.35, 0.33, 0.31, 0.28, 0.2, 0.1]).repeat(10)
    labels = torch.tensor([1, 1, 1, 0, 0, 0]).repeat(10)
    threshold = choose_threshold(torch.stack([1 - call, call], dim=1), labels, np.arange(60) // 6)
    assert threshold == pytest.approx(0.31)  # the nearest to 0.5 of those that part the two
    assert frame_scores(torch.stack([1 - call, call], dim=1), labels, threshold)["f1"] == 1


@pytest.mark.parametrize(("recordings", "expected"), [(1, 0.5), (40, 0.3)])
def test_threshold_leaves_one_half_for_good_reason_only(recordings, expected):
    """One recording of a hundred whose calls only a threshold of 0.3 finds is an accident; forty are not."""
    call = torch.full((100, 20), 0.1)
    labels = torch.zeros(100, 20, dtype=torch.long)
    labels[:, :4] = 1
    call[:, :4] = 0.9
    call[:recordings, :4] = 0.3
    probabilities = torch.stack([1 - call, call], dim=2).flatten(0, 1)
    threshold = choose_threshold(probabilities, labels.flatten(), np.repeat(np.arange(100), 20))
    assert threshold == pytest.approx(expected)


def test_threshold_without_calls_or_frames():
    probabilities, labels = torch.tensor([[0.9, 0.1]] * 4), torch.zeros(4, dtype=torch.long)
    assert choose_threshold(probabilities, labels, np.zeros(4, int)) == 0.5
    assert choose_threshold(probabilities, torch.full((4,), IGNORE), np.zeros(4, int)) == 0.5


def test_rates_by_hand():
    reference = table([("a.wav", 1, 50, "x"), ("a.wav", 3, 50, "x"), ("a.wav", 5, 50, "y"), ("b.wav", 1, 50, "y")])
    estimated = table(
        [
            ("a.wav", 1.2, 10, "x"),  # right
            ("a.wav", 1.3, 10, "y"),  # beside a right one: does not count
            ("a.wav", 3.1, 10, "y"),  # wrong
            ("b.wav", 7.0, 10, "x"),  # on background
        ]
    )
    found = rates(reference, estimated, background_seconds=20)
    assert found == {
        "recognition_rate": 1 / 4,
        "error_rate": 1 / 4,
        "miss_rate": 2 / 4,
        "false_positive_rate": 1 / 20,
    }


@pytest.mark.parametrize("classes", [2, 3])
def test_frames_that_all_are_masked_have_no_call(classes):
    scores = frame_scores(torch.full((5, classes), 1 / classes), torch.full((5,), IGNORE))
    assert [scores[name] for name in ("precision", "recall", "f1", "macro_f1") if name in scores] == [0.0] * (classes + 1)
    assert math.isnan(scores["average_precision"]) and math.isnan(scores["accuracy"])


def test_nothing_found_and_nothing_there():
    nothing = pd.DataFrame(columns=COLUMNS)
    some = table([("a.wav", 1, 50, "x")])
    assert event_scores(some, nothing)["f1"] == 0
    assert np.isnan(event_scores(nothing, nothing)["f1"])
    assert segment_scores(nothing, some, {"a.wav": 3.0})["precision"] == 0
    assert np.isnan(rates(nothing, nothing, 0)["recognition_rate"])


def test_scores_of_each_class_and_the_threshold_at_which_its_f1_is_best():
    rng = np.random.default_rng(3)
    labels = torch.from_numpy(rng.choice([IGNORE, 0, 1, 2], 400))
    probabilities = torch.from_numpy(rng.dirichlet([1, 1, 1], 400)).float()
    found = class_scores(probabilities, labels, ["background", "a", "b"], 0.6)
    assert list(found) == ["class a", "class b"]
    kept = labels != IGNORE
    own, predicted = labels[kept], predict(probabilities, 0.6)[kept]
    for number, scores in enumerate(found.values(), 1):
        hits = int(((predicted == number) & (own == number)).sum())
        assert scores["recall"] == pytest.approx(hits / int((own == number).sum()))
        assert scores["precision"] == pytest.approx(hits / int((predicted == number).sum()))
        column = probabilities[kept][:, number]
        chosen = column[:, None] >= column  # (frames, thresholds)
        right = (chosen & (own == number)[:, None]).sum(dim=0)
        f1 = 2 * right / (chosen.sum(dim=0) + (own == number).sum())
        at = (column - scores["threshold"]).abs().argmin()
        assert float(f1[at]) == pytest.approx(float(f1.max()))
    assert class_scores(probabilities, labels * 0, ["background", "a", "b"]) == {}


@pytest.mark.parametrize("rows, columns, share", [(0, 5, 1), (7, 1, 1), (40, 30, 0.05), (60, 80, 0.2)])
def test_most_pairs_are_those_of_scipy(rows, columns, share):
    csgraph, sparse = pytest.importorskip("scipy.sparse.csgraph"), pytest.importorskip("scipy.sparse")
    for seed in range(20):
        fits = np.random.default_rng(seed).random((rows, columns)) < share
        expected = (csgraph.maximum_bipartite_matching(sparse.csr_array(fits)) >= 0).sum() if fits.size else 0
        assert most_pairs(fits) == expected


def test_most_pairs_of_a_chain_as_long_as_a_table():
    """Each row fits two columns, and the last row's both are taken: all of the others move by one."""
    rows = 3000
    fits = np.eye(rows, dtype=bool) | np.eye(rows, k=1, dtype=bool)
    fits[-1] = np.eye(rows, dtype=bool)[0]
    assert most_pairs(fits) == rows
