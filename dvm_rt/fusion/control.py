"""Branches and loops in a plan: the kernels of their parts, between kernels that jump.

    cond          BRANCH over the first part; it; JUMP over the second one; it. Both write the results.
    while_loop    the state is copied to memory of the loop; BRANCH over the rest; the step, which makes a new state beside the
                  old one, and the flag; the new state is copied over the old one; LOOP
    repeat        the same without flags
    put_row       the array is copied; the row is copied to its place
    append        the array is copied, the rows are copied behind it. If it is a parameter and the result an output, the output
                  continues the parameter: where they share memory the first copy does nothing


Where the step no longer reads the old state when it writes the new one, it writes it into the place of the old one; a copy
of the old state to there is none then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from dvm_rt.dtypes import DType, bool_
from dvm_rt.fusion.groups import SAME_REDUCTIONS_MAX
from dvm_rt.fusion.kernels import PlanWriter
from dvm_rt.fusion.plan import GATHER, NONE, READ, WRITE, Kernel, KernelBuilder
from dvm_rt.fusion.segments import Segment
from dvm_rt.graph.control import graph_of, unchanged
from dvm_rt.graph.graph import Graph, Node

WritePart = Callable[[PlanWriter, Graph, list[int], list[int]], None]  # writer around it, part, buffers it reads, and writes


def write_control(plan: PlanWriter, segment: Segment, write_part: WritePart) -> None:
    """The kernels of a branch or a loop behind those that are there."""
    node = segment.control()[0]
    operands = [plan.buffer_of(n) for n in node.inputs]
    results: dict[int, list[int]] = {}  # by number of the result, the buffers that it is to be in
    for one, output in segment.gives:
        buffer = plan.temporary(one) if output is None else plan.outputs[output]
        plan.buffers.setdefault(one, buffer)
        results.setdefault(one.attribute("index"), []).append(buffer)
    if node.operator.name == "cond":
        _write_cond(plan, node, operands, results, write_part)
    elif node.operator.name == "put_row":
        _write_put(plan, node, operands, results[0][0])
    elif node.operator.name == "append":
        _write_append(plan, node, operands, results[0][0])
    else:
        _write_loop(plan, node, operands, results, write_part)
    nodes = {n.attribute("index"): n for n, _ in segment.gives}
    for index, (first, *others) in results.items():
        for buffer in others:
            _copy(plan, nodes[index], first, buffer)


def _write_cond(plan: PlanWriter, node: Node, operands: list[int], results: dict[int, list[int]], write_part: WritePart) -> None:
    true, false, _ = node.attributes
    wanted = sorted(results)
    outputs = [results[k][0] for k in wanted]
    build, (flag, *rest) = plan.builder, operands
    skip = _control(plan, "BRANCH", flag)
    first = build.kernel_count
    write_part(plan, graph_of(true, plan.graph.facts, wanted), rest, outputs)
    over = _control(plan, "JUMP")
    skip.depth = build.const(build.kernel_count - first)
    first = build.kernel_count
    write_part(plan, graph_of(false, plan.graph.facts, wanted), rest, outputs)
    over.depth = build.const(build.kernel_count - first)


def _write_put(plan: PlanWriter, node: Node, operands: list[int], result: int) -> None:
    build, (x, number, row) = plan.builder, operands
    _copy(plan, node, x, result)
    one, size = build.const(1), build.mul(*[plan.expression(n) for n in node.shape[1:]])
    kernel = build.kernel("COPY", [size])
    _whole(kernel, row, READ, node.dtype, one)
    kernel.arg(result, WRITE | GATHER, node.dtype, [one], index=2, limit=plan.expression(node.shape[0]), depth=size)
    kernel.arg(number, READ, node.inputs[1].dtype, [NONE])


def _write_append(plan: PlanWriter, node: Node, operands: list[int], result: int) -> None:
    build, one = plan.builder, plan.builder.const(1)
    behind = NONE
    for part, source in zip(node.inputs, operands, strict=True):
        size = build.mul(*[plan.expression(n) for n in part.shape])
        kernel = build.kernel("COPY", [size])
        _whole(kernel, source, READ, node.dtype, one)
        kernel.arg(result, WRITE, node.dtype, [one], behind)
        behind = size
    parameter = build.parameter_of(operands[0])
    if parameter is not None:
        build.continue_in(result, parameter)


def _write_loop(plan: PlanWriter, node: Node, operands: list[int], results: dict[int, list[int]], write_part: WritePart) -> None:
    step, limit, _ = node.attributes
    build, facts = plan.builder, plan.graph.facts
    flags = int(node.operator.name == "while_loop")
    rest = operands[flags:]
    count = len(step.outputs) - flags
    nodes, state = node.inputs[flags : flags + count], list(rest)
    changing = [k for k in range(count) if not unchanged(step, k)]
    for k in range(count):
        if k in results:
            state[k] = results[k][0]
        elif k in changing:
            state[k] = plan.temporary(nodes[k])
        if state[k] != rest[k]:
            _copy(plan, nodes[k], rest[k], state[k])
    again = [build.temporary(bool_, (), 0)] * flags
    skip = _control(plan, "BRANCH", operands[0]) if flags else None
    first = build.kernel_count
    new = {k: plan.temporary(nodes[k]) for k in changing}
    write_part(plan, graph_of(step, facts, [*changing, count][: len(changing) + flags]), state, [*new.values(), *again])
    for k in changing:
        _write_late(plan, first, new[k])
    for k in [k for k in changing if not _in_place(plan, first, state[k], new[k])]:
        _copy(plan, nodes[k], new[k], state[k])
    loop = _control(plan, "LOOP", again[0] if flags else None, plan.expression(limit))
    loop.depth = build.const(build.kernel_count - 1 - first)
    if skip is not None:
        skip.depth = build.const(build.kernel_count - first)


def _in_place(plan: PlanWriter, first: int, old: int, new: int) -> bool:
    """Lets the step write the new state over the old one, if nothing reads that later, or elsewhere in the same kernel."""
    reads, writes = [], []
    for number, kernel, arg in plan.builder.accesses(first):
        if arg.buffer == old:
            reads.append((number, kernel, arg))
        if arg.buffer == new and arg.mode & WRITE:
            writes.append((number, kernel, arg))
    begin, _, target = writes[0]
    if any(start <= begin <= end for start, end in plan.builder.loops(first)):
        return False
    copies = False
    for number, kernel, arg in reads:
        if number < begin:
            continue
        same = arg.strides == target.strides and arg.offset == target.offset and not arg.mode & GATHER
        copies = kernel.kind == "COPY"
        if number > begin or not same:
            return False
        if not copies and not (kernel.kind == "VECTOR" and _stored_last(kernel, kernel.args.index(target), old)):
            return False
    plan.builder.rename(first, new, old)
    if copies:  # onto itself
        plan.builder.empty(begin)
    return True


def _write_late(plan: PlanWriter, first: int, new: int) -> None:
    """Moves the kernel that writes a new state behind those that still read the old one, if nothing needs it before."""
    build = plan.builder
    accesses = list(build.accesses(first))
    writers = {number for number, _, arg in accesses if arg.buffer == new and arg.mode & WRITE}
    begin = min(writers)
    if len(writers) > 1 or any(start <= begin <= end for start, end in (*build.loops(first), *build.skipped(first))):
        return
    made = {arg.buffer for number, _, arg in accesses if number == begin and arg.mode & WRITE}
    read = {arg.buffer for number, _, arg in accesses if number == begin and arg.mode & READ}
    later = [arg for number, _, arg in accesses if number > begin]
    if all(arg.buffer not in made and not (arg.mode & WRITE and arg.buffer in read) for arg in later):
        build.to_the_end(begin)


REDUCTIONS = ("NODE_SUM", "NODE_MAX", "NODE_MIN", "NODE_PROD")


def _stored_last(kernel: Kernel | KernelBuilder, target: int, old: int) -> bool:
    """Whether nothing of a row is read from the old state when the kernel has stored the new one there: it goes over the row
    once, since no value of it needs one of its totals, and stores in the order of its nodes, behind the totals."""
    after_total: set[int] = set()  # values that need a total
    from_old: set[int] = set()  # values that need the old state, other than by a total
    reached, count = False, Counter[str]()
    for number, node in enumerate(kernel.nodes):
        if node.op == "NODE_INPUT" and kernel.args[node.a].buffer == old:
            from_old.add(number)
        elif node.op == "NODE_OUTPUT":
            per_row = all(s == NONE for s in kernel.args[node.b].strides[:1])
            if (not per_row and node.a in after_total) or (reached and node.a in from_old):
                return False
            reached = reached or node.b == target
        elif node.op in REDUCTIONS:
            count[node.op] += 1
            if node.a in after_total or reached:
                return False
            after_total.add(number)
        elif node.op not in ("NODE_INPUT", "NODE_CONST", "NODE_SIZE"):
            for found in (after_total, from_old):
                if node.a in found or node.b in found:
                    found.add(number)
    return max(count.values(), default=0) <= SAME_REDUCTIONS_MAX


def _control(plan: PlanWriter, kind: str, flag: int | None = None, limit: int | None = None) -> KernelBuilder:
    one = plan.builder.const(1)
    kernel = plan.builder.kernel(kind, [one if limit is None else limit], plan.builder.const(0))
    if flag is not None:
        kernel.arg(flag, READ, bool_, [NONE])
    return kernel


def _copy(plan: PlanWriter, node: Node, source: int, target: int) -> None:
    """A value of the shape of this node from one buffer to another."""
    build, dtype = plan.builder, node.dtype
    kernel = build.kernel("COPY", [build.mul(*[plan.expression(n) for n in node.shape])])
    _whole(kernel, source, READ, dtype, build.const(1))
    _whole(kernel, target, WRITE, dtype, build.const(1))


def _whole(kernel: KernelBuilder, buffer: int, mode: int, dtype: DType, stride: int) -> None:
    kernel.arg(buffer, mode, dtype, [stride])
