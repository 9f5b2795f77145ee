"""Branches, jumps and loops on the machine: same answers as the reference, nesting as both verifiers say, limits, what is known
to be written on every way."""

from __future__ import annotations

import numpy as np
import pytest

from dvm_rt import _native, dtypes
from dvm_rt.errors import DeviceTimeoutError, DeviceTrap, InvalidBytecodeError
from dvm_rt.isa import reference
from dvm_rt.isa.assembler import assemble, disassemble
from dvm_rt.isa.program import READ, WRITE, ProgramBuilder, fuel, parse
from dvm_rt.isa.verifier import check

N = 40  # elements of the state
FLAGS = 6


class Random:
    """A random program over one vector of state and some flags, of branches with and without an else, and loops."""

    def __init__(self, rng: np.random.Generator, elements: int = N) -> None:
        self.rng, self.program, self.depth, self.elements = rng, ProgramBuilder(), 0, elements
        self.flags = self.program.add_arg(FLAGS, READ, dtypes.bool_)
        self.out = self.program.add_arg(4 * elements, READ | WRITE)
        self.block()
        self.step()
        self.code = self.program.build()

    def step(self) -> None:
        """state = state * a + b"""
        section = self.program.vector(self.elements)
        section.operand(self.out, (4,))
        section.operand(self.out, (4,), mode=WRITE)
        section.begin_pass()
        section.word("mov.i", 0)
        section.word("mul.k", float(self.rng.integers(-2, 4)))
        section.word("add.k", float(self.rng.integers(-3, 4)))
        section.word("store", 1)
        section.end_pass()
        section.word("end_row")

    def block(self) -> None:
        self.depth += 1
        for _ in range(int(self.rng.integers(0, 4))):
            choice = self.rng.random() if self.depth < 5 else 0.0
            (self.step if choice < 0.4 else self.condition if choice < 0.75 else self.loop)()
        self.depth -= 1

    def condition(self) -> None:
        sections = self.program.sections
        self.program.branch(self.flags, 0, base=int(self.rng.integers(FLAGS)))
        branch = len(sections)
        self.block()
        if self.rng.random() < 0.5:
            self.program.jump(0)
            jump = len(sections)
            sections[branch - 1].depth = jump - branch
            self.block()
            sections[jump - 1].depth = len(sections) - jump
        else:
            sections[branch - 1].depth = len(sections) - branch

    def loop(self) -> None:
        begin = len(self.program.sections)
        self.block()
        flag = self.flags if self.rng.random() < 0.2 else None
        self.program.loop(len(self.program.sections) - begin, int(self.rng.integers(1, 4)), flag, int(self.rng.integers(FLAGS)))


def both(code: bytes, args: list[np.ndarray]) -> tuple[str, bytes]:
    """What every target and the reference do: the trap's code or "", and the last argument's bytes."""
    outcomes = set()
    for run in (lambda a: reference.run(code, a), *(lambda a, t=t: _native.Program(code).run(a, t) for t in _native.targets())):
        copies = [a.copy() for a in args]
        try:
            run(copies)
            outcomes.add(("", copies[-1].tobytes()))
        except DeviceTrap as trap:
            outcomes.add(("LOOP_LIMIT" if "LOOP_LIMIT" in str(trap) else str(trap), b""))
    assert len(outcomes) == 1, disassemble(code)
    return outcomes.pop()


def test_random_programs() -> None:
    rng = np.random.default_rng(5)
    traps = control = 0
    for _ in range(150):
        code = Random(rng).code
        assert check(code) is None, (check(code), disassemble(code))
        assert assemble(disassemble(code)) == code
        flags = rng.integers(0, 2, FLAGS).astype(np.bool_)
        traps += both(code, [flags, np.zeros(N, np.float32)])[0] == "LOOP_LIMIT"
        control += len(parse(code).sections) > 5
    assert traps > 5 and control > 50


