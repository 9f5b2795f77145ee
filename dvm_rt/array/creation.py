"""Arrays that are made from numbers and sizes: filled, counted, triangles, grids.

Nothing is copied from the host: values are made in the launch that reads them, so sizes may be symbolic. Counting is exact:
in int64 where all numbers are whole (uint64 where that is asked for), else in float64, rounded once to the dtype asked for."""

from __future__ import annotations

from math import ceil, isfinite, nan

from dvm_rt.array.array import Array, DTypeLike, Number, asarray, binary, dtype_of, record, shape_of, whole
from dvm_rt.array.functions import broadcast_to, expand_dims, reshape, where
from dvm_rt.dtypes import DEFAULT_FLOAT, DEFAULT_INT, DType, bool_, float32, float64, int64, uint64, with_number
from dvm_rt.errors import ShapeError
from dvm_rt.graph.operators import number_of
from dvm_rt.graph.shapes import axis_number
from dvm_rt.graph.symbols import Dim, Size, floordiv

EXACT_MAX = 1 << 24  # whole numbers up to here are float32 numbers


def full(shape: Size | tuple[Size, ...] | list[Size], value: Number, *, dtype: DTypeLike | None = None) -> Array:
    """One value everywhere; without a dtype that of the value: bool, int64 or float32. Raises ShapeError, DTypeError."""
    wanted = with_number(bool_, value) if dtype is None else dtype_of(dtype)
    sizes = shape_of(shape if isinstance(shape, (tuple, list)) else (shape,), "full")
    return record("full", (), (sizes, number_of(value, wanted, "array: full"), wanted.name))


def zeros(shape: Size | tuple[Size, ...] | list[Size], *, dtype: DTypeLike | None = None) -> Array:
    """0 everywhere, float32 without a dtype."""
    return full(shape, 0, dtype=DEFAULT_FLOAT if dtype is None else dtype)


def ones(shape: Size | tuple[Size, ...] | list[Size], *, dtype: DTypeLike | None = None) -> Array:
    """1 everywhere, float32 without a dtype."""
    return full(shape, 1, dtype=DEFAULT_FLOAT if dtype is None else dtype)


def full_like(x: Array, /, value: Number, *, dtype: DTypeLike | None = None) -> Array:
    """One value, in the shape and (without a dtype) the dtype of x."""
    x = asarray(x)
    return full(x.shape, value, dtype=x.dtype if dtype is None else dtype)


def zeros_like(x: Array, /, *, dtype: DTypeLike | None = None) -> Array:
    """0, in the shape and (without a dtype) the dtype of x."""
    return full_like(x, 0, dtype=dtype)


def ones_like(x: Array, /, *, dtype: DTypeLike | None = None) -> Array:
    """1, in the shape and (without a dtype) the dtype of x."""
    return full_like(x, 1, dtype=dtype)


# ---- counting -----------------------------------------------------------------------------------------------------


def arange(
    start: Number | Size, /, stop: Number | Size | None = None, step: Number = 1, *, dtype: DTypeLike | None = None
) -> Array:  # fmt: skip
    """start, start + step, .. below stop (above it where step is negative); one argument is the stop.

    Whole numbers give int64, others float32. start and stop may be symbolic where all are whole. Raises ShapeError."""
    start, stop = (0, start) if stop is None else (start, stop)
    start, stop, step = (_number(n, f"arange: {name}") for n, name in ((start, "start"), (stop, "stop"), (step, "step")))
    exact = not any(isinstance(n, float) for n in (start, stop, step))
    wanted = (DEFAULT_INT if exact else DEFAULT_FLOAT) if dtype is None else dtype_of(dtype)
    return _counted(start, step, _count(start, stop, step, exact), _compute(start, step, exact, wanted)).astype(wanted)


