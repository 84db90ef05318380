"""What every command line shares: help in paragraphs, what a mistyped option was meant to be, lines for the terminal."""

import argparse
import difflib
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import denet_program
from denet_torch import files

MAX_DB = 200  # of a ratio of a call to its background
COMPILING = "the first step takes long: kernels are being compiled for this processor, which later runs find done"


@contextmanager
def explained_if_slow(line: str, seconds: float = 5) -> Iterator[None]:
    """Print `line` on stderr if the block takes longer than so many seconds."""
    timer = threading.Timer(seconds, lambda: print(f"\n{line}", file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Parser(argparse.ArgumentParser):
    """argparse's, with the description as it was written and suggestions for mistyped options and names."""

    def __init__(self, **texts):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **texts)

    def parse_known_args(self, args=None, namespace=None):
        if told := unknown_option(self, args):
            self.error(told)
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        """One line and exit code 2."""
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += did_you_mean(wrong[1], re.findall(r"[\w.-]+", wrong[2]))
        tell("error", f"{message}; {self.prog} --help tells more")
        self.exit(2)


def add_snr_option(parser: argparse.ArgumentParser) -> None:
    """--snr-db LOW HIGH, for commands that put calls before a background."""
    parser.add_argument(
        "--snr-db",
        type=float,
        nargs=2,
        default=(-5, 20),
        metavar=("LOW", "HIGH"),
        help="calls lie so many dB above their background (default: -5 20)",
    )


def refuse_snr(snr_db: Sequence[float], error: type[ValueError] = ValueError) -> None:
    """Raise `error` for what --snr-db cannot be; samples are no numbers any more beyond these."""
    if len(snr_db) != 2 or not -MAX_DB <= snr_db[0] <= snr_db[1] <= MAX_DB:
        raise error(f"--snr-db takes the lowest and the highest ratio, from -{MAX_DB} to {MAX_DB} dB")


def tell(kind: str, message: object) -> None:
    """Print `kind: message` ("error", "warning", "note") to stderr, as one line that a terminal shows and does not obey.

    With its kind it has at most 300 characters. Whatever a command says of files goes through here or `show`. An error about
    stdout or stderr itself is raised, for `denet_program.run`.
    """
    if denet_program.is_of_output(message):
        raise message
    print(files.printable(f"{kind}: {message}", files.MAX_MESSAGE), file=sys.stderr)


def show(text: object) -> None:
    """Print a line that holds names from files to stdout, as `tell` does."""
    print(files.printable(str(text), files.MAX_MESSAGE))


def counted(number: int, noun: str) -> str:
    """`1 event`, `2 events`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """`; did you mean NAME?`, or nothing where none of the names is near the word."""
    near = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def unknown_option(parser: argparse.ArgumentParser, words: Iterable[str] | None = None) -> str | None:
    """What is wrong with the first of the words that looks like an option, is none and abbreviates none."""
    known = [name for action in parser._actions for name in action.option_strings]
    for word in sys.argv[1:] if words is None else words:
        if word == "--":
            return None
        name = word.partition("=")[0]
        if name.startswith("--") and not any(option.startswith(name) for option in known):
            return f"there is no option {name}{did_you_mean(name, known)}"
    return None
