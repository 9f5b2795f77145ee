"""Matrices of which only the packed form is kept: nobody can tell, but by the memory report."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import dvm_rt as dvm

SHAPES = [(64, 96), (70, 33), (2100, 70), (1, 5), (5, 1), (1030, 32)]  # (K, N): several slices of K, panels that are not full


@pytest.fixture(params=[{"inline": True}, {"encoders": 0}], ids=["inline", "processes"])
def runtime(request: pytest.FixtureRequest) -> Iterator[dvm.Runtime]:
    with dvm.Runtime(**request.param) as runtime:
        yield runtime


def matrix(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def tensors(runtime: dvm.Runtime) -> int:
    return runtime.stats()["memory"]["tensors"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turned", [False, True])
def test_released_and_unpacked_again(runtime: dvm.Runtime, shape: tuple[int, int], turned: bool) -> None:
    k, n = shape
    host, x = matrix(n, k) if turned else matrix(k, n), dvm.asarray(matrix(3, k))
    product = dvm.function(dvm.linear if turned else dvm.matmul)
    w = dvm.asarray(host)
    want = np.asarray(product(x, w)).copy()
    freed = runtime.release_sources()
    assert freed == host.nbytes or (freed == 0 and 1 in shape)  # rows and columns may lie with any stride, then
    np.testing.assert_array_equal(np.asarray(product(x, w)), want)
    np.testing.assert_array_equal(np.asarray(dvm.abs(w)), np.abs(host))  # needs it as it is
    assert runtime.release_sources() == freed
    np.testing.assert_array_equal(np.asarray(w), host)
    assert runtime.release_sources() == 0  # a NumPy array looks at it
    np.testing.assert_array_equal(np.asarray(product(x, w)), want)


def test_from_then_on_sources_go_as_soon_as_they_are_packed(runtime: dvm.Runtime) -> None:
    assert runtime.release_sources() == 0
    before = tensors(runtime)
    weights = [dvm.asarray(matrix(256, 256)) for _ in range(4)]

    @dvm.function
    def chain(x, *weights):
        for w in weights:
            x = dvm.tanh(x @ w)
        return x

    x = dvm.asarray(matrix(2, 256))
    first = np.asarray(chain(x, *weights)).copy()
    assert tensors(runtime) - before < 256 * 256 * 4
    assert runtime.stats()["memory"]["packed"] >= 4 * 256 * 256 * 4
    np.testing.assert_array_equal(np.asarray(chain(x, *weights)), first)
    np.testing.assert_array_equal(np.asarray(weights[2]), matrix(256, 256))


def test_a_matrix_that_the_same_launch_reads_stays(runtime: dvm.Runtime) -> None:
    runtime.release_sources()
    host = matrix(64, 64)

    @dvm.function
    def both(x, w):
        return x @ w + dvm.sum(w * 2.0)

    x, w = dvm.asarray(matrix(2, 64)), dvm.asarray(host)
    first = np.asarray(both(x, w)).copy()
    np.testing.assert_array_equal(np.asarray(both(x, w)), first)
    assert runtime.release_sources() == host.nbytes
    np.testing.assert_array_equal(np.asarray(both(x, w)), first)


def test_a_part_of_a_buffer_that_is_packed_keeps_all_of_it(runtime: dvm.Runtime) -> None:
    host = matrix(128, 64)
    x, w = dvm.asarray(matrix(2, 64)), dvm.asarray(host)

    @dvm.function
    def half(x, w):
        return x @ w[:64]

    want = np.asarray(half(x, w)).copy()
    assert runtime.release_sources() == 0
    np.testing.assert_array_equal(np.asarray(half(x, w)), want)


def test_a_buffer_that_is_gone_is_not_shown(runtime: dvm.Runtime) -> None:
    x, w = dvm.asarray(matrix(2, 64)), dvm.asarray(matrix(64, 64))
    np.asarray(dvm.matmul(x, w))
    assert runtime.release_sources() > 0
    with pytest.raises(BufferError):
        memoryview(w._tensor)
    assert float(dvm.sum(dvm.asarray(np.asarray(w)))) == pytest.approx(float(matrix(64, 64).sum()), rel=1e-3)
