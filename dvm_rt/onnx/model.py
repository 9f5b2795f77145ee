"""Model files: bytes -> Model, checked before anything else happens. Knows nothing of arrays.

Everything that a file claims is held against the bytes that are there before memory is taken for it: a tensor's
elements against its data, external files against their sizes (inside of the model's folder, no links), names against
what was defined before, depth and numbers against limits. What is wrong is a ModelFormatError that names the file and
the node."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from dvm_rt.errors import ModelFormatError

NEWEST: int = onnx.defs.onnx_opset_version()
DEPTH_MAX = 64  # subgraphs within subgraphs, functions that call functions
NODES_MAX = 1 << 20
INLINED_MAX = 1 << 16  # nodes that one call of a function stands for
ELEMENTS_MAX = 1 << 36  # of anything that a model declares
BITS = {"uint4": 4, "int4": 4, "float4e2m1": 4, "uint2": 2, "int2": 2}
MAIN = ("", "ai.onnx")
Attribute = object  # int, float, str, bytes, np.ndarray, Graph, a TypeProto, or a tuple of one kind


@dataclass(frozen=True, slots=True)
class Value:
    """What is declared of an input or output: dtype None for what is no tensor; sizes are ints, names, or None (unknown)."""

    name: str
    dtype: np.dtype | None
    shape: tuple[int | str | None, ...] | None
    kind: str = "tensor"


@dataclass(slots=True, eq=False)
class Node:
    """One operator call. `reads`: its inputs, and what its subgraphs take from outside."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]
    opset: int
    where: str
    proto: onnx.NodeProto
    reads: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class Graph:
    """Nodes in order. `free`: names that it reads from outside of itself."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    constants: dict[str, np.ndarray]
    nodes: tuple[Node, ...]
    free: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class Model:
    """A file: its main graph, what it says it needs."""

    file: str
    graph: Graph
    opsets: dict[str, int]
    ir_version: int
    metadata: dict[str, str] = field(default_factory=dict)


def read(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Model:
    """The model of a path, of bytes, or of a ModelProto. Raises ModelFormatError, and OSError where a path cannot be read."""
    if isinstance(source, onnx.ModelProto):
        return _Reader("(model)", None).model(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _Reader("(bytes)", None).model(_parsed(bytes(source), "(bytes)"))
    path = Path(source)
    return _Reader(str(path), path.resolve().parent).model(_parsed(path.read_bytes(), str(path)))


def _parsed(data: bytes, file: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RecursionError, ValueError) as error:
        raise ModelFormatError(
            f"onnx: {file}: not a model: {error}, got {len(data)} bytes, allowed a whole ModelProto") from error
    return proto


def _key(proto: onnx.FunctionProto | onnx.NodeProto) -> tuple[str, str, str]:
    """What names a function, of the function or of a call."""
    return proto.domain, getattr(proto, "op_type", None) or proto.name, getattr(proto, "overload", "")


class _Reader:
    """Walks one ModelProto."""

    def __init__(self, file: str, folder: Path | None) -> None:
        self.file, self.folder, self.nodes = file, folder, 0
        self.opsets: dict[str, int] = {}
        self.functions: dict[tuple[str, str, str], onnx.FunctionProto] = {}
        self.sizes: dict[tuple[str, str, str], int] = {}
        self.unique = 0

    def fail(self, where: str, what: str) -> ModelFormatError:
        return ModelFormatError(f"onnx: {self.file}: {where}: {what}")

    def model(self, proto: onnx.ModelProto) -> Model:
        if not proto.HasField("graph") or not proto.opset_import:
            raise self.fail("model", "nothing to run, got no graph or no opset, allowed both")
        self.opsets = self._opsets(proto.opset_import, "opset")
        self.functions = {_key(f): f for f in proto.functions}
        graph = self.graph(proto.graph, frozenset(), self.opsets, 0, "graph")
        return Model(self.file, graph, self.opsets, proto.ir_version, {p.key: p.value for p in proto.metadata_props})

    def _opsets(self, imports: Sequence[onnx.OperatorSetIdProto], where: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for row in imports:
            domain = "" if row.domain in MAIN else row.domain
            if not 1 <= row.version <= NEWEST and domain == "":
                raise self.fail(where, f"version of the operator set, got {row.version}, allowed 1 to {NEWEST}")
            found[domain] = row.version
        return found

    # ---- graphs ----

    def graph(self, proto: onnx.GraphProto, outer: Set[str], opsets: dict[str, int], depth: int, where: str) -> Graph:
        if depth > DEPTH_MAX:
            raise self.fail(where, f"graphs within graphs, got more than {DEPTH_MAX}, allowed {DEPTH_MAX}")
        constants: dict[str, np.ndarray] = {}
        for tensor in proto.initializer:
            constants[tensor.name] = self.tensor(tensor, f"{where}: initializer {tensor.name!r}")
        for sparse in proto.sparse_initializer:
            constants[sparse.values.name] = self.sparse(sparse, f"{where}: initializer {sparse.values.name!r}")
        inputs = tuple(self.value(v, f"{where}: input {v.name!r}") for v in proto.input)
        self._declared(proto.value_info, where)
        defined = {*outer, *constants, *(v.name for v in inputs)}
        nodes = tuple(self._nodes(proto.node, defined, opsets, depth, where))
        outputs = tuple(self.value(v, f"{where}: output {v.name!r}") for v in proto.output)
        for value in outputs:
            if value.name not in defined:
                raise self.fail(where, f"output {value.name!r} is never computed, allowed names of values")
        own = {*constants, *(v.name for v in inputs)}.union(*(n.outputs for n in nodes))
        reads = set().union(*(n.reads for n in nodes), (v.name for v in outputs))
        return Graph(proto.name, inputs, outputs, constants, nodes, frozenset(reads - own))

    def _declared(self, values: Sequence[onnx.ValueInfoProto], where: str) -> None:
        for value in values:
            self.value(value, f"{where}: value {value.name!r}")

    def _nodes(
        self, protos: Sequence[onnx.NodeProto], defined: set[str], opsets: dict[str, int], depth: int, where: str
    ) -> Iterator[Node]:
        for number, proto in enumerate(protos):
            self.nodes += 1
            if self.nodes > NODES_MAX:
                raise self.fail(where, f"nodes, got more than {NODES_MAX}, allowed {NODES_MAX}")
            here = f"{where}: node {number} ({proto.op_type}{' ' + repr(proto.name) if proto.name else ''})"
            for name in proto.input:
                if name and name not in defined:
                    later = any(name in p.output for p in protos)
                    what = "computed by this node or a later one (a cycle, or nodes out of order)" if later else "never computed"
                    raise self.fail(here, f"input {name!r} is {what}, allowed values that are there before")
            function = self.functions.get(_key(proto))
            if function is not None:
                yield from self._inlined(proto, function, defined, depth, here)
            else:
                yield self.node(proto, defined, opsets, depth, here)
            for name in proto.output:
                if name and name in defined:
                    raise self.fail(here, f"output {name!r} is there already, allowed names that are new")
                defined.add(name)
            defined.discard("")

    def node(self, proto: onnx.NodeProto, defined: Set[str], opsets: dict[str, int], depth: int, where: str) -> Node:
        domain = "" if proto.domain in MAIN else proto.domain
        if domain not in opsets:
            raise self.fail(where, f"operator set {domain or 'ai.onnx'!r} is not imported, got {sorted(opsets)}, allowed those")
        attributes = {a.name: self.attribute(a, defined, opsets, depth, f"{where}: attribute {a.name!r}")
                      for a in proto.attribute}
        graphs = [v for v in attributes.values() if isinstance(v, Graph)]
        reads = frozenset(n for n in proto.input if n).union(*(g.free for g in graphs))
        name = f"{self.file}: {where}"
        return Node(proto.op_type, domain, proto.name, tuple(proto.input), tuple(proto.output), attributes,
                    opsets[domain], name, proto, reads)

    def _inlined(
        self, call: onnx.NodeProto, function: onnx.FunctionProto, defined: set[str], depth: int, where: str
    ) -> Iterator[Node]:
        """The nodes of a function under names of their own."""
        if depth >= DEPTH_MAX:
            raise self.fail(where, f"functions that call functions, got more than {DEPTH_MAX}, allowed {DEPTH_MAX}")
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise self.fail(where, f"call of a function, got {len(call.input)} inputs, allowed {len(function.input)}")
        if (size := self.inlined_size(function)) > INLINED_MAX:
            raise self.fail(where, f"call of a function, got {size} nodes when written out, allowed {INLINED_MAX}")
        self.unique += 1
        nodes = renamed(function, call, f"{call.name or call.op_type}#{self.unique}/")
        opsets = self._opsets(function.opset_import, where)
        inner = set(defined)
        yield from self._nodes(nodes, inner, opsets, depth + 1, f"{where}: function")
        for name in call.output:
            if name and name not in inner:
                raise self.fail(where, f"function gives no {name!r}, allowed functions that give their outputs")

    def inlined_size(self, function: onnx.FunctionProto, depth: int = 0) -> int:
        """How many nodes a call stands for; counted once for each function, so that doubling again and again costs nothing."""
        key = _key(function)
        found = self.sizes.get(key)
        if found is None:
            self.sizes[key] = 0  # what calls itself is found by its depth
            inner = (self.functions.get(_key(n)) for n in function.node) if depth < DEPTH_MAX else ()
            found = self.sizes[key] = len(function.node) + sum(self.inlined_size(f, depth + 1) for f in inner if f is not None)
        return found

    # ---- attributes, values ----

    def attribute(self, proto: onnx.AttributeProto, defined: Set[str], opsets: dict[str, int], depth: int,
                  where: str) -> Attribute:
        kind = proto.type
        types = onnx.AttributeProto
        if kind == types.GRAPH:
            return self.graph(proto.g, defined, opsets, depth + 1, where)
        if kind == types.GRAPHS:
            return tuple(self.graph(g, defined, opsets, depth + 1, where) for g in proto.graphs)
        if kind == types.TENSOR:
            return self.tensor(proto.t, where)
        if kind == types.TENSORS:
            return tuple(self.tensor(t, where) for t in proto.tensors)
        if kind == types.SPARSE_TENSOR:
            return self.sparse(proto.sparse_tensor, where)
        if kind == types.STRING:
            return proto.s.decode("utf-8", "replace")
        if kind == types.STRINGS:
            return tuple(s.decode("utf-8", "replace") for s in proto.strings)
        if proto.ref_attr_name:
            raise self.fail(where,
                            f"stands for an attribute of a function, got {proto.ref_attr_name!r} outside of one, allowed a value")
        readers = {types.FLOAT: "f", types.INT: "i", types.FLOATS: "floats", types.INTS: "ints", types.TYPE_PROTO: "tp"}
        if kind not in readers:
            raise self.fail(where, f"kind, got {kind}, allowed the kinds of onnx.proto")
        value = getattr(proto, readers[kind])
        return tuple(value) if kind in (types.FLOATS, types.INTS) else value

    def value(self, proto: onnx.ValueInfoProto, where: str) -> Value:
        kind = proto.type.WhichOneof("value") or "unknown"
        if kind != "tensor_type":
            return Value(proto.name, None, None, kind.removesuffix("_type"))
        tensor = proto.type.tensor_type
        dtype = self.dtype(tensor.elem_type, where) if tensor.elem_type else None
        if not tensor.HasField("shape"):
            return Value(proto.name, dtype, None)
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
        self._elements([n for n in shape if isinstance(n, int)], where)
        return Value(proto.name, dtype, shape)

    def dtype(self, kind: int, where: str) -> np.dtype:
        try:
            return helper.tensor_dtype_to_np_dtype(kind)
        except (KeyError, TypeError, ValueError):
            raise self.fail(where, f"element type, got {kind}, allowed those of onnx.proto") from None

    def _elements(self, shape: Sequence[int], where: str) -> int:
        if any(n < 0 for n in shape) or (count := prod(shape)) > ELEMENTS_MAX:
            raise self.fail(where, f"shape, got {tuple(shape)}, allowed sizes from 0 on and at most 2^36 elements")
        return count

    # ---- tensors ----

    def tensor(self, proto: onnx.TensorProto, where: str) -> np.ndarray:
        """The array, after its bytes have been held against its shape."""
        dtype, count = self.dtype(proto.data_type, where), self._elements(proto.dims, where)
        bits = BITS.get(self._name(proto.data_type), dtype.itemsize * 8)
        size = (count * bits + 7) // 8
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            return self._external(proto, dtype, size, bits, where)
        if proto.data_type == onnx.TensorProto.STRING:
            self._same(len(proto.string_data), count, "strings", where)
        elif proto.HasField("raw_data"):
            self._same(len(proto.raw_data), size, "bytes of data", where)
        else:
            given, wanted = self._typed(proto, count, bits)
            self._same(given, wanted, "elements of data", where)
        try:
            array = numpy_helper.to_array(proto)
        except (TypeError, ValueError, KeyError) as error:
            raise self.fail(where, f"data cannot be read: {error}") from error
        if array.dtype == object:
            array = np.array([s.decode("utf-8", "replace") if isinstance(s, bytes) else s for s in array.ravel()],
                             object).reshape(array.shape)
        return array

    @staticmethod
    def _name(kind: int) -> str:
        return onnx.TensorProto.DataType.Name(kind).lower()

    @staticmethod
    def _typed(proto: onnx.TensorProto, count: int, bits: int) -> tuple[int, int]:
        """(entries that are there, entries that should be) of a tensor without raw data."""
        kinds = onnx.TensorProto
        name = {
            kinds.FLOAT: "float_data", kinds.COMPLEX64: "float_data", kinds.DOUBLE: "double_data",
            kinds.COMPLEX128: "double_data",
            kinds.INT64: "int64_data", kinds.UINT64: "uint64_data", kinds.UINT32: "uint64_data",
        }.get(proto.data_type, "int32_data")  # fmt: skip
        entries = len(getattr(proto, name))
        if proto.data_type in (kinds.COMPLEX64, kinds.COMPLEX128):
            return entries, 2 * count
        return entries, (count * bits + 7) // 8 if bits < 8 else count

    def _same(self, got: int, wanted: int, what: str, where: str) -> None:
        if got != wanted:
            raise self.fail(where, f"{what}, got {got}, allowed {wanted} for its shape")

    def _external(self, proto: onnx.TensorProto, dtype: np.dtype, size: int, bits: int, where: str) -> np.ndarray:
        entries = {e.key: e.value for e in proto.external_data}
        location = entries.get("location", "")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        except ValueError:
            raise self.fail(where, f"external data, got offset {entries.get('offset')!r}, allowed whole numbers") from None
        if bits < 8 or self.folder is None:
            raise self.fail(where,
                            "external data, got a model without a folder or elements below 8 bits, allowed files beside a model")
        path = self._inside(location, where)
        there = path.stat().st_size
        if length != size or offset < 0 or offset + length > there:
            raise self.fail(where, f"external data, got {length} bytes at {offset} of {there} in {location!r}, "
                                   f"allowed {size} inside of the file")
        return np.fromfile(path, dtype.newbyteorder("<"), count=size // dtype.itemsize, offset=offset).astype(dtype,
            copy=False).reshape(tuple(proto.dims))

    def _inside(self, location: str, where: str) -> Path:
        """The path of an external file: a plain file, inside of the model's folder, with no link on the way."""
        parts = Path(location).parts
        if not parts or Path(location).is_absolute() or ".." in parts or "\0" in location:
            raise self.fail(where, f"external data, got the path {location!r}, allowed paths inside of the model's folder")
        path = self.folder
        for part in parts:
            path = path / part
            try:
                mode = path.lstat().st_mode
            except OSError:
                raise self.fail(where, f"external data is missing, got {location!r}, allowed files that are there") from None
            if stat.S_ISLNK(mode):
                raise self.fail(where, f"external data, got a link in {location!r}, allowed plain files")
        if not stat.S_ISREG(mode):
            raise self.fail(where, f"external data, got {location!r}, allowed plain files")
        return path

    def sparse(self, proto: onnx.SparseTensorProto, where: str) -> np.ndarray:
        """A sparse tensor, written out."""
        count = self._elements(proto.dims, where)
        values, indices = self.tensor(proto.values, where), self.tensor(proto.indices, where)
        if count * max(values.itemsize, 1) > 1 << 31:
            raise self.fail(where, f"sparse tensor, got {count} elements when written out, allowed 2^31 bytes")
        shape = tuple(proto.dims)
        if indices.ndim == 2:
            bad = indices.shape != (values.size, len(shape)) or ((indices < 0) | (indices >= np.asarray(shape))).any()
            flat = np.zeros(0, np.int64) if bad or not indices.size else np.ravel_multi_index(tuple(indices.T), shape)
        else:
            flat, bad = indices, indices.ndim != 1 or indices.size != values.size or ((indices < 0) | (indices >= count)).any()
        if bad:
            raise self.fail(where, f"sparse tensor, got indices of shape {indices.shape}, allowed those inside of {shape}")
        dense = np.zeros(count, values.dtype)
        dense[flat] = values
        return dense.reshape(shape)


