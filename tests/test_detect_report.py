"""The report's pages in headless Chromium: what is shown, what keys and clicks do, and what is saved."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from denet_torch import get_denet
from denet_torch.detection import Decoding, event_table
from tools import detect_report, event_formats, scores
from tools.detect_batch import Part, Results
from training.synthetic import SAMPLERATE, make_recording

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
RATE, SECONDS = 48_000, 4.02
PATIENCE = 300  # s, for a browser on a busy machine
NAME = "</script><b> ü's #1.WAV"  # what a path may hold
FOUND = [(0.5, 0.7, "call", 0.9), (1.55, 1.6, "call", 0.6), (3.9, 4.02, "bat, 7", 0.8)]
TRUE = [(0.48, 0.7, "call"), (2.0, 2.2, "call")]


def headless(profile) -> list[str]:
    """Options of Chromium: also as root, in a container without shared memory, beside others with profiles of their own."""
    return ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]


def downloaded(folder, name: str) -> Path:
    """The file of such a name, once it is there and holds something."""
    end = time.monotonic() + PATIENCE
    while not (found := [path for path in folder.glob(name) if path.stat().st_size]):
        assert time.monotonic() < end, f"no {name} was saved"
        time.sleep(0.05)
    return found[0]


class Browser:
    """A page in headless Chromium, driven through the DevTools protocol on a pipe."""

    def __init__(self, downloads):
        (read, its_write), (its_read, write) = os.pipe(), os.pipe()
        flags = [*headless(downloads / "profile"), "--remote-debugging-pipe", "--no-first-run"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{its_read} 4>&{its_write}', CHROMIUM, *flags, "about:blank"],
            pass_fds=(its_read, its_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(its_read), os.close(its_write)
        self.reader, self.writer = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self.pending, self.count, self.session, self.complaints = b"", 0, None, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        self("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def __call__(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while (answer := self.receive()).get("id") != self.count:
            what = answer.get("method")
            problem = answer.get("params", {})
            if what == "Runtime.exceptionThrown":
                self.complaints.append(problem["exceptionDetails"])
            if what == "Log.entryAdded" and problem["entry"]["level"] in ("error", "warning"):
                self.complaints.append(problem["entry"])
            if what == "Runtime.consoleAPICalled":
                self.complaints.append(problem["args"])
            if what == "Network.requestWillBeSent" and problem["type"] != "Document":
                url = problem["request"]["url"]
                if not url.startswith(("data:", "blob:")):  # a page needs nothing but itself
                    self.complaints.append(url)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self):
        while b"\0" not in self.pending:
            chunk = os.read(self.reader.fileno(), 1 << 20)
            assert chunk, "Chromium ended"
            self.pending += chunk
        message, _, self.pending = self.pending.partition(b"\0")
        return json.loads(message)

    def js(self, expression):
        how = dict(returnByValue=True, awaitPromise=True, userGesture=True)
        answer = self("Runtime.evaluate", expression=expression, **how)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path, width=1280, height=1000):
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self("Emulation.setDeviceMetricsOverride", **size)
        self("Page.navigate", url="file://" + urllib.parse.quote(str(path)))
        self.wait("document.readyState === 'complete'")

    def wait(self, condition):
        end = time.monotonic() + PATIENCE
        while not self.js(f"Boolean({condition})"):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def press(self, *keys):
        for key in keys:
            text = dict(text=key) if len(key) == 1 else {}
            self("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector):
        self.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.js(f"(b => [b.x + b.width / 2, b.y + b.height / 2])"
                      f"(document.querySelector({selector!r}).getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            at = dict(x=box[0], y=box[1], button="left", clickCount=1)
            self("Input.dispatchMouseEvent", type=kind, **at)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.reader.close(), self.writer.close()


def made(root):
    """Results for a recording with three events and one without any, and a model."""
    model = get_denet((4, 800), 3, n_filters=6, gru_units=4, dense_units=(4, 4)).eval()
    rng = np.random.default_rng(0)
    paths, parts, rows = [root / "in" / NAME, root / "in" / "sub" / "quiet.wav"], {}, []
    for path, found in zip(paths, (FOUND, []), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        t = np.arange(round(SECONDS * RATE)) / RATE
        sound = rng.normal(0, 0.01, len(t))
        for onset, offset, *_ in found:
            sound += 0.5 * np.sin(2 * np.pi * 12_000 * t) * ((onset <= t) & (t < offset))
        soundfile.write(path, sound, RATE)
        np.save(root / f"{path.stem}.npy", np.full((81, 3), 0.05, np.float32))
        parts[path] = [Part(path, 0, 81, root / f"{path.stem}.npy")]
        rows.append((str(path), SECONDS, RATE, len(found)))
    results = Results(
        event_table([(str(paths[0]), *event) for event in FOUND]),
        pd.DataFrame(rows, columns=["file", "duration", "samplerate", "events"]),
        {Path("bad.wav"): "bad.wav: is <empty>"},
        parts,
        ["background", "call", "bat, 7"],
        0.05,
        Decoding(0.55, 0.3),
        0.1,
    )
    return results, model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    results, model = made(root)
    reference = pd.DataFrame(TRUE, columns=["onset", "offset", "label"])
    reference = reference.assign(file=results.recordings.file[0], score=float("nan"))
    detect_report.write(results, model, root / "report", reference=reference)
    return root / "report"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    browser = Browser(tmp_path_factory.mktemp("downloads"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, folder):
    """The page of the recording with events, as it was first opened."""
    path = next(folder.rglob("*#1.WAV.html"))
    browser.open(path)
    browser.js("localStorage.clear()")
    browser.complaints.clear()
    browser.open(path)
    browser.wait("document.body.dataset.ready")
    yield browser
    assert browser.complaints == []


def table(page):
    rows = "[...document.querySelectorAll('#list tr')].map(r => [...r.cells].map(c => " \
           "c.querySelector('input') ? c.querySelector('input').value : c.textContent))"
    return [row[:6] for row in page.js(rows)]


def chosen(page):
    return page.js("[...document.querySelectorAll('#list tr')].findIndex(r => r.matches('.chosen'))")


def test_a_long_recording_has_several_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(detect_report, "PAGE_SECONDS", 1.52)
    results, model = made(tmp_path)
    detect_report.write(results, model, tmp_path / "report")
    pages = sorted((tmp_path / "report").rglob("*#1.WAV*.html"), key=lambda p: (len(p.name), p))
    assert [path.name.partition(".WAV")[2] for path in pages] == [".html", ".2.html", ".3.html"]
    data = [json.loads(re.search(r'json">(.*)</script>', path.read_text("utf-8"))[1]) for path in pages]
    assert [page["start"] for page in data] == [0, 1.5, 3.0]
    assert sum(page["duration"] for page in data) == pytest.approx(SECONDS)
    assert [len(page["probabilities"]) for page in data] == [30, 30, 21]
    assert [[e["onset"] for e in page["events"]] for page in data] == [[0.5], [1.55], [3.9]]
    links = [(page["previous"], page["next"]) for page in data]
    assert links[1] == tuple(urllib.parse.quote(pages[i].name) for i in (0, 2))
    assert links[0][0] is links[2][1] is None


def test_shows_what_was_found(page):
    assert page.js("document.title").endswith("ü's #1.WAV")
    assert table(page) == [
        [str(i), f"{onset:.3f}", f"{offset:.3f}", label, f"{score:.3f}", "undecided"]
        for i, (onset, offset, label, score) in enumerate(FOUND, 1)
    ]
    lane = page.js("document.querySelector('.lane.events').getBoundingClientRect().width")
    bars = page.js("[...document.querySelectorAll('.events span:not(.reference)')].map(b => [b.offsetLeft, b.offsetWidth])")
    for (left, width), (onset, offset, *_) in zip(bars, FOUND, strict=True):
        assert left == pytest.approx(onset / SECONDS * lane, abs=1.5)
        assert width == pytest.approx((offset - onset) / SECONDS * lane, abs=1.5)
    reference = "[...document.querySelectorAll('.reference')].map(s => s.title)"
    assert page.js(reference) == [f"{c} {a:.3f} to {b:.3f} s" for a, b, c in TRUE]
    kHz = page.js("[...document.querySelectorAll('.axis.spectrogram span')].map(s => s.textContent)")
    assert kHz == ["0 kHz", "5 kHz", "10 kHz", "15 kHz", "20 kHz"]
    pictures = "[...document.querySelectorAll('img')].map(i => [i.naturalWidth, i.naturalHeight])"
    assert page.js(pictures) == [[81, 6]]  # frames and bands


def test_the_spectrogram_is_dark_where_the_tone_is(page):
    """A tone of 12 kHz at 0.5 to 0.7 s, on an axis that ends at 24 kHz."""
    dark = page.js("""(() => {
      const canvas = document.querySelector('.lane.spectrogram canvas');
      const grey = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      const at = (t, kHz) => grey[4 * (Math.floor((1 - kHz / 24) * canvas.height) * canvas.width
                                       + Math.floor(t / data.duration * canvas.width))];
      return [at(.6, 12), at(.6, 6), at(.6, 18), at(1.2, 12)];
    })()""")
    assert dark[0] < 60 and min(dark[1:]) > dark[0] + 80


def grey_at(page, seconds, kHz):
    """Shade of the drawn spectrogram, 0 black."""
    return page.js(f"""(() => {{
      const canvas = document.querySelector('.lane.spectrogram canvas'), [low, high] = band();
      const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {{willReadFrequently: true}});
      pen.drawImage(canvas, 0, 0);
      const x = Math.floor({seconds} / data.duration * canvas.width);
      const y = Math.floor((high - {kHz}) / (high - low) * canvas.height);
      return pen.getImageData(x, y, 1, 1).data[0];
    }})()""")


def fill(page, name, value):
    page.js(f"$('{name}').value = {value}; for (const what of ['input', 'change']) $('{name}').dispatchEvent(new Event(what))")


def test_the_frequency_range_is_chosen(page):
    whole = page.js("levels.height")
    fill(page, "low", 10)
    fill(page, "high", 14)
    assert page.js("levels.height") == pytest.approx(whole * 4 / 24, abs=1)
    ticks = page.js("[...document.querySelectorAll('.axis.spectrogram span')].map(s => s.textContent)")
    assert ticks == ["10 kHz", "11 kHz", "12 kHz", "13 kHz", "14 kHz"]
    assert grey_at(page, 0.6, 12) < 60 and grey_at(page, 0.6, 10.5) > 140
    fill(page, "high", 3)  # below the other end
    low, high = page.js("band()")
    assert low == 10 and 10 < high < 11
    fill(page, "high", "''")
    assert page.js("band()") == [10, 24]


def test_contrast_and_gain_change_what_is_seen_and_gain_what_is_heard(page):
    fill(page, "range", 40)
    noise, tone = grey_at(page, 1.2, 6), grey_at(page, 0.6, 12)
    fill(page, "range", 10)
    assert grey_at(page, 1.2, 6) == 255 and grey_at(page, 0.6, 12) <= tone + 80
    fill(page, "range", page.js("$('range').max"))
    fill(page, "gain", 20)
    assert grey_at(page, 1.2, 6) < noise and "20 dB" in page.js("$('gain-told').textContent")
    heard = "fetch(audio.src).then(a => a.arrayBuffer()).then(b => [...new Int16Array(b, 44)].slice(48000, 62000)" \
            ".reduce((sum, v) => sum + v * v, 0))"
    loud = page.js(heard)
    fill(page, "gain", 0)
    assert loud / page.js(heard) == pytest.approx(100, rel=0.05)


def test_the_cursor_reads_time_frequency_and_level(page):
    box = page.js("(r => [r.x, r.y, r.width, r.height])(levels.getBoundingClientRect())")
    at = dict(x=box[0] + box[2] * 0.6 / SECONDS, y=box[1] + box[3] / 2)  # the tone, which has half of full scale
    page("Input.dispatchMouseEvent", type="mouseMoved", **at)
    read = re.fullmatch(r"([\d.]+) s, ([\d.]+) kHz, (-\d+) dB of full scale, call 0.10", page.js("$('cursor').textContent"))
    assert float(read[1]) == pytest.approx(0.6, abs=0.01) and float(read[2]) == pytest.approx(12, abs=0.1)
    assert float(read[3]) == pytest.approx(20 * np.log10(0.5), abs=3)


def test_every_key_has_a_button(page):
    buttons = page.js("[...document.querySelectorAll('[data-key]')].map(b => b.dataset.key)")
    assert sorted(buttons) == sorted(page.js("Object.keys(keys)"))
    page.click("[data-key=ArrowRight]")
    page.click("[data-key=r]")
    page.click("[data-key='4']")
    assert chosen(page) == 0 and table(page)[0][5] == "rejected" and table(page)[0][2] == "0.705"
    page.click("#undo")
    page.click("#undo")
    assert table(page)[0][5] == "undecided"


def test_the_lanes_are_explained(page):
    names = {name for name in page.js("[...document.querySelectorAll('.axis b')].map(b => b.textContent)") if name}
    assert names < set(page.js("[...document.querySelectorAll('dt')].map(d => d.textContent)"))


def test_sound_lies_where_it_was_and_is_striped_where_it_was_not_kept(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(detect_report, "AROUND", 0.2)
    results, model = made(tmp_path)
    detect_report.write(results, model, tmp_path / "report")
    browser.complaints.clear()
    browser.open(next((tmp_path / "report").rglob("*#1.WAV.html")))
    browser.wait("document.body.dataset.ready")
    kept = [[0.3, 0.9], [1.35, 1.8], [3.7, 4.02]]
    assert browser.js("data.sound.map(([first, last]) => [first, last])") == [[round(t * RATE) for t in part] for part in kept]
    sound = np.array(browser.js("[...samples]"))
    true, _ = soundfile.read(results.recordings.file[0])
    true /= np.abs(true).max()
    for first, last in kept:
        part = slice(round(first * RATE), round(last * RATE))
        lags = np.correlate(true[part], sound[part][200:-200])
        assert lags.argmax() == pytest.approx(200, abs=2)  # samples
        assert np.corrcoef(true[part], sound[part])[0, 1] > 0.9
    assert not sound[round(1.0 * RATE) : round(1.3 * RATE)].any()
    stripes = browser.js("[...document.querySelectorAll('.silent')].map(s => parseFloat(s.style.left))")
    assert sorted(left / 100 * SECONDS for left in stripes) == pytest.approx([0, 0.9, 1.8], abs=1e-3)
    assert browser.complaints == []


def size_of_an_hour(root, sounds):
    """Bytes of the pages of an hour of recordings like `sounds`: samples at 250 kHz, and onset and offset (s) of their events."""
    model = get_denet((4, 800), 2, n_filters=64, gru_units=4, dense_units=(4, 4)).eval()
    rows, events, parts = [], [], {}
    for i, (sound, calls) in enumerate(sounds):
        path = root / f"{i}.wav"
        soundfile.write(path, sound, SAMPLERATE)
        frames = -(-len(sound) // (SAMPLERATE // 20))
        np.save(path.with_suffix(".npy"), np.random.default_rng(i).random((frames, 2), np.float32))
        parts[path] = [Part(path, 0, frames, path.with_suffix(".npy"))]
        rows.append((str(path), len(sound) / SAMPLERATE, SAMPLERATE, len(calls)))
        events += [(str(path), *call, "call", 0.5) for call in calls]
    recordings = pd.DataFrame(rows, columns=["file", "duration", "samplerate", "events"])
    results = Results(event_table(events), recordings, {}, parts, ["background", "call"], 0.05, Decoding(0.5), 0.1)
    detect_report.write(results, model, root / "report")
    size = sum(path.stat().st_size for path in (root / "report").rglob("*.html"))
    return size * 3600 / recordings.duration.sum()


def test_an_hour_at_250_kHz_has_at_most_100_MB(tmp_path, capsys):
    rng = np.random.default_rng(0)
    sound, calls = make_recording(rng, 20 * SAMPLERATE)
    calls = [(call.start / SAMPLERATE, call.stop / SAMPLERATE) for call in calls]
    assert len(calls) >= 9
    noise = rng.normal(0, 0.1, 20 * SAMPLERATE)
    hours = {}
    for name, one in {f"{len(calls)} calls in 20 s": (sound, calls), "all call, white noise": (noise, [(0.0, 20.0)])}.items():
        (tmp_path / name).mkdir()
        hours[name] = size_of_an_hour(tmp_path / name, [one])
    with capsys.disabled():
        print("\npages of an hour at 250 kHz:", "; ".join(f"{name} {size / 1e6:.0f} MB" for name, size in hours.items()))
    assert 1e6 < max(hours.values()) <= 100e6


def test_keys_step_and_judge(page):
    assert chosen(page) == -1
    page.press("ArrowRight")
    assert chosen(page) == 0 and "event 1 of 3" in page.js("$('state').textContent")
    page.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert chosen(page) == 2
    page.press("ArrowLeft", "r")
    assert chosen(page) == 1
    page.press("ArrowLeft", "a")
    assert [row[5] for row in table(page)] == ["accepted", "rejected", "undecided"]
    page.press("u")
    assert [row[5] for row in table(page)] == ["undecided", "rejected", "undecided"]


def test_clicks_choose_and_judge(page):
    page.click("#list tr:nth-child(2) td")
    assert chosen(page) == 1
    page.click(".events span:nth-child(3)")
    assert chosen(page) == 2
    page.click("#list tr:nth-child(1) button:last-child")
    assert chosen(page) == 0 and table(page)[0][5] == "rejected"
    x = page.js("(r => r.x + r.width * 1.57 / data.duration)($('lanes').getBoundingClientRect())")
    y = page.js("(r => r.y + 50)(document.querySelector('.lane.spectrogram canvas').getBoundingClientRect())")
    for kind in ("mousePressed", "mouseReleased"):
        page("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert chosen(page) == 1


def relabel(page, text):
    page.press("l")
    page("Input.insertText", text=text)
    page.press("Enter")


def test_relabel_by_keyboard_and_keys_do_nothing_else_meanwhile(page):
    page.press("ArrowRight")
    relabel(page, "ra")
    page.press("ArrowRight", "a")
    assert [row[3] for row in table(page)] == ["ra", "call", "bat, 7"]
    assert [row[5] for row in table(page)] == ["undecided", "accepted", "undecided"]
    relabel(page, " ")  # an empty label leaves it as it was
    assert table(page)[1][3] == "call"


def test_the_saved_list_is_what_is_shown(page, tmp_path):
    page("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.press("ArrowRight", "a", "ArrowRight", "r", "ArrowRight")
    relabel(page, 'a "new", one')
    page.press("s")
    saved = downloaded(tmp_path, "*.csv")
    assert saved.name.endswith(".corrected.csv")
    result = pd.read_csv(saved, keep_default_na=False)
    assert list(result.columns) == ["file", "onset", "offset", "label", "score", "review"]
    shown = [row for row in table(page) if row[5] != "rejected"]
    assert result.file.tolist() == [page.js("data.file")] * 2
    assert [f"{x:.3f}" for x in result.onset] == [row[1] for row in shown]
    assert [f"{x:.3f}" for x in result.offset] == [row[2] for row in shown]
    assert result.label.tolist() == [row[3] for row in shown] == ["call", 'a "new", one']
    assert [f"{x:.3f}" for x in result.score] == [row[4] for row in shown]
    assert result.review.tolist() == ["accepted", ""]


def test_decisions_outlast_a_reload(page):
    page.press("ArrowRight", "r")
    relabel(page, "x")
    page("Page.navigate", url=page.js("location.href"))
    page.wait("document.body?.dataset.ready")
    assert table(page)[0][3] == "x" and table(page)[0][5] == "rejected"


def test_sound_is_slowed_down(page):
    for factor in (1, 5, 10):
        page.js(f"$('expansion').value = {factor}; setExpansion()")
        page.wait("$('audio').readyState >= 1")
        assert page.js("$('audio').duration") == pytest.approx(SECONDS * factor, rel=1e-3)


def test_space_plays_the_event_and_stops_after_it(page):
    page.js("$('expansion').value = 1; setExpansion()")
    page.wait("$('audio').readyState >= 2")
    page.js("$('audio').addEventListener('playing', () => { window.played = true; })")  # it may be over when it is asked for
    page.press("ArrowRight", " ")
    page.wait("window.played && $('audio').paused")
    # Behind the event's end as much as a busy machine draws late; what is not stopped plays to the end.
    assert 0.7 <= page.js("$('audio').currentTime") < SECONDS and not page.js("$('audio').ended")


def test_zoom_keeps_the_event_in_sight(page):
    page.press("ArrowRight", "ArrowRight", "+", "+")
    ratio = page.js("$('lanes').clientWidth / $('scroll').clientWidth")
    assert ratio == pytest.approx(4, rel=0.01)
    bar, view = (page.js(f"(r => [r.left, r.right])({what}.getBoundingClientRect())")
                 for what in ("document.querySelectorAll('.events span:not(.reference)')[1]", "$('scroll')"))
    assert view[0] <= bar[0] < bar[1] <= view[1]
    page.press("-", "-", "-")
    assert page.js("$('lanes').clientWidth / $('scroll').clientWidth") == pytest.approx(1, rel=0.01)


CONTRAST = """(() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!/, 0\\)$/.test(colour) && colour !== 'transparent') return colour;
    }
  };
  return [...document.querySelectorAll('h1, p, a, td, th, button, input, select, .axis span, .axis b, .time span, .reference')]
    .filter(e => e.textContent || e.value).map(e => {
      const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort();
      return [(b + .05) / (a + .05), e.outerHTML.slice(0, 80)];
    });
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["*#1.WAV.html", "index.html"])
def test_legible_in_light_and_dark(browser, folder, scheme, name):
    scheme = [{"name": "prefers-color-scheme", "value": scheme}]
    browser("Emulation.setEmulatedMedia", features=scheme)
    browser.open(next(folder.rglob(name)))
    ratios = browser.js(CONTRAST)
    assert len(ratios) > 5
    assert min(ratio for ratio, _ in ratios) >= 4.5, min(ratios)


