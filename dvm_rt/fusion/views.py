"""Views without work: where the elements of a value lie, and which element of a value a kernel needs at a place.

Two descriptions, both affine:

- `Access`: element (i0, i1, ..) of a value lies at offset + i0 * strides[0] + .. elements from the start of the memory
  of `root`, a value that is stored. A view operator maps an access to an access, or to None where it would not be
  affine (a reshape across a gap): then the value has to be copied first.
- a placement: for each axis of a value its index as an affine function (`Index`) of the axes of a kernel's domain. `pull`
  goes from the placement of a view's result to that of its input. It may refine an axis of the domain in two.

Shapes and strides count from the outermost dimension, in elements; sizes may be symbolic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dvm_rt.dtypes import DType, bool_, compute_dtype, holds
from dvm_rt.graph.graph import Node
from dvm_rt.graph.operators import Lowering
from dvm_rt.graph.shapes import WHOLE, index_offset, selected
from dvm_rt.graph.symbols import Facts, Shape, Size, exact_quotient, product, same

VIEW = Lowering.VIEW


def is_one(size: Size) -> bool:
    """Known to be 1."""
    return size.__class__ is int and size == 1


def is_view(node: Node) -> bool:
    """Costs nothing inside a kernel: a view, or a conversion that nothing has to be done for, or that a load does."""
    row = node.operator
    if row.lowering is VIEW:
        return True
    return row.name == "astype" and converts_freely(node.inputs[0].dtype, node.dtype)


def converts_freely(given: DType, wanted: DType) -> bool:
    """Whether a conversion is only another way to read what is there."""
    if given is bool_ or wanted is bool_ or compute_dtype(given) is compute_dtype(wanted):
        return wanted is given or (wanted is not bool_ and holds(wanted, given))
    return compute_dtype(wanted) is wanted


def crosses(view: Node) -> bool:
    """Whether it is a conversion between two compute dtypes: only memory lies between them."""
    if view.operator.name != "astype":
        return False
    given, wanted = compute_dtype(view.inputs[0].dtype), compute_dtype(view.dtype)
    return given is not None and wanted is not None and given is not wanted


def source(node: Node) -> tuple[Node, tuple[Node, ...]]:
    """(the node that the views begin at, the views from there to `node`)."""
    if not is_view(node):
        return node, ()
    path = []
    while is_view(node):
        path.append(node)
        node = node.inputs[0]
    return node, tuple(reversed(path))


# ---- where elements lie -------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Access:
    """Where the elements of a value of this shape lie in the memory of `root`. Never changed (`frozen` costs twice the time)."""

    root: Node
    offset: Size
    strides: tuple[Size, ...]
    shape: Shape


def contiguous_strides(shape: Shape) -> tuple[Size, ...]:
    """Row-major strides."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 1, 0, -1):
        strides[i - 1] = shape[i] * strides[i]
    return tuple(strides)


def is_row_major(access: Access) -> bool:
    """Whether the elements lie behind each other in order, whatever the sizes are."""
    wanted = contiguous_strides(access.shape)
    return all(is_one(n) or same(a, b) for n, a, b in zip(access.shape, access.strides, wanted, strict=True))


def contiguous(root: Node) -> Access:
    """The whole of a value, stored row-major."""
    return Access(root, 0, contiguous_strides(root.shape), root.shape)


def through(view: Node, access: Access) -> Access | None:
    """The access of a view's result, given that of its input."""
    name, shape, strides = view.operator.name, view.shape, access.strides
    if name == "astype":
        return access
    if name == "permute_dims":
        return Access(access.root, access.offset, tuple(strides[i] for i in view.attributes[0]), shape)
    if name == "expand_dims":
        rest = iter(strides)
        return Access(access.root, access.offset,
                      tuple(0 if i in view.attributes[0] else next(rest) for i in range(len(shape))), shape)
    if name == "squeeze":
        return Access(access.root, access.offset, tuple(s for i, s in enumerate(strides) if i not in view.attributes[0]), shape)
    if name == "broadcast_to":
        kept = tuple(0 if is_one(n) else s for n, s in zip(access.shape, strides, strict=True))
        return Access(access.root, access.offset, (0,) * (len(shape) - len(kept)) + kept, shape)
    if name == "index":
        return _indexed(view, access)
    if name == "windows":
        return Access(access.root, access.offset, _window_strides(view, strides), shape)
    if all(map(same, strides, contiguous_strides(access.shape))):  # whatever the sizes are
        return Access(access.root, access.offset, contiguous_strides(shape), shape)
    found = reshaped_strides(access.shape, strides, shape)
    return None if found is None else Access(access.root, access.offset, found, shape)


def _indexed(view: Node, access: Access) -> Access:
    offset, strides = access.offset, []
    for size, stride, entry in zip(access.shape, access.strides, _entries(view, len(access.shape)), strict=True):
        first, step = _first_and_step(size, entry)
        offset = offset + first * stride
        if step is not None:
            strides.append(step * stride)
    return Access(access.root, offset, tuple(strides), view.shape)


