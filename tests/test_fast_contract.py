"""What every fast path is held to: the plain text of the operation, which the parity suite compares with TensorFlow.

A backend of its own is tested by all of this once its name stands in `denet_torch.dispatch.BACKENDS`; an operation, once it has
cases here.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import denet_torch
from denet_torch import dispatch, layers, sincnet
from denet_torch.dispatch import BACKENDS, using

OPERATIONS = {name: getattr(layers, name) for name in ("convolve_waveform", "band_convolutions", "gru_steps", "multiply")}
OPERATIONS |= {name: getattr(sincnet, name) for name in ("norm", "conv_pool", "linear")}
# Its filters are symmetric, and the fast path makes gradients of one half: here both are of what they are mirrored from.
OPERATIONS["sinc_pool"] = lambda x, filters: sincnet.sinc_pool(x, filters + filters.flip(1))
OPERATIONS["conv_layers"] = lambda x, filters, *others: sincnet.conv_layers(x, filters + filters.flip(1), *others)


DRAWS = 4
MARGIN = 2.0**-17  # of the largest magnitude: some ten times the error of float32 in sums of 250 products


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64)


def mirrored(*shape: int) -> Tensor:
    """Symmetric filters."""
    filters = drawn(*shape)
    return filters + filters.flip(1)


def attention_weights() -> list[Tensor]:
    shapes = (30, 1, 7), (30,), (30, 30, 7), (30,), (10, 30, 7), (10,)
    return [drawn(*shape, scale=0.3) for shape in shapes]


def conv_weights(channels: int, steps: int, inputs: int = 0) -> list[Tensor]:
    """Gamma and beta of SincNet's first layer, or weights of five taps, bias, gamma and beta of a further one."""
    conv = [drawn(channels, inputs, 5, scale=0.2), drawn(channels)] if inputs else []
    return [*conv, drawn(channels, steps), drawn(channels, steps)]


# Arguments of each operation at drawn, odd sizes that some backend takes: (a name, their makers). Sizes that nobody takes are the
# plain text's, which `test_sizes_that_nobody_takes` sees to.
CASES = {
    "convolve_waveform": {
        "frames of 800": lambda: [drawn(9, 800), drawn(80, 251)],
        "odd": lambda: [drawn(13, 77), drawn(11, 31)],
        "shorter than the filters": lambda: [drawn(8, 5), drawn(10, 101)],
    },
    "band_convolutions": {
        "frames of 400": lambda: [drawn(560, 400), *attention_weights()],
        "odd steps": lambda: [drawn(515, 249), *attention_weights()],
        "the shortest": lambda: [drawn(512, 217), *attention_weights()],
    },
    "gru_steps": {
        "one sequence": lambda: [drawn(1, 5, 3 * 512, scale=2), drawn(512, 3 * 512, scale=512**-0.5)],
        "eleven": lambda: [drawn(11, 4, 3 * 272, scale=2), drawn(272, 3 * 272, scale=272**-0.5)],
        "one step": lambda: [drawn(3, 1, 3 * 256, scale=2), drawn(256, 3 * 256, scale=256**-0.5)],
        "few units": lambda: [drawn(3, 4, 3 * 7, scale=2), drawn(7, 3 * 7)],
    },
    "multiply": {
        "matrices": lambda: [drawn(300, 37), drawn(37, 20)],
        "sequences": lambda: [drawn(3, 10, 64), drawn(64, 48)],
        "few rows of a long kernel": lambda: [drawn(1, 7, 1024), drawn(1024, 2048)],
        "a part of a kernel": lambda: [drawn(10, 1024), drawn(1024, 3 * 2048).split(2048, dim=1)[1]],
        "a kernel that lies transposed": lambda: [drawn(9, 64), drawn(33, 64).T],
    },
    "linear": {
        "for evaluation": lambda: [drawn(75, 2100), drawn(1024, 2100, scale=0.02), drawn(1024)],
        "usual": lambda: [drawn(75, 2100), drawn(1024, 2100, scale=0.02), drawn(1024)],
        "few": lambda: [drawn(3, 65), drawn(10, 65), drawn(10)],
    },
    "norm": {
        "channels": lambda: [drawn(5, 10, 33), drawn(10, 33), drawn(10, 33), 0.2],
        "chunks": lambda: [drawn(6, 101), drawn(101), drawn(101)],
        "a constant row": lambda: [torch.cat([drawn(4, 10, 33), torch.ones(1, 10, 33).double()]), drawn(10, 33), drawn(10, 33)],
    },
    "sinc_pool": {
        "usual": lambda: [drawn(4, 3200), mirrored(80, 251)],
        "odd": lambda: [drawn(5, 301), mirrored(7, 51)],
        "long": lambda: [drawn(4, 9000), mirrored(10, 401)],
    },
    "conv_layers": {
        "two": lambda: [drawn(5, 520), mirrored(10, 51), 0.2, *conv_weights(10, 156), *conv_weights(20, 50, 10)],
        "the filters alone": lambda: [drawn(9, 301), mirrored(10, 51), 0.2, *conv_weights(10, 83)],
        "a long chunk": lambda: [
            *(drawn(4, 7000), mirrored(30, 51), 0.2, *conv_weights(30, 2316)),
            *(*conv_weights(20, 770, 30), *conv_weights(40, 255, 20)),
        ],
    },
    "conv_pool": {
        "usual": lambda: [drawn(4, 80, 327), drawn(60, 80, 5), drawn(60)],
        "odd": lambda: [drawn(5, 10, 32), drawn(20, 10, 4), drawn(20)],
    },
}
TRIALS = [
    pytest.param(backend, name, case, id=f"{backend}-{name}-{case.replace(' ', '_')}")
    for backend in BACKENDS
    for name in BACKENDS[backend]
    for case in CASES[name]
]


