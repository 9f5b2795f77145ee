"""Control flow, sequences and optionals. Graphs inside of nodes are parts of the segment where the device can take
the branch or the iteration by itself; else they run through the runner, in segments of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

import dvm_rt as dvm
from dvm_rt.array.array import Array
from dvm_rt.array.tracing import NeedsValues
from dvm_rt.errors import DTypeError, GraphError, ShapeError
from dvm_rt.graph.symbols import Dim
from dvm_rt.onnx.model import Graph
from dvm_rt.onnx.table import LIFTS, RAW, STEP, Call, row
from dvm_rt.onnx.values import Untraceable, ValueNeeded, fetch, lift

Value = object


def _truth(value: Value) -> bool:
    return bool(np.asarray(fetch(value)).reshape(-1)[0])


@row("If", kind=LIFTS)
def if_operator(c: Call, condition: Value) -> Value:
    """A condition that is known while tracing chooses there; one that is computed is the device's choice, where both
    branches give arrays of the same shapes; else it is fetched, and the branch belongs to the signature."""
    branches: list[Graph] = [c.get("then_branch"), c.get("else_branch")]
    if c.is_traced(condition):
        try:
            results = dvm.cond(_scalar(condition), *(lambda g=g: _arrays(c.run_graph(g, {})) for g in branches))
        except (GraphError, ShapeError, DTypeError, ValueNeeded, Untraceable):
            raise ValueNeeded(condition) from None
        return list(results)
    return list(c.run_graph(branches[0 if _truth(condition) else 1], {}))


def _scalar(condition: Array) -> Array:
    return dvm.reshape(condition, ()).astype("bool")


def _arrays(values: list[Value]) -> tuple[Array, ...]:
    """What a part of the device's control flow gives: arrays. Sizes stay on the host: others need them there."""
    if any(not isinstance(v, (Array, np.ndarray)) or (isinstance(v, np.ndarray) and v.dtype.kind in "iO") for v in values):
        raise Untraceable
    return tuple(lift(v) for v in values)


@row("Loop", kind=LIFTS)
def loop(c: Call, count: Value, condition: Value, *states: Value) -> Value:
    """In a trace the device's, where the state keeps its shapes and the rows that are collected are counted before;
    else Python's."""
    if c.is_traced():
        return _on_device(states, lambda: _device_loop(c, count, condition, states))
    return _python_loop(c, count, condition, states)


def _on_device(states: Sequence[Value], run: Callable[[], list[Value]]) -> list[Value]:
    """A loop in a graph, or Untraceable. Where sizes are symbols, a ShapeError may be gone for sizes that are numbers."""
    if not all(isinstance(s, (Array, np.ndarray)) for s in states):
        raise Untraceable
    try:
        return run()
    except (NeedsValues, DTypeError, ValueNeeded):
        raise Untraceable from None
    except (ShapeError, GraphError):
        if any(isinstance(n, Dim) for s in states for n in s.shape):
            raise
        raise Untraceable from None


def _device_loop(c: Call, count: Value, condition: Value, states: Sequence[Value]) -> list[Value]:
    body: Graph = c.get("body")
    names, kept = [v.name for v in body.inputs], len(states)
    collects = len(body.outputs) > 1 + kept
    start = (np.asarray(0, np.int64), *states)

    def step(number: Array, *before: Array) -> tuple[Array, list[Value]]:
        results = c.run_graph(body, dict(zip(names, [number, np.asarray(True), *before], strict=True)))
        return results[0], [lift(r) for r in results[1:]]

    if _always_goes_on(body) and (condition is None or (isinstance(condition, np.ndarray) and _truth(condition))):
        if isinstance(count, np.ndarray):  # counted before: a number, or a size
            length = count.reshape(-1)[0]
            carry, rows = dvm.scan(lambda s, _: _carried(s, step(*s)[1], kept), tuple(map(lift, start)), None,
                                   length if isinstance(length, Dim) else max(int(length), 0))
            return [*carry[1:], *rows]
        if count is not None and not collects:
            last = dvm.reshape(lift(count), ())
            return list(dvm.while_loop(lambda i, *_: i < last, lambda i, *s: (i + 1, *step(i, *s)[1]),
                                       tuple(map(lift, start)))[1:])
    if collects:
        raise Untraceable

    def going(flag: Array, number: Array, *_: Array) -> Array:
        return flag if count is None else dvm.logical_and(flag, number < dvm.reshape(lift(count), ()))

    def again(_: Array, number: Array, *before: Array) -> tuple[Array, ...]:
        flag, after = step(number, *before)
        return (_scalar(lift(flag)), number + 1, *after)

    first = lift(np.asarray(True)) if condition is None else _scalar(lift(condition))
    return list(dvm.while_loop(going, again, (first, *map(lift, start)))[2:])


