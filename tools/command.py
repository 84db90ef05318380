"""`denet`: one command for all that the modules of `tools` and `training` do.

Each subcommand is `main` of a module, with the words after its name. Help and completion take the parsers alone, which
import nothing heavy.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import denet_program
from tools import (
    benchmark,
    classify,
    compare,
    conflicts,
    convert_weights,
    detect,
    evaluate,
    export_yolo,
    gpu_report,
    import_yolo,
    index_dataset,
    make_dataset,
    paste_calls,
    report,
    suggest,
    yolo_config,
)
from training.config import Config, FewStudyConfig, StudyConfig, SweepConfig, get_parser
from training.options import did_you_mean, tell

PARSERS: dict[str, Callable[[str], argparse.ArgumentParser]] = {
    "train": lambda prog: get_parser(Config, prog),
    "detect": detect.parser,
    "classify": classify.parser,
    "report": report.parser,
    "evaluate": evaluate.parser,
    "compare": compare.parser,
    "export-yolo": export_yolo.parser,
    "yolo-config": yolo_config.parser,
    "import-yolo": import_yolo.parser,
    "convert": convert_weights.parser,
    "index": index_dataset.parser,
    "suggest": suggest.parser,
    "conflicts": conflicts.parser,
    "make-dataset": make_dataset.parser,
    "paste-calls": paste_calls.parser,
    "sweep": lambda prog: get_parser(SweepConfig, prog),
    "study": lambda prog: get_parser(StudyConfig, prog),
    "study-few": lambda prog: get_parser(FewStudyConfig, prog),
    "benchmark": benchmark.parser,
    "gpu-report": gpu_report.parser,
}
MODULES = {
    "train": "training.run",
    "detect": "tools.detect",
    "classify": "tools.classify",
    "report": "tools.report",
    "evaluate": "tools.evaluate",
    "compare": "tools.compare",
    "export-yolo": "tools.export_yolo",
    "yolo-config": "tools.yolo_config",
    "import-yolo": "tools.import_yolo",
    "convert": "tools.convert_weights",
    "index": "tools.index_dataset",
    "suggest": "tools.suggest",
    "conflicts": "tools.conflicts",
    "make-dataset": "tools.make_dataset",
    "paste-calls": "tools.paste_calls",
    "sweep": "training.sweep",
    "study": "training.study",
    "study-few": "training.few_study",
    "benchmark": "tools.benchmark",
    "gpu-report": "tools.gpu_report",
}
HELP = """\
usage: denet COMMAND ...

DENet finds sound events in raw audio, frame by frame.

your own calls:
  index         read recordings and their annotations into one checked table
  suggest       what frame, rate and collar suit your calls, from the annotations' durations and frequencies
  train         train a model, see its scores on recordings never seen
  detect        find calls in recordings; pages to look, listen and correct
  classify      one label for each file, from a model trained with --mode file
  report        count calls by site, night, hour and class over a season
  evaluate      score detected events against a reference
  compare       score several tables of events side by side, and see where they disagree

YOLOR beside it:
  export-yolo   spectrogram images and boxes of the same recordings, labels and split
  yolo-config   a copy of your clone's model configuration for your classes
  import-yolo   what YOLOR found, as events with frequencies

models:
  convert       weights of the original, of Keras, TensorFlow, numpy; to ONNX
  sweep         search for settings
  study         compare settings over seeds and signal-to-noise ratios
  study-few     what a few labelled recordings, self-training and pasted calls bring at a new site
  benchmark     time the port beside TensorFlow and onnxruntime
  gpu-report    check and measure it on a GPU, or estimate without one

data:
  conflicts     where the flying-fox collection's two tables contradict each other
  make-dataset  write generated recordings with their truth
  paste-calls   put your calls in front of other sounds, with their truth

  version       versions of this and of what it computes with (--version: this alone)
  completion    print a script that completes words in your shell: bash, zsh or tcsh

denet COMMAND --help tells more. For example:
  denet train --data-dir recordings/ --out runs/first
  denet detect night.wav --weights runs/first/weights.safetensors --report
"""


def main(words: list[str] | None = None) -> int:
    """Run the subcommand that the first word names; its exit code. 2 where there is none."""
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    try:
        if name in ("-h", "--help", "help"):
            print(HELP, end="")
        elif name == "--version":
            print(f"denet-torch {_version('denet-torch')}")
        elif name == "version":
            print("\n".join(f"{package} {_version(package)}" for package in VERSIONS))
        elif name == "completion":
            return completion(rest)
        elif name not in PARSERS:
            tell("error", f"there is no command {name}{did_you_mean(name, PARSERS)}; denet --help lists all")
            return 2
        elif "-h" in rest or "--help" in rest:
            PARSERS[name](f"denet {name}").print_help()
        else:
            return module(name).main(rest, f"denet {name}")
    except ImportError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None and "torchaudio" not in str(error):
            raise  # a fault of ours
        print(f"error: {error}" + (f"; pip install 'denet-torch[{extra}]'" if extra else ""), file=sys.stderr)
        return 2
    except OSError as error:  # of a path that no system can have, before the work begins
        tell("error", error)
        return 2
    return 0


def module(name: str) -> ModuleType:
    """The module of a subcommand: in a wheel below denet_torch, where setup.py has moved it."""
    return import_module(detect.__name__.removesuffix("tools.detect") + MODULES[name])


# Packages that a subcommand needs beyond the base, and what brings them.
EXTRAS = {"optuna": "sweep", "tensorflow": "tensorflow", "tf_keras": "tensorflow", "onnx": "onnx", "onnxruntime": "onnx"}
EXTRAS |= {"torchvision": "boxes"}
VERSIONS = ("denet-torch", "torch", "numpy", "numba", "soundfile", "pandas")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def completion(words: list[str]) -> int:
    """Print what `eval "$(denet completion bash)"` or a file for zsh or tcsh needs."""
    import shtab

    if len(words) != 1 or words[0] not in shtab.SUPPORTED_SHELLS:
        print(f"error: denet completion takes one of {', '.join(shtab.SUPPORTED_SHELLS)}", file=sys.stderr)
        return 2
    whole = argparse.ArgumentParser(prog="denet")
    whole.add_argument("--version", action="store_true")
    commands = whole.add_subparsers()
    for name, parser in PARSERS.items():
        part = parser(f"denet {name}")
        commands.add_parser(name, parents=[part], add_help=False, conflict_handler="resolve", help=name)
    commands.add_parser("version", help="versions")
    commands.add_parser("completion", help="completion").add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    print(shtab.complete(whole, words[0]))
    return 0


if __name__ == "__main__":
    denet_program.run(main)
