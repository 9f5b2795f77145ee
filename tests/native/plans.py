"""Vector kernels for tests and benchmarks: built with PlanBuilder, and evaluated node by node in NumPy.

A `Case` is one kernel over a domain of symbolic dimensions. `expected` computes each node on whole arrays, in the
arithmetic of the reference interpreter: what an encoder makes of the kernel must give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from dvm_rt.dtypes import DTYPES, DType, bool_, float32, int32, int64
from dvm_rt.fusion.plan import GATHER, READ, STREAM, WRITE, Plan, PlanBuilder
from dvm_rt.isa import reference, table
from dvm_rt.isa.layout import LIMITS

LANES, BLOCK = LIMITS["LANES"], LIMITS["BLOCK"]
Array = np.ndarray


@dataclass
class Value:
    """A node under construction, with Python's arithmetic."""

    case: Case
    node: int

    def __add__(self, other: Value | float) -> Value:
        return self.case.binary("add", self, other)

    def __sub__(self, other: Value | float) -> Value:
        return self.case.binary("sub", self, other)

    def __mul__(self, other: Value | float) -> Value:
        return self.case.binary("mul", self, other)

    def __truediv__(self, other: Value | float) -> Value:
        return self.case.binary("div", self, other)

    def op(self, name: str, other: Value | float | None = None) -> Value:
        if other is not None:
            return self.case.binary(name, self, other)
        return Value(self.case, self.case.kernel.unary(name, self.node))

    def sum(self) -> Value:
        return Value(self.case, self.case.kernel.sum(self.node))

    def max(self) -> Value:
        return Value(self.case, self.case.kernel.max(self.node))


class Case:
    """`rank` symbolic dimensions, outermost first; the last one is the row. Input 0 has the shape of the domain."""

    def __init__(self, rank: int, stream: bool = False) -> None:
        self.builder = PlanBuilder()
        self.dims = [self.builder.symbol(0, d) for d in range(rank)]
        self.kernel = self.builder.kernel("VECTOR", self.dims[::-1], flags=STREAM if stream else 0)
        self.views: dict[int, Callable[[dict[int, Array]], Array]] = {}  # argument of the kernel -> its elements
        self.outputs: list[tuple[int, int, bool]] = []  # (node, buffer, one value a row)
        self.indices: dict[int, int] = {}  # buffer of row numbers -> symbol of the number of rows
        self.first = self.input()

    def input(self, dtype: DType = float32, ones: Sequence[int] = (), layout: str = "plain") -> Value:
        """An input of the domain's shape, 1 in the dimensions `ones`. Layouts: plain, transposed (stored with dims
        reversed), reversed (read from the end of each row), strided (every second element)."""
        b, one = self.builder, self.builder.const(1)
        dims = [one if d in ones else dim for d, dim in enumerate(self.dims)]
        stored = dims[::-1] if layout == "transposed" else [*dims[:-1], b.mul(dims[-1], b.const(2 if layout == "strided" else 1))]
        buffer = b.input(b.parameter(dtype, stored))
        strides = list(b.contiguous(stored[::-1]))
        offset = b.const(0)
        if layout == "transposed":
            strides.reverse()
            view = lambda arrays: arrays[buffer].transpose()  # noqa: E731
        elif layout == "reversed":
            strides[0], offset = b.mul(strides[0], b.const(-1)), b.add(dims[-1], b.const(-1))
            view = lambda arrays: arrays[buffer][..., ::-1]  # noqa: E731
        elif layout == "strided":
            strides[0] = b.const(2) if dims[-1] != one else b.const(0)
            view = lambda arrays: arrays[buffer][..., ::2]  # noqa: E731
        else:
            view = lambda arrays: arrays[buffer]  # noqa: E731
        return self._read(self.kernel.arg(buffer, READ, dtype, strides, offset), view)

    def gathered(self, dtype: DType = float32, index_dtype: DType = int32, ones: Sequence[int] = ()) -> Value:
        """Rows of a table [rows, row length], chosen by an index of the outer dimensions (1 in `ones`)."""
        b, number = self.builder, len(self.builder._parameters)
        rows = b.symbol(number, 0)
        table_buffer = b.input(b.parameter(dtype, [rows, self.dims[-1]]))
        shape = [b.const(1) if d in ones else dim for d, dim in enumerate(self.dims[:-1])]
        index_buffer = b.input(b.parameter(index_dtype, shape))
        zero = b.const(0)
        index = self.kernel.arg(index_buffer, READ, index_dtype, [zero, *b.contiguous(shape[::-1])])
        arg = self.kernel.arg(
            table_buffer, READ | GATHER, dtype, [b.const(1)] + [zero] * len(shape), zero, index, rows, self.dims[-1]
        )
        self.indices[index_buffer] = rows
        return self._read(arg, lambda arrays: arrays[table_buffer][arrays[index_buffer]])

    def output(self, value: Value, dtype: DType = float32, per_row: bool = False, layout: str = "plain") -> None:
        b = self.builder
        dims = [*self.dims[:-1], b.const(1)] if per_row else self.dims
        stored = dims[::-1] if layout == "transposed" else dims
        buffer = b.output(dtype, stored)
        strides = b.contiguous(stored[::-1])
        arg = self.kernel.arg(buffer, WRITE, dtype, strides[::-1] if layout == "transposed" else strides)
        self.kernel.output(value.node, arg)
        self.outputs.append((value.node, buffer, layout == "transposed"))

    def binary(self, name: str, a: Value, b: Value | float) -> Value:
        other = b.node if isinstance(b, Value) else self.kernel.const(b)
        return Value(self, self.kernel.binary(name, a.node, other))

    def build(self) -> Plan:
        return self.builder.build()

    def _read(self, arg: int, view: Callable[[dict[int, Array]], Array]) -> Value:
        self.views[arg] = view
        return Value(self, self.kernel.input(arg))


