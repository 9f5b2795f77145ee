"""The verifier: each rule has programs that break just it; flipped bits; and what mutated programs do when they run.

A case is a listing that passes and one edit of its text; the verifier must name the rule and the place."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import DeviceTrap, InvalidBytecodeError
from dvm_rt.isa import layout, table
from dvm_rt.isa.assembler import assemble
from dvm_rt.isa.program import fuel, parse
from dvm_rt.isa.verifier import check

from tests.isa.cases import Case, cases, epilogue
from tests.isa.random_programs import RandomProgram

from tests.native.broken import broken
from tests.native.guarded import Guarded

# ---- listings that pass ---------------------------------------------------------------------------------------------

ELEMENTWISE = """
program workspace=0 scratch=0 fuel=60
arg0 2400 float32 read align=4
arg1 2400 float32 write align=4
arg2 8 float32 read align=4
section0 vector float32 [100,2,3]
  x0 arg0+0 float32 read [4,400,800]
  x1 arg1+0 float32 write [4,400,800]
  x2 arg2+0 float32 read [0,4,0]
  0 pass
  1 mov.i x0
  2 store_slot s3
  3 mul.k 2.0
  4 add.s s3
  5 sub.b x2
  6 store x1
  7 loop -7 {}
  8 end_row
"""

SOFTMAX = """
program workspace=0 scratch=512 fuel=38
arg0 800 float32 read align=4
arg1 800 float32 write align=4
arg2 8 float32 write align=4
section0 vector float32 [100,2] scratch=512
  x0 arg0+0 float32 read [4,400]
  x1 arg1+0 float32 write [4,400]
  x2 scratch+64 float32 read|write [4,0]
  x3 arg2+0 float32 write [0,4]
  0 pass
  1 mov.i x0
  2 acc_max max4
  3 loop -3 {max4}
  4 fold_max max4
  5 store_row r0
  6 pass
  7 mov.i x0
  8 sub.r r0
  9 exp
  10 store x2
  11 acc_sum sum0
  12 loop -6 {sum0}
  13 fold_sum sum0
  14 recip
  15 store_row r1
  16 store_per_row x3
  17 end_row
"""

RUNNING = """
program workspace=0 scratch=0 fuel=106
arg0 6000 float32 read align=4
arg1 6000 float32 write align=4
section0 vector float32 [300,5]
  x0 arg0+0 float32 read [4,1200]
  x1 arg1+0 float32 write [4,1200]
  0 pass
  1 mov.i x0
  2 run_sum t0
  3 run_prod t3
  4 store x1
  5 loop -5 {}
  6 end_row
"""

GATHER = """
program workspace=0 scratch=0 fuel=100
arg0 24 int64 read align=8
arg1 2000 float32 read align=4
arg2 1200 int8 write align=1
section0 vector float32 [100,3]
  x0 arg0+0 int64 read [0,8]
  x1 arg1+0 float32 read|gather [4,0] index=0 limit=5 depth=400
  x2 arg2+1198 int8 write [-4,-400]
  0 gather x1
  1 pass
  2 fetch x1 0
  3 load x1
  4 add.i x1
  5 store_any x2
  6 loop -5 {}
  7 end_row
"""

MATMUL = """
program workspace=1600 scratch=640 fuel=200
arg0 140 float32 read align=4
arg1 1000 float32 read align=4
arg2 160 float32 read align=4
arg3 800 float32 write align=4
arg4 1280 float32 write align=4
section0 matmul float32 [40,5] depth=5 scratch=640
  x0 arg0+0 float32 read [0,20] depth=4
  x1 arg1+0 float32 read [4,0] depth=160
  x2 workspace+0 float32 read|write [4,160]
  x3 arg2+0 float32 read [4,0]
  0 mov.i x2
  1 add.i x3
  2 store x2
  3 end
section1 vector float32 [200]
  x0 workspace+0 float32 read [4]
  x1 arg3+0 float32 write [4]
  0 pass
  1 mov.i x0
  2 store x1
  3 loop -3 {}
  4 end_row
section2 pack float32 [40] depth=5
  x0 arg1+0 float32 read [4] depth=160
  x1 arg4+0 float32 write|packed [0]
"""

GROUPS = """
program workspace=0 scratch=640 fuel=5
arg0 120 float32 read align=4
arg1 2400 float32 read align=4
arg2 960 float32 read|write align=4
arg3 24 int64 read align=8
section0 matmul float32 [40,6,3] depth=5 scratch=640
  x0 arg0+0 float32 read [0,20,0] depth=4 index=3
  x1 arg1+0 float32 read [4,0,800] depth=160
  x2 arg2+0 float32 read|write [4,160,0]
  x3 arg3+0 int64 read [0,0,8]
"""

PACKED = """
program workspace=0 scratch=0 fuel=5
arg0 200 float32 read align=4
arg1 1280 float32 read align=4
arg2 3200 float32 read|write align=4
section0 matmul float32 [40,5,2,2] depth=5
  x0 arg0+0 float32 read [0,20,100,0] depth=4
  x1 arg1+0 float32 read|packed [0,0]
  x2 arg2+0 float32 read|write [4,160,800,1600]
"""

WIDE = """
program workspace=0 scratch=832 fuel=100
arg0 200 bfloat16 read align=2
arg1 12 float16 write align=2
section0 vector int64 [100,3] scratch=832
  x0 index+5 int64 read [1,-7]
  x1 arg0+0 bfloat16 read [2,0]
  x2 scratch+0 int64 read|write [8,0]
  x3 arg1+0 float16 write [0,4]
  0 pass
  1 iota x0
  2 floormod.k c0
  3 store x2
  4 load x1
  5 bit_xor.i x2
  6 acc_min min8
  7 acc_prod prod15
  8 loop -8 {min8,prod15}
  9 fold_min min8
  10 store_per_row x3
  11 fold_prod prod15
  12 shl.k c1
  13 store_row r0
  14 end_row
  constant 0x0000000000000003
  constant 0xffffffffffffffff
"""

ATTENTION = """
program workspace=0 scratch=100000 fuel=100
arg0 960 float32 read align=4
arg1 3840 float32 read align=4
arg2 2000 float32 read align=4
arg3 840 float32 write align=4
arg4 200 bool read align=1
arg5 1536 float32 read|write align=4
section0 attention float32 [20,5,2] depth=12 scratch=46080
  x0 arg0+480 float32 read [0,48,-240] limit=16 depth=4
  x1 arg1+0 float32 read [48,0,960] limit=12 depth=4
  x2 arg2+0 float32 read [28,0,0] limit=7 depth=4
  x3 arg3+280 float32 write [0,28,-140] depth=4
  x4 arg4+0 bool read [1,20,100]
  0 mul.k 0.25
  1 mov.k 0xff800000
  2 mov.k 0.0
  3 end
