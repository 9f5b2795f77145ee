"""Graphs over all dtypes: what a plan means (NumPy), what runs (native), and what NumPy gives for the graph.

Integers and bools are exact; floats are rounded by each operator, so fused and unfused have the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import dtypes
from dvm_rt.dtypes import DTYPES, DType, bool_
from dvm_rt.fusion.fuser import fuse
from dvm_rt.graph.graph import Graph, Make, Node, evaluate, parameter
from dvm_rt.graph.operators import OPERATORS
from dvm_rt.graph.symbols import Facts, symbol
from tests.fusion import plan_meaning
from tests.fusion.random_dtypes import names_for, random_graph, values
from tests.fusion.running import run_plan


def graph_of(build, given: list[tuple[DType, tuple[int, ...]]]) -> Graph:
    """The graph of build(op, *parameters) over symbols, for parameters of these dtypes."""
    facts, count, parameters = Facts(), 0, []
    for index, (dtype, shape) in enumerate(given):
        sizes = []
        for n in shape:
            sizes.append(1 if n == 1 else symbol(count))
            count += n != 1
        parameters.append(parameter(index, tuple(sizes), dtype))
    made = build(Make(facts), *parameters)
    return Graph.of(parameters, made if isinstance(made, tuple) else (made,), facts)


def check(build, given: list[tuple[DType, tuple[int, ...]]], arrays: list[np.ndarray], exact: bool = True, rtol: float = 0.0):
    """Fused, unfused, run and understood: the same bytes; and what NumPy gives."""
    graph = graph_of(build, given)
    fused, alone = fuse(graph), fuse(graph, fused=False)
    got = run_plan(fused.plan, arrays)
    for number, (a, b, c, want, node) in enumerate(
        zip(got, run_plan(alone.plan, arrays), plan_meaning.evaluate(fused.plan, arrays), evaluate(graph, arrays),
            graph.outputs, strict=True)
    ):
        said = f"output {number}: {node}\n{graph.dump()}\n{fused.report.text()}"
        assert a.tobytes() == b.tobytes(), f"fused is not unfused: {said}"
        if exact:
            np.testing.assert_array_equal(_comparable(a, node.dtype), _comparable(c, node.dtype), said)
        if exact and node.dtype.kind != "f":
            np.testing.assert_array_equal(a, want.astype(node.dtype.numpy), said)
        elif rtol:
            np.testing.assert_allclose(dtypes.from_storage(a, node.dtype), want, rtol, rtol, err_msg=said)
    return fused


def _comparable(stored: np.ndarray, dtype: DType) -> np.ndarray:
    return dtypes.from_storage(stored, dtype) if dtype.kind == "f" else stored


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_operator_in_every_dtype(dtype: DType) -> None:
    rng = np.random.default_rng(1)
    for name in names_for(dtype):
        count = {"where": 3}.get(name, 2)
        given = [(bool_, (5, 131))] * (name == "where") + [(dtype, (5, 131)), (dtype, (131,))]
        given = given[: len(given) if count > 1 else 1]
        arrays = [values(d, shape, rng) for d, shape in given]

        def build(op: Make, *parameters: Node, name: str = name) -> tuple[Node, ...]:
            result = getattr(op, name)(*parameters[: OPERATORS[name].inputs])
            rounded = result.dtype is dtype is not bool_  # seen by another operator before it is stored
            return result, op.maximum(result, parameters[-1]) if rounded else op.copy(result)

        check(build, given, arrays)


@pytest.mark.parametrize("wanted", DTYPES, ids=str)
@pytest.mark.parametrize("given", DTYPES, ids=str)
def test_conversions(given: DType, wanted: DType) -> None:
    stored = values(given, (3, 140), np.random.default_rng(2))
    if given.kind == "f":
        edges = [0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 127.5, -128.5, 255.9, 3e4, -4e4, 7e4, 3e9, -3e9, 1e19, -1e19,
                 np.inf, -np.inf, np.nan]
        stored[0, : len(edges)] = dtypes.to_storage(np.array(edges), given)
    check(lambda op, x: op.astype(x, dtype=wanted.name), [(given, (3, 140))], [stored])
    check(lambda op, x: op.astype(op.copy(x), dtype=wanted.name), [(given, (3, 140))], [stored])
    check(lambda op, x: op.copy(op.permute_dims(op.astype(x, dtype=wanted.name), axes=(1, 0))), [(given, (3, 140))], [stored])


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reductions(name: str, dtype: DType) -> None:
    if dtype is bool_ and name in ("sum", "prod"):
        return
    stored = values(dtype, (7, 130), np.random.default_rng(3))
    for axes in ((0,), (1,), (0, 1)):
        check(lambda op, x, axes=axes: getattr(op, name)(x, axes=axes, keepdims=False), [(dtype, (7, 130))],
              [stored], dtype.kind != "f")
        build = lambda op, x, axes=axes: op.maximum(getattr(op, name)(x, axes=axes, keepdims=True), x)  # noqa: E731
        if dtype is not bool_:
            check(build, [(dtype, (7, 130))], [stored], dtype.kind != "f")


@pytest.mark.parametrize("seed", range(150))
def test_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    picked = tuple(DTYPES[i] for i in rng.choice(len(DTYPES), 2, replace=False))
    shape = (int(rng.choice([1, 2, 5])), int(rng.choice([1, 3, 130])))
    given = [(bool_, shape), *((d, shape) for d in picked), *((d, shape[1:]) for d in picked)]
    check(random_graph(seed, 14), given, [values(d, s, rng) for d, s in given])
