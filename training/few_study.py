"""What a few labelled recordings, self-training and pasted calls bring at a new site, over seeds. The command's options are those
of `training.config.FewStudyConfig`."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

import denet_program
from denet_torch import checkpoint
from denet_torch.detection import stored_decoding

from .bfloat16 import emulated
from .collection import Collection, open_collection, replacing
from .config import FINE_TUNING, Config, FewStudyConfig, parse
from .labels import Labeller
from .loop import WEIGHTS, train
from .metrics import event_scores, frame_scores
from .options import show
from .pasting import Paster, Pasting, quiet_recordings
from .precision import get_fabric
from .run import exit_code
from .study import answers, refuse_boxes
from .synthetic import make_dataset

LOUD, QUIET = (10.0, 20.0), (-5.0, 10.0)  # dB, of the first collection's calls and of the new site's
FEW = 5
SURE = 0.95
SCORES = "test_scores.json"  # a run's, in its folder
# Of each way: the run that it starts from, the collection that it is trained on, and its settings; learning_rate is a factor.
WAYS = {
    "first": (None, "loud", {}),
    "few alone": (None, "site", {"few": FEW}),
    "few": ("first", "site", {"few": FEW}),
    "few, full rate": ("first", "site", {"few": FEW, "learning_rate": 1.0}),
    "few, frozen": ("first", "site", {"few": FEW, "freeze": True}),
    "few + self": ("first", "site", {"few": FEW, "self_train": SURE}),
    "pasted": ("first", "pasted", {}),
    "pasted, few": ("pasted", "site", {"few": FEW}),
    "pasted, few + self": ("pasted", "site", {"few": FEW, "self_train": SURE}),
    "all": ("first", "site", {}),
}


def study(config: FewStudyConfig) -> pd.DataFrame:
    """Train what is not trained yet, score all and write the table. Raises what `train` raises."""
    refuse_boxes(config)
    folders = _collections(config)
    test = open_collection(folders.pop("test"))
    shared = Config(**{field.name: getattr(config, field.name) for field in fields(Config)})
    rows = []
    for seed in config.seeds:
        for way, (start, data, settings) in WAYS.items():
            if config.few and "few" in settings:
                settings = settings | {"few": config.few}
            settings = settings | {"out": _folder(config, way, seed), "data_dir": folders[data], "seed": seed}
            if start is None:
                settings["epochs"] = config.first_epochs
            else:
                settings["init_from"] = _folder(config, start, seed)
                settings["learning_rate"] = settings.get("learning_rate", FINE_TUNING) * config.learning_rate
            run = replace(shared, resume=True, report=False, **settings)
            if not (run.out / "scores.json").exists():
                train(run)
            if not (run.out / SCORES).exists():
                with replacing(run.out / SCORES) as path:
                    path.write_text(json.dumps(score(run, test)) + "\n")
            rows.append({"way": way, "seed": seed} | json.loads((run.out / SCORES).read_text()))
    table = pd.DataFrame(rows)
    with replacing(config.out / "scores.csv") as path:
        table.to_csv(path, index=False)
    return table


def _folder(config: FewStudyConfig, way: str, seed: int) -> Path:
    return config.out / f"{way.replace(', ', '-').replace(' ', '-').replace('+-', '')}-{seed}"


def _collections(config: FewStudyConfig) -> dict[str, Path]:
    """Folders of what is trained and tested on; what is missing is written."""
    folders = {name: config.out / "data" / name for name in ("loud", "site", "test", "pasted")}
    made = {"loud": (config.recordings, LOUD), "site": (config.recordings, QUIET), "test": (config.test_recordings, QUIET)}
    for seed, (name, (recordings, snr_db)) in enumerate(made.items()):
        if not folders[name].exists():
            make_dataset(folders[name], recordings, seed=seed, snr_db=snr_db)
    if not folders["pasted"].exists():
        loud = open_collection(folders["loud"])
        backgrounds, quiet, _ = quiet_recordings(folders["site"])
        how = Pasting(config.recordings, snr_db=QUIET)
        Paster(loud, Labeller(loud), np.arange(len(loud.recordings)), backgrounds, quiet, how).write(folders["pasted"])
    return folders


def score(run: Config, test: Collection) -> dict[str, float]:
    """Frame F1 and event F1 of the best weights of `run`."""
    fabric, model = get_fabric(run), checkpoint.load(run.out / WEIGHTS)
    decoding = stored_decoding(model)
    with emulated(fabric):
        predictions, reference, estimated = answers(fabric, model, test, decoding)
    frames = frame_scores(predictions.probabilities, predictions.labels, decoding.threshold)
    return {"frame_f1": frames["f1"], "event_f1": event_scores(reference, estimated)["f1"]}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, lowest and highest score of the seeds."""
    return table.groupby("way", sort=False)[["frame_f1", "event_f1"]].agg(["mean", "min", "max"]).round(3)


def main(argv: list[str] | None = None, prog: str = "python -m training.few_study") -> int:
    """Study and print; 0, or 2 after a one-line error."""

    def work() -> None:
        config = parse(argv, FewStudyConfig, prog)
        print(summary(study(config)).to_string())
        show(f"results in {config.out}: scores.csv and a folder for each run")

    return exit_code(work)


if __name__ == "__main__":
    denet_program.run(main)
