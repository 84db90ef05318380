"""The parts of `denet gpu-report`: each a function of a `Setting` that returns what JSON can hold."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
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
LIMITS = {"float64": 1e-9, "float32": 1e-3, "steps": 1e-3}  # see `difference`


@dataclass(frozen=True)
class Setting:
    """Where and how large: `dry` on the CPU, tiny. `deadline`: monotonic time (s) after which no timing begins."""

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


def accuracy(setting: Setting) -> dict:
    """(a) Relative differences of logits and gradients to float64 on the CPU, for both places of the attention."""
    found: dict[str, float] = {}
    for before_pooling in (True, False):
        model = setting.model(before_pooling, dropout=0.0)
        x = setting.batch(4, model)
        with using("plain"):
            truth = outcome(model.double(), x.double())
        for name, dtype, exact, half in (
            ("float64", torch.float64, True, None),
            ("float32", torch.float32, True, None),
            ("TF32", torch.float32, False, None),
            ("bfloat16", torch.float32, False, torch.bfloat16),
            ("float16", torch.float32, False, torch.float16),
        ):
            model = model.to(setting.device, dtype)
            with tf32(not exact), torch.autocast(setting.device, half, enabled=half is not None):
                error = difference(outcome(model, x.to(setting.device, dtype)), truth)
            found[name] = max(found.get(name, 0.0), error)
    good = all(found[name] <= LIMITS[name] for name in ("float64", "float32"))
    return {"relative difference": found, "limits": LIMITS, "within": good}


def five_steps(setting: Setting) -> dict:
    """(b) Five steps of SGD in float32 from the same weights, with the same dropout masks, beside the CPU's."""
    draw, ends, losses = layers.dropout_mask, [], []
    for device in ("cpu", setting.device):
        model = setting.model(dropout=0.2).train().to(device)
        optimizer, mine = torch.optim.SGD(model.parameters(), 0.01), []
        torch.manual_seed(2)
        with tf32(False), mock.patch.object(layers, "dropout_mask", lambda *a, like: draw(*a, like=like.cpu()).to(like)):
            for _ in range(5):
                optimizer.zero_grad()
                loss = model(setting.batch(4, model).to(device)).square().mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                mine.append(loss.item())
        ends.append([value.double().cpu() for value in model.state_dict().values()])
        losses.append(mine)
    error = difference(ends[1], ends[0])
    return {"losses": losses, "relative difference of weights": error, "within": error <= LIMITS["steps"]}


