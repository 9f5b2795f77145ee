"""Graph -> Plan: one plan, one launch, for every shape.

    patterns   attention found, composites apart
    legalise   composites apart, views affine, copies where they must be
    groups     which operators share a kernel
    kernels    groups written into the plan, workspace shared out

The same graph always gives the same plan. With fused=False every operator is a kernel of its own: the results are the same,
bit for bit, which tests hold against the fused plan."""

from __future__ import annotations

from dataclasses import dataclass

from dvm_rt.fusion.groups import NODES_MAX, Group, Grouping, group
from dvm_rt.fusion.kernels import KernelWriter, PlanWriter, run_order
from dvm_rt.fusion.legalise import legalise
from dvm_rt.fusion.patterns import Found, rewritten
from dvm_rt.fusion.plan import Plan
from dvm_rt.graph.graph import Graph
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Check


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One kernel: its kind, its operators in order, the shape that it runs over."""

    kind: str
    operators: tuple[str, ...]
    domain: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What was fused, and for each edge between two kernels why it stayed."""

    kernels: tuple[KernelReport, ...]
    refusals: tuple[tuple[str, str, str], ...]  # producer, consumer, reason
    patterns: tuple[Found, ...] = ()

    def text(self) -> str:
        """The report, one line a kernel and a refusal."""
        lines = [f"kernel {i}: {k.kind} [{', '.join(k.domain)}]: {' '.join(k.operators)}" for i, k in enumerate(self.kernels)]
        lines += [one.text() for one in self.patterns]
        return "\n".join(lines + [f"not fused: {a} -> {b}: {reason}" for a, b, reason in self.refusals])


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """A plan, why it is so, and what it checks of the sizes of a call beyond that they fit the parameters."""

    plan: Plan
    report: Report
    checks: tuple[Check, ...]


def fuse(graph: Graph, fused: bool = True, nodes_max: int = NODES_MAX) -> Fused:
    """The plan of a graph. Raises UnsupportedOperatorError, GraphError (too large for one plan)."""
    graph, patterns = rewritten(graph)
    legal = legalise(graph, fused)
    grouping = group(legal, fused, nodes_max)
    order = run_order(grouping)
    writer = PlanWriter(legal)
    writer.add_parameters()
    writer.add_outputs()
    writer.add_temporaries(grouping, order)
    for one in order:
        KernelWriter(writer, grouping, one).write()
    return Fused(writer.builder.build(), _report(grouping, order, patterns), tuple(graph.facts.resolved_checks()))


def _kind(one: Group) -> str:
    if one.product is None:
        return "vector"
    return "attention" if one.product.operator.lowering is Lowering.ATTENTION else "matmul"


def _report(grouping: Grouping, order: list, patterns: tuple[Found, ...]) -> Report:
    kernels = []
    for one in order:
        names = tuple(n.operator.name for n in grouping.legal.graph.nodes if n in one.placed)
        domain = tuple(str(one.sizes[axis]) for axis in one.axes())
        kernels.append(KernelReport(_kind(one), names, domain))
    refusals = dict.fromkeys(
        (r.producer.operator.name, r.consumer.operator.name, r.reason)
        for r in grouping.refused
        if grouping.group_of[r.producer] is not grouping.group_of[r.consumer]
    )
    return Report(tuple(kernels), tuple(refusals), patterns)
