"""How far every float function is from the truth, in units of the last place (ULP).

    python -m benchmarks.accuracy                    the table, on standard output (docs/accuracy.md is a copy)
    python -m benchmarks.accuracy --all sin exp      float32 functions of one operand over all 2^32 inputs

An error is |got - exact| over the distance of neighbouring numbers around the exact result; a correctly rounded result
has at most 0.5, and infinity counts as the number behind the largest one. NaN and infinity where the truth has none, or
the other way round, count as infinitely wrong. The truth is the definition of the instruction (isa/table.py) in float64
for float32, float16 and bfloat16, in long double for float64, and mpmath where that has no such function. Samples come in
blocks with a seed each; tests/native/test_accuracy.py measures block 0 and holds it against promise and table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dvm_rt import _native, dtypes
from dvm_rt.isa import table
from dvm_rt.isa.program import WRITE, ProgramBuilder
from dvm_rt.isa.table import Group, Instruction

Array = np.ndarray
BLOCKS = 8  # of the table
PRECISION = {"float32": (24, -126), "float64": (53, -1022), "float16": (11, -14), "bfloat16": (8, -126)}
LARGEST_EXPONENT = {"float32": 127, "float64": 1023, "float16": 15, "bfloat16": 127}
NAMES = [i.name for i in table.INSTRUCTIONS if i.ulp]  # every other arithmetic row is exact, and tested bit for bit


@dataclass(frozen=True, slots=True)
class Accuracy:
    """ULP over `count` inputs, and the inputs of the largest one."""

    maximum: float
    mean: float
    count: int
    worst: tuple[float, ...]


def dtypes_of(instruction: Instruction) -> tuple[str, ...]:
    """Dtypes in which the table measures a row: its compute dtypes, and those that are rounded from float32."""
    names = tuple(n for n in ("float32", "float64") if n in instruction.compute_dtypes)
    return (*names, "float16", "bfloat16") if "float32" in names else names


def measure(name: str, dtype: str, blocks: range) -> Accuracy:
    """Accuracy of one row over some blocks of the sample (float16 and bfloat16: over every input, whatever the blocks; of two
    operands, each of them with one other, and that in each block another one)."""
    instruction, parts = table.BY_NAME[name], []
    inputs_of = _every_input if dtype in ("float16", "bfloat16") else _blocks
    for inputs in inputs_of(instruction, dtype, blocks):
        parts.append(_measure(instruction, dtype, inputs))
    worst = max(parts, key=lambda part: part.maximum)
    count = sum(part.count for part in parts)
    return Accuracy(worst.maximum, sum(part.mean * part.count for part in parts) / count, count, worst.worst)


def _measure(instruction: Instruction, dtype: str, inputs: tuple[Array, ...]) -> Accuracy:
    got = run(instruction, dtype, *inputs)
    with np.errstate(all="ignore"):
        error = distances(got, exact(instruction, dtype, *inputs), dtype)
    at = int(np.argmax(error))
    return Accuracy(float(error[at]), float(error.mean()), error.size, tuple(float(x[at]) for x in inputs))


# ---- inputs ---------------------------------------------------------------------------------------------------------


def _blocks(instruction: Instruction, dtype: str, blocks: range) -> Iterator[tuple[Array, ...]]:
    size = 600 if slow(instruction, dtype) else 12_000
    for block in blocks:
        rng = np.random.default_rng((block, instruction.group is Group.BINARY))
        if instruction.group is Group.UNARY:
            yield (_floats(rng, dtype, size),)
        else:
            x, y = _floats(rng, dtype, size), _floats(rng, dtype, size)
            yield np.where(rng.random(x.size) < 0.5, np.abs(x), x), y


def _floats(rng: np.random.Generator, dtype: str, size: int) -> Array:
    """Any bits, the ranges in which functions bend, and the neighbourhood of 0, 1 and of the limits of exp."""
    kind, bits = (np.float32, 32) if dtype == "float32" else (np.float64, 64)
    limit = 104.0 if bits == 32 else 745.0
    parts = [
        rng.integers(0, 1 << bits, size, dtype=f"u{bits // 8}").view(kind),
        rng.standard_normal(size) * 4,
        rng.uniform(-1, 1, size),
        rng.uniform(-limit, limit, size),
        1 + rng.standard_normal(size // 4) * 10.0 ** rng.integers(-7, -1, size // 4),
        np.exp2(rng.uniform(-60, 60, size // 2)) * rng.choice([-1, 1], size // 2),
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, -0.5, 2, -2],
    ]
    return rng.permutation(np.concatenate([np.asarray(part, kind) for part in parts]))


def _every_input(instruction: Instruction, dtype: str, blocks: range) -> Iterator[tuple[Array, ...]]:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(np.float16).astype(np.float32) if dtype == "float16" else (bits.astype(np.uint32) << 16).view(np.float32)
    if instruction.group is Group.UNARY:
        yield (values,)
        return
    for block in blocks:
        rng = np.random.default_rng((block, 16))
        near = values[rng.integers(0x3000, 0x4C00, values.size)]  # half of the others are numbers of everyday size
        signs = rng.choice([-1, 1], values.size).astype(np.float32)
        yield values, np.where(rng.random(values.size) < 0.5, near * signs, rng.permutation(values))


# ---- the truth ------------------------------------------------------------------------------------------------------


SLOW = ("erf", "erfc", "lgamma", "digamma")  # rows whose truth in float64 takes mpmath


def _mpmath(name: str) -> Callable[..., Array]:
    import mpmath

    def log_gamma(x: mpmath.mpf) -> mpmath.mpf:
        if x > 0:
            return mpmath.loggamma(x)
        return mpmath.log(mpmath.pi / abs(x * mpmath.sinpi(x))) - mpmath.loggamma(-x)

    function = {"erf": mpmath.erf, "erfc": mpmath.erfc, "lgamma": log_gamma, "digamma": mpmath.digamma}[name]

    def one(x: float) -> np.longdouble:
        if _is_limit(name, x):
            return np.longdouble(table.BY_NAME[name].meaning(np.array([x]))[0])
        with mpmath.workprec(300):
            y = function(mpmath.mpf(float(x)))
            high = float(y)
            return np.longdouble(high) + np.longdouble(float(y - high) if np.isfinite(high) else 0.0)

    return lambda a: np.array([one(x) for x in a], np.longdouble)


def _is_limit(name: str, x: float) -> bool:
    """Zero and its sign, NaN, infinities and poles; and where erf and erfc are 0, 1 or 2."""
    if name in ("erf", "erfc"):
        return x == 0 or not abs(x) < 30
    return not np.isfinite(x) or (x <= 0 and x == np.rint(x))


def slow(instruction: Instruction, dtype: str) -> bool:
    """Whether the truth of this row takes mpmath."""
    return dtype == "float64" and instruction.name in SLOW


def exact(instruction: Instruction, dtype: str, *inputs: Array) -> Array:
    """The result of a row with far more digits than its dtype has."""
    if slow(instruction, dtype):
        return _mpmath(instruction.name)(*inputs)
    return instruction.meaning(*(x.astype(np.longdouble if dtype == "float64" else np.float64) for x in inputs))


def distances(got: Array, want: Array, dtype: str) -> Array:
    """ULP between results (in the compute dtype) and exact ones."""
    digits, smallest = PRECISION[dtype]
    beyond = np.ldexp(want.dtype.type(1), LARGEST_EXPONENT[dtype] + 1)
    _, exponent = np.frexp(want)
    unit = np.ldexp(want.dtype.type(1), np.clip(exponent - 1, smallest, LARGEST_EXPONENT[dtype]) - (digits - 1))
    limited = np.where(np.isinf(got), np.copysign(beyond, got), got).astype(want.dtype)
    aim = np.clip(want, -beyond, beyond)
    distance = np.where(np.signbit(limited) == np.signbit(aim), np.abs(limited - aim), np.inf) / unit
    distance = np.where((limited == 0) & (aim == 0), np.where(np.signbit(limited) == np.signbit(aim), 0, np.inf), distance)
    return np.where(np.isnan(want), np.where(np.isnan(got), 0, np.inf),
                    np.where(np.isnan(distance), np.inf, distance)).astype(np.float64)


# ---- the machine ----------------------------------------------------------------------------------------------------


def run(instruction: Instruction, dtype: str, *inputs: Array) -> Array:
    """One row of the table on the native machine; float16 and bfloat16 as the fuser computes them: in float32, rounded."""
    compute, n = inputs[0].dtype, inputs[0].size
    builder = ProgramBuilder()
    section = builder.vector(n, dtype=dtypes.BY_NAME[compute.name])
    for _ in inputs:
        section.operand(builder.add_arg(compute.itemsize * n, dtype=section.dtype), (compute.itemsize,))
    out = section.operand(builder.add_arg(compute.itemsize * n, WRITE, dtype=section.dtype), (compute.itemsize,), mode=WRITE)
    section.begin_pass()
    section.word("mov.i", 0)
    if instruction.group is Group.UNARY:
        section.word(instruction.name)
    else:
        section.word(f"{instruction.name}.i", 1)
    if dtype in ("float16", "bfloat16"):
        section.word("to_f16" if dtype == "float16" else "to_bf16")
    section.word("store", out)
    section.end_pass()
    section.word("end_row")
    result = np.empty(n, compute)
    _native.Program(builder.build()).run([*(np.ascontiguousarray(x) for x in inputs), result])
    return result


def all_float32(name: str) -> Accuracy:
    """A row of one operand over all 2^32 inputs."""
    instruction, step, parts = table.BY_NAME[name], 1 << 20, []
    for start in range(0, 1 << 32, step):
        x = np.arange(start, start + step, dtype=np.uint64).astype(np.uint32).view(np.float32)
        parts.append(_measure(instruction, "float32", (x,)))
    worst = max(parts, key=lambda part: part.maximum)
    return Accuracy(worst.maximum, float(np.mean([part.mean for part in parts])), 1 << 32, worst.worst)


# ---- the table ------------------------------------------------------------------------------------------------------

HEAD = """# Accuracy

