"""From few examples: some recordings of each class, a model's own answers as labels, calls in front of other sounds."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from field_cases import SMALL, raven, selection, wav
from trainer_cases import as_options, tiny

from denet_torch import audio, get_denet
from tools import command
from training import evaluation, loop, self_training
from training.collection import open_collection
from training.config import Config, FewStudyConfig, TrainingError, parse
from training.few_study import WAYS, study, summary
from training.labels import IGNORE, Labeller, Spans
from training.pasting import Paster, Pasting, quiet_recordings
from training.run import main
from training.splits import draw_few, group_recordings

TRAIN = [*SMALL, "--sample-rate", "8000", "--n-filters", "4", "--learning-rate", "3e-3", "--threads", "1"]
CALLS = [(0.5, 0.9), (1.3, 1.7)]


def denet(line: str, capsys, code: int = 0) -> str:
    """What a command prints, or its error."""
    name, *rest = line.split()
    got = command.main([name, *TRAIN * (name == "train"), *rest])
    said = capsys.readouterr()
    assert got == code, (line, said.out, said.err)
    return said.out if code == 0 else said.err.strip().splitlines()[-1]


def annotated(folder: Path, days: range, calls=CALLS, label: str = "trill") -> None:
    """A recording a day with its selection table."""
    for day in days:
        name = f"202306{day:02d}_210000"
        wav(folder / f"{name}.wav", 2, 16_000, calls, seed=day)
        raven(folder / f"{name}.Table.1.selections.txt", [selection(*call, label, i) for i, call in enumerate(calls, 1)])


# a few recordings of each class


def test_so_many_recordings_of_each_class_are_drawn():
    of = np.repeat(np.arange(40), 2)
    label = np.where(of < 30, 1, 2)  # thirty recordings hold the first class, ten the second
    label[of == 35] = [1, 2]  # and one both
    for seed in range(20):
        few = draw_few(np.arange(3, 40), of, label, 5, seed)
        assert (few >= 3).all() and len(few) == len(set(few)) and (np.sort(few) == few).all()
        held = [{*label[of == one]} for one in few]
        counts = [sum(one in labels for labels in held) for one in (1, 2)]
        assert min(counts) >= 5 and len(few) <= 10
        np.testing.assert_array_equal(few, draw_few(np.arange(3, 40), of, label, 5, seed))
    assert list(draw_few(np.arange(40), of, label, 99)) == [*range(40)]  # all that there are
    assert not len(draw_few(np.arange(40, 50), of, label, 5))


def test_few_trains_on_those_alone_and_says_so(collection, tmp_path, capsys):
    whole = loop.open_data(tiny(collection, tmp_path))
    few = loop.open_data(tiny(collection, tmp_path, few=2))
    assert len(few.train.recordings) == 2 and {*few.train.recordings} < {*whole.train.recordings}
    assert np.isin(few.train.recordings, whole.labeller.spans.recording).all()  # with calls
    assert few.split.version == whole.split.version
    assert f"{len(few.split.train)} recordings to train (only 2 of them used)" in few.described_split
    assert main(as_options(tiny(collection, tmp_path / "out", few=2, epochs=1))) == 0
    assert "(only 2 of them used)" in capsys.readouterr().out


def test_few_files_of_each_class(collection, tmp_path):
    config = tiny(collection, tmp_path / "out", mode="file", task="call", few=2, epochs=1, model="sincnet", hidden_units=[8])
    result = loop.train(config)
    assert np.bincount(result.files["train"].labels).tolist() == [2, 2]


def test_trained_weights_learn_at_a_quarter_of_the_rate():
    plain, sincnet = Config().learning_rate, parse(["--model", "sincnet"]).learning_rate
    assert parse(["--init-from", "x"]).learning_rate == plain / 4
    assert parse(["--init-from", "x", "--model", "sincnet"]).learning_rate == sincnet / 4
    assert parse(["--init-from", "x", "--learning-rate", "0.5"]).learning_rate == 0.5


@pytest.mark.parametrize("model, mode", [("denet", "frame"), ("sincnet", "file")])
def test_a_frozen_front_end_stays_as_it_is(collection, tmp_path, model, mode):
    settings = {"task": "call", "mode": mode, "model": model, "hidden_units": [8], "epochs": 1}
    before = loop.train(tiny(collection, tmp_path / "first", **settings)).model.state_dict()
    config = tiny(collection, tmp_path / "second", init_from=tmp_path / "first", freeze=True, **settings)
    after = loop.train(config).model
    frozen = [name for name in before if name.startswith(after.FRONT_END)]
    assert len(frozen) > 8
    for name, value in after.named_parameters():
        assert torch.equal(value, before[name]) == (name in frozen), name
        assert value.requires_grad or name in frozen


# self-training


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Twelve annotated recordings, sixteen without a table, two of them of days that are tested or validated on; a model."""
    root = tmp_path_factory.mktemp("self")
    annotated(root / "data", range(1, 13))
    for day in range(13, 27):
        wav(root / "data" / f"202306{day:02d}_210000.wav", 2, 16_000, CALLS, seed=day)
    words = ["train", "--data-dir", str(root / "data"), "--out", str(root / "first"), *TRAIN]
    assert command.main([*words, "--epochs", "6", "--epoch-windows", "96"]) == 0
    (split,) = (root / "first").glob("split-*.csv")
    sides = pd.read_csv(split).set_index("file")["side"]
    for side in ("validation", "test"):
        (day,) = sides.index[sides == side].str[:8]
        wav(root / "data" / f"{day}_220000.wav", 2, 16_000, CALLS, seed=int(day[-2:]))
    return root


