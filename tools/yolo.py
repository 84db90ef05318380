"""A collection as images and boxes for YOLOR and other trainers that read YOLO's files, and their answers as events.

What YOLOR's loader expects was seen by running it; tests/yolo_rules.py states it. An export is a folder:

    images/SIDE/NAME.png   spectrograms; SIDE is train, validation or test, the trainer's own
    labels/SIDE/NAME.txt   a line a box: class, middle and size as shares of the image; empty where there is no call
    SIDE.txt, data.yaml, classes.names, hyp.yaml    what a trainer is told
    annotations.json       the same boxes as COCO
    manifest.csv           which pixel is which moment and frequency of which recording
    recordings.csv, reference.csv                   the recordings and their calls, for tools.evaluate and tools.compare
    export.json            classes, sizes and settings
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from tqdm import tqdm

from denet_torch.boxes import EVENT_COLUMNS, Layout, event_table, group
from denet_torch.files import partial_folder
from tools.detect_batch import Results
from training.boxes import Pictures, blank_spans, boxes_of
from training.collection import CollectionError, replacing
from training.config import Config
from training.labels import IGNORE
from training.loop import open_data, prepare_data
from training.splits import SIDES
from training.text_tables import read_columns

NAMES = ("images", "labels", "data.yaml", "classes.names", "hyp.yaml", "annotations.json", "recordings.csv", "reference.csv")
NAMES += (*(f"{side}.txt" for side in SIDES), "manifest.csv", "export.json")  # the last one tells that all is there
MANIFEST = ["image", "side", "file", "start", "seconds", "low_hz", "high_hz", "width", "height"]
# No mosaic, flip, shift, scale or colour: in a spectrogram a place is a time and a frequency, and grey is a level.
UNCHANGED = ("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective")
UNCHANGED += ("flipud", "fliplr", "mosaic", "mixup")
HYPERPARAMETERS = {
    "lr0": 0.01,
    "lrf": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "warmup_epochs": 2.0,
    "warmup_momentum": 0.8,
    "warmup_bias_lr": 0.05,
    "box": 0.05,
    "cls": 0.5,
    "cls_pw": 1.0,
    "obj": 1.0,
    "obj_pw": 1.0,
    "iou_t": 0.2,
    "anchor_t": 4.0,
    "fl_gamma": 0.0,
} | dict.fromkeys(UNCHANGED, 0.0)


class YoloError(ValueError):
    """Files that cannot be used; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Export:
    """An export as it was read: its images (MANIFEST, by name without suffix), recordings (by file) and classes."""

    root: Path
    images: pd.DataFrame
    recordings: pd.DataFrame
    classes: list[str]
    layout: Layout
    time_expansion: float


def export(config: Config, out: Path, sequences: int = 4, width: int = 640, height: int = 320) -> str:
    """Write the images and boxes of the collection, split and labels that `config` trains on; what was written, in lines.

    sequences: sequences of the trainer's frames in an image; neighbours share one (half of it, of a single one).
    An export that is there already is replaced when the new one is complete. Raises YoloError, CollectionError, AudioError.
    """
    out = Path(os.path.abspath(out))
    check_place(out)
    prepare_data(config)
    data = open_data(config)
    sequence = config.seq_len * config.frame_seconds
    top = float(data.collection.recordings["samplerate"].max()) / 2
    layout = Layout(sequences * sequence, min(sequence, sequences * sequence / 2), width, height, top)
    with partial_folder(out) as scratch:
        told = _write(config, data, layout, scratch, out)
        for name in ("export.json", *NAMES):
            place = out / name
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        for name in NAMES:
            os.replace(scratch / name, out / name)
    return told


def check_place(out: Path) -> None:
    """Raise YoloError where YOLOR's loader would not find the labels of an export, or where other things lie."""
    if "/images/" in f"{out}/":
        raise YoloError(f"{out}: is below a folder called images, which YOLOR would take for the export's; choose another place")
    if "png" in str(out):
        raise YoloError(f"{out}: has png in its path, which YOLOR would turn into txt to find the labels; choose another place")
    if out.exists() and not out.is_dir():
        raise YoloError(f"{out}: is a file, not a folder")
    if (out / "images").exists() and not (out / "manifest.csv").exists():
        raise YoloError(f"{out}: has images of something else; choose a new folder")


