"""Graph -> Plan: one plan, one launch, for every shape.

    patterns   attention found, composites apart
    projections  products of the same rows joined
    margins    neighbours on both sides of an array: one copy of it
    segments   cuts that no kernel could span: what repeats is planned once
    control    branches and loops: their parts are planned in the same way, between the kernels that jump
    legalise   composites apart, views affine, copies where they must be
    groups     which operators share a kernel
    kernels    groups written into the plan, workspace shared out

The same graph always gives the same plan. What a segment becomes is kept for the next one with the same key, in whatever graph: a
network of known parts is planned without fusing anything. With fused=False every operator is a kernel of its own: the
results are the same, bit for bit, which tests hold against the fused plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dvm_rt.fusion.control import write_control
from dvm_rt.errors import GraphError
from dvm_rt.fusion.groups import NODES_MAX, Group, Grouping, group, host_node, plain_copy
from dvm_rt.fusion.kernels import KernelWriter, PlanWriter, SegmentKernels, WrittenKernels, run_order
from dvm_rt.fusion.legalise import legalise
from dvm_rt.fusion.margins import widened
from dvm_rt.fusion.patterns import Found, rewritten
from dvm_rt.fusion.plan import Plan
from dvm_rt.fusion.projections import joined
from dvm_rt.fusion.reasons import Edges, edges, edges_across
from dvm_rt.fusion.segments import Segment, segments
from dvm_rt.graph.graph import Graph
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Check, Size, substitute


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
class Written:
    """The kernels of all segments of a key, and why they are so. `learns`: taking composites apart has shown more of the sizes
    than the graph knew."""

    kernels: WrittenKernels
    report: Report
    learns: bool


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A segment of a plan: `report` is about its names."""

    segment: Segment
    report: Report
    fused: bool
    reasons: bool

    def named(self) -> list[Report]:
        """Why it is so, over the symbols of the graph."""
        meant = self.segment.names.meant()
        section = self.segment.section if self.fused else ""
        kernels = [replace(k, domain=tuple([substitute(n, meant) for n in k.domain]), section=section)
                   for k in self.report.kernels]
        edges = self.report.edges
        if edges is not None:
            edges = replace(edges, saved={key: substitute(size, meant) for key, size in edges.saved.items()})
        across = Report((), tuple(self.segment.refusals()), edges_across(self.segment) if self.reasons else None)
        return [across, replace(self.report, kernels=tuple(kernels), edges=edges)]


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """A plan, what it checks of the sizes of a call beyond that they fit the parameters, and why it is so."""

    plan: Plan
    checks: tuple[Check, ...]
    parts: tuple[Report | Placed, ...]

    @property
    def report(self) -> Report:
        """Put together for those who look."""
        return _joined([one for part in self.parts for one in (part.named() if isinstance(part, Placed) else [part])])


SEGMENTS_KNOWN_MAX = 512
_known: dict[tuple, Written] = {}  # by key; whatever was planned before does not change what a plan is


def forget_segments() -> None:
    """The next plans fuse everything anew."""
    _known.clear()


def fuse(graph: Graph, fused: bool = True, nodes_max: int = NODES_MAX, reasons: bool = False) -> Fused:
    """The plan of a graph; with `reasons` the report knows every edge. Raises UnsupportedOperatorError, GraphError (too large for
    one plan)."""
    graph, patterns = rewritten(graph)
    graph, projections = joined(graph)
    graph, margins = widened(graph) if fused else (graph, ())
    known = len(graph.facts.substitutions)
    plan, parts = PlanWriter(graph), []
    plan.add_parameters()
    plan.add_outputs()

    def write(plan: PlanWriter, patterns: tuple[Found, ...]) -> None:
        """The kernels of a graph, or of a part of one."""
        parts.append(Report((), (), patterns=patterns))
        for segment in segments(plan.graph, cut=fused):
            if segment.control():
                write_control(plan, segment, write_part)
                continue
            written = _written(plan, segment, fused, nodes_max, reasons)
            if written.learns:
                legalise(segment.as_it_is(), _may_pack(plan, segment), fused)
            plan.place(written.kernels, segment)
            parts.append(Placed(segment, written.report, fused, reasons))
            if segment.section and fused and len(written.kernels.kernels) != 1:
                torn.append((segment, plan))

    def write_part(around: PlanWriter, graph: Graph, inputs: list[int], outputs: list[int]) -> None:
        graph, found = rewritten(graph)
        graph, margins = widened(graph) if fused else (graph, ())
        write(around.part(graph, inputs, outputs), found + margins)

    torn: list[tuple[Segment, PlanWriter]] = []
    write(plan, patterns + projections + margins)
    if len(graph.facts.substitutions) > known:
        return fuse(Graph.of(graph.parameters, graph.outputs, graph.facts), fused, nodes_max, reasons)
    for segment, around in torn:
        raise _no_single_kernel(segment.section, _written(around, segment, fused, nodes_max, reasons=True).report)
    plan.builder.share_workspace()
    return Fused(plan.builder.build(), tuple(graph.facts.resolved_checks()), tuple(parts))


def _written(plan: PlanWriter, segment: Segment, fused: bool, nodes_max: int, reasons: bool) -> Written:
    """The kernels of a segment: those of an equal one, if there was one before."""
    key = _key(plan, segment, fused, nodes_max, reasons)
    found = _known.get(key)
    if found is None:
        if len(_known) >= SEGMENTS_KNOWN_MAX:
            _known.clear()
        found = _known[key] = _write(segment, key[1], key[2], fused, nodes_max, reasons)
    return found


def _key(plan: PlanWriter, segment: Segment, *options: object) -> tuple:
    """All that the kernels of a segment depend on; the second of it is which of its reads may be packed, the third
    which of what it gives begins an argument of the program."""
    return segment.key(), _may_pack(plan, segment), segment.own_memory(plan.is_output), *options


def _may_pack(plan: PlanWriter, segment: Segment) -> tuple[bool, ...]:
    return segment.may_pack(lambda node: plan.given_as(node) is not None)


def _write(
    segment: Segment, given: tuple[bool, ...], own_memory: tuple[bool, ...], fused: bool, nodes_max: int, reasons: bool
) -> Written:
    legal = legalise(segment.graph(), given, fused)
    grouping = group(legal, fused, nodes_max, own_memory)
    order = run_order(grouping)
    kernels = SegmentKernels(legal)
    for one in order:
        KernelWriter(kernels, grouping, one).write()
    return Written(kernels.done(), _report(grouping, order, reasons), bool(legal.graph.facts.substitutions))


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
