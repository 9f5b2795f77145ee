"""Which operators share a kernel: greedy fusion from consumers to producers, proven for all shapes at once.

A `Group` becomes one kernel: nodes over one domain, each with a placement (its index as a function of the domain's axes).
A producer joins the group of its consumers where

- every reader in the group needs it at the same place, and no element would be computed twice (only results of a row may
  be used along that row, the axis `inner` that a reduction runs over; what is cheap may be repeated anywhere);
- one row runs along one axis: a reduction's operand along `inner`, its result not;
- no other kernel would have to run both before and after the group;
- all of it is computed in one dtype; bools fit any, and a conversion between two is a load, or a store of a copy;
- arguments, nodes and reductions stay within what a kernel may have.

Matmuls take their elementwise consumers first (the tile is hot), then everything goes from the outputs to the inputs. At
last neighbouring parts of a join that are computed element by element from the same memory become one kernel.
Every refusal is written down: `Grouping.refused`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dvm_rt.dtypes import DType, compute_dtype, float32
from dvm_rt.fusion.legalise import MADE, NUMBERS, Legal, is_computed
from dvm_rt.fusion.plan import KERNEL_ARGS_MAX
from dvm_rt.fusion.views import (
    ZERO,
    Access,
    Index,
    Placement,
    axes_of,
    axis_index,
    broadcast,
    crosses,
    is_one,
    is_row_major,
    pull,
    same_placement,
    source,
)
from dvm_rt.fusion.words import nodes_of
from dvm_rt.graph.graph import Node
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.symbols import Size, exact_quotient, same, same_shape, to_wire
from dvm_rt.isa.layout import LIMITS

NODES_MAX = LIMITS["MAX_NODES"]
SAME_REDUCTIONS_MAX = LIMITS["REDUCTIONS_EACH"]
ALONE = (Lowering.HOST, Lowering.RUNNING)  # share a kernel with nothing
READ_FROM_MEMORY = (Lowering.PRODUCT, Lowering.GATHER, Lowering.ATTENTION, *ALONE)
Computes = frozenset[DType] | None  # the dtypes that something can be computed in; None: any


@dataclass(slots=True, eq=False)
class Group:
    """Nodes that one kernel computes. `sizes[axis]` spans the domain, outermost first; `product`: a matmul or an attention;
    `computes`: the compute dtypes that are left."""

    sizes: dict[int, Size] = field(default_factory=dict)
    inner: int | None = None
    placed: dict[Node, Placement] = field(default_factory=dict)
    product: Node | None = None
    refined: dict[int, tuple[int, int, Size]] = field(default_factory=dict)
    next_axis: int = 0
    computes: Computes = None

    def copy(self) -> Group:
        """A group to try something on."""
        return Group(dict(self.sizes), self.inner, dict(self.placed), self.product, dict(self.refined),
                     self.next_axis, self.computes)

    def become(self, other: Group) -> None:
        """Takes over what was tried."""
        self.sizes, self.inner, self.placed = other.sizes, other.inner, other.placed
        self.refined, self.next_axis, self.computes = other.refined, other.next_axis, other.computes

    def compute(self) -> DType:
        """The dtype that the kernel computes in; where it is a copy that can be converted on either side, by its load."""
        if self.computes is None:
            return float32
        if len(self.computes) == 1:
            return next(iter(self.computes))
        return next(d for d in (compute_dtype(node.dtype) for node in self.placed) if d in self.computes)

    def limit(self, computes: Computes) -> None:
        """Leaves only these compute dtypes. Raises Refused where none is left."""
        if computes is not None:
            left = computes if self.computes is None else self.computes & computes
            if not left:
                names = [" or ".join(sorted(d.name for d in c)) for c in (computes, self.computes)]
                raise Refused(f"it is computed in {names[0]}, the kernel in {names[1]}")
            self.computes = left

    def new_axis(self, size: Size) -> int:
        """A further axis, innermost for now."""
        self.sizes[self.next_axis] = size
        self.next_axis += 1
        return self.next_axis - 1

    def axes(self) -> list[int]:
        """The axes of the domain, outermost first; the row, where there is one, last."""
        return [a for a in self.sizes if a != self.inner] + ([] if self.inner is None else [self.inner])

    def refine(self, axis: int, inner_size: Size) -> tuple[int, int]:
        """Replaces an axis by two. Raises Refused for the row axis, along which reductions run."""
        if axis == self.inner:
            raise Refused("a reshape cuts the rows")
        outer_size = exact_quotient(self.sizes[axis], inner_size)
        outer, inner = self.next_axis, self.next_axis + 1
        self.next_axis += 2
        sizes: dict[int, Size] = {}
        for a, size in self.sizes.items():
            sizes.update({outer: outer_size, inner: inner_size} if a == axis else {a: size})
        self.sizes = sizes
        self.refined[axis] = (outer, inner, inner_size)
        self.placed = {node: self.current(placement) for node, placement in self.placed.items()}
        return outer, inner

    def current(self, placement: Placement) -> Placement:
        """The placement in terms of the axes that there are now."""
        if self.refined and any(axis in self.refined for index in placement for axis, _ in index.terms):
            return tuple([self._current(index) for index in placement])
        return placement

    def _current(self, index: Index) -> Index:
        if not any(axis in self.refined for axis, _ in index.terms):
            return index
        total = Index(index.offset)
        for axis, coefficient in index.terms:
            if axis in self.refined:
                outer, inner, size = self.refined[axis]
                total = total.plus(self._current(Index(0, ((outer, coefficient * size), (inner, coefficient)))))
            else:
                total = total.plus(Index(0, ((axis, coefficient),)))
        return total

    def pulled(self, path: tuple[Node, ...], placement: Placement) -> Placement:
        """The placement at the start of a path of views. Raises Refused."""
        for view in reversed(path):
            found = pull(view, placement, lambda axis: self.sizes[axis], self.refine)
            if found is None:
                raise Refused(f"the {view.operator.name} between them is not affine over the kernel's domain")
            placement = found
        return placement

    def needed(self, reader: Node, number: int) -> Placement:
        """Where input `number` of a member is read, at the end of its views. Raises Refused."""
        at, operand = self.placed[reader], reader.inputs[number]
        if reader.operator.lowering is Lowering.REDUCE:
            return (*at[:-1], axis_index(self.inner) if self.inner is not None else ZERO)
        if reader.operator.lowering is Lowering.GATHER:
            rank = len(reader.inputs[1].shape)
            return at[:rank] if number == 1 else (ZERO, *at[rank:])
        return broadcast(at, operand.shape)


def computes(node: Node) -> Computes:
    """The dtypes that a kernel may compute in to make this node."""
    of = node.inputs[0 if node.operator.lowering is Lowering.GATHER else -1] if node.inputs else node
    if node.operator.name != "copy":
        own = compute_dtype(of.dtype)
        return None if own is None else frozenset((own,))
    root, path = source(of)
    own = compute_dtype(node.dtype)
    if own is None:
        return None
    either = root.operator.name not in NUMBERS and any(map(crosses, path))
    return frozenset((own, compute_dtype(root.dtype) or own if either else own))  # a bool is read in any dtype


def as_producer(node: Node) -> Computes:
    """The same where the kernel itself goes on with the value: a copy has converted it before, then."""
    found = computes(node)
    return found if found is None or len(found) == 1 else frozenset((compute_dtype(node.dtype),))


def check_conversion(reader: Node, path: tuple[Node, ...]) -> None:
    """Raises Refused where a value cannot go on in the kernel that made it, since it has to be read as another dtype."""
    if any(map(crosses, path)) and reader.operator.name != "copy":
        raise Refused("it is read as another dtype, from memory")


class Refused(Exception):
    """Why two operators do not share a kernel."""


@dataclass(slots=True, eq=False)
class Use:
    """A computed node read by another: over which views, as which input."""

    reader: Node
    number: int
    path: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An edge that stays between two kernels, and why."""

    producer: Node
    consumer: Node
    reason: str


