"""Reductions, running sums, and normalisations that are made of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import dvm_rt as dvm
from dvm_rt.array.array import Array
from dvm_rt.errors import GraphError
from dvm_rt.graph.movement import running_totals
from dvm_rt.graph.symbols import product
from dvm_rt.onnx.operators.elementwise import cast, kind_of
from dvm_rt.onnx.table import Call, row, whole
from dvm_rt.onnx.values import lift, numpy_dtype

Value = object
FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)


def _axes(c: Call, x: Value, axes: Value) -> tuple[int, ...] | None:
    """The axes of a reduction; None: there is nothing to do."""
    given = whole(axes) if axes is not None else c.get("axes")
    rank = len(x.shape)
    if given is None or len(given) == 0:
        return None if c.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(a) % rank for a in given))


def _kept(c: Call, value: Value, x: Value) -> Value:
    """In the dtype of x: sums of small integers are wide."""
    return value if numpy_dtype(value) == numpy_dtype(x) else cast(c, value, numpy_dtype(x))


def _sum(c: Call, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    if not axes:
        return x
    return _kept(c, c.xp.sum(x, axis=axes, keepdims=keep, dtype=x.dtype), x)


def _prod(c: Call, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return _kept(c, c.xp.prod(x, axis=axes, keepdims=keep, dtype=x.dtype), x) if axes else x


def _mean(c: Call, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    if not axes:
        return x
    if kind_of(x) != "f":
        count = product(x.shape[a] for a in axes)
        return c.xp.floor_divide(_sum(c, x, axes, keep), count if isinstance(x, Array) else np.asarray(count, x.dtype))
    return _kept(c, c.xp.mean(x, axis=axes, keepdims=keep), x)


def _most(name: str) -> Callable[..., Value]:
    def function(c: Call, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
        if not axes:
            return x
        empty = any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axes)
        if empty:
            return _of_nothing(c, x, axes, keep, name)
        if kind_of(x) == "b":
            return getattr(c.xp, "any" if name == "max" else "all")(x, axis=axes, keepdims=keep)
        return getattr(c.xp, name)(x, axis=axes, keepdims=keep)

    return function


def _of_nothing(c: Call, x: Value, axes: tuple[int, ...], keep: bool, name: str) -> Value:
    dtype = numpy_dtype(x)
    low = name == "max"
    if kind_of(x) == "f":
        value: object = -np.inf if low else np.inf
    elif dtype.kind == "b":
        value = not low
    else:
        value = int(np.iinfo(dtype).min if low else np.iinfo(dtype).max)
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes)
    return c.xp.broadcast_to(lift(np.asarray(value, dtype)), shape) if isinstance(x, Array) else np.full(shape, value, dtype)


def _l1(c: Call, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return _sum(c, c.xp.abs(x), axes, keep)


def _l2(c: Call, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    total = _squares(c, x, axes, keep)
    if kind_of(x) != "f":
        return cast(c, c.xp.sqrt(cast(c, total, np.dtype(np.float64))), numpy_dtype(x))
    return c.xp.sqrt(total)


def _squares(c: Call, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return _sum(c, c.xp.multiply(x, x), axes, keep)


def _log_sum(c: Call, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return c.xp.log(_sum(c, x, axes, keep))


def _log_sum_exp(c: Call, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    if not axes:
        return x
    if any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axes):
        return c.xp.log(_sum(c, x, axes, keep))
    return c.xp.logsumexp(x, axis=axes, keepdims=keep)


def _reduction(function: Callable[..., Value], at_nothing: Callable[..., Value] | None = None) -> Callable[..., Value]:
    def reduce(c: Call, x: Value, axes: Value = None) -> Value:
        found = _axes(c, x, axes)
        if found is None:
            return at_nothing(c, x) if at_nothing is not None else x
        return function(c, x, found, bool(c.get("keepdims", 1)))

    return reduce


REDUCTIONS = {
    "ReduceSum": (_sum, None), "ReduceProd": (_prod, None), "ReduceMean": (_mean, None), "ReduceMax": (_most("max"), None),
    "ReduceMin": (_most("min"), None), "ReduceL1": (_l1, lambda c, x: c.xp.abs(x)), "ReduceL2": (_l2, lambda c, x: c.xp.abs(x)),
    "ReduceSumSquare": (_squares, lambda c, x: c.xp.multiply(x, x)), "ReduceLogSum": (_log_sum, lambda c, x: c.xp.log(x)),
    "ReduceLogSumExp": (_log_sum_exp, None),
}  # fmt: skip
for _name, (_function, _at_nothing) in REDUCTIONS.items():
    row(_name, on_host=(1,))(_reduction(_function, _at_nothing))


def _arg(name: str) -> Callable[[Call, Value], Value]:
    def function(c: Call, x: Value) -> Value:
        axis, keep = c.axis(len(x.shape)), bool(c.get("keepdims", 1))
        if c.get("select_last_index", 0):
            flipped = c.xp.flip(x, axis=axis)
            found = getattr(c.xp, name)(flipped, axis=axis, keepdims=keep)
            return cast(c, c.xp.subtract(x.shape[axis] - 1, found), INT64)
        return cast(c, getattr(c.xp, name)(x, axis=axis, keepdims=keep), INT64)

    return function


row("ArgMax")(_arg("argmax"))
row("ArgMin")(_arg("argmin"))


@row("CumSum", on_host=(1,))
def cumulative_sum(c: Call, x: Value, axis: Value) -> Value:
    return _running(c, x, axis, dvm.cumulative_sum)


@row("CumProd", on_host=(1,))
def cumulative_product(c: Call, x: Value, axis: Value) -> Value:
    return _running(c, x, axis, dvm.cumulative_prod)


def _running(c: Call, x: Value, axis: Value, function: Callable[..., Array]) -> Value:
    along = int(np.asarray(axis).reshape(-1)[0]) % max(len(x.shape), 1)
    reverse, exclusive = (int(c.get(flag, 0)) for flag in ("reverse", "exclusive"))
    if isinstance(x, Array):
        return function(x, axis=along, dtype=x.dtype, reverse=bool(reverse), exclusive=bool(exclusive))
    return running_totals(x, along, int(function is dvm.cumulative_prod), reverse, exclusive).astype(x.dtype)


# ---- normalisation ------------------------------------------------------------------------------------------------


def _rows(c: Call, x: Value) -> tuple[Value, bool]:
    """Before operator set 13, softmax works on the axes from `axis` on as if they were one."""
    axis = c.axis(len(x.shape), 1)
    return c.xp.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:]))), True


def _softmax(name: str, by_steps: Callable[[Call, Value, int], Value]) -> Callable[[Call, Value], Value]:
    def of_axis(c: Call, x: Value, axis: int) -> Value:
        short = kind_of(x) == "f" and numpy_dtype(x).itemsize < 4
        return by_steps(c, x, axis) if short else getattr(c.xp, name)(x, axis=axis)

    def function(c: Call, x: Value) -> Value:
        if c.opset >= 13:
            return of_axis(c, x, c.axis(len(x.shape), -1))
        flat, _ = _rows(c, x)
        return c.xp.reshape(of_axis(c, flat, 1), x.shape)

    return function


def _softmax_by_steps(c: Call, x: Value, axis: int) -> Value:
    """As ONNX's function body has it, every step rounded: so short floats come out as elsewhere."""
    powers = c.xp.exp(c.xp.subtract(x, c.xp.max(x, axis=(axis,), keepdims=True)))
    return c.xp.divide(powers, _sum(c, powers, (axis,), True))


