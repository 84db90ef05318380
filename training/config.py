"""What a training run, a sweep and a study are told: dataclasses, every field an option and a key of the YAML file.

Nothing here imports PyTorch or pandas: `denet train --help` has to come at once (tests/test_command.py).
"""

import argparse
import dataclasses
import inspect
import math
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jsonargparse
import yaml

from .options import did_you_mean, refuse_snr, unknown_option


class TrainingError(ValueError):
    """A run that cannot start or go on; the message is one line for the user."""


MAX_YAML = 100_000  # bytes; YAML takes 4 s for a megabyte

# Names from modules that import much; tests/test_command.py holds them to those there.
MODEL_NAMES = ("denet", "sincnet", "boxes")
FORMATS = ("fruit-bats", "raven", "audacity", "generic", "events", "svl", "birdnet", "batdetect2", "mixed")
SPLIT_BY = ("day", "treatment", "cage", "emitter", "folder", "recording")
TASKS = (
    "call", "context", "emitter", "addressee", "emitter_before", "addressee_before", "emitter_after", "addressee_after"
)  # fmt: skip
# What a sweep can draw; how, says training/sweep.py.
SEARCHED = (
    "learning_rate", "dropout", "weight_decay", "call_share", "batch_size", "loss", "optimizer", "before_pooling"
)  # fmt: skip
# By what the best weights of a run can be chosen: group and name of a score on the validation split.
BEST_BY = (
    "frames.f1", "frames.macro_f1", "frames.average_precision", "frames.roc_auc", "frames.accuracy", "events.f1", "segments.f1"
)  # fmt: skip
LOGGERS = ("tensorboard", "wandb")
FINE_TUNING = 0.25  # of the learning rate, for weights that were trained already; docs/few_examples.md has what it brings
# What a study can compare.
VARIANTS = {
    "trained": {"amp": True, "train_attention": True},
    "untrained": {"amp": True, "train_attention": False},  # the attention branch as the original leaves it
    "float32": {"amp": False, "train_attention": True},
}


