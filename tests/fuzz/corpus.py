"""Writes seed programs for the fuzzer: python -m tests.fuzz.corpus FOLDER

Every instruction and form in every compute dtype, loads and stores of every storage dtype, random vector programs,
matmuls of every dtype (packed, transposed, of windows, with epilogues), passes that have a loop of their own or hold
values in registers, copies, attention, host functions, gathers, row buffers,
branches and loops, columns side by side, sections that differ in places alone, and what the encoder makes of fused plans. Each file holds the program, what its
arguments hold before the run, and what the reference interpreter leaves in them (nothing where some instruction is only
promised to a few ulp, and for host functions, for which the fuzzer has a stand-in). Beside them lie programs that break one rule
each."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dvm_rt import dtypes
from dvm_rt.errors import DeviceTrap
from dvm_rt.isa import matmul, reference, table
from dvm_rt.isa.assembler import assemble
from dvm_rt.isa.layout import enum_value
from dvm_rt.isa.program import GATHER, PACKED, READ, WINDOWS, WORKSPACE, WRITE, ProgramBuilder, SectionBuilder, fuel, parse
from dvm_rt.isa.table import Group

from tests.isa.cases import cases, epilogue
from tests.isa.random_programs import RandomProgram
from tests.isa.test_fuzz import random_matmul
from tests.native import test_register_passes as registers
from tests.native.broken import broken
from tests.native.test_control import FLAGS
from tests.native.test_control import Random as RandomControl
from tests.native.test_matmul_dtypes import samples
from tests.native.test_verify import EDITS, LISTINGS, ROTARY
from tests.native.test_whole_passes import PASSES, SPARE_SLOT

HOST = enum_value("SectionKind", "HOST")
WORK_MAX, FEW, BYTES_MAX, ELEMENTS_MAX = 600, 40, 1 << 14, 1 << 15  # small programs run fast, and reach every rule all the same
WINDOWS_PACKED, DEPTHWISE = range(80, 128), range(128, 164)  # numbers of products of windows


Made = tuple[bytes, list[np.ndarray]]  # a program, and what its arguments hold


def families(rng: np.random.Generator) -> Iterator[tuple[str, Iterable[Made]]]:
    """Seeds by what they are about: the fuzzer takes every second one from a family, each of which is as likely as the others."""
    yield "rows", of_rows(rng)
    yield "copies", of_copies(rng)
    yield "attention", of_attention(rng)
    yield "host", of_host(rng)
    yield "control", of_control(rng)
    yield "trapping", (trapping(rng) for _ in range(4))
    yield "nested", (nested(rng, number) for number in range(12))
    yield "vector", ((c.program, c.args) for c in (RandomProgram(rng, exact=number % 4 > 0).case() for number in range(160)))
    yield "matmul", ((c.program, c.args) for c in (random_matmul(rng) for _ in range(120)))
    yield "slices", (sliced(rng) for _ in range(4))
    yield "products", samples(rng)
    yield "windows", (windows(rng, number) for number in range(DEPTHWISE.stop))
    yield "passes", (whole_pass(rng, number) for number in range(8 * len(PASSES)))
    yield "held", (held(rng, number) for number in range(60))
    yield "epilogue", ((c.program, c.args) for c in (epilogue("add", form, 40, rng) for form in ("i", "b", "k")))
    yield "columns", (columns(rng) for _ in range(20))
    yield "gap", (gap(rng, number) for number in range(20))
    yield "far", (far(rng) for _ in range(20))
    yield "beside", (beside(rng) for _ in range(60))
    yield "buffers", (buffered(rng) for _ in range(12))
    yield "numbers", (numbers(rng) for _ in range(12))
    yield "gathered", (gathered(rng) for _ in range(40))
    yield "encoder", of_encoder(rng)
    yield "listings", of_listings(rng)
    yield "idle", (idle(rng) for _ in range(12))
    yield "many", (many(rng, number) for number in range(4))
    yield "alike", (alike(rng, number) for number in range(64))


def of_rows(rng: np.random.Generator) -> Iterator[Made]:
    for instruction, form in table.OPCODES:
        converts = instruction.group in (Group.LOAD, Group.STORE)
        for number, name in enumerate(instruction.compute_dtypes):
            if form in ("", "i", "k") or not number:
                made = list(cases(instruction, form, int(rng.integers(1, 24 if converts else 70)), rng, dtypes.BY_NAME[name]))
                for case in made if converts and not number else made[:2]:
                    yield case.program, case.args


def of_copies(rng: np.random.Generator) -> Iterator[Made]:
    """Copies of every dtype: transposed, reversed, with gaps, with an index that repeats; to a row that is named."""
    for number, dtype in enumerate(dtypes.DTYPES):
        yield to_a_row(rng, dtype, (dtypes.int32, dtypes.int64)[number % 2])
        for kind in range(4):
            rank = int(rng.integers(1, 4))
            shape = [int(n) for n in rng.integers(1, 7, rank)] if kind < 3 else [int(n) for n in rng.integers(1, 40, 2)]
            rank = len(shape)
            source, target, read, written = [0] * rank, [0] * rank, 1, 1
            for d in rng.permutation(rank):
                source[d], read = read, read * (shape[d] + kind % 2)
            for d in rng.permutation(rank):
                target[d], written = written, written * (shape[d] + (kind == 3))
            base = 0
            if kind == 2:
                base, source[0] = source[0] * (shape[0] - 1), -source[0]
            builder, size = ProgramBuilder(), dtype.bytes
            section = builder.copy(*shape)
            x = builder.add_arg(read * size, READ, dtype)
            y = builder.add_arg(written * size, WRITE, dtype)
            section.operand(x, [s * size for s in source], dtype=dtype, base=base * size)
            section.operand(y, [s * size for s in target], dtype=dtype, mode=WRITE)
            yield builder.build(), [np.frombuffer(rng.bytes(n * size), np.uint8).copy() for n in (read, written)]


def to_a_row(rng: np.random.Generator, dtype: dtypes.DType, index: dtypes.DType) -> Made:
    count, rows, gap, size = int(rng.integers(1, 9)), int(rng.integers(1, 6)), int(rng.integers(0, 3)), dtype.bytes
    builder, depth = ProgramBuilder(), (count + gap) * size
    section = builder.copy(count)
    x, y = builder.add_arg(count * size, READ, dtype), builder.add_arg(rows * depth, WRITE, dtype)
    section.operand(x, [size], dtype=dtype)
    section.operand(y, [size], dtype=dtype, mode=WRITE | GATHER, index=2, limit=rows, depth=depth)
    section.operand(builder.add_arg(index.bytes, READ, index), [0], dtype=index)
    named = np.array([rng.integers(-rows, rows + 1)], index.numpy)  # the last one is beyond the end
    return builder.build(), [*(np.frombuffer(rng.bytes(n), np.uint8).copy() for n in (count * size, rows * depth)), named]


def of_attention(rng: np.random.Generator) -> Iterator[Made]:
    for number in range(24):
        heads, queries, keys, depth, width = (int(n) for n in rng.integers(1, (3, 5, 9, 5, 5)))
        builder, kept = ProgramBuilder(), number % 4 == 3
        section = builder.attention(keys, queries, max(depth, width), heads, scale=0.5, masked=-np.inf, empty=0.0)
        k_bytes = 4 * (packed_elements(keys, depth) if kept else keys * depth)
        sizes = (4 * queries * depth, k_bytes, 4 * keys * width, 4 * queries * width)
        places = [builder.add_arg(heads * n, WRITE if i == 3 else READ) for i, n in enumerate(sizes)]
        if number % 3 == 0:  # Q from the workspace
            builder.workspace_bytes = heads * sizes[0]
            copied = ProgramBuilder().copy(heads * sizes[0] // 4)
            copied.operand(places[0], [4])
            copied.operand(WORKSPACE, [4], mode=WRITE)
            builder.sections.insert(0, copied)
            places[0] = WORKSPACE
        section.operand(places[0], [0, 4 * depth, sizes[0]], depth=4, limit=int(rng.integers(-1, keys + 1)))
        if kept:
            section.operand(places[1], [0, 0, k_bytes], mode=READ | PACKED, limit=depth)
        else:
            section.operand(places[1], [4 * depth, 0, k_bytes], depth=4, limit=depth)
        section.operand(places[2], [4 * width, 0, sizes[2]], depth=4, limit=width)
        section.operand(places[3], [0, 4 * width, sizes[3]], mode=WRITE, depth=4)
        content = [rng.standard_normal(heads * n // 4).astype(np.float32) for n in sizes]
        if number % 2:
            dtype = dtypes.bool_ if number % 4 == 1 else dtypes.float32
            mask = rng.integers(0, 2, (queries, keys)).astype(np.uint8 if dtype is dtypes.bool_ else np.float32)
            where = builder.add_arg(4 * mask.nbytes, READ, dtype)
            section.operand(where, [dtype.bytes, dtype.bytes * keys, 0], dtype=dtype)
            content.append(np.tile(mask.reshape(-1), 4))
        yield builder.build(), content


def packed_elements(n: int, k: int) -> int:
    return matmul.packed_bytes(n, k) // 4


def of_host(rng: np.random.Generator) -> Iterator[Made]:
    """A host function between two copies, through the workspace or through arguments."""
    for number in range(24):
        shape = [int(n) for n in rng.integers(1, 5, int(rng.integers(0, 4)))]
        count, builder, dtype = int(np.prod(shape, dtype=np.int64)), ProgramBuilder(), dtypes.DTYPES[number % len(dtypes.DTYPES)]
        x = builder.add_arg(count * dtype.bytes, READ, dtype)
        y = builder.add_arg(count * dtype.bytes, WRITE, dtype)
        middle, base = (WORKSPACE, 64) if number % 2 else (builder.add_arg(count * dtype.bytes, READ | WRITE, dtype), 0)
        if number % 2:
            builder.workspace_bytes = 64 + count * dtype.bytes
        section = builder.host("sort", (0, 0), 2 * count)
        section.operand(x, shape, dtype=dtype, depth=len(shape))
        section.operand(middle, shape, dtype=dtype, base=base, mode=WRITE, depth=len(shape))
        copied = builder.copy(count)
        copied.operand(middle, [dtype.bytes], dtype=dtype, base=base)
        copied.operand(y, [dtype.bytes], dtype=dtype, mode=WRITE)
        yield builder.build(), [np.frombuffer(rng.bytes(count * dtype.bytes), np.uint8).copy() for _ in range(3 - number % 2)]


def of_control(rng: np.random.Generator) -> Iterator[Made]:
    """Branches with and without an else, jumps, loops: nested at random; and such that read a flag which the program has made."""
    for _ in range(80):
        made = RandomControl(rng, elements=int(rng.integers(1, 9)))
        yield made.code, [rng.integers(0, 2, FLAGS).astype(np.bool_), np.zeros(made.elements, np.float32)]
    for number in range(24):
        yield counting(rng, number)
    for number in range(16):
        yield either(rng, number)


def _count_down(builder: ProgramBuilder, x: int, y: int, flag: int, compare: str, number: int) -> None:
    """y = x; then a section: y -= 1, and the flag says how it compares with the number."""
    copied = builder.copy(1)
    copied.operand(x, [4], dtype=dtypes.int32)
    copied.operand(y, [4], dtype=dtypes.int32, mode=WRITE)
    section = builder.vector(1, dtype=dtypes.int32)
    section.operand(y, (4,), dtype=dtypes.int32)
    section.operand(y, (4,), dtype=dtypes.int32, mode=WRITE)
    section.operand(flag, (1,), dtype=dtypes.bool_, mode=WRITE)
    section.begin_pass()
    section.word("mov.i", 0)
    section.word("add.k", -1)
    section.word("store", 1)
    section.word(compare, number)
    section.word("store_any", 2)
    section.end_pass()
    section.word("end_row")


def counting(rng: np.random.Generator, number: int) -> Made:
    """A loop that counts down to 0 and ends when its flag says so, in an argument or in the workspace."""
    builder, start = ProgramBuilder(), int(rng.integers(1, 5))
    x = builder.add_arg(4, READ, dtypes.int32)
    y = builder.add_arg(4, READ | WRITE, dtypes.int32)
    flag = WORKSPACE if number % 2 else builder.add_arg(1, READ | WRITE, dtypes.bool_)
    builder.workspace_bytes = 64 if number % 2 else 0
    _count_down(builder, x, y, flag, "gt.k", 0)
    if number % 3 == 0:
        builder.loop(1, 2)
    builder.loop(2 if number % 3 == 0 else 1, int(rng.integers(1, 9)), flag)
    content = [np.array([start], np.int32), np.zeros(1, np.int32)]
    return builder.build(), content if number % 2 else [*content, np.zeros(1, np.bool_)]


def either(rng: np.random.Generator, number: int) -> Made:
    """Two ways that write the same columns of the workspace, or not all of them; then what they wrote is read."""
    width, builder = int(rng.integers(1, 6)), ProgramBuilder()
    flag = builder.add_arg(2, READ, dtypes.bool_)
    x, y = builder.add_arg(8 * width), builder.add_arg(8 * width, WRITE)
    builder.workspace_bytes = 8 * width
    if number % 4 == 3:
        builder.branch(flag, 5, base=1)
    builder.branch(flag, 2)
    _mapped(builder, (2 * width,), (x, (4,), 0), (WORKSPACE, (4,), 0))
    builder.jump(1 + number % 2)
    for part in range(1 + number % 2):
        _mapped(builder, (width,), (x, (4,), 0), (WORKSPACE, (4,), 4 * width * part))
    _mapped(builder, (2 * width,), (WORKSPACE, (4,), 0), (y, (4,), 0))
    content = [np.array([number // 2 % 2, number % 3 > 0], np.bool_), rng.standard_normal(2 * width).astype(np.float32)]
    return builder.build(), [*content, np.zeros(2 * width, np.float32)]


def nested(rng: np.random.Generator, number: int) -> Made:
    """Branches within branches, more than the verifier remembers; a store in the innermost, and a load in an outer one."""
    builder, deep = ProgramBuilder(), 6 + number % 6
    flags = builder.add_arg(deep, READ, dtypes.bool_)
    x, y = builder.add_arg(16), builder.add_arg(16, WRITE)
    builder.workspace_bytes = 16
    outer = max(1, deep - 3)
    for level in range(deep):
        builder.branch(flags, 2 * deep, base=level)
    _mapped(builder, (4,), (x, (4,), 0), (WORKSPACE, (4,), 0))
    _mapped(builder, (4,), (WORKSPACE, (4,), 0), (y, (4,), 0))
    for level in range(deep):
        builder.sections[level].depth = deep - level + (level < outer)
    taken = np.arange(deep) < outer if number % 2 else rng.integers(0, 4, deep) > 0
    return builder.build(), [taken, rng.standard_normal(4).astype(np.float32), np.zeros(4, np.float32)]


def trapping(rng: np.random.Generator) -> Made:
    """A loop within a loop that meets its limit of iterations when the outer one has gone round before."""
    builder = ProgramBuilder()
    x = builder.add_arg(4, READ, dtypes.int32)
    y = builder.add_arg(4, READ | WRITE, dtypes.int32)
    flag = builder.add_arg(1, READ | WRITE, dtypes.bool_)
    _count_down(builder, x, y, flag, "lt.k", 1)
    builder.loop(1, 2, flag)
    builder.loop(2, 6)
    return builder.build(), [rng.integers(2, 5, 1).astype(np.int32), np.zeros(1, np.int32), np.zeros(1, np.bool_)]


def sliced(rng: np.random.Generator) -> Made:
    """A matmul whose K is more than one slice."""
    m, n, k = int(rng.integers(1, 3)), int(rng.integers(1, 6)), int(rng.integers(1025, 1100))
    builder = ProgramBuilder()
    a, b, c = builder.add_arg(4 * m * k), builder.add_arg(4 * k * n), builder.add_arg(4 * m * n, READ | WRITE)
    section = builder.matmul(n, m, k)
    section.operand(a, (0, 4 * k), depth=4)
    section.operand(b, (4, 0), depth=4 * n)
    section.operand(c, (4, 4 * n), mode=READ | WRITE)
    return builder.build(), [rng.standard_normal(size).astype(np.float32) for size in (m * k, k * n, m * n)]


def windows(rng: np.random.Generator, number: int) -> Made:
    """A product with windows that slide over an array, which is no longer than they reach: from an argument or from the
    workspace, over one row of places or many, forwards or backwards, in one slice of K or two; with so many rows that
    windows are packed, and one row a channel, as of depthwise convolutions."""
    compute = (dtypes.float32, dtypes.float32, dtypes.float32, dtypes.float64, dtypes.int32, dtypes.uint64)[number % 6]
    sliced_k = number % 20 == 7
    channels, height, width, rows, m, batch = (int(n) for n in rng.integers(1, (4, 4, 4, 6, 5, 3)))
    places = int(rng.choice((rng.integers(1, 6), rng.integers(6, 24), rng.integers(24, 48))))
    if number % 4 == 1:
        rows, places = int(rng.integers(8, 24)), int(rng.integers(1, 5))  # many rows of places in one panel
    if number % 8 == 6:
        rows, places = int(rng.integers(2, 4)), matmul.PANEL + int(rng.integers(-1, 2))  # a panel ends beside a row
    if sliced_k:
        channels, height, width, rows, places, m, batch = 1030 // 4 + 3, 2, 2, 2, 2, 1, 1
    if number in WINDOWS_PACKED:
        m, batch, channels, height, width = 66, 1, 1, min(height, 2), min(width, 2)
    elif number in DEPTHWISE:
        m, batch, channels, height = 1, 2, 1, (3, 5, 7)[number // 6 % 3]
    elif 4 * rows * places * channels * height * width * m * batch > ELEMENTS_MAX:
        m, batch, channels = 1, 1, 1
    across, down = int(rng.choice((1, 1, 2, 2, 3))), int(rng.integers(1, 3))
    if number % 8 == 1:  # a vector of places runs on into the next rows
        compute, across, down, places = dtypes.float32, 1, 1, min(places, 2)
    far, wide = (1, 1) if sliced_k else (int(n) for n in rng.integers(1, 3, 2))
    if number in DEPTHWISE:
        across = down = 1 + number % 2
        far, wide = (int(rng.integers(1, 3)), wide) if across == 1 else (1, 1)
    high, long = (rows - 1) * down + (height - 1) * far + 1, (places - 1) * across + (width - 1) * wide + 1
    size, k, n, image = compute.bytes, channels * height * width, rows * places, channels * high * long
    backwards, inside = number % 5 == 2 and number not in DEPTHWISE, number % 3 == 1
    builder = ProgramBuilder()
    a, x = builder.add_arg(m * k * size, dtype=compute), builder.add_arg(batch * image * size, dtype=compute)
    c = builder.add_arg(batch * m * n * size, READ | WRITE, compute)
    source = x
    if inside:  # what is padded lies in the workspace
        builder.workspace_bytes, source = batch * image * size, WORKSPACE
        copied = builder.copy(batch * image)
        copied.operand(x, [size], dtype=compute)
        copied.operand(WORKSPACE, [size], dtype=compute, mode=WRITE)
    outer = [batch] if batch > 1 or number % 2 else []
    section = builder.matmul(n, m, k, *outer, dtype=compute)
    section.operand(a, [0, k * size, 0][: 2 + len(outer)], dtype=compute, depth=size)
    steps = [-across if backwards else across, 0, image, 0, 0, wide, far * long, down * long]
    steps[2] = image if outer else 0
    section.operand(source, [step * size for step in steps], dtype=compute, mode=READ | WINDOWS, depth=high * long * size,
                    base=(places - 1) * across * size if backwards else 0, index=height * 256 + width, limit=places)
    section.operand(c, [size, n * size, m * n * size][: 2 + len(outer)], dtype=compute, mode=READ | WRITE)
    if number % 4 == 3:
        section.word("mov.i", 2)
        section.word("add.k", 1)
        section.word("store", 2)
        section.word("end")
    counts = (m * k, batch * image)
    content = [4 * rng.standard_normal(count) if compute.kind == "f" else rng.integers(0, 99, count) for count in counts]
    content = [values.astype(compute.numpy) for values in content]
    return builder.build(), [*content, np.zeros(batch * m * n, compute.numpy)]


SPECIAL = np.array([0, 0x80000000, 0x7FC00000, 0xFFC12345, 0x7F800000, 0xFF800000, 1, 0x42B16666], np.uint32).view(np.float32)


def held(rng: np.random.Generator, number: int) -> Made:
    """A pass whose values stay in registers, with stores past the caches or not, and hints."""
    n, rows = int(rng.choice((128, 129, 200, 256, 384, 400))), int(rng.integers(1, 3))
    text = registers.random_pass(random.Random(number))
    return registers.program(text, n, rows, past_caches=number % 2 == 0, hints=number % 3 == 0), registers.arrays(rng, n * rows)


def whole_pass(rng: np.random.Generator, number: int) -> Made:
    """One of the passes that the machine has a loop for, over rows of any length and pitch, with hints anywhere and stores
    past the caches or not, or over short rows that go together; sometimes by the name of another slot, or with a word more: then
    its words are run."""
    text = PASSES[number % len(PASSES)]
    n = int(rng.choice((rng.integers(1, 130), rng.integers(130, 300), 128 * rng.integers(1, 4), 32 * rng.integers(1, 8))))
    special, largest = number // len(PASSES) % 2, "acc_max" in text
    n += 128 * largest
    rows, short = int(rng.integers(1, 4)), rng.integers(3) == 0
    if short:
        n, rows = int(rng.choice((4, 8, 16, 20, 32, 48, 64))), 8 + number % 33
    pitch, base = n + int(rng.choice((0, 0, 1, 4, 16))), int(rng.choice((0, 0, 1, 4)))
    stored, builder, places = "store o" in text, ProgramBuilder(), {}
    room, other = base + rows * pitch, int(rng.integers(4)) == 0
    section = builder.vector(n, rows)
    align = 64 if rng.integers(2) else 4
    for name in "abcdo" if stored else "abcd":
        mode = WRITE if name == "o" else READ
        where = builder.add_arg(4 * room, mode, align=align)
        places[name] = section.operand(where, (4, 4 * pitch), mode=mode, base=4 * base)
    scalars = [section.operand(0, (0, 4 * pitch), base=4 * base) for _ in range(2)]
    totals = builder.add_arg(8 * rows, WRITE)
    outs = [section.operand(totals, (0, 8), mode=WRITE, base=4 * k) for k in range(2)]
    for k, scalar in enumerate(scalars):
        section.word("mov.b", scalar)
        section.word("store_row", k)
    section.begin_pass()
    reductions = []
    words = text.split(", ")
    if number % 7 == 6:
        words.insert(1, f"store_slot {SPARE_SLOT}")
    for word in words:
        name, _, field = word.partition(" ")
        if rng.integers(4) == 0:
            section.fetch(int(rng.choice(list(places.values()))), int(rng.choice((0, 512, 2048, 4096, 6144))))
        if name.startswith("acc_"):
            reductions.append((name.replace("acc", "fold"), int(field)))
        if other and name in ("store_slot", "mov.s", "mul.s", "add.s"):
            field = str(int(field) + int(field != "9"))
        if name == "store" and rng.integers(2):
            name = "store_nt"
        section.word(name, float(places.get(field, field)) if field else None)
    section.end_pass(*(r for _, r in reductions))
    for k, out in enumerate(outs):
        section.word(*reductions[k] if k < len(reductions) else ("mov.k", 0))
        section.word("store_per_row", out)
    section.word("end_row")
    content = []
    for _ in range(4):
        x = (3 * rng.standard_normal(room)).astype(np.float32)
        chosen = rng.random(room) < 0.03 * special
        x[chosen] = rng.choice(SPECIAL, int(chosen.sum()))
        if special and largest:  # in a whole strip of the first row
            x[base + int(rng.integers(min(n, 128)))] = SPECIAL[2]
        content.append(x)
    return builder.build(), [*content, *([np.zeros(room, np.float32)] * stored), np.zeros(2 * rows, np.float32)]


def buffered(rng: np.random.Generator) -> Made:
    """A row buffer between two passes, in a section of several rows."""
    width, rows, depth = (int(n) for n in rng.integers((1, 2, 1), (6, 5, 3)))
    builder = ProgramBuilder()
    x, y = builder.add_arg(4 * width * rows * depth), builder.add_arg(4 * width * rows * depth, WRITE)
    section, strides = builder.vector(width, rows, depth), (4, 4 * width, 4 * width * rows)
    a, b, c = section.operand(x, strides), section.row_buffer(), section.operand(y, strides, mode=WRITE)
    for source, target in ((a, b), (b, c)):
        section.begin_pass()
        section.word("mov.i", source)
        section.word("add.k", 0.5)
        section.word("store", target)
        section.end_pass()
    section.word("end_row")
    return builder.build(), [rng.standard_normal(width * rows * depth).astype(np.float32),
                             np.zeros(width * rows * depth, np.float32)]


def numbers(rng: np.random.Generator) -> Made:
    """What iota makes of an index operand, beside a copy and a gather of int64."""
    width, rows = (int(n) for n in rng.integers(1, 6, 2))
    builder = ProgramBuilder()
    x = builder.add_arg(8 * width * rows, READ, dtypes.int64)
    y = builder.add_arg(8 * width * rows, WRITE, dtypes.int64)
    z = builder.add_arg(8 * width * rows, WRITE, dtypes.int64)
    section = builder.vector(width, rows, dtype=dtypes.int64)
    a = section.index((int(rng.integers(-3, 4)), width), base=int(rng.integers(-9, 9)))
    b = section.operand(y, (8, 8 * width), dtype=dtypes.int64, mode=WRITE)
    section.begin_pass()
    section.word("iota", a)
    section.word("store", b)
    section.end_pass()
    section.word("end_row")
    copied = builder.copy(width, rows)
    copied.operand(x, (8, 8 * width), dtype=dtypes.int64)
    copied.operand(z, (8, 8 * width), dtype=dtypes.int64, mode=WRITE)
    return builder.build(), [rng.integers(-99, 99, width * rows), *(np.zeros(width * rows, np.int64) for _ in range(2))]


def columns(rng: np.random.Generator) -> Made:
    """Two columns of one matrix written side by side, as a concatenation does, and perhaps read again."""
    left, right, rows, depth = (int(n) for n in rng.integers(1, 9, 4))
    builder, pitch = ProgramBuilder(), 4 * (left + right)
    x = builder.add_arg(4 * max(left, right) * rows * depth)
    y = builder.add_arg(pitch * rows * depth, READ | WRITE)
    for number, (width, base) in enumerate(((left, 0), (right, 4 * left))):
        section = builder.vector(width, rows, depth)
        a = section.operand(x, (4, 4 * width, 4 * width * rows))
        b = section.operand(y, (4, pitch, pitch * rows), base=base, mode=WRITE)
        other = section.operand(y, (0, pitch, pitch * rows), base=0) if number else None
        section.begin_pass()
        section.word("mov.i", a)
        if other is not None:
            section.word("add.b", other)
        section.word("store", b)
        section.end_pass()
        section.word("end_row")
    return builder.build(), [
        rng.standard_normal(max(left, right) * rows * depth).astype(np.float32),
        np.zeros((left + right) * rows * depth, np.float32),
    ]


def gap(rng: np.random.Generator, number: int) -> Made:
    """Columns that fill a matrix of the workspace but for a gap between its layers; then all of it is read."""
    left, right, rows, depth = (int(n) for n in rng.integers((1, 1, 2, 2), 6))
    builder, pitch = ProgramBuilder(), 4 * (left + right)
    skipped = pitch * int(rng.integers(1, 3)) if number % 2 else 4 * int(rng.integers(1, 5))
    layer = pitch * rows + skipped
    count = layer * (depth - 1) // 4 + (left + right) * rows
    builder.workspace_bytes = 4 * count
    y = builder.add_arg(4 * count, WRITE)
    for width, base in ((left, 0), (right, 4 * left)):
        section = builder.vector(width, rows, depth)
        target = section.operand(WORKSPACE, (4, pitch, layer), base=base, mode=WRITE)
        section.begin_pass()
        section.word("mov.k", 1.5)
        section.word("store", target)
        section.end_pass()
        section.word("end_row")
    _mapped(builder, (count,), (WORKSPACE, (4,), 0), (y, (4,), 0))
    return builder.build(), [np.zeros(count, np.float32)]


def far(rng: np.random.Generator) -> Made:
    """A few elements tens of thousands of bytes apart."""
    builder, steps = ProgramBuilder(), [int(n) * 4 for n in rng.integers(4000, 9000, 2)]
    if rng.random() < 0.5:
        steps[0] = 4 * int(rng.integers(8300, 12000))
        steps[1] = 8
    size = 4 + steps[0] + steps[1] + 4
    base = steps[1] if rng.random() < 0.3 else 0
    x = builder.add_arg(size, READ)
    y = builder.add_arg(32, WRITE)
    _mapped(builder, (2, 2, 2), (x, (4, steps[0], -steps[1] if base else steps[1]), base), (y, (4, 8, 16), 0))
    return builder.build(), [rng.standard_normal(size // 4).astype(np.float32), np.zeros(8, np.float32)]


def beside(rng: np.random.Generator) -> Made:
    """One section reads columns of a matrix in the workspace and writes other columns, at the same or another pitch."""
    read, written, rows, depth = (int(n) for n in rng.integers((1, 1, 2, 1), (6, 6, 5, 4)))
    width = min(read, written)
    pitch = 4 * (read + written + int(rng.integers(0, 3)))
    wider = pitch * int(rng.integers(1, 4))
    first, second = (0, 4 * read) if rng.random() < 0.5 else (4 * written, 0)
    if rng.random() < 0.5:
        pitch, wider = wider, pitch
    builder = ProgramBuilder()
    builder.workspace_bytes = max(pitch, wider) * (rows * depth + 1)
    count = builder.workspace_bytes // 4
    x, y = builder.add_arg(4 * count, READ), builder.add_arg(4 * count, WRITE)
    _mapped(builder, (count,), (x, (4,), 0), (WORKSPACE, (4,), 0))
    _mapped(builder, (width, rows, depth), (WORKSPACE, (4, pitch, pitch * rows), first),
            (WORKSPACE, (4, wider, wider * rows), second))
    _mapped(builder, (count,), (WORKSPACE, (4,), 0), (y, (4,), 0))
    return builder.build(), [rng.standard_normal(count).astype(np.float32), np.zeros(count, np.float32)]


def gathered(rng: np.random.Generator) -> Made:
    """Rows gathered by int32 or int64 indices, from an argument or from the workspace."""
    width, rows, limit = (int(n) for n in rng.integers(1, 7, 3))
    kind, builder = (dtypes.int32, dtypes.int64)[int(rng.integers(2))], ProgramBuilder()
    x = builder.add_arg(4 * width * limit)
    i = builder.add_arg(kind.bytes * rows, dtype=kind)
    y = builder.add_arg(4 * width * rows, WRITE)
    source = x
    if rng.random() < 0.3:
        builder.workspace_bytes, source = 4 * width * limit, WORKSPACE
        _mapped(builder, (width * limit,), (x, (4,), 0), (WORKSPACE, (4,), 0))
    section = builder.vector(width, rows)
    section.operand(i, (0, kind.bytes), dtype=kind)
    section.operand(source, (4,), mode=READ | GATHER, index=0, limit=limit, depth=4 * width)
    section.operand(y, (4, 4 * width), mode=WRITE)
    section.word("gather", 1)
    _words(section, 1, 2)
    index = rng.integers(-limit, limit, rows).astype(kind.numpy)
    return builder.build(), [rng.standard_normal(width * limit).astype(np.float32), index, np.zeros(width * rows, np.float32)]


def idle(rng: np.random.Generator) -> Made:
    """An operand that is gathered by another one, and that no word uses."""
    width, rows = (int(n) for n in rng.integers(1, 7, 2))
    builder = ProgramBuilder()
    x, y = builder.add_arg(4 * width * rows), builder.add_arg(4 * width * rows, WRITE)
    section = builder.vector(width, rows)
    section.operand(builder.add_arg(8 * rows, dtype=dtypes.int64), (0, 8), dtype=dtypes.int64)
    section.operand(x, (4,), mode=READ | GATHER, index=0, limit=rows, depth=4 * width)
    a, b = section.operand(x, (4, 4 * width)), section.operand(y, (4, 4 * width), mode=WRITE)
    _words(section, a, b)
    return builder.build(), [rng.standard_normal(width * rows).astype(np.float32),
                             np.zeros(width * rows, np.float32), np.zeros(rows, np.int64)]


def many(rng: np.random.Generator, number: int) -> Made:
    """More elements, or columns, written one by one with gaps between them than the verifier keeps count of."""
    builder, rows = ProgramBuilder(), 1 if number % 2 else 3
    count = 140 if rows == 1 else 20
    x, y = builder.add_arg(4 * rows), builder.add_arg(8 * count * rows, WRITE)
    for place in rng.permutation(count):
        section = builder.copy(1, rows)
        section.operand(x, (4, 4))
        section.operand(y, (4, 8 * count), base=8 * int(place), mode=WRITE)
    return builder.build(), [rng.standard_normal(rows).astype(np.float32), np.zeros(2 * count * rows, np.float32)]


def alike(rng: np.random.Generator, number: int) -> Made:
    """More sections than the verifier proves one by one, which differ in places alone: from a shared argument, in place, out of
    the workspace, with constants of 8 bytes, products, read where they were stored, through a row buffer, counting; each with an
    argument of its own or in a part of one. Some have another constant, or count from elsewhere."""
    builder, count = ProgramBuilder(), int(rng.integers(8, 12))
    kind, own, width = number % 8, bool(number // 8 % 2), int(rng.integers(1, 6))
    compute = {3: dtypes.float64, 7: dtypes.int64}.get(kind, dtypes.float32)
    size, content = compute.bytes * width, []

    def argument(bytes_: int, mode: int) -> int:
        content.append((9 * rng.standard_normal(bytes_ // compute.bytes)).astype(compute.numpy))
        return builder.add_arg(bytes_, mode, compute)

    x = argument(2 * size, READ)
    y = argument(count * size, READ | WRITE)
    builder.workspace_bytes = count * size
    for i in range(count):
        target, base = (argument(size, READ | WRITE), 0) if own and i % 2 else (y, i * size)
        if kind == 4:
            section = builder.matmul(1, width, 1)
            section.operand(x, (0, 4), depth=4, base=size * int(rng.integers(2)))
            section.operand(x, (4, 0), depth=4, base=4 * int(rng.integers(2 * width)))
            section.operand(target, (4, 4), mode=READ | WRITE, base=base)
            continue
        source, at = {1: (target, base), 2: (WORKSPACE, i * size)}.get(kind, (x, size * int(rng.integers(2))))
        if kind == 2:
            _mapped(builder, (width,), (x, (4,), size * (i % 2)), (source, (4,), at))
        section = builder.vector(width, dtype=compute)
        counts = kind == 7
        a = section.index((1,), base=i % 4) if counts else section.operand(source, (compute.bytes,), base=at, dtype=compute)
        b = section.operand(target, (compute.bytes,), base=base, mode=WRITE, dtype=compute)
        if kind in (5, 6, 7):
            between = section.row_buffer() if kind == 6 else b
            section.begin_pass()
            section.word("iota" if counts else "mov.i", a)
            section.word("store", between)
            section.end_pass()
            a = between
        if kind == 5:
            a = section.operand(target, (4,), base=base)
            b = section.operand(WORKSPACE, (4,), base=i * size, mode=WRITE)
        if counts:
            section.word("end_row")
        else:
            _words(section, a, b, 0.5 if i % 3 else 1.5)
    return builder.build(), content


Where = tuple[int, tuple[int, ...], int]  # argument, strides, base


def _mapped(builder: ProgramBuilder, dims: tuple[int, ...], source: Where, target: Where) -> None:
    section = builder.vector(*dims)
    a = section.operand(source[0], source[1], base=source[2])
    b = section.operand(target[0], target[1], base=target[2], mode=WRITE)
    _words(section, a, b)


def _words(section: SectionBuilder, source: int, target: int, added: float = 0.5) -> None:
    section.begin_pass()
    section.word("mov.i", source)
    section.word("add.k", added)
    section.word("store", target)
    section.end_pass()
    section.word("end_row")


def of_encoder(rng: np.random.Generator) -> Iterator[Made]:
    from dvm_rt import _native

    from tests.native.plans import FUSED, Case, arrays_of

    for make in FUSED.values():
        for symbols in ((1, 1), (3, 5), (2, 64), (5, 33)):
            case = Case(2)
            make(case)
            plan = case.build()
            yield _native.Plan(plan.to_bytes()).encode(symbols), arrays_of(plan, symbols, rng)


def of_listings(rng: np.random.Generator) -> Iterator[Made]:
    for listing in (*LISTINGS.values(), ROTARY):
        for _ in range(4):
            program = assemble(listing)
            args = parse(program).args
            yield program, [np.frombuffer(rng.bytes(a.bytes), np.uint8).copy() for a in args]


def main(folder: Path) -> None:
    print(f"{write(folder, families(np.random.default_rng(20261122)))} seeds in {folder}")
    refused = [*(program for _, _, program in broken()), *(edit.program() for edit in EDITS)]
    for number, program in enumerate(refused):
        (folder / f"{number:04}.refused").write_bytes(program)


def write(folder: Path, made_by_family: Iterable[tuple[str, Iterable[Made]]]) -> int:
    """A file for each seed that is small enough; how many."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for family, made in made_by_family:
        for program, args in made:
            parsed = parse(program)
            work = fuel(parsed.sections)
            if work > WORK_MAX or max((a.bytes for a in parsed.args), default=0) > (BYTES_MAX if work > FEW else 4 * BYTES_MAX):
                continue
            content = [a.reshape(-1).view(np.uint8).tobytes() if a.size else b"" for a in args]
            parts = [program, *content]
            expected = after(program, content)
            data = np.array([len(content), len(expected)], "<u4").tobytes()
            data += b"".join(len(part).to_bytes(4, "little") + part for part in (*parts, *expected))
            (folder / f"{family}.{written:04}.seed").write_bytes(data)
            written += 1
    return written


def after(program: bytes, content: list[bytes]) -> list[bytes]:
    parsed = parse(program)
    if any(s.kind == HOST for s in parsed.sections):
        return []
    if any(table.OPCODES[w.op][0].ulp for s in parsed.sections for w in s.words):
        return []
    arrays = [np.frombuffer(c, np.uint8).copy() for c in content]
    try:
        reference.run(program, arrays)
    except DeviceTrap:
        return []
    return [a.tobytes() for a in arrays]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
