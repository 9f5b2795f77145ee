"""Loops that look at a value: a stack of layers that is left when it is sure, and an iteration until it has converged."""

from __future__ import annotations

import time

import numpy as np

import dvm_rt as dvm
from dynamic.report import Report, Tell, error_of, normal

# ---- early exit ----


@dvm.function
def layer(x, w, b, head):
    """One residual layer, and how sure the classifier is after it: (1, d) -> (1, d) and one number."""
    x = x + dvm.tanh(x @ w + b)
    return x, dvm.max(dvm.softmax(x @ head, axis=-1))


def early_exit(x: dvm.Array, layers: list, head: dvm.Array, sure: float) -> tuple[dvm.Array, int]:
    """What the first sure layer gives, and how many layers that took."""
    for depth, (w, b) in enumerate(layers, 1):
        x, confidence = layer(x, w, b, head)
        if float(confidence) >= sure:
            break
    return x, depth


@dvm.function
def early_exit_structured(x, sure, head, *weights):
    """What the first sure layer gives, as one launch: the device takes the branches. `weights`: w and b of each layer in turn."""

    def rest(x, depth):
        x, confidence = layer(x, *weights[2 * depth : 2 * depth + 2], head)
        if 2 * depth + 2 == len(weights):
            return x
        return dvm.cond(confidence < sure, lambda x: rest(x, depth + 1), lambda x: x, x)

    return rest(x, 0)


def early_exit_weights(rng: np.random.Generator, width: int, depth: int, classes: int) -> tuple[list, np.ndarray]:
    return [(normal(rng, width, width), 0.1 * normal(rng, width)) for _ in range(depth)], normal(rng, width, classes)


def early_exit_reference(x: np.ndarray, layers: list, head: np.ndarray, sure: float) -> tuple[np.ndarray, int, float]:
    """The same in float64, and how near any confidence came to the threshold."""
    x, margin = x.astype(np.float64), 1.0
    for depth, (w, b) in enumerate(layers, 1):
        x = x + np.tanh(x @ w.astype(np.float64) + b)
        scores = np.exp(x @ head.astype(np.float64))
        confidence = scores.max() / scores.sum()
        margin = min(margin, abs(confidence - sure))
        if confidence >= sure:
            break
    return x, depth, margin


def run_early_exit(seed: int, tell: Tell, width: int = 128, depth: int = 16, inputs: int = 200,
                   sure: float = 0.6) -> list[Report]:
    rng = np.random.default_rng(seed)
    layers, head = early_exit_weights(rng, width, depth, 10)
    given = [0.3 * rng.standard_normal((1, width), np.float32) for _ in range(inputs)]
    held, held_head = [(dvm.asarray(w), dvm.asarray(b)) for w, b in layers], dvm.asarray(head)
    wanted = [early_exit_reference(x, layers, head, sure) for x in given]
    begin, found = time.perf_counter(), []
    for done, x in enumerate(given, 1):
        y, used = early_exit(dvm.asarray(x), held, held_head, sure)
        found.append((np.asarray(y), used))
        tell(done, inputs)
    seconds = time.perf_counter() - begin
    decided = [(got, want) for got, want in zip(found, wanted, strict=True) if want[2] > 1e-5]
    agrees = all(got[1] == want[1] for got, want in decided)
    error = max(error_of(got[0], want[0]) for got, want in decided) if agrees else float("inf")
    steps = sum(used for _, used in found)
    what = f"d = {width}, {inputs} inputs, {steps / inputs:.1f} of {depth} layers used"
    return [Report("early exit", what, "layer", steps, seconds, error, agrees)]


# ---- until it has converged ----


@dvm.function
def sweep(x, b):
    """One Jacobi sweep for 2.5 x[i] - x[i - 1] - x[i + 1] = b[i], and how far it moved."""
    new = (b + dvm.pad(x[:-1], ((1, 0),)) + dvm.pad(x[1:], ((0, 1),))) * 0.4
    return new, dvm.max(dvm.abs(new - x))


def solve(b: dvm.Array, tolerance: float, sweeps_max: int = 1000) -> tuple[dvm.Array, int]:
    """x, and the number of sweeps."""
    x = dvm.zeros(b.shape)
    for count in range(1, sweeps_max + 1):
        x, moved = sweep(x, b)
        if float(moved) <= tolerance:
            break
    return x, count


@dvm.function
def solve_structured(b, tolerance):
    """The same as one launch: the device decides on the next sweep by itself. Raises DeviceTrap after 1,000 sweeps."""

    def body(x, moved, count):
        return *sweep(x, b), count + 1

    x, _, count = dvm.while_loop(lambda x, moved, count: moved > tolerance, body, (*sweep(dvm.zeros(b.shape), b), 1), limit=1000)
    return x, count


def solve_exactly(b: np.ndarray) -> np.ndarray:
    """The solution in float64, by elimination (Thomas)."""
    n, b = len(b), b.astype(np.float64)
    above, right = np.zeros(n), np.zeros(n)
    above[0], right[0] = 1 / 2.5, b[0] / 2.5
    for i in range(1, n):
        pivot = 2.5 - above[i - 1]
        above[i], right[i] = 1 / pivot, (b[i] + right[i - 1]) / pivot
    for i in range(n - 2, -1, -1):
        right[i] += above[i] * right[i + 1]
    return right


def run_converged(seed: int, tell: Tell, size: int = 10_000, systems: int = 20) -> list[Report]:
    rng = np.random.default_rng(seed)
    total, error, seconds = 0, 0.0, 0.0
    for done in range(1, systems + 1):
        b = rng.standard_normal(size, np.float32) * np.float32(10.0 ** rng.integers(-3, 2))
        begin = time.perf_counter()
        x, count = solve(dvm.asarray(b), 1e-6 * float(np.abs(b).max()))
        got = np.asarray(x)
        seconds, total = seconds + time.perf_counter() - begin, total + count
        error = max(error, error_of(got / np.abs(b).max(), solve_exactly(b) / np.abs(b).max()))
        tell(done, systems)
    return [Report("until converged", f"Jacobi, n = {size}, {systems} systems", "sweep", total, seconds, error, True)]
