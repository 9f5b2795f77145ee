"""scan: what the same loop in Python gives, in one launch where the sizes stay, walked by the caller where they
change; nested."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array.array import record
from dvm_rt.errors import DeviceTrap, DTypeError, GraphError, ShapeError
from tests.array.test_control import floats, launches, same

RNG = np.random.default_rng(21)


def walks() -> int:
    return int(dvm.stats().get("walked_calls", 0))


def by_hand(f, carry, xs):
    """The loop that a scan is, over arrays with values."""
    ys = []
    for i in range(xs.shape[0]):
        carry, y = f(carry, xs[i])
        ys.append(y)
    return carry, dvm.stack(ys)


def recurrent(w):
    def step(h, x):
        h = dvm.tanh(x + h @ w)
        return h, h * 2

    return step


def test_a_recurrent_network_is_one_launch_of_the_same_bits() -> None:
    traced = dvm.function(lambda xs, h, w: dvm.scan(recurrent(w), h, xs))
    w = dvm.asarray(floats(16, 16) / 4)
    for n, batch in ((1, 3), (2, 1), (7, 3), (40, 2)):
        xs, h = dvm.asarray(floats(n, batch, 16)), dvm.asarray(floats(batch, 16))
        last, ys = traced(xs, h, w)
        wanted = by_hand(recurrent(w), h, xs)
        same(last, wanted[0])
        same(ys, wanted[1])
        assert launches(lambda xs=xs, h=h: np.asarray(traced(xs, h, w)[1])) == 1
        eager = dvm.scan(recurrent(w), h, xs)
        same(eager[0], wanted[0])
        same(eager[1], wanted[1])


def test_structures_of_carry_xs_and_results() -> None:
    def f(carry, x):
        total, count = carry["total"] + x[0] * x[1], carry["count"] + 1
        return {"total": total, "count": count}, (total, {"n": count, "max": dvm.maximum(x[0], x[1])})

    traced = dvm.function(lambda a, b: dvm.scan(f, {"total": dvm.zeros((5,)), "count": 0}, (a, b)))
    a, b = dvm.asarray(floats(6, 5)), dvm.asarray(floats(6, 5))
    got, wanted = traced(a, b), dvm.scan(f, {"total": dvm.zeros((5,)), "count": 0}, (a, b))
    same(got[0]["total"], wanted[0]["total"])
    assert int(got[0]["count"]) == int(wanted[0]["count"]) == 6
    same(got[1][0], wanted[1][0])
    same(got[1][1]["n"], np.arange(1, 7))
    same(got[1][1]["max"], np.maximum(np.asarray(a), np.asarray(b)))


@pytest.mark.parametrize("dtype", [d for d in ("bool_", "int8", "uint16", "int32", "int64", "float16", "bfloat16", "float64")])
def test_dtypes(dtype: str) -> None:
    kind = getattr(dvm, dtype)

    def f(carry, x):
        return (dvm.logical_not(carry), carry) if dtype == "bool_" else (carry + x, carry)

    x = dvm.asarray(RNG.integers(0, 3, (5, 3))).astype(kind)
    traced = dvm.function(lambda x: dvm.scan(f, x[0], x))
    for got, wanted in zip(traced(x), by_hand(f, x[0], x), strict=True):
        same(got, wanted)


def test_counted_loops_have_no_xs() -> None:
    def f(carry, x):
        assert x is None
        return carry * 0.5 + 1, dvm.sum(carry)

    x = dvm.asarray(floats(9))
    for n in (0, 1, 5, 1000):
        traced = dvm.function(lambda x, n=n: dvm.scan(f, x, None, length=n))
        got, wanted = traced(x), dvm.scan(f, x, None, length=n)
        same(got[0], wanted[0])
        same(got[1], wanted[1])
        assert np.asarray(got[1]).shape == (n,)
    by_size = dvm.function(lambda x, y: dvm.scan(f, x, None, length=y.shape[0])[1])
    for n in (1, 3, 8):
        same(by_size(x, dvm.zeros((n,))), dvm.scan(f, x, None, length=n)[1])


def test_nothing_to_scan_over() -> None:
    step = recurrent(dvm.asarray(floats(4, 4)))
    traced = dvm.function(lambda xs, h: dvm.scan(step, h, xs))
    h = dvm.asarray(floats(2, 4))
    for how in (traced, lambda xs, h: dvm.scan(step, h, xs)):
        last, ys = how(dvm.zeros((0, 2, 4)), h)
        same(last, h)
        same(ys, np.zeros((0, 2, 4), np.float32))
        assert np.asarray(how(dvm.zeros((3, 2, 4)), h)[1]).shape == (3, 2, 4)


def nested(xs, w):
    """A scan over rows of a scan over their elements, with a branch and a loop inside."""

    def inner(carry, x):
        halved = lambda c: dvm.while_loop(lambda i, u: i < 3, lambda i, u: (i + 1, u * 0.5), (0, c))[1]  # noqa: E731
        carry = dvm.cond(dvm.sum(x) > 0, lambda c: c + x, halved, carry)
        return carry, dvm.max(carry)

    def outer(carry, rows):
        carry, maxima = dvm.scan(inner, dvm.tanh(carry @ w), rows)
        return carry, (maxima, dvm.switch(dvm.argmax(maxima), [lambda c: c, lambda c: -c, lambda c: c * c], carry))

    return dvm.scan(outer, xs[0, 0] * 0, xs)


def test_nested_scans_branches_and_loops() -> None:
    traced = dvm.function(nested)
    w = dvm.asarray(floats(6, 6) / 2)
    for n, m in ((1, 1), (2, 5), (4, 3)):
        xs = dvm.asarray(floats(n, m, 6))
        before = walks()
        got, wanted = traced(xs, w), nested(xs, w)
        assert walks() == before
        same(got[0], wanted[0])
        for one, other in zip(got[1], wanted[1], strict=True):
            same(one, other)
        assert launches(lambda xs=xs: np.asarray(traced(xs, w)[0])) == 1


def test_results_are_put_in_place() -> None:
    """One row an iteration, not all of them: work grows with the length, not with its square."""
    traced = dvm.function(lambda xs: dvm.scan(lambda c, x: (c + x, c * x), xs[0], xs)[1])
    plan = dvm.dump(traced, dvm.zeros((8, 4)))
    copies = [k.splitlines()[0] for k in plan.split("kernel ") if " COPY " in k and "GATHER" not in k]
    assert plan.count("WRITE|GATHER") == 1
    assert sum("s0" in k for k in copies) == 1, plan  # of all results: once, before the loop


def test_put_row() -> None:
    f = dvm.function(lambda x, i, row: record("put_row", (x, i, row), (0,)))
    x, row = floats(5, 3), floats(3)
    for i in (0, 4, -1, -5):
        wanted = x.copy()
        wanted[i] = row
        for index in (np.int64(i), np.int32(i)):
            same(f(dvm.asarray(x), dvm.asarray(index), dvm.asarray(row)), wanted)
    for i in (5, -6):
        with pytest.raises(DeviceTrap, match=f"gather index out of range, got {i}, allowed -5 to 4"):
            np.asarray(f(dvm.asarray(x), dvm.asarray(np.int64(i)), dvm.asarray(row)))
    with pytest.raises(DTypeError, match="number of the row"):
        f(dvm.asarray(x), dvm.asarray(1.0), dvm.asarray(row))
    with pytest.raises(DTypeError, match="dtype of the row"):
        f(dvm.asarray(x), dvm.asarray(1), dvm.asarray(row).astype(dvm.int32))
    with pytest.raises(ShapeError, match="shapes, got an array"):
        f(dvm.asarray(x), dvm.asarray(1), dvm.asarray(x))


def test_errors() -> None:
    xs, h = dvm.asarray(floats(4, 3)), dvm.asarray(floats(3))
    for how in (lambda f: f, dvm.function):
        with pytest.raises(GraphError, match="no array and no length"):
            how(lambda h: dvm.scan(lambda c, x: (c, c), h, None))(h)
        with pytest.raises(ShapeError, match="lengths, got"):
            how(lambda h, x: dvm.scan(lambda c, x: (c, c), h, (x, x[:2])))(h, xs)
        with pytest.raises(ShapeError, match="lengths, got an array of no dimensions"):
            how(lambda h, x: dvm.scan(lambda c, x: (c, c), h, dvm.sum(x)))(h, xs)
        with pytest.raises(GraphError, match="scan: a branch or body, got Array, allowed"):
            how(lambda h, x: dvm.scan(h, h, x))(h, xs)
        with pytest.raises(GraphError, match="length, got -1"):
            how(lambda h: dvm.scan(lambda c, x: (c, c), h, None, length=-1))(h)
        with pytest.raises(GraphError, match="result of a step"):
            how(lambda h, x: dvm.scan(lambda c, x: c, h, x))(h, xs)
        with pytest.raises(GraphError, match="structure of the state"):
            how(lambda h, x: dvm.scan(lambda c, x: ((c, c), c), h, x))(h, xs)
        with pytest.raises(ShapeError, match="shape after a step"):
            how(lambda h, x: dvm.scan(lambda c, x: (dvm.sum(c), c), h, x))(h, xs)
        with pytest.raises(DTypeError, match="after a step"):
            how(lambda h, x: dvm.scan(lambda c, x: (c.astype(dvm.float64), c), h, x))(h, xs)


# ---- sizes that change: walked ------------------------------------------------------------------------------------------


def grown(x, n):
    """A cache that grows by a row each time, and is attended over."""

    def step(i, cache, y):
        cache = dvm.concat([cache, dvm.reshape(y, (1, -1))], axis=0)
        return i + 1, cache, dvm.softmax(cache @ y, axis=-1) @ cache

    return dvm.while_loop(lambda i, cache, y: i < n, step, (0, x, dvm.mean(x, axis=0)))


def test_a_cache_that_grows() -> None:
    traced = dvm.function(grown)
    for rows, n in ((1, 3), (2, 0), (3, 6)):
        x = floats(rows, 8)
        before = walks()
        steps, cache, y = traced(dvm.asarray(x), dvm.asarray(np.int64(n)))
        assert walks() == before + 1
        wanted = grown(dvm.asarray(x), dvm.asarray(np.int64(n)))
        assert int(steps) == n and np.asarray(cache).shape == (rows + n, 8)
        same(cache, wanted[1])
        same(y, wanted[2])
        values, last = x.astype(np.float64), x.astype(np.float64).mean(0)
        for _ in range(n):
            values = np.concatenate([values, last[None]])
            weights = np.exp(values @ last - (values @ last).max())
            last = weights / weights.sum() @ values
        np.testing.assert_allclose(np.asarray(y), last, rtol=1e-4, atol=1e-5)


def shrinking(x):
    """A beam that keeps what is above its mean, until one is left: sizes depend on data."""

    def step(i, beam):
        kept = dvm.compress(beam, beam > dvm.mean(beam))
        return i + 1, dvm.where(dvm.sum(kept) > 0, kept, kept)

    return dvm.while_loop(lambda i, beam: dvm.max(beam) > dvm.min(beam), step, (0, x), limit=50)


def test_a_beam_that_shrinks_with_the_data() -> None:
    traced = dvm.function(shrinking)
    for n in (1, 2, 17, 100):
        x = floats(n)
        count, beam = traced(dvm.asarray(x))
        steps = 0
        while x.max() > x.min():
            x, steps = x[x > np.float32(np.asarray(dvm.mean(dvm.asarray(x))))], steps + 1
        assert int(count) == steps
        same(beam, x)


def test_a_tree_that_is_walked() -> None:
    """Children by number; a node's value is its own and twice that of its heavier child. The path depends on values."""
    left, right = np.array([1, 3, 5, -1, -1, -1, -1]), np.array([2, 4, 6, -1, -1, -1, -1])

    def walk(values, left, right):
        def step(at, path):
            a, b = dvm.take(left, at), dvm.take(right, at)
            at = dvm.where(dvm.take(values, a) > dvm.take(values, b), a, b)
            return at, dvm.concat([path, dvm.reshape(at, (1,))])

        return dvm.while_loop(lambda at, path: dvm.take(left, at) >= 0, step, (0, dvm.asarray(np.zeros(1, np.int64))))[1]

    traced = dvm.function(walk)
    for _ in range(4):
        values, at, path = floats(7), 0, [0]
        while left[at] >= 0:
            at = int(left[at] if values[left[at]] > values[right[at]] else right[at])
            path.append(at)
        same(traced(dvm.asarray(values), dvm.asarray(left), dvm.asarray(right)), np.array(path))


