"""Reading recordings: header, samples by seeking, anti-aliased resampling, streaming in bounded memory.

Everything libsndfile reads is accepted (WAV of any PCM width, float, WAVE_FORMAT_EXTENSIBLE, FLAC, ...);
channels are averaged. A WAV file whose header gives fewer samples than the file holds, as recorders that lost power leave
it, is read to its end. `time_expansion` declares a recording that was slowed down by that factor, as bat
detectors write them: its true rate is the header's rate times the factor, and `samplerate` and all
durations here are the true ones.

A part read at another rate equals the same part of the whole recording resampled, wherever it starts:
the resampler is a polyphase filter, so a part needs only its own samples and the filter's half width.
"""

import copy
import functools
import io
import math
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch

try:
    import torchaudio
except (ImportError, OSError):  # its compiled part does not load beside another torch
    raise ImportError(
        f"torchaudio is missing or does not fit torch {torch.__version__}: install the torchaudio of the same number"
    ) from None

from . import recorder
from .files import walk

# Of a ratio of rates in lowest terms, numerator x denominator: as many numbers have the filters of a `Resampler`. From 11.025 to
# 250 kHz it is 4.41 million; of rates that share no divisor (47,999 Hz, say) it would be gigabytes.
MAX_FILTERS = 5_000_000
CROSSINGS, ROLLOFF = 6, 0.99  # torchaudio's: of zero, on each side of a filter; its cut over half of the lower rate
RATES = (100, 100_000_000)  # Hz, of a recording
MAX_PACKED = 20_000  # samples in a byte: FLAC packs silence to a third of that
MAX_PACKED_MP3 = 48  # 1152 samples in a frame of 24 bytes


