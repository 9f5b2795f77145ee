"""Passes whose values stay in registers (native/register_passes.h): the bits of their words, on every instruction set, special
values included, and those of the reference interpreter."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.isa import reference
from dvm_rt.isa.program import READ, WRITE, ProgramBuilder

Array = np.ndarray
SPECIAL = (0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3e-39, 65519.9, 65520.0, 5.9e-8, 2.0**-25, 3.4e38, 2e38,
           1 + 2.0**-8, 1 + 3 * 2.0**-9)  # fmt: skip
ROW_LENGTHS = (128, 129, 255, 256, 1000, 1024, 16500)
BINARY = "mov add sub rsub mul div rdiv max min eq ne lt le gt ge keep drop merge".split()
UNARY = "neg abs square relu sqrt rsqrt recip floor ceil trunc round to_f16 to_bf16".split()
INPUTS = {"a": dtypes.float32, "b": dtypes.float32, "c": dtypes.float32, "h": dtypes.float16, "g": dtypes.bfloat16}
OUTPUTS = {"o": dtypes.float32, "u": dtypes.float16, "v": dtypes.bfloat16}
NO_REGISTER_WORDS = "mov.k 0, sign, "  # `sign` has no register word: its pass is run as words

PASSES = (
    # what is read again stays; the third value does not; a register is free again after the last use
    "mov.i a, mul.i b, add.i a, max.i b, mul.k .5, store_slot 0, sub.i b, abs, store_slot 1, mov.s 0, mul.k 2, sub.i a, "
    "add.s 1, store o",
    "mov.i a, store_slot 0, mul.s 0, store_slot 0, add.s 0, store_slot 3, sub.s 0, mul.s 3, store_slot 0, rsub.s 0, store o",
    "mov.k 1, add.i a, mul.i a, store_slot 0, mov.i b, sub.i b, add.s 0, add.i b, add.i c, add.i c, store o",
    # halves
    "load h, store_slot 0, load g, store_slot 1, mul.s 0, to_f16, add.s 0, to_f16, max.s 1, mul.k 2, to_f16, store_slot 2, "
    "sub.s 1, to_f16, abs, store_slot 1, mov.s 2, sub.s 0, to_f16, add.s 1, store_any u",
    # what is a bfloat16 times a power of two from 1 on is one
    "load g, mul.k 2, to_bf16, store_slot 0, mul.k -4, to_bf16, abs, max.s 0, mul.k 1e38, to_bf16, add.s 0, to_bf16, mul.k 2, "
    "to_bf16, mul.k 0.5, to_bf16, mul.s 0, to_bf16, mov.s 0, mul.k 128, to_bf16, store_any v",
    "load g, store_slot 0, mul.k 8, to_bf16, mul.k 3, store o, to_bf16, mul.k inf, to_bf16, mul.k 0.25, to_bf16, store_any v",
    "load g, store_slot 0, add.i a, to_bf16, mul.s 0, to_bf16, min.i a, store_any v, add.i a, store o",
    # a store may change an input: x is a row buffer
    "mov.i a, store x, add.i x, mul.i x, store x, sub.i x, add.i x, add.i a, mul.i x, store o",
    # row scalars and elements of a row
    "mov.i a, mul.r 0, add.i a, max.b w, min.r 1, store_slot 0, sub.b w, mul.s 0, store o",
)  # fmt: skip


def random_pass(rng: random.Random) -> str:
    """Words with every form, over slots that are set, and stores of each kind."""
    words, slots, left = ["mov.i a"], [], list(OUTPUTS)
    for _ in range(rng.randint(4, 30)):
        match rng.randint(0, 9):
            case 0 | 1:
                slots.append(rng.randint(0, 4))
                words.append(f"store_slot {slots[-1]}")
            case 2:
                words.append(rng.choice(UNARY))
            case 3:
                words.append(rng.choice(("load h", "load g")))
            case 4:
                words.append(f"{rng.choice(BINARY)}.k {rng.choice((0.0, -0.0, 1.5, -2.0, 2.0, 0.5, np.nan, np.inf, 1e-41))}")
            case 5:
                words.append(f"{rng.choice(BINARY)}.{rng.choice(('r 0', 'r 1', 'b w'))}")
            case 6 | 7 if slots:
                words.append(f"{rng.choice(BINARY)}.s {rng.choice(slots)}")
            case 8 if left and rng.random() < 0.5:
                out = left.pop(rng.randrange(len(left)))
                words.append(f"store {out}" if out == "o" else f"store_any {out}")
            case _:
                words.append(f"{rng.choice(BINARY)}.i {rng.choice('abc')}")
    return ", ".join(words + ([f"store {out}" if out == "o" else f"store_any {out}" for out in left]))


def program(text: str, n: int, rows: int, *, past_caches: bool, hints: bool) -> bytes:
    """A pass over rows of two dimensions; row scalars and w are the first elements of rows of a and b."""
    builder = ProgramBuilder()
    section = builder.vector(n, rows)
    names = {}
    for name, dtype in (INPUTS | OUTPUTS).items():
        mode, size = WRITE if name in OUTPUTS else READ, dtype.bytes
        arg = builder.add_arg(n * rows * size, mode, dtype)
        if mode == READ or f" {name}" in text:
            names[name] = section.operand(arg, [size, n * size], dtype=dtype, mode=mode)
    names["w"] = section.operand(1, [0, 4 * n])
    names["x"] = section.row_buffer()
    for k in range(2):
        section.word("mov.b", section.operand(k, [0, 4 * n]))
        section.word("store_row", k)
    section.begin_pass()
    for word in text.split(", "):
        name, _, field = word.partition(" ")
        if hints and name.endswith(".i") and field in INPUTS:
            section.fetch(names[field], 512)
        past = past_caches and name in ("store", "store_any") and field != "x"
        section.word(name + "_nt" * past, float(names.get(field, field)) if field else None)
    section.end_pass()
    section.word("end_row")
    return builder.build()


@np.errstate(all="ignore")
def arrays(rng: np.random.Generator, count: int) -> list[Array]:
    found = []
    for name, dtype in INPUTS.items():
        x = (3 * rng.standard_normal(count)).astype(np.float32)
        chosen = rng.random(count) < 0.02
        x[chosen] = rng.choice(SPECIAL, int(chosen.sum()))
        bits = x.view(np.uint32)
        bits[rng.random(count) < 0.002] = 0x7F800001  # a NaN whose payload rounding would lose
        found.append((bits >> 16).astype(np.uint16) if name == "g" else x.astype(dtype.numpy))
    return found + [np.zeros(count, np.uint16 if d is dtypes.bfloat16 else d.numpy) for d in OUTPUTS.values()]


def run(code: bytes, given: list[Array], target: str, parts: int = 0) -> tuple[bytes, ...]:
    got = [a.copy() for a in given]
    _native.Program(code).run(got, target, parts=parts, threads=2 if parts else 1)
    return tuple(a.tobytes() for a in got[len(INPUTS) :])


def every_case() -> Iterator[str]:
    yield from PASSES
    rng = random.Random(5)
    for _ in range(60):
        yield random_pass(rng)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", list(every_case()))
def test_held_values_change_no_bits(text: str) -> None:
    rng = np.random.default_rng(3)
    for n in ROW_LENGTHS:
        options = {"past_caches": n % 128 == 0, "hints": n % 3 == 0}
        codes = [program(prefix + text, n, 2, **options) for prefix in ("", NO_REGISTER_WORDS)]
        assert [_native.Program(code).in_registers for code in codes] == [[True], [False]]
        given = arrays(rng, 2 * n)
        seen = {run(code, given, target, parts) for code in codes for target in _native.targets() for parts in (0, 3)}
        assert len(seen) == 1, n
        if n <= 1000:
            want = [a.copy() for a in given]
            reference.run(codes[0], want)
            assert seen == {tuple(a.tobytes() for a in want[len(INPUTS) :])}, n


def test_a_choice_of_stores_keeps_the_bits() -> None:
    code = program(PASSES[0], 2048, 1, past_caches=True, hints=True)
    given = arrays(np.random.default_rng(4), 2048)
    native, seen = _native.Program(code), set()
    for choice in (0, 3, 1, 2, 0):
        native.choose(choice)
        got = [a.copy() for a in given]
        native.run(got, _native.targets()[0])
        seen.add(got[len(INPUTS)].tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("word", ("exp", "sin", "run_sum 0", "pow.k 2", "nextafter.i a"))
def test_other_words_are_run_as_they_are(word: str) -> None:
    code = program(f"mov.i a, mul.k 2, {word}, store o", 256, 1, past_caches=False, hints=False)
    assert _native.Program(code).in_registers == [False]
