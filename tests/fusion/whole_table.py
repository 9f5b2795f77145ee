"""Random graphs over the whole operator table, for comparing bits: with symbolic sizes, or recorded as lazy arrays.

    python -m tests.fusion.whole_table [--first SEED] [--count N]     many graphs, and which operators they had

What is left out, with its reason: `nonzero`, `compress` and `unique_*` (what lies behind the rows that are meant has no
meaning), `cond`, `while_loop` and `section` (no operators that a value alone can choose; they have tests of their own),
`parameter` (every graph has them) and `beside` (only the fuser makes it)."""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from dvm_rt import dtypes
from dvm_rt.dtypes import DType, bool_, float32, int64
from dvm_rt.errors import DTypeError, GraphError, ShapeError, UnsupportedOperatorError
from dvm_rt.fusion.fuser import forget_segments, fuse
from dvm_rt.graph.graph import Graph, Make, Node, parameter
from dvm_rt.graph.operators import TABLE, Lowering, Operator
from dvm_rt.graph.symbols import Facts, product, symbol
from dvm_rt.isa.host import BY_NAME as HOST
from tests.fusion.running import run_plan

LEFT_OUT = frozenset(
    ("nonzero", "compress", "unique_values", "unique_indices", "unique_inverse", "unique_counts", "unique_length",
     "count_nonzero",
     "cond", "while_loop", "section", "parameter", "beside", "arange", "searchsorted")
)  # fmt: skip
ROWS = tuple(row for row in TABLE if row.name not in LEFT_OUT)
WRONG = (DTypeError, UnsupportedOperatorError, ShapeError, GraphError)
# shapes of the parameters: b, t, h, k are sizes
SHAPES = (
    ("float32", ("b", "t", "h")), ("float32", ("b", "t", "h")), ("float32", ("h",)), ("float32", ("h", "k")),
    ("float32", ("b", 1, "h")),
    ("int32", ("b", "t")), ("bool", ("b", "t", 1)), ("float32", ("b", 4, "h", "t")), ("float16", ("t", "h")), ("int64", ("t",)),
    ("float64", ("h",)), ("float32", ()), ("uint8", ("b", "t", "h")), ("float32", (6, 4, 2, 3)), ("float32", ("k",)),
)  # fmt: skip
SIZES = (0, 2, 3, 5, 7, 13, 31, 32, 33, 63, 64, 65, 127, 128, 129)
ELEMENTS_MAX = 1 << 16


def draw_sizes(rng: random.Random, ones: frozenset[str]) -> dict[str | int, int]:
    """Sizes of 0, primes, and beside the sizes of strips; those in `ones` are 1."""
    while True:
        sizes = {name: 1 if name in ones else rng.choice(SIZES) for name in "bthk"}
        if max(sizes["b"] * sizes["t"] * sizes["h"] * 4, sizes["h"] * sizes["k"]) <= ELEMENTS_MAX:
            return {n: n for n in (1, 2, 3, 4, 6)} | sizes


def draw_arrays(seed: int, sizes: dict) -> list[np.ndarray]:
    """Values for the parameters."""
    rng, made = np.random.default_rng(seed), []
    for name, shape in SHAPES:
        dims = tuple(sizes[n] for n in shape)
        kind = dtypes.BY_NAME[name].kind
        if kind == "f":
            made.append(rng.normal(size=dims).astype(dtypes.BY_NAME[name].numpy))
        else:
            made.append(rng.integers(0, 2 if kind == "b" else 100, dims).astype(dtypes.BY_NAME[name].numpy))
    return made


