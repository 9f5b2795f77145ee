"""Control flow, sequences and optionals. Graphs inside of nodes run through the runner, in their own segments."""

from __future__ import annotations

import numpy as np

from dvm_rt.array.array import Array
from dvm_rt.errors import ShapeError
from dvm_rt.onnx.model import Graph
from dvm_rt.onnx.table import RAW, STEP, Call, row
from dvm_rt.onnx.values import fetch, lift

Value = object


def _truth(value: Value) -> bool:
    return bool(np.asarray(fetch(value)).reshape(-1)[0])


@row("If", kind=RAW)
def if_operator(c: Call, condition: Value) -> Value:
    """A condition that is known while tracing chooses there; else it is fetched, and the branch belongs to the signature."""
    branch: Graph = c.get("then_branch" if _truth(condition) else "else_branch")
    return list(c.run_graph(branch, {}))


@row("Loop", kind=STEP)
def loop(c: Call, count: Value, condition: Value, *states: Value) -> Value:
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


@row("Scan", kind=STEP, since=9)
def scan(c: Call, *inputs: Value) -> Value:
    return _scan(c, list(inputs))


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
    axes, ways = c.get("scan_input_axes", (0,) * count), c.get("scan_input_directions", (0,) * count)
    out_axes, out_ways = c.get("scan_output_axes", (0,) * outputs), c.get("scan_output_directions", (0,) * outputs)
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


