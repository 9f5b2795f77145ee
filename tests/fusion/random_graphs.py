"""Random graphs over all kinds of operators: smooth ones, whose float32 results lie near their float64 meaning."""

from __future__ import annotations

import random

from dvm_rt.dtypes import bool_, float32
from dvm_rt.errors import DTypeError, UnsupportedOperatorError
from dvm_rt.graph.graph import Make, Node
from dvm_rt.graph.operators import TABLE, Lowering
from dvm_rt.graph.shapes import elementwise
from dvm_rt.graph.symbols import Facts, product, same, same_shape

SMOOTH = ("tanh", "sigmoid", "erf", "negative", "silu", "abs")
PAIRS = ("add", "subtract", "multiply", "maximum", "minimum")
# of the parameters: b, t, h, k are sizes; 1 is 1
SHAPES = (("b", "t", "h"), ("b", "t", "h"), ("h",), ("b", 1, "h"), ("h", "k"), ("k",), ("b", "t", 1), (), ("t", "t"))


def shapes_for(b: int, t: int, h: int, k: int) -> list[tuple[int, ...]]:
    """Shapes of the parameters for these sizes."""
    sizes = {"b": b, "t": t, "h": h, "k": k, 1: 1}
    return [tuple(sizes[n] for n in shape) for shape in SHAPES]


def random_graph(seed: int, steps: int):
    """A function that builds the same random graph each time it is called."""

    def build(op: Make, *parameters: Node) -> tuple[Node, ...]:
        rng = random.Random(seed)
        _equate_sizes(op, parameters)
        pool = list(parameters)
        for _ in range(steps):
            made = _step(rng, op, pool)
            if made is not None and len(made.shape) <= 5:
                pool.append(made)
        made = pool[len(parameters) :] or [op.tanh(pool[0])]
        return tuple(dict.fromkeys(rng.choices(made, k=rng.randint(1, 3)) + [made[-1]]))

    return build


def any_operators(seed: int, steps: int):
    """As random_graph, over every operator of the table that takes float32 or bool arrays and needs no attributes, or those
    of ATTRIBUTES: for comparing bits alone."""

    def build(op: Make, *parameters: Node) -> tuple[Node, ...]:
        rng = random.Random(seed)
        _equate_sizes(op, parameters)
        pool = list(parameters)
        for _ in range(steps):
            made = _any_step(rng, op, pool) if rng.random() < 0.7 else _step(rng, op, pool)
            if made is not None and len(made.shape) <= 5 and made.dtype in (float32, bool_):
                pool.append(made)
        made = pool[len(parameters) :] or [op.tanh(pool[0])]
        return tuple(dict.fromkeys(rng.choices(made, k=rng.randint(1, 3)) + [made[-1]]))

    return build


ATTRIBUTES = {
    "sum": lambda rng, rank: {"axes": (rng.randrange(rank),), "keepdims": rng.random() < 0.5},
    "softmax": lambda rng, rank: {"axis": rng.randrange(rank)},
    "log_softmax": lambda rng, rank: {"axis": rng.randrange(rank)},
    "var": lambda rng, rank: {"axes": (rng.randrange(rank),), "correction": 0.0, "keepdims": True},
    "gelu": lambda rng, rank: {"approximate": rng.choice(("none", "tanh"))},
    "clip": lambda rng, rank: {"low": -0.5, "high": 0.75},
    "pow": lambda rng, rank: {"exponent": rng.choice((2.0, 3.0, -1.0, 0.5))},
    "rms_norm": lambda rng, rank: {"eps": 1e-5},
    "layer_norm": lambda rng, rank: {"eps": 1e-5},
} | {name: lambda rng, rank: {"axes": (rng.randrange(rank),), "keepdims": True} for name in ("max", "min", "mean", "any", "all")}


def _any_step(rng: random.Random, op: Make, pool: list[Node]) -> Node | None:
    x = rng.choice(pool[-6:])
    rank = len(x.shape)
    row = rng.choice([r for r in TABLE if r.inputs in (1, 2) or r.name in ATTRIBUTES])
    attributes = {}
    if row.name in ATTRIBUTES and rank:
        attributes = ATTRIBUTES[row.name](rng, rank)
    elif row.attributes or row.lowering in (Lowering.PRODUCT, Lowering.GATHER) or row.name == "matmul":
        return None
    operands = [x]
    if row.inputs == 2:
        others = [y for y in pool if y.dtype is x.dtype and _broadcasts(op, x, y)]
        operands.append(rng.choice(others))
    try:
        return getattr(op, row.name)(*operands, **attributes)
    except (DTypeError, UnsupportedOperatorError):
        return None  # another dtype than this operator takes


