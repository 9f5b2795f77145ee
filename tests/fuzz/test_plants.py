"""Planted bugs: each place stands in the sources, the sources with all of them compile to choices, programs come by
each of them, and the fuzzer sees a sample."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dvm_rt import dtypes
from dvm_rt.isa import header
from dvm_rt.isa.program import parse
from tests.fuzz import corpus
from tests.fuzz.plants import NATIVE, PLANTS, SOURCES, hunt, reached, switched, write

FILES = sorted({plant.file for plant in PLANTS})
HERE = Path(__file__).parent
CXX = os.environ.get("CXX", "g++")
needs_compiler = pytest.mark.skipif(not shutil.which(CXX), reason=f"the choices are compiled with {CXX}")
SAMPLE = ("argument-align", "section-unused-dim", "operand-permission", "bounds-count", "bounds-negative-stride", "bounds-gather",
          "overlap-base", "acc-unary", "slot-unset", "row-unset", "copy-mode", "host-elements",
          "windows-part-of-a-row", "windows-bounds-place-row", "windows-across", "choose-any-store", "choose-not-back",
          "alike-high", "alike-fuel", "control-flag-stride", "loop-across-region",
          "read-before-write", "output-one-byte")  # fmt: skip
FLAGS = ["-std=gnu++20", "-w", "-fwrapv", "-ffp-contract=off", "-DFUZZ_PLANTS", f"-I{NATIVE}", f"-I{HERE}"]
EXECUTIONS = 40_000  # for each of them: a few tenths of a second


def test_names_are_not_repeated_and_there_are_enough() -> None:
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 200


@pytest.mark.parametrize("file", FILES)
def test_each_place_stands_once_and_becomes_a_choice(file: str) -> None:
    plants = [(number, plant) for number, plant in enumerate(PLANTS) if plant.file == file]
    text = switched((NATIVE / file).read_text(), plants)
    for number, plant in plants:
        assert f"planted({number})" in text, plant
    assert file.removesuffix(".cpp") in SOURCES or file.endswith(".h")


@needs_compiler
@pytest.mark.parametrize("file", ["machine.cpp", "program.cpp", "known_passes.h"])
def test_the_choices_compile(file: str, tmp_path: Path) -> None:
    (tmp_path / "layout.h").write_text(header.header())
    (tmp_path / file).write_text(switched((NATIVE / file).read_text(), [(n, p) for n, p in enumerate(PLANTS) if p.file == file]))
    subprocess.run([CXX, *FLAGS, f"-I{tmp_path}", "-fsyntax-only", tmp_path / file], check=True)


def built(folder: Path, kind: list[str], kernels: dict[str, list[str]], stand_in: str = "") -> Path:
    """A fuzzer with all planted bugs in the verifier and what loads programs, and in these kernels."""
    (folder / "layout.h").write_text(header.header())
    (folder / "stand_in.cpp").write_text(stand_in)
    write(folder)
    launcher = [found] if (found := shutil.which("ccache")) else []
    everything = {**dict.fromkeys(("verify", "program", "split", "fuzz", "stand_in"), []), **kernels}
    sources = [next(p for where in (folder, NATIVE, HERE) if (p := where / f"{name}.cpp").exists()) for name in everything]
    steps = [subprocess.Popen([*launcher, CXX, *FLAGS, *kind, f"-I{folder}", *own, "-c", source, "-o", folder / f"{name}.o"])
             for (name, own), source in zip(everything.items(), sources, strict=True)]  # fmt: skip
    assert not any([step.wait() for step in steps])
    subprocess.run([CXX, *(folder / f"{name}.o" for name in everything), "-o", folder / "fuzz"], check=True)
    return folder / "fuzz"


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Verifier with all its planted bugs, shadow machine and mutator; no kernels."""
    folder = tmp_path_factory.mktemp("plants")
    built(folder, ["-O1", "-DFUZZ_WALKS"], {})
    rng = np.random.default_rng(20261123)
    some = {
        "copies": corpus.of_copies(rng), "host": corpus.of_host(rng), "control": corpus.of_control(rng),
        "columns": (corpus.columns(rng) for _ in range(8)),
        "gathered": (corpus.gathered(rng) for _ in range(8)), "buffers": (corpus.buffered(rng) for _ in range(4)),
        "listings": corpus.of_listings(rng), "windows": (corpus.windows(rng, number) for number in range(24)),
        "alike": (corpus.alike(rng, number) for number in range(32)),
        "passes": (corpus.whole_pass(rng, number) for number in range(8)),
        "vector": ((c.program, c.args) for c in (corpus.RandomProgram(rng, exact=True).case() for _ in range(30))),
    }  # fmt: skip
    corpus.write(folder / "corpus", some.items())
    return folder


@needs_compiler
def test_a_sample_of_the_plants_is_found(fuzzer: Path) -> None:
    numbers = [n for n, plant in enumerate(PLANTS) if plant.name in SAMPLE]
    assert len(numbers) == len(SAMPLE)
    found = list(hunt(numbers, fuzzer / "fuzz", fuzzer / "corpus", executions=EXECUTIONS))
    print(*((one.plant.name, one.found, one.executions, one.cpu_seconds, one.why) for one in found), sep="\n")
    assert [one.plant.name for one in found if not one.found] == [] and len(found) == len(SAMPLE)
    assert {one.why.split(":")[0] for one in found} <= {"shadow", "verifier", "choices"}


@needs_compiler
def test_where_nothing_is_planted_nothing_is_found(fuzzer: Path) -> None:
    command = [fuzzer / "fuzz", fuzzer / "corpus", "--executions", str(2 * EXECUTIONS), "--progress", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"executions={2 * EXECUTIONS} " in done.stdout, done.stdout + done.stderr


# ---- does a program come by each place? -----------------------------------------------------------------------------
ONE_DTYPE = ["-DDVM_TARGET=baseline", "-DDVM_DTYPE=float32", "-DDVM_IS_float32", "-DDVM_ELEMENT=float",
             '-DDVM_VEC="vec.h"', '-DDVM_ROWS="rows_float.h"']  # fmt: skip
KERNELS = {**dict.fromkeys(("machine", "threads", "shared"), []),
           **dict.fromkeys(("kernels", "matmul", "copy", "attention", "vector"), ONE_DTYPE)}  # fmt: skip
OTHER_DTYPES = """#include "strip.h"
namespace dvm::baseline {
#define X(dtype) \\
  namespace dtype { void run_vector(Context&, const SectionRun&) { __builtin_trap(); } \\
    void run_strip(Context&, const Word*, int64_t) { __builtin_trap(); } }
X(float64) X(int32) X(uint32) X(int64) X(uint64)
}
"""


def in_float32(made: Iterable[corpus.Made]) -> Iterator[corpus.Made]:
    for program, args in made:
        if all(section.dtype == dtypes.float32.code for section in parse(program).sections if section.words):
            yield program, args


@needs_compiler
def test_seeds_come_by_the_place_of_each_plant(tmp_path: Path) -> None:
    """Nobody sees a bug in what never runs: a place that no program comes by wants a new seed, or is no place for a plant."""
    fuzz = built(tmp_path, ["-O0"], KERNELS, OTHER_DTYPES)
    families = corpus.families(np.random.default_rng(20261122))
    count = corpus.write(tmp_path / "corpus", ((family, in_float32(made)) for family, made in families))
    seen = reached(fuzz, tmp_path / "corpus", "--golden-every", "1", "--executions", str(count))
    assert [plant.name for plant in PLANTS if plant.name not in seen] == []
