"""Writes seed programs for the fuzzer: python -m tests.fuzz.corpus FOLDER

Every instruction and form in every compute dtype, loads and stores of every storage dtype, random vector programs,
matmuls of every dtype (packed, transposed, with epilogues), copies, attention, host functions, gathers, row buffers,
columns side by side, and what the encoder makes of fused plans. Each file holds the program, what its arguments hold
before the run, and what the reference interpreter leaves in them (nothing where some instruction is only promised to a
few ulp, and for host functions, for which the fuzzer has a stand-in)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dvm_rt import dtypes
from dvm_rt.errors import DeviceTrap
from dvm_rt.isa import matmul, reference, table
from dvm_rt.isa.assembler import assemble
from dvm_rt.isa.layout import enum_value
from dvm_rt.isa.program import PACKED, READ, WORKSPACE, WRITE, ProgramBuilder, fuel, parse
from dvm_rt.isa.table import Group

from tests.isa.cases import cases, epilogue
from tests.isa.random_programs import RandomProgram
from tests.isa.test_fuzz import random_matmul
from tests.native.test_matmul_dtypes import samples

HOST = enum_value("SectionKind", "HOST")
WORK_MAX, BYTES_MAX = 600, 1 << 14  # small programs run fast, and reach every rule all the same


def seeds(rng: np.random.Generator) -> Iterator[tuple[bytes, list[np.ndarray]]]:
    for instruction, form in table.OPCODES:
        converts = instruction.group in (Group.LOAD, Group.STORE)
        for number, name in enumerate(instruction.compute_dtypes):
            if form in ("", "i", "k") or not number:
                made = list(cases(instruction, form, int(rng.integers(1, 24 if converts else 70)), rng, dtypes.BY_NAME[name]))
                for case in made if converts and not number else made[:2]:
                    yield case.program, case.args
    yield from of_copies(rng)
    yield from of_attention(rng)
    yield from of_host(rng)
    for number in range(160):
        case = RandomProgram(rng, exact=number % 4 > 0).case()
        yield case.program, case.args
    for _ in range(120):
        case = random_matmul(rng)
        yield case.program, case.args
    yield from samples(rng)
    for form in ("i", "b", "k"):
        case = epilogue("add", form, 40, rng)
        yield case.program, case.args
    for _ in range(20):
        yield columns(rng)
    yield from of_encoder(rng)
    yield from of_listings(rng)


def of_copies(rng: np.random.Generator) -> Iterator[tuple[bytes, list[np.ndarray]]]:
    """Copies of every dtype: transposed, reversed, with gaps, with an index that repeats."""
    for dtype in dtypes.DTYPES:
        for kind in range(4):
            rank = int(rng.integers(1, 4))
            shape = [int(n) for n in rng.integers(1, 7, rank)]
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


def of_attention(rng: np.random.Generator) -> Iterator[tuple[bytes, list[np.ndarray]]]:
    for number in range(24):
        heads, queries, keys, depth, width = (int(n) for n in rng.integers(1, (3, 5, 9, 5, 5)))
        builder, kept = ProgramBuilder(), number % 4 == 3
        section = builder.attention(keys, queries, max(depth, width), heads, scale=0.5, masked=-np.inf, empty=0.0)
        k_bytes = 4 * (packed_elements(keys, depth) if kept else keys * depth)
        sizes = (4 * queries * depth, k_bytes, 4 * keys * width, 4 * queries * width)
        places = [builder.add_arg(heads * n, WRITE if i == 3 else READ) for i, n in enumerate(sizes)]
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
            where = builder.add_arg(mask.nbytes, READ, dtype)
            section.operand(where, [dtype.bytes, dtype.bytes * keys, 0], dtype=dtype)
            content.append(mask)
        yield builder.build(), content


def packed_elements(n: int, k: int) -> int:
    return matmul.packed_bytes(n, k) // 4


def of_host(rng: np.random.Generator) -> Iterator[tuple[bytes, list[np.ndarray]]]:
    """A host function between two copies, through the workspace or through arguments."""
    for number in range(24):
        shape = [int(n) for n in rng.integers(1, 5, int(rng.integers(1, 4)))]
        count, builder, dtype = int(np.prod(shape)), ProgramBuilder(), dtypes.DTYPES[number % len(dtypes.DTYPES)]
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


def columns(rng: np.random.Generator) -> tuple[bytes, list[np.ndarray]]:
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


def of_encoder(rng: np.random.Generator) -> Iterator[tuple[bytes, list[np.ndarray]]]:
    from dvm_rt import _native

    from tests.native.plans import FUSED, Case, arrays_of

    for make in FUSED.values():
        for symbols in ((1, 1), (3, 5), (2, 64), (5, 33)):
            case = Case(2)
            make(case)
            plan = case.build()
            yield _native.Plan(plan.to_bytes()).encode(symbols), arrays_of(plan, symbols, rng)


def of_listings(rng: np.random.Generator) -> Iterator[tuple[bytes, list[np.ndarray]]]:
    from tests.native.test_verify import LISTINGS, ROTARY

    for listing in (*LISTINGS.values(), ROTARY):
        for _ in range(4):
            program = assemble(listing)
            args = parse(program).args
            yield program, [np.frombuffer(rng.bytes(a.bytes), np.uint8).copy() for a in args]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for program, args in seeds(np.random.default_rng(20261122)):
        parsed = parse(program)
        if fuel(parsed.sections) > WORK_MAX or max((a.bytes for a in parsed.args), default=0) > BYTES_MAX:
            continue
        content = [a.reshape(-1).view(np.uint8).tobytes() if a.size else b"" for a in args]
        parts = [program, *content]
        expected = after(program, content)
        data = np.array([len(content), len(expected)], "<u4").tobytes()
        data += b"".join(len(part).to_bytes(4, "little") + part for part in (*parts, *expected))
        (folder / f"{written:04}.seed").write_bytes(data)
        written += 1
    print(f"{written} seeds in {folder}")


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
