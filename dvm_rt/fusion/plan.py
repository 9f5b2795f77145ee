"""The Plan: what the fuser makes once for all shapes, and the encoder turns into a program for one.

Owns the Python form of the PLAN records of `isa/layout.py` (immutable), their bytes, their evaluation and the
text that people read. Knows nothing of graphs, operators or encoding: `native/encode.cpp` reads the same bytes.

Rules.
- Every size is an expression: a number into `Plan.expressions`, or NONE (which reads as 0). An expression names only
  earlier ones. Symbols are dimensions of parameters; their values are what an encode is given.
- Shapes of parameters and outputs, and `Symbol.dim`, count from the outermost dimension; dims and strides of kernels
  from the innermost. Strides, offset and depth of an Arg are in elements of its dtype; Buffer.bytes is in bytes.
- Program arguments are the buffers that are not TEMPORARY, in buffer order. A kernel names its arguments and nodes
  by their place inside the kernel.
- Bytes: PlanHead, then symbols, expressions, parameters, outputs, buffers, packs, kernels, args, nodes; each table
  starts at a multiple of 8 bytes, what lies between is zero. Unused dims, strides and numbers are NONE."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from typing import NamedTuple

import numpy as np

from dvm_rt import _native
from dvm_rt.dtypes import DTYPES, DType, float32, int64
from dvm_rt.errors import GraphError
from dvm_rt.fusion.memory import Lifetime, slots
from dvm_rt.isa import table
from dvm_rt.isa.layout import ENUMS, FLAGS, LIMITS, PLAN_MAGIC, RECORD, TABLE_HASH, VERSION, enum_value

NONE = LIMITS["NONE"]
MAX_RANK = LIMITS["MAX_RANK"]
KERNEL_ARGS_MAX = 12  # the encoder adds row buffers up to MAX_OPERANDS
READ, WRITE, GATHER, PACKED, WINDOWS = (FLAGS["Mode"][name] for name in ("READ", "WRITE", "GATHER", "PACKED", "WINDOWS"))
STREAM = FLAGS["KernelFlag"]["STREAM"]

_NUMBERS = {instruction.name: row for row, instruction in enumerate(table.INSTRUCTIONS)} | FLAGS["NodeOp"]  # of what a node does
_EXPRESSIONS = {name: enum_value("ExprOp", name) for name in ENUMS["ExprOp"]}
_ROLES = {name: enum_value("BufferRole", name) for name in ENUMS["BufferRole"]}
_NODE_NAMES = {number: name for name, number in FLAGS["NodeOp"].items()}
_BINARY = frozenset(i.name for i in table.INSTRUCTIONS if i.group is table.Group.BINARY)
_UNARY = frozenset(i.name for i in table.INSTRUCTIONS if i.group in (table.Group.UNARY, table.Group.RUNNING))


class Symbol(NamedTuple):
    """A symbolic dimension: its value is dimension `dim` of parameter `parameter`."""

    parameter: int
    dim: int


class Expression(NamedTuple):
    """`op` is a name of ExprOp. SYMBOL: k = symbol number; CONST: k = value; else a and b are earlier expressions.
    FLOORDIV and MOD round to minus infinity, as in Python."""

    op: str
    a: int = NONE
    b: int = NONE
    k: int = 0


class Parameter(NamedTuple):
    """An argument of the traced function; dims are the expressions that its shape must equal on every call."""

    dtype: DType
    dims: tuple[int, ...]


class Output(NamedTuple):
    """A result of the traced function and the buffer that holds it."""

    dtype: DType
    dims: tuple[int, ...]
    buffer: int


class Buffer(NamedTuple):
    """Memory that kernels name. role PARAMETER, PACKED: index = parameter; OUTPUT: output; TEMPORARY: workspace slot
    (temporaries of one slot share its memory). role PACKED: pack = number of the Pack. role OUTPUT: pack = the parameter whose
    bytes this one begins with, and whose memory it may continue, or NONE."""

    role: str
    dtype: DType
    index: int
    bytes: int
    pack: int = NONE


class Pack(NamedTuple):
    """Matmul panels of a float32, float16 or bfloat16 parameter, made once per array: K x N elements at `offset`,
    strides in elements. `more`: so many packs that follow lie beside it in the same buffer; then each but the last
    fills its panels."""

    parameter: int
    k: int
    n: int
    stride_k: int
    stride_n: int
    offset: int = NONE
    more: int = 0


class Arg(NamedTuple):
    """One operand of a kernel. GATHER: address = buffer + offset + idx * depth + strides, where idx is the element of
    argument `index` for this row, in [-limit, limit). Matmul and pack: depth = elements per step of K. `buffer` NONE:
    no memory; the operand is the number offset + index * stride over all dimensions (dtype int64)."""

    buffer: int
    mode: int
    dtype: DType
    strides: tuple[int, ...]
    offset: int = NONE
    index: int = NONE
    limit: int = NONE
    depth: int = NONE


class Node(NamedTuple):
    """`op` is the name of a binary or unary row of the instruction table, or of NodeOp: NODE_INPUT (a = argument),
    NODE_CONST (k: an integer in kernels that compute in integers), NODE_SIZE (a = expression), NODE_SUM, NODE_MAX, NODE_MIN
    and NODE_PROD over dims[0] (a = node), NODE_OUTPUT (a = node, b = argument)."""

    op: str
    a: int = NONE
    b: int = NONE
    k: float | int = 0.0


class Kernel(NamedTuple):
    """A section of the program: VECTOR over dims[0] (the row) and outer dims; MATMUL over N, M, batch... with K =
    depth, args A, B, C and an epilogue in nodes; PACK over N with K = depth, args source and destination; HOST: dims are
    the attributes of the host function whose number (from 1) depth is, strides of args their sizes, depth their rank;
    ATTENTION over keys, queries, batch... with D = depth, args Q (limit: keys that query 0 sees), K, V (limit: their
    width), O and perhaps a mask, nodes the constants scale (or a NODE_SIZE, for 1 / its square root), masked, empty; BRANCH, JUMP
    and LOOP: depth is the constant number of kernels to skip or to go back, the argument a flag, dims[0] the limit of a loop."""

    kind: str
    dtype: DType
    dims: tuple[int, ...]
    args: tuple[Arg, ...]
    nodes: tuple[Node, ...] = ()
    depth: int = NONE
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Immutable and hashable; `to_bytes()` is what travels and what the native encoder loads."""

    symbols: tuple[Symbol, ...]
    expressions: tuple[Expression, ...]
    parameters: tuple[Parameter, ...]
    outputs: tuple[Output, ...]
    buffers: tuple[Buffer, ...]
    packs: tuple[Pack, ...]
    kernels: tuple[Kernel, ...]
    slots: int = 0

    def to_bytes(self) -> bytes:
        """The plan's bytes, the same on every machine."""
        return _write(self)

    @staticmethod
    def from_bytes(data: bytes) -> Plan:
        """The plan that these bytes describe. Raises GraphError where they are truncated, damaged or of another
        version. What the native encoder checks beyond that, it checks itself."""
        return _read(data)

    def evaluate(self, symbols: Sequence[int]) -> list[int]:
        """The value of every expression for these symbol values. Raises GraphError on a wrong number of symbols, a
        negative symbol, division by zero or a value beyond 64 bits."""
        return _evaluate(self, symbols)

    def dump(self) -> str:
        """The plan as text for people: one line a parameter, buffer, argument and node."""
        return _dump(self)