def training_runs(setting: Setting) -> dict:
    """(c) `training.run --amp` on the generated set with each type; the first is killed once and resumed."""
    found = {}
    for number, dtype in enumerate(("float16",) if setting.dry else ("float16", "bfloat16", "float32")):
        out = setting.out / f"run-{dtype}"
        words = [sys.executable, "-m", f"{__package__.rpartition('.')[0]}.training.run".lstrip("."), "--out", str(out)]
        words += ["--checkpoint-steps", "5", "--data-dir", str(data(setting)), "--no-report"]
        words += ["--amp", "--amp-dtype", dtype] if dtype != "float32" else []
        words += TINY if setting.dry else ["--accelerator", "gpu", "--workers", "4"]
        start, killed = time.monotonic(), False
        if number == 0:
            killed = kill_after_a_checkpoint(words, out)
        done = subprocess.run([*words, "--resume"], capture_output=True, text=True, timeout=240)
        if done.returncode:
            raise RuntimeError(f"{dtype}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        scores = json.loads((out / "scores.json").read_text())
        found[dtype] = {
            "frame F1": scores["test"]["frames"]["f1"],
            "event F1": scores["test"]["events"]["f1"],
            "skipped steps": scores["skipped_steps"],
            "seconds": time.monotonic() - start,
            "killed and resumed": killed,
        }
    return found


TINY = "--accelerator cpu --threads 1 --sample-rate 4000 --seq-len 4 --n-filters 4 --gru-units 8 --dense-units 8 8".split()
TINY += "--epochs 1 --epoch-windows 32 --batch-size 4".split()


def data(setting: Setting) -> Path:
    from training.synthetic import make_dataset

    folder = setting.out / "recordings"
    if not folder.exists():
        make_dataset(folder, 8 if setting.dry else 400, **({"max_seconds": 1} if setting.dry else {}))
    return folder


def kill_after_a_checkpoint(words: list[str], out: Path) -> bool:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until and not list(out.glob("step-*.ckpt")):
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def contenders(setting: Setting) -> dict[str, Callable]:
    """For each: makes of a model a function that does the forward pass, and the backends and types it runs with."""
    half = torch.float16 if setting.device == "cuda" else torch.bfloat16
    triton = ("triton_gpu", "torch_ops") if setting.device == "cuda" else ("torch_ops",)
    found = {
        "eager float32": (lambda model: model, ("torch_ops",), None),
        "eager": (lambda model: model, ("torch_ops",), half),
        "triton": (lambda model: model, triton, half),
    }
    if setting.device == "cuda":
        found["compiled"] = (torch.compile, ("plain",), half)
        found["graphs"] = (lambda model: torch.compile(model, mode="reduce-overhead"), ("plain",), half)
    return found


def timings(setting: Setting) -> dict:
    """(d) Training steps (forward, backward, Adam): s, samples a second, memory, share of the data sheet's bound, busy share."""
    rows = []
    for name, (prepare, backends, half) in contenders(setting).items():
        for batch in (2,) if setting.dry else BATCHES:
            if time.monotonic() > setting.deadline:
                rows.append({"contender": name, "batch": batch, "error": "no time was left"})
                continue
            try:
                with using(*(b for b in backends if b == "plain" or b in BACKENDS)):
                    rows.append({"contender": name, "batch": batch} | time_step(setting, prepare, half, batch))
            except Exception as error:
                told = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                rows.append({"contender": name, "batch": batch, "error": told})
    return {"rows": rows, "torch.nn.GRU": cudnn_gru(setting), "TensorFlow": tensorflow(setting)}


def time_step(setting: Setting, prepare: Callable, half: torch.dtype | None, batch: int) -> dict:
    model = setting.model().train().to(setting.device)
    module, x = prepare(model), setting.batch(batch, model).to(setting.device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(setting.device, half, enabled=half is not None):
            logits = module(x)
        logits.float().square().mean().backward()
        optimizer.step()

    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(1 if setting.dry else 3):
        step()
    times = []
    for _ in range(2 if setting.dry else 10):
        setting.wait()
        start = time.perf_counter()
        step()
        setting.wait()
        times.append(time.perf_counter() - start)
    row = {"seconds": median(times), "samples a second": batch * model.seq_len * model.samples / median(times)}
    if setting.device == "cuda":
        row["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
        row["busy share"] = busy_share(step)
        if card := sheet(setting.card):
            row["share of the roofline"] = seconds(step_operations(batch)[0], card, half is not None, 0.0) / median(times)
    return row


def busy_share(step: Callable) -> float:
    """Share of three steps in which the card computed."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profiler:
        start = time.perf_counter()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        passed = time.perf_counter() - start
    return sum(event.self_device_time_total for event in profiler.key_averages()) * 1e-6 / passed


def sheet(name: str):
    """The data sheet of a card by the name that its driver gives."""
    return next((card for card in CARDS if card.name.split()[0] in name), None)


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


def detection(setting: Setting) -> dict:
    """(e) An hour of noise with tones, every frame in two sequences: s, and how many times faster than real time."""
    length = 5 if setting.dry else 3600  # s
    model, path = setting.model().eval().to(setting.device), setting.out / "hour.wav"
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", model.sr, 1, "PCM_16") as file:
        for _ in range(length):
            file.write(0.05 * rng.standard_normal(model.sr))
    start = time.perf_counter()
    events = denet_torch.detect(model, path)
    passed = time.perf_counter() - start
    path.unlink()
    return {"seconds of audio": length, "seconds": passed, "times real time": length / passed, "events": len(events)}


RUNS = {"a": accuracy, "b": five_steps, "c": training_runs, "d": timings, "e": detection}


def run(parts: list[str], out: Path, dry: bool, minutes: float) -> dict:
    """Run the parts, write report.json and report.md into `out`. Raises ValueError without a GPU, unless it is a dry run."""
    if not dry and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no GPU on this machine; --dry tries it on the CPU, --estimate needs none")
    out.mkdir(parents=True, exist_ok=True)
    setting = Setting("cpu" if dry else "cuda", dry, out, time.monotonic() + 60 * minutes)
    report = {"card": setting.card, "torch": torch.__version__, "command": " ".join(sys.argv), "parts": {}}
    for part in sorted(parts, key="abecd".index):  # what takes all the time that is left comes last
        start = time.monotonic()
        try:
            found = RUNS[part](setting)
        except Exception as error:  # the others are wanted all the same
            found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        report["parts"][part] = {"what": RUNS[part].__doc__.split("\n")[0], "took": time.monotonic() - start} | found
        (out / "report.json").write_text(json.dumps(report, indent=1))
        (out / "report.md").write_text(page(report))
    return report


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
