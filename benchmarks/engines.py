"""The engines that are compared: each turns a case into something that runs, in its own best setting.

`engines(names)` gives those that are installed, and why the others are absent. An engine loads a case once (weights are
constants where it knows such a thing), then binds inputs of one shape and gives a function without arguments that runs once and
whose result is whole when it returns. THREADS threads each; dvm_rt reads them from the environment.

    dvm          dvm_rt inline: plan once, encode for each shape
    torch        PyTorch eager, inference mode; with out= where the case has such a form and it is faster at that shape
    torch-linear torch.nn.functional.linear, for products with constant weights
    inductor     torch.compile, static shapes (dynamic=False), recompile limit raised
    inductor-dyn torch.compile(dynamic=True)
    onnxruntime  the export of the PyTorch function with dynamic axes, all optimisations, one session for all shapes,
    inputs and outputs bound
    jax          jax.jit
    numpy        plain NumPy, float32; with out= as above
    numexpr      where the case has an expression; float32 constants
    mindspore    graph mode O0, in the environment whose Python MINDSPORE_PYTHON names (benchmarks/mindspore_child.py)"""

from __future__ import annotations

import io
import os
import subprocess
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import mindspore_child, spaces

if TYPE_CHECKING:
    from benchmarks.cases import Case

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
Run = Callable[[], object]
Arrays = list[np.ndarray]


