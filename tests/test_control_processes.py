"""Branches and loops in a device process: the bits of an inline runtime, errors that arrive, and devices killed in a loop."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import Runtime
from dvm_rt.errors import DeviceTimeoutError, DeviceTrap, PoisonRequestError

STEPS = 300_000


@dvm.function
def walk(x, n):
    def step(i, v):
        return i + 1, dvm.cond(i % 3 == 0, lambda u: u * 0.5 + x, lambda u: u - 0.25, v)

    return dvm.while_loop(lambda i, v: i < n, step, (np.int32(0), x), limit=1_000_000)[1]


def result(n: int, kill: Runtime | None = None) -> bytes:
    x = dvm.asarray(np.linspace(-1, 1, 40, dtype=np.float32))
    y = walk(x, dvm.asarray(np.int32(n)))
    if kill is not None:
        threading.Timer(0.02, kill.kill, ("device",)).start()
    return np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def expected() -> dict[int, bytes]:
    with Runtime(inline=True):
        return {n: result(n) for n in (0, 1, 50, STEPS)}


@pytest.mark.parametrize("encode", ["workers", "caller"])
def test_same_bits_as_inline(expected: dict[int, bytes], encode: str) -> None:
    with Runtime(encoders=1, encode=encode):
        for n in (0, 1, 50):
            assert result(n) == expected[n]


def test_a_device_that_is_killed_in_a_loop_costs_time_only(expected: dict[int, bytes]) -> None:
    with Runtime(encoders=1) as rt:
        assert result(STEPS) == expected[STEPS]
        before = rt.stats()["recoveries"]
        while rt.stats()["recoveries"] == before:
            assert result(STEPS, rt) == expected[STEPS]


@pytest.mark.parametrize("inline", [True, False])
def test_a_loop_that_does_not_end_is_stopped(inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_LOOP_S", "0.05")
    f = dvm.function(lambda x: dvm.while_loop(lambda v: dvm.sum(v) > 0, lambda v: v + 1, x, limit=1 << 30))
    with Runtime(inline=inline):
        with pytest.raises(DeviceTimeoutError, match=r"a loop that goes on, got \d+, allowed 50 ms"):
            np.asarray(f(dvm.asarray(np.ones(5, np.float32))))
        assert np.array_equal(np.asarray(f(dvm.asarray(np.full(5, -1, np.float32)))), np.full(5, -1, np.float32))


def test_a_loop_over_its_limit_is_an_error_here_too() -> None:
    f = dvm.function(lambda x: dvm.while_loop(lambda v: dvm.sum(v) > 0, lambda v: v + 1, x, limit=7))
    with Runtime(encoders=1):
        with pytest.raises(DeviceTrap, match="go on, got 7, allowed 7 iterations"):
            np.asarray(f(dvm.asarray(np.ones(5, np.float32))))
        assert np.array_equal(np.asarray(f(dvm.asarray(np.full(5, -1, np.float32)))), np.full(5, -1, np.float32))


def test_a_launch_that_kills_every_device_ends_alone() -> None:
    """What crashes the device is not known to the client; here it is a signal, each time that the launch is running."""
    endless = dvm.function(lambda x: dvm.while_loop(lambda v: dvm.sum(v) > 0, lambda v: v * 1.0, x, limit=1_000_000_000))
    with Runtime(encoders=1) as rt:
        before = walk(dvm.asarray(np.ones(40, np.float32)), dvm.asarray(np.int32(50)))
        np.asarray(before)
        x = dvm.asarray(np.ones(5, np.float32))
        bad = endless(x)
        worse = bad + 1
        after = walk(dvm.asarray(np.ones(40, np.float32)), dvm.asarray(np.int32(50)))
        over, seen = threading.Event(), set()

        def crash() -> None:
            while not over.is_set():
                pid = rt.pids().get("device")
                running = pid is not None and pid not in seen and rt.stream.launched > rt.stream.done
                time.sleep(0.05)
                if running and not over.is_set():
                    seen.add(pid)
                    os.kill(pid, signal.SIGSEGV)

        crasher = threading.Thread(target=crash)
        crasher.start()
        try:
            with pytest.raises(PoisonRequestError, match="deaths of devices that ran it, got 5, allowed 4"):
                np.asarray(bad)
        finally:
            over.set()
            crasher.join()
        with pytest.raises(PoisonRequestError):
            np.asarray(worse)
        assert np.asarray(after).tobytes() == np.asarray(before).tobytes()
        assert result(50) == np.asarray(walk(dvm.asarray(np.linspace(-1, 1, 40, dtype=np.float32)),
                                             dvm.asarray(np.int32(50)))).tobytes()
        assert rt.stats()["deaths"] >= 5
