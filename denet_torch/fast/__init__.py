"""Faster twins of the operations in `denet_torch/layers.py`. Delete this folder, and all that is missing is speed.

One folder a backend: `numba_cpu`, compiled for the processor at hand, which is asked first; `triton_gpu`, compiled for a GPU;
`torch_ops`, other operations of PyTorch. What each takes, and from which sizes on it is worth while, stands in its `__init__.py`.
"""

from . import numba_cpu, torch_ops, triton_gpu

BACKENDS = {"numba_cpu": numba_cpu.OPERATIONS, "triton_gpu": triton_gpu.OPERATIONS, "torch_ops": torch_ops.OPERATIONS}
