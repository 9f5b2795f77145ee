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


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_input_is_a_typed_error_and_the_next_call_works(what: str) -> None:
    kind, call = REFUSED[what]
    with pytest.raises(kind, match=r"(?s)^\w+: .+got .+allowed"):
        np.asarray(call())
    assert float(x().sum()) == 15
