"""Nobody waits for a plan: an unseen graph runs operator by operator at once, and on its plan once that is there; the
same bytes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import dtypes
from dvm_rt.array import quick
from dvm_rt.array.session import UNPLANNED, session
from dvm_rt.errors import DTypeError, ShapeError, UnsupportedOperatorError
from dvm_rt.graph.graph import Graph, Make, parameter
from dvm_rt.graph.operators import TABLE
from dvm_rt.graph.symbols import Facts, symbol
from tests.array.conftest import fresh
from tests.fusion.random_graphs import SHAPES, any_operators, random_graph, shapes_for

F32 = np.float32


@pytest.fixture
def runtime() -> Iterator[dvm.Runtime]:
    with dvm.Runtime(inline=True) as rt:
        yield rt


@pytest.fixture(autouse=True)
def _operators_that_were_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick tier is for operators that were met before: here all of them count as such."""
    monkeypatch.setattr(quick.QuickTier, "are_new", lambda self, graph: False)


def graph_of(kind: Callable, seed: int, steps: int) -> Graph:
    """A random graph over symbols."""
    facts, parameters, count = Facts(), [], 0
    for index, names in enumerate(SHAPES):
        shape = tuple(1 if n == 1 else symbol(count + i) for i, n in enumerate(names))
        count += len(names)
        parameters.append(parameter(index, shape, dtypes.float32))
    return Graph.of(parameters, kind(seed, steps)(Make(facts), *parameters), facts)


def read(tensors: tuple) -> list[tuple]:
    return [(t.shape, t.dtype, session().stream.read(t).tobytes()) for t in tensors]


@pytest.mark.parametrize("kind", [random_graph, any_operators])
@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_graphs_have_the_bytes_of_their_plan(runtime: dvm.Runtime, kind: Callable, first: int) -> None:
    of, rng, ran = session(), np.random.default_rng(first), 0
    for seed in range(first, first + 20):
        graph = graph_of(kind, seed, 14)
        tensors = [of.stream.asarray(rng.standard_normal(shape).astype(F32))
                   for shape in shapes_for(*map(int, rng.integers(1, 9, 4)))]
        planned = of.plan(graph, [])
        try:
            quickly = read(of.call(planned, tensors))
        except ShapeError:  # sizes of 1 and 2 where the graph demands equal ones
            continue
        ran += planned.number == UNPLANNED
        assert read(of.call(planned, tensors)) == quickly and planned.number != UNPLANNED
    assert ran >= 10


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64", "int8", "uint16", "int32", "uint64", "bool"])
def test_every_operator_of_two_operands_in_every_dtype(runtime: dvm.Runtime, name: str) -> None:
    of, dtype, rng, ran = session(), dtypes.BY_NAME[name], np.random.default_rng(3), 0
    for row in TABLE:
        if row.attributes or row.inputs not in (1, 2) or row.name in ("take", "nonzero"):
            continue
        x, y = (parameter(i, (symbol(0), symbol(1)), dtype) for i in range(2))
        op = Make(Facts())
        try:
            once = getattr(op, row.name)(*(x, y)[: row.inputs])
            graph = Graph.of([x, y], [once, op.not_equal(x, y)], op.facts)
        except (DTypeError, ShapeError, UnsupportedOperatorError):
            continue
        n = 3 if "matmul" in row.name or row.name in ("matrix_product", "linear") else 5
        tensors = [of.stream.asarray(dtypes.to_storage(rng.integers(0, 7, (3, n)), dtype), dtype.code) for _ in range(2)]
        planned = of.plan(graph, [])
        quickly = read(of.call(planned, tensors))
        assert planned.number == UNPLANNED, row
        assert read(of.call(planned, tensors)) == quickly, row
        ran += 1
    assert ran >= 4


def test_a_function_runs_quickly_then_on_its_plan(runtime: dvm.Runtime) -> None:
    @dvm.function
    def step(x: dvm.Array, w: dvm.Array, b: dvm.Array) -> dvm.Array:
        return dvm.layer_norm(dvm.gelu(x @ w + b), None, None) * 0.5 + x

    given = [dvm.asarray(fresh(*s)) for s in ((5, 8), (8, 8), (8,))]
    first = np.asarray(step(*given))
    stats = dvm.stats()
    assert stats["plans_made"] == 0 and stats["quick_launches"] > 1
    assert np.asarray(step(*given)).tobytes() == first.tobytes()
    launched = dvm.stats()["launched"]
    assert np.asarray(step(*given)).tobytes() == first.tobytes()
    stats = dvm.stats()
    assert stats["launched"] == launched + 1 and stats["plans_made"] == stats["plans_swapped"] == 1
    (swap,) = stats["swaps"]
    assert swap["quick_calls"] == 1 and swap["quick_launches"] > 1 and swap["quick_us"] > 0 and swap["fused_us"] > 0


