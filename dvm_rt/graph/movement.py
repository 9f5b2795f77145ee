"""Operators of the long tail: rows of the operator table that a host function does (`isa/host.py`, by the same name).

Their dtype and shape rules. Sizes that depend on values are bounded by sizes that do not: `nonzero` gives as many rows as
there are elements, of which `count_nonzero` are meant. Indices are int64; int32 is taken too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dvm_rt import dtypes
from dvm_rt.dtypes import DType, int64
from dvm_rt.errors import DTypeError, ShapeError
from dvm_rt.graph.shapes import checked_shape, elementwise
from dvm_rt.graph.symbols import Facts, Shape, product
from dvm_rt.isa import host

if TYPE_CHECKING:
    from dvm_rt.graph.operators import Operator

INDEXES = (dtypes.int32, dtypes.int64)


def rows(make: type[Operator], lowering: object) -> tuple[Operator, ...]:
    """The rows, made with the table's own classes (this module is imported by it)."""

    def row(name: str, dtype: Callable[..., DType], shape: Callable[..., Shape], more: tuple[str, ...] = ()) -> Operator:
        function = host.BY_NAME[name]
        return make(name, function.inputs, lowering, function.doc, dtype, shape, _meaning(function, shape, len(more)),
                    (*function.attributes, *more), name)  # fmt: skip

    return (
        row("sort", _first, elementwise),
        row("argsort", _index, elementwise),
        row("topk", _index, _topk),
        row("searchsorted", _searched, _searchsorted),
        row("nonzero", _index, _nonzero),
        row("count_nonzero", _index, _scalar),
        row("compress", _masked, _compress),
        row("unique_values", _first, _flat),
        row("unique_indices", _index, _flat),
        row("unique_inverse", _index, elementwise),
        row("unique_counts", _index, _flat),
        row("unique_length", _index, _scalar),
        row("take_along_axis", _by_index, _take_along_axis),
        row("gather_nd", _by_index, _gather_nd),
        row("scatter", _updated, _scatter),
        row("scatter_nd", _updated, _scatter_nd),
        row("arange", _named, _counted, ("dtype",)),
    )


def running_row(make: type[Operator], lowering: object) -> Operator:
    """Running totals, which are instructions of the vector machine, in a kernel of their own."""
    return make("cumulative", 1, lowering, "running sums or products along an axis", _number, _cumulative, running_totals,
                ("axis", "product", "reverse", "lead"))  # fmt: skip


def running_totals(x: np.ndarray, axis: int, product: int, reverse: int, lead: int) -> np.ndarray:
    """One element after another; float16 is rounded at the end only. `lead`: 0, element i counts up to itself; 1, up to
    the one before; 2, as 0 with what nothing gives in front."""
    x = np.asarray(x)
    x = x.astype(np.float32) if x.dtype == np.float16 else x
    x = np.flip(x, axis) if reverse else x
    result = (np.multiply if product else np.add).accumulate(x, axis=axis, dtype=x.dtype)
    if lead:
        nothing = np.full((*x.shape[:axis], 1, *x.shape[axis + 1 :]), product, x.dtype)
        result = np.concatenate([nothing, result], axis=axis)
        result = np.take(result, np.arange(x.shape[axis]), axis=axis) if lead == 1 else result
    return np.flip(result, axis) if reverse else result


def _meaning(function: host.HostFunction, shape: Callable[..., Shape], unseen: int) -> Callable[..., np.ndarray]:
    """The function, its result at full length where it is bounded; the last `unseen` attributes are not its own."""

    def meaning(*given: object) -> np.ndarray:
        arrays = [np.asarray(x) for x in given[: function.inputs]]
        attributes = given[function.inputs : len(given) - unseen]
        result = function.meaning(*arrays, *(int(a) for a in attributes))
        if not function.bounded:
            return result
        full = shape(Facts(), function.name, tuple(x.shape for x in arrays), *attributes)
        padded = np.zeros(full, result.dtype)
        padded[: len(result)] = result
        return padded

    return meaning


# ---- dtypes -------------------------------------------------------------------------------------------------------


