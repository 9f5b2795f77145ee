"""Writes seed programs for the fuzzer: python -m tests.fuzz.corpus FOLDER

Every instruction and form, random vector programs, matmuls (packed, transposed, with epilogues), gathers, row buffers,
columns side by side, and what the encoder makes of fused plans. Each file holds the program, what its arguments hold before the run, and
what the reference interpreter leaves in them (nothing where some instruction is only promised to a few ulp)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dvm_rt.errors import DeviceTrap
from dvm_rt.isa import reference, table
from dvm_rt.isa.assembler import assemble
from dvm_rt.isa.program import READ, WRITE, ProgramBuilder, fuel, parse

from tests.isa.cases import cases, epilogue
from tests.isa.random_programs import RandomProgram
from tests.isa.test_fuzz import random_matmul
from tests.native.test_matmul_dtypes import samples

WORK_MAX, BYTES_MAX = 600, 1 << 14  # small programs run fast, and reach every rule all the same


def seeds(rng: np.random.Generator) -> Iterator[tuple[bytes, list[np.ndarray]]]:
    for instruction, form in table.OPCODES:
        for case in list(cases(instruction, form, int(rng.integers(1, 70)), rng))[:2]:
            yield case.program, case.args
    for number in range(160):
        case = RandomProgram(rng, exact=number % 4 > 0).case()
        yield case.program, case.args
    for _ in range(120):
        case = random_matmul(rng)
        yield case.program, case.args
    yield from samples(rng)
    for form in ("i", "b", "k"):
        case = epilogue("add", form, 40, rng)
        yield case.program, case.args
    for _ in range(20):
        yield columns(rng)
    yield from of_encoder(rng)
    yield from of_listings(rng)


def columns(rng: np.random.Generator) -> tuple[bytes, list[np.ndarray]]:
    """Two columns of one matrix written side by side, as a concatenation does, and perhaps read again."""
    left, right, rows, depth = (int(n) for n in rng.integers(1, 9, 4))
    builder, pitch = ProgramBuilder(), 4 * (left + right)
    x = builder.add_arg(4 * max(left, right) * rows * depth)
    y = builder.add_arg(pitch * rows * depth, READ | WRITE)
    for number, (width, base) in enumerate(((left, 0), (right, 4 * left))):
        section = builder.vector(width, rows, depth)
        a = section.operand(x, (4, 4 * width, 4 * width * rows))
        b = section.operand(y, (4, pitch, pitch * rows), base=base, mode=WRITE)
        other = section.operand(y, (0, pitch, pitch * rows), base=0) if number else None
        section.begin_pass()
        section.word("mov.i", a)
        if other is not None:
            section.word("add.b", other)
        section.word("store", b)
        section.end_pass()
        section.word("end_row")
    return builder.build(), [
        rng.standard_normal(max(left, right) * rows * depth).astype(np.float32),
        np.zeros((left + right) * rows * depth, np.float32),
    ]


def of_encoder(rng: np.random.Generator) -> Iterator[tuple[bytes, list[np.ndarray]]]:
    from dvm_rt import _native

    from tests.native.plans import FUSED, Case, arrays_of

    for make in FUSED.values():
        for symbols in ((1, 1), (3, 5), (2, 64), (5, 33)):
            case = Case(2)
            make(case)
            plan = case.build()
            yield _native.Plan(plan.to_bytes()).encode(symbols), arrays_of(plan, symbols, rng)


def of_listings(rng: np.random.Generator) -> Iterator[tuple[bytes, list[np.ndarray]]]:
    from tests.native.test_verify import LISTINGS, ROTARY

    for listing in (*LISTINGS.values(), ROTARY):
        for _ in range(4):
            program = assemble(listing)
            args = parse(program).args
            yield program, [np.frombuffer(rng.bytes(a.bytes), np.uint8).copy() for a in args]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for program, args in seeds(np.random.default_rng(20261122)):
        parsed = parse(program)
        if fuel(parsed.sections) > WORK_MAX or max((a.bytes for a in parsed.args), default=0) > BYTES_MAX:
            continue
        content = [a.reshape(-1).view(np.uint8).tobytes() if a.size else b"" for a in args]
        parts = [program, *content]
        expected = after(program, content)
        data = np.array([len(content), len(expected)], "<u4").tobytes()
        data += b"".join(len(part).to_bytes(4, "little") + part for part in (*parts, *expected))
        (folder / f"{written:04}.seed").write_bytes(data)
        written += 1
    print(f"{written} seeds in {folder}")


def after(program: bytes, content: list[bytes]) -> list[bytes]:
    parsed = parse(program)
    if any(table.OPCODES[w.op][0].ulp for s in parsed.sections for w in s.words):
        return []
    arrays = [np.frombuffer(c, np.uint8).copy() for c in content]
    try:
        reference.run(program, arrays)
    except DeviceTrap:
        return []
    return [a.tobytes() for a in arrays]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
