"""Rows that the machine takes several at a time (native/many_rows.h): the bits of the reference, on every instruction set, for
any number of parts, special values included."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import DeviceTrap, InvalidBytecodeError
from dvm_rt.isa import reference
from dvm_rt.isa.program import GATHER, READ, WRITE, ProgramBuilder
from dvm_rt.isa.verifier import check

Array = np.ndarray
DTYPES = (dtypes.float32, dtypes.float64, dtypes.int32, dtypes.int64)
SPECIAL = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45)
ROW_LENGTHS = (1, 2, 3, 5, 8, 9, 16, 17, 31, 32, 33, 48, 63, 64, 65)


def values(rng: np.random.Generator, count: int, dtype: dtypes.DType, special: bool) -> Array:
    if dtype.kind != "f":
        return rng.integers(-(2**31), 2**31, count).astype(dtype.numpy)
    x = rng.standard_normal(count).astype(dtype.numpy)
    if special:
        chosen = rng.random(count) < 0.3
        x[chosen] = rng.choice(SPECIAL, int(chosen.sum())).astype(dtype.numpy)
    return x


def same(code: bytes, args: list[Array], outputs: tuple[int, ...]) -> None:
    want = [x.copy() for x in args]
    reference.run(code, want)
    program = _native.Program(code)
    for target in _native.targets():
        for parts in (0, 3):
            got = [x.copy() for x in args]
            program.run(got, target, parts=parts)
            for i in outputs:
                assert got[i].tobytes() == want[i].tobytes(), (target, parts)


def add_array(builder: ProgramBuilder, section, size: int, strides: list[int], mode: int, dtype: dtypes.DType) -> int:
    width = dtype.bytes
    return section.operand(builder.add_arg(size * width, mode, dtype), [s * width for s in strides], dtype=dtype, mode=mode)


def norm_program(n: int, rows: int, outer: int, strides: list[int], size: int, dtype: dtypes.DType, buffer: bool) -> bytes:
    """All four reductions, values kept in slots and row scalars, one value a row read and written, a row buffer."""
    builder = ProgramBuilder()
    section = builder.vector(n, rows, outer, dtype=dtype)
    x = add_array(builder, section, size, strides, READ, dtype)
    each = add_array(builder, section, rows * outer, [0, 1, rows], READ, dtype)
    out = add_array(builder, section, size, strides, WRITE, dtype)
    totals = add_array(builder, section, rows * outer, [0, 1, rows], WRITE, dtype)
    kept = section.row_buffer() if buffer else None
    contiguous = strides[0] == 1
    read = ("mov.i", x) if contiguous else ("load", x)
    section.begin_pass()
    for word in (read, ("acc_max", 4), ("acc_min", 8), ("add.b", each), ("acc_sum", 0), ("acc_prod", 12)):
        section.word(*word)
    section.end_pass(0, 4, 8, 12)
    for word in (("fold_max", 4), ("store_row", 0), ("fold_min", 8), ("add.b", each), ("store_row", 1),
                 ("fold_prod", 12), ("store_row", 2),
                 ("fold_sum", 0), ("add.r", 2), ("mul.k", 3), ("store_row", 3), ("store_per_row", totals)):  # fmt: skip
        section.word(*word)
    section.begin_pass()
    for word in (read, ("sub.r", 0), ("store_slot", 0), ("mul.k", 2), ("add.s", 0), ("acc_sum", 1),
                 *([("store", kept)] if buffer else [])):
        section.word(*word)
    section.end_pass(1)
    section.word("fold_sum", 1)
    section.word("store_row", 4)
    section.begin_pass()
    for word in (("mov.i", kept) if buffer else read, ("add.r", 4), ("max.r", 1), ("sub.r", 3),
                 ("store" if contiguous else "store_any", out)):
        section.word(*word)
    section.end_pass()
    section.word("end_row")
    return builder.build()


@pytest.mark.parametrize("special", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_short_rows_together(dtype: dtypes.DType, special: bool) -> None:
    rng = np.random.default_rng(1)
    for n in ROW_LENGTHS:
        for pitch in ((n, n + 3) if n > 16 else (n + n % 2 * 3,)):
            rows, outer = int(rng.integers(32, 45)), 1 + n % 2
            size = pitch * rows * outer
            code = norm_program(n, rows, outer, [1, pitch, pitch * rows], size, dtype, buffer=pitch == n)
            args = [values(rng, size, dtype, special), values(rng, rows * outer, dtype, special)]
            with np.errstate(all="ignore"):
                same(code, [*args, np.zeros(size, dtype.numpy), np.zeros(rows * outer, dtype.numpy)], (2, 3))


LONGER_ROWS = (64, 65, 100, 127, 128, 129, 256, 300, 384, 640, 768, 1000, 2048, 2050)


@pytest.mark.parametrize("special", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_longer_rows_in_groups(dtype: dtypes.DType, special: bool) -> None:
    """By their words, whole strips and tails; groups that are not full, in lines of few rows."""
    rng = np.random.default_rng(8)
    for n in LONGER_ROWS:
        pitch, rows, outer = n + n % 3, int(rng.integers(2, 20)), 1 + n % 2
        size = pitch * rows * outer
        code = norm_program(n, rows, outer, [1, pitch, pitch * rows], size, dtype, buffer=n % 4 == 0)
        args = [values(rng, size, dtype, special), values(rng, rows * outer, dtype, special)]
        with np.errstate(all="ignore"):
            same(code, [*args, np.zeros(size, dtype.numpy), np.zeros(rows * outer, dtype.numpy)], (2, 3))


def softmax_and_norm_program(n: int, rows: int, dtype: dtypes.DType, store: str) -> bytes:
    """Passes that have loops of their own: softmax by a row buffer, and a norm of the same rows."""
    builder = ProgramBuilder()
    section = builder.vector(n, rows, dtype=dtype)
    x = add_array(builder, section, n * rows, [1, n], READ, dtype)
    scale = add_array(builder, section, n, [1, 0], READ, dtype)
    softmax, norm = (add_array(builder, section, n * rows, [1, n], WRITE, dtype) for _ in range(2))
    kept = section.row_buffer()
    passes = (
        ((("mov.i", x), ("acc_max", 4)), (("fold_max", 4), ("store_row", 0))),
        ((("mov.i", x), ("sub.r", 0), ("exp",), ("store", kept), ("acc_sum", 0)), (("fold_sum", 0), ("recip",), ("store_row", 1))),
        ((("mov.i", kept), ("mul.r", 1), (store, softmax)), ()),
        ((("mov.i", x), ("acc_sum", 1)), (("fold_sum", 1), ("div.k", n), ("store_row", 2))),
        ((("mov.i", x), ("sub.r", 2), ("square",), ("acc_sum", 2)), (("fold_sum", 2), ("rsqrt",), ("store_row", 3))),
        ((("mov.i", x), ("sub.r", 2), ("mul.r", 3), ("mul.i", scale), ("add.i", scale), (store, norm)), ()),
    )  # fmt: skip
    for words, row_words in passes:
        section.begin_pass()
        for word in words:
            section.word(*word)
        section.end_pass(*(word[1] for word in words if word[0].startswith("acc")))
        for word in row_words:
            section.word(*word)
    section.word("end_row")
    return builder.build()


@pytest.mark.parametrize("store", ("store", "store_nt"))
@pytest.mark.parametrize("special", (False, True))
@pytest.mark.parametrize("dtype", (dtypes.float32, dtypes.float64), ids=lambda d: d.name)
def test_known_passes_in_groups(dtype: dtypes.DType, special: bool, store: str) -> None:
    """Each row has the bytes that it has alone, on every instruction set."""
    rng = np.random.default_rng(9)
    for n in LONGER_ROWS:
        alone = _native.Program(softmax_and_norm_program(n, 1, dtype, store))
        for rows in (2, 3, 7, 17):
            x, scale = values(rng, n * rows, dtype, special).reshape(rows, n), values(rng, n, dtype, special)
            want = np.zeros((2, rows, n), dtype.numpy)
            for row in range(rows):
                one = [x[row].copy(), scale, *np.zeros((2, n), dtype.numpy)]
                alone.run(one, "baseline")
                want[:, row] = one[2:]
            program = _native.Program(softmax_and_norm_program(n, rows, dtype, store))
            for target in _native.targets():
                for parts in (0, 3):
                    got = np.zeros((2, rows * n), dtype.numpy)
                    program.run([x.reshape(-1).copy(), scale, *got], target, parts=parts)
                    assert got.tobytes() == want.tobytes(), (n, rows, target, parts)


@pytest.mark.parametrize("stored", (dtypes.bfloat16, dtypes.int8), ids=lambda d: d.name)
def test_groups_of_rows_stored_in_another_dtype(stored: dtypes.DType) -> None:
    """Rows longer than a block are none, however few bytes they have."""
    rng = np.random.default_rng(10)
    for n, rows in ((130, 5), (512, 9), (4000, 3), (16384, 2), (17000, 2)):
        builder = ProgramBuilder()
        section = builder.vector(n, rows)
        x = add_array(builder, section, n * rows, [1, n], READ, stored)
        out = add_array(builder, section, rows, [0, 1], WRITE, dtypes.float32)
        section.begin_pass()
        section.word("load", x)
        section.word("acc_sum", 0)
        section.end_pass(0)
        section.word("fold_sum", 0)
        section.word("store_per_row", out)
        section.word("end_row")
        given = rng.integers(-100, 100, n * rows).astype(stored.numpy)
        same(builder.build(), [given, np.zeros(rows, np.float32)], (1,))


@pytest.mark.parametrize("special", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_sums_of_products(dtype: dtypes.DType, special: bool) -> None:
    """A convolution's taps, in slots that are read again, are left, or change on the way."""
    rng = np.random.default_rng(6)
    for n in (*ROW_LENGTHS, 100, 128, 129, 200):
        rows, outer, pitch = int(rng.integers(31, 45)), 1 + n % 2, n + 2
        builder, size = ProgramBuilder(), pitch * rows * outer + 8
        section = builder.vector(n, rows, outer, dtype=dtype)
        argument, factors = builder.add_arg(size * dtype.bytes, READ, dtype), builder.add_arg(200 * dtype.bytes, READ, dtype)
        strides = [s * dtype.bytes for s in (1, pitch, pitch * rows)]
        x = [section.operand(argument, strides, dtype=dtype, base=i * dtype.bytes) for i in range(3)]
        w = [section.operand(factors, [0, i % 2 * dtype.bytes, 3 * dtype.bytes], dtype=dtype, base=i * dtype.bytes) for i in range(3)]
        outs = [add_array(builder, section, size, [1, pitch, pitch * rows], WRITE, dtype) for _ in range(3)]
        section.begin_pass()
        for word in (("mov.i", x[0]), ("mul.b", w[0]), ("store_slot", 0), ("store_slot", 1),
                     ("mov.i", x[1]), ("mul.b", w[1]), ("add.s", 0), ("store_slot", 0),
                     ("mov.i", x[2]), ("mul.b", w[2]), ("add.s", 0), ("store_slot", 0),
                     ("mov.i", x[2]), ("mul.b", w[1]), ("add.s", 1), ("store_slot", 0),
                     ("mov.i", x[1]), ("mul.b", w[2]), ("add.s", 0), ("store", outs[0]),
                     ("mov.i", x[0]), ("mul.b", w[1]), ("add.s", 0), ("store_slot", 1), ("store", outs[1]),
                     ("mov.i", x[0]), ("mul.b", w[0]), ("add.s", 1), ("mul.s", 0), ("store", outs[2])):  # fmt: skip
            section.word(*word)
        section.end_pass()
        section.word("end_row")
        args = [values(rng, size, dtype, special), values(rng, 200, dtype, special), *(np.zeros(size, dtype.numpy) for _ in range(3))]
        with np.errstate(all="ignore"):
            same(builder.build(), args, (2, 3, 4))


