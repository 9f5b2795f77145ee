"""Functions that move elements: joined, padded, repeated, sorted, picked by index, put by index.

What can be a view, a join or a gather is one; the rest runs as a host function (`isa/host.py`) inside of the same launch.
Functions whose result's size depends on values (`nonzero`, `compress`, `unique_*`) wait for that size: they compute into
memory of the largest size, and give the part that is meant. A @function with `size=`, where what is missing is 0, stays one
launch; without, it has to wait for the size too, and is walked (`array/function.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dvm_rt.array.array import (
    Array,
    DTypeLike,
    Number,
    asarray,
    binary,
    computed,
    demand_at_least,
    flag,
    is_several,
    record,
    shape_of,
    whole,
    wrap,
)
from dvm_rt.array.creation import full
from dvm_rt.array.functions import broadcast_to, concat, count_nonzero, expand_dims, permute_dims, reshape, stack, where
from dvm_rt.array.tracing import NeedsValues, Trace
from dvm_rt.dtypes import bool_, float32, int32, int64, sum_dtype, uint64
from dvm_rt.errors import DeviceOutOfMemoryError, GraphError, ShapeError
from dvm_rt.graph.shapes import axis_number, axis_numbers, whole_number
from dvm_rt.graph.symbols import Dim, Size, same
from dvm_rt.isa.host import ADD, MAX, MIN, MUL, SET

HOW = {"set": SET, "add": ADD, "mul": MUL, "min": MIN, "max": MAX}
INDEX_MAX = (1 << 63) - 1
COPY_BELOW = 0.5  # of the memory: a result that fills less of it moves to memory of its own


class UniqueAll(NamedTuple):
    """What unique_all gives."""

    values: Array
    indices: Array
    inverse_indices: Array
    counts: Array


class UniqueCounts(NamedTuple):
    """What unique_counts gives."""

    values: Array
    counts: Array


class UniqueInverse(NamedTuple):
    """What unique_inverse gives."""

    values: Array
    inverse_indices: Array


class TopK(NamedTuple):
    """What topk gives."""

    values: Array
    indices: Array


def _array(x: object) -> Array:
    return x if isinstance(x, Array) else asarray(x)


def _indices(given: object) -> Array:
    """Indices as gathers and scatters read them: whole numbers of other dtypes than int32 and int64 become int64, and those
    that it cannot hold its largest, which is outside of every array."""
    x = _array(given)
    if x.dtype.kind not in "iu" or x.dtype in (int32, int64):
        return x
    return (binary("minimum", x, INDEX_MAX) if x.dtype is uint64 else x).astype(int64)


def _along(x: Array, axis: int, part: slice | int) -> Array:
    return x[(*(slice(None),) * axis, part)]


# ---- other places -------------------------------------------------------------------------------------------------


def flip(x: Array, /, *, axis: int | tuple[int, ...] | None = None) -> Array:
    """Axes in the opposite order."""
    x = _array(x)
    axes = axis_numbers("array: flip", axis, x.ndim)
    return x[tuple(slice(None, None, -1) if i in axes else slice(None) for i in range(x.ndim))] if axes else x


def roll(x: Array, /, shift: int | tuple[int, ...], *, axis: int | tuple[int, ...] | None = None) -> Array:
    """Elements moved along axes; what leaves at one end comes in at the other. axis None: of the flattened array."""
    x = _array(x)
    if axis is None:
        return reshape(roll(reshape(x, (-1,)) if x.ndim != 1 else x, shift, axis=0), x.shape)
    shifts = [by if isinstance(by, Dim) else whole(by, "roll: shift") for by in (shift if is_several(shift) else (shift,))]
    axes = tuple(axis) if is_several(axis) else (axis,)
    if len(shifts) == 1:
        shifts = shifts * len(axes)
    if len(shifts) != len(axes):
        raise ShapeError(f"array: roll: shifts, got {shift} for axes {axis}, allowed one for each axis, or one for all")
    for by, i in zip(shifts, axes, strict=True):
        i = axis_number("array: roll", i, x.ndim)
        size = x.shape[i]
        if isinstance(size, int):
            by = by % size if size else 0
        if by:
            x = concat([_along(x, i, slice(-by, None)), _along(x, i, slice(None, -by))], axis=i)
    return x


def moveaxis(x: Array, source: int | tuple[int, ...], destination: int | tuple[int, ...], /) -> Array:
    """Axes moved to other positions; the others keep their order."""
    x = _array(x)
    sources, targets = (tuple(axis_number("array: moveaxis", a, x.ndim)
                              for a in (g if is_several(g) else (g,))) for g in (source, destination))
    if len(sources) != len(targets) or len(set(sources)) != len(sources) or len(set(targets)) != len(targets):
        raise ShapeError(f"array: moveaxis: axes, got {source} to {destination}, allowed as many different ones on both sides")
    order = [i for i in range(x.ndim) if i not in sources]
    for to, of in sorted(zip(targets, sources, strict=True)):
        order.insert(to, of)
    return permute_dims(x, tuple(order))


def unstack(x: Array, /, *, axis: int = 0) -> tuple[Array, ...]:
    """The parts along an axis of known size, without it."""
    x = _array(x)
    axis = axis_number("array: unstack", axis, x.ndim)
    return tuple(_along(x, axis, i) for i in range(x.shape[axis].__index__()))


def broadcast_arrays(*arrays: Array) -> list[Array]:
    """The arrays stretched to one shape."""
    given = [_array(a) for a in arrays]
    rank = max((a.ndim for a in given), default=0)
    lined = [(1,) * (rank - a.ndim) + tuple(a.shape) for a in given]
    shape = tuple(next((n for n in sizes if not same(n, 1)), 1) for sizes in zip(*lined, strict=True))
    return [broadcast_to(a, shape) for a in given]


def tile(x: Array, repetitions: int | Sequence[int], /) -> Array:
    """Copies of the whole array beside each other, so many along each of the last axes."""
    x = _array(x)
    given = repetitions if is_several(repetitions) else (repetitions,)
    counts = tuple([n if isinstance(n, Dim) else whole(n, "tile: repetitions", least=0) for n in given])
    counts = (1,) * (x.ndim - len(counts)) + counts
    if len(counts) > x.ndim:
        x = reshape(x, (*(1,) * (len(counts) - x.ndim), *x.shape))
    for axis, count in enumerate(counts):
        if count != 1:
            x = _repeated(x, axis, count, before=True)
    return x


def diff(x: Array, /, *, axis: int = -1, n: int = 1) -> Array:
    """Differences between neighbours along an axis, n times; of bools whether they differ. Raises ShapeError."""
    x = _array(x)
    axis = axis_number("array: diff", axis, x.ndim)
    times, size = whole(n, "diff: n", least=0), x.shape[axis]
    for _ in range(min(times, size) if isinstance(size, int) else times):  # of nothing there is nothing
        x = binary("not_equal" if x.dtype is bool_ else "subtract", _along(x, axis, slice(1, None)),
                   _along(x, axis, slice(None, -1)))
    return x


def repeat(x: Array, repeats: int | Array, /, *, axis: int | None = None) -> Array:
    """Each element so often, along an axis (None: of the flattened array). An array of counts is fetched: its sum is a size."""
    x = _array(x)
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    axis = axis_number("array: repeat", axis, x.ndim)
    if isinstance(repeats, int):
        return _repeated(x, axis, whole(repeats, "repeat: repeats", least=0), before=False)
    given = _array(repeats)
    if given.dtype.kind not in "iu" or given.shape not in ((), (1,), (x.shape[axis],)):
        raise ShapeError(f"array: repeat: repeats, got {given.dtype} {given.shape}, allowed integers, ({x.shape[axis]},)")
    counts = np.broadcast_to(_value(given, "repeat"), (x.shape[axis],))
    if (counts < 0).any():
        raise ShapeError(f"array: repeat: repeats, got {int(counts.min())}, allowed 0 and more")
    total = counts.sum(dtype=np.float64)
    try:
        if total >= 2.0**62:  # where NumPy's own total wraps around, and it writes beyond what it has
            raise MemoryError
        return take(x, asarray(np.repeat(np.arange(counts.size), counts.astype(np.int64))), axis=axis)
    except MemoryError:
        raise DeviceOutOfMemoryError(f"array: repeat: elements, got {total:g}, allowed what this process can have") from None


def _repeated(x: Array, axis: int, count: int, before: bool) -> Array:
    """A view that stretches a new axis before or behind this one, made one with it."""
    size, shape = x.shape[axis], tuple(x.shape)
    at = axis if before else axis + 1
    stretched = broadcast_to(reshape(x, (*shape[:at], 1, *shape[at:])), (*shape[:at], count, *shape[at:]))
    return reshape(stretched, (*shape[:axis], size * count, *shape[axis + 1 :]))


def pad(x: Array, widths: int | Sequence[Sequence[int]], /, *, mode: str = "constant", value: Number = 0) -> Array:
    """x with a margin: widths holds (before, after) for each axis; negative ones cut off.

    mode: constant (value), edge (the outermost element), reflect (mirrored, without the edge), wrap (the other end)."""
    x = _array(x)
    one = whole_number(widths)
    pairs = [(one, one)] * x.ndim if one is not None else _pairs(widths)
    if pairs is None or len(pairs) != x.ndim:
        raise ShapeError(f"array: pad: widths, got {widths} for shape {x.shape}, allowed (before, after) for each axis")
    if mode not in _MARGINS:
        raise ShapeError(f"array: pad: mode, got {mode}, allowed {', '.join(_MARGINS)}")
    for axis, (before, after) in enumerate(pairs):
        if before < 0 or after < 0:
            x = _along(x, axis, slice(max(-before, 0), min(after, 0) or None))
        parts = [_MARGINS[mode](x, axis, width, at_end, value) for width, at_end in ((before, False), (after, True)) if width > 0]
        if parts:
            x = concat([*parts[: before > 0], x, *parts[before > 0 :]], axis=axis)
    return x


def _pairs(widths: object) -> list[tuple[int, int]] | None:
    pairs = []
    for pair in widths if is_several(widths) else [None]:
        numbers = [whole_number(w) for w in pair] if is_several(pair) else []
        if len(numbers) != 2 or None in numbers:
            return None
        pairs.append((numbers[0], numbers[1]))
    return pairs


def _constant_margin(x: Array, axis: int, width: int, at_end: bool, value: Number) -> Array:
    shape = (*x.shape[:axis], width, *x.shape[axis + 1 :])
    return full(shape, bool(value) if x.dtype is bool_ else value, dtype=x.dtype)


def _edge_margin(x: Array, axis: int, width: int, at_end: bool, value: Number) -> Array:
    edge = expand_dims(_along(x, axis, -1 if at_end else 0), axis=axis)
    return broadcast_to(edge, (*x.shape[:axis], width, *x.shape[axis + 1 :]))


def _reflected_margin(x: Array, axis: int, width: int, at_end: bool, value: Number) -> Array:
    size = x.shape[axis]
    if isinstance(size, int) and width >= size:
        raise ShapeError(f"array: pad: width of a reflection, got {width}, allowed below the size {size}")
    part = _along(x, axis, slice(size - 1 - width, size - 1) if at_end else slice(1, 1 + width))
    return flip(part, axis=axis)


def _wrapped_margin(x: Array, axis: int, width: int, at_end: bool, value: Number) -> Array:
    size = x.shape[axis]
    if isinstance(size, int) and width > size:
        raise ShapeError(f"array: pad: width of a wrap, got {width}, allowed at most the size {size}")
    demand_at_least(size, width, "array: pad: size that is wrapped")
    return _along(x, axis, slice(0, width) if at_end else slice(size - width, size))


_MARGINS: dict[str, Callable[..., Array]] = {
    "constant": _constant_margin, "edge": _edge_margin, "reflect": _reflected_margin, "wrap": _wrapped_margin,
}  # fmt: skip


# ---- picked and put by index --------------------------------------------------------------------------------------


def take(x: Array, indices: Array, /, *, axis: int | None = None) -> Array:
    """Elements or slices of x along an axis, one for each index (negative ones count from the end; DeviceTrap outside).
    axis None: 0."""
    x, indices = _array(x), _indices(indices)
    axis = axis_number("array: take", 0 if axis is None else axis, x.ndim)
    if same(x.shape[axis], 0) and not same(indices.size, 0):
        raise ShapeError(f"array: take: rows, got a table of shape {x.shape} along axis {axis}, allowed at least one row")
    if axis == 0:
        return record("take", (x, indices))
    rows = record("take", (permute_dims(x, (axis, *(i for i in range(x.ndim) if i != axis))), indices))
    rank = indices.ndim
    return permute_dims(rows, (*range(rank, rank + axis), *range(rank), *range(rank + axis, rank + x.ndim - 1)))


def take_along_axis(x: Array, indices: Array, /, *, axis: int = -1) -> Array:
    """For each index the element there along the axis, at the same place along the others."""
    x, indices = _array(x), _indices(indices)
    axis = axis_number("array: take_along_axis", axis, x.ndim)
    lead = [m if same(n, 1) else n for n, m in zip(x.shape, indices.shape, strict=False)]
    if indices.ndim == x.ndim:
        x = broadcast_to(x, tuple(n if i == axis else m for i, (n, m) in enumerate(zip(x.shape, lead, strict=True))))
        indices = broadcast_to(indices, tuple(n if i == axis else m
                                              for i, (n, m) in enumerate(zip(indices.shape, x.shape, strict=True))))
    return record("take_along_axis", (x, indices), (axis,))


def gather_nd(x: Array, indices: Array, /, *, batch_dims: int = 0) -> Array:
    """Elements or slices of x by coordinates, which the last axis of the indices holds."""
    return record("gather_nd", (_array(x), _indices(indices)), (whole(batch_dims, "gather_nd: batch_dims"),))


def scatter(x: Array, indices: Array, updates: Array, /, *, axis: int = 0, how: str = "set") -> Array:
    """x with updates put at indices along an axis. how: set (of duplicates the last in row order wins), add, mul, min, max
    (duplicates combine in row order)."""
    x = _array(x)
    updates = _like(updates, x, "scatter")
    return record("scatter", (x, _indices(indices), updates), (axis_number("array: scatter", axis, x.ndim), _how(how)))


def scatter_nd(x: Array, indices: Array, updates: Array, /, *, how: str = "set") -> Array:
    """x with updates put at coordinates, which the last axis of the indices holds; how: as in scatter."""
    x = _array(x)
    return record("scatter_nd", (x, _indices(indices), _like(updates, x, "scatter_nd")), (_how(how),))


def index_add(x: Array, indices: Array, updates: Array, /, *, axis: int = 0) -> Array:
    """x with each slice of the updates added to the slice of x that its index names; duplicates in order."""
    x = _array(x)
    axis = axis_number("array: index_add", axis, x.ndim)
    moved = scatter_nd(moveaxis(x, axis, 0), expand_dims(_array(indices), axis=-1),
                       moveaxis(_like(updates, x, "index_add"), axis, 0), how="add")
    return moveaxis(moved, 0, axis)


def _how(how: str) -> int:
    if not isinstance(how, str) or how not in HOW:
        raise GraphError(f"array: scatter: how, got {how!r}, allowed {', '.join(HOW)}")
    return HOW[how]


def _like(value: object, x: Array, name: str) -> Array:
    """A value to be stored in x: an array of its dtype."""
    if isinstance(value, Array):
        return value if value.dtype is x.dtype else value.astype(x.dtype)
    return asarray(value, x.dtype)


# ---- order --------------------------------------------------------------------------------------------------------


def sort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    """Elements in order along an axis; always stable; NaN counts as the largest."""
    x = _array(x)
    return record("sort", (x,), (axis_number("array: sort", axis, x.ndim), int(flag(descending, "sort: descending"))))


def argsort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    """int64 indices that sort along an axis; always stable; NaN counts as the largest."""
    x = _array(x)
    return record("argsort", (x,), (axis_number("array: argsort", axis, x.ndim), int(flag(descending, "argsort: descending"))))


def topk(x: Array, k: Size, /, *, axis: int = -1, largest: bool = True) -> TopK:
    """The k largest (or smallest) elements along an axis, in order, and their indices; of equal ones the first."""
    x = _array(x)
    axis = axis_number("array: topk", axis, x.ndim)
    indices = record("topk", (x,), (axis, *shape_of((k,), "topk"), int(flag(largest, "topk: largest"))))
    return TopK(take_along_axis(x, indices, axis=axis), indices)


def searchsorted(ordered: Array, values: Array, /, *, side: str = "left") -> Array:
    """int64 places where the values would go in an ordered vector, before (left) or behind (right) equal elements."""
    if not isinstance(side, str) or side not in ("left", "right"):
        raise GraphError(f"array: searchsorted: side, got {side!r}, allowed left, right")
    ordered = _array(ordered)
    return record("searchsorted", (ordered, _like(values, ordered, "searchsorted")), (int(side == "right"),))


# ---- running sums ----------------------------------------------------------------------------------------------------


def cumulative_sum(
    x: Array, /, *, axis: int | None = None, dtype: DTypeLike | None = None, include_initial: bool = False,
    reverse: bool = False, exclusive: bool = False,
) -> Array:  # fmt: skip
    """Running sums along an axis (None: the only one), one element added after another. Integers are summed in int64 (uint64),
    float16 and bfloat16 in float32, unless `dtype` says otherwise; rounded at the end. include_initial: one more element, a
    0 in front; exclusive: each sum without its own element; reverse: from the last element to the first."""
    return _running("cumulative_sum", x, axis, dtype, (include_initial, reverse, exclusive))


def cumulative_prod(
    x: Array, /, *, axis: int | None = None, dtype: DTypeLike | None = None, include_initial: bool = False,
    reverse: bool = False, exclusive: bool = False,
) -> Array:  # fmt: skip
    """Running products along an axis, by the rules of cumulative_sum; nothing gives 1."""
    return _running("cumulative_prod", x, axis, dtype, (include_initial, reverse, exclusive))


def _running(name: str, x: Array, axis: int | None, dtype: DTypeLike | None, how: tuple[bool, bool, bool]) -> Array:
    x = _array(x)
    include_initial, reverse, exclusive = (flag(value, f"{name}: include_initial, reverse and exclusive") for value in how)
    if axis is None and x.ndim != 1:
        raise ShapeError(f"array: {name}: axis, got None for {x.ndim} axes, allowed None for one axis only")
    if include_initial and exclusive:
        raise GraphError(f"array: {name}: include_initial with exclusive, got both, allowed one of them")
    number = axis_number(f"array: {name}", 0 if axis is None else axis, x.ndim)
    lead = 2 if include_initial else int(exclusive)
    x = x.astype(sum_dtype(x.dtype) if dtype is None else dtype)
    return record("cumulative", (x,), (number, int(name == "cumulative_prod"), int(reverse), lead))


# ---- sizes that depend on values ----------------------------------------------------------------------------------


def argwhere(x: Array, /, *, size: Size | None = None) -> Array:
    """(n, rank): the coordinates of the elements that are not 0."""
    x = _array(x)
    return _bounded("nonzero", record("nonzero", (x,)), lambda: count_nonzero(x), size)


def nonzero(x: Array, /, *, size: Size | None = None) -> tuple[Array, ...]:
    """The coordinates of the elements that are not 0, one vector for each axis."""
    if _array(x).ndim == 0:
        raise ShapeError("array: nonzero: rank, got 0, allowed 1 and more")
    places = argwhere(x, size=size)
    return tuple(places[:, i] for i in range(places.shape[1]))


def compress(x: Array, mask: Array, /, *, size: Size | None = None) -> Array:
    """Elements (or slices) of x where the mask over its first axes holds: x[mask]."""
    mask = _array(mask)
    return _bounded("compress", record("compress", (_array(x), mask)), lambda: count_nonzero(mask), size)


def _unique(x: Array, names: Sequence[str], size: Size | None) -> list[Array]:
    x = _array(x)
    made = {name: record(name, (x,)) for name in names}
    length = record("unique_length", (x,)) if size is None else None
    if length is not None:
        _refuse_traced("unique", x)
        length._session.flush([a._node for a in (*made.values(), length)], "data-dependent shape")
    return [a if n == "unique_inverse" else _bounded("unique", a, lambda: length, size) for n, a in made.items()]


def unique_values(x: Array, /, *, size: Size | None = None) -> Array:
    """The different elements in order, flat; each NaN is one."""
    return _unique(x, ("unique_values",), size)[0]


def unique_counts(x: Array, /, *, size: Size | None = None) -> UniqueCounts:
    """The different elements in order, and how often each stands there."""
    return UniqueCounts(*_unique(x, ("unique_values", "unique_counts"), size))


def unique_inverse(x: Array, /, *, size: Size | None = None) -> UniqueInverse:
    """The different elements in order, and for each element of x its number among them."""
    return UniqueInverse(*_unique(x, ("unique_values", "unique_inverse"), size))


def unique_all(x: Array, /, *, size: Size | None = None) -> UniqueAll:
    """The different elements in order, where each stands first, the number of each element of x among them, the counts."""
    return UniqueAll(*_unique(x, ("unique_values", "unique_indices", "unique_inverse", "unique_counts"), size))


def _bounded(name: str, full_size: Array, count: Callable[[], Array], size: Size | None) -> Array:
    """The part of a result of largest size that is meant: as many rows as the count says, or `size`."""
    if size is not None:
        return full_size[: shape_of((size,), name)[0]]
    _refuse_traced(name, full_size)
    counted, of = count(), full_size._session
    of.flush([a._node for a in (full_size, counted) if a._tensor is None], "data-dependent shape")
    rows = counted.item()
    tensor = computed(full_size, name)
    if tensor.nbytes * COPY_BELOW <= rows * tensor.nbytes / max(tensor.shape[0], 1):
        return wrap(tensor.prefix(rows), of)
    return record("copy", (wrap(tensor.prefix(rows), of),)) if full_size.dtype in _COPIED else wrap(tensor.prefix(rows), of)


_COPIED = (float32, bool_)


def _refuse_traced(name: str, x: Array) -> None:
    if x._tensor is None and x._node.data.__class__ is Trace:
        raise NeedsValues(
            f"array: {name}: a size that depends on values where there are none, got a traced array, allowed size=...")


def _value(x: Array, name: str) -> np.ndarray:
    _refuse_traced(name, x)
    return np.asarray(x)


# ---- indexing with arrays -----------------------------------------------------------------------------------------

Index = Array | np.ndarray | list
Truth = bool | np.bool_


class _Flag(NamedTuple):
    """A bool without axes among the indices: an index into a new axis of one element, which it keeps or leaves out."""

    index: Index


class _Settled(NamedTuple):
    """Indices with slices, None and masks taken care of: what is left of x, its axes with arrays, the arrays, whether they stand
    together, and the block that slices leave of x: one entry for each axis of x itself."""

    x: Array
    axes: list[int]
    indices: list[Index]
    together: bool
    block: list[slice]


def indexed(x: Array, key: tuple) -> Array:
    """x[key] where an array or a bool is among the indices: NumPy's advanced indexing."""
    arrays = [k for k in key if isinstance(k, Index | Truth)]
    if len(arrays) == 1 and _is_mask(key[0]) and _array(key[0]).ndim and all(k is Ellipsis for k in key[1:]):
        return compress(x, _array(key[0]))
    x, axes, indices, together, _ = _settled(x, key)
    if len(axes) == 1:
        return take(x, _array(indices[0]), axis=axes[0])
    rest = [i for i in range(x.ndim) if i not in axes]
    picked = gather_nd(permute_dims(x, (*axes, *rest)), _stacked(indices))
    rank, start = picked.ndim - len(rest), axes[0]
    if not together or start == 0:
        return picked
    return permute_dims(picked, (*range(rank, rank + start), *range(rank), *range(rank + start, picked.ndim)))


