"""Show where FileInfo.csv and Annotations.csv contradict each other: a table, and pictures.

Without --recording, writes conflicts.csv (a row for each kind) and a picture of one example of each kind
to the output folder. With it, draws that recording: waveform, spectrogram, both annotations and the frame
labels of every strategy.

Examples:
  denet conflicts egyptian_fruit_bats --output conflicts
  denet conflicts egyptian_fruit_bats --recording 120601011047196133.WAV --output call.png
"""


import denet_program
from training.config import add_reading_options, reading
from training.options import Parser, show, tell


def parser(prog: str = "python -m tools.conflicts") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="the collection; indexed if it is not yet")
    parser.add_argument("--recording", metavar="NAME", help="draw this recording only")
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="folder, or with --recording an image file"
    )
    add_reading_options(parser)
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.conflicts") -> int:
    args = parser(prog).parse_args(arguments)
    from denet_torch.audio import AudioError  # PyTorch takes seconds
    from training.conflicts import draw_by_name, write_report
    from training.tables import CollectionError

    try:
        if args.recording:
            draw_by_name(args.folder, args.recording, args.output, **reading(args))
            show(args.output)
        else:
            print(write_report(args.folder, args.output, **reading(args)).to_string(float_format="%.1f"))
    except (CollectionError, AudioError, ValueError, OSError) as error:
        tell("error", error)
        return 2
    return 0


if __name__ == "__main__":
    denet_program.run(main)
