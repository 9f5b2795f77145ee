"""The quick tier: a graph that was never seen runs at once, operator by operator.

Each operator has a plan of its own, for all shapes, which all graphs share: a graph of operators that were seen before needs
no planning, only launches. Rules:

- the bits are those of the fused plan. Rewrites that change arithmetic (fusion/patterns.py) happen in the graph before; from
  then on the arithmetic of an operator is a function of the operator, its attributes, dtypes and shapes;
- views that only give sizes other names are no launch, and a number is an array of one element that is kept;
- operands are given as few dimensions as the operator allows, so that fewer plans serve;
- a value lives until the last operator that reads it has been launched;
- what is not for this tier is said by `suits`: control flow, sections of hand-written kernels. A graph most of whose operators
  are new too (`are_new`) is planned as a whole: that costs less than all their plans. A graph that would write more
  than `quick_bytes_max` this way raises `TooMuch`: its plan is worth waiting for."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from dvm_rt import dtypes
from dvm_rt.array.planning import Registered, planning
from dvm_rt.config import integer
from dvm_rt.errors import EncodeError, GraphError, InvalidBytecodeError, ShapeError
from dvm_rt.fusion.fuser import fuse
from dvm_rt.graph.graph import Graph, Node, apply, concrete, hashable, parameter
from dvm_rt.graph.operators import OPERATORS, Lowering, Operator
from dvm_rt.graph.symbols import Facts, evaluate, symbol

if TYPE_CHECKING:
    from dvm_rt._native import Stream, Tensor

PARAMETER, CONSTANT, DIMENSION = OPERATORS["parameter"], OPERATORS["constant"], OPERATORS["dimension"]
RENAMES = ("reshape", "expand_dims", "squeeze")  # the same elements in the same order
ELEMENT_BY_ELEMENT = ("silu", "gelu", "clip", "pow")
ALONG_AXES, ALONG_AXIS, NORMS = ("sum", "prod", "max", "min", "mean"), ("softmax", "log_softmax"), ("layer_norm", "rms_norm")
NUMBERS_MAX = 1024
Values = dict[int, int]  # of symbols


class TooMuch(Exception):
    """The quick tier would move more memory than it is worth."""


def suits(graph: Graph) -> bool:
    """Whether every operator of a graph can run by itself."""
    return all(n.operator.lowering is not Lowering.CONTROL and n.operator.name != "section" for n in graph.nodes)


class QuickTier:
    """Plans of single operators of one stream. `counters` gets quick_launches, quick_plans, and plan_ns what they took."""

    def __init__(self, stream: Stream, plans_max: int, counters: Counter[str]) -> None:
        self.stream, self.plans_max, self.counters = stream, plans_max, counters
        self.bytes_max = integer("quick_bytes_max")
        self._plans: OrderedDict[tuple, int | None] = OrderedDict()  # None: each shape has a plan of its own
        self._numbers: dict[tuple, Tensor] = {}
        self._met: set[tuple] = set()  # operators and the dtypes of their inputs

    def are_new(self, graph: Graph) -> bool:
        """Whether most operators of a graph are met for the first time."""
        found = {(n.operator, tuple([i.dtype.code for i in n.inputs])) for n in graph.nodes if n.inputs
                 and n.operator.name not in RENAMES}
        new = found - self._met
        self._met |= new
        return 2 * len(new) > len(found)

    def run_graph(self, graph: Graph, tensors: Sequence[Tensor], values: Values) -> tuple[Tensor, ...]:
        """The outputs of a graph, whose symbols have these values."""
        given = {node: tensors[node.attribute("index")] for node in graph.parameters}
        return self.run(graph.nodes, graph.outputs, given, values)

    def run(self, nodes: Iterable[Node], outputs: Sequence[Node], given: dict[Node, Tensor],
            values: Values) -> tuple[Tensor, ...]:
        """The outputs of nodes that come after their inputs; `given` are the values of the leaves."""
        order = [n for n in nodes if n not in given]
        readers: Counter[Node] = Counter(outputs)
        for node in order:
            readers.update(node.inputs)
        found, moved = dict(given), 0
        for node in order:
            if node.operator is CONSTANT:
                continue
            inputs = [found[i] if i in found else self._number(i, values) for i in node.inputs]
            if moved + self._at_most(node, inputs) > self.bytes_max and moved + _bytes(node, values) > self.bytes_max:
                raise TooMuch
            found[node] = self._one(node, inputs, values)
            moved += found[node].nbytes
            for i in node.inputs:
                readers[i] -= 1
                if not readers[i]:
                    found.pop(i, None)
        return tuple([found[n] if n in found else self._number(n, values) for n in outputs])

    def _at_most(self, node: Node, inputs: list[Tensor]) -> int:
        """A bound of the bytes that an operator writes which is quick to find; of those that name their size, none."""
        if not inputs or node.operator.name == "broadcast_to":
            return self.bytes_max + 1
        bytes_ = node.dtype.bytes
        for t in inputs:
            bytes_ *= max(t.nbytes // dtypes.DTYPES[t.dtype].bytes, 2)  # 2: joins have the sum
        return bytes_

    def _one(self, node: Node, inputs: list[Tensor], values: Values) -> Tensor:
        """What one operator gives."""
        row = node.operator
        if row is DIMENSION:
            return self._number(node, values)
        if row.name in RENAMES:
            return inputs[0].reshape([n if n.__class__ is int else evaluate(n, values) for n in node.shape])
        attributes = tuple([concrete(a, values, {}) for a in node.attributes]) if node.attributes else ()
        inputs, attributes, shape = _in_few_dimensions(row, inputs, attributes)
        result = self._launched(row, inputs, attributes)
        return result if shape is None else result.reshape(shape)

    def _launched(self, row: Operator, inputs: list[Tensor], attributes: tuple) -> Tensor:
        key = (row, tuple([t.signature for t in inputs]), hashable(attributes))
        number = self._plans.get(key, False)
        if number is False:
            number = self._planned(key, row, attributes, inputs, True)
        self.counters["quick_launches"] += 1
        if number is not None:
            try:
                return self.stream.call(number, inputs)[0]
            except (ShapeError, EncodeError, InvalidBytecodeError):
                pass  # not for all sizes: what is wrong with these, if anything, their own plan says
        key = (*key, tuple([t.shape for t in inputs]))
        number = self._plans.get(key)
        if number is None:
            number = self._planned(key, row, attributes, inputs, False)
        return self.stream.call(number, inputs)[0]

    def _planned(self, key: tuple, row: Operator, attributes: tuple, inputs: list[Tensor], symbolic: bool) -> int | None:
        """Plans one operator; None: not for all sizes at once."""
        number = None
        with planning(self.stream, self.counters) as made:
            try:
                number = self.stream.register(fuse(_graph_of(row, attributes, inputs, symbolic)).plan.to_bytes(), [])
                made.append(Registered(number, 1))
                self.counters["quick_plans"] += 1
            except (GraphError, ShapeError):
                if not symbolic:
                    raise
        self._met.add((row, tuple([t.dtype for t in inputs])))
        self._plans[key] = number
        if len(self._plans) > self.plans_max:
            _, old = self._plans.popitem(last=False)
            if old is not None:
                self.stream.forget(old)
        return number

    def _number(self, node: Node, values: Values) -> Tensor:
        """A constant, or a size, as an array without dimensions."""
        value = node.attributes[0]
        if node.operator is DIMENSION and value.__class__ is not int:
            value = evaluate(value, values)
        key = (hashable(value), node.dtype)
        tensor = self._numbers.get(key)
        if tensor is None:
            tensor = self.stream.asarray(dtypes.to_storage(np.asarray(value), node.dtype), node.dtype.code)
            if len(self._numbers) < NUMBERS_MAX:
                self._numbers[key] = tensor
        return tensor


def _bytes(node: Node, values: Values) -> int:
    """What an operator writes."""
    return prod([n if n.__class__ is int else evaluate(n, values) for n in node.shape], start=node.dtype.bytes)


def _in_few_dimensions(row: Operator, inputs: list[Tensor], attributes: tuple) -> tuple[list[Tensor], tuple, tuple | None]:
    """The same elements in as few dimensions as the operator allows, so that fewer plans serve: (inputs, attributes, shape that
    the result has then to be given; None: it has it)."""
    if row.lowering is Lowering.ELEMENTWISE or row.name in ELEMENT_BY_ELEMENT:
        return _flat(inputs, attributes)
    x, rank = inputs[0] if inputs else None, inputs[0].rank if inputs else 0
    if rank < 3 or any(t.rank != 1 for t in inputs[1:]):
        return inputs, attributes, None
    shape = x.shape
    if row.name in ALONG_AXES and attributes[0] == (rank - 1,):
        attributes, out = ((1,), *attributes[1:]), shape[:-1] + ((1,) if attributes[-1] else ())
    elif row.name in ALONG_AXIS and attributes[0] == rank - 1:
        attributes, out = (1, *attributes[1:]), shape
    elif row.name in NORMS:
        out = shape
    else:
        return inputs, attributes, None
    rows = 1
    for n in shape[:-1]:
        rows *= n
    return [x.reshape((rows, shape[-1])), *inputs[1:]], attributes, out


def _flat(inputs: list[Tensor], attributes: tuple) -> tuple[list[Tensor], tuple, tuple | None]:
    """Operands of one shape, or with only one element, in a row."""
    shape = max((t.shape for t in inputs), key=len)
    length = 1
    for n in shape:
        length *= n
    flat = []
    for t in inputs:
        one = t.nbytes == dtypes.DTYPES[t.dtype].bytes
        if t.shape != shape and not one:
            return inputs, attributes, None
        flat.append(t.reshape(() if one else (length,)))
    return flat, attributes, shape


def _graph_of(row: Operator, attributes: tuple, inputs: list[Tensor], symbolic: bool) -> Graph:
    """The graph of one operator over inputs like these."""
    facts, parameters, count = Facts(), [], 0
    for index, tensor in enumerate(inputs):
        shape = []
        for size in tensor.shape:
            shape.append(symbol(count) if symbolic and size != 1 else size)
            count += 1
        parameters.append(parameter(index, tuple(shape), dtypes.DTYPES[tensor.dtype]))
    return Graph.of(parameters, [apply(row, tuple(parameters), attributes, facts)], facts)
