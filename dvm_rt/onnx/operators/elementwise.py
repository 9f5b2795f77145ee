"""Elementwise operators: arithmetic, functions, comparisons, bits, activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dvm_rt.array.array import Array
from dvm_rt.graph.symbols import same
from dvm_rt.onnx.table import Call, row
from dvm_rt.onnx.values import numpy_dtype, dvm_dtype

Value = object
UNARY = {
    "Abs": "abs", "Neg": "negative", "Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Tanh": "tanh", "Erf": "erf",
    "Sigmoid": "sigmoid",
    "Relu": "relu", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Reciprocal": "reciprocal", "Sin": "sin", "Cos": "cos",
    "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Asinh": "asinh",
    "Acosh": "acosh", "Atanh": "atanh", "Sign": "sign", "IsNaN": "isnan", "Not": "logical_not", "BitwiseNot": "bitwise_invert",
}  # fmt: skip
BINARY = {
    "Add": "add", "Sub": "subtract", "Mul": "multiply", "Equal": "equal", "Greater": "greater", "Less": "less",
    "GreaterOrEqual": "greater_equal", "LessOrEqual": "less_equal", "And": "logical_and", "Or": "logical_or",
    "Xor": "logical_xor",
    "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor",
}  # fmt: skip


def cast(c: Call, x: Value, dtype: np.dtype) -> Value:
    """x in another dtype, over either namespace."""
    if isinstance(x, Array):
        return x.astype(dvm_dtype(np.dtype(dtype)))
    return c.xp.astype(x, dtype)


def _unary(name: str) -> Callable[[Call, Value], Value]:
    return lambda c, x: getattr(c.xp, name)(x)


def _binary(name: str) -> Callable[[Call, Value, Value], Value]:
    return lambda c, x, y: getattr(c.xp, name)(x, _lined(c, x, y))


def _lined(c: Call, x: Value, y: Value) -> Value:
    """Before operator set 7, `broadcast` with `axis` says at which axis of x the axes of y begin."""
    axis = c.get("axis")
    if c.opset >= 7 or axis is None or not y.shape:
        return y
    axis = axis + len(x.shape) if axis < 0 else axis
    behind = len(x.shape) - axis - len(y.shape)
    return c.xp.reshape(y, (*y.shape, *(1,) * behind)) if behind > 0 else y


for _name, _function in UNARY.items():
    row(_name)(_unary(_function))
for _name, _function in BINARY.items():
    row(_name)(_binary(_function))


def kind_of(x: Value) -> str:
    """"f" for every float, bfloat16 too; else NumPy's letter."""
    dtype = numpy_dtype(x)
    return "f" if dtype.kind == "V" or dtype.name == "bfloat16" else dtype.kind


@row("Div")
def divide(c: Call, x: Value, y: Value) -> Value:
    y = _lined(c, x, y)
    if kind_of(x) == "f":
        return c.xp.divide(x, y)
    if kind_of(x) == "u" or (isinstance(x, np.ndarray) and x.dtype == object) or (isinstance(y, np.ndarray)
            and y.dtype == object):
        return c.xp.floor_divide(x, y)
    quotient = c.xp.floor_divide(x, y)  # whole numbers are divided towards 0
    rest = c.xp.subtract(x, c.xp.multiply(quotient, y))
    uneven = c.xp.logical_and(c.xp.not_equal(rest, 0), c.xp.less(quotient, 0))
    return c.xp.where(uneven, c.xp.add(quotient, 1), quotient)


@row("Mod")
def modulo(c: Call, x: Value, y: Value) -> Value:
    if not c.get("fmod", 0):
        return c.xp.remainder(x, y)
    if kind_of(x) == "f":
        return c.xp.fmod(x, y)
    rest = c.xp.remainder(c.xp.abs(x), c.xp.abs(y))
    return c.xp.where(c.xp.less(x, 0), c.xp.negative(rest), rest) if kind_of(x) == "i" else rest


@row("Pow")
def power(c: Call, x: Value, y: Value) -> Value:
    dtype, y = numpy_dtype(x), _lined(c, x, y)
    if isinstance(y, Array) and y._node is not None and same(y.size, 1) and y._node.operator.name in ("constant",
            "broadcast_to", "full"):
        number = _constant_of(y)
        if number is not None and kind_of(x) == "f":
            return c.xp.pow(x, number)
    if kind_of(x) != "f" and kind_of(y) == "f":
        return cast(c, c.xp.pow(cast(c, x, numpy_dtype(y)), y), dtype)
    return cast(c, c.xp.pow(x, cast(c, y, dtype)), dtype)


