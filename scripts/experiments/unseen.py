#!/usr/bin/env python3
"""What a graph that was never seen costs: a stream in which every request is another random small model.

    python scripts/experiments/unseen.py [--out results] [--requests 150]

A request is a new function of 6 to 16 operators (products, activations, norms, reductions, joins) over sizes of its own; it is
called, and its value read. `caller`: the caller plans each graph before it runs. `auto`: it runs on the quick tier at once, and a
worker makes its plan meanwhile, if there is one. Both get the same stream; the first tenth, in which the quick tier meets the
operators, is drawn but does not count. `five` is the time of its first five calls, one right after the other: what a
caller that comes back at once waits in all. Then it is called until it runs on its own plan (`calls`, of CALLS_MAX at
most; a worker at niceness +10 that shares its CPU needs longer for a plan than five calls last), and `steady` is the
best of ten calls after that. The bytes of all modes are compared."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from contextvars import copy_context

import numpy as np
from output import Rows, arguments, tell, write

import dvm_rt as dvm
from dvm_rt.fusion.fuser import forget_segments

MODES = {
    "inline, caller": {"inline": True, "encode": "caller"}, "inline, auto": {"inline": True, "encode": "auto"},
    "1 encoder, caller": {"encoders": 1, "encode": "caller"}, "1 encoder, auto": {"encoders": 1, "encode": "auto"},
}  # fmt: skip
Model = Callable[..., dvm.Array]
CALLS_MAX = 400
KINDS = ("first", "five", "steady")


def random_model(seed: int) -> tuple[Model, list[np.ndarray]]:
    """A model over (rows, d) and two weights, and its inputs."""
    rng = random.Random(seed)
    rows, width = rng.randint(2, 40), rng.choice((16, 24, 32, 48, 64))
    steps = [rng.randrange(10) for _ in range(rng.randint(6, 16))]
    numbers = np.random.default_rng(seed)
    inputs = [numbers.standard_normal(s, np.float32) for s in ((rows, width), (width, width), (width,))]

    def model(x: dvm.Array, w: dvm.Array, b: dvm.Array) -> dvm.Array:
        first = x
        for step in steps:
            if step == 0:
                x = dvm.tanh(x @ w * 0.25 + b)
            elif step == 1:
                x = dvm.layer_norm(x, b, b)
            elif step == 2:
                x = dvm.softmax(x, axis=-1)
            elif step == 3:
                x = x * dvm.sigmoid(x) + first
            elif step == 4:
                x = dvm.maximum(x, 0.0) - dvm.mean(x, axis=-1, keepdims=True)
            elif step == 5:
                x = dvm.gelu(x) * b
            elif step == 6:
                x = dvm.concat([x, first], axis=0)[: x.shape[0]]
            elif step == 7:
                x = x / (1.0 + dvm.max(dvm.abs(x), axis=-1, keepdims=True))
            elif step == 8:
                x = dvm.where(x > b, x, first * 0.5)
            else:
                x = dvm.exp(-dvm.square(x)) + x
        return x

    return model, inputs


def stream(requests: int) -> list[dict[str, float]]:
    """Microseconds of each request's calls, in the current runtime."""
    out = []
    for seed in range(requests):
        model, inputs = random_model(seed)
        function, given = dvm.function(model), [dvm.asarray(x) for x in inputs]
        times: list[float] = []
        value = called(function, given, times, 5)
        while len(times) < CALLS_MAX and not runs_on_its_plan(function, given, times):
            pass
        calls, later = len(times), list[float]()
        called(function, given, later, 10)
        out.append({"first_us": times[0], "five_us": sum(times[:5]), "calls": calls, "steady_us": min(later),
                    "bytes": value.tobytes()})
    return out


def called(function: Model, given: list[dvm.Array], times: list[float], often: int) -> np.ndarray:
    for _ in range(often):
        begin = time.perf_counter_ns()
        value = np.asarray(function(*given))
        times.append((time.perf_counter_ns() - begin) / 1e3)
    return value


