"""Suites against what the machine can do, and against ourselves: `limits` and `threads`.

`limits`: chains without a division against a triad with non-temporal stores; a row times a packed matrix beyond L2 against a
read of it; the same with weights stored in bfloat16. The limit is measured in turns with what is held against it, in the
very same memory: of arrays of its own, some lie in other pages and each pushes the other's out of a cache, so that two equal
loops differ by up to 1.6. `threads`: the same program on two threads and on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import limits, threads
from benchmarks.measure import Row, Timer, all_cpus, check, summary, take_turns
from benchmarks.storage import chain, triad

if TYPE_CHECKING:
    from dvm_rt.dtypes import DType

PLACES = {"in L3": 1 << 20, "in memory": 16 << 20}  # floats
MATRICES = {"768x3072, in L3": (768, 3072), "4096x4096, in memory": (4096, 4096)}
TOLERANCE = 1e-5


def _row(case: str, shape: str, timers: dict[str, Timer | None], notes: str = "") -> Row:
    medians, spread = summary(take_turns({name: timer for name, timer in timers.items() if timer}))
    return Row("limits", case, shape, "time", "us", medians.pop("dvm"), medians, medians.pop("limit", None), spread, notes)


def bandwidth(wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The suite `limits`."""
    import dvm_rt as dvm
    from benchmarks.engines import Engine

    rng = np.random.default_rng(0)
    with dvm.Runtime(inline=True):
        for function in (triad, chain):
            for place, count in PLACES.items():
                name, compiled = f"{function.__name__} without division", dvm.function(function)
                if wanted(name):
                    given = [dvm.asarray(rng.standard_normal(count, np.float32)) for _ in range(2)]
                    limit = limits.triad_timer(np.asarray(compiled(*given)), *map(np.asarray, given))
                    ours = partial(Engine().seconds, partial(compiled, *given))
                    yield _row(name, place, {"dvm": ours, "limit": limit}, "limit: NT triad")
    for place, (k, n) in MATRICES.items():
        name = f"{place.split(',')[0]} weights"
        if wanted(name):
            yield from _rows_times_matrix(name, place.split(", ")[1], k, n, rng)


def _rows_times_matrix(name: str, place: str, k: int, n: int, rng: np.random.Generator) -> Iterator[Row]:
    from dvm_rt import bfloat16, float32
    from dvm_rt.isa import matmul

    whole = rng.standard_normal((k, n), np.float32)
    half = (whole.view(np.uint32) >> 16).astype(np.uint16)
    stored = {dtype: limits.placed([matmul.pack(b)])[0] for dtype, b in ((float32, whole), (bfloat16, half))}
    for m in (1, 2):
        x = rng.standard_normal((m, k), np.float32)
        wide, narrow = (
            _product(x, packed, n, dtype, x.astype(np.float64) @ matmul.wide(b, dtype))
            for (dtype, packed), b in zip(stored.items(), (whole, half), strict=True)
        )
        read, read_half = map(limits.read_timer, stored.values())
        note = "native; limit: a read of the packed weights"
        yield _row(name, f"M = {m}, {place}", {"dvm": wide, "limit": read}, note)
        yield _row(
            f"{name}, bfloat16", f"M = {m}, {place}", {"dvm": narrow, "our float32": wide, "limit": read_half}, note
        )


def _product(x: np.ndarray, packed: np.ndarray, n: int, dtype: DType, wanted: np.ndarray) -> Timer:
    """Seconds of so many products of x[M, K] and a matrix of `n` columns, packed; of one program, without Python."""
    from dvm_rt import _native
    from dvm_rt.isa.program import PACKED, READ, WRITE, ProgramBuilder

    (m, k), builder = x.shape, ProgramBuilder()
    section = builder.matmul(n, m, k)
    section.operand(builder.add_arg(x.nbytes), [0, x.strides[0]], depth=x.itemsize)
    section.operand(builder.add_arg(packed.nbytes, dtype=dtype), dtype=dtype, mode=READ | PACKED)
    section.operand(builder.add_arg(4 * m * n, READ | WRITE), [4, 4 * n], mode=READ | WRITE)
    program, given = _native.Program(builder.build()), [x, packed, np.empty((m, n), np.float32)]
    program.run(given)
    check(given[-1], wanted, TOLERANCE)
    return lambda runs: 1e-9 * runs * program.time_run(given, runs)


def two_threads(wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The suite `threads`: native; rounds in which another process had a CPU do not count, where there are others."""
    from dvm_rt import _native

    with all_cpus():
        for name, (code, args) in threads.cases().items():
            if wanted(name):
                found = threads.compare(_native.Program(code), args, 2)
                note = f"{found.free} of {found.rounds} rounds had both CPUs; CPU time of both {found.cpu:.2f} of one's"
                yield Row("threads", name, "2 threads", "kernel", "us", found.us[2], {"our 1 thread": found.us[1]}, notes=note)
