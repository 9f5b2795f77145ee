"""Copy sections: every geometry and dtype, on every instruction set, against the reference; and what both verifiers refuse."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import DeviceTrap, InvalidBytecodeError
from dvm_rt.isa import reference
from dvm_rt.isa.program import GATHER, READ, WRITE, ProgramBuilder
from dvm_rt.isa.verifier import check


def program(shape: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...], dtype: dtypes.DType, base: int,
            elements: tuple[int, int]) -> bytes:
    """Strides in elements, innermost first."""
    builder, size = ProgramBuilder(), dtype.bytes
    section = builder.copy(*shape)
    section.operand(builder.add_arg(elements[0] * size, READ, dtype), [s * size for s in source], dtype=dtype, base=base * size)
    section.operand(builder.add_arg(elements[1] * size, WRITE, dtype), [s * size for s in target], dtype=dtype, mode=WRITE)
    return builder.build()


def same(code: bytes, x: np.ndarray, out: np.ndarray) -> None:
    want = out.copy()
    reference.run(code, [x.copy(), want])
    for name in _native.targets():
        got = np.full_like(out, 77)
        _native.Program(code).run([x, got], name)
        assert got.tobytes() == want.tobytes(), name


def random_bits(rng: np.random.Generator, count: int, dtype: dtypes.DType) -> np.ndarray:
    data = rng.integers(0, 256, count * dtype.bytes, np.uint8)
    data[rng.random(len(data)) < 0.2] = 0xFF  # NaN of many kinds
    return np.frombuffer(data.tobytes(), np.uint8 if dtype.kind == "b" else dtype.numpy)


@pytest.mark.parametrize("dtype", dtypes.DTYPES, ids=lambda d: d.name)
def test_random_geometry(dtype: dtypes.DType) -> None:
    rng = np.random.default_rng(dtype.code)
    for _ in range(60):
        rank = int(rng.integers(1, 6))
        shape = tuple(int(n) for n in rng.integers(1, (150, 70, 20, 7, 4)[rank - 1], rank))
        order = rng.permutation(rank)
        source, step = [0] * rank, 1
        for d in order:
            source[d] = 0 if rng.random() < 0.1 else step * (-1 if rng.random() < 0.2 else 1)
            step *= shape[d] + int(rng.integers(0, 3))
        target, size = [0] * rank, 1
        for d in rng.permutation(rank) if rng.random() < 0.5 else range(rank):
            target[d] = size
            size *= shape[d] + int(rng.random() < 0.2)
        base = sum(-s * (n - 1) for s, n in zip(source, shape, strict=True) if s < 0)
        code = program(shape, tuple(source), tuple(target), dtype, base, (step, size))
        assert check(code) is None
        same(code, random_bits(rng, step, dtype), random_bits(rng, size, dtype).copy())


@pytest.mark.parametrize("shape", [(64, 64), (65, 63), (16, 1000), (1000, 16), (15, 15), (300, 200, 3)])
@pytest.mark.parametrize("name", ["int8", "float16", "float32", "int64"])
def test_transposes(shape: tuple[int, ...], name: str) -> None:
    dtype = dtypes.BY_NAME[name]
    rng = np.random.default_rng(len(shape))
    x = random_bits(rng, int(np.prod(shape)), dtype)
    rows, columns = shape[:2]
    rest = (rows * columns,) * (len(shape) - 2)
    same(program(shape, (columns, 1, *rest), (1, rows, *rest), dtype, 0, (x.size, x.size)), x, np.zeros_like(x))


@pytest.mark.parametrize("dtype", (dtypes.uint8, dtypes.uint16, dtypes.float32, dtypes.float64), ids=lambda d: d.name)
@pytest.mark.parametrize("columns", (1024, 1111))
def test_transposes_beyond_the_caches(columns: int, dtype: dtypes.DType) -> None:
    """Lines that are aligned, and lines that begin anywhere; rows and columns that are no whole tiles."""
    rows = (5 << 20) // dtype.bytes // columns + 3
    x = random_bits(np.random.default_rng(columns), rows * columns, dtype)
    wanted = x.reshape(rows, columns).T.copy()
    wanted[wanted != wanted] = np.nan if dtype.kind == "f" else 0
    for target in ((1, rows), (1, rows + 64 - rows % 64)):  # row-major, and with rows of whole lines
        pitch = target[1]
        out = np.zeros(columns * pitch, x.dtype)
        code = program((rows, columns), (columns, 1), target, dtype, 0, (rows * columns, columns * pitch))
        for name in _native.targets():
            out[:] = 0
            _native.Program(code).run([x, out], name)
            assert out.reshape(columns, pitch)[:, :rows].tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize("dtype", (dtypes.uint8, dtypes.bfloat16, dtypes.int32, dtypes.float64), ids=lambda d: d.name)
def test_transposes_of_every_remainder(dtype: dtypes.DType) -> None:
    """Rows of the destination of all lengths about whole vectors, runs and lines, near and beyond the caches, beginning anywhere;
    more columns than wait for the rest of a line at a time."""
    rng, vector = np.random.default_rng(dtype.code), 64 // dtype.bytes
    for rows in (vector // 4, vector // 2 + 1, vector - 1, vector, vector + 1, 2 * vector, 3 * vector - 1, 5 * vector + 3):
        for columns in (vector // 4 + 1, vector + 3, (1 << 20) // dtype.bytes // rows + 5000):
            for pad, base in ((0, 0), (int(rng.integers(1, 70)), int(rng.integers(1, 70))), (-rows % vector, 0)):
                pitch, gap = rows + pad, int(rng.integers(0, 3))
                builder, size = ProgramBuilder(), dtype.bytes
                section = builder.copy(rows, columns)
                x = random_bits(rng, rows * (columns + gap), dtype)
                section.operand(builder.add_arg(x.nbytes, READ, dtype), [(columns + gap) * size, size], dtype=dtype)
                target = builder.add_arg((columns * pitch + base) * size, WRITE, dtype)
                section.operand(target, [size, pitch * size], dtype=dtype, base=base * size, mode=WRITE)
                wanted = np.zeros(columns * pitch + base, x.dtype)
                picked = x.reshape(rows, columns + gap)[:, :columns].T
                wanted[base:].reshape(columns, pitch)[:, :rows] = canonical(picked, dtype)
                everywhere(builder.build(), x, wanted)


@pytest.mark.parametrize("dtype", (dtypes.int8, dtypes.float16, dtypes.float32, dtypes.uint64), ids=lambda d: d.name)
@pytest.mark.parametrize("large", (False, True))
def test_rows_repeats_and_reversals(dtype: dtypes.DType, large: bool) -> None:
    """Rows of all lengths about whole vectors and lines, near and past the caches, that begin anywhere; read forwards,
    backwards, and with each element several times."""
    rng, size, line = np.random.default_rng(dtype.code), dtype.bytes, 64 // dtype.bytes
    lengths = (line, 4 * line, 9 * line + 1, 40 * line - 1) if large else (1, line - 1, line, line + 1, 3 * line + 2)
    for columns in lengths:
        rows = (5 << 20) // size // columns if large else 7
        for pad, base in ((0, 0), (line, 0), (3, 5)):
            pitch, x = columns + pad, random_bits(rng, rows * columns, dtype)
            grid, wanted = x.reshape(rows, columns), np.zeros(rows * pitch + base, x.dtype)
            for step in (1, -1):
                wanted[base:].reshape(rows, pitch)[:, :columns] = canonical(grid[:, ::step], dtype)
                builder = ProgramBuilder()
                section = builder.copy(columns, rows)
                section.operand(builder.add_arg(x.nbytes, READ, dtype), [step * size, columns * size], dtype=dtype,
                                base=0 if step > 0 else (columns - 1) * size)  # fmt: skip
                target = builder.add_arg(wanted.nbytes, WRITE, dtype)
                section.operand(target, [size, pitch * size], dtype=dtype, base=base * size, mode=WRITE)
                everywhere(builder.build(), x, wanted)
        for times in (2, 3, 4, 8, 2 * line):
            given = x[: x.size // times] if large else x
            code = program((times, given.size), (0, 1), (1, times), dtype, 0, (given.size, given.size * times))
            everywhere(code, given.copy(), np.repeat(canonical(given, dtype), times))


def everywhere(code: bytes, x: np.ndarray, wanted: np.ndarray) -> None:
    """The bytes wanted, on every instruction set."""
    for name in _native.targets():
        out = np.zeros_like(wanted)
        _native.Program(code).run([x, out], name)
        assert out.tobytes() == wanted.tobytes(), name


def canonical(x: np.ndarray, dtype: dtypes.DType) -> np.ndarray:
    """x, which holds the bits of the dtype, with one NaN."""
    x = x.copy()
    if dtype.name == "bfloat16":
        x[(x.view(np.uint16) & 0x7FFF) > 0x7F80] = 0x7FC0
    elif dtype.kind == "f":
        x[x != x] = np.nan
    return x


def test_both_verifiers_refuse() -> None:
    f = dtypes.float32
    good = ((4, 5), (5, 1), (1, 4), f, 0, (20, 20))
    assert check(program(*good)) is None
    for code, bad in (
        ("OUT_OF_BOUNDS", ((4, 5), (5, 1), (1, 4), f, 1, (20, 20))),
        ("OUT_OF_BOUNDS", ((4, 5), (5, 1), (1, 5), f, 0, (20, 20))),
        ("OVERLAP", ((4, 5), (5, 1), (1, 3), f, 0, (20, 20))),
        ("OVERLAP", ((4, 5), (5, 1), (0, 4), f, 0, (20, 20))),
    ):
        data = program(*bad)
        refused = check(data)
        assert refused is not None and refused.code == code
        with pytest.raises(InvalidBytecodeError, match=code):
            _native.Program(data)


def to_a_row(
    row: tuple[int, ...] = (3, 2), source: tuple[int, ...] = (1, 3), target: tuple[int, ...] = (2, 12),
    rows: int = 5, depth: int = 24,
    dtype: dtypes.DType = dtypes.float32, index: dtypes.DType = dtypes.int64, mode: int = WRITE | GATHER,
    named: int = 2, index_stride: int = 0,
) -> bytes:  # fmt: skip
    """A copy to one row of the destination; strides in elements. Rows of 3 by 2 with gaps, unless other numbers are given."""
    builder, size = ProgramBuilder(), dtype.bytes
    section = builder.copy(*row)
    section.operand(builder.add_arg(6 * size, READ, dtype), [s * size for s in source], dtype=dtype)
    target_arg = builder.add_arg(120 * size, WRITE, dtype)
    section.operand(target_arg, [s * size for s in target], dtype=dtype, mode=mode, index=named, limit=rows, depth=depth * size)
    section.operand(builder.add_arg(8, READ, index), [index_stride], dtype=index)
    return builder.build()


@pytest.mark.parametrize("index", [dtypes.int64, dtypes.int32], ids=str)
@pytest.mark.parametrize("dtype", dtypes.DTYPES, ids=lambda d: d.name)
def test_rows_by_number(dtype: dtypes.DType, index: dtypes.DType) -> None:
    rng = np.random.default_rng(dtype.code)
    code, x = to_a_row(dtype=dtype, index=index), random_bits(rng, 6, dtype)
    assert check(code) is None
    for number in (0, 1, 4, -1, -5):
        named = np.array([number] * (8 // index.bytes), index.numpy)
        want = np.zeros(120, x.dtype)  # what no row covers is cleared
        reference.run(code, [x.copy(), want, named])
        for name in _native.targets():
            got = np.full_like(want, 77)
            _native.Program(code).run([x, got, named], name)
            assert got.tobytes() == want.tobytes(), name
    for number in (5, -6):
        named = np.array([number] * (8 // index.bytes), index.numpy)
        with pytest.raises(DeviceTrap):
            reference.run(code, [x.copy(), np.zeros(120, x.dtype), named])
        for name in _native.targets():
            with pytest.raises(DeviceTrap, match=f"got {number}"):
                _native.Program(code).run([x, np.zeros(120, x.dtype), named], name)


def test_both_verifiers_refuse_rows() -> None:
    assert check(to_a_row()) is None
    for code, bad in (
        ("OUT_OF_BOUNDS", {"rows": 6}),
        ("OUT_OF_BOUNDS", {"depth": 27}),
        ("OVERLAP", {"depth": 11}),
        ("DIMENSION", {"rows": 0}),
        ("OPERAND", {"index": dtypes.float32}),
        ("OPERAND", {"index_stride": 4, "index": dtypes.int32}),
        ("OPERAND", {"named": 0}),
        ("PERMISSION", {"mode": WRITE, "named": 0xFFFF, "rows": 0, "depth": 0}),
    ):
        data = to_a_row(**bad)
        refused = check(data)
        assert refused is not None and refused.code == code, (bad, refused)
        with pytest.raises(InvalidBytecodeError):
            _native.Program(data)


def test_a_copy_onto_itself_leaves_all_as_it_is() -> None:
    """What an output that continues an input is launched with: both at one address."""
    builder = ProgramBuilder()
    x, y, z = builder.add_arg(40), builder.add_arg(48, READ | WRITE), builder.add_arg(8)
    for source, base, size in ((x, 0, 10), (z, 40, 2)):
        section = builder.copy(size)
        section.operand(source, [4])
        section.operand(y, [4], base=base, mode=WRITE)
    memory = np.arange(12, dtype=np.float32)
    memory.view(np.uint32)[3] = 0x7F800001  # a NaN that a copy would make canonical
    before, behind = memory.copy(), np.array([5, 6], np.float32)
    for name in _native.targets():
        _native.Program(builder.build()).run([memory, memory, behind], name)
        assert memory[:10].tobytes() == before[:10].tobytes() and list(memory[10:]) == [5, 6]


def test_what_is_cleared_is_nobody_elses() -> None:
    builder = ProgramBuilder()
    x, y = builder.add_arg(40), builder.add_arg(48, WRITE)
    section = builder.copy(10)
    section.operand(x, [4])
    section.operand(y, [4], mode=WRITE)
    memory = np.arange(12, dtype=np.float32)
    with pytest.raises(DeviceTrap, match="argument 1: bound"):
        _native.Program(builder.build()).run([memory, memory])
    assert list(memory) == list(range(12))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, np.inf, -np.nan])
def test_rows_that_are_filled(value: float) -> None:
    """Sections that only store a number: short rows, rows of one element and rows whose elements lie apart."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        rank = int(rng.integers(1, 5))
        shape = tuple(int(n) for n in rng.integers(1, (300, 40, 12, 6)[rank - 1], rank))
        strides, size = [0] * rank, 1
        for d in rng.permutation(rank):
            strides[d] = size
            size *= shape[d] + int(rng.integers(0, 2))
        builder = ProgramBuilder()
        section = builder.vector(*shape)
        out = section.operand(builder.add_arg(size * 4, WRITE), [s * 4 for s in strides], mode=WRITE)
        section.begin_pass()
        section.word("mov.k", value)
        section.word("store" if strides[0] == 1 else "store_any", out)
        section.end_pass()
        section.word("end_row")
        code = builder.build()
        assert check(code) is None
        want = np.zeros(size, np.float32)
        reference.run(code, [want])
        for name in _native.targets():
            for parts in (0, 3):
                got = np.zeros(size, np.float32)
                _native.Program(code).run([got], name, threads=2, parts=parts)
                assert got.tobytes() == want.tobytes(), name
