"""A CUDA device for tests where there is none: its tensors have a device, a shape and a type, and no numbers."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
NUMBER = 0.5  # what every number read from the card is
# What makes the host wait until the card has come so far, beside copies to the host.
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten._unique2.default, aten.masked_select.default}
WAITS |= {aten.unique_dim.default, aten.equal.default, aten.is_nonzero.default}


class Card(TorchDispatchMode):
    """Computes what concerns the device "cuda" on fake tensors, and everything else as ever.

    `waits` counts what the host waits for, `copied` what is copied to the card, `blocking` how often that was waited for, `mixed`
    operations of which some arguments lie on the card and others on the host.
    """

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.forget()

    def forget(self) -> None:
        """Count from here on."""
        self.waits, self.copied, self.mixed, self.blocking = Counter(), Counter(), Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func.namespace == "aten":
            with self:  # whole layers come here: their parts follow
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        target = kwargs.get("device")
        on_card = [isinstance(tensor, FakeTensor) for tensor in tensors]
        if not any(on_card) and (target is None or torch.device(target).type == "cpu"):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if all(on_card) and target is not None and torch.device(target).type == "cpu":
            self.waits[name] += 1
            return torch.full(tensors[0].shape, NUMBER).to(kwargs.get("dtype") or tensors[0].dtype)
        if func in WAITS:
            self.waits[name] += 1
            if func is not aten._local_scalar_dense.default:
                raise AssertionError(f"{name} waits for the card, and the size of its result depends on numbers")
            return NUMBER if tensors[0].dtype.is_floating_point else 1
        if not all(on_card):
            is_copy = func is aten._to_copy.default
            (self.copied if is_copy else self.mixed)[name] += 1
            self.blocking += is_copy and not kwargs.get("non_blocking", False)
            args, kwargs = tree_map_only(Tensor, self.shape_of, (args, kwargs))
        with self.fake:
            return func(*args, **kwargs)

    def shape_of(self, tensor: Tensor) -> FakeTensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)


@contextmanager
def card() -> Iterator[Card]:
    """Within it there is a CUDA device without numbers."""
    made = Card()
    with made.fake:  # tells PyTorch that nobody answers for this device
        pass
    patches = [
        mock.patch("torch.cuda._lazy_init"),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda *_: True),
        mock.patch.object(Tensor, "backward", lambda tensor, *_, **__: walk(tensor)),
    ]
    for patch in patches:
        patch.start()
    try:
        with made:
            yield made
    finally:
        for patch in patches:
            patch.stop()


def to_card(module: nn.Module) -> nn.Module:
    """The module with its parameters and buffers on the card."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.detach().to("cuda"), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer.to("cuda")
    return module


@torch.no_grad()
def walk(root: Tensor) -> None:
    """`root.backward()`, node by node: PyTorch's own engine asks the driver for streams of a card that is not there."""
    arrived = defaultdict(dict)
    arrived[root.grad_fn][root.output_nr] = torch.ones_like(root)
    for node in reversed(_inputs_first(root.grad_fn)):
        gradients = arrived.pop(node, {})
        if not gradients:
            continue
        if hasattr(node, "variable"):
            variable, gradient = node.variable, gradients[0]
            variable.grad = gradient if variable.grad is None else variable.grad + gradient
            continue
        given = [gradients.get(number) for number in range(len(node._input_metadata))]
        handed = node.apply(*given) if hasattr(node, "apply") else node(*given)
        handed = handed if isinstance(handed, tuple) else (handed,)
        for (other, number), gradient in zip(node.next_functions, handed, strict=False):
            if other is None or gradient is None:
                continue
            wanted = other._input_metadata[number]
            assert gradient.device == wanted.device, f"{node.name()} hands {other.name()} a gradient on {gradient.device}"
            gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
            before = arrived[other].get(number)
            arrived[other][number] = gradient if before is None else before + gradient


def _inputs_first(last) -> list:
    """The nodes that `last` hands gradients to, each after those that it hands them to; `last` itself at the end."""
    ordered, seen, path = [], {last}, [(last, iter(last.next_functions))]
    while path:
        node, others = path[-1]
        for other, _ in others:
            if other is not None and other not in seen:
                seen.add(other)
                path.append((other, iter(other.next_functions)))
                break
        else:
            ordered.append(node)
            path.pop()
    return ordered
