#!/usr/bin/env python3
"""What a shape that was never seen costs, against the same shape again, and against PyTorch eager, Inductor and ONNX Runtime.

    python scripts/experiments/first_seen.py [--out results] [--shapes 200] [--peers torch,inductor,inductor-dyn,onnxruntime]

All engines get the same stream of all-different shapes: an elementwise chain of small and of large matrices, an
encoder layer, and an encoder of MiniLM's size over sentences of all lengths. Each shape is called once on new inputs
(first), five times more on them (steady: their median), and once on other new inputs (seen): these are not in the
caches either, nor is our code, so first / seen is what the shape costs, and first / steady what a stream of requests
of new shapes looks like beside a loop over one. `dvm, 1 encoder`: through the device process, encode="auto"; every
value is read. An engine that compiles for seconds gets BUDGET_S a case and as many shapes as that allows (at least
three); rows say how
many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from output import Rows, arguments, tell, write

import dvm_rt as dvm
from benchmarks import cases, engines

BUDGET_S, SHAPES_MIN = 8.0, 3
CASES = {"chain of 8": "chain of 8", "encoder layer": "encoder layer",
         "MiniLM's size (6 layers, 384, 12 heads)": "MiniLM sentence"}
SIZES = {"chain, about 32x64": (32, 64), "chain, about 512x768": (512, 768)}


def chosen() -> Iterator[cases.Case]:
    for case in cases.CASES:
        if case.name == "chain of 8":
            for name, (rows, columns) in SIZES.items():
                yield replace(case, name=name, unseen=_near(rows, columns))
        elif case.name in CASES:
            yield replace(case, name=CASES[case.name])


def _near(rows: int, columns: int) -> Callable[[np.random.Generator], tuple[int, int]]:
    """Shapes from half to one and a half of this one."""
    return lambda rng: (int(rng.integers(rows // 2, rows * 3 // 2)), int(rng.integers(columns // 2, columns * 3 // 2)))


def shapes_of(case: cases.Case, number: int) -> list[tuple[int, ...]]:
    rng, found = np.random.default_rng(7), dict[tuple[int, ...], None]()
    for _ in range(20 * number):  # there may be fewer
        if len(found) < number:
            found[case.unseen(rng)] = None
    return list(found)


def measure(number: int, peers: list[str]) -> Rows:
    rows: Rows = []
    ready, absent = engines.engines(["dvm", *peers])
    for name, why in absent.items():
        print(f"{name}: absent ({why})")
    for case in chosen():
        shapes = shapes_of(case, number)
        for engine in ready:
            settings = {"dvm, inline": {"inline": True},
                        "dvm, 1 encoder": {"encoders": 1}} if engine.name == "dvm" else {engine.name: None}
            for name, options in settings.items():
                tell(f"{case.name}: {name}")
                with nullcontext() if options is None else dvm.Runtime(threads=1, **options):  # type: ignore[arg-type]
                    try:
                        times = stream(engine, case, shapes)
                    except Exception as error:  # a peer that cannot do a case is left out, and that is said
                        print(f"{case.name}: {name}: {type(error).__name__}")
                        continue
                rows.append({"case": case.name, "engine": name, **summary(times)})
    return rows


def stream(engine: engines.Engine, case: cases.Case, shapes: list) -> np.ndarray:
    """Microseconds of (first, steady, seen) of each shape; of as many shapes as the budget allows."""
    rng = np.random.default_rng(0)
    engine.load(case, case.weights(rng))

    def once(run: Callable[[], object]) -> float:
        begin = time.perf_counter_ns()
        engine.result(run())
        return (time.perf_counter_ns() - begin) / 1e3

    beyond = [max(sizes) + (len(set(sizes)) > 1) for sizes in zip(*shapes, strict=True)]  # none of these shapes
    before = engine.bind(case.inputs(rng, *beyond))
    for _ in range(200 if engine.name == "dvm" else 3):  # the plan, the session, memory: not a matter of shapes
        once(before)
    found, end = [], time.perf_counter() + BUDGET_S
    for dims in shapes:
        run = engine.bind(case.inputs(rng, *dims))
        first, steady = once(run), float(np.median([once(run) for _ in range(5)]))
        found.append((first, steady, once(engine.bind(case.inputs(rng, *dims)))))
        if time.perf_counter() > end and len(found) >= SHAPES_MIN:
            break
    return np.array(found)


def summary(times: np.ndarray) -> dict[str, object]:
    first, steady, seen = times.T
    added = np.maximum(first - steady, 0)
    middle = np.median(times, axis=0)
    return {"shapes": len(times), "first_p50_us": middle[0], "steady_p50_us": middle[1], "seen_p50_us": middle[2],
            "first_p99_us": float(np.quantile(first, 0.99)), "first_max_us": float(first.max()),
            "seen_p99_us": float(np.quantile(seen, 0.99)),
            "added_p50_us": float(np.median(added)), "added_p99_us": float(np.quantile(added, 0.99)),
            "ratio_steady": float(middle[0] / middle[1]), "ratio_seen": float(middle[0] / middle[2])}  # fmt: skip


def draw(axes: list, rows: Rows) -> None:
    for axis, case in zip(axes, dict.fromkeys(r["case"] for r in rows), strict=False):
        those = [r for r in rows if r["case"] == case]
        places = np.arange(len(those))
        for offset, key in zip((-0.3, -0.1, 0.1, 0.3), ("steady_p50_us", "seen_p50_us", "first_p50_us",
                                                        "first_p99_us"), strict=True):
            axis.bar(places + offset, [r[key] for r in those], 0.19, label=key[:-3].replace("_", " "))
        axis.set(title=case, ylabel="us", yscale="log")
        axis.set_xticks(places, [str(r["engine"]).replace(", ", "\n") for r in those], fontsize="x-small", rotation=30)
        axis.grid(alpha=0.3, axis="y")
        axis.margins(y=0.4)
    axes[0].legend(fontsize="small", ncols=2, loc="upper left")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--shapes", type=int, default=200, help="of each case, as many as take some seconds")
    parser.add_argument("--peers", default="torch,inductor,inductor-dyn,onnxruntime", help="engines to compare with")
    given = parser.parse_args()
    rows = measure(given.shapes, [p for p in given.peers.split(",") if p])
    tell("")
    for r in rows:
        print(f"{r['case']:22} {r['engine']:14} steady {r['steady_p50_us']:8.1f}  seen {r['seen_p50_us']:8.1f}"
              f"  first p50 {r['first_p50_us']:9.1f} p99 {r['first_p99_us']:10.1f}"
              f"  added p50 {r['added_p50_us']:9.1f} p99 {r['added_p99_us']:10.1f}"
              f"  first / steady {r['ratio_steady']:6.2f}  / seen {r['ratio_seen']:6.2f}  ({r['shapes']} shapes)")  # fmt: skip
    write(given.out, "first_seen", rows, draw, max(1, len({r["case"] for r in rows})))


if __name__ == "__main__":
    main()
