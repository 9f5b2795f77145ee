"""@function: one trace a signature, one plan for all shapes, one launch a call; and what is seen inside."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array.explain import planned_for
from dvm_rt.errors import GraphError, ShapeError
from dvm_rt.graph.graph import evaluate
from tests.array.conftest import F32, fresh


def test_one_plan_for_all_shapes(counts) -> None:
    traced = []

    @dvm.function
    def block(x, w, b):
        traced.append(x.shape)
        return dvm.gelu(x @ w + b)

    for n, k, m in ((3, 4, 5), (7, 4, 9), (2, 130, 3), (0, 4, 4)):
        a, w, b = fresh(n, k), fresh(k, m), fresh(m)
        got = np.asarray(block(dvm.asarray(a), dvm.asarray(w), dvm.asarray(b)))
        z = (a @ w + b).astype(np.float64)
        np.testing.assert_allclose(got, 0.5 * z * (1 + np.vectorize(__import__("math").erf)(z / 2**0.5)) if z.size
                                   else z, 1e-4, 1e-4)
    assert len(traced) == 1 and counts["plans"] == 1 and counts["calls"] == 4


def fast_only(f: dvm.Function, *args: object) -> object:
    """A call that never enters the interpreter."""
    with patch.object(f, "_call", side_effect=AssertionError("the slow way")):
        return f(*args)


def test_the_fast_path_gives_the_same_as_the_slow_one() -> None:
    @dvm.function
    def f(x, y):
        return x * y + 1.0

    x, y = dvm.asarray(fresh(5)), dvm.asarray(fresh(5))
    slow, fast = np.asarray(f(x, y)), np.asarray(f(x, y))
    assert slow.tobytes() == fast.tobytes() == np.asarray(fast_only(f, x, y)).tobytes()
    assert np.asarray(f(x + 0, y)).tobytes() == fast.tobytes()  # pending arguments
    assert np.asarray(f(x=x, y=y)).tobytes() == fast.tobytes()
    assert np.asarray(f(np.asarray(x), y)).tobytes() == fast.tobytes()
    assert np.asarray(f(x, 2.0)).tolist() == (np.asarray(x) * 2 + 1).tolist()
    assert f(dvm.asarray(fresh(5)[:1]), y).shape == (5,)


def test_static_arguments_and_trees(counts) -> None:
    class Pair(NamedTuple):
        a: object
        b: object

    @dvm.function
    def f(tree, n, name="tanh", *, flag=None):
        x = getattr(dvm, name)(tree["x"]) * n
        return {"sum": x + tree["pair"].a, "rest": [tree["pair"].b, n, None], "pair": Pair(x, name)}

    a, b = fresh(4), fresh(4)
    tree = {"x": dvm.asarray(a), "pair": Pair(dvm.asarray(b), dvm.asarray(a))}
    out = f(tree, 3)
    np.testing.assert_allclose(np.asarray(out["sum"]), np.tanh(a) * 3 + b, 1e-5)
    assert np.asarray(out["rest"][0]).tobytes() == a.tobytes() and out["rest"][1:] == [3, None]
    assert type(out["pair"]) is Pair and out["pair"].b == "tanh"
    assert counts["traces"] == 1
    f(tree, 3)
    f(tree, 4)
    f(tree, 3, "exp")
    f(tree, 3, flag=True)
    assert counts["traces"] == 4


def test_floats_are_inputs(counts) -> None:
    @dvm.function
    def f(x, rate):
        return x * rate

    a = fresh(3)
    for rate in (0.5, 0.25, 3.0):
        np.testing.assert_array_equal(np.asarray(f(dvm.asarray(a), rate)), a * F32(rate))
    assert counts["traces"] == 1


def test_captured_arrays_are_constants(counts) -> None:
    w, b = fresh(4, 5), fresh(5)
    weight, bias = dvm.asarray(w), dvm.asarray(b) + 0.0  # one of them pending

    @dvm.function
    def f(x):
        scaled = weight * 2.0  # of captured arrays only: computed while tracing
        return x @ scaled + bias

    for n in (2, 3):
        a = fresh(n, 4)
        np.testing.assert_allclose(np.asarray(f(dvm.asarray(a))), a @ (w * 2) + b, 1e-4, 1e-5)
    assert counts["traces"] == 1
    with pytest.raises(ShapeError):
        f(dvm.asarray(fresh(2, 5)))
    np.testing.assert_allclose(np.asarray(f(dvm.asarray(a))), a @ (w * 2) + b, 1e-4, 1e-5)


def test_a_constant_or_an_argument_as_result() -> None:
    k = dvm.asarray(fresh(3))
    f = dvm.function(lambda x: (x, k, 1.5, x + 1))
    a = fresh(2)
    same, constant, number, more = f(dvm.asarray(a))
    assert np.asarray(same).tobytes() == a.tobytes() and np.asarray(constant).tobytes() == np.asarray(k).tobytes()
    assert float(number) == 1.5 and np.asarray(more).tobytes() == (a + 1).tobytes()
    assert dvm.function(lambda x: None)(dvm.asarray(a)) is None


def test_functions_inline(counts) -> None:
    @dvm.function
    def inner(x):
        return dvm.tanh(x)

    @dvm.function
    def outer(x):
        return inner(x) + inner(x * 2)

    a = fresh(6)
    np.testing.assert_allclose(np.asarray(outer(dvm.asarray(a))), np.tanh(a) + np.tanh(a * 2), 1e-5, 1e-6)
    assert counts["calls"] == 1 and counts["plans"] == 1


def test_methods() -> None:
    class Model:
        def __init__(self, scale: float) -> None:
            self.w = dvm.asarray(np.full((3,), scale, F32))

        @dvm.function
        def forward(self, x):
            return x * self.w

    a = fresh(3)
    two, three = Model(2.0), Model(3.0)
    assert np.asarray(two.forward(dvm.asarray(a))).tobytes() == (a * 2).tobytes()
    assert np.asarray(three.forward(dvm.asarray(a))).tobytes() == (a * 3).tobytes()
    assert two.forward is two.forward


def test_control_flow_on_traced_values_is_refused_with_advice() -> None:
    x = dvm.asarray(fresh(3))
    for use in (
        lambda x: x if x.sum() > 0
        else -x, lambda x: float(x[0]), lambda x: np.asarray(x), lambda x: int(x[0]), lambda x: x.item(),
        lambda x: dvm.eval(x), lambda x: [row for row in x], lambda x: x[: int(x.shape[0])],
    ):  # fmt: skip
        with pytest.raises(GraphError, match="allowed"):
            dvm.function(use)(x)
    assert repr(dvm.function(lambda x: print(x) or x)) and float((x * 0).sum()) == 0


def test_arrays_do_not_leave_their_trace() -> None:
    kept = []

    @dvm.function
    def f(x):
        kept.append(x + 1)
        return x

    f(dvm.asarray(fresh(3)))
    with pytest.raises(GraphError):
        np.asarray(kept[0])
    with pytest.raises(GraphError):
        dvm.function(lambda x: x + kept[0])(dvm.asarray(fresh(3)))


def test_symbolic_sizes_in_python() -> None:
    @dvm.function
    def f(x, table):
        rows, columns = x.shape
        half = columns // 2
        y = dvm.concat([x[:, half:], x[:, :half]], axis=1) + table[:rows]
        return y.reshape(rows * columns) * rows, dvm.ones((rows, 2)), x.reshape(rows, 2, half)

    table = fresh(20, 6)
    for n in (2, 5):
        a = fresh(n, 6)
        y, ones, cut = f(dvm.asarray(a), dvm.asarray(table))
        want = (np.concatenate([a[:, 3:], a[:, :3]], 1) + table[:n]).reshape(-1) * n
        np.testing.assert_allclose(np.asarray(y), want, 1e-6)
        assert np.asarray(ones).tolist() == [[1.0, 1.0]] * n and np.asarray(cut).tobytes() == a.tobytes()
    with pytest.raises(ShapeError):
        f(dvm.asarray(fresh(21, 6)), dvm.asarray(table))
    with pytest.raises(ShapeError):
        f(dvm.asarray(fresh(2, 7)), dvm.asarray(fresh(20, 7)))


def test_conditions_that_no_plan_can_state_are_checked_on_each_call() -> None:
    f = dvm.function(lambda x: x.reshape(6, 4) + 1)
    for shape in ((8, 3), (12, 2)):
        assert f(dvm.asarray(fresh(*shape))).shape == (6, 4)
    for _ in range(2):
        with pytest.raises(ShapeError, match="allowed 32 elements"):
            f(dvm.asarray(fresh(8, 4)))


def test_unhashable_static_argument() -> None:
    with pytest.raises(GraphError, match="unhashable type: 'set'"):
        dvm.function(lambda x, s: x)(dvm.asarray(fresh(3)), {1, 2})


# ---- a transformer encoder layer ----------------------------------------------------------------------------------


def encoder_layer(x, mask, qkv, qkv_bias, out, out_bias, g1, b1, up, up_bias, down, down_bias, g2, b2, heads=3):
    batch, tokens, hidden = x.shape
    size = hidden // heads
    split = dvm.linear(x, qkv, qkv_bias).reshape(batch, tokens, 3, heads, size)
    q, k, v = (dvm.permute_dims(split[:, :, i], (0, 2, 1, 3)) for i in range(3))
    scores = (q @ k.mT) * 0.25
    if mask is not None:
        scores = dvm.where(mask[:, None, None, :] != 0, scores, -1e30)
    mixed = dvm.permute_dims(dvm.softmax(scores) @ v, (0, 2, 1, 3)).reshape(batch, tokens, hidden)
    x = dvm.layer_norm(x + dvm.linear(mixed, out, out_bias), g1, b1)
    return dvm.layer_norm(x + dvm.linear(dvm.gelu(dvm.linear(x, up, up_bias)), down, down_bias), g2, b2)


def layer_arrays(batch: int, tokens: int, hidden: int = 12, inner: int = 40) -> list[np.ndarray]:
    mask = (np.arange(tokens) < np.random.default_rng().integers(1, tokens + 1, (batch, 1))).astype(F32)
    shapes = [(3 * hidden, hidden), (3 * hidden,), (hidden, hidden), (hidden,), (hidden,), (hidden,), (inner, hidden), (inner,),
              (hidden, inner), (hidden,), (hidden,), (hidden,)]  # fmt: skip
    return [fresh(batch, tokens, hidden), mask, *(fresh(*shape) for shape in shapes)]


@pytest.mark.parametrize("masked", [True, False])
def test_encoder_layer_is_one_launch_of_seven_kernels(counts, masked: bool) -> None:
    layer = dvm.function(encoder_layer)
    for batch, tokens in ((2, 5), (3, 4), (2, 9)):
        host = layer_arrays(batch, tokens)
        arrays = [dvm.asarray(a) for a in host]
        if not masked:
            arrays[1] = None
        before = dvm.stats()["calls"]
        got = np.asarray(layer(*arrays))
        assert dvm.stats()["calls"] == before + 1
        _, planned, _ = planned_for(layer, tuple(arrays), {})
        (want,) = evaluate(planned.graph, [a for a in host if masked or a is not host[1]])
        np.testing.assert_allclose(got, want, 1e-4, 1e-4)
    assert counts["traces"] == 1 and counts["plans"] == 1
    report = planned.fused.report
    assert len(report.kernels) == 7 + masked and not planned.fused.checks, report.text()
    assert [sum(k.kind == kind for k in report.kernels) for kind in ("matmul", "attention")] == [4, 1]
    text = dvm.explain(layer, *arrays)
    assert "kernel 6: " in text and "pattern attention" in text and "not fused: " in text
    assert "section6" in dvm.das(layer, *arrays) and "linear" in dvm.dump(layer, *arrays)


def test_layers_with_captured_weights_are_one_launch(counts) -> None:
    host = layer_arrays(2, 5)
    weights = [dvm.asarray(a) for a in host[2:]]

    @dvm.function
    def network(x, mask):
        for _ in range(2):
            x = encoder_layer(x, mask, *weights)
        return x.mean(axis=1)

    for batch, tokens in ((2, 5), (4, 3)):
        a, mask = layer_arrays(batch, tokens)[:2]
        got = np.asarray(network(dvm.asarray(a), dvm.asarray(mask)))
        _, planned, _ = planned_for(network, (dvm.asarray(a), dvm.asarray(mask)), {})
        (want,) = evaluate(planned.graph, [a, mask, *(np.asarray(t) for t in _captured(planned))])
        np.testing.assert_allclose(got, want, 2e-4, 2e-4)
    assert counts["traces"] == 1 and counts["calls"] == 2 and len(planned.fused.report.kernels) <= 19


def _captured(planned) -> list[np.ndarray]:
    stream = dvm.array.session.session().stream
    return [stream.read(t) for t in planned.captured]


def test_a_captured_array_is_cut_by_a_symbolic_size(counts) -> None:
    table = dvm.asarray(fresh(40, 3))
    f = dvm.function(lambda x: table[: x.shape[1]] + x)
    for n in (5, 40, 2):
        a = fresh(2, n, 3)
        np.testing.assert_allclose(np.asarray(f(dvm.asarray(a))), np.asarray(table)[:n] + a, 1e-6)
    assert counts["plans"] == 1
    with pytest.raises(ShapeError):
        f(dvm.asarray(fresh(2, 41, 3)))


def test_a_symbolic_size_outside_of_its_function() -> None:
    kept = []
    dvm.function(lambda x: kept.append(x.shape[0]) or x)(dvm.asarray(fresh(3)))
    with pytest.raises(GraphError, match="outside of its function"):
        dvm.asarray(fresh(9))[: kept[0]]
    with pytest.raises(GraphError):
        dvm.asarray(kept[0])


def deep(x):
    """More values alive at once than a strip machine has slots: v0 .. v27, then v0 * v27 + v1 * v26 + ..."""
    values = [x]
    for _ in range(27):
        values.append(dvm.tanh(values[-1]))
    return sum((values[i] * values[27 - i] for i in range(1, 14)), values[0] * values[27])


def test_a_kernel_beyond_the_machine_is_cut_smaller(counts) -> None:
    f, a = dvm.function(deep), fresh(300)
    got = [np.asarray(f(dvm.asarray(a))) for _ in range(3)]
    assert counts["plans_cut_smaller"] == 1 and "cut smaller" in dvm.explain(f, dvm.asarray(a))
    values = [a.astype(np.float64)]
    for _ in range(27):
        values.append(np.tanh(values[-1]))
    np.testing.assert_allclose(got[0], sum(values[i] * values[27 - i] for i in range(14)), 1e-4, 1e-4)
    assert got[0].tobytes() == got[1].tobytes() == got[2].tobytes() == np.asarray(deep(dvm.asarray(a))).tobytes()


def test_signatures_are_bounded(monkeypatch) -> None:
    session = dvm.array.session.session()
    monkeypatch.setattr(session, "plans_max", 3)
    f, a = dvm.function(lambda x, n: x * n), fresh(4)
    for n in range(8):
        np.testing.assert_array_equal(np.asarray(f(dvm.asarray(a), n)), a * F32(n))
    assert len(f._entries[session]) <= 3


def test_planning_is_the_clients_time_and_a_span_of_the_trace(tmp_path):
    import json

    with dvm.Runtime(inline=True, encode="caller") as rt:
        f = dvm.function(lambda x: dvm.exp(x) + 1)
        f(dvm.asarray(np.zeros((3, 4), np.float32)))
        first = dvm.stats()["plan_ns"]
        f(dvm.asarray(np.zeros((5, 4), np.float32)))  # another shape, the same plan
        assert dvm.stats()["plan_ns"] == first > 0
        rt.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    plans = [e for e in events if e["name"] == "plan"]
    assert len(plans) == 1 and plans[0]["args"]["kernels"] == 1


@pytest.mark.parametrize("encode", ["workers", "caller"])
def test_graphs_go_to_workers_where_workers_encode(encode) -> None:
    def rows(x, w):
        return dvm.softmax(x @ w, axis=-1)

    a, w = fresh(5, 7), fresh(7, 3)
    with dvm.Runtime(inline=True):
        alone = np.asarray(dvm.function(rows)(dvm.asarray(a), dvm.asarray(w))).tobytes()
    with dvm.Runtime(encoders=1, encode=encode):
        f = dvm.function(rows)
        assert np.asarray(f(dvm.asarray(a), dvm.asarray(w))).tobytes() == alone
        assert np.asarray(dvm.softmax(dvm.asarray(a) @ dvm.asarray(w), axis=-1)).tobytes() == alone
        assert dvm.stats().get("plans_by_workers", 0) == (2 if encode == "workers" else 0)
        assert "kernel" in dvm.explain(f, dvm.asarray(a), dvm.asarray(w))


def test_a_graph_whose_workers_die_is_planned_here(monkeypatch) -> None:
    monkeypatch.setenv("DVM_RT_GRAPH_DEATHS_MAX", "1")

    def kill_the_planner(rt: dvm.Runtime) -> None:
        while not any(w.graph for w in list(rt._shell.state.book.workers.values())):
            time.sleep(0.001)
        rt.kill("encoder")

    with dvm.Runtime(encoders=1, encode="workers") as rt:
        rt.kill("encoder", signal.SIGSTOP)  # it takes the graph, and no more
        killer = threading.Thread(target=kill_the_planner, args=(rt,), daemon=True)
        killer.start()
        assert float(dvm.function(lambda a: dvm.tanh(a) + a)(dvm.asarray([0.0, 0.0])).sum()) == 0.0
        killer.join()
        assert dvm.stats()["plans_taken_back"] >= 1


def test_a_tuple_of_arrays_takes_the_fast_path_too() -> None:
    @dvm.function
    def both(x, y):
        return x * y, dvm.sum(x - y, axis=-1)

    @dvm.function
    def nested(x, y):
        return x * y, [x - y]

    x, y = dvm.asarray(fresh(5)), dvm.asarray(fresh(5))
    slow, _, fast = both(x, y), both(x, y), fast_only(both, x, y)  # on the quick plan, on its own, fast
    assert type(fast) is tuple
    assert [np.asarray(a).tobytes() for a in fast] == [np.asarray(a).tobytes() for a in slow]
    assert both(*both(x, y)[:1], y)[0].shape == (5,), "what it gives is an argument like any other"
    assert type(nested(x, y)[1]) is type(nested(x, y)[1]) is list
    with pytest.raises(AssertionError, match="the slow way"):
        fast_only(nested, x, y)


def test_a_graph_of_new_operators_is_planned_at_once() -> None:
    with dvm.Runtime(inline=True):
        x = dvm.asarray(np.ones((3, 4), np.float32))
        dvm.function(lambda x: dvm.tanh(x) * x)(x)
        assert (dvm.stats()["plans_made"], dvm.stats()["quick_launches"]) == (1, 0)
        dvm.function(lambda x: dvm.tanh(dvm.tanh(x)) * x)(x)  # both were met
        assert (dvm.stats()["plans_made"], dvm.stats()["quick_launches"]) == (1, 3)


def test_a_function_keeps_nothing_of_a_runtime_that_is_no_more() -> None:
    functions, counts = [], []
    for _ in range(4):
        functions.append(f := dvm.function(lambda x: x * 2.0))
        with dvm.Runtime(encoders=0):  # whose stream has descriptors
            x = dvm.asarray(fresh(4))
            assert [np.asarray(f(x)).tobytes() for _ in range(3)] == [(np.asarray(x) * 2).tobytes()] * 3
            del x
        gc.collect()
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[3] == counts[1]


OF_TOO_LITTLE: dict[str, Callable[[dvm.Array], object]] = {
    **{name: (lambda x, name=name: getattr(dvm, name)(x, axis=0)) for name in ("max", "min", "argmax", "argmin", "logsumexp")},
    "pad wrap": lambda x: dvm.pad(x, ((0, 2), (0, 0)), mode="wrap"),
    "pad reflect": lambda x: dvm.pad(x, ((2, 0), (0, 0)), mode="reflect"),
}


@pytest.mark.parametrize("name", OF_TOO_LITTLE)
def test_what_has_no_result_for_few_rows_is_refused_after_many_too(name: str) -> None:
    call = dvm.function(OF_TOO_LITTLE[name])
    many, none = fresh(6, 3), np.zeros((0, 3), np.float32)
    wanted = np.asarray(call(many))
    for few in (none, many[:0], none):
        with pytest.raises(ShapeError):
            np.asarray(OF_TOO_LITTLE[name](dvm.asarray(few)))
        with pytest.raises(ShapeError):
            np.asarray(call(few))
    assert np.array_equal(np.asarray(call(many)), wanted)


# ---- branches on sizes -------------------------------------------------------------------------------------------------


def halves(x: dvm.Array) -> dvm.Array:
    """Pairs of rows are added until one or none is left: another graph for each number of bits."""
    while x.shape[0] > 1:
        even = x.shape[0] // 2 * 2
        rest = x[even:]
        x = x[:even:2] + x[1:even:2]
        x = dvm.concat([x, rest]) if rest.shape[0] else x
    return x


BRANCHES: dict[str, Callable[..., object]] = {
    "if": lambda x: x * 2 if x.shape[0] > 3 else x - 1,
    "else": lambda x: x + 1 if not x.shape[0] else (x * 3 if x.shape[0] % 2 == 0 else x * 5),
    "of two": lambda x: x @ dvm.matrix_transpose(x) if x.shape[0] <= x.shape[1] else dvm.matrix_transpose(x) @ x,
    "shapes": lambda x: x + dvm.matrix_transpose(x) if x.shape == x.shape[::-1] else x,
    "cond": lambda x: dvm.cond(x.shape[0] >= 4, lambda x: x + 1, lambda x: x * x, x),
    "cond inside": lambda x: dvm.cond(dvm.sum(x) > 0, lambda x: x + 1 if x.shape[0] > 4 else x + 2, lambda x: x * x, x),
    "while_loop": lambda x: dvm.while_loop(lambda x: x.shape[0] > 3, lambda x: x[1:] * 2, x),
    "switch": lambda x: dvm.switch(x.shape[0] // 3, [lambda x: x, lambda x: x + 1, lambda x: x * x], x),
    "halves": halves,
}


@pytest.mark.parametrize("name", BRANCHES)
def test_python_may_branch_on_sizes(name: str) -> None:
    call = dvm.function(BRANCHES[name])
    for rows in (2, 7, 4, 0, 5, 3, 8, 1, 7, 4):
        x = dvm.asarray(fresh(rows, 4))
        with dvm.Runtime(inline=True):
            np.testing.assert_array_equal(np.asarray(call(np.asarray(x))), np.asarray(BRANCHES[name](dvm.asarray(np.asarray(x)))))


def test_each_way_through_the_branches_on_sizes_is_traced_once() -> None:
    with dvm.Runtime(inline=True):
        call = dvm.function(lambda x: x * 2 if x.shape[0] > 3 else x - 1)
        wanted = {n: fresh(n, 2) for n in range(2, 9)}
        for _ in range(3):
            for n, x in wanted.items():
                np.testing.assert_array_equal(np.asarray(call(x)), x * 2 if n > 3 else x - 1)
        stats = dvm.stats()
        assert stats["traces"] == 3 and stats["walked_calls"] == stats.get("plans_for_one_shape", 0) == 0


def slow_calls(call: dvm.Function) -> list[tuple]:
    """Those that are not native, as they come."""
    found, slow = [], call._call
    call._call = lambda args, kwargs: found.append(args) or slow(args, kwargs)
    return found


def test_calls_that_branch_on_sizes_are_native_once_their_sizes_are_known() -> None:
    with dvm.Runtime(inline=True):
        call = dvm.function(lambda x, y: x * 2 + y if x.shape[0] > y.shape[0] else x - y)
        slow = slow_calls(call)
        sizes = ((2, 1, 3), (1, 2, 3), (3, 3, 3), (3, 3, 4), (4, 1, 4))
        arrays = [(dvm.asarray(fresh(n, m)), dvm.asarray(fresh(1, m) if k == 1 else fresh(k, 1))) for n, k, m in sizes]
        for rounds in range(4):
            for x, y in arrays:
                a, b = np.asarray(x), np.asarray(y)
                np.testing.assert_array_equal(np.asarray(call(x, y)), a * 2 + b if len(a) > len(b) else a - b)
            assert rounds or slow
        del slow[:]
        for x, y in arrays:
            call(x, y)
        assert slow == []


def test_calls_whose_sizes_have_a_plan_of_their_own_are_native_too() -> None:
    with dvm.Runtime(inline=True):
        short = dvm.function(lambda x: x[5:1:-1] * 2)  # as long as the end lets it
        ends = dvm.function(lambda x: x[-3:] + 1)  # one plan for all sizes but the small ones
        arrays = [dvm.asarray(fresh(n, 2)) for n in (9, 5, 4, 2, 7)]
        for _ in range(4):
            slow = [slow_calls(short), slow_calls(ends)]
            for x in arrays:
                np.testing.assert_array_equal(np.asarray(short(x)), np.asarray(x)[5:1:-1] * 2)
                np.testing.assert_array_equal(np.asarray(ends(x)), np.asarray(x)[-3:] + 1)
        assert slow == [[], []] and dvm.stats()["plans_for_one_shape"] > 1


def test_a_plan_that_is_cut_smaller_is_found_by_no_call_of_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native calls know plans by their numbers; that of a plan that was cut smaller is no more."""
    with dvm.Runtime(inline=True):
        call = dvm.function(lambda x: x * 2 if x.shape[0] > 3 else x - 1)
        arrays = {n: dvm.asarray(fresh(n, 2)) for n in (5, 6, 2)}
        for _ in range(3):
            for x in arrays.values():
                call(x)
        slow = slow_calls(call)
        for x in arrays.values():
            call(x)
        assert slow == []
        of = arrays[5]._session
        (branches,) = call._entries[of].values()
        planned = branches.ways[0][1].planned  # of more than 3 rows
        original = of.call

        def cut(one, tensors):
            if one is planned and not one.kernels_small:
                of._cut_smaller(one)
            return original(one, tensors)

        monkeypatch.setattr(type(of), "call", lambda self, one, tensors: cut(one, tensors))
        arrays[7] = dvm.asarray(fresh(7, 2))  # sizes that no native call knows
        for n in (7, 5, 6, 2, 7):
            x = np.asarray(arrays[n])
            np.testing.assert_array_equal(np.asarray(call(arrays[n])), x * 2 if n > 3 else x - 1)
        assert planned.kernels_small == 1


