"""A map from program numbers to things, kept by runs of numbers that follow each other.

Numbers of a stream of new programs rise by one, so hundreds of instances that travel together are one entry here: what the
scheduler does for a batch does not grow with it. Sequences of numbers are given as `range` where they are one run (the stream
does that), else as tuples; both mean the same. Knows nothing of batches and programs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, MutableMapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")


class Runs(MutableMapping[int, Value]):
    """`put`, `remove` and `within` take sequences of numbers and cost a few list operations a run; the rest is a mapping's."""

    __slots__ = ("_starts", "_stops", "_values", "_count")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._values: list[Value] = []
        self._count = 0

    # ---- many numbers ----------------------------------------------------------------------------------------------
    def put(self, numbers: Sequence[int], value: Value) -> None:
        for run in runs_of(numbers):
            at = self._cut_out(run)
            self._starts.insert(at, run.start)
            self._stops.insert(at, run.stop)
            self._values.insert(at, value)
            self._count += len(run)

    def remove(self, numbers: Sequence[int]) -> None:
        """Those that are there."""
        for run in runs_of(numbers):
            self._cut_out(run)

    def within(self, numbers: Sequence[int]) -> Iterator[tuple[range, Value]]:
        """What is there for these numbers, as runs of one value each."""
        for run in runs_of(numbers):
            at = max(bisect_right(self._starts, run.start) - 1, 0)
            while at < len(self._starts) and self._starts[at] < run.stop:
                found = range(max(run.start, self._starts[at]), min(run.stop, self._stops[at]))
                if found:
                    yield found, self._values[at]
                at += 1

    def runs(self) -> Iterator[tuple[range, Value]]:
        for start, stop, value in zip(self._starts, self._stops, self._values, strict=True):
            yield range(start, stop), value

    def _cut_out(self, run: range) -> int:
        """Nothing is left for these numbers; where an entry for them would be inserted."""
        first = bisect_right(self._starts, run.start) - 1
        if first < 0 or self._stops[first] <= run.start:
            first += 1
        last = first
        while last < len(self._starts) and self._starts[last] < run.stop:
            last += 1
        if first == last:
            return first
        old = [(range(self._starts[i], self._stops[i]), self._values[i]) for i in (first, last - 1)]
        self._count -= sum(min(self._stops[i], run.stop) - max(self._starts[i], run.start) for i in range(first, last))
        left = [(range(r.start, run.start), v) for r, v in old[:1] if r.start < run.start]
        right = [(range(run.stop, r.stop), v) for r, v in old[1:] if r.stop > run.stop]
        self._starts[first:last] = [r.start for r, _ in left + right]
        self._stops[first:last] = [r.stop for r, _ in left + right]
        self._values[first:last] = [v for _, v in left + right]
        return first + len(left)

    # ---- a mapping -------------------------------------------------------------------------------------------------
    def __getitem__(self, number: int) -> Value:
        at = bisect_right(self._starts, number) - 1
        if at < 0 or number >= self._stops[at]:
            raise KeyError(number)
        return self._values[at]

    def __setitem__(self, number: int, value: Value) -> None:
        self.put(range(number, number + 1), value)

    def __delitem__(self, number: int) -> None:
        self[number]
        self.remove(range(number, number + 1))

    def __iter__(self) -> Iterator[int]:
        for run, _ in self.runs():
            yield from run

    def __len__(self) -> int:
        return self._count


def runs_of(numbers: Sequence[int]) -> list[range]:
    """The runs of consecutive rising numbers in a sequence, in its order."""
    if isinstance(numbers, range):
        return [numbers] if numbers else []
    found: list[range] = []
    for number in numbers:
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


def joined(first: Sequence[int], second: Sequence[int]) -> Sequence[int]:
    """One sequence after another; a range if it is one run of two ranges."""
    if isinstance(first, range) and isinstance(second, range) and first.stop == second.start:
        return range(first.start, second.stop)
    return (*first, *second)
