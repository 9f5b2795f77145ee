"""What is timed: one row a case, written once for all engines over `spaces`.

A case has inputs that change from call to call, weights that do not, and shapes to be timed at. `moved` and `flops` say what the
best possible implementation must move and compute, for the physical limit. The paper's three levels: operators,
subgraphs, models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Arrays = list[np.ndarray]
Dims = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """`function(space, *inputs, *weights)`; `inputs(rng, *dims)`; `weights(rng)`; `shapes`: label -> dims."""

    suite: str
    name: str
    function: Callable[..., object]
    inputs: Callable[..., Arrays]
    shapes: dict[str, Dims]
    weights: Callable[[np.random.Generator], Arrays] = lambda rng: []
    moved: Callable[..., float] | None = None  # bytes, of dims
    flops: Callable[..., float] | None = None
    unseen: Callable[[np.random.Generator], Dims] | None = None  # dims of a shape never seen
    tolerance: float = 1e-4
    expression: str = ""  # numexpr's
    out: Callable[..., None] | None = None  # out(module, *inputs, *weights, result, spare) of torch and, unless torch_only, NumPy
    torch_only: bool = False
    product: bool = False  # of rows with one constant matrix


def normal(rng: np.random.Generator, *dims: int) -> np.ndarray:
    return rng.standard_normal(dims, np.float32)


def _matrices(count: int) -> Callable[..., Arrays]:
    return lambda rng, *dims: [normal(rng, *dims) for _ in range(count)]


def _scaled(rng: np.random.Generator, *dims: int) -> np.ndarray:
    return normal(rng, *dims) / np.float32(dims[-1] ** 0.5)


SMALL_TO_LARGE = {"32x64": (32, 64), "512x768": (512, 768), "4096x4096": (4096, 4096)}
ROWS = {"32x64": (32, 64), "64x32": (64, 32), "512x768": (512, 768), "4096x1024": (4096, 1024)}


def _two_dims(rng: np.random.Generator) -> Dims:
    return int(rng.integers(2, 513)), int(rng.integers(2, 769))


# ---- functions ----------------------------------------------------------------------------------------------------


def chain8(s, x, y):
    a = x * y + x
    b = s.maximum(a, y) * 0.5
    return s.abs(b - y) + (b * 2.0 - x)


def chain8_into(m, x, y, out, spare):
    m.multiply(x, y, out=out), m.add(out, x, out=out), m.maximum(out, y, out=out), m.multiply(out, HALF, out=out)
    m.subtract(out, y, out=spare), m.abs(spare, out=spare)
    m.multiply(out, TWO, out=out), m.subtract(out, x, out=out), m.add(out, spare, out=out)


HALF, TWO = 0.5, 2.0


def gelu_into(torch, x, out, spare):
    torch.ops.aten.gelu.out(x, out=out)


def swiglu_into(torch, x, y, out, spare):
    torch.ops.aten.silu.out(x, out=out), torch.mul(out, y, out=out)


def softmax_into(torch, x, out, spare):
    torch.softmax(x, -1, out=out)


def swiglu(s, x, y):
    return s.silu(x) * y


def lstm_cell(s, gates, c):
    i, f, g, o = s.split(gates, 4)
    new = s.sigmoid(f) * c + s.sigmoid(i) * s.tanh(g)
    return s.sigmoid(o) * s.tanh(new)


def cross_entropy(s, x, target):
    shifted = x - s.max(x, -1)
    return s.log(s.sum(s.exp(shifted), -1)) - s.sum(shifted * target, -1)


def rotary(s, x, cos, sin):
    a, b = s.split(x, 2)
    return s.concat([a * cos - b * sin, b * cos + a * sin])


def mlp(s, x, w1, b1, w2, b2):
    return s.linear(s.gelu(s.linear(x, w1, b1)), w2, b2)


HEADS = 8


def self_attention(s, x, wqkv, bqkv, wo, bo, heads=HEADS, causal=False, before=()):
    """`before`: keys and values of earlier positions, (b, heads, t, d / heads) each."""
    b, n, d = x.shape
    q, k, v = (s.transpose(s.reshape(t, (b, n, heads, d // heads)), (0, 2, 1, 3)) for t in s.split(s.linear(x, wqkv, bqkv), 3))
    if before:
        k, v = (s.concat([old, new], -2) for old, new in zip(before, (k, v), strict=True))
    return s.linear(s.reshape(s.transpose(s.attention(q, k, v, causal), (0, 2, 1, 3)), (b, n, d)), wo, bo)


def encoder_layer(s, x, wqkv, bqkv, wo, bo, g1, h1, w1, b1, w2, b2, g2, h2, heads=HEADS):
    x = s.layer_norm(x + self_attention(s, x, wqkv, bqkv, wo, bo, heads), g1, h1)
    return s.layer_norm(x + mlp(s, x, w1, b1, w2, b2), g2, h2)


def pre_norm_layer(s, x, wqkv, bqkv, wo, bo, g1, h1, w1, b1, w2, b2, g2, h2, causal=False, before=()):
    x = x + self_attention(s, s.layer_norm(x, g1, h1), wqkv, bqkv, wo, bo, HEADS, causal, before)
    return x + mlp(s, s.layer_norm(x, g2, h2), w1, b1, w2, b2)


LAYER = 12


def _layers(weights):
    return [weights[i : i + LAYER] for i in range(0, len(weights), LAYER)]


def encoder(s, x, *weights, heads=HEADS):
    for layer in _layers(weights):
        x = encoder_layer(s, x, *layer, heads=heads)
    return x


def gpt_prefill(s, x, *weights):
    for layer in _layers(weights):
        x = pre_norm_layer(s, x, *layer, causal=True)
    return x


GPT_LAYERS = 4


def gpt_decode(s, x, *rest):
    """One token, (1, 1, d), after t others: the keys and values of each layer come in and grow by one."""
    caches, weights = rest[: 2 * GPT_LAYERS], rest[2 * GPT_LAYERS :]
    for number, layer in enumerate(_layers(weights)):
        x = pre_norm_layer(s, x, *layer, before=caches[2 * number : 2 * number + 2])
    return x


PATCH = 16


def vit(s, image, w_patch, b_patch, *weights):
    """Patches of an image (b, 3, h, w) as tokens, pre-norm layers, the mean token."""
    b, c, h, w = image.shape
    rows, columns = h // PATCH, w // PATCH
    patches = s.transpose(s.reshape(image, (b, c, rows, PATCH, columns, PATCH)), (0, 2, 4, 1, 3, 5))
    x = s.linear(s.reshape(patches, (b, rows * columns, c * PATCH * PATCH)), w_patch, b_patch)
    for layer in _layers(weights):
        x = pre_norm_layer(s, x, *layer)
    return s.mean(x, -2)


# ---- weights ------------------------------------------------------------------------------------------------------


def _mlp_weights(d: int, hidden: int) -> Callable[[np.random.Generator], Arrays]:
    return lambda rng: [_scaled(rng, hidden, d), normal(rng, hidden), _scaled(rng, d, hidden), normal(rng, d)]


def _attention_weights(d: int) -> Callable[[np.random.Generator], Arrays]:
    return lambda rng: [_scaled(rng, 3 * d, d), normal(rng, 3 * d), _scaled(rng, d, d), normal(rng, d)]


def _layer_weights(d: int, layers: int) -> Callable[[np.random.Generator], Arrays]:
    def make(rng: np.random.Generator) -> Arrays:
        out: Arrays = []
        for _ in range(layers):
            norm = [1 + 0.1 * normal(rng, d), 0.1 * normal(rng, d)]
            out += [*_attention_weights(d)(rng), *norm, *_mlp_weights(d, 4 * d)(rng), 1 + 0.1 * normal(rng, d),
                    0.1 * normal(rng, d)]
        return out

    return make


def _sequence_flops(d: int, layers: int) -> Callable[..., float]:
    return lambda b, n, _: layers * b * n * (2 * 12 * d * d + 4 * n * d)


SEQUENCES = {"1x8x256": (1, 8, 256), "1x64x256": (1, 64, 256), "4x64x256": (4, 64, 256), "8x256x256": (8, 256, 256)}


def _gpt_step(rng: np.random.Generator, t: int) -> Arrays:
    return [normal(rng, 1, 1, 256), *(normal(rng, 1, HEADS, t, 256 // HEADS) for _ in range(2 * GPT_LAYERS))]


def _vit_weights(rng: np.random.Generator) -> Arrays:
    return [_scaled(rng, 256, 3 * PATCH * PATCH), normal(rng, 256), *_layer_weights(256, 4)(rng)]


def _sequence(rng: np.random.Generator) -> Dims:
    return int(rng.integers(1, 5)), int(rng.integers(2, 129)), 256


def _one_hot(rng: np.random.Generator, rows: int, columns: int) -> Arrays:
    return [normal(rng, rows, columns), np.eye(columns, dtype=np.float32)[rng.integers(0, columns, rows)]]


def _heads(rng: np.random.Generator, queries: int, keys: int, d: int) -> Arrays:
    return [normal(rng, 1, HEADS, queries, d), normal(rng, 1, HEADS, keys, d), normal(rng, 1, HEADS, keys, d)]


def _attention_name(queries: int, keys: int, d: int) -> tuple[str, Dims]:
    return f"{queries}q {keys}k d{d}", (queries, keys, d)


ATTENTION = dict(
    _attention_name(q, k, d) for d in (32, 64, 128) for q, k in ((1, 1), (1, 128), (1, 2048), (64, 64), (512, 512), (2048, 2048))
)  # fmt: skip
CONSTANT = {(768, 768): (1, 2, 8, 64, 128, 512), (4096, 4096): (1, 2, 8, 64), (1024, 1024): (8, 64)}  # (k, n): rows
PER_CALL = {f"{m}x{n}x{k}": (m, n, k) for m, n, k in
            ((8, 768, 768), (16, 768, 768), (64, 768, 768), (64, 64, 64), (256, 256, 256), (1024, 1024, 1024))}  # fmt: skip


def _product_moved(m: int, n: int, k: int) -> float:
    return 4.0 * (m * k + k * n + m * n)


def _product_flops(m: int, n: int, k: int) -> float:
    return 2.0 * m * n * k


def product_case(k: int, n: int, rows: tuple[int, ...]) -> Case:
    """x (m, k) times a constant (k, n)."""
    return Case(
        "operators", f"matmul, constant {k}x{n}", lambda s, x, w: x @ w, lambda rng, m: [normal(rng, m, k)],
        {f"{m}x{k}": (m,) for m in rows}, lambda rng: [_scaled(rng, n, k).T.copy()], lambda m: _product_moved(m, n, k),
        lambda m: _product_flops(m, n, k), (lambda rng: (int(rng.integers(1, 129)),)) if k == 768 else None,
        out=lambda m, x, w, out, spare: m.matmul(x, w, out=out), product=True,
    )  # fmt: skip


CASES: tuple[Case, ...] = (
    Case("operators", "add", lambda s, x, y: x + y, _matrices(2), SMALL_TO_LARGE, moved=lambda r, c: 12.0 * r * c,
         unseen=_two_dims,
         expression="x0 + x1", out=lambda m, x, y, out, spare: m.add(x, y, out=out)),
    Case("operators", "exp", lambda s, x: s.exp(x), _matrices(1), SMALL_TO_LARGE, moved=lambda r, c: 8.0 * r * c,
         unseen=_two_dims,
         expression="exp(x0)", out=lambda m, x, out, spare: m.exp(x, out=out)),
    Case("operators", "gelu", lambda s, x: s.gelu(x), _matrices(1), SMALL_TO_LARGE, moved=lambda r, c: 8.0 * r * c,
         unseen=_two_dims,
         out=gelu_into, torch_only=True),
    Case("operators", "softmax", lambda s, x: s.softmax(x), _matrices(1), ROWS, moved=lambda r, c: 8.0 * r * c, unseen=_two_dims,
         out=softmax_into, torch_only=True),
    Case("operators", "layer norm", lambda s, x, g, b: s.layer_norm(x, g, b),
         lambda rng, r, c: [normal(rng, r, c), normal(rng, c), normal(rng, c)], ROWS, moved=lambda r, c: 8.0 * r * c,
         unseen=_two_dims),
    Case("operators", "rms norm", lambda s, x, g: s.rms_norm(x, g), lambda rng, r, c: [normal(rng, r, c), normal(rng, c)], ROWS,
         moved=lambda r, c: 8.0 * r * c, unseen=_two_dims),
    Case("operators", "sum of rows", lambda s, x: s.sum(x, -1), _matrices(1), ROWS, moved=lambda r, c: 4.0 * r * c,
         unseen=_two_dims),
    *(product_case(*dims, rows) for dims, rows in CONSTANT.items()),
    Case("operators", "matmul, both per call", lambda s, x, y: x @ y, lambda rng, m, n, k: [normal(rng, m, k),
        normal(rng, k, n)], PER_CALL,
         moved=_product_moved, flops=_product_flops, out=lambda m, x, y, out, spare: m.matmul(x, y, out=out)),
    Case("subgraphs", "chain of 8", chain8, _matrices(2), {"1x64": (1, 64), **SMALL_TO_LARGE},
         moved=lambda r, c: 12.0 * r * c, unseen=_two_dims,
         out=chain8_into, expression="abs(where(x0 * x1 + x0 > x1, x0 * x1 + x0, x1) * half - x1)"
         " + (where(x0 * x1 + x0 > x1, x0 * x1 + x0, x1) * half * two - x0)"),
    Case("subgraphs", "swiglu", swiglu, _matrices(2), SMALL_TO_LARGE, moved=lambda r, c: 12.0 * r * c, unseen=_two_dims,
         out=swiglu_into, torch_only=True),
    Case("subgraphs", "lstm cell", lstm_cell, lambda rng, r, c: [normal(rng, r, 4 * c), normal(rng, r, c)], SMALL_TO_LARGE,
         moved=lambda r, c: 24.0 * r * c, unseen=_two_dims),
    Case("subgraphs", "cross entropy", cross_entropy, _one_hot, ROWS, moved=lambda r, c: 8.0 * r * c, unseen=_two_dims),
    Case("subgraphs", "rotary", rotary, lambda rng, r, c: [normal(rng, r, c), normal(rng, r, c // 2),
                                                           normal(rng, r, c // 2)], ROWS,
         moved=lambda r, c: 12.0 * r * c),
    Case("subgraphs", "attention, 8 heads", lambda s, q, k, v: s.attention(q, k, v), _heads, ATTENTION,
         moved=lambda q, k, d: 4.0 * HEADS * d * 2 * (q + k), flops=lambda q, k, d: 4.0 * HEADS * q * k * d),
    Case("subgraphs", "mlp 256-1024", mlp, lambda rng, r, c: [normal(rng, r, c)],
         {"1x256": (1, 256), "32x256": (32, 256), "512x256": (512, 256)},
         _mlp_weights(256, 1024), flops=lambda r, _: 2.0 * r * 2 * 256 * 1024,
         unseen=lambda rng: (int(rng.integers(1, 257)), 256)),
    Case("subgraphs", "encoder layer", encoder_layer, lambda rng, *dims: [normal(rng, *dims)], SEQUENCES, _layer_weights(256, 1),
         flops=_sequence_flops(256, 1), unseen=_sequence),
    Case("models", "6-layer encoder", encoder, lambda rng, *dims: [normal(rng, *dims)], SEQUENCES, _layer_weights(256, 6),
         flops=_sequence_flops(256, 6), unseen=_sequence, tolerance=1e-3),
    Case("models", "MiniLM's size (6 layers, 384, 12 heads)", lambda s, x, *w: encoder(s, x, *w,
        heads=12), lambda rng, *dims: [normal(rng, *dims)],
         {"1x8x384": (1, 8, 384), "1x32x384": (1, 32, 384), "4x64x384": (4, 64, 384)}, _layer_weights(384, 6),
         flops=_sequence_flops(384, 6),
         unseen=lambda rng: (1, int(rng.integers(2, 129)), 384), tolerance=1e-3),
    Case("models", "GPT prefill (4 layers)", gpt_prefill, lambda rng, *dims: [normal(rng, *dims)],
         {"1x8x256": (1, 8, 256), "1x64x256": (1, 64, 256), "1x512x256": (1, 512, 256)},
         _layer_weights(256, GPT_LAYERS), flops=_sequence_flops(256, 4),
         unseen=lambda rng: (1, int(rng.integers(2, 257)), 256), tolerance=1e-3),
    Case("models", "GPT decode (4 layers)", gpt_decode, _gpt_step, {f"after {t}": (t,) for t in (16, 128, 1024)},
         _layer_weights(256, GPT_LAYERS),
         moved=lambda t: 4.0 * GPT_LAYERS * (12 * 256 * 256 + 2 * t * 256),
         unseen=lambda rng: (int(rng.integers(1, 257)),), tolerance=1e-3),
    Case("models", "ViT (4 layers, patches of 16)", vit, lambda rng, b, h, w: [normal(rng, b, 3, h, w)],
         {f"{b}x{h}x{w}": (b, h, w) for b, h, w in ((1, 64, 64), (1, 224, 224), (4, 160, 224))}, _vit_weights,
         unseen=lambda rng: (1, PATCH * int(rng.integers(2, 15)), PATCH * int(rng.integers(2, 15))), tolerance=1e-3),
)  # fmt: skip
