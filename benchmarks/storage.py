"""Elementwise chains by storage dtype, beyond L2 and beyond L3, against a triad of float32 with non-temporal stores.

    python benchmarks/storage.py [--rounds 9]

Each row: elements a second in one launch inline (best of interleaved rounds), the share of the triad's bytes a second, and
the rate against float32's. Chains have no division: `chain` two inputs and eight operators, `triad` two inputs and two."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import dvm_rt as dvm
from benchmarks.limits import Limits

SIZES = {"L3": 1 << 20, "memory": 16 << 20}  # elements
DTYPES = ("float32", "float16", "bfloat16", "int8", "int16", "int32", "float64")


def triad(x: dvm.Array, y: dvm.Array) -> dvm.Array:
    return x + y * 3


def chain(x: dvm.Array, y: dvm.Array) -> dvm.Array:
    a = x * y + x
    b = dvm.maximum(a, y) * 2
    return dvm.abs(b - y) + (b - x)


def best_s(acts: list[Callable[[], object]], rounds: int) -> list[float]:
    least = [1e9] * len(acts)
    for _ in range(rounds):
        for i, act in enumerate(acts):
            begin = time.perf_counter()
            act()
            least[i] = min(least[i], time.perf_counter() - begin)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    asked = parser.parse_args()
    limits, rng = Limits.measure(), np.random.default_rng(0)
    print(f"{'':28}{'ms':>8}{'G/s':>8}{'of triad':>10}{'of float32':>12}")
    with dvm.Runtime(inline=True):
        for place in asked.sizes:
            n = SIZES[place]
            values = rng.integers(-3, 4, (2, n)).astype(np.float32)
            for function in (triad, chain):
                compiled, acts, sizes = dvm.function(function), [], []
                for name in DTYPES:
                    x, y = (dvm.asarray(v, name) for v in values)
                    acts.append(lambda x=x, y=y: compiled(x, y)._tensor)
                    sizes.append(x.dtype.bytes)
                times = best_s(acts, asked.rounds)
                for name, size, seconds in zip(DTYPES, sizes, times, strict=True):
                    share = 3 * size * n / seconds / limits.triad_streams[1 + (place == "memory")] if limits else float("nan")
                    print(f"{place + ' ' + function.__name__ + ' ' + name:28}{seconds * 1e3:8.3f}{n / seconds / 1e9:8.2f}"
                          f"{share:10.2f}{times[0] / seconds:12.2f}")


if __name__ == "__main__":
    main()
