"""The suites that are no cases of one function: requests, dynamic (a module of its own), encode, pipeline, startup, memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.cases import CASES, Case
from benchmarks.dynamic import dynamic
from benchmarks.engines import Engine
from benchmarks.measure import SLOW_COMPILERS, Row


REQUESTS = 200
Wanted = Callable[[str], bool]


def requests(engines: list[Engine]) -> Iterator[Row]:
    """A server's stream, every request in a shape of its own, one after the other, everything included that an engine does at a shape
    that it has not seen; and the first result of a model that nobody has seen (import, export and session creation apart)."""
    model = next(c for c in CASES if c.name == "6-layer encoder")
    rng = np.random.default_rng(0)
    weights = model.weights(rng)
    first: dict[str, float] = {}
    inputs = model.inputs(rng, 1, 8, 256)
    each: dict[str, float] = {}
    shapes: list[tuple[int, ...]] = list(dict.fromkeys(model.unseen(rng) for _ in range(2 * REQUESTS)))[:REQUESTS]
    given = [model.inputs(rng, *dims) for dims in shapes]
    notes = []
    for engine in engines:
        begin = time.perf_counter()
        engine.load(model, weights)
        loaded = time.perf_counter() - begin if engine.name != "onnxruntime" else 0.0
        run = engine.bind(inputs)
        first[engine.name] = 1e3 * (loaded + engine.seconds(run, 1))
        count = SLOW_COMPILERS.get(engine.name, len(given))
        begin = time.perf_counter()
        for arrays in given[:count]:
            engine.result(engine.bind(arrays)())
        each[engine.name] = 1e3 * (time.perf_counter() - begin) / count
        if count < len(given):
            notes.append(f"{engine.name}: the first {count} of them")
    yield Row("requests", "6-layer encoder, first result", "1x8x256", "cold start", "ms", first.pop("dvm"), first)
    yield Row("requests", f"6-layer encoder, {len(given)} requests", "all different", "mean of a request", "ms", each.pop("dvm"), each, notes="; ".join(notes))


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
    from benchmarks import spaces

    model = next(c for c in CASES if c.name == "6-layer encoder")
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


def _whole(measured: Callable[[], Iterator[Row]]) -> Callable[[list[Engine], Wanted], Iterator[Row]]:
    """A suite that is quick, and so measured as a whole."""
    return lambda engines, wanted: (row for row in measured() if wanted(row.case))


SUITES: dict[str, Callable[[list[Engine], Wanted], Iterator[Row]]] = {
    "requests": lambda engines, wanted: requests(engines) if wanted("6-layer encoder, first result") else iter(()),
    "dynamic": lambda engines, wanted: dynamic(wanted),
    "encode": _whole(encode), "pipeline": _whole(pipeline), "startup": _whole(startup), "memory": _whole(memory),
}  # fmt: skip
