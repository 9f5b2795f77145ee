"""The suites that are no cases of one function: requests, encode, pipeline, startup, memory; dynamic, onnx, limits and threads
are modules of their own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from benchmarks.cases import CASES, Case
from benchmarks.dynamic import dynamic
from benchmarks.engines import Engine
from benchmarks.measure import Row, all_cpus
from benchmarks.onnx_models import onnx_models
from benchmarks.physical import bandwidth, two_threads

ROOT = Path(__file__).parent.parent

MODEL = "6-layer encoder"
REQUESTS, REQUESTS_S = 200, 12.0
COLD_STARTS = {"dvm": 7, "torch": 3, "onnxruntime": 3, "numpy": 3}  # processes; others compile for seconds and get one
Wanted = Callable[[str], bool]


def requests(engines: list[Engine], wanted: Wanted) -> Iterator[Row]:
    """The first result of a model that nobody has seen, and a server's stream."""
    engines = [e for e in engines if e.can(_model())]
    if wanted(f"{MODEL}, first result"):
        first, why = {}, []
        for engine in engines:
            times = [_cold(engine.name) for _ in range(COLD_STARTS.get(engine.name, 1))]
            if found := [t for t in times if t is not None]:
                first[engine.name] = statistics.median(found)
            else:
                why.append(f"{engine.name}: it could not")
        note = "; ".join(["a process each; packing weights is in it; ONNX Runtime from the exported file", *why])
        yield Row("requests", f"{MODEL}, first result", "1x8x256", "cold start", "ms", first.pop("dvm"), first, notes=note)
    if wanted(f"{MODEL}, {REQUESTS} requests"):
        yield _stream(engines)


def _model() -> Case:
    return next(c for c in CASES if c.name == MODEL)


