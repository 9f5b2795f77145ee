"""Which graphs may be run for several calls at once: their arguments one behind the other along some axis.

A value is *stacked* along an axis if the calls lie there one behind the other, or shared by all calls. `stacked_outputs` follows
the axes from the arguments to the outputs. Every operator must treat what lies along that axis each for itself: then every
call has the bytes that it has alone, because the arithmetic of an operator does not depend on how many rows there are
besides. What is not known to do so raises `NotStackable` with the reason. Knows nothing of plans and tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dvm_rt.graph.attributes import Part
from dvm_rt.graph.graph import Graph, Node
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Dim, same, symbols_of

Axis = int | None  # None: shared by all calls


class NotStackable(Exception):
    """Why not."""


def stacked_outputs(graph: Graph, stacked: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axis of each output, where these are the axes of the parameters."""
    axes: dict[Node, Axis] = {}
    rows = {s for node, axis in zip(graph.parameters, stacked, strict=True) if axis is not None
            for s in symbols_of(node.shape[axis])}
    for node in graph.nodes:
        if node.operator.name == "parameter":
            axes[node] = stacked[node.attribute("index")]
            continue
        given = [axes[i] for i in node.inputs]
        if all(axis is None for axis in given):
            _check_number_free(node, rows)
            axes[node] = None
        else:
            axes[node] = _axis(node, given)
    return tuple([axes[n] for n in graph.outputs])


def may_trap(graph: Graph) -> bool:
    """Whether a value of one call could stop the launch of all: an index out of range does, unless a clip keeps it in range."""
    return any(n.operator.lowering is Lowering.HOST or (n.operator.lowering is Lowering.GATHER
                                                        and not _picks_what_is_there(n)) for n in graph.nodes)


def _picks_what_is_there(take: Node) -> bool:
    table, index = take.inputs
    rows = table.shape[0]
    ends = index.attributes if index.operator.name == "clip" else (None,)
    return isinstance(rows, int) and all(end is not None and -rows <= end < rows for end in ends)


def _check_number_free(node: Node, rows: set[int]) -> None:
    """What all calls share must not know how many rows there are."""
    if any(not rows.isdisjoint(_symbols(a)) for a in (*node.attributes, node.shape)):
        raise NotStackable(f"{node.operator.name} depends on the number of rows")


def _symbols(attribute: object) -> set[int]:
    found, parts, stack = set[int](), set[Part](), [attribute]
    while stack:
        at = stack.pop()
        if isinstance(at, tuple):
            stack += at
        elif isinstance(at, Dim):
            found.update(symbols_of(at))
        elif at.__class__ is Part and at not in parts:
            parts.add(at)
            stack.append(at.rows)
    return found


def _axis(node: Node, given: list[Axis]) -> Axis:
    rule = _RULES.get(node.operator.name)
    if rule is None and node.operator.lowering is Lowering.ELEMENTWISE:
        rule = _elementwise
    if rule is None:
        raise NotStackable(f"{node.operator.name} is not known to treat rows each for itself")
    return rule(node, given)


def _refuse(node: Node, what: str) -> NotStackable:
    return NotStackable(f"{node.operator.name} {what}")


# ---- rules: where the axis goes -----------------------------------------------------------------------------------


def _elementwise(node: Node, given: list[Axis]) -> Axis:
    """Counted from the right, where broadcasting aligns it."""
    places = {len(i.shape) - axis for i, axis in zip(node.inputs, given, strict=True) if axis is not None}
    if len(places) != 1:
        raise _refuse(node, "combines different axes")
    (place,) = places
    _check_shared(node, given, place)
    return len(node.shape) - place


def _check_shared(node: Node, given: list[Axis], place: int) -> None:
    """Shared operands have nothing, or one element, along that axis."""
    for operand, axis in zip(node.inputs, given, strict=True):
        if axis is None and len(operand.shape) >= place and not same(operand.shape[-place], 1):
            raise _refuse(node, "reads a shared value with as many rows")


def _reduced(node: Node, given: list[Axis]) -> Axis:
    axes, (axis,) = node.attribute("axes"), given
    if axis in axes:
        raise _refuse(node, "reduces over the rows")
    return axis if node.attribute("keepdims") else axis - sum(a < axis for a in axes)


def _along(node: Node, given: list[Axis]) -> Axis:
    if given[0] == node.attribute("axis"):
        raise _refuse(node, "goes along the rows")
    return given[0]


def _norm(node: Node, given: list[Axis]) -> Axis:
    x, axis = node.inputs[0], given[0]
    if axis is None or axis == len(x.shape) - 1 or any(a is not None for a in given[1:]):
        raise _refuse(node, "goes along the rows")
    return axis


