"""Convolution and pooling against float64 NumPy on random geometry, and at the edges: empty, NaN, infinities, ceil mode."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import _native
from dvm_rt.errors import GraphError, ShapeError
from dvm_rt.graph.operators import OPERATORS
from dvm_rt.isa.assembler import assemble


def draw(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def numbers(random: np.random.Generator, rank: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(n) for n in random.integers(low, high + 1, rank))


def pairs(random: np.random.Generator, high: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(tuple(int(n) for n in random.integers(0, h + 1, 2)) for h in high)


def agree(got: dvm.Array, want: np.ndarray, scale: float = 1.0) -> None:
    found = np.asarray(got)
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=2e-6 * scale)


def meaning(name: str, *args: object) -> np.ndarray:
    return OPERATORS[name].meaning(*(a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args))


@pytest.mark.parametrize("seed", range(40))
def test_conv(seed: int) -> None:
    random = np.random.default_rng(seed)
    rank = int(random.integers(1, 4))
    kernel, stride, dilation = numbers(random, rank, 1, 3), numbers(random, rank, 1, 3), numbers(random, rank, 1, 2)
    groups = int(random.choice([1, 1, 2, 3]))
    channels, outputs = groups * int(random.integers(1, 4)), groups * int(random.integers(1, 5))
    padding = pairs(random, (2,) * rank)
    space = tuple(max(1, d * (k - 1) + 1 - sum(p)) + int(random.integers(0, 6)) for k, d, p in zip(kernel, dilation,
        padding, strict=True))
    x = draw(random, int(random.integers(1, 3)), channels, *space)
    w, b = draw(random, outputs, channels // groups, *kernel), draw(random, outputs)
    got = dvm.conv(dvm.asarray(x), dvm.asarray(w), dvm.asarray(b), stride=stride, padding=padding, dilation=dilation,
                   groups=groups)
    agree(got, meaning("conv", x, w, b, stride, padding, dilation, groups), np.sqrt(w[0].size) * 4)


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "dilation", "groups"),
    [
        (24, 8, (3, 3), (1, 1), (1, 1), 1), (64, 6, (3, 1), (1, 2), (2, 1), 1), (50, 4, (5, 3), (1, 3), (1, 2), 2),
        (22, 3, (2, 2, 3), (1, 1, 2), (1, 2, 1), 1),
    ],
)  # fmt: skip
def test_conv_of_many_channels(
    channels: int, outputs: int, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> None:
    """One product with what follows in its tile, for all sizes; an image has the same bits alone and among others."""
    random = np.random.default_rng(channels)
    w, b = draw(random, outputs, channels // groups, *kernel), draw(random, outputs)
    weight, bias, pads = dvm.asarray(w), dvm.asarray(b), ((1, 0),) * len(kernel)

    @dvm.function
    def layer(x, beside):
        y = dvm.conv(x, weight, bias, stride=stride, padding=pads, dilation=dilation, groups=groups)
        return dvm.relu(y) + beside

    for size in (8, 9, 16):
        space = (size, 9, 13)[3 - len(kernel) :]
        x = draw(random, 3, channels, *space)
        want = meaning("conv", x, w, b, stride, pads, dilation, groups)
        beside = draw(random, *want.shape)
        got = layer(dvm.asarray(x), dvm.asarray(beside))
        agree(got, np.maximum(want, 0) + beside, np.sqrt(w[0].size) * 4)
        alone = np.asarray(layer(dvm.asarray(x[1:2]), dvm.asarray(beside[1:2])))
        np.testing.assert_array_equal(alone.view(np.int32), np.asarray(got)[1:2].view(np.int32))
    product = "window_product" if len(kernel) == 2 else "matrix_product"
    assert f"{product} -> add: in the tile of the matmul" in dvm.explain(layer, dvm.asarray(x), dvm.asarray(beside))


def test_the_edges_of_a_convolution_are_written_into_place() -> None:
    """Nothing is cleared before a run, and the elements in the middle are copied there once."""
    random = np.random.default_rng(0)
    x, w = draw(random, 2, 24, 10, 12), draw(random, 8, 24, 3, 3)
    layer = dvm.function(lambda x, w: dvm.relu(dvm.conv(x, w, padding=1)))
    text = dvm.das(layer, dvm.asarray(x), dvm.asarray(w))
    assert _native.Program(assemble(text)).cleared == []
    moved = [line for line in text.splitlines() if "copy float32" in line and line.split()[3].count(",") > 1]
    assert len(moved) == 1 and "read|windows" in text, text  # the middle into the edges


@pytest.mark.parametrize("seed", range(30))
def test_conv_transpose(seed: int) -> None:
    random = np.random.default_rng(seed)
    rank = int(random.integers(1, 4)) if seed % 2 else 2
    kernel, stride, dilation = numbers(random, rank, 1, 3), numbers(random, rank, 1, 3), numbers(random, rank, 1, 2)
    groups = int(random.choice([1, 2]))
    channels, outputs = groups * int(random.integers(1, 4)), int(random.integers(1, 4))
    space, extra = numbers(random, rank, 3, 6), tuple(int(random.integers(0, s)) for s in stride)
    padding = pairs(random, (1,) * rank)
    x, w = draw(random, 2, channels, *space), draw(random, channels, outputs, *kernel)
    b = draw(random, outputs * groups)
    got = dvm.conv_transpose(
        dvm.asarray(x), dvm.asarray(w), dvm.asarray(b), stride=stride, padding=padding, output_padding=extra, dilation=dilation,
        groups=groups,
    )  # fmt: skip
    agree(got, meaning("conv_transpose", x, w, b, stride, padding, extra, dilation, groups), np.sqrt(w[:, 0].size) * 4)


@pytest.mark.parametrize("seed", range(40))
def test_pooling(seed: int) -> None:
    random = np.random.default_rng(seed)
    rank = int(random.integers(1, 4))
    kernel, stride, dilation = numbers(random, rank, 1, 5), numbers(random, rank, 1, 3), numbers(random, rank, 1, 2)
    padding, ceil_mode = pairs(random, tuple(k // 2 for k in kernel)), bool(random.integers(2))
    space = tuple(d * (k - 1) + 1 + int(random.integers(0, 6)) for k, d in zip(kernel, dilation, strict=True))
    x = draw(random, 2, 3, *space)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    args = (kernel, stride, padding, dilation, ceil_mode)
    np.testing.assert_array_equal(np.asarray(dvm.max_pool(dvm.asarray(x), kernel, **geometry)), meaning("max_pool", x, *args))
    for include in (True, False):
        got = dvm.avg_pool(dvm.asarray(x), kernel, **geometry, count_include_pad=include)
        agree(got, meaning("avg_pool", x, *args, include))


def test_transposed_convolution_is_the_adjoint() -> None:
    """<conv(x), y> == <x, conv_transpose(y)>: a check of both that needs no formula."""
    random = np.random.default_rng(1)
    x, w = draw(random, 2, 3, 9, 11), draw(random, 5, 3, 3, 2)
    geometry = {"stride": (2, 3), "padding": ((1, 1), (0, 0)), "dilation": (1, 2)}
    forward = dvm.conv(dvm.asarray(x), dvm.asarray(w), **geometry)
    y = draw(random, *forward.shape)
    back = np.asarray(dvm.conv_transpose(dvm.asarray(y), dvm.asarray(w), **geometry))
    left = (np.asarray(forward).astype(np.float64) * y).sum()
    right = (back.astype(np.float64) * x[..., : back.shape[2], : back.shape[3]]).sum()
    assert abs(left - right) < 1e-3 * abs(left)


def test_one_function_for_all_sizes() -> None:
    """Symbolic space, in ceil mode too: the rules for numbers and for symbols agree."""
    random = np.random.default_rng(2)
    w, b = draw(random, 4, 3, 3, 3), draw(random, 4)
    weight, bias = dvm.asarray(w), dvm.asarray(b)

    @dvm.function
    def network(x):
        y = dvm.relu(dvm.conv(x, weight, bias, stride=2, padding=1))
        return dvm.max_pool(y, 2, ceil_mode=True)

    for size in ((1, 8, 9), (2, 15, 4), (1, 32, 31)):
        x = draw(random, size[0], 3, *size[1:])
        y = np.maximum(meaning("conv", x, w, b, (2, 2), ((1, 1), (1, 1)), (1, 1), 1), 0)
        want = OPERATORS["max_pool"].meaning(y, (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), True)
        agree(network(dvm.asarray(x)), want, 20)


def test_special_values() -> None:
    x = np.zeros((1, 1, 5, 5), np.float32)
    x[0, 0, 2, 2], x[0, 0, 0, 0] = np.nan, -np.inf
    largest = np.asarray(dvm.max_pool(dvm.asarray(x), 3, stride=1, padding=1))
    assert np.isnan(largest[0, 0, 1:4, 1:4]).all() and (largest[0, 0, 0] == 0).all()
    ones = np.ones((1, 1, 3, 3), np.float32)
    total = np.asarray(dvm.conv(dvm.asarray(x), dvm.asarray(ones), padding=1))
    assert np.isnan(total[0, 0, 1:4, 1:4]).all() and total[0, 0, 0, 0] == -np.inf and total[0, 0, 4, 4] == 0


def test_nothing_to_do() -> None:
    w = dvm.asarray(np.ones((4, 3, 3, 3), np.float32))
    assert np.asarray(dvm.conv(dvm.asarray(np.ones((0, 3, 8, 8), np.float32)), w)).shape == (0, 4, 6, 6)
    assert np.asarray(dvm.max_pool(dvm.asarray(np.ones((2, 0, 8, 8), np.float32)), 2)).shape == (2, 0, 4, 4)


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ShapeError, lambda x, w: dvm.conv(x, w[:, :2])),
        (ShapeError, lambda x, w: dvm.conv(x, w, groups=2)),
        (ShapeError, lambda x, w: dvm.conv(x, w, stride=0)),
        (ShapeError, lambda x, w: dvm.conv(x, w, padding=(1, -1))),
        (ShapeError, lambda x, w: dvm.conv(x[:, :, :2], w)),
        (ShapeError, lambda x, w: dvm.max_pool(x, 3, padding=2)),
        (ShapeError, lambda x, w: dvm.conv_transpose(x, w)),
        (GraphError, lambda x, w: dvm.conv(x, w, stride=2, padding="same")),
    ],
)
def test_refused(error: type, call) -> None:
    with pytest.raises(error):
        call(dvm.asarray(np.ones((1, 3, 8, 8), np.float32)), dvm.asarray(np.ones((4, 3, 3, 3), np.float32)))


SLIDING = {
    "conv": (lambda x, w: dvm.conv(x, w, padding=1, stride=2), ((2, 2), ((1, 1), (1, 1)), (1, 1), 1)),
    "conv_transpose": (lambda x, w: dvm.conv_transpose(x, w, stride=(1, 2)), ((1, 2), ((0, 0), (0, 0)), (0, 0), (1, 1), 1)),
    "max_pool": (lambda x, w: dvm.max_pool(x, 2, padding=1), ((2, 2), (2, 2), ((1, 1), (1, 1)), (1, 1), False)),
    "avg_pool": (
        lambda x, w: dvm.avg_pool(x, 2, padding=1, count_include_pad=False),
        ((2, 2), (2, 2), ((1, 1), (1, 1)), (1, 1), False, False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("name", SLIDING)
def test_other_floats(name: str, dtype: str) -> None:
    """What is padded, and what is computed in float32 and rounded once: within one rounding of float64."""
    call, attributes = SLIDING[name]
    random = np.random.default_rng(3)
    x, w = (np.round(draw(random, *shape) * 8) / 8 for shape in ((2, 3, 5, 6), (3, 3, 2, 3)))
    want = meaning(name, x, w, *attributes) if name.startswith("conv") else meaning(name, x, *attributes)
    eps = {"float64": 2.0**-52, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype]
    arrays = dvm.asarray(x).astype(dtype), dvm.asarray(w).astype(dtype)
    for run in (call, dvm.function(call)):
        got = run(*arrays)
        assert got.dtype.name == dtype
        np.testing.assert_allclose(np.asarray(got.astype("float64")), want, rtol=2 * eps, atol=2 * eps)


def test_few_short_rows_of_many_images_go_many_at_a_time() -> None:
    """Seven rows of six pixels in each of 24 images, which are written into the middle of what a convolution reads."""
    @dvm.function
    def pooled(x: dvm.Array, w: dvm.Array) -> dvm.Array:
        return dvm.conv(dvm.max_pool(x, 2), w, padding=1, groups=8)

    random = np.random.default_rng(6)
    x, w = draw(random, 3, 8, 14, 12), draw(random, 8, 1, 3, 3)
    arrays = dvm.asarray(x), dvm.asarray(w)
    assert "vector float32 [6,24,7]" in dvm.das(pooled, *arrays)
    small = meaning("max_pool", x, (2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), False)
    agree(pooled(*arrays), meaning("conv", small, w, (1, 1), ((1, 1), (1, 1)), (1, 1), 8))


@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((3, 3), 1, 1), ((3, 3), 2, 1), ((3, 3), 1, 2), ((5, 5), 1, 1), ((7, 7), 1, 1), ((1, 15), 1, 1), ((3, 3), 3, 1)],
)
def test_depthwise(kernel: tuple[int, int], stride: int, dilation: int, multiple: int) -> None:
    """Every channel by itself: against float64, one plan for all sizes, and NaN and infinities where they have to be."""
    @dvm.function
    def depthwise(x: dvm.Array, w: dvm.Array, b: dvm.Array) -> dvm.Array:
        return dvm.conv(x, w, b, stride=stride, padding=tuple(d * (k // 2) for k, d in zip(kernel, (dilation,) * 2, strict=True)),
                        dilation=dilation, groups=5)

    random = np.random.default_rng(kernel[1])
    pads = tuple((dilation * (k // 2),) * 2 for k in kernel)
    w, b = draw(random, 5 * multiple, 1, *kernel), draw(random, 5 * multiple)
    for shape in ((1, 5, 7, 7), (2, 5, 14, 20), (1, 5, 9, 130), (3, 5, 4, 6)):
        x = draw(random, *shape)
        want = meaning("conv", x, w, b, (stride,) * 2, pads, (dilation,) * 2, 5)
        agree(depthwise(x, w, b), want, np.sqrt(w[0].size) * 4)
        x[0, 1, 2, 3], x[0, 2, 3, 1] = np.nan, np.inf
        with np.errstate(invalid="ignore"):
            want = meaning("conv", x, w, b, (stride,) * 2, pads, (dilation,) * 2, 5)
        got = np.asarray(depthwise(x, w, b))
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(np.isinf(got), np.isinf(want))
