"""Shape rules: what shape an operator gives, for sizes that are ints or symbolic dimensions alike.

Every rule has the form rule(facts, where, shapes, *attributes) -> shape. Sizes that have to be equal are equated through
`facts`; what can never fit raises ShapeError. Axes in attributes are never negative (`axis_number` makes them so)."""

from __future__ import annotations

import operator

from dvm_rt.errors import ShapeError
from dvm_rt.graph.symbols import (
    Dim,
    Facts,
    Shape,
    Size,
    cancelled,
    exact_quotient,
    floordiv,
    minimum,
    product,
    same,
)
from dvm_rt.isa.layout import LIMITS

RANK_MAX = LIMITS["MAX_RANK"]
Bound = int | Dim | None
Entry = Size | tuple[Bound, Bound, Bound]  # an index (drops the axis), or (start, stop, step)
WHOLE = (None, None, None)  # all of an axis


def elementwise(facts: Facts, where: str, shapes: tuple[Shape, ...], *_: object) -> Shape:
    """NumPy broadcasting: shapes are aligned at the end; a size of 1 stretches."""
    first = shapes[0]
    for other in shapes[1:]:
        if other is not first:
            first = _broadcast(facts, where, first, other)
    return first


def _broadcast(facts: Facts, where: str, a: Shape, b: Shape) -> Shape:
    if len(a) < len(b):
        a, b = b, a
    lead = len(a) - len(b)
    sizes = list(a[:lead])
    for x, y in zip(a[lead:], b, strict=True):
        if y.__class__ is int and y == 1:
            sizes.append(x)
        elif x.__class__ is int and x == 1:
            sizes.append(y)
        elif x.__class__ is int and y.__class__ is int and x != y:
            raise ShapeError(f"{where}: shapes do not broadcast, got {a} and {b}, allowed equal sizes or 1")
        else:
            sizes.append(facts.equate(x, y, where))
    return tuple(sizes)


def broadcast_to(facts: Facts, where: str, shapes: tuple[Shape, ...], shape: Shape) -> Shape:
    """The given shape, into which the input's broadcasts."""
    (source,) = shapes
    if len(source) > len(shape):
        raise ShapeError(f"{where}: rank falls, got {source} to {shape}, allowed at least rank {len(source)}")
    for x, y in zip(source, shape[len(shape) - len(source) :], strict=True):
        if not (x.__class__ is int and x == 1):
            facts.equate(x, y, where)
    return checked_shape(where, shape)


def reduced(facts: Facts, where: str, shapes: tuple[Shape, ...], axes: tuple[int, ...], keepdims: bool) -> Shape:
    """Without the axes, or with size 1 there."""
    (source,) = shapes
    if keepdims:
        return tuple([1 if i in axes else n for i, n in enumerate(source)])
    return tuple([n for i, n in enumerate(source) if i not in axes])


def reduced_with_identity_missing(facts: Facts, where: str, shapes: tuple[Shape, ...], axes: tuple[int, ...],
                                  keepdims: bool) -> Shape:
    """As reduced; the largest of nothing is refused where the size is known."""
    for i in axes:
        if same(shapes[0][i], 0):
            raise ShapeError(f"{where}: nothing to reduce, got shape {shapes[0]} over axes {axes}, allowed sizes above 0")
    return reduced(facts, where, shapes, axes, keepdims)


def matmul(facts: Facts, where: str, shapes: tuple[Shape, ...]) -> Shape:
    """(..., M, K) x (..., K, N); batch dimensions broadcast; a 1-d operand is a row on the left, a column on the right."""
    a, b = shapes
    if not a or not b:
        raise ShapeError(f"{where}: rank, got {a} and {b}, allowed at least one dimension each")
    left, right = (a if len(a) > 1 else (1, *a)), (b if len(b) > 1 else (*b, 1))
    if left[-1].__class__ is int and right[-2].__class__ is int and left[-1] != right[-2]:
        raise ShapeError(f"{where}: inner sizes differ, got {a} and {b}, allowed (..., M, K) and (..., K, N)")
    facts.equate(left[-1], right[-2], where)
    batch = elementwise(facts, where, (left[:-2], right[:-2]))
    return batch + ((left[-2],) if len(a) > 1 else ()) + ((right[-1],) if len(b) > 1 else ())


