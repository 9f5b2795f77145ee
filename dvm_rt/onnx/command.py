"""`dvm-rt run`: a model over one or several shapes, with times, beside onnxruntime if asked.

Sizes come from `--dim`, from the shapes of files given by `--input`, else they are SIZE. Inputs that are not given
are random, the same at each call. The first run of the process plans, once for all sizes: that is a column of its
own."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import dvm_rt as dvm
from dvm_rt.errors import ModelFormatError, UnsupportedOperatorError
from dvm_rt.onnx.conformance import differs
from dvm_rt.onnx.session import Port, Session, load

SIZE = 8  # of a dimension that nobody names
REPEATS = 10
SIZE_MAX = 1 << 31
WIDTH = 120  # columns where the output is no terminal
RTOL, ATOL = 1e-3, 1e-4  # beyond that, results differ from the other engine's
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Timed:
    """A first call, and the quickest of some more, in ms; of ours also what planning took, and the device in a repeated call."""

    results: list
    first: float
    again: float
    plan: float = 0.0
    device: float = 0.0


def run(
    file: Path, inputs: Sequence[str], dims: Sequence[str], profile: bool, trace: Path | None, compare: str | None, encoders: int
) -> bool:
    """Runs and prints; whether the results agree with the other engine's. Raises ModelFormatError where arguments do not fit the
    model."""
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    began = time.perf_counter()
    session = load(file)
    load_ms = (time.perf_counter() - began) * 1e3
    given, sweep = _given(session, inputs), _sweep(session, dims)
    other, rows = _other(compare, file), []
    with dvm.Runtime(encoders=encoders) if encoders else dvm.Runtime(inline=True) as runtime:
        for sizes in sweep:
            feeds, used = _feeds(session, given, sizes)
            ours = _ours(session, feeds)
            theirs = _timed(lambda feeds=feeds: _run_other(compare, other, feeds)) if other else None
            rows.append((used, ours, theirs))
        console.print(f"[bold]{file}[/bold]  loaded in {load_ms:.1f} ms; opset {session.model.opsets.get('', '-')}",
                      highlight=False)
        agree = _print_times(console, compare if other else None, rows)
        console.print()
        for port, value in zip(session.outputs, rows[-1][1].results, strict=True):
            console.print(f"{port.name}: {_described(value)}", highlight=False, soft_wrap=True)
        if profile:
            _print_profile(console, session, rows)
        if trace is not None:
            spans = runtime.trace(str(trace))
            console.print(f"\n{trace}: {spans} spans; dvm-rt trace reads it, and ui.perfetto.dev", highlight=False)
    return agree


# ---- arguments ----------------------------------------------------------------------------------------------------


def _pair(text: str, option: str, wanted: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ModelFormatError(f"run: {option}: got {text!r}, allowed {wanted}")
    return name, value


def _given(session: Session, inputs: Sequence[str]) -> Feeds:
    """The arrays of the files that were named."""
    found: Feeds = {}
    names = [p.name for p in session.inputs]
    for name, path in (_pair(text, "--input", "name=file.npy") for text in inputs):
        if name not in names:
            raise ModelFormatError(
                f"run: --input: the model has no such input, got {name!r}, allowed {', '.join(names) or 'none'}")
        try:
            found[name] = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ModelFormatError(
                f"run: --input: {name}: not an array, got {path} ({error}), allowed files of numpy.save") from None
    return found


def _symbols(session: Session) -> list[str]:
    return list(dict.fromkeys(n for p in session.inputs for n in p.shape or () if isinstance(n, str)))


def _sweep(session: Session, dims: Sequence[str]) -> list[dict[str, int]]:
    """Every combination of the sizes that were given: --dim batch=1,4 --dim seq=16."""
    merged: dict[str, list[int]] = {}
    known = _symbols(session)
    for name, text in (_pair(text, "--dim", "name=4 or name=4,8") for text in dims):
        values = re.split(r"[,:]", text)
        if name not in known:
            raise ModelFormatError(
                f"run: --dim: the model has no such dimension, got {name!r}, allowed {', '.join(known) or 'none'}")
        if not all(v.isdecimal() and int(v) <= SIZE_MAX for v in values):
            raise ModelFormatError(f"run: --dim: got {name}={text}, allowed whole numbers up to 2^31")
        merged.setdefault(name, []).extend(int(v) for v in values)
    return [dict(zip(merged, combination, strict=True)) for combination in itertools.product(*merged.values())]


def _feeds(session: Session, given: Feeds, sizes: Mapping[str, int]) -> tuple[Feeds, dict[str, int]]:
    """The inputs for these sizes, and the sizes that symbolic dimensions have in them."""
    used = dict.fromkeys(_symbols(session), SIZE) | dict(sizes)
    for port in session.inputs:
        if port.name in given and port.shape is not None and len(port.shape) == given[port.name].ndim:
            for name, size in zip(port.shape, given[port.name].shape, strict=True):
                if isinstance(name, str):
                    if sizes.get(name, size) != size:
                        raise ModelFormatError(
                            f"run: --dim: {name}, got {sizes[name]}, allowed {size}, as --input {port.name} has it")
                    used[name] = size
    feeds = {p.name: given[p.name] if p.name in given else _random(p, used) for p in session.inputs}
    return feeds, used


def _random(port: Port, sizes: Mapping[str, int]) -> np.ndarray:
    if port.dtype is None or port.shape is None or port.dtype == object:
        raise ModelFormatError(
            f"run: input {port.name}: got no declared shape and dtype for a random one, allowed --input {port.name}=file.npy")
    shape = tuple(n if isinstance(n, int) else sizes[n] if n else SIZE for n in port.shape)
    random = np.random.default_rng(0)
    if port.dtype.kind == "b":
        return random.random(shape) < 0.5
    if port.dtype.kind in "iu":
        return random.integers(0, 2, shape).astype(port.dtype)
    return random.normal(size=shape).astype(port.dtype)


# ---- runs ---------------------------------------------------------------------------------------------------------


def _timed(call: Callable[[], list]) -> Timed:
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        results = call()
        times.append((time.perf_counter() - began) * 1e3)
    return Timed(results, times[0], min(times[1:]))


def _ours(session: Session, feeds: Feeds) -> Timed:
    before = dvm.stats()
    began = time.perf_counter()
    session.run(feeds)
    first = (time.perf_counter() - began) * 1e3
    plan, devices = (dvm.stats().get("plan_ns", 0) - before.get("plan_ns", 0)) / 1e6, []

    def repeated() -> list:
        busy = dvm.stats().get("busy_ns", 0)
        results = session.run(feeds)
        devices.append((dvm.stats().get("busy_ns", 0) - busy) / 1e6)
        return results

    repeated()
    again = _timed(lambda: session.run(feeds)).again
    return Timed([repeated() for _ in range(REPEATS)][-1], max(first - plan, 0.0), again, plan, min(devices))


def _other(compare: str | None, file: Path) -> object:
    if compare is None:
        return None
    if compare != "onnxruntime":
        raise UnsupportedOperatorError(f"run: --compare: got {compare!r}, allowed onnxruntime")
    try:
        import onnxruntime
    except ImportError:
        raise UnsupportedOperatorError(
            "run: --compare: onnxruntime, got none that is installed, allowed environments with it") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a tree of exceptions of its own
        raise UnsupportedOperatorError(f"run: --compare: onnxruntime does not load {file}: {_line(error)}") from error


def _run_other(name: str | None, other: object, feeds: Feeds) -> list:
    try:
        return other.run(None, feeds)
    except Exception as error:
        raise UnsupportedOperatorError(f"run: --compare: {name} does not run the model: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# ---- what is printed ----------------------------------------------------------------------------------------------


def _table(title: str, *columns: str) -> Table:
    """Columns of numbers; the first one, and those that end in a blank, are text."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="")
    for number, column in enumerate(columns):
        table.add_column(column.rstrip(), justify="left" if number == 0 or column.endswith(" ") else "right")
    return table


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{k}={v}" for k, v in sizes.items()) or "-"


