"""Read a collection's tables and audio headers into one validated index, DIR/index.parquet.

Rows that cannot be used are listed with file, line and reason in DIR/index.report.csv.

Examples:
  denet index egyptian_fruit_bats
  denet index my_recordings
  denet index my_recordings --data-format raven --label-column "Call type" --completely-annotated
"""

import resource
import time

import denet_program
from training.config import add_reading_options, reading
from training.options import Parser, show, tell


def parser(prog: str = "python -m tools.index_dataset") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("folder", metavar="DIR", help="recordings and their tables, in any folders below")
    parser.add_argument("--output", metavar="FILE", help="the index (default: DIR/index.parquet)")
    add_reading_options(parser)
    parser.add_argument(
        "--rate", type=int, metavar="HZ", help="keep only recordings of this rate, if they differ"
    )
    parser.add_argument(
        "--no-headers", action="store_true", help="check the tables only, touch no audio file"
    )
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.index_dataset") -> int:
    args = parser(prog).parse_args(arguments)
    from training.collection import INDEX_NAME, CollectionError, build_index, report_path, summary  # pandas: half a second
    from training.config import Config
    from training.labels import Labeller, short_calls

    started = time.perf_counter()
    try:
        collection, report = build_index(
            args.folder,
            args.output,
            headers=not args.no_headers,
            rate=args.rate,
            **reading(args),
        )
    except (CollectionError, ValueError, OSError) as error:
        tell("error", error)
        return 2
    print(summary(collection, report))
    if collection.one_source and (told := short_calls(collection, Labeller(collection).spans, Config.frame_seconds)):
        show(f"warning: {told}")
    index = args.output or collection.root / INDEX_NAME
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.perf_counter() - started
    show(f"{index} and {report_path(index)}")
    print(f"{seconds:.1f} s, {time.process_time():.1f} s of them computing, {memory:.0f} MB at most")
    return 0


if __name__ == "__main__":
    denet_program.run(main)
