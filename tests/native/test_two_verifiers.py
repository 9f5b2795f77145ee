"""Two verifiers, one set of programs: what the device accepts is what `dvm_rt.isa.verifier` accepts, on programs of every
kind, on each rule broken alone, and on mutants. Where they once disagreed, the case has a name here."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import InvalidBytecodeError
from dvm_rt.isa import reference
from dvm_rt.isa.assembler import assemble, disassemble
from dvm_rt.isa.program import parse
from dvm_rt.isa.verifier import check

from tests.isa.test_fuzz import random_matmul
from tests.native.mixed_programs import merged
from tests.native.test_matmul_dtypes import samples
from tests.native.test_verify import EDITS, GATHER, LISTINGS, MATMUL, ROTARY, Edit, fields, mutate, seeds

MUTANTS = 1500
LAYERS = 9  # so many sections that the native verifier knows again what it has proved


def native(program: bytes) -> str | None:
    """The code with which the native verifier refuses a program, or None."""
    try:
        _native.Program(program)
    except InvalidBytecodeError as error:
        return error.code
    return None


def agree(program: bytes) -> bool:
    """Both accept or both refuse; which."""
    first, second = native(program), check(program)
    assert (first is None) == (second is None), f"native {first}, Python {second}, {program.hex()}"
    return first is None


@pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)
def test_the_listings_pass(listing: str) -> None:
    assert check(assemble(listing)) is None


@pytest.mark.parametrize("edit", EDITS, ids=[f"{i}-{e.code}" for i, e in enumerate(EDITS)])
def test_each_rule(edit: Edit) -> None:
    assert not agree(edit.program())


def test_mutants() -> None:
    rng = np.random.default_rng(20261122)
    programs = [case.program for case in (*seeds(rng), *(random_matmul(rng) for _ in range(60)))]
    programs += [code for _ in range(10) for code, _ in samples(rng)]
    programs += [assemble(listing) for listing in (*LISTINGS.values(), ROTARY)] * 20
    where = [fields(program) for program in programs]
    accepted = sum(agree(program) for program in programs)
    assert accepted == len(programs)
    accepted = 0
    for _ in range(MUTANTS):
        number = int(rng.integers(len(programs)))
        accepted += agree(mutate(programs[number], where[number], rng))
    assert MUTANTS // 10 < accepted < MUTANTS


def test_mutants_of_layers() -> None:
    """Sections that differ from an earlier one in places alone: what was proved of that one is not proved again."""
    rng = np.random.default_rng(20261123)
    made = [case.program for case in (*seeds(rng), *(random_matmul(rng) for _ in range(20)))]
    made += [code for code, _ in samples(rng)] + [assemble(listing) for listing in (*LISTINGS.values(), ROTARY)]
    programs = [merged([parse(one)] * LAYERS).to_bytes() for one in made]
    programs = [program for program in programs if agree(program)]  # not those that branch, and others of too many arguments
    assert len(programs) > len(made) // 2
    where = [fields(program) for program in programs]
    accepted = 0
    for _ in range(MUTANTS):
        number = int(rng.integers(len(programs)))
        accepted += agree(mutate(programs[number], where[number], rng))
    assert MUTANTS // 10 < accepted < MUTANTS


LAYER = """
program workspace=0 scratch=0 fuel=6
arg0 128 float32 read align=64
arg1 128 float32 write align=64
section0 vector float32 [16]
  x0 arg0+0 float32 read [4]
  x1 arg1+64 float32 write [4]
  0 pass
  1 mov.i x0
  2 store x1
  3 loop -3 {}
  4 end_row
