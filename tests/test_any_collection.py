"""Collections as people have them: several formats, rates and dates in one, and what cannot be trained on said in a line."""

import numpy as np
import pytest
from field_cases import HEADER, SMALL, raven, run, selection, tiny_weights, wav
from test_recorder import guan, write

from denet_torch import audio, detect, load
from training import guards
from training.collection import CollectionError, open_collection
from training.labels import Labeller
from training.splits import split_collection
from training.windows import open_datasets


def recordings(folder, count=6, rate=16_000, name="r{}", table=True):
    for i in range(count):
        path = folder / f"{name.format(i)}.wav"
        wav(path, 2, rate, [(0.5, 1.0)], seed=i)
        if table:
            raven(path.with_suffix(".Table.1.selections.txt"), [selection(0.5, 1.0, "x")])
    return folder


def test_recordings_of_several_formats_are_one_collection(tmp_path):
    recordings(tmp_path / "raven", 2)
    recordings(tmp_path / "audacity", 2, table=False)
    for i in range(2):
        (tmp_path / "audacity" / f"r{i}.txt").write_text("0.5\t1.0\ty\n")
    recordings(tmp_path / "generic", 1, table=False)
    text = "label,onset_s,offset_s,notated_path,annot_path,sequence,annotation\nz,0.5,1.0,r0.wav,a.csv,0,0\n"
    (tmp_path / "generic" / "a.csv").write_text(text)
    found = open_collection(tmp_path)
    assert found.reading.data_format == "mixed" and found.contexts == ("x", "y", "z")
    assert found.annotations["recording"].tolist() == [0, 1, 2, 3, 4] and found.recordings["complete"].all()
    recordings(tmp_path / "more", 1)  # a table of another format that is added later
    assert len(open_collection(tmp_path).annotations) == 6


def test_two_formats_of_one_recording_are_a_question(tmp_path):
    recordings(tmp_path)
    text = "Start (s),End (s),Scientific name,Common name,Confidence\n0,3,P m,Great Tit,0.9\n"
    (tmp_path / "r3.BirdNET.results.csv").write_text(text)
    with pytest.raises(CollectionError, match=r"r3.wav has .*birdnet.* and .*raven.*--data-format"):
        open_collection(tmp_path)
    assert open_collection(tmp_path, data_format="raven").contexts == ("x",)
    assert open_collection(tmp_path, data_format="mixed").contexts == ("Great Tit", "x")
    assert open_collection(tmp_path).contexts == ("Great Tit", "x")  # as it was indexed


@pytest.mark.parametrize(
    "name, column, by, days",
    [("r{}", None, "recording", 0), ("2023060{}_210000", None, "day", 5), ("r{}", "2023/06/0{} 21:00:00.000", "day", 5)],
)
def test_dates_of_names_and_tables_decide_what_is_split_by(tmp_path, name, column, by, days):
    for i in range(1, 6):
        path = tmp_path / f"{name.format(i)}.wav"
        wav(path, 1, 8000)
        rows = [[*selection(0.2, 0.6, "x"), column.format(i)]] if column else [selection(0.2, 0.6, "x")]
        raven(path.with_suffix(".txt"), rows, [*HEADER, "Begin Date Time"] if column else HEADER)
    found = open_collection(tmp_path)
    assert split_collection(found).by == (by,) and found.recordings["recorded"].dt.date.nunique() == days


def test_metadata_count_before_names(tmp_path):
    for i in range(3):
        write(tmp_path / f"2020010{i + 1}_000000.wav", chunks=[guan(Timestamp=f"2023-06-0{i + 1}T21:00:00")])
        (tmp_path / f"2020010{i + 1}_000000.txt").write_text("0.01\t0.1\tx\n")
    assert set(open_collection(tmp_path).recordings["recorded"].dt.year) == {2023}


def test_windows_of_every_rate_are_that_part_of_the_recording(tmp_path):
    rates = (8_000, 22_050, 44_100, 96_000, 250_000)
    for rate in rates:
        wav(tmp_path / f"r{rate}.wav", 2, rate, [(0.5, 1.0)], tone=500)
        raven(tmp_path / f"r{rate}.txt", [selection(0.5, 1.0, "x")])
    data = open_datasets(tmp_path, length=40, rate=16_000, samples=800, seq_len=4)
    sides = (data.train, data.validation, data.test)
    assert sum(len(side.recordings) for side in sides) == len(rates)
    for side in sides:
        for item in (side[i] for i in range(len(side))):
            start = round(item["start"] * 16_000)
            sound = audio.read(data.collection.path(item["recording"]), start, item["waveform"].size, rate=16_000)
            np.testing.assert_allclose(item["waveform"].reshape(-1)[: len(sound)], sound, atol=1e-6)
            middle = item["start"] + (np.arange(len(item["labels"])) + 0.5) * 0.05
            inside = (middle > 0.53) & (middle < 0.97)
            assert (item["labels"][inside] == 1).all() and (item["labels"][(middle < 0.47) | (middle > 1.03)] != 1).all()
    warnings = guards.data_warnings(data.collection, data.labeller, 16_000, 0.05)
    assert len(warnings) == 1 and "1 of 5 recordings" in warnings[0] and "r8000.wav (8000 Hz)" in warnings[0]


