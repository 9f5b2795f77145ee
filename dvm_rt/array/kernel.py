"""@kernel: kernels written by hand, section by section.

    @dvm.kernel
    def normalised_product(k, x, w):
        with k.section("norm"):
            rows = k.load(x)
            rows = rows / k.sqrt(k.mean(k.square(rows)) + 1e-6)
        with k.section("product"):
            k.store(k.matmul(rows, k.load(w)))

The body is traced, as that of a `function` is: once a signature, for all sizes. Rules:

- arguments are memory: `k.load` reads one, `k.store` gives a result of the kernel, in the order of the calls;
- each section is exactly one kernel of the plan: sections never fuse with each other, and one that cannot be one kernel is
  a GraphError that says why. What lies between sections is a section without a name;
- what one section makes and another reads goes through the workspace; views of arguments belong to no section;
- `sequence` (which is how sections are anyway) and `parallel` may hold sections and each other; in `parallel`, no part may
  read what another one makes;
- reductions run along rows (axis -1) and keep them, unless an axis is named;
- all of it is one launch. Called inside of a `function`, the sections stay what they are in the plan of that function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Never

import numpy as np

from dvm_rt.array import functions, tracing
from dvm_rt.array.array import Array, asarray
from dvm_rt.array.array import _wrap_node as wrap_node
from dvm_rt.array.function import Function
from dvm_rt.array.tracing import Trace
from dvm_rt.dtypes import DType
from dvm_rt.errors import GraphError
from dvm_rt.graph.graph import Node, apply
from dvm_rt.graph.operators import OPERATORS, Lowering, Operator
from dvm_rt.graph.symbols import Shape

SECTION = OPERATORS["section"]
OUTSIDE = 0  # the section of what a kernel is called with
NUMBERED = (Lowering.LEAF, Lowering.VIEW)  # they compute nothing


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """An argument of a kernel: what `k.load` reads."""

    array: Array

    @property
    def shape(self) -> Shape:
        return self.array.shape

    @property
    def dtype(self) -> DType:
        return self.array.dtype

    def _refuse(self, *_: object) -> Never:
        raise GraphError(
            f"kernel: argument of {self.dtype}{list(self.shape)}: use, got an operator on it, "
            "allowed k.load(..) of it first: it is memory"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = _refuse
    __neg__ = __pow__ = __getitem__ = __lt__ = __le__ = __gt__ = __ge__ = __array__ = _refuse


@dataclass(frozen=True, slots=True)
class Section:
    """Where a section lies: for each block that it is in (number, whether parallel, which part of it)."""

    number: int
    name: str
    path: tuple[tuple[int, bool, int], ...]


class Kernel:
    """What the body of a kernel works with; its first argument."""

    def __init__(self, name: str, trace: Trace) -> None:
        self._name, self._trace = name, trace
        self._stored: list[Array] = []
        self._blocks: list[list] = []  # [number, parallel, parts so far]
        self._section = self._opened("")
        self._inside = False
        self._made: dict[Node, Section] = {}
        self._marks: dict[Node, Node] = {}

    # ---- memory ----

    def load(self, memory: Memory) -> Array:
        """The value of an argument."""
        if not isinstance(memory, Memory):
            raise self._error("load", f"memory, got {type(memory).__name__}, allowed arguments of the kernel")
        return memory.array

    def store(self, value: Array) -> None:
        """A result of the kernel: its next one."""
        if not isinstance(value, Array) or value._node is None or value._node.data is not self._trace:
            raise self._error("store", f"value, got {type(value).__name__}, allowed what the kernel loaded or computed")
        node = value._node
        if node not in self._made:  # as it was loaded: a copy, in this section
            node = self.apply(OPERATORS["copy"], (node,), ())
        self._stored.append(wrap_node(self._mark(node), None))

    # ---- sections ----

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """What is computed in here is one kernel."""
        if self._inside:
            raise self._error(
                "section", f"place, got {name!r} inside of {self._section.name!r}, "
                "allowed sections beside each other"
            )
        if not name:
            raise self._error("section", "name, got '', allowed some text")
        self._section, self._inside = self._opened(name), True
        try:
            yield
        finally:
            self._inside = False
            self._section = self._opened("")

    @contextmanager
    def _block(self, parallel: bool) -> Iterator[None]:
        if self._inside:
            raise self._error(
                "section", f"place, got a block inside of {self._section.name!r}, "
                "allowed sections inside of blocks"
            )
        self._begin_part()
        self._blocks.append([self._number(), parallel, 0])
        self._section = self._opened("")
        try:
            yield
        finally:
            self._blocks.pop()
            self._section = self._opened("")

    def sequence(self) -> object:
        """Sections one after the other."""
        return self._block(False)

    def parallel(self) -> object:
        """Parts, sections or blocks, none of which reads what another one makes."""
        return self._block(True)

    def _opened(self, name: str) -> Section:
        self._begin_part()
        return Section(self._number(), name, tuple([tuple(block) for block in self._blocks]))

    def _begin_part(self) -> None:
        if self._blocks:
            self._blocks[-1][2] += 1

    def _number(self) -> int:
        self._trace.section_count += 1
        return self._trace.section_count

    # ---- functions ----

    def _reduced(self, name: str, x: Array, axis: int, keepdims: bool) -> Array:
        return getattr(x, name)(axis=axis, keepdims=keepdims)

    def sum(self, x: Array, axis: int = -1, keepdims: bool = True) -> Array:
        """Sum of each row."""
        return self._reduced("sum", x, axis, keepdims)

    def max(self, x: Array, axis: int = -1, keepdims: bool = True) -> Array:
        """Largest of each row."""
        return self._reduced("max", x, axis, keepdims)

    def min(self, x: Array, axis: int = -1, keepdims: bool = True) -> Array:
        """Smallest of each row."""
        return self._reduced("min", x, axis, keepdims)

    def mean(self, x: Array, axis: int = -1, keepdims: bool = True) -> Array:
        """Mean of each row."""
        return self._reduced("mean", x, axis, keepdims)

    def __getattr__(self, name: str) -> Callable[..., Array]:
        """The elementwise functions, `where`, `matmul` and the like: those of `dvm_rt`."""
        if name in FUNCTIONS:
            return getattr(functions, name)
        raise AttributeError(
            f"kernel: {name}: not there, "
            f"allowed load, store, section, sequence, parallel, sum, max, min, mean, {', '.join(FUNCTIONS)}"
        )

    # ---- what the trace records ----

    def apply(self, row: Operator, inputs: tuple[Node, ...], attributes: tuple) -> Node:
        """A node of the section that is open; what other sections made is read through marks."""
        sections = [self._made.get(n) for n in inputs]
        free = row.lowering in NUMBERED and all(s is None for s in sections)
        for section in sections:
            if section is not None:
                self._check_order(section)
        read = tuple([n if s is None or s is self._section else self._mark(n) for n, s in zip(inputs, sections, strict=True)])
        node = apply(row, read, attributes, self._trace.facts)
        node.data = self._trace
        if not free:
            self._made[node] = self._section
        return node

    def _mark(self, node: Node) -> Node:
        mark = self._marks.get(node)
        if mark is None:
            section = self._made[node]
            mark = self._marks[node] = apply(SECTION, (node,), (section.number, section.name or self._name), self._trace.facts)
            mark.data = self._trace
            self._made[mark] = section
            self._marks[mark] = mark
        return mark

    def _check_order(self, other: Section) -> None:
        """Raises GraphError where two parts of a parallel block read each other."""
        for mine, theirs in zip(self._section.path, other.path, strict=False):
            if mine != theirs:
                if mine[0] == theirs[0] and mine[1]:
                    names = [s.name or "what lies between the sections" for s in (self._section, other)]
                    raise self._error(
                        "parallel", f"parts, got {names[0]} that reads what {names[1]} makes, "
                        "allowed parts that do not read each other"
                    )
                return

    def _error(self, where: str, what: str) -> GraphError:
        return GraphError(f"kernel: {self._name}: {where}: {what}")


FUNCTIONS = (*functions.UNARY, *functions.BINARY, "where", "astype", "clip", "pow", "gelu", "matmul", "softmax",
             "permute_dims", "reshape")


class _Body:
    """The body as a function of arrays, which gives what was stored."""

    def __init__(self, python: Callable[..., None]) -> None:
        self.python = python
        self.__name__, self.__qualname__, self.__doc__ = python.__name__, python.__qualname__, python.__doc__

    def __call__(self, *args: object, **kwargs: object) -> object:
        trace = tracing.current()
        k = Kernel(self.__name__, trace)
        if trace.recorder is not None:
            raise k._error("body", "call, got one inside of another kernel, allowed inside of functions")
        trace.recorder = k
        try:
            result = self.python(k, *(_memory(x, trace) for x in args), **{n: _memory(x, trace) for n, x in kwargs.items()})
        finally:
            trace.recorder = None
        if result is not None:
            raise k._error("body", f"result, got {type(result).__name__}, allowed None: k.store gives results")
        if not k._stored:
            raise k._error("body", "results, got none, allowed one k.store or more")
        return k._stored[0] if len(k._stored) == 1 else tuple(k._stored)


def _memory(value: object, trace: Trace) -> object:
    """An argument of a body; what the function around computes is marked as made outside of all sections."""
    if isinstance(value, (tuple, list)):
        return type(value)(_memory(v, trace) for v in value)
    if not isinstance(value, (Array, np.ndarray, np.generic, float)):
        return value
    array = value if isinstance(value, Array) else asarray(np.float32(value) if isinstance(value, float) else value)
    if array._tensor is None and _computes(array._node):
        node = apply(SECTION, (array._node,), (OUTSIDE, ""), trace.facts)
        node.data = trace
        array = wrap_node(node, None)
    return Memory(array)


def _computes(node: Node) -> bool:
    while node.operator.lowering is Lowering.VIEW:
        node = node.inputs[0]
    return bool(node.inputs)


def kernel(python: Callable[..., None]) -> Function:
    """Makes a kernel of a body `python(k, *arguments)`, in which each section is exactly one kernel, and all of it is one launch.

    Arguments of the body are memory: `k.load` reads one, `k.store` gives a result, in the order of the calls. `with
    k.section(name)` begins a kernel; `with k.parallel()` and `k.sequence()` hold sections. `k.sum`, `k.max`, `k.min` and `k.mean`
    run along rows and keep them; `k.matmul` and elementwise functions are those of dvm_rt. Traced once a signature, as a
    `function` is. Raises GraphError for a section that cannot be one kernel, and says why. `explain`, `dump` and
    `das` show it."""
    if not callable(python):
        raise GraphError(f"kernel: decorator, got {type(python).__name__}, allowed Python functions")
    return Function(_Body(python))
