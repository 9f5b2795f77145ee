"""How things are timed, the same for all engines.

Rules: every result is held against NumPy float64 before anything is timed. Engines take turns, and who begins rotates, so that a
slow spell of the machine hits all. A sample is as many runs as take SAMPLE_S, after as many that are not timed: an Intel CPU
runs 512-bit instructions at a quarter of their rate for 0.1 to 0.4 ms if there were none for 0.7 ms, and so an engine that has
them would pay for those that had their turn before. So would one whose data lies in L3, which the others' turns have pushed out:
a triad over 12 MiB, written in C, takes 669, 596, 455, 390, 372, 364 us in a row after another engine's turn, and runs of 0.25 to
1 ms would be timed as the second, third or fifth of these, by how long they are. So not timed are WARM_RUNS runs at least, as far
as WARM_S allows. What counts is the median of the samples, with the quartiles beside it; an
engine that takes longer than SLOW_S a run gives SLOW_SAMPLES, without such. One thread, pinned to one CPU.

    time      a call from Python with inputs that the engine holds already, until its result is whole
    kernel    the same work without Python: our program, and a kernel fused by hand (fused.py)
    added     what a first call at a shape never seen takes longer than its repetition, by the clock: compilation, encoding, fresh
              memory, a page fault, whatever happens then
    compile   the same for the peers; for dvm_rt what its own counters say that encoding and verifying took

An engine that compiles for seconds would need an hour for UNSEEN shapes: first calls at the timed shapes count as
shapes never seen for those that are built anew for each shape, no engine gets more of them once it has taken
UNSEEN_S, nor other shapes after BUILD_S; rows tell how many it had."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from benchmarks import fused, spaces
from benchmarks.cases import Arrays, Case, Dims
from benchmarks.engines import Engine, Run
from benchmarks.fused import Fused
from benchmarks.limits import Limits, placed

SAMPLE_S, SAMPLES, CASE_S = 1e-3, 15, 2.0
WARM_RUNS, WARM_S = 4, 4e-3
SLOW_S, SLOW_SAMPLES = 0.15, 3
UNSEEN, UNSEEN_S, UNSEEN_MIN = 50, 3.0, 3
BUILD_S = 25.0  # of first calls at the shapes of one case: an engine that has taken so much is not asked at the others
YARDSTICKS = ("fused C", "our ")  # columns that begin so are no peers: what could be reached, and ourselves in another setting


@contextmanager
def all_cpus() -> Iterator[None]:
    """The engines of a run of one thread are pinned to one CPU; what runs in here has all of them: processes, threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(slots=True)
class Row:
    """One line of a table. `metric`: time, kernel, added p50 / p98 / max, bytes. `dvm`, `peers`: in `unit`; `limit`:
    the physical one."""

    suite: str
    case: str
    shape: str
    metric: str
    unit: str
    dvm: float | None
    peers: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: str = ""

    @property
    def best(self) -> tuple[str, float] | None:
        """The strongest peer and its value."""
        return min(self.rivals.items(), key=lambda item: item[1], default=None)

    @property
    def rivals(self) -> dict[str, float]:
        return {name: value for name, value in self.peers.items() if not name.startswith(YARDSTICKS)}

    @property
    def ratio(self) -> float | None:
        """The best peer's value over ours: above 1 we are ahead."""
        return self.best[1] / self.dvm if self.best and self.dvm else None

    def over(self, name: str) -> float | None:
        """A column's value over ours."""
        return self.peers[name] / self.dvm if name in self.peers and self.dvm else None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Wrong(Exception):
    """A result that is not what float64 says."""