def _first(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return given[0]


def _number(where: str, given: tuple[DType, ...], *_: object) -> DType:
    if given[0] is dtypes.bool_:
        raise DTypeError(f"graph: {where}: dtype, got bool, allowed numbers; x.astype(...) converts")
    return given[0]


def _index(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return int64


def _searched(where: str, given: tuple[DType, ...], *_: object) -> DType:
    _equal(where, given)
    return int64


def _masked(where: str, given: tuple[DType, ...]) -> DType:
    if given[1] is not dtypes.bool_:
        raise DTypeError(f"graph: {where}: dtype of the mask, got {given[1]}, allowed bool")
    return given[0]


def _by_index(where: str, given: tuple[DType, ...], *_: object) -> DType:
    if given[1] not in INDEXES:
        raise DTypeError(f"graph: {where}: dtype of the indices, got {given[1]}, allowed int32, int64")
    return given[0]


def _updated(where: str, given: tuple[DType, ...], *_: object) -> DType:
    _equal(where, (given[0], given[2]))
    return _by_index(where, given)


def _equal(where: str, given: tuple[DType, ...]) -> None:
    if given[0] is not given[1]:
        raise DTypeError(
            f"graph: {where}: dtypes differ, got {given[0]} and {given[1]}, allowed one for both; x.astype(...) converts")


def _named(where: str, given: tuple[DType, ...], *attributes: object) -> DType:
    name = attributes[-1]
    if name not in dtypes.BY_NAME or name == "bool":
        raise DTypeError(f"graph: {where}: dtype, got {name}, allowed numbers")
    return dtypes.BY_NAME[name]


# ---- shapes -------------------------------------------------------------------------------------------------------


def _scalar(facts: Facts, where: str, shapes: tuple[Shape, ...]) -> Shape:
    return ()


def _flat(facts: Facts, where: str, shapes: tuple[Shape, ...]) -> Shape:
    return (product(shapes[0]),)


def _counted(facts: Facts, where: str, shapes: tuple[Shape, ...], count: object, *_: object) -> Shape:
    return checked_shape(where, (count,))


def _topk(facts: Facts, where: str, shapes: tuple[Shape, ...], axis: int, count: int, largest: int) -> Shape:
    (source,) = shapes
    if isinstance(count, int) and isinstance(source[axis], int) and not 0 <= count <= source[axis]:
        raise ShapeError(f"{where}: elements to take, got {count}, allowed 0 to {source[axis]}")
    facts.demand_at_least(source[axis], count, where)
    return checked_shape(where, (*source[:axis], count, *source[axis + 1 :]))


def _cumulative(facts: Facts, where: str, shapes: tuple[Shape, ...], axis: int, product: int, reverse: int, lead: int) -> Shape:
    (source,) = shapes
    return checked_shape(where, (*source[:axis], source[axis] + 1, *source[axis + 1 :])) if lead == 2 else source


def _searchsorted(facts: Facts, where: str, shapes: tuple[Shape, ...], right: int) -> Shape:
    ordered, values = shapes
    if len(ordered) != 1:
        raise ShapeError(f"{where}: rank of the ordered row, got {ordered}, allowed 1")
    return values


def _nonzero(facts: Facts, where: str, shapes: tuple[Shape, ...]) -> Shape:
    return product(shapes[0]), len(shapes[0])


def _compress(facts: Facts, where: str, shapes: tuple[Shape, ...]) -> Shape:
    source, mask = shapes
    if not 1 <= len(mask) <= len(source):
        raise ShapeError(f"{where}: rank of the mask, got {mask} for {source}, allowed 1 to {len(source)}")
    for a, b in zip(source, mask, strict=False):
        facts.equate(a, b, where)
    return product(mask), *source[len(mask) :]


def _take_along_axis(facts: Facts, where: str, shapes: tuple[Shape, ...], axis: int) -> Shape:
    source, indices = shapes
    _same_but(facts, where, source, indices, axis)
    return indices


def _same_but(facts: Facts, where: str, a: Shape, b: Shape, axis: int) -> None:
    if len(a) != len(b):
        raise ShapeError(f"{where}: ranks differ, got {a} and {b}, allowed one rank")
    for i, (m, n) in enumerate(zip(a, b, strict=True)):
        if i != axis:
            facts.equate(m, n, where)


def _depth(where: str, source: Shape, indices: Shape) -> int:
    """How many coordinates the last axis of the indices holds."""
    if not indices or not isinstance(indices[-1], int) or indices[-1] > len(source):
        raise ShapeError(f"{where}: coordinates, got indices {indices} into {source}, allowed a last axis of 0 to {len(source)}")
    return indices[-1]


def _gather_nd(facts: Facts, where: str, shapes: tuple[Shape, ...], batch: int) -> Shape:
    source, indices = shapes
    if batch >= len(indices) or batch > len(source):
        raise ShapeError(f"{where}: batch dimensions, got {batch} of {source} and {indices}, allowed fewer")
    for a, b in zip(source[:batch], indices[:batch], strict=True):
        facts.equate(a, b, where)
    depth = _depth(where, source[batch:], indices)
    return checked_shape(where, indices[:-1] + source[batch + depth :])


def _scatter(facts: Facts, where: str, shapes: tuple[Shape, ...], axis: int, how: int) -> Shape:
    source, indices, updates = shapes
    if len(indices) != len(source) or len(updates) != len(source):
        raise ShapeError(f"{where}: ranks differ, got {source}, {indices} and {updates}, allowed one rank")
    for i, (n, a, b) in enumerate(zip(source, indices, updates, strict=True)):
        facts.equate(a, b, where)
        if i != axis:
            facts.demand_at_least(n, a, where)
    return source


def _scatter_nd(facts: Facts, where: str, shapes: tuple[Shape, ...], how: int) -> Shape:
    source, indices, updates = shapes
    wanted = indices[:-1] + source[_depth(where, source, indices) :]
    if len(updates) != len(wanted):
        raise ShapeError(f"{where}: updates, got {updates}, allowed {wanted}")
    for a, b in zip(updates, wanted, strict=True):
        facts.equate(a, b, where)
    return source
