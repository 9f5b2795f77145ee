#!/usr/bin/env python3
"""docs/latency.md from the JSON of the experiments.

    python scripts/experiments/page.py [--run] [--results results] [--out docs/latency.md]

`--run` runs `unseen.py`, `first_seen.py` and `device_idle.py` before, one after the other (about ten minutes; each
tells how far it is); they write what this reads. What is missing is left out, and that is said."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Row = dict[str, object]
INTRODUCTION = """# Who waits for whom

Written by `scripts/experiments/page.py` from what the experiments beside it have measured; each is one command that writes
JSON and a plot. Times are microseconds, medians, of one run on the machine named with each table; ratios of one run carry over
to other machines better than times do. *Busy*: the device runs kernels. *Idle*: it does not although there is work: *exposed*
if a program is missing, *starved* if a launch is missing while our own code runs in the client; the user's own Python is apart.
*Checking*: the device verifies programs, which is neither, but time in which it runs no kernel.
"""


def section(title: str, text: str, head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    said = textwrap.fill(text, 128, break_long_words=False, break_on_hyphens=False)
    return f"## {title}\n\n{said}\n\n{table(head, rows)}"


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def us(value: object) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def unseen(rows: list[Row]) -> str:
    caller = {r["mode"]: r for r in rows}

    def lines() -> Iterator[tuple[str, ...]]:
        for r in rows:
            base = caller[str(r["mode"]).replace("auto", "caller")]
            yield (str(r["mode"]), us(r["first_p50_us"]), us(r["first_p99_us"]),
                   f"{r['first_p50_us'] / base['first_p50_us']:.2f}", us(r["five_p50_us"]),
                   f"{r['five_p50_us'] / base['five_p50_us']:.2f}", f"{r['calls_p50']:.0f}", us(r["steady_p50_us"]),
                   str(r["plans_made"]), str(r["quick_plans"]), "yes" if r["same_bytes"] else "NO")  # fmt: skip

    head = ("mode", "first result p50", "p99", "against `caller`", "five calls p50", "against `caller`",
            "own plan in call", "then p50", "plans", "plans of operators", "same bytes")
    text = (
        "Every request is another random small model. `caller`: the caller plans before it runs. `auto`: the graph runs operator "
        "by operator at once, and its plan is made meanwhile by a worker, or when it comes again. `five calls`: one right after "
        "the other, in all. A worker that shares its CPU with the caller needs longer for a plan than that; `own plan in call`: "
        "which call was the first to run on it. (`unseen.py`)")  # fmt: skip
    return section("A stream of graphs that were never seen", text, head, lines())


def first_seen(rows: list[Row]) -> str:
    head = ("case", "engine", "shapes", "steady p50", "seen p50", "first p50", "first p99", "first max", "added p50",
            "added p99", "first / steady", "first / seen")
    keys = ("steady_p50_us", "seen_p50_us", "first_p50_us", "first_p99_us", "first_max_us", "added_p50_us", "added_p99_us")
    lines = ((str(r["case"]), str(r["engine"]), str(r["shapes"]), *(us(r[k]) for k in keys),
              f"{r['ratio_steady']:.2f}", f"{r['ratio_seen']:.2f}") for r in rows)
    text = (
        "All engines get the same stream of all-different shapes; each is called once on new inputs (first), five times more on "
        "them (steady), and once on other new inputs (seen): first / seen is what the shape costs, added is first - steady. "
        "(`first_seen.py`)")  # fmt: skip
    return section("A shape that was never seen", text, head, lines)


def device_idle(rows: list[Row]) -> str:
    head = ("varied", "injected work", "launches ahead", "rows", "mode", "a launch", "spread", "busy", "checking", "exposed",
            "starved", "idle / busy", "auto / better", "guessed right / wrong")

    def lines() -> Iterator[tuple[str, ...]]:
        for r in rows:
            guesses = f"{r['guessed_right']} / {r['guessed_wrong']}" if "guessed" in r else ""
            low, middle, high = r.get("against_better", (0, 0, 0))
            better = f"{middle:.2f} ({low:.2f} to {high:.2f})" if middle else ""
            yield (str(r["varied"]), str(r["work_us"]), str(r["ahead"]), str(r["rows"]), str(r["mode"]),
                   us(r["whole_us"]), f"{r['spread']:.0%}", us(r["busy_us"]),
                   us(r["checking_us"]), us(r["exposed_us"]), us(r["starved_us"]), f"{r['idle']:.1%}", better, guesses)  # fmt: skip

    text = (
        "Every launch has a shape never seen. `decode`: a GPT with a growing cache, each token read before the next launch; "
        "`guess 4`: programs of up to four calls ahead are made while the client waits. The modes of a row take turns; `spread`: "
        "between the quartiles of a launch's time over the turns, against its median; `auto / better`: against the better of "
        "`caller` and `workers 1` in the same turn, median and quartiles. (`device_idle.py`)")  # fmt: skip
    return section("How long the device waits", text, head, lines())


def run_all(results: Path) -> None:
    begin = time.monotonic()
    for number, name in enumerate(SECTIONS, 1):
        print(f"{name}.py ({number} of {len(SECTIONS)}), {time.monotonic() - begin:.0f} s so far", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / f"{name}.py"), "--out", str(results)], check=True)


NOTES = """## What is not measured here

`python -m benchmarks.instances` says how many operator instances a second go through one encoder process, and what one costs
each process. On 2 CPUs, which client, encoder and device share, in two runs of a quiet machine, 10,000 programs a round, with
shapes that are known before their launches and asked for together: 925,000 and 1,206,000 a second in the median round and
1,279,000 in the best, where each is a program of its own (beside another busy process 275,000 to 423,000); 2,593,000 and
2,741,000, and 3,012,000, with eight kernels a program. Each launched from Python, one kernel: 360,000 and 369,000, and 386,000.

`python -m benchmarks.choices` says what other prefetch distances and stores would gain, by timing. The encoder chooses them by
rule, and programs that run often try others, and other tiles and blocks of products, on their own runs (`native/tuning.h`;
`choices_tried`, `choices_kept`, `choices_gained_ns` in `dvm.stats()`). A choice that loses in its first turn costs eight timed
runs, of which four are on it.
"""


SECTIONS: dict[str, Callable[[list[Row]], str]] = {"unseen": unseen, "first_seen": first_seen, "device_idle": device_idle}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the JSON")
    parser.add_argument("--out", type=Path, default=Path("docs/latency.md"), help="the page")
    parser.add_argument("--run", action="store_true", help="run the experiments first")
    given = parser.parse_args()
    if given.run:
        run_all(given.results)
    parts = [INTRODUCTION]
    for name in SECTIONS:
        path = given.results / f"{name}.json"
        if not path.exists():
            print(f"{path}: absent, so its section is left out")
            continue
        data = json.loads(path.read_text())
        machine = data["machine"]
        parts.append(f"{SECTIONS[name](data['rows'])}\n\nMachine: {machine['cpu']}, {machine['cpus']} CPUs, of which two busy "
                     f"processes got {machine['share']:.1f} after the run.\n")
    given.out.write_text("\n".join([*parts, NOTES]))
    print(f"{given.out} written")


if __name__ == "__main__":
    main()
