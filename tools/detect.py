"""Find calls in recordings of any length and sampling rate.

PATH is a recording, a folder (searched to the bottom), a pattern in quotes, or a .txt list of those. The
results lie in the folder given by --output:

  events.csv      a row an event: file, onset (s), offset (s), label, score (highest frame probability), and what
                  is measured of it: frequencies, level, interval, clock time, site (docs/detection.md)
  recordings.csv  a row a recording: file, duration (s), samplerate (Hz), events, began, site, time_expansion
  parts/          the frame probabilities; run the same command again after a stop and only the missing
                  ones are computed, or with another threshold and none are

Examples:
  denet detect night.wav --weights weights.safetensors
  denet detect recordings/ --weights weights.safetensors --threshold 0.7 --call-gap 0.1
  torchrun --no-python --nproc-per-node 4 denet detect recordings/ --weights weights.safetensors

Exit code: 0, or 2 if a recording could not be used or nothing could be done.
"""

import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import denet_program
from training.options import Parser, show, tell

PROGRAMS = ("raven", "audacity", "sequence", "svl", "ann", "birdnet", "kaleidoscope")
FORMATS = ("events.parquet", "frames.csv", "frames.parquet", *PROGRAMS)


def main(arguments: list[str] | None = None, prog: str = "python -m tools.detect") -> int:
    args = parser(prog).parse_args(arguments)
    import torch  # which takes seconds

    from denet_torch import checkpoint, recorder
    from tools import detect_batch, detect_report, event_formats

    decoding = {name: getattr(args, name) for name in DECODING if getattr(args, name) is not None}
    try:
        device = detect_batch.device(args.device)
        detect_batch.folder_for_results(args.output)
        paths, empty = detect_batch.collect_each(args.paths)
        factor = recorder.time_expansion(paths) if args.time_expansion is None else args.time_expansion
        reference = event_formats.read_events(args.reference, factor, recordings=paths) if args.reference else None
        weights = checkpoint.weight_file(args.weights)
        job = detect_batch.Job(weights, args.output, args.hop, args.batch_size, factor, device)
        results = detect_batch.run(job, paths, args.jobs, **decoding)
        if results is None:  # not the first of torchrun's ranks
            return 0
        trouble = None
        try:
            if len(results.recordings):
                event_formats.write(results, args.output, args.formats, factor)
            if len(results.recordings) and args.report:
                model, folder = detect_batch.load_model(job), args.output / "report"
                detect_report.write(results, model, folder, factor, reference)
        except (ValueError, OSError) as error:  # what could not be searched is named all the same
            trouble = error
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenProcessPool:
        print("error: a process died, perhaps for want of memory; try fewer --jobs", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        tell("error", "the GPU's memory does not hold this; try a smaller --batch-size, fewer --jobs, or --device cpu")
        return 2
    except (ValueError, OSError) as error:
        tell("error", error)
        return 2
    for note in results.notes:
        tell("note", note)
    for reason in [*empty, *results.failures.values()]:
        tell("error", reason)
    if trouble is not None:
        tell("error", trouble)
        return 2
    if args.report and len(results.recordings):
        show(f"look at {args.output / 'report' / 'index.html'}")
    print(results.summary())
    if len(results.recordings):
        show(f"{detect_batch.pace(results.speed)}; results in {args.output}{results.skipped()}")
    return 2 if empty or results.failures else 0


DECODING = {
    "threshold": "an event has a frame of at least this call probability",
    "low_threshold": "and goes on while frames have at least this one (hysteresis)",
    "min_gap": "s; events less than this apart are one",
    "min_duration": "s; shorter events are then dropped",
    "call_gap": "s; events (syllables) less than this apart are then one call",
}


def parser(prog: str = "python -m tools.detect") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a recording, a folder, a pattern in quotes, or a .txt list")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="the model, or the folder of its run")
    recordings = parser.add_argument_group("recordings")
    recordings.add_argument(
        "--time-expansion",
        type=float,
        metavar="FACTOR",
        help="recordings were slowed down by this factor: true rate = header's rate * FACTOR (default: what their metadata say)",
    )
    decoding = parser.add_argument_group("what counts as an event (default of each: what is stored with the weights)")
    for name, text in DECODING.items():
        decoding.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=text)
    results = parser.add_argument_group("results")
    results.add_argument("--output", type=Path, default=Path("detections"), metavar="DIR", help="(default: detections)")
    results.add_argument("--formats", nargs="*", default=[], choices=FORMATS, help="further tables, and files of other programs")
    results.add_argument("--report", action="store_true", help="web pages to look, listen and correct")
    results.add_argument(
        "--reference", type=Path, metavar="FILE", help="events that the report shows beside those found (see denet evaluate)"
    )
    machine = parser.add_argument_group("computing")
    machine.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    machine.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    machine.add_argument("--hop", type=int, metavar="FRAMES", help="frames between sequences (default: half a sequence)")
    machine.add_argument("--batch-size", type=int, metavar="N", help="sequences at once (default: 32, on a GPU 64)")
    return parser


if __name__ == "__main__":
    denet_program.run(main)
