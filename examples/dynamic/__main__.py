"""Runs the models whose path depends on data, and holds each against NumPy float64.

    PYTHONPATH=examples python -m dynamic [trees exit converged gpt mixture] [--inline] [--encoders N] [--encode auto]

Weights are random. One line a model: what it was, microseconds a unit (tracing and planning included), the error. The exit
status is 1 if a result or a path is not the reference's."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import dvm_rt as dvm
from dynamic import gpt, loops, mixture, trees
from dynamic.report import Report, Tell

MODELS: dict[str, Callable[[int, Tell], list[Report]]] = {
    "trees": trees.run, "exit": loops.run_early_exit, "converged": loops.run_converged, "gpt": gpt.run, "mixture": mixture.run,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model", help=f"{', '.join(MODELS)}; none: all")
    parser.add_argument("--inline", action="store_true", help="no processes")
    parser.add_argument("--encoders", type=int, default=1, help="encoder worker processes")
    parser.add_argument("--encode", choices=["auto", "workers", "caller"], help="who encodes instances of known plans")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and inputs")
    given = parser.parse_args()
    if unknown := [name for name in given.models if name not in MODELS]:
        parser.error(f"models: unknown, got {', '.join(unknown)}, allowed {', '.join(MODELS)}")
    reports: list[Report] = []
    with dvm.Runtime(encoders=given.encoders, inline=given.inline, encode=given.encode) as runtime:
        for name in given.models or MODELS:
            reports += MODELS[name](given.seed, _progress(name))
        stats = runtime.stats()
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    for r in reports:
        mark = "ok" if r.good else "WRONG"
        print(f"{r.name:22} {1e6 * r.seconds / r.count:8.1f} us a {r.unit:6} error {r.error:.0e}  {mark:5}  {r.what}")
    print(f"{stats['launched']} launches, {stats['programs']} programs, {stats['plans']} plans")
    return 0 if all(r.good for r in reports) else 1


def _progress(name: str) -> Tell:
    told = 0.0

    def tell(done: int, whole: int) -> None:
        nonlocal told
        if not sys.stderr.isatty() or time.perf_counter() - told < 0.1:
            return
        told = time.perf_counter()
        print(f"\r\033[K{name}: {done} of {whole}", end="", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())
