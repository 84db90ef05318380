"""The "bats" task of BEANS, the benchmark of animal sounds, on the Egyptian fruit bats: who of ten bats calls in a file.

DIR holds annotations.csv (`File Name`, `Emitter`) and audio/. The protocol is that of github.com/earthspecies/beans
(MIT): files of the emitters 111 210 211 215 216 220 226 228 230 231; split 6:2:2 at random, stratified; the
first 5 s; the learning rate of 1e-5, 5e-5, 1e-4 with the best accuracy on the validation files, whose weights are
tested once. annotations.train.csv, .valid.csv and .test.csv in DIR (and .train-low.csv), where they are, are the split.

That split is by file, so that a day's and a session's files stand on both sides. The same is done with files split by
day (the first six digits of a file's name, as the collection has them), and both accuracies are printed.

  python -m training.beans DIR --model sincnet --out runs/beans
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import denet_program
from denet_torch import MODELS, audio, checkpoint
from denet_torch.audio import AudioError
from denet_torch.checkpoint import CheckpointError

from .collection import replacing
from .config import Config, TrainingError
from .files import Files, evaluate, fit
from .options import show, tell
from .precision import get_fabric
from .registry import get_model
from .runs import write_json
from .tables import CollectionError
from .text_tables import TooLarge, read_csv

EMITTERS = (111, 210, 211, 215, 216, 220, 226, 228, 230, 231)
LEARNING_RATES = (1e-5, 5e-5, 1e-4)
RATE, SECONDS = 250_000, 5.0
SEED = 42
PARTS = ("train", "valid", "test")


def read_table(root: Path, name: str = "annotations.csv") -> pd.DataFrame:
    """Rows of the ten emitters, File Name and Emitter. Raises CollectionError, one line, for another layout."""
    path = root / name
    if not root.is_dir():
        raise CollectionError(f"{root}: no such folder")
    if not path.is_file():
        raise CollectionError(f"{path}: no such file; BEANS' layout is annotations.csv (File Name, Emitter) beside audio/")
    try:
        table = read_csv(path, ["File Name", "Emitter"])
        table = table[["File Name", "Emitter"]]
    except TooLarge as error:
        raise CollectionError(f"{path}: {error}") from None
    except (KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CollectionError(f"{path}: has not the columns File Name and Emitter ({reason})") from None
    emitter = pd.to_numeric(table["Emitter"], errors="coerce")
    if not (root / "audio").is_dir():
        raise CollectionError(f"{root / 'audio'}: no such folder; BEANS' layout has the recordings there")
    table = table.assign(Emitter=emitter)[emitter.isin(EMITTERS)].astype({"Emitter": int})
    if table.empty:
        raise CollectionError(f"{path}: has no file of the emitters {' '.join(map(str, EMITTERS))}")
    return table


def split_by_file(table: pd.DataFrame, root: Path) -> dict[str, pd.DataFrame]:
    """The benchmark's split: train, train-low (a fifth of it), valid and test. Raises CollectionError if it cannot be made."""
    try:
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise CollectionError("the benchmark's split is made by scikit-learn: pip install 'denet-torch[beans]'") from None
    try:
        train, rest = train_test_split(table, test_size=0.4, random_state=SEED, stratify=table["Emitter"])
        valid, test = train_test_split(rest, test_size=0.5, random_state=SEED, stratify=rest["Emitter"])
        low, _ = train_test_split(train, test_size=0.8, random_state=SEED, stratify=train["Emitter"])
    except ValueError as error:
        raise CollectionError(f"{root}: the files cannot be split 6:2:2 by emitter: {str(error).splitlines()[0]}") from None
    return {"train": train, "valid": valid, "test": test, "train-low": low}


def split_by_day(table: pd.DataFrame) -> dict[str, pd.DataFrame] | None:
    """Days dealt out 6:2:2, no day on two sides; None if the names do not tell three days."""
    day = table["File Name"].map(lambda name: Path(str(name)).name[:6])
    days, sizes = np.unique(day[day.str.fullmatch(r"\d{6}")], return_counts=True)
    if len(days) < len(PARTS):
        return None
    order = np.random.default_rng(SEED).permutation(len(days))
    order = order[np.argsort(-sizes[order], kind="stable")]
    wanted, filled, side = np.array([0.6, 0.2, 0.2]) * sizes.sum(), np.zeros(3), {}
    for rank, one in enumerate(order):  # largest first, each to the side that lacks most; in the end none is empty
        empty = np.flatnonzero(filled == 0)
        candidates = empty if len(empty) == len(order) - rank else np.arange(3)
        chosen = candidates[np.argmax((wanted - filled)[candidates])]
        side[days[one]] = PARTS[chosen]
        filled[chosen] += sizes[one]
    return {part: table[day.map(side) == part] for part in PARTS}


def own_split(root: Path) -> dict[str, pd.DataFrame] | None:
    """The benchmark's split files, where all three are there."""
    if not all((root / f"annotations.{part}.csv").is_file() for part in PARTS):
        return None
    names = [part for part in (*PARTS, "train-low") if (root / f"annotations.{part}.csv").is_file()]
    return {part: read_table(root, f"annotations.{part}.csv") for part in names}


