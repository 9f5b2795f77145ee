"""Program bytes and their parsed view, and a builder for programs written by hand.

`parse` reads bytes, `Program.to_bytes` writes them; each is the exact inverse of the other. `parse` checks
only that the bytes are a program of this build (magic, version, instruction table) and that all lengths
agree: a parsed program may be nonsense, the verifier decides. The dataclasses mirror the records of
`layout.py` field by field, less what follows from the rest (counts, lengths). Knows nothing of what words do,
except their fuel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeVar

import numpy as np

from dvm_rt import dtypes
from dvm_rt.errors import InvalidBytecodeError
from dvm_rt.isa import attention, layout, matmul, table
from dvm_rt.isa.checksum import checksum

HEAD, ARG, SECTION, OPERAND, WORD = (
    layout.RECORD[name].numpy for name in ("ProgramHead", "ProgramArg", "Section", "Operand", "Word")
)
MAX_RANK, LANES, NONE = (layout.LIMITS[name] for name in ("MAX_RANK", "LANES", "NONE"))
WORKSPACE, SCRATCH, INDEX = (layout.LIMITS[name] for name in ("WORKSPACE", "SCRATCH", "INDEX"))
READ, WRITE, GATHER, PACKED, WINDOWS = (
    layout.FLAGS["Mode"][name] for name in ("READ", "WRITE", "GATHER", "PACKED", "WINDOWS")
)
VECTOR, MATMUL, PACK, HOST, COPY, ATTENTION, BRANCH, JUMP, LOOP = (
    layout.enum_value("SectionKind", name) for name in layout.ENUMS["SectionKind"]
)
CONTROL = (BRANCH, JUMP, LOOP)
CHECKED_FROM = HEAD.fields["checksum"][1] + 8  # the checksum covers everything from this byte on
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Word:
    """One instruction word."""

    op: int
    a: int = 0
    k: int = 0

    @property
    def number(self) -> int:
        """The word as one whole number of 64 bits: an attribute, in a host section."""
        return int.from_bytes(np.array((self.op, self.a, self.k), WORD).tobytes(), "little", signed=True)

    @staticmethod
    def of_number(value: int) -> Word:
        """The word that is this number."""
        return Word(*np.frombuffer(int(value).to_bytes(8, "little", signed=True), WORD)[0].tolist())


@dataclass(frozen=True, slots=True)
class Operand:
    """Where a section reads or writes. `stride` in bytes, one per dimension, innermost first (8 of them)."""

    arg: int
    dtype: int
    mode: int
    index: int = NONE
    reserved: int = 0
    base: int = 0
    limit: int = 0
    depth: int = 0
    stride: tuple[int, ...] = (0,) * MAX_RANK


@dataclass(frozen=True, slots=True)
class Section:
    """One kernel: a domain, operands, words. `dims` innermost first (8 of them, unused ones 1)."""

    kind: int
    dtype: int
    rank: int
    reserved: int
    depth: int
    scratch_bytes: int
    dims: tuple[int, ...]
    operands: tuple[Operand, ...]
    words: tuple[Word, ...]
    constants: tuple[int, ...] = ()  # 64 bits each

    @property
    def bytes(self) -> int:
        parts = len(self.operands) * OPERAND.itemsize + len(self.words) * WORD.itemsize + 8 * len(self.constants)
        return SECTION.itemsize + parts


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a program: what a launch must bind, at least `bytes` bytes, `align`ed. An argument with
    mode WRITE starts as zeros, also if it may be read: a program neither sees nor leaves old bytes in it."""

    bytes: int
    mode: int
    dtype: int
    reserved: int = 0
    align: int = 1


@dataclass(frozen=True, slots=True)
class Program:
    """A whole program. `checksum` is what the bytes say; a program made here leaves it None: to_bytes()
    computes it."""

    args: tuple[Argument, ...]
    sections: tuple[Section, ...]
    workspace_bytes: int
    scratch_bytes: int
    fuel: int
    reserved0: int = 0
    reserved1: int = 0
    checksum: int | None = None

    @property
    def bytes(self) -> int:
        return HEAD.itemsize + len(self.args) * ARG.itemsize + sum(s.bytes for s in self.sections)

    def to_bytes(self) -> bytes:
        """The bytes of this program. Raises InvalidBytecodeError if a value does not fit its field."""
        out = bytearray(_head(self))
        for arg in self.args:
            out += _record(ARG, arg)
        for section in self.sections:
            counts = {
                "operand_count": len(section.operands),
                "word_count": len(section.words),
                "constant_count": len(section.constants),
                "bytes": section.bytes,
            }
            out += _record(SECTION, section, counts)
            for operand in section.operands:
                out += _record(OPERAND, operand)
            for word in section.words:
                out += _record(WORD, word)
            out += b"".join(value.to_bytes(8, "little") for value in section.constants)
        sum_ = checksum(memoryview(out)[CHECKED_FROM:]) if self.checksum is None else self.checksum
        out[CHECKED_FROM - 8 : CHECKED_FROM] = sum_.to_bytes(8, "little")
        return bytes(out)


