"""The `dynamic` suite: models whose path and shapes depend on data, against PyTorch eager in the same run.

The models are those of examples/dynamic, in plain Python over dvm.function; rows `structured` are the same loops
written with dvm.cond and dvm.while_loop, one launch each. The peers run plain Python. A row is the time of one
node, layer, sweep, token or batch with everything that the loop does, its value read where the loop reads it. Peers take
turns; what counts is the median of the rounds. Rows `inline` and `1 encoder` are the same code in another runtime."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, all_cpus

ROUND_S, ROUNDS = 0.12, 5
MODES: dict[str, dict[str, object]] = {"inline": {"inline": True}, "1 encoder": {"encoders": 1, "threads": 1}}
Runs = dict[str, Callable[[], int]]  # name -> runs once, gives the number of units


def dynamic(wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Row]:
    """Rows of the wanted cases, each in both modes."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    import dvm_rt as dvm

    if find_spec("torch") is None:
        print("dynamic: absent: its rows are ratios to PyTorch, which is not installed", file=sys.stderr)
        return
    for name, (shape, unit, make) in CASES.items():
        if not wanted(name):
            continue
        rows = []
        for mode, options in MODES.items():
            with nullcontext() if mode == "inline" else all_cpus(), dvm.Runtime(**options):  # type: ignore[arg-type]
                runs = make()
                times = _rounds(runs)
                ours = times.pop("dvm")
            rows.append(Row("dynamic", name, f"{shape}, {mode}", f"a {unit}", "us", ours, times))
        yield from rows