def build(op: Make, seed: int, steps: int, parameters: Sequence, used: Counter[str] | None = None) -> tuple:
    """The random graph of this seed: `op` makes its nodes (or lazy arrays). The same for equal shapes of the parameters."""
    rng = random.Random(seed)
    _equate(op, parameters)
    pool = list(parameters)
    for _ in range(steps * 4):
        if len(pool) >= len(parameters) + steps:
            break
        known = (dict(op.facts.substitutions), list(op.facts.checks))
        row = rng.choice(ROWS)
        try:
            made = _apply(rng, op, row, pool)
        except WRONG:
            made = None
        if made is None or len(made.shape) > 6 or _too_large(made.shape):
            op.facts.__init__(*known)
            continue
        if used is not None:
            used[row.name] += 1
        pool.append(made)
    made = pool[len(parameters) :] or [op.tanh(pool[0])]
    chosen = [*rng.choices(made, k=rng.randint(1, 3)), made[-1]]
    return tuple({id(n): n for n in chosen}.values())


def _too_large(shape: tuple) -> bool:
    return all(n.__class__ is int for n in shape) and product(shape) > 16 * ELEMENTS_MAX


def _equate(op: Make, parameters: Sequence) -> None:
    first: dict[object, object] = {}
    for (_, shape), node in zip(SHAPES, parameters, strict=True):
        for name, size in zip(shape, node.shape, strict=True):
            op.facts.equate(first.setdefault(name, size), size, "test")


def _apply(rng: random.Random, op: Make, row: Operator, pool: list) -> object:
    make = SPECIAL.get(row.name)
    x = rng.choice(pool[-8:] if rng.random() < 0.6 else pool)
    if make is not None:
        return make(rng, op, x, pool)
    if row.attributes == ("axes", "keepdims"):
        axes = tuple(sorted(rng.sample(range(len(x.shape)), rng.randint(1, len(x.shape))))) if x.shape else ()
        return getattr(op, row.name)(x, axes=axes, keepdims=rng.random() < 0.5)
    if row.attributes == ("axis",):
        return getattr(op, row.name)(x, axis=rng.randrange(len(x.shape))) if x.shape else None
    if row.attributes:
        return None
    others = [y for y in pool if y.dtype is x.dtype and _broadcasts(x, y, op)]
    count = row.inputs if isinstance(row.inputs, int) else rng.choice(row.inputs)
    return getattr(op, row.name)(x, *(rng.choice(others) for _ in range(count - 1)))


def _broadcasts(x: object, y: object, op: Make) -> bool:
    a, b = op.facts.resolve_shape(x.shape), op.facts.resolve_shape(y.shape)
    pairs = zip(a[::-1], b[::-1], strict=False)
    return all((p.__class__ is int and p == 1) or (q.__class__ is int and q == 1) or _same(p, q) for p, q in pairs)


def _same(p: object, q: object) -> bool:
    from dvm_rt.graph.symbols import same

    return same(p, q)


def _float(op: Make, x: object) -> object:
    return op.astype(x, dtype="float32")


def _axis(rng: random.Random, x: object) -> int:
    if not x.shape:
        raise ShapeError("test: an axis of nothing, got (), allowed a dimension")
    return rng.randrange(len(x.shape))


def _indices(rng: random.Random, op: Make, rows: object, pool: list) -> object:
    """Whole numbers that are indices of so many rows."""
    x = op.abs(op.astype(rng.choice([y for y in pool if y.dtype is not bool_]), dtype="int64"))
    return op.remainder(x, op.dimension(size=rows, dtype="int64"))


def _take(rng: random.Random, op: Make, x: object, pool: list) -> object:
    index = _indices(rng, op, x.shape[_axis(rng, x) * 0], pool)
    return op.take(x, index) if len(x.shape) + len(index.shape) <= 5 else None


def _concat(rng: random.Random, op: Make, x: object, pool: list) -> object:
    parts = [op.tanh(x) if x.dtype is float32 and rng.random() < 0.4 else x for _ in range(rng.randint(2, 3))]
    return op.concat(*parts, axis=_axis(rng, x))


