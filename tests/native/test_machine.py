"""The machine: tail calls, accuracy of its mathematics, real kernels against float64, and what it does around a run:
bindings, traps, cleared memory, rounding mode. That each instruction gives the bits of its definition is tested over the
whole table in tests/isa/test_oracle.py."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import DeviceTrap
from dvm_rt.isa import reference, table
from dvm_rt.isa.checksum import checksum
from dvm_rt.isa.program import GATHER, READ, WORKSPACE, WRITE, ProgramBuilder, SectionBuilder
from dvm_rt.isa.table import Group

TARGETS = _native.targets()
Array = np.ndarray
on_each_target = pytest.mark.parametrize("target", TARGETS)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def bits(x: Array) -> Array:
    return np.ascontiguousarray(x).view(f"u{x.itemsize}")


def on_all_targets(program: bytes, inputs: list[Array], shape: tuple[int, ...]) -> Array:
    """The one output of a program, the same bits on every target."""
    loaded, results = _native.Program(program), []
    for target in TARGETS:
        results.append(np.full(shape, 7, np.float32))
        loaded.run([*inputs, results[-1]], target)
        np.testing.assert_array_equal(bits(results[-1]), bits(results[0]), f"{target} against {TARGETS[0]}")
    return results[0]


def elementwise(n: int, *words: tuple, inputs: int = 1) -> bytes:
    """One row of n elements: inputs, then words, then one output."""
    builder = ProgramBuilder()
    section = builder.vector(n)
    for _ in range(inputs):
        section.operand(builder.add_arg(4 * n), (4,))
    out = section.operand(builder.add_arg(4 * n, WRITE), (4,), mode=WRITE)
    section.begin_pass()
    for word in words:
        section.word(*word)
    section.word("store", out)
    section.end_pass()
    section.word("end_row")
    return builder.build()


def test_targets_are_listed_best_first() -> None:
    assert TARGETS[-1] == "baseline" and len(set(TARGETS)) == len(TARGETS)
    with pytest.raises(ValueError, match="^machine: target: .*, got neon, allowed "):
        _native.Program(elementwise(1, ("mov.i", 0))).run([normal(1), normal(1)], "neon")


def test_a_target_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVM_RT_TARGET", "neon")
    with pytest.raises(ValueError, match="^machine: DVM_RT_TARGET: not on this CPU, got neon, allowed "):
        _native.Program(elementwise(1, ("mov.i", 0))).run([normal(1), normal(1)])


def test_checksum_is_the_one_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    for n in (*range(70), 1000, 4099):
        data = rng.bytes(n)
        assert _native.checksum(data) == checksum(data)


# ---- tail calls -----------------------------------------------------------------------------------------------------


def every_instruction(row: int, rows: int) -> tuple[bytes, list[Array]]:
    """A program that runs every opcode of a vector section in each of `rows` rows."""
    builder = ProgramBuilder()
    section = builder.vector(row, rows)
    index, x, column = np.zeros(1, np.int32), normal(row), normal(1)
    i = section.operand(builder.add_arg(4, dtype=dtypes.int32), dtype=dtypes.int32)
    full = section.operand(builder.add_arg(x.nbytes), (4,))
    per_row = section.operand(builder.add_arg(4))
    gathered = section.operand(1, (4,), mode=READ | GATHER, index=i, limit=1, depth=4)
    buffer = section.row_buffer()
    out = section.operand(builder.add_arg(4 * rows, WRITE), (0, 4), mode=WRITE)
    number = section.index((1, 1))
    where = {"s": 0, "i": full, "k": 0.5, "r": 0, "b": per_row}

    def arithmetic(forms: str) -> None:
        for instruction, form in table.OPCODES:
            if "float32" not in instruction.compute_dtypes:
                continue
            if instruction.group is Group.BINARY and form in forms:
                section.word(f"{instruction.name}.{form}", where[form])
            elif instruction.group is Group.UNARY:
                section.word(instruction.name)

    section.word("gather", gathered)
    section.word("mov.k", 1.5)
    section.word("store_row", 0)
    arithmetic("krb")
    section.begin_pass()
    section.word("load", gathered)
    section.word("store_slot", 0)
    arithmetic("sikrb")
    for word, value in (("store", buffer), ("store_nt", buffer), ("store_any", buffer), ("store_any_nt", buffer), ("acc_sum", 0),
                        ("acc_max", 4), ("acc_min", 8), ("acc_prod", 12), ("run_sum", 0), ("run_prod", 1), ("iota", number)):
        section.word(word, value)
    section.fetch(full)
    section.end_pass(0, 4, 8, 12)
    section.word("fold_max", 4)
    section.word("fold_min", 8)
    section.word("fold_prod", 12)
    section.word("fold_sum", 0)
    section.word("store_per_row", out)
    section.word("end_row")
    used = {word.op for word in section.words}
    known = {op for op, (instruction, _) in enumerate(table.OPCODES) if "float32" in instruction.compute_dtypes}
    assert known - used == {table.opcode("end")}
    return builder.build(), [index, x, column, np.zeros(rows, np.float32)]


@on_each_target
@pytest.mark.parametrize("row", [1, 5, 40, 128, 200])
def test_every_handler_ends_in_a_tail_call(target: str, row: int) -> None:
    """About 150 words a row, 3,000 rows: one word that called instead of jumping would need 24 KB of stack or more for
    each 8 bytes of its frame, all of them 3.6 MB. The thread has 256 KB."""
    program, args = every_instruction(row, 3000)
    loaded, failures = _native.Program(program), []

    def run() -> None:
        try:
            loaded.run(args, target)
        except BaseException as error:  # noqa: BLE001: told to the thread that waits
            failures.append(error)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert not failures


# ---- mathematics ----------------------------------------------------------------------------------------------------

SAMPLE = np.concatenate([
    np.arange(0, 2**32, 40009, dtype=np.uint64).astype(np.uint32).view(np.float32),
    np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 2**-126, 88.72283, 88.72284, -87.33654, -87.33655, -103.9,
              -104.1, 1, -1, 0.5, 0.927734375, 4, 9.1, -9.1, 44, 87, -87], np.float32),
    (np.float32([88.72284, -87.33655, 0.9277344]).view(np.int32)[:, None] + np.arange(-40, 40,
        dtype=np.int32)).view(np.float32).ravel(),
    np.linspace(-110, 110, 20011, dtype=np.float32),
    np.linspace(-6, 6, 20011, dtype=np.float32),
    np.linspace(0.5, 2, 5003, dtype=np.float32),
])  # fmt: skip
FLOAT64: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "sigmoid": lambda x: np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x))),
}


def ulps(got: Array, want: Array) -> Array:
    """Distance of float32 results from float64 ones, in units of the last place of the rounded result."""
    rounded = want.astype(np.float32)
    unit = np.maximum(np.spacing(np.abs(rounded)).astype(np.float64), 2.0**-149)
    distance = np.abs(got.astype(np.float64) - want) / unit
    return np.where((bits(got) == bits(rounded)) | (np.isnan(got) & np.isnan(want)), 0, np.nan_to_num(distance, nan=np.inf))


@pytest.mark.parametrize("name", FLOAT64)
def test_accuracy_over_all_exponents(name: str) -> None:
    got = on_all_targets(elementwise(SAMPLE.size, ("mov.i", 0), (name,)), [SAMPLE], SAMPLE.shape)
    with np.errstate(all="ignore"):
        want = FLOAT64[name](SAMPLE.astype(np.float64))
        if name == "exp":
            want = np.where(want < 2.0**-126, 0, want)
        error = ulps(got, want)
    worst = int(np.argmax(error))
    assert error[worst] <= table.BY_NAME[name].ulp, f"{error[worst]} ulp at {SAMPLE[worst]!r}: {got[worst]!r}"
    assert np.all(bits(got[np.isnan(got)]) == 0x7FC00000)


def test_exp_makes_no_subnormals() -> None:
    x = np.linspace(-110, -80, 30001, dtype=np.float32)
    y = on_all_targets(elementwise(x.size, ("mov.i", 0), ("exp",)), [x], x.shape)
    assert np.all((y == 0) | (y >= np.float32(2.0**-126))) and not np.signbit(y).any()
    assert np.all(y[x > -87.3365] > 0) and np.all(y[x < -87.3366] == 0)


# ---- kernels --------------------------------------------------------------------------------------------------------


def kernel(shape: tuple[int, int], inputs: int, vectors: int = 0) -> tuple[ProgramBuilder, SectionBuilder, int]:
    """Operands of a kernel over rows: full inputs, inputs that are one row, one full output (its number is returned)."""
    (m, n), builder = shape, ProgramBuilder()
    section = builder.vector(n, m)
    for i in range(inputs + vectors):
        section.operand(builder.add_arg(4 * n * (m if i < inputs else 1)), (4, 4 * n if i < inputs else 0))
    out = section.operand(builder.add_arg(4 * m * n, WRITE), (4, 4 * n), mode=WRITE)
    return builder, section, out


def put(section: SectionBuilder, text: str) -> None:
    for word in text.split(","):
        name, _, value = word.strip().partition(" ")
        section.word(name, float(value) if "." in value else int(value) if value else None)


def softmax(shape: tuple[int, int]) -> bytes:
    builder, section, out = kernel(shape, 1)
    e = section.row_buffer()
    section.begin_pass()
    put(section, "mov.i 0, acc_max 4")
    section.end_pass(4)
    put(section, "fold_max 4, store_row 0")
    section.begin_pass()
    put(section, f"mov.i 0, sub.r 0, exp, store {e}, acc_sum 0")
    section.end_pass(0)
    put(section, "fold_sum 0, recip, store_row 1")
    section.begin_pass()
    put(section, f"mov.i {e}, mul.r 1, store {out}")
    section.end_pass()
    section.word("end_row")
    return builder.build()


def layernorm(shape: tuple[int, int]) -> bytes:
    builder, section, out = kernel(shape, 1, 2)
    mean = float(np.float32(1 / shape[1]))
    section.begin_pass()
    put(section, "mov.i 0, acc_sum 0")
    section.end_pass(0)
    section.word("fold_sum", 0)
    section.word("mul.k", mean)
    section.word("store_row", 0)
    section.begin_pass()
    put(section, "mov.i 0, sub.r 0, square, acc_sum 0")
    section.end_pass(0)
    section.word("fold_sum", 0)
    section.word("mul.k", mean)
    put(section, "add.k 0.00001, rsqrt, store_row 1")
    section.begin_pass()
    put(section, f"mov.i 0, sub.r 0, mul.r 1, mul.i 1, add.i 2, store_nt {out}")
    section.end_pass()
    section.word("end_row")
    return builder.build()


ROW_LENGTHS = [1, 3, 15, 16, 17, 31, 64, 65, 100, 127, 128, 129, 191, 256, 333, 1000]


def test_softmax_rows_of_every_kind() -> None:
    for n in ROW_LENGTHS:
        x = normal(5, n) * 4
        y = on_all_targets(softmax((5, n)), [x], x.shape)
        e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
        np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=2e-6, atol=1e-37)


def test_layernorm_rows_of_every_kind() -> None:
    for n in ROW_LENGTHS:
        x, w, b = normal(5, n), normal(n, seed=1), normal(n, seed=2)
        y = on_all_targets(layernorm((5, n)), [x, w, b], x.shape)
        d = x - x.astype(np.float64).mean(1, keepdims=True)
        np.testing.assert_allclose(y, d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-5) * w + b, rtol=2e-5, atol=2e-5)


def test_a_row_does_not_know_its_neighbours() -> None:
    x = normal(9, 300)
    together = on_all_targets(softmax((9, 300)), [x], x.shape)
    for row in range(9):
        np.testing.assert_array_equal(on_all_targets(softmax((1, 300)), [x[row : row + 1]], (1, 300))[0], together[row])


def test_rows_longer_than_a_block() -> None:
    for n in (16384, 16385, 50000):
        x = normal(2, n)
        program, expected = softmax((2, n)), np.zeros((2, n), np.float32)
        y = on_all_targets(program, [x], x.shape)
        reference.run(program, [x, expected])
        np.testing.assert_allclose(y, expected, rtol=1e-5)
        np.testing.assert_allclose(y.sum(1, dtype=np.float64), 1, rtol=1e-6)


REDUCTIONS = {
    "as it is": [("acc_sum", 0)], "largest": [("acc_max", 4)], "squared": [("square",), ("acc_sum", 3)],
    "centred": [("sub.r", 0), ("square",), ("acc_sum", 1)], "smallest": [("acc_min", 8)],
    "more words": [("sub.r", 0), ("square",), ("abs",), ("acc_sum", 1)], "only centred": [("sub.r", 0), ("acc_sum", 1)],
}  # fmt: skip


@pytest.mark.parametrize("dtype", ("float32", "float64", "int32"))
@pytest.mark.parametrize("ahead", (None, 0, 2048))
@pytest.mark.parametrize("what", REDUCTIONS)
def test_passes_that_only_reduce(what: str, ahead: int | None, dtype: str) -> None:
    """Rows up to a block and beyond it, a pass twice over: both times from empty lanes, to the reference's bits."""
    compute, kind, rows, rng = dtypes.BY_NAME[dtype], np.dtype(dtype), 3, np.random.default_rng(5)
    for n in (63, 64, 127, 128, 129, 300, 1024, 1100, 16384, 16500):
        builder = ProgramBuilder()
        section, size = builder.vector(n, rows, dtype=compute), compute.bytes
        x = section.operand(builder.add_arg(size * n * rows, dtype=compute), (size, size * n))
        centre = section.operand(builder.add_arg(size * rows, dtype=compute), (0, size))
        outs = [section.operand(builder.add_arg(size * rows, WRITE, compute), (0, size), mode=WRITE) for _ in range(2)]
        section.word("mov.b", centre)
        section.word("store_row", 0)
        for out in outs:
            section.begin_pass()
            if ahead is not None:
                section.fetch(x, ahead)
            section.word("mov.i", x)
            for word in REDUCTIONS[what]:
                section.word(*word)
            name, reduction = REDUCTIONS[what][-1]
            section.end_pass(reduction)
            section.word(name.replace("acc", "fold"), reduction)
            section.word("store_per_row", out)
        section.word("end_row")
        program = builder.build()
        values = (rng.standard_normal((rows, n)) * 100).astype(kind)
        if kind.kind == "f":
            values[1, n // 2], values[2] = np.nan, -0.0
            values[2, n - 1] = 0.0
        arrays = [values, (rng.standard_normal(rows) * 10).astype(kind), np.zeros(rows, kind), np.zeros(rows, kind)]
        reference.run(program, want := [a.copy() for a in arrays])
        for target in TARGETS:
            _native.Program(program).run(got := [a.copy() for a in arrays], target)
            for a, b in zip(got[2:], want[2:], strict=True):
                np.testing.assert_array_equal(bits(a), bits(b), f"{n} {target}")


def test_unaligned_outputs_of_streaming_stores() -> None:
    n = 1000
    for offset in (1, 3, 15):
        x = normal(n)
        raw = np.full(n + 32, 7, np.float32)
        y = raw[offset : offset + n]
        builder, section, out = kernel((1, n), 1)
        section.begin_pass()
        put(section, f"mov.i 0, add.k 1.0, store_nt {out}")
        section.end_pass()
        section.word("end_row")
        for target in TARGETS:
            y[:] = 7
            _native.Program(builder.build()).run([x, y], target)
            np.testing.assert_array_equal(y, x + 1)
            assert np.all(raw[:offset] == 7) and np.all(raw[offset + n :] == 7)


# ---- around a run ---------------------------------------------------------------------------------------------------


def gather_program(rows: int, limit: int, n: int) -> bytes:
    builder = ProgramBuilder()
    section = builder.vector(n, rows)
    i = section.operand(builder.add_arg(8 * rows, dtype=dtypes.int64), (0, 8), dtype=dtypes.int64)
    x = section.operand(builder.add_arg(4 * n * limit), (4,), mode=READ | GATHER, index=i, limit=limit, depth=4 * n)
    y = section.operand(builder.add_arg(4 * n * rows, WRITE), (4, 4 * n), mode=WRITE)
    section.word("gather", x)
    section.begin_pass()
    put(section, f"mov.i {x}, store {y}")
    section.end_pass()
    section.word("end_row")
    return builder.build()


@on_each_target
def test_a_gathered_row_outside_traps_and_the_next_run_is_right(target: str) -> None:
    table_, out = normal(7, 33), np.zeros((4, 33), np.float32)
    loaded = _native.Program(gather_program(4, 7, 33))
    for bad in (7, -8, 2**62, -(2**63)):
        with pytest.raises(DeviceTrap, match=rf"^machine: section 0, word 0: gathered row, got {bad}, allowed -7 \.\. 7 - 1$"):
            loaded.run([np.array([1, 2, bad, 3]), table_, out], target)
    index = np.array([-7, 6, 0, -1])
    loaded.run([index, table_, out], target)
    np.testing.assert_array_equal(out, table_[index])


def test_bindings_that_do_not_fit_trap_before_anything_runs() -> None:
    loaded = _native.Program(elementwise(8, ("mov.i", 0)))
    x, y = normal(8), np.full(8, 7, np.float32)
    frozen = y.copy()
    frozen.flags.writeable = False
    crooked = np.zeros(40, np.uint8)[1:37]
    for args, number in (([x, y[:7]], 1), ([x[:7], y], 0), ([x, frozen], 1), ([crooked[:32], y], 0), ([x], 1), ([], 0)):
        with pytest.raises(DeviceTrap, match=f"^machine: argument {number}: "):
            loaded.run(args)
        assert np.all(y == 7)
    loaded.run([x, y])
    np.testing.assert_array_equal(x, y)


def test_bindings_that_overlap_trap_before_anything_runs() -> None:
    """Views of one array, of which one is written: whole, shifted by one element, by all but one, both written."""
    loaded = _native.Program(elementwise(8, ("mov.i", 0), ("add.i", 1), inputs=2))
    memory, other = normal(40), normal(8)
    before = memory.copy()
    for first in (0, 1, 7, -1, -7):
        read, written = memory[10 + first : 18 + first], memory[10:18]
        for args, number in (([read, other, written], 0), ([other, read, written], 1), ([read, read, written], 0)):
            shared = 4 * (8 - abs(first))
            with pytest.raises(DeviceTrap,
                               match=f"^machine: argument 2: written, .* of argument {number}, got {shared} bytes of both, allowed 0$"):
                loaded.run(args)
            with pytest.raises(DeviceTrap, match="^machine: argument 2: written"):
                loaded.time_run(args, 1)
    np.testing.assert_array_equal(memory, before)
    loaded.run([memory[:8], memory[:8], memory[8:16]])
    np.testing.assert_array_equal(memory[8:16], before[:8] + before[:8])


def test_two_outputs_that_overlap_trap() -> None:
    builder = ProgramBuilder()
    section = builder.vector(8)
    x, y, z = (section.operand(builder.add_arg(32, mode), (4,), mode=mode) for mode in (READ, WRITE, WRITE))
    section.begin_pass()
    put(section, f"mov.i {x}, store {y}, neg, store {z}")
    section.end_pass()
    section.word("end_row")
    loaded, memory, values = _native.Program(builder.build()), np.zeros(16, np.float32), normal(8)
    for first in range(8):
        with pytest.raises(DeviceTrap, match=f"of argument 2, got {32 - 4 * first} bytes"):
            loaded.run([values, memory[:8], memory[first : first + 8]])
    assert not memory.any()
    loaded.run([values, memory[:8], memory[8:]])
    np.testing.assert_array_equal(memory, np.concatenate([values, -values]))


def test_what_a_program_leaves_out_of_an_output_is_zero() -> None:
    builder = ProgramBuilder()
    x, y = builder.add_arg(400), builder.add_arg(800, WRITE)
    section = builder.vector(100)
    source, out = section.operand(x, (4,)), section.operand(y, (8,), mode=WRITE, base=4)
    section.begin_pass()
    put(section, f"mov.i {source}, store_any {out}")
    section.end_pass()
    section.word("end_row")
    values = normal(100)
    assert _native.Program(builder.build()).cleared == [y]
    got = on_all_targets(builder.build(), [values], (200,))
    np.testing.assert_array_equal(got[1::2], values)
    assert np.all(bits(got[::2]) == 0)


def test_workspace_that_nobody_wrote_reads_as_zero() -> None:
    def program(read_at: int) -> bytes:
        builder = ProgramBuilder()
        x, y = builder.add_arg(4096), builder.add_arg(4096, WRITE)
        builder.workspace_bytes = 8192
        for source, target, base in (((x, 0), (WORKSPACE, 0), 0), ((WORKSPACE, read_at), (y, 0), 0)):
            section = builder.vector(1024)
            a = section.operand(source[0], (4,), base=source[1])
            b = section.operand(target[0], (4,), mode=WRITE, base=base)
            section.begin_pass()
            put(section, f"mov.i {a}, store {b}")
            section.end_pass()
            section.word("end_row")
        return builder.build()

    values = normal(1024)
    assert _native.Program(program(0)).cleared == [] and _native.Program(program(4)).cleared == [WORKSPACE]
    for _ in range(3):  # memory that the allocator hands out again is not clean
        np.testing.assert_array_equal(on_all_targets(program(0), [values], (1024,)), values)
        half = on_all_targets(program(2048), [values], (1024,))
        np.testing.assert_array_equal(half, np.concatenate([values[512:], np.zeros(512, np.float32)]))


def test_the_rounding_mode_of_the_host_does_not_matter() -> None:
    libm = ctypes.CDLL("libm.so.6")
    upward, nearest = 0x800, 0
    x = normal(1000)
    program = elementwise(1000, ("mov.i", 0), ("sigmoid",), ("div.k", 3.0))
    expected = on_all_targets(program, [x], x.shape)
    loaded, got = _native.Program(program), np.zeros_like(x)
    for target in TARGETS:
        libm.fesetround(upward)
        try:
            loaded.run([x, got], target)
            after = libm.fegetround()
        finally:
            libm.fesetround(nearest)
        assert after == upward
        np.testing.assert_array_equal(bits(got), bits(expected))


def test_subnormals_are_kept() -> None:
    x = np.array([1e-45, -1e-45, 1e-39, 2.0**-126], np.float32)
    y = on_all_targets(elementwise(4, ("mov.i", 0), ("mul.k", 0.5), ("add.i", 0)), [x], (4,))
    np.testing.assert_array_equal(bits(y), bits(x * np.float32(0.5) + x))
    assert y[2] != 0


@on_each_target
def test_lanes_change_their_dtype_only_where_long_rows_are_reduced(target: str) -> None:
    """Totals of one compute dtype between sections of another that reduce long rows, short ones (in registers), or nothing."""
    rng, length = np.random.default_rng(9), 1000
    args = [rng.standard_normal(length).astype(np.float32), rng.integers(-(2**40), 2**40, length)]
    builder, kinds = ProgramBuilder(), (dtypes.float32, dtypes.int64)
    for x, dtype in zip(args, kinds, strict=True):
        builder.add_arg(x.nbytes, dtype=dtype)
    steps = "0 max 1000, 1 no 300, 0 min 999, 0 max 128, 1 min 1000, 0 sum 40, 0 no 500, 1 prod 20, 1 max 777, 0 max 1000, 1 sum 1000"
    for step in steps.split(", "):
        kind, reduction, row = step.split()
        dtype, count = kinds[int(kind)], int(row)
        section = builder.vector(count, dtype=dtype)
        given = section.operand(int(kind), (dtype.bytes,))
        section.begin_pass()
        section.word("mov.i", given)
        if reduction == "no":
            args.append(np.zeros(count, dtype.numpy))
            section.word("store", section.operand(builder.add_arg(args[-1].nbytes, WRITE, dtype), (dtype.bytes,), mode=WRITE))
            section.end_pass()
        else:
            args.append(np.zeros(1, dtype.numpy))
            lane = 4 * ("sum", "max", "min", "prod").index(reduction)
            section.word(f"acc_{reduction}", lane)
            section.end_pass(lane)
            section.word(f"fold_{reduction}", lane)
            section.word("store_per_row", section.operand(builder.add_arg(args[-1].nbytes, WRITE, dtype), mode=WRITE))
        section.word("end_row")
    program = builder.build()
    wanted, found = ([x.copy() for x in args] for _ in range(2))
    reference.run(program, wanted)
    for _ in range(2):  # the lanes are left as the last section had them
        _native.Program(program).run(found, target)
        assert [x.tobytes() for x in found] == [x.tobytes() for x in wanted]
