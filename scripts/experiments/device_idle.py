#!/usr/bin/env python3
"""How long the device waits, against who encodes, how many encoders there are, how dear an encode is, how far ahead the client
runs, how large launches are, and whether programs are made ahead.

    python scripts/experiments/device_idle.py [--out results] [--launches 120] [--only work_us,ahead,rows,sentences,decode]

Every launch has a shape never seen, so each needs an encode; `work` is injected into each of them. Idle is the device's time
without work while work exists (exposed: the program is missing; starved: the launch is missing while our code runs), the
user's own Python apart, and apart from the time in which it verifies programs (checking); inline it is the client's
time outside of kernels. `ahead`: launches between two values that the client reads. `sentences` are a stream of
sentences of all-different lengths through an encoder of MiniLM's size. `decode` is a GPT (d = 256, 4 layers) that
decodes with a growing cache, work injected too: every token is a shape never seen, and its value is read before the
next is launched; `guess 4` and `guess 0`: programs of up to so many calls ahead are made while the client waits;
`launch first`: the next step is launched before the token that it reads is looked at. Printed: idle as a part of
busy, and `auto` against the better of `workers` and `caller` by the least time of the whole stream among the repeats
(the modes
take turns); all else are
medians."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from itertools import count
from pathlib import Path

import numpy as np
from output import Rows, arguments, tell, write

import dvm_rt as dvm
from benchmarks import cases, spaces

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
MODES = {
    "inline": {"inline": True}, "caller": {"encoders": 1, "encode": "caller"}, "workers 1": {"encoders": 1, "encode": "workers"},
    "workers 2": {"encoders": 2, "encode": "workers"}, "workers 4": {"encoders": 4, "encode": "workers"},
    "auto": {"encoders": 1, "encode": "auto"},
}  # fmt: skip
GUESSES = {f"{mode}, guess {depth}": (mode, depth) for mode in ("caller", "workers 1", "auto") for depth in (4, 0)}
GUESSES["auto, launch first"] = ("auto", 4)
DECODE_WORK_US, TOKENS, SENTENCES = (0, 500), 60, 40
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
        self._columns, self._lengths, self._context = count(500), count(2), copy_context()
        self._context.run(self.runtime.__enter__)  # the current one, but only in there
        self._sentence = None

    def stream(self, launches: int, ahead: int, rows: int) -> dict[str, float]:
        """Microseconds a launch."""
        return self._context.run(self._chains, launches, ahead, rows)

    def sentences(self, launches: int, ahead: int) -> dict[str, float]:
        """The same for sentences."""
        return self._context.run(self._encoded, launches, ahead)

    def _chains(self, launches: int, ahead: int, rows: int) -> dict[str, float]:
        inputs = [dvm.asarray(np.ones((rows, next(self._columns)), np.float32)) for _ in range(launches)]
        return self._measured(lambda x: chain(x, x), inputs, dvm.asarray(np.ones((2, 3), np.float32)), ahead)

    def _encoded(self, launches: int, ahead: int) -> dict[str, float]:
        if self._sentence is None:
            case, rng, space = next(c for c in cases.CASES if c.name.startswith("MiniLM")), np.random.default_rng(0), spaces.Dvm()
            encoder, weights = dvm.function(lambda *arrays: case.function(space, *arrays)), [dvm.asarray(w)
                for w in case.weights(rng)]
            self._sentence = lambda x: encoder(x, *weights)
        inputs = [dvm.asarray(np.ones((1, next(self._lengths), 384), np.float32)) for _ in range(launches)]
        return self._measured(self._sentence, inputs, dvm.asarray(np.ones((1, 500, 384), np.float32)), ahead)

    def _measured(self, function: Callable[[dvm.Array], dvm.Array], inputs: list[dvm.Array], one: dvm.Array,
                  ahead: int) -> dict[str, float]:
        np.asarray(function(one))
        while not dvm.stats()["plans_made"] or self.runtime.graphs_waiting:  # `auto` has begun without a plan
            np.asarray(function(one))
        launches, before, begin = len(inputs), self.runtime.stats(), time.perf_counter_ns()
        for number, x in enumerate(inputs, 1):
            y = function(x)
            if number % ahead == 0 or number == launches:
                np.asarray(y)
        whole = time.perf_counter_ns() - begin
        us = _us(before, self.runtime.stats(), whole, launches)
        if self.runtime.inline:
            us["starved_us"], us["checking_us"] = us["checking_us"], 0.0
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
            us = _middle(samples[name])
            rows.append({"varied": varied, **setting, "mode": name, **us,
                         "idle": (us["exposed_us"] + us["starved_us"]) / us["busy_us"]})
    return rows


def measure_sentences(repeats: int) -> Rows:
    """As many launches ahead as there are, and none."""
    rows: Rows = []
    for ahead in (1, SENTENCES):
        modes = {name: Mode(options, 0) for name, options in MODES.items()}
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in modes}
        for _ in range(repeats):
            for name, mode in modes.items():
                tell(f"sentences, {ahead} ahead: {name}")
                samples[name].append(mode.sentences(SENTENCES, ahead))
        for name, mode in modes.items():
            mode.close()
            us = _middle(samples[name])
            rows.append({"varied": "sentences", **BASE, "ahead": ahead, "mode": name, **us,
                         "idle": (us["exposed_us"] + us["starved_us"]) / us["busy_us"]})
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
            rows.append({"varied": "decode", **BASE, "work_us": work_us, "mode": name, **us, **guessed,
                         "idle": (us["exposed_us"] + us["starved_us"]) / us["busy_us"]})
    return rows


def _decoded(gpt: object, model: object, runtime: dvm.Runtime, repeats: int, ahead: bool) -> tuple[dict[str, float],
        dict[str, int]]:
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
    return _middle(samples[1:]), guessed


def _middle(samples: list[dict[str, float]]) -> dict[str, float]:
    """Medians, and the least time of all, which a slow spell of the machine does not touch."""
    return {**{k: statistics.median(s[k] for s in samples) for k in samples[0]}, "least_us": min(s["whole_us"] for s in samples)}


def _us(before: dict, after: dict, whole_ns: int, launches: int) -> dict[str, float]:
    """Microseconds a launch, between two reports."""
    each = {k: (after[k] - before[k]) / launches / 1e3 for k in ("busy_ns", "exposed_ns", "starved_client_ns", "starved_user_ns")}
    checking = whole_ns / launches / 1e3 - sum(each.values())  # what the device does beside: above all it verifies programs
    return {"whole_us": whole_ns / launches / 1e3, "busy_us": each["busy_ns"], "checking_us": max(0.0, checking),
            "exposed_us": each["exposed_ns"],
            "starved_us": each["starved_client_ns"], "user_us": each["starved_user_ns"]}  # fmt: skip


def report(rows: Rows) -> None:
    tell("")
    for row in rows:
        print(f"{row['varied']:8} work {row['work_us']:6} us  ahead {row['ahead']:4}  rows {row['rows']:5}  {row['mode']:18} whole {row['whole_us']:9.1f}"
              f"  busy {row['busy_us']:8.1f}  checking {row['checking_us']:6.1f}  exposed {row['exposed_us']:9.1f}  starved {row['starved_us']:8.1f}  idle {row['idle']:8.1%}"
              + (f"  guessed {row['guessed']}, right {row['guessed_right']}, wrong {row['guessed_wrong']}" if "guessed" in row else ""))  # fmt: skip
    for auto in [r for r in rows if str(r["mode"]).startswith("auto")]:
        same = [r for r in rows if all(r[k] == auto[k] for k in ("varied", "work_us", "ahead", "rows"))]
        others = [str(auto["mode"]).replace("auto", mode) for mode in ("caller", "workers 1")]
        if not any(r["mode"] in others for r in same):
            continue
        best = min((r for r in same if r["mode"] in others), key=lambda r: r["least_us"])
        ratio, where = auto["least_us"] / best[
            "least_us"], f"work {auto['work_us']} us, {auto['ahead']} ahead, {auto['rows']} rows"
        print(f"auto / better ({best['mode']:18}): {ratio:5.2f}  {auto['varied']}, {where}{'  ABOVE 1.1' if ratio > 1.1 else ''}")


def draw(axes: list, rows: Rows) -> None:
    names = {"work_us": "injected work an encode, us", "ahead": "launches between two values read",
             "rows": "rows of 512 a launch"}
    for axis, (varied, text) in zip(axes, names.items(), strict=False):
        for mode in MODES:
            chosen = [r for r in rows if r["varied"] == varied and r["mode"] == mode]
            axis.plot([str(r[varied]) for r in chosen], [max(100 * r["idle"], 0.01) for r in chosen], marker="o", label=mode)
        axis.set(xlabel=text, ylabel="device idle, % of busy", yscale="log", title=f"idle against {varied}")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    for offset, ahead in zip((-0.2, 0.2), (1, SENTENCES), strict=True):
        chosen = [r for r in rows if r["varied"] == "sentences" and r["ahead"] == ahead]
        axes[4].bar(np.arange(len(chosen)) + offset, [max(100 * r["idle"], 0.01) for r in chosen], 0.38,
                    label=f"{ahead} launches ahead")
    axes[4].set(ylabel="device idle, % of busy", yscale="log", title="sentences of all lengths, MiniLM's size")
    axes[4].set_xticks(range(len(MODES)), list(MODES), fontsize="x-small")
    axes[4].legend(fontsize="small")
    axes[4].grid(alpha=0.3, axis="y")
    for offset, work_us in zip((-0.2, 0.2), DECODE_WORK_US, strict=True):
        chosen = [r for r in rows if r["varied"] == "decode" and r["work_us"] == work_us]
        axes[3].bar(np.arange(len(chosen)) + offset, [max(100 * r["idle"], 0.01) for r in chosen], 0.38,
                    label=f"{work_us} us injected")
    axes[3].set(ylabel="device idle, % of busy", yscale="log", title="GPT decode, programs made ahead or not")
    axes[3].set_xticks(range(len(GUESSES)), [name.replace(", ", "\n") for name in GUESSES], fontsize="x-small")
    axes[3].legend(fontsize="small")
    axes[3].grid(alpha=0.3, axis="y")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--launches", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="work_us,ahead,rows,sentences,decode", help="what is varied")
    given = parser.parse_args()
    only = given.only.split(",")
    rows = measure(given.launches, given.repeats, only)
    if "sentences" in only:
        rows += measure_sentences(given.repeats)
    if "decode" in only:
        rows += measure_decode(given.repeats)
    report(rows)
    write(given.out, "device_idle", rows, draw, 5)


if __name__ == "__main__":
    main()