@dataclass(slots=True, eq=False)
class Grouping:
    """Every computed node of a graph in one group; joins have none."""

    legal: Legal
    uses: dict[Node, list[Use]]
    counted: set[Node]  # members of kernels that got too many arguments when those that might join were not counted
    stretched: dict[Node, set[int]]  # see _stretched
    number: dict[Node, int]  # place in the order of the graph
    words: dict[Node, int]  # how many nodes of a plan each becomes
    roots: dict[Node, list[Node]]  # of each computed node: where the views begin over which it reads its inputs
    results: set[Node]  # the graph's outputs
    part_of: dict[Node, Node]  # the join that a node is a part of, where a kernel may write several of its parts
    keys: dict[tuple[Node, int], tuple] = field(default_factory=dict)  # see _read_key
    group_of: dict[Node, Group] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)

    def groups(self) -> list[Group]:
        """Every group once."""
        return list({id(g): g for g in self.group_of.values()}.values())

    def is_stored(self, node: Node) -> bool:
        """Whether something outside of its group reads it."""
        if node in self.results:
            return True
        return any(self.group_of.get(use.reader) is not self.group_of[node] for use in self.uses[node])


def host_node(made: Group) -> Node | None:
    """The host function that is this group, if it is one: they share a kernel with nothing."""
    node = next(iter(made.placed))
    return node if node.operator.lowering is Lowering.HOST else None


