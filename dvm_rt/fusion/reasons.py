"""Why each edge of a graph is inside of a kernel, or between two: what `dvm.explain` prints.

An edge is a computed value and an operator that reads it, over whatever views. A fused edge saves a read of the value from
memory; a value whose edges are all fused is never written either. Found from the finished grouping: fusion itself keeps
nothing but its refusals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dvm_rt.fusion.groups import Grouping
from dvm_rt.fusion.segments import Segment
from dvm_rt.graph.graph import Node
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Size, product


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """The edges by (producer, consumer, whether fused, reason) with their number, and the bytes of memory traffic that those
    which are fused save: a read each, and for the last of a value that is never stored its write."""

    counts: Counter[tuple[str, str, bool, str]]
    saved: dict[tuple[str, str, bool, str], Size]

    @property
    def saved_bytes(self) -> Size:
        return sum(self.saved.values(), start=0)

    def __add__(self, other: Edges) -> Edges:
        saved = {key: self.saved.get(key, 0) + other.saved.get(key, 0) for key in self.saved | other.saved}
        return Edges(self.counts + other.counts, saved)

    def text(self) -> str:
        """A summary, then a line for each kind of edge: what is fused first."""
        fused = sum(n for (_, _, inside, _), n in self.counts.items() if inside)
        rest = sum(self.counts.values()) - fused
        lines = [f"edges: {fused} fused, {rest} between kernels; {self.saved_bytes} bytes of memory traffic saved"]
        for (producer, consumer, inside, reason), count in sorted(self.counts.items(), key=lambda row: not row[0][2]):
            times = f" ({count} times)" if count > 1 else ""
            saves = f"; saves {self.saved[key]} bytes" if (key := (producer, consumer, inside, reason)) in self.saved else ""
            lines.append(f"{'fused' if inside else 'not fused'}: {producer} -> {consumer}: {reason}{times}{saves}")
        return "\n".join(lines)


def edges_across(segment: Segment) -> Edges:
    """The edges that come from earlier segments, between the operators of the graph as it was given."""
    return Edges(Counter((a, b, False, reason) for a, b, reason in segment.refusals()), {})


def edges(grouping: Grouping) -> Edges:
    """The edges inside of a segment."""
    counts: Counter[tuple[str, str, bool, str]] = Counter()
    refused = {(r.producer, id(grouping.group_of.get(r.consumer))): r.reason for r in reversed(grouping.refused)}
    saved: dict[tuple[str, str, bool, str], Size] = {}
    for node, uses in grouping.uses.items():
        size = product(node.shape) * node.dtype.bytes
        own = grouping.group_of.get(node)
        for use in uses:
            inside = own is not None and grouping.group_of.get(use.reader) is own
            given = refused.get((node, id(grouping.group_of.get(use.reader))))
            reason = _fused(grouping, node) if inside else given or _between(grouping, node, use.reader)
            key = (node.operator.name, use.reader.operator.name, inside, reason)
            counts[key] += 1
            if inside:
                saved[key] = saved.get(key, 0) + size
        if own is not None and uses and not grouping.is_stored(node):
            saved[key] = saved[key] + size
    return Edges(counts, saved)


def _fused(grouping: Grouping, node: Node) -> str:
    if node in grouping.legal.cheap:
        return "it costs less than to store it: each reader makes its own"
    if grouping.group_of[node].product is not None:
        return "in the tile of the matmul, while it is hot"
    if node.operator.lowering is Lowering.REDUCE:
        return "the result of a row, used along the row"
    return "needed at the place where it is computed"


def _between(grouping: Grouping, node: Node, reader: Node) -> str:
    if node.operator.lowering is Lowering.JOIN or reader.operator.lowering is Lowering.JOIN:
        return "parts of a join are written where they belong"
    if reader.operator.lowering in (Lowering.PRODUCT, Lowering.GATHER, Lowering.HOST, Lowering.RUNNING):
        return f"{reader.operator.name} reads it from memory"
    if node.operator.lowering is Lowering.HOST:
        return f"{node.operator.name} runs on the host"
    if node.operator.lowering is Lowering.RUNNING:
        return f"{node.operator.name} has a kernel of its own"
    if grouping.group_of[node].product is not None:
        return "a matmul's result: only what follows from it element by element shares its kernel"
    return "it is computed in the kernel of another reader"
