"""Control flow: one launch where the device can take the branch or the iteration by itself, the same results where it cannot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

import dvm_rt as dvm
from dvm_rt.array.control import LIMIT
from dvm_rt.onnx import Session, load
from dvm_rt.onnx.running import HOST_PATH
from tests.onnx.models import BOOL, INT64, model, node, value

helper = onnx.helper


def array(x: object, dtype: type = np.float32) -> np.ndarray:
    return np.asarray(x, dtype)


def launches(session: Session, feeds: dict[str, np.ndarray]) -> int:
    """Of a repeated call."""
    session.run(feeds)
    before = dvm.stats()["launches"]
    session.run(feeds)
    return dvm.stats()["launches"] - before


def graph(nodes: Sequence[object], inputs: Sequence[object], outputs: Sequence[object]) -> object:
    return helper.make_graph(list(nodes), "part", list(inputs), list(outputs))


def looping(nodes: Sequence[object], outputs: Sequence[object], states: str = "x", collects: str = "",
            shape: Sequence[object] = ("n",)) -> object:
    """A Loop over `count` with one state v -> w and what it collects."""
    body = graph(nodes, [value("i", [], INT64), value("c", [], BOOL), value("v", None)], outputs)
    nodes = [node("Loop", f"count go {states}", f"last {collects}".strip(), body=body)]
    results = [value("last", None), *(value(c, None) for c in collects.split())]
    made = model(nodes, [value("x", shape), value("count", [], INT64), value("go", [], BOOL)], results)
    return made


KEPT = [helper.make_node("Identity", ["c"], ["d"])]
GIVES = [value("d", [], BOOL), value("w", None)]


def test_a_branch_is_the_devices() -> None:
    branches = {f"{side}_branch": graph([node(operator, "x", side)], [], [value(side, None)])
                for side, operator in (("then", "Neg"), ("else", "Abs"))}
    nodes = [node("ReduceSum", "x", "total", keepdims=0), node("Greater", "total zero", "p"),
             node("If", "p", "z", **branches), node("Add", "z z", "y")]
    with dvm.Runtime(inline=True):
        session = load(model(nodes, [value("x", ["n"])], [value("y", ["n"])], {"zero": array(0.0)}))
        for x in ([1.0, 2.0], [-3.0, 1.0], [5.0, 5.0, 1.0], [-1.0, 0.0, 0.0], [7.0]):
            (y,) = session.run({"x": array(x)})
            np.testing.assert_array_equal(y, 2 * (-array(x) if sum(x) > 0 else np.abs(array(x))))
            assert launches(session, {"x": array(x)}) == 1


def test_branches_of_other_ranks_are_chosen_by_the_caller() -> None:
    then = graph([node("Unsqueeze", "x axis", "a")], [], [value("a", None)])
    other = graph([node("Neg", "x", "b")], [], [value("b", None)])
    made = model([node("If", "p", "y", then_branch=then, else_branch=other)],
                 [value("x", ["n"]), value("p", [], BOOL)], [value("y", None)],
                 {"axis": array([0], np.int64)})  # fmt: skip
    with dvm.Runtime(inline=True):
        session = load(made)
        for p in (True, False, True):
            (y,) = session.run({"x": array([1.0, 2.0]), "p": array(p, bool)})
            np.testing.assert_array_equal(y, array([[1, 2]]) if p else array([-1, -2]))


def test_a_counted_loop_is_the_devices_for_every_count() -> None:
    nodes = [*KEPT, node("Cast", "i", "f", to=1), node("Add", "v f", "s"), node("Tanh", "s", "w")]
    with dvm.Runtime(inline=True):
        session = load(looping(nodes, GIVES))
        for count in (3, 0, 17, 1):
            feeds = {"x": array([0.5, -2.0]), "count": array(count, np.int64), "go": array(True, bool)}
            (last,) = session.run(feeds)
            wanted = array([0.5, -2.0])
            for i in range(count):
                wanted = np.tanh(wanted + array(i))
            np.testing.assert_allclose(last, wanted, rtol=1e-6)
            assert launches(session, feeds) == 1
        (last,) = session.run({"x": array([0.5, -2.0]), "count": array(3, np.int64), "go": array(False, bool)})
        np.testing.assert_array_equal(last, array([0.5, -2.0]))
        assert dvm.stats()["traces"] <= 3


def test_a_loop_with_a_condition_is_the_devices() -> None:
    nodes = [node("Add", "v v", "w"), node("ReduceMax", "w", "m", keepdims=0), node("Less", "m hundred", "d")]
    made = looping(nodes, GIVES)
    made.graph.initializer.append(onnx.numpy_helper.from_array(array(100.0), "hundred"))
    with dvm.Runtime(inline=True):
        session = load(made)
        for x, count, wanted in (([1.0, 3.0], 50, 64), ([1.0, 3.0], 2, 4), ([101.0, 0.0], 9, 2)):
            feeds = {"x": array(x), "count": array(count, np.int64), "go": array(True, bool)}
            np.testing.assert_array_equal(session.run(feeds)[0], wanted * array(x))
            assert launches(session, feeds) == 1


def test_a_state_that_grows_is_the_callers() -> None:
    nodes = [*KEPT, node("Concat", "v v", "w", axis=0)]
    with dvm.Runtime(inline=True):
        session = load(looping(nodes, GIVES))
        for count in (3, 0, 2):
            (last,) = session.run({"x": array([1.0, 2.0]), "count": array(count, np.int64), "go": array(True, bool)})
            np.testing.assert_array_equal(last, np.tile(array([1.0, 2.0]), 2**count))
        assert session.counts()[HOST_PATH] == 0


def test_a_loop_that_is_too_long_for_the_device_is_the_callers() -> None:
    nodes = [*KEPT, node("Identity", "v", "u"), node("Add", "u one", "w")]
    made = looping(nodes, GIVES)
    made.graph.initializer.append(onnx.numpy_helper.from_array(array(1.0), "one"))
    with dvm.Runtime(inline=True):
        session = load(made)
        for count in (7, LIMIT + 5, 9):
            (last,) = session.run({"x": array([0.0]), "count": array(count, np.int64), "go": array(True, bool)})
            assert last.tolist() == [count]


def test_rows_that_a_loop_collects() -> None:
    nodes = [*KEPT, node("Mul", "v v", "w"), node("Neg", "w", "row")]
    made = looping(nodes, [*GIVES, value("row", None)], collects="rows")
    made.graph.input.pop(1)
    made.graph.initializer.append(onnx.numpy_helper.from_array(array(4, np.int64), "count"))
    made.graph.input.pop(1)
    made.graph.initializer.append(onnx.numpy_helper.from_array(array(True, bool), "go"))
    with dvm.Runtime(inline=True):
        session = load(made)
        for x in ([1.0, 2.0], [0.5, -1.0, 3.0]):
            last, rows = session.run({"x": array(x)})
            wanted = [array(x)]
            for _ in range(4):
                wanted.append(wanted[-1] * wanted[-1])
            np.testing.assert_array_equal(last, wanted[-1])
            np.testing.assert_array_equal(rows, -np.stack(wanted[1:]))
            assert launches(session, {"x": array(x)}) == 1


@pytest.mark.parametrize("backwards", [0, 1])
def test_a_scan_is_one_launch_for_every_length(backwards: int) -> None:
    nodes = [node("Add", "s x", "sum"), node("Mul", "sum two", "t"), node("Identity", "t", "y")]
    body = graph(nodes, [value("s", ["n"]), value("x", ["n"])], [value("t", ["n"]), value("y", ["n"])])
    made = model(
        [node("Scan", "start xs", "last ys", body=body, num_scan_inputs=1, scan_input_directions=[backwards],
              scan_input_axes=[1], scan_output_axes=[1])],
        [value("start", ["n"]), value("xs", ["n", "t"])], [value("last", ["n"]), value("ys", ["n", "t"])], {"two": array(0.5)},
    )  # fmt: skip
    random = np.random.default_rng(1)
    with dvm.Runtime(inline=True):
        session = load(made)
        for n, steps in ((3, 5), (2, 2), (4, 9), (3, 1), (1, 4)):
            start, xs = random.normal(size=n).astype(np.float32), random.normal(size=(n, steps)).astype(np.float32)
            last, ys = session.run({"start": start, "xs": xs})
            state, rows = start, []
            for at in range(steps)[:: -1 if backwards else 1]:
                state = (state + xs[:, at]) * array(0.5)
                rows.append(state)
            np.testing.assert_array_equal(last, state)
            np.testing.assert_array_equal(ys, np.stack(rows, axis=1))
            assert launches(session, {"start": start, "xs": xs}) == 1


def test_control_flow_within_control_flow() -> None:
    inner = graph([*KEPT, node("Mul", "v half", "w")], [value("i", [], INT64), value("c", [], BOOL), value("v", None)], GIVES)
    then = graph([node("Loop", "three yes u", "a", body=inner)], [], [value("a", None)])
    other = graph([node("Neg", "u", "b")], [], [value("b", None)])
    nodes = [
        node("Identity", "c2", "d2"), node("ReduceSum", "u", "total", keepdims=0), node("Greater", "total one", "p"),
        node("If", "p", "w2", then_branch=then, else_branch=other),
    ]  # fmt: skip
    body = graph(nodes, [value("i2", [], INT64), value("c2", [], BOOL), value("u", None)],
                 [value("d2", [], BOOL), value("w2", None)])
    weights = {"three": array(3, np.int64), "yes": array(True, bool), "half": array(0.5), "one": array(1.0)}
    made = model([node("Loop", "count yes x", "y", body=body)], [value("x", ["n"]), value("count", [], INT64)],
                 [value("y", None)], weights)
    with dvm.Runtime(inline=True):
        session = load(made)
        for x, count in (([8.0, 1.0], 4), ([-1.0, -9.0, 0.5], 3)):
            feeds, wanted = {"x": array(x), "count": array(count, np.int64)}, array(x)
            for _ in range(count):
                wanted = wanted / 8 if wanted.sum() > 1 else -wanted
            np.testing.assert_array_equal(session.run(feeds)[0], wanted)
            assert launches(session, feeds) == 1


@pytest.mark.parametrize("operator", ["RNN", "LSTM", "GRU"])
def test_recurrent_layers_are_one_launch_for_every_length(operator: str) -> None:
    gates, hidden, size, random = {"RNN": 1, "LSTM": 4, "GRU": 3}[operator], 5, 3, np.random.default_rng(4)
    weights = {
        "w": random.normal(size=(2, gates * hidden, size)), "r": random.normal(size=(2, gates * hidden, hidden)) / 3,
        "b": random.normal(size=(2, 2 * gates * hidden)),
    }  # fmt: skip
    made = model(
        [node(operator, "x w r b lengths", "y", hidden_size=hidden, direction="bidirectional")],
        [value("x", ["t", "n", size]), value("lengths", ["n"], onnx.TensorProto.INT32)], [value("y", None)],
        {k: v.astype(np.float32) for k, v in weights.items()},
    )  # fmt: skip
    with dvm.Runtime(inline=True):
        session = load(made)
        for steps, batch in ((4, 3), (7, 2), (2, 5)):
            x = random.normal(size=(steps, batch, size)).astype(np.float32)
            lengths = random.integers(1, steps + 1, batch).astype(np.int32)
            (y,) = session.run({"x": x, "lengths": lengths})
            assert launches(session, {"x": x, "lengths": lengths}) == 1
            for i, length in enumerate(lengths):  # each sequence alone gives the same, and nothing beyond its end
                (alone,) = session.run({"x": np.ascontiguousarray(x[:length, i : i + 1]), "lengths": array([length], np.int32)})
                np.testing.assert_allclose(y[:length, :, i], alone[:, :, 0], rtol=1e-5, atol=1e-6)
                assert not y[length:, :, i].any()
        assert dvm.stats()["traces"] <= 6 and dvm.stats().get("plans_for_one_shape", 0) == 0