# ---- building ---------------------------------------------------------------------------------------------------


class PlanBuilder:
    """Collects a plan. Expressions are interned and folded: asking twice for one gives one number."""

    def __init__(self) -> None:
        self._expressions: dict[Expression, int] = {}
        self._constants: dict[int, int] = {}
        self._symbols: dict[Symbol, int] = {}
        self._parameters: list[Parameter] = []
        self._outputs: list[Output] = []
        self._buffers: list[Buffer] = []
        self._packs: list[Pack] = []
        self._kernels: list[KernelBuilder | Kernel] = []
        self._list: list[Expression] = []
        self._inputs: dict[int, int] = {}
        self._packed: dict[tuple[Pack, ...], int] = {}
        self._sizes: dict[tuple, int] = {}  # bytes of buffers
        self._slots = 0

    # -- expressions: each returns an expression number --
    def symbol(self, parameter: int, dim: int) -> int:
        """Dimension `dim` (from the outermost) of parameter `parameter`, as a new or known symbol."""
        number = self._symbols.setdefault(Symbol(parameter, dim), len(self._symbols))
        return self._intern("SYMBOL", k=number)

    def const(self, value: int) -> int:
        number = self._constants.get(value)
        if number is None:
            number = self._constants[value] = self._intern("CONST", k=int(value))
        return number

    def expression(self, op: str, a: int = NONE, b: int = NONE, k: int = 0) -> int:
        """Any expression, as it is."""
        return self._intern(op, a, b, k)

    def add(self, a: int, b: int) -> int:
        return self.binary("ADD", a, b)

    def mul(self, *factors: int) -> int:
        """Product of any number of expressions; of none: 1."""
        product = self.const(1)
        for factor in factors:
            product = self.binary("MUL", product, factor)
        return product

    def floordiv(self, a: int, b: int) -> int:
        return self.binary("FLOORDIV", a, b)

    def mod(self, a: int, b: int) -> int:
        return self.binary("MOD", a, b)

    def minimum(self, a: int, b: int) -> int:
        return self.binary("MIN", a, b)

    def maximum(self, a: int, b: int) -> int:
        return self.binary("MAX", a, b)

    def contiguous(self, dims: Sequence[int]) -> tuple[int, ...]:
        """Strides in elements (innermost first) of a C-contiguous array of these dims (innermost first); 0 where the
        dimension is the constant 1, so that such dimensions broadcast."""
        strides, step = [], self.const(1)
        for dim in dims:
            strides.append(self.const(0) if self._value(dim) == 1 else step)
            step = self.mul(step, dim)
        return tuple(strides)

    # -- memory: each returns a buffer number, but parameter() --
    def parameter(self, dtype: DType, dims: Sequence[int]) -> int:
        """A new parameter (dims: expressions from the outermost); returns its number. dims may name its own symbols."""
        self._parameters.append(Parameter(dtype, tuple(dims)))
        return len(self._parameters) - 1

    def input(self, parameter: int) -> int:
        """The buffer of a parameter."""
        if parameter not in self._inputs:
            of = self._parameters[parameter]
            size = self._bytes(of.dtype, of.dims)
            self._inputs[parameter] = self._buffer(Buffer("PARAMETER", of.dtype, parameter, size))
        return self._inputs[parameter]

    def parameter_of(self, buffer: int) -> int | None:
        """The parameter whose buffer this is, or None."""
        return self._buffers[buffer].index if self._buffers[buffer].role == "PARAMETER" else None

    def is_output(self, buffer: int) -> bool:
        """Whether it is the buffer of an output."""
        return self._buffers[buffer].role == "OUTPUT"

    def continue_in(self, buffer: int, parameter: int) -> None:
        """If this buffer is an output's, it may lie where the parameter lies: kernels write only behind the
        parameter's bytes, but for a copy of them."""
        if self._buffers[buffer].role == "OUTPUT":
            self._buffers[buffer] = self._buffers[buffer]._replace(pack=parameter)

    def output(self, dtype: DType, dims: Sequence[int]) -> int:
        """A new output (dims: expressions from the outermost) and its buffer."""
        number = self._buffer(Buffer("OUTPUT", dtype, len(self._outputs), self._bytes(dtype, dims)))
        self._outputs.append(Output(dtype, tuple(dims), number))
        return number

    def temporary(self, dtype: DType, dims: Sequence[int], slot: int) -> int:
        """A buffer in workspace slot `slot`; buffers that are never live together may share one."""
        self._slots = max(self._slots, slot + 1)
        return self._buffer(Buffer("TEMPORARY", dtype, slot, self._bytes(dtype, dims)))

    def pack(self, parameter: int, k: int, n: int, stride_k: int, stride_n: int, offset: int = NONE) -> int:
        """The buffer of a parameter's packed matmul panels."""
        return self.beside([(parameter, k, n, stride_k, stride_n, offset)])

    def beside(self, parts: Sequence[tuple[int, ...]]) -> int:
        """The buffer of the panels of several parameters of one dtype, in order."""
        first, *rest = (Pack(*part) for part in parts)
        rows = (first._replace(more=len(rest)), *rest) if rest else (first,)
        if rows not in self._packed:
            size, dtype = self.const(0), self._parameters[first.parameter].dtype
            for row in rows:
                size = self.add(size, self._panel_bytes(row.k, row.n, dtype))
            self._packed[rows] = self._buffer(Buffer("PACKED", dtype, first.parameter, size, len(self._packs)))
            self._packs += rows
        return self._packed[rows]

    def kernel(
        self, kind: str, dims: Sequence[int], depth: int = NONE, flags: int = 0, dtype: DType = float32
    ) -> KernelBuilder:
        """A new kernel that runs after those before it (dims: expressions from the innermost)."""
        built = KernelBuilder(kind, dtype, tuple(dims), depth, flags)
        self._kernels.append(built)
        return built

    def copy_of(self, kernel: Kernel, buffers: Sequence[int]) -> None:
        """A kernel as it is, but for its buffers: `buffers[b]` for b. What nothing in this launch needs to find in a cache is
        written past them."""
        made = tuple.__new__  # what the class does, without a call of Python
        args = tuple([made(Arg, (NONE if a[0] == NONE else buffers[a[0]], *a[1:])) for a in kernel.args])
        final = kernel.kind in ("VECTOR", "COPY") and all(self._buffers[a[0]].role == "OUTPUT" for a in args if a[1] & WRITE)
        self._kernels.append(Kernel(kernel.kind, kernel.dtype, kernel.dims, args, kernel.nodes, kernel.depth,
                                    STREAM if final else 0))

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """Those so far, by their numbers."""
        return tuple(self._list)

    @property
    def kernel_count(self) -> int:
        """Kernels so far."""
        return len(self._kernels)

    def accesses(self, first: int) -> Iterator[tuple[int, Kernel | KernelBuilder, Arg]]:
        """(number, kernel, argument) of every argument that is memory, of the kernels from `first` on."""
        for number in range(first, len(self._kernels)):
            kernel = self._kernels[number]
            for arg in kernel.args:
                if arg.buffer != NONE:
                    yield number, kernel, arg

    def loops(self, first: int) -> Iterator[tuple[int, int]]:
        """First kernel and LOOP of every loop from `first` on."""
        for number in range(first, len(self._kernels)):
            if self._kernels[number].kind == "LOOP":
                yield number - self._list[self._kernels[number].depth].k, number

    def skipped(self, first: int) -> Iterator[tuple[int, int]]:
        """First and last kernel of what a BRANCH or a JUMP may skip, of all from `first` on whose reach is known."""
        for number in range(first, len(self._kernels)):
            kernel = self._kernels[number]
            if kernel.kind in ("BRANCH", "JUMP") and kernel.depth != NONE:
                yield number + 1, number + self._list[kernel.depth].k

    def to_the_end(self, number: int) -> None:
        """Moves a kernel behind all others."""
        self._kernels.append(self._kernels.pop(number))

    def empty(self, number: int) -> None:
        """A kernel that does nothing any more keeps its place: what jumps counts kernels."""
        kernel = self._kernels[number]
        dims = (self.const(0), *kernel.dims[1:])
        self._kernels[number] = Kernel(kernel.kind, kernel.dtype, dims, tuple(kernel.args), tuple(kernel.nodes),
                                       kernel.depth, kernel.flags)

    def rename(self, first: int, old: int, new: int) -> None:
        """Kernels from `first` on use another buffer in the place of one."""
        for number in range(first, len(self._kernels)):
            kernel = self._kernels[number]
            if any(arg.buffer == old for arg in kernel.args):
                args = tuple([arg._replace(buffer=new) if arg.buffer == old else arg for arg in kernel.args])
                self._kernels[number] = Kernel(
                    kernel.kind, kernel.dtype, kernel.dims, args, tuple(kernel.nodes), kernel.depth, kernel.flags
                )

    def share_workspace(self) -> None:
        """Gives temporaries that are never alive together the same slot. What a loop uses and something outside of it too, it
        keeps for itself from its first kernel to its last."""
        uses: dict[int, list[int]] = {}  # kernels that name a temporary
        for number, kernel in enumerate(self._kernels):
            for arg in kernel.args:
                if arg.buffer != NONE and self._buffers[arg.buffer].role == "TEMPORARY":
                    uses.setdefault(arg.buffer, []).append(number)
        lives = {name: Lifetime(name, of[0], of[-1], self._buffers[name].bytes) for name, of in uses.items()}
        for begin, number in self.loops(0):
            for name, life in lives.items():
                inside = life.first <= number and life.last >= begin
                if inside and (life.first < begin or life.last > number):
                    lives[name] = life._replace(first=min(life.first, begin), last=max(life.last, number))
        given = slots(lives.values())
        for number, slot in given.items():
            self._buffers[number] = self._buffers[number]._replace(index=slot)
        self._slots = len(set(given.values()))
        for number, buffer in enumerate(self._buffers):
            if buffer.role == "TEMPORARY" and number not in given:  # nothing uses it
                self._buffers[number], self._slots = buffer._replace(index=0, bytes=self.const(0)), max(self._slots, 1)

    def build(self) -> Plan:
        kernels = tuple([k if k.__class__ is Kernel else k.build() for k in self._kernels])
        return Plan(
            tuple(self._symbols), tuple(self._list), tuple(self._parameters), tuple(self._outputs),
            tuple(self._buffers), tuple(self._packs), kernels, self._slots,
        )  # fmt: skip

    def _intern(self, op: str, a: int = NONE, b: int = NONE, k: int = 0) -> int:
        number = self._expressions.get((op, a, b, k))
        if number is None:
            made = Expression(op, a, b, k)
            number = self._expressions[made] = len(self._list)
            self._list.append(made)
        return number

    def _value(self, number: int) -> int | None:
        return self._list[number].k if self._list[number].op == "CONST" else None

    def binary(self, op: str, a: int, b: int) -> int:
        """One of the operations on two expressions, folded where it can be."""
        first, second = self._list[a], self._list[b]
        x = first.k if first.op == "CONST" else None
        y = second.k if second.op == "CONST" else None
        if x is not None and y is not None:
            return self.const(_apply(op, x, y))
        if (op, x) in (("ADD", 0), ("MUL", 1)):
            return b
        if (op, y) in (("ADD", 0), ("MUL", 1), ("FLOORDIV", 1)):
            return a
        if op in ("ADD", "MUL", "MIN", "MAX") and a > b:
            a, b = b, a
        return self._intern(op, a, b)

    def _bytes(self, dtype: DType, dims: Sequence[int]) -> int:
        key = (dtype.bytes, *dims)
        if key not in self._sizes:
            self._sizes[key] = self.mul(*dims, self.const(dtype.bytes))
        return self._sizes[key]

    def _panel_bytes(self, k: int, n: int, dtype: DType) -> int:
        panel, key = LIMITS["PANEL"], ("panels", k, n, dtype.bytes)
        if key not in self._sizes:
            panels = self.floordiv(self.add(n, self.const(panel - 1)), self.const(panel))
            self._sizes[key] = self.mul(k, panels, self.const(dtype.bytes * panel))
        return self._sizes[key]

    def _buffer(self, buffer: Buffer) -> int:
        self._buffers.append(buffer)
        return len(self._buffers) - 1


