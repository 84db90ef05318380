"""Draws of hostile files, one function for each kind of file that the product reads: for tests/hostile_files.py.

`Good` writes whole files of each kind once. A function of KINDS damages one of them, or makes one that nobody would write, in an
empty folder, and returns the command that reads it.
"""

import contextlib
import copy
import csv
import hashlib
import io
import json
import math
import os
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import large_tables as large
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import test_damaged_weights as weights
import torch
import yaml
from test_recorder import guan, wamd, write
from trainer_cases import as_options, tiny
from weight_cases import FORMATS, SMALL, draw_tensors, whole_files

import denet_torch
from denet_torch.schema import Detection
from tools.weights.sincnet_pkl import original_parts
from tools.weights.torch_files import write_pt
from training.synthetic import make_dataset
from training.text_tables import Lines

CELLS = [  # of tables, and values of settings
    "", " ", "nan", "NaN", "inf", "-inf", "1e308", "1e999", "-1", "-1e9", "0", "1e-320", "9" * 30, "9" * 5000, "0x10", "1,5",
    "1.5.2", "1_000", "\u0661\u0662", "\uff11", "\u00b2", "=cmd|' /C calc'!A0", "+1", "@SUM(A1)", "\x1b[2J\x1b]0;x\x07",
    "../../../etc/passwd", "/etc/passwd", "C:\\x.wav", "\\\\host\\x.wav", "a\rb", "\u202egnp.exe", "$", "$$x", "${x}", "%s%n",
    "{0}", "{", "x" * 5000, "<script>alert(1)</script>", "</script>", '"', "'", '""', "\\", "NULL", "None", "True",
    "2012-13-45", "2012-01-01 25:00", "-0.0", "background", "\U0001f4a3", "\x00", "\x1a", "\u2028", "a;b", "a\tb", "[1",
    "!!python/object:os.system", "&a", "*a", "~", "1e9", "1e18", "2147483648", "9223372036854775808", "-9223372036854775809",
    "1e-9",
]  # fmt: skip
VALUES = [  # of JSON, YAML and pickles
    None, True, -1, 0, 1, 3, 1.5, -0.0, math.nan, math.inf, 10**30, 2**31, 2**63, 1e308, 1e-320, "", "x", "x" * 5000, "\x1b[2J",
    "3", "nan", [], {}, [None], [[]], {"a": 1}, [1] * 3000, ["x"], "../../x", "$", {"": ""}, [[[[[[[[[[]]]]]]]]]],
]  # fmt: skip
NAMES = [
    "\x1b[31mred",
    "a\nerror: forged",
    "$HOME",
    "-rf",
    "x" * 230,
    "\u00e9" * 110,
    "'; ls",
    "<b>",
    "%s",
    "\u202e",
    "a,b",
    "{x}",
    "x;y",
]

OPTIONS = [Path("--"), Path("is called"), Path("the model cannot be built")]  # errors that are about an option


@dataclass
class Case:
    """A command (words after `denet`; `module` where it is another's main), the files of which an error has to name one, and what
    has to be so if there is none. `declared`: bytes of weights that the file states, where these are more than its own."""

    words: list[str]
    files: list[Path]
    accepted: Callable[[], None] = lambda: None
    module: str = ""
    declared: int = 0
    several: bool = False  # errors, one for each recording of a list
    reads: Path | None = None  # what the limits are measured by, where it is not files[0]


class Good:
    """Whole files, in a folder; made once, opened by each process."""

    def __init__(self, folder: Path):
        self.folder = folder

    def make(self) -> "Good":
        """Write them."""
        torch.set_num_threads(1)
        from tools import command  # after the environment was set

        def run(*words) -> None:
            assert command.main(list(map(str, words))) == 0, words

        folder = self.folder
        for ending, data in whole_files().items():
            (folder / f"weights{ending}").write_bytes(data)
        weights.npz.write_npz(draw_tensors(SMALL), SMALL, folder / "attention.npz")
        write_pt(draw_tensors(SMALL), SMALL, folder / "weights.pt")
        torch.manual_seed(0)
        net = denet_torch.SincNet((10, 40), 3, 4000, n_filters=[4, 4, 4], taps=[41, 5, 5], hidden=[8])
        net.detection = Detection(("a", "b", "c"), per="file")
        denet_torch.save(net, folder / "sincnet.safetensors")
        parts = {part: {k: torch.from_numpy(v.copy()) for k, v in some.items()} for part, some in original_parts(net).items()}
        torch.save(parts, folder / "model_raw.pkl")
        make_dataset(folder / "collection", 16, seed=2, min_seconds=1.0, max_seconds=1.2)
        config = tiny(folder / "collection", folder / "run", keep=3)
        run("train", *as_options(config))
        sounds = folder / "sounds"
        sounds.mkdir()
        rng = np.random.default_rng(0)
        sound = 0.1 * rng.standard_normal(3000)
        for suffix, subtype in {
            "wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III", "aiff": "PCM_16", "au": "PCM_16",
            "w64": "PCM_16", "caf": "PCM_16", "rf64": "PCM_16",
        }.items():  # fmt: skip
            rate = 8000 if suffix in ("ogg", "mp3") else 4000
            soundfile.write(sounds / f"a.{suffix}", sound, rate, subtype, format=suffix.upper())
        soundfile.write(sounds / "float.wav", sound, 4000, "FLOAT")
        soundfile.write(sounds / "b24.wav", np.stack([sound, sound], 1), 4000, "PCM_24")
        told = [
            guan(TE=1, Timestamp="2020-05-01 21:00:00"),
            (b"bext", bytes(320) + b"2020-05-0121-00-00" + bytes(264)),
            wamd("x", 1),
        ]
        write(sounds / "told.wav", 4000, told, sound)
        run(
            "detect",
            sounds / "a.wav",
            sounds / "float.wav",
            "--weights",
            self.model,
            "--output",
            folder / "found",
            "--threshold",
            0.01,
        )
        shutil.copytree(folder / "found", folder / "whole")
        mine = folder / "tables"
        mine.mkdir()
        for name, text in TABLES.items():
            (mine / name).write_text(text)
        pd.read_csv(io.StringIO(TABLES["events.csv"])).to_parquet(mine / "events.parquet")
        run("export-yolo", folder / "collection", folder / "export", "--width", 64, "--height", 32)
        return self

    @property
    def model(self) -> Path:
        """DENet's weights, for recordings of 4 kHz."""
        return self.folder / "run" / "weights.safetensors"

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


