"""Triton's kernels without a GPU: under its interpreter they are held to the contract, and they compile for A100 and H100."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton comes with PyTorch for CUDA")
ROOT = Path(__file__).resolve().parents[1]


def test_the_contract_under_the_interpreter():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_fast_contract.py", "-k", "triton_gpu"]
    environment = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(ROOT))
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    taken = int(done.stdout.split(" passed")[0].split()[-1])
    assert taken >= 30


OF_A_GPUS_SIZES = """
import torch
from denet_torch.layers import gru_steps
from denet_torch.dispatch import using
from denet_torch.fast.triton_gpu import gru
torch.manual_seed(0)
for blocks in (gru.GPU_BLOCKS, gru.GPU_FEW):
    gru.BLOCKS = gru.FEW = blocks
    inputs, kernel = torch.randn(19, 2, 3 * 130), (130**-0.5 * torch.randn(130, 3 * 130))
    found = []
    for backend in ("triton_gpu", "plain"):
        x, k = inputs.clone().requires_grad_(), kernel.clone().requires_grad_()
        with using(backend):
            y = gru_steps(x, k)
        y.square().sum().backward()
        found.append([y, x.grad, k.grad])
    torch.testing.assert_close(*found)
"""


def test_blocks_of_a_gpus_sizes_that_do_not_fit_evenly():
    environment = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-c", OF_A_GPUS_SIZES], env=environment, check=True)


SHARED = {75: 64, 80: 163, 86: 99, 90: 227, 100: 227, 120: 99}  # KiB of shared memory that a program may have, by capability


def compile_for(capability: int, number: str, batch: int, units: int, steps: int = 10) -> None:
    """All kernels, as they are started for such inputs: integers that are 1 and aligned addresses are told to the compiler."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from denet_torch.fast.triton_gpu import gru

    _, how = gru.launch(batch, units, torch.float32)
    constants = how | {"units": units, "LAST": False}
    constants |= {name: 1 for name, value in (("batch", batch), ("steps", steps)) if value == 1}
    for kernel in (gru._gates, gru._states, gru._state_gradients, gru._reset_gradients):
        types = {name: "*fp32" for name in kernel.arg_names} | {"kernel": f"*{number}"}
        types |= dict.fromkeys(("batch", "steps", "step"), "i32") | dict.fromkeys(constants, "constexpr")
        signature = {name: types[name] for name in kernel.arg_names}
        mine = {name: value for name, value in constants.items() if name in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
        made = triton.compile(ASTSource(kernel, signature, mine, aligned), target=GPUTarget("cuda", capability, 32))
        assert made.asm["cubin"] and made.metadata.shared <= SHARED[capability] * 1024


@pytest.fixture
def tf32():
    """Products as `set_float32_matmul_precision("high")`, the trainer's under --amp, has them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("batch", "units"), [(8, 130), (64, 2048)])
@pytest.mark.parametrize("number", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(capability, number, batch, units):
    compile_for(capability, number, batch, units)


@pytest.mark.parametrize("batch", [8, 64])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_with_tf32(capability, batch, tf32):
    compile_for(capability, "fp32", batch, 2048)


@pytest.mark.parametrize(("batch", "steps"), [(1, 10), (8, 1), (1, 1)])
def test_kernels_compile_for_one_sequence_or_one_step(batch, steps):
    compile_for(90, "fp16", batch, 2048, steps)


@pytest.mark.parametrize("capability", [75, 86, 100, 120])
def test_kernels_compile_for_other_cards(capability):
    compile_for(capability, "fp16", 64, 2048)


def test_either_name_of_tf32_is_understood():
    """Once the newer has been set, to read the older raises."""
    code = "from denet_torch.fast.triton_gpu.gru import launch; import torch; m = torch.backends.cuda.matmul; found = []\n"
    code += "for name, value in (('fp32_precision', 'tf32'), ('fp32_precision', 'ieee'), ('allow_tf32', True)):\n"
    code += "    setattr(m, name, value); found.append(launch(8, 128, torch.float32)[1]['PRECISION'])\n"
    code += "assert found == ['tf32', 'ieee', 'tf32'], found"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=100)


def test_operators_for_cuda_work_on_the_gpu_of_their_tensors(monkeypatch):
    """Not on the current one: a kernel started there would read another card's memory."""
    from denet_torch.fast import operators

    log = []

    class device_of:  # noqa: N801
        def __init__(self, tensor):
            self.shape = tuple(tensor.shape)

        def __enter__(self):
            log.append(self.shape)

        def __exit__(self, *_):
            log.append("left")

    def which_gpu(x, number):
        log.append(number)
        return x.clone()

    schema = "(Tensor x, int number) -> Tensor"
    made = operators.operator(schema, fake=lambda x, number: torch.empty_like(x), devices=("CUDA", "CPU"))(which_gpu)
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    made.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), torch.zeros(2, 3), 7)
    made.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), torch.zeros(5), 8)
    assert log == [(2, 3), 7, "left", 8]


NO_COMPILER = """
import warnings, torch, triton.runtime
from fake_card import card
from denet_torch import dispatch, layers

class Driver:
    @property
    def active(self):
        raise RuntimeError("Failed to find C compiler.")

triton.runtime.driver = Driver()
with card(), warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        dispatch._notes = []
        layers.gru_steps(torch.empty(2, 3, 3 * 128, device="cuda"), torch.empty(128, 3 * 128, device="cuda"))
        ((_, backend, refused),) = dispatch._notes
        assert backend == "torch_ops" and refused["triton_gpu"].endswith("(Failed to find C compiler.)"), refused
assert [str(warning.message)[:28] for warning in said] == ["Triton starts no kernel here"], said
"""


def test_where_triton_cannot_build_what_starts_kernels_the_others_are_asked():
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    subprocess.run([sys.executable, "-c", NO_COMPILER], env=environment, check=True, timeout=100)