def _is_mask(k: object) -> bool:
    return isinstance(k, Truth) or (isinstance(k, Index) and _array(k).dtype is bool_)


def _settled(x: Array, key: tuple) -> _Settled:
    entries: list[object] = []
    for k in key:
        entries += _coordinates(k) if _is_mask(k) else [k]
    given = sum(not (k is None or k is Ellipsis or isinstance(k, _Flag)) for k in entries)
    if sum(k is Ellipsis for k in entries) > 1 or given > x.ndim:
        raise ShapeError(f"array: index: got {given} indices, allowed {x.ndim} for shape {x.shape} and one ...")
    numbered = [i for i, k in enumerate(entries) if not (k is None or k is Ellipsis or isinstance(k, slice))]
    together = numbered[-1] - numbered[0] + 1 == len(numbered)
    at = next((i for i, k in enumerate(entries) if k is Ellipsis), len(entries))
    entries[at : at + 1] = [slice(None)] * (x.ndim - given)
    basic = tuple(None if isinstance(k, _Flag) else k if k is None or isinstance(k, slice) else slice(None) for k in entries)
    axes = [i for i, k in enumerate(entries) if k is not None and not isinstance(k, slice)]
    trivial = all(k == slice(None) for k in basic)
    indices = [k.index if isinstance(k, _Flag) else _whole(k) for k in (entries[i] for i in axes)]
    return _Settled(x if trivial else x[basic], axes, indices, together, [k for k in basic if k is not None])