def _view(name: str) -> Callable:
    def make(rng: random.Random, op: Make, x: object, pool: list) -> object:
        shape = op.facts.resolve_shape(x.shape)
        rank = len(shape)
        if name == "permute_dims":
            return op.permute_dims(x, axes=tuple(rng.sample(range(rank), rank)))
        if name == "expand_dims":
            return op.expand_dims(x, axes=(rng.randint(0, rank),)) if rank < 5 else None
        if name == "squeeze":
            ones = tuple(i for i, n in enumerate(shape) if n.__class__ is int and n == 1)
            return op.squeeze(x, axes=ones) if ones else None
        if name == "broadcast_to":
            return op.broadcast_to(x, shape=(2, *(rng.choice((3, n)) if n.__class__ is int and n == 1 else n
                                                  for n in shape))) if rank < 5 else None
        if name == "index":
            forms = ((None, None, None), (None, None, 2), (None, None, -1), (1, None, None), (None, 3, None), (None, -1, None), 0)
            return op.index(x, entries=tuple(rng.choice(forms) if rng.random() < 0.6 else forms[0] for _ in range(rank)))
        at = rng.randrange(rank - 1) if rank > 1 else 0
        merged = (*shape[:at], product(shape[at : at + 2]), *shape[at + 2 :]) if rank > 1 else (*shape, 1)
        return op.reshape(x, shape=rng.choice((merged, (-1,), (1, *shape), (*merged, 1))))

    return make


def _product(name: str) -> Callable:
    def make(rng: random.Random, op: Make, x: object, pool: list) -> object:
        shape = op.facts.resolve_shape(x.shape)
        found = []
        for y in pool:
            other = op.facts.resolve_shape(y.shape)
            if y.dtype is not x.dtype or len(other) < 2 or len(shape) < (1 if name == "matmul" else 2):
                continue
            turned = _same(other[-1], shape[-1])
            if not turned and not _same(other[-2], shape[-1]):
                continue
            if name == "linear":
                found += [y] if turned and len(other) == 2 else []
            elif len(other) == 2 or (len(other) == len(shape) and all(map(_same, other[:-2], shape[:-2]))):
                found.append(op.permute_dims(y, axes=(*range(len(other) - 2), len(other) - 1, len(other) - 2)) if turned else y)
        if not found:
            return None
        made = getattr(op, name)(x, rng.choice(found))
        if made.dtype is float32:
            made = op.multiply(made, op.constant(value=0.2, dtype="float32"))
        return made

    return make


def _attention(rng: random.Random, op: Make, x: object, pool: list) -> object:
    shape = op.facts.resolve_shape(x.shape)
    found = [y for y in pool if y.dtype is float32 and len(y.shape) == len(shape) and all(map(_same, y.shape, shape))]
    if x.dtype is not float32 or len(shape) < 2 or not found:
        return None
    return op.attention(
        x, rng.choice(found), rng.choice(found), scale=rng.choice((None, 0.3)), causal=rng.random() < 0.5,
        masked=float("-inf"), empty=0.0
    )  # fmt: skip


def _conv(rng: random.Random, op: Make, x: object, pool: list) -> object:
    image, weight = pool[7], pool[13]  # (b, 4, h, t) and (6, 4, 2, 3)
    return op.conv(image, weight, stride=rng.choice(((1, 1), (2, 1))), padding=((1, 0), (1, 2)),
                   dilation=(1, rng.choice((1, 2))), groups=1)


def _conv_transpose(rng: random.Random, op: Make, x: object, pool: list) -> object:
    image = pool[7]
    weight = op.index(pool[13], entries=((None, 4, None), (None, None, None)))
    return op.conv_transpose(image, weight, stride=(rng.choice((1, 2)), 1), padding=((0, 0), (1, 0)),
                             output_padding=(0, 0), dilation=(1, 1), groups=1)