def test_a_function_in_a_function_decides_by_its_own_sizes() -> None:
    inner = dvm.function(lambda w: w * 2 if w.shape[0] > 3 else w)
    weights = {n: fresh(n) for n in (2, 5)}

    def outer(x: dvm.Array, n: int) -> dvm.Array:
        return dvm.sum(inner(dvm.asarray(weights[n]))) * (x if x.shape[0] > 3 else -x)

    for n, rows in ((2, 6), (5, 6), (5, 2), (2, 2)):
        x = fresh(rows)
        want = np.sum(weights[n] * (2 if n > 3 else 1)) * (x if rows > 3 else -x)
        np.testing.assert_allclose(np.asarray(dvm.function(outer)(x, n)), want, rtol=1e-5)


def test_a_loop_over_a_size_is_not_unrolled_without_end() -> None:
    def unrolled(x: dvm.Array) -> dvm.Array:
        i = 0
        while i < x.shape[0]:
            x, i = x + 1, i + 1
        return x

    call = dvm.function(unrolled)
    np.testing.assert_array_equal(np.asarray(call(np.zeros(9, np.float32))), np.full(9, 9, np.float32))
    with pytest.raises(GraphError, match="dvm.scan and dvm.while_loop count with sizes"):
        call(np.zeros(5000, np.float32))


def test_a_size_of_one_that_is_only_seen_at_a_call_is_stretched() -> None:
    @dvm.function
    def product(x: dvm.Array) -> dvm.Array:
        parts = x[1:]
        return dvm.concat([parts, parts[:-1], parts]) * parts[:-1]

    x = np.arange(3, dtype=np.float32)
    with dvm.Runtime(encoders=1, encode="workers"):  # whose planner looks at the graph again
        assert np.asarray(product(x)).tolist() == [1, 2, 1, 1, 2]
