"""Convolutions and pooling against torch, one thread: `python benchmarks/conv.py`.

ResNet-style shapes, batch 1 and 8. Every figure of a line comes from one interleaved run: minima of this thread's CPU
time, Python calls included. "x torch" is how many times faster than torch.nn.functional this is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

import dvm_rt as dvm

CONVS = (  # batch, channels, size, outputs, kernel, stride, groups
    (1, 3, 224, 64, 7, 2, 1), (1, 64, 56, 64, 3, 1, 1), (1, 64, 56, 256, 1, 1, 1), (1, 256, 56, 64, 1, 1, 1),
    (1, 128, 28, 128, 3, 1, 1), (1, 256, 14, 256, 3, 1, 1), (1, 512, 7, 512, 3, 1, 1), (1, 256, 56, 512, 1, 2, 1),
    (8, 64, 56, 64, 3, 1, 1), (8, 256, 14, 256, 3, 1, 1), (1, 96, 56, 96, 3, 1, 96),
)  # fmt: skip
POOLS = ((1, 64, 112, 3, 2, 1), (8, 64, 56, 2, 2, 0))  # batch, channels, size, kernel, stride, padding
ROUNDS = 15


def race(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least microseconds of each, taking turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], 1e6 * (time.perf_counter() - begin))
    return best


def report(what: str, work: float, calls: dict[str, Callable[[], object]]) -> None:
    us = race(calls)
    speed = f"{work / us['ours'] / 1e3:7.1f} GF/s  x torch {us['torch'] / us['ours']:5.2f}"
    print(f"{what:48} {us['ours']:9.1f} us {speed}", flush=True)


def main() -> None:
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    random = np.random.default_rng(0)
    for batch, channels, size, outputs, kernel, stride, groups in CONVS:
        x = random.standard_normal((batch, channels, size, size), np.float32)
        w = random.standard_normal((outputs, channels // groups, kernel, kernel), np.float32)
        b, pad = random.standard_normal(outputs, np.float32), kernel // 2
        ours = [dvm.asarray(a) for a in (x, w, b)]
        theirs = [torch.from_numpy(a) for a in (x, w, b)]

        @dvm.function
        def layer(x, w=ours[1], b=ours[2], stride=stride, pad=pad, groups=groups):  # noqa: B008
            return dvm.relu(dvm.conv(x, w, b, stride=stride, padding=pad, groups=groups))

        places = (size + 2 * pad - kernel) // stride + 1
        calls = {
            "ours": lambda layer=layer, ours=ours: dvm.eval(layer(ours[0])),
            "torch": lambda t=theirs, s=stride, p=pad, g=groups: torch.relu_(functional.conv2d(*t, s, p, 1, g)),
        }
        name = f"conv {batch}x{channels}x{size}x{size} -> {outputs}, {kernel}x{kernel} / {stride}, groups {groups}"
        report(name, 2.0 * batch * outputs * channels // groups * kernel**2 * places**2, calls)
    for batch, channels, size, kernel, stride, pad in POOLS:
        x = random.standard_normal((batch, channels, size, size), np.float32)
        a, t = dvm.asarray(x), torch.from_numpy(x)
        for name in ("max_pool", "avg_pool"):
            pool = dvm.function(lambda x, name=name, k=kernel, s=stride, p=pad: getattr(dvm, name)(x, k, stride=s, padding=p))
            theirs = getattr(functional, f"{name}2d")
            calls = {"ours": lambda f=pool, a=a: dvm.eval(f(a)),
                     "torch": lambda f=theirs, t=t, k=kernel, s=stride, p=pad: f(t, k, s, p)}
            report(f"{name} {batch}x{channels}x{size}x{size}, {kernel}x{kernel} / {stride}",
                   x.size * kernel**2 / stride**2, calls)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
