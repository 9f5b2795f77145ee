"""Matmul sections against torch, one thread: `python benchmarks/matmul.py [M,K,N ...] [--cold BUFFERS] [--target NAME]`.

Every figure of a line comes from one interleaved run: medians of this thread's CPU time. Columns: time with B packed
and its rate; then how many times faster than torch.mm and torch.nn.functional.linear (left out without torch); then
how much longer B in place, B transposed, a bias, and a bias with gelu take. `--cold 16` makes a program of so many
products, each with a packed B of its own, so that B comes from beyond L2 as in a model whose weights do not fit
there."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from math import prod

import numpy as np

from dvm_rt import _native
from dvm_rt.isa import matmul
from dvm_rt.isa.program import PACKED, READ, WRITE, ProgramBuilder, SectionBuilder

SHAPES = (
    (1, 384, 1536), (4, 384, 1536), (20, 384, 384), (20, 384, 1152), (20, 384, 1536), (20, 1536, 384), (60, 384, 1536),
    (128, 768, 768), (512, 512, 512),
)  # fmt: skip
ROUNDS, ROUND_S = 15, 0.002
Run = Callable[[int], float]  # repetitions -> nanoseconds each


def aligned(a: np.ndarray) -> np.ndarray:
    """The same elements from the beginning of a cache line on, as the arena of a device and torch have them."""
    room = np.empty(a.nbytes + 64, np.uint8)
    begin = -room.ctypes.data % 64
    out = room[begin : begin + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def section_of(builder: ProgramBuilder, a: np.ndarray, b: np.ndarray, packed: bool) -> SectionBuilder:
    """A matmul section with three arguments of its own; a leading dimension of `a` and `b` is a batch."""
    (m, k), n, batch = a.shape[-2:], b.shape[-1], a.shape[:-2]
    section = builder.matmul(n, m, k, *batch)
    section.operand(builder.add_arg(a.nbytes), [0, a.strides[-2], *a.strides[:-2]], depth=a.strides[-1])
    if packed:
        section.operand(builder.add_arg(matmul.packed_bytes(n, k)), mode=READ | PACKED)
    else:
        section.operand(builder.add_arg(b.nbytes), [b.strides[-1], 0, *b.strides[:-2]], depth=b.strides[-2])
    place = builder.add_arg(4 * m * n * prod(batch), READ | WRITE)
    section.operand(place, [4, 4 * n, *(4 * m * n for _ in batch)], mode=READ | WRITE)
    return section


def add_bias(builder: ProgramBuilder, section: SectionBuilder, n: int, gelu: bool) -> None:
    section.word("mov.i", 2)
    section.word("add.i", section.operand(builder.add_arg(4 * n), [4]))
    if gelu:
        for word in (("store_slot", 0), ("mul.k", 0.5**0.5), ("erf",), ("add.k", 1.0), ("mul.k", 0.5), ("mul.s", 0)):
            section.word(*word)
    section.word("store", 2)
    section.word("end")


def ours(a: np.ndarray, b: np.ndarray, form: str, target: str, epilogue: str = "", copies: int = 1) -> Run:
    """`copies` products in one program, each on arguments of its own. `form`: packed, in place, transposed."""
    builder, n, args = ProgramBuilder(), b.shape[1], []
    for _ in range(copies):
        source = np.ascontiguousarray(b.T) if form == "transposed" else b
        section = section_of(builder, a, source.T if form == "transposed" else b, form == "packed")
        args += [aligned(x) for x in (a, matmul.pack(b) if form == "packed" else source, np.zeros((len(a), n), np.float32))]
        if epilogue:
            add_bias(builder, section, n, epilogue == "gelu")
            args.append(np.zeros(n, np.float32))
    return native(builder.build(), args, target, copies)


def native(code: bytes, args: list[np.ndarray], target: str, products: int = 1) -> Run:
    program = _native.Program(code)

    def run(reps: int) -> float:
        begin = time.thread_time_ns()
        program.time_run(args, reps, target)  # runs once more than that, to warm up
        return (time.thread_time_ns() - begin) / (reps + 1) / products

    return run


def torch_runs(a: np.ndarray, b: np.ndarray) -> dict[str, Run]:
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    x, w, y = torch.from_numpy(aligned(a)), torch.from_numpy(aligned(b)), torch.empty(len(a), b.shape[1])
    rows = w.t().contiguous()
    calls = {"mm": lambda: torch.mm(x, w, out=y), "linear": lambda: torch.nn.functional.linear(x, rows)}
    return {name: _timed(call) for name, call in calls.items()}


def _timed(call: Callable[[], object]) -> Run:
    def run(reps: int) -> float:
        begin = time.thread_time_ns()
        for _ in range(reps):
            call()
        return (time.thread_time_ns() - begin) / reps

    return run


def race(runs: dict[str, Run]) -> dict[str, float]:
    """Median microseconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    reps = {name: max(1, int(ROUND_S * 1e9 / max(run(1), run(1), 1))) for name, run in runs.items()}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(run(reps[name]))
    return {name: statistics.median(values) / 1e3 for name, values in times.items()}


