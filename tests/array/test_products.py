"""Matrix products of other dtypes than float32 through functions, plans and the encoder."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.errors import DTypeError, ShapeError


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
