"""Parts of a join that are computed from the same memory: one kernel with several stores, wherever the verifier sees these apart.

Bytes are those of the unfused plan, and the verifier takes the program, for every size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array.function import planned_for
from dvm_rt.graph.graph import Make, Node

from benchmarks import cases
from benchmarks.spaces import Dvm
from tests.fusion.running import check, normal

Form = Callable[..., Node | tuple[Node, ...]]


def turned(op: Make, a: Node, b: Node, cos: Node, sin: Node) -> list[Node]:
    """The two halves of a rotary embedding."""
    first = op.subtract(op.multiply(a, cos), op.multiply(b, sin))
    return [first, op.add(op.multiply(b, cos), op.multiply(a, sin))]


def rotary(op: Make, *operands: Node, axis: int = -1) -> Node:
    return op.concat(*turned(op, *operands), axis=axis)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (5, 7), (17, 513), (2, 3, 5), (3, 1, 9), (1, 4, 33),
                                   (2, 3, 4, 5), (7, 20001), (0, 4), (4, 0)])
def test_rotary_is_one_kernel(shape: tuple[int, ...]) -> None:
    found = check(rotary, [normal(*shape, seed=i) for i in range(4)], 1e-4, 1e-4)
    assert len(found.plan.kernels) == 1, found.report.text()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 3, 5), (2, 1, 5), (2, 3, 1), (1, 1, 9), (4, 33, 65)])
def test_parts_along_each_axis(axis: int, shape: tuple[int, ...]) -> None:
    found = check(lambda op, *a: rotary(op, *a, axis=axis), [normal(*shape, seed=i) for i in range(4)], 1e-4, 1e-4)
    assert len(found.plan.kernels) == 1, found.report.text()


def test_rotary_with_angles_that_are_shared_by_heads() -> None:
    arrays = [normal(2, 3, 6, 5), normal(2, 3, 6, 5), normal(6, 5), normal(6, 5)]
    assert len(check(rotary, arrays, 1e-4, 1e-4).plan.kernels) == 1


def test_the_benchmark_over_shapes_that_were_not_planned() -> None:
    found, space = next(c for c in cases.CASES if c.name == "rotary"), Dvm()
    function = dvm.function(lambda *a: found.function(space, *a))
    for rows, width in ((4, 8), (1, 2), (1, 14), (5, 6), (33, 1026)):
        x, cos, sin = normal(rows, width), normal(rows, width // 2), normal(rows, width // 2)
        planned = planned_for(function, (x, cos, sin), {})[1]
        assert planned.kernels == 1, planned.fused.report.text()
        a, b = np.split(x.astype(np.float64), 2, -1)
        want = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
        np.testing.assert_allclose(np.asarray(function(x, cos, sin)), want, 1e-4, 1e-5)


def four(op: Make, x: Node) -> Node:
    return op.concat(op.exp(x), op.tanh(x), op.square(x), op.negative(x), axis=1)


def of_a_norm(op: Make, x: Node, g: Node, h: Node) -> Node:
    y = op.subtract(x, op.mean(x, axes=(1,), keepdims=True))
    return op.concat(op.multiply(y, g), op.multiply(y, h), axis=1)


def beside_a_result(op: Make, x: Node) -> tuple[Node, ...]:
    return op.concat(op.exp(x), op.tanh(x), axis=1), op.square(x)


def one_from_another(op: Make, x: Node) -> Node:
    y = op.exp(op.add(x, 1.0))
    return op.concat(y, op.multiply(op.sum(y, axes=(1,), keepdims=True), x), axis=1)


def outermost_before_a_product(op: Make, x: Node, w: Node) -> Node:
    return op.matmul(op.concat(op.exp(x), op.tanh(x), axis=0), w)


def narrowed(op: Make, x: Node) -> Node:
    return op.concat(op.astype(op.exp(x), dtype="float16"), op.astype(op.tanh(x), dtype="float16"), axis=1)


ONE_KERNEL_OF_THE_PARTS: dict[str, tuple[Form, list[tuple[int, ...]], int]] = {
    "four parts": (four, [(5, 7)], 1),
    "parts of a norm": (of_a_norm, [(5, 7), (5, 7), (5, 7)], 1),
    "one part from another": (one_from_another, [(5, 7)], 1),
    "along the outermost axis in the workspace": (outermost_before_a_product, [(5, 7), (7, 3)], 2),
}


@pytest.mark.parametrize("name", ONE_KERNEL_OF_THE_PARTS)
def test_parts_share_a_kernel(name: str) -> None:
    form, shapes, count = ONE_KERNEL_OF_THE_PARTS[name]
    found = check(form, [normal(*shape, seed=i) for i, shape in enumerate(shapes)], 1e-4, 1e-4)
    assert len(found.plan.kernels) == count, found.report.text()


def in_the_workspace(op: Make, x: Node, w: Node) -> Node:
    return op.matmul(op.concat(op.exp(x), op.tanh(x), axis=1), w)


def two_of_three(op: Make, x: Node) -> Node:
    return op.concat(op.exp(x), op.tanh(x), op.sum(x, axes=(1,), keepdims=True), axis=1)


def turned_round(op: Make, x: Node) -> Node:
    return op.permute_dims(op.concat(op.exp(x), op.tanh(x), axis=1), axes=(1, 0))


def one_in_another(op: Make, x: Node) -> Node:
    return op.concat(op.concat(op.exp(x), op.tanh(x), axis=1), op.square(x), axis=1)


ROWS = 5
APART: dict[str, tuple[Form, list[tuple[int, ...]], int]] = {
    "the rows of the join begin anywhere in the workspace": (in_the_workspace, [(ROWS, 7), (14, 3)], 3),
    "parts of different sizes": (lambda op, x, y: op.concat(op.exp(x), op.tanh(y), axis=1), [(ROWS, 7), (ROWS, 3)], 2),
    "nothing is read together": (lambda op, x, y: op.concat(op.exp(x), op.tanh(y), axis=0), [(ROWS, 7), (ROWS, 7)], 2),
    "only a vector is read together": (
        lambda op, x, y, g: op.concat(op.multiply(x, g), op.multiply(y, g), axis=1), [(ROWS, 7), (ROWS, 7), (7,)], 2,
    ),
    "copies": (lambda op, x: op.concat(x, x, axis=1), [(ROWS, 7)], 2),
    "columns of the join lie behind each other": (turned_round, [(ROWS, 7)], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_parts_have_kernels_of_their_own(name: str) -> None:
    form, shapes, count = APART[name]
    for rows in (2, 5, 17):
        arrays = [normal(*(rows if n == ROWS else n for n in shape), seed=i) for i, shape in enumerate(shapes)]
        found = check(form, arrays, 1e-4, 1e-4)
        assert len(found.plan.kernels) == count, found.report.text()


@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (9, 257)])
@pytest.mark.parametrize("form", [one_in_another, beside_a_result, narrowed, two_of_three])
def test_bytes_are_those_of_the_unfused_plan(form: Form, shape: tuple[int, ...]) -> None:
    check(form, [normal(*shape)], 1e-4, 1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_of_a_size_that_is_known_to_be_nothing(axis: int) -> None:
    """They all begin at the same place, where two stores may not be."""
    function = dvm.function(lambda x: dvm.concat([x[:, 2:2] * 2.0 + x[:, :0], x[:, 2:2] * 3.0 - x[:, :0]], axis=axis))
    for rows in (1, 5):
        assert np.asarray(function(normal(rows, 4))).shape == (rows * (2 if axis == 0 else 1), 0)
