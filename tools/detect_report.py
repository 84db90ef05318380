"""Web pages on which a person sees, hears and judges what was detected; each is one file that needs no other.

index.html lists the recordings. A recording's page shows its waveform, spectrogram, attention per band,
call probability, detected events and, if given, those of a reference; a long recording has several pages. Events with
frequencies are boxes in the spectrogram; where nothing tells call probabilities or attention, these are left out.
"""

import base64
import hashlib
import html
import io
import json
import math
import os
import string
import urllib.parse
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from PIL import Image
from tqdm import tqdm

import denet_torch
from denet_torch import audio
from denet_torch.files import fitting
from denet_torch.plotting import spectrogram
from tools.detect_batch import Results
from tools.event_formats import match_files
from training.collection import replacing
from training.options import counted

BAND = ["low_hz", "high_hz"]
PAGE_SECONDS = 60
PAGE_SAMPLES = 5_000_000  # that a browser holds: 20 s at 250 kHz
FACTORS = (1, 2, 5, 10, 20, 50)  # by which sound is slowed down
AUDIBLE = 48_000  # Hz; what has a higher rate is slowed down until it has not
AROUND = 2.0  # s of sound kept before and after an event, as it is played
# The sound kept is Opus: of all that browsers play it needs the fewest bytes. It knows these rates only, and is told the
# nearest one, whatever the recording's; so a second at 250 kHz is five to it.
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
OPUS_BITS = (6_000, 256_000)  # a second, of libsndfile's compression levels 1 and 0
SOUND_BITS = 50_000  # for a second of a page; what is kept of it shares them
KEPT_BITS = (16_000, 64_000)  # for a second as Opus has it: with fewer it drops the upper bands; more cannot be heard
PICTURE_BYTES = 7_000  # of the spectrogram, for a second of a page; noise needs more than calls and is drawn more coarsely
QUALITIES = (60, 40, 20, 5)  # of WebP
LEAST_RANGE = 40  # dB from white to black: without a call, noise is not black
TEMPLATES = Path(__file__).parent


def write(
    results: Results,
    model: denet_torch.Model | None,
    folder: Path,
    time_expansion: float = 1,
    reference: pd.DataFrame | None = None,
) -> Path:
    """Write the pages of `results` to `folder` and return the path of index.html.

    `model`: that found them; None for those of another program, which have no probabilities, and scores perhaps NaN.
    `reference`: events to show beside those found; their files are matched to the recordings' (see
    `event_formats.match_files`). A recording that cannot be read any more is added to `results.failures`. Raises ValueError.
    """
    if reference is not None:
        reference = match_files(reference, results.recordings.file)
    files = [os.path.abspath(file) for file in results.recordings.file]
    top = os.path.commonpath([os.path.dirname(file) for file in files])
    if model is not None and model.answers_with_boxes:
        model = None  # no frames to show
    pages, decisions = {}, []
    for row in tqdm(results.recordings.itertuples(), total=len(files), desc="report", unit="file"):
        name = os.path.relpath(os.path.abspath(row.file), top)
        try:
            pages[row.file], parts = _write_pages(results, model, folder, row, name, time_expansion, reference)
            decisions += parts
        except audio.AudioError as error:  # the others have their pages
            results.failures[Path(row.file)] = f"{error}; it has no page"
    _write_index(results, folder / "index.html", pages, reference, decisions)
    return folder / "index.html"


