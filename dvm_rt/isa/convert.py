"""Conversions between storage dtypes and compute dtypes: what `load`, `store_any` and the rounding words mean.

To a float: rounded once, to nearest, halves to even; NaN becomes the canonical one in stores. Float to integer: truncated,
saturated, NaN is 0. Integers wrap. bool: 1 where it is not 0. bfloat16 is stored as uint16."""

from __future__ import annotations

import numpy as np

from dvm_rt import dtypes

Array = np.ndarray


def convert_load(values: Array, dtype: dtypes.DType, compute: dtypes.DType = dtypes.float32) -> Array:
    """What `load` makes of stored elements (bool as uint8) in a section that computes in `compute`."""
    if dtype.kind == "b":
        return (values != 0).astype(compute.numpy)
    if dtype is dtypes.bfloat16:
        values = from_bfloat16_bits(values)
    if values.dtype.kind == "f" and compute.kind != "f":
        return saturated(values, compute.numpy)
    return values.astype(compute.numpy)


def convert_store(acc: Array, dtype: dtypes.DType) -> Array:
    """What `store_any` makes of the accumulator."""
    if dtype.kind == "b":
        return (acc != 0).astype(np.uint8)
    if dtype.kind != "f":
        return saturated(acc, dtype.numpy) if acc.dtype.kind == "f" else acc.astype(dtype.numpy)
    if acc.dtype.itemsize == 8 and acc.dtype.kind != "f" and dtype.bytes == 2:
        acc = _odd_float64(acc)
    if dtype is dtypes.bfloat16:
        return bfloat16_bits(acc)
    out = acc.astype(np.float64 if acc.dtype.kind != "f" and dtype.bytes == 2 else acc.dtype).astype(dtype.numpy)
    return np.where(np.isnan(out), np.array(np.nan, out.dtype), out)


def saturated(values: Array, target: np.dtype) -> Array:
    """Floats as integers: truncated, saturated, NaN is 0."""
    limits, wide = np.iinfo(target), values.astype(np.float64)
    high, low = wide >= float(limits.max), wide <= float(limits.min)  # float(2^63 - 1) is 2^63: not below it
    inside = np.where(high | low | np.isnan(wide), 0, np.trunc(wide)).astype(target)
    return np.where(high, limits.max, np.where(low, limits.min, inside)).astype(target)


def from_bfloat16_bits(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bfloat16_bits(values: Array) -> Array:
    """Any numbers rounded once to bfloat16: its bits."""
    wide = values.astype(np.float64)
    single = wide.astype(np.float32)
    bits = single.view(np.uint32)
    inexact = (single != wide) & ~np.isnan(wide)  # rounded to odd first, so that rounding twice does no harm
    beyond = np.abs(single.astype(np.float64)) > np.abs(wide)
    bits = (bits - (inexact & beyond)).astype(np.uint32) | inexact.astype(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16
    return np.where(np.isnan(wide), 0x7FC0, rounded).astype(np.uint16)


def _odd_float64(values: Array) -> Array:
    """64-bit integers in float64, rounded to odd."""
    magnitude = np.where(values < 0, np.negative(values), values).astype(np.uint64)
    low = magnitude & np.uint64(2047)
    odd = ((magnitude >> np.uint64(11)) | (low != 0).astype(np.uint64)) << np.uint64(11)
    exact = np.where(magnitude >> np.uint64(53) != 0, odd, magnitude).astype(np.float64)
    return np.where(values < 0, -exact, exact)
