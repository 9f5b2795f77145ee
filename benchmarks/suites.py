"""The suites that are no cases of one function: dynamic (a module of its own), encode, pipeline, startup, memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.dynamic import dynamic
from benchmarks.cases import Case
from benchmarks.measure import Row


def encode() -> Iterator[Row]:
    """What turning a plan into a program takes, by kind of kernel; native, and from Python; and verifying it."""
    from dvm_rt import _native
    from tests.native.plans import FUSED, Case

    for name, make in FUSED.items():
        case = Case(2)
        make(case)
        plan = _native.Plan(case.build().to_bytes())
        symbols = [32 + i for i in range(plan.info["symbols"])]
        program = plan.encode(symbols)
        native = sorted(plan.time_encode(symbols, 2000, 0) / 1e3 for _ in range(15))
        times = []
        for i in range(2000):
            values = [32 + i % 64, *symbols[1:]]
            begin = time.perf_counter_ns()
            plan.encode(values)
            times.append((time.perf_counter_ns() - begin) / 1e3)
        verify = sorted(_native.verify_time(program, 2000) / 1e3 for _ in range(15))
        yield Row("encode", name, f"{len(program)} bytes", "native p50", "us", statistics.median(native))
        for metric, of in (("from Python p50", 0.5), ("from Python p99", 0.99), ("from Python max", 1.0)):
            yield Row("encode", name, f"{len(program)} bytes", metric, "us", float(np.quantile(times, of)))
        yield Row("encode", name, f"{len(program)} bytes", "verify p50", "us", statistics.median(verify))


def pipeline() -> Iterator[Row]:
    """A cached launch and its value, a new shape and its value, a stream of new shapes, through the processes and inline."""
    import dvm_rt as dvm

    for mode, options in (("inline", {"inline": True}), ("1 encoder", {"encoders": 1})):
        with dvm.Runtime(**options) as runtime:

            @dvm.function
            def chain(x: dvm.Array) -> dvm.Array:
                for _ in range(4):
                    x = dvm.tanh(x * 0.5 + x)
                return x

            arrays = [dvm.asarray(np.ones((r, c), np.float32)) for r in range(1, 41) for c in range(2, 42)]
            one = arrays[820]
            float(dvm.sum(chain(one)))
            times = []
            for _ in range(3000):
                begin = time.perf_counter_ns()
                np.asarray(chain(one))
                times.append((time.perf_counter_ns() - begin) / 1e3)
            yield Row("pipeline", "cached call and its value", mode, "p50", "us", statistics.median(times))
            yield Row("pipeline", "cached call and its value", mode, "p99", "us", float(np.quantile(times, 0.99)))
            new = []
            for x in arrays[:800]:
                begin = time.perf_counter_ns()
                np.asarray(chain(x))
                new.append((time.perf_counter_ns() - begin) / 1e3)
            yield Row("pipeline", "new shape and its value", mode, "p50", "us", statistics.median(new))
            yield Row("pipeline", "new shape and its value", mode, "p99", "us", float(np.quantile(new, 0.99)))
            before, begin = runtime.stats(), time.perf_counter_ns()
            for x in arrays[800:]:
                last = chain(x)
            np.asarray(last)
            spent, after = (time.perf_counter_ns() - begin) / 800 / 1e3, runtime.stats()
            busy = (after["busy_ns"] - before["busy_ns"]) / 800 / 1e3
            yield Row("pipeline", "stream of 800 new shapes, each", mode, "mean", "us", spent, notes=f"device busy {busy:.2f} us")


def startup() -> Iterator[Row]:
    """Importing the package beyond bare Python, and starting and stopping a runtime."""
    bare, ours = (_python(code) for code in ("pass", "import dvm_rt"))
    yield Row("startup", "import dvm_rt", "above bare Python", "p50", "ms", 1e3 * (ours - bare), {"torch": 1e3 * (_python("import torch") - bare)})
    code = "import dvm_rt, time; b = time.perf_counter(); r = dvm_rt.Runtime(encoders=1); print(time.perf_counter() - b); r.close()"
    times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(7)]
    yield Row("startup", "Runtime(encoders=1)", "ready", "p50", "ms", 1e3 * statistics.median(times))


def _python(code: str) -> float:
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        if done.returncode:
            return float("nan")
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def memory() -> Iterator[Row]:
    """Tensor memory of the 6-layer encoder over a stream of shapes: weights once, activations, workspace, program cache."""
    import dvm_rt as dvm
    from benchmarks import cases, spaces

    model = next(c for c in cases.CASES if c.name == "6-layer encoder")
    rng = np.random.default_rng(0)
    weights = model.weights(rng)
    peers: dict[str, float] = {}
    with dvm.Runtime(inline=True) as runtime:
        space = spaces.Dvm()
        function = dvm.function(lambda *arrays: model.function(space, *arrays))
        held = [dvm.asarray(w) for w in weights]
        runtime.release_sources()  # each as soon as it is packed
        peak, shapes = 0, [model.unseen(rng) for _ in range(30)]
        for dims in shapes:
            np.asarray(function(dvm.asarray(model.inputs(rng, *dims)[0]), *held))
            used = runtime.stats()["memory"]
            peak = max(peak, used["tensors"] + used["workspace"] + used["packed"])
        stats = runtime.stats()
    if (eager := _eager_peak(model, weights, shapes)) is not None:
        peers["torch eager"] = eager / 2**20
    note = ", ".join(f"{k} {v / 2**20:.1f} MiB" for k, v in stats["memory"].items())
    yield Row("memory", "6-layer encoder, 30 shapes", "peak of tensors, workspace, packed", "peak", "MiB", peak / 2**20, peers, notes=note)
    yield Row("memory", "6-layer encoder, 30 shapes", "program cache", "size", "MiB", stats["program_cache_bytes"] / 2**20)


def _eager_peak(model: Case, weights: list[np.ndarray], shapes: list[tuple[int, ...]]) -> int | None:
    """Bytes of tensors of PyTorch eager at its peak, as its profiler sees its allocator: weights, input, activations."""
    try:
        import torch
    except ImportError:
        return None
    from benchmarks import spaces

    space, rng = spaces.Torch(), np.random.default_rng(0)
    held = [torch.from_numpy(w) for w in weights]
    peak = 0
    with torch.inference_mode():
        for dims in shapes:
            x = torch.from_numpy(model.inputs(rng, *dims)[0])
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
                result = model.function(space, x, *held)
            events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
            used = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
            peak = max(peak, int(used.max()) + x.nbytes)
            del result
    return peak + sum(w.nbytes for w in weights)


SUITES = {"dynamic": dynamic, "encode": encode, "pipeline": pipeline, "startup": startup, "memory": memory}
