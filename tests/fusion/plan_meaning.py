"""What a plan means: its vector kernels in NumPy, node by node, from the meanings in the instruction table.

Independent of encoder, verifier and machine; slow and obvious."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dvm_rt import dtypes
from dvm_rt.dtypes import DType, bfloat16, bool_
from dvm_rt.fusion.plan import GATHER, NONE, WRITE, Arg, Kernel, Node, Plan
from dvm_rt.isa import table

REDUCTIONS = {"NODE_SUM": np.sum, "NODE_PROD": np.prod, "NODE_MAX": np.max, "NODE_MIN": np.min}


def evaluate(plan: Plan, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a plan, as they are stored. Memory that nothing writes is all ones."""
    values = plan.evaluate([arrays[s.parameter].shape[s.dim] for s in plan.symbols])
    memory: list[np.ndarray] = []
    for buffer in plan.buffers:
        if buffer.role == "PARAMETER":
            memory.append(np.ascontiguousarray(arrays[buffer.index]).ravel())
        else:
            memory.append(np.ones(values[buffer.bytes] // buffer.dtype.bytes, buffer.dtype.numpy))
    with np.errstate(all="ignore"):
        for kernel in plan.kernels:
            if kernel.kind == "COPY":
                _copy(kernel, values, memory)
            else:
                assert kernel.kind == "VECTOR"
                _run(kernel, values, memory)
    return [memory[o.buffer].reshape([values[d] for d in o.dims]) for o in plan.outputs]


def converted(stored: np.ndarray, given: DType, wanted: DType) -> np.ndarray:
    """As loads and stores convert: floats rounded to nearest even, integers wrapped, float to integer saturated."""
    if given is wanted:
        return stored
    if given is bfloat16:
        stored = dtypes.from_bits(stored)
    if wanted is bool_:
        return stored != 0
    if wanted.kind in "iu" and stored.dtype.kind == "f":
        return dtypes.rounded(stored, wanted)
    return dtypes.bfloat16_bits(stored.astype(np.float32)) if wanted is bfloat16 else stored.astype(wanted.numpy)


def _copy(kernel: Kernel, values: list[int], memory: list[np.ndarray]) -> None:
    source, target = kernel.args
    at, to = (_places(arg, [values[d] for d in kernel.dims], values) for arg in kernel.args)
    memory[target.buffer][to] = memory[source.buffer][at]


def _run(kernel: Kernel, values: list[int], memory: list[np.ndarray]) -> None:
    dims = [values[d] for d in kernel.dims]
    places = [_places(arg, dims, values) for arg in kernel.args]
    results: list[np.ndarray | None] = []

    def load(number: int) -> np.ndarray:
        arg, at = kernel.args[number], places[number]
        if arg.buffer == NONE:
            return at.astype(kernel.dtype.numpy)
        if arg.mode & GATHER:
            index = memory[kernel.args[arg.index].buffer][places[arg.index]]
            at = at + np.where(index < 0, index + values[arg.limit], index) * values[arg.depth]
        return converted(memory[arg.buffer][at], arg.dtype, kernel.dtype)

    for node in kernel.nodes:
        results.append(_node(node, kernel, values, results, load))
        if node.op == "NODE_OUTPUT":
            arg = kernel.args[node.b]
            assert arg.mode & WRITE
            at, result = places[node.b], results[node.a]
            if arg.strides[0] == NONE or values[arg.strides[0]] == 0:  # one value a row, also where rows are empty
                at = _places(arg, [1, *dims[1:]], values)
                result = result if result.ndim == 0 or result.shape[-1] == 1 else result[..., :1]
            memory[arg.buffer][at] = converted(np.broadcast_to(result, at.shape), kernel.dtype, arg.dtype)


def _places(arg: Arg, dims: list[int], values: list[int]) -> np.ndarray:
    at = np.array(0 if arg.offset == NONE else values[arg.offset])
    for d, size in enumerate(dims):
        stride = 0 if arg.strides[d] == NONE else values[arg.strides[d]]
        at = at + (np.arange(size) * stride).reshape(-1, *[1] * d)
    return np.broadcast_to(at, dims[::-1])


def _node(
    node: Node, kernel: Kernel, values: list[int], results: list, load: Callable[[int], np.ndarray]
) -> np.ndarray | None:
    own = kernel.dtype.numpy
    match node.op:
        case "NODE_INPUT":
            return load(node.a)
        case "NODE_CONST":
            return np.asarray(node.k, own)
        case "NODE_SIZE":
            return np.asarray(values[node.a]).astype(own)
        case "NODE_OUTPUT":
            return None
    if node.op in REDUCTIONS:
        x = np.broadcast_to(results[node.a], [values[d] for d in kernel.dims][::-1])
        wide = x.astype(np.float64) if own.kind == "f" else x
        more = {"dtype": wide.dtype} if node.op in ("NODE_SUM", "NODE_PROD") else {}
        return REDUCTIONS[node.op](wide, axis=-1, keepdims=True, **more).astype(own)
    row = table.BY_NAME[node.op]
    assert kernel.dtype.name in row.compute_dtypes, f"{node.op} in {kernel.dtype}"
    operands = [results[n] for n in (node.a, node.b) if n != NONE]
    if row.ulp:
        operands = [x.astype(np.float64) for x in operands]
    if len(operands) == 2:
        operands = list(np.broadcast_arrays(*operands))
    return row.meaning(*operands).astype(own)
