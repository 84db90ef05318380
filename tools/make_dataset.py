"""Write generated flying-fox recordings in the layout of the real collection, with its faults.

Example: python -m tools.make_dataset data/synthetic --recordings 200 --seed 0
"""

import argparse
import sys

from denet_torch.audio import AudioError
from training.synthetic import make_dataset, make_tables


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", help="folder to create: FileInfo.csv, Annotations.csv, files*/*.WAV")
    parser.add_argument("--recordings", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")
    parser.add_argument("--min-seconds", type=float, default=1.0, metavar="S", help="default: 1")
    parser.add_argument("--max-seconds", type=float, default=4.0, metavar="S", help="default: 4")
    parser.add_argument(
        "--background", metavar="DIR", help="real clips to put behind half of the recordings"
    )
    parser.add_argument("--one-caller", action="store_true", help="one bat makes all calls of a recording")
    parser.add_argument(
        "--tables-only",
        action="store_true",
        help="write only tables, one row a recording; 293238 is the real collection's size",
    )
    args = parser.parse_args()
    try:
        if args.tables_only:
            annotations = round(args.recordings * 91_080 / 293_238)
            print(make_tables(args.out, args.recordings, annotations, args.seed))
            return 0
        out = make_dataset(
            args.out,
            args.recordings,
            args.seed,
            args.min_seconds,
            args.max_seconds,
            args.background,
            one_caller=args.one_caller,
        )
    except (AudioError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.recordings} recordings and the faulty ones in {out}; the truth is in truth.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