def _equate_sizes(op: Make, parameters: tuple[Node, ...]) -> None:
    first: dict[object, object] = {}
    for shape, node in zip(SHAPES, parameters, strict=True):
        for name, size in zip(shape, node.shape, strict=True):
            op.facts.equate(first.setdefault(name, size), size, "test")


def _step(rng: random.Random, op: Make, pool: list[Node]) -> Node | None:
    x = rng.choice(pool[-6:] if rng.random() < 0.7 else pool)
    shape = op.facts.resolve_shape(x.shape)
    rank = len(shape)
    floats = x.dtype is float32
    kind = rng.random()
    if not floats:
        return op.logical_not(x) if kind < 0.3 else op.astype(x, dtype="float32")
    if kind < 0.2:
        return getattr(op, rng.choice(SMOOTH))(x)
    if kind < 0.45:
        return _pair(rng, op, x, pool)
    if kind < 0.57 and rank:
        axes = tuple(sorted(rng.sample(range(rank), rng.randint(1, rank))))
        name, keep = rng.choice(("mean", "max", "mean", "min")), rng.random() < 0.6
        return getattr(op, name)(x, axes=axes, keepdims=keep)
    if kind < 0.62 and rank:
        return op.softmax(x, axis=rng.randrange(rank))
    if kind < 0.66 and rank:
        return op.layer_norm(x, eps=1e-2)
    if kind < 0.78:
        return _matmul(rng, op, x, pool)
    return _view(rng, op, x, shape, pool)


def _pair(rng: random.Random, op: Make, x: Node, pool: list[Node]) -> Node | None:
    others = [y for y in pool if y.dtype is float32 and _broadcasts(op, x, y)]
    if not others:
        return None
    y = rng.choice(others)
    return getattr(op, rng.choice(PAIRS))(*((x, y) if rng.random() < 0.5 else (y, x)))


def _broadcasts(op: Make, x: Node, y: Node) -> bool:
    """Whether two shapes fit without any new fact."""
    a, b = op.facts.resolve_shape(x.shape), op.facts.resolve_shape(y.shape)
    pairs = zip(a[::-1], b[::-1])
    if not all(same(p, q) or (isinstance(p, int) and p == 1) or (isinstance(q, int) and q == 1) for p, q in pairs):
        return False
    return len(elementwise(Facts(), "test", (a, b))) <= 4


def _matmul(rng: random.Random, op: Make, x: Node, pool: list[Node]) -> Node | None:
    shape = op.facts.resolve_shape(x.shape)
    if not shape:
        return None
    found = []
    for y in pool:
        other = op.facts.resolve_shape(y.shape)
        if y.dtype is float32 and len(other) == 2 and same(other[0], shape[-1]):
            found.append((x, y))
        if y.dtype is float32 and len(other) >= 2 and len(shape) >= 2 and same(other[-1],
                shape[-1]) and same_shape(other[:-2], shape[:-2]):
            found.append((x, op.permute_dims(y, axes=(*range(len(other) - 2), len(other) - 1, len(other) - 2))))
    if not found:
        return None
    a, b = rng.choice(found)
    return op.tanh(op.multiply(op.matmul(a, b), 0.2)) if rng.random() < 0.7 else op.multiply(op.matmul(a, b), 0.1)


def _view(rng: random.Random, op: Make, x: Node, shape: tuple, pool: list[Node]) -> Node | None:
    rank = len(shape)
    kind = rng.randrange(6)
    if kind == 0 and rank > 1:
        return op.permute_dims(x, axes=tuple(rng.sample(range(rank), rank)))
    if kind == 1 and rank > 1:
        at = rng.randrange(rank - 1)
        return op.reshape(x, shape=(*shape[:at], product(shape[at : at + 2]), *shape[at + 2 :]))
    if kind == 2 and rank < 4:
        return op.expand_dims(x, axes=(rng.randint(0, rank),))
    if kind == 3 and rank:
        entries = tuple(rng.choice(((None, None, None), (None, None, 2), (None, None, -1))) for _ in range(rank))
        return op.index(x, entries=entries)
    if kind == 4 and rank:
        axis = rng.randrange(rank)
        return op.concat(x, op.tanh(x), x, axis=axis)
    chosen = op.greater(x, 0.0)
    return op.where(chosen, x, op.multiply(x, 0.5))  # continuous where the sign flips
