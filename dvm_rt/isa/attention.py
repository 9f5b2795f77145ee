"""What an attention section means, with the bits: blocks of keys, running maximum, powers of two, lanes, chains.

dims = keys, queries, batch... Operands Q, K, V, O and perhaps a mask (float32: added; bool: keys where it is 0 are masked).
K.limit is the width D of Q and K, V.limit that of V and O; depth is the larger one. Words: `mul.k` scale, `mov.k`
masked, `mov.k` empty, `end`. Query i sees keys
0 .. limit + i - 1, limit = Q.limit. For each query

    s[j] = chain over d of (q[d] * (scale * log2 e)) * k[j, d]          one fma chain from 0, rising d
    s[j] = fma(mask[j], log2 e, s[j]), or masked * log2 e where a bool mask is 0; -inf where the query does not see j

and for each block of KEY_BLOCK keys of which it sees one:

    m' = larger of m (from -inf) and the s of the block, NaN left out; in what follows 0 if it is -inf
    p[j] = 2^(s[j] - m'), 0 below 2^-126; back = 2^(m - m')
    l[lane] = fma(l[lane], back, sum of p[j] in rising j, j mod 16 = lane)       16 lanes, from 0
    o = o * back, then one fma chain over p[j] * v[j], rising j, up to the next multiple of PANEL behind the keys that
        the query sees, but not beyond the keys that there are

At the end o * (1 / sum of l), lanes folded 8, 4, 2, 1 apart; the constant `empty` where that sum is 0, as where a query
sees no key. `native/attention.h` says the same in C++. Softmax in blocks: Milakov and Gimelshein 2018 (arXiv 1805.02867),
Dao et al. 2022 (arXiv 2205.14135)."""

from __future__ import annotations

import numpy as np

from dvm_rt.isa import layout
from dvm_rt.isa.matmul import PANEL, canonical, fma, panels

KEY_BLOCK = layout.LIMITS["KEY_BLOCK"]
PACKED_DEPTH_MAX = layout.LIMITS["SLICE_K"]
ROWS, BLOCK_ROWS, FEW_ROWS, PANEL_FLOATS_MAX = 64, 16, 48, 1 << 24  # of the scratch rule
WORDS = ("mul.k", "mov.k", "mov.k", "end")
LOG2_E = np.float32(1.4426950408889634)
_POWERS = (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0)

Array = np.ndarray


def scratch_bytes(keys: int, queries: int, depth: int, packed: bool) -> int:
    """Section.scratch_bytes of an attention section."""
    width, blocks = panels(depth) * PANEL, -(-keys // KEY_BLOCK)
    slots = 0 if packed else 1 if queries <= FEW_ROWS or blocks * KEY_BLOCK * depth > PANEL_FLOATS_MAX else blocks
    rows = ROWS * (depth + width + 16) + BLOCK_ROWS * KEY_BLOCK
    return 4 * (rows + KEY_BLOCK * width + slots * KEY_BLOCK * depth)


def power_of_two(x: Array) -> Array:
    """2^x for x <= 0 in float32: a polynomial on [-1/2, 1/2], scaled; 0 below 2^-126, NaN stays."""
    magic = np.float32(1.5 * 2**23)
    n = (x + magic) - magic
    r = x - n
    p = np.full_like(r, _POWERS[0])
    for c in _POWERS[1:]:
        p = fma(p, r, np.float32(c))
    whole = np.where(np.isfinite(n), np.clip(n, -200, 200), 0).astype(np.int32)
    return np.where(x < -126, np.float32(0), np.ldexp(p, whole)).astype(np.float32)


def attention(
    q: Array, k: Array, v: Array, limit: int, scale: float, masked: float, empty: float, mask: Array | None = None
) -> Array:  # fmt: skip
    """softmax(scale * q @ k.T + mask) @ v of one head: q[M, D], k[T, D], v[T, Dv], mask[M, T] float32 or bool."""
    keys = len(k)
    seen = np.clip(limit + np.arange(len(q)), 0, keys)
    query = q * (np.float32(scale) * LOG2_E)
    o, lanes = np.zeros((len(q), v.shape[1]), np.float32), np.zeros((len(q), 16), np.float32)
    top = np.full(len(q), -np.inf, np.float32)
    for begin in range(0, keys, KEY_BLOCK):
        end = min(begin + KEY_BLOCK, keys)
        rows = np.flatnonzero(seen > begin)
        s = np.zeros((len(rows), end - begin), np.float32)
        for d in range(q.shape[1]):
            s = fma(query[rows, d, None], k[None, begin:end, d], s)
        if mask is not None:
            part = mask[rows, begin:end]
            floats = part.dtype == np.float32
            s = fma(part, LOG2_E, s) if floats else np.where(part != 0, s, np.float32(masked) * LOG2_E)
        s = np.where(np.arange(begin, end) < seen[rows, None], s, np.float32(-np.inf))
        now = np.maximum(top[rows], np.fmax.reduce(s, axis=1, initial=np.float32(-np.inf)))
        level = np.where(now == -np.inf, np.float32(0), now)
        p, back = power_of_two(s - level[:, None]), power_of_two(top[rows] - level)
        total = np.zeros((len(rows), 16), np.float32)
        for j in range(0, end - begin, 16):
            total[:, : p[:, j : j + 16].shape[1]] += p[:, j : j + 16]
        lanes[rows] = fma(lanes[rows], back[:, None], total)
        o[rows] = np.where(back[:, None] == 1, o[rows], o[rows] * back[:, None])
        length = np.minimum(-(-(seen[rows] - begin) // PANEL) * PANEL, end - begin)
        for j in range(end - begin):
            on = rows[j < length]
            o[on] = fma(p[j < length, j, None], v[None, begin + j], o[on])
        top[rows] = now
    half = 16
    while half > 1:
        half //= 2
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return canonical(np.where(lanes == 0, np.float32(empty), o * (np.float32(1) / lanes)))
