"""A gated feed-forward block written by hand: python examples/kernel.py

Five sections, so five kernels, in one launch for every shape. The two products are parts of a `parallel` block: neither may
read the other. Prints what each section became, and how far the result is from NumPy in float64."""

from __future__ import annotations

import numpy as np

import dvm_rt as dvm


@dvm.kernel
def gated(k, x, gate, up, down):
    """x (rows, width), gate and up (width, inner), down (inner, width): x + (silu(n @ gate) * (n @ up)) @ down, n normalised."""
    with k.section("norm"):
        rows = k.load(x)
        normalised = rows / k.sqrt(k.mean(k.square(rows)) + 1e-6)
    with k.parallel():
        with k.section("gate"):
            opened = k.silu(k.matmul(normalised, k.load(gate)))
        with k.section("up"):
            raised = k.matmul(normalised, k.load(up))
    with k.section("gated"):
        inner = opened * raised
    with k.section("down"):
        k.store(rows + k.matmul(inner, k.load(down)))


def reference(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """The same in float64."""
    x, gate, up, down = (a.astype(np.float64) for a in (x, gate, up, down))
    normalised = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    opened = normalised @ gate
    return x + (opened / (1 + np.exp(-opened)) * (normalised @ up)) @ down


def main() -> None:
    """Runs it for some shapes that were never seen before."""
    rng = np.random.default_rng(0)
    weights = [(rng.normal(size=shape) * 0.1).astype(np.float32) for shape in ((64, 160), (64, 160), (160, 64))]
    held = [dvm.asarray(w) for w in weights]
    for rows in (1, 37, 200):
        x = rng.normal(size=(rows, 64)).astype(np.float32)
        result = np.asarray(gated(dvm.asarray(x), *held))
        print(f"{rows:4} rows: at most {np.abs(result - reference(x, *weights)).max():.1e} from float64")
    print(dvm.explain(gated, dvm.asarray(x), *held))


if __name__ == "__main__":
    main()
