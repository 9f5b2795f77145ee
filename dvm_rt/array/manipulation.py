"""Functions of the Array API standard that are written with others: creation like something, shapes, simple linear algebra."""

from __future__ import annotations

from collections.abc import Sequence

from dvm_rt.array.array import Array, DTypeLike, binary, promoted
from dvm_rt.array.functions import arange, broadcast_to, concat, full, permute_dims, reshape, where
from dvm_rt.dtypes import DEFAULT_FLOAT
from dvm_rt.errors import ShapeError, UnsupportedOperatorError
from dvm_rt.graph.shapes import axis_number, axis_numbers, elementwise
from dvm_rt.graph.symbols import Facts, Size, product

Axes = int | tuple[int, ...] | None


# ---- creation -----------------------------------------------------------------------------------------------------


def full_like(x: Array, /, value: float, *, dtype: DTypeLike | None = None) -> Array:
    """One value, in the shape and (without a dtype) the dtype of x."""
    return full(x.shape, value, dtype=dtype or x.dtype)


def zeros_like(x: Array, /, *, dtype: DTypeLike | None = None) -> Array:
    """0, in the shape of x."""
    return full_like(x, 0, dtype=dtype)


def ones_like(x: Array, /, *, dtype: DTypeLike | None = None) -> Array:
    """1, in the shape of x."""
    return full_like(x, 1, dtype=dtype)


def linspace(start: float, stop: float, /, num: int, *, dtype: DTypeLike | None = None, endpoint: bool = True) -> Array:
    """`num` numbers at equal distances, the last of them `stop` (with `endpoint`)."""
    steps = max(num - bool(endpoint), 1)
    places = arange(num).astype("float64")
    exact = places * ((stop - start) / steps) + float(start)
    if endpoint and num > 1:
        exact = where(places == steps, float(stop), exact)
    return exact.astype(dtype or DEFAULT_FLOAT)


def eye(rows: Size, columns: Size | None = None, /, *, k: int = 0, dtype: DTypeLike | None = None) -> Array:
    """1 on diagonal k, else 0."""
    columns = rows if columns is None else columns
    return (arange(columns) - k == arange(rows).reshape(rows, 1)).astype(dtype or DEFAULT_FLOAT)


def tril(x: Array, /, *, k: int = 0) -> Array:
    """The last two axes with 0 above diagonal k."""
    return _triangle(x, k, "less_equal")


def triu(x: Array, /, *, k: int = 0) -> Array:
    """The last two axes with 0 below diagonal k."""
    return _triangle(x, k, "greater_equal")


def _triangle(x: Array, k: int, comparison: str) -> Array:
    if x.ndim < 2:
        raise ShapeError(f"array: triangle: rank, got {x.ndim}, allowed 2 and more")
    rows, columns = x.shape[-2:]
    return where(binary(comparison, arange(columns) - k, arange(rows).reshape(rows, 1)), x, full((), 0, dtype=x.dtype))


def meshgrid(*arrays: Array, indexing: str = "xy") -> list[Array]:
    """Each array stretched over the axes of all; "xy": the first two exchanged."""
    order = [1, 0, *range(2, len(arrays))] if indexing == "xy" and len(arrays) > 1 else list(range(len(arrays)))
    shape = tuple([arrays[i].shape[0] for i in order])
    grids = []
    for i, x in enumerate(arrays):
        own = tuple([x.shape[0] if axis == order.index(i) else 1 for axis in range(len(arrays))])
        grids.append(broadcast_to(x.reshape(own), shape))
    return grids


# ---- shapes -------------------------------------------------------------------------------------------------------


def broadcast_arrays(*arrays: Array) -> list[Array]:
    """The arrays in the one shape that they broadcast to."""
    shape = elementwise(Facts(), "array: broadcast_arrays", tuple([x.shape for x in arrays])) if arrays else ()
    return [broadcast_to(x, shape) for x in arrays]


def moveaxis(x: Array, source: int | tuple[int, ...], destination: int | tuple[int, ...], /) -> Array:
    """Axes moved to other places; the others keep their order."""
    given = [source] if isinstance(source, int) else list(source)
    wanted = [destination] if isinstance(destination, int) else list(destination)
    moved = [axis_number("array: moveaxis", a, x.ndim) for a in given]
    places = [axis_number("array: moveaxis", a, x.ndim) for a in wanted]
    order = [a for a in range(x.ndim) if a not in moved]
    for place, axis in sorted(zip(places, moved, strict=True)):
        order.insert(place, axis)
    return permute_dims(x, order)


