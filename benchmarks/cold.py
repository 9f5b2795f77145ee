"""From a Python function and weights in memory to the first result, in a process that is warm otherwise:

    python -m benchmarks.cold ENGINE [CASE]       (started by the suite `requests`; prints milliseconds)

A process of its own, because plans and compiled kernels of a structure that was seen are known. Warm: the engine is
imported and has run another model. Timed: everything from the function to a result that is whole: tracing, planning
or compiling, packing weights. ONNX Runtime starts from an exported file, as its users do: export is not in it, making
the session is."""

from __future__ import annotations

import sys
import time

import numpy as np

from benchmarks.cases import CASES
from benchmarks.engines import ENGINES

WARM, COLD = "mlp 256-1024", "6-layer encoder"


def main() -> None:
    engine = ENGINES[sys.argv[1]]()
    by_name, rng = {c.name: c for c in CASES}, np.random.default_rng(0)
    for name in (WARM, *(sys.argv[2:] or [COLD])):
        case = by_name[name]
        weights, inputs = case.weights(rng), case.inputs(rng, *next(iter(case.shapes.values())))
        exported, begin = engine.exported_s, time.perf_counter()
        engine.load(case, weights)
        engine.result(engine.bind(inputs)())
        spent = time.perf_counter() - begin - (engine.exported_s - exported)
    print(1e3 * spent)


if __name__ == "__main__":
    main()
