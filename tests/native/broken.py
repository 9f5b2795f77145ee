"""Programs that break one rule each and that no edit of a listing gives: sums and products that overflow, lengths that lie. What
the verifiers answer is in tests/native/test_verify.py; the fuzzer asks about them too."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

from dvm_rt import _native, dtypes
from dvm_rt.isa import layout
from dvm_rt.isa.program import GATHER, PACKED, READ, WORKSPACE, WRITE, Program, ProgramBuilder, SectionBuilder

MOST = 1 << 40  # of a dimension
Broken = tuple[str, str, bytes]  # what it is, how it is refused, the program


def broken() -> Iterator[Broken]:
    yield from lengths()
    yield "dimensions whose product overflows", "OVERFLOW", raw(vector(MOST, MOST))
    yield "dimensions whose product is 0 modulo 2^64", "OVERFLOW", raw(vector(1 << 32, 1 << 32))
    yield "a product whose work overflows", "FUEL", raw(matmul(1 << 20, 1 << 20, MOST))
    wide = layout.LIMITS["SLICE_K"] + 1
    attention = ProgramBuilder().attention(1, 1, wide)
    attention.operand(WORKSPACE, (0, 4 * wide), depth=4, limit=1)
    for mode in (READ | PACKED, READ, READ | WRITE):
        attention.operand(WORKSPACE, mode=mode, limit=wide)
    yield "packed keys that are too wide", "DIMENSION", raw(attention)
    copy = SectionBuilder(ProgramBuilder().copy(1).kind, (1,))
    copy.word("end_row")
    copy.operand(0)
    copy.operand(1, mode=WRITE)
    yield "a copy with words", "NESTING", raw(copy)
    yield "a copy to rows that each element names", "OPERAND", to_named_rows()
    yield "a product in the place of its left matrix", "OVERLAP", product_in_place()
    yield "numbers of rows that may be written", "PERMISSION", written_groups()
    host = ProgramBuilder().host("sort", (0, 0), 1 << 36)
    host.operand(0, (1 << 36, MOST), depth=2)
    host.operand(1, (1,), mode=WRITE, depth=1)
    yield "an array whose size overflows", "DIMENSION", raw(host)
    yield "loops whose work overflows", "OVERFLOW", looped(vector_of_work(1 << 30), times=MOST)
    yield "loops whose work overflows with what was before", "OVERFLOW", looped(vector_of_work((1 << 23) - 1),
        MOST - 1, vector_of_work(1 << 24))
    yield "loops of more work than there may be", "OVERFLOW", looped(vector_of_work(1 << 20), 1 << 30)


def to_named_rows() -> bytes:
    builder = ProgramBuilder()
    copy = builder.copy(4, 2)
    copy.operand(builder.add_arg(32), (4, 16))
    copy.operand(builder.add_arg(64, WRITE), (4, 16), mode=WRITE | GATHER, index=2, limit=2, depth=32)
    copy.operand(builder.add_arg(16, READ, dtypes.int64), (0, 8), dtype=dtypes.int64)
    return builder.build()


def product_in_place() -> bytes:
    builder = ProgramBuilder()
    product, c = builder.matmul(1, 5, 1), builder.add_arg(20, READ | WRITE)
    product.operand(c, (0, 4), depth=4)
    product.operand(builder.add_arg(4), (4, 0), depth=4)
    product.operand(c, (4, 4), mode=READ | WRITE)
    return builder.build()


def written_groups() -> bytes:
    builder = ProgramBuilder()
    product = builder.matmul(1, 5, 1, 2)
    product.operand(builder.add_arg(20), (0, 4), depth=4, index=3)
    product.operand(builder.add_arg(8), (4, 0, 4), depth=4)
    product.operand(builder.add_arg(20, READ | WRITE), (4, 4), mode=READ | WRITE)
    product.operand(builder.add_arg(16, READ | WRITE, dtypes.int64), (0, 0, 8), dtype=dtypes.int64, mode=READ | WRITE)
    return builder.build()


def lengths() -> Iterator[Broken]:
    good = raw(vector(4))
    yield "fewer bytes than a head", "TRUNCATED", good[:40]
    yield "bytes behind the last section", "TRUNCATED", sealed(good + bytes(8))
    yield "a last section that is cut off", "TRUNCATED", sealed(good[:-8])
    yield "a section head that is cut off", "TRUNCATED", sealed(good[: 64 + 2 * 16 + 8])
    yield "arguments that are cut off", "TRUNCATED", sealed(good[: 64 + 16])
    yield "more bytes than a program may have", "LIMIT", sealed(good + bytes(layout.LIMITS["MAX_PROGRAM_BYTES"]))


def sealed(program: bytes) -> bytes:
    """With the length that it has, and its checksum."""
    out = bytearray(program)
    struct.pack_into("<I", out, layout.RECORD["ProgramHead"].numpy.fields["bytes"][1], len(out))
    out[16:24] = struct.pack("<Q", _native.checksum(bytes(out[24:])))
    return bytes(out)


def raw(*sections: SectionBuilder) -> bytes:
    """Two arguments of 16 bytes; whatever the sections say, in a program that claims all the work that there may be."""
    builder = ProgramBuilder()
    builder.add_arg(16), builder.add_arg(16, WRITE)
    made = (replace(s.section(), scratch_bytes=0) for s in sections)
    return Program(tuple(builder.args), tuple(made), 1 << 20, 0, MOST).to_bytes()


def vector(*dims: int) -> SectionBuilder:
    section = ProgramBuilder().vector(*dims)
    section.operand(0)
    section.operand(1, (4,), mode=WRITE)
    section.begin_pass()
    section.word("mov.b", 0)
    section.word("store", 1)
    section.end_pass()
    section.word("end_row")
    return section


def vector_of_work(work: int) -> SectionBuilder:
    """Rows without a pass: each is a unit of work, the section another one."""
    section = ProgramBuilder().vector(1, work - 1)
    section.word("end_row")
    return section


def matmul(n: int, m: int, k: int) -> SectionBuilder:
    section = ProgramBuilder().matmul(n, m, k)
    section.operand(0, (0, 4), depth=4)
    section.operand(0, (4, 0), depth=4)
    section.operand(WORKSPACE, (4, 4 * n), mode=READ | WRITE)
    return section


def looped(body: SectionBuilder, times: int, before: SectionBuilder | None = None) -> bytes:
    builder = ProgramBuilder()
    builder.loop(1, times)
    loop = builder.sections[0].section()
    sections = [s.section() for s in (before, body) if s is not None]
    return Program((), (*sections, loop), 0, 0, MOST).to_bytes()
