"""Shapes and movement: what is computed of sizes, views, joins, gathers, scatters."""

from __future__ import annotations

import numpy as np

from dvm_rt.array.array import Array, asarray
from dvm_rt.errors import ShapeError
from dvm_rt.graph.symbols import Dim, floordiv, maximum, minimum, product, same
from dvm_rt.onnx.numpy_names import Symbolic
from dvm_rt.onnx.operators.elementwise import cast
from dvm_rt.onnx.table import HOST, RAW, STEP, Call, row, whole
from dvm_rt.onnx.values import fetch, lift, numpy_dtype, sizes

Value = object


@row("Shape", kind=RAW)
def shape(c: Call, x: Value) -> Value:
    rank = len(x.shape)
    start, end = (max(0, min(rank, n + rank if n < 0 else n)) for n in (c.get("start", 0), c.get("end", rank)))
    return sizes(list(x.shape)[start:end]) if end > start else np.zeros(0, np.int64)


@row("Size", kind=RAW)
def size(c: Call, x: Value) -> Value:
    total = product(x.shape)
    if isinstance(total, Dim):
        result = np.empty((), object)
        result[()] = total
        return result
    return np.asarray(total, np.int64)


@row("Identity", kind=RAW)
def identity(c: Call, x: Value) -> Value:
    return [x]


@row("Constant", kind=RAW)
def constant(c: Call) -> Value:
    for name, value in c.node.attributes.items():
        if name in ("value", "sparse_value") and isinstance(value, np.ndarray):
            return value
        if name.startswith("value_float"):
            return np.asarray(value, np.float32)
        if name.startswith("value_int"):
            return np.asarray(value, np.int64)
        if name.startswith("value_string"):
            return np.asarray(value, object)
    raise c.refuse("value, got none, allowed one of the value attributes, of its type")


@row("ConstantOfShape", on_host=(0,))
def constant_of_shape(c: Call, wanted: Value) -> Value:
    value = c.get("value", np.zeros(1, np.float32)).reshape(-1)[0]
    if c.on_host:
        return c.xp.full(whole(wanted), value, dtype=value.dtype)
    return c.xp.broadcast_to(lift(np.asarray(value)), whole(wanted))


@row("Reshape", on_host=(1,), since=5)
def reshape(c: Call, x: Value, wanted: Value) -> Value:
    return _reshaped(c, x, whole(wanted), bool(c.get("allowzero", 0)))


@row("Reshape", since=1)
def reshape_by_attribute(c: Call, x: Value) -> Value:
    return _reshaped(c, x, c.get("shape"), False)


def _reshaped(c: Call, x: Value, wanted: tuple, zero_is_zero: bool) -> Value:
    full = [x.shape[i] if not zero_is_zero and same(n, 0) else n for i, n in enumerate(wanted)]
    unknown = [i for i, n in enumerate(full) if same(n, -1)]
    if len(unknown) == 1:  # what stands in both shapes needs no division
        left, rest = list(x.shape), [n for i, n in enumerate(full) if i != unknown[0]]
        for n in list(rest):
            at = next((i for i, m in enumerate(left) if same(m, n)), None)
            if at is not None:
                left.pop(at)
                rest.remove(n) if isinstance(n, int) else rest.pop(next(i for i, m in enumerate(rest) if same(m, n)))
        if not rest:
            full[unknown[0]] = product(left)
        elif not any(isinstance(n, Dim) for n in (*left, *rest)) and product(rest):
            full[unknown[0]] = product(left) // product(rest)
    return c.xp.reshape(x, tuple(full))


