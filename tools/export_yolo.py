"""Write spectrogram images and boxes of a collection for YOLOR, and for other trainers that read YOLO's or COCO's files.

Recordings, labels, split and windows are those of denet train with the same options, so that both learn from the same data and
are scored on the same recordings. OUT is replaced where it is an export already. docs/yolor.md has the commands for a
clone of YOLOR, from here to the comparison.

Examples:
  denet export-yolo recordings/ boxes/
  denet export-yolo recordings/ boxes/ --task context --labels intersection
  denet export-yolo recordings/ boxes/ --config runs/first/config.yaml
"""

import dataclasses
from pathlib import Path

import denet_program
from training.config import SPLIT_BY, TASKS, Config, TrainingError, add_reading_options, parse
from training.options import Parser, show, tell

SHARED = ("task", "labels", "split_by", "seed", "subset", "seq_len", "frame_seconds")


def parser(prog: str = "python -m tools.export_yolo") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="recordings and their annotations, as for denet train")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for images, labels and tables")
    parser.add_argument("--config", type=Path, metavar="FILE", help="config.yaml of a training run, whose settings to take")
    texts = {field.name: field.metadata["help"] for field in dataclasses.fields(Config)}
    parser.add_argument("--task", choices=TASKS, help=texts["task"])
    strategies = ("voice", "annotation", "intersection", "union")
    parser.add_argument("--labels", choices=strategies, help=texts["labels"])
    parser.add_argument("--split-by", nargs="+", choices=SPLIT_BY, help=texts["split_by"])
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the split")
    parser.add_argument("--subset", type=float, metavar="SHARE", help=texts["subset"])
    parser.add_argument("--seq-len", type=int, metavar="N", help=texts["seq_len"])
    parser.add_argument("--frame-seconds", type=float, metavar="S", help=texts["frame_seconds"])
    add_reading_options(parser)
    parser.add_argument("--sequences", type=int, default=4, metavar="N", help="sequences of frames in an image (4)")
    parser.add_argument("--width", type=int, default=640, metavar="PIXELS", help="of an image (640)")
    parser.add_argument("--height", type=int, default=320, metavar="PIXELS", help="of an image, for all frequencies (320)")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.export_yolo") -> int:
    args = parser(prog).parse_args(arguments)
    from tools import yolo  # PyTorch takes seconds

    names = (*SHARED, "data_format", "label_column", "completely_annotated", "time_expansion")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    try:
        config = parse(["--config", str(args.config)] if args.config else [])
        config = dataclasses.replace(config, data_dir=args.folder, **given)
        print(yolo.export(config, args.out, args.sequences, args.width, args.height))
    except (TrainingError, ValueError, OSError) as error:
        tell("error", error)
        return 2
    show(f"data.yaml, hyp.yaml, classes.names, annotations.json and manifest.csv: {args.out}")
    return 0


if __name__ == "__main__":
    denet_program.run(main)
