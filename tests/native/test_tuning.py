"""Programs that run often try other stores and prefetch distances: with the same bits, to an end; only what is faster stays."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt import _native
from dvm_rt.isa.program import SectionBuilder
from tests.fusion.running import normal
from tests.native.streams import Stepped, axpy
from tests.native.test_matmul import pack
from tests.native.test_matmul import program as product
from tests.native.test_together import program_of

TARGETS = _native.targets()
THROUGH_CACHES, OTHER_DISTANCE, OTHER_TILES, OTHER_BLOCKS = 1, 2, 4, 8
RUNS_FIRST, BLOCK_RUNS, PAIRS = 32, 4, 4
RUNS_MAX = 2 * BLOCK_RUNS * PAIRS  # of one choice


def tuned(choices: int, ns: Callable[[int, int], float]) -> tuple[_native.Tuning, int]:
    """A tuning at its end, and the runs that it took, where run `number` with `choice` takes ns(choice, number)."""
    tuning, runs = _native.Tuning(), 0
    while not tuning.begins():
        assert tuning.choice == 0
    tuning.offer(choices)
    while tuning.under_way:
        tuning.took(int(ns(tuning.choice, runs)))
        runs += 1
        assert runs <= 2 * RUNS_MAX
    return tuning, runs


def test_it_begins_once_after_so_many_runs() -> None:
    tuning = _native.Tuning()
    assert [tuning.begins() for _ in range(3 * RUNS_FIRST)] == [n == RUNS_FIRST - 1 for n in range(3 * RUNS_FIRST)]


def test_nothing_to_choose_is_over_at_once() -> None:
    assert tuned(0, lambda choice, n: 1)[1] == 0


@pytest.mark.parametrize("choices", [1, 2, 3])
def test_what_is_faster_is_kept(choices: int) -> None:
    tuning, runs = tuned(choices, lambda choice, n: 100_000 - 10_000 * choice)
    assert tuning.choice == choices and runs == RUNS_MAX * choices.bit_count()
    assert abs(tuning.gained_ns - (20_000 if choices & 2 else 10_000)) < 10


@pytest.mark.parametrize("slower", [1.0, 1.001, 1.5])
def test_what_is_not_faster_is_dropped_after_one_pair_of_blocks(slower: float) -> None:
    tuning, runs = tuned(3, lambda choice, n: 100_000 * (slower if choice else 1))
    assert tuning.choice == 0 and tuning.gained_ns == 0 and runs == 2 * 2 * BLOCK_RUNS


def test_a_little_faster_is_not_worth_it() -> None:
    tuning, runs = tuned(THROUGH_CACHES, lambda choice, n: 100_000 - 2_500 * choice)
    assert tuning.choice == 0 and runs == RUNS_MAX


def test_the_second_choice_is_judged_on_top_of_the_first() -> None:
    ns = {0: 100_000, THROUGH_CACHES: 80_000, OTHER_DISTANCE: 70_000, 3: 90_000}
    assert tuned(3, lambda choice, n: ns[choice])[0].choice == THROUGH_CACHES


def test_the_first_runs_of_a_block_do_not_count() -> None:
    """After the other choice the caches hold what that one needs."""
    tuning, _ = tuned(1, lambda choice, n: (100_000 - 10_000 * choice) * (9 if n % BLOCK_RUNS < 2 and choice else 1))
    assert tuning.choice == THROUGH_CACHES


def test_one_run_that_was_interrupted_does_not_decide() -> None:
    tuning, _ = tuned(1, lambda choice, n: (100_000 - 10_000 * choice) * (50 if n % BLOCK_RUNS == 3 and choice else 1))
    assert tuning.choice == THROUGH_CACHES


@pytest.mark.parametrize("seed", range(200))
def test_nothing_is_kept_that_was_slower_in_one_block(seed: int) -> None:
    rng, taken = random.Random(seed), []

    def ns(choice: int, n: int) -> float:
        taken.append((choice, 100_000 * rng.uniform(0.9, 1.1) * (0.93 if choice else 1)))
        return taken[-1][1]

    kept = tuned(1, ns)[0].choice
    blocks = [taken[at : at + BLOCK_RUNS] for at in range(0, len(taken), BLOCK_RUNS)]
    assert [block[0][0] for block in blocks] == [i % 2 for i in range(len(blocks))]
    least = [int(min(time for _, time in block[2:])) for block in blocks]
    won = [with_it < without for without, with_it in zip(least[::2], least[1::2], strict=True)]
    assert all(won[:-1]) and (won[-1] or not kept)


FAR = {  # working sets beyond L2
    "chain": (lambda op, x, y: op.maximum(op.add(op.multiply(x, y), x), y), [normal(701, 523, seed=1), normal(701, 523, seed=2)]),
    "computes": (lambda op, x, y: op.multiply(op.tanh(x), y), [normal(701, 523, seed=1), normal(701, 523, seed=2)]),
    "softmax": (lambda op, x: op.softmax(x, axis=1), [normal(1500, 523, seed=1)]),
    "short rows": (lambda op, x: op.softmax(x, axis=1), [normal(40_000, 17, seed=1)]),
    "long rows": (lambda op, x: op.softmax(x, axis=1), [normal(20, 40_003, seed=1)]),
    "two results": (lambda op, x, y: (op.add(x, y), op.subtract(x, y)), [normal(701, 523, seed=1), normal(701, 523, seed=2)]),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FAR)
def test_every_choice_gives_the_same_bits(name: str, target: str) -> None:
    build, arrays = FAR[name]
    program, arguments, outputs = program_of(build, arrays)
    assert program.choices
    program.run(arguments, target)
    want = [o.copy() for o in outputs]
    for choice in (3, 1, 2, 0, 3, 0):
        for o in outputs:
            o.fill(np.nan)
        program.choose(choice)
        program.run(arguments, target, threads=2)
        for o, w in zip(outputs, want, strict=True):
            assert o.tobytes() == w.tobytes(), choice
    assert program.choices == program_of(build, arrays)[0].choices


PRODUCTS = {  # m, k, n; packed; what may be chosen. Rows beyond what L2 keeps, beyond a tile, few; slices of K
    "blocks": (700, 900, 300, False, OTHER_TILES | OTHER_BLOCKS),
    "blocks, packed": (701, 600, 301, True, OTHER_DISTANCE | OTHER_TILES | OTHER_BLOCKS),
    "tiles": (97, 300, 330, False, OTHER_TILES),
    "tiles, packed": (97, 300, 330, True, OTHER_DISTANCE | OTHER_TILES),
    "slices": (60, 4500, 130, False, OTHER_TILES | OTHER_BLOCKS),
    "few rows, packed": (3, 1500, 1030, True, OTHER_DISTANCE),
    "few rows": (3, 1500, 1030, False, 0),
    "small": (50, 60, 70, True, 0),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("epilogue", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_way_through_a_product_gives_the_same_bits(name: str, epilogue: bool, target: str) -> None:
    m, k, n, packed, choices = PRODUCTS[name]
    a, b = normal(m, k, seed=1), normal(k, n, seed=2)
    a[m // 2, k // 3], a[m - 1, 0] = np.nan, np.inf

    def doubled(_: object, section: SectionBuilder) -> list[np.ndarray]:
        for word in (("mov.i", 2), ("mul.k", 2.0), ("store", 2)):
            section.word(*word)
        return []

    code, arguments, c = product(a, b, pack(b) if packed else None, doubled if epilogue else None)
    program = _native.Program(code)
    assert program.choices == choices
    program.run(arguments, target)
    want = c.copy()
    with np.errstate(invalid="ignore"):
        assert np.allclose(want, (a.astype(np.float64) @ b) * (2 if epilogue else 1), atol=1e-3, equal_nan=True)
    for choice in (15, 4, 8, 2, 0):
        c.fill(7.0)
        program.choose(choice)
        program.run(arguments, target, threads=2)
        assert c.tobytes() == want.tobytes(), choice


def test_stores_through_the_caches_are_never_sent_past_them() -> None:
    """Short rows of 2 to 4 MB: their prefetch distance is all that there is to choose."""
    program, _, _ = program_of(lambda op, x: op.softmax(x, axis=1), [normal(512, 700, seed=1)])
    assert program.choices == OTHER_DISTANCE


def test_what_stays_in_the_caches_has_no_choice() -> None:
    assert program_of(lambda op, x: op.softmax(x, axis=1), [normal(32, 64, seed=1)])[0].choices == 0


def called(rt: dvm.Runtime, elements: int, times: int) -> dict:
    """stats() after so many equal calls, all with the same bytes."""
    with rt:
        f = dvm.function(lambda x, y: dvm.maximum(x * y + x, y))
        x, y = (dvm.asarray(normal(elements, seed=seed)) for seed in (1, 2))
        want = np.asarray(f(x, y)).tobytes()
        assert all(np.asarray(f(x, y)).tobytes() == want for _ in range(times))
        return rt.stats()


@pytest.mark.parametrize("inline", [True, False])
def test_a_program_is_tuned_while_it_runs(inline: bool) -> None:
    stats = called(dvm.Runtime(inline=inline), 400_000, RUNS_FIRST + 2 * RUNS_MAX)
    assert stats["choices_tried"] == 2 >= stats["choices_kept"]
    assert bool(stats["choices_kept"]) == bool(stats["choices_gained_ns"])
    assert stats["encoded"] == 1  # nobody encodes anything for it


def test_a_small_program_is_not() -> None:
    assert called(dvm.Runtime(inline=True), 4_000, RUNS_FIRST + 1)["choices_tried"] == 0


@pytest.mark.parametrize("inline", [True, False])
def test_tuning_can_be_turned_off(inline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_TUNE", "0")
    assert called(dvm.Runtime(inline=inline), 400_000, RUNS_FIRST + RUNS_MAX)["choices_tried"] == 0


def test_a_device_that_dies_in_the_middle_changes_no_bits() -> None:
    """The next device starts from the program as it was encoded."""
    there = Stepped(arena_bytes_max=1 << 28, tune=True)
    plan = there.stream.register(axpy(), [])
    x, y = (there.stream.asarray(normal(701, 523, seed=seed)) for seed in (1, 2))
    want = there.read(there.stream.call(plan, [x, y])[0]).tobytes()
    for n in range(RUNS_FIRST + RUNS_MAX):
        if n == RUNS_FIRST + 6:
            there.kill()
        assert there.read(there.stream.call(plan, [x, y])[0]).tobytes() == want