def plain_copy(made: Group) -> Node | None:
    """The copy that is this group, if it is one of stored elements without a conversion."""
    node = next(iter(made.placed))
    if len(made.placed) != 1 or node.operator.name != "copy":
        return None
    root = source(node.inputs[0])[0]
    return node if root.dtype is node.dtype and root.operator.name not in MADE else None


def running_node(made: Group) -> Node | None:
    """The running totals that are this group, if it is some: they share a kernel with nothing."""
    node = next(iter(made.placed))
    return node if node.operator.lowering is Lowering.RUNNING else None


def stands_alone(node: Node) -> bool:
    """It shares a kernel with nothing: a host function, running totals."""
    return node.operator.lowering in ALONE


def group(legal: Legal, fused: bool = True, nodes_max: int = NODES_MAX, own_memory: Sequence[bool] = ()) -> Grouping:
    """Cuts a legal graph into kernels; fused=False: one operator a kernel; `own_memory`: for each output whether it is known to
    begin an argument of the program (see _parts_beside).

    While a kernel grows, producers that may still join do not count as arguments. Where they did not join in the end, and
    the kernel has too many arguments, its nodes are grouped again with everything counted from the start."""
    uses, counted, part_of = _uses(legal), set[Node](), _parts_beside(legal, own_memory)
    while True:
        grouping = _grouped(legal, uses, counted, part_of, fused, nodes_max)
        large = {n for g in grouping.groups() if _too_large(grouping, g, nodes_max) for n in g.placed}
        if large <= counted:
            return grouping
        counted |= large


def _too_large(grouping: Grouping, made: Group, nodes_max: int) -> bool:
    members = set(made.placed)
    arguments, nodes = kernel_size(grouping, made, members, sum(_read_outside(grouping, n, members) for n in members))
    return arguments > KERNEL_ARGS_MAX or nodes > nodes_max


def _grouped(
    legal: Legal, uses: dict[Node, list[Use]], counted: set[Node], part_of: dict[Node, Node], fused: bool, nodes_max: int
) -> Grouping:
    number = {n: i for i, n in enumerate(legal.graph.nodes)}
    roots = {n: [source(i)[0] for i in n.inputs] for n in uses}
    computed = [n for n in legal.graph.nodes if n in uses and n.operator.lowering is not Lowering.JOIN]
    words = {n: nodes_of(n) for n in computed}
    stretched, results = _stretched(legal.graph.nodes), set(legal.graph.outputs)
    grouping = Grouping(legal, uses, counted, stretched, number, words, roots, results, part_of)
    for node in computed:
        if node.operator.lowering is Lowering.PRODUCT:
            _start_product(grouping, node, fused, nodes_max)
        elif node.operator.lowering is Lowering.ATTENTION:
            grouping.group_of[node] = _product_group(grouping, node, [], nodes_max)
    for node in reversed(computed):
        if node not in grouping.group_of:
            _place(grouping, node, fused, nodes_max)
    if fused:
        _merge_parts(grouping, nodes_max)
    return grouping


def _uses(legal: Legal) -> dict[Node, list[Use]]:
    uses: dict[Node, list[Use]] = {n: [] for n in legal.graph.nodes if is_computed(n)}
    for node in legal.graph.nodes:
        if is_computed(node):
            for number, operand in enumerate(node.inputs):
                root, path = source(operand)
                if root in uses:
                    uses[root].append(Use(node, number, path))
    return uses


# ---- from outputs to inputs ---------------------------------------------------------------------------------------


def _place(grouping: Grouping, node: Node, fused: bool, nodes_max: int) -> None:
    """Puts a node into the group of its readers, or into a new one."""
    candidates = {id(g): g for use in grouping.uses[node] if (g := grouping.group_of.get(use.reader)) is not None}
    for target in candidates.values() if not stands_alone(node) else ():
        reader = next(use.reader for use in grouping.uses[node] if grouping.group_of.get(use.reader) is target)
        try:
            if not fused:
                raise Refused("fusion is switched off")
            trial = _joined(grouping, target, node, nodes_max)
        except Refused as refusal:
            grouping.refused.append(Refusal(node, reader, str(refusal)))
            continue
        target.become(trial)
        grouping.group_of[node] = target
        _merge_siblings(grouping, target, node, nodes_max)
        return
    grouping.group_of[node] = _alone(node)


