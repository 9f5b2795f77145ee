"""Writes groups into a plan: dimensions, arguments, nodes.

Kernels are written once for all segments of the same structure (`SegmentKernels`, whose buffers and sizes have numbers of
their own), and then placed in the plan for each of them (`PlanWriter`).
Each group becomes one kernel of the plan. Its domain's axes are the kernel's dims, innermost first: the row axis, then
the others from the inside out (the encoder joins those that lie behind each other). Reads with the same strides are one
argument; a matmul operand that is a parameter of rank 2 becomes a packed buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dvm_rt.dtypes import DType, compute_dtype, float32, rounded
from dvm_rt.fusion.groups import (
    Group,
    Grouping,
    argument_key,
    argument_strides,
    host_node,
    is_grouped,
    is_windows,
    plain_copy,
    running_node,
)
from dvm_rt.fusion.legalise import NUMBERS, Legal
from dvm_rt.fusion.plan import (
    GATHER, MAX_RANK, NONE, PACKED, READ, WINDOWS, WRITE, Arg, Expression, Kernel, KernelBuilder, PlanBuilder,
)  # fmt: skip
from dvm_rt.fusion.segments import Segment
from dvm_rt.fusion.views import ZERO, Access, Placement, axes_of, is_one, source
from dvm_rt.fusion.words import NARROW, is_closed, member_words, without_idle_narrowing
from dvm_rt.graph.graph import Graph, Node
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Check, Dim, Size, maximum, minimum, same
from dvm_rt.isa import table
from dvm_rt.isa.host import BY_NAME as HOST
from dvm_rt.isa.layout import enum_value


GROUPS = 1 << 30  # the axis of a product of rows in groups: no axis of its domain


@dataclass(slots=True, eq=False)
class Argument:
    """One operand of a kernel before its axes are settled; strides by axis of the group's domain, in elements."""

    buffer: int
    node: Node
    mode: int
    offset: Size
    strides: dict[int, Size]
    depth: Size | None = None
    index: int | None = None
    limit: Size | None = None
    of_windows: tuple[Size, ...] = ()  # steps of a column and a row of the kernel, and of a row of places


@dataclass(slots=True, eq=False)
class Sizes:
    """The numbers of sizes as expressions of a builder; `symbol` gives that of a symbol."""

    builder: PlanBuilder
    symbol: Callable[[int], int]
    numbers: dict[object, int] = field(default_factory=dict)

    def expression(self, size: Size) -> int:
        """The number of a size."""
        key = size.key if size.__class__ is Dim else size
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = self._made(size)
        return number

    def _made(self, size: Size) -> int:
        build = self.builder
        if not isinstance(size, Dim):
            return build.const(size)
        total = build.const(0)
        for monomial, coefficient in size.key:
            total = build.add(total, build.mul(build.const(coefficient), *(self._atom(atom) for atom in monomial)))
        return total

    def _atom(self, atom: object) -> int:
        if isinstance(atom, int):
            return self.symbol(atom)
        operation, a, b = atom
        return self.builder.binary(operation.upper(), *(self.expression(key if isinstance(key, int) else Dim(key))
                                                        for key in (a, b)))


