"""Fused against unfused: python benchmarks/fusion.py [--rounds N] [--plans] [--stacking] [--suite [NAME]]

--suite: every case of the benchmark suite (those whose name has NAME in it), in place of the subgraphs below; some minutes.
One line a subgraph and shape: kernels of the fused and of the unfused plan, microseconds of each program on one thread
(medians of alternating rounds, inline, program known), their ratio, and the bytes of activations that each kernel reads and
writes, summed; and what the cost model says of the fused one. A ratio above 1.03 is a lost row and is marked; the
exit status says how many there are.

--stacking: what it gains that independent kernels of different shapes share a launch. Microseconds a launch each, all in one
launch, and all in one on two threads: kernels too small to be cut then run beside each other. From Python, medians; the
launches are those of `_native.Program`, which cost less than calls of a function.

--plans: what planning costs instead (CPU milliseconds, least of several), from the graph to the plan's bytes."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from dvm_rt import _native  # noqa: E402
from dvm_rt.array.array import _wrap_node as wrap_node  # noqa: E402
from dvm_rt.array.tracing import Trace  # noqa: E402
from dvm_rt.dtypes import from_numpy  # noqa: E402
from dvm_rt.fusion.cost import costs  # noqa: E402
from dvm_rt.fusion.fuser import fuse  # noqa: E402
from dvm_rt.fusion.plan import Plan  # noqa: E402
from dvm_rt.graph.graph import Graph, Make, Node  # noqa: E402
from tests.fusion.running import graph_of, prepared  # noqa: E402

LOST = 1.03
SECONDS_MAX = 0.4  # of one row
ROUNDS_MIN = 3  # however long they take
PAIR_MAX_S = 0.02  # up to which a sample is two runs
Build = Callable[..., Node]


def attention(op: Make, q: Node, k: Node, v: Node) -> Node:
    return op.matmul(op.softmax(op.multiply(op.matmul(q, op.permute_dims(k, axes=(0, 2, 1))), 0.125), axis=2), v)


def feed_forward(op: Make, x: Node, up: Node, bias: Node, down: Node) -> Node:
    inner = op.gelu(op.add(op.matmul(x, up), bias), approximate="none")
    return op.layer_norm(op.add(x, op.matmul(inner, down)), eps=1e-5)


# name -> (graph, shapes of its parameters for each size)
SUITE: dict[str, tuple[Build, Callable[[int, int], list[tuple[int, ...]]]]] = {
    "chain of 3": (lambda op, x: op.tanh(op.add(op.multiply(x, 0.5), 1.0)), lambda m, n: [(m, n)]),
    "gelu": (lambda op, x: op.gelu(x, approximate="none"), lambda m, n: [(m, n)]),
    "residual, silu": (lambda op, x, y: op.silu(op.add(x, y)), lambda m, n: [(m, n), (m, n)]),
    "bias": (lambda op, x, b: op.relu(op.add(x, b)), lambda m, n: [(m, n), (n,)]),
    "softmax": (lambda op, x: op.softmax(x, axis=1), lambda m, n: [(m, n)]),
    "layer_norm": (lambda op, x, g, b: op.layer_norm(x, g, b, eps=1e-5), lambda m, n: [(m, n), (n,), (n,)]),
    "rms_norm of sum": (lambda op, x, y, g: op.rms_norm(op.add(x, y), g, eps=1e-5), lambda m, n: [(m, n), (m, n), (n,)]),
    "mean of square": (lambda op, x: op.mean(op.square(x), axes=(1,), keepdims=True), lambda m, n: [(m, n)]),
    "transposed, tanh": (lambda op, x: op.tanh(op.permute_dims(x, axes=(1, 0))), lambda m, n: [(m, n)]),
    "masked": (lambda op, x, m: op.where(op.greater(m, 0.0), x, -1.0), lambda m, n: [(m, n), (m, 1)]),
    "matmul, bias, gelu": (
        lambda op, x, w, b: op.gelu(op.add(op.matmul(x, w), b), approximate="none"),
        lambda m, n: [(m, n), (n, n), (n,)],
    ),
    "attention": (attention, lambda m, n: [(4, m, 64)] * 3),
    "feed forward": (feed_forward, lambda m, n: [(m, n), (n, 2 * n), (2 * n,), (2 * n, n)]),
}
SIZES = ((8, 64), (64, 384), (512, 384))


def moved_bytes(plan: Plan, symbols: list[int]) -> int:
    """Bytes of every buffer that a kernel reads or writes, once for each kernel."""
    values = plan.evaluate(symbols)
    return sum(values[plan.buffers[b].bytes] for kernel in plan.kernels for b in {a.buffer for a in kernel.args})


def measure(name: str, size: str, graph: Graph, arrays: list[np.ndarray], rounds: int) -> tuple[str, bool]:
    """The line of one graph and its inputs, and whether fusion lost. A row of few rounds is measured again before it is called
    lost: a quiet spell shows that it is not."""
    plans = [fuse(graph).plan, fuse(graph, fused=False).plan]
    if plans[0].to_bytes() == plans[1].to_bytes():
        return f"{name:28} {size:14} {len(plans[0].kernels):3} {len(plans[1].kernels):4}   the same plan", False
    runs, moved = [], []
    modelled = sum(cost.ns for cost in costs(plans[0], prepared(plans[0], arrays)[0]))
    for plan in plans:
        symbols, arguments, _ = prepared(plan, arrays)
        program = _native.Program(_native.Plan(plan.to_bytes()).encode(symbols))
        runs.append(lambda program=program, arguments=arguments: program.run(arguments))
        moved.append(moved_bytes(plan, symbols))
    begin = time.monotonic()
    runs[1]()
    pair = 1 + (time.monotonic() - begin < PAIR_MAX_S)
    for again in (1, 2, 3):
        times: list[list[float]] = [[], []]
        begin, left = time.monotonic(), rounds * again
        while left > 0 and (time.monotonic() - begin < SECONDS_MAX * again or left > (rounds - ROUNDS_MIN) * again):
            left -= 1
            for run, found in zip(runs, times, strict=True):
                started = time.perf_counter_ns()
                for _ in range(pair):
                    run()
                found.append((time.perf_counter_ns() - started) / pair / 1000)
        fused, alone = (statistics.median(t[1:]) for t in times)
        ratio = statistics.median(a / b for a, b in zip(times[0][1:], times[1][1:], strict=True))
        lost = ratio > LOST and min(times[0]) / min(times[1]) > LOST
        if not lost:
            break
    kernels = f"{len(plans[0].kernels):3} {len(plans[1].kernels):4}"
    times_us = f"{fused:10.1f} {alone:10.1f} {ratio:6.2f} {moved[0] / moved[1]:6.2f} {modelled / 1e3:10.1f}"
    line = f"{name:28} {size:14} {kernels} {times_us}"
    return line + (" LOST" if lost else ""), lost


def subgraphs(rounds: int) -> Iterator[tuple[str, bool]]:
    """The rows of SUITE."""
    for name, (build, shapes) in SUITE.items():
        for size in SIZES:
            arrays = [np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in shapes(*size)]
            yield measure(name, f"{size[0]}x{size[1]}", graph_of(build, arrays), arrays, rounds)


def suite(wanted: str, rounds: int) -> Iterator[tuple[str, bool]]:
    """The rows of the benchmark suite: every case and shape whose arrays are not too large to be run many times."""
    from benchmarks.cases import CASES
    from benchmarks.spaces import Dvm

    for case in CASES:
        for size, dims in case.shapes.items() if wanted in case.name else ():
            rng = np.random.default_rng(0)
            arrays = [*case.inputs(rng, *dims), *case.weights(rng)]
            with Trace() as trace:
                nodes = [trace.argument(from_numpy(a.dtype), a.ndim,
                                        sum((n == 1) << d for d, n in enumerate(a.shape))) for a in arrays]
                result = case.function(Dvm(), *(wrap_node(n, None) for n in nodes))
                graph = trace.graph([one._node for one in (result if isinstance(result, tuple) else (result,))])
            yield measure(case.name, size, graph, arrays, rounds)


KINDS: dict[str, Build] = {
    "softmax": lambda op, x: op.softmax(x, axis=1),
    "norm": lambda op, x: op.layer_norm(x, eps=1e-5),
    "gelu": lambda op, x: op.gelu(x, approximate="none"),
    "square": lambda op, x: op.multiply(op.add(x, 0.5), x),
}
STACKS: dict[str, list[tuple[str, int, int]]] = {  # name -> kernels: (what, rows, columns)
    "8 tiny ones": [
        ("square", 4, 64), ("gelu", 2, 96), ("square", 8, 40), ("norm", 2, 64), ("softmax", 3, 48), ("gelu", 1, 200),
        ("square", 6, 72),
        ("norm", 1, 128),
    ],
    "8 of some us": [
        ("softmax", 33, 384), ("norm", 40, 256), ("gelu", 24, 512), ("square", 90, 300), ("softmax", 50, 130), ("norm", 64, 200),
        ("gelu", 17, 768), ("square", 31, 1000),
    ],
    "3 of some us, 1 larger": [("softmax", 33, 384), ("norm", 300, 768), ("gelu", 24, 512), ("softmax", 50, 130)],
}  # fmt: skip


def stacked(kernels: list[tuple[str, int, int]]) -> tuple[Graph, list[np.ndarray]]:
    """The graph of kernels that have nothing to do with each other, and its inputs."""
    arrays = [np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, (_, *shape) in enumerate(kernels)]
    return graph_of(lambda op, *xs: tuple(KINDS[what](op, x) for (what, *_), x in zip(kernels, xs, strict=True)), arrays), arrays


def stacking(rounds: int) -> None:
    """The rows of STACKS."""
    print(f"{'kernels':24} {'launches':>8} {'each us':>9} {'one us':>9} {'gain':>6}   "
          f"in C++: {'1 thread':>9} {'2 threads':>9} {'gain':>6}")
    for name, kernels in STACKS.items():
        programs = []
        for part in (kernels, *([one] for one in kernels)):
            graph, arrays = stacked(part)
            plan = fuse(graph).plan
            symbols, arguments, _ = prepared(plan, arrays)
            programs.append((_native.Program(_native.Plan(plan.to_bytes()).encode(symbols)), arguments))
        (whole, arguments), *apart = programs
        times: list[list[float]] = [[], [], []]
        for _ in range(rounds * 8):
            begin = time.perf_counter_ns()
            for program, own in apart:
                program.run(own)
            middle = time.perf_counter_ns()
            whole.run(arguments)
            times[0].append((middle - begin) / 1e3)
            times[1].append((time.perf_counter_ns() - middle) / 1e3)
        alone = [whole.time_run(arguments, 200) for _ in range(rounds)]
        both = [whole.time_run(arguments, 200, threads=2) for _ in range(rounds)]
        each, one = (statistics.median(t) for t in times[:2])
        native = f"{min(alone) / 1e3:17.1f} {min(both) / 1e3:9.1f} {min(alone) / min(both):6.2f}"
        print(f"{name:24} {len(apart):8} {each:9.1f} {one:9.1f} {each / one:6.2f} {native}")


def planning(rounds: int) -> None:
    """What the plan of each subgraph, and of networks of them, costs."""
    for layers in (1, 6, 24):
        size = (64, 384)
        one = SUITE["feed forward"][1](*size)

        def deep(op: Make, *arrays: Node, layers: int = layers) -> Node:
            x = arrays[0]
            for _ in range(layers):
                x = feed_forward(op, x, *arrays[1:])
            return x

        graph = graph_of(deep, [np.zeros(shape, np.float32) for shape in one])
        fused = least(lambda graph=graph: fuse(graph).plan.to_bytes(), rounds)
        print(f"{layers:3} layers of feed forward, {len(graph.nodes):4} nodes: {fused:7.2f} ms fused")


def least(run: Callable[[], object], rounds: int) -> float:
    """CPU milliseconds, the least of several."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.thread_time()
        run()
        best = min(best, time.thread_time() - begin)
    return best * 1e3


def main() -> int:
    """Prints the table; the number of lost rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--stacking", action="store_true")
    parser.add_argument("--suite", nargs="?", const="", default=None)
    arguments = parser.parse_args()
    if arguments.plans:
        planning(arguments.rounds)
        return 0
    if arguments.stacking:
        stacking(arguments.rounds)
        return 0
    print(f"{'subgraph':28} {'size':14} {'kernels':>8} {'fused us':>10} {'unfused us':>10} {'ratio':>6} {'bytes':>6} "
          f"{'model us':>10}")
    rows, begin = [], time.monotonic()
    for row in subgraphs(arguments.rounds) if arguments.suite is None else suite(arguments.suite, arguments.rounds):
        rows.append(row)
        print(row[0], flush=True)
    lost = [line for line, lost in rows if lost]
    took_s = time.monotonic() - begin
    said = f"{len(rows)} rows in {took_s:.0f} s, {len(lost)} lost (fused slower than unfused by more than {LOST - 1:.0%})"
    print(said, *lost, sep="\n")
    return len(lost)


if __name__ == "__main__":
    sys.exit(main())
