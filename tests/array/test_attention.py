"""dvm.attention on arrays: masks, grouped heads, growing keys, the same bytes in all modes."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array.function import planned_for

from tests.fusion.running import normal


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None, causal: bool = False) -> np.ndarray:
    if k.ndim > 2 and k.shape[-3] not in (1, q.shape[-3]):
        k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    s = q.astype(np.float64) @ np.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    if causal:
        s = np.where(np.arange(s.shape[-1]) <= np.arange(s.shape[-2])[:, None] + s.shape[-1] - s.shape[-2], s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def arrays(*hosts: np.ndarray | None) -> list[dvm.Array | None]:
    return [None if x is None else dvm.asarray(x) for x in hosts]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("q", "k", "mask"),
    [((2, 4, 5, 32), (2, 4, 9, 32), None), ((2, 4, 1, 64), (2, 2, 9, 64), (2, 1, 1, 9)), ((5, 8), (9, 8), (9,)),
     ((2, 4, 5, 16), (2, 2, 70, 16), (2, 4, 5, 70)),
     ((2, 6, 3, 16), (1, 6, 70, 16), (3, 70)), ((8, 20, 32), (2, 20, 32), (20, 1)), ((8, 1, 32), (1, 200, 32), None)],
)  # fmt: skip
def test_against_float64(q: tuple[int, ...], k: tuple[int, ...], mask: tuple[int, ...] | None, causal: bool) -> None:
    hosts = [normal(*q), normal(*k), normal(*k)]
    for kind in (None,) if mask is None else ("added", "bool"):
        given = None if kind is None else normal(*mask) if kind == "added" else normal(*mask) > -1
        if kind == "bool":
            given[..., 0] = True
        got = np.asarray(dvm.attention(*arrays(*hosts, given), causal=causal))
        np.testing.assert_allclose(got, exact(*hosts, given, causal), 0, 3e-6 * 4)


def test_lazy_traced_and_written_by_hand_are_the_same_bytes() -> None:
    hosts = [normal(2, 3, 7, 16), normal(2, 3, 30, 16), normal(2, 3, 30, 16)]

    def written(q: dvm.Array, k: dvm.Array, v: dvm.Array) -> dvm.Array:
        return dvm.matmul(dvm.softmax(dvm.matmul(q, k.mT) * 0.25), v)

    ways = [lambda *x: dvm.attention(*x), dvm.function(lambda *x: dvm.attention(*x)), written, dvm.function(written)]
    results = {np.asarray(way(*arrays(*hosts))).tobytes() for way in ways}
    assert len(results) == 1


def test_growing_keys_are_read_where_they_lie() -> None:
    """A cache with room for more keys: one plan for every length, one kernel, no copy of a key; the bits of the keys alone."""
    capacity, width = 150, 32
    k, v = (dvm.asarray(normal(4, capacity, width)) for _ in range(2))

    @dvm.function
    def step(q: dvm.Array, k: dvm.Array, v: dvm.Array, keys: dvm.Array) -> dvm.Array:
        return dvm.attention(q, k[:, : keys.shape[0]], v[:, : keys.shape[0]])

    q, before = dvm.asarray(normal(4, 1, width)), None
    for t in (2, 3, 31, 32, 33, 128, 129, 150):
        marker = dvm.asarray(np.zeros(t, np.float32))
        got = np.asarray(step(q, k, v, marker))
        alone = [dvm.asarray(np.ascontiguousarray(np.asarray(x)[:, :t])) for x in (k, v)]
        assert got.tobytes() == np.asarray(dvm.attention(q, *alone)).tobytes()
        _, planned, _ = planned_for(step, (q, k, v, marker), {})
        assert before in (None, planned) and [x.kind for x in planned.fused.report.kernels] == ["attention"]
        before = planned


def test_a_query_without_keys() -> None:
    q, k, v = arrays(normal(2, 3, 8), normal(2, 5, 8), normal(2, 5, 8))
    nobody = dvm.asarray(np.zeros((1, 5), bool))
    assert not np.asarray(dvm.attention(q, k, v, nobody)).any()
    scores = dvm.where(nobody, dvm.matmul(q, k.mT), float("-inf"))
    assert np.isnan(np.asarray(dvm.matmul(dvm.softmax(scores), v))).all()
    assert not np.asarray(dvm.attention(q, *arrays(normal(2, 0, 8), normal(2, 0, 8)))).any()


def test_wrong_shapes_are_refused() -> None:
    q, k, v = normal(2, 3, 8), normal(2, 5, 8), normal(2, 5, 8)
    masks = (normal(2, 3, 4), normal(1, 2, 3, 5))
    for wrong in ((q, k[..., :4], v), (q, k, v[:, :4]), (q[0, 0], k, v), *((q, k, v, mask) for mask in masks)):
        with pytest.raises(dvm.ShapeError):
            np.asarray(dvm.attention(*arrays(*wrong)))
    with pytest.raises(dvm.DvmError):
        np.asarray(dvm.attention(*arrays(q, k, v, np.zeros((3, 5), np.int32))))


@pytest.mark.parametrize("keys", [1, 64, 2048])
def test_no_score_matrix_is_in_memory(keys: int) -> None:
    """One kernel, no workspace: the memory that it needs beyond what comes in is its result."""
    heads, width = 8, 64
    q, k, v = (np.random.default_rng(i).normal(size=(1, heads, keys, width)).astype(np.float32) for i in range(3))
    attend = dvm.function(lambda q, k, v: dvm.matmul(dvm.softmax(dvm.matmul(q,
        dvm.permute_dims(k, (0, 1, 3, 2))) * 0.125, axis=-1), v))
    with dvm.Runtime(inline=True) as runtime:
        given = [dvm.asarray(a) for a in (q, k, v)]
        before = runtime.stats()["memory"]
        result = attend(*given)
        dvm.eval(result)
        after = runtime.stats()["memory"]
        held = after["tensors"] - before["tensors"]
        assert after["workspace"] == before["workspace"] == 0
        assert held <= 1.05 * q.nbytes + 4096
        planned = planned_for(attend, tuple(given), {})[1]
        assert [one.kind for one in planned.fused.report.kernels] == ["attention"] and planned.fused.plan.slots == 0