TABLES = {  # of a recording a.wav of 0.75 s
    "a.Table.1.selections.txt": "Selection\tView\tChannel\t"
    "Begin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation\n"
    "1\tSpectrogram 1\t1\t0.1\t0.2\t100\t900\tsong\n2\tSpectrogram 1\t1\t0.3\t0.45\t100\t900\tcall\n",
    "a.txt": "0.100000\t0.200000\tsong\n\\\t100.0\t900.0\n0.300000\t0.450000\tcall\n",
    "events.csv": "file,onset,offset,label,score\na.wav,0.1,0.2,song,0.9\na.wav,0.3,0.45,call,0.8\n",
    "generic.csv": "label,onset_s,offset_s,onset_sample,offset_sample,notated_path,annot_path,sequence,annotation\n"
    "song,0.1,0.2,,,a.wav,x.csv,0,0\ncall,0.3,0.45,,,a.wav,x.csv,0,0\n",
    "a.BirdNET.results.csv": "Start (s),End (s),Scientific name,Common name,Confidence,File\n0,0.5,Turdus,Song,0.9,a.wav\n",
    "a.svl": '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE sonic-visualiser>\n<sv><data><model id="1" name="" '
    'sampleRate="4000" type="sparse" dimensions="3" start="0" end="3000"/><dataset id="0" dimensions="3">'
    '<point frame="400" value="0.5" duration="400" label="song"/></dataset></data></sv>\n',
    "a.wav.json": '{"annotated": true, "annotation": [{"class": "song", "start_time": 0.1, "end_time": 0.2, "low_freq": 100.0, '
    '"high_freq": 900.0, "det_prob": 0.9}], "duration": 0.75, "id": "a.wav", "time_exp": 1}',
    "recordings.csv": "file,duration,samplerate,events\na.wav,0.75,4000,2\n",
}


# How files are damaged


def raw(rng: random.Random, data: bytes, head: int = 0) -> bytes:
    """Bytes cut, flipped, overwritten, put in, taken out, moved, a length made larger; mostly in the first `head`."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        size = max(1, min(len(data), head) if head and rng.random() < 0.7 else len(data))
        a, b = sorted((rng.randrange(size), rng.randrange(size)))
        match rng.choice(["cut", "flip", "flip", "over", "in", "out", "swap", "length", "length", "again", "other", "tail"]):
            case "cut":
                data = data[:a]
            case "flip":
                data = weights.flip(rng, data, range(size)) if data else data
            case "over":
                data = data[:a] + rng.choice([b"\0", b"\xff", rng.randbytes(1)]) * (b - a) + data[b:]
            case "in":
                data = data[:a] + rng.choice([rng.randbytes(rng.randrange(1, 99)), bytes(1 << rng.randrange(20))]) + data[a:]
            case "out":
                data = data[:a] + data[b:]
            case "swap":
                data = data[b:] + data[a:b] + data[:a]
            case "length":
                size, order = rng.choice([2, 4, 4, 8]), rng.choice(["little", "big"])
                value = rng.choice(
                    [2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, rng.randrange(2 ** (8 * size)), 0]
                )
                data = data[:a] + value.to_bytes(size, order) + data[a + size :]
            case "again":
                data = data[:b] + data[a:b] * rng.randrange(1, 5) + data[b:]
            case "other":
                other = [b"", b"PK\3\4", b"RIFF", b"\x89HDF\r\n\x1a\n", b"\x80\2.", b"{", b"PAR1", rng.randbytes(300), bytes(300)]
                data = rng.choice(other) + (data if rng.random() < 0.3 else b"")
            case "tail":
                data += rng.choice([bytes(rng.randrange(1 << 16)), rng.randbytes(99), data])
    return data[: 4 << 20]


def table(rng: random.Random, data: bytes) -> bytes:
    """A table of text with cells, columns, lines or its encoding changed."""
    text = data.decode(errors="replace")
    separator = "\t" if "\t" in text else ";" if ";" in text else ","
    rows = [line.split(separator) for line in text.split("\n")]
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        row = rng.choice(rows)
        place = rng.randrange(len(row))
        match rng.choice(["cell", "cell", "cell", "cell", "column", "more", "fewer", "heading", "order", "rows", "long"]):
            case "cell":
                row[place] = rng.choice(CELLS)
            case "column":
                value = rng.choice(CELLS)
                for other in rows[1:]:
                    if place < len(other):
                        other[place] = value
            case "more":
                row.insert(place, rng.choice(CELLS))
            case "fewer":
                del row[place]
            case "heading":
                heading = rng.choice(rows[0] or [""])
                rows[0] = [heading if rng.random() < 0.3 else name for name in rows[0]]
            case "order":
                rng.shuffle(rows)
            case "rows":
                rows += [list(row) for _ in range(rng.randrange(1, 2000))]
            case "long":
                rows.append([rng.choice(CELLS) for _ in range(rng.randrange(1, 3000))])
        rows = [row for row in rows if row] or [[""]]
    text = rng.choice(["\n", "\n", "\n", "\r\n", "\r"]).join(separator.join(row) for row in rows)
    return text[: 4 << 20].encode(rng.choice(["utf-8"] * 6 + ["utf-16", "utf-16-le", "utf-8-sig", "latin-1"]), errors="replace")


def text(rng: random.Random, data: bytes) -> bytes:
    """A damaged table: half of them by cells, half by bytes."""
    return table(rng, data) if rng.random() < 0.6 else raw(rng, data)


def nested(rng: random.Random, value, values=VALUES):
    """A copy of lists and dicts within each other with one or some of their items replaced, taken out, renamed or deep."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        item, parent, key = value, None, None
        while isinstance(item, (dict, list)) and item and (parent is None or rng.random() < 0.85):
            parent = item
            key = rng.choice(list(item)) if isinstance(item, dict) else rng.randrange(len(item))
            item = parent[key]
        if parent is None:
            return copy.deepcopy(rng.choice(values))
        match rng.choice(["value", "value", "value", "value", "out", "name", "deep", "copy"]):
            case "value":
                parent[key] = copy.deepcopy(rng.choice(values))
            case "out":
                del parent[key]
            case "name" if isinstance(parent, dict):
                parent[rng.choice(["", "x", "step", "\x1b[2J", "x" * 3000, 3])] = parent.pop(key)
            case "deep":
                deep = item
                for _ in range(rng.choice([3, 50, 900])):
                    deep = [deep]
                parent[key] = deep
                break  # to copy it once more may be too much
            case _:
                parent[key] = copy.deepcopy(value) if len(str(value)) < 100_000 else None
    return value