@dataclass(slots=True, eq=False)
class PlanWriter:
    """A plan under construction: expressions by size, buffers by node of the whole graph. The part of a branch or a loop has one
    of its own, with the same builder: `inputs` are the buffers of its parameters then."""

    graph: Graph
    builder: PlanBuilder = field(default_factory=PlanBuilder)
    buffers: dict[Node, int] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)
    places: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    inputs: list[int] | None = None
    sizes: Sizes | None = None
    _placed: dict[tuple, tuple[dict[int, int],
                               list[Kernel]]] = field(default_factory=dict)  # sizes and kernels in the plan's numbers

    def __post_init__(self) -> None:
        if self.sizes is None:
            self.sizes = Sizes(self.builder, self._symbol)

    def part(self, graph: Graph, inputs: list[int], outputs: list[int]) -> PlanWriter:
        """The writer of a part, which reads and writes these buffers."""
        return PlanWriter(graph, self.builder, outputs=outputs, places=self.places, inputs=inputs, sizes=self.sizes,
                          _placed=self._placed)

    def expression(self, size: Size) -> int:
        """The number of a size in the plan."""
        return self.sizes.expression(size)

    def _symbol(self, number: int) -> int:
        parameter, dim, divisor = self.places[number]
        return self.builder.floordiv(self.builder.symbol(parameter, dim), self.builder.const(divisor))

    def buffer_of(self, node: Node) -> int:
        """Where a parameter, or a value of an earlier segment, lies."""
        if node.operator.name != "parameter":
            return self.buffers[node]
        index = node.attribute("index")
        return self.builder.input(index) if self.inputs is None else self.inputs[index]

    def given_as(self, node: Node) -> int | None:
        """The number of the parameter of the whole plan that a value is, or None."""
        if node.operator.name != "parameter":
            return None
        return node.attribute("index") if self.inputs is None else self.builder.parameter_of(self.buffer_of(node))

    def is_output(self, number: int) -> bool:
        """Whether an output of the graph is one of the whole plan: that of a part may be memory between two kernels."""
        return self.builder.is_output(self.outputs[number])

    def add_parameters(self) -> None:
        """Declares the graph's parameters in order.

        A call whose sizes break a check must not fit: the check is added to a size that is compared anyway, as
        max(0, what is missing)."""
        self.places = self.graph.symbol_places()
        checks = list(self.graph.facts.resolved_checks())
        for node in self.graph.parameters:
            sizes = list(node.shape)
            if checks and any(isinstance(n, Dim) for n in sizes):
                at = next(i for i, n in enumerate(sizes) if isinstance(n, Dim))
                sizes[at] = sizes[at] + sum((_missing(check) for check in checks), start=0)
                checks = []
            self.builder.parameter(node.dtype, [self.expression(n) for n in sizes])

    def add_outputs(self) -> None:
        """Declares the graph's outputs in order."""
        for node in self.graph.outputs:
            self.outputs.append(self.builder.output(node.dtype, [self.expression(n) for n in node.shape]))

    def place(self, written: WrittenKernels, segment: Segment) -> None:
        """The kernels of a segment behind those that are there."""
        key = (written, *segment.names.symbols)
        placed = self._placed.get(key)
        if placed is None:
            sizes = self._numbers(written.expressions, segment.names.meant())
            placed = self._placed[key] = sizes, [sized(kernel, sizes) for kernel in written.kernels]
        sizes, kernels = placed
        reads = list(segment.reads)
        buffers = [self._buffer(row, reads, segment, sizes) for row in written.buffers]
        for kernel in kernels:
            self.builder.copy_of(kernel, buffers)

    def _numbers(self, expressions: tuple[Expression, ...], meant: dict[int, Size]) -> dict[int, int]:
        """The plan's number of each expression over the names of a segment."""
        build, numbers = self.builder, {NONE: NONE}
        for i, (op, a, b, k) in enumerate(expressions):
            if op == "CONST":
                numbers[i] = build.const(k)
            elif op == "SYMBOL":
                numbers[i] = self.expression(meant[k])
            else:
                numbers[i] = build.binary(op, numbers[a], numbers[b])
        return numbers

    def _buffer(self, row: tuple, reads: list[Node], segment: Segment, sizes: dict[int, int]) -> int:
        role, *rest = row
        if role == "gives":
            node, output = segment.gives[rest[0]]
            number = self.temporary(node) if output is None else self.outputs[output]
            self.buffers.setdefault(node, number)
            return number
        if role == "temporary":
            dtype, dims = rest
            return self.builder.temporary(dtype, [sizes[d] for d in dims], 0)
        if role == "packed":
            return self.builder.beside([(self.given_as(reads[read]), *[sizes[n] for n in part]) for read, *part in rest])
        node = reads[rest[0]]
        return self.buffer_of(node)

    def temporary(self, node: Node) -> int:
        """Memory for a value between two segments."""
        return self.builder.temporary(node.dtype, [self.expression(n) for n in node.shape], 0)


