"""Compute dtypes other than float32, end to end: plans that name them are encoded, verified twice and run; conversions over
every float16 and bfloat16; random bits against published ones. Single instructions: tests/isa/test_oracle.py."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.dtypes import DType
from dvm_rt.fusion.plan import READ, STREAM, WRITE, Plan, PlanBuilder
from dvm_rt.isa import convert, table, verifier
from dvm_rt.isa.program import READ as READS
from dvm_rt.isa.program import WRITE as WRITES
from dvm_rt.isa.program import ProgramBuilder, parse
from dvm_rt.isa.table import mnemonic

from tests.native.test_encode import encode, run_everywhere

Array = np.ndarray
COMPUTE = [dtypes.BY_NAME[name] for name in table.COMPUTE_DTYPES]
each_dtype = pytest.mark.parametrize("dtype", COMPUTE, ids=str)


def ranked(dtype: DType, stored: DType, flags: int = 0) -> Plan:
    """y[i, j] = x[i, j] * 3 + number of the element; its sum, smallest and product, and the length, once a row. x is
    `stored`, as are the values a row; y has the compute dtype."""
    b = PlanBuilder()
    m, n = b.symbol(0, 0), b.symbol(0, 1)
    one = b.const(1)
    x = b.input(b.parameter(stored, [m, n]))
    y, *rows = b.output(dtype, [m, n]), *(b.output(stored, [m, one]) for _ in range(4))
    kernel = b.kernel("VECTOR", (n, m), flags=flags, dtype=dtype)
    source = kernel.input(kernel.arg(x, READ, stored, (one, n)))
    number = kernel.input(kernel.index((one, n)))
    out = kernel.arg(y, WRITE, dtype, (one, n))
    ends = [kernel.arg(row, WRITE, stored, (b.const(0), one)) for row in rows]
    value = kernel.binary("add", kernel.binary("mul", source, kernel.const(3)), number)
    kernel.output(value, out)
    made = (kernel.sum(value), kernel.min(value), kernel.prod(source), kernel.binary("add", kernel.max(source), kernel.size(n)))
    for end, total in zip(ends, made, strict=True):
        kernel.output(total, end)
    return b.build()


@each_dtype
@pytest.mark.parametrize("stored", [dtypes.int8, dtypes.uint16, dtypes.float16, dtypes.bfloat16, dtypes.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (2, 64), (5, 200), (1, 128)])
def test_a_kernel_of_every_dtype(dtype: DType, stored: DType, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape)
    plan = ranked(dtype, stored)
    assert Plan.from_bytes(plan.to_bytes()) == plan
    program = encode(plan, shape)
    assert verifier.check(program) is None
    numbers = rng.integers(0, 3, shape).astype(np.float64)  # small: every partial sum is exact, so order does not matter
    x = convert.convert_store(numbers, stored)
    outputs = [np.full(shape, 7, dtype.numpy), *(np.full((shape[0], 1), 7, stored.numpy) for _ in range(4))]
    expected, got = run_everywhere(program, [x, *outputs])
    for want, have in zip(expected, got, strict=True):
        assert want.tobytes() == have.tobytes()
    value = (numbers * 3 + np.arange(numbers.size).reshape(shape)).astype(dtype.numpy)
    np.testing.assert_array_equal(got[1], value)
    total = value.sum(1, keepdims=True, dtype=dtype.numpy)
    smallest = value.min(1, keepdims=True)
    np.testing.assert_array_equal(got[2], convert.convert_store(total, stored))
    np.testing.assert_array_equal(got[3], convert.convert_store(smallest, stored))
    length = (numbers.max(1, keepdims=True) + shape[1]).astype(dtype.numpy)
    np.testing.assert_array_equal(got[5], convert.convert_store(length, stored))


@each_dtype
def test_long_rows_of_narrow_storage_are_streamed(dtype: DType) -> None:
    """Working sets beyond L2: stores past the caches, also where they convert."""
    b = PlanBuilder()
    n = b.symbol(0, 0)
    x, y = b.input(b.parameter(dtypes.int8, [n])), b.output(dtypes.int16, [n])
    kernel = b.kernel("VECTOR", (n,), dtype=dtype, flags=STREAM)
    source = kernel.input(kernel.arg(x, READ, dtypes.int8, (b.const(1),)))
    kernel.output(kernel.binary("add", source, source), kernel.arg(y, WRITE, dtypes.int16, (b.const(1),)))
    size = 1 << 21
    program = encode(b.build(), (size,))
    assert "store_any_nt" in [mnemonic(w.op) for s in parse(program).sections for w in s.words]
    values = np.random.default_rng(1).integers(-128, 128, size).astype(np.int8)
    wanted = 2 * values.astype(np.int16)
    if dtype.kind == "u":
        wanted = values.astype(np.int64).astype(dtype.numpy) * dtype.numpy.type(2)
        wanted = wanted.astype(np.int16)
    for target in _native.targets():
        out = np.zeros(size, np.int16)
        _native.Program(program).run([values, out], target)
        np.testing.assert_array_equal(out, wanted)


def test_constants_of_64_bits() -> None:
    """A constant that no double holds."""
    b = PlanBuilder()
    n, k = b.symbol(0, 0), 2**61 + 12345
    x, y = b.input(b.parameter(dtypes.int64, [n])), b.output(dtypes.int64, [n])
    kernel = b.kernel("VECTOR", (n,), dtype=dtypes.int64)
    source = kernel.input(kernel.arg(x, READ, dtypes.int64, (b.const(1),)))
    product = kernel.binary("mul", source, kernel.const(-k))
    kernel.output(kernel.binary("add", product, kernel.const(k)), kernel.arg(y, WRITE, dtypes.int64, (b.const(1),)))
    plan = b.build()
    assert Plan.from_bytes(plan.to_bytes()) == plan
    values = np.arange(-40, 40)
    _, got = run_everywhere(encode(plan, (80,)), [values, np.zeros(80, np.int64)])
    np.testing.assert_array_equal(got[1], values * np.int64(-k) + np.int64(k))


# ---- conversions ------------------------------------------------------------------------------------------------------


def converted(values: Array, source: DType, compute: DType, target: DType) -> Array:
    """Stored as `source`, loaded into `compute`, stored as `target`: the same on every instruction set."""
    builder, n = ProgramBuilder(), values.size
    section = builder.vector(n, dtype=compute)
    x = section.operand(builder.add_arg(values.nbytes, READS, source), (source.bytes,), dtype=source)
    out = np.zeros(n, np.uint8 if target.kind == "b" else target.numpy)
    y = section.operand(builder.add_arg(out.nbytes, WRITES, target), (target.bytes,), dtype=target, mode=WRITES)
    section.begin_pass()
    section.word("load", x)
    section.word("store_any", y)
    section.end_pass()
    section.word("end_row")
    _, got = run_everywhere(builder.build(), [values, out])
    return got[1]


HALVES = np.arange(1 << 16, dtype=np.uint16)


def test_every_float16_survives_float32_and_float64() -> None:
    halves = HALVES.view(np.float16)
    wanted = np.where(np.isnan(halves), np.float16(np.nan), halves)
    for compute in (dtypes.float32, dtypes.float64):
        np.testing.assert_array_equal(converted(halves, dtypes.float16, compute, dtypes.float16).view(np.uint16),
                                      wanted.view(np.uint16))


def test_every_bfloat16_survives_float32_and_float64() -> None:
    nan = (HALVES & 0x7FFF) > 0x7F80
    for compute in (dtypes.float32, dtypes.float64):
        got = converted(HALVES, dtypes.bfloat16, compute, dtypes.bfloat16)
        np.testing.assert_array_equal(got, np.where(nan, 0x7FC0, HALVES))


@pytest.mark.parametrize("compute", [dtypes.float32, dtypes.float64], ids=str)
def test_halves_are_rounded_once_around_every_tie(compute: DType) -> None:
    """Between any two neighbours: the middle, and the compute dtype's next numbers on either side."""
    halves = HALVES[:0x7C00].view(np.float16).astype(compute.numpy)
    middle = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate([np.nextafter(middle, -np.inf), middle, np.nextafter(middle, np.inf)]).astype(compute.numpy)
    values = np.concatenate([values, -values])
    np.testing.assert_array_equal(converted(values, compute, compute, dtypes.float16), values.astype(np.float16))
    brains = convert.from_bfloat16_bits(HALVES[:0x7F80]).astype(np.float64)
    middle = ((brains[:-1] + brains[1:]) / 2).astype(compute.numpy)
    values = np.concatenate([np.nextafter(middle, -np.inf), middle, np.nextafter(middle, np.inf)]).astype(compute.numpy)
    got = converted(values, compute, compute, dtypes.bfloat16)
    number = np.arange(len(middle))
    even = (number + 1) & ~1
    np.testing.assert_array_equal(got, np.concatenate([number, even, number + 1]))


# ---- random bits ------------------------------------------------------------------------------------------------------


def test_philox_gives_the_published_bits() -> None:
    """Philox4x32-10 of counter 0 under key 0, as Random123 publishes it."""
    zero = np.zeros(1, np.uint64)
    assert int(table.BY_NAME["philox"].meaning(zero, zero)[0]) == 0xE169C58D_6627E8D5


def test_random_bits_are_a_function_of_key_and_place() -> None:
    n, key = 5000, 0x123456789ABCDEF0
    builder = ProgramBuilder()
    section = builder.vector(n, dtype=dtypes.uint64)
    number = section.index((1,))
    y = section.operand(builder.add_arg(8 * n, WRITES, dtypes.uint64), (8,), mode=WRITES)
    section.begin_pass()
    section.word("iota", number)
    section.word("philox.k", key)
    section.word("store", y)
    section.end_pass()
    section.word("end_row")
    expected, got = run_everywhere(builder.build(), [np.zeros(n, np.uint64)])
    np.testing.assert_array_equal(got[0], expected[0])
    bits = np.unpackbits(got[0].view(np.uint8)).reshape(n, 64)
    assert len(set(got[0].tolist())) == n and np.all(np.abs(bits.mean(0) - 0.5) < 0.04)