def as_json(value) -> bytes:
    with contextlib.suppress(RecursionError, TypeError, ValueError):
        return json.dumps(value, skipkeys=True).encode()
    return b"[" * 5000


def as_yaml(value) -> bytes:
    with contextlib.suppress(RecursionError):
        return yaml.safe_dump(value, allow_unicode=True).encode(errors="replace")
    return b"[" * 5000


# What is drawn


def new(rng: random.Random, folder: Path, suffix: str, data: bytes, name: str = "a") -> Path:
    """A file with these contents, one in eight of which has a name that is an attack itself."""
    if rng.random() < 0.125:
        name = rng.choice(NAMES)
    path = folder / f"{name}{suffix}"
    path.write_bytes(data)
    return path


def loads(path: Path) -> Callable[[], None]:
    def check() -> None:
        denet_torch.load(path)
        path.unlink()

    return check


def odd_archive(rng: random.Random, data: bytes) -> bytes:
    """A zip archive in which readers may find other members: names twice, in two cases, bytes before or behind it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = [(name, archive.read(name)) for name in archive.namelist()]
    name, content = rng.choice(contents)
    twin = rng.choice([name, name.upper(), name.replace("data", "Data"), name.removesuffix(".npy"), f"{name}\0x", f"./{name}"])
    contents.insert(rng.choice([0, len(contents)]), (twin, rng.choice([content, content[::-1], bytes(len(content)), b""])))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for member in contents:
            archive.writestr(*member)
    twins = buffer.getvalue()
    return rng.choice([twins, twins, twins, data + twins, twins + data, b"PK\3\4" + data, data + bytes(rng.randrange(1, 99))])


def weight_files(rng: random.Random, folder: Path, good: Good) -> Case:
    """denet convert of files of each format."""
    bases = {ending: (good / f"weights{ending}").read_bytes() for ending in (*FORMATS, ".pt")}
    if rng.random() < 0.25:
        ending = rng.choice(list(bases))
        data = raw(rng, bases[ending], head=2000)
    elif rng.random() < 0.1:
        ending = rng.choice([".npz", ".keras", ".pt"])
        data = odd_archive(rng, bases[ending])
    else:
        kind = rng.choice([*weights.COUNTS, "pt", "pt"])
        some = bases if kind == "pt" else {ending: data for ending, data in bases.items() if ending != ".pt"}
        ending, data = weights.damaged(kind, rng.randrange(10**9), folder, some)
    path = new(rng, folder, ending, data)
    attention = ["--attention", str(good / "attention.npz")] if ending in (".h5", ".h5.gz") else []
    target = folder / "target.safetensors"
    return Case(["convert", str(path), str(target), *attention], [path], loads(target))


def models(rng: random.Random, folder: Path, good: Good) -> Case:
    """.safetensors whose checksum is right, with an architecture, names or weights that no one would choose: detect, classify."""
    from safetensors.torch import load_file

    whole = good.model if rng.random() < 0.7 else good / "sincnet.safetensors"
    command = "detect" if whole == good.model else "classify"
    data = whole.read_bytes()
    tensors, metadata = load_file(whole), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    key = "denet" if "denet" in metadata else "sincnet"
    match rng.choice(["architecture", "architecture", "decoding", "weights", "weights", "raw"]):
        case "raw":
            data = raw(rng, data, head=3000)
        case how:
            if how == "architecture":
                metadata[key] = as_json(nested(rng, json.loads(metadata[key]))).decode()
            elif how == "decoding":
                metadata["detection"] = as_json(nested(rng, json.loads(metadata["detection"]))).decode()
            else:
                for name in rng.sample(sorted(tensors), rng.randrange(1, 5)):
                    factor = rng.choice([1e30, 3e38, -1, 0, math.nan, math.inf, 1e-40])
                    tensors[name] = (tensors[name] * factor).reshape(rng.choice([tensors[name].shape, (-1,)]))
                    if rng.random() < 0.2:
                        tensors[name] = tensors[name].to(rng.choice([torch.float64, torch.float16, torch.int32]))
            metadata["sha256"] = denet_torch.checkpoint.checksum(metadata[key] + metadata.get("detection", ""), tensors)
            from safetensors.torch import save

            data = save(tensors, metadata)
    path = new(rng, folder, ".safetensors", data)
    words = [command, str(good / "sounds" / "a.wav"), "--weights", str(path), "--output", str(folder / "out")]
    declared = declared_bytes(metadata.get(key, ""))
    if command == "detect":
        return Case(words, [path, good / "sounds" / "a.wav"], events(folder / "out"), declared=declared, reads=path)
    return Case([*words[:-1], str(folder / "out.csv")], [path, good / "sounds" / "a.wav"], declared=declared, reads=path)


LABELS = [*CELLS, *NAMES, "file", "label", "onset", "p file", "nocall", "\x85", "\ufeff", "\uffff"]
LABELS += ["e\u0301" * 50, "\U0001f987" * 300]


def labels(rng: random.Random, folder: Path, good: Good) -> Case:
    """Whole models whose classes have names that nobody gives, and decoding at its ends: all formats and the report, classify."""
    from safetensors.torch import load_file, save

    whole = good.model if rng.random() < 0.7 else good / "sincnet.safetensors"
    data, tensors = whole.read_bytes(), load_file(whole)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    key = "denet" if "denet" in metadata else "sincnet"
    named = [rng.choice(LABELS) for _ in range(json.loads(metadata[key])["n_classes"])]
    held = json.loads(metadata["detection"]) | {"labels": named}
    if key == "denet":
        held |= {"threshold": rng.choice([5e-324, 0.01, 0.5, 1]), "min_gap": rng.choice([0, 1e-9, 1e6])}
        held |= {"min_duration": rng.choice([0, 0, 1e-12, 1e6]), "call_gap": rng.choice([0, 1e6])}
    metadata["detection"] = json.dumps(held)
    metadata["sha256"] = denet_torch.checkpoint.checksum(metadata[key] + metadata["detection"], tensors)
    path, sound = folder / "a.safetensors", good / "sounds" / rng.choice(["a.wav", "told.wav", "b24.wav"])
    path.write_bytes(save(tensors, metadata))
    words = ["--weights", str(path), "--output"]
    if key == "sincnet":

        def classified() -> None:
            table = pd.read_csv(folder / "out.csv", keep_default_na=False, dtype=str)
            assert len(table.columns) == 2 + len(named) and table.file[0] == str(sound) and table.label[0] in named
            assert np.isclose(table.iloc[0, 2:].astype(float).sum(), 1, atol=1e-4)

        return Case(["classify", str(sound), *words, str(folder / "out.csv")], [path], classified)

    def detected() -> None:
        from tools import event_formats

        out = folder / "out"
        found = pd.read_csv(out / "events.csv", keep_default_na=False, dtype=str)
        assert set(found.label) <= set(named[1:])
        frames = pd.read_parquet(out / "frames.parquet")
        assert [*frames][:2] == ["file", "onset"] and np.allclose(frames.iloc[:, 2:].sum(axis=1), 1, atol=1e-4)
        for layer in (out / "svl").iterdir():
            if all(label.strip() and not event_formats.annotations.is_background(label) for label in named):
                assert len(event_formats.read_events(layer)) == len(found)
        shutil.rmtree(out)

    formats = ["frames.csv", "frames.parquet", "events.parquet", "raven", "audacity", "sequence", "svl", "ann", "birdnet"]
    return Case(["detect", str(sound), *words, str(folder / "out"), "--report", "--formats", *formats], [path], detected)


def declared_bytes(architecture: str) -> int:
    """Bytes of the sound that a model of this architecture works on at once: nobody can detect with less."""
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        config = json.loads(architecture)
        frames, samples = config["input_shape"][:2]
        return int(min(4 * frames * samples, 2**31))
    return 0


def events(out: Path) -> Callable[[], None]:
    def check() -> None:
        found = pd.read_csv(out / "events.csv")
        assert np.isfinite(found[["onset", "offset", "score"]].to_numpy(float)).all(), "events.csv holds what is no number"
        shutil.rmtree(out)

    return check


def sincnet_pkl(rng: random.Random, folder: Path, good: Good) -> Case:
    """denet convert of a model_raw.pkl."""
    data = (good / "model_raw.pkl").read_bytes()
    if rng.random() < 0.5:
        data = raw(rng, data, head=3000)
    else:
        state = torch.load(io.BytesIO(data), weights_only=True)
        data = saved(nested(rng, state, [*VALUES, *odd_tensors(rng)]), new_layout=rng.random() < 0.6)
    path, target = new(rng, folder, ".pkl", data), folder / "target.safetensors"
    return Case(["convert", str(path), str(target)], [path], loads(target))


def odd_tensors(rng: random.Random) -> list:
    return [
        torch.zeros(0), torch.zeros(2**10), torch.ones(3, dtype=torch.int8), torch.tensor(math.nan),
        torch.zeros(1).expand(10**12), torch.eye(3).to_sparse(), torch.empty(3, device="meta"), torch.randn(2, 2,
        dtype=torch.complex64), torch.full((3,), -1e30), torch.zeros(2, 3, 4, 5, 6), torch.tensor([True]), torch.tensor([2**62]),
    ]  # fmt: skip


def saved(value, new_layout: bool = True) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer, _use_new_zipfile_serialization=new_layout)
    except (RecursionError, RuntimeError, TypeError, NotImplementedError, AttributeError):
        return b"\x80\2."
    return buffer.getvalue()


def checkpoints(rng: random.Random, folder: Path, good: Good) -> Case:
    """denet train --resume: damaged by bytes, or another content behind the right digest."""
    run = folder / "run"
    shutil.copytree(good / "run", run)
    newest = max(run.glob("step-*.ckpt"))
    if rng.random() < 0.3:
        newest.write_bytes(raw(rng, newest.read_bytes()))
        path = newest
    else:
        if rng.random() < 0.15:
            data = raw(rng, newest.read_bytes())
        else:
            state = torch.load(newest, weights_only=True)
            part = rng.choice([*state, *["progress"] * 6, None])
            odd = [*VALUES, *odd_tensors(rng)]
            state = nested(rng, state, odd) if part is None else state | {part: nested(rng, as_plain(state[part]), odd)}
            data = saved(state)
        newest.unlink()
        path = run / f"step-000000006-{hashlib.sha256(data).hexdigest()[:16]}.ckpt"
        path.write_bytes(data)
    if rng.random() < 0.5:  # more epochs: it goes on
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("epochs: 2\n", "epochs: 3\n"))
    said = ["train", "--resume", str(run)]
    return Case(said, [path, path.with_suffix(".damaged"), run], reads=path)


def as_plain(value):
    return dict(value) if isinstance(value, dict) else value


def parts(rng: random.Random, folder: Path, good: Good) -> Case:
    """denet detect in a folder with a damaged part: it is computed again."""
    out = good / "found"  # parts are named by the recording's path: in the same place
    for name in (good / "whole" / "parts").iterdir():
        shutil.copy(name, out / "parts" / name.name)
    part = rng.choice(sorted((out / "parts").glob("*.npy")))
    whole, kind = part.read_bytes(), rng.random()
    if kind < 0.7:
        part.write_bytes(raw(rng, whole))
    else:  # another array behind a right digest
        buffer = io.BytesIO()
        array = np.load(io.BytesIO(whole))
        np.save(
            buffer,
            rng.choice([array[:-1], array[:0], array.astype(np.int32), array * np.nan, array[None], array[:, :1], np.array(1)]),
        )
        part.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
    sounds = [good / "sounds" / name for name in ("a.wav", "float.wav")]

    def same() -> None:
        for name in ("events.csv", "recordings.csv"):
            assert (out / name).read_bytes() == (good / "whole" / name).read_bytes(), f"other {name} from a damaged part"
        assert part.read_bytes() == whole, "the damaged part is still there"

    words = ["detect", *map(str, sounds), "--weights", str(good.model), "--output", str(out), "--threshold", "0.01"]
    return Case(words, [part], same, reads=part)


def indexes(rng: random.Random, folder: Path, good: Good) -> Case:
    """index.parquet: denet train, suggest, conflicts, paste-calls."""
    data = folder / "data"
    shutil.copytree(good / "collection", data, copy_function=shutil.copy2)
    index = data / "index.parquet"
    if rng.random() < 0.3:
        index.write_bytes(raw(rng, index.read_bytes()))
    else:
        held = pq.read_table(index)
        facts = json.loads(held.schema.metadata[b"collection"])
        try:
            if rng.random() < 0.4:
                facts = nested(rng, facts)
            else:
                held = odd_column(rng, held)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            facts = {}
        pq.write_table(held.replace_schema_metadata({"collection": as_json(facts)}), index)
    words = rng.choice(
        [
            ["suggest", str(data)],
            ["conflicts", str(data), "--output", str(folder / "conflicts")],
            ["paste-calls", str(data), str(data), str(folder / "pasted"), "--recordings", "2", "--seconds", "1"],
            ["train", "--config", str(good / "run.yaml"), "--data-dir", str(data), "--out", str(folder / "run"), "--epochs", "1"],
        ]
    )
    return Case(words, [index, data], reads=index)


def odd_column(rng: random.Random, held: pa.Table) -> pa.Table:
    name = rng.choice(held.column_names)
    place = held.column_names.index(name)
    how = rng.choice(["drop", "values", "values", "values", "type", "rows", "same", "name"])
    if how == "drop":
        return held.drop_columns([name])
    if how == "rows":
        return rng.choice([held.slice(0, 0), held.slice(1), pa.concat_tables([held, held]), pa.concat_tables([held] * 200)])
    if how == "name":
        return held.rename_columns([rng.choice(CELLS) if other == name else other for other in held.column_names])
    values = held[name].to_pylist()
    if how == "same":
        return held.set_column(place, name, pa.array([values[0]] * len(values), held[name].type))
    if how == "type":
        odd = [None, 1, 1.5, "x", True, b"x", [1], {"start": 1}, -1, 2**40]
        return held.set_column(place, name, pa.array([rng.choice(odd)] * len(values)))
    for _ in range(rng.choice([1, 1, 3])):
        row = rng.randrange(len(values))
        if isinstance(values[row], list):
            if values[row]:
                span = rng.choice(values[row])
                span[rng.choice(list(span))] = rng.choice([-1, 0, 2**31, 2**62, -(2**62), 10**9])
        elif isinstance(values[row], (int, float)) and not isinstance(values[row], bool):
            values[row] = rng.choice([None, -1, 0, 1, 2**31, 2**62, -(2**62)])
        else:
            values[row] = (
                rng.choice([None, *CELLS])
                if pa.types.is_string(held[name].type) or pa.types.is_large_string(held[name].type)
                else None
            )
    return held.set_column(place, name, pa.array(values, held[name].type))


def splits(rng: random.Random, folder: Path, good: Good) -> Case:
    """A split file: denet paste-calls --split."""
    whole = next((good / "run").glob("split-*.csv"))
    path = folder / (whole.name if rng.random() < 0.8 else rng.choice(NAMES) + ".csv")
    path.write_bytes(text(rng, whole.read_bytes()))
    data = str(good / "collection")
    words = ["paste-calls", data, data, str(folder / "pasted"), "--recordings", "2", "--seconds", "1", "--split", str(path)]
    return Case(words, [path])


def configurations(rng: random.Random, folder: Path, good: Good) -> Case:
    """YAML: denet train --config, and the configuration of a run to resume; where the data are is said behind it."""
    settings = yaml.safe_load((good / "run.yaml").read_text())
    how = rng.random()
    if how < 0.5:
        data = as_yaml(nested(rng, settings))
    elif how < 0.7:
        lines = (good / "run.yaml").read_text().splitlines()
        lines[rng.randrange(len(lines))] = rng.choice(
            ["x: ", "- ", "a: &a ", "", "? ", "!!python/object/apply:os.system [", "epochs: "]
        ) + rng.choice(CELLS)
        data = "\n".join(lines).encode(errors="replace")
    else:
        data = raw(rng, (good / "run.yaml").read_bytes())
    missing = folder / "missing"
    if rng.random() < 0.6:
        path = new(rng, folder, ".yaml", data)
        words = [
            "train",
            "--config",
            str(path),
            "--data-dir",
            str(missing),
            "--out",
            str(folder / "run"),
            "--devices",
            "1",
            "--nodes",
            "1",
        ]
        return Case([*words, "--mode", "frame"], [path, missing, *OPTIONS], reads=path)
    run = folder / "run"
    shutil.copytree(good / "run", run)
    (run / "config.yaml").write_bytes(data)
    if rng.random() < 0.5:
        words = ["train", "--resume", str(run), "--data-dir", str(missing), "--devices", "1", "--nodes", "1", "--mode", "frame"]
    else:
        words = ["train", "--config", str(good / "run.yaml"), "--resume", "--out", str(run)]
    return Case(words, [run, missing, *OPTIONS], reads=run / "config.yaml")


def recordings(rng: random.Random, folder: Path, good: Good) -> Case:
    """Sounds of each format: denet detect with programs' formats and pages, classify, index."""
    whole = rng.choice(sorted((good / "sounds").iterdir()))
    data = whole.read_bytes()
    if whole.name == "float.wav" and rng.random() < 0.6:
        samples, rate = soundfile.read(whole)
        samples[rng.randrange(len(samples))] = rng.choice([np.nan, np.inf, 3e38, 1e9, 32767, -1e-40])
        buffer = io.BytesIO()
        rate = rng.choice([rate, 1, 99, 2**31 - 1, 1_999_993, rng.randrange(100, 500_000)])
        soundfile.write(buffer, samples, rate, "FLOAT", format="WAV")
        data = buffer.getvalue()
    else:
        data = raw(rng, data, head=120)
    path = new(rng, folder, whole.suffix, data)
    match rng.choice(["detect", "detect", "report", "classify", "index"]):
        case "detect":
            words = ["detect", str(path), "--weights", str(good.model), "--output", str(folder / "out")]
            return Case([*words, "--formats", "raven", "svl", "frames.csv"], [path], events(folder / "out"))
        case "report":
            words = ["detect", str(path), "--weights", str(good.model), "--output", str(folder / "out"), "--report"]
            return Case(words, [path], events(folder / "out"))
        case "classify":
            words = ["classify", str(path), "--weights", str(good / "sincnet.safetensors"), "--output", str(folder / "out.csv")]
            return Case(words, [path])
    (folder / "x.csv").write_text(TABLES["events.csv"].replace("a.wav", path.name if path.name.isprintable() else "a.wav"))
    return Case(["index", str(folder), "--completely-annotated"], [path, folder], reads=path)


