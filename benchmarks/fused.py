"""The yardstick: kernels fused by hand in C++ (fused.cpp), against ours without Python: no peer, because nobody writes these for
each model, but what a compiler could reach at best.

Both sides run natively in the same memory, inputs and result: the machine as often as asked in one call, and the variant of the
hand-written kernel that is fastest at that shape. Both are held against float64 first."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks import compiled
from benchmarks.cases import Arrays, Case
from benchmarks.limits import LINE

NAMES = ("chain of 8", "gelu", "swiglu", "lstm cell", "softmax", "layer norm", "rms norm", "cross entropy")
VARIANTS, FIRST_STREAMED = 9, 6
Timer = Callable[[int], float]  # so many runs -> seconds


class Fused:
    """The library, if there is a compiler; `absent` says why not."""

    def __init__(self) -> None:
        found = compiled.library("fused.cpp")
        self.absent = found if isinstance(found, str) else ""
        if not self.absent:
            self.time = found.time_fused
            self.time.restype = ctypes.c_double
            self.time.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_long]

    def has(self, case: Case) -> bool:
        return not self.absent and case.name in NAMES

    def variants(self, case: Case, arrays: Arrays, result: np.ndarray) -> list[Timer]:
        """A timer for each variant that rows of this length allow: non-temporal stores want whole cache lines. They read
        `arrays` and write `result`, all from cache lines on."""
        held, (rows, columns) = (*arrays, result), arrays[-1 if case.name == "lstm cell" else 0].shape
        pointers = (ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held))
        name = case.name.encode()

        def timer(variant: int, runs: int, _held: object = held) -> float:
            return self.time(name, variant, pointers, rows, columns, runs)

        return [partial(timer, v) for v in range(VARIANTS if columns % (LINE // 4) == 0 else FIRST_STREAMED)]

    def bind(self, case: Case, arrays: Arrays, result: np.ndarray) -> Timer:
        """The fastest variant."""
        timers = self.variants(case, arrays, result)
        count = max(1, int(1e-3 / max(min(timers[0](1) for _ in range(2)), 1e-7)))
        return min(timers, key=lambda timer: min(timer(count) for _ in range(3)))


def ours(function: Callable[..., object], arrays: Arrays, result: np.ndarray) -> Timer:
    """The program that a call of our function runs, on these."""
    import dvm_rt as dvm
    from dvm_rt import _native
    from dvm_rt.array.function import planned_for

    session, planned, tensors = planned_for(function, [dvm.asarray(a) for a in arrays], {})
    program = _native.Program(session.program_bytes(planned, tensors))
    arguments = []
    for buffer in planned.fused.plan.buffers:
        if buffer.role == "PARAMETER":
            arguments.append(arrays[buffer.index])
        elif buffer.role == "OUTPUT":
            arguments.append(result)
    return lambda runs: 1e-9 * runs * program.time_run(arguments, runs)