def _window_product(rng: random.Random, op: Make, x: object, pool: list) -> object:
    image = pool[7]
    step = rng.choice((1, 2))
    seen = op.permute_dims(op.windows(image, kernel=(2, 3), stride=(step, 1), dilation=(1, 1)), axes=(0, 1, 4, 5, 2, 3))
    weight = op.reshape(op.iota(size=3 * 6 * image.shape[1]), shape=(3, 6 * image.shape[1]))
    return op.window_product(op.astype(weight, dtype="float32"), seen)


def _pool(name: str) -> Callable:
    def make(rng: random.Random, op: Make, x: object, pool: list) -> object:
        more = {"count_include_pad": rng.random() < 0.5} if name == "avg_pool" else {}
        return getattr(op, name)(
            pool[7], kernel=(2, 3), stride=rng.choice(((1, 1), (2, 3))), padding=((0, 0), (1, 1)), dilation=(1, 1),
            ceil_mode=False, **more
        )  # fmt: skip

    return make


def _scatter(rng: random.Random, op: Make, x: object, pool: list) -> object:
    axis = _axis(rng, x)
    index = op.remainder(op.iota(size=product(x.shape)), op.dimension(size=x.shape[axis], dtype="int64"))
    return op.scatter(x, op.reshape(index, shape=tuple(x.shape)), x, axis=axis, how=rng.randrange(2))


def _take_along(rng: random.Random, op: Make, x: object, pool: list) -> object:
    axis = _axis(rng, x)
    return op.take_along_axis(x, op.argsort(x, axis=axis, descending=0), axis=axis)


def _gather_nd(rng: random.Random, op: Make, x: object, pool: list) -> object:
    index = op.remainder(op.iota(size=product(x.shape)), op.dimension(size=x.shape[_axis(rng, x) * 0], dtype="int64"))
    return op.gather_nd(x, op.expand_dims(index, axes=(1,)), batch=0)


def _scatter_nd(rng: random.Random, op: Make, x: object, pool: list) -> object:
    index = op.expand_dims(op.iota(size=x.shape[_axis(rng, x) * 0]), axes=(1,))
    return op.scatter_nd(x, index, x, how=rng.randrange(2))


def _norm(name: str) -> Callable:
    def make(rng: random.Random, op: Make, x: object, pool: list) -> object:
        vectors = [y for y in pool if y.dtype is x.dtype and len(y.shape) == 1 and x.shape and _same(y.shape[0], x.shape[-1])]
        most = min(len(vectors), 2 if name == "layer_norm" else 1)
        return getattr(op, name)(x, *(rng.choice(vectors) for _ in range(rng.randint(0, most))), eps=1e-5) if x.shape else None

    return make


def _in_groups(op: Make, product: Callable, x: object) -> object:
    """One group that has one row: what is beyond it gives 0."""
    if len(x.shape) != 2:
        return None
    return product(x, op.expand_dims(op.permute_dims(x, axes=(1, 0)), axes=(0,)), op.full(shape=(1,), value=1, dtype="int64"))


