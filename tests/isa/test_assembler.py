"""Text and bytes of programs are exact inverses."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings

from dvm_rt.errors import InvalidBytecodeError
from dvm_rt.isa import assembler, table
from dvm_rt.isa.assembler import assemble, disassemble, word_text
from dvm_rt.isa.program import MNEMONICS, Word

from tests.isa.cases import cases
from tests.isa.strategies import programs
from tests.isa.test_program import small_program


@given(programs)
@settings(max_examples=80, deadline=None)
def test_any_program_survives_text(program: object) -> None:
    data = program.to_bytes()
    assert assemble(disassemble(data)) == data


@pytest.mark.parametrize("code", range(len(table.OPCODES)), ids=lambda code: table.mnemonic(code))
def test_programs_of_every_row_survive_text(code: int) -> None:
    instruction, form = table.OPCODES[code]
    for case in cases(instruction, form, 65, np.random.default_rng(code)):
        text = disassemble(case.program)
        assert assemble(text) == case.program
        assert f" {table.mnemonic(code)}" in text


def test_the_listing_in_the_docstring_is_what_comes_out() -> None:
    listing = inspect.cleandoc(assembler.__doc__).split("\n\n")[2]
    assert disassemble(small_program()) == inspect.cleandoc(listing) + "\n"
    assert assemble(listing) == small_program()


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (Word(MNEMONICS["add.i"], 1), "add.i x1"),
        (Word(MNEMONICS["mul.k"], 0, 0x3F000000), "mul.k 0.5"),
        (Word(MNEMONICS["mul.k"], 0, 0x80000000), "mul.k -0.0"),
        (Word(MNEMONICS["max.k"], 0, 0xFF800000), "max.k -inf"),
        (Word(MNEMONICS["add.k"], 0, 1), "add.k 1e-45"),
        (Word(MNEMONICS["add.k"], 0, 0x7F800001), "add.k 0x7f800001"),
        (Word(MNEMONICS["sub.r"], 0, 3), "sub.r r3"),
        (Word(MNEMONICS["mov.s"], 0, 12), "mov.s s12"),
        (Word(MNEMONICS["store"], 2), "store x2"),
        (Word(MNEMONICS["fold_max"], 4), "fold_max max4"),
        (Word(MNEMONICS["loop"], 0b10001, 7), "loop -7 {sum0,max4}"),
        (Word(MNEMONICS["fetch"], 1, 2048), "fetch x1 2048"),
        (Word(MNEMONICS["exp"], 5, 6), "exp a=5 k=6"),
        (Word(999, 1, 2), "op999 a=1 k=2"),
    ],
)
def test_words_as_text(word: Word, text: str) -> None:
    assert word_text(word) == text


@pytest.mark.parametrize(
    "line",
    [
        "  9 add.q x1",
        "  9 add.i s1",
        "  9 add.i",
        "  9 exp x1",
        "  9 loop -3 {foo}",
        "arg9 10 float31 read",
        "section9 vector",
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str) -> None:
    text = disassemble(small_program()) + line + "\n"
    with pytest.raises(
        InvalidBytecodeError,
        match=rf"assembler: line {text.count(chr(10))}: cannot be read .*allowed the form",
    ):
        assemble(text)
