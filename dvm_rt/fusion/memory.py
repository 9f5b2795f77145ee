"""Workspace slots: values that are never alive together share memory.

A value is alive from the kernel that writes it first to the kernel that reads it last. Slots are given out in the order of
the kernels, to a value of the same size where there is one: sizes are symbolic, and a slot is as large as its largest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Lifetime(NamedTuple):
    """Kernel numbers of the first write and the last read of value `name`; `size` compares equal for equal sizes."""

    name: int
    first: int
    last: int
    size: object


def slots(lifetimes: Iterable[Lifetime]) -> dict[int, int]:
    """name -> slot number."""
    given: dict[int, int] = {}
    free: list[tuple[int, object]] = []  # (slot, size of what was in it)
    alive: list[Lifetime] = []
    count = 0
    for value in sorted(lifetimes, key=lambda value: value.first):
        for over in [v for v in alive if v.last < value.first]:
            alive.remove(over)
            free.append((given[over.name], over.size))
        fitting = next((row for row in free if row[1] == value.size), free[-1] if free else None)
        if fitting is None:
            fitting, count = (count, value.size), count + 1
        else:
            free.remove(fitting)
        given[value.name] = fitting[0]
        alive.append(value)
    return given
