"""Products of the same rows with several constant matrices are one product, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.array.function import planned_for
from dvm_rt.fusion import projections
from tests.fusion.running import normal


@pytest.fixture(autouse=True, params=[{"inline": True}, {"encoders": 0}], ids=["inline", "processes"])
def runtime(request: pytest.FixtureRequest) -> Iterator[dvm.Runtime]:
    with dvm.Runtime(**request.param) as runtime:
        yield runtime


def rows_of(x, w, b):
    return dvm.linear(x, w, b)


def columns_of(x, w, b):
    return x @ w + b


def plain(x, w, b):
    return x @ w.T


def weights(form: Callable, k: int, columns: tuple[int, ...]) -> list[tuple]:
    shape = (lambda n: (k, n)) if form is columns_of else (lambda n: (n, k))
    return [(dvm.asarray(normal(*shape(n), seed=n + i)), dvm.asarray(normal(n, seed=i))) for i, n in enumerate(columns)]


def joined(form: Callable, given: list[tuple]) -> dvm.Function:
    def parts(x):
        return tuple(dvm.reshape(form(x, w, b), (x.shape[0], -1, 1)) for w, b in given)

    return dvm.function(parts)


@pytest.mark.parametrize("form", [rows_of, columns_of, plain])
@pytest.mark.parametrize("k", [1, 40, 1024, 2050])
@pytest.mark.parametrize("columns", [(32, 64, 96), (64, 64), (64, 33, 32)])
def test_same_bits_as_alone(form: Callable, k: int, columns: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projections, "MATRIX_BYTES_MAX", 1 << 30)
    given = weights(form, k, columns)
    together = joined(form, given)
    for rows in (3, 1, 70):
        x = dvm.asarray(normal(rows, k, seed=rows))
        for got, (w, b) in zip(together(x), given, strict=True):
            want = np.asarray(form(x, w, b))
            assert np.asarray(got).reshape(want.shape).tobytes() == want.tobytes()
    planned = planned_for(together, (x,), {})[1]
    kinds = [k.kind for k in planned.fused.report.kernels]
    assert kinds.count("matmul") == 1, planned.fused.report.text()
    assert "projections" in planned.fused.report.text()


@pytest.mark.parametrize("columns", [(33, 65), (40, 40, 32)])
def test_panels_that_are_not_full_stay_apart(columns: tuple[int, ...]) -> None:
    given = weights(rows_of, 16, columns)
    planned = planned_for(joined(rows_of, given), (dvm.asarray(normal(3, 16)),), {})[1]
    assert [k.kind for k in planned.fused.report.kernels].count("matmul") == len(columns)


@pytest.mark.parametrize(("k", "products"), [(128, 1), (256, 2)])
def test_large_matrices_stay_apart(k: int, products: int) -> None:
    given = weights(rows_of, k, (128, 128))
    planned = planned_for(joined(rows_of, given), (dvm.asarray(normal(3, k)),), {})[1]
    assert [kernel.kind for kernel in planned.fused.report.kernels].count("matmul") == products
    assert ("not used: a matrix of 131072 bytes" in planned.fused.report.text()) == (products == 2)


def test_what_runs_in_the_tile_stays_there() -> None:
    (gate, _), (up, _) = weights(columns_of, 16, (64, 64))
    planned = planned_for(dvm.function(lambda x: dvm.silu(x @ gate) * (x @ up)), (dvm.asarray(normal(3, 16)),), {})[1]
    assert [k.kind for k in planned.fused.report.kernels] == ["matmul", "matmul"]


def test_attention_reads_its_parts_as_they_lie() -> None:
    given = weights(rows_of, 64, (64, 64, 64))

    def attend(x):
        b, t, d = x.shape
        q, k, v = (dvm.permute_dims(dvm.reshape(dvm.linear(x, *wb), (b, t, 4, d // 4)), (0, 2, 1, 3)) for wb in given)
        return dvm.matmul(dvm.softmax(dvm.matmul(q, dvm.permute_dims(k, (0, 1, 3, 2))) * 0.25, axis=-1), v)

    x = dvm.asarray(normal(2, 7, 64))
    planned = planned_for(dvm.function(attend), (x,), {})[1]
    assert [k.kind for k in planned.fused.report.kernels] == ["matmul", "attention"], planned.fused.report.text()


def test_other_matrices_are_packed_anew_and_old_ones_go() -> None:
    """As arguments' sizes are symbols, matrices are captured: each function has its own, the first of them the same."""
    first, second = weights(rows_of, 32, (32, 32))
    x = dvm.asarray(normal(3, 32))
    for seed in range(3):
        other = (dvm.asarray(normal(32, 32, seed=50 + seed)), second[1])
        got = joined(rows_of, [first, other])(x)[1]
        want = np.asarray(dvm.linear(x, *other))
        assert np.asarray(got).reshape(want.shape).tobytes() == want.tobytes()
