"""THE operator table: one row an operator.

A row says everything that is known of an operator: how many inputs, its attributes, the dtype and the shape of its
result, what it means in NumPy (in float64 for float32: the oracle of every test), and how it lowers:

    LEAF         nothing is computed: a parameter, a constant, a size
    ELEMENTWISE  instructions of the vector unit, element by element, inputs broadcast
    REDUCE       a reduction instruction over axes
    VIEW         the same elements at other places: offsets and strides, no work
    PRODUCT      the matrix unit
    GATHER       rows picked by an index
    ATTENTION    a product, a softmax and a product in one, without storing the scores
    JOIN         several producers write into one buffer
    HOST         a host function (isa/host.py), in NumPy
    COMPOSITE    taken apart into other operators (composites.py), before any plan is made

Booleans are 1.0 and 0.0 inside a kernel. Integers are storage: they are gathered by, viewed, and converted to float32;
arithmetic on them is not there yet and says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import erf, pi, sqrt

import numpy as np

from dvm_rt import dtypes
from dvm_rt.dtypes import DType, bool_, float32
from dvm_rt.errors import DTypeError, UnsupportedOperatorError
from dvm_rt.graph import composites, movement, shapes, windows

Lowering = Enum("Lowering", "LEAF ELEMENTWISE REDUCE VIEW PRODUCT GATHER JOIN COMPOSITE HOST ATTENTION")
VARIADIC = -1


@dataclass(frozen=True, slots=True)
class Operator:
    """One row. `inputs` is the number of inputs, or the allowed numbers, or VARIADIC.

    `dtype(where, dtypes, *attributes)` and `shape(facts, where, shapes, *attributes)` give the result's, or raise;
    `meaning(*arrays, *attributes)` is the NumPy definition; `instructions` (ELEMENTWISE) is the name of the instruction
    that does it, or a function of an emitter (HOST: the name of the host function); `compose(op, *nodes, *attributes)` (COMPOSITE) takes it apart."""

    name: str
    inputs: int | tuple[int, ...]
    lowering: Lowering
    doc: str
    dtype: Callable[..., DType]
    shape: Callable[..., shapes.Shape]
    meaning: Callable[..., np.ndarray]
    attributes: tuple[str, ...] = ()
    instructions: str | Callable[..., int] = ""
    compose: Callable[..., object] | None = None
    where: str = ""  # how errors name it

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", f"graph: {self.name}")

    def takes(self, count: int) -> bool:
        """Whether it can have so many inputs."""
        if isinstance(self.inputs, tuple):
            return count in self.inputs
        return count == self.inputs if self.inputs != VARIADIC else count > 0

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Callable[[str], Operator], tuple[str]]:
        return operator, (self.name,)


# ---- dtype rules --------------------------------------------------------------------------------------------------


def _floats(where: str, given: tuple[DType, ...], *_: object) -> DType:
    for dtype in given:
        if dtype is not float32:
            raise _refused(where, dtype, "float32")
    return float32


PRODUCTS = ("float32", "float64", "int32", "uint32", "int64", "uint64")  # what the matrix unit computes in


def _product(where: str, given: tuple[DType, ...]) -> DType:
    if given[0] is not given[1] or given[0].name not in PRODUCTS:
        raise DTypeError(f"graph: {where}: dtypes, got {given[0]} and {given[1]}, allowed one of {', '.join(PRODUCTS)} for both")
    return given[0]


def _product_of_bytes(where: str, given: tuple[DType, ...]) -> DType:
    for dtype in given:
        if dtype not in (dtypes.int8, dtypes.uint8):
            raise DTypeError(f"graph: {where}: dtype, got {dtype}, allowed int8, uint8")
    return dtypes.int32


def _comparison(where: str, given: tuple[DType, ...]) -> DType:
    if not (given[0] is given[1] and given[0] in (float32, bool_)):
        raise _refused(where, next((d for d in given if d is not float32), float32), "float32 on both sides, or bool on both")
    return bool_


def _float_test(where: str, given: tuple[DType, ...]) -> DType:
    _floats(where, given)
    return bool_


def _bools(where: str, given: tuple[DType, ...], *_: object) -> DType:
    for dtype in given:
        if dtype is not bool_:
            raise _refused(where, dtype, "bool")
    return bool_


def _choice(where: str, given: tuple[DType, ...]) -> DType:
    _bools(where + " (condition)", given[:1])
    if given[1] is not given[2] or given[1] not in (float32, bool_):
        raise _refused(where, given[1] if given[1] is not float32 else given[2], "float32 on both sides, or bool on both")
    return given[1]


def _attended(where: str, given: tuple[DType, ...], *_: object) -> DType:
    if len(given) == 4 and given[3] not in (float32, bool_):
        raise _refused(where + " (mask)", given[3], "float32 or bool")
    return _floats(where, given[:3])


def _cast(where: str, given: tuple[DType, ...], name: str) -> DType:
    (source,), target = given, dtypes.BY_NAME.get(name)
    if target is None:
        raise DTypeError(f"graph: {where}: unknown dtype, got {name}, allowed {', '.join(dtypes.BY_NAME)}")
    loads = source in (float32, bool_) or source.kind in "iu"
    if not (target is source or (target in (float32, bool_) and loads)):
        raise UnsupportedOperatorError(
            f"graph: {where}: conversion not there yet, got {source} to {target}, allowed bool and integers to float32, and these to bool"
        )
    return target


def _kept(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return given[0]


def _one_for_all(where: str, given: tuple[DType, ...], *_: object) -> DType:
    for dtype in given:
        if dtype is not given[0]:
            raise DTypeError(f"graph: {where}: dtypes differ, got {given[0]} and {dtype}, allowed one for all; x.astype(...) converts")
    return given[0]


def _rows(where: str, given: tuple[DType, ...]) -> DType:
    if given[1] not in (dtypes.int32, dtypes.int64):
        raise DTypeError(f"graph: {where}: dtype of the indices, got {given[1]}, allowed int32, int64")
    return _floats(where + " (table)", given[:1])


def _named(where: str, given: tuple[DType, ...], _: object, name: str) -> DType:
    if name not in ("float32", "bool"):
        raise UnsupportedOperatorError(f"graph: {where}: dtype not there yet, got {name}, allowed float32, bool")
    return dtypes.BY_NAME[name]


def _refused(where: str, got: DType, allowed: str) -> Exception:
    if got.kind in "iu":
        return UnsupportedOperatorError(
            f"graph: {where}: integer arithmetic is not there yet, got {got}, allowed {allowed}; integers can be indices of take, "
            "be viewed, and be converted: x.astype(dvm.float32)"
        )
    return DTypeError(f"graph: {where}: dtype, got {got}, allowed {allowed}; x.astype(...) converts")


# ---- instructions that are more than one word ---------------------------------------------------------------------


def _where(emit: Callable[..., int], condition: int, chosen: int, other: int) -> int:
    return emit("merge", emit("keep", chosen, condition), emit("drop", other, condition))


def _not(emit: Callable[..., int], x: int) -> int:
    return emit("eq", x, 0.0)


# ---- meanings -----------------------------------------------------------------------------------------------------


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(erf, otypes=[np.float64])(x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    t = np.exp(-np.abs(x))
    return np.where(x < 0, t, 1.0) / (1 + t)


def _gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    inner = _erf(x * sqrt(0.5)) if approximate == "none" else np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + inner)


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _layer_norm(x: np.ndarray, *rest: np.ndarray | float) -> np.ndarray:
    *parameters, eps = rest
    result = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    if parameters:
        result = result * parameters[0]
    return result + parameters[1] if len(parameters) > 1 else result


def _rms_norm(x: np.ndarray, *rest: np.ndarray | float) -> np.ndarray:
    *parameters, eps = rest
    result = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)
    return result * parameters[0] if parameters else result


def _linear(x: np.ndarray, weight: np.ndarray, *bias: np.ndarray) -> np.ndarray:
    return x @ weight.T + (bias[0] if bias else 0.0)


def _take(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.take(table, indices, axis=0)


def _largest(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    return np.max(x, axis=axes, keepdims=keepdims, initial=-np.inf)


def _smallest(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    return np.min(x, axis=axes, keepdims=keepdims, initial=np.inf)


def _over_axes(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda x, axes, keepdims: function(x, axis=axes, keepdims=keepdims)


def _entries(entries: tuple[shapes.Entry, ...]) -> tuple[int | slice, ...]:
    return tuple(slice(*e) if isinstance(e, tuple) else e for e in entries)


def _converted(x: np.ndarray, name: str) -> np.ndarray:
    return x != 0 if name == "bool" else x.astype(np.float64)


def _constant(value: float, name: str) -> np.ndarray:
    return np.asarray(value, bool) if name == "bool" else np.asarray(np.float32(value), np.float64)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, *rest: np.ndarray | float) -> np.ndarray:
    *masks, scale, causal, masked, empty = rest
    scores = (q @ np.swapaxes(k, -1, -2)) * (max(q.shape[-1], 1) ** -0.5 if scale is None else scale)
    for mask in masks:
        scores = np.where(mask, scores, masked) if mask.dtype == bool else scores + mask
    queries, keys = scores.shape[-2:]
    if causal:
        scores = np.where(np.arange(keys) <= np.arange(queries)[:, None] + keys - queries, scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    p = np.exp(scores - np.where(top == -np.inf, 0.0, top))
    total = p.sum(-1, keepdims=True)
    return np.where(total == 0, empty, (p @ v) / np.where(total == 0, 1.0, total))


def _power(x: np.ndarray, exponent: float) -> np.ndarray:
    return np.power(x, exponent)


# ---- the table ----------------------------------------------------------------------------------------------------


def _unary(name: str, instruction: str, meaning: Callable[..., np.ndarray], doc: str) -> Operator:
    return Operator(name, 1, Lowering.ELEMENTWISE, doc, _floats, shapes.elementwise, meaning, (), instruction)


def _binary(name: str, instruction: str, meaning: Callable[..., np.ndarray], doc: str) -> Operator:
    return Operator(name, 2, Lowering.ELEMENTWISE, doc, _floats, shapes.elementwise, meaning, (), instruction)


def _compare(name: str, instruction: str, meaning: Callable[..., np.ndarray], doc: str) -> Operator:
    return Operator(name, 2, Lowering.ELEMENTWISE, doc, _comparison, shapes.elementwise, meaning, (), instruction)


L, E = Lowering, shapes.elementwise

TABLE: tuple[Operator, ...] = (
    # ---- leaves -----------------------------------------------------------------------------------------------------
    Operator("parameter", 0, L.LEAF, "an input of the graph", lambda where, given, i, shape, name: dtypes.BY_NAME[name],
             lambda facts, where, given, i, shape, name: shapes.checked_shape(where, shape), lambda *_: None,
             ("index", "shape", "dtype")),
    Operator("constant", 0, L.LEAF, "a number", _named, shapes.scalar, _constant, ("value", "dtype")),
    Operator("dimension", 0, L.LEAF, "a size as a number", lambda where, given, size: float32, shapes.scalar,
             lambda size: np.asarray(float(size)), ("size",)),
    # ---- elementwise ------------------------------------------------------------------------------------------------
    _binary("add", "add", np.add, "x + y"),
    _binary("subtract", "sub", np.subtract, "x - y"),
    _binary("multiply", "mul", np.multiply, "x * y"),
    _binary("divide", "div", np.divide, "x / y"),
    _binary("maximum", "max", np.maximum, "the larger one; NaN if either is NaN"),
    _binary("minimum", "min", np.minimum, "the smaller one; NaN if either is NaN"),
    _unary("negative", "neg", np.negative, "-x"),
    _unary("abs", "abs", np.abs, "|x|"),
    _unary("square", "square", np.square, "x * x"),
    _unary("sqrt", "sqrt", np.sqrt, "square root"),
    _unary("rsqrt", "rsqrt", lambda x: 1 / np.sqrt(x), "1 / sqrt(x)"),
    _unary("reciprocal", "recip", np.reciprocal, "1 / x"),
    _unary("exp", "exp", np.exp, "e^x; 0 below 2^-126"),
    _unary("log", "log", np.log, "natural logarithm"),
    _unary("tanh", "tanh", np.tanh, "hyperbolic tangent"),
    _unary("erf", "erf", _erf, "error function"),
    _unary("sigmoid", "sigmoid", _sigmoid, "1 / (1 + e^-x)"),
    _unary("relu", "relu", lambda x: np.maximum(x, 0), "larger of x and 0"),
    _unary("floor", "floor", np.floor, "largest whole number <= x"),
    _unary("ceil", "ceil", np.ceil, "smallest whole number >= x"),
    _unary("trunc", "trunc", np.trunc, "nearest whole number towards 0"),
    _unary("round", "round", np.rint, "nearest whole number, halves to even"),
    Operator("isnan", 1, L.ELEMENTWISE, "whether x is NaN", _float_test, E, np.isnan, (), "isnan"),
    _compare("equal", "eq", np.equal, "x == y"),
    _compare("not_equal", "ne", np.not_equal, "x != y"),
    _compare("less", "lt", np.less, "x < y"),
    _compare("less_equal", "le", np.less_equal, "x <= y"),
    _compare("greater", "gt", np.greater, "x > y"),
    _compare("greater_equal", "ge", np.greater_equal, "x >= y"),
    Operator("logical_and", 2, L.ELEMENTWISE, "both", _bools, E, np.logical_and, (), "mul"),
    Operator("logical_or", 2, L.ELEMENTWISE, "either or both", _bools, E, np.logical_or, (), "max"),
    Operator("logical_xor", 2, L.ELEMENTWISE, "one of them, not both", _bools, E, np.logical_xor, (), "ne"),
    Operator("logical_not", 1, L.ELEMENTWISE, "not x", _bools, E, np.logical_not, (), _not),
    Operator("where", 3, L.ELEMENTWISE, "x where the condition holds, else y", _choice, E, np.where, (), _where),
    Operator("astype", 1, L.ELEMENTWISE, "converted; to bool: whether it is not 0", _cast, E, _converted, ("dtype",), "astype"),
    Operator("copy", 1, L.ELEMENTWISE, "the same values, stored anew", _kept, E, lambda x: x, (), "copy"),
    # ---- reductions -------------------------------------------------------------------------------------------------
    Operator("sum", 1, L.REDUCE, "sum over axes", _floats, shapes.reduced, _over_axes(np.sum), ("axes", "keepdims")),
    Operator("max", 1, L.REDUCE, "largest over axes; NaN wins", _floats, shapes.reduced_with_identity_missing, _largest,
             ("axes", "keepdims")),
    # ---- views ------------------------------------------------------------------------------------------------------
    Operator("permute_dims", 1, L.VIEW, "axes in another order", _kept, shapes.permuted, np.transpose, ("axes",)),
    Operator("reshape", 1, L.VIEW, "another shape of as many elements; one size may be -1", _kept, shapes.reshaped,
             np.reshape, ("shape",)),
    Operator("expand_dims", 1, L.VIEW, "new axes of size 1", _kept, shapes.expanded, np.expand_dims, ("axes",)),
    Operator("squeeze", 1, L.VIEW, "axes of size 1 dropped", _kept, shapes.squeezed, np.squeeze, ("axes",)),
    Operator("broadcast_to", 1, L.VIEW, "stretched to a shape", _kept, shapes.broadcast_to, np.broadcast_to, ("shape",)),
    Operator("index", 1, L.VIEW, "basic indexing: slices and whole numbers", _kept, shapes.indexed,
             lambda x, entries: x[_entries(entries)], ("entries",)),
    # ---- products, rows, joins --------------------------------------------------------------------------------------
    Operator("matrix_product", 2, L.PRODUCT, "(..., M, K) x (..., K, N)", _product, shapes.matmul, np.matmul),
    Operator("matmul_integer", 2, L.PRODUCT, "(..., M, K) x (..., K, N) of int8 or uint8, added up in int32", _product_of_bytes,
             shapes.matmul, lambda a, b: np.matmul(a.astype(np.int64), b.astype(np.int64)).astype(np.int32)),
    Operator("take", 2, L.GATHER, "rows of a table, one for each index; negative indices count from the end", _rows,
             shapes.taken, _take),
    Operator("attention", (3, 4), L.ATTENTION, "softmax(scale * q @ k^T + mask) @ v; scale None: 1 / sqrt(D); causal: query i sees keys up to i + keys - "
             "queries; masked: what a bool mask puts in place of a score; empty: the result of a query that sees no key",
             _attended, shapes.attention, _attention, ("scale", "causal", "masked", "empty")),
    Operator("concat", VARIADIC, L.JOIN, "one behind the other along an axis", _one_for_all, shapes.concatenated,
             lambda *rest: np.concatenate(rest[:-1], axis=rest[-1]), ("axis",)),
    # ---- composites -------------------------------------------------------------------------------------------------
    Operator("matmul", 2, L.COMPOSITE, "matrix product; 1-d operands as in NumPy", _product, shapes.matmul, np.matmul,
             compose=composites.matmul),
    Operator("linear", (2, 3), L.COMPOSITE, "x @ weight.T + bias", _floats, shapes.linear, _linear, compose=composites.linear),
    Operator("silu", 1, L.COMPOSITE, "x * sigmoid(x)", _floats, E, lambda x: x * _sigmoid(x), compose=composites.silu),
    Operator("gelu", 1, L.COMPOSITE, "x times the normal distribution function; approximate: none (erf) or tanh", _floats,
             E, _gelu, ("approximate",), compose=composites.gelu),
    Operator("clip", 1, L.COMPOSITE, "cut off at low and high", _floats, E, np.clip, ("low", "high"), compose=composites.clip),
    Operator("pow", 1, L.COMPOSITE, "x to a constant power", _floats, E, _power, ("exponent",), compose=composites.power),
    Operator("min", 1, L.COMPOSITE, "smallest over axes; NaN wins", _floats, shapes.reduced_with_identity_missing, _smallest,
             ("axes", "keepdims"), compose=composites.smallest),
    Operator("mean", 1, L.COMPOSITE, "mean over axes", _floats, shapes.reduced, _over_axes(np.mean), ("axes", "keepdims"),
             compose=composites.mean),
    Operator("var", 1, L.COMPOSITE, "variance over axes; divided by the count - correction", _floats,
             lambda facts, where, given, axes, correction, keepdims: shapes.reduced(facts, where, given, axes, keepdims),
             lambda x, axes, correction, keepdims: np.var(x, axis=axes, ddof=correction, keepdims=keepdims),
             ("axes", "correction", "keepdims"), compose=composites.variance),
    Operator("any", 1, L.COMPOSITE, "whether one holds", _bools, shapes.reduced, _over_axes(np.any), ("axes", "keepdims"),
             compose=composites.any_of),
    Operator("all", 1, L.COMPOSITE, "whether all hold", _bools, shapes.reduced, _over_axes(np.all), ("axes", "keepdims"),
             compose=composites.all_of),
    Operator("softmax", 1, L.COMPOSITE, "e^x over its sum, along an axis", _floats, E, _softmax, ("axis",),
             compose=composites.softmax),
    Operator("log_softmax", 1, L.COMPOSITE, "logarithm of softmax", _floats, E, lambda x, axis: np.log(_softmax(x, axis)),
             ("axis",), compose=composites.log_softmax),
    Operator("layer_norm", (1, 2, 3), L.COMPOSITE, "last axis to mean 0 and variance 1, then weight and bias", _floats, E,
             _layer_norm, ("eps",), compose=composites.layer_norm),
    Operator("rms_norm", (1, 2), L.COMPOSITE, "last axis over its root mean square, then weight", _floats, E, _rms_norm,
             ("eps",), compose=composites.rms_norm),
    Operator("stack", VARIADIC, L.COMPOSITE, "beside each other along a new axis", _one_for_all, shapes.stacked,
             lambda *rest: np.stack(rest[:-1], axis=rest[-1]), ("axis",), compose=composites.stack),
    Operator("full", 0, L.COMPOSITE, "one value everywhere", lambda where, given, shape, value, name: _named(where, given, value, name),
             shapes.given, lambda shape, value, name: np.broadcast_to(_constant(value, name), shape),
             ("shape", "value", "dtype"), compose=composites.full),
    # ---- windows ----------------------------------------------------------------------------------------------------
    Operator("windows", 1, L.VIEW, "(..., S) -> (..., O, K): windows that slide over the last axes", _kept, windows.windowed,
             windows.sliding, ("kernel", "stride", "dilation")),
    Operator("conv", (2, 3), L.COMPOSITE, "convolution: x (B, C, *S), weight (M, C / groups, *K), bias (M,)", _floats,
             windows.conv_shape, windows.conv_meaning, ("stride", "padding", "dilation", "groups"), compose=windows.conv),
    Operator("conv_transpose", (2, 3), L.COMPOSITE, "transposed convolution: x (B, C, *S), weight (C, M / groups, *K), bias (M,)",
             _floats, windows.conv_transpose_shape, windows.conv_transpose_meaning,
             ("stride", "padding", "output_padding", "dilation", "groups"), compose=windows.conv_transpose),
    Operator("max_pool", 1, L.COMPOSITE, "largest of each window", _floats, windows.pooled, windows.max_pool_meaning,
             ("kernel", "stride", "padding", "dilation", "ceil_mode"), compose=windows.max_pool),
    Operator("avg_pool", 1, L.COMPOSITE, "mean of each window", _floats, windows.pooled, windows.avg_pool_meaning,
             ("kernel", "stride", "padding", "dilation", "ceil_mode", "count_include_pad"), compose=windows.avg_pool),
    # ---- the long tail ----------------------------------------------------------------------------------------------
    *movement.rows(Operator, L.HOST),
)  # fmt: skip

OPERATORS: dict[str, Operator] = {row.name: row for row in TABLE}


def operator(name: str) -> Operator:
    """The row of this name. Raises UnsupportedOperatorError."""
    row = OPERATORS.get(name)
    if row is None:
        raise UnsupportedOperatorError(f"graph: operators: unknown operator, got {name!r}, allowed {', '.join(OPERATORS)}")
    return row
