"""A mixture of experts: each token goes to its two best experts, so how many tokens an expert gets depends on the data."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import dvm_rt as dvm
from dynamic.report import Report, Tell, error_of, normal


@dvm.function
def route(x, gate):
    """Tokens (n, d) -> the shares (n, 2) and numbers (n, 2) of their two best experts."""
    scores, experts = dvm.topk(x @ gate, 2)
    return dvm.softmax(scores, axis=-1), experts


def combination(up: dvm.Array, down: dvm.Array) -> Callable[..., dvm.Array]:
    """The function that combines what these experts say: they are its constants, so they are packed once."""

    @dvm.function
    def combine(x, shares, tokens, counts, places):
        """x plus the shares of each token's two results: all experts in one launch, each on its own rows x[tokens]."""
        parts = dvm.grouped_matmul(dvm.gelu(dvm.grouped_matmul(dvm.take(x, tokens, axis=0), up, counts)), down, counts)
        first, second = (dvm.take(parts, places[i], axis=0) for i in range(2))
        return x + shares[:, :1] * first + shares[:, 1:] * second

    return combine


def mixture(x: dvm.Array, gate: dvm.Array, combine: Callable[..., dvm.Array]) -> tuple[dvm.Array, np.ndarray]:
    """(n, d) -> (n, d), and how many tokens each expert got. gate (d, experts)."""
    shares, chosen = route(x, gate)
    chosen = np.asarray(chosen)
    order = np.argsort(chosen, axis=None, kind="stable")  # (token, choice) pairs, expert after expert
    counts = np.bincount(chosen.ravel(), minlength=gate.shape[1])
    places = np.empty(order.shape, np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    numbers = (order // 2, counts, places.reshape(-1, 2).T)
    return combine(x, shares, *(dvm.asarray(np.ascontiguousarray(a, np.int32)) for a in numbers)), counts


def random_weights(rng: np.random.Generator, width: int, experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gate, and of all experts what leads to twice the width, and back."""
    gate = normal(rng, width, experts)
    pairs = [(normal(rng, width, 2 * width), normal(rng, 2 * width, width)) for _ in range(experts)]
    return gate, np.stack([up for up, _ in pairs]), np.stack([down for _, down in pairs])


def reference(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The same in float64, token after token; and the smallest difference between a chosen expert's score and the next."""
    from math import erf

    x, out, counts, margin = x.astype(np.float64), x.astype(np.float64), np.zeros(len(up), int), np.inf
    for i, token in enumerate(x):
        scores = token @ gate.astype(np.float64)
        best = np.argsort(-scores)
        margin = min(margin, scores[best[1]] - scores[best[2]])
        shares = np.exp(scores[best[:2]] - scores[best[0]])
        for share, e in zip(shares / shares.sum(), best[:2], strict=True):
            inner = token @ up[e].astype(np.float64)
            out[i] = out[i] + share * (inner * 0.5 * (1 + np.vectorize(erf)(inner / np.sqrt(2))) @ down[e].astype(np.float64))
            counts[e] += 1
    return out, counts, float(margin)


def run(seed: int, tell: Tell, width: int = 128, experts: int = 8, batches: int = 12, tokens_max: int = 96) -> list[Report]:
    rng = np.random.default_rng(seed)
    weights = random_weights(rng, width, experts)
    gate, up, down = map(dvm.asarray, weights)
    combine = combination(up, down)
    total, seconds, error, agrees = 0, 0.0, 0.0, True
    for done in range(1, batches + 1):
        x = rng.standard_normal((int(rng.integers(1, tokens_max + 1)), width), np.float32)
        begin = time.perf_counter()
        y, counts = mixture(dvm.asarray(x), gate, combine)
        got = np.asarray(y)
        seconds, total = seconds + time.perf_counter() - begin, total + len(x)
        wanted, expected, margin = reference(x, *weights)
        if margin > 1e-5:
            agrees = agrees and np.array_equal(counts, expected)
            error = max(error, error_of(got, wanted))
        tell(done, batches)
    what = f"d = {width}, {experts} experts, 2 a token, {batches} batches of 1 to {tokens_max} tokens"
    return [Report("mixture of experts", what, "token", total, seconds, error, bool(agrees))]
