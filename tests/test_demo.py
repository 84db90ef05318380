"""docs/make_demo.py makes docs/demo.html and README's picture, and those that are kept are what it makes."""

import importlib.util
import json
import re
from pathlib import Path

from PIL import Image
from test_detect_report import CHROMIUM

DOCS = Path(__file__).resolve().parents[1] / "docs"


def skeleton(page: str) -> str:
    """A page without what depends on the machine: numbers, pictures and sound."""
    return re.sub(r"\d[\d.]*(e[+-]?\d+)?", "0", re.sub(r'(base64,)[^"]*|(id="data" type="application/json">).*', "", page))


def test_the_command_makes_the_demo_anew(tmp_path):
    spec = importlib.util.spec_from_file_location("make_demo", DOCS / "make_demo.py")
    make_demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_demo)
    make_demo.SIZES |= dict(epochs=1, epoch_windows=8)  # of the training, which takes a minute otherwise
    code = make_demo.main([str(tmp_path)])
    assert code == (2 if CHROMIUM is None else 0)
    new, kept = ((folder / "demo.html").read_text("utf-8") for folder in (tmp_path, DOCS))
    assert skeleton(new) == skeleton(kept), "make it anew: python docs/make_demo.py"
    for page in (new, kept):
        assert len(page) < 1e6 and not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page
        data = json.loads(re.search(r'json">(.*)</script>', page)[1])
        assert data["reference"] and data["sound"] and data["attention"] and page.count("<h2>") >= 4
    assert data["events"] and float(re.search(r"frame F1 of ([\d.]+)", kept)[1]) > 0.6
    for folder in (DOCS, tmp_path) if CHROMIUM else (DOCS,):
        picture = folder / "review_page.png"
        assert picture.stat().st_size < 200_000 and Image.open(picture).size == make_demo.WINDOW