@pytest.mark.parametrize("stride", (-3, -1, 0, 2, 3, 40))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_rows_of_elements_that_lie_apart(dtype: dtypes.DType, stride: int) -> None:
    """In rows that the machine takes together, alone, and in several strips."""
    rng = np.random.default_rng(7)
    for n, rows in ((1, 40), (2, 33), (7, 64), (16, 32), (17, 35), (40, 50), (64, 32), (6, 5), (20, 3), (100, 40), (150, 2), (300, 3)):
        reach = (n - 1) * abs(stride) + 1
        size = reach * rows
        builder = ProgramBuilder()
        section = builder.vector(n, rows, dtype=dtype)
        base = (reach - 1) * dtype.bytes if stride < 0 else 0
        x = section.operand(builder.add_arg(size * dtype.bytes, READ, dtype), [stride * dtype.bytes, reach * dtype.bytes], dtype=dtype,
                            base=base)
        out = add_array(builder, section, n * rows, [1, n], WRITE, dtype)
        section.begin_pass()
        for word in (("load", x), ("store_slot", 0), ("add.s", 0), ("store", out)):
            section.word(*word)
        section.end_pass()
        section.word("end_row")
        with np.errstate(all="ignore"):
            same(builder.build(), [values(rng, size, dtype, True), np.zeros(n * rows, dtype.numpy)], (1,))


