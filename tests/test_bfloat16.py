"""Products of bfloat16 numbers made in float32: the same numbers as the processor's own, and none left out."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from denet_torch import get_denet
from training.bfloat16 import Float32Products

A, B, C = (torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16() for shape in ((6, 50), (50, 7), (6, 7)))
PRODUCTS = {
    "mm": lambda a, b, c: a @ b,
    "mm.out": lambda a, b, c: torch.mm(a, b, out=torch.empty_like(c)),
    "addmm": lambda a, b, c: torch.addmm(c, a, b),
    "bmm": lambda a, b, c: a[None] @ b[None],
    "baddbmm": lambda a, b, c: torch.baddbmm(c[None], a[None], b[None]),
    "linear": lambda a, b, c: F.linear(a, b.T, c[0]),
    "convolution": lambda a, b, c: F.conv1d(a[None], b[:, :6, None], b[0].new_zeros(50)),
}


@pytest.mark.parametrize("dtype, rounding", [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)], ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_product_is_rounded_once(name, dtype, rounding):
    product, factors = PRODUCTS[name], [factor.to(dtype) for factor in (A, B, C)]
    exact = product(*(factor.double() for factor in factors))
    with Float32Products():
        found = product(*factors)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=rounding, atol=1e-5)


def test_float32_products_are_left_alone():
    expected = A.float() @ B.float()
    with Float32Products():
        assert torch.equal(A.float() @ B.float(), expected)


class Seen(TorchDispatchMode):
    """Notes the operations on bfloat16 tensors that reach PyTorch."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(isinstance(arg, torch.Tensor) and arg.dtype == torch.bfloat16 for arg in args):
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def products(self) -> list[str]:
        return [name for name in self.names if any(part in name for part in ("mm", "matmul", "conv", "linear"))]


def test_no_product_of_a_training_step_is_left_out():
    def gradients(mode):
        torch.manual_seed(0)
        model = get_denet((4, 400), 2, dropout=0.0, gru_units=16, dense_units=(8, 8)).train()
        with mode, torch.autocast("cpu", torch.bfloat16):
            F.cross_entropy(model(torch.randn(3, 4, 400)).float().flatten(0, 1), torch.tensor([0, 1] * 6)).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    with Seen() as seen:
        emulated = gradients(Float32Products())
    assert seen.names and not seen.products()
    own = gradients(contextlib.nullcontext())
    assert F.cosine_similarity(emulated, own, dim=0) > 0.99


def test_no_product_of_a_prediction_is_left_out():
    model = get_denet((4, 400), 2, gru_units=16, dense_units=(8, 8))
    with Seen() as seen, Float32Products(), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        model.predict_overlapping(torch.randn(8, 400), [0, 2, 4], 4)
    assert seen.names and not seen.products()