def grouped(facts: Facts, where: str, shapes: tuple[Shape, ...]) -> Shape:
    """(M, K) x (G, K, N) with (G,) numbers of rows."""
    x, w, rows = shapes
    if (len(x), len(w), len(rows)) != (2, 3, 1):
        raise ShapeError(f"{where}: ranks, got {x}, {w} and {rows}, allowed (M, K), (G, K, N) and (G,)")
    for a, b, what in ((x[1], w[1], "inner sizes"), (w[0], rows[0], "numbers of groups")):
        if a.__class__ is int and b.__class__ is int and a != b:
            raise ShapeError(f"{where}: {what} differ, got {x}, {w} and {rows}, allowed (M, K), (G, K, N) and (G,)")
        facts.equate(a, b, where)
    return x[0], w[2]


def attention(facts: Facts, where: str, shapes: tuple[Shape, ...], *_: object) -> Shape:
    """q (..., M, D), k (..., T, D), v (..., T, E), mask broadcasting to (..., M, T); batch dimensions broadcast."""
    q, k, v, *masks = shapes
    if min(len(q), len(k), len(v)) < 2:
        raise ShapeError(f"{where}: rank, got {q}, {k} and {v}, allowed at least two dimensions each")
    if q[-1].__class__ is int and k[-1].__class__ is int and q[-1] != k[-1]:
        raise ShapeError(f"{where}: widths of the heads differ, got {q} and {k}, allowed (..., M, D) and (..., T, D)")
    facts.equate(q[-1], k[-1], where)
    facts.equate(k[-2], v[-2], where)
    batch = elementwise(facts, where, (q[:-2], k[:-2], v[:-2]))
    for mask in masks:
        scores = (*batch, q[-2], k[-2])
        if len(mask) > len(scores) or len(_broadcast(facts, where, scores, mask)) != len(scores):
            raise ShapeError(f"{where}: rank of the mask, got {mask}, allowed at most that of {scores}")
        for size, full in zip(reversed(mask), reversed(scores), strict=False):
            if not (size.__class__ is int and size == 1):
                facts.equate(size, full, where)
    return (*batch, q[-2], v[-1])


def linear(facts: Facts, where: str, shapes: tuple[Shape, ...]) -> Shape:
    """(..., K) with weights (N, K) and bias (N,)."""
    x, w = shapes[:2]
    if not x or len(w) != 2:
        raise ShapeError(f"{where}: rank, got {x} and weights {w}, allowed (..., K) and (N, K)")
    facts.equate(x[-1], w[1], where)
    for bias in shapes[2:]:
        if len(bias) != 1:
            raise ShapeError(f"{where}: rank of the bias, got {bias}, allowed ({w[0]},)")
        facts.equate(bias[0], w[0], where)
    return (*x[:-1], w[0])


def permuted(facts: Facts, where: str, shapes: tuple[Shape, ...], axes: tuple[int, ...]) -> Shape:
    """Axis i of the result is axis axes[i] of the input."""
    (source,) = shapes
    if sorted(axes) != list(range(len(source))):
        raise ShapeError(f"{where}: axes, got {axes}, allowed a permutation of 0 to {len(source) - 1}")
    return tuple([source[i] for i in axes])


