"""Every limit and every DVM_RT_* environment variable: one row each.

Owns the defaults, their units, their allowed ranges and how the environment overrides them. Rules: a row is read with
`integer`, `number` or `text`, which check the type that the row was declared with; an override that does not parse or lies
outside the range is an error when it is first read, never silently the default. Limits that belong to a binary format
are not here: they lie in `isa/layout.py`. Does not know who uses a row."""

from __future__ import annotations

import os
from typing import Any, NamedTuple, TypeVar

from dvm_rt.errors import DvmError

Value = int | float | str
Number = TypeVar("Number", int, float)


class Setting(NamedTuple):
    """One row. `allowed` is (least, most) for numbers and the list of words for text (empty: any)."""

    name: str
    default: Value
    unit: str
    meaning: str
    allowed: tuple[Value, ...] = ()

    @property
    def variable(self) -> str:
        return "DVM_RT_" + self.name.upper()


SETTINGS: tuple[Setting, ...] = (
    # ---- who encodes ----
    Setting("encode", "auto", "", "who encodes instances of known plans", ("auto", "workers", "caller")),
    Setting("hop_us", 150.0, "us", "modelled cost of waking a worker and the device for one instance", (0.0, 1e6)),
    Setting("ship_us", 0.8, "us", "modelled cost of one instance in a batch on its way to a worker", (0.0, 1e6)),
    Setting("run_ahead_min", 128, "launches", "depth from which on nobody waits for the next program", (1, 1 << 20)),
    Setting("batch_max", 1024, "instances", "in one message to a worker; batches grow up to it", (1, 4096)),
    Setting("worker_credits", 16384, "instances", "shipped to one worker and not yet encoded", (1, 1 << 16)),
    Setting("plans_recheck", 256, "plans", "more at workers: those that the client gave up are given up there too", (1, 1 << 20)),
    Setting("graph_credits", 64, "graphs", "waiting or being planned; the next request is refused", (1, 1 << 16)),
    # ---- running ahead ----
    Setting("ahead_depth", 4, "calls", "ahead of the last one whose programs are made while the caller waits; 0: none", (0, 64)),
    Setting("ahead_branches", 4, "plans", "that may come next and are prepared", (1, 8)),
    Setting("ahead_max", 64, "programs", "that were guessed and not called yet; beyond that the oldest are dropped",
            (1, 1 << 16)),
    # ---- patience ----
    Setting("lease_s", 0.25, "s", "without a commit until whoever owes one is replaced", (0.05, 3600.0)),
    Setting("remote_lease_s", 5.0, "s", "the same for a remote worker, whose kernel cannot be asked", (0.05, 3600.0)),
    Setting("device_lease_s", 60.0, "s", "the same for a device that the kernel says is computing", (0.05, 86400.0)),
    Setting("graph_lease_s", 30.0, "s", "for a worker to plan one graph", (0.05, 86400.0)),
    Setting("starved_leases", 8, "leases", "granted to a worker that the kernel does not let run", (1, 1000)),
    Setting("loop_s", 30.0, "s", "that loops of one launch may take; then it ends with DeviceTimeoutError", (0.001, 86400.0)),
    Setting("wait_s", 60.0, "s", "default limit of every public call that waits", (0.001, 86400.0)),
    Setting("requests_max", 64, "requests", "of Runtime.run that run at once; further ones wait in line", (1, 1 << 16)),
    Setting("requests_waiting_max", 1024, "requests", "in that line; the next one is refused", (0, 1 << 20)),
    Setting("tick_s", 0.01, "s", "between two looks of the supervisor; late batches leave then", (0.001, 1.0)),
    Setting("close_s", 0.9, "s", "close() gives up on a process after this", (0.1, 60.0)),
    Setting("start_s", 10.0, "s", "for the zygote to get past its imports", (0.1, 60.0)),
    Setting("scheduler_after_s", 0.5, "s", "after a start the scheduler is there, if nobody needs it before", (0.0, 60.0)),
    Setting("fork_s", 2.0, "s", "for the zygote to fork a child; then it counts as dead", (0.1, 60.0)),
    # ---- restarts ----
    Setting("solo_deaths_max", 2, "deaths", "of workers that held a request alone: it is poison", (1, 100)),
    Setting("graph_deaths_max", 5, "deaths", "of workers that were planning a graph: it is given up", (1, 100)),
    Setting("refusals_max", 3, "programs", "of one local worker that the verifier refuses: it is replaced", (1, 1 << 16)),
    Setting("deaths_max", 5, "deaths", "of one process in a row without progress: the pool is unhealthy", (1, 1000)),
    Setting("restarts_max", 1000, "restarts", "of all processes within restart_window_s", (1, 1 << 16)),
    Setting("restart_window_s", 10.0, "s", "over which restarts are counted", (0.1, 3600.0)),
    # ---- memory ----
    Setting("arena_bytes_max", 8 << 30, "bytes", "of tensors, packed weights included", (1 << 16, 1 << 46)),
    Setting("plan_cache_bytes_max", 256 << 20, "bytes", "of the files in a folder of plans", (0, 1 << 40)),
    Setting("ring_bytes", 4 << 20, "bytes", "of the caller's ring to the device, and of each worker's", (1 << 16, 1 << 30)),
    Setting("worker_budget_us", 50, "us", "that a worker encodes before the programs so far leave", (1, 1_000_000)),
    Setting("worker_nice", 10, "", "added to the niceness of encoder workers", (0, 19)),
    # ---- kernels ----
    Setting("threads", 0, "threads",
            "that run kernels; 0: one inline, with processes the CPUs that caller and encoders leave", (0, 64)),
    Setting("tune", 1, "",
            "1: programs that run often try other stores and prefetch distances, and keep what is faster; 0: never", (0, 1)),
    Setting("target", "", "", "instruction set of the kernels; the best that is here if nothing is said",
            ("", "baseline", "avx2", "avx512")),
    # ---- spinning ----
    Setting("spin_us", 200, "us", "that a caller spins before it sleeps; 0 on one CPU", (0, 1_000_000)),
    Setting("device_spin_us", 200, "us", "that the device spins before it sleeps; 0 on one CPU", (0, 1_000_000)),
    # ---- messages ----
    Setting("message_bytes_max", 16 << 20, "bytes", "in one message", (1 << 12, 1 << 30)),
    Setting("control_bytes_max", 64 << 10, "bytes", "of the fields of one message", (256, 1 << 20)),
    Setting("tree_bytes_max", 1 << 20, "bytes", "of one graph on its way to a worker", (256, 1 << 26)),
    Setting("remote_workers_max", 64, "workers", "connected to one listening runtime", (1, 4096)),
    Setting("recheck_every", 64, "programs", "of a remote worker: one of so many is encoded again and compared", (1, 1 << 20)),
    Setting("drain_s", 30.0, "s", "for a pool that drains to answer what it holds; then it is stopped", (0.1, 86400.0)),
    Setting("connect_s", 30.0, "s", "that a pool waits for its scheduler", (0.1, 86400.0)),
    # ---- arrays ----
    Setting("pending_max", 512, "operators", "that lazy arrays wait for before they are computed unasked", (1, 1 << 16)),
    Setting("calls_max", 4096, "calls", "of stacked functions that wait for each other before they are run unasked",
            (1, 1 << 20)),
    Setting("plans_max", 1024, "plans", "of lazy graphs that a runtime remembers", (1, 1 << 20)),
    # ---- planning ----
    Setting("plan_patience_us", 1000.0, "us",
            "an operator, that a graph runs without a plan until its caller makes it", (0.0, 1e9)),
    Setting("quick_bytes_max", 32 << 20, "bytes",
            "that an unseen graph may write operator by operator; a larger one is planned first", (0, 1 << 40)),
    # ---- seeing inside ----
    Setting("log_flushes", 0, "",
            "1: each time that lazy arrays are computed, a line on standard error says why, and where the code is",
            (0, 1)),
    Setting("story_length", 4096, "entries", "that the scheduler remembers for story()", (16, 1 << 20)),
    Setting("session_root", "", "", "folder of the session folders (default: XDG_RUNTIME_DIR, else a private one in /tmp)"),
    # ---- examples ----
    Setting("cache", "", "", "folder for what the examples download (default: XDG_CACHE_HOME/dvm_rt, else ~/.cache/dvm_rt)"),
)  # fmt: skip
_BY_NAME: dict[str, Setting] = {s.name: s for s in SETTINGS}


