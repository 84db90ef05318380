"""Options and paths that nobody means: one line and exit code 2, and what is printed of them a terminal does not obey."""

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from trainer_cases import as_options, tiny

from denet_torch.files import MAX_MESSAGE, replacing
from tools import command
from training import run
from training.collection import build_index
from training.synthetic import make_dataset

LONG = "x" * 3000


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("calls") / "calls", 8, seed=1, min_seconds=1, max_seconds=1.2)


@pytest.mark.parametrize(
    "words, told",
    [
        (["report", LONG], "File name too long"),
        (["convert", LONG, "x.safetensors"], "File name too long"),
        (["index", LONG], "File name too long"),
        (["make-dataset", "x", "--snr-db", "0", "1e308"], "from -200 to 200 dB"),
        (["make-dataset", "x", "--snr-db", "nan", "0"], "from -200 to 200 dB"),
        (["make-dataset", "x", "--max-seconds", "inf"], "1 to 3600 s"),
        (["make-dataset", "x", "--max-seconds", "1e308"], "1 to 3600 s"),
        (["paste-calls", "{calls}", "{calls}", "x", "--snr-db", "-10000", "0"], "from -200 to 200 dB"),
        (["export-yolo", "{calls}", "x", "--width", "2147483648"], "each side has 10 to 16384"),
        (["study", "--data-dir", "{calls}", "--snr-db", "0", "1e9"], "from -200 to 200 dB"),
        (["train\x1b[2J"], r"no command train\x1b[2J"),
    ],
)
def test_what_no_command_can_use(words, told, calls, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main([word.format(calls=calls) for word in words]) == 2
    said = capsys.readouterr()
    line = said.err.splitlines()[-1].rpartition("\r")[2]
    assert line.startswith("error: ") and told in line and line.isprintable() and len(line) <= MAX_MESSAGE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factor", [1e18, 1e-300, 1000])
def test_rates_that_no_sound_has_are_left_out_of_an_index(factor, calls, tmp_path):
    usual, report = build_index(calls, tmp_path / "usual.parquet", time_expansion=10)  # 2.5 MHz
    assert len(usual.recordings) and not (report["reason"] == "impossible rate").any()
    collection, report = build_index(calls, tmp_path / "index.parquet", time_expansion=factor)
    assert not len(collection.recordings) and (report["reason"] == "impossible rate").sum() == len(usual.recordings)


def test_names_that_are_printed_are_not_obeyed(calls, tmp_path, capsys):
    odd = "\x1b[2Jx"
    for words in (["index", str(calls), "--output", odd], ["make-dataset", odd]):
        assert command.main([word.replace(odd, str(tmp_path / f"{odd}-{words[0]}")) for word in words]) == 0
        said = capsys.readouterr()
        assert r"\x1b[2Jx" in said.out and "\x1b" not in said.out


def test_more_processes_than_there_is_work_for(calls, tmp_path):
    config = tiny(calls, tmp_path / "run", epochs=1)
    assert command.main(["train", *as_options(config)]) == 0
    sound = next(calls.rglob("*.WAV"))
    words = ["detect", str(sound), "--weights", str(tmp_path / "run"), "--output", str(tmp_path / "found")]
    assert command.main([*words, "--jobs", "9" * 20]) == 0


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_a_batch_that_no_memory_holds_is_one_line(error, monkeypatch, capsys, tmp_path):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(run, "train", full)
    assert command.main(["train", "--batch-size", "2147483648", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: the memory does not hold this; half the --batch-size")


def test_what_is_left_out_of_a_long_folder_is_one_line(calls, tmp_path, capsys):
    there = shutil.copytree(calls, tmp_path.joinpath(*["9" * 200] * 4))
    for name in there.rglob("*.[wW][aA][vV]"):
        if name.stat().st_size > 1000:
            soundfile.write(name, np.zeros(soundfile.info(name).frames), soundfile.info(name).samplerate)  # sets no ratio
    command.main(["paste-calls", str(there), str(there), str(tmp_path / "pasted"), "--recordings", "2", "--seconds", "1"])
    said = capsys.readouterr().err
    assert said.count("error: ") + said.count("left out") and all(
        len(line.rpartition("\r")[2]) <= MAX_MESSAGE for line in said.split("\n")
    )


@pytest.mark.parametrize("there", ["{folder}/pipe", "/dev/no-such-device", "/proc/self/fd/1"])
def test_no_file_takes_the_place_of_a_device(there, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    target = there.format(folder=tmp_path)
    before = sorted(os.listdir(os.path.dirname(target)))
    with pytest.raises(OSError, match="pipe or a device|among devices"), replacing(target) as path:
        path.write_text("x")
    assert sorted(os.listdir(os.path.dirname(target))) == before and (tmp_path / "pipe").is_fifo()


def test_an_index_without_some_rates_is_none(calls, tmp_path, capsys):
    data = shutil.copytree(calls, tmp_path / "data")
    build_index(data)
    table = pq.read_table(data / "index.parquet")
    rates = pa.array([None, *table["samplerate"].to_pylist()[1:]], table["samplerate"].type)
    table = table.set_column(table.column_names.index("samplerate"), "samplerate", rates)
    pq.write_table(table, data / "index.parquet")
    assert command.main(["suggest", str(data)]) == 2
    assert "index.parquet: is no index (a recording has no rate or no length)" in capsys.readouterr().err
