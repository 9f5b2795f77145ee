"""Array: an immutable array of a runtime, lazy.

An array is in one of three states: it has a `_tensor` (its value is there, or on its way in the stream); or only a pending
`_node` (operators were recorded, a flush computes it); or a traced `_node` (inside of a @function: no value at all).
Operators record; whatever needs a value (`float(x)`, `if x:`, `np.asarray(x)`, `print(x)`) flushes and waits. Shapes are
checked when an operator is recorded: a ShapeError comes from the line that caused it."""

from __future__ import annotations

import reprlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Never

import numpy as np

from dvm_rt import dtypes
from dvm_rt.array import exchange, tracing
from dvm_rt.array.session import Pending, Session, leaf, session
from dvm_rt.array.tracing import Trace
from dvm_rt.dtypes import DEFAULT_FLOAT, DEFAULT_INT, DType, bfloat16, bool_, float32
from dvm_rt.errors import DeviceOutOfMemoryError, DTypeError, GraphError, ShapeError, UnsupportedOperatorError
from dvm_rt.graph.graph import NO_FACTS, Node, apply, reachable
from dvm_rt.graph.operators import OPERATORS, Operator, number_of
from dvm_rt.graph.shapes import Entry, axis_numbers
from dvm_rt.graph.symbols import Dim, Shape, Size

Number = bool | int | float
Axes = int | tuple[int, ...] | None
DTypeLike = DType | str | type | np.dtype
CONSTANT, DIMENSION = OPERATORS["constant"], OPERATORS["dimension"]
CONSTANTS_MAX = 1024
_PAIRS = {  # elementwise operators of two operands of one floating dtype: whether the result is a bool
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), False),
    **dict.fromkeys(("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"), True),
}  # fmt: skip
_constants: dict[tuple[Number, str], Node] = {}
_new = object.__new__


