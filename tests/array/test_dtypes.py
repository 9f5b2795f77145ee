"""Arrays of all dtypes: mixed expressions give what NumPy gives, in the dtypes of the Array API standard."""

from __future__ import annotations

import random

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import dtypes
from dvm_rt.dtypes import DTYPES, DType, bfloat16, bool_
from tests.fusion.random_dtypes import values

PAIRS = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
    "less": np.less,
    "greater_equal": np.greater_equal, "equal": np.equal, "not_equal": np.not_equal,
}  # fmt: skip


def known(x: dvm.Array) -> np.ndarray:
    """The value of an array as the oracle has it."""
    return np.asarray(x).astype(np.float64) if x.dtype.kind == "f" else np.asarray(x)


@pytest.mark.parametrize("a", DTYPES, ids=str)
@pytest.mark.parametrize("b", DTYPES, ids=str)
def test_mixed_dtypes(a: DType, b: DType) -> None:
    rng = np.random.default_rng(a.code * 13 + b.code)
    x, y = (dtypes.from_storage(values(d, (3, 5), rng), d) for d in (a, b))
    left, right = dvm.asarray(x, a), dvm.asarray(y, b)
    wanted = dtypes.promote(a, b)
    for name, meaning in PAIRS.items():
        if wanted is bool_ and name not in ("equal", "not_equal"):
            continue
        if wanted is None:
            with pytest.raises(dvm.DTypeError):
                getattr(dvm, name)(left, right)
            continue
        got = getattr(dvm, name)(left, right)
        with np.errstate(all="ignore"):
            given = [dtypes.rounded(v.astype(np.float32) if wanted is dvm.float32 else v, wanted) for v in (x, y)]
            want = meaning(*given)
        assert got.dtype is (bool_ if want.dtype == bool else wanted)
        if want.dtype != bool and wanted.kind == "f":
            want = dtypes.rounded(want.astype(np.float32) if wanted is dvm.float32 else want, wanted)
        np.testing.assert_array_equal(known(got), want, f"{name} {a} {b}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_python_numbers_are_weak(dtype: DType) -> None:
    x = dvm.asarray([0, 1, 1], dtype)
    assert (x == True).dtype is bool_  # noqa: E712
    if dtype is not bool_:
        assert (x + 1).dtype is dtype and (x + 1).tolist() == [1, 2, 2] and (1 - x).tolist() in ([1, 0, 0],)
    assert (x + 0.5).dtype is (dtype if dtype.kind == "f" else dvm.float32) and (x + 0.5).tolist() == [0.5, 1.5, 1.5]
    assert (x / 2).dtype is (dtype if dtype.kind == "f" else dvm.float32) and (x / 2).tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reductions_have_the_dtypes_of_the_standard(dtype: DType) -> None:
    stored = values(dtype, (4, 33), np.random.default_rng(5))
    x, a = dvm.asarray(dtypes.from_storage(stored, dtype), dtype), dtypes.from_storage(stored, dtype)
    assert x.astype(bool_).any(axis=0).tolist() == (a != 0).any(0).tolist() and dvm.all(x,
        axis=1).tolist() == (a != 0).all(1).tolist()
    assert dvm.count_nonzero(x).item() == np.count_nonzero(a)
    total = x.sum(axis=1)
    assert total.dtype is dtypes.sum_dtype(dtype)
    if dtype.kind == "f":
        np.testing.assert_allclose(known(total), a.sum(1), rtol=0.02, atol=0.1)
        return
    assert total.tolist() == a.sum(1, dtype=total.dtype.numpy).tolist() and dvm.sum(x, axis=0, dtype="int32").dtype is dvm.int32
    if dtype is bool_:
        return
    for name in ("max", "min"):
        assert getattr(x, name)(axis=0).dtype is dtype and getattr(x, name)(axis=0).tolist() == getattr(a, name)(0).tolist()
        assert getattr(dvm, "arg" + name)(x, axis=1).tolist() == getattr(a, "arg" + name)(1).tolist()
    assert x.prod(axis=1).tolist() == a.prod(1, dtype=total.dtype.numpy).tolist()
    assert (x // 3).tolist() == (a // 3).tolist() and (x % 3).tolist() == (a % 3).tolist() and (
        x // 0).tolist() == np.zeros_like(a).tolist()
    assert (x << 1).tolist() == (a << 1).tolist() and (x >> 1).tolist() == (a >> 1).tolist() and (x & 6
        | 1).tolist() == (a & 6 | 1).tolist()
    with np.errstate(all="ignore"):
        assert (x @ x.T).tolist() == (a @ a.T).tolist()


def test_bfloat16_goes_in_and_out_as_numbers() -> None:
    x = dvm.asarray([1.0, 1 + 2**-8, 3.0], "bfloat16")
    assert x.dtype is bfloat16 and np.asarray(x).dtype == np.float32 and x.tolist() == [1.0, 1.0, 3.0]
    assert x[2].item() == 3.0 and float(x[0]) == 1.0 and "bfloat16" in repr(x)
    assert (x * 1.0078125).tolist() == [1.0078125, 1.0078125, 3.03125]  # halves to even
    assert dvm.softmax(x).dtype is bfloat16 and dvm.matmul(x, x).item() == 11.0


def test_lazily_and_as_a_function_the_same_bits() -> None:
    rng = np.random.default_rng(9)
    for dtype in ("float16", "bfloat16", "int8", "uint16", "int64", "float64"):
        x = dvm.asarray(dtypes.from_storage(values(dtypes.BY_NAME[dtype], (6, 70), rng), dtypes.BY_NAME[dtype]), dtype)

        def expression(x: dvm.Array) -> dvm.Array:
            y = x * x + x
            return dvm.where(y > x, y - 3, x * 2).max(axis=1, keepdims=True) - y

        one_by_one = x * x
        dvm.eval(one_by_one)
        one_by_one = one_by_one + x
        dvm.eval(one_by_one)
        chosen = dvm.where(one_by_one > x, one_by_one - 3, x * 2)
        dvm.eval(chosen)
        apart = chosen.max(axis=1, keepdims=True) - one_by_one
        results = [expression(x), dvm.function(expression)(x), apart]
        assert len({np.asarray(r).tobytes() for r in results}) == 1


def test_creation() -> None:
    assert dvm.arange(5).tolist() == [0, 1, 2, 3, 4] and dvm.arange(2, 9, 3).tolist() == [2, 5, 8] and dvm.arange(3,
        0).tolist() == []
    assert dvm.arange(1, 2, 0.25).tolist() == [1.0, 1.25, 1.5, 1.75] and dvm.arange(4, dtype="uint8").dtype is dvm.uint8
    assert dvm.arange(5, -1, -2).tolist() == [5, 3, 1] and dvm.linspace(0, 1, 5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert dvm.full((2,), 7).dtype is dvm.int64 and dvm.zeros((2,), dtype="bool").tolist() == [False, False]
    assert dvm.function(lambda x: dvm.arange(x.shape[0]) + x)(dvm.asarray([5, 5, 5])).tolist() == [5, 6, 7]


@pytest.mark.parametrize("seed", range(40))
def test_random_mixed_expressions(seed: int) -> None:
    """Integers and bools, exact: lazily, and as a function."""
    rng, numpys = random.Random(seed), np.random.default_rng(seed)
    kinds = [d for d in DTYPES if d.kind in "iub"]
    shape = (rng.choice((1, 3)), rng.choice((2, 65)))
    inputs = [(d, values(d, shape, numpys)) for d in rng.choices(kinds, k=3)]
    picks = [(rng.randrange(10**6), rng.randrange(10**6), rng.random()) for _ in range(6)]

    def ours(*pool: dvm.Array) -> dvm.Array:
        pool = list(pool)
        for a, b, kind in picks:
            x, y = pool[a % len(pool)], pool[b % len(pool)]
            if dtypes.promote(x.dtype, y.dtype) is None or (x.dtype is y.dtype is bool_):
                y = x = x.astype("int16")
            pool.append(x + y if kind < 0.3 else x * y if kind < 0.5 else dvm.where(x < y, x, y) if kind < 0.7
                        else (x ^ y).max(axis=0))
        return pool[-1]

    def theirs(*pool: np.ndarray) -> np.ndarray:
        pool = list(pool)
        for a, b, kind in picks:
            x, y = pool[a % len(pool)], pool[b % len(pool)]
            if np.promote_types(x.dtype, y.dtype).kind == "f" or (x.dtype == y.dtype == bool):
                y = x = x.astype("int16")
            pool.append(x + y if kind < 0.3 else x * y if kind < 0.5 else np.where(x < y, x, y) if kind < 0.7
                        else (x ^ y).max(axis=0))
        return pool[-1]

    arrays = [dvm.asarray(a, d) for d, a in inputs]
    want = theirs(*(a for _, a in inputs))
    for got in (ours(*arrays), dvm.function(ours)(*arrays)):
        assert got.dtype.numpy == want.dtype
        np.testing.assert_array_equal(np.asarray(got), want)


WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("dtype", WHOLE)
def test_powers_of_integers_by_integers(dtype: str) -> None:
    most, least = np.iinfo(dtype).max, np.iinfo(dtype).min
    x = np.array([0, 1, 2, 3, 7, most, least, least + 1], dtype)[:, None]
    e = np.array([0, 1, 2, 3, 5, 40, most], dtype)
    for call in (dvm.pow, dvm.function(lambda a, b: a**b)):
        got = np.asarray(call(dvm.asarray(x), dvm.asarray(e)))
        assert got.dtype == x.dtype and np.array_equal(got, x**e)
        assert np.asarray(call(dvm.asarray(x[:0]), dvm.asarray(e))).shape == (0, 7)
    assert np.array_equal(np.asarray(2 ** dvm.asarray(e)), np.asarray(2, dtype) ** e)
    if least:
        below = dvm.asarray(np.array([-1, -2, -3, -1, least], dtype))
        assert np.asarray(dvm.asarray(np.array([1, -1, -1, 2, 0], dtype)) ** below).tolist() == [1, 1, -1, 0, 0]


@pytest.mark.parametrize("dtype", WHOLE)
def test_integers_are_finite(dtype: str) -> None:
    x = dvm.asarray(np.array([0, 1, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype))

    def ask(x: dvm.Array) -> tuple[dvm.Array, ...]:
        return dvm.isfinite(x), dvm.isinf(x), dvm.isnan(x)

    for call in (ask, dvm.function(ask)):
        assert [np.asarray(y).tolist() for y in call(x)] == [[True] * 4, [False] * 4, [False] * 4]


def test_a_power_of_whole_numbers_is_one_launch() -> None:
    with dvm.Runtime(inline=True):
        x, e = dvm.asarray(np.arange(1, 7)), dvm.asarray(np.arange(6))
        for _ in range(2):
            before = dvm.stats()["launches"]
            assert np.asarray(x**e).tolist() == [1, 2, 9, 64, 625, 7776]
            assert dvm.stats()["launches"] == before + 1
