"""Random valid vector programs: several passes and row sections, every kind of operand, random ranks and
strides.

The generator keeps the rules of the verifier in mind: nothing is read before it is written, reductions are
folded after the pass that accumulates them, outputs are written once, as a whole."""

from __future__ import annotations

import numpy as np

from dvm_rt import dtypes
from dvm_rt.isa import table
from dvm_rt.isa.program import GATHER, READ, WRITE, ProgramBuilder
from dvm_rt.isa.table import Group

from tests.isa.cases import COMPUTE, LOADED, Case, hard, stored

EXACT = [i for i in table.INSTRUCTIONS if not i.ulp]
ANY = list(table.INSTRUCTIONS)
FLATTENING = (
    "mov",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "keep",
    "drop",
    "isnan",
)  # soon nothing but 0 and 1 is left


class RandomProgram:
    """Builds one section; `exact` leaves out what is only promised to some ulp; `asked` is the length of a row."""

    def __init__(self, rng: np.random.Generator, exact: bool, asked: int = 0) -> None:
        self.rng, self.builder = rng, ProgramBuilder()
        rank = int(rng.integers(1, 5))
        row = int(rng.choice([rng.integers(1, 20), rng.integers(1, 400), rng.integers(1, 3000), 16384 + rng.integers(0, 300)],
                             p=[0.3, 0.5, 0.17, 0.03]))  # fmt: skip
        self.dims = (asked or row, *(int(d) for d in rng.integers(1, 4, rank - 1)))
        self.dtype = dtypes.float32 if self.chance(0.5) else self.pick(COMPUTE)
        self.section = self.builder.vector(*self.dims, dtype=self.dtype)
        rows = [i for i in (EXACT if exact else ANY) if self.dtype.name in i.compute_dtypes]
        repeated = [i for i in rows for _ in range(1 if i.name in FLATTENING else 6)]
        self.binary = [i.name for i in repeated if i.group is Group.BINARY]
        self.unary = [i.name for i in repeated if i.group is Group.UNARY]
        self.args: list[np.ndarray] = []
        self.outputs: list[int] = []
        self.full, self.any, self.per_row, self.buffers = [], [], [], []
        self.row_scalars: list[int] = []

    def case(self) -> Case:
        self.inputs()
        gathered = self.gathered_input() if self.chance(0.3) else None
        if gathered is not None:
            self.section.word("gather", gathered)
            self.full.append(gathered)
        self.row_section(start=True)
        for _ in range(int(self.rng.integers(1, 4))):
            self.one_pass()
        self.section.word("end_row")
        return Case("random", self.builder.build(), self.args, self.outputs)

    # operands

    def inputs(self) -> None:
        for _ in range(int(self.rng.integers(1, 3))):
            self.full.append(self.input(self.dtype, 1))
        for _ in range(int(self.rng.integers(0, 3))):
            dtype = LOADED[int(self.rng.integers(len(LOADED)))]
            self.any.append(self.input(dtype, int(self.rng.choice([1, 2, -1, 0]))))
        for _ in range(int(self.rng.integers(1, 3))):
            self.per_row.append(self.input(self.dtype, 0))

    def input(self, dtype: dtypes.DType, inner: int) -> int:
        """An input whose rows have stride `inner` and whose outer dimensions are dense, broadcast, or walked
        backwards."""
        extents = [abs(inner) * (self.dims[0] - 1) + 1]
        steps = [inner]
        for size in self.dims[1:]:
            sign = int(self.rng.choice([0, 1, 1, -1]))
            steps.append(sign * int(np.prod(extents)))
            extents.append(size if sign else 1)
        values = stored(self.rng, dtype, *extents[::-1])
        base = sum((n - 1) * -s for n, s in zip(self.dims, steps, strict=True) if s < 0)
        arg = self.builder.add_arg(values.nbytes, READ, dtype)
        self.args.append(values)
        strides = tuple(s * dtype.bytes for s in steps)
        return self.section.operand(arg, strides, dtype=dtype, base=base * dtype.bytes)

    def gathered_input(self) -> int:
        limit, dtype = int(self.rng.integers(1, 6)), (dtypes.int32, dtypes.int64)[int(self.rng.integers(2))]
        index = self.rng.integers(-limit, limit, self.dims[1:][::-1]).astype(dtype.numpy)
        strides = (0, *(dtype.bytes * int(np.prod(self.dims[1:d])) for d in range(1, len(self.dims))))
        self.args.append(index)
        which = self.section.operand(self.builder.add_arg(index.nbytes, READ, dtype), strides, dtype=dtype)
        values = hard(self.rng, self.dtype, limit, self.dims[0])
        self.args.append(values)
        return self.section.operand(
            self.builder.add_arg(values.nbytes, READ, self.dtype),
            (self.dtype.bytes,),
            mode=READ | GATHER,
            index=which,
            limit=limit,
            depth=self.dtype.bytes * self.dims[0],
        )

    def output(self, shape: tuple[int, ...], dtype: dtypes.DType, inner: int) -> int:
        array = np.full(shape, 7, np.uint8 if dtype.kind == "b" else dtype.numpy)
        self.outputs.append(len(self.args))
        self.args.append(array)
        strides = (inner * dtype.bytes, *array.strides[:-1][::-1]) if inner else (0, *array.strides[::-1])
        base = (self.dims[0] - 1) * dtype.bytes if inner < 0 else 0
        return self.section.operand(
            self.builder.add_arg(array.nbytes, WRITE, dtype), strides, dtype=dtype, mode=WRITE, base=base
        )

    # words

    def one_pass(self) -> None:
        self.section.begin_pass()
        self.slots: list[int] = []
        self.start_value(in_pass=True)
        reductions: list[int] = []
        running = [3, 0, 2, 1]
        for _ in range(int(self.rng.integers(1, 10))):
            self.arithmetic(in_pass=True)
            if self.chance(0.2):
                reductions.append(self.reduce(reductions))
            if running and self.chance(0.05):
                self.section.word(f"run_{self.pick(['sum', 'prod'])}", running.pop())
            if self.chance(0.2):
                self.slots.append(int(self.rng.integers(24)))
                self.section.word("store_slot", self.slots[-1])
        self.store_strip()
        self.section.end_pass(*reductions)
        self.row_section(folds=sorted(reductions))

    def row_section(self, start: bool = False, folds: list[int] | None = None) -> None:
        for reduction in folds or ([None] if start and self.chance(0.5) else []):
            if reduction is None:
                self.start_value(in_pass=False)
            else:
                self.section.word(f"fold_{list(table.REDUCTIONS)[reduction // 4]}", reduction)
            for _ in range(int(self.rng.integers(0, 4))):
                self.arithmetic(in_pass=False)
            self.row_scalars.append(int(self.rng.integers(32)))
            self.section.word("store_row", self.row_scalars[-1])
            if self.chance(0.5) and len(self.section.operands) < 15:
                dtype = self.dtype if self.chance(0.7) else self.pick(LOADED)
                self.section.word("store_per_row", self.output(self.dims[1:][::-1], dtype, 0))

    def start_value(self, in_pass: bool) -> None:
        if self.chance(0.15) and len(self.section.operands) < 14:
            strides = [int(s) for s in self.rng.choice([0, 1, -1, 5, 1000], len(self.dims))]
            self.section.word("iota", self.section.index(strides, int(self.rng.integers(-9, 9))))
        elif in_pass and self.any and self.chance(0.4):
            self.section.word("load", self.pick(self.any))
        elif in_pass:
            self.section.word("mov.i", self.pick(self.full + self.buffers))
        else:
            self.section.word("mov.b", self.pick(self.per_row))

    def arithmetic(self, in_pass: bool) -> None:
        if self.chance(0.3):
            self.section.word(self.pick(self.unary))
            return
        forms = {"k": [hard(self.rng, self.dtype, 1)[0]], "b": self.per_row, "r": self.row_scalars}
        if in_pass:
            forms |= {"i": self.full + self.buffers, "s": self.slots}
        form = self.pick([f for f, values in forms.items() if values])
        self.section.word(f"{self.pick(self.binary)}.{form}", self.pick(forms[form]))

    def reduce(self, taken: list[int]) -> int:
        reduction = int(self.rng.choice([r for r in range(16) if r not in taken]))
        self.section.word(f"acc_{list(table.REDUCTIONS)[reduction // 4]}", reduction)
        return reduction

    def store_strip(self) -> None:
        if len(self.section.operands) >= 15:
            return
        kind = self.rng.integers(4)
        if kind == 0 and len(self.buffers) < 3:
            self.buffers.append(self.section.row_buffer())
            self.section.word("store", self.buffers[-1])
        elif kind == 1:
            dtype = LOADED[int(self.rng.integers(len(LOADED)))]
            self.section.word(self.pick(["store_any", "store_any_nt"]),
                              self.output(self.dims[::-1], dtype, int(self.rng.choice([1, -1]))))
        else:
            word = "store" if kind == 2 else "store_nt"
            self.section.word(word, self.output(self.dims[::-1], self.dtype, 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, values: list) -> object:
        return values[int(self.rng.integers(len(values)))]