def _coordinates(mask: Index | bool) -> list[object]:
    """What stands for a mask: the coordinates where it holds."""
    if isinstance(mask, Array):
        return [_Flag(nonzero(reshape(mask, (1,)))[0])] if mask.ndim == 0 else list(nonzero(mask))
    host = np.asarray(mask)
    return [_Flag(np.flatnonzero(host))] if host.ndim == 0 else list(nonzero(_array(host)))


def _whole(index: object) -> Index:
    if isinstance(index, Index):
        return index if isinstance(index, Array) else np.asarray(index, np.int64 if np.asarray(index).size == 0 else None)
    if isinstance(index, (bool, float)) or not hasattr(index, "__index__"):
        raise ShapeError(
            f"array: index: kind, got {index!r}, allowed whole numbers, slices, arrays of whole numbers or bools, None and ...")
    return np.asarray(index.__index__(), np.int64)


def _stacked(indices: Sequence[Index]) -> Array:
    """(..., n): the arrays broadcast, beside each other."""
    if not any(isinstance(i, Array) for i in indices):
        try:
            np.broadcast_shapes(*[i.shape for i in indices])
        except ValueError:
            shapes = ", ".join(str(i.shape) for i in indices)
            raise ShapeError(f"array: index: shapes of arrays, got {shapes}, allowed ones that broadcast") from None
        return asarray(np.stack(np.broadcast_arrays(*indices), axis=-1).astype(np.int64))
    return stack([i.astype(int64) for i in broadcast_arrays(*(_array(i) for i in indices))], axis=-1)


