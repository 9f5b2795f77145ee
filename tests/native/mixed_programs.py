"""Programs of many sections of all kinds and dtypes, one after the other, for machines with threads: whatever a thread keeps from
one section to the next must not show in what comes later, and neither must who ran it.

    python -m tests.native.mixed_programs FOLDER COUNT [SEED]

writes such programs with what their arguments hold, as seeds of the fuzzer (tests/fuzz/corpus.py), for machines_stress.cpp."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from dvm_rt import dtypes
from dvm_rt.isa import layout, matmul, table
from dvm_rt.isa.program import PACKED, READ, WORKSPACE, WRITE, Program, ProgramBuilder, fuel, parse

from tests.isa.cases import Case
from tests.isa.random_programs import RandomProgram
from tests.isa.test_fuzz import random_matmul
from tests.native import test_attention, test_matmul, test_matmul_dtypes, test_matmul_groups

BLOCK = layout.LIMITS["BLOCK"]
FAR = test_attention.FAR
Made = tuple[bytes, list[np.ndarray]]


def mixed(rng: np.random.Generator, count: int, long_rows: float = 0.1) -> Case:
    """`count` programs in one; `long_rows`: how many of them have rows of several blocks."""
    made = [_some(rng) if rng.random() >= long_rows else (_long_rows, _shared_rows)[int(rng.integers(2))](rng)
            for _ in range(count)]
    program = merged([parse(program) for program, _ in made])
    args = [array for _, arrays in made for array in arrays]
    return Case("mixed", program.to_bytes(), args, [i for i, arg in enumerate(program.args) if arg.mode & WRITE])


def merged(programs: list[Program]) -> Program:
    """All of their sections, in order; each has arguments and a workspace of its own."""
    args, sections, workspace = [], [], 0
    for program in programs:
        for section in program.sections:
            operands = []
            for x in section.operands:
                if x.arg < len(program.args):
                    x = replace(x, arg=x.arg + len(args))
                elif x.arg == WORKSPACE:
                    x = replace(x, base=x.base + workspace)
                operands.append(x)
            sections.append(replace(section, operands=tuple(operands)))
        args += program.args
        workspace += -(-program.workspace_bytes // 64) * 64
    return Program(tuple(args), tuple(sections), workspace, max(p.scratch_bytes for p in programs), fuel(sections))


def _some(rng: np.random.Generator) -> Made:
    kinds = (_vector, _vector, _matmul, _dense, _other_dtypes, _groups, _attention, _pack)
    return kinds[int(rng.integers(len(kinds)))](rng)


def _vector(rng: np.random.Generator) -> Made:
    case = RandomProgram(rng, exact=False).case()
    return case.program, case.args


def _long_rows(rng: np.random.Generator) -> Made:
    case = RandomProgram(rng, exact=False, asked=int(rng.integers(BLOCK + 1, 4 * BLOCK))).case()
    return case.program, case.args


def _shared_rows(rng: np.random.Generator) -> Made:
    """Few rows, which several threads share: reductions of each kind, and then each element with what they gave."""
    row, rows, builder = int(rng.integers(BLOCK + 1, 4 * BLOCK)), 1 + int(rng.integers(4) == 0), ProgramBuilder()
    dtype = (dtypes.float32, dtypes.float32, dtypes.int32, dtypes.uint32)[int(rng.integers(4))]
    x = np.where(rng.random((rows, row)) < 0.5, -1, 1) * rng.uniform(1, 1.0001, (rows, row))
    x = (x if rng.integers(2) else -np.abs(x)).astype(np.int64 if dtype.kind != "f" else np.float32).astype(dtype.numpy)
    y, args, section = np.empty_like(x), [x], builder.vector(row, rows, dtype=dtype)
    a = section.operand(builder.add_arg(x.nbytes, READ, dtype), (4, 4 * row))
    kinds = [4 * int(kind) + int(rng.integers(4)) for kind in rng.permutation(4)[: int(rng.integers(1, 5))]]
    section.begin_pass()
    section.word("mov.i", a)
    for r in kinds:
        section.word(f"acc_{list(table.REDUCTIONS)[r // 4]}", r)
    section.end_pass(*kinds)
    for number, r in enumerate(kinds):
        args.append(np.empty(rows, dtype.numpy))
        section.word(f"fold_{list(table.REDUCTIONS)[r // 4]}", r)
        section.word("store_per_row", section.operand(builder.add_arg(4 * rows, WRITE, dtype), (0, 4), mode=WRITE))
        section.word("store_row", number)
    section.begin_pass()
    section.word("mov.i", a)
    section.word("mul.r", int(rng.integers(len(kinds))))
    section.word("store", section.operand(builder.add_arg(y.nbytes, WRITE, dtype), (4, 4 * row), mode=WRITE))
    section.end_pass()
    section.word("end_row")
    return builder.build(), [*args, y]


def _matmul(rng: np.random.Generator) -> Made:
    case = random_matmul(rng)
    return case.program, case.args


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _dense(rng: np.random.Generator) -> Made:
    """A product with an epilogue, in all layouts of B, over slices of K, blocks of rows, several groups of panels."""
    m, k, n = int(rng.choice([1, 5, 15, 60, 150])), int(rng.choice([3, 64, 257, 1030])), int(rng.choice([1, 31, 100, 300, 1100]))
    epilogue = test_matmul.dense_epilogue(_normal(rng, n), _normal(rng, m, n), _normal(rng, m, 1))
    of_b = list(test_matmul.LAYOUTS.values())[int(rng.integers(len(test_matmul.LAYOUTS)))]
    b = _normal(rng, k, n)
    packed = matmul.pack(b) if rng.integers(3) == 0 else None
    code, args, _ = test_matmul.program(_normal(rng, m, k), of_b(b), packed, epilogue)
    return code, args


def _other_dtypes(rng: np.random.Generator) -> Made:
    name, left, right = [*test_matmul_dtypes.INTEGERS, ("float64",) * 3][int(rng.integers(11))]
    m, k, n = (int(x) for x in rng.integers(1, (40, 60, 150)))
    of = test_matmul_dtypes.values
    a, b = of(dtypes.BY_NAME[left], 2, m, k), of(dtypes.BY_NAME[right], 2, k, n)
    return test_matmul_dtypes.program(a, b, dtypes.BY_NAME[name], columns=bool(rng.integers(2)))


def _groups(rng: np.random.Generator) -> Made:
    m, k, n = (int(x) for x in rng.integers(1, (50, 40, 200)))
    rows = np.diff(np.sort(rng.integers(0, m + 1, 3)), prepend=0, append=m).astype(np.int64)
    form = test_matmul_groups.FORMS[int(rng.integers(3))]
    others = (_normal(rng, m, n), _normal(rng, m, 1)) if rng.integers(2) else ()
    return test_matmul_groups.program(_normal(rng, m, k), _normal(rng, 4, k, n), rows, form, *others)


def _attention(rng: np.random.Generator) -> Made:
    heads, queries, keys = int(rng.integers(1, 4)), int(rng.choice([1, 2, 15, 60, 130])), int(rng.choice([1, 70, 129, 400]))
    depth = int(rng.choice([4, 16, 33]))
    q, k, v = (_normal(rng, heads, rows, depth) for rows in (queries, keys, keys))
    mask = (rng.random((queries, keys)) < 0.7).astype(np.uint8) if rng.integers(2) else None
    code, args, _ = test_attention.program(q, k, v, mask, limit=FAR if rng.integers(2) else int(rng.integers(0, keys)))
    return code, args


def _pack(rng: np.random.Generator) -> Made:
    n, k = int(rng.integers(1, 300)), int(rng.choice([1, 40, 1030]))
    b, size, builder = _normal(rng, k, n), matmul.packed_bytes(n, k), ProgramBuilder()
    section = builder.pack(n, k)
    section.operand(builder.add_arg(b.nbytes, READ), [4], depth=4 * n)
    section.operand(builder.add_arg(size, WRITE), mode=WRITE | PACKED)
    return builder.build(), [b, np.full(size // 4, 7, np.float32)]


def main(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        case = mixed(rng, int(rng.integers(1, 9)))
        parts = [case.program, *(np.ascontiguousarray(a).reshape(-1).view(np.uint8).tobytes() for a in case.args)]
        data = np.array([len(case.args), 0], "<u4").tobytes() + b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        (folder / f"mixed.{number:05}.seed").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(a) for a in sys.argv[2:]))
