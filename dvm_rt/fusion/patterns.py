"""Rewrites of a graph that change its arithmetic, by pattern, before any plan is made.

One pattern so far: softmax(scores) @ values, where the scores are a product of queries and keys that is scaled by numbers
and perhaps masked, becomes one `attention`, which never stores the scores:

    scores      matrix_product(q, k^T), then any of: * number, / number, + mask, where(mask, scores, number),
                where(mask, number, scores); the mask last, and only one
    softmax     the composite, or e / sum(e), e * reciprocal(sum(e)) with e = exp(x) or exp(x - max(x)), along the last axis

k^T and everything else may lie behind views, which cost nothing. A query that sees no key gives NaN, as softmax does.
The rewrite is a function of the graph alone: quick and fused plans, all modes and all processes make the same one. What
was found, and why it was or was not rewritten, is in `Found`, which `explain` prints.

Not rewritten, with the reason: scores or probabilities that something else reads too (they would be stored all the
same), masks that are computed for every score, factors that are no numbers.

Norms, gelu, silu, swiglu and rotary need no pattern: written out by hand they already are the kernels that their
composites give."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

from dvm_rt.dtypes import float32
from dvm_rt.graph.graph import Graph, Make, Node, rewrite
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import same
from dvm_rt.fusion.views import is_one

Readers = dict[Node, list[Node]]


@dataclass(frozen=True, slots=True)
class Found:
    """A place where a pattern begins, and what became of it; `reason` is empty where it was rewritten."""

    pattern: str
    shape: tuple[str, ...]
    reason: str

    def text(self) -> str:
        return f"pattern {self.pattern} [{', '.join(self.shape)}]: " + (f"not used: {self.reason}" if self.reason else "used")


class _NotUsed(Exception):
    """Why a pattern that was found is not used."""


def rewritten(graph: Graph) -> tuple[Graph, tuple[Found, ...]]:
    """The graph with every pattern that pays rewritten, and what was found."""
    candidates = [(node, softmax) for node in graph.nodes if node.dtype is float32 and _is_product(node)
                  and (softmax := _softmax(_plain(node.inputs[0])))]
    readers = readers_of(graph) if candidates else {}
    matches: dict[Node, _Match] = {}
    found: list[Found] = []
    for node, softmax in candidates:
        try:
            matches[node] = _match(graph, node, softmax, readers)
            reason = ""
        except _NotUsed as refusal:
            reason = str(refusal)
        found.append(Found("attention", tuple(map(str, node.shape)), reason))
    return (_replaced(graph, matches) if matches else graph), tuple(found)


@dataclass(frozen=True, slots=True)
class _Softmax:
    """A softmax along the last axis: what it reads, and the nodes that only it may need."""

    scores: Node
    inside: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class _Match:
    """The parts of an attention as nodes of the old graph; `seen_where_zero`: the mask says which keys are hidden."""

    q: Node
    k_transposed: Node
    v: Node
    mask: Node | None
    seen_where_zero: bool
    scale: float
    masked: float


def readers_of(graph: Graph) -> Readers:
    """The nodes that read each node."""
    readers: Readers = {}
    for node in graph.nodes:
        for operand in node.inputs:
            readers.setdefault(operand, []).append(node)
    return readers


def _plain(node: Node) -> Node:
    """The node behind views that change nothing."""
    while node.operator.name in ("broadcast_to", "reshape", "astype", "index") and _unchanged(node):
        node = node.inputs[0]
    return node


def _unchanged(node: Node) -> bool:
    before = node.inputs[0]
    equal = len(before.shape) == len(node.shape) and all(map(same, before.shape, node.shape))
    return equal and before.dtype is node.dtype and node.operator.name != "index"


def _is_product(node: Node) -> bool:
    name = node.operator.name
    return name == "matrix_product" or (name == "matmul" and len(node.inputs[0].shape) > 1 and len(node.inputs[1].shape) > 1)


# ---- softmax ------------------------------------------------------------------------------------------------------


def _softmax(node: Node) -> _Softmax | None:
    if node.operator.name == "softmax":
        scores = node.inputs[0]
        return _Softmax(scores, (node,)) if node.attributes == (len(scores.shape) - 1,) else None
    e, total = _quotient(node)
    if e is None or e.operator.name != "exp" or total.operator.name != "sum":
        return None
    if total.inputs[0] is not e or not _along_last(total):
        return None
    shifted = e.inputs[0]
    if shifted.operator.name == "subtract":
        scores, top = shifted.inputs
        if top.operator.name == "max" and top.inputs[0] is scores and _along_last(top):
            return _Softmax(scores, (node, e, total, shifted, top))
    return _Softmax(shifted, (node, e, total))


def _quotient(node: Node) -> tuple[Node | None, Node | None]:
    """(e, total) of e / total or e * reciprocal(total)."""
    if node.operator.name == "divide":
        return node.inputs
    if node.operator.name == "multiply":
        for e, other in (node.inputs, node.inputs[::-1]):
            if other.operator.name == "reciprocal":
                return e, other.inputs[0]
    return None, None


def _along_last(node: Node) -> bool:
    axes, keepdims = node.attributes
    return keepdims and axes == (len(node.inputs[0].shape) - 1,)


# ---- scores -------------------------------------------------------------------------------------------------------


def _match(graph: Graph, node: Node, softmax: _Softmax, readers: Readers) -> _Match:
    inside = {node, *softmax.inside}
    inside |= {r for n in softmax.inside for r in readers.get(n, []) if r.operator.name == "reciprocal"}
    at, scale, mask, masked, turned = softmax.scores, 1.0, None, float("-inf"), False
    while True:
        inside.add(at)
        if _is_product(at):
            break
        step = _scaled(at)
        if step is not None:
            at, scale = step[0], scale * step[1]
            continue
        if mask is not None or scale != 1.0:
            raise _NotUsed(f"its scores go through {at.operator.name} before they are scaled or masked")
        at, mask, masked, turned = _masked(at)
    q, k_transposed = at.inputs
    v = node.inputs[1]
    _check_stays_inside(graph, inside, node, readers)
    if mask is not None and mask.operator.lowering is Lowering.ELEMENTWISE and _full(mask, at):
        raise _NotUsed("its mask is computed for every score")
    return _Match(q, k_transposed, v, mask, turned, scale, masked)


def _scaled(node: Node) -> tuple[Node, float] | None:
    """(x, factor) of x * number or x / number."""
    if node.operator.name not in ("multiply", "divide"):
        return None
    a, b = node.inputs
    if (factor := _number(b)) is not None:
        return a, factor if node.operator.name == "multiply" else 1.0 / factor
    if node.operator.name == "multiply" and (factor := _number(a)) is not None:
        return b, factor
    return None


def _masked(node: Node) -> tuple[Node, Node, float, bool]:
    """(scores, mask, what it puts in their place, whether it says what is hidden)."""
    if node.operator.name == "add":
        a, b = node.inputs
        return (a, b, float("-inf"), False) if _leads_to_product(a) else (b, a, float("-inf"), False)
    if node.operator.name == "where":
        condition, a, b = node.inputs
        if (value := _number(b)) is not None:
            return a, condition, value, False
        if (value := _number(a)) is not None:
            return b, condition, value, True
        raise _NotUsed("where() puts no number in the place of a score")
    raise _NotUsed(f"its scores come from {node.operator.name}")


def _leads_to_product(node: Node) -> bool:
    while (step := _scaled(node)) is not None:
        node = step[0]
    return _is_product(node)


def _number(node: Node) -> float | None:
    while node.operator.name in ("broadcast_to", "expand_dims", "reshape"):
        node = node.inputs[0]
    return float(node.attribute("value")) if node.operator.name == "constant" and node.dtype.kind == "f" else None


def _full(mask: Node, scores: Node) -> bool:
    """As many elements as there are scores, and more than one head shares none of them."""
    if len(mask.shape) != len(scores.shape):
        return False
    return not any(is_one(n) and not is_one(m) for n, m in zip(mask.shape, scores.shape, strict=True))


def _check_stays_inside(graph: Graph, inside: set[Node], last: Node, readers: Readers) -> None:
    for node in inside - {last}:
        if node in graph.outputs or any(r not in inside for r in readers.get(node, [])):
            raise _NotUsed(f"the result of {node.operator.name} inside of it is read elsewhere")


# ---- the new graph ------------------------------------------------------------------------------------------------


def _replaced(graph: Graph, matches: dict[Node, _Match]) -> Graph:
    """The graph with an attention in the place of every match."""
    new: dict[Node, Node] = {}
    op = Make(graph.facts)
    for node in graph.nodes:
        inputs = tuple(new[i] for i in node.inputs)
        again = node if inputs == node.inputs else Node(node.operator, inputs, node.attributes, node.shape, node.dtype)
        match = matches.get(node)
        new[node] = again if match is None else _attention(op, match, new)
    parameters, outputs = tuple(new[n] for n in graph.parameters), tuple(new[n] for n in graph.outputs)
    return rewrite(Graph(parameters, (), outputs, graph.facts), lambda op, node: None)


def _attention(op: Make, match: _Match, new: dict[Node, Node]) -> Node:
    kt = new[match.k_transposed]
    rank = len(kt.shape)
    k = op.permute_dims(kt, axes=(*range(rank - 2), rank - 1, rank - 2))
    inputs = [new[match.q], k, new[match.v]]
    if match.mask is not None:
        mask = new[match.mask]
        inputs.append(op.logical_not(mask) if match.seen_where_zero else mask)
    return op.attention(*inputs, scale=match.scale, causal=False, masked=match.masked, empty=nan)
