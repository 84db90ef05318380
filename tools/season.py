"""Calls by site, night, hour and class over a season: a table to compute with and a page to look at."""

import html
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd

from denet_torch.recorder import EARLIEST
from tools.detect_report import write_tables_page
from tools.event_formats import match_files, read_events, write_csv
from training import dates
from training.options import counted, tell
from training.text_tables import read_csv

KEYS = ["site", "night", "hour"]
TEXTS = ("file", "label", "clock", "began", "site")
NUMBERS = ("onset", "duration", "time_expansion")
RECORDING = ["file", "duration", "began", "site", "time_expansion"]
LATEST = 1e7  # s in a recording: four months
HOURS = [*range(12, 24), *range(12)]  # of a night, from noon to noon


def read(paths: Iterable[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events (file, onset, label, clock, site) and recordings (file, duration, began, site) of results of denet detect.

    A path is a folder with such results in it or below it, or a table of events, corrected ones for instance, which stand for all
    events of the recordings that the folders name. Recordings of two folders are different ones, also where both have the same
    name: it may be of two recorders. Raises ValueError where there are none.
    """
    found, tables = [], []
    for path in paths:
        here = sorted(file for file in path.rglob("events.csv") if (file.parent / "recordings.csv").exists())
        if path.is_dir() and not here:
            raise ValueError(f"{path}: no events.csv with its recordings.csv here; denet detect writes them")
        found += here
        if not path.is_dir():
            tables.append(path)
    events, recordings = [], []
    for file in {file.resolve(): file for file in found}.values():
        own = _table(file.parent / "recordings.csv", ["file", "duration"])
        factor = pd.to_numeric(own["time_expansion"], errors="coerce").fillna(1.0) if "time_expansion" in own else 1.0
        own = _dated(own.assign(time_expansion=factor), "began", 0)
        calls = _table(file, ["file", "onset", "label"])
        recordings.append(own)
        events.append(_dated(calls, "clock", calls.onset, own))
    whole = pd.concat(recordings or [pd.DataFrame(columns=RECORDING)], ignore_index=True)
    if several := int(whole.file.duplicated().sum()):
        tell("warning", f"{counted(several, 'recording')} of the same name as others: all count, as of different recorders")
    if tables:
        events = [_corrected(path, whole) for path in tables]
    return pd.concat(events, ignore_index=True), whole


def _corrected(path: Path, recordings: pd.DataFrame) -> pd.DataFrame:
    """Events of a table, with the times and sites of the recordings that they lie in.

    A program's table has the seconds of a slowed-down recording as its file has them.
    """
    files, parts = recordings.file.unique(), []
    for factor in recordings.time_expansion.unique() if len(recordings) else [1.0]:
        calls = match_files(read_events(path, factor, recordings=files), files)
        others = recordings.file[recordings.time_expansion != factor]
        unknown = ~calls.file.isin(files)  # of recordings that no folder names: once
        parts.append(calls[~calls.file.isin(others) & ~(unknown & bool(parts))])
    calls = pd.concat(parts, ignore_index=True)
    twice = calls.file[calls.file.isin(recordings.file[recordings.file.duplicated()])]
    if len(twice):
        raise ValueError(f"{path}: {twice.iloc[0]} may be the recording of two folders; give the folder that the table is of")
    return _dated(calls, "clock", calls.onset, recordings)


def _table(path: Path, needed: list[str]) -> pd.DataFrame:
    try:
        table = read_csv(path, [*TEXTS, *NUMBERS], dtype=dict.fromkeys(TEXTS, str), keep_default_na=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"{path}: has no column {missing[0]}")
    for name in [name for name in ("onset", "duration") if name in needed]:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
        if not table[name].between(0, LATEST).all():
            raise ValueError(f"{path}: {name} of a row is no number of seconds from 0 to {LATEST:.0f}")
    return table


def _dated(table: pd.DataFrame, name: str, after: pd.Series | float, recordings: pd.DataFrame | None = None) -> pd.DataFrame:
    """With the time `name`, and site, where they are not there yet: `after` seconds after the recording began, which
    `recordings` tell, or else its metadata and name do."""
    known = pd.DataFrame(columns=RECORDING) if recordings is None else recordings.drop_duplicates("file")
    files = set(table.file) - set(known.file)
    began = {file: dates.began(file) for file in files} | dict(zip(known.file, known.began, strict=True))
    sites = {file: dates.site(file) for file in files} | dict(zip(known.file, known.site, strict=True))
    computed = pd.to_datetime(table.file.map(began)) + pd.to_timedelta(after, unit="s")
    computed, site = computed.astype("datetime64[us]"), table.file.map(sites).astype(str)
    told = _times(table[name]) if name in table else computed
    return table.assign(**{name: told.fillna(computed), "site": table["site"].fillna(site) if "site" in table else site})


def _times(texts: pd.Series) -> pd.Series:
    """By the recorder's clock, whatever its zone; NaT for what is no time that a recorder can have written."""
    found = pd.to_datetime(texts.str.replace(dates.ZONE, r"\1", regex=True), errors="coerce", format="mixed", utc=True)
    found = found.dt.tz_localize(None).astype("datetime64[us]")
    return found.where(found.dt.year.between(EARLIEST, datetime.now().year + 1))


def summarise(events: pd.DataFrame, recordings: pd.DataFrame) -> pd.DataFrame:
    """Calls and recorded seconds by site, night (the date of its evening), hour and label; 0 calls where all was silent.

    night and hour are empty, and stand last, where nothing tells when a recording was made.
    """
    events = events.astype({"label": "str", "site": "str"})
    calls = _placed(events, events.clock).groupby([*KEYS, "label"]).size().rename("calls").reset_index()
    effort = _effort(recordings)
    labels = pd.DataFrame({"label": sorted(events.label.unique()) or [""]}, dtype="str")
    places = pd.concat([calls[KEYS], effort[KEYS]]).drop_duplicates()
    whole = places.merge(labels, how="cross").merge(calls, "left", [*KEYS, "label"]).merge(effort, "left", KEYS)
    whole = whole.assign(calls=whole.calls.fillna(0).astype(int), recorded_s=whole.recorded_s.fillna(0.0).round(3))
    order = whole.hour.map({str(hour): i for i, hour in enumerate(HOURS)} | {"": len(HOURS)})
    whole = whole.assign(order=order, unknown=whole.night == "").sort_values(["site", "unknown", "night", "order", "label"])
    return whole.drop(columns=["order", "unknown"]).reset_index(drop=True)


def _placed(table: pd.DataFrame, time: pd.Series) -> pd.DataFrame:
    """With night and hour, "" where the time is not known."""
    night = (time - timedelta(hours=12)).dt.strftime("%Y-%m-%d").fillna("")
    return table.assign(night=night, hour=time.dt.strftime("%-H").fillna(""))


def _effort(recordings: pd.DataFrame) -> pd.DataFrame:
    """Seconds recorded by site, night and hour."""
    parts = []
    for row in recordings.itertuples():
        if pd.isna(row.began):
            parts.append((row.site, row.began, row.duration))
            continue
        end = row.began + pd.Timedelta(row.duration, "s")
        # A recording that ends with the hour has nothing of the next one.
        for hour in pd.date_range(row.began.floor("h"), end, freq="h", inclusive="left"):
            inside = min(end, hour + pd.Timedelta(1, "h")) - max(row.began, hour)
            parts.append((row.site, hour, inside.total_seconds()))
    table = pd.DataFrame(parts, columns=["site", "time", "recorded_s"]).astype({"time": "datetime64[us]"})
    return _placed(table, table.time).groupby(KEYS).recorded_s.sum().reset_index()


def write(paths: list[Path], folder: Path) -> tuple[Path, str]:
    """Write summary.csv and season.html to `folder`; the page's path and a line of what there was. Raises ValueError."""
    events, recordings = read(paths)
    summary = summarise(events, recordings)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(summary, folder / "summary.csv")
    nights = summary.night[summary.night != ""].nunique()
    told = f"{counted(len(events), 'call')} in {counted(len(recordings), 'recording')}, "
    told += f"{recordings.duration.sum() / 3600:.1f} h, {counted(nights, 'night')}"
    if undated := int(summary.calls[summary.night == ""].sum()):
        told += f"; {counted(undated, 'call')} at unknown times: neither metadata nor names tell them"
    made = f"{told}. A night is from noon to noon, named after its evening; the hours are the recorder's clock's."
    write_tables_page(folder / "season.html", "Calls over the season", made, _body(summary))
    return folder / "season.html", told


def _body(summary: pd.DataFrame) -> str:
    dated = summary[summary.night != ""]
    parts = [_counts("Calls by night and class", summary, "night"), _counts("Calls by hour and class", summary, "hour")]
    if summary.site.nunique() > 1:
        parts.append(_counts("Calls by site and class", summary, "site"))
    labels = sorted(summary.label.unique())
    for label in [None, *labels] if len(labels) > 1 else labels:
        rows = dated if label is None else dated[dated.label == label]
        parts.append(_nights_by_hours("all classes" if label is None else label, rows))
    return "\n".join(parts)


def _counts(title: str, summary: pd.DataFrame, by: str) -> str:
    """A table of calls: a row each of `by`, a column a class, and the hours recorded."""
    calls = summary.pivot_table(index=by, columns="label", values="calls", aggfunc="sum", sort=False)
    hours = summary.drop_duplicates(KEYS).groupby(by).recorded_s.sum() / 3600
    head = [by, *calls.columns, "all", "hours recorded"]
    rows = []
    for name, counts in zip(calls.index, calls.values, strict=True):
        rows.append([(cell, "") for cell in (name or "unknown", *counts, sum(counts), f"{hours[name]:.2f}")])
    return _html(title, head, rows)


def _nights_by_hours(label: str, rows: pd.DataFrame) -> str:
    """Calls in each hour of each night, the more the darker; empty where nothing was recorded."""
    calls = rows.groupby(["night", "hour"]).calls.sum()
    most = max(1, calls.max()) if len(calls) else 1
    table = []
    for night in sorted(rows.night.unique()):
        cells = [(night, "")]
        for hour in HOURS:
            count = calls.get((night, str(hour)), "")
            cells.append((count, f' style="background: rgb(60 130 200 / {count / most * 0.6:.2f})"' if count else ""))
        table.append(cells)
    return _html(f"Calls by hour: {label}", ["night", *HOURS], table)


def _html(title: str, head: list, rows: list[list[tuple]]) -> str:
    names = "".join(f"<th>{html.escape(str(name))}</th>" for name in head)
    lines = ["<tr>" + "".join(f"<td{style}>{html.escape(str(cell))}</td>" for cell, style in row) + "</tr>" for row in rows]
    body = "\n".join(lines)
    return f"<h2>{html.escape(title)}</h2>\n<table>\n<thead><tr>{names}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
