"""Attributes of nodes: plain values, sizes, tuples of them, and parts.

A `Part` is a graph in a graph, the branch of a cond or the step of a loop (graph/control.py). Several nodes share one part, and
parts hold nodes with parts, so nothing here walks a part twice: as a tree, nested ones have (number of results) ** depth rows."""

from __future__ import annotations

import threading
from operator import is_not
from weakref import WeakValueDictionary

from dvm_rt.errors import GraphError
from dvm_rt.graph import symbols
from dvm_rt.graph.symbols import Dim, Facts, Shape


class Part:
    """Rows (operator, inputs, attributes, shape, dtype), and which of them are the outputs. Never changes; the same
    only as itself:
    `hashable` is equal for parts that compute the same."""

    __slots__ = ("rows", "outputs", "_key")

    def __init__(self, rows: tuple[tuple, ...], outputs: tuple[int, ...]) -> None:
        self.rows, self.outputs = rows, outputs
        self._key: _Key | None = None

    def __repr__(self) -> str:
        return f"<part of {len(self.rows)} rows>"

    def key(self) -> _Key:
        """What is the same object for all parts that compute the same."""
        if self._key is None:
            content = hashable(self.rows), hashable(self.outputs)
            with _lock:
                self._key = _keys.get(content) or _keys.setdefault(content, _Key(content))
        return self._key


class _Key:
    """Of the parts with this content; it holds the keys of the parts in it."""

    __slots__ = ("content", "__weakref__")

    def __init__(self, content: tuple) -> None:
        self.content = content


_keys: WeakValueDictionary[tuple, _Key] = WeakValueDictionary()
_lock = threading.Lock()


def concrete(attribute: object, values: dict[int, int], parts: dict[Part, Part]) -> object:
    """The attribute with numbers for sizes. `parts`: those that were made so, with these values."""
    if isinstance(attribute, Dim):
        return symbols.evaluate(attribute, values)
    if attribute.__class__ is Part:
        if attribute not in parts:
            parts[attribute] = Part(concrete(attribute.rows, values, parts), attribute.outputs)
        return parts[attribute]
    return tuple(concrete(a, values, parts) for a in attribute) if isinstance(attribute, tuple) else attribute


def resolved(facts: Facts, attribute: object) -> object:
    """The attribute with every size in the form that the facts demand; itself where nothing is known."""
    if attribute.__class__ is Dim:
        return facts.resolve(attribute)
    if attribute.__class__ is Part:
        return _resolved_part(facts, attribute) if facts.substitutions else attribute
    if attribute.__class__ is not tuple:
        return attribute
    found = [a if a.__class__ is int else resolved(facts, a) for a in attribute]
    return tuple(found) if any(map(is_not, found, attribute)) else attribute


def _resolved_part(facts: Facts, part: Part) -> Part:
    found = facts.resolved_parts.get(part)
    if found is None:
        rows = resolved(facts, part.rows)
        found = facts.resolved_parts[part] = part if rows is part.rows else Part(rows, part.outputs)
    return found


def resolved_leaf(facts: Facts, attributes: tuple, given: Shape, shape: Shape) -> tuple:
    """`resolved`, where one of the attributes is the shape."""
    return tuple([shape if a is given else resolved(facts, a)
                  for a in attributes]) if shape is not given else resolved(facts, attributes)


def plain(value: object, parts: dict[object, int]) -> object:
    """An attribute or shape as nested tuples of plain values. A symbolic size becomes ("size", its key), a part ("part", rows,
    outputs), where it comes again ("again", its number); `parts` are the numbers of those that came before."""
    if isinstance(value, Dim):
        return ("size", symbols.to_wire(value))
    if value.__class__ is Part:
        number = parts.get(value.key())
        if number is not None:
            return ("again", number)
        rows = plain(value.rows, parts)
        parts[value.key()] = len(parts)
        return ("part", rows, value.outputs)
    return tuple([plain(v, parts) for v in value]) if isinstance(value, tuple) else value


def from_plain(value: object, parts: list[Part]) -> object:
    """The inverse of `plain`; `parts` came before, in this order. Raises GraphError, or what malformed tuples raise."""
    if not isinstance(value, (tuple, list)):
        return value
    if len(value) == 2 and value[0] == "size":
        return symbols.from_wire(value[1])
    if len(value) == 2 and value[0] == "again":
        if not 0 <= value[1] < len(parts):
            raise GraphError(f"graph: wire: part, got number {value[1]}, allowed one that came before, of {len(parts)}")
        return parts[value[1]]
    if len(value) == 3 and value[0] == "part":
        rows, outputs = from_plain(value[1], parts), tuple(value[2])
        parts.append(Part(rows, outputs))
        return parts[-1]
    return tuple([from_plain(v, parts) for v in value])


_PLAIN = frozenset((int, str, bool, type(None)))  # hashable as they are


def hashable(value: object) -> object:
    """As plain, and equal only for what is the same: -0.0 is not 0.0, 1 is not 1.0."""
    if value.__class__ is tuple:
        return tuple([v if v.__class__ in _PLAIN else hashable(v) for v in value]) if value else value
    if value.__class__ is float:
        return repr(value)
    if value.__class__ is Part:
        return value.key()
    return ("size", value.key) if value.__class__ is Dim else value
