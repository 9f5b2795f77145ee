"""Runs graphs: maximal traced segments, each one launch, and the steps between them.

A segment is a run of nodes that is traced once as a @dvm.function, weights captured, and then serves all shapes. It ends
where a node cannot be traced: control flow that depends on values, sizes that depend on values, what only the host does. Where
that happens is found by tracing: an operator that asks for elements of a traced array raises ValueNeeded, and the
segment is cut before it (or the input becomes part of the signature). Cuts are kept: later runs find them made.

A host value that belongs to a signature and changes from run to run would make a trace for each: beyond VARIANTS_MAX the
segment's nodes run one by one, as lazy arrays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np
import onnx

import dvm_rt as dvm
from dvm_rt.array.array import Array
from dvm_rt.array.function import Function
from dvm_rt.errors import (
    DTypeError,
    DvmError,
    EncodeError,
    GraphError,
    ModelFormatError,
    ShapeError,
    UnsupportedOperatorError,
)
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Dim
from dvm_rt.onnx import numpy_names, operators, table
from dvm_rt.onnx.model import DEPTH_MAX, Graph, Model, Node, _Reader, renamed
from dvm_rt.onnx.table import HOST, LIFTS, RAW, STEP, Call, Row
from dvm_rt.onnx.values import (
    HostKey,
    Untraceable,
    Value,
    ValueNeeded,
    fetch,
    is_symbolic,
    lift,
    numpy_dtype,
    settled,
)

VARIANTS_MAX = 32  # values of host inputs that a segment is traced for
BODIES_MAX = 1024  # function bodies, one for each set of sizes that they may depend on
INSTRUCTIONS, HOST_FUNCTION, HOST_PATH, FOLDED, CONTROL, INLINED = (
    "instructions", "host function", "host", "shapes and constants", "control flow", "function body"
)  # fmt: skip
_NOTHING: set[int] = set()
_PLAIN = (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError, AttributeError)
Environment = dict[str, Value]


class Running:
    """One model's nodes, where each of them ran, and the cuts of its graphs."""

    def __init__(self, model: Model) -> None:
        operators.load()
        self.model = model
        self.placed: dict[int, tuple[Node, set[str]]] = {}
        self.plans: dict[int, GraphPlan] = {}
        self.host_only: set[int] = set()  # nodes whose dtypes no instruction takes
        self.bodies: dict[tuple, Graph] = {}
        self.depth = 0
        self._thread = threading.local()
        self.main = self.plan(model.graph)

    @property
    def given(self) -> dict[int, Value]:
        """By id, the host values of the run in this thread that were given, or made of such: what NumPy makes of them
        is counted."""
        return self._thread.__dict__.setdefault("given", {})

    def run(self, env: Environment) -> list[Value]:
        """The outputs of the main graph."""
        self._thread.given = {id(v): v for v in env.values() if isinstance(v, np.ndarray)}
        return self.main.run(env, _NOTHING)

    def plan(self, graph: Graph) -> GraphPlan:
        found = self.plans.get(id(graph))
        if found is None:
            found = self.plans[id(graph)] = GraphPlan(self, graph)
        return found

    def note(self, node: Node, where: str) -> None:
        self.placed.setdefault(id(node), (node, set()))[1].add(where)

    # ---- nodes one by one ----

    def interpret(self, nodes: Sequence[Node], env: Environment, constants: set[int], first: int = 0) -> None:
        """Runs nodes in order; `env` gets their outputs. ValueNeeded and Untraceable say at which node."""
        for index, node in enumerate(nodes, first):
            try:
                outputs = self.node(node, [env[n] if n else None for n in node.inputs], env, constants)
            except ValueNeeded as needed:
                needed.name = next((n for n, v in env.items() if v is needed.array), None)
                needed.index = index
                raise
            except Untraceable as error:
                error.index = index
                raise
            for name, value in zip(node.outputs, outputs, strict=False):
                if name:
                    env[name] = value

    def node(self, node: Node, inputs: list[Value], env: Environment, constants: set[int]) -> Sequence[Value]:
        """The outputs of one node. What goes wrong names it."""
        row = table.find(node)
        try:
            if row is None:
                return self._by_body(node, inputs, env, constants)
            result = self._by_row(row, node, inputs, env, constants)
        except (ValueNeeded, Untraceable, ModelFormatError):
            raise
        except DvmError as error:
            kind = ShapeError if isinstance(error, GraphError) and _tracing() else type(error)  # a choice that sizes decide
            if kind is type(error) and (str(error).startswith("onnx: ") or isinstance(error, EncodeError)):
                raise
            raise kind(f"onnx: {node.where}: {error}") from error
        except _PLAIN as error:
            raise ShapeError(f"onnx: {node.where}: inputs do not fit: {type(error).__name__}: {error}") from error
        return result if isinstance(result, (list, _Outputs)) else [result]

    def _by_row(self, row: Row, node: Node, inputs: list[Value], env: Environment, constants: set[int]) -> object:
        def run_graph(graph: Graph, given: Environment) -> list[Value]:
            return self.plan(graph).run({n: env[n] for n in graph.free if n in env} | given, constants)

        while inputs and inputs[-1] is None and row.kind not in (RAW, STEP):
            inputs.pop()
        if row.kind is STEP:
            if _tracing():
                raise Untraceable
            self.note(node, CONTROL)
            return row.function(Call(node, dvm, run_graph), *inputs)
        if row.kind is RAW:
            self.note(node, CONTROL if any(isinstance(a, Graph) for a in node.attributes.values()) else FOLDED)
            return row.function(Call(node, dvm, run_graph), *inputs)
        if row.kind is LIFTS:
            self.note(node, CONTROL if any(isinstance(a, Graph) for a in node.attributes.values()) else INSTRUCTIONS)
            return row.function(Call(node, dvm, run_graph), *inputs)
        for i in row.on_host:
            if i < len(inputs):
                inputs[i] = fetch(inputs[i])
        data = [i for i in range(len(inputs)) if i not in row.on_host and inputs[i] is not None]
        if not any(isinstance(inputs[i], Array) for i in data) and not self._is_given(inputs[i] for i in data):
            try:
                result = self._on_host(row, node, inputs, run_graph)
                self.note(node, FOLDED if row.kind is not HOST else HOST_PATH)
                return result
            except numpy_names.Symbolic:
                pass
            except GraphError as error:  # a choice that depends on a symbolic size
                raise ShapeError(str(error)) from error
        if row.kind is HOST or id(node) in self.host_only:
            return self._fetched(row, node, inputs, run_graph)
        try:
            lifted = [lift(x, id(x) in constants) if i in data else x for i, x in enumerate(inputs)]
            result = row.function(Call(node, dvm, run_graph), *lifted)
        except (UnsupportedOperatorError, DTypeError):
            self.host_only.add(id(node))
            return self._fetched(row, node, inputs, run_graph)
        except AttributeError as error:
            if not str(error).startswith("module 'dvm_rt' has no attribute"):
                raise
            self.host_only.add(id(node))  # a function that NumPy alone has
            return self._fetched(row, node, inputs, run_graph)
        for value in result if isinstance(result, (list, _Outputs)) else [result]:
            self.note(node, _lowering(value, lifted))
        return result

    def _is_given(self, data: Iterable[Value]) -> bool:
        """Whether a host value is no constant and no size: outside of a trace, the machine computes with it."""
        given = self.given
        return bool(given) and not _tracing() and any(id(x) in given for x in data)

    def _on_host(self, row: Row, node: Node, inputs: list[Value], run_graph: Callable) -> object:
        with np.errstate(all="ignore"):
            result = row.function(Call(node, numpy_names, run_graph), *inputs)
        if isinstance(result, (list, _Outputs)):
            return [_host_value(r) for r in result]
        return _host_value(result)

    def _fetched(self, row: Row, node: Node, inputs: list[Value], run_graph: Callable) -> object:
        """On the host, counted; between segments, because the elements are needed."""
        if _tracing():
            raise Untraceable
        self.note(node, HOST_PATH)
        result = self._on_host(row, node, [fetch(x) for x in inputs], run_graph)
        self.given.update((id(v), v) for v in (result if isinstance(result, (list, tuple)) else [result]))
        return result

    # ---- operators that ONNX defines by others ----

    def _by_body(self, node: Node, inputs: list[Value], env: Environment, constants: set[int]) -> list[Value]:
        key = (id(node), tuple(_kind(x) if isinstance(x, (Array, np.ndarray)) else None for x in inputs))
        graph = self.bodies.get(key)
        if graph is None:
            if len(self.bodies) >= BODIES_MAX:
                self.bodies.clear()
            graph = self.bodies[key] = _body(node, inputs, self.model.opsets.get("", onnx.defs.onnx_opset_version()))
        self.note(node, INLINED)
        if self.depth > DEPTH_MAX:
            raise ModelFormatError(
                f"onnx: {node.where}: functions within functions, got more than {DEPTH_MAX}, allowed {DEPTH_MAX}")
        self.depth += 1
        try:
            inner = {f"in{i}": x for i, x in enumerate(inputs) if x is not None}
            inner.update({n: env[n] for n in graph.free if n in env})
            self.interpret(graph.nodes, inner, constants)
        finally:
            self.depth -= 1
        return [inner.get(f"out{i}") for i in range(len(node.outputs))]