def _print_times(console: Console, compare: str | None, rows: Sequence[tuple[dict[str, int], Timed, Timed | None]]) -> bool:
    more = (f"{compare} first", "again", "ratio", "largest difference") if compare else ()
    table, agree = _table("times in ms", "sizes", "plan", "first", "again", *more), True
    for sizes, ours, theirs in rows:
        cells = [_sizes(sizes), f"{ours.plan:.1f}" if ours.plan else "-", f"{ours.first:.3f}", f"{ours.again:.3f}"]
        if theirs:
            same, text = _difference(theirs.results, ours.results)
            agree &= same
            colour = "green" if same else "red"
            cells += [f"{theirs.first:.3f}", f"{theirs.again:.3f}", f"{theirs.again / ours.again:.2f}",
                      f"[{colour}]{text}[/{colour}]"]
        table.add_row(*cells)
    console.print(table)
    return agree


def _difference(wanted: Sequence[object], got: Sequence[object]) -> tuple[bool, str]:
    worst = 0.0
    for w, g in zip(wanted, got, strict=True):
        if wrong := differs(w, g, RTOL, ATOL):
            return False, wrong
        if isinstance(w, np.ndarray) and w.dtype.kind == "f" and w.size:
            with np.errstate(invalid="ignore"):
                worst = max(worst, float(np.nanmax(np.abs(w.astype(np.float64) - g.astype(np.float64)), initial=0.0)))
    return True, f"{worst:.2e}"


def _described(value: object) -> str:
    if isinstance(value, list):
        return f"sequence of {len(value)}"
    if value is None:
        return "nothing"
    head = np.array2string(np.asarray(value).ravel()[:6], precision=4, separator=", ", max_line_width=WIDTH)
    return f"{value.dtype}{list(value.shape)} {head}".replace("[", "\\[")


def _print_profile(console: Console, session: Session, rows: Sequence[tuple[dict[str, int], Timed, Timed | None]]) -> None:
    console.print()
    nodes = _table("where the nodes ran", "where", "nodes", "operators ")
    for where, count in session.counts().items():
        if count:
            nodes.add_row(where, str(count), ", ".join(sorted({row.operator for row in session.explain() if where in row.where})))
    console.print(nodes)
    console.print()
    times = _table("a repeated call, in ms", "sizes", "all", "device", "share")
    for sizes, ours, _ in rows:
        times.add_row(_sizes(sizes), f"{ours.again:.3f}", f"{ours.device:.3f}", f"{min(ours.device / ours.again, 1.0):.0%}")
    console.print(times)
    console.print()
    counters = _table("counters", "name", "value")
    for name, value in dvm.stats().items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value:
            counters.add_row(name, f"{value:,}")
    console.print(counters)
