"""What the stream costs: calls inline, and through a device process; cached, of a new shape, and a stream of new shapes.

    python benchmarks/stream.py [--seconds 1]

Prints microseconds: the least and the median of many, from Python. `kernel` is what the launch itself takes (device time)."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from dvm_rt import _native
from tests.native.plans import FUSED, Case


def plan_bytes(name: str = "chain8") -> bytes:
    case = Case(2)
    FUSED[name](case)
    return case.build().to_bytes()


@contextmanager
def device(stream: _native.Stream) -> Iterator[None]:
    """A device process for a stream."""
    fds = stream.fds
    pid = os.fork()
    if pid == 0:
        served = _native.Device(fds["control"], fds["arena"], fds["rings"], fds["eventfd"], 50.0, fds["traces"][0])
        while os.getppid() != 1:
            served.serve(100_000.0)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def measure(what: str, seconds: float, once: Callable[[int], None], each: int = 1, stream: _native.Stream | None = None) -> None:
    times, busy, i, end = [], stream.stats()["busy_ns"] if stream else 0, 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter_ns()
        once(i)
        times.append((time.perf_counter_ns() - begin) / each / 1e3)
        i += 1
    kernel = f"   kernel {(stream.stats()['busy_ns'] - busy) / len(times) / each / 1e3:6.2f}" if stream else ""
    times.sort()
    print(f"{what:58} least {times[0]:7.2f}   p50 {times[len(times) // 2]:7.2f}   p99 {times[len(times) * 99 // 100]:7.2f}{kernel}")


def rows_for(stream: _native.Stream, plan: int, wanted_us: float) -> int:
    """Rows of 128 columns whose kernel takes about `wanted_us`."""
    x = stream.asarray(np.ones((256, 128), np.float32))
    before = stream.stats()["busy_ns"]
    for _ in range(50):
        stream.call(plan, [x, x])
    stream.wait(stream.launched)
    return max(1, round(256 * wanted_us * 1e3 * 50 / (stream.stats()["busy_ns"] - before)))


def fetches(stream: _native.Stream, seconds: float, where: str) -> None:
    plan = stream.register(plan_bytes())
    for wanted_us in (0.0, 5.0):
        rows = rows_for(stream, plan, wanted_us) if wanted_us else 1
        x = stream.asarray(np.ones((rows, 128), np.float32))

        def cached(_: int) -> None:
            stream.wait(stream.call(plan, [x, x])[0].seq)

        def new(i: int) -> None:
            a = stream.asarray(tall[: 1, : 1 + i % 100_000])
            stream.wait(stream.call(plan, [a, a])[0].seq)

        def burst(_: int) -> None:
            for _ in range(100):
                out = stream.call(plan, [x, x])
            stream.wait(out[0].seq)

        tall = np.ones((1, 100_001), np.float32)
        measure(f"{where}: cached launch and its value", seconds, cached, 1, stream)
        measure(f"{where}: 100 cached launches and the last value, each", seconds, burst, 100, stream)
        if not wanted_us:
            measure(f"{where}: new shape, copied in, and its value", seconds, new, 1, stream)


def new_shapes(stream: _native.Stream, seconds: float, where: str) -> None:
    """A stream of shapes never seen, in one plan of two symbols; every launch is tiny."""
    plan = stream.register(plan_bytes())
    made = [stream.asarray(np.ones((r, c), np.float32)) for r in range(1, 41) for c in range(1, 41)]
    ends = len(made)

    def once(i: int) -> None:
        for x in made:
            out = stream.call(plan, [x, x])
        stream.wait(out[0].seq)
        plans.append(stream.register(plan_bytes_))
        stream.forget(plans.pop(0))

    plan_bytes_, plans = plan_bytes(), [plan]

    def again(i: int) -> None:
        nonlocal plan
        plan = plans[0]
        once(i)

    measure(f"{where}: stream of {ends} new shapes, each", seconds, again, ends, stream)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.5)
    seconds = parser.parse_args().seconds
    inline = _native.Stream()
    fetches(inline, seconds, "inline")
    new_shapes(inline, seconds, "inline")
    apart = _native.Stream(inline=False)
    with device(apart):
        fetches(apart, seconds, "processes")
        new_shapes(apart, seconds, "processes")
        stats = apart.stats()
        print({k: stats[k] for k in ("launched", "encoded", "exposed_count", "starved_client_ns", "starved_user_ns", "device_wakes")})
