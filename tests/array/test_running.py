"""Running sums and products: instructions, in the order of the elements, over any axis, backwards, exclusive, from
what nothing gives."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import dtypes
from dvm_rt.graph.movement import running_totals

RNG = np.random.default_rng(17)
SHAPES = ((1,), (9,), (129,), (16400,), (3, 5), (40, 300), (300, 40), (3, 17, 33), (17, 3, 33), (2, 1, 70), (0, 4), (4, 0))


def values(dtype: str, *shape: int) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return (RNG.normal(size=shape) * 10.0 ** RNG.integers(-3, 4, shape)).astype(dtype)
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype, endpoint=True)


def wanted(x: np.ndarray, axis: int, product: bool, reverse: bool, exclusive: bool, initial: bool) -> np.ndarray:
    """By a loop over the elements."""
    rows = np.moveaxis(x[(slice(None),) * axis + (slice(None, None, -1),)] if reverse else x, axis, 0)
    nothing = np.full(rows.shape[1:], int(product), x.dtype)
    out = []
    with np.errstate(all="ignore"):
        for i, row in enumerate(rows):
            out.append(row if i == 0 else (out[-1] * row if product else out[-1] + row).astype(x.dtype))
    out = [nothing, *out][: len(out) + initial] if exclusive or initial else out
    result = np.stack(out, axis) if out else np.zeros(x.shape, x.dtype)
    return np.flip(result, axis) if reverse else result


@pytest.mark.parametrize("how", ({}, {"reverse": True}, {"exclusive": True}, {"reverse": True, "exclusive": True},
                                 {"include_initial": True},
                                 {"reverse": True, "include_initial": True}), ids=lambda h: "-".join(h) or "plain")  # fmt: skip
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_axis(shape: tuple[int, ...], how: dict[str, bool]) -> None:
    for dtype in ("float32", "int64"):
        for axis in range(len(shape)):
            x = values(dtype, *shape)
            for product in (False, True):
                got = np.asarray((dvm.cumulative_prod if product else dvm.cumulative_sum)(dvm.asarray(x), axis=axis, **how))
                want = wanted(x, axis, product, how.get("reverse", False), how.get("exclusive", False),
                              how.get("include_initial", False))
                assert got.shape == want.shape and got.tobytes() == np.ascontiguousarray(want).tobytes()


@pytest.mark.parametrize("dtype", [d.name for d in dtypes.DTYPES if d.name not in ("bool", "bfloat16", "float16")])
def test_every_dtype(dtype: str) -> None:
    for axis in (0, 1):
        x = values(dtype, 37, 53)
        got = np.asarray(dvm.cumulative_sum(dvm.asarray(x), axis=axis, dtype=dtype))
        assert got.dtype == x.dtype and got.tobytes() == running_totals(x, axis, 0, 0, 0).tobytes()


def test_instructions_make_them() -> None:
    x = dvm.asarray(values("float32", 64, 96))
    with dvm.Runtime(inline=True) as rt:
        for axis in (0, 1):
            f = dvm.function(lambda x, axis=axis: dvm.exp(-dvm.abs(dvm.cumulative_sum(x * 0.5, axis=axis, exclusive=True))))
            f(x)
            assert "run_sum" in dvm.das(f, x) and "host" not in dvm.das(f, x)
        assert rt.stats()["host_calls"] == 0


def test_not_a_number_and_zeros() -> None:
    x = np.array([[-0.0, -0.0, 1, np.inf, -1, -np.inf, 2], [np.nan, 1, 2, 3, 4, 5, 6]], np.float32)
    for axis in (0, 1):
        got = np.asarray(dvm.cumulative_sum(dvm.asarray(x), axis=axis))
        np.testing.assert_array_equal(got, np.cumsum(x, axis))
        assert (np.signbit(got) == np.signbit(np.cumsum(x, axis)))[~np.isnan(got)].all()
        assert set(got[np.isnan(got)].view(np.uint32)) == {0x7FC00000}


def test_views_and_parts() -> None:
    """What it reads and writes may lie anyhow: transposed, broadcast, reversed, a part of a join."""
    x = values("float64", 12, 7)
    a = dvm.asarray(x)
    np.testing.assert_array_equal(np.asarray(dvm.cumulative_sum(dvm.permute_dims(a, (1, 0)), axis=0)), np.cumsum(x.T, 0))
    np.testing.assert_array_equal(np.asarray(dvm.cumulative_sum(dvm.broadcast_to(a[:, :1], (12, 7)), axis=1)),
                                  np.cumsum(np.repeat(x[:, :1], 7, 1), 1))
    np.testing.assert_array_equal(np.asarray(dvm.permute_dims(dvm.cumulative_sum(a[::-1], axis=1), (1, 0))),
                                  np.cumsum(x[::-1], 1).T)
    joined = dvm.function(lambda a: dvm.concat((dvm.cumulative_sum(a, axis=0, include_initial=True), a * 2), axis=0))(a)
    np.testing.assert_array_equal(np.asarray(joined), np.concatenate((np.zeros((1, 7)), np.cumsum(x, 0), x * 2)))
