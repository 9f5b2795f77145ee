"""The first 200 tokens of a GPT (d = 256, 4 layers, growing cache), everything included: python -m benchmarks.first_tokens

    python -m benchmarks.first_tokens [--rounds 5] [--compile]

Each sample is a process of its own. The clock starts when the packages are imported and the weights lie in NumPy arrays, and
stops at the last token: tracing, planning, packing, every program and all memory are in it, and the start of our processes where
there are some. `torch` is eager; `torch.compile` compiles the step (dynamic=True) and takes minutes, so it is asked for by
--compile, and runs once. Printed: medians, and how much faster ours are."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

TOKENS, WIDTH, DEPTH, WORDS = 200, 256, 4, 1000
OURS: dict[str, dict[str, object]] = {"dvm, inline": {"inline": True}, "dvm, 1 encoder": {"encoders": 1, "threads": 1}}
ENGINES = (*OURS, "torch", "torch.compile")


def sample(engine: str) -> float:
    """Seconds of the first tokens, in a process in which nothing was done before."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from dynamic import gpt

    weights = gpt.random_weights(np.random.default_rng(0), WIDTH, DEPTH, WORDS, TOKENS + 16)
    if engine in OURS:
        import dvm_rt as dvm
        from dvm_rt.array import control, creation, functions, movement, stacked  # noqa: F401  torch has imported all of its, too

        begin = time.perf_counter()
        with nullcontext() if engine == "dvm, inline" else dvm.Runtime(**OURS[engine]):  # type: ignore[arg-type]
            found = gpt.decode(gpt.Gpt(weights), [1, 2, 3], -1, TOKENS)
            seconds = time.perf_counter() - begin
    else:
        import torch  # noqa: F401

        from benchmarks.dynamic import torch_gpt

        begin = time.perf_counter()
        found = torch_gpt(weights, compiled=engine == "torch.compile")(0, TOKENS)
        seconds = time.perf_counter() - begin
    assert len(found) == TOKENS
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--sample", choices=ENGINES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sample:
        print(sample(given.sample))
        return
    times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for round_number in range(given.rounds):
        for engine in ENGINES:
            if engine != "torch.compile" or (given.compile and round_number == 0):
                command = [sys.executable, "-m", "benchmarks.first_tokens", "--sample", engine]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                times[engine].append(float(printed.split()[-1]))
    medians = {engine: statistics.median(each) for engine, each in times.items() if each}
    for engine, seconds in medians.items():
        peers = [other for other in medians if engine in OURS and other not in OURS]
        against = "  ".join(f"{other} / this {medians[other] / seconds:6.2f}" for other in peers)
        print(f"{engine:16} {1e3 * seconds:10.1f} ms for {TOKENS} tokens  {against}")


if __name__ == "__main__":
    main()