def flip(x: Array, /, *, axis: Axes = None) -> Array:
    """The elements along axes in the opposite order."""
    axes = axis_numbers("array: flip", axis, x.ndim)
    return x[tuple([slice(None, None, -1 if i in axes else None) for i in range(x.ndim)])]


def roll(x: Array, /, shift: int | tuple[int, ...], *, axis: Axes = None) -> Array:
    """The elements moved along axes; what leaves at one end enters at the other. Sizes have to be known."""
    if axis is None:
        return roll(x.reshape(-1), shift, axis=0).reshape(x.shape)
    axes = axis if isinstance(axis, tuple) else (axis,)
    shifts = shift if isinstance(shift, tuple) else (shift,) * len(axes)
    for by, a in zip(shifts, axes, strict=True):
        a = axis_number("array: roll", a, x.ndim)
        size = x.shape[a]
        if not isinstance(size, int):
            raise UnsupportedOperatorError(f"array: roll: a symbolic size, got {size}, allowed known sizes")
        if size and by % size:
            lead = (slice(None),) * a
            x = concat([x[(*lead, slice(size - by % size, None))], x[(*lead, slice(None, size - by % size))]], axis=a)
    return x


def tile(x: Array, repetitions: tuple[int, ...], /) -> Array:
    """x again and again along each axis."""
    rank = max(x.ndim, len(repetitions))
    times, sizes = (1,) * (rank - len(repetitions)) + tuple(repetitions), (1,) * (rank - x.ndim) + tuple(x.shape)
    for a, count in enumerate(times):
        if count != 1:
            x = x.reshape(sizes)
            stretched = broadcast_to(x.reshape(*sizes[:a], 1, *sizes[a:]), (*sizes[:a], count, *sizes[a:]))
            sizes = (*sizes[:a], count * sizes[a], *sizes[a + 1 :])
            x = stretched.reshape(sizes)
    return x.reshape(sizes)


def repeat(x: Array, repeats: int, /, *, axis: int | None = None) -> Array:
    """Each element several times, one number for all."""
    if not isinstance(repeats, int):
        raise UnsupportedOperatorError("array: repeat: a number for each element is not there yet, allowed one for all")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis_number("array: repeat", axis, x.ndim))
    sizes = x.shape
    stretched = broadcast_to(x.reshape(*sizes[: axis + 1], 1, *sizes[axis + 1 :]), (*sizes[: axis + 1], repeats, *sizes[axis + 1 :]))
    return stretched.reshape(*sizes[:axis], sizes[axis] * repeats, *sizes[axis + 1 :])


def unstack(x: Array, /, *, axis: int = 0) -> tuple[Array, ...]:
    """The slices along an axis."""
    lead = (slice(None),) * axis_number("array: unstack", axis, x.ndim)
    return tuple([x[(*lead, i)] for i in range(x.shape[len(lead)].__index__())])


def diff(x: Array, /, *, axis: int = -1, n: int = 1) -> Array:
    """Differences between neighbours along an axis, n times."""
    lead = (slice(None),) * axis_number("array: diff", axis, x.ndim)
    for _ in range(n):
        x = binary("not_equal" if x.dtype.kind == "b" else "subtract", x[(*lead, slice(1, None))], x[(*lead, slice(None, -1))])
    return x


# ---- linear algebra -----------------------------------------------------------------------------------------------


def vecdot(x: Array, y: Array, /, *, axis: int = -1) -> Array:
    """Sums of products along an axis."""
    a, b = promoted("vecdot", (x, y))
    return binary("multiply", a, b).sum(axis, a.dtype)


def tensordot(x: Array, y: Array, /, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Array:
    """Sums of products over pairs of axes: the last of x with the first of y (a number), or those that are named."""
    left, right = (range(-axes, 0), range(axes)) if isinstance(axes, int) else axes
    ours = [axis_number("array: tensordot", a, x.ndim) for a in left]
    theirs = [axis_number("array: tensordot", a, y.ndim) for a in right]
    rows, columns = ([a for a in range(z.ndim) if a not in used] for z, used in ((x, ours), (y, theirs)))
    shape = tuple([x.shape[a] for a in rows] + [y.shape[a] for a in columns])
    depth = product(x.shape[a] for a in ours)
    matrix = reshape(permute_dims(x, rows + ours), (product(x.shape[a] for a in rows), depth))
    other = reshape(permute_dims(y, theirs + columns), (depth, product(y.shape[a] for a in columns)))
    return binary("matmul", matrix, other).reshape(shape)


__all__ = [
    "full_like", "zeros_like", "ones_like", "linspace", "eye", "tril", "triu", "meshgrid", "broadcast_arrays", "moveaxis", "flip",
    "roll", "tile", "repeat", "unstack", "diff", "vecdot", "tensordot",
]  # fmt: skip
