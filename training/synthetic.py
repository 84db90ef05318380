"""Generated recordings in the layout of the flying-fox collection, with its faults and a known truth.

`make_dataset` writes FileInfo.csv, Annotations.csv and `filesNNN/*.WAV` (250 kHz, 16 bit) as the Egyptian
fruit bat collection has them (Prat et al., Scientific Data 4:170143, 2017), and truth.csv, which no
reader of a collection looks at: one row a call with its place, its signal-to-noise ratio and who called.

A call is a series of syllables, harmonics of a low fundamental, strongest between 5 and 30 kHz with
traces to 100 kHz; the first harmonics carry enough for a model that hears only up to 8 kHz. The rest of
a recording is one of several backgrounds and short broadband clicks. At most one frame in ten is call.

Faults, always there: rows of different lengths under a short header, a missing file, an empty one, one
that is only a header, one shorter than a frame, a row given twice, a segment and a span that end before
they start, one past the end, numbers that are none, an annotation of no recording; annotations that run
on to the end of the file, that leave out a call, that cover two calls and the silence between, or that
lie beside their call; emitters that are 0 or negative.
"""

import csv
import io
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from denet_torch import audio, recorder
from denet_torch.files import new_folder

from .options import refuse_snr

SAMPLERATE = 250_000
SNR_DB = (-5.0, 20.0)
MAX_SECONDS = 3600  # of a recording
CALL_SECONDS = (0.05, 0.3)
CALL_SHARE = 0.08  # of all time, on average, so that at most one frame in ten is call
EMITTERS = tuple(range(101, 113))
CONTEXTS = np.arange(13)
# Far from balanced, as in the collection: 11 (general) is common, 8 (landing) rare.
CONTEXT_WEIGHTS = np.array([6, 4, 6, 10, 12, 3, 5, 3, 1, 8, 6, 30, 6]) / 100
FOLDER_FILES = 50  # the collection has 10,000 a folder

FILE_INFO_HEADER = [
    "FileID",
    "Treatment ID",
    "File name",
    "File folder",
    "Recording channel",
    "Recording time",
    "Voice start sample (1)",
    "Voice end sample (1)",
    "Voice start sample (2)",
    "Voice end sample (2)",
]
ANNOTATIONS_HEADER = [
    "FileID",
    "Emitter",
    "Addressee",
    "Context",
    "Emitter pre-vocalization action",
    "Addressee pre-vocalization action",
    "Emitter post-vocalization action",
    "Addressee post-vocalization action",
    "Start sample",
    "End sample",
]
TRUTH_HEADER = ["recording", "onset", "offset", "snr_db", "context", "emitter"]


@dataclass(frozen=True)
class Call:
    """Samples [start, stop) of a recording, counted from 0, and what is true of the call there."""

    start: int
    stop: int
    snr_db: float
    context: int
    emitter: int


def make_dataset(
    out: str | Path,
    recordings: int,
    seed: int = 0,
    min_seconds: float = 1.0,
    max_seconds: float = 4.0,
    background: str | Path | None = None,
    snr_db: tuple[float, float] = SNR_DB,
    one_caller: bool = False,
) -> Path:
    """Write `recordings` sound recordings and the faulty ones beside them to the new folder `out`.

    The same arguments write the same bytes. With `background`, half of the recordings have a real clip
    from that folder behind their calls; with `one_caller` one bat makes all calls of a recording.
    `out` appears only when complete; FileExistsError if it is there already, AudioError for a clip that cannot be read.
    """
    if recordings < 8:
        raise ValueError(f"{recordings} recordings cannot hold all the faults; ask for 8 or more")
    refuse_snr(snr_db)
    if not 1 <= min_seconds <= max_seconds <= MAX_SECONDS:
        raise ValueError(f"recordings need 1 to {MAX_SECONDS} s, and a maximum not below the minimum")
    clips = [_read_clip(path) for path in _audio_files(background)]
    with new_folder(Path(out)) as folder:
        _write_dataset(folder, recordings, seed, (min_seconds, max_seconds), clips, snr_db, one_caller)
    return Path(out)


