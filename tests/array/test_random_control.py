"""Random bodies of loops, scans and branches, nested: a function gives the bytes that the same Python code gives outside of one.

What a loop may write in place, and in which order its kernels may run, depends on who reads which state when: these bodies read
states before and after others are made, elementwise, shifted, reversed, by rows and by totals, and exchange them."""

from __future__ import annotations

import random as randoms
from collections.abc import Callable

import numpy as np
import pytest

import dvm_rt as dvm

Body = Callable[[list], list]
STATES = ("row", "row", "number", "table", "column")


class Maker:
    """Draws bodies. `row` (n,), `number` (), `table` (m, n), `column` (m, 1): every operation keeps the kind of its state."""

    def __init__(self, seed: int) -> None:
        self.rng = randoms.Random(seed)

    def steps(self, kinds: list[str], count: int, depth: int) -> list[tuple]:
        return [self.step(kinds, depth) for _ in range(count)]

    def step(self, kinds: list[str], depth: int) -> tuple:
        pick = self.rng.random()
        target = self.rng.randrange(len(kinds))
        if depth and pick < 0.12:
            return "cond", self.rng.randrange(len(kinds)), self.steps(kinds, 2, depth - 1), self.steps(kinds, 2, depth - 1)
        if depth and pick < 0.2:
            return "while", self.rng.randint(1, 3), self.steps(kinds, 2, depth - 1)
        if depth and pick < 0.26:
            return "scan", self.rng.randint(1, 3), self.steps(kinds, 2, depth - 1)
        if pick < 0.36:
            alike = [k for k in range(len(kinds)) if kinds[k] == kinds[target]]
            return "swap", target, self.rng.choice(alike)
        return "set", target, self.rng.choice(OPERATIONS), self.rng.randrange(len(kinds)), self.rng.randrange(len(kinds))


def fitted(x: object, kind: str, like: object) -> object:
    """x as something of the kind of `like`."""
    if x.ndim == 2 and kind in ("row", "number"):
        x = dvm.sum(x, axis=0) * 0.1
    if x.ndim == 1 and kind == "number":
        x = dvm.max(x) * 0.5
    if kind == "column" and x.ndim != 2:
        x = dvm.mean(x) if x.ndim else x
    if kind == "column" and x.ndim == 2:
        x = dvm.mean(x, axis=1, keepdims=True)
    return x + like * 0.0


OPERATIONS: list[Callable] = [
    lambda a, b: a * 0.5 + b,
    lambda a, b: dvm.tanh(a - b),
    lambda a, b: a - dvm.mean(a) + b,
    lambda a, b: dvm.flip(a) + b if a.ndim == 1 else a * b,
    lambda a, b: dvm.roll(a, 1) - b if a.ndim == 1 else a - b,
    lambda a, b: dvm.maximum(a, b) * 0.7,
    lambda a, b: a + dvm.max(dvm.abs(a)) * 0.1,
    lambda a, b: dvm.softmax(a, axis=-1) + b if a.ndim else a + b,
    lambda a, b: b,
]


def run(steps: list[tuple], kinds: list[str], state: list) -> list:
    state = list(state)
    for step in steps:
        match step:
            case "set", target, operation, a, b:
                x, y = (fitted(state[k], kinds[target], state[target]) for k in (a, b))
                state[target] = fitted(operation(x, y), kinds[target], state[target])
            case "swap", a, b:
                state[a], state[b] = state[b], state[a]
            case "cond", k, yes, no:
                first, second = (lambda *s, w=w: tuple(run(w, kinds, s)) for w in (yes, no))
                state = list(dvm.cond(dvm.sum(state[k]) > 0, first, second, *state))
            case "while", count, body:
                step = lambda i, *s, w=body: (i + 1, *run(w, kinds, s))  # noqa: E731
                _, *state = dvm.while_loop(lambda i, *s, n=count: i < n, step, (0, *state), limit=10)
            case "scan", count, body:
                rows = dvm.stack([state[0] * (0.1 * i) for i in range(count)])

                def each(carry: tuple, x: object, w: list = body) -> tuple:
                    carry = run(w, kinds, [carry[0] + fitted(x, kinds[0], carry[0]), *carry[1:]])
                    return tuple(carry), (dvm.sum(carry[0]), carry[-1])

                carry, (totals, last) = dvm.scan(each, tuple(state), rows)
                state = [carry[0] + dvm.sum(totals) * 0.01, *carry[1:-1], carry[-1] + dvm.mean(last, axis=0) * 0.01]
    return state


@pytest.mark.parametrize("seed", range(40))
def test_random_bodies(seed: int) -> None:
    maker, values = Maker(seed), np.random.default_rng(seed)
    kinds = ["row", *maker.rng.choices(STATES, k=maker.rng.randint(1, 3))]
    steps = maker.steps(kinds, maker.rng.randint(2, 5), 2)

    def whole(count, *state):
        step = lambda i, *s: (i + 1, *run(steps, kinds, list(s)))  # noqa: E731
        return dvm.while_loop(lambda i, *s: i < count, step, (0, *state), limit=10)[1:]

    traced, before = dvm.function(whole), dvm.stats().get("walked_calls", 0)
    for n, m in ((1, 1), (3, 2), (130, 5)):
        shapes = {"row": (n,), "number": (), "table": (m, n), "column": (m, 1)}
        state = [dvm.asarray(values.standard_normal(shapes[k]).astype(np.float32)) for k in kinds]
        for count in (1, 3):
            got, wanted = (f(dvm.asarray(np.int64(count)), *state) for f in (traced, whole))
            for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
                one, other = np.asarray(one), np.asarray(other)
                assert one.tobytes() == other.tobytes() and one.shape == other.shape, (kinds, steps, number, n, m, count)
    assert dvm.stats().get("walked_calls", 0) == before
