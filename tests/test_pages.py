"""Every page that the programs write, at the widths of a phone, a tablet and a screen, light and dark: one contract."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from test_detect_report import CHROMIUM, TRUE, Browser, made
from test_season import results
from trainer_cases import tiny

from tools import command, detect_report
from training.loop import train
from training.report import write_report

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["recording", "without_model", "index", "training", "files", "evaluate", "compare", "season", "site", "demo"]
WIDTHS = (390, 800, 1400)
SERIOUS = ("serious", "critical")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def axe():
    found = find_spec("axe_core_python")
    if found is None:
        pytest.skip("axe-core-python, of the test extra, is not installed")
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.close()


def recording(root: Path, collection: Path) -> Path:
    index(root, collection)
    return next((root / "report").rglob("*#1.WAV.html"))


def index(root: Path, collection: Path) -> Path:
    found, model = made(root)
    reference = pd.DataFrame(TRUE, columns=["onset", "offset", "label"])
    reference = reference.assign(file=found.recordings.file[0], score=float("nan"))
    return detect_report.write(found, model, root / "report", reference=reference)


def without_model(root: Path, collection: Path) -> Path:
    found, _ = made(root)  # events of another program
    detect_report.write(found, None, root / "report")
    return next((root / "report").rglob("*#1.WAV.html"))


def training(root: Path, collection: Path) -> Path:
    return write_report(train(tiny(collection, root / "out")))


def files(root: Path, collection: Path) -> Path:
    sizes = {"model": "sincnet", "n_filters": 6, "hidden_units": [8], "epochs": 1}
    return write_report(train(tiny(collection, root / "out", mode="file", task="context", **sizes)))


def tables(root: Path) -> list[str]:
    """Files of a reference and of two that found something, one of them in a name of many letters."""
    written = []
    for name, shift in (("truth", 0), ("one", 0.05), ("other", 0.4)):
        file = str(root / "recordings_of_a_long_season_beside_the_river" / "20260101_210000.wav")
        folder = root / name
        folder.mkdir()
        rows = [(file, i + shift, i + shift + 0.3, "a species of bat", 0.5) for i in range(4)]
        table = pd.DataFrame(rows, columns=["file", "onset", "offset", "label", "score"])
        table.to_csv(folder / "events.csv", index=False)
        pd.DataFrame({"file": [file], "duration": 5.0}).to_csv(folder / "recordings.csv", index=False)
        written.append(str(folder / "events.csv"))
    Path(file).parent.mkdir()
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 80_000), 16_000)
    return written


def evaluate(root: Path, collection: Path) -> Path:
    truth, one, _ = tables(root)
    assert command.main(["evaluate", "--reference", truth, "--estimated", one, "--output", str(root / "scores")]) == 0
    return next((root / "scores").glob("*.html"))


def compare(root: Path, collection: Path) -> Path:
    truth, *others = tables(root)
    assert command.main(["compare", "--reference", truth, "--estimated", *others, "--output", str(root / "both")]) == 0
    return root / "both" / "comparison.html"


def season(root: Path, collection: Path) -> Path:
    folder = results(root / "detections")
    assert command.main(["report", str(folder)]) == 0
    return folder / "season.html"


def site(root: Path, collection: Path) -> Path:
    if find_spec("furo") is None or find_spec("myst_nb") is None:
        pytest.skip("the docs extra is not installed")
    words = [sys.executable, "-m", "sphinx", "-q", "-b", "html", ROOT / "docs", root / "site"]
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
    return root / "site" / "index.html"


def demo(root: Path, collection: Path) -> Path:
    return ROOT / "docs" / "demo.html"


# What a person can press or fill in, where it can be seen.
CONTROLS = """[...document.querySelectorAll('button, a[href], input, select, textarea, summary, audio[controls], [tabindex="0"]')]
  .filter(e => !e.disabled && e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length)"""
AXE = "axe.run({resultTypes: ['violations']}).then(found => found.violations.map(v => [v.impact, v.id, v.nodes.length, " \
      "v.nodes[0].html.slice(0, 200), v.nodes[0].failureSummary]))"


def tab_through(browser) -> set[int]:
    """The controls that the Tab key comes to, by their number in CONTROLS."""
    number = browser.js(f"window.controls = {CONTROLS}; document.activeElement.blur(); window.scrollTo(0, 0); controls.length")
    reached, presses = set(), 2 * number + 20  # an audio element has several stops
    while len(reached) < number and (presses := presses - 1):
        browser("Input.dispatchKeyEvent", type="rawKeyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached |= {browser.js("controls.indexOf(document.activeElement)")} - {-1}
    return reached


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_on_every_screen(browser, axe, collection, tmp_path, name):
    page = globals()[name](tmp_path, collection)
    problems = []
    for scheme in ("light", "dark"):
        browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for width in WIDTHS:
            where = f"{name}, {width} pixels, {scheme}"
            browser.complaints.clear()
            browser.open(page, width=width, height=900)
            browser.js("Promise.all([...document.images].map(i => i.loading === 'lazy' || i.decode()))")
            if browser.js("document.getElementById('data') !== null"):
                browser.wait("document.body.dataset.ready")
            if (wide := browser.js("document.documentElement.scrollWidth")) > width:
                problems.append(f"{where}: is {wide} pixels wide")
            browser.js(axe + "; 0")
            problems += [f"{where}: {' '.join(map(str, found))}" for found in browser.js(AXE) if found[0] in SERIOUS]
            if scheme == "light":
                missed = set(range(browser.js(f"{CONTROLS}.length"))) - tab_through(browser)
                named = [browser.js(f"controls[{i}].outerHTML.slice(0, 120)") for i in missed]
                problems += [f"{where}: Tab does not come to {control}" for control in named]
            own = [one for one in browser.complaints if not (name == "site" and str(one).startswith("file:"))]
            problems += [f"{where}: {one}" for one in own]
    assert not problems, "\n".join(problems)


def test_the_contract_tells_a_bad_page(browser, axe, tmp_path):
    page = tmp_path / "bad.html"
    bad = "<div style='width: 900px'>wide</div><button tabindex='-1'></button><script>x()</script>"
    page.write_text(f"<!DOCTYPE html><title>x</title>{bad}")
    browser.complaints.clear()
    browser.open(page, width=390)
    assert browser.js("document.documentElement.scrollWidth") > 390
    browser.js(axe + "; 0")
    assert "button-name" in [found[1] for found in browser.js(AXE)]
    assert browser.js(f"{CONTROLS}.length") == 1 and tab_through(browser) == set()
    assert browser.complaints
    browser.complaints.clear()
