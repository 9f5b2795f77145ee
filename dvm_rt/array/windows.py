"""Convolution and pooling on arrays: arguments are completed and checked here, the rest is `graph/windows.py`.

The layout is (batch, channels, *space). One number stands for all axes of space; padding is one number, one number or a
pair (before, after) for each axis, or "same" (as many windows as elements, stride 1) or "valid" (none)."""

from __future__ import annotations

from collections.abc import Sequence

from dvm_rt.array.array import Array, asarray, flag, is_several, record, whole
from dvm_rt.errors import DTypeError, GraphError, ShapeError
from dvm_rt.graph.shapes import whole_number

Numbers = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]


def conv(
    x: Array, weight: Array, bias: Array | None = None, *, stride: Numbers = 1, padding: Padding = 0, dilation: Numbers = 1,
    groups: int = 1,
) -> Array:  # fmt: skip
    """Convolution over all axes of space: x (B, C, *S), weight (M, C / groups, *K), bias (M,) -> (B, M, *O)."""
    rank = _rank(x, "conv")
    stride, dilation = _numbers(stride, rank, 1, "conv", "stride"), _numbers(dilation, rank, 1, "conv", "dilation")
    inputs = (x, *(asarray(a) for a in (weight, bias) if a is not None))
    pads = _padding(padding, tuple(inputs[1].shape[2:]), stride, dilation, "conv")
    return record("conv", inputs, (stride, pads, dilation, whole(groups, "conv: groups")))


def conv_transpose(
    x: Array, weight: Array, bias: Array | None = None, *, stride: Numbers = 1, padding: Padding = 0,
    output_padding: Numbers = 0, dilation: Numbers = 1, groups: int = 1,
) -> Array:  # fmt: skip
    """The transpose of a convolution: x (B, C, *S), weight (C, M / groups, *K), bias (M,) -> (B, M, *O)."""
    rank, name = _rank(x, "conv_transpose"), "conv_transpose"
    stride, dilation = _numbers(stride, rank, 1, name, "stride"), _numbers(dilation, rank, 1, name, "dilation")
    extra = _numbers(output_padding, rank, 0, name, "output_padding")
    inputs = (x, *(asarray(a) for a in (weight, bias) if a is not None))
    pads = _padding(padding, tuple(inputs[1].shape[2:]), (), dilation, name)
    return record(name, inputs, (stride, pads, extra, dilation, whole(groups, "conv_transpose: groups")))


def max_pool(
    x: Array, kernel: Numbers, *, stride: Numbers | None = None, padding: Padding = 0, dilation: Numbers = 1,
    ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """The largest element of each window; NaN wins. stride None: windows side by side."""
    return record("max_pool", (x,), _pooling(x, kernel, stride, padding, dilation, ceil_mode, "max_pool"))


def avg_pool(
    x: Array, kernel: Numbers, *, stride: Numbers | None = None, padding: Padding = 0, dilation: Numbers = 1,
    ceil_mode: bool = False, count_include_pad: bool = True,
) -> Array:  # fmt: skip
    """The mean of each window; count_include_pad: of the padding too. stride None: windows side by side."""
    geometry = _pooling(x, kernel, stride, padding, dilation, ceil_mode, "avg_pool")
    return record("avg_pool", (x,), (*geometry, flag(count_include_pad, "avg_pool: count_include_pad")))


def _pooling(x: Array, kernel: Numbers, stride: Numbers | None, padding: Padding, dilation: Numbers, ceil_mode: bool,
             name: str) -> tuple:
    rank = _rank(x, name)
    window = _numbers(kernel, rank, 1, name, "kernel")
    steps = window if stride is None else _numbers(stride, rank, 1, name, "stride")
    taps = _numbers(dilation, rank, 1, name, "dilation")
    return window, steps, _padding(padding, window, steps, taps, name), taps, flag(ceil_mode, f"{name}: ceil_mode")


def _rank(x: object, name: str) -> int:
    if not isinstance(x, Array):
        raise DTypeError(f"array: {name}: x, got {type(x).__name__}, allowed an array")
    if x.ndim < 3:
        raise ShapeError(f"array: {name}: rank of x, got {x.ndim}, allowed at least 3: (batch, channels, *space)")
    return x.ndim - 2


def _numbers(value: Numbers, rank: int, least: int, name: str, what: str) -> tuple[int, ...]:
    numbers = _each(value, rank)
    if len(numbers) != rank or not all(n is not None and n >= least for n in numbers):
        raise ShapeError(f"array: {name}: {what}, got {value}, allowed {rank} whole numbers from {least} on, or one")
    return numbers


def _each(value: object, count: int) -> tuple[int | None, ...]:
    """The whole numbers of a sequence, or so many of one; None for what is none."""
    return tuple([whole_number(n) for n in value]) if is_several(value) else (whole_number(value),) * count


def _padding(
    padding: Padding, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], name: str
) -> tuple[tuple[int, int], ...]:
    rank = len(dilation)
    if padding == "valid":
        return ((0, 0),) * rank
    if padding == "same":
        if any(s != 1 for s in stride) or not stride:
            raise GraphError(f"array: {name}: padding 'same', got strides {stride}, allowed 1")
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return tuple((r // 2, r - r // 2) for r in reach)
    each = padding if is_several(padding) else (padding,) * rank
    pads = tuple([_each(p, 2) for p in each])
    if len(pads) != rank or not all(len(p) == 2 and all(n is not None and n >= 0 for n in p) for p in pads):
        raise ShapeError(f"array: {name}: padding, got {padding!r}, allowed same, valid, or {rank} numbers or pairs from 0 on")
    return pads


__all__ = ["avg_pool", "conv", "conv_transpose", "max_pool"]
