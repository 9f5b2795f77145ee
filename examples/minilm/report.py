"""What the example prints. Owns the wording and the units; computes nothing that could be right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from minilm.chaos import Killer
from minilm.job import ERROR_MAX, MARGIN_MIN, STEPS, THRESHOLD, Check, Encoded

ROWS: tuple[tuple[str, Callable[[Mapping[str, Any]], float]], ...] = (
    ("launches, packing too", lambda s: s["launched"]),
    ("programs encoded", lambda s: s["encoded"] + sum(w["encoded"] for w in s["workers"])),
    ("encode us", lambda s: _encode_ns(s) / 1e3),
    ("device busy us", lambda s: s["busy_ns"] / 1e3),
    ("idle: exposed us", lambda s: s["exposed_ns"] / 1e3),
    ("idle: starved us", lambda s: s["starved_client_ns"] / 1e3),
    ("idle: the user's Python us", lambda s: s["starved_user_ns"] / 1e3),
)
INLINE_ROWS = 4  # inline there is no device that could be idle
SHOWN = 3  # sentences whose nearest neighbour is shown


def input_table(console: Console, file: Path, sentences: list[str], ids: list[np.ndarray]) -> None:
    lengths = [len(tokens) for tokens in ids]
    console.print(
        f"{len(sentences)} sentences from {file.name}: {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all, "
        f"{len(set(lengths))} different lengths",
        highlight=False,
    )


def neighbours(console: Console, sentences: list[str], embeddings: np.ndarray) -> None:
    """The nearest neighbours of sentences from all over the file."""
    if len(sentences) < 2:
        return
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -2)
    table = Table("sentence", "nearest neighbour", "cosine", title="Nearest neighbours", title_justify="left")
    for number in chosen(similarity):
        nearest = int(similarity[number].argmax())
        table.add_row(
            _short(sentences[number]), _short(sentences[nearest]), f"{similarity[number, nearest]:.2f}"
        )
    console.print(table)


def chosen(similarity: np.ndarray) -> list[int]:
    """In each part of the file, the sentence whose nearest neighbour is nearest."""
    parts = np.array_split(np.arange(len(similarity)), min(SHOWN, len(similarity)))
    return [int(part[similarity[part].max(axis=1).argmax()]) for part in parts]


def latencies(console: Console, encoded: Encoded) -> None:
    table = Table(
        "one sentence, token ids to NumPy",
        "sentences",
        "p50 ms",
        "p99 ms",
        title="Latency",
        title_justify="left",
    )
    table.add_row("the very first (traced and planned)", "1", f"{encoded.first_call_ns / 1e6:.2f}", "")
    for name, times in (
        ("shape seen for the first time", encoded.first_seen_ns),
        ("the same sentences again", encoded.repeated_ns),
    ):
        if times:
            table.add_row(name, str(len(times)), *(f"{np.percentile(times, p) / 1e6:.2f}" for p in (50, 99)))
    console.print(table)


def runtime(console: Console, encoded: Encoded, took_s: float, inline: bool, killer: Killer | None) -> None:
    """Where the time went in each of the three ways. Idle time of the device while there was work: exposed (a program
    was missing) and starved (a launch was missing while dvm_rt worked on the client's side); apart from them, the
    time in which the user's own Python had nothing to launch."""
    table = Table(
        Column("per sentence", no_wrap=True),
        *encoded.stats,
        title=f"Runtime ({took_s:.1f} s for all of it)",
        title_justify="left",
    )
    sentences = dict.fromkeys(STEPS, len(encoded.plain)) | {STEPS[1]: max(1, len(encoded.repeated_ns))}
    for name, value in ROWS if not inline else ROWS[:INLINE_ROWS]:
        parts = [
            (value(after) - value(before)) / sentences[step]
            for step, (before, after) in encoded.stats.items()
        ]
        table.add_row(name, *(f"{part:.2f}" for part in parts))
    console.print(table)
    _, last = encoded.stats[STEPS[3]]
    console.print(
        f"in all: {last['plans']} plans in {last['plan_ns'] / 1e6:.1f} ms, "
        f"{last['launched']} launches of {last['programs']} programs, "
        f"{_encode_ns(last) / 1e3 / max(1, last['programs']):.1f} us to encode one; "
        f"arena {last['memory']['arena'] / 1e6:.0f} MB, of it packed weights {last['memory']['packed'] / 1e6:.0f} MB",
        highlight=False,
    )
    if killer is not None:
        kills = ", ".join(f"{role}: {count}" for role, count in sorted(killer.kills.items())) or "none"
        console.print(
            f"killed {kills}; noticed deaths: {last['deaths']}, recoveries: {last['recoveries']}",
            highlight=False,
        )


def checks(console: Console, encoded: Encoded, found: Check, layers: int) -> None:
    counts = np.bincount(encoded.depths, minlength=layers + 1)[1:]
    depths = ", ".join(f"{layer}: {count}" for layer, count in enumerate(counts, 1))
    table = Table("against NumPy float64", "", title="Check", title_justify="left")
    table.add_row("largest difference, one at a time", f"{found.plain_error:.2e} (allowed {ERROR_MAX:g})")
    table.add_row("largest difference, ragged batches", f"{found.ragged_error:.2e}")
    table.add_row(
        "batched and single, byte for byte",
        "equal" if encoded.plain.tobytes() == encoded.ragged.tobytes() else "different",
    )
    table.add_row("largest difference, early stop", f"{found.settled_error:.2e}")
    table.add_row(f"layers used (settled at cosine {THRESHOLD}): sentences", depths)
    table.add_row(
        "same depth as the reference",
        f"{len(encoded.depths) - len(found.depths_wrong)} of {len(encoded.depths)}; "
        f"margin below {MARGIN_MIN:g}: {found.close_calls}",
    )
    console.print(table)
    for problem in found.problems():
        console.print(f"FAILED  {problem}", style="bold red", highlight=False, markup=False)


def _encode_ns(stats: Mapping[str, Any]) -> int:
    return stats["encode_ns"] + sum(worker["encode_ns"] for worker in stats["workers"])


def _short(sentence: str, length: int = 60) -> str:
    return sentence if len(sentence) <= length else sentence[: length - 1] + "…"
