"""Small programs that put one instruction to work, made from its row of the instruction table; and hard
inputs.

A case is a program, its arguments, and which of them are outputs. `cases(instruction, form, length, rng)`
knows nothing of single arithmetic instructions: it reads group and operand form. Stores and control words
differ too much for that: each has its own small program, found by name, so a new one without a program fails
the test that walks the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dvm_rt import dtypes
from dvm_rt.isa import layout, table
from dvm_rt.isa.program import GATHER, READ, WRITE, ProgramBuilder, SectionBuilder
from dvm_rt.isa.table import Group, Instruction

LENGTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192, 193, 255, 256, 257, 300)
ROWS = 3
BLOCK = layout.LIMITS["BLOCK"]
FEW_LENGTHS = (1, 3, 8, 31, 33, 63, 64, 65, 128, 200)  # for compute dtypes other than float32
LOADED = list(dtypes.DTYPES)
COMPUTE = [dtypes.BY_NAME[name] for name in table.COMPUTE_DTYPES]
SPECIALS = np.array(
    [0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x7F800001,
     0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x4B000000, 0x4F000000, 0xCF000000,
     0x5F000000, 0xDF000000, 0x3F000000, 0xBF000000, 0x3FC00000, 0x40200000, 0xC2AEAC50, 0x42B17218, 0x437F0000],
    np.uint32,
).view(np.float32)  # fmt: skip


def specials(dtype: dtypes.DType) -> np.ndarray:
    """Values of a compute dtype at which rules change."""
    if dtype is dtypes.float32:
        return SPECIALS
    if dtype is dtypes.float64:
        odd = np.array([0x7FF8000000000000, 0xFFF8000000001234, 1, 0x800FFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFF], np.uint64)
        exact = [0.0, -0.0, 1, -1, np.inf, -np.inf, 2.0**-1022, 0.5, -0.5, 1.5, 2.5, 2.0**31, -(2.0**31), 2.0**52, 2.0**53 + 2,
                 2.0**63, -(2.0**63), 2.0**64, 65519.99, 65520.0, 2.0**-24, 2.0**-25, 3.3895e38, 3.4028236e38, 1e-40]  # fmt: skip
        return np.concatenate([odd.view(np.float64), np.array(exact, np.float64)])
    limits = np.iinfo(dtype.numpy)
    near = [limits.min, limits.min + 1, limits.max, limits.max - 1, limits.max // 2 + 1, 0, 1, 2, 3, 7, 31, 32, 63,
            64, 255, 256, 65519]
    if dtype.kind == "i":
        near += [-1, -2, -7, -32, -65520]
    if dtype.bytes == 8:
        near += [2**53 + 1, 2**54 + 3, 2**33]
    return np.array(near, dtype.numpy)


def hard(rng: np.random.Generator, dtype: dtypes.DType, *shape: int) -> np.ndarray:
    """Values of a compute dtype: of all sizes, and specials."""
    if dtype is dtypes.float32:
        return hard_floats(rng, *shape)
    bits = rng.integers(0, 1 << 64, shape, np.uint64).astype(f"u{dtype.bytes}").view(dtype.numpy)
    moderate = rng.standard_normal(shape) * 10.0 ** rng.integers(0, 4, shape)
    moderate = (np.abs(moderate) if dtype.kind == "u" else moderate).astype(dtype.numpy)
    choice = rng.integers(0, 10, shape)
    return np.where(choice < 2, rng.choice(specials(dtype), shape), np.where(choice < 4, bits, moderate))


@dataclass(frozen=True, slots=True)
class Case:
    """A program, its arguments (outputs hold garbage), and the numbers of the outputs."""

    name: str
    program: bytes
    args: list[np.ndarray]
    outputs: list[int]


def hard_floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 of all exponents and signs, with specials: NaN of several kinds, infinities, zeros, subnormals,
    halves."""
    size = int(np.prod(shape))
    any_bits = rng.integers(0, 1 << 32, size, dtype=np.uint32).view(np.float32)
    moderate = (rng.standard_normal(size) * 10.0 ** rng.integers(-2, 3, size)).astype(np.float32)
    choice = rng.integers(0, 10, size)
    values = np.where(choice < 2, rng.choice(SPECIALS, size), np.where(choice < 4, any_bits, moderate))
    return values.astype(np.float32, copy=False).reshape(shape)