def _rounds(runs: Runs) -> dict[str, float]:
    """Median microseconds a unit."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            units, begin = 0, time.perf_counter()
            while (spent := time.perf_counter() - begin) < ROUND_S:
                units += run()
            samples[name].append(1e6 * spent / units)
    return {name: statistics.median(times) for name, times in samples.items()}


def _torch() -> object:
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    return torch


# ---- tree-LSTM ----


def _trees(hidden: int, way: str) -> Runs:
    from dynamic import trees

    rng = np.random.default_rng(0)
    weights = trees.random_weights(rng, hidden, 200)
    parsed = [trees.random_tree(rng, int(rng.integers(5, 40)), 200) for _ in range(8)]
    count = sum(map(trees.nodes_of, parsed))
    model, eager = trees.TreeLstm(weights), _torch_trees(weights)

    def dvm_run() -> int:
        if way == "by level":
            np.asarray(model.embed_by_level(parsed))
        elif way == "cells wait":
            [np.asarray(root) for root in model.embed_together(parsed)]
        else:
            [np.asarray(root) for root in [model.embed(tree) for tree in parsed]]
        return count

    def torch_run() -> int:
        [eager(tree) for tree in parsed]
        return count

    return {"dvm": dvm_run, "torch": torch_run}


def _torch_trees(weights: object) -> Callable[[object], object]:
    torch = _torch()
    words, w_leaf, b_leaf, w_node, b_node = (torch.from_numpy(w) for w in weights)
    rows = [row[None] for row in words]

    def state(tree: object) -> tuple[object, object]:
        if isinstance(tree, int):
            i, o, u = torch.addmm(b_leaf, rows[tree], w_leaf).chunk(3, -1)
            c = torch.sigmoid(i) * torch.tanh(u)
            return torch.sigmoid(o) * torch.tanh(c), c
        (h1, c1), (h2, c2) = state(tree[0]), state(tree[1])
        i, f, g, o, u = torch.addmm(b_node, torch.cat([h1, h2], -1), w_node).chunk(5, -1)
        c = torch.sigmoid(i) * torch.tanh(u) + torch.sigmoid(f) * c1 + torch.sigmoid(g) * c2
        return torch.sigmoid(o) * torch.tanh(c), c

    def run(tree: object) -> object:
        with torch.inference_mode():
            return state(tree)[0].numpy()

    return run


# ---- loops ----


def _exit(structured: bool) -> Runs:
    import dvm_rt as dvm
    from dynamic import loops

    rng, torch = np.random.default_rng(0), _torch()
    layers, head = loops.early_exit_weights(rng, 128, 16, 10)
    given = [0.3 * rng.standard_normal((1, 128), np.float32) for _ in range(20)]
    held, held_head = [(dvm.asarray(w), dvm.asarray(b)) for w, b in layers], dvm.asarray(head)
    theirs, their_head = [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in layers], torch.from_numpy(head)

    flat = [array for pair in held for array in pair]
    used = sum(loops.early_exit(dvm.asarray(x), held, held_head, 0.6)[1] for x in given)

    def dvm_run() -> int:
        if structured:
            [np.asarray(loops.early_exit_structured(dvm.asarray(x), 0.6, held_head, *flat)) for x in given]
            return used
        return sum(loops.early_exit(dvm.asarray(x), held, held_head, 0.6)[1] for x in given)

    def eager(x: object) -> int:
        for depth, (w, b) in enumerate(theirs, 1):
            x = x + torch.tanh(torch.addmm(b, x, w))
            if float(torch.max(torch.softmax(x @ their_head, -1))) >= 0.6:
                break
        return depth

    def torch_run() -> int:
        with torch.inference_mode():
            return sum(eager(torch.from_numpy(x)) for x in given)

    return {"dvm": dvm_run, "torch": torch_run}


def _converged(structured: bool) -> Runs:
    import dvm_rt as dvm
    from dynamic import loops

    torch = _torch()
    b = np.random.default_rng(0).standard_normal(10_000, np.float32)
    pad = torch.nn.functional.pad

    def dvm_run() -> int:
        if structured:
            return int(loops.solve_structured(dvm.asarray(b), 1e-5)[1])
        return loops.solve(dvm.asarray(b), 1e-5)[1]

    def torch_run() -> int:
        with torch.inference_mode():
            given = torch.from_numpy(b)
            x, moved, count = torch.zeros(10_000), 1.0, 0
            while moved > 1e-5:
                new = (given + pad(x[:-1], (1, 0)) + pad(x[1:], (0, 1))) * 0.4
                moved, x, count = float(torch.max(torch.abs(new - x))), new, count + 1
            return count

    return {"dvm": dvm_run, "torch": torch_run}


# ---- decoding ----

TOKENS = 200


def _gpt(beam: int) -> Runs:
    from dynamic import gpt

    weights = gpt.random_weights(np.random.default_rng(0), 256, 4, 1000, TOKENS + 16)
    model, eager = gpt.Gpt(weights), torch_gpt(weights)

    def dvm_run() -> int:
        if beam:
            gpt.beam_search(model, [1, 2, 3], -1, beam, 48)
            return 48
        return len(gpt.decode(model, [1, 2, 3], -1, TOKENS))

    def torch_run() -> int:
        return len(eager(beam, 48 if beam else TOKENS))

    return {"dvm": dvm_run, "torch": torch_run}


def torch_gpt(weights: object, compiled: bool = False) -> Callable[[int, int], list]:
    """Decodes with a beam of some width, 0: greedily; as many steps as asked for. `compiled`: greedily, by torch.compile."""
    from dynamic import gpt

    torch = _torch()
    F = torch.nn.functional  # noqa: N806
    words, places, head = (torch.from_numpy(w) for w in weights[:3])
    layers = [gpt.Layer(*(torch.from_numpy(w) for w in layer)) for layer in weights.layers]

    def logits(ids: object, caches: list) -> object:
        batch, new = ids.shape
        before = caches[0][0].shape[2] if caches[0] else 0
        x = words[ids] + places[before : before + new]
        for number, w in enumerate(layers):
            q, k, v = (F.rms_norm(x, (256,), w.norm, 1e-6) @ w.qkv).view(batch, new, 3, gpt.HEADS, -1).permute(2, 0, 3, 1, 4)
            if caches[number]:
                k, v = (torch.cat([old, y], 2) for old, y in zip(caches[number], (k, v), strict=True))
            caches[number] = (k, v)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=new > 1)
            x = x + mixed.transpose(1, 2).reshape(batch, new, -1) @ w.out
            x = x + F.gelu(F.rms_norm(x, (256,), w.last_norm, 1e-6) @ w.up) @ w.down
        return F.rms_norm(x[:, -1], (256,), None, 1e-6) @ head

    def step(ids: object, caches: list) -> tuple[object, list]:
        caches = list(caches)
        return logits(ids, caches).argmax(-1), caches

    step = torch.compile(step, dynamic=True) if compiled else step

    def greedy(count: int) -> list:
        token, caches = step(torch.tensor([[1, 2, 3]]), [None] * len(layers))
        found = [int(token)]
        while len(found) < count:
            token, caches = step(torch.tensor([[found[-1]]]), caches)
            found.append(int(token))
        return found

    def beam_search(width: int, count: int) -> list:
        caches: list = [None] * len(layers)
        scores = torch.log_softmax(logits(torch.tensor([[1, 2, 3]]), caches), -1).numpy()
        alive: list = [(0.0, [])]
        for _ in range(count - 1):
            alive, parents, _ = gpt.spread(alive, scores, -1, width)
            rows = torch.from_numpy(parents).long()
            caches[:] = [(k[rows], v[rows]) for k, v in caches]
            ids = torch.tensor([[tokens[-1]] for _, tokens in alive])
            scores = torch.log_softmax(logits(ids, caches), -1).numpy()
        return [None] * count

    def run(width: int, count: int) -> list:
        with torch.inference_mode():
            return beam_search(width, count) if width else greedy(count)

    return run


def _requests(width: int) -> Runs:
    """Stacked, against our own decoding of one request after the other."""
    from dynamic import gpt

    weights = gpt.random_weights(np.random.default_rng(0), width, 4, 1000, 64)
    model, prompts = gpt.Gpt(weights), [[1 + i, 2, 3] for i in range(16)]

    def dvm_run() -> int:
        return sum(map(len, asyncio.run(gpt.decode_together(model, prompts, -1, 40))))

    def alone() -> int:
        return sum(len(gpt.decode(model, prompt, -1, 40)) for prompt in prompts)

    return {"dvm": dvm_run, "our own, one by one": alone}


# ---- mixture of experts ----


def _mixture() -> Runs:
    import dvm_rt as dvm
    from dynamic import mixture

    rng, torch = np.random.default_rng(0), _torch()
    weights = mixture.random_weights(rng, 128, 8)
    batches = [rng.standard_normal((int(n), 128), np.float32) for n in rng.integers(1, 97, 8)]
    (gate, *ours), (their_gate, *theirs) = map(dvm.asarray, weights), map(torch.from_numpy, weights)
    combine = mixture.combination(*ours)
    gelu = torch.nn.functional.gelu

    def dvm_run() -> int:
        [np.asarray(y) for y in [mixture.mixture(dvm.asarray(x), gate, combine)[0] for x in batches]]
        return len(batches)

    def eager(x: object) -> object:
        scores, chosen = torch.topk(x @ their_gate, 2)
        shares, out = torch.softmax(scores, -1), x.clone()
        for number, (up, down) in enumerate(zip(*theirs, strict=True)):
            rows, choice = torch.where(chosen == number)
            if len(rows):
                out.index_add_(0, rows, shares[rows, choice, None] * (gelu(x[rows] @ up) @ down))
        return out.numpy()

    def torch_run() -> int:
        with torch.inference_mode():
            [eager(torch.from_numpy(x)) for x in batches]
        return len(batches)

    return {"dvm": dvm_run, "torch": torch_run}


CASES: dict[str, tuple[str, str, Callable[[], Runs]]] = {
    **{f"tree-LSTM, {way}, h = {h}": (f"h = {h}", "node", lambda h=h, way=way: _trees(h, way))
       for way in ("recursion", "cells wait", "by level") for h in (64, 128, 256)},
    **{f"early exit, {way}": ("d = 128", "layer", lambda way=way: _exit(way == "structured"))
       for way in ("plain Python", "structured")},
    **{f"until converged, {way}": ("n = 10000", "sweep", lambda way=way: _converged(way == "structured"))
       for way in ("plain Python", "structured")},
    "GPT decode": ("d = 256, 4 layers", "token", lambda: _gpt(0)),
    **{f"16 requests, d = {d}": (f"d = {d}, 4 layers", "token", lambda d=d: _requests(d)) for d in (64, 256)},
    "beam search": ("d = 256, 4 layers, beam 4", "step", lambda: _gpt(4)),
    "mixture of experts": ("d = 128, 8 experts", "batch", _mixture),
}  # fmt: skip


def main() -> None:
    only = sys.argv[1] if len(sys.argv) > 1 else ""
    for name in [n for n in CASES if only not in n]:
        del CASES[name]
    for row in dynamic():
        print(f"{row.case:32} {row.shape:36} {row.metric:8} dvm {row.dvm:9.2f} us  "
              + "  ".join(f"{name} {us:9.2f} us" for name, us in row.peers.items())
              + f"  ratio {min(row.peers.values()) / row.dvm:6.2f}", flush=True)


if __name__ == "__main__":
    main()
