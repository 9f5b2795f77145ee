"""Public functions called with what they cannot take: a typed error that says where, what, got and allowed; the next
call works."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest

import dvm_rt as dvm
from dvm_rt.errors import (
    MESSAGE_MAX,
    ClosedError,
    DeviceOutOfMemoryError,
    DeviceTrap,
    DTypeError,
    DvmError,
    GraphError,
    ShapeError,
)

X = np.arange(6, dtype=np.float32).reshape(2, 3)
HUGE, BEYOND = 2**62, 10**30


def x() -> dvm.Array:
    return dvm.asarray(X)


REFUSED: dict[str, tuple[type[DvmError], Callable[[], object]]] = {
    "asarray of nested lists of unequal length": (ShapeError, lambda: dvm.asarray([[1], [1, 2]])),
    "a shift that is an array of floats": (ShapeError, lambda: dvm.roll(x(), np.ones((1, 1)))),
    "tensordot of numbers": (ShapeError, lambda: dvm.tensordot(3, (0,))),
    "the outer product of a list of lists": (ShapeError, lambda: dvm.outer([[1.0]], x())),
    "rms_norm by a number that is none": (DTypeError, lambda: dvm.rms_norm(x(), eps=None)),
    "layer_norm by several numbers": (DTypeError, lambda: dvm.layer_norm(x(), eps=X)),
    "a correction that is text": (DTypeError, lambda: dvm.var(x(), correction="1")),
    "attention of a scale that is an array": (DTypeError, lambda: dvm.attention(x(), x(), x(), scale=X)),
    "conv by no array": (DTypeError, lambda: dvm.conv(dvm.zeros((1, 1, 3)), 3, 2**63 - 1)),
    "conv in groups that are no number": (ShapeError, lambda: dvm.conv(dvm.zeros((1, 1, 3)), dvm.ones((1, 1, 1)), groups={})),
    "conv_transpose by a list of unequal length": (ShapeError, lambda: dvm.conv_transpose(dvm.zeros((1, 1, 3)), [[1], []])),
    "switch among what is no sequence": (GraphError, lambda: dvm.switch(0, np.dtype("int16"), x())),
    "switch among a number": (GraphError, lambda: dvm.switch(0, x().sum(), x())),
    "an order of axes that is a number": (ShapeError, lambda: dvm.permute_dims(x(), 1.0)),
    "an order of axes that is a scalar": (ShapeError, lambda: dvm.permute_dims(x(), x().sum())),
    "a value that is an array": (DTypeError, lambda: dvm.full((2,), X)),
    "a value that is a date": (DTypeError, lambda: dvm.full((2,), np.array("2020-01-01", "datetime64[D]"))),
    "a number of batch dimensions that is a set": (ShapeError, lambda: dvm.gather_nd(x(), dvm.arange(1), batch_dims=set())),
    "the parts of a number": (ShapeError, lambda: dvm.unstack(1.5)),
    "a way that is an array": (GraphError, lambda: dvm.gelu(x(), X)),
    "a side that is an array": (GraphError, lambda: dvm.searchsorted(x()[0], x(), side=X)),
    "an indexing that is an array": (ShapeError, lambda: dvm.meshgrid(x()[0], indexing=X)),
    "a flag that is an array": (DTypeError, lambda: dvm.sum(x(), keepdims=X)),
    "another flag that is an array": (DTypeError, lambda: dvm.cumulative_sum(x(), axis=0, reverse=X)),
    "an order that is an array": (DTypeError, lambda: dvm.sort(x(), descending=X)),
    "repeats that together are beyond 64 bits": (DeviceOutOfMemoryError, lambda: dvm.repeat(x(), (2**62,))),
    "repeats that together are beyond memory": (DeviceOutOfMemoryError, lambda: dvm.repeat(x(), (2**42,))),
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
    "the place of the largest of nothing": (ShapeError, lambda: dvm.argmax(x()[:0], axis=0)),
    "a margin that wraps more than there is": (ShapeError, lambda: dvm.pad(x(), ((0, 3), (0, 0)), mode="wrap")),
    "axes in an array": (ShapeError, lambda: x().sum(axis=np.array([0, 1]))),
    "split into halves of a part": (ShapeError, lambda: dvm.split(x(), 1.5)),
    "split into nothing": (ShapeError, lambda: dvm.split(x(), None)),
    "tile by a number that is a float": (ShapeError, lambda: dvm.tile(x(), 2.0)),
    "tile by a number below 0": (ShapeError, lambda: dvm.tile(x(), (2, -1))),
    "roll by more numbers than axes": (ShapeError, lambda: dvm.roll(x(), (1, 2), axis=0)),
    "tensordot along no axes": (ShapeError, lambda: dvm.tensordot(x(), x(), axes=None)),
    "a window of halves": (ShapeError, lambda: dvm.max_pool(x()[None], 1.5)),
    "a margin of halves": (ShapeError, lambda: dvm.max_pool(x()[None], 2, padding=(0.5,))),
    "pad by too few pairs": (ShapeError, lambda: dvm.pad(x(), ((1, 1),))),
    "reshape to another number of elements": (ShapeError, lambda: x().reshape((4, 2))),
    "squeeze of a size that is not 1": (ShapeError, lambda: dvm.squeeze(x(), 0)),
    "nine dimensions": (ShapeError, lambda: dvm.zeros((1,) * 9)),
}  # fmt: skip


@dvm.function
def product(x: dvm.Array, w: dvm.Array) -> dvm.Array:
    return x @ w


def leaked() -> dvm.Array:
    kept: list[dvm.Array] = []

    @dvm.function
    def keep(x: dvm.Array) -> dvm.Array:
        kept.append(x * 2)
        return x

    keep(x())
    return kept[0]


def of_another_runtime() -> dvm.Array:
    with dvm.Runtime(inline=True):
        return x()


def traced(python: Callable[..., object], *args: object) -> object:
    return dvm.function(python)(*(args or (x(),)))


def two_runtimes(act: Callable[[dvm.Array], object]) -> object:
    with dvm.Runtime(inline=True):
        mine = x()
        with dvm.Runtime(inline=True):
            return act(mine)


class Slotted:
    __slots__ = ()

    @dvm.function
    def negated(self, x: dvm.Array) -> dvm.Array:
        return -x


async def awaited(x: dvm.Array) -> dvm.Array:
    return x


@dvm.kernel
def forgets_to_load(k: object, x: dvm.Array) -> None:
    k.store(x + 1)


@dvm.kernel
def forgets_to_store(k: object, x: dvm.Array) -> None:
    k.load(x)


MISUSED: dict[str, tuple[type[DvmError], Callable[[], object]]] = {
    "an array of objects": (DTypeError, lambda: dvm.asarray(np.array([1, None], object))),
    "an array of text": (DTypeError, lambda: dvm.asarray(np.array(["a"]))),
    "an array of dates": (DTypeError, lambda: dvm.asarray(np.array(["2020-01-01"], "M8[D]"))),
    "an array of complex numbers": (DTypeError, lambda: dvm.asarray(X.astype(np.complex64))),
    "an array of complex numbers as floats": (DTypeError, lambda: dvm.asarray(X.astype(np.complex64), "float32")),
    "an array of long doubles": (DTypeError, lambda: dvm.asarray(X.astype(np.longdouble))),
    "an array of records": (DTypeError, lambda: dvm.asarray(np.zeros(3, [("a", "f4")]))),
    "an array with a mask": (DTypeError, lambda: dvm.asarray(np.ma.masked_array([1.0, 2.0], [0, 1]))),
    "a whole number beyond 64 bits": (DTypeError, lambda: dvm.asarray(BEYOND)),
    "a generator": (DTypeError, lambda: dvm.asarray(i for i in range(3))),
    "a set": (DTypeError, lambda: dvm.asarray({1, 2})),
    "a class": (DTypeError, lambda: dvm.asarray(int)),
    "an array made by its class": (GraphError, lambda: dvm.Array(X)),
    "an operand that is text": (DTypeError, lambda: dvm.add(x(), "abc")),
    "dtypes without a common one": (DTypeError, lambda: dvm.asarray(np.uint64(1)) + dvm.asarray(np.int64(1))),
    "a copy of an array": (GraphError, lambda: copy.deepcopy(x())),
    "an array that is pickled": (GraphError, lambda: pickle.dumps(x())),
    "a number of several elements": (ShapeError, lambda: float(x())),
    "a condition of several elements": (ShapeError, lambda: bool(x() > 1)),
    "eval of a NumPy array": (GraphError, lambda: dvm.eval(X)),
    "a function that is none": (GraphError, lambda: dvm.function(3)),
    "a stacked function that is none": (GraphError, lambda: dvm.stacked(3)),
    "a kernel that is none": (GraphError, lambda: dvm.kernel(3)),
    "arguments that do not fit": (ShapeError, lambda: product(x(), x())),
    "arguments that do not fit another time": (ShapeError, lambda: (product(x(), x().T), product(x(), dvm.zeros((4, 2))))),
    "a static argument that has no hash": (GraphError, lambda: product(x(), {1, 2})),
    "a method of an object with slots": (GraphError, lambda: Slotted().negated(x())),
    "an async function": (GraphError, lambda: traced(awaited)),
    "a function that gives a generator": (GraphError, lambda: traced(lambda x: (x, [i for i in range(2)], (i for i in (x,))))),
    "a Python condition in a function": (GraphError, lambda: traced(lambda x: x if dvm.sum(x) > 0 else -x)),
    "a NumPy array of a traced one": (GraphError, lambda: traced(np.asarray)),
    "a loop over a size": (GraphError, lambda: traced(lambda x: [x[i] for i in range(x.shape[0])])),
    "a traced array that is read later": (GraphError, lambda: np.asarray(leaked())),
    "a traced array that is used later": (GraphError, lambda: x() + leaked()),
    "a traced array that is used in another function": (GraphError, lambda: traced(lambda x: x + leaked())),
    "a predicate of several elements": (ShapeError, lambda: traced(lambda x: dvm.cond(x > 0, lambda x: x, lambda x: -x, x))),
    "a predicate that is NaN": (DTypeError, lambda: dvm.cond(dvm.asarray(np.nan), lambda x: x, lambda x: -x, x())),
    "a branch that is no function": (GraphError, lambda: dvm.cond(dvm.asarray(True), x(), x())),
    "a case that is no function": (GraphError, lambda: dvm.switch(0, [x()], x())),
    "a body that is no function": (GraphError, lambda: dvm.scan(x(), x(), x())),
    "branches of two shapes": (ShapeError, lambda: traced(lambda x: dvm.cond(dvm.sum(x) > 0, lambda x: x, dvm.sum, x))),
    "branches of two structures": (
        GraphError, lambda: traced(lambda x: dvm.cond(dvm.sum(x) > 0, lambda x: x, lambda x: (x,), x))),
    "a state that changes its structure": (
        GraphError, lambda: traced(lambda x: dvm.while_loop(lambda x: dvm.sum(x) < 9, lambda x: (x, x), x))),
    "a state that changes its dtype": (
        DTypeError, lambda: traced(lambda x: dvm.while_loop(lambda x: dvm.sum(x) < 99, lambda x: x > 0, x))),
    "a loop beyond its limit": (
        DeviceTrap, lambda: traced(lambda x: dvm.while_loop(lambda x: dvm.sum(x) < 99, lambda x: x, x, limit=3))),
    "a loop beyond its limit, outside of a function": (
        DeviceTrap, lambda: dvm.while_loop(lambda x: dvm.sum(x) < 99, lambda x: x, x(), limit=3)),
    "an index out of range": (ShapeError, lambda: x()[5]),
    "an index array out of range": (DeviceTrap, lambda: dvm.take(x(), dvm.asarray([7]), axis=0)),
    "a mask of another shape": (ShapeError, lambda: x()[np.array([True, False, True])]),
    "a kernel that uses memory": (GraphError, lambda: forgets_to_load(x())),
    "a kernel that stores nothing": (GraphError, lambda: forgets_to_store(x())),
    "explain of a plain function": (GraphError, lambda: dvm.explain(lambda x: x, x())),
    "an array of a runtime that is gone": (ClosedError, lambda: of_another_runtime() + 1),
    "an array of a runtime that is gone, read": (ClosedError, lambda: np.asarray(of_another_runtime())),
    "an array of a runtime that is gone, given on": (ClosedError, lambda: product(of_another_runtime(), X.T)),
    "operands of two runtimes": (GraphError, lambda: two_runtimes(lambda mine: mine + x())),
    "arguments of two runtimes": (GraphError, lambda: two_runtimes(lambda mine: product(mine, x().T))),
    "a captured array of another runtime": (GraphError, lambda: two_runtimes(lambda mine: traced(lambda x: x + mine))),
    "calls that wait, of two runtimes": (GraphError, lambda: two_runtimes(lambda mine: dvm.stacked(lambda a, b: a
        + b)(mine, x()))),
    "a runtime entered after its end": (ClosedError, lambda: closed().__enter__()),
    "a runtime asked after its end": (ClosedError, lambda: closed().stats()),
    "a runtime of another processor": (DvmError, lambda: dvm.Runtime(inline=True, target="avx1024")),
    "a runtime whose folder is a file": (DvmError, lambda: dvm.Runtime(inline=True, cache=__file__)),
    "a runtime of more memory than there is": (DvmError, lambda: dvm.Runtime(inline=True, arena_bytes_max="8G")),
    "a request that is no function": (DvmError, lambda: asyncio.run(requested(3))),
    "a request without time": (DvmError, lambda: asyncio.run(requested(x, deadline_s=0))),
}  # fmt: skip


def closed() -> dvm.Runtime:
    runtime = dvm.Runtime(inline=True)
    runtime.close()
    return runtime


async def requested(function: object, **limits: float) -> object:
    async with dvm.Runtime(inline=True) as runtime:
        return await runtime.run(function, **limits)


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


@pytest.mark.parametrize("what", MISUSED)
def test_misuse_is_a_typed_error_and_the_next_call_works(what: str) -> None:
    kind, call = MISUSED[what]
    with pytest.raises(kind, match=r"(?s)^[\w ]+: .+got .+allowed"):
        np.asarray(call())
    assert np.array_equal(np.asarray(product(x(), x().T)), X @ X.T)


ODD: dict[str, np.ndarray] = {
    "strided": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-3],
    "read-only": np.frombuffer(X.tobytes(), np.float32),
    "unaligned": np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32),
    "big endian": X.astype(">f4"),
    "big endian whole numbers": np.arange(3, dtype=">i8"),
    "big endian halves": X.astype(">f2"),
    "no dimensions": np.array(3.0),
    "no elements": np.zeros((0, 3), np.int8),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_arrays_of_odd_kinds_come_back_as_they_are(what: str) -> None:
    given = ODD[what]
    back = np.asarray(dvm.asarray(given))
    assert back.dtype == given.dtype.newbyteorder("=") and np.array_equal(back, given)
    assert np.array_equal(np.asarray(dvm.asarray(given, "float64")), given.astype(np.float64))


def test_a_message_is_not_as_long_as_what_was_got() -> None:
    with pytest.raises(ShapeError, match="allowed -2 to 1$") as raised:
        dvm.softmax(x(), axis=np.arange(900.0))
    assert str(raised.value).startswith("array: softmax: axis, got array([") and len(str(raised.value)) < MESSAGE_MAX + 10


def test_counts_may_be_unsigned_and_differences_be_taken_of_nothing() -> None:
    assert np.array_equal(np.asarray(dvm.repeat(x(), np.array([2, 0], np.uint64), axis=0)), np.repeat(X, [2, 0], axis=0))
    assert dvm.diff(x(), n=2**62).shape == np.diff(X, n=4).shape == (2, 0)


def test_nothing_is_joined_and_split() -> None:
    """Empty parts of a join lie in one place; sizes of parts are found where another size is 0."""
    flat, empty = dvm.asarray(X[0]), dvm.zeros((4, 0, 0))
    joined = dvm.function(lambda x: (lambda y: (dvm.concat([y, dvm.square(y), y, x]), y))(dvm.abs(x[1:-1:-1])))
    apart = dvm.function(lambda x: dvm.split(dvm.pad(x, ((1, 1), (0, 0), (0, 0))), 3, axis=0)[1])
    for _ in range(2):
        assert [np.asarray(y).shape for y in joined(flat)] == [(3,), (0,)]
        assert apart(empty).shape == (2, 0, 0)


def test_what_is_no_operand_is_left_to_the_other_side() -> None:
    class Other:
        def __radd__(self, _: object) -> str:
            return "other"

    assert x() + Other() == "other"
    with pytest.raises(TypeError, match="unsupported operand"):
        x() + "abc"


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_input_is_a_typed_error_and_the_next_call_works(what: str) -> None:
    kind, call = REFUSED[what]
    with pytest.raises(kind, match=r"(?s)^\w+: .+got .+allowed"):
        np.asarray(call())
    assert float(x().sum()) == 15