def test_data_dependent_sizes_between_branches_and_loops() -> None:
    def f(x):
        x = dvm.scan(lambda c, v: (c + v, c * v), x[0] * 0, x)[1]
        places = dvm.argwhere(x > 0)
        kinds, counts = dvm.unique_counts(dvm.floor(x))
        picked = dvm.compress(x, x < 1)
        total = dvm.while_loop(lambda i, s: i < places.shape[0], lambda i, s: (i + 1, s + dvm.sum(picked)), (0, dvm.zeros(())))[1]
        return dvm.cond(dvm.sum(kinds) > 0, lambda: (places, counts), lambda: (places * 2, counts)), total

    traced = dvm.function(f)
    for n in (1, 5, 30):
        x = floats(n, 3)
        got, wanted = traced(dvm.asarray(x)), f(dvm.asarray(x))
        for one, other in zip((*got[0], got[1]), (*wanted[0], wanted[1]), strict=True):
            same(one, other)
        assert np.asarray(got[0][0]).shape[1] == 2


def test_a_scan_whose_carry_grows() -> None:
    def f(xs):
        return dvm.scan(lambda c, x: (dvm.concat([c, x]), dvm.sum(c)), xs[0], xs)

    traced = dvm.function(f)
    xs = dvm.asarray(floats(5, 3))
    same(traced(xs)[0], np.concatenate([np.asarray(xs)[0], np.asarray(xs).reshape(-1)]))
    same(traced(xs)[1], f(xs)[1])


def test_a_walked_function_takes_and_gives_what_a_traced_one_does() -> None:
    @dvm.function
    def f(x, scale, *, names):
        return {"found": dvm.nonzero(x > scale)[0], names: scale, "same": (x, [3, None])}

    got = f(np.array([0.5, 2.0, 3.0], np.float32), 1.0, names="n")
    same(got["found"], np.array([1, 2]))
    assert isinstance(got["n"], dvm.Array) and float(got["n"]) == 1.0 and got["same"][1] == [3, None]
    with pytest.raises(GraphError, match="walked with values, so it has no plan"):
        dvm.dump(f, np.zeros(3, np.float32), 1.0, names="n")
    outer = dvm.function(lambda x: f(x, 0.0, names="m")["found"] + 1)
    same(outer(np.array([-1.0, 2.0], np.float32)), np.array([2]))


def test_a_function_that_is_walked_for_some_sizes_alone() -> None:
    f = dvm.function(lambda x: dvm.while_loop(lambda i, v: i < 2, lambda i, v: (i + 1, v[:4] * 2), (0, x))[1])
    for n in (2, 5, 4, 9):
        x, before = floats(n), walks()
        same(f(dvm.asarray(x)), x[:4] * 4)
        assert walks() - before == (n > 4)