def _log_softmax_by_steps(c: Call, x: Value, axis: int) -> Value:
    shifted = c.xp.subtract(x, c.xp.max(x, axis=(axis,), keepdims=True))
    return c.xp.subtract(shifted, c.xp.log(_sum(c, c.xp.exp(shifted), (axis,), True)))


row("Softmax")(_softmax("softmax", _softmax_by_steps))
row("LogSoftmax")(_softmax("log_softmax", _log_softmax_by_steps))


@row("Hardmax")
def hardmax(c: Call, x: Value) -> Value:
    if c.opset < 13:
        flat, _ = _rows(c, x)
        return c.xp.reshape(_largest_is_one(c, flat, 1), x.shape)
    return _largest_is_one(c, x, c.axis(len(x.shape), -1))


def _largest_is_one(c: Call, x: Value, axis: int) -> Value:
    shape = [1] * len(x.shape)
    shape[axis] = x.shape[axis]
    places = c.xp.reshape(c.xp.arange(x.shape[axis], dtype="int64"), tuple(shape))
    return cast(c, c.xp.equal(places, c.xp.argmax(x, axis=axis, keepdims=True)), numpy_dtype(x))


def number(x: Value, value: float) -> Value:
    """A number beside x, of its dtype."""
    return float(value) if isinstance(x, Array) else np.asarray(value, numpy_dtype(x))


