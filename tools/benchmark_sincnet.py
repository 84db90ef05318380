"""Time SincNet beside the original, on the same weights and inputs, in turns, each in a process of its own.

The original (github.com/mravanelli/SincNet) is not in this repository: fetch it and name its folder.

  git clone https://github.com/mravanelli/SincNet
  python -m tools.benchmark_sincnet SincNet --threads 2

A training step is forward, backward and RMSprop (the original's three optimizers; one here) on a batch of chunks of
200 ms at 16 kHz. Outputs are compared before anything is timed. The original is timed as it is, and once more with the setting
of the C library's memory that our commands have (denet_torch/memory.py). A large matrix product is timed in the same turns: at
its rate an evaluation would take so long if no operation were saved. Processor time, of all threads, is what counts where others
work on the same machine. A turn is as many calls as take 0.2 s, two at least; the last counts, as in a loop.
"""

import argparse
import importlib.util
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import denet_program
from denet_torch import SincNet
from denet_torch.memory import keep_freed_memory
from denet_torch.sincnet import POOL
from tools.benchmark_runs import TURN
from tools.weights.sincnet_pkl import original_parts

CONTENDERS = ("original", "original, memory kept", "port")
CLASSES, RATE = 10, 16000
PRODUCT = 2048  # rows and columns of the matrices
RMSPROP = {"lr": 1e-3, "alpha": 0.95, "eps": 1e-8}


