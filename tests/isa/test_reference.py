"""The reference interpreter against plain NumPy and exact fractions: nothing here uses the machine's own
formulas."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from dvm_rt import dtypes
from dvm_rt.errors import DeviceTrap, InvalidBytecodeError
from dvm_rt.isa import matmul, reference
from dvm_rt.isa.program import GATHER, PACKED, READ, WORKSPACE, WRITE, ProgramBuilder, SectionBuilder

from tests.isa.cases import hard_floats

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


class Rows:
    """A vector section over a [rows, length] array, with one input and one output."""

    def __init__(self, x: np.ndarray, out: np.ndarray | None = None) -> None:
        self.builder, self.args = ProgramBuilder(), [x]
        rows, length = x.shape
        self.section: SectionBuilder = self.builder.vector(length, rows)
        self.x = self.section.operand(self.builder.add_arg(x.nbytes), (4, 4 * length))
        self.out = np.full_like(x, 7) if out is None else out
        strides = (4, 4 * length) if self.out.shape == x.shape else (0, 4)
        self.y = self.section.operand(self.builder.add_arg(self.out.nbytes, WRITE), strides, mode=WRITE)
        self.args.append(self.out)

    def run(self) -> np.ndarray:
        self.section.word("end_row")
        reference.run(self.builder.build(), self.args)
        return self.out


# ---- exact arithmetic --------------------------------------------------------------------------------------


def rounded(x: Fraction) -> np.float32:
    """The float32 nearest to a fraction, ties to even, by integers alone."""
    if not x:
        return np.float32(0)
    sign, x = (-1 if x < 0 else 1), abs(x)
    exponent = max(-126, len(bin(x.numerator)) - len(bin(x.denominator)) - 1)
    while x >= Fraction(2) ** (exponent + 1):
        exponent += 1
    steps = x / Fraction(2) ** (exponent - 23)
    whole = steps.numerator // steps.denominator
    rest = steps - whole
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1)
    value = Fraction(whole) * Fraction(2) ** (exponent - 23)
    return np.float32(sign * (np.inf if value >= Fraction(2) ** 128 else float(value)))


def test_fma_rounds_once() -> None:
    n = 4000
    a, b = hard_floats(RNG, n), hard_floats(RNG, n)
    with np.errstate(all="ignore"):
        near = (
            a * b * RNG.choice(np.array([-1, 1, 2.0**-24, -(2.0**-25), 2.0**24, 1 + 2.0**-20], np.float32), n)
        )
        c = np.where(RNG.integers(0, 3, n) == 0, hard_floats(RNG, n), near).astype(np.float32)
        got = matmul.fma(a, b, c)
    tried = 0
    for x, y, z, value in zip(a, b, c, got, strict=True):
        if np.isfinite([x, y, z]).all():
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            assert value == rounded(exact), (x, y, z)
            tried += 1
    assert tried > n / 2


def test_fma_where_rounding_twice_goes_wrong() -> None:
    """1 + 2^-24 lies in the middle of two float32; what decides is 2^-80 more or less, which float64 cannot
    hold."""
    a, b = (
        np.array([24929.0], np.float32),
        np.array([673 * 2.0**-24], np.float32),
    )  # a * b is 1 + 2^-24, exactly
    for tiny, want in ((2.0**-80, 1 + 2.0**-23), (-(2.0**-80), 1.0), (0.0, 1.0)):
        c = np.array([tiny], np.float32)
        assert matmul.fma(a, b, c)[0] == np.float32(want)
        assert matmul.fma(-a, b, -c)[0] == np.float32(-want)


def test_fma_keeps_infinities_nan_and_the_signs_of_zeros() -> None:
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    table = [
        (inf, 1, -1, inf),
        (inf, 0, 1, nan),
        (inf, 1, -inf, nan),
        (1, nan, 1, nan),
        (3e38, 2, 0, inf),
        (3e38, 2, -inf, -inf),
    ]
    for a, b, c, want in table:
        with np.errstate(all="ignore"):
            got = matmul.fma(np.array([a], np.float32), np.array([b], np.float32), np.array([c], np.float32))
        np.testing.assert_array_equal(got, np.array([want], np.float32))
    zeros = [
        (0.0, 1.0, 0.0, 0),
        (-0.0, 1.0, 0.0, 0),
        (-0.0, 1.0, -0.0, 1),
        (1.0, 1.0, -1.0, 0),
        (1e-30, -1e-30, 0.0, 1),
    ]
    for a, b, c, sign in zeros:
        got = matmul.fma(np.array([a], np.float32), np.array([b], np.float32), np.array([c], np.float32))
        assert got[0] == 0 and np.signbit(got[0]) == sign, (a, b, c)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (3, 5, 7), (4, 33, 64), (2, 3, 1024), (2, 3, 1025), (2, 2, 3000)]
)
def test_matmul_is_one_fma_chain_per_slice(m: int, n: int, k: int) -> None:
    a, b = normal(m, k), normal(k, n)
    got = matmul.matmul(a, b)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    bound = 2 * k * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))
    assert (np.abs(got - exact) <= bound).all()
    total = None
    for begin in range(0, k, matmul.slice_k(k)):
        chain = Fraction(0)
        for step in range(begin, min(begin + matmul.slice_k(k), k)):
            chain = Fraction(
                float(rounded(Fraction(float(a[-1, step])) * Fraction(float(b[step, -1])) + chain))
            )
        total = np.float32(float(chain)) if total is None else total + np.float32(float(chain))
    assert got[-1, -1] == total


def test_slices_cover_k_and_stay_below_the_limit() -> None:
    for k in [*range(1, 40), 1023, 1024, 1025, 2048, 2049, 3000, 4096, 5000, 100_000]:
        step = matmul.slice_k(k)
        assert 1 <= step <= matmul.SLICE_K
        assert step == k or step % 8 == 0


@pytest.mark.parametrize(("n", "k"), [(1, 1), (31, 3), (32, 3), (33, 1025), (100, 2100)])
def test_packed_form_and_back(n: int, k: int) -> None:
    b = normal(k, n)
    packed = matmul.pack(b)
    assert packed.nbytes == matmul.packed_bytes(n, k)
    np.testing.assert_array_equal(matmul.unpack(packed, n, k), b)
    panel = packed[: matmul.slice_k(k) * matmul.PANEL].reshape(
        -1, matmul.PANEL
    )  # the first of the first slice
    np.testing.assert_array_equal(panel[:, : min(n, matmul.PANEL)], b[: len(panel), : matmul.PANEL])
    assert not panel[:, n:].any()


# ---- kernels that models use -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 127, 128, 129, 1000])
def test_softmax(length: int) -> None:
    rows = Rows(3 * normal(4, length))
    section, buffer = rows.section, rows.section.row_buffer()
    section.begin_pass()
    section.word("mov.i", rows.x)
    section.word("acc_max", 4)
    section.end_pass(4)
    section.word("fold_max", 4)
    section.word("store_row", 0)
    section.begin_pass()
    section.word("mov.i", rows.x)
    section.word("sub.r", 0)
    section.word("exp")
    section.word("store", buffer)
    section.word("acc_sum", 0)
    section.end_pass(0)
    section.word("fold_sum", 0)
    section.word("recip")
    section.word("store_row", 1)
    section.begin_pass()
    section.word("mov.i", buffer)
    section.word("mul.r", 1)
    section.word("store", rows.y)
    section.end_pass()
    x = rows.args[0].astype(np.float64)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(rows.run(), e / e.sum(1, keepdims=True), rtol=2e-6)


def test_layer_norm() -> None:
    length, epsilon = 300, 1e-5
    rows = Rows(2 * normal(3, length) + 1)
    section, scale, shift = rows.section, normal(length), normal(length)
    operands = [section.operand(rows.builder.add_arg(v.nbytes), (4,)) for v in (scale, shift)]
    rows.args += [scale, shift]
    section.begin_pass()
    section.word("mov.i", rows.x)
    section.word("acc_sum", 0)
    section.end_pass(0)
    section.word("fold_sum", 0)
    section.word("mul.k", 1 / length)
    section.word("store_row", 0)
    section.begin_pass()
    section.word("mov.i", rows.x)
    section.word("sub.r", 0)
    section.word("square")
    section.word("acc_sum", 1)
    section.end_pass(1)
    section.word("fold_sum", 1)
    section.word("mul.k", 1 / length)
    section.word("add.k", epsilon)
    section.word("rsqrt")
    section.word("store_row", 1)
    section.begin_pass()
    section.word("mov.i", rows.x)
    section.word("sub.r", 0)
    section.word("mul.r", 1)
    section.word("mul.i", operands[0])
    section.word("add.i", operands[1])
    section.word("store", rows.y)
    section.end_pass()
    x = rows.args[0].astype(np.float64)
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + epsilon) * scale + shift
    np.testing.assert_allclose(rows.run(), want, rtol=1e-5, atol=1e-6)


def test_where_is_keep_drop_merge() -> None:
    x, y = hard_floats(RNG, 5, 200), hard_floats(RNG, 5, 200)
    rows = Rows(x)
    other = rows.section.operand(rows.builder.add_arg(y.nbytes), (4, 800))
    rows.args.append(y)
    section = rows.section
    section.begin_pass()
    section.word("mov.i", rows.x)
    section.word("gt.i", other)
    section.word("store_slot", 0)
    section.word("mov.i", other)
    section.word("drop.s", 0)
    section.word("store_slot", 1)
    section.word("mov.i", rows.x)
    section.word("keep.s", 0)
    section.word("merge.s", 1)
    section.word("store", rows.y)
    section.end_pass()
    want = np.where(x > y, x, y)
    assert rows.run().tobytes() == np.where(np.isnan(want), np.float32(np.nan), want).tobytes()


def build_matmul(
    shape: tuple[int, int, int], *, packed: bool, transposed: bool
) -> tuple[bytes, list[np.ndarray]]:
    """gelu-like epilogue: C = relu(A @ B + bias) * residual, B plain, transposed, or packed by the program
    itself."""
    m, n, k = shape
    a, b, bias, residual = normal(m, k), normal(k, n), normal(n), normal(m, n)
    c = np.full((m, n), 7, np.float32)
    args = [a, np.ascontiguousarray(b.T) if transposed else b, c, bias, residual, b]
    builder = ProgramBuilder()
    left, right = builder.add_arg(a.nbytes), builder.add_arg(b.nbytes)
    product, row, full = (
        builder.add_arg(c.nbytes, READ | WRITE),
        builder.add_arg(bias.nbytes),
        builder.add_arg(residual.nbytes),
    )
    builder.add_arg(b.nbytes)
    strides = (4 * k, 4) if transposed else (4, 4 * n)
    if packed:
        builder.workspace_bytes = matmul.packed_bytes(n, k)
        pack = builder.pack(n, k)
        pack.operand(right, strides[:1], depth=strides[1])
        pack.operand(WORKSPACE, mode=WRITE | PACKED)
    section = builder.matmul(n, m, k)
    section.operand(left, (0, 4 * k), depth=4)
    if packed:
        section.operand(WORKSPACE, mode=READ | PACKED)
    else:
        section.operand(right, strides[:1], depth=strides[1])
    section.operand(product, (4, 4 * n), mode=READ | WRITE)
    bias_operand, residual_operand = section.operand(row, (4,)), section.operand(full, (4, 4 * n))
    section.word("mov.i", 2)
    section.word("add.i", bias_operand)
    section.word("relu")
    section.word("mul.i", residual_operand)
    section.word("store", 2)
    section.word("end")
    return builder.build(), args


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 130, 33), (2, 40, 1100)])
@pytest.mark.parametrize(
    ("packed", "transposed"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_matmul_with_epilogue(shape: tuple[int, int, int], packed: bool, transposed: bool) -> None:
    program, args = build_matmul(shape, packed=packed, transposed=transposed)
    reference.run(program, args)
    a, _, c, bias, residual, b = args
    want = np.maximum(a.astype(np.float64) @ b + bias, 0) * residual
    np.testing.assert_allclose(c, want, atol=1e-5 * shape[2] ** 0.5)


def test_batched_matmul_broadcasts_by_stride_0() -> None:
    batch, m, n, k = 3, 2, 5, 4
    a, b, c = normal(batch, m, k), normal(k, n), np.full((batch, m, n), 7, np.float32)
    builder = ProgramBuilder()
    section = builder.matmul(n, m, k, batch)
    section.operand(builder.add_arg(a.nbytes), (0, 4 * k, 4 * m * k), depth=4)
    section.operand(builder.add_arg(b.nbytes), (4, 0, 0), depth=4 * n)
    section.operand(builder.add_arg(c.nbytes, READ | WRITE), (4, 4 * n, 4 * m * n), mode=READ | WRITE)
    reference.run(builder.build(), [a, b, c])
    np.testing.assert_allclose(c, a.astype(np.float64) @ b, atol=1e-5)


# ---- places, orders and conversions ------------------------------------------------------------------------


@pytest.mark.parametrize("length", [100, 16384, 16385, 50_000])
def test_sum_and_maximum_of_rows(length: int) -> None:
    for word, number, exact in (("sum", 0, np.sum), ("max", 4, np.max)):
        x = normal(2, length)
        rows = Rows(x, np.full(2, 7, np.float32))
        rows.section.begin_pass()
        rows.section.word("mov.i", rows.x)
        rows.section.word(f"acc_{word}", number)
        rows.section.end_pass(number)
        rows.section.word(f"fold_{word}", number)
        rows.section.word("store_per_row", rows.y)
        want = exact(x.astype(np.float64), axis=1)
        np.testing.assert_allclose(
            rows.run(), want, rtol=0, atol=0 if word == "max" else 20 * 2.0**-24 * np.abs(x).sum(1).max()
        )


def test_the_order_of_a_sum_is_lanes_then_tree_then_blocks() -> None:
    """The rule written down once more, with loops over single elements."""
    length = 2 * 16384 + 300
    x = normal(1, length)
    rows = Rows(x, np.full(1, 7, np.float32))
    rows.section.begin_pass()
    rows.section.word("mov.i", rows.x)
    rows.section.word("acc_sum", 2)
    rows.section.end_pass(2)
    rows.section.word("fold_sum", 2)
    rows.section.word("store_per_row", rows.y)

    def tree(lanes: list[np.float32]) -> np.float32:
        for half in (64, 32, 16, 8, 4, 2, 1):
            lanes = [lanes[i] + lanes[i + half] for i in range(half)]
        return lanes[0]

    blocks = [np.float32(0)] * 128
    for block in range(0, length, 16384):
        lanes = [np.float32(0)] * 128
        for j, value in enumerate(x[0, block : block + 16384]):
            lanes[j % 128] = lanes[j % 128] + value
        blocks[block // 16384 % 128] += tree(lanes)
    assert rows.run()[0] == tree(blocks)


def test_maximum_keeps_nan_and_prefers_plus_zero() -> None:
    for values, want in (([1, np.nan, 3], np.nan), ([-0.0, 0.0], 0.0), ([-np.inf, -np.inf], -np.inf)):
        rows = Rows(np.array([values], np.float32), np.full(1, 7, np.float32))
        rows.section.begin_pass()
        rows.section.word("mov.i", rows.x)
        rows.section.word("acc_max", 4)
        rows.section.end_pass(4)
        rows.section.word("fold_max", 4)
        rows.section.word("store_per_row", rows.y)
        assert rows.run().tobytes() == np.array([want], np.float32).tobytes()


@pytest.mark.parametrize("dtype", [dtypes.int32, dtypes.int64])
def test_gather_reads_rows_by_index_and_traps_outside(dtype: dtypes.DType) -> None:
    source, limit = normal(5, 20), 5
    for index, fits in (([0, 4, -1, -5, 2], True), ([0, 5], False), ([-6], False)):
        indices = np.array(index, dtype.numpy)
        out, builder = np.full((len(index), 20), 7, np.float32), ProgramBuilder()
        section = builder.vector(20, len(index))
        x = section.operand(
            builder.add_arg(source.nbytes),
            (4,),
            mode=READ | GATHER,
            index=1,
            limit=limit,
            depth=source.strides[0],
        )
        section.operand(builder.add_arg(indices.nbytes, READ, dtype), (0, dtype.bytes), dtype=dtype)
        y = section.operand(builder.add_arg(out.nbytes, WRITE), (4, 80), mode=WRITE)
        section.word("gather", x)
        section.begin_pass()
        section.word("mov.i", x)
        section.word("store", y)
        section.end_pass()
        section.word("end_row")
        if fits:
            reference.run(builder.build(), [source, indices, out])
            np.testing.assert_array_equal(out, source[indices])
        else:
            with pytest.raises(DeviceTrap, match=r"gather index, got -?\d, allowed -5..4"):
                reference.run(builder.build(), [source, indices, out])


@pytest.mark.parametrize("step", [1, 2, -1, -3, 0])
def test_strided_loads_and_stores(step: int) -> None:
    length, x = 10, np.arange(40, dtype=np.int16)
    out, builder = np.zeros(40, np.float32), ProgramBuilder()
    section = builder.vector(length)
    source = section.operand(
        builder.add_arg(x.nbytes, READ, dtypes.int16),
        (2 * step,),
        dtype=dtypes.int16,
        base=78 if step < 0 else 0,
    )
    out_step = step or 1
    target = section.operand(
        builder.add_arg(out.nbytes, WRITE), (4 * out_step,), mode=WRITE, base=156 if step < 0 else 0
    )
    section.begin_pass()
    section.word("load", source)
    section.word("add.k", 0.5)
    section.word("store_any", target)
    section.end_pass()
    section.word("end_row")
    reference.run(builder.build(), [x, out])
    want = np.zeros(40, np.float32)
    picked = (39 if step < 0 else 0) + step * np.arange(length)
    want[(39 if step < 0 else 0) + out_step * np.arange(length)] = x[picked] + 0.5
    np.testing.assert_array_equal(out, want)


def test_conversions_truncate_saturate_and_make_nan_zero() -> None:
    x = np.array(
        [np.nan, np.inf, -np.inf, -0.9, 1.9, -1.9, 127.5, 128, -129, 3e9, -3e9, 2.0**63, -(2.0**63), 2.0**64],
        np.float32,
    )
    table = {
        dtypes.int8: [0, 127, -128, 0, 1, -1, 127, 127, -128, 127, -128, 127, -128, 127],
        dtypes.uint8: [0, 255, 0, 0, 1, 0, 127, 128, 0, 255, 0, 255, 0, 255],
        dtypes.int32: [0, 2**31 - 1, -(2**31), 0, 1, -1, 127, 128, -129, 2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 2**31 - 1],
        dtypes.int64: [0, 2**63 - 1, -(2**63), 0, 1, -1, 127, 128, -129, 3 * 10**9, -3 * 10**9, 2**63 - 1, -(2**63), 2**63 - 1],
        dtypes.uint64: [0, 2**64 - 1, 0, 0, 1, 0, 127, 128, 0, 3 * 10**9, 0, 2**63, 0, 2**64 - 1],
        dtypes.bool_: [1] * 14,
    }  # fmt: skip
    for dtype, want in table.items():
        assert reference.convert_store(x, dtype).tolist() == want, dtype
    assert reference.convert_store(np.array([0.0, -0.0], np.float32), dtypes.bool_).tolist() == [0, 0]
    big = np.array([2**24 + 1, 2**24 + 3, 2**63 - 1], np.int64)
    assert reference.convert_load(big, dtypes.int64).tolist() == [2.0**24, 2.0**24 + 4, 2.0**63]
    assert reference.convert_load(np.array([0, 1, 200], np.uint8), dtypes.bool_).tolist() == [0, 1, 1]


# ---- programs that break a rule ----------------------------------------------------------------------------


def broken(words: list[tuple], *, mode: int = READ, strides: tuple[int, ...] = (4, 400)) -> str:
    builder = ProgramBuilder()
    section = builder.vector(100, 2)
    section.operand(builder.add_arg(800, READ), strides, mode=mode)
    section.operand(builder.add_arg(800, WRITE), (4, 400), mode=WRITE)
    for word in words:
        section.word(*word)
    with pytest.raises(InvalidBytecodeError, match="reference: section 0 word ") as error:
        reference.run(builder.build(), [np.zeros(200, np.float32), np.zeros(200, np.float32)])
    return error.value.code


def test_broken_programs_are_refused_by_rule() -> None:
    assert broken([("pass",), ("exp",)]) == "UNINITIALISED"
    assert broken([("pass",), ("mov.s", 0)]) == "UNINITIALISED"
    assert broken([("mov.r", 3)]) == "UNINITIALISED"
    assert broken([("pass",), ("mov.i", 0)], strides=(4, 404)) == "OUT_OF_BOUNDS"
    assert broken([("pass",), ("mov.i", 0)], strides=(8, 0)) == "OPERAND_FORM"
    assert broken([("pass",), ("load", 0)], strides=(-4, 400)) == "OUT_OF_BOUNDS"
    assert broken([("pass",), ("mov.i", 1)]) == "PERMISSION"
    assert broken([("pass",), ("mov.k", 1), ("store", 0)], mode=WRITE) == "PERMISSION"
    assert broken([("mov.i", 0)]) == "NESTING"
    assert broken([("pass",), ("pass",)]) == "NESTING"
    assert broken([("pass",), ("mov.k", 1), ("store_row", 0)]) == "NESTING"
    assert broken([("pass",), ("mov.i", 9)]) == "OPERAND"
    assert broken([("pass",), ("mov.k", 1), ("acc_sum", 4)]) == "REDUCTION"
    assert broken([("pass",), ("mov.i", 0)], mode=READ | GATHER) == "UNINITIALISED"


def test_arguments_that_do_not_fit_trap() -> None:
    rows = Rows(normal(2, 3))
    rows.section.word("end_row")
    program = rows.builder.build()
    frozen = rows.args[1].copy()
    frozen.flags.writeable = False
    for args in ([rows.args[0]], [rows.args[0][:1], rows.args[1]], [rows.args[0], frozen]):
        with pytest.raises(DeviceTrap, match="reference: bind"):
            reference.run(program, args)
