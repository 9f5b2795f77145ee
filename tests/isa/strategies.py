"""Random programs for Hypothesis: any field may hold anything that fits it, so most are nonsense. Text and
bytes must carry them all the same."""

from __future__ import annotations

from struct import pack

from hypothesis import strategies as st

from dvm_rt.isa import table
from dvm_rt.isa.program import INDEX, MAX_RANK, NONE, SCRATCH, WORKSPACE, Argument, Operand, Program, Section, Word


def _unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.one_of(st.integers(0, 8), st.integers(0, (1 << bits) - 1))


_SIGNED = st.one_of(st.integers(-64, 4096), st.integers(-(1 << 63), (1 << 63) - 1))
_OPCODE = st.one_of(st.integers(0, len(table.OPCODES) - 1), _unsigned(16))
_CONSTANT = st.one_of(
    _unsigned(32), st.floats(width=32).map(lambda x: int.from_bytes(pack("<f", x), "little"))
)
_EIGHT = st.lists(_SIGNED, min_size=MAX_RANK, max_size=MAX_RANK).map(tuple)

words = st.builds(
    Word, op=_OPCODE, a=st.one_of(st.just(0), _unsigned(16)), k=st.one_of(st.just(0), _CONSTANT)
)
operands = st.builds(
    Operand, arg=st.one_of(_unsigned(16), st.sampled_from([INDEX, WORKSPACE, SCRATCH])), dtype=_unsigned(8), mode=_unsigned(8),
    index=st.one_of(st.just(NONE), _unsigned(16)), reserved=_unsigned(16), base=_SIGNED, limit=_SIGNED,
    depth=_SIGNED, stride=_EIGHT,
)  # fmt: skip
sections = st.builds(
    Section, kind=_unsigned(16), dtype=st.one_of(st.just(11), _unsigned(8)), rank=_unsigned(8), reserved=_unsigned(16),
    depth=_SIGNED, scratch_bytes=_unsigned(64), dims=_EIGHT,
    operands=st.lists(operands, max_size=3).map(tuple), words=st.lists(words, max_size=6).map(tuple),
    constants=st.lists(_unsigned(64), max_size=3).map(tuple),
)  # fmt: skip
arguments = st.builds(
    Argument,
    bytes=_unsigned(64),
    mode=_unsigned(8),
    dtype=_unsigned(8),
    reserved=_unsigned(16),
    align=_unsigned(32),
)
programs = st.builds(
    Program, args=st.lists(arguments, max_size=3).map(tuple), sections=st.lists(sections, max_size=3).map(tuple),
    workspace_bytes=_unsigned(64), scratch_bytes=_unsigned(64), fuel=_unsigned(64), reserved0=_unsigned(16),
    reserved1=_unsigned(64), checksum=st.one_of(st.none(), _unsigned(64)),
)  # fmt: skip
