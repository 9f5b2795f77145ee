"""Which instructions make a member of a kernel from its operands, and how many they are.

An operator's row names them. What it gives is then rounded or wrapped to its dtype, if that is narrower than what the kernel
computes in: so the bits are the same whether the value is stored in between or not."""

from __future__ import annotations

from functools import lru_cache
from math import frexp
from typing import Protocol

from dvm_rt.dtypes import DType, bfloat16, bool_, float16, int8, int16, uint8, uint16
from dvm_rt.fusion import plan
from dvm_rt.graph.graph import Node
from dvm_rt.graph.operators import Emit, Lowering, Operator

NARROW: dict[DType, str] = {
    float16: "to_f16", bfloat16: "to_bf16", int8: "wrap_i8", int16: "wrap_i16", uint8: "wrap_u8", uint16: "wrap_u16",
}  # fmt: skip
ROUNDED: dict[str, DType] = {"to_f16": float16, "to_bf16": bfloat16}
LEAVES = ("NODE_INPUT", "NODE_CONST", "NODE_SIZE")
BITS = {name: 8 * dtype.bytes for dtype, name in NARROW.items() if name.startswith("wrap_")}
# The low bits of what these give depend on as many low bits of their operands only (keep, drop: of the first one).
LOW_BITS = frozenset(("add", "sub", "rsub", "mul", "neg", "square", "bit_and", "bit_xor", "bit_not", "merge", "keep", "drop"))
ALL_BITS = 64
REDUCTIONS = ("sum", "max", "min", "prod")
_OF_NOTHING = {"max": 0.0, "min": 1.0}  # of bools: the identity of a reduction is beyond them


class Words(Emit, Protocol):
    """An emitter that can also reduce rows."""

    def reduction(self, name: str, a: int) -> int: ...


def is_closed(row: Operator, result: DType) -> bool:
    """Whether what an operator gives is one of its dtype's values before anything is rounded or wrapped: signs are
    free in floats."""
    return row.closed or (result.kind == "f" and row.name in ("abs", "negative"))


def member_words(emit: Words, node: Node, operands: list[int]) -> int:
    """Makes a node from its operands, before it is narrowed; gives its number."""
    return _words(emit, node.operator, node.dtype, operands)


def _words(emit: Words, row: Operator, result: DType, operands: list[int]) -> int:
    if row.lowering is Lowering.REDUCE:
        total = emit.reduction(row.name, operands[0])
        return emit(row.name, total, _OF_NOTHING[row.name]) if result is bool_ else total
    if row.name == "copy":
        return operands[0]
    if row.name == "astype":
        return emit("ne", operands[0], 0.0) if result is bool_ else operands[0]
    if isinstance(row.instructions, str):
        return emit(row.instructions, *operands)
    return row.instructions(emit, *operands)


def without_idle_narrowing(nodes: list[plan.Node], dtypes: list[DType]) -> list[plan.Node]:
    """The nodes of a kernel without the words that narrow what nobody sees narrowed, or what is narrow already.

    A wrap is idle if only words of low bits, other wraps and stores of as few bits see it; a rounding, if only stores see it
    that round in the same way, or if its operand is one of the dtype's values. `dtypes`: of the kernel's arguments. The bits
    that are stored stay the same."""
    if not any(node.op in BITS or node.op in ROUNDED for node in nodes):
        return nodes
    idle = _idle_wraps(nodes, dtypes) | _idle_roundings(nodes, dtypes)
    kept: list[plan.Node] = []
    place: list[int] = []
    for number, node in enumerate(nodes):
        if number in idle:
            place.append(place[node.a])
            continue
        place.append(len(kept))
        if node.op in LEAVES:
            kept.append(node)
        else:
            second = node.b if node.op == "NODE_OUTPUT" or node.b == plan.NONE else place[node.b]
            kept.append(node._replace(a=place[node.a], b=second))
    return kept


def _idle_wraps(nodes: list[plan.Node], dtypes: list[DType]) -> set[int]:
    wanted, idle = [0] * len(nodes), set()  # low bits of each node that somebody looks at
    for number in range(len(nodes) - 1, -1, -1):
        node = nodes[number]
        first = second = ALL_BITS
        if node.op == "NODE_OUTPUT":
            dtype = dtypes[node.b]
            wanted[node.a] = max(wanted[node.a], ALL_BITS if dtype is bool_ or dtype.kind == "f" else 8 * dtype.bytes)
            continue
        if node.op in LEAVES:
            continue
        if node.op in BITS:
            first = min(BITS[node.op], wanted[number])
            if wanted[number] <= BITS[node.op]:
                idle.add(number)
        elif node.op in LOW_BITS:
            first = wanted[number]
            second = ALL_BITS if node.op in ("keep", "drop") else first
        wanted[node.a] = max(wanted[node.a], first)
        if node.b != plan.NONE:
            wanted[node.b] = max(wanted[node.b], second)
    return idle


def _idle_roundings(nodes: list[plan.Node], dtypes: list[DType]) -> set[int]:
    seen = set()  # nodes that something but a store of the rounding's dtype looks at
    narrow: list[DType | None] = []  # of which 16-bit dtype a node is a value, as far as is known
    idle = set()
    for number, node in enumerate(nodes):
        narrow.append(None)
        if node.op == "NODE_INPUT":
            narrow[number] = dtypes[node.a]
        elif node.op == "NODE_OUTPUT":
            if ROUNDED.get(nodes[node.a].op) is not dtypes[node.b]:
                seen.add(node.a)
        elif node.op not in LEAVES:
            seen |= {node.a} if node.b == plan.NONE else {node.a, node.b}
            if node.op in ROUNDED:
                if narrow[node.a] is ROUNDED[node.op]:
                    idle.add(number)
                narrow[number] = ROUNDED[node.op]
            elif _keeps_bfloat16(node, nodes, narrow):
                narrow[number] = bfloat16
    return idle | {number for number, node in enumerate(nodes) if node.op in ROUNDED and number not in seen}


def _keeps_bfloat16(node: plan.Node, nodes: list[plan.Node], narrow: list[DType | None]) -> bool:
    """A bfloat16 times 1, 2, 4, ..: its exponent is as wide as float32's, so nothing is lost, and both overflow at once."""
    for factor, other in ((node.b, node.a), (node.a, node.b)):
        if node.op == "mul" and nodes[factor].op == "NODE_CONST" and nodes[factor].k >= 1 and frexp(nodes[factor].k)[0] == 0.5:
            return narrow[other] is bfloat16
    return False


def nodes_of(node: Node) -> int:
    """How many nodes of a plan a member becomes, its constants included."""
    if node.operator.lowering in (Lowering.PRODUCT, Lowering.GATHER, Lowering.HOST, Lowering.ATTENTION, Lowering.RUNNING):
        return 1
    return _count(node.operator, node.inputs[-1].dtype, node.dtype, len(node.inputs))


@lru_cache(4096)
def _count(row: Operator, dtype: DType, result: DType, inputs: int) -> int:
    count = _Counter(dtype)
    _words(count, row, result, list(range(inputs)))
    return count.nodes + (result in NARROW and not is_closed(row, result))


class _Counter:
    """An emitter that only counts."""

    def __init__(self, dtype: DType) -> None:
        self.dtype, self.nodes = dtype, 0

    def __call__(self, name: str, *operands: int | float) -> int:
        self.nodes += 1 + sum(isinstance(x, float) for x in operands)
        return 0

    def reduction(self, name: str, a: int) -> int:
        return self(name, a)
