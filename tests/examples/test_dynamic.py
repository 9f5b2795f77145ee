"""The dynamic models, small, inline and through processes: results and paths are the float64 reference's, bytes are the same."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import dvm_rt as dvm
from dynamic import gpt, loops, mixture, trees

SMALL = {
    "trees": partial(trees.run, hidden=16, trees=6, words_max=9),
    "exit": partial(loops.run_early_exit, width=16, depth=6, inputs=12, sure=0.3),
    "converged": partial(loops.run_converged, size=300, systems=3),
    "gpt": partial(gpt.run, width=32, depth=2, vocabulary=50, prompts=2, tokens_max=12),
    "mixture": partial(mixture.run, width=16, experts=4, batches=4, tokens_max=9),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_reference_inline(name: str, seed: int) -> None:
    told = []
    with dvm.Runtime(inline=True):
        reports = SMALL[name](seed, lambda done, whole: told.append((done, whole)))
    assert told[-1][0] == told[-1][1]
    for report in reports:
        assert report.good, report
        assert report.count > 0


@pytest.mark.parametrize("encode", ["auto", "workers"])
def test_bytes_are_the_same_through_processes(encode: str) -> None:
    rng = np.random.default_rng(3)
    weights = trees.random_weights(rng, 16, 20)
    parsed = [trees.random_tree(rng, n, 20) for n in (1, 7, 4)]
    language = gpt.random_weights(rng, 32, 2, 40, 20)

    def everything() -> tuple:
        model, speaker = trees.TreeLstm(weights), gpt.Gpt(language)
        roots = [np.asarray(model.embed(tree)).tobytes() for tree in parsed]
        return roots, np.asarray(model.embed_by_level(parsed)).tobytes(), gpt.decode(speaker, [1, 2], -1,
            10), gpt.beam_search(speaker, [3], 5, 3, 8)

    with dvm.Runtime(inline=True):
        inline = everything()
    with dvm.Runtime(encoders=1, encode=encode):
        assert everything() == inline


def test_recursion_and_levels_agree() -> None:
    rng = np.random.default_rng(4)
    with dvm.Runtime(inline=True):
        model = trees.TreeLstm(trees.random_weights(rng, 16, 20))
        parsed = [trees.random_tree(rng, 6, 20) for _ in range(3)]
        alone = np.concatenate([np.asarray(model.embed(tree)) for tree in parsed])
        np.testing.assert_allclose(np.asarray(model.embed_by_level(parsed)), alone, rtol=1e-5, atol=1e-6)


def test_a_beam_shrinks_when_a_hypothesis_ends() -> None:
    alive = [(0.0, [7]), (-1.0, [8])]
    scores = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]))
    on, parents, over = gpt.spread(alive, scores, 0, 2)
    assert [tokens for _, tokens in on] == [[7, 1]] and parents.tolist() == [0]
    assert [tokens for _, tokens in over] == [[7, 0]]


def test_structured_loops_have_the_bytes_of_plain_ones() -> None:
    rng = np.random.default_rng(5)
    layers, head = loops.early_exit_weights(rng, 16, 6, 10)
    with dvm.Runtime(inline=True):
        held, held_head = [(dvm.asarray(w), dvm.asarray(b)) for w, b in layers], dvm.asarray(head)
        for _ in range(8):
            x = dvm.asarray(0.3 * rng.standard_normal((1, 16), np.float32))
            y, _ = loops.early_exit(x, held, held_head, 0.5)
            structured = loops.early_exit_structured(x, 0.5, held_head, *(array for pair in held for array in pair))
            assert np.asarray(structured).tobytes() == np.asarray(y).tobytes()
        b = dvm.asarray(rng.standard_normal(300, np.float32))
        y, sweeps = loops.solve(b, 1e-5)
        structured, found = loops.solve_structured(b, 1e-5)
        assert (int(found), np.asarray(structured).tobytes()) == (sweeps, np.asarray(y).tobytes())
