"""Waiting for launches in the user's own event loops, through the stream's eventfd: no other thread is in between.

The device writes the eventfd when `done` reaches what was armed; a death or a failure writes it too, so whoever is woken
looks again and arms again. One eventfd serves any number of loops: whoever reads it wakes the waiters of all."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from dvm_rt import _native

LOOK_AGAIN_S = 0.25  # a missed wake-up costs this much


class Waiters:
    def __init__(self, stream: _native.Stream) -> None:
        self._stream = stream
        self._eventfd = os.dup(stream.fds["eventfd"])
        self._waiting: dict[asyncio.AbstractEventLoop, set[asyncio.Future[None]]] = {}
        self._lock = threading.Lock()
        self._closed = False

    async def wait(self, seq: int, timeout_s: float) -> bool:
        """True when `seq` is done; False when the time is over. Raises what the stream failed with."""
        loop, end = asyncio.get_running_loop(), time.monotonic() + timeout_s
        while not self._stream.arm(seq):
            left = end - time.monotonic()
            if left <= 0:
                return False
            woken = self._enter(loop)
            try:
                if self._stream.arm(seq):  # done between the look and the registration
                    return True
                await asyncio.wait_for(woken, min(left, LOOK_AGAIN_S))
            except asyncio.TimeoutError:
                pass  # look again
            finally:
                self._leave(loop, woken)
            self._stream.program_state(0)  # raises what the stream failed with
        return True

    def _enter(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        woken = loop.create_future()
        with self._lock:
            first = loop not in self._waiting
            self._waiting.setdefault(loop, set()).add(woken)
        if first:
            loop.add_reader(self._eventfd, self._read)
        return woken

    def _leave(self, loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
        with self._lock:
            self._waiting[loop].discard(woken)
            last = not self._waiting[loop]
            if last:
                del self._waiting[loop]
            over = self._closed and not self._waiting
        if last:
            loop.remove_reader(self._eventfd)
        if over:
            os.close(self._eventfd)

    def _read(self) -> None:
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            pass  # another loop was quicker, and wakes us too
        with self._lock:
            loops = list(self._waiting)
        for loop in loops:
            try:
                loop.call_soon_threadsafe(self._wake, loop)
            except RuntimeError:
                pass  # closed meanwhile

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            woken = list(self._waiting.get(loop, ()))
        for future in woken:
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Wakes everybody; the last one who leaves closes the descriptor."""
        with self._lock:
            self._closed, loops = True, list(self._waiting)
        for loop in loops:
            try:
                loop.call_soon_threadsafe(self._wake, loop)
            except RuntimeError:
                pass  # closed meanwhile
        if not loops:
            os.close(self._eventfd)
