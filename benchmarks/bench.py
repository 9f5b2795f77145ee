"""`dvm-rt bench`: everything against everybody in one run, losing rows included.

    dvm-rt bench [suite ...] [--peers a,b] [--json out.json] [--html out.html] [--markdown out.md]"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from benchmarks.measure import Row

CASE_SUITES = ("operators", "subgraphs", "models")
ALL = (*CASE_SUITES, "requests", "dynamic", "onnx", "limits", "threads", "memory", "encode", "pipeline", "startup")
# What is quick and what says most comes first: a run that is cut short has it, and the same command goes on.
ORDER = ("requests", "limits", "threads", "memory", "encode", "pipeline", "startup", "subgraphs", "operators",
         "models", "dynamic", "onnx")
STARTED = "DVM_RT_BENCH"  # in the environment: the settings below are made


def settings(threads: int) -> dict[str, str]:
    """So many threads for every engine that reads the environment, and a malloc that keeps its pages: the peers' best
    setting. Inductor starts without what earlier runs have compiled: a shape that nobody has seen is in no cache."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "DVM_RT_THREADS", STARTED)
    malloc = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
    return {**dict.fromkeys(counts, str(threads)), **malloc, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}


Rows = list[Row]


def run(suites: list[str], peers: list[str], only: str, threads: int, all_unseen: bool, rows: Rows,
        save: Callable[[dict, Rows], None]) -> None:
    """Adds to `rows` what is not there yet, and saves after every case. Progress and rows as they come go to stderr."""
    from benchmarks import cases
    from benchmarks.engines import engines
    from benchmarks.fused import Fused
    from benchmarks.limits import Limits
    from benchmarks.measure import Cases
    from benchmarks.page import line
    from benchmarks.suites import SUITES

    if threads == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    limits = Limits.measure()
    found, absent = engines(peers)
    yardstick = Fused()
    if yardstick.absent:
        absent["fused C"] = yardstick.absent
    for name, why in absent.items():
        print(f"{name}: absent ({why})", file=sys.stderr)
    machine = {"cpu": cpu_name(), "cpus": os.cpu_count(), "python": platform.python_version(), "threads": threads,
               "load": os.getloadavg()[0],
               "versions": dict(_versions(found)), "absent": absent, "limits": limits.as_dict() if limits else None}  # fmt: skip
    done, begin, before = {(r.suite, r.case) for r in rows}, time.perf_counter(), (len(rows), len(absent))

    def tell(what: str) -> None:
        print(f"\r\033[K{time.perf_counter() - begin:5.0f} s  {what}", end="", file=sys.stderr, flush=True)

    timed = Cases(found, limits, yardstick, tell, all_unseen)

    def add(new: Iterable[Row]) -> None:
        for row in new:
            rows.append(row)
            print(f"\r\033[K{line(row)}", file=sys.stderr)
            save(machine, rows)

    for suite in sorted(suites, key=ORDER.index):
        def wanted(name: str, suite: str = suite) -> bool:
            return only in name and (suite, name) not in done

        tell(suite)
        parts = [(suite, lambda suite=suite, wanted=wanted: SUITES[suite](found, wanted))] if suite in SUITES else [
            (f"{suite}, {c.name}", lambda c=c: timed.rows(c))
            for c in cases.CASES if c.suite == suite and wanted(c.name)]  # fmt: skip
        for name, rows_of in parts:
            try:
                add(rows_of())
            except Exception as error:  # the rest is still worth having; the page says what is missing
                print(f"\r\033[K{name}: {type(error).__name__}: {error}", file=sys.stderr)
                machine["absent"][name] = f"{type(error).__name__}: {error}"
    print(f"\r\033[K{time.perf_counter() - begin:.0f} s in all", file=sys.stderr)
    if not rows or (len(rows), len(absent)) != before:  # else nothing was measured, and the file tells of the machine that did
        save(machine, rows)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions(found: list) -> Iterator[tuple[str, str]]:
    for name in ("numpy", "torch", "onnxruntime", "jax", "numexpr"):  # MindSpore is in another environment
        if any(e.name.startswith(name[:5]) for e in found):
            yield name, metadata.version(name)


def main(suites: list[str], peers: str, only: str, threads: int, all_unseen: bool, outputs: dict[str, Path | None]) -> None:
    """Runs, prints the tables, writes what was asked for. A JSON file that is there already is gone on with: cases that it has
    are not run again. Starts itself again under `settings` first."""
    from benchmarks import page
    from benchmarks.engines import ENGINES

    unknown = [s for s in suites if s not in ALL]
    if unknown:
        sys.exit(f"bench: suite: unknown, got {', '.join(unknown)}, allowed {', '.join(ALL)}")
    if unknown := [p for p in peers.split(",") if p and p not in ENGINES]:
        sys.exit(f"bench: --peers: unknown, got {', '.join(unknown)}, allowed {', '.join(ENGINES)}")
    if os.environ.get(STARTED) != str(threads):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **settings(threads)})
    machine, rows = _read(outputs["json"])

    def save(measured_on: dict, rows: Rows) -> None:
        machine.update(measured_on, versions={**machine.get("versions", {}), **measured_on["versions"]})
        if outputs["json"]:
            part = outputs["json"].with_suffix(".part")
            part.write_text(json.dumps({"machine": machine, "rows": [r.as_dict() for r in rows]}, indent=1))
            part.replace(outputs["json"])

    try:
        run(suites or list(ALL), [p for p in peers.split(",") if p], only, threads, all_unseen, rows, save)
    except KeyboardInterrupt:
        print("\ninterrupted: the rows so far" + (f" are in {outputs['json']}, and the same command goes on"
                                                  if outputs["json"] else ""), file=sys.stderr)
    rows.sort(key=lambda row: ALL.index(row.suite))
    page.show(machine, rows)
    if outputs["markdown"]:
        outputs["markdown"].write_text(page.markdown(machine, rows))
    if outputs["html"]:
        outputs["html"].write_text(page.html(machine, rows))


def _read(path: Path | None) -> tuple[dict, Rows]:
    if path is None or not path.exists():
        return {}, []
    found = json.loads(path.read_text())
    return found["machine"], [Row(**row) for row in found["rows"]]
