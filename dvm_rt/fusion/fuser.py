"""Graph -> Plan: one plan, one launch, for every shape.

    patterns   attention found, composites apart
    segments   cuts that no kernel could span: what repeats is planned once
    control    branches and loops: their parts are planned in the same way, between the kernels that jump
    legalise   composites apart, views affine, copies where they must be
    groups     which operators share a kernel
    kernels    groups written into the plan, workspace shared out

The same graph always gives the same plan. With fused=False every operator is a kernel of its own: the results are the same,
bit for bit, which tests hold against the fused plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dvm_rt.fusion.control import write_control
from dvm_rt.errors import GraphError
from dvm_rt.fusion.groups import NODES_MAX, Group, Grouping, group, host_node, plain_copy
from dvm_rt.fusion.kernels import KernelWriter, PlanWriter, SegmentKernels, run_order
from dvm_rt.fusion.legalise import legalise
from dvm_rt.fusion.patterns import Found, rewritten
from dvm_rt.fusion.plan import Plan
from dvm_rt.fusion.reasons import Edges, edges, edges_across
from dvm_rt.fusion.segments import Segment, segments
from dvm_rt.graph.graph import Graph
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Check, Size


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One kernel: its kind, its operators in order, the shape that it runs over."""

    kind: str
    operators: tuple[str, ...]
    domain: tuple[Size, ...]
    section: str = ""  # of a hand-written kernel

    def text(self) -> str:
        named = f"section {self.section}: " if self.section else ""
        return f"{named}{self.kind} [{', '.join(map(str, self.domain))}]: {' '.join(self.operators)}"


@dataclass(frozen=True, slots=True)
class Report:
    """What was fused, and for each edge between two kernels why it stayed."""

    kernels: tuple[KernelReport, ...]
    refusals: tuple[tuple[str, str, str], ...]  # producer, consumer, reason
    edges: Edges | None = None  # with reasons=True
    patterns: tuple[Found, ...] = ()

    def text(self) -> str:
        """The report, one line a kernel, then one a kind of edge, or at least a refusal."""
        lines = [f"kernel {i}: {k.text()}" for i, k in enumerate(self.kernels)]
        lines += [one.text() for one in self.patterns]
        if self.edges is not None:
            return "\n".join([*lines, self.edges.text()])
        return "\n".join(lines + [f"not fused: {a} -> {b}: {reason}" for a, b, reason in self.refusals])


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """A plan, why it is so, and what it checks of the sizes of a call beyond that they fit the parameters."""

    plan: Plan
    report: Report
    checks: tuple[Check, ...]


def fuse(graph: Graph, fused: bool = True, nodes_max: int = NODES_MAX, reasons: bool = False) -> Fused:
    """The plan of a graph; with `reasons` the report knows every edge. Raises UnsupportedOperatorError, GraphError (too large
    for one plan)."""
    graph, patterns = rewritten(graph)
    known = len(graph.facts.substitutions)
    plan, written, reports, torn = PlanWriter(graph), {}, [], None
    plan.add_parameters()
    plan.add_outputs()

    def write(plan: PlanWriter, found: tuple[Found, ...]) -> None:
        """The kernels of a graph, or of a part of one."""
        nonlocal torn
        reports.append(Report((), (), patterns=found))
        for segment in segments(plan.graph, cut=fused):
            if segment.control():
                write_control(plan, segment, write_part)
                continue
            key = (segment.key(), tuple([plan.given_as(n) is not None for n in segment.reads]))
            if key not in written:
                written[key] = _written(plan, segment, fused, nodes_max, reasons)
            kernels, report = written[key]
            plan.place(kernels, segment)
            if segment.section and fused:
                report = replace(report, kernels=tuple([replace(kernel, section=segment.section) for kernel in report.kernels]))
                torn = torn or (segment if len(report.kernels) != 1 else None)
            reports.extend([Report((), tuple(segment.refusals()), edges_across(segment) if reasons else None), report])

    def write_part(around: PlanWriter, graph: Graph, inputs: list[int], outputs: list[int]) -> None:
        graph, found = rewritten(graph)
        write(around.part(graph, inputs, outputs), found)

    write(plan, patterns)
    if len(graph.facts.substitutions) > known:  # taking composites apart has shown more of the sizes
        return fuse(Graph.of(graph.parameters, graph.outputs, graph.facts), fused, nodes_max, reasons)
    if torn is not None:
        raise _no_single_kernel(torn.section, _written(plan, torn, fused, nodes_max, reasons=True)[1])
    plan.builder.share_workspace()
    return Fused(plan.builder.build(), _joined(reports), tuple(graph.facts.resolved_checks()))


def _written(plan: PlanWriter, segment: Segment, fused: bool, nodes_max: int, reasons: bool) -> tuple[SegmentKernels, Report]:
    """The kernels of a segment, and why they are so."""
    given = [plan.given_as(n) is not None for n in segment.reads]
    legal = legalise(segment.graph(), given, fused)
    grouping = group(legal, fused, nodes_max)
    order = run_order(grouping)
    results = {node for node, (_, output) in zip(legal.graph.outputs, segment.gives, strict=True) if output is not None}
    kernels = SegmentKernels(plan, legal, results)
    for one in order:
        KernelWriter(kernels, grouping, one).write()
    return kernels, _report(grouping, order, reasons)


def _no_single_kernel(section: str, report: Report) -> GraphError:
    """The error for a section of a hand-written kernel that is not one kernel; the report knows every edge."""
    made = " | ".join(" ".join(kernel.operators) for kernel in report.kernels)
    between = [f"{a} -> {b}: {reason}" for a, b, inside, reason in report.edges.counts if not inside]
    reasons = "; ".join(between) or "they have nothing to do with each other"
    return GraphError(f"kernel: section {section}: kernels, got {len(report.kernels)} ({made}), allowed 1: {reasons}")


def _kind(one: Group) -> str:
    if host_node(one) is not None:
        return "host"
    if plain_copy(one) is not None:
        return "copy"
    if one.product is None:
        return "vector"
    return "attention" if one.product.operator.lowering is Lowering.ATTENTION else "matmul"


def _report(grouping: Grouping, order: list[Group], reasons: bool) -> Report:
    kernels = []
    for one in order:
        names = tuple([n.operator.name for n in sorted(one.placed, key=grouping.number.__getitem__)])
        domain = tuple([one.sizes[axis] for axis in one.axes()])
        kernels.append(KernelReport(_kind(one), names, domain))
    refusals = dict.fromkeys(
        (r.producer.operator.name, r.consumer.operator.name, r.reason)
        for r in grouping.refused
        if grouping.group_of[r.producer] is not grouping.group_of[r.consumer]
    )
    return Report(tuple(kernels), tuple(refusals), edges(grouping) if reasons else None)


def _joined(reports: list[Report]) -> Report:
    kernels = tuple([kernel for report in reports for kernel in report.kernels])
    refusals = tuple(dict.fromkeys(refusal for report in reports for refusal in report.refusals))
    patterns = tuple([one for report in reports for one in report.patterns])
    found = [report.edges for report in reports if report.edges is not None]
    return Report(kernels, refusals, sum(found[1:], found[0]) if found else None, patterns)
