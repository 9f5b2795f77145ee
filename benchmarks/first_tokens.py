"""The first 200 tokens of a GPT (d = 256, 4 layers, growing cache), everything included: python -m benchmarks.first_tokens

    python -m benchmarks.first_tokens [--rounds 7] [--compile]

Each sample is a process of its own. The clock starts when the packages are imported and the weights lie in NumPy arrays, and
stops at the last token: tracing, planning, packing, every program and all memory are in it, and the start of our processes where
there are some. Our modules are bytecode by then, as pip leaves them, and as the others' are: a first sample of each is not
counted. `torch` is eager; `torch.compile` compiles the step (dynamic=True) and takes minutes, so it is asked for by --compile,
and runs once.

One thread each. The engines take turns, and a round compares what ran side by side: printed are medians, and how much faster ours
are, the median of the rounds with its quartiles. Where these are far apart the machine had other work, and the row beside it
tells more: the same of the CPU time that the processes took, children included, which others' work hardly changes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

TOKENS, WIDTH, DEPTH, WORDS = 200, 256, 4, 1000
OURS: dict[str, dict[str, object]] = {"dvm, inline": {"inline": True}, "dvm, 1 encoder": {"encoders": 1, "threads": 1}}
ENGINES = (*OURS, "torch", "torch.compile")


def cpu_seconds() -> float:
    """Of this process and of its children that are over."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def sample(engine: str) -> tuple[float, float]:
    """Seconds of the first tokens, by the clock and of CPU time, in a process in which nothing was done before."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from dynamic import gpt

    weights = gpt.random_weights(np.random.default_rng(0), WIDTH, DEPTH, WORDS, TOKENS + 16)
    if engine in OURS:
        import dvm_rt as dvm
        from dvm_rt.array import control, creation, functions, movement, stacked  # noqa: F401  torch has imported all of its, too

        begin, used = time.perf_counter(), cpu_seconds()
        with nullcontext() if engine == "dvm, inline" else dvm.Runtime(**OURS[engine]):  # type: ignore[arg-type]
            found = gpt.decode(gpt.Gpt(weights), [1, 2, 3], -1, TOKENS)
            seconds = time.perf_counter() - begin
    else:
        import torch  # noqa: F401

        from benchmarks.dynamic import torch_gpt

        begin, used = time.perf_counter(), cpu_seconds()
        found = torch_gpt(weights, compiled=engine == "torch.compile")(0, TOKENS)
        seconds = time.perf_counter() - begin
    assert len(found) == TOKENS
    return seconds, cpu_seconds() - used  # here our processes are over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--sample", choices=ENGINES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sample:
        print(*sample(given.sample))
        return
    times: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "DVM_RT_THREADS": "1"}
    one_thread.pop("PYTHONDONTWRITEBYTECODE", None)
    for round_number in range(given.rounds + 1):
        for engine in ENGINES:
            if engine != "torch.compile" or (given.compile and round_number == 1):
                command = [sys.executable, "-m", "benchmarks.first_tokens", "--sample", engine]
                printed = subprocess.run(command, check=True, capture_output=True, text=True, env=one_thread).stdout
                clock, cpu = printed.split()[-2:]
                if round_number:
                    times[engine].append((float(clock), float(cpu)))
    for engine, samples in times.items():
        for number, what in enumerate(("by the clock", "CPU")):
            seconds = np.array([each[number] for each in samples])
            if not len(seconds):
                continue
            against = []
            for other in ENGINES if engine in OURS else ():
                if other not in OURS and times[other]:
                    low, middle, high = np.quantile([b[number] / a for a, b in zip(seconds, times[other])], (0.25, 0.5, 0.75))
                    against.append(f"{other} / this {middle:5.2f} ({low:.2f} to {high:.2f})")
            ms = 1e3 * float(np.median(seconds))
            print(f"{engine:16} {ms:10.1f} ms {what:12} for {TOKENS} tokens  {'  '.join(against)}")


if __name__ == "__main__":
    main()
