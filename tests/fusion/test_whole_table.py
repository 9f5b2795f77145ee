"""Random graphs over the whole operator table: fused, unfused and lazy give the same bytes. whole_table.py runs more of them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fusion.running import check, normal
from tests.fusion.whole_table import check_lazy, check_plans


@pytest.mark.parametrize("seed", range(25))
def test_plans(seed: int) -> None:
    check_plans(seed)


@pytest.mark.parametrize("seed", range(25, 40))
def test_lazy_arrays(seed: int) -> None:
    check_lazy(seed)


def test_counting_to_one_beside_the_result_of_a_row() -> None:
    """A count that does not move along the row is a number: the encoder took it for an element of each strip."""

    def build(op, x):
        most = op.astype(op.max(x, axes=(0,), keepdims=True), dtype="int64")
        return op.add(op.iota(size=1), most), most

    check(build, [normal(5) * 10])


def test_scattering_nothing() -> None:
    """Rows of no elements are put in their places: that was refused by NumPy's reshape, and so by the machine."""

    def build(op, x):
        index = op.expand_dims(op.iota(size=x.shape[0]), axes=(1,))
        return op.scatter_nd(x, index, x, how=0), op.sum(x, axes=(1,), keepdims=False)

    check(build, [normal(7, 0, 2)])
    check(build, [normal(7, 3, 2)])


def test_counting_beside_a_product_of_integers() -> None:
    """The count was put into the epilogue of the product, whose tiles cannot count: there was no plan."""

    def build(op, x, y):
        return op.add(op.iota(size=y.shape[1]), op.matmul(x, y))

    check(build, [np.arange(15).reshape(5, 3), np.arange(21).reshape(3, 7)])
