"""The instruction table against itself: every row and operand form on the reference and on every native
target."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import dtypes
from dvm_rt.isa import reference, table
from dvm_rt.isa.program import parse
from dvm_rt.isa.table import Instruction

from tests.isa.cases import BLOCK, FEW_LENGTHS, LENGTHS, SPECIALS, Bench, Case, cases, epilogue, pairs_of_specials, specials

try:
    from dvm_rt import _native
except ImportError:
    _native = None
TARGETS = _native.targets() if hasattr(_native, "Program") else []
needs_native = pytest.mark.skipif(not TARGETS, reason="native machine not built")
ROWS = [pytest.param(i, f, id=f"{i.name}{'.' + f if f else ''}") for i, f in table.OPCODES]
IN_EPILOGUE = [p for p in ROWS if p.values[0].meaning and p.values[1] in ("", "i", "s", "k", "b")
               and "float32" in p.values[0].compute_dtypes and p.values[0].group is not table.Group.RUNNING]  # fmt: skip
TYPED = [
    pytest.param(i, f, dtypes.BY_NAME[name], id=f"{i.name}{'.' + f if f else ''}-{name}")
    for i, f in table.OPCODES for name in i.compute_dtypes
]  # fmt: skip
FLUSH = {4: 2.0**-126, 8: 2.0**-1022}  # exp gives 0 below: within its promise of this, either side is right


@pytest.mark.parametrize(("instruction", "form"), ROWS)
def test_every_row_has_programs_that_use_it(instruction: Instruction, form: str) -> None:
    code = table.opcode(instruction.name, form)
    for case in cases(instruction, form, 65, np.random.default_rng(1)):
        assert any(word.op == code for section in parse(case.program).sections for word in section.words)
        before = [case.args[o].tobytes() for o in case.outputs]
        reference.run(case.program, case.args)
        assert [case.args[o].tobytes() for o in case.outputs] != before


@needs_native
@pytest.mark.parametrize(("instruction", "form", "dtype"), TYPED)
def test_native_equals_reference(instruction: Instruction, form: str, dtype: dtypes.DType) -> None:
    rng = np.random.default_rng(table.opcode(instruction.name, form))
    for length in LENGTHS if dtype is dtypes.float32 else FEW_LENGTHS:
        for case in cases(instruction, form, length, rng, dtype):
            check(case, instruction, length)


@needs_native
@pytest.mark.parametrize(("instruction", "form", "dtype"), [p for p in TYPED if p.values[1]])
def test_native_equals_reference_on_pairs_of_specials(instruction: Instruction, form: str, dtype: dtypes.DType) -> None:
    for case in pairs_of_specials(instruction, form, dtype):
        check(case, instruction, len(specials(dtype)))


@needs_native
@pytest.mark.parametrize(("instruction", "form"), IN_EPILOGUE)
def test_native_epilogue_equals_reference(instruction: Instruction, form: str) -> None:
    rng = np.random.default_rng(table.opcode(instruction.name, form))
    for length in (1, 31, 32, 33, 127, 128, 129, 300):
        check(epilogue(instruction.name, form, length, rng), instruction, length)


@needs_native
@pytest.mark.parametrize("name", ["acc_sum", "acc_max"])
@pytest.mark.parametrize(
    "length", [BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 127, 2 * BLOCK, 2 * BLOCK + 7233, 129 * BLOCK + 5]
)
def test_reductions_of_rows_longer_than_a_block(name: str, length: int) -> None:
    instruction = table.BY_NAME[name]
    for case in cases(instruction, "", length, np.random.default_rng(length)):
        check(case, instruction, length)


@needs_native
@pytest.mark.parametrize("dtype", table.COMPUTE_DTYPES)
@pytest.mark.parametrize("name", ["acc_sum", "acc_max", "acc_min", "acc_prod"])
def test_long_rows_of_every_dtype(name: str, dtype: str) -> None:
    for length in (BLOCK, 2 * BLOCK + 133):
        for case in cases(table.BY_NAME[name], "", length, np.random.default_rng(length), dtypes.BY_NAME[dtype]):
            check(case, table.BY_NAME[name], length)


@needs_native
@pytest.mark.parametrize("name", [i.name for i in table.INSTRUCTIONS if i.ulp and i.group is table.Group.UNARY])
def test_promised_ulp_over_all_exponents(name: str) -> None:
    instruction, rng = table.BY_NAME[name], np.random.default_rng(11)
    near_one = rng.standard_normal(50_000).astype(np.float32) * 4
    any_exponent = rng.integers(0, 1 << 32, 50_000, dtype=np.uint32).view(np.float32)
    steps = np.arange(-104, 104, 0.01, dtype=np.float32)
    check_unary(instruction, np.concatenate([near_one, any_exponent, steps, SPECIALS]))


def check_unary(instruction: Instruction, values: np.ndarray) -> None:
    bench = Bench(len(values), 1)
    x = bench.full(values[None])
    bench.section.begin_pass()
    bench.section.word("mov.i", x)
    bench.section.word(instruction.name)
    bench.section.word("store", bench.full_output())
    bench.section.end_pass()
    check(bench.case("sweep"), instruction, len(values))


def check(case: Case, instruction: Instruction, length: int) -> None:
    """Runs a case everywhere. Bits equal the reference, or lie within the promised ulp of it; all targets
    agree."""
    expected = run(case, lambda args: reference.run(case.program, args))
    program = _native.Program(case.program)
    got = {target: run(case, lambda args, t=target: program.run(args, t)) for target in TARGETS}
    for target, outputs in got.items():
        where = f"{instruction.name}, {case.name}, length {length}, {target}"
        for output, want in zip(outputs, expected, strict=True):
            if instruction.ulp:
                assert_within(output, want, instruction, where)
            else:
                assert_same_bits(output, want, where)
        for output, first in zip(outputs, got[TARGETS[0]], strict=True):
            assert_same_bits(output, first, f"{where} against {TARGETS[0]}")


def run(case: Case, engine: object) -> list[np.ndarray]:
    args = [array.copy() for array in case.args]
    engine(args)
    for number, array in enumerate(args):
        assert number in case.outputs or array.tobytes() == case.args[number].tobytes(), (
            f"input {number} was written"
        )
    return [args[number] for number in case.outputs]


def assert_same_bits(got: np.ndarray, want: np.ndarray, where: str) -> None:
    different = got.reshape(-1).view(f"u{got.itemsize}") != want.reshape(-1).view(f"u{got.itemsize}")
    if different.any():
        at = int(np.argmax(different))
        pytest.fail(
            f"{where}: {different.sum()} elements differ, first {at}: got {got.flat[at]!r}, reference {want.flat[at]!r}"
        )


def assert_within(got: np.ndarray, want: np.ndarray, instruction: Instruction, where: str) -> None:
    """`want` is the correctly rounded result; NaN where it is NaN, canonical; else at most `ulp` steps of its
    dtype away."""
    assert_same_bits(np.isnan(got), np.isnan(want), f"{where}: NaN")
    distance = np.abs(ordered(got) - ordered(want))
    flush = want.dtype.type(FLUSH[want.itemsize])
    near_flush = (np.abs(np.maximum(got, want) - flush) <= 4 * np.finfo(want.dtype).smallest_subnormal) & (
        instruction.name == "exp")
    wrong = (distance > instruction.ulp) & ~np.isnan(want) & ~near_flush
    if instruction.name in ("lgamma", "digamma") and want.dtype == np.float64:
        # Here the reference is a formula whose terms cancel; tests/native/test_accuracy.py knows the truth.
        wrong &= ~(np.abs(got - want) <= 2.0**-36 * np.maximum(np.abs(want), 1))
    if wrong.any():
        at = int(np.argmax(np.where(wrong, distance, -1)))
        pytest.fail(f"{where}: {distance.flat[at]} ulp, got {got.flat[at]!r}, reference {want.flat[at]!r}")


def ordered(values: np.ndarray) -> np.ndarray:
    """Floats as integers in which neighbours differ by 1."""
    bits = values.view(f"i{values.itemsize}").astype(np.int64)
    return np.where(bits < 0, -(bits & np.iinfo(f"i{values.itemsize}").max), bits)
