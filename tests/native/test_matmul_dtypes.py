"""Matmul sections in other dtypes than float32, and weights packed in 16 bits: the bits of `isa/matmul.py` on every
instruction set, both verifiers in agreement on what is allowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import InvalidBytecodeError
from dvm_rt.isa import matmul, reference, verifier
from dvm_rt.isa.program import PACKED, READ, WRITE, ProgramBuilder, parse

TARGETS = _native.targets()
Array = np.ndarray
SHAPES = [(1, 1, 1), (1, 7, 33), (3, 64, 32), (7, 5, 31), (14, 20, 64), (15, 33, 65), (29, 3, 100)]
FLOATS = (dtypes.bfloat16, dtypes.float16)
COMPUTE = (dtypes.float64, dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64)
INTEGERS = [
    ("int32", "int32", "int32"), ("uint32", "uint32", "uint32"), ("int64", "int64", "int64"), ("uint64", "uint64", "uint64"),
    ("int32", "int8", "int8"), ("int32", "uint8", "int8"), ("int32", "int8", "uint8"), ("int32", "uint8", "uint8"),
    ("int32", "int32", "int8"), ("int32", "uint8", "int32"),
]  # fmt: skip


def values(dtype: dtypes.DType, *shape: int, seed: int = 0) -> Array:
    random = np.random.default_rng((seed, *shape))
    if dtype.kind == "f":
        return random.standard_normal(shape).astype(dtype.numpy)
    limits = np.iinfo(dtype.numpy)
    return random.integers(limits.min, limits.max, shape, dtype.numpy, endpoint=True)


def program(a: Array, b: Array, compute: dtypes.DType, columns: bool = False) -> tuple[bytes, list[Array]]:
    """C = A @ B over batches; `columns`: both operands are given with their columns contiguous."""
    *batch, m, k = a.shape
    n = b.shape[-1]
    if columns:
        a, b = (np.swapaxes(np.ascontiguousarray(np.swapaxes(x, -1, -2)), -1, -2) for x in (a, b))
    builder = ProgramBuilder()
    section = builder.matmul(n, m, k, *batch[::-1], dtype=compute)
    args = []
    for i, x in enumerate((a, b)):
        inner, outer = x.strides[-1], x.strides[-2]
        rows = (0, outer) if i == 0 else (inner, 0)
        dtype = dtypes.from_numpy(x.dtype)
        arg = builder.add_arg(x.nbytes, dtype=dtype)
        section.operand(arg, [*rows, *x.strides[-3::-1]], dtype=dtype, depth=inner if i == 0 else outer)
        args.append(np.ascontiguousarray(np.swapaxes(x, -1, -2)) if columns else x)
    c = np.zeros((*batch, m, n), compute.numpy)
    section.operand(builder.add_arg(c.nbytes, READ | WRITE, compute), c.strides[::-1], mode=READ | WRITE)
    return builder.build(), [*args, c]


def samples(rng: np.random.Generator) -> list[tuple[bytes, list[Array]]]:
    """Small programs of every combination of dtypes, for fuzzing."""
    found = []
    for names in (*INTEGERS, ("float64",) * 3):
        compute, left, right = (dtypes.BY_NAME[name] for name in names)
        m, k, n = (int(x) for x in rng.integers(1, 6, 3))
        found.append(program(values(left, 2, m, k), values(right, 2, k, n), compute, columns=bool(rng.integers(2))))
    for dtype in FLOATS:
        m, k, n = (int(x) for x in rng.integers(1, 6, 3))
        packed = matmul.pack(half(dtype, k, n).view(np.uint16))
        found.append(weighted(values(dtypes.float32, m, k), packed, n, dtype))
    return found


def results(code: bytes, args: list[Array]) -> list[Array]:
    """Of the reference interpreter, and of every instruction set."""
    assert verifier.check(code) is None
    found = []
    for target in ("", *TARGETS):
        again = [*args[:-1], np.zeros_like(args[-1])]
        if target:
            _native.Program(code).run(again, target)
        else:
            reference.run(code, again)
        found.append(again[-1])
    return found



@pytest.mark.parametrize("names", INTEGERS, ids="-".join)
def test_integers_wrap(names: tuple[str, str, str]) -> None:
    compute, left, right = (dtypes.BY_NAME[name] for name in names)
    for number, (m, k, n) in enumerate([*SHAPES, (2, 1500, 40)]):
        a, b = values(left, m, k), values(right, k, n, seed=1)
        with np.errstate(over="ignore"):
            want = a.astype(compute.numpy) @ b.astype(compute.numpy)
        for got in results(*program(a, b, compute, columns=bool(number % 2))):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("columns", [False, True])
def test_float64_by_the_rule(columns: bool) -> None:
    for m, k, n in [*SHAPES, (2, 1030, 5)]:
        a, b = values(dtypes.float64, m, k), values(dtypes.float64, k, n, seed=1)
        first, *others = results(*program(a, b, dtypes.float64, columns))
        np.testing.assert_allclose(first, a @ b, rtol=1e-12, atol=1e-12)
        for got in others:
            np.testing.assert_array_equal(got.view(np.uint64), first.view(np.uint64))


def test_float64_special_values() -> None:
    a, b = values(dtypes.float64, 5, 6), values(dtypes.float64, 6, 40, seed=1)
    a[0, 0], a[1, 2], b[3, 7], b[4, 8] = np.nan, np.inf, -np.inf, 1e308
    a[4, 4] = -1e308
    first, *others = results(*program(a, b, dtypes.float64))
    assert np.isnan(first[0]).all() and np.all(first[0].view(np.uint64) == 0x7FF8000000000000)
    for got in others:
        np.testing.assert_array_equal(got.view(np.uint64), first.view(np.uint64))


def test_batches() -> None:
    for compute in (dtypes.float64, dtypes.int32):
        a, b = values(compute, 3, 2, 5, 8), values(compute, 3, 2, 8, 33, seed=1)
        for got in results(*program(a, b, compute)):
            np.testing.assert_allclose(got, a @ b, rtol=1e-12, atol=1e-12)


# ---- weights of 16 bits ---------------------------------------------------------------------------------------------


def half(dtype: dtypes.DType, *shape: int) -> Array:
    """Stored elements; every kind of number among them."""
    x = np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    if dtype is dtypes.float16:
        stored = x.astype(np.float16)
        stored.flat[::7] *= np.float16(1e-6)  # subnormal
        return stored
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def pack(b: Array, dtype: dtypes.DType, target: str) -> Array:
    k, n = b.shape
    size = matmul.packed_bytes(n, k, 2)
    builder = ProgramBuilder()
    section = builder.pack(n, k)
    section.operand(builder.add_arg(b.nbytes, dtype=dtype), [b.strides[1]], dtype=dtype, depth=b.strides[0])
    section.operand(builder.add_arg(size, WRITE, dtype), dtype=dtype, mode=WRITE | PACKED)
    code, out = builder.build(), np.zeros(size // 2, np.uint16)
    assert verifier.check(code) is None
    source = b if b.flags.c_contiguous else b.T
    if target:
        _native.Program(code).run([source, out], target)
    else:
        reference.run(code, [source, out])
    return out


def weighted(a: Array, packed: Array, n: int, dtype: dtypes.DType) -> tuple[bytes, list[Array]]:
    (m, k), c = a.shape, np.zeros((len(a), n), np.float32)
    builder = ProgramBuilder()
    section = builder.matmul(n, m, k)
    section.operand(builder.add_arg(a.nbytes), [0, a.strides[0]], depth=4)
    section.operand(builder.add_arg(packed.nbytes, dtype=dtype), dtype=dtype, mode=READ | PACKED)
    section.operand(builder.add_arg(c.nbytes, READ | WRITE), [4, 4 * n], mode=READ | WRITE)
    return builder.build(), [a, packed, c]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("columns", [False, True])
def test_weights_of_16_bits(dtype: dtypes.DType, columns: bool) -> None:
    """The same bits as the widened weights give."""
    for m, k, n in [*SHAPES, (4, 1030, 33), (2, 300, 300)]:
        stored = half(dtype, k, n)
        if columns:
            stored = np.ascontiguousarray(stored.T).T
        wide = matmul.wide(np.ascontiguousarray(stored), dtype)
        a = values(dtypes.float32, m, k)
        want = matmul.matmul(a, wide)
        forms = [pack(stored, dtype, target) for target in ("", *TARGETS)]
        for packed in forms[1:]:
            np.testing.assert_array_equal(packed, forms[0])
        for got in results(*weighted(a, forms[0], n, dtype)):
            np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_stored_number(dtype: dtypes.DType) -> None:
    """All 65,536 of them, widened alike by every instruction set; NaN canonical."""
    stored = np.arange(65536, dtype=np.uint16).reshape(1, -1)
    typed = stored if dtype is dtypes.bfloat16 else stored.view(np.float16)
    code, args = weighted(np.ones((1, 1), np.float32), pack(typed, dtype, TARGETS[0]), 65536, dtype)
    want = matmul.canonical(matmul.wide(typed, dtype)) + np.float32(0)
    for got in results(code, args):
        np.testing.assert_array_equal(got.view(np.uint32), matmul.canonical(want).view(np.uint32))


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(code: bytes) -> None:
    assert verifier.check(code) is not None
    with pytest.raises(InvalidBytecodeError):
        _native.Program(code)


def test_refused_dtypes() -> None:
    a32, a8 = values(dtypes.float32, 4, 4), values(dtypes.int8, 4, 4)
    a16 = values(dtypes.int16, 4, 4)
    for a, b, compute in (
        (a8, a8, dtypes.float32), (a8, a8, dtypes.int64), (a8, a8, dtypes.uint32), (a16, a16, dtypes.int32),
        (a32, a32, dtypes.float64), (a32, a32, dtypes.int32), (a16, a16, dtypes.int16), (a32, a32, dtypes.bfloat16),
    ):  # fmt: skip
        refused(program(a, b, compute)[0])
    stored = half(dtypes.float16, 4, 32).view(np.float16)
    code, _ = program(values(dtypes.float32, 4, 4), stored, dtypes.float32)  # of 16 bits, but not packed
    refused(code)


@pytest.mark.parametrize("compute", COMPUTE, ids=str)
@pytest.mark.parametrize(("m", "k", "n"), [(3, 4, 5), (20, 9, 150), (2, 1030, 70)])
def test_epilogue(compute: dtypes.DType, m: int, k: int, n: int) -> None:
    """(product + bias) * residual of each batch: the operators one after the other, in one kernel."""
    size, builder = compute.bytes, ProgramBuilder()
    a, b, bias, residual = (values(compute, *shape) for shape in ((2, m, k), (k, n), (n,), (2, m, n)))
    section = builder.matmul(n, m, k, 2, dtype=compute)
    section.operand(builder.add_arg(a.nbytes, READ, compute), [0, size * k, size * m * k], depth=size)
    section.operand(builder.add_arg(b.nbytes, READ, compute), [size, 0, 0], depth=size * n)
    c = builder.add_arg(residual.nbytes, READ | WRITE, compute)
    section.operand(c, [size, size * n, size * m * n], mode=READ | WRITE)
    section.word("mov.i", 2)
    section.word("add.i", section.operand(builder.add_arg(bias.nbytes, READ, compute), [size, 0, 0]))
    section.word("mul.i", section.operand(builder.add_arg(residual.nbytes, READ, compute), [size, size * n, size * m * n]))
    section.word("store", 2)
    section.word("end")
    code = builder.build()
    assert verifier.check(code) is None
    with np.errstate(over="ignore"):
        want = np.stack([(matmul.product(one, b, compute) + bias) * two for one, two in zip(a, residual, strict=True)])
    for threads, parts in ((1, 1), (2, 3)):
        for target in TARGETS:
            got = [a, b, np.zeros_like(residual), bias, residual]
            _native.Program(code).run(got, target, threads=threads, parts=parts)
            assert got[2].tobytes() == want.tobytes(), target
    again = [a, b, np.zeros_like(residual), bias, residual]
    reference.run(code, again)
    assert again[2].tobytes() == want.tobytes()


def test_both_verifiers_ask_for_the_same_scratch() -> None:
    """A panel of one slice, in elements of the compute dtype: one byte less is refused."""
    for compute in (dtypes.float64, dtypes.int32):
        a, b = values(compute, 3, 40), values(compute, 40, 50)
        code, _ = program(a, b, compute)

        parsed = parse(code)
        need = parsed.sections[0].scratch_bytes
        assert need == 40 * 32 * compute.bytes
        section = replace(parsed.sections[0], scratch_bytes=need - 1)
        refused(replace(parsed, sections=(section,), checksum=None).to_bytes())


def test_parts_of_a_product() -> None:
    """Cut for several threads into any number of parts: rows, panels, batches, and 16-bit weights."""
    cases = []
    for compute in (dtypes.float64, dtypes.int32):
        for a, b in (((40, 9), (9, 33)), ((3, 9), (9, 130)), ((20, 2, 5), (20, 5, 34)), ((3, 20, 5), (3, 5, 70))):
            cases.append(program(values(compute, *a), values(compute, *b), compute))
    stored = half(dtypes.bfloat16, 30, 200)
    cases += [weighted(values(dtypes.float32, m, 30), pack(stored, dtypes.bfloat16, ""), 200, dtypes.bfloat16) for m in (2, 60)]
    for code, args in cases:
        for target in TARGETS:
            want = None
            for threads, parts in ((1, 1), (2, 2), (3, 7), (2, 64)):
                got = [*args[:-1], np.zeros_like(args[-1])]
                _native.Program(code).run(got, target, threads=threads, parts=parts)
                want = got[-1] if want is None else want
                assert got[-1].tobytes() == want.tobytes()
