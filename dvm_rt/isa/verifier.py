"""The second verifier: the rules on programs once more, in exact integers, slow and obvious.

`native/verify.cpp` decides what a device runs. This one decides the same from the manual, the record tables and the
instruction table, and shares nothing else with it: where the two disagree about any bytes, one of them is wrong
(tests/native/test_two_verifiers.py, scripts/fuzz). They may name different rules where several are broken.

    1 bytes      magic, version, table, length and checksum fit; lengths add up; reserved fields are 0
    2 limits     every count, size and dimension is within the format; so is the work (fuel), which the head states
    3 operands   in an argument, the workspace or scratch; allowed modes, dtypes and forms for the section's kind
    4 places     every byte that an operand can touch lies inside its argument, each element aligned
    5 aliasing   a written operand meets no place twice, and no other operand except at the very same places; columns
                 beside each other do not meet
    6 words      fields in range, passes nest, nothing is read before it is set, reductions are folded once

Knows nothing of what is cleared before a run, and nothing of values: gathered rows are checked while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod
from types import SimpleNamespace

import numpy as np

from dvm_rt import dtypes
from dvm_rt.isa import attention, layout, matmul, table
from dvm_rt.isa.checksum import checksum
from dvm_rt.isa.table import Group

WORK_MAX, SECTION_WORK_MAX, WORKSPACE_BYTES_MAX, SCRATCH_BYTES_MAX = 1 << 40, 1 << 33, 1 << 40, 1 << 32
ARGUMENT_BYTES_MAX, DIMENSION_MAX = 1 << 48, 1 << 40  # a dimension, and the product of all
LIMIT = SimpleNamespace(**layout.LIMITS)
MODE = SimpleNamespace(**layout.FLAGS["Mode"])
KINDS = layout.ENUMS["SectionKind"]
WINDOWS_RANK = 5  # of a matmul whose B is windows: their steps lie behind
CONTROL = ("BRANCH", "JUMP", "LOOP")
STORED = {d.code: d for d in dtypes.DTYPES}  # what load and store_any take
COMPUTE = {dtypes.BY_NAME[name].code for name in table.COMPUTE_DTYPES}
PACKABLE = {d.code for d in (dtypes.float32, dtypes.float16, dtypes.bfloat16)}
BYTES = (dtypes.int8.code, dtypes.uint8.code)
FLOAT32, INDEXES = dtypes.float32.code, (dtypes.int32.code, dtypes.int64.code)
EACH = LIMIT.REDUCTIONS_EACH
REDUCTIONS = {name: range(i * EACH, (i + 1) * EACH) for i, name in enumerate(("sum", "max", "min", "prod"))}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why and where: number `word` of a section's words, or of its operands, or of the arguments."""

    code: str
    section: int
    word: int


class _Refused(Exception):
    """Ends a check from any depth; never leaves this module."""


def check(data: bytes) -> Refusal | None:
    """None if the program in `data` keeps all rules, else one rule that it breaks."""
    verifier = _Verifier(data)
    try:
        verifier.program()
    except _Refused as refused:
        return Refusal(refused.args[0], verifier.section_number, verifier.word_number)
    return None


