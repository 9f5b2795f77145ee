"""The accuracy that is promised: block 0 of the sample of benchmarks/accuracy.py, and every float16 and bfloat16 input,
against the promise of the instruction table and against docs/accuracy.md."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import dvm_rt as dvm
from benchmarks import accuracy
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


ROOTS = {  # between these lies at most one
    "lgamma": [z for n in range(2, 17) for z in ((-n - 0.5, -n), (-n - 1, -n - 0.5))],
    "digamma": [(-n - 1, -n) for n in range(40)],
}


def neighbourhood(name: str) -> np.ndarray:
    """Float64 at and around the zeros of a gamma function, next to its poles, and where its formulas meet."""
    import mpmath

    def function(x: mpmath.mpf) -> mpmath.mpf:
        return mpmath.log(abs(mpmath.gamma(x))) if name == "lgamma" else mpmath.digamma(x)

    roots = [1.0, 2.0] if name == "lgamma" else [1.4616321449683622]
    with mpmath.workprec(200):
        for low, high in ROOTS[name]:
            ends = (low + mpmath.mpf(2) ** -60, high - mpmath.mpf(2) ** -60)
            if function(ends[0]) * function(ends[1]) < 0:
                roots.append(float(mpmath.findroot(function, ends, solver="anderson", tol=1e-80, maxsteps=500)))
    steps = np.concatenate([np.arange(-3, 4), 2.0 ** np.arange(3, 50, 2), -(2.0 ** np.arange(3, 50, 2))])
    around = [root + steps * abs(np.spacing(root)) for root in np.array(roots)]
    poles = [-n + side * 2.0 ** -np.arange(3.0, 48, 3) for n in range(41) for side in (1, -1)]
    joints = [np.array([c, np.nextafter(c, 99), np.nextafter(c, -99)]) for c in (-34.0, -23.0, 0.5, 8.0, 24.0, 2.0**-60, -(2.0**-60))]
    x = np.concatenate([*around, *poles, *joints])
    return x[(x > 0) | (x != np.rint(x))]


@pytest.mark.parametrize("name", ROOTS)
def test_gamma_functions_of_float64_around_zeros_and_poles(name: str) -> None:
    """Within the promise, but for digamma next to its zeros below 0, whose error stays below 2^-103."""
    row, x = table.BY_NAME[name], neighbourhood(name)
    got, want = accuracy.run(row, "float64", x), accuracy.exact(row, "float64", x)
    error, small = accuracy.distances(got, want, "float64"), np.abs(got) < 2.0**-44
    assert small.sum() > 30
    wrong = (error > row.ulp) & ~((name == "digamma") & small & (np.abs(got - want) <= 2.0**-103))
    assert not wrong.any(), [(x[i], got[i], error[i]) for i in np.flatnonzero(wrong)[:5]]


def test_limits_of_gamma_functions_of_float64() -> None:
    inf, nan = np.inf, np.nan
    cases = [  # x, lgamma, digamma
        (nan, nan, nan), (inf, inf, inf), (-inf, inf, nan), (0.0, inf, -inf), (-0.0, inf, inf), (1.0, 0.0, -0.5772156649015329),
        (2.0, 0.0, 0.42278433509846714), (-1.0, inf, nan), (-2.0, inf, nan), (-40.0, inf, nan), (-(2.0**53), inf, nan),
        (-1e300, inf, nan), (1e308, inf, 709.1962086421661), (5e-324, 744.4400719213812, -inf), (-5e-324, 744.4400719213812, inf),
        (1e-300, 690.7755278982137, -1 / 1e-300), (2.0**60, 4.679573591490311e19, 41.58883083359672),
    ]  # fmt: skip
    x, *wanted = (np.array(column) for column in zip(*cases, strict=True))
    for name, want in zip(("lgamma", "digamma"), wanted, strict=True):
        got = accuracy.run(table.BY_NAME[name], "float64", x)
        np.testing.assert_array_equal(got, want, err_msg=name)
        assert not np.signbit(got[want == 0]).any()
        assert np.array_equal(np.asarray(getattr(dvm, name)(dvm.asarray(x))).view(np.int64), got.view(np.int64))


def test_the_measure_itself() -> None:
    one = np.float32(1)
    above = np.nextafter(one, np.float32(2))
    got = np.array([1, above, np.inf, np.inf, -0.0, 0, np.nan, 1, 2.0**-149, 0], np.float32)
    want = np.array([1 + 2.0**-24, 1, np.inf, 2.0**128 - 2.0**103, 0, 2.0**-151, np.nan, np.nan, 2.0**-149 * 1.5, -1])
    expected = [0.5, 1, 0, 0.5, np.inf, 0.25, 0, np.inf, 0.5, np.inf]
    np.testing.assert_array_equal(accuracy.distances(got, want, "float32"), expected)
