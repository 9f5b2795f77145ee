"""Branches and loops that the device takes by itself: cond, switch, while_loop, scan; and append, for what grows between calls.

Inside of a @function they become nodes of the graph, one launch with everything around them. Their Python functions are traced
once; arrays of the function around them, and arrays with values, may be used in them. Outside of a function they do what the
same Python control flow does. The bits are the same either way.

Rules. A predicate is a scalar bool. Branches give the same structure, shapes and dtypes. The state of a loop keeps its structure,
ranks and dtypes. Where its sizes change (a cache that grows, a beam that shrinks), the device cannot loop by itself: then the
function around it is walked by its caller (array/function.py), iteration by iteration, with the same results. A loop that would
go on after `limit` iterations is an error (DeviceTrap when the device finds out)."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence

import numpy as np

from dvm_rt.array import tracing
from dvm_rt.array.array import Array, asarray, record
from dvm_rt.array.array import _wrap_node as wrap_node
from dvm_rt.array.function import _flatten, _host, _is_traced, _output_node, _unflatten, tree_text
from dvm_rt.array.creation import zeros
from dvm_rt.array.functions import stack
from dvm_rt.array.movement import take
from dvm_rt.array.tracing import NeedsValues, Trace
from dvm_rt.dtypes import DType, bool_, int64
from dvm_rt.errors import DeviceTrap, DTypeError, GraphError, ShapeError
from dvm_rt.graph.graph import NO_FACTS, Node, apply
from dvm_rt.graph.operators import OPERATORS
from dvm_rt.graph.symbols import Dim, Facts, Shape, Size, equal, same

LIMIT_MAX = 1 << 40  # iterations that a program can count
LIMIT = 100_000  # most iterations, unless the caller names another number; the work of a launch counts all of them


def cond(pred: Array | bool, true: Callable[..., object], false: Callable[..., object], *operands: object) -> object:
    """true(*operands) if the predicate, a scalar bool, is set, else false(*operands)."""
    _check_functions("cond", true, false)
    trace = tracing.current()
    if trace is None or not (isinstance(pred, Array) and _is_traced(pred)):
        return (true if _is_set("cond", pred) else false)(*operands)
    flag = _flag("cond", pred, trace)
    tree, arguments = _arguments(operands, trace, "cond")
    branches = [_traced_part(python, tree, arguments, trace, "cond") for python in (true, false)]
    if branches[0][2] != branches[1][2]:  # whole numbers that differ are values, too
        branches = [_lifted_part(*branch, "cond") for branch in branches]
    taken = list({id(n): n for part, *_ in branches for n in part.taken}.values())
    (_, _, first_tree, _), (_, _, second_tree, _) = branches
    if first_tree != second_tree:
        raise GraphError(
            f"cond: structure of the results, got {tree_text(first_tree)} and {tree_text(second_tree)}, "
            "allowed one for both branches"
        )
    parts = [part.part(inner, taken, outputs) for part, inner, _, outputs in branches]
    count = len(branches[0][3])
    nodes = _nodes("cond", (flag, *arguments, *taken), tuple(parts), count, trace)
    return _unflatten(first_tree, iter(nodes))


def switch(index: Array | int, branches: Sequence[Callable[..., object]], *operands: object) -> object:
    """branches[index](*operands); an index beyond the ends counts as the first or the last branch."""
    if not isinstance(branches, Sequence) or not branches:
        raise GraphError(f"switch: branches, got {reprlib.repr(branches)}, allowed a sequence of 1 and more")
    _check_functions("switch", *branches)
    if isinstance(index, Dim):
        index = asarray(index)
    if isinstance(index, Array) and (index.shape != () or index.dtype.kind not in "iu"):
        raise DTypeError(f"switch: index, got {index.dtype} of shape {index.shape}, allowed a scalar integer")
    if not isinstance(index, Array) and (isinstance(index, bool) or not hasattr(index, "__index__")):
        raise DTypeError(f"switch: index, got {index!r}, allowed a scalar integer")
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
    """The state after `state = body(*state)` has run as long as `going(*state)`, a scalar bool, is set. `state` is a
    tuple, or one array (or another structure), which both functions then take as their only argument."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT_MAX:
        raise GraphError(f"while_loop: limit, got {limit!r}, allowed whole numbers from 1 to {LIMIT_MAX}")
    _check_functions("while_loop", going, body)
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
    kept = [(x.ndim, x.dtype) for x in map(_array, leaves)]
    for _ in range(limit):
        if not _is_set("while_loop", going(*state)):
            return state
        state = body(*state)
        after: list[object] = []
        _same_tree(tree, _flatten(state, after))
        _same_kind("while_loop", kept, list(map(_array, after)))
    if _is_set("while_loop", going(*state)):
        raise DeviceTrap(f"while_loop: a loop that would go on, got {limit}, allowed {limit} iterations")
    return state


