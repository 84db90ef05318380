"""SincNet against the recordings of the original, and faults planted to see that they are caught."""

import inspect
import re
from statistics import median

import numpy as np
import pytest
import torch

from denet_torch import dispatch, sincnet, using
from parity_tests.sincnet import (
    CASES,
    FORWARD_BAR,
    GRADIENT_BAR,
    STEPS_BAR,
    build,
    compute,
    error,
    errors,
    five_steps,
    read,
    tied_pools_closed,
)
from parity_tests.test_mutations import Mutation, failure, plant

# A constant added before a norm is taken off by it: these gradients are 0, what is recorded of them is rounding, which RMSprop
# makes into steps. They are compared by absolute value.
ZERO = re.compile(r".*(CNN_model_par/conv\.[12]\.bias|DNN1_model_par/(wx\.\d\.bias|ln0\.beta))")
UNIT = 2.0**-23  # error of the original's float32 below this one is luck
MEDIAN_RATIO, WORST_RATIO = 1.0, 4.0
MOST_TIES = 0.002  # of all windows of pools


def check_float64(name: str) -> None:
    info, arrays = read(name)
    found = compute(info, arrays, torch.float64)
    for key, difference in errors(found, arrays).items():
        if ZERO.fullmatch(key):
            difference = np.abs(found[key] - arrays[f"float64/{key}"]).max()
        bar = GRADIENT_BAR if key.startswith("grad") else FORWARD_BAR
        assert difference <= bar, f"{name}: {key} differs by {difference:.1e}"


def check_steps(name: str) -> None:
    info, arrays = read(name)
    found = five_steps(info, arrays)
    for key, difference in errors(found, arrays).items():
        if ZERO.fullmatch(key):
            difference = np.abs(found[key] - arrays[f"float64/{key}"]).max()
        assert difference <= STEPS_BAR, f"{name}: {key} differs by {difference:.1e}"


def float32_ratios(name: str) -> dict[str, float]:
    """Error of the port's float32 over that of the original's, of every array, with tied pools closed to gradients.

    The norm of a gradient is one number, in which errors may cancel: the original's counts as that of the gradient at least.
    """
    info, arrays = read(name)
    ties, ratios = [], {}
    with tied_pools_closed(ties):
        exact = compute(info, arrays, torch.float64)
    assert sum(int(tie.sum()) for tie in ties) <= MOST_TIES * sum(tie.numel() for tie in ties)
    with tied_pools_closed(ties):
        found = compute(info, arrays, torch.float32)
    for key, value in found.items():
        if f"float32/{key}" in arrays and not ZERO.fullmatch(key):
            entries = key.replace("gradnorm/", "grad/")
            own = max(UNIT, *(error(arrays[f"float32/{one}"], arrays[f"float64/{one}"]) for one in (key, entries)))
            ratios[key] = error(value, exact[key]) / own
    return ratios


@pytest.fixture(params=[*(name for name in dispatch.BACKENDS if name == "numba_cpu"), "plain"])
def text(request):
    """Both texts of what is compiled."""
    with using(request.param):
        yield request.param


@pytest.mark.parametrize("name", CASES)
def test_float64(name, text):
    check_float64(name)


@pytest.mark.parametrize("name", CASES)
def test_five_steps(name, text):
    check_steps(name)


@pytest.mark.parametrize("name", CASES)
def test_float32(name, text):
    ratios = float32_ratios(name)
    assert len(ratios) > 20
    print(f"{name}: float32 error over the original's: median {median(ratios.values()):.2f}, worst {max(ratios.values()):.2f}")
    assert median(ratios.values()) <= MEDIAN_RATIO
    assert max(ratios.values()) <= WORST_RATIO, {key: ratio for key, ratio in ratios.items() if ratio > WORST_RATIO}


def test_float32_decides_otherwise_in_tied_pools_alone(monkeypatch):
    """Of the recordings the one whose sizes are compiled."""
    pytest.importorskip("numba")
    pytest.importorskip("denet_torch.fast.numba_cpu")
    info, arrays = read("sincnet_16k")
    ties, decisions = [], {torch.float64: [], torch.float32: []}

    def recorded(pool):
        def operate(x, *weights):
            y = pool(x, *weights)
            decisions[x.dtype].append(y.grad_fn.saved_tensors[2])
            return y

        return operate

    for pool in ("sinc_pool", "conv_pool"):
        monkeypatch.setattr(sincnet, pool, recorded(getattr(sincnet, pool)))
    for dtype in decisions:
        with using("numba_cpu"), tied_pools_closed(ties):
            build(info, dtype)[0].features(torch.from_numpy(arrays["x"]).to(dtype))
    for exact, found, tie in zip(*decisions.values(), ties, strict=True):
        assert not ((exact != found) & ~tie).any()


def test_every_recorded_weight_is_compared():
    """All but those that the original never uses."""
    info, arrays = read("sincnet_small_8k")
    _, names = build(info, torch.float64)
    left_out = {f"{part}/{name}" for part, name, _ in info["weights"]} - set(names.values())
    assert {name for name in left_out if not re.search("running_(mean|var)", name)} == set(info["never_used"])


def test_filters_have_an_odd_number_of_taps():
    assert sincnet.SincFilters(4, 50, 8000).filters().shape == (4, 51)


