"""NumPy under the names that operators are written with: constants are folded and sizes computed with it, and it is the
host path. What is not here is NumPy's own. Arrays of symbolic sizes take part where Python's operators do; a function that
needs their values raises Symbolic."""

from __future__ import annotations

from collections.abc import Sequence
from math import erf as _erf
from math import lgamma as _lgamma

import ml_dtypes
import numpy as np

from dvm_rt.graph import windows as _windows
from dvm_rt.graph.symbols import Dim
from dvm_rt.isa import host as _host

MADE_MAX = 1 << 16  # elements of a constant that is made on the host
_NARROW = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))


class Symbolic(Exception):
    """A function that symbolic sizes do not have here."""


def __getattr__(name: str) -> object:
    if name.startswith("__") or not hasattr(np, name):
        raise AttributeError(name)
    return getattr(np, name)


def _numbers(x: object) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype == object and any(isinstance(v, Dim) for v in x.ravel()):
        raise Symbolic
    return x


def asarray(x: object, dtype: object = None) -> np.ndarray:
    return np.asarray(x, dtype)


def astype(x: np.ndarray, dtype: object) -> np.ndarray:
    """As the machine converts: truncated, out of range wraps at the ends of int64; bool is whether it is not 0."""
    dtype = np.dtype(dtype)
    if x.dtype == object:
        if dtype == np.int64:
            return x
        x = _numbers(x)
    return x.astype(dtype)


def matmul(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.matmul(_numbers(x), _numbers(y)).astype(np.result_type(x, y))


def divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.divide(_numbers(x), _numbers(y)).astype(np.result_type(x, y))


def _unary(function: object) -> object:
    def of(x: np.ndarray) -> np.ndarray:
        x = _numbers(x)
        wide = x.astype(np.float32) if x.dtype in _NARROW else x
        return np.asarray(function(wide)).astype(x.dtype)

    return of


def _vector(function: object) -> object:
    return _unary(lambda x: np.vectorize(function, otypes=[np.float64])(x))


erf = _vector(_erf)
lgamma = _vector(_lgamma)
sigmoid = _unary(lambda x: np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x))))
relu = _unary(lambda x: np.maximum(x, 0))
rsqrt = _unary(lambda x: 1 / np.sqrt(x))
reciprocal = _unary(lambda x: 1 / x)
round = _unary(np.rint)
acos, asin, atan = _unary(np.arccos), _unary(np.arcsin), _unary(np.arctan)
acosh, asinh, atanh = _unary(np.arccosh), _unary(np.arcsinh), _unary(np.arctanh)


def pow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.power(_numbers(x), _numbers(y))


def where(condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(_numbers(condition), x, y)


def clip(x: np.ndarray, low: object = None, high: object = None) -> np.ndarray:
    x = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return x if high is None else np.minimum(x, np.asarray(high, x.dtype))


def sum(x: np.ndarray, axis: object = None, keepdims: bool = False, dtype: object = None) -> np.ndarray:
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=dtype)


def prod(x: np.ndarray, axis: object = None, keepdims: bool = False, dtype: object = None) -> np.ndarray:
    return np.prod(x, axis=axis, keepdims=keepdims, dtype=dtype)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def logsumexp(x: np.ndarray, axis: object = None, keepdims: bool = False) -> np.ndarray:
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0).astype(x.dtype)
    total = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return total if keepdims else np.squeeze(total, axis)


def reshape(x: np.ndarray, shape: Sequence[object]) -> np.ndarray:
    return np.reshape(x, _plain(shape))


def _plain(shape: Sequence[object]) -> tuple[int, ...]:
    if any(isinstance(n, Dim) for n in shape):
        raise Symbolic
    return tuple(int(n) for n in shape)


def expand_dims(x: np.ndarray, axis: int | tuple[int, ...] = 0) -> np.ndarray:
    return np.expand_dims(x, axis)


def broadcast_to(x: np.ndarray, shape: Sequence[object]) -> np.ndarray:
    shape = _plain(shape)
    if np.prod(shape, dtype=np.float64) > max(MADE_MAX, x.size):
        raise Symbolic
    return np.broadcast_to(x, shape)


def full(shape: Sequence[object], value: object, dtype: object = None) -> np.ndarray:
    shape = _plain(shape)
    if np.prod(shape, dtype=np.float64) > MADE_MAX:
        raise Symbolic
    return np.full(shape, value, dtype)


