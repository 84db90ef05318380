"""Time the port beside TensorFlow and onnxruntime, on the same weights and inputs, side by side in one run.

    denet benchmark --out benchmark              # the default cases, about half an hour on two cores
    denet benchmark --batch 8 --modes train      # one case
    denet benchmark --scaling                    # how the cost of the port grows, up to 16 times its size
    denet benchmark --contenders port --beside ../before   # the port beside that of another checkout: what a change did

Every contender runs in a process of its own; the runs are interleaved, so that a machine whose speed drifts is fair to all.
A turn is as many runs as take 0.2 s, two at least; the last counts, as in a loop.
Outputs are compared before anything is timed. Writes report.md, report.json and times.png into --out.
"""

from pathlib import Path

import denet_program
from training.options import Parser, tell

from .benchmark_contenders import CONTENDERS


def parser(prog: str = "python -m tools.benchmark") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], help="sequences in a batch")
    parser.add_argument("--samples", type=int, nargs="+", default=[800], help="samples in a frame")
    parser.add_argument("--seq-len", type=int, nargs="+", default=[10], help="frames in a sequence")
    parser.add_argument("--attention", nargs="+", default=["before"], choices=["before", "after"], help="pooling")
    parser.add_argument("--modes", nargs="+", default=["predict", "train"], choices=["predict", "train"], help="what is timed")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS), help="who")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, whose port is timed as well")
    parser.add_argument("--scaling", action="store_true", help="batch, sequence and frame length times 1 to 16, the port alone")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each, after one that is not counted")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each contender")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder for the report")
    return parser


def main(argv: list[str] | None = None, prog: str = "python -m tools.benchmark") -> int:
    args = parser(prog).parse_args(argv)
    from .benchmark_runs import Case, markdown, run, scaling  # PyTorch takes seconds

    groups = [
        [Case(mode, batch, seq_len, samples, attention)]
        for mode in args.modes
        for attention in args.attention
        for samples in args.samples
        for seq_len in args.seq_len
        for batch in args.batch
    ]
    names = args.contenders + ([f"port at {args.beside}"] if args.beside else [])
    try:
        if args.scaling:
            print(scaling(args.attention[0], args.rounds, args.threads, args.out))
        else:
            print(markdown(run(groups, names, args.rounds, args.threads, args.out)))
    except (ValueError, OSError) as error:
        tell("error", error)
        return 2
    return 0


if __name__ == "__main__":
    denet_program.run(main)
