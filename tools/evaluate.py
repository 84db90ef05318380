"""Score detected events against a reference.

Both are tables (.csv or .parquet) with the columns file, onset, offset (s), label, and score in the
estimated one; the reference may also be the truth.csv of tools.make_dataset, a list saved from a report's
page, or a folder of Sonic Visualiser layers (.svl). The recordings that were searched, with or without
events, are in recordings.csv beside the estimated table.

Example:
  python -m tools.evaluate --reference data/truth.csv --estimated detections/events.csv --output scores
"""

import argparse
import sys
from pathlib import Path

from tools import scores


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        reference, estimated, durations = scores.load(
            args.reference, args.estimated, args.recordings, args.any_label
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