def test_the_index_leads_to_every_recording(browser, folder):
    browser.complaints.clear()
    browser.open(folder / "index.html")
    assert "3 events in 2 recordings" in browser.js("document.body.textContent")
    assert "bad.wav: is <empty>" in browser.js("document.body.textContent")
    links = browser.js("[...document.querySelectorAll('a')].map(a => a.href)")
    assert len(links) == 2
    for link in links:
        browser.open(urllib.parse.unquote(link.removeprefix("file://")))
        browser.wait("document.body.dataset.ready")
        assert browser.js("document.querySelector('nav a').href") == f"file://{folder}/index.html"
    assert browser.js("$('state').textContent") == "no events"
    assert browser.complaints == []


def test_the_index_is_sorted_by_keyboard_and_counts_by_label(browser, folder):
    browser.complaints.clear()
    browser.open(folder / "index.html")
    heads = browser.js("[...document.querySelectorAll('th')].map(th => th.textContent)")
    assert heads == ["recording", "length (s)", "rate (kHz)", "found", "bat, 7", "call", "reference"]
    column = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[COLUMN].textContent)"
    assert browser.js(column.replace("COLUMN", "4")) == ["1", "0"] and browser.js(column.replace("COLUMN", "5")) == ["2", "0"]
    browser.js("document.querySelectorAll('th button')[3].focus()")
    browser("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    browser("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    assert browser.js(column.replace("COLUMN", "3")) == ["0", "3"]
    browser.js("document.querySelectorAll('th button')[3].click()")
    assert browser.js(column.replace("COLUMN", "3")) == ["3", "0"]
    assert browser.js("document.querySelectorAll('th')[3].getAttribute('aria-sort')") == "descending"
    assert browser.complaints == []


@pytest.mark.parametrize("width", [390, 800, 1400])
def test_no_page_of_tables_is_wider_than_the_window(browser, folder, tmp_path, width):
    names = [*scores.SCORES.values(), "file"]
    wide = pd.DataFrame({name: ["a/very/long/name/of/a/recording/20260101_120000.WAV"] * 3 for name in names})
    detect_report.write_tables_page(tmp_path / "scores.html", "Scores", "", wide.to_html(index=False))
    for page in (folder / "index.html", tmp_path / "scores.html"):
        browser.open(page, width=width)
        assert browser.js("document.documentElement.scrollWidth") <= width


def drag(page, start, stop):
    x = [page.js(f"(r => r.x + r.width * {t} / data.duration)($('lanes').getBoundingClientRect())") for t in (start, stop)]
    y = page.js("(r => r.y + 50)(document.querySelector('.lane.spectrogram canvas').getBoundingClientRect())")
    page("Input.dispatchMouseEvent", type="mousePressed", x=x[0], y=y, button="left", clickCount=1)
    page("Input.dispatchMouseEvent", type="mouseMoved", x=(x[0] + x[1]) / 2, y=y, button="left", buttons=1)
    page("Input.dispatchMouseEvent", type="mouseMoved", x=x[1], y=y, button="left", buttons=1)
    page("Input.dispatchMouseEvent", type="mouseReleased", x=x[1], y=y, button="left", clickCount=1)


def test_a_missed_call_is_added_by_dragging_its_edges_moved_and_all_undone(page, tmp_path):
    before = table(page)
    drag(page, 2.0, 2.2)
    rows = table(page)
    assert len(rows) == 4 and chosen(page) == 2
    assert float(rows[2][1]) == pytest.approx(2.0, abs=0.01) and float(rows[2][2]) == pytest.approx(2.2, abs=0.01)
    assert rows[2][4] == "" and rows[2][5] == "accepted"
    page.press("1", "1", "4")
    moved = table(page)[2]
    assert float(moved[1]) == pytest.approx(float(rows[2][1]) - 0.01, abs=0.0011)
    assert float(moved[2]) == pytest.approx(float(rows[2][2]) + 0.005, abs=0.0011)
    page.press("z", "z", "z")
    assert table(page) == rows
    page.press("z")
    assert table(page) == before and page.js("$('undo').disabled")


def test_a_call_is_added_by_keyboard_and_the_saved_list_is_read_by_evaluate(page, tmp_path):
    page("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.js("seek(2.5)")
    page.wait("Math.abs(audio.currentTime / audio.dataset.factor - 2.5) < .01")
    page.press("n")
    relabel(page, "chirp")
    page("Page.navigate", url=page.js("location.href"))  # what was added outlasts a reload
    page.wait("document.body?.dataset.ready")
    assert [row[3] for row in table(page)] == ["call", "call", "chirp", "bat, 7"]
    page.press("s")
    found = event_formats.read_events(downloaded(tmp_path, "*.csv"))
    assert found.label.tolist() == ["call", "call", "chirp", "bat, 7"]
    assert found.onset[2] == pytest.approx(2.5, abs=0.01) and np.isnan(found.score[2])


@pytest.mark.parametrize("width", [390, 800, 1400])
def test_a_recordings_page_is_not_wider_than_the_window(browser, folder, width):
    browser.complaints.clear()
    browser.open(next(folder.rglob("*#1.WAV.html")), width=width)
    browser.wait("document.body.dataset.ready")
    assert browser.js("document.documentElement.scrollWidth") <= width
    unnamed = "[...document.querySelectorAll('button, input, select, img')].filter(e => " \
              "!(e.textContent || e.alt || e.labels?.length || e.getAttribute('aria-label'))).length"
    assert browser.js(unnamed) == 0
    assert browser.complaints == []


def test_one_file_has_the_corrections_of_the_whole_season(page, folder, tmp_path):
    page("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.press("ArrowRight", "r")
    drag(page, 2.0, 2.2)
    page.open(next(folder.rglob("quiet.wav.html")))
    page.wait("document.body.dataset.ready")
    drag(page, 1.0, 1.5)
    page.open(folder / "index.html")
    page.js("document.getElementById('save-all').click()")
    saved = downloaded(tmp_path, "corrected.csv")
    assert "4 events; pages with decisions: 2 of 2" in page.js("document.getElementById('saved').textContent")
    found = event_formats.read_events(saved)
    assert [Path(file).name for file in found.file] == [Path(NAME).name] * 3 + ["quiet.wav"]
    assert found.onset.tolist() == pytest.approx([1.55, 2.0, 3.9, 1.0], abs=0.01)
    assert page.complaints == []


def test_events_with_frequencies_are_boxes_in_the_spectrogram(browser, tmp_path):
    """Of another program: no model, no probabilities, no scores."""
    results, _ = made(tmp_path)
    bands = {"score": float("nan"), "low_hz": [11_000.0, 6_000, float("nan")], "high_hz": [13_000.0, 9_000, float("nan")]}
    reference = pd.DataFrame(TRUE, columns=["onset", "offset", "label"]).assign(file=results.recordings.file[0])
    reference = reference.assign(low_hz=[11_500.0, float("nan")], high_hz=[12_500.0, float("nan")])
    other = replace(results, events=results.events.assign(**bands), parts={}, decoding=None)
    detect_report.write(other, None, tmp_path / "report", reference=reference)
    assert "3 events in 2 recordings, 8.0 s" in re.sub(r"\s+", " ", (tmp_path / "report" / "index.html").read_text("utf-8"))
    browser.complaints.clear()
    browser.open(next((tmp_path / "report").rglob("*#1.WAV.html")))
    browser.js("localStorage.clear()")
    browser.open(next((tmp_path / "report").rglob("*#1.WAV.html")))
    browser.wait("document.body.dataset.ready")
    place = "(r => [r.left, r.right, r.bottom, r.top])(ELEMENT.getBoundingClientRect())"
    lane = browser.js(place.replace("ELEMENT", "document.querySelector('.lane.spectrogram')"))
    found = "[...document.querySelectorAll('.box:not(.reference)')]"
    boxes = browser.js(f"{found}.map(b => b.hidden ? null : {place.replace('ELEMENT', 'b')})")
    assert boxes[2] is None and len(boxes) == 3
    for box, event in zip(boxes[:2], other.events.itertuples(), strict=False):
        shares = [event.onset / SECONDS, event.offset / SECONDS, event.low_hz / RATE * 2, event.high_hz / RATE * 2]
        ends = [lane[0] + (lane[1] - lane[0]) * share for share in shares[:2]]
        ends += [lane[2] - (lane[2] - lane[3]) * share for share in shares[2:]]
        assert box == pytest.approx(ends, abs=2)
    assert browser.js("document.querySelectorAll('.box.reference').length") == 1
    assert browser.js("document.querySelector('.lane.probability')") is None
    browser.press("ArrowRight", "r", "ArrowRight", "a", "4")
    assert browser.js(f"{found}.map(b => b.className)") == ["box rejected", "box accepted chosen", "box"]
    lines = browser.js("corrected()").splitlines()
    assert lines[0] == "file,onset,offset,label,score,review,low_hz,high_hz" and lines[1].endswith(",,accepted,6000,9000")
    assert lines[2].endswith(",,,,") and len(lines) == 3
    assert browser.complaints == []


def test_an_event_that_begins_with_a_page_is_on_it():
    """Where frames are no whole microseconds, an onset that is rounded down was on the page before, which ends there."""
    frame, length = 113 / 22_050, 11_707
    for page in range(1, 30):
        onset = round(page * length * frame, 6)
        events = event_table([("a.wav", onset, onset + 0.1, "call", 1.0)])
        found = [
            detect_report._within(events, first * length * frame, (first + 1) * length * frame, False, ["onset"])
            for first in (page - 1, page)
        ]
        assert found == [[], [{"onset": onset}]]
