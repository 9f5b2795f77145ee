"""Signals, random numbers: windows of samples, Fourier transforms as products; generators, on the host."""

from __future__ import annotations

import numpy as np

from dvm_rt.array.array import Array
from dvm_rt.errors import ShapeError
from dvm_rt.graph.symbols import Dim
from dvm_rt.onnx.operators.elementwise import cast
from dvm_rt.onnx.table import STEP, Call, row
from dvm_rt.onnx.values import fetch, lift, numpy_dtype

Value = object


def _window(weights: tuple[float, ...]) -> object:
    """A sum of cosines over the window."""

    def function(c: Call, size: Value) -> Value:
        import onnx

        n = int(np.asarray(size).reshape(-1)[0])
        period = n if c.get("periodic", 1) else n - 1
        at = np.arange(n) * (2 * np.pi / period) if period else np.zeros(n)
        total = sum(w * np.cos(i * at) for i, w in enumerate(weights))
        return total.astype(onnx.helper.tensor_dtype_to_np_dtype(c.get("output_datatype", 1)))

    return function


row("HannWindow", on_host=(0,))(_window((0.5, -0.5)))
row("HammingWindow", on_host=(0,))(_window((25 / 46, -21 / 46)))
row("BlackmanWindow", on_host=(0,))(_window((0.42, -0.5, 0.08)))


TABLE_MAX = 1 << 22  # elements of the matrix of a transform: beyond, it is the host's


@row("DFT", on_host=(1, 2))
def dft(c: Call, x: Value, length: Value = None, axis: Value = None) -> Value:
    """x (.., 1 or 2): real or complex; onesided, inverse."""
    rank = len(x.shape)
    at = int(np.asarray(axis).reshape(-1)[0]) if axis is not None else c.get("axis", 1 if c.opset < 20 else -2)
    n = int(np.asarray(length).reshape(-1)[0]) if length is not None else None
    order = (*(i for i in range(rank - 1) if i != at % rank), at % rank, rank - 1)
    result = _transformed(c, c.xp.permute_dims(x, order), n, bool(c.get("onesided", 0)), bool(c.get("inverse", 0)))
    return c.xp.permute_dims(result, tuple(np.argsort(order).tolist()))


