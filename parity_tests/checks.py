"""The comparisons and their bars. Each raises AssertionError with a message that begins with the layer's name."""

from statistics import median

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

from parity_tests import sides
from parity_tests.cases import CASES
from parity_tests.report import Report
from parity_tests.sides import MARGIN, Case, Numbers

REFERENCE_BAR = 1e-10  # float64 port against float64 reference
HALF_ULP = 2**-24  # what rounding an exact result to float32 costs: no program can promise less
MEDIAN_RATIO, WORST_RATIO = 1.0, 4.0  # float32 error of the port over TensorFlow's


def error(actual, expected, scale=None) -> float:
    """Largest difference, relative to the largest magnitude of `expected` (or of `scale`); absolute where that is 0."""
    if np.shape(actual) != np.shape(expected):
        return np.inf
    difference = np.abs(np.asarray(actual, "float64") - expected).max()
    magnitude = np.abs(expected if scale is None else scale).max()
    return float(difference / (magnitude or 1))


def errors(case: Case, actual: sides.Result, expected: sides.Result) -> dict[str, float]:
    """Error of each array of a result."""
    scales = {f"grad/{bias}": expected[f"grad/{weight}"] for bias, weight in case.zero_gradients.items()}
    return {key: error(actual[key], expected[key], scales.get(key)) for key in expected}


def largest(errors: dict[str, float], gradient: bool) -> float:
    return max((e for key, e in errors.items() if key.startswith("grad/") == gradient), default=0.0)


def numbers_off_kinks(case: Case, seed: int) -> tuple[Numbers, int]:
    """Draw the numbers of a case, again until no unit is within `MARGIN` of a kink; and how often that was."""
    state = sides.compared_state(sides.build_port(case))
    for redraws in range(50):
        numbers = sides.draw(case, state, seed + 1000 * redraws)
        if sides.kink_margin(case, numbers) > MARGIN:
            return numbers, redraws
    raise AssertionError(f"no numbers off the kinks for {case.settings}")


def check_reference(layer: str, report: Report, examples: int) -> None:
    """The port against `reference_tf` over `examples` drawn cases: float64 within the bar, float32 no worse than TensorFlow's."""
    ratios, port_errors, tensorflow_errors = [], [], []
    seeds = iter(range(0, 10**9, 100_000))

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # a case is small as drawn; shrinking would run TensorFlow a thousand times
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=CASES[layer]())
    def compare(case):
        numbers, redraws = numbers_off_kinks(case, next(seeds))
        port64 = sides.run_port(case, numbers, "float64")
        names = [key.removeprefix("grad/") for key in port64 if key.startswith("grad/") and key != "grad/x"]
        truth = sides.run_reference(case, numbers, "float64", names)
        exact = errors(case, port64, truth)
        for key, value in exact.items():
            assert value <= REFERENCE_BAR, f"{layer}: {key} is off by {value:.1e} in float64 at {case.settings}"
        port = errors(case, sides.run_port(case, numbers, "float32"), truth)
        tensorflow = errors(case, sides.run_reference(case, numbers, "float32", names), truth)
        for column, found in (("float64", exact), ("float32", port), ("tensorflow float32", tensorflow)):
            report.add(layer, f"forward {column}", largest(found, gradient=False))
            report.add(layer, f"gradient {column}", largest(found, gradient=True))
        report.count(layer, "cases", 1)
        report.count(layer, "redrawn", redraws)
        port_errors.append(max(*port.values(), HALF_ULP))
        tensorflow_errors.append(max(*tensorflow.values(), HALF_ULP))
        ratios.append(port_errors[-1] / tensorflow_errors[-1])

    compare()
    report.add(layer, "median ratio", median(port_errors) / median(tensorflow_errors))
    report.add(layer, "worst ratio", max(ratios))
    assert max(ratios) <= WORST_RATIO, f"{layer}: float32 error {max(ratios):.2f} times TensorFlow's own in one case"
    assert median(port_errors) <= MEDIAN_RATIO * median(tensorflow_errors), (
        f"{layer}: median float32 error {median(port_errors):.2e}, TensorFlow's own {median(tensorflow_errors):.2e}"
    )
