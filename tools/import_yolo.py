"""Turn what YOLOR found in the images of an export into events: seconds, hertz, label and score.

DETECTIONS is a folder of text files, one an image: those of test.py --save-txt --save-conf (runs/test/exp/labels), or of
detect.py --save-txt (inference/output), which have no scores. Boxes of images that overlap are joined. What is written to
DETECTIONS, or the folder that --output names: events.csv, recordings.csv, and with --call-gap phonemes.csv, the boxes that
the calls were made of.

Examples:
  denet import-yolo boxes/ yolor/runs/test/exp/labels --threshold 0.4 --output found
  denet import-yolo boxes/ yolor/inference/output --call-gap 0.05 --formats raven --report
"""

from pathlib import Path

import denet_program
from tools.detect import PROGRAMS
from training.options import Parser, counted, show, tell


def parser(prog: str = "python -m tools.import_yolo") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("export", type=Path, metavar="OUT", help="folder that denet export-yolo wrote")
    parser.add_argument("detections", type=Path, metavar="DETECTIONS", help="folder of YOLOR's text files")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the tables (default: DETECTIONS)")
    parser.add_argument("--threshold", type=float, default=0.25, metavar="X", help="least score of a box (0.25)")
    parser.add_argument(
        "--call-gap", type=float, default=0, metavar="S", help="boxes (phonemes) less than this apart (s) are one call"
    )
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=("train", "validation", "test"),
        help="sides whose images were searched (default: those with a file)",
    )
    formats = ("events.parquet", *PROGRAMS)
    parser.add_argument("--formats", nargs="*", default=[], choices=formats, help="further results, as of denet detect")
    parser.add_argument("--report", action="store_true", help="web pages to look, listen and correct, the export's calls beside")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.import_yolo") -> int:
    args = parser(prog).parse_args(arguments)
    from tools import detect_report, event_formats, yolo  # PyTorch takes seconds

    output = args.output or args.detections
    try:
        export = yolo.read_export(args.export)
        results, phonemes, remarks = yolo.find_events(export, args.detections, args.threshold, args.call_gap, args.sides)
        event_formats.write(results, output, args.formats, export.time_expansion)
        if args.call_gap > 0:
            event_formats.write_csv(phonemes, output / "phonemes.csv")
        if args.report:
            reference = event_formats.read_events(args.export / "reference.csv")
            page = detect_report.write(results, None, output / "report", export.time_expansion, reference)
            show(f"look at {page}")
    except (ValueError, OSError) as error:
        tell("error", error)
        return 2
    for remark in remarks:
        tell("warning", remark)
    show(f"{counted(len(results.events), 'event')} in {counted(len(results.recordings), 'recording')}: {output / 'events.csv'}")
    return 0


if __name__ == "__main__":
    denet_program.run(main)
