"""What recorders write beside the samples, and what they name recordings."""

import struct
from datetime import datetime

import guano
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from denet_torch import audio, recorder
from training.collection import CollectionError, build_index, open_collection
from training.dates import began, date_in_name, site

SOUND = np.random.default_rng(0).integers(-3000, 3000, 4000).astype(np.int16)


def write(path, rate=25_000, chunks=(), sound=SOUND):
    """A WAV file, with further chunks after the samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, format="WAV")
    tail = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    content = bytearray(path.read_bytes() + tail)
    content[4:8] = struct.pack("<I", len(content) - 8)
    path.write_bytes(content)
    return path


def guan(**fields) -> tuple[bytes, bytes]:
    return b"guan", "\n".join(["GUANO|Version: 1.0", *(f"{name}: {value}" for name, value in fields.items())]).encode()


def wamd(time: str, factor: int) -> tuple[bytes, bytes]:
    fields = [(0, b"\1\0"), (5, time.encode()), (15, struct.pack("<H", factor))]
    return b"wamd", b"".join(struct.pack("<HI", number, len(data)) + data for number, data in fields)


MOTH = b"INFOICMT" + struct.pack("<I", 80) + b"Recorded at 21:00:00 01/06/2023 (UTC) by AudioMoth 24F319055FDF".ljust(80, b"\0")
NINE = datetime(2023, 6, 1, 21)


@pytest.mark.parametrize(
    "chunks, recorded, factor",
    [
        ([], None, None),
        ([guan(Timestamp="2023-06-01T21:00:00+02:00", TE=10)], NINE, 10),
        ([guan(Timestamp="2023-06-01T21:00:00")], NINE, 1),
        ([guan(Timestamp="yesterday", TE="ten")], None, None),
        ([guan(Timestamp="1970-01-01T00:00:10", TE="")], None, 1),
        ([guan(TE="1" + "0" * 400)], None, None),
        ([guan(TE=10, Samplerate="1" + "0" * 400)], None, 10),
        ([(b"guan", b"GUANO|Version: 1.0\na line of nothing\nTE: 8\n\0\0")], None, 8),
        ([(b"guan", b"\xff\xfe\0")], None, None),
        ([wamd("2023-06-01 21:00:00+01:00", 1)], NINE, 1),
        ([wamd("2023-06-01 21:00:00", 10)], NINE, 10),
        ([(b"wamd", b"\5\0\xff\xff\xff\xff12")], None, None),
        ([(b"LIST", MOTH)], NINE, None),
        ([(b"LIST", MOTH.replace(b"21:00:00 ", b"21:00:00.250 "))], NINE.replace(microsecond=250_000), None),
        ([(b"LIST", b"adtl"), (b"LIST", MOTH)], NINE, None),
        ([(b"bext", bytes(320) + b"2023-06-0121:00:00" + bytes(264))], NINE, None),
        ([(b"bext", bytes(320) + b"2023_06_01" + bytes(272))], datetime(2023, 6, 1), None),
    ],
)
def test_metadata(tmp_path, chunks, recorded, factor):
    path = write(tmp_path / "a.wav", chunks=chunks)
    assert recorder.metadata(path) == recorder.Metadata(recorded, factor, recorded == datetime(2023, 6, 1))
    assert audio.probe(path).fault == "" and len(audio.read(path)) == len(SOUND)


@pytest.mark.parametrize("factor", ["1e-300", "1e-308", "5e-324"])
def test_a_factor_next_to_nothing_is_asked_about(tmp_path, factor):
    path = write(tmp_path / "a.wav", chunks=[guan(TE=factor)])
    with pytest.raises(ValueError, match=f"a.wav: its metadata say time expansion {float(factor):g} and .* Hz, its header"):
        recorder.time_expansion([path])


def test_guano_as_its_own_library_writes_it(tmp_path):
    path = write(tmp_path / "a.wav")
    file = guano.GuanoFile(str(path))
    file["GUANO|Version"], file["TE"], file["Timestamp"] = 1.0, 10, NINE
    file.write(make_backup=False)
    assert recorder.metadata(path) == recorder.Metadata(NINE, 10)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_chunk_breaks_the_reader(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("chunks")
    for name in recorder.TOLD:
        recorder.metadata(write(folder / "a.wav", chunks=[(name, content)]))
    (folder / "b.wav").write_bytes(b"RIFF\0\0\0\0WAVE" + content)
    recorder.metadata(folder / "b.wav")


def collection(folder, factors, **options):
    """Recordings that say such factors, with a call each at 0.8 to 1.2 s of the slow file."""
    for i, factor in enumerate(factors):
        write(folder / f"r{i}.wav", chunks=[guan(TE=factor)] if factor else [], sound=np.tile(SOUND, 10))
        (folder / f"r{i}.txt").write_text("0.8\t1.2\tpip\n")
    return build_index(folder, **options)[0]


def test_a_factor_in_the_metadata_is_used(tmp_path):
    found = collection(tmp_path, [10, 10, 10])
    assert found.time_expansion == 10 and set(found.recordings["samplerate"]) == {250_000}
    assert found.annotations[["start", "stop"]].to_numpy().tolist() == [[20_000, 30_000]] * 3
    assert open_collection(tmp_path).time_expansion == 10
    assert open_collection(tmp_path, time_expansion=1).time_expansion == 1  # what a person says counts


@pytest.mark.parametrize(
    "rate, fields, factor",
    [
        (25_000, {"TE": 10, "Samplerate": 250_000}, 10),
        (25_000, {"TE": 10, "Samplerate": 25_000}, 10),  # against GUANO's rules, but it cannot mean anything else
        (44_100, {"Samplerate": 384_000}, 1),  # resampled
        (384_000, {"TE": 1, "Samplerate": 384_000}, 1),
        (384_000, {"TE": 10, "Samplerate": 384_000}, None),
        (384_000, {"TE": 10}, None),
        (25_600, {"Samplerate": 256_000}, None),
        (25_600, {"TE": 1, "Samplerate": 256_000}, None),
    ],
)
def test_a_factor_that_contradicts_the_header_is_a_question(tmp_path, rate, fields, factor):
    write(tmp_path / "r.wav", chunks=[guan(**fields)], sound=np.tile(SOUND, 10), rate=rate)
    (tmp_path / "r.txt").write_text("0.01\t0.02\tpip\n")
    if factor is not None:
        assert build_index(tmp_path)[0].time_expansion == factor == recorder.time_expansion([tmp_path / "r.wav"])
        return
    with pytest.raises(CollectionError, match=rf"r.wav: its metadata say .* its header {rate} Hz; name .* --time-expansion"):
        build_index(tmp_path)
    with pytest.raises(ValueError, match="name its time expansion with --time-expansion"):
        recorder.time_expansion([tmp_path / "r.wav"])
    assert build_index(tmp_path, time_expansion=2)[0].time_expansion == 2


@pytest.mark.parametrize("name", [b"RF64", b"BW64"])
def test_metadata_of_files_of_any_size(tmp_path, name):
    """RF64 has the lengths of 64 bits in a chunk of its own."""
    chunk = guan(TE=10, Timestamp="2023-06-01T21:00:00")[1].ljust(80)
    sound = np.zeros(100, "<i2").tobytes()
    fmt = struct.pack("<HHIIHH", 1, 1, 25_000, 50_000, 2, 16)
    body = [(b"ds64", struct.pack("<QQQI", 0, len(sound), 100, 0)), (b"fmt ", fmt), (b"data", sound), (b"guan", chunk)]
    parts = [part + struct.pack("<I", 2**32 - 1 if part == b"data" else len(data)) + data for part, data in body]
    (tmp_path / "a.wav").write_bytes(name + b"\xff\xff\xff\xffWAVE" + b"".join(parts))
    assert recorder.metadata(tmp_path / "a.wav") == recorder.Metadata(NINE, 10)
    assert recorder.riff(tmp_path / "a.wav").stated == 200 and recorder.riff(tmp_path / "a.wav").rate == 25_000


@pytest.mark.parametrize("factors", [[10, 10, 8], [10, None, 10]])
def test_different_factors_are_a_question(tmp_path, factors):
    with pytest.raises(CollectionError, match="time expansion 10, .* name the factor of all with --time-expansion"):
        collection(tmp_path, factors)
    assert collection(tmp_path, factors, time_expansion=10).time_expansion == 10


@pytest.mark.parametrize(
    "name, expected",
    [
        ("20230601_210000.WAV", NINE),
        ("S4U01234_20230601_210000_000.wav", NINE),
        ("2023-06-01T21-00-00.wav", NINE),
        ("20230601T210000+0100.flac", NINE),
        ("20230601$210000.wav", NINE),
        ("6478.230601210000.wav", NINE),
        ("site 3/230601_2100.wav", NINE),
        ("01.06.2023_21h00.wav", NINE),
        ("120601011047196133.WAV", datetime(2012, 6, 1, 1, 10, 47)),
        ("5E23A8F0.WAV", datetime(2020, 1, 19, 0, 55, 12)),
        ("405_marron1_June_14_2016_69640887.wav", datetime(2016, 6, 14)),
        ("MSD-0003_20180427_2minstart00.wav", datetime(2018, 4, 27)),
        ("2023-06-01/rec1.wav", datetime(2023, 6, 1)),
        ("files101/rec_000123.wav", None),
        ("XC123456.wav", None),
        ("20230231_210000.wav", None),
        ("19700101_000012.wav", None),
        ("Größe.wav", None),
    ],
)
def test_date_in_name(name, expected):
    assert date_in_name(name) == expected


@settings(max_examples=200, deadline=None)
@given(st.datetimes(datetime(2005, 1, 1), datetime(2026, 1, 1)), st.sampled_from(["", "SM4_", "rec 7 ", "Übung-"]))
def test_dates_as_recorders_write_them(when, before):
    when = when.replace(microsecond=0)
    for form in ("%Y%m%d_%H%M%S", "%Y-%m-%d_%H-%M-%S", "%Y%m%dT%H%M%S", "%Y-%m-%d %H.%M.%S", "%y%m%d_%H%M%S", "%y%m%d%H%M%S"):
        assert date_in_name(f"folder/{before}{when.strftime(form)}.wav") == when, form
    assert date_in_name(f"{before}{when.strftime('%d-%b-%Y')}.wav") == datetime(when.year, when.month, when.day)


@pytest.mark.parametrize(
    "name, chunks, expected",
    [
        ("20230601_210000.wav", [], NINE),
        ("2023-06-01/rec1.wav", [], None),  # a date without a time of the day
        ("a.wav", [guan(Timestamp="2023-06-01T21:00:00")], NINE),
        ("20230601_210000.wav", [(b"bext", bytes(320) + b"2023-06-01" + bytes(272))], NINE),
        ("a.wav", [], None),
    ],
)
def test_when_a_recording_began(tmp_path, name, chunks, expected):
    assert began(write(tmp_path / name, chunks=chunks)) == expected


@pytest.mark.parametrize(
    "name, expected",
    [
        ("SM4_KRAAL-2_20230601_210000.wav", "SM4_KRAAL-2"),
        ("season/hill 3/20230601_210000.WAV", "hill 3"),
        ("season/cave/2023-06-01/20230601_210000.WAV", "cave"),
        ("season/5E23A8F0.WAV", "season"),
        ("night.wav", ""),
        ("../20230601_210000.wav", ""),
        ("a/a.wav", "a"),
    ],
)
def test_site(name, expected):
    assert site(name) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="/\0"), max_size=30))
def test_any_name_has_a_date_or_none(name):
    date_in_name(name)
    site(name)
