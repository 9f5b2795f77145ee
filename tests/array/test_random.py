"""Random numbers: functions of key and shape, with the distribution that they promise."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm


def philox(key: int, counter: int) -> int:
    """The first 64 bits of Philox4x32-10, in Python integers, after Salmon et al. 2011."""
    c, k, low = [counter & 0xFFFFFFFF, counter >> 32, 0, 0], [key & 0xFFFFFFFF, key >> 32], 0xFFFFFFFF
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(q >> 32) ^ c[1] ^ k[0], q & low, (p >> 32) ^ c[3] ^ k[1], p & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c[0] | c[1] << 32


def test_bits_are_philox() -> None:
    for key in (0, 1, 2**64 - 1, 0x123456789ABCDEF):
        assert dvm.random.bits(key, (5,)).tolist() == [philox(key, i) for i in range(5)]
    assert dvm.random.bits(7, (2, 3)).tolist() == dvm.random.bits(7, (6,)).reshape(2, 3).tolist()
    assert dvm.random.bits(7, (3,), dtype="uint32").tolist() == [philox(7, i) & 0xFFFFFFFF for i in range(3)]
    assert dvm.random.split(7, 3).tolist() == [philox(7, 2**63 + i) for i in range(3)]
    assert dvm.random.bits(dvm.random.split(7)[1], (2,)).tolist() == [philox(philox(7, 2**63 + 1), i) for i in range(2)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_uniform(dtype: str) -> None:
    x = dvm.random.uniform(3, (100, 200), low=-1.0, high=3.0, dtype=dtype)
    assert x.dtype.name == dtype
    x = np.asarray(x).astype(np.float64)
    assert x.min() >= -1 and x.max() <= 3 and abs(x.mean() - 1) < 0.05 and abs(np.histogram(x, 4)[0] / 20_000 - 0.25).max() < 0.02


def test_normal() -> None:
    x = np.asarray(dvm.random.normal(11, (200, 300)), np.float64)
    assert np.isfinite(x).all() and abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02 and abs(
        (x**3).mean()) < 0.06 and abs((x**4).mean() - 3) < 0.15
    assert abs(np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1]) < 0.02


def test_integers() -> None:
    x = np.asarray(dvm.random.integers(5, (9000,), low=-3, high=6, dtype="int8"))
    assert x.dtype == np.int8 and set(x) == set(range(-3, 6)) and np.bincount(x + 3).min() > 850


def test_random_numbers_in_a_function() -> None:
    noisy = dvm.function(lambda x, key: x + dvm.random.uniform(key, x.shape))
    x = dvm.zeros((4, 5))
    key = dvm.asarray(np.uint64(9))
    assert noisy(x, key).tolist() == dvm.random.uniform(9, (4, 5)).tolist() != noisy(x, dvm.asarray(np.uint64(8))).tolist()


@pytest.mark.parametrize("act", [
    lambda: dvm.random.bits(-1), lambda: dvm.random.bits(2**64), lambda: dvm.random.bits(
        dvm.asarray([1])), lambda: dvm.random.bits(1, dtype="int8"),
    lambda: dvm.random.uniform(1, dtype="int8"), lambda: dvm.random.integers(1, (2,), high=3, dtype="float32"),
    lambda: dvm.random.integers(1, (2,), high=0), lambda: dvm.random.integers(1, (2,), high=300, dtype="uint8"),
])  # fmt: skip
def test_what_is_refused(act) -> None:
    with pytest.raises((dvm.DTypeError, dvm.ShapeError), match=r"^array: random.*: .*, got .*, allowed .*"):
        act()
