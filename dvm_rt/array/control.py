"""Branches and loops that the device takes by itself: cond, switch, while_loop.

Inside of a @function they become nodes of the graph, one launch with everything around them. Their Python functions are traced
once; arrays of the function around them, and arrays with values, may be used in them. Outside of a function they do what the
same Python control flow does. The bits are the same either way.

Rules. A predicate is a scalar bool. Branches give the same structure, shapes and dtypes. The state of a loop keeps its structure,
shapes and dtypes. A loop that would go on after `limit` iterations is an error (DeviceTrap when the device finds out)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dvm_rt.array import tracing
from dvm_rt.array.array import Array, asarray
from dvm_rt.array.array import _wrap_node as wrap_node
from dvm_rt.array.function import _flatten, _host, _is_traced, _output_node, _unflatten
from dvm_rt.array.tracing import Trace
from dvm_rt.dtypes import bool_
from dvm_rt.errors import DeviceTrap, DTypeError, GraphError, ShapeError
from dvm_rt.graph.graph import Node, apply
from dvm_rt.graph.operators import OPERATORS

LIMIT = 100_000  # most iterations, unless the caller names another number; the work of a launch counts all of them


def cond(pred: Array | bool, true: Callable[..., object], false: Callable[..., object], *operands: object) -> object:
    """true(*operands) if the predicate, a scalar bool, is set, else false(*operands)."""
    trace = tracing.current()
    if trace is None or not (isinstance(pred, Array) and _is_traced(pred)):
        return (true if _is_set("cond", pred) else false)(*operands)
    flag = _flag("cond", pred, trace)
    tree, arguments = _arguments(operands, trace, "cond")
    branches = [_traced_part(python, tree, arguments, trace, "cond") for python in (true, false)]
    taken = list({id(n): n for part, *_ in branches for n in part.taken}.values())
    (_, _, first_tree, _), (_, _, second_tree, _) = branches
    if first_tree != second_tree:
        raise GraphError(f"cond: structure of the results, got {first_tree} and {second_tree}, allowed one for both branches")
    parts = [part.part(inner, taken, outputs) for part, inner, _, outputs in branches]
    count = len(branches[0][3])
    nodes = _nodes("cond", (flag, *arguments, *taken), tuple(parts), count, trace)
    return _unflatten(first_tree, iter(nodes))


def switch(index: Array | int, branches: Sequence[Callable[..., object]], *operands: object) -> object:
    """branches[index](*operands); an index beyond the ends counts as the first or the last branch."""
    if not branches:
        raise GraphError("switch: branches, got none, allowed 1 and more")
    if isinstance(index, Array) and (index.shape != () or index.dtype.kind not in "iu"):
        raise DTypeError(f"switch: index, got {index.dtype} of shape {index.shape}, allowed a scalar integer")
    if not (isinstance(index, Array) and _is_traced(index)):
        return branches[min(max(int(index), 0), len(branches) - 1)](*operands)
    return _switched(index, 0, list(branches), operands)


def _switched(index: Array, first: int, branches: list[Callable[..., object]], operands: tuple) -> object:
    """The branches from number `first` on, by halves."""
    if len(branches) == 1:
        return branches[0](*operands)
    half = len(branches) // 2
    return cond(
        index < first + half,
        lambda *rest: _switched(index, first, branches[:half], rest),
        lambda *rest: _switched(index, first + half, branches[half:], rest),
        *operands,
    )


def while_loop(
    going: Callable[..., object], body: Callable[..., object], state: object, *, limit: int = LIMIT
) -> object:
    """The state after `state = body(*state)` has run as long as `going(*state)`, a scalar bool, is set. `state` is a tuple, or one
    array (or another structure), which both functions then take as their only argument."""
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise GraphError(f"while_loop: limit, got {limit!r}, allowed whole numbers from 1")
    alone = not isinstance(state, tuple) or hasattr(state, "_fields")
    values = (state,) if alone else state
    trace = tracing.current()
    run = _loop_by_python if trace is None else _loop_traced
    result = run(going, lambda *s: _lifted(_tuple(body(*s), alone)), _lifted(values), limit, trace)
    return result[0] if alone else result


def _tuple(result: object, alone: bool) -> tuple:
    if alone:
        return (result,)
    if not isinstance(result, (tuple, list)):
        raise GraphError(f"while_loop: state after a step, got {type(result).__name__}, allowed a tuple")
    return tuple(result)


def _lifted(value: object) -> object:
    """The state with arrays for whole numbers and bools: what a loop counts with changes."""
    if isinstance(value, (bool, int)):
        return asarray(value)
    if isinstance(value, dict):
        return {k: _lifted(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_lifted(v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _loop_by_python(going: Callable, body: Callable, state: tuple, limit: int, _: None) -> tuple:
    leaves: list[object] = []
    tree = _flatten(state, leaves)
    state = _unflatten(tree, iter([_array(x) for x in leaves]))
    kept = [(x.shape, x.dtype) for x in map(_array, leaves)]
    for _ in range(limit):
        if not _is_set("while_loop", going(*state)):
            return state
        state = body(*state)
        after: list[object] = []
        _same_tree(tree, _flatten(state, after))
        for number, ((shape, dtype), x) in enumerate(zip(kept, map(_array, after), strict=True)):
            if x.shape != shape:
                raise ShapeError(f"while_loop: state {number}: shape after a step, got {x.shape}, allowed that before it, {shape}")
            if x.dtype is not dtype:
                raise DTypeError(f"while_loop: state {number}: dtype after a step, got {x.dtype}, allowed that before it, {dtype}")
    if _is_set("while_loop", going(*state)):
        raise DeviceTrap(f"while_loop: a loop that would go on, got {limit}, allowed {limit} iterations")
    return state


def _loop_traced(going: Callable, body: Callable, state: tuple, limit: int, trace: Trace) -> tuple:
    tree, arguments = _arguments(state, trace, "while_loop")
    flag = _flag("while_loop", going(*_unflatten(tree, _arrays(arguments))), trace)

    def step(*before: object) -> tuple:
        after = body(*before)
        return after, going(*after)

    part, inner, (_, after_tree), outputs = _traced_part(step, tree, arguments, trace, "while_loop", pair=True)
    _same_tree(tree, after_tree)
    step_part = part.part(inner, part.taken, outputs)
    nodes = _nodes("while_loop", (flag, *arguments, *part.taken), (step_part, limit), len(arguments), trace)
    return _unflatten(tree, iter(nodes))


def _same_tree(before: object, after: object) -> None:
    if before != after:
        raise GraphError(f"while_loop: structure of the state after a step, got {after}, allowed that before it, {before}")


# ---- tracing ------------------------------------------------------------------------------------------------------


def _array(x: object) -> Array:
    return x if isinstance(x, Array) else asarray(_host(x))


def _arrays(nodes: Sequence[Node]) -> object:
    return iter([wrap_node(n, None) for n in nodes])


def _arguments(operands: tuple, trace: Trace, name: str) -> tuple[object, list[Node]]:
    """The structure of the operands, and their nodes in this trace."""
    leaves: list[object] = []
    tree = _flatten(operands, leaves)
    return tree, [_output_node(x, trace, name) for x in leaves]


def _traced_part(
    python: Callable, tree: object, arguments: list[Node], around: Trace, name: str, pair: bool = False
) -> tuple[Trace, list[Node], object, list[Node]]:
    """(trace, its arguments, structure of the results, results) of a function of such arguments. `pair`: it gives (state,
    predicate), whose structures are (predicate's, state's), and the predicate is the last result."""
    results: list[object] = []
    with Trace(around) as part:
        inner = [part.fixed(n.dtype, around.facts.resolve_shape(n.shape)) for n in arguments]
        given = python(*_unflatten(tree, _arrays(inner)))
        if pair:
            out_tree = (None, _flatten(given[0], results))
            nodes = [_output_node(x, part, name) for x in results]
            nodes.append(_flag(name, given[1], part))
        else:
            out_tree = _flatten(given, results)
            nodes = [_output_node(x, part, name) for x in results]
    return part, inner, out_tree, nodes


def _nodes(name: str, inputs: tuple[Node, ...], attributes: tuple, count: int, trace: Trace) -> list[Array]:
    made = []
    for index in range(count):
        node = apply(OPERATORS[name], inputs, (*attributes, index), trace.facts)
        node.data = trace
        made.append(wrap_node(node, None))
    return made


# ---- predicates ---------------------------------------------------------------------------------------------------


def _checked(name: str, pred: object) -> Array:
    array = pred if isinstance(pred, Array) else asarray(pred)
    if array.dtype is not bool_:
        raise DTypeError(f"{name}: predicate, got {array.dtype}, allowed a scalar bool")
    if array.shape != ():
        raise ShapeError(f"{name}: predicate, got shape {array.shape}, allowed (), a scalar bool")
    return array


def _flag(name: str, pred: object, trace: Trace) -> Node:
    return _output_node(_checked(name, pred), trace, name)


def _is_set(name: str, pred: object) -> bool:
    return bool(_checked(name, pred))
