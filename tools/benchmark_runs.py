"""Interleaved timing of the contenders, each in its own process, and the report of it."""

import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

from denet_torch import get_denet
from denet_torch.architecture import attention_layers, conv_steps

from .benchmark_contenders import CONTENDERS, Weights

TURN = 0.2  # s, in which a contender runs as in a loop before the run that counts begins
AGREEMENT = {"port, bfloat16": 2e-2}  # largest difference of probabilities; 1e-4 for all others


@dataclass(frozen=True)
class Case:
    """What is timed: `mode` predict or train, on (batch, seq_len, samples), attention before or after pooling."""

    mode: str
    batch: int
    seq_len: int
    samples: int
    attention: str

    def __str__(self):
        return f"{self.mode} {self.batch} x {self.seq_len} x {self.samples}, attention {self.attention} pooling"


def forward_operations(case: Case) -> dict[str, int]:
    """Floating-point operations of the products in one forward pass, by part of the network."""
    frames = case.batch * case.seq_len
    pooled = case.samples // 3
    steps = case.samples if case.attention == "before" else pooled
    first, second, third = attention_layers(steps)
    dense = 10 * third * 128 + 128 * 64 + 64
    recurrent = 2048 * (case.seq_len - 1) // case.seq_len  # the state before the first step is 0
    products = {
        "sinc": case.samples * 251 * 80,
        "attention": 80 * (first * 7 * 30 + second * 7 * 900 + third * 7 * 300 + dense) + 80 * steps,
        "convolutions": (pooled - 4) * 5 * 60 + ((pooled - 4) // 3 - 4) * 5 * 3600,
        "GRU": 2 * 3 * 2048 * (60 * conv_steps(case.samples) + recurrent),
        "dense": 2048 * 1024 + 1024 * 512 + 512 * 2,
    }
    return {part: 2 * frames * count for part, count in products.items()}


def operations(case: Case) -> int:
    """Operations that the case cannot do without.

    A training step needs the forward pass and twice as much again (gradients of inputs and of weights), less the gradient
    of the waveform, which nobody asks for.
    """
    parts = forward_operations(case)
    forward = sum(parts.values())
    return forward if case.mode == "predict" else 3 * forward - parts["sinc"]


def serve(connection, name: str, config: dict, weights: Weights, case: Case, threads: int) -> None:
    """A contender's process: builds, answers with its probabilities, then times the last run of a turn per request."""
    try:
        predict, train = CONTENDERS[name](config, weights, threads)
        connection.send(None)
        x = connection.recv()
        connection.send(predict(x[: min(len(x), 2)]))
        function = predict if case.mode == "predict" else train
        while connection.recv():
            turn = time.perf_counter()
            function(x)  # memory that the system took back while the others ran is paid for here
            start = 0.0
            while start < turn + TURN:
                start = time.perf_counter()
                function(x)
            connection.send((time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
    except Exception as error:  # the parent names the contender and goes on without it
        connection.send(error)


@contextmanager
def modules_of(checkout: Path | None):
    """Processes spawned within it take `denet_torch`, and the functions that time it, from that checkout."""
    path = list(sys.path)
    sys.path[:0] = [] if checkout is None else [str(checkout.resolve())]
    try:
        yield
    finally:
        sys.path[:] = path


class Contender:
    """Handle of a contender's process. "port at DIR" is the port of another checkout of this repository."""

    def __init__(self, name: str, config: dict, weights: Weights, case: Case, threads: int):
        context = multiprocessing.get_context("spawn")
        self.name, self.case, self.times, self.memory = name, case, [], 0.0
        self.connection, theirs = context.Pipe()
        own, at, checkout = name.partition(" at ")
        self.process = context.Process(target=serve, args=(theirs, own, config, weights, case, threads), daemon=True)
        with modules_of(Path(checkout) if at else None):
            self.process.start()
        theirs.close()
        self.receive()

    def receive(self):
        try:
            answer = self.connection.recv()
        except EOFError:
            answer = MemoryError("its process ended")
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self.name}: {type(answer).__name__}: {str(answer).splitlines()[0] if str(answer) else ''}")
        return answer

    def ask(self, message):
        self.connection.send(message)
        return self.receive()

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def start(case: Case, names: list[str], threads: int, progress: tqdm) -> tuple[list[Contender], list[dict]]:
    """Contenders on the same weights and inputs, each with its answers compared; and a row for each that failed."""
    model = get_denet((case.seq_len, case.samples), 2, before_pooling=case.attention == "before", dropout=0.0)
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    config = model.config
    del model
    x = (0.1 * np.random.default_rng(0).standard_normal((case.batch, case.seq_len, case.samples))).astype(np.float32)
    running, failed = [], []
    for name in names:
        if case.mode == "train" and name == "onnxruntime":
            continue
        progress.set_postfix_str(f"{case}: {name}")
        try:
            contender = Contender(name, config, weights, case, threads)
            answer = contender.ask(x)
            if not running:
                expected = answer
            difference = float(np.abs(answer - expected).max())
            if not difference <= AGREEMENT.get(name, 1e-4):
                contender.close()
                raise RuntimeError(f"{name}: its probabilities differ by {difference:.1e}")
            running.append(contender)
        except RuntimeError as error:
            failed.append(row_of(case, name, error=str(error)))
    return running, failed


def time_cases(cases: list[Case], names: list[str], rounds: int, threads: int, progress: tqdm) -> list[dict]:
    """One row per case and contender, all interleaved: median, spread, peak memory; those that failed say why in `error`."""
    running, rows = [], []
    for case in cases:
        started, failed = start(case, names, threads, progress)
        running += started
        rows += failed
    for number in range(rounds + 1):
        for contender in list(running):
            progress.set_postfix_str(f"{contender.case}: {contender.name}")
            try:
                seconds, contender.memory = contender.ask(True)
            except RuntimeError as error:
                running.remove(contender)
                rows.append(row_of(contender.case, contender.name, error=str(error)))
                continue
            if number:  # the first is not counted: it traces, compiles and warms up
                contender.times.append(seconds)
        progress.update()
    for contender in running:
        contender.close()
        times, rate = contender.times, operations(contender.case) / median(contender.times) / 1e9
        figures = {"seconds": median(times), "fastest": min(times), "slowest": max(times), "peak_gib": contender.memory}
        rows.append(row_of(contender.case, contender.name, **figures, gflops=rate))
    return rows


def row_of(case: Case, contender: str, **figures) -> dict:
    return {"case": str(case), **asdict(case), "contender": contender, **figures}


def peak_gflops(threads: int) -> dict[str, float]:
    """Measured rates of a single-precision matrix product, PyTorch's own and oneDNN's, medians of 9."""
    import torch

    from denet_torch.layers import multiply as product  # oneDNN's, where the fast paths are

    torch.set_num_threads(threads)
    a, peaks = torch.randn(2048, 2048), {}
    for name, multiply in (("PyTorch", torch.mm), ("oneDNN", product)):
        times = []
        for _ in range(10):
            start = time.perf_counter()
            multiply(a, a)
            times.append(time.perf_counter() - start)
        peaks[name] = 2 * 2048**3 / median(times[1:]) / 1e9
    return peaks


def machine() -> str:
    """Name of the processor, cores, system and the versions in use."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    flags = Path("/proc/cpuinfo").read_text()
    extras = ", ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "tensorflow", "onnxruntime"))
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores ({extras}), {platform.system()}; {versions}"


def run(groups: list[list[Case]], names: list[str], rounds: int, threads: int, out: Path) -> dict:
    """Time all cases, those of a group interleaved; write report.md, .json and times.png into `out`; return the report."""
    out.mkdir(parents=True, exist_ok=True)
    peak, rows = peak_gflops(threads), []
    with tqdm(total=len(groups) * (rounds + 1), unit="round") as progress:
        for cases in groups:
            rows += time_cases(cases, names, rounds, threads, progress)
            report = {"machine": machine(), "threads": threads, "rounds": rounds, "peak_gflops": peak, "rows": rows}
            (out / "report.json").write_text(json.dumps(report, indent=1))
            (out / "report.md").write_text(markdown(report))
    plot(rows, out / "times.png")
    return report


BASE = {"batch": 4, "seq_len": 10, "samples": 400}  # what the cases of `scaling` multiply


def scaling_cases(mode: str, attention: str, factors: tuple[int, ...] = (1, 2, 4, 8, 16)) -> list[list[Case]]:
    """A group for each of batch, sequence and frame length, which grows by `factors` while the others stay."""
    return [[Case(mode, **BASE | {name: BASE[name] * f}, attention=attention) for f in factors] for name in BASE]


def scaling(attention: str, rounds: int, threads: int, out: Path) -> str:
    """How the cost of the port grows: times of `scaling_cases`, and scaling.png with the time per unit relative to the first."""
    groups = [group for mode in ("predict", "train") for group in scaling_cases(mode, attention)]
    report = run(groups, ["port"], rounds, threads, out)
    relative = relative_costs(groups, report["rows"])
    plot_scaling(relative, out / "scaling.png")
    lines = [f"{label}: " + ", ".join(f"{cost:.2f}" for cost in costs.values()) for label, costs in relative.items()]
    text = markdown(report) + "\nTime per unit relative to the smallest, at 1, 2, 4, 8 and 16 times:\n" + "\n".join(lines) + "\n"
    (out / "report.md").write_text(text)
    return text


def relative_costs(groups: list[list[Case]], rows: list[dict]) -> dict[str, dict[float, float]]:
    """For each group: by the factor on what grows in it, the time per unit relative to the group's first; nan where it failed."""
    seconds = {row["case"]: row.get("seconds", np.nan) for row in rows}
    relative = {}
    for group, name in zip(groups, 2 * list(BASE), strict=True):
        factors = [getattr(case, name) / BASE[name] for case in group]
        first = seconds[str(group[0])]
        costs = {factor: seconds[str(case)] / first / factor for factor, case in zip(factors, group, strict=True)}
        relative[f"{group[0].mode}, {name.replace('_', ' ')}"] = costs
    return relative


def plot_scaling(relative: dict[str, dict[float, float]], path: Path) -> None:
    """A line for each of `relative_costs`, and one at 1.1, a tenth more than linear."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, costs in relative.items():
        axes.plot(list(costs), list(costs.values()), "o-", label=label)
    axes.axhline(1.1, color="gray", linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="times " + ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in BASE.items()))
    axes.set(ylabel="time per unit, relative to the smallest", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def markdown(report: dict) -> str:
    peak = max(report["peak_gflops"].values())
    peaks = ", ".join(f"{rate:.0f} by {name}" for name, rate in report["peak_gflops"].items())
    lines = [
        f"{report['machine']}; {report['threads']} threads; medians of {report['rounds']} interleaved runs; "
        f"matrix product, GFLOP/s: {peaks}. Shares are of the higher.",
        "",
        "| case | contender | median s | fastest - slowest | peak GiB | GFLOP/s | share of peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if "error" in row:
            lines.append(f"| {row['case']} | {row['contender']} | {row['error']} | | | | |")
            continue
        lines.append(
            f"| {row['case']} | {row['contender']} | {row['seconds']:.3f} | {row['fastest']:.3f} - {row['slowest']:.3f} "
            f"| {row['peak_gib']:.2f} | {row['gflops']:.0f} | {row['gflops'] / peak:.0%} |"
        )
    parts = " | ".join(forward_operations(case_of(report["rows"][0])))
    lines += ["", "Necessary operations: shares of the forward pass, and the time of all at the rate of the matrix product.", ""]
    lines += [f"| case | {parts} | all, GFLOP | floor s |", "|---" * 8 + "|"]
    for case in dict.fromkeys(case_of(row) for row in report["rows"]):
        parts, total = forward_operations(case), operations(case) / 1e9
        shares = " | ".join(f"{count / sum(parts.values()):.0%}" for count in parts.values())
        lines.append(f"| {case} | {shares} | {total:.2f} | {total / peak:.3f} |")
    return "\n".join(lines) + "\n"


def case_of(row: dict) -> Case:
    return Case(**{field.name: row[field.name] for field in fields(Case)})


def plot(rows: list[dict], path: Path) -> None:
    """Median seconds and peak memory of each contender and case, as bars on logarithmic axes."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if "error" not in row]
    cases = list(dict.fromkeys(row["case"] for row in timed))
    names = list(dict.fromkeys(row["contender"] for row in timed))
    figure = Figure(figsize=(12, 1.2 + 0.25 * len(timed)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    height = 0.8 / max(1, len(names))
    for axes, key, label in ((left, "seconds", "median seconds"), (right, "peak_gib", "peak memory of the process, GiB")):
        for number, name in enumerate(names):
            mine = [row for row in timed if row["contender"] == name]
            places = [cases.index(row["case"]) + number * height for row in mine]
            axes.barh(places, [row[key] for row in mine], height, label=name)
        axes.set_xscale("log")
        axes.set_xlabel(label)
    left.set_yticks([place + 0.4 for place in range(len(cases))], cases)
    left.invert_yaxis()
    left.legend()
    figure.savefig(path, dpi=120)
