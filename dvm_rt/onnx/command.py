"""`dvm-rt run`: a model over one or several shapes, with times, beside onnxruntime if asked."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import dvm_rt as dvm
from dvm_rt.errors import ModelFormatError, UnsupportedOperatorError
from dvm_rt.onnx.conformance import differs
from dvm_rt.onnx.session import Port, Session, load

SIZE = 8  # of a dimension that nobody names
REPEATS = 5


def run(
    file: Path, inputs: Sequence[str], dims: Sequence[str], profile: bool, trace: Path | None, compare: str | None, encoders: int
) -> None:
    """Runs and prints. Raises ModelFormatError where arguments do not fit the model."""
    console, given = Console(), dict(_pair(text, "--input", "name=file.npy") for text in inputs)
    began = time.perf_counter()
    session = load(file)
    load_ms = (time.perf_counter() - began) * 1e3
    other = _other(compare, file)
    table = Table(title=f"{file}: loaded in {load_ms:.1f} ms", title_justify="left")
    for column in ("sizes", "first ms", "again ms", *((f"{compare} first", f"{compare} again", "largest difference") if other else ())):
        table.add_column(column, justify="left" if column == "sizes" else "right")
    with dvm.Runtime(inline=not encoders, encoders=encoders) if encoders else dvm.Runtime(inline=True) as runtime:
        for sizes in _sweep(dims):
            feeds = {p.name: _feed(p, given, sizes) for p in session.inputs}
            results, first, again = _timed(lambda feeds=feeds: session.run(feeds))
            columns = [", ".join(f"{k}={v}" for k, v in sizes.items()) or "-", f"{first:.3f}", f"{again:.3f}"]
            if other:
                wanted, first, again = _timed(lambda feeds=feeds: other.run(None, feeds))
                columns += [f"{first:.3f}", f"{again:.3f}", _difference(wanted, results)]
            table.add_row(*columns)
        console.print(table)
        for port, value in zip(session.outputs, results, strict=True):
            console.print(f"{port.name}: {_described(value)}", highlight=False)
        if profile:
            _print_profile(console, session)
        if trace is not None:
            runtime.trace(str(trace))


def _pair(text: str, option: str, wanted: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ModelFormatError(f"run: {option}: got {text!r}, allowed {wanted}")
    return name, value


def _sweep(dims: Sequence[str]) -> Iterator[dict[str, int]]:
    """Every combination of the sizes that were given: --dim batch=1,4 --dim seq=16."""
    choices = [(name, re.split(r"[,:]", values)) for name, values in (_pair(text, "--dim", "name=4 or name=4,8") for text in dims)]
    merged: dict[str, list[int]] = {}
    for name, values in choices:
        if not all(v.isdigit() for v in values):
            raise ModelFormatError(f"run: --dim: got {name}={','.join(values)}, allowed whole numbers")
        merged.setdefault(name, []).extend(int(v) for v in values)
    for combination in itertools.product(*merged.values()):
        yield dict(zip(merged, combination, strict=True))


def _feed(port: Port, given: dict[str, str], sizes: dict[str, int]) -> np.ndarray:
    if port.name in given:
        return np.load(given[port.name], allow_pickle=False)
    if port.dtype is None or port.shape is None or port.dtype == object:
        raise ModelFormatError(f"run: input {port.name}: nothing is declared to make a random one from, allowed --input {port.name}=file.npy")
    shape = tuple(n if isinstance(n, int) else sizes.get(n, SIZE) if n else SIZE for n in port.shape)
    random = np.random.default_rng(0)
    if port.dtype.kind == "b":
        return random.random(shape) < 0.5
    if port.dtype.kind in "iu":
        return random.integers(0, 2, shape).astype(port.dtype)
    return random.normal(size=shape).astype(port.dtype)


def _timed(call: object) -> tuple[list, float, float]:
    """(results, ms of the first call, ms of the quickest of some more)."""
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        results = call()
        times.append((time.perf_counter() - began) * 1e3)
    return results, times[0], min(times[1:])


def _other(compare: str | None, file: Path) -> object:
    if compare is None:
        return None
    if compare != "onnxruntime":
        raise UnsupportedOperatorError(f"run: --compare: got {compare!r}, allowed onnxruntime")
    try:
        import onnxruntime
    except ImportError:
        raise UnsupportedOperatorError("run: --compare: onnxruntime is not installed, allowed environments with it") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _difference(wanted: Sequence[object], got: Sequence[object]) -> str:
    worst = 0.0
    for w, g in zip(wanted, got, strict=True):
        if not isinstance(w, np.ndarray) or w.dtype.kind not in "fiu" or w.shape != g.shape:
            return differs(w, g, 1e-3, 1e-5) or "0"
        if w.size:
            worst = max(worst, float(np.max(np.abs(w.astype(np.float64) - g.astype(np.float64)))))
    return f"{worst:.2e}"


def _described(value: object) -> str:
    if isinstance(value, list):
        return f"sequence of {len(value)}"
    if value is None:
        return "nothing"
    head = np.array2string(np.asarray(value).ravel()[:6], precision=4, separator=", ")
    return f"{value.dtype}{list(value.shape)} {head}"


def _print_profile(console: Console, session: Session) -> None:
    table = Table(title="where the nodes ran", title_justify="left")
    for column in ("where", "nodes", "operators"):
        table.add_column(column, justify="right" if column == "nodes" else "left")
    for where, count in session.counts().items():
        if count:
            names = sorted({row.operator for row in session.explain() if where in row.where})
            table.add_row(where, str(count), ", ".join(names))
    console.print(table)
    stats = dvm.stats()
    console.print({k: v for k, v in stats.items() if isinstance(v, (int, float)) and v}, highlight=False)
