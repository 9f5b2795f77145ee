"""What an example reports, and how a result is held against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Tell = Callable[[int, int], None]  # (done, of how many)


@dataclass(frozen=True, slots=True)
class Report:
    """`error`: the largest difference from NumPy float64 relative to the largest value; `allowed`: what it may be. `agrees`: the
    path (nodes, steps, tokens) is the reference's. `seconds` for `count` units of `unit`, the reference apart."""

    name: str
    what: str
    unit: str
    count: int
    seconds: float
    error: float
    agrees: bool
    allowed: float = 1e-4

    @property
    def good(self) -> bool:
        return self.agrees and self.error <= self.allowed


def error_of(got: object, wanted: np.ndarray) -> float:
    """Largest difference, relative to the largest value wanted (at least 1)."""
    got = np.asarray(got, np.float64)
    if got.shape != wanted.shape:
        return float("inf")
    return float(np.max(np.abs(got - wanted), initial=0.0) / max(1.0, np.max(np.abs(wanted), initial=0.0)))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights that keep the size of what they are applied to."""
    return rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
