"""The sentence encoder in NumPy float64: what `model.py` is held against.

Owns nothing but the arithmetic, written from the architecture (BERT encoder, mean pooling, L2 norm) one sentence at a
time and in the plainest form; shares no code with `model.py`. Every array is float64."""

from __future__ import annotations

from collections.abc import Iterator
from math import erf

import numpy as np

from minilm.weights import Config

Array = np.ndarray
_ERF_STEPS, _ERF_END = 512, 6  # the table of _erf: points per unit, and where erf is 1 to the last bit
_ERF = np.array([erf(i / _ERF_STEPS) for i in range(_ERF_STEPS * _ERF_END + 1)])


class Reference:
    """A float64 copy of the weights, and the embeddings that the main job is checked against."""

    def __init__(self, config: Config, tensors: dict[str, Array]) -> None:
        self.config = config
        self.tensors = {name: np.asarray(t, np.float64) for name, t in tensors.items()}

    def embeddings(self, ids: Array) -> Iterator[Array]:
        """The embedding before the first layer and after each one, as they are asked for.

        ids: (tokens,) integers; yields layers + 1 arrays of (hidden,), each of length 1."""
        x = self._tokens(ids)
        yield _unit(x.mean(axis=0))
        for layer in range(self.config.layers):
            x = self._layer(x, f"encoder.layer.{layer}.")
            yield _unit(x.mean(axis=0))

    def _tokens(self, ids: Array) -> Array:
        t = self.tensors
        x = t["embeddings.word_embeddings.weight"][ids]
        x = x + t["embeddings.position_embeddings.weight"][: len(ids)]
        x = x + t["embeddings.token_type_embeddings.weight"][0]
        return self._norm(x, "embeddings.LayerNorm")

    def _layer(self, x: Array, prefix: str) -> Array:
        x = self._norm(x + self._attention(x, prefix), prefix + "attention.output.LayerNorm")
        inner = self._linear(x, prefix + "intermediate.dense")
        inner = inner * 0.5 * (1.0 + _erf(inner / np.sqrt(2.0)))
        return self._norm(x + self._linear(inner, prefix + "output.dense"), prefix + "output.LayerNorm")

    def _attention(self, x: Array, prefix: str) -> Array:
        heads, size = self.config.heads, self.config.hidden // self.config.heads
        out = np.empty_like(x)
        q, k, v = (self._linear(x, f"{prefix}attention.self.{name}") for name in ("query", "key", "value"))
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / np.sqrt(size)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, part] = weights / weights.sum(axis=1, keepdims=True) @ v[:, part]
        return self._linear(out, prefix + "attention.output.dense")

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self.tensors[name + ".weight"].T + self.tensors[name + ".bias"]

    def _norm(self, x: Array, name: str) -> Array:
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + self.config.layer_norm_eps)
        return x * self.tensors[name + ".weight"] + self.tensors[name + ".bias"]


def settled(embeddings: list[Array], threshold: float) -> tuple[int, float]:
    """After how many layers the embedding has settled: the first whose cosine with the one before is >= threshold.

    Returns the depth, and the smallest distance from the threshold of any cosine that was looked at: how far the
    decision was from being another one."""
    margin = np.inf
    for depth in range(1, len(embeddings)):
        cosine = float(embeddings[depth - 1] @ embeddings[depth])
        margin = min(margin, abs(cosine - threshold))
        if cosine >= threshold:
            break
    return depth, margin


def _unit(x: Array) -> Array:
    return x / np.sqrt(x @ x)


def _erf(x: Array) -> Array:
    """erf by its Taylor series of third order around the nearest table point; error below 1e-12."""
    size = np.minimum(np.abs(x), _ERF_END)
    index = np.rint(size * _ERF_STEPS).astype(np.int64)
    at = index / _ERF_STEPS
    h = size - at
    slope = 2.0 / np.sqrt(np.pi) * np.exp(-at * at)
    return np.copysign(_ERF[index] + slope * h * (1.0 - h * at + h * h * (2.0 * at * at - 1.0) / 3.0), x)