_Outputs = tuple  # several outputs; a sequence is one output: rows give it inside of a list


def _host_value(result: Value) -> Value:
    """What NumPy gave, as an array; a sequence stays one."""
    if isinstance(result, Dim):
        array = np.empty((), object)
        array[()] = result
        return array
    return settled(result) if isinstance(result, (np.generic, np.ndarray, int, float)) else result


def _tracing() -> bool:
    from dvm_rt.array import tracing

    return tracing.current() is not None


def _lowering(value: Value, inputs: Sequence[Value]) -> str:
    """Whether what an operator recorded has a host function in it."""
    if not isinstance(value, Array) or value._node is None:
        return INSTRUCTIONS
    known = {id(x._node) for x in inputs if isinstance(x, Array)}
    stack, seen = [value._node], set()
    for _ in range(256):
        if not stack:
            break
        node = stack.pop()
        if id(node) in known or id(node) in seen:
            continue
        seen.add(id(node))
        if node.operator.lowering is Lowering.HOST:
            return HOST_FUNCTION
        stack += node.inputs
    return INSTRUCTIONS


def _kind(x: Array | np.ndarray) -> tuple:
    """What a body may depend on: dtype, and the sizes that are numbers."""
    return str(numpy_dtype(x)), tuple(n if isinstance(n, int) else None for n in x.shape)