def test_what_is_not_for_all_sizes_runs_quickly_too(runtime: dvm.Runtime) -> None:
    @dvm.function
    def first_column(x: dvm.Array, w: dvm.Array) -> dvm.Array:
        return dvm.tanh(x @ w) + x[:, :1]  # traced for all sizes, w would have one column at most

    x, w = dvm.asarray(fresh(5, 8)), dvm.asarray(fresh(8, 8))
    first = np.asarray(first_column(x, w)).tobytes()
    assert dvm.stats()["plans_made"] == 0 and dvm.stats()["quick_launches"] > 0
    assert [np.asarray(first_column(x, w)).tobytes() for _ in range(2)] == [first] * 2
    assert dvm.stats()["plans_made"] == 1


def test_a_lazy_graph_runs_quickly_then_on_its_plan(runtime: dvm.Runtime) -> None:
    x, y = dvm.asarray(fresh(4, 6)), dvm.asarray(fresh(6))

    def value() -> bytes:
        return np.asarray(dvm.sum(dvm.tanh(x * 2.0 + y) - 0.25, axis=0)).tobytes()

    first = value()
    assert dvm.stats()["plans_made"] == 0 and dvm.stats()["lazy_plans"] == 0
    assert value() == first and dvm.stats()["plans_made"] == 1
    assert value() == first and dvm.stats()["plans_made"] == 1


def test_unseen_graphs_of_known_operators_need_no_planning(runtime: dvm.Runtime) -> None:
    x = dvm.asarray(fresh(4, 6))
    np.asarray(dvm.tanh(dvm.exp(x) + x))
    before = dvm.stats()
    for k in range(2, 6):
        y = x
        for _ in range(k):
            y = dvm.exp(dvm.tanh(y)) + y
        np.asarray(y)
    after = dvm.stats()
    assert after["quick_launches"] == before["quick_launches"] + 3 * (2 + 3 + 4 + 5)
    assert after["quick_plans"] == before["quick_plans"] and after["plans_made"] == 0


def test_attention_is_found_in_unplanned_graphs_too(runtime: dvm.Runtime) -> None:
    """The pattern changes the arithmetic, so both tiers must use it."""
    q, k, v = (dvm.asarray(fresh(2, 70, 16)) for _ in range(3))

    def mixed(q: dvm.Array, k: dvm.Array, v: dvm.Array) -> dvm.Array:
        return dvm.softmax(q @ k.mT * 0.25, axis=-1) @ v

    def lazily() -> bytes:
        return np.asarray(mixed(q, k, v)).tobytes()

    traced = dvm.function(mixed)
    once = lazily()
    assert lazily() == once
    assert [np.asarray(traced(q, k, v)).tobytes() for _ in range(3)] == [once] * 3
    assert "pattern attention" in dvm.explain(traced, q, k, v)


def test_numbers_keep_their_signs_and_dtypes(runtime: dvm.Runtime) -> None:
    x = dvm.asarray(np.array([0.0, -0.0, 2.0], F32))
    for number in (0.0, -0.0, 0, 1, True, float("inf")):
        results = [np.asarray(dvm.copysign(x, x * number) + number).tobytes() for _ in range(3)]
        assert results[0] == results[1] == results[2], number


def test_what_would_move_much_is_planned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_QUICK_BYTES_MAX", "4096")
    with dvm.Runtime(inline=True):
        x = dvm.asarray(fresh(64, 64))
        assert np.isfinite(np.asarray(dvm.tanh(x) + 1.0)).all()
        assert dvm.stats()["plans_made"] == 1


def test_what_would_be_large_is_not_even_made_once() -> None:
    def mean(n: int) -> float:
        row = dvm.asarray(np.ones(n, F32))
        rows = dvm.mean(dvm.broadcast_to(row, (n, n)), axis=1), dvm.mean(row * dvm.expand_dims(row, axis=1), axis=1)
        return float(rows[0][0]) + float(rows[1][n - 1])

    with dvm.Runtime(inline=True):
        assert mean(8) == 2.0  # the quick tier has met its operators
        assert mean(1 << 13) == 2.0
        assert dvm.stats()["quick_launches"] and dvm.stats()["memory"]["arena"] < 64 << 20


