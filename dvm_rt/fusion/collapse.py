"""Norms over several axes, and what follows from a convolution, over one: so that all of it can be one kernel.

A reduction over axes (2, 3) of (n, c, h, w) runs over rows of h*w. What follows element by element from its result, and lies
between it and other such reductions, would have another domain, and each reduction would be a kernel of its own. Here all of
that is computed over (n, c, h*w) instead:

    y of (n, c, h, w)  ->  the view of (n, c, h, w) of y computed over (n, c, h*w)

Views of one form and back cancel out. The bits do not change: elements know nothing of each other, and a reduction over several
axes is one over a row of the same elements in the same order anyway. Where the axes are not the last ones the elements are
copied together first, which the reductions would have done one by one.

The product that a convolution is has one axis for all places; what follows from it element by element is computed over that axis
in the same way, and can run in its tiles."""

from __future__ import annotations

from dataclasses import dataclass, field

from dvm_rt.fusion.views import is_one, source
from dvm_rt.graph.graph import Graph, Make, Node, reachable, rewrite, taken_apart
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Shape, product, same, same_shape

Axes = tuple[int, ...]
CONVOLUTIONS = ("conv", "conv_transpose")


def collapsed(graph: Graph) -> Graph:
    """The graph with norms over several axes as norms over one, and places of convolutions as one axis; as it is, if
    there are none."""
    if not any(_several(node) or node.operator.name in CONVOLUTIONS for node in reachable(graph.outputs)):
        return graph
    graph = rewrite(graph, taken_apart, again=True)
    rewriter = _Rewriter(graph)
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        inputs = tuple([new[i] for i in node.inputs])
        again = node if inputs == node.inputs else Node(node.operator, inputs, node.attributes, node.shape, node.dtype)
        form = rewriter.form_of.get(node)
        new[node] = again if form is None else rewriter.over_rows(node, again, form)
    parameters, outputs = tuple([new[n] for n in graph.parameters]), tuple([new[n] for n in graph.outputs])
    return rewrite(Graph(parameters, (), outputs, graph.facts), lambda op, node: None)


def _several(node: Node) -> bool:
    """Whether it reduces over several axes of which no number of elements is known to be 1."""
    if "axes" not in node.operator.attributes or not (node.operator.lowering is Lowering.REDUCE or node.operator.compose):
        return False
    axes = node.attribute("axes")
    return "keepdims" in node.operator.attributes and len(axes) > 1 and not any(is_one(node.inputs[0].shape[a]) for a in axes)


