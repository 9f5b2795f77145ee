"""What belongs to one runtime: its stream, the plans of lazy arrays by the structure of their graph, counters.

A flush turns the nodes that some arrays wait for into one plan and one launch. Rules:

- the structure (operators, attributes, dtypes, ranks, which sizes are 1) finds the plan; the sizes do not belong to it: the
  graph is planned with symbols. Where that cannot be (a reshape to fixed sizes) the plan is made for these sizes alone;
- numbers in the graph belong to the structure until VARIANTS_MAX graphs differ only in them: then they become inputs;
- stored are the arrays that are asked for and those that somebody still holds; other values never leave their kernel;
- a node whose value is there becomes a leaf, and gives up what it was computed from."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dvm_rt import dtypes, runtime
from dvm_rt.config import integer
from dvm_rt.errors import EncodeError, GraphError, InvalidBytecodeError, ShapeError
from dvm_rt.fusion.fuser import Fused, fuse
from dvm_rt.graph.graph import Graph, Node, apply, parameter, reachable
from dvm_rt.graph.operators import OPERATORS
from dvm_rt.graph.symbols import Facts, symbol

if TYPE_CHECKING:
    from dvm_rt._native import Stream, Tensor
    from dvm_rt.array.array import Array

PARAMETER, CONSTANT = OPERATORS["parameter"], OPERATORS["constant"]
VARIANTS_MAX = 4
NODES_TRIED = (64, 16, 1)  # nodes of a kernel, where the encoder has met a limit; 1: one operator a kernel


class Pending:
    """What a node of a lazy graph carries: who holds its array, and how many nodes it stands for."""

    __slots__ = ("array", "size")

    def __init__(self, array: weakref.ref[Array], size: int) -> None:
        self.array, self.size = array, size


@dataclass(slots=True, eq=False)
class Planned:
    """A registered plan. `number` is the stream's; `kernels_small` counts how often it was cut smaller."""

    number: int
    graph: Graph
    fused: Fused
    captured: list[Tensor]
    kernels_small: int = 0


