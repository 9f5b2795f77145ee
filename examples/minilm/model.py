"""The sentence encoder, written against the public face of dvm_rt.

A BERT encoder with mean pooling and L2 norm. Every array is (batch, tokens, ...) with sizes that differ from call to
call: a function below is planned once and encoded for each shape. A single sentence is a batch of one and needs no
mask; in a batch the mask holds 1.0 for a token and 0.0 for padding.

Two ways through the layers:
- `embed`: the whole network is one static segment, so one launch a call;
- `embed_until_settled`: a Python loop that looks at a value after every layer and stops early."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np

import dvm_rt as dvm
from minilm.weights import Config, Tensors

MASKED = -1e30  # a score that softmax turns into exactly 0


class Layer(NamedTuple):
    """Weights of one encoder layer, in the order in which a layer takes them. Matrices are (outputs, inputs)."""

    qkv: dvm.Array  # query, key and value, one below the other
    qkv_bias: dvm.Array
    out: dvm.Array
    out_bias: dvm.Array
    norm: dvm.Array
    norm_bias: dvm.Array
    up: dvm.Array
    up_bias: dvm.Array
    down: dvm.Array
    down_bias: dvm.Array
    last_norm: dvm.Array
    last_norm_bias: dvm.Array


class Encoder:
    """The model with its weights in the current runtime: make it inside `with dvm.Runtime(...)`."""

    def __init__(self, config: Config, tensors: Tensors) -> None:
        self.config = config
        self.layers = [_layer_weights(tensors, f"encoder.layer.{i}.") for i in range(config.layers)]
        self._words = dvm.asarray(tensors["embeddings.word_embeddings.weight"])
        places = (
            tensors["embeddings.position_embeddings.weight"]
            + tensors["embeddings.token_type_embeddings.weight"][0]
        )
        self._places = dvm.asarray(places)
        self._norm = dvm.asarray(tensors["embeddings.LayerNorm.weight"])
        self._norm_bias = dvm.asarray(tensors["embeddings.LayerNorm.bias"])
        self.embed = dvm.function(self._embed)
        self.first = dvm.function(self._first)
        self.layer = dvm.function(self._layer_alone)
        self.pool = dvm.function(self._pool)

    def embed_until_settled(self, ids: dvm.Array, threshold: float) -> tuple[dvm.Array, int]:
        """Embedding of one sentence after the first layer that has hardly turned it any more: its cosine with the
        embedding of the layer before is at least `threshold`. ids: (1, tokens) -> (1, hidden) and the layers used."""
        x = self.first(ids)
        before = self.pool(x)
        for depth, weights in enumerate(self.layers, 1):
            x = self.layer(x, *weights)
            now = self.pool(x)
            if float(dvm.sum(before * now)) >= threshold:
                break
            before = now
        return now, depth

    def _embed(self, ids: dvm.Array, mask: dvm.Array | None = None) -> dvm.Array:
        """ids (batch, tokens) int32, mask of the same shape, float32 -> (batch, hidden), rows of length 1."""
        x = self._first(ids)
        for weights in self.layers:
            x = self._layer(x, mask, *weights)
        return self._pool(x, mask)

    def _first(self, ids: dvm.Array) -> dvm.Array:
        """Token ids -> what the first layer reads, (batch, tokens, hidden)."""
        x = dvm.take(self._words, ids, axis=0) + self._places[: ids.shape[1]]
        return dvm.layer_norm(x, self._norm, self._norm_bias, self.config.layer_norm_eps)

    def _layer_alone(self, x: dvm.Array, *weights: dvm.Array) -> dvm.Array:
        """One encoder layer as a launch of its own; the weights are arguments, so that one plan serves all layers."""
        return self._layer(x, None, *weights)

    def _layer(self, x: dvm.Array, mask: dvm.Array | None, *weights: dvm.Array) -> dvm.Array:
        """One encoder layer: (batch, tokens, hidden) -> the same shape."""
        w, eps = Layer(*weights), self.config.layer_norm_eps
        mixed = dvm.linear(self._attention(x, mask, w), w.out, w.out_bias)
        x = dvm.layer_norm(x + mixed, w.norm, w.norm_bias, eps)
        inner = dvm.gelu(dvm.linear(x, w.up, w.up_bias))
        return dvm.layer_norm(x + dvm.linear(inner, w.down, w.down_bias), w.last_norm, w.last_norm_bias, eps)

    def _attention(self, x: dvm.Array, mask: dvm.Array | None, w: Layer) -> dvm.Array:
        batch, tokens, _ = x.shape
        heads, hidden = self.config.heads, self.config.hidden
        size = hidden // heads
        qkv = dvm.reshape(dvm.linear(x, w.qkv, w.qkv_bias), (batch, tokens, 3, heads, size))
        q, k, v = (
            dvm.permute_dims(qkv[:, :, i], (0, 2, 1, 3)) for i in range(3)
        )  # (batch, heads, tokens, size)
        scores = dvm.matmul(q, dvm.permute_dims(k, (0, 1, 3, 2))) * (1 / sqrt(size))
        if mask is not None:
            scores = dvm.where(mask[:, None, None, :] != 0, scores, MASKED)
        mixed = dvm.matmul(dvm.softmax(scores, axis=-1), v)
        return dvm.reshape(dvm.permute_dims(mixed, (0, 2, 1, 3)), (batch, tokens, hidden))

    def _pool(self, x: dvm.Array, mask: dvm.Array | None = None) -> dvm.Array:
        """Mean over the tokens, then length 1: (batch, tokens, hidden) -> (batch, hidden)."""
        if mask is None:
            mean = dvm.mean(x, axis=1)
        else:
            mean = dvm.sum(x * mask[:, :, None], axis=1) / dvm.sum(mask, axis=1, keepdims=True)
        return mean / dvm.sqrt(dvm.sum(mean * mean, axis=-1, keepdims=True))


def _layer_weights(tensors: Tensors, prefix: str) -> Layer:
    def both(name: str) -> tuple[dvm.Array, dvm.Array]:
        return dvm.asarray(tensors[f"{prefix}{name}.weight"]), dvm.asarray(tensors[f"{prefix}{name}.bias"])

    def three(kind: str) -> dvm.Array:
        return dvm.asarray(
            np.concatenate(
                [tensors[f"{prefix}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            )
        )

    return Layer(
        three("weight"),
        three("bias"),
        *both("attention.output.dense"),
        *both("attention.output.LayerNorm"),
        *both("intermediate.dense"),
        *both("output.dense"),
        *both("output.LayerNorm"),
    )