def arrays_of(plan: Plan, symbols: Sequence[int], rng: np.random.Generator, indices: dict[int, int] | None = None) -> list[Array]:
    """Arrays for the program arguments: random inputs, outputs full of 7. `indices`: buffers that hold row numbers,
    and the expression that they must be below."""
    values, arrays = plan.evaluate(symbols), []
    for number, buffer in enumerate(plan.buffers):
        if buffer.role == "TEMPORARY":
            continue
        of = plan.outputs[buffer.index] if buffer.role == "OUTPUT" else plan.parameters[buffer.index]
        shape = tuple(values[d] for d in of.dims)
        if buffer.role == "OUTPUT":
            arrays.append(np.full(shape, 7).astype(of.dtype.numpy))
        elif number in (indices or {}):
            rows = values[indices[number]]
            arrays.append(rng.integers(-rows, rows, shape).astype(of.dtype.numpy))
        elif of.dtype is bool_:
            arrays.append(rng.integers(0, 2, shape).astype(bool))
        elif of.dtype.kind in "iu":
            arrays.append(rng.integers(0 if of.dtype.kind == "u" else -100, 100, shape).astype(of.dtype.numpy))
        else:
            arrays.append(rng.standard_normal(shape).astype(of.dtype.numpy))
    return arrays


def expected(case: Case, plan: Plan, symbols: Sequence[int], arrays: Sequence[Array], wide: bool = False) -> dict[int, Array]:
    """What every output buffer must hold: in float32 as the machine does it or, if `wide`, in float64."""
    by_buffer = dict(enumerate(arrays))  # these plans have no temporaries
    values = plan.evaluate(symbols)
    domain = tuple(values[d] for d in case.dims)
    nodes: list[Array] = []
    with np.errstate(all="ignore"):
        for node in plan.kernels[0].nodes:
            nodes.append(_evaluate(node, nodes, case, by_buffer, domain, wide))
    results = {}
    for node, buffer, transposed in case.outputs:
        out = by_buffer[buffer]
        shape = out.shape[::-1] if transposed else out.shape
        whole = np.broadcast_to(nodes[node], shape) if len(shape) == nodes[node].ndim or nodes[node].ndim == 0 else nodes[node]
        stored = whole if wide else reference.convert_store(whole, plan.buffers[buffer].dtype)
        results[buffer] = (stored.T if transposed else stored).reshape(out.shape)
    return results


