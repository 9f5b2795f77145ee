"""Kernels on several threads: the bits of one thread, whatever the number of threads and of parts.

`parts` cuts every section into so many, however small it is, so that small programs meet every border; `lots` draws who runs
what, since a thread may be late, asleep or never come. That the pool gets that right is the business of the stress program of
scripts/threads_tsan, under the thread sanitizer."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvm_rt import _native, dtypes
from dvm_rt.errors import DeviceTrap
from dvm_rt.isa import layout
from dvm_rt.isa.program import GATHER, PACKED, READ, WORKSPACE, WRITE, ProgramBuilder

from tests.isa.random_programs import RandomProgram
from tests.native import test_matmul as products
from tests.native.mixed_programs import mixed

BLOCK = layout.LIMITS["BLOCK"]
TARGETS = _native.targets()
CUTS = ((1, 5), (2, 2), (3, 7), (5, 3), (8, 64))  # threads, parts
Array = np.ndarray


def same_on_threads(program: bytes, args: list[Array], outputs: list[int], target: str = "") -> None:
    loaded = _native.Program(program)

    def run(**how: int) -> list[bytes]:
        own = [a.copy() if i in outputs else a for i, a in enumerate(args)]
        loaded.run(own, target, **how)
        return [own[i].tobytes() for i in outputs]

    want = run()
    for threads, parts in CUTS:
        assert run(threads=threads, parts=parts) == want, f"{threads} threads, {parts} parts, {target}"


# ---- vector ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_random_programs(target: str, seed: int) -> None:
    case = RandomProgram(np.random.default_rng(seed), exact=False).case()
    same_on_threads(case.program, case.args, case.outputs, target)


@pytest.mark.parametrize("target", TARGETS)
def test_parts_begin_anywhere_in_many_dimensions(target: str) -> None:
    """dims 7 x 5 x 1 x 3 x 2 x 4 walked forwards, backwards and broadcast, cut into every number of parts."""
    dims, builder = (7, 5, 1, 3, 2, 4), ProgramBuilder()
    x = np.arange(np.prod(dims), dtype=np.float32)
    y = np.arange(7 * 3, dtype=np.float32) * 100
    section = builder.vector(*dims)
    dense = [4 * int(np.prod(dims[:d])) for d in range(6)]
    a = section.operand(builder.add_arg(x.nbytes), (4, -28, 0, *dense[3:]), base=28 * 4)
    b = section.operand(builder.add_arg(y.nbytes), (4, 0, 0, 28))
    out = section.operand(builder.add_arg(x.nbytes, WRITE), dense, mode=WRITE)
    section.begin_pass()
    for word in (("mov.i", a), ("add.i", b), ("store", out)):
        section.word(*word)
    section.end_pass()
    section.word("end_row")
    loaded = _native.Program(builder.build())
    want = x.reshape(4, 2, 3, 1, 5, 7)[..., ::-1, :] + y.reshape(3, 1, 1, 7)
    for parts in range(1, 125):
        got = np.empty_like(want)
        loaded.run([x, y, got], target, threads=2, parts=parts)
        np.testing.assert_array_equal(got, want, f"{parts} parts")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", [BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 77, 5 * BLOCK - 1])
def test_random_programs_of_long_rows(target: str, row: int) -> None:
    for seed in range(6 if target != "baseline" else 2):
        case = RandomProgram(np.random.default_rng((seed, row)), exact=False, asked=row).case()
        same_on_threads(case.program, case.args, case.outputs, target)


def softmax(row: int, rows: int) -> bytes:
    builder = ProgramBuilder()
    section = builder.vector(row, rows)
    x = section.operand(builder.add_arg(4 * row * rows), (4, 4 * row))
    y = section.operand(builder.add_arg(4 * row * rows, WRITE), (4, 4 * row), mode=WRITE)
    total = section.operand(builder.add_arg(4 * rows, WRITE), (0, 4), mode=WRITE)
    kept = section.row_buffer()
    section.begin_pass()
    for word in (("mov.i", x), ("acc_max", 4)):
        section.word(*word)
    section.end_pass(4)
    for word in (("fold_max", 4), ("store_row", 0)):
        section.word(*word)
    section.begin_pass()
    for word in (("mov.i", x), ("sub.r", 0), ("exp",), ("acc_sum", 0), ("store", kept)):
        section.word(*word)
    section.end_pass(0)
    for word in (("fold_sum", 0), ("store_per_row", total), ("recip",), ("store_row", 1)):
        section.word(*word)
    section.begin_pass()
    for word in (("mov.i", kept), ("mul.r", 1), ("store", y)):
        section.word(*word)
    section.end_pass()
    section.word("end_row")
    return builder.build()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("row", "rows"), [(300 * BLOCK // 2, 1), (9 * BLOCK + 5, 3), (2 * BLOCK + 5, 40)])
def test_long_rows_pass_by_pass(row: int, rows: int, target: str) -> None:
    """More blocks than reduction lanes, several rows, and rows that are shared as rows."""
    if target == "baseline":
        row, rows = row // 4, min(rows, 3)
    code, x = softmax(row, rows), products.random(rows, row)
    same_on_threads(code, [x, np.empty_like(x), np.empty(rows, np.float32)], [1, 2], target)
    (_, parts, _), = _native.Program(code).split
    assert parts > 1 or target == "baseline"


@pytest.mark.parametrize("target", TARGETS)
def test_whoever_adds_up_the_blocks_may_have_run_none(target: str) -> None:
    """The first section of a machine: now and then others take all parts before the caller."""
    row, builder = 4 * BLOCK, ProgramBuilder()
    section = builder.vector(row, 1)
    x = section.operand(builder.add_arg(4 * row), (4,))
    most, product = (section.operand(builder.add_arg(4, WRITE), (0, 4), mode=WRITE) for _ in range(2))
    section.begin_pass()
    for word in (("mov.i", x), ("acc_max", 4), ("acc_prod", 12)):
        section.word(*word)
    section.end_pass(4, 12)
    for word in (("fold_max", 4), ("store_per_row", most), ("fold_prod", 12), ("store_per_row", product), ("end_row",)):
        section.word(*word)
    loaded, args = _native.Program(builder.build()), [np.full(row, -1, np.float32), np.empty(1, np.float32),
                                                      np.empty(1, np.float32)]
    for lots in range(1, 30):
        loaded.run(args, target, threads=4, parts=2, lots=lots)
        assert (args[1][0], args[2][0]) == (-1, 1), lots


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(30))
def test_whoever_runs_a_part(seed: int, target: str) -> None:
    """Programs of sections of all kinds, one after the other, in parts that any of the threads runs in any order; now
    and then one that has run nothing so far, or nothing of this dtype."""
    rng = np.random.default_rng(seed)
    case = mixed(rng, int(rng.integers(1, 6)) if target != "baseline" else 1, long_rows=0.4)
    loaded = _native.Program(case.program)

    def run(**how: int) -> list[bytes]:
        own = [a.copy() if i in case.outputs else a for i, a in enumerate(case.args)]
        loaded.run(own, target, **how)
        return [own[i].tobytes() for i in case.outputs]

    want = run()
    for lots in range(1, 7):
        threads, parts = int(rng.integers(2, 9)), int(rng.choice([2, 3, 7, 64]))
        assert run(threads=threads, parts=parts, lots=lots) == want, f"{threads} threads, {parts} parts, lots {lots}"


def gather_rows(index: Array, table: Array) -> bytes:
    builder = ProgramBuilder()
    section = builder.vector(table.shape[1], len(index))
    which = section.operand(builder.add_arg(index.nbytes, READ, dtypes.int64), (0, 8), dtype=dtypes.int64)
    rows = section.operand(builder.add_arg(table.nbytes), (4,), mode=READ | GATHER, index=which, limit=len(table),
                           depth=4 * table.shape[1])
    place = builder.add_arg(4 * len(index) * table.shape[1], WRITE)
    out = section.operand(place, (4, 4 * table.shape[1]), mode=WRITE)
    section.word("gather", rows)
    section.begin_pass()
    section.word("mov.i", rows)
    section.word("store", out)
    section.end_pass()
    section.word("end_row")
    return builder.build()


def test_the_first_trap_in_row_order_wins() -> None:
    rng, table = np.random.default_rng(5), np.ones((9, 40), np.float32)
    for _ in range(40):
        index = rng.integers(-9, 9, 300)
        bad = np.sort(rng.choice(300, 5, replace=False))
        index[bad] = 1000 + bad
        loaded, out = _native.Program(gather_rows(index, table)), np.empty((300, 40), np.float32)
        messages = set()
        for threads, parts in ((1, 0), *CUTS, (4, 300)):
            with pytest.raises(DeviceTrap) as caught:
                loaded.run([index, table, out], threads=threads, parts=parts)
            messages.add(str(caught.value))
        assert messages == {f"machine: section 0, word 0: gathered row, got {1000 + bad[0]}, allowed -9 .. 9 - 1"}


@pytest.mark.parametrize(("rows", "columns"), [(40_000, 40), (3, 400_000)])
def test_one_thread_goes_to_and_fro_over_what_does_not_fit_into_l2(rows: int, columns: int) -> None:
    """The second section, from its last part on, reads what the first has written."""
    builder, x = ProgramBuilder(), products.random(rows, columns)
    places = [builder.add_arg(x.nbytes, mode) for mode in (READ, READ | WRITE, WRITE)]
    for source, target in zip(places, places[1:], strict=False):
        section = builder.vector(columns, rows)
        read = section.operand(source, (4, 4 * columns))
        write = section.operand(target, (4, 4 * columns), mode=WRITE)
        section.begin_pass()
        for word in (("mov.i", read), ("mul.k", 0.5), ("add.k", 1), ("store", write)):
            section.word(*word)
        section.end_pass()
        section.word("end_row")
    loaded = _native.Program(builder.build())
    assert all(parts > 1 for _, parts, _ in loaded.split)
    half, quarter = np.full_like(x, np.nan), np.full_like(x, np.nan)
    loaded.run([x, half, quarter])
    np.testing.assert_array_equal(half, x / 2 + 1)
    np.testing.assert_array_equal(quarter, half / 2 + 1)


def test_the_first_trap_wins_from_the_last_part_on() -> None:
    index, table = np.zeros(20_000, np.int64), np.ones((9, 40), np.float32)
    index[[700, 19_000]] = 99, 98
    loaded, out = _native.Program(gather_rows(index, table)), np.empty((20_000, 40), np.float32)
    assert loaded.split[0][1] > 1
    for runs in (0, 1, 2):
        with pytest.raises(DeviceTrap, match="got 99"):
            loaded.time_run([index, table, out], runs)


def test_columns_stay_together() -> None:
    """A sum over rows is not cut into columns narrower than 1 KiB: cache lines would be read by several parts."""
    for columns, parts in ((64, 1), (511, 1), (1024, 4)):
        builder = ProgramBuilder()
        section = builder.vector(4000, columns)
        x = section.operand(builder.add_arg(16_000 * columns), (4 * columns, 4))
        out = section.operand(builder.add_arg(4 * columns, WRITE), (0, 4), mode=WRITE)
        section.begin_pass()
        section.word("load", x)
        section.word("acc_sum", 0)
        section.end_pass(0)
        section.word("fold_sum", 0)
        section.word("store_per_row", out)
        section.word("end_row")
        assert _native.Program(builder.build()).split[0][:2] == (columns, parts)


def test_sections_stay_in_order() -> None:
    """Each section reads what the one before wrote, in another order of rows."""
    rows, columns, builder = 64, 50, ProgramBuilder()
    x = products.random(rows, columns)
    source, size = builder.add_arg(x.nbytes), 4 * columns
    place = builder.add_arg(x.nbytes, WRITE)
    builder.workspace_bytes = 2 * x.nbytes
    for step in range(6):
        section = builder.vector(columns, rows)
        first = (source, 0) if step == 0 else (WORKSPACE, (step - 1) % 2 * x.nbytes)
        then = (place, 0) if step == 5 else (WORKSPACE, step % 2 * x.nbytes)
        a = section.operand(first[0], (4, -size), base=first[1] + (rows - 1) * size)
        b = section.operand(then[0], (4, size), mode=WRITE, base=then[1])
        section.begin_pass()
        for word in (("mov.i", a), ("mul.k", 1.5), ("store", b)):
            section.word(*word)
        section.end_pass()
        section.word("end_row")
    same_on_threads(builder.build(), [x, np.empty_like(x)], [1])


# ---- matmul and pack ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 9)])
@pytest.mark.parametrize("shape", [(1, 300, 257), (5, 40, 130), (29, 64, 100), (97, 33, 129), (300, 20, 17), (20, 1030, 40)])
def test_products(shape: tuple[int, int, int], batch: tuple[int, ...], target: str) -> None:
    m, k, n = shape
    a, b = products.random(*batch, m, k), products.random(*batch, k, n)
    for laid_out in products.LAYOUTS.values():
        code, args, c = products.program(a, laid_out(b))
        same_on_threads(code, args, [0], target)
    packed = products.pack(b.reshape(-1, k, n)[0], target)
    same_on_threads(*products.program(a, b.reshape(-1, k, n)[0], packed)[:2], [0], target)


@pytest.mark.parametrize("target", TARGETS)
def test_products_with_an_epilogue(target: str) -> None:
    for m, k, n in ((60, 50, 300), (3, 64, 257), (200, 30, 40)):
        rows = products.random(m, n, seed=1), products.random(m, 1, seed=2)
        epilogue = products.dense_epilogue(products.random(n, seed=3), *rows)
        code, args, _ = products.program(products.random(m, k), products.random(k, n), epilogue=epilogue)
        same_on_threads(code, args, [0], target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(40, 257), (2100, 33), (1500, 200)])
def test_packing(shape: tuple[int, int], target: str) -> None:
    (k, n), builder, b = shape, ProgramBuilder(), products.random(*shape)
    from dvm_rt.isa import matmul

    size = matmul.packed_bytes(n, k)
    section = builder.pack(n, k)
    section.operand(builder.add_arg(b.nbytes), [4], depth=4 * n)
    section.operand(builder.add_arg(size, WRITE), mode=WRITE | PACKED)
    same_on_threads(builder.build(), [b, np.full(size // 4, 7, np.float32)], [1], target)


# ---- the pool -------------------------------------------------------------------------------------------------------


def rows_of_exp(rows: int, columns: int) -> bytes:
    builder = ProgramBuilder()
    section = builder.vector(columns, rows)
    x = section.operand(builder.add_arg(4 * rows * columns), (4, 4 * columns))
    y = section.operand(builder.add_arg(4 * rows * columns, WRITE), (4, 4 * columns), mode=WRITE)
    section.begin_pass()
    for word in (("mov.i", x), ("exp",), ("store", y)):
        section.word(*word)
    section.end_pass()
    section.word("end_row")
    return builder.build()


def test_large_sections_are_cut_without_being_asked() -> None:
    x = products.random(512, 512)
    loaded, got, want = _native.Program(rows_of_exp(512, 512)), np.empty_like(x), np.empty_like(x)
    assert loaded.split[0][1] > 1 and _native.Program(rows_of_exp(4, 64)).split[0][1] == 1
    loaded.run([x, want])
    loaded.run([x, got], threads=3)
    assert got.tobytes() == want.tobytes()


def test_threads_end_with_their_machine() -> None:
    x = products.random(64, 64)
    before, loaded = len(os.listdir("/proc/self/task")), _native.Program(rows_of_exp(64, 64))
    for _ in range(20):
        loaded.run([x, np.empty_like(x)], threads=8, parts=16)
    assert len(os.listdir("/proc/self/task")) <= before  # a thread of somebody else may have ended too


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_number_of_threads_is_checked(threads: int) -> None:
    x = products.random(4, 4)
    with pytest.raises(ValueError, match="allowed 1 to 64"):
        _native.Program(rows_of_exp(4, 4)).run([x, np.empty_like(x)], threads=threads)
