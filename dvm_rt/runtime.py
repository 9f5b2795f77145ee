"""The runtime that arrays belong to: the current one, else a lazily made inline one (no children, no sockets)."""

from __future__ import annotations

import asyncio

from dvm_rt import _native
from dvm_rt.config import integer, number


class Runtime:
    """A stream in this process."""

    def __init__(self) -> None:
        self.stream = _native.Stream(inline=True, arena_bytes_max=integer("arena_bytes_max"))

    async def reached(self, seq: int) -> None:
        """Waits until launch `seq` is done, without blocking the event loop."""
        if self.stream.done < seq:
            await asyncio.get_running_loop().run_in_executor(None, self.stream.wait, seq, number("wait_s"))


_default: list[Runtime] = []


def current() -> Runtime:
    """The runtime that new arrays belong to."""
    if not _default:
        _default.append(Runtime())
    return _default[0]