def normalised(c: Call, x: Value, axes: tuple[int, ...], eps: float) -> tuple[Value, Value, Value]:
    """(x to mean 0 and variance 1 over axes, the mean, 1 / the deviation)."""
    middle = c.xp.mean(x, axis=axes, keepdims=True)
    centred = c.xp.subtract(x, middle)
    spread = c.xp.mean(c.xp.multiply(centred, centred), axis=axes, keepdims=True)
    inverse = c.xp.rsqrt(c.xp.add(spread, number(x, eps)))
    return c.xp.multiply(centred, inverse), middle, inverse


def in_float32(c: Call, x: Value) -> Value:
    return cast(c, x, FLOAT32) if kind_of(x) == "f" and numpy_dtype(x).itemsize < 4 else x


@row("LayerNormalization")
def layer_normalization(c: Call, x: Value, scale: Value, bias: Value = None) -> Value:
    axis, dtype = c.axis(len(x.shape), -1), numpy_dtype(x)
    eps, rank = float(np.float32(c.get("epsilon", 1e-5))), len(x.shape)
    fits = len(scale.shape) == 1 and (bias is None or len(bias.shape) == 1)
    if isinstance(x, Array) and axis == rank - 1 and fits and not c.wants(1) and not c.wants(2) and dtype == FLOAT32:
        return c.xp.layer_norm(x, scale, bias, eps)
    wide = in_float32(c, x)
    result, middle, inverse = normalised(c, wide, tuple(range(axis, rank)), eps)
    result = c.xp.multiply(cast(c, result, dtype), scale)
    result = c.xp.add(result, bias) if bias is not None else result
    return [result, middle, inverse]


@row("RMSNormalization")
def rms_normalization(c: Call, x: Value, scale: Value) -> Value:
    axis, dtype = c.axis(len(x.shape), -1), numpy_dtype(x)
    wide = in_float32(c, x)
    axes = tuple(range(axis, len(x.shape)))
    spread = c.xp.mean(c.xp.multiply(wide, wide), axis=axes, keepdims=True)
    inverse = c.xp.rsqrt(c.xp.add(spread, number(wide, float(np.float32(c.get("epsilon", 1e-5))))))
    return c.xp.multiply(cast(c, c.xp.multiply(wide, inverse), dtype), scale)


def per_channel(c: Call, x: Value, rank: int) -> Value:
    """(C,) beside (B, C, *space)."""
    return c.xp.reshape(x, (x.shape[0], *(1,) * (rank - 2)))


@row("InstanceNormalization")
def instance_normalization(c: Call, x: Value, scale: Value, bias: Value) -> Value:
    rank = len(x.shape)
    result, _, _ = normalised(c, x, tuple(range(2, rank)), c.get("epsilon", 1e-5))
    return c.xp.add(c.xp.multiply(result, per_channel(c, scale, rank)), per_channel(c, bias, rank))


@row("GroupNormalization")
def group_normalization(c: Call, x: Value, scale: Value, bias: Value) -> Value:
    groups, rank, dtype = c.get("num_groups"), len(x.shape), numpy_dtype(x)
    wide = in_float32(c, x)
    parts = c.xp.reshape(wide, (x.shape[0], groups, -1))
    result, _, _ = normalised(c, parts, (2,), c.get("epsilon", 1e-5))
    if scale.shape[0] == groups and c.opset < 21:
        each = x.shape[1] // groups
        scale, bias = (c.xp.reshape(c.xp.broadcast_to(c.xp.expand_dims(p, axis=1), (groups, each)), (groups * each,))
                       for p in (scale, bias))
    result = cast(c, c.xp.reshape(result, x.shape), dtype)
    return c.xp.add(c.xp.multiply(result, per_channel(c, scale, rank)), per_channel(c, bias, rank))


