"""report.html: what a run learned, to look at and to listen to, in one file that needs no network."""

import base64
import html
import io
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchmetrics.functional.classification as tm
from matplotlib.figure import Figure

from denet_torch import audio
from denet_torch.detection import Decoding

from .collection import replacing
from .evaluation import estimated_events, reference_events
from .files import ANSWERS, FileResult, described_move
from .labels import BACKGROUND, IGNORE
from .loop import Result
from .metrics import confusion, seen
from .runs import CONFIG

EXAMPLES = 10
EXCERPT = 1.0  # s of sound in an example: what is drawn and heard
AT_ONCE = 16  # frames whose attention is computed together: all of a long recording's bands would not fit into memory
AUDIBLE = 25_000  # Hz; recordings at higher rates are played at about this one
REFERENCE, ESTIMATE = "#1d6b2a", "#0b57a4"


def write_report(result: Result | FileResult) -> Path:
    """Write report.html to the run's folder."""
    sections = _of_files(result) if isinstance(result, FileResult) else _of_frames(result)
    sections.append(_section("Configuration", f"<pre>{html.escape((result.out / CONFIG).read_text())}</pre>"))
    template = string.Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    page = template.substitute(title=html.escape(f"Training run {result.out.name}"), body="\n".join(sections))
    path = result.out / "report.html"
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def figures(result: Result) -> list[str]:
    """Course, precision and recall, confusion and filters."""
    progress, predictions = result.progress, result.predictions
    scored = (("frames", "f1"), ("frames", "average_precision"), ("events", "f1"))
    scores = {
        f"{group}: {name.replace('_', ' ')}": [epoch["validation"][group][name] for epoch in progress.epochs]
        for group, name in scored
    }
    counts = confusion(predictions.probabilities, predictions.labels, progress.decoding["threshold"])
    return [
        _course(progress, scores),
        _section("Precision and recall", _panels(_precision_recall(result)), "Frames of the test split, call or not."),
        _confusion(counts, result.data.classes, "Frames of the test split."),
        *_filters(result),
    ]


def _of_frames(result: Result) -> list[str]:
    """Scores, course, precision and recall, confusion, filters, and examples to listen to."""
    return [_summary(result), _sides(result), *figures(result), *_examples(result)]


def _of_files(result: FileResult) -> list[str]:
    """Accuracy, course, confusion and the files that were named otherwise than annotated."""
    files, answers = result.files["test"], result.answers()
    counts = np.zeros((len(files.classes),) * 2, int)
    np.add.at(counts, (files.labels, result.test["answers"]), 1)
    wrong = answers[answers["label"] != answers["answer"]]
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(value)}</td>' for value in row)}</tr>" for row in wrong.to_numpy())
    table = f"<table><thead><tr><th>file</th><th>annotated</th><th>answer</th></tr></thead><tbody>{rows}</tbody></table>"
    note = f"{len(wrong)} of {len(answers)} files of the test split; all are in {ANSWERS}."
    return [
        f"<pre>{html.escape(result.summary())}</pre>",
        _course(result.progress, {"accuracy of files": [epoch["accuracy"] for epoch in result.progress.epochs]}),
        _confusion(counts, files.classes, "Files of the test split."),
        *_filters(result),
        _section("Files named otherwise", _scrolling(table), note),
    ]


def _summary(result: Result) -> str:
    progress, test = result.progress, result.test
    validation = progress.epochs[progress.best_epoch - 1]["validation"]
    rows = [
        f"<tr><td>{group}</td><td>{html.escape(name.replace('_', ' '))}</td>"
        f'<td class="number">{validation.get(group, {}).get(name, np.nan):.3f}</td><td class="number">{value:.3f}</td></tr>'
        for group, values in test.items()
        for name, value in values.items()
    ]
    decoding = Decoding(**progress.decoding)
    warnings = "".join(f'<p class="warning">{html.escape(line)}</p>' for line in progress.warnings)
    skipped = f" {progress.skipped} steps were left out: their gradients were not finite." if progress.skipped else ""
    return (
        f"<p>{progress.step} steps, {progress.epoch} epochs; weights of epoch {progress.best_epoch}, the best by "
        f"{result.best_by} on the validation split.{skipped} A frame is a call from probability {decoding.threshold:g} on; calls "
        f"less than {decoding.min_gap:g} s apart are one, shorter than {decoding.min_duration:g} s none (both chosen on the "
        f"validation split).</p>{warnings}"
        + _scrolling(
            "<table><thead><tr><th>of</th><th>score</th><th>validation</th><th>test</th></tr></thead><tbody>"
            f"{''.join(rows)}</tbody></table>"
        )
    )


