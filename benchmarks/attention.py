"""Attention as one kernel against torch's scaled_dot_product_attention and against our own unfused kernels, one thread.

    python -m benchmarks.attention [--quick]

8 heads; decode (1 query), a few queries, prefill (as many queries as keys), causal prefill; heads 32, 64, 128
wide; 1 to 2048 keys. Each engine computes the same float32 problem from aligned arrays, in turns; a result is checked
against float64 before it is timed. Times are minima of the thread's CPU time over rounds, so that a busy machine
costs little. Ours run encoded programs through the verifier and the machine, from Python; the unfused ones are the
kernels of the written form: matmul, softmax, matmul. A row ends with the bandwidth that reading K and V once would
need."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from dvm_rt import _native
from dvm_rt.dtypes import float32
from dvm_rt.fusion import fuser
from dvm_rt.graph.graph import Graph, Make, Node, parameter
from dvm_rt.graph.symbols import Facts

HEADS, ROUNDS, ROUND_S = 8, 9, 0.004
Array = np.ndarray


def aligned(x: Array) -> Array:
    """The same values at an address that is a multiple of 64."""
    raw = np.empty(x.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + x.nbytes].view(np.float32).reshape(x.shape)
    out[...] = x
    return out


def runner(build: Callable[..., Node], arrays: list[Array], patterns: bool) -> tuple[Callable[[], None], Array]:
    """What runs the encoded program of a graph on these arrays, and its output."""
    parameters = [parameter(i, x.shape, float32) for i, x in enumerate(arrays)]
    graph = Graph.of(parameters, [build(Make(Facts()), *parameters)], Facts())
    rewritten = fuser.rewritten
    try:
        if not patterns:
            fuser.rewritten = lambda given: (given, ())
        plan = fuser.fuse(graph).plan
    finally:
        fuser.rewritten = rewritten
    out = aligned(np.zeros(graph.outputs[0].shape, np.float32))
    bound = [arrays[b.index] if b.role == "PARAMETER" else out for b in plan.buffers if b.role != "TEMPORARY"]
    program = _native.Program(_native.Plan(plan.to_bytes()).encode([]))
    return lambda: program.run(bound), out


def written(op: Make, q: Node, k: Node, v: Node, *mask: Node) -> Node:
    """The form that people write."""
    scores = op.multiply(op.matmul(q, op.permute_dims(k, axes=(0, 2, 1))), float(q.shape[-1]) ** -0.5)
    scores = op.add(scores, mask[0]) if mask else scores
    return op.matmul(op.softmax(scores, axis=2), v)


def attention(op: Make, q: Node, k: Node, v: Node, causal: bool) -> Node:
    return op.attention(q, k, v, scale=None, causal=causal, masked=float("-inf"), empty=0.0)


def exact(q: Array, k: Array, v: Array, causal: bool) -> Array:
    s = q.astype(np.float64) @ np.swapaxes(k, 1, 2) * q.shape[-1] ** -0.5
    if causal:
        s[:, np.triu(np.ones(s.shape[1:], bool), s.shape[2] - s.shape[1] + 1)] = -np.inf
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def minima(calls: list[Callable[[], object]]) -> list[float]:
    """The smallest CPU time of each call, in seconds, measured in turns."""
    for call in calls:
        call()
    repeats = [max(1, int(ROUND_S / max(_timed(call, 1), 1e-7))) for call in calls]
    rounds = [[_timed(c, n) for c, n in zip(calls, repeats, strict=True)] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _timed(call: Callable[[], object], repeats: int) -> float:
    begin = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - begin) / repeats


def row(queries: int, keys: int, depth: int, causal: bool) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (aligned(rng.standard_normal((HEADS, n, depth)).astype(np.float32)) for n in (queries, keys, keys))
    ours, out = runner(lambda op, *xs: attention(op, *xs, causal), [q, k, v], True)
    mask = [aligned(np.triu(np.full((queries, keys), -np.inf, np.float32), keys - queries + 1))] if causal else []
    unfused, other = runner(written, [q, k, v, *mask], False)
    tensors = [torch.from_numpy(x)[None] for x in (q, k, v)]
    scaled = torch.nn.functional.scaled_dot_product_attention
    want = exact(q, k, v, causal)
    for run, got in ((ours, out), (unfused, other)):
        run()
        assert np.max(np.abs(got - want)) < 1e-5
    a, b, c = minima([ours, lambda: scaled(*tensors, is_causal=causal), unfused])
    name = f"{queries:5}{keys:6}{depth:5} {'causal' if causal else '':7}"
    rate = 4 * HEADS * queries * keys * depth * (0.5 if causal else 1) / a / 1e9
    bandwidth = 8 * HEADS * keys * depth / a / 1e9
    print(f"{name}{a * 1e6:10.1f}{b * 1e6:10.1f}{c * 1e6:10.1f}{b / a:8.2f}{c / a:8.2f}{rate:8.0f}{bandwidth:8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="heads 64 wide only")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print("    M     T    D             ours      sdpa   unfused x sdpa x unf.    GF/s    GB/s   (us, one thread)")
    for depth in (64,) if quick else (32, 64, 128):
        for keys in (1, 16, 64, 256, 512, 1024, 2048):
            row(1, keys, depth, False)
        row(4, 512, depth, False), row(16, 1024, depth, False)
        for keys in (16, 64, 128, 256, 512, 1024):
            row(keys, keys, depth, False)
        for keys in (64, 128, 512, 1024):
            row(keys, keys, depth, True)
    if not quick:
        row(2048, 2048, 64, False), row(2048, 2048, 64, True)


if __name__ == "__main__":
    main()
