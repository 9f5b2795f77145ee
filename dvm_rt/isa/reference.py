"""The reference interpreter: the living definition of what a program does. Slow and obvious.

`run` executes any valid program on NumPy arrays. Arithmetic comes from the instruction table; the rules on
the order of reductions and matmuls are written here, and native code must give the same bits (rows with `ulp`
> 0 apart). It walks rows in odometer order and computes a whole row at once inside a pass: slots live within
one strip of one pass, so no word can tell.

It trusts nothing: a program that reads or writes outside its arguments, breaks a permission, or uses what was
never set, raises InvalidBytecodeError. Such a program must not pass the verifier. Knows nothing of fuel,
checksums or alignment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dvm_rt import dtypes
from dvm_rt.errors import DeviceTrap, InvalidBytecodeError
from dvm_rt.isa import host, layout, table
from dvm_rt.isa.attention import WORDS as ATTENTION_WORDS
from dvm_rt.isa.attention import attention
from dvm_rt.isa.convert import convert_load, convert_store
from dvm_rt.isa.matmul import pack, packed_bytes, product, unpack, wide
from dvm_rt.isa.program import (
    ATTENTION, BRANCH, CONTROL, COPY, GATHER, HOST, INDEX, JUMP, MATMUL, PACK, PACKED, READ, SCRATCH, VECTOR, WINDOWS,
    WORKSPACE, WRITE, Operand, Program, Section, Word, lanes_of, parse,
)  # fmt: skip

BLOCK, EACH = layout.LIMITS["BLOCK"], layout.LIMITS["REDUCTIONS_EACH"]
POISON = 0xFF  # scratch at the start of a row: every float is a NaN that no instruction makes

Array = np.ndarray


def run(program: bytes, args: Sequence[Array]) -> None:
    """Runs a program; outputs are written into `args`: contiguous arrays of any dtype, one per program
    argument, in order. Arguments with mode WRITE are cleared first: no program sees or leaves old bytes in
    them. Raises DeviceTrap where a device would trap, InvalidBytecodeError if the program breaks a rule."""
    parsed = parse(program)
    memory = _Memory(parsed, args)
    with np.errstate(all="ignore"):
        number, times = 0, dict.fromkeys(range(len(parsed.sections)), 0)
        while number < len(parsed.sections):
            section = parsed.sections[number]
            memory.section = number
            if section.kind in CONTROL:
                number = _following(section, number, times, memory)
                continue
            if section.kind not in _RUN:
                raise memory.invalid("SECTION_KIND", "unknown kind", section.kind, sorted(_RUN))
            _RUN[section.kind](section, memory)
            number += 1


def compute(instruction: table.Instruction, *values: Array) -> Array:
    """The result of one arithmetic row in the dtype of its operands: wider and rounded once where the row promises an
    `ulp` (float32 in float64, float64 in long double)."""
    if not instruction.ulp:
        return instruction.meaning(*values)
    dtype = values[0].dtype
    wide = np.float64 if dtype == np.float32 else np.longdouble
    return instruction.meaning(*(v.astype(wide) for v in values)).astype(dtype)


# ---- memory ------------------------------------------------------------------------------------------------


class _Memory:
    """The bytes that a program may touch, as flat uint8 arrays, and the one place that checks bounds and
    permissions."""

    def __init__(self, program: Program, args: Sequence[Array]) -> None:
        self.section, self.word = 0, 0
        self.modes = {number: arg.mode for number, arg in enumerate(program.args)}
        self.modes |= {WORKSPACE: READ | WRITE, SCRATCH: READ | WRITE}
        self.bytes = {number: _bind(number, arg, args) for number, arg in enumerate(program.args)}
        if len(args) != len(program.args):
            raise DeviceTrap(
                f"reference: bind: number of arguments, got {len(args)}, allowed {len(program.args)}"
            )
        self.bytes[WORKSPACE] = np.zeros(program.workspace_bytes, np.uint8)
        self.bytes[SCRATCH] = np.zeros(0, np.uint8)

    def view(
        self, operand: Operand, offset: int, shape: Sequence[int], strides: Sequence[int], mode: int
    ) -> Array:
        """Elements of an operand from a byte offset in its argument; `mode` is READ, WRITE or both."""
        if operand.arg not in self.bytes:
            raise self.invalid("ARGUMENT", "unknown argument", operand.arg, len(self.bytes))
        if operand.mode & mode != mode or self.modes[operand.arg] & mode != mode:
            raise self.invalid(
                "PERMISSION", f"operand or argument {operand.arg} lacks a mode", operand.mode, mode
            )
        dtype = _storage(operand)
        steps = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
        low, high = (
            offset + sum(min(0, s) for s in steps),
            offset + sum(max(0, s) for s in steps) + dtype.itemsize,
        )
        target = self.bytes[operand.arg]
        if low < 0 or high > target.size:
            raise self.invalid(
                "OUT_OF_BOUNDS", f"bytes of argument {operand.arg}", (low, high), (0, target.size)
            )
        return np.ndarray(tuple(shape), dtype, target, offset, tuple(strides))

    def invalid(self, code: str, what: str, got: object, allowed: object) -> InvalidBytecodeError:
        where = f"section {self.section} word {self.word}"
        return InvalidBytecodeError(
            f"reference: {where}: {what}, got {got}, allowed {allowed}", code, self.section, self.word
        )


def _bind(number: int, arg: object, args: Sequence[Array]) -> Array:
    array = args[number] if number < len(args) else np.zeros(0, np.uint8)
    if (
        array.nbytes < arg.bytes
        or not array.flags.c_contiguous
        or (arg.mode & WRITE and not array.flags.writeable)
    ):
        raise DeviceTrap(
            f"reference: bind argument {number}: too small, not contiguous or not writable, "
            f"got {array.nbytes} bytes, allowed {arg.bytes}"
        )
    view = array.reshape(-1).view(np.uint8)[: arg.bytes]
    if arg.mode & WRITE:
        view[:] = 0  # a device clears only what the program may leave out or read too early (ZERO_FILL)
    return view


def _storage(operand: Operand) -> np.dtype:
    dtype = dtypes.DTYPES[operand.dtype]
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.numpy


def _odometer(dims: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All steps of the outer dimensions, the first one fastest."""
    return (step[::-1] for step in np.ndindex(*dims[::-1]))


