"""Compiled kernels touch nothing but their arrays: tests/guard_pages.py, and a fault planted in each of them.

`DENET_CALLS=2000 .venv/bin/python -m pytest tests/test_guard_pages.py` is the long run: as many calls of each kernel on each
side, all faults, processors without AVX-512. Without it a few calls and faults are drawn.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

import guard_pages

from denet_torch.fast.numba_cpu import amx, product

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are protected as Linux does it")

LONG = int(os.environ.get("DENET_CALLS", 0))
CALLS = LONG or 6
SEED = int(os.environ["DENET_SEED"])  # tests/conftest.py
TILES = [name for name in guard_pages.DRAWS if "." in name]
KERNELS = [name for name in guard_pages.DRAWS if "." not in name]
FAULTS = [  # one past the end, each: module, function, text, replacement; what calls it, for which type
    ("product", "product", "sub(rows, size(height))", "sub(rows, size(height - 1))", "bands._layer"),
    ("product", "_few_rows", "min(DEEP, inner - row)", "min(DEEP, inner - row + 1)", "few_rows"),
    ("waveform", "_convolve", "taps - half), out)", "taps - half + 1), out)", "waveforms"),
    ("waveform", "_filter_gradients", "min(STEPS, steps - start)", "min(STEPS, steps - start + 1)", "waveforms"),
    ("bands", "_first_layer", "range(min(len(x), len(window)))", "range(min(len(x), len(window)) + 1)", "first_layer"),
    ("bands", "_keep_unknown", "count = min(len(x), len(window))", "count = min(len(x), len(window)) + 1", "first_layer"),
    ("bands", "_second_layer", "(steps, WIDTH, 7, 30)", "(steps, WIDTH, 8, 30)", "first_layer"),
    ("bands", "_forward", "range(first, last)", "range(first, last + 1)", "band_convolutions"),
    ("bands", "_backward", "range(first, last)", "range(first, last + 1)", "band_convolutions"),
    ("bands", "_add_correlation", "len(total) - 1", "len(total)", "correlations"),
    ("bands", "_pair_rows", "builder.add(count, one), one)", "builder.add(builder.add(count, one), one), one)", "correlations"),
    ("gru", "_piece", "_raise_count(counters, step, half, 0, 1)", "_raise_count(counters, step + 1, half, 0, 1)", "gru_parts"),
    ("gru", "_gru", "range(inputs.shape[1])", "range(inputs.shape[1] + 1)", "gru"),
    ("gru", "_gates", "column in range(first, last)", "column in range(first, last + 1)", "gru_parts"),
    ("gru", "_states", "row] = h[row, step + 1, unit]", "row] = h[row, step + 1, unit + 1]", "gru_parts"),
    ("gru", "_recurrent_product", "min(deep, units - unit)", "min(deep, units - unit) + 1", "gru_parts"),
    ("gru", "_kernel_gradient", "last - first, 1, rows", "last - first, 1, rows + 1", "gru"),
    ("gru", "_gru_backward", "range(grad.shape[1] - 1, -1, -1)", "range(grad.shape[1], -1, -1)", "gru"),
    ("gru", "_state_gradients", "2 * units + last)", "2 * units + last + 1)", "gru_parts"),
    ("gru", "_reset_gradients", "y[unit - first, row]", "y[unit - first + 1, row]", "gru_parts"),
    ("gru", "_product_back", "min(DEEP_BACK, stop - column)", "min(DEEP_BACK, stop - column + 1)", "gru_parts"),
    ("fourier", "transform_four", "part * LANES)", "(part + 1) * LANES)", "transforms"),
    ("fourier", "gather", "shift + i, order[i:]", "shift + i + 1, order[i:]", "transforms"),
    ("fourier", "complex_sums", "for w in range(len(y))", "for w in range(len(y) + 1)", "transforms"),
    ("fourier", "_stages", "(start + i) * width + w", "(start + i) * width + w + 1", "transforms"),
    ("fourier", "transform", "range(0, len(x), near)", "range(0, len(x) + 1, near)", "transforms"),
    ("fourier", "filtered", "range(0, size, near)", "range(0, size + 1, near)", "transforms"),
    ("fourier", "_turn_sixteen", "part * LANES)", "(part + 1) * LANES)", "transforms"),
    ("fourier", "scatter", "// SIDE * SIDE, counts[lane])", "// SIDE * SIDE, counts[lane] + 1)", "transforms"),
    ("fourier", "_scatter_vectors", "builder.add(n, index(SIDE))", "builder.add(n, index(SIDE - 1))", "transforms"),
    ("fourier", "transform_four", "mul(rows[n], number_of(LANES))", "mul(rows[n], number_of(LANES + 1))", "transforms"),
    ("sincnet", "_signals", "max(0, x.shape[1] - start)", "max(0, x.shape[1] - start + 1)", "sinc_parts"),
    ("sincnet", "_turned", "for i in range(len(y))", "for i in range(len(y) + 1)", "sinc_parts"),
    ("sincnet", "spectra_of", "range(len(z))", "range(len(z) + 1)", "sinc_parts"),
    ("sincnet", "_correlate", "for i in range(len(z))", "for i in range(len(z) + 1)", "sinc_parts"),
    ("sincnet", "_sinc_pool", "if f < count", "if f < count + 1", "sinc_pool"),
    ("sincnet", "_sinc_pool_back", "min(pools, steps - start)", "min(pools, steps - start + 1)", "sinc_pool"),
    ("sincnet", "_conv_pool", "min(2 * pools, steps - start)", "min(2 * pools, steps - start) + 1", "conv_pool"),
    ("sincnet", "_conv_pool_back", "for step in range(steps)", "for step in range(steps + 1)", "conv_pool"),
    ("sincnet", "_norm", "for r in range(rows)", "for r in range(rows + 1)", "norm"),
    ("sincnet", "_norm_back", "for r in range(rows)", "for r in range(rows + 1)", "norm"),
    ("chunks", "_layers", "range(first, last)", "range(first, last + 1)", "chunks"),
    ("chunks", "_moments", "middle[i] = total[i] / steps", "moments[2, i] = total[i] / steps", "chunk_parts"),
    ("chunks", "_norm_conv_pool", "range(count // 3)", "range(count // 3 + 2)", "chunk_parts"),
    ("chunks", "_last_norm", "range(y.shape[1])", "range(y.shape[1] + 1)", "chunk_parts"),
    ("amx", "_columns", "range(len(columns))", "range(len(columns) + 1)", "many_rows"),
    ("amx", "_products", "range(first, last, BLOCK)", "range(first, last + BLOCK, BLOCK)", "many_rows"),
    ("amx", "product_of_parts", "number(v * TILE)", "number(v * TILE + 1)", "chunk_parts"),
]


def run(tmp_path: Path, *options: str, **environment: str) -> tuple[str | None, dict]:
    """What went wrong in a process of its own, if something did, and the calls of each kernel."""
    status = tmp_path / "status"
    command = [sys.executable, guard_pages.__file__, "--seed", str(SEED), "--status", str(status), *options]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | environment | {"PYTHONPATH": root, "PYTHONFAULTHANDLER": ""}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    if found.returncode == 0:
        return None, json.loads(found.stdout.splitlines()[-1])
    if found.returncode < 0:
        return f"{signal.Signals(-found.returncode).name} in {status.read_text().strip()}", {}
    return found.stdout + found.stderr, {}


def chosen(names: list, count: int) -> list:
    return names if LONG else random.Random(SEED).sample(names, count)


def assert_all_called(calls: dict) -> None:
    for name in guard_pages.kernels() - guard_pages.NUMBERS_ONLY:
        assert calls[name] >= CALLS, f"{name} was called {calls[name]} times: draw it in guard_pages.py"


@pytest.mark.parametrize("side", ["end", "start"])
def test_kernels_stay_inside_of_their_arrays(side, tmp_path):
    wrong, calls = run(tmp_path, "--side", side, "--calls", str(CALLS), "--draws", *KERNELS, *["--strides"] * bool(LONG))
    assert wrong is None, wrong
    print(f"seed {SEED}: {calls}")
    assert_all_called(calls)


@pytest.mark.parametrize("side", ["end", "start"])
def test_products_stay_inside_of_their_arrays(side, tmp_path):
    wrong, _ = run(tmp_path, "--side", side, "--calls", str(CALLS), "--draws", *chosen(TILES, 1))
    assert wrong is None, wrong


def test_the_c_library_finds_its_heap_as_it_left_it(tmp_path):
    wrong, calls = run(tmp_path, "--side", "heap", "--calls", str(CALLS), "--draws", *KERNELS, **guard_pages.with_malloc_checks())
    assert wrong is None, wrong
    assert_all_called(calls)


@pytest.mark.skipif(not LONG, reason="compiles everything anew: only in the long run (DENET_CALLS=2000)")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("side", ["end", "start"])
def test_processors_without_avx512(side, tmp_path, tmp_path_factory):
    numba = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "avx2")}
    wrong, calls = run(tmp_path, "--side", side, "--calls", str(CALLS), "--avx2", **numba)
    assert wrong is None, wrong
    assert_all_called(calls)


def test_each_kernel_has_a_fault_and_each_product_is_drawn():
    assert {fault[1] for fault in FAULTS} >= guard_pages.kernels() - guard_pages.NUMBERS_ONLY
    assert guard_pages.products() <= set(TILES)  # one may stand in two modules


@pytest.mark.parametrize("fault", chosen(FAULTS, 3), ids=lambda fault: fault[1])
def test_an_off_by_one_turns_it_red(fault, tmp_path):
    *edit, draws = fault
    dtype = "bfloat16" if edit[1] == "_pair_rows" else "float32"
    if dtype == "bfloat16" and not product.BFLOAT16:
        pytest.skip("this processor has no bfloat16 instructions")
    if draws in ("many_rows", "chunks", "chunk_parts") and not amx.AMX:
        pytest.skip("this processor has no tiles")
    options = ("--calls", "200", "--draws", draws, "--types", dtype)
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} if edit[0] in ("product", "amx") else {}  # what is kept of others
    wrong, _ = run(tmp_path, *options, "--fault", *edit, **cache)
    assert wrong is not None, f"seed {SEED}: {edit[1]} may go one too far, and nothing says so"
    assert draws in wrong and "Traceback" not in wrong, wrong
