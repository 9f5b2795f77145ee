"""Two threads against one: `python benchmarks/threads.py [part of a case's name ...] [--threads N]`.

Alternating runs of one program; a line tells the median of the pairs' ratios, and the CPU time of many threads
in units of one thread's: close to 1 where sharing costs nothing. Ratios mean nothing where other processes take the CPUs: rounds
are repeated, up to a limit, until there are enough in which the threads had a CPU each (CPU time over time, of all threads
together, close to their number), and only those count if there are any."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.limits import placed
from dvm_rt import _native
from dvm_rt.isa import matmul
from dvm_rt.isa.program import PACKED, READ, WRITE, ProgramBuilder

ROUNDS, ROUNDS_MAX, ROUND_NS = 9, 40, 2e7
FREE = 0.9  # of the CPUs: a round with this share is one that counts
CHAIN = (("mul.k", 1.1), ("add.k", 0.5), ("abs",), ("mul.k", 0.9), ("add.k", 0.1), ("max.k", 0.2), ("mul.k", 1.01),
         ("sub.k", 0.3))
Case = tuple[bytes, list[np.ndarray]]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def rows_program(rows: int, columns: int, passes: list[tuple]) -> Case:
    """Passes of (words, reductions, row words); operands 0 and 1 are input and output, 2 is kept in the row."""
    builder = ProgramBuilder()
    section, size = builder.vector(columns, rows), 4 * columns
    section.operand(builder.add_arg(size * rows), (4, size))
    section.operand(builder.add_arg(size * rows, WRITE), (4, size), mode=WRITE)
    section.row_buffer()
    for words, reductions, row_words in passes:
        section.begin_pass()
        for word in words:
            section.word(*word)
        section.end_pass(*reductions)
        for word in row_words:
            section.word(*word)
    section.word("end_row")
    return builder.build(), placed([random(rows, columns), np.empty((rows, columns), np.float32)])


def chain(rows: int, columns: int) -> Case:
    return rows_program(rows, columns, [([("mov.i", 0), *CHAIN, ("store_nt", 1)], (), ())])


def softmax(rows: int, columns: int) -> Case:
    largest = ([("mov.i", 0), ("acc_max", 4)], (4,), [("fold_max", 4), ("store_row", 0)])
    powers = ([("mov.i", 0), ("sub.r", 0), ("exp",), ("acc_sum", 0), ("store", 2)], (0,),
              [("fold_sum", 0), ("recip",), ("store_row", 1)])
    return rows_program(rows, columns, [largest, powers, ([("mov.i", 2), ("mul.r", 1), ("store", 1)], (), ())])


def product(m: int, k: int, n: int, packed: bool) -> Case:
    builder, b = ProgramBuilder(), random(k, n)
    b = matmul.pack(b) if packed else b
    section = builder.matmul(n, m, k)
    section.operand(builder.add_arg(4 * m * k), [0, 4 * k], depth=4)
    if packed:
        section.operand(builder.add_arg(b.nbytes), mode=READ | PACKED)
    else:
        section.operand(builder.add_arg(b.nbytes), [4, 0], depth=4 * n)
    section.operand(builder.add_arg(4 * m * n, READ | WRITE), [4, 4 * n], mode=READ | WRITE)
    return builder.build(), placed([random(m, k), b, np.empty((m, n), np.float32)])


def cases() -> dict[str, Case]:
    found = {"chain 4096x4096": chain(4096, 4096), "chain 512x768": chain(512, 768), "softmax 4096x1024": softmax(4096, 1024),
             "softmax 512x768": softmax(512, 768), "softmax 1x4194304": softmax(1, 1 << 22)}  # fmt: skip
    for m, k, n in ((1024, 1024, 1024), (512, 768, 3072), (128, 768, 768), (8, 768, 3072), (1, 768, 3072)):
        for packed in (False, True):
            found[f"matmul {m}x{k}x{n}{' packed' * packed}"] = product(m, k, n, packed)
    return found


@dataclass(frozen=True, slots=True)
class Compared:
    """Microseconds by number of threads, the median ratio of the pairs, CPU time of many threads over one's; free
    rounds of all."""

    us: dict[int, float]
    ratio: float
    cpu: float
    free: int
    rounds: int


def compare(program: _native.Program, args: list[np.ndarray], threads: int) -> Compared:
    """Alternating runs of one thread and of many."""
    ns: dict[int, list[float]] = {1: [], threads: []}
    cpu: dict[int, list[float]] = {1: [], threads: []}
    share: list[float] = []
    repetitions = max(1, int(ROUND_NS / program.time_run(args, 1)))
    while len(share) < ROUNDS_MAX and sum(s >= FREE * threads for s in share) < ROUNDS:
        for count in ns:
            began, cpu_began = time.perf_counter(), time.process_time()
            ns[count].append(program.time_run(args, repetitions, threads=count))
            used = time.process_time() - cpu_began
            cpu[count].append(used)
        share.append(used / (time.perf_counter() - began))
    free = [i for i, s in enumerate(share) if s >= FREE * threads]
    counted = free or range(len(share))
    ratio = statistics.median(ns[1][i] / ns[threads][i] for i in counted)
    return Compared({n: statistics.median(times[i] for i in counted) / 1e3 for n, times in ns.items()}, ratio,
                    min(cpu[threads]) / min(cpu[1]), len(free), len(share))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    for name, (code, args) in cases().items():
        if asked.names and not any(part in name for part in asked.names):
            continue
        program = _native.Program(code)
        found = compare(program, args, asked.threads)
        print(f"{name:32s} {program.split[0][1]:4d} parts  {found.us[1]:9.1f} -> {found.us[asked.threads]:9.1f} us  "
              f"x{found.ratio:.2f}  CPU time x{found.cpu:.2f}, {found.free} free rounds of {found.rounds}")  # fmt: skip


if __name__ == "__main__":
    main()