def test_any_nesting_is_judged_alike_by_both_verifiers() -> None:
    """Control sections with random spans: accepted by both or by neither; and what is accepted ends within its fuel."""
    rng = np.random.default_rng(6)
    accepted = 0
    for _ in range(3000):
        program = ProgramBuilder()
        flags = program.add_arg(1, READ, dtypes.bool_)
        count = int(rng.integers(1, 8))
        for _ in range(count):
            span = int(rng.integers(0, 4))
            kind = rng.integers(3)
            if kind == 0:
                program.branch(flags, span)
            elif kind == 1:
                program.jump(span)
            else:
                program.loop(span, int(rng.integers(1, 4)), flags if rng.random() < 0.5 else None)
        code = program.build()
        try:
            loaded = _native.Program(code)
        except InvalidBytecodeError as error:
            assert error.code in ("JUMP", "NESTING")
            assert check(code) is not None, disassemble(code)
            continue
        assert check(code) is None, (check(code), disassemble(code))
        accepted += 1
        for flag in (False, True):
            try:
                loaded.run([np.array([flag])])
            except DeviceTrap as trap:
                assert "LOOP_LIMIT" in str(trap)
    assert 200 < accepted < 2700


def counting() -> tuple[ProgramBuilder, int]:
    """A section that adds 1 to its argument; and a flag for loops around it."""
    program = ProgramBuilder()
    flag = program.add_arg(1, READ, dtypes.bool_)
    out = program.add_arg(8, READ | WRITE, dtypes.int64)
    section = program.vector(1, dtype=dtypes.int64)
    section.operand(out, (8,))
    section.operand(out, (8,), mode=WRITE)
    section.begin_pass()
    section.word("mov.i", 0)
    section.word("add.k", 1)
    section.word("store", 1)
    section.end_pass()
    section.word("end_row")
    return program, flag


def test_a_loop_stops_at_its_limit_and_the_next_run_starts_anew() -> None:
    program, flag = counting()
    program.loop(1, 3)
    program.loop(2, 5, flag)
    loaded = _native.Program(program.build())
    count = np.zeros(1, np.int64)
    for _ in range(2):
        with pytest.raises(DeviceTrap, match=r"section 2.*LOOP_LIMIT, got 5, allowed 5$"):
            loaded.run([np.array([True]), count])
        loaded.run([np.array([False]), count])
        assert count[0] == 3


@pytest.mark.parametrize("target", _native.targets())
def test_a_loop_that_does_not_end_is_stopped(target: str) -> None:
    """Within its limit of iterations it would run for hours; the machine works on."""
    program, flag = counting()
    program.loop(1, 1 << 16)
    program.loop(2, 1 << 20, flag)
    loaded, count = _native.Program(program.build()), np.zeros(1, np.int64)
    with pytest.raises(DeviceTimeoutError, match=r"section [12]: a loop that goes on, got \d+ ms, allowed 20 ms$"):
        loaded.run([np.array([True]), count], target, loop_s=0.02)
    assert 0 < count[0] < 1 << 36
    loaded.run([np.array([False]), count], target)
    assert count[0] == 1 << 16


def test_fuel_counts_a_body_as_often_as_it_may_run() -> None:
    program = ProgramBuilder()
    out = program.add_arg(4 * N, WRITE)
    section = program.vector(N)
    section.operand(out, (4,), mode=WRITE)
    section.begin_pass()
    section.word("mov.k", 1.0)
    section.word("store", 0)
    section.end_pass()
    section.word("end_row")
    program.loop(1, 10)
    program.loop(2, 100)
    assert fuel(parse(program.build()).sections) == ((6 + 1) * 10 + 1) * 100


@pytest.mark.parametrize("with_else", [False, True])
def test_what_only_one_way_writes_is_cleared(with_else: bool) -> None:
    """An argument that both ways write starts as it is; one that only one way writes starts as zeros."""
    program = ProgramBuilder()
    flag = program.add_arg(1, READ, dtypes.bool_)
    out = program.add_arg(4 * N, WRITE)

    def store(value: float) -> None:
        section = program.vector(N)
        section.operand(out, (4,), mode=WRITE)
        section.begin_pass()
        section.word("mov.k", value)
        section.word("store", 0)
        section.end_pass()
        section.word("end_row")

    program.branch(flag, 1 + with_else)
    store(1.0)
    if with_else:
        program.jump(1)
        store(2.0)
    loaded = _native.Program(program.build())
    assert (out in loaded.cleared) is not with_else
    for set_, expected in ((True, 1.0), (False, 2.0 if with_else else 0.0)):
        array = np.full(N, 7, np.float32)
        loaded.run([np.array([set_]), array])
        assert (array == expected).all()