def _alone(node: Node) -> Group:
    made = Group()
    placement = tuple(ZERO if is_one(n) else axis_index(made.new_axis(n)) for n in node.shape)
    _define_row(made, node, placement)
    made.placed[node] = placement
    made.limit(computes(node))
    return made


def _joined(grouping: Grouping, target: Group, node: Node, nodes_max: int) -> Group:
    """The group with the node in it. Raises Refused."""
    trial = target.copy()
    trial.limit(as_producer(node))
    readers = [use for use in grouping.uses[node] if grouping.group_of.get(use.reader) is target]
    placement: Placement | None = None
    for use in readers:
        if use.reader is trial.product or use.reader.operator.lowering is Lowering.GATHER or stands_alone(use.reader):
            raise Refused(f"{use.reader.operator.name} reads it from memory")
        check_conversion(use.reader, use.path)
        found = trial.pulled(use.path, trial.needed(use.reader, use.number))
        placement = found if placement is None else trial.current(placement)
        if not same_placement(placement, trial.current(found)):
            raise Refused("the kernel needs it at two different places")
    if node not in grouping.legal.cheap:
        _check_no_repetition(trial, node, placement)
        _define_row(trial, node, placement)
        _check_direction(grouping, trial, node, placement)
    trial.placed[node] = placement
    if trial.product is not None and _read_outside(grouping, node, set(trial.placed)):
        raise Refused("another kernel reads it too, and the matrix unit stores one result")
    _check_order(grouping, target, node)
    check_limits(grouping, trial, nodes_max, set(trial.placed))
    return trial


def _check_no_repetition(trial: Group, node: Node, placement: Placement) -> None:
    missing = [axis for axis in trial.sizes if axis not in axes_of(placement)]
    if trial.product is not None and missing:
        raise Refused("it is smaller than the matmul's result: it would be computed again and again")
    if trial.product is not None and node is not trial.product and node.operator.lowering is not Lowering.ELEMENTWISE:
        raise Refused("only elementwise operators run in the tile of a matmul")
    rows = trial.axes()[-1:] if node.operator.lowering is not Lowering.REDUCE or trial.inner is not None else missing[:1]
    if len(missing) > 1 or (missing and missing != rows):
        raise Refused("its result is stretched over the domain: it would be computed again and again")
    if not _fills(trial, node, placement):
        raise Refused("only a part of it is needed")


def _check_direction(grouping: Grouping, trial: Group, node: Node, placement: Placement) -> None:
    """A norm along one axis is not torn apart for a reduction of its result along another one."""
    stretched = grouping.stretched.get(node)
    along = {i for i, index in enumerate(placement) if any(axis == trial.inner for axis, _ in index.terms)}
    if trial.inner is not None and stretched and not along & stretched:
        raise Refused("its own rows run along another axis")


def _stretched(nodes: list[Node]) -> dict[Node, set[int]]:
    """For each elementwise node that follows from a reduction: the axes along which that result is stretched."""
    found: dict[Node, set[int]] = {}
    for node in nodes:
        if node.operator.lowering is Lowering.REDUCE:
            found[node] = set()
        if node.operator.lowering is not Lowering.ELEMENTWISE:
            continue
        for operand in node.inputs:
            root, path = source(operand)
            if root in found:
                lead = len(node.shape) - len(operand.shape)
                missing = {i for i, n in enumerate(node.shape) if not is_one(n) and (i < lead or is_one(operand.shape[i - lead]))}
                found[node] = found.get(node, set()) | missing | (set() if path else {i + lead for i in found[root]})
    return found


def _fills(trial: Group, node: Node, placement: Placement) -> bool:
    """Whether the axes of each index count through the whole of that axis of the node."""
    for size, index in zip(node.shape, placement, strict=True):
        step, terms = 1, list(index.terms)
        while terms:
            fitting = next((t for t in terms if same(t[1], step)), None)
            if fitting is None:
                return False
            terms.remove(fitting)
            step = step * trial.sizes[fitting[0]]
        if not same(index.offset, 0) or not same(step, size):
            return False
    return True


def _define_row(trial: Group, node: Node, placement: Placement) -> None:
    """Settles which axis the rows of the group run along, if the node needs one. Raises Refused."""
    missing = [axis for axis in trial.sizes if axis not in axes_of(placement)]
    if node.operator.lowering is Lowering.REDUCE:
        size = node.inputs[0].shape[-1]
        axis = trial.inner if trial.inner is not None else missing[0] if missing else trial.new_axis(size)
        if axis in axes_of(placement):
            raise Refused("a reduction inside of the rows of another one")
        if not same(trial.sizes[axis], size):
            raise Refused("it reduces over rows of another length")
        trial.inner = axis
    elif node.operator.lowering is Lowering.GATHER:
        _define_gather_row(trial, node, placement)
    elif missing:
        trial.inner = missing[0]


