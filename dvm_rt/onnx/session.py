"""load, and Session: a model that runs.

Feeds are NumPy arrays (or dvm arrays, sequences as lists, None for absent optionals) by the names of the inputs. A Session may be
used from several threads; it belongs to whatever runtime is current at the call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

import dvm_rt as dvm
from dvm_rt.array.array import Array, wrap
from dvm_rt.array.function import Function
from dvm_rt.array.session import session
from dvm_rt.errors import DeviceTrap, DTypeError, EncodeError, GraphError, ShapeError
from dvm_rt.onnx import model as files
from dvm_rt.onnx.model import Value as Declared
from dvm_rt.onnx.running import (
    CONTROL,
    FOLDED,
    HOST_FUNCTION,
    HOST_PATH,
    INLINED,
    INSTRUCTIONS,
    Running,
    Segment,
    opened,
    unknown_operators,
)
from dvm_rt.onnx.values import BFLOAT16, Untraceable, ValueNeeded, fetch, lift, numpy_dtype

Feed = object
_FLOATS = {np.dtype(t) for t in (np.float16, np.float32, np.float64, BFLOAT16)}
_WHOLE = {np.dtype(t) for t in ("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}
TOO_LONG = ("a loop that would go on", "more work than")  # loops that the device does not take: Python does then
SIZES_MAX = 64  # elements of a vector of sizes: whole numbers that may be one stay on the host until somebody computes with them


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: sizes are ints, names of symbolic dimensions, or None; dtype None for what is no tensor."""

    name: str
    shape: tuple[int | str | None, ...] | None
    dtype: np.dtype | None
    kind: str = "tensor"


@dataclass(frozen=True, slots=True)
class Placed:
    """Where one node ran."""

    node: str
    operator: str
    where: tuple[str, ...]


