"""The main job: every sentence plain, in ragged batches, and with the early stop; then held against the reference.

Owns what is computed and in which order, the latencies, and the comparison. Prints nothing: `advance` is told of every
sentence that is done, for whoever shows progress."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import dvm_rt as dvm
from minilm.model import Encoder
from minilm.reference import Reference, settled
from minilm.tokens import pad, ragged_batches

THRESHOLD = 0.9  # cosine with the embedding of the layer before from which on a sentence counts as settled
ERROR_MAX = 1e-5  # of any number of an embedding, against float64
MARGIN_MIN = (
    1e-4  # distance of a cosine from the threshold, above which float32 has to decide as float64 does
)

Advance = Callable[[str, int], None]  # (name of the step, sentences done)
Stats = Callable[[], Mapping[str, Any]]  # Runtime.stats
STEPS = ("one at a time", "shapes again", "ragged batches", "early stop", "float64 reference")


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the runtime computed; arrays in the order of the sentences."""

    plain: np.ndarray  # (sentences, hidden) float32, each sentence by itself
    ragged: np.ndarray  # the same in padded batches
    settled: np.ndarray  # the same, stopped early
    depths: np.ndarray  # (sentences,) int32, layers used by the early stop
    first_call_ns: int  # the very first sentence: tracing and planning
    first_seen_ns: list[int]  # sentences whose number of tokens had not been seen before
    repeated_ns: list[int]  # the same sentences once more
    stats: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]  # step -> the runtime's before and after it

    def digest(self) -> str:
        """Of all bytes: equal in every mode, whatever was killed on the way."""
        state = hashlib.blake2b(digest_size=16)
        for array in (self.plain, self.ragged, self.settled, self.depths):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


@dataclass(frozen=True, slots=True)
class Check:
    """How far it is from the reference."""

    plain_error: float  # largest difference of any number
    ragged_error: float
    settled_error: float
    depths_wrong: list[int]  # sentences that stopped elsewhere although the reference's margin is wide enough
    close_calls: int  # sentences whose margin is too narrow to ask for the same depth

    def problems(self) -> list[str]:
        """What is wrong, in words; empty if nothing is."""
        named = (
            ("one at a time", self.plain_error),
            ("ragged batches", self.ragged_error),
            ("early stop", self.settled_error),
        )
        found = [
            f"{name}: difference from the float64 reference, got {error:.3g}, allowed {ERROR_MAX:g}"
            for name, error in named
            if not error <= ERROR_MAX
        ]
        if self.depths_wrong:
            found.append(
                f"early stop: sentences that stopped after another layer than the reference, got "
                f"numbers {self.depths_wrong[:10]} ({len(self.depths_wrong)} in all), allowed none"
            )
        return found


def encode(encoder: Encoder, ids: list[np.ndarray], advance: Advance, stats: Stats) -> Encoded:
    """The three ways through all sentences. ids: one (tokens,) int32 array a sentence."""
    marks = {}

    def marked(step: str, way: Callable[..., Any], *more: np.ndarray) -> Any:
        before = stats()
        result = way(encoder, ids, *more, advance)
        marks[step] = (before, stats())
        return result

    plain, times = marked(STEPS[0], _one_at_a_time)
    repeated_ns = marked(STEPS[1], _again, plain)
    ragged = marked(STEPS[2], _in_batches)
    stopped, depths = marked(STEPS[3], _until_settled)
    first_seen_ns = [times[number] for number in first_seen(ids)]
    return Encoded(plain, ragged, stopped, depths, times[0], first_seen_ns, repeated_ns, marks)


def first_seen(ids: list[np.ndarray]) -> list[int]:
    """The sentences whose number of tokens none before them has; without the very first, which is planned as well."""
    seen = {len(ids[0])}
    return [
        number for number, tokens in enumerate(ids) if len(tokens) not in seen and not seen.add(len(tokens))
    ]


def _one_at_a_time(encoder: Encoder, ids: list[np.ndarray], advance: Advance) -> tuple[np.ndarray, list[int]]:
    rows, times = [], []
    for tokens in ids:
        row, took_ns = _timed(encoder, tokens)
        rows.append(row)
        times.append(took_ns)
        advance(STEPS[0], 1)
    return np.concatenate(rows), times


def _again(encoder: Encoder, ids: list[np.ndarray], plain: np.ndarray, advance: Advance) -> list[int]:
    """The sentences that were the first of their length once more. A row that differs now becomes NaN: the check finds it."""
    times = []
    for number in first_seen(ids):
        row, took_ns = _timed(encoder, ids[number])
        times.append(took_ns)
        if row.tobytes() != plain[number].tobytes():
            plain[number] = np.nan
        advance(STEPS[1], 1)
    return times


def _timed(encoder: Encoder, tokens: np.ndarray) -> tuple[np.ndarray, int]:
    """One sentence from token ids to an embedding in NumPy, and the nanoseconds in between."""
    began = time.perf_counter_ns()
    row = np.asarray(encoder.embed(dvm.asarray(tokens[None])))
    return row, time.perf_counter_ns() - began


def _in_batches(encoder: Encoder, ids: list[np.ndarray], advance: Advance) -> np.ndarray:
    """All batches are issued before the first result is asked for: the device may be as far behind as it likes."""
    batches = []
    for numbers in ragged_batches(ids):
        padded, mask = pad([ids[number] for number in numbers])
        batches.append(encoder.embed(dvm.asarray(padded), dvm.asarray(mask)))
    rows = []
    for batch in batches:
        rows.append(np.asarray(batch))
        advance(STEPS[2], len(rows[-1]))
    return np.concatenate(rows)


def _until_settled(
    encoder: Encoder, ids: list[np.ndarray], advance: Advance
) -> tuple[np.ndarray, np.ndarray]:
    rows, depths = [], []
    for tokens in ids:
        row, depth = encoder.embed_until_settled(dvm.asarray(tokens[None]), THRESHOLD)
        rows.append(np.asarray(row))
        depths.append(depth)
        advance(STEPS[3], 1)
    return np.concatenate(rows), np.array(depths, np.int32)


def check(encoded: Encoded, reference: Reference, ids: list[np.ndarray], advance: Advance) -> Check:
    """Computes every sentence in float64 and compares."""
    plain_error = ragged_error = settled_error = 0.0
    wrong, close_calls = [], 0
    for number, tokens in enumerate(ids):
        layers = list(reference.embeddings(tokens))
        depth, margin = settled(layers, THRESHOLD)
        plain_error = _worse(plain_error, encoded.plain[number], layers[-1])
        ragged_error = _worse(ragged_error, encoded.ragged[number], layers[-1])
        settled_error = _worse(settled_error, encoded.settled[number], layers[encoded.depths[number]])
        close_calls += bool(margin <= MARGIN_MIN)
        if encoded.depths[number] != depth and margin > MARGIN_MIN:
            wrong.append(number)
        advance(STEPS[4], 1)
    return Check(plain_error, ragged_error, settled_error, wrong, close_calls)


def _worse(error: float, got: np.ndarray, wanted: np.ndarray) -> float:
    """The larger of the error so far and this one; NaN counts as infinite."""
    found = float(np.abs(got - wanted).max())
    return max(error, found if np.isfinite(found) else np.inf)
