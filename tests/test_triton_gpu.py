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


@pytest.mark.parametrize("number", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile(capability, number):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from denet_torch.fast.triton_gpu import gru

    _, how = gru.launch(8, 2048, torch.float32)
    constants = how | {"units": 2048, "LAST": False}
    for kernel in (gru._gates, gru._states, gru._state_gradients, gru._reset_gradients):
        types = {name: "*fp32" for name in kernel.arg_names} | {"kernel": f"*{number}"}
        types |= dict.fromkeys(("batch", "steps", "step"), "i32") | dict.fromkeys(constants, "constexpr")
        signature = {name: types[name] for name in kernel.arg_names}
        mine = {name: value for name, value in constants.items() if name in kernel.arg_names}
        made = triton.compile(ASTSource(kernel, signature, mine), target=GPUTarget("cuda", capability, 32))
        assert made.asm["cubin"] and made.metadata.shared <= {80: 163, 90: 227}[capability] * 1024