def _evaluate(node, nodes: list[Array], case: Case, arrays: dict[int, Array], domain: tuple[int, ...], wide: bool) -> Array:
    kind = np.float64 if wide else np.float32
    match node.op:
        case "NODE_INPUT":
            view = case.views[node.a](arrays)
            return (view != 0 if view.dtype == bool else view).astype(np.float32).astype(kind)
        case "NODE_CONST":
            return np.asarray(np.float32(node.k)).astype(kind)
        case "NODE_OUTPUT":
            return np.zeros(())
        case "NODE_SUM" | "NODE_MAX":
            whole = np.broadcast_to(nodes[node.a], domain)
            if wide:
                return whole.sum(-1, keepdims=True) if node.op == "NODE_SUM" else whole.max(-1, keepdims=True, initial=-np.inf)
            return reduce_rows(whole, node.op == "NODE_SUM")
    operands = [np.atleast_1d(nodes[i]) for i in ((node.a, node.b) if _is_binary(node.op) else (node.a,))]
    operands = list(np.broadcast_arrays(*operands))
    return table.BY_NAME[node.op].meaning(*operands) if wide else reference.compute(table.BY_NAME[node.op], *operands)


def _is_binary(name: str) -> bool:
    return table.BY_NAME[name].group is table.Group.BINARY


def reduce_rows(x: Array, is_sum: bool) -> Array:
    """Sum or maximum over the last dimension in the order that the contract fixes."""
    n = x.shape[-1]
    if n <= BLOCK:
        return _reduce_block(x, is_sum)
    blocks = [_reduce_block(x[..., i : i + BLOCK], is_sum) for i in range(0, n, BLOCK)]
    return _reduce_block(np.concatenate(blocks, -1), is_sum)


def _reduce_block(x: Array, is_sum: bool) -> Array:
    operation = np.add if is_sum else table.BY_NAME["max"].meaning
    lanes = np.full((*x.shape[:-1], LANES), 0 if is_sum else -np.inf, np.float32)
    for i in range(0, x.shape[-1], LANES):
        part = x[..., i : i + LANES]
        lanes[..., : part.shape[-1]] = operation(lanes[..., : part.shape[-1]], part)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = operation(lanes[..., :half], lanes[..., half:])
    return lanes


# ---- random kernels -------------------------------------------------------------------------------------------------

EXACT = ("neg", "abs", "square", "relu", "sqrt", "rsqrt", "recip", "floor", "ceil", "trunc", "round", "isnan")
EXACT_PAIRS = (
    "add", "sub", "rsub", "mul", "div", "rdiv", "max", "min", "eq", "ne", "lt", "le", "gt", "ge", "keep", "drop",
)  # fmt: skip
SMOOTH = ("neg", "abs", "relu", "tanh", "sigmoid", "erf")
SMOOTH_PAIRS = ("add", "sub", "mul", "max", "min")
STORED = (int32, bool_, float32)


@dataclass
class RandomCase:
    case: Case
    plan: Plan
    symbols: list[int]


