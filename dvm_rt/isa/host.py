"""THE table of host functions: what a HOST section runs with NumPy, one row a function.

The long tail: operators that no instruction does (sorting, searching, sets, scatters). Rules:

- a function is deterministic, a function of its inputs' bytes and its attributes alone, and writes nothing but its result;
- attributes are whole numbers; flags are 0 and 1, axes are counted from the front;
- a result may be shorter than the output along axis 0 (`bounded`): what lies beyond it is 0, and a second function says
  how long it is. So a size that depends on values needs no output of unknown size;
- an index outside raises OutOfRange; whatever else goes wrong inside of a function fails its launch alone.

Knows nothing of graphs, and nothing of memory: `npu_device/host.py` maps operands to arrays and stores results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
SET, ADD, MUL, MIN, MAX = range(5)  # how a scatter combines: the last one wins; in row order; ..


class OutOfRange(Exception):
    """An index is not in -allowed..allowed-1. Ends a host function; becomes the trap of its launch."""

    def __init__(self, got: int, allowed: int) -> None:
        super().__init__(f"index, got {got}, allowed {-allowed} to {allowed - 1}")
        self.got, self.allowed = got, allowed


@dataclass(frozen=True, slots=True)
class HostFunction:
    """One row. `meaning(*inputs, *attributes)` gives the result; `bounded`: it may be shorter than the output."""

    name: str
    inputs: int
    attributes: tuple[str, ...]
    doc: str
    meaning: Callable[..., Array]
    bounded: bool = False


# ---- order --------------------------------------------------------------------------------------------------------


def _sort(x: Array, axis: int, descending: int) -> Array:
    ordered = np.sort(x, axis=axis, kind="stable")
    return np.flip(ordered, axis) if descending else ordered


def _argsort(x: Array, axis: int, descending: int) -> Array:
    """Equal elements keep their order, in both directions; NaN counts as the largest."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    backwards = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return x.shape[axis] - 1 - np.flip(backwards, axis)


def _topk(x: Array, axis: int, count: int, largest: int) -> Array:
    return np.take(_argsort(x, axis, largest), np.arange(count), axis=axis)


def _searchsorted(ordered: Array, values: Array, right: int) -> Array:
    return np.searchsorted(ordered, values, side="right" if right else "left")


# ---- sizes that depend on values ----------------------------------------------------------------------------------


def _nonzero(x: Array) -> Array:
    return np.argwhere(x)


def _count_nonzero(x: Array) -> Array:
    return np.asarray(np.count_nonzero(x))


def _compress(x: Array, mask: Array) -> Array:
    return x[mask != 0]


def _unique(x: Array) -> tuple[Array, Array, Array, Array]:
    return np.unique(x.reshape(-1), return_index=True, return_inverse=True, return_counts=True, equal_nan=False)


def _unique_length(x: Array) -> Array:
    return np.asarray(_unique(x)[0].size)


# ---- gathers and scatters -----------------------------------------------------------------------------------------


def _inside(indices: Array, size: int) -> Array:
    """The indices counted from the front. Raises OutOfRange."""
    outside = (indices < -size) | (indices >= size)
    if outside.any():
        raise OutOfRange(int(indices[outside][0]), size)
    return np.where(indices < 0, indices + size, indices)


def _take_along_axis(x: Array, indices: Array, axis: int) -> Array:
    return np.take_along_axis(x, _inside(indices, x.shape[axis]), axis)


def _coordinates(indices: Array, shape: tuple[int, ...]) -> tuple[Array, ...]:
    """The last axis of the indices holds one coordinate for each of the first axes of a shape."""
    return tuple(_inside(indices[..., i], shape[i]) for i in range(indices.shape[-1]))


def _gather_nd(x: Array, indices: Array, batch: int) -> Array:
    lead = tuple(np.arange(n).reshape((n,) + (1,) * (indices.ndim - 2 - i)) for i, n in enumerate(x.shape[:batch]))
    return x[(*lead, *_coordinates(indices, x.shape[batch:]))]


