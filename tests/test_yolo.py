"""Export for YOLOR, held to its loader's rules; labels read back as detections; bad input named."""

import contextlib
import io
import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import yolo_rules
from hypothesis import example, given, settings
from hypothesis import strategies as st

from denet_torch.boxes import EVENT_COLUMNS, Layout, group
from tools import evaluate, export_yolo, import_yolo, yolo_config
from training.config import Config
from training.loop import open_data
from training.splits import SIDES
from training.synthetic import make_dataset

HEADER = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Annotation"]


def run(command, *words) -> tuple[int, str]:
    """Exit code, and what a command said."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = command.main([str(word) for word in words])
    return code, told.getvalue()


def make_collection(root: Path, rate: int, recordings: list[tuple[float, list[tuple]]]) -> pd.DataFrame:
    """Write noise with Raven tables: (duration, calls of onset, offset, low, high, label); what is true."""
    root.mkdir()
    rng, rows = np.random.default_rng(0), []
    for number, (duration, calls) in enumerate(recordings):
        file = root / f"{number}.wav"
        soundfile.write(file, rng.normal(0, 0.05, round(duration * rate)), rate)
        table = ["\t".join(HEADER)]
        for i, (onset, offset, low, high, label) in enumerate(calls, 1):
            cells = [i, "Spectrogram 1", 1, f"{onset:.6f}", f"{offset:.6f}", f"{low:.3f}", f"{high:.3f}", label]
            table.append("\t".join(map(str, cells)))
            rows.append((str(file), onset, offset, label, low, high))
        (root / f"{number}.Table.1.selections.txt").write_text("\n".join(table) + "\n")
    return pd.DataFrame(rows, columns=["file", "onset", "offset", "label", "low_hz", "high_hz"])


@st.composite
def collections(draw):
    """Rate, and recordings: empty ones, calls over the borders of images (1.5 s, 2 s, ...), calls that overlap, long calls."""
    rate = draw(st.sampled_from([16_000, 44_100, 250_000, 384_000, 500_000]))
    recordings = []
    for number in range(draw(st.integers(3, 5))):
        duration = draw(st.sampled_from([0.06, 0.7, 2.0, 2.6, 3.5, 5.2]))
        calls = []
        for _ in range(draw(st.integers(0, 4)) if number else 1):
            length = min(draw(st.sampled_from([0.03, 0.12, 0.3, 1.1, 2.4])), duration)
            onset = draw(st.one_of(st.floats(0, duration - length), st.sampled_from([1.49, 1.5, 1.98, 2.0, 3.0])))
            onset = round(min(onset, duration - length), 4)
            low = draw(st.floats(0, 0.7)) * rate / 2
            high = low + draw(st.floats(0.05, 0.3)) * rate / 2
            call = (onset, round(onset + length, 4), round(low, 1), round(high, 1), draw(st.sampled_from(["song", "click"])))
            calls.append(call)
        recordings.append((duration, calls))
    return rate, recordings


STRATEGIES = ("annotation", "voice", "intersection", "union")


@settings(max_examples=16, deadline=None)
@given(collections(), st.booleans(), st.sampled_from(["context", "call"]), st.sampled_from(STRATEGIES))
def test_labels_read_back_are_the_calls(drawn, scored, task, strategy):
    rate, recordings = drawn
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        truth = make_collection(folder / "in", rate, recordings)
        options = ["--task", task, "--labels", strategy, "--completely-annotated"]
        code, told = run(export_yolo, folder / "in", folder / "out", *options)
        if "no call on the training side" in told:
            return
        assert code == 0, told
        yolo_rules.check(folder / "out" / "data.yaml")
        shutil.copytree(folder / "out" / "labels", folder / "found")
        if scored:
            for path in (folder / "found").rglob("*.txt"):
                path.write_text("".join(f"{line} 0.9\n" for line in path.read_text().splitlines()))
        code, told = run(import_yolo, folder / "out", folder / "found")
        assert code == 0, told
        found = pd.read_csv(folder / "found" / "events.csv")
        found["file"] = found["file"].map(lambda name: str(folder / "in" / Path(name).name))
        layout = Layout(2.0, 0.5, 640, 320, rate / 2)
        if strategy in ("annotation", "voice"):
            truth = truth if task == "context" else truth.assign(label="call")
            compare(truth, found, layout, recordings)
        else:
            compare(pd.read_csv(folder / "out" / "reference.csv")[truth.columns], found, layout, recordings)
        data = open_data(Config(data_dir=folder / "in", task=task, labels=strategy, completely_annotated=True))
        cover_what_is_trained(data, found, layout.seconds / layout.width)


def cover_what_is_trained(data, found, pixel):
    """Read back, the boxes of a class lie where the trainer's labels have it, to a pixel at each end."""
    rate = data.collection.recordings["samplerate"].to_numpy(float)
    for recording in np.unique(data.labeller.spans.recording):
        spans = data.labeller.spans.of(recording)
        events = found[found["file"] == str(data.collection.path(recording))]
        for label in np.unique(spans.label):
            times = np.arange(0, 6, pixel / 4)
            ours, theirs = np.zeros(len(times), bool), np.zeros(len(times), bool)
            for start, stop in zip(spans.start[spans.label == label], spans.stop[spans.label == label], strict=True):
                ours |= (times >= start / rate[recording]) & (times < stop / rate[recording])
            for event in events[events["label"] == data.classes[label]].itertuples():
                theirs |= (times >= event.onset) & (times < event.offset)
            edges = np.flatnonzero(np.diff(ours.astype(int))) * pixel / 4
            for time in times[ours != theirs]:
                assert len(edges) and np.abs(edges - time).min() <= 1.5 * pixel, (label, time)


