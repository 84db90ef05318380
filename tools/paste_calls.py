"""Put calls of a collection in front of other sounds: recordings with their annotations, and what each was made of.

COLLECTION holds annotated calls. BACKGROUNDS holds recordings without calls: where it has annotations, those that they say
hold no call are used; where it has none, all. OUT gets WAV files and mix.csv, which denet train and denet index read as
annotations and which names the source, the background and the signal-to-noise ratio of every call.

Examples:
  denet paste-calls egyptian_fruit_bats street_sounds pasted --snr-db 0 20
  denet paste-calls recordings recordings pasted --split runs/first/split-0123456789ab.csv
  denet train --data-dir pasted --split-by folder --init-from runs/first
"""

from pathlib import Path

import denet_program
from training.config import TASKS, add_reading_options, reading
from training.options import Parser, add_snr_option, counted, show, tell

SHOWN = 10  # reasons for what was left out


def parser(prog: str = "python -m tools.paste_calls") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("collection", metavar="COLLECTION", help="recordings and their annotations, as for denet train")
    parser.add_argument("backgrounds", metavar="BACKGROUNDS", help="recordings without calls; may be COLLECTION")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create")
    parser.add_argument("--recordings", type=int, default=200, metavar="N", help="how many to write (default: 200)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="length of each, at most (default: 4)")
    parser.add_argument("--calls", type=int, default=3, metavar="N", help="calls in a recording, at most (default: 3)")
    add_snr_option(parser)
    parser.add_argument(
        "--fade", type=float, default=0.005, metavar="S", help="seconds around a call that fade in and out (default: 0.005)"
    )
    parser.add_argument("--task", choices=TASKS, default="call", help="what the calls are labelled with (default: call)")
    strategies = ("voice", "annotation", "intersection", "union")
    parser.add_argument("--labels", choices=strategies, default="voice", help="which table says where calls are (default: voice)")
    parser.add_argument(
        "--split", metavar="FILE", help="split-HASH.csv of a run: take calls and backgrounds of its training side only"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same recordings (default: 0)")
    add_reading_options(parser)
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.paste_calls") -> int:
    args = parser(prog).parse_args(arguments)
    import numpy as np  # pandas and PyTorch take seconds

    from denet_torch.audio import AudioError
    from training.collection import open_collection
    from training.labels import Labeller
    from training.pasting import TABLE, Paster, Pasting, quiet_recordings
    from training.splits import read_split
    from training.tables import CollectionError

    try:
        how = Pasting(args.recordings, args.seconds, args.calls, tuple(args.snr_db), args.fade, args.seed)
        collection = open_collection(args.collection, **reading(args))
        collection.require_headers()
        backgrounds, quiet, known = quiet_recordings(args.backgrounds)
        rows = np.arange(len(collection.recordings))
        if args.split:
            rows = read_split(args.split, collection).train
            if backgrounds.root.resolve() == collection.root.resolve():
                quiet = np.intersect1d(quiet, rows)
        print(known)
        paster = Paster(collection, Labeller(collection, args.labels, args.task), rows, backgrounds, quiet, how)
        table = paster.write(args.out)
    except (CollectionError, AudioError, ValueError, OSError) as error:
        tell("error", error)
        return 2
    for note, times in paster.notes.most_common(SHOWN):
        tell("note", f"left out {counted(times, 'time')}: {note}")
    if len(paster.notes) > SHOWN:
        tell("note", f"and {len(paster.notes) - SHOWN} other reasons")
    show(
        f"{counted(len(table), 'call')} of {counted(table['source'].nunique(), 'recording')} in front of "
        f"{counted(table['background'].nunique(), 'background')}: {counted(how.recordings, 'recording')} in {args.out}; "
        f"the truth is in {TABLE}"
    )
    return 0


if __name__ == "__main__":
    denet_program.run(main)
