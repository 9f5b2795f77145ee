"""The Array API standard (2024.12) as a namespace: x.__array_namespace__() gives this module.

A thin layer over the functions of `dvm_rt`: names and signatures are the standard's. What is not there yet has its name, too, and
raises UnsupportedOperatorError when it is called: `NOT_THERE` lists it. Complex dtypes do not exist here."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import e, inf, nan, pi

import numpy as np

import dvm_rt as dvm
from dvm_rt import dtypes
from dvm_rt.array.array import Array, DTypeLike, _operand, asarray as _asarray, dtype_of
from dvm_rt.dtypes import (
    DType,
    bool_,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from dvm_rt.errors import DTypeError, UnsupportedOperatorError

__array_api_version__ = "2024.12"
newaxis = None
bool = bool_

SAME = (  # as in dvm_rt
    "abs", "acos", "acosh", "add", "all", "any", "argmax", "argmin", "argsort", "asin", "asinh", "atan",
    "atan2", "atanh", "bitwise_and", "bitwise_invert", "bitwise_left_shift", "bitwise_or",
    "bitwise_right_shift", "bitwise_xor", "broadcast_arrays", "ceil", "clip", "copysign", "cos", "cosh",
    "count_nonzero", "cumulative_prod", "cumulative_sum", "diff", "divide", "equal", "exp", "expand_dims", "expm1",
    "flip", "floor",
    "floor_divide", "greater", "greater_equal", "hypot", "isfinite", "isinf", "isnan", "less",
    "less_equal", "log", "log10", "log1p", "log2", "logaddexp", "logical_and", "logical_not",
    "logical_or", "logical_xor", "matmul", "matrix_transpose", "max", "maximum", "mean", "meshgrid",
    "min", "minimum", "moveaxis", "multiply", "negative", "nextafter", "nonzero", "not_equal",
    "permute_dims", "pow", "prod", "reciprocal", "remainder", "repeat", "roll", "round",
    "sign", "signbit", "sin", "sinh", "sort", "sqrt", "square", "squeeze", "stack", "std", "subtract",
    "sum", "take", "take_along_axis", "tan", "tanh", "tensordot", "tile", "tril", "triu", "trunc",
    "unique_all", "unique_counts", "unique_inverse", "unique_values", "unstack", "var", "vecdot",
    "where",
)  # fmt: skip
CREATION = ("arange", "eye", "full_like", "linspace", "ones", "ones_like", "zeros", "zeros_like")  # there is one device
NOT_THERE = ("conj", "imag", "real")

for _name in SAME:
    globals()[_name] = getattr(dvm, _name)


def _creation(name: str) -> Callable[..., Array]:
    own = getattr(dvm, name)

    def function(*args: object, device: object = None, **kwargs: object) -> Array:
        return own(*args, **kwargs)

    function.__name__, function.__qualname__, function.__doc__ = name, name, own.__doc__
    return function


for _name in CREATION:
    globals()[_name] = _creation(_name)


def _missing(name: str) -> Callable[..., object]:
    def function(*_: object, **__: object) -> object:
        raise UnsupportedOperatorError(f"xp: {name}: not there yet, got a call, allowed what is not in NOT_THERE")

    function.__name__ = function.__qualname__ = name
    function.__doc__ = "Not there yet: raises UnsupportedOperatorError."
    return function


for _name in NOT_THERE:
    globals()[_name] = _missing(_name)


# ---- creation -----------------------------------------------------------------------------------------------------


def asarray(
    obj: object, /, *, dtype: DTypeLike | None = None, device: object = None, copy: builtins.bool | None = None
) -> Array:  # fmt: skip
    """An array of the value. A copy is made of everything that is no array of dvm_rt."""
    if copy is False and not isinstance(obj, Array):
        raise ValueError("xp: asarray: memory that is shared with another library, got copy=False, allowed None, True")
    return _asarray(obj, dtype)


def from_dlpack(x: object, /, *, device: object = None, copy: builtins.bool | None = None) -> Array:
    """An array with a copy of the value of another library's array. Raises BufferError for copy=False, DTypeError for arrays
    that are not on the CPU."""
    if copy is False:
        raise BufferError("xp: from_dlpack: memory that is shared with another library, got copy=False, allowed None, True")
    return _asarray(x)


def empty(shape: int | tuple[int, ...], *, dtype: DTypeLike | None = None, device: object = None) -> Array:
    """Zeros: no memory is ever handed out as it lies."""
    return dvm.zeros(shape, dtype=dtype)


def empty_like(x: Array, /, *, dtype: DTypeLike | None = None, device: object = None) -> Array:
    """Zeros in the shape of x."""
    return dvm.zeros_like(x, dtype=dtype)


def full(shape: int | tuple[int, ...], fill_value: float, *, dtype: DTypeLike | None = None, device: object = None) -> Array:
    """One value everywhere."""
    return dvm.full(shape, fill_value, dtype=dtype)


# ---- dtypes -------------------------------------------------------------------------------------------------------


def astype(x: Array, dtype: DTypeLike, /, *, copy: builtins.bool = True, device: object = None) -> Array:
    """x in another dtype. Arrays never change, so a copy is never needed."""
    return x.astype(dtype)


def can_cast(given: DType | Array, to: DTypeLike, /) -> builtins.bool:
    """Whether promotion leads from one dtype to the other."""
    return dtypes.promote(_dtype(given), dtype_of(to)) is dtype_of(to)


def result_type(*arrays_and_dtypes: object) -> DType:
    """The dtype of an expression of these."""
    kinds = [x for x in arrays_and_dtypes if isinstance(x, (Array, DType))]
    if not kinds:
        raise DTypeError("xp: result_type: got numbers alone, allowed at least one array or dtype")
    found = reduce(_promoted, map(_dtype, kinds))
    for x in arrays_and_dtypes:
        if not isinstance(x, (Array, DType)):
            found = dtypes.with_number(found, _operand(x, "result_type"))
    return found


def isdtype(dtype: DType, kind: DType | str | tuple[DType | str, ...], /) -> builtins.bool:
    """Whether a dtype is one, or of a kind: bool, signed integer, unsigned integer, integral, real floating, numeric."""
    if isinstance(kind, tuple):
        return builtins.any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, DType):
        return dtype is kind
    if kind == "complex floating":
        return False
    kinds = {"bool": "b", "signed integer": "i", "unsigned integer": "u", "integral": "iu", "real floating": "f",
             "numeric": "iuf"}
    if kind not in kinds:
        raise DTypeError(f"xp: isdtype: kind, got {kind!r}, allowed {', '.join(kinds)}")
    return dtype.kind in kinds[kind]


@dataclass(frozen=True, slots=True)
class FloatInfo:
    """Properties of a float dtype."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@dataclass(frozen=True, slots=True)