class Array:
    """An array. Made by dvm.asarray and the functions of this package, never directly.

    dtype: one of dvm_rt.dtypes. Operands of different dtypes are promoted as in the Array API standard; Python numbers take the
    dtype of the array beside them (`dtypes.promote`, `dtypes.with_number`)."""

    __slots__ = ("_tensor", "_node", "_session", "__weakref__")
    __array_ufunc__ = None  # NumPy leaves operators with an Array to us
    __hash__ = None

    def __init__(self, *_: object) -> None:
        raise GraphError("array: Array: making one, got a call of the class, allowed dvm.asarray(value)")

    def __reduce_ex__(self, _: int) -> Never:
        raise GraphError(
            "array: copy, pickle: memory of a runtime, got an array of one, "
            "allowed np.asarray(x), which can be copied and written"
        )

    # ---- what it is ----

    @property
    def shape(self) -> Shape:
        """Sizes; inside of a @function those may be symbolic."""
        if self._tensor is not None:
            return self._tensor.shape
        node = self._node
        return node.data.facts.resolve_shape(node.shape) if node.data.__class__ is Trace else node.shape

    @property
    def dtype(self) -> DType:
        return dtypes.DTYPES[self._tensor.dtype] if self._tensor is not None else self._node.dtype

    @property
    def ndim(self) -> int:
        return len(self._tensor.shape) if self._tensor is not None else len(self._node.shape)

    @property
    def size(self) -> int | Dim:
        """Number of elements."""
        total: int | Dim = 1
        for n in self.shape:
            total = total * n
        return total

    @property
    def device(self) -> str:
        """Where it is computed."""
        return "cpu"

    def to_device(self, device: str, /, *, stream: object = None) -> Array:
        """The array itself: there is one device."""
        if device != "cpu":
            raise UnsupportedOperatorError(f"array: to_device: device, got {device!r}, allowed cpu")
        return self

    def __array_namespace__(self, /, *, api_version: str | None = None) -> ModuleType:
        """The module of the Array API standard."""
        from dvm_rt import xp

        return xp

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("array: len: no dimensions, got shape (), allowed at least one dimension")
        return self.shape[0].__index__()

    def __repr__(self) -> str:
        if _is_traced(self):
            return f"Array(traced, shape={self.shape}, dtype={self.dtype})"
        return f"Array({np.array2string(self.__array__(), separator=', ', prefix='Array(')}, dtype={self.dtype})"

    def __format__(self, spec: str) -> str:
        """One element: as its Python number; else as str() says it."""
        return format(self.item(), spec) if spec and self.size == 1 else format(str(self), spec)

    # ---- its value ----

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """The value as a NumPy array: a read-only view of the arena, which it keeps alive; waits. NumPy has no bfloat16: that
        becomes float32."""
        tensor = computed(self, "read")
        view = self._session.stream.read(tensor, self._session.wait_s)
        if tensor.dtype == bfloat16.code:
            view = dtypes.from_bits(view).astype(np.float32)
        if dtype is not None and np.dtype(dtype) != view.dtype:
            if copy is False:
                raise ValueError(f"array: __array__: conversion without a copy, got {dtype}, allowed {view.dtype}")
            return view.astype(dtype)
        return view.copy() if copy else view

    def __dlpack__(
        self, *, stream: object = None, max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None, copy: bool | None = None,
    ) -> object:  # fmt: skip
        """The value for other libraries, bfloat16 as such; waits. Read-only memory of the arena, which it keeps alive, for
        whoever asks for DLPack 1.0 or later; else, and with copy=True, a copy. Raises BufferError."""
        tensor = computed(self, "dlpack")
        view = self._session.stream.read(tensor, self._session.wait_s)
        return exchange.exported(view, self.dtype, max_version, dl_device, copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's numbers of the CPU."""
        return exchange.CPU

    def item(self) -> Number:
        """The one element as a Python number; waits."""
        tensor = computed(self, "item") if self._tensor is None else self._tensor
        try:
            value = self._session.stream.item(tensor, self._session.wait_s)
        except ShapeError:
            if self.size != 1:
                raise ShapeError(f"array: item: shape, got {self.shape}, allowed one element") from None
            raise
        return value if tensor.dtype != bfloat16.code else float(dtypes.from_bits(np.uint16(value)))

    def __dvm_launch__(self) -> None:
        """What Runtime.run does with arrays that a function returns: they are on their way when it waits."""
        computed(self, "run")

    def tolist(self) -> list | Number:
        """The value as nested lists; waits."""
        return self.__array__().tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in "iu":
            raise TypeError(f"array: index: dtype, got {self.dtype}, allowed whole numbers")
        return int(self.item())

    # ---- operators ----

    def __add__(self, other: Array | Number) -> Array:
        return _binary("add", self, other)

    def __radd__(self, other: Array | Number) -> Array:
        return _binary("add", other, self)

    def __sub__(self, other: Array | Number) -> Array:
        return _binary("subtract", self, other)

    def __rsub__(self, other: Array | Number) -> Array:
        return _binary("subtract", other, self)

    def __mul__(self, other: Array | Number) -> Array:
        return _binary("multiply", self, other)

    def __rmul__(self, other: Array | Number) -> Array:
        return _binary("multiply", other, self)

    def __truediv__(self, other: Array | Number) -> Array:
        return _binary("divide", self, other)

    def __rtruediv__(self, other: Array | Number) -> Array:
        return _binary("divide", other, self)

    def __floordiv__(self, other: Array | Number) -> Array:
        return _binary("floor_divide", self, other)

    def __rfloordiv__(self, other: Array | Number) -> Array:
        return _binary("floor_divide", other, self)

    def __mod__(self, other: Array | Number) -> Array:
        return _binary("remainder", self, other)

    def __rmod__(self, other: Array | Number) -> Array:
        return _binary("remainder", other, self)

    def __pow__(self, exponent: Array | Number) -> Array:
        return power(self, exponent)

    def __rpow__(self, base: Array | Number) -> Array:
        return power(base, self)

    def __matmul__(self, other: Array) -> Array:
        return _binary("matmul", self, other)

    def __rmatmul__(self, other: Array) -> Array:
        return _binary("matmul", other, self)

    def __neg__(self) -> Array:
        return record("negative", (self,))

    def __pos__(self) -> Array:
        return self

    def __abs__(self) -> Array:
        return record("abs", (self,))

    def __eq__(self, other: Array | Number) -> Array:  # type: ignore[override]
        return _binary("equal", self, other)

    def __ne__(self, other: Array | Number) -> Array:  # type: ignore[override]
        return _binary("not_equal", self, other)

    def __lt__(self, other: Array | Number) -> Array:
        return _binary("less", self, other)

    def __le__(self, other: Array | Number) -> Array:
        return _binary("less_equal", self, other)

    def __gt__(self, other: Array | Number) -> Array:
        return _binary("greater", self, other)

    def __ge__(self, other: Array | Number) -> Array:
        return _binary("greater_equal", self, other)

    def __and__(self, other: Array | bool | int) -> Array:
        return _binary("bitwise_and", self, other)

    def __or__(self, other: Array | bool | int) -> Array:
        return _binary("bitwise_or", self, other)

    def __xor__(self, other: Array | bool | int) -> Array:
        return _binary("bitwise_xor", self, other)

    def __lshift__(self, other: Array | int) -> Array:
        return _binary("bitwise_left_shift", self, other)

    def __rlshift__(self, other: Array | int) -> Array:
        return _binary("bitwise_left_shift", other, self)

    def __rshift__(self, other: Array | int) -> Array:
        return _binary("bitwise_right_shift", self, other)

    def __rrshift__(self, other: Array | int) -> Array:
        return _binary("bitwise_right_shift", other, self)

    def __invert__(self) -> Array:
        return record("bitwise_invert", (self,))

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    # ---- reductions ----

    def sum(self, axis: Axes = None, dtype: DTypeLike | None = None, keepdims: bool = False) -> Array:
        return _total("sum", self, axis, dtype, keepdims)

    def prod(self, axis: Axes = None, dtype: DTypeLike | None = None, keepdims: bool = False) -> Array:
        return _total("prod", self, axis, dtype, keepdims)

    def mean(self, axis: Axes = None, keepdims: bool = False) -> Array:
        return _reduce("mean", floating(self), axis, keepdims)

    def max(self, axis: Axes = None, keepdims: bool = False) -> Array:
        return chosen("max", self, axis, keepdims)

    def min(self, axis: Axes = None, keepdims: bool = False) -> Array:
        return chosen("min", self, axis, keepdims)

    def any(self, axis: Axes = None, keepdims: bool = False) -> Array:
        return _reduce("any", self.astype(bool_), axis, keepdims)

    def all(self, axis: Axes = None, keepdims: bool = False) -> Array:
        return _reduce("all", self.astype(bool_), axis, keepdims)

    # ---- views ----

    @property
    def T(self) -> Array:  # noqa: N802
        """A matrix with its axes exchanged."""
        if self.ndim != 2:
            raise ShapeError(f"array: T: rank, got {self.ndim}, allowed 2; use .mT or permute_dims")
        return self.mT

    @property
    def mT(self) -> Array:  # noqa: N802
        """The last two axes exchanged."""
        rank = self.ndim
        if rank < 2:
            raise ShapeError(f"array: mT: rank, got {rank}, allowed 2 and more")
        return record("permute_dims", (self,), ((*range(rank - 2), rank - 1, rank - 2),))

    def reshape(self, *shape: int | Dim | Sequence[int | Dim]) -> Array:
        """The same elements in row-major order in another shape; one size may be -1."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return record("reshape", (self,), (shape_of(sizes, "reshape"),))

    def __getitem__(self, key: object) -> Array:
        return _indexed(self, key if isinstance(key, tuple) else (key,))

    def __setitem__(self, key: object, value: object) -> None:
        """x[key] = value: x becomes another array; what was computed from it, or is still to be, keeps the old values."""
        from dvm_rt.array import movement

        self._become(movement.updated(self, key, value))

    def _become(self, other: Array) -> None:
        node = self._node
        if node is not None and node.data.__class__ is Pending:
            node.data = Pending(NOBODY, node.data.size)
        self._tensor, self._node, self._session = other._tensor, other._node, other._session
        if self._node is not None and self._node.data.__class__ is Pending:
            self._node.data.array = weakref.ref(self)

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self)))

    def astype(self, dtype: DTypeLike) -> Array:
        """The array in another dtype."""
        wanted = dtype_of(dtype)
        return self if wanted is self.dtype else record("astype", (self,), (wanted.name,))


class NoOperandError(DTypeError, TypeError):
    """What is neither an array nor a number: an operator of Python asks the other side then."""


class _Gone:
    """What nobody holds."""


NOBODY = weakref.ref(_Gone())  # dead from the start


# ---- making arrays ------------------------------------------------------------------------------------------------


def wrap(tensor: object, of: Session) -> Array:
    """The array of a tensor."""
    array = _new(Array)
    array._tensor, array._node, array._session = tensor, None, of
    return array


def _wrap_node(node: Node, of: Session | None) -> Array:
    array = _new(Array)
    array._tensor, array._node, array._session = None, node, of
    return array


def asarray(value: object, dtype: DTypeLike | None = None) -> Array:
    """An array of the current runtime with a copy of the value, which may be strided, read-only, unaligned or of
    another byte order; arrays of other libraries come through DLPack. Python floats become float32, Python ints
    int64. Raises DTypeError, ShapeError, DeviceOutOfMemoryError, ClosedError."""
    if isinstance(value, Array):
        return value if dtype is None else value.astype(dtype)
    if isinstance(value, Dim):
        trace = tracing.current()
        if trace is None:
            raise GraphError(f"array: asarray: a symbolic size outside of its function, got {value}, allowed numbers")
        name = (DEFAULT_INT if dtype is None else dtype_of(dtype)).name
        return _wrap_node(_traced(apply(DIMENSION, (), (value, name), trace.facts), trace), None)
    if exchange.is_foreign(value):
        host, found = exchange.imported(value)
        array = wrap((of := session()).stream.asarray(host, found.code), of)
        return array if dtype is None else array.astype(dtype)
    host = value if isinstance(value, (np.ndarray, np.generic)) else _from_python(value)
    if host.__class__ is not np.ndarray and hasattr(host, "mask"):
        raise DTypeError("array: asarray: value, got a masked array, allowed arrays without a mask: x.filled(...) gives one")
    of, wanted = session(), None if dtype is None else dtype_of(dtype)
    try:
        if wanted is None:
            return wrap(of.stream.asarray(np.asarray(host)), of)
        _check_kind(host)
        return wrap(of.stream.asarray(dtypes.to_storage(np.asarray(host), wanted), wanted.code), of)
    except DTypeError:
        _check_kind(host)
        return wrap(of.stream.asarray(host.astype(host.dtype.newbyteorder("="))), of)
    except MemoryError:  # NumPy's: a view that repeats elements becomes as large as it says
        raise DeviceOutOfMemoryError(
            f"array: asarray: bytes, got {host.size * host.itemsize}, "
            "allowed what this process can have"
        ) from None


def _check_kind(host: np.ndarray) -> None:
    """Raises DTypeError for what is neither numbers nor bools of a dtype that is here."""
    if host.dtype.kind not in "biuf" or host.dtype.itemsize > 8:
        raise DTypeError(f"array: asarray: dtype, got {host.dtype}, allowed {', '.join(dtypes.BY_NAME)}")


def _from_python(value: object) -> np.ndarray:
    try:
        host = np.asarray(value)
    except ValueError as error:
        raise ShapeError("array: asarray: nested sequences, got ones of unequal length, allowed equal ones") from error
    if host.dtype.kind not in "biuf":
        got = f"{type(value).__name__} of {host.dtype}" if isinstance(value,
            (list, tuple)) else f"{type(value).__name__} {reprlib.repr(value)}"
        raise DTypeError(
            f"array: asarray: value, got {got}, "
            "allowed numbers of 64 bits, bools, arrays and nested sequences of them"
        )
    return host.astype(np.float32) if host.dtype == np.float64 and isinstance(value, (float, list, tuple)) else host


def shape_of(sizes: Sequence[int | Dim], where: str) -> Shape:
    """A shape from what the user gave for one."""
    return tuple([n if isinstance(n, Dim) else whole(n, f"{where}: size") for n in sizes])


def is_several(value: object) -> bool:
    """Whether the user gave several numbers, not one."""
    return isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def whole(value: object, what: str, least: int | None = None) -> int:
    """A whole number that the user gave. Raises ShapeError for everything else, and for one below `least`."""
    try:
        number = value.__index__()
    except (AttributeError, TypeError):
        number = None
    if number is None or (least is not None and number < least) or abs(number) >= 1 << 63:
        allowed = "whole numbers of 64 bits" if least is None else f"whole numbers from {least}"
        raise ShapeError(f"array: {what}, got {reprlib.repr(value)}, allowed {allowed}")
    return number


def real(value: object, what: str) -> float:
    """A number that the user gave. Raises DTypeError for everything else."""
    try:
        return value.__float__()
    except (AttributeError, OverflowError, TypeError, ValueError):
        raise DTypeError(f"array: {what}, got {reprlib.repr(value)}, allowed numbers") from None


def flag(value: object, what: str) -> bool:
    """A yes or no that the user gave. Raises DTypeError for what is neither."""
    try:
        return bool(value)
    except (TypeError, ValueError):
        raise DTypeError(f"array: {what}, got {reprlib.repr(value)}, allowed True and False") from None


def dtype_of(dtype: DTypeLike) -> DType:
    """The DType of whatever names one."""
    if isinstance(dtype, DType):
        return dtype
    if dtype is float:
        return float32
    if isinstance(dtype, str) and dtype in dtypes.BY_NAME:
        return dtypes.BY_NAME[dtype]
    try:
        if dtype is not None:  # NumPy takes it for float64
            return dtypes.from_numpy(dtype, "array")
    except (TypeError, ValueError):
        pass
    raise DTypeError(f"array: dtype, got {reprlib.repr(dtype)}, allowed {', '.join(dtypes.BY_NAME)}")


# ---- recording ----------------------------------------------------------------------------------------------------


def record(name: str, operands: Sequence[Array | Number | Node], attributes: tuple = ()) -> Array:
    """The array that an operator gives. Raises ShapeError, DTypeError, UnsupportedOperatorError at once."""
    row = OPERATORS[name]
    trace = tracing.current()
    nodes = tuple([_node_of(x) for x in operands])
    if trace is not None and (any([n.data is trace for n in nodes]) or _has_symbol(attributes) or _taken(nodes, trace)):
        return _record_traced(row, nodes, attributes, trace)
    of = _session_of(operands)
    node = apply(row, nodes, attributes, NO_FACTS)
    size = 1
    for n in nodes:
        if n.data.__class__ is Pending:
            size += n.data.size
    return _pending(node, of, size)


def _taken(nodes: tuple[Node, ...], trace: Trace) -> bool:
    """Whether some of them are of a trace around this one."""
    return trace.around is not None and any(n.data.__class__ is Trace for n in nodes)


def _record_traced(row: Operator, nodes: tuple[Node, ...], attributes: tuple, trace: Trace) -> Array:
    inputs = tuple([n if n.data is trace or n.operator is CONSTANT else _captured(n, trace) for n in nodes])
    if trace.recorder is not None:
        return _wrap_node(trace.recorder.apply(row, inputs, attributes), None)
    return _wrap_node(_traced(apply(row, inputs, attributes, trace.facts), trace), None)


def _traced(node: Node, trace: Trace) -> Node:
    node.data = trace
    return node


def _captured(node: Node, trace: Trace) -> Node:
    if node.data.__class__ is Trace:
        if (taken := trace.take(node)) is not None:
            return taken
        raise tracing.refuse_leaked(node)
    if node.data.__class__ is Pending:
        session().flush([node], "captured")
    return trace.capture(node.data)


def _node_of(x: Array | Number | Node) -> Node:
    """The node of an operand."""
    if x.__class__ is not Array:
        return x
    node = x._node
    if node is None:
        node = x._node = leaf(x._tensor)
    return node


def _session_of(operands: Sequence[Array | Node]) -> Session:
    found: Session | None = None
    for x in operands:
        if x.__class__ is Array and (x._session is not found or found is None):
            if x._session is None:
                raise tracing.refuse_leaked(x._node)
            if found is not None:
                raise GraphError(
                    "array: operands: runtimes, got arrays of two, "
                    "allowed arrays of one; dvm.asarray(np.asarray(x)) copies"
                )
            found = x._session
    return found or session()


def _has_symbol(attribute: object) -> bool:
    if isinstance(attribute, tuple):
        return any(map(_has_symbol, attribute))
    return isinstance(attribute, Dim)


def _check_size(node: Node, of: Session) -> None:
    """Flushes what is too large to wait; the sizes are upper bounds, so they are counted first."""
    count = sum(n.data.__class__ is Pending for n in reachable((node,)))
    if count > of.pending_max:
        of.flush([node], "size limit")
    else:
        node.data.size = count


def promoted(where: str, given: Sequence[object]) -> list[Array | Node]:
    """The operands of an operator in one dtype: arrays promoted, Python numbers and sizes in the dtype of the arrays beside
    them; without an array, the first becomes one. Raises DTypeError, NoOperandError."""
    first = given[0]
    if first.__class__ is Array and all([x.__class__ is Array and x.dtype is first.dtype for x in given]):
        return list(given)
    operands = [asarray(x) if isinstance(x, (np.ndarray, list)) or x.__class__ is not Array and exchange.is_foreign(x) else x
                for x in given]
    if not any(x.__class__ is Array for x in operands):
        operands[0] = asarray(_operand(operands[0], where))
    dtype = common_dtype(where, operands)
    return [x.astype(dtype) if x.__class__ is Array else _as_number(x, dtype, where) for x in operands]


def common_dtype(where: str, operands: Sequence[object]) -> DType:
    """The dtype that arrays and Python numbers have together."""
    dtype: DType | None = None
    for x in operands:
        if x.__class__ is Array:
            found = x.dtype if dtype is None else dtypes.promote(dtype, x.dtype)
            if found is None:
                raise DTypeError(
                    f"array: {where}: dtypes, got {dtype} and {x.dtype}, "
                    "allowed ones with a common one; x.astype(...) converts"
                )
            dtype = found
    for x in operands:
        if x.__class__ is not Array:
            dtype = dtypes.with_number(dtype, _operand(x, where))
    return dtype


def _operand(x: object, where: str) -> Number:
    """A Python number as it counts for the dtype; a symbolic size counts as a whole number."""
    if isinstance(x, Dim):
        return 0
    if isinstance(x, (bool, np.bool_)):
        return bool(x)
    if isinstance(x, (int, np.integer)):
        return int(x)
    if isinstance(x, (float, np.floating)):
        return float(x)
    raise NoOperandError(f"array: {where}: operand, got {type(x).__name__}, allowed arrays and numbers")


def _as_number(x: object, dtype: DType, where: str) -> Array | Node:
    return asarray(x, dtype) if isinstance(x, Dim) else _constant(number_of(x, dtype, f"array: {where}"), dtype.name)


def floating(x: Array) -> Array:
    """The array, integers and bools as the default float."""
    return x if x.dtype.kind == "f" else x.astype(DEFAULT_FLOAT)


def _constant(value: Number, dtype: str) -> Node:
    """The node of a number; numbers that are used again and again are one node (but for the zeros, which are two)."""
    node = _constants.get((value, dtype))
    if node is None:
        node = apply(CONSTANT, (), (value, dtype), NO_FACTS)
        if value and len(_constants) < CONSTANTS_MAX:
            _constants[value, dtype] = node
    return node


def _binary(name: str, x: object, y: object) -> Array:
    array = _recorded_pair(name, x, y)
    if array is not None:
        return array
    try:
        return binary(name, x, y)
    except NoOperandError:
        return NotImplemented


def _recorded_pair(name: str, x: object, y: object) -> Array | None:
    """The same as `binary` for what is recorded most: elementwise, one floating dtype, outside of traces. None: not
    such a case."""
    of = x._session if x.__class__ is Array else y._session
    if of is None or name not in _PAIRS:
        return None
    a = (x._node or _node_of(x)) if x.__class__ is Array else None
    b = (y._node or _node_of(y)) if y.__class__ is Array else None
    dtype = (a or b).dtype
    if dtype.kind != "f":
        return None
    size = 1
    if a is None:
        if x.__class__ is not float:
            return None
        a = _constant(x, dtype.name)
    elif a.data.__class__ is Pending:
        size += a.data.size
    if b is None:
        if y.__class__ is not float:
            return None
        b = _constant(y, dtype.name)
    elif b.dtype is not dtype or y._session is not of:
        return None
    elif b.data.__class__ is Pending:
        size += b.data.size
    row = OPERATORS[name]
    shape = a.shape if b.shape == a.shape or not b.shape else row.shape(NO_FACTS, row.where, (a.shape, b.shape))
    return _pending(Node(row, (a, b), (), shape, bool_ if _PAIRS[name] else dtype), of, size)


def _pending(node: Node, of: Session, size: int) -> Array:
    """The array of a node that is recorded; computed at once if too much waits by then."""
    array = _new(Array)
    array._tensor, array._node, array._session = None, node, of
    node.data = Pending(weakref.ref(array), size)
    if size > of.pending_max:
        _check_size(node, of)
    return array


def binary(name: str, x: object, y: object) -> Array:
    """An operator of two operands that are promoted."""
    if x.__class__ is Array and y.__class__ is Array and x.dtype is y.dtype:
        a, b = x, y
    elif x.__class__ is Array and y.__class__ is float and x.dtype.kind == "f":
        return record(name, (x, _constant(y, x.dtype.name)))
    else:
        a, b = promoted(name, (x, y))
    if name == "divide" and (a if a.__class__ is Array else b).dtype.kind != "f":
        a, b = promoted(name, [floating(i) if i.__class__ is Array else j for i, j in ((a, x), (b, y))])
    return record(name, (a, b))


def power(x: Array | Number, exponent: Array | Number) -> Array:
    """x to a power: that of a number is repeated multiplication where it is whole and small, and so is that of integers."""
    if isinstance(exponent, Array):
        a, b = promoted("pow", (x, exponent))
        if exponent.dtype.kind in "iu" and b.dtype.kind in "iu":
            return _whole_power_function()(a if a.__class__ is Array else asarray(x, b.dtype), b)
        return record("power", (a, b))
    wanted = dtypes.with_number(x.dtype, _operand(exponent, "pow"))
    return record("pow", (x.astype(wanted),), (float(exponent),))


@cache
def _whole_power_function() -> Callable[[Array, Array], Array]:
    """One launch, whose loop the device counts."""
    from dvm_rt.array.function import function  # it is made of what is made of this

    return function(_whole_power)


def _whole_power(x: Array, exponent: Array) -> Array:
    """By squaring, as long as an exponent has bits, modulo 2^bits as every product. Of a negative one the whole part: 1 and -1
    have one, everything else gives 0."""
    from dvm_rt.array.control import while_loop  # it is made of what is made of this

    one, zero = (_constant(n, x.dtype.name) for n in (1, 0))
    wraps = exponent.dtype.kind == "u"
    left = exponent if wraps else record("where", (exponent >= 0, exponent, exponent & 1))

    def step(result: Array, factor: Array, left: Array) -> tuple[Array, Array, Array]:
        return record("where", ((left & 1) != 0, result * factor, result)), factor * factor, left >> 1

    start = record("where", (x == x, one, one)) * record("where", (left == left, one, one))
    result, _, _ = while_loop(lambda result, factor, left: (left != 0).any(), step, (start, x, left), limit=64)
    return result if wraps else record("where", ((exponent >= 0) | (x == 1) | (x == -1), result, zero))


def _reduce(name: str, x: Array, axis: Axes, keepdims: bool) -> Array:
    return record(name, (x,), (axis_numbers(f"array: {name}", axis, x.ndim), flag(keepdims, f"{name}: keepdims")))


def chosen(name: str, x: Array, axis: Axes, keepdims: bool) -> Array:
    """A reduction that nothing has no result of, such as the largest. Raises ShapeError; in a @function at the call."""
    axes = axis_numbers(f"array: {name}", axis, x.ndim)
    for i in axes:
        demand_at_least(x.shape[i], 1, f"array: {name}: sizes that are reduced")
    return record(name, (x,), (axes, flag(keepdims, f"{name}: keepdims")))


def demand_at_least(size: Size, least: int, where: str) -> None:
    """Where a symbolic size is smaller at a call of the function that is being traced, it is traced for these sizes alone, and
    what it records says what is wrong. Not in branches and loops: it is not known whether they run."""
    trace = tracing.current()
    if isinstance(size, Dim) and trace is not None and trace.around is None:
        trace.facts.demand_at_least(size, least, where)


def _total(name: str, x: Array, axis: Axes, dtype: DTypeLike | None, keepdims: bool) -> Array:
    """A sum or product: of integers in the default integer dtype, unless another one is asked for."""
    return _reduce(name, x.astype(dtypes.sum_dtype(x.dtype) if dtype is None else dtype), axis, keepdims)


# ---- values -------------------------------------------------------------------------------------------------------


def computed(array: Array, reason: str) -> object:
    """The tensor of an array, computed if it was pending. Raises GraphError for a traced array."""
    if array._tensor is None:
        node = array._node
        if node.data.__class__ is Trace:
            raise tracing.refuse_value(reason)
        if node.data.__class__ is Pending:
            array._session.flush([node], reason)
        array._tensor = node.data
    return array._tensor


def eval(*arrays: Array) -> None:
    """Computes arrays, all in as few launches as their runtimes allow, and waits until they are there. Raises what
    went wrong with them: DeviceTrap, DeviceTimeoutError, DeviceOutOfMemoryError; GraphError for what is no array, or
    has no value."""
    _check_eval(arrays)
    _launch(arrays)
    for array in arrays:
        array._session.stream.read(array._tensor, array._session.wait_s)


LOOKS_MAX = 16  # at how much the device has to do: others may always give it more


async def aeval(*arrays: Array) -> None:
    """As eval, without blocking the event loop. Calls of stacked functions that wait go on waiting while the device has more than
    one launch to do: meanwhile other tasks may add theirs. Then, if no task is left that may, they are run, so that the device
    has something to do while tasks look at the values before; inline nothing would be gained by it."""
    _check_eval(arrays)
    sessions = {a._session for a in arrays} if len(arrays) > 1 else [a._session for a in arrays]
    waiting = [(of, of.runs) for of in sessions if of.calls_wait]
    if waiting:
        import asyncio  # not before there is a loop

        await asyncio.sleep(0)
    for of, runs in waiting:
        looks = 0
        while looks < LOOKS_MAX and of.calls_wait and of.runs == runs and of.stream.launched - of.stream.done > 1:
            await of.runtime.reached(of.stream.launched - 1)
            looks += 1
        if not of.runtime.inline and of.runs == runs and await of.runtime.all_are_here() and of.runs == runs:
            of.run_calls()
    _launch(arrays)
    for of in sessions:
        seq = max([a._tensor.seq for a in arrays if a._session is of])
        if not waiting or of.stream.done < seq or not of.runtime.inline:
            await of.runtime.reached(seq, turn=not waiting)
    for array in arrays:
        array._session.stream.read(array._tensor, array._session.wait_s)


def _check_eval(arrays: Sequence[Array]) -> None:
    for array in arrays:
        if not isinstance(array, Array):
            raise GraphError(f"array: eval: argument, got {type(array).__name__}, allowed arrays")
        if _is_traced(array):
            raise tracing.refuse_value("eval")


def _launch(arrays: Sequence[Array]) -> None:
    pending = [a for a in arrays if a._tensor is None]
    if not pending:
        return
    for of in {a._session for a in pending}:
        of.flush([a._node for a in pending if a._session is of], "eval")
    for array in pending:
        computed(array, "eval")


def _is_traced(array: Array) -> bool:
    return array._tensor is None and array._node.data.__class__ is Trace


# ---- indexing -----------------------------------------------------------------------------------------------------


def _indexed(x: Array, key: tuple) -> Array:
    """Indexing with slices, whole numbers, None and `...`; arrays of whole numbers or bools as in NumPy."""
    if any(isinstance(k, (Array, np.ndarray, list, bool, np.bool_)) for k in key):
        from dvm_rt.array import movement  # it is made of the functions that are made of this

        return movement.indexed(x, key)
    given = sum(k is not None and k is not Ellipsis for k in key)
    if sum(k is Ellipsis for k in key) > 1 or given > x.ndim:
        raise ShapeError(f"array: index: entries, got {given}, allowed {x.ndim} for shape {x.shape} and one ...")
    full: list[object] = []
    for k in key:
        full += [slice(None)] * (x.ndim - given) if k is Ellipsis else [k]
    entries = tuple([_entry(k) for k in full if k is not None])
    out = record("index", (x,), (entries,)) if any(e != (None, None, None) for e in map(_comparable, entries)) else x
    axes, position = [], 0
    for k in full:
        if k is None:
            axes.append(position)
        position += k is None or isinstance(k, slice)
    return record("expand_dims", (out,), (tuple(axes),)) if axes else out


def _entry(k: object) -> Entry:
    if isinstance(k, slice):
        return tuple([_bound(b) for b in (k.start, k.stop, k.step)])
    bound = _bound(k)
    if bound is None or isinstance(k, (bool, np.bool_)):
        raise ShapeError(f"array: index: entry, got {reprlib.repr(k)}, allowed whole numbers, slices, None and ...")
    return bound


def _bound(b: object) -> int | Dim | None:
    if b is None or isinstance(b, Dim):
        return b
    if isinstance(b, float) or not hasattr(b, "__index__"):
        raise ShapeError(f"array: index: entry, got {reprlib.repr(b)}, allowed whole numbers, slices, None and ...")
    return b.__index__()


def _comparable(entry: Entry) -> object:
    return tuple(b if b is None else "bound" for b in entry) if isinstance(entry, tuple) else "index"
