"""The functions of the Array API standard (and those of neural networks) on arrays: thin, over the operator table.

Elementwise functions of one and two arrays are made from their rows; the others check and complete their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dvm_rt.array.array import (
    Array,
    DTypeLike,
    asarray,
    binary,
    chosen,
    common_dtype,
    flag,
    floating,
    is_several,
    power,
    promoted,
    real,
    record,
    shape_of,
)
from dvm_rt.dtypes import DEFAULT_INT, bool_
from dvm_rt.errors import GraphError, ShapeError
from dvm_rt.graph.operators import OPERATORS
from dvm_rt.graph.shapes import WHOLE, axis_number, axis_numbers, whole_number
from dvm_rt.graph.symbols import Dim, Shape, Size, floordiv

UNARY = (
    "negative", "abs", "square", "sign", "sqrt", "rsqrt", "reciprocal", "exp", "log", "tanh", "erf", "sigmoid", "relu", "floor",
    "ceil", "trunc", "round", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh",
    "exp2", "expm1",
    "log2", "log10", "log1p", "cbrt", "erfc", "lgamma", "digamma", "isnan", "isinf", "isfinite", "signbit",
    "logical_not", "bitwise_invert", "silu",
)  # fmt: skip
BINARY = (
    "add", "subtract", "multiply", "divide", "floor_divide", "remainder", "fmod", "maximum", "minimum", "copysign",
    "nextafter", "atan2", "hypot", "logaddexp", "equal",
    "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or", "logical_xor", "bitwise_and",
    "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift",
)  # fmt: skip
Axes = int | tuple[int, ...] | None


def _unary(name: str) -> Callable[[Array], Array]:
    def function(x: Array, /) -> Array:
        return record(name, (_array(x, name),))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{OPERATORS[name].doc}, element by element."
    return function


def _binary(name: str) -> Callable[[Array | float, Array | float], Array]:
    def function(x: Array | float, y: Array | float, /) -> Array:
        return binary(name, x, y)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"{OPERATORS[name].doc}, element by element; shapes broadcast, dtypes are promoted; one side may be a number.")
    return function


def _of_numbers(name: str, whole: str) -> Callable[[Array], Array]:
    """A question that has one answer for all integers: what x `whole` x gives."""

    def function(x: Array, /) -> Array:
        x = _array(x, name)
        return binary(whole, x, x) if x.dtype.kind in "iu" else record(name, (x,))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{OPERATORS[name].doc}, element by element."
    return function


for _name in UNARY:
    globals()[_name] = _unary(_name)
for _name, _whole in (("isfinite", "equal"), ("isinf", "not_equal"), ("isnan", "not_equal")):
    globals()[_name] = _of_numbers(_name, _whole)
for _name in BINARY:
    globals()[_name] = _binary(_name)


def _array(x: object, where: str) -> Array:
    if isinstance(x, Array):
        return x
    return asarray(x)


def where(condition: Array, x: Array | float, y: Array | float, /) -> Array:
    """x where the condition (bool) holds, else y."""
    return record("where", (_array(condition, "where"), *promoted("where", (x, y))))


def astype(x: Array, dtype: DTypeLike, /) -> Array:
    """x in another dtype."""
    return _array(x, "astype").astype(dtype)


def pow(x: Array | float, exponent: Array | float, /) -> Array:
    """x to a power; one of them may be a number."""
    return power(x if isinstance(x, Array) or isinstance(exponent, Array) else asarray(x), exponent)


def clip(x: Array, min: Array | float | None = None, max: Array | float | None = None) -> Array:
    """x cut off at both ends; the ends may be arrays."""
    x = _array(x, "clip")
    if isinstance(min, Array) or isinstance(max, Array):
        x = x if min is None else binary("maximum", x, min)
        return x if max is None else binary("minimum", x, max)
    dtype = common_dtype("clip", [x, *(bound for bound in (min, max) if bound is not None)])
    low, high = (None if bound is None else bound + 0.0 if dtype.kind == "f" else bound for bound in (min, max))
    return record("clip", (x.astype(dtype),), (low, high))


def gelu(x: Array, /, approximate: str = "none") -> Array:
    """x times the normal distribution function of x; approximate: "none" (erf) or "tanh"."""
    if not isinstance(approximate, str) or approximate not in ("none", "tanh"):
        raise GraphError(f"array: gelu: approximate, got {approximate!r}, allowed none, tanh")
    return record("gelu", (_array(x, "gelu"),), (approximate,))


# ---- reductions ---------------------------------------------------------------------------------------------------


def _reduction(name: str) -> Callable[..., Array]:
    def function(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Array:
        return getattr(_array(x, name), name)(axis=axis, keepdims=keepdims)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{OPERATORS[name].doc}; axis None: over all."
    return function


for _name in ("max", "min", "mean", "any", "all"):
    globals()[_name] = _reduction(_name)


def sum(x: Array, /, *, axis: Axes = None, dtype: DTypeLike | None = None, keepdims: bool = False) -> Array:
    """Sum over axes; axis None: over all. Integers are summed in int64 (uint64), unless `dtype` says otherwise."""
    return _array(x, "sum").sum(axis, dtype, keepdims)


def prod(x: Array, /, *, axis: Axes = None, dtype: DTypeLike | None = None, keepdims: bool = False) -> Array:
    """Product over axes; axis None: over all. Integers are multiplied in int64 (uint64), unless `dtype` says otherwise."""
    return _array(x, "prod").prod(axis, dtype, keepdims)


def var(x: Array, /, *, axis: Axes = None, correction: float = 0.0, keepdims: bool = False) -> Array:
    """Variance over axes, divided by the count - correction, or by 0 where that is less."""
    x = floating(_array(x, "var"))
    correction, keepdims = real(correction, "var: correction"), flag(keepdims, "var: keepdims")
    return record("var", (x,), (axis_numbers("array: var", axis, x.ndim), correction, keepdims))


def std(x: Array, /, *, axis: Axes = None, correction: float = 0.0, keepdims: bool = False) -> Array:
    """Standard deviation over axes: the square root of `var`."""
    return record("sqrt", (var(x, axis=axis, correction=correction, keepdims=keepdims),))


def logsumexp(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """Logarithm of the sum of e^x over axes."""
    return chosen("logsumexp", floating(_array(x, "logsumexp")), axis, keepdims)


def argmax(x: Array, /, *, axis: int | None = None, keepdims: bool = False) -> Array:
    """Where the largest is along an axis, the first one (int64); axis None: in row-major order."""
    return chosen("argmax", _array(x, "argmax"), axis, keepdims)


def argmin(x: Array, /, *, axis: int | None = None, keepdims: bool = False) -> Array:
    """Where the smallest is along an axis, the first one (int64); axis None: in row-major order."""
    return chosen("argmin", _array(x, "argmin"), axis, keepdims)


def count_nonzero(x: Array, /, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """How many elements are not 0, over axes (int64)."""
    return _array(x, "count_nonzero").astype(bool_).sum(axis, DEFAULT_INT, keepdims)


def softmax(x: Array, /, *, axis: int = -1) -> Array:
    """e^x over its sum, along an axis."""
    x = _array(x, "softmax")
    return record("softmax", (x,), (axis_number("array: softmax", axis, x.ndim),))


def log_softmax(x: Array, /, *, axis: int = -1) -> Array:
    """Logarithm of softmax."""
    x = _array(x, "log_softmax")
    return record("log_softmax", (x,), (axis_number("array: log_softmax", axis, x.ndim),))


def layer_norm(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> Array:
    """The last axis to mean 0 and variance 1, times weight, plus bias. Raises ShapeError for an array without axes."""
    x = _with_axes(x, "layer_norm")
    if weight is None and bias is not None:
        raise GraphError("array: layer_norm: weight, got a bias without one, allowed weight, or both, or neither")
    given = promoted("layer_norm", [p for p in (x, weight, bias) if p is not None])
    return record("layer_norm", given, (real(eps, "layer_norm: eps"),))


def rms_norm(x: Array, weight: Array | None = None, eps: float = 1e-6) -> Array:
    """The last axis over its root mean square, times weight. Raises ShapeError for an array without axes."""
    x = _with_axes(x, "rms_norm")
    return record("rms_norm", promoted("rms_norm", [p for p in (x, weight) if p is not None]), (real(eps, "rms_norm: eps"),))


def _with_axes(x: object, where: str) -> Array:
    x = _array(x, where)
    if x.ndim == 0:
        raise ShapeError(f"array: {where}: rank, got 0, allowed 1 and more")
    return x


# ---- products -----------------------------------------------------------------------------------------------------


def matmul(x: Array, y: Array, /) -> Array:
    """Matrix product; batch dimensions broadcast; a 1-d operand is a row on the left, a column on the right."""
    return binary("matmul", _array(x, "matmul"), _array(y, "matmul"))


def matmul_integer(x: Array, y: Array, /) -> Array:
    """Matrix product of int8 or uint8 arrays with at least two dimensions, added up in int32 (modulo 2^32)."""
    x, y = _array(x, "matmul_integer"), _array(y, "matmul_integer")
    if x.ndim < 2 or y.ndim < 2:
        raise ShapeError(f"array: matmul_integer: rank, got {x.ndim} and {y.ndim}, allowed at least 2")
    return record("matmul_integer", (x, y))


def grouped_matmul(x: Array, w: Array, rows: Array, /) -> Array:
    """A mixture of experts: rows of x (M, K) in groups, one behind the other, group e times w[e] of w (G, K, N).

    rows (G,), int32 or int64, says how many rows each group has; it is data, and all of it is one launch. Rows beyond all
    groups give 0. A number below 0, or more rows than there are, is a DeviceTrap."""
    x, w, rows = _array(x, "grouped_matmul"), _array(w, "grouped_matmul"), _array(rows, "grouped_matmul")
    return record("grouped_matmul", (*promoted("grouped_matmul", (x, w)), rows))


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x @ weight.T + bias, weight (outputs, inputs)."""
    return record("linear", promoted("linear", [p for p in (x, weight, bias) if p is not None]))