def make_tables(
    out: str | Path, recordings: int = 293_238, annotations: int = 91_080, seed: int = 0
) -> Path:
    """Write only FileInfo.csv and Annotations.csv, by default at the size of the real collection.

    Recordings have 1 to 47 voiced segments, three on average. FileExistsError if `out` is there already.
    """
    rng = np.random.default_rng(seed)
    segments = np.minimum(rng.geometric(1 / 3, recordings), 47)
    file_info = []
    for index in range(recordings):
        edges = np.sort(rng.integers(1, 34 * SAMPLERATE, 2 * segments[index]))
        time = datetime(2012, 6, 1) + timedelta(seconds=60 * index)
        name, folder = f"{time:%y%m%d%H%M%S}{index:06d}.WAV", f"files{101 + index // 10_000}"
        row = [index + 1, 1 + index // 5000, name, folder, 1 + index % 2, f"{time}"]
        file_info.append(row + edges.tolist())
    codes = rng.integers([-150, 0, 0, 0, 0, 0, 0], [151, 151, 13, 4, 4, 4, 4], (annotations, 7))
    file_id = 1 + np.sort(rng.choice(recordings, annotations, replace=False))
    edges = np.sort(rng.integers(1, 34 * SAMPLERATE, (annotations, 2)), axis=1)
    spans = np.column_stack([file_id, codes, edges]).tolist()
    with new_folder(Path(out)) as folder:
        _write_csv(folder / "FileInfo.csv", FILE_INFO_HEADER, file_info)
        _write_csv(folder / "Annotations.csv", ANNOTATIONS_HEADER, spans)
    return Path(out)


def make_call(rng: np.random.Generator, emitter: int, context: int, samples: int) -> np.ndarray:
    """One call of unit power, float32 (samples,): syllables of a harmonic stack, gliding in pitch."""
    seconds = np.arange(samples) / SAMPLERATE
    # Who calls sets the pitch, what about sets the number of syllables: both can be learned.
    pitch = 450 + 45 * (emitter - EMITTERS[0]) + rng.normal(0, 8)
    glide = 1 + rng.uniform(-0.15, 0.15) * np.linspace(0, 1, samples)
    glide += 0.02 * np.sin(2 * np.pi * rng.uniform(15, 40) * seconds)
    phase = np.cumsum(pitch * glide) / SAMPLERATE
    syllables = 1 + context % 5
    position = np.linspace(0, syllables, samples, endpoint=False) % 1
    envelope = np.minimum(1, 8 * np.minimum(position, 1 - position)) * rng.uniform(0.9, 1.1)
    call = envelope * np.interp(phase % 1, *_wavetable(rng, pitch))
    return (call / np.sqrt(np.mean(call**2))).astype(np.float32)


def _wavetable(rng: np.random.Generator, pitch: float) -> tuple[np.ndarray, np.ndarray]:
    """One period of a stack of harmonics: a hump around 5 to 9 kHz and a slope down to 100 kHz."""
    frequency = pitch * np.arange(1, int(100_000 / pitch))
    hump = np.exp(-0.5 * (np.log(frequency / rng.uniform(5000, 9000)) / 0.6) ** 2)
    spectrum = np.zeros(2049, complex)
    spectrum[1 : len(frequency) + 1] = (hump + 1e-3) * np.exp(
        2j * np.pi * rng.random(len(frequency))
    )
    period = np.fft.irfft(spectrum)
    return np.linspace(0, 1, len(period) + 1), np.append(period, period[0])


def make_background(rng: np.random.Generator, samples: int) -> np.ndarray:
    """One of five backgrounds of unit power, float32 (samples,): hiss, rumble, band, hum, crickets."""
    kind = rng.choice(["hiss", "rumble", "band", "hum", "crickets"])
    seconds = np.arange(samples, dtype=np.float32) / SAMPLERATE
    noise = rng.standard_normal(samples, dtype=np.float32)
    if kind == "hiss":
        sound = noise
    elif kind in ("rumble", "band"):
        size = 1 << samples.bit_length()  # a length with large prime factors takes minutes
        spectrum = np.fft.rfft(noise, size)
        frequency = np.fft.rfftfreq(size, 1 / SAMPLERATE).astype(np.float32)
        if kind == "rumble":
            gain = 1 / np.maximum(frequency, 50)
        else:
            centre = np.exp(rng.uniform(np.log(1000), np.log(40_000)))
            gain = np.exp(-0.5 * (np.log(np.maximum(frequency, 1) / centre) / 0.3) ** 2)
        sound = np.fft.irfft(spectrum * gain)[:samples]
    elif kind == "hum":
        base = rng.uniform(50, 200)
        tones = [np.sin(2 * np.pi * base * k * seconds) / k for k in range(1, 8)]
        sound = sum(tones) + 0.1 * noise
    else:
        chirps = np.maximum(0, np.sin(2 * np.pi * rng.uniform(8, 25) * seconds)) ** 4
        sound = chirps * np.sin(2 * np.pi * rng.uniform(3500, 7500) * seconds) + 0.05 * noise
    return (sound / np.sqrt(np.mean(sound**2))).astype(np.float32)


def _clip(rng: np.random.Generator, clip: np.ndarray, samples: int) -> np.ndarray:
    """A stretch of a real clip, repeated where it is too short, of unit power."""
    sound = np.resize(np.roll(clip, -rng.integers(len(clip))), samples)
    power = np.mean(sound**2)
    return sound / np.sqrt(power) if power > 0 else make_background(rng, samples)


def _add_clicks(rng: np.random.Generator, sound: np.ndarray) -> None:
    """Add about two broadband clicks a second, 0.2 to 1 ms long, in place."""
    for start in rng.integers(0, len(sound), rng.poisson(2 * len(sound) / SAMPLERATE)):
        click = rng.standard_normal(rng.integers(50, 250)) * rng.uniform(1, 6)
        click *= np.exp(-np.linspace(0, 5, len(click)))
        sound[start : start + len(click)] += click[: len(sound) - start]


def make_recording(
    rng: np.random.Generator,
    samples: int,
    clips: list[np.ndarray] | None = None,
    snr_db: tuple[float, float] = SNR_DB,
    one_caller: bool = False,
) -> tuple[np.ndarray, list[Call]]:
    """One recording, int16 (samples,), and its calls in order; about one in six has none.

    The signal-to-noise ratio, drawn from `snr_db`, is a call's power to the mean power of the recording's background.
    """
    if clips and rng.random() < 0.5:
        sound = _clip(rng, clips[rng.integers(len(clips))], samples)
    else:
        sound = make_background(rng, samples)
    # A microphone is never silent, real clips may be: 40 dB below the background.
    sound = sound + 0.01 * rng.standard_normal(samples, dtype=np.float32)
    _add_clicks(rng, sound)
    calls = []
    caller = int(rng.choice(EMITTERS)) if one_caller else None
    for start, stop in _call_places(rng, samples):
        context, emitter = int(rng.choice(CONTEXTS, p=CONTEXT_WEIGHTS)), int(rng.choice(EMITTERS))
        emitter = caller or emitter
        snr = float(rng.uniform(*snr_db))
        # The background's power is 1.
        call = make_call(rng, emitter, context, stop - start)
        sound[start:stop] += 10 ** (snr / 20) * call
        calls.append(Call(start, stop, snr, context, emitter))
    level = rng.uniform(0.1, 0.9) / np.abs(sound).max()
    return np.round(sound * level * 32767).astype(np.int16), calls


def _call_places(rng: np.random.Generator, samples: int) -> list[tuple[int, int]]:
    """Places of calls that do not touch, in order, on average CALL_SHARE of the recordings' time."""
    if rng.random() < 1 / 6:
        return []
    seconds = samples / SAMPLERATE
    count = int(6 / 5 * CALL_SHARE * seconds / np.mean(CALL_SECONDS) + rng.random())
    slot = samples // max(1, count)
    places = []
    for first in range(0, slot * count, slot):
        length = int(rng.uniform(*CALL_SECONDS) * SAMPLERATE)
        start = first + int(rng.integers(0, slot - length))
        places.append((start, start + length))
    return places


def _write_dataset(
    root: Path,
    recordings: int,
    seed: int,
    seconds: tuple[float, float],
    clips: list[np.ndarray],
    snr_db: tuple[float, float],
    one_caller: bool,
) -> None:
    file_info, annotations, truth = [], [], []
    for index in tqdm(range(recordings), desc="recordings", unit="file"):
        rng = np.random.default_rng([seed, index])
        sound, calls = make_recording(rng, int(rng.uniform(*seconds) * SAMPLERATE), clips, snr_db, one_caller)
        row = _file_info_row(rng, index, recordings, calls)
        path = root / row[3] / row[2]
        path.parent.mkdir(exist_ok=True)
        _write_wav(path, sound)
        file_info.append(row)
        annotations += _annotation_rows(rng, index, row[0], len(sound), calls)
        for call in calls:
            onset, offset = call.start / SAMPLERATE, call.stop / SAMPLERATE
            truth.append([f"{row[3]}/{row[2]}", f"{onset:.6f}", f"{offset:.6f}"])
            truth[-1] += [f"{call.snr_db:.2f}", call.context, call.emitter]
    _plant_faults(root, file_info, annotations, recordings)
    _write_csv(root / "FileInfo.csv", FILE_INFO_HEADER, file_info)
    _write_csv(root / "Annotations.csv", ANNOTATIONS_HEADER, annotations)
    _write_csv(root / "truth.csv", TRUTH_HEADER, truth)


def _file_info_row(
    rng: np.random.Generator, index: int, recordings: int, calls: list[Call]
) -> list:
    """FileID, treatment, name, folder, channel, time, and each call as a pair counted from 1.

    Days change every few recordings and treatments every third day, so that splits by either work.
    """
    day = index // max(1, recordings // 24)
    time = datetime(2012, 6, 1) + timedelta(days=day, seconds=int(rng.integers(86_400)))
    name = f"{time:%y%m%d%H%M%S}{index % 1_000_000:06d}.WAV"
    folder = f"files{101 + index // FOLDER_FILES}"
    row = [index + 1, 1 + day // 3, name, folder, 1 + index % 2, f"{time:%Y-%m-%d %H:%M:%S}"]
    for call in calls:
        row += [call.start + 1, call.stop]
    return row


def _annotation_rows(
    rng: np.random.Generator, index: int, file_id: int, samples: int, calls: list[Call]
) -> list[list]:
    """Annotate two recordings in three; the fault cycles through the kinds so that all occur."""
    if not calls or index % 3 == 2:
        return []
    fault = ["none", "tail", "extra call", "offset", "silence inside"][index % 5]
    spans = [(call, call.start + 1, call.stop) for call in calls]
    if fault == "tail":
        spans[-1] = (calls[-1], calls[-1].start + 1, samples)
    elif fault == "extra call" and len(spans) > 1:
        spans = spans[1:]
    elif fault == "offset":
        shift = int(rng.uniform(0.02, 0.06) * SAMPLERATE)
        spans = [
            (c, a + shift, min(b + shift, samples)) for c, a, b in spans if a + shift < samples
        ]
    elif fault == "silence inside":
        spans = [(calls[0], calls[0].start + 1, calls[-1].stop)]
    rows = []
    for call, start, end in spans:
        unknown = rng.random()
        emitter = 0 if unknown < 0.1 else -call.emitter if unknown < 0.2 else call.emitter
        actions = rng.integers(0, 4, 4).tolist()
        rows.append(
            [file_id, emitter, int(rng.choice(EMITTERS)), call.context, *actions, start, end]
        )
    return rows


def _plant_faults(root: Path, file_info: list, annotations: list, recordings: int) -> None:
    """Append what a reader must report and survive; no sound recording's truth changes."""
    first, second, third = file_info[0][0], file_info[1][0], file_info[2][0]
    file_info[0] += [5000, 4000, 6000, 5999, 7000, 1]  # end before they start; longer than the header
    file_info[1] += [10**9, 10**9 + 5000]  # past the end
    file_info[2] += ["12x", 9000]  # not a number
    faulty = [("missing", None), ("empty", b""), ("header only", _wav_header())]
    for number, (what, content) in enumerate(faulty):
        name = f"120531{number:012d}.WAV"
        file_info.append([recordings + 1 + number, 1, name, "files101", 1, what, 100, 5000])
        annotations.append([recordings + 1 + number, 101, 0, 11, 0, 0, 0, 0, 100, 5000])
        if content is not None:
            (root / "files101" / name).write_bytes(content)
    short = "120531000000000009.WAV"
    _write_wav(root / "files101" / short, np.zeros(5000, np.int16))
    file_info.append([recordings + 4, 1, short, "files101", 1, "0.02 s"])
    file_info.append(list(file_info[3]))  # a row given twice
    file_info.append(["x7", 1, "120531000000000010.WAV", "files101", 1, "no number"])
    actions = [0, 0, 0, 0]
    annotations += [
        [first, 101, 0, 11, *actions, 9000, 8000],  # ends before it starts
        [second, 101, 0, 11, *actions, 10**9, 10**9 + 5000],  # past the end
        [third, 101, 0, 11, *actions, "1e", 8000],  # not a number
        [recordings + 1000, 101, 0, 11, *actions, 1, 8000],  # no such recording
        list(annotations[0]),  # a row given twice
    ]


def _wav_header() -> bytes:
    """The 44 bytes of a WAV file without samples."""
    format_chunk = b"fmt " + (16).to_bytes(4, "little") + b"\x01\x00\x01\x00"
    format_chunk += SAMPLERATE.to_bytes(4, "little") + (2 * SAMPLERATE).to_bytes(4, "little")
    format_chunk += b"\x02\x00\x10\x00"
    return b"RIFF" + (36).to_bytes(4, "little") + b"WAVE" + format_chunk + b"data" + bytes(4)


def _write_wav(path: Path, sound: np.ndarray) -> None:
    buffer = io.BytesIO()  # where a disk is full the library says nothing, or not why
    soundfile.write(buffer, sound, SAMPLERATE, subtype="PCM_16", format="WAV")
    path.write_bytes(buffer.getbuffer())


def _write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _read_clip(path: Path) -> np.ndarray:
    """A recording at its true speed, as its metadata tell."""
    return audio.read(path, rate=SAMPLERATE, time_expansion=recorder.metadata(path).time_expansion or 1)


def _audio_files(folder: str | Path | None) -> list[Path]:
    if folder is None:
        return []
    files = audio.find(folder)
    if not files:
        raise audio.AudioError(f"{folder}: no audio files in this folder")
    return files