def load_original(folder: Path):
    """The module dnn_models of the original. Raises OSError if it is not in `folder`."""
    path = folder / "dnn_models.py"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; clone https://github.com/mravanelli/SincNet and name its folder")
    spec = importlib.util.spec_from_file_location("dnn_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(original, model: SincNet) -> list[nn.Module]:
    """The original's three parts with the weights of `model`."""
    filters, taps, hidden = (model.config[key] for key in ("n_filters", "taps", "hidden"))
    layers = len(filters)
    cnn = original.SincNet(
        {
            "input_dim": model.chunk,
            "fs": model.sr,
            "cnn_N_filt": filters,
            "cnn_len_filt": taps,
            "cnn_max_pool_len": [3] * layers,
            "cnn_use_laynorm_inp": True,
            "cnn_use_batchnorm_inp": False,
            "cnn_use_laynorm": [True] * layers,
            "cnn_use_batchnorm": [False] * layers,
            "cnn_act": ["leaky_relu"] * layers,
            "cnn_drop": [0.0] * layers,
        }
    )

    def mlp(inputs: int, units: list[int], norm: bool, activation: str) -> nn.Module:
        number = len(units)
        return original.MLP(
            {
                "input_dim": inputs,
                "fc_lay": units,
                "fc_drop": [0.0] * number,
                "fc_use_batchnorm": [norm] * number,
                "fc_use_laynorm": [False] * number,
                "fc_use_laynorm_inp": norm,
                "fc_use_batchnorm_inp": False,
                "fc_act": [activation] * number,
            }
        )

    parts = [cnn, mlp(cnn.out_dim, hidden, True, "leaky_relu"), mlp(hidden[-1], [model.n_classes], False, "softmax")]
    for part, weights in zip(parts, original_parts(model).values(), strict=True):
        part.load_state_dict({name: torch.tensor(values) for name, values in weights.items()}, strict=False)
    return parts


def network(chunks: int) -> tuple[SincNet, Tensor, Tensor]:
    """The same model, batch (chunks, samples) and labels (chunks,) in every process."""
    torch.manual_seed(0)
    model = SincNet((20, RATE // 100), CLASSES, RATE)
    for layer in (*model.hidden, model.output):  # those that begin leave all classes alike, whatever is computed
        layer.weight.data *= 20
    return model, 0.1 * torch.randn(chunks, model.chunk), torch.randint(CLASSES, (chunks,))


_tasks: dict[str, Callable[[], None]] = {}  # of a contender, in its process


def begin(name: str, folder: Path, chunks: int, threads: int) -> np.ndarray:
    """Build a contender in its process. Returns its log posteriors (chunks, classes)."""
    torch.set_num_threads(threads)
    if name != "original":
        keep_freed_memory()
    model, x, labels = network(chunks)
    parts = [model] if name == "port" else build(load_original(folder), model)

    def run(x: Tensor) -> Tensor:
        if name == "port":
            return F.log_softmax(model.logits(x), dim=-1)
        for part in parts:
            x = part(x)
        return x

    optimizers = [torch.optim.RMSprop(part.parameters(), **RMSPROP) for part in parts]

    def train() -> None:
        [part.train() for part in parts]
        loss = F.nll_loss(run(x), labels)
        [optimizer.zero_grad() for optimizer in optimizers]
        loss.backward()
        [optimizer.step() for optimizer in optimizers]

    @torch.no_grad()
    def evaluate() -> Tensor:
        [part.eval() for part in parts]
        return run(x)

    matrix = torch.randn(PRODUCT, PRODUCT)
    _tasks.update({"training step": train, "evaluation": evaluate, "product": lambda: matrix @ matrix})
    return evaluate().numpy()


def turn(task: str) -> tuple[float, float]:
    """Seconds that the last run of a turn takes, and seconds of processors."""
    _tasks[task]()  # memory that the system took back while the others ran is paid for here
    end = time.perf_counter() + TURN
    while True:
        wall, processor = time.perf_counter(), time.process_time()
        _tasks[task]()
        if time.perf_counter() >= end:
            return time.perf_counter() - wall, time.process_time() - processor


def operations(model: SincNet) -> int:
    """Operations of one chunk forward, a product and its sum being two: convolutions and fully connected layers."""
    layers = zip(model.config["n_filters"], [model.sinc.taps, *model.config["taps"][1:]], strict=True)
    steps, inputs, total = model.chunk, 1, 0
    for filters, taps in layers:
        steps -= taps - 1
        total += 2 * steps * taps * inputs * filters
        steps, inputs = steps // POOL, filters
    return total + 2 * sum(layer.weight.numel() for layer in (*model.hidden, model.output))


def compare(folder: Path, chunks: int, rounds: int, threads: int) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """`turn` of each round: task -> contender, and "evaluation" -> "product" as well.

    Raises RuntimeError if their answers differ, OSError if the original is not in `folder`.
    """
    load_original(folder)
    tasks = [(task, name, name) for task in ("training step", "evaluation") for name in CONTENDERS]
    tasks.append(("evaluation", "product", "port"))
    times: dict[str, dict[str, list]] = {"training step": {}, "evaluation": {}}
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        processes = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in CONTENDERS}
        answers = {name: of.submit(begin, name, folder, chunks, threads).result() for name, of in processes.items()}
        for name in CONTENDERS[:-1]:
            difference = float(np.abs(answers[name] - answers["port"]).max())
            if not difference <= 1e-4 * float(answers["port"].std()):
                raise RuntimeError(f"log posteriors differ by {difference:.1e}")
        for _ in tqdm(range(rounds), unit="round", leave=False):
            for task, shown, name in tasks:
                seconds = processes[name].submit(turn, "product" if shown == "product" else task).result()
                times[task].setdefault(shown, []).append(seconds)
    share = chunks * operations(network(1)[0]) / (2 * PRODUCT**3)  # of a product's operations
    times["evaluation"]["product"] = [(share * wall, share * processor) for wall, processor in times["evaluation"]["product"]]
    return times


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark_sincnet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("original", type=Path, metavar="FOLDER", help="clone of mravanelli/SincNet")
    parser.add_argument("--chunks", type=int, default=128, metavar="N", help="in a batch (default: 128)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="counted (default: 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    args = parser.parse_args(arguments)
    try:
        times = compare(args.original, args.chunks, args.rounds, args.threads)
    except (OSError, RuntimeError, AttributeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.chunks} chunks, {args.threads} threads, {args.rounds} rounds in turns: median (fastest - slowest) s")
    for task, found in times.items():
        for clock, part in (("", 0), (", processor time", 1)):
            seconds = {name: [measured[part] for measured in of_rounds] for name, of_rounds in found.items()}
            shown = {name: f"{median(t):.3f} ({min(t):.3f} - {max(t):.3f})" for name, t in seconds.items()}
            ratio = {name: median(a / b for a, b in zip(seconds["original"], t, strict=True)) for name, t in seconds.items()}
            print(f"{task}{clock}: original {shown['original']}, port {shown['port']}; {ratio['port']:.2f} times as fast")
            kept = "original, memory kept"
            of_kept = median(a / b for a, b in zip(seconds[kept], seconds["port"], strict=True))
            print(f"  {kept}: {shown[kept]}; {of_kept:.2f} times")
            if "product" in found:
                print(f"  at the rate of a large matrix product: {shown['product']}; {ratio['product']:.2f} times")
    return 0


if __name__ == "__main__":
    denet_program.run(main)