def parse(data: bytes) -> Program:
    """The program in some bytes. Raises InvalidBytecodeError if they are cut short, of another version or
    instruction table, or if their lengths contradict each other; everything else is the verifier's
    business."""
    data = bytes(data)
    head = _read(data, 0, HEAD, 0)
    for name, allowed in (
        ("magic", layout.PROGRAM_MAGIC),
        ("version", layout.VERSION),
        ("table_hash", layout.TABLE_HASH),
    ):
        if int(head[name]) != allowed:
            raise _invalid("head", f"wrong {name}", hex(int(head[name])), hex(allowed), name.upper())
    if int(head["bytes"]) != len(data):
        raise _invalid("head", "length is not what the head says", len(data), int(head["bytes"]), "TRUNCATED")
    at, args, sections = HEAD.itemsize, [], []
    for _ in range(int(head["arg_count"])):
        args.append(_fields(Argument, _read(data, at, ARG, 0)))
        at += ARG.itemsize
    for number in range(int(head["section_count"])):
        sections.append(_parse_section(data, at, number))
        at += sections[-1].bytes
    if at != len(data):
        raise _invalid("end", "bytes that belong to nothing", len(data), at, "TRUNCATED")
    return _fields(Program, head, args=tuple(args), sections=tuple(sections))


