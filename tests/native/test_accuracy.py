"""The accuracy that is promised: block 0 of the sample of benchmarks/accuracy.py, and every float16 and bfloat16 input,
against the promise of the instruction table and against docs/accuracy.md."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import dvm_rt as dvm
from benchmarks import accuracy
from dvm_rt.errors import UnsupportedOperatorError
from dvm_rt.isa import table
from dvm_rt.isa.table import Group

from tests.native.test_special_values import LATTICE

DOCUMENT = Path(__file__).parents[2] / "docs" / "accuracy.md"
POLYNOMIALS = Path(__file__).parents[2] / "dvm_rt" / "native" / "polynomials.h"
HALVES = ("float16", "bfloat16")
ROWS = [(name, dtype) for name in accuracy.NAMES for dtype in accuracy.dtypes_of(table.BY_NAME[name])]
EXACT = [
    (i.name, dtype)
    for i in table.INSTRUCTIONS
    if i.group is Group.UNARY and not i.ulp and "float32" in i.compute_dtypes and not i.name.startswith("to_")
    for dtype in HALVES
]


def documented() -> dict[tuple[str, str], list[str]]:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCUMENT.read_text().splitlines()
             if line.startswith("| ")]
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
        assert measured.count == 1 << 16 and measured.maximum <= 0.51, said


@pytest.mark.parametrize(("name", "dtype"), EXACT)
def test_exact_functions_of_16_bits_over_all_inputs(name: str, dtype: str) -> None:
    """What is exact or correctly rounded in float32 is at most one rounding away from correct in 16 bits."""
    measured = accuracy.measure(name, dtype, range(1))
    assert measured.count == 1 << 16 and measured.maximum <= 0.51, f"{measured.maximum} ulp at {measured.worst}"


@pytest.mark.parametrize("name", ["erf", "tanh"])
def test_segments_meet(name: str) -> None:
    """Odd, never falling where x rises, at the borders of the segments too, and 1 from where the truth rounds to it."""
    head = re.findall(rf"{name.upper()}_SEGMENTS = .(\S+)f, (\S+)f, (\S+)f", POLYNOMIALS.read_text())[0]
    width, _, limit = map(float.fromhex, head)
    near = [np.float32((n + 0.5) * width).view(np.int32) + np.arange(-5000, 5000, dtype=np.int32) for n in range(15)]
    near.append(np.float32(limit).view(np.int32) + np.arange(-5000, 5000, dtype=np.int32))
    x = np.concatenate([np.sort(np.unique(near)).view(np.float32), np.float32([limit + 1, 100, 3e38, np.inf])])
    y = accuracy.run(table.BY_NAME[name], "float32", x)
    assert (np.diff(y) >= 0).all() and (y[x >= limit] == 1).all() and y.max() == 1
    np.testing.assert_array_equal(accuracy.run(table.BY_NAME[name], "float32", -x), -y)
    tiny = np.float32([0.0, -0.0, 1e-40, -1e-40, 1.2e-38])
    want = tiny * (1 if name == "tanh" else 2 / np.sqrt(np.pi))
    got = accuracy.run(table.BY_NAME[name], "float32", tiny)
    np.testing.assert_array_equal(got, want.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(got), np.signbit(tiny))


def test_logaddexp_of_float64_is_within_2_ulp_of_its_result_or_of_a_half() -> None:
    import mpmath

    rng, n = np.random.default_rng(20261123), 1500
    near = -np.log(2) + rng.standard_normal((2, n)) * 1e-3  # the terms cancel
    a = np.concatenate([rng.standard_normal(n) * 4, rng.uniform(-745, 709, n), rng.uniform(-1, 1, n), near[0]])
    b = np.concatenate([rng.standard_normal(n) * 4, a[n : 2 * n] + rng.standard_normal(n) * 10, rng.uniform(-1, 1, n), near[1]])
    got = np.asarray(dvm.logaddexp(dvm.asarray(a), dvm.asarray(b)))
    with mpmath.workprec(200):
        exact = [mpmath.log(mpmath.exp(mpmath.mpf(float(x))) + mpmath.exp(mpmath.mpf(float(y))))
                 for x, y in zip(a, b, strict=True)]
        error = np.array([float(abs(mpmath.mpf(float(g)) - e)) for g, e in zip(got, exact, strict=True)])
    unit = np.spacing(np.maximum(np.abs([float(e) for e in exact]), 0.5))
    assert (error / unit).max() <= 2


def test_logaddexp_of_float64_on_the_lattice() -> None:
    a, b = (v.ravel() for v in np.meshgrid(LATTICE["float64"], LATTICE["float64"]))
    got = np.asarray(dvm.logaddexp(dvm.asarray(a), dvm.asarray(b)))
    with np.errstate(all="ignore"):
        want = np.logaddexp(a.astype(np.longdouble), b.astype(np.longdouble))
        same = (got == want) | (np.isnan(got) & np.isnan(want))
        near = np.abs(got - want) <= 2 * np.spacing(np.maximum(np.abs(want.astype(np.float64)), 0.5))
    assert (same | near).all(), [(a[i], b[i], got[i]) for i in np.flatnonzero(~(same | near))[:5]]


@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_gamma_functions_of_float64_are_a_typed_error(name: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=rf"^graph: {name}: .*, got float64, allowed what is computed in float32$"):
        getattr(dvm, name)(dvm.asarray(np.ones(3)))


def test_the_measure_itself() -> None:
    one = np.float32(1)
    above = np.nextafter(one, np.float32(2))
    got = np.array([1, above, np.inf, np.inf, -0.0, 0, np.nan, 1, 2.0**-149, 0], np.float32)
    want = np.array([1 + 2.0**-24, 1, np.inf, 2.0**128 - 2.0**103, 0, 2.0**-151, np.nan, np.nan, 2.0**-149 * 1.5, -1])
    expected = [0.5, 1, 0, 0.5, np.inf, 0.25, 0, np.inf, 0.5, np.inf]
    np.testing.assert_array_equal(accuracy.distances(got, want, "float32"), expected)
