"""Requests that share one runtime: who may run, who waits, until when.

A request is one `Runtime.run`. Rules. At most `requests_max` run at once; further ones wait in line, the first come first served;
a request that finds `requests_waiting_max` in line is refused at once (BackpressureTimeout), instead of making the line longer.
A deadline counts from the call of run(), waiting in line included. A request whose deadline has passed is stopped at its next
launch, or where it waits; one that is cancelled, where it awaits. Either gives its turn to the next one, and launches nothing
more. Requests may belong to different event loops. Knows nothing of arrays."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Generic, TypeVar

from dvm_rt import _native
from dvm_rt.errors import BackpressureTimeout, DeviceTimeoutError

Result = TypeVar("Result")


class Turns:
    """How many requests run, and the line of those that wait."""

    def __init__(self, running_max: int, waiting_max: int) -> None:
        self.running_max, self.waiting_max = running_max, waiting_max
        self.running = self.refused = 0
        self._line: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        return len(self._line)

    async def take(self, timeout_s: float) -> None:
        """Waits for a turn. Raises BackpressureTimeout when the line is full, or the time is over."""
        with self._lock:
            if self.running < self.running_max and not self._line:
                self.running += 1
                return
            if len(self._line) >= self.waiting_max:
                self.refused += 1
                text = f"runtime: run: requests in line, got {len(self._line) + 1}, allowed {self.waiting_max}"
                raise BackpressureTimeout(text)
            loop = asyncio.get_running_loop()
            called: asyncio.Future[None] = loop.create_future()
            self._line.append((loop, called))
        try:
            await asyncio.wait_for(asyncio.shield(called), timeout_s)
        except BaseException as error:
            with self._lock:
                in_line = (loop, called) in self._line
                if in_line:
                    self._line.remove((loop, called))
            if not in_line:
                self.give()  # it was its turn already
            if isinstance(error, asyncio.TimeoutError):
                self.refused += 1
                raise BackpressureTimeout(
                    f"runtime: run: seconds in line, got {timeout_s:.3f} with {self.running} requests running, allowed more"
                ) from None
            raise

    def give(self) -> None:
        """A request is over: the next one in line has its turn."""
        with self._lock:
            while self._line:
                loop, called = self._line.popleft()
                try:
                    loop.call_soon_threadsafe(_call, called)
                    return
                except RuntimeError:
                    continue  # its loop is closed
            self.running -= 1


def _call(called: asyncio.Future[None]) -> None:
    if not called.done():
        called.set_result(None)


class Deadline:
    """When a request has to be done. Its launches and waits look at it natively, on whatever thread it is stepping."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at_ns = _native.now_ns() + int(seconds * 1e9)

    def left_s(self) -> float:
        return max(0.0, (self.at_ns - _native.now_ns()) / 1e9)

    def error(self) -> DeviceTimeoutError:
        return DeviceTimeoutError(f"runtime: run: seconds for a request, got more than {self.seconds}, allowed {self.seconds}")

    def call(self, function: Callable[..., Result], *args: object) -> Result:
        """The function, which is stopped at its next launch when the time is over."""
        before = _native.set_deadline(self.at_ns)
        try:
            return function(*args)
        finally:
            _native.set_deadline(before)

    async def wait(self, awaitable: Awaitable[Result]) -> Result:
        """The same for what is awaited. Raises DeviceTimeoutError."""
        try:
            async with asyncio.timeout(self.left_s()) as timer:
                return await _Stepped(awaitable, self)
        except TimeoutError:
            if timer.expired():
                raise self.error() from None
            raise


class _Stepped(Generic[Result]):
    """An awaitable, each step of which runs under the deadline: tasks of one thread take turns between the steps."""

    def __init__(self, awaitable: Awaitable[Result], deadline: Deadline) -> None:
        self._steps, self._deadline = awaitable.__await__(), deadline

    def __await__(self) -> Generator[object, object, Result]:
        steps, call = self._steps, self._deadline.call
        step, sent = steps.__next__, ()
        while True:
            try:
                waits_for = call(step, *sent)
            except StopIteration as end:
                return end.value
            try:
                value = yield waits_for
                step, sent = (steps.__next__, ()) if value is None else (steps.send, (value,))
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as error:
                step, sent = steps.throw, (error,)
