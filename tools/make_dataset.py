"""Write generated flying-fox recordings in the layout of the real collection, with its faults.

Example: denet make-dataset data/synthetic --recordings 200 --seed 0
"""


import denet_program
from training.options import Parser, add_snr_option, show, tell


def parser(prog: str = "python -m tools.make_dataset") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("out", help="folder to create: FileInfo.csv, Annotations.csv, files*/*.WAV")
    parser.add_argument("--recordings", type=int, default=60, metavar="N", help="how many (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    parser.add_argument("--min-seconds", type=float, default=1.0, metavar="S", help="seconds at least (default: 1)")
    parser.add_argument("--max-seconds", type=float, default=4.0, metavar="S", help="seconds at most (default: 4)")
    add_snr_option(parser)
    parser.add_argument(
        "--background", metavar="DIR", help="real clips to put behind half of the recordings"
    )
    parser.add_argument("--one-caller", action="store_true", help="one bat makes all calls of a recording")
    parser.add_argument(
        "--tables-only",
        action="store_true",
        help="write only tables, one row a recording; 293238 is the real collection's size",
    )
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.make_dataset") -> int:
    args = parser(prog).parse_args(arguments)
    from denet_torch.audio import AudioError  # PyTorch takes seconds
    from training.synthetic import make_dataset, make_tables

    try:
        if args.tables_only:
            annotations = round(args.recordings * 91_080 / 293_238)
            show(make_tables(args.out, args.recordings, annotations, args.seed))
            return 0
        out = make_dataset(
            args.out,
            args.recordings,
            args.seed,
            args.min_seconds,
            args.max_seconds,
            args.background,
            one_caller=args.one_caller,
            snr_db=tuple(args.snr_db),
        )
    except (AudioError, ValueError, OSError) as error:
        tell("error", error)
        return 2
    show(f"{args.recordings} recordings and the faulty ones in {out}; the truth is in truth.csv")
    return 0


if __name__ == "__main__":
    denet_program.run(main)
