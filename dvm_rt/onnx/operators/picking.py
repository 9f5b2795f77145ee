"""Elements picked by places that the data says: gathers of flattened tensors, so that the machine does them.

A place beyond its axis becomes one beyond the tensor, which the gather refuses (DeviceTrap); on the host NumPy does the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dvm_rt.array.array import Array
from dvm_rt.graph.symbols import product
from dvm_rt.onnx.operators.elementwise import cast
from dvm_rt.onnx.table import Call, row
from dvm_rt.onnx.values import lift

Value = object
INT64 = np.dtype(np.int64)


def counted(c: Call, n: object, axis: int, rank: int) -> Value:
    """0, 1, .. n - 1 along one axis, sizes of 1 along the others."""
    return c.xp.reshape(c.xp.arange(n, dtype="int64"), tuple(n if i == axis else 1 for i in range(rank)))


def flat_place(c: Call, places: Sequence[Value], sizes: Sequence[object]) -> Value:
    """The place in a flattened tensor of these sizes; negative places count from the end."""
    flat, outside = None, None
    for place, n in zip(places, sizes, strict=True):
        place = cast(c, place, INT64)
        place = c.xp.where(c.xp.less(place, 0), c.xp.add(place, n), place)
        beyond = c.xp.logical_or(c.xp.less(place, 0), c.xp.greater_equal(place, n))
        outside = beyond if outside is None else c.xp.logical_or(outside, beyond)
        flat = place if flat is None else c.xp.add(c.xp.multiply(flat, n), place)
    return c.xp.where(outside, product(sizes), flat)


def rows_at(c: Call, x: Value, places: Sequence[Value]) -> Value:
    """x[places..]: over the leading axes, one slice of the others for each place; the places broadcast."""
    count = len(places)
    table = c.xp.reshape(x, (product(x.shape[:count]), *x.shape[count:]))
    return c.xp.take(table, flat_place(c, places, x.shape[:count]), axis=0)


@row("GatherElements")
def gather_elements(c: Call, x: Value, indices: Value) -> Value:
    rank = len(x.shape)
    axis = c.axis(rank)
    others = [counted(c, n, i, rank) for i, n in enumerate(indices.shape)]
    return rows_at(c, x, [indices if i == axis else others[i] for i in range(rank)])


@row("GatherND")
def gather_nd(c: Call, x: Value, indices: Value) -> Value:
    batch, rank = c.get("batch_dims", 0), len(indices.shape)
    depth = indices.shape[-1]
    if not isinstance(depth, int):
        return c.xp.gather_nd(x, indices, batch_dims=batch)
    lead = [counted(c, indices.shape[i], i, rank - 1) for i in range(batch)]
    return rows_at(c, x, [*lead, *(indices[..., k] for k in range(depth))])


@row("ReverseSequence")
def reverse_sequence(c: Call, x: Value, lengths: Value) -> Value:
    """Each sequence backwards up to its length."""
    time, batch = c.get("time_axis", 0), c.get("batch_axis", 1)
    order = (time, batch, *range(2, len(x.shape)))
    y = c.xp.permute_dims(x, order)
    steps, n = counted(c, y.shape[0], 0, 2), c.xp.expand_dims(cast(c, lengths, INT64), axis=0)
    places = c.xp.where(c.xp.less(steps, n), c.xp.subtract(c.xp.subtract(n, 1), steps), steps)
    return c.xp.permute_dims(rows_at(c, y, [places, counted(c, y.shape[1], 1, 2)]), tuple(np.argsort(order).tolist()))


@row("TensorScatter")
def tensor_scatter(c: Call, cache: Value, update: Value, places: Value = None) -> Value:
    """Rows of the update written into a cache from a place on, for each element of the batch: each row of the cache takes the row
    of the update that is written to it, if one is."""
    rank = len(cache.shape)
    axis = c.get("axis", -2) % rank
    order = (0, axis, *(i for i in range(1, rank) if i != axis))
    held, rows = c.xp.permute_dims(cache, order), c.xp.permute_dims(update, order)
    (batch, n), length = held.shape[:2], rows.shape[1]
    at = counted(c, n, 1, 2)
    if places is not None:
        at = c.xp.subtract(at, c.xp.expand_dims(cast(c, places, INT64), axis=1))
    at = c.xp.remainder(at, n) if c.get("mode", "linear") == "circular" else at
    written = c.xp.logical_and(c.xp.greater_equal(at, 0), c.xp.less(at, length))
    taken = rows_at(c, rows, [counted(c, batch, 0, 2), c.xp.where(written, at, 0)])
    written = c.xp.reshape(c.xp.broadcast_to(written, (batch, n)), (batch, n, *(1 for _ in range(rank - 2))))
    return c.xp.permute_dims(c.xp.where(written, taken, held), tuple(np.argsort(order).tolist()))


@row("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(c: Call, x: Value, places: Value) -> Value:
    places = c.xp.reshape(places, (-1,))
    result = c.xp.take(x, lift(places) if isinstance(x, Array) else places, axis=len(x.shape) - 1)
    return c.xp.reshape(result, (1, -1)) if len(x.shape) == 1 else result