def _window_strides(view: Node, strides: tuple[Size, ...]) -> tuple[Size, ...]:
    kernel, steps, taps = view.attributes
    lead, space = strides[: len(strides) - len(kernel)], strides[len(strides) - len(kernel) :]
    return (*lead, *(s * n for s, n in zip(space, steps, strict=True)), *(s * n for s, n in zip(space, taps, strict=True)))


def _entries(view: Node, rank: int) -> tuple:
    entries = view.attributes[0]
    return entries + (WHOLE,) * (rank - len(entries))


def _first_and_step(size: Size, entry: object) -> tuple[Size, int | None]:
    """(first element, step) of an index entry; no step where the axis goes away. The graph already holds its facts."""
    if not isinstance(entry, tuple):
        return (entry if entry.__class__ is int and entry >= 0 else index_offset(Facts(), "view", size, entry)), None
    if entry == WHOLE:
        return 0, 1
    first, _, step = selected(Facts(), "view", size, entry)
    return first, step


def reshaped_strides(shape: Shape, strides: tuple[Size, ...], wanted: Shape) -> tuple[Size, ...] | None:
    """Strides of the same elements in another shape, or None."""
    if any(n.__class__ is int and n == 0 for n in (*shape, *wanted)):
        return contiguous_strides(wanted)
    runs: list[list[Size]] = []  # [size, stride], adjacent axes joined where they lie behind each other
    for size, stride in zip(shape, strides, strict=True):
        if is_one(size):
            continue
        if runs and same(runs[-1][1], stride * size):
            runs[-1] = [runs[-1][0] * size, stride]
        else:
            runs.append([size, stride])
    found: list[Size] = []
    left, step = (runs.pop() if runs else (1, 1))
    for size in reversed(wanted):
        if is_one(size):
            found.append(0)
            continue
        if is_one(left):
            if not runs:
                return None
            left, step = runs.pop()
        left = exact_quotient(left, size)
        if left is None:
            return None
        found.append(step)
        step = step * size
    return tuple(reversed(found)) if is_one(left) and not runs else None


def inverse(path: tuple[Node, ...], strides: tuple[Size, ...]) -> tuple[Size, ...] | None:
    """Strides of the value at the start of a path of views, such that its end has these; None where there are none."""
    for view in reversed(path):
        name, before = view.operator.name, view.inputs[0].shape
        if name == "permute_dims":
            strides = tuple(strides[view.attributes[0].index(i)] for i in range(len(before)))
        elif name == "expand_dims":
            strides = tuple(s for i, s in enumerate(strides) if i not in view.attributes[0])
        elif name == "squeeze":
            rest = iter(strides)
            strides = tuple(0 if i in view.attributes[0] else next(rest) for i in range(len(before)))
        elif name == "reshape":
            row_major = all(map(same, strides, contiguous_strides(view.shape)))  # whatever the sizes are
            found = contiguous_strides(before) if row_major else reshaped_strides(view.shape, strides, before)
            if found is None:
                return None
            strides = found
        else:
            return None
    return strides


# ---- which element is needed --------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Index:
    """offset + the sum of coefficient * axis over `terms` (axis number of a domain, coefficient). Never changed, as Access."""

    offset: Size
    terms: tuple[tuple[int, Size], ...] = ()

    def plus(self, other: Index) -> Index:
        terms = dict(self.terms)
        for axis, coefficient in other.terms:
            terms[axis] = terms.get(axis, 0) + coefficient
        return Index(self.offset + other.offset, tuple(sorted(terms.items(), key=lambda term: term[0])))

    def times(self, factor: Size) -> Index:
        if factor.__class__ is int and factor == 0:
            return ZERO
        return Index(self.offset * factor, tuple((axis, coefficient * factor) for axis, coefficient in self.terms))


ZERO = Index(0)
Placement = tuple[Index, ...]


def axis_index(axis: int) -> Index:
    """The index that is one axis of the domain."""
    return Index(0, ((axis, 1),))


def same_index(a: Index, b: Index) -> bool:
    """Equal for every size."""
    return a is b or (
        same(a.offset, b.offset)
        and len(a.terms) == len(b.terms)
        and all(x == y and same(p, q) for (x, p), (y, q) in zip(a.terms, b.terms, strict=True))
    )


def same_placement(a: Placement, b: Placement) -> bool:
    """Equal for every size."""
    return a is b or (len(a) == len(b) and all(map(same_index, a, b)))


def axes_of(placement: Placement) -> set[int]:
    """The axes of the domain that a value depends on."""
    return {axis for index in placement for axis, _ in index.terms}


def broadcast(placement: Placement, shape: Shape) -> Placement:
    """The placement of an elementwise input of this shape, given that of the result."""
    lead = len(placement) - len(shape)
    if not lead and not any([n.__class__ is int and n == 1 for n in shape]):
        return placement
    return tuple([ZERO if n.__class__ is int and n == 1 else p for n, p in zip(shape, placement[lead:], strict=True)])


