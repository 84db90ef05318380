"""The comparisons and their bars. Each raises AssertionError with a message that begins with the layer's name."""

import math
import zlib
from statistics import median

from hypothesis import HealthCheck, Phase, given, settings

from parity_tests import recordings, sides
from parity_tests.cases import CASES
from parity_tests.port_side import error, errors
from parity_tests.report import Report

RECORDED = sorted({"BatchNorm", *(recording.layer for recording in recordings.RECORDINGS.values())})

REFERENCE_BAR = 1e-10  # float64 port against float64 reference
HALF_ULP = 2**-24  # what rounding an exact result to float32 costs: no program can promise less
# A case with a unit closer to a kink than this part of its array's largest magnitude (see `sides.kink_margins`) is left out of
# the float32 comparison and counted in the report.
MARGIN = 1e-6
WORST_RATIO = 4.0  # float32 error of the port over TensorFlow's own, in one case
LUCK = 1e-3


def add(report: Report, layer: str, column: str, errors: dict[str, float]) -> None:
    """Note the errors of a result, forward and gradient apart."""
    report.case(layer, column, max(errors.values()))
    for key, value in errors.items():
        report.add(layer, f"{'gradient' if key.startswith('grad/') else 'forward'} {column}", value)


def check_reference(layer: str, report: Report, examples: int) -> list[float]:
    """The port in float64 against `reference_tf` over `examples` drawn cases.

    Returns, for every case off the kinks, the ratio of the port's float32 error to TensorFlow's own, each the largest over the
    outputs and the gradients of the case: what `check_float32` judges.
    """
    ratios = []

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
        fresh = sides.build_port(case)
        names = sides.gradient_names(fresh)
        seed = zlib.crc32(repr(case.settings).encode()) // 2
        numbers = sides.draw(case, sides.compared_state(fresh), seed)
        with sides.kink_margins() as margins:
            truth = sides.run_reference(case, numbers, "float64", names)
        exact = errors(case, sides.run_port(case, numbers, "float64"), truth)
        for key, value in exact.items():
            assert value <= REFERENCE_BAR, f"{layer}: {key} is off by {value:.1e} in float64 at {case.settings}"
        add(report, layer, "float64", exact)
        report.count(layer, "cases")
        if min(margins) < MARGIN:
            report.count(layer, "near a kink")
            return
        port = errors(case, sides.run_port(case, numbers, "float32"), truth)
        tensorflow = errors(case, sides.run_reference(case, numbers, "float32", names), truth)
        add(report, layer, "float32", port)
        add(report, layer, "tensorflow float32", tensorflow)
        ratios.append(max(*port.values(), HALF_ULP) / max(*tensorflow.values(), HALF_ULP))

    compare()
    return ratios


def check_float32(layer: str, report: Report, ratios: list[float], cases: dict[tuple[str, str], list[float]]) -> None:
    """The port's float32 error is never much larger than TensorFlow's own, and not larger in the median.

    Both sides round the same operations, so that a layer's median is 1 give or take the luck of the draw and of the processor:
    what fails is a layer that the port has farther from float64 in more cases than luck explains.
    """
    larger, smaller = sum(r > 1 for r in ratios), sum(r < 1 for r in ratios)
    report.add(layer, "median ratio", median(ratios))
    # A sum that came out within a unit in the last place was lucky, and with another vector width would not be.
    pairs = zip(cases[layer, "float32"], cases[layer, "tensorflow float32"], strict=True)
    worst = max(port / max(tensorflow, 2 * HALF_ULP) for port, tensorflow in pairs)
    report.add(layer, "worst ratio", worst)
    assert worst <= WORST_RATIO, f"{layer}: float32 error {worst:.2f} times TensorFlow's own in one case"
    assert sign_test(larger, smaller) >= LUCK, f"{layer}: float32 error above TensorFlow's in {larger} cases, below in {smaller}"


def sign_test(larger: int, smaller: int) -> float:
    """Chance of at least `larger` heads in `larger + smaller` throws of a coin."""
    throws = larger + smaller
    return sum(math.comb(throws, heads) for heads in range(larger, throws + 1)) / 2**throws


def check_recordings(layer: str, report: Report, side: str = "port") -> None:
    """One side, "port" or "reference", in float32 against every recording of the layer, initial weights included."""
    names = [name for name, recording in recordings.RECORDINGS.items() if recording.layer == layer]
    if side == "port":
        found = {name: recordings.port_errors(name) for name in [*names, *["bn_train_steps"] * (layer == "BatchNorm")]}
    else:
        found = {name: reference_errors(name) for name in names}
        if layer == "BatchNorm":
            result, recorded = recordings.run_batch_norm(side)
            found["bn_train_steps"] = {key: error(result[key], recorded[key]) for key in recorded}
    for name, values in found.items():
        add(report, layer, "recording" if side == "port" else "tensorflow recording", values)
        for key, value in values.items():
            assert value <= recordings.bar(key), f"{layer}: {key} of the {side} is off by {value:.1e} from the recording {name}"


def reference_errors(name: str) -> dict[str, float]:
    case, numbers, recorded = recordings.read(name)
    return errors(case, sides.run_reference(case, numbers, "float32", list(numbers.state)), recorded)