def arguments(name: str, case: str, dtype: torch.dtype = torch.float64, gradients: bool = True, draw: int = 0) -> list:
    torch.manual_seed(len(case) + 1000 * draw)
    made = CASES[name][case]()
    tensors = [t.to(dtype) if isinstance(t, Tensor) else t for t in made]
    first = name in ("convolve_waveform",)  # nobody wants gradients of a waveform, and the fast path has none
    gradients = gradients and name != "conv_layers" and case != "for evaluation"  # some fast paths are for that alone
    return [
        t.requires_grad_(gradients and not (first and i == 0)) if isinstance(t, Tensor) and t.is_leaf else t
        for i, t in enumerate(tensors)
    ]


def compute(name: str, args: list, backend: str) -> Tensor:
    with using(backend):
        return OPERATIONS[name](*args)


def results(name: str, args: list, backend: str, weight: Tensor | float = 1.0) -> list[Tensor]:
    """The result, and the gradients of all that has some, from the result's elements by `weight`."""
    y = compute(name, args, backend)
    torch.manual_seed(1)
    cotangent = (weight * torch.randn(y.shape, dtype=torch.float64)).to(y.dtype)
    wanted = [t for t in args if isinstance(t, Tensor) and t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, cotangent)] if wanted else [y]


def doubled(args: list) -> list:
    return [t.detach().double().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t for t in args]


def skip_unless_taken(backend: str, name: str, args: list) -> None:
    if reason := BACKENDS[backend][name][0](*args):
        pytest.skip(f"{backend} does not take it: {reason}")


def spread(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / (expected.norm() or 1))


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).abs().max() / (expected.abs().max() or 1))


