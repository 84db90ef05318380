"""The training run: set-up, steps, validation, checkpoints, the last evaluation.

What a step draws (windows, dropout) depends on the seed, the step and the rank alone. So the state of a run is its weights, its
optimizer and how far it has come, and one that was killed and resumed ends with the weights of one that was not.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from denet_torch import MODELS, Model, checkpoint
from denet_torch.files import MAX_MESSAGE, printable, reason
from denet_torch.memory import keep_freed_memory
from denet_torch.schema import Decoding, Detection

from . import checkpoints, fitting, guards, self_training
from .bfloat16 import emulated
from .collection import INDEX_NAME, open_collection, recording_facts, row_counts
from .config import Config, TrainingError, reading
from .detector import OF_FRAMES, BoxResult, train_boxes
from .evaluation import Predictions, choose_decoding, collate, predict, scores
from .files import FileResult, train_files
from .fitting import WEIGHTS, refuse
from .labels import IGNORE
from .loggers import check_loggers, open_loggers, write_csv
from .losses import frame_weights
from .metrics import predict as answers
from .mixing import Mixer, find_backgrounds
from .options import COMPILING, explained_if_slow
from .precision import SKIPS_IN_A_ROW, Mixed, get_fabric, read_numbers
from .registry import best_model, current_rate, freeze_front_end, get_loss, get_model, get_optimizer, get_schedule, initial_model
from .resampling import Resampling
from .runs import Loader, Stop, Stopped, describe, on_zero, run_folder, stop_signals, write_json
from .splits import write_split
from .synthetic import make_dataset
from .windows import Datasets, ExhaustiveWindows, Sampling, open_datasets


@dataclass
class Progress(fitting.Progress):
    """Of a run of frames also: steps after the last whole epoch, the decoding chosen with the best weights, what was left out."""

    RECORDED: ClassVar[tuple[str, ...]] = ("validation_loss", "validation")
    epoch_step: int = 0
    decoding: dict = field(default_factory=dict)
    skipped: int = 0
    single_class: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass
class Result:
    """What a run ends with: the weights best on the validation split and their scores on recordings never seen."""

    out: Path
    weights: Path
    model: Model
    data: Datasets
    progress: Progress
    test: dict[str, dict[str, float]]
    predictions: Predictions
    best_by: str = "frames.f1"


def train(
    config: Config, on_epoch: Callable[[int, float], None] = lambda epoch, score: None, stop: Stop | None = None
) -> "Result | FileResult | BoxResult":
    """Train, validate, evaluate on the test split, write everything to the run's folder.

    With `--mode file` and models that answer with boxes `training.files` and `training.detector` do it.

    `on_epoch` is called after each epoch with its number and validation score, and may raise. `stop`: the caller's signals, if it
    handles them itself.

    Raises TrainingError, CollectionError, AudioError or CheckpointError with one line for the user, and Stopped after SIGTERM
    or SIGINT.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory(of_any_size=True)
    fabric = get_fabric(config)
    fabric.launch()
    handled = stop_signals() if stop is None else contextlib.nullcontext(stop)
    with handled as came, run_folder(fabric, config) as out, emulated(fabric):
        kind = _train_files if config.mode == "file" else _train_boxes if _answers_with_boxes(config) else _train_frames
        result = kind(config, fabric, out, came, on_epoch)
    if stop is None:
        came.tell_late()
    return result


def _answers_with_boxes(config: Config) -> bool:
    return config.model in MODELS and MODELS[config.model].answers_with_boxes


def _train_frames(config: Config, fabric: Fabric, out: Path, stop: Stop, on_epoch) -> Result:
    trainer = Trainer(config, fabric, out, stop, on_epoch)
    trainer.run()
    return trainer.result()


def _train_files(config: Config, fabric: Fabric, out: Path, stop: Stop, on_epoch) -> FileResult:
    if fabric.world_size > 1:
        raise TrainingError("--mode file works with one device; leave out --devices and --nodes")
    if _answers_with_boxes(config):
        raise TrainingError(f"--mode file: the model {config.model} finds boxes and gives no file a label")
    prepare_data(config)
    return train_files(config, fabric, out, data_root(config), _check(stop, out))


