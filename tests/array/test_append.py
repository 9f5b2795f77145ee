"""append: what grows between calls is continued in its memory, and everything that was made before stays what it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import Runtime
from dvm_rt.errors import DeviceTrap, DTypeError, ShapeError

RNG = np.random.default_rng(31)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def in_place() -> int:
    return int(dvm.stats()["appended_in_place"])


@dvm.function
def step(cache, row):
    """One step of a decoder: the cache grows, and is attended over."""
    grown = dvm.append(cache, row)
    return grown, dvm.softmax(row @ grown.T, axis=-1) @ grown


def by_copies(cache: np.ndarray, rows: list[np.ndarray]) -> list[tuple[bytes, bytes]]:
    """The same with nothing shared: each step's cache is copied in."""
    out = []
    for row in rows:
        grown, y = step(dvm.asarray(cache), dvm.asarray(row))
        cache = np.asarray(grown).copy()
        out.append((cache.tobytes(), np.asarray(y).tobytes()))
    return out


def test_a_cache_grows_in_its_memory() -> None:
    with Runtime(inline=True):
        x, rows = floats(3, 16), [floats(1, 16) for _ in range(300)]
        wanted = by_copies(x, rows)
        before, cache, kept = in_place(), dvm.asarray(x), []
        for row in rows:
            cache, y = step(cache, dvm.asarray(row))
            kept.append((cache, y))
        copied = len(rows) - (in_place() - before)
        assert copied <= 5  # room doubles
        assert [(np.asarray(a).tobytes(), np.asarray(b).tobytes()) for a, b in kept] == wanted  # old ones too
        assert np.asarray(cache).tobytes() == np.concatenate([x, *rows]).tobytes()


def test_only_the_newest_is_continued() -> None:
    with Runtime(inline=True):
        x, a, b, c = (floats(n, 5) for n in (4, 1, 2, 3))
        first = dvm.append(dvm.asarray(x), dvm.asarray(a))
        one = dvm.append(first, dvm.asarray(b))
        dvm.eval(one)
        other = dvm.append(first, dvm.asarray(c))  # its rows would lie where those of `one` lie
        part = dvm.append(one[:5], dvm.asarray(c))
        again = dvm.append(other, dvm.asarray(b))
        twice = [dvm.append(again, dvm.asarray(v)) for v in (a, b, c)]
        dvm.eval(other, part, *twice)
        for got, wanted in (
            (first, [x, a]), (one, [x, a, b]), (other, [x, a, c]), (part, [x, a, c]), (again, [x, a, c, b]),
            *((t, [x, a, c, b, v]) for t, v in zip(twice, (a, b, c), strict=True)),
        ):  # fmt: skip
            assert np.asarray(got).tobytes() == np.concatenate(wanted).tobytes()


def test_memory_comes_back() -> None:
    with Runtime(inline=True) as rt:
        cache = dvm.asarray(floats(1, 64))
        for _ in range(200):
            cache = dvm.append(cache, dvm.asarray(floats(1, 64)))
            dvm.eval(cache)
        assert rt.stats()["memory"]["tensors"] < 4 * 201 * 256
        del cache
        dvm.eval(dvm.zeros((1,)) + 1)
        assert rt.stats()["memory"]["tensors"] <= 4096


@pytest.mark.parametrize("dtype", ["bool_", "int8", "float16", "bfloat16", "int32", "float64", "uint64"])
def test_dtypes_and_empty_parts(dtype: str) -> None:
    kind = getattr(dvm, dtype)
    f = dvm.function(dvm.append)
    for rows, new in ((0, 2), (3, 0), (0, 0), (2, 4), (1, 1)):
        a, b = (dvm.asarray(RNG.integers(0, 2, (n, 3))).astype(kind) for n in (rows, new))
        assert np.asarray(f(f(a, b), b)).tobytes() == np.asarray(dvm.concat([a, b, b])).tobytes()


def test_errors() -> None:
    x = dvm.asarray(floats(3, 4))
    with pytest.raises(DTypeError, match="dtype of the rows"):
        dvm.append(x, dvm.zeros((1, 4), dtype=dvm.float64))
    with pytest.raises(ShapeError):
        dvm.append(x, dvm.zeros((1, 5)))
    with pytest.raises(ShapeError, match="ranks"):
        dvm.append(x, dvm.zeros((4,)))
    with pytest.raises(ShapeError, match="ranks"):
        dvm.append(dvm.zeros(()), dvm.zeros(()))


def test_a_step_that_fails_leaves_the_cache_as_it_was() -> None:
    @dvm.function
    def put(cache, row, at):
        return dvm.append(cache, dvm.take(row, at, axis=0))

    with Runtime(inline=True):
        row = dvm.asarray(floats(2, 4))
        cache = dvm.append(dvm.asarray(floats(2, 4)), row)
        whole = np.asarray(cache).copy()
        bad = put(cache, row, dvm.asarray(np.array([7])))
        with pytest.raises(DeviceTrap):
            np.asarray(bad)
        with pytest.raises(DeviceTrap):
            np.asarray(dvm.append(bad, row))
        assert np.asarray(cache).tobytes() == whole.tobytes()
        good = put(cache, row, dvm.asarray(np.array([1])))
        assert np.asarray(good).tobytes() == np.concatenate([whole, np.asarray(row)[1:]]).tobytes()


@pytest.mark.parametrize("encode", ["workers", "caller"])
def test_devices_that_are_killed_change_no_byte(encode: str) -> None:
    """Replay runs launches again over memory that they, or those after them, have written behind what they read."""
    x, rows = floats(3, 16), [floats(1, 16) for _ in range(400)]
    with Runtime(inline=True):
        wanted = by_copies(x, rows)
    with Runtime(encoders=1, encode=encode) as rt:
        for round_ in range(3):
            timers = [threading.Timer(0.004 * (1 + i) * (1 + round_), rt.kill, ("device",)) for i in range(3)]
            [t.start() for t in timers]
            before, cache, kept = in_place(), dvm.asarray(x), []
            for row in rows:
                cache, y = step(cache, dvm.asarray(row))
                kept.append((cache, y))
            got = [(np.asarray(a).tobytes(), np.asarray(b).tobytes()) for a, b in kept]
            [t.join() for t in timers]
            assert got == wanted
            assert in_place() - before >= len(rows) - 5
        assert rt.stats()["deaths"] >= 1
