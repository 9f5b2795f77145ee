"""What tests of lazy arrays and of functions share: drawn values, and what the counters say."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest

import dvm_rt as dvm

F32 = np.float32
_random = np.random.default_rng(11)


def fresh(*shape: int) -> np.ndarray:
    """Normal numbers, other ones each time."""
    return _random.normal(size=shape).astype(F32)


class Counts:
    """Differences of the counters since the start of the test."""

    def __init__(self) -> None:
        self.start = dvm.stats()

    def __getitem__(self, name: str) -> int:
        return dvm.stats().get(name, 0) - self.start.get(name, 0)


@pytest.fixture
def counts() -> Iterator[Counts]:
    """In a runtime in which each graph is planned before it runs: one launch a graph."""
    gc.collect()
    with dvm.Runtime(inline=True, encode="caller"):
        yield Counts()
