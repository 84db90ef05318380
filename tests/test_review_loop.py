"""Annotated recordings, a model, its detections, their correction in the pages by a driven browser, a better model."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from field_cases import SMALL, raven, selection, wav
from test_detect_report import CHROMIUM, Browser, downloaded, drag

from tools import command

TINY = [*SMALL, "--task", "context", "--learning-rate", "3e-3", "--threads", "1"]
CALLS = [(0.5, 0.9), (1.3, 1.7)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_corrections_of_the_pages_train_a_better_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(6):  # too little, and wrong: calls are annotated where there are none
        wav(tmp_path / "few" / f"2023060{1 + i}_210000.wav", 2, 16_000, CALLS, seed=i)
        raven(tmp_path / "few" / f"2023060{1 + i}_210000.Table.1.selections.txt", [selection(0.0, 0.4, "trill", 1)])
    for i in range(8):
        wav(tmp_path / "new" / f"2023070{1 + i}_210000.wav", 2, 16_000, CALLS, seed=10 + i)
    for i in range(4):
        wav(tmp_path / "unseen" / f"2023080{1 + i}_210000.wav", 2, 16_000, CALLS, seed=30 + i)
    truth = [(str(path), *call, "trill") for path in sorted(Path("unseen").glob("*.wav")) for call in CALLS]
    pd.DataFrame(truth, columns=["file", "onset", "offset", "label"]).to_csv("truth.csv", index=False)

    def denet(line: str) -> None:
        code = command.main(line.split() + TINY * line.startswith("train"))
        out, err = capsys.readouterr()
        assert code == 0, (line, out, err)

    def score(run: str) -> float:
        denet(f"detect unseen --weights {run}/weights.safetensors --output {run}/found")
        denet(f"evaluate --reference truth.csv --estimated {run}/found/events.csv --output {run}/scores")
        return json.loads(Path(run, "scores", "scores.json").read_text())["overall"]["event_f1"]["value"] or 0.0

    denet("train --data-dir few --out first --epochs 1 --epoch-windows 48")
    denet("detect new --weights first/weights.safetensors --output season --report")
    browser = Browser(tmp_path / "downloads")
    try:
        for page in sorted((tmp_path / "season" / "report").rglob("*.WAV.html".lower())):
            browser.open(page)
            browser.wait("document.body.dataset.ready")
            browser.js("events.forEach((_, i) => judge(i, 'rejected'))")
            for call in CALLS:
                drag(browser, *call)
            browser.js("events.forEach(event => { event.label = 'trill'; }); keep()")
        browser.open(tmp_path / "season" / "report" / "index.html")
        browser.js("document.getElementById('save-all').click()")
        saved = downloaded(tmp_path / "downloads", "corrected.csv")
        assert browser.complaints == []
    finally:
        browser.close()
    assert len(pd.read_csv(saved)) == 2 * 8
    shutil.copy(saved, tmp_path / "new" / "corrected.csv")
    denet("index new")
    denet("train --data-dir new --out second --init-from first/weights.safetensors --epochs 4 --epoch-windows 96")
    before, after = score("first"), score("second")
    assert after > before and after > 0.5
