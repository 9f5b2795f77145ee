"""Passes that the machine has a loop for (native/known_passes.h): the bits of their words, on every instruction set,
for any number of parts, special values included."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.isa import reference
from dvm_rt.isa.program import READ, WRITE, ProgramBuilder

Array = np.ndarray
SPECIAL = (0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 88.7, -87.4, 200.0)
ROW_LENGTHS = (64, 128, 129, 200, 768, 1024, 16384, 16500)
SPARE_SLOT = 9  # whoever stores there is no known pass any more

# Operands a, b, c, d are read, o is written; slots, row scalars and reductions by number; `mul.k` has a constant.
PASSES = (
    "mov.i a, acc_sum 0", "mov.i a, acc_max 4", "mov.i a, square, acc_sum 0", "mov.i a, sub.r 0, square, acc_sum 0",
    "mov.i a, add.i b, acc_sum 0", "mov.i a, add.i b, sub.r 0, square, acc_sum 0",
    "mov.i a, sub.r 0, exp, store o, acc_sum 0", "mov.i a, mul.r 0, store o", "mov.i a, sub.r 0, exp, acc_sum 0",
    "mov.i a, sub.r 0, store_slot 0, exp, acc_sum 0, mov.s 0, mul.i b, acc_sum 1",
    "mov.i a, mul.r 0, mul.i b, store o", "mov.i a, sub.r 0, mul.r 1, mul.i b, add.i c, store o",
    "mov.i a, add.i b, sub.r 0, mul.r 1, mul.i c, add.i d, store o",
    "mov.i a, mul.k 0.5, store_slot 0, mov.i a, mul.k 0.7, erf, add.k 1, mul.s 0, store o",
    "mov.i a, add.i b, store_slot 0, mul.k 0.5, store_slot 1, mov.s 0, mul.k 0.7, erf, add.k 1, mul.s 1, store o",
    "mov.i a, sigmoid, mul.i a, store o", "mov.i a, sigmoid, mul.i a, mul.i b, store o",
    "mov.i a, sigmoid, store_slot 0, mov.i b, tanh, mul.s 0, store_slot 0, mov.i c, sigmoid, mul.i d, add.s 0, tanh, store_slot 0, "
    "mov.i a, sigmoid, mul.s 0, store o",
)  # fmt: skip


def program(text: str, n: int, rows: int, dtype: dtypes.DType, *, known: bool, past_caches: bool, hints: bool) -> bytes:
    """A pass over rows of two dimensions, its row scalars read from a and its reductions written to t (two a row)."""
    builder, size = ProgramBuilder(), dtype.bytes
    section = builder.vector(n, rows, dtype=dtype)
    names = {}
    for name in "abcdo":
        mode = WRITE if name == "o" else READ
        if name == "o" and "store o" not in text:
            continue
        names[name] = section.operand(builder.add_arg(n * rows * size, mode, dtype), [size, n * size], dtype=dtype, mode=mode)
    scalars = [section.operand(0, [0, n * size], dtype=dtype, base=k * size) for k in range(2)]
    totals = builder.add_arg(2 * rows * size, WRITE, dtype)
    outs = [section.operand(totals, [0, 2 * size], dtype=dtype, mode=WRITE, base=k * size) for k in range(2)]
    for k, scalar in enumerate(scalars):
        section.word("mov.b", scalar)
        section.word("store_row", k)
    section.begin_pass()
    reductions = []
    for number, word in enumerate(text.split(", ")):
        name, _, field = word.partition(" ")
        if hints and name.endswith(".i"):
            section.fetch(names[field], 512)
        if name.startswith("acc_"):
            reductions.append((name.replace("acc", "fold"), int(field)))
        value = names.get(field, field) if field else None
        section.word("store_nt" if past_caches and name == "store" else name, None if value is None else float(value))
        if not known and number == 0:
            section.word("store_slot", SPARE_SLOT)
    section.end_pass(*(r for _, r in reductions))
    for k, out in enumerate(outs):
        section.word(*reductions[k] if k < len(reductions) else ("mov.k", 0))
        section.word("store_per_row", out)
    section.word("end_row")
    return builder.build()


def values(rng: np.random.Generator, count: int, dtype: dtypes.DType, special: bool) -> Array:
    if dtype.kind != "f":
        return rng.integers(-(2**31), 2**31, count).astype(dtype.numpy)
    x = (3 * rng.standard_normal(count)).astype(dtype.numpy)
    if special:
        chosen = rng.random(count) < 0.01
        x[chosen] = rng.choice(SPECIAL, int(chosen.sum())).astype(dtype.numpy)
    return x


def run(code: bytes, arrays: list[Array], outputs: list[int], target: str, parts: int) -> tuple[bytes, ...]:
    got = [a.copy() for a in arrays]
    _native.Program(code).run(got, target, parts=parts, threads=2 if parts else 1)
    return tuple(got[i].tobytes() for i in outputs)


@pytest.mark.parametrize("special", (False, True))
@pytest.mark.parametrize("text", PASSES)
def test_a_loop_has_the_bits_of_its_words(text: str, special: bool) -> None:
    rng = np.random.default_rng(3)
    integers = () if any(f in text for f in ("exp", "sigmoid", "erf", "tanh")) else (dtypes.int32, dtypes.int64)
    for dtype in (dtypes.float32, dtypes.float64, *integers) if not special else (dtypes.float32, dtypes.float64):
        for n in ROW_LENGTHS:
            rows, options = 3, {"past_caches": n % 128 == 0, "hints": n % 3 == 0}
            if ".k 0." in text and dtype.kind != "f":
                continue
            codes = [program(text, n, rows, dtype, known=known, **options) for known in (True, False)]
            numbers = [_native.Program(code).loops for code in codes]
            assert numbers[0][0] > 0 and numbers[1] == [0]
            arrays = [values(rng, n * rows, dtype, special) for _ in range(4)]
            arrays += [np.zeros(n * rows, dtype.numpy)] * ("store o" in text) + [np.zeros(2 * rows, dtype.numpy)]
            written = list(range(4, len(arrays)))
            with np.errstate(all="ignore"):
                seen = {
                    run(code, arrays, written, target, parts)
                    for code in codes for target in _native.targets() for parts in (0, 3)
                }  # fmt: skip
            assert len(seen) == 1, (dtype.name, n)


@pytest.mark.parametrize("special", (False, True))
@pytest.mark.parametrize("text", PASSES)
def test_rows_that_go_together_have_the_bits_of_each_alone(text: str, special: bool) -> None:
    """Short rows go together from 8 on, up to 16 as a group; fewer are walked one by one."""
    rng, alone = np.random.default_rng(5), 4
    for dtype in (dtypes.float32, dtypes.float64):
        for n, rows in ((4, 36), (8, 24), (16, 40), (20, 16), (32, 8), (32, 60), (48, 20), (64, 44)):
            options = {"past_caches": n % 32 == 0, "hints": rows % 3 == 0}
            codes = [program(text, n, rows, dtype, known=known, **options) for known in (True, False)]
            assert _native.Program(codes[0]).loops[0] > 0 and _native.Program(codes[1]).loops == [0]
            arrays = [values(rng, n * rows, dtype, special) for _ in range(4)]
            arrays += [np.zeros(n * rows, dtype.numpy)] * ("store o" in text) + [np.zeros(2 * rows, dtype.numpy)]
            written = list(range(4, len(arrays)))
            some = program(text, n, alone, dtype, known=False, **options)
            cut = [np.split(a, rows // alone) for a in arrays]
            with np.errstate(all="ignore"):
                walked = [run(some, list(few), written, "baseline", 0) for few in zip(*cut, strict=True)]
                want = tuple(b"".join(parts) for parts in zip(*walked, strict=True))
                for code in codes:
                    for target in _native.targets():
                        for parts in (0, 3):
                            assert run(code, arrays, written, target, parts) == want, (dtype.name, n, rows, target, parts)


@pytest.mark.parametrize("text", [t for t in PASSES if not any(f in t for f in ("exp", "sigmoid", "erf", "tanh"))])
def test_a_loop_has_the_bits_of_the_reference(text: str) -> None:
    rng = np.random.default_rng(4)
    for n in ROW_LENGTHS[:6]:
        code = program(text, n, 2, dtypes.float32, known=True, past_caches=False, hints=False)
        arrays = [values(rng, 2 * n, dtypes.float32, special=True) for _ in range(4)]
        arrays += [np.zeros(2 * n, np.float32)] * ("store o" in text) + [np.zeros(4, np.float32)]
        want = [a.copy() for a in arrays]
        with np.errstate(all="ignore"):
            reference.run(code, want)
        for target in _native.targets():
            got = run(code, arrays, list(range(4, len(arrays))), target, 0)
            assert got == tuple(a.tobytes() for a in want[4:]), (target, n)


def test_every_loop_is_tested() -> None:
    numbers = {_native.Program(program(t, 128, 1, dtypes.float32, known=True, past_caches=False,
                                       hints=False)).loops[0] for t in PASSES}
    assert numbers == set(range(1, _native.pass_loops + 1))
