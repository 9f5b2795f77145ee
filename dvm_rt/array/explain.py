"""Seeing inside: what was fused and why not more, the graph and its plan, the instructions of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvm_rt.array.array import Array
from dvm_rt.array.function import Function, planned_for
from dvm_rt.fusion.cost import Cost, costs
from dvm_rt.graph.graph import Graph
from dvm_rt.isa.assembler import disassemble

if TYPE_CHECKING:
    from dvm_rt._native import Tensor
    from dvm_rt.array.session import Planned


def explain(called: Function, *args: object, **kwargs: object) -> str:
    """What the symbols are and what is known of them, on which all the rest is built; the kernels that a call with these
    arguments runs, why each edge of the graph is fused or not (counted), the bytes that this saves, what the kernels cost by a
    model, and the memory that they need beside what comes in and goes out."""
    _, planned, tensors = planned_for(called, args, kwargs)
    lines = _symbols(planned.graph)
    lines += [f"each call checks: {c.left} {c.relation} {c.right} ({c.where})" for c in planned.fused.checks]
    lines += [planned.reasons().text(), *_costs(planned, tensors), *_memory(planned, tensors)]
    if planned.kernels_small:
        lines.append(f"cut smaller {planned.kernels_small} times: the encoder met a limit")
    return "\n".join(lines)


def _costs(planned: Planned, tensors: list[Tensor]) -> list[str]:
    """What the kernels of this call cost by the model, and its launch as a whole."""
    plan = planned.fused.plan
    found = costs(plan, _values(planned, tensors))
    total = Cost(sum(c.flops for c in found), sum(c.bytes for c in found), sum(c.ns for c in found))
    lines = [f"cost of kernel {i}: {cost.text()}" for i, cost in enumerate(found)]
    return [*lines, f"cost of the launch: {len(found)} kernels, {total.text()}"]


def _values(planned: Planned, tensors: list[Tensor]) -> list[int]:
    """The symbols of the plan in this call."""
    shapes = [t.shape for t in (*tensors, *planned.captured)]
    return [shapes[s.parameter][s.dim] for s in planned.fused.plan.symbols]


def _memory(planned: Planned, tensors: list[Tensor]) -> list[str]:
    """The workspace of this call, by slots that values share; what is packed once for the matrix unit."""
    plan = planned.fused.plan
    values = plan.evaluate(_values(planned, tensors))
    slots: dict[int, list[int]] = {}
    for buffer in plan.buffers:
        if buffer.role == "TEMPORARY":
            slots.setdefault(buffer.index, []).append(values[buffer.bytes])
    held, most = sum(map(len, slots.values())), sum(max(s) for s in slots.values())
    lines = [f"workspace: {most} bytes, {held} values in {len(slots)} slots" if slots else "workspace: none"]
    packed = [values[b.bytes] for b in plan.buffers if b.role == "PACKED"]
    return lines + ([f"packed once: {len(packed)} arrays, {sum(packed)} bytes"] if packed else [])


def _symbols(graph: Graph) -> list[str]:
    """What each size is, and the facts that were deduced from the operators."""
    places = sorted(graph.symbol_places().items())
    lines = [f"s{n} = dimension {dim} of argument {p}" + (f" over {d}" if d > 1 else "") for n, (p, dim, d) in places]
    return lines + [f"deduced: s{n} = {value}" for n, value in graph.facts.substitutions.items()]


def dump(called: Function, *args: object, **kwargs: object) -> str:
    """The graph and the plan of a call with these arguments."""
    _, planned, _ = planned_for(called, args, kwargs)
    return f"{planned.graph.dump()}\n\n{planned.fused.plan.dump()}"


def das(called: Function, *args: Array, **kwargs: object) -> str:
    """The program that a call with these arguments runs, as assembler text."""
    of, planned, tensors = planned_for(called, args, kwargs)
    program = of.program_bytes(planned, tensors)
    return disassemble(program) if program else "nothing to run\n"
