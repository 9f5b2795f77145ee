"""Some thousands of hostile programs against a real device process; `python -m tests.fuzz.hostile` sends a million."""

from __future__ import annotations

import numpy as np

from dvm_rt.isa.assembler import assemble

from tests.fuzz.hostile import Hostile, code_of
from tests.native.test_verify import LISTINGS, ROTARY, fields, mutate, seeds

MUTANTS = 4000


def test_hostile_programs_are_refused_by_name_and_the_device_works_on() -> None:
    rng = np.random.default_rng(20261122)
    programs = [case.program for case in seeds(rng)] + [assemble(listing) for listing in (*LISTINGS.values(), ROTARY)] * 10
    places = [fields(program) for program in programs]
    device = Hostile()
    try:
        device.works()
        hostile = [b"", b"DVMP", bytes(64), rng.bytes(700)]
        for _ in range(MUTANTS):
            number = int(rng.integers(len(programs)))
            hostile.append(mutate(programs[number], places[number], rng))
        device.feed([(code_of(program), program) for program in hostile])
        device.works()
    finally:
        device.close()
    assert sum(device.refused.values()) > MUTANTS // 3 and device.launched > MUTANTS // 20
    assert {"TRUNCATED", "OUT_OF_BOUNDS", "PERMISSION", "OVERLAP"} <= set(device.refused)