@pytest.mark.parametrize("special", (False, True))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_rows_side_by_side(dtype: dtypes.DType, special: bool) -> None:
    rng = np.random.default_rng(2)
    for n, rows in ((1, 16), (2, 131), (3, 33), (64, 17), (100, 40), (127, 16), (128, 33), (129, 150), (300, 20)):
        pitch, outer = rows + int(rng.integers(0, 4)), 1 + n % 2
        size = pitch * n * outer
        code = norm_program(n, rows, outer, [pitch, 1, pitch * n], size, dtype, buffer=False)
        args = [values(rng, size, dtype, special), values(rng, rows * outer, dtype, special)]
        with np.errstate(all="ignore"):
            same(code, [*args, np.zeros(size, dtype.numpy), np.zeros(rows * outer, dtype.numpy)], (2, 3))


def test_a_vector_shared_by_rows_side_by_side() -> None:
    n, rows, dtype = 200, 150, dtypes.float32
    builder, rng = ProgramBuilder(), np.random.default_rng(3)
    section = builder.vector(n, rows)
    x = add_array(builder, section, n * rows, [rows, 1], READ, dtype)
    weights = add_array(builder, section, n, [1, 0], READ, dtype)
    out = add_array(builder, section, rows, [0, 1], WRITE, dtype)
    section.begin_pass()
    for word in (("load", x), ("mul.i", weights), ("sigmoid",), ("acc_sum", 2)):
        section.word(*word)
    section.end_pass(2)
    for word in (("fold_sum", 2), ("sqrt",), ("store_per_row", out), ("end_row",)):
        section.word(*word)
    args = [values(rng, n * rows, dtype, False), values(rng, n, dtype, False), np.zeros(rows, np.float32)]
    want = (1 / (1 + np.exp(-args[0].reshape(n, rows).astype(float) * args[1][:, None]))).sum(0) ** 0.5
    got = [x.copy() for x in args]
    for target in _native.targets():
        _native.Program(builder.build()).run(got, target)
        np.testing.assert_allclose(got[2], want, rtol=1e-5)