section1 pack float32 [20] depth=12
  x0 arg1+0 float32 read [48] depth=4
  x1 arg5+0 float32 write|packed [0]
section2 attention float32 [20,5] depth=12 scratch=39936
  x0 arg0+0 float32 read [0,48] limit=20 depth=4
  x1 arg5+0 float32 read|packed [0,0] limit=12
  x2 arg2+0 float32 read [28,0] limit=7 depth=4
  x3 arg3+280 float32 write [0,28] depth=4
  0 mul.k 1.0
  1 mov.k 0.0
  2 mov.k 0.0
  3 end
"""

HOST = """
program workspace=64 scratch=0 fuel=11
arg0 48 float32 read align=4
arg1 56 int64 write align=8
section0 host float32 [18] depth=1
  x0 arg0+0 float32 read [4,3] depth=2
  x1 workspace+16 float32 write [6] depth=1
  0 attribute 0
  1 attribute 0
section1 host float32 [12] depth=4
  x0 workspace+16 float32 read [6] depth=1
  x1 workspace+0 float32 read [] depth=0
  x2 arg1+8 int64 write [5,1] depth=2
  0 attribute -1
section2 host float32 [48] depth=2
  x0 workspace+0 float64 read [0,7] depth=2
  x1 arg1+0 int64 write [1] depth=1
"""

WINDOWS = """
program workspace=0 scratch=2304 fuel=20
arg0 144 float32 read align=4
arg1 840 float32 read align=4
arg2 432 float32 read|write align=4
section0 matmul float32 [9,3,2,2] depth=12 scratch=1536
  x0 arg0+0 float32 read [0,48,0,0] depth=4
  x1 arg1+0 float32 read|windows [8,0,196,392,0,4,28,56] index=515 limit=3 depth=84
  x2 arg2+0 float32 read|write [4,36,108,216]
"""

CONTROL = """
program workspace=448 scratch=0 fuel=200
arg0 2 bool read align=1
arg1 400 float32 read align=4
arg2 400 float32 write align=4
section0 branch float32 [1] depth=2
  x0 arg0+1 bool read [0]
section1 vector float32 [100]
  x0 arg1+0 float32 read [4]
  x1 workspace+0 float32 write [4]
  0 pass
  1 mov.i x0
  2 store x1
  3 loop -3 {}
  4 end_row
section2 jump float32 [1] depth=2
section3 branch float32 [1] depth=1
  x0 arg0+0 bool read [0]
section4 vector float32 [100]
  x0 workspace+0 float32 write [4]
  0 pass
  1 mov.k 1.0
  2 store x0
  3 loop -3 {}
  4 end_row
section5 vector float32 [100]
  x0 workspace+0 float32 read [4]
  x1 workspace+0 float32 write [4]
  x2 arg1+0 float32 read [4]
  x3 workspace+400 bool write [0]
  0 pass
  1 mov.i x0
  2 add.i x2
  3 store x1
  4 acc_max max4
  5 loop -5 {max4}
  6 fold_max max4
  7 lt.k 3.0
  8 store_per_row x3
  9 end_row
section6 loop float32 [7] depth=1
  x0 workspace+400 bool read [0]
section7 loop float32 [2] depth=2
section8 vector float32 [100]
  x0 workspace+0 float32 read [4]
  x1 arg2+0 float32 write [4]
  0 pass
  1 mov.i x0
  2 store x1
  3 loop -3 {}
  4 end_row
