"""cond, switch and while_loop: the same bits as Python control flow, in one launch, nested, for all sizes; and their errors."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array.function import planned_for
from dvm_rt.errors import DeviceTrap, DTypeError, EncodeError, GraphError, ShapeError
from dvm_rt.fusion.fuser import fuse
from dvm_rt.graph.graph import Graph

RNG = np.random.default_rng(11)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def same(got: object, wanted: object) -> None:
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes(), (got, wanted)


def launches(function: object) -> int:
    before = dvm.stats()["launches"]
    function()
    return dvm.stats()["launches"] - before


# ---- cond -----------------------------------------------------------------------------------------------------------


def by_sign(x):
    return dvm.cond(dvm.sum(x) > 0, lambda a: dvm.exp(a) + 1, lambda a: a * 2 - 3, x)


def test_cond_is_what_python_does() -> None:
    traced = dvm.function(by_sign)
    for n in (1, 2, 7, 130, 0):
        for sign in (1, -1):
            x = dvm.asarray(sign * np.abs(floats(n)) + np.float32(sign))
            same(traced(x), by_sign(x))


def test_cond_of_several_results_and_closures() -> None:
    w = dvm.asarray(floats(16, 16))

    @dvm.function
    def f(x, flag):
        bias = dvm.mean(x, axis=-1, keepdims=True)
        a, rest = dvm.cond(
            flag,
            lambda v: (v @ w + bias, {"k": v, "s": dvm.sum(v)}),
            lambda v: (v - bias, {"k": v * 2, "s": dvm.max(v)}),
            x,
        )
        return a * 2, rest["k"], rest["s"], x

    x = dvm.asarray(floats(5, 16))
    for flag in (True, False):
        got = f(x, dvm.asarray(flag))
        bias = dvm.mean(x, axis=-1, keepdims=True)
        wanted = (x @ w + bias, x, dvm.sum(x)) if flag else (x - bias, x * 2, dvm.max(x))
        for one, other in zip(got, (wanted[0] * 2, *wanted[1:], x), strict=True):
            same(one, other)


def test_a_branch_that_gives_its_operands() -> None:
    f = dvm.function(lambda a, b, flag: dvm.cond(flag, lambda x, y: (y, x), lambda x, y: (x, y), a, b))
    a, b = dvm.asarray(floats(9)), dvm.asarray(floats(9))
    for flag in (True, False):
        first, second = f(a, b, dvm.asarray(flag))
        same(first, b if flag else a)
        same(second, a if flag else b)


def test_nested_branches() -> None:
    def f(x):
        s = dvm.sum(x)
        return dvm.cond(
            s > 0,
            lambda v: dvm.cond(s > 5, lambda u: u + s, lambda u: u - 1, v * 2),
            lambda v: v / 2,
            x,
        )

    traced = dvm.function(f)
    for scale in (10, 1, -1):
        x = dvm.asarray(np.full(8, scale / 4, np.float32))
        same(traced(x), f(x))


def test_switch() -> None:
    branches = [lambda x: x + 1, lambda x: x * 2, lambda x: dvm.exp(x), lambda x: -x, lambda x: x * x]
    f = dvm.function(lambda i, x: dvm.switch(i, branches, x))
    x = dvm.asarray(floats(33))
    for i in range(-2, 7):
        same(f(dvm.asarray(np.int32(i)), x), branches[min(max(i, 0), 4)](x))
        same(dvm.switch(i, branches, x), branches[min(max(i, 0), 4)](x))


def test_errors_of_cond() -> None:
    x = dvm.asarray(floats(4))
    flag = dvm.asarray(True)
    with pytest.raises(DTypeError, match="predicate, got float32, allowed"):
        dvm.function(lambda v: dvm.cond(dvm.sum(v), lambda: v, lambda: v))(x)
    with pytest.raises(ShapeError, match="predicate, got shape"):
        dvm.function(lambda v: dvm.cond(v > 0, lambda: v, lambda: v))(x)
    with pytest.raises(DTypeError, match="predicate"):
        dvm.cond(x, lambda: x, lambda: x)
    with pytest.raises(ShapeError, match="shapes of the branches"):
        dvm.function(lambda v, p: dvm.cond(p, lambda: v, lambda: dvm.sum(v)))(x, flag)
    with pytest.raises(DTypeError, match="dtypes of the branches"):
        dvm.function(lambda v, p: dvm.cond(p, lambda: v, lambda: v.astype(dvm.int32)))(x, flag)
    with pytest.raises(GraphError, match="structure of the results"):
        dvm.function(lambda v, p: dvm.cond(p, lambda: v, lambda: (v, v)))(x, flag)
    with pytest.raises(GraphError, match=r"results, got \{'a': array, 'b': \[array, None\]\} and \(array,\), allowed"):
        dvm.function(lambda v, p: dvm.cond(p, lambda: {"a": v, "b": [v, None]}, lambda: (v,)))(x, flag)
    for how in (lambda f: f, dvm.function):
        with pytest.raises(GraphError, match="cond: a branch or body, got Array, allowed Python functions"):
            how(lambda v: dvm.cond(dvm.sum(v) > 0, lambda: v, v))(x)
        with pytest.raises(DTypeError, match="cond: predicate, got NoneType, allowed"):
            how(lambda v: dvm.cond(None, lambda: v, lambda: v))(x)
        for index in (v := dvm.asarray(1.0), True, 1.5):
            with pytest.raises(DTypeError, match="switch: index"):
                how(lambda v, index=index: dvm.switch(index, [lambda: v]))(v)
        with pytest.raises(GraphError, match="switch: a branch or body, got int, allowed"):
            how(lambda v: dvm.switch(0, [lambda: v, 3]))(x)


def test_whole_numbers_that_branches_give_are_values() -> None:
    """Outside of a function they are Python's; equal ones stay static inside of one, too."""
    f = dvm.function(lambda v: dvm.cond(dvm.sum(v) > 0, lambda: (7, v, "name"), lambda: (-7, v, "name")))
    which = dvm.function(lambda i: dvm.switch(i, [lambda: 1, lambda: 2, lambda: 3]))
    for value in (1.0, -1.0):
        number, _, name = f(dvm.asarray([value]))
        assert int(number) == 7 * value and number.dtype is dvm.int64 and name == "name"
    assert [int(which(dvm.asarray(i))) for i in range(3)] == [1, 2, 3]
    assert dvm.function(lambda v: dvm.cond(dvm.sum(v) > 0, lambda: (v, 5), lambda: (-v, 5)))(dvm.asarray([1.0]))[1] == 5
    with pytest.raises(DTypeError, match="dtypes of the branches, got int64 and float32"):
        dvm.function(lambda v: dvm.cond(dvm.sum(v) > 0, lambda: 1, lambda: 2.0))(dvm.asarray([1.0]))


