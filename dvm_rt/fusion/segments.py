"""Cuts a graph where no kernel could span the cut, so that what repeats is planned once.

A value h that matrix products read is a cut if every other node is needed for h, or follows from such a product, or has
nothing to do with h: no kernel could hold a node of both sides, because the product would have to run in between, and it
reads h from memory. The
residual stream of a transformer is cut so several times a layer, and most segments of a deep network then are the same
segment: `Segment.key` says so. A segment is a graph of its own; what it takes from others are parameters of it.

Sections of hand-written kernels are segments too: what a section makes, and others read, is marked with its number, and what
these marks need belongs to it.

Cuts never change a result, only what could have been fused. Leaves, views, and what is cheap to make from them belong to no
segment: each that reads them has its own. A branch or a loop is a segment of its own, as all its nodes together; what it reads
is stored before it, and what reads it comes after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from dvm_rt.fusion.legalise import PACKED_DTYPES, is_cheap
from dvm_rt.fusion.views import contiguous, is_view, source, through
from dvm_rt.graph.graph import Graph, Node, hashable
from dvm_rt.graph.operators import OPERATORS, Lowering
from dvm_rt.graph.symbols import DERIVED, Dim, Facts, Shape, Size, substitute, symbol, symbols_in_order

PRODUCTS = ("grouped_matmul", "grouped_product", "linear", "matmul", "matmul_integer",
            "matrix_product", "window_product")  # they read their first two inputs from memory


RENAMED_DERIVED = DERIVED + (1 << 15)  # names of what was derived before: beyond those that a segment's own facts give


@dataclass(slots=True, eq=False)
class Names:
    """The symbols of a segment by the order in which they occur: segments that differ only in their symbols are one segment.
    `symbols[i]` is the symbol that is called i, or RENAMED_DERIVED + i, since what is derived may be 1."""

    symbols: dict[int, Size] = field(default_factory=dict)  # symbol -> its name, in order
    _known: dict[object, Size] = field(default_factory=dict)
    _keys: dict[object, tuple] = field(default_factory=dict)

    def size(self, size: Size) -> Size:
        """The size in these names."""
        if size.__class__ is not Dim:
            return size
        found = self._known.get(size.key)
        if found is None:
            for number in symbols_in_order(size):
                if number not in self.symbols:
                    self.symbols[number] = symbol(len(self.symbols) + (0 if number < DERIVED else RENAMED_DERIVED))
            found = self._known[size.key] = substitute(size, self.symbols)
            self._keys[size.key] = found.key
        return found

    def shape(self, shape: Shape) -> Shape:
        """`size` for each dimension."""
        return tuple([n if n.__class__ is int else self.size(n) for n in shape])

    def value(self, value: object) -> object:
        """An attribute in these names."""
        if value.__class__ is tuple:
            return tuple([self.value(v) for v in value]) if value else value
        return self.size(value) if value.__class__ is Dim else value

    def key(self, shape: Shape) -> tuple:
        """A shape in these names, hashable."""
        known = self._keys
        return tuple([n if n.__class__ is int else known.get(n.key) or self.size(n).key for n in shape])

    def attribute_key(self, value: object) -> object:
        """An attribute in these names, hashable: as `graph.hashable` has it."""
        if value.__class__ is tuple:
            return tuple([v if v is None or v.__class__ is int else self.attribute_key(v) for v in value])
        return ("size", self.size(value).key) if value.__class__ is Dim else hashable(value)

    def meant(self) -> dict[int, Size]:
        """name -> the symbol that it stands for."""
        return {named.key[0][0][0]: symbol(number) for number, named in self.symbols.items()}


@dataclass(slots=True, eq=False)
class Segment:
    """Part of a graph: `members` in order. `reads`: parameters of the whole graph and values of earlier segments; they are
    the parameters of the segment's own graph. `gives`: (what others need, number of the graph's output that it is, or None).
    Segments with equal keys have equal kernels, over `names`."""

    facts: Facts
    members: dict[Node, int] = field(default_factory=dict)  # and reads: their numbers in `key`
    reads: dict[Node, None] = field(default_factory=dict)
    gives: list[tuple[Node, int | None]] = field(default_factory=list)
    section: str = ""  # the name of the section of a hand-written kernel that this is
    jumps: bool = False  # it is a branch or a loop
    names: Names = field(default_factory=Names)  # complete once `key` was asked for

    def control(self) -> list[Node]:
        """The nodes of the branch or the loop that this segment is; none: it is an ordinary one."""
        return [n for n in self.members if n not in self.reads and is_control(n)] if self.jumps else []

    def key(self) -> tuple:
        """Plain tuples: all that kernels depend on, in `names`."""
        numbers, rows, names = self.members, [], self.names
        for node in numbers:
            if node in self.reads:
                rows.append((names.key(node.shape), node.dtype.name))
            else:
                attributes = names.attribute_key(node.attributes) if node.attributes else ()
                rows.append((node.operator.name, tuple([numbers[i] for i in node.inputs]), attributes, names.key(node.shape)))
        return tuple(rows), tuple([numbers[node] for node, _ in self.gives])

    def may_pack(self, given: Callable[[Node], bool]) -> tuple[bool, ...]:
        """For each of `reads`, whether it could be packed once for the matrix unit: a matrix, several, or a bias,
        that is given, and read neither element by element nor as the rows of a product alone, where packed it would be of no
        use: a network's first layer is like the others. Who casts a matrix for a product packs it as it was."""
        wanted: set[Node] = set()
        for node in self.members:
            if node not in self.reads and (node.operator.lowering is not Lowering.ELEMENTWISE or node.operator.name == "astype"):
                wanted.update(node.inputs[1:] if node.operator.name in ("linear", "matmul") else node.inputs)
        return tuple([node in wanted and 0 < len(node.shape) <= 3 and node.dtype in PACKED_DTYPES and given(node)
                      for node in self.reads])

    def own_memory(self, is_output: Callable[[int], bool]) -> tuple[bool, ...]:
        """For each of `gives`, whether it lies in an output of the plan; nobody asks where nothing is joined."""
        if not any(node.operator.lowering is Lowering.JOIN for node in self.members):
            return ()
        return tuple([output is not None and is_output(output) for _, output in self.gives])

    def refusals(self) -> list[tuple[str, str, str]]:
        """(producer, consumer, reason) for what its members read across a cut."""
        found = []
        for node in self.members:
            for operand in node.inputs if node not in self.reads and not is_view(node) else ():
                root = source(operand)[0]
                if root in self.reads and root.operator.name == "section":
                    maker = f"section {root.attribute('name')} makes it" if root.attribute(
                        "number") else "it is made before the kernel"
                    found.append((source(root.inputs[0])[0].operator.name, node.operator.name, maker))
                elif root in self.reads and root.operator.name != "parameter":
                    from_memory = node.operator.name in PRODUCTS and operand in node.inputs[:2]
                    reason = f"{node.operator.name} reads it from memory" if from_memory else "a product has to run between them"
                    found.append((root.operator.name, node.operator.name, reason))
        return found

    def graph(self) -> Graph:
        """The segment as a graph, in `names`, with facts of its own."""
        return self._graph(self.names.shape, self.names.value, Facts())

    def as_it_is(self) -> Graph:
        """The segment as a graph over the symbols and the facts of the whole one."""
        return self._graph(lambda shape: shape, lambda value: value, self.facts)

    def _graph(self, shape: Callable[[Shape], Shape], value: Callable[[object], object], facts: Facts) -> Graph:
        new: dict[Node, Node] = {}
        for index, node in enumerate(self.reads):
            sizes = shape(node.shape)
            new[node] = Node(OPERATORS["parameter"], (), (index, sizes, node.dtype.name), sizes, node.dtype)
        parameters = tuple(new.values())
        for node in self.members:
            if node not in new:
                inputs = tuple([new[i] for i in node.inputs])
                new[node] = Node(node.operator, inputs, value(node.attributes), shape(node.shape), node.dtype)
        return Graph(parameters, (), tuple([new[node] for node, _ in self.gives]), facts)