def _define_gather_row(trial: Group, node: Node, placement: Placement) -> None:
    """A gather addresses one table row at a time: the last axis of the table runs along the kernel's rows."""
    rank = len(node.inputs[1].shape)
    last = placement[-1] if len(placement) > rank else ZERO
    if last.terms:
        if len(last.terms) != 1 or not same(last.terms[0][1], 1) or trial.inner not in (None, last.terms[0][0]):
            raise Refused("the gathered rows do not lie along the kernel's rows")
        trial.inner = last.terms[0][0]
    elif trial.inner is None:
        if trial.placed:
            raise Refused("a gather of single elements has rows of its own")
        trial.inner = trial.new_axis(1)
    if trial.inner in axes_of(placement[:rank]):
        raise Refused("the index of the gather changes inside of a row")


def _check_order(grouping: Grouping, target: Group, node: Node) -> None:
    """No kernel may have to run after the node and before the group."""
    others = [use.reader for use in grouping.uses[node] if grouping.group_of.get(use.reader) is not target]
    seen: set[int] = set()
    stack: list[Node] = list(others)
    while stack:
        reader = stack.pop()
        owner = grouping.group_of.get(reader)
        if owner is target:
            raise Refused("another kernel has to run between them")
        key = id(owner if owner is not None else reader)
        if key not in seen:
            seen.add(key)
            members = list(owner.placed) if owner is not None else [reader]
            stack += [use.reader for member in members for use in grouping.uses[member] if use.reader not in members]


def check_limits(grouping: Grouping, trial: Group, nodes_max: int, members: set[Node]) -> None:
    """Raises Refused where the kernel would need more arguments, nodes or reductions than there are."""
    reductions = [n.operator.name for n in members if n.operator.lowering is Lowering.REDUCE]
    for name in set(reductions):
        if reductions.count(name) > SAME_REDUCTIONS_MAX:
            raise Refused(f"more than {SAME_REDUCTIONS_MAX} {name} reductions")
    if len(trial.sizes) > LIMITS["MAX_RANK"]:
        raise Refused("more dimensions than a kernel has")
    stored = [n for n in members if _read_outside(grouping, n, members)]
    if len({grouping.legal.home[n].root for n in stored}) < len(stored) and not _stored_beside(grouping, trial, stored):
        raise Refused("both are written into parts of one join")
    hopeful = trial.product is None and not members & grouping.counted
    arguments, nodes = kernel_size(grouping, trial, members, len(stored), hopeful)
    if arguments > KERNEL_ARGS_MAX:
        raise Refused(f"more than {KERNEL_ARGS_MAX} arguments")
    if nodes > nodes_max:
        raise Refused(f"more than {nodes_max} nodes")


def kernel_size(grouping: Grouping, trial: Group, members: set[Node], stored: int, hopeful: bool = False) -> tuple[int, int]:
    """(arguments, nodes) of the kernel with these members, of which some are stored; hopeful: as if all who still can join
    do so without any."""
    reads: set[tuple] = set()
    leaves: set[Node] = set()
    nodes = 0
    for node in members:
        nodes += grouping.words[node]
        from_memory = node.operator.lowering in READ_FROM_MEMORY
        for number, root in enumerate(grouping.roots[node]):
            if root in members:
                continue
            if root.operator.name in NUMBERS:
                leaves.add(root)
            elif from_memory:
                reads.add((node, number))
            elif not (hopeful and _may_join(grouping, root)):
                reads.add(_read_key(grouping, trial, node, number))
    return len(reads) + stored, nodes + len(leaves) + len(reads) + stored


def _read_key(grouping: Grouping, trial: Group, node: Node, number: int) -> tuple:
    """`argument_key` of an input of a member, as long as that stays where it is."""
    at = (trial.placed[node], trial.inner)
    known = grouping.keys.get((node, number))
    if known is None or known[0][0] is not at[0] or known[0][1] != at[1]:
        key = argument_key(grouping.legal.access[node.inputs[number]], trial.needed(node, number))
        known = grouping.keys[node, number] = (at, key)
    return known[1]


def _may_join(grouping: Grouping, root: Node) -> bool:
    return root in grouping.uses and root not in grouping.group_of and root.operator.lowering in (
        Lowering.ELEMENTWISE, Lowering.REDUCE)


