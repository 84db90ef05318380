"""Look at the annotations of a collection and print the frame, rate and collar that suit its calls.

Examples:
  denet suggest my_recordings
  denet suggest bats --data-format raven --time-expansion 10
"""


import denet_program
from denet_torch.files import printable
from training.config import add_reading_options, reading
from training.options import Parser, counted, tell


def parser(prog: str = "python -m tools.suggest") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="recordings and their tables; indexed if they are not yet")
    add_reading_options(parser)
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.suggest") -> int:
    args = parser(prog).parse_args(arguments)
    from training.collection import CollectionError, open_collection  # pandas takes half a second
    from training.suggestion import suggest

    try:
        found = suggest(open_collection(args.folder, **reading(args)))
    except (CollectionError, ValueError, OSError) as error:
        tell("error", error)
        return 2
    print(f"{counted(found.calls, 'call')} in {counted(found.recordings, 'recording')}")
    short, median, long = (f"{1000 * seconds:.3g} ms" for seconds in found.duration)
    print(f"durations: median {median}; 5 % below {short}, 5 % above {long}")
    if found.frequencies:
        print("frequencies: 90 % of the calls' bands lie between {:.5g} and {:.5g} Hz".format(*found.frequencies))
    else:
        print("frequencies: no table tells them; this is the recordings' rate, a lower one computes faster and hears less")
    print(printable(f"train with:    denet train --data-dir {args.folder} {found.options()}"))  # to be copied: not cut
    print(f"evaluate with: --collar {found.collar:g}")
    return 0


if __name__ == "__main__":
    denet_program.run(main)
