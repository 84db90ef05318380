"""Copy a model configuration of your clone of YOLOR for the classes of an export; the clone stays as it is.

Example:
  denet yolo-config boxes/ yolor/cfg/yolor_csp.cfg
"""

from pathlib import Path

import denet_program
from training.options import Parser, show, tell


def parser(prog: str = "python -m tools.yolo_config") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("export", type=Path, metavar="OUT", help="folder that denet export-yolo wrote")
    parser.add_argument("source", type=Path, metavar="CFG", help="model configuration (.cfg) in the clone")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the copy (default: OUT, under the same name)")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.yolo_config") -> int:
    args = parser(prog).parse_args(arguments)
    from tools import yolo  # PyTorch takes seconds

    target = args.output or args.export / args.source.name
    try:
        export = yolo.read_export(args.export)
        if target.resolve() == args.source.resolve():
            raise yolo.YoloError(f"{target}: would replace your clone's own; name another file with --output")
        changed = yolo.prepare_config(args.source, len(export.classes), target)
    except (ValueError, OSError) as error:
        tell("error", error)
        return 2
    places = f"filters changed in {changed['filters']} places, classes in {changed['classes']}"
    show(f"{target}: {len(export.classes)} class(es), {places}")
    return 0


if __name__ == "__main__":
    denet_program.run(main)
