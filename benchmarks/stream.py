"""What the stream costs: calls inline, and through a device process; cached, of a new shape, and a stream of new shapes.

    python -m benchmarks.stream [--seconds 1]

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


def measure(what: str, long: float, once: Callable[[int], None], each: int, stream: _native.Stream) -> None:
    """Calls once(0), once(1), ... for `long` seconds or, where that is an int, so often; each call is `each` launches."""
    times, busy, end = [], stream.stats()["busy_ns"], time.perf_counter() + long
    while len(times) < long if isinstance(long, int) else time.perf_counter() < end:
        begin = time.perf_counter_ns()
        once(len(times))
        times.append((time.perf_counter_ns() - begin) / each / 1e3)
    kernel = (stream.stats()["busy_ns"] - busy) / len(times) / each / 1e3
    times.sort()
    print(f"{what:76} least {times[0]:6.2f}  p50 {times[len(times) // 2]:6.2f}  "
          f"p99 {times[len(times) * 99 // 100]:6.2f}  kernel {kernel:6.2f}")


def fetches(stream: _native.Stream, seconds: float, where: str, elements: int) -> None:
    """One launch of so many elements and its value. New shapes are all factorisations of the number, over one memory."""
    plan = stream.register(plan_bytes())
    flat = stream.asarray(np.ones((1, elements), np.float32))
    shapes = [flat.reshape((elements // n, n)) for n in range(60, elements) if elements % n == 0]
    x = shapes[len(shapes) // 2]

    def cached(_: int) -> None:
        stream.wait(stream.call(plan, (x, x))[0].seq)

    def burst(_: int) -> None:
        for _ in range(100):
            out = stream.call(plan, (x, x))
        stream.wait(out[0].seq)

    def new(i: int) -> None:
        number = numbers[i // len(shapes)]
        a = shapes[i % len(shapes)]
        stream.wait(stream.call(number, (a, a))[0].seq)

    name = f"{where}, {elements} elements"
    measure(f"{name}: cached launch and its value", seconds, cached, 1, stream)
    measure(f"{name}: 100 cached launches and the last value, each", seconds, burst, 100, stream)
    numbers = [stream.register(plan_bytes()) for _ in range(20)]
    measure(f"{name}: new shape and its value", 20 * len(shapes), new, 1, stream)


def new_shapes(stream: _native.Stream, seconds: float, where: str) -> None:
    """A stream of shapes never seen, in one plan of two symbols; every launch is tiny."""
    plan, made = plan_bytes(), [stream.asarray(np.ones((r, c), np.float32)) for r in range(1, 41) for c in range(1, 41)]

    def once(_: int) -> None:
        number = stream.register(plan)
        for x in made:
            out = stream.call(number, (x, x))
        stream.wait(out[0].seq)
        stream.forget(number)

    measure(f"{where}: stream of {len(made)} new shapes, each", seconds, once, len(made), stream)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.5)
    seconds = parser.parse_args().seconds
    inline = _native.Stream()
    fetches(inline, seconds, "inline", 720)
    new_shapes(inline, seconds, "inline")
    apart = _native.Stream(inline=False)
    with device(apart):
        fetches(apart, seconds, "processes", 720)
        fetches(apart, seconds, "processes", 10_080)
        new_shapes(apart, seconds, "processes")
        stats = apart.stats()
        print({k: stats[k] for k in ("launched", "encoded", "exposed_count", "starved_client_ns", "starved_user_ns",
                                     "device_wakes")})