Refine = Callable[[int, Size], tuple[int, int]]  # (axis, inner size) -> (outer axis, inner axis)


def pull(view: Node, placement: Placement, sizes: Callable[[int], Size], refine: Refine) -> Placement | None:
    """The placement of a view's input, given that of its result; None where it is not affine."""
    name, before = view.operator.name, view.inputs[0].shape
    if name == "astype":
        return placement
    if name == "permute_dims":
        return tuple(placement[view.attributes[0].index(i)] for i in range(len(before)))
    if name == "expand_dims":
        return tuple(p for i, p in enumerate(placement) if i not in view.attributes[0])
    if name == "squeeze":
        rest = iter(placement)
        return tuple(ZERO if i in view.attributes[0] else next(rest) for i in range(len(before)))
    if name == "broadcast_to":
        return broadcast(placement, before)
    if name == "index":
        return _pull_index(view, placement, before)
    if name == "windows":
        return _pull_windows(view, placement)
    return _pull_reshape(before, view.shape, placement, sizes, refine)


def _pull_index(view: Node, placement: Placement, before: Shape) -> Placement:
    rest, found = iter(placement), []
    for size, entry in zip(before, _entries(view, len(before)), strict=True):
        first, step = _first_and_step(size, entry)
        found.append(Index(first) if step is None else next(rest).times(step).plus(Index(first)))
    return tuple(found)


def _pull_windows(view: Node, placement: Placement) -> Placement:
    kernel, steps, taps = view.attributes
    first = len(placement) - 2 * len(kernel)
    places, inside = placement[first : first + len(kernel)], placement[first + len(kernel) :]
    starts = (p.times(s) for p, s in zip(places, steps, strict=True))
    return (*placement[:first], *(a.plus(b.times(d)) for a, b, d in zip(starts, inside, taps, strict=True)))


def _pull_reshape(
    before: Shape, after: Shape, placement: Placement, sizes: Callable[[int], Size], refine: Refine
) -> Placement | None:
    blocks = _blocks(before, after)
    if blocks is None:
        return None
    found: dict[int, Index] = {}
    for ins, outs in blocks:
        flat, step = ZERO, 1
        for j in reversed(outs):
            flat, step = flat.plus(placement[j].times(step)), step * after[j]
        if len(ins) == 1:
            found[ins[0]] = flat
            continue
        parts = _unravel(flat, [before[i] for i in ins], sizes, refine)
        if parts is None:
            return None
        found.update(zip(ins, parts, strict=True))
    return tuple(found.get(i, ZERO) for i in range(len(before)))


def _blocks(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Groups of axes (before, after) with equal products, smallest first; axes of size 1 left out."""
    ins = [i for i, n in enumerate(before) if not is_one(n)]
    outs = [j for j, n in enumerate(after) if not is_one(n)]
    blocks = []
    while ins and outs:
        left, right = [ins.pop(0)], [outs.pop(0)]
        a, b = before[left[0]], after[right[0]]
        while not same(a, b):
            if exact_quotient(a, b) is not None and outs:
                right.append(outs.pop(0))
                b = b * after[right[-1]]
            elif exact_quotient(b, a) is not None and ins:
                left.append(ins.pop(0))
                a = a * before[left[-1]]
            elif ins and outs:  # neither divides the other yet: (2, 3) and (3, 2)
                left.append(ins.pop(0))
                right.append(outs.pop(0))
                a, b = a * before[left[-1]], b * after[right[-1]]
            else:
                return None
        blocks.append((left, right))
    return None if ins or outs else blocks


def _unravel(flat: Index, shape: list[Size], sizes: Callable[[int], Size], refine: Refine) -> list[Index] | None:
    """One index for each size such that together they mean `flat`: needs axes that fill the block without a gap."""
    chain = _chain(flat, product(shape), sizes)
    if chain is None:
        return None
    found = []
    for size in reversed(shape):
        index, filled = ZERO, 1
        while not same(filled, size):
            rest = exact_quotient(size, filled)
            if rest is None or not chain:
                return None
            axis = chain.pop(0)
            whole = sizes(axis)
            if exact_quotient(rest, whole) is None:
                if exact_quotient(whole, rest) is None:
                    return None
                outer, axis = refine(axis, rest)
                chain.insert(0, outer)
                whole = rest
            index, filled = index.plus(axis_index(axis).times(filled)), filled * whole
        found.append(index)
    return list(reversed(found)) if not chain else None


def _chain(flat: Index, total: Size, sizes: Callable[[int], Size]) -> list[int] | None:
    """The axes of a flat index, innermost first, if it counts 0, 1, 2.. up to total."""
    terms, chain, step = list(flat.terms), [], 1
    while terms:
        fitting = next((t for t in terms if same(t[1], step)), None)
        if fitting is None:
            return None
        terms.remove(fitting)
        chain.append(fitting[0])
        step = step * sizes(fitting[0])
    return chain if same(flat.offset, 0) and same(step, total) else None
