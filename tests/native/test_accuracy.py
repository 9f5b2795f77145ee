"""The accuracy that is promised: block 0 of the sample of benchmarks/accuracy.py, and every float16 and bfloat16 input,
against the promise of the instruction table and against docs/accuracy.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import accuracy
from dvm_rt.isa import table
from dvm_rt.isa.table import Group

DOCUMENT = Path(__file__).parents[2] / "docs" / "accuracy.md"
HALVES = ("float16", "bfloat16")
ROWS = [(name, dtype) for name in accuracy.NAMES for dtype in accuracy.dtypes_of(table.BY_NAME[name])]
EXACT = [
    (i.name, dtype)
    for i in table.INSTRUCTIONS
    if i.group is Group.UNARY and not i.ulp and "float32" in i.compute_dtypes and not i.name.startswith("to_")
    for dtype in HALVES
]


def documented() -> dict[tuple[str, str], list[str]]:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    return {(cells[0], cells[1]): cells for cells in lines if cells[0] in table.BY_NAME}


def test_the_document_has_every_function_and_no_broken_promise() -> None:
    lines = documented()
    assert set(lines) == set(ROWS)
    for (name, dtype), cells in lines.items():
        assert float(cells[2]) == table.BY_NAME[name].ulp
        assert float(cells[3]) <= table.BY_NAME[name].ulp, f"{name} {dtype}"


@pytest.mark.parametrize(("name", "dtype"), ROWS)
def test_promised_and_documented_accuracy(name: str, dtype: str) -> None:
    """A sample that is part of the documented one; float16 and bfloat16: every input."""
    measured = accuracy.measure(name, dtype, range(1))
    said = f"{name} {dtype}: {measured.maximum} ulp at {measured.worst}"
    assert measured.maximum <= table.BY_NAME[name].ulp, said
    assert measured.maximum <= float(documented()[name, dtype][3]) + 0.01, said
    if dtype in HALVES:
        assert measured.count == 1 << 16


@pytest.mark.parametrize(("name", "dtype"), EXACT)
def test_exact_functions_of_16_bits_over_all_inputs(name: str, dtype: str) -> None:
    """What is exact or correctly rounded in float32 is at most one rounding away from correct in 16 bits."""
    measured = accuracy.measure(name, dtype, range(1))
    assert measured.count == 1 << 16 and measured.maximum <= 0.51, f"{measured.maximum} ulp at {measured.worst}"


def test_the_measure_itself() -> None:
    one = np.float32(1)
    above = np.nextafter(one, np.float32(2))
    got = np.array([1, above, np.inf, np.inf, -0.0, 0, np.nan, 1, 2.0**-149, 0], np.float32)
    want = np.array([1 + 2.0**-24, 1, np.inf, 2.0**128 - 2.0**103, 0, 2.0**-151, np.nan, np.nan, 2.0**-149 * 1.5, -1])
    expected = [0.5, 1, 0, 0.5, np.inf, 0.25, 0, np.inf, 0.5, np.inf]
    np.testing.assert_array_equal(accuracy.distances(got, want, "float32"), expected)