def _loop_traced(going: Callable, body: Callable, state: tuple, limit: int, trace: Trace) -> tuple:
    tree, arguments = _arguments(state, trace, "while_loop")
    flag = _flag("while_loop", going(*_unflatten(tree, _arrays(arguments))), trace)

    def step(*before: object) -> tuple:
        after = body(*before)
        _same_tree(tree, _flatten(after, []))
        return after, going(*after)

    part, inner, _, outputs = _traced_part(step, tree, arguments, trace, "while_loop", pair=True)
    _same_sizes("while_loop", trace.facts, arguments, outputs)
    step_part = part.part(inner, part.taken, outputs)
    nodes = _nodes("while_loop", (flag, *arguments, *part.taken), (step_part, limit), len(arguments), trace)
    return _unflatten(tree, iter(nodes))


def _same_tree(before: object, after: object, name: str = "while_loop") -> None:
    if before != after:
        raise GraphError(
            f"{name}: structure of the state after a step, got {tree_text(after)}, "
            f"allowed that before it, {tree_text(before)}"
        )


def _same_kind(name: str, before: Sequence[tuple[int, DType]], after: Sequence[Array]) -> None:
    """What a state keeps, wherever its loop runs: ranks and dtypes."""
    for number, ((rank, dtype), x) in enumerate(zip(before, after, strict=True)):
        if x.ndim != rank:
            raise ShapeError(f"{name}: state {number}: shape after a step, got {x.shape}, allowed {rank} dimensions as before it")
        if x.dtype is not dtype:
            raise DTypeError(f"{name}: state {number}: dtype after a step, got {x.dtype}, allowed that before it, {dtype}")


def _same_sizes(name: str, facts: Facts, before: Sequence[Node], after: Sequence[Node]) -> None:
    """Raises NeedsValues where a size of the state will be another one after a step."""
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        shapes: list[Shape] = [facts.resolve_shape(n.shape) for n in (old, new)]
        if len(old.shape) == len(new.shape) and any(equal(a, b) is False for a, b in zip(*shapes, strict=True)):
            text = f"{name}: state {number}: sizes change, got {shapes[1]} after a step, allowed {shapes[0]} on the device"
            raise NeedsValues(text)


# ---- counted loops ------------------------------------------------------------------------------------------------


def scan(f: Callable[..., object], init: object, xs: object, length: Size | None = None) -> tuple[object, object]:
    """(carry, ys) of `carry, y = f(carry, x)` for each x along the first axis of xs, an array or a structure of them; ys are the
    y's stacked. xs None: `length` times, and x is None. Raises ShapeError for unequal lengths, GraphError for none."""
    _check_functions("scan", f)
    leaves: list[object] = []
    tree = _flatten(xs, leaves) if xs is not None else None
    arrays = [_array(x) for x in leaves]
    trace = tracing.current()
    count = _length(arrays, length, NO_FACTS if trace is None else trace.facts)
    run = _scan_by_python if trace is None or same(count, 0) else _scan_traced
    return run(f, _lifted(init), arrays, lambda rows: None if tree is None else _unflatten(tree, iter(rows)), count, trace)


def _length(arrays: list[Array], length: Size | None, facts: Facts) -> Size:
    lengths = [x.shape[0] if x.ndim else None for x in arrays] + ([] if length is None else [length])
    if not lengths:
        raise GraphError("scan: xs, got no array and no length, allowed arrays, or None and length=...")
    if any(n is None for n in lengths):
        raise ShapeError("scan: lengths, got an array of no dimensions, allowed arrays of 1 and more")
    if any(equal(n, lengths[0]) is False for n in lengths):
        raise ShapeError(f"scan: lengths, got {lengths}, allowed one for all arrays of xs (and length)")
    for other in lengths[1:]:
        facts.equate(lengths[0], other, "scan: lengths")
    if isinstance(lengths[0], (bool, float)) or (isinstance(lengths[0], int) and lengths[0] < 0):
        raise GraphError(f"scan: length, got {lengths[0]!r}, allowed whole numbers from 0")
    return lengths[0]


def _scan_by_python(
    f: Callable, carry: object, arrays: list[Array], one: Callable, count: int, trace: Trace | None
) -> tuple[object, object]:
    if count == 0:
        return carry, _no_results(f, carry, arrays, one, trace)
    leaves: list[object] = []
    tree = _flatten(carry, leaves)
    kept = [(x.ndim, x.dtype) for x in map(_array, leaves)]
    rows: list[list[Array]] = []
    for i in range(count):
        carry, y = _pair(f(carry, one([x[i] for x in arrays])))
        carry, after, results = _lifted(carry), [], []
        _same_tree(tree, _flatten(carry, after), "scan")
        _same_kind("scan", kept, [_array(x) for x in after])
        y_tree = _flatten(y, results)
        rows.append([_array(x) for x in results])
    return carry, _unflatten(y_tree, iter([stack(column) for column in zip(*rows, strict=True)]))


