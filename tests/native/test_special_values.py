"""Special values: every binary float instruction over a lattice of NaN, infinities, zeros of both signs, subnormals,
limits, halves and neighbours of whole numbers, and every unary one over its values, against what NumPy or C gives.

The table's own definitions are held against the machine in tests/isa/test_oracle.py; here the meaning comes from NumPy's
public functions, so a definition that is wrong in itself shows too."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks import accuracy
from dvm_rt.isa import table
from dvm_rt.isa.table import Group

Array = np.ndarray
POSITIVE = [
    0.0, 1.0, 0.5, 1.5, 2.0, 2.5, 3.0, 4.0, 0.1, 0.25, 0.75, 10.0, 88.5, 104.0, 128.0, 150.0, 709.5, 746.0, 1024.0,
    2.0**23 - 0.5, 2.0**23 + 1, 2.0**24, 2.0**31, 2.0**53, 2.0**53 + 2, 2.0**63, 1e30, np.inf,
]  # fmt: skip
LATTICE: dict[str, Array] = {}
for _name, _kind in (("float32", np.float32), ("float64", np.float64)):
    _info = np.finfo(_kind)
    _edges = [_info.tiny, _info.smallest_subnormal, _info.max, _info.eps, np.nextafter(_kind(1), _kind(0)),
              np.nextafter(_kind(1), _kind(2)),
              np.nextafter(_info.tiny, _kind(0)), 5 * _info.smallest_subnormal]  # fmt: skip
    _half = np.array([*POSITIVE, *_edges], _kind)
    LATTICE[_name] = np.concatenate([_half, -_half, np.array([np.nan], _kind)])


def _canonical(x: Array) -> Array:
    """As outputs hold NaN: positive."""
    return np.where(np.isnan(x), np.abs(x), x)


def _larger(a: Array, x: Array) -> Array:
    return np.where((a == x) & ~np.isnan(a), np.where(np.signbit(a), x, a), np.maximum(a, x))


def _smaller(a: Array, x: Array) -> Array:
    return np.where((a == x) & ~np.isnan(a), np.where(np.signbit(a), a, x), np.minimum(a, x))


def _kept(condition: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, x: np.where(condition(x), a, 0)


BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "mov": lambda a, x: x, "add": np.add, "sub": np.subtract, "rsub": lambda a, x: x - a, "mul": np.multiply,
    "div": np.divide, "rdiv": lambda a, x: x / a, "max": _larger, "min": _smaller, "eq": np.equal, "ne": np.not_equal,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "keep": _kept(lambda x: x != 0),
    "drop": _kept(lambda x: x == 0), "merge": None, "pow": np.power, "atan2": np.arctan2, "hypot": np.hypot,
    "logaddexp": np.logaddexp, "fmod": np.fmod, "remainder": np.remainder, "floor_divide": np.floor_divide,
    "copysign": lambda a, x: np.copysign(a, _canonical(x)), "nextafter": np.nextafter,
}  # fmt: skip
FLOAT_ROWS = [i for i in table.INSTRUCTIONS if "f" in i.kinds]
CASES = [
    pytest.param(i, dtype, id=f"{i.name}-{dtype}")
    for i in FLOAT_ROWS if i.group is Group.BINARY and BINARY.get(i.name, i)
    for dtype in i.compute_dtypes if dtype in LATTICE
]  # fmt: skip


def test_the_lattice_covers_every_binary_float_instruction() -> None:
    assert {i.name for i in FLOAT_ROWS if i.group is Group.BINARY} == set(BINARY)
    assert all(values.size > 60 for values in LATTICE.values())


@pytest.mark.parametrize(("instruction", "dtype"), CASES)
def test_binary_instructions_on_the_lattice(instruction: table.Instruction, dtype: str) -> None:
    values = LATTICE[dtype]
    a, x = (np.ascontiguousarray(v.ravel()) for v in np.meshgrid(values, values, indexing="ij"))
    with np.errstate(all="ignore"):
        wide = np.longdouble if dtype == "float64" else np.float64
        widened = instruction.ulp and instruction.name != "pow"  # powl of some C libraries takes -2^63 for an odd number
        given = (a.astype(wide), x.astype(wide)) if widened else (a.astype(np.float64),
            x.astype(np.float64)) if instruction.ulp else (a, x)
        want = BINARY[instruction.name](*given)
        error = accuracy.distances(accuracy.run(instruction, dtype, a, x), want.astype(wide), dtype)
    allowed = instruction.ulp
    at = int(np.argmax(error))
    assert error[at] <= allowed, f"{instruction.name}({a[at]!r}, {x[at]!r}): {error[at]} ulp, allowed {allowed}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_powers_are_those_of_c(dtype: str) -> None:
    """C11 annex F.10.4.4, case by case."""
    if dtype not in table.BY_NAME["pow"].compute_dtypes:
        pytest.fail(f"pow is not there in {dtype}")
    inf, nan = math.inf, math.nan
    cases = [
        (0.0, -3.0, inf), (-0.0, -3.0, -inf), (-0.0, -2.0, inf), (0.0, -0.5, inf), (0.0, -inf, inf), (0.0, 3.0, 0.0),
        (-0.0, 3.0, -0.0), (-0.0, 2.0, 0.0), (-1.0, inf, 1.0), (-1.0, -inf, 1.0), (1.0, nan, 1.0), (1.0, inf, 1.0),
        (nan, 0.0, 1.0), (nan, -0.0, 1.0), (-8.0, 1 / 3, nan), (0.5, -inf, inf), (2.0, -inf, 0.0), (0.5, inf, 0.0),
        (2.0, inf, inf), (-inf, -3.0, -0.0), (-inf, -2.0, 0.0), (-inf, 3.0, -inf), (-inf, 0.5, inf), (inf, -1.0, 0.0),
        (inf, 0.5, inf), (nan, 1.0, nan), (2.0, nan, nan), (-2.0, 3.0, -8.0), (-2.0, 2.0, 4.0), (-2.0, -1.0, -0.5),
        (-1.0, 2.0**24 + 2, 1.0), (-1.0, 2.0**24 - 1, -1.0),
    ]  # fmt: skip
    kind = np.dtype(dtype)
    a, x, want = (np.array(column, kind) for column in zip(*cases, strict=True))
    got = accuracy.run(table.BY_NAME["pow"], dtype, a, x)
    np.testing.assert_array_equal(got, want)
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(want[numbers]))


ANGLES = [math.pi / 4, math.pi / 2, math.pi, 3 * math.pi / 2, 1e5, 1e10, 2.0**20, 2.0**44, 1e22, 6381956970095103.0 * 2.0**797]


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_of_any_size(name: str, dtype: str) -> None:
    """Multiples of pi / 2, the worst float64 of all (6381956970095103 * 2^797), and all binary exponents."""
    import mpmath

    kind = np.dtype(dtype)
    with np.errstate(over="ignore"):
        x = np.concatenate([np.array(ANGLES, kind), np.exp2(np.arange(1, 127 if dtype == "float32" else 1023,
            7)).astype(kind) * kind.type(1.7)])
    x = np.concatenate([x[np.isfinite(x)], -x[np.isfinite(x)]])
    got = accuracy.run(table.BY_NAME[name], dtype, x)
    with mpmath.workprec(1300):
        exact = [getattr(mpmath, name)(mpmath.mpf(float(v))) for v in x]
        want = np.array([np.longdouble(float(y)) + np.longdouble(float(y - float(y))) for y in exact])
    error = accuracy.distances(got, want, dtype)
    assert error.max() <= table.BY_NAME[name].ulp, f"{x[int(np.argmax(error))]!r}"