def told(rng: random.Random, folder: Path, good: Good) -> Case:
    """What recorders write beside the samples, with numbers and times that none writes: denet detect, index."""
    times = ["2020-05-01 21:00:00", "9999-12-31 23:59:59", "0001-01-01", "2020-05-01T21:00:00+99:99", "2020-02-30", *CELLS]
    numbers = ["1", "10", "1e-308", "5e-324", "1e-300", "1e300", "1" + "0" * 400, *CELLS]
    fields = {"TE": rng.choice(numbers), "Samplerate": rng.choice(["4000", *numbers]), "Timestamp": rng.choice(times)}
    chunks = [
        guan(**{name: value.replace("\ud800", "") for name, value in fields.items()}),
        wamd(rng.choice(times)[:300], rng.choice([0, 1, 10, 2**16 - 1])),
        (b"bext", bytes(320) + rng.choice(times).encode(errors="replace")[:18].ljust(282, b"\0")),
        (b"LIST", b"INFOICMT" + f"Recorded at {rng.choice(times)} {rng.choice(times)} (UTC)".encode(errors="replace")[:300]),
    ]
    path = folder / "a.wav"
    write(path, 4000, rng.sample(chunks, rng.randrange(1, 4)), soundfile.read(good / "sounds" / "a.wav")[0])
    (folder / "x.csv").write_text(TABLES["events.csv"])
    words = ["detect", str(path), "--weights", str(good.model), "--output", str(folder / "out")]
    if rng.random() < 0.3:
        return Case(["index", str(folder)], [path, folder], reads=path)
    return Case(words, [path], events(folder / "out"))


