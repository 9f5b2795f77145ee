"""Element types: one row each, shared by the wire, the programs and the arrays.

Owns the numeric code of every dtype (it travels in programs and plans) and its NumPy type. bfloat16 has no NumPy
type of its own: it is stored as uint16 and only ever converted at loads and stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dvm_rt.errors import DTypeError


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. `kind` is "b" bool, "i" signed, "u" unsigned, "f" float; `bytes` the size of one element."""

    name: str
    code: int
    bytes: int
    kind: str
    numpy: np.dtype

    def __repr__(self) -> str:
        return self.name


def _row(code: int, name: str, size: int, kind: str, numpy_name: str | None = None) -> DType:
    return DType(name, code, size, kind, np.dtype(numpy_name or name))


bool_ = _row(0, "bool", 1, "b")
int8 = _row(1, "int8", 1, "i")
int16 = _row(2, "int16", 2, "i")
int32 = _row(3, "int32", 4, "i")
int64 = _row(4, "int64", 8, "i")
uint8 = _row(5, "uint8", 1, "u")
uint16 = _row(6, "uint16", 2, "u")
uint32 = _row(7, "uint32", 4, "u")
uint64 = _row(8, "uint64", 8, "u")
float16 = _row(9, "float16", 2, "f")
bfloat16 = _row(10, "bfloat16", 2, "f", "uint16")
float32 = _row(11, "float32", 4, "f")
float64 = _row(12, "float64", 8, "f")

DTYPES: tuple[DType, ...] = (
    bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float16, bfloat16, float32, float64,
)  # fmt: skip
BY_NAME: dict[str, DType] = {d.name: d for d in DTYPES}
_BY_NUMPY: dict[np.dtype, DType] = {d.numpy: d for d in DTYPES if d is not bfloat16}


def from_numpy(dtype: np.dtype | type | str, who: str = "dtypes") -> DType:
    """The DType of a NumPy dtype in native byte order. Raises DTypeError for object, string, complex and the like."""
    found = _BY_NUMPY.get(np.dtype(dtype))
    if found is None:
        raise DTypeError(f"{who}: dtype: not supported, got {np.dtype(dtype)}, allowed {', '.join(BY_NAME)}")
    return found
