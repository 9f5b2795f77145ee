"""Planted bugs: each place stands in the sources, the sources with all of them compile to choices, and the fuzzer sees a sample."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.plants import NATIVE, PLANTS, SOURCES, switched

FILES = sorted({plant.file for plant in PLANTS})


def test_names_are_not_repeated_and_there_are_enough() -> None:
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 160


@pytest.mark.parametrize("file", FILES)
def test_each_place_stands_once_and_becomes_a_choice(file: str) -> None:
    plants = [(number, plant) for number, plant in enumerate(PLANTS) if plant.file == file]
    text = switched((NATIVE / file).read_text(), plants)
    for number, plant in plants:
        assert f"planted_bug == {number} " in text or f"planted_bug == {number})" in text, plant
    assert file.removesuffix(".cpp") in SOURCES or file.endswith(".h")


@pytest.mark.skipif(not shutil.which("g++"), reason="the choices are compiled with g++")
@pytest.mark.parametrize("file", ["machine.cpp", "program.cpp"])
def test_the_choices_compile(file: str, tmp_path: Path) -> None:
    from dvm_rt.isa import header

    (tmp_path / "layout.h").write_text(header.header())
    (tmp_path / file).write_text(switched((NATIVE / file).read_text(), [(n, p) for n, p in enumerate(PLANTS) if p.file == file]))
    subprocess.run(["g++", "-std=gnu++20", "-w", "-fsyntax-only", f"-I{tmp_path}", f"-I{NATIVE}", tmp_path / file], check=True)
