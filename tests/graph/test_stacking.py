"""Which graphs may be run for several calls at once: the axis of the rows is followed through every operator, or the
graph refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dvm_rt import dtypes
from dvm_rt.graph.graph import Graph, Make, Node, evaluate, parameter
from dvm_rt.graph.stacking import NotStackable, may_trap, stacked_outputs
from dvm_rt.graph.symbols import Facts, symbol

ROWS, REST = symbol(0), symbol(1)


def graph(build: Callable[..., tuple], *shapes: tuple) -> Graph:
    facts = Facts()
    parameters = [parameter(i, shape, dtypes.float32) for i, shape in enumerate(shapes)]
    outputs = build(Make(facts), *parameters)
    return Graph.of(parameters, outputs if isinstance(outputs, tuple) else (outputs,), facts)


GOOD: dict[str, tuple[Callable, tuple, tuple]] = {  # builder, shapes, which are stacked
    "bias": (lambda op, x, b: op.add(op.tanh(x), b), ((ROWS, 8), (8,)), (0, None)),
    "a number each": (lambda op, x, b: op.multiply(x, b), ((ROWS, 8), (ROWS, 1)), (0, 0)),
    "product": (lambda op, x, w: op.matmul(x, w), ((ROWS, 8), (8, 5)), (0, None)),
    "product in a batch": (lambda op, x, w: op.matmul(x, w), ((ROWS, 3, 8), (ROWS, 8, 5)), (0, 0)),
    "product of a shared matrix": (lambda op, w, x: op.matmul(w, x), ((3, 8), (ROWS, 8, 5)), (None, 0)),
    "linear": (lambda op, x, w: op.linear(x, w), ((ROWS, 8), (5, 8)), (0, None)),
    "sum": (lambda op, x: (op.sum(x, axes=(1,), keepdims=False), op.max(x, axes=(1, 2), keepdims=True)), ((ROWS, 3, 8),), (0,)),
    "softmax": (lambda op, x: op.softmax(x, axis=1), ((ROWS, 8),), (0,)),
    "norm": (lambda op, x, w: op.rms_norm(x, w, eps=1e-6), ((ROWS, 8), (8,)), (0, None)),
    "there and back": (lambda op, x: op.permute_dims(op.tanh(op.permute_dims(x, axes=(2, 0, 1))), axes=(1, 2, 0)),
                       ((ROWS, 3, 8),), (0,)),
    "heads": (lambda op, x: op.permute_dims(op.reshape(x, shape=(ROWS, 3, 2, 4)), axes=(0, 2, 1, 3)), ((ROWS, 3, 8),), (0,)),
    "slices": (lambda op, x: op.index(x, entries=((None, None, None), (0, 4, None))), ((ROWS, 8),), (0,)),
    "one of each": (lambda op, x: op.index(x, entries=((None, None, None), -1)), ((ROWS, 3, 8),), (0,)),
    "joined": (lambda op, x, y: op.concat(x, y, axis=1), ((ROWS, 8), (ROWS, 3)), (0, 0)),
    "attention": (
        lambda op, q, k, v: op.attention(q, k, v, scale=None, causal=True, masked=-1e9, empty=0.0),
        ((ROWS, 2, 3, 4), (ROWS, 2, 5, 4), (ROWS, 2, 5, 4)), (0, 0, 0),
    ),
    "squeezed": (lambda op, x: op.squeeze(op.expand_dims(x, axes=(1,)), axes=(1,)), ((ROWS, 8),), (0,)),
    "another axis": (lambda op, x, y: op.permute_dims(op.add(op.permute_dims(x, axes=(1, 0)), y), axes=(1, 0)),
                     ((ROWS, 8), (8, ROWS)), (0, 1)),
    "first axis gone last": (lambda op, x: op.permute_dims(x, axes=(1, 0)), ((ROWS, 8),), (0,)),
    "grown": (lambda op, x, y: op.append(x, y, index=0), ((REST, ROWS, 4), (1, ROWS, 4)), (1, 1)),
    "shared alone": (lambda op, x, w: (op.tanh(x), op.exp(w)), ((ROWS, 8), (8,)), (0, None)),
}  # fmt: skip
BAD: dict[str, tuple[Callable, tuple, tuple, str]] = {
    "sum over rows": (lambda op, x: op.sum(x, axes=(0,), keepdims=True), ((ROWS, 8),), (0,), "reduces over the rows"),
    "softmax over rows": (lambda op, x: op.softmax(x, axis=0), ((ROWS, 8),), (0,), "goes along the rows"),
    "rows meet rows": (lambda op, x: op.matmul(x, op.permute_dims(x, axes=(1, 0))), ((ROWS, 8),), (0,), "combines"),
    "adds up over rows": (lambda op, x, w: op.matmul(op.permute_dims(x, axes=(1, 0)), w), ((ROWS, 8), (ROWS, 3)),
                          (0, None), "adds up"),
    "a shared value of as many rows": (lambda op, x, y: op.add(x, y), ((ROWS, 8), (ROWS, 8)), (0, None), "shared value"),
    "other axes": (lambda op, x, y: op.add(x, op.permute_dims(y, axes=(1, 0))), ((ROWS, REST), (REST, ROWS)), (0, 0),
                   "different axes"),
    "first row": (lambda op, x: op.index(x, entries=(0,)), ((ROWS, 8),), (0,), "picks rows"),
    "rows in reverse": (lambda op, x: op.index(x, entries=((None, None, -1),)), ((ROWS, 8),), (0,), "picks rows"),
    "one behind the other": (lambda op, x: op.concat(x, x, axis=0), ((ROWS, 8),), (0,), "joins along"),
    "all in a line": (lambda op, x: op.reshape(x, shape=(-1,)), ((ROWS, 8),), (0,), "takes the rows apart"),
    "how many there are": (lambda op, x: op.multiply(x, op.dimension(size=ROWS, dtype="float32")), ((ROWS, 8),),
                           (0,), "number of rows"),
    "grown along the rows": (lambda op, x, y: op.append(x, y, index=0), ((ROWS, 4), (ROWS, 4)), (0, 0), "joins along"),
    "sorted": (lambda op, x: op.sort(x, axis=1, descending=False), ((ROWS, 8),), (0,), "not known"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_rows_stay_apart(name: str) -> None:
    """What is said to be stacked is what each call gives alone, and what is shared is the same for all."""
    build, shapes, stacked = GOOD[name]
    axes = stacked_outputs(whole := graph(build, *shapes), stacked)
    rng, calls = np.random.default_rng(1), 3

    def values(shape: tuple, rows: int) -> np.ndarray:
        return rng.standard_normal([rows if n is ROWS else 5 if n is REST else n for n in shape]).astype(np.float32)

    def part(array: np.ndarray, axis: int | None, i: int) -> np.ndarray:
        return array if axis is None else array.take([i], axis)

    arrays = [values(shape, calls) for shape in shapes]
    together = evaluate(whole, arrays)
    for i in range(calls):
        alone = evaluate(whole, [part(a, axis, i) for a, axis in zip(arrays, stacked, strict=True)])
        for one, all_of_them, axis in zip(alone, together, axes, strict=True):
            np.testing.assert_allclose(part(all_of_them, axis, i), one, rtol=1e-12)
    assert any(axis is not None for axis in axes)


@pytest.mark.parametrize("name", BAD)
def test_rows_that_meet_are_refused(name: str) -> None:
    build, shapes, stacked, reason = BAD[name]
    with pytest.raises(NotStackable, match=reason):
        stacked_outputs(graph(build, *shapes), stacked)


def test_what_may_stop_a_launch() -> None:
    def taken(op: Make, x: Node, w: Node) -> Node:
        return op.take(w, op.astype(x, dtype="int32"))

    def clipped(low: int | None, high: int | None) -> Callable[[Make, Node, Node], Node]:
        return lambda op, x, w: op.take(w, op.clip(op.astype(x, dtype="int32"), low=low, high=high))

    assert may_trap(graph(taken, (ROWS,), (8, 4))) and not may_trap(graph(*GOOD["bias"][:1], *GOOD["bias"][1]))
    assert [may_trap(graph(clipped(*ends), (ROWS,), (8, 4))) for ends in ((0, 7), (-8, 7), (3, 3))] == [False] * 3
    assert [may_trap(graph(clipped(*ends), (ROWS,), (8, 4))) for ends in ((0, 8), (-9, 7), (None, 7), (0, None),
        (0, -9))] == [True] * 5
    assert may_trap(graph(clipped(0, 7), (ROWS,), (REST, 4))), "a table of any number of rows"
