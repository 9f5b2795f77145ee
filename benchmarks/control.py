"""Branches and loops: `python -m benchmarks.control [--json FILE]`.

What the device takes for a branch and for an iteration, on the machine alone, and in functions with the smallest
bodies that there are (one kernel, and what a state costs); then two models whose path depends on data, against
PyTorch eager in the same run, structured (one launch) and as unmodified Python control flow around @dvm.function
bodies:

    early exit    a stack of layers of width 128 that stops when a token has settled
    converge      x = (x + b / x) / 2 over 10,000 numbers until nothing moves by more than 1e-5

Times are medians of runs that take turns."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import dvm_rt as dvm
from dvm_rt import _native, dtypes
from dvm_rt.isa.program import READ, ProgramBuilder

RUNS, ITERATIONS, BRANCHES = 30, 1000, 1000
WIDTH, LAYERS, TOLERANCE = 128, 24, 1e-5


def machine_costs() -> dict[str, float]:
    """Nanoseconds of an empty iteration and of a branch that is taken or not."""
    loop, branches, empty = ProgramBuilder(), ProgramBuilder(), ProgramBuilder()
    for program in (loop, branches, empty):
        program.add_arg(1, READ, dtypes.bool_)
    loop.loop(0, ITERATIONS)
    for _ in range(BRANCHES):
        branches.branch(0, 0)
    empty.jump(0)
    base, costs = 0.0, {}
    for name, program, count in (("launch", empty, 1), ("iteration", loop, ITERATIONS), ("branch", branches, BRANCHES)):
        ns = min(_native.Program(program.build()).time_run([np.array([True])], 20) for _ in range(40))
        costs[name] = (ns - base) / count
        base = base or ns
    return costs


def function_costs() -> dict[str, float]:
    """Nanoseconds of an iteration and of a branch with bodies of one number, in a function: the difference of two counts."""

    def loop(x, n):
        return dvm.while_loop(lambda i, x: i < n, lambda i, x: (i + 1, x * 0.5), (0, x))[1]

    def branches(x, n):
        for _ in range(n):
            x = dvm.cond(x > 0, lambda x: x * 0.5, lambda x: x + 1.0, x)
        return x

    x, costs = dvm.asarray(1.0), {}
    wholes = {
        "iteration of while_loop": lambda count: (dvm.function(loop), (x, dvm.asarray(np.int64(count)))),
        "iteration of scan": lambda count: (dvm.function(lambda x: dvm.scan(lambda c, _: (c * 0.5, c), x, None,
            length=count)), (x,)),
        "cond": lambda count: (dvm.function(lambda x: branches(x, count)), (x,)),
    }
    for name, whole in wholes.items():
        few, many = (20, 120) if name == "cond" else (100, 2100)
        times = []
        for count in (few, many):
            function, arguments = whole(count)
            function(*arguments)
            samples = []
            for _ in range(40):
                began = time.perf_counter_ns()
                function(*arguments)
                samples.append(time.perf_counter_ns() - began)
            times.append(min(samples))
        costs[name] = (times[1] - times[0]) / (many - few)
    return costs


def early_exit(weights: np.ndarray, torch: object) -> dict[str, Callable[[], object]]:
    """x = x + tanh(x W) / (2 + layer), until the mean of the change is small: some 8 layers of 24."""
    layers = [dvm.asarray(w) for w in weights]
    tensors = [torch.from_numpy(w) for w in weights]
    start = np.random.default_rng(1).standard_normal((1, WIDTH)).astype(np.float32)
    x0, t0 = dvm.asarray(start), torch.from_numpy(start)
    limit = 0.08

    def layer(i, x, w):
        step = dvm.tanh(x @ w) / (i + 2.0)
        return x + step, dvm.mean(dvm.abs(step))

    @dvm.function
    def structured(x, *ws):
        """Each layer inside of the branch that the one before it leaves open."""

        def rest(i, x):
            if i == len(ws):
                return x
            x, change = layer(float(i), x, ws[i])
            return dvm.cond(change > limit, lambda x: rest(i + 1, x), lambda x: x, x)

        return rest(0, x)

    @dvm.function
    def in_a_row(x, *ws):
        """One branch behind the other: all are looked at."""
        going = dvm.max(dvm.abs(x)) >= 0
        for i, w in enumerate(ws):
            x, change = dvm.cond(going, lambda x, w=w, i=i: layer(float(i), x, w), lambda x: (x, dvm.zeros(())), x)
            going = change > limit
        return x

    cell = dvm.function(layer)

    def python() -> object:
        x = x0
        for i, w in enumerate(layers):
            x, change = cell(float(i), x, w)
            if float(change) <= limit:
                break
        return np.asarray(x)

    def eager() -> object:
        x = t0
        with torch.no_grad():
            for i, w in enumerate(tensors):
                step = torch.tanh(x @ w) / (i + 2.0)
                x, change = x + step, step.abs().mean()
                if change.item() <= limit:
                    break
        return x.numpy()

    return {"structured": lambda: np.asarray(structured(x0, *layers)), "in a row": lambda: np.asarray(in_a_row(x0, *layers)),
            "python": python, "eager": eager}  # fmt: skip


def converge(n: int, torch: object) -> dict[str, Callable[[], object]]:
    start = np.random.default_rng(2).random(n).astype(np.float32) * 1000 + 1
    x0, t0 = dvm.asarray(start), torch.from_numpy(start)

    def step(x, b):
        new = (x + b / x) * 0.5
        return new, dvm.max(dvm.abs(new - x))

    @dvm.function
    def structured(b):
        def body(x, going):
            new, change = step(x, b)
            return new, change > TOLERANCE

        return dvm.while_loop(lambda x, going: going, body, (b, True), limit=1000)[0]

    cell = dvm.function(step)

    def python() -> object:
        x, change = x0, 1.0
        while change > TOLERANCE:
            x, moved = cell(x, x0)
            change = float(moved)
        return np.asarray(x)

    def eager() -> object:
        x, change = t0, 1.0
        with torch.no_grad():
            while change > TOLERANCE:
                new = (x + t0 / x) * 0.5
                change = (new - x).abs().max().item()
                x = new
        return x.numpy()

    return {"structured": lambda: np.asarray(structured(x0)), "python": python, "eager": eager}


def compare(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median microseconds of each; their results are held against each other first."""
    results = {name: np.asarray(run()) for name, run in runs.items()}
    np.testing.assert_allclose(results["structured"], results["eager"], rtol=1e-3, atol=1e-3)
    assert results["structured"].tobytes() == results["python"].tobytes()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(RUNS):
        for name, run in runs.items():
            run()  # its weights are where its own last run left them, not where another's did
            began = time.perf_counter()
            run()
            times[name].append(1e6 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    import torch

    torch.set_num_threads(1)
    report: dict[str, dict[str, float]] = {"machine, ns": machine_costs(), "functions, ns": function_costs()}
    for row in report.values():
        print(", ".join(f"{name} {ns:.1f} ns" for name, ns in row.items()))
    weights = np.random.default_rng(3).standard_normal((LAYERS, WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
    for name, runs in (("early exit", early_exit(weights, torch)), ("converge 10000", converge(10_000, torch))):
        row = report[name] = compare(runs)
        ratios = ", ".join(f"{one} {row['eager'] / row[one]:.1f}x eager" for one in row if one != "eager")
        print(f"{name}: " + ", ".join(f"{one} {us:.1f} us" for one, us in row.items()) + f": {ratios}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
