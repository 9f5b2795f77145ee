"""A small GPT that decodes: greedy until an end token, one request after the other or many at once, and beam search with a beam
that shrinks as hypotheses end.

The cache of keys and values, (tokens, rows, width), grows by a token each step, so every step has shapes of its own.
`step` is one launch: it appends, where the cache lies, and gives the best token of each row. `beam_step` picks the
rows of the cache that live on (`parents`) first, which moves them."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import numpy as np

import dvm_rt as dvm
from dynamic.report import Report, Tell, error_of, normal

HEADS = 4


class Layer(NamedTuple):
    norm: np.ndarray
    qkv: np.ndarray
    out: np.ndarray
    last_norm: np.ndarray
    up: np.ndarray
    down: np.ndarray


class Weights(NamedTuple):
    """words (vocabulary, d), places (capacity, d), head (d, vocabulary)."""

    words: np.ndarray
    places: np.ndarray
    head: np.ndarray
    layers: list[Layer]


def random_weights(rng: np.random.Generator, width: int, depth: int, vocabulary: int, capacity: int) -> Weights:
    def one() -> Layer:
        ones = np.ones(width, np.float32)
        return Layer(ones, normal(rng, width, 3 * width), normal(rng, width, width), ones,
                     normal(rng, width, 4 * width), normal(rng, 4 * width, width))  # fmt: skip

    return Weights(rng.standard_normal((vocabulary, width), np.float32), rng.standard_normal((capacity, width), np.float32),
                   3 * normal(rng, width, vocabulary), [one() for _ in range(depth)])  # fmt: skip


class Gpt:
    """The model with its weights in the current runtime; they are captured by its two functions."""

    def __init__(self, weights: Weights) -> None:
        self.words, self.places, self.head = (dvm.asarray(w) for w in weights[:3])
        self.layers = [Layer(*(dvm.asarray(w) for w in layer)) for layer in weights.layers]
        self.start = dvm.function(self._start)
        self.step = dvm.function(self._step)
        self.waiting_step = dvm.stacked(self._step)
        self.beam_step = dvm.function(self._beam_step)

    def _start(self, ids):
        """A prompt, (1, n) int32 -> logits after it (1, vocabulary), then the caches."""
        return self._logits(ids, [None] * (2 * len(self.layers)))

    def _step(self, ids, *caches):
        """One token a row, (b, 1) int32, and the caches -> the likeliest next token, the same, then the caches."""
        logits, *grown = self._logits(ids, caches)
        return (likeliest(logits), *grown)

    def _beam_step(self, ids, parents, *caches):
        """As _step, each row going on from row parents[i] of the caches -> log probabilities (b, vocabulary), then the caches."""
        logits, *grown = self._logits(ids, [dvm.take(cache, parents, axis=1) for cache in caches])
        return (dvm.log_softmax(logits, axis=-1), *grown)

    def _logits(self, ids, caches):
        batch, new = ids.shape
        before = 0 if caches[0] is None else caches[0].shape[0]
        ids = dvm.clip(ids, 0, self.words.shape[0] - 1)  # no request can stop a launch that it shares with others
        x = dvm.take(self.words, ids, axis=0) + self.places[before : before + new]
        grown = []
        for number, layer in enumerate(self.layers):
            x, *both = self._layer(x, layer, caches[2 * number : 2 * number + 2])
            grown += both
        return (dvm.matmul(dvm.rms_norm(x[:, -1], None), self.head), *grown)

    def _layer(self, x, w, cache):
        batch, new, width = x.shape
        q, k, v = dvm.split(dvm.rms_norm(x, w.norm) @ w.qkv, 3, axis=-1)
        q, k, v = (dvm.permute_dims(y, (1, 0, 2)) for y in (q, k, v))
        if cache[0] is not None:
            k, v = dvm.append(cache[0], k), dvm.append(cache[1], v)

        def heads(y):
            return dvm.permute_dims(dvm.reshape(y, (y.shape[0], batch, HEADS, width // HEADS)), (1, 2, 0, 3))

        mixed = dvm.attention(heads(q), heads(k), heads(v), causal=True)
        x = x + dvm.reshape(dvm.permute_dims(mixed, (0, 2, 1, 3)), (batch, new, width)) @ w.out
        return x + dvm.gelu(dvm.rms_norm(x, w.last_norm) @ w.up) @ w.down, k, v


def likeliest(logits):
    """(b, vocabulary) -> (b, 1) int32."""
    return dvm.astype(dvm.argmax(logits, axis=-1, keepdims=True), dvm.int32)


def decode(model: Gpt, prompt: list[int], end: int, tokens_max: int) -> list[int]:
    """The likeliest tokens after the prompt, up to and with the end token. Each step is on its way before the token that it reads
    is looked at: the device does not wait for us, and the one step too many is dropped."""
    logits, *caches = model.start(dvm.asarray(np.array([prompt], np.int32)))
    ids, found = likeliest(logits), []
    while True:
        ahead = model.step(ids, *caches)
        found.append(int(ids))
        if found[-1] == end or len(found) == tokens_max:
            return found
        ids, *caches = ahead


async def decode_together(model: Gpt, prompts: list[list[int]], end: int, tokens_max: int) -> list[list[int]]:
    """As decode for each prompt, all at once: steps of requests that are equally far are one launch, which reads the
    weights once. The step after it is on its way, too, before the tokens are looked at."""

    async def request(prompt: list[int]) -> list[int]:
        logits, *caches = model.start(dvm.asarray(np.array([prompt], np.int32)))
        ids, found = likeliest(logits), []
        await dvm.aeval(ids)
        while True:
            ahead = model.waiting_step(ids, *caches)
            await dvm.aeval(ids)
            found.append(int(ids))
            if found[-1] == end or len(found) == tokens_max:
                return found
            ids, *caches = ahead

    return await asyncio.gather(*(request(prompt) for prompt in prompts))


def beam_search(model: Gpt, prompt: list[int], end: int, width: int, tokens_max: int) -> list[tuple[float, list[int]]]:
    """Hypotheses, likeliest first; those that end leave the beam, which gets narrower."""
    logits, *caches = model.start(dvm.asarray(np.array([prompt], np.int32)))
    scores = np.asarray(dvm.log_softmax(logits, axis=-1))
    alive, ended = [(0.0, [])], []
    for length in range(1, tokens_max + 1):
        alive, parents, over = spread(alive, scores, end, width - len(ended))
        ended += over
        if not alive or length == tokens_max:
            break
        ids = np.array([[tokens[-1]] for _, tokens in alive], np.int32)
        scores, *caches = model.beam_step(dvm.asarray(ids), dvm.asarray(parents), *caches)
        scores = np.asarray(scores)
    return sorted(ended + alive, key=lambda found: -found[0])


def spread(alive: list, scores: np.ndarray, end: int, width: int) -> tuple[list, np.ndarray, list]:
    """(hypotheses that go on, the row each comes from, those that have ended) of the `width` likeliest one token longer."""
    total = np.array([score for score, _ in alive])[:, None] + scores.astype(np.float64)
    best = np.argsort(-total, axis=None, kind="stable")[:width]
    rows, tokens = np.unravel_index(best, total.shape)
    grown = [(float(total[r, t]), [*alive[r][1], int(t)]) for r, t in zip(rows, tokens, strict=True)]
    on = [i for i, (_, found) in enumerate(grown) if found[-1] != end]
    return [grown[i] for i in on], rows[on].astype(np.int32), [g for g in grown if g[1][-1] == end]


# ---- the reference: no cache, the whole sequence in float64 ----


def reference_logits(weights: Weights, ids: list[int]) -> np.ndarray:
    """Logits after every token, (n, vocabulary)."""
    n = len(ids)
    x = weights.words[ids].astype(np.float64) + weights.places[:n]
    hidden = np.triu(np.full((n, n), -np.inf), 1)

    def norm(y: np.ndarray) -> np.ndarray:
        return y / np.sqrt(np.mean(y * y, -1, keepdims=True) + 1e-6)

    for layer in weights.layers:
        w = Layer(*(a.astype(np.float64) for a in layer))
        q, k, v = (np.moveaxis(y.reshape(n, HEADS, -1), 1, 0) for y in np.split(norm(x) * w.norm @ w.qkv, 3, -1))
        scores = q @ np.swapaxes(k, 1, 2) / np.sqrt(q.shape[-1]) + hidden
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + np.moveaxis(mixed, 0, 1).reshape(n, -1) @ w.out
        inner = norm(x) * w.last_norm @ w.up
        x = x + inner * 0.5 * (1 + _erf(inner / np.sqrt(2))) @ w.down
    return norm(x) @ weights.head


def _erf(x: np.ndarray) -> np.ndarray:
    from math import erf

    return np.vectorize(erf)(x)


def greedy_agrees(weights: Weights, prompt: list[int], found: list[int]) -> bool:
    """Whether every token is the reference's choice after those before it, or within 1e-4 of that."""
    logits = reference_logits(weights, prompt + found[:-1])[len(prompt) - 1 :]
    return bool(np.all(logits.max(-1) - logits[np.arange(len(found)), found] <= 1e-4))


