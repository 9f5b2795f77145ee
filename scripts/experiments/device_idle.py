#!/usr/bin/env python3
"""How long the device waits, against who encodes, how many encoders there are, how dear an encode is, how far ahead the client
runs, how large launches are, and whether programs are made ahead.

    python scripts/experiments/device_idle.py [--out results] [--launches 120] [--only work_us,ahead,rows,decode,sentences]

Every launch has a shape never seen, so each needs an encode; `work` (CPU time) is injected into each of them. Idle is the
device's time without work while work exists (exposed: the program is missing; starved: the launch is missing while our code
runs), the user's own Python apart, and apart from the time in which it verifies programs (checking); inline it is the
client's time outside of kernels. `ahead`: launches between two values that the client reads. `sentences` are a stream of
sentences of all-different lengths through an encoder of MiniLM's size. `decode` is a GPT (d = 256, 4 layers) that
decodes with a growing cache, work injected too: every token is a shape never seen, and its value is read before the
next is launched; `guess 4` and `guess 0`: programs of up to so many calls ahead are made while the client waits;
`launch first`: the next step is launched before the token that it reads is looked at.

The modes of a row take turns in one set-up, each turn beginning with another mode, and short streams have more turns: a machine
that is slow for a while, is slow for all. Figures are medians over the turns; `spread` is the distance between the quartiles of
the whole time, against its median. `auto / better`: in each turn the time of `auto` against that of `caller`, and of `workers`;
of both the quartiles over the turns, and shown are those of the mode with the larger median, which is the better one. `auto` is
above 1.1 where its lower quartile is; where only the median is, the run cannot tell."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

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
DECODE_WORK_US, TOKENS, SENTENCES = (0, 500), 60, 20
LEAST_TURNS, MOST_TURNS = 5, 40
WORK_US = (0, 100, 500, 2000, 10_000)
AHEAD = (1, 8, 64, 512)
ROWS = (4, 64, 1000)  # of 512 columns: about 2, 30 and 500 us of kernel
LINES = {"work_us": "injected work an encode, us", "ahead": "launches between two values read",
         "rows": "rows of 512 a launch"}  # fmt: skip
VARIED = (*LINES, "decode", "sentences")
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


def sizes_from(first: int) -> Callable[[int], list[int]]:
    """So many sizes at a time that never came, near each other, and in an order that nobody guesses."""
    turns = count()

    def sizes(number: int) -> list[int]:
        turn = next(turns)
        return [first + turn * number + i for i in np.random.default_rng(turn).permutation(number).tolist()]

    return sizes


class Mode:
    """One runtime, and one stream of launches after another in it; no shape comes twice."""

    def __init__(self, options: dict[str, object], work_us: int) -> None:
        self.runtime = dvm.Runtime(threads=1, encode_work_ns=1000 * work_us, **options)  # type: ignore[arg-type]
        if self.runtime.inline:
            self.runtime.stream.set_encode_work_ns(1000 * work_us)
        self._columns, self._lengths, self._context = sizes_from(500), sizes_from(2), copy_context()
        self._context.run(self.runtime.__enter__)  # the current one, but only in there
        self._sentence = None

    def stream(self, launches: int, ahead: int, rows: int) -> dict[str, float]:
        """Microseconds a launch."""
        return self._context.run(self._chains, launches, ahead, rows)

    def sentences(self, launches: int, ahead: int) -> dict[str, float]:
        """The same for sentences."""
        return self._context.run(self._encoded, launches, ahead)

    def _chains(self, launches: int, ahead: int, rows: int) -> dict[str, float]:
        inputs = [dvm.asarray(np.ones((rows, n), np.float32)) for n in self._columns(launches)]
        return self._measured(lambda x: chain(x, x), inputs, dvm.asarray(np.ones((2, 3), np.float32)), ahead)

    def _encoded(self, launches: int, ahead: int) -> dict[str, float]:
        if self._sentence is None:
            case, rng, space = next(c for c in cases.CASES if c.name.startswith("MiniLM")), np.random.default_rng(0), spaces.Dvm()
            encoder, weights = dvm.function(lambda *arrays: case.function(space, *arrays)), [dvm.asarray(w)
                for w in case.weights(rng)]
            self._sentence = lambda x: encoder(x, *weights)
        inputs = [dvm.asarray(np.ones((1, n, 384), np.float32)) for n in self._lengths(launches)]
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


Samples = dict[str, list[dict[str, float]]]


def in_turns(what: str, modes: dict[str, Callable[[], dict[str, float]]], seconds: float) -> Samples:
    """Samples of all modes, for about so long; at least LEAST_TURNS, of which the first does not count."""
    names, samples = list(modes), {name: [] for name in modes}
    began, turn = time.perf_counter(), 0
    while turn <= LEAST_TURNS or (time.perf_counter() - began < seconds and turn <= MOST_TURNS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            tell(f"{what}, turn {turn}: {name}")
            samples[name].append(modes[name]())
        turn += 1
    return {name: taken[1:] for name, taken in samples.items()}


def rows_of(samples: Samples, setting: dict[str, object], more: dict[str, dict[str, object]] | None = None) -> Rows:
    """A row for each mode."""
    rows: Rows = []
    for name, taken in samples.items():
        us = {k: statistics.median(s[k] for s in taken) for k in taken[0]}
        low, _, high = statistics.quantiles([s["whole_us"] for s in taken], n=4)
        row = {**setting, "mode": name, **us, "turns": len(taken), "spread": (high - low) / us["whole_us"],
               "idle": (us["exposed_us"] + us["starved_us"]) / us["busy_us"], **(more or {}).get(name, {})}
        if name.startswith("auto"):
            row |= against_better(name, samples)
        rows.append(row)
    return rows


def against_better(auto: str, samples: Samples) -> dict[str, object]:
    """The quartiles of its time against that of the better of the other two, turn by turn."""
    quartiles = {}
    for mode in ("caller", "workers 1"):
        if other := samples.get(auto.replace("auto", mode)):
            ratios = [a["whole_us"] / o["whole_us"] for a, o in zip(samples[auto], other, strict=True)]
            quartiles[mode] = statistics.quantiles(ratios, n=4)
    if not quartiles:
        return {}
    better = max(quartiles, key=lambda mode: quartiles[mode][1])
    return {"better": better, "against_better": quartiles[better]}


def measure(launches: int, seconds: float, only: list[str]) -> Rows:
    rows: Rows = []
    for varied, setting in settings():
        if varied not in only:
            continue
        work_us, ahead, size = setting["work_us"], setting["ahead"], setting["rows"]
        modes = {name: Mode(options, work_us) for name, options in MODES.items()}
        number = max(12, min(launches, int(0.2e6 / (work_us + 1)) if work_us else launches))
        samples = in_turns(f"{varied} {setting[varied]}",
                           {name: partial(mode.stream, number, ahead, size) for name, mode in modes.items()}, seconds)
        for mode in modes.values():
            mode.close()
        rows += rows_of(samples, {"varied": varied, **setting})
    return rows


def measure_sentences(seconds: float) -> Rows:
    """As many launches ahead as there are, and none."""
    rows: Rows = []
    for ahead in (1, SENTENCES):
        modes = {name: Mode(options, 0) for name, options in MODES.items()}
        samples = in_turns(f"sentences, {ahead} ahead", {name: partial(mode.sentences, SENTENCES, ahead)
                                                         for name, mode in modes.items()}, seconds)
        for mode in modes.values():
            mode.close()
        rows += rows_of(samples, {"varied": "sentences", **BASE, "ahead": ahead})
    return rows


class Decoding:
    """One runtime in which a GPT decodes one long sequence."""

    def __init__(self, gpt: object, weights: object, options: dict[str, object], work_us: int, depth: int, ahead: bool) -> None:
        os.environ["DVM_RT_AHEAD_DEPTH"] = str(depth)
        self.runtime = dvm.Runtime(threads=1, encode_work_ns=1000 * work_us, **options)  # type: ignore[arg-type]
        del os.environ["DVM_RT_AHEAD_DEPTH"]
        self._ahead, self._context = ahead, copy_context()
        self._context.run(self._start, gpt, weights)

    def _start(self, gpt: object, weights: object) -> None:
        self.runtime.__enter__()
        self._model = gpt.Gpt(weights)
        logits, *self._caches = self._model.start(dvm.asarray(np.array([[1, 2, 3]], np.int32)))
        self._ids = gpt.likeliest(logits)

    def tokens(self) -> dict[str, float]:
        """Microseconds a token, of the next TOKENS."""
        return self._context.run(self._tokens)

    def _tokens(self) -> dict[str, float]:
        ids, *caches = self._model.step(dvm.asarray(np.array([[int(self._ids)]], np.int32)), *self._caches)
        int(ids)  # since its last turn it has been idle for nobody
        before, begin = self.runtime.stats(), time.perf_counter_ns()
        for _ in range(TOKENS):
            if self._ahead:
                last, (ids, *caches) = ids, self._model.step(ids, *caches)
                int(last)
            else:
                ids, *caches = self._model.step(dvm.asarray(np.array([[int(ids)]], np.int32)), *caches)
        int(ids)
        self._ids, self._caches = ids, caches
        return _us(before, self.runtime.stats(), time.perf_counter_ns() - begin, TOKENS)

    def close(self) -> dict[str, object]:
        last = self.runtime.stats()
        del self._ids, self._caches, self._model
        self._context.run(self.runtime.__exit__)
        return {name: last[name] for name in ("guessed", "guessed_right", "guessed_wrong")}


def measure_decode(seconds: float) -> Rows:
    """GPT decoding, programs made ahead or not."""
    from dynamic import gpt

    rows: Rows = []
    weights = gpt.random_weights(np.random.default_rng(0), 256, 4, 1000, (MOST_TURNS + 2) * (TOKENS + 1) + 16)
    for work_us in DECODE_WORK_US:
        modes = {name: Decoding(gpt, weights, MODES[mode], work_us, depth, "launch first" in name)
                 for name, (mode, depth) in GUESSES.items()}
        samples = in_turns(f"decode, work {work_us} us", {name: mode.tokens for name, mode in modes.items()}, seconds)
        guessed = {name: mode.close() for name, mode in modes.items()}
        rows += rows_of(samples, {"varied": "decode", **BASE, "work_us": work_us}, guessed)
    return rows


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
        print(f"{row['varied']:8} work {row['work_us']:6} us  ahead {row['ahead']:4}  rows {row['rows']:5}  {row['mode']:18}"
              f" whole {row['whole_us']:9.1f} +- {row['spread']:4.0%}  busy {row['busy_us']:8.1f}"
              f"  checking {row['checking_us']:6.1f}  exposed {row['exposed_us']:9.1f}  starved {row['starved_us']:8.1f}"
              f"  idle {row['idle']:8.1%}" + guessed_text(row))  # fmt: skip
    for row in [r for r in rows if "better" in r]:
        low, middle, high = row["against_better"]
        verdict = "  ABOVE 1.1" if low > 1.1 else "  cannot tell" if middle > 1.1 else ""
        print(f"auto / better ({row['better']:9}): {middle:5.2f} ({low:.2f} to {high:.2f}, {row['turns']} turns)  "
              f"{row['varied']}, {row['mode']}, work {row['work_us']} us, {row['ahead']} ahead, {row['rows']} rows{verdict}")


def guessed_text(row: dict) -> str:
    if "guessed" not in row:
        return ""
    return f"  guessed {row['guessed']}, right {row['guessed_right']}, wrong {row['guessed_wrong']}"


def drawn(rows: Rows) -> list[str]:
    return [varied for varied in VARIED if any(r["varied"] == varied for r in rows)]


def draw(axes: list, rows: Rows) -> None:
    """A panel for each thing that was varied."""
    for axis, varied in zip(axes, drawn(rows), strict=True):
        chosen = [r for r in rows if r["varied"] == varied]
        if varied in LINES:
            _draw_lines(axis, varied, chosen)
        elif varied == "decode":
            labels = {work_us: f"{work_us} us injected" for work_us in DECODE_WORK_US}
            _draw_bars(axis, chosen, "work_us", labels, "GPT decode, programs made ahead or not")
        else:
            labels = {ahead: f"{ahead} launches ahead" for ahead in (1, SENTENCES)}
            _draw_bars(axis, chosen, "ahead", labels, "sentences of all lengths, MiniLM's size")
        axis.set(ylabel="device idle, % of busy", yscale="log")
        axis.legend(fontsize="small")


def _draw_lines(axis: Any, varied: str, rows: Rows) -> None:
    for mode in MODES:
        chosen = [r for r in rows if r["mode"] == mode]
        axis.plot([str(r[varied]) for r in chosen], [_percent(r) for r in chosen], marker="o", label=mode)
    axis.set(xlabel=LINES[varied], title=f"idle against {varied}")
    axis.grid(alpha=0.3)


def _draw_bars(axis: Any, rows: Rows, by: str, labels: dict[int, str], title: str) -> None:
    """A group for each mode, a bar in each for each value of `by`."""
    for offset, (value, label) in zip((-0.2, 0.2), labels.items(), strict=True):
        chosen = [r for r in rows if r[by] == value]
        axis.bar(np.arange(len(chosen)) + offset, [_percent(r) for r in chosen], 0.38, label=label)
    modes = list(dict.fromkeys(str(r["mode"]) for r in rows))
    axis.set_xticks(range(len(modes)), [mode.replace(", ", "\n") for mode in modes], fontsize="x-small")
    axis.set(title=title)
    axis.grid(alpha=0.3, axis="y")


def _percent(row: dict) -> float:
    return max(100 * row["idle"], 0.01)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--launches", type=int, default=120, help="of a turn of one mode")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each row")
    parser.add_argument("--only", default=",".join(VARIED), help="what is varied")
    given = parser.parse_args()
    only = given.only.split(",")
    if unknown := set(only) - set(VARIED):
        parser.error(f"--only: unknown, got {', '.join(sorted(unknown))}, allowed {', '.join(VARIED)}")
    rows = measure(given.launches, given.seconds, only)
    if "sentences" in only:
        rows += measure_sentences(given.seconds)
    if "decode" in only:
        rows += measure_decode(given.seconds)
    report(rows)
    write(given.out, "device_idle", rows, draw, len(drawn(rows)))


if __name__ == "__main__":
    main()
