"""Some thousands of hostile programs against a real device process; `scripts/fuzz --hostile` sends a million."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from dvm_rt.isa.assembler import assemble

from tests.fuzz.hostile import Hostile, code_of, main
from tests.native.test_verify import LISTINGS, ROTARY, fields, mutate, seeds

MUTANTS = 4000


def test_hostile_programs_are_refused_by_name_and_the_device_works_on() -> None:
    rng = np.random.default_rng(20261122)
    programs = [case.program for case in seeds(rng)] + [assemble(listing) for listing in (*LISTINGS.values(), ROTARY)] * 10
    places = [fields(program) for program in programs]
    with Hostile() as device:
        device.works()
        hostile = [b"", b"DVMP", bytes(64), rng.bytes(700)]
        for _ in range(MUTANTS):
            number = int(rng.integers(len(programs)))
            hostile.append(mutate(programs[number], places[number], rng))
        device.feed([(code_of(program), program) for program in hostile])
        device.works()
    assert device.process.returncode == -signal.SIGKILL
    assert sum(device.refused.values()) > MUTANTS // 3 and device.launched > MUTANTS // 20
    assert {"TRUNCATED", "OUT_OF_BOUNDS", "PERMISSION", "OVERLAP"} <= set(device.refused)


@pytest.mark.parametrize("fuzzer", ["is not there", "dies", "ends early"])
def test_a_fuzzer_that_fails_is_said_and_leaves_no_device(fuzzer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Hostile] = []
    start = Hostile.__init__
    monkeypatch.setattr(Hostile, "__init__", lambda self: (devices.append(self), start(self))[1])
    path = tmp_path / "fuzz"
    if fuzzer != "is not there":
        path.write_text("#!/bin/sh\n" + ("kill -9 $$" if fuzzer == "dies" else "printf '\\0\\4\\0\\0\\0DVMP'"))
        path.chmod(0o700)
    with pytest.raises(SystemExit, match="^hostile: fuzzer: .*, got .*, allowed "):
        main(5, 1, path)
    assert len(devices) == (fuzzer != "is not there")
    assert all(device.process.returncode == -signal.SIGKILL for device in devices)
