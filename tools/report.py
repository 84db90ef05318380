"""Count calls by site, night, hour and class over a season.

PATH is a folder with results of denet detect, in it or below it, or a table of events (the corrected ones of the report's
index, say): where tables are given, their events count and not those of the folders, which tell how long was recorded.
Written are

  summary.csv   a row for each site, night, hour and class: calls, seconds recorded
  season.html   a page of these

A night is from noon to noon. Times are those of the recorder's clock: what the recordings' metadata or names tell.

Examples:
  denet report detections
  denet report site1/detections site2/detections --output season
  denet report detections corrected.csv
"""

from pathlib import Path

import denet_program
from training.options import Parser, show, tell


def parser(prog: str = "python -m tools.report") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a folder of results, or a table of events")
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: the first folder, or where the first table lies)")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.report") -> int:
    args = parser(prog).parse_args(arguments)
    from tools import season  # PyTorch takes seconds

    folders = [path if path.is_dir() else path.parent for path in args.paths]
    try:
        page, told = season.write(args.paths, args.output or folders[0])
    except (ValueError, OSError) as error:
        tell("error", error)
        return 2
    print(told)
    show(f"look at {page}; the numbers are in {page.parent / 'summary.csv'}")
    return 0


if __name__ == "__main__":
    denet_program.run(main)