@pytest.mark.parametrize("words", ((("acc_sum", 0), ("acc_sum", 0)), (("acc_max", 5), ("neg",), ("acc_max", 5))),
                         ids=("sum", "max"))
def test_a_reduction_takes_one_value_of_a_pass(words: tuple[tuple, ...]) -> None:
    """Rows that are folded at once know of one only."""
    for twice in (False, True):
        builder, last = ProgramBuilder(), words[-1][1]
        section = builder.vector(16, 40)
        x = add_array(builder, section, 640, [1, 16], READ, dtypes.float32)
        out = add_array(builder, section, 40, [0, 1], WRITE, dtypes.float32)
        section.begin_pass()
        for word in (("mov.i", x), *(words if twice else words[-1:])):
            section.word(*word)
        section.end_pass(last)
        for word in ((f"fold_{words[-1][0][4:]}", last), ("store_per_row", out), ("end_row",)):
            section.word(*word)
        code = builder.build()
        assert (check(code) is None) is not twice
        if twice:
            with pytest.raises(InvalidBytecodeError):
                _native.Program(code)
        else:
            _native.Program(code)


def take_program(width: int, count: int, table_rows: int, dtype: dtypes.DType, index: dtypes.DType, store: str,
                 stored: dtypes.DType | None = None, batch: int = 1) -> bytes:  # fmt: skip
    """`batch` tables, each with indices of its own; computed in `dtype`, stored in `stored`."""
    stored = stored or dtype
    builder, size = ProgramBuilder(), stored.bytes
    section = builder.vector(width, count, batch, dtype=dtype)
    table = builder.add_arg(batch * table_rows * width * size, READ, stored)
    section.operand(table, (size, 0, table_rows * width * size), dtype=stored, mode=READ | GATHER, index=1, limit=table_rows,
                    depth=width * size)  # fmt: skip
    section.operand(builder.add_arg(batch * count * index.bytes, READ, index), (0, index.bytes, count * index.bytes), dtype=index)
    section.operand(builder.add_arg(batch * count * width * size, WRITE, stored), (size, size * width, count * size * width),
                    dtype=stored, mode=WRITE)  # fmt: skip
    section.word("gather", 0)
    section.begin_pass()
    section.word("mov.i" if stored is dtype else "load", 0)
    section.word(store, 2)
    section.end_pass()
    section.word("end_row")
    return builder.build()


