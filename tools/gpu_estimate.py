"""What a training step asks of a GPU, counted without one, and how long that takes by the cards' data sheets."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from denet_torch import dispatch, get_denet
from denet_torch.layers import gru_steps

BATCHES = (8, 32, 128, 512, 1024)
LAUNCH = 6e-6  # s, of the host for one operation of PyTorch and its backward node
REPLAY = 2e-6  # s, of the card from one kernel of a graph to the next
TRITON_LAUNCHES = 4  # of one step of a GRU, forwards and back


@dataclass(frozen=True)
class Card:
    """Peak rates by a data sheet: operations a second (dense, not sparse) in float32 and half precision, bytes a second.

    `driver`: what the driver calls this make and no other, such as those for PCIe or with less memory, which are slower.
    """

    name: str
    driver: str
    float32: float
    half: float
    bandwidth: float
    source: str


CARDS = (
    Card("A100 80GB SXM", "A100-SXM4-80GB", 19.5e12, 312e12, 2.039e12, "https://www.nvidia.com/en-us/data-center/a100/"),
    Card("H100 SXM", "H100 80GB HBM3", 67e12, 989e12, 3.35e12, "https://www.nvidia.com/en-us/data-center/h100/"),
)


@dataclass(frozen=True)
class Operation:
    """One kernel: floating-point operations, bytes read and written in float32, and whether it is a product."""

    flops: int
    bytes: int
    product: bool


class Count(TorchDispatchMode):
    """Lists the operations that pass, views and empty tensors left out."""

    def __init__(self):
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.is_view or func.overloadpacket.__name__ in ("empty", "empty_like", "new_empty", "detach", "empty_strided"):
            return out
        tensors = [item for item in tree_leaves((args, kwargs, out)) if isinstance(item, Tensor)]
        count = flop_registry.get(func.overloadpacket)
        made = sum(item.numel() for item in tree_leaves(out) if isinstance(item, Tensor))
        flops = count(*args, **(kwargs or {}), out_val=out) if count else made
        self.operations.append(Operation(flops, sum(t.numel() * t.element_size() for t in tensors), count is not None))
        return out


@contextmanager
def counting() -> Iterator[list[Operation]]:
    with dispatch.using(*dispatch.BACKENDS.keys() & {"torch_ops"}), Count() as count:
        yield count.operations


@cache
def step_operations(batch: int, seq_len: int = 10, samples: int = 800) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """Operations of a training step of the full model without the optimizer, and those of them that are the GRU's steps."""
    with torch.device("meta"):
        model = get_denet((seq_len, samples), 2).train()
        x = torch.empty(batch, seq_len, samples)
    with counting() as whole:
        model(x).square().mean().backward()
    units = model.gru.forward_gru.units
    inputs = torch.empty(batch, seq_len, 3 * units, device="meta", requires_grad=True)
    kernel = model.gru.forward_gru.recurrent_kernel
    with counting() as steps:
        gru_steps(inputs, kernel).sum().backward()
    return tuple(whole), tuple(steps) * 2


def seconds(operations: tuple[Operation, ...], card: Card, half: bool, launch: float) -> float:
    """Bound by what takes longer, the host's launches or the card's work; the latter by arithmetic or memory, one by one."""
    rate = card.half if half else card.float32
    width = 2 if half else 1
    work = sum(
        max(o.flops / (rate if o.product else card.float32), o.bytes / width / card.bandwidth) for o in operations
    )
    return max(work, launch * len(operations))


def estimate(batch: int, card: Card) -> dict:
    """A row of the table: operations, bytes, launches, and s a step for each contender."""
    whole, recurrent = step_operations(batch)
    others = tuple((Counter(whole) - Counter(recurrent)).elements())
    products = tuple(o for o in whole if o.product)
    # A compiler writes what follows a product once: bytes of products, and one kernel beside each.
    compiled = products + tuple(Operation(0, o.bytes // 3, False) for o in products)
    of_triton = tuple(o for o in recurrent if o.product)[: 2 * 10 * TRITON_LAUNCHES]
    return {
        "batch": batch,
        "card": card.name,
        "operations": sum(o.flops for o in whole if o.product),
        "bytes": sum(o.bytes for o in whole),
        "launches": len(whole),
        "eager float32": seconds(whole, card, False, LAUNCH),
        "eager": seconds(whole, card, True, LAUNCH),
        "triton": seconds(others + of_triton, card, True, LAUNCH),
        "compiled": seconds(compiled, card, True, LAUNCH),
        "graphs": seconds(compiled, card, True, REPLAY),
    }


CONTENDERS = ("eager float32", "eager", "triton", "compiled", "graphs")


def table(measured: dict[tuple[str, int, str], float] | None = None) -> str:
    """The estimates of all cards and batches in ms, as Markdown; beside each what was measured on that card, if it was."""
    kinds = [f"{name}, {kind}" for name in CONTENDERS for kind in ("estimate", "measured")]
    heads = ["card", "batch", "TFLOP", "GB", "launches", *kinds]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for card in CARDS:
        for batch in BATCHES:
            row = estimate(batch, card)
            cells = [card.name, str(batch), f"{row['operations'] / 1e12:.2f}", f"{row['bytes'] / 1e9:.1f}", str(row["launches"])]
            for name in CONTENDERS:
                found = (measured or {}).get((card.name, batch, name))
                cells += [f"{1e3 * row[name]:.1f}", "" if found is None else f"{1e3 * found:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


BEGIN, END = "<!-- denet gpu-report writes this table -->", "<!-- end of the table -->"


def write_page(page: Path, measured: dict[tuple[str, int, str], float]) -> None:
    """Write the table between the page's two marks anew. Raises ValueError for a page without them."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page}: has no table of this command: no line {BEGIN}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{table(measured)}\n\n{END}{after}")