def test_calls_above_what_the_model_hears_are_told(tmp_path):
    wav(tmp_path / "r.wav", 1, 192_000, [(0.2, 0.6)])
    raven(tmp_path / "r.txt", [selection(0.2, 0.6, "x", low=30_000.5, high=60_000.5)])
    found = open_collection(tmp_path)
    (warning,) = guards.data_warnings(found, Labeller(found), 16_000, 0.05)
    assert "1 of 1 annotated calls lie above the 8 kHz" in warning and "--sample-rate 192000" in warning
    assert not guards.data_warnings(found, Labeller(found), 192_000, 0.05)


def test_detection_takes_the_factor_of_the_metadata(tmp_path):
    weights, sound = tiny_weights(tmp_path), np.random.default_rng(0).integers(-9000, 9000, 60_000).astype(np.int16)
    slow = write(tmp_path / "slow" / "a.wav", 3000, [guan(TE=10)], sound)
    plain = write(tmp_path / "plain" / "a.wav", 3000, [], sound)
    model = load(weights)
    expected = detect(model, plain, time_expansion=10)
    assert len(expected) and expected["offset"].max() <= 2
    assert detect(model, slow)[["onset", "offset"]].equals(expected[["onset", "offset"]])
    code, text = run("detect", slow, "--weights", weights, "--output", tmp_path / "out", "--formats", "audacity")
    assert code == 0 and text.splitlines()[-2].endswith("2.0 s of audio")
    lines = (tmp_path / "out" / "audacity" / "a.txt").read_text().splitlines()
    np.testing.assert_allclose([float(line.split("\t")[0]) for line in lines], expected["onset"] * 10, atol=1e-5)
    code, text = run("detect", slow, plain, "--weights", weights, "--output", tmp_path / "both")
    assert code == 2 and "name the factor of all with --time-expansion" in text and "Traceback" not in text


@pytest.mark.parametrize(
    "options, line",
    [
        (["--split-by", "treatment"], "split by treatment, fall into 1 group"),
        (["--split-by", "moon"], "cannot split by 'moon'; "),
        (["--task", "emitter"], "no annotation names a class of the task emitter"),
        (["--data-format", "moon"], "--data-format moon: there are fruit-bats, raven"),
        (["--data-format", "fruit-bats"], "FileInfo.csv: cannot be read"),
        (["--label-column", "Moon"], 'has no column "Moon"; its columns are selection'),
        (["--time-expansion", "0"], "--time-expansion is 0.0"),
        (["--split-by", "day"], "split by day, fall into 0 groups"),
    ],
)
def test_what_a_collection_cannot_do_ends_in_one_line(tmp_path, options, line):
    recordings(tmp_path / "data", 4)
    code, text = run("train", "--data-dir", tmp_path / "data", *SMALL, "--out", tmp_path / "out", *options)
    errors = [one for one in text.splitlines() if one.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and line in errors[0] and "Traceback" not in text


def test_a_table_without_its_recording_is_named(tmp_path):
    wav(tmp_path / "Recording_1-snippet.wav", 1)
    raven(tmp_path / "Recording_1.Table.1.selections.txt", [selection(0.5, 0.8, "x")])
    with pytest.raises(CollectionError, match=r"Recording_1.Table.1.selections.txt \(raven\) is named after none of them"):
        open_collection(tmp_path)


@pytest.mark.parametrize("spoil", ["empty", "no tables", "no audio", "no calls", "two"])
def test_what_cannot_be_trained_on_ends_in_one_line(tmp_path, spoil):
    data = recordings(tmp_path / "data", 2 if spoil == "two" else 4)
    for path in list(data.iterdir()):
        if spoil == "empty" or spoil == "no tables" and path.suffix == ".txt":
            path.unlink()
        elif spoil == "no audio" and path.suffix == ".wav":
            path.write_bytes(b"nothing")
        elif spoil == "no calls" and path.suffix == ".txt":
            raven(path, [])
    code, text = run("train", "--data-dir", data, *SMALL, "--out", tmp_path / "out")
    assert code == 2 and text.count("error: ") == 1 and "Traceback" not in text