def runs_on_its_plan(function: Model, given: list[dvm.Array], times: list[float]) -> bool:
    """One more call: whether it was one launch, and not one an operator."""
    before = dvm.stats()["quick_launches"]
    called(function, given, times, 1)
    return dvm.stats()["quick_launches"] == before


def in_runtime(options: dict[str, object], requests: int) -> tuple[list[dict], dict]:
    forget_segments()  # what planning has learned in another mode
    with dvm.Runtime(threads=1, **options):  # type: ignore[arg-type]
        return stream(requests), dvm.stats()


def measure(requests: int) -> Rows:
    rows: Rows = []
    expected: list[bytes] = []
    for name, options in MODES.items():
        tell(name)
        times, stats = copy_context().run(in_runtime, options, requests)
        got = [t["bytes"] for t in times]
        expected = expected or got
        counted = times[requests // 10 :]
        row = {"mode": name, "requests": len(counted), "same_bytes": got == expected, "plans_made": stats["plans_made"],
               "plans_by_workers": stats.get("plans_by_workers", 0), "plans_swapped": stats["plans_swapped"],
               "quick_launches": stats["quick_launches"], "quick_plans": stats["quick_plans"]}  # fmt: skip
        row["calls_p50"] = statistics.median(t["calls"] for t in counted)
        for kind in KINDS:
            values = sorted(t[f"{kind}_us"] for t in counted)
            row |= {f"{kind}_p50_us": statistics.median(values), f"{kind}_p99_us": values[len(values) * 99 // 100],
                    f"{kind}_max_us": values[-1]}
        rows.append({**row, "all_first_us": [t["first_us"] for t in times]})
    return rows


def report(rows: Rows) -> None:
    for r in rows:
        print(f"{r['mode']:18} first p50 {r['first_p50_us']:8.0f} p99 {r['first_p99_us']:8.0f} max {r['first_max_us']:8.0f} us"
              f"  five calls p50 {r['five_p50_us']:8.0f}  own plan in call {r['calls_p50']:4.0f}, then {r['steady_p50_us']:6.0f}"
              f"  plans {r['plans_made']:4} ({r['plans_by_workers']} by workers), {r['quick_plans']} of operators"
              f"{'' if r['same_bytes'] else '  OTHER BYTES'}")  # fmt: skip
    for caller, auto in zip(rows[::2], rows[1::2], strict=True):
        ratio = auto["first_p50_us"] / caller["first_p50_us"]
        print(f"{auto['mode']} / {caller['mode']}: time to first result {ratio:.2f} (aim: at most 0.5),"
              f" five calls {auto['five_p50_us'] / caller['five_p50_us']:.2f},"
              f" steady {auto['steady_p50_us'] / caller['steady_p50_us']:.2f} (aim: at most 1.1)")  # fmt: skip


def draw(axes: list, rows: Rows) -> None:
    for row in rows:
        axes[0].plot(np.array(row["all_first_us"]) / 1e3, marker=".", linewidth=0.6, label=row["mode"])
    axes[0].set(xlabel="request, each of another graph", ylabel="ms to the first result", yscale="log",
                title="a stream of unseen graphs")
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].margins(y=0.25)  # for the legend
    axes[0].legend(fontsize="small", ncols=2, loc="upper center")
    places = np.arange(len(rows))
    for offset, kind in zip((-0.25, 0, 0.25), KINDS, strict=True):
        axes[1].bar(places + offset, [r[f"{kind}_p50_us"] / 1e3 for r in rows], 0.24, label={"first": "first call",
            "five": "five calls in all", "steady": "a call on its own plan"}[kind])
    axes[1].set(ylabel="ms", yscale="log", xticks=places, title="the same request again (p50)")
    axes[1].set_xticklabels([str(r["mode"]).replace(", ", "\n") for r in rows])
    axes[1].margins(y=0.25)
    axes[1].legend(fontsize="small", ncols=3, loc="upper center")
    for axis in axes:
        axis.grid(alpha=0.3)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--requests", type=int, default=150, help="how many graphs")
    given = parser.parse_args()
    rows = measure(given.requests)
    tell("")
    report(rows)
    write(given.out, "unseen", rows, draw, 2)


if __name__ == "__main__":
    main()