def test_silence_has_gradients():
    torch.manual_seed(0)
    model = sincnet.SincNet((10, 100), 3, 8000, n_filters=(6, 5, 4), taps=(51, 5, 5), hidden=(8, 8))
    model.logits(torch.zeros(4, 1000)).logsumexp(-1).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("edit", [
    ("_signals", "1 - part", "part"),
    ("_turned", "spectrum[order[i], 1]", "spectrum[i, 1]"),
    ("largest_of_three", "if magnitudes else value", "if False else value"),
    ("largest_of_three", "store(largest,", "store(best,"),
    ("largest_of_three", "size, largest), builder", "largest, size), builder"),
    ("largest_of_three", "negative, code(4)", "negative, code(0)"),
    ("_correlate", "one[j] * other[j]", "one[j]"),
    ("_correlate", "response[i] * other[j]", "other[j]"),
    ("_sinc_pool", "taps - 1 + 3 * j", "3 * j"),
    ("_sinc_pool_back", "else -g", "else g"),
    ("_sinc_pool_back", "taps - 1 + 3 * j", "3 * j"),
    ("_conv_pool", "1 if k < half else -1", "1"),
    ("_conv_pool", "length + 3 * start", "length + start"),
    ("_conv_pool_back", "margin - tap", "tap"),
    ("_norm", "(n - 1)", "n"),
    ("_norm_back", "- middle", ""),
    ("_norm_back", "g * x.dtype.type(slope)", "g"),
], ids=lambda edit: f"{edit[0]}-{edit[1]}")  # fmt: skip
def test_planted_fault_in_what_is_compiled(edit, monkeypatch):
    """The same checks go through the compiled text."""
    numba = pytest.importorskip("numba")
    sincnet_kernels = pytest.importorskip("denet_torch.fast.numba_cpu.sincnet")

    name, old, new = edit
    scope = vars(sincnet_kernels) | {}

    makes_kernels = name == "largest_of_three"
    kernels = {"largest", "largest_magnitude"} if makes_kernels else {name}

    def text_of(function: str) -> str:
        whole = getattr(sincnet_kernels, function)
        text = inspect.getsource(getattr(whole, "py_func", whole))
        return text[text.index("def ") :]  # without what compiles it

    def compile_anew(function: str, text: str) -> None:
        exec(text, scope)
        scope[function] = numba.njit(error_model="numpy")(scope[function])
        monkeypatch.setattr(sincnet_kernels, function, scope[function])

    assert old in text_of(name), f"{name} no longer has {old!r}"
    if makes_kernels:
        exec(text_of(name).replace(old, new), scope)
        scope |= {kernel: scope[name](kernel == "largest_magnitude") for kernel in kernels}
    else:
        compile_anew(name, text_of(name).replace(old, new))
    for caller in {"_sinc_pool", "_sinc_pool_back", "_conv_pool"} - {name}:
        if any(f" {kernel}(" in text_of(caller) for kernel in kernels):
            compile_anew(caller, text_of(caller))
    with using("numba_cpu"):
        assert failure(check_float64, "sincnet_16k")


MUTATIONS = [
    ("DENet's slope", [("sincnet.SincNet.features", "SLOPE", "0.3")]),
    ("PyTorch's slope", [("sincnet.leaky_relu", "SLOPE", "0.01")]),
    ("population deviation", [("sincnet.norm", "x.std(-1, keepdim=True)", "x.std(-1, keepdim=True, correction=0)")]),
    ("epsilon under the root", [
        ("sincnet.norm", "(deviation + 1e-6)", "(deviation.square() + 1e-6).sqrt()")
    ]),
    ("no epsilon", [("sincnet.norm", "(deviation + 1e-6)", "deviation.clamp(min=1e-12)")]),
    ("norm over channels and steps", [
        ("sincnet.norm", "x.mean(-1, keepdim=True)", "x.mean(tuple(range(1, x.dim())), keepdim=True)")
    ]),
    ("no absolute value after the filters", [("sincnet.sinc_pool", ".abs()", "")]),
    ("activation before the norm", [
        ("sincnet.conv_layers", "norm(conv_pool(x, weight, bias), gamma, beta, slope)",
         "norm(F.leaky_relu(conv_pool(x, weight, bias), slope), gamma, beta)")
    ]),
    ("a mean for a maximum", [("sincnet.sinc_pool", "F.max_pool1d", "F.avg_pool1d")]),
    ("no norm of the input", [("sincnet.SincNet.features", "self.input_norm(x)", "x")]),
    ("flatten with steps outside", [("sincnet.SincNet.features", "x.flatten(1)", "x.transpose(1, 2).flatten(1)")]),
    ("no norm of the features", [("sincnet.SincNet.classify", "self.features_norm(x)", "x")]),
    ("activation before the batch norm", [
        ("sincnet.SincNet.classify", "leaky_relu(batch_norm(layer(x)))", "batch_norm(leaky_relu(layer(x)))")
    ]),
    ("PyTorch's momentum", [("sincnet.BatchNorm.__init__", "momentum: float = 0.05", "momentum: float = 0.1")]),
    ("DENet's window", [("sincnet.SincFilters.filters", "self.window()", "None")]),
    ("no limit of the upper cut", [("sincnet.SincFilters.filters", ", 0.5)", ", None)")]),
    ("first cuts from 80 mel", [("sincnet.SincFilters.__init__", "hz_to_mel(30)", "80")]),
    ("cuts without the least frequency", [
        ("sincnet.sinc_filters", "filt_b1.abs()[:, None] + 50 / sr", "filt_b1.abs()[:, None]")
    ]),
]  # fmt: skip


@pytest.mark.parametrize("fault, edits", MUTATIONS, ids=[fault.replace(" ", "_") for fault, _ in MUTATIONS])
def test_planted_fault(fault, edits, monkeypatch):
    plant(Mutation(fault, "SincNet", edits), monkeypatch)
    check = check_steps if fault == "PyTorch's momentum" else check_float64
    assert any(failure(check, name) for name in ("sincnet_small_8k", "sincnet_250k")), f"{fault} passes"