@torch.inference_mode()
def attention(model: denet_torch.Model, waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Attention weights (bands, frames) of a waveform at `model.sr`, and the bands' centres (Hz), ascending.

    None of a model that does not weigh bands.
    """
    frames = -(-len(waveform) // model.samples)
    padded = np.pad(waveform, (0, frames * model.samples - len(waveform)))
    x = torch.from_numpy(padded).view(1, frames, model.samples).to(next(model.parameters()))
    parts = [model.band_attention(part) for part in x.split(16, dim=1)]
    if parts[0] is None:
        return None
    weights = torch.cat(parts, dim=1)[0]
    low, high = model.pass_bands()
    centres = (low + high) / 2
    order = centres.argsort()
    return weights[:, order].T.float().cpu().numpy(), centres[order].cpu().numpy()


def _write_pages(
    results: Results,
    model: denet_torch.Model | None,
    folder: Path,
    row,
    name: str,
    time_expansion: float,
    reference: pd.DataFrame | None,
) -> tuple[list[str], list[dict]]:
    """Write the pages of the recording in `row` of `results.recordings`; their paths below `folder`, and of each what the index
    needs to save the decisions made there: id, file and events."""
    length = max(1, int(min(PAGE_SECONDS, PAGE_SAMPLES / row.samplerate) / results.frame))  # frames in a page
    call = None if model is None else results.probabilities(row.file)[:, 1:].sum(axis=1)
    frames = len(call) if call is not None else math.ceil(row.duration / results.frame - 1e-9)
    firsts = range(0, max(1, frames), length)
    parent, stem = os.path.split(name)
    paths = [os.path.join(parent, fitting(stem, ".html" if i == 0 else f".{i + 1}.html")) for i in range(len(firsts))]
    events = results.events[results.events.file == row.file]
    decisions = []
    for i, first in enumerate(firsts):
        last = i == len(firsts) - 1
        start = first * results.frame
        end = row.duration if last else start + length * results.frame
        page = {
            "file": row.file,
            "rate": row.samplerate,
            "start": start,
            "duration": end - start,
            "frame": results.frame,
            "threshold": results.decoding and results.decoding.threshold,
            "low_threshold": results.decoding and (results.decoding.low_threshold or results.decoding.threshold),
            "labels": results.labels[1:],
            "probabilities": None if call is None else call[first : first + length].round(4).tolist(),
            "events": _within(events, start, end, last, ["onset", "offset", "label", "score"]),
            "reference": None,
            "index": "../" * (len(Path(name).parts) - 1) + "index.html",
            "previous": _link(Path(paths[i - 1]).name) if i > 0 else None,
            "next": None if last else _link(Path(paths[i + 1]).name),
            "save_as": fitting(Path(paths[i]).stem, ".corrected.csv"),
        }
        if reference is not None:
            given = reference[reference.file == row.file]
            page["reference"] = _within(given, start, end, last, ["onset", "offset", "label"])
        page |= _sound(model, row, start, end, time_expansion, page["events"] + (page["reference"] or []))
        # What the browser keeps belongs to these events of this recording.
        page["id"] = hashlib.sha256(json.dumps([row.file, page["events"]]).encode()).hexdigest()
        decisions.append({name: page[name] for name in ("id", "file", "events")})
        with replacing(folder / paths[i]) as file:
            file.write_text(render(page), encoding="utf-8")
    return paths, decisions


def render(page: dict) -> str:
    """The page of a recording, from what it shows."""
    text = json.dumps(page, allow_nan=False).replace("<", "\\u003c")  # it cannot end the script element
    return (TEMPLATES / "detect_report.html").read_text(encoding="utf-8").replace("__DATA__", text)


def _sound(
    model: denet_torch.Model | None, row, start: float, end: float, time_expansion: float, calls: list[dict]
) -> dict:
    """Waveform, spectrogram, attention and the sound around `calls` of a recording from `start` to `end` (s), as in a page."""

    def part(rate: int) -> tuple[int, int]:
        return round(start * rate), round(end * rate) - round(start * rate)

    waveform = audio.read(row.file, *part(row.samplerate), time_expansion=time_expansion)
    columns = int(np.clip(250 * (end - start), 1200, 15_000))
    levels = spectrogram(waveform, row.samplerate, columns)
    floor = max(np.median(levels), levels.max() - 80)
    top = max(levels.max(), floor + LEAST_RANGE)
    peak = np.abs(waveform).max() or 1
    slower = next((factor for factor in FACTORS if row.samplerate / factor <= AUDIBLE), FACTORS[-1])
    stretches = _around(calls, start, row.samplerate, len(waveform), AROUND / slower)
    share = sum(last - first for first, last in stretches) / len(waveform)
    page = {
        "samples": len(waveform),
        "wave": _url("application/octet-stream", _envelope(waveform / peak, columns).tobytes()),
        "factors": FACTORS,
        "slower": slower,
        "sound": [
            (first, last, _url("audio/ogg", _compressed(waveform[first:last] / peak, row.samplerate, share)))
            for first, last in stretches
        ],
        "spectrogram": _picture(levels, floor, top, PICTURE_BYTES * (end - start)),
        "levels": [round(float(floor), 1), round(float(top), 1)],
        "attention": None,
    }
    found = None
    if model is not None:
        heard = audio.read(row.file, *part(model.sr), rate=model.sr, time_expansion=time_expansion)
        found = attention(model, heard)
    if found is not None:
        weights, centres = np.sqrt(found[0]), found[1]  # few bands have most of it
        marks = np.linspace(0, len(centres) - 1, 5).round().astype(int)
        page["attention"] = _picture(weights, weights.min(), weights.max())
        page["bands"] = [((k + 0.5) / len(centres), round(float(centres[k]) / 1000, 1)) for k in marks]
    return page


def _around(calls: list[dict], start: float, rate: int, samples: int, margin: float) -> list[tuple[int, int]]:
    """First and last sample of each stretch with calls and `margin` (s) on both sides, of a page that begins at `start`."""
    stretches = []
    for call in sorted(calls, key=lambda call: call["onset"]):
        first = max(0, round((call["onset"] - margin - start) * rate))
        last = min(samples, round((call["offset"] + margin - start) * rate))
        if stretches and first <= stretches[-1][1]:
            first, last = stretches[-1][0], max(last, stretches.pop()[1])
        stretches.append((first, last))
    return stretches


def _envelope(waveform: np.ndarray, columns: int) -> np.ndarray:
    """Least and largest sample of each column, (columns, 2), from -127 to 127 for -1 to 1."""
    starts = np.linspace(0, len(waveform), min(columns, len(waveform)), endpoint=False).astype(int)
    ends = [np.minimum.reduceat(waveform, starts), np.maximum.reduceat(waveform, starts)]
    return (np.stack(ends, axis=1) * 127).round().astype(np.int8)


def _compressed(waveform: np.ndarray, rate: int, share: float) -> bytes:
    """Opus, of as many bits as SOUND_BITS allow where this share of a page is kept."""
    told = min(OPUS_RATES, key=lambda one: abs(np.log(one / rate)))
    bits = np.clip(SOUND_BITS / share / (rate / told), *KEPT_BITS)
    level = 1 - (bits - OPUS_BITS[0]) / (OPUS_BITS[1] - OPUS_BITS[0])
    file = io.BytesIO()
    soundfile.write(file, 0.9 * waveform, told, format="OGG", subtype="OPUS", compression_level=level)
    return file.getvalue()


def _within(table: pd.DataFrame, start: float, end: float, last: bool, columns: list[str]) -> list[dict]:
    """Events that begin between `start` and `end`, or after `start` on the last page; those with frequencies have these too.

    A score that is not told is None.
    """
    start, end = round(start, 6), round(end, 6)  # as onsets are: one of the first frame may be rounded down
    inside = table[(table.onset >= start) & ((table.onset < end) | last)]
    records = inside[columns].astype(object).where(inside[columns].notna(), None).to_dict("records")
    if BAND[0] in inside:
        for record, band in zip(records, inside[BAND].to_numpy(float), strict=True):
            if np.isfinite(band).all():
                record |= dict(zip(BAND, band.round(1).tolist(), strict=True))
    return records


def _picture(values: np.ndarray, floor: float, top: float, size: float | None = None) -> str:
    """A picture with the first row at the bottom, white at `floor` and black at `top`; of at most `size` bytes if it can be."""
    grey = np.clip((values[::-1] - floor) / max(top - floor, 1e-12), 0, 1)
    picture = Image.fromarray((255 * (1 - grey)).round().astype(np.uint8))
    for quality in QUALITIES if size else (None,):
        file = io.BytesIO()
        picture.save(file, "webp", **({"quality": quality} if quality else {"lossless": True}))
        if not size or file.tell() <= size:
            break
    return _url("image/webp", file.getvalue())


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _link(path: str) -> str:
    return html.escape(urllib.parse.quote(Path(path).as_posix()), quote=True)


def _write_index(
    results: Results, path: Path, pages: dict[str, list[str]], reference: pd.DataFrame | None, decisions: list[dict]
) -> None:
    lines = []
    by_label = results.events.groupby(["file", "label"]).size()
    labels = sorted(results.events.label.unique()) if results.events.label.nunique() > 1 else []
    for row in results.recordings.itertuples():
        first, *more = map(_link, pages.get(row.file, [""]))
        links = f'<a href="{first}">{html.escape(row.file)}</a>' if first else html.escape(row.file)
        links += "".join(f' <a href="{page}">{i}</a>' for i, page in enumerate(more, 2))
        given = "" if reference is None else (reference.file == row.file).sum()
        counts = [by_label.get((row.file, label), 0) for label in labels]
        cells = (links, f"{row.duration:.2f}", f"{row.samplerate / 1000:g}", row.events, *counts, given)
        lines.append("    <tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    body = (
        "<table>\n<thead><tr><th>recording</th><th>length (s)</th><th>rate (kHz)</th><th>found</th>"
        + "".join(f"<th>{html.escape(label)}</th>" for label in labels)
        + "<th>reference</th></tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>\n"
    )
    listed = json.dumps(decisions, allow_nan=False).replace("<", "\\u003c")
    save = (TEMPLATES / "save_all.html").read_text(encoding="utf-8").replace("__DECISIONS__", listed)
    if results.failures:
        reasons = (f"<li>{html.escape(reason)}</li>\n" for reason in results.failures.values())
        body += f"<h2>Not searched</h2>\n<ul>\n{''.join(reasons)}</ul>"
    summary = f"{counted(len(results.events), 'event')} in {counted(len(results.recordings), 'recording')}, "
    summary += f"{results.recordings.duration.sum():.1f} s" + (f"; {results.decoding}" if results.decoding else "")
    write_tables_page(path, "Detected calls", summary, save + body)


def write_tables_page(path: Path, title: str, summary: str, body: str) -> None:
    """Write a page of tables; `body` is HTML."""
    template = string.Template((TEMPLATES / "tables_page.html").read_text(encoding="utf-8"))
    text = template.substitute(title=html.escape(title), summary=html.escape(summary), body=body)
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")
