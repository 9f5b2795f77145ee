"""Times the encoder and the verifier: python benchmarks/encode.py [--rounds N]

One line per fused kernel: words, bytes, then nanoseconds for evaluating the plan's sizes and encoding in C++ with another
shape each time, for the same call from Python, and for copying, verifying and loading the program. Each figure is the
median (and the least) of many short rounds on one thread. Small shapes stay in the cache, large ones get prefetch and
streaming stores."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests" / "native")]

from plans import FUSED, Case  # noqa: E402

from dvm_rt import _native  # noqa: E402
from dvm_rt.isa.program import parse  # noqa: E402

SHAPES = ((32, 64), (512, 768))
CALLS = 100  # in one round


def from_python(plan: _native.Plan, shape: tuple[int, int]) -> float:
    """Nanoseconds per call of Plan.encode, the mean of one round."""
    encode, shapes = plan.encode, [(shape[0] + i % 64, shape[1]) for i in range(CALLS)]
    begin = time.perf_counter_ns()
    for symbols in shapes:
        encode(symbols)
    return (time.perf_counter_ns() - begin) / CALLS


def measure(name: str, shape: tuple[int, int], rounds: int) -> str:
    """The line of one kernel and shape."""
    case = Case(2, stream=True)
    FUSED[name](case)
    plan = _native.Plan(case.build().to_bytes())
    program = plan.encode(shape)
    timed = {
        "encode": lambda: plan.time_encode(shape, CALLS, 0),
        "python": lambda: from_python(plan, shape),
        "verify": lambda: _native.verify_time(program, CALLS),
    }
    figures: dict[str, list[float]] = {what: [] for what in timed}
    for _ in range(rounds):
        for what, run in timed.items():
            figures[what].append(run())
    words = sum(len(s.words) for s in parse(program).sections)
    text = "".join(f"{statistics.median(ns):7.0f} ({min(ns):5.0f})" for ns in figures.values())
    return f"{name:10} {shape[0]:4}x{shape[1]:<4} {words:5} {len(program):6} {text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    print("kernel     shape     words  bytes   encode, ns   from Python        verify      median (least)")
    for shape in SHAPES:
        for name in FUSED:
            print(measure(name, shape, rounds), flush=True)


if __name__ == "__main__":
    main()
