"""How the programs of this project begin, end and are stopped by Ctrl-C: `denet`, and `python -m` of modules with a command line.

Ctrl-C has one rule for each part of a program's life.

1. Before the work, which is while libraries are imported: one line, and the process is over.
2. In the work: KeyboardInterrupt, in a training run what `training.runs.Stop` makes of it. Not inside of an import, which
   libraries make an ImportError or a traceback of, but a moment later; and once more if nobody could be told (in a destructor, or
   in a function that C calls).
3. After the work: nothing, the exit code stands.

A second Ctrl-C ends the process there and then, without a word. At the end all that is registered with `atexit` is done, but C++
libraries are not taken down: threads may still be at work in them, and CPython ends a thread of its own that comes back from
PyTorch then by unwinding it, on which C++ aborts ("terminate called without an active exception", or "recursively"). This is a
module of its own because it comes before all others.
"""

import atexit
import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FrameType
from typing import NoReturn

STOPPED = 130  # exit code after Ctrl-C, as shells have it
UNREAD = 141  # that of a program that SIGPIPE ends
UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
SOON = 0.02  # s
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_part = "before"  # "work", "after"
_process = 0  # this program's; its children inherit the handler
_code: int | None = None  # once it is known
_came_before = False
_raised: BaseException | None = None
_still: Callable[[], bool] | None = None  # whether it is still wanted


def denet() -> NoReturn:
    """The console command."""
    take()
    run(import_module("denet_torch.tools.command").main)


def begin(package: str) -> None:
    """For a package's first line: take Ctrl-C over if the program that begins is `python -m PACKAGE.…`."""
    if sys.argv[0] == "-m" and any(word.startswith(f"{package}.") for word in sys.orig_argv):  # "-m" until the module is found
        take()


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and end the process with the exit code that it returns; 130 after Ctrl-C, 141 if nobody reads its output."""
    global _part, _process, _code
    _part, _process = "work", os.getpid()
    code = 2
    try:
        try:
            code = main() or 0
            sys.stdout.flush()
        except BrokenPipeError:  # head or less has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = UNREAD
        except SystemExit as end:  # argparse's
            if not isinstance(end.code, int):
                raise
            code = end.code
        except Exception as error:  # whoever it leaves behind is let go of here, not waited for at the end
            with contextlib.suppress(OSError):  # where stderr is what is full
                code = _failed(error)
        except KeyboardInterrupt:  # commands that have more to say catch it themselves
            print("stopped", file=sys.stderr)
            code = STOPPED
    except KeyboardInterrupt:  # it came as one of these lines was done
        code = STOPPED
    finally:
        _part = "after"
    _code = code
    sys.exit(code)


def _failed(error: Exception) -> int:
    """Say what ended the program, and its exit code: 2 where its output cannot be written, 1 of a fault of ours."""
    if is_of_output(error):
        print(f"error: the output of this command cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    traceback.print_exc()
    return 1


def is_of_output(error: object) -> bool:
    """Whether an error is about stdout or stderr: those of the files that we write name them. `run` alone tells it."""
    return isinstance(error, OSError) and error.errno in UNWRITABLE and error.filename is None


def interrupt(error: KeyboardInterrupt, frame: FrameType | None, still: Callable[[], bool] = lambda: True) -> None:
    """Raise `error` out of a signal's handler, which was called in `frame`; a moment later if that is inside of an import.

    `still` tells then whether it is still to be raised.
    """
    global _raised, _still
    _raised, _still = error, still
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>" and _can_wait():
            return _once_more()
        frame = frame.f_back
    raise error


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait: here until the block ends, in processes that it starts until `signals_come` is called there."""
    if _can_wait():
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signals_come()


def signals_come() -> None:
    if _can_wait():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _can_wait() -> bool:
    """Whether a signal can be put off: not on Windows, where it is as Python has it."""
    return hasattr(signal, "pthread_sigmask") and hasattr(signal, "setitimer")


def _once_more() -> None:
    signal.signal(signal.SIGALRM, lambda number, frame: _part != "after" and _still() and interrupt(_raised, frame, _still))
    signal.setitimer(signal.ITIMER_REAL, SOON)


def take() -> None:
    """Take Ctrl-C and the end over, in the process that this is."""
    global _process
    _process = os.getpid()
    _open_closed()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in what shells run in the background
        signal.signal(signal.SIGINT, _came)
    sys.unraisablehook = _unraisable
    atexit.register(_end)  # before all others, to be called after them
    _refuse_wrong_backends()


def _open_closed() -> None:
    """Put the null device where stdin, stdout or stderr is closed (`>&-`): nothing can be printed there otherwise, and the next
    file that is opened gets its number, and what C libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)
            os.set_inheritable(stream.fileno(), True)  # by processes that are started here
            setattr(sys, name, stream)


def _refuse_wrong_backends() -> None:
    """End with one line and exit code 2 if DENET_BACKENDS is wrong, on which an import would raise ValueError later."""
    from denet_torch import backends

    try:
        backends.asked(backends.installed())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _came(number: int, frame: FrameType | None) -> None:
    global _came_before
    again, _came_before = _came_before, True
    if os.getpid() != _process:  # a child: it is the parent who says something
        os._exit(STOPPED)
    elif _part == "before":
        os.write(2, b"stopped before anything was done\n")
        os._exit(STOPPED)
    elif again:
        os._exit(STOPPED if _code is None else _code)
    elif _part == "work":
        interrupt(KeyboardInterrupt(), frame)


def _unraisable(unraisable) -> None:
    if _raised is not None and unraisable.exc_value is _raised and _can_wait():
        _once_more()
    else:
        sys.__unraisablehook__(unraisable)


def _end() -> None:
    if _code is None or os.getpid() != _process:
        return  # a fork
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(_code)
