"""einsum and its kin against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.errors import DvmError

CASES = [
    ("ij,jk->ik", (3, 4), (4, 5)), ("ij,jk", (3, 4), (4, 5)), ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("ij,ij->", (3, 4), (3, 4)),
    ("i,j->ij", (3,), (4,)), ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)), ("bqhd,bkhd->bhqk", (2, 4, 3, 5), (2, 6, 3, 5)),
    ("ii->i", (4, 4)), ("ii", (4, 4)), ("iij->ij", (4, 4, 3)), ("ijk->kji", (2, 3, 4)), ("ij->", (3, 4)), ("ij->j", (3, 4)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)), ("...ij,...jk->...ik", (2, 3, 4), (2, 4, 5)), ("...i,i->...", (2, 3, 4), (4,)),
    ("abc,cd,bde->ae", (2, 3, 4), (4, 5), (3, 5, 6)), ("ij,j->i", (3, 4), (4,)), ("ab,ab->ab", (3, 4), (3, 4)),
    ("ij,kl->ijkl", (2, 3), (4, 5)), ("bij,bj->bi", (2, 3, 4), (2, 4)), ("ijk,jk->i", (2, 3, 4), (3, 4)),
    ("ijx,jk->ik", (3, 4, 2), (4, 5)), ("bij,bjk->bik", (1, 3, 4), (2, 4, 5)), ("i,i->", (0,), (0,)),
    ("ij,jk->ik", (0, 3), (3, 2)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_einsum(case: tuple) -> None:
    equation, *shapes = case
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    got = np.asarray(dvm.einsum(equation, *map(dvm.asarray, arrays)))
    want = np.einsum(equation, *(a.astype(np.float64) for a in arrays))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_symbolic_sizes() -> None:
    @dvm.function
    def scores(q, k):
        return dvm.einsum("bqhd,bkhd->bhqk", q, k)

    random = np.random.default_rng(1)
    for batch, queries, keys in ((1, 3, 7), (2, 8, 1)):
        q, k = (random.standard_normal((batch, n, 2, 5)).astype(np.float32) for n in (queries, keys))
        want = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k)
        np.testing.assert_allclose(np.asarray(scores(dvm.asarray(q), dvm.asarray(k))), want, rtol=1e-5, atol=1e-5)


def test_other_products() -> None:
    random = np.random.default_rng(2)
    x, y = (random.standard_normal(s).astype(np.float32) for s in ((2, 3, 4), (3, 4, 5)))
    a, b = dvm.asarray(x), dvm.asarray(y)
    np.testing.assert_allclose(np.asarray(dvm.tensordot(a, b)), np.tensordot(x, y), rtol=1e-5, atol=1e-5)
    swapped = np.tensordot(x, y, ((1,), (0,)))
    np.testing.assert_allclose(np.asarray(dvm.tensordot(a, b, axes=((1,), (0,)))), swapped, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.asarray(dvm.vecdot(a, a)), (x * x).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(dvm.outer(a[0, 0], b[0, 0])), np.outer(x[0, 0], y[0, 0]))


@pytest.mark.parametrize("equation", ["ij,jk->il", "ij->ii", "i,jk->", "i1,jk->", "ij,jk,kl->il"])
def test_refused(equation: str) -> None:
    a = dvm.asarray(np.ones((3, 3), np.float32))
    with pytest.raises(DvmError):
        dvm.einsum(equation, a, a)