"""


def _layers(last: dict[str, object]) -> bytes:
    """Layers of which the last one is another: where it is, and how its argument is declared."""
    program = merged([parse(assemble(LAYER))] * LAYERS)
    section = program.sections[-1]
    operands = (section.operands[0], replace(section.operands[1], **{k: v for k, v in last.items() if k in ("arg", "base")}))
    args = list(program.args)
    args[-1] = replace(args[-1], **{k: v for k, v in last.items() if k in ("mode", "dtype", "align", "bytes")})
    sections = (*program.sections[:-1], replace(section, operands=operands))
    return replace(program, args=tuple(args), sections=sections).to_bytes()


@pytest.mark.parametrize(
    ("last", "code"),
    [({}, None), ({"base": 0}, None), ({"base": 68}, "OUT_OF_BOUNDS"), ({"base": -4}, "OUT_OF_BOUNDS"),
     ({"base": 62}, "ALIGNMENT"), ({"base": 2**63 - 4}, "OVERFLOW"), ({"arg": 2 * LAYERS}, "ARGUMENT"),
     ({"mode": 1}, "PERMISSION"), ({"align": 2}, "ALIGNMENT"),
     ({"dtype": dtypes.int32.code}, "DTYPE"), ({"bytes": 124}, "OUT_OF_BOUNDS"), ({"arg": 2 * LAYERS - 2}, "PERMISSION")],
)  # fmt: skip
def test_the_last_layer_is_looked_at(last: dict[str, object], code: str | None) -> None:
    program = _layers(last)
    assert native(program) == code and (check(program) is None) == (code is None)


def test_bytes_that_are_no_program() -> None:
    good = assemble(LISTINGS["packed"])
    for length in range(len(good)):
        assert not agree(good[:length])
    assert not agree(good + bytes(8))
    for bit in range(0, 8 * len(good), 7):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        assert not agree(bytes(bad))


@pytest.mark.parametrize("base", range(0, 100, 4))
@pytest.mark.parametrize("strides", ["[4,80,320]", "[-4,80,320]", "[4,40,160]", "[4,120,480]", "[4,80,324]",
                                     "[4,88,360]", "[8,160,640]"])
def test_columns_beside_each_other(base: int, strides: str) -> None:
    """One operand writes columns of 40 bytes every 80; a second one is moved past it."""
    moved = ROTARY.replace("x2 workspace+40 float32 write [4,80,320]", f"x2 workspace+{base} float32 write {strides}")
    agree(assemble(moved.replace("workspace=4800", "workspace=12000").replace("5 store x2", "5 store_any x2")))


# ---- cases on which they disagreed, or the shadow machine of tests/fuzz and the reference ------------------------------


def test_a_pack_destination_says_that_it_is_packed() -> None:
    """The native verifier took a destination without the flag: one program, two encodings."""
    assert not agree(assemble(MATMUL.replace("x1 arg4+0 float32 write|packed [0]", "x1 arg4+0 float32 write [0]")))


def test_gather_twice_points_where_gather_once_does() -> None:
    """Both accept it. The reference added the row once more, and left the argument."""
    twice = GATHER.replace("0 gather x1", "0 gather x1\n  0 gather x1")
    twice = assemble(_renumbered(twice))
    assert agree(twice)
    once = assemble(GATHER)
    index = np.array([4, -1, 2], np.int64)
    rows = np.arange(500, dtype=np.float32)
    results = []
    for program in (once, twice):
        args = [index.copy(), rows.copy(), np.zeros(1200, np.int8)]
        reference.run(program, args)
        results.append(args[2].tobytes())
        args[2][:] = 0
        _native.Program(program).run(args)
        results.append(args[2].tobytes())
    assert len(set(results)) == 1, disassemble(twice)


def _renumbered(listing: str) -> str:
    """Word numbers in order, in a listing of one section whose words were changed."""
    lines, number = [], 0
    for line in listing.splitlines():
        head, _, rest = line.strip().partition(" ")
        if head.isdigit():
            line, number = f"  {number} {rest}", number + 1
        lines.append(line)
    return "\n".join(lines) + "\n"


def test_lengths_of_records_are_read_exactly() -> None:
    good = assemble(LISTINGS["softmax"])
    section = 64 + 3 * 16
    for offset, kind in ((6, "<H"), (24, "<I"), (28, "<H"), (section + 4, "<H"), (section + 6, "<H"), (section + 8, "<I")):
        (value,) = struct.unpack_from(kind, good, offset)
        for other in {0, 1, value - 1, value + 1, 2 * value, 0xFFFF} - {value}:
            bad = bytearray(good)
            struct.pack_into(kind, bad, offset, max(0, other))
            bad[16:24] = struct.pack("<Q", _native.checksum(bytes(bad[24:])))
            assert not agree(bytes(bad))
