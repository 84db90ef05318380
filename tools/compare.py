"""Compare tables of events, of DENet, SincNet, YOLOR or another program, against one reference.

Each is what denet evaluate takes, with its recordings.csv beside it; NAME=FILE gives it a name in the output. Scores count
the recordings that all searched, with 95 % intervals over recordings; the difference in event F1 has an interval of its own,
from the same draws of recordings for both. The page shows the recordings on which the tables disagree most.

Example:
  denet compare --reference boxes/reference.csv --estimated denet=found/events.csv yolor=labels/events.csv --output comparison
"""

from pathlib import Path

import denet_program
from training.options import Parser, counted, show, tell


def parser(prog: str = "python -m tools.compare") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("--reference", type=Path, required=True, metavar="FILE", help="what is right, as of denet evaluate")
    parser.add_argument("--label-column", metavar="NAME", help="of the reference, as of denet evaluate")
    parser.add_argument("--time-expansion", type=float, metavar="X", help="of the reference, as of denet evaluate")
    parser.add_argument("--estimated", nargs="+", required=True, metavar="[NAME=]FILE", help="two or more tables of events")
    parser.add_argument(
        "--recordings", type=Path, metavar="FILE", help="file and duration of all searched (default: recordings.csv beside each)"
    )
    parser.add_argument("--output", type=Path, default=Path("comparison"), metavar="DIR", help="folder for page and tables")
    parser.add_argument("--collar", type=float, default=0.2, metavar="S", help="s that onset and offset may differ by (0.2)")
    parser.add_argument("--iou", type=float, metavar="X", help="instead of the collar, as of denet evaluate")
    parser.add_argument("--resolution", type=float, default=1.0, metavar="S", help="s of a segment (1)")
    parser.add_argument("--any-label", action="store_true", help="calls are calls: take no notice of labels")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.compare") -> int:
    args = parser(prog).parse_args(arguments)
    from tools import comparison  # pandas takes half a second

    try:
        tables = named(args.estimated)
        how = {"min_iou": args.iou, "time_expansion": args.time_expansion, "label_column": args.label_column}
        result = comparison.compare(
            args.reference, tables, args.recordings, args.collar, args.resolution, args.any_label, **how
        )
        page = comparison.write(result, args.output)
    except (ValueError, OSError) as error:
        tell("error", error)
        return 2
    events = counted(len(result.events["reference"]), "event")
    print(f"{counted(len(result.durations), 'recording')} that all searched, {events} in the reference")
    print(comparison.text(result))
    show(f"look at {page}")
    return 0


def named(words: list[str]) -> dict[str, Path]:
    """Tables by name: NAME=FILE, or the name of the file's folder. Raises ValueError for fewer than two or a name given twice."""
    tables = {}
    for word in words:
        name, found, path = word.partition("=")
        if not found or Path(word).exists():
            name, path = Path(word).absolute().parent.name, word
        if name in tables or name in ("", "reference"):
            raise ValueError(f"{word}: is called {name or 'nothing'} like another table; give each a name, NAME=FILE")
        tables[name] = Path(path)
    if len(tables) < 2:
        raise ValueError("--estimated: two tables or more can be compared")
    return tables


if __name__ == "__main__":
    denet_program.run(main)