def _body(node: Node, inputs: list[Value], main_opset: int) -> Graph:
    """The function body of an operator for inputs of these types, with inputs in0.. and outputs out0.. ."""
    try:
        schema = onnx.defs.get_schema(node.operator, node.opset, node.domain)
    except onnx.defs.SchemaError:
        raise UnsupportedOperatorError(
            f"onnx: {node.where}: unknown operator, got {node.domain or 'ai.onnx'}.{node.operator}, "
            f"allowed those of ONNX {onnx.__version__}"
        ) from None
    call = _call_proto(node, inputs)
    data, version = b"", max((v for v in schema.function_opset_versions if v <= node.opset), default=None)
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= node.opset]
        types = [_type_proto(x).SerializeToString() for x in inputs]
        data = schema.get_context_dependent_function_with_opset_version(versions[-1], call.SerializeToString(),
            types) if versions else b""
    if not data and schema.has_function and version is not None:
        data = schema.get_function_with_opset_version(version)
    if not data and any(isinstance(n, Dim) for x in inputs if x is not None for n in getattr(x, "shape", ())):
        raise ShapeError(f"onnx: {node.where}: its body depends on sizes, got symbolic ones, allowed numbers")
    if not data:
        raise UnsupportedOperatorError(
            f"onnx: {node.where}: operator is not supported, got {node.domain or 'ai.onnx'}.{node.operator}, "
            "allowed those of docs/onnx.md")
    function = onnx.FunctionProto()
    function.ParseFromString(data)
    reader = _Reader(node.where, None)
    opsets = {("" if r.domain == "ai.onnx" else r.domain): r.version for r in function.opset_import} or {"": main_opset}
    opsets.setdefault("", main_opset)
    for attribute in schema.attributes.values():
        if attribute.default_value.name and all(a.name != attribute.name for a in call.attribute):
            call.attribute.append(attribute.default_value)
    defined = {f"in{i}" for i, x in enumerate(inputs) if x is not None}
    nodes = tuple(reader._nodes(renamed(function, call, f"{node.name or node.operator}/"), defined, opsets, 1, "body"))
    return Graph(node.operator, (), (), {}, nodes)


def unknown_operators(graph: Graph) -> set[str]:
    """Operators, in subgraphs too, that have neither a row nor a function body in ONNX."""
    found: set[str] = set()
    for node in graph.nodes:
        if table.find(node) is None and not _has_body(node):
            found.add(f"{node.domain}.{node.operator}" if node.domain else node.operator)
        for value in node.attributes.values():
            for inner in value if isinstance(value, tuple) else (value,):
                found |= unknown_operators(inner) if isinstance(inner, Graph) else set()
    return found


