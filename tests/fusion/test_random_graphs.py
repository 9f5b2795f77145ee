"""Random graphs: fused == unfused bit for bit, near their meaning in float64, one plan for all shapes."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt.fusion.fuser import fuse
from dvm_rt.fusion.plan import Plan
from dvm_rt.graph.graph import Graph
from tests.fusion.random_graphs import any_operators, random_graph, shapes_for
from tests.fusion.running import check, graph_of, run_plan

SIZES = ((2, 3, 5, 7), (3, 4, 2, 2), (2, 17, 130, 33))


def arrays_for(seed: int, sizes: tuple[int, int, int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes_for(*sizes)]


@pytest.mark.parametrize("seed", range(60))
def test_fused_is_unfused_and_right(seed: int) -> None:
    check(random_graph(seed, 3 + seed % 25), arrays_for(seed, SIZES[seed % 3]), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("seed", range(100, 110))
def test_one_plan_serves_every_shape(seed: int) -> None:
    build = random_graph(seed, 20)
    graph = graph_of(build, arrays_for(seed, SIZES[0]))
    fused, alone = fuse(graph).plan, fuse(graph, fused=False).plan
    for sizes in (*SIZES, (5, 2, 3, 4), (2, 2, 0, 3), (0, 3, 2, 2)):
        arrays = arrays_for(seed, sizes)
        for a, b in zip(run_plan(fused, arrays), run_plan(alone, arrays), strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("seed", range(300, 330))
def test_every_operator_has_the_same_bits_in_any_kernel_and_shape(seed: int) -> None:
    build = any_operators(seed, 8 + seed % 12)
    graph = graph_of(build, arrays_for(seed, SIZES[0]))
    fused, alone = fuse(graph).plan, fuse(graph, fused=False).plan
    for sizes in (SIZES[0], (0, 3, 5, 2), (2, 0, 3, 2), (2, 3, 127, 17), (3, 2, 128, 31), (2, 5, 129, 8)):
        arrays = arrays_for(seed, sizes)
        for a, b in zip(run_plan(fused, arrays), run_plan(alone, arrays), strict=True):
            assert a.tobytes() == b.tobytes(), sizes


@pytest.mark.parametrize("seed", range(200, 205))
def test_graph_on_the_wire_gives_the_same_plan(seed: int) -> None:
    graph = graph_of(random_graph(seed, 15), arrays_for(seed, SIZES[0]))
    again = Graph.from_wire(graph.to_wire())
    assert again.to_wire() == graph.to_wire()
    plan = fuse(graph).plan.to_bytes()
    assert fuse(again).plan.to_bytes() == plan == Plan.from_bytes(plan).to_bytes()
