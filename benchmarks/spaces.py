"""One vocabulary for all engines, so that a case is written once: case(space, *arrays).

A space gives the functions below over its own arrays; + - * / @ and comparisons are the arrays' own. Each engine gets its best
word for a thing: PyTorch its fused functional operators, so that nobody loses by a clumsy spelling. `NumPy` in float64 is the
reference."""

from __future__ import annotations

from math import erf

import numpy as np

try:  # NumPy has no error function: who computes with NumPy takes SciPy's
    from scipy.special import erf as erf_of_arrays
except ImportError:
    erf_of_arrays = np.vectorize(erf, otypes=[np.float64])

Shape = tuple[int, ...]


class NumPy:
    """Plain NumPy, in the dtype of what comes in."""

    exp, tanh, sqrt, abs, log = np.exp, np.tanh, np.sqrt, np.abs, np.log
    maximum, minimum, where = np.maximum, np.minimum, np.where

    @staticmethod
    def erf(x: np.ndarray) -> np.ndarray:
        return erf_of_arrays(x).astype(x.dtype, copy=False)

    @staticmethod
    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    @staticmethod
    def sum(x: np.ndarray, axis: int) -> np.ndarray:
        return x.sum(axis, keepdims=True)

    @staticmethod
    def mean(x: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis, keepdims=True)

    @staticmethod
    def max(x: np.ndarray, axis: int) -> np.ndarray:
        return x.max(axis, keepdims=True)

    @staticmethod
    def split(x: np.ndarray, count: int) -> list[np.ndarray]:
        return np.split(x, count, -1)

    @staticmethod
    def concat(arrays: list[np.ndarray], axis: int = -1) -> np.ndarray:
        return np.concatenate(arrays, axis)

    @staticmethod
    def reshape(x: np.ndarray, shape: Shape) -> np.ndarray:
        return x.reshape(shape)

    @staticmethod
    def transpose(x: np.ndarray, axes: Shape) -> np.ndarray:
        return x.transpose(axes)

    @classmethod
    def gelu(cls, x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + cls.erf(x * 0.5**0.5))

    @classmethod
    def silu(cls, x: np.ndarray) -> np.ndarray:
        return x * cls.sigmoid(x)

    @staticmethod
    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    @staticmethod
    def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / (x.var(-1, keepdims=True) + 1e-5) ** 0.5 * weight + bias

    @staticmethod
    def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / ((x * x).mean(-1, keepdims=True) + 1e-6) ** 0.5 * weight

    @staticmethod
    def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        return x @ weight.swapaxes(-1, -2) + (0 if bias is None else bias)

    @classmethod
    def attention(cls, q: np.ndarray, k: np.ndarray, v: np.ndarray, causal: bool = False) -> np.ndarray:
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]).astype(q.dtype)
        if causal:
            seen = np.tril(np.ones(scores.shape[-2:], bool), scores.shape[-1] - scores.shape[-2])
            scores = np.where(seen, scores, -np.inf)
        return cls.softmax(scores) @ v


class Jax(NumPy):
    """jax.numpy; functions are jitted whole, so the NumPy spellings are its best ones."""

    def __init__(self) -> None:
        import jax
        import jax.numpy as jnp

        for name in ("exp", "tanh", "sqrt", "abs", "maximum", "minimum", "where", "log"):
            setattr(self, name, getattr(jnp, name))
        self.erf, self.sigmoid, self.silu = jax.scipy.special.erf, jax.nn.sigmoid, jax.nn.silu
        self.softmax = jax.nn.softmax
        self.split = lambda x, count: jnp.split(x, count, -1)
        self.concat = lambda arrays, axis=-1: jnp.concatenate(arrays, axis)
        self.gelu = lambda x: jax.nn.gelu(x, approximate=False)
        self._jnp = jnp

    def attention(self, q, k, v, causal=False):  # noqa: ANN001, ANN201
        jnp = self._jnp
        scores = q @ k.swapaxes(-1, -2) / np.float32(q.shape[-1] ** 0.5)
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool), scores.shape[-1] - scores.shape[-2]), scores, -jnp.inf)
        return self.softmax(scores) @ v


class Torch:
    """PyTorch's functional operators."""

    def __init__(self) -> None:
        import torch
        import torch.nn.functional as functional

        for name in ("exp", "tanh", "sqrt", "abs", "maximum", "minimum", "where", "log", "erf", "sigmoid"):
            setattr(self, name, getattr(torch, name))
        self.gelu, self.silu, self.linear = functional.gelu, functional.silu, functional.linear
        self.sum = lambda x, axis: x.sum(axis, keepdim=True)
        self.mean = lambda x, axis: x.mean(axis, keepdim=True)
        self.max = lambda x, axis: x.amax(axis, keepdim=True)
        self.split = lambda x, count: list(torch.chunk(x, count, -1))
        self.concat = lambda arrays, axis=-1: torch.cat(arrays, axis)
        self.reshape, self.transpose = torch.reshape, torch.permute
        self.softmax = lambda x: functional.softmax(x, -1)
        self.layer_norm = lambda x, weight, bias: functional.layer_norm(x, weight.shape, weight, bias)
        self.rms_norm = lambda x, weight: functional.rms_norm(x, weight.shape, weight, 1e-6)
        attend = functional.scaled_dot_product_attention
        self.attention = lambda q, k, v, causal=False: attend(q, k, v, is_causal=bool(causal and q.shape[-2] > 1))


class Dvm:
    """dvm_rt."""

    def __init__(self) -> None:
        import dvm_rt as dvm

        for name in ("exp", "tanh", "sqrt", "abs", "maximum", "minimum", "where", "log", "erf", "sigmoid", "gelu",
                     "silu", "linear",
                     "reshape", "softmax", "layer_norm", "rms_norm"):
            setattr(self, name, getattr(dvm, name))
        self.sum = lambda x, axis: dvm.sum(x, axis=axis, keepdims=True)
        self.mean = lambda x, axis: dvm.mean(x, axis=axis, keepdims=True)
        self.max = lambda x, axis: dvm.max(x, axis=axis, keepdims=True)
        self.split = lambda x, count: dvm.split(x, count, axis=-1)
        self.concat = lambda arrays, axis=-1: dvm.concat(arrays, axis=axis)
        self.transpose = dvm.permute_dims
        self.attention = lambda q, k, v, causal=False: dvm.attention(q, k, v, causal=causal)