def line(shape: tuple[int, int, int], target: str) -> str:
    m, k, n = shape
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(s, np.float32) for s in ((m, k), (k, n)))
    runs = {form: ours(a, b, form, target) for form in ("packed", "in place", "transposed")}
    runs |= {f"+{e}": ours(a, b, "packed", target, e) for e in ("bias", "gelu")} | torch_runs(a, b)
    us = race(runs)
    packed = us.pop("packed")
    faster = "  ".join(f"x {name} {us.pop(name) / packed:4.2f}" for name in ("mm", "linear") if name in us)
    slower = "  ".join(f"{name} {value / packed:4.2f}" for name, value in us.items())
    return f"{m:4} x{k:5} x{n:5}  {packed:8.2f} us {2e-3 * m * n * k / packed:6.1f} GF/s  {faster}  |  {slower}"


def cold_line(shape: tuple[int, int, int], target: str, buffers: int) -> str:
    m, k, n = shape
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(s, np.float32) for s in ((m, k), (k, n)))
    us = race({"packed": ours(a, b, "packed", target, copies=buffers)})["packed"]
    return f"{m:4} x{k:5} x{n:5}  {us:8.2f} us {2e-3 * m * n * k / us:6.1f} GF/s  {4e-3 * k * n / us:5.1f} GB/s of B  (cold)"


def batch_line(m: int, k: int, n: int, batch: int, transposed: bool, target: str) -> str:
    """Heads of attention: many small products in one section."""
    random = np.random.default_rng(0)
    a = random.standard_normal((batch, m, k), np.float32)
    b = random.standard_normal((batch, n, k) if transposed else (batch, k, n), np.float32)
    builder = ProgramBuilder()
    section_of(builder, a, np.swapaxes(b, 1, 2) if transposed else b, False)
    runs = {"ours": native(builder.build(), [a, b, np.empty((batch, m, n), np.float32)], target)}
    try:
        import torch
    except ImportError:
        pass
    else:
        x, y = torch.from_numpy(a), torch.from_numpy(b)
        runs["bmm"] = _timed(lambda: torch.matmul(x, y.transpose(1, 2) if transposed else y))
    us = race(runs)
    against = f"  x matmul {us['bmm'] / us['ours']:4.2f}" if "bmm" in us else ""
    kind = "B transposed" if transposed else "B in place"
    return f"{batch} of {m} x {k} x {n}, {kind}  {us['ours']:8.2f} us {2e-3 * batch * m * n * k / us['ours']:6.1f} GF/s{against}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", metavar="M,K,N")
    parser.add_argument("--cold", type=int, default=0)
    parser.add_argument("--target", default=_native.targets()[0], choices=_native.targets())
    options = parser.parse_args()
    shapes = [tuple(map(int, s.split(","))) for s in options.shapes] or SHAPES
    print(f"{options.target}, one thread; M x K x N")
    for shape in shapes:
        print(cold_line(shape, options.target, options.cold) if options.cold else line(shape, options.target), flush=True)
    if not options.shapes and not options.cold:
        for tokens in (8, 20, 64):
            print(batch_line(tokens, 32, tokens, 12, True, options.target), flush=True)
            print(batch_line(tokens, tokens, 32, 12, False, options.target), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
