"""Matmul sections whose rows lie in groups, each with a matrix of its own: the bits of a product of each group alone, on every
instruction set and any number of threads; numbers of rows that are none trap; both verifiers agree on what is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import DeviceTrap, InvalidBytecodeError
from dvm_rt.isa import matmul, reference, verifier
from dvm_rt.isa.assembler import assemble
from dvm_rt.isa.program import PACKED, READ, WRITE, ProgramBuilder
from tests.native.test_matmul_dtypes import INTEGERS
from tests.native.test_matmul_dtypes import values as of_dtype
from tests.native.test_verify import GROUPS

Array = np.ndarray
TARGETS = _native.targets()
FORMS = ("rows", "columns", "packed")
ROWS = ([3, 0, 5, 1], [0, 0, 0, 0], [9, 0, 0, 0], [0, 0, 0, 9], [1, 1, 1, 1])  # of 9
MANY = ([20, 1, 0, 40], [61, 0, 15, 14], [7, 9, 16, 33])  # of 90


def values(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def program(x: Array, w: Array, rows: Array, form: str, *others: Array,
            compute: dtypes.DType = dtypes.float32) -> tuple[bytes, list[Array]]:
    """`others`: what the epilogue adds, (m, n), and, if there is more, multiplies with, (m, 1); then it is larger than 0 or 0."""
    (m, k), (groups, _, n), size = x.shape, w.shape, w.itemsize
    c, builder = np.full((m, n), 7, compute.numpy), ProgramBuilder()
    section = builder.matmul(n, m, k, groups, dtype=compute)
    of_x, of_w = (dtypes.from_numpy(a.dtype) for a in (x, w))
    section.operand(builder.add_arg(x.nbytes, dtype=of_x), [0, x.itemsize * k, 0], dtype=of_x, depth=x.itemsize, index=3)
    if form == "packed":
        stored = np.concatenate([matmul.pack(one) for one in w])
        section.operand(builder.add_arg(stored.nbytes), [0, 0, matmul.packed_bytes(n, k)], mode=READ | PACKED)
    else:
        stored = w if form == "rows" else np.ascontiguousarray(w.transpose(0, 2, 1))
        steps = ([size, 0, size * k * n], size * n) if form == "rows" else ([size * k, 0, size * k * n], size)
        section.operand(builder.add_arg(stored.nbytes, dtype=of_w), steps[0], dtype=of_w, depth=steps[1])
    section.operand(builder.add_arg(c.nbytes, READ | WRITE, compute), [c.itemsize, c.itemsize * n, 0], mode=READ | WRITE)
    whole = dtypes.from_numpy(rows.dtype)
    section.operand(builder.add_arg(rows.nbytes, READ, whole), [0, 0, rows.itemsize], dtype=whole)
    for a, step in zip(others, (c.itemsize, 0), strict=False):
        section.operand(builder.add_arg(a.nbytes, READ, compute), [step, a.strides[0], 0])
    if len(others) == 1:
        section.word("mov.i", 2)
        section.word("add.i", 4)
        section.word("store", 2)
        section.word("end")
    elif others:
        section.word("load", 2)
        section.word("add.i", 4)
        section.word("mul.b", 5)
        section.word("max.k", 0.0)
        section.word("store", 2)
        section.word("end")
    return builder.build(), [x, stored, c, rows, *others]


def expected(x: Array, w: Array, rows: Array, *others: Array, compute: dtypes.DType = dtypes.float32) -> Array:
    begin, out = 0, np.zeros((len(x), w.shape[2]), compute.numpy)
    for count, one in zip(rows, w, strict=True):
        if count:
            out[begin : begin + count] = matmul.product(x[begin : begin + count], one, compute)
        begin += count
    if len(others) == 1:
        return out + others[0]
    return np.maximum((out + others[0]) * others[1], 0) if others else out


def check(code: bytes, args: list[Array], want: Array) -> None:
    """The reference interpreter, every instruction set, threads."""
    assert verifier.check(code) is None
    again = [a.copy() for a in args]
    reference.run(code, again)
    assert again[2].tobytes() == want.tobytes()
    for target in TARGETS:
        for threads, parts in ((1, 1), (2, 3)):
            args[2][:] = 7
            _native.Program(code).run(args, target, threads=threads, parts=parts)
            assert args[2].tobytes() == want.tobytes(), (target, parts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "k", "n", "cases"), [(9, 5, 40, ROWS), (9, 33, 200, ROWS[:1]), (90, 7, 150, MANY),
                                                    (30, 1030, 33, ([7, 0, 16, 2],))])
def test_each_group_is_a_product(form: str, m: int, k: int, n: int, cases: tuple) -> None:
    x, w = values(m, k), values(4, k, n)
    for number, case in enumerate(cases):
        rows = np.array(case, np.int32 if number % 2 else np.int64)
        check(*program(x, w, rows, form), expected(x, w, rows))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "k", "n", "case"), [(9, 5, 40, [3, 0, 5, 0]), (9, 5, 40, [0, 0, 0, 0]), (20, 1030, 33,
    [7, 0, 10, 2]), (20, 9, 140, [3, 0, 16, 0]), (3, 4, 1, [1, 1, 1, 0])])
def test_the_epilogue_meets_every_row(form: str, m: int, k: int, n: int, case: list[int]) -> None:
    """Those beyond all groups too; its operands know nothing of groups."""
    x, w, rows = values(m, k), values(4, k, n), np.array(case, np.int64)
    others = (values(m, n), values(m, 1))
    for count in (1, 2):
        check(*program(x, w, rows, form, *others[:count]), expected(x, w, rows, *others[:count]))


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize(("name", "left", "right"), [*INTEGERS, ("float64",) * 3])
def test_other_dtypes(form: str, name: str, left: str, right: str) -> None:
    compute = dtypes.BY_NAME[name]
    for m, k, n, case in ((9, 5, 40, [3, 0, 5, 0]), (20, 3, 33, [16, 1, 0, 3]), (2, 1030, 3, [0, 1, 0, 1])):
        x, w = of_dtype(dtypes.BY_NAME[left], m, k), of_dtype(dtypes.BY_NAME[right], 4, k, n)
        rows = np.array(case, np.int32)
        check(*program(x, w, rows, form, compute=compute), expected(x, w, rows, compute=compute))
        if left == name:
            others = (of_dtype(compute, m, n), of_dtype(compute, m, 1))
            check(*program(x, w, rows, form, *others, compute=compute), expected(x, w, rows, *others, compute=compute))


@pytest.mark.parametrize("case", [[-1, 3, 0, 0], [3, 4, 3, 0], [10, 0, 0, 0], [5, 5, -1, 0], [2**40, 0, 0, 0],
                                  [-(2**63), 9, 0, 0]])
def test_numbers_of_rows_that_are_none_trap(case: list[int]) -> None:
    code, args = program(values(9, 5), values(4, 5, 40), np.array(case, np.int64), "rows")
    for target in TARGETS:
        for threads, parts in ((1, 1), (2, 2)):
            with pytest.raises(DeviceTrap):
                _native.Program(code).run(args, target, threads=threads, parts=parts)
    with pytest.raises(DeviceTrap):
        reference.run(code, args)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("index=3", "index=2"), ("index=3", "index=4"), ("index=3", "index=1 limit=1"), ("read [0,20,0]", "read [0,20,4]"),
        ("[4,160,0]", "[4,160,4]"), ("[40,6,3] depth", "[40,18] depth"), ("int64 read [0,0,8]", "int64 read [0,4,8]"),
        ("int64", "int16"), ("int64", "float64"), ("arg3 24", "arg3 16"), ("arg1 2400", "arg1 2399"), ("[0,0,8]", "[0,0,4]"),
    ],
)  # fmt: skip
def test_refused(old: str, new: str) -> None:
    assert verifier.check(assemble(GROUPS)) is None
    _native.Program(assemble(GROUPS))
    bad = assemble(GROUPS.replace(old, new))
    assert bad != assemble(GROUPS) and verifier.check(bad) is not None
    with pytest.raises(InvalidBytecodeError):
        _native.Program(bad)


EPILOGUE = """  x4 arg2+0 float32 read [4,160,0]
  0 load x2
  1 mul.i x4
  2 store x2
  3 end
