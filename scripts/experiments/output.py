"""What the experiments share: their arguments, the JSON and the plot that they write."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository: dvm_rt built in place, and the benchmarks
from benchmarks.bench import cpu_name  # noqa: E402
Rows = list[dict[str, object]]


def arguments(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the JSON and the PNG")
    return parser


def tell(what: str) -> None:
    """Progress, on stderr where somebody looks on."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def cpu_share(seconds: float = 0.2) -> float:
    """How many CPUs two busy processes get here, by what one alone gets: below 2, encoders and device hide nothing
    from each other."""

    def rounds() -> int:
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            count += 1
        return count

    alone, (read, write) = rounds(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(rounds()).encode())
        os._exit(0)
    both = rounds()
    both += int(os.read(read, 32))
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    return both / alone


def write(out: Path, name: str, rows: Rows, draw: Callable[[object, Rows], None], panels: int) -> None:
    """`draw(axes, rows)` fills a row of so many panels; without matplotlib there is no plot."""
    tell("")
    out.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": cpu_name(), "cpus": len(os.sched_getaffinity(0)), "share": cpu_share(), "load": os.getloadavg()[0],
               "python": platform.python_version()}
    (out / f"{name}.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    try:
        import matplotlib
    except ImportError:
        print(f"{out / name}.json written; no plot: matplotlib is absent")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=(5.2 * panels, 4.2), layout="constrained", squeeze=False)
    draw(axes[0], rows)
    figure.savefig(out / f"{name}.png", dpi=110)
    print(f"{out / name}.json and .png written")