def score_of(weights: Weights, prompt: list[int], tokens: list[int]) -> float:
    """The log probability of tokens after a prompt."""
    logits = reference_logits(weights, prompt + tokens[:-1])[len(prompt) - 1 :]
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return float((logits[np.arange(len(tokens)), tokens] - log_sum).sum())


def run(seed: int, tell: Tell, width: int = 256, depth: int = 4, vocabulary: int = 1000, prompts: int = 4,
        tokens_max: int = 120) -> list[Report]:
    """Greedy decoding and beam search of some prompts."""
    rng = np.random.default_rng(seed)
    weights = random_weights(rng, width, depth, vocabulary, tokens_max + 16)
    model = Gpt(weights)
    given = [rng.integers(0, vocabulary, int(rng.integers(1, 16))).tolist() for _ in range(prompts)]
    end = decode(model, given[0], -1, tokens_max)[tokens_max // 2]  # something that will be said
    greedy, beams, seconds = [], [], [0.0, 0.0]
    for done, prompt in enumerate(given, 1):
        begin = time.perf_counter()
        greedy.append(decode(model, prompt, end, tokens_max))
        between = time.perf_counter()
        beams.append(beam_search(model, prompt, end, 4, tokens_max // 4))
        seconds = [seconds[0] + between - begin, seconds[1] + time.perf_counter() - between]
        tell(done, prompts)
    begin, same = time.perf_counter(), [given[0], *([*p[:1], *given[0][1:]] for p in given[1:])] * 4
    together = asyncio.run(decode_together(model, same, end, tokens_max))
    seconds.append(time.perf_counter() - begin)
    equal = together == [decode(model, prompt, end, tokens_max) for prompt in same]
    agrees = all(greedy_agrees(weights, p, found) for p, found in zip(given, greedy, strict=True))
    last = np.array([[score, score_of(weights, p, t)] for p, found in zip(given, beams, strict=True) for score, t in found])
    what = f"d = {width}, {depth} layers, {prompts} prompts"
    count = sum(map(len, greedy)), sum(len(t) for found in beams for _, t in found)
    return [Report("greedy decoding", what, "token", count[0], seconds[0], 0.0, agrees),
            Report("greedy decoding at once", f"d = {width}, {depth} layers, {len(same)} requests", "token",
                   sum(map(len, together)), seconds[2], 0.0, equal),
            Report("beam search", f"{what}, beam 4 and shrinking", "token", count[1], seconds[1],
                   error_of(last[:, 0], last[:, 1]), True)]  # fmt: skip
