"""Operators that are written with other operators.

A composite is taken apart in the graph before any plan is made, always in the same way: so its bits do not depend on
what is fused with what. Each function gets `op`, which makes nodes (`op.add(x, 1.0)`; numbers become constants of the
graph, sizes become dimension nodes), then the inputs and attributes of the operator, and gives the node that stands for it.

Sources: gelu, Hendrycks and Gimpel 2016 (arXiv 1606.08415); layer norm, Ba et al. 2016 (arXiv 1607.06450); RMS norm,
Zhang and Sennrich 2019 (arXiv 1910.07467)."""

from __future__ import annotations

from math import isfinite, pi, sqrt
from typing import TYPE_CHECKING, Protocol

from dvm_rt.dtypes import compute_dtype
from dvm_rt.errors import UnsupportedOperatorError
from dvm_rt.graph.symbols import Shape, Size, product

if TYPE_CHECKING:
    from dvm_rt.graph.graph import Node


class Make(Protocol):
    """Makes a node of any operator: op.exp(x), op.sum(x, axes=(1,), keepdims=True)."""

    def __getattr__(self, name: str): ...


def silu(op: Make, x: Node) -> Node:
    return op.multiply(x, op.sigmoid(x))


def gelu(op: Make, x: Node, approximate: str) -> Node:
    half = op.multiply(x, 0.5)
    if approximate == "none":
        return op.multiply(half, op.add(op.erf(op.multiply(x, sqrt(0.5))), 1.0))
    cubic = op.multiply(op.multiply(op.square(x), x), 0.044715)
    return op.multiply(half, op.add(op.tanh(op.multiply(op.add(x, cubic), sqrt(2 / pi))), 1.0))


def clip(op: Make, x: Node, low: float | None, high: float | None) -> Node:
    x = x if low is None else op.maximum(x, low)
    return x if high is None else op.minimum(x, high)


def power(op: Make, x: Node, exponent: float) -> Node:
    floats = x.dtype.kind == "f"
    if exponent == 0.5 and floats:
        return op.sqrt(x)
    if exponent == -0.5 and floats:
        return op.rsqrt(x)
    whole = isfinite(exponent) and exponent == int(exponent)
    if floats and not (whole and abs(exponent) <= 64):
        return op.power(x, exponent)
    if not floats and not (whole and exponent >= 0):
        raise UnsupportedOperatorError(f"graph: pow: exponent of an integer, got {exponent}, allowed whole numbers from 0")
    if exponent == 0:
        return full(op, x.shape, 1.0 if floats else 1, x.dtype.name)
    result, factor, left = None, x, abs(int(exponent))
    while left:
        if left & 1:
            result = factor if result is None else op.multiply(result, factor)
        left >>= 1
        factor = op.square(factor) if left else factor
    return result if exponent > 0 else op.reciprocal(result)


