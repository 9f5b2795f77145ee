"""Requests that share a runtime: turns, cancellation, deadlines, a line that does not grow. Counters, not times."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import Runtime
from dvm_rt.errors import BackpressureTimeout, DeviceTimeoutError, DvmError

LONG_S = 30.0


@dvm.function
def step(x, w):
    return dvm.tanh(x @ w)


@pytest.fixture(params=["inline", "processes"])
def rt(request) -> Runtime:
    with Runtime(inline=True) if request.param == "inline" else Runtime(encoders=1) as runtime:
        yield runtime


def weights() -> tuple[dvm.Array, dvm.Array]:
    rng = np.random.default_rng(4)
    return dvm.asarray(rng.standard_normal((1, 32), np.float32)), dvm.asarray(rng.standard_normal((32, 32), np.float32))


async def decode(number: int, steps: int, done: list[int]) -> bytes:
    x, w = weights()
    x = x * (1.0 + number)
    for _ in range(steps):
        x = step(x, w)
        await dvm.aeval(x)
        done.append(number)
    return np.asarray(x).tobytes()


async def test_requests_take_turns(rt: Runtime) -> None:
    requests, steps, done = 6, 40, []
    ahead = 3 if rt.inline else 12  # steps: who is woken by the device comes some turns after who found it done
    alone = [await rt.run(decode, number, steps, []) for number in range(requests)]
    together = await asyncio.gather(*(rt.run(decode, number, steps, done) for number in range(requests)))
    assert together == alone
    progress = dict.fromkeys(range(requests), 0)
    for number in done:
        progress[number] += 1
        unfinished = [n for n in progress.values() if n < steps]
        assert not unfinished or max(progress.values()) - min(unfinished) <= ahead, done
    assert rt.stats()["requests"] == {"running": 0, "waiting": 0, "refused": 0}


async def test_a_cancelled_request_launches_nothing_more(rt: Runtime) -> None:
    done: list[int] = []
    victim = asyncio.ensure_future(rt.run(decode, 1, 1_000_000, done))
    other = asyncio.ensure_future(rt.run(decode, 2, 30, []))
    while len(done) < 10:
        await asyncio.sleep(0)
    victim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await victim
    made = len(done)
    wanted = await rt.run(decode, 2, 30, [])
    assert await other == wanted
    before = rt.stats()["launches"]
    await asyncio.sleep(0.02)
    assert len(done) == made and rt.stats()["launches"] == before
    assert rt.stats()["requests"]["running"] == 0


async def test_deadlines(rt: Runtime) -> None:
    def endless() -> None:
        x, w = weights()
        while True:
            x = step(x, w)

    async def endless_steps() -> None:
        await decode(0, 1_000_000_000, [])

    async def asleep() -> None:
        await asyncio.Event().wait()

    for request in (endless, endless_steps, asleep):
        with pytest.raises(DeviceTimeoutError, match="deadline|seconds for a request, got more than 0.05"):
            await rt.run(request, deadline_s=0.05)
        assert await rt.run(decode, 3, 5, [], deadline_s=LONG_S) == await rt.run(decode, 3, 5, [])
    for bad in (0, -1.0, True, "1", float("nan"), float("inf")):
        with pytest.raises(DvmError, match="deadline_s, got"):
            await rt.run(endless, deadline_s=bad)


async def test_a_loop_on_the_device_ends_with_its_request(rt: Runtime) -> None:
    @dvm.function
    def endless(x):
        return dvm.while_loop(lambda v: dvm.sum(v) > 0, lambda v: v * 1.0, x, limit=1_000_000_000)

    def request() -> float:
        return float(dvm.sum(endless(dvm.asarray(np.ones(5, np.float32)))))

    for _ in range(2):
        with pytest.raises(DeviceTimeoutError, match="deadline|a loop that goes on"):
            await rt.run(request, deadline_s=0.1)
    assert await rt.run(decode, 3, 5, []) == await rt.run(decode, 3, 5, [], deadline_s=LONG_S)  # the device is free again


async def test_a_deadline_is_the_requests_own(rt: Runtime) -> None:
    """Tasks of one thread take turns; each launches and waits under its own deadline, or none."""

    async def impatient() -> None:
        await decode(0, 1_000_000_000, [])

    results = await asyncio.gather(
        rt.run(impatient, deadline_s=0.05), rt.run(decode, 1, 400, []),
        rt.run(decode, 2, 400, [], deadline_s=LONG_S), return_exceptions=True
    )
    assert isinstance(results[0], DeviceTimeoutError)
    assert results[1:] == [await rt.run(decode, n, 400, []) for n in (1, 2)]


async def test_errors_of_a_request_are_its_own(rt: Runtime) -> None:
    async def wrong() -> None:
        await dvm.aeval(dvm.zeros((1,)))
        raise TimeoutError("the user's own")

    with pytest.raises(TimeoutError, match="the user's own"):
        await rt.run(wrong, deadline_s=LONG_S)
    assert rt.stats()["requests"]["running"] == 0


async def test_a_line_does_not_grow(monkeypatch) -> None:
    monkeypatch.setenv("DVM_RT_REQUESTS_MAX", "2")
    monkeypatch.setenv("DVM_RT_REQUESTS_WAITING_MAX", "3")
    with Runtime(inline=True) as rt:
        began, goes_on = [], asyncio.Event()

        async def request(number: int) -> int:
            began.append(number)
            await goes_on.wait()
            return number

        tasks = [asyncio.ensure_future(rt.run(request, n)) for n in range(8)]
        await asyncio.sleep(0.01)
        assert began == [0, 1] and rt.stats()["requests"] == {"running": 2, "waiting": 3, "refused": 3}
        for task in tasks[5:]:
            with pytest.raises(BackpressureTimeout, match="requests in line, got 4, allowed 3"):
                await task
        tasks[3].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[3]
        with pytest.raises(BackpressureTimeout, match="seconds in line"):
            await rt.run(request, 9, deadline_s=0.01)
        goes_on.set()
        assert [await tasks[n] for n in (0, 1, 2, 4)] == [0, 1, 2, 4]
        assert began == [0, 1, 2, 4]  # first come, first served
        assert rt.stats()["requests"] == {"running": 0, "waiting": 0, "refused": 4}
        assert await rt.run(request, 7) == 7


async def test_a_line_of_several_loops(monkeypatch) -> None:
    monkeypatch.setenv("DVM_RT_REQUESTS_MAX", "1")
    with Runtime(inline=True) as rt:
        results: list[bytes] = []
        wanted = await rt.run(decode, 1, 50, [])

        def other_loop() -> None:
            async def several() -> None:
                results.extend(await asyncio.gather(*(rt.run(decode, 1, 50, []) for _ in range(3))))

            asyncio.run(several())

        threads = [threading.Thread(target=other_loop) for _ in range(3)]
        [t.start() for t in threads]
        results += await asyncio.gather(*(rt.run(decode, 1, 50, []) for _ in range(3)))
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert results == [wanted] * 12 and rt.stats()["requests"]["running"] == 0