def _train_boxes(config: Config, fabric: Fabric, out: Path, stop: Stop, on_epoch) -> BoxResult:
    refuse(config, OF_FRAMES, f"--model {config.model}")
    if fabric.world_size > 1:
        raise TrainingError(f"--model {config.model} trains on one device; leave out --devices and --nodes")
    prepare_data(config)
    data = open_data(config)
    describe(out, config, data.collection.root / INDEX_NAME, data.split.version)
    return train_boxes(config, fabric, out, data, _check(stop, out), on_epoch)


def _check(stop: Stop, out: Path) -> Callable[[], None]:
    """What is called after each step of the short loop and ends it after a signal."""

    def check() -> None:
        stop.later = True
        stop.ask(f"stopped; --resume {out} goes on")

    return check


def data_root(config: Config) -> Path:
    """Folder of the collection."""
    low, high = config.snr_db
    return config.data_dir or Path("data") / f"synthetic-{config.recordings}-{low:g}to{high:g}dB"


def prepare_data(config: Config) -> None:
    """Write what is missing of the synthetic collection and the index, which all ranks then read."""
    root = data_root(config)
    if config.data_dir is None and not root.exists():
        try:
            make_dataset(root, config.recordings, snr_db=tuple(config.snr_db))
        except ValueError as error:
            raise TrainingError(f"--recordings: {error}") from None
    open_collection(root, **reading(config))


def open_data(config: Config) -> Datasets:
    """The collection, labelled and split."""
    mixer = None
    if config.backgrounds is not None:
        mixer = Mixer(find_backgrounds(config.backgrounds), under=0.5, alone=0.1)
    try:
        sampling = Sampling(config.call_share, config.boundary_share)
    except ValueError as error:
        raise TrainingError(f"--call-share, --boundary-share: {error}") from None
    data = open_datasets(
        data_root(config),
        task=config.task,
        strategy=config.labels,
        split_by=config.split_by,
        subset=config.subset,
        few=config.few,
        reading=reading(config),
        length=config.epoch_windows,
        seed=config.seed,
        sampling=sampling,
        mixer=mixer,
        rate=config.sample_rate,
        samples=round(config.frame_seconds * config.sample_rate),
        seq_len=config.seq_len,
    )
    for windows in (data.train, data.validation, data.test):
        windows.tolerant = True
    data.train.own_rate = config.resample_on == "device"
    return data