@pytest.mark.parametrize(("backend", "name", "case"), TRIALS)
def test_float64_is_the_plain_text(backend, name, case):
    args = arguments(name, case)
    skip_unless_taken(backend, name, args)
    for found, expected in zip(results(name, args, backend), results(name, args, "plain"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def lead(bands: Tensor) -> Tensor:
    """By how much the largest of each three steps leads, or is above 0: the gradient goes to it alone, with its sign."""
    best, second, _ = bands.unfold(-1, sincnet.POOL, sincnet.POOL).sort(dim=-1, descending=True)[0].unbind(-1)
    return torch.minimum(best - second, best.abs())


def decided(name: str, args: list) -> Tensor | float:
    """True where a result's gradient is no matter of rounding: no ReLU or tie that it goes through is that near."""
    if name == "band_convolutions":
        h, near = args[0][:, :, None], []
        for weight, bias, stride in zip(args[1::2], args[2::2], (2, 3, 3), strict=True):
            h = layers.conv1d(h, weight, bias, stride=stride)
            near.append((h.abs() <= MARGIN * h.abs().max()).flatten(1))
            h = h.relu()
        return ~(near[2] | (near[0].any(1) | near[1].any(1))[:, None])
    if name == "sinc_pool":
        filters = args[1] + args[1].flip(1)
        distance = lead(F.conv1d(args[0][:, None], filters[:, None]).abs())
    elif name == "conv_pool":
        distance = lead(F.conv1d(*args))
    elif name == "norm":
        distance = sincnet.norm(*args).abs()
    else:
        return 1.0
    return distance > MARGIN * distance.max()


@pytest.mark.parametrize(("backend", "name", "case"), TRIALS)
def test_float32_is_as_near_to_float64_as_the_plain_text(backend, name, case):
    """At most twice its error, by the norm over DRAWS; and the largest, which luck decides, at most four times."""
    worst = []  # (draw, measure, whose, result or gradient)
    for draw in range(DRAWS):
        args = arguments(name, case, torch.float32, draw=draw)
        skip_unless_taken(backend, name, args)
        weight = decided(name, doubled(args))
        truth = results(name, doubled(args), "plain", weight)
        both = [list(zip(results(name, args, which, weight), truth, strict=True)) for which in (backend, "plain")]
        worst.append([[[measure(y, exact) for y, exact in pairs] for pairs in both] for measure in (spread, error)])
    (found, plain), (found_largest, plain_largest) = torch.tensor(worst).square().mean(0).sqrt()
    assert (found <= 2 * plain.clamp(min=2.0**-24)).all(), (found, plain)
    assert (found_largest <= 4 * plain_largest.clamp(min=2.0**-23)).all(), (found_largest, plain_largest)


@pytest.mark.parametrize(("backend", "name", "case"), TRIALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inputs_that_do_not_lie_in_one_piece(backend, name, case, dtype):
    args = arguments(name, case, dtype, gradients=False)
    apart = [torch.stack([t, t], dim=-1)[..., 0] if isinstance(t, Tensor) else t for t in args]
    skip_unless_taken(backend, name, apart)
    torch.testing.assert_close(compute(name, apart, backend), compute(name, args, "plain"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("backend", "name", "case"), TRIALS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_no_number_is_none_in_the_same_places(backend, name, case, dtype):
    """In the input, and in each of the weights."""
    args = arguments(name, case, dtype, gradients=False)
    skip_unless_taken(backend, name, args)
    for i, tensor in enumerate(args):
        if not isinstance(tensor, Tensor):
            continue
        spoilt = tensor.clone(memory_format=torch.preserve_format)
        spoilt[tuple(n // 2 for n in tensor.shape)] = torch.nan
        with_it = [*args[:i], spoilt, *args[i + 1 :]]
        found, expected = (compute(name, with_it, b).isnan() for b in (backend, "plain"))
        assert expected.any()
        assert torch.equal(found, expected), f"argument {i}: {int(found.sum())} are none, {int(expected.sum())} should be"


@pytest.mark.parametrize(("backend", "name", "case"), TRIALS)
def test_results_do_not_depend_on_the_number_of_threads(backend, name, case):
    args = arguments(name, case, torch.float32)
    skip_unless_taken(backend, name, args)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(results(name, args, backend))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert backend != "numba_cpu" or torch.equal(found[0][0], other[0])
        for one, another in zip(found[0], other, strict=True):  # PyTorch's own products share out sums as they like
            assert error(another, one) <= 1e-5


@pytest.mark.parametrize(("backend", "name", "case"), TRIALS)
def test_bfloat16_autocast_is_as_near_to_float64_as_the_plain_text(backend, name, case):
    args = arguments(name, case, torch.float32)
    truth = results(name, doubled(args), "plain")
    with torch.autocast("cpu", torch.bfloat16):
        skip_unless_taken(backend, name, args)
        found, plain = results(name, args, backend), results(name, args, "plain")
    for one, other, exact in zip(found, plain, truth, strict=True):
        assert (one.double() - exact).norm() <= 2 * (other.double() - exact).norm() + 1e-6 * exact.norm()


@pytest.mark.parametrize(("backend", "name", "case"), TRIALS)
def test_gradients_of_gradients_are_refused_by_name_or_right(backend, name, case):
    args = arguments(name, case)
    skip_unless_taken(backend, name, args)
    wanted = [t for t in args if isinstance(t, Tensor) and t.requires_grad]
    if not wanted:
        return

    def twice(which: str) -> tuple:
        first = torch.autograd.grad(compute(name, args, which).square().sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(slope.square().sum() for slope in first), wanted, allow_unused=True)

    try:
        found = twice(backend)
    except RuntimeError as refused:
        assert 'denet_torch.using("plain")' in str(refused)
        return
    for one, another in zip(found, twice("plain"), strict=True):
        torch.testing.assert_close(one, another)


@pytest.mark.parametrize(("backend", "name", "case"), TRIALS)
def test_frozen_weights_or_inputs(backend, name, case):
    """Gradients of a part alone are those of all."""
    args = arguments(name, case)
    skip_unless_taken(backend, name, args)
    wanted = [i for i, t in enumerate(args) if isinstance(t, Tensor) and t.requires_grad]
    whole = dict(zip(wanted, results(name, args, backend)[1:], strict=True))
    for i in wanted:
        alone = [t.detach().requires_grad_(j == i) if isinstance(t, Tensor) else t for j, t in enumerate(args)]
        torch.testing.assert_close(results(name, alone, backend)[1], whole[i])


EMPTY = {
    "convolve_waveform": [(0, 100), (12, 31)],
    "band_convolutions": [(0, 250), (30, 1, 7), (30,), (30, 30, 7), (30,), (10, 30, 7), (10,)],
    "gru_steps": [(0, 3, 768), (256, 768)],
    "multiply": [(0, 64), (64, 32)],
    "norm": [(0, 10, 33), (10, 33), (10, 33)],
    "sinc_pool": [(0, 301), (10, 51)],
    "conv_pool": [(0, 10, 32), (20, 10, 5), (20,)],
}


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_in_nothing_out(name):
    args = [torch.zeros(shape) for shape in EMPTY[name]]
    assert torch.equal(OPERATIONS[name](*args), compute(name, args, "plain")) and len(OPERATIONS[name](*args)) == 0


def used(function, *args) -> dict[str, set[str]]:
    """The backends that took each operation while function(*args) ran."""
    notes = []
    before, dispatch._notes = dispatch._notes, notes
    try:
        function(*args)
    finally:
        dispatch._notes = before
    found: dict[str, set[str]] = {}
    for what, backend, _ in notes:
        found.setdefault(what.split()[0], set()).add(backend)
    return found


def test_the_usual_sizes_take_the_fast_paths():
    pytest.importorskip("numba")
    model = denet_torch.get_denet((10, 800), 2, gru_units=256, dense_units=(16, 16)).eval()
    with torch.no_grad(), using("numba_cpu", "torch_ops"):
        found = used(model, torch.zeros(1, 10, 800))
    compiled = dict.fromkeys(("convolve_waveform", "band_convolutions", "gru_steps"), {"numba_cpu"})
    assert found == compiled | {"multiply": {"torch_ops"}}
    with using("numba_cpu", "torch_ops"):
        rows = used(layers.multiply, torch.zeros(1, 10, 1024), torch.zeros(1024, 2048))
    assert rows == {"multiply": {"numba_cpu"}}
    small = denet_torch.get_denet((2, 400), 2, n_filters=4, gru_units=8, dense_units=(8, 8)).eval()
    assert used(small, torch.zeros(1, 2, 400))["band_convolutions"] == {"plain"}


def test_using():
    x, kernel = torch.randn(20, 4), torch.randn(4, 3)
    with using("plain"):
        assert used(layers.multiply, x, kernel) == {"multiply": {"plain"}}
        with using("torch_ops"):
            assert used(layers.multiply, x, kernel) == {"multiply": {"torch_ops"}}
    with pytest.raises(ValueError, match=f"'cuda' is no backend: there are {', '.join(sorted(BACKENDS))}, plain"), using("cuda"):
        pass


def test_explain_says_who_and_why_not(capsys):
    denet_torch.explain(denet_torch.get_denet((2, 400), 2, n_filters=4, gru_units=8, dense_units=(8, 8)), torch.zeros(1, 2, 400))
    text = capsys.readouterr().out
    assert "band_convolutions (8, 400): plain; not numba_cpu: fewer than 512 bands" in text
    assert "gru_steps (1, 2, 24): torch_ops; not numba_cpu: fewer than 256 units" in text


WITHOUT = """
import sys, warnings
sys.modules["numba"] = None
import torch, denet_torch
model = denet_torch.get_denet((10, 400), 2, gru_units=256, dense_units=(8, 8))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(2):
        model(torch.randn(1, 10, 400)).square().sum().backward()
    model.predict_proba(torch.randn(1, 10, 400))
said = [str(warning.message) for warning in said if "numba" in str(warning.message)]
assert len(said) == 1 and "pip install numba" in said[0], said
assert all(p.grad.isfinite().all() for p in model.parameters())
"""


def test_without_numba_the_model_predicts_trains_and_says_once_how_to_get_it():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


THROWAWAY = """
import torch
from denet_torch import dispatch

def not_for(x, kernel):
    if torch.is_autocast_enabled(x.device.type):
        return "autocast chooses the type of a plain product"
    return None if x.numel() else "nothing to multiply"

def multiply(x, kernel):
    return {factor} * torch.einsum("...i,io->...o", x, kernel)

dispatch.BACKENDS = {{"throwaway": {{"multiply": (not_for, multiply)}}}} | dispatch.BACKENDS
"""


@pytest.mark.parametrize(("factor", "right"), [(1, True), (1.001, False)], ids=["right", "wrong"])
def test_a_new_backend_is_held_to_all_of_this_once_it_has_a_name(tmp_path, factor, right):
    (tmp_path / "throwaway.py").write_text(THROWAWAY.format(factor=factor))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = ["-p", "throwaway", "-p", "no:cacheprovider", "-q", __file__, "-k", "throwaway-multiply"]
    command = [sys.executable, "-m", "pytest", *options]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (ran.returncode, "passed" in ran.stdout) == ((0, True) if right else (1, True)), ran.stdout