def test_recordings_without_labels_are_learned_from_by_their_confident_answers(first, tmp_path, capsys):
    line = f"train --data-dir {first / 'data'} --out {tmp_path / 'second'} --init-from {first / 'first'} --self-train 0.9"
    said = denet(f"{line} --epochs 3", capsys)
    assert re.search(r"Self-training on 14 recordings without labels, 28 s: background \S+%, .*call \S+%", said)
    table = pd.read_csv(tmp_path / "second" / "pseudo_labels.csv", keep_default_na=False)
    assert sorted(table["file"].unique()) == [f"202306{day:02d}_210000.wav" for day in range(13, 27)]  # none of a held-out day
    assert {*table["label"]} <= {"background", "call", ""}
    for _, rows in table.groupby("file"):  # every moment has one answer
        np.testing.assert_allclose(rows["onset"].to_numpy()[1:], rows["offset"].to_numpy()[:-1], atol=1e-6)
        assert rows["onset"].iloc[0] == 0 and rows["offset"].iloc[-1] == pytest.approx(2)
        assert (rows["label"].to_numpy()[1:] != rows["label"].to_numpy()[:-1]).all()
    sure = table[table["label"] == "call"]
    inside = sum(np.minimum(sure["offset"], b).sub(np.maximum(sure["onset"], a)).clip(lower=0).sum() for a, b in CALLS)
    length = (sure["offset"] - sure["onset"]).sum()
    assert inside > 0.9 * length > 0.5 * 14 * 0.8  # what it is sure of is right, and more than half of what there is
    scores = json.loads((tmp_path / "second" / "scores.json").read_text())
    assert scores["test"]["frames"]["f1"] > 0.8

    # Going on reads the table that is there instead of asking another model.
    (tmp_path / "second" / "pseudo_labels.csv").rename(tmp_path / "kept.csv")
    shutil.copy(tmp_path / "kept.csv", tmp_path / "second" / "pseudo_labels.csv")
    again = denet(f"{line} --epochs 3 --resume", capsys)
    assert (tmp_path / "second" / "pseudo_labels.csv").read_bytes() == (tmp_path / "kept.csv").read_bytes()
    assert re.search("Self-training.*", again)[0] == re.search("Self-training.*", said)[0]


