"""Make docs/demo.html, a page of a generated recording that needs no other file, and the picture of it in README.

    python docs/make_demo.py [FOLDER]

FOLDER is where demo.html and review_page.png are written to (docs). It takes a minute: recordings are generated, a small model
learns on them, and finds the calls of a recording that it has not seen. The picture needs Chromium.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from denet_torch.detection import event_table
from denet_torch.files import replacing
from tools import detect_batch, detect_report
from training import report
from training.config import Config
from training.loop import Result, train
from training.synthetic import SAMPLERATE, make_dataset, make_recording

SIZES = dict(n_filters=8, gru_units=32, dense_units=[32, 16], epochs=4, epoch_windows=240, learning_rate=2e-3)
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WINDOW = (1100, 860)
COLOURS = 96
SEED = 0  # of the recording
STYLE = """<style>
  .panels { display: flex; flex-wrap: wrap; gap: .5rem; } .panels img { max-width: 100%; height: auto; }
  .scroll { overflow-x: auto; } .note { color: var(--quiet); } h2 { font-size: 1.1rem; }
  @media (prefers-color-scheme: dark) { .panels img, .scroll img { filter: invert(1) hue-rotate(180deg); } }
</style>"""


def learn(folder: Path) -> Result:
    """A small model that learned on generated recordings in `folder`."""
    make_dataset(folder / "data", recordings=32, seed=0, max_seconds=2, snr_db=(15, 20))
    return train(Config(data_dir=folder / "data", out=folder / "run", report=False, accelerator="cpu", **SIZES))


def review_page(folder: Path) -> dict:
    """What the page of a recording shows that the model of `learn` has not seen."""
    path = folder / "generated.wav"
    sound, calls = make_recording(np.random.default_rng(SEED), 6 * SAMPLERATE, snr_db=(15, 20))
    soundfile.write(path, sound, SAMPLERATE)
    truth = event_table([(str(path), call.start / SAMPLERATE, call.stop / SAMPLERATE, "call", 1.0) for call in calls])
    job = detect_batch.Job(folder / "run" / "weights.safetensors", folder / "found")
    results = detect_batch.run(job, [path])
    detect_report.write(results, detect_batch.load_model(job), folder / "report", reference=truth)
    text = (folder / "report" / "generated.wav.html").read_text("utf-8")
    page = json.loads(re.search(r'json">(.*)</script>', text)[1])
    return page | {"file": path.name, "index": None}


def demo(page: dict, result: Result) -> str:
    """The review page with a word before it and the figures of the run after it."""
    f1 = result.test["frames"]["f1"]
    recordings = len(result.data.collection.recordings)
    before = (
        "<p>Calls that DENet found in a generated recording. Play them, accept or reject them, draw the frequencies that you "
        "like: <code>denet detect --report</code> makes such a page for each of your recordings. This model is a small one: it "
        f"learned on {recordings} generated recordings, and has a frame F1 of {f1:.2f} on those that it was tested on. "
        "<code>python docs/make_demo.py</code> makes this page, one file without any other.</p>\n"
    )
    text, figures = detect_report.render(page), "\n".join(report.figures(result))
    for mark, new in (("<main>", before + "<main>"), ("</main>", f"{STYLE}\n{figures}\n</main>")):
        assert text.count(mark) == 1
        text = text.replace(mark, new)
    return text


def photograph(page: Path, picture: Path) -> None:
    """A picture of a page, in few colours. Raises RuntimeError without Chromium."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise RuntimeError("no Chromium on this machine (apt-get install chromium)")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    flags += [f"--window-size={WINDOW[0]},{WINDOW[1]}", f"--screenshot={picture}", "--disable-dev-shm-usage"]
    with tempfile.TemporaryDirectory() as profile:  # of its own: another browser may be at work
        subprocess.run([browser, *flags, f"--user-data-dir={profile}", page.as_uri()], check=True, capture_output=True)
    Image.open(picture).convert("RGB").quantize(COLOURS).save(picture, optimize=True)


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    output = Path(arguments[0] if arguments else Path(__file__).parent)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        result = learn(Path(scratch))
        page = review_page(Path(scratch))
        with replacing(output / "demo.html") as file:
            file.write_text(demo(page, result), encoding="utf-8")
        review = Path(scratch) / "review.html"
        review.write_text(detect_report.render(page), encoding="utf-8")
        try:
            photograph(review, output / "review_page.png")
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    print(f"wrote {output / 'demo.html'} and {output / 'review_page.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
