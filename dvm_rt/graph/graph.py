"""Graphs of operators in single assignment form.

A `Node` is one operator applied to earlier nodes; it makes exactly one value, so a node is also its value. Nodes are made
by `apply` (or `Make`, which reads better) and never change. A `Graph` is the nodes that some outputs need, in an order in
which each comes after its inputs, together with the facts about its symbols. Rules:

- shapes hold ints and symbolic dimensions; `Graph.of` puts every shape and attribute into the form that the facts demand;
- a graph's parameters are nodes of the operator `parameter`, numbered from 0; the symbols are sizes of theirs;
- the wire form is plain nested tuples (msgpack-able) and what comes from the wire is checked by `validate`.

Knows nothing of kernels and tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dvm_rt import dtypes
from dvm_rt.dtypes import DType
from dvm_rt.errors import DvmError, GraphError, ShapeError
from dvm_rt.graph import symbols
from dvm_rt.graph.attributes import Part, concrete, from_plain, hashable, plain, resolved, resolved_leaf
from dvm_rt.graph.control import Known, meaning
from dvm_rt.graph.operators import Lowering, Operator, number_of, operator
from dvm_rt.graph.symbols import Dim, Facts, Shape, Size


class NoFacts(Facts):
    """For shapes that are all numbers: nothing can be demanded of a symbol."""

    __slots__ = ()

    def _demand(self, check: symbols.Check) -> None:
        raise _stray(check.left, check.where)

    def _substitute(self, number: int, value: Size) -> None:
        raise _stray(symbols.symbol(number), "graph")


def _stray(size: Size, where: str) -> GraphError:
    return GraphError(f"{where}: a symbolic size outside of its function, got {size}, allowed numbers")


NO_FACTS = NoFacts()


class Node:
    """One operator applied to its inputs, and the value that this gives. `data` belongs to the layer that made it."""

    __slots__ = ("operator", "inputs", "attributes", "shape", "dtype", "data")

    def __init__(self, row: Operator, inputs: tuple[Node, ...], attributes: tuple, shape: Shape, dtype: DType) -> None:
        self.operator, self.inputs, self.attributes = row, inputs, attributes
        self.shape, self.dtype = shape, dtype
        self.data = None

    def attribute(self, name: str) -> object:
        """The attribute of this name."""
        return self.attributes[self.operator.attributes.index(name)]

    def __repr__(self) -> str:
        return f"<{self.operator.name} {self.dtype}{list(self.shape)}>"


def apply(row: Operator, inputs: tuple[Node, ...], attributes: tuple, facts: Facts) -> Node:
    """A node of this operator. Raises ShapeError, DTypeError or UnsupportedOperatorError where it cannot be."""
    name = row.name
    if len(inputs) != row.inputs and not row.takes(len(inputs)):
        raise GraphError(f"graph: {name}: number of inputs, got {len(inputs)}, allowed {row.inputs}")
    dtype = row.dtype(name, tuple([n.dtype for n in inputs]), *attributes)
    shape = row.shape(facts, row.where, tuple([n.shape for n in inputs]), *attributes)
    return Node(row, inputs, attributes, shape, dtype)


class Make:
    """Makes nodes by the names of their operators: op.sum(x, axes=(1,), keepdims=True). Numbers become constants."""

    def __init__(self, facts: Facts = NO_FACTS) -> None:
        self.facts = facts

    def __getattr__(self, name: str) -> Callable[..., Node]:
        row = operator(name)

        def make(*inputs: Node | float, **attributes: object) -> Node:
            if len(inputs) == 1 and row.name in ("astype", "broadcast_to") and _does_nothing(row.name, inputs[0], attributes):
                return inputs[0]
            nodes = tuple([n if isinstance(n, Node) else self._number(n, inputs) for n in inputs])
            return apply(row, nodes, tuple([attributes[a] for a in row.attributes]), self.facts)

        setattr(self, name, make)
        return make

    def _number(self, number: float, beside: tuple[Node | float, ...]) -> Node:
        """A number of the dtype of what it stands beside."""
        dtype = next((n.dtype for n in reversed(beside) if isinstance(n, Node)), dtypes.float32)
        return self.constant(value=number_of(number, dtype), dtype=dtype.name)


def _does_nothing(name: str, node: Node, attributes: dict[str, object]) -> bool:
    if name == "astype":
        return node.dtype.name == attributes["dtype"]
    return symbols.same_shape(node.shape, attributes["shape"])


def parameter(index: int, shape: Shape, dtype: DType) -> Node:
    """Input number `index` of a graph."""
    return apply(operator("parameter"), (), (index, shape, dtype.name), NO_FACTS)


@dataclass(slots=True, eq=False)
class Graph:
    """What `outputs` need, in order: parameters first."""

    parameters: tuple[Node, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]
    facts: Facts = field(default_factory=Facts)
    _places: dict[int, tuple[int, int, int]] | None = None

    @staticmethod
    def of(parameters: Sequence[Node], outputs: Sequence[Node], facts: Facts = NO_FACTS) -> Graph:
        """The graph of these outputs: only what they need, every shape resolved, equal nodes made one."""
        return rewrite(Graph(tuple(parameters), (), tuple(outputs), facts), _keep)

    def symbol_places(self) -> dict[int, tuple[int, int, int]]:
        """symbol number -> (parameter, dimension, divisor): it is this dimension of this parameter over the divisor."""
        if self._places is None:
            self._places = self._find_places()
        return self._places

    def _find_places(self) -> dict[int, tuple[int, int, int]]:
        places: dict[int, tuple[int, int, int]] = {}
        for node in self.parameters:
            for i, size in enumerate(node.shape):
                if size.__class__ is not Dim:
                    continue
                for number in symbols.symbols_of(size):
                    if number not in places:
                        divisor = symbols.exact_quotient(size, symbols.symbol(number))
                        if isinstance(divisor, int):
                            places[number] = (node.attribute("index"), i, divisor)
        return places

    def symbol_values(self, shapes: Sequence[tuple[int, ...]]) -> dict[int, int]:
        """The symbols of a call with these parameter shapes. Raises ShapeError where they do not fit the graph."""
        values = {number: shapes[p][i] // divisor for number, (p, i, divisor) in self.symbol_places().items()}
        for node in self.parameters:
            got = tuple(shapes[node.attribute("index")])
            if got != tuple([n if n.__class__ is int else symbols.evaluate(n, values) for n in node.shape]):
                raise ShapeError(f"graph: parameter {node.attribute('index')}: shape, got {got}, allowed {node.shape}")
        for check in self.facts.resolved_checks():
            if not check.holds(values):
                raise ShapeError(f"{check.where}: sizes, got {values}, allowed {check.left} {check.relation} {check.right}")
        return values

    def validate(self) -> None:
        """Raises GraphError unless every node is what its operator says it is, after its inputs."""
        seen: set[int] = set()
        for number, node in enumerate(self.nodes):
            where = f"graph: node {number} ({node.operator.name})"
            if any(id(i) not in seen for i in node.inputs):
                raise GraphError(f"{where}: inputs, got one that comes later or is missing, allowed earlier nodes")
            if len(node.attributes) != len(node.operator.attributes):
                raise GraphError(f"{where}: attributes, got {node.attributes}, allowed {node.operator.attributes}")
            try:
                again = apply(node.operator, node.inputs, node.attributes, Facts())
            except (DvmError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise GraphError(f"{where}: not a valid application: {error}") from error
            if again.dtype is not node.dtype or len(again.shape) != len(node.shape):
                raise GraphError(f"{where}: result, got {node!r}, allowed {again!r}")
            for a, b in zip(again.shape, node.shape, strict=True):
                if not symbols.same(self.facts.resolve(a), b):
                    raise GraphError(f"{where}: shape, got {node.shape}, allowed {again.shape}")
            seen.add(id(node))
        if [n.attribute("index") for n in self.parameters] != list(range(len(self.parameters))):
            got = [n.attribute("index") for n in self.parameters]
            raise GraphError(f"graph: parameters: numbers, got {got}, allowed 0, 1, 2.. in order")
        if any(id(n) not in seen for n in self.outputs + self.parameters):
            raise GraphError("graph: outputs: nodes, got one from outside, allowed those of the graph")
        open_symbols = set().union(*(symbols.symbols_of(n) for node in self.nodes for n in node.shape), set())
        if missing := open_symbols - self.symbol_places().keys():
            raise GraphError(f"graph: symbols: numbers, got {sorted(missing)}, allowed sizes of parameters")

    def to_wire(self) -> tuple:
        """Plain nested tuples of ints, floats, strings, None and bools, equal for graphs that compute the same in the same way."""
        number, parts = {id(node): i for i, node in enumerate(self.nodes)}, dict[object, int]()
        rows = tuple(
            (n.operator.name, tuple(number[id(i)] for i in n.inputs), plain(n.attributes, parts),
             plain(n.shape, parts)) for n in self.nodes
        )
        checks = tuple((plain(c.left, parts), c.relation, plain(c.right, parts), c.where) for c in self.facts.resolved_checks())
        return rows, tuple(number[id(n)] for n in self.outputs), len(self.parameters), checks

    @staticmethod
    def from_wire(wire: object) -> Graph:
        """The inverse of to_wire (lists count as tuples), validated. Raises GraphError, UnsupportedOperatorError."""
        try:
            rows, outputs, parameter_count, checks = wire
            nodes: list[Node] = []
            parts: list[Part] = []
            for name, inputs, attributes, shape in rows:
                row = operator(name)
                before = tuple(nodes[i] for i in inputs if 0 <= i < len(nodes))
                values = tuple([from_plain(a, parts) for a in attributes])
                dtype = row.dtype(name, tuple(n.dtype for n in before), *values)
                nodes.append(Node(row, before, values, from_plain(shape, parts), dtype))
            facts = Facts(checks=[symbols.Check(from_plain(a, parts), str(r), from_plain(b, parts), str(w))
                                  for a, r, b, w in checks])
            parameters = tuple(n for n in nodes if n.operator.name == "parameter")
            graph = Graph(parameters, tuple(nodes), tuple(nodes[i] for i in outputs), facts)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise GraphError(f"graph: wire: form, got what is no graph ({error}), allowed what to_wire gives") from error
        if parameter_count != len(parameters):
            raise GraphError(f"graph: wire: parameters, got {len(parameters)}, allowed {parameter_count}")
        graph.validate()
        return graph

    def dump(self) -> str:
        """The graph as text, one node a line, and the parts of its branches and loops behind it."""
        number, parts = {id(node): i for i, node in enumerate(self.nodes)}, dict[object, Part]()
        lines = []
        for i, n in enumerate(self.nodes):
            lines.append(_line(i, n.operator, [number[id(x)] for x in n.inputs], n.attributes, n.shape, n.dtype.name, parts))
        lines.append(f"return {', '.join([f'%{number[id(n)]}' for n in self.outputs])}")
        lines += [f"needs {c.left} {c.relation} {c.right}  # {c.where}" for c in self.facts.resolved_checks()]
        shown = 0
        while shown < len(parts):  # each may name further ones
            part = list(parts.values())[shown]
            lines.append(f"part {shown}:")
            lines += [f"  {_line(i, operator(name), *row, parts)}" for i, (name, *row) in enumerate(part.rows)]
            lines.append(f"  return {', '.join([f'%{i}' for i in part.outputs])}")
            shown += 1
        return "\n".join(lines)


def _line(
    number: int, row: Operator, inputs: Sequence[int], attributes: tuple, shape: Shape, dtype: str, parts: dict[object, Part]
) -> str:
    """A line of a dump; `parts` by their keys, in the order of their numbers, gets those that it names."""
    texts = [f"%{i}" for i in inputs]
    for name, value in zip(row.attributes, attributes, strict=True):
        if value.__class__ is Part:
            parts.setdefault(value.key(), value)
            value = f"part {list(parts).index(value.key())}"
        if row.name != "parameter" or name == "index":
            texts.append(f"{name}={value}")
    return f"%{number} = {row.name}({', '.join(texts)}) : {dtype}[{', '.join(map(str, shape))}]"


def rewrite(graph: Graph, change: Callable[[Make, Node], Node | None], again: bool = False) -> Graph:
    """The graph with `change(op, node)` in the place of each node (None: as it is), without what nothing needs then.

    `node` already has its new inputs, resolved shape and attributes. Equal nodes become one; `op` makes new ones, which are
    changed too with `again`."""
    rewriter, changing = _Rewriter(graph.facts, change, again), change is not _keep
    parameters = tuple([rewriter.replaced(n, changing) for n in graph.parameters])
    outputs = tuple([rewriter.replaced(n, changing) for n in graph.outputs])
    nodes = reachable((*parameters, *outputs)) if changing else rewriter.unique.values()  # nothing went: made in the same order
    return Graph(parameters, tuple(nodes), outputs, graph.facts)


class _Rewriter:
    """Builds a graph anew, inputs first, each node once."""

    def __init__(self, facts: Facts, change: Callable[[Make, Node], Node | None], again: bool) -> None:
        self.facts, self.change, self.again = facts, change, again
        self.op = Make(facts)
        self.new: dict[Node, Node] = {}  # what stands for a node; a node that is new stands for itself
        self.unique: dict[tuple, Node] = {}

    def replaced(self, root: Node, changing: bool) -> Node:
        """What stands for a node, after all that it needs."""
        new, stack = self.new, [root]
        while stack:
            node = stack[-1]
            if node in new:
                stack.pop()
                continue
            waiting = [i for i in node.inputs if i not in new]
            if waiting:
                stack += reversed(waiting)
                continue
            stack.pop()
            new[node] = self._one(node, changing)
        return new[root]

    def _one(self, node: Node, changing: bool) -> Node:
        facts, again = self.facts, node
        inputs = tuple([self.new[i] for i in node.inputs])
        shape = facts.resolve_shape(node.shape)
        attributes = node.attributes
        if facts.substitutions and attributes:
            attributes = resolved(facts, attributes) if inputs else resolved_leaf(facts, attributes, node.shape, shape)
        if inputs != node.inputs or attributes is not node.attributes or shape is not node.shape:
            again = Node(node.operator, inputs, attributes, shape, node.dtype)
        made = self.change(self.op, again) if changing else None
        if made is not None:
            return self.replaced(made, self.again)
        key = (node.operator.name, inputs, hashable(attributes) if attributes else ())
        found = self.unique.setdefault(key, again)
        self.new[found] = found
        return found


def _keep(op: Make, node: Node) -> None:
    """Changes nothing: `rewrite` then only resolves shapes and drops what is dead or double."""


def taken_apart(op: Make, node: Node) -> Node | None:
    """What a composite stands for."""
    return composed(op, node.operator, node.inputs, node.attributes) if node.operator.lowering is Lowering.COMPOSITE else None


def decomposed(graph: Graph) -> Graph:
    """The graph without composites."""
    return rewrite(graph, taken_apart, again=True)


def composed(op: Make, row: Operator, inputs: tuple[Node, ...], attributes: tuple) -> Node:
    """What stands for a composite; a `wide` one of short floats is computed in float32 and rounded once."""
    narrow = inputs[0].dtype if inputs else None
    if not row.wide or narrow not in (dtypes.float16, dtypes.bfloat16):
        return row.compose(op, *inputs, *attributes)
    wide = [op.astype(node, dtype="float32") for node in inputs]
    return op.astype(row.compose(op, *wide, *attributes), dtype=narrow.name)


def reachable(roots: Sequence[Node], stop: set[int] = frozenset()) -> list[Node]:
    """All nodes that the roots need, each after its inputs, in an order that the structure alone decides; nothing beyond
    nodes whose id is in `stop`."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = list(reversed(roots))
    while stack:
        node = stack[-1]
        if node in seen:
            stack.pop()
            continue
        waiting = [i for i in node.inputs if i not in seen] if node.inputs and id(node) not in stop else []
        if waiting:
            stack += reversed(waiting)
            continue
        stack.pop()
        seen.add(node)
        order.append(node)
    return order


def evaluate(graph: Graph, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs for these inputs in NumPy: the oracle. Floats are computed in float64, and rounded after each operator to
    float16 and bfloat16 where the graph has those; integers are exact, and wrap."""
    values = graph.symbol_values([a.shape for a in arrays])
    results: dict[int, np.ndarray] = {}
    parts: dict[Part, Part] = {}
    known: Known = {}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            if node.operator.name == "parameter":
                results[id(node)] = dtypes.from_storage(np.asarray(arrays[node.attribute("index")]), node.dtype)
            else:
                attributes = [concrete(a, values, parts) for a in node.attributes]
                inputs = tuple([id(i) for i in node.inputs])
                result = meaning(node.operator, [results[i] for i in inputs], inputs, tuple(attributes), known)
                results[id(node)] = dtypes.rounded(result, node.dtype)
    return [results[id(n)] for n in graph.outputs]


__all__ = ["Graph", "Make", "Node", "NO_FACTS", "Size", "apply", "decomposed", "evaluate", "parameter", "reachable",
           "rewrite", "taken_apart"]