@pytest.mark.parametrize("encode", ["caller", "workers"])
def test_who_asks_for_a_plan_gets_it_first(encode: str) -> None:
    with dvm.Runtime(inline=True, encode=encode):
        np.asarray(dvm.tanh(dvm.asarray(fresh(3))) + 1.0)
        assert dvm.stats()["quick_launches"] == 0 and dvm.stats()["plans_made"] == 1


def test_control_flow_and_hand_written_kernels_have_plans(runtime: dvm.Runtime) -> None:
    @dvm.kernel
    def scaled(k: object, x: dvm.Array) -> None:
        with k.section("only"):
            k.store(k.tanh(k.load(x)) * 2.0)

    @dvm.function
    def chosen(p: dvm.Array, x: dvm.Array) -> dvm.Array:
        return dvm.cond(p, lambda y: y + 1.0, lambda y: y * 2.0, x)

    x = dvm.asarray(fresh(5))
    np.asarray(scaled(x))
    np.asarray(chosen(dvm.asarray(np.array(True)), x))
    assert dvm.stats()["quick_launches"] == 0


def test_what_is_wrong_is_said_as_the_plan_says_it() -> None:
    @dvm.function
    def joined(x: dvm.Array, y: dvm.Array) -> dvm.Array:
        return dvm.tanh(x) + y

    said = []
    for encode in ("auto", "caller"):
        with dvm.Runtime(inline=True, encode=encode), pytest.raises(ShapeError) as caught:
            np.asarray(joined(dvm.asarray(fresh(3)), dvm.asarray(fresh(4))))
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_the_tier_keeps_no_more_plans_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_PLANS_MAX", "4")
    with dvm.Runtime(inline=True):
        for k in range(1, 9):
            x = dvm.asarray(fresh(3, 4, 9))
            assert np.asarray(x[:, :, k:]).shape == (3, 4, 9 - k)
        assert len(session().quick._plans) <= 4


def test_a_worker_makes_the_plan_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_PLAN_PATIENCE_US", "1e8")

    @dvm.function
    def step(x: dvm.Array, y: dvm.Array) -> dvm.Array:
        return dvm.softmax(dvm.tanh(x * y) + 1.0, axis=-1)

    with dvm.Runtime(encoders=1, threads=1):
        x, y = dvm.asarray(fresh(6, 7)), dvm.asarray(fresh(7))
        first, end = np.asarray(step(x, y)).tobytes(), time.monotonic() + 20
        lazy = np.asarray(dvm.sum(x * y)).tobytes()
        while dvm.stats()["plans_swapped"] < 2 and time.monotonic() < end:
            assert np.asarray(step(x, y)).tobytes() == first
            assert np.asarray(dvm.sum(x * y)).tobytes() == lazy
        stats = dvm.stats()
        assert stats["plans_by_workers"] == stats["plans_swapped"] == 2 and stats["plan_ns"] > 0


def test_a_worker_that_gets_no_time_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_PLAN_PATIENCE_US", "0")
    with dvm.Runtime(encoders=1, threads=1) as rt:
        rt.kill("encoder", signal.SIGSTOP)
        x = dvm.asarray(fresh(6, 7))
        values = [np.asarray(dvm.softmax(dvm.tanh(x) * 1.5, axis=-1)).tobytes() for _ in range(4)]
        assert values == values[:1] * 4
        stats = dvm.stats()
        assert stats["plans_taken_back"] == stats["plans_swapped"] == 1
        rt.kill("encoder", signal.SIGCONT)


def test_a_worker_that_dies_costs_the_plan_nothing() -> None:
    @dvm.function
    def step(x: dvm.Array) -> dvm.Array:
        return dvm.softmax(dvm.tanh(x) + 1.0, axis=-1)

    with dvm.Runtime(encoders=1, threads=1) as rt:
        x = dvm.asarray(fresh(6, 7))
        first, end = np.asarray(step(x)).tobytes(), time.monotonic() + 20
        rt.kill("encoder")
        while not dvm.stats()["plans_swapped"] and time.monotonic() < end:
            assert np.asarray(step(x)).tobytes() == first
        assert dvm.stats()["plans_swapped"] == 1
