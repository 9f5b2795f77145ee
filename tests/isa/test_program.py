"""Program bytes: parsing, writing, fuel, checksum, the generated header and the manual."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvm_rt.errors import InvalidBytecodeError
from dvm_rt.isa import header, host, layout, manual, table
from dvm_rt.isa.checksum import checksum
from dvm_rt.isa.program import CHECKED_FROM, HEAD, WRITE, ProgramBuilder, fuel, parse

from tests.isa.strategies import programs


def small_program() -> bytes:
    builder = ProgramBuilder()
    x, y = builder.add_arg(400), builder.add_arg(400, WRITE)
    section = builder.vector(100)
    source, target = section.operand(x, (4,)), section.operand(y, (4,), mode=WRITE)
    section.begin_pass()
    section.word("mov.i", source)
    section.word("mul.k", 0.5)
    section.word("store", target)
    section.end_pass()
    section.word("end_row")
    return builder.build()


@given(programs)
@settings(max_examples=60, deadline=None)
def test_any_program_survives_bytes(program: object) -> None:
    data = program.to_bytes()
    assert len(data) == program.bytes
    parsed = parse(data)
    assert parsed.to_bytes() == data
    assert replace(parsed, checksum=program.checksum) == program


def test_every_truncation_is_refused() -> None:
    data = small_program()
    for length in range(len(data)):
        with pytest.raises(InvalidBytecodeError, match="program: "):
            parse(data[:length])
    with pytest.raises(InvalidBytecodeError, match="length is not what the head says"):
        parse(data + bytes(8))


@pytest.mark.parametrize("code", ["magic", "version", "table_hash"])
def test_another_build_is_refused_by_name(code: str) -> None:
    data = bytearray(small_program())
    data[HEAD.fields[code][1]] ^= 1
    with pytest.raises(InvalidBytecodeError, match=f"wrong {code}, got 0x[0-9a-f]+, allowed 0x") as error:
        parse(bytes(data))
    assert error.value.code == code.upper()


@given(st.binary(max_size=600))
def test_garbage_raises_nothing_but_the_typed_error(data: bytes) -> None:
    with pytest.raises(InvalidBytecodeError):
        parse(data)


@given(
    st.lists(st.tuples(st.integers(0, len(small_program()) - 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_damaged_programs_raise_nothing_but_the_typed_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(small_program())
    for at, value in changes:
        data[at] = value
    try:
        assert parse(bytes(data)).to_bytes() == data
    except InvalidBytecodeError:
        pass


def test_a_value_that_does_not_fit_its_field_is_refused() -> None:
    program = parse(small_program())
    with pytest.raises(InvalidBytecodeError, match="does not fit its field"):
        replace(program, workspace_bytes=1 << 64).to_bytes()


def test_fuel_counts_words_times_strips_times_rows_and_steps_of_matmul() -> None:
    builder = ProgramBuilder()
    vector = builder.vector(129, 10, 3)
    for _ in range(7):
        vector.word("end_row")
    assert fuel([vector.section()]) == 7 * 2 * 30 + 1
    matmul = builder.matmul(100, 33, 65, 2)
    for _ in range(3):
        matmul.operand(0, (4, 0), depth=400)
    assert fuel([matmul.section()]) == -(-100 * 33 * 65 * 2 // 1024) + 1
    matmul.word("end")
    assert fuel([matmul.section()]) == -(-100 * 33 * 65 * 2 // 1024) + 33 * 2 * 1 + 1
    pack = builder.pack(1000, 7)
    assert fuel([pack.section()]) == 7 + 1
    assert fuel([vector.section(), pack.section()]) == fuel([vector.section()]) + fuel([pack.section()])
    assert parse(builder.build()).fuel == fuel([s.section() for s in builder.sections])


def test_checksum_of_known_bytes() -> None:
    assert checksum(b"") == 0x76BE81C43835FDD0
    assert checksum(b"dvm_rt") == 0xA1D81AEBEC8EEF8E
    assert checksum(bytes(range(64))) == 0x7C2F3F353D53C8AA


def test_checksum_sees_any_one_or_two_flipped_bits_and_every_length() -> None:
    data = bytearray(small_program()[CHECKED_FROM:])
    seen = {checksum(data)}
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        seen.add(checksum(data))
        data[bit // 8] ^= 1 << bit % 8
    assert len(seen) == 8 * len(data) + 1  # so no second flipped bit undoes the first
    assert len({checksum(bytes(n)) for n in range(100)}) == 100


def test_native_checksum_is_the_same() -> None:
    native = pytest.importorskip("dvm_rt._native")
    if not hasattr(native, "checksum"):
        pytest.skip("native machine not built")
    rng = np.random.default_rng(0)
    for length in [*range(70), 1000, 4096]:
        data = rng.bytes(length)
        assert native.checksum(data) == checksum(data)


def test_opcodes_are_dense_unique_and_named() -> None:
    names = [table.mnemonic(code) for code in range(len(table.OPCODES))]
    assert len(set(names)) == len(names)
    assert [table.opcode(*(name.split(".") if "." in name else (name,))) for name in names] == list(
        range(len(names))
    )
    for code in range(len(names)):
        assert set(table.word_fields(code)) <= {"", *table.WORD_FIELDS}
    for instruction in table.INSTRUCTIONS:
        if instruction.commuted:
            assert table.BY_NAME[instruction.commuted].commuted == instruction.name


def test_header_names_every_row_and_record_once() -> None:
    text = header.header()
    for code, (instruction, form) in enumerate(table.OPCODES):
        name = f"OP_{instruction.name}{'_' + form if form else ''}"
        assert re.findall(rf"\b{name} = (\d+),", text) == [str(code)]
    for name, record in layout.RECORD.items():
        assert text.count(f"struct {name} {{") == 1
        assert f"static_assert(sizeof({name}) == {record.numpy.itemsize});" in text
    assert text.count("{") == text.count("}")


def test_manual_has_every_instruction_kind_record_and_limit() -> None:
    text = manual.manual()
    for instruction in table.INSTRUCTIONS:
        line = (
            "| "
            + " | ".join(cell.replace("|", "\\|") for cell in manual.instruction_line(instruction))
            + " |"
        )
        assert line in text
        for form in table.forms(instruction):
            assert re.search(rf"\b{table.CODES[instruction.name, form]}\b", line)
    assert set(manual.SECTION_KINDS) == set(layout.ENUMS["SectionKind"])
    for name in [*layout.RECORD, *layout.LIMITS, *table.WORD_FIELDS, *host.NAMES]:
        assert name in text


def test_the_page_in_docs_is_the_manual() -> None:
    page = Path(__file__).parents[2] / "docs" / "isa.md"
    assert page.read_text() == manual.manual(), "the tables have changed: dvm-rt isa --markdown docs/isa.md"