def attention(
    q: Array, k: Array, v: Array, /, mask: Array | None = None, *, causal: bool = False, scale: float | None = None
) -> Array:
    """softmax(scale * q @ k^T + mask) @ v as one kernel that never stores the scores: scaled dot product attention.

    q (..., heads, M, D), k (..., heads, T, D), v (..., heads, T, E); batch dimensions broadcast. k and v
    may have fewer heads, of which equal runs of q's heads share one each (grouped heads). mask broadcasts to (..., M,
    T): float32 is added, bool says which keys are seen. causal: query i sees keys up to i + T - M. scale: 1 / sqrt(D)
    if not given. A query that sees no key gives 0."""
    q, k, v = (_array(x, "attention") for x in (q, k, v))
    mask = None if mask is None else _array(mask, "attention")
    groups = q.shape[-3] if q.ndim > 2 and k.ndim > 2 and v.ndim > 2 and _grouped(q.shape[-3], k.shape[-3]) else None
    if groups is not None:
        q, k, v, mask = _group_heads(q, k, v, mask)
    scale = None if scale is None else real(scale, "attention: scale")
    attributes = (scale, flag(causal, "attention: causal"), float("-inf"), 0.0)
    result = record("attention", (q, k, v) if mask is None else (q, k, v, mask), attributes)
    return result if groups is None else reshape(result, (*result.shape[:-4], groups, *result.shape[-2:]))


