"""Builds graphs with one symbol a dimension, and runs their plans: native encoder, verifier and machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dvm_rt import _native
from dvm_rt.dtypes import from_numpy
from dvm_rt.fusion.fuser import Fused, fuse
from dvm_rt.fusion.plan import NONE, Plan
from dvm_rt.graph.graph import Graph, Make, Node, evaluate, parameter
from dvm_rt.graph.symbols import Facts, symbol
from dvm_rt.isa import matmul


def graph_of(build: Callable[..., Node | tuple[Node, ...]], arrays: Sequence[np.ndarray]) -> Graph:
    """The graph of build(op, *parameters): every dimension but those of size 1 is a symbol."""
    facts, count, parameters = Facts(), 0, []
    for index, array in enumerate(arrays):
        shape = []
        for size in array.shape:
            shape.append(1 if size == 1 else symbol(count))
            count += size != 1
        parameters.append(parameter(index, tuple(shape), from_numpy(array.dtype)))
    outputs = build(Make(facts), *parameters)
    return Graph.of(parameters, outputs if isinstance(outputs, tuple) else (outputs,), facts)


def run_plan(plan: Plan, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a plan. Memory that nothing writes holds a pattern that no test expects."""
    symbols, arguments, outputs = prepared(plan, arrays)
    program = _native.Plan(plan.to_bytes()).encode(symbols)
    if program:
        _native.Program(program).run(arguments)
    return outputs


def prepared(plan: Plan, arrays: Sequence[np.ndarray]) -> tuple[list[int], list[np.ndarray], list[np.ndarray]]:
    """(symbols, arguments, outputs) of a call of a plan."""
    symbols = [arrays[s.parameter].shape[s.dim] for s in plan.symbols]
    values = plan.evaluate(symbols)
    outputs = [np.full([values[d] for d in o.dims], 77, o.dtype.numpy) for o in plan.outputs]
    arguments = []
    for buffer in plan.buffers:
        if buffer.role == "PARAMETER":
            arguments.append(np.ascontiguousarray(arrays[buffer.index]).copy())
        elif buffer.role == "PACKED":
            arguments.append(_packed(plan, buffer.pack, values, arrays))
        elif buffer.role == "OUTPUT":
            arguments.append(outputs[buffer.index])
    return symbols, arguments, outputs


def _packed(plan: Plan, number: int, values: list[int], arrays: Sequence[np.ndarray]) -> np.ndarray:
    parts = []
    for pack in plan.packs[number : number + 1 + plan.packs[number].more]:
        flat = np.ascontiguousarray(arrays[pack.parameter]).ravel()
        offset, size = 0 if pack.offset == NONE else values[pack.offset], flat.itemsize
        shape, strides = (values[pack.k], values[pack.n]), (size * values[pack.stride_k], size * values[pack.stride_n])
        if shape[0] == 0:
            return np.zeros(0, flat.dtype)
        parts.append(np.lib.stride_tricks.as_strided(flat[offset:], shape, strides))
    return matmul.pack(np.concatenate(parts, axis=1))


def check(
    build: Callable[..., Node | tuple[Node, ...]], arrays: Sequence[np.ndarray], rtol: float = 1e-5, atol: float = 1e-5
) -> Fused:
    """Holds fused against unfused (bits) and against NumPy in float64; gives what was fused."""
    graph = graph_of(build, arrays)
    fused = fuse(graph)
    got, alone = run_plan(fused.plan, arrays), run_plan(fuse(graph, fused=False).plan, arrays)
    for number, (a, b, want) in enumerate(zip(got, alone, evaluate(graph, arrays), strict=True)):
        assert a.shape == want.shape, f"output {number}: {a.shape}, allowed {want.shape}"
        assert a.tobytes() == b.tobytes(), f"output {number}: fused is not unfused\n{fused.report.text()}"
        scale = np.max(np.abs(want[np.isfinite(want)]), initial=1.0) if want.dtype != bool else 1.0
        np.testing.assert_allclose(a.astype(np.float64), want.astype(np.float64), rtol, atol * scale)
    return fused


def normal(*shape: int, seed: int | None = None) -> np.ndarray:
    """Fresh random float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
