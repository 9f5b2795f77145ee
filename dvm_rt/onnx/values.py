"""What flows between ONNX nodes: dvm arrays, and values on the host.

A value is one of: an `Array` (traced, pending or there); a NumPy array, whose elements are known while a graph is traced; a
NumPy array of objects that holds sizes (ints and symbolic `Dim`s, taken for int64) or strings; a tuple (a sequence); None
(an absent optional). Shape arithmetic happens in the NumPy kinds, so it costs no round trip and holds for all shapes."""

from __future__ import annotations

import weakref

import ml_dtypes
import numpy as np

import dvm_rt as dvm
from dvm_rt.array import tracing
from dvm_rt.array.array import Array, _is_traced, _wrap_node
from dvm_rt.array.session import Session, session
from dvm_rt.dtypes import DType, bfloat16, from_numpy
from dvm_rt.errors import DTypeError
from dvm_rt.graph.graph import apply
from dvm_rt.graph.operators import OPERATORS
from dvm_rt.graph.symbols import Dim, Size

Value = object  # see the module
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_lifted: weakref.WeakKeyDictionary[Session, dict[int, tuple[np.ndarray, Array]]] = weakref.WeakKeyDictionary()


class ValueNeeded(Exception):
    """A traced array's elements are asked for: the graph has to be cut before that."""

    def __init__(self, array: Array) -> None:
        super().__init__("a value that is not known while tracing")
        self.array = array
        self.name: str | None = None
        self.index = -1


class Untraceable(Exception):
    """A node that has to run by itself, outside of any trace."""

    index = -1


class HostKey:
    """A host value as a static argument of a function: equal bytes are one signature."""

    __slots__ = ("array", "_key")

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        elements = tuple(array.ravel().tolist()) if array.dtype == object else array.tobytes()
        self._key = (array.dtype.str, array.dtype.name, array.shape, elements)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostKey) and self._key == other._key


def is_symbolic(value: Value) -> bool:
    """Whether a value holds sizes that are not known."""
    return isinstance(value, np.ndarray) and value.dtype == object and any(isinstance(v, Dim) for v in value.ravel())


def sizes(values: object) -> np.ndarray:
    """Sizes as a host value: int64, or objects where some are symbolic."""
    array = np.empty(len(values), object)
    array[:] = values
    return settled(array)


def settled(value: object) -> np.ndarray:
    """A host value in its plainest form: objects that are all whole numbers become int64."""
    array = np.asarray(value)
    if array.dtype == object and array.size and all(isinstance(v, (int, np.integer)) for v in array.ravel()):
        return array.astype(np.int64)
    return array


def numpy_dtype(value: Value) -> np.dtype:
    """The element type as NumPy names it."""
    if isinstance(value, Array):
        return BFLOAT16 if value.dtype is bfloat16 else value.dtype.numpy
    return np.dtype(np.int64) if is_symbolic(value) else value.dtype


def dvm_dtype(dtype: np.dtype) -> DType:
    """The element type as dvm names it. Raises DTypeError."""
    return bfloat16 if dtype == BFLOAT16 else from_numpy(dtype, "onnx")


def shape_of(value: Value) -> tuple[Size, ...]:
    return tuple(value.shape)


def lift(value: Value, keep: bool = False) -> Array:
    """A value as an array of the current runtime; `keep`: a constant of the model, which is copied there once."""
    if isinstance(value, Array):
        return value
    if value is None or isinstance(value, tuple):
        raise DTypeError(f"onnx: value, got {type(value).__name__}, allowed tensors")
    if is_symbolic(value):
        flat = [_number(v) for v in value.ravel()]
        return dvm.reshape(dvm.stack(flat), value.shape) if value.ndim else flat[0]
    if value.size == 1 and value.ndim <= 8 and (number := _exact_number(value)) is not None:
        return _constant(number, value)
    if not keep:
        return _copied(value)
    cache = _lifted.setdefault(session(), {})
    found = cache.get(id(value))
    if found is None or found[0] is not value:
        found = cache[id(value)] = (value, _copied(value))
    return found[1]


def _constant(number: bool | int | float, value: np.ndarray) -> Array:
    """A number of the graph, which kernels hold in their words."""
    dtype, trace = dvm_dtype(value.dtype), tracing.current()
    if trace is None:
        return dvm.full(value.shape, number, dtype=dtype)
    node = apply(OPERATORS["constant"], (), (number, dtype.name), trace.facts)
    node.data = trace
    array = _wrap_node(node, None)
    return dvm.broadcast_to(array, value.shape) if value.ndim else array


def _number(size: Size) -> Array:
    return dvm.asarray(size).astype("int64") if isinstance(size, Dim) else _constant(int(size), np.zeros((), np.int64))


def _exact_number(value: np.ndarray) -> bool | int | float | None:
    """The one element as a Python number, where a constant of a graph holds it exactly."""
    kind = value.dtype.kind
    if kind == "b":
        return bool(value.item())
    if kind == "f" and value.dtype.itemsize <= 4:
        return float(value.item())
    return None  # whole numbers may be indices: those are memory


def _copied(value: np.ndarray) -> Array:
    if value.dtype == BFLOAT16:
        return dvm.asarray(value.astype(np.float32)).astype(bfloat16)
    dvm_dtype(value.dtype)
    return dvm.asarray(np.asarray(value, order="C"))


def fetch(value: Value) -> Value:
    """A value on the host; waits for it. Raises ValueNeeded inside of a trace."""
    if isinstance(value, tuple):
        return tuple(fetch(v) for v in value)
    if not isinstance(value, Array):
        return value
    if _is_traced(value):
        raise ValueNeeded(value)
    if value.dtype is bfloat16:
        return np.asarray(value.astype("float32")).astype(BFLOAT16)
    return np.asarray(value)
