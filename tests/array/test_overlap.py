"""Views that overlap: NumPy computes in place and its results then depend on the order of accesses; here what is
written is always another array, however a program comes to name one memory twice, and the results are those of
copies."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm

X = np.arange(24, dtype=np.float32).reshape(4, 6)
VIEWS = {
    "windows": np.lib.stride_tricks.as_strided(X, (8, 5), (8, 4)),
    "one element": np.broadcast_to(X[1, 2], (3, 4)),
    "one row": np.broadcast_to(X[1], (3, 6)),
    "backwards": X[::-1, ::-2],
    "transposed": X.T,
}
KEYS = {
    "shifted": (np.s_[1:], np.s_[:-1]),
    "shifted back": (np.s_[:-1], np.s_[1:]),
    "reversed": (np.s_[::-1], np.s_[:]),
    "columns": (np.s_[:, 1:5], np.s_[:, 0:4]),
    "columns backwards": (np.s_[:, ::-1], np.s_[:, :]),
    "every other row": (np.s_[::2], np.s_[1:3]),
    "a row over all": (np.s_[:], np.s_[2]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_numpy_that_overlap_themselves_are_copied(name: str) -> None:
    view = VIEWS[name]
    array = dvm.asarray(view)
    np.testing.assert_array_equal(np.asarray(array), view)
    np.testing.assert_array_equal(np.asarray(array + array.T.T), view + view)


@pytest.mark.parametrize("name", KEYS)
def test_parts_of_an_array_are_assigned_to_other_parts_of_it(name: str) -> None:
    to, source = KEYS[name]
    x, want = dvm.asarray(X), X.copy()
    old = x * 1
    x[to] = x[source]
    want[to] = X[source].copy()
    np.testing.assert_array_equal(np.asarray(x), want)
    np.testing.assert_array_equal(np.asarray(old), X)
    x[to] += x[source]
    want[to] = want[to].copy() + want[source].copy()
    np.testing.assert_array_equal(np.asarray(x), want)


def test_there_is_no_way_to_write_into_a_result() -> None:
    x = dvm.asarray(X)
    view = np.asarray(x)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True
    for call in (lambda: dvm.add(x, x, out=x), lambda: np.add(x, x, out=x), lambda: np.add(X, X, out=x)):
        with pytest.raises(TypeError):
            call()
    np.testing.assert_array_equal(np.asarray(x), X)


def test_an_array_is_continued_by_views_of_itself() -> None:
    """They lie in the memory that is written behind them, and which moves when it is full."""
    x, want, older = dvm.asarray(X), X.copy(), []
    for key in (np.s_[:], np.s_[3:5], np.s_[::-1], np.s_[-1:], np.s_[0:0], np.s_[::3], np.s_[:], np.s_[:2], np.s_[1::7]):
        older.append((x, want))
        x, want = dvm.append(x, x[key]), np.concatenate([want, want[key]])
        np.testing.assert_array_equal(np.asarray(x), want)
    for array, values in older:
        np.testing.assert_array_equal(np.asarray(array), values)


def test_a_function_returns_views_of_its_argument_that_overlap() -> None:
    @dvm.function
    def parts(x: dvm.Array) -> tuple[dvm.Array, ...]:
        return x, x[1:], x[:-1] + x[1:], x[::-1], x.T

    x = dvm.asarray(X)
    for _ in range(2):
        for got, want in zip(parts(x), (X, X[1:], X[:-1] + X[1:], X[::-1], X.T), strict=True):
            np.testing.assert_array_equal(np.asarray(got), want)
    shifted = parts(x[1:])  # a view itself
    np.testing.assert_array_equal(np.asarray(shifted[3]), X[1:][::-1])


def test_a_kernel_stores_views_of_what_it_loads() -> None:
    @dvm.kernel
    def twice(k: object, x: object, y: object) -> None:
        with k.section("copy"):
            k.store(k.load(x))
        with k.section("sum"):
            k.store(k.load(x) + k.load(y))
        with k.section("again"):
            k.store(k.load(x))

    x = dvm.asarray(X)
    for y in (x, x[::-1], x[:, ::-1]):  # both arguments are one memory
        first, total, again = twice(x, y)
        np.testing.assert_array_equal(np.asarray(first), X)
        np.testing.assert_array_equal(np.asarray(total), X + np.asarray(y))
        np.testing.assert_array_equal(np.asarray(again), X)


def test_a_loop_exchanges_and_shifts_its_state() -> None:
    @dvm.function
    def turn(a: dvm.Array, b: dvm.Array) -> tuple[dvm.Array, ...]:
        def body(i: dvm.Array, a: dvm.Array, b: dvm.Array) -> tuple[dvm.Array, ...]:
            return i + 1, b[::-1], dvm.concat([a[1:], a[:1] + b[-1:]])

        return dvm.while_loop(lambda i, a, b: i < 5, body, (0, a, b), limit=9)[1:]

    a, b = X.copy(), X[::-1] * 2
    got = turn(dvm.asarray(a), dvm.asarray(b))
    same = turn(*[dvm.asarray(X)] * 2)  # both states begin as one array
    c, d = X.copy(), X.copy()
    for _ in range(5):
        a, b = b[::-1], np.concatenate([a[1:], a[:1] + b[-1:]])
        c, d = d[::-1], np.concatenate([c[1:], c[:1] + d[-1:]])
    for array, want in zip((*got, *same), (a, b, c, d), strict=True):
        np.testing.assert_array_equal(np.asarray(array), want)