def _sides(result: Result) -> str:
    """What there was to learn from and to score on."""
    sides = result.data.sides()
    labels = result.data.classes[1:]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("side", "recordings", "seconds", *labels))
    rows = [
        f'<tr><td>{name}</td><td class="number">{side["recordings"]}</td><td class="number">{side["seconds"]:.0f}</td>'
        + "".join(f'<td class="number">{side["calls"][label]}</td>' for label in labels)
        + "</tr>"
        for name, side in sides.items()
    ]
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return _section("Data", _scrolling(table), "Recordings used on each side, and the calls of each class in them.")


def _course(progress, scores: dict[str, list[float]]) -> str:
    """Losses, learning rate, and scores of each epoch on the validation split."""
    drawn, (loss, rate, score) = _figures("loss", "learning rate", "validation scores")
    steps = np.arange(1, len(progress.losses) + 1)
    loss.plot(steps, progress.losses, color="#999", linewidth=0.8, label="training")
    ends = [epoch["step"] for epoch in progress.epochs]
    validation = [epoch["validation_loss"] for epoch in progress.epochs if "validation_loss" in epoch]
    loss.plot(ends[: len(validation)], validation, "o-", color=ESTIMATE, label="validation" if validation else None)
    loss.set(title="loss", xlabel="step", ylim=(0, None))
    loss.legend()
    rate.plot(steps, progress.rates)
    rate.set(title="learning rate", xlabel="step")
    for name, values in scores.items():
        score.plot(ends, values, "o-", label=name)
    score.set(title="validation scores", xlabel="step", ylim=(0, 1))
    score.legend()
    return _section("Course", _panels(drawn), "Losses of steps and epochs, scores on the validation split.")


def _precision_recall(result: Result) -> dict[str, Figure]:
    probabilities, labels = seen(result.predictions.probabilities, result.predictions.labels)
    call, is_call = 1 - probabilities[:, BACKGROUND], (labels != BACKGROUND).long()
    drawn, (curve, roc) = _figures("precision over recall", "ROC curve")
    if 0 < int(is_call.sum()) < len(is_call):
        precision, recall, _ = tm.binary_precision_recall_curve(call, is_call)
        curve.plot(recall, precision)
        false, true, _ = tm.binary_roc(call, is_call)
        roc.plot(false, true)
    frames = result.test["frames"]
    curve.plot(frames["recall"], frames["precision"], "o", label=f"threshold {result.progress.decoding['threshold']:g}")
    curve.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    curve.legend()
    roc.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1.01), ylim=(0, 1.01))
    return drawn