def _read_outside(grouping: Grouping, node: Node, members: set[Node]) -> bool:
    if node in grouping.results:
        return True
    for use in grouping.uses[node]:
        if use.reader not in members:
            return True
    return False


def argument_key(access: Access, placement: Placement) -> tuple:
    """Equal for two reads that are one argument of a kernel."""
    offset, strides = argument_strides(access, placement)
    return id(access.root), to_wire(offset), tuple(sorted([(axis, to_wire(s)) for axis, s in strides.items()]))


def argument_strides(access: Access, placement: Placement) -> tuple[Size, dict[int, Size]]:
    """(offset, stride along each axis of the domain), in elements, of a value read or written at this placement."""
    offset, strides = access.offset, {}
    for stride, index in zip(access.strides, placement, strict=True):
        if index.offset.__class__ is not int or index.offset:
            offset = offset + stride * index.offset
        for axis, coefficient in index.terms:
            step = stride if is_one(coefficient) else stride * coefficient
            strides[axis] = strides[axis] + step if axis in strides else step
    return offset, strides


# ---- siblings -----------------------------------------------------------------------------------------------------


def _merge_siblings(grouping: Grouping, target: Group, node: Node, nodes_max: int) -> None:
    """Readers of the same value over the same domain share a kernel, where both only wait for what is before them."""
    for use in grouping.uses[node]:
        other = grouping.group_of.get(use.reader)
        if other is None or other is target or other.product is not None or target.product is not None:
            continue
        if stands_alone(use.reader):
            continue
        try:
            second = other.copy()
            theirs = second.pulled(use.path, second.needed(use.reader, use.number))
            merged = _merged(grouping, target, other, second, theirs, target.placed[node], nodes_max)
        except Refused as refusal:
            grouping.refused.append(Refusal(node, use.reader, str(refusal)))
            continue
        _merge(grouping, target, other, merged)


def _merge(grouping: Grouping, target: Group, other: Group, merged: Group) -> None:
    target.become(merged)
    for member in other.placed:
        grouping.group_of[member] = target


def _merged(
    grouping: Grouping, target: Group, other: Group, second: Group, theirs: Placement, ours: Placement, nodes_max: int
) -> Group:
    """Both groups as one, in which two placements, one of each, are the same; `second`: the other group, to try on."""
    if _third_between(grouping, target, other) or _third_between(grouping, other, target):
        raise Refused("another kernel has to run between them")
    trial = target.copy()
    rename = _renaming(second, theirs, trial, ours)
    inner = None if second.inner is None else rename[second.inner]
    if trial.inner is not None and inner is not None and trial.inner != inner:
        raise Refused("their rows run along different axes")
    trial.inner = trial.inner if inner is None else inner
    for member, placement in second.placed.items():
        trial.placed[member] = tuple(_renamed(index, rename) for index in placement)
    trial.limit(second.computes)
    _check_edges(grouping, trial)
    check_limits(grouping, trial, nodes_max, set(trial.placed))
    return trial


def _renaming(second: Group, theirs: Placement, first: Group, ours: Placement) -> dict[int, int]:
    """The axis of the first group for each of the second, such that both placements of one value agree. Raises Refused."""
    rename: dict[int, int] = {}
    for a, b in zip(theirs, ours, strict=True):
        if len(a.terms) > 1 or len(b.terms) != len(a.terms) or not same(a.offset, b.offset):
            raise Refused("their domains differ")
        for (axis, p), (own, q) in zip(a.terms, b.terms, strict=True):
            if not same(p, q) or not same(second.sizes[axis], first.sizes[own]):
                raise Refused("their domains differ")
            rename[axis] = own
    if set(rename) != set(second.sizes) or set(rename.values()) != set(first.sizes):
        raise Refused("their domains differ")
    return rename


def _renamed(index: Index, rename: dict[int, int]) -> Index:
    return Index(index.offset, tuple(sorted(((rename[axis], c) for axis, c in index.terms), key=lambda term: term[0])))


def _check_edges(grouping: Grouping, trial: Group) -> None:
    """What a member reads of another one has to be where it is computed. Raises Refused."""
    axis_count = trial.next_axis
    for member in list(trial.placed):
        for use in grouping.uses[member]:
            if use.reader in trial.placed:
                if use.reader.operator.lowering is Lowering.GATHER:
                    raise Refused(f"{use.reader.operator.name} reads it from memory")
                check_conversion(use.reader, use.path)
                trial.limit(as_producer(member))
                found = trial.pulled(use.path, trial.needed(use.reader, use.number))
                if trial.next_axis != axis_count or not same_placement(found, trial.placed[member]):
                    raise Refused("the kernel needs it at two different places")
        if member.operator.lowering is Lowering.REDUCE and trial.inner in axes_of(trial.placed[member]):
            raise Refused("a reduction inside of the rows of another one")


