"""A binary tree-LSTM (Tai, Socher, Manning, 2015) over random parse trees.

`embed` walks each tree by recursion in Python: a node is a call of a cell. `embed_together` is the same recursion over cells
whose calls wait for each other: nodes of equal height, of all trees, become one launch by themselves. `embed_by_level` says
so itself: it computes all nodes of equal height in one call; the shapes follow the trees. A tree is a word (int) or a pair of
trees."""

from __future__ import annotations

import time
from itertools import chain
from typing import NamedTuple

import numpy as np

import dvm_rt as dvm
from dynamic.report import Report, Tell, error_of, normal

Tree = int | tuple["Tree", "Tree"]
PLACE_BITS = 32


class Weights(NamedTuple):
    """words (vocabulary, h); leaf (h, 3h); node (2h, 5h)."""

    words: np.ndarray
    leaf: np.ndarray
    leaf_bias: np.ndarray
    node: np.ndarray
    node_bias: np.ndarray


def random_weights(rng: np.random.Generator, hidden: int, vocabulary: int) -> Weights:
    words = rng.standard_normal((vocabulary, hidden), np.float32)
    return Weights(words, normal(rng, hidden, 3 * hidden), 0.1 * normal(rng, 3 * hidden),
                   normal(rng, 2 * hidden, 5 * hidden), 0.1 * normal(rng, 5 * hidden))  # fmt: skip


def random_tree(rng: np.random.Generator, leaves: int, vocabulary: int) -> Tree:
    if leaves == 1:
        return int(rng.integers(vocabulary))
    left = int(rng.integers(1, leaves))
    return random_tree(rng, left, vocabulary), random_tree(rng, leaves - left, vocabulary)


def nodes_of(tree: Tree) -> int:
    return 1 if isinstance(tree, int) else 1 + nodes_of(tree[0]) + nodes_of(tree[1])


# ---- the cells ----


@dvm.function
def leaf(x, w, b):
    """Word vectors (n, h) -> hidden and cell state, (n, h) each."""
    i, o, u = dvm.split(x @ w + b, 3, axis=-1)
    c = dvm.sigmoid(i) * dvm.tanh(u)
    return dvm.sigmoid(o) * dvm.tanh(c), c


@dvm.function
def node(h_left, c_left, h_right, c_right, w, b):
    """The states of two children, (n, h) each -> those of their parents."""
    i, f, g, o, u = dvm.split(dvm.concat([h_left, h_right], axis=-1) @ w + b, 5, axis=-1)
    c = dvm.sigmoid(i) * dvm.tanh(u) + dvm.sigmoid(f) * c_left + dvm.sigmoid(g) * c_right
    return dvm.sigmoid(o) * dvm.tanh(c), c


@dvm.function
def level(h, c, children, w, b):
    """All states so far (m, h), the rows of the left and right children of n nodes, (n, 2) -> the states so far and n
    more, (m + n, h)."""
    left, right = children[:, 0], children[:, 1]
    new_h, new_c = node(*(dvm.take(x, i, axis=0) for i in (left, right) for x in (h, c)), w, b)
    return dvm.append(h, new_h), dvm.append(c, new_c)


waiting_leaf, waiting_node = dvm.stacked(leaf.python), dvm.stacked(node.python)


# ---- three ways through a tree ----


class TreeLstm:
    """The model with its weights in the current runtime."""

    def __init__(self, weights: Weights) -> None:
        self._host = weights.words
        self.words = [dvm.asarray(row[None]) for row in weights.words]
        self.leaf, self.leaf_bias, self.node, self.node_bias = (dvm.asarray(w) for w in weights[1:])

    def embed(self, tree: Tree) -> dvm.Array:
        """The hidden state of the root, (1, h)."""
        return self._state(tree, leaf, node)[0]

    def embed_together(self, trees: list[Tree]) -> list[dvm.Array]:
        """The hidden states of the roots, (1, h) each; nothing runs before one of them is looked at."""
        return [self._state(tree, waiting_leaf, waiting_node)[0] for tree in trees]

    def _state(self, tree: Tree, leaf: dvm.Function, node: dvm.Function) -> tuple[dvm.Array, dvm.Array]:
        if isinstance(tree, int):
            return leaf(self.words[tree], self.leaf, self.leaf_bias)
        return node(*self._state(tree[0], leaf, node), *self._state(tree[1], leaf, node), self.node, self.node_bias)

    def embed_by_level(self, trees: list[Tree]) -> dvm.Array:
        """The hidden states of the roots, (trees, h)."""
        words, levels, roots = by_level(trees)
        h, c = leaf(dvm.asarray(self._host[words]), self.leaf, self.leaf_bias)
        for children in levels:
            h, c = level(h, c, dvm.asarray(children), self.node, self.node_bias)
        return dvm.take(h, dvm.asarray(roots), axis=0)


