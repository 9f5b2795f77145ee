"""Functions of the Array API standard that are written with others: arrays like another, differences."""

from __future__ import annotations

from dvm_rt.array.array import Array, DTypeLike, binary
from dvm_rt.array.functions import full
from dvm_rt.graph.shapes import axis_number


def full_like(x: Array, /, value: float, *, dtype: DTypeLike | None = None) -> Array:
    """One value, in the shape and (without a dtype) the dtype of x."""
    return full(x.shape, value, dtype=dtype or x.dtype)


def zeros_like(x: Array, /, *, dtype: DTypeLike | None = None) -> Array:
    """0, in the shape of x."""
    return full_like(x, 0, dtype=dtype)


def ones_like(x: Array, /, *, dtype: DTypeLike | None = None) -> Array:
    """1, in the shape of x."""
    return full_like(x, 1, dtype=dtype)


def diff(x: Array, /, *, axis: int = -1, n: int = 1) -> Array:
    """Differences between neighbours along an axis, n times."""
    lead = (slice(None),) * axis_number("array: diff", axis, x.ndim)
    for _ in range(n):
        x = binary("not_equal" if x.dtype.kind == "b" else "subtract", x[(*lead, slice(1, None))], x[(*lead, slice(None, -1))])
    return x