def tables(rng: random.Random, folder: Path, good: Good) -> Case:
    """Annotation tables of each format: denet index, evaluate, compare, detect --reference."""
    name = rng.choice([name for name in [*TABLES, "events.parquet"] if name != "recordings.csv"])
    data = (good / "tables" / name).read_bytes()
    if name.endswith(".json") and rng.random() < 0.6:
        data = as_json(nested(rng, json.loads(data)))
    elif name.endswith((".parquet", ".svl")):
        data = raw(rng, data) if name.endswith(".parquet") or rng.random() < 0.5 else hostile_xml(rng, data)
    else:
        data = text(rng, data)
    path = folder / name
    path.write_bytes(data)
    shutil.copy2(good / "sounds" / "a.wav", folder / "a.wav")
    estimated = folder / "estimated"
    estimated.mkdir()
    for other in ("events.csv", "recordings.csv"):
        shutil.copy(good / "tables" / other, estimated / other)
    return Case(
        rng.choice(
            [
                ["index", str(folder)],
                [
                    "evaluate",
                    "--reference",
                    str(path),
                    "--estimated",
                    str(estimated / "events.csv"),
                    "--output",
                    str(folder / "scores"),
                ],
                [
                    "compare",
                    "--reference",
                    str(path),
                    "--estimated",
                    f"a={estimated}/events.csv",
                    f"b={estimated}/events.csv",
                    "--output",
                    str(folder / "c"),
                ],
            ]
        ),
        [path, folder],
        reads=path,
    )


