"""Random graphs over all dtypes: elementwise operators, conversions, reductions, views; exact for integers and bools."""

from __future__ import annotations

import random

import numpy as np

from dvm_rt import dtypes
from dvm_rt.dtypes import DTYPES, DType, bool_, float64
from dvm_rt.graph.graph import Make, Node

ANY = ("equal", "not_equal", "where", "copy")
NUMBERS = (
    "add", "subtract", "multiply", "maximum", "minimum", "negative", "abs", "square", "sign", "relu", "floor", "ceil", "trunc",
    "round", "less", "less_equal", "greater", "greater_equal",
)  # fmt: skip
FLOATS = ("divide", "sqrt", "reciprocal", "isnan", "isinf", "isfinite", "signbit", "copysign", "fmod", "remainder")
WHOLES = ("floor_divide", "remainder", "bitwise_left_shift", "bitwise_right_shift")
BITS = ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert")
BOOLS = ("logical_and", "logical_or", "logical_xor", "logical_not")
TWO = ("add", "subtract", "multiply", "maximum", "minimum", "divide", "copysign", "fmod", *WHOLES, *BITS[:3], *BOOLS[:3])
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")


def names_for(dtype: DType) -> tuple[str, ...]:
    """Operators that take this dtype."""
    if dtype is float64:  # fmod and remainder are not there yet
        return ANY + NUMBERS + FLOATS[:-2]
    more = {"b": (*BITS, *BOOLS), "f": (*NUMBERS, *FLOATS)}.get(dtype.kind, (*NUMBERS, *WHOLES, *BITS))
    return ANY + more


def values(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Stored values: small ones, and the ends of the range."""
    if dtype is bool_:
        return rng.random(shape) < 0.5
    small = rng.integers(-9 if dtype.kind != "u" else 0, 10, shape)
    if dtype.kind == "f":
        return dtypes.to_storage(np.where(rng.random(shape) < 0.5, small, rng.normal(0, 3, shape)), dtype)
    low, high = dtypes.limits(dtype)
    ends = rng.choice(np.array([low, low + 1, high - 1, high], dtype.numpy), shape)
    return np.where(rng.random(shape) < 0.3, ends, small.astype(dtype.numpy))


def random_graph(seed: int, steps: int):
    """A function that builds the same random graph each time; the parameters are matrices of one shape, and rows of them."""

    def build(op: Make, *parameters: Node) -> tuple[Node, ...]:
        rng = random.Random(seed)
        for p in parameters:
            for a, b in zip(p.shape[::-1], parameters[0].shape[::-1], strict=False):
                op.facts.equate(a, b, "test")
        pool = list(parameters)
        for _ in range(steps):
            pool.append(_step(rng, op, pool))
        made = pool[len(parameters) :]
        return tuple(dict.fromkeys([*rng.choices(made, k=2), made[-1]]))

    return build


def _step(rng: random.Random, op: Make, pool: list[Node]) -> Node:
    x = rng.choice(pool[-5:] if rng.random() < 0.7 else pool)
    kind = rng.random()
    if kind < 0.12:
        return op.astype(x, dtype=rng.choice([y.dtype for y in pool] + [*DTYPES]).name)
    if kind < 0.25 and len(x.shape) == 2 and x.dtype.kind != "f":
        name = rng.choice(("max", "min", "any", "all") if x.dtype is bool_ else ("sum", "prod", "max", "min"))
        if name not in ("any", "all") or x.dtype is bool_:
            return getattr(op, name)(x, axes=(rng.randrange(2),), keepdims=True)
    if kind < 0.3 and len(x.shape) == 2:
        return op.index(x, entries=((None, None, None), (None, None, -1)))
    name = rng.choice(names_for(x.dtype))
    others = [y for y in pool if y.dtype is x.dtype]
    if name == "where":
        return op.where(rng.choice([y for y in pool if y.dtype is bool_]), x, rng.choice(others))
    if name in TWO or name in COMPARISONS:
        return getattr(op, name)(x, rng.choice(others))
    return getattr(op, name)(x)
