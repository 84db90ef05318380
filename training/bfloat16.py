"""bfloat16 and float16 products on a processor that has no instructions for them.

There PyTorch's own take a hundred times as long as float32. Here a product is made in float32 of the half-precision numbers and
rounded once, which is what the instructions do (AVX-512 BF16 and AMX sum in float32), up to the order of the sum.
"""

import contextlib

import torch
from lightning_fabric import Fabric
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default,
    aten.mm.out,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
}


def cpu_has(kind: str) -> bool:
    """Whether the processor multiplies numbers of this kind, bf16 or fp16, itself."""
    return any(there for name, there in torch.cpu.get_capabilities().items() if name.endswith(kind))


def emulated(fabric: Fabric) -> contextlib.AbstractContextManager:
    """A context in which half-precision products take as long as float32 ones, if `fabric` asks a processor without them."""
    kind = {"bf16-mixed": "bf16", "16-mixed": "fp16"}.get(fabric.strategy.precision.precision)
    wanted = kind is not None and fabric.device.type == "cpu" and not cpu_has(kind)
    return Float32Products() if wanted else contextlib.nullcontext()


class Float32Products(TorchDispatchMode):
    """Makes the products of bfloat16 and float16 tensors in float32, forward and backward; everything else is left alone."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func not in PRODUCTS:
            with self:  # in inference mode a whole linear layer or convolution comes here: its products follow
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        half = args[0].dtype
        if half not in (torch.bfloat16, torch.float16):
            return func(*args, **kwargs)
        out = kwargs.get("out")
        exact = tree_map_only(torch.Tensor, lambda tensor: tensor.float(), (args, kwargs))
        result = func(*exact[0], **exact[1])
        if out is not None:
            return out.copy_(result)
        return tree_map_only(torch.Tensor, lambda tensor: tensor.to(half), result)
