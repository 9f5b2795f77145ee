"""`dvm-rt bench`: everything against everybody in one run, losing rows included.

    python -m benchmarks.bench [suite ...] [--peers a,b] [--json out.json] [--html out.html] [--markdown out.md]"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

PEERS = "torch,inductor,inductor-dyn,onnxruntime,jax,numpy,numexpr"
CASE_SUITES = ("operators", "subgraphs", "models")
ALL = (*CASE_SUITES, "dynamic", "encode", "pipeline", "startup", "memory")
# One thread for every engine that reads the environment, and a malloc that keeps its pages: the peers' best setting.
SETTINGS = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMEXPR_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34), "DVM_RT_BENCH": "1",
}  # fmt: skip


def run(suites: list[str], peers: list[str], only: str, threads: int, all_unseen: bool) -> tuple[dict[str, object], list]:
    """(the machine, rows). Progress goes to stderr."""
    from benchmarks import cases, measure
    from benchmarks.engines import engines
    from benchmarks.limits import Limits
    from benchmarks.suites import SUITES

    def tell(what: str) -> None:
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)

    if threads == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    limits = Limits.measure()
    found, absent = engines(peers)
    for name, why in absent.items():
        print(f"{name}: absent ({why})", file=sys.stderr)
    rows = []
    for suite in suites:
        if suite in SUITES:
            tell(suite)
            rows += [r for r in SUITES[suite]() if only in r.case]
            continue
        for case in cases.CASES:
            if case.suite == suite and only in case.name:
                rows += measure.time_case(case, found, limits, tell, all_unseen)
    print("\r\033[K", end="", file=sys.stderr)
    machine = {"cpu": _cpu(), "cpus": os.cpu_count(), "python": platform.python_version(), "threads": threads, "load": os.getloadavg()[0],
               "versions": dict(_versions(found)), "absent": absent, "limits": limits.as_dict() if limits else None}  # fmt: skip
    return machine, rows


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions(found: list) -> Iterator[tuple[str, str]]:
    for name in ("numpy", "torch", "onnxruntime", "jax", "numexpr"):
        if any(e.name.startswith(name[:5]) for e in found):
            yield name, metadata.version(name)


def main(suites: list[str], peers: str, only: str, threads: int, all_unseen: bool, outputs: dict[str, Path | None]) -> None:
    """Runs, prints the table, writes what was asked for. Starts itself again under SETTINGS first."""
    from benchmarks import page

    unknown = [s for s in suites if s not in ALL]
    if unknown:
        sys.exit(f"bench: suite: unknown, got {', '.join(unknown)}, allowed {', '.join(ALL)}")
    if os.environ.get("DVM_RT_BENCH") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **SETTINGS})
    machine, rows = run(suites or list(ALL), [p for p in peers.split(",") if p], only, threads, all_unseen)
    page.show(machine, rows)
    if outputs["json"]:
        outputs["json"].write_text(json.dumps({"machine": machine, "rows": [r.as_dict() for r in rows]}, indent=1))
    if outputs["markdown"]:
        outputs["markdown"].write_text(page.markdown(machine, rows))
    if outputs["html"]:
        outputs["html"].write_text(page.html(machine, rows))
