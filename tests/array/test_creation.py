"""Arrays made from numbers and sizes: as NumPy makes them, in every dtype, with sizes that are symbolic; nothing is copied."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.dtypes import DTYPES, bfloat16, bool_, from_storage, to_storage

NUMBERS = [d for d in DTYPES if d is not bool_]
RANGES = [(5,), (0,), (-3,), (2, 9, 3), (9, 2, -3), (9, 2), (-4, 4), (1.5,), (0, 1, 0.1), (3, -1, -0.7),
          (2**31, 2**31 + 5), (-(2**40), -(2**40) + 3)]


@pytest.mark.parametrize("numbers", RANGES, ids=str)
def test_arange_is_numpys(numbers: tuple) -> None:
    got, want = dvm.arange(*numbers), np.arange(*numbers)
    assert got.shape == want.shape and got.dtype is (dvm.float32 if want.dtype.kind == "f" else dvm.int64)
    np.testing.assert_array_equal(np.asarray(got), want.astype(got.dtype.numpy))


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_arange_in_every_dtype(dtype: dvm.dtypes.DType) -> None:
    got = dvm.arange(3, 90, 4, dtype=dtype).astype("float64")
    np.testing.assert_array_equal(np.asarray(got), from_storage(to_storage(np.arange(3, 90, 4), dtype), dtype))


def test_arange_counts_exactly_at_the_ends() -> None:
    assert dvm.arange(2**63, 2**63 + 3, dtype="uint64").tolist() == [2**63, 2**63 + 1, 2**63 + 2]
    assert dvm.arange(2**24, 2**24 + 3).astype("float64").tolist() == [2.0**24, 2.0**24 + 1, 2.0**24 + 2]
    assert dvm.arange(3, -1, -1, dtype="uint64").tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("ends", [(0, 1, 5), (-2, 7, 11), (3, 3, 4), (5, 1, 1), (0, 1, 0), (0.1, 0.7, 300)], ids=str)
@pytest.mark.parametrize("endpoint", [True, False])
def test_linspace_is_numpys(ends: tuple[float, float, int], endpoint: bool) -> None:
    for dtype in ("float32", "float64"):
        got, want = dvm.linspace(*ends, endpoint=endpoint, dtype=dtype), np.linspace(*ends, endpoint=endpoint)
        np.testing.assert_array_equal(np.asarray(got), want.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triangles_and_diagonals_in_every_dtype(dtype: dvm.dtypes.DType) -> None:
    values = to_storage(np.arange(1, 13).reshape(3, 4), dtype)
    x = dvm.asarray(values, dtype)
    if dtype is bfloat16:
        x, values = dvm.arange(1, 13, dtype=dtype).reshape((3, 4)), from_storage(values, dtype)
    for k in (-3, -1, 0, 2, 4):
        for own, theirs in ((dvm.tril, np.tril), (dvm.triu, np.triu)):
            got = own(x, k=k)
            assert got.dtype is dtype
            np.testing.assert_array_equal(np.asarray(got.astype("float64")), theirs(values, k).astype(np.float64))
        eye = dvm.eye(3, 5, k=k, dtype=dtype)
        assert eye.dtype is dtype
        np.testing.assert_array_equal(np.asarray(eye.astype("float64")), np.eye(3, 5, k))


def test_a_matrix_beyond_what_float32_counts() -> None:
    wide = dvm.tril(dvm.ones((1, 2**24 + 3), dtype="int8"), k=2**24)
    assert int(wide.sum()) == 2**24 + 1 and wide[0, -3:].tolist() == [1, 0, 0]


def test_sizes_may_be_symbolic() -> None:
    def made(x: dvm.Array) -> tuple[dvm.Array, ...]:
        rows, columns = x.shape
        return (dvm.arange(rows), dvm.arange(1, columns, 2), dvm.arange(rows, 0, -1),
                dvm.arange(rows, rows + columns, dtype="int32"),
                dvm.eye(rows, columns, k=1), dvm.tril(x), dvm.triu(x, k=1),
                dvm.one_hot(dvm.asarray([0, 2, 9]), columns))  # fmt: skip

    function = dvm.function(made)
    for rows, columns in ((3, 4), (7, 2), (5, 5)):
        x = np.random.default_rng(1).normal(size=(rows, columns)).astype(np.float32)
        hot = (np.array([0, 2, 9])[:, None] == np.arange(columns)).astype(np.float32)
        want = (np.arange(rows), np.arange(1, columns, 2), np.arange(rows, 0, -1), np.arange(rows, rows + columns),
                np.eye(rows, columns, 1),
                np.tril(x), np.triu(x, 1), hot)  # fmt: skip
        for g, w in zip(function(dvm.asarray(x)), want, strict=True):
            np.testing.assert_array_equal(np.asarray(g), w)


REFUSED = {
    "arange: step": lambda: dvm.arange(0, 5, 0),
    "arange: stop": lambda: dvm.arange(float("inf")),
    "arange: start": lambda: dvm.arange("a", 3),
    "linspace: num": lambda: dvm.linspace(0, 1, -1),
    "linspace: stop": lambda: dvm.linspace(0, float("nan"), 3),
    "diagonal: k": lambda: dvm.eye(3, k=0.5),
    "tril: rank": lambda: dvm.tril(dvm.ones(3)),
    "meshgrid": lambda: dvm.meshgrid(dvm.ones((2, 2))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_numbers_are_refused_and_the_next_call_works(what: str) -> None:
    with pytest.raises(dvm.ShapeError, match=rf"^array: {what}.*got .*allowed"):
        REFUSED[what]()
    assert dvm.arange(3).tolist() == [0, 1, 2]
