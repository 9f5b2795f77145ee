"""Convolution and pooling: windows that slide over the last axes of an array, layout (batch, channels, *space).

A `windows` view lays the elements of each window along axes of its own: strides, no work. On it

    conv            the windows of all channels are the columns of a matrix, multiplied by the weights from the left, for each
                    image and group. The matrix unit reads windows of one or two axes where they are (window_product); of more
                    axes they are laid out in memory. Kernels of one element and stride 1 are a plain product
    conv, depthwise of three axes or large kernels: elementwise, each tap times its weight, added up in row-major order
    conv_transpose  zeros between the elements, then a convolution with flipped weights
    max_pool, avg_pool   elementwise over the taps of a window: all at once if they are few, else axis by axis, last axis first

so that any rank, stride, dilation and group is the same few lines, and what a kernel computes depends on attributes and
shapes alone. `meaning`s are the same in NumPy, written the slow way.

Sources: the padding and divisor rules are those of PyTorch's conv2d, max_pool2d and avg_pool2d (ceil_mode: a last window has
to begin inside the input or its left padding)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product as all_of
from math import inf, prod
from typing import TYPE_CHECKING

import numpy as np

from dvm_rt.errors import ShapeError
from dvm_rt.graph.shapes import elementwise
from dvm_rt.graph.symbols import Facts, Shape, Size, floordiv, maximum, minimum, product

if TYPE_CHECKING:
    from dvm_rt.graph.composites import Make
    from dvm_rt.graph.graph import Node

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]  # (before, after) of each axis of space
KERNEL_SIDE_MAX, PRODUCT_RANK_MAX = 254, 5  # of a product with windows, as the machine has them
TAPS_MAX = 12  # taps of a pooling window that one expression takes


# ---- shapes -------------------------------------------------------------------------------------------------------


def windowed(facts: Facts, where: str, shapes: tuple[Shape, ...], kernel: Ints, stride: Ints, dilation: Ints) -> Shape:
    """(..., S) -> (..., O, K): O windows of K elements along each of the last axes."""
    (source,), rank = shapes, len(kernel)
    lead, space = source[: len(source) - rank], source[len(source) - rank :]
    return (*lead, *(_places(facts, where, *axis) for axis in zip(space, kernel, stride, dilation, strict=True)), *kernel)


def _places(facts: Facts, where: str, size: Size, kernel: int, stride: int, dilation: int) -> Size:
    reach = dilation * (kernel - 1) + 1
    if isinstance(size, int) and size < reach:
        raise ShapeError(f"{where}: window larger than what it slides over, got {size}, allowed at least {reach}")
    facts.demand_at_least(size, reach, where)
    return floordiv(size - reach, stride) + 1


def _check_space(where: str, x: Shape, rank: int) -> None:
    if len(x) != rank + 2:
        raise ShapeError(f"{where}: rank of x, got {x}, allowed (batch, channels, {rank} axes of space)")


def conv_shape(
    facts: Facts, where: str, shapes: tuple[Shape, ...], stride: Ints, padding: Pads, dilation: Ints, groups: int
) -> Shape:
    """x (B, C, *S), weight (M, C / groups, *K), bias (M,) -> (B, M, *O)."""
    x, weight = shapes[:2]
    rank = len(stride)
    _check_space(where, x, rank)
    if len(weight) != rank + 2 or not all(isinstance(n, int) for n in weight):
        raise ShapeError(f"{where}: weights, got {weight}, allowed known sizes (M, C / groups, *kernel), {rank} axes of kernel")
    _check_groups(facts, where, weight[0], weight[1] * groups, x[1], groups)
    _check_bias(facts, where, shapes[2:], weight[0])
    space = [n + sum(p) for n, p in zip(x[2:], padding, strict=True)]
    places = [_places(facts, where, *axis) for axis in zip(space, weight[2:], stride, dilation, strict=True)]
    return (x[0], weight[0], *places)


def conv_transpose_shape(
    facts: Facts, where: str, shapes: tuple[Shape, ...], stride: Ints, padding: Pads, output_padding: Ints, dilation: Ints,
    groups: int,
) -> Shape:  # fmt: skip
    """x (B, C, *S), weight (C, M / groups, *K), bias (M,) -> (B, M, *O), O = (S - 1) * stride - padding + reach + extra."""
    x, weight = shapes[:2]
    rank = len(stride)
    _check_space(where, x, rank)
    if len(weight) != rank + 2 or not all(isinstance(n, int) for n in weight):
        raise ShapeError(f"{where}: weights, got {weight}, allowed known sizes (C, M / groups, *kernel), {rank} axes of kernel")
    _check_groups(facts, where, weight[0], weight[0], x[1], groups)
    _check_bias(facts, where, shapes[2:], weight[1] * groups)
    space = []
    for n, s, p, extra, d, k in zip(x[2:], stride, padding, output_padding, dilation, weight[2:], strict=True):
        size = (n - 1) * s - sum(p) + d * (k - 1) + 1 + extra
        if isinstance(size, int) and size < 1:
            raise ShapeError(f"{where}: nothing is left, got size {size}, allowed at least 1")
        facts.demand_at_least(size, 1, where)
        space.append(size)
    return (x[0], weight[1] * groups, *space)


def _check_groups(facts: Facts, where: str, divided: int, wanted: int, channels: Size, groups: int) -> None:
    if groups < 1 or divided % groups:
        raise ShapeError(f"{where}: groups, got {groups}, allowed divisors of {divided}")
    if isinstance(channels, int) and channels != wanted:
        raise ShapeError(f"{where}: channels of x, got {channels}, allowed {wanted}")
    facts.equate(channels, wanted, where)


def _check_bias(facts: Facts, where: str, biases: tuple[Shape, ...], outputs: int) -> None:
    for bias in biases:
        if len(bias) != 1 or (isinstance(bias[0], int) and bias[0] != outputs):
            raise ShapeError(f"{where}: bias, got {bias}, allowed ({outputs},)")
        facts.equate(bias[0], outputs, where)


def pooled(
    facts: Facts, where: str, shapes: tuple[Shape, ...], kernel: Ints, stride: Ints, padding: Pads, dilation: Ints,
    ceil_mode: bool, *_: object,
) -> Shape:  # fmt: skip
    """x (B, C, *S) -> (B, C, *O)."""
    (x,) = shapes
    _check_space(where, x, len(kernel))
    for k, p in zip(kernel, padding, strict=True):
        if 2 * max(p) > k:
            raise ShapeError(f"{where}: padding, got {p}, allowed at most half of the window ({k})")
    ends = _ends(x[2:], kernel, stride, padding, dilation, ceil_mode)
    space = [n + low + high for n, (low, _), high in zip(x[2:], padding, ends, strict=True)]
    return (*x[:2], *(_places(facts, where, *axis) for axis in zip(space, kernel, stride, dilation, strict=True)))


def _ends(space: Shape, kernel: Ints, stride: Ints, padding: Pads, dilation: Ints, ceil_mode: bool) -> list[Size]:
    """Padding behind each axis; in ceil mode as much as the last window needs."""
    if not ceil_mode:
        return [high for _, high in padding]
    ends = []
    for n, k, s, (low, high), d in zip(space, kernel, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        steps = minimum(floordiv(n + low + high - reach + s - 1, s), floordiv(n + low - 1, s))
        ends.append(maximum(high, steps * s + reach - n - low))
    return ends


def product_shape(facts: Facts, where: str, shapes: tuple[Shape, ...]) -> Shape:
    """(..., M, C * H * W) x windows (..., C, H, W, P, Q) -> (..., M, P * Q)."""
    weight, columns = shapes
    if not (2 <= len(weight) and 5 <= len(columns) and max(len(weight), len(columns) - 3) <= PRODUCT_RANK_MAX):
        raise ShapeError(f"{where}: ranks, got {weight} and {columns}, allowed (..., M, K) and (..., C, H, W, P, Q), "
                         f"a result of at most {PRODUCT_RANK_MAX} axes")
    if not all(isinstance(n, int) and 1 <= n <= KERNEL_SIDE_MAX for n in columns[-4:-2]):
        raise ShapeError(f"{where}: kernel, got {columns[-4:-2]}, allowed known sizes of 1 to {KERNEL_SIDE_MAX}")
    facts.equate(weight[-1], product(columns[-5:-2]), where)
    batch = elementwise(facts, where, (weight[:-2], columns[:-5]))
    return (*batch, weight[-2], product(columns[-2:]))


# ---- composites ---------------------------------------------------------------------------------------------------


def padded(op: Make, x: Node, pads: Sequence[tuple[Size, Size]], value: float) -> Node:
    """The last axes of x with `value` before and behind them."""
    first = len(x.shape) - len(pads)
    for axis, ends in reversed(list(enumerate(pads, first))):
        if all(isinstance(n, int) and n == 0 for n in ends):
            continue
        edges = [_full(op, (*x.shape[:axis], n, *x.shape[axis + 1 :]), value, x) if not _is_zero(n) else None for n in ends]
        x = op.concat(*(part for part in (edges[0], x, edges[1]) if part is not None), axis=axis)
    return x


def _is_zero(n: Size) -> bool:
    return isinstance(n, int) and n == 0


def _full(op: Make, shape: Shape, value: float, like: Node) -> Node:
    return op.broadcast_to(op.constant(value=value, dtype=like.dtype.name), shape=shape)


def conv(op: Make, x: Node, weight: Node, *rest: object) -> Node:
    """rest = [bias,] stride, padding, dilation, groups."""
    *bias, stride, padding, dilation, groups = rest
    outputs, channels, *kernel = weight.shape
    x = padded(op, x, padding, 0.0)
    few = len(kernel) <= 2 and all(k <= KERNEL_SIDE_MAX for k in kernel)
    if few:
        result = _by_windows(op, x, weight, stride, dilation, groups)
    elif channels == 1 and groups > 1:
        result = _depthwise(op, x, weight, stride, dilation)
    else:
        result = _by_columns(op, x, weight, stride, dilation, groups)
    return op.add(result, op.reshape(bias[0], shape=(outputs, *(1 for _ in kernel)))) if bias else result


def _by_windows(op: Make, x: Node, weight: Node, stride: Ints, dilation: Ints, groups: int) -> Node:
    """The matrix unit reads the windows where they are."""
    outputs, channels, *kernel = weight.shape
    batch, depth, rank = x.shape[0], channels * prod(kernel), len(kernel)
    lead = (groups,) if groups > 1 else ()
    if all(k == 1 for k in kernel) and all(s == 1 for s in stride):
        columns, space = op.reshape(x, shape=(batch, *lead, depth, product(x.shape[2:]))), x.shape[2:]
        factor = op.reshape(weight, shape=(*lead, outputs // groups, depth))
        return op.reshape(op.matrix_product(factor, columns), shape=(batch, outputs, *space))
    columns = op.windows(x, kernel=tuple(kernel), stride=stride, dilation=dilation)
    space = columns.shape[2 : 2 + rank]
    columns = op.permute_dims(columns, axes=(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)))
    flat = (1,) * (2 - rank)
    columns = op.reshape(columns, shape=(batch, *lead, channels, *flat, *kernel, *flat, *space))
    factor = op.reshape(weight, shape=(*lead, outputs // groups, depth))
    return op.reshape(op.window_product(factor, columns), shape=(batch, outputs, *space))


def _by_columns(op: Make, x: Node, weight: Node, stride: Ints, dilation: Ints, groups: int) -> Node:
    """The windows are laid out in memory."""
    outputs, channels, *kernel = weight.shape
    rank, batch, depth = len(kernel), x.shape[0], channels * prod(kernel)
    if groups > 1:
        x = op.reshape(x, shape=(batch * groups, channels, *x.shape[2:]))
    columns = op.windows(x, kernel=tuple(kernel), stride=stride, dilation=dilation)
    space = columns.shape[2 : 2 + rank]
    columns = op.permute_dims(columns, axes=(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)))
    lead = (groups,) if groups > 1 else ()
    columns = op.reshape(columns, shape=(batch, *lead, depth, product(space)))
    weight = op.reshape(weight, shape=(*lead, outputs // groups, depth))
    return op.reshape(op.matrix_product(weight, columns), shape=(batch, outputs, *space))


def _depthwise(op: Make, x: Node, weight: Node, stride: Ints, dilation: Ints) -> Node:
    outputs, _, *kernel = weight.shape
    channels = x.shape[1]
    windows = op.windows(x, kernel=tuple(kernel), stride=stride, dilation=dilation)
    if outputs != channels:  # several outputs of one channel
        shape = (x.shape[0], channels, outputs // channels, *windows.shape[2:])
        if len(shape) > 8:
            return _by_columns(op, x, weight, stride, dilation, channels)
        windows = op.broadcast_to(op.expand_dims(windows, axes=(2,)), shape=shape)
        weight = op.reshape(weight, shape=(channels, outputs // channels, *kernel))
    else:
        weight = op.reshape(weight, shape=(channels, *kernel))
    result = None
    for tap in all_of(*map(range, kernel)):
        factor = _tap(op, weight, tap)
        factor = op.reshape(factor, shape=(*factor.shape, *(1 for _ in kernel)))
        term = op.multiply(_tap(op, windows, tap), factor)
        result = term if result is None else op.add(result, term)
    return op.reshape(result, shape=(x.shape[0], outputs, *result.shape[len(result.shape) - len(kernel) :]))


def _tap(op: Make, x: Node, tap: Ints) -> Node:
    """x at one index of its last axes."""
    whole = ((None, None, None),) * (len(x.shape) - len(tap))
    return op.index(x, entries=(*whole, *tap))


def conv_transpose(op: Make, x: Node, weight: Node, *rest: object) -> Node:
    """rest = [bias,] stride, padding, output_padding, dilation, groups."""
    *bias, stride, padding, output_padding, dilation, groups = rest
    channels, outputs, *kernel = weight.shape
    for axis, s in enumerate(stride, 2):
        x = _spread(op, x, axis, s)
    pads = []
    crop = []
    for k, d, (low, high), extra in zip(kernel, dilation, padding, output_padding, strict=True):
        reach = d * (k - 1)
        pads.append((max(reach - low, 0), max(reach - high + extra, 0)))
        crop.append((max(low - reach, 0), max(high - extra - reach, 0)))
    if any(map(any, crop)):
        entries = [(low or None, -high or None, None) for low, high in crop]
        x = op.index(x, entries=((None, None, None), (None, None, None), *entries))
    flipped = op.index(weight, entries=(*((None, None, None),) * 2, *((None, None, -1) for _ in kernel)))
    if groups > 1:
        flipped = op.reshape(flipped, shape=(groups, channels // groups, outputs, *kernel))
        flipped = op.permute_dims(flipped, axes=(0, 2, 1, *range(3, 3 + len(kernel))))
        flipped = op.reshape(flipped, shape=(groups * outputs, channels // groups, *kernel))
    else:
        flipped = op.permute_dims(flipped, axes=(1, 0, *range(2, 2 + len(kernel))))
    ones = tuple(1 for _ in kernel)
    return conv(op, x, flipped, *bias, ones, tuple(pads), dilation, groups)


def _spread(op: Make, x: Node, axis: int, stride: int) -> Node:
    """stride - 1 zeros between the elements along an axis."""
    if stride == 1:
        return x
    shape = x.shape
    zeros = _full(op, (*shape[: axis + 1], stride - 1, *shape[axis + 1 :]), 0.0, x)
    both = op.concat(op.expand_dims(x, axes=(axis + 1,)), zeros, axis=axis + 1)
    long = op.reshape(both, shape=(*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]))
    whole = ((None, None, None),) * axis
    return op.index(long, entries=(*whole, (0, shape[axis] * stride - (stride - 1), None)))


def max_pool(
    op: Make, x: Node, kernel: Ints, stride: Ints, padding: Pads, dilation: Ints, ceil_mode: bool
) -> Node:
    x = _padded_for(op, x, kernel, stride, padding, dilation, ceil_mode, -inf)
    return _over_taps(op, x, kernel, stride, dilation, op.maximum)


def avg_pool(
    op: Make, x: Node, kernel: Ints, stride: Ints, padding: Pads, dilation: Ints, ceil_mode: bool, count_include_pad: bool
) -> Node:
    geometry = (kernel, stride, padding, dilation, ceil_mode)
    total = _over_taps(op, _padded_for(op, x, *geometry, 0.0), kernel, stride, dilation, op.add)
    if not ceil_mode and (count_include_pad or not any(map(any, padding))):
        return op.divide(total, float(prod(kernel)))
    ones = _full(op, (1, 1, *x.shape[2:]), 1.0, x)
    if count_include_pad:  # what ceil mode adds behind the padding does not count
        ends = _ends(x.shape[2:], *geometry)
        ones = padded(op, ones, padding, 1.0)
        ones = padded(op, ones, [(0, end - high) for end, (_, high) in zip(ends, padding, strict=True)], 0.0)
    else:
        ones = _padded_for(op, ones, *geometry, 0.0)
    return op.divide(total, _over_taps(op, op.copy(ones), kernel, stride, dilation, op.add))


def _padded_for(
    op: Make, x: Node, kernel: Ints, stride: Ints, padding: Pads, dilation: Ints, ceil_mode: bool, value: float
) -> Node:
    ends = _ends(x.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    return padded(op, x, [(low, end) for (low, _), end in zip(padding, ends, strict=True)], value)


def _over_taps(
    op: Make, x: Node, kernel: Ints, stride: Ints, dilation: Ints, join: Callable[[Node, Node], Node]
) -> Node:
    if prod(kernel) <= TAPS_MAX or len(kernel) == 1:
        windows = op.windows(x, kernel=kernel, stride=stride, dilation=dilation)
        return reduce(join, [_tap(op, windows, tap) for tap in all_of(*map(range, kernel))])
    rank = len(x.shape)
    for axis in range(len(kernel) - 1, -1, -1):
        at = rank - len(kernel) + axis
        last = tuple(i for i in range(rank) if i != at) + (at,)
        windows = op.windows(op.permute_dims(x, axes=last), kernel=(kernel[axis],), stride=(stride[axis],),
                             dilation=(dilation[axis],))
        joined = reduce(join, [_tap(op, windows, (tap,)) for tap in range(kernel[axis])])
        x = op.permute_dims(joined, axes=tuple(last.index(i) for i in range(rank)))
    return x


# ---- meanings -----------------------------------------------------------------------------------------------------


def sliding(x: np.ndarray, kernel: Ints, stride: Ints, dilation: Ints) -> np.ndarray:
    """`windows` in NumPy."""
    rank, axes = len(kernel), tuple(range(x.ndim - len(kernel), x.ndim))
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axes)
    steps = tuple(slice(None, None, s) for s in stride)
    taps = tuple(slice(None, None, d) for d in dilation)
    return windows[(..., *steps, *taps)] if rank else windows


def product_meaning(weight: np.ndarray, columns: np.ndarray) -> np.ndarray:
    *batch, channels, height, width, rows, places = columns.shape
    return np.matmul(weight, columns.reshape(*batch, channels * height * width, rows * places))


def _pad(x: np.ndarray, pads: Sequence[tuple[int, int]], value: float) -> np.ndarray:
    return np.pad(x, [(0, 0)] * (x.ndim - len(pads)) + list(pads), constant_values=value)


def conv_meaning(x: np.ndarray, weight: np.ndarray, *rest: object) -> np.ndarray:
    *bias, stride, padding, dilation, groups = rest
    rank = len(stride)
    windows = sliding(_pad(x, padding, 0.0), weight.shape[2:], stride, dilation)
    windows = windows.reshape(x.shape[0], groups, weight.shape[1], *windows.shape[2:])
    weights = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    space, taps = "xyz"[:rank], "ijk"[:rank]
    result = np.einsum(f"bgc{space}{taps},gmc{taps}->bgm{space}", windows, weights)
    result = result.reshape(x.shape[0], weight.shape[0], *result.shape[3:])
    return result + bias[0].reshape(-1, *(1 for _ in range(rank))) if bias else result


def conv_transpose_meaning(x: np.ndarray, weight: np.ndarray, *rest: object) -> np.ndarray:
    """By its definition: each element of x adds its multiple of the weights to the result."""
    *bias, stride, padding, output_padding, dilation, groups = rest
    rank, outputs = len(stride), weight.shape[1] * groups
    reach = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    space = [(n - 1) * s + r for n, s, r in zip(x.shape[2:], stride, reach, strict=True)]
    whole = np.zeros((x.shape[0], outputs, *(n + e for n, e in zip(space, output_padding, strict=True))))
    per_group = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    weights = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    for tap in all_of(*map(range, weight.shape[2:])):
        part = np.einsum("bgc...,gcm->bgm...", per_group, weights[(..., *tap)])
        places = tuple(slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilation, x.shape[2:],
            stride, strict=True))
        whole[(slice(None), slice(None), *places)] += part.reshape(x.shape[0], outputs, *x.shape[2:])
    cut = tuple(slice(low, n - high) for n, (low, high) in zip(whole.shape[2:], padding, strict=True))
    result = whole[(slice(None), slice(None), *cut)]
    return result + bias[0].reshape(-1, *(1 for _ in range(rank))) if bias else result


def max_pool_meaning(
    x: np.ndarray, kernel: Ints, stride: Ints, padding: Pads, dilation: Ints, ceil_mode: bool
) -> np.ndarray:
    ends = _ends(x.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    whole = _pad(x, [(low, end) for (low, _), end in zip(padding, ends, strict=True)], -inf)
    return sliding(whole, kernel, stride, dilation).max(axis=tuple(range(-len(kernel), 0)))


def avg_pool_meaning(
    x: np.ndarray, kernel: Ints, stride: Ints, padding: Pads, dilation: Ints, ceil_mode: bool, count_include_pad: bool
) -> np.ndarray:
    ends = _ends(x.shape[2:], kernel, stride, padding, dilation, ceil_mode)
    axes = tuple(range(-len(kernel), 0))
    whole = _pad(x, [(low, end) for (low, _), end in zip(padding, ends, strict=True)], 0.0)
    ones = _pad(np.ones(x.shape[2:]), padding, 1.0 if count_include_pad else 0.0)
    ones = _pad(ones, [(0, end - high) for end, (_, high) in zip(ends, padding, strict=True)], 0.0)
    return sliding(whole, kernel, stride, dilation).sum(axis=axes) / sliding(ones, kernel, stride, dilation).sum(axis=axes)