def hostile_xml(rng: random.Random, data: bytes) -> bytes:
    """Entities that unfold or lead outside, deep elements, hostile numbers."""
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    text = data.decode()
    match rng.choice(["bomb", "outside", "deep", "value", "value"]):
        case "bomb":
            text = text.replace("<!DOCTYPE sonic-visualiser>", f'<!DOCTYPE sv [<!ENTITY e0 "lol">{entities}]>').replace(
                '"song"', '"&e9;"'
            )
        case "outside":
            text = text.replace("<!DOCTYPE sonic-visualiser>", '<!DOCTYPE sv [<!ENTITY x SYSTEM "file:///etc/passwd">]>').replace(
                '"song"', '"&x;"'
            )
        case "deep":
            text = "<a>" * 100_000 + text
        case _:
            for old in rng.sample(["400", "4000", "0.5", "song"], 2):
                text = text.replace(f'"{old}"', f'"{rng.choice(CELLS)}"', 1)
    return text.encode(errors="replace")


def names_no_folders(listed: Path) -> None:
    """A list may name all that there is on a machine, to be searched: not here. Lines are those that are read, without a mark of
    their encoding, for one."""
    with contextlib.suppress(ValueError, OSError):  # what is no list
        lines = [line.strip().replace("\0", "x") for line in Lines(listed)]
        folders = [line for line in lines if os.path.isdir(line) or os.path.isdir(listed.parent / line.replace("\\", "/"))]
        if any(folders):
            listed.write_text("\n".join(line for line in lines if line not in folders), errors="replace")


