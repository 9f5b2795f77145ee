"""What each kernel of a plan costs for given sizes, by a model: operations, bytes of memory, time. `dvm.explain` prints it.

Bytes count each buffer that a kernel names once, and no more of it than the kernel can touch. Time is the larger of what the
instructions take and what memory takes, on one thread, plus the start of a kernel. The rates were measured on one core of an
AVX-512 server at about 2.8 GHz, with data in the caches of level 2 and 3 (`benchmarks/fusion.py --suite` prints what they
give beside what it measures: within a factor of 2). They compare kernels with each other, and are no promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from dvm_rt.fusion.plan import NONE, Kernel, Plan
from dvm_rt.isa import table

CYCLES_A_NS = 2.8
STRIP_BYTES = 512
MULTIPLY_ADDS_A_NS = 55.0  # 512 rows through 256 x 1024 and back
BYTES_A_NS = 15.0  # norms of 512 x 768
START_NS = 100.0
REDUCTIONS = ("NODE_SUM", "NODE_MAX", "NODE_MIN", "NODE_PROD")
REDUCTION_CYCLES = 16.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one kernel: operations on numbers, bytes read and written, modelled ns on one thread."""

    flops: int
    bytes: int
    ns: float

    def text(self) -> str:
        return f"{self.flops} flops, {self.bytes} bytes, {self.ns / 1e3:.1f} us modelled"


def costs(plan: Plan, symbols: Sequence[int]) -> list[Cost]:
    """The cost of each kernel of a plan for these values of its symbols."""
    values = plan.evaluate(symbols)
    return [_cost(plan, kernel, values) for kernel in plan.kernels]


def _cost(plan: Plan, kernel: Kernel, values: list[int]) -> Cost:
    dims = [values[d] for d in kernel.dims]
    elements = 0 if kernel.kind == "HOST" else prod(dims)
    cycles = [_cycles(node.op) for node in kernel.nodes]
    operations = sum(c > 0 for c in cycles)
    if kernel.kind == "MATMUL" and kernel.args[0].index != NONE:  # rows in groups: each meets one of the matrices
        elements //= max(dims[2], 1)
    multiply_adds = elements * _depth(plan, kernel, values)
    moved = _bytes(plan, kernel, dims, values)
    computing = elements * sum(cycles) * kernel.dtype.bytes / STRIP_BYTES / CYCLES_A_NS + multiply_adds / MULTIPLY_ADDS_A_NS
    return Cost(elements * operations + 2 * multiply_adds, moved, max(computing, moved / BYTES_A_NS) + START_NS)


def _cycles(op: str) -> float:
    if op in REDUCTIONS:
        return REDUCTION_CYCLES
    instruction = table.BY_NAME.get(op)
    return 0 if instruction is None else instruction.cycles


def _depth(plan: Plan, kernel: Kernel, values: list[int]) -> int:
    """Multiply-adds for each element of the domain; those of an attention are keys by queries, for scores and values."""
    if kernel.kind == "MATMUL":
        return values[kernel.depth]
    return 2 * values[kernel.depth] if kernel.kind == "ATTENTION" else 0


def _bytes(plan: Plan, kernel: Kernel, dims: list[int], values: list[int]) -> int:
    """Matmuls and attentions touch all of a buffer; others at most the elements that their strides reach."""
    found: dict[int, int] = {}
    for arg in kernel.args:
        if arg.buffer == NONE:
            continue
        whole = values[plan.buffers[arg.buffer].bytes]
        if kernel.kind in ("VECTOR", "COPY"):
            reached = prod(n for n, s in zip(dims, arg.strides, strict=False) if s != NONE and values[s] != 0)
            whole = min(whole, found.get(arg.buffer, 0) + reached * arg.dtype.bytes)
        found[arg.buffer] = whole
    return sum(found.values())