class _Verifier:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = bytes(data), 0
        self.section_number = self.word_number = 0
        self.work = 0
        self.work_before: list[int] = []  # each section
        self.skipped: list[tuple[int, int]] = []  # first and last of the sections that a branch or jump may skip
        self.looped: list[tuple[int, int]] = []

    def require(self, good: bool, code: str) -> None:
        if not good:
            raise _Refused(code)

    def read(self, name: str) -> SimpleNamespace:
        """The next record, its fields as Python integers and lists."""
        kind = layout.RECORD[name].numpy
        self.require(self.at + kind.itemsize <= len(self.data), "TRUNCATED")
        values = np.frombuffer(self.data, kind, 1, self.at)[0].tolist()
        self.at += kind.itemsize
        lists = (v.tolist() if isinstance(v, np.ndarray) else v for v in values)
        return SimpleNamespace(**dict(zip(kind.names, lists, strict=True)))

    # ---- program ----

    def program(self) -> None:
        require, head = self.require, self.read("ProgramHead")
        self.head = head
        require(head.magic == layout.PROGRAM_MAGIC, "MAGIC")
        require(head.version == layout.VERSION, "VERSION")
        require(head.table_hash == layout.TABLE_HASH, "TABLE_HASH")
        require(len(self.data) <= LIMIT.MAX_PROGRAM_BYTES, "LIMIT")
        require(head.bytes == len(self.data), "TRUNCATED")
        checked_from = layout.RECORD["ProgramHead"].numpy.fields["checksum"][1] + 8
        require(head.checksum == checksum(self.data[checked_from:]), "CHECKSUM")
        require(head.reserved0 == 0 and head.reserved1 == 0, "RESERVED")
        require(head.arg_count <= LIMIT.MAX_ARGS, "LIMIT")
        require(1 <= head.section_count <= LIMIT.MAX_SECTIONS, "LIMIT")
        require(head.workspace_bytes <= WORKSPACE_BYTES_MAX, "LIMIT")
        require(head.scratch_bytes <= SCRATCH_BYTES_MAX, "LIMIT")
        self.arguments = []
        for self.word_number in range(head.arg_count):
            self.arguments.append(self.argument())
        for self.section_number in range(head.section_count):
            self.word_number = 0
            self.section()
        require(self.at == len(self.data), "TRUNCATED")
        self.section_number = 0
        self.nesting(head.section_count)
        require(self.work <= head.fuel <= WORK_MAX, "FUEL")

    def nesting(self, sections: int) -> None:
        """What a branch or jump may skip, and loops, lie in the program; two of a kind are nested or disjoint; and what may be
        skipped holds both ends of a loop or neither."""
        for first, last in self.skipped + self.looped:
            self.require(first >= 0 and last < sections, "JUMP")
        for alike in (self.skipped, self.looped):
            for i, (first, last) in enumerate(alike):
                for other_first, other_last in alike[:i]:
                    apart = last < other_first or other_last < first
                    inside = first <= other_first and other_last <= last
                    around = other_first <= first and last <= other_last
                    self.require(apart or inside or around, "NESTING")
        for first, last in self.skipped:
            for begin, end in self.looped:
                self.require((first <= begin <= last) == (first <= end <= last), "NESTING")

    def argument(self) -> SimpleNamespace:
        argument = self.read("ProgramArg")
        self.require(argument.reserved == 0, "RESERVED")
        self.require(argument.mode in (0, MODE.READ, MODE.WRITE, MODE.READ | MODE.WRITE), "ARGUMENT")
        self.require(argument.dtype < len(dtypes.DTYPES), "DTYPE")
        self.require(argument.align in (1, 2, 4, 8, 16, 32, 64), "ALIGNMENT")
        self.require(argument.bytes <= ARGUMENT_BYTES_MAX, "LIMIT")
        return argument

    # ---- section ----

    def section(self) -> None:
        start, require = self.at, self.require
        section = self.read("Section")
        self.head_of_section(section)
        operands = []
        for self.word_number in range(section.operand_count):
            operands.append(self.read("Operand"))
        self.word_number = 0
        words = [self.read("Word") for _ in range(section.word_count)]
        self.at += 8 * section.constant_count
        require(self.at <= len(self.data), "TRUNCATED")
        require(section.bytes == self.at - start, "TRUNCATED")
        self.s, self.operands = section, operands
        self.shape_of_section(words)
        self.places = []
        for self.word_number in range(section.operand_count):
            self.places.append(self.operand(self.word_number))
        self.aliasing()
        if section.kind == "HOST":
            return
        if section.kind == "MATMUL":
            b = operands[1]
            need = matmul.scratch_bytes(
                *section.dims[:2], section.depth, bool(b.mode & MODE.PACKED),
                not b.mode & MODE.WINDOWS and b.stride[0], dtypes.DTYPES[section.dtype]
            )
            require(section.scratch_bytes >= need, "LIMIT")
        if section.kind == "ATTENTION":
            packed = bool(operands[1].mode & MODE.PACKED)
            need = attention.scratch_bytes(*section.dims[:2], section.depth, packed)
            require(section.scratch_bytes >= need, "LIMIT")
            self.words_of_attention(words)
        elif words:
            _Words(self, words).check()

    def head_of_section(self, s: SimpleNamespace) -> None:
        require = self.require
        require(s.kind < len(KINDS), "SECTION_KIND")
        s.kind = KINDS[s.kind]
        require(s.operand_count <= LIMIT.MAX_OPERANDS and s.word_count <= LIMIT.MAX_WORDS, "LIMIT")
        require(s.dtype in COMPUTE if s.kind in ("VECTOR", "MATMUL") else s.dtype == FLOAT32, "DTYPE")
        self.element = STORED[s.dtype].bytes
        require(s.constant_count <= LIMIT.MAX_CONSTANTS, "LIMIT")
        require(s.constant_count == 0 or self.element == 8, "CONSTANT")
        require(s.reserved == 0, "RESERVED")
        require(1 <= s.rank <= LIMIT.MAX_RANK, "DIMENSION")
        require(all(1 <= d <= DIMENSION_MAX for d in s.dims), "DIMENSION")
        require(all(d == 1 for d in s.dims[s.rank :]), "DIMENSION")
        require(prod(s.dims) <= DIMENSION_MAX, "OVERFLOW")
        if s.kind in ("VECTOR", "COPY"):
            require(s.depth == 0, "RESERVED")
        else:
            require((0 if s.kind in CONTROL else 1) <= s.depth <= DIMENSION_MAX, "DIMENSION")
        require(s.scratch_bytes <= self.head.scratch_bytes, "LIMIT")
        self.work_before.append(self.work)
        if s.kind in CONTROL:
            self.control(s)
            return
        rows = prod(s.dims[1:])
        strips = -(-s.dims[0] // (LIMIT.LANES * 4 // self.element))
        if s.kind in ("HOST", "COPY"):  # a host function's words are attributes
            work = -(-s.dims[0] * rows // 16) + 1
        else:
            steps = 0 if s.kind == "VECTOR" else -(-s.dims[0] * rows * s.depth // 1024)
            work = s.word_count * strips * rows + steps + 1
            panels = -(-s.dims[0] // LIMIT.PANEL) * rows * s.depth  # products take as long for one column as for a panel
            require(panels <= SECTION_WORK_MAX * 1024 // LIMIT.PANEL, "FUEL")
        require(work <= SECTION_WORK_MAX, "FUEL")
        self.work += work

    def control(self, s: SimpleNamespace) -> None:
        """Notes what a branch, jump or loop spans; a loop costs all of it as often as it may run."""
        number = self.section_number
        self.work += 1
        if s.kind == "LOOP":
            first = self.work_before[max(number - s.depth, 0)]
            self.work = first + (self.work - first) * s.dims[0]
            self.looped.append((number - s.depth, number))
        elif s.depth:
            self.skipped.append((number + 1, number + s.depth))

    def shape_of_section(self, words: list[SimpleNamespace]) -> None:
        s, require = self.s, self.require
        if s.kind == "VECTOR":
            require(bool(words), "NESTING")
        if s.kind == "MATMUL":
            require(s.rank >= 2, "DIMENSION")
            require(s.operand_count >= 3, "OPERAND")
            if self.grouped():
                require(s.rank == 3, "DIMENSION")
                require(s.operand_count >= 4, "OPERAND")
        if s.kind == "PACK":
            require(s.rank == 1, "DIMENSION")
            require(s.operand_count == 2, "OPERAND")
            require(not words, "NESTING")
        if s.kind == "COPY":
            require(s.operand_count in (2, 3), "OPERAND")
            require(not words, "NESTING")
        if s.kind in CONTROL:
            require(s.rank == 1 and (s.kind == "LOOP" or s.dims[0] == 1), "DIMENSION")
            require(s.operand_count in {"BRANCH": (1,), "JUMP": (0,), "LOOP": (0, 1)}[s.kind], "OPERAND")
            require(not words, "NESTING")
        if s.kind == "HOST":
            require(s.rank == 1, "DIMENSION")
            require(s.operand_count >= 1, "OPERAND")
            require(s.depth <= len(layout.ENUMS["HostFunction"]), "OPCODE")
        if s.kind == "ATTENTION":
            require(s.rank >= 2, "DIMENSION")
            require(s.operand_count in (4, 5), "OPERAND")
            require(len(words) == len(attention.WORDS), "NESTING")

    def words_of_attention(self, words: list[SimpleNamespace]) -> None:
        """Three constants and the end, in this order; nothing else can be said."""
        for self.word_number, (word, mnemonic) in enumerate(zip(words, attention.WORDS, strict=True)):
            self.require(word.op < len(table.OPCODES) and table.mnemonic(word.op) == mnemonic, "OPCODE")
            self.require(word.a == 0 and (word.k == 0 or mnemonic != "end"), "RESERVED")

    # ---- operands ----

    def operand(self, number: int) -> tuple[int, int]:
        """Checks one operand; returns the first byte that it can touch and the one past the last."""
        x, s, require = self.operands[number], self.s, self.require
        require(x.reserved == 0, "RESERVED")
        if x.arg == LIMIT.INDEX:
            return self.index_operand(number, x)
        memory = self.memory(x)
        windows = x.mode & MODE.WINDOWS != 0
        require(x.mode < 16 or (s.kind == "MATMUL" and number == 1 and windows), "PERMISSION")
        require(0 <= x.mode and x.mode & (MODE.READ | MODE.WRITE) != 0, "PERMISSION")
        require(not x.mode & MODE.READ or bool(memory.mode & MODE.READ), "PERMISSION")
        require(not x.mode & MODE.WRITE or bool(memory.mode & MODE.WRITE), "PERMISSION")
        require(x.dtype in STORED, "DTYPE")
        require(memory.dtype in (None, x.dtype), "DTYPE")
        if s.kind == "HOST":
            return self.operand_of_host(number, memory)
        require(not any(x.stride[s.rank : WINDOWS_RANK if windows else LIMIT.MAX_RANK]), "RESERVED")
        if windows:
            self.windows(x)
        elif x.mode & MODE.GATHER:
            self.gathered(x)
        elif s.kind == "ATTENTION" and number < 3:  # Q: keys that query 0 sees; K, V: their width
            require(x.index == LIMIT.NONE, "RESERVED")
            least, most = (1, s.depth) if number else (-DIMENSION_MAX, DIMENSION_MAX)
            require(least <= x.limit <= most, "DIMENSION")
        elif number == 0 and self.grouped():
            require(x.index == 3 and x.limit == 0, "OPERAND")
        else:
            require(x.index == LIMIT.NONE and x.limit == 0, "RESERVED")
        if x.arg == LIMIT.SCRATCH:
            require(x.stride == [self.element, *[0] * (LIMIT.MAX_RANK - 1)], "OPERAND")
        if s.kind == "COPY":
            scatters = len(self.operands) == 3
            wanted = (MODE.READ, MODE.WRITE | MODE.GATHER if scatters else MODE.WRITE, MODE.READ)[number]
            require(x.mode == wanted, "PERMISSION")
            require(x.depth == 0 or bool(x.mode & MODE.GATHER), "RESERVED")
            require(number < 2 or not any(x.stride), "OPERAND")
            require(number == 2 or x.dtype == self.operands[0].dtype, "DTYPE")
        elif s.kind in CONTROL:
            require(x.mode == MODE.READ, "PERMISSION")
            require(x.dtype == dtypes.bool_.code, "DTYPE")
            require(x.depth == 0, "RESERVED")
            require(x.stride[0] == 0, "OPERAND")
        elif s.kind == "ATTENTION":
            self.operand_of_attention(number)
        elif s.kind != "VECTOR":
            self.operand_of_product(number)
        elif not x.mode & MODE.GATHER:
            require(x.depth == 0, "RESERVED")
        require(not x.mode & MODE.PACKED or (number == 1 and s.kind != "VECTOR"), "OPERAND")
        return self.inside(number, x, memory)

    def index_operand(self, number: int, x: SimpleNamespace) -> tuple[int, int]:
        """An operand without memory, whose places are numbers; it touches no byte."""
        require = self.require
        require(self.s.kind == "VECTOR", "ARGUMENT")
        require(x.index == LIMIT.NONE and x.limit == 0 and x.depth == 0, "RESERVED")
        require(not any(x.stride[self.s.rank :]), "RESERVED")
        require(x.mode == MODE.READ, "PERMISSION")
        require(x.dtype == dtypes.int64.code, "DTYPE")
        ends = [(self.s.dims[d] - 1) * x.stride[d] for d in range(self.s.rank)]
        low, high = x.base + sum(e for e in ends if e < 0), x.base + sum(e for e in ends if e > 0)
        require(all(abs(v) <= LIMIT.INDEX_MAX for v in (low, high, x.stride[0])), "OUT_OF_BOUNDS")
        return 0, 0

    def memory(self, x: SimpleNamespace) -> SimpleNamespace:
        """Extent, alignment, permissions and dtype (None: any) of what an operand lies in."""
        any_mode = MODE.READ | MODE.WRITE
        if x.arg == LIMIT.SCRATCH:  # of a matmul: its copy of B lies there
            self.require(self.s.kind == "VECTOR", "ARGUMENT")
            return SimpleNamespace(
                bytes=self.s.scratch_bytes, align=LIMIT.ARENA_ALIGN, mode=any_mode, dtype=self.s.dtype
            )
        if x.arg == LIMIT.WORKSPACE:
            return SimpleNamespace(
                bytes=self.head.workspace_bytes, align=LIMIT.ARENA_ALIGN, mode=any_mode, dtype=None
            )
        self.require(x.arg < len(self.arguments), "ARGUMENT")
        return self.arguments[x.arg]

    def gathered(self, x: SimpleNamespace) -> None:
        if self.s.kind == "COPY":
            self.require(x.mode == MODE.WRITE | MODE.GATHER and x.index == 2, "OPERAND")
        else:
            self.require(self.s.kind == "VECTOR" and x.mode == MODE.READ | MODE.GATHER, "OPERAND")
        self.require(x.index < len(self.operands), "OPERAND")
        index = self.operands[x.index]
        self.require(index.dtype in INDEXES and index.stride[0] == 0, "OPERAND")
        self.require(index.arg != LIMIT.INDEX, "OPERAND")
        self.require(bool(index.mode & MODE.READ) and not index.mode & MODE.GATHER, "OPERAND")
        self.require(1 <= x.limit <= DIMENSION_MAX, "DIMENSION")

    def windows(self, x: SimpleNamespace) -> None:
        """B of a matmul as windows: K is channels by rows by columns of a kernel, N is rows of places."""
        require, (height, width) = self.require, divmod(x.index, 256)
        require(x.mode == MODE.READ | MODE.WINDOWS, "PERMISSION")
        require(self.s.rank <= WINDOWS_RANK and not self.grouped(), "DIMENSION")
        require(height > 0 and width > 0 and self.s.depth % max(height * width, 1) == 0, "OPERAND")
        require(x.limit >= 1 and self.s.dims[0] % max(x.limit, 1) == 0, "DIMENSION")

    def grouped(self) -> bool:
        """A matmul whose rows lie in groups: A names the operand that holds their numbers."""
        return self.s.kind == "MATMUL" and self.operands[0].index != LIMIT.NONE

    def operand_of_groups(self, number: int) -> None:
        """A, C, the numbers of rows and what an epilogue touches of a matmul in groups; its B is like any other."""
        x, require = self.operands[number], self.require
        if number not in (1, 3):
            require(x.stride[2] == 0, "OPERAND")
        elif number == 3:
            require(x.dtype in INDEXES, "DTYPE")
            require(x.mode == MODE.READ, "PERMISSION")
            require(x.stride[0] == 0 and x.stride[1] == 0, "OPERAND")

    def operand_of_product(self, number: int) -> None:
        """A, B, C and the rest of a matmul; source and destination of a pack."""
        x, kind, require = self.operands[number], self.s.kind, self.require
        if self.grouped():
            self.operand_of_groups(number)
        role = {"MATMUL": "ABC", "PACK": "BP"}[kind][number : number + 1]
        compute = self.s.dtype
        if kind == "PACK":
            require(x.dtype in PACKABLE and x.dtype == self.operands[0].dtype, "DTYPE")
        elif role == "B" and x.mode & MODE.PACKED:
            require(compute == FLOAT32 and x.dtype in PACKABLE, "DTYPE")
        elif role in ("A", "B") and compute == dtypes.int32.code and not x.mode & MODE.WINDOWS:
            require(x.dtype in (compute, *BYTES), "DTYPE")
        elif role:
            require(x.dtype == compute, "DTYPE")
        element = dtypes.DTYPES[x.dtype].bytes
        if role == "P":
            require(x.mode in (MODE.WRITE | MODE.PACKED, MODE.READ | MODE.WRITE | MODE.PACKED), "OPERAND")
        elif role == "C":
            require(x.mode == MODE.READ | MODE.WRITE, "PERMISSION")
            require(x.stride[0] == element, "OPERAND")
        elif role == "B" and kind == "MATMUL" and x.mode & MODE.PACKED:
            require(x.mode == MODE.READ | MODE.PACKED, "OPERAND")
        elif x.mode & MODE.WINDOWS:
            require(x.stride[1] == 0, "OPERAND")
        elif role:
            require(x.mode == MODE.READ, "PERMISSION")
            along, across = (x.stride[1], x.stride[0]) if role == "A" else (x.stride[0], x.stride[1])
            require(across == 0, "OPERAND")
            require(element in (along, x.depth), "OPERAND")
        if x.mode & MODE.PACKED:
            require(x.stride[0] == 0 and x.stride[1] == 0 and x.depth == 0, "OPERAND")
        elif role in ("", "C"):
            require(x.depth == 0, "RESERVED")

    def operand_of_attention(self, number: int) -> None:
        """Q, K, V, O and the mask: what each does not step along, and how it lies along D."""
        x, require = self.operands[number], self.require
        role = "QKVOM"[number]
        if x.mode & MODE.PACKED:
            require(role == "K" and x.mode == MODE.READ | MODE.PACKED and x.dtype == FLOAT32, "OPERAND")
            require(x.stride[0] == 0 and x.stride[1] == 0 and x.depth == 0, "OPERAND")
            require(x.limit <= attention.PACKED_DEPTH_MAX, "DIMENSION")
            return
        if role == "M":
            size = STORED[x.dtype].bytes
            require(x.dtype in (FLOAT32, dtypes.bool_.code), "DTYPE")
            require(x.mode == MODE.READ, "PERMISSION")
            require(x.stride[0] in (0, size), "OPERAND")
            require(x.depth == 0, "RESERVED")
            return
        require(x.dtype == FLOAT32, "DTYPE")
        require(x.mode in ((MODE.WRITE, MODE.READ | MODE.WRITE) if role == "O" else (MODE.READ,)), "PERMISSION")
        require(x.stride[0 if role in "QO" else 1] == 0, "OPERAND")
        require(x.depth == 4 or role in "QK", "OPERAND")
    def operand_of_host(self, number: int, memory: SimpleNamespace) -> tuple[int, int]:
        """Whole arrays, row-major: inputs are read, the last one is written; together no more elements than dims[0]."""
        x, require = self.operands[number], self.require
        require(x.dtype < len(dtypes.DTYPES), "DTYPE")
        require(x.mode == (MODE.WRITE if number == len(self.operands) - 1 else MODE.READ), "PERMISSION")
        require(x.index == LIMIT.NONE and x.limit == 0, "RESERVED")
        require(0 <= x.depth <= LIMIT.MAX_RANK, "DIMENSION")
        require(all(0 <= n <= DIMENSION_MAX for n in x.stride[: x.depth]), "DIMENSION")
        require(not any(x.stride[x.depth :]), "RESERVED")
        require(sum(prod(y.stride[: y.depth]) for y in self.operands[: number + 1]) <= self.s.dims[0], "DIMENSION")
        if prod(x.stride[: x.depth]) == 0:
            require(x.base == 0, "OUT_OF_BOUNDS")
            return 0, 0
        return self.inside(number, x, memory)

    def steps(self, number: int) -> tuple[int, list[tuple[int, int]]]:
        """Bytes of one access, and (count, stride) of every way in which an operand moves."""
        x, s = self.operands[number], self.s
        if s.kind == "HOST":
            return prod(x.stride[: x.depth]) * dtypes.DTYPES[x.dtype].bytes, []
        moves = [(s.dims[d], x.stride[d]) for d in range(s.rank)]
        if x.mode & MODE.WINDOWS:
            height, width = divmod(x.index, 256)
            moves[0] = (x.limit, x.stride[0])
            moves += [(s.dims[0] // x.limit, x.stride[7]), (width, x.stride[5]), (height, x.stride[6]),
                      (s.depth // (height * width), x.depth)]
            return dtypes.DTYPES[x.dtype].bytes, [m for m in moves if m[0] > 1]
        if x.mode & MODE.PACKED:
            depth = x.limit if s.kind == "ATTENTION" else s.depth
            return matmul.packed_bytes(s.dims[0], depth, dtypes.DTYPES[x.dtype].bytes), [m for m in moves[2:] if m[0] > 1]
        if x.stride[0] == 0 and not (s.kind == "COPY" and x.mode & MODE.WRITE):
            del moves[0]  # one element a row
        if self.grouped() and (number == 2 or number > 3):
            del moves[-1]  # groups share one C, and its epilogue
        if x.mode & MODE.GATHER:
            moves.append((x.limit, x.depth))
        elif s.kind == "ATTENTION" and number < 4:
            moves.append((self.operands[1 if number < 2 else 2].limit, x.depth))
        elif s.kind in ("MATMUL", "PACK") and (number == 0 or (number == 1 and s.kind == "MATMUL")):
            moves.append((s.depth, x.depth))
        return dtypes.DTYPES[x.dtype].bytes, [m for m in moves if m[0] > 1]

    def inside(self, number: int, x: SimpleNamespace, memory: SimpleNamespace) -> tuple[int, int]:
        size, moves = self.steps(number)
        ends = [(count - 1) * stride for count, stride in moves]
        low = x.base + sum(e for e in ends if e < 0)
        high = x.base + sum(e for e in ends if e > 0) + size
        self.require(low >= 0 and high <= memory.bytes, "OUT_OF_BOUNDS")
        element = dtypes.DTYPES[x.dtype].bytes
        self.require(memory.align % element == 0, "ALIGNMENT")
        self.require(all(v % element == 0 for v in (x.base, *(stride for _, stride in moves))), "ALIGNMENT")
        return low, high

    # ---- aliasing ----

    def aliasing(self) -> None:
        for number, x in enumerate(self.operands):
            self.word_number = number
            if x.mode & MODE.WRITE:
                if x.arg != LIMIT.SCRATCH:  # a row buffer is written anew for each row
                    self.each_place_once(number)
                for other in range(len(self.operands)):
                    self.require(other == number or self.may_share(other, number), "OVERLAP")
        self.word_number = 0

    def each_place_once(self, number: int) -> None:
        """Sufficient, and a rule: each stride, smallest first, reaches beyond all that the smaller ones reach."""
        reach, moves = self.steps(number)
        for count, stride in sorted(moves, key=lambda m: abs(m[1])):
            self.require(abs(stride) >= reach, "OVERLAP")
            reach += (count - 1) * abs(stride)

    def may_share(self, other: int, written: int) -> bool:
        x, w = self.operands[other], self.operands[written]
        (low, high), (low_written, high_written) = self.places[other], self.places[written]
        if x.arg != w.arg or high <= low_written or high_written <= low:
            return True
        if self.same_places(other, written) and (self.s.kind == "VECTOR" or (self.s.kind == "MATMUL" and other > 1)):
            return True
        return self.beside(other, written)

    def beside(self, i: int, j: int) -> bool:
        """Columns of one matrix: blocks that repeat every so many bytes, side by side within this distance."""
        (width_i, pitch_i), (width_j, pitch_j) = self.blocks(i), self.blocks(j)
        pitch = gcd(pitch_i, pitch_j)
        if pitch == 0:
            return False
        start_i, start_j = self.places[i][0] % pitch, self.places[j][0] % pitch
        if start_i + width_i > pitch or start_j + width_j > pitch:
            return False
        return start_i + width_i <= start_j or start_j + width_j <= start_i

    def blocks(self, number: int) -> tuple[int, int]:
        """Width and distance of the blocks that an operand touches; distance 0: one block, from first to last byte."""
        reach, moves = self.steps(number)
        width = distance = 0
        for count, stride in sorted(((count, abs(stride)) for count, stride in moves), key=lambda m: m[1]):
            if stride < reach:  # places meet: nothing is known of what lies between
                distance = 0
                break
            if stride > reach or distance:
                width = width or reach
                distance = gcd(distance, stride)
            reach += (count - 1) * stride
        low, high = self.places[number]
        return (width, distance) if distance else (high - low, 0)

    def same_places(self, i: int, j: int) -> bool:
        x, y = self.operands[i], self.operands[j]
        moves = [d for d in range(self.s.rank) if self.s.dims[d] > 1]
        return (
            x.arg == y.arg
            and x.base == y.base
            and x.dtype == y.dtype
            and not (x.mode | y.mode) & (MODE.GATHER | MODE.PACKED)
            and all(x.stride[d] == y.stride[d] for d in moves)
        )


class _Words:
    """The words of one section in order, and what is known when each of them runs."""

    def __init__(self, verifier: _Verifier, words: list[SimpleNamespace]) -> None:
        self.v, self.s, self.operands, self.words = verifier, verifier.s, verifier.operands, words
        self.epilogue = self.s.kind == "MATMUL"
        self.in_pass, self.acc, self.only_gathers = self.epilogue, False, True
        self.pass_at = 0
        self.slots: set[int] = set()
        self.rows: set[int] = set()
        self.gathered: set[int] = set()
        self.accumulated: set[int] = set()
        self.run: set[int] = set()
        self.unfolded: set[int] = set()
        self.stored: set[int] = set()

    def check(self) -> None:
        for self.v.word_number, word in enumerate(self.words):
            self.word(word)
        last = "end" if self.epilogue else "end_row"
        self.require(table.mnemonic(self.words[-1].op) == last, "NESTING")

    def require(self, good: bool, code: str) -> None:
        self.v.require(good, code)

    def word(self, word: SimpleNamespace) -> None:
        self.require(word.op < len(table.OPCODES), "OPCODE")
        instruction, form = table.OPCODES[word.op]
        for value, holds in zip((word.a, word.k), table.word_fields(word.op), strict=True):
            self.field(value, holds)
        known = instruction.compute_dtypes
        self.require(self.s.dtype in {dtypes.BY_NAME[name].code for name in known}, "DTYPE")
        if instruction.name != "gather":
            self.only_gathers = False
        if instruction.group is Group.BINARY:
            self.require(self.acc or instruction.name == "mov", "UNINITIALISED")
            getattr(self, f"form_{form}")(word)
            self.acc = True
        elif instruction.group is Group.UNARY:
            self.require(self.acc, "UNINITIALISED")
        else:
            getattr(self, f"do_{instruction.name}")(word)

    def field(self, value: int, holds: str) -> None:
        if holds == "":
            self.require(value == 0, "RESERVED")
        if holds == "operand":
            self.require(value < len(self.operands), "OPERAND")
            self.require(not self.epilogue or value >= 2, "OPERAND")  # A and B belong to the product
        if holds == "slot":
            self.require(value < LIMIT.MAX_SLOTS, "SLOT")
        if holds == "row":
            self.require(value < LIMIT.MAX_ROW_SCALARS, "ROW_SCALAR")

    # where a word may stand

    def need_pass(self) -> None:
        self.require(self.in_pass, "NESTING")

    def need_row_section(self) -> None:
        self.require(not self.in_pass, "NESTING")

    def need_vector(self) -> None:
        self.require(not self.epilogue, "NESTING")

    # what a word touches

    def lies(self, number: int, stride: int) -> None:
        x = self.operands[number]
        self.require(x.dtype == self.s.dtype and x.stride[0] == stride, "OPERAND_FORM")

    def reads(self, number: int) -> None:
        x = self.operands[number]
        self.require(x.arg != LIMIT.INDEX, "OPERAND_FORM")
        self.require(bool(x.mode & MODE.READ), "PERMISSION")
        self.require(not x.mode & MODE.GATHER or number in self.gathered, "UNINITIALISED")
        if x.arg == LIMIT.SCRATCH:
            known = number in self.stored or any(self.v.same_places(number, w) for w in self.stored)
            self.require(known, "UNINITIALISED")

    def writes(self, number: int) -> None:
        self.require(self.acc, "UNINITIALISED")
        self.require(bool(self.operands[number].mode & MODE.WRITE), "PERMISSION")
        self.stored.add(number)

    # operand forms

    def form_s(self, word: SimpleNamespace) -> None:
        self.need_pass()
        self.require(word.k in self.slots, "UNINITIALISED")

    def form_i(self, word: SimpleNamespace) -> None:
        self.need_pass()
        self.lies(word.a, self.v.element)
        self.reads(word.a)

    def form_k(self, word: SimpleNamespace) -> None:
        """Any 32 bits are a constant; 64 bits lie behind the words."""
        self.require(self.v.element == 4 or word.k < self.s.constant_count, "CONSTANT")

    def form_r(self, word: SimpleNamespace) -> None:
        self.need_vector()
        self.require(word.k in self.rows, "UNINITIALISED")

    def form_b(self, word: SimpleNamespace) -> None:
        self.lies(word.a, 0)
        self.reads(word.a)

    # loads and stores

    def do_load(self, word: SimpleNamespace) -> None:
        self.need_pass()
        self.reads(word.a)
        self.acc = True

    def do_iota(self, word: SimpleNamespace) -> None:
        self.require(self.operands[word.a].arg == LIMIT.INDEX, "OPERAND_FORM")
        self.acc = True

    def do_store(self, word: SimpleNamespace) -> None:
        self.need_pass()
        self.lies(word.a, self.v.element)
        self.writes(word.a)

    do_store_nt = do_store

    def do_store_any(self, word: SimpleNamespace) -> None:
        self.need_pass()
        self.require(self.operands[word.a].stride[0] != 0 or self.s.dims[0] == 1, "OPERAND_FORM")
        self.writes(word.a)

    do_store_any_nt = do_store_any

    def do_store_per_row(self, word: SimpleNamespace) -> None:
        self.need_row_section()
        self.require(self.operands[word.a].stride[0] == 0, "OPERAND_FORM")
        self.writes(word.a)

    def do_store_slot(self, word: SimpleNamespace) -> None:
        self.need_pass()
        self.require(self.acc, "UNINITIALISED")
        self.slots.add(word.k)

    def do_store_row(self, word: SimpleNamespace) -> None:
        self.need_row_section()
        self.require(self.acc, "UNINITIALISED")
        self.rows.add(word.k)

    # reductions

    def accumulate(self, word: SimpleNamespace, allowed: range) -> None:
        self.need_vector()
        self.need_pass()
        self.require(self.acc, "UNINITIALISED")
        self.require(word.a in allowed and word.a not in self.accumulated, "REDUCTION")  # once in a pass: rows may fold at once
        self.accumulated.add(word.a)

    def fold(self, word: SimpleNamespace, allowed: range) -> None:
        self.need_row_section()
        self.require(word.a in allowed and word.a in self.unfolded, "REDUCTION")
        self.unfolded.remove(word.a)
        self.acc = True

    def do_acc_sum(self, word: SimpleNamespace) -> None:
        self.accumulate(word, REDUCTIONS["sum"])

    def do_acc_max(self, word: SimpleNamespace) -> None:
        self.accumulate(word, REDUCTIONS["max"])

    def do_acc_min(self, word: SimpleNamespace) -> None:
        self.accumulate(word, REDUCTIONS["min"])

    def do_acc_prod(self, word: SimpleNamespace) -> None:
        self.accumulate(word, REDUCTIONS["prod"])

    def running(self, word: SimpleNamespace) -> None:
        self.need_vector()
        self.need_pass()
        self.require(self.acc, "UNINITIALISED")
        self.require(word.a < LIMIT.MAX_RUNNING and word.a not in self.run, "REDUCTION")
        self.run.add(word.a)

    do_run_sum = do_run_prod = running

    def do_fold_sum(self, word: SimpleNamespace) -> None:
        self.fold(word, REDUCTIONS["sum"])

    def do_fold_max(self, word: SimpleNamespace) -> None:
        self.fold(word, REDUCTIONS["max"])

    def do_fold_min(self, word: SimpleNamespace) -> None:
        self.fold(word, REDUCTIONS["min"])

    def do_fold_prod(self, word: SimpleNamespace) -> None:
        self.fold(word, REDUCTIONS["prod"])

    # control

    def do_gather(self, word: SimpleNamespace) -> None:
        self.need_vector()
        self.require(self.only_gathers, "NESTING")
        x = self.operands[word.a]
        self.require(bool(x.mode & MODE.GATHER), "OPERAND_FORM")
        self.reads(x.index)
        self.gathered.add(word.a)

    def do_fetch(self, word: SimpleNamespace) -> None:
        self.need_vector()

    def do_pass(self, word: SimpleNamespace) -> None:
        self.need_vector()
        self.need_row_section()
        self.require(not self.unfolded, "REDUCTION")
        self.in_pass, self.acc, self.pass_at = True, False, self.v.word_number
        self.slots, self.accumulated, self.run = set(), set(), set()

    def do_loop(self, word: SimpleNamespace) -> None:
        self.need_vector()
        self.need_pass()
        self.require(word.k == self.v.word_number - self.pass_at, "JUMP")
        self.require(word.a == sum(1 << r for r in self.accumulated), "REDUCTION")
        self.in_pass, self.acc, self.unfolded = False, False, self.accumulated

    def do_end_row(self, word: SimpleNamespace) -> None:
        self.need_vector()
        self.need_row_section()
        self.require(not self.unfolded, "REDUCTION")
        self.require(self.v.word_number == len(self.words) - 1, "NESTING")

    def do_end(self, word: SimpleNamespace) -> None:
        self.require(self.epilogue, "NESTING")
        self.require(self.v.word_number == len(self.words) - 1, "NESTING")
