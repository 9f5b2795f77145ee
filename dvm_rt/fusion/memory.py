"""Workspace slots: values that are never alive together share memory.

A value is alive from the kernel that writes it first to the kernel that reads it last. Sizes are symbolic, and a slot is as
large as its largest value. So values of one size share slots first, as few as there are of them alive at once; then slots of
different sizes that are never in use together become one."""

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
    by_size: dict[object, list[list[Lifetime]]] = {}
    for value in sorted(lifetimes, key=lambda value: value.first):
        rows = by_size.setdefault(value.size, [])
        row = next((row for row in rows if row[-1].last < value.first), None)
        if row is None:
            rows.append(row := [])
        row.append(value)
    rows = sorted((row for rows in by_size.values() for row in rows), key=len)
    joined = min(_joined(rows), _joined(rows[::-1]), key=len)  # what is rare shares with what is rare, unless that costs a slot
    joined.sort(key=lambda row: row[0].first)
    return {value.name: number for number, row in enumerate(joined) for value in row}


def _joined(rows: list[list[Lifetime]]) -> list[list[Lifetime]]:
    """Rows of values one behind the other, each in the first one where it meets nobody."""
    joined: list[list[Lifetime]] = []
    for row in rows:
        fitting = next((other for other in joined if not _meet(other, row)), None)
        if fitting is None:
            joined.append(list(row))
        else:
            fitting[:] = sorted(fitting + row, key=lambda value: value.first)
    return joined


def _meet(a: list[Lifetime], b: list[Lifetime]) -> bool:
    """Whether a value of the one and a value of the other are alive at the same time; both in order, none meets its own."""
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i].last < b[j].first:
            i += 1
        elif b[j].last < a[i].first:
            j += 1
        else:
            return True
    return False