def _carried(state: tuple, results: list[Array], kept: int) -> tuple[tuple, tuple]:
    return (state[0] + 1, *results[:kept]), tuple(results[kept:])


def _always_goes_on(body: Graph) -> bool:
    """Whether the condition that the body gives is the one that it was given, or true."""
    name, makers = body.outputs[0].name, {o: n for n in body.nodes for o in n.outputs}
    while name in makers and makers[name].operator == "Identity":
        name = makers[name].inputs[0]
    value = body.constants.get(name)
    if name in makers and makers[name].operator == "Constant":
        value = makers[name].attributes.get("value")
    return name == body.inputs[1].name or (isinstance(value, np.ndarray) and value.size == 1 and bool(value.reshape(-1)[0]))


def _python_loop(c: Call, count: Value, condition: Value, states: Sequence[Value]) -> list[Value]:
    body: Graph = c.get("body")
    trips = int(np.asarray(fetch(count)).reshape(-1)[0]) if count is not None else None
    going = condition is None or _truth(condition)
    carried, scanned, done = list(states), [[] for _ in range(len(body.outputs) - 1 - len(states))], 0
    names = [v.name for v in body.inputs]
    while going and (trips is None or done < trips):
        given = dict(zip(names, [np.asarray(done, np.int64), np.asarray(True), *carried], strict=True))
        going_now, *results = c.run_graph(body, given)
        carried = results[: len(states)]
        for rows, value in zip(scanned, results[len(states) :], strict=True):
            rows.append(value)
        done += 1
        going = going if _is_always(going_now) else _truth(going_now)
    shapes = [v for v in body.outputs[1 + len(states) :]]
    return [*carried, *(_stacked(c, rows, v, 0, False) for rows, v in zip(scanned, shapes, strict=True))]


def _is_always(condition: Value) -> bool:
    return isinstance(condition, np.ndarray) and condition.dtype == bool and bool(condition.reshape(-1)[0])


def _stacked(c: Call, rows: list[Value], declared: object, axis: int, backwards: bool) -> Value:
    if not rows:
        shape = [n if isinstance(n, int) else 0 for n in (declared.shape or ())]
        return np.zeros((0, *shape), declared.dtype or np.float32)
    rows = rows[::-1] if backwards else rows
    if not any(isinstance(r, Array) for r in rows):
        return np.stack(rows, axis=axis)
    return c.xp.stack([lift(r) for r in rows], axis=axis)


@row("Scan", kind=LIFTS, since=9)
def scan(c: Call, *inputs: Value) -> Value:
    if c.is_traced():
        return _on_device(inputs, lambda: _device_scan(c, [lift(x) for x in inputs]))
    return _scan(c, list(inputs))


def _device_scan(c: Call, inputs: list[Array]) -> list[Value]:
    body: Graph = c.get("body")
    names, kept = [v.name for v in body.inputs], len(inputs) - c.get("num_scan_inputs")
    (axes, ways), (out_axes, out_ways) = _sides(c, "input", len(inputs) - kept), _sides(c, "output", len(body.outputs) - kept)
    rows = [_first(x, axis, way) for x, axis, way in zip(inputs[kept:], axes, ways, strict=True)]

    def step(carry: tuple, given: tuple) -> tuple[tuple, tuple]:
        results = [lift(r) for r in c.run_graph(body, dict(zip(names, [*carry, *given], strict=True)))]
        return tuple(results[:kept]), tuple(results[kept:])

    carry, made = dvm.scan(step, tuple(inputs[:kept]), tuple(rows))
    return [*carry, *(_last(y, axis, way) for y, axis, way in zip(made, out_axes, out_ways, strict=True))]


def _sides(c: Call, side: str, count: int) -> tuple[Sequence[int], Sequence[int]]:
    """(axes, directions) of the sequences that go in or out."""
    return c.get(f"scan_{side}_axes", (0,) * count), c.get(f"scan_{side}_directions", (0,) * count)


def _first(x: Array, axis: int, backwards: int) -> Array:
    """x with the axis of the sequence in front, from its beginning."""
    moved = dvm.moveaxis(x, axis, 0) if axis % x.ndim else x
    return dvm.flip(moved, axis=0) if backwards else moved


def _last(y: Array, axis: int, backwards: int) -> Array:
    y = dvm.flip(y, axis=0) if backwards else y
    return dvm.moveaxis(y, 0, axis) if axis % y.ndim else y


@row("Scan", kind=STEP, since=8)
def scan_in_batches(c: Call, lengths: Value, *inputs: Value) -> Value:
    """Version 8: the first axis is a batch, whose elements are scanned one by one."""
    if lengths is not None:
        raise c.refuse("lengths of the sequences, got an input, allowed none")
    results = [_scan(c, [_picked(x, i, 0) for x in inputs]) for i in range(int(inputs[0].shape[0]))]
    return [c.xp.stack([lift(r[i]) for r in results], axis=0) for i in range(len(results[0]))]