def _count(start: Number | Size, stop: Number | Size, step: Number, exact: bool) -> Size:
    if step == 0:
        raise ShapeError("array: arange: step, got 0, allowed other numbers")
    if not isinstance(start, Dim) and not isinstance(stop, Dim):
        return max(0, -((start - stop) // step) if exact else ceil((stop - start) / step))
    if not exact:
        raise ShapeError(f"array: arange: symbolic sizes, got {start} to {stop} by {step}, allowed whole numbers beside them")
    return floordiv(stop - start + step - (1 if step > 0 else -1), step)


def _number(value: object, what: str) -> Number | Dim:
    """What the user gave for a number: a Dim, an int, or a finite float. Raises ShapeError."""
    try:
        number = value if isinstance(value, (Dim, float)) else value.__index__()
    except (AttributeError, TypeError):
        number = nan
    if isinstance(number, float) and not isfinite(number):
        raise ShapeError(f"array: {what}, got {value!r}, allowed finite numbers")
    return number


def _compute(start: Number | Size, step: Number, exact: bool, wanted: DType) -> DType:
    """What is counted in."""
    if not exact:
        return float64
    return uint64 if wanted is uint64 and not isinstance(start, Dim) and min(start, step) >= 0 else int64


def _counted(start: Number | Size, step: Number, count: Size, dtype: DType) -> Array:
    places = iota(count, dtype)
    places = places if step == 1 else binary("multiply", places, step)
    return binary("add", places, start) if isinstance(start, Dim) or start else places


def iota(size: Size, dtype: DType = float32) -> Array:
    """0, 1, 2.. below size."""
    return record("iota", (), (size,)).astype(dtype)


def linspace(start: float, stop: float, /, num: int, *, dtype: DTypeLike | None = None, endpoint: bool = True) -> Array:
    """num numbers from start to stop (which is the last one, but for endpoint=False) at equal distances, float32 without a dtype.

    Raises ShapeError for a negative number of them, and for ends that are not finite."""
    wanted = DEFAULT_FLOAT if dtype is None else dtype_of(dtype)
    num = whole(num, "linspace: num", least=0)
    first, last = float(_number(start, "linspace: start")), float(_number(stop, "linspace: stop"))
    steps = max(1, num - 1 if endpoint else num)
    values = _counted(first, (last - first) / steps, num, float64)
    if endpoint and num > 1:
        values = where(iota(num, float64) == float(num - 1), last, values)
    return values.astype(wanted)


# ---- matrices, grids ----------------------------------------------------------------------------------------------


def eye(rows: Size, columns: Size | None = None, /, *, k: int = 0, dtype: DTypeLike | None = None) -> Array:
    """1 on diagonal k, else 0; float32 without a dtype."""
    rows, columns = _coordinates(rows, rows if columns is None else columns, k)
    return (columns == rows).astype(DEFAULT_FLOAT if dtype is None else dtype_of(dtype))


def tril(x: Array, /, *, k: int = 0) -> Array:
    """The part on and below diagonal k of the last two axes, else 0. Raises ShapeError for fewer than two axes."""
    x = _matrix(x, "tril")
    rows, columns = _coordinates(x.shape[-2], x.shape[-1], k)
    return where(columns <= rows, x, _zero(x))


def triu(x: Array, /, *, k: int = 0) -> Array:
    """The part on and above diagonal k of the last two axes, else 0. Raises ShapeError for fewer than two axes."""
    x = _matrix(x, "triu")
    rows, columns = _coordinates(x.shape[-2], x.shape[-1], k)
    return where(columns >= rows, x, _zero(x))


def _coordinates(rows: Size, columns: Size, k: int) -> tuple[Array, Array]:
    """(rows, 1): the column of diagonal k in each row; (1, columns): the columns. In float32, in which masks join what reads
    them in one kernel, where that is exact (symbolic sizes: to 2^24)."""
    (rows, columns), k = shape_of((rows, columns), "matrix"), whole(k, "diagonal: k")
    large = [n for n in (rows, columns, abs(k)) if isinstance(n, int) and n > EXACT_MAX // 2]
    dtype = int64 if large else float32
    return expand_dims(iota(rows, dtype), axis=1) + k, expand_dims(iota(columns, dtype), axis=0)


def _matrix(x: object, name: str) -> Array:
    x = asarray(x)
    if x.ndim < 2:
        raise ShapeError(f"array: {name}: rank, got {x.ndim}, allowed 2 and more")
    return x


def _zero(x: Array) -> Number:
    return False if x.dtype is bool_ else 0


def one_hot(indices: Array, depth: Size, *, axis: int = -1, dtype: DTypeLike | None = None) -> Array:
    """1 at each index along a new axis of size depth, else 0; an index outside gives zeros. depth: to 2^24. float32
    without a dtype."""
    indices = asarray(indices)
    axis = axis_number("array: one_hot", axis, indices.ndim + 1)
    shape: list[Size] = [1] * (indices.ndim + 1)
    shape[axis] = depth = shape_of((depth,), "one_hot")[0]
    hit = expand_dims(indices.astype(float32), axis=axis) == reshape(iota(depth), tuple(shape))
    return hit.astype(DEFAULT_FLOAT if dtype is None else dtype_of(dtype))


def meshgrid(*arrays: Array, indexing: str = "xy") -> list[Array]:
    """Each vector stretched over the grid of all of them. Raises ShapeError for other indexing than xy and ij, and
    for matrices."""
    given = [asarray(a) for a in arrays]
    if not isinstance(indexing, str) or indexing not in ("xy", "ij") or any(a.ndim > 1 for a in given):
        got = f"{indexing!r} and ranks {[a.ndim for a in given]}"
        raise ShapeError(f"array: meshgrid: indexing and arrays, got {got}, allowed xy, ij and vectors")
    vectors = [a if a.ndim else expand_dims(a, axis=0) for a in given]
    order = list(range(len(vectors)))
    if indexing == "xy" and len(order) > 1:
        order[:2] = [1, 0]
    shape: list[Size] = [0] * len(order)
    for vector, axis in zip(vectors, order, strict=True):
        shape[axis] = vector.shape[0]
    lined = [reshape(v, tuple(n if i == axis else 1 for i, n in enumerate(shape))) for v, axis in zip(vectors, order,
        strict=True)]
    return [broadcast_to(v, tuple(shape)) for v in lined]
