"""Memory of the process: for commands, which own theirs. Nothing in the package calls it by itself."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h


def keep_freed_memory(of_any_size: bool = False) -> None:
    """Let the C library keep what this process frees, rather than fetch memory from the system anew at each step.

    A page that the system hands out is cleared first. Blocks beyond 32 MB go back unless `of_any_size`, for training, where
    the gradients of the GRU's kernels are such blocks at each step: holes that they leave can take hundreds of megabytes. Where
    the library is not glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        if of_any_size:
            mallopt(M_MMAP_MAX, 0)
