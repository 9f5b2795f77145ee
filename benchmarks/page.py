"""Rows as people read them: on the terminal, as Markdown, as one HTML file. Every number is computed from the rows.

`sections` makes titles, sentences and tables once; `show`, `markdown` and `html` only draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from statistics import geometric_mean

from benchmarks.measure import YARDSTICKS, Row
from benchmarks.targets import LEVELS, targets

TITLES = {
    "operators": "Operators", "subgraphs": "Subgraphs", "models": "Models", "requests": "Requests of many shapes",
    "dynamic": "Dynamic control flow",
    "onnx": "ONNX models", "limits": "Against the limits of the machine", "threads": "Two threads",
    "memory": "Memory", "encode": "Encoding a kernel",
    "pipeline": "Calls and processes", "startup": "Start",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """`kind`: text, number, good, bad; `share`: 0 to 1, drawn as a bar where that can be."""

    text: str
    kind: str = "number"
    share: float | None = None


@dataclass(slots=True)
class Table:
    head: list[str]
    rows: list[list[Cell]]
    title: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Section:
    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(us: float | None) -> str:
    """Microseconds in the unit that suits them."""
    if us is None:
        return "-"
    return f"{number(us)} us" if us < 1000 else f"{number(us / 1e3)} ms" if us < 1e6 else f"{number(us / 1e6)} s"


def text(value: str) -> Cell:
    return Cell(value, "text")


def times(ratio: float | None) -> Cell:
    """How many times as much the best peer takes; the bar is full at four times."""
    if not ratio:
        return Cell("-")
    return Cell(f"{ratio:,.2f}x", "good" if ratio > 1 else "bad", min(ratio, 4) / 4)


def line(row: Row) -> str:
    """One row on one line, as it comes."""
    peers = "  ".join(f"{name} {number(value)}" for name, value in row.peers.items())
    ahead = f"  {row.ratio:.2f}x" if row.ratio else ""
    return f"{row.suite}: {row.case} {row.shape}, {row.metric}: dvm {number(row.dvm)} {row.unit}  {peers}{ahead}"


# ---- what is said -------------------------------------------------------------------------------------------------


def headlines(rows: list[Row]) -> list[str]:
    """One line a suite: rows ahead of the best peer, and the ratios' geometric mean; then what new shapes cost, a
    line a level."""
    lines = []
    for suite, of in groupby(rows, lambda r: r.suite):
        timed = [r for r in of if r.metric == "time" and r.ratio]
        if timed:
            ahead = sum(r.ratio > 1 for r in timed)
            mean, least, most = (
                geometric_mean([r.ratio for r in timed]),
                min(timed, key=lambda r: r.ratio),
                max(timed, key=lambda r: r.ratio),
            )
            lines.append(f"{TITLES[suite]}: ahead of the best peer on {ahead} of {len(timed)} rows; the best peer takes "
                         f"{mean:.2f} times as long in the geometric mean, {least.ratio:.2f} ({least.case} {least.shape}) "
                         f"to {most.ratio:.2f} ({most.case} {most.shape})")  # fmt: skip
    for suite in LEVELS:
        found = [r for r in rows if r.suite == suite and r.metric == "compile max" and r.over("inductor")]
        if found:
            worst = max(found, key=lambda r: r.dvm)
            theirs = [r.peers["inductor"] / 1e6 for r in found]
            ratios = [r.over("inductor") for r in found]
            lines.append(f"{TITLES[suite]}, a shape never seen: ready in at most {number(worst.dvm)} us ({worst.case}); "
                         f"Inductor takes {min(theirs):.1f} to {max(theirs):.1f} s, {min(ratios):,.0f} to "
                         f"{max(ratios):,.0f} times as long")  # fmt: skip
    return lines


CHANNELS = ("edges of zeros are kernels of their own, and a copy of each image into them, where the peer's loop knows its edges "
            "and has channels side by side in a vector")  # fmt: skip
# Why a peer wins: what is known, by the beginning of a case's name.
WHY = {
    "add":
        "one operator: at the small size our call from Python costs more than NumPy's own, at the large ones everybody is at "
        "the memory's speed",
    "exp": "one operator: at the large sizes everybody is at the memory's speed",
    "gelu": "one operator: 28 instructions for the two 512-bit ports, 18 of them erf",
    "softmax":
        "three passes over a row, exp in one of them; a loop by hand, with usual stores and prefetches of its own, is 1.1 to 1.3 "
        "times as fast: not won yet",
    "sum of rows": "one read of memory",
    "matmul, both per call": "both operands come anew with each call: packing one of them is in our time, MKL reads it in place",
    "matmul": "both sides are at the peak of the matrix kernel, or at the bandwidth of the weights",
    "attention": "one query: K and V are read once, by both; many queries: matrix products of full size, in which MKL is as fast",
    "mlp": "matrix products of full size, where MKL is as fast",
    "encoder layer": "matrix products of full size, where MKL is as fast",
    "6-layer encoder, first result":
        "planning and packing the weights are in it; PyTorch has nothing to plan, ONNX Runtime starts from a file that was "
        "exported before",
    "6-layer encoder": "matrix products of full size, where MKL is as fast",
    "MiniLM": "matrix products of full size, where MKL is as fast",
    "mobile net": CHANNELS,
    "residual net": CHANNELS,
    "bert": "the first run encodes and verifies every kernel of the shape",
    "gpt": "the first run encodes and verifies every kernel of the shape",
    "control":
        "the first run of a shape encodes and verifies its program, about 50 us beside 0.5 ms; its kernels and the rest of "
        "the call take up to 0.1 ms longer, perhaps in memory that was not used just before",
    "recurrent": "the first run of a shape encodes and verifies its program, 0.14 ms beside 2 to 5 ms",
    "gelu, 30 shapes":
        "one operator: input and output are all there is; ours is what their blocks take, up to 3 % more so that sizes recur, "
        "the peer's what was asked for",
    "chain of 8": "one pass over memory on both sides",
    "swiglu": "one pass over memory on both sides",
    "cross entropy": "one pass over memory on both sides",
}  # fmt: skip


def _why(row: Row) -> str:
    """What is known of the case, and what the row itself tells: how close to the limit we are, whether the quartiles overlap."""
    known = next(
        (why for case, why in sorted(WHY.items(), key=lambda item: -len(item[0])) if row.case.startswith(case)),
        "no reason is known",
    )
    if row.limit and row.limit >= 0.7 * row.dvm:
        known += f"; we are at {100 * row.limit / row.dvm:.0f} % of the limit measured in the run"
    ours, theirs = row.spread.get("dvm"), row.spread.get(row.best[0])
    if ours and theirs and ours[0] <= theirs[1]:
        known += "; the quartiles of the two overlap"
    return known


def _behind(rows: list[Row]) -> list[Row]:
    """Rows in which a peer is ahead; shapes never seen apart, where a peer that compiles nothing is as good as its
    page faults."""
    return [r for r in rows if r.ratio and r.ratio < 1 and not r.metric.startswith(("added", "compile"))]


# ---- tables -------------------------------------------------------------------------------------------------------


def sections(machine: dict, rows: list[Row]) -> list[Section]:
    """Everything, in the order in which it is read."""
    held = [t for t in targets(rows) if t.met is not None]
    out = [Section("In short", headlines(rows))]
    if held:
        out[0].lines.insert(0, f"{sum(t.met for t in held)} of {len(held)} targets are met.")
        body = [
            [
                text(t.what),
                text(t.wanted),
                text(t.figure),
                Cell("met" if t.met else "missed", "good" if t.met else "bad"),
                text("" if t.met else t.why),
            ]
            for t in held
        ]
        said = (
            "Of a target with many parts the table tells how many are met, and the worst. Rows that are lost have their reasons "
            "below: what we read in code and profiles, measured only where a figure stands."
        )
        out.append(Section("Targets", [said], [Table(["what", "target", "figure", "", "why it is missed"], body)]))
    if behind := _behind(rows):
        body = [[text(TITLES[r.suite]), text(r.case), text(r.shape),
                 Cell(f"{r.best[0]} {number(r.best[1])} {r.unit}"), Cell(f"{number(r.dvm)} {r.unit}"),
                 times(r.ratio), text(_why(r))] for r in sorted(behind, key=lambda r: r.ratio)]  # fmt: skip
        out.append(
            Section(
                "Rows in which a peer is ahead",
                [],
                [Table(["suite", "case", "shape", "best peer", "dvm", "ratio", "why"], body)],
            )
        )
    out += [Section(TITLES[suite], [], _tables(list(of))) for suite, of in groupby(rows, lambda r: r.suite)]
    return [*(o for o in out if o.lines or o.tables), _method(machine)]


def _tables(rows: list[Row]) -> list[Table]:
    """Of one suite: steady times, the yardstick, shapes never seen, everything else."""
    kinds: tuple[tuple[str, Callable[[Row], bool], Callable[[list[Row]], Table]], ...] = (
        ("Steady time", lambda r: r.metric == "time", _steady),
        ("Without Python, against a kernel fused by hand", lambda r: "fused C" in r.peers, _yardstick),
        ("A shape never seen", lambda r: r.metric.startswith(("compile", "added")), _unseen),
        ("", lambda r: True, _others),
    )
    tables = []
    for title, wanted, make in kinds:
        found, rows = [r for r in rows if wanted(r)], [r for r in rows if not wanted(r)]
        if found:
            table = make(found)
            table.title = title
            tables.append(table)
    return tables


def _peers(rows: Iterable[Row]) -> list[str]:
    names = list(dict.fromkeys(name for r in rows for name in r.peers))
    return sorted(names, key=lambda name: name.startswith(YARDSTICKS))


def _numbers(row: Row, peers: list[str]) -> list[Cell]:
    return [Cell(number(row.dvm)), *(Cell(number(row.peers.get(p))) for p in peers)]


def _share(row: Row) -> Cell:
    return (
        Cell(number(100 * row.limit / row.dvm) + " %", share=min(row.limit / row.dvm, 1))
        if row.limit and row.dvm
        else Cell("-")
    )


def _spread(row: Row) -> Cell:
    """Half of the distance of the quartiles, of the median."""
    of = row.spread.get("dvm")
    return Cell(f"{50 * (of[1] - of[0]) / row.dvm:.0f} %") if of and row.dvm else Cell("-")


def _steady(rows: list[Row]) -> Table:
    peers, unit = _peers(rows), rows[0].unit
    limited, compared = any(r.limit for r in rows), any(r.best for r in rows)
    head = ["case", "shape", f"dvm, {unit}", "+-", *peers, *["best peer / dvm"] * compared, *["of the limit"] * limited]
    body = [
        [
            text(r.case),
            text(r.shape),
            *_numbers(r, peers)[:1],
            _spread(r),
            *_numbers(r, peers)[1:],
            *[times(r.ratio)] * compared,
            *[_share(r)] * limited,
        ]
        for r in rows
    ]
    return Table(head, body, notes=_notes(rows))


def _yardstick(rows: list[Row]) -> Table:
    body = [
        [
            text(r.case),
            text(r.shape),
            Cell(number(r.dvm)),
            Cell(number(r.peers["fused C"])),
            Cell(f"{1 / r.over('fused C'):.2f}x"),
            _share(r),
        ]
        for r in rows
    ]
    return Table(["case", "shape", "dvm, us", "fused C, us", "dvm / fused C", "of the limit"], body)


def _unseen(rows: list[Row]) -> Table:
    """A line a case: ours as our counters tell it and by the clock; the others by the clock."""
    peers = [
        name for name in ("inductor", "inductor-dyn", "jax", "mindspore", "onnxruntime") if any(name in r.peers for r in rows)
    ]
    head = ["case", "shapes", "dvm compiles, p50", "p98", "max", "by the clock, p50", "p98", *(f"{p}, p98" for p in peers)]
    head += ["inductor / dvm, p98", "max"] * ("inductor" in peers)
    body = []
    for case, of in groupby(rows, lambda r: r.case):
        by = {r.metric: r for r in of}
        p98, most = by["compile p98"], by["compile max"]
        line = [
            text(case),
            text(p98.shape),
            *(Cell(duration(by[m].dvm)) for m in ("compile p50", "compile p98", "compile max", "added p50", "added p98")),
        ]
        line += [Cell(duration(p98.peers.get(p))) for p in peers]
        if "inductor" in peers:
            line += [Cell(f"{r.over('inductor'):,.0f}x") if r.over("inductor") else Cell("-") for r in (p98, most)]
        body.append(line)
    return Table(head, body, notes=_notes(rows))


def _by_metric(rows: list[Row]) -> Table:
    """Several figures of one thing: a line each, a column a metric."""
    columns = list(dict.fromkeys((r.metric, r.unit) for r in rows))
    body = []
    for (case, shape), of in groupby(rows, lambda r: (r.case, r.shape)):
        found = {(r.metric, r.unit): r.dvm for r in of}
        body.append([text(case), text(shape), *(Cell(number(found.get(c))) for c in columns)])
    return Table(["case", "shape", *(f"{metric}, {unit}" for metric, unit in columns)], body, notes=_notes(rows))


def _others(rows: list[Row]) -> Table:
    if not any(r.peers for r in rows) and len({(r.case, r.shape) for r in rows}) < len(rows):
        return _by_metric(rows)
    peers = _peers(rows)
    compared = any(r.best for r in rows)
    own = any(name.startswith(YARDSTICKS) for name in peers)
    head = ["case", "shape", "metric", "unit", "dvm", *peers, *["best peer / dvm"] * compared, *["other / dvm"] * own]
    body = []
    for r in rows:
        other = next((r.over(name) for name in r.peers if name.startswith(YARDSTICKS)), None)
        body.append([text(r.case), text(r.shape), text(r.metric), text(r.unit), *_numbers(r, peers), *[times(r.ratio)] * compared,
                     *[Cell(f"{other:.2f}x" if other else "-")] * own])  # fmt: skip
    return Table(head, body, notes=_notes(rows))


def _notes(rows: list[Row]) -> list[str]:
    """Each note once, with the cases that it is of."""
    of: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.notes:
            of.setdefault(row.notes, {})[row.case] = None
    return [f"{', '.join(cases)}: {note}" for note, cases in of.items()]


def _method(machine: dict) -> Section:
    limits, threads = machine.get("limits"), machine["threads"]
    lines = [
        "Every result is held against NumPy in float64 before anything is timed.",
        f"{threads} thread{'s' * (threads > 1)} for every engine{', pinned to one CPU' * (threads == 1)}; engines take turns "
        "sample by sample, and who begins rotates. "
        "Medians; +- is half the distance of our quartiles. Warm-up is outside, and there is some before each sample: 512-bit "
        "instructions run at a quarter of their rate for 0.1 to 0.4 ms where there were none for 0.7 ms.",
        "Calls come from Python with inputs that an engine holds already, and end when the result is whole. Weights are "
        "constants, packed where an engine packs.",
        "Peers in their best setting: a malloc that keeps its pages for all; PyTorch and NumPy with out= where that is "
        "faster; Inductor with freezing and without the disk "
        "caches of earlier runs; ONNX Runtime with bound inputs and outputs and one session for all shapes; numexpr with "
        "float32 constants; MindSpore in graph mode O0.",
        "A shape never seen: `dvm compiles` is encoding and verifying by our own counters; `by the clock`, and the "
        "others, is the first call less "
        "a repetition, fresh memory included. The plan, the graph of a peer, is known. Before each an engine runs the "
        "shape before.",
        "`fused C` (benchmarks/fused.cpp) is written by hand for each case, with the best of nine variants at each shape;"
        " no peer, but what could be reached. It, and what `Against the limits of the machine` holds us against, run in the very "
        "memory that ours runs in.",
        "A run goes on from the rows of its JSON file: cases of one page may have been measured some minutes apart.",
        "`of the limit`: the time that bandwidth (the best of triads and reads at that size) or the peak of fused "
        "multiply-adds allow, of ours. Data that stays in "
        "a faster cache than the bytes moved tell can be above 100 %; products use the matrix unit's peak.",
    ]  # fmt: skip
    if limits:
        places = zip(
            ("L2", "L3", "memory"), limits["triad_bytes_s"], limits["triad_nt_bytes_s"], limits["read_bytes_s"], strict=True
        )
        lines.append("Measured in the run, GB/s: "
                     + "; ".join(f"{name}: triad {t / 1e9:.1f}, with non-temporal stores {nt / 1e9:.1f}, read {read / 1e9:.1f}"
                                 for name, t, nt, read in places)
                     + f". Peak of float32: {limits['fma_flop_s'] / 1e9:.0f} GFLOP/s.")  # fmt: skip
    lines += [f"Absent: {name} ({why})" for name, why in machine["absent"].items()]
    return Section("How it was measured", lines)


def _where(machine: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['threads']} thread{'s' * (machine['threads'] > 1)}; "
        f"Python {machine['python']}, {versions}; load {machine['load']:.1f} when it began"
    )


# ---- drawn --------------------------------------------------------------------------------------------------------


def show(machine: dict, rows: list[Row]) -> None:
    """Prints it."""
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console, styles = Console(width=None if Console().is_terminal else 220), {"good": "green", "bad": "red"}
    console.print(_where(machine), highlight=False)
    found = sections(machine, rows)
    for section in sorted(found, key=lambda section: section.title == "In short"):  # last, where the reader is
        console.print(f"\n{section.title}", style="bold")
        for said in section.lines:
            console.print(f"- {said}", highlight=False)
        for table in section.tables:
            drawn = Drawn(title=table.title, title_justify="left")
            for head, cell in zip(table.head, table.rows[0], strict=True):
                drawn.add_column(head, justify="left" if cell.kind == "text" else "right")
            for row in table.rows:
                drawn.add_row(*(Text(c.text, styles.get(c.kind, "")) for c in row))
            console.print(drawn)
            for note in table.notes:
                console.print(note, style="dim", highlight=False)


def markdown(machine: dict, rows: list[Row]) -> str:
    """The results page of the docs."""
    out = ["# Results", "", f"Made by `dvm-rt bench` on {_where(machine)}."]
    for section in sections(machine, rows):
        out += ["", f"## {section.title}"]
        if section.lines:
            out += ["", *(f"- {said}" for said in section.lines)]
        for table in section.tables:
            out += ["", f"### {table.title}"] if table.title else []
            out += [
                "",
                "| " + " | ".join(table.head) + " |",
                "|" + "".join("---|" if c.kind == "text" else "--:|" for c in table.rows[0]),
            ]
            out += ["| " + " | ".join(f"**{c.text}**" if c.kind == "bad" else c.text for c in row) + " |" for row in table.rows]
            out += ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join(out) + "\n"


STYLE = """
:root{--ink:#1b1f24;--dim:#5d6670;--line:#e3e6ea;--paper:#fff;--band:#f6f7f9;--good:#0b7a3b;--bad:#b3261e;--goodbar:#cfeedb;
--badbar:#f8d6d3;--bar:#dde6f2}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--dim:#9aa4af;--line:#2c333b;--paper:#14181c;--band:#1b2026;
--good:#5ad08a;--bad:#ff8a80;--goodbar:#17402a;--badbar:#4d1f1c;--bar:#243349}}
*{box-sizing:border-box}
body{font:14px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;margin:0;color:var(--ink);background:var(--paper)}
main{max-width:1280px;margin:0 auto;padding:24px 20px 80px}h1{font-size:28px;margin:8px 0 0}
h2{font-size:20px;margin:44px 0 8px;padding-top:8px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:22px 0 6px}p,li{max-width:100ch}.dim,.notes{color:var(--dim)}
.notes{font-size:12.5px;margin:6px 0 0;padding-left:18px}
nav{position:sticky;top:0;z-index:2;background:var(--paper);border-bottom:1px solid var(--line);padding:8px 0;font-size:13px;
display:flex;flex-wrap:wrap;gap:4px 14px}
nav a{color:var(--dim);text-decoration:none}nav a:hover{color:var(--ink)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin:20px 0}
.card{background:var(--band);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.card b{display:block;font-size:26px;line-height:1.2;font-variant-numeric:tabular-nums}
.card span{color:var(--dim);font-size:12.5px}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th{background:var(--band);font-weight:600;text-align:right;white-space:nowrap;padding:6px 10px;
border-bottom:1px solid var(--line)}
td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}tr:last-child td{border-bottom:0}
tbody tr:hover{background:var(--band)}
.text{text-align:left}td.text{white-space:normal;min-width:14ch}td.text:nth-child(2){min-width:9ch}
tr.first td{border-top:1px solid var(--dim)}
td.good{color:var(--good);font-weight:600;--fill:var(--goodbar)}td.bad{color:var(--bad);font-weight:600;--fill:var(--badbar)}
td.number{--fill:var(--bar)}
td.filled{background:linear-gradient(90deg,var(--fill) var(--to),transparent var(--to));min-width:76px}
"""


def html(machine: dict, rows: list[Row]) -> str:
    """The same as one page that needs nothing else."""
    found = sections(machine, rows)
    names = "".join(f'<a href="#{_anchor(s.title)}">{escape(s.title)}</a>' for s in found)
    out = ['<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">',
           f"<title>dvm_rt: results</title><style>{STYLE}</style><main><h1>dvm_rt: results</h1>",
           f"<p class=dim>{escape(_where(machine))}</p><nav>{names}</nav>", _cards(rows)]  # fmt: skip
    for section in found:
        out.append(f'<h2 id="{_anchor(section.title)}">{escape(section.title)}</h2>')
        if section.lines:
            out.append("<ul>" + "".join(f"<li>{_said(said)}" for said in section.lines) + "</ul>")
        out += [_html_table(table) for table in section.tables]
    return "\n".join([*out, "</main></html>\n"])


def _said(line: str) -> str:
    """A sentence, in which `...` is code."""
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(escape(line).split("`")))


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _cards(rows: list[Row]) -> str:
    """The few numbers that somebody takes away."""
    cards = []
    if held := [t for t in targets(rows) if t.met is not None]:
        cards.append((f"{sum(t.met for t in held)} / {len(held)}", "targets met"))
    for suite in LEVELS:
        if ratios := [r.ratio for r in rows if r.suite == suite and r.metric == "time" and r.ratio]:
            cards.append(
                (
                    f"{geometric_mean(ratios):.2f}x",
                    f"{suite}: time of the best peer over ours, geometric mean of {len(ratios)} rows, "
                    f"{sum(r > 1 for r in ratios)} ahead",
                )
            )
    if over := [r.over("inductor") for r in rows if r.metric == "compile p98" and r.over("inductor")]:
        cards.append((f"{geometric_mean(over):,.0f}x", "faster than Inductor at a shape never seen (p98, geometric mean)"))
    for row in rows:
        if row.metric == "cold start" and row.over("inductor"):
            cards.append(
                (
                    f"{row.over('inductor'):,.0f}x",
                    f"faster than Inductor to the first result of a {row.case.split(',')[0]}: {number(row.dvm)} ms",
                )
            )
    return (
        "<div class=cards>"
        + "".join(f"<div class=card><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in cards)
        + "</div>"
        if cards
        else ""
    )


def _html_table(table: Table) -> str:
    kinds = [cell.kind for cell in table.rows[0]]
    head = "".join(
        f"<th{' class=text' * (kind == 'text')}>{escape(name)}" for name, kind in zip(table.head, kinds, strict=True)
    )
    body, last = [], None
    for row in table.rows:
        begins = last is not None and row[0].text != last and row[0].kind == "text"
        body.append(f"<tr{' class=first' * begins}>" + "".join(map(_html_cell, row)))
        last = row[0].text
    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    notes = "<ul class=notes>" + "".join(f"<li>{escape(note)}" for note in table.notes) + "</ul>" if table.notes else ""
    return f"{title}<div class=wide><table><thead><tr>{head}</thead><tbody>{''.join(body)}</tbody></table></div>{notes}"


def _html_cell(cell: Cell) -> str:
    if cell.share is None:
        return f'<td class="{cell.kind}">{escape(cell.text)}'
    return f'<td class="{cell.kind} filled" style="--to:{100 * cell.share:.0f}%">{escape(cell.text)}'
