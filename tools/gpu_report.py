"""Check and measure the network on a GPU within nine minutes; or say beforehand what the data sheets let expect.

    denet gpu-report                            # all parts on the first GPU; report.json and report.md in gpu-report/
    denet gpu-report --page docs/gpu.md         # and the measured columns of that page
    denet gpu-report --estimate                 # print the estimates; no GPU is needed
    denet gpu-report --dry                      # tiny sizes on the CPU, to see that it works

The parts: a the original's recordings (in a checkout, which has them) and drawn models on CUDA in float64 and float32, and what
TF32, bfloat16 and float16 cost in accuracy; b five training steps beside a CPU's; c a training run with each type, the first
killed once and resumed; d time, memory and share of the peak of training steps; e detection of an hour of audio; f windows
resampled in the loader and on the device, and how many of them a second. Each part is a process with its share of the minutes.
One that fails, or takes longer and is stopped, is named in the report and does not stop the others.
"""

from pathlib import Path

import denet_program
from training.options import Parser, tell

PARTS = ("a", "b", "c", "d", "e", "f")


def parser(prog: str = "python -m tools.gpu_report") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="parts to run")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for report.json and report.md")
    parser.add_argument("--page", type=Path, metavar="PAGE", help="write this page's table anew, with what was measured")
    parser.add_argument("--estimate", action="store_true", help="estimates alone, from data sheets")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all parts together, which share them")
    return parser


def main(argv: list[str] | None = None, prog: str = "python -m tools.gpu_report") -> int:
    args = parser(prog).parse_args(argv)
    from .gpu_estimate import table, write_page  # PyTorch takes seconds

    try:
        if args.estimate:
            print(table())
            found = {}
        else:
            from .gpu_parts import measured, run

            report = run(args.parts, args.out, args.dry, args.minutes)
            print((args.out / "report.md").read_text())
            found = measured(report)
            if args.page and not found:
                tell("note", f"{args.page} gets no measurement: nothing was timed of a card that it has estimates of")
        if args.page:
            write_page(args.page, found)
    except (ValueError, OSError) as error:
        tell("error", error)
        return 2
    return 0


if __name__ == "__main__":
    denet_program.run(main)