# ---- functional updates -------------------------------------------------------------------------------------------


def updated(x: Array, key: object, value: object, *, how: str = "set") -> Array:
    """x with x[key] set to (or combined with) the value, which broadcasts to it. how: as in scatter."""
    x, entries = _array(x), key if isinstance(key, tuple) else (key,)
    if any(isinstance(k, Index | Truth) for k in entries):
        return _updated_by_arrays(x, entries, value, how)
    target, named = x[entries], _COMBINED[_how(how)]
    value = broadcast_to(_like(value, x, "updated"), target.shape)
    return _replaced(x, _full(x, entries), binary(named, target, value) if named else value)


_COMBINED = {SET: "", ADD: "add", MUL: "multiply", MIN: "minimum", MAX: "maximum"}


def _full(x: Array, entries: tuple) -> list[object]:
    """One entry for each axis: ... spelled out, None left away."""
    given = [k for k in entries if k is not None]
    at = next((i for i, k in enumerate(given) if k is Ellipsis), len(given))
    fill = [slice(None)] * (x.ndim - sum(k is not Ellipsis for k in given))
    return given[:at] + fill + given[at + 1 :]


def _replaced(x: Array, entries: list[object], value: Array) -> Array:
    """x with the block that whole numbers and slices name replaced by a value of as many elements."""
    if all(k.step in (None, 1) for k in entries if isinstance(k, slice)):
        return _spliced(x, entries, value, 0)
    places = np.ix_(*[_counted(size, k) for size, k in zip(x.shape, entries, strict=True)])
    return _updated_by_arrays(x, places, reshape(value, np.broadcast_shapes(*[i.shape for i in places])), "set")


