"""Seeing inside: what was fused and why not more, the graph and its plan, the instructions of a program."""

from __future__ import annotations

from dvm_rt.array.array import Array
from dvm_rt.array.function import Function, planned_for
from dvm_rt.isa.assembler import disassemble


def explain(called: Function, *args: object, **kwargs: object) -> str:
    """The kernels that a call with these arguments runs, and for each edge between two kernels why it stayed."""
    _, planned, _ = planned_for(called, args, kwargs)
    lines = [planned.fused.report.text()]
    lines += [f"each call checks: {c.left} {c.relation} {c.right} ({c.where})" for c in planned.fused.checks]
    if planned.kernels_small:
        lines.append(f"cut smaller {planned.kernels_small} times: the encoder met a limit")
    return "\n".join(lines)


def dump(called: Function, *args: object, **kwargs: object) -> str:
    """The graph and the plan of a call with these arguments."""
    _, planned, _ = planned_for(called, args, kwargs)
    return f"{planned.graph.dump()}\n\n{planned.fused.plan.dump()}"


def das(called: Function, *args: Array, **kwargs: object) -> str:
    """The program that a call with these arguments runs, as assembler text."""
    of, planned, tensors = planned_for(called, args, kwargs)
    program = of.program_bytes(planned, tensors)
    return disassemble(program) if program else "nothing to run\n"
