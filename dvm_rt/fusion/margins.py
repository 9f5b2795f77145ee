"""Neighbours on both sides of the same array: two shifted copies of it become parts of one.

    concat([a, x[:-k]])  and  concat([x[j:], b])   ->   wide[:-k - size of b]  and  wide[size of a + j:]
    with wide = concat([a, x, b])

That is what padding both ways looks like, in a stencil or a difference scheme. x is copied once instead of twice, and what reads
both reads neighbouring memory. Nothing is computed, so the bits are the same. Done where only element by element operators read
the two: whatever needs one of them as it lies would have to copy it again."""

from __future__ import annotations

from dataclasses import dataclass

from dvm_rt.fusion.patterns import Found, readers_of
from dvm_rt.graph.graph import Graph, Make, Node, rewrite
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import same

Ends = tuple[int | None, int | None]


@dataclass(frozen=True, slots=True, eq=False)
class _Shifted:
    """A margin and a part of x: `cut` elements of it, at its other end, are left out."""

    node: Node
    x: Node
    axis: int
    margin: Node
    cut: int

    @property
    def width(self) -> int:
        return self.margin.shape[self.axis]


def widened(graph: Graph) -> tuple[Graph, tuple[Found, ...]]:
    """The graph with such pairs as parts of one array, and what was found."""
    if sum(n.operator.name == "concat" for n in graph.nodes) < 2:
        return graph, ()
    readers, outputs = readers_of(graph), set(graph.outputs)
    before: dict[tuple[Node, int], _Shifted] = {}
    after: dict[tuple[Node, int], _Shifted] = {}
    for node in graph.nodes:
        if node.operator.name != "concat" or len(node.inputs) != 2 or node in outputs:
            continue
        if any(r.operator.lowering is not Lowering.ELEMENTWISE for r in readers.get(node, [])):
            continue
        axis, (first, second) = node.attributes[0], node.inputs
        for margin, part, side in ((first, second, before), (second, first, after)):
            found = _shifted(node, axis, margin, part, at_end=side is after)
            if found is not None:
                side.setdefault((found.x, axis), found)
    pairs = [(one, after[key]) for key, one in before.items() if key in after and after[key].node is not one.node]
    if not pairs:
        return graph, ()
    return _replaced(graph, pairs), tuple([Found("margins", tuple(map(str, one.x.shape)), "") for one, _ in pairs])


def _shifted(node: Node, axis: int, margin: Node, part: Node, at_end: bool) -> _Shifted | None:
    """`at_end`: the margin is behind the part, which then begins later than x does; else it ends earlier."""
    if part.operator.name != "index" or not isinstance(margin.shape[axis], int):
        return None
    x, entries = part.inputs[0], part.attributes[0]
    if len(x.shape) != len(part.shape) or len(entries) <= axis or any(e.__class__ is not tuple for e in entries):
        return None
    if any(entry != (None, None, None) for i, entry in enumerate(entries) if i != axis):
        return None
    start, stop, step = entries[axis]
    if step not in (None, 1):
        return None
    cut = _number(start) if at_end else _number(stop, -1)
    if cut is None or (stop if at_end else start) is not None or not same(part.shape[axis], x.shape[axis] - cut):
        return None
    return _Shifted(node, x, axis, margin, cut)


def _number(end: object, sign: int = 1) -> int | None:
    return sign * end if isinstance(end, int) and sign * end > 0 else None


def _replaced(graph: Graph, pairs: list[tuple[_Shifted, _Shifted]]) -> Graph:
    chosen = {one.node: (pair, one is pair[1]) for pair in pairs for one in pair}
    new: dict[Node, Node] = {}
    op = Make(graph.facts)

    def now(node: Node) -> Node:
        """What stands for a node, which may come later in the graph than what needs it here."""
        waiting = [node]
        while waiting:
            at = waiting[-1]
            missing = [i for i in at.inputs if i not in new]
            if at in new or missing:
                waiting += missing
                waiting = waiting[:-1] if at in new else waiting
                continue
            waiting.pop()
            inputs = tuple([new[i] for i in at.inputs])
            new[at] = at if inputs == at.inputs else Node(at.operator, inputs, at.attributes, at.shape, at.dtype)
        return new[node]

    wide: dict[int, Node] = {}
    for node in graph.nodes:
        if node not in chosen:
            now(node)
            continue
        (first, second), is_second = chosen[node]
        if id(first) not in wide:
            wide[id(first)] = op.concat(now(first.margin), now(first.x), now(second.margin), axis=first.axis)
        ends: Ends = (first.width + second.cut, None) if is_second else (None, -(first.cut + second.width))
        whole = (None, None, None)
        entries = tuple([(*ends, None) if i == first.axis else whole for i in range(len(node.shape))])
        new[node] = op.index(wide[id(first)], entries=entries)
    parameters, outputs = tuple([new[n] for n in graph.parameters]), tuple([new[n] for n in graph.outputs])
    return rewrite(Graph(parameters, (), outputs, graph.facts), lambda op, node: None)
