"""What people write out by hand, and the kernels that it becomes: fused as its composite is, with the bytes of the
unfused plan."""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import _native
from dvm_rt.array.function import planned_for
from dvm_rt.fusion.fuser import fuse
from dvm_rt.graph.graph import Make, Node

from benchmarks import cases
from benchmarks.fusion import STACKS, stacked
from benchmarks.spaces import Dvm
from tests.fusion.running import check, normal, prepared

Form = Callable[..., Node]


def rows(op: Make, name: str, x: Node) -> Node:
    return getattr(op, name)(x, axes=(len(x.shape) - 1,), keepdims=True)


def softmax(op: Make, x: Node) -> Node:
    e = op.exp(op.subtract(x, rows(op, "max", x)))
    return op.divide(e, rows(op, "sum", e))


def normalised(op: Make, x: Node, axes: tuple[int, ...]) -> Node:
    centred = op.subtract(x, op.mean(x, axes=axes, keepdims=True))
    variance = op.mean(op.square(centred), axes=axes, keepdims=True)
    return op.divide(centred, op.sqrt(op.add(variance, 1e-5)))


def layer_norm(op: Make, x: Node, g: Node, b: Node) -> Node:
    return op.add(op.multiply(normalised(op, x, (len(x.shape) - 1,)), g), b)


def rms_norm(op: Make, x: Node, g: Node) -> Node:
    return op.multiply(op.multiply(x, op.rsqrt(op.add(rows(op, "mean", op.square(x)), 1e-5))), g)


def channels(op: Make, x: Node, *vectors: Node) -> list[Node]:
    return [op.reshape(v, shape=(1, x.shape[1], 1, 1)) for v in vectors]


def group_norm(op: Make, x: Node) -> Node:
    n, c, h, w = x.shape
    return op.reshape(normalised(op, op.reshape(x, shape=(n, 4, -1)), (2,)), shape=(n, c, h, w))


def batch_norm(op: Make, x: Node, mean: Node, scale: Node, g: Node, b: Node) -> Node:
    mean, scale, g, b = channels(op, x, mean, scale, g, b)
    return op.add(op.multiply(op.multiply(op.subtract(x, mean), scale), g), b)


def batch_norm_training(op: Make, x: Node, g: Node, b: Node) -> Node:
    g, b = channels(op, x, g, b)
    return op.add(op.multiply(normalised(op, x, (0, 2, 3)), g), b)


def group_norm_over_axes(op: Make, x: Node) -> Node:
    n, c, h, w = x.shape
    return op.reshape(normalised(op, op.reshape(x, shape=(n, 4, 2, h, w)), (2, 3, 4)), shape=(n, c, h, w))


def gelu(op: Make, x: Node) -> Node:
    return op.multiply(op.multiply(x, 0.5), op.add(op.erf(op.divide(x, sqrt(2))), 1.0))


def gelu_tanh(op: Make, x: Node) -> Node:
    cube = op.multiply(op.multiply(op.multiply(x, x), x), 0.044715)
    return op.multiply(op.multiply(x, 0.5), op.add(op.tanh(op.multiply(op.add(x, cube), sqrt(2 / pi))), 1.0))


def silu(op: Make, x: Node) -> Node:
    return op.divide(x, op.add(op.exp(op.negative(x)), 1.0))


def biased(op: Make, x: Node, w: Node, b: Node) -> Node:
    return op.add(op.matmul(x, w), b)


def swiglu(op: Make, x: Node, gate: Node, up: Node, down: Node) -> Node:
    return op.matmul(op.multiply(silu(op, op.matmul(x, gate)), op.matmul(x, up)), down)


