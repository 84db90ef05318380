"""What YOLOR's loader expects of a list of images, in code of our own. The rules were found by running an unmodified clone.

- A line of the list that begins with `./` is relative to the list; every `./` in it is replaced. Files are sorted by path.
- A label's path is the image's with the first `/images/` replaced by `/labels/`, and then every occurrence of the letters of
  its suffix, anywhere in the path, by `txt`.
- An image opens, and each of its sides has at least 10 pixels.
- A label file has five columns a line: a class from 0, and middle and size as shares from 0 to 1. It may be empty or absent.
- The training side has at least one box, and no class beyond those named.
- Labels are kept in `labels/SIDE.cache3` and taken from there as long as the sum of the sizes of all files is the same.
"""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image


def listed(path: Path) -> list[str]:
    """Images that a list names, as the loader finds them."""
    parent = f"{path.parent}/"
    lines = path.read_text().splitlines()
    return sorted(line.replace("./", parent) if line.startswith("./") else line for line in lines)


def label_path(image: str) -> str:
    return image.replace("/images/", "/labels/", 1).replace(image.split(".")[-1], "txt")


def load(path: Path) -> dict[str, np.ndarray]:
    """Boxes (boxes, 5) of every image of a list; AssertionError for what the loader refuses or leaves out."""
    found = {}
    for image in listed(path):
        with Image.open(image) as picture:
            assert min(picture.size) > 9, image
            picture.verify()
        label = Path(label_path(image))
        lines = label.read_text().splitlines() if label.is_file() else []
        boxes = np.array([line.split() for line in lines], np.float32) if lines else np.zeros((0, 5), np.float32)
        assert boxes.shape[1] == 5 and (boxes >= 0).all() and (boxes[:, 1:] <= 1).all(), label
        found[image] = boxes
    assert found, "no images"
    return found


def check(data: Path) -> dict[str, dict[str, np.ndarray]]:
    """Hold what a data.yaml names to the rules; boxes of each image, by key."""
    told = yaml.safe_load(data.read_text())
    assert len(told["names"]) == told["nc"]
    sides = {key: load(Path(told[key])) for key in ("train", "val", "test")}
    boxes = np.concatenate([one for side in sides.values() for one in side.values()])
    assert (boxes[:, 0] == boxes[:, 0].astype(int)).all() and (boxes[:, 0] < told["nc"]).all()
    assert sum(map(len, sides["train"].values())) > 0, "no boxes to train on"
    assert not list(data.parent.glob("labels/*.cache*")), "labels kept from an earlier export"
    return sides