def _constant_of(y: Array) -> float | None:
    node = y._node
    while node.operator.name == "broadcast_to":
        node = node.inputs[0]
    if node.operator.name == "full":
        return float(node.attribute("value"))
    return float(node.attribute("value")) if node.operator.name == "constant" else None


@row("BitShift")
def bit_shift(c: Call, x: Value, y: Value) -> Value:
    """A count outside of the type's width shifts everything out: 0, or the sign."""
    bits = 8 * numpy_dtype(x).itemsize
    outside = c.xp.greater_equal(y, bits)
    outside = c.xp.logical_or(outside, c.xp.less(y, 0)) if kind_of(x) == "i" else outside
    if c.get("direction") == "LEFT":
        return c.xp.where(outside, _like(c, 0, x), c.xp.bitwise_left_shift(x, c.xp.where(outside, _like(c, 0, x), y)))
    last = c.xp.where(outside, _like(c, bits - 1, x), y)
    shifted = c.xp.bitwise_right_shift(x, last)
    return shifted if kind_of(x) == "i" else c.xp.where(outside, _like(c, 0, x), shifted)


def _fold(name: str) -> Callable[..., Value]:
    def function(c: Call, *xs: Value) -> Value:
        total = xs[0]
        for x in xs[1:]:
            total = getattr(c.xp, name)(total, x)
        return total

    return function


row("Sum")(_fold("add"))
row("Max")(_fold("maximum"))
row("Min")(_fold("minimum"))


@row("Mean")
def mean(c: Call, *xs: Value) -> Value:
    return c.xp.divide(_fold("add")(c, *xs), _like(c, len(xs), xs[0]))


def _like(c: Call, number: float, x: Value) -> Value:
    """A number beside x, of its dtype."""
    return number if isinstance(x, Array) else np.asarray(number, numpy_dtype(x))


@row("Where")
def where(c: Call, condition: Value, x: Value, y: Value) -> Value:
    return c.xp.where(condition, x, y)


@row("Cast")
def cast_operator(c: Call, x: Value) -> Value:
    import onnx

    return to_kind(c, x, onnx.helper.tensor_dtype_to_np_dtype(c.get("to")), c.get("saturate", 1), c.get("round_mode", "up"))


@row("CastLike", on_host=())
def cast_like(c: Call, x: Value, like: Value) -> Value:
    return to_kind(c, x, numpy_dtype(like), c.get("saturate", 1), c.get("round_mode", "up"))


def to_kind(c: Call, x: Value, dtype: np.dtype, saturate: int, rounding: str = "up") -> Value:
    """A conversion as ONNX defines it; strings and types below 16 bits are the host's."""
    if isinstance(x, Array):
        return x.astype(dvm_dtype(dtype))
    if dtype == object:
        return _to_strings(x)
    if x.dtype == object and x.size and isinstance(x.ravel()[0], str):
        return _from_strings(x, dtype)
    if dtype.name.startswith("float8"):
        return _to_power_of_two(x, rounding) if dtype.name == "float8_e8m0fnu" else _to_float8(x, dtype, saturate)
    if dtype.name in ("float4_e2m1fn",):
        return x.astype(np.float32).astype(dtype)
    if dtype.name in ("int4", "uint4", "int2", "uint2"):
        return _to_few_bits(x, dtype)
    if x.dtype.name.startswith(("float8", "float4", "int4", "uint4", "int2", "uint2", "bfloat16")) and dtype.kind in "iub":
        x = x.astype(np.float32)
    return c.xp.astype(x, dtype)


def _to_strings(x: np.ndarray) -> np.ndarray:
    if x.dtype == object:
        return x
    values = x.astype(np.float32) if x.dtype.name == "bfloat16" else x
    text = [str(v) if x.dtype.kind in "iub" else str(np.asarray(v)) for v in values.ravel()]
    return np.array(text, object).reshape(x.shape)


