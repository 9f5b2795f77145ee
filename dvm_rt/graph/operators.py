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
    CONTROL      a branch or a loop, with graphs as attributes (graph/control.py)
    COMPOSITE    taken apart into other operators (composites.py), before any plan is made

Dtypes. A row's inputs have one dtype (promotion is the business of those who record: `dtypes.promote`), but for the condition of
`where` and indices. A kernel computes in the compute dtype of the operands (`dtypes.compute_dtype`), and what an operator gives
is rounded or wrapped to its dtype at once: after every row that is not `closed`. A row says with `kinds` of instructions what it
needs; where integers need other words than floats, `instructions` is a function that looks at the dtype. Booleans are 1 and 0
in any kernel. Operators that are formulas over floats (COMPOSITE, `wide`) are computed in float32 for float16 and bfloat16,
and rounded once, at their end."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, pi, sqrt
from typing import Protocol

import numpy as np

from dvm_rt import dtypes
from dvm_rt.dtypes import DType, bfloat16, bool_, float16, float32, float64
from dvm_rt.errors import DTypeError, UnsupportedOperatorError
from dvm_rt.graph import composites, control, movement, shapes, windows
from dvm_rt.isa import functions, table

VARIADIC = -1


class Lowering:
    """How an operator lowers: one object of each. Planning asks thousands of times, and an `Enum` of Python 3.11 takes eight
    times as long to answer."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Lowering.{self.name}"


for _name in ("LEAF", "ELEMENTWISE", "REDUCE", "VIEW", "PRODUCT", "GATHER", "JOIN", "COMPOSITE", "HOST", "ATTENTION", "CONTROL",
              "RUNNING"):  # fmt: skip
    setattr(Lowering, _name, Lowering(_name))


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """One row, of which there is one object. `inputs` is the number of inputs, or the allowed numbers, or VARIADIC.

    `dtype(where, dtypes, *attributes)` and `shape(facts, where, shapes, *attributes)` give the result's, or raise;
    `meaning(*arrays, *attributes)` is the NumPy definition, in float64 for floats and in their own dtypes for the others (what
    runs parts gives all values, without its attribute `index`: control.meaning);
    `instructions` (ELEMENTWISE) is the name of the instruction that does it, or a function of an emitter (`Emit`;
    HOST: the name of the host function); `compose(op, *nodes, *attributes)` (COMPOSITE) takes it apart."""

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
    closed: bool = False  # the result is one of the dtype's values before anything is rounded
    wide: bool = False  # COMPOSITE: float16 and bfloat16 go through float32
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


def _same(where: str, given: tuple[DType, ...], kinds: str, allowed: str) -> DType:
    """One dtype for all, of one of these kinds."""
    first = given[0]
    for dtype in given:
        if dtype.kind not in kinds:
            raise DTypeError(f"graph: {where}: dtype, got {dtype}, allowed {allowed}; x.astype(...) converts")
        if dtype is not first:
            raise DTypeError(f"graph: {where}: dtypes differ, got {first} and {dtype}, allowed one for all; x.astype(...) converts")
    return first


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


def _whole_rows(where: str, dtype: DType) -> None:
    if dtype not in (dtypes.int32, dtypes.int64):
        raise DTypeError(f"graph: {where}: dtype of the numbers of rows, got {dtype}, allowed int32, int64")


def _product_of_groups(where: str, given: tuple[DType, ...]) -> DType:
    _whole_rows(where, given[2])
    return _product(where, given[:2])


def _grouped(where: str, given: tuple[DType, ...]) -> DType:
    _whole_rows(where, given[2])
    return _numbers(where, given[:2])


def _floats(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return _same(where, given, "f", "floats")


def _numbers(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return _same(where, given, "iuf", "numbers")


def _wholes(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return _same(where, given, "iu", "integers")


def _bits(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return _same(where, given, "biu", "bool and integers")


def _bools(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return _same(where, given, "b", "bool")


def _attended(where: str, given: tuple[DType, ...], *_: object) -> DType:
    if len(given) == 4 and given[3] not in (float32, bool_):
        raise DTypeError(f"graph: {where} (mask): dtype, got {given[3]}, allowed float32, bool")
    return _float32(where, given[:3])


def _kept(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return given[0]


def _one_for_all(where: str, given: tuple[DType, ...], *_: object) -> DType:
    return _same(where, given, "biuf", "any")


def _comparison(where: str, given: tuple[DType, ...]) -> DType:
    _one_for_all(where, given)
    return bool_


def _order(where: str, given: tuple[DType, ...]) -> DType:
    _numbers(where, given)
    return bool_


def _index(where: str, given: tuple[DType, ...], *_: object) -> DType:
    _numbers(where, given)
    return dtypes.DEFAULT_INT


def _float_test(where: str, given: tuple[DType, ...]) -> DType:
    _floats(where, given)
    return bool_


def _choice(where: str, given: tuple[DType, ...]) -> DType:
    _bools(where + " (condition)", given[:1])
    return _one_for_all(where, given[1:])


def _cast(where: str, given: tuple[DType, ...], name: str) -> DType:
    return _dtype(where, name)


def _dtype(where: str, name: str) -> DType:
    target = dtypes.BY_NAME.get(name)
    if target is None:
        raise DTypeError(f"graph: {where}: unknown dtype, got {name}, allowed {', '.join(dtypes.BY_NAME)}")
    return target


def _float32(where: str, given: tuple[DType, ...]) -> DType:
    for dtype in given:
        if dtype is not float32:
            raise DTypeError(f"graph: {where}: dtype, got {dtype}, allowed float32; x.astype(...) converts")
    return float32


def _random(where: str, given: tuple[DType, ...]) -> DType:
    for dtype in given:
        if dtype is not dtypes.uint64:
            raise DTypeError(f"graph: {where}: dtype, got {dtype}, allowed uint64")
    return dtypes.uint64


def _rows(where: str, given: tuple[DType, ...]) -> DType:
    if given[1] not in (dtypes.int32, dtypes.int64):
        raise DTypeError(f"graph: {where}: dtype of the indices, got {given[1]}, allowed int32, int64")
    return given[0]


def _named(where: str, given: tuple[DType, ...], value: float, name: str) -> DType:
    dtype = _dtype(where, name)
    if not _fits(value, dtype):
        raise DTypeError(f"graph: {where}: value, got {value!r}, allowed those of {dtype}")
    return dtype


def _fits(value: object, dtype: DType) -> bool:
    if dtype is bool_:
        return isinstance(value, bool)
    if dtype.kind == "f":
        return isinstance(value, float)
    low, high = dtypes.limits(dtype)
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def number_of(value: float, dtype: DType, where: str = "graph: constant") -> bool | int | float:
    """A Python number as a constant of this dtype holds it. Raises DTypeError where it cannot."""
    if not hasattr(value, "__float__"):
        raise DTypeError(f"{where}: a number, got {value!r}, allowed numbers and bools")
    try:
        if dtype is bool_:
            return bool(value)
        if dtype.kind == "f":
            return float(value)
        finite = isfinite(value)
    except OverflowError:
        raise DTypeError(f"{where}: a number, got a whole one beyond float, allowed those below 2^1024") from None
    except (TypeError, ValueError):  # NumPy's: an array that holds several, or what is none
        raise DTypeError(f"{where}: a number, got {reprlib.repr(value)}, allowed numbers and bools") from None
    if not finite or value != int(value) or not _fits(int(value), dtype):
        raise DTypeError(f"{where}: a number, got {value!r}, allowed those of {dtype}")
    return int(value)


# ---- instructions that are more than one word, or not the same for all dtypes ----------------------------------------


class Emit(Protocol):
    """Adds instructions to a kernel: emit("add", x, y) gives the number of the result. Floats are constants. `dtype` is that
    of the operator's operands."""

    dtype: DType

    def __call__(self, name: str, *operands: int | float) -> int: ...


