"""The parts of `denet gpu-report`: each a function of a `Setting` that yields what it finds, bit by bit, as JSON can hold it.

Each part is a process with a share of the time. One that takes longer is ended and what it had yielded is kept; one that breaks
the card for its process (a kernel that faults, say) leaves the others a sound one.
"""

import contextlib
import copy
import gc
import io
import json
import multiprocessing
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import soundfile
import torch
from torch import Tensor

import denet_torch
from denet_torch import get_denet, layers
from denet_torch.dispatch import BACKENDS, using

from .gpu_estimate import BATCHES, CARDS, seconds, step_operations

SMALL = {"n_filters": 4, "gru_units": 128, "dense_units": (8, 8)}
LIMITS = {"float64": 1e-9, "float32": 1e-3, "float64 steps": 1e-6, "float32 step": 2e-3}  # see `difference`
RESAMPLED = 2e-6  # two waveforms differ by no more than this; each is off by up to 1e-6 (tests/test_resampling.py)


@dataclass(frozen=True)
class Setting:
    """Where and how large: `dry` on the CPU, tiny. `deadline`: monotonic time (s) after which nothing new is begun."""

    device: str
    dry: bool
    out: Path
    deadline: float

    @property
    def card(self) -> str:
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU, dry run"

    def model(self, before_pooling: bool = True, **options) -> denet_torch.DENet:
        torch.manual_seed(0)
        shape = (4, 200) if self.dry else (10, 800)
        return get_denet(shape, 2, before_pooling=before_pooling, **(SMALL if self.dry else {}) | options)

    def batch(self, number: int, model: denet_torch.DENet) -> Tensor:
        return 0.1 * torch.randn(number, model.seq_len, model.samples, generator=torch.Generator().manual_seed(1))

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@contextlib.contextmanager
def tf32(allowed: bool):
    """TF32 for products and convolutions, or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def outcome(model: denet_torch.DENet, x: Tensor) -> list[Tensor]:
    """Logits and gradients, on the host in float64."""
    model.zero_grad()
    logits = model(x)
    logits.float().square().mean().backward() if logits.dtype != torch.float64 else logits.square().mean().backward()
    return [logits.detach().double().cpu(), *(p.grad.double().cpu() for p in model.parameters() if p.grad is not None)]


def difference(found: list[Tensor], truth: list[Tensor]) -> float:
    """The larger of the differences of the first tensors and of all others as one vector, relative to their lengths."""
    pairs = [(found[0], truth[0])]
    pairs.append(tuple(torch.cat([tensor.flatten() for tensor in side[1:]]) for side in (found, truth)))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


MODES = {  # type of weights and input, whether TF32 is off, type of products under autocast
    "float64": (torch.float64, True, None),
    "float32": (torch.float32, True, None),
    "TF32": (torch.float32, False, None),
    "bfloat16": (torch.float32, False, torch.bfloat16),
    "float16": (torch.float32, False, torch.float16),
}
EXACT = ("float64", "float32")  # what has to be within a limit; of the others the cost is told


@contextlib.contextmanager
def mode(setting: Setting, name: str):
    _, exact, half = MODES[name]
    with tf32(not exact), torch.autocast(setting.device, half, enabled=half is not None):
        yield


def accuracy(setting: Setting) -> Iterator[dict]:
    """(a) Accuracy with each type: the original's recordings, drawn models, and the full model beside float64 on the CPU."""
    yield {"who computes": who_computes(setting)}
    yield {"recordings of the original": recordings(setting)}
    yield {"drawn models, relative difference": drawn_models(setting)}
    found: dict[str, float] = {}
    for before_pooling in (True, False):
        model = setting.model(before_pooling, dropout=0.0)
        x = setting.batch(4, model)
        with using("plain"):
            truth = outcome(model.double(), x.double())
        for name, (dtype, _, _) in MODES.items():
            model = model.to(setting.device, dtype)
            with mode(setting, name):
                error = difference(outcome(model, x.to(setting.device, dtype)), truth)
            found[name] = max(found.get(name, 0.0), error)
    yield {"relative difference": found, "limits": LIMITS, "within": all(found[name] <= LIMITS[name] for name in EXACT)}