def _write(config: Config, data, layout: Layout, folder: Path, out: Path) -> str:
    collection, labeller = data.collection, data.labeller
    rows, calls, coco, recordings = [], [], [], []
    sides = {side: getattr(data, side).recordings for side in SIDES}
    boxes = dict.fromkeys(SIDES, 0)
    bar = tqdm(total=sum(map(len, sides.values())), desc="images", unit="file")
    for side, members in sides.items():
        (folder / "images" / side).mkdir(parents=True)
        (folder / "labels" / side).mkdir(parents=True)
        for recording in members:
            path = os.path.abspath(collection.path(recording))
            blanks = blank_spans(labeller, collection, recording)
            pictures = Pictures(path, layout, collection.time_expansion, blanks)
            found = boxes_of(labeller, collection, recording)
            found = pictures.with_bands(found[found["label"] != IGNORE])
            recordings.append((path, pictures.duration, pictures.rate, side))
            calls.append(found.assign(file=path, side=side))
            for start, picture in pictures:
                name = image_name(collection.recordings["file"].iat[recording], start)
                _save(picture, folder / "images" / side / f"{name}.png")
                parts = layout.within(found, start)
                (folder / "labels" / side / f"{name}.txt").write_text("".join(map(_line, parts.itertuples())))
                rows.append((f"images/{side}/{name}.png", side, path, start, layout.seconds, 0.0, layout.top_hz))
                coco.append(parts)
                boxes[side] += len(parts)
            bar.update()
    bar.close()
    if not boxes["train"]:
        raise CollectionError(f"{collection.root}: no call on the training side; YOLOR cannot train without a box")
    manifest = pd.DataFrame(rows, columns=MANIFEST[:-2]).assign(width=layout.width, height=layout.height)
    manifest.to_csv(folder / "manifest.csv", index=False)
    table = pd.DataFrame(recordings, columns=["file", "duration", "samplerate", "side"])
    table.to_csv(folder / "recordings.csv", index=False)
    classes = list(labeller.classes[1:])
    reference = pd.concat(calls, ignore_index=True)
    names = np.array(classes, dtype=object)[reference["label"].to_numpy(int) - 1]
    columns = ["file", "onset", "offset", "label", "low_hz", "high_hz", "estimated", "side"]
    reference = reference.assign(label=names)[columns]
    reference.to_csv(folder / "reference.csv", index=False, float_format="%.6f")
    for side in SIDES:
        lines = [f"./{name}\n" for name in manifest.loc[manifest["side"] == side, "image"]]
        (folder / f"{side}.txt").write_text("".join(lines))
    told = {"train": "train", "val": "validation", "test": "test"}
    places = {key: str(out / f"{side}.txt") for key, side in told.items()}
    described = places | {"nc": len(classes), "names": classes}
    (folder / "data.yaml").write_text(yaml.safe_dump(described, sort_keys=False, allow_unicode=True), encoding="utf-8")
    lines = [f"{' '.join(name.split()) or '?'}\n" for name in classes]
    (folder / "classes.names").write_text("".join(lines), encoding="utf-8")
    (folder / "hyp.yaml").write_text(yaml.safe_dump(HYPERPARAMETERS, sort_keys=False))
    (folder / "annotations.json").write_text(json.dumps(_as_coco(manifest, coco, classes, layout)))
    facts = {"classes": classes, "layout": dataclasses.asdict(layout)}
    facts |= {"time_expansion": collection.time_expansion}
    facts |= {"split": data.split.version, "labels": config.labels, "task": config.task, "seed": config.seed}
    (folder / "export.json").write_text(json.dumps(facts, indent=2) + "\n")
    lines = [
        f"{side}: {len(members)} recordings, {(manifest['side'] == side).sum()} images, {boxes[side]} boxes"
        for side, members in sides.items()
    ]
    estimated = int(reference["estimated"].sum())
    lines.append(f"{len(reference)} calls of {len(classes)} class(es), the band of {estimated} of them estimated")
    return "\n".join(lines)


def image_name(file: str, start: float) -> str:
    """Name of an image without suffix: a digest, so that YOLOR, which does not shuffle, sees them mixed; then what one reads.

    The letters of no image suffix are in it, since YOLOR replaces them all over the path.
    """
    digest = hashlib.sha256(f"{file} {start:.6f}".encode()).hexdigest()[:10]
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(file).stem)[:40]
    stem = re.sub("png|txt|jpg", "_", stem, flags=re.IGNORECASE)
    return f"{digest}_{stem}_{round(1000 * start):08d}"


