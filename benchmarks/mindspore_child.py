"""MindSpore's side of the comparison, run by the Python of its own environment (it needs an older NumPy):

    PYTHON benchmarks/mindspore_child.py       (started by benchmarks.engines; speaks over its standard input and output)

Graph mode at level O0, functions captured by tracing, one graph for each shape, CPU. A message is a line of JSON,
then the bytes of the float32 arrays whose shapes it names."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

if __name__ == "__main__":  # a script and no module: MindSpore's tracer reads the source line of every frame
    sys.path[0] = str(Path(__file__).parent.parent)
from benchmarks import cases, spaces


class MindSpore(spaces.NumPy):
    """mindspore.mint and mindspore.ops; spelled out where the CPU has no kernel (layer_norm, rms_norm)."""

    def __init__(self) -> None:
        from mindspore import mint, ops

        for name in ("exp", "tanh", "sqrt", "abs", "maximum", "minimum", "where", "log", "erf", "sigmoid"):
            setattr(self, name, getattr(mint, name))
        self.gelu, self.silu, self.linear = lambda x: ops.gelu(x, approximate="none"), ops.silu, ops.dense
        self.sum = lambda x, axis: mint.sum(x, axis, keepdim=True)
        self.mean = lambda x, axis: mint.mean(x, axis, keepdim=True)
        self.max = lambda x, axis: ops.amax(x, axis, keepdims=True)
        self.split = lambda x, count: list(mint.split(x, x.shape[-1] // count, -1))
        self.concat = lambda arrays, axis=-1: mint.cat(arrays, axis)
        self.reshape, self.transpose, self.softmax = ops.reshape, ops.transpose, lambda x: ops.softmax(x, -1)
        self._ops = ops

    def layer_norm(self, x, weight, bias):  # noqa: ANN001, ANN201
        centred = x - self.mean(x, -1)
        return centred / self.sqrt(self.mean(centred * centred, -1) + 1e-5) * weight + bias

    def rms_norm(self, x, weight):  # noqa: ANN001, ANN201
        return x / self.sqrt(self.mean(x * x, -1) + 1e-6) * weight

    def attention(self, q, k, v, causal=False):  # noqa: ANN001, ANN201
        ops = self._ops
        scores = ops.matmul(q, ops.swapaxes(k, -1, -2)) * (1 / q.shape[-1] ** 0.5)
        if causal:
            from mindspore import Tensor

            seen = np.tril(np.ones(scores.shape[-2:], bool), scores.shape[-1] - scores.shape[-2])
            scores = scores + Tensor(np.where(seen, 0, -np.inf).astype(np.float32))
        return ops.matmul(self.softmax(scores), v)


def send(stream: BinaryIO, message: dict[str, object], arrays: Sequence[np.ndarray]) -> None:
    """Writes a message with its arrays."""
    stream.write(json.dumps({**message, "shapes": [a.shape for a in arrays]}).encode() + b"\n")
    for array in arrays:
        stream.write(np.ascontiguousarray(array, np.float32).tobytes())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict, list[np.ndarray]] | None:
    """The next message and its arrays; None at the end."""
    line = stream.readline()
    if not line:
        return None
    message = json.loads(line)
    arrays = [np.frombuffer(stream.read(4 * prod(shape)), np.float32).reshape(shape) for shape in message.pop("shapes")]
    return message, arrays


def main() -> None:
    commands, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # MindSpore prints
    import mindspore

    mindspore.set_context(mode=mindspore.GRAPH_MODE, device_target="CPU")
    space, weights, runs = MindSpore(), [], []
    case: cases.Case | None = None

    def traced() -> Callable[..., object]:
        return mindspore.jit(lambda *arrays: case.function(space, *arrays), capture_mode="trace", jit_level="O0")

    while message := receive(commands):
        said, arrays, answer, results = message[0], [mindspore.Tensor(a) for a in message[1]], {}, []
        try:
            if said["do"] == "load":
                case = next(c for c in cases.CASES if (c.suite, c.name) == (said["suite"], said["case"]))
                weights, runs = arrays, []
            elif said["do"] == "bind":
                runs.append((traced(), [*arrays, *weights]))
                answer["run"] = len(runs) - 1
            else:
                function, given = runs[said["run"]]
                begin = time.perf_counter()
                for _ in range(said["count"]):
                    results = [function(*given).asnumpy()]
                answer["seconds"] = time.perf_counter() - begin
        except Exception as error:  # what it cannot do is a note in the table
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
        send(answers, answer, results)


if __name__ == "__main__":
    main()