def sized(kernel: Kernel, sizes: dict[int, int]) -> Kernel:
    """A kernel with other numbers for its sizes."""
    args = tuple([
        Arg(buffer, mode, dtype, tuple([sizes[s] for s in strides]), sizes[offset], index, sizes[limit], sizes[depth])
        for buffer, mode, dtype, strides, offset, index, limit, depth in kernel.args
    ])  # fmt: skip
    nodes = kernel.nodes
    if any(node.op == "NODE_SIZE" for node in nodes):
        nodes = tuple([node._replace(a=sizes[node.a]) if node.op == "NODE_SIZE" else node for node in nodes])
    dims = tuple([sizes[d] for d in kernel.dims])
    return Kernel(kernel.kind, kernel.dtype, dims, args, nodes, sizes[kernel.depth], kernel.flags)


@dataclass(frozen=True, slots=True, eq=False)
class WrittenKernels:
    """What `SegmentKernels` has collected: it depends on no plan, and serves every segment of the same key."""

    kernels: tuple[Kernel, ...]
    buffers: tuple[tuple, ...]
    expressions: tuple[Expression, ...]


@dataclass(slots=True, eq=False)
class SegmentKernels:
    """The kernels of a segment, in order, over buffers of its own: ("reads", i), ("gives", i), ("temporary", dtype, dims) and
    ("packed", (read, ...), ...), and sizes of its own, over the segment's names."""

    legal: Legal
    buffers: list[tuple] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    sizes: Sizes = field(init=False)
    _numbers: dict[object, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        build = PlanBuilder()
        self.sizes = Sizes(build, lambda name: build.expression("SYMBOL", k=name))

    def done(self) -> WrittenKernels:
        """What was written."""
        return WrittenKernels(tuple(self.kernels), tuple(self.buffers), self.sizes.builder.expressions)

    def expression(self, size: Size) -> int:
        """The number of a size in these kernels."""
        return self.sizes.expression(size)

    def buffer(self, root: Node) -> int:
        """The buffer of a parameter, output, join or temporary; none for what counts instead of lying anywhere."""
        if root.operator.name == "iota":
            return NONE
        if root.operator.name == "beside":  # biases
            return self.packed(root, (1, root.shape[0]), (root.shape[0], 1), 0)
        number = self._numbers.get(root)
        if number is None:
            number = self._numbers[root] = len(self.buffers)
            if root.operator.name == "parameter":
                self.buffers.append(("reads", root.attribute("index")))
            elif root in self.legal.graph.outputs:
                self.buffers.append(("gives", self.legal.graph.outputs.index(root)))
            else:
                self.buffers.append(("temporary", root.dtype, tuple([self.expression(n) for n in root.shape])))
        return number

    def packed(self, root: Node, shape: tuple[Size, Size], strides: tuple[Size, Size], offset: Size) -> int:
        """The buffer of a parameter that is packed for the matrix unit as (K, N), or of several beside each other."""
        start = NONE if same(offset, 0) else self.expression(offset)
        if root.operator.name == "beside":
            parts = []
            for part in root.inputs:  # its own size along N, and the strides that it has itself
                last = len(part.shape) == 1 or root.attribute("axis") == 1
                n = part.shape[-1 if last else 0]
                own = (n, 1) if last else (1, part.shape[1])
                sizes = (shape[0], n, *own)
                parts.append((part.attribute("index"), *[self.expression(size) for size in sizes], start))
        else:
            parts = [(root.attribute("index"), *[self.expression(size) for size in (*shape, *strides)], start)]
        return self._packed(parts)

    def packed_experts(self, access: Access, shape: tuple[int, int, int]) -> int:
        """The buffer of the packed forms of a parameter's matrices, one behind the other."""
        (groups, *sizes), (step, *strides) = shape, access.strides
        parts = []
        for group in range(groups):
            at = access.offset + group * step
            start = self.expression(at) if at else NONE
            parts.append((access.root.attribute("index"), *[self.expression(size) for size in (*sizes, *strides)], start))
        return self._packed(parts)

    def _packed(self, parts: list[tuple[int, ...]]) -> int:
        row = ("packed", *parts)
        number = self._numbers.setdefault(row, len(self.buffers))
        if number == len(self.buffers):
            self.buffers.append(row)
        return number


def _missing(check: Check) -> Size:
    """0 where the check holds, else more."""
    missing = maximum(check.right - check.left, 0)
    return missing + maximum(check.left - check.right, 0) if check.relation == "==" else missing


def run_order(grouping: Grouping) -> list[Group]:
    """The groups, each after what it reads."""
    order: list[Group] = []
    done: set[int] = set()

    def visit(group: Group) -> None:
        stack = [(group, iter(_producers(grouping, group)))]
        done.add(id(group))
        while stack:
            current, rest = stack[-1]
            following = next((g for g in rest if id(g) not in done), None)
            if following is None:
                order.append(current)
                stack.pop()
            else:
                done.add(id(following))
                stack.append((following, iter(_producers(grouping, following))))

    for node in grouping.legal.graph.nodes:
        owner = grouping.group_of.get(node)
        if owner is not None and id(owner) not in done:
            visit(owner)
    return order


def _producers(grouping: Grouping, group: Group) -> list[Group]:
    found: list[Group] = []
    stack = [source(operand)[0] for member in group.placed for operand in member.inputs]
    while stack:
        root = stack.pop()
        if root.operator.lowering is Lowering.JOIN:
            stack += [source(part)[0] for part in root.inputs]
        elif (owner := grouping.group_of.get(root)) is not None and owner is not group:
            found.append(owner)
    return found


# ---- a host function ----------------------------------------------------------------------------------------------


def write_running(plan: SegmentKernels, node: Node) -> None:
    """Running totals along an axis, which is the row; the first of them made apart where nothing leads."""
    axis, prod, reverse, lead = node.attributes
    express, size = plan.expression, node.inputs[0].shape[axis]
    outer = [i for i in reversed(range(len(node.shape))) if i != axis]
    x, y = plan.legal.access[node.inputs[0]], plan.legal.home[node]

    def kernel(count: Size, *arguments: tuple[Access, Size, int]) -> KernelBuilder:
        """Over `count` elements of the row; each argument begins at its element `start` along the axis, seen from its
        first or last."""
        built = KernelBuilder("VECTOR", compute_dtype(node.dtype),
                              tuple([express(n) for n in (count, *[node.shape[i] for i in outer])]), NONE, 0)
        for access, start, mode in arguments:
            step = access.strides[axis]
            at = access.offset + (access.shape[axis] - 1 - start if reverse else start) * step
            strides = [express(s) for s in (-step if reverse else step, *[access.strides[i] for i in outer])]
            built.arg(plan.buffer(access.root), mode, access.root.dtype, strides, NONE if same(at, 0) else express(at))
        return built

    lead = min(lead, 1)
    if lead:
        first = kernel(minimum(node.shape[axis], 1), (y, 0, WRITE))
        first.output(first.const(int(prod)), 0)
        plan.kernels.append(first.build())
    rest = kernel(maximum(node.shape[axis] - 1, 0) if lead else size, (x, 0, READ), (y, lead, WRITE))
    rest.output(rest.unary("run_prod" if prod else "run_sum", rest.input(0)), 1)
    plan.kernels.append(rest.build())


def write_host(plan: SegmentKernels, node: Node) -> None:
    """A kernel that is one host function: its attributes are the kernel's dims, sizes of operands their strides."""
    count = len(HOST[node.operator.instructions].attributes)
    attributes = [plan.expression(int(a) if isinstance(a, bool) else a) for a in node.attributes[:count]]
    number = enum_value("HostFunction", node.operator.instructions) + 1
    kernel = KernelBuilder("HOST", float32, tuple(attributes), plan.expression(number), 0)
    for access, mode in [(plan.legal.access[i], READ) for i in node.inputs] + [(plan.legal.home[node], WRITE)]:
        sizes = [plan.expression(n) for n in reversed(access.shape)]
        offset = NONE if same(access.offset, 0) else plan.expression(access.offset)
        kernel.arg(plan.buffer(access.root), mode, access.root.dtype, sizes, offset, depth=plan.expression(len(sizes)))
    plan.kernels.append(kernel.build())


# ---- one kernel ---------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class KernelWriter:
    """Writes one group."""

    plan: SegmentKernels
    grouping: Grouping
    group: Group
    arguments: list[Argument] = field(default_factory=list)
    numbers: dict[tuple, int] = field(default_factory=dict)
    nodes: dict[object, int] = field(default_factory=dict)
    kernel: KernelBuilder | None = None
    compute: DType = float32

    def write(self) -> None:
        """Adds the kernel to the plan."""
        if (host := host_node(self.group)) is not None:
            return write_host(self.plan, host)
        if (running := running_node(self.group)) is not None:
            return write_running(self.plan, running)
        if (copied := plain_copy(self.group)) is not None:
            return self._write_copy(copied)
        group, product_node = self.group, self.group.product
        if product_node is not None and product_node.operator.lowering is Lowering.ATTENTION:
            self._attention(product_node)
            return
        members = sorted(group.placed, key=self.grouping.number.__getitem__)
        stored = [n for n in members if self.grouping.is_stored(n)]
        if product_node is not None:
            (self._grouped_arguments if is_grouped(product_node) else self._product_arguments)(product_node, stored[0])
        for member in members:
            for number in range(len(member.inputs)):
                self._read(member, number)
        homes = {stored[0]: 2} if product_node is not None else {n: self._home(n) for n in stored}
        self._open(product_node)
        if members != [product_node]:
            for member in members:
                self.nodes[member] = self._node(member)
            for argument, node in {argument: node for node, argument in homes.items()}.items():  # several in one place are empty
                self.kernel.output(self.nodes[node], argument)
            self.kernel.nodes = without_idle_narrowing(self.kernel.nodes, [a.dtype for a in self.kernel.args])
        self.plan.kernels.append(self.kernel.build())

    def _write_copy(self, node: Node) -> None:
        """A kernel that is one copy: memory to memory, in any dtype."""
        self._read(node, 0)
        self._home(node)
        self._open(None, "COPY")
        self.plan.kernels.append(self.kernel.build())

    def _open(self, product_node: Node | None, kind: str = "VECTOR") -> None:
        plan, axes, sizes = self.plan, list(reversed(self.group.axes())), dict(self.group.sizes)
        if product_node is not None:
            axes = self._matmul_axes(product_node, sizes)
        depth = NONE if product_node is None else plan.expression(product_node.inputs[0].shape[-1])
        dims = tuple([plan.expression(sizes[a]) for a in axes] or [plan.expression(1)])
        if kind == "VECTOR":  # a copy computes nothing
            self.compute = self.group.compute() if product_node is None else product_node.dtype
        self.kernel = KernelBuilder(kind if product_node is None else "MATMUL", self.compute, dims, depth, 0)
        for a in self.arguments:
            strides = [self._number(a.strides.get(axis, 0)) for axis in axes] or [NONE]
            if a.of_windows:
                strides += [NONE] * (MAX_RANK - len(a.of_windows) - len(strides)) + [self._number(s) for s in a.of_windows]
            index = NONE if a.index is None else a.index
            self.kernel.arg(
                a.buffer, a.mode, a.node.dtype, strides, self._number(a.offset), index,
                NONE if a.limit is None else plan.expression(a.limit), NONE if a.depth is None else plan.expression(a.depth),
            )  # fmt: skip

    def _number(self, size: Size) -> int:
        return NONE if same(size, 0) else self.plan.expression(size)

    def _attention(self, node: Node) -> None:
        """An attention: dims are keys, queries, then the batch from the inside out."""
        legal, at, express = self.plan.legal, self.group.placed[node], self.plan.expression
        q, k, v, *masks = node.inputs
        scale, causal, masked, empty = node.attributes
        keys, queries, width = k.shape[-2], q.shape[-2], q.shape[-1]
        batch = [(axis_of[0][0], i) for i, axis_of in enumerate(p.terms for p in at[:-2]) if axis_of]
        dims = [express(keys), express(queries)] + [express(self.group.sizes[axis]) for axis, _ in reversed(batch)]
        self.kernel = KernelBuilder("ATTENTION", float32, tuple(dims), express(width), 0)

        def argument(operand: Node, access: Access, mode: int, of_keys: Size, of_queries: Size, **rest: int) -> None:
            lead = len(node.shape) - len(operand.shape)
            outer = [
                0 if i < lead or is_one(operand.shape[i - lead]) else access.strides[i - lead] for _, i in reversed(batch)
            ]
            strides = [self._number(size) for size in (of_keys, of_queries, *outer)]
            buffer = self.plan.buffer(access.root)
            self.kernel.arg(buffer, mode, operand.dtype, strides, self._number(access.offset), **rest)

        seen = keys - queries + 1 if causal else keys
        place = {operand: legal.access[operand] for operand in node.inputs}
        argument(q, place[q], READ, 0, place[q].strides[-2], depth=express(place[q].strides[-1]), limit=express(seen))
        for operand, limit in ((k, NONE), (v, express(v.shape[-1]))):
            access = place[operand]
            argument(operand, access, READ, access.strides[-2], 0, depth=express(access.strides[-1]), limit=limit)
        home = legal.home[node]
        argument(node, home, WRITE, 0, home.strides[-2], depth=express(home.strides[-1]))
        for mask in masks:
            access = place[mask]
            steps = [0 if is_one(n) else s for n, s in zip(mask.shape, access.strides, strict=True)]
            argument(mask, access, READ, steps[-1] if steps else 0, steps[-2] if len(steps) > 1 else 0)
        if scale is None:
            self.kernel.size(express(width))
        else:
            self.kernel.const(scale)
        self.kernel.const(masked)
        self.kernel.const(empty)
        self.plan.kernels.append(self.kernel.build())

    # -- arguments --

    def _read(self, member: Node, number: int) -> None:
        operand = member.inputs[number]
        access = self.plan.legal.access[operand]
        if access.root.operator.name in NUMBERS or member is self.group.product:
            return
        if member.operator.lowering is Lowering.GATHER:
            if number == 1:
                self._gather(member)
            return
        if self._inside(member, number) is None:
            self._argument_of(access, self.group.needed(member, number), READ, access.root)

    def _home(self, member: Node) -> int:
        return self._argument_of(self.plan.legal.home[member], self.group.placed[member], WRITE, member)

    def _inside(self, member: Node, number: int) -> Node | None:
        """The member that computes this input in this kernel."""
        root, _ = source(member.inputs[number])
        return root if root in self.group.placed else None

    def _argument_of(self, access: Access, placement: Placement, mode: int, node: Node) -> int:
        key = (argument_key(access, placement), mode)
        if key not in self.numbers:
            offset, strides = argument_strides(access, placement)
            self.numbers[key] = len(self.arguments)
            self.arguments.append(Argument(self.plan.buffer(access.root), node, mode, offset, strides))
        return self.numbers[key]

    def _gather(self, member: Node) -> None:
        table_node, index_node = member.inputs
        index = self._argument_of(self.plan.legal.access[index_node], self.group.needed(member, 1), READ, source(index_node)[0])
        access = self.plan.legal.access[table_node]
        offset, strides = argument_strides(access, self.group.needed(member, 0))
        self.numbers[member] = len(self.arguments)
        self.arguments.append(
            Argument(
                self.plan.buffer(access.root), access.root, READ | GATHER, offset, strides, access.strides[0], index,
                table_node.shape[0],
            )
        )  # fmt: skip

    def _product_arguments(self, node: Node, result: Node) -> None:
        """A, B and C."""
        legal, at = self.plan.legal, self.group.placed[node]
        rows, columns = at[-2], at[-1]
        for number, outer in enumerate((rows, columns)):
            operand = node.inputs[number]
            access = legal.access[operand]
            if number == 1 and is_windows(node):
                self.arguments.append(self._windows(operand, access, at))
                continue
            own = tuple(at[len(at) - len(operand.shape) : -2])
            batch = tuple(ZERO if is_one(n) else i for i, n in zip(own, operand.shape[:-2], strict=True))
            free, summed = (-2, -1) if number == 0 else (-1, -2)
            outside = Access(access.root, access.offset, access.strides[:-2] + (access.strides[free],), ())
            offset, strides = argument_strides(outside, (*batch, outer))
            if number == 1 and operand in legal.weights:
                self.arguments.append(self._packed(operand, access))
                continue
            self.arguments.append(
                Argument(self.plan.buffer(access.root), access.root, READ, offset, strides, access.strides[summed])
            )
        home = legal.home[result]
        offset, strides = argument_strides(home, self.group.placed[result])
        self.arguments.append(Argument(self.plan.buffer(home.root), result, READ | WRITE, offset, strides))

    def _grouped_arguments(self, node: Node, result: Node) -> None:
        """A, B and C of a product of rows in groups, and how many rows each has."""
        legal, (rows, columns), buffer = self.plan.legal, self.group.placed[node], self.plan.buffer
        x, w, numbers = (legal.access[operand] for operand in node.inputs)
        for access, outer, along, groups, depth, index in (
            (x, rows, x.strides[0], 0, x.strides[1], 3), (w, columns, w.strides[2], w.strides[0], w.strides[1], None),
        ):  # fmt: skip
            if index is None and node.inputs[1] in legal.weights:
                _, k, n = shape = node.inputs[1].shape
                self.arguments.append(Argument(self.plan.packed_experts(access, shape), access.root, READ | PACKED,
                                               0, {GROUPS: k * n}))
                continue
            offset, strides = argument_strides(Access(access.root, access.offset, (along,), ()), (outer,))
            self.arguments.append(Argument(buffer(access.root), access.root, READ, offset,
                                           {**strides, GROUPS: groups}, depth, index))
        home = legal.home[result]
        offset, strides = argument_strides(home, self.group.placed[result])
        self.arguments.append(Argument(buffer(home.root), result, READ | WRITE, offset, strides))
        self.arguments.append(Argument(buffer(numbers.root), numbers.root, READ, numbers.offset, {GROUPS: numbers.strides[0]}))

    def _windows(self, operand: Node, access: Access, at: Placement) -> Argument:
        """B as windows (..., C, H, W, rows, places)."""
        _, height, width, _, places = operand.shape[-5:]
        channel, row, column, place_row, place = access.strides[-5:]
        own = tuple(at[len(at) - 2 - len(operand.shape[:-5]) : -2])
        batch = tuple(ZERO if is_one(n) else i for i, n in zip(own, operand.shape[:-5], strict=True))
        outside = Access(access.root, access.offset, (*access.strides[:-5], place), ())
        offset, strides = argument_strides(outside, (*batch, at[-1]))
        return Argument(self.plan.buffer(access.root), access.root, READ | WINDOWS, offset, strides, channel,
                        height * 256 + width, places, (column, row, place_row))

    def _packed(self, operand: Node, access: Access) -> Argument:
        buffer = self.plan.packed(access.root, operand.shape, access.strides, access.offset)
        return Argument(buffer, access.root, READ | PACKED, 0, {})

    # -- domain --

    def _matmul_axes(self, node: Node, sizes: dict[int, Size]) -> list[int]:
        """Columns, rows, then the rest, innermost first; an axis of size 1 stands for what the domain does not have."""
        at = self.group.placed[node]
        column = at[-1].terms[0][0] if at[-1].terms else self._one(sizes)
        of_rows = [axis for axis in reversed(self.group.axes()) if axis in axes_of((at[-2],))]
        row = of_rows[0] if of_rows else self._one(sizes)
        if is_grouped(node):
            sizes[GROUPS] = node.inputs[1].shape[0]
            return [column, row, GROUPS]
        return [column, row] + [a for a in reversed(self.group.axes()) if a not in (column, row)]

    def _one(self, sizes: dict[int, Size]) -> int:
        axis = -1 - len(sizes)
        sizes[axis] = 1
        return axis

    # -- nodes --

    def _node(self, member: Node) -> int:
        if member is self.group.product:
            return self.kernel.input(2)
        if member.operator.lowering is Lowering.GATHER:
            return self._once(("gather", member), lambda: self.kernel.input(self.numbers[member]))
        operands = [self._operand(member, number) for number in range(len(member.inputs))]
        emit = Emitter(self, member.inputs[-1].dtype)
        result = member_words(emit, member, operands)
        return result if is_closed(member.operator, member.dtype) else emit.narrowed(result, member.dtype)

    def _operand(self, member: Node, number: int) -> int:
        operand = member.inputs[number]
        root, path = source(operand)
        if root.operator.name == "constant":
            return self.constant(_read_as(root.attribute("value"), (root, *path)))
        if root.operator.name == "dimension":
            size = self.plan.expression(root.attribute("size"))
            return self._once(("size", size, operand.dtype), lambda: self._size(size, operand.dtype))
        if self._inside(member, number) is not None:
            return self.nodes[root]
        access, placement = self.plan.legal.access[operand], self.group.needed(member, number)
        argument = self._argument_of(access, placement, READ, root)
        return self._once(("input", argument), lambda: self.kernel.input(argument))

    def _size(self, expression: int, dtype: DType) -> int:
        return Emitter(self, dtype).narrowed(self.kernel.size(expression), dtype)

    def constant(self, value: bool | int | float) -> int:
        """The node of a number of the kernel's dtype."""
        number = float(value) if self.compute.kind == "f" else int(value)
        return self._once(("constant", repr(number)), lambda: self.kernel.const(number))

    def _once(self, key: tuple, make) -> int:
        if key not in self.nodes:
            self.nodes[key] = make()
        return self.nodes[key]


@dataclass(frozen=True, slots=True)
class Emitter:
    """Adds instructions to the kernel under construction (`operators.Emit`)."""

    writer: KernelWriter
    dtype: DType

    def __call__(self, name: str, *operands: int | float) -> int:
        a, *rest = (self.writer.constant(x) if isinstance(x, float) else x for x in operands)
        kernel = self.writer.kernel
        return kernel.unary(name, a) if table.BY_NAME[name].group is table.Group.UNARY else kernel.binary(name, a, rest[0])

    def reduction(self, name: str, a: int) -> int:
        """One of the row's totals."""
        return self.writer.kernel.reduction(name, a)

    def narrowed(self, result: int, dtype: DType) -> int:
        """Rounded or wrapped to a dtype that is narrower than what the kernel computes in."""
        return self(NARROW[dtype], result) if dtype in NARROW else result


def _read_as(value: bool | int | float, path: tuple[Node, ...]) -> bool | int | float:
    """A constant after the conversions on the way from it."""
    if len(path) == 1 and path[0].dtype is float32 and value.__class__ is float:
        return float(np.float32(value))
    array = np.asarray(value)
    for node in path:
        if node.operator.name in ("constant", "astype"):
            array = rounded(array.astype(np.float32) if node.dtype is float32 else array, node.dtype)
    return array.item()