def _third_between(grouping: Grouping, start: Group, goal: Group) -> bool:
    """Whether a kernel other than these two has to run after `start` and before `goal`."""
    seen: set[int] = set()
    stack = [use.reader for member in start.placed for use in grouping.uses[member] if use.reader not in goal.placed]
    while stack:
        reader = stack.pop()
        if reader in goal.placed:
            return True
        owner = grouping.group_of.get(reader)
        key = id(owner if owner is not None else reader)
        if owner is not start and key not in seen:
            seen.add(key)
            members = owner.placed if owner is not None else {reader: None}
            stack += [use.reader for member in members for use in grouping.uses[member]]
    return False


# ---- parts of a join ----------------------------------------------------------------------------------------------


def _parts_beside(legal: Legal, own_memory: Sequence[bool]) -> dict[Node, Node]:
    """The joins by those of their parts that the verifier sees to lie apart, whatever the sizes are, where they are of one size.

    Parts along the outermost axis are ranges behind each other. Others are blocks that repeat with the pitch of the rows of
    the join. The verifier takes both places modulo the pitch, and no block may go beyond it: it does not where the join begins an
    argument of the program, which memory inside of the workspace does not."""
    begins = {node for node, own in zip(legal.graph.outputs, own_memory, strict=False) if own}
    found: dict[Node, Node] = {}
    for node in legal.graph.nodes:
        if node.operator.lowering is not Lowering.JOIN:
            continue
        home, outermost = legal.home[node], all(map(is_one, node.shape[: node.attributes[0]]))
        if any(same(n, 0) for n in node.shape):
            continue  # all parts lie at one place, as one argument
        if home.root is node and same(home.offset, 0) and is_row_major(home) and (outermost or node in begins):
            found.update({part: node for part in node.inputs if part.dtype is node.dtype})
    return found


def _stored_beside(grouping: Grouping, trial: Group, stored: list[Node]) -> bool:
    """Whether those that are written into one join are parts of the same size, each as it lies: the verifier sees them apart."""
    by_root: dict[Node, list[Node]] = {}
    for node in stored:
        by_root.setdefault(grouping.legal.home[node].root, []).append(node)
    for first, *rest in by_root.values():
        for node in rest:
            one_join = first in grouping.part_of and grouping.part_of[first] is grouping.part_of.get(node)
            if not one_join or not same_shape(first.shape, node.shape):
                return False
        if rest and not all(_as_it_lies(trial, trial.placed[n]) and same_placement(trial.placed[n],
                trial.placed[first]) for n in (first, *rest)):
            return False
    return True


def _merge_parts(grouping: Grouping, nodes_max: int) -> None:
    """Neighbouring parts of a join share a kernel if that saves reading something as large as they are."""
    for join in dict.fromkeys(grouping.part_of.values()):
        for first, node in pairwise(join.inputs):
            target, other = grouping.group_of.get(first), grouping.group_of.get(node)
            if target is None or other is None or target is other or not (_element_by_element(target)
                    and _element_by_element(other)):
                continue
            try:
                merged = _merged(grouping, target, other, other.copy(), other.placed[node], target.placed[first], nodes_max)
                if not _whole_reads(grouping, merged, target) & _whole_reads(grouping, merged, other):
                    raise Refused("they read nothing of their size together")
            except Refused as refusal:
                grouping.refused.append(Refusal(first, node, str(refusal)))
                continue
            _merge(grouping, target, other, merged)


def _element_by_element(made: Group) -> bool:
    return made.inner is None and plain_copy(made) is None and all(n.operator.lowering is Lowering.ELEMENTWISE
        for n in made.placed)


def _whole_reads(grouping: Grouping, merged: Group, of: Group) -> set[tuple]:
    """What members of a group that is merged into another read from memory, a value for each place of the domain."""
    found: set[tuple] = set()
    for node in of.placed:
        for number, root in enumerate(grouping.roots[node]):
            if root not in of.placed and root.operator.name not in MADE:
                key = _read_key(grouping, merged, node, number)
                if {axis for axis, stride in key[2] if stride != to_wire(0)} == set(merged.sizes):
                    found.add(key)
    return found


# ---- matmul epilogues ---------------------------------------------------------------------------------------------


