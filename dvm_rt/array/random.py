"""Random numbers that are functions: the same key and shape always give the same numbers, on every machine.

Element i of a result comes from Philox4x32-10 of the counter i under the key (Salmon et al. 2011, doi 10.1145/2063384.2063405),
so nothing is kept between calls: keys are split, not advanced. A key is a Python int of 64 bits or a uint64 array without
dimensions. Normal numbers: Box and Muller 1958 (doi 10.1214/aoms/1177706645)."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import numpy as np

from dvm_rt.array.array import Array, DTypeLike, asarray, binary, dtype_of, record, shape_of
from dvm_rt.dtypes import DEFAULT_FLOAT, DEFAULT_INT, DType, float64, limits, uint32, uint64
from dvm_rt.errors import DTypeError, ShapeError
from dvm_rt.graph.symbols import Shape, Size, product

Key = int | Array
KEYS = 1 << 63  # counters of new keys: no element of an array is so far away


def split(key: Key, count: int = 2, /) -> Array:
    """`count` new keys, as a uint64 array; x[i] is one of them."""
    return _bits(key, (count,), KEYS)


def bits(key: Key, shape: Size | Sequence[Size] = (), /, *, dtype: DTypeLike = uint64) -> Array:
    """Random bits, as uint32 or uint64."""
    wanted = dtype_of(dtype)
    if wanted not in (uint32, uint64):
        raise DTypeError(f"array: random.bits: dtype, got {wanted}, allowed uint32, uint64")
    return _bits(key, _shape(shape)).astype(wanted)


def uniform(
    key: Key, shape: Size | Sequence[Size] = (), /, *, low: float = 0.0, high: float = 1.0, dtype: DTypeLike = DEFAULT_FLOAT
) -> Array:  # fmt: skip
    """Numbers from low to below high, all multiples of 2^-24 (float64: 2^-53) between 0 and 1 equally likely before scaling."""
    wanted = _float(dtype, "uniform")
    between = _fraction(_bits(key, _shape(shape)), wanted)
    between = between if high - low == 1 else between * (high - low)
    between = between if low == 0 else between + low
    return between.astype(wanted)


def normal(key: Key, shape: Size | Sequence[Size] = (), /, *, dtype: DTypeLike = DEFAULT_FLOAT) -> Array:
    """Numbers of the normal distribution with mean 0 and variance 1."""
    wanted = _float(dtype, "normal")
    drawn = _bits(key, _shape(shape))
    own = wanted if wanted is float64 else DEFAULT_FLOAT
    radius = ((drawn >> 24) + 1).astype(own) * 2.0**-40  # above 0, to 1: 40 bits
    angle = (drawn & 0xFFFFFF).astype(own) * (pi * 2.0**-23)
    return (record("sqrt", (record("log", (radius,)) * -2.0,)) * record("cos", (angle,))).astype(wanted)


def integers(
    key: Key, shape: Size | Sequence[Size] = (), /, *, low: int = 0, high: int, dtype: DTypeLike = DEFAULT_INT
) -> Array:  # fmt: skip
    """Whole numbers from low to below high; of 2^64 outcomes, each has the same number, or one more."""
    wanted = dtype_of(dtype)
    if wanted.kind not in "iu":
        raise DTypeError(f"array: random.integers: dtype, got {wanted}, allowed integers")
    smallest, largest = limits(wanted)
    if not smallest <= low < high <= largest + 1:
        raise ShapeError(f"array: random.integers: range, got {low} to {high}, allowed from {smallest} to {largest + 1}")
    return (_bits(key, _shape(shape)) % (high - low)).astype(wanted) + low


def _bits(key: Key, shape: Shape, start: int = 0) -> Array:
    counter = record("iota", (), (product(shape),)).astype(uint64)
    counter = counter if start == 0 else counter + start
    return record("philox", (counter.reshape(shape), _key(key)))


def _key(key: Key) -> Array:
    if isinstance(key, Array):
        if key.dtype is not uint64 or key.ndim:
            raise DTypeError(
                f"array: random: key, got {key.dtype} of shape {key.shape}, allowed an int, or uint64 without dimensions")
        return key
    if not isinstance(key, (int, np.integer)) or not 0 <= key < 2**64:
        raise DTypeError(f"array: random: key, got {key!r}, allowed 0 to 2^64 - 1, or a uint64 array without dimensions")
    return asarray(np.uint64(key))


def _fraction(drawn: Array, dtype: DType) -> Array:
    """From 0 to below 1, in float32, or in float64 for that."""
    own, digits = (dtype, 53) if dtype is float64 else (DEFAULT_FLOAT, 24)
    return binary("bitwise_right_shift", drawn, 64 - digits).astype(own) * 2.0**-digits


def _float(dtype: DTypeLike, where: str) -> DType:
    wanted = dtype_of(dtype)
    if wanted.kind != "f":
        raise DTypeError(f"array: random.{where}: dtype, got {wanted}, allowed floats")
    return wanted


def _shape(shape: Size | Sequence[Size]) -> Shape:
    return shape_of(shape if isinstance(shape, (tuple, list)) else (shape,), "random")
