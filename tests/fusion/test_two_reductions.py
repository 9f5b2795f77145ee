"""Two reductions of a kind over the same rows, one before the other's operand is there: fused as unfused."""

from __future__ import annotations

import numpy as np

import dvm_rt as dvm


def test_max_of_a_mask_beside_a_masked_softmax() -> None:
    random = np.random.default_rng(0)
    q, k = random.normal(size=(24, 8)).astype(np.float32), random.normal(size=(8, 6)).astype(np.float32)
    seen = random.random((24, 6)) < 0.6
    seen[:, 0] = True
    low, high = np.array([-5.0], np.float32), np.array([0.0], np.float32)

    @dvm.function
    def step(q: dvm.Array, k: dvm.Array, seen: dvm.Array, high: dvm.Array, low: dvm.Array) -> dvm.Array:
        mask = dvm.where(seen, high, low)
        return dvm.max(mask, axis=1, keepdims=True) + dvm.softmax(q @ k + mask, axis=-1)

    with dvm.Runtime(inline=True):
        got = np.array(step(*map(dvm.asarray, (q, k, seen, high, low))))
    scores = q.astype(np.float64) @ k + np.where(seen, 0.0, -5.0)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(got, e / e.sum(-1, keepdims=True), rtol=1e-4, atol=1e-5)