def who_computes(setting: Setting) -> list[str]:
    """The backend of each operation, and why those before it do not take it: the other parts have it so too."""
    model = setting.model().to(setting.device)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        denet_torch.explain(model, setting.batch(4, model).to(setting.device))
    return told.getvalue().splitlines()


def recordings(setting: Setting) -> dict | str:
    """The largest error of each type over all recordings, and which arrays are off by more than the parity suite allows.

    Errors are relative to an array's largest magnitude; those of the whole model's probabilities are absolute. Only float64 and
    float32 are judged; in float64 an array may be as far off as on the CPU, by the original's own rounding.
    """
    sys.path.insert(0, "")  # a console command does not look into the folder that it is started in
    try:
        from parity_tests import recordings as recorded
    except ImportError as error:
        return f"not run: no parity_tests in this folder ({error}); start the command in a checkout"
    largest, over = {}, []
    for name in MODES:
        exact = name in EXACT
        models = recorded.MODELS if exact and not setting.dry else ()
        dtype = "float64" if name == "float64" else "float32"
        errors = {}
        for recording in (*recorded.LAYERS, *models):
            with mode(setting, name), using("plain"):
                errors[recording] = recorded.port_errors(recording, dtype, setting.device)
        largest[name] = max(max(found.values()) for found in errors.values())
        for recording, found in errors.items() if exact else ():
            for of in [of for of, error in found.items() if not error <= recorded.bar(of)]:
                if dtype == "float64" and found[of] <= 1.01 * recorded.port_errors(recording, dtype)[of]:
                    continue
                over.append(f"{name}, {recording}, {of}: {found[of]:.1e}")
    return {"largest error": largest, "over the parity suite's bars": over, "within": not over}


def drawn_models(setting: Setting) -> dict:
    """Largest differences of drawn small models to float64 on the CPU; in float32 of the logits alone: gradients have kinks."""
    draw, found = random.Random(0), {"float64": 0.0, "float32, logits": 0.0}
    for _ in range(3 if setting.dry else 30):
        before_pooling = draw.random() < 0.5
        samples = draw.randint(79, 110) if before_pooling else draw.randint(237, 300)
        options = {
            "dropout": 0.0,
            "sr": draw.choice([8000, 16000, 44100, 192000, 250000]),
            "n_filters": draw.randint(2, 6),
            "gru_units": draw.randint(4, 16),
            "dense_units": (draw.randint(4, 16), draw.randint(4, 16)),
        }
        torch.manual_seed(draw.randrange(2**31))
        model = get_denet((draw.randint(1, 4), samples), draw.randint(1, 5), before_pooling=before_pooling, **options)
        x = torch.randn(3, 3, samples)
        with using("plain"):
            truth = outcome(model.double(), x.double())
        for name in EXACT:
            dtype = MODES[name][0]
            with mode(setting, name):
                mine = outcome(model.to(setting.device, dtype), x.to(setting.device, dtype))
            key = "float64" if name == "float64" else "float32, logits"
            error = difference(mine, truth) if name == "float64" else float((mine[0] - truth[0]).norm() / truth[0].norm())
            found[key] = max(found[key], error)
    return found | {"within": found["float64"] <= LIMITS["float64"] and found["float32, logits"] <= LIMITS["float32"]}


def five_steps(setting: Setting) -> Iterator[dict]:
    """(b) Five steps of SGD from the same weights, with the same dropout masks, beside the CPU's in float64.

    In float32 the first step alone is judged: what it rounds moves the filters, and with each step all else goes further apart.
    """
    model = setting.model(dropout=0.2).train()
    with using("plain"):
        losses, truth = steps_of(setting, model, "cpu", torch.float64)
    found, told = {}, {"CPU": losses}
    for name in EXACT:
        told[name], states = steps_of(setting, model, setting.device, MODES[name][0])
        found |= {f"{name}, step {step + 1}": difference(states[step], truth[step]) for step in (0, 4)}
    within = found["float64, step 5"] <= LIMITS["float64 steps"] and found["float32, step 1"] <= LIMITS["float32 step"]
    yield {"losses": told, "relative difference": found, "within": within}


