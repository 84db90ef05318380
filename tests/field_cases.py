"""Inputs that people have, and what is right for each; all of them in one run:

    python tests/field_cases.py [NUMBER ...]

A case writes its files to an empty folder, uses the documented commands on them and returns what came out as a line, which
tests/test_field_cases.py compares with what is right. The numbers are those under which the cases were collected.
"""

import contextlib
import io
import re
import struct
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

import denet_torch  # noqa: E402
from tools import conflicts, detect, evaluate, index_dataset  # noqa: E402
from training import run as training_run  # noqa: E402
from training.collection import open_collection  # noqa: E402
from training.labels import Labeller  # noqa: E402

COMMANDS = {
    "index": index_dataset.main,
    "conflicts": conflicts.main,
    "detect": detect.main,
    "evaluate": evaluate.main,
    "train": training_run.main,
}
SMALL = "--n-filters 8 --gru-units 8 --dense-units 16 16 --epochs 1 --epoch-windows 16 --no-report --accelerator cpu".split()
HEADER = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)", "Annotation"]
CASES = {}


def case(number: str, title: str, right: str):
    """Register a function of a folder as a case."""

    def register(function):
        CASES[number] = (title, right, function)
        return function

    return register


def run(command: str, *words) -> tuple[int, str]:
    """Exit code and all that a command prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            code = COMMANDS[command]([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
    return code, text.getvalue()


def counts(folder: Path, data_format: str, *options) -> str:
    """Recordings and annotations that an index of the folder keeps, as "1 recording, 2 annotations"."""
    code, text = run("index", folder, "--format", data_format, *options)
    if code:
        return f"exit {code}: {text.strip().splitlines()[-1]}"
    kept = [re.search(rf"{name}: \d+ rows read, (\d+) kept", text).group(1) for name in ("Recordings", "Annotations")]
    return f"{kept[0]} recordings, {kept[1]} annotations"


def calls(folder: Path, **reading) -> dict[str, list]:
    """Onset, offset (s) and label of every call of an indexed folder, by recording."""
    found = open_collection(folder, **reading)
    return {
        row.file: [
            (round(float(one.start / row.samplerate), 4), round(float(one.stop / row.samplerate), 4), found.contexts[one.context])
            for one in found.annotations_of(i).itertuples()
        ]
        for i, row in enumerate(found.recordings.itertuples())
    }


def wav(path: Path, seconds: float = 3, rate: int = 48_000, bursts=((0.5, 1.0),), tone: float = 3000, seed: int = 0) -> None:
    """Noise with tones."""
    time = np.arange(round(seconds * rate)) / rate
    sound = 0.01 * np.random.default_rng(seed).standard_normal(len(time))
    for start, stop in bursts:
        sound += 0.3 * np.sin(2 * np.pi * tone * time) * ((time >= start) & (time < stop))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype="PCM_16")


def raven(path: Path, rows: list, header: list = HEADER, encoding: str = "utf-8") -> None:
    """A selection table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, cells)) for cells in (header, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding, newline="")


def selection(onset, offset, label, number: int = 1, view: str = "Spectrogram 1", low=2000.5, high=4000.5) -> list:
    """A row of one."""
    return [number, view, 1, onset, offset, low, high, label]