def stored(rng: np.random.Generator, dtype: dtypes.DType, *shape: int) -> np.ndarray:
    """Elements of a storage dtype, limits included (bool: any byte)."""
    if dtype.kind == "f":
        if dtype.bytes == 2:
            return rng.integers(0, 1 << 16, shape, np.uint16).view(dtype.numpy)
        return hard(rng, dtype, *shape)
    kind = np.dtype(np.uint8) if dtype.kind == "b" else dtype.numpy
    limits = np.iinfo(kind)
    values = rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
    return np.where(
        rng.integers(0, 4, shape) == 0,
        rng.choice(np.array([limits.min, limits.max, 0, 1], kind), shape),
        values,
    )


def cases(
    instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType | None = None
) -> Iterator[Case]:
    """Programs for one row of the table in one operand form, with rows of `length` elements; without a `dtype`, in the
    first one for which the row exists."""
    dtype = dtype or dtypes.BY_NAME[instruction.compute_dtypes[0]]
    make = {
        Group.BINARY: _binary, Group.UNARY: _unary, Group.REDUCE: _reduction, Group.FOLD: _reduction, Group.RUNNING: _running,
    }.get(instruction.group)  # fmt: skip
    if make is None:
        make = OWN[instruction.name]
    return make(instruction, form, length, rng, dtype)


class Bench:
    """One vector section over ROWS rows of `length`, arguments added as they are named."""

    def __init__(self, length: int, rows: int = ROWS, dtype: dtypes.DType = dtypes.float32) -> None:
        self.builder, self.args, self.outputs = ProgramBuilder(), [], []
        self.shape, self.dtype = (rows, length), dtype
        self.section: SectionBuilder = self.builder.vector(length, rows, dtype=dtype)

    def input(self, values: np.ndarray, strides: tuple[int, ...], **more: object) -> int:
        arg = self.builder.add_arg(values.nbytes, READ, more.get("dtype", self.dtype))
        self.args.append(values)
        return self.section.operand(arg, strides, **more)

    def full(self, values: np.ndarray) -> int:
        return self.input(values, (self.dtype.bytes, self.dtype.bytes * self.shape[1]))

    def per_row(self, values: np.ndarray) -> int:
        return self.input(values, (0, self.dtype.bytes))

    def output(
        self,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: dtypes.DType | None = None,
        base: int = 0,
    ) -> int:
        dtype = dtype or self.dtype
        array = np.full(shape, 7, np.uint8 if dtype.kind == "b" else dtype.numpy)
        arg = self.builder.add_arg(array.nbytes, WRITE, dtype)
        self.outputs.append(len(self.args))
        self.args.append(array)
        return self.section.operand(arg, strides, dtype=dtype, mode=WRITE, base=base)

    def full_output(self) -> int:
        return self.output(self.shape, (self.dtype.bytes, self.dtype.bytes * self.shape[1]))

    def per_row_output(self) -> int:
        return self.output(self.shape[:1], (0, self.dtype.bytes))

    def case(self, name: str) -> Case:
        self.section.word("end_row")
        return Case(name, self.builder.build(), self.args, self.outputs)


# ---- arithmetic --------------------------------------------------------------------------------------------


