"""Traces: what every process did when, written as Chrome / Perfetto JSON, and read back for a summary.

Each process overwrites its own ring of TraceRecords (`isa/layout.py`), always; here they become spans on one track each
(client, device, encoders), all on the one monotonic clock. Arrows lead from the encode of an operator instance to the first
launch of its program, and from a call to its last launch. What the scheduler noted about processes is a track of instants.
Open the file at ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dvm_rt.errors import ModelFormatError
from dvm_rt.isa import layout

PID = 1
CLIENT, DEVICE, BESIDE, SCHEDULER = 0, 1, 98, 99  # tracks; encoder i is 2 + i; BESIDE: the device's second thread


@dataclass(frozen=True, slots=True)
class Span:
    """One record of one process. What `id` and `extra` name depends on the kind."""

    track: int
    kind: str
    begin_ns: int
    end_ns: int
    id: int
    extra: int


def track_name(track: int) -> str:
    return {CLIENT: "client", DEVICE: "device", BESIDE: "device, beside", SCHEDULER: "scheduler"}.get(track,
        f"encoder {track - 2}")


def spans(track: int, records: bytes) -> Iterator[Span]:
    """The records of one process, as `Stream.trace_records` gives them."""
    import numpy as np

    kinds = layout.ENUMS["TraceKind"]
    for row in np.frombuffer(records, layout.RECORD["TraceRecord"].numpy).tolist():
        begin_ns, end_ns, number, kind, extra = row
        if 0 < kind < len(kinds):
            beside = track == DEVICE and kinds[kind] == "LOAD" and extra >> 31
            yield Span(BESIDE if beside else track, kinds[kind], begin_ns, end_ns, number, extra & 0x7FFFFFFF
                       if beside else extra)


# ---- writing --------------------------------------------------------------------------------------------------------
LABELS = {  # kind -> (what `id` is, what `extra` is)
    "CALL": ("seq", "plan"), "PLAN": ("plan", "kernels"), "ENCODE": ("program", "plan"), "LAUNCH": ("seq", "program"),
    "EXPOSED": ("seq", "program"), "STARVED": ("seq", "client_ns"), "WAIT": ("seq", "arrived"), "HOST": ("seq", "function"),
    "PACK": ("seq", "kib"), "LOAD": ("program", "code"), "RECOVERY": ("done", "replayed"),
}  # fmt: skip


def write(path: str | Path, all_spans: Iterable[Span], notes: Iterable[tuple[float, str]] = ()) -> int:
    """Writes a trace; `notes` are (seconds, text) of the scheduler. Returns the number of spans."""
    ordered = sorted(all_spans, key=lambda s: (s.track, s.begin_ns, -s.end_ns))
    zero_ns = min((s.begin_ns for s in ordered), default=0)
    events: list[dict[str, object]] = [_name(track) for track in sorted({s.track for s in ordered})]
    events += [_event(s, zero_ns) for s in ordered]
    events += _arrows(ordered, zero_ns)
    instants = [_instant(at, text, zero_ns) for at, text in notes if at * 1e9 >= zero_ns]
    events += [_name(SCHEDULER), *instants] if instants else []
    Path(path).write_text(json.dumps({"displayTimeUnit": "ns", "traceEvents": events}))
    return len(ordered)


def _name(track: int) -> dict[str, object]:
    return {"ph": "M", "pid": PID, "tid": track, "name": "thread_name", "args": {"name": track_name(track)}}


def _event(span: Span, zero_ns: int) -> dict[str, object]:
    number, extra = LABELS.get(span.kind, ("id", "extra"))
    return {
        "ph": "X", "pid": PID, "tid": span.track, "name": span.kind.lower(), "cat": track_name(span.track),
        "ts": (span.begin_ns - zero_ns) / 1e3, "dur": max(span.end_ns - span.begin_ns, 0) / 1e3,
        "args": {number: span.id, extra: span.extra},
    }  # fmt: skip


def _instant(at_s: float, text: str, zero_ns: int) -> dict[str, object]:
    return {"ph": "i", "s": "p", "pid": PID, "tid": SCHEDULER, "name": text, "ts": (at_s * 1e9 - zero_ns) / 1e3}


def _arrows(ordered: list[Span], zero_ns: int) -> Iterator[dict[str, object]]:
    launches = sorted((s for s in ordered if s.kind == "LAUNCH"), key=lambda s: s.begin_ns)
    first_of: dict[int, list[Span]] = {}
    by_seq = {s.id: s for s in launches}
    for launch in launches:
        first_of.setdefault(launch.extra, []).append(launch)
    number = 0
    for span in ordered:
        target = None
        if span.kind == "ENCODE":
            target = next((launch for launch in first_of.get(span.id & 0xFFFFFFFF, ()) if launch.begin_ns >= span.end_ns), None)
        elif span.kind == "CALL":
            target = by_seq.get(span.id)
        if target is None:
            continue
        number += 1
        name = "program" if span.kind == "ENCODE" else "launch"
        flow = {"pid": PID, "name": name, "cat": "flow", "id": number}
        yield {**flow, "ph": "s", "tid": span.track, "ts": (min(span.end_ns, target.begin_ns) - zero_ns) / 1e3}
        yield {**flow, "ph": "f", "bp": "e", "tid": target.track, "ts": (target.begin_ns - zero_ns) / 1e3}


# ---- reading --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TrackSummary:
    """One track of a trace file; times in us. `gaps`: the longest stretches without a span, (us, start us)."""

    name: str
    spans: dict[str, int]
    busy_us: dict[str, float]
    idle_us: float
    gaps: tuple[tuple[float, float], ...]


def summarise(path: str | Path, gaps: int = 5) -> list[TrackSummary]:
    """What a trace file says, track by track. Raises ModelFormatError if it is none of ours."""
    try:
        events = json.loads(Path(path).read_text())["traceEvents"]
        names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
        rows = [(e["tid"], e["name"], float(e["ts"]), float(e["dur"])) for e in events if e["ph"] == "X"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ModelFormatError(
            f"trace: {path}: not a trace, got {type(error).__name__}, allowed what Runtime.trace() writes") from None
    return [_summary(names.get(track, str(track)), [r[1:] for r in rows if r[0] == track], gaps)
            for track in sorted({r[0] for r in rows})]


def _summary(name: str, rows: list[tuple[str, float, float]], gaps: int) -> TrackSummary:
    counts: dict[str, int] = {}
    busy: dict[str, float] = {}
    for kind, _, length in rows:
        counts[kind] = counts.get(kind, 0) + 1
        busy[kind] = busy.get(kind, 0.0) + length
    idle = _gaps([(start, start + length) for kind, start, length in rows if kind not in ("exposed", "starved")])
    return TrackSummary(name, counts, busy, sum(g for g, _ in idle), tuple(sorted(idle, reverse=True)[:gaps]))


def _gaps(intervals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(length, start) of what lies between intervals that may overlap."""
    found, until = [], None
    for start, end in sorted(intervals):
        if until is not None and start > until:
            found.append((start - until, until))
        until = end if until is None else max(until, end)
    return found
