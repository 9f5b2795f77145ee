"""Matrix products of other dtypes than float32 through functions, plans and the encoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.errors import DeviceTrap, DTypeError, ShapeError


def whole(name: str, *shape: int) -> np.ndarray:
    limits = np.iinfo(name)
    return np.random.default_rng(shape).integers(limits.min, limits.max, shape, name, endpoint=True)


@pytest.mark.parametrize("name", ["float64", "int32", "uint32", "int64", "uint64"])
def test_matmul(name: str) -> None:
    @dvm.function
    def product(x, y):
        return x @ y

    for left, right in (((3, 4), (4, 5)), ((2, 3, 40), (2, 40, 33)), ((6, 3, 8), (8, 7)), ((1, 1), (1, 1)), ((16, 1), (1, 9))):
        if name == "float64":
            a, b = (np.random.default_rng(shape).standard_normal(shape) for shape in (left, right))
        else:
            a, b = whole(name, *left), whole(name, *right)
        with np.errstate(over="ignore"):
            want = a @ b
        for got in (product(dvm.asarray(a), dvm.asarray(b)), dvm.asarray(a) @ dvm.asarray(b)):
            found = np.asarray(got)
            assert found.dtype == want.dtype
            if name == "float64":
                np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-12)
            else:
                np.testing.assert_array_equal(found, want)


def test_transposed() -> None:
    a, b = (np.random.default_rng(i).standard_normal((7, 9)) for i in range(2))
    x, y = dvm.asarray(a), dvm.asarray(b)
    np.testing.assert_allclose(np.asarray(x @ y.mT), a @ b.T, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(x.mT @ y), a.T @ b, rtol=1e-12)


@pytest.mark.parametrize("left", ["int8", "uint8"])
@pytest.mark.parametrize("right", ["int8", "uint8"])
def test_bytes_into_int32(left: str, right: str) -> None:
    a, b = whole(left, 2, 17, 50), whole(right, 2, 50, 40)
    got = np.asarray(dvm.matmul_integer(dvm.asarray(a), dvm.asarray(b)))
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, a.astype(np.int32) @ b.astype(np.int32))


def test_refused() -> None:
    single, byte = dvm.asarray(np.ones((2, 2), np.float32)), dvm.asarray(np.ones((2, 2), np.int8))
    with pytest.raises(DTypeError):
        dvm.matmul_integer(byte, single)
    with pytest.raises(ShapeError):
        dvm.matmul_integer(byte, byte[0])


def stored(name: str, *shape: int) -> dvm.Array:
    """A matrix of normal numbers, stored in 16 bits."""
    values = np.random.default_rng(shape).standard_normal(shape, np.float32)
    array = dvm.astype(dvm.asarray(values), getattr(dvm, name))
    dvm.eval(array)
    return array


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_weights_of_16_bits_are_packed_as_they_are_stored(name: str) -> None:
    w, x = stored(name, 70, 90), dvm.asarray(np.random.default_rng(1).standard_normal((5, 70), np.float32))
    product = dvm.function(lambda x, w: x @ w)
    wide = dvm.astype(w, dvm.float32)
    dvm.eval(wide)
    assert "copy" not in str(dvm.explain(product, x, w))
    np.testing.assert_array_equal(np.asarray(product(x, w)), np.asarray(product(x, wide)))  # float32 x 16 bits is float32
    np.testing.assert_array_equal(np.asarray(x @ dvm.astype(w, dvm.float32)), np.asarray(product(x, wide)))
    for part in (w[3:, 5:], w[:, 1], w[:60, ::3]):
        rows = x[:, : part.shape[0]]
        np.testing.assert_array_equal(np.asarray(rows @ part), np.asarray(rows @ dvm.astype(part, dvm.float32)))
    np.testing.assert_array_equal(np.asarray(x[:, :5] @ w[:, :5].mT), np.asarray(x[:, :5] @ wide[:, :5].mT))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_product_of_16_bits_is_rounded_once(name: str) -> None:
    x, w = stored(name, 9, 300), stored(name, 300, 40)
    got = dvm.function(lambda x, w: x @ w)(x, w)
    assert got.dtype is w.dtype
    wide = dvm.astype(x, dvm.float32) @ dvm.astype(w, dvm.float32)
    np.testing.assert_array_equal(*(np.asarray(dvm.astype(a, dvm.float32)) for a in (got, dvm.astype(wide, w.dtype))))


def test_what_is_rounded_on_the_way_is_not_packed_in_16_bits() -> None:
    w, x = stored("bfloat16", 30, 20), dvm.asarray(np.ones((2, 30), np.float32))
    narrow = dvm.astype(w * 1e-30, dvm.bfloat16)
    dvm.eval(narrow)
    got = x @ dvm.astype(dvm.astype(narrow, dvm.float16), dvm.float32)
    np.testing.assert_array_equal(np.asarray(got), np.zeros((2, 20), np.float32))


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_vector_that_is_a_column_of_something(name: str) -> None:
    w, x = stored(name, 70, 90) if name != "float32" else dvm.asarray(np.eye(70, 90, 1,
        np.float32)), dvm.asarray(np.ones((5, 70), np.float32))
    column = np.asarray(dvm.astype(w, dvm.float32))[:, 7]
    np.testing.assert_allclose(np.asarray(x @ w[:, 7]), np.ones((5, 70), np.float32) @ column, rtol=1e-4, atol=1e-4)


# ---- rows in groups ---------------------------------------------------------------------------------------------------


def in_groups(x: np.ndarray, w: np.ndarray, rows: list[int]) -> np.ndarray:
    ends = np.cumsum(rows)
    return np.concatenate([*(x[e - n : e] @ one for n, e, one in zip(rows, ends, w, strict=True)),
                           np.zeros((len(x) - ends[-1], w.shape[2]))])


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64", "int8", "int32", "uint16", "uint64"])
def test_grouped_matmul(name: str) -> None:
    dtype, calls = getattr(dvm, name), 0

    @dvm.function
    def experts(x, w, rows):
        nonlocal calls
        calls += 1
        return dvm.relu(dvm.grouped_matmul(x, w, rows))

    for m, groups, rows in ((9, 3, [4, 0, 5]), (9, 3, [0, 2, 3]), (1, 1, [1]), (70, 4, [20, 30, 1, 19])):
        x, w = (np.random.default_rng(m).integers(0 if name[0] == "u" else -3, 4, shape).astype(np.float32)
                for shape in ((m, 12), (groups, 12, 35)))
        got = experts(dvm.astype(dvm.asarray(x), dtype), dvm.astype(dvm.asarray(w), dtype), dvm.asarray(np.array(rows)))
        assert got.dtype is dtype
        np.testing.assert_array_equal(np.asarray(dvm.astype(got, dvm.float32)), np.maximum(in_groups(x, w, rows), 0))
    assert calls == 2  # sizes of 1 are a function of their own


def test_numbers_of_rows_are_made_in_the_same_launch() -> None:
    """A router: rows sorted by expert, as many as the router says; views and a transposed stack of matrices too."""
    random = np.random.default_rng(0)
    x, w, of = random.standard_normal((40, 16), np.float32), random.standard_normal((5, 24, 16),
        np.float32), random.integers(0, 5, 40)

    @dvm.function
    def mixture(x, w, of):
        order = dvm.argsort(of)
        rows = dvm.sum(dvm.astype(dvm.expand_dims(of, axis=0) == dvm.expand_dims(dvm.arange(5), axis=1), dvm.int64), axis=1)
        made = dvm.grouped_matmul(dvm.take(x, order, axis=0), dvm.permute_dims(w, (0, 2, 1)), rows)
        return dvm.take(made, dvm.argsort(order), axis=0)

    got = np.asarray(mixture(dvm.asarray(x), dvm.asarray(w), dvm.asarray(of)))
    np.testing.assert_allclose(got, np.einsum("mk,mnk->mn", x, w[of]), rtol=1e-4, atol=1e-4)


def test_matrices_of_groups_that_are_constants_are_packed_once() -> None:
    """The same bits as where they are arguments; a transposed one, too."""
    random = np.random.default_rng(3)
    x, w, rows = random.standard_normal((9, 20), np.float32), random.standard_normal((3, 64, 20),
        np.float32), np.array([2, 0, 6], np.int32)
    given = [dvm.asarray(a) for a in (x, w, rows)]
    called = dvm.function(lambda x, w, rows: dvm.relu(dvm.grouped_matmul(x, dvm.permute_dims(w, (0, 2, 1)), rows)))
    held = dvm.function(lambda x, rows: dvm.relu(dvm.grouped_matmul(x, dvm.permute_dims(given[1], (0, 2, 1)), rows)))
    for _ in range(2):
        found, wanted = np.asarray(held(given[0], given[2])), np.asarray(called(*given))
        np.testing.assert_array_equal(found.view(np.int32), wanted.view(np.int32))
    assert "packed once: 1 arrays" in dvm.explain(held, given[0], given[2])


def test_grouped_matmul_of_nothing() -> None:
    function = dvm.function(lambda x, w, rows: dvm.grouped_matmul(x, w, rows))
    for m, k, groups, n in ((3, 4, 0, 5), (3, 0, 2, 5), (0, 4, 2, 5), (3, 4, 2, 0), (3, 4, 2, 5)):
        got = function(*(dvm.asarray(np.ones(shape, np.float32)) for shape in ((m, k), (groups, k, n))),
                       dvm.asarray(np.zeros(groups, np.int64)))
        np.testing.assert_array_equal(np.asarray(got), np.zeros((m, n), np.float32))


def test_grouped_matmul_refuses() -> None:
    x, w, rows = (dvm.asarray(a) for a in (np.ones((4, 3), np.float32), np.ones((2, 3, 5), np.float32), np.array([2, 2])))
    with pytest.raises(ShapeError):
        dvm.grouped_matmul(x, w[0], rows)
    with pytest.raises(ShapeError):
        dvm.grouped_matmul(x, w[:, :2], rows)
    with pytest.raises(ShapeError):
        dvm.grouped_matmul(x, w, rows[:1])
    with pytest.raises(DTypeError):
        dvm.grouped_matmul(x, w, dvm.astype(rows, dvm.float32))
    for wrong in ([3, 2], [-1, 2]):
        with pytest.raises(DeviceTrap):
            dvm.eval(dvm.grouped_matmul(x, w, dvm.asarray(np.array(wrong))))


# ---- what follows from products of other dtypes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float64", "int32", "int64"])
def test_what_follows_shares_the_kernel(name: str) -> None:
    x, w, b = (np.random.default_rng(i).integers(-9, 9, shape).astype(name) for i, shape in enumerate(((5, 7), (7, 70), (70,))))
    layer = dvm.function(lambda x, w, b: dvm.maximum((x @ w + b) * 3, 0))
    args = [dvm.asarray(a) for a in (x, w, b)]
    np.testing.assert_array_equal(np.asarray(layer(*args)), np.maximum((x @ w + b) * 3, 0))
    assert "kernel 1" not in str(dvm.explain(layer, *args))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("k", "n"), [(513, 1290), (2100, 700)])
def test_a_matrix_that_is_read_to_and_fro(dtype: str, k: int, n: int) -> None:
    """One too large for the cache that few rows meet again and again: every time the bits are those of many rows."""
    rng = np.random.default_rng(k)
    w, bias = (dvm.asarray(rng.standard_normal(shape).astype(dtype)) for shape in ((k, n), (n,)))
    x = rng.standard_normal((20, k), np.float32)
    product = dvm.function(lambda x: dvm.tanh(x @ dvm.astype(w, dvm.float32) * 0.1 + dvm.astype(bias, dvm.float32)))
    want = np.asarray(product(dvm.asarray(x)))
    for rows in (1, 3, 6, 1, 1):
        for first in (0, 7):
            np.testing.assert_array_equal(np.asarray(product(dvm.asarray(x[first : first + rows]))), want[first : first + rows])


VIEWS: dict[str, Callable[[dvm.Array], dvm.Array]] = {
    "rows backwards": lambda w: w[::-1], "columns backwards": lambda w: w[:, ::-1], "both": lambda w: w[::-1, ::-1],
    "turned, backwards": lambda w: w[::-1].T, "some backwards": lambda w: w[-2:0:-1], "every second row": lambda w: w[1::2],
    "every second column": lambda w: w[:, ::2], "not the outermost": lambda w: w[1:, 1:-1],
}  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(16, 31), (3, 40), (33, 5)])
def test_views_of_weights_are_packed(view: str, shape: tuple[int, int]) -> None:
    """What goes backwards begins at its last element, and reads no further than that."""
    rng, seen = np.random.default_rng(7), VIEWS[view]
    w = rng.normal(size=shape).astype(np.float32)
    want = seen(w)
    x = rng.normal(size=(5, want.shape[0])).astype(np.float32)
    product = dvm.function(lambda x, w: x @ seen(w))
    given = dvm.asarray(x), dvm.asarray(w)
    for _ in range(3):  # first as what it is in memory, then packed
        np.testing.assert_allclose(np.asarray(product(*given)), x @ want, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(product(*given)), np.asarray(given[0] @ dvm.asarray(want)))