def reshaped(facts: Facts, where: str, shapes: tuple[Shape, ...], shape: Shape) -> Shape:
    """The same elements in row-major order; one size may be -1."""
    (source,) = shapes
    total, open_axes = product(source), [i for i, n in enumerate(shape) if n.__class__ is int and n == -1]
    if len(open_axes) > 1:
        raise ShapeError(f"{where}: open sizes, got {shape}, allowed one -1")
    if not open_axes:
        known = product(shape)
        if total.__class__ is int and known.__class__ is int and total != known:
            raise ShapeError(f"{where}: element counts differ, got {source} to {shape}, allowed {total} elements")
        facts.equate(total, known, where)
        return checked_shape(where, shape)
    known = product(n for i, n in enumerate(shape) if i != open_axes[0])
    if same(known, 0):
        raise ShapeError(f"{where}: an open size beside a size of 0, got {source} to {shape}, allowed a full shape")
    rest = exact_quotient(total, known)
    if rest is None:
        if total.__class__ is int and known.__class__ is int:
            raise ShapeError(f"{where}: element counts differ, got {source} to {shape}, allowed divisors of {total}")
        above, below = cancelled(total, known)
        rest = floordiv(above, below)
        facts.equate(rest * below, above, where)
        rest = facts.resolve(rest)
    return checked_shape(where, tuple([rest if i == open_axes[0] else n for i, n in enumerate(shape)]))


def expanded(facts: Facts, where: str, shapes: tuple[Shape, ...], axes: tuple[int, ...]) -> Shape:
    """A size of 1 at each of `axes` of the result."""
    sizes = iter(shapes[0])
    return checked_shape(where, tuple([1 if i in axes else next(sizes) for i in range(len(shapes[0]) + len(axes))]))


def squeezed(facts: Facts, where: str, shapes: tuple[Shape, ...], axes: tuple[int, ...]) -> Shape:
    """Without `axes`, whose sizes must be 1."""
    for i in axes:
        facts.equate(shapes[0][i], 1, where)
    return tuple([n for i, n in enumerate(shapes[0]) if i not in axes])


def indexed(facts: Facts, where: str, shapes: tuple[Shape, ...], entries: tuple[Entry, ...]) -> Shape:
    """Basic indexing: one entry for each of the first axes."""
    (source,) = shapes
    if len(entries) > len(source):
        raise ShapeError(f"{where}: too many indices, got {len(entries)}, allowed {len(source)} for shape {source}")
    sizes = []
    for size, entry in zip(source, entries, strict=False):
        if isinstance(entry, tuple):
            sizes.append(selected(facts, where, size, entry)[1])
        else:
            index_offset(facts, where, size, entry)
    return tuple(sizes) + source[len(entries) :]


def index_offset(facts: Facts, where: str, size: Size, index: Size) -> Size:
    """The element that an index means; negative ones count from the end. Raises ShapeError where it is outside."""
    offset = index if _is_natural(index) else size + index
    if isinstance(offset, int) and isinstance(size, int) and not 0 <= offset < size:
        raise ShapeError(f"{where}: index outside, got {index}, allowed {-size} to {size - 1}")
    facts.demand_at_least(offset, 0, where)
    facts.demand_at_least(size, offset + 1, where)
    return offset


def selected(facts: Facts, where: str, size: Size, entry: tuple[Bound, Bound, Bound]) -> tuple[Size, Size, int]:
    """(first element, number of elements, step) of a slice.

    Known sizes follow NumPy, which cuts bounds off at the ends. On a symbolic size, or with symbolic bounds, they have
    to lie inside (ShapeError at the call, else): only a plain `[:k]` is cut off, at min(k, size)."""
    start, stop, step = entry
    if entry == WHOLE:
        return 0, size, 1
    step = 1 if step is None else step
    if not isinstance(step, int) or step == 0:
        raise ShapeError(f"{where}: step of a slice, got {step}, allowed whole numbers but 0")
    if all(isinstance(n, int) or n is None for n in (size, start, stop)):
        first, last, step = slice(start, stop, step).indices(size)
        count = len(range(first, last, step))
        return (first if count else 0), count, step
    if step < 0:
        if start is not None or stop is not None:
            raise ShapeError(f"{where}: slice, got bounds {start}:{stop} with step {step}, allowed [::{step}] on a symbolic size")
        return size - 1, floordiv(size - 1 - step, -step), step
    first = 0 if start is None else start if _is_natural(start) else size + start
    if stop is None:
        last = size
    elif same(first, 0) and isinstance(stop, int) and stop >= 0:
        last = minimum(stop, size)
    else:
        last = stop if _is_natural(stop) else size + stop
        facts.demand_at_least(size, last, where)
    facts.demand_at_least(first, 0, where)
    facts.demand_at_least(last, first, where)
    return first, floordiv(last - first + step - 1, step), step