def test_times_of_answers_late_in_a_long_recording_are_exact():
    """In float32 the frames of the tenth hour began up to 2 ms away from where they do."""

    class Stretches(list):
        samples, rate = 441, 44_100

    model = get_denet((10, 441), 2, sr=44_100, n_filters=4, gru_units=8)
    first = [round(number * 0.01, 2) for number in (0, 3_599_990)]
    stretches = Stretches(
        {"failed": "", "waveform": np.zeros((10, 441), np.float32), "labels": np.zeros(10, int), "recording": 0}
        | {"start": start, "frames": 10}
        for start in first
    )
    found = evaluation.predict(loop.get_fabric(Config(accelerator="cpu")), model, stretches)
    np.testing.assert_allclose(found.start, np.concatenate([start + 0.01 * np.arange(10) for start in first]), rtol=0, atol=1e-9)


def test_what_the_model_is_unsure_of_does_not_count(first, tmp_path):
    out = tmp_path / "out"
    config = Config(data_dir=first / "data", out=out, init_from=first / "first", self_train=0.9)
    data = loop.open_data(config)
    rows = self_training.unlabelled(data)
    files = data.collection.recordings["file"].to_numpy()
    table = [(files[rows[0]], 0.0, 0.5, "background"), (files[rows[0]], 0.5, 1.0, "call"), (files[rows[0]], 1.0, 2.0, "")]
    out.mkdir()
    pd.DataFrame(table, columns=["file", "onset", "offset", "label"]).to_csv(out / "pseudo_labels.csv", index=False)
    fabric = loop.get_fabric(config)
    taught = self_training.self_train(fabric, None, data, 0.9, out, None)
    seen = set()
    for index in range(60):
        item = taught.train[index]
        if index % 2 == 0:
            assert item["recording"] in data.split.train and item["recording"] in data.train.recordings
            continue
        assert item["recording"] == rows[0]
        middle = item["start"] + 0.05 * (np.arange(10) + 0.5)
        clear = np.abs(middle[:, None] - [0.5, 1.0]).min(axis=1) > 0.026
        wanted = np.select([middle > 2, middle > 1, middle > 0.5], [IGNORE, IGNORE, 1], 0)
        np.testing.assert_array_equal(item["labels"][clear], wanted[clear])
        seen |= {*item["labels"]}
    assert seen == {0, 1, IGNORE}
    assert data.labeller.known[rows].sum() == 0  # the labels that are scored are as they were
    data.train.own_rate = True
    taught = self_training.self_train(fabric, None, data, 0.9, out, None)
    assert all(isinstance(taught.train[index]["waveform"], audio.Part) for index in (0, 1))  # of both sets


@pytest.mark.parametrize(
    "text, line",
    [
        ("file,onset,offset\na.wav,0,1\n", "cannot be read"),
        ("file,onset,offset,label\na.wav,0,x,call\n", "cannot be read"),
        ("", "cannot be read"),
        ("file,onset,offset,label\nother.wav,0,1,call\n", "is of another collection"),
        ("file,onset,offset,label\n20230601_210000.wav,0,1,moon\n", "is of another collection"),
    ],
)
def test_a_table_of_answers_that_was_changed_is_refused(first, tmp_path, text, line):
    (tmp_path / "pseudo_labels.csv").write_text(text)
    data = loop.open_data(Config(data_dir=first / "data"))
    with pytest.raises(TrainingError, match=rf"pseudo_labels.csv: .*{line}.*delete it and it is written anew"):
        self_training.read(tmp_path / "pseudo_labels.csv", data)


