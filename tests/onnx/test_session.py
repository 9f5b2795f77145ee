"""Sessions: sizes stay symbolic, host inputs become part of the signature, branches and loops, errors name their node."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

import dvm_rt as dvm
from dvm_rt.errors import DTypeError, DvmError, GraphError, ShapeError, UnsupportedOperatorError
from dvm_rt.onnx import load
from dvm_rt.onnx.backend import DvmBackend
from dvm_rt.onnx.running import HOST_PATH
from tests.onnx.models import BOOL, INT64, model, node, value

helper = onnx.helper
X = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def array(x: object, dtype: type = np.float32) -> np.ndarray:
    return np.asarray(x, dtype)


def reshaping() -> object:
    """(n, 3) -> (n * 3 / 3, 3) by sizes that the graph computes."""
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Unsqueeze", "n axis", "n1"),
        node("Concat", "n1 minus", "target", axis=0), node("Reshape", "x target", "r"), node("Mul", "r two", "y"),
    ]  # fmt: skip
    weights = {"zero": array(0, np.int64), "axis": array([0], np.int64), "minus": array([-1], np.int64), "two": array(2.0)}
    return model(nodes, [value("x", ["n", 3])], [value("y", ["n", 3])], weights)


def test_sizes_are_computed_without_a_round_trip() -> None:
    with dvm.Runtime(inline=True):
        session = load(reshaping())
        for rows in (2, 5, 7, 1):
            x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
            (y,) = session.run({"x": x})
            np.testing.assert_array_equal(y, 2 * x)
        assert dvm.stats()["traces"] == 2  # one for a size of 1, one for all others
        assert session.counts()[HOST_PATH] == 0


def test_a_shape_that_is_an_input_belongs_to_the_signature() -> None:
    made = model([node("Reshape", "x shape", "r"), node("Neg", "r", "y")],
                 [value("x", ["n", 3]), value("shape", ["r"], INT64)], [value("y", None)])
    with dvm.Runtime(inline=True):
        session = load(made)
        for shape in ([3, 2], [6], [1, 6], [3, 2]):
            (y,) = session.run({"x": array(X), "shape": array(shape, np.int64)})
            np.testing.assert_array_equal(y, -array(X).reshape(shape))


def test_many_shapes_as_inputs_do_not_pile_up_plans() -> None:
    made = model([node("Expand", "x shape", "y")], [value("x", [1]), value("shape", [1], INT64)], [value("y", None)])
    with dvm.Runtime(inline=True):
        session = load(made)
        for n in range(2, 60):
            (y,) = session.run({"x": array([3.0]), "shape": array([n], np.int64)})
            np.testing.assert_array_equal(y, np.full(n, 3, np.float32))
        assert dvm.stats()["traces"] < 50


def branching() -> object:
    def branch(name: str, operator: str) -> object:
        return helper.make_graph([helper.make_node(operator, ["x"], [name])], name, [], [value(name, None)])

    nodes = [
        node("ReduceSum", "x", "total", keepdims=0), node("Greater", "total zero", "positive"),
        node("If", "positive", "z", then_branch=branch("a", "Neg"), else_branch=branch("b", "Abs")), node("Add", "z z", "y"),
    ]  # fmt: skip
    return model(nodes, [value("x", ["n"])], [value("y", ["n"])], {"zero": array(0.0)})


def test_branches_follow_values() -> None:
    with dvm.Runtime(inline=True):
        session = load(branching())
        for x in ([1.0, 2.0], [-3.0, 1.0], [5.0, 5.0, 1.0], [-1.0, 0.0, 0.0]):
            (y,) = session.run({"x": array(x)})
            np.testing.assert_array_equal(y, 2 * (-array(x) if sum(x) > 0 else np.abs(array(x))))


def test_a_loop_that_stops_by_a_value() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["v", "v"], ["v2"]), helper.make_node("Less", ["v2", "limit"], ["go"]),
         helper.make_node("Identity", ["v2"], ["seen"])],
        "body", [value("i", [], INT64), value("c", [], BOOL), value("v", [])],
        [value("go", [], BOOL), value("v2", []), value("seen", [])],
    )  # fmt: skip
    made = model([node("Loop", "max start", "last all", body=body)], [value("start", []), value("limit", [])],
                 [value("last", []), value("all", ["n"])],
                 {"max": array(100, np.int64)})  # fmt: skip
    made.graph.node[0].input[:] = ["max", "", "start"]
    with dvm.Runtime(inline=True):
        session = load(made)
        for limit in (10.0, 100.0):
            last, seen = session.run({"start": array(1.0), "limit": array(limit)})
            wanted = [2.0]
            while wanted[-1] < limit:
                wanted.append(2 * wanted[-1])
            assert last == wanted[-1]
            np.testing.assert_array_equal(seen, array(wanted))


def test_sizes_that_depend_on_values_end_a_segment() -> None:
    nodes = [node("Abs", "x", "a"), node("NonZero", "a", "places"), node("Shape", "places", "s"),
             node("Gather", "s one", "count")]
    made = model(nodes, [value("x", ["n"])], [value("places", None, INT64), value("count", [], INT64)],
                 {"one": array(1, np.int64)})
    with dvm.Runtime(inline=True):
        session = load(made)
        for x in ([0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 3.0], [1.0, 1.0]):
            places, count = session.run({"x": array(x)})
            np.testing.assert_array_equal(places, np.array(np.nonzero(x)))
            assert count == np.count_nonzero(x)


def test_calls_as_onnxruntime_has_them() -> None:
    with dvm.Runtime(inline=True):
        session = load(reshaping())
        (y,) = session.run(["y"], {"x": array(X)})
        (z,) = session.run(None, {"x": array(X)})
        (w,) = asyncio.run(session.run_async({"x": array(X)}))
    assert y.tolist() == z.tolist() == w.tolist() == (2 * array(X)).tolist()
    assert [(p.name, p.shape, p.dtype) for p in session.inputs] == [("x", ("n", 3), np.float32)]


@pytest.mark.parametrize(
    ("feeds", "kind", "said"),
    [
        ({}, GraphError, "missing"),
        ({"x": array(X), "q": array(X)}, GraphError, "'q'"),
        ({"x": array(X, np.float64)}, DTypeError, "input 'x'"),
        ({"x": array([X])}, ShapeError, "input 'x'"),
        ({"x": array([[1.0, 2.0]])}, ShapeError, "input 'x'"),
    ],
)
def test_feeds_that_do_not_fit(feeds: dict, kind: type[Exception], said: str) -> None:
    with dvm.Runtime(inline=True), pytest.raises(kind, match=said):
        load(reshaping()).run(feeds)


def test_errors_name_the_node() -> None:
    made = model([node("MatMul", "x w", "y")], [value("x", ["n", 3])], [value("y", None)], {"w": np.ones((4, 2), np.float32)})
    with dvm.Runtime(inline=True), pytest.raises(ShapeError, match="node 0 \\(MatMul 'the_MatMul'\\)"):
        load(made).run({"x": array(X)})


def test_external_functions_of_a_model() -> None:
    made = model([helper.make_node("Twice", ["x"], ["y"], domain="own", by=3.0)], [value("x", ["n"])], [value("y", ["n"])])
    made.opset_import.append(helper.make_opsetid("own", 1))
    constant = helper.make_node("Constant", [], ["k"])
    reference = constant.attribute.add()
    reference.name, reference.ref_attr_name, reference.type = "value_float", "by", onnx.AttributeProto.FLOAT
    nodes = [constant, helper.make_node("Mul", ["a", "k"], ["b"])]
    made.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], nodes, [helper.make_opsetid("", 18)], ["by"]))
    with dvm.Runtime(inline=True):
        (y,) = load(made).run({"x": array([1.0, 2.0])})
    np.testing.assert_array_equal(y, array([3.0, 6.0]))


def test_backend_interface() -> None:
    with dvm.Runtime(inline=True):
        assert DvmBackend.supports_device("CPU") and DvmBackend.supports_device(
            "CPU:0") and not DvmBackend.supports_device("CUDA")
        (y,) = DvmBackend.run_model(reshaping(), [array(X)])
        prepared = DvmBackend.prepare(reshaping())
        assert prepared.run({"x": array(X)}).y.tolist() == prepared.run(array(X)).y.tolist() == y.tolist()
        with pytest.raises(UnsupportedOperatorError, match="got 'CUDA', allowed CPU"):
            DvmBackend.prepare(reshaping(), device="CUDA")


def test_backend_runs_nodes_with_all_their_outputs() -> None:
    with dvm.Runtime(inline=True):
        (z,) = DvmBackend.run_node(helper.make_node("Add", ["a", "b"], ["c"]), [array(X), array(X)])
        np.testing.assert_array_equal(z, 2 * array(X))
        top = DvmBackend.run_node(helper.make_node("TopK", ["x", "k"], ["values", "places"]), [array(X), array([2], np.int64)])
        np.testing.assert_array_equal(top.values, array([[3, 2], [6, 5]]))
        np.testing.assert_array_equal(top.places, array([[2, 1], [2, 1]], np.int64))
        split = DvmBackend.run_node(helper.make_node("Split", ["x"], ["", "b", "c"], axis=1, num_outputs=3), [array(X)])
        assert len(split) == 2 and split.b.tolist() == [[2], [5]] and split.c.tolist() == [[3], [6]]
        old = DvmBackend.run_node(helper.make_node("Squeeze", ["x"], ["y"], axes=[0]), [array([X])], opset_version=11)
        np.testing.assert_array_equal(old.y, array(X))


def test_backend_says_what_it_can_run() -> None:
    unknown = model([node("Nonsense", "x", "y")], [value("x", ["n"])], [value("y", None)])
    part = helper.make_graph([helper.make_node("Gradient", ["x"], ["z"], domain="ai.onnx.preview.training")], "part",
                             [], [value("z", None)])
    hidden = model([node("If", "p", "y", then_branch=part, else_branch=part)],
                   [value("x", ["n"]), value("p", [], BOOL)], [value("y", None)])
    hidden.opset_import.append(helper.make_opsetid("ai.onnx.preview.training", 1))
    by_body = model([node("SwiGLU", "x", "y")], [value("x", ["n"])], [value("y", None)], opset=onnx.defs.onnx_opset_version())
    assert DvmBackend.is_compatible(reshaping()) and DvmBackend.is_compatible(by_body)
    assert not DvmBackend.is_compatible(reshaping(), device="CUDA")
    assert not DvmBackend.is_compatible(unknown) and not DvmBackend.is_compatible(
        hidden) and not DvmBackend.is_compatible(onnx.ModelProto())
    assert load(hidden).unknown_operators() == ["ai.onnx.preview.training.Gradient"]


def two_outputs() -> object:
    nodes = [node("Add", "x w", "b"), node("Neg", "b", "a")]
    return model(nodes, [value("x", ["n", 3]), value("w", [3])], [value("b", ["n", 3]), value("a", ["n", 3])])


@pytest.mark.parametrize(
    ("feeds", "kind", "said"),
    [
        ({}, GraphError, "missing"),
        ({"x": array(X)}, GraphError, "missing"),
        ({"x": array(X), "w": array([1, 2, 3]), "q": array(X)}, GraphError, "'q'"),
        ({"x": array(X, np.float64), "w": array([1, 2, 3])}, DTypeError, "input 'x'"),
        ({"x": array([X]), "w": array([1, 2, 3])}, ShapeError, "input 'x'"),
        ({"x": array(X), "w": array([1, 2])}, ShapeError, "input 'w'"),
        ({"x": None, "w": array([1, 2, 3])}, DvmError, "x"),
    ],
)
def test_feeds_are_checked_in_every_run(feeds: dict, kind: type[Exception], said: str) -> None:
    right = {"x": array(X), "w": array([1, 2, 3])}
    with dvm.Runtime(inline=True):
        session = load(two_outputs())
        for _ in range(3):
            b, a = session.run(right)
            np.testing.assert_array_equal(b, array(X) + array([1, 2, 3]))
            np.testing.assert_array_equal(a, -b)
            with pytest.raises(kind, match=said):
                session.run(feeds)


def test_outputs_by_name_and_feeds_of_other_kinds() -> None:
    right = {"x": array(X), "w": array([1, 2, 3])}
    wanted = array(X) + array([1, 2, 3])
    with dvm.Runtime(inline=True):
        session = load(two_outputs())
        for _ in range(3):
            assert [y.tolist() for y in session.run(["a", "b"], right)] == [(-wanted).tolist(), wanted.tolist()]
            (a,) = session.run(["a"], {"x": dvm.asarray(array(X)), "w": array([1, 2, 3])})
            np.testing.assert_array_equal(a, -wanted)
            (t,) = session.run(["b"], {"x": np.asfortranarray(array(X)), "w": array([9, 1, 9, 2, 9, 3])[1::2]})
            np.testing.assert_array_equal(t, wanted)
        with pytest.raises(GraphError, match="nothing"):
            session.run(["nothing"], right)


def test_a_session_outlives_its_runtime_and_serves_threads() -> None:
    session = load(two_outputs())
    for _ in range(2):
        with dvm.Runtime(inline=True):
            results: dict[int, np.ndarray] = {}

            def work(n: int) -> None:
                x = np.full((n, 3), n, np.float32)
                for _ in range(5):
                    results[n] = session.run({"x": x, "w": array([1, 2, 3])})[1].copy()

            context = [contextvars.copy_context() for _ in range(4)]
            threads = [threading.Thread(target=c.run, args=(work, n + 2)) for n, c in enumerate(context)]
            [t.start() for t in threads], [t.join() for t in threads]
            for n in range(2, 6):
                np.testing.assert_array_equal(results[n], np.tile(-array([n + 1, n + 2, n + 3]), (n, 1)))


def test_what_is_given_may_be_an_output() -> None:
    made = model([node("Neg", "x", "y")], [value("x", ["n"])],
                 [value("x", ["n"]), value("w", [2]), value("y", ["n"])], {"w": array([5, 6])})
    with dvm.Runtime(inline=True):
        session = load(made)
        for _ in range(2):
            x, w, y = session.run({"x": array([1.0, 2.0, 3.0])})
            assert (x.tolist(), w.tolist(), y.tolist()) == ([1, 2, 3], [5, 6], [-1, -2, -3])


def test_weights_go_to_the_device_once() -> None:
    made = model([node("MatMul", "x w", "y")], [value("x", ["n", 64])], [value("y", None)], {"w": np.ones((64, 64), np.float32)})
    with dvm.Runtime(inline=True):
        session = load(made)
        session.run({"x": np.ones((3, 64), np.float32)})
        before = dvm.stats()
        for n in range(2, 12):
            session.run({"x": np.ones((n, 64), np.float32)})
        after = dvm.stats()
    assert after["traces"] == before["traces"]



def test_a_part_of_a_constant_that_a_size_chooses_is_one_plan() -> None:
    """Tables of positions, cut to the length: each length was a plan of its own."""
    nodes = [node("Shape", "x", "s"), node("Gather", "s one", "n"), node("Unsqueeze", "n zero", "n1"),
             node("Slice", "table zero n1 one1", "part"), node("Add", "x part", "y")]
    table = np.arange(20, dtype=np.float32).reshape(1, 20)
    weights = {"one": array(1, np.int64), "zero": array([0], np.int64), "one1": array([1], np.int64), "table": table}
    with dvm.Runtime(inline=True):
        session = load(model(nodes, [value("x", ["b", "n"])], [value("y", None)], weights))
        for b, n in ((2, 3), (4, 7), (3, 20), (2, 1), (1, 5)):
            (y,) = session.run({"x": np.ones((b, n), np.float32)})
            np.testing.assert_array_equal(y, np.ones((b, n), np.float32) + table[:, :n])
        assert dvm.stats().get("plans_for_one_shape", 0) == 0
        with pytest.raises(ShapeError):
            session.run({"x": np.ones((2, 30), np.float32)})