def _confusion(counts: np.ndarray, classes: Sequence[str], note: str) -> str:
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = 2.5 + 0.55 * len(classes)
    figure = Figure(figsize=(size, size * 0.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, count, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)  # a $ in a name is no formula
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.set(xlabel="answer", ylabel="reference")
    return _section("Confusion", _scrolling(_picture(figure, "confusion matrix")), note)


def _filters(result: Result | FileResult) -> list[str]:
    """The pass bands before and after training, and how far they moved; nothing of a model without such filters."""
    after = result.model.pass_bands()
    if after is None:
        return []
    before = np.array(result.progress.initial_filters)
    after = np.array([cut.cpu().numpy() for cut in after])
    drawn, axes = _figures("pass bands before training", "pass bands after training")
    top = 1.05 * max(before.max(), after.max()) / 1000
    for axis, (when, (low, high)) in zip(axes, {"before": before, "after": after}.items(), strict=True):
        axis.vlines(range(len(low)), low / 1000, high / 1000, linewidth=2)
        axis.set(title=when, xlabel="filter", ylabel="pass band (kHz)", ylim=(0, top))
    note = f"Pass band of each, before and after training: {described_move(result.model, result.progress)}."
    return [_section("Sinc filters", _panels(drawn), note)]


def _examples(result: Result) -> list[str]:
    """The recordings with the lowest and the highest mean loss, and the attention over the best of them."""
    predictions, collection = result.predictions, result.data.collection
    right = predictions.probabilities.gather(1, predictions.labels.where(predictions.labels != IGNORE, 0)[:, None])[:, 0]
    loss = -right.clamp(min=1e-12).log().where(predictions.labels != IGNORE, torch.nan).numpy()
    recordings = np.unique(predictions.recording)
    mean, with_call = {}, []
    for recording in recordings:
        mine = predictions.recording == recording
        if not np.isnan(loss[mine]).all():
            mean[recording] = np.nanmean(loss[mine])
        if (predictions.labels.numpy()[mine] > BACKGROUND).any():
            with_call.append(recording)
    order = sorted(mean, key=mean.get)
    best = [recording for recording in order if recording in with_call][:EXAMPLES] or order[:EXAMPLES]
    worst = order[::-1][:EXAMPLES]
    decoding = Decoding(**result.progress.decoding)
    tables = (
        reference_events(predictions, result.data.labeller, collection),
        estimated_events(predictions, result.data.labeller, collection, decoding),
    )
    sections = []
    attention = _attention(result, best[0]) if best else None
    if attention is not None:
        picture = _scrolling(_picture(attention, "spectrogram and attention"))
        sections.append(_section("Attention per band", picture, f"Recording {collection.recordings['file'].iat[best[0]]}."))
    for title, chosen, note in (
        ("Best recordings", best, "Those with a call whose frames have the lowest mean loss."),
        ("Worst recordings", worst, "Those whose frames have the highest mean loss."),
    ):
        parts = [_example(result, recording, loss, tables) for recording in chosen]
        sections.append(_section(title, "\n".join(parts), f"{note} {EXCERPT:g} s around the place that decided."))
    return sections


def _attention(result: Result, recording: int) -> Figure | None:
    """Spectrogram and weights of the bands; None of a model that does not weigh them."""
    model, predictions = result.model, result.predictions
    wave, rate = _read(result, recording)
    heard = audio.resample(wave, rate, model.sr)
    frames = min(len(predictions.of(recording)), len(heard) // model.samples)
    x = torch.from_numpy(heard[: frames * model.samples]).view(1, frames, model.samples).to(next(model.parameters()))
    parts = [model.band_attention(part) for part in x.split(AT_ONCE, dim=1)]
    if parts[0] is None:
        return None
    weights = torch.cat(parts, dim=1)[0].cpu().numpy()  # (frames, filters)
    low, high = model.pass_bands()
    order = (low + high).argsort().cpu().numpy()
    figure = Figure(figsize=(10, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    end = frames * predictions.frame
    _draw_spectrogram(above, heard[: frames * model.samples], model.sr, 0.0)
    image = below.imshow(weights[:, order].T, aspect="auto", origin="lower", extent=(0, end, 0, len(order)), cmap="magma")
    below.set(xlabel="time (s)", ylabel="filter, by centre")
    figure.colorbar(image, ax=below, label="attention")
    return figure


def _example(result: Result, recording: int, loss: np.ndarray, tables: tuple) -> str:
    """Spectrogram, probability, reference and estimated events of an excerpt, and its sound."""
    predictions = result.predictions
    file = result.data.collection.recordings["file"].iat[recording]
    mine = np.flatnonzero(predictions.recording == recording)
    labels = predictions.labels.numpy()[mine]
    # What decided: the worst frame, or, where all is well, the first call.
    worst = int(np.nan_to_num(loss[mine]).argmax())
    decisive = worst if loss[mine][worst] > 0.5 or not (labels > 0).any() else int((labels > 0).argmax())
    wave, rate = _read(result, recording)
    start = min(max(0.0, predictions.start[mine][decisive] - EXCERPT / 2), max(0.0, len(wave) / rate - EXCERPT))
    wave = wave[round(start * rate) :][: round(EXCERPT * rate)]
    end = start + len(wave) / rate

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(4, 1.5, 1))
    _draw_spectrogram(above, wave, rate, start)
    call = 1 - predictions.of(recording)[:, BACKGROUND].numpy()
    edges = predictions.start[mine[0]] + predictions.frame * np.arange(len(call) + 1)
    middle.stairs(call, edges, color=ESTIMATE)
    middle.axhline(result.progress.decoding["threshold"], color="#999", linewidth=0.8)
    middle.set(ylim=(0, 1.02), ylabel="p(call)")
    for row, (events, color) in enumerate(zip(tables, (REFERENCE, ESTIMATE), strict=True)):
        for event in events[events["file"] == file].itertuples():
            below.barh(-row, event.offset - event.onset, left=event.onset, color=color, height=0.7)
    below.set_yticks([0, -1], ["reference", "prediction"])
    below.set(xlim=(start, end), ylim=(-1.5, 0.5), xlabel="time (s)")
    slower = max(1, round(rate / AUDIBLE))
    note = f"mean loss {np.nanmean(loss[mine]):.3f}; played {slower} times slower"
    picture = _scrolling(_picture(figure, "spectrogram, probability and events"))
    name = html.escape(file)
    sound = f'<audio controls preload="none" aria-label="sound of {name}" src="{_sound(wave, rate // slower)}"></audio>'
    return f'<h3>{name}</h3><p class="note">{note}</p>{picture}{sound}'


def _read(result: Result, recording: int) -> tuple[np.ndarray, int]:
    collection = result.data.collection
    path = collection.path(recording)
    expansion = collection.time_expansion
    return audio.read(path, time_expansion=expansion), audio.probe(path, expansion).samplerate


def _draw_spectrogram(axis, wave: np.ndarray, rate: int, start: float) -> None:
    size = max(64, 2 ** round(np.log2(rate * 0.004)))
    padded = torch.nn.functional.pad(torch.from_numpy(wave), (0, max(0, size - len(wave))))
    spectrum = torch.stft(padded, size, max(1, len(padded) // 800), window=torch.hann_window(size), return_complex=True)
    level = 20 * torch.log10(spectrum.abs() + 1e-6).numpy()
    extent = (start, start + len(wave) / rate, 0, rate / 2000)
    axis.imshow(level, aspect="auto", origin="lower", extent=extent, cmap="gray_r", vmin=np.median(level), vmax=level.max())
    axis.set_ylabel("kHz")


def _sound(wave: np.ndarray, rate: int) -> str:
    file = io.BytesIO()
    peak = float(np.abs(wave).max()) or 1.0
    soundfile.write(file, 0.9 * wave / peak, rate, format="FLAC", subtype="PCM_16")
    return _url("audio/flac", file.getvalue())


def _figures(*names: str) -> tuple[dict[str, Figure], list]:
    """Figures by name and the axes of each, small enough that a phone shows them whole."""
    figures = {name: Figure(figsize=(4.2, 3.2), layout="constrained") for name in names}
    return figures, [figure.subplots() for figure in figures.values()]


def _panels(figures: dict[str, Figure]) -> str:
    """Pictures side by side, below each other where the window is narrow."""
    return f'<div class="panels">{"".join(_picture(figure, name) for name, figure in figures.items())}</div>'


def _scrolling(content: str) -> str:
    """What is wider than a phone, at its own size."""
    return f'<div class="scroll" tabindex="0">{content}</div>'


def _picture(figure: Figure, text: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return f'<img src="{_url("image/png", file.getvalue())}" alt="{html.escape(text)}">'


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _section(title: str, body: str, note: str = "") -> str:
    return f'<h2>{html.escape(title)}</h2><p class="note">{html.escape(note)}</p>{body}'
