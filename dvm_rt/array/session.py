"""What belongs to one runtime: its stream, the plans of lazy arrays by the structure of their graph, counters.

A flush turns the nodes that some arrays wait for into one plan and one launch. Rules:

- the structure (operators, attributes, dtypes, ranks, which sizes are 1) finds the plan; the sizes do not belong to it: the
  graph is planned with symbols. Where that cannot be (a reshape to fixed sizes) the plan is made for these sizes alone;
- numbers in the graph belong to the structure until VARIANTS_MAX graphs differ only in them: then they become inputs;
- stored are the arrays that are asked for and those that somebody still holds; other values never leave their kernel;
- a node whose value is there becomes a leaf, and gives up what it was computed from.

Nobody waits for a plan (`encode` "auto"): a graph that was never seen runs on the quick tier (array/quick.py), operator by
operator (unless these are new too), while a worker makes its plan; without workers the caller makes it when the graph comes a
second time, and so it does where the workers get no time to make it. Once it is there, the next call runs on it. The bits are the
same. With "caller" and "workers", and where plans are kept on disk, each graph is planned before it runs."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from dvm_rt import _native, dtypes, runtime
from dvm_rt.array import quick
from dvm_rt.array.planning import planning
from dvm_rt.config import integer, number
from dvm_rt.errors import (
    BackpressureTimeout,
    ClosedError,
    DvmError,
    EncodeError,
    GraphError,
    InvalidBytecodeError,
    ShapeError,
    WorkerLostError,
)
from dvm_rt.fusion.fuser import Fused, Report, fuse
from dvm_rt.fusion.patterns import rewritten
from dvm_rt.graph.graph import Graph, Node, apply, parameter, reachable
from dvm_rt.graph.operators import OPERATORS, Lowering
from dvm_rt.graph.symbols import Facts, symbol

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from dvm_rt._native import CallLog, Stream, Tensor
    from dvm_rt.array.array import Array
    from dvm_rt.array.plan_cache import PlanCache, Programs

Result = TypeVar("Result")
PARAMETER, CONSTANT = OPERATORS["parameter"], OPERATORS["constant"]
CALL = replace(PARAMETER, name="call", doc="a result of a call that waits")  # of nodes that are no graph's: array/stacked.py
VARIANTS_MAX, STRUCTURES_MAX = 4, 1 << 14
NODES_TRIED = (64, 16, 1)  # nodes of a kernel, where the encoder has met a limit; 1: one operator a kernel


class Pending:
    """What a node of a lazy graph carries: who holds its array, and how many nodes it stands for."""

    __slots__ = ("array", "size")

    def __init__(self, array: weakref.ref[Array], size: int) -> None:
        self.array, self.size = array, size


class Lazy(NamedTuple):
    """What a flush computes, as `_native.LazyStructures` finds it. `key` is equal for graphs that are the same but for sizes
    and numbers; `numbers` are these numbers, the values of `constants`, one for each place where one is read."""

    order: list[Node]  # constants aside, each node after its inputs
    outputs: list[Node]  # what was asked for, and what somebody still holds
    leaves: list[Node]
    constants: list[Node]
    key: int
    numbers: bytes


COUNTED = (
    "stacked_launches", "stacked_calls", "walked_calls", "plan_ns", "plans_made", "plans_swapped", "quick_plans",
    "quick_launches",
)  # fmt: skip
UNPLANNED = 0  # the number of no plan: the stream's begin at 1
SWAPS_MAX = 64  # that stats() remembers


@dataclass(slots=True, eq=False)
class Planned:
    """A plan. `number` is the stream's, or UNPLANNED while the graph runs on the quick tier; `kernels_small` counts how often
    it was cut smaller."""

    number: int
    kernels: int
    graph: Graph
    captured: list[Tensor]
    kernels_small: int = 0
    _fused: Fused | None = None
    quick_calls: int = 0
    quick_ns: int = 0  # of the caller's thread, in the last call on the quick tier
    quick_launches: int = 0  # of that call
    asked_ns: int = 0  # when a worker was asked for the plan
    waiting: Future[bytes] | None = None

    @property
    def fused(self) -> Fused:
        """The plan with its reasons; where a worker made the plan they are found again here, by the same rules."""
        if self._fused is None:
            self._fused = _fuse(self.graph, self.kernels_small)
        return self._fused

    def reasons(self) -> Report:
        """Why each edge of the graph was fused or not."""
        return _fuse(self.graph, self.kernels_small, reasons=True).report


class Seen(Enum):
    """A structure without a plan: whether it has been run."""

    UNSEEN, SEEN = range(2)


UNSEEN, SEEN = Seen


class Session:
    """Arrays of one runtime."""

    __slots__ = (
        "_runtime", "stream", "plans", "variants", "counters", "lock", "pending_max", "plans_max", "wait_s", "cache",
        "_cached", "quick", "swaps",
        "structures", "runs", "_logs", "_waits", "_patience_us", "_calls", "__weakref__",
    )  # fmt: skip

    def __init__(self, of: runtime.Runtime) -> None:
        self._runtime = weakref.ref(of)  # a runtime keeps its session, not the other way round
        self.stream: Stream = of.stream
        self.plans: OrderedDict[object, Seen | Planned | None] = OrderedDict()
        self.swaps: deque[dict[str, object]] = deque(maxlen=SWAPS_MAX)
        # For every plan, before it runs. One that is kept on disk is waited for once, by the first of all processes.
        self._waits = of.encode != "auto" or of.cache is not None
        self.variants: dict[int, set[bytes]] = {}
        self._logs = bool(integer("log_flushes"))
        self.structures = _native.LazyStructures(Node, dtypes.DType, Pending, PARAMETER, CONSTANT)
        self.counters: Counter[str] = Counter()
        self.lock = threading.RLock()
        self.pending_max, self.plans_max, self.wait_s = integer("pending_max"), integer("plans_max"), number("wait_s")
        self._calls: CallLog | None = None
        self.runs = 0  # of calls that waited
        self._patience_us = number("plan_patience_us")
        self.quick = quick.QuickTier(self.stream, self.plans_max, self.counters)
        self.cache: PlanCache | None = None
        self._cached: dict[int, Path] = {}  # numbers of plans -> where they are kept
        if of.cache is not None:
            from dvm_rt.array.plan_cache import PlanCache

            self.cache = PlanCache(of.cache, integer("plan_cache_bytes_max"), self.counters)
            of.before_close.append(self.save)

    @property
    def runtime(self) -> runtime.Runtime:
        """The runtime, as long as somebody holds it."""
        of = self._runtime()
        if of is None:
            raise ClosedError("array: runtime: gone, got an array of it, allowed arrays of runtimes that are still there")
        return of

    # ---- plans ----

    def planning(self) -> AbstractContextManager[list[Planned]]:
        """Around tracing, fusing and registering; what was planned is put into the list."""
        return planning(self.stream, self.counters)

    def plan(self, graph: Graph, captured: list[Tensor]) -> Planned:
        """The plan of a graph: from the runtime's folder for plans, if it has one; UNPLANNED, if the graph may run without one;
        else made now."""
        planned = Planned(UNPLANNED, 0, graph, captured)
        if self.cache is not None and self._load(planned, self.cache.path(graph)):
            return planned
        if self._waits or not quick.suits(graph) or self.quick.are_new(graph):
            self.settle(planned)
        return planned

    def _load(self, planned: Planned, path: Path) -> bool:
        found = self.cache.load(path)
        if found is None:
            return False
        code, programs = found
        self._register(planned, code)
        self._warm(planned.number, programs)
        self._cached[planned.number] = path
        return True

    def settle(self, planned: Planned) -> None:
        """Makes a plan that is not there yet: here, or in a worker where all encoding is the workers'."""
        with self.lock:
            if planned.number == UNPLANNED:
                self._adopt(planned, self._plan_bytes(planned))

    def _adopt(self, planned: Planned, code: bytes) -> None:
        """The plan is there: from the next call on the graph runs on it."""
        self._register(planned, code)
        self.counters["plans_made"] += 1
        if self.cache is not None:
            path = self._cached[planned.number] = self.cache.path(planned.graph)
            self.cache.save(path, code, [])

    def _register(self, planned: Planned, code: bytes) -> None:
        planned.kernels = _native.Plan(code).info["kernels"]
        planned.number = self.stream.register(code, planned.captured)

    def forget(self, planned: Planned) -> None:
        """Gives up a plan and its programs."""
        if planned.number != UNPLANNED:
            self.stream.forget(planned.number)

    def _warm(self, number: int, programs: Programs) -> None:
        """Takes over the programs that the plan had when it was saved; what is no program for its sizes is encoded again."""
        for symbols, code in programs:
            try:
                self.stream.adopt(number, symbols, code)
                self.counters["programs_loaded"] += 1
            except InvalidBytecodeError:
                self.counters["programs_refused"] += 1
            except DvmError:
                self.counters["cache_refused"] += 1  # no sizes of this plan

    def save(self) -> None:
        """Writes the plans of this session down, with the programs that they have now: done by Runtime.close()."""
        for number, path in self._cached.items():
            try:
                code, sizes = self.stream.plan_bytes(number), [tuple(s) for _, s in self.stream.programs(number)]
                programs = [(s, self.stream.encoded(number, s)) for s in sizes]
            except DvmError:
                continue  # given up meanwhile, or the stream has failed: closing goes on
            self.cache.save(path, code, [(s, program) for s, program in programs if program])

    def _plan_bytes(self, planned: Planned) -> bytes:
        if self.runtime.encode == "workers" and self.runtime.encoders:
            try:
                code = self.runtime.plan_ahead(planned.graph.to_wire()).result(number("wait_s"))
                self.counters["plans_by_workers"] += 1
                return code
            except (WorkerLostError, BackpressureTimeout, TimeoutError):
                self.counters["plans_taken_back"] += 1  # workers that die or are overrun cost time, not the result
        planned._fused = _fuse(planned.graph, 0)
        return planned._fused.plan.to_bytes()

    # ---- without a plan ----

    def _call_unplanned(self, planned: Planned, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """Runs on the quick tier, or on the plan if that is there now; the first call on a plan says what it gained."""
        with self.lock:
            if planned.number == UNPLANNED and not self._arrived(planned):
                outputs = self._on_quick_tier(planned, tensors)
                if outputs is not None:
                    return outputs
            begin_ns = time.monotonic_ns()
            outputs = self._encoded(self.stream.call, planned, tensors)
            if planned.quick_calls:
                self._note_swap(planned, time.monotonic_ns() - begin_ns)
            return outputs

    def _on_quick_tier(self, planned: Planned, tensors: list[Tensor]) -> tuple[Tensor, ...] | None:
        """The outputs; None: this graph is planned instead, which also says what is wrong with the call, if anything. Raises
        ShapeError where the sizes do not fit the graph."""
        began_ns, launched = time.monotonic_ns(), self.stream.launched
        graph, tensors = rewritten(planned.graph)[0], [*tensors, *planned.captured]
        values = graph.symbol_values([t.shape for t in tensors])
        try:
            outputs = self.quick.run_graph(graph, tensors, values)
        except (quick.TooMuch, DvmError):
            with self.planning() as made:
                self.settle(planned)
                made.append(planned)
            return None
        self._ran_quickly(planned, began_ns, launched)
        return outputs

    def _ran_quickly(self, planned: Planned, began_ns: int, launched: int) -> None:
        planned.quick_ns, planned.quick_launches = time.monotonic_ns() - began_ns, self.stream.launched - launched
        planned.quick_calls += 1
        if planned.quick_calls == 1 and self._worker_is_idle():
            self._ask_worker(planned)

    def _worker_is_idle(self) -> bool:
        """Graphs that come once only are not worth a queue: those that come again ask again."""
        return self.runtime.graphs_waiting < self.runtime.planners

    def _ask_worker(self, planned: Planned) -> None:
        with self.planning():
            planned.waiting, planned.asked_ns = self.runtime.plan_ahead(planned.graph.to_wire()), time.monotonic_ns()

    def _arrived(self, planned: Planned) -> bool:
        """Whether the plan of a graph that ran before is there: a worker has made it, or there is none to make it."""
        if not planned.quick_calls:
            return False
        if planned.waiting is None:
            if self.runtime.planners:
                self._ask_worker(planned)
                return False
        elif not planned.waiting.done():
            waited_us = (time.monotonic_ns() - planned.asked_ns) / 1e3
            if waited_us < self._patience_us * planned.quick_launches:
                return False
            self.counters["plans_taken_back"] += 1  # it costs more to go on without one than to make it
        elif planned.waiting.exception() is None:
            self._adopt(planned, planned.waiting.result())
            self.counters["plans_by_workers"] += 1
            return True
        elif isinstance(planned.waiting.exception(), BackpressureTimeout):
            planned.waiting = None
            return False
        with self.planning() as made:  # nobody else makes it
            self.settle(planned)
            made.append(planned)
        return True

    def _note_swap(self, planned: Planned, fused_ns: int) -> None:
        self.counters["plans_swapped"] += 1
        waited_ns = time.monotonic_ns() - planned.asked_ns if planned.asked_ns else 0
        self.swaps.append({
            "plan": planned.number, "kernels": planned.kernels, "quick_launches": planned.quick_launches,
            "quick_calls": planned.quick_calls,
            "quick_us": planned.quick_ns / 1e3, "fused_us": fused_ns / 1e3, "waited_us": waited_ns / 1e3,
        })  # fmt: skip

    # ---- calls ----

    def call(self, planned: Planned, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """Launches a plan. Raises ShapeError where the shapes do not fit it, and what the stream raises."""
        if planned.number == UNPLANNED:
            return self._call_unplanned(planned, tensors)
        return self._encoded(self.stream.call, planned, tensors)

    def program_bytes(self, planned: Planned, tensors: list[Tensor]) -> bytes:
        """The program that `call` runs; empty if there is nothing to run."""
        self.settle(planned)
        return self._encoded(self.stream.program_bytes, planned, tensors)

    def _encoded(self, act: Callable[[int, list[Tensor]], Result], planned: Planned, tensors: list[Tensor]) -> Result:
        """Does it; where the encoder meets a limit, again with smaller kernels."""
        while True:
            try:
                return act(planned.number, tensors)
            except (ShapeError, EncodeError, InvalidBytecodeError) as error:
                planned.graph.symbol_values([t.shape for t in (*tensors, *planned.captured)])  # says more, where it can
                if isinstance(error, ShapeError) or planned.kernels_small == len(NODES_TRIED) - 1:
                    raise
                self._cut_smaller(planned)

    def _cut_smaller(self, planned: Planned) -> None:
        """A kernel was more than a program may hold: the same graph in smaller kernels."""
        planned.kernels_small += 1
        self.counters["plans_cut_smaller"] += 1
        planned._fused, old = None, planned.number
        planned.number = self.stream.register(planned.fused.plan.to_bytes(), planned.captured)
        self.stream.forget(old)

    # ---- calls that wait for each other ----

    def call_log(self, array_type: type[Array]) -> CallLog:
        """Where calls of stacked functions are recorded."""
        with self.lock:
            if self._calls is None:
                self._calls = _native.CallLog(self.stream, array_type, Node, Pending, PARAMETER, CALL,
                                              OPERATORS["index"], integer("calls_max"))
            return self._calls

    @property
    def calls_wait(self) -> bool:
        return bool(self._calls)

    def run_calls(self) -> None:
        """Runs all that wait."""
        with self.lock:
            self.runs += 1
            launches, calls = self._calls.run()
            self.counters["stacked_launches"] += launches
            self.counters["stacked_calls"] += calls

    # ---- lazy graphs ----

    def flush(self, nodes: list[Node], reason: str) -> None:
        """Computes what these nodes wait for, in one launch; after all calls that wait, if they need one of those."""
        with self.lock:
            if self._calls and any(n.operator is CALL for n in reachable(nodes)):
                self.run_calls()
            waiting = [n for n in nodes if n.data.__class__ is Pending]
            if not waiting:
                return
            self.counters[f"flush {reason}"] += 1
            lazy = Lazy(*self.structures.find(waiting))
            if self._logs:
                self._log(lazy, reason)
            for node, tensor in zip(lazy.outputs, self._run(lazy), strict=True):
                array = node.data.array()
                become_leaf(node, tensor)
                if array is not None:
                    array._tensor = tensor

    def _log(self, lazy: Lazy, reason: str) -> None:
        """One line on standard error: why, where in the user's code, what, and whether its like was seen before."""
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "dvm_rt":
            frame = frame.f_back
        known = any((lazy.key, numbers) in self.plans for numbers in (lazy.numbers, None))
        number, operators = sum(n for what, n in self.counters.items()
                                if what.startswith("flush ")), len(lazy.order) - len(lazy.leaves)
        print(
            f"dvm_rt: flush {number}: {reason}: {operators} operators, {len(lazy.outputs)} results, {'seen before' if known else 'new'}: "
            f"{frame.f_code.co_filename}:{frame.f_lineno}", file=sys.stderr,
        )  # fmt: skip

    def _run(self, lazy: Lazy) -> tuple[Tensor, ...]:
        inputs = [n.data for n in lazy.leaves]
        lifted = self._lifts(lazy)
        if lifted:
            inputs += [self.stream.asarray(dtypes.to_storage(np.asarray(n.attributes[0]), n.dtype), n.dtype.code)
                       for n in lazy.constants]
        symbolic = (lazy.key, None) if lifted else (lazy.key, lazy.numbers)
        planned = self.plans.get(symbolic, UNSEEN)
        if planned is UNSEEN and not self._waits:
            outputs = self._run_quickly(lazy, symbolic, lifted)
            if outputs is not None:
                return outputs
        if planned is UNSEEN or planned is SEEN:
            with self.planning() as made:
                ran, planned = planned is SEEN, self._plan_lazy(lazy, symbolic, lifted)
                made += [planned] if planned else []
            if planned is not None and ran:
                planned.quick_calls = 1
        if planned is not None:
            self.plans.move_to_end(symbolic)
            try:
                return self.call(planned, inputs)
            except ShapeError:
                self.counters["plans_for_one_shape"] += 1
        exact = (symbolic, tuple([n.shape for n in lazy.leaves]))
        planned = self.plans.get(exact)
        if planned is None:
            with self.planning() as made:
                planned = self._keep(exact, self.plan(_replayed(lazy, False, lifted), []))
                made.append(planned)
        return self.call(planned, inputs)

    def _run_quickly(self, lazy: Lazy, key: object, lifted: bool) -> tuple[Tensor, ...] | None:
        """A lazy graph that was never seen, node by node as it was recorded; None: it needs to be a graph first."""
        if _attends(lazy.order) or any(n.operator.lowering is Lowering.CONTROL for n in lazy.order):
            return None
        began_ns, launched = time.monotonic_ns(), self.stream.launched
        try:
            outputs = self.quick.run(lazy.order, lazy.outputs, {n: n.data for n in lazy.leaves}, {})
        except (quick.TooMuch, DvmError):
            return None
        planned = None
        if self._worker_is_idle():
            with self.planning():
                planned = self._plan_lazy(lazy, key, lifted)
        if planned is None:
            self._keep(key, SEEN)
        elif planned.number == UNPLANNED:
            self._ran_quickly(planned, began_ns, launched)
        return outputs

    def _plan_lazy(self, lazy: Lazy, key: object, lifted: bool) -> Planned | None:
        try:
            graph = _replayed(lazy, True, lifted)
        except (GraphError, ShapeError):
            return self._keep(key, None)
        return self._keep(key, self.plan(graph, []))

    def _keep(self, key: object, planned: Seen | Planned | None) -> Seen | Planned | None:
        self.plans[key] = planned
        self.plans.move_to_end(key)
        while len(self.plans) > self.plans_max:
            _, old = self.plans.popitem(last=False)
            if isinstance(old, Planned):
                self.forget(old)
        return planned

    def _lifts(self, lazy: Lazy) -> bool:
        """Whether the numbers of such graphs change so often that they should be inputs."""
        if not lazy.numbers:
            return False
        seen = self.variants.get(lazy.key)
        if seen is None:
            if len(self.variants) == STRUCTURES_MAX:
                self.variants.clear()
            seen = self.variants[lazy.key] = set()
        if len(seen) < VARIANTS_MAX:
            seen.add(lazy.numbers)
        return len(seen) >= VARIANTS_MAX and not _attends(lazy.order)

    def stats(self) -> dict[str, object]:
        """Counters of arrays and functions, then the runtime's. plan_ns: spent on tracing, fusing and registering. plans_made:
        for whole graphs, by whoever made them; quick_plans: of single operators; quick_launches: on the quick tier;
        plans_swapped: graphs that went on to their own plan, the last of them in `swaps`: launches and microseconds of the
        caller's thread before, and in the first call after. choices_tried, choices_kept: of stores, prefetch distances, tiles and
        blocks of products, by programs that ran often; choices_gained_ns: a run, of all that were kept. stacked_launches: of
        several calls of stacked functions each; walked_calls: of functions without a graph, in which Python goes from launch to
        launch."""
        plans = sum(isinstance(p, Planned) for p in self.plans.values())
        counted = {**dict.fromkeys(COUNTED, 0), **self.counters}
        return {**counted, "lazy_plans": plans, "swaps": list(self.swaps), **self.runtime.stats()}


def _attends(order: list[Node]) -> bool:
    """Whether attention may be found in such graphs: it is found by its numbers, so they stay numbers."""
    names = {node.operator.name for node in order}
    return "matmul" in names and not names.isdisjoint(("softmax", "exp"))


def _fuse(graph: Graph, kernels_small: int, reasons: bool = False) -> Fused:
    nodes = NODES_TRIED[kernels_small]
    return fuse(graph, fused=nodes > 1, nodes_max=nodes, reasons=reasons)


def become_leaf(node: Node, tensor: Tensor) -> None:
    """The node's value is there: it forgets what it was computed from."""
    node.operator, node.inputs, node.attributes = PARAMETER, (), (-1, node.shape, node.dtype.name)
    node.data = tensor


def leaf(tensor: Tensor) -> Node:
    """A node whose value is there."""
    node = Node(PARAMETER, (), (-1, tensor.shape, ""), tensor.shape, dtypes.DTYPES[tensor.dtype])
    node.data = tensor
    return node


def _replayed(lazy: Lazy, symbolic: bool, lifted: bool) -> Graph:
    """The graph of lazy nodes: over symbols, or for exactly these sizes; numbers as constants, or as inputs at the end."""
    facts, parameters, count = Facts(), [], 0

    def add_parameter(node: Node) -> Node:
        nonlocal count
        shape = []
        for size in node.shape:
            shape.append(symbol(count) if symbolic and size != 1 else size)
            count += 1
        parameters.append(parameter(len(parameters), tuple(shape), node.dtype))
        return parameters[-1]

    new = {node: add_parameter(node) for node in lazy.leaves}
    constants = iter([add_parameter(n) if lifted else n for n in lazy.constants])
    for node in lazy.order:
        if node not in new:
            inputs = tuple([next(constants) if i.operator is CONSTANT else new[i] for i in node.inputs])
            new[node] = apply(node.operator, inputs, node.attributes, facts)
    return Graph.of(parameters, [new[n] for n in lazy.outputs], facts)


# ---- the session of the current runtime ---------------------------------------------------------------------------

_sessions: weakref.WeakKeyDictionary[runtime.Runtime, Session] = weakref.WeakKeyDictionary()
_last: weakref.ref[Session] | None = None


def session() -> Session:
    """The session of the current runtime; without one, an inline runtime is made."""
    global _last
    of = runtime.current()
    last = _last() if _last is not None else None
    if last is None or last._runtime() is not of:
        last = _sessions.get(of)
        if last is None:
            last = _sessions[of] = Session(of)
        _last = weakref.ref(last)
    return last


def stats() -> dict[str, object]:
    """Counters of the current runtime, since it began: flushes by reason, traces, plans, then those of its stream and its
    processes. Names ending in _ns are nanoseconds, _us microseconds, bytes bytes; all else are counts."""
    return session().stats()
