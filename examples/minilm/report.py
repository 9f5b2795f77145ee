"""What the example prints. Owns the wording and the units; computes nothing that could be right or wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from minilm.chaos import Killer
from minilm.job import ERROR_MAX, MARGIN_MIN, THRESHOLD, Check, Encoded

SHOWN = 3  # sentences whose nearest neighbour is shown


def input_table(console: Console, file: Path, sentences: list[str], ids: list[np.ndarray]) -> None:
    lengths = [len(tokens) for tokens in ids]
    console.print(f"{len(sentences)} sentences from {file.name}: {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all, "
                  f"{len(set(lengths))} different lengths", highlight=False)  # fmt: skip


def neighbours(console: Console, sentences: list[str], embeddings: np.ndarray) -> None:
    """The nearest neighbours of sentences from all over the file."""
    if len(sentences) < 2:
        return
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -2)
    table = Table("sentence", "nearest neighbour", "cosine", title="Nearest neighbours", title_justify="left")
    for number in chosen(similarity):
        nearest = int(similarity[number].argmax())
        table.add_row(_short(sentences[number]), _short(sentences[nearest]), f"{similarity[number, nearest]:.2f}")
    console.print(table)


def chosen(similarity: np.ndarray) -> list[int]:
    """In each part of the file, the sentence whose nearest neighbour is nearest."""
    parts = np.array_split(np.arange(len(similarity)), min(SHOWN, len(similarity)))
    return [int(part[similarity[part].max(axis=1).argmax()]) for part in parts]


def latencies(console: Console, encoded: Encoded) -> None:
    table = Table("one sentence, token ids to NumPy", "sentences", "p50 ms", "p99 ms", title="Latency", title_justify="left")
    table.add_row("the very first (traced and planned)", "1", f"{encoded.first_call_ns / 1e6:.2f}", "")
    for name, times in (("shape seen for the first time", encoded.first_seen_ns), ("the same sentences again", encoded.repeated_ns)):
        if times:
            table.add_row(name, str(len(times)), *(f"{np.percentile(times, p) / 1e6:.2f}" for p in (50, 99)))
    console.print(table)


def checks(console: Console, encoded: Encoded, found: Check, layers: int) -> None:
    counts = np.bincount(encoded.depths, minlength=layers + 1)[1:]
    depths = ", ".join(f"{layer}: {count}" for layer, count in enumerate(counts, 1))
    table = Table("against NumPy float64", "", title="Check", title_justify="left")
    table.add_row("largest difference, one at a time", f"{found.plain_error:.2e} (allowed {ERROR_MAX:g})")
    table.add_row("largest difference, ragged batches", f"{found.ragged_error:.2e}")
    table.add_row("batched and single, byte for byte", "equal" if encoded.plain.tobytes() == encoded.ragged.tobytes() else "different")
    table.add_row("largest difference, early stop", f"{found.settled_error:.2e}")
    table.add_row(f"layers used (settled at cosine {THRESHOLD}): sentences", depths)
    table.add_row("same depth as the reference", f"{len(encoded.depths) - len(found.depths_wrong)} of {len(encoded.depths)}; "
                  f"margin below {MARGIN_MIN:g}: {found.close_calls}")  # fmt: skip
    console.print(table)
    for problem in found.problems():
        console.print(f"FAILED  {problem}", style="bold red", highlight=False, markup=False)


def _short(sentence: str, length: int = 60) -> str:
    return sentence if len(sentence) <= length else sentence[: length - 1] + "…"
