"""The command that trains: its options are those of `training.config.Config`."""

import re
import sys
from collections.abc import Callable

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only

import denet_program
from denet_torch import detect
from denet_torch.audio import AudioError, probe
from denet_torch.checkpoint import CheckpointError
from denet_torch.files import printable

from .config import Config, TrainingError, parse
from .detector import BoxResult
from .loop import Result, train
from .options import tell
from .report import write_report
from .runs import Stopped, stop_signals
from .tables import CollectionError

USER_ERRORS = (TrainingError, CollectionError, AudioError, CheckpointError, OSError)


def main(argv: list[str] | None = None, prog: str = "python -m training.run") -> int:
    """Run and print; 0, or 2 after a one-line error."""
    return exit_code(lambda: _run(argv, prog), "what was saved before is there")


def _run(argv: list[str] | None, prog: str) -> int:
    config = parse(argv, prog=prog)
    for recording in config.detect:
        probe(recording)  # not after hours of training
    with stop_signals() as stop:
        result = train(config, stop=stop)
        if rank_zero_only.rank != 0:
            return 0
        if config.report and not isinstance(result, BoxResult):
            write_report(result)  # also if a signal comes: a few seconds, after hours
        print(summary(result) if isinstance(result, Result) else result.summary())
        stop.tell_late()
        stop.later, stop.at_once = False, "stopped; the run is whole"
        if config.detect:
            events = detect(result.model, config.detect, time_expansion=detected_expansion(config, result))
            told = events.map(lambda cell: printable(cell) if isinstance(cell, str) else cell)
            print(told.to_string(index=False) if len(events) else "no events detected")
    return 0


def exit_code(work: Callable[[], int | None], after: str = "the same command goes on from here") -> int:
    """Call `work`; what it returns or 0, or after a line: 2 for an error, what stopped it otherwise. `after`: Ctrl-C's line."""
    try:
        return work() or 0
    except Stopped as stopped:
        print(stopped)
        return stopped.code
    except KeyboardInterrupt:
        print(f"stopped; {after}", file=sys.stderr)
        return denet_program.STOPPED
    except (RuntimeError, MemoryError) as error:
        if (memory := _exhausted(error)) is None:
            raise
        tell("error", f"the {memory} does not hold this; half the --batch-size with twice the --accumulate is the same step")
        return 2
    except USER_ERRORS as error:
        tell("error", error if denet_program.is_of_output(error) else one_line(error))
        return 2


def _exhausted(error: Exception) -> str | None:
    """The memory that an error is for want of."""
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU's memory"
    return "memory" if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error) else None


def one_line(error: Exception) -> str:
    """The message; of an error in a data loader's process, which comes with its traceback, the message alone."""
    if "Traceback (most recent call last)" not in str(error):
        return str(error).strip() or type(error).__name__
    return re.sub(r"^[\w.]+Error: ", "", (str(error).strip().splitlines() or [type(error).__name__])[-1])


def detected_expansion(config: Config, result: Result) -> float | None:
    """The factor by which the recordings to search were slowed down: the given one, else the collection's, if it has one."""
    if config.time_expansion is not None:
        return config.time_expansion
    found = result.data.collection.time_expansion
    return None if found == 1 else found


def summary(result: Result) -> str:
    """The scores on the test split beside those of always answering the commonest class, and where the results lie."""
    frames, events = result.test["frames"], result.test["events"]
    return "\n".join(
        [
            result.data.described_split,
            f"recordings never seen ({len(result.data.test.recordings)}), weights of epoch {result.progress.best_epoch}, "
            f"the best by {result.best_by} on the validation side:",
            f"  frame F1 of calls {frames['f1']:.3f} (precision {frames['precision']:.3f}, recall {frames['recall']:.3f}), "
            f"accuracy {frames['accuracy']:.3f}",
            f"  always answering the commonest class: F1 {frames['majority_f1']:.3f}, accuracy {frames['majority_accuracy']:.3f}",
            f"  event F1 {events['f1']:.3f} (200 ms collar)",
            f"results in {result.out}: {', '.join(sorted(path.name for path in result.out.glob('[!.]*')))}",
        ]
    )


if __name__ == "__main__":
    denet_program.run(main)