def _spliced(x: Array, entries: list[object], value: Array, axis: int) -> Array:
    """x with the block that the entries name replaced: what lies before it, it, and what lies behind, along each axis."""
    while axis < len(entries) and entries[axis] == slice(None):
        axis += 1
    if axis == len(entries):
        return reshape(value, x.shape)
    k, size = entries[axis], x.shape[axis]
    if isinstance(k, slice):
        start, stop = _ends(k, size)
    else:
        start = k if isinstance(k, Dim) or k.__index__() >= 0 else size + k.__index__()
        stop = start + 1
    middle = _spliced(_along(x, axis, slice(start, stop)), entries, value, axis + 1)
    parts = [_along(x, axis, slice(None, start))] if not same(start, 0) else []
    parts += [middle] + ([_along(x, axis, slice(stop, None))] if not same(stop, size) else [])
    return concat(parts, axis=axis) if len(parts) > 1 else middle


def _ends(k: slice, size: Size) -> tuple[Size, Size]:
    bounds = (k.start, k.stop)
    if isinstance(size, int) and not any(isinstance(b, Dim) for b in bounds):
        start, stop, _ = k.indices(size)
        return start, max(stop, start)
    start, stop = (default if b is None else b if isinstance(b, Dim) or b >= 0 else size + b
                   for b, default in zip(bounds, (0, size), strict=True))
    return start, stop


