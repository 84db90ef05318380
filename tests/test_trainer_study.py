"""A study of tiny models goes from generated recordings to a table, and goes on where it was stopped."""

import pandas as pd
import pytest
import torch
from trainer_cases import tiny

from training import study as studies
from training.config import TrainingError
from training.study import StudyConfig, main, study, summary


def test_study_scores_each_variant_in_each_band(tmp_path, monkeypatch):
    shared = vars(tiny(None, tmp_path / "study", epochs=1, recordings=24, amp_dtype="bfloat16"))
    config = StudyConfig(**shared, seeds=[0], variants=["trained", "float32"], band_recordings=8)
    table = study(config)
    assert set(table["variant"]) == {"trained", "float32"}
    assert list(table["snr"])[:7] == [*(f"{low} to {low + 5} dB" for low in (-5, 0, 5, 10, 15)), "above 10 dB", "all"]
    assert table["frame_f1"].between(0, 1).all()
    assert (config.out / "snr.png").stat().st_size > 1000
    monkeypatch.setattr(studies, "train", lambda run: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(study(config), table)
    assert summary(table).loc[("trained", "all"), ("frame_f1", "mean")] == pytest.approx(
        table[(table["variant"] == "trained") & (table["snr"] == "all")]["frame_f1"].item(), abs=1e-3
    )


def test_study_of_a_given_collection_scores_its_test_split(collection, tmp_path):
    shared = vars(tiny(collection, tmp_path / "study", epochs=1, amp_dtype="bfloat16"))
    config = StudyConfig(**shared, seeds=[0, 1], variants=["trained"])
    table = study(config)
    assert table[["variant", "seed", "snr"]].to_numpy().tolist() == [["trained", seed, "test split"] for seed in (0, 1)]
    assert summary(table).loc[("trained", "test split"), ("frame_f1", "max")] <= 1


def test_nothing_to_compare_without_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(TrainingError, match="no bfloat16 instructions"):
        study(StudyConfig(out=tmp_path / "study", variants=["trained", "float32"]))
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "options, line",
    [
        ([], "--out: name the folder"),
        (["--out", "x", "--variants", "moon"], "--variants moon: there are trained"),
        (["--out", "x", "--data-dir", "y"], "y: no such folder"),
    ],
)
def test_bad_options_end_in_one_line(capsys, options, line):
    assert main(options) == 2
    assert line in capsys.readouterr().err