def segments(graph: Graph, cut: bool = True) -> list[Segment]:
    """The segments in the order in which they run; cut=False: one, or those between branches and loops."""
    if any(map(is_control, graph.nodes)):
        return _staged(graph)
    if cut and any(node.operator.name == "section" for node in graph.nodes):
        return _sections(graph)
    free = _free(graph)
    number = {node: i for i, node in enumerate(n for n in graph.nodes if n not in free)}
    owner = dict.fromkeys(number, 0)
    count = 1
    if cut:
        nodes, before = list(number), 0
        for count, needed in enumerate([*_cuts(graph, number), (1 << len(number)) - 1], 1):
            for i in _bits(needed & ~before):
                owner[nodes[i]] = count - 1
            before |= needed
    made = [Segment(graph.facts) for _ in range(count)]
    given: set[Node] = set()
    for node in number:
        _add(made[owner[node]], node, made, owner, given)
    _add_outputs(graph, made, owner, given)
    return made


def _add_outputs(graph: Graph, made: list[Segment], owner: dict[Node, int], given: set[Node]) -> None:
    for i, node in enumerate(graph.outputs):
        at = made[owner.get(source(node)[0], -1)]
        _add(at, node, made, owner, given)
        if (node, None) in at.gives:
            at.gives.remove((node, None))
        at.gives.append((node, i))