# ---- functions ----------------------------------------------------------------------------------------------------


def renamed(function: onnx.FunctionProto, call: onnx.NodeProto, prefix: str) -> list[onnx.NodeProto]:
    """The nodes of a function for one call: inputs and outputs by the call's names, the rest with a prefix."""
    names = dict.fromkeys(function.input, "")
    names.update(zip(function.input, call.input))
    names.update((inner, outer) for inner, outer in zip(function.output, call.output) if outer)
    given = {a.name: a for a in function.attribute_proto} | {a.name: a for a in call.attribute}
    nodes = [_renamed_node(node, names, given, prefix) for node in function.node]
    passed = {o: names[o] for o in function.output if o in function.input}
    taken = set(function.input)
    for inner, outer in zip(function.output, call.output):
        if outer and inner in taken and inner in passed:
            nodes.append(helper.make_node("Identity", [dict(zip(function.input, call.input))[inner]], [outer]))
    return nodes


def _renamed_node(
    node: onnx.NodeProto, names: Mapping[str, str], given: Mapping[str, onnx.AttributeProto], prefix: str
) -> onnx.NodeProto:
    def new(name: str) -> str:
        return names[name] if name in names else prefix + name if name else ""

    made = onnx.NodeProto()
    made.CopyFrom(node)
    del made.input[:], made.output[:], made.attribute[:]
    made.name = prefix + (node.name or node.op_type)
    made.input.extend(map(new, node.input))
    made.output.extend(map(new, node.output))
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name in given:
                copy = made.attribute.add()
                copy.CopyFrom(given[attribute.ref_attr_name])
                copy.name = attribute.name
            continue
        copy = made.attribute.add()
        copy.CopyFrom(attribute)
        if attribute.type == onnx.AttributeProto.GRAPH:
            _rename_graph(copy.g, names, given, prefix)
    return made


def _rename_graph(graph: onnx.GraphProto, names: Mapping[str, str], given: Mapping[str, onnx.AttributeProto],
                  prefix: str) -> None:
    nodes = [_renamed_node(node, names, given, prefix) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for values in (graph.input, graph.output, graph.initializer):
        for value in values:
            value.name = names[value.name] if value.name in names else prefix + value.name
