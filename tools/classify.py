"""Name the class of whole recordings, one label a file: who called, in which context, ...

PATH is a recording, a folder (searched to the bottom), a pattern in quotes, or a .txt list of those. A row a
file is printed, or written to --output: file, label, then the posterior of each class. A file's class is the
one with the largest sum of log posteriors over its windows (SincNet: 200 ms every 10 ms).

Example:
  denet train --mode file --model sincnet --task emitter --data-dir DIR --out runs/emitter
  denet classify recordings/ --weights runs/emitter/weights.safetensors --output who.csv

Exit code: 0, or 2 if a recording could not be used or nothing could be done.
"""

import argparse
from pathlib import Path

import denet_program
from training.options import Parser, show, tell


def main(arguments: list[str] | None = None, prog: str = "python -m tools.classify") -> int:
    args = parser(prog).parse_args(arguments)
    try:
        failures = run(args)
    except (ValueError, OSError) as error:
        tell("error", error)
        return 2
    except KeyboardInterrupt:
        return 130
    for reason in failures:
        tell("error", reason)
    return 2 if failures else 0


def run(args: argparse.Namespace) -> list[str]:
    """Classify, print or write the table; the reasons of the recordings that could not be used."""
    import pandas as pd  # PyTorch takes seconds
    from tqdm import tqdm

    import denet_torch
    from denet_torch import recorder
    from denet_torch.audio import AudioError
    from denet_torch.classification import BATCH, classify
    from denet_torch.files import printable
    from denet_torch.memory import keep_freed_memory
    from tools.detect_batch import collect, device, refuse_name
    from training.collection import replacing

    keep_freed_memory()
    paths = collect(args.paths)
    failures = []
    for path in list(paths):
        try:
            refuse_name(path)
        except AudioError as error:
            failures.append(str(error))
            paths.remove(path)
    model = denet_torch.load(args.weights).to(device(args.device))
    if model.answers_with_boxes:
        raise ValueError(f"{args.weights}: finds boxes, and names no files; use denet detect")
    factor = recorder.time_expansion(paths) if args.time_expansion is None else args.time_expansion
    options = {"hop": args.hop, "batch_size": args.batch_size or BATCH, "time_expansion": factor}
    found = list(tqdm(classify(model, paths, **options), total=len(paths), desc="classify", unit="file", leave=False))
    failures += [str(item) for item in found if isinstance(item, AudioError)]
    rows = [item for item in found if not isinstance(item, AudioError)]
    if rows:
        table = pd.concat(rows, ignore_index=True)
        if args.output is None:
            told = table.map(lambda cell: printable(cell) if isinstance(cell, str) else cell).rename(columns=printable)
            print(told.to_csv(index=False, float_format="%.6f"), end="")
        else:
            with replacing(args.output) as path:
                table.to_csv(path, index=False, float_format="%.6f")
            show(f"{len(table)} files: " + ", ".join(f"{name} {n}" for name, n in table["label"].value_counts().items()))
    return failures


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def parser(prog: str = "python -m tools.classify") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a recording, a folder, a pattern in quotes, or a .txt list")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="a model (.safetensors)")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="write the table there instead of printing it")
    parser.add_argument("--hop", type=count, metavar="SAMPLES", help="at the model's rate, between windows (SincNet: 10 ms)")
    parser.add_argument("--batch-size", type=count, metavar="N", help="windows at once (default: 128)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument(
        "--time-expansion",
        type=float,
        metavar="FACTOR",
        help="recordings were slowed down by this factor: true rate = header's rate * FACTOR (default: what their metadata say)",
    )
    return parser


if __name__ == "__main__":
    denet_program.run(main)