class IntegerInfo:
    """Properties of an integer dtype."""

    bits: int
    max: int
    min: int
    dtype: DType


def finfo(type: DType | Array, /) -> FloatInfo:
    """Properties of a float dtype."""
    dtype = _dtype(type)
    if dtype is dtypes.bfloat16:
        return FloatInfo(16, 2.0**-7, (2 - 2.0**-7) * 2.0**127, -(2 - 2.0**-7) * 2.0**127, 2.0**-126, dtype)
    if dtype.kind != "f":
        raise DTypeError(f"xp: finfo: dtype, got {dtype}, allowed floats")
    of = np.finfo(dtype.numpy)
    return FloatInfo(of.bits, float(of.eps), float(of.max), float(of.min), float(of.smallest_normal), dtype)


def iinfo(type: DType | Array, /) -> IntegerInfo:
    """Properties of an integer dtype."""
    dtype = _dtype(type)
    if dtype.kind not in "iu":
        raise DTypeError(f"xp: iinfo: dtype, got {dtype}, allowed integers")
    low, high = dtypes.limits(dtype)
    return IntegerInfo(8 * dtype.bytes, high, low, dtype)


def _dtype(x: DType | Array) -> DType:
    return x.dtype if isinstance(x, Array) else dtype_of(x)


def _promoted(a: DType, b: DType) -> DType:
    found = dtypes.promote(a, b)
    if found is None:
        raise DTypeError(f"xp: result_type: dtypes, got {a} and {b}, allowed ones with a common one")
    return found


# ---- the rest -----------------------------------------------------------------------------------------------------


def positive(x: Array, /) -> Array:
    """x itself."""
    return x


def searchsorted(x1: Array, x2: Array, /, *, side: str = "left", sorter: Array | None = None) -> Array:
    """int64 places where x2 would go in the vector x1, which is in order, or is once `sorter` has picked from it."""
    return dvm.searchsorted(x1 if sorter is None else dvm.take(x1, sorter), x2, side=side)


def concat(arrays: tuple[Array, ...] | list[Array], /, *, axis: int | None = 0) -> Array:
    """The arrays one behind the other; axis None: flattened."""
    return dvm.concat([x.reshape(-1) for x in arrays], axis=0) if axis is None else dvm.concat(arrays, axis=axis)


def reshape(x: Array, /, shape: tuple[int, ...], *, copy: builtins.bool | None = None) -> Array:
    """The same elements in another shape."""
    return x.reshape(shape)


def broadcast_to(x: Array, /, shape: tuple[int, ...]) -> Array:
    """x stretched to a shape."""
    return dvm.broadcast_to(x, shape)


class __array_namespace_info__:  # noqa: N801
    """What this namespace offers."""

    def capabilities(self) -> dict[str, object]:
        """Shapes may depend on values, but not inside of a @function."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 8}

    def default_device(self) -> str:
        return "cpu"

    def devices(self) -> list[str]:
        return ["cpu"]

    def default_dtypes(self, *, device: object = None) -> dict[str, DType]:
        return {"real floating": float32, "integral": int64, "indexing": int64}

    def dtypes(self, *, device: object = None, kind: str | tuple[str, ...] | None = None) -> dict[str, DType]:
        """The standard's dtypes of a kind, by name."""
        every = (bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64)
        return {d.name: d for d in every if kind is None or isdtype(d, kind)}


__all__ = sorted(  # noqa: PLE0605
    {
        *SAME, *CREATION, *NOT_THERE, "asarray", "empty", "empty_like", "full", "astype", "can_cast", "result_type",
        "isdtype", "finfo", "iinfo",
        "positive", "concat", "reshape", "broadcast_to", "searchsorted", "e", "inf", "nan", "pi", "newaxis", "bool",
        "int8", "int16", "int32", "int64",
        "uint8", "uint16", "uint32", "uint64", "float32", "float64",
    }
)  # fmt: skip
