"""Query, key and value projections as one product: several constant matrices that the same rows are multiplied by.

    linear(x, w1, b1), linear(x, w2, b2), ..        ->  parts of linear(x, beside(w1, w2, ..), beside(b1, b2, ..))
    matmul(x, w1), ..  perhaps each + b1, ..        ->  the same

One product of many columns keeps the matrix unit busier than several of few, reads x once and is one kernel. The bits do not
change: columns of a product do not depend on each other. Nothing is copied at a call: the packed form of the matrices has
them side by side from the start.

Done where the matrices are given with the call, their sizes are numbers, all but the last fill whole panels, and nothing but
views reads the results directly: what could have run in the tile of its own product stays there (silu(x @ a) * (x @ b)). And
where it pays: for matrices of up to 64 KiB each, which stay in the cache of level 2 together, it takes 0 to 20 % off the three
products; for larger ones it gains nothing at many rows and loses 7 to 17 % at two (256 x 256)."""

from __future__ import annotations

from dataclasses import dataclass

from dvm_rt.dtypes import float32
from dvm_rt.fusion.patterns import Found, Readers, readers_of
from dvm_rt.fusion.views import crosses, is_view
from dvm_rt.graph.graph import Graph, Make, Node, rewrite
from dvm_rt.isa.layout import LIMITS

PANEL = LIMITS["PANEL"]
MATRIX_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True, eq=False)
class _Projection:
    """`result` is x times a matrix, with its bias if it has one; axis: along which the columns of the product lie in it."""

    result: Node
    x: Node
    weight: Node
    axis: int
    bias: Node | None

    @property
    def columns(self) -> int:
        return self.weight.shape[self.axis]


def joined(graph: Graph) -> tuple[Graph, tuple[Found, ...]]:
    """The graph with such projections joined, and what was found. Its parameters are given with each call."""
    products = [n for n in graph.nodes if n.operator.name in ("linear", "matmul") and n.dtype is float32
                and len(n.inputs[0].shape) > 1 and _given(_stored(n.inputs[1]), 2)]
    if len(products) < 2:
        return graph, ()
    readers, together = readers_of(graph), {}
    for node in products:
        one = _projection(node, readers)
        if one is not None:
            together.setdefault((one.x, one.axis, one.bias is None, one.weight.shape[1 - one.axis]), []).append(one)
    chosen: dict[Node, tuple[list[_Projection], int]] = {}
    found = []
    for group in together.values():
        group.sort(key=lambda one: one.columns % PANEL != 0)
        if len(group) > 1 and not any(one.columns % PANEL for one in group[:-1]) and _read_by_views(graph, group, readers):
            largest = max(one.weight.shape[0] * one.weight.shape[1] * float32.bytes for one in group)
            pays = largest <= MATRIX_BYTES_MAX
            if pays:
                chosen.update({one.result: (group, i) for i, one in enumerate(group)})
            reason = "" if pays else f"a matrix of {largest} bytes; above {MATRIX_BYTES_MAX} they are no faster together"
            found.append(Found("projections", tuple(str(one.columns) for one in group), reason))
    return (_replaced(graph, chosen) if chosen else graph), tuple(found)


def _projection(node: Node, readers: Readers) -> _Projection | None:
    x, operand, *bias = node.inputs
    weight, axis = _stored(operand), 0 if node.operator.name == "linear" else 1
    if weight is not operand:
        axis = 1 - axis
    if any(not _given(b, 1) for b in bias):
        return None
    after = readers.get(node, [])
    if not bias and len(after) == 1 and after[0].operator.name == "add":
        others = [b for b in after[0].inputs if b is not node and _given(b, 1) and b.shape[0] == weight.shape[axis]]
        if others:
            return _Projection(after[0], x, weight, axis, others[0])
    return _Projection(node, x, weight, axis, bias[0] if bias else None)


def _stored(node: Node) -> Node:
    """The matrix that a node is, or is the transpose of."""
    turned = node.operator.name == "permute_dims" and len(node.shape) == 2 and node.attributes[0] == (1, 0)
    return node.inputs[0] if turned else node


def _given(node: Node, rank: int) -> bool:
    if node.operator.name != "parameter" or node.dtype is not float32 or len(node.shape) != rank:
        return False
    return all([n.__class__ is int and n > 0 for n in node.shape])


def _read_by_views(graph: Graph, group: list[_Projection], readers: Readers) -> bool:
    results = [one.result for one in group]
    if any(n in graph.outputs for n in results):
        return False
    return all(is_view(reader) and not crosses(reader) for n in results for reader in readers.get(n, []))


def _replaced(graph: Graph, chosen: dict[Node, tuple[list[_Projection], int]]) -> Graph:
    new: dict[Node, Node] = {}
    wide: dict[int, Node] = {}
    op = Make(graph.facts)
    for node in graph.nodes:
        inputs = tuple(new[i] for i in node.inputs)
        if node not in chosen:
            new[node] = node if inputs == node.inputs else Node(node.operator, inputs, node.attributes, node.shape, node.dtype)
            continue
        group, number = chosen[node]
        if id(group) not in wide:
            wide[id(group)] = _wide(op, group, new)
        start = sum(one.columns for one in group[:number])
        entries = ((None, None, None),) * (len(node.shape) - 1) + ((start, start + group[number].columns, None),)
        new[node] = op.index(wide[id(group)], entries=entries)
    parameters, outputs = tuple(new[n] for n in graph.parameters), tuple(new[n] for n in graph.outputs)
    return rewrite(Graph(parameters, (), outputs, graph.facts), lambda op, node: None)


def _wide(op: Make, group: list[_Projection], new: dict[Node, Node]) -> Node:
    """The product with all matrices; parameters stand in the graph before everything else."""
    first = group[0]
    weights = op.beside(*(new[one.weight] for one in group), axis=first.axis)
    if first.axis == 0:
        weights = op.permute_dims(weights, axes=(1, 0))
    product = op.matmul(new[first.x], weights)
    return product if first.bias is None else op.add(product, op.beside(*(new[one.bias] for one in group), axis=0))