def _where(emit: Emit, condition: int, chosen: int, other: int) -> int:
    return emit("merge", emit("keep", chosen, condition), emit("drop", other, condition))


def _not(emit: Emit, x: int) -> int:
    return emit("eq", x, 0.0)


def _unsigned_as_it_is(name: str) -> Callable[..., int]:
    """An instruction that changes nothing in an unsigned integer."""
    return lambda emit, x: x if emit.dtype.kind == "u" else emit(name, x)


def _floats_only(name: str) -> Callable[..., int]:
    """An instruction that changes nothing in an integer."""
    return lambda emit, x: emit(name, x) if emit.dtype.kind == "f" else x


def _negative(emit: Emit, x: int) -> int:
    return emit("neg", x) if emit.dtype.kind != "u" else emit("rsub", x, 0.0)


def _or_formula(name: str, formula: Callable[..., int]) -> Callable[..., int]:
    """An instruction of float32, and the formula that does the same in float64."""

    def words(emit: Emit, *operands: int) -> int:
        return formula(emit, *operands) if emit.dtype is float64 else emit(name, *operands)

    return words


def _is_infinite(emit: Emit, x: int) -> int:
    return emit("eq", emit("abs", x), inf)


def _is_finite(emit: Emit, x: int) -> int:
    return emit("lt", emit("abs", x), inf)


