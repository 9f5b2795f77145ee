"""Random expressions over random shapes (0 to 8 dimensions, sizes of 0 and 1 among them) give what NumPy gives.

Values are multiples of 1/4, so that all of it is exact and must be equal; each expression is computed lazily, step by step,
and as a function."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

import dvm_rt as dvm

Step = tuple[Callable, Callable]  # what we do, what NumPy does


def values(rng: random.Random, shape: tuple[int, ...]) -> np.ndarray:
    return (np.random.default_rng(rng.getrandbits(32)).integers(-8, 9, shape) / 4).astype(np.float32)


def some_shape(rng: random.Random) -> tuple[int, ...]:
    rank = rng.choice((0, 1, 2, 2, 3, 3, 4, 5, 8))
    return tuple(rng.choices((0, 1, 2, 3, 5, 17 if rank < 4 else 2), (1, 5, 4, 4, 4, 4))[0] for _ in range(rank))


def elementwise(rng: random.Random, x: np.ndarray) -> Step:
    name = rng.choice(("add", "subtract", "multiply", "maximum", "minimum"))
    other = values(rng, tuple(rng.choice((1, n)) for n in x.shape[rng.randint(0, x.ndim) :]))
    return lambda a: getattr(dvm, name)(a, dvm.asarray(other)), lambda v: getattr(np, name)(v, other)


def chosen(rng: random.Random, x: np.ndarray) -> Step:
    return lambda a: dvm.where(a > 0.5, a - 1, -a), lambda v: np.where(v > 0.5, v - 1, -v)


def reduction(rng: random.Random, x: np.ndarray) -> Step:
    axes, keepdims = tuple(rng.sample(range(-x.ndim, 0), rng.randint(0, x.ndim))), rng.random() < 0.5
    name = "sum" if 0 in x.shape else rng.choice(("sum", "max", "min"))
    return lambda a: getattr(dvm, name)(a, axis=axes, keepdims=keepdims), lambda v: getattr(np, name)(v, axis=axes,
        keepdims=keepdims)


def index(rng: random.Random, x: np.ndarray) -> Step:
    def entry(size: int) -> object:
        if size and rng.random() < 0.2:
            return rng.randrange(-size, size)
        ends = [rng.choice((None, rng.randint(-size - 1, size + 1))) for _ in range(2)]
        return slice(*ends, rng.choice((None, 1, 2, 3, -1, -2)))

    key = tuple(entry(n) for n in x.shape)
    return lambda a: a[key], lambda v: v[key]


def transpose(rng: random.Random, x: np.ndarray) -> Step:
    axes = rng.sample(range(x.ndim), x.ndim)
    return lambda a: dvm.permute_dims(a, axes), lambda v: np.transpose(v, axes)


def reshape(rng: random.Random, x: np.ndarray) -> Step:
    shape = rng.sample(x.shape, x.ndim) if x.size == 0 or rng.random() < 0.5 else [x.size // 2, -1] if x.size % 2 == 0 else [-1]
    return lambda a: a.reshape(*shape), lambda v: v.reshape(shape)


def joined(rng: random.Random, x: np.ndarray) -> Step:
    axis = rng.randint(0, min(x.ndim, 6))
    if x.ndim < 8 and (axis == x.ndim or rng.random() < 0.3):
        return lambda a: dvm.stack([a, a], axis=axis), lambda v: np.stack([v, v], axis)
    other = values(rng, (*x.shape[:axis], rng.randint(0, 3), *x.shape[axis + 1 :]))
    return lambda a: dvm.concat([a, dvm.asarray(other), a], axis=axis), lambda v: np.concatenate([v, other, v], axis)


def product(rng: random.Random, x: np.ndarray) -> Step:
    if x.ndim == 0:
        return elementwise(rng, x)
    right = values(rng, (x.shape[-1], rng.choice((0, 1, 5, 33))))
    return lambda a: a @ dvm.asarray(right), lambda v: v @ right


STEPS = (elementwise, elementwise, chosen, reduction, index, index, transpose, reshape, joined, product)


def expression(seed: int) -> tuple[np.ndarray, list[Callable], np.ndarray]:
    """(input, steps, what NumPy gives); it ends where the values could become inexact."""
    rng = random.Random(seed)
    x = out = values(rng, some_shape(rng))
    ours = []
    for _ in range(rng.randint(1, 6)):
        mine, numpys = rng.choice(STEPS)(rng, out)
        after = np.asarray(numpys(out), np.float32)
        if after.size > 20_000 or after.ndim > 8 or np.abs(after).max(initial=0) > 64 or (after * 16 % 1).any():
            break
        ours.append(mine)
        out = after
    return x, ours, out


@pytest.mark.parametrize("seed", range(120))
def test_random_expressions_equal_numpy(seed: int) -> None:
    x, steps, expected = expression(seed)

    def run(a: dvm.Array, look: bool) -> dvm.Array:
        for step in steps:
            a = step(a)
            if look:
                np.asarray(a)
        return a

    for look in (False, True):
        assert np.array_equal(np.asarray(run(dvm.asarray(x), look)), expected)
    try:
        got = dvm.function(lambda a: run(a, False))(dvm.asarray(x))
    except dvm.ShapeError as error:  # slices of symbolic sizes have to lie inside
        assert str(error).startswith("graph: ")
    else:
        assert np.array_equal(np.asarray(got), expected)