def _scan(c: Call, inputs: list[Value]) -> list[Value]:
    body: Graph = c.get("body")
    count = c.get("num_scan_inputs")
    states, sequences = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    outputs = len(body.outputs) - len(states)
    (axes, ways), (out_axes, out_ways) = _sides(c, "input", count), _sides(c, "output", outputs)
    names, scanned = [v.name for v in body.inputs], [[] for _ in range(outputs)]
    length = int(sequences[0].shape[axes[0]]) if sequences else 0
    for step in range(length):
        parts = [_picked(x, length - 1 - step if way else step, axis) for x, axis, way in zip(sequences, axes, ways, strict=True)]
        results = c.run_graph(body, dict(zip(names, [*states, *parts], strict=True)))
        states = results[: len(states)]
        for rows, value in zip(scanned, results[len(states) :], strict=True):
            rows.append(value)
    shapes = body.outputs[len(states) :]
    return [*states, *(_stacked(c, r, v, a, bool(w)) for r, v, a, w in zip(scanned, shapes, out_axes, out_ways, strict=True))]


def _picked(x: Value, index: int, axis: int) -> Value:
    axis = axis % len(x.shape)
    return x[(*(slice(None),) * axis, index)]


# ---- sequences ----------------------------------------------------------------------------------------------------


def _place(position: Value, length: int, more: int) -> int:
    if position is None:
        return length - 1 + more
    index = int(np.asarray(fetch(position)).reshape(-1)[0])
    if not -length <= index < length + more:
        raise ShapeError(f"position in a sequence, got {index}, allowed {-length} to {length - 1 + more}")
    return index + length if index < 0 else index


@row("SequenceEmpty", kind=RAW)
def sequence_empty(c: Call) -> Value:
    return [()]


@row("SequenceConstruct", kind=RAW)
def sequence_construct(c: Call, *values: Value) -> Value:
    return [tuple(values)]


@row("SequenceInsert", kind=RAW)
def sequence_insert(c: Call, sequence: Value, value: Value, position: Value = None) -> Value:
    at = _place(position, len(sequence), 1)
    return [(*sequence[:at], value, *sequence[at:])]


@row("SequenceErase", kind=RAW)
def sequence_erase(c: Call, sequence: Value, position: Value = None) -> Value:
    at = _place(position, len(sequence), 0)
    return [(*sequence[:at], *sequence[at + 1 :])]


@row("SequenceAt", kind=RAW)
def sequence_at(c: Call, sequence: Value, position: Value) -> Value:
    return [sequence[_place(position, len(sequence), 0)]]


@row("SequenceLength", kind=RAW)
def sequence_length(c: Call, sequence: Value) -> Value:
    return np.asarray(len(sequence), np.int64)


@row("ConcatFromSequence", kind=RAW)
def concat_from_sequence(c: Call, sequence: Value) -> Value:
    axis, lifted = c.get("axis"), [lift(x) for x in sequence]
    return c.xp.stack(lifted, axis=axis) if c.get("new_axis", 0) else c.xp.concat(lifted, axis=axis)


@row("SplitToSequence", kind=RAW)
def split_to_sequence(c: Call, x: Value, split: Value = None) -> Value:
    axis = c.axis(len(x.shape))
    n = x.shape[axis]
    if not isinstance(n, int):
        raise ShapeError(f"size along the axis, got {n}, allowed a number")
    given = np.asarray(fetch(split)) if split is not None else np.asarray(1)
    lengths = [int(v) for v in given] if given.ndim else [min(int(given), n - i) for i in range(0, n, int(given))]
    lead, start, parts = (slice(None),) * axis, 0, []
    for length in lengths:
        one = split is None and not c.get("keepdims", 1)
        parts.append(x[(*lead, start)] if one else x[(*lead, slice(start, start + length))])
        start += length
    return [tuple(parts)]


@row("SequenceMap", kind=STEP)
def sequence_map(c: Call, *inputs: Value) -> Value:
    body: Graph = c.get("body")
    names = [v.name for v in body.inputs]
    results = []
    for i in range(len(inputs[0])):
        results.append(c.run_graph(body, dict(zip(names, [x[i] if isinstance(x, tuple) else x for x in inputs], strict=True))))
    return [tuple(r[k] for r in results) for k in range(len(body.outputs))]


# ---- optionals ----------------------------------------------------------------------------------------------------


@row("Optional", kind=RAW)
def optional(c: Call, value: Value = None) -> Value:
    return [value]


@row("OptionalHasElement", kind=RAW)
def optional_has_element(c: Call, value: Value = None) -> Value:
    return np.asarray(value is not None)


@row("OptionalGetElement", kind=RAW)
def optional_get_element(c: Call, value: Value) -> Value:
    if value is None:
        raise ShapeError("optional, got nothing, allowed an element")
    return [value]


