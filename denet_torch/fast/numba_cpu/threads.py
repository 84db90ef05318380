"""Compiled functions on the threads of PyTorch's own operations."""

import atexit
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

LANES = 16  # columns of an array are a multiple of so many: no processor's vectors hold more


def share_out(function: Callable, count: int, at_once: int, *arguments) -> list:
    """function(first, last, *arguments) for `at_once` of `count` after the other, on as many threads as PyTorch uses.

    The same go together on any number of threads, so that sums do not depend on it.
    """
    arrays = [argument.numpy() if isinstance(argument, Tensor) else argument for argument in arguments]
    starts = range(0, count, at_once)
    found, to_do, errors = [None] * len(starts), iter(enumerate(starts)), []

    def work(_=None) -> None:
        try:
            for i, first in to_do:
                found[i] = function(first, min(first + at_once, count), *arrays)
        except BaseException as error:  # a thread of OpenMP's has nobody to raise it to
            errors.append(error)

    threads = min(torch.get_num_threads(), len(starts))
    with _signals_raise(work, errors) if _is_main() else _before_the_end():
        if threads == 1:
            work()
        elif _parallel:
            _parallel(_Work(work), None, threads, 0)
        else:
            with ThreadPoolExecutor(threads) as pool:
                for _ in range(threads):
                    pool.submit(work)
    if errors:
        raise errors[0]
    return found


def _is_main() -> bool:
    return threading.get_ident() == threading.main_thread().ident


@contextmanager
def _signals_raise(work: Callable, errors: list) -> Iterator[None]:
    """In the main thread a signal's handler may raise as soon as `work` is called, before it can catch: nobody would be told."""
    before = sys.unraisablehook

    def keep(unraisable) -> None:
        trace = unraisable.exc_traceback
        if trace is not None and trace.tb_frame.f_code is work.__code__:
            errors.append(unraisable.exc_value)
        else:
            before(unraisable)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _before_the_end() -> Iterator[None]:
    """An interpreter that ends waits for other threads' kernels; those that come later find the door shut, and end with it."""
    global _others
    with _door:
        _door.wait_for(lambda: not _ended)
        _others += 1
    try:
        yield
    finally:
        with _door:
            _others -= 1
            _door.notify_all()


_door, _others, _ended = threading.Condition(), 0, False


@atexit.register
def _wait_for_others() -> None:
    global _ended
    with _door:
        _ended = True
        _door.wait_for(lambda: not _others)


_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def _openmp() -> Callable | None:
    """What compilers call for a parallel region of GNU's OpenMP, in the library that PyTorch has loaded; None if it has not.

    So compiled functions run on the threads of PyTorch's own operations. Those wait busily for milliseconds for the next one,
    on the cores that other threads would need; kept from it they wake too slowly for small operations.
    """
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if sys.platform == "linux" else None
    if parallel is not None:
        parallel.argtypes, parallel.restype = [_Work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel


def _leave_threads() -> None:
    """A forked process has none of the threads, for which the library, or the process's end, would wait."""
    global _parallel, _door, _others
    _parallel, _door, _others = None, threading.Condition(), 0


_parallel = _openmp()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_threads)


def of_a_thread(columns: int) -> int:
    """So many of the columns that each thread has one piece, in whole LANES."""
    return -(-columns // (torch.get_num_threads() * LANES)) * LANES