@row("BatchNormalization")
def batch_normalization(c: Call, x: Value, scale: Value, bias: Value, mean: Value, variance: Value) -> Value:
    rank, eps = len(x.shape), c.get("epsilon", 1e-5)
    if not c.get("training_mode", 0):
        factor = c.xp.multiply(scale, c.xp.rsqrt(c.xp.add(variance, number(variance, eps))))
        shift = c.xp.subtract(bias, c.xp.multiply(mean, factor))
        return c.xp.add(c.xp.multiply(x, per_channel(c, factor, rank)), per_channel(c, shift, rank))
    axes = (0, *range(2, rank))
    own = c.xp.mean(x, axis=axes)
    centred = c.xp.subtract(x, per_channel(c, own, rank))
    spread = c.xp.mean(c.xp.multiply(centred, centred), axis=axes)
    momentum = c.get("momentum", 0.9)
    result = c.xp.multiply(centred, per_channel(c, c.xp.multiply(scale, c.xp.rsqrt(c.xp.add(spread, number(spread, eps)))), rank))
    old = [c.xp.multiply(a, number(a, momentum)) for a in (mean, variance)]
    new = [c.xp.multiply(a, number(a, 1 - momentum)) for a in (own, spread)]
    return [c.xp.add(result, per_channel(c, bias, rank)), *(c.xp.add(a, b) for a, b in zip(old, new, strict=True))]


@row("LpNormalization")
def lp_normalization(c: Call, x: Value) -> Value:
    axis = c.axis(len(x.shape), -1)
    powered = c.xp.abs(x) if c.get("p", 2) == 1 else c.xp.multiply(x, x)
    norm = c.xp.sum(powered, axis=(axis,), keepdims=True)
    norm = norm if c.get("p", 2) == 1 else c.xp.sqrt(norm)
    zero = number(x, 0.0)
    return c.xp.where(c.xp.equal(norm, zero), zero, c.xp.divide(x, norm))


@row("MeanVarianceNormalization")
def mean_variance_normalization(c: Call, x: Value) -> Value:
    axes = tuple(c.get("axes", (0, 2, 3)))
    middle = c.xp.mean(x, axis=axes, keepdims=True)
    centred = c.xp.subtract(x, middle)
    deviation = c.xp.sqrt(c.xp.mean(c.xp.multiply(centred, centred), axis=axes, keepdims=True))
    return c.xp.divide(centred, c.xp.add(deviation, number(x, 1e-9)))


@row("LRN")
def local_response_normalization(c: Call, x: Value) -> Value:
    """Squares averaged over neighbouring channels: pooling along them."""
    size, alpha, beta, bias = c.get("size"), c.get("alpha", 1e-4), c.get("beta", 0.75), c.get("bias", 1.0)
    before = (size - 1) // 2
    squares = c.xp.reshape(c.xp.multiply(x, x), (x.shape[0], 1, x.shape[1], product(x.shape[2:])))
    pads = [(before, size - 1 - before), (0, 0)]
    mean = c.xp.avg_pool(squares, (size, 1), stride=(1, 1), padding=pads, dilation=(1, 1), ceil_mode=False,
                         count_include_pad=True)
    scaled = c.xp.add(c.xp.multiply(c.xp.reshape(mean, x.shape), number(x, alpha)), number(x, bias))
    return c.xp.divide(x, c.xp.pow(scaled, number(x, beta)))


@row("Einsum")
def einsum(c: Call, *xs: Value) -> Value:
    try:
        return c.xp.einsum(c.get("equation"), *xs)
    except GraphError as error:
        raise c.refuse(str(error)) from error


@row("Det")
def determinant(c: Call, x: Value) -> Value:
    if isinstance(x, Array):
        raise c.refuse("determinants are the host's")
    return np.linalg.det(x).astype(x.dtype)