@dataclass(slots=True)
class KernelBuilder:
    """Collects one kernel: arguments first (`arg`), then nodes; both return their number inside the kernel."""

    kind: str
    dtype: DType
    dims: tuple[int, ...]
    depth: int
    flags: int
    args: list[Arg] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def arg(
        self, buffer: int, mode: int, dtype: DType, strides: Sequence[int], offset: int = NONE, index: int = NONE,
        limit: int = NONE, depth: int = NONE,
    ) -> int:  # fmt: skip
        self.args.append(Arg(buffer, mode, dtype, tuple(strides), offset, index, limit, depth))
        return len(self.args) - 1

    def index(self, strides: Sequence[int], offset: int = NONE) -> int:
        """An argument without memory: the number offset + index * stride over all dimensions (expressions)."""
        return self.arg(NONE, READ, int64, strides, offset)

    def input(self, arg: int) -> int:
        return self._node(Node("NODE_INPUT", arg))

    def const(self, value: float | int) -> int:
        return self._node(Node("NODE_CONST", k=float(value) if self.dtype.kind == "f" else int(value)))

    def size(self, expression: int) -> int:
        """The value of an expression as a constant of the kernel."""
        return self._node(Node("NODE_SIZE", expression))

    def unary(self, op: str, a: int) -> int:
        if op not in _UNARY:
            raise GraphError(f"plan: kernel: not a unary instruction, got {op}, allowed {', '.join(sorted(_UNARY))}")
        return self._node(Node(op, a))

    def binary(self, op: str, a: int, b: int) -> int:
        if op not in _BINARY or op == "mov":
            raise GraphError(f"plan: kernel: not a binary instruction, got {op}, allowed {', '.join(sorted(_BINARY))}")
        return self._node(Node(op, a, b))

    def reduction(self, name: str, a: int) -> int:
        """The total of each row: sum, max, min or prod."""
        return self._node(Node(f"NODE_{name.upper()}", a))

    def sum(self, a: int) -> int:
        return self._node(Node("NODE_SUM", a))

    def max(self, a: int) -> int:
        return self._node(Node("NODE_MAX", a))

    def min(self, a: int) -> int:
        return self._node(Node("NODE_MIN", a))

    def prod(self, a: int) -> int:
        return self._node(Node("NODE_PROD", a))

    def where(self, condition: int, a: int, b: int) -> int:
        """a where condition is not zero, else b."""
        return self.binary("merge", self.binary("keep", a, condition), self.binary("drop", b, condition))

    def output(self, a: int, arg: int) -> int:
        return self._node(Node("NODE_OUTPUT", a, arg))

    def build(self) -> Kernel:
        return Kernel(
            self.kind, self.dtype, self.dims, tuple(self.args), tuple(self.nodes), self.depth, self.flags
        )

    def _node(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1


# ---- evaluation -------------------------------------------------------------------------------------------------


def _apply(op: str, x: int, y: int) -> int:
    if op in ("FLOORDIV", "MOD") and y == 0:
        raise GraphError(f"plan: evaluate: division by zero, got {x} {op} 0, allowed another divisor")
    match op:
        case "ADD":
            value = x + y
        case "MUL":
            value = x * y
        case "FLOORDIV":
            value = x // y
        case "MOD":
            value = x % y
        case "MIN":
            value = min(x, y)
        case _:
            value = max(x, y)
    if not -(2**63) <= value < 2**63:
        raise GraphError(f"plan: evaluate: overflow, got {x} {op} {y}, allowed results of 64 bits")
    return value


def _evaluate(plan: Plan, symbols: Sequence[int]) -> list[int]:
    if len(symbols) != len(plan.symbols):
        raise GraphError(f"plan: evaluate: symbols, got {len(symbols)}, allowed {len(plan.symbols)}")
    for i, value in enumerate(symbols):
        if not 0 <= value < 2**63:
            raise GraphError(f"plan: evaluate: symbol {i}, got {value}, allowed 0 to 2^63 - 1")
    values: list[int] = []
    for e in plan.expressions:
        if e.op == "SYMBOL":
            values.append(int(symbols[e.k]))
        else:
            values.append(e.k if e.op == "CONST" else _apply(e.op, values[e.a], values[e.b]))
    return values


# ---- bytes ------------------------------------------------------------------------------------------------------

# The tables in the order of the bytes: count field of the head, record.
_TABLES = (
    ("symbols", "PlanSymbol"), ("exprs", "PlanExpr"), ("parameters", "PlanParameter"), ("outputs", "PlanOutput"),
    ("buffers", "PlanBuffer"), ("packs", "PlanPack"), ("kernels", "PlanKernel"), ("args", "PlanArg"),
    ("nodes", "PlanNode"),
)  # fmt: skip


_CODES = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i8": "q", "f8": "d"}


def _packer(record: str) -> struct.Struct:
    """Writes a row of a table, fields of several numbers one by one."""
    dtype = RECORD[record].numpy
    parts = [dtype.fields[name][0].subdtype or (dtype.fields[name][0], (1,)) for name in dtype.names]
    found = struct.Struct("<" + "".join(f"{shape[0]}{_CODES[base.str[1:]]}" for base, shape in parts))
    assert found.size == dtype.itemsize
    return found


_PACKERS = {name: _packer(record) for name, record in _TABLES}


def _padded(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(numbers) > MAX_RANK:
        raise GraphError(f"plan: dims: too many, got {len(numbers)}, allowed {MAX_RANK}")
    return numbers + _PADDING[len(numbers)]


_PADDING = [(NONE,) * (MAX_RANK - rank) for rank in range(MAX_RANK + 1)]


def _rows(plan: Plan) -> dict[str, list[tuple]]:
    kernels, args, nodes = [], [], []
    written: dict[tuple[int, DType], list[tuple]] = {}  # copies of a kernel have its nodes
    for k in plan.kernels:
        kernels.append((
            enum_value("SectionKind", k.kind), k.dtype.code, len(k.dims), k.flags, len(args), len(k.args), len(nodes),
            len(k.nodes), k.depth, 0, *_padded(k.dims),
        ))  # fmt: skip
        args += [
            (buffer, mode, dtype.code, index, limit, offset, depth, *_padded(strides))
            for buffer, mode, dtype, strides, offset, index, limit, depth in k.args
        ]
        rows = written.get((id(k.nodes), k.dtype))
        if rows is None:
            rows = [(_NUMBERS[op], a, b, 0, _written(value, k.dtype)) for op, a, b, value in k.nodes]
            written[id(k.nodes), k.dtype] = rows
        nodes += rows
    return {
        "symbols": [(s.parameter, s.dim) for s in plan.symbols],
        "exprs": [(_EXPRESSIONS[op], a, b, 0, k) for op, a, b, k in plan.expressions],
        "parameters": [(dtype.code, len(dims), 0, *_padded(dims)) for dtype, dims in plan.parameters],
        "outputs": [(o.dtype.code, len(o.dims), o.buffer, *_padded(o.dims)) for o in plan.outputs],
        "buffers": [(_ROLES[role], dtype.code, index, size, pack) for role, dtype, index, size, pack in plan.buffers],
        "packs": [tuple(p) for p in plan.packs],
        "kernels": kernels,
        "args": args,
        "nodes": nodes,
    }


def _written(k: float | int, dtype: DType) -> float:
    """A constant as its field holds it: in kernels that compute in integers, the bits of 64-bit ones."""
    return float(k) if dtype.kind == "f" else struct.unpack("<d", (int(k) & (1 << 64) - 1).to_bytes(8, "little"))[0]


def _as_read(node: Node, dtype: DType) -> Node:
    if dtype.kind == "f":
        return node
    bits = int.from_bytes(struct.pack("<d", node.k), "little")
    return Node(node.op, node.a, node.b, bits if dtype.kind == "u" or bits < 1 << 63 else bits - (1 << 64))


def _write(plan: Plan) -> bytes:
    rows = _rows(plan)
    limit = {"symbols": LIMITS["MAX_SYMBOLS"], "exprs": LIMITS["MAX_EXPRS"], "kernels": LIMITS["MAX_SECTIONS"]}
    for name, found in rows.items():
        if len(found) > limit.get(name, NONE - 1):
            raise GraphError(f"plan: {name}: too many, got {len(found)}, allowed {limit.get(name, NONE - 1)}")
    body = b""
    for name, _ in _TABLES:
        pack = _PACKERS[name].pack
        try:
            data = b"".join(starmap(pack, rows[name]))
        except struct.error:
            raise GraphError(f"plan: {name}: a size or a constant, got more than its field holds, allowed numbers of 64 bits") from None
        body += data + bytes(-len(data) % 8)
    head = np.zeros(1, RECORD["PlanHead"].numpy)
    head["magic"], head["version"], head["slots"], head["table_hash"] = PLAN_MAGIC, VERSION, plan.slots, TABLE_HASH
    for name, found in rows.items():
        head[name] = len(found)
    head["checksum"] = _native.checksum(body)
    return head.tobytes() + body


def _refuse(what: str, got: object, allowed: object) -> GraphError:
    return GraphError(f"plan: bytes: {what}, got {got}, allowed {allowed}")


def _tables(data: bytes) -> tuple[np.void, dict[str, list[tuple]]]:
    size = RECORD["PlanHead"].numpy.itemsize
    if len(data) < size:
        raise _refuse("truncated", f"{len(data)} bytes", f"{size} or more")
    head = np.frombuffer(data, RECORD["PlanHead"].numpy, 1)[0]
    for name, wanted in (("magic", PLAN_MAGIC), ("version", VERSION), ("table_hash", TABLE_HASH)):
        if int(head[name]) != wanted:
            raise _refuse(name, f"{int(head[name]):#x}", f"{wanted:#x}")
    rows, at = {}, size
    for name, record in _TABLES:
        dtype, count = RECORD[record].numpy, int(head[name])
        end = at + count * dtype.itemsize
        if end > len(data):
            raise _refuse("truncated", f"{len(data)} bytes", f"{end} or more")
        rows[name] = np.frombuffer(data, dtype, count, at).tolist()
        at = end + -end % 8
    if at != len(data):
        raise _refuse("length", len(data), at)
    if _native.checksum(bytes(data[size:])) != int(head["checksum"]):
        raise _refuse("checksum", "another one", f"{int(head['checksum']):#x}")
    return head, rows


def _read(data: bytes) -> Plan:
    head, rows = _tables(data)
    try:
        return _from_rows(rows, int(head["slots"]))
    except (IndexError, KeyError) as error:
        raise _refuse("number outside its table", error, "numbers of existing records") from None


def _from_rows(rows: dict[str, list[tuple]], slots: int) -> Plan:
    expressions = tuple(Expression(ENUMS["ExprOp"][op], a, b, k) for op, a, b, _, k in rows["exprs"])
    for i, e in enumerate(expressions):
        if (e.op == "SYMBOL" and not 0 <= e.k < len(rows["symbols"])) or (
            e.op not in ("SYMBOL", "CONST") and (e.a >= i or e.b >= i)
        ):
            raise IndexError(f"expression {i}")
    args = [
        Arg(buffer, mode, DTYPES[dtype], tuple(strides), offset, index, limit, depth)
        for buffer, mode, dtype, index, limit, offset, depth, strides in rows["args"]
    ]
    nodes = [Node(_node_name(op), a, b, k) for op, a, b, _, k in rows["nodes"]]
    kernels = []
    for kind, dtype, rank, flags, first_arg, arg_count, first_node, node_count, depth, _, dims in rows["kernels"]:
        if first_arg + arg_count > len(args) or first_node + node_count > len(nodes) or rank > MAX_RANK:
            raise IndexError(f"kernel {len(kernels)}")
        own = tuple(args[first_arg : first_arg + arg_count])
        kernels.append(Kernel(
            ENUMS["SectionKind"][kind], DTYPES[dtype], tuple(dims[:rank]),
            tuple(a._replace(strides=_strides(a, kind, rank)) for a in own),
            tuple(_as_read(n, DTYPES[dtype]) for n in nodes[first_node : first_node + node_count]), depth, flags,
        ))  # fmt: skip
    return Plan(
        tuple(Symbol(*s) for s in rows["symbols"]),
        expressions,
        tuple(Parameter(DTYPES[d], tuple(dims[:rank])) for d, rank, _, dims in rows["parameters"]),
        tuple(Output(DTYPES[d], tuple(dims[:rank]), buffer) for d, rank, buffer, dims in rows["outputs"]),
        tuple(Buffer(ENUMS["BufferRole"][role], DTYPES[d], i, size, pack) for role, d, i, size, pack in rows["buffers"]),
        tuple(Pack(*p) for p in rows["packs"]),
        tuple(kernels),
        slots,
    )


def _strides(arg: Arg, kind: int, rank: int) -> tuple[int, ...]:
    """Those of the kernel's dims; of a host kernel, all sizes that are there."""
    if ENUMS["SectionKind"][kind] != "HOST":
        return arg.strides[:rank]
    return tuple(s for s in arg.strides if s != NONE)


def _node_name(op: int) -> str:
    return _NODE_NAMES[op] if op in _NODE_NAMES else table.INSTRUCTIONS[op].name


# ---- text -------------------------------------------------------------------------------------------------------

_SIGN = {"ADD": "+", "MUL": "*", "FLOORDIV": "//", "MOD": "%"}


def _texts(plan: Plan) -> list[str]:
    """Every expression in full, as a user would write it; s0, s1, ... are the symbols."""
    texts: list[str] = []
    for e in plan.expressions:
        if e.op in ("SYMBOL", "CONST"):
            texts.append(f"s{e.k}" if e.op == "SYMBOL" else str(e.k))
        elif e.op in _SIGN:
            texts.append(f"({texts[e.a]} {_SIGN[e.op]} {texts[e.b]})")
        else:
            texts.append(f"{e.op.lower()}({texts[e.a]}, {texts[e.b]})")
        if len(texts[-1]) > 80:
            texts[-1] = f"e{len(texts) - 1}"
    return [t[1:-1] if t.startswith("(") else t for t in texts]


def _dump(plan: Plan) -> str:
    texts = _texts(plan)

    def text(number: int) -> str:
        return "0" if number == NONE else texts[number]

    def shape(dims: Sequence[int]) -> str:
        return f"[{', '.join(text(d) for d in dims)}]"

    out = [f"plan: {len(plan.kernels)} kernels, {len(plan.buffers)} buffers, {plan.slots} workspace slots"]
    out += [f"  s{i} = dim {s.dim} of parameter {s.parameter}" for i, s in enumerate(plan.symbols)]
    out += [f"  parameter {i}: {p.dtype}{shape(p.dims)}" for i, p in enumerate(plan.parameters)]
    out += [f"  output {i}: {o.dtype}{shape(o.dims)} in b{o.buffer}" for i, o in enumerate(plan.outputs)]
    for i, b in enumerate(plan.buffers):
        packed = "" if b.pack == NONE else f" continues parameter {b.pack}" if b.role == "OUTPUT" else f", pack {b.pack}"
        out.append(f"  b{i}: {b.role} {b.index}{packed}, {b.dtype}, {text(b.bytes)} bytes")
    for i, p in enumerate(plan.packs):
        out.append(
            f"  pack {i}: parameter {p.parameter}, K {text(p.k)} by {text(p.stride_k)}, N {text(p.n)} by {text(p.stride_n)}"
            + (f" from {text(p.offset)}" if p.offset != NONE else "")
            + (f", and {p.more} beside it" if p.more else "")
        )
    for i, kernel in enumerate(plan.kernels):
        depth = f" depth {text(kernel.depth)}" if kernel.depth != NONE else ""
        out.append(f"  kernel {i}: {kernel.kind} {kernel.dtype} rows of {shape(kernel.dims)}{depth}")
        out += [f"    a{j} = {_arg_text(a, text, shape)}" for j, a in enumerate(kernel.args)]
        out += [f"    {_node_text(j, n)}" for j, n in enumerate(kernel.nodes)]
    return "\n".join(out) + "\n"


def _arg_text(a: Arg, text, shape) -> str:
    modes = "|".join(name for name, bit in FLAGS["Mode"].items() if a.mode & bit)
    place = "index" if a.buffer == NONE else f"b{a.buffer}"
    line = f"{place} {modes} {a.dtype} strides {shape(a.strides)}"
    line += f" offset {text(a.offset)}" if a.offset != NONE else ""
    line += f" depth {text(a.depth)}" if a.depth != NONE else ""
    return line + (f" row a{a.index} of {text(a.limit)}" if a.index != NONE else "")


def _node_text(number: int, n: Node) -> str:
    match n.op:
        case "NODE_INPUT":
            return f"n{number} = a{n.a}"
        case "NODE_CONST":
            return f"n{number} = {n.k!r}"
        case "NODE_SIZE":
            return f"n{number} = e{n.a}"
        case "NODE_OUTPUT":
            return f"a{n.b} <- n{n.a}"
    name = n.op.removeprefix("NODE_").lower() + ("_row" if n.op.startswith("NODE_") else "")
    return f"n{number} = {name}({', '.join(f'n{v}' for v in (n.a, n.b) if v != NONE)})"