def concat(parts: Sequence[np.ndarray], axis: int = 0) -> np.ndarray:
    return np.concatenate([p.astype(object) if any(q.dtype == object for q in parts) else p for p in parts], axis=axis)


def take(x: np.ndarray, indices: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.take(x, _host._inside(_numbers(indices), x.shape[axis]), axis=axis)


def take_along_axis(x: np.ndarray, indices: np.ndarray, axis: int = -1) -> np.ndarray:
    lead = [m for m in indices.shape]
    x = np.broadcast_to(x, tuple(n if i == axis % x.ndim else m for i, (n, m) in enumerate(zip(x.shape, lead))))
    return _host._take_along_axis(x, indices, axis % x.ndim)


def gather_nd(x: np.ndarray, indices: np.ndarray, batch_dims: int = 0) -> np.ndarray:
    return _host._gather_nd(x, indices, batch_dims)


_HOW = {"set": _host.SET, "add": _host.ADD, "mul": _host.MUL, "min": _host.MIN, "max": _host.MAX}


def scatter(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, axis: int = 0, how: str = "set") -> np.ndarray:
    return _host._scatter(x, indices, updates, axis % x.ndim, _HOW[how])


def scatter_nd(x: np.ndarray, indices: np.ndarray, updates: np.ndarray, how: str = "set") -> np.ndarray:
    return _host._scatter_nd(x, indices, updates, _HOW[how])


def sort(x: np.ndarray, axis: int = -1, descending: bool = False) -> np.ndarray:
    return _host._sort(x, axis, descending)


def topk(x: np.ndarray, k: int, axis: int = -1, largest: bool = True) -> tuple[np.ndarray, np.ndarray]:
    indices = _host._topk(x, axis % x.ndim, k, int(largest))
    return np.take_along_axis(x, indices, axis), indices


def argmax(x: np.ndarray, axis: int, keepdims: bool = False) -> np.ndarray:
    return np.argmax(x, axis=axis, keepdims=keepdims)


def argmin(x: np.ndarray, axis: int, keepdims: bool = False) -> np.ndarray:
    return np.argmin(x, axis=axis, keepdims=keepdims)


def unstack(x: np.ndarray, axis: int = 0) -> tuple[np.ndarray, ...]:
    return tuple(np.moveaxis(x, axis, 0))


def arange(start: object, stop: object = None, step: object = 1, dtype: object = None) -> np.ndarray:
    if any(isinstance(n, Dim) for n in (start, stop, step)):
        raise Symbolic
    return np.arange(0 if stop is None else start, start if stop is None else stop, step, dtype=dtype)


def pad(x: np.ndarray, widths: Sequence[Sequence[int]], mode: str = "constant", value: object = 0) -> np.ndarray:
    cuts = tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(widths, x.shape))
    wide = [(max(a, 0), max(b, 0)) for a, b in widths]
    more = {"constant_values": value} if mode == "constant" else {}
    return np.pad(x[cuts], wide, mode=mode, **more)


def conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, *, stride, padding, dilation, groups=1) -> np.ndarray:
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return _windows.conv_meaning(*inputs, tuple(stride), tuple(padding), tuple(dilation), groups).astype(x.dtype)


def conv_transpose(x, weight, bias=None, *, stride, padding, output_padding, dilation, groups=1) -> np.ndarray:
    inputs = (x, weight) if bias is None else (x, weight, bias)
    whole = (tuple(stride), tuple(padding), tuple(output_padding), tuple(dilation), groups)
    return _windows.conv_transpose_meaning(*inputs, *whole).astype(x.dtype)


def _least(x: np.ndarray) -> object:
    return -np.inf if x.dtype.kind == "f" or x.dtype in _NARROW else np.iinfo(x.dtype).min


def max_pool(x, kernel, *, stride, padding, dilation, ceil_mode=False) -> np.ndarray:
    ends = _windows._ends(x.shape[2:], tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), ceil_mode)
    whole = _windows._pad(x, [(low, end) for (low, _), end in zip(padding, ends)], _least(x))
    return _windows.sliding(whole, tuple(kernel), tuple(stride),
                            tuple(dilation)).max(axis=tuple(range(-len(kernel), 0))).astype(x.dtype)


def avg_pool(x, kernel, *, stride, padding, dilation, ceil_mode=False, count_include_pad=True) -> np.ndarray:
    geometry = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    return _windows.avg_pool_meaning(x, *geometry, ceil_mode, count_include_pad).astype(x.dtype)
