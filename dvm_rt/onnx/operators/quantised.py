"""Quantised operators: scales and zero points around whole numbers."""

from __future__ import annotations

import numpy as np

from dvm_rt.array.array import Array
from dvm_rt.errors import ShapeError
from dvm_rt.graph.symbols import Dim
from dvm_rt.onnx.operators.elementwise import cast, kind_of, to_kind
from dvm_rt.onnx.operators.neural import windows
from dvm_rt.onnx.operators.reductions import FLOAT32, number
from dvm_rt.onnx.table import Call, row
from dvm_rt.onnx.values import numpy_dtype

Value = object
INT32 = np.dtype(np.int32)
RANGES = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767), "uint4": (0, 15),
          "int4": (-8, 7), "uint2": (0, 3), "int2": (-2, 1)}


def _lined(c: Call, scale: Value, x: Value) -> Value:
    """A scale (or zero point) beside x: one number, one for each element along an axis, or one for each block."""
    rank = len(x.shape)
    if scale is None or not scale.shape or (len(scale.shape) == 1 and scale.shape[0] == 1 and not c.get("block_size", 0)):
        return scale if scale is None or not scale.shape else c.xp.reshape(scale, ())
    axis = c.get("axis", 1)
    axis = axis + rank if axis < 0 else axis
    block = c.get("block_size", 0)
    if len(scale.shape) == 1 and not block:
        return c.xp.reshape(scale, tuple(scale.shape[0] if i == axis else 1 for i in range(rank)))
    block = block or -(-x.shape[axis] // scale.shape[axis])
    repeated = c.xp.repeat(scale, block, axis=axis)
    return repeated[tuple(slice(0, n) if i == axis else slice(None) for i, n in enumerate(x.shape))]


@row("QuantizeLinear")
def quantize_linear(c: Call, x: Value, scale: Value, zero: Value = None) -> Value:
    import onnx

    kind = c.get("output_dtype", 0)
    dtype = numpy_dtype(zero) if zero is not None else onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else np.dtype(np.uint8)
    precision = c.get("precision", 0)
    wide = onnx.helper.tensor_dtype_to_np_dtype(precision) if precision else numpy_dtype(x) if kind_of(
        x) == "f" and c.opset >= 19 else FLOAT32
    wide = wide if wide.itemsize >= 4 else FLOAT32
    scaled = c.xp.divide(cast(c, x, wide), cast(c, _lined(c, scale, x), wide))
    if dtype.name not in RANGES:
        if isinstance(x, Array):
            raise c.refuse("types below 16 bits are the host's")
        return to_kind(c, scaled, dtype, c.get("saturate", 1))
    whole = c.xp.round(scaled)
    if zero is not None:
        whole = c.xp.add(whole, cast(c, _lined(c, zero, x), wide))
    low, high = RANGES[dtype.name]
    held = c.xp.minimum(c.xp.maximum(whole, number(whole, low)), number(whole, high))
    if dtype.name in ("uint4", "int4", "uint2", "int2"):
        if isinstance(x, Array):
            raise c.refuse("types below 8 bits are the host's")
        return held.astype(np.int8 if low else np.uint8).astype(dtype)
    return cast(c, held, dtype)


@row("DequantizeLinear")
def dequantize_linear(c: Call, x: Value, scale: Value, zero: Value = None) -> Value:
    import onnx

    kind = c.get("output_dtype", 0)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else numpy_dtype(scale)
    wide = cast(c, x, FLOAT32)
    if zero is not None:
        wide = c.xp.subtract(wide, cast(c, _lined(c, zero, x), FLOAT32))
    return cast(c, c.xp.multiply(wide, cast(c, _lined(c, scale, x), FLOAT32)), dtype)


@row("DynamicQuantizeLinear")
def dynamic_quantize_linear(c: Call, x: Value) -> Value:
    axes = tuple(range(len(x.shape)))
    zero = number(x, 0.0)
    low, high = c.xp.minimum(c.xp.min(x, axis=axes), zero), c.xp.maximum(c.xp.max(x, axis=axes), zero)
    scale = c.xp.divide(c.xp.subtract(high, low), number(x, 255.0))
    place = c.xp.round(c.xp.minimum(c.xp.maximum(c.xp.divide(c.xp.negative(low), scale), zero), number(x, 255.0)))
    whole = c.xp.add(c.xp.round(c.xp.divide(x, scale)), place)
    held = c.xp.minimum(c.xp.maximum(whole, zero), number(x, 255.0))
    return [cast(c, held, np.dtype(np.uint8)), scale, cast(c, place, np.dtype(np.uint8))]


def _shifted(c: Call, x: Value, zero: Value, axis: int) -> Value:
    """x - zero point, in int32; zero points of rows or columns lie along an axis."""
    wide = cast(c, x, INT32)
    if zero is None:
        return wide
    zero = cast(c, zero, INT32)
    if len(zero.shape) == 1 and not (isinstance(zero.shape[0], int) and zero.shape[0] == 1):
        shape = [1] * len(x.shape)
        shape[axis] = zero.shape[0]
        zero = c.xp.reshape(zero, tuple(shape))
    return c.xp.subtract(wide, zero)


@row("MatMulInteger")
def matmul_integer(c: Call, a: Value, b: Value, a_zero: Value = None, b_zero: Value = None) -> Value:
    return c.xp.matmul(_shifted(c, a, a_zero, -2), _shifted(c, b, b_zero, -1))


@row("QLinearMatMul")
def quantised_matmul(
    c: Call, a: Value, a_scale: Value, a_zero: Value, b: Value, b_scale: Value, b_zero: Value, y_scale: Value, y_zero: Value
) -> Value:
    total = c.xp.matmul(_shifted(c, a, a_zero, -2), _shifted(c, b, b_zero, -1))
    scales = [cast(c, s, FLOAT32) for s in (a_scale, b_scale, y_scale)]
    scales[0] = c.xp.expand_dims(scales[0], axis=len(scales[0].shape)) if len(scales[0].shape) and scales[0].shape[
        0] != 1 else scales[0]
    scaled = c.xp.divide(c.xp.multiply(cast(c, total, FLOAT32), c.xp.multiply(scales[0], scales[1])), scales[2])
    return _requantised(c, scaled, y_zero)


def _requantised(c: Call, x: Value, zero: Value) -> Value:
    low, high = RANGES[numpy_dtype(zero).name]
    whole = c.xp.add(c.xp.round(x), cast(c, zero, FLOAT32))
    return cast(c, c.xp.minimum(c.xp.maximum(whole, number(whole, low)), number(whole, high)), numpy_dtype(zero))


def _convolved(c: Call, x: Value, weight: Value, x_zero: Value, weight_zero: Value) -> Value:
    """The convolution of whole numbers, exact in float64 up to 2^53 and in float32 up to 2^24."""
    strides, pads, dilations = windows(c, x, weight.shape[2:])
    places = 1
    for n in weight.shape[1:]:
        places = places * n
    if isinstance(places, Dim):
        raise ShapeError(f"weights, got {weight.shape}, allowed numbers")
    exact = np.dtype(np.float32) if places * 255 * 255 < 1 << 24 else np.dtype(np.float64)
    if isinstance(x, Array) and exact.itemsize == 8:
        raise c.refuse("convolutions of more than 258 products of whole numbers are the host's")
    left, right = (cast(c, v, exact) for v in (_shifted(c, x, x_zero, 1), _shifted(c, weight, weight_zero, 0)))
    total = c.xp.conv(left, right, None, stride=strides, padding=pads, dilation=dilations, groups=c.get("group", 1))
    return cast(c, total, INT32)


@row("ConvInteger")
def conv_integer(c: Call, x: Value, weight: Value, x_zero: Value = None, weight_zero: Value = None) -> Value:
    return _convolved(c, x, weight, x_zero, weight_zero)


@row("QLinearConv")
def quantised_conv(
    c: Call, x: Value, x_scale: Value, x_zero: Value, weight: Value, weight_scale: Value, weight_zero: Value, y_scale: Value,
    y_zero: Value, bias: Value = None,
) -> Value:  # fmt: skip
    total = _convolved(c, x, weight, x_zero, weight_zero)
    lined = (-1, *(1 for _ in x.shape[2:]))
    if bias is not None:
        total = c.xp.add(total, c.xp.reshape(bias, lined))
    own = c.xp.reshape(weight_scale, lined) if len(weight_scale.shape) and not isinstance(weight_scale.shape[0],
        Dim) and weight_scale.shape[0] > 1 else weight_scale
    scale = c.xp.divide(c.xp.multiply(x_scale, own), y_scale)
    return _requantised(c, c.xp.multiply(cast(c, total, FLOAT32), scale), y_zero)
