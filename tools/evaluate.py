"""Score detected events against a reference.

Both are tables, or folders of them: our own (.csv or .parquet with the columns file, onset, offset (s), label and
score, as events.csv, the truth.csv of denet make-dataset or a list saved from a report's page), Raven selection
tables, Audacity label tracks, generic sequences, layers of Sonic Visualiser (.svl), results of BirdNET or BatDetect2.
A table whose rows name no recording is of the one it is named after; a call given twice counts once. The recordings
that were searched, with or without events, are in recordings.csv beside the estimated table.

Examples:
  denet evaluate --reference data/truth.csv --estimated detections/events.csv --output scores
  denet evaluate --reference corrected_raven_tables/ --estimated detections/events.csv
"""

from pathlib import Path

import denet_program
from training.options import Parser, counted, show, tell


def main(arguments: list[str] | None = None, prog: str = "python -m tools.evaluate") -> int:
    args = parser(prog).parse_args(arguments)
    from tools import scores  # pandas takes half a second

    try:
        reference, estimated, durations = scores.load(
            args.reference, args.estimated, args.recordings, args.any_label, args.time_expansion, args.label_column
        )
        result = scores.score(
            reference, estimated, durations, args.collar, args.resolution, min_iou=args.iou
        )
        if args.output:
            scores.write(result, args.output)
    except (ValueError, OSError) as error:
        tell("error", error)
        return 2
    searched = reference.file.isin(durations)
    events = counted(searched.sum(), "event")
    print(f"{counted(len(durations), 'recording')}, {events} in the reference, {len(estimated)} estimated")
    if not searched.all():
        print(f"{(~searched).sum()} events of recordings that were not searched are left out")
    print(f"{'score':<20} {'value':>6}   95 % interval over recordings")
    print(scores.text(result))
    if args.output:
        show(f"per recording, as JSON and as a page: {args.output}")
    return 0


def parser(prog: str = "python -m tools.evaluate") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="FILE", help="what is right: a table of events, or a folder of tables"
    )
    parser.add_argument(
        "--label-column", metavar="NAME", help="column of the reference's labels, where it has none of the usual names"
    )
    parser.add_argument(
        "--time-expansion",
        type=float,
        metavar="FACTOR",
        help="the reference is of recordings slowed down by this factor, and has the slow seconds where a program wrote it "
        "(default: the factor in recordings.csv, which denet detect writes there)",
    )
    parser.add_argument(
        "--estimated", type=Path, required=True, metavar="FILE", help="what was found: events.csv of denet detect"
    )
    parser.add_argument(
        "--recordings",
        type=Path,
        metavar="FILE",
        help="file and duration of all recordings searched (default: recordings.csv beside or in --estimated)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write scores.json, .html, recordings.csv")
    parser.add_argument(
        "--collar", type=float, default=0.2, metavar="S", help="seconds that onset and offset may differ by (default: 0.2)"
    )
    parser.add_argument(
        "--iou",
        type=float,
        metavar="X",
        help="instead of the collar: an event is right from this intersection over union on, in time and frequency",
    )
    parser.add_argument(
        "--resolution", type=float, default=1.0, metavar="S", help="seconds of a segment (default: 1)"
    )
    parser.add_argument(
        "--any-label", action="store_true", help="calls are calls: take no notice of labels"
    )
    return parser


if __name__ == "__main__":
    denet_program.run(main)
