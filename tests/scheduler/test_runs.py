"""Runs: the same as a dictionary, whatever is put and removed."""

from __future__ import annotations

import random

import pytest

from dvm_rt.scheduler.runs import Runs, joined, runs_of


def some_numbers(rng: random.Random) -> range | tuple[int, ...]:
    start, count = rng.randrange(60), rng.randrange(12)
    return range(start, start + count) if rng.random() < 0.6 else tuple(rng.sample(range(60), count))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_dictionary(seed: int) -> None:
    rng, runs, model = random.Random(seed), Runs(), {}
    for step in range(200):
        numbers = some_numbers(rng)
        if rng.random() < 0.5:
            runs.put(numbers, step)
            model.update(dict.fromkeys(numbers, step))
        elif rng.random() < 0.7:
            runs.remove(numbers)
            model = {n: v for n, v in model.items() if n not in numbers}
        elif model:
            number = rng.choice(sorted(model))
            assert runs.pop(number) == model.pop(number)
        assert dict(runs) == model and len(runs) == len(model)
        assert list(runs) == sorted(model)
        asked = some_numbers(rng)
        assert [(n, v) for run, v in runs.within(asked) for n in run] == [(n, model[n]) for n in asked if n in model]
        assert [runs.get(n) for n in range(-1, 80)] == [model.get(n) for n in range(-1, 80)]


def test_what_is_not_there_is_a_key_error() -> None:
    runs: Runs[str] = Runs()
    runs.put(range(3, 5), "here")
    for number in (2, 5):
        with pytest.raises(KeyError):
            del runs[number]
    assert dict(runs) == {3: "here", 4: "here"}


def test_runs_of_a_sequence() -> None:
    assert runs_of((7, 8, 3, 4, 5, 9)) == [range(7, 9), range(3, 6), range(9, 10)]
    assert runs_of(range(2, 4)) == [range(2, 4)] and runs_of(range(0)) == [] and runs_of(()) == []


def test_sequences_are_joined() -> None:
    assert joined(range(1, 3), range(3, 5)) == range(1, 5)
    assert joined(range(1, 3), range(4, 5)) == (1, 2, 4) and joined((1,), range(2, 3)) == (1, 2)
