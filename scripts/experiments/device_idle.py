#!/usr/bin/env python3
"""How long the device waits, against who encodes, how dear an encode is, how far ahead the client runs, and how large launches are.

    python scripts/experiments/device_idle.py [--out results] [--launches 120]

Every launch has a shape never seen, so each needs an encode; `work` is injected into each of them. Idle is the device's time
without work while work exists (exposed: the program is missing; starved: the launch is missing while our code runs), the
user's own Python apart; inline it is the client's time outside of kernels. `ahead`: launches between two values that the client
reads. Printed: idle as a part of busy, and `auto` against the better of `workers` and `caller` by the time of the whole
stream (each the median of the repeats; the modes take turns)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextvars import copy_context
from itertools import count

import numpy as np
from output import Rows, arguments, tell, write

import dvm_rt as dvm

MODES = {
    "inline": {"inline": True}, "caller": {"encoders": 1, "encode": "caller"}, "workers 1": {"encoders": 1, "encode": "workers"},
    "workers 2": {"encoders": 2, "encode": "workers"}, "auto": {"encoders": 1, "encode": "auto"},
}  # fmt: skip
WORK_US = (0, 100, 500, 2000, 10_000)
AHEAD = (1, 8, 64, 512)
ROWS = (4, 64, 1000)  # of 512 columns: about 2, 30 and 500 us of kernel
BASE = {"work_us": 0, "ahead": 64, "rows": 64}


@dvm.function
def chain(x: dvm.Array, y: dvm.Array) -> dvm.Array:
    for _ in range(4):
        x = dvm.tanh(x * y + 0.5)
    return x


def settings() -> Iterator[tuple[str, dict[str, int]]]:
    """(what is varied, the setting)"""
    for work_us in WORK_US:
        yield "work_us", {**BASE, "work_us": work_us, "rows": 1000}
    for ahead in AHEAD:
        yield "ahead", {**BASE, "ahead": ahead}
    for rows in ROWS:
        yield "rows", {**BASE, "rows": rows}


class Mode:
    """One runtime, and one stream of launches after another in it; no shape comes twice."""

    def __init__(self, options: dict[str, object], work_us: int) -> None:
        self.runtime = dvm.Runtime(threads=1, encode_work_ns=1000 * work_us, **options)  # type: ignore[arg-type]
        if self.runtime.inline:
            self.runtime.stream.set_encode_work_ns(1000 * work_us)
        self._columns, self._context = count(500), copy_context()
        self._context.run(self.runtime.__enter__)  # the current one, but only in there

    def stream(self, launches: int, ahead: int, rows: int) -> dict[str, float]:
        """Microseconds a launch."""
        return self._context.run(self._stream, launches, ahead, rows)

    def _stream(self, launches: int, ahead: int, rows: int) -> dict[str, float]:
        inputs = [dvm.asarray(np.ones((rows, next(self._columns)), np.float32)) for _ in range(launches)]
        one = dvm.asarray(np.ones((2, 3), np.float32))
        np.asarray(chain(one, one))
        before, begin = self.runtime.stats(), time.perf_counter_ns()
        for number, x in enumerate(inputs, 1):
            y = chain(x, x)
            if number % ahead == 0 or number == launches:
                np.asarray(y)
        whole, after = time.perf_counter_ns() - begin, self.runtime.stats()
        each = {k: (after[k] - before[k]) / launches / 1e3 for k in ("busy_ns", "exposed_ns", "starved_client_ns", "starved_user_ns")}
        us = {"whole_us": whole / launches / 1e3, "busy_us": each["busy_ns"], "exposed_us": each["exposed_ns"],
              "starved_us": each["starved_client_ns"], "user_us": each["starved_user_ns"]}  # fmt: skip
        if self.runtime.inline:
            us["starved_us"] = us["whole_us"] - us["busy_us"]
        return us

    def close(self) -> None:
        self._context.run(self.runtime.__exit__)


def measure(launches: int, repeats: int) -> Rows:
    rows: Rows = []
    for varied, setting in settings():
        work_us, ahead, size = setting["work_us"], setting["ahead"], setting["rows"]
        modes = {name: Mode(options, work_us) for name, options in MODES.items()}
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in modes}
        number = max(12, min(launches, int(0.4e6 / (work_us + 1)) if work_us else launches))
        for _ in range(repeats):
            for name, mode in modes.items():
                tell(f"{varied} {setting[varied]}: {name}")
                samples[name].append(mode.stream(number, ahead, size))
        for name, mode in modes.items():
            mode.close()
            us = {k: statistics.median(s[k] for s in samples[name]) for k in samples[name][0]}
            rows.append({"varied": varied, **setting, "mode": name, **us, "idle": (us["exposed_us"] + us["starved_us"]) / us["busy_us"]})
    return rows


def report(rows: Rows) -> None:
    tell("")
    for row in rows:
        print(f"{row['varied']:8} work {row['work_us']:6} us  ahead {row['ahead']:4}  rows {row['rows']:5}  {row['mode']:10} whole {row['whole_us']:9.1f}"
              f"  busy {row['busy_us']:8.1f}  exposed {row['exposed_us']:9.1f}  starved {row['starved_us']:8.1f}  idle {row['idle']:8.1%}")  # fmt: skip
    for auto in [r for r in rows if r["mode"] == "auto"]:
        same = [r for r in rows if all(r[k] == auto[k] for k in ("varied", "work_us", "ahead", "rows"))]
        best = min((r for r in same if r["mode"] in ("caller", "workers 1")), key=lambda r: r["whole_us"])
        ratio = auto["whole_us"] / best["whole_us"]
        print(f"auto / better ({best['mode']:9}): {ratio:5.2f}  {auto['varied']} {auto[auto['varied']]}{'  ABOVE 1.1' if ratio > 1.1 else ''}")


def draw(axes: list, rows: Rows) -> None:
    names = {"work_us": "injected work an encode, us", "ahead": "launches between two values read", "rows": "rows of 512 a launch"}
    for axis, (varied, text) in zip(axes, names.items(), strict=True):
        for mode in MODES:
            chosen = [r for r in rows if r["varied"] == varied and r["mode"] == mode]
            axis.plot([str(r[varied]) for r in chosen], [max(100 * r["idle"], 0.01) for r in chosen], marker="o", label=mode)
        axis.set(xlabel=text, ylabel="device idle, % of busy", yscale="log", title=f"idle against {varied}")
        axis.grid(alpha=0.3)
    axes[0].legend()


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--launches", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    rows = measure(given.launches, given.repeats)
    report(rows)
    write(given.out, "device_idle", rows, draw, 3)


if __name__ == "__main__":
    main()