def compare(truth, found, layout, recordings):
    """Each call once, its sides to one pixel."""
    truth, found = truth.drop_duplicates(), found[truth.columns]
    assert len(truth) == len(found)
    pixel = np.array([layout.seconds / layout.width] * 2 + [layout.top_hz / layout.height] * 2)
    numbers = ["onset", "offset", "low_hz", "high_hz"]
    for key, ours in truth.groupby(["file", "label"]):
        theirs = found[(found["file"] == key[0]) & (found["label"] == key[1])]
        assert len(ours) == len(theirs)
        free = theirs[numbers].to_numpy()
        for call in ours[numbers].to_numpy():
            call = np.minimum(call, [np.inf, recordings[int(Path(key[0]).stem)][0], np.inf, np.inf])
            away = (np.abs(free - call) / pixel).max(axis=1)
            assert away.min() <= 1, (call, free)
            free = np.delete(free, away.argmin(), axis=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A generated flying-fox collection with its export."""
    root = tmp_path_factory.mktemp("yolo")
    make_dataset(root / "data", 12, seed=3, snr_db=(10, 20))
    assert run(export_yolo, root / "data", root / "out")[0] == 0
    return root


def test_sides_windows_and_labels_are_the_trainers(made):
    data = open_data(Config(data_dir=made / "data"))
    table = pd.read_csv(made / "out" / "recordings.csv")
    for side in SIDES:
        ours = {str(data.collection.path(i)) for i in getattr(data, side).recordings}
        assert ours == set(table.loc[table["side"] == side, "file"])
    seconds = pd.read_csv(made / "out" / "manifest.csv")["seconds"]
    assert (seconds == 4 * Config.frame_seconds * 10).all()


def test_generated_collection_there_and_back(made, tmp_path):
    shutil.copytree(made / "out" / "labels", tmp_path / "found")
    assert run(import_yolo, made / "out", tmp_path / "found")[0] == 0
    for reference in (made / "out" / "reference.csv", made / "data" / "truth.csv"):
        words = ["--reference", reference, "--estimated", tmp_path / "found" / "events.csv", "--collar", 0.01, "--any-label"]
        code, told = run(evaluate, *words)
        assert code == 0 and told.split("event F1")[1].split()[0] == "1.000"


def test_coco_has_the_same_boxes(made):
    sides = yolo_rules.check(made / "out" / "data.yaml")
    coco = json.loads((made / "out" / "annotations.json").read_text())
    assert {row["file_name"] for row in coco["images"]} == set(pd.read_csv(made / "out" / "manifest.csv")["image"])
    of = {row["id"]: str(made / "out" / row["file_name"]) for row in coco["images"]}
    boxes = {image: rows for side in sides.values() for image, rows in side.items()}
    for row in coco["annotations"]:
        x, y, w, h = np.array(row["bbox"]) / [640, 320, 640, 320]
        ours = boxes[of[row["image_id"]]]
        there = [row["category_id"] - 1, x + w / 2, y + h / 2, w, h]
        assert np.abs(ours - there).max(axis=1).min() < 1e-4
    assert len(coco["annotations"]) == sum(map(len, boxes.values()))


def test_a_call_is_bright_in_its_box(made):
    reference = pd.read_csv(made / "out" / "reference.csv")
    assert reference["estimated"].all() and (reference["low_hz"] < reference["high_hz"]).all()
    from PIL import Image

    for image, boxes in yolo_rules.check(made / "out" / "data.yaml")["train"].items():
        with Image.open(image) as picture:
            grey = np.asarray(picture, float)
        for _, x, y, w, h in boxes:
            a, b = round((x - w / 2) * 640), round((x + w / 2) * 640)
            c, d = round((y - h / 2) * 320), round((y + h / 2) * 320)
            if b - a > 10:
                assert grey[c:d, a:b].mean() > grey[grey > 0].mean() + 10


def test_a_second_export_replaces_the_first_and_its_caches(made, tmp_path):
    shutil.copytree(made / "out", tmp_path / "out")
    (tmp_path / "out" / "labels" / "train.cache3").write_bytes(b"kept")
    (tmp_path / "out" / "runs").mkdir()
    assert run(export_yolo, made / "data", tmp_path / "out")[0] == 0
    yolo_rules.check(tmp_path / "out" / "data.yaml")
    assert (tmp_path / "out" / "runs").is_dir()
    assert not list((tmp_path / "out").glob(".new*"))


@pytest.mark.parametrize("name", ["pngs/out", "images/out"])
def test_places_where_the_loader_would_not_find_labels_are_refused(made, tmp_path, name):
    code, told = run(export_yolo, made / "data", tmp_path / name)
    assert code == 2 and told.startswith("error: ") and "choose another place" in told
    assert not (tmp_path / name).exists()


IMAGE = 0
BAD = {
    "unknown image": ("zzz", "0 0.5 0.5 0.1 0.1\n", "no image zzz"),
    "class": (IMAGE, "1 0.5 0.5 0.1 0.1\n", "class 1"),
    "half a class": (IMAGE, "0.5 0.5 0.5 0.1 0.1\n", "class 0.5"),
    "half written": (IMAGE, "0 0.5 0.5 0.1 0.1\n0 0.5 0.5", "half written"),
    "too few": (IMAGE, "0 0.5 0.5 0.1\n", "half written"),
    "too many": (IMAGE, "0 0.5 0.5 0.1 0.1 0.5 0.5\n", "line 1"),
    "text": (IMAGE, "call 0.5 0.5 0.1 0.1\n", "no numbers"),
    "nan": (IMAGE, "0 nan 0.5 0.1 0.1\n", "line 1"),
    "score": (IMAGE, "0 0.5 0.5 0.1 0.1 7\n", "no score"),
    "two searches": (IMAGE, "0 0.5 0.5 0.1 0.1\n0 0.3 0.5 0.1 0.1 0.5\n", "two searches"),
    "bytes": (IMAGE, b"\xff\xfe\x00", "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_detections_that_cannot_be_used_are_named(made, tmp_path, kind):
    name, text, expected = BAD[kind]
    stem = name or Path(pd.read_csv(made / "out" / "manifest.csv")["image"].iloc[0]).stem
    path = tmp_path / f"{stem}.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, told = run(import_yolo, made / "out", tmp_path)
    assert code == 2 and told.startswith("error: ") and str(path) in told and expected in told
    assert not (tmp_path / "events.csv").exists()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80) | st.text(alphabet="01.e-+ \n5nai", max_size=80).map(str.encode))
def test_any_bytes_give_events_or_one_line(made, text):
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(pd.read_csv(made / "out" / "manifest.csv")["image"].iloc[0]).stem
        (Path(folder) / f"{stem}.txt").write_bytes(text)
        code, told = run(import_yolo, made / "out", folder)
        assert code in (0, 2) and (code == 0 or told.startswith("error: "))


def test_boxes_outside_are_cut_or_left_out_and_counted(made, tmp_path):
    image = pd.read_csv(made / "out" / "manifest.csv").iloc[0]
    lines = ["0 0.0 0.5 0.2 0.1 0.9", "0 1.5 0.5 0.2 0.1 0.9", "0 0.5 0.5 0 0.1 0.9", "0 0.3 0.5 0.02 0.1 0.1"]
    (tmp_path / f"{Path(image['image']).stem}.txt").write_text("\n".join(lines) + "\n")
    code, told = run(import_yolo, made / "out", tmp_path)
    assert code == 0 and "2 boxes lie outside" in told
    events = pd.read_csv(tmp_path / "events.csv")
    assert len(events) == 1 and events["onset"].iloc[0] == 0
    assert set(pd.read_csv(tmp_path / "recordings.csv")["file"]) > {image["file"]}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["manifest.csv", "recordings.csv", "export.json"]),
    st.sampled_from(["cut", "gone", "nan", "minus", "line twice", "line gone", "other", "cell"]),
    st.floats(0, 1),
    st.integers(0, 8),
    st.sampled_from(["", "x", "7", "1e999"]),
)
@example("manifest.csv", "cell", 0.5, 3, "1_0")  # a number to Python, none to pandas
def test_a_damaged_export_is_named(made, name, damage, place, column, cell):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for table in ("manifest.csv", "recordings.csv", "export.json", "reference.csv"):
            shutil.copy(made / "out" / table, folder / table)
        shutil.copytree(made / "out" / "labels", folder / "found")
        text = (folder / name).read_text()
        lines, at = text.splitlines(keepends=True), int(place * len(text))
        line = 1 + int(place * (len(lines) - 2))
        if damage == "gone":
            (folder / name).unlink()
        else:
            first, last = "".join(lines[:line]), "".join(lines[line + 1 :])
            new = {"cut": text[:at], "line twice": first + 2 * lines[line] + last, "line gone": first + last}
            new |= {"nan": text.replace("2", "nan", 3), "minus": text.replace(",2", ",-2"), "other": text.replace("t", "x")}
            cells = lines[line].rstrip("\n").split(",")
            cells[column % len(cells)] = cell
            new["cell"] = first + ",".join(cells) + "\n" + last
            (folder / name).write_text(new[damage])
        code, told = run(import_yolo, folder, folder / "found", "--sides", "train", "--report")
        if code:
            assert code == 2 and told.splitlines()[-1].startswith(("error: ", "usage")), told
            assert not (folder / "found" / "events.csv").exists()
        else:
            pd.read_csv(folder / "found" / "events.csv")


def test_pages_and_tables_of_what_was_imported(made, tmp_path):
    """Without a model and without scores: events with their boxes in the pages, frequencies in Raven's tables."""
    shutil.copytree(made / "out" / "labels", tmp_path / "found")
    words = ["--sides", "train", "--call-gap", "0.02", "--report", "--formats", "raven"]
    code, told = run(import_yolo, made / "out", tmp_path / "found", *words)
    assert code == 0 and "report/index.html" in told
    events = pd.read_csv(tmp_path / "found" / "events.csv")
    pages = [json.loads(re.search(r'json">(.*)</script>', page.read_text("utf-8"))[1])
             for page in (tmp_path / "found" / "report").rglob("*.WAV*.html")]
    shown = pd.DataFrame([event for page in pages for event in page["events"]])
    assert len(shown) == len(events) and shown["score"].isna().all()
    assert sorted(shown["low_hz"]) == sorted(events["low_hz"].round(1))
    assert all(page["probabilities"] is None and page["attention"] is None for page in pages)
    assert any(page["reference"] for page in pages)
    raven = pd.read_csv(tmp_path / "found" / "raven" / "combined.txt", sep="\t")
    raven = raven[raven["View"].str.startswith("Spectrogram")]
    np.testing.assert_allclose(sorted(raven["Low Freq (Hz)"]), sorted(events["low_hz"]), atol=0.1)
    np.testing.assert_allclose(sorted(raven["High Freq (Hz)"]), sorted(events["high_hz"]), atol=0.1)


def test_phonemes_become_calls_by_their_gaps():
    rows = [("a", 0.0, 0.1, "x", 0.5, 10, 20), ("a", 0.14, 0.2, "y", 0.9, 5, 15), ("a", 0.5, 0.6, "x", 0.4, 1, 2)]
    phonemes = pd.DataFrame(rows, columns=EVENT_COLUMNS)
    calls = group(phonemes, 0.05)
    assert calls.to_numpy().tolist() == [["a", 0.0, 0.2, "y", 0.9, 5, 20], ["a", 0.5, 0.6, "x", 0.4, 1, 2]]
    assert len(group(phonemes, 0.03)) == 3


CONFIG = """[net]
# filters=255
width=640
[convolutional]
filters = 64
[implicit_mul]
filters=255
[implicit_mul]
filters=64
[convolutional]
filters=255
activation=linear
[control_channels]
from=3
[yolo]
mask = 0,1,2
classes=80
"""


def test_a_copy_of_a_model_configuration(made, tmp_path):
    (tmp_path / "clone.cfg").write_text(CONFIG)
    code, told = run(yolo_config, made / "out", tmp_path / "clone.cfg", "--output", tmp_path / "copy.cfg")
    assert code == 0, told
    expected = CONFIG.replace("[implicit_mul]\nfilters=255", "[implicit_mul]\nfilters=18")
    expected = expected.replace("[convolutional]\nfilters=255", "[convolutional]\nfilters=18").replace("classes=80", "classes=1")
    assert (tmp_path / "copy.cfg").read_text() == expected and (tmp_path / "clone.cfg").read_text() == CONFIG
    (tmp_path / "other.cfg").write_text("[net]\nwidth=1\n")
    assert "no [yolo] part" in run(yolo_config, made / "out", tmp_path / "other.cfg")[1]
    assert "clone's own" in run(yolo_config, made / "out", tmp_path / "clone.cfg", "--output", tmp_path / "clone.cfg")[1]