class Trainer:
    """One process of a run."""

    def __init__(self, config: Config, fabric: Fabric, out: Path, stop: Stop, on_epoch):
        self.config, self.fabric, self.out = config, fabric, out
        self.stop, self.on_epoch = stop, on_epoch
        self.asked: list[float] | None = None  # ranks told to stop by SIGTERM, by SIGINT, if a step has just counted them
        self.loss = get_loss(config.loss)  # names are looked up before any work is done
        check_loggers(config)
        on_zero(fabric, prepare_data, config)
        self.data = open_data(config)
        self.unreadable = guards.Unreadable(len(self.data.collection.recordings), self.warn)
        n_classes = len(self.data.classes)
        several = n_classes > 2
        self.best_by = config.best_by or ("frames.macro_f1" if several else "frames.f1")
        if self.best_by == "frames.macro_f1" and not several:
            raise TrainingError("--best-by frames.macro_f1: is of several classes, and there is one; frames.f1 is its score")
        if config.class_weights and len(config.class_weights) != n_classes:
            raise TrainingError(f"--class-weights has {len(config.class_weights)} numbers; there are {n_classes} classes")
        self.class_weights = torch.tensor(config.class_weights, device=fabric.device) if config.class_weights else None
        torch.manual_seed(config.seed)
        self.model = self._initial_model()
        optimizer = get_optimizer(config.optimizer, self.model, config.learning_rate, config.rate_factor, config.weight_decay)

        global_batch = config.batch_size * config.accumulate * fabric.world_size
        self.epoch_steps = config.overfit or max(1, config.epoch_windows // global_batch)
        self.steps = self.epoch_steps * config.epochs
        self.schedule = get_schedule(config.schedule, optimizer, config.warmup_steps, self.steps)
        self.progress = Progress(initial_filters=[cut.tolist() for cut in self.model.pass_bands() or ()])
        self.precision = fabric.strategy.precision
        self.state = {
            "model": self.model,
            "training": checkpoints.TrainingState(self.model),
            "optimizer": optimizer,
            "schedule": self.schedule,
            "precision": self.precision,
            "progress": self.progress,
        }
        module = torch.compile(self.model) if config.compile else self.model
        self.module, self.optimizer = fabric.setup(module, optimizer)
        if config.self_train:
            answers = (fabric, self.model, self.data, config.self_train, out, self._leave_out, config.workers)
            self.data = self_training.self_train(*answers)
        self.resampling = Resampling(config.seq_len, round(config.frame_seconds * config.sample_rate))
        if config.resume:
            self._resume()
        if config.amp and self.precision.precision == "32-true":
            self.warn(
                "--amp: this processor has no bfloat16 instructions, training in float32; "
                "--amp-dtype bfloat16 emulates them, which is slower"
            )
        collection = self.data.collection
        facts = [*row_counts(collection, lossy=True), *recording_facts(collection), self.data.described_split]
        for line in [*facts, *self.data.described_sides()]:
            self.say(line)
        if config.self_train:
            self.say(self_training.described(out / self_training.TABLE, self.data))
        for warning in guards.data_warnings(self.data.collection, self.data.labeller, config.sample_rate, config.frame_seconds):
            self.warn(warning)
        on_zero(fabric, self._describe)
        self.loggers = open_loggers(config, out, self.progress.step) if fabric.is_global_zero else []

    # set-up

    def _initial_model(self) -> Model:
        config = self.config
        if config.init_from is None:
            return get_model(config.model, config, len(self.data.classes))
        model = initial_model(config.init_from)
        samples = round(config.frame_seconds * config.sample_rate)
        if (model.samples, model.sr) != (samples, config.sample_rate):
            raise TrainingError(
                f"{config.init_from}: has frames of {model.samples} samples at {model.sr} Hz, not {samples} at "
                f"{config.sample_rate} Hz; set --sample-rate {model.sr} --frame-seconds {model.samples / model.sr:g}"
            )
        model = self._for_these_classes(model)
        model.follow(config)
        if config.freeze:
            freeze_front_end(model)
        return model.train()

    def _for_these_classes(self, model: Model) -> Model:
        """The model, with a fresh last layer if it was trained for other classes than those of the data."""
        classes = list(self.data.classes)
        known = list(model.detection.labels) if model.detection else []
        if model.n_classes == len(classes) and known in ([], classes):
            return model
        last = [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]
        fresh = type(model)(**model.config | {"n_classes": len(classes)}).to(next(model.parameters()).dtype)
        kept = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{last}.")}
        fresh.load_state_dict(fresh.state_dict() | kept)
        before = ", ".join(known) if known else f"{model.n_classes} classes"
        path = self.config.init_from
        if self.config.self_train:
            raise TrainingError(f"--self-train: {path} was trained for {before}, not for {', '.join(classes)}")
        self.say(f"{path}: was trained for {before}; all layers but the last ({last}), which begins anew, are kept")
        return fresh

    def _resume(self) -> None:
        path, damaged = on_zero(self.fabric, checkpoints.find, self.out)
        for bad in damaged:
            self.say(f"warning: {bad} is damaged; using the one before")
        if path is None:
            self.say(f"{self.out} has no checkpoint; starting from the beginning")
            return
        checkpoints.load(path, self.state)
        self.say(f"resuming from {path}")

    def _describe(self) -> None:
        describe(self.out, self.config, self.data.collection.root / INDEX_NAME, self.data.split.version)
        write_split(self.data.split, self.data.collection, self.out)

    # the run

    def run(self) -> None:
        """Train from where the run is to its end."""
        self._check_splits()
        self.stop.later = True
        try:
            self._train()
        except (TrainingError, OSError):  # not AudioError: steps without the lost recordings are not to be gone on from
            if self.fabric.world_size == 1:  # other ranks do not know of it
                del self.progress.rates[self.progress.step :]  # of the step that was not done
                with contextlib.suppress(TrainingError):
                    self._save()
            raise

    def _train(self) -> None:
        progress, first = self.progress, self.progress.step
        bar = tqdm(total=self.steps, initial=progress.step, desc="training", unit="step", disable=not self.fabric.is_global_zero)
        with bar, self._profiler() as profiler:
            while progress.epoch < self.config.epochs and not self._patience_is_over():
                self.module.train()
                for batches in self._epoch_batches():
                    with explained_if_slow(COMPILING) if progress.step == first else contextlib.nullcontext():
                        loss = self._step(batches)
                    if profiler:
                        profiler.step()
                    bar.set_postfix(loss=f"{loss:.3f}", epoch=progress.epoch + 1, refresh=False)
                    bar.update()
                    every = self.config.checkpoint_steps
                    if every and progress.step % every == 0:
                        self._save()
                    self._stop_if_asked()
                score = self._validate()
                self._save()
                self.on_epoch(progress.epoch, score)

    def _patience_is_over(self) -> bool:
        """Whether the validation score has not become better for as many epochs as --patience says."""
        waited = self.progress.epoch - self.progress.best_epoch
        over = 0 < self.config.patience <= waited
        if over:
            self.say(f"no better {self.best_by} since epoch {self.progress.best_epoch}: ended after epoch {self.progress.epoch}")
        return over

    def _epoch_batches(self) -> Iterator[list[dict[str, Tensor]]]:
        """For each step of the epoch that is left: this rank's batches, whose gradients are summed."""
        config, fabric = self.config, self.fabric
        data = self.data.train
        data.set_epoch(0 if config.overfit else self.progress.epoch)
        per_step = config.batch_size * config.accumulate * fabric.world_size
        first = self.progress.epoch_step * per_step
        # A step's windows lie side by side and each rank has its part of them, so the whole is the same for any number of ranks.
        indices = []
        for start in range(first, self.epoch_steps * per_step, config.batch_size * fabric.world_size):
            start += config.batch_size * fabric.global_rank
            indices.append([(start + i) % len(data) for i in range(config.batch_size)])
        loader = Loader(
            data,
            batch_sampler=indices,
            num_workers=config.workers,
            collate_fn=collate,
            pin_memory=fabric.device.type == "cuda",
        )
        batches = []
        for batch in loader:
            self._leave_out(batch.pop("failed"), batch["recording"])
            batch["labels"] = batch["labels"][:, self.model.answers]
            # Looked at here: on the device it would have to be waited for.
            batch["one_class"] = torch.tensor([len(batch["labels"][batch["labels"] != IGNORE].unique()) < 2])
            waveform = self.resampling(batch["waveform"], fabric.to_device)
            batches.append(batch | {"waveform": waveform, "labels": fabric.to_device(batch["labels"])})
            if len(batches) == config.accumulate:
                yield batches
                batches = []

    def _leave_out(self, failed: list[str], recordings: Tensor) -> None:
        """Warn of windows that could not be read, which have no labels; end the run if there are many."""
        for why, recording in zip(failed, recordings.tolist(), strict=True):
            if why:
                self.unreadable.add(recording, why)

    def _step(self, batches: list[dict[str, Tensor]]) -> float:
        """One step of the optimizer; returns the mean loss of all ranks."""
        fabric, config, progress = self.fabric, self.config, self.progress
        progress.rates.append(current_rate(self.schedule, config.learning_rate))
        weight = sum(frame_weights(batch["labels"], self.class_weights).sum() for batch in batches)
        weight = fabric.all_reduce(weight, reduce_op="sum").clamp(min=1e-9)
        total = torch.zeros((), device=fabric.device)
        statistics = [buffer.clone() for buffer in self.model.buffers()]
        for number, batch in enumerate(batches):
            self._seed(number)
            with fabric.no_backward_sync(self.module, enabled=number < len(batches) - 1):
                losses = self.loss(self.module(batch["waveform"]), batch["labels"], self.class_weights)
                share = losses.sum() / weight
                fabric.backward(share * fabric.world_size)  # DDP takes the mean over the ranks
            total += share.detach()
            progress.single_class += int(batch["one_class"])
        asked = [total.new_full((), float(self.stop.code == code)) for code in (0, 130)]
        total, *asked = fabric.all_reduce(torch.stack([total, *asked]), reduce_op="sum")
        norm = fabric.clip_gradients(self.module, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
        loss, norm, *self.asked = read_numbers(total, norm, *asked)
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
            progress.skipped_in_a_row = 0
        else:
            for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(before)  # the batch norms have seen what is not finite
            self._nonfinite(batches, loss, norm)
        self.optimizer.zero_grad()
        self.schedule.step()
        progress.step += 1
        progress.epoch_step += 1
        progress.losses.append(loss)
        self._log({"loss": loss, "learning_rate": progress.rates[-1], "gradient_norm": norm})
        return loss

    def _nonfinite(self, batches: list[dict[str, Tensor]], loss: float, norm: float) -> None:
        """Leave the step out, or end the run."""
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        lowered = isinstance(self.precision, Mixed) and self.precision.leave_out()
        expected = lowered and math.isfinite(loss)  # too large a scale shows as gradients that are not finite
        if progress.skipped_in_a_row <= SKIPS_IN_A_ROW and (expected or self.config.on_nonfinite == "skip"):
            return
        path = self.out / f"nonfinite-step{progress.step}-rank{self.fabric.global_rank}.pt"
        batch = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        guards.save_batch(path, batch, loss, norm)
        raise guards.nonfinite(progress.step, loss, norm, path)

    def _seed(self, number: int) -> None:
        """Start the generators for a batch."""
        words = [self.config.seed, self.progress.step, number, self.fabric.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))

    def _validate(self) -> float:
        """Score the validation split at the end of an epoch; keep the weights if they are the best so far."""
        progress, data = self.progress, self.data
        predictions = self._predict(data.validation, "validation")
        decoding = choose_decoding(predictions, data.labeller, data.collection)
        found = scores(predictions, data.labeller, data.collection, decoding)
        steps = progress.losses[-self.epoch_steps :]
        record = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "train_loss": float(np.nanmean(steps)),
            "validation_loss": self._mean_loss(predictions),
            "validation": found,
        }
        for warning in (
            guards.epoch_warnings(steps, progress.losses[:10], progress.single_class)
            + guards.one_answer(answers(predictions.probabilities), predictions.labels, data.classes)
        ):
            self.warn(f"epoch {record['epoch']}: {warning}")
        frames, events = found["frames"], found["events"]
        self.say(
            f"epoch {record['epoch']}: loss {record['train_loss']:.3f}, validation loss {record['validation_loss']:.3f}, "
            f"frame F1 {frames['f1']:.3f}, average precision {frames['average_precision']:.3f}, "
            f"event F1 {events['f1']:.3f}"
        )
        self._log(
            {f"validation/{group}/{name}": value for group, values in found.items() for name, value in values.items()}
            | {"validation/loss": record["validation_loss"]}
        )
        group, name = self.best_by.split(".")
        score = float(np.nan_to_num(found[group][name]))
        if score > progress.best:
            progress.best, progress.best_epoch = score, record["epoch"]
            progress.decoding = dataclasses.asdict(decoding)
            self.model.detection = Detection(tuple(data.classes), decoding)
            on_zero(self.fabric, self._save_weights)
        progress.epochs.append(record)
        progress.epoch, progress.epoch_step, progress.single_class = progress.epoch + 1, 0, 0
        on_zero(self.fabric, write_csv, self.out, progress.losses, progress.rates, progress.epochs)
        return score

    def _predict(self, windows: ExhaustiveWindows, title: str, save: bool = True) -> Predictions:
        config = self.config
        check = partial(self._stop_if_asked, save)
        return predict(self.fabric, self.model, windows, config.workers, check, title, self._leave_out)

    def _mean_loss(self, predictions: Predictions) -> float:
        labels = predictions.labels
        weights = None if self.class_weights is None else self.class_weights.cpu()
        losses = self.loss(predictions.probabilities.clamp(min=1e-12).log(), labels, weights)
        return float(losses.sum() / frame_weights(labels, weights).sum())

    def _stop_if_asked(self, save: bool = True) -> None:
        code = self.stop.code
        if self.fabric.world_size > 1:
            if self.asked is None:
                came = torch.tensor([float(code == 0), float(code == 130)])
                self.asked = self.fabric.all_reduce(came, reduce_op="sum").tolist()
            terminated, interrupted = self.asked
            code = 130 if interrupted else 0 if terminated else None
            self.asked = None
        if code is not None:
            if save:
                self._save()
            raise Stopped(f"stopped at step {self.progress.step} of {self.steps}; --resume {self.out} goes on", code)

    def _save(self) -> None:
        on_zero(self.fabric, checkpoints.save, self.out, self.state, self.progress.step, self.config.keep)

    def _save_weights(self) -> None:
        checkpoint.save(self.model, self.out / WEIGHTS)

    def result(self) -> Result:
        """Evaluate the best weights on the test split and write scores.json."""
        weights = self.out / WEIGHTS
        self.model.load_state_dict(best_model(weights, self.model).state_dict())
        data, progress = self.data, self.progress
        decoding = Decoding(**progress.decoding)
        self.model.detection = Detection(tuple(data.classes), decoding)
        # The checkpoint is written and the model now holds the best weights, not the last: stop without saving.
        predictions = self._predict(data.test, "test", save=False)
        test = scores(predictions, data.labeller, data.collection, decoding)
        validation = progress.epochs[progress.best_epoch - 1]["validation"]
        record = {
            "best_epoch": progress.best_epoch,
            "best_by": self.best_by,
            "data": data.sides(),
            "decoding": progress.decoding,
            "validation": validation,
            "test": test,
            "skipped_steps": progress.skipped,
            "warnings": progress.warnings,
        }
        on_zero(self.fabric, write_json, self.out / "scores.json", record)
        return Result(self.out, weights, self.model.eval(), data, progress, test, predictions, self.best_by)

    def _check_splits(self) -> None:
        """Name classes without a frame in a split."""
        data = self.data
        for name in ("train", "validation", "test"):
            calls = data.labeller.spans
            calls = calls.select(np.isin(calls.recording, getattr(data, name).recordings))
            present = np.isin(np.arange(1, len(data.classes)), calls.label)
            for warning in guards.split_warnings(name, present, data.classes[1:]):
                self.warn(warning)

    def _profiler(self):
        """A profiler of steps 3 to 5 of this process, or nothing."""
        if not self.config.profile:
            return contextlib.nullcontext()
        return torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(self.out / "trace.json")),
            record_shapes=True,
        )

    def _log(self, values: dict[str, float]) -> None:
        for logger in self.loggers:
            try:
                logger.log_metrics(values, self.progress.step)
            except OSError as error:
                where = f"{self.out}: the log of step {self.progress.step}"
                raise TrainingError(f"{where} cannot be written ({reason(error)})") from None

    # talk

    def say(self, line: str) -> None:
        if self.fabric.is_global_zero:
            tqdm.write("\n".join(map(printable, line.split("\n"))))

    def warn(self, line: str) -> None:
        """Say it once in a run and keep it for the report."""
        if line not in self.progress.warnings:
            self.progress.warnings.append(line)
            self.say(printable(f"warning: {line}", MAX_MESSAGE))
