"""The cost model: counts that can be worked out by hand, and the bytes that a fused encoder layer moves."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.fusion.cost import costs
from dvm_rt.fusion.fuser import Fused, fuse
from dvm_rt.graph.graph import Make, Node
from dvm_rt.graph.symbols import evaluate

from benchmarks import cases
from benchmarks.spaces import Dvm
from dvm_rt.array.function import planned_for
from tests.fusion.running import graph_of, normal

WIDTH, HEADS = 256, 8


def sizes(fused: Fused, arrays: list[np.ndarray]) -> list[int]:
    return [arrays[s.parameter].shape[s.dim] for s in fused.plan.symbols]


def of(build, *arrays: np.ndarray) -> list:
    fused = fuse(graph_of(build, list(arrays)))
    return costs(fused.plan, sizes(fused, list(arrays)))


def test_elementwise_counts_each_number_once() -> None:
    x, b = normal(40, 30), normal(30)
    (cost,) = of(lambda op, x, b: op.tanh(op.add(x, b)), x, b)
    assert (cost.flops, cost.bytes) == (2 * x.size, 2 * x.nbytes + b.nbytes)


def test_a_row_that_is_read_for_every_row_is_moved_once() -> None:
    x, row = normal(40, 30), normal(40, 1)
    (cost,) = of(lambda op, x, row: op.multiply(x, row), x, row)
    assert cost.bytes == 2 * x.nbytes + row.nbytes


def test_a_slice_moves_what_it_reads() -> None:
    x = normal(40, 30)
    (cost,) = of(lambda op, x: op.exp(op.index(x, entries=((0, 10, 1),))), x)
    assert cost.bytes == 2 * 10 * 30 * 4


def test_a_product_is_two_operations_for_each_step() -> None:
    a, b = normal(40, 64), normal(64, 96)
    (cost,) = of(lambda op, a, b: op.relu(op.matmul(a, b)), a, b)
    assert cost.flops == 2 * 40 * 64 * 96 + 40 * 96
    assert cost.bytes == a.nbytes + b.nbytes + 40 * 96 * 4


def test_the_model_grows_with_the_work() -> None:
    def build(op: Make, x: Node) -> Node:
        return op.softmax(x, axis=1)

    times = [of(build, normal(n, 64))[0].ns for n in (1, 10, 1000)]
    assert times == sorted(times) and times[2] > 20 * times[0]


def test_saved_bytes_are_those_of_the_edges() -> None:
    x = normal(8, 16)
    graph = graph_of(lambda op, x: op.tanh(op.exp(op.sin(x))), [x])
    edges = fuse(graph, reasons=True).report.edges
    values = graph.symbol_values([x.shape])
    saved = {key[:2]: evaluate(size, values) for key, size in edges.saved.items()}
    assert saved == {("sin", "exp"): 2 * x.nbytes, ("exp", "tanh"): 2 * x.nbytes}  # never written, never read
    assert evaluate(edges.saved_bytes, values) == 4 * x.nbytes
    assert f"saves {8}*s0*s1 bytes" in edges.text()


def test_explain_prints_the_cost_of_the_kernels_and_of_the_launch() -> None:
    called = dvm.function(lambda x, w: dvm.softmax(dvm.matmul(x, w), axis=-1))
    x, w = normal(10, 64), normal(64, 32)
    text = dvm.explain(called, x, w)
    (cost, _) = of(lambda op, x, w: op.softmax(op.matmul(x, w), axis=1), x, w)
    assert f"cost of kernel 0: {cost.text()}" in text
    assert "cost of the launch: 2 kernels, " in text
    assert text.startswith("s0 = dimension 0 of argument 0")
    assert f"workspace: {10 * 32 * 4} bytes, 1 values in 1 slots" in text
    assert f"packed once: 1 arrays, {64 * 32 * 4} bytes" in text


@pytest.mark.parametrize("shape", [(1, 8, WIDTH), (4, 64, WIDTH), (8, 256, WIDTH)])
def test_bytes_of_a_fused_encoder_layer(shape: tuple[int, int, int]) -> None:
    """At most 1.1 times what a hand-written version moves: weights once, and what its seven kernels read and write."""
    case = next(c for c in cases.CASES if c.name == "encoder layer")
    weights = case.weights(np.random.default_rng(0))
    arrays = [normal(*shape), *weights]
    space = Dvm()
    planned = planned_for(dvm.function(lambda *a: case.function(space, *a)), tuple(arrays), {})[1]
    found = costs(planned.fused.plan, sizes(planned.fused, arrays))
    activations = shape[0] * shape[1] * WIDTH * 4
    # qkv 1 -> 3, attention 3 -> 1, out + residual 2 -> 1, norm 1 -> 1, up + gelu 1 -> 4, down + residual 5 -> 1, norm 1 -> 1
    by_hand = 26 * activations + sum(w.nbytes for w in weights)
    assert len(found) <= 8
    assert sum(c.bytes for c in found) <= 1.1 * by_hand