def test_taught_labels_take_the_place_of_others(collection):
    labeller = Labeller(open_collection(collection))
    recording = int(labeller.spans.recording[0])
    rate = open_collection(collection).recordings["samplerate"].iat[recording]
    edges = np.arange(0, rate, rate // 20)
    span = Spans(*np.array([[recording], [int(edges[4])], [int(edges[6])], [1]]))
    taught = labeller.taught(np.array([recording]), span)
    assert np.flatnonzero(taught(recording, edges)).tolist() == [4, 5]
    other = int(labeller.spans.recording[-1])
    np.testing.assert_array_equal(taught(other, edges), labeller(other, edges))
    assert len(taught.spans) == len(labeller.spans) - len(labeller.spans.of(recording)) + 1


def test_what_few_leaves_out_is_without_labels(collection, tmp_path):
    data = loop.open_data(tiny(collection, tmp_path, few=2))
    rows = self_training.unlabelled(data)
    assert {*rows} == {*data.split.train} - {*data.train.recordings}
    group = group_recordings(data.collection, data.split.by)
    assert not {*group[rows]} & {*group[np.concatenate([data.split.validation, data.split.test])]}


@pytest.mark.parametrize(
    "options, line",
    [
        ("--few -1", "--few is -1; it must be at least 0"),
        ("--freeze", "--freeze leaves layers of a trained model as they are; name it with --init-from"),
        ("--few 5 --subset 0.5", "--few and --subset both choose"),
        ("--self-train 0.9", "--self-train takes the answers of a trained model; name it with --init-from"),
        ("--self-train 2 --init-from {first}", "--self-train is 2.0; it must be above 0.5 and below 1, say 0.95"),
        ("--self-train 0.9 --init-from {first} --mode file", "--self-train: is of no use with --mode file"),
        ("--self-train 0.9 --init-from {first} --task context", "was trained for background, call, not for background, trill"),
        ("--self-train 0.9 --init-from {first} --completely-annotated", "has no recording without labels"),
        ("--init-from {first}/nothing", "nothing: no such file"),
        ("--init-from {first}/../data", "is a folder without weights.safetensors"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(first, tmp_path, capsys, options, line):
    data = tmp_path / "data"  # an index keeps how it was read
    shutil.copytree(first / "data", data, ignore=shutil.ignore_patterns("index*"))
    said = denet(f"train --data-dir {data} --out {tmp_path / 'out'} {options.format(first=first / 'first')}", capsys, 2)
    assert said.startswith("error: ") and line in said
    assert not (tmp_path / "out" / "pseudo_labels.csv").exists()


# calls in front of other sounds


def noise(path: Path, seconds: float, rate: int, seed: int = 0, level: float = 0.05) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, level * np.random.default_rng(seed).standard_normal(round(seconds * rate)), rate, subtype="PCM_24")


@pytest.mark.parametrize("rate", [16_000, 22_050, 11_025])
def test_the_truth_of_a_mix_is_what_was_put_there(tmp_path, capsys, rate):
    annotated(tmp_path / "calls", range(1, 6))
    for seed in range(3):
        noise(tmp_path / "street" / f"{seed}.wav", 3, rate, seed)
    pasted = tmp_path / "pasted"
    said = denet(f"paste-calls {tmp_path / 'calls'} {tmp_path / 'street'} {pasted} --recordings 12 --snr-db 0 10", capsys)
    assert "3 backgrounds without annotations, all taken as without a call" in said and "12 recordings in" in said
    table = pd.read_csv(pasted / "mix.csv")
    assert table["file"].nunique() == 12 and table["snr_db"].between(0, 10).all() and table["label"].unique().tolist() == ["call"]

    collection = open_collection(pasted)  # what is written is what is read
    assert collection.recordings["complete"].all() and (collection.recordings["samplerate"] == min(rate, 16_000)).all()
    names = collection.recordings["file"].to_numpy()[collection.annotations["recording"]]
    wanted = table.assign(start=table["onset"] * min(rate, 16_000), stop=table["offset"] * min(rate, 16_000))
    wanted = wanted.sort_values(["file", "start"])
    np.testing.assert_array_equal(names, wanted["file"])
    np.testing.assert_allclose(collection.annotations["start"], wanted["start"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(collection.annotations["stop"], wanted["stop"], rtol=0, atol=1e-6)

    fade, at = 0.005, min(rate, 16_000)
    for file, rows in table.groupby("file"):
        sound, _ = soundfile.read(pasted / file)
        sound = sound / 10 ** (rows["level_db"].iloc[0] / 20)
        first = rows.iloc[0]
        behind = audio.read(tmp_path / "street" / first["background"], round(first["background_onset"] * at), len(sound), rate=at)
        rest = sound - behind  # the calls alone
        free = np.ones(len(rest), bool)
        for row in rows.itertuples():
            start, stop = round(row.onset * at), round(row.offset * at)
            source = audio.read(tmp_path / "calls" / row.source, rate=at)
            piece = source[round(row.source_onset * at) :][: stop - start]
            assert len(piece) == stop - start and row.source_onset in (0.5, 1.3)
            np.testing.assert_allclose(rest[start:stop], 10 ** (row.gain_db / 20) * piece, atol=2e-4)  # not faded itself
            ratio = 10 * np.log10(np.var(rest[start:stop]) / np.var(behind))
            assert ratio == pytest.approx(row.snr_db, abs=0.05)
            margin = round(fade * at)
            free[max(0, start - margin) : stop + margin] = False
        np.testing.assert_allclose(rest[free], 0, atol=1e-5)  # and nothing elsewhere


def test_calls_that_were_slowed_down_are_pasted_at_their_true_speed(tmp_path, capsys):
    wav(tmp_path / "calls" / "a.wav", 5, 8000, [(1, 3)], tone=1000)  # a tenth of the speed: 0.2 s of 10 kHz
    (tmp_path / "calls" / "a.txt").write_text("1\t3\tbat\n")
    noise(tmp_path / "street" / "0.wav", 2, 40_000)
    line = f"paste-calls {tmp_path / 'calls'} {tmp_path / 'street'} {tmp_path / 'pasted'} --recordings 2 --snr-db 30 30"
    denet(f"{line} --time-expansion 10", capsys)
    for row in pd.read_csv(tmp_path / "pasted" / "mix.csv").itertuples():
        assert (row.source_onset, row.source_offset) == (0.1, 0.3) and row.offset - row.onset == pytest.approx(0.2)
        sound, rate = soundfile.read(tmp_path / "pasted" / row.file)
        piece = sound[round(row.onset * rate) : round(row.offset * rate)]
        assert rate == 40_000
        assert np.fft.rfftfreq(len(piece), 1 / rate)[np.abs(np.fft.rfft(piece)).argmax()] == pytest.approx(10_000, abs=10)


def test_the_same_seed_gives_the_same_recordings(tmp_path, capsys):
    annotated(tmp_path / "calls", range(1, 4))
    noise(tmp_path / "street" / "0.wav", 3, 16_000)
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        denet(f"paste-calls {tmp_path / 'calls'} {tmp_path / 'street'} {tmp_path / out} --recordings 3 --seed {seed}", capsys)
    files = {out: [path.read_bytes() for path in sorted((tmp_path / out).rglob("*.*"))] for out in "abc"}
    assert files["a"] == files["b"] != files["c"]


def test_annotated_backgrounds_are_those_without_a_call(tmp_path, capsys):
    annotated(tmp_path / "calls", range(1, 4))
    annotated(tmp_path / "site", range(4, 7))  # calls
    noise(tmp_path / "site" / "unknown.wav", 3, 16_000)  # nobody said that there is none
    noise(tmp_path / "site" / "empty.wav", 3, 16_000)
    (tmp_path / "site" / "empty.txt").write_text("")
    noise(tmp_path / "site" / "named.wav", 3, 16_000)
    (tmp_path / "site" / "named.txt").write_text("0.5\t1.0\tbackground\n")
    (tmp_path / "site" / "named.txt").rename(tmp_path / "site" / "named.Table.1.selections.txt")
    raven(tmp_path / "site" / "named.Table.1.selections.txt", [selection(0.5, 1.0, "background")])
    collection, quiet, how = quiet_recordings(tmp_path / "site")
    assert [*collection.recordings["file"].to_numpy()[quiet]] == ["empty.wav", "named.wav"]
    assert how == "of 6 backgrounds, 2 are annotated as without a call and used"
    denet(f"paste-calls {tmp_path / 'calls'} {tmp_path / 'site'} {tmp_path / 'pasted'} --recordings 20", capsys)
    assert {*pd.read_csv(tmp_path / "pasted" / "mix.csv")["background"]} == {"empty.wav", "named.wav"}
    assert not list((tmp_path / "calls").glob("mix*"))


def test_plain_backgrounds_get_no_index(tmp_path):
    noise(tmp_path / "street" / "0.wav", 3, 16_000)
    assert len(quiet_recordings(tmp_path / "street")[1]) == 1
    assert [path.name for path in (tmp_path / "street").iterdir()] == ["0.wav"]


def test_calls_of_the_training_side_keep_their_classes_and_sides(collection, tmp_path, capsys):
    """The flying foxes' tables: contexts as labels, one side of a split, and pasted recordings whose sides share no source."""
    config = tiny(collection, tmp_path / "run", epochs=1)
    loop.train(config)
    (split,) = (tmp_path / "run").glob("split-*.csv")
    line = f"paste-calls {collection} {collection} {tmp_path / 'pasted'} --task context --labels intersection --split {split}"
    denet(f"{line} --recordings 20 --seconds 1 --fade 0", capsys)
    table = pd.read_csv(tmp_path / "pasted" / "mix.csv")
    side = pd.read_csv(split).set_index("file")["side"]
    assert {*side[table["source"]]} == {*side[table["background"]]} == {"train"}
    original, mixed = open_collection(collection), open_collection(tmp_path / "pasted")
    assert {*table["label"]} <= {*original.contexts} and {*mixed.contexts} == {*table["label"]}
    rows = table.groupby("file")["source"].first()[mixed.recordings["file"]]
    by_source = pd.factorize(rows)[0]
    group = group_recordings(mixed, ["folder"])
    assert len({*zip(group, by_source, strict=True)}) == len({*group}) == len({*by_source})
    recorded = original.recordings.set_index("file")["recorded"]
    assert (mixed.recordings["recorded"].to_numpy() == recorded[rows].to_numpy()).all()


def test_calls_that_cannot_be_pasted_are_left_out(tmp_path):
    time = np.arange(48_000) / 48_000
    calls = tmp_path / "calls"
    noise(calls / "a.wav", 1, 48_000, level=1e-4)
    sound, _ = soundfile.read(calls / "a.wav")
    sound[4800:9600] += 0.5 * np.sin(2 * np.pi * 20_000 * time[4800:9600])  # above what 16 kHz holds
    sound[19_200:24_000] += 0.5 * np.sin(2 * np.pi * 2000 * time[19_200:24_000])
    soundfile.write(calls / "a.wav", sound, 48_000, subtype="PCM_24")
    (calls / "a.txt").write_text("0.1\t0.2\tx\n0.4\t0.5\tx\n0.6\t0.8\tx\n0.7\t0.9\ty\n")
    noise(tmp_path / "street" / "a.wav", 1, 16_000)
    soundfile.write(tmp_path / "street" / "silent.wav", np.zeros(16_000), 16_000)
    collection = open_collection(calls)
    backgrounds, quiet, _ = quiet_recordings(tmp_path / "street")
    labeller = Labeller(collection, "annotation", "context")
    paster = Paster(collection, labeller, np.arange(1), backgrounds, quiet, Pasting(10, calls=4))
    table = paster.write(tmp_path / "pasted")
    assert {*table["source_onset"]} == {0.4} and {*table["background"]} == {"a.wav"}
    for reason in ("0.100 s nothing is left at the background's 16000 Hz", "0.600 s overlaps another", "silent.wav: is silent"):
        assert any(reason in note for note in paster.notes), reason


@pytest.mark.parametrize(
    "options, line",
    [
        ("missing {street} {out}", "missing: no such folder"),
        ("{calls} missing {out}", "missing: no such folder"),
        ("{calls} {calls} {out}", "none of 3 recordings is known to hold no call"),
        ("{calls} {street} {street}", "exists already"),
        ("{calls} {street} {out} --snr-db 5 0", "--snr-db takes the lowest and the highest ratio"),
        ("{calls} {street} {out} --recordings 0", "must be at least 1"),
        ("{calls} {street} {out} --seconds 0.1", "no call of known class that fits into 0.1 s"),
        ("{calls} {street} {out} --task emitter", "no call of known class"),
        ("{calls} {street} {out} --split missing.csv", "missing.csv: is no split"),
        ("{calls} {silent} {out}", "no recording could be made in 20 tries"),
        ("{calls} {short} {out}", "longer than the stretch of the background"),
    ],
)
def test_what_cannot_be_pasted_is_said_in_a_line(tmp_path, capsys, options, line):
    places = {name: tmp_path / name for name in ("calls", "street", "silent", "short", "out")}
    annotated(places["calls"], range(1, 4))
    noise(places["street"] / "0.wav", 3, 16_000)
    noise(places["short"] / "0.wav", 0.2, 16_000)
    noise(places["silent"] / "0.wav", 3, 16_000, level=0)
    said = denet("paste-calls " + options.format(**places), capsys, 2)
    assert said.startswith("error: ") and line in said
    assert not places["out"].exists() and not [*tmp_path.glob(".out*")]


def test_pasted_calls_train_a_model_that_finds_calls_at_another_site(tmp_path, capsys):
    """From a user's files: calls recorded elsewhere, sounds of the site, a model, its score on the site's own recordings."""
    annotated(tmp_path / "calls", range(1, 13))
    for seed in range(4):
        noise(tmp_path / "site" / f"{seed}.wav", 3, 16_000, seed)
    truth = []
    for day in range(20, 24):
        path = tmp_path / "unseen" / f"202306{day}_210000.wav"
        wav(path, 2, 16_000, CALLS, seed=day)
        sound, _ = soundfile.read(path)
        noisy = sound + 0.05 * np.random.default_rng(day).standard_normal(len(sound))
        soundfile.write(path, noisy, 16_000, subtype="PCM_24")
        truth += [(str(path), *call, "call") for call in CALLS]
    pd.DataFrame(truth, columns=["file", "onset", "offset", "label"]).to_csv(tmp_path / "truth.csv", index=False)
    line = f"paste-calls {tmp_path / 'calls'} {tmp_path / 'site'} {tmp_path / 'pasted'} --recordings 40 --seconds 2 --snr-db 5 20"
    denet(line, capsys)
    line = f"train --data-dir {tmp_path / 'pasted'} --split-by folder --out {tmp_path / 'run'}"
    assert "Split by folder" in denet(f"{line} --epochs 8 --epoch-windows 64", capsys)
    found = tmp_path / "found"
    denet(f"detect {tmp_path / 'unseen'} --weights {tmp_path / 'run'}/weights.safetensors --output {found}", capsys)
    denet(f"evaluate --reference {tmp_path / 'truth.csv'} --estimated {found}/events.csv --output {tmp_path / 'scores'}", capsys)
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["overall"]["event_f1"]["value"] > 0.5


def test_every_command_of_the_page_but_the_study(first, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first / "data", "new_site")
    shutil.copytree(first / "first", "runs/first")
    annotated(Path("my_recordings"), range(1, 6))
    noise(Path("street_sounds", "a.wav"), 5, 16_000)
    page = Path(__file__).parents[1] / "docs" / "few_examples.md"
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.removeprefix("denet ") for block in blocks for line in block.splitlines() if "study-few" not in line]
    assert len(lines) == 4
    for line in lines:
        denet(line, capsys)
    assert {path.name for path in Path("runs").iterdir()} == {"first", "second", "third", "pasted"}


# the study


def test_the_study_goes_every_way_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    shared = vars(tiny(None, tmp_path / "study", epochs=1, recordings=24))
    config = FewStudyConfig(**shared, seeds=[0], first_epochs=1, test_recordings=8)
    table = study(config)
    assert [*table["way"]] == [*WAYS] and table["frame_f1"].between(0, 1).all()
    assert summary(table).index.tolist() == [*WAYS]
    monkeypatch.setattr("training.few_study.train", lambda run: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(study(config), table)
