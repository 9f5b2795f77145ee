"""@stacked: a function whose calls wait for each other, so that equal ones are one launch.

A call returns at once, with arrays that are pending. As soon as a value is needed that one of them gives, all calls that wait are
run, level by level: calls of one function on arguments of the same shapes are laid one behind the other and are one launch
(nodes of a tree that have the same height; a step of each of several requests). Rules:

- the bytes are those of the calls alone: only graphs whose operators treat the rows each for itself are stacked
  (graph/stacking.py), and the arithmetic of an operator does not depend on how many rows there are;
- the rows are the first axis of the first argument. Of the others those are stacked that have an axis of that size, along the
  first such axis, the same for all of one rank, with which the graph can be stacked; the rest (weights) is shared: calls
  with the same arrays in their places go together;
- what a launch made for several calls stays together: the next step reads it as it lies, however large it is (a KV cache), and
  only who looks at the part of one call alone has it copied;
- where a value could stop a launch (an index out of range, unless it is clipped to the rows that there are), the launch of all is
  looked at before its results are given on, so their caller waits for it; if it failed, each call is run alone, and only those
  fail that fail alone;
- whatever is not a call on arrays that give arrays is a call of a plain @function.

Recording, and running what was recorded, is native (bind_calls.cpp); here is decided what may be stacked and how it
is launched."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, product

from dvm_rt import _native, dtypes
from dvm_rt.array import tracing
from dvm_rt.array.array import Array
from dvm_rt.array.function import ARRAY, NOT_FOR_ALL_SIZES, WALKED, Branches, Entry, Function, _flatten, _is_flat, _session_of
from dvm_rt.array.session import CALL, Session
from dvm_rt.config import integer
from dvm_rt.errors import DvmError, ShapeError
from dvm_rt.graph.graph import Graph, Node
from dvm_rt.graph.operators import OPERATORS
from dvm_rt.graph.stacking import NotStackable, may_trap, stacked_outputs
from dvm_rt.graph.symbols import evaluate


Axes = tuple[int | None, ...]
SLICE, SHARED = OPERATORS["index"], -1
ATTEMPTS_MAX = 4  # choices of axes that are tried


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """How calls of one signature are run: alone by `single`, several by `together`, along these axes."""

    single: Entry
    together: Entry | None  # none: `why`
    axes: Axes = ()
    outputs: Axes = ()
    traps: bool = False
    why: str = ""


class Stacked(Function):
    """A traced function whose calls wait for each other; see the module."""

    def __init__(self, python: Callable[..., object]) -> None:
        super().__init__(python)
        self._recorders: dict[int, object] = {}  # id of a session -> _native.Recorder
        self._stacks: weakref.WeakKeyDictionary[Session, dict[tuple, Stack]] = weakref.WeakKeyDictionary()

    def __call__(self, *args: object, **kwargs: object) -> object:
        if not kwargs and args and args[0].__class__ is Array:
            record = self._recorders.get(id(args[0]._session))
            if record is not None:
                result = record(args)
                if result is not None:
                    return result
            if tracing.current() is None and all(a.__class__ is Array and a._session is args[0]._session for a in args):
                return self._recorded(args)
        return self._call(args, kwargs)

    def why_not(self, *args: Array) -> str:
        """Why calls with such arguments are not stacked; empty: they are."""
        of = _session_of(list(args))
        of.flush([a._node for a in args if a._tensor is None], "argument")
        stack = self._stack(of, args)
        return stack.why if stack is not None else "it is no function of arrays alone that gives arrays for all sizes"

    def _recorded(self, args: tuple) -> object:
        """The way of a call whose shapes are new, or whose arguments wait for something else than calls."""
        of = args[0]._session
        if len(of.call_log(Array)) >= integer("calls_max"):
            of.run_calls()
        waiting = [a._node for a in args if a._tensor is None and not _lies(a._node)]
        of.flush(waiting, "argument")
        record = self._recorders.get(id(of))
        if waiting and record is not None and (result := record(args)) is not None:
            return result
        if not self._tell(of, args):
            return self._call(args, {})
        result = self._recorders[id(of)](args)
        return self._call(args, {}) if result is None else result

    def _tell(self, of: Session, args: tuple) -> bool:
        """Tells the recorder what calls on these shapes give. False: they are not recorded."""
        stack = self._stack(of, args)
        if stack is None:
            return False
        graph, captured = stack.single.planned.graph, stack.single.planned.captured
        try:
            values = graph.symbol_values([a.shape for a in args] + [t.shape for t in captured])
        except ShapeError:
            return False  # these sizes have a plan of their own, or none: the call itself says
        axes = stack.outputs or (None,) * len(graph.outputs)
        outputs = [_output(node, values, axis) for node, axis in zip(graph.outputs, axes, strict=True)]
        recorder = self._recorders.get(id(of))
        if recorder is None:
            recorder = self._recorders[id(of)] = _native.Recorder(of.call_log(Array))
            weakref.finalize(of, self._recorders.pop, id(of), None)
        arguments = [(a.dtype.code, a.shape) for a in args]
        given = [SHARED if axis is None else axis for axis in stack.axes or (None,) * len(args)]
        recorder.add(arguments, given, outputs, stack.together is not None, stack.single.tree is ARRAY, _runner(of, stack))
        return True

    def _stack(self, of: Session, args: tuple) -> Stack | None:
        """None: no function of arrays that gives arrays, for all sizes."""
        rows, choices = tuple([_row(a) for a in args]), _choices(args)
        stacks = self._stacks.setdefault(of, {})
        key = (rows, choices)
        if key not in stacks:
            with of.planning():
                stacks[key] = self._make_stack(of, args, rows, choices)
        return stacks[key]

    def _make_stack(self, of: Session, args: tuple, rows: tuple, choices: tuple[Axes, ...]) -> Stack | None:
        tree, why = _flatten((args, {}), []), "its first argument has no rows"
        single = self._entry_of(of, tree, rows)
        if single.planned is None or not (single.tree is ARRAY or _is_flat(single.tree)):
            return None
        for axes in choices:
            several = [(d, rank, ones if a is None else ones & ~(1 << a)) for (d, rank, ones), a in zip(rows, axes, strict=True)]
            together = self._entry_of(of, tree, tuple(several))
            if together.planned is None or together.tree != single.tree:
                why = "for several rows it is another function"
                continue
            graph: Graph = together.planned.graph
            try:
                outputs = stacked_outputs(graph, axes + (None,) * len(together.planned.captured))
                return Stack(single, together, axes, outputs, may_trap(graph))
            except NotStackable as reason:
                why = str(reason)
        return Stack(single, None, why=why)

    def _entry_of(self, of: Session, tree: object, rows: tuple) -> Entry:
        """The entry of a signature, for all sizes."""
        entries = self._entries.setdefault(of, {})
        entry = entries.get((tree, rows, None))
        if entry is None:
            entry = entries[tree, rows, None] = self._traced(of, tree, rows, None)
        return NOT_FOR_ALL_SIZES if entry is WALKED or entry.__class__ is Branches else entry


def stacked(python: Callable[..., object]) -> Stacked:
    """Makes a function of arrays whose calls return at once, wait for each other until a value is needed, and then
    are few launches.

    Calls on arguments of equal shapes, with the same shared arrays (weights) in the same places, are one launch: the rows are the
    first axis of the first argument, and of each other argument the first axis of that size. Every call has the bytes that it has
    alone; only those fail that fail alone. `why_not(*args)` says why such calls are not stacked. Everything else is as with
    `function`."""
    return Stacked(python)


def _choices(args: tuple) -> tuple[Axes, ...]:
    """Along which axes the arguments may be stacked, the likeliest first: axes as long as the first one of the first
    argument, the same for all arguments of one rank."""
    if not args[0].shape:
        return ()
    rows, ranks = args[0].shape[0], list(dict.fromkeys(len(a.shape) for a in args))
    places = [[i for i in range(rank) if any(len(a.shape) == rank and a.shape[i] == rows for a in args)] or [None]
              for rank in ranks]
    places[0] = [0]
    found = []
    for chosen in islice(product(*places), ATTEMPTS_MAX):
        axis = dict(zip(ranks, chosen, strict=True))
        axes = [axis[len(a.shape)] for a in args]
        found.append(tuple([i if i is not None and a.shape[i] == rows else None for i, a in zip(axes, args, strict=True)]))
    return tuple(found)


def _lies(node: Node) -> bool:
    """Whether the recorder reads it as it lies: a result of a call, or x[.., start:stop]."""
    return node.operator is CALL or (node.operator is SLICE and all(entry.__class__ is tuple for entry in node.attributes[0]))


def _row(array: Array) -> tuple[int, int, int]:
    ones = 0
    for d, size in enumerate(array.shape):
        ones |= (size == 1) << d
    return array.dtype.code, len(array.shape), ones


def _output(node: Node, values: dict[int, int], axis: int | None) -> tuple:
    """What the recorder wants to know of an output."""
    shape = tuple([n if n.__class__ is int else evaluate(n, values) for n in node.shape])
    dtype: dtypes.DType = node.dtype
    return dtype.code, shape, SHARED if axis is None else axis, dtype, (-1, shape, dtype.name)


def _runner(of: Session, stack: Stack) -> Callable[[list, bool], tuple | None]:
    """Launches a call, or several in one."""
    session = weakref.ref(of)  # which keeps the log, which keeps this

    def run(tensors: list, several: bool) -> tuple | None:
        of = session()
        if not several:
            return of.call(stack.single.planned, tensors)
        try:
            made = of.call(stack.together.planned, tensors)
            if stack.traps:
                for tensor in made:
                    of.stream.read(tensor)
        except DvmError:
            of.counters["stacks_taken_apart"] += 1
            return None
        return made

    return run