class Session:
    """Arrays of one runtime."""

    __slots__ = ("runtime", "stream", "plans", "variants", "counters", "lock", "__weakref__")

    def __init__(self, of: runtime.Runtime) -> None:
        self.runtime = of
        self.stream: Stream = of.stream
        self.plans: OrderedDict[object, Planned | None] = OrderedDict()
        self.variants: dict[object, set[tuple]] = {}
        self.counters: Counter[str] = Counter()
        self.lock = threading.RLock()

    # ---- plans ----

    def plan(self, graph: Graph, captured: list[Tensor], began_ns: int | None = None) -> Planned:
        """Fuses and registers a graph. began_ns: when its tracing began, which counts as planning."""
        began_ns = time.perf_counter_ns() if began_ns is None else began_ns
        fused = fuse(graph)
        number = self.stream.register(fused.plan.to_bytes(), captured)
        self.counters["plan_ns"] += time.perf_counter_ns() - began_ns
        return Planned(number, graph, fused, captured)

    def call(self, planned: Planned, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """Launches a plan. Raises ShapeError where the shapes do not fit it, and what the stream raises."""
        while True:
            try:
                return self.stream.call(planned.number, tensors)
            except (ShapeError, EncodeError, InvalidBytecodeError) as error:
                planned.graph.symbol_values([t.shape for t in (*tensors, *planned.captured)])  # says more, where it can
                if isinstance(error, ShapeError) or planned.kernels_small == len(NODES_TRIED) - 1:
                    raise
                self._cut_smaller(planned)

    def _cut_smaller(self, planned: Planned) -> None:
        """A kernel was more than a program may hold: the same graph in smaller kernels."""
        planned.kernels_small += 1
        self.counters["plans_cut_smaller"] += 1
        nodes = NODES_TRIED[planned.kernels_small]
        planned.fused = fuse(planned.graph, fused=nodes > 1, nodes_max=nodes)
        old = planned.number
        planned.number = self.stream.register(planned.fused.plan.to_bytes(), planned.captured)
        self.stream.forget(old)

    # ---- lazy graphs ----

    def flush(self, nodes: list[Node], reason: str) -> None:
        """Computes what these nodes wait for, in one launch."""
        with self.lock:
            order = reachable([n for n in nodes if n.data.__class__ is Pending])
            pending = [n for n in order if n.data.__class__ is Pending]
            if not pending:
                return
            self.counters[f"flush {reason}"] += 1
            wanted = {id(n) for n in nodes}
            outputs = [n for n in pending if id(n) in wanted or n.data.array() is not None]
            tensors = self._run(order, outputs)
            for node, tensor in zip(outputs, tensors, strict=True):
                array = node.data.array()
                become_leaf(node, tensor)
                if array is not None:
                    array._tensor = tensor

    def _run(self, order: list[Node], outputs: list[Node]) -> tuple[Tensor, ...]:
        leaves = [n for n in order if n.data.__class__ is not Pending and n.operator is PARAMETER]
        inputs = [n.data for n in leaves]
        key, numbers = _structure(order, outputs)
        lifted = self._lifts(key, numbers)
        if lifted:
            constants = [n for n in order if n.operator is CONSTANT]
            inputs += [self.stream.asarray(np.asarray(n.attributes[0], n.dtype.numpy)) for n in constants]
        symbolic = (key, None) if lifted else (key, numbers)
        planned = self.plans.get(symbolic, False)
        if planned is False:
            planned = self._plan_lazy(order, outputs, leaves, symbolic, lifted)
        if planned is not None:
            self.plans.move_to_end(symbolic)
            try:
                return self.call(planned, inputs)
            except ShapeError:
                self.counters["plans_for_one_shape"] += 1
        exact = (symbolic, tuple([n.shape for n in leaves]))
        planned = self.plans.get(exact)
        if planned is None:
            planned = self._keep(exact, self.plan(_replayed(order, outputs, leaves, False, lifted), []))
        return self.call(planned, inputs)

    def _plan_lazy(self, order: list, outputs: list, leaves: list, key: object, lifted: bool) -> Planned | None:
        try:
            graph = _replayed(order, outputs, leaves, True, lifted)
        except (GraphError, ShapeError):
            return self._keep(key, None)
        return self._keep(key, self.plan(graph, []))

    def _keep(self, key: object, planned: Planned | None) -> Planned | None:
        self.plans[key] = planned
        while len(self.plans) > integer("plans_max"):
            _, old = self.plans.popitem(last=False)
            if old is not None:
                self.stream.forget(old.number)
        return planned

    def _lifts(self, key: object, numbers: tuple) -> bool:
        """Whether the numbers of such graphs change so often that they should be inputs."""
        if not numbers:
            return False
        seen = self.variants.setdefault(key, set())
        if len(seen) < VARIANTS_MAX:
            seen.add(numbers)
        return len(seen) >= VARIANTS_MAX

    def stats(self) -> dict[str, object]:
        """Counters of arrays and functions, then the runtime's. plan_ns: spent on tracing, fusing and registering."""
        return {"plan_ns": 0, **self.counters, "lazy_plans": sum(p is not None for p in self.plans.values()), **self.runtime.stats()}


def become_leaf(node: Node, tensor: Tensor) -> None:
    """The node's value is there: it forgets what it was computed from."""
    node.operator, node.inputs, node.attributes = PARAMETER, (), (-1, node.shape, node.dtype.name)
    node.data = tensor


def leaf(tensor: Tensor) -> Node:
    """A node whose value is there."""
    node = Node(PARAMETER, (), (-1, tensor.shape, ""), tensor.shape, dtypes.DTYPES[tensor.dtype])
    node.data = tensor
    return node


def _structure(order: list[Node], outputs: list[Node]) -> tuple[tuple, tuple]:
    """(what makes two lazy graphs the same but for sizes and numbers, the numbers)."""
    number: dict[int, int] = {}
    rows, numbers = [], []
    for i, node in enumerate(order):
        number[id(node)] = i
        if node.operator is PARAMETER:
            ones = 0
            for d, size in enumerate(node.shape):
                ones |= (size == 1) << d
            rows.append((node.dtype.code, len(node.shape), ones))
        elif node.operator is CONSTANT:
            value = node.attributes[0]
            numbers.append(float.hex(value) if value.__class__ is float else value)
            rows.append(node.attributes[1])
        else:
            rows.append((node.operator.name, tuple([number[id(n)] for n in node.inputs]), node.attributes))
    return (tuple(rows), tuple([number[id(n)] for n in outputs])), tuple(numbers)


def _replayed(order: list[Node], outputs: list[Node], leaves: list[Node], symbolic: bool, lifted: bool) -> Graph:
    """The graph of lazy nodes: over symbols, or for exactly these sizes."""
    facts, new, parameters, count = Facts(), {}, [], 0

    def add_parameter(node: Node) -> Node:
        nonlocal count
        shape = []
        for size in node.shape:
            shape.append(symbol(count) if symbolic and size != 1 else size)
            count += 1
        parameters.append(parameter(len(parameters), tuple(shape), node.dtype))
        return parameters[-1]

    for node in leaves:
        new[id(node)] = add_parameter(node)
    if lifted:
        for node in order:
            if node.operator is CONSTANT:
                new[id(node)] = add_parameter(node)
    for node in order:
        if id(node) not in new:
            inputs = tuple([new[id(n)] for n in node.inputs])
            new[id(node)] = apply(node.operator, inputs, node.attributes, facts)
    return Graph.of(parameters, [new[id(n)] for n in outputs], facts)


# ---- the session of the current runtime ---------------------------------------------------------------------------

_sessions: weakref.WeakKeyDictionary[runtime.Runtime, Session] = weakref.WeakKeyDictionary()
_last: tuple[object, Session | None] = (None, None)


def session() -> Session:
    """The session of the current runtime; without one, an inline runtime is made."""
    global _last
    of = runtime.current()
    if _last[0] is not of:
        if of not in _sessions:
            _sessions[of] = Session(of)
        _last = (of, _sessions[of])
    return _last[1]


def stats() -> dict[str, object]:
    """Counters of the current runtime: flushes by reason, traces, plans, then those of its stream."""
    return session().stats()
