"""Exported PyTorch models against ONNX Runtime on one thread: `python -m benchmarks.onnx_models [--json FILE]`.

The models are those of tests/onnx/exported.py (torch.onnx.export, random weights), each at small shapes and at one
where a run takes longer. Calls are what users write: NumPy arrays in, NumPy arrays out. Engines take turns. Rows:

    time           medians of a repeated run, after results were held against each other
    first / again  a run at a shape never seen over its repetition, planning apart: medians over UNSEEN shapes, in ratios
    load           reading and checking a file, against creating a session"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise

import numpy as np

from benchmarks.measure import Row, take_turns

SMALL, UNSEEN, LOADS = 5, 12, 7
Feeds = dict[str, np.ndarray]


def large(name: str, random: np.random.Generator, more: int = 0) -> Feeds:
    """Inputs for which a run takes longer than a millisecond; `more` makes other sizes of it."""
    from tests.onnx import exported as e

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    batch = 16 + more
    if name == "bert":
        shape = (batch, 64)
        return {"tokens": e.tokens(random, *shape), "mask": np.ones(shape, np.int64), "kinds": random.integers(0, 2, shape)}
    if name == "gpt":
        cache = (batch, e.HEADS, 60, e.WIDTH // e.HEADS)
        return {"tokens": e.tokens(random, batch, 60), "keys": normal(*cache), "values": normal(*cache)}
    if name == "recurrent":
        return {"tokens": e.tokens(random, batch, 64)}
    if name == "control":
        return {"x": normal(4096 + 64 * more, 6), "count": np.asarray(20)}
    side = 64 if name == "vit" else 128
    return {"images": normal(batch // 2, 3, side, side)}


def engines(data: bytes) -> tuple[object, object]:
    """(our session, the one of ONNX Runtime)."""
    import onnxruntime

    from dvm_rt.onnx import load

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return load(data), onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def shape_of(feeds: Feeds) -> str:
    return " ".join("x".join(map(str, x.shape)) or "scalar" for x in feeds.values())


def check(name: str, ours: list, theirs: list) -> None:
    for got, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4, err_msg=f"benchmarks: {name}")


def timed(name: str, session: object, other: object, feeds: Feeds) -> Row:
    check(name, session.run(feeds), other.run(None, feeds))
    samples = take_turns({"dvm": lambda n: once(lambda: session.run(feeds), n),
                          "onnxruntime": lambda n: once(lambda: other.run(None, feeds), n)})
    ours, theirs = (1e6 * statistics.median(samples[k]) for k in ("dvm", "onnxruntime"))
    return Row("onnx", name, shape_of(feeds), "time", "us", ours, {"onnxruntime": theirs})


def once(run: Callable[[], object], count: int = 1) -> float:
    """Seconds of some runs."""
    begin = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - begin


def first_over_again(name: str, session: object, other: object) -> Row:
    """Shapes that neither engine has seen, the same ones; before each, a shape that it has seen, so that caches are as warm."""
    medians, random = {}, np.random.default_rng(5)
    shapes = [large(name, random, 2 * more) for more in range(1 + UNSEEN)]
    for engine, run in (("dvm", session.run), ("onnxruntime", lambda feeds: other.run(None, feeds))):
        ratios = []
        run(shapes[0])
        for before, feeds in pairwise(shapes):
            run(before)
            first = once(lambda f=feeds: run(f))
            ratios.append(first / statistics.median(once(lambda f=feeds: run(f)) for _ in range(5)))
        medians[engine] = statistics.median(ratios)
    return Row("onnx", name, f"{UNSEEN} new", "first / again", "ratio", medians.pop("dvm"), medians)


def load_times(name: str, data: bytes) -> Row:
    times: tuple[list[float], list[float]] = ([], [])
    import onnxruntime

    from dvm_rt.onnx import load

    for _ in range(LOADS):
        for mine, make in zip(times, (load, lambda d: onnxruntime.InferenceSession(d,
                providers=["CPUExecutionProvider"])), strict=True):
            begin = time.perf_counter()
            make(data)
            mine.append(1e3 * (time.perf_counter() - begin))
    ours, theirs = map(statistics.median, times)
    return Row("onnx", name, f"{len(data) / 1e3:.0f} kB", "load", "ms", ours, {"onnxruntime": theirs})


def onnx_models(wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The rows of the models that are wanted; none, and a line that says so, where a package is absent."""
    missing = [m for m in ("torch", "onnx", "onnxruntime") if find_spec(m) is None]
    if missing:
        print(f"onnx: left out, not installed: {', '.join(missing)}", file=sys.stderr)
        return
    import dvm_rt as dvm
    from tests.onnx.exported import MODELS

    with dvm.Runtime(inline=True):
        for name, model in MODELS.items():
            if not wanted(name):
                continue
            data, random = model.to_onnx(), np.random.default_rng(2)
            session, other = engines(data)
            yield load_times(name, data)
            for feeds in [model.inputs(random) for _ in range(SMALL)]:
                yield timed(name, session, other, feeds)
            yield timed(name, session, other, large(name, random))
            yield first_over_again(name, session, other)


def main() -> None:
    parser = argparse.ArgumentParser(description="Exported models against ONNX Runtime")
    parser.add_argument("--json")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    rows = []
    for row in onnx_models(lambda name: arguments.only in name):
        rows.append(row)
        print(f"{row.case:<14}{row.shape:<42}{row.metric:<15}{row.dvm:>10.2f} {row.unit:<6}"
              f"onnxruntime {row.peers['onnxruntime']:>10.2f}{row.ratio:>8.2f}", flush=True)
    small = [r for r in rows if r.metric == "time" and r.peers["onnxruntime"] <= 1000]
    if small:
        print(f"runs of at most 1 ms in ONNX Runtime: {len(small)}, median ratio {statistics.median(r.ratio for r in small):.2f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump([r.as_dict() for r in rows], file, indent=1)


if __name__ == "__main__":
    main()
