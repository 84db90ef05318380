"""Sweeps: trials of an Optuna study that share a folder. The command's options are those of `training.config.SweepConfig`."""

import fcntl
import logging
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import matplotlib
import optuna
import pandas as pd
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

import denet_program

from .collection import replacing
from .config import Config, SweepConfig, parse
from .loop import prepare_data, train
from .options import show
from .run import exit_code
from .runs import Stop, stop_signals

SPACE: dict[str, Callable[[Trial], object]] = {
    "learning_rate": lambda trial: trial.suggest_float("learning_rate", 1e-5, 3e-3, log=True),
    "dropout": lambda trial: trial.suggest_float("dropout", 0.0, 0.6),
    "weight_decay": lambda trial: trial.suggest_float("weight_decay", 1e-7, 1e-1, log=True),
    "call_share": lambda trial: trial.suggest_float("call_share", 0.1, 0.7),
    "batch_size": lambda trial: trial.suggest_categorical("batch_size", [4, 8, 16, 32]),
    "loss": lambda trial: trial.suggest_categorical("loss", ["cross_entropy", "focal"]),
    "optimizer": lambda trial: trial.suggest_categorical("optimizer", ["adam", "adamw", "rmsprop", "sgd"]),
    "before_pooling": lambda trial: trial.suggest_categorical("before_pooling", [True, False]),
}
PATIENCE = 300  # s, for a table that another process writes to; SQLite's own are 5, less than a busy disk may take
GOES_ON = "stopped; the same command goes on from here"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


def sweep(config: SweepConfig) -> Study:
    """Run trials until the study has `config.trials`, then write its table and plots. Raises what `train` raises."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of heartbeats and plots
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it logs Ctrl-C and every error of a trial with a traceback
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # and so does this one while it gives a connection back
    config.out.mkdir(parents=True, exist_ok=True)
    with open(config.out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes the data and the study, the others find them
        prepare_data(config)
        # A process that dies is noticed by its heartbeat, and its trial counts as failed.
        patient = {"connect_args": {"timeout": PATIENCE}}
        storage = optuna.storages.RDBStorage(f"sqlite:///{config.out / 'study.db'}", patient, heartbeat_interval=30)
        study = optuna.create_study(
            storage=storage,
            study_name="denet",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        )
    enough = optuna.study.MaxTrialsCallback(config.trials, states=DONE)
    with stop_signals() as stop:
        stop.at_once = GOES_ON

        def run(trial: Trial) -> float:
            return run_trial(config, trial, stop)

        def ended(study: Study, trial: FrozenTrial) -> None:
            told(study, trial)
            stop.ask(GOES_ON)

        stop.later = True  # Optuna's own work is done as a whole: in it Ctrl-C leaves threads behind, and becomes other errors
        if len(study.get_trials(states=DONE)) < config.trials:
            study.optimize(run, callbacks=[ended, enough])
        stop.ask(GOES_ON)
    write_results(study, config.out)
    return study


def told(study: Study, trial: FrozenTrial) -> None:
    """Print how a trial ended and which is the best so far."""
    best = (
        f"; best: trial {study.best_trial.number}, {study.best_value:.3f}"
        if study.get_trials(states=[TrialState.COMPLETE])
        else ""
    )
    drawn = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in trial.params.items()
    )
    score = "no score" if trial.value is None else f"{trial.value:.3f}"
    print(f"trial {trial.number} {trial.state.name.lower()}: {score} with {drawn}{best}", flush=True)


def run_trial(config: SweepConfig, trial: Trial, stop: Stop) -> float:
    """Train with settings drawn by `trial`; the best validation score. Signals end it at once as long as nothing is trained."""
    shared = {field.name: getattr(config, field.name) for field in fields(Config)}
    drawn = {name: SPACE[name](trial) for name in config.search}
    out = config.out / f"trial-{trial.number:03d}"

    def on_epoch(epoch: int, score: float) -> None:
        trial.report(score, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        stop.later = False
        stop.ask(GOES_ON)
        return train(replace(Config(**shared), out=out, **drawn), on_epoch, stop).progress.best
    finally:
        stop.later = True


def write_results(study: Study, out: Path) -> None:
    """Write trials.csv, the best first, and the plots."""
    with replacing(out / "trials.csv") as path:
        table(study).to_csv(path, index=False)
    matplotlib.use("agg")
    plots = {"history": optuna.visualization.matplotlib.plot_optimization_history(study)}
    values = {trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])}
    if len(values) > 1:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        plots["importances"] = optuna.visualization.matplotlib.plot_param_importances(study, evaluator=evaluator)
    for name, axes in plots.items():
        with replacing(out / f"{name}.png") as path:
            axes.figure.savefig(path, format="png", dpi=120, bbox_inches="tight")


def table(study: Study) -> pd.DataFrame:
    """A row a finished trial, the best first: number, state, score (that of its last epoch if pruned), the settings drawn."""
    rows = [
        {"trial": trial.number, "state": trial.state.name.lower(), "score": trial.value} | trial.params
        for trial in study.get_trials(states=DONE)
    ]
    return pd.DataFrame(rows).sort_values("score", ascending=False, ignore_index=True)


def main(argv: list[str] | None = None, prog: str = "python -m training.sweep") -> int:
    """Sweep and print; 0, or 2 after a one-line error."""

    def work() -> None:
        config = parse(argv, SweepConfig, prog)
        study = sweep(config)
        print(table(study).to_string(index=False))
        show(f"results in {config.out}: trials.csv, history.png, importances.png, best run trial-{study.best_trial.number:03d}")

    return exit_code(work)


if __name__ == "__main__":
    denet_program.run(main)
