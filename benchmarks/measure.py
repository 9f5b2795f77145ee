"""How things are timed, the same for all engines.

Rules: every result is held against NumPy float64 before anything is timed. Engines take turns, and who begins rotates, so that a
slow spell of the machine hits all. A sample is as many runs as take SAMPLE_S; what counts is the median of the samples, with the
quartiles beside it. Warm-up is outside. One thread, pinned to one CPU. `added` is what a first call at a shape never seen takes
longer than its repetition, by the clock: compilation, encoding, fresh memory, a page fault, whatever happens then. `compile` is
the same for the peers; for dvm_rt what its own counters say that encoding and verifying took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from benchmarks import spaces
from benchmarks.cases import Arrays, Case, Dims
from benchmarks.engines import Engine, Run
from benchmarks.limits import Limits

SAMPLE_S, SAMPLES, CASE_S = 1e-3, 15, 4.0
UNSEEN = 50
SLOW_COMPILERS = {"inductor": 3, "inductor-dyn": 3, "jax": 10, "mindspore": 10}  # shapes never seen that they are given, unless all are asked for


@dataclass(slots=True)
class Row:
    """One line of a table. `metric`: time, added p50 / p98 / max, bytes. `dvm`, `peers`: in `unit`; `limit`: the physical one."""

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
        return min(self.peers.items(), key=lambda item: item[1], default=None)

    @property
    def ratio(self) -> float | None:
        """The best peer's value over ours: above 1 we are ahead."""
        return self.best[1] / self.dvm if self.best and self.dvm else None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Wrong(Exception):
    """A result that is not what float64 says."""


def check(case: Case, engine: Engine, run: Run, arrays: Arrays) -> None:
    """Raises Wrong where an engine's result differs from float64 by more than the case allows, relative to the largest."""
    wanted = np.asarray(case.function(spaces.NumPy, *(a.astype(np.float64) for a in arrays)))
    got = engine.result(run()).astype(np.float64)
    if got.shape != wanted.shape:
        raise Wrong(f"shape {got.shape}, allowed {wanted.shape}")
    error = np.max(np.abs(got - wanted), initial=0.0) / max(np.max(np.abs(wanted), initial=0.0), 1.0)
    if not error <= case.tolerance:
        raise Wrong(f"error {error:.2e}, allowed {case.tolerance:.0e}")


Timer = Callable[[int], float]  # so many runs -> seconds


def take_turns(runs: dict[str, Timer]) -> dict[str, list[float]]:
    """Seconds a run, samples of every engine, in turns."""
    repeats = {}
    for name, seconds in runs.items():
        seconds(1)
        least = min(seconds(1) for _ in range(3))
        repeats[name] = max(1, int(SAMPLE_S / max(least, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, end = list(runs), time.perf_counter() + CASE_S
    for turn in range(SAMPLES):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            samples[name].append(runs[name](repeats[name]) / repeats[name])
        if time.perf_counter() > end and turn >= 2:
            break
    return samples


def _summary(samples: dict[str, list[float]]) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    medians = {name: 1e6 * statistics.median(times) for name, times in samples.items()}
    spread = {name: tuple(1e6 * float(q) for q in np.quantile(times, (0.25, 0.75))) for name, times in samples.items()}
    return medians, spread


def time_case(case: Case, engines: list[Engine], limits: Limits | None, tell: Callable[[str], None], all_unseen: bool) -> list[Row]:
    """Rows of one case: steady times at its shapes, and what a shape never seen adds."""
    rng = np.random.default_rng(0)
    weights, ready, notes = case.weights(rng), [], []
    for engine in engines:
        if engine.name in case.absent:
            continue
        try:
            engine.load(case, weights)
            ready.append(engine)
        except LookupError:
            continue
        except Exception as error:  # a peer that cannot do a case is a note in the table, not the end of the run
            notes.append(f"{engine.name}: {_short(error)}")
    rows = []
    for label, dims in case.shapes.items():
        tell(f"{case.suite}: {case.name} {label}")
        inputs, runs, wrong = case.inputs(rng, *dims), {}, []
        for engine in ready:
            try:
                run = engine.bind(inputs)
                check(case, engine, run, [*inputs, *weights])
                runs[engine.name] = partial(engine.seconds, run)
            except Exception as error:
                wrong.append(f"{engine.name}: {_short(error)}")
        medians, spread = _summary(take_turns(runs))
        limit = 1e6 * limits.seconds(_or_zero(case.moved, dims), _or_zero(case.flops, dims)) if limits and (case.moved or case.flops) else None
        ours = medians.pop("dvm", None)
        rows.append(Row(case.suite, case.name, label, "time", "us", ours, medians, limit, spread, "; ".join(notes + wrong)))
    if case.unseen:
        tell(f"{case.suite}: {case.name}, shapes never seen")
        rows += _unseen(case, ready, rng, all_unseen)
    return rows


def _or_zero(of: Callable[..., float] | None, dims: Dims) -> float:
    return of(*dims) if of else 0.0


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"


def _unseen(case: Case, engines: list[Engine], rng: np.random.Generator, all_unseen: bool) -> list[Row]:
    """What the first call at a new shape takes beyond a repetition; all engines get the same shapes."""
    shapes = list(dict.fromkeys(case.unseen(rng) for _ in range(UNSEEN)))
    added: dict[str, list[float]] = {}
    compiled: dict[str, list[float]] = {}
    for engine in engines:
        count = len(shapes) if all_unseen else SLOW_COMPILERS.get(engine.name, len(shapes))
        for dims in shapes[:count]:
            try:
                run, before = engine.bind(case.inputs(rng, *dims)), engine.compiled_s()
                first, after = engine.seconds(run, 1), engine.compiled_s()
                again = statistics.median(engine.seconds(run, 1) for _ in range(5))
            except Exception:
                break
            beyond = max(first - again, 0.0)
            added.setdefault(engine.name, []).append(1e6 * beyond)
            compiled.setdefault(engine.name, []).append(1e6 * (beyond if before is None else after - before))
    notes = ", ".join(f"{name}: {len(times)} shapes" for name, times in added.items() if len(times) < len(shapes))
    out = []
    for what, of in (("added", added), ("compile", compiled)):
        for metric, share in (("p50", 0.5), ("p98", 0.98), ("max", 1.0)):
            values = {name: float(np.quantile(times, share)) for name, times in of.items()}
            out.append(Row(case.suite, case.name, f"{len(shapes)} new", f"{what} {metric}", "us", values.pop("dvm", None), values, notes=notes))
    return out