# ---- while_loop -----------------------------------------------------------------------------------------------------


def collatz(n):
    def step(v, count):
        return dvm.where(v % 2 == 0, v // 2, v * 3 + 1), count + 1

    return dvm.while_loop(lambda v, count: v != 1, step, (n, 0))


def test_a_loop_runs_as_often_as_python_does() -> None:
    traced = dvm.function(collatz)
    for n in (1, 2, 7, 27, 97):
        v, count, steps = n, 0, 0
        while v != 1:
            v, count = v // 2 if v % 2 == 0 else v * 3 + 1, count + 1
        got, steps = traced(dvm.asarray(np.int64(n)))
        assert int(got) == 1 and int(steps) == count
        assert int(collatz(dvm.asarray(np.int64(n)))[1]) == count


def converge(x, w, tolerance=1e-3):
    def step(v, _):
        new = dvm.tanh(v @ w) * 0.5 + x
        return new, dvm.max(dvm.abs(new - v)) > tolerance

    return dvm.while_loop(lambda _, going: going, step, (x, True), limit=200)[0]


def test_until_it_settles_in_one_launch() -> None:
    traced = dvm.function(converge)
    w = dvm.asarray(floats(24, 24) / 5)
    for n in (1, 3, 8):
        x = dvm.asarray(floats(n, 24))
        same(traced(x, w), converge(x, w))
        assert launches(lambda x=x: np.asarray(traced(x, w))) == 1


def test_state_that_is_swapped_and_kept() -> None:
    def f(a, b, c, n):
        return dvm.while_loop(lambda i, x, y, z: i < n, lambda i, x, y, z: (i + 1, y, x + y, z),
                              (dvm.asarray(np.int32(0)), a, b, c))

    traced = dvm.function(f)
    a, b, c = (dvm.asarray(floats(50)) for _ in range(3))
    for n in range(5):
        for got, wanted in zip(traced(a, b, c, dvm.asarray(np.int32(n))), f(a, b, c, dvm.asarray(np.int32(n))), strict=True):
            same(got, wanted)


def test_values_that_live_across_a_loop() -> None:
    """What is computed before and read after must not lie where the loop works."""

    def f(x):
        kept = [dvm.exp(x * i) for i in range(4)]
        y = dvm.while_loop(lambda v: dvm.sum(v) > 1.0, lambda v: dvm.softmax(v) * dvm.sum(v) / 3, dvm.abs(x))
        return sum((k * y for k in kept), start=dvm.max(y))

    traced = dvm.function(f)
    for n in (1, 17, 200):
        x = dvm.asarray(floats(n) / 3)
        same(traced(x), f(x))


def test_nested_loops_and_branches() -> None:
    def inner(v, k):
        return dvm.while_loop(lambda u, j: j < k, lambda u, j: (u * 0.5 + dvm.mean(u), j + 1), (v, 0))[0]

    def f(x, n):
        def step(i, v):
            v = dvm.cond(i % 2 == 0, lambda u: inner(u, i), lambda u: dvm.sin(u) + x, v)
            return i + 1, v

        return dvm.while_loop(lambda i, v: i < n, step, (0, x))[1]

    traced = dvm.function(f)
    x = dvm.asarray(floats(3, 11))
    for n in range(6):
        same(traced(x, dvm.asarray(np.int64(n))), f(x, dvm.asarray(np.int64(n))))


@pytest.mark.parametrize("dtype", ["float16", "int8", "float64", "bool"])
def test_dtypes(dtype: str) -> None:
    def f(x, n):
        return dvm.while_loop(lambda i, v: i < n, lambda i, v: (i + 1, (v + v).astype(getattr(dvm,
            dtype + "_" * (dtype == "bool")))), (0, x))[1]

    x = dvm.asarray(floats(19)).astype(getattr(dvm, dtype + "_" * (dtype == "bool")))
    if dtype == "bool":
        f = lambda x, n: dvm.while_loop(lambda i, v: i < n, lambda i, v: (i + 1, dvm.logical_not(v)), (0, x))[1]  # noqa: E731
    traced = dvm.function(f)
    for n in (0, 1, 4):
        same(traced(x, dvm.asarray(np.int64(n))), f(x, dvm.asarray(np.int64(n))))


def test_errors_of_while_loop() -> None:
    x = dvm.asarray(floats(4))
    for limit in (0, 1 << 62, 2.0, True):
        with pytest.raises(GraphError, match="limit, got"):
            dvm.while_loop(lambda v: dvm.sum(v) > 0, lambda v: v, x, limit=limit)
    for how in (lambda f: f, dvm.function):
        with pytest.raises(DTypeError, match="predicate"):
            how(lambda v: dvm.while_loop(lambda u: dvm.sum(u), lambda u: u, v))(x)
        with pytest.raises(ShapeError, match="shape after a step"):
            how(lambda v: dvm.while_loop(lambda u: dvm.sum(u) == dvm.sum(u), lambda u: dvm.sum(u), v))(x)
        with pytest.raises(DTypeError, match="after a step"):
            how(lambda v: dvm.while_loop(lambda u: dvm.sum(u) == dvm.sum(u), lambda u: u.astype(dvm.float64), v))(x)
        with pytest.raises(GraphError, match="structure of the state"):
            how(lambda v: dvm.while_loop(lambda *u: dvm.sum(u[0]) == dvm.sum(u[0]), lambda u: (u, u), (v,)))(x)
        with pytest.raises(GraphError, match=r"got \(array,\), allowed that before it, \(array, array\)"):
            how(lambda v: dvm.while_loop(lambda u, w: dvm.sum(u) == dvm.sum(u), lambda u, w: (u,), (v, v)))(x)
        with pytest.raises(GraphError, match="while_loop: a branch or body, got Array, allowed"):
            how(lambda v: dvm.while_loop(lambda u: dvm.sum(u) > 0, v, v))(x)


def test_a_large_limit_is_bounded_by_the_work_of_a_launch() -> None:
    def f(limit: int) -> object:
        x = dvm.asarray(np.zeros(2, np.float32))
        return dvm.function(lambda v: dvm.while_loop(lambda u: dvm.sum(u) < 10, lambda u: u + 1, v, limit=limit))(x)

    same(f(1 << 32), np.full(2, 5, np.float32))
    with pytest.raises(EncodeError, match=r"more work than 2\^40 steps"):
        f(1 << 40)


def test_a_loop_over_its_limit_is_an_error_and_the_next_call_works() -> None:
    def f(x):
        return dvm.while_loop(lambda v: dvm.sum(v) > 0, lambda v: v * 0.5, x, limit=10)

    traced = dvm.function(f)
    for how in (f, traced):
        with pytest.raises(DeviceTrap, match="go on, got 10, allowed 10 iterations"):
            np.asarray(how(dvm.asarray(np.ones(6, np.float32))))
        same(how(dvm.asarray(np.zeros(6, np.float32))), np.zeros(6, np.float32))


BODIES = {  # (x, y, total) -> the same; what reads x when may differ, the bytes may not
    "a total of old and new": lambda x, y, t: (x * 0.5 + y, y, dvm.sum(dvm.abs(x * 0.5 + y - x))),
    "two totals": lambda x, y, t: (x * 0.5 + y, y, dvm.max(x) + dvm.min(x * 0.5 + y)),
    "a total of a total": lambda x, y, t: (x * 0.5 + y, y, dvm.sum(dvm.square(x - dvm.mean(x)))),
    "a total that the new one needs": lambda x, y, t: (x - dvm.mean(x) + y, y, dvm.max(x)),
    "both states from both": lambda x, y, t: (x * 0.5 + y, x - y, t + 1),
    "the second from the first": lambda x, y, t: (dvm.tanh(x), dvm.tanh(x) * x, dvm.sum(x * y)),
    "swapped": lambda x, y, t: (y, x, dvm.sum(x) - dvm.sum(y)),
    "moved": lambda x, y, t: (dvm.flip(x), dvm.roll(y, 1), dvm.max(x - y)),
    "spread": lambda x, y, t: (x + x[:1], y * x[-1], t + x[0]),
    "many totals": lambda x, y, t: (x * 0.5, y, sum(dvm.sum(x * (i + 1.0)) for i in range(6))),
}


@pytest.mark.parametrize("name", BODIES)
def test_state_is_written_in_place_only_where_nothing_reads_it_later(name: str) -> None:
    body = BODIES[name]

    def f(x, y, n):
        return dvm.while_loop(lambda i, x, y, t: i < n, lambda i, *s: (i + 1, *body(*s)), (0, x, y, dvm.sum(x)))

    traced = dvm.function(f)
    for size in (1, 2, 7, 129, 4000, 40_000):
        x, y = dvm.asarray(floats(size)), dvm.asarray(floats(size))
        for n in (1, 3):
            for got, wanted in zip(traced(x, y, dvm.asarray(np.int64(n))), f(x, y, dvm.asarray(np.int64(n))), strict=True):
                same(got, wanted)


def test_a_state_whose_change_is_measured_is_not_copied() -> None:
    f = dvm.function(lambda x, b: dvm.while_loop(lambda x, going: going, lambda x, _: _newton(x, b), (x, True))[0])
    plan = dvm.dump(f, dvm.zeros((9,)) + 2, dvm.zeros((9,)) + 2)
    loop = plan[plan.index("BRANCH") :]
    assert loop.count(" COPY float32 rows of [0]") <= 1 and " COPY float32 rows of [s0]" not in loop, plan


def _newton(x, b):
    new = (x + b / x) * 0.5
    return new, dvm.max(dvm.abs(new - x)) > 1e-5


# ---- nested deeply --------------------------------------------------------------------------------------------------


def leaf(a, b):
    return a + b, b * 2


def branches(depth: int) -> Callable:
    if depth == 0:
        return leaf
    inner = branches(depth - 1)
    return lambda a, b: dvm.cond(dvm.sum(a) > depth, inner, lambda x, y: (x - 1, y + 1), a, b)


def loops(depth: int) -> Callable:
    if depth == 0:
        return leaf
    inner = loops(depth - 1)

    def f(a, b):
        return dvm.while_loop(lambda i, *_: i < 1, lambda i, *s: (i + 1, *inner(*s)), (0, a, b), limit=2)[1:]

    return f


def scans(depth: int) -> Callable:
    if depth == 0:
        return leaf
    inner = scans(depth - 1)

    def f(a, b):
        (x, y), rows = dvm.scan(lambda state, _: (inner(*state), state[0]), (a, b), None, length=1)
        return x, y + rows[0] * 0

    return f


def numbers_or_arrays(depth: int) -> Callable:
    """A number in one branch, an array in the other."""
    if depth == 0:
        return lambda a, b: (a + b, 5)
    inner = numbers_or_arrays(depth - 1)
    return lambda a, b: dvm.cond(dvm.sum(a) > depth, inner, lambda x, y: (x + y, depth), a, b)


def calls(python: Callable[[], object]) -> int:
    """How many Python functions run."""
    count = 0

    def note(frame: object, event: str, _: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        python()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("nested", [branches, loops, scans, numbers_or_arrays])
def test_what_is_nested_costs_its_size_not_two_to_its_depth(nested: Callable) -> None:
    """16 deep, two results each: tracing, planning and what travels to a worker."""
    work, sizes = {}, {}
    a, b = np.arange(4, dtype=np.float32) + 10, np.arange(4, dtype=np.float32)
    for depth in (8, 16):
        f = dvm.function(nested(depth))
        x, y = dvm.asarray(a), dvm.asarray(b)
        work[depth] = calls(lambda: planned_for(f, (x, y), {}))  # noqa: B023
        first, second = f(x, y)
        same(first, a + b)
        same(second, np.asarray(5) if nested is numbers_or_arrays else b * 2)
        graph = planned_for(f, (x, y), {})[1].graph
        again = Graph.from_wire(graph.to_wire())
        assert again.to_wire() == graph.to_wire() and again.dump() == graph.dump()
        assert fuse(again).plan == fuse(graph).plan
        sizes[depth] = len(repr(graph.to_wire())), len(graph.dump())
    assert work[16] < 8 * work[8], work  # 2 ** 8 times as much, if each result had its own copy
    assert all(large < 8 * small for large, small in zip(sizes[16], sizes[8], strict=True)), sizes
    fewer = nested(16)
    same(dvm.function(fewer)(dvm.asarray(a - 100), dvm.asarray(b))[0], fewer(dvm.asarray(a - 100), dvm.asarray(b))[0])


@pytest.mark.parametrize("name", ["any", "all", "softmax", "log_softmax"])
def test_loops_over_arrays_that_are_known_to_be_empty(name: str) -> None:
    """What has a result of nothing has it where the sizes are numbers and nothing is left out, too."""
    steps = {"any": lambda x: x + dvm.any(x > 0).astype("float32"), "all": lambda x: x + dvm.all(x > 0).astype("float32"),
             "softmax": lambda x: dvm.softmax(x, axis=0), "log_softmax": lambda x: dvm.log_softmax(x, axis=0)}  # fmt: skip
    empty = dvm.asarray(np.zeros((0, 5), np.float32))

    @dvm.function
    def looped(most: dvm.Array) -> tuple:
        return dvm.while_loop(lambda n, x: (n < most) & ~dvm.any(x > 1), lambda n, x: (n + 1, steps[name](x)), (0, empty))

    count, x = looped(np.asarray(3))
    assert int(count) == 3 and np.asarray(x).shape == (0, 5)
