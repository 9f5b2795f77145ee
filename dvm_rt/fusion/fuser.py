"""Graph -> Plan: one plan, one launch, for every shape.

    segments   cuts that no kernel could span: what repeats is planned once
    legalise   composites apart, views affine, copies where they must be
    groups     which operators share a kernel
    kernels    groups written into the plan, workspace shared out

The same graph always gives the same plan. With fused=False every operator is a kernel of its own: the results are the same,
bit for bit, which tests hold against the fused plan."""

from __future__ import annotations

from dataclasses import dataclass

from dvm_rt.fusion.groups import NODES_MAX, Group, Grouping, group
from dvm_rt.fusion.kernels import KernelWriter, PlanWriter, SegmentKernels, run_order
from dvm_rt.fusion.legalise import legalise
from dvm_rt.fusion.plan import Plan
from dvm_rt.fusion.segments import Segment, segments
from dvm_rt.graph.graph import Graph
from dvm_rt.graph.symbols import Check, Size


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One kernel: its kind, its operators in order, the shape that it runs over."""

    kind: str
    operators: tuple[str, ...]
    domain: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What was fused, and for each edge between two kernels why it stayed."""

    kernels: tuple[KernelReport, ...]
    refusals: tuple[tuple[str, str, str], ...]  # producer, consumer, reason

    def text(self) -> str:
        """The report, one line a kernel and a refusal."""
        lines = [f"kernel {i}: {k.kind} [{', '.join(map(str, k.domain))}]: {' '.join(k.operators)}" for i, k in enumerate(self.kernels)]
        return "\n".join(lines + [f"not fused: {a} -> {b}: {reason}" for a, b, reason in self.refusals])


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """A plan, why it is so, and what it checks of the sizes of a call beyond that they fit the parameters."""

    plan: Plan
    report: Report
    checks: tuple[Check, ...]


def fuse(graph: Graph, fused: bool = True, nodes_max: int = NODES_MAX) -> Fused:
    """The plan of a graph. Raises UnsupportedOperatorError, GraphError (too large for one plan)."""
    known = len(graph.facts.substitutions)
    plan, written, reports = PlanWriter(graph), {}, []
    plan.add_parameters()
    plan.add_outputs()
    for segment in segments(graph, cut=fused):
        key = segment.key()
        if key not in written:
            written[key] = _written(plan, segment, fused, nodes_max)
        kernels, report = written[key]
        plan.place(kernels, segment)
        reports.append(report)
    if len(graph.facts.substitutions) > known:  # taking composites apart has shown more of the sizes
        return fuse(Graph.of(graph.parameters, graph.outputs, graph.facts), fused, nodes_max)
    plan.builder.share_workspace()
    return Fused(plan.builder.build(), _joined(reports), tuple(graph.facts.resolved_checks()))


def _written(plan: PlanWriter, segment: Segment, fused: bool, nodes_max: int) -> tuple[SegmentKernels, Report]:
    """The kernels of a segment, and why they are so."""
    legal = legalise(segment.graph(), fused)
    grouping = group(legal, fused, nodes_max)
    order = run_order(grouping)
    results = {node for node, (_, output) in zip(legal.graph.outputs, segment.gives, strict=True) if output is not None}
    kernels = SegmentKernels(plan, legal, [n.operator.name == "parameter" for n in segment.reads], results)
    for one in order:
        KernelWriter(kernels, grouping, one).write()
    return kernels, _report(grouping, order, segment.refusals())


def _report(grouping: Grouping, order: list[Group], before: list[tuple[str, str, str]]) -> Report:
    kernels = []
    for one in order:
        names = tuple([n.operator.name for n in sorted(one.placed, key=grouping.number.__getitem__)])
        domain = tuple([one.sizes[axis] for axis in one.axes()])
        kernels.append(KernelReport("vector" if one.product is None else "matmul", names, domain))
    refusals = dict.fromkeys(before) | dict.fromkeys(
        (r.producer.operator.name, r.consumer.operator.name, r.reason)
        for r in grouping.refused
        if grouping.group_of[r.producer] is not grouping.group_of[r.consumer]
    )
    return Report(tuple(kernels), tuple(refusals))


def _joined(reports: list[Report]) -> Report:
    kernels = tuple([kernel for report in reports for kernel in report.kernels])
    return Report(kernels, tuple(dict.fromkeys(refusal for report in reports for refusal in report.refusals)))
