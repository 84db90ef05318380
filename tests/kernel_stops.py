"""Stop processes while threads are inside of compiled kernels: a program, run by test_kernel_stops.py.

    python tests/kernel_stops.py --times 100

Each trial is a fork of this process, which has loaded the kernels and started no thread. It ends as programs do
(denet_program.py), and must end as it should, print nothing, and, where it goes on, find the same numbers as before.
"""

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numba
import torch

import denet_program
from denet_torch.fast.numba_cpu import gru, threads, waveform

PATIENCE = 300  # seconds


def kernels() -> Callable[[], list[torch.Tensor]]:
    """A function that runs kernels of both kinds, with pieces that are independent and with threads that wait for each other."""
    torch.manual_seed(0)
    inputs, kernel, grad = torch.randn(3, 4, 3 * 512), torch.randn(512, 3 * 512) / 23, torch.randn(3, 4, 512)
    x, filters = torch.randn(16, 400), torch.randn(20, 31)

    def once() -> list[torch.Tensor]:
        y, gates, h = gru.gru_states(inputs, kernel, False)
        bands = waveform.convolve(x, filters)
        return [y, gru.gru_gradients(grad, kernel, gates, h), bands, waveform.filter_gradients(x, bands, 31)]

    return once


ONCE = kernels()


def check(expected: list[torch.Tensor]) -> None:
    assert all(map(torch.equal, ONCE(), expected)), "the numbers are others than before"


def for_ever() -> None:
    while True:
        ONCE()


# What a process does once it is told the seconds after which something happens, and a pipe to say on what it has seen.


def killed(expected, rng, tell) -> int:
    os.write(tell, b"r")
    for_ever()


def ended(expected, rng, tell) -> int:
    """SIGTERM ends it as `sys.exit` does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    os.write(tell, b"r")
    for_ever()


def interrupted(expected, rng, tell) -> int:
    """Ctrl-C reaches whoever runs a kernel, each time, and the next kernel works."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells ignore in what they run in the background
    for _ in range(3):
        try:
            os.write(tell, b"r")
            for_ever()
        except KeyboardInterrupt:
            check(expected)
    return 0


@numba.njit(nogil=True)
def fail_at(first: int, last: int, bad: int) -> None:
    if first == bad:
        raise ZeroDivisionError


def failed(expected, rng, tell) -> int:
    """One piece of a kernel raises: whoever ran it is told."""
    try:
        threads.share_out(fail_at, 6, 1, rng.randrange(6))
    except ZeroDivisionError:
        check(expected)
        return 0
    raise AssertionError("an error in a kernel was lost")


def left(expected, rng, tell) -> int:
    """The program ends while threads of Python's are at work."""
    for _ in range(2):
        threading.Thread(target=for_ever, daemon=True).start()
    time.sleep(rng.uniform(0.01, 0.1))
    return 0


def forked(expected, rng, tell) -> int:
    """As a loader's workers are, while another thread is at work."""
    threading.Thread(target=for_ever, daemon=True).start()
    time.sleep(rng.uniform(0.01, 0.1))
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1 if rng.random() < 0.5 else 2)
        os._exit(0 if all(map(torch.equal, ONCE(), expected)) else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    check(expected)
    return code


TRIALS = {  # what is done: signal, how it has to end
    killed: (signal.SIGTERM, -signal.SIGTERM),
    ended: (signal.SIGTERM, 3),
    interrupted: (signal.SIGINT, 0),
    failed: (None, 0),
    left: (None, 0),
    forked: (None, 0),
}


def attend(child: int, number: int | None, rng: random.Random, heard: int) -> int:
    """Send the signals that a trial asks for; its exit code, None if it does not end."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if number is not None and select.select([heard], [], [], 0.005)[0] and os.read(heard, 1):
            time.sleep(rng.uniform(0, 0.03))
            os.kill(child, number)
        elif number is None:
            time.sleep(0.005)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="trials of each kind")
    names = [trial.__name__ for trial in TRIALS]
    parser.add_argument("--trials", nargs="*", choices=names, default=names)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    options = parser.parse_args()
    denet_program.take()
    torch.set_num_threads(1)
    expected, rng, wrong = ONCE(), random.Random(options.seed), 0
    print(f"seed {options.seed}", flush=True)
    for trial, (number, code) in TRIALS.items():
        if trial.__name__ not in options.trials:
            continue
        for _ in range(options.times):
            heard, tell = os.pipe()
            with tempfile.TemporaryFile() as said:
                child = os.fork()
                if child == 0:
                    os.dup2(said.fileno(), 2)
                    rng.seed(rng.random())
                    threads._parallel = threads._openmp()  # no thread was lost by the fork
                    torch.set_num_threads(rng.choice((2, 2, 3, 4)))
                    denet_program.run(lambda trial=trial, tell=tell: trial(expected, rng, tell))
                os.close(tell)
                found = attend(child, number, rng, heard)
                os.close(heard)
                said.seek(0)
                if text := said.read().decode(errors="replace"):
                    print(text)
                if found != code or text:
                    wrong += 1
                    print(f"{trial.__name__}: ended with {found}, not {code}", flush=True)
            rng.random()
        print(f"{trial.__name__}: {options.times} times", flush=True)
    print(f"{wrong} went wrong")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