def load(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Session:
    """A session for the model of a path, of bytes, or of a ModelProto. Raises ModelFormatError, which names file and node."""
    return Session(files.read(source))


class Session:
    """One model. `run(feeds)`, or `run(output_names, feeds)` as onnxruntime has it."""

    def __init__(self, model: files.Model) -> None:
        self.model = model
        graph = model.graph
        self.inputs = tuple(_port(v) for v in graph.inputs if v.name not in graph.constants)
        self.outputs = tuple(_port(v) for v in graph.outputs)
        self._declared = {v.name: v for v in graph.inputs}
        self._running = Running(model)
        self._direct: _Direct | None = None

    def run(self, *arguments: object) -> list[object]:
        """The outputs, in order, as NumPy arrays (read-only views of device memory). Raises ShapeError, DTypeError,
        UnsupportedOperatorError."""
        names, feeds = _arguments(arguments)
        try:
            return [fetch_output(v) for v in self._launched(names, feeds)]
        except (DeviceTrap, EncodeError) as error:
            if not any(said in str(error) for said in TOO_LONG) or not self._running.main.take_loops_apart():
                raise
            self._direct = None
            return self.run(names, feeds)

    async def run_async(self, *arguments: object) -> list[object]:
        """As run, without blocking the event loop."""
        names, feeds = _arguments(arguments)
        if self._running.main.steps or self._running.main.loops():
            return await asyncio.to_thread(self.run, names, feeds)
        values = self._launched(names, feeds)
        await dvm.aeval(*[v for v in values if isinstance(v, Array)])
        return [fetch_output(v) for v in values]

    def arrays(self, feeds: Mapping[str, Feed]) -> dict[str, object]:
        """The outputs by name, where they are: dvm arrays stay on the device."""
        return dict(zip([o.name for o in self.outputs], self._launched(None, feeds), strict=True))

    def _launched(self, names: Sequence[str] | None, feeds: Mapping[str, Feed]) -> list[object]:
        values = self._direct.launched(feeds) if self._direct is not None else None
        if values is None:
            values = self._in_steps(feeds)
        if names is None:
            return values
        by_name = dict(zip([o.name for o in self.outputs], values, strict=True))
        unknown = [n for n in names if n not in by_name]
        if unknown:
            raise GraphError(f"onnx: {self.model.file}: outputs, got {unknown}, allowed {list(by_name)}")
        return [by_name[n] for n in names]

    def _in_steps(self, feeds: Mapping[str, Feed]) -> list[object]:
        env = {name: self._fed(name, value) for name, value in feeds.items()}
        missing = [p.name for p in self.inputs if p.name not in env and p.kind != "optional"]
        if missing:
            names = [p.name for p in self.inputs]
            raise GraphError(f"onnx: {self.model.file}: inputs are missing, got {sorted(feeds)}, allowed {names}")
        env |= {p.name: None for p in self.inputs if p.name not in env}
        values = self._running.run(env)
        found = self._running.main.alone()
        self._direct = _direct(self, *found) if found is not None else None
        return values

    def _fed(self, name: str, value: Feed) -> object:
        declared = self._declared.get(name)
        if declared is None:
            raise GraphError(f"onnx: {self.model.file}: input, got {name!r}, allowed {[p.name for p in self.inputs]}")
        if value is None or isinstance(value, (list, tuple)) and declared.kind != "tensor":
            return None if value is None else tuple(x if isinstance(x, Array) else np.asarray(x) for x in value)
        fed = value if isinstance(value, Array) else np.asarray(value)
        if isinstance(fed, np.ndarray) and fed.dtype.kind in "UST":
            fed = fed.astype(object)
        _check(self.model.file, declared, fed)
        if isinstance(fed, np.ndarray) and fed.dtype not in _FLOATS and (fed.dtype not in _WHOLE
                or (fed.ndim < 2 and fed.size <= SIZES_MAX)):
            return fed
        return lift(fed)

    def explain(self) -> list[Placed]:
        """What ran where, node by node, of the runs so far."""
        return [Placed(node.name or node.outputs[0], node.operator, tuple(sorted(where)))
                for node, where in self._running.placed.values()]

    def unknown_operators(self) -> list[str]:
        """Operators of the model, in subgraphs too, that have neither a row nor a function body."""
        return sorted(unknown_operators(self.model.graph))

    def counts(self) -> dict[str, int]:
        """How many nodes ran as instructions, on the host path, .. so far."""
        found = dict.fromkeys((INSTRUCTIONS, HOST_FUNCTION, HOST_PATH, FOLDED, CONTROL, INLINED), 0)
        for _, where in self._running.placed.values():
            for one in where:
                found[one] += 1
        return found

    def __repr__(self) -> str:
        return f"<dvm_rt.onnx.Session {self.model.file}: {[p.name for p in self.inputs]} -> {[p.name for p in self.outputs]}>"


@dataclass(slots=True)
class _Direct:
    """A model that is one segment whose inputs are arrays: feeds are checked and copied in, one call, outputs by
    position. What does not fit goes the long way, which says what is wrong with it."""

    ports: tuple[tuple[str, np.dtype, int, tuple[tuple[int, int], ...]],
                 ...]  # name, dtype, rank, (axis, size) of sizes that are numbers
    function: Function
    places: tuple[int, ...] | None  # of the model's outputs in what the function gives; None: it gives the only one

    def launched(self, feeds: Mapping[str, Feed]) -> list[object] | None:
        """The outputs; None where the feeds, or what is found out about the model by tracing, need the long way."""
        if len(feeds) != len(self.ports):
            return None
        of, arguments = session(), []
        put = of.stream.asarray
        for name, dtype, rank, fixed in self.ports:
            value = feeds.get(name)
            if value.__class__ is not np.ndarray or value.dtype != dtype or value.ndim != rank:
                return None
            for axis, size in fixed:
                if value.shape[axis] != size:
                    return None
            arguments.append(wrap(put(value), of))
        try:
            results = self.function(*arguments)
        except (ValueNeeded, Untraceable):
            return None
        if self.places is None:
            return [opened(results)]
        return [opened(results[i]) for i in self.places]


def _direct(of: Session, segment: Segment, function: Function, names: tuple[str, ...]) -> _Direct | None:
    """The short way of a model that one segment is, if all its inputs are tensors of declared types that the machine has."""
    declared = [of._declared.get(n) for n in names]
    if len(names) != len(of.inputs) or any(d is None or d.dtype is None or d.shape is None for d in declared):
        return None
    if any(d.dtype not in _FLOATS | _WHOLE or d.dtype == BFLOAT16 for d in declared):
        return None
    ports = [(d.name, d.dtype, len(d.shape), tuple((i, n) for i, n in enumerate(d.shape) if isinstance(n, int)))
             for d in declared]
    places = tuple(segment.outputs.index(o.name) for o in of.outputs)
    return _Direct(tuple(ports), function, None if len(segment.outputs) == 1 else places)


def fetch_output(value: object) -> object:
    """A value as NumPy has it; sequences as lists."""
    if isinstance(value, tuple):
        return [fetch_output(v) for v in value]
    return fetch(value)


def _arguments(arguments: tuple) -> tuple[Sequence[str] | None, Mapping[str, Feed]]:
    if len(arguments) == 1:
        return None, arguments[0]
    if len(arguments) in (2, 3):
        return arguments[0] or None, arguments[1]
    raise TypeError(f"onnx: run: got {len(arguments)} arguments, allowed (feeds) or (output names, feeds)")


def _port(value: Declared) -> Port:
    return Port(value.name, value.shape, value.dtype, value.kind)


def _check(file: str, declared: Declared, fed: object) -> None:
    """The feed against what the model declares."""
    where = f"onnx: {file}: input {declared.name!r}"
    if declared.dtype is not None and numpy_dtype(fed) != declared.dtype:
        raise DTypeError(f"{where}: dtype, got {numpy_dtype(fed)}, allowed {declared.dtype}")
    if declared.shape is None:
        return
    got = tuple(fed.shape)
    if len(got) != len(declared.shape) or any(isinstance(n, int) and n != g for n, g in zip(declared.shape, got, strict=True)):
        raise ShapeError(f"{where}: shape, got {got}, allowed {declared.shape}")
