"""What a matmul section means, with the bits: K slices, fma chains, packed form of B, scratch.

A section computes C[m, n] = sum over k of A[m, k] * B[k, n]: per element one fma chain in rising k for each
slice of K, starting from 0; slices are added in order. `native/matmul.h` states slices, packed form and
scratch in C++."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import isfinite

import numpy as np

from dvm_rt.dtypes import DType, bfloat16, float32
from dvm_rt.isa import layout

SLICE_K, PANEL = layout.LIMITS["SLICE_K"], layout.LIMITS["PANEL"]
GROUP_PANELS = 32  # panels of one slice that scratch holds when B is copied
IN_PLACE_ROWS = 14  # with more rows of A, B is copied
CANONICAL_NAN = np.uint32(0x7FC00000).view(np.float32)  # the only NaN in outputs


def slice_k(k: int) -> int:
    """Length of every slice of K but the last, which takes the rest."""
    if k <= SLICE_K:
        return k
    return -(-(-(-k // -(-k // SLICE_K))) // 8) * 8


def panels(n: int) -> int:
    return -(-n // PANEL)


def packed_bytes(n: int, k: int, element: int = 4) -> int:
    """Size of B[K, N] in packed form: elements [K slice][panel][k][PANEL], columns beyond N zero."""
    return k * panels(n) * PANEL * element


def scratch_bytes(n: int, m: int, k: int, packed: bool, stride_n: int, dtype: DType = float32) -> int:
    """Section.scratch_bytes of a matmul section that computes in `dtype`; stride_n of B in bytes, 0 of windows."""
    panel_bytes = slice_k(k) * PANEL * dtype.bytes
    if dtype is not float32:
        return panel_bytes
    if packed:
        return 0
    if stride_n != 4 or m > IN_PLACE_ROWS:
        return min(panels(n), GROUP_PANELS) * panel_bytes
    return panel_bytes if n % PANEL else 0


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c in float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there (Boldo and Melquiond, 2008): its error is
    found exactly (Knuth's two-sum); if it is not zero, the neighbour with an odd last bit is taken. Rounding
    that to float32, which has fewer than 53 - 2 bits, is then the same as rounding the exact sum."""
    p, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    s = p + c
    back = s - p
    error = (p - (s - back)) + (c - back)
    bits = s.view(np.int64)
    step = np.where((error > 0) == (s > 0), 1, -1)
    odd = np.where(np.isfinite(s) & (error != 0) & (bits & 1 == 0), bits + step, bits)
    return odd.view(np.float64).astype(np.float32)


def _fma64(a: float, b: float, c: float) -> float:
    if not (isfinite(a) and isfinite(b) and isfinite(c)):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return float(exact) if exact else a * b + c
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def fma64(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c in float64, rounded once; in exact rational numbers, so slow."""
    return np.frompyfunc(_fma64, 3, 1)(a, b, c).astype(np.float64)


def product(a: np.ndarray, b: np.ndarray, dtype: DType) -> np.ndarray:
    """a[M, K] @ b[K, N] in a compute dtype: floats by the slice rule with canonical NaN, integers modulo their range."""
    if dtype.kind == "f":
        return matmul(a, b) if dtype is float32 else _by_slices(a, b, fma64, np.float64)
    with np.errstate(over="ignore"):
        return a.astype(dtype.numpy) @ b.astype(dtype.numpy)


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a[M, K] @ b[K, N] in float32 by the slice rule, NaN canonical."""
    return _by_slices(a, b, fma, np.float32)


def _by_slices(a: np.ndarray, b: np.ndarray, fma: Callable[..., np.ndarray], kind: type) -> np.ndarray:
    total, step = None, slice_k(a.shape[1])
    for begin in range(0, a.shape[1], step):
        chain = np.zeros((a.shape[0], b.shape[1]), kind)
        for k in range(begin, min(begin + step, a.shape[1])):
            chain = fma(a[:, k, None], b[None, k, :], chain)
        total = chain if total is None else total + chain
    return np.where(np.isnan(total), kind(CANONICAL_NAN), total)


def pack(b: np.ndarray) -> np.ndarray:
    """b[K, N] as packed panels, flat: [K slice][panel][k][PANEL], columns beyond N zero."""
    k, n = b.shape
    padded = np.zeros((k, panels(n) * PANEL), b.dtype)
    padded[:, :n] = b
    slices = [padded[i : i + slice_k(k)] for i in range(0, k, slice_k(k))]
    return np.concatenate([s.reshape(len(s), -1, PANEL).transpose(1, 0, 2).ravel() for s in slices])


def unpack(packed: np.ndarray, n: int, k: int) -> np.ndarray:
    """The inverse of `pack`: b[K, N]."""
    step, width = slice_k(k), panels(n) * PANEL
    slices = [packed[i * width : min(i + step, k) * width] for i in range(0, k, step)]
    rows = [s.reshape(panels(n), -1, PANEL).transpose(1, 0, 2).reshape(-1, width) for s in slices]
    return np.concatenate(rows)[:, :n]


def canonical(values: np.ndarray) -> np.ndarray:
    """The same float32 values with every NaN made canonical."""
    return np.where(np.isnan(values), CANONICAL_NAN, values)


def wide(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Stored elements of packed weights as float32, exactly."""
    if dtype is bfloat16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
