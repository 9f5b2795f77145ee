"""Steps of optimisers (ai.onnx.preview.training): elementwise arithmetic over lists of tensors."""

from __future__ import annotations

from dvm_rt.onnx.operators.elementwise import cast
from dvm_rt.onnx.operators.reductions import number
from dvm_rt.onnx.table import Call, row
from dvm_rt.onnx.values import lift, numpy_dtype

Value = object
DOMAIN = "ai.onnx.preview.training"


def _groups(c: Call, values: tuple[Value, ...], count: int) -> list[tuple[Value, ...]]:
    """X1, X2, .. G1, G2, .. as (X1, G1, ..), (X2, G2, ..)."""
    each = len(values) // count
    return [tuple(_taken(c, values[k * each + i]) for k in range(count)) for i in range(each)]


def _taken(c: Call, value: Value) -> Value:
    return value if c.on_host else lift(value)


def _columns(rows: list[tuple[Value, ...]]) -> list[Value]:
    return [value for column in zip(*rows, strict=True) for value in column]


@row("Adagrad", domain=DOMAIN)
def adagrad(c: Call, rate: Value, step: Value, *values: Value) -> Value:
    def one(x: Value, g: Value, h: Value) -> tuple[Value, Value]:
        r = cast(c, _taken(c, rate), numpy_dtype(x)) / (cast(c, _taken(c, step),
                                                             numpy_dtype(x)) * c.get("decay_factor", 0.0) + 1.0)
        g = x * c.get("norm_coefficient", 0.0) + g
        h = h + g * g
        return x - r * g / (c.xp.sqrt(h) + c.get("epsilon", 1e-6)), h

    return _columns([one(*group) for group in _groups(c, values, 3)])


@row("Adam", domain=DOMAIN)
def adam(c: Call, rate: Value, step: Value, *values: Value) -> Value:
    a, b = c.get("alpha", 0.9), c.get("beta", 0.999)

    def one(x: Value, g: Value, v: Value, h: Value) -> tuple[Value, Value, Value]:
        t, r = cast(c, _taken(c, step), numpy_dtype(x)), cast(c, _taken(c, rate), numpy_dtype(x))
        g = x * c.get("norm_coefficient", 0.0) + g
        v, h = v * a + g * (1 - a), h * b + g * g * (1 - b)
        corrected = r * c.xp.sqrt(1.0 - c.xp.pow(_taken(c, number_of(b, x)), t)) / (1.0 - c.xp.pow(_taken(c, number_of(a, x)), t))
        moved = c.xp.where(t > 0.0, corrected, r)
        new = x - moved * v / (c.xp.sqrt(h) + c.get("epsilon", 1e-6))
        return new * (1 - c.get("norm_coefficient_post", 0.0)), v, h

    return _columns([one(*group) for group in _groups(c, values, 4)])


@row("Momentum", domain=DOMAIN)
def momentum(c: Call, rate: Value, step: Value, *values: Value) -> Value:
    a, nesterov = c.get("alpha"), c.get("mode") == "nesterov"

    def one(x: Value, g: Value, v: Value) -> tuple[Value, Value]:
        t, r = cast(c, _taken(c, step), numpy_dtype(x)), cast(c, _taken(c, rate), numpy_dtype(x))
        g = x * c.get("norm_coefficient") + g
        share = c.xp.where(t > 0.0, number(x, c.get("beta")), 1.0)
        v = v * a + g * share
        return x - r * (g + v * a if nesterov else v), v

    return _columns([one(*group) for group in _groups(c, values, 3)])


def number_of(value: float, x: Value) -> Value:
    """A number as a host value of x's dtype."""
    import numpy as np

    return np.asarray(value, numpy_dtype(x))
