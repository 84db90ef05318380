"""The parity report: one row a layer, the largest error of each kind that the run saw."""

import json
import os
from pathlib import Path

ALL = "all layers"

COLUMNS = {
    "forward float64": "forward, float64",
    "gradient float64": "gradient, float64",
    "forward float32": "forward, float32",
    "gradient float32": "gradient, float32",
    "forward tensorflow float32": "TensorFlow forward, float32",
    "gradient tensorflow float32": "TensorFlow gradient, float32",
    "median ratio": "median ratio",
    "worst ratio": "worst ratio",
    "forward recording": "forward, recordings",
    "gradient recording": "gradient, recordings",
    "forward tensorflow recording": "TensorFlow forward, recordings",
    "gradient tensorflow recording": "TensorFlow gradient, recordings",
    "cases": "cases",
    "near a kink": "near a kink",
}

LEGEND = """\
Errors are the largest difference relative to the largest magnitude of the array, the largest over all cases and arrays. float64
and float32 are the port against reference_tf in float64; TensorFlow is reference_tf in float32 against itself in float64.
A case's ratio is the port's float32 error over TensorFlow's, each the largest over its outputs and gradients and at least half a
unit in the last place; in the worst ratio TensorFlow's is at least one unit. Recordings are those of the original, in float32, by
the port and by reference_tf.
Near a kink: cases with a unit within 1e-6 of one (a ReLU's zero, a tie of a pool, an end of the hard sigmoid), where float32 may
decide either way; left out of the float32 figures. The last row pools the cases of all layers in which the two errors differ.
"""


class Report:
    """Figures by layer and column; of several processes the largest."""

    def __init__(self, rows: dict[str, dict[str, float]] | None = None):
        self.rows = rows or {}
        self.cases: dict[tuple[str, str], list[float]] = {}  # (layer, column): each case's largest error

    def case(self, layer: str, column: str, value: float) -> None:
        self.cases.setdefault((layer, column), []).append(value)

    def add(self, layer: str, column: str, value: float) -> None:
        row = self.rows.setdefault(layer, {})
        row[column] = max(row.get(column, 0.0), float(value))

    def count(self, layer: str, column: str) -> None:
        row = self.rows.setdefault(layer, {})
        row[column] = row.get(column, 0) + 1

    def merge(self, rows: dict[str, dict[str, float]]) -> None:
        for layer, row in rows.items():
            mine = self.rows.setdefault(layer, {})
            for column, value in row.items():
                mine[column] = max(mine.get(column, value), value)

    def sorted_rows(self) -> dict[str, dict[str, float]]:
        """Rows in the order of `layers.py`, the whole model last."""
        from parity_tests.cases import CASES

        return {layer: self.rows[layer] for layer in (*CASES, ALL) if layer in self.rows}

    def markdown(self) -> str:
        def text(value):
            if value is None or isinstance(value, int):
                return str(value or "")
            return f"{value:.1e}" if value < 0.01 else f"{value:.2f}"

        lines = [["layer", *COLUMNS.values()], ["---"] * (1 + len(COLUMNS))]
        lines += [[layer, *(text(row.get(column)) for column in COLUMNS)] for layer, row in self.sorted_rows().items()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + LEGEND

    def write(self, folder: Path) -> None:
        """Write parity_report.md and parity_report.json."""
        for name, text in (
            ("parity_report.md", self.markdown()),
            ("parity_report.json", json.dumps(self.sorted_rows(), indent=1) + "\n"),
        ):
            part = folder / f"{name}.part"
            part.write_text(text)
            os.replace(part, folder / name)