def _has_body(node: Node) -> bool:
    try:
        schema = onnx.defs.get_schema(node.operator, node.opset, node.domain)
    except onnx.defs.SchemaError:
        return False
    return schema.has_function or schema.has_context_dependent_function


def _call_proto(node: Node, inputs: list[Value]) -> onnx.NodeProto:
    """The node with names of its own for what goes in and out."""
    call = onnx.NodeProto()
    call.CopyFrom(node.proto)
    del call.input[:], call.output[:]
    call.input.extend(f"in{i}" if x is not None else "" for i, x in enumerate(inputs))
    call.output.extend(f"out{i}" if name else "" for i, name in enumerate(node.outputs))
    return call


def _type_proto(value: Value) -> onnx.TypeProto:
    if not isinstance(value, (Array, np.ndarray)):
        return onnx.TypeProto()
    kind = onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(value))
    shape = [n if isinstance(n, int) else None for n in value.shape]
    return onnx.helper.make_tensor_type_proto(kind, shape)


# ---- segments -----------------------------------------------------------------------------------------------------


class GraphPlan:
    """Where a graph is cut, and the functions of its segments."""

    def __init__(self, running: Running, graph: Graph) -> None:
        self.running, self.graph = running, graph
        self.cuts: set[int] = set()  # nodes before which a segment ends
        self.steps = {i for i, n in enumerate(graph.nodes) if _is_step(n)}
        self.host_names: set[str] = set()
        self.segments: dict[int, Segment] = {}
        self.constant_ids = {id(v) for v in graph.constants.values()}

    def run(self, env: Environment, constants: set[int]) -> list[Value]:
        """The outputs of the graph; env: its inputs and what it reads from outside."""
        env = {**self.graph.constants, **env}
        constants = constants | self.constant_ids if self.constant_ids else constants
        if _tracing():
            self.running.interpret(self.graph.nodes, env, constants)
        else:
            self._in_parts(env, constants)
        return [env[v.name] for v in self.graph.outputs]

    def _in_parts(self, env: Environment, constants: set[int]) -> None:
        nodes, position = self.graph.nodes, 0
        while position < len(nodes):
            if position in self.steps:
                self.running.interpret(nodes[position : position + 1], env, constants, position)
                position += 1
                continue
            segment = self.segments.get(position)
            if segment is None:
                segment = self.segments[position] = Segment(self, position, self._end(position))
            try:
                segment.run(env, constants)
            except ValueNeeded as needed:
                self._cut(needed, segment)
            except Untraceable as error:
                self.steps.add(error.index)
                self._again(error.index)
            else:
                position = segment.end

    def alone(self) -> tuple[Segment, Function, tuple[str, ...]] | None:
        """The one segment that the graph is, its function and the names of its arguments, if that is all and every
        argument an array."""
        segment = self.segments.get(0)
        if self.steps or self.cuts or self.host_names or segment is None or segment.end != len(
                self.graph.nodes) or segment.variants:
            return None
        if len(segment.functions) != 1 or any(v.name not in segment.outputs for v in self.graph.outputs):
            return None
        ((names, function),) = segment.functions.items()
        return segment, function, names

    def loops(self) -> set[int]:
        """Nodes that are loops, or have loops in their graphs, and are parts of segments."""
        return {i for i, node in enumerate(self.graph.nodes) if i not in self.steps and _loops(node)}

    def take_loops_apart(self) -> bool:
        """Python runs the loops from now on: one is too long for the device. Whether there were any."""
        found = self.loops()
        self.steps |= found
        for index in found:
            self._again(index)
        return bool(found)

    def _end(self, start: int) -> int:
        stops = [i for i in (*self.cuts, *self.steps) if i > start]
        return min(stops, default=len(self.graph.nodes))

    def _cut(self, needed: ValueNeeded, segment: Segment) -> None:
        if needed.name is None or (needed.name in self.host_names and needed.name in segment.inputs):
            self.steps.add(needed.index)
        else:
            self.host_names.add(needed.name)
            if needed.name not in segment.inputs:
                self.cuts.add(needed.index)
        self._again(needed.index)

    def _again(self, index: int) -> None:
        """Segments that reach a node are made anew."""
        self.segments = {start: s for start, s in self.segments.items() if s.end <= index or start > index}


