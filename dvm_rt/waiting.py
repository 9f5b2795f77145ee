"""Waiting for launches in the user's own event loops, through the stream's eventfd: no other thread is in between.

The device writes the eventfd when `done` reaches what was armed; a death or a failure writes it too, so whoever is woken
looks again and arms again. One eventfd serves any number of loops: whoever reads it wakes the waiters of all. A task that finds
its launch done while others of its loop wait for launches that are done, too, wakes them and lets them go first: what they call
next goes together (array/stacked.py)."""

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
        self._waiting: dict[asyncio.AbstractEventLoop, dict[asyncio.Future[None], int]] = {}  # and the launch that each waits for
        self._lock = threading.Lock()
        self._closed = False

    async def wait(self, seq: int, timeout_s: float) -> bool:
        """True when `seq` is done; False when the time is over. Raises what the stream failed with."""
        loop, end = asyncio.get_running_loop(), time.monotonic() + timeout_s
        while not self._stream.arm(seq):
            left = end - time.monotonic()
            if left <= 0:
                return False
            woken = self._enter(loop, seq)
            timer = loop.call_later(min(left, LOOK_AGAIN_S), _set, woken)
            try:
                if self._stream.arm(seq):  # done between the look and the registration
                    return True
                await woken
            finally:
                timer.cancel()
                self._leave(loop, woken)
            self._stream.program_state(0)  # raises what the stream failed with
        return True

    def others_wait(self) -> bool:
        """Whether a task of this loop waits."""
        return asyncio.get_running_loop() in self._waiting

    async def all_are_here(self) -> bool:
        """Lets those of this loop go first whose launches are done, woken or not; whether none is left that waits."""
        await self.let_others_go_first()
        if any(future.done() for future in self._waiting.get(asyncio.get_running_loop(), ())):
            await asyncio.sleep(0)
        return not self.others_wait()

    async def let_others_go_first(self) -> None:
        """Wakes those of this loop whose launches are done; they run before the caller goes on."""
        if not self._waiting:
            return
        loop, done = asyncio.get_running_loop(), self._stream.done
        with self._lock:
            found = [future for future, seq in self._waiting.get(loop, {}).items() if seq <= done and not future.done()]
        for future in found:
            _set(future)
        if found:
            await asyncio.sleep(0)

    def _enter(self, loop: asyncio.AbstractEventLoop, seq: int) -> asyncio.Future[None]:
        woken = loop.create_future()
        with self._lock:
            first = loop not in self._waiting
            self._waiting.setdefault(loop, {})[woken] = seq
        if first:
            loop.add_reader(self._eventfd, self._read)
        return woken

    def _leave(self, loop: asyncio.AbstractEventLoop, woken: asyncio.Future[None]) -> None:
        with self._lock:
            self._waiting[loop].pop(woken, None)
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
            _set(future)

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


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