def _counted(size: Size, k: object) -> np.ndarray:
    """The places along an axis that a slice or a whole number names."""
    if not isinstance(size, int) or isinstance(k, Dim):
        raise ShapeError(f"array: updated: slice with a step beside a symbolic size, got {k} of {size}, allowed step 1")
    return np.arange(size)[k] if isinstance(k, slice) else np.asarray([k])


def _updated_by_arrays(x: Array, entries: tuple, value: object, how: str) -> Array:
    scalar = not isinstance(value, (Array, np.ndarray, list)) or _array(value).ndim == 0
    if len(entries) == 1 and _is_mask(entries[0]) and scalar and how == "set":
        mask = _array(entries[0])
        return where(reshape(mask, (*mask.shape, *(1,) * (x.ndim - mask.ndim))), value, x)
    y, axes, indices, together, block = _settled(x, entries)
    rest = [i for i in range(y.ndim) if i not in axes]
    places = _stacked(indices)
    shape = (*places.shape[:-1], *(y.shape[i] for i in rest))
    updates = _like(value, x, "updated")
    start = axes[0]
    if rest and together and start:  # the value's axes are in the place of the arrays
        rank = places.ndim - 1
        own = (*shape[rank : rank + start], *shape[:rank], *shape[rank + start :])
        updates = broadcast_to(updates, own)
        updates = permute_dims(updates, (*range(start, start + rank), *range(start), *range(start + rank, len(own))))
    else:
        updates = broadcast_to(updates, shape)
    moved = scatter_nd(permute_dims(y, (*axes, *rest)), places, updates, how=how)
    order = [*axes, *rest]
    moved = permute_dims(moved, tuple(order.index(i) for i in range(y.ndim)))
    if any(k != slice(None) for k in block):
        return _replaced(x, block, moved)
    return moved if y.ndim == x.ndim else reshape(moved, x.shape)


__all__ = [
    "argsort", "argwhere", "broadcast_arrays", "compress", "cumulative_prod", "cumulative_sum", "diff", "flip",
    "gather_nd", "index_add",
    "moveaxis", "nonzero", "pad", "repeat", "roll", "scatter", "scatter_nd", "searchsorted", "sort", "take",
    "take_along_axis", "tile", "topk", "unique_all",
    "unique_counts", "unique_inverse", "unique_values", "unstack", "updated",
]  # fmt: skip