def _combined(out: Array, places: tuple[Array, ...], updates: Array, how: int) -> Array:
    if not updates.size:
        return out
    if how == SET:
        flat = np.ravel_multi_index(np.broadcast_arrays(*places), out.shape[: len(places)], mode="clip").reshape(-1)
        rows = out.reshape((-1, *out.shape[len(places) :]))
        values = updates.reshape((flat.size, *out.shape[len(places) :]))
        last = flat.size - 1 - np.unique(flat[::-1], return_index=True)[1]  # the last update of each place
        rows[flat[last]] = values[last]
        return out
    combine = {ADD: np.add, MUL: np.multiply, MIN: np.minimum, MAX: np.maximum}[how]
    combine.at(out, places, updates)
    return out


def _scatter(x: Array, indices: Array, updates: Array, axis: int, how: int) -> Array:
    grid = list(np.ix_(*(np.arange(n) for n in indices.shape)))
    grid[axis] = _inside(indices, x.shape[axis])
    return _combined(x.copy(), tuple(np.broadcast_arrays(*grid)), updates, how)


def _scatter_nd(x: Array, indices: Array, updates: Array, how: int) -> Array:
    return _combined(x.copy(), _coordinates(indices, x.shape), updates, how)


def _arange(count: int, start: int, step: int) -> Array:
    """start and step are the bits of float64 numbers; whole numbers below 2^53 are exact."""
    first, by = np.array([start, step], np.int64).view(np.float64)
    return first + by * np.arange(count, dtype=np.float64)


TABLE: tuple[HostFunction, ...] = (
    HostFunction("sort", 1, ("axis", "descending"), "elements in order; NaN last, or first where descending", _sort),
    HostFunction("argsort", 1, ("axis", "descending"), "indices that sort; equal elements keep their order", _argsort),
    HostFunction("topk", 1, ("axis", "count", "largest"), "indices of the largest or smallest elements, in order", _topk),
    HostFunction("searchsorted", 2, ("right",), "where values would go in an ordered row", _searchsorted),
    HostFunction("nonzero", 1, (), "coordinates of the elements that are not 0, one a row", _nonzero, True),
    HostFunction("count_nonzero", 1, (), "how many elements are not 0", _count_nonzero),
    HostFunction("compress", 2, (), "elements (or rows) where the mask holds", _compress, True),
    HostFunction("unique_values", 1, (), "the different elements, in order; each NaN is one", lambda x: _unique(x)[0], True),
    HostFunction("unique_indices", 1, (), "where each of them stands first", lambda x: _unique(x)[1], True),
    HostFunction("unique_inverse", 1, (), "for each element its number among them", lambda x: _unique(x)[2].reshape(x.shape)),
    HostFunction("unique_counts", 1, (), "how often each of them stands there", lambda x: _unique(x)[3], True),
    HostFunction("unique_length", 1, (), "how many they are", _unique_length),
    HostFunction("take_along_axis", 2, ("axis",), "one element for each index, along an axis", _take_along_axis),
    HostFunction("gather_nd", 2, ("batch",), "elements or slices by coordinates", _gather_nd),
    HostFunction("scatter", 3, ("axis", "how"), "updates put at indices along an axis; duplicates in row order", _scatter),
    HostFunction("scatter_nd", 3, ("how",), "updates put at coordinates; duplicates in row order", _scatter_nd),
    HostFunction("arange", 0, ("count", "start", "step"), "start, start + step, ..: numbers as bits of float64", _arange),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(row.name for row in TABLE)
BY_NAME: dict[str, HostFunction] = {row.name: row for row in TABLE}


def run(number: int, inputs: list[Array], attributes: tuple[int, ...], output: Array) -> None:
    """Function `number` (from 0) of the table on arrays. Raises OutOfRange; ValueError where shapes do not fit."""
    row = TABLE[number]
    if len(inputs) != row.inputs or len(attributes) != len(row.attributes):
        raise ValueError(f"host: {row.name}: got {len(inputs)} inputs, {len(attributes)} attributes, allowed {row}")
    with np.errstate(all="ignore"):
        result = row.meaning(*inputs, *attributes)
    if row.bounded:
        output[len(result) :] = 0
        output = output[: len(result)]
    if result.shape != output.shape:
        raise ValueError(f"host: {row.name}: shape of the result, got {result.shape}, allowed {output.shape}")
    np.copyto(output, result, casting="unsafe")