def _is_below_zero(emit: Emit, x: int) -> int:
    """The reciprocal of -0 is below 0."""
    return emit("max", emit("lt", x, 0.0), emit("lt", emit("recip", x), 0.0))


def _with_sign(emit: Emit, x: int, y: int) -> int:
    size = emit("abs", x)
    return _where(emit, _is_below_zero(emit, y), emit("neg", size), size)


def _log_of_two_powers(emit: Emit, x: int, y: int) -> int:
    """The larger one + log1p(e^-distance); infinities that are equal have none."""
    distance = emit("drop", emit("abs", emit("sub", x, y)), emit("eq", x, y))
    return emit("add", emit("max", x, y), emit("log1p", emit("exp", emit("neg", distance))))


# Of a 16-bit float: 2^-(digits - 1), its smallest number, and what stands for infinity: a float32 from which a step down rounds to
# the largest one.
_STEPS = {
    float16: (2.0**-10, 2.0**-24, 2.0**16),
    bfloat16: (2.0**-7, 2.0**-133, (2 - 2.0**-23) * 2.0**127),
}


def _next_on_the_way(emit: Emit, x: int, y: int) -> int:
    """A 16-bit float is computed in float32 and rounded afterwards: 0.6 to 1.2 steps away, the next one is the nearest, below a
    power of two as well, where the steps are half as large and 0.6 are 1.2."""
    if emit.dtype not in _STEPS:
        return emit("nextafter", x, y)
    relative, least, infinite = _STEPS[emit.dtype]
    start = emit("max", emit("min", x, infinite), -infinite)
    step = emit("max", emit("mul", emit("abs", start), 0.6 * relative), 0.6 * least)
    moved = emit("add", start, emit("mul", step, emit("sign", emit("sub", y, x))))
    return _where(emit, emit("eq", x, y), y, moved)


def _one_or_the_other(integers: str, floats: str) -> Callable[..., int]:
    """An instruction for integers, and one for floats."""
    return lambda emit, x, y: emit(floats if emit.dtype.kind == "f" else integers, x, y)


def _masked(name: str) -> Callable[..., int]:
    """A shift by the lower bits of the count: as many as the dtype has bits."""

    def shift(emit: Emit, x: int, count: int) -> int:
        return emit(name, x, emit("bit_and", count, 8.0 * emit.dtype.bytes - 1))

    return shift


def _invert(emit: Emit, x: int) -> int:
    return emit("eq", x, 0.0) if emit.dtype is bool_ else emit("bit_not", x)


def _unless_bool(name: str, boolean: str) -> Callable[..., int]:
    """An instruction on bits of integers, and the one that does the same to 1 and 0."""
    return lambda emit, x, y: emit(boolean if emit.dtype is bool_ else name, x, y)


# ---- meanings -----------------------------------------------------------------------------------------------------


def _sigmoid(x: np.ndarray) -> np.ndarray:
    t = np.exp(-np.abs(x))
    return np.where(x < 0, t, 1.0) / (1 + t)


def _gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    inner = functions.erf(x * sqrt(0.5)) if approximate == "none" else np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
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


