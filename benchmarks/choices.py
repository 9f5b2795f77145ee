"""What measuring choices on the device could gain: prefetch distances, and stores past the caches or through them.

    python -m benchmarks.choices [--rounds 9]

These are the choices of the encoder that change no bits: it takes stores past the caches and prefetches beyond L2, a distance
for long rows, the next row for short ones, by one rule for all kernels; native/tuning.h tries a few of the others where
programs run often. Here the words of encoded programs are rewritten to every other choice, and all are run in turns on the
same buffers, the encoder's own twice: the difference of these two is what a tuner would take for a gain where there is none.
Buffers are aligned as the arena's are, or no store would go past the caches, and the first runs of a turn are not timed: they
find in the caches what the choice before has left there. Printed: nanoseconds an element of the encoder's choice, and each
other one's gain over the faster of the two (negative: it loses)."""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Callable

import numpy as np

import dvm_rt as dvm
from dvm_rt import _native
from dvm_rt.array.function import planned_for
from dvm_rt.isa.assembler import assemble, disassemble

FETCH, PAST = re.compile(r"(fetch x\d+) \d+"), re.compile(r"\bstore_nt\b")
LOOP = re.compile(r"\bloop -(\d+)")
DISTANCES = {**{f"{distance} ahead": distance for distance in (512, 1024, 2048, 4096, 8192)}, "next row": 0}
SETTLING_RUNS = 2
SIZES = ((512, 768), (2048, 256), (1024, 1024), (1024, 4096), (16, 1 << 18))


def chain(x: dvm.Array, y: dvm.Array) -> dvm.Array:
    for _ in range(4):
        x = dvm.tanh(x * y + 0.5)
    return x


KERNELS: dict[str, Callable[..., dvm.Array]] = {
    "add": lambda x, y: x + y, "chain of 12": chain, "softmax": lambda x, y: dvm.softmax(x, axis=-1),
    "layer norm": lambda x, y: dvm.layer_norm(x, y[0], y[1]), "gelu": lambda x, y: dvm.gelu(x),
    "sum of rows": lambda x, y: dvm.sum(x, axis=-1),
}  # fmt: skip


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for float32 that begins at a cache line."""
    size = 4 * math.prod(shape)
    memory = np.zeros(size + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size].view(np.float32).reshape(shape)


def without_prefetches(text: str) -> str:
    """Assembler text without its words `fetch`."""
    lines, dropped = [], 0
    for line in text.splitlines(keepends=True):
        if FETCH.search(line):
            dropped += 1
            continue
        if found := LOOP.search(line):
            line, dropped = LOOP.sub(f"loop -{int(found[1]) - dropped}", line), 0
        lines.append(line)
    return "".join(lines)


def choices(code: bytes) -> dict[str, bytes]:
    """The encoder's program, twice, and those of all other choices."""
    text, found = disassemble(code), {"as encoded": code, "again": code}
    if FETCH.search(text):
        found["no prefetch"] = assemble(without_prefetches(text))
        found |= {name: assemble(FETCH.sub(rf"\g<1> {distance}", text)) for name, distance in DISTANCES.items()}
    if PAST.search(text):
        found["through the caches"] = assemble(PAST.sub("store", text))
    return {name: other for name, other in found.items() if name in ("as encoded", "again") or other != code}


def measure(rounds: int) -> None:
    rng = np.random.default_rng(0)
    for name, python in KERNELS.items():
        for shape in SIZES:
            x, y = (rng.standard_normal(shape, np.float32) for _ in range(2))
            of, planned, tensors = planned_for(dvm.function(python), (dvm.asarray(x), dvm.asarray(y)), {})
            programs = {what: _native.Program(code) for what, code in choices(of.program_bytes(planned, tensors)).items()}
            if len(programs) == 2:
                continue  # it stays in the caches: nothing to choose
            buffers = [aligned(shape if name != "sum of rows" else shape[:1]), *(aligned(shape) for _ in tensors)]
            for buffer, values in zip(buffers[1:], (x, y)):
                buffer[...] = values
            times: dict[str, list[float]] = {what: [] for what in programs}
            for _ in range(rounds):
                for what, program in programs.items():
                    program.time_run(buffers, SETTLING_RUNS)
                    times[what].append(program.time_run(buffers, 3) / x.size)
            best = {what: statistics.median(ns) for what, ns in times.items()}
            base = min(best.pop("as encoded"), best.pop("again"))
            twice = [statistics.median(times[what]) for what in ("as encoded", "again")]
            gains = "  ".join(f"{what} {base / ns - 1:+.1%}" for what, ns in best.items())
            again = min(twice) / max(twice) - 1
            print(f"{name:12} {shape[0]:5} x {shape[1]:<7} {base:7.3f} ns  again {again:+.1%}  {gains}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    measure(parser.parse_args().rounds)
