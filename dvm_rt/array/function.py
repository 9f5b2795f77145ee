"""@function: a Python function that is traced once a signature, and then is one launch for every shape.

The signature of a call: for each array its dtype, rank and which sizes are 1; the structure of tuples, lists and dicts; and
the value of everything static (ints, bools, strings, None, other hashable objects). Floats, NumPy arrays and those of
other libraries become inputs. Arrays that the Python code reaches in other ways are captured: their values belong to
the plan.

Where the Python code compares sizes and the answer differs from call to call, each way through it is traced, and has a plan.

A function whose sizes depend on values (`nonzero` without size=...), or change from one iteration of a loop to the next, has no
graph: its Python code runs with values on every call, which gives the same results in more launches (`walked_calls`).

The fast path: all arguments are computed arrays or floats, and an array or a plain tuple of arrays comes back; the
call itself is native (`_native.Dispatched`), finds the plan, launches it and makes the arrays. Where the way through the code, or
the plan, depends on the sizes, that is so from the second call with the same sizes on. Everything else goes the slow way,
`_call`, with the same result."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass

import numpy as np

from dvm_rt import _native
from dvm_rt.array import tracing
from dvm_rt.array.array import Array, asarray, computed, wrap
from dvm_rt.array.array import _wrap_node as wrap_node
from dvm_rt.array.exchange import is_foreign
from dvm_rt.array.session import UNPLANNED, Planned, Session, session
from dvm_rt.array.tracing import Trace, refuse_leaked
from dvm_rt.dtypes import DTYPES
from dvm_rt.errors import GraphError, ShapeError
from dvm_rt.graph.graph import Node
from dvm_rt.graph.symbols import Decision, Decisions, UndecidedError, deciding

class _Place:
    """What stands for an array in a tree."""

    def __repr__(self) -> str:
        return "array"


ARRAY = _Place()


@dataclass(slots=True, eq=False)
class Entry:
    """What a signature has become: the plan (none if nothing is computed), and how the results are put together.
    `short`: the fast path knows it."""

    planned: Planned | None
    tree: object
    exact: bool = False  # for one shape alone
    decided: bool = False  # for those sizes for which its Python code branches as it did
    short: bool = False


@dataclass(slots=True, eq=False)
class Branches:
    """A signature whose Python code branches on sizes: an entry for each way that it has taken."""

    ways: list[tuple[list[Decision], Entry]]

    def way(self, values: list[int]) -> Entry | None:
        """The entry for these sizes, if they took a way that is known."""
        return next((entry for decisions, entry in self.ways if all(d.holds(values) for d in decisions)), None)


NOT_FOR_ALL_SIZES = Entry(None, ())  # each shape is traced for itself
WALKED = Entry(None, ())  # no graph: sizes depend on values, or change from one iteration to the next


class Function(_native.Dispatched):
    """A traced Python function, as `function` makes it. `python`: what it was made of."""

    def __init__(self, python: Callable[..., object]) -> None:
        super().__init__()
        if not callable(python):
            raise GraphError(f"function: decorator, got {type(python).__name__}, allowed Python functions")
        self.python = python
        self._entries: weakref.WeakKeyDictionary[Session, dict[tuple, Entry | Branches]] = weakref.WeakKeyDictionary()
        self._name = getattr(python, "__qualname__", repr(python))
        self.__doc__, self.__name__, self.__wrapped__ = python.__doc__, getattr(python, "__name__", "function"), python

    def __get__(self, instance: object, owner: type) -> object:
        """As a method: a function of its own for each instance, which is static."""
        if instance is None:
            return self
        if not hasattr(instance, "__dict__"):
            raise GraphError(
                f"function: {self._name}: method, got one of an object with __slots__ alone, "
                "allowed objects with a __dict__, which keeps it"
            )
        bound = type(self)(self.python.__get__(instance, owner))
        instance.__dict__[self.__name__] = bound
        return bound

    def __repr__(self) -> str:
        return f"<dvm.function {self._name}>"

    # ---- the slow way ----

    def _call(self, args: tuple, kwargs: dict[str, object]) -> object:
        trace = tracing.current()
        leaves: list[object] = []
        tree = _flatten((args, kwargs), leaves)
        if trace is not None and any(_is_traced(x) for x in leaves):
            return self.python(*args, **kwargs)  # a function in a function: inlined
        of = _session_of(leaves)
        arrays = [x if isinstance(x, Array) else asarray(_host(x)) for x in leaves]
        entry = self._entry(of, tree, arrays, args, kwargs)
        if entry is NOT_FOR_ALL_SIZES:
            entry = self._entry(of, tree, arrays, args, kwargs, exact=True)
        if entry is WALKED:
            return self._walked(of, tree, arrays)
        if entry.planned is None:
            return _unflatten(entry.tree, iter(()))
        number = entry.planned.number
        try:
            tensors = of.call(entry.planned, [a._tensor for a in arrays])
        except ShapeError:  # what was traced for all sizes does not hold for these: a slice beyond the end, for example
            if entry.exact:
                raise
            entry = self._entry(of, tree, arrays, args, kwargs, exact=True)
            if entry is WALKED:
                return self._walked(of, tree, arrays)
            number = entry.planned.number
            tensors = of.call(entry.planned, [a._tensor for a in arrays])
        if number not in (UNPLANNED, entry.planned.number):  # cut smaller: no call may find the plan that it was
            self._forget_short(of)
        if entry.exact or entry.decided or not entry.short:
            self._shorten(of, entry, arrays, args, kwargs)
        return _unflatten(entry.tree, iter([wrap(t, of) for t in tensors]))

    def _walked(self, of: Session, tree: object, arrays: list[Array]) -> object:
        """The Python code with values: what it records between two of them is a launch."""
        of.counters["walked_calls"] += 1
        args, kwargs = _unflatten(tree, iter(arrays))
        outputs: list[object] = []
        tree = _flatten(self.python(*args, **kwargs), outputs)
        return _unflatten(tree, iter([x if isinstance(x, Array) else asarray(_host(x)) for x in outputs]))

    def _entry(self, of: Session, tree: object, arrays: list[Array], args: tuple, kwargs: dict[str, object],
               exact: bool = False) -> Entry:
        of.flush([a._node for a in arrays if a._tensor is None], "argument")
        rows = tuple([_row(computed(a, "argument")) for a in arrays])
        entries = self._entries.setdefault(of, {})
        shapes = tuple([a._tensor.shape for a in arrays]) if exact else None
        key = (tree, rows, shapes)
        try:
            entry = entries.get(key)
        except TypeError as error:
            raise GraphError(
                f"function: {self._name}: static argument, got {error}, "
                "allowed arrays, numbers, strings, None, what is hashable"
            ) from error
        if entry is None:
            if len(entries) >= of.plans_max:
                self._forget(of)
            with of.planning() as made:
                entry = self._entries.setdefault(of, {})[key] = self._traced(of, tree, rows, shapes)
                made += [entry.planned] if entry.__class__ is Entry and entry.planned else []
            if entry is WALKED:
                return entry
            if exact:
                of.counters["plans_for_one_shape"] += 1
        return entry if entry.__class__ is Entry else self._way(of, entry, tree, rows, arrays)

    def _way(self, of: Session, branches: Branches, tree: object, rows: tuple, arrays: list[Array]) -> Entry:
        """The entry of the way that the Python code takes for these sizes."""
        decisions = Decisions([size for a in arrays for size in a._tensor.shape if size != 1])
        entry = branches.way(decisions.values)
        if entry is None:
            if len(branches.ways) >= of.plans_max:
                self._forget(of)
                branches = self._entries.setdefault(of, {})[tree, rows, None] = Branches([])
            with of.planning() as made:
                entry = self._traced(of, tree, rows, None, decisions)
                made += [entry.planned] if entry.planned else []
            branches.ways.append((decisions.made, entry))
        return entry

    def _forget(self, of: Session) -> None:
        """Too many signatures: all are given up, and traced again when they come again."""
        for found in self._entries.pop(of).values():
            for entry in [found] if found.__class__ is Entry else [entry for _, entry in found.ways]:
                if entry.planned is not None:
                    of.forget(entry.planned)
        self._forget_dispatcher(of)

    def _traced(self, of: Session, tree: object, rows: tuple, shapes: tuple | None,
                decisions: Decisions | None = None) -> Entry | Branches:
        """The trace; where the code needs sizes that are numbers (an index array of how many coordinates?), none for all."""
        try:
            return self._trace(of, tree, rows, shapes, decisions)
        except tracing.NeedsValues:
            return WALKED
        except UndecidedError:
            return Branches([]) if decisions is None else NOT_FOR_ALL_SIZES
        except ShapeError:
            if shapes is not None:
                raise
            return NOT_FOR_ALL_SIZES

    def _trace(self, of: Session, tree: object, rows: tuple, shapes: tuple | None, decisions: Decisions | None) -> Entry:
        """Runs the Python code; `shapes`: for these sizes alone, else for all of them, or all that decide as these."""
        of.counters["traces"] += 1
        outputs: list[object] = []
        with Trace() as trace, deciding(decisions):
            if shapes is None:
                nodes = [trace.argument(DTYPES[dtype], rank, ones) for dtype, rank, ones in rows]
            else:
                nodes = [trace.fixed(DTYPES[row[0]], shape) for row, shape in zip(rows, shapes, strict=True)]
            args, kwargs = _unflatten(tree, iter([wrap_node(n, None) for n in nodes]))
            result = self.python(*args, **kwargs)
            out_tree = _flatten(result, outputs)
            _check_results(out_tree, self._name)
            nodes = [_output_node(x, trace, self._name) for x in outputs]
        if not nodes:
            return Entry(None, out_tree, shapes is not None)
        return Entry(of.plan(trace.graph(nodes), trace.captured), out_tree, shapes is not None, decisions is not None)

    def _shorten(self, of: Session, entry: Entry, arrays: list[Array], args: tuple, kwargs: dict[str, object]) -> None:
        """Lets later calls of this signature take the fast path, if they may: for all sizes, or for these."""
        plain = not kwargs and args and all(a.__class__ in (Array, float) for a in args) and any(a.__class__ is Array
            for a in args)
        single = entry.tree is ARRAY
        if not plain or entry.planned is None or entry.planned.number == UNPLANNED or not (single or _is_flat(entry.tree)):
            return
        rows, sizes = [_row(a._tensor) for a in arrays], None
        if entry.exact or entry.decided:
            sizes = [size for a in arrays for size in a._tensor.shape]
        self._dispatcher(of, of.stream, Array).add(rows, entry.planned.number, single, sizes)
        entry.short = True

    def _forget_short(self, of: Session) -> None:
        """All calls go the slow way again, once."""
        self._forget_dispatcher(of)
        for found in self._entries[of].values():
            for entry in [found] if found.__class__ is Entry else [entry for _, entry in found.ways]:
                entry.short = False


def function(python: Callable[..., object]) -> Function:
    """Makes a function that is traced once a signature, planned once, and then is one launch for every shape.

    Arguments: arrays, NumPy arrays and floats are inputs; tuples, lists and dicts of them too; every other value is static and
    has to be hashable (ints, bools, strings, None, objects): for another value the function is traced again. Dtypes, ranks and
    which sizes are 1 belong to the signature, sizes do not. Arrays that the Python code reaches otherwise are captured with the
    values that they have when it is traced, and so is all else that it reads (a global number, say). Results: a tree of arrays.

    While it is traced, arrays have no values: no Python branch may depend on them (dvm.cond, dvm.while_loop, dvm.where). Sizes
    are symbols; where Python code compares them, each way that it takes is traced for itself. Side effects of the Python code
    happen when it is traced, not when it is called again.
    Raises what its operators raise (ShapeError, DTypeError, from the line that caused it), GraphError for what cannot be
    traced, DeviceTrap where a value is needed (an index out of range, a loop beyond its limit)."""
    return Function(python)


def planned_for(called: Function, args: tuple, kwargs: dict[str, object]) -> tuple[Session, Planned, list[object]]:
    """(session, plan, tensors) that a call with these arguments uses; traces if need be. Raises GraphError for what
    has no plan."""
    if not isinstance(called, Function):
        raise GraphError(
            f"function: its first argument, got {type(called).__name__}, "
            "allowed what dvm.function, dvm.kernel or dvm.stacked made"
        )
    leaves: list[object] = []
    tree = _flatten((args, kwargs), leaves)
    of = _session_of(leaves)
    arrays = [x if isinstance(x, Array) else asarray(_host(x)) for x in leaves]
    entry = called._entry(of, tree, arrays, args, kwargs)
    if entry is NOT_FOR_ALL_SIZES:
        entry = called._entry(of, tree, arrays, args, kwargs, exact=True)
    if entry.planned is None:
        what = "is walked with values, so it has no plan" if entry is WALKED else "computes nothing"
        raise GraphError(
            f"function: {called._name}: {what}, got one, "
            "allowed functions that give arrays of sizes known before they run"
        )
    of.settle(entry.planned)
    return of, entry.planned, [a._tensor for a in arrays]


# ---- signatures ---------------------------------------------------------------------------------------------------


def _row(tensor: object) -> tuple[int, int, int]:
    ones = 0
    shape = tensor.shape
    for d, size in enumerate(shape):
        ones |= (size == 1) << d
    return tensor.dtype, len(shape), ones


def _is_traced(x: object) -> bool:
    return isinstance(x, Array) and x._tensor is None and x._node.data.__class__ is Trace


def _host(x: object) -> object:
    return np.float32(x) if isinstance(x, float) else x


def _session_of(leaves: list[object]) -> Session:
    for x in leaves:
        if isinstance(x, Array) and x._session is not None:
            return x._session
    return session()


def _output_node(x: object, trace: Trace, name: str) -> Node:
    """The node of a result; an array from outside, or a number, goes through the graph."""
    if _is_traced(x):
        if (taken := trace.take(x._node)) is not None:
            return taken
        raise refuse_leaked(x._node)
    return trace.capture(computed(x if isinstance(x, Array) else asarray(_host(x)), "captured"))


# ---- trees --------------------------------------------------------------------------------------------------------


def _flatten(value: object, leaves: list[object]) -> object:
    """The tree of a value, hashable, and its arrays (and floats) in order."""
    if isinstance(value, (Array, np.ndarray, np.generic, float)):
        leaves.append(value)
        return ARRAY
    if isinstance(value, (tuple, list)):
        return (type(value), tuple([_flatten(v, leaves) for v in value]))
    if isinstance(value, dict):
        return (dict, tuple([(k, _flatten(v, leaves)) for k, v in value.items()]))
    if is_foreign(value):
        leaves.append(value)
        return ARRAY
    return ("static", type(value), value)


def tree_text(tree: object) -> str:
    """A tree as Python would write it, with `array` for each array."""
    if tree is ARRAY:
        return "array"
    kind, parts = tree[0], tree[-1]
    if kind == "static":
        return repr(parts)
    if kind is dict:
        return "{" + ", ".join(f"{k!r}: {tree_text(v)}" for k, v in parts) + "}"
    inside = ", ".join(map(tree_text, parts))
    if kind is list:
        return f"[{inside}]"
    return f"{'' if kind is tuple else kind.__name__}({inside}{',' if kind is tuple and len(parts) == 1 else ''})"


def _check_results(tree: object, name: str) -> None:
    """Raises GraphError for results that have not run yet: what they would record, the trace does not see."""
    kind, parts = (None, ()) if tree is ARRAY else (tree[0], tree[-1])
    if kind == "static":
        if isinstance(parts, (Coroutine, Generator)):
            parts.close()
            raise GraphError(
                f"function: {name}: result, got a {type(parts).__name__}, "
                "allowed arrays and trees of them, from a function without async or yield"
            )
        return
    for part in parts:
        _check_results(part[1] if kind is dict else part, name)


def _is_flat(tree: tuple) -> bool:
    """Whether it is a plain tuple of arrays."""
    return tree[0] is tuple and all(part is ARRAY for part in tree[1])


def _unflatten(tree: object, arrays: object) -> object:
    if tree is ARRAY:
        return next(arrays)
    kind, parts = tree[0], tree[-1]
    if kind == "static":
        return parts
    if kind is dict:
        return {k: _unflatten(v, arrays) for k, v in parts}
    values = [_unflatten(part, arrays) for part in parts]
    if hasattr(kind, "_fields"):
        return kind(*values)
    return kind(values)