@pytest.mark.parametrize("store", ["store", "store_nt", "store_any"])
@pytest.mark.parametrize("index", [dtypes.int64, dtypes.int32], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gathered_rows(dtype: dtypes.DType, index: dtypes.DType, store: str) -> None:
    rng = np.random.default_rng(4)
    for width in (1, 3, 16, 17, 64, 200):
        count, table_rows = int(rng.integers(2, 60)), int(rng.integers(1, 40))
        table = values(rng, table_rows * width, dtype, special=True)
        picks = rng.integers(-table_rows, table_rows, count).astype(index.numpy)
        same(take_program(width, count, table_rows, dtype, index, store),
             [table, picks, np.zeros(count * width, dtype.numpy)], (2,))


@pytest.mark.parametrize("compute", (dtypes.float32, dtypes.int32, dtypes.uint32, dtypes.float64, dtypes.int64), ids=str)
def test_gathered_rows_of_every_dtype(compute: dtypes.DType) -> None:
    """Blocks of indices that are full and that are not, of several tables; any bits, bools that are neither 0 nor 1 included."""
    rng = np.random.default_rng(5)
    for stored in dtypes.DTYPES:
        for width, count, batch in ((64 // stored.bytes, 300, 1), (5, 129, 3), (64, 128, 2), (900, 13, 2)):
            bits = rng.integers(0, 256, 7 * batch * width * stored.bytes, np.uint8)
            bits[rng.random(len(bits)) < 0.2] = 0xFF
            table = np.frombuffer(bits.tobytes(), np.uint8 if stored is dtypes.bool_ else stored.numpy)
            picks, out = rng.integers(-7, 7, batch * count), np.zeros(batch * count * width, table.dtype)
            for store in ("store_any", "store_any_nt"):
                same(take_program(width, count, 7, compute, dtypes.int64, store, stored, batch), [table, picks, out], (2,))


@pytest.mark.parametrize("rows", (3, 96, 130, 224, 225, 5000))
def test_gathered_rows_of_a_large_table(rows: int) -> None:
    """One that is asked for ahead, in memory that whole lines go past the caches of, and that does not begin at a line."""
    rng = np.random.default_rng(rows)
    for width in (16, 32, 64, 128, 130, 768):
        table = rng.standard_normal(20_000 * width, np.float32)
        picks, space = rng.integers(-20_000, 20_000, rows), np.zeros(rows * width + 32, np.float32)
        program = _native.Program(take_program(width, rows, 20_000, dtypes.float32, dtypes.int64, "store_nt"))
        for skip in (0, 4):
            out = space[-space.ctypes.data // 4 % 16 + skip :][: rows * width]
            for target in _native.targets():
                out[:] = 0
                program.run([table, picks, out], target)
                assert np.array_equal(out.reshape(rows, width), table.reshape(-1, width)[picks]), target


@pytest.mark.parametrize("table_rows", (5, 20_000))
def test_gathered_rows_of_tables_that_overlap(table_rows: int) -> None:
    """Each begins a row after the one before it, near and far."""
    rng, width, count = np.random.default_rng(6), 16, 700
    builder = ProgramBuilder()
    section = builder.vector(width, count, dtype=dtypes.float32)
    table = builder.add_arg((table_rows + count) * width * 4, READ, dtypes.float32)
    section.operand(table, (4, width * 4), mode=READ | GATHER, index=1, limit=table_rows, depth=width * 4)
    section.operand(builder.add_arg(count * 8, READ, dtypes.int64), (0, 8), dtype=dtypes.int64)
    section.operand(builder.add_arg(count * width * 4, WRITE, dtypes.float32), (4, width * 4), mode=WRITE)
    section.word("gather", 0)
    section.begin_pass()
    section.word("mov.i", 0)
    section.word("store", 2)
    section.end_pass()
    section.word("end_row")
    x = rng.standard_normal((table_rows + count, width), np.float32)
    picks, out = rng.integers(-table_rows, table_rows, count), np.zeros((count, width), np.float32)
    program = _native.Program(builder.build())
    for target in _native.targets():
        out[:] = 0
        program.run([x, picks, out], target)
        assert np.array_equal(out, x[np.arange(count) + picks % table_rows]), target


@pytest.mark.parametrize("count, table_rows, first", ((50, 10, 30), (700, 10, 300), (700, 20_000, 95), (700, 20_000, 600)))
def test_a_gathered_row_that_is_not_there(count: int, table_rows: int, first: int) -> None:
    program = _native.Program(take_program(16, count, table_rows, dtypes.float32, dtypes.int64, "store"))
    for wrong in (table_rows, -table_rows - 1, 2**62, 2**63 - 1, -(2**63)):
        picks = np.arange(count) % table_rows
        picks[first], picks[first + 10] = wrong, table_rows + 1
        for target in _native.targets():
            with pytest.raises(DeviceTrap, match=f"gathered row, got {wrong},"):
                program.run([np.zeros(table_rows * 16, np.float32), picks, np.zeros(count * 16, np.float32)], target)
