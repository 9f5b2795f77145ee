"""Public functions called with what they cannot take: a typed error that says where, what, got and allowed; the next call works."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.errors import DTypeError, DvmError, GraphError, ShapeError

X = np.arange(6, dtype=np.float32).reshape(2, 3)
HUGE, BEYOND = 2**62, 10**30


def x() -> dvm.Array:
    return dvm.asarray(X)


REFUSED: dict[str, tuple[type[DvmError], Callable[[], object]]] = {
    "asarray of nested lists of unequal length": (ShapeError, lambda: dvm.asarray([[1], [1, 2]])),
    "asarray of text": (DTypeError, lambda: dvm.asarray("abc")),
    "a dtype that is an array": (DTypeError, lambda: dvm.zeros(3, dtype=x())),
    "a dtype that is None": (DTypeError, lambda: x().astype(None)),
    "a dtype that is complex": (DTypeError, lambda: dvm.zeros(3, dtype="complex64")),
    "a size that is complex": (ShapeError, lambda: dvm.zeros(np.array([1j]))),
    "a size that is a float": (ShapeError, lambda: dvm.zeros((2.5,))),
    "a size below 0": (ShapeError, lambda: dvm.zeros((-1, 3))),
    "a size beyond 64 bits": (ShapeError, lambda: dvm.zeros((BEYOND,))),
    "sizes whose product overflows": (GraphError, lambda: dvm.zeros((2**40, 2**40))),
    "a value that is no number": (DTypeError, lambda: dvm.full((2,), None, dtype="float32")),
    "a value that the dtype cannot hold": (DTypeError, lambda: dvm.full((2,), 300, dtype="int8")),
    "arange of an array of floats": (ShapeError, lambda: dvm.arange(x())),
    "eye of text": (ShapeError, lambda: dvm.eye("abc")),
    "an axis that is too large": (ShapeError, lambda: x().sum(axis=2)),
    "an axis that is text": (ShapeError, lambda: dvm.softmax(x(), axis="rows")),
    "vecdot along no axis": (ShapeError, lambda: dvm.vecdot(x(), x(), axis=None)),
    "the transpose of a number": (DvmError, lambda: dvm.matrix_transpose(5)),
    "layer_norm of a number": (ShapeError, lambda: dvm.layer_norm(dvm.asarray(1.0))),
    "rms_norm of a number": (ShapeError, lambda: dvm.rms_norm(dvm.asarray(1.0))),
    "concat of no list": (ShapeError, lambda: dvm.concat(1.5)),
    "stack of nothing": (ShapeError, lambda: dvm.stack([])),
    "concat of shapes that differ": (ShapeError, lambda: dvm.concat([x(), dvm.zeros((2, 2))])),
    "matmul of shapes that do not fit": (ShapeError, lambda: x() @ x()),
    "shapes that do not broadcast": (ShapeError, lambda: x() + dvm.zeros((4,))),
    "a shift of floats": (DTypeError, lambda: dvm.bitwise_left_shift(x(), x())),
    "topk of a tuple": (ShapeError, lambda: dvm.topk(x(), (1, 2))),
    "topk of more than there are": (ShapeError, lambda: dvm.topk(x(), 4)),
    "unique of a size beyond 64 bits": (ShapeError, lambda: dvm.unique_values(x(), size=BEYOND)),
    "repeat by the wrong number of counts": (ShapeError, lambda: dvm.repeat(x(), dvm.arange(5), axis=0)),
    "scatter in a way that is a list": (GraphError, lambda: dvm.scatter(x(), dvm.arange(2), x()[0, :2], how=[])),
    "an equation that is no text": (GraphError, lambda: dvm.einsum(None, x())),
    "conv of a number": (DTypeError, lambda: dvm.conv(3.0, x())),
    "pad by a number that is a float": (ShapeError, lambda: dvm.pad(x(), 1.5)),
    "pad by too few pairs": (ShapeError, lambda: dvm.pad(x(), ((1, 1),))),
    "reshape to another number of elements": (ShapeError, lambda: x().reshape((4, 2))),
    "squeeze of a size that is not 1": (ShapeError, lambda: dvm.squeeze(x(), 0)),
    "nine dimensions": (ShapeError, lambda: dvm.zeros((1,) * 9)),
}  # fmt: skip


ONE = np.ones(1, np.float32)
MANY = 1 << 40  # elements: 4 TiB


def many(*shape: int) -> dvm.Array:
    """A view of one element."""
    return dvm.broadcast_to(dvm.asarray(ONE), shape)


TOO_LARGE: dict[str, Callable[[], object]] = {
    "asarray of a view": lambda: dvm.asarray(np.broadcast_to(np.float32(1), (MANY,))),
    "asarray of a view in another dtype": lambda: dvm.asarray(np.broadcast_to(np.float32(1), (MANY,)), "float64"),
    "zeros": lambda: dvm.zeros((MANY,)),
    "zeros whose product overflows": lambda: dvm.zeros((1 << 32, 1 << 32)),
    "zeros whose bytes overflow": lambda: dvm.zeros((1 << 62, 4)),
    "iota": lambda: dvm.arange(MANY),
    "eye": lambda: dvm.eye(1 << 20, 1 << 20),
    "broadcast_to": lambda: many(MANY),
    "broadcast_to whose product overflows": lambda: many(MANY, MANY),
    "sum": lambda: dvm.sum(many(MANY)),
    "sum along an axis": lambda: dvm.sum(many(1 << 20, 1 << 20), axis=0),
    "sum whose product overflows": lambda: dvm.sum(many(MANY, MANY)),
    "mean": lambda: dvm.mean(many(MANY) + 1),
    "max": lambda: dvm.max(many(1 << 20, 1 << 20)),
    "argmax": lambda: dvm.argmax(many(MANY)),
    "matmul": lambda: many(1 << 20, 1 << 20) @ many(1 << 20, 1 << 20),
    "matmul along many": lambda: many(1, MANY) @ many(MANY, 1),
    "matmul to many": lambda: many(1 << 21, 1) @ many(1, 1 << 21),
    "reshape": lambda: dvm.reshape(dvm.asarray(ONE), (MANY,)),
    "reshape whose product overflows": lambda: dvm.reshape(dvm.asarray(ONE), (1 << 32, 1 << 32)),
    "reshape whose product is 1 modulo 2^64": lambda: dvm.reshape(dvm.asarray(ONE), (1 << 63, 2)),
    "tile": lambda: dvm.tile(dvm.asarray(ONE), (MANY,)),
    "tile whose product overflows": lambda: dvm.tile(dvm.asarray(ONE), (1 << 32, 1 << 32)),
    "repeat": lambda: dvm.repeat(dvm.asarray(ONE), MANY),
    "pad": lambda: dvm.pad(dvm.asarray(ONE), ((0, MANY),)),
    "pad whose sum overflows": lambda: dvm.pad(dvm.asarray(ONE), ((1 << 62, 1 << 62),)),
    "concat": lambda: dvm.concat([many(MANY), many(MANY)]),
    "stack": lambda: dvm.stack([many(MANY)] * 3),
    "sort": lambda: dvm.sort(many(MANY)),
    "an outer product": lambda: many(1 << 21, 1) * many(1, 1 << 21),
    "einsum": lambda: dvm.einsum("i,j->ij", many(1 << 21), many(1 << 21)),
    "conv": lambda: dvm.conv(many(1, 1, 1 << 30), many(1, 1, 1 << 20)),
}  # fmt: skip


@pytest.mark.parametrize("what", TOO_LARGE)
def test_shapes_of_trillions_of_elements_are_typed_errors_at_once(what: str) -> None:
    with pytest.raises(DvmError, match=r"(?s)^\w+: .+got .+allowed"):
        np.asarray(TOO_LARGE[what]())
    assert float(x().sum()) == 15


def test_a_view_of_trillions_of_elements_can_be_read_in_part() -> None:
    part = np.asarray(many(MANY)[5:9])
    rows = np.asarray(dvm.take(many(MANY), dvm.asarray(np.array([MANY - 1, 3]))))
    assert np.array_equal(part, np.ones(4, np.float32)) and np.array_equal(rows, np.ones(2, np.float32))


@pytest.mark.parametrize("k", [1, 5, 70, 3000])
def test_matmul_of_views_of_one_element(k: int) -> None:
    for m, n in ((1, 1), (1, 4), (3, 1), (3, 4)):
        assert np.array_equal(np.asarray(many(m, k) @ many(k, n)), np.full((m, n), k, np.float32))


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_input_is_a_typed_error_and_the_next_call_works(what: str) -> None:
    kind, call = REFUSED[what]
    with pytest.raises(kind, match=r"(?s)^\w+: .+got .+allowed"):
        np.asarray(call())
    assert float(x().sum()) == 15