"""


def test_refused_epilogues() -> None:
    """What the words name steps along columns and rows, never along groups, and is neither A nor B."""
    listing = GROUPS.replace("fuel=5", "fuel=77") + EPILOGUE
    assert verifier.check(assemble(listing)) is None
    _native.Program(assemble(listing))
    for old, new in (("[4,160,0]\n  0", "[4,160,4]\n  0"), ("mul.i x4", "mul.i x1"), ("load x2", "load x0"),
                     ("x4 arg2+0", "x4 arg2+4"), ("  3 end\n", "")):
        bad = assemble(listing.replace(old, new))
        assert verifier.check(bad) is not None, new
        with pytest.raises(InvalidBytecodeError):
            _native.Program(bad)


def test_a_section_after_groups_is_no_group() -> None:
    """What the verifier knows of a matmul in groups ends with it: the next section's operands are its own."""
    after = """section1 copy float32 [5,2,3]
  x0 arg1+0 float32 read [4,20,40]
  x1 arg2+0 float32 write [4,20,40]
section2 matmul float32 [8,2,3] depth=5 scratch=640
  x0 arg0+0 float32 read [0,20,0] depth=4
  x1 arg1+0 float32 read [4,0,800] depth=32
  x2 arg2+0 float32 read|write [4,32,64]
"""
    code = assemble(GROUPS.replace("fuel=5", "fuel=20") + after)
    assert verifier.check(code) is None
    _native.Program(code)
    for old, new in (("x2 arg2+0 float32 read|write [4,32,64]", "x2 arg2+0 float32 read|write [4,32,800]"),
                     ("write [4,20,40]", "write [4,20,800]")):
        bad = assemble((GROUPS.replace("fuel=5", "fuel=20") + after).replace(old, new))
        assert verifier.check(bad) is not None
        with pytest.raises(InvalidBytecodeError):
            _native.Program(bad)
