"""Studies: variants of a run over seeds and bands of signal-to-noise ratio. The command's options are those of
`training.config.StudyConfig`."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from matplotlib.figure import Figure

import denet_program
from denet_torch import MODELS, Model, checkpoint
from denet_torch.detection import stored_decoding
from denet_torch.schema import Decoding

from .bfloat16 import emulated
from .collection import Collection, open_collection, replacing
from .config import VARIANTS, Config, StudyConfig, TrainingError, parse, reading
from .evaluation import Predictions, estimated_events, predict, reference_events
from .labels import Labeller
from .loop import WEIGHTS, train
from .metrics import event_scores, frame_scores
from .options import show
from .precision import get_fabric
from .run import exit_code
from .synthetic import make_dataset
from .windows import STRETCH, ExhaustiveWindows

BANDS_FILE = "bands.csv"  # a run's scores, in its folder
TEST_SPLIT = "test split"  # in place of a band, of recordings that were not generated
BANDS = ((-5, 0), (0, 5), (5, 10), (10, 15), (15, 20))  # dB


def study(config: StudyConfig) -> pd.DataFrame:
    """Train what is not trained yet, score it and write the table and the plot. Raises what `train` raises."""
    shared = Config(**{field.name: getattr(config, field.name) for field in fields(Config)})
    refuse_boxes(config)
    if "float32" in config.variants and get_fabric(replace(shared, amp=True)).strategy.precision.precision == "32-true":
        raise TrainingError(
            "--variants float32: this processor has no bfloat16 instructions, all variants train in float32; "
            "--amp-dtype bfloat16 emulates them"
        )
    data = config.data_dir or config.out / "data"
    if config.data_dir is None and not data.exists():
        low, high = BANDS[0][0], BANDS[-1][1]
        make_dataset(data, config.recordings, seed=0, background=config.background, snr_db=(low, high))
    if config.data_dir is not None:
        open_collection(data, **reading(config))
    bands = BANDS if config.data_dir is None else ()
    tests = {band: _band(config, band, number) for number, band in enumerate(bands)}
    rows = []
    for variant in config.variants:
        for seed in config.seeds:
            out = config.out / f"{variant}-{seed}"
            run = replace(shared, out=out, data_dir=data, seed=seed, resume=True, report=False, **VARIANTS[variant])
            if not (out / "scores.json").exists():
                train(run)
            if not tests:
                rows.append(pd.DataFrame([_on_test_split(run)]))
                continue
            if not (out / BANDS_FILE).exists():
                with replacing(out / BANDS_FILE) as path:
                    pd.DataFrame(score(run, tests)).to_csv(path, index=False)
            rows.append(pd.read_csv(out / BANDS_FILE))
    table = pd.concat(rows, ignore_index=True)
    with replacing(config.out / "scores.csv") as path:
        table.to_csv(path, index=False)
    if tests:
        with replacing(config.out / "snr.png") as path:
            plot(table).savefig(path, format="png", dpi=120)
    return table


def refuse_boxes(config: Config) -> None:
    """Raise TrainingError for a model whose answers a study cannot score."""
    if config.model in MODELS and MODELS[config.model].answers_with_boxes:
        raise TrainingError(f"--model {config.model}: a study scores frames, and it finds boxes; score runs with denet compare")


def _on_test_split(run: Config) -> dict:
    """Scores of `run` on the recordings of a given collection that it did not see, whose ratios nobody knows."""
    found = json.loads((run.out / "scores.json").read_text())["test"]
    variant, seed = run.out.name.rsplit("-", 1)
    of = {name: found[kind]["f1"] for name, kind in (("frame_f1", "frames"), ("event_f1", "events"))}
    return {"variant": variant, "seed": int(seed), "snr": TEST_SPLIT} | {
        name: math.nan if value is None else value for name, value in of.items()
    }


def score(run: Config, tests: dict[tuple[int, int], Collection]) -> list[dict]:
    """Scores of the best weights of `run` in each band, above 10 dB and over all."""
    fabric = get_fabric(run)
    model = checkpoint.load(run.out / WEIGHTS)
    decoding = stored_decoding(model)
    with emulated(fabric):
        found = {band: answers(fabric, model, collection, decoding) for band, collection in tests.items()}
    groups = {f"{low} to {high} dB": [(low, high)] for low, high in BANDS}
    groups |= {"above 10 dB": [band for band in BANDS if band[0] >= 10], "all": list(BANDS)}
    rows = []
    for name, bands in groups.items():
        predictions, reference, estimated = zip(*(found[band] for band in bands), strict=True)
        probabilities = torch.cat([part.probabilities for part in predictions])
        frames = frame_scores(probabilities, torch.cat([part.labels for part in predictions]), decoding.threshold)
        events = event_scores(pd.concat(reference), pd.concat(estimated))
        variant, seed = run.out.name.rsplit("-", 1)
        rows.append({"variant": variant, "seed": int(seed), "snr": name, "frame_f1": frames["f1"], "event_f1": events["f1"]})
    return rows


def answers(
    fabric: Fabric, model: Model, collection: Collection, decoding: Decoding
) -> tuple[Predictions, pd.DataFrame, pd.DataFrame]:
    """Predictions for a whole collection, its reference events and the estimated ones."""
    labeller = Labeller(collection)
    recordings = np.arange(len(collection.recordings))
    sizes = {"rate": model.sr, "samples": model.samples, "seq_len": STRETCH * model.seq_len}
    predictions = predict(fabric, model, ExhaustiveWindows(collection, recordings, labeller, **sizes))
    # Files have the same names in every band.
    place = {"file": lambda events: str(collection.root) + "/" + events["file"]}
    return (
        predictions,
        reference_events(predictions, labeller, collection).assign(**place),
        estimated_events(predictions, labeller, collection, decoding).assign(**place),
    )


def plot(table: pd.DataFrame) -> Figure:
    """Frame F1 over the signal-to-noise ratio: a line a variant, its mean, a dot a seed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    centres = {f"{low} to {high} dB": (low + high) / 2 for low, high in BANDS}
    bands = table[table["snr"].isin(list(centres))].assign(centre=lambda rows: rows["snr"].map(centres))
    for variant, rows in bands.groupby("variant"):
        means = rows.groupby("centre")["frame_f1"].mean()
        (line,) = axes.plot(means.index, means, label=variant)
        axes.plot(rows["centre"], rows["frame_f1"], ".", color=line.get_color())
    axes.set(xlabel="signal-to-noise ratio of the calls (dB)", ylabel="frame F1", ylim=(0, 1.01))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, lowest and highest score of the seeds."""
    order = table["snr"].drop_duplicates()
    scores = table.groupby(["variant", "snr"], sort=False)[["frame_f1", "event_f1"]].agg(["mean", "min", "max"])
    return scores.reindex(order, level="snr").round(3)


def _band(config: StudyConfig, band: tuple[int, int], number: int) -> Collection:
    root = config.out / f"test{band[0]:+d}{band[1]:+d}dB"
    if not root.exists():
        make_dataset(root, config.band_recordings, seed=1000 + number, background=config.background, snr_db=band)
    return open_collection(root)


def main(argv: list[str] | None = None, prog: str = "python -m training.study") -> int:
    """Study and print; 0, or 2 after a one-line error."""

    def work() -> None:
        config = parse(argv, StudyConfig, prog)
        print(summary(study(config)).to_string())
        show(f"results in {config.out}: {', '.join(path.name for path in sorted(config.out.glob('*.*')) if path.is_file())}")

    return exit_code(work)


if __name__ == "__main__":
    denet_program.run(main)