"""

LISTINGS = {
    "elementwise": ELEMENTWISE, "softmax": SOFTMAX, "gather": GATHER, "matmul": MATMUL, "packed": PACKED, "host": HOST,
    "wide": WIDE, "attention": ATTENTION, "control": CONTROL, "groups": GROUPS, "running": RUNNING,
    "windows": WINDOWS,
}  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """`old` becomes `new` in a listing; the verifier answers with `code` at (section, word)."""

    listing: str
    code: str
    section: int
    word: int
    old: str
    new: str

    def program(self) -> bytes:
        text = LISTINGS[self.listing]
        assert text.count(self.old) == 1, f"{self.old!r} stands {text.count(self.old)} times"
        return assemble(text.replace(self.old, self.new))


def edits() -> Iterator[Edit]:
    def e(code: str, section: int, word: int, old: str, new: str, listing: str = "elementwise") -> Edit:
        return Edit(listing, code, section, word, old, new)

    # control flow
    for section, old in ((0, "section0 branch float32 [1] depth=2"), (2, "section2 jump float32 [1] depth=2"),
                         (6, "section6 loop float32 [7] depth=1")):
        yield e("JUMP", section, 0, old, old[:-1] + "9", "control")
        yield e("DIMENSION", section, 0, old, old[:-1] + "-1", "control")
        yield e("DTYPE", section, 0, old, old.replace("float32", "int32"), "control")
    yield e("NESTING", 3, 0, "section3 branch float32 [1] depth=1", "section3 branch float32 [1] depth=2", "control")
    yield e("NESTING", 6, 0, "section6 loop float32 [7] depth=1", "section6 loop float32 [7] depth=2", "control")
    yield e("NESTING", 7, 0, "section7 loop float32 [2] depth=2", "section7 loop float32 [2] depth=1", "control")
    yield e("NESTING", 6, 0, "section2 jump float32 [1] depth=2", "section2 jump float32 [1] depth=3", "control")
    yield e("FUEL", 0, 0, "section7 loop float32 [2] depth=2", "section7 loop float32 [2000] depth=2", "control")
    yield e("OVERFLOW", 7, 0, "section7 loop float32 [2] depth=2", "section7 loop float32 [1099511627776] depth=2", "control")
    yield e("DIMENSION", 2, 0, "section2 jump float32 [1]", "section2 jump float32 [2]", "control")
    yield e("DIMENSION", 6, 0, "section6 loop float32 [7]", "section6 loop float32 [7,1]", "control")
    yield e("DIMENSION", 6, 0, "section6 loop float32 [7]", "section6 loop float32 [0]", "control")
    yield e("OPERAND", 0, 0, "section0 branch", "section0 jump", "control")
    yield e("OPERAND", 2, 0, "section2 jump", "section2 branch", "control")
    yield e("OPERAND", 0, 0, "  x0 arg0+1 bool read [0]", "  x0 arg0+1 bool read [1]", "control")
    yield e("OUT_OF_BOUNDS", 0, 0, "  x0 arg0+1 bool read [0]", "  x0 arg0+2 bool read [0]", "control")
    yield e("RESERVED", 0, 0, "  x0 arg0+1 bool read [0]", "  x0 arg0+1 bool read [0] depth=1", "control")
    yield e("PERMISSION", 6, 0, "  x0 workspace+400 bool read [0]", "  x0 workspace+400 bool read|write [0]", "control")
    yield e("DTYPE", 6, 0, "  x0 workspace+400 bool read [0]", "  x0 workspace+400 uint8 read [0]", "control")
    yield e("NESTING", 2, 0, "section2 jump float32 [1] depth=2", "section2 jump float32 [1] depth=2\n  0 end", "control")
    # compute dtypes, constants, places that are numbers
    yield e("DTYPE", 0, 2, "2 floormod.k c0", "2 div.k c0", "wide")
    yield e("DTYPE", 0, 2, "2 floormod.k c0", "2 philox.k c0", "wide")
    yield e("CONSTANT", 0, 2, "2 floormod.k c0", "2 floormod.k c2", "wide")
    yield e("OPERAND_FORM", 0, 1, "1 iota x0", "1 iota x1", "wide")
    yield e("OPERAND_FORM", 0, 4, "4 load x1", "4 load x0", "wide")
    yield e("OPERAND_FORM", 0, 5, "5 bit_xor.i x2", "5 bit_xor.i x1", "wide")
    yield e("OPERAND_FORM", 0, 10, "10 store_per_row x3", "10 store_per_row x2", "wide")
    yield e("REDUCTION", 0, 6, "6 acc_min min8", "6 acc_min max7", "wide")
    yield e("REDUCTION", 0, 7, "7 acc_prod prod15", "7 acc_prod reduction16", "wide")
    yield e("OPERAND", 0, 2, "scratch+0 int64 read|write [8,0]", "scratch+0 int64 read|write [4,0]", "wide")
    yield e("DTYPE", 0, 2, "scratch+0 int64", "scratch+0 uint64", "wide")
    yield e("DTYPE", 0, 0, "index+5 int64", "index+5 int32", "wide")
    yield e("PERMISSION", 0, 0, "index+5 int64 read", "index+5 int64 read|write", "wide")
    yield e("RESERVED", 0, 0, "index+5 int64 read [1,-7]", "index+5 int64 read [1,-7] depth=8", "wide")
    yield e("RESERVED", 0, 0, "index+5 int64 read [1,-7]", "index+5 int64 read [1,-7,1]", "wide")
    yield e("OUT_OF_BOUNDS", 0, 0, "index+5 int64 read [1,-7]", f"index+5 int64 read [1,{2**47 + 1}]", "wide")
    yield e("OVERFLOW", 0, 0, "index+5 int64 read [1,-7]", f"index+5 int64 read [1,{2**62 + 1}]", "wide")
    yield e("ARGUMENT", 0, 3, "x3 arg2+0 float32 read [4,0]", "x3 index+0 int64 read [4,0]", "matmul")
    yield e("OPERAND", 0, 1, "x0 arg0+0 int64 read [0,8]", "x0 index+0 int64 read [0,1]", "gather")
    yield e("FUEL", 0, 0, "fuel=100", "fuel=90", "wide")
    # head and arguments
    yield e("RESERVED", 0, 0, "fuel=60", "fuel=60 reserved0=1")
    yield e("RESERVED", 0, 0, "fuel=60", "fuel=60 reserved1=1")
    yield e("FUEL", 0, 0, "fuel=60", "fuel=54")
    yield e("FUEL", 0, 0, "fuel=60", f"fuel={2**40 + 1}")
    yield e("LIMIT", 0, 0, "workspace=0", f"workspace={2**40 + 1}")
    yield e("LIMIT", 0, 0, "scratch=0", f"scratch={2**32 + 1}")
    yield e("LIMIT", 0, 1, "arg1 2400", f"arg1 {2**48 + 1}")
    yield e("ARGUMENT", 0, 0, "arg0 2400 float32 read", "arg0 2400 float32 read|zero_fill")
    yield e("DTYPE", 0, 2, "arg2 8 float32", "arg2 8 13")
    yield e("RESERVED", 0, 2, "arg2 8 float32 read align=4", "arg2 8 float32 read align=4 reserved=1")
    yield e("ALIGNMENT", 0, 0, "arg0 2400 float32 read align=4", "arg0 2400 float32 read align=3")
    yield e("ALIGNMENT", 0, 0, "arg0 2400 float32 read align=4", "arg0 2400 float32 read align=128")
    # section head
    yield e("SECTION_KIND", 0, 0, "section0 vector", f"section0 {len(layout.ENUMS['SectionKind'])}")
    yield e("DTYPE", 0, 0, "vector float32 [", "vector float16 [", "gather")
    yield e("DTYPE", 0, 0, "matmul float32 [", "matmul float64 [", "matmul")
    yield e("DTYPE", 0, 0, "vector float32 [", "vector bool [", "gather")
    yield e("CONSTANT", 0, 0, "  8 end_row\n", "  8 end_row\n  constant 0x1\n")
    yield e("RESERVED", 0, 0, "[100,2,3]", "[100,2,3] reserved=1")
    yield e("RESERVED", 0, 0, "[100,2,3]", "[100,2,3] depth=1")
    yield e("DIMENSION", 0, 0, "[100,2,3]", "[100,2,3] rank=0")
    yield e("DIMENSION", 0, 0, "[100,2,3]", "[100,2,3] rank=9")
    yield e("DIMENSION", 0, 0, "[100,2,3]", "[100,2,3] rank=2")
    yield e("DIMENSION", 0, 0, "[100,2,3]", "[100,0,3]")
    yield e("DIMENSION", 0, 0, "[100,2,3]", "[-100,2,3]")
    yield e("DIMENSION", 0, 0, "[100,2,3]", f"[{2**40 + 1},2,3]")
    yield e("OVERFLOW", 0, 0, "[100,2,3]", f"[{2**39},2,3]")
    yield e("LIMIT", 0, 0, "[100,2] scratch=512", "[100,2] scratch=513", "softmax")
    # operands: arguments, modes, dtypes
    yield e("ARGUMENT", 0, 1, "x1 arg1+0", "x1 arg3+0")
    yield e("PERMISSION", 0, 1, "x1 arg1+0 float32 write", "x1 arg0+0 float32 write")
    yield e("PERMISSION", 0, 0, "x0 arg0+0 float32 read", "x0 arg1+0 float32 read")
    yield e("PERMISSION", 0, 0, "x0 arg0+0 float32 read", "x0 arg0+0 float32 0")
    yield e("PERMISSION", 0, 0, "x0 arg0+0 float32 read", "x0 arg0+0 float32 read|32")
    yield e("DTYPE", 0, 0, "x0 arg0+0 float32", "x0 arg0+0 int32")
    yield e("DTYPE", 0, 0, "x0 arg0+0 float32", "x0 arg0+0 float16")
    yield e("DTYPE", 0, 0, "x0 arg0+0 float32", "x0 arg0+0 200")
    yield e("DTYPE", 0, 2, "x2 scratch+64 float32", "x2 scratch+64 int32", "softmax")
    yield e("OPERAND", 0, 2, "x2 scratch+64 float32 read|write [4,0]", "x2 scratch+64 float32 read|write [4,4]", "softmax")
    yield e("RESERVED", 0, 0, "x0 arg0+0 float32 read [4,400,800]", "x0 arg0+0 float32 read [4,400,800] reserved=1")
    yield e("RESERVED", 0, 0, "x0 arg0+0 float32 read [4,400,800]", "x0 arg0+0 float32 read [4,400,800,4]")
    yield e("RESERVED", 0, 0, "x0 arg0+0 float32 read [4,400,800]", "x0 arg0+0 float32 read [4,400,800] index=0")
    yield e("RESERVED", 0, 0, "x0 arg0+0 float32 read [4,400,800]", "x0 arg0+0 float32 read [4,400,800] limit=1")
    yield e("RESERVED", 0, 0, "x0 arg0+0 float32 read [4,400,800]", "x0 arg0+0 float32 read [4,400,800] depth=4")
    # operands: places
    yield e("OUT_OF_BOUNDS", 0, 0, "x0 arg0+0", "x0 arg0+4")
    yield e("OUT_OF_BOUNDS", 0, 0, "x0 arg0+0", "x0 arg0-4")
    yield e("OUT_OF_BOUNDS", 0, 0, "read [4,400,800]", "read [4,400,804]")
    yield e("OUT_OF_BOUNDS", 0, 0, "read [4,400,800]", "read [4,-400,800]")
    yield e("OUT_OF_BOUNDS", 0, 2, "x2 scratch+64", "x2 scratch+116", "softmax")
    yield e("OUT_OF_BOUNDS", 0, 1, "limit=5", "limit=6", "gather")
    yield e("OUT_OF_BOUNDS", 0, 1, "depth=400", "depth=-4", "gather")
    yield e("OUT_OF_BOUNDS", 0, 2, "workspace+0 float32 read|write", "workspace+804 float32 read|write", "matmul")
    yield e("OUT_OF_BOUNDS", 2, 1, "arg4 1280", "arg4 1276", "matmul")
    yield e("OUT_OF_BOUNDS", 0, 1, "arg1 1280", "arg1 1276", "packed")
    # windows
    for code, operand, old, new in (
        ("OUT_OF_BOUNDS", 1, "arg1 840", "arg1 836"), ("OPERAND", 1, "index=515", "index=512"),
        ("OPERAND", 1, "index=515", "index=3"), ("OPERAND", 1, "index=515", "index=517"),
        ("DIMENSION", 1, "limit=3", "limit=4"), ("DIMENSION", 1, "limit=3", "limit=0"),
        ("PERMISSION", 1, "read|windows", "read|packed|windows"), ("OPERAND", 1, "[8,0,196", "[8,4,196"),
        ("RESERVED", 1, "392,0,4", "392,4,4"), ("ALIGNMENT", 1, "4,28,56]", "4,26,56]"),
        ("PERMISSION", 0, "read [0,48,0,0]", "read|windows [0,48,0,0]"),
        ("PERMISSION", 2, "read|write [4,36", "read|write|windows [4,36"),
    ):  # fmt: skip
        yield e(code, 0, operand, old, new, "windows")
    yield e("LIMIT", 0, 0, "depth=12 scratch=1536", "depth=12 scratch=1535", "windows")
    yield e("OVERFLOW", 0, 0, "read [4,400,800]", f"read [4,400,{2**62}]")
    yield e("OVERFLOW", 0, 0, "x0 arg0+0", f"x0 arg0+{2**63 - 1}")
    yield e("OVERFLOW", 0, 0, "read [4,400,800]", f"read [4,400,-{2**63}]")
    yield e("ALIGNMENT", 0, 0, "[4,400,800]\n  x1", "[4,398,800]\n  x1")
    yield e("ALIGNMENT", 0, 2, "x2 arg2+0 float32 read [0,4,0]", "x2 arg2+1 float32 read [0,2,0]")
    yield e("ALIGNMENT", 0, 0, "arg0 2400 float32 read align=4", "arg0 2400 float32 read align=2")
    yield e("ALIGNMENT", 0, 1, "depth=400", "depth=399", "gather")
    yield e("OVERLAP", 0, 1, "x1 arg1+0 float32 write [4,400,800]", "x1 arg1+0 float32 write [4,0,800]")
    yield e("OVERLAP", 0, 1, "x1 arg1+0 float32 write [4,400,800]", "x1 arg1+0 float32 write [4,396,800]")
    yield e("OVERLAP", 0, 1, "x1 arg1+0 float32 write [4,400,800]", "x1 arg1+0 float32 write [-4,4,400]".replace("-4", "4"))
    yield e("OVERLAP", 0, 3, "x3 arg2+0 float32 read [4,0]", "x3 workspace+160 float32 read [4,0]", "matmul")
    yield e("OVERLAP", 0, 1, "x1 arg1+0 float32 read [4,0]", "x1 workspace+0 float32 read [4,0]", "matmul")
    # gather
    yield e("OPERAND", 0, 1, "index=0", "index=3", "gather")
    yield e("OPERAND", 0, 1, "index=0", "index=1", "gather")
    yield e("OPERAND", 0, 1, "index=0", "index=2", "gather")
    yield e("DIMENSION", 0, 1, "limit=5", "limit=0", "gather")
    yield e("DIMENSION", 0, 1, "limit=5", f"limit={2**40 + 1}", "gather")
    yield e("UNINITIALISED", 0, 3, "0 gather x1", "0 fetch x1 0", "gather")
    yield e("OPERAND_FORM", 0, 0, "0 gather x1", "0 gather x0", "gather")
    yield e("NESTING", 0, 2, "2 fetch x1 0", "2 gather x1", "gather")
    yield e("OPERAND_FORM", 0, 5, "int8 write [-4,-400]", "int8 write [0,-400]", "gather")
    # matmul and pack
    yield e("DIMENSION", 0, 0, "[40,5] depth=5", "[40,5] depth=0", "matmul")
    yield e("DIMENSION", 0, 0, "[40,5] depth=5", f"[40,5] depth={2**40 + 1}", "matmul")
    yield e("DIMENSION", 0, 0, "[40,5] depth=5", "[200] depth=5", "matmul")
    yield e("DIMENSION", 2, 0, "pack float32 [40]", "pack float32 [40,2]", "matmul")
    yield e("FUEL", 0, 0, "[40,5] depth=5", f"[4096,5] depth={2**40}", "matmul")
    yield e("FUEL", 0, 0, "[40,5] depth=5", f"[1,1] depth={2**39}", "matmul")
    yield e("LIMIT", 0, 0, "depth=5 scratch=640", "depth=5 scratch=636", "matmul")
    yield e("OPERAND", 0, 0,
            "  x1 arg1+0 float32 read|packed [0,0]\n  x2 arg2+0 float32 read|write [4,160,800,1600]\n", "", "packed")
    yield e("OPERAND", 0, 1, "read|packed [0,0]", "read|packed [4,0]", "packed")
    yield e("RESERVED", 0, 1, "read|packed [0,0]", "read|packed [0,0] depth=4", "packed")
    yield e("OPERAND", 0, 0, "read [0,20,100,0] depth=4", "read|packed [0,0]", "packed")
    yield e("OPERAND", 0, 0, "read [0,20]", "read [4,20]", "matmul")
    yield e("OPERAND", 0, 0, "arg0+0 float32 read [0,20] depth=4", "arg0+0 float32 read [0,16] depth=8", "matmul")
    yield e("OPERAND", 0, 1, "arg1+0 float32 read [4,0] depth=160", "arg1+0 float32 read [8,0] depth=8", "matmul")
    yield e("OPERAND", 0, 2, "read|write [4,160]", "read|write [-4,160]", "matmul")
    yield e("PERMISSION", 0, 2, "workspace+0 float32 read|write", "workspace+0 float32 write", "matmul")
    yield e("PERMISSION", 0, 0, "x0 arg0+0 float32 read [0,20]", "x0 workspace+1000 float32 write [0,20]", "matmul")
    yield e("ARGUMENT", 0, 3, "x3 arg2+0 float32 read [4,0]", "x3 scratch+0 float32 read [4,0]", "matmul")
    yield e("OPERAND", 2, 1, "write|packed [0]", "write|packed [4]", "matmul")
    yield e("NESTING", 2, 0, "x1 arg4+0 float32 write|packed [0]", "x1 arg4+0 float32 write|packed [0]\n  0 end", "matmul")
    yield e("OPERAND", 0, 0, "0 mov.i x2", "0 mov.i x1", "matmul")
    yield e("NESTING", 0, 3, "3 end\n", "3 end_row\n", "matmul")
    yield e("NESTING", 0, 1, "1 add.i x3", "1 end", "matmul")
    yield e("NESTING", 0, 1, "1 add.i x3", "1 acc_sum sum0", "matmul")
    yield e("NESTING", 0, 1, "1 add.i x3", "1 add.r r0", "matmul")
    yield e("NESTING", 0, 1, "1 add.i x3", "1 store_row r0", "matmul")
    yield e("NESTING", 0, 1, "1 add.i x3", "1 fetch x3 64", "matmul")
    # attention
    def a(code: str, section: int, word: int, old: str, new: str) -> Edit:
        return e(code, section, word, old, new, "attention")

    yield a("LIMIT", 0, 0, "depth=12 scratch=46080", "depth=12 scratch=46076")
    yield a("LIMIT", 2, 0, "depth=12 scratch=39936", "depth=12 scratch=39935")
    yield a("DIMENSION", 0, 0, "[20,5,2] depth=12", "[20,5,2] depth=0")
    yield a("DIMENSION", 0, 1, "[20,5,2] depth=12", "[20,5,2] depth=11")
    yield a("DIMENSION", 0, 0, "limit=16", f"limit={(1 << 40) + 1}")
    yield a("DIMENSION", 0, 1, "[48,0,960] limit=12", "[48,0,960] limit=0")
    yield a("DIMENSION", 0, 2, "[28,0,0] limit=7", "[28,0,0] limit=13")
    yield a("OUT_OF_BOUNDS", 0, 0, "arg0+480", "arg0+236")
    yield a("OUT_OF_BOUNDS", 0, 1, "[48,0,960] limit=12", "[152,0,960] limit=12")
    yield a("OUT_OF_BOUNDS", 0, 2, "[28,0,0] limit=7", "[104,0,0] limit=7")
    yield a("OUT_OF_BOUNDS", 0, 3, "arg3+280 float32 write [0,28,-140]", "arg3+136 float32 write [0,28,-140]")
    yield a("OUT_OF_BOUNDS", 0, 4, "arg4 200 bool", "arg4 199 bool")
    yield a("OUT_OF_BOUNDS", 2, 1, "arg5+0 float32 read|packed", "arg5+4 float32 read|packed")
    yield a("OPERAND", 0, 0, "read [0,48,-240]", "read [4,48,-240]")
    yield a("OPERAND", 0, 1, "[48,0,960] limit=12", "[48,4,960] limit=12")
    yield a("OPERAND", 0, 2, "[28,0,0] limit=7 depth=4", "[28,4,0] limit=7 depth=4")
    yield a("OPERAND", 0, 2, "[28,0,0] limit=7 depth=4", "[28,0,0] limit=7 depth=8")
    yield a("OPERAND", 0, 3, "write [0,28,-140]", "write [4,28,-140]")
    yield a("OPERAND", 0, 4, "read [1,20,100]", "read [2,20,50]")
    yield a("OPERAND", 2, 1, "arg5+0 float32 read|packed [0,0]", "arg5+0 float32 read|packed [4,0]")
    yield a("RESERVED", 0, 4, "read [1,20,100]", "read [1,20,100] depth=1")
    yield a("RESERVED", 0, 3, "write [0,28,-140] depth=4", "write [0,28,-140] depth=4 limit=1")
    yield a("OVERLAP", 0, 3, "write [0,28,-140]", "write [0,24,-140]")
    yield a("OVERLAP", 2, 1, "x3 arg3+280 float32 write [0,28] depth=4\n", "x3 arg5+0 float32 write [0,28] depth=4\n")
    yield a("PERMISSION", 0, 0, "arg0+480 float32 read [", "arg0+480 float32 write [")
    yield a("OPCODE", 0, 0, "0 mul.k 0.25", "0 add.k 0.25")
    yield a("OPCODE", 0, 3, "2 mov.k 0.0\n  3 end\nsection1", "2 mov.k 0.0\n  3 end_row\nsection1")
    yield a("RESERVED", 0, 1, "1 mov.k 0xff800000", "1 mov.k 0xff800000 a=1")
    yield a("NESTING", 2, 0, "1 mov.k 0.0\n  2 mov.k 0.0\n", "1 mov.k 0.0\n")
    # host functions
    yield e("DIMENSION", 0, 0, "host float32 [18]", "host float32 [18,1] rank=2", "host")
    yield e("OPCODE", 0, 0, "[18] depth=1", f"[18] depth={len(layout.ENUMS['HostFunction']) + 1}", "host")
    yield e("DIMENSION", 0, 0, "[18] depth=1", "[18] depth=0", "host")
    yield e("DIMENSION", 0, 1, "host float32 [18]", "host float32 [17]", "host")
    yield e("DIMENSION", 0, 0, "read [4,3] depth=2", "read [4,5] depth=2", "host")
    yield e("OUT_OF_BOUNDS", 0, 0, "x0 arg0+0", "x0 arg0+4", "host")
    yield e("OUT_OF_BOUNDS", 0, 0, "x0 arg0+0", "x0 arg0-4", "host")
    yield e("OUT_OF_BOUNDS", 2, 0, "x0 workspace+0 float64", "x0 workspace+8 float64", "host")
    yield e("ALIGNMENT", 0, 1, "workspace+16 float32 write", "workspace+18 float32 write", "host")
    yield e("RESERVED", 0, 0, "read [4,3] depth=2", "read [4,3] depth=1", "host")
    yield e("DIMENSION", 0, 0, "read [4,3] depth=2", "read [4,3] depth=9", "host")
    yield e("DIMENSION", 0, 0, "read [4,3] depth=2", "read [4,3] depth=-1", "host")
    yield e("DIMENSION", 0, 0, "read [4,3] depth=2", "read [4,-3] depth=2", "host")
    yield e("DIMENSION", 0, 0, "read [4,3] depth=2", f"read [{2**40},{2**40}] depth=2", "host")
    yield e("DIMENSION", 2, 0, "read [0,7] depth=2", f"read [0,{2**40 + 1}] depth=2", "host")
    yield e("PERMISSION", 0, 0, "x0 arg0+0 float32 read", "x0 workspace+16 float32 write", "host")
    yield e("PERMISSION", 0, 1, "workspace+16 float32 write", "workspace+16 float32 read|write", "host")
    yield e("PERMISSION", 0, 1, "workspace+16 float32 write", "arg0+16 float32 write", "host")
    yield e("OVERLAP", 1, 0, "x2 arg1+8 int64 write [5,1]", "x2 workspace+8 int64 write [5,1]", "host")
    yield e("RESERVED", 0, 0, "read [4,3] depth=2", "read [4,3] depth=2 index=0", "host")
    yield e("ARGUMENT", 0, 0, "x0 arg0+0", "x0 scratch+0", "host")
    yield e("DTYPE", 2, 0, "x0 workspace+0 float64", "x0 workspace+0 13", "host")
    yield e("OPERAND", 0, 0, "  x0 arg0+0 float32 read [4,3] depth=2\n  x1 workspace+16 float32 write [6] depth=1\n", "", "host")
    # words
    yield e("OPCODE", 0, 1, "1 mov.i x0", f"1 op{len(table.OPCODES)}")
    yield e("OPCODE", 0, 1, "1 mov.i x0", "1 op65535")
    yield e("RESERVED", 0, 1, "1 mov.i x0", "1 mov.i x0 k=1")
    yield e("RESERVED", 0, 3, "3 mul.k 2.0", "3 mul.k 2.0 a=1")
    yield e("RESERVED", 0, 8, "8 end_row", "8 end_row k=1")
    yield e("OPERAND", 0, 1, "1 mov.i x0", "1 mov.i x3")
    yield e("OPERAND_FORM", 0, 1, "1 mov.i x0", "1 mov.i x2")
    yield e("OPERAND_FORM", 0, 5, "5 sub.b x2", "5 sub.b x0")
    yield e("OPERAND_FORM", 0, 4, "4 add.i x1", "4 add.i x0", "gather")
    yield e("OPERAND_FORM", 0, 16, "16 store_per_row x3", "16 store_per_row x1", "softmax")
    yield e("PERMISSION", 0, 1, "1 mov.i x0", "1 mov.i x1")
    yield e("PERMISSION", 0, 6, "6 store x1", "6 store x0")
    yield e("SLOT", 0, 4, "4 add.s s3", "4 add.s s24")
    yield e("SLOT", 0, 2, "2 store_slot s3", "2 store_slot s24")
    yield e("ROW_SCALAR", 0, 8, "8 sub.r r0", "8 sub.r r32", "softmax")
    yield e("ROW_SCALAR", 0, 5, "5 store_row r0", "5 store_row r32", "softmax")
    yield e("UNINITIALISED", 0, 4, "4 add.s s3", "4 add.s s2")
    yield e("UNINITIALISED", 0, 1, "1 mov.i x0", "1 add.i x0")
    yield e("UNINITIALISED", 0, 1, "1 mov.i x0", "1 exp")
    yield e("UNINITIALISED", 0, 8, "8 sub.r r0", "8 sub.r r1", "softmax")
    yield e("UNINITIALISED", 0, 7, "7 mov.i x0", "7 mov.i x2", "softmax")
    yield e("UNINITIALISED", 0, 4, "4 fold_max max4", "4 relu", "softmax")
    yield e("REDUCTION", 0, 2, "2 acc_max max4", "2 acc_max sum0", "softmax")
    yield e("REDUCTION", 0, 11, "11 acc_sum sum0", "11 acc_sum max4", "softmax")
    yield e("REDUCTION", 0, 3, "3 loop -3 {max4}", "3 loop -3 {max5}", "softmax")
    yield e("REDUCTION", 0, 12, "12 loop -6 {sum0}", "12 loop -6 {}", "softmax")
    yield e("REDUCTION", 0, 4, "4 fold_max max4", "4 fold_max max5", "softmax")
    yield e("REDUCTION", 0, 13, "13 fold_sum sum0", "13 fold_sum max4", "softmax")
    yield e("REDUCTION", 0, 6, "4 fold_max max4", "4 mov.k 1.0", "softmax")
    yield e("REDUCTION", 0, 17, "13 fold_sum sum0", "13 mov.k 1.0", "softmax")
    yield e("REDUCTION", 0, 14, "14 recip", "14 fold_sum sum0", "softmax")
    yield e("REDUCTION", 0, 3, "3 run_prod t3", "3 run_prod t0", "running")
    yield e("REDUCTION", 0, 3, "3 run_prod t3", "3 run_prod t4", "running")
    yield e("UNINITIALISED", 0, 1, "1 mov.i x0", "1 run_sum t1", "running")
    yield e("RESERVED", 0, 2, "2 run_sum t0", "2 run_sum t0 k=1", "running")
    yield e("NESTING", 0, 14, "14 recip", "14 run_sum t0", "softmax")
    yield e("NESTING", 0, 1, "1 add.i x3", "1 run_prod t0", "matmul")
    yield e("JUMP", 0, 7, "7 loop -7 {}", "7 loop -6 {}")
    yield e("JUMP", 0, 7, "7 loop -7 {}", "7 loop -4294967295 {}")
    yield e("NESTING", 0, 0, "0 pass", "0 end")
    yield e("NESTING", 0, 3, "3 mul.k 2.0", "3 pass")
    yield e("NESTING", 0, 7, "7 loop -7 {}", "7 end_row")
    yield e("NESTING", 0, 8, "8 end_row", "8 mov.k 1.0")
    yield e("NESTING", 0, 8, "8 end_row", "8 loop -8 {}")
    yield e("NESTING", 0, 8, "8 end_row", "8 end_row\n  9 end_row")
    yield e("NESTING", 0, 6, "6 store x1", "6 store_row r0")
    yield e("NESTING", 0, 6, "6 store x1", "6 fold_sum sum0")
    yield e("NESTING", 0, 14, "14 recip", "14 add.i x0", "softmax")
    yield e("NESTING", 0, 14, "14 recip", "14 load x0", "softmax")
    yield e("NESTING", 0, 14, "14 recip", "14 acc_sum sum0", "softmax")
    yield e("NESTING", 0, 14, "14 recip", "14 store_slot s0", "softmax")
    yield e("NESTING", 0, 14, "14 recip", "14 store x1", "softmax")


EDITS = list(edits())


def refused(program: bytes) -> tuple[str, int, int]:
    with pytest.raises(InvalidBytecodeError, match=r"^verifier: .*, got -?\d+, allowed -?\d+$") as error:
        _native.Program(program)
    return error.value.code, error.value.section, error.value.word


def with_checksum(data: bytes | bytearray) -> bytes:
    return bytes(data[:16]) + struct.pack("<Q", _native.checksum(bytes(data[24:]))) + bytes(data[24:])


@pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)
def test_the_listings_pass(listing: str) -> None:
    program = assemble(listing)
    _native.Program(program)
    assert with_checksum(program) == program


@pytest.mark.parametrize("edit", EDITS, ids=[f"{i}-{e.code}" for i, e in enumerate(EDITS)])
def test_each_rule(edit: Edit) -> None:
    assert refused(edit.program()) == (edit.code, edit.section, edit.word)


@pytest.mark.parametrize(("code", "program"), [pytest.param(code, program, id=what) for what, code, program in broken()])
def test_sums_and_products_that_overflow_and_lengths_that_lie(code: str, program: bytes) -> None:
    assert refused(program)[0] == code and check(program) is not None


def test_rules_about_bytes() -> None:
    good = bytearray(assemble(ELEMENTWISE))
    assert refused(b"") == refused(bytes(good[:63])) == ("TRUNCATED", 0, 0)
    assert refused(with_checksum(good + b"\0" * 8)) == ("TRUNCATED", 0, 0)
    for field, code in ((0, "MAGIC"), (4, "VERSION"), (8, "TABLE_HASH"), (16, "CHECKSUM"), (64, "CHECKSUM")):
        bad = good.copy()
        bad[field] ^= 0x40
        assert refused(bytes(bad))[0] == code


def with_length(data: bytearray) -> bytes:
    """The bytes with a head that agrees with their number."""
    data[24:28] = struct.pack("<I", len(data))
    return with_checksum(data)


def test_lengths_that_disagree() -> None:
    good = assemble(ELEMENTWISE)
    section = 64 + 3 * 16
    assert refused(with_length(bytearray(good[:70]))) == ("TRUNCATED", 0, 0)  # inside the argument table
    assert refused(with_length(bytearray(good[: section + 8]))) == ("TRUNCATED", 0, 0)  # inside the section's head
    assert refused(with_length(bytearray(good[:-8]))) == ("TRUNCATED", 0, 0)  # one word is missing
    assert refused(with_length(bytearray(good + bytes(8)))) == ("TRUNCATED", 0, 0)  # something after the last section
    for field, offset, value, code in (
        ("section_count", 6, 0, "LIMIT"), ("section_count", 6, 4097, "LIMIT"), ("arg_count", 28, 2049, "LIMIT"),
        ("operand_count", section + 4, 17, "LIMIT"), ("word_count", section + 6, 513, "LIMIT"),
        ("operand_count", section + 4, 2, "TRUNCATED"), ("word_count", section + 6, 10, "TRUNCATED"),
        ("section_count", 6, 2, "TRUNCATED"),
    ):  # fmt: skip
        bad = bytearray(good)
        struct.pack_into("<H", bad, offset, value)
        assert refused(with_checksum(bad))[0] == code, field
    empty = assemble(ELEMENTWISE[: ELEMENTWISE.index("  0 pass")])
    assert refused(empty) == ("NESTING", 0, 0)


def test_a_program_beyond_the_size_limit() -> None:
    words = assemble(ELEMENTWISE) + bytes(layout.LIMITS["MAX_PROGRAM_BYTES"])
    assert refused(with_length(bytearray(words))) == ("LIMIT", 0, 0)


def test_every_code_has_a_case() -> None:
    by_bytes = {"TRUNCATED", "MAGIC", "VERSION", "TABLE_HASH", "CHECKSUM"}
    assert {e.code for e in EDITS} | by_bytes == set(layout.ENUMS["VerifyCode"]) - {"OK"}


# ---- programs that must pass ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x1 arg1+0 float32 write [4,400,800]", "x1 arg1+1600 float32 write [4,400,-800]"),  # rows backwards
        ("x1 arg1+0 float32 write [4,400,800]", "x1 arg1+0 float32 write [4,1200,400]"),  # another order of dimensions
        ("x0 arg0+0 float32 read [4,400,800]", "x0 arg0+0 float32 read [4,0,0]"),  # broadcast
        ("8 end_row", "8 mov.b x2\n  9 store_row r0\n  10 end_row"),
        ("[100,2,3]", "[100,2,3] scratch=0"),
    ],
)
def test_more_that_passes(old: str, new: str) -> None:
    assert ELEMENTWISE.count(old) == 1
    _native.Program(assemble(ELEMENTWISE.replace(old, new).replace("fuel=60", "fuel=80")))


def test_in_place_is_the_only_overlap() -> None:
    text = SOFTMAX.replace("x0 arg0+0 float32 read [4,400]", "x0 arg1+0 float32 read [4,400]")
    text = text.replace("arg1 800 float32 write", "arg1 800 float32 read|write")
    _native.Program(assemble(text))
    assert refused(assemble(text.replace("x0 arg1+0 float32 read [4,400]", "x0 arg1+0 float32 read [0,400]")))[0] == "OVERLAP"
    assert refused(assemble(text.replace("x0 arg1+0 float32 read [4,400]", "x0 arg1+400 float32 read [4,-400]")))[0] == "OVERLAP"


ROTARY = """
program workspace=4800 scratch=0 fuel=600
arg0 2400 float32 read align=4
arg1 4800 float32 write align=4
section0 vector float32 [10,4,15]
  x0 arg0+0 float32 read [4,40,160]
  x1 workspace+0 float32 read|write [4,80,320]
  x2 workspace+40 float32 write [4,80,320]
  0 pass
  1 mov.i x0
  2 store x1
  3 neg
  4 add.i x1
  5 store x2
  6 loop -6 {}
  7 end_row
