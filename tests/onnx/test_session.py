"""Sessions: sizes stay symbolic, host inputs become part of the signature, branches and loops, errors name their node."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

import dvm_rt as dvm
from dvm_rt.errors import DTypeError, GraphError, ShapeError
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
    made = model([node("Reshape", "x shape", "r"), node("Neg", "r", "y")], [value("x", ["n", 3]), value("shape", ["r"], INT64)], [value("y", None)])
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
        [helper.make_node("Add", ["v", "v"], ["v2"]), helper.make_node("Less", ["v2", "limit"], ["go"]), helper.make_node("Identity", ["v2"], ["seen"])],
        "body", [value("i", [], INT64), value("c", [], BOOL), value("v", [])], [value("go", [], BOOL), value("v2", []), value("seen", [])],
    )  # fmt: skip
    made = model([node("Loop", "max start", "last all", body=body)], [value("start", []), value("limit", [])], [value("last", []), value("all", ["n"])],
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
    nodes = [node("Abs", "x", "a"), node("NonZero", "a", "places"), node("Shape", "places", "s"), node("Gather", "s one", "count")]
    made = model(nodes, [value("x", ["n"])], [value("places", None, INT64), value("count", [], INT64)], {"one": array(1, np.int64)})
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
        assert DvmBackend.supports_device("CPU") and not DvmBackend.supports_device("CUDA")
        assert DvmBackend.is_compatible(reshaping())
        (y,) = DvmBackend.run_model(reshaping(), [array(X)])
        (z,) = DvmBackend.run_node(helper.make_node("Add", ["a", "b"], ["c"]), [array(X), array(X)])
    np.testing.assert_array_equal(y, z)


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

