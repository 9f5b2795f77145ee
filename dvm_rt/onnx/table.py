"""THE table of ONNX operators: one row an operator and the version from which on it holds.

A row's function is written once, against the names of the Array API and of neural networks (`call.xp`): over dvm arrays it
records instructions, over NumPy arrays (`numpy_names.py`) it folds constants, computes shapes, and is the host path.
Kinds of rows:

    ARRAY  over arrays: lowered wherever the dtypes allow, else on the host
    HOST   NumPy alone (strings, the long tail); ends a traced segment unless all inputs are host values
    STEP   control flow, and sizes that depend on values: runs by itself, between segments
    RAW    takes values as they come (Shape, Identity, sequences), inside of a trace too
    LIFTS  takes values as they come, and makes arrays of them itself: always lowered

An operator without a row runs by its function body, where ONNX defines one; else it is an UnsupportedOperatorError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from dvm_rt.array import tracing
from dvm_rt.array.array import Array
from dvm_rt.errors import UnsupportedOperatorError
from dvm_rt.onnx.model import Graph, Node
from dvm_rt.onnx.values import Value

Kind = Enum("Kind", "ARRAY HOST STEP RAW LIFTS")
ARRAY, HOST, STEP, RAW, LIFTS = Kind.ARRAY, Kind.HOST, Kind.STEP, Kind.RAW, Kind.LIFTS


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `on_host`: inputs whose elements the function needs (axes, shapes, counts)."""

    name: str
    domain: str
    since: int
    kind: Kind
    function: Callable[..., object]
    on_host: tuple[int, ...] = ()


TABLE: dict[tuple[str, str], list[Row]] = {}


def row(
    *names: str, since: int = 1, kind: Kind = ARRAY, on_host: tuple[int, ...] = (), domain: str = ""
) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Makes a function the row of operators; where there are several of a name, the newest that is old enough counts."""

    def add(function: Callable[..., object]) -> Callable[..., object]:
        for name in names:
            rows = TABLE.setdefault((domain, name), [])
            rows.append(Row(name, domain, since, kind, function, on_host))
            rows.sort(key=lambda r: -r.since)
        return function

    return add


def find(node: Node) -> Row | None:
    """The row of a node."""
    for found in TABLE.get((node.domain, node.operator), ()):
        if found.since <= node.opset:
            return found
    return None


class Call:
    """What a row's function gets of its node: attributes, the namespace, the runner for subgraphs."""

    __slots__ = ("node", "xp", "run_graph")

    def __init__(self, node: Node, xp: object, run_graph: Callable[[Graph, dict[str, Value]], list[Value]]) -> None:
        self.node, self.xp, self.run_graph = node, xp, run_graph

    @property
    def opset(self) -> int:
        return self.node.opset

    @property
    def outputs(self) -> int:
        """How many outputs the node names."""
        return len(self.node.outputs)

    def wants(self, number: int) -> bool:
        """Whether an output is asked for."""
        return number < len(self.node.outputs) and bool(self.node.outputs[number])

    def get(self, name: str, default: object = None) -> object:
        """An attribute."""
        return self.node.attributes.get(name, default)

    def axis(self, rank: int, default: int = 0) -> int:
        """The attribute `axis`, counted from the front."""
        axis = self.get("axis", default)
        if not -rank <= axis < max(rank, 1):
            raise UnsupportedOperatorError(f"axis, got {axis}, allowed {-rank} to {rank - 1}")
        return axis % rank if rank else 0

    def refuse(self, what: str) -> UnsupportedOperatorError:
        """The error for what the operator cannot do here."""
        return UnsupportedOperatorError(f"{self.node.where}: {what}")

    def is_traced(self, value: Value = None) -> bool:
        """Whether a graph is traced (and this value, if one is named, is only known when it runs)."""
        return tracing.current() is not None and (value is None or isinstance(value, Array))

    @property
    def on_host(self) -> bool:
        return self.xp.__name__ != "dvm_rt"


def whole(values: Value) -> tuple[object, ...]:
    """A host value as a tuple of sizes."""
    return tuple(v if not isinstance(v, (np.integer, np.bool_)) else int(v) for v in np.asarray(values).ravel())