def _transformed(c: Call, x: Value, n: int | None, onesided: bool, inverse: bool) -> Value:
    """The Fourier transform of the last axis but one, whose last is (real, imaginary), as one product in float64."""
    length, parts, dtype = x.shape[-2], x.shape[-1], numpy_dtype(x)
    if isinstance(length, Dim) or isinstance(parts, Dim):
        raise ShapeError(f"Fourier transform: sizes, got {length} and {parts}, allowed numbers")
    n = n if n is not None else 2 * (length - 1) if onesided and inverse else length
    if inverse and not isinstance(x, Array):
        return _inverse(x, n, onesided)
    if inverse:
        raise c.refuse("inverse transforms are the host's: others round them as NumPy does, a product is more exact")
    matrix = _transform_matrix(length, parts, n, onesided)
    if isinstance(x, Array) and matrix.size > TABLE_MAX:
        raise c.refuse(f"length, got {n}, allowed what a matrix of {TABLE_MAX} elements does")
    flat = cast(c, c.xp.reshape(x, (*x.shape[:-2], length * parts)), np.dtype(np.float64))
    result = c.xp.matmul(flat, lift(matrix) if isinstance(x, Array) else matrix)
    return cast(c, c.xp.reshape(result, (*x.shape[:-2], matrix.shape[1] // 2, 2)), dtype)


def _inverse(x: np.ndarray, n: int, onesided: bool) -> np.ndarray:
    values = x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0]
    if onesided:
        return np.fft.irfft(values, n, axis=-1).astype(x.dtype)[..., None]
    result = np.fft.ifft(values, n, axis=-1)
    return np.stack([result.real, result.imag], axis=-1).astype(x.dtype)


def _transform_matrix(length: int, parts: int, n: int, onesided: bool) -> np.ndarray:
    """(length * parts, outputs * 2): what NumPy's transform makes of each unit vector."""
    units = np.eye(length * parts).reshape(length * parts, length, parts)
    values = units[..., 0] + (1j * units[..., 1] if parts == 2 else 0)
    result = np.fft.fft(values, n, axis=1)
    result = result[:, : n // 2 + 1] if onesided else result
    return np.ascontiguousarray(np.stack([result.real, result.imag], axis=-1).reshape(length * parts, -1))


@row("STFT", on_host=(1, 3))
def stft(c: Call, signal: Value, step: Value, window: Value = None, length: Value = None) -> Value:
    """Windows of the signal, side by side, transformed."""
    step = int(np.asarray(step).reshape(-1)[0])
    n = int(np.asarray(length).reshape(-1)[0]) if length is not None else window.shape[0]
    signal = signal if len(signal.shape) == 3 else c.xp.expand_dims(signal, axis=2)
    samples = signal.shape[1]
    if isinstance(samples, Dim) or isinstance(n, Dim):
        raise ShapeError(f"windows, got {samples} samples by {n}, allowed numbers")
    places = np.arange(0, samples - n + 1, step)[:, None] + np.arange(n)
    cut = c.xp.take(signal, lift(places) if isinstance(signal, Array) else places, axis=1)
    cut = cut if window is None else c.xp.multiply(cut, c.xp.reshape(window, (n, 1)))
    return _transformed(c, cut, n, bool(c.get("onesided", 1)), False)


@row("MelWeightMatrix", on_host=(0, 1, 2, 3, 4))
def mel_weight_matrix(c: Call, bins: Value, length: Value, rate: Value, low: Value, high: Value) -> Value:
    import onnx

    bins, length, rate = (int(np.asarray(v).reshape(-1)[0]) for v in (bins, length, rate))
    low, high = (float(np.asarray(v).reshape(-1)[0]) for v in (low, high))
    mel = 2595 * np.log10(1 + np.array([low, high]) / 700)
    step = (mel[1] - mel[0]) / (bins + 2)
    hertz = 700 * (10 ** ((np.arange(bins + 2) * step + mel[0]) / 2595) - 1)
    places = np.floor((length + 1) * hertz / rate).astype(int)
    weights = np.zeros((length // 2 + 1, bins))
    for i in range(bins):
        first, middle, last = places[i : i + 3]
        if middle == first:
            weights[middle, i] = 1
        else:
            rows = np.arange(first, middle + 1)
            weights[rows, i] = (rows - first) / (middle - first)
        if last > middle:
            rows = np.arange(middle, last)
            weights[rows, i] = (last - rows) / (last - middle)
    return weights.astype(onnx.helper.tensor_dtype_to_np_dtype(c.get("output_datatype", 1)))


# ---- random numbers: another draw at each run, so never part of a traced segment ------------------------------------


def _generator(c: Call) -> np.random.RandomState:
    seed = c.get("seed")
    return np.random.RandomState(None if seed is None else int(np.float32(seed)) & 0xFFFFFFFF)


def _drawn(c: Call, shape: tuple[int, ...], normal: bool, kind: int) -> Value:
    import onnx

    state = _generator(c)
    if normal:
        values = state.normal(c.get("mean", 0.0), c.get("scale", 1.0), shape)
    else:
        values = state.uniform(c.get("low", 0.0), c.get("high", 1.0), shape)
    return np.asarray(values).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _like(normal: bool) -> object:
    def function(c: Call, x: Value) -> Value:
        import onnx

        kind = c.get("dtype") or onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(x))
        return _drawn(c, tuple(x.shape), normal, kind)

    return function


row("RandomNormal", kind=STEP)(lambda c: _drawn(c, tuple(c.get("shape")), True, c.get("dtype", 1)))
row("RandomUniform", kind=STEP)(lambda c: _drawn(c, tuple(c.get("shape")), False, c.get("dtype", 1)))
row("RandomNormalLike", kind=STEP)(_like(True))
row("RandomUniformLike", kind=STEP)(_like(False))


@row("Bernoulli", kind=STEP)
def bernoulli(c: Call, x: Value) -> Value:
    import onnx

    kind = c.get("dtype")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else numpy_dtype(x)
    p = np.asarray(fetch(x))
    return (_generator(c).uniform(size=p.shape) < p).astype(dtype)


@row("Multinomial", kind=STEP)
def multinomial(c: Call, x: Value) -> Value:
    import onnx

    logits, state = np.asarray(fetch(x)), _generator(c)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    drawn = [state.choice(logits.shape[1], c.get("sample_size", 1),
                          p=row.astype(np.float64) / row.sum(dtype=np.float64)) for row in weights]
    return np.asarray(drawn).astype(onnx.helper.tensor_dtype_to_np_dtype(c.get("dtype", 6)))


