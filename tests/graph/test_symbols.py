"""Symbolic dimensions against Python's own integers."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvm_rt.errors import GraphError, ShapeError
from dvm_rt.graph import symbols
from dvm_rt.graph.symbols import Facts, bounds, equal, evaluate, from_wire, maximum, minimum, same, symbol, to_wire

S = [symbol(i) for i in range(3)]
OPERATIONS: dict[str, tuple[Callable, Callable]] = {
    "+": (lambda a, b: a + b, lambda a, b: a + b),
    "-": (lambda a, b: a - b, lambda a, b: a - b),
    "*": (lambda a, b: a * b, lambda a, b: a * b),
    "min": (minimum, min),
    "max": (maximum, max),
    "//": (symbols.floordiv, lambda a, b: a // b),
    "%": (symbols.mod, lambda a, b: a % b),
}


def expression(rng: random.Random, depth: int, values: list[int]) -> tuple[symbols.Size, int]:
    """A random size, and what it is for these values."""
    if depth == 0:
        if rng.random() < 0.6:
            i = rng.randrange(len(values))
            return S[i], values[i]
        number = rng.randint(-6, 12)
        return number, number
    name = rng.choice(list(OPERATIONS))
    symbolic, plain = OPERATIONS[name]
    (a, x), (b, y) = expression(rng, depth - 1, values), expression(rng, rng.randint(0, depth - 1), values)
    if name in ("//", "%"):
        b = y = rng.randint(1, 6)
    return symbolic(a, b), plain(x, y)


@given(st.integers(0, 10**9), st.lists(st.sampled_from([0, 2, 3, 5, 8, 12, 97]), min_size=3, max_size=3))
@settings(max_examples=300, deadline=None)
def test_sizes_mean_what_integers_mean(seed: int, values: list[int]) -> None:
    size, number = expression(random.Random(seed), 4, values)
    assert evaluate(size, values) == number
    low, high = bounds(size)
    assert low <= number <= high
    assert same(from_wire(to_wire(size)), size)


@given(st.integers(0, 10**9), st.lists(st.sampled_from([0, 2, 3, 7]), min_size=3, max_size=3))
@settings(max_examples=200, deadline=None)
def test_decided_comparisons_hold(seed: int, values: list[int]) -> None:
    rng = random.Random(seed)
    (a, x), (b, y) = expression(rng, 2, values), expression(rng, 2, values)
    for decide, truth in ((equal(a, b), x == y), (symbols.at_least(a, b), x >= y)):
        assert decide is None or decide == truth


def test_equal_forms_are_one() -> None:
    a, b, c = S
    assert same((a + b) * (a - b), a * a - b * b)
    assert same((4 * a + 3) // 4, a)
    assert same((a * b * 6) // (b * 3), 2 * a)
    assert same((a * b + a * c) // (b + c), a)
    assert same((12 * a + 5) % 4, 1)
    assert (a - a) == 0 and isinstance(a - a, int)
    assert same(minimum(a + 2, a), a) and same(maximum(a * 2, a), 2 * a)
    assert hash(a + b) == hash(b + a) and repr(2 * a + 1) == "2*s0 + 1"


def test_what_is_undecided_raises_with_advice() -> None:
    a, b, _ = S
    assert a == a and a != a + 1 and a >= 0 and a + 1 > 0 and a != 1 and not a < 0
    for question in (lambda: a == b, lambda: a == 5, lambda: a < 3, lambda: bool(a), lambda: a >= b, lambda: a == 0):
        with pytest.raises(GraphError, match="static"):
            question()
    for use in (lambda: range(a), lambda: int(a), lambda: float(a), lambda: [0] * a):
        with pytest.raises(GraphError, match="call to call"):
            use()


def test_facts_substitute() -> None:
    a, b, c = S
    facts = Facts()
    assert same(facts.equate(a, b, "add"), a)
    assert same(facts.resolve(b * 2 + c), 2 * a + c)
    facts.equate(c, 2 * b + 1, "add")
    assert same(facts.resolve(c), 2 * a + 1)
    facts.equate(a, 384, "linear")
    assert facts.resolve(c) == 769 and facts.resolve(b) == 384 and not facts.checks


def test_facts_resolve_numbers_of_numpy_to_pythons() -> None:
    facts = Facts()
    facts.equate(S[0], S[1], "test")
    assert [type(n) for n in facts.resolve_shape((np.int64(3), 4))] == [int, int]


def test_facts_find_what_a_number_divides() -> None:
    a, b, _ = S
    facts = Facts()
    facts.equate(b * 12 * (a // 12), b * a, "reshape")
    assert not facts.checks and symbols.exact_quotient(facts.resolve(a), 12) is not None


def test_short_ways_find_what_solving_finds() -> None:
    a, b, c = S
    for x, y in ((3 * (a // 3), a), (a, 3 * (a // 3)), (a * b, 8 * a * c), (a * b, a * c), (a * c, 3 * a), (a * b, 3 * a * a),
                 (a, 2 * (a // 3)), (a * b, a), (2 * a * b, 4 * a * c), (a * a, a * b), (8 * (a // 8) * b, a * b)):  # fmt: skip
        short, solved = Facts(), Facts()
        short.equate(x, y, "test")
        assert solved._solve(x - y) == (not short.checks)
        assert str(short.substitutions) == str(solved.substitutions)


def test_facts_demand_nothing_of_what_is_so() -> None:
    facts = Facts()
    for x, y in ((3, 3), (3, 2), (S[0], 0), (3 * S[0] + 2, 2)):
        facts.demand_at_least(x, y, "index")
    assert not facts.checks
    with pytest.raises(ShapeError):
        facts.demand_at_least(2, 3, "index")


def test_facts_keep_what_they_cannot_solve_as_checks() -> None:
    a, b, _ = S
    facts = Facts()
    facts.equate(a * b, 384, "reshape")
    facts.equate(384, b * a, "reshape")
    facts.demand_at_least(a, 3, "index")
    assert [c.relation for c in facts.checks] == ["==", ">="]
    assert facts.checks[0].holds([2, 192, 0]) and not facts.checks[0].holds([2, 3, 0])
    facts.equate(a, 4, "add")
    assert len(facts.resolved_checks()) == 0 and facts.resolve(b) == 384 // 4 or same(facts.resolve(b), b)


def test_facts_know_sizes_of_zero() -> None:
    a, b, _ = S
    facts = Facts()
    facts.equate(3 * a, 0, "broadcast")
    assert facts.resolve(a) == 0 and not facts.checks
    facts = Facts()
    facts.equate(0, a * b, "reshape")
    assert facts.checks[0].holds([0, 5, 0]) and not facts.checks[0].holds([2, 5, 0])


def test_a_check_is_solved_again_only_after_a_substitution_of_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = S
    facts, tried = Facts(), []
    solve = Facts._solve
    monkeypatch.setattr(Facts, "_solve", lambda self, zero: tried.append(zero) or solve(self, zero))
    facts.equate(a * b, c * c + 5, "test")
    for number in range(100, 110):  # a ViT has a hundred of these, and three checks
        facts.equate(symbol(number), symbol(number + 50), "test")
    assert len(tried) == 1
    facts.equate(b, 4, "test")
    assert len(tried) == 2
    assert same(facts.checks[0].left, 4 * a) and len(facts.checks) == 1


def test_what_can_never_be_equal_is_refused() -> None:
    a, _, _ = S
    for x, y in ((a, a + 1), (3, 4), (a + 2, 1), (a, 1)):
        with pytest.raises(ShapeError):
            Facts().equate(x, y, "test")
    with pytest.raises(ShapeError):
        Facts().demand_at_least(a, a + 1, "test")


@pytest.mark.parametrize("wire", ["s0", ((("x",), 1),), (((("pow", 1, 2),), 1),), (1, 2), None])
def test_wire_that_is_no_size(wire: object) -> None:
    with pytest.raises(GraphError):
        from_wire(wire)


def test_what_can_no_longer_hold_is_said_by_who_asked_for_it() -> None:
    """The second of two demands decides a size, with which the first one cannot hold: no graph is made of that."""
    facts, n = Facts(), symbol(0)
    facts.demand_at_least(n - 2, 0, "a slice")
    with pytest.raises(ShapeError, match="^a slice: .*got -1, allowed at least 0"):
        facts.equate(3 * n - 4, n - 2, "a product")