def _cold(name: str) -> float | None:
    """Milliseconds of a first result in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cold", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def _stream(engines: list[Engine]) -> Row:
    """Every request in a shape of its own, everything included that an engine does, from a function and weights on; export for
    ONNX Runtime apart. Engines take turns request by request; who has taken REQUESTS_S is asked no more."""
    model, rng = _model(), np.random.default_rng(0)
    weights = model.weights(rng)
    shapes = list(dict.fromkeys(model.unseen(rng) for _ in range(2 * REQUESTS)))[:REQUESTS]
    spent: dict[str, float] = {}
    count: dict[str, int] = {}
    why = []

    def timed(engine: Engine, act: Callable[[], object]) -> None:
        """Adds what it takes; an engine that cannot is out."""
        begin, exported = time.perf_counter(), engine.exported_s
        try:
            act()
        except Exception as error:
            if engine.name == "dvm":
                raise
            engines.remove(engine)
            why.append(f"{engine.name}: {type(error).__name__}")
            spent.pop(engine.name), count.pop(engine.name)
        else:
            spent[engine.name] += time.perf_counter() - begin - (engine.exported_s - exported)

    for engine in list(engines):
        spent[engine.name] = count[engine.name] = 0
        timed(engine, lambda engine=engine: engine.load(model, weights))
    for number, dims in enumerate(shapes):
        arrays = model.inputs(rng, *dims)
        for engine in engines[number % len(engines) :] + engines[: number % len(engines)]:
            if spent[engine.name] < REQUESTS_S or count[engine.name] < 2:
                count[engine.name] += 1
                timed(engine, lambda engine=engine: engine.result(engine.bind(arrays)()))
    each = {name: 1e3 * spent[name] / count[name] for name in spent}
    notes = "; ".join([*why, *(f"{name}: the first {n} of them" for name, n in count.items() if n < len(shapes))])
    return Row(
        "requests",
        f"{MODEL}, {len(shapes)} requests",
        "all different",
        "mean of a request",
        "ms",
        each.pop("dvm"),
        each,
        notes=notes,
    )


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
        with nullcontext() if mode == "inline" else all_cpus(), dvm.Runtime(**options) as runtime:

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
            yield Row(
                "pipeline", "stream of 800 new shapes, each", mode, "mean", "us", spent, notes=f"device busy {busy:.2f} us"
            )


def startup() -> Iterator[Row]:
    """Importing the package beyond bare Python, and starting and stopping a runtime."""
    bare, ours = (_python(code) for code in ("pass", "import dvm_rt"))
    yield Row(
        "startup",
        "import dvm_rt",
        "above bare Python",
        "p50",
        "ms",
        1e3 * (ours - bare),
        {"torch": 1e3 * (_python("import torch") - bare)},
    )
    code = ("import dvm_rt, time; b = time.perf_counter(); "
            "r = dvm_rt.Runtime(encoders=1); print(time.perf_counter() - b); r.close()")  # fmt: skip
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(7)
    ]
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


def memory(wanted: Wanted) -> Iterator[Row]:
    """Tensor memory over a stream of shapes, one case a level: weights once, activations, workspace; and the program cache."""
    for case in (c for c in CASES if c.name in ("gelu", "mlp 256-1024", MODEL)):
        if wanted(f"{case.name}, 30 shapes"):
            yield from _memory(case)


def _memory(case: Case) -> Iterator[Row]:
    import dvm_rt as dvm
    from benchmarks import spaces

    rng, peers = np.random.default_rng(0), {}
    weights, shapes = case.weights(rng), [case.unseen(rng) for _ in range(30)]
    with dvm.Runtime(inline=True) as runtime:
        space, peak = spaces.Dvm(), 0
        function = dvm.function(lambda *arrays: case.function(space, *arrays))
        held = [dvm.asarray(w) for w in weights]
        runtime.release_sources()  # each as soon as it is packed
        for dims in shapes:
            given = [dvm.asarray(x) for x in case.inputs(rng, *dims)]
            result = function(*given, *held)
            np.asarray(result)
            used = runtime.stats()["memory"]
            peak = max(peak, used["tensors"] + used["workspace"] + used["packed"])
            del given, result
        stats = runtime.stats()
    if (eager := _eager_peak(case, weights, shapes)) is not None:
        peers["torch eager"] = eager / 2**20
    note = ", ".join(f"{k} {v / 2**20:.1f} MiB" for k, v in stats["memory"].items())
    name = f"{case.name}, 30 shapes"
    yield Row("memory", name, "tensors, workspace, packed", "peak", "MiB", peak / 2**20, peers, notes=note)
    yield Row("memory", name, "program cache", "size", "MiB", stats["program_cache_bytes"] / 2**20)


def _eager_peak(model: Case, weights: list[np.ndarray], shapes: list[tuple[int, ...]]) -> int | None:
    """Bytes of tensors of PyTorch eager at its peak, as its profiler sees its allocator: weights, input, activations."""
    try:
        import torch
    except ImportError:
        return None
    from benchmarks import spaces

    space, rng = spaces.Torch(), np.random.default_rng(0)
    held, peak = [torch.from_numpy(w) for w in weights], 0
    with torch.inference_mode(), _no_stderr():
        for dims in shapes:
            given = [torch.from_numpy(x) for x in model.inputs(rng, *dims)]
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
                result = model.function(space, *given, *held)
            events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
            used = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
            peak = max(peak, int(used.max(initial=0)) + sum(x.nbytes for x in given))
            del result
    return peak + sum(w.nbytes for w in weights)


@contextmanager
def _no_stderr() -> Iterator[None]:
    """PyTorch's profiler writes a line each time it starts and stops."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept), os.close(nowhere)


def _whole(measured: Callable[[], Iterator[Row]]) -> Callable[[list[Engine], Wanted], Iterator[Row]]:
    """A suite that is quick, and so measured as a whole."""
    return lambda engines, wanted: (row for row in measured() if wanted(row.case))


SUITES: dict[str, Callable[[list[Engine], Wanted], Iterator[Row]]] = {
    "requests": requests,
    "dynamic": lambda engines, wanted: dynamic(wanted),
    "onnx": lambda engines, wanted: onnx_models(wanted),
    "memory": lambda engines, wanted: memory(wanted),
    "limits": lambda engines, wanted: bandwidth(wanted),
    "threads": lambda engines, wanted: two_threads(wanted),
    "encode": _whole(encode), "pipeline": _whole(pipeline), "startup": _whole(startup),
}  # fmt: skip