def check(got: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """Raises Wrong where a result differs from float64 by more than is allowed, relative to the largest."""
    if got.shape != wanted.shape:
        raise Wrong(f"shape {got.shape}, allowed {wanted.shape}")
    error = np.max(np.abs(got - wanted), initial=0.0) / max(np.max(np.abs(wanted), initial=0.0), 1.0)
    if not error <= tolerance:
        raise Wrong(f"error {error:.2e}, allowed {tolerance:.0e}")


def wanted_of(case: Case, arrays: Arrays) -> np.ndarray:
    """What float64 says."""
    return np.asarray(case.function(spaces.NumPy, *(a.astype(np.float64) for a in arrays)))


Timer = Callable[[int], float]  # so many runs -> seconds


def take_turns(runs: dict[str, Timer], samples: int = SAMPLES, case_s: float = CASE_S) -> dict[str, list[float]]:
    """Seconds a run, samples of every engine, in turns."""
    repeats, warm, slow = {}, {}, set()
    for name, seconds in runs.items():
        least = seconds(1)
        if least > SLOW_S:
            slow.add(name)
        else:
            least = min(seconds(1) for _ in range(3))
        repeats[name] = max(1, int(SAMPLE_S / max(least, 1e-7)))
        warm[name] = max(repeats[name], min(WARM_RUNS, int(WARM_S / max(least, 1e-7))))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    order, end = list(runs), time.perf_counter() + case_s
    for turn in range(samples):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            if name in slow and turn >= SLOW_SAMPLES:
                continue
            if name not in slow:
                runs[name](warm[name])
            taken[name].append(runs[name](repeats[name]) / repeats[name])
        if time.perf_counter() > end and turn >= 2:
            break
    return taken


def summary(samples: dict[str, list[float]]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Medians and quartiles, in microseconds."""
    medians = {name: 1e6 * statistics.median(times) for name, times in samples.items()}
    spread = {name: tuple(1e6 * float(q) for q in np.quantile(times, (0.25, 0.75))) for name, times in samples.items()}
    return medians, spread


@dataclass(slots=True)
class First:
    """First calls of an engine at shapes never seen, in seconds: beyond their repetition, and what of that is
    compiling. Before each the engine runs the shape that it had before, as a server would have: its code and tables
    are where they usually are."""

    added: list[float] = field(default_factory=list)
    compiled: list[float] = field(default_factory=list)
    spent: float = 0.0
    before: Run | None = None

    def call(self, engine: Engine, run: Run) -> None:
        if self.before:
            engine.seconds(self.before, 1)
        self.before, before = run, engine.compiled_s()
        first, after = engine.seconds(run, 1), engine.compiled_s()
        again = statistics.median(engine.seconds(run, 1) for _ in range(1 if first > 1 else 5))
        beyond = max(first - again, 0.0)
        self.added.append(beyond)
        self.compiled.append(beyond if before is None else after - before)
        self.spent += first


class Cases:
    """Times cases: with these engines, against these limits and the yardstick; `tell` shows progress."""

    def __init__(
        self, engines: list[Engine], limits: Limits | None, yardstick: Fused, tell: Callable[[str], None], all_unseen: bool
    ) -> None:
        self.engines, self.limits, self.yardstick, self.tell, self.all_unseen = engines, limits, yardstick, tell, all_unseen

    def rows(self, case: Case) -> list[Row]:
        """Steady times at the case's shapes, and what a shape never seen adds."""
        rng = np.random.default_rng(0)
        weights, notes = case.weights(rng), []
        ready = self._loaded(case, weights, notes)
        firsts, rows = {engine.name: First() for engine in ready}, []
        for label, dims in case.shapes.items():
            self.tell(f"{case.suite}: {case.name} {label}")
            arrays, runs, wrong = [*case.inputs(rng, *dims), *weights], {}, []
            inputs, wanted = arrays[: len(arrays) - len(weights)], wanted_of(case, arrays)
            for engine in ready:
                if firsts[engine.name].spent > BUILD_S:
                    wrong.append(f"{engine.name}: not asked, it has built for {firsts[engine.name].spent:.0f} s already")
                    continue
                try:
                    run = engine.bind(inputs)
                    if engine.for_each_shape:
                        firsts[engine.name].call(engine, run)
                    check(engine.result(run()), wanted, case.tolerance)
                    runs[engine.name] = partial(engine.seconds, run)
                except Exception as error:  # what a peer cannot do is a note in the table, not the end of the run
                    wrong.append(f"{engine.name}: {_short(error)}")
            medians, spread = summary(take_turns(runs))
            ours, limit, said = medians.pop("dvm", None), self._limit(case, dims), "; ".join(notes + wrong)
            rows.append(Row(case.suite, case.name, label, "time", "us", ours, medians, limit, spread, said))
            if self.yardstick.has(case) and (dvm := next((e for e in ready if e.name == "dvm"), None)):
                rows.append(self._kernel(case, label, dvm.function, arrays, wanted, limit))
        if case.unseen:
            self.tell(f"{case.suite}: {case.name}, shapes never seen")
            rows += self._unseen(case, ready, rng, firsts)
        return rows

    def _loaded(self, case: Case, weights: Arrays, notes: list[str]) -> list[Engine]:
        ready = []
        for engine in (e for e in self.engines if e.can(case)):
            self.tell(f"{case.suite}: {case.name}, loading {engine.name}")
            try:
                engine.load(case, weights)
                ready.append(engine)
            except Exception as error:
                notes.append(f"{engine.name}: {_short(error)}")
        return ready

    def _limit(self, case: Case, dims: Dims) -> float | None:
        if not self.limits or not (case.moved or case.flops):
            return None
        return 1e6 * self.limits.seconds(case.moved(*dims) if case.moved else 0.0, case.flops(*dims) if case.flops else 0.0)

    def _kernel(
        self, case: Case, label: str, function: Callable, arrays: Arrays, wanted: np.ndarray, limit: float | None
    ) -> Row:
        timers, (*held, result) = {}, placed([*arrays, np.zeros(wanted.shape, np.float32)])
        for name, bind in (("dvm", partial(fused.ours, function)), ("fused C", partial(self.yardstick.bind, case))):
            result[...] = np.nan
            timers[name] = bind(held, result)
            timers[name](1)
            check(result, wanted, case.tolerance)
        medians, spread = summary(take_turns(timers))
        return Row(case.suite, case.name, label, "kernel", "us", medians.pop("dvm"), medians, limit, spread)

    def _unseen(self, case: Case, engines: list[Engine], rng: np.random.Generator, firsts: dict[str, First]) -> list[Row]:
        """All engines get the same shapes, each as many as its time allows, in their usual form: to choose between two forms,
        they would be called before."""
        shapes = list(dict.fromkeys(case.unseen(rng) for _ in range(UNSEEN)))
        for engine in engines:
            first, engine.out = firsts[engine.name], None
            for dims in shapes:
                if not self.all_unseen and first.spent > UNSEEN_S and len(first.added) >= UNSEEN_MIN:
                    break
                try:
                    first.call(engine, engine.bind(case.inputs(rng, *dims)))
                except Exception:
                    break
        firsts = {name: first for name, first in firsts.items() if first.added}
        notes = ", ".join(
            f"{name}: {len(first.added)} shapes" for name, first in firsts.items() if len(first.added) < len(shapes)
        )
        out = []
        for what in ("added", "compile"):
            for metric, share in (("p50", 0.5), ("p98", 0.98), ("max", 1.0)):
                values = {
                    name: 1e6 * float(np.quantile(f.added if what == "added" else f.compiled, share))
                    for name, f in firsts.items()
                }
                out.append(
                    Row(
                        case.suite,
                        case.name,
                        f"{len(shapes)} new",
                        f"{what} {metric}",
                        "us",
                        values.pop("dvm", None),
                        values,
                        notes=notes,
                    )
                )
        return out


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