def results(rng: random.Random, folder: Path, good: Good) -> Case:
    """What denet detect wrote, damaged: evaluate, report, compare; and lists of recordings: detect."""
    out = folder / "found"
    out.mkdir()
    for name in ("events.csv", "recordings.csv"):
        shutil.copy(good / "found" / name, out / name)
    path = out / rng.choice(["events.csv", "recordings.csv"])
    path.write_bytes(text(rng, path.read_bytes()))
    reference = good / "found" / "events.csv"
    listed = folder / "list.txt"
    if rng.random() < 0.2:
        listed.write_bytes(text(rng, f"{good / 'sounds' / 'a.wav'}\n{good / 'sounds' / 'told.wav'}\n".encode()))
        names_no_folders(listed)
        words = ["detect", str(listed), "--weights", str(good.model), "--output", str(folder / "out")]
        return Case(words, [listed], several=True)
    return Case(
        rng.choice(
            [
                [
                    "evaluate",
                    "--reference",
                    str(reference),
                    "--estimated",
                    str(out / "events.csv"),
                    "--output",
                    str(folder / "scores"),
                ],
                ["report", str(out), "--output", str(folder / "season")],
                [
                    "compare",
                    "--reference",
                    str(reference),
                    "--estimated",
                    f"a={out}/events.csv",
                    f"b={out}/events.csv",
                    "--output",
                    str(folder / "c"),
                ],
            ]
        ),
        [path, out, out / "events.csv", out / "recordings.csv"],
        reads=path,
    )