def tiny_weights(folder: Path) -> Path:
    """Random weights that find something."""
    torch.manual_seed(0)
    model = denet_torch.get_denet((6, 800), 2, sr=16_000, n_filters=4, gru_units=4, dense_units=(4, 4))
    with torch.no_grad():
        noise = torch.randn(8, 6, 800) * torch.logspace(-3, -0.5, 8)[:, None, None]
        model.dense3.weight.mul_(10)
        model.eval().dense3.bias.sub_(model(noise).mean(dim=(0, 1)))
    denet_torch.save(model, folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


@case("04", "tables of slowed-down recordings, our own among them", "[(0.1, 0.15), (1.5, 1.6)]; own tables: as events.csv")
def slowed_down(folder):
    wav(folder / "a" / "te.wav", 20, 30_000, [(1.0, 1.5), (15, 16)])
    rows = [selection(1.0, 1.5, "pip"), selection(15.0, 16.0, "pip", 2)]
    raven(folder / "a" / "te.Table.1.selections.txt", rows)
    run("index", folder / "a", "--format", "raven", "--time-expansion", 10)
    given = [one[:2] for one in calls(folder / "a")["te.wav"]]
    wav(folder / "b" / "te.wav", 20, 30_000, [(1.0, 1.5), (15, 16)])
    options = ["--weights", tiny_weights(folder), "--time-expansion", 10, "--formats", "raven", "--output", folder / "out"]
    run("detect", folder / "b", *options)
    (folder / "out" / "raven" / "te.Table.1.selections.txt").rename(folder / "b" / "te.Table.1.selections.txt")
    run("index", folder / "b", "--format", "raven", "--time-expansion", 10)
    lines = (folder / "out" / "events.csv").read_text().splitlines()[1:]
    events = [tuple(round(float(cell), 4) for cell in line.split(",")[1:3]) for line in lines]
    same = events and events == [one[:2] for one in calls(folder / "b")["te.wav"]]
    return f"{given}; own tables: {'as events.csv' if same else 'not as events.csv'}"


@case("07", "whole numbers in every row of a column", "1, 2 and 1 annotations")
def whole_numbers(folder):
    for name in "rag":
        wav(folder / name / "a.wav")
    raven(folder / "r" / "a.Table.1.selections.txt", [selection(0.5, 1.0, "chirp", low=150, high=12000)])
    (folder / "a" / "a.txt").write_text("0\t1\tchirp\n1\t2\ttrill\n")
    header = "label,onset_s,offset_s,notated_path,annot_path,sequence,annotation\n"
    (folder / "g" / "calls.csv").write_text(header + "x,0,1,a.wav,calls.csv,0,0\n")
    kept = [counts(folder / name, form).split()[2] for name, form in zip("rag", ("raven", "audacity", "generic"), strict=True)]
    return f"{kept[0]}, {kept[1]} and {kept[2]} annotations"


@case("08", "tables corrected after the index was made", "7 recordings, new at 1.2 to 1.6 s")
def corrected_tables(folder):
    for i in range(6):
        wav(folder / f"r{i}.wav", 2, 16_000)
        raven(folder / f"r{i}.Table.1.selections.txt", [selection(0.5, 1.0, "old")])
    counts(folder, "raven")
    for path in folder.glob("*.txt"):
        path.write_text(path.read_text().replace("old", "new").replace("\t0.5\t1.0\t", "\t1.2\t1.6\t"))
    (folder / "added.wav").write_bytes((folder / "r0.wav").read_bytes())
    found = calls(folder)
    (onset, offset, label) = found["r0.wav"][0]
    return f"{len(found)} recordings, {label} at {onset} to {offset} s"


@case("09", "labels that look like numbers", "01 02 01 x 1.10 1.1; recall 1.000, F1 0.800")
def labels_like_numbers(folder):
    for i, labels in enumerate([["01", "02"], ["01", "x"], ["1.10", "1.1"]]):
        wav(folder / "c" / f"r{i}.wav", 3, 16_000)
        rows = [selection(0.5 + j, 1.0 + j, label, j + 1) for j, label in enumerate(labels)]
        raven(folder / "c" / f"r{i}.Table.1.selections.txt", rows)
    counts(folder / "c", "raven")
    found = " ".join(label for rows in calls(folder / "c").values() for *_, label in rows)
    events = "a.wav,1.0,1.5,01\na.wav,3.0,3.5,01\n"
    (folder / "ref.csv").write_text("file,onset,offset,label\n" + events)
    scored = events.replace("01\n", "01,0.9\n") + "a.wav,6,6.5,x,0.5\n"
    (folder / "est.csv").write_text("file,onset,offset,label,score\n" + scored)
    return f"{found}; {event_scores(folder, folder / 'ref.csv')}"


def event_scores(folder: Path, reference: Path) -> str:
    """Event recall and F1 of est.csv in `folder`."""
    (folder / "recordings.csv").write_text("file,duration\na.wav,10\n")
    code, text = run("evaluate", "--reference", reference, "--estimated", folder / "est.csv")
    if code:
        return text.strip()
    recall, f1 = (re.search(rf"event {name} +([\d.]+)", text).group(1) for name in ("recall", "F1"))
    return f"recall {recall}, F1 {f1}"


@case("11", "a recording that was looked through and holds no call", "2 recordings, 1 annotations; b known to be without, twice")
def empty_tables(folder):
    answers = []
    for name in ("raven", "audacity"):
        wav(folder / name / "a.wav")
        wav(folder / name / "b.wav", bursts=[])
    raven(folder / "raven" / "a.Table.1.selections.txt", [selection(0.5, 1.0, "chirp")])
    raven(folder / "raven" / "b.Table.1.selections.txt", [])
    (folder / "audacity" / "a.txt").write_text("0.5\t1.0\tchirp\n")
    (folder / "audacity" / "b.txt").touch()
    for name in ("raven", "audacity"):
        kept = counts(folder / name, name)
        labels = Labeller(open_collection(folder / name))(1, np.arange(61) * 2400.0)
        answers.append(f"{kept}; b {'known to be without' if (labels == 0).all() else 'unknown'}")
    return f"{answers[0]}, twice" if answers[0] == answers[1] else "; ".join(answers)


@case("12", "Audacity labels of the spectrogram view, with a line of frequencies", "chirp 0.5-1.0, trill 1.5-2.0; 2000-4000 Hz")
def frequency_rows(folder):
    wav(folder / "a.wav")
    frequencies = "\\\t2000.000000\t4000.000000\n"
    text = f"0.500000\t1.000000\tchirp\n{frequencies}1.500000\t2.000000\ttrill\n{frequencies}"
    (folder / "a.txt").write_text(text)
    counts(folder, "audacity")
    found = ", ".join(f"{label} {onset}-{offset}" for onset, offset, label in calls(folder)["a.wav"])
    low, high = open_collection(folder).annotations[["low_hz", "high_hz"]].to_numpy()[0]
    return f"{found}; {low:g}-{high:g} Hz"


@case("13", "a selection of no length, reversed, or from before 0, among good ones", "kept and reported: 1+1, 1+1, 2+1")
def odd_lengths(folder):
    answers = []
    for name, (onset, offset) in {"point": (1.5, 1.5), "reversed": (1.3, 1.2), "negative": (-0.1, 0.2)}.items():
        wav(folder / name / "a.wav")
        rows = [selection(0.5, 1.0, "x"), selection(onset, offset, "x", 2)]
        raven(folder / name / "a.Table.1.selections.txt", rows)
        kept = counts(folder / name, "raven").split()[2]
        report = (folder / name / "index.report.csv").read_text().splitlines()[1:]
        named = [line for line in report if ",3," in line and line.endswith("a.Table.1.selections.txt")]
        answers.append(f"{kept}+{len(named)}")
    return "kept and reported: " + ", ".join(answers)


@case("14", "files beside the recordings that are no annotations", "1 recordings, 1 annotations (5 times); exit 0")
def foreign_files(folder):
    def files(name):
        wav(folder / name / "a.wav")
        raven(folder / name / "a.Table.1.selections.txt", [selection(0.5, 1.0, "x")])

    for name in ("config", "readme", "mac", "own"):
        files(name)
    (folder / "config" / "CONFIG.TXT").write_bytes(b"Device ID   : 0000000000000000\r\nFirmware    : AudioMoth (1.8.1)\r\n")
    (folder / "readme" / "README.txt").write_text("Recorded at site 3, near\tthe road.\n")
    double = b"\0\5\x16\7\0\2\0\0Mac OS X        "
    (folder / "mac" / "._a.wav").write_bytes(double + b"\0" * 4096)
    (folder / "mac" / "._a.Table.1.selections.txt").write_bytes(double + b"\0" * 100)
    weights = tiny_weights(folder)
    options = ["--weights", weights, "--threshold", 0.01, "--formats", "audacity", "raven"]
    run("detect", folder / "own" / "a.wav", *options, "--output", folder / "own" / "detections")
    answers = [counts(folder / name, "raven") for name in ("config", "readme", "mac", "own", "config")]
    code, _ = run("detect", folder / "mac", "--weights", weights, "--output", folder / "out")
    return f"{' | '.join(sorted(set(answers)))} ({len(answers)} times); exit {code}"


@case("16", "a collection of one source, which cannot contradict itself", "zeros, exit 0")
def no_conflicts(folder):
    wav(folder / "a.wav")
    raven(folder / "a.Table.1.selections.txt", [selection(0.5, 1.0, "x")])
    counts(folder, "raven")
    code, text = run("conflicts", folder, "--output", folder / "out")
    lines = (folder / "out" / "conflicts.csv").read_text().splitlines()[1:-1]
    return f"{'zeros' if all(re.search(',0,0.0,0$', line) for line in lines) else lines}, exit {code}"


@case("18", "one of six recordings annotated", "r0 {0: 50, 1: 10}, the others {-100: 60}")
def five_unknown(folder):
    for i in range(6):
        wav(folder / f"r{i}.wav", 3, 16_000)
    raven(folder / "r0.Table.1.selections.txt", [selection(0.5, 1.0, "chirp")])
    counts(folder, "raven")
    labeller = Labeller(open_collection(folder))
    found = []
    for i in range(6):
        values, times = np.unique(labeller(i, np.arange(61) * 800.0), return_counts=True)
        found.append(dict(zip(values.tolist(), times.tolist(), strict=True)))
    others = found[1] if found[1:] == [found[1]] * 5 else found[1:]
    return f"r0 {found[0]}, the others {others}"


@case("19", "pulses of 6 ms under frames of 50 ms", "60 of 60 annotated calls warned of; try 0.006 s")
def short_pulses(folder):
    bursts = [(round(0.02 + 0.09 * k, 4), round(0.026 + 0.09 * k, 4)) for k in range(10)]
    for i in range(6):
        wav(folder / f"r{i}.wav", 1, 192_000, bursts, 45_000, i)
        rows = [selection(*burst, "pip", k) for k, burst in enumerate(bursts, 1)]
        raven(folder / f"r{i}.Table.1.selections.txt", rows)
    _, text = run("index", folder, "--format", "raven")
    told = re.search(r"warning: (\d+ of \d+ annotated calls).*--frame-seconds ([\d.]+)", text)
    return f"{told.group(1)} warned of; try {told.group(2)} s" if told else text


@case("20", "usual Raven tables", "1 each, 2 of the table for two recordings")
def usual_tables(folder):
    row = selection(0.5, 1.0, "x")
    many = [selection(0.5, 1.0, "x") + ["a.wav", 0.5], selection(4.0, 4.5, "x", 2) + ["b.wav", 1.0]]
    tables = {
        "species": ("a.Table.1.selections.txt", [row], HEADER[:-1] + ["Species"]),
        "birdnet": ("a.BirdNET.selection.table.txt", [row + [0.9]], HEADER[:-1] + ["Common Name", "Confidence"]),
        "three": ("a.txt", [[0.5, 1.0, "x"]], ["Begin Time (s)", "End Time (s)", "Annotation"]),
        "many": ("all.Table.1.selections.txt", many, HEADER + ["Begin File", "File Offset (s)"]),
        "wavname": ("a.wav.Table.1.selections.txt", [row]),
        "underscore": ("a.Table01.txt", [row]),
        "upper": ("a.Table.1.selections.TXT", [row]),
        "latin1": ("a.Table.1.selections.txt", [selection(0.5, 1.0, "Mönch")], HEADER, "latin-1"),
        "comma": ("a.Table.1.selections.txt", [selection("0,5", "1,0", "x", low="150,5", high="12000,5")]),
    }
    kept = {}
    for name, (file, *table) in tables.items():
        wav(folder / name / "a.wav")
        wav(folder / name / "b.wav")
        raven(folder / name / file, *table)
        answer = counts(folder / name, "raven")
        kept[name] = answer.split()[2] if answer.startswith("2 recordings") else answer
    two = kept.pop("many")
    return f"{' | '.join(sorted(set(kept.values())))} each, {two} of the table for two recordings"


@case("22", "tables of other programs as a reference", "recall 1.000, F1 1.000 six times")
def references(folder):
    raven(folder / "raven" / "a.Table.1.selections.txt", [selection(1.0, 1.5, "call")])
    (folder / "aud").mkdir()
    (folder / "aud" / "a.txt").write_text("1.0\t1.5\tcall\n")
    (folder / "est.csv").write_text("file,onset,offset,label,score\na.wav,1.0,1.5,call,0.9\n")
    (folder / "semi.csv").write_text("file;onset;offset;label\na.wav;1,0;1,5;call\n")
    (folder / "dup.csv").write_text("file,onset,offset,label\n" + "a.wav,1.0,1.5,call\n" * 2)
    names = ("raven", "raven/a.Table.1.selections.txt", "aud", "aud/a.txt", "semi.csv", "dup.csv")
    answers = [event_scores(folder, folder / name) for name in names]
    return f"{answers[0]} six times" if len(set(answers)) == 1 else "; ".join(answers)


@case("24", "lists of recordings as Windows programs write them", "2, 1 and 2 recordings")
def lists(folder):
    for name in "ab":
        wav(folder / f"{name}.wav")
    (folder / "bom.txt").write_text(f"{folder}/a.wav\r\n{folder}/b.wav\r\n", encoding="utf-8-sig", newline="")
    (folder / "u16.txt").write_text(f"{folder}/a.wav\n", encoding="utf-16")
    (folder / "rel.txt").write_text("a.wav\nb.wav\n")
    weights, found = tiny_weights(folder), []
    for name in ("bom", "u16", "rel"):
        _, text = run("detect", folder / f"{name}.txt", "--weights", weights, "--output", folder / f"out_{name}")
        found.append(re.search(r"in (\d+) recording", text).group(1) if " in " in text else text)
    return f"{found[0]}, {found[1]} and {found[2]} recordings"


@case("25", "each selection twice, for the waveform and the spectrogram", "4 rows read, 2 kept, 2 dropped")
def both_views(folder):
    wav(folder / "a.wav")
    views = ("Waveform 1", "Spectrogram 1")
    rows = [selection(k - 0.5, float(k), label, k, view) for k, label in ((1, "chirp"), (2, "trill")) for view in views]
    raven(folder / "a.Table.1.selections.txt", rows)
    _, text = run("index", folder, "--format", "raven")
    return re.search(r"Annotations: (.*)", text).group(1)


@case("01", "training on a collection of another program", "trained by day, treatment refused in a line, trained by recording")
def one_command(folder):
    for i in range(6):
        wav(folder / f"2023060{i + 1}_210000.wav", 2, 16_000, [(0.5, 1.0)], seed=i)
        raven(folder / f"2023060{i + 1}_210000.Table.1.selections.txt", [selection(0.5, 1.0, "chirp", low=100.5)])
    found = []
    for number, options in enumerate(([], ["--split-by", "treatment"], ["--split-by", "recording"])):
        code, text = run("train", "--data-dir", folder, *SMALL, "--out", folder / f"out{number}", *options)
        if code == 2 and "Traceback" not in text and text.count("error: ") == 1 and "offers --split-by day (6 groups)" in text:
            found.append(f"{options[1]} refused in a line")
        else:
            found.append(f"trained by {re.search('Split by ([a-z]+)', text).group(1)}" if code == 0 else text)
    return ", ".join(found)


@case("02", "a recording whose name is not ASCII", "trained with 6 recordings")
def umlaut(folder):
    for i, name in enumerate(["a", "b", "Größe", "d", "e", "f"]):
        wav(folder / f"{name}.wav", 2, 16_000, [(0.5, 1.0)], seed=i)
        raven(folder / f"{name}.Table.1.selections.txt", [selection(0.5, 1.0, "chirp", low=100.5)])
    code, text = run("train", "--data-dir", folder, *SMALL, "--out", folder / "out")
    split = next((folder / "out").glob("split-*.csv")).read_text(encoding="utf-8")
    return f"trained with {split.count('.wav')} recordings" if code == 0 and "Größe.wav" in split else text


@case("06", "training.run --detect on a collection of slowed-down recordings", "the events of tools.detect, at true times")
def detect_after_training(folder):
    for i in range(6):
        wav(folder / "data" / f"r{i}.wav", 10, 30_000, [(2.0, 4.0)], seed=i)
        raven(folder / "data" / f"r{i}.Table.1.selections.txt", [selection(2.0, 4.0, "pip")])
    wav(folder / "slow.wav", 30, 30_000, [(10.0, 11.0), (19.5, 22.5)])
    options = [*SMALL, "--init-from", tiny_weights(folder), "--seq-len", 6, "--learning-rate", 1e-9, "--out", folder / "out"]
    options += ["--time-expansion", 10, "--detect", folder / "slow.wav"]
    code, text = run("train", "--data-dir", folder / "data", *options)
    printed = [tuple(map(float, cells)) for cells in re.findall(r"slow.wav +([\d.]+) +([\d.]+) ", text)]
    weights = ["--weights", folder / "out" / "weights.safetensors", "--time-expansion", 10]
    run("detect", folder / "slow.wav", *weights, "--output", folder / "found")
    lines = (folder / "found" / "events.csv").read_text().splitlines()[1:]
    events = [tuple(float(cell) for cell in line.split(",")[1:3]) for line in lines]
    same = code == 0 and events and printed == events and max(offset for _, offset in events) <= 3
    return "the events of tools.detect, at true times" if same else f"{printed}, {events}: {text}"


@case("21", "four sampling rates", "4 recordings, 4 annotations; 1 recordings, 1 annotations; trained, 4 rates told")
def four_rates(folder):
    rates = (22_050, 44_100, 48_000, 256_000)
    for rate in rates:
        wav(folder / f"r{rate}.wav", 2, rate, [(0.5, 1.0)])
        raven(folder / f"r{rate}.Table.1.selections.txt", [selection(0.5, 1.0, "pip")])
    kept = counts(folder, "raven")
    code, text = run("train", "--data-dir", folder, *SMALL, "--out", folder / "out")
    told = sum(f"1 recordings at {rate:,} Hz" in text for rate in rates)
    some = counts(folder, "raven", "--rate", 48_000)
    return f"{kept}; {some}; {'trained' if code == 0 else text}, {told} rates told"


@case("27", "headers left wrong by recorders that lost power", "size0 3.0, sizehalf 3.0, truncated 1.5, whole 3.0 s; 3 named")
def unfinished_headers(folder):
    wav(folder / "whole.wav", 3)
    whole = (folder / "whole.wav").read_bytes()
    stated = len(whole) - 44
    for name, size, length in (("size0", 0, None), ("sizehalf", stated // 2, None), ("truncated", stated, len(whole) // 2)):
        (folder / f"{name}.wav").write_bytes((whole[:40] + struct.pack("<I", size) + whole[44:])[:length])
    _, text = run("detect", folder, "--weights", tiny_weights(folder), "--output", folder / "out")
    lines = [line.split(",") for line in (folder / "out" / "recordings.csv").read_text().splitlines()[1:]]
    seconds = ", ".join(f"{Path(cells[0]).stem} {float(cells[1]):.1f}" for cells in sorted(lines))
    return f"{seconds} s; {len(re.findall('note: .*the header says', text))} named"


@case("32", "fine-tuning weights for calls to own classes", "trained for background, A, B; all but the last layer kept, and told")
def own_classes(folder):
    for i in range(6):
        wav(folder / f"r{i}.wav", 2, 16_000, [(0.5, 0.8), (1.0, 1.4)], seed=i)
        raven(folder / f"r{i}.Table.1.selections.txt", [selection(0.5, 0.8, "A"), selection(1.0, 1.4, "B", 2)])
    start = tiny_weights(folder)
    options = [*SMALL, "--task", "context", "--init-from", start, "--learning-rate", 1e-12, "--no-train-attention"]
    code, text = run("train", "--data-dir", folder, *options, "--out", folder / "out")
    if code:
        return text
    before, after = denet_torch.load(start), denet_torch.load(folder / "out" / "weights.safetensors")
    last, kept = "dense3.weight", after.state_dict()
    same = all(torch.allclose(value, kept[name]) for name, value in before.named_parameters() if not name.startswith("dense3"))
    told = "all layers but the last" in text
    all_but_last = "all but the last layer kept, and told" if same and told and kept[last].shape[0] == 3 else text
    return f"trained for {', '.join(after.detection.labels)}; {all_but_last}"


def answer(number: str) -> str:
    """What comes out of a case."""
    with tempfile.TemporaryDirectory() as folder:
        return CASES[number][2](Path(folder))


def main() -> int:
    wrong = 0
    for number in sys.argv[1:] or sorted(CASES):
        title, right, _ = CASES[number]
        found = answer(number)
        wrong += found != right
        print(f"{number} {title}\n   found: {found}\n   right: {right}\n   {'as it should be' if found == right else 'WRONG'}")
    print(f"{wrong} wrong")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