def _save(picture: np.ndarray, path: Path) -> None:
    Image.fromarray(picture).save(path, compress_level=3)


def _line(box) -> str:
    """A box as YOLO has it, each of the numbers within 0 and 1."""
    place = (box.left + box.right) / 2, (box.top + box.bottom) / 2, box.right - box.left, box.bottom - box.top
    return f"{int(box.label) - 1} " + " ".join(f"{min(1.0, max(0.0, value)):.8f}" for value in place) + "\n"


def _as_coco(manifest: pd.DataFrame, parts: list[pd.DataFrame], classes: list[str], layout: Layout) -> dict:
    """COCO's detection format; categories count from 1, a box is left, top, width, height in pixels."""
    images, annotations = [], []
    for number, (row, boxes) in enumerate(zip(manifest.itertuples(), parts, strict=True), 1):
        images.append({"id": number, "file_name": row.image, "width": layout.width, "height": layout.height, "side": row.side})
        for box in boxes.itertuples():
            x, y = box.left * layout.width, box.top * layout.height
            w, h = (box.right - box.left) * layout.width, (box.bottom - box.top) * layout.height
            sides = [round(value, 4) for value in (x, y, w, h)]
            record = {"id": len(annotations) + 1, "image_id": number, "category_id": int(box.label), "bbox": sides}
            annotations.append(record | {"area": round(w * h, 4), "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def read_export(root: Path) -> Export:
    """Read the tables of an export. Raises YoloError."""
    try:
        facts = json.loads((root / "export.json").read_text())
        images = read_columns(root / "manifest.csv", dict.fromkeys(MANIFEST[:3], str) | dict.fromkeys(MANIFEST[3:], float))
        recordings = read_columns(root / "recordings.csv", {"file": str, "duration": float, "samplerate": float, "side": str})
        layout, classes = Layout(**facts["layout"]), list(facts["classes"])
        if not all(type(size) in (int, float) and 0 < size < 1e9 for size in vars(layout).values()):
            raise ValueError("a size of the images is no number above 0")
        expansion = float(facts["time_expansion"])
        _check(images, recordings, classes, expansion)
        images["recording"] = pd.Index(recordings["file"]).get_indexer(images["file"])
        images.index = [Path(image).stem for image in images["image"]]
    except FileNotFoundError as error:
        raise YoloError(f"{root}: is no export, {Path(error.filename).name} is missing") from None
    except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
        raise YoloError(f"{root}: is no export that can be used ({str(error).splitlines()[0]})") from None
    return Export(root, images, recordings, classes, layout, expansion)


def _check(images: pd.DataFrame, recordings: pd.DataFrame, classes: list, expansion: float) -> None:
    """Raise ValueError for tables that no export of ours has; half a file is such."""
    places, sizes = images[MANIFEST[3:]].to_numpy(), recordings[["duration", "samplerate"]].to_numpy()
    if not (np.isfinite(places).all() and (places >= 0).all() and np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError("a time or rate is no number above 0")
    if recordings["file"].duplicated().any() or images["image"].map(lambda image: Path(image).stem).duplicated().any():
        raise ValueError("a file or image is named twice")
    if unknown := sorted(set(images["file"]) - set(recordings["file"])):
        raise ValueError(f"recordings.csv lacks {unknown[0]} of manifest.csv")
    if not {*images["side"], *recordings["side"]} <= {*SIDES}:
        raise ValueError("a side is none of " + ", ".join(SIDES))
    if not classes or not all(isinstance(name, str) for name in classes) or not 0 < expansion <= 1e6:
        raise ValueError("export.json names no classes or no time expansion")


def find_events(
    export: Export, detections: Path, threshold: float = 0.25, call_gap: float = 0.0, sides: list[str] | None = None
) -> tuple[Results, pd.DataFrame, list[str]]:
    """Calls, phonemes and remarks from the text files of YOLOR's test.py or detect.py.

    Boxes of overlapping images that show one phoneme are one. Phonemes less than `call_gap` (s) apart are one call; its label
    is that of the highest score (without scores, of the longest). threshold: least score, where there are scores.
    sides: those whose images were searched; by default those with a file. Raises YoloError.
    """
    found, remarks = read_detections(export, detections)
    if sides is None:
        sides = [side for side in SIDES if (found["side"] == side).any()] or _sides_with_files(export, detections)
    found = found[found["side"].isin(sides) & ~(found["score"] < threshold)]
    recordings = export.recordings[export.recordings["side"].isin(sides)].reset_index(drop=True)
    phonemes = join(export, found)
    calls = group(phonemes, call_gap) if call_gap > 0 else phonemes
    counts = calls["file"].value_counts()
    listed = recordings[["file", "duration", "samplerate"]].assign(events=recordings["file"].map(counts).fillna(0).astype(int))
    frame = export.layout.seconds / export.layout.width
    return Results(calls, listed, {}, {}, ["background", *export.classes], frame, None, math.nan), phonemes, remarks


def _files(detections: Path) -> list[Path]:
    if not detections.is_dir():
        raise YoloError(f"{detections}: no such folder")
    skipped = {"raven", "audacity", "report"}  # what an import writes here itself
    files = [path for path in detections.rglob("*.txt") if not skipped & set(path.relative_to(detections).parts[:-1])]
    if not files:
        raise YoloError(f"{detections}: no .txt files; give test.py or detect.py --save-txt")
    return sorted(files)


def _sides_with_files(export: Export, detections: Path) -> list[str]:
    names = {path.stem for path in _files(detections)}
    there = set(export.images.loc[export.images.index.isin(names), "side"])
    return [side for side in SIDES if side in there]


def read_detections(export: Export, detections: Path) -> tuple[pd.DataFrame, list[str]]:
    """Boxes (recording, side, start, label, onset, offset, low_hz, high_hz, score) below a folder, and what was left out.

    score is NaN where the files have none. Raises YoloError naming the first file and line that cannot be used.
    """
    rows, scored, outside, known = [], {}, [], export.images
    lookup = {name: (row.recording, row.side, row.start) for name, row in zip(known.index, known.itertuples(), strict=True)}
    for path in _files(detections):
        if path.stem not in lookup:
            raise YoloError(f"{path}: {export.root / 'manifest.csv'} has no image {path.stem}; is it of another export?")
        try:
            text = path.read_text(encoding="ascii")
        except (UnicodeDecodeError, OSError) as error:
            raise YoloError(f"{path}: cannot be read as text ({error.__class__.__name__})") from None
        if text and not text.endswith("\n"):
            raise YoloError(f"{path}: its last line is not whole; the file is half written")
        for number, line in enumerate(dict.fromkeys(text.splitlines()), 1):
            if not line.strip():
                continue
            label, left, top, right, bottom, score = _box(line, f"{path} line {number}", len(export.classes))
            scored.setdefault(math.isnan(score), f"{path} line {number}")
            if right <= max(0, left) or left >= 1 or bottom <= max(0, top) or top >= 1:
                outside.append(f"{path} line {number}")
                continue
            rows.append((*lookup[path.stem], label, left, top, right, bottom, score))
    if len(scored) == 2:
        raise YoloError(f"{scored[False]} has a score, {scored[True]} has none: they are of two searches; keep one")
    columns = ["recording", "side", "start", "label", "left", "top", "right", "bottom", "score"]
    table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[4:], float))
    left, right = (table[name].clip(0, 1) for name in ("left", "right"))
    top, bottom = (table[name].clip(0, 1) for name in ("top", "bottom"))
    recorded = export.recordings.iloc[table["recording"].to_numpy(int)].reset_index(drop=True)
    layout = export.layout
    table = table.assign(
        onset=table["start"] + left * layout.seconds,
        offset=np.minimum(table["start"] + right * layout.seconds, recorded["duration"]),
        low_hz=(1 - bottom) * layout.top_hz,
        high_hz=np.minimum((1 - top) * layout.top_hz, recorded["samplerate"] / 2),
    )
    inside = (table["onset"] < table["offset"]) & (table["low_hz"] < table["high_hz"])
    count = len(outside) + int((~inside).sum())
    remarks = [f"{count} boxes lie outside of their image or recording and were left out"] if count else []
    remarks += [f"  {place}" for place in outside[:3]]
    return table[inside].drop(columns=["left", "top", "right", "bottom"]), remarks


def _box(line: str, where: str, classes: int) -> tuple[int, float, float, float, float, float]:
    """Class, left, top, right, bottom and score of a line."""
    try:
        values = [float(cell) for cell in line.split()]
    except ValueError:
        raise YoloError(f"{where}: {line[:60]!r} are no numbers") from None
    if len(values) not in (5, 6) or not all(map(math.isfinite, values)):
        raise YoloError(f"{where}: {line[:60]!r} is not class, middle, size and perhaps score; is the file half written?")
    label, x, y, width, height, *score = values
    if label != int(label) or not 0 <= label < classes:
        raise YoloError(f"{where}: class {label:g}, but the export has {classes} (0 to {classes - 1})")
    if width <= 0 or height <= 0:
        width = height = 0.0  # nothing of it is inside
    if score and not 0 <= score[0] <= 1:
        raise YoloError(f"{where}: {score[0]:g} is no score from 0 to 1")
    box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if width == 0:
        box = (2.0, 2.0, 2.0, 2.0)
    return int(label), *box, score[0] if score else math.nan


def join(export: Export, boxes: pd.DataFrame) -> pd.DataFrame:
    """Events (EVENT_COLUMNS) of boxes, those of one class and call in images that overlap joined (`Layout.join`), in order of
    file and onset."""
    rows = []
    for (recording, label), group_ in boxes.groupby(["recording", "label"], sort=True):
        found = group_[["onset", "offset", "low_hz", "high_hz", "score", "start"]].to_numpy(float)
        duration = export.recordings["duration"].iat[int(recording)]
        rows += [(recording, label, *event) for event in export.layout.join(found, duration)]
    table = pd.DataFrame(rows, columns=["recording", "label", "onset", "offset", "low_hz", "high_hz", "score"])
    table = table.sort_values(["recording", "onset", "offset"], kind="stable")
    numbers = table["recording"].to_numpy(int)
    table["file"] = export.recordings["file"].to_numpy(object)[numbers] if len(table) else []
    table["label"] = [export.classes[int(label)] for label in table["label"]]
    return event_table(table[EVENT_COLUMNS].to_numpy(object).tolist())


def prepare_config(source: Path, classes: int, target: Path) -> dict[str, int]:
    """Write a copy of a model configuration (.cfg) for a number of classes; how often each setting was changed.

    `classes` of each [yolo] part, and the `filters` that follow from it, (classes + 5) an anchor: of the convolution before that
    part and of the [implicit_mul] parts of the same size. All else stays as it is. Raises YoloError.
    """
    try:
        lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise YoloError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or 'no text'})") from None
    parts, settings = [], []  # name of each part; (line, part, key, value)
    for i, line in enumerate(lines):
        text = line.split("#")[0].strip()
        if text.startswith("["):
            parts.append(text.strip("[]"))
        elif "=" in text and parts:
            key, _, value = text.partition("=")
            settings.append((i, len(parts) - 1, key.strip(), value.strip()))
    heads = [i for i, part in enumerate(parts) if part == "yolo"]
    if not heads:
        raise YoloError(f"{source}: has no [yolo] part; it is no model configuration of YOLOR")
    of = {(part, key): (i, value) for i, part, key, value in settings}
    new, sizes = {}, {}
    for head in heads:
        try:
            line, before = of[head, "classes"]
            anchors = len([cell for cell in of[head, "mask"][1].split(",") if cell.strip()])
            conv = next(i for i in range(head - 1, -1, -1) if parts[i] == "convolutional")
            place, filters = of[conv, "filters"]
            old = anchors * (int(before) + 5)
            if int(filters) != old:
                told = f"filters is {filters}, not {old}, before [yolo] with {before} classes"
                raise YoloError(f"{source} line {place + 1}: {told}")
        except (KeyError, StopIteration, ValueError) as error:
            if isinstance(error, YoloError):
                raise
            raise YoloError(f"{source}: a [yolo] part without classes, mask or a convolution before it") from None
        sizes[old] = anchors * (classes + 5)
        new[line], new[place] = classes, sizes[old]
    for i, part, key, value in settings:
        if parts[part] == "implicit_mul" and key == "filters" and value.isdigit() and int(value) in sizes:
            new[i] = sizes[int(value)]
    changed = {"filters": 0, "classes": 0}
    for i, value in new.items():
        key, _, _ = lines[i].partition("=")
        ending = lines[i][len(lines[i].rstrip("\r\n")) :]
        lines[i] = f"{key}={value}{ending}"
        changed[key.strip()] += 1
    with replacing(target) as path:
        path.write_text("".join(lines), encoding="utf-8", newline="")
    return changed
