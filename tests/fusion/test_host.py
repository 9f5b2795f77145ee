"""Host functions in plans: each row of the table, fused and unfused, against its NumPy meaning; and how they lie
among kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dvm_rt import dtypes
from dvm_rt.errors import DTypeError, ShapeError
from dvm_rt.fusion.fuser import fuse
from dvm_rt.fusion.plan import Plan
from dvm_rt.graph.graph import evaluate
from dvm_rt.graph.operators import OPERATORS, Lowering
from dvm_rt.isa import host
from dvm_rt.npu_device.host import FAILED, OK, RANGE, call
from tests.fusion.running import check, graph_of, normal, run_plan

RNG = np.random.default_rng(5)
ROWS = np.round(normal(4, 9, seed=1) * 2)
CASES: dict[str, tuple[Callable, list[np.ndarray]]] = {
    "sort": (lambda op, x: op.sort(x, axis=1, descending=1), [ROWS]),
    "argsort": (lambda op, x: op.argsort(x, axis=0, descending=0), [ROWS]),
    "topk": (lambda op, x: op.topk(x, axis=1, count=x.shape[0], largest=0), [ROWS]),
    "searchsorted": (lambda op, x, v: op.searchsorted(x, v, right=1), [np.sort(ROWS.reshape(-1)), ROWS]),
    "nonzero": (lambda op, x: op.nonzero(x), [ROWS]),
    "count_nonzero": (lambda op, x: op.count_nonzero(x), [ROWS]),
    "compress": (lambda op, x, m: op.compress(x, m), [ROWS, RNG.random(4) > 0.5]),
    "unique_values": (lambda op, x: op.unique_values(x), [ROWS]),
    "unique_indices": (lambda op, x: op.unique_indices(x), [ROWS]),
    "unique_inverse": (lambda op, x: op.unique_inverse(x), [ROWS]),
    "unique_counts": (lambda op, x: op.unique_counts(x), [ROWS]),
    "unique_length": (lambda op, x: op.unique_length(x), [ROWS]),
    "take_along_axis": (lambda op, x, i: op.take_along_axis(x, i, axis=0), [ROWS, RNG.integers(-4, 4, (7, 9))]),
    "gather_nd": (lambda op, x, i: op.gather_nd(x, i, batch=1), [ROWS, RNG.integers(-9, 9, (4, 5, 1))]),
    "scatter": (lambda op, x, i, u: op.scatter(x, i, u, axis=1, how=4), [ROWS, RNG.integers(-9, 9, (3, 20)), normal(3, 20)]),
    "scatter_nd": (lambda op, x, i, u: op.scatter_nd(x, i, u, how=0), [ROWS, RNG.integers(-4, 4, (6, 2)), normal(6)]),
    "arange": (lambda op, x: op.arange(count=x.shape[1], start=0, step=4607182418800017408, dtype="int64"), [ROWS]),
}  # fmt: skip


def test_every_host_function_has_a_row_and_a_case() -> None:
    rows = {name for name, row in OPERATORS.items() if row.lowering is Lowering.HOST}
    assert rows == set(host.NAMES) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_against_its_meaning(name: str) -> None:
    build, arrays = CASES[name]
    if arrays[1:] and name in ("gather_nd", "scatter_nd"):  # how many coordinates there are is no symbol
        build, last = _fixed(build, arrays)
        arrays = last
    fused = check(build, arrays, rtol=0, atol=0)
    assert [k.kind for k in fused.report.kernels].count("host") == 1
    assert Plan.from_bytes(fused.plan.to_bytes()) == fused.plan


def _fixed(build: Callable, arrays: list[np.ndarray]) -> tuple[Callable, list[np.ndarray]]:
    """The indices reshaped inside of the graph, so that their last size is a number."""
    indices = arrays[1]
    depth = indices.shape[-1]

    def again(op, x, flat, *rest):
        return build(op, x, op.reshape(flat, shape=(*indices.shape[:-1], depth)), *rest)

    return again, [arrays[0], indices.reshape(-1), *arrays[2:]]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4, 5), (1, 1, 1, 1, 1, 1, 1, 2), (300,)])
def test_shapes_of_every_kind(shape: tuple[int, ...]) -> None:
    x = np.round(normal(*shape))
    if shape:
        check(lambda op, x: op.sort(op.negative(x), axis=len(shape) - 1, descending=0), [x])
    check(lambda op, x: (op.count_nonzero(x), op.unique_values(op.multiply(x, 2.0)), op.nonzero(x)), [x])


def test_between_other_kernels() -> None:
    """Views that are not row-major are copied first; results are read in any order; joins and matmuls take part."""
    x = normal(6, 5)
    fused = check(lambda op, x: op.add(op.sort(op.permute_dims(op.multiply(x, 2.0), axes=(1, 0)), axis=0,
                                               descending=0), 1.0), [x])
    assert [k.kind for k in fused.report.kernels] == ["vector", "host", "vector"]
    check(lambda op, x: op.permute_dims(op.sort(op.permute_dims(x, axes=(1, 0)), axis=1, descending=0), axes=(1, 0)), [x])
    check(lambda op, x: op.concat(op.sort(x, axis=0, descending=0), op.exp(x), axis=1), [x])
    check(lambda op, x: op.matmul(op.sort(x, axis=1, descending=0), op.permute_dims(x, axes=(1, 0))), [x])
    check(lambda op, x: (lambda s: (s, op.sum(s, axes=(0,), keepdims=False),
                                    op.sort(s, axis=0, descending=1)))(op.sort(x, axis=1, descending=0)), [x])
    check(lambda op, x: op.sort(op.index(x, entries=((1, 5, 2), (None, None, -1))), axis=1, descending=0), [x])
    check(lambda op, x: op.sort(op.broadcast_to(op.constant(value=1.0, dtype="float32"), shape=x.shape), axis=1,
                                descending=0), [x])


@pytest.mark.parametrize("dtype", dtypes.DTYPES, ids=lambda d: d.name)
def test_every_dtype(dtype: dtypes.DType) -> None:
    bits = RNG.integers(0, 256, 8 * 40, np.uint8)
    x = (bits[:40] & 1).astype(bool) if dtype is dtypes.bool_ else np.frombuffer(bits[: 40 * dtype.bytes].tobytes(),
        dtype.numpy).reshape(8, 5)
    x = x.reshape(8, 5)
    out = np.full_like(x, 1)
    assert call(host.NAMES.index("sort"), (1, 0), [(dtype.code, x.shape, memoryview(x).cast("B")),
                                                   (dtype.code, x.shape, memoryview(out).cast("B"))]) == (OK, 0, 0)
    if dtype is dtypes.bfloat16:
        wide = (x.astype(np.uint32) << 16).view(np.float32)
        want = np.sort(wide, 1)
        got = (out.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(got, want)
        assert set(out[np.isnan(got)].tolist()) <= {0x7FC0}
    else:
        np.testing.assert_array_equal(out, np.sort(x, 1))


def test_indices_outside_are_named() -> None:
    x, i, out = np.zeros(3, np.float32), np.array([0, -4]), np.zeros(2, np.float32)
    operands = [(a_code, a.shape, memoryview(a).cast("B")) for a, a_code in ((x, 11), (i, 4), (out, 11))]
    assert call(host.NAMES.index("take_along_axis"), (0,), operands) == (RANGE, -4, 3)
    assert call(host.NAMES.index("take_along_axis"), (), operands) == (FAILED, 0, 0)
    assert call(host.NAMES.index("sort"), (0, 0), operands) == (FAILED, 0, 0)


def test_last_of_duplicates_wins_and_additions_keep_their_order() -> None:
    i = np.array([1, 1, 0, 1])
    u = np.array([1e8, 1.0, 5.0, -1e8], np.float32)
    x = np.zeros(2, np.float32)
    graph = graph_of(lambda op, x, i, u: (op.scatter(x, i, u, axis=0, how=0), op.scatter(x, i, u, axis=0, how=1)), [x, i, u])
    put, added = run_plan(fuse(graph).plan, [x, i, u])
    assert put.tolist() == [5.0, -1e8]
    assert added.tolist() == [5.0, 0.0]  # (1e8 + 1) - 1e8, in float32
    assert evaluate(graph, [x, i, u])[0].tolist() == put.tolist()


def test_what_is_refused() -> None:
    x, i = normal(3, 4), np.zeros((3, 4), np.int64)
    for error, build, arrays in (
        (ShapeError, lambda op, x: op.searchsorted(x, x, right=0), [x]),
        (ShapeError, lambda op, x: op.gather_nd(x, x, batch=0), [i]),
        (DTypeError, lambda op, x: op.take_along_axis(x, x, axis=0), [x]),
        (DTypeError, lambda op, x: op.compress(x, x), [x]),
        (DTypeError, lambda op, x, i: op.scatter(x, i, i, axis=0, how=0), [x, i]),
        (DTypeError, lambda op, x, i: op.searchsorted(op.reshape(x, shape=(-1,)), i, right=0), [x, i]),
        (ShapeError, lambda op, x: op.topk(op.reshape(x, shape=(3, 4)), axis=1, count=5, largest=1), [x]),
    ):
        with pytest.raises(error):
            graph_of(build, arrays)