@dataclass(slots=True, eq=False)
class _Rewriter:
    """`form_of`: for each node that is computed over rows, the shape and the axes that become one."""

    graph: Graph
    form_of: dict[Node, tuple[Shape, Axes]] = field(default_factory=dict)
    rows: dict[tuple[Node, Axes], Node] = field(default_factory=dict)  # a node of the new graph -> its form over rows
    op: Make = field(init=False)

    def __post_init__(self) -> None:
        self.op = Make(self.graph.facts)
        stats = [n for n in self.graph.nodes if n.operator.lowering is Lowering.REDUCE and _several(n)]
        forms = {(id(n), n.attribute("axes")): (n.inputs[0].shape, n.attribute("axes")) for n in stats}
        for shape, axes in forms.values():
            follows: set[Node] = set()
            for node in self.graph.nodes:
                if node in stats and node.attribute("axes") == axes and same_shape(node.inputs[0].shape, shape):
                    follows.add(node)
                elif any(source(i)[0] in follows for i in node.inputs) and node.operator.lowering is Lowering.ELEMENTWISE:
                    follows.add(node)
            chosen = [n for n in follows if n in stats
                      or (same_shape(n.shape, shape) and all(_fits(i.shape, shape, axes) for i in n.inputs))]
            norm = [n for n in chosen if n not in stats and any(source(i)[0] in follows for i in n.inputs)]
            last = axes == tuple(range(len(shape) - len(axes), len(shape)))
            if norm and (last or any(source(s.inputs[0])[0] in norm for s in stats)):  # else copies cost more than is saved
                for node in chosen + (self._before(chosen, shape, axes) if last else []):
                    self.form_of.setdefault(node, (shape, axes))

        for view, axes in self._places_of_products():
            shape, follows = view.shape, {view}
            for node in self.graph.nodes:
                if node.operator.lowering is Lowering.ELEMENTWISE and any(i in follows for i in node.inputs):
                    if same_shape(node.shape, shape) and all(_fits(i.shape, shape, axes) for i in node.inputs):
                        follows.add(node)
            for node in follows if len(follows) > 1 else ():
                self.form_of.setdefault(node, (shape, axes))

    def _places_of_products(self) -> list[tuple[Node, Axes]]:
        """Views in which the last axis of a matrix product, or of a sum of some, is several; and these."""
        found, products = [], set()
        for node in self.graph.nodes:
            if node.operator.lowering is Lowering.PRODUCT:
                products.add(node)
            elif node.operator.name == "add" and all(i in products for i in node.inputs):
                products.add(node)
            elif node.operator.name == "reshape" and node.inputs[0] in products:
                rank, places = len(node.shape), node.inputs[0].shape[-1]
                first = next((i for i in range(rank - 1) if same(product(node.shape[i:]), places)), None)
                if first is not None:
                    found.append((node, tuple(range(first, rank))))
        return found

    def _before(self, chosen: list[Node], shape: Shape, axes: Axes) -> list[Node]:
        """What is computed for these nodes alone, element by element; not what runs in the tile of a product."""
        readers: dict[Node, list[Node]] = {}
        for node in self.graph.nodes:
            for operand in node.inputs:
                readers.setdefault(operand, []).append(node)
        every, found = set(chosen), []
        for node in reversed(self.graph.nodes):
            if node in every or node in self.graph.outputs or node.operator.lowering is not Lowering.ELEMENTWISE:
                continue
            inside = all(reader in every for reader in readers.get(node, []))
            fits = same_shape(node.shape, shape) and all(_fits(i.shape, shape, axes) for i in node.inputs)
            tile = any(source(i)[0].operator.lowering in (Lowering.PRODUCT, Lowering.ATTENTION) for i in node.inputs)
            if inside and fits and not tile:
                every.add(node)
                found.append(node)
        return found

    def over_rows(self, old: Node, node: Node, form: tuple[Shape, Axes]) -> Node:
        """What stands for a node: a view of its form over rows."""
        shape, axes = form
        kept = tuple(i for i in range(len(shape)) if i not in axes)
        op = self.op
        if old.operator.name == "reshape":  # the product lies so already
            self.rows[node, axes] = op.reshape(node.inputs[0], shape=(*(shape[i] for i in kept), node.inputs[0].shape[-1]))
            return node
        if old.operator.lowering is Lowering.REDUCE:
            made = getattr(op, node.operator.name)(self._rows(node.inputs[0], shape, axes), axes=(len(kept),), keepdims=True)
            result = op.squeeze(made, axes=(len(kept),))
            result = op.expand_dims(result, axes=axes) if node.attribute("keepdims") else result
            self.rows[result, axes] = made
            return result
        inputs = tuple([self._rows(i, shape, axes) for i in node.inputs])
        sizes = (*(shape[i] for i in kept), product(shape[i] for i in axes))
        made = Node(node.operator, inputs, node.attributes, sizes, node.dtype)
        result = op.reshape(made, shape=tuple([shape[i] for i in (*kept, *axes)]))
        order = (*kept, *axes)
        if order != tuple(range(len(shape))):
            result = op.permute_dims(result, axes=tuple([order.index(i) for i in range(len(shape))]))
        self.rows[result, axes] = made
        return result

    def _rows(self, node: Node, shape: Shape, axes: Axes) -> Node:
        """An operand over rows: the axes as one, at the end."""
        found = self.rows.get((node, axes))
        if found is not None:
            return found
        op, rank = self.op, len(shape)
        if not node.shape:
            return node
        made = op.expand_dims(node, axes=tuple(range(rank - len(node.shape)))) if len(node.shape) < rank else node
        kept = tuple(i for i in range(rank) if i not in axes)
        if all(is_one(made.shape[i]) for i in axes):
            made = op.expand_dims(op.squeeze(made, axes=axes), axes=(len(kept),))
        else:
            if axes != tuple(range(rank - len(axes), rank)):
                made = op.permute_dims(made, axes=(*kept, *axes))
            made = op.reshape(made, shape=(*made.shape[: len(kept)], product(made.shape[len(kept) :])))
        self.rows[node, axes] = made
        return made


def _fits(given: Shape, shape: Shape, axes: Axes) -> bool:
    """Whether an operand has all of the axes, or none of them."""
    lead = len(shape) - len(given)
    there = [i >= lead and not is_one(given[i - lead]) for i in axes]
    return not any(there) or (all(there) and all(same(given[i - lead], shape[i]) for i in axes))