def fuel(sections: Sequence[Section]) -> int:
    """Upper bound of the work of a program: the sum over its sections, where `rows` is the product of the
    outer dims,

        vector   word_count * ceil(dims[0] / lanes) * rows + 1, lanes = LANES, half of it for 8-byte compute dtypes
        matmul   ceil(M * N * K * batch / 1024) + word_count * M * batch * ceil(N / LANES) + 1
        pack     ceil(N * K / 1024) + 1
        host     ceil(elements / 16) + 1
        copy     ceil(elements / 16) + 1
        attention ceil(keys * queries * D * batch / 1024) + word_count * queries * batch * ceil(keys / LANES) + 1

        branch, jump, loop 1; and a loop counts all from where it goes back to, itself included, as often as it may run

    in 64 bits, at most 2^33 in one section and 2^40 in all: the verifier computes the same with overflow checks and refuses a
    program that claims less."""
    total, before = 0, []
    for number, section in enumerate(sections):
        before.append(total)
        if section.kind in CONTROL:
            total += 1
            if section.kind == LOOP:
                first = before[max(number - section.depth, 0)]
                total = first + (total - first) * section.dims[0]
            continue
        if section.kind in (HOST, COPY):
            total += -(-prod(section.dims[: section.rank]) // 16) + 1
            continue
        strips, rows = -(-section.dims[0] // lanes_of(section.dtype)), prod(section.dims[1 : section.rank])
        words = len(section.words) * strips * rows
        steps = 0 if section.kind == VECTOR else -(-section.dims[0] * rows * section.depth // 1024)
        total += words + steps + 1
    return total


def lanes_of(dtype: int) -> int:
    """Reduction lanes of a compute dtype (its code): elements of the longest strip. 4-byte lanes for what is none."""
    known = dtype < len(dtypes.DTYPES) and dtypes.DTYPES[dtype].bytes == 8
    return LANES // 2 if known else LANES


# ---- building by hand --------------------------------------------------------------------------------------


@dataclass(slots=True)
class SectionBuilder:
    """Operands and words of one section, in order. `word("add.i", 0)`, `word("mul.k", 0.5)`,
    `word("store_row", 3)`."""

    kind: int
    dims: tuple[int, ...]
    depth: int = 0
    dtype: dtypes.DType = dtypes.float32
    operands: list[Operand] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    constants: list[int] = field(default_factory=list)
    scratch_bytes: int = 0
    _pass: int = 0

    def operand(
        self, arg: int, strides: Sequence[int] = (), *, dtype: dtypes.DType | None = None, mode: int = READ,
        base: int = 0, depth: int = 0, index: int = NONE, limit: int = 0,
    ) -> int:  # fmt: skip
        """Adds an operand and returns its number. `strides` in bytes, innermost first, missing ones 0; `dtype` is the
        compute dtype unless another is named."""
        padded = tuple(strides) + (0,) * (MAX_RANK - len(strides))
        self.operands.append(Operand(arg, (dtype or self.dtype).code, mode, index, 0, base, limit, depth, padded))
        return len(self.operands) - 1

    def row_buffer(self) -> int:
        """Adds an operand for one row in the thread's scratch, and returns its number."""
        size = self.dtype.bytes
        base, self.scratch_bytes = self.scratch_bytes, self.scratch_bytes + -(-self.dims[0] * size // 64) * 64
        return self.operand(SCRATCH, (size,), mode=READ | WRITE, base=base)

    def index(self, strides: Sequence[int], base: int = 0) -> int:
        """Adds an operand for `iota`: base + index * stride over all dimensions. Returns its number."""
        return self.operand(INDEX, strides, dtype=dtypes.int64, base=base)

    def word(self, mnemonic: str, value: float | None = None) -> None:
        """Adds a word whose one field is `value`: an operand, slot, row scalar, reduction or distance, or a
        constant."""
        code = MNEMONICS[mnemonic]
        a, k = table.word_fields(code)
        if k == "constant":
            self.words.append(Word(code, 0, self._constant(value)))
        elif a:
            self.words.append(Word(code, int(value), 0))
        else:
            self.words.append(Word(code, 0, int(value) if k else 0))

    def _constant(self, value: float) -> int:
        """The field k for a constant of the compute dtype: its bits, or the number of its entry in the constants."""
        bits = int.from_bytes(np.array(value).astype(self.dtype.numpy).tobytes(), "little")
        if self.dtype.bytes == 4:
            return bits
        if bits not in self.constants:
            self.constants.append(bits)
        return self.constants.index(bits)

    def begin_pass(self) -> None:
        self._pass = len(self.words)
        self.word("pass")

    def end_pass(self, *reductions: int) -> None:
        """The `loop` word of the pass that began last; `reductions` are those that it accumulated."""
        mask = sum(1 << r for r in reductions)
        self.words.append(Word(MNEMONICS["loop"], mask, len(self.words) - self._pass))

    def fetch(self, operand: int, ahead_bytes: int = 0) -> None:
        self.words.append(Word(MNEMONICS["fetch"], operand, ahead_bytes))

    def section(self) -> Section:
        dims, scratch_bytes = self.dims + (1,) * (MAX_RANK - len(self.dims)), self.scratch_bytes
        if self.kind == MATMUL:
            b = self.operands[1]
            scratch_bytes = matmul.scratch_bytes(
                *dims[:2], self.depth, bool(b.mode & PACKED), not b.mode & WINDOWS and b.stride[0], self.dtype
            )
        if self.kind == ATTENTION:
            packed = bool(self.operands[1].mode & PACKED)
            scratch_bytes = attention.scratch_bytes(*dims[:2], self.depth, packed)
        return Section(
            self.kind, self.dtype.code, len(self.dims), 0, self.depth, scratch_bytes, dims,
            tuple(self.operands), tuple(self.words), tuple(self.constants),
        )  # fmt: skip


class ProgramBuilder:
    """Builds a program by hand, for tests and for people; encoders have their own path to the same bytes."""

    def __init__(self) -> None:
        self.args: list[Argument] = []
        self.sections: list[SectionBuilder] = []
        self.workspace_bytes = 0

    def add_arg(
        self, nbytes: int, mode: int = READ, dtype: dtypes.DType = dtypes.float32, align: int | None = None
    ) -> int:
        """Adds an argument of `nbytes` bytes and returns its number. `align` defaults to the size of an
        element."""
        self.args.append(Argument(nbytes, mode, dtype.code, 0, align or dtype.bytes))
        return len(self.args) - 1

    def vector(self, *dims: int, dtype: dtypes.DType = dtypes.float32) -> SectionBuilder:
        """Adds a vector section; dims[0] is the row, `dtype` what it computes in. Its words end with `end_row`, which the
        caller adds."""
        return self._add(SectionBuilder(VECTOR, dims, dtype=dtype))

    def matmul(self, n: int, m: int, k: int, *batch: int, dtype: dtypes.DType = dtypes.float32) -> SectionBuilder:
        """Adds a matmul section; operands 0, 1, 2 are A, B, C. Epilogue words, if any, end with `end`. Its
        scratch follows from B."""
        return self._add(SectionBuilder(MATMUL, (n, m, *batch), k, dtype))

    def pack(self, n: int, k: int) -> SectionBuilder:
        """Adds a pack section; operand 0 is the source, operand 1 the packed form."""
        return self._add(SectionBuilder(PACK, (n,), k))

    def copy(self, *dims: int) -> SectionBuilder:
        """Adds a section that copies operand 0 to operand 1; to the row of it that operand 2 names, if there is one."""
        return self._add(SectionBuilder(COPY, dims))

    def branch(self, flag: int, skip: int, base: int = 0) -> None:
        """Adds a section that skips the next ones if the flag, a bool in an argument, is 0."""
        self._add(SectionBuilder(BRANCH, (1,), skip)).operand(flag, dtype=dtypes.bool_, base=base)

    def jump(self, skip: int) -> None:
        """Adds a section that skips the next ones."""
        self._add(SectionBuilder(JUMP, (1,), skip))

    def loop(self, back: int, limit: int, flag: int | None = None, base: int = 0) -> None:
        """Adds a section that goes back, while the flag is not 0, or until its body has run `limit` times."""
        section = self._add(SectionBuilder(LOOP, (limit,), back))
        if flag is not None:
            section.operand(flag, dtype=dtypes.bool_, base=base)

    def attention(
        self, keys: int, queries: int, depth: int, *batch: int, scale: float = 1.0, masked: float = -np.inf,
        empty: float = 0.0,
    ) -> SectionBuilder:  # fmt: skip
        """Adds an attention section with its words; operands are Q (limit: keys that query 0 sees), K and V
        (limit: their width), O and perhaps a mask."""
        section = self._add(SectionBuilder(ATTENTION, (keys, queries, *batch), depth))
        for mnemonic, value in zip(attention.WORDS, (scale, masked, empty, None), strict=True):
            section.word(mnemonic, value)
        return section

    def host(self, name: str, attributes: Sequence[int], elements: int) -> SectionBuilder:
        """Adds a section that runs a host function; `elements` of all operands together. Operands: its inputs, then its
        output, each with dims innermost first in the place of strides, and its rank as depth."""
        section = self._add(SectionBuilder(HOST, (max(elements, 1),), layout.enum_value("HostFunction", name) + 1))
        section.words += [Word.of_number(value) for value in attributes]
        return section

    def build(self) -> bytes:
        sections = tuple(s.section() for s in self.sections)
        scratch = max((s.scratch_bytes for s in sections), default=0)
        return Program(tuple(self.args), sections, self.workspace_bytes, scratch, fuel(sections)).to_bytes()

    def _add(self, section: SectionBuilder) -> SectionBuilder:
        self.sections.append(section)
        return section


MNEMONICS: dict[str, int] = {table.mnemonic(code): code for code in range(len(table.OPCODES))}


# ---- records -----------------------------------------------------------------------------------------------


def _head(program: Program) -> bytes:
    derived = {
        "magic": layout.PROGRAM_MAGIC, "version": layout.VERSION, "table_hash": layout.TABLE_HASH, "checksum": 0,
        "bytes": program.bytes, "section_count": len(program.sections), "arg_count": len(program.args),
    }  # fmt: skip
    return _record(HEAD, program, derived)


def _record(kind: np.dtype, source: object, derived: dict[str, int] | None = None) -> bytes:
    derived = derived or {}
    values = tuple(derived[name] if name in derived else getattr(source, name) for name in kind.names)
    try:
        return np.array(values, kind).tobytes()
    except (OverflowError, ValueError, TypeError) as error:
        where = type(source).__name__.lower()
        raise _invalid(
            where, f"a value does not fit its field ({error})", values, kind.names, "LIMIT"
        ) from error


def _read(data: bytes, at: int, kind: np.dtype, section: int) -> np.void:
    if at + kind.itemsize > len(data):
        raise _invalid(
            f"byte {at}",
            "ends inside a record",
            len(data),
            f"at least {at + kind.itemsize}",
            "TRUNCATED",
            section,
        )
    return np.frombuffer(data, kind, 1, at)[0]


def _fields(cls: type[T], record: np.void, **rest: object) -> T:
    values = {
        name: tuple(int(v) for v in record[name]) if record.dtype[name].shape else int(record[name])
        for name in record.dtype.names
        if name in cls.__dataclass_fields__ and name not in rest
    }
    return cls(**values, **rest)


def _parse_section(data: bytes, at: int, number: int) -> Section:
    head = _read(data, at, SECTION, number)
    operands, words = [], []
    end = at + int(head["bytes"])
    at += SECTION.itemsize
    for _ in range(int(head["operand_count"])):
        operands.append(_fields(Operand, _read(data, at, OPERAND, number)))
        at += OPERAND.itemsize
    for _ in range(int(head["word_count"])):
        words.append(_fields(Word, _read(data, at, WORD, number)))
        at += WORD.itemsize
    count = int(head["constant_count"])
    if at + 8 * count > len(data):
        raise _invalid(f"byte {at}", "ends inside constants", len(data), at + 8 * count, "TRUNCATED", number)
    constants = tuple(int(c) for c in np.frombuffer(data, "<u8", count, at))
    at += 8 * count
    if at != end:
        raise _invalid(f"section {number}", "length is not what its head says", at, end, "TRUNCATED", number)
    return _fields(Section, head, operands=tuple(operands), words=tuple(words), constants=constants)


def _invalid(
    where: str, what: str, got: object, allowed: object, code: str, section: int = 0
) -> InvalidBytecodeError:
    return InvalidBytecodeError(f"program: {where}: {what}, got {got}, allowed {allowed}", code, section)
