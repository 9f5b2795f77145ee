"""Suites against what the machine can do, and against ourselves: `limits` and `threads`.

`limits`: chains without a division against a triad with non-temporal stores over as many bytes; a row times a matrix
beyond L2 against a read of the matrix; the same with weights stored in bfloat16. The limit is measured in turns with
what is held against it. `threads`: the same program on two threads and on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from benchmarks import limits, threads
from benchmarks.measure import Row, Timer, all_cpus, summary, take_turns
from benchmarks.storage import chain, triad

PLACES = {"in L3": 1 << 20, "in memory": 16 << 20}  # floats
MATRICES = {"768x3072, in L3": (768, 3072), "4096x4096, in memory": (4096, 4096)}


def _row(case: str, shape: str, timers: dict[str, Timer | None], notes: str = "") -> Row:
    medians, spread = summary(take_turns({name: timer for name, timer in timers.items() if timer}))
    return Row("limits", case, shape, "time", "us", medians.pop("dvm"), medians, medians.pop("limit", None), spread, notes)


def _repeated(run: Callable[[], object]) -> Timer:
    from benchmarks.engines import Engine

    return partial(Engine().seconds, run)


def bandwidth(wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The suite `limits`."""
    import dvm_rt as dvm

    rng = np.random.default_rng(0)
    with dvm.Runtime(inline=True):
        for function in (triad, chain):
            for place, count in PLACES.items():
                name, compiled = f"{function.__name__} without division", dvm.function(function)
                if wanted(name):
                    given = [dvm.asarray(rng.standard_normal(count, np.float32)) for _ in range(2)]
                    yield _row(
                        name,
                        place,
                        {"dvm": _repeated(partial(compiled, *given)), "limit": limits.triad_timer(count)},
                        "limit: NT triad",
                    )
        for place, (k, n) in MATRICES.items():
            name = f"{place.split(',')[0]} weights"
            if wanted(name):
                yield from _rows_times_matrix(name, place.split(", ")[1], k, n, rng)


def _rows_times_matrix(name: str, place: str, k: int, n: int, rng: np.random.Generator) -> Iterator[Row]:
    import dvm_rt as dvm

    whole = dvm.asarray(rng.standard_normal((k, n), np.float32))
    half = dvm.asarray(dvm.astype(whole, dvm.bfloat16))
    product = dvm.function(lambda x, w: x @ w)
    stored = dvm.function(lambda x, w: x @ dvm.astype(w, dvm.float32))
    for m in (1, 2):
        x = dvm.asarray(rng.standard_normal((m, k), np.float32))
        plain, small = _repeated(partial(product, x, whole)), _repeated(partial(stored, x, half))
        yield _row(
            name, f"M = {m}, {place}", {"dvm": plain, "limit": limits.read_timer(4 * k * n)}, "limit: a read of as many bytes"
        )
        yield _row(
            f"{name}, bfloat16",
            f"M = {m}, {place}",
            {"dvm": small, "our float32": plain, "limit": limits.read_timer(2 * k * n)},
        )


def two_threads(wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The suite `threads`: native; rounds in which another process had a CPU do not count, where there are others."""
    from dvm_rt import _native

    with all_cpus():
        for name, (code, args) in threads.cases().items():
            if wanted(name):
                found = threads.compare(_native.Program(code), args, 2)
                note = f"{found.free} of {found.rounds} rounds had both CPUs; CPU time of both {found.cpu:.2f} of one's"
                yield Row("threads", name, "2 threads", "kernel", "us", found.us[2], {"our 1 thread": found.us[1]}, notes=note)
