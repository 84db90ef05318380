"""Faster twins of the operations in `denet_torch/layers.py`. Delete this folder, and all that is missing is speed.

One folder a backend: `numba_cpu`, compiled for the processor at hand, which is asked first; `torch_ops`, other operations of
PyTorch. What each takes, and from which sizes on it is worth while, stands in its `__init__.py`.
"""

from . import numba_cpu, torch_ops

BACKENDS = {"numba_cpu": numba_cpu.OPERATIONS, "torch_ops": torch_ops.OPERATIONS}
