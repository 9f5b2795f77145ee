"""How long the device waits for us: calls of a small function from Python, fresh inputs, every second shape never seen.

    python -m benchmarks.idle [--launches 1600] [--rounds 6] [--hold]

One line a round, microseconds a launch: the device's busy time, and its idle time while work exists (exposed: the program is
missing; starved: the launch is missing while our client code runs), the user's own Python apart. In the first round the arena
grows. --hold keeps every result."""

from __future__ import annotations

import argparse
import time
from collections import deque

import numpy as np

import dvm_rt as dvm

WORDS = ("busy_ns", "exposed_ns", "starved_client_ns", "starved_user_ns", "encode_ns")


@dvm.function
def chain(x: dvm.Array, y: dvm.Array) -> dvm.Array:
    for _ in range(4):
        x = dvm.tanh(x * y + 0.5)
    return x


def fresh(count: int) -> dvm.Array:
    """About 3,000 elements, about 5 us of work; odd ones always in the same shape, even ones never in the same."""
    columns = 64 if count % 2 else 40 + count % 997
    return dvm.asarray(np.ones((48 if count % 2 else 3000 // columns + count // 997, columns), np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--hold", action="store_true", help="keep every result of a round")
    given = parser.parse_args()
    with dvm.Runtime(encoders=1) as runtime:
        one = dvm.asarray(np.ones((48, 64), np.float32))
        for round_number in range(given.rounds):
            inputs = [fresh(round_number * given.launches + i) for i in range(given.launches)]
            np.asarray(chain(one, one))  # so that making the inputs does not count as idle time
            before, begin = runtime.stats(), time.perf_counter_ns()
            last = deque((chain(x, x) for x in inputs), maxlen=None if given.hold else 1)
            np.asarray(last[-1])
            whole, after = time.perf_counter_ns() - begin, runtime.stats()
            each = {word: (after[word] - before[word]) / given.launches / 1e3 for word in WORDS}
            idle = each["exposed_ns"] + each["starved_client_ns"]
            text = "  ".join(f"{word[:-3]} {value:.2f}" for word, value in each.items())
            print(f"total {whole / given.launches / 1e3:6.2f}  {text}  encoded {after['encoded'] - before['encoded']}  "
                  f"idle {idle / each['busy_ns']:.1%} of busy")


if __name__ == "__main__":
    main()