def _sections(graph: Graph) -> list[Segment]:
    """The sections of hand-written kernels by their numbers; between them what belongs to none, after the last section that it
    needs."""
    inside: dict[Node, set[int]] = {}  # what each section computes for itself
    after: dict[Node, int] = {}  # the last section that a node needs
    names: dict[int, str] = {}
    for node in graph.nodes:
        after[node] = max((after[i] for i in node.inputs), default=0)
        if node.operator.name == "section" and (number := node.attribute("number")):
            after[node], names[number] = number, node.attribute("name")
            stack = list(node.inputs)
            while stack:
                at = stack.pop()
                if at.operator.name != "section" and number not in inside.setdefault(at, set()):
                    inside[at].add(number)
                    stack += at.inputs
    places = sorted({(n, False) for n in names} | {(n, True) for n in after.values()})
    made = [Segment(graph.facts, section="" if rest else names[n]) for n, rest in places]
    place = {at: i for i, at in enumerate(places)}
    free, owner = _free(graph), dict[Node, int]()
    for node in graph.nodes:
        is_mark = node.operator.name == "section"
        if is_mark or (node not in free and node not in inside):
            owner[node] = place[after[node], not (is_mark and node.attribute("number"))]
    given: set[Node] = set()
    for node in graph.nodes:
        for at in [place[n, False] for n in inside.get(node, ()) if node not in free] + ([owner[node]] if node in owner else []):
            _add(made[at], node, made, owner, given)
    _add_outputs(graph, made, owner, given)
    return [one for one in made if one.gives]


def is_control(node: Node) -> bool:
    """A branch or a loop."""
    return node.operator.lowering is Lowering.CONTROL


def _staged(graph: Graph) -> list[Segment]:
    """What no branch or loop has to run before, then the branches and loops that read only that, and so on."""
    stage: dict[Node, int] = {}
    operands: set[Node] = set()
    for node in graph.nodes:
        stage[node] = max([stage[i] + is_control(i) for i in node.inputs], default=0)
        if is_control(node):
            operands.update(i for i in node.inputs if i.operator.name != "parameter")
    free = _free(graph) - operands
    made: list[Segment] = []
    ordinary: list[int] = []
    owner: dict[Node, int] = {}
    for number in range(max(stage[n] + is_control(n) for n in graph.nodes) + 1):
        ordinary.append(len(made))
        made.append(Segment(graph.facts))
        together: dict[tuple, int] = {}
        for node in graph.nodes:
            if stage[node] != number or node in free:
                continue
            owner[node] = ordinary[number]
            if is_control(node):
                key = (node.operator.name, node.inputs, hashable(node.attributes[:-1]))
                if key not in together:
                    together[key] = len(made)
                    made.append(Segment(graph.facts, jumps=True))
                owner[node] = together[key]
    given: set[Node] = set()
    for node in sorted(owner, key=owner.__getitem__):
        _add(made[owner[node]], node, made, owner, given)
    for i, node in enumerate(graph.outputs):
        at = made[owner.get(node, ordinary[stage[node]])]
        _add(at, node, made, owner, given)
        if (node, None) in at.gives:
            at.gives.remove((node, None))
        at.gives.append((node, i))
    return [one for one in made if one.gives]


def _add(to: Segment, node: Node, made: list[Segment], owner: dict[Node, int], given: set[Node]) -> None:
    """Puts a node and what it reads into a segment."""
    if node in to.members:
        return
    at = made[owner[node]] if node in owner else to
    if at is not to or node.operator.name == "parameter":
        to.reads[node] = None
        if at is not to and node not in given:
            given.add(node)
            at.gives.append((node, None))
    else:
        for operand in node.inputs:
            _add(to, operand, made, owner, given)
    to.members[node] = len(to.members)


def _free(graph: Graph) -> set[Node]:
    """What belongs to no segment."""
    free: set[Node] = set()
    for node in graph.nodes:
        if not node.inputs or is_view(node) or is_cheap(node) or node.operator.name == "beside":
            free.add(node)
    return free


def _cuts(graph: Graph, number: dict[Node, int]) -> list[int]:
    """For each cut the nodes (as bits) that run before it, in order."""
    above: dict[Node, int] = {}
    for node in graph.nodes:
        bits = 1 << number[node] if node in number else 0
        for operand in node.inputs:
            bits |= above[operand]
        above[node] = bits
    below = {node: 1 << i for node, i in number.items()}
    for node in reversed(graph.nodes):
        for operand in node.inputs:
            below[operand] = below.get(operand, 0) | below.get(node, 0)
    paths: dict[Node, list[tuple[Node, ...]]] = {}
    follows: dict[Node, int] = {}
    for node in graph.nodes:
        if is_view(node):
            continue
        for i, operand in enumerate(node.inputs):
            root, path = source(operand)
            if root in number:
                paths.setdefault(root, []).append(path)
                if i < 2 and node.operator.name in PRODUCTS:
                    follows[root] = follows.get(root, 0) | below[node]
    nodes, every, found = list(number), (1 << len(number)) - 1, []
    for node, after in follows.items():
        needed = above[node]
        apart = all(not above[nodes[i]] & needed for i in _bits(every & ~needed & ~after))
        if apart and _lies_well(node, paths[node]):
            found.append(needed)
    return sorted(found, key=int.bit_count)


def _lies_well(node: Node, paths: Iterable[tuple[Node, ...]]) -> bool:
    """Whether every view of a value is affine if it is stored row by row, as what crosses a cut is."""
    for path in paths:
        reshapes = [i for i, view in enumerate(path) if view.operator.name == "reshape"]
        if reshapes in ([], [0]):
            continue  # affine on any layout, and on rows
        access = contiguous(node)
        for view in path:
            access = through(view, access)
            if access is None:
                return False
    return True


def _bits(bits: int) -> Iterator[int]:
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low
