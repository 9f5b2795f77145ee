"""Host functions on the operands of a launch: memory becomes arrays, a function of `isa/host.py` runs, its result is stored.

The native machine calls `call` at a HOST section, in the process that runs the program: the device, or the client where the
runtime is inline. NumPy is imported when the first one runs. Only memory that the verifier proved to be the operands' own is
reachable here; inputs cannot be written. What fails here is the trap of one launch."""

from __future__ import annotations

import numpy as np

from dvm_rt import dtypes
from dvm_rt.isa import host

OK, RANGE, FAILED = 0, 1, 2


def call(number: int, attributes: tuple[int, ...],
         operands: list[tuple[int, tuple[int, ...], memoryview | None]]) -> tuple[int, int, int]:
    """Runs function `number` on operands (dtype code, shape, memory; None where it is empty), the last one the output.

    Gives (OK, 0, 0), or (RANGE, got, allowed), or (FAILED, 0, 0)."""
    try:
        *inputs, output = (_array(*operand) for operand in operands)
        dtype = dtypes.DTYPES[operands[-1][0]]
        result = np.empty(output.shape, np.float32) if dtype is dtypes.bfloat16 else output
        values = [_computed(x, dtypes.DTYPES[code]) for x, (code, _, _) in zip(inputs, operands, strict=False)]
        host.run(number, values, attributes, result)
        _store(result, output, dtype)
    except host.OutOfRange as error:
        return RANGE, error.got, error.allowed
    except Exception:  # whatever it is, it is this launch's alone
        return FAILED, 0, 0
    return OK, 0, 0


def _array(code: int, shape: tuple[int, ...], memory: memoryview | None) -> np.ndarray:
    numpy = np.dtype(np.uint16) if dtypes.DTYPES[code] is dtypes.bfloat16 else dtypes.DTYPES[code].numpy
    return np.zeros(shape, numpy) if memory is None else np.frombuffer(memory, numpy).reshape(shape)


def _computed(x: np.ndarray, dtype: dtypes.DType) -> np.ndarray:
    """bfloat16 as the float32 that it stands for; the rest as it is."""
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype is dtypes.bfloat16 else x


def _store(result: np.ndarray, output: np.ndarray, dtype: dtypes.DType) -> None:
    """NaN becomes canonical; bfloat16 is rounded to nearest even."""
    if result.dtype.kind == "f":
        result[np.isnan(result)] = np.nan
    if dtype is dtypes.bfloat16:
        bits = result.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        output[...] = np.where(np.isnan(result), 0x7FC0, rounded)
