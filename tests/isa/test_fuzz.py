"""Random programs, right and wrong, on the verifier, the machine and the reference.

Right ones run everywhere with the same bits. Wrong ones are right ones with some fields changed: what the
verifier lets through must run on the reference, which checks every access itself, without a broken rule, and
again with the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dvm_rt.errors import DeviceTrap, InvalidBytecodeError
from dvm_rt.isa import matmul, reference, table
from dvm_rt.isa.assembler import assemble, disassemble
from dvm_rt.isa.program import (
    NONE,
    PACKED,
    READ,
    SCRATCH,
    WORKSPACE,
    WRITE,
    Operand,
    Program,
    ProgramBuilder,
    Section,
    Word,
    fuel,
    parse,
)

from tests.isa.cases import Case, hard_floats
from tests.isa.random_programs import RandomProgram
from tests.isa.test_oracle import TARGETS, _native, assert_same_bits, check, needs_native, run

FUEL_MAX = 20_000  # beyond, the reference is too slow
GUARD = 64


@needs_native
@pytest.mark.parametrize("seed", range(150))
def test_random_programs(seed: int) -> None:
    exact = seed % 3 > 0
    case = RandomProgram(np.random.default_rng(seed), exact).case()
    assert assemble(disassemble(case.program)) == case.program
    if exact:
        check(case, table.BY_NAME["add"], 0)
        return
    program = _native.Program(case.program)
    first, *others = (run(case, lambda args, t=target: program.run(args, t)) for target in TARGETS)
    for target, other in zip(TARGETS[1:], others, strict=True):
        for got, want in zip(other, first, strict=True):
            assert_same_bits(got, want, f"{target} against {TARGETS[0]}")


@needs_native
@pytest.mark.parametrize("seed", range(60))
def test_random_matmuls(seed: int) -> None:
    check(random_matmul(np.random.default_rng(seed)), table.BY_NAME["add"], 0)


@needs_native
def test_what_the_verifier_accepts_breaks_no_rule() -> None:
    accepted = tried = 0
    for seed in range(800):
        rng = np.random.default_rng(seed)
        case = random_matmul(rng) if seed % 4 == 0 else RandomProgram(rng, exact=True).case()
        program = changed(parse(case.program), rng)
        if program.fuel > FUEL_MAX:
            continue
        tried += 1
        try:
            data = program.to_bytes()
            verified = _native.Program(data)
        except InvalidBytecodeError:
            continue
        accepted += 1
        args = [fitted(array, arg.bytes) for array, arg in zip(case.args, program.args, strict=True)]
        want = outcome(lambda a, d=data: reference.run(d, a), args, data)
        for target in TARGETS:
            got = outcome(lambda a, v=verified, t=target: v.run(a, t), args, data)
            assert got == want, f"seed {seed} on {target}\n{disassemble(data)}"
    assert tried > 400
    assert 0.1 < accepted / tried < 0.9


@needs_native
@pytest.mark.parametrize("seed", range(20))
def test_verifier_counts_the_same_fuel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = random_matmul(rng) if seed % 2 else RandomProgram(rng, exact=False).case()
    program = parse(case.program)
    assert program.fuel == fuel(program.sections)
    _native.Program(replace(program, fuel=program.fuel + 1, checksum=None).to_bytes())
    with pytest.raises(InvalidBytecodeError) as error:
        _native.Program(replace(program, fuel=program.fuel - 1, checksum=None).to_bytes())
    assert error.value.code == "FUEL"


@needs_native
@pytest.mark.parametrize(
    ("modes", "accepted"), [((WRITE, READ), True), ((READ, READ), False), ((WRITE, 0), False)]
)
def test_packed_form_needs_its_permissions(modes: tuple[int, int], accepted: bool) -> None:
    """Found by the test above: a packed destination was written without WRITE."""
    builder = ProgramBuilder()
    builder.workspace_bytes = matmul.packed_bytes(3, 2)
    b, a, c = builder.add_arg(24), builder.add_arg(8), builder.add_arg(12, READ | WRITE)
    pack = builder.pack(3, 2)
    pack.operand(b, (4,), depth=12)
    pack.operand(WORKSPACE, mode=modes[0] | PACKED)
    section = builder.matmul(3, 1, 2)
    section.operand(a, (0, 8), depth=4)
    section.operand(WORKSPACE, mode=modes[1] | PACKED)
    section.operand(c, (4, 12), mode=READ | WRITE)
    if accepted:
        _native.Program(builder.build())
    else:
        with pytest.raises(InvalidBytecodeError):
            _native.Program(builder.build())


def outcome(engine: object, args: list[np.ndarray], data: bytes) -> tuple[str, list[bytes]]:
    """What a run gives: "ran" and all bytes of all arguments, or "trap". Guard bytes around the arguments
    stay."""
    guarded = []
    for array in args:
        buffer = np.full(array.size + 2 * GUARD, 0xA5, np.uint8)
        buffer[GUARD:-GUARD] = array
        guarded.append(buffer)
    try:
        engine([buffer[GUARD:-GUARD] for buffer in guarded])
    except DeviceTrap:
        return "trap", []
    except InvalidBytecodeError as error:
        pytest.fail(f"the verifier lets this through: {error}\n{disassemble(data)}")
    for buffer in guarded:
        assert (buffer[:GUARD] == 0xA5).all() and (buffer[-GUARD:] == 0xA5).all(), disassemble(data)
    return "ran", [buffer.tobytes() for buffer in guarded]


def fitted(array: np.ndarray, nbytes: int) -> np.ndarray:
    """The bytes of an array, repeated or cut to `nbytes`."""
    return np.resize(array.reshape(-1).view(np.uint8), nbytes) if array.size else np.zeros(nbytes, np.uint8)


# ---- wrong programs ----------------------------------------------------------------------------------------


def changed(program: Program, rng: np.random.Generator) -> Program:
    """The program with one or two fields changed, its claims about itself (fuel, checksum) made to fit."""
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(program.sections)))
        section = CHANGES[int(rng.integers(len(CHANGES)))](program.sections[at], rng)
        sections = (*program.sections[:at], section, *program.sections[at + 1 :])
        scratch = max([program.scratch_bytes, *(s.scratch_bytes for s in sections)])
        program = replace(program, sections=sections, scratch_bytes=scratch)
    return replace(program, fuel=min(fuel(program.sections), 1 << 50), checksum=None)


def _pick(rng: np.random.Generator, *values: object) -> object:
    return values[int(rng.integers(len(values)))]


def _change_dims(section: Section, rng: np.random.Generator) -> Section:
    dims, at = list(section.dims), int(rng.integers(min(section.rank + 1, 8)))
    dims[at] = max(1, _pick(rng, dims[at] - 1, dims[at] + 1, dims[at] * 2, dims[at] // 2, 1))
    return replace(
        section,
        dims=tuple(dims),
        depth=_pick(rng, section.depth, section.depth, section.depth - 1, section.depth + 1),
    )


def _change_operand(section: Section, rng: np.random.Generator) -> Section:
    at, operands = int(rng.integers(len(section.operands))), list(section.operands)
    x: Operand = operands[at]
    stride, which = list(x.stride), int(rng.integers(section.rank))
    stride[which] = _pick(rng, 0, stride[which] + 4, stride[which] - 4, -stride[which], 4, 8)
    changes = [
        {"stride": tuple(stride)}, {"stride": tuple(stride)}, {"base": x.base + _pick(rng, -4, 4, 1, 64)},
        {"arg": _pick(rng, 0, 1, 2, 3, SCRATCH, WORKSPACE)},
        {"mode": _pick(rng, READ, WRITE, READ | WRITE, x.mode ^ 1, x.mode | 4, x.mode | 8)},
        {"dtype": int(rng.integers(13))},
    ]  # fmt: skip
    if x.limit:
        changes += [{"limit": x.limit + _pick(rng, -1, 1)}, {"index": _pick(rng, NONE, 0, 1, 2)}]
    if x.depth:
        changes += [{"depth": x.depth + _pick(rng, -4, 4, -x.depth)}]
    operands[at] = replace(x, **_pick(rng, *changes))
    return replace(section, operands=tuple(operands))


def _change_word(section: Section, rng: np.random.Generator) -> Section:
    if not section.words:
        return section
    at, words = int(rng.integers(len(section.words))), list(section.words)
    word: Word = words[at]
    words[at] = _pick(
        rng, replace(word, op=int(rng.integers(len(table.OPCODES)))), replace(word, a=int(rng.integers(8))),
        replace(word, k=int(rng.integers(8))),
        Word(_same_group(word.op, rng), word.a, word.k), Word(_same_group(word.op, rng), word.a, word.k),
    )  # fmt: skip
    return replace(section, words=tuple(words))


def _same_group(op: int, rng: np.random.Generator) -> int:
    """Another opcode of the same group and form, exact in its bits."""
    instruction, form = table.OPCODES[op]
    same = [
        c
        for c, (i, f) in enumerate(table.OPCODES)
        if i.group is instruction.group and f == form and not i.ulp
    ]
    return _pick(rng, *same)


def _swap_words(section: Section, rng: np.random.Generator) -> Section:
    words = list(section.words)
    if len(words) > 1:
        at, to = (int(i) for i in rng.integers(len(words), size=2))
        words[at], words[to] = words[to], words[at]
    return replace(section, words=tuple(words))


def _drop_word(section: Section, rng: np.random.Generator) -> Section:
    at = int(rng.integers(max(1, len(section.words))))
    return replace(section, words=section.words[:at] + section.words[at + 1 :])


CHANGES = (
    _change_dims,
    _change_operand,
    _change_operand,
    _change_word,
    _change_word,
    _swap_words,
    _drop_word,
)


# ---- random matmuls ----------------------------------------------------------------------------------------


def random_matmul(rng: np.random.Generator) -> Case:
    """C = A @ B with either operand transposed, B packed or not, one batch dimension or none, an epilogue or
    none."""
    m, n, k = (
        int(rng.integers(1, 20)),
        int(rng.integers(1, 140)),
        int(rng.choice([1, 2, 7, 40, 1030], p=[0.1, 0.2, 0.4, 0.27, 0.03])),
    )
    batch = int(rng.integers(1, 3))
    outer = (lambda step: (step,)) if batch > 1 else (lambda step: ())
    builder, args = ProgramBuilder(), []

    def operand(
        section: object, values: np.ndarray, strides: tuple[int, ...], mode: int = READ, depth: int = 0
    ) -> int:
        args.append(values)
        return section.operand(builder.add_arg(values.nbytes, mode), strides, mode=mode, depth=depth)

    a_transposed, b_transposed, packed = (bool(rng.integers(2)) for _ in range(3))
    a, b = (rng.standard_normal((batch, size, k)).astype(np.float32) for size in (m, n))
    if rng.integers(4) == 0:
        a[0, 0, 0] = _pick(rng, np.nan, np.inf, -0.0)
    a, a_strides = (a.transpose(0, 2, 1).copy(), (4, 4 * m)) if a_transposed else (a, (4 * k, 4))
    b, b_strides = (b, (4 * k, 4)) if b_transposed else (b.transpose(0, 2, 1).copy(), (4, 4 * n))
    if packed:
        b = b[:1]
        builder.workspace_bytes = matmul.packed_bytes(n, k)
        pack = builder.pack(n, k)
        operand(pack, b, b_strides[:1], depth=b_strides[1])
        pack.operand(WORKSPACE, mode=WRITE | PACKED)
    section = builder.matmul(n, m, k, *([batch] if batch > 1 else []))
    operand(section, a, (0, a_strides[0], *outer(4 * m * k)), depth=a_strides[1])
    if packed:
        section.operand(WORKSPACE, mode=READ | PACKED)
    else:
        operand(section, b, (b_strides[0], 0, *outer(4 * n * k)), depth=b_strides[1])
    c = operand(section, np.full((batch, m, n), 7, np.float32), (4, 4 * n, *outer(4 * m * n)), READ | WRITE)
    outputs = [len(args) - 1]
    if rng.integers(3):
        bias, full = (
            operand(section, hard_floats(rng, n), (4,)),
            operand(section, hard_floats(rng, m, n), (4, 4 * n)),
        )
        column = operand(section, hard_floats(rng, m), (0, 4))
        names = [i.name for i in table.INSTRUCTIONS if i.group is table.Group.BINARY and "float32" in i.compute_dtypes]
        section.word("mov.i", c)
        section.word("store_slot", 3)
        for _ in range(int(rng.integers(1, 6))):
            form, value = _pick(
                rng, ("i", bias), ("i", full), ("b", column), ("s", 3), ("k", float(hard_floats(rng, 1)[0]))
            )
            section.word(f"{_pick(rng, 'add', 'mul', 'sub', *names)}.{form}", value)
        section.word("store", c)
        section.word("end")
    return Case("matmul", builder.build(), args, outputs)
