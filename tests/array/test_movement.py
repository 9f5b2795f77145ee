"""Operators that move elements, against NumPy: lazily, inside of a function with symbolic sizes, inline and through processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import dtypes
from dvm_rt.errors import DeviceTrap, GraphError, ShapeError

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module", params=["inline", "processes"])
def rt(request: pytest.FixtureRequest) -> Iterator[dvm.Runtime]:
    with dvm.Runtime(inline=True) if request.param == "inline" else dvm.Runtime(encoders=1) as runtime:
        yield runtime


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def check(ours: Callable[..., object], theirs: Callable[..., object], *arrays: np.ndarray) -> None:
    """ours(*arrays) lazily, and as a function for all shapes, is theirs(*arrays), element for element."""
    wanted = theirs(*arrays)
    for call in (ours, dvm.function(ours)):
        got = call(*(dvm.asarray(a) for a in arrays))
        several = isinstance(got, (tuple, list))
        for g, w in zip(got if several else [got], wanted if several else [wanted], strict=True):
            np.testing.assert_array_equal(np.asarray(g), w)


CASES: dict[str, tuple[Callable, Callable, tuple]] = {
    "sort": (lambda x: dvm.sort(x), np.sort, (floats(5, 9),)),
    "sort down": (lambda x: dvm.sort(x, axis=0, descending=True), lambda x: -np.sort(-x, axis=0), (floats(5, 9),)),
    "argsort": (lambda x: dvm.argsort(x, axis=0), lambda x: np.argsort(x, axis=0, kind="stable"), (np.round(floats(50, 4)),)),
    "argsort down": (lambda x: dvm.argsort(x, descending=True), lambda x: np.argsort(-x, kind="stable"),
                     (np.round(floats(4, 50)),)),
    "topk": (lambda x: dvm.topk(x, 3), lambda x: (-np.sort(-x)[:, :3], np.argsort(-x, kind="stable")[:, :3]), (floats(6, 11),)),
    "topk small": (lambda x: dvm.topk(x, 2, axis=0, largest=False).values, lambda x: np.sort(x, axis=0)[:2], (floats(6, 11),)),
    "searchsorted": (lambda x, v: dvm.searchsorted(x, v, side="right"), lambda x, v: np.searchsorted(x, v, "right"),
                     (np.sort(np.round(floats(30))), np.round(floats(4, 5)))),
    "count": (dvm.__getattr__("count_nonzero"), np.count_nonzero, (np.round(floats(7, 8)),)),
    "cumulative sum": (lambda x: dvm.cumulative_sum(x, axis=0), lambda x: np.cumsum(x, 0), (floats(7, 8),)),
    "cumulative sum backwards": (lambda x: dvm.cumulative_sum(x, axis=-1, reverse=True), lambda x: np.cumsum(x[:,
        ::-1], 1)[:, ::-1], (floats(7, 8),)),
    "cumulative sum before": (lambda x: dvm.cumulative_sum(x, exclusive=True), lambda x: np.append(np.float32(0),
        np.cumsum(x)[:-1]), (floats(9),)),
    "cumulative sum from 0": (lambda x: dvm.cumulative_sum(x, axis=1, include_initial=True),
                              lambda x: np.cumsum(np.pad(x, [(0, 0), (1, 0)]), 1, np.int64),
                              (np.arange(12, dtype=np.int8).reshape(3, 4) * 11,)),
    "cumulative product": (lambda x: dvm.cumulative_prod(x, axis=1), lambda x: np.cumprod(x, 1), (floats(7, 8),)),
    "cumulative product back to front": (lambda x: dvm.cumulative_prod(x, reverse=True, exclusive=True),
                                         lambda x: np.append(np.cumprod(x[::-1])[-2::-1], 1),
                                         (np.arange(1, 30, dtype=np.uint64),)),
    "flip": (lambda x: dvm.flip(x, axis=1), lambda x: np.flip(x, 1), (floats(3, 5, 2),)),
    "flip all": (lambda x: dvm.flip(x), np.flip, (floats(3, 5, 2),)),
    "roll": (lambda x: dvm.roll(x, 2, axis=1), lambda x: np.roll(x, 2, 1), (floats(4, 7),)),
    "roll back": (lambda x: dvm.roll(x, (-1, 3), axis=(0, 1)), lambda x: np.roll(x, (-1, 3), (0, 1)), (floats(4, 7),)),
    "roll flat": (lambda x: dvm.roll(x, 5), lambda x: np.roll(x, 5), (floats(4, 7),)),
    "moveaxis": (lambda x: dvm.moveaxis(x, (0, 1), (2, 0)), lambda x: np.moveaxis(x, (0, 1), (2, 0)), (floats(2, 3, 4),)),
    "tile": (lambda x: dvm.tile(x, (2, 3)), lambda x: np.tile(x, (2, 3)), (floats(4, 5),)),
    "tile more": (lambda x: dvm.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3)), (floats(4, 5),)),
    "repeat": (lambda x: dvm.repeat(x, 3, axis=1), lambda x: np.repeat(x, 3, 1), (floats(4, 5),)),
    "repeat flat": (lambda x: dvm.repeat(x, 2), lambda x: np.repeat(x, 2), (floats(4, 5),)),
    "pad": (lambda x: dvm.pad(x, [(1, 2), (0, 3)], value=1.5), lambda x: np.pad(x, [(1, 2), (0, 3)],
        constant_values=1.5), (floats(4, 5),)),
    "pad edge": (lambda x: dvm.pad(x, [(1, 2), (2, 0)], mode="edge"), lambda x: np.pad(x, [(1, 2), (2, 0)],
        mode="edge"), (floats(4, 5),)),
    "pad reflect": (lambda x: dvm.pad(x, [(3, 2), (2, 4)], mode="reflect"), lambda x: np.pad(x, [(3, 2), (2, 4)],
        mode="reflect"), (floats(4, 5),)),
    "pad wrap": (lambda x: dvm.pad(x, [(3, 2), (2, 4)], mode="wrap"), lambda x: np.pad(x, [(3, 2), (2, 4)],
        mode="wrap"), (floats(4, 5),)),
    "crop": (lambda x: dvm.pad(x, [(-1, -1), (0, -2)]), lambda x: x[1:-1, :-2], (floats(4, 5),)),
    "tril": (lambda x: dvm.tril(x, k=1), lambda x: np.tril(x, 1), (floats(2, 4, 6),)),
    "triu": (lambda x: dvm.triu(x, k=-1), lambda x: np.triu(x, -1), (floats(2, 6, 4),)),
    "one hot": (lambda i: dvm.one_hot(i, 5), lambda i: np.eye(5, dtype=np.float32)[i],
                (np.array([[0, 4], [2, 1], [3, 3]], np.int32),)),
    "take 1": (lambda x, i: dvm.take(x, i, axis=1), lambda x, i: np.take(x, i, 1), (floats(3, 6, 5), np.array([5, 0, -1, 2]))),
    "take last": (lambda x, i: dvm.take(x, i, axis=-1), lambda x, i: np.take(x, i, -1),
                  (floats(3, 6), np.array([[5, 0], [-1, 2]]))),
    "along": (lambda x, i: dvm.take_along_axis(x, i, axis=1), lambda x, i: np.take_along_axis(x, i, 1),
              (floats(3, 6), RNG.integers(-6, 6, (3, 9)))),
    "gather nd": (lambda x, i: dvm.gather_nd(x, i), lambda x, i: x[i[..., 0], i[..., 1]],
                  (floats(3, 6, 2), RNG.integers(-3, 3, (4, 5, 2)))),
    "scatter": (lambda x, i, u: dvm.scatter(x, i, u, axis=1), lambda x, i, u: put_along(x, i, u, 1),
                (floats(3, 6), RNG.integers(0, 6, (3, 9)), floats(3, 9))),
    "scatter add": (lambda x, i, u: dvm.scatter_nd(x, i, u, how="add"), lambda x, i, u: added(x, i, u),
                    (floats(5, 3), RNG.integers(-5, 5, (40, 1)), floats(40, 3))),
    "index add": (lambda x, i, u: dvm.index_add(x, i, u, axis=1), lambda x, i, u: added(x.T, i[:, None], u.T).T,
                  (floats(3, 5), RNG.integers(0, 5, 40), floats(3, 40))),
    "steps": (lambda x: x[::-2, 1::3], lambda x: x[::-2, 1::3], (floats(7, 11),)),
    "beyond the end": (lambda x: x[2:100, -50:3], lambda x: x[2:100, -50:3], (floats(7, 11),)),
    "nothing left": (lambda x: x[9:, 5:2], lambda x: x[9:, 5:2], (floats(7, 11),)),
    "reversed part": (lambda x: x[5:1:-2], lambda x: x[5:1:-2], (floats(7, 11),)),
    "arrays": (lambda x: x[:, [0, 2, -1]], lambda x: x[:, [0, 2, -1]], (floats(3, 6, 5),)),
    "two arrays": (lambda x: x[[0, 1], [2, -1]], lambda x: x[[0, 1], [2, -1]], (floats(3, 6, 5),)),
    "apart": (lambda x: x[[0, 1], :, [2, -1]], lambda x: x[[0, 1], :, [2, -1]], (floats(3, 6, 5),)),
    "grid": (lambda x: x[:, [[0], [1]], [2, -1, 3]], lambda x: x[:, [[0], [1]], [2, -1, 3]], (floats(3, 6, 5),)),
    "mixed": (lambda x: x[1:, None, [4, 0], ..., 1], lambda x: x[1:, None, [4, 0], ..., 1], (floats(3, 6, 5),)),
    "set block": (lambda x, v: dvm.updated(x, (slice(1, 3), slice(2, None)), v), lambda x, v: assigned(x,
        np.s_[1:3, 2:], v), (floats(4, 5), floats(2, 3))),
    "set row": (lambda x: dvm.updated(x, -1, 2.0), lambda x: assigned(x, -1, 2.0), (floats(4, 5),)),
    "set rows": (lambda x, v: dvm.updated(x, [3, 0, 3], v), lambda x, v: assigned(x, [3, 0, 3], v), (floats(4, 5), floats(3, 5))),
    "set columns": (lambda x, v: dvm.updated(x, (slice(None), [3, 0]), v), lambda x, v: assigned(x, np.s_[:, [3, 0]],
        v), (floats(4, 5), floats(4, 2))),
    "set mask": (lambda x: dvm.updated(x, x > 0, -1.0), lambda x: assigned(x, x > 0, -1.0), (floats(4, 5),)),
    "stack": (lambda x, y: dvm.stack([x, y], axis=1), lambda x, y: np.stack([x, y], 1), (floats(4, 5), floats(4, 5))),
    "meshgrid": (lambda x, y: dvm.meshgrid(x, y), lambda x, y: np.meshgrid(x, y), (floats(4), floats(5))),
}  # fmt: skip


def put_along(x: np.ndarray, i: np.ndarray, u: np.ndarray, axis: int) -> np.ndarray:
    out = x.copy()
    np.put_along_axis(out, i, u, axis)
    return out


def added(x: np.ndarray, i: np.ndarray, u: np.ndarray) -> np.ndarray:
    out = x.copy()
    np.add.at(out, i[:, 0], u)
    return out


def assigned(x: np.ndarray, key: object, value: object) -> np.ndarray:
    out = x.copy()
    out[key] = value
    return out


@pytest.mark.parametrize("name", CASES)
def test_against_numpy(rt: dvm.Runtime, name: str) -> None:
    ours, theirs, arrays = CASES[name]
    check(ours, theirs, *arrays)


# ---- sizes that depend on values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (1,), (7, 9), (3, 0, 2), (64, 65)])
def test_sizes_that_depend_on_values(rt: dvm.Runtime, shape: tuple[int, ...]) -> None:
    a = np.round(floats(*shape))
    x = dvm.asarray(a) + 0.0
    for got, want in zip(dvm.nonzero(x), np.nonzero(a), strict=True):
        np.testing.assert_array_equal(np.asarray(got), want)
    np.testing.assert_array_equal(np.asarray(dvm.argwhere(x > 0)), np.argwhere(a > 0))
    np.testing.assert_array_equal(np.asarray(x[x > 0]), a[a > 0])
    np.testing.assert_array_equal(np.asarray(dvm.compress(x, dvm.asarray(a.any(axis=tuple(range(1, a.ndim)))))),
                                  a[a.any(axis=tuple(range(1, a.ndim)))])
    ours, theirs = dvm.unique_all(x), np.unique(a, return_index=True, return_inverse=True, return_counts=True)
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(got), want.reshape(got.shape))
    counts = RNG.integers(0, 4, shape[0])
    np.testing.assert_array_equal(np.asarray(dvm.repeat(x, dvm.asarray(counts), axis=0)), np.repeat(a, counts, 0))


def test_the_results_can_be_computed_with(rt: dvm.Runtime) -> None:
    a = floats(40, 3)
    rows = dvm.asarray(a)[dvm.asarray(a[:, 0]) > 0.5]
    np.testing.assert_allclose(np.asarray((rows * 2 + 1).sum(axis=0)), (a[a[:, 0] > 0.5] * 2 + 1).sum(0), 1e-5)
    few = dvm.asarray(a)[dvm.asarray(a[:, 0]) > 5]
    assert few.shape == (0, 3) and np.asarray(few * 2).shape == (0, 3)


def test_nan_is_different_from_itself(rt: dvm.Runtime) -> None:
    a = np.array([np.nan, 1.0, np.nan, 1.0], np.float32)
    assert dvm.unique_values(dvm.asarray(a)).shape == (3,)
    assert np.isnan(np.asarray(dvm.sort(dvm.asarray(a)))[2:]).all()


def test_inside_of_a_function_a_size_that_is_given_keeps_it_one_launch(rt: dvm.Runtime) -> None:
    a = np.array([0.0, 2.0, 0.0, 3.0, 4.0], np.float32)
    first = dvm.function(lambda x: dvm.nonzero(x, size=2)[0])
    assert np.asarray(first(dvm.asarray(a))).tolist() == [1, 3]
    assert dvm.stats()["walked_calls"] == 0
    for number, (walked, wanted) in enumerate(
        ((lambda x: x[x > 0], a[a > 0]), (lambda x: dvm.unique_values(x), np.unique(a)),
         (lambda x: dvm.nonzero(x)[0], np.nonzero(a)[0])), 1
    ):
        assert np.asarray(dvm.function(walked)(dvm.asarray(a))).tolist() == wanted.tolist()
        assert dvm.stats()["walked_calls"] == number



# ---- updates ------------------------------------------------------------------------------------------------------


def test_assignment_makes_another_array(rt: dvm.Runtime) -> None:
    a = floats(5, 6)
    x = dvm.asarray(a)
    before, later, alias = x * 2, x + 0.0, x[1:3]
    x[1:3, ::2] = 7.0
    x[-1] = later[0]
    x[[0, 2], [1, -1]] = [8.0, 9.0]
    x[x < -1] = 0.0
    want = a.copy()
    want[1:3, ::2] = 7.0
    want[-1] = a[0]
    want[[0, 2], [1, -1]] = [8.0, 9.0]
    want[want < -1] = 0.0
    np.testing.assert_array_equal(np.asarray(x), want)
    np.testing.assert_array_equal(np.asarray(before), a * 2)
    np.testing.assert_array_equal(np.asarray(alias), a[1:3])
    pending = x + 1
    reader = pending * 2
    pending[0] = 5.0
    np.testing.assert_array_equal(np.asarray(reader), (want + 1) * 2)
    np.testing.assert_array_equal(np.asarray(pending), assigned(want + 1, 0, 5.0))


def test_blocks_are_replaced_at_any_place(rt: dvm.Runtime) -> None:
    a = floats(4, 5, 3)
    for key in (np.s_[1], np.s_[-1, 2:4], np.s_[:, 0], np.s_[..., -2:], np.s_[1:1], np.s_[0:100, 1:-1, 2],
                np.s_[...], np.s_[2, 3, 1], np.s_[::-1, 1::3]):
        value = floats(*a[key].shape)
        np.testing.assert_array_equal(np.asarray(dvm.updated(dvm.asarray(a), key, value)), assigned(a, key, value))


# ---- failures -----------------------------------------------------------------------------------------------------


def test_an_index_outside_fails_its_launch_alone(rt: dvm.Runtime) -> None:
    x = dvm.asarray(floats(4, 3))
    bad = dvm.take_along_axis(x, dvm.asarray(np.full((1, 3), 4)), axis=0)
    with pytest.raises(DeviceTrap, match=r"host function take_along_axis: index out of range, got 4, allowed -4 to 3"):
        np.asarray(bad)
    with pytest.raises(DeviceTrap, match="take_along_axis"):
        np.asarray(bad * 2)
    np.testing.assert_array_equal(np.asarray(dvm.sort(x)), np.sort(np.asarray(x)))


I = np.int64
NUMPY_NUMBERS: dict[str, tuple[Callable, Callable]] = {
    "sum": (lambda x: dvm.sum(x, axis=I(1)), lambda x: x.sum(1)),
    "permute": (lambda x: dvm.permute_dims(x, np.array([2, 0, 1])), lambda x: x.transpose(2, 0, 1)),
    "softmax": (lambda x: dvm.argmax(x, axis=I(-1)), lambda x: x.argmax(-1)),
    "split": (lambda x: dvm.split(x, I(2), axis=I(2)), lambda x: np.split(x, 2, 2)),
    "split at": (lambda x: dvm.split(x, np.array([1, 3]), axis=2), lambda x: np.split(x, [1, 3], 2)),
    "tile": (lambda x: dvm.tile(x, I(2)), lambda x: np.tile(x, 2)),
    "tile each": (lambda x: dvm.tile(x, np.array([2, 1])), lambda x: np.tile(x, (2, 1))),
    "pad": (lambda x: dvm.pad(x, I(1)), lambda x: np.pad(x, 1)),
    "pad each": (lambda x: dvm.pad(x, np.array([[1, 2], [0, 1], [0, 0]])), lambda x: np.pad(x, [[1, 2], [0, 1], [0, 0]])),
    "roll": (lambda x: dvm.roll(x, I(2), axis=I(1)), lambda x: np.roll(x, 2, 1)),
    "roll each": (lambda x: dvm.roll(x, [1, 2], axis=[0, 2]), lambda x: np.roll(x, (1, 2), (0, 2))),
    "moveaxis": (lambda x: dvm.moveaxis(x, I(0), I(2)), lambda x: np.moveaxis(x, 0, 2)),
    "moveaxis each": (lambda x: dvm.moveaxis(x, [0, 1], [1, 2]), lambda x: np.moveaxis(x, [0, 1], [1, 2])),
    "expand": (lambda x: dvm.expand_dims(x, axis=I(1)), lambda x: np.expand_dims(x, 1)),
    "vecdot": (lambda x: dvm.vecdot(x, x, axis=I(-1)), lambda x: (x * x).sum(-1)),
    "tensordot": (lambda x: dvm.tensordot(x, x, axes=I(0)), lambda x: np.tensordot(x, x, 0)),
    "pool": (lambda x: dvm.max_pool(x, I(2), stride=np.array([1]), padding=I(0)),
             lambda x: np.maximum(x[..., 1:], x[..., :-1])),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMPY_NUMBERS)
def test_whole_numbers_of_numpy_are_whole_numbers(name: str) -> None:
    check(*NUMPY_NUMBERS[name], np.arange(24, dtype=np.float32).reshape(2, 3, 4))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_indices_of_every_whole_dtype(dtype: str) -> None:
    a, i = floats(5, 4), np.array([[3, 0, 1, 1], [2, 2, 3, 0]], dtype)
    x, rows = dvm.asarray(a), dvm.asarray(i)
    for got, want in (
        (x[rows], a[i]), (x[1:, rows], a[1:, i]), (dvm.take(x, rows[0], axis=1), np.take(a, i[0], 1)), (x[rows, rows], a[i, i]),
        (dvm.take_along_axis(x, rows, axis=0), np.take_along_axis(a, i, 0)),
        (dvm.updated(x, rows[0], 1.0), assigned(a, i[0], 1.0)),
        (dvm.scatter(x, rows, rows.astype("float32")), put_along(a, i.astype(np.int64), i.astype(np.float32), 0)),
        (dvm.index_add(x, rows[1], x[:4]), added(a, i[1].astype(np.int64)[:, None], a[:4])),
    ):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(got), want)
    with pytest.raises(dvm.DeviceTrap):
        np.asarray(x[dvm.asarray(np.array([np.iinfo(dtype).max], dtype))])


def test_take_from_nothing(rt: dvm.Runtime) -> None:
    rows, none = dvm.asarray(np.zeros((0, 3), np.float32)), dvm.asarray(np.zeros(0, np.int64))
    pick = dvm.function(lambda x, i: dvm.take(x, i) + 1)
    assert pick(rows, none).shape == (0, 3)
    assert pick(dvm.asarray(floats(2, 3)), dvm.asarray([1, 0, 1])).shape == (3, 3)
    with pytest.raises(ShapeError, match="at least one row"):
        pick(rows, dvm.asarray([0, 0]))
    assert dvm.take(rows, none).shape == (0, 3)


def test_arguments_that_mean_nothing() -> None:
    x = dvm.asarray(floats(4, 5))
    for act in (
        lambda: dvm.sort(x, axis=2), lambda: dvm.topk(x, 6), lambda: dvm.pad(x, [(1, 2)]), lambda: dvm.pad(x, 1, mode="none"),
        lambda: dvm.pad(x, [(4, 0), (0, 0)], mode="reflect"), lambda: dvm.repeat(x, -1), lambda: dvm.moveaxis(x, (0, 0), (0, 1)),
        lambda: dvm.meshgrid(x), lambda: dvm.tril(x[0]), lambda: x[[0], [0], [0]], lambda: x[[0.5]], lambda: dvm.arange(0, 5, 0),
        lambda: dvm.scatter(x, dvm.asarray([[0]]), x), lambda: dvm.searchsorted(x, x), lambda: dvm.nonzero(x.sum()),
    ):  # fmt: skip
        with pytest.raises((ShapeError, GraphError, dvm.DTypeError), match=r"got .*, allowed "):
            act()


# ---- host functions in the runtime --------------------------------------------------------------------------------


def test_they_are_counted_and_shown() -> None:
    with dvm.Runtime(inline=True, encode="caller") as rt:
        f = dvm.function(lambda x: dvm.topk(dvm.exp(x), 2, axis=1).values * 2)
        x = dvm.asarray(floats(5, 8))
        launched = rt.stats()["launched"]
        np.testing.assert_allclose(np.asarray(f(x)), -np.sort(-np.exp(np.asarray(x)), 1)[:, :2] * 2, 1e-6)
        stats = rt.stats()
        assert stats["launched"] == launched + 1 and stats["host_calls"] == 2 and stats["host_ns"] > 0
        text = dvm.explain(f, x)
        assert "host [s0, 2]: topk" in text and "host [s0, 2]: take_along_axis" in text
        assert "section1 host" in dvm.das(f, x)


def test_running_sums_of_every_dtype() -> None:
    """Those of 16 bits are rounded once, at the end; infinity stays behind where it began."""
    a = np.array([0.1, 1000.0, 0.3, -0.7, 3000.0, 0.04] * 5, np.float32)
    for dtype in (dvm.float16, dvm.bfloat16):
        x = dvm.asarray(a, dtype)
        wide = dvm.cumulative_sum(x.astype(dvm.float32)).astype(dtype)
        got = dvm.cumulative_sum(x)
        assert got.dtype is dtype and np.asarray(got).tobytes() == np.asarray(wide).tobytes()
    b = np.array([1.0, np.inf, 2.0, -np.inf, 3.0], np.float32)
    np.testing.assert_array_equal(np.asarray(dvm.cumulative_sum(dvm.asarray(b))), [1.0, np.inf, np.inf, np.nan, np.nan])
    for dtype, wanted in ((dvm.uint8, dvm.uint64), (dvm.int16, dvm.int64), (dvm.bool_, dvm.int64), (dvm.float64, dvm.float64)):
        got = dvm.cumulative_prod(dvm.asarray([1, 1, 0], dtype))
        assert got.dtype is wanted and got.tolist() == [1, 1, 0]
    assert dvm.cumulative_sum(dvm.asarray([100, 100], dvm.int8), dtype=dvm.int8).tolist() == [100, -56]
    with pytest.raises(ShapeError, match="cumulative_sum: axis"):
        dvm.cumulative_sum(dvm.asarray(a.reshape(5, 6)))
    with pytest.raises(GraphError, match="include_initial with exclusive"):
        dvm.cumulative_prod(dvm.asarray(a), include_initial=True, exclusive=True)


@pytest.mark.parametrize("dtype", dtypes.DTYPES, ids=lambda d: d.name)
def test_taken_rows_of_every_dtype(dtype: dtypes.DType) -> None:
    """Rows of all lengths, with any bits: what is stored is what was there, but for NaN, which is canonical."""
    rng = np.random.default_rng(23)
    for width in (1, 3, 16, 31, 32, 64, 65, 200):
        bits = rng.integers(0, 256, (40, width * dtype.bytes), np.uint8)
        x = (bits & 1).astype(bool) if dtype is dtypes.bool_ else bits.view(dtype.numpy)
        picks = rng.integers(-40, 40, 70)
        table = dvm.asarray(dtypes.from_bits(x).astype(np.float32) if dtype is dtypes.bfloat16 else x, dtype)
        got = np.asarray(dvm.take(table, dvm.asarray(picks), axis=0))
        wanted = np.asarray(table)[picks]
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)
        if dtype.kind == "f":
            assert len(set(got[np.isnan(got)].view(f"u{got.itemsize}").tolist())) <= 1
        else:
            assert got.tobytes() == wanted.tobytes()


def test_a_killed_device_changes_nothing() -> None:
    a = np.round(floats(200, 40) * 3)

    def work() -> list[bytes]:
        out, x = [], dvm.asarray(a)
        for i in range(12):
            y = dvm.sort(x * (i + 1.0), axis=1)
            values, counts = dvm.unique_counts(y[: 10 * (i + 1)])
            out += [np.asarray(v).tobytes() for v in (y[y > i], values, counts, dvm.scatter_nd(y,
                dvm.asarray([[i], [0], [i]]), y[:3], how="add"))]
        return out

    with dvm.Runtime(inline=True):
        wanted = work()
    with dvm.Runtime(encoders=1) as rt:
        assert work() == wanted
        import threading

        for delay in (0.0, 0.01, 0.03):
            killer = threading.Timer(delay, rt.kill, ("device", signal.SIGKILL))
            killer.start()
            assert work() == wanted
            killer.join()
        assert rt.stats()["host_calls"] > 0 and rt.stats()["devices_lost"] > 0
