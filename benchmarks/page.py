"""Rows as people read them: on the terminal, as Markdown, as one HTML file. Every number is computed from the rows."""

from __future__ import annotations

from html import escape
from itertools import groupby
from statistics import geometric_mean

from benchmarks.measure import Row


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _columns(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for r in rows for name in r.peers))


def _cells(row: Row, peers: list[str]) -> list[str]:
    share = number(100 * row.limit / row.dvm) + " %" if row.limit and row.dvm else "-"
    ahead = f"{row.ratio:,.2f}x" if row.ratio else "-"
    return [row.case, row.shape, row.metric, row.unit, number(row.dvm), *(number(row.peers.get(p)) for p in peers), ahead, share]


def _head(peers: list[str]) -> list[str]:
    return ["case", "shape", "metric", "unit", "dvm", *peers, "best peer / dvm", "of the limit"]


def line(row: Row) -> str:
    """One row on one line, as it comes."""
    peers = "  ".join(f"{name} {number(value)}" for name, value in row.peers.items())
    ahead = f"  {row.ratio:.2f}x" if row.ratio else ""
    return f"{row.suite}: {row.case} {row.shape}, {row.metric}: dvm {number(row.dvm)} {row.unit}  {peers}{ahead}"


def headlines(rows: list[Row]) -> list[str]:
    """One line a suite: rows ahead of the best peer, and the ratios' geometric mean; then what new shapes cost."""
    lines = []
    for suite, of in groupby(rows, lambda r: r.suite):
        timed = [r for r in of if r.metric == "time" and r.ratio]
        if timed:
            ahead = sum(r.ratio > 1 for r in timed)
            mean, least, most = geometric_mean([r.ratio for r in timed]), min(timed, key=lambda r: r.ratio), max(timed, key=lambda r: r.ratio)
            lines.append(f"{suite}: ahead of the best peer on {ahead} of {len(timed)} rows; ratio {mean:.2f} in the geometric mean, "
                         f"{least.ratio:.2f} ({least.case} {least.shape}) to {most.ratio:.2f} ({most.case} {most.shape})")
    for row in rows:
        if row.metric == "compile max" and row.dvm and "inductor" in row.peers:
            lines.append(f"{row.suite}, {row.case}: a shape never seen is compiled in at most {number(row.dvm)} us; by Inductor in {number(row.peers['inductor'])} us, "
                         f"{row.peers['inductor'] / row.dvm:,.0f} times as much")
    return lines


# Why a peer wins: what is known, by case.
WHY = {
    "add": "one addition of little data: a call from Python costs us more than NumPy's own",
    "6-layer encoder, first result": "planning and packing the weights are in it; PyTorch has nothing to plan, and ONNX Runtime's export and session are left out",
    "attention, 8 heads": "one query: K and V are read once, at less than their bandwidth; many queries of 128: not explained yet",
    "rotary": "memory only; within the spread of the machine",
    "softmax": "memory only; within the spread of the machine",
    "6-layer encoder": "a tie: matrix products of full size, where MKL is as fast",
    "16 requests, d = 64": "the other column is ours, one request after the other: at this size stacking saves less than it costs",
}


def lost(rows: list[Row]) -> list[str]:
    """One line for each row in which a peer is ahead, and why, where it is known; rows of new shapes apart, in
    which a peer that compiles nothing is as good as its page faults."""
    behind = [r for r in rows if r.ratio and r.ratio < 1 and not r.metric.startswith(("added", "compile"))]
    return [f"{r.case}, {r.shape}, {r.metric}: {r.best[0]} {number(r.best[1])} {r.unit}, we {number(r.dvm)}: {WHY.get(r.case, 'not explained yet')}" for r in behind]


def show(machine: dict, rows: list[Row]) -> None:
    """Prints tables, one a suite."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 200)
    console.print(f"{machine['cpu']}, {machine['threads']} thread(s), load {machine['load']:.1f}, {machine['versions']}")
    for suite, of in groupby(rows, lambda r: r.suite):
        of = list(of)
        peers = _columns(of)
        table = Table(title=suite, title_justify="left")
        for i, name in enumerate(_head(peers)):
            table.add_column(name, justify="left" if i < 4 else "right")
        for row in of:
            style = None if row.ratio is None else "green" if row.ratio >= 1 else "red"
            table.add_row(*_cells(row, peers), style=style)
        console.print(table)
        for note in dict.fromkeys(f"{r.case} {r.shape}: {r.notes}" for r in of if r.notes):
            console.print(note, style="dim", highlight=False)
    for line in [*headlines(rows), *(f"behind: {line}" for line in lost(rows))]:
        console.print(line, highlight=False)


def markdown(machine: dict, rows: list[Row]) -> str:
    """The results page of the docs."""
    out = ["# Results", "", f"Made by `dvm-rt bench` on {machine['cpu']}, {machine['threads']} thread(s), Python {machine['python']}, "
           + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ". Medians; the engines took turns, each case in one run; every result "
           "was held against float64 first. An empty cell: the engine was not asked, or could not. `of the limit`: share of what bandwidth or the vector unit allow, measured in the same run.", ""]  # fmt: skip
    out += [f"- {line}" for line in headlines(rows)]
    if behind := lost(rows):
        out += ["", "## Rows in which a peer is ahead", "", *(f"- {line}" for line in behind)]
    for suite, of in groupby(rows, lambda r: r.suite):
        of = list(of)
        peers = _columns(of)
        out += ["", f"## {suite}", "", "| " + " | ".join(_head(peers)) + " |", "|" + "---|" * (len(peers) + 7)]
        out += ["| " + " | ".join(_cells(r, peers)) + " |" for r in of]
        out += [""] + [f"- {note}" for note in dict.fromkeys(f"{r.case} {r.shape}: {r.notes}" for r in of if r.notes)]
    return "\n".join(out) + "\n"


STYLE = """body{font:14px system-ui,sans-serif;margin:2em auto;max-width:1200px;color:#222}table{border-collapse:collapse;width:100%}
td,th{padding:3px 8px;border-bottom:1px solid #ddd;text-align:right}td:nth-child(-n+4),th:nth-child(-n+4){text-align:left}
tr.ahead td:nth-last-child(2){color:#087a2f;font-weight:600}tr.behind td:nth-last-child(2){color:#b3261e;font-weight:600}p{color:#555}"""


def html(machine: dict, rows: list[Row]) -> str:
    """The same as one page that needs nothing else."""
    out = [f"<!doctype html><meta charset=utf-8><title>dvm_rt: results</title><style>{STYLE}</style><h1>dvm_rt: results</h1>",
           f"<p>{escape(str(machine['cpu']))}, {machine['threads']} thread(s), {escape(str(machine['versions']))}</p><ul>",
           *(f"<li>{escape(line)}" for line in headlines(rows)), *(f"<li>Behind: {escape(line)}" for line in lost(rows)), "</ul>"]
    for suite, of in groupby(rows, lambda r: r.suite):
        of = list(of)
        peers = _columns(of)
        out.append(f"<h2>{escape(suite)}</h2><table><tr>" + "".join(f"<th>{escape(h)}" for h in _head(peers)))
        for row in of:
            kind = "" if row.ratio is None else " class=ahead" if row.ratio >= 1 else " class=behind"
            out.append(f"<tr{kind}>" + "".join(f"<td>{escape(c)}" for c in _cells(row, peers)))
        out.append("</table>")
        out += [f"<p>{escape(note)}" for note in dict.fromkeys(f"{r.case} {r.shape}: {r.notes}" for r in of if r.notes)]
    return "\n".join(out)
