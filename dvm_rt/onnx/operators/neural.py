"""Products, convolutions, pooling, losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dvm_rt.array.array import Array
from dvm_rt.errors import ShapeError
from dvm_rt.graph.symbols import Dim
from dvm_rt.onnx.operators.elementwise import cast, kind_of
from dvm_rt.onnx.operators.reductions import number
from dvm_rt.onnx.table import Call, row, whole
from dvm_rt.onnx.values import lift, numpy_dtype

Value = object
Pads = list[tuple[int, int]]


@row("MatMul")
def matmul(c: Call, a: Value, b: Value) -> Value:
    return c.xp.matmul(a, b)


@row("Gemm")
def gemm(c: Call, a: Value, b: Value, bias: Value = None) -> Value:
    a = c.xp.permute_dims(a, (1, 0)) if c.get("transA", 0) else a
    b = c.xp.permute_dims(b, (1, 0)) if c.get("transB", 0) else b
    result = c.xp.matmul(a, b)
    alpha, beta = c.get("alpha", 1.0), c.get("beta", 1.0)
    if alpha != 1:
        result = _scaled(c, result, alpha)
    if bias is None or beta == 0:
        return result
    return c.xp.add(result, bias if beta == 1 else _scaled(c, bias, beta))


def _scaled(c: Call, x: Value, factor: float) -> Value:
    return c.xp.multiply(x, number(x, factor) if kind_of(x) == "f" else int(factor))


# ---- windows ------------------------------------------------------------------------------------------------------


def windows(c: Call, x: Value, kernel: Sequence[int], ceil_mode: bool = False) -> tuple[tuple, Pads, tuple]:
    """(strides, pads, dilations) of the attributes; auto_pad is computed from the sizes."""
    rank = len(kernel)
    strides, dilations = tuple(c.get("strides", (1,) * rank)), tuple(c.get("dilations", (1,) * rank))
    auto = c.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        given = c.get("pads", (0,) * (2 * rank))
        return strides, list(zip(given[:rank], given[rank:], strict=True)), dilations
    if auto == "VALID":
        return strides, [(0, 0)] * rank, dilations
    pads = []
    for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        if isinstance(n, Dim) and s != 1:
            raise ShapeError(f"auto_pad {auto} with strides, got size {n}, allowed numbers")
        total = d * (k - 1) if s == 1 else max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    return strides, pads, dilations


@row("Conv")
def conv(c: Call, x: Value, weight: Value, bias: Value = None) -> Value:
    strides, pads, dilations = windows(c, x, weight.shape[2:])
    wide, dtype = _computed_in(c, (x, weight, bias)), numpy_dtype(x)
    result = c.xp.conv(*wide, stride=strides, padding=pads, dilation=dilations, groups=c.get("group", 1))
    return result if numpy_dtype(result) == dtype else cast(c, result, dtype)


def _computed_in(c: Call, values: Sequence[Value]) -> list[Value]:
    """Convolutions of short floats are computed in float32."""
    return [cast(c, v, np.dtype(np.float32)) if v is not None and kind_of(v) == "f" and numpy_dtype(v).itemsize < 4
            else v for v in values]


@row("ConvTranspose")
def conv_transpose(c: Call, x: Value, weight: Value, bias: Value = None) -> Value:
    kernel = weight.shape[2:]
    rank = len(kernel)
    strides, dilations = tuple(c.get("strides", (1,) * rank)), tuple(c.get("dilations", (1,) * rank))
    extra = tuple(c.get("output_padding", (0,) * rank))
    pads = _transposed_pads(c, x, kernel, strides, dilations, extra)
    if any(low < 0 or high < 0 for low, high in pads):  # more than there is: filled up behind
        extra = tuple(e + max(-high, 0) for e, (_, high) in zip(extra, pads, strict=True))
        if any(low < 0 for low, _ in pads):
            raise c.refuse(f"pads below 0 before the start, got {pads}, allowed 0 and more")
        pads = [(low, max(high, 0)) for low, high in pads]
    wide, dtype = _computed_in(c, (x, weight, bias)), numpy_dtype(x)
    result = c.xp.conv_transpose(*wide, stride=strides, padding=pads, output_padding=extra, dilation=dilations,
                                 groups=c.get("group", 1))
    return result if numpy_dtype(result) == dtype else cast(c, result, dtype)


def _transposed_pads(c: Call, x: Value, kernel: Sequence[int], strides: tuple, dilations: tuple, extra: tuple) -> Pads:
    auto, shape, rank = c.get("auto_pad", "NOTSET"), c.get("output_shape"), len(kernel)
    if shape is None and auto in ("NOTSET", "", "VALID"):
        given = c.get("pads", (0,) * (2 * rank))
        return list(zip(given[:rank], given[rank:], strict=True))
    pads = []
    for i, (k, s, d, e) in enumerate(zip(kernel, strides, dilations, extra, strict=True)):
        n = x.shape[2 + i]
        if isinstance(n, Dim) and shape is not None:
            raise ShapeError(f"output_shape over symbolic sizes, got {n}, allowed numbers")
        wanted = shape[i] if shape is not None else n * s
        total = s * (n - 1) + e + (k - 1) * d + 1 - wanted
        if isinstance(total, Dim):
            raise ShapeError(f"pads, got {total}, allowed numbers")
        first = total - total // 2 if auto != "SAME_UPPER" else total // 2
        pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (first, total - first))
    return pads


@row("MaxPool")
def max_pool(c: Call, x: Value) -> Value:
    kernel = tuple(c.get("kernel_shape"))
    strides, pads, dilations = windows(c, x, kernel)
    ceil_mode = bool(c.get("ceil_mode", 0))
    if c.wants(1):
        return _max_pool_with_places(c, x, kernel, strides, pads, dilations, ceil_mode)
    small = kind_of(x) != "f" and numpy_dtype(x).itemsize == 1
    wide = cast(c, x, np.dtype(np.float32)) if small else _computed_in(c, (x,))[0]
    wide, pads = _wide_pads(c, wide, kernel, pads, -np.inf) if kind_of(wide) == "f" else (wide, pads)
    result = c.xp.max_pool(wide, kernel, stride=strides, padding=pads, dilation=dilations, ceil_mode=ceil_mode)
    return result if numpy_dtype(result) == numpy_dtype(x) else cast(c, result, numpy_dtype(x))


def _max_pool_with_places(c: Call, x: Value, kernel: tuple, strides: tuple, pads: Pads, dilations: tuple,
                          ceil_mode: bool) -> Value:
    """On the host: the largest of each window, and its place in the flattened tensor."""
    if isinstance(x, Array):
        raise c.refuse("places of the largest are the host's")
    from dvm_rt.graph import windows as meanings

    space = x.shape[2:]
    ends = meanings._ends(space, kernel, strides, tuple(pads), dilations, ceil_mode)
    widths = [(low, end) for (low, _), end in zip(pads, ends, strict=True)]
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    cells = np.arange(int(np.prod(space))).reshape(space)
    if c.get("storage_order", 0):
        cells = np.arange(int(np.prod(space))).reshape(space[::-1]).transpose()
    taps = tuple(range(-len(kernel), 0))
    values = meanings.sliding(meanings._pad(x, widths, lowest), kernel, strides, dilations)
    places = meanings.sliding(meanings._pad(np.broadcast_to(cells, x.shape), widths, 0), kernel, strides, dilations)
    flat = values.reshape(*values.shape[: -len(kernel)], -1)
    best = flat.argmax(-1)[..., None]
    found = np.take_along_axis(places.reshape(flat.shape), best, -1)[..., 0]
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2] + (1,) * len(space)) * cells.size
    return [values.max(axis=taps), (found + planes).astype(np.int64)]


def _too_wide(kernel: tuple, pads: Pads) -> bool:
    return any(max(pair) > k // 2 for pair, k in zip(pads, kernel, strict=True))


def _wide_pads(c: Call, x: Value, kernel: tuple, pads: Pads, value: float) -> tuple[Value, Pads]:
    """Pads of more than half a window are made part of x."""
    if not _too_wide(kernel, pads):
        return x, pads
    return c.xp.pad(x, [(0, 0), (0, 0), *pads], value=value if isinstance(x, Array)
                    else np.asarray(value, x.dtype)), [(0, 0)] * len(kernel)


@row("AveragePool")
def average_pool(c: Call, x: Value) -> Value:
    kernel = tuple(c.get("kernel_shape"))
    strides, pads, dilations = windows(c, x, kernel)
    included = bool(c.get("count_include_pad", 0))
    wide, dtype = _computed_in(c, (x,))[0], numpy_dtype(x)
    if _too_wide(kernel, pads):
        if c.get("ceil_mode", 0):
            raise c.refuse(f"pads, got {pads} with ceil_mode, allowed at most half of the window {kernel}")
        if not included:
            return cast(c, _mean_of_the_inside(c, wide, kernel, pads, strides, dilations), dtype)
        wide, pads = _wide_pads(c, wide, kernel, pads, 0.0)
    result = c.xp.avg_pool(wide, kernel, stride=strides, padding=pads, dilation=dilations,
                           ceil_mode=bool(c.get("ceil_mode", 0)), count_include_pad=included)
    return result if numpy_dtype(result) == dtype else cast(c, result, dtype)


def _mean_of_the_inside(c: Call, x: Value, kernel: tuple, pads: Pads, strides: tuple, dilations: tuple) -> Value:
    """The mean of what is not padding: the share of a window that lies inside is the mean of ones."""
    ones = c.xp.full(tuple(x.shape), 1.0, dtype=x.dtype)
    means = []
    for part in (x, ones):
        padded, none = _wide_pads(c, part, kernel, pads, 0.0)
        means.append(c.xp.avg_pool(padded, kernel, stride=strides, padding=none, dilation=dilations))
    return c.xp.divide(*means)


@row("LpPool")
def lp_pool(c: Call, x: Value) -> Value:
    """The mean of powers, times how many there are, to the root."""
    kernel, p = tuple(c.get("kernel_shape")), float(c.get("p", 2))
    strides, pads, dilations = windows(c, x, kernel)
    size = float(np.prod(kernel))
    powered = c.xp.pow(c.xp.abs(x), number(x, p))
    ceil_mode = bool(c.get("ceil_mode", 0))
    powered, pads = _wide_pads(c, powered, kernel, pads, 0.0)
    total = c.xp.avg_pool(powered, kernel, stride=strides, padding=pads, dilation=dilations, ceil_mode=ceil_mode,
                          count_include_pad=True)
    if ceil_mode:
        raise c.refuse("ceil_mode, got 1, allowed 0")
    return c.xp.pow(c.xp.multiply(total, number(x, size)), number(x, 1 / p))


def _space(x: Value) -> tuple[int, ...]:
    return tuple(range(2, len(x.shape)))


@row("GlobalAveragePool")
def global_average_pool(c: Call, x: Value) -> Value:
    return c.xp.mean(x, axis=_space(x), keepdims=True)


@row("GlobalMaxPool")
def global_max_pool(c: Call, x: Value) -> Value:
    return c.xp.max(x, axis=_space(x), keepdims=True)


@row("GlobalLpPool")
def global_lp_pool(c: Call, x: Value) -> Value:
    p = float(c.get("p", 2))
    return c.xp.pow(c.xp.sum(c.xp.pow(c.xp.abs(x), number(x, p)), axis=_space(x), keepdims=True), number(x, 1 / p))


@row("MaxUnpool", on_host=(2,))
def max_unpool(c: Call, x: Value, places: Value, wanted: Value = None) -> Value:
    kernel = c.get("kernel_shape")
    strides, given = c.get("strides", (1,) * len(kernel)), c.get("pads", (0,) * (2 * len(kernel)))
    own = [(n - 1) * s - (given[i] + given[i + len(kernel)]) + k
           for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))]
    shape = (*x.shape[:2], *own)
    result = _scattered(c, x, places, shape)
    if wanted is None:
        return result
    widths = [(0, 0), (0, 0), *((0, n - m) for n, m in zip(whole(wanted)[2:], own, strict=True))]
    return c.xp.pad(result, widths, value=0.0)


def _scattered(c: Call, x: Value, places: Value, shape: tuple) -> Value:
    total = 1
    for n in shape:
        total = total * n
    zeros = c.xp.full((total,), 0.0, dtype=x.dtype if isinstance(x, Array) else x.dtype)
    return c.xp.reshape(c.xp.scatter(zeros, c.xp.reshape(places, (-1,)), c.xp.reshape(x, (-1,)), axis=0), shape)


@row("Col2Im", on_host=(1, 2))
def col2im(c: Call, x: Value, image: Value, block: Value) -> Value:
    """Blocks added up where they overlap: a transposed convolution whose weights are ones, each row of a block at its place."""
    sizes, kernel = tuple(int(n) for n in whole(image)), tuple(int(n) for n in whole(block))
    rank, taps = len(kernel), int(np.prod(kernel))
    strides, dilations = tuple(c.get("strides", (1,) * rank)), tuple(c.get("dilations", (1,) * rank))
    pads = c.get("pads", (0,) * (2 * rank))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    padded = [n + pads[i] + pads[rank + i] for i, n in enumerate(sizes)]
    counts = [(n - span) // s + 1 for n, span, s in zip(padded, spans, strides, strict=True)]
    rest = tuple(n - ((count - 1) * s + span) for n, count, s, span in zip(padded, counts, strides, spans, strict=True))
    channels = x.shape[1] // taps
    if isinstance(channels, Dim):
        raise ShapeError(f"channels, got {channels}, allowed numbers")
    ones = np.tile(np.eye(taps).reshape(taps, 1, *kernel), (channels,) + (1,) * (rank + 1)).astype(numpy_dtype(x))
    blocks = c.xp.reshape(x, (x.shape[0], channels * taps, *counts))
    return c.xp.conv_transpose(
        blocks, lift(ones) if isinstance(x, Array) else ones, None, stride=strides,
        padding=list(zip(pads[:rank], pads[rank:], strict=True)),
        output_padding=rest, dilation=dilations, groups=channels,
    )  # fmt: skip


# ---- losses -------------------------------------------------------------------------------------------------------


@row("NegativeLogLikelihoodLoss")
def negative_log_likelihood(c: Call, x: Value, target: Value, weight: Value = None) -> Value:
    """-x at the target's class, weighted; the classes are picked by comparing, so that it is one kernel."""
    return _likelihood(c, x, target, weight)


