"""What tests of lazy arrays and of functions share: drawn values, and what the counters say."""

from __future__ import annotations

import gc

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
def counts() -> Counts:
    gc.collect()
    return Counts()
