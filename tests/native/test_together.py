"""Sections that have nothing to do with each other run at the same time: as one job, with the bits of one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import _native
from dvm_rt.errors import DeviceTrap
from dvm_rt.fusion.fuser import fuse
from dvm_rt.isa.program import READ, WORKSPACE, WRITE, ProgramBuilder
from tests.fusion.random_graphs import random_graph, shapes_for
from tests.fusion.running import graph_of, normal, prepared

TARGETS = _native.targets()


def program_of(build, arrays: list[np.ndarray], fused: bool = True) -> tuple[_native.Program, list[np.ndarray], list[np.ndarray]]:
    plan = fuse(graph_of(build, arrays), fused).plan
    symbols, arguments, outputs = prepared(plan, arrays)
    return _native.Program(_native.Plan(plan.to_bytes()).encode(symbols)), arguments, outputs


def independent(op, x, y, z, w):
    return op.tanh(x), op.softmax(y, axis=1), op.matmul(z, w), op.sum(y, axes=(0,), keepdims=False)


ARRAYS = [normal(40, 64, seed=1), normal(9, 700, seed=2), normal(5, 300, seed=3), normal(300, 64, seed=4)]


def test_kernels_of_different_shapes_are_one_job() -> None:
    program, _, _ = program_of(independent, ARRAYS)
    assert sorted(program.together) == [1, 2, 3, 4]


def test_what_depends_on_each_other_is_not() -> None:
    program, _, _ = program_of(lambda op, x, y: op.matmul(op.tanh(x), y), [normal(5, 64), normal(64, 32)])
    assert program.together == [1, 1]


def test_values_that_share_a_slot_of_the_workspace_are_not() -> None:
    """a and c, b and d are far apart in what they compute, but c is written where a was read."""

    def chains(op, x, y):
        a, c = op.sum(op.exp(op.matmul(x, y)), axes=(0,), keepdims=True), op.matmul(y, x)
        return op.matmul(a, y), op.matmul(c, y)

    program, arguments, outputs = program_of(chains, [normal(64, 64, seed=1), normal(64, 64, seed=2)])
    program.run(arguments)
    want = [o.copy() for o in outputs]
    for threads in (2, 3):
        program.run(arguments, threads=threads, parts=3)
        assert [o.tobytes() for o in outputs] == [o.tobytes() for o in want]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("threads", "parts"), [(2, 1), (2, 7), (3, 2), (8, 64)])
def test_bits_of_one_thread(target: str, threads: int, parts: int) -> None:
    program, arguments, outputs = program_of(independent, ARRAYS)
    program.run(arguments, target)
    want = [o.copy() for o in outputs]
    for _ in range(5):
        for o in outputs:
            o[...] = 7
        program.run(arguments, target, threads=threads, parts=parts)
        assert [o.tobytes() for o in outputs] == [o.tobytes() for o in want]


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_without_fusion(seed: int) -> None:
    arrays = [normal(*shape, seed=seed) for shape in shapes_for(3, 5, 17, 33)]
    program, arguments, outputs = program_of(random_graph(seed, 20), arrays, fused=False)
    program.run(arguments)
    want = [o.copy() for o in outputs]
    program.run(arguments, threads=2, parts=2)
    assert [o.tobytes() for o in outputs] == [o.tobytes() for o in want]


def copies(*pairs: tuple[int, int, int, int]) -> _native.Program:
    """VECTOR sections that add 1: (argument read, its first element, argument written, its first element) of 8 elements each."""
    builder = ProgramBuilder()
    args = [builder.add_arg(256, READ | WRITE) for _ in range(2)]
    for source, a, target, b in pairs:
        section = builder.vector(8)
        x = section.operand(args[source], (4,), base=4 * a)
        y = section.operand(args[target], (4,), base=4 * b, mode=WRITE)
        section.begin_pass()
        for word in (("mov.i", x), ("add.k", 1.0), ("store", y)):
            section.word(*word)
        section.end_pass()
        section.word("end_row")
    return _native.Program(builder.build())


@pytest.mark.parametrize(
    ("pairs", "together"),
    [
        (((0, 0, 1, 0), (0, 0, 1, 8)), [2, 1]),  # both read the same
        (((0, 0, 1, 0), (1, 0, 0, 8)), [1, 1]),  # the second one reads what the first one writes
        (((0, 0, 1, 0), (1, 8, 0, 0)), [1, 1]),  # it writes what the first one reads
        (((0, 0, 1, 0), (0, 8, 1, 4)), [1, 1]),  # both write the same
        (((0, 0, 1, 0), (0, 0, 1, 8), (1, 0, 0, 8)), [2, 1, 1]),
        (((0, 0, 1, 0), (1, 0, 0, 8), (0, 0, 1, 16)), [1, 2, 1]),
    ],
)
def test_only_what_nobody_else_touches(pairs: tuple, together: list[int]) -> None:
    assert copies(*pairs).together == together