def steps_of(setting: Setting, model: denet_torch.DENet, device: str, dtype: torch.dtype) -> tuple[list[float], list[list]]:
    """Losses of five steps, and after each of them the running statistics as one vector and how far each weight has gone.

    The weights themselves would show little: five steps are a thousandth of their length.
    """
    draw, begun = layers.dropout_mask, [p.detach().double() for p in model.parameters()]
    model = copy.deepcopy(model).to(device, dtype)
    optimizer, losses, states = torch.optim.SGD(model.parameters(), 0.01), [], []
    torch.manual_seed(2)
    with tf32(False), mock.patch.object(layers, "dropout_mask", lambda *a, like: draw(*a, like=like.cpu()).to(like)):
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(setting.batch(4, model).to(device, dtype)).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            averages = [value.double().cpu() for name, value in model.named_buffers() if "moving_" in name]
            gone = [p.detach().double().cpu() - start for p, start in zip(model.parameters(), begun, strict=True)]
            states.append([torch.cat(averages), *gone])
    return losses, states


def training_runs(setting: Setting) -> Iterator[dict]:
    """(c) `training.run --amp` on the generated set with each type; the first is killed once and resumed."""
    types = ("float16",) if setting.dry else ("float16", "bfloat16", "float32")
    words = [sys.executable, "-m", f"{__package__.rpartition('.')[0]}.training.run".lstrip("."), "--checkpoint-steps", "5"]
    words += ["--data-dir", str(data(setting))]
    words += TINY if setting.dry else ["--accelerator", "gpu", "--workers", "4"]
    for number, dtype in enumerate(types):
        start = time.monotonic()
        ends = start + (setting.deadline - start) / (len(types) - number)
        yield {dtype: one_run(words, setting.out / f"run-{dtype}", dtype, ends, kill=number == 0)}


