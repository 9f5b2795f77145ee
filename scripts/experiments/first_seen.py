#!/usr/bin/env python3
"""What a shape that was never seen costs, against the same shape again, and against PyTorch eager and ONNX Runtime.

    python scripts/experiments/first_seen.py [--out results] [--shapes 200] [--peers torch,onnxruntime]

All engines get the same stream of all-different shapes of an elementwise chain, attention and an encoder layer; each shape is
called once (first) and then five times (steady: their median). Printed and plotted: p50, p99 and max of the first call, p50
of steady, and what the first call adds."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from output import Rows, arguments, tell, write

from benchmarks import cases, engines



CHOSEN = ("chain of 8", "attention, 8 heads", "encoder layer")


def shapes_of(case: cases.Case, number: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(7)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < number:
        found[case.unseen(rng)] = None
    return list(found)


def measure(number: int, peers: list[str], only: list[str]) -> Rows:
    rows: Rows = []
    chosen = [c for c in cases.CASES if c.unseen and (c.name in only if only else c.name in CHOSEN)]
    ready, absent = engines.engines(peers)
    for name, why in absent.items():
        print(f"{name}: absent ({why})")
    for case in chosen:
        rng = np.random.default_rng(0)
        weights = case.weights(rng)
        shapes = shapes_of(case, number)
        for engine in ready:
            tell(f"{case.name}: {engine.name}")
            try:
                engine.load(case, weights)
                engine.bind(case.inputs(rng, *case.unseen(rng)))()  # the plan, the session: not a matter of shapes
                first, steady = stream(engine, case, rng, shapes)
            except Exception as error:  # a peer that cannot do a case is left out, and that is said
                print(f"{case.name}: {engine.name}: {type(error).__name__}")
                continue
            added = np.maximum(first - steady, 0)
            rows.append({"case": case.name, "engine": engine.name, "shapes": len(shapes), "steady_p50_us": float(np.median(steady)),
                         **{f"first_{k}_us": float(np.quantile(first, q)) for k, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
                         **{f"added_{k}_us": float(np.quantile(added, q)) for k, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))},
                         "ratio_p50": float(np.median(first / steady))})  # fmt: skip
    return rows


def stream(engine: engines.Engine, case: cases.Case, rng: np.random.Generator, shapes: list) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of the first call at each shape, and of the later ones."""
    first, steady = [], []
    for dims in shapes:
        run = engine.bind(case.inputs(rng, *dims))
        first.append(once(run))
        steady.append(float(np.median([once(run) for _ in range(5)])))
    return np.array(first), np.array(steady)


def once(run: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - begin) / 1e3


def draw(axes: list, rows: Rows) -> None:
    for axis, case in zip(axes, dict.fromkeys(r["case"] for r in rows), strict=False):
        chosen = [r for r in rows if r["case"] == case]
        places = np.arange(len(chosen))
        for offset, key in zip((-0.3, -0.1, 0.1, 0.3), ("steady_p50_us", "first_p50_us", "first_p99_us", "first_max_us"), strict=True):
            axis.bar(places + offset, [r[key] for r in chosen], 0.19, label=key[:-3].replace("_", " "))
        axis.set(title=case, ylabel="us", yscale="log", xticks=places, xticklabels=[r["engine"] for r in chosen])
        axis.grid(alpha=0.3, axis="y")
    axes[0].legend()


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--shapes", type=int, default=200)
    parser.add_argument("--peers", default="torch,onnxruntime")
    parser.add_argument("--only", default=[], nargs="*", help="names of cases of benchmarks/cases.py")
    given = parser.parse_args()
    rows = measure(given.shapes, given.peers.split(","), given.only)
    tell("")
    for r in rows:
        print(f"{r['case']:24} {r['engine']:12} steady {r['steady_p50_us']:8.1f}  first p50 {r['first_p50_us']:8.1f} p99 {r['first_p99_us']:8.1f}"
              f" max {r['first_max_us']:8.1f}  added p50 {r['added_p50_us']:7.1f} p99 {r['added_p99_us']:7.1f}  first/steady {r['ratio_p50']:.2f}")  # fmt: skip
    write(given.out, "first_seen", rows, draw, max(1, len({r["case"] for r in rows})))


if __name__ == "__main__":
    main()