def _no_results(f: Callable, carry: object, arrays: list[Array], one: Callable, around: Trace | None) -> object:
    """What the results of a scan over nothing are: f is traced for their shapes."""
    if around is not None:
        tree, shapes = _result_shapes(f, carry, arrays, one, around)
    else:
        with Trace() as trace:
            tree, shapes = _result_shapes(f, carry, arrays, one, trace)
    return _unflatten(tree, iter([zeros((0, *shape), dtype=dtype) for shape, dtype in shapes]))


def _result_shapes(
    f: Callable, carry: object, arrays: list[Array], one: Callable, trace: Trace
) -> tuple[object, list[tuple[Shape, DType]]]:
    tree, arguments = _arguments((carry,), trace, "scan")
    with Trace(trace) as part:
        given = _unflatten(tree, _arrays([part.fixed(n.dtype, n.shape) for n in arguments]))[0]
        rows = _arrays([part.fixed(x.dtype, x.shape[1:]) for x in arrays])
        results: list[object] = []
        y_tree = _flatten(_pair(f(given, one(list(rows))))[1], results)
        return y_tree, [(x.shape, x.dtype) for x in map(_array, results)]


def _scan_traced(
    f: Callable, carry: object, arrays: list[Array], one: Callable, count: Size, trace: Trace
) -> tuple[object, object]:
    """A loop whose state is the carry, the number of the iteration and the results so far."""
    tree, arguments = _arguments((carry,), trace, "scan")
    results: list[object] = []
    with Trace(trace) as part:
        before = [part.fixed(n.dtype, trace.facts.resolve_shape(n.shape)) for n in arguments]
        number = wrap_node(part.fixed(int64, ()), None)
        after, y = _pair(f(_unflatten(tree, _arrays(before))[0], one([take(x, number, axis=0) for x in arrays])))
        leaves: list[object] = []
        _same_tree(tree, _flatten((_lifted(after),), leaves), "scan")
        outputs = [_output_node(x, part, "scan") for x in leaves]
        _same_sizes("scan", trace.facts, arguments, outputs)
        y_tree = _flatten(y, results)
        rows = [_output_node(x, part, "scan") for x in results]
        made = [part.fixed(n.dtype, (count, *trace.facts.resolve_shape(n.shape))) for n in rows]
        pairs = zip(made, rows, strict=True)
        put = [record("put_row", (wrap_node(old, None), number, wrap_node(row, None)), (0,)) for old, row in pairs]
        outputs += [_output_node(x, part, "scan") for x in (number + 1, *put)]
    start = [asarray(0), *[zeros(n.shape, dtype=n.dtype) for n in made]]
    state = arguments + [_output_node(x, trace, "scan") for x in start]
    step = part.part([*before, number._node, *made], part.taken, outputs)
    nodes = _nodes("repeat", (*state, *part.taken), (step, count), len(state), trace)
    return _unflatten(tree, iter(nodes[: len(before)]))[0], _unflatten(y_tree, iter(nodes[len(before) + 1 :]))


def _pair(result: object) -> tuple[object, object]:
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise GraphError(f"scan: result of a step, got {type(result).__name__}, allowed a tuple (carry, y)")
    return result[0], result[1]


# ---- what grows ---------------------------------------------------------------------------------------------------


def append(x: Array, rows: Array) -> Array:
    """x with further rows behind it, along axis 0. Arrays that are made so have room to grow: the newest of them is continued
    where it lies, and nothing of it is copied; x itself, and all that was made from it, stay what they are."""
    return record("append", (_array(x), _array(rows)), (0,))


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


def _lifted_part(part: Trace, inner: list[Node], tree: object, nodes: list[Node], name: str) -> tuple[Trace,
        list[Node], object, list[Node]]:
    """What `_traced_part` gives, with arrays for whole numbers and bools in the results. Not by tracing again: what
    is nested would be traced 2 ** depth times."""
    results: list[object] = []
    with part:
        tree = _flatten(_lifted(_unflatten(tree, _arrays(nodes))), results)
        return part, inner, tree, [_output_node(x, part, name) for x in results]


def _nodes(name: str, inputs: tuple[Node, ...], attributes: tuple, count: int, trace: Trace) -> list[Array]:
    made = []
    for index in range(count):
        node = apply(OPERATORS[name], inputs, (*attributes, index), trace.facts)
        node.data = trace
        made.append(wrap_node(node, None))
    return made


def _check_functions(name: str, *functions: object) -> None:
    for function in functions:
        if not callable(function):
            raise GraphError(f"{name}: a branch or body, got {type(function).__name__}, allowed Python functions")


# ---- predicates ---------------------------------------------------------------------------------------------------


def _checked(name: str, pred: object) -> Array:
    if not isinstance(pred, (Array, np.ndarray, np.generic, bool, int, float)):
        raise DTypeError(f"{name}: predicate, got {type(pred).__name__}, allowed a scalar bool")
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