def one_run(words: list[str], out: Path, dtype: str, ends: float, kill: bool) -> dict:
    """A run to its end or until it is stopped at `ends`, monotonic time: scores, or what went wrong."""
    words = [*words, "--out", str(out), *(["--amp", "--amp-dtype", dtype] if dtype != "float32" else [])]
    start = time.monotonic()
    killed = kill and kill_after_a_checkpoint(words, out, ends)
    try:
        left = max(1.0, ends - time.monotonic())
        done = subprocess.run([*words, "--resume"], capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {time.monotonic() - start:.0f} s, its share of the time", "killed and resumed": killed}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1], "killed and resumed": killed}
    scores = json.loads((out / "scores.json").read_text())
    return {
        "frame F1": scores["test"]["frames"]["f1"],
        "event F1": scores["test"]["events"]["f1"],
        "skipped steps": scores["skipped_steps"],
        "seconds": time.monotonic() - start,
        "killed and resumed": killed,
    }


TINY = "--accelerator cpu --threads 1 --sample-rate 4000 --seq-len 4 --n-filters 4 --gru-units 8 --dense-units 8 8".split()
TINY += "--epochs 1 --epoch-windows 32 --batch-size 4".split()


def data(setting: Setting) -> Path:
    from training.synthetic import make_dataset

    folder = setting.out / "recordings"
    if not folder.exists():
        make_dataset(folder, 8 if setting.dry else 400, **({"max_seconds": 1} if setting.dry else {}))
    return folder


def kill_after_a_checkpoint(words: list[str], out: Path, ends: float) -> bool:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and time.monotonic() < ends and not list(out.glob("step-*.ckpt")):
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def contenders(setting: Setting) -> dict[str, Callable]:
    """For each: makes of a model a function that does the forward pass, and the backends and types it runs with."""
    half = torch.float16 if setting.device == "cuda" else torch.bfloat16
    triton = with_triton if setting.device == "cuda" else lambda model: model
    found = {
        "eager float32": (lambda model: model, ("torch_ops",), None),
        "eager": (lambda model: model, ("torch_ops",), half),
        "triton": (triton, ("triton_gpu", "torch_ops"), half),
    }
    if setting.dry:  # traced as for a card; to compile takes a minute
        found["compiled"] = (lambda model: torch.compile(model, backend="aot_eager"), ("plain",), half)
    else:
        found["compiled"] = (torch.compile, ("plain",), half)
        found["graphs"] = (lambda model: torch.compile(model, mode="reduce-overhead"), ("plain",), half)
    return found


COMPILED = ("compiled", "graphs")


def with_triton(model: denet_torch.DENet) -> denet_torch.DENet:
    """The model. Raises ValueError if Triton's kernels do not take its GRU: others would, under their name."""
    kernel = model.gru.forward_gru.recurrent_kernel
    if why := BACKENDS["triton_gpu"]["gru_steps"][0](kernel[None], kernel):
        raise ValueError(why)
    return model


def in_order(names: Iterable[str], batches: tuple[int, ...]) -> list[tuple[str, int]]:
    """Contenders and batches: what is compiled, which may take all of the time, last, and all of that for a batch together."""
    cases = [(name, batch) for name in names for batch in batches]
    return sorted(cases, key=lambda case: 1 + batches.index(case[1]) if case[0] in COMPILED else 0)


def timings(setting: Setting) -> Iterator[dict]:
    """(d) Training steps (forward, backward, Adam): s, samples a second, memory, share of the data sheet's bound, busy share."""
    yield {"torch.nn.GRU": tried(cudnn_gru, setting)}
    rows, found = [], contenders(setting)
    for name, batch in in_order(found, (2,) if setting.dry else BATCHES):
        rows.append({"contender": name, "batch": batch} | tried(timed, setting, *found[name], batch))
        yield {"rows": rows}
    yield {"TensorFlow": tried(tensorflow, setting)}  # last: it takes all of a card's memory


def tried(work: Callable, *arguments):
    """What `work` gives, or why it gave nothing."""
    try:
        return work(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def timed(setting: Setting, prepare: Callable, backends: tuple[str, ...], half: torch.dtype | None, batch: int) -> dict:
    """What `time_step` finds; it is not begun after the deadline."""
    if time.monotonic() > setting.deadline:
        return {"error": "skipped: no time was left"}
    forget(setting)
    with using(*(b for b in backends if b == "plain" or b in BACKENDS)):
        return time_step(setting, prepare, half, batch)


def forget(setting: Setting) -> None:
    """Let go of what was compiled for other batches, which would make sizes variable, and of memory, which would be counted."""
    torch.compiler.reset()
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def training_step(setting: Setting, prepare: Callable, half: torch.dtype | None) -> tuple[denet_torch.DENet, Callable]:
    """A model, and what does a step on a batch of waveforms."""
    model = setting.model().train().to(setting.device)
    module, optimizer = prepare(model), torch.optim.Adam(model.parameters(), 1e-5, fused=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(setting.device, half, enabled=half is not None):
            logits = module(x)
        logits.float().square().mean().backward()
        optimizer.step()

    return model, step


def time_step(setting: Setting, prepare: Callable, half: torch.dtype | None, batch: int) -> dict:
    model, step = training_step(setting, prepare, half)
    x = setting.batch(batch, model).to(setting.device)
    for _ in range(1 if setting.dry else 3):
        step(x)
    times = []
    for _ in range(2 if setting.dry else 10):
        setting.wait()
        start = time.perf_counter()
        step(x)
        setting.wait()
        times.append(time.perf_counter() - start)
    row = {"seconds": median(times), "samples a second": batch * model.seq_len * model.samples / median(times)}
    if setting.device == "cuda":
        row["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
        if busy := busy_seconds(partial(step, x)):
            row["busy share"] = busy / median(times)
        if card := sheet(setting.card):
            row["share of the roofline"] = seconds(step_operations(batch)[0], card, half is not None, 0.0) / median(times)
    return row


def busy_seconds(step: Callable) -> float:
    """Time of a step in which the card computed or copied; 0 where the profiler is not let near it."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    return 1e-6 * on_card(profiler.key_averages()) / 3


def on_card(events) -> float:
    """Microseconds of kernels and copies; the host's operations and annotations have the same ones once more."""
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
    return sum(event.self_device_time_total for event in kernels)


def sheet(name: str):
    """The data sheet of a card by the name that its driver gives."""
    return next((card for card in CARDS if card.driver in name), None)


def cudnn_gru(setting: Setting) -> dict:
    """Forward and backward pass of `torch.nn.GRU`, another recurrence, of the same size; s."""
    model = setting.model()
    features, units = model.gru.forward_gru.kernel.shape[0], model.gru.forward_gru.units
    gru = torch.nn.GRU(features, units, batch_first=True, bidirectional=True).to(setting.device)
    times = {}
    for batch in (2,) if setting.dry else BATCHES:
        x = torch.randn(batch, model.seq_len, features, device=setting.device)
        for _ in range(3):
            setting.wait()
            start = time.perf_counter()
            gru(x)[0].sum().backward()
            setting.wait()
            times[batch] = time.perf_counter() - start
    return times


def tensorflow(setting: Setting) -> str | dict:
    """A training step of the same network in TensorFlow at batch 128, if it is installed and sees the GPU; s."""
    if setting.dry:
        return "not in a dry run"
    try:
        import tensorflow as tf
    except ImportError:
        return "is not installed"
    if not tf.config.list_physical_devices("GPU"):
        return "sees no GPU"
    from .benchmark_contenders import tensorflow_graph

    model = setting.model(dropout=0.0)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    _, train = tensorflow_graph(model.config, weights, 0)
    x, times = setting.batch(128, model).numpy(), []
    for _ in range(4):
        start = time.perf_counter()
        train(x)
        times.append(time.perf_counter() - start)
    return {"seconds": median(times[1:]), "batch": 128}


def detection(setting: Setting) -> Iterator[dict]:
    """(e) An hour of noise with tones, every frame in two sequences: s, and how many times faster than real time."""
    length = 5 if setting.dry else 3600  # s
    model, path = setting.model().eval().to(setting.device), setting.out / "hour.wav"
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", model.sr, 1, "PCM_16") as file:
        for _ in range(length):
            file.write(0.05 * rng.standard_normal(model.sr))
    minute = 0.05 * rng.standard_normal(min(length, 60) * model.sr).astype(np.float32)
    start = time.perf_counter()
    denet_torch.detect(model, minute, model.sr)
    yield {"seconds of the first minute, with compiling": time.perf_counter() - start}
    start = time.perf_counter()
    events = denet_torch.detect(model, path)
    passed = time.perf_counter() - start
    path.unlink()
    yield {"seconds of audio": length, "seconds": passed, "times real time": length / passed, "events": len(events)}


def loading(setting: Setting) -> Iterator[dict]:
    """(f) Windows of 250 kHz recordings, resampled in the loader and on the device: copied a second, and trained on a second."""
    one, other = (next(waveforms(setting, where, 8, 0, 1)) for where in ("loader", "device"))
    error = float((one - other).abs().max())
    yield {"largest difference": error, "within": error <= RESAMPLED}
    _, step = training_step(setting, lambda model: model, torch.float16 if setting.device == "cuda" else None)
    rows = []
    workers, number = (1, 3) if setting.dry else (4, 64)
    for batch in (2,) if setting.dry else (8, 128):
        for where in ("loader", "device"):
            row = {"resampled on": where, "batch": batch, "workers": workers}
            for name, work in (("copied a second", lambda x: None), ("trained on a second", step)):
                row[name] = batch * pace(setting, waveforms(setting, where, batch, workers, number), work)
            rows.append(row)
            yield {"rows": rows}


def waveforms(setting: Setting, where: str, batch: int, workers: int, number: int) -> Iterator[Tensor]:
    """So many batches as the trainer has them on the device with `--resample-on`."""
    from training.config import Config
    from training.evaluation import collate
    from training.loop import get_fabric, open_data
    from training.resampling import Resampling
    from training.runs import Loader

    options = {"sample_rate": 4000, "seq_len": 4} if setting.dry else {"amp": True}  # which allows TF32
    options |= {"accelerator": "cpu" if setting.dry else "gpu", "resample_on": where, "epoch_windows": number * batch}
    config = Config(data_dir=data(setting), **options)
    fabric, windows = get_fabric(config), open_data(config).train
    resampling = Resampling(windows.seq_len, windows.samples)
    for one in Loader(windows, batch, num_workers=workers, collate_fn=collate, pin_memory=fabric.device.type == "cuda"):
        yield resampling(one["waveform"], fabric.to_device)


def pace(setting: Setting, batches: Iterator[Tensor], work: Callable[[Tensor], None]) -> float:
    """Batches a second, each waited for as in a run; not the first quarter, in which the loader's processes start."""
    ends = []
    for x in batches:
        work(x)
        setting.wait()
        ends.append(time.perf_counter())
    first = len(ends) // 4
    return (len(ends) - 1 - first) / (ends[-1] - ends[first])


# What takes all that is left: last.
RUNS = {"a": accuracy, "b": five_steps, "e": detection, "c": training_runs, "f": loading, "d": timings}
SHARES = {"a": 1.0, "b": 0.5, "e": 1.0, "c": 3.0, "f": 1.0, "d": 3.0}  # of the time; what a part leaves is the others'


def run(parts: list[str], out: Path, dry: bool, minutes: float) -> dict:
    """Run the parts, write report.json and report.md into `out`. Raises ValueError without a GPU, unless it is a dry run."""
    if not dry and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU on this machine; --dry tries it on the CPU, --estimate needs none")
    out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * minutes
    device = "cpu" if dry else "cuda"
    card = Setting(device, dry, out, ends).card
    report = {"card": card, "torch": torch.__version__, "command": " ".join(sys.argv), "parts": {}}
    left = [part for part in RUNS if part in parts]
    while left:
        start = time.monotonic()
        share = (ends - start) * SHARES[left[0]] / sum(SHARES[part] for part in left)
        part = left.pop(0)
        # A tenth is kept for what is under way at the deadline.
        found = in_a_process(RUNS[part], Setting(device, dry, out, start + 0.9 * share), share)
        report["parts"][part] = {"what": RUNS[part].__doc__.split("\n")[0], "took": time.monotonic() - start} | found
        (out / "report.json").write_text(json.dumps(report, indent=1))
        (out / "report.md").write_text(page(report))
    return report


def in_a_process(work: Callable, setting: Setting, seconds: float) -> dict:
    """What `work` yields within so many seconds in a process of its own, and an `error` if that was not all."""
    context = multiprocessing.get_context("spawn")  # CUDA does not outlive a fork
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(work, setting, sender))  # no daemon, which could start no loader's processes
    ends, found = time.monotonic() + seconds, {}
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, ends - time.monotonic())):
            found |= receiver.recv()
        found["error"] = f"stopped after {seconds:.0f} s, its share of the time"
    except EOFError:
        process.join(max(1.0, ends - time.monotonic()))
        if process.exitcode:
            found["error"] = f"its process ended by itself, exit code {process.exitcode}"
    except KeyboardInterrupt:  # which the process was sent as well, and ends what it has started
        process.join(5)
        raise
    finally:
        process.kill()
    return found


def _send(work: Callable, setting: Setting, sender) -> None:
    try:
        for found in work(setting):
            sender.send(found)
    except KeyboardInterrupt:
        pass  # its parent tells of it
    except Exception as error:  # the other parts are wanted all the same
        sender.send({"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})


def page(report: dict) -> str:
    """The report to read."""
    lines = [f"# {report['card']}", "", f"`{report['command']}`, torch {report['torch']}"]
    for part in report["parts"].values():
        lines += ["", f"## {part['what']}", ""]
        facts = {key: value for key, value in part.items() if key not in ("what", "traceback", "rows")}
        lines += [f"- {key}: {shown(value)}" for key, value in facts.items()]
        if rows := part.get("rows"):
            heads = list(dict.fromkeys(key for row in rows for key in row))
            lines += ["", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
            lines += [f"| {' | '.join(shown(row.get(head, '')) for head in heads)} |" for row in rows]
    return "\n".join(lines) + "\n"


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return re.sub(r"\d+\.\d{5,}(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", str(value))


def measured(report: dict) -> dict[tuple[str, int, str], float]:
    """Seconds of a step by (card of the estimates, batch, contender); nothing of a card that has no estimates."""
    card = sheet(report["card"])
    rows = report["parts"].get("d", {}).get("rows", []) if card else []
    return {(card.name, row["batch"], row["contender"]): row["seconds"] for row in rows if "seconds" in row}