X, W, B, ROW, IMAGE, C = (5, 7), (7, 9), (9,), (7,), (2, 8, 3, 5), (8,)
COUNTS: dict[str, tuple[Form, list[tuple[int, ...]], int]] = {
    "softmax": (softmax, [X], 1),
    "layer norm": (layer_norm, [X, ROW, ROW], 1),
    "layer norm of a sum": (lambda op, x, y, g, b: layer_norm(op, op.add(x, y), g, b), [X, X, ROW, ROW], 1),
    "rms norm": (rms_norm, [X, ROW], 1),
    "group norm": (group_norm, [IMAGE], 1),
    "group norm, scaled": (lambda op, x, g, b: op.add(op.multiply(group_norm(op, x), channels(op, x, g)[0]),
                                                      channels(op, x, b)[0]), [IMAGE, C, C], 2),
    "group norm over several axes": (group_norm_over_axes, [IMAGE], 1),
    "instance norm": (lambda op, x: normalised(op, x, (2, 3)), [IMAGE], 1),
    "instance norm of a sum, scaled": (
        lambda op, x, y, g, b: op.add(op.multiply(normalised(op, op.add(x, y), (2, 3)), channels(op, x, g)[0]),
                                      channels(op, x, b)[0]), [IMAGE, IMAGE, C, C], 1,
    ),
    "norm over everything": (lambda op, x: normalised(op, x, (0, 1, 2, 3)), [IMAGE], 1),
    "rms norm over two axes": (lambda op, x: op.multiply(x, op.rsqrt(op.mean(op.square(x), axes=(2, 3),
        keepdims=True))), [IMAGE], 1),
    "less its mean over two axes": (lambda op, x: op.subtract(x, op.mean(x, axes=(2, 3), keepdims=True)), [IMAGE], 1),
    "less its mean over outer axes": (lambda op, x: op.subtract(x, op.mean(x, axes=(0, 2), keepdims=True)), [IMAGE], 3),
    "batch norm, training": (batch_norm_training, [IMAGE, C, C], 3),  # together, norm, apart
    "batch norm": (batch_norm, [IMAGE, C, C, C, C], 1),
    "gelu": (gelu, [X], 1),
    "gelu by tanh": (gelu_tanh, [X], 1),
    "silu": (silu, [X], 1),
    "product, bias": (biased, [X, W, B], 1),
    "product, bias, relu": (lambda op, *a: op.relu(biased(op, *a)), [X, W, B], 1),
    "product, bias, gelu": (lambda op, *a: gelu(op, biased(op, *a)), [X, W, B], 1),
    "product, bias, gelu by tanh": (lambda op, *a: gelu_tanh(op, biased(op, *a)), [X, W, B], 1),
    "product, bias, silu": (lambda op, *a: silu(op, biased(op, *a)), [X, W, B], 1),
    "product, bias, activation, residual": (lambda op, y, *a: op.add(y, gelu(op, biased(op, *a))), [(5, 9), X, W, B], 1),
    "product, residual, norm": (lambda op, y, g, b, *a: layer_norm(op, op.add(y, biased(op, *a)), g, b),
                                [(5, 9), B, B, X, W, B], 2),
    "norm, product": (lambda op, x, g, w: op.matmul(rms_norm(op, x, g), w), [X, ROW, W], 2),
    "swiglu": (swiglu, [X, W, W, (9, 7)], 3),
}


@pytest.mark.parametrize("name", COUNTS)
def test_kernels_of_what_is_written_by_hand(name: str) -> None:
    form, shapes, count = COUNTS[name]
    found = check(form, [normal(*shape, seed=i) for i, shape in enumerate(shapes)], 1e-4, 1e-4)
    assert len(found.plan.kernels) == count, found.report.text()


def test_rotary() -> None:
    def rotary(x, cos, sin):
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        return dvm.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x, cos, sin = normal(2, 3, 6, 8), normal(6, 4), normal(6, 4)
    planned = planned_for(dvm.function(rotary), (x, cos, sin), {})[1]
    assert planned.kernels == 1, planned.fused.report.text()
    a, b = x[..., :4].astype(np.float64), x[..., 4:]
    want = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    np.testing.assert_allclose(np.asarray(dvm.function(rotary)(x, cos, sin)), want, 1e-4, 1e-5)


@pytest.mark.parametrize(("case", "count"), [("encoder layer", 7), ("6-layer encoder", 42)])
def test_parts_of_a_split_are_views(case: str, count: int) -> None:
    """q, k and v come from one product by `split`; none of them is copied before the attention reads it."""
    found = next(c for c in cases.CASES if c.name == case)
    space, arrays = Dvm(), (normal(2, 5, 256), *found.weights(np.random.default_rng(0)))
    planned = planned_for(dvm.function(lambda *a: found.function(space, *a)), arrays, {})[1]
    assert planned.kernels == count, planned.fused.report.text()


def test_six_layers_are_one_launch() -> None:
    with dvm.Runtime(inline=True) as runtime:
        space = Dvm()
        function = dvm.function(lambda *a: cases.encoder(space, *a))
        weights = [dvm.asarray(w) for w in cases._layer_weights(64, 6)(np.random.default_rng(0))]
        function(dvm.asarray(normal(1, 8, 64)), *weights)  # packs the weights
        for rows in (8, 9):
            before = runtime.stats()["launches"]
            np.asarray(function(dvm.asarray(normal(1, rows, 64)), *weights))
            assert runtime.stats()["launches"] == before + 1


def test_independent_kernels_of_different_shapes_share_a_launch_and_its_threads() -> None:
    graph, arrays = stacked(STACKS["8 of some us"])
    plan = fuse(graph).plan
    program = _native.Program(_native.Plan(plan.to_bytes()).encode(prepared(plan, arrays)[0]))
    assert len(plan.kernels) == 8 and program.together[0] == 8


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_split_in_a_function(axis: int) -> None:
    x = normal(6, 6, 6)
    parts = dvm.function(lambda x: tuple(dvm.split(x, 3, axis=axis)))(x)
    for got, want in zip(parts, np.split(x, 3, axis), strict=True):
        np.testing.assert_array_equal(np.asarray(got), want)


def test_split_into_parts_that_are_not_equal() -> None:
    with pytest.raises(dvm.ShapeError):
        dvm.function(lambda x: tuple(dvm.split(x, 3, axis=0)))(normal(7, 2))