@row("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(c: Call, scores: Value, labels: Value, weight: Value = None) -> Value:
    logs = c.xp.log_softmax(scores, axis=1)
    loss = _likelihood(c, logs, labels, weight)
    return [loss, logs] if c.wants(1) else loss


def _likelihood(c: Call, x: Value, target: Value, weight: Value) -> Value:
    classes, rank, ignored = x.shape[1], len(x.shape), c.get("ignore_index")
    target = cast(c, target, np.dtype(np.int64))
    shape = [1] * rank
    shape[1] = classes
    places = c.xp.reshape(c.xp.arange(classes, dtype="int64"), tuple(shape))
    hit = c.xp.equal(places, c.xp.expand_dims(target, axis=1))
    zero = number(x, 0.0)
    loss = c.xp.negative(c.xp.sum(c.xp.where(hit, x, zero), axis=(1,)))
    if weight is None:
        share = c.xp.broadcast_to(lift(np.asarray(1, numpy_dtype(x))) if isinstance(x, Array)
                                  else np.asarray(1, x.dtype), target.shape)
    else:
        share = c.xp.sum(c.xp.where(hit, c.xp.reshape(weight, tuple(shape)), zero), axis=(1,))
    if ignored is not None:
        share = c.xp.where(c.xp.equal(target, ignored), zero, share)
    loss = c.xp.multiply(loss, share)
    how = c.get("reduction", "mean")
    if how == "none":
        return loss
    total = c.xp.sum(loss, axis=tuple(range(rank - 1)))
    return total if how == "sum" else c.xp.divide(total, c.xp.sum(share, axis=tuple(range(rank - 1))))


@row("Dropout", on_host=(1, 2))
def dropout(c: Call, x: Value, ratio: Value = None, training: Value = None) -> Value:
    """Inference: as it is. In training, elements are dropped by NumPy's generator, on the host."""
    is_training = training is not None and bool(np.asarray(_host(c, training)).reshape(-1)[0])
    share = float(np.asarray(_host(c, ratio)).reshape(-1)[0]) if ratio is not None else c.get("ratio", 0.5)
    if not is_training or share == 0:
        mask = c.xp.full(tuple(x.shape), True, dtype="bool") if c.wants(1) else None
        return [x, mask] if c.wants(1) else [x]
    if isinstance(x, Array):
        raise c.refuse("dropout while training is the host's")
    state = np.random.RandomState(c.get("seed"))
    kept = state.uniform(0, 1.0, x.shape) >= share
    return [(x * kept / (1 - share)).astype(x.dtype), kept]


def _host(c: Call, x: Value) -> Value:
    from dvm_rt.onnx.values import fetch

    return fetch(x)