def files_of(root: Path, table: pd.DataFrame) -> Files:
    """The recordings of a part. Raises CollectionError if one is not there."""
    paths = [root / "audio" / str(name) for name in table["File Name"]]
    if missing := [path for path in paths if not path.is_file()]:
        raise CollectionError(f"{missing[0]}: no such file ({len(missing)} of {len(paths)} are missing)")
    labels = np.searchsorted(EMITTERS, table["Emitter"])
    return Files(paths, labels, tuple(map(str, EMITTERS)), [np.zeros((0, 2))] * len(paths), seconds=SECONDS)


def score(config: Config, parts: dict[str, Files], rates: Sequence[float]) -> dict:
    """Train at each learning rate, choose on the validation files, test once; accuracies and the chosen rate."""
    fabric = get_fabric(config)
    tried = {}
    for rate in rates:
        out = config.out / f"lr{rate:g}"
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        model = get_model(config.model, config, len(EMITTERS))
        progress = fit(fabric, model, parts["train"], parts["valid"], replace(config, learning_rate=rate), out)
        tried[rate] = progress.best
    best = max(tried, key=tried.get)
    model = checkpoint.load(config.out / f"lr{best:g}" / "weights.safetensors").to(fabric.device)
    tested = evaluate(model, parts["test"])
    sizes = {part: len(files) for part, files in parts.items()}
    return {
        "accuracy": tested["accuracy"],
        "majority": tested["majority"],
        "learning_rate": best,
        "validation": {f"{rate:g}": accuracy for rate, accuracy in tried.items()},
        "files": sizes,
    }


def run(root: Path, config: Config, low: bool) -> dict[str, dict]:
    """Both splits trained and scored, also in scores.json in `config.out`. Raises CollectionError, AudioError, TrainingError."""
    table = read_table(root)
    splits = {"by file": own_split(root) or split_by_file(table, root), "by day": split_by_day(table)}
    found = {}
    for name, parts in splits.items():
        if parts is None:
            print(f"split {name}: the files' names do not begin with three days or more (YYMMDD); left out")
            continue
        train = parts["train-low"] if low and name == "by file" else parts["train"]
        files = {"train": files_of(root, train)} | {part: files_of(root, parts[part]) for part in PARTS[1:]}
        audio.probe(files["train"].paths[0])
        out = config.out / name.replace(" ", "-")
        out.mkdir(parents=True, exist_ok=True)
        for part, rows in parts.items():
            with replacing(out / f"annotations.{part}.csv") as path:
                rows.to_csv(path, index=False)
        found[name] = score(replace(config, out=out), files, LEARNING_RATES)
        line = found[name]
        print(
            f"split {name}: accuracy {line['accuracy']:.3f} on {line['files']['test']} files (always the commonest bat: "
            f"{line['majority']:.3f}), learning rate {line['learning_rate']:g}"
        )
    write_json(config.out / "scores.json", found)
    return found


def parser(prog: str = "python -m training.beans") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, metavar="DIR", help="annotations.csv and audio/")
    names = [name for name in sorted(MODELS) if not MODELS[name].answers_with_boxes]
    parser.add_argument("--model", choices=names, default="sincnet")
    parser.add_argument("--out", type=Path, default=Path("runs/beans"), metavar="DIR", help="default: runs/beans")
    parser.add_argument("--low", action="store_true", help="train on the benchmark's train-low, a fifth of the files")
    parser.add_argument("--epochs", type=int, default=50, metavar="N", help="of each learning rate (default: 50)")
    parser.add_argument("--epoch-windows", type=int, default=7680, metavar="N", help="chunks in an epoch (default: 7680)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N", help="chunks in a batch (default: 128)")
    parser.add_argument(
        "--sample-rate", type=int, default=RATE, metavar="HZ", help="of the model; the benchmark's is 250000, the default"
    )
    parser.add_argument("--hidden-units", type=int, nargs="*", metavar="N", help="units of SincNet's fully connected layers")
    parser.add_argument("--gru-units", type=int, metavar="N", help="units of each of DENet's GRUs")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 leaves PyTorch's choice")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m training.beans") -> int:
    args = parser(prog).parse_args(arguments)
    said = {name: value for name, value in vars(args).items() if name not in ("root", "low") and value is not None}
    # As the recipe draws chunks: from anywhere, the benchmark does not say where a bat calls.
    settings = MODELS[args.model].DEFAULTS | {"call_share": 0.0, "mode": "file", "task": "emitter"} | said
    try:
        config = Config(**settings)
        if config.threads:
            torch.set_num_threads(config.threads)
        run(args.root, config, args.low)
    except (TrainingError, CollectionError, AudioError, CheckpointError, OSError) as error:
        tell("error", str(error).splitlines()[0])
        return 2
    show(f"results in {args.out}")
    return 0


if __name__ == "__main__":
    denet_program.run(main)