def _grouped(heads: Size, shared: Size) -> bool:
    return isinstance(heads, int) and isinstance(shared, int) and 1 < shared < heads and heads % shared == 0


def _group_heads(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array, Array, Array | None]:
    """Heads as (heads of k, heads that share one)."""
    heads, shared = q.shape[-3], k.shape[-3]

    def split(x: Array) -> Array:
        return reshape(x, (*x.shape[:-3], shared, heads // shared, *x.shape[-2:]))

    if mask is not None and mask.ndim > 2:
        mask = expand_dims(mask, axis=mask.ndim - 2) if mask.shape[-3] == 1 else split(mask)
    return split(q), expand_dims(k, axis=k.ndim - 2), expand_dims(v, axis=v.ndim - 2), mask


# ---- views, joins -------------------------------------------------------------------------------------------------


def reshape(x: Array, /, shape: Size | Sequence[Size]) -> Array:
    """The same elements in row-major order in another shape; one size may be -1."""
    return _array(x, "reshape").reshape(shape if isinstance(shape, (tuple, list)) else (shape,))


def permute_dims(x: Array, /, axes: Sequence[int]) -> Array:
    """Axis i of the result is axis axes[i] of x."""
    x = _array(x, "permute_dims")
    rank = x.ndim
    if not is_several(axes):
        raise ShapeError(f"array: permute_dims: axes, got {axes!r}, allowed a sequence of them")
    return record("permute_dims", (x,), (tuple([axis_number("array: permute_dims", a, rank) for a in axes]),))


def matrix_transpose(x: Array, /) -> Array:
    """The last two axes exchanged."""
    return _array(x, "matrix_transpose").mT


def expand_dims(x: Array, /, *, axis: int | tuple[int, ...] = 0) -> Array:
    """New axes of size 1."""
    x = _array(x, "expand_dims")
    count = len(axis) if isinstance(axis, tuple) else 1
    return record("expand_dims", (x,), (axis_numbers("array: expand_dims", axis, x.ndim + count),))


def squeeze(x: Array, /, axis: int | tuple[int, ...]) -> Array:
    """Axes of size 1 dropped."""
    x = _array(x, "squeeze")
    return record("squeeze", (x,), (axis_numbers("array: squeeze", axis, x.ndim),))


def broadcast_to(x: Array, /, shape: Sequence[Size]) -> Array:
    """x stretched to a shape."""
    return record("broadcast_to", (_array(x, "broadcast_to"),), (_shape(shape, "broadcast_to"),))


def concat(arrays: Sequence[Array], /, *, axis: int = 0) -> Array:
    """The arrays one behind the other along an axis. Raises ShapeError for none, and for sizes that differ elsewhere."""
    given = _several(arrays, "concat")
    return record("concat", promoted("concat", given), (axis_number("array: concat", axis, given[0].ndim),))


def stack(arrays: Sequence[Array], /, *, axis: int = 0) -> Array:
    """The arrays beside each other along a new axis. Raises ShapeError for none, and for shapes that differ."""
    given = _several(arrays, "stack")
    return record("stack", promoted("stack", given), (axis_number("array: stack", axis, given[0].ndim + 1),))


def split(x: Array, /, sections: int | Sequence[int], *, axis: int = 0) -> list[Array]:
    """x in equal parts (a number of them), or cut at positions."""
    x = _array(x, "split")
    axis = axis_number("array: split", axis, x.ndim)
    size = x.shape[axis]
    if (count := whole_number(sections)) is not None:
        sections = count
        if sections < 1:
            raise ShapeError(f"array: split: parts, got {sections}, allowed at least 1")
        if isinstance(size, int) and size % sections:
            raise ShapeError(f"array: split: parts, got {size} in {sections}, allowed equal ones")
        if isinstance(size, Dim):  # a view that says that the parts are equal
            apart = reshape(x, (*x.shape[:axis], sections, floordiv(size, sections), *x.shape[axis + 1 :]))
            return [record("index", (apart,), ((*(WHOLE,) * axis, i),)) for i in range(sections)]
        cuts: list[Size] = [size // sections * i for i in range(1, sections)]
    else:
        cuts = _cuts(sections)
    lead = (slice(None),) * axis
    return [x[(*lead, slice(a, b))] for a, b in zip([None, *cuts], [*cuts, None], strict=True)]


def _cuts(places: object) -> list[Size]:
    if not is_several(places):
        raise ShapeError(f"array: split: places, got {places!r}, allowed a number of parts, or whole numbers where to cut")
    return list(shape_of(places, "split"))


def _several(arrays: object, where: str) -> list[Array]:
    if not isinstance(arrays, (tuple, list)) or not arrays:
        got = "0 arrays" if isinstance(arrays, (tuple, list)) else type(arrays).__name__
        raise ShapeError(f"array: {where}: arrays, got {got}, allowed a tuple or list of at least 1")
    return [_array(x, where) for x in arrays]


def _shape(shape: Size | Sequence[Size], where: str) -> Shape:
    return shape_of(shape if isinstance(shape, (tuple, list)) else (shape,), where)


__all__ = [
    *UNARY, *BINARY, "where", "astype", "pow", "clip", "gelu", "sum", "prod", "max", "min", "mean", "any", "all", "var", "std",
    "logsumexp", "argmax", "argmin", "count_nonzero", "softmax", "log_softmax", "layer_norm", "rms_norm", "matmul",
    "matmul_integer", "grouped_matmul",
    "linear", "attention", "reshape", "permute_dims", "matrix_transpose", "expand_dims", "squeeze", "broadcast_to",
    "concat", "stack",
    "split",
]  # fmt: skip
