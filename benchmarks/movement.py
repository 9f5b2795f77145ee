"""Data movement against a plain copy of as many bytes in NumPy: transposes, gathers, joins, pads.

    python benchmarks/movement.py [--elements 4000000]

Each row: our time of one launch inline (minimum of several), NumPy's, and our share of NumPy's copy bandwidth, bytes read
and written counted once each."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

import dvm_rt as dvm


def best_s(act: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=4_000_000)
    n = parser.parse_args().elements
    side = int(n**0.5)
    rng = np.random.default_rng(0)
    square = rng.normal(size=(side, side)).astype(np.float32)
    heads = rng.normal(size=(n // (12 * 64 * 128), 128, 12, 64)).astype(np.float32)
    rows = {w: rng.normal(size=(n // w, w)).astype(np.float32) for w in (16, 64, 768)}
    picks = {w: rng.integers(0, n // w, n // w) for w in rows}
    cases: list[tuple[str, Callable, Callable, list[np.ndarray]]] = [
        ("transpose f32", lambda x: dvm.permute_dims(x, (1, 0)), lambda x: np.ascontiguousarray(x.T), [square]),
        ("transpose f64", lambda x: dvm.permute_dims(x, (1, 0)), lambda x: np.ascontiguousarray(x.T),
         [square.astype(np.float64)]),
        ("transpose i16", lambda x: dvm.permute_dims(x, (1, 0)), lambda x: np.ascontiguousarray(x.T), [square.astype(np.int16)]),
        ("heads (0,2,1,3)", lambda x: dvm.permute_dims(x, (0, 2, 1, 3)), lambda x: np.ascontiguousarray(
            x.transpose(0, 2, 1, 3)), [heads]),
        ("keys (0,2,3,1)", lambda x: dvm.permute_dims(x, (0, 2, 3, 1)), lambda x: np.ascontiguousarray(x.transpose(0,
            2, 3, 1)), [heads]),
        ("flip rows", lambda x: dvm.flip(x, axis=0), lambda x: np.ascontiguousarray(x[::-1]), [square]),
        ("flip in rows", lambda x: dvm.flip(x, axis=1), lambda x: np.ascontiguousarray(x[:, ::-1]), [square]),
        ("every second", lambda x: x[:, ::2], lambda x: np.ascontiguousarray(x[:, ::2]), [square]),
        ("pad", lambda x: dvm.pad(x, 1), lambda x: np.pad(x, 1), [square]),
        ("roll", lambda x: dvm.roll(x, 3, axis=1), lambda x: np.roll(x, 3, 1), [square]),
        ("tile", lambda x: dvm.tile(x, (2, 1)), lambda x: np.tile(x, (2, 1)), [square]),
        ("repeat", lambda x: dvm.repeat(x, 2, axis=1), lambda x: np.repeat(x, 2, 1), [square]),
        *((f"take rows of {4 * w} B", lambda x, i: dvm.take(x, i), lambda x, i: np.take(x, i, 0),
           [rows[w], picks[w]]) for w in rows),
        ("sort rows", lambda x: dvm.sort(x), lambda x: np.sort(x, kind="stable"), [rows[64]]),
    ]
    print(f"{'':22}{'ms':>9}{'numpy':>9}{'of copy':>9}")
    with dvm.Runtime(inline=True):
        for name, ours, theirs, arrays in cases:
            tensors = [dvm.asarray(a) for a in arrays]
            function = dvm.function(ours)
            result = np.asarray(function(*tensors))
            wanted = theirs(*arrays)
            np.testing.assert_array_equal(result, wanted)
            spare = np.empty_like(wanted)
            copy_s = best_s(lambda: np.copyto(spare, wanted))
            ours_s = best_s(lambda: function(*tensors)._tensor)
            print(f"{name:22}{ours_s * 1e3:9.3f}{best_s(lambda: theirs(*arrays), 3) * 1e3:9.3f}{copy_s / ours_s:9.2f}")


if __name__ == "__main__":
    main()