def _binary(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    x, y, column = hard(rng, dtype, ROWS, length), hard(rng, dtype, ROWS, length), hard(rng, dtype, ROWS)
    yield binary_in_pass(instruction.name, form, x, y if form in "is" else column, dtype)
    if form in "krb":
        yield _binary_in_row_section(instruction.name, form, length, rng, dtype)


def pairs_of_specials(instruction: Instruction, form: str, dtype: dtypes.DType) -> Iterator[Case]:
    """One binary instruction on all pairs of special values."""
    values = specials(dtype)
    x = np.tile(values, (len(values), 1))
    if form == "k":
        for value in values:
            yield binary_in_pass(instruction.name, form, x[:1], np.array([value]), dtype)
    else:
        y = np.ascontiguousarray(x.T) if form in "is" else values
        yield binary_in_pass(instruction.name, form, x, y, dtype)


def binary_in_pass(name: str, form: str, x: np.ndarray, y: np.ndarray, dtype: dtypes.DType) -> Case:
    """acc = x, then one binary instruction with y: of x's shape (i, s), one a row (r, b), or y[0] (k)."""
    bench = Bench(x.shape[1], x.shape[0], dtype)
    section, source = bench.section, bench.full(x)
    column = bench.per_row(y) if form in "rb" else None
    full = bench.full(y) if form in "is" else None
    where = {"s": 5, "i": full, "k": y.flat[0], "r": 5, "b": column}[form]
    if form == "r":
        section.word("mov.b", column)
        section.word("store_row", where)
    section.begin_pass()
    if form == "s":
        section.word("mov.i", full)
        section.word("store_slot", where)
    section.word("mov.i", source)
    section.word(f"{name}.{form}", where)
    section.word("store", bench.full_output())
    section.end_pass()
    return bench.case("pass")


def _binary_in_row_section(name: str, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Case:
    bench = Bench(length, 9, dtype)
    section, x, y = bench.section, bench.per_row(hard(rng, dtype, 9)), bench.per_row(hard(rng, dtype, 9))
    where = {"k": hard(rng, dtype, 1)[0], "r": 31, "b": y}[form]
    if form == "r":
        section.word("mov.b", y)
        section.word("store_row", where)
    section.word("mov.b", x)
    section.word(f"{name}.{form}", where)
    section.word("store_per_row", bench.per_row_output())
    return bench.case("row section")


def _unary(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    bench = Bench(length, dtype=dtype)
    section, x = bench.section, bench.full(hard(rng, dtype, *bench.shape))
    section.begin_pass()
    section.word("mov.i", x)
    section.word(instruction.name)
    section.word("store", bench.full_output())
    section.end_pass()
    yield bench.case("pass")
    bench = Bench(length, 9, dtype)
    bench.section.word("mov.b", bench.per_row(hard(rng, dtype, 9)))
    bench.section.word(instruction.name)
    bench.section.word("store_per_row", bench.per_row_output())
    yield bench.case("row section")


def _running(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    """Along contiguous rows, two of them at once; and along rows that lie across memory, side by side."""
    bench = Bench(length, dtype=dtype)
    section, x = bench.section, bench.full(hard(rng, dtype, *bench.shape))
    section.begin_pass()
    section.word("mov.i", x)
    section.word(instruction.name, 2)
    section.word(instruction.name, 0)
    section.word("store", bench.full_output())
    section.end_pass()
    yield bench.case("row")
    rows = 37
    bench = Bench(length, rows, dtype)
    size = dtype.bytes
    x = bench.input(hard(rng, dtype, length, rows), (size * rows, size))
    bench.section.begin_pass()
    bench.section.word("load", x)
    bench.section.word(instruction.name, 1)
    bench.section.word("store_any", bench.output((length, rows), (size * rows, size)))
    bench.section.end_pass()
    yield bench.case("across")


# ---- loads, stores -----------------------------------------------------------------------------------------


def _load(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    for kind in LOADED:
        for step in (1, 2, -1, 0):
            bench, size = Bench(length, dtype=dtype), kind.bytes
            span = max(1, (length - 1) * abs(step) + 1)
            values = stored(rng, kind, ROWS, span)
            base = (span - 1) * size if step < 0 else 0
            x = bench.input(values, (step * size, span * size), dtype=kind, base=base)
            bench.section.begin_pass()
            bench.section.word(instruction.name, x)
            bench.section.word("store", bench.full_output())
            bench.section.end_pass()
            yield bench.case(f"{kind} step {step}")


def _store(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    bench = Bench(length, dtype=dtype)
    x = bench.full(hard(rng, dtype, *bench.shape))
    bench.section.begin_pass()
    bench.section.word("mov.i", x)
    bench.section.word(instruction.name, bench.full_output())
    bench.section.end_pass()
    yield bench.case("contiguous")


def _store_any(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    for kind in LOADED:
        for step in (1, 3, -1):
            bench, size = Bench(length, dtype=dtype), kind.bytes
            span = (length - 1) * abs(step) + 1
            x = bench.full(hard(rng, dtype, *bench.shape))
            base = (span - 1) * size if step < 0 else 0
            y = bench.output((ROWS, span), (step * size, span * size), kind, base)
            bench.section.begin_pass()
            bench.section.word("mov.i", x)
            bench.section.word(instruction.name, y)
            bench.section.end_pass()
            yield bench.case(f"{kind} step {step}")


def _iota(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    for base, strides in ((0, (1, length)), (7, (0, 1)), (-5, (-3, 0)), (2**33, (2**20 + 1, -7)),
                          (2**24 - 3, (1, 0)), (3, (1 << 17, 1))):
        bench = Bench(length, 5, dtype)
        x = bench.section.index(strides, base)
        bench.section.word(instruction.name, x)
        bench.section.word("store_per_row", bench.per_row_output())
        bench.section.begin_pass()
        bench.section.word(instruction.name, x)
        bench.section.word("store", bench.full_output())
        bench.section.end_pass()
        yield bench.case(f"base {base} strides {strides}")


def _store_slot(instruction: Instruction, form: str, length: int, rng: np.random.Generator,
                dtype: dtypes.DType) -> Iterator[Case]:
    for slot in (0, 23):
        bench = Bench(length, dtype=dtype)
        x, y = (bench.full(hard(rng, dtype, *bench.shape)) for _ in range(2))
        bench.section.begin_pass()
        bench.section.word("mov.i", x)
        bench.section.word(instruction.name, slot)
        bench.section.word("mov.i", y)
        bench.section.word("mov.s", slot)
        bench.section.word("store", bench.full_output())
        bench.section.end_pass()
        yield bench.case(f"slot {slot}")


def _store_row(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    for row in (0, 31):
        bench = Bench(length, dtype=dtype)
        bench.section.word("mov.b", bench.per_row(hard(rng, dtype, ROWS)))
        bench.section.word(instruction.name, row)
        bench.section.begin_pass()
        bench.section.word("mov.r", row)
        bench.section.word("store", bench.full_output())
        bench.section.end_pass()
        yield bench.case(f"row scalar {row}")


def _store_per_row(instruction: Instruction, form: str, length: int, rng: np.random.Generator,
                   dtype: dtypes.DType) -> Iterator[Case]:
    for target in LOADED:
        bench = Bench(length, 9, dtype)
        bench.section.word("mov.b", bench.per_row(hard(rng, dtype, 9)))
        bench.section.word(instruction.name, bench.output((9,), (0, target.bytes), target))
        bench.section.word("add.k", 1)  # the accumulator stays
        bench.section.word("store_per_row", bench.per_row_output())
        yield bench.case(f"one {target} a row")


# ---- reductions --------------------------------------------------------------------------------------------


def _reduction(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    """acc_x and fold_x come in pairs: each is tested by a program that has both."""
    kind = instruction.name.partition("_")[2]
    first = 4 * list(table.REDUCTIONS).index(kind)
    indices = (first, first + 3)
    rows = ROWS if length <= BLOCK else 1
    near_one = (1 + _normal(rng, rows, length) / 64 if kind == "prod" else 8 * _normal(rng, rows, length)).astype(dtype.numpy)
    for name, values in (("hard", hard(rng, dtype, rows, length)), ("normal", near_one)):
        bench = Bench(length, rows, dtype)
        section, x = bench.section, bench.full(values)
        section.begin_pass()
        section.word("mov.i", x)
        section.word(f"acc_{kind}", indices[0])
        section.word("neg")
        section.word(f"acc_{kind}", indices[1])
        section.end_pass(*indices)
        for index in indices:
            section.word(f"fold_{kind}", index)
            section.word("store_per_row", bench.per_row_output())
        yield bench.case(name)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


# ---- control -----------------------------------------------------------------------------------------------


def _gather(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    for kind in (dtypes.int32, dtypes.int64):
        bench, limit, rows, size = Bench(length, 6, dtype), 5, 6, dtype.bytes
        source = hard(rng, dtype, limit, length)
        index = rng.integers(-limit, limit, rows).astype(kind.numpy)
        index[0], index[1] = -limit, limit - 1
        i = bench.input(index, (0, kind.bytes), dtype=kind)
        x = bench.input(source, (size,), mode=READ | GATHER, index=i, limit=limit, depth=size * length)
        bench.section.word(instruction.name, x)
        bench.section.begin_pass()
        bench.section.word("mov.i", x)
        bench.section.word("store", bench.full_output())
        bench.section.end_pass()
        yield bench.case(f"{kind} index")


def _fetch(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    bench = Bench(length, dtype=dtype)
    x = bench.full(hard(rng, dtype, *bench.shape))
    bench.section.begin_pass()
    bench.section.fetch(x, 0)
    bench.section.word("mov.i", x)
    bench.section.fetch(x, 2048)
    bench.section.word("store", bench.full_output())
    bench.section.end_pass()
    yield bench.case("this row and the next")


def _passes(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    """Three passes over a row, values carried by a row buffer and a row scalar; rows in four dimensions."""
    builder, shape = ProgramBuilder(), (2, 3, 2, length)
    x, y = hard(rng, dtype, *shape), np.full(shape, 7, dtype.numpy)
    section = builder.vector(*shape[::-1], dtype=dtype)
    strides = tuple(s for s in x.strides[::-1])
    source = section.operand(builder.add_arg(x.nbytes, READ, dtype), strides)
    target = section.operand(builder.add_arg(y.nbytes, WRITE, dtype), strides, mode=WRITE)
    buffer = section.row_buffer()
    section.begin_pass()
    section.word("mov.i", source)
    section.word("abs")
    section.word("store", buffer)
    section.word("acc_max", 4)
    section.end_pass(4)
    section.word("fold_max", 4)
    section.word("store_row", 0)
    section.begin_pass()
    section.word("mov.i", buffer)
    section.word("acc_sum", 0)
    section.end_pass(0)
    section.word("fold_sum", 0)
    section.word("store_row", 1)
    section.begin_pass()
    section.word("mov.i", buffer)
    section.word("sub.r", 0)
    section.word("mul.r", 1)
    section.word("store", target)
    section.end_pass()
    section.word("end_row")
    yield Case("three passes", builder.build(), [x, y], [1])


def epilogue(name: str, form: str, length: int, rng: np.random.Generator) -> Case:
    """A matmul [ROWS, 5] @ [5, length] whose epilogue runs one binary or unary instruction."""
    builder, k = ProgramBuilder(), 5
    a, b, c = _normal(rng, ROWS, k), _normal(rng, k, length), np.full((ROWS, length), 7, np.float32)
    y, column = hard_floats(rng, ROWS, length), hard_floats(rng, ROWS)
    section = builder.matmul(length, ROWS, k)
    section.operand(builder.add_arg(a.nbytes), (0, 4 * k), depth=4)
    section.operand(builder.add_arg(b.nbytes), (4, 0), depth=4 * length)
    section.operand(builder.add_arg(c.nbytes, READ | WRITE), (4, 4 * length), mode=READ | WRITE)
    full = section.operand(builder.add_arg(y.nbytes), (4, 4 * length))
    per_row = section.operand(builder.add_arg(column.nbytes), (0, 4))
    where = {"i": full, "s": 2, "b": per_row, "k": float(hard_floats(rng, 1)[0]), "": None}[form]
    if form == "s":
        section.word("mov.i", full)
        section.word("store_slot", where)
    section.word("mov.i", 2)
    section.word(f"{name}.{form}" if form else name, where)
    section.word("store", 2)
    section.word("end")
    return Case("epilogue", builder.build(), [a, b, c, y, column], [2])


def _end(instruction: Instruction, form: str, length: int, rng: np.random.Generator, dtype: dtypes.DType) -> Iterator[Case]:
    yield epilogue("add", "i", length, rng)


OWN = {
    "load": _load, "iota": _iota, "store_slot": _store_slot, "store": _store, "store_nt": _store,
    "store_any": _store_any, "store_any_nt": _store_any, "store_row": _store_row,
    "store_per_row": _store_per_row, "gather": _gather, "fetch": _fetch, "pass": _passes, "loop": _passes,
    "end_row": _passes, "end": _end,
}  # fmt: skip
