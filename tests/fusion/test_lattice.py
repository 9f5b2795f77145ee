"""Special values: every binary operator in every dtype over a lattice of that dtype's edges (zeros of both signs,
subnormals, limits, neighbours of 1, halves, infinities, NaN; the ends of integers, powers of two and their
neighbours, shifts beyond the width).

Integers, bools and comparisons are exact. Floats are held against NumPy's functions with more digits: what is exact or correctly
rounded by at most half a unit, the others by what their instruction promises; float16 and bfloat16 by the rounding of
their own."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import accuracy
from dvm_rt import dtypes
from dvm_rt.dtypes import DTYPES, DType, bool_
from dvm_rt.errors import DTypeError, UnsupportedOperatorError
from dvm_rt.fusion.fuser import fuse
from dvm_rt.graph.graph import Graph, evaluate
from dvm_rt.graph.operators import OPERATORS, Lowering
from dvm_rt.isa import table
from tests.fusion.running import run_plan
from tests.fusion.test_dtypes import graph_of
from tests.native.test_special_values import BINARY, LATTICE

Array = np.ndarray
NAMES = [name for name, row in OPERATORS.items() if row.inputs == 2 and row.lowering is Lowering.ELEMENTWISE]
HALVES = ("float16", "bfloat16")
FORMULAS = {"logaddexp": 2.0}  # in float64: ULP of the result, or of a half where that is larger


def lattice(dtype: DType) -> Array:
    """As stored."""
    if dtype is bool_:
        return np.array([False, True])
    if dtype.kind in "iu":
        low, high = dtypes.limits(dtype)
        edges = {n + d for n in (0, low, high, 7, 8 * dtype.bytes, 1 << 4 * dtype.bytes, 10)
                 for d in (-2, -1, 0, 1, 2)} | {-high, low // 2, high // 3, 100}
        return np.array(sorted(n for n in edges if low <= n <= high), dtype.numpy)
    if dtype.name in LATTICE:
        return LATTICE[dtype.name]
    digits, smallest = accuracy.PRECISION[dtype.name]
    tiny, eps = 2.0**smallest, 2.0 ** (1 - digits)
    largest = (2 - eps) * 2.0 ** accuracy.LARGEST_EXPONENT[dtype.name]
    positive = [0, 1, 0.5, 1.5, 2, 2.5, 3, 0.1, 0.75, 10, 88, 104, 128, 150, 1 / eps, 2 / eps + 2, 1 - eps / 2,
                1 + eps, eps, tiny, tiny * eps,
                tiny * (1 - eps), 5 * tiny * eps, largest, largest / 2, np.inf]  # fmt: skip
    return dtypes.to_storage(np.array([*positive, *(-x for x in positive), np.nan]), dtype)


def graph(name: str, dtype: DType, shape: tuple[int, ...]) -> Graph | None:
    """None: it does not take the dtype."""
    try:
        return graph_of(lambda op, x, y: getattr(op, name)(x, y), [(dtype, shape)] * 2)
    except (DTypeError, UnsupportedOperatorError):
        return None


CASES = [(name, dtype) for name in NAMES for dtype in DTYPES if graph(name, dtype, (3,)) is not None]


def test_every_binary_operator_is_here_in_the_dtypes_that_it_takes() -> None:
    assert {name for name, _ in CASES} == set(NAMES)
    assert len(CASES) > 200 and {("add", d) for d in DTYPES if d is not bool_} <= set(CASES)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda x: str(x))
def test_on_the_lattice(name: str, dtype: DType) -> None:
    values = lattice(dtype)
    x, y = (np.ascontiguousarray(v.ravel()) for v in np.meshgrid(values, values, indexing="ij"))
    made = graph(name, dtype, x.shape)
    assert made is not None
    got = run_plan(fuse(made).plan, [x, y])[0]
    result = made.outputs[0].dtype
    if result.kind != "f":
        want = evaluate(made, [x, y])[0].astype(result.numpy)
        wrong = np.flatnonzero(got != want)
        assert not wrong.size, [(x[i], y[i], got[i], want[i]) for i in wrong[:5]]
        return
    error, allowed = distances(name, dtype, x, y, got)
    worst = int(np.argmax(error))
    assert error[worst] <= allowed, f"{x[worst]!r}, {y[worst]!r}: {got[worst]!r}, {error[worst]} ulp, allowed {allowed}"


def next_bfloat16(x: Array, y: Array) -> Array:
    """What np.nextafter is to NumPy's floats: bits count from -infinity up once their sign is a direction."""
    a, b = (dtypes.from_storage(v, dtypes.bfloat16) for v in (x, y))
    bits = x.astype(np.int32)
    grows = (a < b) == (bits < 0x8000)
    beside_zero = np.where(b < 0, 0x8001, 1)
    moved = np.where(a == 0, beside_zero, bits + np.where(grows, 1, -1))
    return np.where(np.isnan(a) | np.isnan(b), 0x7FC0, np.where(a == b, y, moved)).astype(np.uint16)


@pytest.mark.parametrize("dtype", (dtypes.float16, dtypes.bfloat16), ids=str)
def test_the_next_one_of_every_half(dtype: DType) -> None:
    """All 65,536 numbers, on their way to each edge, bit by bit. Between zeros it is y, as the Array API standard has it."""
    x = np.arange(65536, dtype=np.uint16).view(dtype.numpy)
    made = graph("nextafter", dtype, x.shape)
    assert made is not None
    plan = fuse(made).plan
    for edge in lattice(dtype):
        y = np.full_like(x, edge)
        with np.errstate(all="ignore"):
            want = next_bfloat16(x, y) if dtype is dtypes.bfloat16 else np.where(x == y, y, np.nextafter(x, y))  # NumPy: x
        got = run_plan(plan, [x, y])[0].view(np.uint16)
        nan = np.isnan(dtypes.from_storage(want, dtype))
        want = np.where(nan, 0x7FC0 if dtype is dtypes.bfloat16 else 0x7E00, want.view(np.uint16))
        np.testing.assert_array_equal(got, want, err_msg=f"on the way to {edge}")


def distances(name: str, dtype: DType, x: Array, y: Array, got: Array) -> tuple[Array, float]:
    """ULP from the exact results, and how many are allowed."""
    words = OPERATORS[name].instructions
    instruction = table.BY_NAME[words if isinstance(words, str) else name]
    wide = np.longdouble if dtype.name == "float64" else np.float64
    with np.errstate(all="ignore"):
        a, b = (dtypes.from_storage(v, dtype) for v in (x, y))
        if name == "nextafter":  # a step of its own dtype
            want = dtypes.from_storage(next_bfloat16(x, y), dtype) if dtype.name == "bfloat16" else np.nextafter(x, y)
        elif name in ("power", "copysign"):  # powl: see test_special_values; a wider NaN may have another sign
            want = BINARY[instruction.name](a, b)
        else:
            want = BINARY[instruction.name](a.astype(wide), b.astype(wide))
        want = want.astype(wide)
        numbers = dtypes.from_storage(got, dtype) if dtype.name in HALVES else got
        if dtype.name == "float64" and name in FORMULAS:
            unit = np.spacing(np.maximum(np.abs(want.astype(np.float64)), 0.5))
            same = (numbers == want) | (np.isnan(numbers) & np.isnan(want))
            return np.where(same, 0, np.nan_to_num(np.abs(numbers - want) / unit, nan=np.inf)).astype(np.float64), FORMULAS[name]
        error = accuracy.distances(numbers, want, dtype.name)
    return error, 0.51 if dtype.name in HALVES else max(instruction.ulp, 0.501)