def _start_product(grouping: Grouping, product: Node, fused: bool, nodes_max: int) -> None:
    """A matmul and the elementwise operators that end in one value of the same size."""
    chain = [product]
    if fused:
        for length in range(len(candidates := _followers(grouping, product, nodes_max)), 0, -1):
            members = {product, *candidates[:length]}
            if _exit(grouping, members) is not candidates[length - 1]:
                continue
            try:
                grouping.group_of |= dict.fromkeys(members, _product_group(grouping, product, candidates[:length], nodes_max))
                return
            except Refused as refusal:
                producers = [source(i)[0] for i in candidates[length - 1].inputs]
                within = next((p for p in producers if p in members), product)
                grouping.refused.append(Refusal(within, candidates[length - 1], str(refusal)))
    grouping.group_of[product] = _product_group(grouping, product, chain[1:], nodes_max)


def _followers(grouping: Grouping, product: Node, count_max: int) -> list[Node]:
    """Elementwise nodes that follow from the product, in order, and from nothing but elementwise nodes in between."""
    found: dict[int, Node] = {}
    stack = [product]
    while stack:
        for use in grouping.uses[stack.pop()]:
            node, number = use.reader, grouping.number[use.reader]
            if number not in found and node not in grouping.group_of and _in_tile(use, product.dtype):
                found[number] = node
                stack.append(node)
    return [found[number] for number in sorted(found)[:count_max]]


def _in_tile(use: Use, compute: DType) -> bool:
    """Whether the product's own dtype does for it, and it reads no counting: a tile does not know where it lies."""
    own = computes(use.reader)
    if any(source(i)[0].operator.name == "iota" for i in use.reader.inputs) or any(map(crosses, use.path)):
        return False
    return use.reader.operator.lowering is Lowering.ELEMENTWISE and (own is None or compute in own)


def _exit(grouping: Grouping, members: set[Node]) -> Node | None:
    """The only member that something outside reads."""
    exits = [m for m in members if _read_outside(grouping, m, members)]
    return exits[0] if len(exits) == 1 else None


def _product_group(grouping: Grouping, product: Node, followers: list[Node], nodes_max: int) -> Group:
    """The group of a matmul and its epilogue, seen from the last of them. Raises Refused."""
    last = followers[-1] if followers else product
    made = Group(product=product, computes=frozenset((product.dtype,)))
    made.placed[last] = tuple(ZERO if is_one(n) else axis_index(made.new_axis(n)) for n in last.shape)
    for node in reversed([product, *followers[:-1]] if followers else []):
        placement: Placement | None = None
        for use in grouping.uses[node]:
            found = made.pulled(use.path, made.needed(use.reader, use.number))
            placement = found if placement is None else made.current(placement)
            if not same_placement(placement, made.current(found)):
                raise Refused("the epilogue needs it at two different places")
        _check_no_repetition(made, node, placement)
        made.placed[node] = placement
    _check_product(grouping, made, last)
    if followers:
        check_limits(grouping, made, nodes_max, {product, *followers})
    return made


def is_grouped(product: Node) -> bool:
    """Whether its rows lie in groups, each with a matrix of its own."""
    return product.operator.name == "grouped_product"


def is_windows(product: Node) -> bool:
    """Whether its right operand are windows, read where they are."""
    return product.operator.name == "window_product"


def _as_it_lies(made: Group, placement: Placement) -> bool:
    """Whether each dimension is an axis of the domain, from its begin on, or of size 1, and the domain has no other."""
    plain = (not at.terms or (len(at.terms) == 1 and same(at.terms[0][1], 1)) for at in placement)
    return all(plain) and all(same(at.offset, 0) for at in placement) and set(made.axes()) == axes_of(placement)


def _check_product(grouping: Grouping, made: Group, last: Node) -> None:
    """Columns of the product are one axis of the domain and lie behind each other in the result."""
    column = made.placed[made.product][-1]
    home = grouping.legal.home[last]
    if column.terms:
        _, strides = argument_strides(home, made.placed[last])
        if len(column.terms) != 1 or not same(column.terms[0][1], 1) or not same(strides.get(column.terms[0][0], 0), 1):
            raise Refused("the columns of the product do not lie behind each other in the result")
        made.inner = column.terms[0][0]
    if is_grouped(made.product) and not _as_it_lies(made, made.placed[made.product]):
        raise Refused("rows in groups are counted from the first one on")
    if is_windows(made.product) and column.terms and not (
        same(column.offset, 0) and same(made.sizes[column.terms[0][0]], made.product.shape[-1])
    ):
        raise Refused("rows of windows are counted from the first one on")
    if last.dtype is not made.product.dtype or home.root.dtype is not last.dtype:
        raise Refused("the matrix unit writes what it computes in")


