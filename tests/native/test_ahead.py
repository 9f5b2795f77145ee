"""What is likely to be called next is learned from the order of calls; programs are made before they are wanted, or dropped."""

from __future__ import annotations

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import _native


def learned(*calls: tuple[int, tuple[int, ...]]) -> _native.RunAhead:
    ahead = _native.RunAhead()
    for plan, symbols in calls:
        ahead.observe(plan, list(symbols))
    return ahead


def test_a_recurrence_is_trusted_once_it_is_confirmed() -> None:
    ahead = learned((1, (3, 8)), (1, (4, 8)))
    assert ahead.guesses(4, 4, 64) == []
    ahead.observe(1, [5, 8])
    assert ahead.guesses(4, 4, 64) == []  # a rule, seen twice
    ahead.observe(1, [6, 8])
    assert ahead.guesses(3, 4, 64) == [(1, (7, 8)), (1, (8, 8)), (1, (9, 8))]
    assert ahead.guesses(3, 4, 2) == [(1, (7, 8)), (1, (8, 8))]
    assert ahead.guesses(0, 4, 64)[:1] in ([], [(1, (7, 8))])


def test_a_cycle_of_plans_is_followed_through() -> None:
    calls = [(plan, (t,) if plan == 1 else (2 * plan, t + 1)) for t in range(4) for plan in (1, 2)]
    ahead = learned(*calls)
    assert ahead.guesses(4, 4, 64) == [(1, (4,)), (2, (4, 5)), (1, (5,)), (2, (4, 6))]


def test_both_branches_are_guessed_the_last_one_first() -> None:
    ahead = learned(*[call for n in (5, 6, 7, 8, 9, 10) for call in ((1, (n,)), (2 + n % 2, (n, 64)))], (1, (11,)))
    assert ahead.guesses(1, 4, 64) == [(2, (11, 64)), (3, (11, 64))]
    assert ahead.guesses(1, 1, 64) == [(2, (11, 64))]


def test_a_rule_that_fails_is_not_trusted() -> None:
    ahead = learned((1, (3,)), (1, (4,)), (1, (5,)), (1, (6,)), (1, (60,)))
    assert ahead.guesses(4, 4, 64) == []


def test_sizes_never_become_negative_and_many_symbols_are_left_alone() -> None:
    assert learned((1, (3,)), (1, (2,)), (1, (1,)), (1, (0,))).guesses(4, 4, 64) == []
    assert learned(*[(1, (t,) * 33) for t in range(6)]).guesses(4, 4, 64) == []


def test_a_plan_that_is_given_up_is_forgotten() -> None:
    ahead = learned(*[(1, (t,)) for t in range(6)])
    ahead.forget(1)
    assert ahead.guesses(4, 4, 64) == []


@dvm.function
def step(x: dvm.Array, y: dvm.Array) -> dvm.Array:
    return dvm.tanh(x * y + 1.0)


def grow(rows: range) -> list[bytes]:
    values = np.arange(2000, dtype=np.float32) / 1000
    out = []
    for n in rows:
        x = dvm.asarray(np.broadcast_to(values[:n, None], (n, 600)))
        out.append(np.asarray(step(x, x)).tobytes())
    return out


@pytest.mark.parametrize("encode", ["caller", "workers"])
def test_programs_of_a_recurrence_are_there_before_they_are_called(encode: str) -> None:
    with dvm.Runtime(inline=True):
        expected = grow(range(300, 360))
    with dvm.Runtime(encoders=1, encode=encode, threads=1):
        assert grow(range(300, 360)) == expected
        stats = dvm.stats()
    assert stats["guessed"] >= stats["guessed_right"] > 0  # how many depends on who gets the CPUs
    assert stats["guessed"] - stats["guessed_right"] - stats["guessed_wrong"] <= 64


def test_wrong_guesses_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_AHEAD_MAX", "4")
    order = [range(start, start + 5) for start in range(300, 700, 20)]  # each run breaks off
    with dvm.Runtime(inline=True):
        expected = [grow(rows) for rows in order]
    with dvm.Runtime(encoders=1, encode="caller", threads=1):
        assert [grow(rows) for rows in order] == expected
        stats = dvm.stats()
    assert stats["guessed_wrong"] > 0 and stats["guessed_right"] > 0
    assert stats["guessed"] - stats["guessed_right"] - stats["guessed_wrong"] <= 4


def test_depth_0_guesses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_AHEAD_DEPTH", "0")
    with dvm.Runtime(encoders=1, encode="caller", threads=1):
        grow(range(300, 310))
        assert dvm.stats()["guessed"] == 0


def test_guesses_survive_the_death_of_the_device() -> None:
    with dvm.Runtime(inline=True):
        expected = grow(range(300, 340))
    with dvm.Runtime(encoders=1, encode="workers", threads=1) as rt:
        got = grow(range(300, 320))
        rt.kill("device")
        rt.kill("encoder")
        assert got + grow(range(320, 340)) == expected
