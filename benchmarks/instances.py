"""How many operator instances a second go through one encoder process.

    python -m benchmarks.instances [--rounds 9] [--encode workers] [--instances 10000]

An operator instance is one kernel for one set of shapes, never seen before: its sizes travel to the encoder process in a batch,
its bytecode comes back to the device, which verifies it. A program here has one kernel, or eight that cannot be one (so it counts
as eight instances). `ahead`: shapes are known before their launches, so programs are made for nobody yet; one launch at the end
waits for the last of them. `launched`: each instance is also launched, from Python, over one small input, and run. Printed:
instances a second of the whole (the best round and the median, until everything is done), and the CPU time that one costs in the
client, its threads included, in the encoder and in the device: with too few CPUs for three processes the sum over the CPUs is the
bound."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

import dvm_rt as dvm
from dvm_rt.array.function import planned_for

COLUMNS = 100


def one_kernel(x: dvm.Array) -> dvm.Array:
    return dvm.tanh(x * 0.5 + 1.0)


def eight_kernels(x: dvm.Array) -> dvm.Array:
    for _ in range(4):  # a sum along columns is a kernel of its own
        x = dvm.tanh(dvm.cumulative_sum(x, axis=0))
    return x


class Bench:
    """One plan after another (so that no shape was seen) of one function, in one runtime."""

    def __init__(self, runtime: dvm.Runtime, function: Callable[[dvm.Array], dvm.Array], instances: int) -> None:
        self.runtime, self.stream = runtime, runtime.stream
        self.shapes = [(1 + i // COLUMNS, 1 + i % COLUMNS) for i in range(instances)]
        self.inputs = [self.stream.asarray(np.ones(shape, np.float32)) for shape in self.shapes]
        self.last = self.stream.asarray(np.ones((instances, 2), np.float32))
        planned = planned_for(dvm.function(function), (dvm.asarray(np.ones((3, 4), np.float32)),), {})[1]
        self.plan, self.kernels = planned.fused.plan.to_bytes(), planned.kernels
        self.pids = [runtime.pids()[role] for role in ("encoder 0", "device")]

    def round(self, launched: bool) -> tuple[float, list[float]]:
        """Seconds of one round, and CPU seconds of client, encoder and device."""
        number = self.stream.register(self.plan)
        cpu, begin = self._cpu_s(), time.perf_counter()
        if launched:
            for x in self.inputs:
                self.stream.call(number, (x,))
        else:
            self.stream.prefetch(number, self.shapes)
        self.stream.wait(self.stream.call(number, (self.last,))[0].seq)  # its program is the last of all
        seconds, after = time.perf_counter() - begin, self._cpu_s()
        self.stream.forget(number)
        return seconds, [b - a for a, b in zip(cpu, after, strict=True)]

    def _cpu_s(self) -> list[float]:
        return [time.process_time(), *(time.clock_gettime((~pid << 3) | 2) for pid in self.pids)]


def measure(instances: int, rounds: int, encode: str) -> None:
    cpus = len(os.sched_getaffinity(0))
    print(f"{cpus} CPUs; microseconds of CPU time an instance")
    for function in (one_kernel, eight_kernels):
        for launched in (False, True):
            with dvm.Runtime(encoders=1, encode=encode, threads=1) as runtime:
                bench = Bench(runtime, function, instances)
                bench.round(launched)
                samples = [bench.round(launched) for _ in range(rounds)]
            count = instances * bench.kernels
            rates = sorted(count / seconds for seconds, _ in samples)
            cpu = [statistics.median(s[1][i] for s in samples) / count * 1e6 for i in range(3)]
            what = f"{bench.kernels} kernels a program, {'launched' if launched else 'ahead'}"
            each = "  ".join(f"{role} {us:5.2f}" for role, us in zip(("client", "encoder", "device"), cpu, strict=True))
            median = rates[len(rates) // 2]
            print(f"{what:32} best {rates[-1]:10,.0f}/s  median {median:10,.0f}/s   {each}  sum / CPUs {sum(cpu) / cpus:5.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=10_000, help="programs a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--encode", default="workers", choices=("workers", "caller", "auto"))
    given = parser.parse_args()
    measure(given.instances, given.rounds, given.encode)