def by_level(trees: list[Tree]) -> tuple[list[int], list[np.ndarray], np.ndarray]:
    """Words of the leaves, which come first; for each height the rows of the children of its nodes, (nodes, 2); rows
    of the roots. Until all nodes are counted, one is known by its height and its place among those of that height."""
    words: list[int] = []
    heights: list[list[int]] = []  # of the nodes of a height, their children

    def visit(tree: Tree) -> int:
        if isinstance(tree, int):
            words.append(tree)
            return len(words) - 1
        left, right = visit(tree[0]), visit(tree[1])
        height = (left if left > right else right) >> PLACE_BITS
        if height == len(heights):
            heights.append([])
        children = heights[height]
        children += (left, right)
        return (height + 1 << PLACE_BITS) + len(children) // 2 - 1

    roots = [visit(tree) for tree in trees]
    starts = np.cumsum([0, len(words), *(len(children) // 2 for children in heights)])
    nodes = np.array([*chain(*heights), *roots])
    rows = (starts[nodes >> PLACE_BITS] + (nodes & (1 << PLACE_BITS) - 1)).astype(np.int32)
    *children, root_rows = np.split(rows, 2 * (starts[1:] - len(words)))[1:]
    return words, [pairs.reshape(-1, 2) for pairs in children], root_rows


# ---- the reference and the run ----


def reference(weights: Weights, tree: Tree) -> np.ndarray:
    """The root's hidden state in float64, (1, h)."""
    words, w_leaf, b_leaf, w_node, b_node = (w.astype(np.float64) for w in weights)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def state(tree: Tree) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(tree, int):
            i, o, u = np.split(words[tree][None] @ w_leaf + b_leaf, 3, axis=-1)
            c = sigmoid(i) * np.tanh(u)
            return sigmoid(o) * np.tanh(c), c
        (h1, c1), (h2, c2) = state(tree[0]), state(tree[1])
        i, f, g, o, u = np.split(np.concatenate([h1, h2], -1) @ w_node + b_node, 5, axis=-1)
        c = sigmoid(i) * np.tanh(u) + sigmoid(f) * c1 + sigmoid(g) * c2
        return sigmoid(o) * np.tanh(c), c

    return state(tree)[0]


def run(seed: int, tell: Tell, hidden: int = 128, trees: int = 60, words_max: int = 40) -> list[Report]:
    """Trees of 1 to `words_max` words, by recursion, by recursion over cells that wait, and by level."""
    rng = np.random.default_rng(seed)
    weights = random_weights(rng, hidden, 200)
    model = TreeLstm(weights)
    parsed = [random_tree(rng, int(rng.integers(1, words_max + 1)), 200) for _ in range(trees)]
    wanted = np.concatenate([reference(weights, tree) for tree in parsed])
    count, begin, roots = sum(map(nodes_of, parsed)), time.perf_counter(), []
    for done, tree in enumerate(parsed, 1):
        roots.append(model.embed(tree))
        tell(done, 3 * trees)
    found = np.concatenate([np.asarray(root) for root in roots])
    times = [begin, time.perf_counter()]
    together = np.concatenate([np.asarray(root) for root in model.embed_together(parsed)])
    times.append(time.perf_counter())
    tell(2 * trees, 3 * trees)
    levels = np.asarray(model.embed_by_level(parsed))
    seconds = np.diff([*times, time.perf_counter()]).tolist()
    tell(3 * trees, 3 * trees)
    what = f"h = {hidden}, {trees} random trees of 1 to {words_max} words"
    return [Report("tree-LSTM, recursion", what, "node", count, seconds[0], error_of(found, wanted), True),
            Report("tree-LSTM, recursion, cells wait", what, "node", count, seconds[1], error_of(together, wanted),
                   bool(np.array_equal(found, together))),
            Report("tree-LSTM, by level", what, "node", count, seconds[2], error_of(levels, wanted), True)]  # fmt: skip