Errors in units of the last place (ULP): at most 0.5 is a correctly rounded result. Made by `python -m benchmarks.accuracy`,
which says how; held by `tests/native/test_accuracy.py`. *Promise* is the largest error that any input may show. float16
and bfloat16 are over all 65,536 inputs (of two operands: over all of the first), and round to their own dtype what float32
gives. Results have the same bits on every instruction set, so this table holds for all of them.

Every other instruction is exact or correctly rounded (division, square root), which tests check bit for bit. `exp` gives
0 where the result is below the smallest normal number of its compute dtype.

In float64 `logaddexp` is a formula, whose terms may cancel as NumPy's do: within 2 ULP of the result, or of 1/2 where the
result is smaller. `digamma` of float64 has a zero between any two whole numbers below 0; at the float64 next to such a zero its
error is below 2^-103, which may be 8 ULP there.

| instruction | dtype | promise | largest | mean | at | inputs |
|---|---|---|---|---|---|---|"""


def line(name: str, dtype: str, accuracy: Accuracy) -> str:
    """A line of the table."""
    promise = table.BY_NAME[name].ulp
    worst = ", ".join(f"{x:.9g}" for x in accuracy.worst)
    return f"| {name} | {dtype} | {promise:g} | {accuracy.maximum:.3f} | {accuracy.mean:.4f} | {worst} | {accuracy.count:,} |"


def main() -> None:
    """Prints the table, or a sweep over all float32 inputs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="instructions; all where there are none")
    parser.add_argument("--all", action="store_true", help="all 2^32 inputs of float32 (some minutes each)")
    arguments = parser.parse_args()
    print(HEAD)
    for name in arguments.names or NAMES:
        if arguments.all:
            print(line(name, "float32", all_float32(name)), flush=True)
            continue
        for dtype in dtypes_of(table.BY_NAME[name]):
            print(line(name, dtype, measure(name, dtype, range(BLOCKS))), flush=True)


if __name__ == "__main__":
    main()