section1 vector float32 [1200]
  x0 workspace+0 float32 read [4]
  x1 arg1+0 float32 write [4]
  0 pass
  1 mov.i x0
  2 store x1
  3 loop -3 {}
  4 end_row
"""


def test_columns_beside_each_other_do_not_overlap_and_fill_the_whole() -> None:
    """Both halves of each head are written by one section: nothing has to be cleared."""
    assert _native.Program(assemble(ROTARY)).cleared == []
    halves = ROTARY.replace("x2 workspace+40 float32 write [4,80,320]", "x2 workspace+40 float32 write [-4,80,320]")
    assert refused(assemble(halves))[:1] == ("OVERLAP",)
    backwards = halves.replace("x2 workspace+40", "x2 workspace+76").replace("5 store x2", "5 store_any x2")
    assert _native.Program(assemble(backwards)).cleared == []
    for base in (36, 44, 8, 80):
        moved = ROTARY.replace("x2 workspace+40", f"x2 workspace+{base}").replace("workspace=4800", "workspace=8000")
        assert refused(assemble(moved)) == ("OVERLAP", 0, 2)


def test_columns_that_leave_gaps_are_not_the_whole() -> None:
    narrow = ROTARY.replace("[10,4,15]", "[9,4,15]")
    assert _native.Program(assemble(narrow)).cleared == [layout.LIMITS["WORKSPACE"]]
    less = ROTARY.replace("[10,4,15]", "[10,4,14]")
    assert _native.Program(assemble(less)).cleared == [layout.LIMITS["WORKSPACE"]]
    one = ROTARY.replace("  5 store x2\n  6 loop -6 {}\n  7 end_row\nsection1", "  5 loop -5 {}\n  6 end_row\nsection1")
    assert _native.Program(assemble(one)).cleared == [layout.LIMITS["WORKSPACE"]]


# ---- flipped bits, mutated programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("listing", ["softmax", "matmul"])
def test_every_flipped_bit_is_refused(listing: str) -> None:
    good = assemble(LISTINGS[listing])
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidBytecodeError):
            _native.Program(bytes(bad))


def seeds(rng: np.random.Generator) -> list[Case]:
    """Programs of every instruction and form, random programs, and one matmul with an epilogue."""
    out = [RandomProgram(rng, exact=False).case() for _ in range(40)]
    for instruction, form in table.OPCODES:
        dtype = dtypes.BY_NAME[str(rng.choice(instruction.compute_dtypes))]
        out += list(cases(instruction, form, int(rng.integers(1, 70)), rng, dtype))[:2]
    return out + [epilogue("add", "i", 40, rng)]


def fields(program: bytes) -> list[tuple[int, str]]:
    """(offset, NumPy type) of every field of a program after its table hash and checksum."""
    out: list[tuple[int, str]] = []

    def record(name: str, at: int) -> int:
        for field, _, count, offset in layout.RECORD[name].fields:
            base = layout.RECORD[name].numpy.fields[field][0].base
            out.extend((at + offset + i * base.itemsize, base.str) for i in range(count or 1))
        return at + layout.RECORD[name].numpy.itemsize

    parsed, at = parse(program), record("ProgramHead", 0)
    for _ in parsed.args:
        at = record("ProgramArg", at)
    for section in parsed.sections:
        at = record("Section", at)
        for _ in section.operands:
            at = record("Operand", at)
        for _ in section.words:
            at = record("Word", at)
        at += 8 * len(section.constants)
    return [f for f in out if f[0] >= 24]


def mutate(program: bytes, where: list[tuple[int, str]], rng: np.random.Generator) -> bytes:
    """1 or 2 fields changed by a little, to a boundary value, or to the value of another field; a good checksum."""
    data = bytearray(program)
    for _ in range(int(rng.integers(1, 3))):
        offset, kind = where[int(rng.integers(len(where)))]
        other, other_kind = where[int(rng.integers(len(where)))]
        value = int(np.frombuffer(data, kind, 1, offset)[0])
        value = [
            value + int(rng.integers(-4, 5)), value + 4 * int(rng.integers(-4, 5)), value * 2, -value,
            int(rng.choice([0, 1, 4, 2**31, 2**32 - 4, 2**40, 2**63, 2**64 - 4])), int(rng.integers(0, 130)),
            int(np.frombuffer(data, other_kind, 1, other)[0]),
        ][int(rng.integers(7))]  # fmt: skip
        size = np.dtype(kind).itemsize
        data[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return with_checksum(data)


def test_mutated_programs_stay_inside_their_arguments() -> None:
    """Whatever passes runs between guard pages and canaries, with the same bits on every target."""
    rng = np.random.default_rng(20261122)
    accepted = trapped = total = 0
    for case in seeds(rng):
        where = fields(case.program)
        for _ in range(25):
            program = mutate(case.program, where, rng)
            total += 1
            try:
                loaded = _native.Program(program)
            except InvalidBytecodeError:
                continue
            if too_large(program):
                continue
            accepted += 1
            content = [rng.bytes(array.nbytes) if rng.random() < 0.3 else array.tobytes() for array in case.args]
            trapped += run_guarded(loaded, program, content)
    assert total > 4000 and accepted > total // 20 and trapped > 0, (total, accepted, trapped)


def too_large(program: bytes) -> bool:
    parsed = parse(program)
    sizes = [parsed.workspace_bytes, parsed.scratch_bytes, *(a.bytes for a in parsed.args)]
    return fuel(parsed.sections) > 1 << 16 or max(sizes) > 1 << 22


def run_guarded(loaded: _native.Program, program: bytes, content: list[bytes]) -> bool:
    results = []
    parsed = parse(program)
    for target in _native.targets():
        at_end = bool(len(results) % 2)
        buffers = [
            Guarded(arg.bytes, arg.align, at_end, content[i] if i < len(content) else b"")
            for i, arg in enumerate(parsed.args)
        ]
        try:
            loaded.run([b.array for b in buffers], target)
            outcome = "done"
        except DeviceTrap as trap:
            outcome = str(trap)
        for buffer in buffers:
            buffer.check()
        results.append((outcome, [b.array.tobytes() for b in buffers]))
        for buffer in buffers:
            buffer.close()
    assert all(r == results[0] for r in results), program.hex()
    return results[0][0] != "done"
