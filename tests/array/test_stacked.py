"""Calls of stacked functions wait for each other and are few launches; every call has the bytes that it has alone."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.errors import DeviceTrap, ShapeError
from tests.array.conftest import fresh

F32 = np.float32


@pytest.fixture(params=["inline", "planned", "processes"])
def runtime(request: pytest.FixtureRequest) -> Iterator[dvm.Runtime]:
    options = {"inline": {"inline": True}, "planned": {"inline": True, "encode": "caller"},
               "processes": {"encoders": 1, "threads": 1}}
    with dvm.Runtime(**options[request.param]) as rt:
        yield rt


def cell(x: dvm.Array, y: dvm.Array, w: dvm.Array, b: dvm.Array) -> tuple[dvm.Array, dvm.Array]:
    i, o, u = dvm.split(dvm.concat([x, y], axis=-1) @ w + b, 3, axis=-1)
    c = dvm.sigmoid(i) * dvm.tanh(u)
    return dvm.sigmoid(o) * dvm.tanh(c), c


def tree(depth: int, f: object, leaves: Iterator, w: dvm.Array, b: dvm.Array) -> tuple:
    if depth == 0:
        return next(leaves), next(leaves)
    (x, _), (y, _) = tree(depth - 1, f, leaves, w, b), tree(depth - 1 if depth < 3 else depth - 2, f, leaves, w, b)
    return f(x, y, w, b)


def given(width: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(width)
    leaves = [rng.standard_normal((1, width), F32) for _ in range(64)]
    return leaves, rng.standard_normal((2 * width, 3 * width), F32) * F32(0.1), rng.standard_normal(3 * width, F32)


@pytest.mark.parametrize("width", [5, 16, 64])
def test_a_tree_is_a_launch_a_level_with_the_same_bytes(runtime: dvm.Runtime, width: int) -> None:
    leaves, *host = given(width)
    results = []
    for f in (dvm.function(cell), dvm.stacked(cell)):
        w, b = map(dvm.asarray, host)
        for _ in range(3):
            before = dvm.stats()["stacked_calls"]
            out = tree(5, f, iter([dvm.asarray(x) for x in leaves]), w, b)
            results.append([np.asarray(y).tobytes() for y in out])
    assert all(r == results[0] for r in results)
    assert dvm.stats()["stacked_calls"] > before and dvm.stats()["stacked_launches"] >= 2


def test_nothing_runs_before_a_value_is_needed(counts: object) -> None:
    f, x, w = dvm.stacked(lambda x, w: dvm.tanh(x @ w)), [dvm.asarray(fresh(1, 8)) for _ in range(6)], dvm.asarray(fresh(8, 8))
    made = [f(a, w) for a in x]
    assert counts["launched"] == 0 and made[0].shape == (1, 8) and made[0].dtype is dvm.float32
    np.asarray(made[3])
    assert counts["launched"] <= 2 and counts["stacked_calls"] == 6 and counts["stacked_launches"] == 1  # and packing
    assert all(y._tensor is not None for y in made)


def test_rows_of_a_table_do_not_make_the_calls_before_them_run(counts: object) -> None:
    f, w, table = dvm.stacked(lambda x, w: dvm.tanh(x @ w)), dvm.asarray(fresh(8, 8)), dvm.asarray(fresh(6, 1, 8))
    for rows in ([table[i] for i in range(6)], [table[i, 0:1] for i in range(6)], [table[0, ::2] + float(i) for i in range(6)]):
        before = counts["stacked_launches"]
        made = [f(row, w) for row in rows]
        assert counts["stacked_launches"] == before and all(y._tensor is None for y in made)
        together = [np.asarray(y).tobytes() for y in made]
        assert counts["stacked_launches"] == before + 1
        assert together == [np.asarray(dvm.function(f.python)(row, w)).tobytes() for row in rows]


def test_results_of_one_launch_go_on_without_a_copy(counts: object) -> None:
    f, x, w = dvm.stacked(lambda x, w: dvm.tanh(x @ w)), [dvm.asarray(fresh(1, 8)) for _ in range(5)], dvm.asarray(fresh(8, 8))
    for _ in range(4):
        x = [f(a, w) for a in x]
        np.asarray(x[0])
    offsets = [a._tensor.arena_offset for a in x]
    assert np.diff(offsets).tolist() == [32] * 4 and counts["stacked_launches"] == 4


def test_growing_caches_stay_together_along_their_own_axis(runtime: dvm.Runtime) -> None:
    """Caches (t, 1, d) that grow in place: nothing is copied, each request has the bytes that it has alone, also when
    others leave."""

    def step(x: dvm.Array, cache: dvm.Array, w: dvm.Array) -> tuple[dvm.Array, dvm.Array]:
        cache = dvm.append(cache, dvm.expand_dims(x @ w, axis=0))
        return dvm.tanh(x + dvm.sum(cache, axis=0) * 0.1), cache

    starts, host = [fresh(1, 6) for _ in range(5)], fresh(6, 6)

    def run(f: object, together: bool) -> list[bytes]:
        w = dvm.asarray(host)
        states = [(dvm.asarray(x), dvm.asarray(np.zeros((2, 1, 6), F32))) for x in starts]
        ended = []
        for number in range(12):
            states = [f(x, cache, w) for x, cache in states] if together else [tuple(map(dvm_read, f(x, cache, w)))
                for x, cache in states]
            np.asarray(states[0][0])
            if number in (5, 8):
                ended.append(states.pop(1))
        return [np.asarray(y).tobytes() for state in ended + states for y in state]

    def dvm_read(y: dvm.Array) -> dvm.Array:
        np.asarray(y)
        return y

    f = dvm.stacked(step)
    assert run(f, True) == run(dvm.function(step), False)
    assert f.why_not(dvm.asarray(starts[0]), dvm.asarray(np.zeros((3, 1, 6), F32)), dvm.asarray(host)) == ""
    stats = dvm.stats()
    assert stats["stacked_launches"] == 12 and stats["stacked_calls"] == 6 * 5 + 3 * 4 + 3 * 3


def test_other_weights_are_another_launch(runtime: dvm.Runtime) -> None:
    f, plain = dvm.stacked(lambda x, w: dvm.tanh(x @ w)), dvm.function(lambda x, w: dvm.tanh(x @ w))
    x, w = [dvm.asarray(fresh(2, 8)) for _ in range(6)], [dvm.asarray(fresh(8, 8)) for _ in range(2)]
    made = [f(a, w[i % 2]) for i, a in enumerate(x)]
    wanted = [np.asarray(plain(a, w[i % 2])).tobytes() for i, a in enumerate(x)]
    assert [np.asarray(y).tobytes() for y in made] == wanted
    assert dvm.stats()["stacked_launches"] == 2 and dvm.stats()["stacked_calls"] == 6


def test_shapes_that_differ_go_with_their_own(runtime: dvm.Runtime) -> None:
    f, plain = dvm.stacked(lambda x, k: dvm.softmax(dvm.concat([k, x], axis=1),
                                                    axis=1)), dvm.function(lambda x, k: dvm.softmax(dvm.concat([k,
                                                        x], axis=1), axis=1))
    pairs = [(dvm.asarray(fresh(1, 2, 4)), dvm.asarray(fresh(1, 3 + i % 3, 4))) for i in range(9)]
    made = [f(*p) for p in pairs]
    assert [np.asarray(y).tobytes() for y in made] == [np.asarray(plain(*p)).tobytes() for p in pairs]
    assert dvm.stats()["stacked_launches"] == 3


def test_what_may_not_be_stacked_runs_alone(runtime: dvm.Runtime) -> None:
    f = dvm.stacked(lambda x: x - dvm.mean(x, axis=0, keepdims=True))
    x = [dvm.asarray(fresh(3, 4)) for _ in range(4)]
    made = [np.asarray(y) for y in [f(a) for a in x]]
    for y, a in zip(made, x, strict=True):
        np.testing.assert_allclose(y, np.asarray(a) - np.asarray(a).mean(0), atol=1e-6)
    assert dvm.stats()["stacked_launches"] == 0 and "reduces over the rows" in f.why_not(x[0])


def test_results_mix_with_everything_else(runtime: dvm.Runtime) -> None:
    f, w = dvm.stacked(lambda x, w: dvm.tanh(x @ w)), dvm.asarray(np.eye(4, dtype=F32))
    x = [dvm.asarray(fresh(1, 4)) for _ in range(3)]
    y = [f(a, w) for a in x]
    lazy = y[0] + 1.0  # recorded over a result that is not there
    z = f(lazy, w)  # its argument has to be computed first
    joined = dvm.concat([y[1], z], axis=0)
    t = [np.tanh(np.asarray(a).astype(np.float64)) for a in x]
    np.testing.assert_allclose(np.asarray(joined), np.concatenate([t[1], np.tanh(t[0] + 1)]), atol=1e-6)
    np.testing.assert_allclose(float(f(y[2], w).sum()), np.tanh(t[2]).sum(), atol=1e-5)
    traced = dvm.function(lambda a, w: f(a, w) * 2.0)  # inside of a function it is traced
    np.testing.assert_allclose(np.asarray(traced(x[0], w)), 2 * t[0], atol=1e-6)
    assert f(x[0], w).sum().item() == pytest.approx(t[0].sum(), abs=1e-5)


def test_only_the_call_that_fails_alone_fails(runtime: dvm.Runtime) -> None:
    f, table = dvm.stacked(lambda i, table: dvm.take(table, i, axis=0) * 2.0), dvm.asarray(fresh(5, 3))
    indices = [dvm.asarray(np.array([i], np.int32)) for i in (0, 4, 7, 2)]
    made = [f(i, table) for i in indices]
    for number in (0, 1, 3):
        assert np.array_equal(np.asarray(made[number])[0], np.asarray(table)[(0, 4, 7, 2)[number]] * 2)
    with pytest.raises(DeviceTrap):
        np.asarray(made[2])
    assert dvm.stats()["stacks_taken_apart"] == 1
    failed = f(indices[2], table)
    later = [dvm.stacked(lambda x: x + 1.0)(y) for y in (made[0], failed)]
    assert np.asarray(later[0]).shape == (1, 3)


def test_wrong_shapes_are_said_at_the_call(runtime: dvm.Runtime) -> None:
    f, w = dvm.stacked(lambda x, w: x @ w), dvm.asarray(fresh(4, 4))
    good = f(dvm.asarray(fresh(2, 4)), w)
    with pytest.raises(ShapeError):
        f(dvm.asarray(fresh(2, 3)), w)
    assert np.asarray(good).shape == (2, 4)


def test_calls_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_CALLS_MAX", "4")
    with dvm.Runtime(inline=True):
        f, x = dvm.stacked(lambda x: dvm.tanh(x) * 2.0), [dvm.asarray(fresh(1, 4)) for _ in range(11)]
        made = [f(a) for a in x]
        assert sum(y._tensor is not None for y in made) == 8
        np.testing.assert_allclose(np.concatenate([np.asarray(y) for y in made]),
                                   2 * np.tanh(np.concatenate([np.asarray(a) for a in x])), atol=1e-6)


def test_nothing_is_kept(runtime: dvm.Runtime) -> None:
    f, w = dvm.stacked(lambda x, w: dvm.tanh(x @ w)), dvm.asarray(fresh(8, 8))
    for _ in range(3):
        del_me = [f(dvm.asarray(fresh(1, 8)), w) for _ in range(8)]
        np.asarray(del_me[0])
    del del_me
    gc.collect()
    np.asarray(dvm.asarray(fresh(2)) + 1.0)
    held = dvm.stats()["memory"]["tensors"]
    for _ in range(3):
        np.asarray([f(dvm.asarray(fresh(1, 8)), w) for _ in range(8)][0])
    gc.collect()
    assert dvm.stats()["memory"]["tensors"] - held <= 1024


@pytest.mark.asyncio
async def test_concurrent_requests_share_launches() -> None:
    rng = np.random.default_rng(0)
    starts = [rng.standard_normal((1, 16), F32) for _ in range(6)]
    weights = rng.standard_normal((16, 16), F32)
    f = dvm.stacked(lambda x, w: dvm.tanh(x @ w))

    async def request(x: np.ndarray, w: dvm.Array, steps: int) -> bytes:
        y = dvm.asarray(x)
        for _ in range(steps):
            y = f(y, w)
            await dvm.aeval(y)
        return np.asarray(y).tobytes()

    async with dvm.Runtime(encoders=1, threads=1) as rt:
        w = dvm.asarray(weights)
        alone = [await request(x, w, 5 + i) for i, x in enumerate(starts)]
        before = dvm.stats()["stacked_calls"]
        together = await asyncio.gather(*(rt.run(request, x, w, 5 + i) for i, x in enumerate(starts)))
        assert together == alone
        assert dvm.stats()["stacked_calls"] - before >= 30


async def test_a_step_is_on_its_way_before_the_one_before_is_looked_at() -> None:
    """Else the device has nothing to do while tasks look at values, every other step."""
    f = dvm.stacked(lambda x, w: dvm.tanh(x @ w))
    with dvm.Runtime(encoders=1, threads=1):
        w = dvm.asarray(fresh(8, 8))
        y = f(dvm.asarray(fresh(1, 8)), w)
        await dvm.aeval(y)
        for _ in range(4):
            ahead = f(y, w)
            assert ahead._tensor is None
            await dvm.aeval(y)
            assert ahead._tensor is not None
            y = ahead


async def test_calls_wait_for_company_while_the_device_has_enough_to_do() -> None:
    """A task that comes while launches are on their way still joins the call that was recorded before it came."""
    spin = dvm.function(lambda n, x: dvm.while_loop(lambda i, x: i < n, lambda i, x: (i + 1, x * 0.5), (0, x), limit=10**7)[1])
    f = dvm.stacked(lambda x, w: dvm.tanh(x @ w))
    with dvm.Runtime(encoders=1, threads=1):
        x, w, turns = dvm.asarray(fresh(1, 8)), dvm.asarray(fresh(8, 8)), dvm.asarray(np.int64(200_000))
        alone = np.asarray(f(x, w)).tobytes()
        np.asarray(spin(dvm.asarray(np.int64(1)), dvm.asarray(1.0)))
        long = [spin(turns, dvm.asarray(1.0)) for _ in range(30)]  # none so long that the device seems to hang

        async def request(turns_later: int) -> bytes:
            for _ in range(turns_later):
                await asyncio.sleep(0)
            y = f(x, w)
            await dvm.aeval(y)
            return np.asarray(y).tobytes()

        assert await asyncio.gather(request(0), request(9)) == [alone, alone]
        assert dvm.stats()["stacked_launches"] == 1 and dvm.stats()["stacked_calls"] == 2
        assert all(float(y) == 0.0 for y in long)
