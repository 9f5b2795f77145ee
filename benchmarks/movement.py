"""Data movement against a copy of as many bytes: transposes, gathers, joins, pads.

    python benchmarks/movement.py [part of a name ...] [--elements 65536 1000000 8000000]

The copy is a loop of whole vectors in C over memory in large pages, as ours is, with the better kind of store for the size, that
reads and writes together as many bytes as the case does: what is read (indices too; of a table as much as is picked) and what is
written, once each. Both repeat on the same memory, so that caches are as warm for both, and take turns; each figure is the least
of several. `kernel` is the program without Python, as the copy is: its share is what memory and instructions make of it. `launch`
is what a call from Python takes longer, into memory of its own each time.

Between 1 and 4 MiB a copy is faster past the caches, but who reads its result then is slower by more than that (2 MiB, copied and
read: 243 us, and 335 us past the caches): there our rows stay in the caches, and their share is of a copy that does not."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np

import dvm_rt as dvm
from benchmarks.limits import copy_timers, placed

ROUNDS, ROUND_NS = 9, 2e6
Case = tuple[str, Callable, Callable, list[np.ndarray]]  # name, ours, NumPy's, arrays


def cases(n: int) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for name in ("uint8", "int16", "float32", "float64"):
        for side in (1 << (n.bit_length() - 1) // 2, int(n**0.5) // 8 * 8 + 7):  # a power of two, and no multiple of anything
            x = rng.integers(0, 100, (side, side)).astype(name)
            yield f"transpose {name} {side}x{side}", lambda x: dvm.permute_dims(x, (1, 0)), lambda x: x.T, [x]
    side = int(n**0.5)
    square = rng.normal(size=(side, side)).astype(np.float32)
    heads = rng.normal(size=(max(1, n // (12 * 64 * 128)), 128, 12, 64)).astype(np.float32)
    yield "heads (0,2,1,3)", lambda x: dvm.permute_dims(x, (0, 2, 1, 3)), lambda x: x.transpose(0, 2, 1, 3), [heads]
    yield "keys (0,2,3,1)", lambda x: dvm.permute_dims(x, (0, 2, 3, 1)), lambda x: x.transpose(0, 2, 3, 1), [heads]
    yield "flip rows", lambda x: dvm.flip(x, axis=0), lambda x: x[::-1], [square]
    yield "flip in rows", lambda x: dvm.flip(x, axis=1), lambda x: x[:, ::-1], [square]
    yield "every second", lambda x: x[:, ::2], lambda x: x[:, ::2], [square]
    yield "pad", lambda x: dvm.pad(x, 1), lambda x: np.pad(x, 1), [square]
    yield "roll", lambda x: dvm.roll(x, 3, axis=1), lambda x: np.roll(x, 3, 1), [square]
    yield "tile", lambda x: dvm.tile(x, (2, 1)), lambda x: np.tile(x, (2, 1)), [square]
    yield "repeat", lambda x: dvm.repeat(x, 2, axis=1), lambda x: np.repeat(x, 2, 1), [square]
    for name in ("float32", "int8"):
        for width in (64, 128, 256, 512, 3072):
            rows = rng.integers(-100, 100, (n * 4 // width, width // np.dtype(name).itemsize)).astype(name)
            picks = rng.integers(0, len(rows), len(rows))
            yield f"take {name} rows of {width} B", lambda x, i: dvm.take(x, i), lambda x, i: np.take(x, i, 0), [rows, picks]


def best(timers: list[Callable[[int], float]]) -> list[float]:
    """The least nanoseconds of each, in turns."""
    repeats = [max(1, int(ROUND_NS / t(1))) for t in timers]
    least = [float("inf")] * len(timers)
    for _ in range(ROUNDS):
        for i, timer in enumerate(timers):
            least[i] = min(least[i], timer(repeats[i]))
    return least


def measure(case: Case) -> str:
    from dvm_rt import _native
    from dvm_rt.array.function import planned_for

    name, ours, theirs, arrays = case
    function, tensors, wanted = dvm.function(ours), [dvm.asarray(a) for a in arrays], theirs(*arrays)
    *held, result = placed([*arrays, np.zeros_like(wanted, order="C")])
    np.testing.assert_array_equal(np.asarray(function(*tensors)), wanted)
    session, planned, given = planned_for(function, tensors, {})
    program = _native.Program(session.program_bytes(planned, given))
    buffers = [held[b.index] if b.role == "PARAMETER" else result
               for b in planned.fused.plan.buffers if b.role in ("PARAMETER", "OUTPUT")]  # fmt: skip
    program.run(buffers)
    np.testing.assert_array_equal(result, wanted)

    def call(runs: int) -> float:
        begin = time.perf_counter()
        for _ in range(runs):
            function(*tensors)._tensor  # noqa: B018
        return 1e9 * (time.perf_counter() - begin) / runs

    read = sum(min(a.nbytes, result.nbytes if i == 0 and len(arrays) > 1 else a.nbytes) for i, a in enumerate(arrays))
    if name == "every second":
        read = wanted.nbytes  # whole lines are fetched, of which a half is moved
    copies = copy_timers((read + wanted.nbytes) // 2)
    kernel, called, *copied = best([lambda runs: program.time_run(buffers, runs), call, *copies])
    share = f"{min(copied) / kernel:9.2f}" if copied else ""
    return f"{name:32}{kernel / 1e3:11.1f}{min(copied, default=0) / 1e3:11.1f}{share:>9}{(called - kernel) / 1e3:9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--elements", type=int, nargs="*", default=[65_536, 1_000_000, 8_000_000])
    asked = parser.parse_args()
    with dvm.Runtime(inline=True):
        for n in asked.elements:
            print(f"{n} elements{'':18}{'kernel us':>13}{'copy us':>11}{'share':>9}{'launch':>9}")
            for case in cases(n):
                if not asked.names or any(part in case[0] for part in asked.names):
                    print(measure(case), flush=True)


if __name__ == "__main__":
    main()
