"""Score detected events against a reference.

Both are tables, or folders of them: our own (.csv or .parquet with the columns file, onset, offset (s), label and
score, as events.csv, the truth.csv of tools.make_dataset or a list saved from a report's page), Raven selection
tables, Audacity label tracks, generic sequences, layers of Sonic Visualiser (.svl), results of BirdNET or BatDetect2.
A table whose rows name no recording is of the one it is named after; a call given twice counts once. The recordings
that were searched, with or without events, are in recordings.csv beside the estimated table.

Examples:
  python -m tools.evaluate --reference data/truth.csv --estimated detections/events.csv --output scores
  python -m tools.evaluate --reference corrected_raven_tables/ --estimated detections/events.csv
"""

import argparse
import sys
from pathlib import Path

from tools import scores


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        reference, estimated, durations = scores.load(
            args.reference, args.estimated, args.recordings, args.any_label, args.time_expansion, args.label_column
        )
        result = scores.score(reference, estimated, durations, args.collar, args.resolution)
        if args.output:
            scores.write(result, args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    searched = reference.file.isin(durations)
    print(f"{len(durations)} recordings, {searched.sum()} events in the reference, {len(estimated)} estimated")
    if not searched.all():
        print(f"{(~searched).sum()} events of recordings that were not searched are left out")
    print(f"{'score':<20} {'value':>6}   95 % interval over recordings")
    print(scores.text(result))
    if args.output:
        print(f"per recording, as JSON and as a page: {args.output}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--label-column", metavar="NAME", help="column of the reference's labels, where it has none of the usual names"
    )
    parser.add_argument(
        "--time-expansion",
        type=float,
        default=1,
        metavar="FACTOR",
        help="the reference is of recordings slowed down by this factor, and has the slow seconds where a program wrote it",
    )
    parser.add_argument("--estimated", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--recordings",
        type=Path,
        metavar="FILE",
        help="file and duration of all recordings searched (default: recordings.csv beside --estimated)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write scores.json, .html, recordings.csv")
    parser.add_argument(
        "--collar", type=float, default=0.2, metavar="S", help="s that onset and offset may differ by (0.2)"
    )
    parser.add_argument(
        "--resolution", type=float, default=1.0, metavar="S", help="s of a segment (default: 1)"
    )
    parser.add_argument(
        "--any-label", action="store_true", help="calls are calls: take no notice of labels"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
