"""Signals, random numbers: windows of samples, Fourier transforms, generators. On the host but for the window functions."""

from __future__ import annotations

import numpy as np

from dvm_rt.onnx.table import HOST, STEP, Call, row
from dvm_rt.onnx.values import fetch, numpy_dtype

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


@row("DFT", kind=HOST)
def dft(c: Call, x: Value, length: Value = None, axis: Value = None) -> Value:
    """x (.., 1 or 2): real or complex; onesided, inverse."""
    at = int(np.asarray(axis).reshape(-1)[0]) if axis is not None else c.get("axis", 1 if c.opset < 20 else -2)
    at = at % x.ndim
    n = int(np.asarray(length).reshape(-1)[0]) if length is not None else None
    onesided, inverse = c.get("onesided", 0), c.get("inverse", 0)
    values = x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0]
    if onesided and inverse:
        n = n if n is not None else 2 * (values.shape[at] - 1)
        return np.fft.irfft(values, n, axis=at).astype(x.dtype)[..., None]
    if inverse:
        result = np.fft.ifft(values, n, axis=at)
    else:
        result = np.fft.fft(values, n, axis=at)
        if onesided:
            kept = (n if n is not None else values.shape[at]) // 2 + 1
            result = np.take(result, np.arange(kept), axis=at)
    return np.stack([result.real, result.imag], axis=-1).astype(x.dtype)


@row("STFT", kind=HOST)
def stft(c: Call, signal: Value, step: Value, window: Value = None, length: Value = None) -> Value:
    step, onesided = int(np.asarray(step).reshape(-1)[0]), c.get("onesided", 1)
    n = int(np.asarray(length).reshape(-1)[0]) if length is not None else window.shape[0]
    values = signal if signal.ndim == 2 else signal[..., 0] if signal.shape[-1] == 1 else signal[..., 0] + 1j * signal[..., 1]
    frames = 1 + (values.shape[1] - n) // step
    cut = np.stack([values[:, i * step : i * step + n] for i in range(frames)], axis=1)
    cut = cut * window if window is not None else cut
    result = np.fft.fft(cut, axis=-1)
    result = result[..., : n // 2 + 1] if onesided else result
    return np.stack([result.real, result.imag], axis=-1).astype(signal.dtype)


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
    drawn = [state.choice(logits.shape[1], c.get("sample_size", 1), p=row.astype(np.float64) / row.sum(dtype=np.float64)) for row in weights]
    return np.asarray(drawn).astype(onnx.helper.tensor_dtype_to_np_dtype(c.get("dtype", 6)))


