"""Which instructions make a member of a kernel from its operands, and how many they are.

An operator's row names them. What it gives is then rounded or wrapped to its dtype, if that is narrower than what the kernel
computes in: so the bits are the same whether the value is stored in between or not."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from dvm_rt.dtypes import DType, bfloat16, bool_, float16, int8, int16, uint8, uint16
from dvm_rt.graph.graph import Node
from dvm_rt.graph.operators import Emit, Lowering, Operator

NARROW: dict[DType, str] = {
    float16: "to_f16", bfloat16: "to_bf16", int8: "wrap_i8", int16: "wrap_i16", uint8: "wrap_u8", uint16: "wrap_u16",
}  # fmt: skip
REDUCTIONS = ("sum", "max", "min", "prod")
_OF_NOTHING = {"max": 0.0, "min": 1.0}  # of bools: the identity of a reduction is beyond them


class Words(Emit, Protocol):
    """An emitter that can also reduce rows."""

    def reduction(self, name: str, a: int) -> int: ...


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


def nodes_of(node: Node) -> int:
    """How many nodes of a plan a member becomes, its constants included."""
    if node.operator.lowering in (Lowering.PRODUCT, Lowering.GATHER, Lowering.HOST, Lowering.ATTENTION):
        return 1
    return _count(node.operator, node.inputs[-1].dtype, node.dtype, len(node.inputs))


@lru_cache(4096)
def _count(row: Operator, dtype: DType, result: DType, inputs: int) -> int:
    count = _Counter(dtype)
    _words(count, row, result, list(range(inputs)))
    return count.nodes + (result in NARROW and not row.closed)


class _Counter:
    """An emitter that only counts."""

    def __init__(self, dtype: DType) -> None:
        self.dtype, self.nodes = dtype, 0

    def __call__(self, name: str, *operands: int | float) -> int:
        self.nodes += 1 + sum(isinstance(x, float) for x in operands)
        return 0

    def reduction(self, name: str, a: int) -> int:
        return self(name, a)