def mean(op: Make, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return op.divide(op.sum(x, axes=axes, keepdims=keepdims), count(op, x, axes))


def variance(op: Make, x: Node, axes: tuple[int, ...], correction: float, keepdims: bool) -> Node:
    squares = op.sum(op.square(op.subtract(x, mean(op, x, axes, True))), axes=axes, keepdims=keepdims)
    left = count(op, x, axes)
    return op.divide(squares, left if correction == 0 else op.maximum(op.subtract(left, correction), 0.0))


def logsumexp(op: Make, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    """As softmax does it, with the largest taken out; where that is infinite, nothing is."""
    most = op.max(x, axes=axes, keepdims=True)
    shift = op.where(op.isfinite(most), most, 0.0)
    total = op.add(op.log(op.sum(op.exp(op.subtract(x, shift)), axes=axes, keepdims=True)), shift)
    return total if keepdims else op.squeeze(total, axes=axes)


def any_of(op: Make, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return over_nothing(op, x, axes, keepdims, False) or op.max(x, axes=axes, keepdims=keepdims)


def all_of(op: Make, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return over_nothing(op, x, axes, keepdims, True) or op.min(x, axes=axes, keepdims=keepdims)


def over_nothing(op: Make, x: Node, axes: tuple[int, ...], keepdims: bool, value: float) -> Node | None:
    """What a reduction gives where there is nothing to reduce, if that is known: of nothing there is no largest."""
    if not any(same_zero(x.shape[axis]) for axis in axes):
        return None
    from dvm_rt.graph.shapes import reduced

    return full(op, reduced(op.facts, "reduced", (x.shape,), axes, keepdims), value, x.dtype.name)


def argmax(op: Make, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return first_of(op, x, op.max(x, axes=axes, keepdims=True), axes, keepdims)


def argmin(op: Make, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    return first_of(op, x, op.min(x, axes=axes, keepdims=True), axes, keepdims)


def first_of(op: Make, x: Node, wanted: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    """The smallest of the places, counted over the axes, where x is `wanted` (which is NaN if anything is)."""
    here = op.equal(x, wanted)
    if x.dtype.kind == "f":
        here = op.logical_or(here, op.isnan(x))
    sizes = tuple([n if i in axes else 1 for i, n in enumerate(x.shape)])
    places = op.reshape(op.iota(size=product(sizes)), shape=sizes)
    behind = op.dimension(size=product(sizes), dtype="int64")
    return op.min(op.where(here, places, behind), axes=axes, keepdims=keepdims)


def softmax(op: Make, x: Node, axis: int) -> Node:
    if same_zero(x.shape[axis]):
        return x
    e = op.exp(op.subtract(x, op.max(x, axes=(axis,), keepdims=True)))
    return op.multiply(e, op.reciprocal(op.sum(e, axes=(axis,), keepdims=True)))


def log_softmax(op: Make, x: Node, axis: int) -> Node:
    if same_zero(x.shape[axis]):
        return x
    shifted = op.subtract(x, op.max(x, axes=(axis,), keepdims=True))
    return op.subtract(shifted, op.log(op.sum(op.exp(shifted), axes=(axis,), keepdims=True)))


def layer_norm(op: Make, x: Node, *rest: Node | float | int) -> Node:
    """rest = [weight, [bias,]] eps."""
    *parameters, eps = rest
    last = (len(x.shape) - 1,)
    centred = op.subtract(x, mean(op, x, last, True))
    spread = op.divide(op.sum(op.square(centred), axes=last, keepdims=True), count(op, x, last))
    result = op.multiply(centred, op.rsqrt(op.add(spread, eps)))
    for name, parameter in zip(("multiply", "add"), parameters, strict=False):
        result = getattr(op, name)(result, parameter)
    return result


def rms_norm(op: Make, x: Node, *rest: Node | float) -> Node:
    """rest = [weight,] eps."""
    *parameters, eps = rest
    last = (len(x.shape) - 1,)
    spread = op.divide(op.sum(op.square(x), axes=last, keepdims=True), count(op, x, last))
    result = op.multiply(x, op.rsqrt(op.add(spread, eps)))
    return op.multiply(result, parameters[0]) if parameters else result


def linear(op: Make, x: Node, weight: Node, *bias: Node) -> Node:
    product_node = matmul(op, x, op.permute_dims(weight, axes=(1, 0)))
    return op.add(product_node, bias[0]) if bias else product_node


def matmul(op: Make, a: Node, b: Node) -> Node:
    """The product over at least two dimensions on both sides; a sum over nothing is 0.

    The matrix unit works in the compute dtypes; narrower ones are converted there and back."""
    if same_zero(a.shape[-1]):
        from dvm_rt.graph.shapes import matmul as shape_of

        zero = 0.0 if a.dtype.kind == "f" else 0
        return full(op, shape_of(op.facts, "matmul", (a.shape, b.shape)), zero, a.dtype.name)
    left = a if len(a.shape) > 1 else op.expand_dims(a, axes=(0,))
    right = b if len(b.shape) > 1 else op.expand_dims(b, axes=(1,))
    compute = compute_dtype(a.dtype).name
    wide = (op.astype(left, dtype=compute), op.astype(right, dtype=compute))
    result = op.astype(op.matrix_product(*wide), dtype=a.dtype.name)
    gone = ((-2,) if len(a.shape) == 1 else ()) + ((-1,) if len(b.shape) == 1 else ())
    rank = len(result.shape)
    return op.squeeze(result, axes=tuple(axis + rank for axis in gone)) if gone else result


def grouped_matmul(op: Make, x: Node, w: Node, rows: Node) -> Node:
    """The product in the compute dtype, converted there and back."""
    if same_zero(x.shape[-1]) or same_zero(w.shape[0]):
        return full(op, (x.shape[0], w.shape[2]), 0.0 if x.dtype.kind == "f" else 0, x.dtype.name)
    compute = compute_dtype(x.dtype).name
    return op.astype(op.grouped_product(op.astype(x, dtype=compute), op.astype(w, dtype=compute), rows), dtype=x.dtype.name)


def same_zero(size: Size) -> bool:
    return size.__class__ is int and size == 0


def stack(op: Make, *rest: Node | int) -> Node:
    *parts, axis = rest
    return op.concat(*(op.expand_dims(part, axes=(axis,)) for part in parts), axis=axis)


def full(op: Make, shape: Shape, value: float, dtype: str) -> Node:
    return op.broadcast_to(op.constant(value=value, dtype=dtype), shape=shape)


def count(op: Make, x: Node, axes: tuple[int, ...]) -> Node:
    """How many elements a reduction takes together, as a number in the graph."""
    return op.dimension(size=product(x.shape[axis] for axis in axes), dtype=x.dtype.name)