def _loops(node: Node) -> bool:
    graphs = [a for a in node.attributes.values() if isinstance(a, Graph)]
    return node.operator == "Loop" or any(_loops(n) for g in graphs for n in g.nodes)


def _is_step(node: Node) -> bool:
    row = table.find(node)
    return row is not None and row.kind is STEP


class Segment:
    """A run of nodes that is one function."""

    def __init__(self, plan: GraphPlan, start: int, end: int) -> None:
        self.plan, self.start, self.end = plan, start, end
        self.nodes = plan.graph.nodes[start:end]
        made: set[str] = set()
        reads: dict[str, None] = {}
        for node in self.nodes:
            reads.update((n, None) for n in sorted(node.reads) if n not in made)
            made.update(n for n in node.outputs if n)
        self.inputs = tuple(n for n in reads if n not in plan.graph.constants)
        later = set().union(*(n.reads for n in islice(plan.graph.nodes, end, None)), (v.name for v in plan.graph.outputs))
        self.outputs = tuple(sorted(made & later))
        self.functions: dict[tuple[str, ...], Function] = {}
        self.variants: set[tuple] = set()
        self.constants: set[int] = set()
        self.fixed: Environment = {}

    def run(self, env: Environment, constants: set[int]) -> None:
        self.constants = constants
        self.fixed = {n: env[n] for n in self.inputs if id(env.get(n)) in constants}
        names = [n for n in self.inputs if n in env and n not in self.fixed]
        arguments = tuple([self._argument(n, env[n]) for n in names])
        statics = tuple(a for a in arguments if isinstance(a, HostKey))
        if statics and statics not in self.variants:
            if len(self.variants) >= VARIANTS_MAX:
                self.plan.running.interpret(self.nodes, env, constants, self.start)
                return
            self.variants.add(statics)
        results = self._function(tuple(names))(*arguments)
        for name, value in zip(self.outputs, results if len(self.outputs) != 1 else (results,), strict=True):
            env[name] = opened(value)

    def _function(self, names: tuple[str, ...]) -> Function:
        found = self.functions.get(names)
        if found is None:
            found = self.functions[names] = Function(lambda *arguments: self._traced(names, *arguments))
            found._name = f"{self.plan.running.model.file} nodes {self.start} to {self.end - 1}"
        return found

    def _argument(self, name: str, value: Value) -> object:
        if isinstance(value, tuple):
            return tuple(self._argument(name, v) for v in value)
        if value is None or isinstance(value, Array):
            return HostKey(fetch(value)) if value is not None and name in self.plan.host_names else value
        if name in self.plan.host_names or value.dtype == object:
            return HostKey(value)
        try:
            return lift(value)
        except DTypeError:
            return HostKey(value)

    def _traced(self, names: tuple[str, ...], *arguments: object) -> object:
        env = {**self.plan.graph.constants, **self.fixed, **{n: opened(a) for n, a in zip(names, arguments, strict=True)}}
        self.plan.running.interpret(self.nodes, env, self.constants, self.start)
        self._note_values(names, arguments, env)
        results = tuple(_closed(env[n]) for n in self.outputs)
        return results[0] if len(results) == 1 else results


    def _note_values(self, names: tuple[str, ...], arguments: tuple, env: Environment) -> None:
        """A result that NumPy made of values that were given, not of sizes: its node ran on the host, whatever else it is for."""
        given = {n for n, a in zip(names, arguments, strict=True) if isinstance(a, HostKey)}
        for node in self.nodes if given else ():
            row = table.find(node)
            read = {n for i, n in enumerate(node.inputs) if row is None or i not in row.on_host}  # not: shapes, counts
            if (row is None or row.kind is not RAW) and given & read:
                made = {n for n in node.outputs if n and isinstance(env[n], np.ndarray)}
                given |= made
                if made & set(self.outputs):
                    self.plan.running.note(node, HOST_PATH)


def opened(value: object) -> Value:
    if isinstance(value, tuple):
        return tuple(map(opened, value))
    return value.array if isinstance(value, HostKey) else value


def _closed(value: Value) -> object:
    """A value as a function gives it: symbolic sizes become numbers of the graph."""
    if isinstance(value, tuple):
        return tuple(map(_closed, value))
    if is_symbolic(value):
        try:
            return lift(value)
        except UnsupportedOperatorError as error:
            raise ShapeError(f"onnx: sizes as values: {error}") from error
    return HostKey(value) if isinstance(value, np.ndarray) else value