SPECIAL: dict[str, Callable] = {
    "constant": lambda rng, op, x, pool: op.add(x, op.constant(value=rng.choice((0, 1, 3)), dtype=x.dtype.name)),
    "dimension": lambda rng, op, x, pool: op.multiply(_float(op, x), op.dimension(size=x.shape[_axis(rng, x)], dtype="float32")),
    "iota": lambda rng, op, x, pool: op.add(op.iota(size=x.shape[-1]), op.astype(x, dtype="int64")) if x.shape else None,
    "full": lambda rng, op, x, pool: op.full(shape=tuple(x.shape), value=0.5, dtype="float32"),
    "where": lambda rng, op, x, pool: op.where(op.greater(_float(op, x), op.constant(value=0.0, dtype="float32")), x,
                                               _partner(rng, op, x, pool)),
    "astype": lambda rng, op, x, pool: op.astype(x, dtype=rng.choice(dtypes.DTYPES).name),
    "prod": lambda rng, op, x, pool: op.prod(x, axes=(_axis(rng, x),), keepdims=rng.random() < 0.5),
    "var": lambda rng, op, x, pool: op.var(x, axes=(_axis(rng, x),), correction=0.0, keepdims=rng.random() < 0.5),
    "gelu": lambda rng, op, x, pool: op.gelu(x, approximate=rng.choice(("none", "tanh"))),
    "clip": lambda rng, op, x, pool: op.clip(_float(op, x), low=-0.5, high=0.75),
    "pow": lambda rng, op, x, pool: op.pow(x, exponent=rng.choice((2.0, 3.0, -1.0, 0.5) if x.dtype.kind == "f" else (2.0, 3.0))),
    "stack": lambda rng, op, x, pool: op.stack(x, x, axis=rng.randint(0, len(x.shape))) if len(x.shape) < 5 else None,
    "concat": _concat, "take": _take, "attention": _attention, "conv": _conv, "conv_transpose": _conv_transpose,
    "matmul": _product("matmul"), "matrix_product": _product("matrix_product"), "linear": _product("linear"),
    "matmul_integer": lambda rng, op, x, pool: op.matmul_integer(pool[12], op.permute_dims(pool[12], axes=(0, 2, 1))),
    "grouped_matmul": lambda rng, op, x, pool: _in_groups(op, op.grouped_matmul, x),
    "grouped_product": lambda rng, op, x, pool: _in_groups(op, op.grouped_product, _float(op, x)),
    "max_pool": _pool("max_pool"), "avg_pool": _pool("avg_pool"), "layer_norm": _norm("layer_norm"),
    "rms_norm": _norm("rms_norm"),
    "window_product": _window_product,
    "windows": lambda rng, op, x, pool: op.windows(x, kernel=(2,), stride=(rng.choice((1, 2)),), dilation=(1,))
    if 0 < len(x.shape) < 5 else None,
    "sort": lambda rng, op, x, pool: op.sort(x, axis=_axis(rng, x), descending=rng.randrange(2)),
    "argsort": lambda rng, op, x, pool: op.argsort(x, axis=_axis(rng, x), descending=rng.randrange(2)),
    "topk": lambda rng, op, x, pool: op.topk(x, axis=_axis(rng, x), count=2, largest=1),
    "scatter": _scatter, "take_along_axis": _take_along, "gather_nd": _gather_nd, "scatter_nd": _scatter_nd,
    "philox": lambda rng, op, x, pool: op.philox(op.astype(x, dtype="uint64"), op.constant(value=7, dtype="uint64")),
}  # fmt: skip
SPECIAL |= {n: _view(n) for n in ("permute_dims", "reshape", "expand_dims", "squeeze", "broadcast_to", "index")}


def _partner(rng: random.Random, op: Make, x: object, pool: list) -> object:
    return rng.choice([y for y in pool if y.dtype is x.dtype and _broadcasts(x, y, op)])


# ---- comparing ----------------------------------------------------------------------------------------------------


def symbolic_graph(seed: int, steps: int, ones: frozenset[str], used: Counter[str] | None = None) -> Graph:
    """The graph over symbols, where the sizes in `ones` are 1."""
    facts, count, parameters = Facts(), 0, []
    for index, (name, shape) in enumerate(SHAPES):
        dims = []
        for n in shape:
            dims.append(n if isinstance(n, int) else 1 if n in ones else symbol(count))
            count += 1
        parameters.append(parameter(index, tuple(dims), dtypes.BY_NAME[name]))
    return Graph.of(parameters, build(Make(facts), seed, steps, parameters, used), facts)


