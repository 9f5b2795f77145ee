#!/usr/bin/env python3
"""How long the device waits, against who encodes, how many encoders there are, how dear an encode is, how far ahead the client
runs, how large launches are, and whether programs are made ahead.

    python scripts/experiments/device_idle.py [--out results] [--launches 120] [--only work_us,ahead,rows,decode]

Every launch has a shape never seen, so each needs an encode; `work` is injected into each of them. Idle is the device's time
without work while work exists (exposed: the program is missing; starved: the launch is missing while our code runs), the
user's own Python apart; inline it is the client's time outside of kernels. `ahead`: launches between two values that the client
reads. `decode` is a GPT (d = 256, 4 layers) that decodes with a growing cache, work injected too: every token is a shape never
seen, and its value is read before the next is launched; `guess 4` and `guess 0`: programs of up to so many calls ahead are made
while the client waits; `launch first`: the next step is launched before the token that it reads is looked at. Printed: idle as a part of busy, and `auto` against the better of `workers` and `caller` by the time of
the whole stream (each the median of the repeats; the modes take turns)."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextvars import copy_context
from itertools import count
from pathlib import Path

import numpy as np
from output import Rows, arguments, tell, write

import dvm_rt as dvm

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
MODES = {
    "inline": {"inline": True}, "caller": {"encoders": 1, "encode": "caller"}, "workers 1": {"encoders": 1, "encode": "workers"},
    "workers 2": {"encoders": 2, "encode": "workers"}, "workers 4": {"encoders": 4, "encode": "workers"}, "auto": {"encoders": 1, "encode": "auto"},
}  # fmt: skip
GUESSES = {f"{mode}, guess {depth}": (mode, depth) for mode in ("caller", "workers 1", "auto") for depth in (4, 0)}
GUESSES["auto, launch first"] = ("auto", 4)
DECODE_WORK_US, TOKENS = (0, 500), 60
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
        while not dvm.stats()["plans_made"] or self.runtime.graphs_waiting:  # `auto` has begun without a plan
            np.asarray(chain(one, one))
        before, begin = self.runtime.stats(), time.perf_counter_ns()
        for number, x in enumerate(inputs, 1):
            y = chain(x, x)
            if number % ahead == 0 or number == launches:
                np.asarray(y)
        whole = time.perf_counter_ns() - begin
        us = _us(before, self.runtime.stats(), whole, launches)
        if self.runtime.inline:
            us["starved_us"] = us["whole_us"] - us["busy_us"]
        return us

    def close(self) -> None:
        self._context.run(self.runtime.__exit__)


def measure(launches: int, repeats: int, only: list[str]) -> Rows:
    rows: Rows = []
    for varied, setting in settings():
        if varied not in only:
            continue
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


def measure_decode(repeats: int) -> Rows:
    """GPT decoding, programs made ahead or not."""
    from dynamic import gpt

    rows: Rows = []
    weights = gpt.random_weights(np.random.default_rng(0), 256, 4, 1000, (repeats + 1) * TOKENS + 16)
    for work_us in DECODE_WORK_US:
        for name, (mode, depth) in GUESSES.items():
            tell(f"decode, work {work_us} us: {name}")
            os.environ["DVM_RT_AHEAD_DEPTH"] = str(depth)
            with dvm.Runtime(threads=1, encode_work_ns=1000 * work_us, **MODES[mode]) as runtime:  # type: ignore[arg-type]
                us, guessed = _decoded(gpt, gpt.Gpt(weights), runtime, repeats, "launch first" in name)
            del os.environ["DVM_RT_AHEAD_DEPTH"]
            rows.append({"varied": "decode", **BASE, "work_us": work_us, "mode": name, **us, **guessed, "idle": (us["exposed_us"] + us["starved_us"]) / us["busy_us"]})
    return rows


def _decoded(gpt: object, model: object, runtime: dvm.Runtime, repeats: int, ahead: bool) -> tuple[dict[str, float], dict[str, int]]:
    """Microseconds a token, of one long sequence; the first part, in which everything is new, apart."""
    logits, *caches = model.start(dvm.asarray(np.array([[1, 2, 3]], np.int32)))
    ids, samples = gpt.likeliest(logits), []
    for _ in range(repeats + 1):
        before, begin = runtime.stats(), time.perf_counter_ns()
        for _ in range(TOKENS):
            if ahead:
                last, (ids, *caches) = ids, model.step(ids, *caches)
                int(last)
            else:
                ids, *caches = model.step(dvm.asarray(np.array([[int(ids)]], np.int32)), *caches)
        int(ids)
        samples.append(_us(before, runtime.stats(), time.perf_counter_ns() - begin, TOKENS))
    last = runtime.stats()
    guessed = {name: last[name] for name in ("guessed", "guessed_right", "guessed_wrong")}
    return {k: statistics.median(s[k] for s in samples[1:]) for k in samples[0]}, guessed


def _us(before: dict, after: dict, whole_ns: int, launches: int) -> dict[str, float]:
    """Microseconds a launch, between two reports."""
    each = {k: (after[k] - before[k]) / launches / 1e3 for k in ("busy_ns", "exposed_ns", "starved_client_ns", "starved_user_ns")}
    return {"whole_us": whole_ns / launches / 1e3, "busy_us": each["busy_ns"], "exposed_us": each["exposed_ns"],
            "starved_us": each["starved_client_ns"], "user_us": each["starved_user_ns"]}  # fmt: skip


def report(rows: Rows) -> None:
    tell("")
    for row in rows:
        print(f"{row['varied']:8} work {row['work_us']:6} us  ahead {row['ahead']:4}  rows {row['rows']:5}  {row['mode']:18} whole {row['whole_us']:9.1f}"
              f"  busy {row['busy_us']:8.1f}  exposed {row['exposed_us']:9.1f}  starved {row['starved_us']:8.1f}  idle {row['idle']:8.1%}"
              + (f"  guessed {row['guessed']}, right {row['guessed_right']}, wrong {row['guessed_wrong']}" if "guessed" in row else ""))  # fmt: skip
    for auto in [r for r in rows if str(r["mode"]).startswith("auto")]:
        same = [r for r in rows if all(r[k] == auto[k] for k in ("varied", "work_us", "ahead", "rows"))]
        others = [str(auto["mode"]).replace("auto", mode) for mode in ("caller", "workers 1")]
        if not any(r["mode"] in others for r in same):
            continue
        best = min((r for r in same if r["mode"] in others), key=lambda r: r["whole_us"])
        ratio = auto["whole_us"] / best["whole_us"]
        print(f"auto / better ({best['mode']:18}): {ratio:5.2f}  {auto['varied']} {auto.get(str(auto['varied']), auto['work_us'])}{'  ABOVE 1.1' if ratio > 1.1 else ''}")


def draw(axes: list, rows: Rows) -> None:
    names = {"work_us": "injected work an encode, us", "ahead": "launches between two values read", "rows": "rows of 512 a launch"}
    for axis, (varied, text) in zip(axes, names.items(), strict=False):
        for mode in MODES:
            chosen = [r for r in rows if r["varied"] == varied and r["mode"] == mode]
            axis.plot([str(r[varied]) for r in chosen], [max(100 * r["idle"], 0.01) for r in chosen], marker="o", label=mode)
        axis.set(xlabel=text, ylabel="device idle, % of busy", yscale="log", title=f"idle against {varied}")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    for offset, work_us in zip((-0.2, 0.2), DECODE_WORK_US, strict=True):
        chosen = [r for r in rows if r["varied"] == "decode" and r["work_us"] == work_us]
        axes[3].bar(np.arange(len(chosen)) + offset, [max(100 * r["idle"], 0.01) for r in chosen], 0.38, label=f"{work_us} us injected")
    axes[3].set(ylabel="device idle, % of busy", yscale="log", title="GPT decode, programs made ahead or not")
    axes[3].set_xticks(range(len(GUESSES)), [name.replace(", ", "\n") for name in GUESSES], fontsize="x-small")
    axes[3].legend(fontsize="small")
    axes[3].grid(alpha=0.3, axis="y")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--launches", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="work_us,ahead,rows,decode", help="what is varied")
    given = parser.parse_args()
    only = given.only.split(",")
    rows = measure(given.launches, given.repeats, only)
    if "decode" in only:
        rows += measure_decode(given.repeats)
    report(rows)
    write(given.out, "device_idle", rows, draw, 4)


if __name__ == "__main__":
    main()