def option(default, text: str):
    """A field with its help text; `default` may be a list."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass
class Config:
    """Train DENet or SincNet and see what it learned: denet train --amp

    Without --data-dir a synthetic collection in the flying-fox layout is written first. The run's folder gets checkpoints,
    TensorBoard logs, the weights best on the validation split, their scores on recordings never seen, and report.html.
    """

    # data
    data_dir: Path | None = option(
        None, "folder of recordings and their annotations; without it a synthetic set is written and used"
    )
    data_format: str | None = option(
        None,
        f"what the annotations are: {', '.join(FORMATS)} (each table as it looks); without it what they look like",
    )
    label_column: str | None = option(None, "column of the labels, where it has none of the usual names")
    completely_annotated: bool | None = option(
        None, "recordings without a table hold no call; by default nothing is known of them"
    )
    time_expansion: float | None = option(
        None, "recordings were slowed down by this factor: true rate = header's rate * factor; by default what their metadata say"
    )
    recordings: int = option(400, "recordings of the synthetic set")
    snr_db: list[float] = option([10, 20], "lowest and highest signal-to-noise ratio of the synthetic set's calls, in dB")
    task: Literal[TASKS] = option("call", f"what a frame, or a file, is labelled with: {', '.join(TASKS)}")
    mode: Literal["frame", "file"] = option(
        "frame", "label every frame and find events, or give one label to each file (see denet classify)"
    )
    labels: Literal["voice", "annotation", "intersection", "union"] = option(
        "voice", "which table labels the frames: voice, annotation, intersection or union"
    )
    seq_len: int = option(10, "length of a sequence, in frames")
    frame_seconds: float = option(0.05, "length of a frame, in seconds")
    sample_rate: int = option(16000, "sampling rate of the model, in Hz; recordings are resampled to it")
    split_by: list[str] = option(
        [],
        f"groups never on two sides of the split: {', '.join(SPLIT_BY)}; without one, days where they are known and enough, "
        "else recordings",
    )
    call_share: float = option(0.2, "share of training windows drawn around a call, each class as often as any other")
    boundary_share: float = option(0.1, "share of training windows drawn at an onset or offset; the rest lie anywhere")
    backgrounds: Path | None = option(None, "folder of other sounds: under half of the training windows, alone in a tenth")
    subset: float = option(1.0, "train on this reproducible share of the training recordings")
    few: int = option(
        0, "train on so many recordings of each class only, drawn with the seed from the training side; 0 trains on all"
    )
    self_train: float = option(
        0.0,
        "learn also from what --init-from answers for recordings without labels, and those that --few leaves out, where it gives "
        "a class at least this probability, say 0.95; 0 does not",
    )
    overfit: int = option(
        0, "train on this many batches only, again and again, to see whether the model can learn"
    )
    workers: int = option(0, "processes that load data; 0 loads in the training process")
    resample_on: Literal["loader", "device"] = option(
        "loader", "where training windows are brought to --sample-rate: loader, or device, to which more is copied then"
    )

    # model
    model: str = option("denet", f"name of the model: {', '.join(MODEL_NAMES)}; defaults that suit each: docs/training.md")
    init_from: Path | None = option(
        None,
        "start from these weights (.safetensors, see denet convert), or those in the folder of a run; the learning rate is then "
        "a quarter of what it would be",
    )
    freeze: bool = option(
        False, "leave what makes features of the waveform (filters, attention, convolutions) as --init-from has it"
    )
    train_attention: bool = option(
        True, "train the attention branch; the original leaves it as it was initialised"
    )
    before_pooling: bool = option(True, "attention before the first pooling, otherwise after it")
    dropout: float = option(0.1, "rate of every dropout of a fresh model (the original's default: 0.3)")
    n_filters: int = option(80, "sinc filters of a fresh model")
    gru_units: int = option(2048, "units of each GRU of a fresh model")
    dense_units: list[int] = option(
        [1024, 512], "units of the two hidden dense layers of a fresh model"
    )
    hidden_units: list[int] = option([2048, 2048, 2048], "units of the fully connected layers of a fresh SincNet")

    # training
    epochs: int = option(4, "passes over the training windows")
    patience: int = option(0, "end after so many epochs without a better score on the validation split; 0 trains all --epochs")
    best_by: str | None = option(
        None,
        f"the validation score that the best weights have: {', '.join(BEST_BY)}; by default frames.f1, of several classes "
        "frames.macro_f1",
    )
    epoch_windows: int = option(480, "sequences drawn in an epoch")
    batch_size: int = option(8, "sequences in a batch of one device")
    accumulate: int = option(1, "batches whose gradients are summed before a step of the optimizer")
    loss: str = option("cross_entropy", "name of the loss: cross_entropy or focal")
    class_weights: list[float] = option(
        [], "weight of each class in the loss; none weighs all alike"
    )
    optimizer: str = option("adam", "name of the optimizer: adam, adamw, sgd or rmsprop")
    learning_rate: float = option(6e-4, "highest learning rate of sinc filters, attention, GRU and the dense layer after it")
    rate_factor: float = option(4.0, "learning rate of all other layers, as a multiple")
    weight_decay: float = option(0.0, "weight decay of the optimizer")
    schedule: str = option(
        "cosine", "course of the learning rate: constant, cosine or linear, after the warm-up"
    )
    warmup_steps: int = option(10, "steps in which the learning rate rises from 0")
    clip_norm: float = option(1.0, "gradients are scaled down to this norm")
    on_nonfinite: Literal["stop", "skip"] = option(
        "stop", "at a loss or gradient that is not finite: stop the run or skip the batch"
    )
    seed: int = option(0, "seed of weights, windows and dropout")

    # machine
    amp: bool = option(
        False, "mixed precision: float16 with gradient scaling on CUDA, bfloat16 on a CPU that has instructions for it"
    )
    amp_dtype: Literal["auto", "float16", "bfloat16"] = option(
        "auto", "with --amp: auto, float16 or bfloat16; float16 on a CPU is slow, to try what a GPU would compute"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = option("auto", "auto, cpu or gpu")
    devices: int = option(1, "devices, or processes with --accelerator cpu, on this machine")
    nodes: int = option(1, "machines, started with torchrun")
    compile: bool = option(False, "torch.compile the model")
    threads: int = option(0, "CPU threads of a process; 0 leaves PyTorch's choice")

    # run
    out: Path | None = option(
        None, "folder of the run; without it a new one in runs/, or with --resume the newest there"
    )
    resume: bool = option(
        False,
        "go on from the newest undamaged checkpoint in the folder; start afresh where there is none. --resume RUN takes folder "
        "and settings of the run in RUN, and more --epochs if you give them",
    )
    checkpoint_steps: int = option(
        0, "save a checkpoint also after every so many steps; 0 only after epochs"
    )
    keep: int = option(2, "checkpoints kept beside the best weights")
    loggers: list[str] = option(
        ["tensorboard"], f"where the course of the run is written besides steps.csv and epochs.csv: {', '.join(LOGGERS)}, or none"
    )
    profile: bool = option(False, "write a torch profiler trace of the first steps")
    report: bool = option(True, "write report.html at the end")
    detect: list[Path] = option([], "recordings whose events are printed at the end")

    def __post_init__(self):
        """Raise TrainingError for a value outside its range."""
        for name, least in AT_LEAST.items():
            if getattr(self, name) < least:
                raise TrainingError(
                    f"{flag(name)} is {getattr(self, name)}; it must be at least {least}"
                )
        for name in ABOVE_0:
            if not getattr(self, name) > 0:
                raise TrainingError(f"{flag(name)} is {getattr(self, name)}; it must be above 0")
        if self.subset > 1:
            raise TrainingError(f"--subset is {self.subset}; it must be at most 1")
        refuse_snr(self.snr_db, TrainingError)
        if self.data_format is not None and self.data_format not in FORMATS:
            near = did_you_mean(self.data_format, FORMATS)
            raise TrainingError(f"--data-format {self.data_format}: there are {', '.join(FORMATS)}{near}")
        if self.best_by is not None and self.best_by not in BEST_BY:
            raise TrainingError(f"--best-by {self.best_by}: there are {', '.join(BEST_BY)}{did_you_mean(self.best_by, BEST_BY)}")
        for name in self.loggers:
            if name not in LOGGERS:
                raise TrainingError(f"--loggers {name}: there are {', '.join(LOGGERS)}{did_you_mean(name, LOGGERS)}")
        if self.time_expansion is not None and not (math.isfinite(self.time_expansion) and self.time_expansion > 0):
            raise TrainingError(f"--time-expansion is {self.time_expansion}; it must be a number above 0")
        if self.self_train and not 0.5 < self.self_train < 1:
            raise TrainingError(f"--self-train is {self.self_train}; it must be above 0.5 and below 1, say 0.95")
        if self.self_train and self.init_from is None:
            raise TrainingError("--self-train takes the answers of a trained model; name it with --init-from")
        if self.freeze and self.init_from is None:
            raise TrainingError("--freeze leaves layers of a trained model as they are; name it with --init-from")
        if self.few and self.subset < 1:
            raise TrainingError("--few and --subset both choose what to train on; give one of them")
        if self.resample_on == "device" and self.backgrounds is not None:
            raise TrainingError("--resample-on device: the loader mixes --backgrounds in after resampling; give one of them")
        if not 0 <= self.dropout < 1:
            raise TrainingError(f"--dropout is {self.dropout}; it must be at least 0 and below 1")


@dataclass
class SweepConfig(Config):
    """Search for settings with Optuna: denet sweep --out runs/sweep --trials 20 --amp

    Every option of denet train may be given; those named in --search are drawn anew for each trial. Start the same command
    several times and the processes work on one study together; start it again and it goes on. Trials that fall behind the
    median are ended early. The folder gets study.db, trials.csv, history.png, importances.png, and a run's folder for each trial.
    """

    trials: int = option(20, "trials in the study, whichever process made them")
    search: list[str] = option(["learning_rate", "dropout", "call_share"], f"settings to search: {', '.join(SEARCHED)}")

    def __post_init__(self):
        super().__post_init__()
        if self.out is None:
            raise TrainingError("--out: name the folder of the study")
        if self.resume:
            raise TrainingError("--resume: a sweep goes on by itself; start the same command again")
        if self.trials < 1:
            raise TrainingError(f"--trials is {self.trials}; it must be at least 1")
        for name in self.search:
            if name not in SEARCHED:
                raise TrainingError(f"--search {name}: there are {', '.join(SEARCHED)}{did_you_mean(name, SEARCHED)}")


@dataclass
class StudyConfig(Config):
    """Compare settings over seeds and signal-to-noise ratios: denet study --out runs/study --seeds 0 1 2

    Trains each variant once for each seed, with any options of denet train, and scores the weights on recordings generated in
    bands of signal-to-noise ratio, which no run has seen; with --data-dir, on that collection's test split, which differs from
    seed to seed. A study that was stopped goes on when started again. The folder gets scores.csv, snr.png and a run's folder
    for each.
    """

    seeds: list[int] = option([0, 1, 2], "seeds of the runs")
    variants: list[str] = option(["trained", "untrained"], f"what is compared: {', '.join(VARIANTS)}")
    background: Path | None = option(None, "real clips behind half of the generated recordings, trained on and tested on")
    band_recordings: int = option(40, "recordings to test on in each band of 5 dB")

    def __post_init__(self):
        super().__post_init__()
        if self.out is None:
            raise TrainingError("--out: name the folder of the study")
        for name in self.variants:
            if name not in VARIANTS:
                raise TrainingError(f"--variants {name}: there are {', '.join(VARIANTS)}{did_you_mean(name, VARIANTS)}")


@dataclass
class FewStudyConfig(Config):
    """What a few labelled recordings, self-training and pasted calls bring: denet study-few --out runs/few --seeds 0 1 2

    On generated recordings: a model is trained on loud calls and then meets another site, whose calls are quiet. Each way to go
    on from there is trained once for each seed, with any options of denet train, and all are scored on the same recordings
    of that site, which no run has seen. A study that was stopped goes on when started again. The folder gets scores.csv and
    a run's folder for each.
    """

    seeds: list[int] = option([0, 1, 2], "seeds of the runs")
    first_epochs: int = option(10, "passes of the model that the others start from, and of the one that starts from nothing")
    test_recordings: int = option(60, "recordings to test on")

    def __post_init__(self):
        super().__post_init__()
        if self.out is None:
            raise TrainingError("--out: name the folder of the study")


AT_LEAST = {
    **dict.fromkeys(
        [
            "seq_len",
            "batch_size",
            "accumulate",
            "devices",
            "nodes",
            "keep",
            "epochs",
            "epoch_windows",
        ],
        1,
    ),
    **dict.fromkeys(
        ["few", "overfit", "patience", "workers", "warmup_steps", "checkpoint_steps", "threads", "weight_decay"], 0
    ),
}
ABOVE_0 = ("learning_rate", "rate_factor", "clip_norm", "frame_seconds", "sample_rate", "subset")
# What may differ from the run that a checkpoint was written by, because the weights do not depend on it.
FREE_ON_RESUME = (
    "out",
    "resume",
    "checkpoint_steps",
    "keep",
    "loggers",
    "patience",
    "profile",
    "report",
    "detect",
    "workers",
    "threads",
    "init_from",
)


# How the annotations are read: fields of training.tables.Reading.
READING = ("data_format", "label_column", "completely_annotated", "time_expansion")


def reading(values) -> dict:
    """The fields of `Reading` that are given, of a Config or of the options of `add_reading_options`."""
    given = {name: getattr(values, name) for name in READING}
    return {name: value for name, value in given.items() if value is not None}


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Give the parser of another command the options of READING."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    names = ["--data-format", "--format"]
    parser.add_argument(*names, choices=FORMATS, metavar="FORMAT", help=fields["data_format"].metadata["help"])
    parser.add_argument("--label-column", metavar="NAME", help=fields["label_column"].metadata["help"])
    parser.add_argument(
        "--completely-annotated", action=argparse.BooleanOptionalAction, help=fields["completely_annotated"].metadata["help"]
    )
    parser.add_argument("--time-expansion", type=float, metavar="FACTOR", help=fields["time_expansion"].metadata["help"])


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


# The first option of each part of the help.
PARTS = {
    "data_dir": "data",
    "model": "model",
    "epochs": "training",
    "amp": "machine",
    "out": "run",
    "trials": "sweep",
    "seeds": "study",
}


def get_parser(config_class: type = Config, prog: str | None = None) -> jsonargparse.ArgumentParser:
    """Parser whose options are the fields of `config_class`, and --config FILE.yaml."""
    about = inspect.cleandoc(config_class.__doc__)
    texts = {"prog": prog, "description": about, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = jsonargparse.ArgumentParser(exit_on_error=False, **texts)
    group = parser
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with any of these options; what follows it overrides it",
    )
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        text, kind = field.metadata["help"], hints[field.name]
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        text += _in_words(default, field.name) if default not in (None, []) else ""
        if field.name in PARTS:
            group = parser.add_argument_group(PARTS[field.name])
        if kind in (bool, bool | None):
            group.add_argument(
                flag(field.name),
                action=jsonargparse.ActionYesNo(no_prefix="no-"),
                default=default,
                help=text,
            )
        elif typing.get_origin(kind) is list:
            (item,) = typing.get_args(kind)
            group.add_argument(
                flag(field.name),
                type=item,
                nargs="*",
                default=default,
                help=text,
                metavar=field.name.upper(),
            )
        else:
            group.add_argument(
                flag(field.name), type=kind, default=default, help=text, metavar=field.name.upper()
            )
    return parser


def _in_words(default, name: str) -> str:
    if isinstance(default, bool):
        other = flag("no_" + name) if default else flag(name)
        return f" (default: {'yes' if default else 'no'}; {other}: {'no' if default else 'yes'})"
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    return f" (default: {shown})"


def parse(argv: list[str] | None, config_class: type = Config, prog: str | None = None):
    """An instance of `config_class` from command line words; TrainingError says which option is wrong."""
    parser = get_parser(config_class, prog)
    argv = _resumed(sys.argv[1:] if argv is None else argv)
    _check_files(argv)
    if told := unknown_option(parser, argv):
        raise TrainingError(f"{told}; --help lists all")
    try:
        return _parsed(parser, argv, config_class)
    except TrainingError as error:
        files, words = _config_files(argv)
        try:
            _parsed(get_parser(config_class, prog), words, config_class)
        except TrainingError:
            raise error from None  # the words alone are wrong, too
        raise TrainingError(f"--config {files[-1]}: {_without_values(str(error))}") from None


def _parsed(parser: jsonargparse.ArgumentParser, argv: list[str], config_class: type):
    try:
        values = parser.parse_args(argv).as_dict()
        from denet_torch import MODELS  # PyTorch takes seconds

        # Of what neither the words nor a --config file say.
        if values["model"] in MODELS:
            parser.set_defaults(MODELS[values["model"]].DEFAULTS)
        if values["init_from"] is not None:
            parser.set_defaults(learning_rate=FINE_TUNING * parser.get_defaults().learning_rate)
        values = parser.parse_args(argv).as_dict()
    except jsonargparse.ArgumentError as error:
        raise TrainingError(" ".join(str(error).split())) from None
    values.pop("config")
    hints = typing.get_type_hints(config_class)
    for name, value in values.items():
        if value is None and type(None) not in typing.get_args(hints[name]):
            raise TrainingError(f"{flag(name)} has no value")
    return config_class(**values)


def _without_values(said: str) -> str:
    """What the parser says of a file, without what the file holds."""
    if not said.startswith(("Parser key", "Option", "--")):
        return "has a value of another kind than its option takes"
    key = re.match(r"""(?:Parser key|Option) ["']([\w.]{1,60})["']""", said)
    if key is None:
        return said
    if said.startswith("Option"):
        return f"{key[1]} is no option"
    return f"the value of {key[1]} is of another kind than the option takes"


def _resumed(argv: list[str]) -> list[str]:
    """`argv` with --resume RUN written out: the run's settings, its folder, --resume. Raises TrainingError for what is no run."""
    for i, (word, run) in enumerate(zip(argv, argv[1:], strict=False)):
        if word == "--resume" and not run.startswith("-"):
            settings = Path(run) / "config.yaml"
            if not settings.is_file():
                raise TrainingError(f"--resume {run}: no config.yaml there; name the folder of a run")
            return ["--config", str(settings), *argv[:i], *argv[i + 2 :], "--out", run, "--resume"]
    return argv


def _config_files(argv: list[str]) -> tuple[list[str], list[str]]:
    """The --config files among the words, and the other words."""
    files, others, words = [], [], iter(argv)
    for word in words:
        if word == "--config":
            files += [name for name in [next(words, None)] if name is not None]
        elif word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        else:
            others.append(word)
    return files, others


def _check_files(argv: list[str]) -> None:
    """Raise TrainingError for a --config file that is none, without showing what another file holds."""
    for name in _config_files(argv)[0]:
        path = Path(name)
        if not path.is_file():
            raise TrainingError(f"--config {name}: {'is no file' if path.exists() else 'no such file'}")
        if path.stat().st_size > MAX_YAML:
            raise TrainingError(f"--config {name}: has more than {MAX_YAML} bytes, as no file of options")
        try:
            text = path.read_text(encoding="utf-8")
            # An alias repeats what was said before: a few lines of them make gigabytes.
            fits = _is_flat(text) and _holds_options(yaml.safe_load(text))
        except OSError as error:
            raise TrainingError(f"--config {name}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, ValueError, RecursionError):
            fits = False
        if not fits:
            raise TrainingError(f"--config {name}: is no YAML file of options and their values (without aliases)")


def _is_flat(text: str) -> bool:
    """Whether YAML has no aliases and nothing deeper than a list in a mapping; what is deep takes a minute to read to its end."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > 2 or isinstance(event, yaml.AliasEvent):
            return False
    return True


def _holds_options(value) -> bool:
    """Names with numbers, texts and lists of these: the parser goes wrong over anything else."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        return False
    items = [item for one in value.values() for item in (one if isinstance(one, list) else [one])]
    return not any(isinstance(item, (dict, list, set)) for item in items)


def as_dict(config: Config) -> dict:
    """The fields as plain values that YAML and JSON can hold."""

    def plain(value):
        if isinstance(value, Path):
            return str(value)
        return [plain(item) for item in value] if isinstance(value, list) else value

    return {name: plain(value) for name, value in vars(config).items()}