def random_case(seed: int, smooth: bool) -> RandomCase:
    """A kernel of 1 to 4 dimensions with inputs of all kinds, shared values, reductions of reductions and 1 to 3 outputs.
    Smooth ones have only operators whose results move little when their operands do."""
    random = Random(seed)
    shape = random.choice([(200,), (3, 200), (2, 3, 65), (4, 128), (2, 2, 2, 130), (5, 7), (1, 513), (6, 1), (3, 129)])
    case = Case(len(shape))
    values, full, reduced = [case.first], {case.first.node}, set()
    outer = range(len(shape) - 1)

    def add(value: Value, *operands: Value) -> None:
        values.append(value)
        if any(v.node in full for v in operands):
            full.add(value.node)
        if any(v.node in reduced for v in operands):
            reduced.add(value.node)

    for _ in range(random.randint(0, 3)):
        ones = [d for d in range(len(shape)) if random.random() < 0.3]
        kind = random.choice([float32, float32, float32, int32, bool_, DTYPES[1], DTYPES[6]])
        value = case.input(kind, ones, random.choice(["plain", "plain", "plain", "transposed", "reversed", "strided"]))
        values.append(value)
        if len(shape) - 1 not in ones:
            full.add(value.node)
    if random.random() < 0.3:
        value = case.gathered(random.choice([float32, int32]), random.choice([int32, int64]),
                              [d for d in outer if random.random() < 0.3])
        values.append(value)
        full.add(value.node)
    unary, binary = (SMOOTH, SMOOTH_PAIRS) if smooth else (EXACT, EXACT_PAIRS)
    while len(case.kernel.nodes) < random.randint(6, 44):
        a, b, q = random.choice(values[-6:]), random.choice(values[-6:]), random.random()
        if q < 0.4:
            add(a.op(random.choice(binary), b), a, b)
        elif q < 0.5:
            add(a.op(random.choice(binary), random.uniform(-1, 1)), a)
        elif q < 0.55 and not smooth:
            c = random.choice(values)
            add(Value(case, case.kernel.where(c.node, a.node, b.node)), a, b, c)
        elif q < 0.85:
            add(a.op(random.choice(unary)), a)
        else:
            total = a.max() if random.random() < 0.5 else (a.op("tanh") if smooth else a).sum()
            values.append(total)
            reduced.add(total.node)
        if smooth and random.random() < 0.5:
            add(values[-1].op("tanh"), values[-1])
    case.output(values[-1] + values[0], layout=random.choice(["plain", "plain", "transposed"]))
    for _ in range(random.randint(0, 2)):
        value = random.choice(values)
        per_row = value.node not in full and value.node in reduced
        dtype = float32 if per_row or smooth else random.choice(STORED)
        case.output(value, dtype, per_row)
    plan = case.build()
    symbols = [shape[s.dim] if s.parameter == 0 else 11 for s in plan.symbols]
    return RandomCase(case, plan, symbols)


# ---- the fused kernels that figures are given for -------------------------------------------------------------------


def chain8(case: Case) -> None:
    x, y = case.first, case.input()
    t = (x * y + x).op("max", y) * -0.5
    case.output(x / (t.op("exp") + 1.0) - y)


def gelu_tanh(case: Case) -> None:
    x = case.first
    case.output(x * 0.5 * (((x + x.op("square") * x * 0.044715) * 0.7978845608).op("tanh") + 1.0))


def swiglu(case: Case) -> None:
    x, y = case.first, case.input()
    case.output(x * x.op("sigmoid") * y)


def lstm(case: Case) -> None:
    i, f, g, o, c = case.first, case.input(), case.input(), case.input(), case.input()
    cell = f.op("sigmoid") * c + i.op("sigmoid") * g.op("tanh")
    case.output(o.op("sigmoid") * cell.op("tanh"))
    case.output(cell)


def softmax(case: Case) -> None:
    x = case.first
    e = (x - x.max()).op("exp")
    case.output(e * e.sum().op("recip"))


def layernorm(case: Case) -> None:
    outer = range(len(case.dims) - 1)
    x, w, b = case.first, case.input(ones=outer), case.input(ones=outer)
    d = x - x.sum() * (1 / 768)
    r = (d.op("square").sum() * (1 / 768) + 1e-5).op("rsqrt")
    case.output(d * r * w + b)


def rmsnorm(case: Case) -> None:
    outer = range(len(case.dims) - 1)
    x, residual, w = case.first, case.input(), case.input(ones=outer)
    h = x + residual
    r = (h.op("square").sum() * (1 / 768) + 1e-5).op("rsqrt")
    case.output(h * r * w)


FUSED: dict[str, Callable[[Case], None]] = {
    f.__name__: f for f in (chain8, gelu_tanh, swiglu, lstm, softmax, layernorm, rmsnorm)
}