def default(name: str) -> Any:  # a Value
    """What the row says where the environment says nothing."""
    return _BY_NAME[name].default


def integer(name: str) -> int:
    return _read(name, int)


def number(name: str) -> float:
    return _read(name, float)


def text(name: str) -> str:
    return str(check(name, os.environ.get(_BY_NAME[name].variable, _BY_NAME[name].default)))


def _read(name: str, kind: type[Number]) -> Number:
    row = _BY_NAME[name]
    if type(row.default) is not kind:
        raise TypeError(f"config: {name}: read as {kind.__name__}, declared as {type(row.default).__name__}")
    written = os.environ.get(row.variable)
    if written is None:
        return row.default  # type: ignore[return-value]
    try:
        return check(name, kind(written))  # type: ignore[return-value]
    except ValueError:
        raise DvmError(f"config: {row.variable}: not a number, got {written!r}, allowed {_range(row)}") from None


def check(name: str, value: Value, who: str = "config") -> Value:
    """`value` if it lies in the row's range, else DvmError. Also for values that come as arguments."""
    row = _BY_NAME[name]
    if isinstance(row.default, str):
        good = isinstance(value, str) and (not row.allowed or value in row.allowed)
    else:
        good = type(value) in (int, float) and row.allowed[0] <= value <= row.allowed[1]  # type: ignore[operator]
        good = good and (isinstance(row.default, float) or type(value) is int)
    if not good:
        where = row.variable if who == "config" else name
        raise DvmError(f"{who}: {where}: out of range, got {value!r}, allowed {_range(row)}")
    return value


def _range(row: Setting) -> str:
    if isinstance(row.default, str):
        return ", ".join([str(word) or "nothing" for word in row.allowed]) or "any text"
    return f"{row.allowed[0]} to {row.allowed[1]} {row.unit}".rstrip()