def check_plans(seed: int, used: Counter[str] | None = None, draws: int = 4) -> int:
    """Fused and unfused plans of one random graph give the same bytes for several draws of sizes; gives how many fitted."""
    rng = random.Random(-seed - 1)
    ones = frozenset(rng.sample("bthk", rng.choice((0, 0, 0, 1, 2))))
    graph = symbolic_graph(seed, rng.choice((3, 6, 12, 25)), ones, used)
    if rng.random() < 0.3:
        forget_segments()
    plans = [fuse(graph).plan, fuse(graph, fused=False).plan]
    fitted = 0
    for _ in range(draws):
        arrays = draw_arrays(seed, draw_sizes(rng, ones))
        try:
            graph.symbol_values([a.shape for a in arrays])
        except ShapeError:
            continue
        fitted += 1
        for number, (a, b) in enumerate(zip(*(run_plan(plan, arrays) for plan in plans), strict=True)):
            same = a.tobytes() == b.tobytes()
            shapes = [x.shape for x in arrays]
            assert same, f"seed {seed}, output {number}, shapes {shapes}\n{graph.dump()}\n{fuse(graph).report.text()}"
    return fitted


class LazyMake:
    """Records lazy arrays by the names of operators, as Make makes nodes."""

    def __init__(self) -> None:
        self.facts = Facts()

    def __getattr__(self, name: str) -> Callable:
        from dvm_rt.array.array import record
        from dvm_rt.graph.operators import OPERATORS

        row = OPERATORS[name]

        def make(*inputs: object, **attributes: object) -> object:
            if name == "astype" and inputs[0].dtype.name == attributes["dtype"]:
                return inputs[0]
            return record(name, inputs, tuple(attributes[a] for a in row.attributes))

        return make


class OneByOne(LazyMake):
    """Each operator is computed at once, by itself: with plans that all graphs share."""

    def __getattr__(self, name: str) -> Callable:
        import dvm_rt as dvm

        lazily = super().__getattr__(name)

        def make(*inputs: object, **attributes: object) -> object:
            made = lazily(*inputs, **attributes)
            if not _too_large(made.shape):  # that is not kept
                dvm.eval(made)
            return made

        return make


def check_lazy(seed: int, draws: int = 3) -> int:
    """Lazy arrays that are computed at random moments give the bytes that they have if each operator is computed by itself."""
    import dvm_rt as dvm

    rng = random.Random(-seed - 1)
    ones = frozenset(rng.sample("bthk", rng.choice((0, 0, 0, 1, 2))))
    steps = rng.choice((3, 6, 12, 25))
    done = 0
    for _ in range(draws):
        arrays = draw_arrays(seed, draw_sizes(rng, ones))
        given = [dvm.asarray(a) for a in arrays]
        try:
            want = [np.asarray(a).copy() for a in build(OneByOne(), seed, steps, given)]
        except ShapeError:
            continue  # the largest of nothing, inside of a composite
        lazy = build(LazyMake(), seed, steps, given)
        order = list(range(len(lazy)))
        rng.shuffle(order)
        if rng.random() < 0.5:
            dvm.eval(*lazy)
        got = {i: np.asarray(lazy[i]) for i in order}
        for i, array in enumerate(want):
            assert got[i].tobytes() == array.tobytes(), f"seed {seed}, output {i}, shapes {[a.shape for a in arrays]}"
        done += 1
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    used: Counter[str] = Counter()
    wrong, fitted, lazy = [], 0, 0
    for number, seed in enumerate(range(arguments.first, arguments.first + arguments.count)):
        if number % 250 == 0:
            print(f"{number} graphs, {fitted} draws of sizes, {lazy} lazy ones, {len(wrong)} wrong", flush=True)
        try:
            fitted += check_plans(seed, used)
            lazy += check_lazy(seed)
        except Exception as error:  # noqa: BLE001  the next seeds are wanted all the same
            wrong.append(seed)
            print(f"---- seed {seed}: {type(error).__name__}: {error}", flush=True)
    missing = sorted(row.name for row in ROWS if not used[row.name])
    print(f"{arguments.count} graphs, {fitted} draws of sizes, {lazy} lazy ones; "
          f"operators never used: {', '.join(missing) or 'none'}")
    print(f"{len(wrong)} wrong: {wrong}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
