"""Graphs: rules of operators, resolved shapes, wire form, what is refused."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from dvm_rt import dtypes
from dvm_rt.dtypes import bool_, float32
from dvm_rt.errors import DTypeError, GraphError, ShapeError, UnsupportedOperatorError
from dvm_rt.graph import control
from dvm_rt.graph.attributes import Part, hashable
from dvm_rt.graph.control import part_of
from dvm_rt.graph.graph import Graph, Make, apply, decomposed, evaluate, parameter
from dvm_rt.graph.operators import OPERATORS, TABLE, Lowering, Operator, operator
from dvm_rt.graph.symbols import Facts, same, symbol
from dvm_rt.isa import table
from tests.fusion.running import graph_of, normal


def leaf(*shape: int, dtype: dtypes.DType = dtypes.float32):
    return parameter(0, shape, dtype)


OP = Make(Facts())


@pytest.mark.parametrize(("build", "error", "words"), [
    (lambda: OP.add(leaf(2, 3), leaf(4)), ShapeError, r"got \(2, 3\) and \(4,\)"),
    (lambda: OP.matmul(leaf(2, 3), leaf(4, 5)), ShapeError, "inner sizes differ"),
    (lambda: OP.matmul(leaf(), leaf(4)), ShapeError, "at least one dimension"),
    (lambda: OP.reshape(leaf(2, 3), shape=(4, 2)), ShapeError, "element counts"),
    (lambda: OP.reshape(leaf(2, 3), shape=(-1, -1)), ShapeError, "one -1"),
    (lambda: OP.reshape(leaf(2, 3), shape=(4, -1)), ShapeError, "divisors of 6"),
    (lambda: OP.permute_dims(leaf(2, 3), axes=(0, 0)), ShapeError, "permutation"),
    (lambda: OP.squeeze(leaf(2, 3), axes=(0,)), ShapeError, "sizes differ"),
    (lambda: OP.broadcast_to(leaf(2, 3), shape=(2, 4)), ShapeError, "sizes differ"),
    (lambda: OP.broadcast_to(leaf(2, 3), shape=(3,)), ShapeError, "rank falls"),
    (lambda: OP.index(leaf(2, 3), entries=(2,)), ShapeError, "allowed -2 to 1"),
    (lambda: OP.index(leaf(2), entries=(0, 0)), ShapeError, "too many indices"),
    (lambda: OP.index(leaf(2), entries=((None, None, 0),)), ShapeError, "step"),
    (lambda: OP.concat(leaf(2, 3), leaf(2, 4), axis=0), ShapeError, "sizes differ"),
    (lambda: OP.concat(leaf(2, 3), leaf(2), axis=0), ShapeError, "ranks differ"),
    (lambda: OP.max(leaf(2, 0), axes=(1,), keepdims=False), ShapeError, "nothing to reduce"),
    (lambda: OP.linear(leaf(2, 3), leaf(5, 4)), ShapeError, "sizes differ"),
    (lambda: OP.expand_dims(leaf(1, 1, 1, 1, 1, 1, 1, 1), axes=(0,)), ShapeError, "allowed 8"),
    (lambda: OP.full(shape=(-2,), value=0.0, dtype="float32"), ShapeError, "allowed 0 and more"),
    (lambda: OP.add(leaf(2, dtype=dtypes.int32), leaf(2, dtype=dtypes.int64)), DTypeError,
     "got int32 and int64, allowed one for all"),
    (lambda: OP.exp(leaf(2, dtype=dtypes.int64)), DTypeError, "got int64, allowed floats"),
    (lambda: OP.add(leaf(2), leaf(2, dtype=dtypes.bool_)), DTypeError, "got bool, allowed numbers"),
    (lambda: OP.bitwise_and(leaf(2), leaf(2)), DTypeError, "allowed bool and integers"),
    (lambda: OP.nextafter(leaf(2, dtype=dtypes.int16), leaf(2, dtype=dtypes.int16)), DTypeError, "allowed floats"),
    (lambda: OP.full(shape=(2,), value=300, dtype="uint8"), DTypeError, "got 300, allowed those of uint8"),
    (lambda: OP.add(leaf(2, dtype=dtypes.int8), 1.5), DTypeError, "got 1.5, allowed those of int8"),
    (lambda: OP.logical_not(leaf(2)), DTypeError, "got float32, allowed bool"),
    (lambda: OP.less(leaf(2), leaf(2, dtype=dtypes.bool_)), DTypeError, "got bool, allowed numbers"),
    (lambda: OP.where(leaf(2), leaf(2), leaf(2)), DTypeError, "condition"),
    (lambda: OP.take(leaf(2, 3), leaf(2)), DTypeError, "int32, int64"),
    (lambda: OP.astype(leaf(2), dtype="string"), DTypeError, "unknown dtype"),
    (lambda: decomposed(Graph.of((), (OP.pow(leaf(2, dtype=dtypes.int32), exponent=-1.0),))),
     UnsupportedOperatorError, "got -1.0"),
    (lambda: operator("conv2d"), UnsupportedOperatorError, "unknown operator"),
    (lambda: apply(operator("add"), (leaf(2),), (), Facts()), GraphError, "number of inputs"),
])  # fmt: skip
def test_what_an_operator_refuses(build, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build()


def test_table_is_complete() -> None:
    for row in TABLE:
        assert (row.compose is not None) == (row.lowering is Lowering.COMPOSITE), row
        assert bool(row.instructions) == (row.lowering in (Lowering.ELEMENTWISE, Lowering.HOST)), row
        assert row.doc and row is OPERATORS[row.name]


@pytest.mark.parametrize("row", [row for row in TABLE if row.lowering is Lowering.ELEMENTWISE
                                 and row.name not in ("astype", "copy")], ids=str)  # those two are loads and stores
def test_the_instructions_of_an_operator_are_there_for_every_dtype_that_it_takes(row: Operator) -> None:
    """No operator is refused for a dtype because an instruction is missing."""
    taken = 0
    for dtype in dtypes.BY_NAME.values():
        given = [dtype] * row.inputs if row.name != "where" else [dtypes.bool_, dtype, dtype]
        try:
            row.dtype(row.where, tuple(given))
        except DTypeError:
            continue
        taken += 1
        for name in words_of(row, dtype):
            own = dtypes.compute_dtype(dtype)  # None: bool, which any kernel computes
            assert own is None or own.name in table.BY_NAME[name].compute_dtypes, name
    assert taken


def words_of(row: Operator, dtype: dtypes.DType) -> list[str]:
    """The instructions that an elementwise operator needs for operands of this dtype."""
    if isinstance(row.instructions, str):
        return [row.instructions]
    names: list[str] = []

    def emit(name: str, *operands: float) -> int:
        names.append(name)
        return 0

    emit.dtype = dtype
    row.instructions(emit, *range(row.inputs))
    return names


def test_facts_reach_earlier_shapes() -> None:
    facts = Facts()
    op = Make(facts)
    x, w, b = (parameter(i, shape, dtypes.float32) for i, shape in enumerate([(symbol(0), symbol(1)), (3, 5), (symbol(2),)]))
    y = op.relu(x)
    graph = Graph.of((x, w, b), (op.add(op.matmul(y, w), b),), facts)
    assert graph.parameters[0].shape[1] == 3 and graph.parameters[2].shape == (5,)
    assert [n.shape[1] for n in graph.nodes if n.operator.name == "relu"] == [3]


def test_equal_nodes_are_one_and_dead_nodes_none() -> None:
    def build(op, x):
        op.exp(op.exp(x))
        return op.add(op.tanh(x), op.tanh(x))

    graph = graph_of(build, [normal(4)])
    assert [n.operator.name for n in graph.nodes] == ["parameter", "tanh", "add"]
    zeros = graph_of(lambda op, x: op.add(op.multiply(x, 0.0), op.multiply(x, -0.0)), [normal(4)])
    assert sum(n.operator.name == "multiply" for n in zeros.nodes) == 2  # -0.0 is another number


def test_composites_mean_what_they_are_made_of() -> None:
    def build(op, x, w, b):
        y = op.layer_norm(op.linear(x, w, b), eps=1e-5)
        return op.softmax(op.gelu(y, approximate="tanh"), axis=1), op.var(y, axes=(0,), correction=1.0,
            keepdims=False), op.log_softmax(y, axis=0)

    arrays = [normal(3, 4), normal(6, 4), normal(6)]
    graph = graph_of(build, arrays)
    apart = decomposed(graph)
    apart.validate()
    assert all(n.operator.lowering is not Lowering.COMPOSITE for n in apart.nodes)
    for a, b in zip(evaluate(graph, arrays), evaluate(apart, arrays), strict=True):
        np.testing.assert_allclose(a, b, 1e-6, 1e-6)


def example() -> Graph:
    def build(op, x, y):
        z = op.reshape(op.matmul(x, y), shape=(-1,))
        return op.clip(op.index(z, entries=((1, None, 2),)), low=-0.5, high=None), op.full(shape=(x.shape[0], 3),
            value=True, dtype="bool")

    return graph_of(build, [normal(3, 4), normal(4, 5)])


def test_wire_form_survives_msgpack() -> None:
    graph = example()
    again = Graph.from_wire(msgpack.unpackb(msgpack.packb(graph.to_wire())))
    assert again.to_wire() == graph.to_wire() and again.dump() == graph.dump()
    arrays = [normal(3, 4), normal(4, 5)]
    for a, b in zip(evaluate(graph, arrays), evaluate(again, arrays), strict=True):
        assert a.tobytes() == b.tobytes()


def test_the_wire_form_tells_graphs_apart() -> None:
    builds = [
        lambda op, x: op.exp(x), lambda op, x: op.tanh(x), lambda op, x: op.multiply(x, 2.0), lambda op, x: op.multiply(x, 3.0),
        lambda op, x: op.sum(x, axes=(0,), keepdims=True), lambda op, x: op.sum(x, axes=(0,), keepdims=False),
        lambda op, x: (op.exp(x), op.tanh(x)), lambda op, x: (op.tanh(x), op.exp(x)),
    ]  # fmt: skip
    forms = {graph_of(build, [normal(4)]).to_wire() for build in builds}
    assert len(forms) == len(builds)
    assert graph_of(builds[0], [normal(4)]).to_wire() == graph_of(builds[0], [normal(9)]).to_wire()
    assert graph_of(builds[0], [normal(1)]).to_wire() not in forms


@pytest.mark.parametrize("damage", [
    lambda rows, outputs, count, checks: (rows[1:], outputs, count, checks),
    lambda rows, outputs, count, checks: (rows, (99,), count, checks),
    lambda rows, outputs, count, checks: (rows, outputs, count + 1, checks),
    lambda rows, outputs, count, checks: ((("add", (0, 0), (), (2,)), *rows), outputs, count, checks),
    lambda rows, outputs, count, checks: ((*rows, ("exp", (0,), (), (7, 7))), (len(rows),), count, checks),
    lambda rows, outputs, count, checks: ((*rows, ("exp", (0,), ("x",), (3, 4))), (len(rows),), count, checks),
    lambda rows, outputs, count, checks: ((*rows, ("nothing", (0,), (), (3, 4))), (len(rows),), count, checks),
    lambda rows, outputs, count, checks: 5,
    lambda rows, outputs, count, checks: (rows, outputs, count),
])  # fmt: skip
def test_damaged_wire_is_refused(damage) -> None:
    with pytest.raises((GraphError, UnsupportedOperatorError)):
        Graph.from_wire(damage(*example().to_wire()))


def test_a_call_that_does_not_fit_the_graph() -> None:
    graph = example()
    with pytest.raises(ShapeError, match="parameter 1"):
        evaluate(graph, [normal(3, 4), normal(3, 5)])
    checked = graph_of(lambda op, x: op.reshape(x, shape=(6, 4)), [normal(8, 3)])
    assert evaluate(checked, [normal(12, 2)])[0].shape == (6, 4)
    with pytest.raises(ShapeError, match="24"):
        evaluate(checked, [normal(12, 3)])


def test_sizes_divided_by_a_number_are_read_from_parameters() -> None:
    graph = graph_of(lambda op, x: op.reshape(x, shape=(x.shape[0], 3, -1)), [normal(4, 6)])
    assert same(graph.parameters[0].shape[1], 3 * graph.outputs[0].shape[2])
    assert evaluate(graph, [normal(4, 12)])[0].shape == (4, 3, 4)
    with pytest.raises(ShapeError):
        evaluate(graph, [normal(4, 13)])


# ---- parts ----------------------------------------------------------------------------------------------------------


def scaled(factor: float) -> Part:
    x = parameter(0, (4,), float32)
    return part_of([x], [Make().multiply(x, factor), x])


def branch(true: Part, false: Part) -> Graph:
    flag, x = parameter(0, (), bool_), parameter(1, (4,), float32)
    return Graph.of([flag, x], [Make().cond(flag, x, true=true, false=false, index=i) for i in (0, 1)])


def test_parts_that_compute_the_same_are_the_same_to_graphs() -> None:
    one, equal = scaled(0.0), scaled(0.0)
    assert one is not equal and hashable(one) is hashable(equal)
    assert hashable(one) is not hashable(scaled(-0.0))
    graph = branch(one, equal)
    assert graph.to_wire() == branch(one, one).to_wire() != branch(one, scaled(-0.0)).to_wire()
    again = Graph.from_wire(msgpack.unpackb(msgpack.packb(graph.to_wire())))
    true, false, _ = again.outputs[0].attributes
    assert true is false and again.to_wire() == graph.to_wire()


def test_a_shared_part_is_written_once() -> None:
    text = branch(scaled(2.0), scaled(3.0)).dump()
    assert text.count("part 0:") == text.count("part 1:") == 1 and "cond(%0, %1, true=part 0, false=part 1, index=1)" in text


def test_a_branch_runs_once_for_all_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested branches of which each gives two values, and the one around it needs both: run for each value, the innermost one
    would run 2 ** depth times."""
    runs, run, part, depth, op = [], control._run, scaled(0.5), 20, Make(Facts())
    monkeypatch.setattr(control, "_run", lambda part, operands: runs.append(part) or run(part, operands))
    for _ in range(depth):
        x = parameter(0, (4,), float32)
        flag = op.less(op.index(x, entries=(0,)), 1e9)
        first, second = (op.cond(flag, x, true=part, false=part, index=i) for i in (0, 1))
        part = part_of([x], [op.add(first, second), second])
    once, other = evaluate(Graph.of([x], [first, second], op.facts), [np.ones(4, np.float32)])
    assert once.tolist() == [depth - 0.5] * 4 and other.tolist() == [1.0] * 4 and len(runs) == depth


@pytest.mark.parametrize("number", [1, -1, "x", None])
def test_a_part_on_the_wire_that_did_not_come_before_is_refused(number: object) -> None:
    rows, *rest = branch(scaled(2.0), scaled(2.0)).to_wire()
    name, inputs, (true, _, index), shape = rows[2]
    assert name == "cond"
    with pytest.raises(GraphError):
        Graph.from_wire((((*rows[:2], (name, inputs, (true, ("again", number), index), shape), *rows[3:])), *rest))


@pytest.mark.parametrize("part", [("part", (), ()), ("part", ((),), (0,)), ("part", 5, (0,)), 5, None, ("x", (), ())])
def test_a_damaged_part_on_the_wire_is_refused(part: object) -> None:
    rows, *rest = branch(scaled(2.0), scaled(3.0)).to_wire()
    name, inputs, (_, false, index), shape = rows[2]
    with pytest.raises((GraphError, DTypeError)):
        Graph.from_wire((((*rows[:2], (name, inputs, (part, false, index), shape), *rows[3:])), *rest))
