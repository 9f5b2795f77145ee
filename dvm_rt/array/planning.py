"""Around tracing, fusing and registering: this is the client's own time, not the user's, a span of the trace, and counted.

The garbage collector rests meanwhile: what a plan is made of stays until the plan is there, and to look at it, and at all
that the process has loaded, again and again costs more than a small plan does."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from dvm_rt._native import Stream


class Made(Protocol):
    """A plan that was registered."""

    number: int
    kernels: int


class Registered(NamedTuple):
    """One of which no more is known."""

    number: int
    kernels: int


@contextmanager
def planning(stream: Stream, counters: Counter[str]) -> Iterator[list[Made]]:
    """What was planned is put into the list; `plan_ns` counts what it took."""
    began_ns, outermost = time.monotonic_ns(), stream.planning_began()
    collects = gc.isenabled()
    gc.disable()
    made: list[Made] = []
    try:
        yield made
    finally:
        if collects:
            gc.enable()
        number, kernels = (made[-1].number, made[-1].kernels) if made else (0, 0)
        stream.planning_ended(outermost, began_ns, number, kernels)
        counters["plan_ns"] += time.monotonic_ns() - began_ns