def _from_strings(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "iu":
        values: list[object] = [int(float(s)) if not s.lstrip("+-").isdigit() else int(s) for s in x.ravel()]
    elif dtype.kind == "b":
        values = [s.lower() not in ("", "0", "false") for s in x.ravel()]
    else:
        values = [float(s) for s in x.ravel()]
    return np.array(values).astype(dtype).reshape(x.shape) if values else np.zeros(x.shape, dtype)


def _to_float8(x: np.ndarray, dtype: np.dtype, saturate: int) -> np.ndarray:
    import ml_dtypes

    wide = x.astype(np.float32)
    result = wide.astype(dtype)
    if saturate:
        info = ml_dtypes.finfo(dtype)
        top = float(info.max)
        big = np.abs(wide) > top
        result = np.where(big & ~np.isnan(wide), np.sign(wide) * top,
                          np.where(np.isnan(wide), wide, result.astype(np.float32))).astype(dtype)
    return result


def _to_power_of_two(x: np.ndarray, rounding: str) -> np.ndarray:
    """float8_e8m0: the exponent alone; up, down, or to the nearest; beyond the range its ends; NaN is 255."""
    import ml_dtypes

    wide = x.astype(np.float32)
    bits = np.ascontiguousarray(wide).view(np.uint32).reshape(wide.shape) & 0x7FFFFFFF
    exponent, rest = (bits >> 23).astype(np.int64), bits & 0x7FFFFF
    half = np.where(exponent == 0, 0x600000, 0x400000)  # 2^-127, the smallest, is a subnormal float32
    least = np.where(exponent == 0, 0x400000, 0)
    more = {"up": rest > least, "down": np.zeros(rest.shape, bool), "nearest": rest >= half}[rounding]
    code = np.where(np.isnan(wide), 255, np.clip(exponent + more, 0, 254)).astype(np.uint8)
    return code.view(ml_dtypes.float8_e8m0fnu)


def _to_few_bits(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    bits = int(dtype.name[-1])
    whole = np.trunc(x.astype(np.float32)).astype(np.int64) if x.dtype.kind != "i" or x.dtype.name != "int64" else x
    kept = whole & ((1 << bits) - 1)
    if dtype.name.startswith("int"):
        kept = np.where(kept >= 1 << (bits - 1), kept - (1 << bits), kept)
    return kept.astype(np.int8).astype(dtype) if dtype.name.startswith("int") else kept.astype(np.uint8).astype(dtype)


@row("BitCast")
def bit_cast(c: Call, x: Value) -> Value:
    import onnx

    if isinstance(x, Array):
        raise c.refuse("bits of another type are taken on the host")
    return np.ascontiguousarray(x).view(onnx.helper.tensor_dtype_to_np_dtype(c.get("to"))).reshape(x.shape)


@row("IsInf")
def is_infinite(c: Call, x: Value) -> Value:
    positive, negative = c.get("detect_positive", 1), c.get("detect_negative", 1)
    if not positive and not negative:
        return c.xp.logical_and(c.xp.isinf(x), c.xp.logical_not(c.xp.isinf(x)))
    if positive and negative:
        return c.xp.isinf(x)
    side = c.xp.greater(x, 0) if positive else c.xp.less(x, 0)
    return c.xp.logical_and(c.xp.isinf(x), side)


@row("Clip", since=11)
def clip(c: Call, x: Value, low: Value = None, high: Value = None) -> Value:
    if low is not None:
        x = c.xp.maximum(x, low)
    return c.xp.minimum(x, high) if high is not None else x


@row("Clip", since=1)
def clip_by_attributes(c: Call, x: Value) -> Value:
    low, high = c.get("min"), c.get("max")
    x = c.xp.maximum(x, _like(c, low, x)) if low is not None else x
    return c.xp.minimum(x, _like(c, high, x)) if high is not None else x


# ---- activations --------------------------------------------------------------------------------------------------


@row("LeakyRelu")
def leaky_relu(c: Call, x: Value) -> Value:
    return c.xp.where(c.xp.less(x, _like(c, 0, x)), c.xp.multiply(x, _like(c, c.get("alpha", 0.01), x)), x)


@row("PRelu")
def parametric_relu(c: Call, x: Value, slope: Value) -> Value:
    if len(slope.shape) == 1 and len(x.shape) > 2 and c.opset < 7:
        slope = c.xp.reshape(slope, (-1, *(1 for _ in x.shape[2:])))
    return c.xp.where(c.xp.less(x, _like(c, 0, x)), c.xp.multiply(x, slope), x)


@row("Elu")
def elu(c: Call, x: Value) -> Value:
    low = c.xp.minimum(x, _like(c, 0, x))
    grown = c.xp.multiply(c.xp.subtract(c.xp.exp(low), _like(c, 1, x)), _like(c, c.get("alpha", 1.0), x))
    return c.xp.where(c.xp.less(x, _like(c, 0, x)), grown, x)


@row("Selu")
def selu(c: Call, x: Value) -> Value:
    alpha, gamma = c.get("alpha", 1.67326319217681884765625), c.get("gamma", 1.05070102214813232421875)
    low = c.xp.minimum(x, _like(c, 0, x))
    grown = c.xp.multiply(c.xp.subtract(c.xp.exp(low), _like(c, 1, x)), _like(c, alpha, x))
    return c.xp.multiply(c.xp.where(c.xp.greater(x, _like(c, 0, x)), x, grown), _like(c, gamma, x))


@row("Celu")
def celu(c: Call, x: Value) -> Value:
    alpha = c.get("alpha", 1.0)
    low = c.xp.minimum(x, _like(c, 0, x))
    grown = c.xp.subtract(c.xp.exp(c.xp.divide(low, _like(c, alpha, x))), _like(c, 1, x))
    return c.xp.add(c.xp.maximum(x, _like(c, 0, x)), c.xp.multiply(grown, _like(c, alpha, x)))


@row("HardSigmoid")
def hard_sigmoid(c: Call, x: Value) -> Value:
    scaled = c.xp.add(c.xp.multiply(x, _like(c, c.get("alpha", 0.2), x)), _like(c, c.get("beta", 0.5), x))
    return c.xp.minimum(c.xp.maximum(scaled, _like(c, 0, x)), _like(c, 1, x))


@row("HardSwish")
def hard_swish(c: Call, x: Value) -> Value:
    scaled = c.xp.add(c.xp.multiply(x, _like(c, 1 / 6, x)), _like(c, 0.5, x))
    return c.xp.multiply(x, c.xp.minimum(c.xp.maximum(scaled, _like(c, 0, x)), _like(c, 1, x)))


@row("ThresholdedRelu")
def thresholded_relu(c: Call, x: Value) -> Value:
    return c.xp.where(c.xp.greater(x, _like(c, c.get("alpha", 1.0), x)), x, _like(c, 0, x))


@row("Softplus")
def softplus(c: Call, x: Value) -> Value:
    tail = c.xp.log(c.xp.add(c.xp.exp(c.xp.negative(c.xp.abs(x))), _like(c, 1, x)))
    return c.xp.add(c.xp.maximum(x, _like(c, 0, x)), tail)


@row("Softsign")
def softsign(c: Call, x: Value) -> Value:
    return c.xp.divide(x, c.xp.add(c.xp.abs(x), _like(c, 1, x)))


@row("Mish")
def mish(c: Call, x: Value) -> Value:
    return c.xp.multiply(x, c.xp.tanh(softplus(c, x)))


@row("Gelu")
def gelu(c: Call, x: Value) -> Value:
    if isinstance(x, Array):
        return c.xp.gelu(x, approximate=c.get("approximate", "none"))
    if c.get("approximate", "none") == "tanh":
        inner = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    else:
        inner = c.xp.erf(x / np.sqrt(np.asarray(2, x.dtype)))
    return (0.5 * x * (1 + inner)).astype(x.dtype)


@row("Swish")
def swish(c: Call, x: Value) -> Value:
    return c.xp.multiply(x, c.xp.sigmoid(c.xp.multiply(x, _like(c, c.get("alpha", 1.0), x))))


@row("Shrink")
def shrink(c: Call, x: Value) -> Value:
    bias, limit = c.get("bias", 0.0), c.get("lambd", 0.5)
    if kind_of(x) != "f":
        wide = cast(c, x, np.dtype(np.float32))
        return cast(c, shrink(c, wide), numpy_dtype(x))
    high = c.xp.where(c.xp.greater(x, _like(c, limit, x)), c.xp.subtract(x, _like(c, bias, x)), _like(c, 0, x))
    return c.xp.where(c.xp.less(x, _like(c, -limit, x)), c.xp.add(x, _like(c, bias, x)), high)
