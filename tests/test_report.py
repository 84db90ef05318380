"""The report of a run: whole, self-contained, and without an error in a browser's console."""

import base64
import io
import re
import subprocess

import numpy as np
import pytest
import soundfile
from test_detect_report import CHROMIUM, headless
from trainer_cases import tiny

from training.loop import train
from training.report import write_report


@pytest.fixture(scope="module")
def result(collection, tmp_path_factory):
    return train(tiny(collection, tmp_path_factory.mktemp("run") / "out"))


@pytest.fixture(scope="module")
def page(result):
    return write_report(result)


def test_report_has_everything_inside(page, result):
    text = page.read_text()
    for heading in (
        "Course", "Precision and recall", "Confusion", "Sinc filters", "Attention per band",
        "Best recordings", "Worst recordings", "Configuration",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in text
    assert not re.search(r'(src|href)="(?!data:)', text) and "url(" not in text and "<script" not in text
    examples = len(re.findall("<audio ", text))
    recordings = len(result.data.test.recordings)
    assert min(10, recordings) < examples <= 2 * min(10, recordings)
    for value in (result.test["frames"]["roc_auc"], result.test["rates"]["miss_rate"]):
        assert f'<td class="number">{value:.3f}</td>' in text
    assert "learning_rate: 0.001" in text


def test_sound_is_an_excerpt_slowed_down(page, result):
    sound = re.search(r'src="data:audio/flac;base64,([^"]+)"', page.read_text())[1]
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
    assert rate == 25_000 and len(wave) == 250_000  # a second at 250 kHz takes ten
    assert np.abs(wave).max() == pytest.approx(0.9, abs=0.01)


def test_other_tasks_have_a_report(collection, tmp_path):
    text = write_report(train(tiny(collection, tmp_path / "out", task="context", epochs=1))).read_text()
    assert "macro f1" in text and "Worst recordings" in text


def console(page, profile) -> list[str]:
    """What a browser's console says of a page, and whether it drew its end."""
    command = [CHROMIUM, *headless(profile), "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "</html>" in done.stdout
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_browser_shows_it_without_an_error(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<html><body><script>console.error('seen')</script></body></html>")
    assert "seen" in console(broken, tmp_path / "profile")[0]
    assert console(page, tmp_path / "profile") == []
