"""Control flow in graphs: `cond`, `while_loop` and `repeat`, operators whose attributes are graphs.

A part is such a graph as plain rows, with sizes of the graph around it; a row is (operator, inputs, attributes,
shape, dtype). Its parameters are the node's operands. These operators give several values, and a node is one value:
the last attribute says which; nodes that differ only there are one branch, one loop (`fusion` runs them together).
They hold one and the same `Part` then, and so do the nodes in parts: what is found out about a part is found out
once, or nesting would cost (number of values) ** depth.

    cond        (flag, *operands); parts `true` and `false`, of (operands) -> values
    while_loop  (flag, *state, *constants); part `step`, of (state, constants) -> (new state, flag): while the flag is not 0, at
                most `limit` times; its values are the state at the end
    repeat      (*state, *constants); part `step`, of (state, constants) -> new state: exactly `count` times, 1 and more
    put_row     (x, number, row): x with one row (axis 0) replaced. What a loop does so with its state is done in place
    append      (x, rows): x with further rows behind it. What a call gives so of a parameter of its own may lie behind it in the
                same memory (native/stream.h), so that x is not copied

Knows nothing of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dvm_rt import dtypes
from dvm_rt.dtypes import DType
from dvm_rt.errors import DeviceTrap, DTypeError, GraphError, ShapeError
from dvm_rt.graph import symbols
from dvm_rt.graph.attributes import Part
from dvm_rt.graph.symbols import Facts, Shape, Size

if TYPE_CHECKING:
    from dvm_rt.graph.graph import Graph, Node
    from dvm_rt.graph.operators import Operator

NAME, INPUTS, ATTRIBUTES, SHAPE, DTYPE = range(5)
Known = dict[tuple, list[np.ndarray]]
_SEVERAL = ("cond", "while_loop", "repeat")  # their meanings give all values, without the index


def part_of(parameters: Sequence[Node], outputs: Sequence[Node]) -> Part:
    """The part that these outputs are, over these parameters (numbered in order)."""
    from dvm_rt.graph.graph import reachable

    nodes = reachable((*parameters, *outputs))
    number = {node: i for i, node in enumerate(nodes)}
    rows = tuple([(n.operator.name, tuple([number[i] for i in n.inputs]), n.attributes, n.shape, n.dtype.name) for n in nodes])
    return Part(rows, tuple([number[n] for n in outputs]))


def graph_of(part: Part, facts: Facts, outputs: Sequence[int] | None = None) -> Graph:
    """The part as a graph, of all its outputs or of some."""
    from dvm_rt.graph.graph import Graph, Node
    from dvm_rt.graph.operators import operator

    nodes: list[Node] = []
    for name, inputs, attributes, shape, dtype in part.rows:
        nodes.append(Node(operator(name), tuple([nodes[i] for i in inputs]), attributes, shape, dtypes.BY_NAME[dtype]))
    parameters = sorted((n for n in nodes if n.operator.name == "parameter"), key=lambda n: n.attribute("index"))
    wanted = range(len(part.outputs)) if outputs is None else outputs
    return Graph.of(parameters, [nodes[part.outputs[k]] for k in wanted], facts)


def unchanged(part: Part, output: int) -> bool:
    """Whether this output is the parameter of the same number."""
    row = part.rows[part.outputs[output]]
    return row[NAME] == "parameter" and row[ATTRIBUTES][0] == output


def _parameters(part: Part) -> list[tuple]:
    return sorted((row for row in part.rows if row[NAME] == "parameter"), key=lambda row: row[ATTRIBUTES][0])


def _result(part: Part, output: int) -> tuple:
    return part.rows[part.outputs[output]]


# ---- rules --------------------------------------------------------------------------------------------------------


def _flag(where: str, dtype: DType) -> None:
    if dtype is not dtypes.bool_:
        raise DTypeError(f"graph: {where}: predicate, got {dtype}, allowed bool")


def _fits_dtypes(where: str, part: Part, given: Sequence[DType]) -> None:
    wanted = [row[DTYPE] for row in _parameters(part)]
    if wanted != [d.name for d in given]:
        raise DTypeError(f"graph: {where}: dtypes of the operands, got {[d.name for d in given]}, allowed {wanted}")


def _cond_dtype(where: str, given: tuple[DType, ...], true: Part, false: Part, index: int) -> DType:
    _flag(where, given[0])
    for part in (true, false):
        _fits_dtypes(where, part, given[1:])
    first, second = (_output(where, part, index)[DTYPE] for part in (true, false))
    if first != second:
        raise DTypeError(
            f"graph: {where}: result {index}: dtypes of the branches, got {first} and {second}, allowed one for both")
    return dtypes.BY_NAME[first]


def _while_dtype(where: str, given: tuple[DType, ...], step: Part, limit: Size, index: int) -> DType:
    _flag(where, given[0])
    _fits_dtypes(where, step, given[1:])
    *state, flag = (dtypes.BY_NAME[_result(step, k)[DTYPE]] for k in range(len(step.outputs)))
    _flag(where, flag)
    _same_dtypes(where, given[1:], state)
    _output(where, step, index)
    return state[index]


def _output(where: str, part: Part, index: int) -> tuple:
    if not 0 <= index < len(part.outputs):
        raise GraphError(f"graph: {where}: result, got {index}, allowed 0 to {len(part.outputs) - 1}")
    return _result(part, index)


def _equal(facts: Facts, got: Shape, wanted: Shape) -> bool:
    same = zip(facts.resolve_shape(tuple(got)), facts.resolve_shape(tuple(wanted)), strict=False)
    return len(got) == len(wanted) and all(symbols.same(a, b) for a, b in same)


def _fits(facts: Facts, where: str, part: Part, given: Sequence[Shape]) -> None:
    """The operands are what the part was made for, and each of its rows is what its operator says; as long as no more is known of
    the sizes, the rows say and demand the same again, so they are looked at once."""
    from dvm_rt.graph.graph import NO_FACTS, Node, apply
    from dvm_rt.graph.operators import operator

    for row, shape in zip(_parameters(part), given, strict=True):
        if not _equal(facts, row[SHAPE], shape):
            raise ShapeError(f"{where}: shape of an operand, got {tuple(shape)}, allowed {row[SHAPE]}")
    if part in facts.fitting:
        return
    known = len(facts.substitutions)
    nodes: list[Node] = []
    for name, inputs, attributes, shape, dtype in part.rows:
        if any(not 0 <= i < len(nodes) for i in inputs):
            raise GraphError(f"{where}: inputs, got one that comes later or is missing, allowed earlier nodes")
        again = apply(operator(name), tuple([nodes[i] for i in inputs]), attributes, facts)
        if again.dtype.name != dtype or not _equal(facts, again.shape, shape):
            raise GraphError(f"{where}: {name}: result, got {dtype} {shape}, allowed {again!r}")
        nodes.append(Node(again.operator, again.inputs, attributes, shape, again.dtype))
    if len(facts.substitutions) == known and facts is not NO_FACTS:  # which outlives every graph
        facts.fitting.add(part)


def _repeat_dtype(where: str, given: tuple[DType, ...], step: Part, count: Size, index: int) -> DType:
    _fits_dtypes(where, step, given)
    _same_dtypes(where, given, [dtypes.BY_NAME[_result(step, k)[DTYPE]] for k in range(len(step.outputs))])
    return dtypes.BY_NAME[_output(where, step, index)[DTYPE]]


def _same_dtypes(where: str, before: Sequence[DType], after: list[DType]) -> None:
    if list(before[: len(after)]) != after:
        raise DTypeError(
            f"graph: {where}: dtypes of the state after a step, got {[d.name for d in after]}, allowed those before it, "
            f"{[d.name for d in before[: len(after)]]}"
        )


def _put_dtype(where: str, given: tuple[DType, ...], index: int) -> DType:
    if given[1] not in (dtypes.int32, dtypes.int64):
        raise DTypeError(f"graph: {where}: number of the row, got {given[1]}, allowed int32, int64")
    if given[0] is not given[2]:
        raise DTypeError(f"graph: {where}: dtype of the row, got {given[2]}, allowed that of the array, {given[0]}")
    return given[0]


def _append_dtype(where: str, given: tuple[DType, ...], index: int) -> DType:
    if given[0] is not given[1]:
        raise DTypeError(f"graph: {where}: dtype of the rows, got {given[1]}, allowed that of the array, {given[0]}")
    return given[0]


def _scalar(where: str, shape: Shape) -> None:
    if len(shape):
        raise ShapeError(f"{where}: predicate, got shape {tuple(shape)}, allowed ()")


def _cond_shape(facts: Facts, where: str, given: tuple[Shape, ...], true: Part, false: Part, index: int) -> Shape:
    _scalar(where, given[0])
    for part in (true, false):
        _fits(facts, where, part, given[1:])
    first, second = (_result(part, index)[SHAPE] for part in (true, false))
    if not _equal(facts, first, second):
        raise ShapeError(f"{where}: result {index}: shapes of the branches, got {first} and {second}, allowed one for both")
    return facts.resolve_shape(first)


def _while_shape(facts: Facts, where: str, given: tuple[Shape, ...], step: Part, limit: Size, index: int) -> Shape:
    _scalar(where, given[0])
    _scalar(where, _result(step, -1)[SHAPE])
    _fits(facts, where, step, given[1:])
    if isinstance(limit, int) and limit < 1:
        raise GraphError(f"{where}: limit, got {limit}, allowed 1 and more")
    _same_shapes(facts, where, step, len(step.outputs) - 1, given[1:])
    return facts.resolve_shape(tuple(given[1 + index]))


def _same_shapes(facts: Facts, where: str, step: Part, count: int, before: Sequence[Shape]) -> None:
    for k in range(count):
        after = _result(step, k)[SHAPE]
        if not _equal(facts, after, before[k]):
            raise ShapeError(f"{where}: state {k}: shape after a step, got {after}, allowed that before it, {tuple(before[k])}")


def _repeat_shape(facts: Facts, where: str, given: tuple[Shape, ...], step: Part, count: Size, index: int) -> Shape:
    _fits(facts, where, step, given)
    facts.demand_at_least(count, 1, where)
    _same_shapes(facts, where, step, len(step.outputs), given)
    return facts.resolve_shape(tuple(given[index]))


def _put_shape(facts: Facts, where: str, given: tuple[Shape, ...], index: int) -> Shape:
    table, number, row = given
    if not table or len(number) or not _equal(facts, row, table[1:]):
        got = f"an array {table}, number {number} and row {row}"
        raise ShapeError(f"{where}: shapes, got {got}, allowed a number () and a row of the array")
    facts.demand_at_least(table[0], 1, where)
    return facts.resolve_shape(tuple(table))


# ---- meaning ------------------------------------------------------------------------------------------------------


def meaning(row: Operator, operands: Sequence[np.ndarray], inputs: tuple, attributes: tuple, known: Known) -> np.ndarray:
    """What a node is for these operands. A branch or a loop runs once for all nodes that are its values, those with the same
    inputs (by whatever names them) and attributes; `known` are the values of what has run."""
    if row.name not in _SEVERAL:
        return np.asarray(row.meaning(*operands, *attributes))
    *shared, index = attributes
    key = (row.name, inputs, tuple(shared))
    if key not in known:
        known[key] = row.meaning(*operands, *shared)
    return known[key][index]


def _run(part: Part, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
    from dvm_rt.graph.operators import operator

    values: list[np.ndarray] = []
    known: Known = {}
    for name, inputs, attributes, _, dtype in part.rows:
        if name == "parameter":
            values.append(np.asarray(operands[attributes[0]]))
            continue
        result = meaning(operator(name), [values[i] for i in inputs], inputs, attributes, known)
        values.append(dtypes.rounded(result, dtypes.BY_NAME[dtype]))
    return [values[i] for i in part.outputs]


def _cond_meaning(flag: np.ndarray, *rest: object) -> list[np.ndarray]:
    *operands, true, false = rest
    return _run(true if flag else false, operands)


def _while_meaning(flag: np.ndarray, *rest: object) -> list[np.ndarray]:
    *operands, step, limit = rest
    count = len(step.outputs) - 1
    state, constants = list(operands[:count]), operands[count:]
    for _ in range(limit):
        if not flag:
            return state
        *state, flag = _run(step, [*state, *constants])
    if flag:
        raise DeviceTrap(f"graph: while_loop: a loop that would go on, got {limit}, allowed {limit} iterations")
    return state


def _append_shape(facts: Facts, where: str, given: tuple[Shape, ...], index: int) -> Shape:
    x, rows = given
    if not x or len(x) != len(rows):
        raise ShapeError(f"{where}: ranks, got shapes {x} and {rows}, allowed one rank from 1")
    rest = [facts.equate(a, b, where) for a, b in zip(x[1:], rows[1:], strict=True)]
    return facts.resolve_shape((x[0] + rows[0], *rest))


def _append_meaning(x: np.ndarray, rows: np.ndarray, index: int) -> np.ndarray:
    return np.concatenate([x, rows])


def _repeat_meaning(*rest: object) -> list[np.ndarray]:
    *operands, step, count = rest
    state, constants = list(operands[: len(step.outputs)]), operands[len(step.outputs) :]
    for _ in range(count):
        state = _run(step, [*state, *constants])
    return state


def _put_meaning(x: np.ndarray, number: np.ndarray, row: np.ndarray, index: int) -> np.ndarray:
    if not -len(x) <= number < len(x):
        raise DeviceTrap(f"graph: put_row: number of the row, got {number}, allowed {-len(x)} to {len(x) - 1}")
    changed = x.copy()
    changed[number] = row
    return changed


def rows(make: Callable[..., Operator], lowering: object) -> tuple[Operator, ...]:
    """The rows of the operator table."""
    return (
        make("cond", -1, lowering, "result `index` of the part `true` or the part `false`, by a flag", _cond_dtype, _cond_shape,
             _cond_meaning, ("true", "false", "index")),
        make("while_loop", -1, lowering, "state `index` after `step` has run while a flag is set", _while_dtype, _while_shape,
             _while_meaning, ("step", "limit", "index")),
        make("repeat", -1, lowering, "state `index` after `step` has run `count` times", _repeat_dtype, _repeat_shape,
             _repeat_meaning, ("step", "count", "index")),
        make("put_row", 3, lowering, "an array with one row replaced", _put_dtype, _put_shape, _put_meaning, ("index",)),
        make("append", 2, lowering, "an array with further rows", _append_dtype, _append_shape, _append_meaning, ("index",)),
    )  # fmt: skip
