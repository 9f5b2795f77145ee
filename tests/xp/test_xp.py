"""The Array API namespace: every name is there, what works gives what NumPy gives, and what is missing says so."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import dvm_rt as dvm
import dvm_rt.xp as xp

STANDARD = """abs acos acosh add all any arange argmax argmin argsort asarray asin asinh astype atan atan2 atanh bitwise_and
bitwise_invert bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor broadcast_arrays broadcast_to can_cast ceil
clip concat conj copysign cos cosh count_nonzero cumulative_prod cumulative_sum diff divide e empty empty_like equal exp
expand_dims expm1 eye finfo flip floor floor_divide from_dlpack full full_like greater greater_equal hypot iinfo imag inf
isdtype isfinite isinf isnan less less_equal linspace log log10 log1p log2 logaddexp logical_and logical_not logical_or
logical_xor matmul matrix_transpose max maximum mean meshgrid min minimum moveaxis multiply nan negative newaxis nextafter
nonzero not_equal ones ones_like permute_dims pi positive pow prod real reciprocal remainder repeat reshape result_type roll
round searchsorted sign signbit sin sinh sort sqrt square squeeze stack std subtract sum take take_along_axis tan tanh
tensordot tile tril triu trunc unique_all unique_counts unique_inverse unique_values unstack var vecdot where zeros
zeros_like bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 __array_api_version__
__array_namespace_info__""".split()


def test_every_name_of_the_standard_is_there() -> None:
    assert [n for n in STANDARD if not hasattr(xp, n)] == []
    assert set(xp.NOT_THERE) <= set(STANDARD) and set(xp.NOT_THERE).isdisjoint(xp.SAME)
    for name in xp.NOT_THERE:
        with pytest.raises(dvm.UnsupportedOperatorError, match=f"xp: {name}: not there yet"):
            getattr(xp, name)(dvm.asarray([1.0]))
    assert dvm.asarray([1]).__array_namespace__() is xp


A = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7
M = np.array([[3, -1, 2], [0, 5, 2]], np.int16)
CASES = {
    "abs": (A,), "add": (A, A), "divide": (A, A + 50), "floor_divide": (M, M + 20), "remainder": (M, M + 20),
    "pow": (A + 8, A / 8),
    "hypot": (A, A), "sign": (A,), "square": (M,), "isnan": (A,), "logaddexp": (A, A / 2), "bitwise_xor": (M, M + 3),
    "where": (A > 0, A, -A),
    "matmul": (A, A.transpose(0, 2, 1)), "tril": (A,), "triu": (A,), "flip": (A,), "broadcast_arrays": (A, A[:1]), "diff": (A,),
    "mean": (A,), "std": (A,), "var": (A,), "prod": (M,), "sum": (M,), "max": (M,), "argmin": (A,),
    "count_nonzero": (M,), "all": (M,),
    "clip": (M, 0, 2), "tile": (M, (2, 2)), "repeat": (M, 2), "zeros_like": (M,), "full_like": (M, 3),
    "vecdot": (A, A), "sin": (A,),
    "log1p": (A + 8,), "expm1": (A / 8,), "trunc": (A / 3,), "copysign": (A, -A), "atan2": (A, A + 1),
    "sort": (A[::-1] % 5,), "argsort": (A[0, 0],), "nonzero": (M,), "unique_values": (M,), "unique_counts": (M,),
    "unique_inverse": (M,),
    "unique_all": (M,), "cumulative_sum": (M[0],), "cumulative_prod": (A[0, 1],),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values(name: str) -> None:
    args = [dvm.asarray(a) if isinstance(a, np.ndarray) else a for a in CASES[name]]
    got = getattr(xp, name)(*args)
    own = {"vecdot": lambda a, b: (a * b).sum(-1), "pow": np.power, "atan2": np.arctan2,
           "unique_values": np.unique}  # NumPy's are unordered
    want = own.get(name, getattr(np, name, None))(*CASES[name])
    for g, w in zip(got if isinstance(got, (tuple, list)) else [got], want if isinstance(want, (tuple, list))
                    else [want], strict=True):
        assert g.shape == w.shape
        np.testing.assert_allclose(np.asarray(g).astype(np.float64), np.asarray(w, np.float64), 2e-5, 1e-5)


def test_shapes() -> None:
    x = dvm.asarray(A)
    assert xp.roll(x, 5).tolist() == np.roll(A, 5).tolist() and xp.roll(x, (1, -1),
        axis=(0, 2)).tolist() == np.roll(A, (1, -1), (0, 2)).tolist()
    assert xp.moveaxis(x, 0, 2).tolist() == np.moveaxis(A, 0, 2).tolist() and xp.moveaxis(x, (0, 1), (-1, 0)).shape == (3, 4, 2)
    assert xp.concat([x, x], axis=None).shape == (48,) and [u.tolist() for u in xp.unstack(x, axis=1)] == [A[:,
        i].tolist() for i in range(3)]
    assert xp.take(x, dvm.asarray([2, 0]), axis=1).tolist() == A[:, [2, 0]].tolist()
    assert xp.take(x, dvm.asarray([[2, 0]]), axis=2).tolist() == np.take(A, [[2, 0]], 2).tolist()
    places = xp.searchsorted(xp.asarray([5, 1, 3]), xp.asarray([3, 6]), side="right", sorter=xp.asarray([1, 2, 0]))
    assert places.tolist() == [2, 3] and xp.take_along_axis(x, xp.argsort(-x), axis=-1).tolist() == A[..., ::-1].tolist()
    assert xp.tensordot(x, x, axes=([0, 2], [0, 2])).tolist() == np.tensordot(A, A, ([0, 2], [0, 2])).tolist()
    assert xp.reshape(x, (-1,)).shape == (24,) and xp.expand_dims(x, axis=0).shape == (1, 2, 3, 4)
    for ours, theirs in zip(xp.meshgrid(xp.arange(2), xp.arange(3)), np.meshgrid(np.arange(2), np.arange(3)), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_creation_and_dtypes() -> None:
    assert xp.zeros((2,), dtype=xp.int8, device="cpu").tolist() == [0, 0] and xp.eye(2, 3, k=1).tolist() == np.eye(2,
        3, 1).tolist()
    assert xp.empty((0, 3)).shape == (0, 3) and xp.asarray([1, 2], dtype=xp.uint8).dtype is xp.uint8 and xp.ones(
        3).dtype is xp.float32
    assert xp.result_type(xp.int8, xp.uint8) is xp.int16 and xp.result_type(xp.asarray([1]), 1.0) is xp.float32
    assert xp.can_cast(xp.int8, xp.int16) and not xp.can_cast(xp.int16, xp.int8) and not xp.can_cast(xp.uint64, xp.int64)
    assert xp.isdtype(xp.uint8, "integral") and xp.isdtype(xp.float32, ("bool", "numeric")) and not xp.isdtype(xp.bool, "numeric")
    assert xp.finfo(xp.float32).eps == 2**-23 and xp.iinfo(xp.int16).max == 32767 and xp.finfo(dvm.bfloat16).bits == 16
    info = xp.__array_namespace_info__()
    assert info.default_dtypes()["integral"] is xp.int64 and "float16" not in info.dtypes() and set(
        info.dtypes(kind="bool")) == {"bool"}
    with pytest.raises(dvm.DTypeError):
        xp.result_type(xp.uint64, xp.int8)


@pytest.mark.parametrize("name", [n for n in STANDARD if callable(getattr(xp, n, None)) and not inspect.isclass(getattr(xp, n))])
def test_functions_are_documented(name: str) -> None:
    assert getattr(xp, name).__doc__ and getattr(xp, name).__name__ == name