def _offset(operand: Operand, step: tuple[int, ...], first: int) -> int:
    return operand.base + sum(i * s for i, s in zip(step, operand.stride[first:], strict=False))


# ---- vector sections ---------------------------------------------------------------------------------------


class _Strip:
    """The vector machine on one row: accumulator, slots, row scalars, lanes. `width` elements in a pass, one
    in the row section between passes."""

    def __init__(self, section: Section, memory: _Memory) -> None:
        self.section, self.memory = section, memory
        self.length = section.dims[0]
        self.dtype = dtypes.DTYPES[section.dtype]
        if self.dtype.name not in table.COMPUTE_DTYPES:
            raise memory.invalid("DTYPE", "compute dtype", self.dtype, list(table.COMPUTE_DTYPES))
        self.lane_count = lanes_of(section.dtype)
        self.lanes = np.stack(
            [np.full(self.lane_count, self.identity(r)) for r in range(layout.LIMITS["MAX_REDUCTIONS"])]
        )
        self.blocks = self.lanes.copy()

    def start_row(self, offsets: dict[int, int], in_pass: bool) -> None:
        """`offsets`: first byte of every operand in this row, less what `gather` adds."""
        self.starts, self.offsets, self.rows, self.in_pass = offsets, dict(offsets), {}, in_pass
        self.gathered: set[int] = set()
        self.acc: Array | None = None
        self.slots: dict[int, Array] = {}
        self.pending: dict[int, list[Array]] = {}

    def execute(self, words: Sequence[Word]) -> None:
        for self.memory.word, word in enumerate(words):
            if word.op >= len(table.OPCODES):
                raise self.memory.invalid("OPCODE", "unknown opcode", word.op, len(table.OPCODES) - 1)
            instruction, form = table.OPCODES[word.op]
            if self.dtype.name not in instruction.compute_dtypes:
                raise self.memory.invalid("DTYPE", instruction.name, self.dtype, instruction.compute_dtypes)
            if instruction.group is table.Group.BINARY:
                x = getattr(self, f"operand_{form}")(word)
                acc = np.zeros(self.width, self.dtype.numpy) if instruction.name == "mov" else self.value()
                self.acc = compute(instruction, acc, x)
            elif instruction.group is table.Group.UNARY:
                self.acc = compute(instruction, self.value())
            else:
                getattr(self, f"do_{instruction.name}")(word)

    @property
    def width(self) -> int:
        return self.length if self.in_pass else 1

    def value(self) -> Array:
        if self.acc is None:
            raise self.memory.invalid("UNINITIALISED", "the accumulator was never set", None, "a value")
        return self.acc

    # operand forms

    def operand_s(self, word: Word) -> Array:
        self.require_pass()
        return self.known(self.slots, word.k, "slot")

    def operand_i(self, word: Word) -> Array:
        return self.contiguous(word.a, READ).copy()

    def operand_k(self, word: Word) -> Array:
        if self.dtype.bytes == 4:
            return np.array([word.k], np.uint32).view(self.dtype.numpy)
        if word.k >= len(self.section.constants):
            raise self.memory.invalid("CONSTANT", "unknown constant", word.k, len(self.section.constants) - 1)
        return np.array([self.section.constants[word.k]], np.uint64).view(self.dtype.numpy)

    def operand_r(self, word: Word) -> Array:
        return self.known(self.rows, word.k, "row scalar")

    def operand_b(self, word: Word) -> Array:
        operand = self.operand(word.a)
        if operand.stride[0] or operand.dtype != self.section.dtype:
            raise self.memory.invalid("OPERAND_FORM", "not one element a row", operand.stride[0], 0)
        return self.memory.view(operand, self.place(word.a), (1,), (0,), READ).copy()

    # loads and stores

    def do_load(self, word: Word) -> None:
        self.require_pass()
        operand = self.operand(word.a)
        self.acc = convert_load(self.strided(word.a, READ), dtypes.DTYPES[operand.dtype], self.dtype)

    def do_iota(self, word: Word) -> None:
        operand = self.operand(word.a)
        if operand.arg != INDEX:
            raise self.memory.invalid("OPERAND_FORM", "iota of memory", operand.arg, INDEX)
        steps = np.arange(self.width, dtype=np.int64) * operand.stride[0] if self.width > 1 else np.zeros(1, np.int64)
        self.acc = (self.place(word.a) + steps).astype(self.dtype.numpy)

    def do_store(self, word: Word) -> None:
        self.contiguous(word.a, WRITE)[:] = convert_store(self.value(), self.dtype)

    do_store_nt = do_store

    def do_store_any(self, word: Word) -> None:
        self.require_pass()
        operand = self.operand(word.a)
        if operand.stride[0] == 0 and self.length > 1:
            raise self.memory.invalid("OPERAND_FORM", "inner stride of store_any", 0, "not 0")
        self.strided(word.a, WRITE)[:] = convert_store(self.value(), dtypes.DTYPES[operand.dtype])

    do_store_any_nt = do_store_any

    def do_store_slot(self, word: Word) -> None:
        self.require_pass()
        self.slots[word.k] = self.value()

    def do_store_row(self, word: Word) -> None:
        self.require_row_section()
        self.rows[word.k] = self.value()[:1]

    def do_store_per_row(self, word: Word) -> None:
        self.require_row_section()
        operand = self.operand(word.a)
        place = self.memory.view(operand, self.place(word.a), (1,), (0,), WRITE)
        place[:] = convert_store(self.value()[:1], dtypes.DTYPES[operand.dtype])

    # reductions

    def do_acc_sum(self, word: Word) -> None:
        self.require_pass()
        self.require_reduction(word)
        self.pending.setdefault(word.a, []).append(self.value())

    do_acc_max = do_acc_min = do_acc_prod = do_acc_sum

    def do_fold_sum(self, word: Word) -> None:
        self.require_row_section()
        self.require_reduction(word)
        lanes = self.lanes if self.length <= BLOCK else self.blocks
        self.acc = _fold(lanes[word.a], word.a)
        lanes[word.a] = self.identity(word.a)

    do_fold_max = do_fold_min = do_fold_prod = do_fold_sum

    def do_run_sum(self, word: Word) -> None:
        self.require_pass()
        if word.a >= layout.LIMITS["MAX_RUNNING"] or word.a in self.running:
            raise self.memory.invalid("REDUCTION", "running total", word.a, "4 of them, each once in a pass")
        self.running.add(word.a)
        self.acc = table.OPCODES[word.op][0].meaning(self.value())

    do_run_prod = do_run_sum

    def identity(self, reduction: int) -> np.generic:
        """What leaves any other value as it is, in this reduction."""
        dtype, number = self.dtype.numpy, reduction // EACH
        if number in (0, 3):  # sum, prod
            return dtype.type(number == 3)
        if dtype.kind == "f":
            return dtype.type(-np.inf if number == 1 else np.inf)
        return dtype.type(np.iinfo(dtype).min if number == 1 else np.iinfo(dtype).max)

    def accumulate(self, mask: int) -> None:
        """What a pass does to the lanes: element j of the row goes to lane j mod LANES; in rows beyond BLOCK,
        the lanes of each block are folded into lane (block mod LANES) of the blocks."""
        for reduction, values in self.pending.items():
            operation, lanes, blocks = _operation(reduction), self.lanes[reduction], self.blocks[reduction]
            for block, begin in enumerate(range(0, self.length, BLOCK)):
                end = min(begin + BLOCK, self.length)
                for strip in range(begin, end, self.lane_count):
                    for value in values:
                        part = value[strip : min(strip + self.lane_count, end)]
                        lanes[: len(part)] = operation(lanes[: len(part)], part)
                if self.length > BLOCK and mask >> reduction & 1:
                    lane = slice(block % self.lane_count, block % self.lane_count + 1)
                    blocks[lane] = operation(blocks[lane], _fold(lanes, reduction))
                    lanes[:] = self.identity(reduction)
        self.pending = {}

    # control

    def do_gather(self, word: Word) -> None:
        self.require_row_section()
        operand = self.operand(word.a)
        index_operand = self.operand(operand.index)
        if not operand.mode & GATHER or _storage(index_operand) not in (np.int32, np.int64):
            raise self.memory.invalid(
                "OPERAND_FORM", "gather needs mode gather and an int32 or int64 index", operand.mode, GATHER
            )
        index = int(self.memory.view(index_operand, self.place(operand.index), (1,), (0,), READ)[0])
        if not -operand.limit <= index < operand.limit:
            raise DeviceTrap(
                f"reference: section {self.memory.section} word {self.memory.word}: gather index, "
                f"got {index}, allowed {-operand.limit}..{operand.limit - 1}"
            )
        self.offsets[word.a] = self.starts[word.a] + (index % operand.limit) * operand.depth
        self.gathered.add(word.a)

    def do_fetch(self, word: Word) -> None:
        self.operand(word.a)

    def do_pass(self, word: Word) -> None:
        self.require_row_section()
        self.in_pass, self.acc, self.slots, self.running = True, None, {}, set()

    def do_loop(self, word: Word) -> None:
        self.require_pass()
        self.accumulate(word.a)
        self.in_pass, self.acc, self.slots = False, None, {}

    def do_end_row(self, word: Word) -> None:
        self.require_row_section()

    def do_end(self, word: Word) -> None:
        self.require_pass()

    # places

    def operand(self, index: int) -> Operand:
        if index >= len(self.section.operands):
            raise self.memory.invalid("OPERAND", "unknown operand", index, len(self.section.operands) - 1)
        return self.section.operands[index]

    def place(self, index: int) -> int:
        if self.operand(index).mode & GATHER and index not in self.gathered:
            raise self.memory.invalid(
                "UNINITIALISED", "operand used before its gather", index, sorted(self.gathered)
            )
        return self.offsets[index]

    def strided(self, index: int, mode: int) -> Array:
        operand = self.operand(index)
        return self.memory.view(operand, self.place(index), (self.width,), operand.stride[:1], mode)

    def contiguous(self, index: int, mode: int) -> Array:
        self.require_pass()
        operand = self.operand(index)
        if operand.stride[0] != self.dtype.bytes or operand.dtype != self.section.dtype:
            raise self.memory.invalid(
                "OPERAND_FORM", "not contiguous in the compute dtype", operand.stride[0], self.dtype.bytes
            )
        return self.strided(index, mode)

    # rules

    def known(self, values: dict[int, Array], index: int, what: str) -> Array:
        if index not in values:
            raise self.memory.invalid("UNINITIALISED", f"{what} was never stored", index, sorted(values))
        return values[index]

    def require_pass(self) -> None:
        if not self.in_pass:
            raise self.memory.invalid("NESTING", "word in the row section", "row section", "a pass")

    def require_row_section(self) -> None:
        if self.in_pass:
            raise self.memory.invalid("NESTING", "word in a pass", "a pass", "the row section")

    def require_reduction(self, word: Word) -> None:
        name = table.OPCODES[word.op][0].name.partition("_")[2]
        if word.a >= len(self.lanes) or name != list(table.REDUCTIONS)[word.a // EACH]:
            raise self.memory.invalid("REDUCTION", "reduction", word.a, "4 of each kind, in the order of the table")


def _operation(reduction: int) -> Callable[[Array, Array], Array]:
    return table.BY_NAME[list(table.REDUCTIONS.values())[reduction // EACH]].meaning


def _fold(lanes: Array, reduction: int) -> Array:
    """The lanes folded in halves, neighbours last: an array of one element."""
    lanes, half = lanes.copy(), len(lanes)
    while half > 1:
        half //= 2
        lanes = _operation(reduction)(lanes[:half], lanes[half : 2 * half])
    return lanes


# ---- sections ----------------------------------------------------------------------------------------------


def _following(section: Section, number: int, times: dict[int, int], memory: _Memory) -> int:
    """The section that runs after a branch, a jump or a loop; `times` counts how often bodies of loops have run."""
    flag = any(memory.view(x, x.base, (), (), READ)[()] for x in section.operands)
    if section.kind in (BRANCH, JUMP):
        return number + 1 + (0 if flag else section.depth)
    times[number] += 1
    if (flag or not section.operands) and times[number] < section.dims[0]:
        return number - section.depth
    if flag:
        limit = section.dims[0]
        raise DeviceTrap(f"reference: section {number}: LOOP_LIMIT, got {limit}, allowed {limit}")
    times[number] = 0
    return number + 1


def _run_vector(section: Section, memory: _Memory) -> None:
    memory.bytes[SCRATCH] = np.zeros(section.scratch_bytes, np.uint8)
    machine = _Strip(section, memory)
    for step in _odometer(section.dims[1 : section.rank]):
        memory.bytes[SCRATCH][:] = POISON
        machine.start_row({i: _offset(x, step, 1) for i, x in enumerate(section.operands)}, in_pass=False)
        machine.execute(section.words)


def _run_matmul(section: Section, memory: _Memory) -> None:
    n, m, k = section.dims[0], section.dims[1], section.depth
    left, right, result = section.operands[:3]
    epilogue = _Strip(section, memory) if section.words else None
    if left.index != layout.LIMITS["NONE"]:
        _run_groups(section, memory)
        for row in range(m) if section.words else ():
            epilogue.start_row({i: _offset(x, (row,), 1) for i, x in enumerate(section.operands)}, in_pass=True)
            epilogue.execute(section.words)
        return
    for step in _odometer(section.dims[2 : section.rank]):
        a = memory.view(left, _offset(left, step, 2), (m, k), (left.stride[1], left.depth), READ)
        c = memory.view(
            result, _offset(result, step, 2), (m, n), (result.stride[1], result.stride[0]), WRITE
        )
        c[...] = product(a, _right(right, _offset(right, step, 2), n, k, memory), dtypes.DTYPES[section.dtype])
        for row in range(m) if section.words else ():
            offsets = {i: _offset(x, (row, *step), 1) for i, x in enumerate(section.operands)}
            epilogue.start_row(offsets, in_pass=True)
            epilogue.execute(section.words)


def _run_groups(section: Section, memory: _Memory) -> None:
    """Rows in groups, one behind the other, each with its own B; what is beyond all of them is 0."""
    (n, m, groups), k = section.dims[:3], section.depth
    left, right, result, sizes = section.operands[:4]
    a = memory.view(left, left.base, (m, k), (left.stride[1], left.depth), READ)
    c = memory.view(result, result.base, (m, n), (result.stride[1], result.stride[0]), WRITE)
    counts = memory.view(sizes, sizes.base, (groups,), (sizes.stride[2],), READ)
    compute = dtypes.DTYPES[section.dtype]
    begin, out = 0, np.zeros((m, n), compute.numpy)
    for group in range(groups):
        rows = int(counts[group])
        if not 0 <= rows <= m - begin:
            raise DeviceTrap(f"reference: section {memory.section}: rows of group {group}, got {rows}, allowed 0 to {m - begin}")
        if rows:
            b = _right(right, _offset(right, (group,), 2), n, k, memory)
            out[begin : begin + rows] = product(a[begin : begin + rows], b, compute)
        begin += rows
    c[...] = out


def _run_pack(section: Section, memory: _Memory) -> None:
    n, k = section.dims[0], section.depth
    source, packed = section.operands
    b = memory.view(source, source.base, (k, n), (source.depth, source.stride[0]), READ)
    size = dtypes.DTYPES[packed.dtype].bytes
    memory.view(packed, packed.base, (packed_bytes(n, k, size) // size,), (size,), WRITE)[:] = pack(b)


def _run_copy(section: Section, memory: _Memory) -> None:
    shape = section.dims[: section.rank]
    bases = [x.base for x in section.operands[:2]]
    if len(section.operands) == 3:
        bases[1] += _row(section.operands[1], section.operands[2], memory)
    source, target = (
        memory.view(x, base, shape, x.stride[: section.rank], mode)
        for x, base, mode in zip(section.operands, bases, (READ, WRITE), strict=False)
    )
    target[...] = _canonical(source, dtypes.DTYPES[section.operands[0].dtype])


def _row(target: Operand, index: Operand, memory: _Memory) -> int:
    """Bytes to the row of a copy's destination that its third operand names."""
    named = int(memory.view(index, index.base, (1,), (0,), READ)[0])
    if not -target.limit <= named < target.limit:
        raise DeviceTrap(
            f"reference: section {memory.section}: row of a copy, got {named}, allowed {-target.limit} to {target.limit - 1}"
        )
    return named % target.limit * target.depth


def _canonical(values: Array, dtype: dtypes.DType) -> Array:
    """NaN of any float dtype made canonical."""
    if dtype is dtypes.bfloat16:
        return np.where((values & 0x7FFF) > 0x7F80, np.uint16(0x7FC0), values)
    return np.where(np.isnan(values), dtype.numpy.type(np.nan), values) if dtype.kind == "f" else values


def _run_host(section: Section, memory: _Memory) -> None:
    views = []
    for number, x in enumerate(section.operands):
        shape = x.stride[: x.depth][::-1]
        size = dtypes.DTYPES[x.dtype].bytes
        strides = tuple(size * int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape)))
        mode = WRITE if number == len(section.operands) - 1 else READ
        views.append(memory.view(x, x.base, shape, strides, mode) if 0 not in shape else np.zeros(shape, _storage(x)))
    try:
        host.run(section.depth - 1, views[:-1], tuple(word.number for word in section.words), views[-1])
    except host.OutOfRange as error:
        raise DeviceTrap(f"reference: section {memory.section}: {host.NAMES[section.depth - 1]}: {error}") from error


def _right(operand: Operand, offset: int, n: int, k: int, memory: _Memory) -> Array:
    if operand.mode & PACKED:
        dtype = dtypes.DTYPES[operand.dtype]
        stored = memory.view(operand, offset, (packed_bytes(n, k, dtype.bytes) // dtype.bytes,), (dtype.bytes,), READ)
        return wide(unpack(stored, n, k), dtype)
    if operand.mode & WINDOWS:
        height, width, stride = operand.index >> 8, operand.index & 255, operand.stride
        shape = (k // (height * width), height, width, n // operand.limit, operand.limit)
        steps = (operand.depth, stride[6], stride[5], stride[7], stride[0])
        return memory.view(operand, offset, shape, steps, READ).reshape(k, n)
    return memory.view(operand, offset, (k, n), (operand.depth, operand.stride[0]), READ)


def _run_attention(section: Section, memory: _Memory) -> None:
    keys, queries = section.dims[:2]
    if tuple(table.mnemonic(w.op) for w in section.words if w.op < len(table.OPCODES)) != ATTENTION_WORDS:
        raise memory.invalid("OPCODE", "words of an attention", section.words, ATTENTION_WORDS)
    scale, masked, empty = (np.uint32(w.k).view(np.float32) for w in section.words[:3])
    q, k, v, o, *masks = section.operands
    for step in _odometer(section.dims[2 : section.rank]):
        query, values, out = (
            memory.view(x, _offset(x, step, 2), (n, width), (x.stride[stride], x.depth), mode)
            for x, n, width, stride, mode in (
                (q, queries, k.limit, 1, READ), (v, keys, v.limit, 0, READ), (o, queries, v.limit, 1, WRITE),
            )
        )  # fmt: skip
        mask = None
        for x in masks:
            mask = memory.view(x, _offset(x, step, 2), (queries, keys), (x.stride[1], x.stride[0]), READ).copy()
        key = _right(k, _offset(k, step, 2), keys, k.limit, memory).T
        out[:] = attention(query.copy(), key.copy(), values.copy(), q.limit, scale, masked, empty, mask)


_RUN: dict[int, Callable[[Section, _Memory], None]] = {
    VECTOR: _run_vector,
    MATMUL: _run_matmul,
    PACK: _run_pack,
    ATTENTION: _run_attention,
    HOST: _run_host,
    COPY: _run_copy,
}
