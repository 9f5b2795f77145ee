"""Makes a graph that kernels can be cut from: no composites, reductions over last axes, views that are affine.

1. Composites are taken apart; a reduction over any axes becomes permute, reshape, a reduction over the last axis that
   keeps it, and views back: so its bits depend on the elements and their order alone.
2. Each value that may have to be stored gets a layout: row-major, or that of an output or join that it is written into,
   or the order in which its only reader wants it (a matmul result that is transposed and reshaped is stored transposed).
3. A value that costs two simple instructions on one input (a mask) is made by each of its readers for itself.
4. A conversion that no single load or rounding does is taken apart: through the compute dtype of its result.
5. Where a view is not affine on that layout, and where an operand does not lie as the matrix unit needs it, a copy is
   put in. Copies are ordinary elementwise nodes: kernels take them in, and most cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from operator import is_

from dvm_rt.dtypes import bfloat16, compute_dtype, float16, float32, limits
from dvm_rt.fusion.collapse import collapsed
from dvm_rt.fusion.views import (
    Access,
    contiguous,
    contiguous_strides,
    crosses,
    inverse,
    is_one,
    is_row_major,
    is_view,
    source,
    through,
)
from dvm_rt.fusion.words import NARROW
from dvm_rt.graph.graph import Graph, Make, Node, reachable, rewrite, taken_apart
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Shape, product, same
from dvm_rt.isa import table
from dvm_rt.isa.layout import LIMITS

CHEAP_CYCLES = 16  # two simple instructions
NUMBERS = ("constant", "dimension")  # leaves that are one number, known to the encoder
MADE = (*NUMBERS, "iota")  # leaves that lie nowhere
EXPERTS_MAX = 64  # more matrices than that are read as they are stored
PACKED_DTYPES = (float32, float16, bfloat16)  # of weights that are packed once for the matrix unit


@dataclass(slots=True, eq=False)
class Legal:
    """A graph without composites, and where each stored value lies.

    `access[node]` says where a value lies if its root is stored; `home[root]` is the access through which a root is written
    (into its own memory, an output, or a part of a join)."""

    graph: Graph
    access: dict[Node, Access] = field(default_factory=dict)
    home: dict[Node, Access] = field(default_factory=dict)
    cheap: set[Node] = field(default_factory=set)  # made for one reader alone, which may compute it repeatedly
    weights: set[Node] = field(default_factory=set)  # right operands of matrix products that are packed once
    shapes: tuple[Shape, ...] = ()  # of the outputs; the graph's outputs are the roots that are written into them


def legalise(graph: Graph, given: Sequence[bool], repeats: bool = True) -> Legal:
    """The graph in the form that kernels need; `given`: for each parameter whether its value outlives the call; `repeats`: cheap
    values are computed by each reader for itself."""
    return _with_copies(rewrite(collapsed(graph), _lowered, again=True), given, repeats)


def _one_step(op: Make, node: Node) -> Node | None:
    """Conversions that a load or a rounding does: between two compute dtypes, or inside of one."""
    x, wanted = node.inputs[0], node.dtype
    given, through = compute_dtype(x.dtype), compute_dtype(wanted)
    if given is None or through is None or given is through or wanted is through:
        return None
    between = op.astype(x, dtype=through.name)
    if x.dtype.kind == "f" and wanted.kind != "f":  # cut off at the ends, not wrapped
        low, high = limits(wanted)
        between = op.minimum(op.maximum(between, low), high)
    return op.astype(between, dtype=wanted.name)


def _lowered(op: Make, node: Node) -> Node | None:
    """Composites and conversions taken apart; reductions over the last axis, which they keep."""
    if node.operator.name == "iota" and is_one(node.attribute("size")):  # a number, that no kernel has to count
        return op.expand_dims(op.constant(value=0, dtype="int64"), axes=(0,))
    if node.operator.name == "astype":
        return _one_step(op, node)
    if node.operator.lowering is not Lowering.REDUCE:
        return taken_apart(op, node)
    x, (axes, keepdims) = node.inputs[0], node.attributes
    rank = len(x.shape)
    if axes and x.dtype.kind != "b" and all(is_one(x.shape[axis]) for axis in axes):
        alone = _of_one(op, node.operator.name, x)
        return alone if keepdims else op.squeeze(alone, axes=axes)
    if axes == (rank - 1,) and keepdims:
        return None
    if not axes:
        return op.copy(x)
    kept = tuple(i for i in range(rank) if i not in axes)
    if axes != tuple(range(rank - len(axes), rank)):
        x = op.permute_dims(x, axes=kept + axes)
    outer = tuple(x.shape[: len(kept)])
    if len(axes) > 1:
        x = op.reshape(x, shape=(*outer, product(x.shape[len(kept) :])))
    result = getattr(op, node.operator.name)(x, axes=(len(kept),), keepdims=True)
    result = op.squeeze(result, axes=(len(kept),))
    return op.expand_dims(result, axes=axes) if keepdims else result


def _of_one(op: Make, name: str, x: Node) -> Node:
    """A reduction over one element: the same bytes, also of -0 and NaN, element by element."""
    return {
        "sum": lambda: op.add(x, 0), "prod": lambda: op.multiply(x, 1), "max": lambda: op.maximum(x, x),
        "min": lambda: op.minimum(x, x),
    }[name]()  # fmt: skip


# ---- layouts ------------------------------------------------------------------------------------------------------


def is_computed(node: Node) -> bool:
    """A kernel makes it."""
    return node.operator.lowering is not Lowering.LEAF and not is_view(node)


def _paths_to_readers(graph: Graph) -> dict[Node, list[tuple[Node, ...]]]:
    """For each root the paths of views over which something reads it."""
    paths: dict[Node, list[tuple[Node, ...]]] = {}
    ends = [i for node in graph.nodes if not is_view(node) for i in node.inputs] + list(graph.outputs)
    for end in ends:
        root, path = source(end)
        paths.setdefault(root, []).append(path)
    return paths


def _preferred(root: Node, paths: list[tuple[Node, ...]]) -> tuple | None:
    """Strides in which more readers can go without a copy than row-major, or None; what is given lies as it lies."""
    if not is_computed(root) or not any(paths):
        return None
    best, best_count = None, _served(contiguous(root), paths)
    if best_count == len(paths):
        return None
    for path in paths:
        if not path:
            continue
        strides = inverse(path, contiguous_strides(path[-1].shape))
        if strides is None or not _writable(root, strides):
            continue
        count = _served(Access(root, 0, strides, root.shape), paths)
        if count > best_count:
            best, best_count = strides, count
    return best


def _served(access: Access, paths: list[tuple[Node, ...]]) -> int:
    count = 0
    for path in paths:
        at: Access | None = access
        for view in path:
            at = through(view, at) if at is not None else None
        count += at is not None
    return count


def _writable(root: Node, strides: tuple) -> bool:
    """The matrix unit writes rows: its last axis has to be the innermost. Host functions write row-major."""
    if root.operator.lowering is Lowering.HOST:
        return is_row_major(Access(root, 0, strides, root.shape))
    return not _written_by_rows(root) or same(strides[-1], 1) or is_one(root.shape[-1])


def _written_by_rows(root: Node) -> bool:
    return root.operator.lowering in (Lowering.PRODUCT, Lowering.ATTENTION) or any(map(_written_by_rows, _parts(root)))


# ---- copies -------------------------------------------------------------------------------------------------------


class _Copier:
    """Builds the graph anew, node by node, with copies where they are needed."""

    def __init__(self, graph: Graph, given: Sequence[bool], repeats: bool) -> None:
        self.given, self.repeats = given, repeats
        self.paths = _paths_to_readers(graph)
        self.readers = _reader_count(graph)
        self.op = Make(graph.facts)
        self.new: dict[Node, Node] = {}
        self.legal = Legal(graph)
        self.copies: dict[tuple[Node, bool], Node] = {}
        self.experts: set[Node] = set()  # right operands of products of rows in groups

    def add(self, node: Node) -> None:
        """Takes over one node of the old graph; its inputs are there already."""
        inputs = [self.new[i] for i in node.inputs]
        if is_view(node):
            self.new[node] = self.view(node, inputs[0])
            return
        lowering = node.operator.lowering
        if lowering is Lowering.ELEMENTWISE or lowering is Lowering.REDUCE:
            inputs = [self.private(i) for i in inputs]
        elif node.operator.name == "window_product":
            inputs = [self.operand(inputs[0], 0), self.given_or_stored(inputs[1])]
        elif lowering is Lowering.PRODUCT:
            self.experts |= {inputs[1]} if node.operator.name == "grouped_product" else set()
            inputs = [self.operand(i, number) if number < 2 else self.stored(i) for number, i in enumerate(inputs)]
        elif lowering is Lowering.ATTENTION:
            inputs = [self.head(i, number) for number, i in enumerate(inputs)]
        elif lowering is Lowering.JOIN:
            inputs = [self.part(old, i) for old, i in zip(node.inputs, inputs, strict=True)]
        elif lowering in (Lowering.GATHER, Lowering.RUNNING):
            inputs = [self.stored(i) for i in inputs]
        elif lowering is Lowering.HOST:
            inputs = [self.whole(i) for i in inputs]
        self.new[node] = self.root(_again(node, inputs), _preferred(node, self.paths.get(node, [])))

    def root(self, node: Node, strides: tuple | None = None) -> Node:
        """Registers a value that may be stored."""
        access = contiguous(node) if strides is None else Access(node, 0, strides, node.shape)
        self.legal.access[node] = self.legal.home[node] = access
        return node

    def view(self, node: Node, operand: Node) -> Node:
        """The view, on a copy of its operand if it is not affine there, or if one load would have to convert twice."""
        root, path = source(operand)
        if crosses(node) and root.operator.name not in NUMBERS and any(map(crosses, path)):
            operand = self.copy(operand)
        again = _again(node, [operand])
        access = through(again, self.legal.access[operand])
        if access is None:
            again = _again(node, [self.copy(operand)])
            access = through(again, self.legal.access[again.inputs[0]])
        self.legal.access[again] = access
        return again

    def copy(self, node: Node, shared: bool = True) -> Node:
        """The value in memory of its own, row-major."""
        if shared and (node, True) in self.copies:
            return self.copies[node, True]
        made = self.root(self.op.copy(node))
        self.copies[node, shared] = made
        return made

    def private(self, node: Node) -> Node:
        """The value made anew for one reader, if that costs less than storing it: it then may be computed repeatedly."""
        root, path = source(node)
        if any(map(crosses, path)) or not self.repeats or not is_computed(root) or not is_cheap(root):
            return node
        made = self.root(Node(root.operator, tuple([self.private(i) for i in root.inputs]), root.attributes,
                              root.shape, root.dtype))
        self.legal.cheap.add(made)
        for view in path:
            made = self.view(view, made)
        return made

    def operand(self, node: Node, number: int) -> Node:
        """An operand as the matrix unit reads it: in its own dtype, one of the last two strides 1. Weights that outlive the call
        are packed as they are stored, in 16 bits too."""
        access = self.legal.access[node]
        straight = any(same(s, 1) or is_one(n) for s, n in zip(access.strides[-2:], node.shape[-2:], strict=True))
        if number == 1 and straight and (self.may_be_packed(node, access.root) or self.are_packed_experts(node, access)):
            self.legal.weights.add(node)
            return node
        return self.given_or_stored(node) if straight else self.copy(node)

    def given_or_stored(self, node: Node) -> Node:
        """A value in memory, in its own dtype, as it lies."""
        root = self.legal.access[node].root
        in_memory = root.operator.lowering is not Lowering.LEAF or root.operator.name in ("parameter", "beside")
        return node if in_memory and root.dtype is node.dtype else self.copy(node)

    def may_be_packed(self, node: Node, root: Node) -> bool:
        """Whether it is a matrix of a dtype that packed weights have, given to the whole graph, and no conversion rounds it."""
        _, path = source(node)
        return (
            self.outlives(root) and len(root.shape) == len(node.shape) == 2
            and node.dtype is float32 and root.dtype in PACKED_DTYPES and all(v.dtype in (root.dtype, float32) for v in path)
        )  # fmt: skip

    def are_packed_experts(self, node: Node, access: Access) -> bool:
        """Whether they are the matrices of groups of rows, given to the whole graph, whose packed forms lie behind
        each other: one slice of K, columns that fill panels."""
        if len(node.shape) != 3 or not all(n.__class__ is int for n in (*node.shape, access.offset, *access.strides)):
            return False
        groups, k, n = node.shape
        return (
            0 < groups <= EXPERTS_MAX and 0 < k <= LIMITS["SLICE_K"] and n > 0 and n % LIMITS["PANEL"] == 0
            and self.outlives(access.root) and access.root.dtype is node.dtype is float32 and node in self.experts
        )  # fmt: skip

    def outlives(self, root: Node) -> bool:
        """Whether it is given to the whole graph, or all that lie beside each other in it are."""
        if root.operator.name == "beside":
            return all(map(self.outlives, root.inputs))
        return root.operator.name == "parameter" and self.given[root.attribute("index")]

    def head(self, node: Node, number: int) -> Node:
        """An operand of an attention: Q as it lies, K and V straight, V along its rows; a mask of float32 or bool in
        memory."""
        mask = number == 3
        access = self.legal.access[node]
        root, last = access.root, access.strides[-1] if node.shape else 1
        in_memory = root.operator.name == "parameter" or root.operator.lowering is not Lowering.LEAF
        lies = number < 2 or same(last, 1) or is_one(node.shape[-1] if node.shape else 1) or (mask and same(last, 0))
        return node if in_memory and lies and root.dtype is node.dtype else self.copy(node)

    def stored(self, node: Node) -> Node:
        """A value in memory, as it is: conversions and constants have to be made."""
        root = self.legal.access[node].root
        return node if root.dtype is node.dtype and root.operator.name not in MADE else self.copy(node)

    def whole(self, node: Node) -> Node:
        """A value as a host function reads it: stored, in its own dtype, row-major."""
        access = self.legal.access[node]
        stored = access.root.operator.name not in MADE and access.root.dtype is node.dtype
        return node if stored and is_row_major(access) else self.copy(node)

    def part(self, old: Node, node: Node) -> Node:
        """A part of a join, written by nobody else and read by nobody else."""
        return node if is_computed(node) and self.readers[old] == 1 and _joinable(node) else self.copy(node, shared=False)

    def output(self, old: Node, taken: set[Node]) -> Node:
        """The root that is written straight into an output; a copy where that cannot be."""
        node = self.new[old]
        root, path = source(node)
        strides = inverse(path, contiguous_strides(node.shape)) if is_computed(root) and root not in taken else None
        if strides is None or not _writable(root, strides) or not self.fits(root, strides):
            root, strides = self.copy(node, shared=False), contiguous_strides(node.shape)
        taken.add(root)
        self.relocate(root, Access(root, 0, strides, root.shape))
        return root

    def fits(self, root: Node, strides: tuple) -> bool:
        """Whether every view of the root stays affine in this layout, and every operand straight."""
        access = {root: Access(root, 0, strides, root.shape)}
        for node in self.views_of(root):
            found = through(node, access[node.inputs[0]])
            if found is None:
                return False
            access[node] = found
        heads = [n for n in self.new.values() if n.operator.lowering is Lowering.ATTENTION]
        if any(i in access and not same(access[i].strides[-1], 1) for node in heads for i in node.inputs[1:]):
            return False
        hosts = (n for n in self.new.values() if n.operator.lowering is Lowering.HOST)
        if any(not is_row_major(access[i]) for node in hosts for i in node.inputs if i in access):
            return False
        products = (n for n in self.new.values() if n.operator.lowering is Lowering.PRODUCT)
        return all(
            any(same(s, 1) or is_one(n) for s, n in zip(access[i].strides[-2:], i.shape[-2:], strict=True))
            for node in products
            for i in node.inputs[: 1 if node.operator.name == "window_product" else 2]
            if i in access
        )

    def relocate(self, root: Node, home: Access) -> None:
        """Gives a root another home, and its views their new places."""
        self.legal.home[root] = self.legal.access[root] = home
        for node in self.views_of(root):
            self.legal.access[node] = through(node, self.legal.access[node.inputs[0]])

    def views_of(self, root: Node) -> list[Node]:
        """The views that begin at a root, in order."""
        return [n for n, access in self.legal.access.items() if access.root is root and n is not root and is_view(n)]


def is_cheap(node: Node) -> bool:
    """Whether computing a value again costs less than storing it."""
    return node.operator.lowering is Lowering.ELEMENTWISE and _cost(node, CHEAP_CYCLES) <= CHEAP_CYCLES and _reads(node) == 1


def _cost(node: Node, budget: float) -> float:
    """Modelled cycles of computing a value from what is stored; infinite beyond the budget."""
    root, _ = source(node)
    if not root.inputs:
        return 0
    name = root.operator.instructions
    instruction = table.BY_NAME.get(name) if name.__class__ is str else None
    if instruction is None or instruction.cycles > budget:
        return inf
    total = instruction.cycles
    if root.dtype in NARROW and not root.operator.closed:
        total += table.BY_NAME[NARROW[root.dtype]].cycles
    for operand in root.inputs:
        total += _cost(operand, budget - total)
    return total


def _reads(node: Node) -> int:
    """Stored values that a cheap value is computed from."""
    root, _ = source(node)
    if root.operator.lowering is Lowering.LEAF:
        return root.operator.name == "parameter"
    return sum(map(_reads, root.inputs))


def _joinable(node: Node) -> bool:
    return node.operator.lowering not in (Lowering.LEAF, Lowering.VIEW, Lowering.HOST)


def _again(node: Node, inputs: list[Node]) -> Node:
    if all(map(is_, inputs, node.inputs)):
        return node
    return Node(node.operator, tuple(inputs), node.attributes, node.shape, node.dtype)


def _reader_count(graph: Graph) -> dict[Node, int]:
    """How many inputs and outputs name each node itself (its views count as readers)."""
    count: dict[Node, int] = dict.fromkeys(graph.nodes, 0)
    for node in [*(i for n in graph.nodes for i in n.inputs), *graph.outputs]:
        count[node] += 1
    return count


def _with_copies(graph: Graph, given: Sequence[bool], repeats: bool) -> Legal:
    copier = _Copier(graph, given, repeats)
    for node in graph.nodes:
        copier.add(node)
    taken: set[Node] = {part for node in copier.new.values() for part in _parts(node)}
    outputs = tuple(copier.output(node, taken) for node in graph.outputs)
    legal = copier.legal
    legal.graph = Graph(graph.parameters, tuple(reachable((*graph.parameters, *outputs))), outputs, graph.facts)
    legal.shapes = tuple(node.shape for node in graph.outputs)
    _place_parts(legal)
    return legal


def _parts(node: Node) -> tuple[Node, ...]:
    return node.inputs if node.operator.lowering is Lowering.JOIN else ()


def _place_parts(legal: Legal) -> None:
    """Each part of a join, which may be a join, is written into the memory of the join, behind the parts before it."""
    for node in reversed(legal.graph.nodes):
        axis, start = (node.attributes[0] if _parts(node) else 0), 0
        for part in _parts(node):
            home = legal.home[node]
            legal.home[part] = Access(home.root, home.offset + start * home.strides[axis], home.strides, part.shape)
            start = start + part.shape[axis]