@row("Flatten")
def flatten(c: Call, x: Value) -> Value:
    axis = c.get("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return c.xp.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@row("Transpose")
def transpose(c: Call, x: Value) -> Value:
    return c.xp.permute_dims(x, tuple(c.get("perm") or reversed(range(len(x.shape)))))


def _axes(values: object, rank: int) -> tuple[int, ...]:
    axes = tuple(int(a) for a in values)
    if any(not -rank <= a < rank for a in axes):
        raise ShapeError(f"axes, got {axes}, allowed {-rank} to {rank - 1}")
    return tuple(sorted({a % rank for a in axes}))


@row("Squeeze", on_host=(1,))
def squeeze(c: Call, x: Value, axes: Value = None) -> Value:
    given = whole(axes) if axes is not None else c.get("axes")
    if given is None:
        given = [i for i, n in enumerate(x.shape) if same(n, 1)]
    found = _axes(given, len(x.shape))
    return c.xp.squeeze(x, axis=found) if found else x


@row("Unsqueeze", on_host=(1,))
def unsqueeze(c: Call, x: Value, axes: Value = None) -> Value:
    given = whole(axes) if axes is not None else c.get("axes")
    found = _axes(given, len(x.shape) + len(given))
    return c.xp.expand_dims(x, axis=found) if found else x


@row("Concat")
def concat(c: Call, *parts: Value) -> Value:
    return c.xp.concat(parts, axis=c.axis(len(parts[0].shape), 1 if c.opset < 4 else 0))


@row("Expand", on_host=(1,))
def expand(c: Call, x: Value, wanted: Value) -> Value:
    return c.xp.broadcast_to(x, _common(tuple(x.shape), whole(wanted)))


def _common(a: tuple, b: tuple) -> tuple:
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return tuple(n if same(m, 1) else m for m, n in zip(a, b, strict=True))


@row("Tile", on_host=(1,), since=6)
def tile(c: Call, x: Value, repeats: Value) -> Value:
    return c.xp.tile(x, whole(repeats)) if c.on_host is False else c.xp.tile(x, _plain(whole(repeats)))


def _plain(values: tuple) -> tuple[int, ...]:
    if any(isinstance(n, Dim) for n in values):
        raise Symbolic
    return values


@row("Split", on_host=(1,))
def split(c: Call, x: Value, parts: Value = None) -> Value:
    axis = c.axis(len(x.shape))
    n, count = x.shape[axis], c.get("num_outputs", c.outputs)
    lengths = whole(parts) if parts is not None else c.get("split")
    if lengths is None:
        each = -floordiv(-n, count) if isinstance(n, int) else floordiv(n + count - 1, count)
        lengths = [each] * (count - 1) + [n - each * (count - 1)]
    lead, start, results = (slice(None),) * axis, 0, []
    for i, length in enumerate(lengths):
        stop = n if i == len(lengths) - 1 and parts is None and c.get("split") is None else start + length
        results.append(x[(*lead, slice(start, stop))])
        start = stop
    return results


@row("Slice", on_host=(1, 2, 3, 4), since=10)
def slice_operator(c: Call, x: Value, starts: Value, ends: Value, axes: Value = None, steps: Value = None) -> Value:
    starts, ends = whole(starts), whole(ends)
    axes = whole(axes) if axes is not None else range(len(starts))
    steps = whole(steps) if steps is not None else (1,) * len(starts)
    return _sliced(c, x, starts, ends, axes, steps)


@row("Slice", since=1)
def slice_by_attributes(c: Call, x: Value) -> Value:
    starts = c.get("starts")
    return _sliced(c, x, starts, c.get("ends"), c.get("axes") or range(len(starts)), (1,) * len(starts))


def _sliced(c: Call, x: Value, starts: object, ends: object, axes: object, steps: object) -> Value:
    key: list[slice] = [slice(None)] * len(x.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = int(axis) % len(x.shape)
        key[axis] = _bounds(x.shape[axis], start, end, step)
    if isinstance(x, np.ndarray) and any(isinstance(n, Dim) for k in key for n in (k.start, k.stop)):
        raise Symbolic  # a part of a constant that sizes choose
    return x[tuple(key)]


def _bounds(n: object, start: object, end: object, step: object) -> slice:
    """The slice for bounds that may be symbolic, cut off at the ends as NumPy does it."""
    if isinstance(step, Dim):
        raise ShapeError(f"step of a slice, got {step}, allowed numbers")
    if not any(isinstance(v, Dim) for v in (n, start, end)):
        if step > 0:
            return slice(start, end, step)
        first, last, by = slice(start, end, step).indices(n)
        return slice(first, last if last >= 0 else None, by)
    if step < 0:
        reverse_all = isinstance(start, int) and start in (-1,) or (isinstance(start, int) and start >= 1 << 30)
        if reverse_all and isinstance(end, int) and end < -(1 << 30):
            return slice(None, None, step)
        raise ShapeError(f"slice backwards over symbolic sizes, got {start}:{end}:{step}, allowed whole axes")
    first = start if not isinstance(start, int) or start >= 0 else maximum(n + start, 0) if isinstance(n,
        Dim) else max(n + start, 0)
    last = None if isinstance(end, int) and end >= 1 << 30 or same(end, n) else end if not isinstance(end,
        int) or end >= 0 else n + end
    if isinstance(start, int) and start < 0 and isinstance(n, Dim):
        first = start  # counted from the end: the shape rule asks that it lies inside
    return slice(None if same(first, 0) else first, _least(last, n), step)


def _least(last: object, n: object) -> object:
    if last is None or (isinstance(last, int) and last >= 0 and isinstance(n, Dim)):
        return last
    if isinstance(last, Dim) and isinstance(n, int):
        return minimum(last, n)
    return last


@row("Gather", since=1)
def gather(c: Call, x: Value, indices: Value) -> Value:
    axis = c.axis(len(x.shape))
    if isinstance(x, Array):
        return c.xp.take(x, _whole_indices(indices), axis=axis)
    return np.take(x, _inside(indices, x.shape[axis]), axis=axis)


def _inside(indices: np.ndarray, n: int) -> np.ndarray:
    from dvm_rt.isa import host

    if indices.dtype == object:
        raise Symbolic
    try:
        return host._inside(indices, n)
    except host.OutOfRange as error:
        raise ShapeError(str(error)) from None


def _whole_indices(indices: Array) -> Array:
    return indices if indices.dtype.name in ("int32", "int64") else indices.astype("int64")


HOW = {"none": "set", "add": "add", "mul": "mul", "min": "min", "max": "max"}


@row("ScatterElements", "Scatter")
def scatter_elements(c: Call, x: Value, indices: Value, updates: Value) -> Value:
    return c.xp.scatter(x, indices, updates, axis=c.axis(len(x.shape)), how=HOW[c.get("reduction", "none")])


@row("ScatterND")
def scatter_nd(c: Call, x: Value, indices: Value, updates: Value) -> Value:
    return c.xp.scatter_nd(x, indices, updates, how=HOW[c.get("reduction", "none")])


@row("Range", on_host=(0, 1, 2))
def range_operator(c: Call, start: Value, limit: Value, step: Value) -> Value:
    first, last, by = (v.item() if isinstance(v, np.ndarray) else v for v in (start, limit, step))
    if isinstance(by, Dim):
        raise ShapeError(f"step of a range, got {by}, allowed numbers")
    if c.on_host:
        c.xp.arange(first, last, by)  # raises Symbolic where a bound is
        return np.arange(first, last, by, dtype=numpy_dtype(start))
    wanted = c.xp.arange(0, last - first, by) if isinstance(first, Dim) else c.xp.arange(first, last, by)
    return wanted + lift(start) if isinstance(first, Dim) else wanted


@row("OneHot", on_host=(1,))
def one_hot(c: Call, indices: Value, depth: Value, values: Value) -> Value:
    axis = c.get("axis", -1) % (len(indices.shape) + 1)
    n = np.asarray(depth).reshape(-1)[0]
    n = n if isinstance(n, Dim) else int(n)
    indices = cast(c, indices, np.dtype(np.int64))
    shape = [1] * (len(indices.shape) + 1)
    shape[axis] = n
    inside = c.xp.where(c.xp.less(indices, 0), c.xp.add(indices, n), indices)
    hit = c.xp.equal(c.xp.expand_dims(inside, axis=axis), c.xp.reshape(c.xp.arange(n, dtype="int64"), tuple(shape)))
    return c.xp.where(hit, values[1], values[0])


@row("EyeLike")
def eye_like(c: Call, x: Value) -> Value:
    import onnx

    kind = c.get("dtype")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else numpy_dtype(x)
    rows, columns = (c.xp.arange(n, dtype="int64") for n in x.shape)
    return cast(c, c.xp.equal(c.xp.expand_dims(columns, axis=0), c.xp.add(c.xp.expand_dims(rows, axis=1), c.get("k", 0))), dtype)


@row("Trilu", on_host=(1,))
def trilu(c: Call, x: Value, k: Value = None) -> Value:
    k = _offset(c, k) if k is not None else 0
    rows, columns = (c.xp.arange(n, dtype="int64") for n in x.shape[-2:])
    rows, columns = c.xp.add(c.xp.expand_dims(rows, axis=1), k), c.xp.expand_dims(columns, axis=0)
    kept = c.xp.greater_equal(columns, rows) if c.get("upper", 1) else c.xp.less_equal(columns, rows)
    zero = False if numpy_dtype(x).kind == "b" else 0 if numpy_dtype(x).kind in "iu" else 0.0
    return c.xp.where(kept, x, zero if isinstance(x, Array) else np.zeros((), x.dtype))


def _offset(c: Call, k: np.ndarray) -> object:
    """A number, or the sizes that it is made of as a number of the graph."""
    number = k.reshape(-1)[0]
    if not isinstance(number, Dim):
        return int(number)
    if c.on_host:
        raise Symbolic
    return lift(k.reshape(()))


@row("Pad", on_host=(1, 2, 3), since=11)
def pad(c: Call, x: Value, pads: Value, value: Value = None, axes: Value = None) -> Value:
    rank = len(x.shape)
    places = [int(a) % rank for a in whole(axes)] if axes is not None else list(range(rank))
    given = whole(pads)
    widths: list[tuple] = [(0, 0)] * rank
    for i, axis in enumerate(places):
        widths[axis] = (given[i], given[len(places) + i])
    return _padded(c, x, widths, c.get("mode", "constant"), np.asarray(value).reshape(-1)[0] if value is not None else 0)


@row("Pad", since=2)
def pad_by_attributes(c: Call, x: Value) -> Value:
    given, rank = c.get("pads"), len(x.shape)
    return _padded(c, x, list(zip(given[:rank], given[rank:], strict=True)), c.get("mode", "constant"),
                   np.float32(c.get("value", 0.0)))


def _padded(c: Call, x: Value, widths: list[tuple], mode: str, value: object) -> Value:
    if any(isinstance(n, Dim) for pair in widths for n in pair):
        raise ShapeError(f"pads, got {widths}, allowed numbers")
    kind = numpy_dtype(x).kind
    if not isinstance(x, Array):
        return c.xp.pad(x, widths, mode=mode, value=np.asarray(value).astype(x.dtype))
    number = bool(value) if kind == "b" else int(value) if kind in "iu" else float(value)
    return c.xp.pad(x, widths, mode=mode, value=number)


@row("CenterCropPad", on_host=(1,))
def center_crop_pad(c: Call, x: Value, wanted: Value) -> Value:
    rank = len(x.shape)
    axes = [a % rank for a in c.get("axes", range(rank))]
    widths: list[tuple[int, int]] = [(0, 0)] * rank
    for axis, size in zip(axes, whole(wanted), strict=True):
        more = size - x.shape[axis]
        if isinstance(more, Dim):
            raise ShapeError(f"sizes, got {x.shape} to {size}, allowed numbers")
        first = more // 2 if more >= 0 else -((-more) // 2)
        widths[axis] = (first, more - first)
    return _padded(c, x, widths, "constant", 0)


@row("DepthToSpace")
def depth_to_space(c: Call, x: Value) -> Value:
    (b, channels, h, w), n = x.shape, c.get("blocksize")
    if c.get("mode", "DCR") == "DCR":
        y, order = c.xp.reshape(x, (b, n, n, channels // (n * n), h, w)), (0, 3, 4, 1, 5, 2)
    else:
        y, order = c.xp.reshape(x, (b, channels // (n * n), n, n, h, w)), (0, 1, 4, 2, 5, 3)
    return c.xp.reshape(c.xp.permute_dims(y, order), (b, channels // (n * n), h * n, w * n))


@row("SpaceToDepth")
def space_to_depth(c: Call, x: Value) -> Value:
    (b, channels, h, w), n = x.shape, c.get("blocksize")
    order = (0, 3, 5, 1, 2, 4) if c.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = c.xp.permute_dims(c.xp.reshape(x, (b, channels, h // n, n, w // n, n)), order)
    return c.xp.reshape(y, (b, channels * n * n, h // n, w // n))


@row("TopK", on_host=(1,), since=10)
def top_k(c: Call, x: Value, k: Value) -> Value:
    n = np.asarray(k).reshape(-1)[0]
    values, indices = c.xp.topk(x, n if isinstance(n, Dim) else int(n), axis=c.axis(len(x.shape), -1),
                                largest=bool(c.get("largest", 1)))
    return [values, indices]


@row("TopK", since=1)
def top_k_by_attribute(c: Call, x: Value) -> Value:
    values, indices = c.xp.topk(x, c.get("k"), axis=c.axis(len(x.shape), -1), largest=True)
    return [values, indices]


# ---- sizes that depend on values ----------------------------------------------------------------------------------


@row("NonZero", kind=STEP)
def non_zero(c: Call, x: Value) -> Value:
    if not isinstance(x, Array):
        return np.array(np.nonzero(np.atleast_1d(x)), np.int64)
    places = c.xp.argwhere(x if x.ndim else c.xp.reshape(x, (1,)))
    return c.xp.permute_dims(places, (1, 0))


@row("Compress", kind=STEP)
def compress(c: Call, x: Value, mask: Value) -> Value:
    """By the mask's values, which are fetched: what is kept is a gather."""
    kept = np.flatnonzero(np.asarray(fetch(mask)))
    axis = c.get("axis")
    x = lift(x)
    if axis is None:
        x, axis = c.xp.reshape(x, (-1,)), 0
    return c.xp.take(x, asarray(kept.astype(np.int64)), axis=axis % x.ndim)


@row("Unique", kind=HOST)
def unique(c: Call, x: Value) -> Value:
    axis = c.get("axis")
    values, indices, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    inverse = inverse.reshape(-1)
    if not c.get("sorted", 1):
        order = np.argsort(indices, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        values = np.take(values, order, axis=axis or 0)
        indices, inverse, counts = indices[order], rank[inverse], counts[order]
    return [values, *(a.astype(np.int64) for a in (indices, inverse, counts))]
