import re

import numpy as np
import pandas as pd
import pytest
from data_cases import make_collection
from hypothesis import given, settings
from hypothesis import strategies as st

from training.splits import GROUPS, read_split, split_collection, write_split
from training.tables import CollectionError

RNG = np.random.default_rng(0)
COUNT = 400


@pytest.fixture(scope="module")
def collection():
    days = RNG.integers(0, 40, COUNT)
    treatment = days // 4
    # Bats live in one treatment; some recordings have two, some none that is known.
    annotations = []
    for i in range(COUNT):
        for _ in range(RNG.integers(0, 3)):
            bat = 100 + 3 * treatment[i] + RNG.integers(0, 3)
            annotations.append((i, 0, 100, 11, int(RNG.choice([bat, -bat, bat, 0]))))
    return make_collection(
        [1000] * COUNT,
        annotations=annotations,
        treatment=[str(t) for t in treatment],
        channel=[str(c) for c in RNG.integers(1, 3, COUNT)],
        file=[f"files{100 + day // 3}/{i}.WAV" for i, day in enumerate(days)],
        recorded=pd.Timestamp("2012-06-01 23:30") + pd.to_timedelta(days, unit="D"),
    )


def groups_of(collection, recording, key):
    """What a recording has in common with others, by the naive way."""
    row = collection.recordings.iloc[recording]
    if key == "day":
        return {row["recorded"].date()}
    if key == "treatment":
        return {row["treatment"]}
    if key == "cage":
        return {(row["treatment"], row["channel"])}
    if key == "folder":
        return {row["file"].rpartition("/")[0]}
    if key == "recording":
        return {row["file"]}
    emitters = collection.annotations_of(recording)["emitter"]
    return {abs(emitter) for emitter in emitters if emitter != 0}


@pytest.mark.parametrize("by", [[key] for key in GROUPS] + [["day", "cage"], ["emitter", "treatment"]])
@pytest.mark.parametrize("seed", range(3))
def test_no_group_is_on_two_sides(collection, by, seed):
    split = split_collection(collection, by, (0.6, 0.2, 0.2), seed)
    sides = [split.train, split.validation, split.test]
    for key in by:
        groups = [set().union(*(groups_of(collection, i, key) for i in side)) for side in sides]
        assert all(groups)
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    everyone = np.sort(np.concatenate(sides))
    known = [i for i in range(COUNT) if all(groups_of(collection, i, key) for key in by)]
    assert everyone.tolist() == known
    shares = np.array([len(side) for side in sides]) / len(known)
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.12)


def test_a_split_is_the_same_again_and_another_for_another_seed(collection):
    first, again = (split_collection(collection, seed=1) for _ in range(2))
    other = split_collection(collection, seed=2)
    assert first.version == again.version != other.version
    np.testing.assert_array_equal(first.test, again.test)


def test_a_split_is_written_and_read_by_its_hash(collection, tmp_path):
    split = split_collection(collection, ["treatment"])
    path = write_split(split, collection, tmp_path)
    assert path.name == f"split-{split.version}.csv"
    again = read_split(path, collection)
    assert again.version == split.version
    for side in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(again, side), getattr(split, side))
    text = path.read_text()
    for changed, message in (
        (text.replace(",test", ",train", 1), "was changed"),
        (text.replace(",test", ",tset", 1), "was changed"),
        (re.sub(r"files\d+/7.WAV", "files101/none.WAV", text), "files101/none.WAV"),
        ("nothing", "is no split"),
    ):
        path.write_text(changed)
        with pytest.raises(CollectionError, match=message):
            read_split(path, collection)
    with pytest.raises(CollectionError, match="is no split"):
        read_split(tmp_path / "gone.csv", collection)


def test_too_few_groups_are_an_error():
    collection = make_collection([1000] * 9, treatment=["1"] * 5 + ["2"] * 4)
    with pytest.raises(CollectionError, match="by treatment, fall into 2 groups; 3 sides need as many. .* --split-by recording"):
        split_collection(collection, ["treatment"])
    assert len(split_collection(collection, ["treatment"], (0.5, 0.5, 0)).test) == 0
    with pytest.raises(CollectionError, match="by day, fall into 0 groups"):
        split_collection(collection, ["day"])
    assert split_collection(collection).by == ("recording",)
    with pytest.raises(CollectionError, match=r"cannot split by 'weather'; . offers treatment .* cage .* recording \(9 groups\)"):
        split_collection(collection, ["weather"])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=3, max_size=12),
    fractions=st.tuples(*[st.floats(0.05, 1)] * 3),
    seed=st.integers(0, 5),
)
def test_every_side_gets_a_group(sizes, fractions, seed):
    treatment = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
    collection = make_collection([1000] * len(treatment), treatment=treatment)
    split = split_collection(collection, ["treatment"], fractions, seed)
    assert min(len(split.train), len(split.validation), len(split.test)) > 0