# Of all types of libsndfile but the headerless one: their usual suffixes, and the names that libsndfile gives them.
SUFFIXES = tuple(
    f".{name}"
    for name in (
        "wav wave bwf wavex rf64 w64 flac ogg oga opus mp3 mp2 aif aiff aifc au snd avr caf htk svx 8svx 16svx iff "
        "mat mat4 mat5 mpc mpc2k paf pvf sd2 sds sf ircam voc nist sph wve xi"
    ).split()
)
# Other programs' files have these too: only those that libsndfile can open are recordings.
SHARED_SUFFIXES = (".mat", ".mat4", ".mat5", ".snd", ".iff", ".htk", ".sf", ".xi", ".mpc", ".paf", ".sds", ".avr")
# Recordings that libsndfile cannot read: they are found, so that they are named.
UNREADABLE_SUFFIXES = (".m4a", ".m4b", ".aac", ".ac3", ".amr", ".ape", ".dss", ".wma", ".wv")
# Bytes of a sample.
WIDTHS = {"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
LOUDEST = 10.0  # floats lie within -1 and 1; a mixer may go a little beyond, a recorder does not


class AudioError(ValueError):
    """A recording that cannot be used; the message is one line that begins with the path.

    `reason` sorts them: "file missing", "0 bytes", "header only", "not audio" or "impossible values".
    """

    def __init__(self, message: str, reason: str = "not audio") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class AudioInfo:
    """Header of a recording: true sampling rate (Hz), length in samples per channel, channel count.

    fault: where header and file disagree, a line about it; frames are those that the file holds. Or that the rate is rounded.
    """

    path: Path
    samplerate: int
    frames: int
    channels: int
    fault: str = ""

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.frames / self.samplerate


def probe(path: str | Path, time_expansion: float = 1, values: bool = False) -> AudioInfo:
    """Read the header only; with `values`, of floats also all samples, which may be ones that no recorder writes.

    Raises AudioError if missing, empty, without samples, not audio, or with such values.
    """
    with _open(path) as file:
        info = _info(file, path, time_expansion)
        if values and file.subtype in ("FLOAT", "DOUBLE"):
            for start in range(0, info.frames, 2**20):
                stop = min(start + 2**20, info.frames)
                _samples(file, info, start, stop, np.empty(stop - start, np.float32))
        return replace(info, fault=_fault(file, path) or _fraction(file.samplerate, info, time_expansion))


@dataclass(frozen=True)
class Part:
    """A part of a recording before it is resampled: `samples` (n,) float32 at the recording's own rate, which is to the wanted
    one as `ratio`. Where these differ, the part is what `resampler(*ratio)` makes of them, `count` outputs from `skipped` on.
    Between rates that have no `Resampler` (MAX_FILTERS) the samples are the part, resampled already.
    """

    samples: np.ndarray
    count: int
    skipped: int = 0
    ratio: tuple[int, int] = (1, 1)

    def resampled(self) -> np.ndarray:
        """The part at the other rate (count,), float32."""
        if self.ratio[0] == self.ratio[1]:
            return self.samples
        outputs = resampler(*self.ratio)(torch.from_numpy(self.samples)).numpy()
        return outputs[self.skipped : self.skipped + self.count]


def read(
    path: str | Path,
    start: int = 0,
    frames: int | None = None,
    *,
    rate: int | None = None,
    time_expansion: float = 1,
) -> np.ndarray:
    """Samples `start` to `start + frames` as float32 (frames,), the mean of the channels, by seeking.

    With `rate`, `start` and `frames` count samples at that rate and the part is resampled; otherwise
    they count the file's own. What lies past the end is left out, as in a slice. Raises AudioError.
    """
    return read_part(path, start, frames, rate=rate, time_expansion=time_expansion).resampled()


def read_part(
    path: str | Path,
    start: int = 0,
    frames: int | None = None,
    *,
    rate: int | None = None,
    time_expansion: float = 1,
) -> Part:
    """What `read` resamples. Raises AudioError."""
    with _open(path) as file:
        info = _info(file, path, time_expansion)
        stop = None if frames is None else start + frames
        return _part(file, info, info.samplerate if rate is None else rate, start, stop)


ARRAY = "array"  # what a waveform in memory is called where a recording has its path


def from_array(array, samplerate: int | None, time_expansion: float = 1) -> tuple[np.ndarray, int]:
    """A waveform in memory as float32 (samples,), and its true rate.

    `array`: what numpy, PyTorch or soundfile give, (samples,) or (samples, channels), floats of any width from -1 to 1 or
    signed integers of up to 32 bits, all of which count. Raises AudioError for others, ValueError without a rate.
    """
    if samplerate is None:
        raise ValueError("an array needs its samplerate (Hz) beside it")
    rate = true_rate(samplerate, time_expansion)
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{ARRAY}: samplerate is {rate} Hz; sound has {RATES[0]} to {RATES[1]} Hz")
    samples = np.asarray(array)
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "fi":
        expected = "floats or signed integers, (samples,) or (samples, channels)"
        raise AudioError(f"{ARRAY}: is {samples.dtype} {samples.shape}; expected {expected}")
    if not samples.size:
        raise AudioError(f"{ARRAY}: has no samples", "0 bytes")
    if samples.dtype == np.int64:  # what lists of numbers and sums become; by its largest number all would be silence
        raise AudioError(f"{ARRAY}: is int64, as no recording is; expected what its recorder wrote, int16 say")
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        raise AudioError(f"{ARRAY}: is {samples.shape}; expected (samples, channels), transpose it")
    if samples.dtype.kind == "i":
        samples = samples / -float(np.iinfo(samples.dtype).min)
    _check(samples, ARRAY)
    return (samples if samples.ndim == 1 else samples.mean(axis=1)).astype(np.float32), rate


def stream(
    path: str | Path, rate: int, block_seconds: float = 10.0, time_expansion: float = 1
) -> Iterator[np.ndarray]:
    """Yield float32 blocks at `rate`, `block_seconds` long (the last one shorter), holding one at a time.

    Concatenated they equal `read(path, rate=rate)` for any block length. Raises AudioError.
    """
    block = max(1, round(block_seconds * rate))
    with _open(path) as file:
        info = _info(file, path, time_expansion)
        for start in range(0, resampled_length(info.frames, info.samplerate, rate), block):
            yield _part(file, info, rate, start, start + block).resampled()


def resample(
    waveform: np.ndarray | torch.Tensor, from_rate: int, to_rate: int, time_expansion: float = 1
) -> np.ndarray | torch.Tensor:
    """Resample (..., frames) to float32 (..., ceil(frames * to_rate / from_rate)), array in, array out.

    torchaudio's windowed sinc, whose low-pass lies below half of the lower rate.
    """
    if isinstance(waveform, np.ndarray):
        return resample(torch.from_numpy(waveform), from_rate, to_rate, time_expansion).numpy()
    orig, new = _ratio(true_rate(from_rate, time_expansion), to_rate)
    if orig == new:
        return waveform.float()
    frames = waveform.shape[-1]
    length = -(-frames * new // orig)
    if orig * new > MAX_FILTERS:
        width = _width(orig, new)
        return _one_by_one(torch.nn.functional.pad(waveform.float(), (width, width + 1)), -width, range(length), orig, new)
    resampling = resampler(orig, new)
    padding = resampling.padded(length) - frames - resampling.width
    padded = torch.nn.functional.pad(waveform.float(), (resampling.width, padding))
    return resampling(padded)[..., :length]


def resampled_length(frames: int, from_rate: int, to_rate: int) -> int:
    """Number of samples that `frames` samples become."""
    orig, new = _ratio(from_rate, to_rate)
    return -(-frames * new // orig)


def true_rate(header_rate: int, time_expansion: float) -> int:
    """Rate of a recording that was slowed down by a factor. Raises ValueError for no such factor."""
    if not (time_expansion > 0 and math.isfinite(header_rate * time_expansion)):
        raise ValueError(f"time_expansion is {time_expansion}; expected a positive factor")
    return round(header_rate * time_expansion)


def find(folder: str | Path) -> list[Path]:
    """Recordings in `folder` and below it, by their suffix in either case, sorted, with those that cannot be read here; also in
    folders that links lead to (`files.walk`).

    Not ._a.wav, which is what macOS keeps of a.wav on other systems' disks; and what other programs' files may be too
    (.mat, say) only if it can be read. Raises AudioError if there is no such folder.
    """
    if not Path(folder).is_dir():
        raise AudioError(f"{folder}: no such folder")
    wanted = (*SUFFIXES, *UNREADABLE_SUFFIXES)
    all_of_them = (here / name for here, folders, names in walk(folder) for name in (*folders, *names))
    found = (p for p in all_of_them if p.suffix.lower() in wanted and not p.name.startswith("._"))
    return sorted(p for p in found if p.suffix.lower() not in SHARED_SUFFIXES or _is_audio(p))


def _is_audio(path: Path) -> bool:
    try:
        _open(path).close()
    except AudioError:
        return False
    return True


@functools.lru_cache(maxsize=16)
def _ratio(from_rate: int, to_rate: int) -> tuple[int, int]:
    ratio = Fraction(to_rate, from_rate)
    return ratio.denominator, ratio.numerator


class Resampler:
    """torchaudio's filter, as matrix products: those take half the time of its convolution.

    A block of `block` samples becomes `outputs` ones, which need the 2 * `width` samples after it too;
    blocks are long enough that these lie in the next one.
    """

    def __init__(self, orig: int, new: int) -> None:
        # Left to itself torchaudio computes the filters' phases in float32: 1e-5 off at 44.1 kHz.
        transform = torchaudio.transforms.Resample(orig, new, dtype=torch.float64).float()
        self.width = transform.width
        steps = -(-2 * self.width // orig)
        self.block, self.outputs = steps * orig, steps * new
        filters = torch.zeros(self.block + 2 * self.width, self.outputs, dtype=torch.float32)
        for step in range(steps):
            taps = filters[step * orig :, step * new : (step + 1) * new]
            taps[: orig + 2 * self.width] = transform.kernel[:, 0].T
        self._filters = filters.split([self.block, 2 * self.width])

    def to(self, device: torch.device) -> "Resampler":
        """One whose filters are on another device, copied there without waiting for it."""
        moved = copy.copy(self)
        moved._filters = [part.to(device, non_blocking=True) for part in self._filters]
        return moved

    def padded(self, outputs: int) -> int:
        """Samples that so many outputs take, `width` of them before the first output's."""
        return (-(-outputs // self.outputs) + 1) * self.block

    def __call__(self, padded: torch.Tensor) -> torch.Tensor:
        """(..., padded(outputs)) -> (..., outputs or up to a block more)."""
        blocks = padded.reshape(*padded.shape[:-1], -1, self.block)
        own, shared = self._filters
        outputs = blocks[..., :-1, :] @ own + blocks[..., 1:, : 2 * self.width] @ shared
        return outputs.flatten(-2)


def _width(orig: int, new: int) -> int:
    """Samples on either side of an output that its filter takes."""
    return math.ceil(CROSSINGS / (ROLLOFF * min(1, new / orig)))


def _one_by_one(samples: torch.Tensor, first: int, outputs: range, orig: int, new: int) -> torch.Tensor:
    """The `outputs` (a range of their numbers) of a recording whose samples from number `first` on are (..., frames); each by a
    filter that is computed for it, torchaudio's. Some ten times slower than a `Resampler`, in little memory for any rates.
    """
    scale, width = ROLLOFF * min(1, new / orig), _width(orig, new)
    taps = torch.arange(-width, width + 1)
    made = samples.new_empty(*samples.shape[:-1], len(outputs))
    at_once = max(1, 2**18 // len(taps))
    for begin in range(0, len(outputs), at_once):
        numbers = outputs[begin : begin + at_once]
        places = torch.arange(numbers.start, numbers.stop) * orig
        nearest = places // new
        times = (taps - (places - nearest * new).double()[:, None] / new) * scale
        times = times.clamp(-CROSSINGS, CROSSINGS)
        filters = torch.sinc(times) * (times * (math.pi / 2 / CROSSINGS)).cos() ** 2 * scale
        part = samples[..., nearest[:, None] + (taps - first)]  # (..., outputs, taps)
        made[..., begin : begin + len(numbers)] = (part * filters.to(part.device)).sum(-1)
    return made


@functools.lru_cache(maxsize=16)
def resampler(orig: int, new: int) -> Resampler:
    """The filters between two rates that differ, by their ratio in lowest terms, on the CPU."""
    return Resampler(orig, new)


def _open(path: str | Path) -> soundfile.SoundFile:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise AudioError(f"{path}: is no file but a pipe or a device")  # to open it may wait for ever
        file = soundfile.SoundFile(path)
        return file if _is_plain(file, path) else _repaired(file, path)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: headerless .raw
        path = Path(path)
        if not os.path.exists(path):  # Path.exists raises for names that are too long
            raise AudioError(f"{path}: no such file", "file missing") from None
        if path.is_dir():
            raise AudioError(f"{path}: is a folder, not a recording") from None
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: is empty (0 bytes)", "0 bytes") from None
        reason = getattr(error, "error_string", str(error)).splitlines()[0]
        raise AudioError(f"{path}: cannot be read as audio ({reason})") from None


def _is_plain(file: soundfile.SoundFile, path: str | Path) -> bool:
    """Whether all of a file but a header of the usual length is samples: then nothing lies behind them."""
    if file.format not in ("WAV", "WAVEX"):
        return True
    return os.stat(path).st_size - file.frames * file.channels * WIDTHS.get(file.subtype, 0) == 44


def _repaired(file: soundfile.SoundFile, path: str | Path) -> soundfile.SoundFile:
    """The file, or if its header tells of fewer samples than it holds, the file with another header."""
    found = recorder.riff(path)
    if found.samples is None or found.present <= found.stated:
        return file
    file.close()
    return soundfile.SoundFile(_Patched(path, found.samples - 4, struct.pack("<I", found.present)))


class _Patched(io.FileIO):
    """A file of which some bytes read otherwise."""

    def __init__(self, path: str | Path, place: int, patch: bytes) -> None:
        super().__init__(path)
        self._place, self._patch = place, patch

    def read(self, size: int = -1) -> bytes:
        start = self.tell()
        data = bytearray(super().read(size))
        for i, byte in enumerate(self._patch, self._place - start):
            if 0 <= i < len(data):
                data[i] = byte
        return bytes(data)

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


# What libsndfile's log says of a header that disagrees with the file.
DISAGREES = re.compile(
    r"^ *(?:data|Data Size) *: (\d+) \(should be (\d+)\)|^ *(?:SSND|riff) *: \d+ \(should be"
    r"|Calculated frame count|truncated file|ended unexpectedly",
    re.MULTILINE,
)


def _fault(file: soundfile.SoundFile, path: str | Path) -> str:
    if isinstance(file.name, _Patched):
        stated, held = recorder.riff(path).stated // file.channels // WIDTHS.get(file.subtype, 1), file.frames
        return f"{path}: the header says {stated} samples, the file holds {held}; all are used"
    found = DISAGREES.search(file.extra_info)
    if not found or found.group(1) and abs(int(found.group(1)) - int(found.group(2))) < 8:
        return ""
    if found.group(1) and file.subtype in WIDTHS:
        stated = int(found.group(1)) // file.channels // WIDTHS[file.subtype]
        return f"{path}: the header says {stated} samples, the file holds {file.frames}; it may have been cut off"
    return f"{path}: the header and the file disagree; the file holds {file.frames} samples, and may have been cut off"


def _fraction(header_rate: int, info: AudioInfo, time_expansion: float) -> str:
    """What the hertz that rates count to leave out of a true one, where it makes a millisecond in an hour or more."""
    late = 3_600_000 * (header_rate * time_expansion / info.samplerate - 1)  # ms
    if abs(late) < 1:
        return ""
    told = f"{header_rate} Hz times {time_expansion:g} is {header_rate * time_expansion:.10g} Hz, taken for {info.samplerate}"
    return f"{info.path}: {told}: times are {abs(late):.0f} ms an hour too {'late' if late > 0 else 'early'}"


def _info(file: soundfile.SoundFile, path: str | Path, time_expansion: float) -> AudioInfo:
    if file.frames <= 0:
        raise AudioError(f"{path}: has a header but no samples", "header only")
    samplerate = true_rate(file.samplerate, time_expansion)
    if not RATES[0] <= samplerate <= RATES[1]:
        raise AudioError(f"{path}: its header says {samplerate} Hz; sound has {RATES[0]} to {RATES[1]} Hz")
    size = os.path.getsize(path)
    if file.frames > (MAX_PACKED_MP3 if file.format in ("MP3", "MPEG") else MAX_PACKED) * size:
        hours = file.frames / file.samplerate / 3600
        raise AudioError(f"{path}: its header says {hours:.0f} hours, of which its {size} bytes cannot be")
    return AudioInfo(Path(path), samplerate, file.frames, file.channels)


def _samples(
    file: soundfile.SoundFile, info: AudioInfo, start: int, stop: int, out: np.ndarray
) -> None:
    """Write samples [start, stop) to `out` (stop - start,)."""
    # libsndfile takes three times as long to turn 16 bits into floats as numpy does, to the same values.
    is_16_bit = file.subtype == "PCM_16"
    try:
        file.seek(start)
        samples = file.read(stop - start, "int16" if is_16_bit else "float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{info.path}: cannot be read ({error.error_string})") from None
    if len(samples) < stop - start:
        end = start + len(samples)
        raise AudioError(f"{info.path}: ends at sample {end}, its header says {info.frames}")
    if info.channels == 1:
        mono = samples[:, 0]  # (frames, channels) -> (frames,)
    else:
        mono = samples.mean(axis=1, dtype=np.float32)
    if file.subtype in ("FLOAT", "DOUBLE"):
        _check(samples, info.path)
    np.multiply(mono, np.float32(2**-15 if is_16_bit else 1), out=out)


def _check(samples: np.ndarray, path: str | Path) -> None:
    """Raise AudioError for values that no recorder writes."""
    loudest = float(np.abs(samples).max(initial=0))
    if not math.isfinite(loudest):
        raise AudioError(f"{path}: holds samples that are not finite numbers", "impossible values")
    if loudest >= 2 and (samples == np.rint(samples)).all():
        raise AudioError(
            f"{path}: its floats are whole numbers up to {loudest:g}, where those of a recording lie within -1 and 1; "
            "divide them by their format's largest (32768 for 16 bits)",
            "impossible values",
        )
    if loudest > LOUDEST:
        raise AudioError(
            f"{path}: its floats reach {loudest:g}, where those of a recording lie within -1 and 1", "impossible values"
        )


def _part(
    file: soundfile.SoundFile, info: AudioInfo, rate: int, start: int, stop: int | None
) -> Part:
    total = resampled_length(info.frames, info.samplerate, rate)
    stop = total if stop is None else min(stop, total)
    start = max(0, start)
    if start >= stop:
        return Part(np.zeros(0, np.float32), 0)
    orig, new = _ratio(info.samplerate, rate)
    if orig == new:
        samples = np.empty(stop - start, np.float32)
        _samples(file, info, start, stop, samples)
        return Part(samples, len(samples))
    if orig * new > MAX_FILTERS:
        width = _width(orig, new)
        first = start * orig // new - width
        samples = _silence_around(file, info, first, (stop - 1) * orig // new + width + 1)
        made = _one_by_one(torch.from_numpy(samples), first, range(start, stop), orig, new)
        return Part(made.numpy(), stop - start)
    resampling = resampler(orig, new)
    # From the start of a block, so that a sample is summed in the same order whichever part it is in.
    block, skipped = divmod(start, resampling.outputs)
    first = block * resampling.block - resampling.width
    samples = _silence_around(file, info, first, first + resampling.padded(skipped + stop - start))
    return Part(samples, stop - start, skipped, (orig, new))


def _silence_around(file: soundfile.SoundFile, info: AudioInfo, start: int, stop: int) -> np.ndarray:
    """Samples [start, stop), (stop - start,) float32; zeros before the recording and after it."""
    padded = np.empty(stop - start, np.float32)
    begin, end = max(0, start), min(info.frames, stop)
    padded[: begin - start] = padded[end - start :] = 0
    _samples(file, info, begin, end, padded[begin - start : end - start])
    return padded
