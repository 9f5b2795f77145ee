"""Shifted copies of an array as parts of one: the same bits, for all sizes, and only where it saves a copy."""

from __future__ import annotations

import re

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.errors import DvmError


def copies(function, *args) -> int:
    """Of a plan, those of more than a margin."""
    found = re.findall(r"section\d+ copy \w+ \[([\d,]+)\]", dvm.das(function, *args))
    return sum(np.prod([int(n) for n in sizes.split(",")]) > 16 for sizes in found)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def stencil(lib, x, pad):
    return (x * 3 + pad(x[:-1], 1, 0)) + pad(x[1:], 0, 1)


def padded(value: float):
    return lambda x, before, after: dvm.pad(x, ((before, after),) + ((0, 0),) * (x.ndim - 1), value=value)


def padded_by_numpy(value: float):
    return lambda x, before, after: np.pad(x, ((before, after),) + ((0, 0),) * (x.ndim - 1), constant_values=value)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (129,), (1000,), (5, 7), (64, 33)])
def test_both_neighbours(shape: tuple[int, ...]) -> None:
    f = dvm.function(lambda x: stencil(dvm, x, padded(0.5)))
    for rows in (shape[0], shape[0] + 3, 1):
        x = numbers(rows, *shape[1:])
        np.testing.assert_array_equal(np.asarray(f(dvm.asarray(x))), stencil(np, x, padded_by_numpy(0.5)))
    if shape[0] > 3:
        assert copies(f, dvm.asarray(numbers(*shape))) == 1


def test_a_size_of_zero_is_what_it_is_without() -> None:
    f = dvm.function(lambda x: dvm.concat([x[:1], x[:-1]]) * 2 + dvm.concat([x[1:], x[:1]]))
    for size in (4, 1):
        x = numbers(size)
        np.testing.assert_array_equal(np.asarray(f(dvm.asarray(x))),
                                      np.concatenate([x[:1], x[:-1]]) * 2 + np.concatenate([x[1:], x[:1]]))  # fmt: skip
    pads = dvm.function(lambda x: stencil(dvm, x, padded(0.0)))
    np.testing.assert_array_equal(np.asarray(pads(dvm.asarray(numbers(4)))), stencil(np, numbers(4), padded_by_numpy(0.0)))
    try:
        got = np.asarray(pads(dvm.asarray(numbers(0))))
    except DvmError:
        return  # shapes that differ, as for NumPy
    np.testing.assert_array_equal(got, stencil(np, numbers(0), padded_by_numpy(0.0)))


def test_margins_that_are_computed_and_of_several_widths() -> None:
    def both(lib, concat, x):
        return concat([lib.reshape(lib.max(x), (1,)), x[:-1]]) - x + concat([x[3:], lib.reshape(lib.min(x), (1,)) + lib.zeros(3)])

    f = dvm.function(lambda x: both(dvm, dvm.concat, x))
    for size in (4, 50, 401):
        x = numbers(size)
        np.testing.assert_array_equal(np.asarray(f(dvm.asarray(x))), both(np, np.concatenate, x).astype(np.float32), strict=True)
    assert copies(f, dvm.asarray(numbers(400))) == 1


def test_a_margin_that_needs_the_other_one() -> None:
    def both(lib, concat, x):
        before = concat([x[:1], x[:-1]])
        return before + concat([x[1:], before[:1] * 3])

    f = dvm.function(lambda x: both(dvm, dvm.concat, x))
    x = numbers(40)
    np.testing.assert_array_equal(np.asarray(f(dvm.asarray(x))), both(np, np.concatenate, x))


def test_rows_and_columns_of_a_plane() -> None:
    def laplace(x, pad):
        return (x * -4 + pad(x[:-1], ((1, 0), (0, 0))) + pad(x[1:], ((0, 1), (0, 0)))
                + pad(x[:, :-1], ((0, 0), (1, 0))) + pad(x[:, 1:], ((0, 0), (0, 1))))  # fmt: skip

    f = dvm.function(lambda x: laplace(x, dvm.pad))
    for shape in ((4, 4), (33, 70), (128, 130)):
        x = numbers(*shape)
        np.testing.assert_array_equal(np.asarray(f(dvm.asarray(x))), laplace(x, np.pad))
    assert copies(f, dvm.asarray(numbers(33, 70))) == 2


def test_a_result_stays_an_array_of_its_own() -> None:
    def both(lib, concat, x):
        before = concat([x[:1], x[:-1]])
        return before, before + concat([x[1:], x[:1]])

    f = dvm.function(lambda x: both(dvm, dvm.concat, x))
    x = numbers(300)
    for got, want in zip(f(dvm.asarray(x)), both(np, np.concatenate, x), strict=True):
        np.testing.assert_array_equal(np.asarray(got), want)
    assert copies(f, dvm.asarray(x)) == 2


def test_inside_of_a_loop() -> None:
    def step(x, pad):
        return stencil(None, x, pad) * 0.2

    @dvm.function
    def f(x, n):
        return dvm.while_loop(lambda i, x: i < n, lambda i, x: (i + 1, step(x, padded(1.0))), (0, x))[1]

    x = numbers(700)
    got, plain, once = np.asarray(f(dvm.asarray(x), dvm.asarray(np.int64(5)))), x, dvm.function(lambda x: step(x, padded(1.0)))
    for _ in range(5):
        plain = np.asarray(once(dvm.asarray(plain)))
    np.testing.assert_array_equal(got, plain)
