"""What a section writes, it reads at no other place: every operand of every kind of section is moved, element by element, across
what the section writes. Both verifiers refuse it as long as one byte is shared, and only then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import InvalidBytecodeError
from dvm_rt.isa import matmul
from dvm_rt.isa.program import GATHER, PACKED, READ, WORKSPACE, WRITE, ProgramBuilder, SectionBuilder
from dvm_rt.isa.verifier import check

BASE = 1 << 14  # of what is written, in the workspace
Place = Callable[[int], tuple[int, int]]  # number of an operand -> its argument and base
Made = tuple[SectionBuilder, list[int]]  # a section, and how many bytes each operand touches


def vector(builder: ProgramBuilder, at: Place) -> Made:
    section = builder.vector(5, 3)
    for number, mode in enumerate((READ, WRITE)):
        arg, base = at(number)
        section.operand(arg, (4, 20), base=base, mode=mode)
    section.begin_pass()
    section.word("mov.i", 0)
    section.word("store", 1)
    section.end_pass()
    section.word("end_row")
    return section, [60, 60]


def gathered(builder: ProgramBuilder, at: Place) -> Made:
    section = builder.vector(5, 3)
    (rows, rows_at), (source, source_at), (target, target_at) = (at(number) for number in range(3))
    section.operand(rows, (0, 4), base=rows_at, dtype=dtypes.int32)
    section.operand(source, (4,), base=source_at, mode=READ | GATHER, index=0, limit=4, depth=20)
    section.operand(target, (4, 20), base=target_at, mode=WRITE)
    section.word("gather", 1)
    section.begin_pass()
    section.word("mov.i", 1)
    section.word("store", 2)
    section.end_pass()
    section.word("end_row")
    return section, [12, 80, 60]


def copied(builder: ProgramBuilder, at: Place) -> Made:
    section = builder.copy(5, 3)
    for number, mode in enumerate((READ, WRITE)):
        arg, base = at(number)
        section.operand(arg, (4, 20), base=base, mode=mode)
    return section, [60, 60]


def to_a_row(builder: ProgramBuilder, at: Place) -> Made:
    section = builder.copy(5)
    (source, source_at), (target, target_at), (row, row_at) = (at(number) for number in range(3))
    section.operand(source, (4,), base=source_at)
    section.operand(target, (4,), base=target_at, mode=WRITE | GATHER, index=2, limit=4, depth=20)
    section.operand(row, (0,), base=row_at, dtype=dtypes.int32)
    return section, [20, 80, 4]


def product(builder: ProgramBuilder, at: Place, packed: bool = False) -> Made:
    n, m, k = 6, 3, 4
    section = builder.matmul(n, m, k)
    (a, a_at), (b, b_at), (c, c_at), (d, d_at) = (at(number) for number in range(4))
    section.operand(a, (0, 4 * k), base=a_at, depth=4)
    if packed:
        section.operand(b, (), base=b_at, mode=READ | PACKED)
    else:
        section.operand(b, (4, 0), base=b_at, depth=4 * n)
    section.operand(c, (4, 4 * n), base=c_at, mode=READ | WRITE)
    section.operand(d, (4, 0), base=d_at)
    for word, value in (("mov.i", 2), ("add.i", 3), ("store", 2)):
        section.word(word, value)
    section.word("end")
    return section, [4 * m * k, matmul.packed_bytes(n, k) if packed else 4 * k * n, 4 * m * n, 4 * n]


def packed_product(builder: ProgramBuilder, at: Place) -> Made:
    return product(builder, at, packed=True)


def grouped_product(builder: ProgramBuilder, at: Place) -> Made:
    n, m, k, groups = 6, 3, 4, 2
    section = builder.matmul(n, m, k, groups)
    (a, a_at), (b, b_at), (c, c_at), (rows, rows_at) = (at(number) for number in range(4))
    section.operand(a, (0, 4 * k, 0), base=a_at, depth=4, index=3)
    section.operand(b, (4, 0, 4 * k * n), base=b_at, depth=4 * n)
    section.operand(c, (4, 4 * n, 0), base=c_at, mode=READ | WRITE)
    section.operand(rows, (0, 0, 4), base=rows_at, dtype=dtypes.int32)
    return section, [4 * m * k, 4 * k * n * groups, 4 * m * n, 4 * groups]


def pack(builder: ProgramBuilder, at: Place) -> Made:
    n, k = 6, 4
    section = builder.pack(n, k)
    (b, b_at), (target, target_at) = at(0), at(1)
    section.operand(b, (4,), base=b_at, depth=4 * n)
    section.operand(target, (), base=target_at, mode=WRITE | PACKED)
    return section, [4 * k * n, matmul.packed_bytes(n, k)]


def attention(builder: ProgramBuilder, at: Place) -> Made:
    keys, queries, depth = 5, 3, 4
    section = builder.attention(keys, queries, depth, 1, scale=1.0, masked=0.0, empty=0.0)
    (q, q_at), (k, k_at), (v, v_at), (o, o_at), (mask, mask_at) = (at(number) for number in range(5))
    section.operand(q, (0, 4 * depth), base=q_at, depth=4, limit=keys)
    section.operand(k, (4 * depth, 0), base=k_at, depth=4, limit=depth)
    section.operand(v, (4 * depth, 0), base=v_at, depth=4, limit=depth)
    section.operand(o, (0, 4 * depth), base=o_at, mode=WRITE, depth=4)
    section.operand(mask, (4, 4 * keys), base=mask_at)
    rows = 4 * depth
    return section, [rows * queries, rows * keys, rows * keys, rows * queries, 4 * keys * queries]


def host(builder: ProgramBuilder, at: Place) -> Made:
    section = builder.host("sort", (0, 0), 30)
    for number, mode in enumerate((READ, WRITE)):
        arg, base = at(number)
        section.operand(arg, (5, 3), base=base, mode=mode, depth=2)
    return section, [60, 60]


KINDS: dict[str, tuple[Callable[[ProgramBuilder, Place], Made], int, int]] = {  # how many operands, which one is written
    "vector": (vector, 2, 1),
    "vector that gathers": (gathered, 3, 2),
    "copy": (copied, 2, 1),
    "copy to a row": (to_a_row, 3, 1),
    "matmul": (product, 4, 2),
    "matmul of packed weights": (packed_product, 4, 2),
    "matmul in groups": (grouped_product, 4, 2),
    "pack": (pack, 2, 1),
    "attention": (attention, 5, 3),
    "host": (host, 2, 1),
}
IN_PLACE = {("vector", 0)}  # element by element at the very same places


def program(kind: str, moved: int, offset: int) -> tuple[bytes, list[int]]:
    make, operands, written = KINDS[kind]
    builder = ProgramBuilder()
    builder.workspace_bytes = 16 * BASE  # operands far apart, but for the one that is moved
    places = {i: BASE * (i + 2) for i in range(operands)} | {written: BASE, moved: BASE + offset}
    _, sizes = make(builder, lambda number: (WORKSPACE, places[number]))
    return builder.build(), sizes


@pytest.mark.parametrize(("kind", "moved"), [(kind, i) for kind, (_, count, written) in KINDS.items()
                                             for i in range(count) if i != written])
def test_an_operand_is_moved_across_what_is_written(kind: str, moved: int) -> None:
    written = KINDS[kind][2]
    sizes = program(kind, moved, BASE // 2)[1]
    answers = set()
    for offset in range(-sizes[moved] - 8, sizes[written] + 12, 4):
        code, _ = program(kind, moved, offset)
        shared = -sizes[moved] < offset < sizes[written] and not ((kind, moved) in IN_PLACE and offset == 0)
        answers.add(shared)
        second = check(code)
        try:
            _native.Program(code)
            first = None
        except InvalidBytecodeError as error:
            first = error.code
        assert (first, second and second.code) == ("OVERLAP", "OVERLAP") if shared else (None, None), (offset, first, second)
    assert answers == {True, False}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("host", "pack")])
def test_what_is_written_meets_no_place_twice(kind: str) -> None:
    """The same rule for one operand alone: rows that are closer than they are long. Host functions and packs have no strides."""
    make, _, written = KINDS[kind]
    builder = ProgramBuilder()
    builder.workspace_bytes = 16 * BASE
    section, _ = make(builder, lambda number: (WORKSPACE, BASE * (number + 1)))
    operand = section.operands[written]
    closer = {"copy to a row": {"depth": 16}}.get(kind, {"stride": (operand.stride[0], operand.stride[1] - 4,
        *operand.stride[2:])})
    section.operands[written] = replace(operand, **closer)
    code = builder.build()
    with pytest.raises(InvalidBytecodeError, match="OVERLAP"):
        _native.Program(code)
    assert check(code).code == "OVERLAP"