def collections(rng: random.Random, folder: Path, good: Good) -> Case:
    """FileInfo.csv and Annotations.csv: denet index, suggest, train."""
    data = folder / "data"
    shutil.copytree(good / "collection", data, ignore=shutil.ignore_patterns("index*"))
    path = data / rng.choice(["FileInfo.csv", "Annotations.csv"])
    path.write_bytes(text(rng, path.read_bytes()))
    return Case(rng.choice([["index", str(data)], ["suggest", str(data)]]), [path, data, data / "index.parquet"], reads=path)


def yolor(rng: random.Random, folder: Path, good: Good) -> Case:
    """An export's tables, YOLOR's answers and configurations: denet import-yolo, yolo-config."""
    out = folder / "export"
    out.mkdir()
    for name in ("export.json", "manifest.csv", "recordings.csv", "reference.csv"):
        shutil.copy(good / "export" / name, out / name)
    if rng.random() < 0.25:
        data = b"[net]\nwidth=640\n[convolutional]\nfilters=255\n[implicit_mul]\nfilters=255\n[yolo]\nmask=0,1,2\nclasses=80\n"
        path = new(
            rng, folder, ".cfg", text(rng, data.replace(b"=", b",")).replace(b",", b"=") if rng.random() < 0.5 else raw(rng, data)
        )
        return Case(["yolo-config", str(out), str(path), "--output", str(folder / "target.cfg")], [path, out])
    answers = folder / "answers"
    shutil.copytree(good / "export" / "labels" / "test", answers)
    path = rng.choice([out / "export.json", out / "manifest.csv", out / "recordings.csv", rng.choice(sorted(answers.iterdir()))])
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_bytes(as_json(nested(rng, json.loads(data))))
    else:
        path.write_bytes(text(rng, data.replace(b" ", b",")).replace(b",", b" ") if path.suffix == ".txt" else text(rng, data))
    return Case(
        ["import-yolo", str(out), str(answers), "--output", str(folder / "found"), "--report"], [path, out, answers], reads=path
    )


def beans(rng: random.Random, folder: Path, good: Good) -> Case:
    """annotations.csv of BEANS: python -m training.beans, which finds no recording."""
    root = folder / "beans"
    (root / "audio").mkdir(parents=True)
    rows = [["File Name", "Emitter"], *([f"120601{i:06}.wav", str(e)] for i in range(12) for e in (111, 210, 211))]
    lines = io.StringIO()
    csv.writer(lines).writerows(rows)
    path = root / rng.choice(["annotations.csv", "annotations.csv", "annotations.train.csv"])
    for name in {
        "annotations.csv",
        path.name,
        *(f"annotations.{part}.csv" for part in ("train", "valid", "test") if "." in path.stem),
    }:
        (root / name).write_text(lines.getvalue())
    path.write_bytes(text(rng, path.read_bytes()))
    return Case([str(root), "--epochs", "1", "--out", str(folder / "out")], [path, root], module="training.beans")


def backgrounds(rng: random.Random, folder: Path, good: Good) -> Case:
    """An ESC-50 table and sounds beside it: denet train --backgrounds."""
    place = folder / "esc50"
    (place / "meta").mkdir(parents=True)
    shutil.copy(good / "sounds" / "a.wav", place / "a.wav")
    path = rng.choice([place / "meta" / "esc50.csv", place / "a.wav"])
    whole = b"filename,fold,target,category\na.wav,1,0,dog\n" if path.suffix == ".csv" else path.read_bytes()
    path.write_bytes(text(rng, whole) if path.suffix == ".csv" else raw(rng, whole, head=60))
    words = [
        "train",
        "--config",
        str(good / "run.yaml"),
        "--out",
        str(folder / "run"),
        "--epochs",
        "1",
        "--backgrounds",
        str(place),
    ]
    return Case(words, [path, place], reads=path)


def large_tables(rng: random.Random, folder: Path, good: Good) -> Case:
    """Tables of up to 60 MB of odd shapes: the functions that read them."""
    reader, path = large.draw(rng, folder)
    return Case([reader, str(path)], [path], module="large_tables")


def tensorflow(rng: random.Random, folder: Path, good: Good) -> Case:
    """A checkpoint of TensorFlow, by bytes, also with right checksums: denet convert."""
    if not (good / "run.index").exists():
        arrays = {weights.keras_name(n): weights.transposed(n, t) for n, t in draw_tensors(SMALL).items()}
        weights.write_checkpoint(arrays, good / "run")
    for name in ("run.index", "run.data-00000-of-00001"):
        shutil.copy(good / name, folder / name)
    path = folder / rng.choice(["run.index", "run.index", "run.data-00000-of-00001"])
    forge = path.suffix == ".index" and rng.random() < 0.5
    path.write_bytes(weights.forged(rng, path.read_bytes()) if forge else raw(rng, path.read_bytes()))
    target = folder / "target.safetensors"
    return Case(["convert", str(folder / "run.index"), str(target)], [folder / "run.index", path], loads(target), reads=path)


KINDS = {  # share of all
    weight_files: 20, models: 10, sincnet_pkl: 6, checkpoints: 8, parts: 6, indexes: 8, splits: 4, configurations: 8,
    labels: 4, told: 4, recordings: 12, tables: 10, results: 5, collections: 5, yolor: 5, beans: 3, backgrounds: 3,
    large_tables: 3,
}  # fmt: skip
