"""Sizes and facts against sympy: an oracle that knows nothing of our canonical form."""

from __future__ import annotations

import random

import pytest
import sympy

from dvm_rt.errors import ShapeError
from dvm_rt.graph.symbols import (
    DERIVED,
    Facts,
    Size,
    bounds,
    equal,
    evaluate,
    exact_quotient,
    floordiv,
    maximum,
    minimum,
    mod,
    same,
    symbol,
    symbols_of,
    to_wire,
)

SYMBOLS = sympy.symbols("s0:5", integer=True, nonnegative=True)


def oracle(size: Size) -> sympy.Expr:
    """The same size, read from its plain form."""

    def of(key: object) -> sympy.Expr:
        if isinstance(key, int):
            return sympy.Integer(key)
        return sympy.Add(*(c * sympy.Mul(*(atom(a) for a in monomial)) for monomial, c in key))

    def atom(a: object) -> sympy.Expr:
        if isinstance(a, int):
            return SYMBOLS[a]
        name, x, y = a
        make = {"floordiv": lambda p, q: sympy.floor(p / q), "mod": sympy.Mod, "min": sympy.Min, "max": sympy.Max}[name]
        return make(of(x), of(y))

    return of(to_wire(size))


def some_size(rng: random.Random, depth: int) -> tuple[Size, sympy.Expr]:
    """A random size and its meaning, made side by side."""
    if depth == 0:
        if rng.random() < 0.3:
            n = rng.randint(0, 9)
            return n, sympy.Integer(n)
        i = rng.randrange(len(SYMBOLS))
        return symbol(i), SYMBOLS[i]
    (a, x), (b, y) = some_size(rng, depth - 1), some_size(rng, rng.randrange(depth))
    n = rng.randint(1, 9)
    return rng.choice([
        lambda: (a + b, x + y), lambda: (a * b, x * y), lambda: (a - b, x - y), lambda: (floordiv(a, n), sympy.floor(x / n)),
        lambda: (mod(a, n), sympy.Mod(x, n)), lambda: (minimum(a, b), sympy.Min(x, y)), lambda: (maximum(a, b), sympy.Max(x, y)),
    ])()  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_sizes_mean_what_sympy_says(seed: int) -> None:
    rng = random.Random(seed)
    size, meaning = some_size(rng, 3)
    low, high = bounds(size)
    for _ in range(6):
        values = {s: rng.choice((0, 2, 3, 7, 12, 31, 128)) for s in SYMBOLS}
        want = meaning.subs(values)
        assert oracle(size).subs(values) == want, (size, meaning, values)
        assert low <= want <= high


@pytest.mark.parametrize("seed", range(40))
def test_polynomials_that_sympy_finds_equal_are_one_form(seed: int) -> None:
    rng = random.Random(seed)
    terms = [(rng.randint(-4, 4), [rng.randrange(5) for _ in range(rng.randint(0, 3))]) for _ in range(4)]

    def summed(order: list) -> Size:
        total: Size = 0
        for coefficient, factors in order:
            term: Size = coefficient
            for i in rng.sample(factors, len(factors)):
                term = symbol(i) * term
            total = total + term
        return total

    a, b = summed(terms), summed(rng.sample(terms, len(terms)))
    assert same(a, b) and sympy.expand(oracle(a) - oracle(b)) == 0
    factor = symbol(rng.randrange(5)) + rng.randint(1, 3)
    quotient = exact_quotient(a * factor, factor)
    assert quotient is not None and sympy.expand(oracle(quotient) - oracle(a)) == 0
    if equal(a, factor) is False:
        assert sympy.expand(oracle(a) - oracle(factor)) != 0


@pytest.mark.parametrize("seed", range(60))
def test_facts_follow_from_the_equations_and_say_all_of_them(seed: int) -> None:
    """Values that satisfy every equation satisfy every substitution and check, and the other way round."""
    rng = random.Random(seed)
    facts, equations = Facts(), []
    values = {i: rng.choice((2, 3, 4, 6, 12)) for i in range(5)}
    for _ in range(3):
        i, j, k = rng.sample(range(5), 3)
        a, b = rng.choice([
            (symbol(i), symbol(j)), (symbol(i), 2 * symbol(j)), (symbol(i) * symbol(j), 6 * symbol(k)),
            (symbol(i), symbol(j) + symbol(k)), (4 * floordiv(symbol(i), 4), symbol(i)),
        ])  # fmt: skip
        try:
            facts.equate(a, b, "test")
        except ShapeError:  # never, says our side: nor for any of many values
            everything = [*equations, sympy.Eq(oracle(a), oracle(b))]
            grid = ({s: rng.randint(2, 12) for s in SYMBOLS} for _ in range(200))
            assert not any(all(e.subs(point) == sympy.true for e in everything) for point in grid)
            return
        equations.append(sympy.Eq(oracle(a), oracle(b)))
    for _ in range(80):
        values = {i: rng.choice((2, 3, 4, 6, 8, 12)) for i in range(5)}
        point = {SYMBOLS[i]: n for i, n in values.items()}
        wanted = all(e.subs(point) == sympy.true for e in equations)
        assert _hold(facts, values) == wanted, (equations, facts, values)


def _hold(facts: Facts, values: dict[int, int]) -> bool:
    """Whether values fit the facts; symbols that facts introduced stand for what their definition leaves."""
    known = dict(values)
    for number, value in facts.substitutions.items():
        for derived in (n for n in symbols_of(value) if n >= DERIVED):
            coefficient = exact_quotient(value, symbol(derived))
            if isinstance(coefficient, int) and number in values:
                if values[number] % coefficient:
                    return False
                known[derived] = values[number] // coefficient
    try:
        return all(evaluate(v, known) == known[n] for n, v in facts.substitutions.items()) and all(
            c.holds(known) for c in facts.checks
        )
    except KeyError:
        return True
