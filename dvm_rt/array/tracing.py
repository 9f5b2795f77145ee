"""Tracing: a Python function runs once with symbolic arguments, and leaves a graph.

Owns the trace that is going on in a thread. While one is, operators on its arrays make nodes with symbolic shapes; arrays
from outside are captured: they become further parameters of the graph, whose values belong to the plan."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from dvm_rt import dtypes
from dvm_rt.errors import GraphError
from dvm_rt.graph.control import part_of
from dvm_rt.graph.graph import Graph, Node, parameter
from dvm_rt.graph.symbols import Facts, Shape, symbol

if TYPE_CHECKING:
    from dvm_rt._native import Tensor
    from dvm_rt.graph.operators import Operator

_local = threading.local()


class NeedsValues(GraphError):
    """A step of a trace for which sizes would have to be known that depend on values: a @function is walked then, with values."""


class Recorder(Protocol):
    """Who makes the nodes instead of the trace: a kernel that is written by hand, while its body runs."""

    def apply(self, row: Operator, inputs: tuple[Node, ...], attributes: tuple) -> Node:
        """The node of an operator, as `graph.apply` makes it."""


class Trace:
    """One trace: its parameters, the facts about their sizes, and what it captured. A part of a branch or a loop has a trace
    inside of another one, `around`: it has the same facts, and `taken` from it are values that the part reads."""

    __slots__ = (
        "facts", "parameters", "captured", "symbol_count", "section_count", "recorder", "around", "taken", "_captured_nodes",
        "_taken_nodes", "_outer",
    )  # fmt: skip

    def __init__(self, around: Trace | None = None) -> None:
        self.facts = Facts() if around is None else around.facts
        self.around = around
        self.taken: list[Node] = []
        self._taken_nodes: dict[int, Node] = {}
        self.parameters: list[Node] = []
        self.captured: list[Tensor] = []
        self.symbol_count = self.section_count = 0
        self.recorder: Recorder | None = None
        self._captured_nodes: dict[int, Node] = {}

    def __enter__(self) -> Trace:
        self._outer = current()
        _local.trace = self
        return self

    def __exit__(self, *_: object) -> None:
        _local.trace = self._outer

    def argument(self, dtype: dtypes.DType, rank: int, ones: int) -> Node:
        """A further parameter: every dimension is a symbol, but those that are 1 (bit d of `ones`)."""
        sizes = []
        for d in range(rank):
            sizes.append(1 if ones >> d & 1 else symbol(self.symbol_count))
            self.symbol_count += not ones >> d & 1
        return self._parameter(tuple(sizes), dtype)

    def fixed(self, dtype: dtypes.DType, shape: tuple[int, ...]) -> Node:
        """A further parameter of exactly this shape."""
        return self._parameter(shape, dtype)

    def capture(self, tensor: Tensor) -> Node:
        """The parameter that stands for an array from outside."""
        if self.around is not None:
            return self.take(self.around.capture(tensor))
        node = self._captured_nodes.get(id(tensor))
        if node is None:
            node = self._captured_nodes[id(tensor)] = self._parameter(tensor.shape, dtypes.DTYPES[tensor.dtype])
            self.captured.append(tensor)
        return node

    def take(self, node: Node) -> Node | None:
        """The parameter that stands for a value of a trace around this one, or None if it is of none of them."""
        if node.data is self:
            return node
        outer = self.around.take(node) if self.around is not None else None
        if outer is None:
            return None
        if id(outer) not in self._taken_nodes:
            self._taken_nodes[id(outer)] = self._parameter(self.facts.resolve_shape(outer.shape), outer.dtype)
            self.taken.append(outer)
        return self._taken_nodes[id(outer)]

    def part(self, arguments: list[Node], taken: list[Node], outputs: list[Node]) -> tuple:
        """The part that these outputs are over arguments and what is taken from around it, in this order."""
        order = arguments + [self._taken_nodes.get(id(n)) for n in taken]
        final, parameters = {}, []
        for i, (node, like) in enumerate(zip(order, arguments + taken, strict=True)):
            parameters.append(parameter(i, self.facts.resolve_shape(like.shape), like.dtype))
            if node is not None:
                final[id(node)] = parameters[-1]
        return part_of(parameters, [_rebuilt(n, final) for n in outputs])

    def _parameter(self, shape: Shape, dtype: dtypes.DType) -> Node:
        node = parameter(len(self.parameters), shape, dtype)
        node.data = self
        self.parameters.append(node)
        return node

    def graph(self, outputs: list[Node]) -> Graph:
        """What the outputs need; arguments first, captured arrays last."""
        captured = set(self._captured_nodes.values())
        first = [n for n in self.parameters if n not in captured]
        order = first + list(self._captured_nodes.values())
        if order == self.parameters:  # their numbers stay
            return Graph.of(order, outputs, self.facts)
        final = {id(n): parameter(i, n.shape, n.dtype) for i, n in enumerate(order)}
        return Graph.of([final[id(n)] for n in order], [_rebuilt(n, final) for n in outputs], self.facts)


def _rebuilt(node: Node, final: dict[int, Node]) -> Node:
    """The node over the renumbered parameters."""
    from dvm_rt.graph.graph import reachable

    for part in reachable((node,), set(final)):
        if id(part) not in final:
            inputs = tuple([final[id(i)] for i in part.inputs])
            final[id(part)] = Node(part.operator, inputs, part.attributes, part.shape, part.dtype)
    return final[id(node)]


def current() -> Trace | None:
    """The trace of this thread, if one is going on."""
    return getattr(_local, "trace", None)


def refuse_leaked(node: Node) -> GraphError:
    """The error for an array of a trace that is over, or of one that this one is not inside of."""
    got = f"one of {node.dtype}{list(node.shape)}"
    allowed = "its arguments and arrays with values; return it from its function"
    return GraphError(f"array: function: array of another trace, got {got}, allowed {allowed}")


def refuse_value(what: str) -> GraphError:
    """The error for a value that a traced array does not have."""
    return GraphError(
        f"array: {what}: a traced array has no value, got Python control flow or a conversion inside of a function, allowed "
        "operators; dvm.where and dvm.cond choose, dvm.while_loop repeats, or take this step outside of the function"
    )