class Engine:
    """One engine; `load` before `bind`. `result` makes a NumPy array of what a run gave; `seconds` is the time of so
    many runs."""

    name = ""
    for_each_shape = False  # whether it builds something anew for each shape
    out: Callable | None = None  # the form of the case that writes into a result that is there
    exported_s = 0.0  # seconds of loading so far that went into another format, which its users have in a file

    def can(self, case: Case) -> bool:
        """Whether the case is one for it at all."""
        return True

    def load(self, case: Case, weights: Arrays) -> None:
        raise NotImplementedError

    def bind(self, inputs: Arrays) -> Run:
        raise NotImplementedError

    def result(self, value: object) -> np.ndarray:
        return np.asarray(value)

    def seconds(self, run: Run, count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            run()
        return time.perf_counter() - begin

    def compiled_s(self) -> float | None:
        """Seconds spent so far on turning plans into programs, for an engine that counts them."""
        return None

    def faster(self, runs: list[Run]) -> Run:
        """The fastest of several forms of the same."""
        return min(runs, key=lambda run: min(self.seconds(run, 1) for _ in range(4))) if len(runs) > 1 else runs[0]


class Dvm(Engine):
    name = "dvm"

    def __init__(self) -> None:
        import dvm_rt as dvm
        from dvm_rt.runtime import current

        self.dvm, self.space, self.runtime = dvm, spaces.Dvm(), current

    def load(self, case: Case, weights: Arrays) -> None:
        self.function = self.dvm.function(lambda *arrays: case.function(self.space, *arrays))
        self.weights = [self.dvm.asarray(w) for w in weights]

    def bind(self, inputs: Arrays) -> Run:
        function, arrays = self.function, [*(self.dvm.asarray(x) for x in inputs), *self.weights]
        return lambda: function(*arrays)

    def compiled_s(self) -> float:
        stats = self.runtime().stats()
        return (stats["encode_ns"] + stats["load_ns"]) / 1e9


class Torch(Engine):
    name = "torch"

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.torch, self.space = torch, spaces.Torch()

    def load(self, case: Case, weights: Arrays) -> None:
        self.module = self._module(case, weights)
        self.out, self.weights = case.out, [self.torch.from_numpy(w) for w in weights]

    def _module(self, case: Case, weights: Arrays) -> object:
        space, torch = self.space, self.torch

        class Module(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for i, w in enumerate(weights):
                    self.register_buffer(f"w{i}", torch.from_numpy(w))

            def forward(self, *inputs: object) -> object:
                return case.function(space, *inputs, *(getattr(self, f"w{i}") for i in range(len(weights))))

        return Module().eval()

    def bind(self, inputs: Arrays) -> Run:
        module, tensors, inference = self.module, [self.torch.from_numpy(x) for x in inputs], self.torch.inference_mode

        def run() -> object:
            with inference():
                return module(*tensors)

        if not self.out:
            return run
        into, given, made = self.out, [*tensors, *self.weights], run()
        result, spare = self.torch.empty_like(made), self.torch.empty_like(made)

        def run_into() -> object:
            with inference():
                into(self.torch, *given, result, spare)
                return result

        return self.faster([run, run_into])


class TorchLinear(Torch):
    name = "torch-linear"

    def can(self, case: Case) -> bool:
        return case.product

    def load(self, case: Case, weights: Arrays) -> None:
        self.rows = self.torch.from_numpy(weights[0].T.copy())

    def bind(self, inputs: Arrays) -> Run:
        x, rows, linear, inference = self.torch.from_numpy(
            inputs[0]), self.rows, self.torch.nn.functional.linear, self.torch.inference_mode

        def run() -> object:
            with inference():
                return linear(x, rows)

        return run


class Inductor(Torch):
    """Compiles a small function when it is made: what a process pays once is in no row."""

    name = "inductor"
    dynamic, for_each_shape, out = False, True, None

    def __init__(self) -> None:
        super().__init__()
        import torch._dynamo
        import torch._inductor.config

        torch = self.torch
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
        torch._inductor.config.freezing = True
        torch.compile(lambda x: torch.tanh(x) + 1)(torch.ones(3, 5))

    def load(self, case: Case, weights: Arrays) -> None:
        self.torch._dynamo.reset()
        self.module = self.torch.compile(self._module(case, weights), dynamic=self.dynamic)


class InductorDynamic(Inductor):
    name = "inductor-dyn"
    dynamic, for_each_shape = True, False


class OnnxRuntime(Torch):
    name = "onnxruntime"

    def __init__(self) -> None:
        super().__init__()
        import onnx  # noqa: F401  (torch needs it to export)
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        self.onnxruntime = onnxruntime

    def load(self, case: Case, weights: Arrays) -> None:
        module, file, begin = self._module(case, weights), io.BytesIO(), time.perf_counter()
        example = case.inputs(np.random.default_rng(0), *next(iter(case.shapes.values())))
        names = [f"x{i}" for i in range(len(example))]
        axes = {name: {d: f"{name}_{d}" for d in range(x.ndim)} for name, x in zip(names, example, strict=True)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.torch.onnx.export(
                module, tuple(self.torch.from_numpy(x) for x in example), file, input_names=names, output_names=["y"],
                dynamic_axes=axes, opset_version=20, dynamo=False,
            )  # fmt: skip
        self.exported_s += time.perf_counter() - begin
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
        options.graph_optimization_level = self.onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = self.onnxruntime.InferenceSession(file.getvalue(), options, ["CPUExecutionProvider"])

    def bind(self, inputs: Arrays) -> Run:
        binding, run = self.session.io_binding(), self.session.run_with_iobinding
        for i, x in enumerate(inputs):
            binding.bind_ortvalue_input(f"x{i}", self.onnxruntime.OrtValue.ortvalue_from_numpy(x))
        binding.bind_output("y", "cpu")

        def bound() -> object:
            run(binding)
            return binding

        return bound

    def result(self, value: object) -> np.ndarray:
        return value.copy_outputs_to_cpu()[0]


class Jax(Engine):
    name = "jax"
    for_each_shape = True

    def __init__(self) -> None:
        if THREADS == 1:
            os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        self.jax, self.space = jax, spaces.Jax()

    def load(self, case: Case, weights: Arrays) -> None:
        constants = [self.jax.numpy.asarray(w) for w in weights]
        self.function = self.jax.jit(lambda *inputs: case.function(self.space, *inputs, *constants))

    def bind(self, inputs: Arrays) -> Run:
        function, arrays = self.function, [self.jax.numpy.asarray(x) for x in inputs]
        return lambda: function(*arrays).block_until_ready()


class NumPy(Engine):
    name = "numpy"

    def load(self, case: Case, weights: Arrays) -> None:
        self.case, self.out, self.weights = case, None if case.torch_only else case.out, weights

    def bind(self, inputs: Arrays) -> Run:
        function, into, given = self.case.function, self.out, [*inputs, *self.weights]
        runs = [lambda: function(spaces.NumPy, *given)]
        if into:
            result, spare = (np.empty_like(runs[0]()) for _ in range(2))

            def run_into() -> np.ndarray:
                into(np, *given, result, spare)
                return result

            runs.append(run_into)
        return self.faster(runs)


class NumExpr(Engine):
    name = "numexpr"

    def __init__(self) -> None:
        import numexpr

        numexpr.set_num_threads(THREADS)
        self.numexpr = numexpr

    def can(self, case: Case) -> bool:
        return bool(case.expression)

    def load(self, case: Case, weights: Arrays) -> None:
        self.expression = case.expression

    def bind(self, inputs: Arrays) -> Run:
        given = {f"x{i}": x for i, x in enumerate(inputs)} | {"half": np.float32(0.5), "two": np.float32(2)}
        expression, evaluate = self.expression, self.numexpr.evaluate
        result = np.empty_like(evaluate(expression, given))
        return self.faster([lambda: evaluate(expression, given), lambda: evaluate(expression, given, out=result)])


class MindSpore(Engine):
    """Its own process measures its runs, so that no time is lost between the two."""

    name = "mindspore"
    for_each_shape = True

    def __init__(self) -> None:
        python = os.environ.get("MINDSPORE_PYTHON")
        if not python:
            raise ImportError("MINDSPORE_PYTHON names no Python")
        if subprocess.run([python, "-c", "import mindspore"], capture_output=True, check=False).returncode:
            raise ImportError(f"{python} has no mindspore")
        command = [python, mindspore_child.__file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def load(self, case: Case, weights: Arrays) -> None:
        self._ask({"do": "load", "suite": case.suite, "case": case.name}, weights)

    def bind(self, inputs: Arrays) -> Run:
        number = self._ask({"do": "bind"}, inputs)[0]["run"]
        return partial(self._ask, {"do": "run", "run": number, "count": 1})

    def result(self, value: object) -> np.ndarray:
        return value[1][0]

    def seconds(self, run: Run, count: int) -> float:
        return self._ask({**run.args[0], "count": count})[0]["seconds"]

    def _ask(self, what: dict[str, object], arrays: Arrays = ()) -> tuple[dict, Arrays]:
        mindspore_child.send(self.process.stdin, what, arrays)
        answer, results = mindspore_child.receive(self.process.stdout) or ({"error": "its process is gone"}, [])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer, results


ENGINES: dict[str, type[Engine]] = {
    e.name: e for e in (Dvm, Torch, TorchLinear, Inductor, InductorDynamic, OnnxRuntime, Jax, NumPy, NumExpr, MindSpore)
}  # fmt: skip


def engines(names: list[str]) -> tuple[list[Engine], dict[str, str]]:
    """(those that can be had, why the others are absent); dvm first."""
    found, absent = [], {}
    for name in dict.fromkeys(["dvm", *names]):
        try:
            found.append(ENGINES[name]())
        except ImportError as error:
            absent[name] = str(error)
    return found, absent