def _permuted(node: Node, given: list[Axis]) -> Axis:
    return node.attribute("axes").index(given[0])


def _expanded(node: Node, given: list[Axis]) -> Axis:
    new = {axis % len(node.shape) for axis in node.attribute("axes")}
    return [i for i in range(len(node.shape)) if i not in new][given[0]]


def _squeezed(node: Node, given: list[Axis]) -> Axis:
    rank = len(node.inputs[0].shape)
    gone = {axis % rank for axis in node.attribute("axes")}
    if given[0] in gone:
        raise _refuse(node, "drops the rows")
    return given[0] - sum(axis < given[0] for axis in gone)


def _broadcast(node: Node, given: list[Axis]) -> Axis:
    x, axis = node.inputs[0], given[0] + len(node.shape) - len(node.inputs[0].shape)
    if not same(x.shape[given[0]], node.shape[axis]):
        raise _refuse(node, "repeats the rows")
    return axis


def _reshaped(node: Node, given: list[Axis]) -> Axis:
    """All sizes up to the rows stay what they are."""
    before, after, axis = node.inputs[0].shape, node.shape, given[0]
    if axis >= len(after) or not all(map(same, before[: axis + 1], after)):
        raise _refuse(node, "takes the rows apart")
    return axis


def _indexed(node: Node, given: list[Axis]) -> Axis:
    entries, axis = node.attribute("entries"), given[0]
    if axis < len(entries) and entries[axis] != (None, None, None):
        raise _refuse(node, "picks rows")
    return axis - sum(not isinstance(entry, tuple) for entry in entries[:axis])


def _joined(node: Node, given: list[Axis]) -> Axis:
    axis = given[0]
    if axis is None or any(a != axis for a in given):
        raise _refuse(node, "joins what is shared, or stacked along another axis")
    if axis == node.attribute("axis"):
        raise _refuse(node, "joins along the rows")
    return axis


def _appended(node: Node, given: list[Axis]) -> Axis:
    if given[0] is None or given[0] != given[1]:
        raise _refuse(node, "joins what is shared, or stacked along another axis")
    if given[0] == 0:
        raise _refuse(node, "joins along the rows")
    return given[0]


def _stacked(node: Node, given: list[Axis]) -> Axis:
    if given[0] is None or any(a != given[0] for a in given):
        raise _refuse(node, "joins what is shared, or stacked along another axis")
    return given[0] + (node.attribute("axis") % len(node.shape) <= given[0])


def _product(node: Node, given: list[Axis]) -> Axis:
    (a, b), (left, right) = node.inputs, given
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise _refuse(node, "of a vector")
    if right is None:
        place = len(a.shape) - left
        if place == 1:
            raise _refuse(node, "adds up over the rows")
        if place == 2:
            return len(node.shape) - 2
    else:
        place = len(b.shape) - right
        if place <= 2 or (left is not None and len(a.shape) - left != place):
            raise _refuse(node, "combines different axes")
    _check_shared(node, given, place)
    return len(node.shape) - place


def _linear(node: Node, given: list[Axis]) -> Axis:
    if given[0] is None or given[0] == len(node.inputs[0].shape) - 1 or any(a is not None for a in given[1:]):
        raise _refuse(node, "combines different axes")
    return given[0]


def _taken(node: Node, given: list[Axis]) -> Axis:
    table, index = given
    if table is not None:
        raise _refuse(node, "picks from rows")
    return index


def _attended(node: Node, given: list[Axis]) -> Axis:
    places = {len(i.shape) - axis for i, axis in zip(node.inputs, given, strict=True) if axis is not None}
    if None in given[:3] or len(places) != 1 or min(places) <= 2:
        raise _refuse(node, "combines different axes")
    (place,) = places
    _check_shared(node, given, place)
    return len(node.shape) - place


Rule = Callable[[Node, list[Axis]], Axis]
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("silu", "gelu", "clip", "pow"), _elementwise),
    **dict.fromkeys(("sum", "prod", "max", "min", "mean", "var", "logsumexp", "argmax", "argmin", "any", "all"), _reduced),
    **dict.fromkeys(("softmax", "log_softmax"), _along),
    **dict.fromkeys(("layer_norm", "rms_norm"), _norm),
    "permute_dims": _permuted, "expand_dims": _expanded, "squeeze": _squeezed, "broadcast_to": _broadcast, "reshape": _reshaped,
    "index": _indexed, "concat": _joined, "append": _appended, "stack": _stacked, "matmul": _product,
    "matrix_product": _product, "linear": _linear,
    "take": _taken, "attention": _attended,
}  # fmt: skip