def taken(facts: Facts, where: str, shapes: tuple[Shape, ...]) -> Shape:
    """Rows of the first input (axis 0), one for each index."""
    table, indices = shapes
    if not table:
        raise ShapeError(f"{where}: rank of the table, got (), allowed at least one dimension")
    if not same(product(indices), 0):
        if same(table[0], 0):
            raise ShapeError(f"{where}: rows, got a table of shape {table}, allowed at least one row")
        facts.demand_at_least(table[0], 1, where)
    return checked_shape(where, indices + table[1:])


def concatenated(facts: Facts, where: str, shapes: tuple[Shape, ...], axis: int) -> Shape:
    """The inputs one behind the other along an axis; all other sizes are equal."""
    sizes, total = list(shapes[0]), shapes[0][axis]
    for shape in shapes[1:]:
        if len(shape) != len(sizes):
            raise ShapeError(f"{where}: ranks differ, got {shapes[0]} and {shape}, allowed one rank")
        for i, size in enumerate(shape):
            if i != axis:
                sizes[i] = facts.equate(sizes[i], size, where)
        total = total + shape[axis]
    sizes[axis] = total
    return tuple(sizes)


def stacked(facts: Facts, where: str, shapes: tuple[Shape, ...], axis: int) -> Shape:
    """The inputs beside each other along a new axis."""
    one = shapes[0]
    for shape in shapes[1:]:
        if len(shape) != len(one):
            raise ShapeError(f"{where}: ranks differ, got {one} and {shape}, allowed one shape")
        one = tuple([facts.equate(a, b, where) for a, b in zip(one, shape, strict=True)])
    return checked_shape(where, (*one[:axis], len(shapes), *one[axis:]))


def given(facts: Facts, where: str, shapes: tuple[Shape, ...], shape: Shape, *_: object) -> Shape:
    """The shape in the attributes."""
    return checked_shape(where, shape)


def scalar(facts: Facts, where: str, shapes: tuple[Shape, ...], *_: object) -> Shape:
    """No dimensions."""
    return ()


def checked_shape(where: str, shape: Shape) -> Shape:
    """The shape, within the limits of rank and sign."""
    if len(shape) > RANK_MAX:
        raise ShapeError(f"{where}: rank, got {len(shape)}, allowed {RANK_MAX}")
    for size in shape:
        if size.__class__ is int and size < 0:
            raise ShapeError(f"{where}: size, got {size} in {shape}, allowed 0 and more")
    return shape


def axis_number(where: str, axis: int, rank: int) -> int:
    """The axis, any whole number, counted from the front. Raises ShapeError."""
    number = axis if axis.__class__ is int else whole_number(axis)
    if number is None or not -rank <= number < rank:
        raise ShapeError(f"{where}: axis, got {axis!r}, allowed {-rank} to {rank - 1}")
    return number % rank


def whole_number(value: object) -> int | None:
    """The whole number that a value is, NumPy's too; None: it is none."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def axis_numbers(where: str, axis: int | tuple[int, ...] | None, rank: int) -> tuple[int, ...]:
    """Several axes counted from the front, sorted; None means all."""
    if axis is None:
        return tuple(range(rank))
    axes = tuple(sorted(axis_number(where, a, rank) for a in (axis if isinstance(axis, (tuple, list)) else (axis,))))
    if len(set(axes)) != len(axes):
        raise ShapeError(f"{where}: axis twice, got {axis}, allowed different axes")
    return axes


def _is_natural(index: Size) -> bool:
    """Counted from the front: a symbolic index always is."""
    return not isinstance(index, int) or index >= 0