def _logsumexp(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    most = _largest(x, axes, True)
    shift = np.where(np.isfinite(most), most, 0.0)
    total = np.log(np.sum(np.exp(x - shift), axis=axes, keepdims=True)) + shift
    return total if keepdims else np.squeeze(total, axes)


def _linear(x: np.ndarray, weight: np.ndarray, *bias: np.ndarray) -> np.ndarray:
    return x @ weight.T + (bias[0] if bias else 0.0)


def _groups(x: np.ndarray, w: np.ndarray, rows: np.ndarray) -> np.ndarray:
    ends = np.cumsum(rows)
    parts = [x[end - n : end] @ one for n, end, one in zip(rows, ends, w, strict=True)]
    rest = len(x) - (int(ends[-1]) if len(ends) else 0)
    return np.concatenate([*parts, np.zeros((rest, w.shape[2]), x.dtype)])


def _take(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.take(table, indices, axis=0)


def _least(dtype: np.dtype) -> float | int:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min if dtype.kind in "iu" else False


def _most(dtype: np.dtype) -> float | int:
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max if dtype.kind in "iu" else True


def _largest(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    return np.max(x, axis=axes, keepdims=keepdims, initial=_least(x.dtype))


def _smallest(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    return np.min(x, axis=axes, keepdims=keepdims, initial=_most(x.dtype))


def _total(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda x, axes, keepdims: function(x, axis=axes, keepdims=keepdims, dtype=x.dtype)


def _over_axes(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda x, axes, keepdims: function(x, axis=axes, keepdims=keepdims)


def _first(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Over several axes at once: as if they were one, in row-major order."""

    def found(x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
        kept = [i for i in range(x.ndim) if i not in axes]
        rows = x.transpose(kept + list(axes)).reshape(*[x.shape[i] for i in kept], -1)
        result = function(rows, axis=-1)
        return np.expand_dims(result, axes) if keepdims else result

    return found


def _entries(entries: tuple[shapes.Entry, ...]) -> tuple[int | slice, ...]:
    return tuple(slice(*e) if isinstance(e, tuple) else e for e in entries)


def _converted(x: np.ndarray, name: str) -> np.ndarray:
    target = dtypes.BY_NAME[name]
    x = x.astype(np.float32).astype(np.float64) if target is float32 and x.dtype.kind != "f" else x
    return dtypes.rounded(x, target)


def _constant(value: float, name: str) -> np.ndarray:
    dtype = dtypes.BY_NAME[name]
    if dtype.kind == "f":
        return dtypes.rounded(np.asarray(np.float32(value) if dtype is float32 else value, np.float64), dtype)
    return np.asarray(value, dtype.numpy)


def _size(size: int, name: str) -> np.ndarray:
    return _converted(np.asarray(size), name)


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
    if x.dtype.kind != "f":
        return np.power(x, np.asarray(int(exponent)).astype(x.dtype))
    return np.power(x, exponent)


def _same_kind(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A function of floats that changes nothing in integers."""
    return lambda x: f(x) if x.dtype.kind == "f" else x


def _shifted(f: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda x, count: f(x, count & np.asarray(8 * x.dtype.itemsize - 1, x.dtype))


def _whole_quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rounded down; x // 0 is 0."""
    if x.dtype.kind == "f":
        return np.floor_divide(x, y)
    return np.where(y == 0, np.zeros_like(x), np.floor_divide(x, np.where(y == 0, np.ones_like(y), y)))


def _rest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """With the sign of y; of an integer and 0: 0."""
    if x.dtype.kind == "f":
        return np.remainder(x, y)
    return np.where(y == 0, np.zeros_like(x), np.remainder(x, np.where(y == 0, np.ones_like(y), y)))


# ---- the table ----------------------------------------------------------------------------------------------------


Meaning = Callable[..., np.ndarray]
Words = str | Callable[..., int]


def _elementwise(
    name: str, instructions: Words, meaning: Meaning, doc: str, dtype: Callable[..., DType] = _floats, inputs: int = 1,
    closed: bool = False,
) -> Operator:  # fmt: skip
    return Operator(name, inputs, Lowering.ELEMENTWISE, doc, dtype, shapes.elementwise, meaning, (), instructions, closed=closed)


def _pair(
    name: str, instructions: Words, meaning: Meaning, doc: str, dtype: Callable[..., DType] = _numbers, closed: bool = False
) -> Operator:  # fmt: skip
    return _elementwise(name, instructions, meaning, doc, dtype, 2, closed)


def _compare(name: str, instruction: str, meaning: Meaning, doc: str, dtype: Callable[..., DType] = _comparison) -> Operator:
    return _elementwise(name, instruction, meaning, doc, dtype, 2, True)


def _composite(
    name: str, inputs: int | tuple[int, ...], doc: str, dtype: Callable[..., DType], shape: Callable[..., shapes.Shape],
    meaning: Meaning, attributes: tuple[str, ...], compose: Callable[..., object], wide: bool = False,
) -> Operator:  # fmt: skip
    return Operator(name, inputs, Lowering.COMPOSITE, doc, dtype, shape, meaning, attributes, compose=compose, wide=wide)


L, E = Lowering, shapes.elementwise

TABLE: tuple[Operator, ...] = (
    # ---- leaves -----------------------------------------------------------------------------------------------------
    Operator("parameter", 0, L.LEAF, "an input of the graph", lambda where, given, i, shape, name: dtypes.BY_NAME[name],
             lambda facts, where, given, i, shape, name: shapes.checked_shape(where, shape), lambda *_: None,
             ("index", "shape", "dtype")),
    Operator("constant", 0, L.LEAF, "a number", _named, shapes.scalar, _constant, ("value", "dtype")),
    Operator("dimension", 0, L.LEAF, "a size as a number", lambda where, given, size, name: _dtype(where, name), shapes.scalar,
             _size, ("size", "dtype")),
    Operator("iota", 0, L.LEAF, "0, 1, 2..", lambda where, given, size: dtypes.int64,
             lambda facts, where, given, size: shapes.checked_shape(where, (size,)), np.arange, ("size",)),
    # ---- elementwise ------------------------------------------------------------------------------------------------
    _pair("add", "add", np.add, "x + y"),
    _pair("subtract", "sub", np.subtract, "x - y"),
    _pair("multiply", "mul", np.multiply, "x * y"),
    _pair("divide", "div", np.divide, "x / y", _floats),
    _pair("maximum", "max", np.maximum, "the larger one; NaN if either is NaN", closed=True),
    _pair("minimum", "min", np.minimum, "the smaller one; NaN if either is NaN", closed=True),
    _elementwise("negative", _negative, np.negative, "-x", _numbers),
    _elementwise("abs", _unsigned_as_it_is("abs"), np.abs, "|x|", _numbers),
    _elementwise("square", "square", np.square, "x * x", _numbers),
    _elementwise("sign", "sign", np.sign, "-1, 0 or 1; NaN for NaN", _numbers, closed=True),
    _elementwise("sqrt", "sqrt", np.sqrt, "square root"),
    _elementwise("rsqrt", "rsqrt", lambda x: 1 / np.sqrt(x), "1 / sqrt(x)"),
    _elementwise("reciprocal", "recip", np.reciprocal, "1 / x"),
    _elementwise("exp", "exp", np.exp, "e^x; 0 where that is subnormal: below 2^-126, in float64 2^-1022"),
    _elementwise("log", "log", np.log, "natural logarithm"),
    _elementwise("tanh", "tanh", np.tanh, "hyperbolic tangent"),
    _elementwise("erf", "erf", functions.erf, "error function"),
    _elementwise("sigmoid", "sigmoid", _sigmoid, "1 / (1 + e^-x)"),
    _elementwise("relu", _unsigned_as_it_is("relu"), lambda x: np.where(x < 0, np.zeros_like(x), x),
                 "larger of x and 0", _numbers, closed=True),
    _elementwise("floor", _floats_only("floor"), _same_kind(np.floor), "largest whole number <= x", _numbers, closed=True),
    _elementwise("ceil", _floats_only("ceil"), _same_kind(np.ceil), "smallest whole number >= x", _numbers, closed=True),
    _elementwise("trunc", _floats_only("trunc"), _same_kind(np.trunc), "nearest whole number towards 0", _numbers, closed=True),
    _elementwise("round", _floats_only("round"), _same_kind(np.rint), "nearest whole number, halves to even",
                 _numbers, closed=True),
    _elementwise("isnan", "isnan", np.isnan, "whether x is NaN", _float_test, closed=True),
    _elementwise("isinf", _or_formula("isinf", _is_infinite), np.isinf, "whether x is infinite", _float_test, closed=True),
    _elementwise("isfinite", _or_formula("isfinite", _is_finite), np.isfinite,
                 "whether x is neither infinite nor NaN", _float_test, closed=True),
    _elementwise("signbit", _or_formula("signbit", _is_below_zero), lambda x: np.signbit(x) & ~np.isnan(x),
                 "whether x is below 0, or -0; NaN has no sign", _float_test, closed=True),
    _elementwise("sin", "sin", np.sin, "sine"),
    _elementwise("cos", "cos", np.cos, "cosine"),
    _elementwise("tan", "tan", np.tan, "tangent"),
    _elementwise("asin", "asin", np.arcsin, "inverse sine; NaN beyond 1"),
    _elementwise("acos", "acos", np.arccos, "inverse cosine; NaN beyond 1"),
    _elementwise("atan", "atan", np.arctan, "inverse tangent"),
    _elementwise("sinh", "sinh", np.sinh, "hyperbolic sine"),
    _elementwise("cosh", "cosh", np.cosh, "hyperbolic cosine"),
    _elementwise("asinh", "asinh", np.arcsinh, "inverse hyperbolic sine"),
    _elementwise("acosh", "acosh", np.arccosh, "inverse hyperbolic cosine; NaN below 1"),
    _elementwise("atanh", "atanh", np.arctanh, "inverse hyperbolic tangent; NaN beyond 1"),
    _elementwise("exp2", "exp2", np.exp2, "2^x"),
    _elementwise("expm1", "expm1", np.expm1, "e^x - 1"),
    _elementwise("log2", "log2", np.log2, "logarithm to base 2"),
    _elementwise("log10", "log10", np.log10, "logarithm to base 10"),
    _elementwise("log1p", "log1p", np.log1p, "logarithm of 1 + x"),
    _elementwise("cbrt", "cbrt", np.cbrt, "cube root"),
    _elementwise("erfc", "erfc", functions.erfc, "1 - erf(x)"),
    _elementwise("lgamma", "lgamma", functions.log_gamma, "logarithm of |gamma(x)|"),
    _elementwise("digamma", "digamma", functions.digamma, "derivative of lgamma"),
    _pair("power", "pow", functions.power, "x to the power y", _floats),
    _pair("atan2", "atan2", np.arctan2, "angle of the point (y, x), -pi to pi", _floats),
    _pair("hypot", "hypot", np.hypot, "square root of x^2 + y^2", _floats),
    _pair("logaddexp", _or_formula("logaddexp", _log_of_two_powers), np.logaddexp, "logarithm of e^x + e^y", _floats),
    _pair("fmod", "fmod", np.fmod, "x - n y with the sign of x; n is x / y towards 0", _floats, closed=True),
    _pair("copysign", _or_formula("copysign", _with_sign), lambda x, y: np.copysign(x, np.where(np.isnan(y), 1.0, y)),
          "|x| with the sign of y; NaN has none", _floats, closed=True),
    _pair("nextafter", _next_on_the_way, np.nextafter, "the number next to x on the way to y", _floats),
    _pair("floor_divide", _one_or_the_other("floordiv", "floor_divide"), _whole_quotient,
          "x / y rounded down; of integers and 0: 0"),
    _pair("remainder", _one_or_the_other("floormod", "remainder"), _rest,
          "what floor_divide leaves, with the sign of y; of integers and 0: 0"),
    _pair("bitwise_and", _unless_bool("bit_and", "mul"), np.bitwise_and, "and, bit by bit", _bits, closed=True),
    _pair("bitwise_or", _unless_bool("merge", "max"), np.bitwise_or, "or, bit by bit", _bits, closed=True),
    _pair("bitwise_xor", _unless_bool("bit_xor", "ne"), np.bitwise_xor, "exclusive or, bit by bit", _bits, closed=True),
    _elementwise("bitwise_invert", _invert, np.invert, "every bit inverted", _bits),
    _pair("bitwise_left_shift", _masked("shl"), _shifted(np.left_shift), "x * 2^y; y modulo the bits of x", _wholes),
    _pair("bitwise_right_shift", _masked("shr"), _shifted(np.right_shift),
          "x / 2^y rounded down; y modulo the bits of x", _wholes),
    _pair("philox", "philox", table.BY_NAME["philox"].meaning,
          "64 random bits: Philox4x32-10 of the counter x under the key y", _random, closed=True),
    _compare("equal", "eq", np.equal, "x == y"),
    _compare("not_equal", "ne", np.not_equal, "x != y"),
    _compare("less", "lt", np.less, "x < y", _order),
    _compare("less_equal", "le", np.less_equal, "x <= y", _order),
    _compare("greater", "gt", np.greater, "x > y", _order),
    _compare("greater_equal", "ge", np.greater_equal, "x >= y", _order),
    _pair("logical_and", "mul", np.logical_and, "both", _bools, closed=True),
    _pair("logical_or", "max", np.logical_or, "either or both", _bools, closed=True),
    _pair("logical_xor", "ne", np.logical_xor, "one of them, not both", _bools, closed=True),
    _elementwise("logical_not", _not, np.logical_not, "not x", _bools, closed=True),
    Operator("where", 3, L.ELEMENTWISE, "x where the condition holds, else y", _choice, E, np.where, (), _where, closed=True),
    Operator("astype", 1, L.ELEMENTWISE, "converted; to bool: whether it is not 0", _cast, E, _converted, ("dtype",), "astype"),
    Operator("copy", 1, L.ELEMENTWISE, "the same values, stored anew", _kept, E, lambda x: x, (), "copy", closed=True),
    # ---- reductions -------------------------------------------------------------------------------------------------
    Operator("sum", 1, L.REDUCE, "sum over axes", _numbers, shapes.reduced, _total(np.sum), ("axes", "keepdims")),
    Operator("prod", 1, L.REDUCE, "product over axes", _numbers, shapes.reduced, _total(np.prod), ("axes", "keepdims")),
    Operator("max", 1, L.REDUCE, "largest over axes; NaN wins", _one_for_all, shapes.reduced_with_identity_missing, _largest,
             ("axes", "keepdims"), closed=True),
    Operator("min", 1, L.REDUCE, "smallest over axes; NaN wins", _one_for_all, shapes.reduced_with_identity_missing, _smallest,
             ("axes", "keepdims"), closed=True),
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
    Operator("grouped_product", 3, L.PRODUCT,
             "(M, K) x (G, K, N): rows in G groups, one behind the other, each with a matrix of its own; "
             "third input: how many rows each has; what is beyond all of them is 0", _product_of_groups, shapes.grouped, _groups),
    Operator("window_product", 2, L.PRODUCT,
             "(..., M, C * H * W) x windows (..., C, H, W, *O) of two axes -> (..., M, product of O); H * 256 + W below 65535",
             _product, windows.product_shape, windows.product_meaning),
    Operator("take", 2, L.GATHER, "rows of a table, one for each index; negative indices count from the end", _rows,
             shapes.taken, _take),
    Operator("attention", (3, 4), L.ATTENTION,
             "softmax(scale * q @ k^T + mask) @ v; scale None: 1 / sqrt(D); causal: query i sees keys up to i + keys - "
             "queries; masked: what a bool mask puts in place of a score; empty: the result of a query that sees no key",
             _attended, shapes.attention, _attention, ("scale", "causal", "masked", "empty")),
    Operator("concat", VARIADIC, L.JOIN, "one behind the other along an axis", _one_for_all, shapes.concatenated,
             lambda *rest: np.concatenate(rest[:-1], axis=rest[-1]), ("axis",)),
    Operator("beside", VARIADIC, L.LEAF,
             "parameters one behind the other along an axis, as the matrix unit has them packed: made once, "
             "by the fuser alone", _one_for_all, shapes.concatenated, lambda *rest: np.concatenate(rest[:-1],
                 axis=rest[-1]), ("axis",)),
    # ---- composites -------------------------------------------------------------------------------------------------
    _composite("matmul", 2, "matrix product; 1-d operands as in NumPy", _numbers, shapes.matmul, np.matmul, (),
               composites.matmul),
    _composite("grouped_matmul", 3, "rows in groups, each times a matrix of its own", _grouped, shapes.grouped, _groups, (),
               composites.grouped_matmul),
    _composite("linear", (2, 3), "x @ weight.T + bias", _numbers, shapes.linear, _linear, (), composites.linear),
    _composite("silu", 1, "x * sigmoid(x)", _floats, E, lambda x: x * _sigmoid(x), (), composites.silu, True),
    _composite("gelu", 1, "x times the normal distribution function; approximate: none (erf) or tanh", _floats, E, _gelu,
               ("approximate",), composites.gelu, True),
    _composite("clip", 1, "cut off at low and high", _numbers, E, np.clip, ("low", "high"), composites.clip),
    _composite("pow", 1, "x to a constant power", _numbers, E, _power, ("exponent",), composites.power, True),
    _composite("mean", 1, "mean over axes", _floats, shapes.reduced, _over_axes(np.mean), ("axes", "keepdims"),
               composites.mean, True),
    _composite("var", 1, "variance over axes; divided by the count - correction", _floats,
               lambda facts, where, given, axes, correction, keepdims: shapes.reduced(facts, where, given, axes, keepdims),
               lambda x, axes, correction, keepdims: np.var(x, axis=axes, ddof=correction, keepdims=keepdims),
               ("axes", "correction", "keepdims"), composites.variance, True),
    _composite("logsumexp", 1, "logarithm of the sum of e^x over axes", _floats, shapes.reduced_with_identity_missing, _logsumexp,
               ("axes", "keepdims"), composites.logsumexp, True),
    _composite("argmax", 1, "where the largest is, the first one; NaN is the largest", _index,
               shapes.reduced_with_identity_missing,
               _first(np.argmax), ("axes", "keepdims"), composites.argmax),
    _composite("argmin", 1, "where the smallest is, the first one; NaN is the smallest", _index,
               shapes.reduced_with_identity_missing,
               _first(np.argmin), ("axes", "keepdims"), composites.argmin),
    _composite("any", 1, "whether one holds", _bools, shapes.reduced, _over_axes(np.any), ("axes", "keepdims"),
               composites.any_of),
    _composite("all", 1, "whether all hold", _bools, shapes.reduced, _over_axes(np.all), ("axes", "keepdims"), composites.all_of),
    _composite("softmax", 1, "e^x over its sum, along an axis", _floats, E, _softmax, ("axis",), composites.softmax, True),
    _composite("log_softmax", 1, "logarithm of softmax", _floats, E, lambda x, axis: np.log(_softmax(x, axis)), ("axis",),
               composites.log_softmax, True),
    _composite("layer_norm", (1, 2, 3), "last axis to mean 0 and variance 1, then weight and bias", _floats, E, _layer_norm,
               ("eps",), composites.layer_norm, True),
    _composite("rms_norm", (1, 2), "last axis over its root mean square, then weight", _floats, E, _rms_norm, ("eps",),
               composites.rms_norm, True),
    _composite("stack", VARIADIC, "beside each other along a new axis", _one_for_all, shapes.stacked,
               lambda *rest: np.stack(rest[:-1], axis=rest[-1]), ("axis",), composites.stack),
    _composite("full", 0, "one value everywhere", lambda where, given, shape, value, name: _named(where, given, value, name),
               shapes.given, lambda shape, value, name: np.broadcast_to(_constant(value, name), shape),
               ("shape", "value", "dtype"),
               composites.full),
    _composite("section", 1, "x, as section `number` of a hand-written kernel makes it; 0: as none of them does", _kept, E,
               lambda x, number, name: x, ("number", "name"), lambda op, x, number, name: x),
    # ---- windows ----------------------------------------------------------------------------------------------------
    Operator("windows", 1, L.VIEW, "(..., S) -> (..., O, K): windows that slide over the last axes", _kept, windows.windowed,
             windows.sliding, ("kernel", "stride", "dilation")),
    Operator("conv", (2, 3), L.COMPOSITE, "convolution: x (B, C, *S), weight (M, C / groups, *K), bias (M,)", _floats,
             windows.conv_shape, windows.conv_meaning, ("stride", "padding", "dilation", "groups"), compose=windows.conv,
             wide=True),
    Operator("conv_transpose", (2, 3), L.COMPOSITE, "transposed convolution: x (B, C, *S), weight (C, M / groups, *K), bias (M,)",
             _floats, windows.conv_transpose_shape, windows.conv_transpose_meaning,
             ("stride", "padding", "output_padding", "dilation", "groups"), compose=windows.conv_transpose,
             wide=True),
    Operator("max_pool", 1, L.COMPOSITE, "largest of each window", _floats, windows.pooled, windows.max_pool_meaning,
             ("kernel", "stride", "padding", "dilation", "ceil_mode"), compose=windows.max_pool),
    Operator("avg_pool", 1, L.COMPOSITE, "mean of each window", _floats, windows.pooled, windows.avg_pool_meaning,
             ("kernel", "stride", "padding", "dilation", "ceil_mode", "count_include_pad"), compose=windows.avg_pool,
             wide=True),
    # ---- the long tail ----------------------------------------------------------------------------------------------
    *movement.rows(Operator, L.HOST),
    movement.running_row(Operator, L.RUNNING),
    *control.rows(Operator, L.CONTROL),
)  # fmt: skip

OPERATORS: dict[str, Operator] = {row.name: row for row in TABLE}


def operator(name: str) -> Operator:
    """The row of this name. Raises UnsupportedOperatorError."""
    row = OPERATORS.get(name)
    if row is None:
        raise UnsupportedOperatorError(f"graph: operators: unknown operator, got {name!r}, allowed {', '.join(OPERATORS)}")
    return row
