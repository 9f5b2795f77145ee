"""Element types: one row each, shared by the wire, the programs and the arrays.

Owns the numeric code of every dtype (it travels in programs and plans) and its NumPy type. bfloat16 has no NumPy
type of its own: it is stored as uint16 and only ever converted at loads and stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dvm_rt.errors import DTypeError


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """One element type: there is one object of each. `kind` is "b" bool, "i" signed, "u" unsigned, "f" float; `bytes`
    the size of one element."""

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


# ---- what is computed in what, and promotion ------------------------------------------------------------------------

DEFAULT_FLOAT, DEFAULT_INT, DEFAULT_UINT = float32, int64, uint64
_COMPUTE: dict[DType, DType] = {float16: float32, bfloat16: float32, int8: int32, int16: int32, uint8: int32, uint16: int32}
_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2}


def compute_dtype(dtype: DType) -> DType | None:
    """The dtype that a kernel computes values of this dtype in; None for bool, which is 1 and 0 in any."""
    return None if dtype is bool_ else _COMPUTE.get(dtype, dtype)


def is_computed(dtype: DType) -> bool:
    """Whether kernels compute in this very dtype: nothing has to be rounded or wrapped."""
    return dtype is not bool_ and dtype not in _COMPUTE


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is one of `wide`."""
    if wide is narrow or narrow is bool_:
        return True
    if wide.kind == "f":
        if narrow.kind == "f":
            return wide.bytes > narrow.bytes
        return _DIGITS[wide] >= 8 * narrow.bytes - (narrow.kind == "i")
    if narrow.kind == "f" or wide is bool_:
        return False
    return wide.bytes >= narrow.bytes if wide.kind == narrow.kind else wide.kind == "i" and wide.bytes > narrow.bytes


_DIGITS = {float16: 11, bfloat16: 8, float32: 24, float64: 53}


def promote(a: DType, b: DType) -> DType | None:
    """The dtype of a mixed expression, as in the Array API standard; None where there is none (uint64 with a signed one).

    Beyond the standard: a number beside a bool keeps its dtype, a float beside an integer its own, and float16 with bfloat16
    gives float32."""
    if a is b:
        return a
    if _KINDS[a.kind] != _KINDS[b.kind]:
        return a if _KINDS[a.kind] > _KINDS[b.kind] else b
    if holds(a, b) or holds(b, a):
        return a if holds(a, b) else b
    if a.kind == "f":
        return float32
    wider = 2 * max(a.bytes, b.bytes)
    return BY_NAME[f"int{8 * wider}"] if wider <= 8 else None


def with_number(dtype: DType, number: bool | int | float) -> DType:
    """The dtype of an array of this dtype beside a Python number: its own, but for a number of a higher kind."""
    if isinstance(number, bool):
        return dtype
    if isinstance(number, int):
        return dtype if dtype is not bool_ else DEFAULT_INT
    return dtype if dtype.kind == "f" else DEFAULT_FLOAT


def sum_dtype(dtype: DType) -> DType:
    """The dtype of sums and products where none is asked for: integers as wide as the default integer."""
    return DEFAULT_UINT if dtype.kind == "u" else dtype if dtype.kind == "f" else DEFAULT_INT


def limits(dtype: DType) -> tuple[int, int]:
    """(smallest, largest) value of an integer dtype."""
    info = np.iinfo(dtype.numpy)
    return int(info.min), int(info.max)


# ---- values ---------------------------------------------------------------------------------------------------------


def rounded(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Values as this dtype holds them, in the NumPy type that computes with them: float64 for all floats.

    Floats round to nearest, halves to even; integers wrap; a float becomes an integer by truncation, cut off at the ends, and
    NaN becomes 0. float64 is left as it is, and so is float32: the oracle is more exact than what it judges."""
    if dtype is bool_:
        return values != 0
    if dtype.kind == "f":
        values = values.astype(np.float64)
        if dtype is float16:
            with np.errstate(over="ignore"):
                return values.astype(np.float32).astype(np.float16).astype(np.float64)
        return from_bits(bfloat16_bits(values)) if dtype is bfloat16 else values
    if values.dtype.kind == "f":
        return _saturated(values, dtype)
    return values.astype(dtype.numpy)


def _saturated(values: np.ndarray, dtype: DType) -> np.ndarray:
    low, high = limits(dtype)
    with np.errstate(invalid="ignore"):
        whole = np.trunc(np.where(np.isnan(values), 0.0, values.astype(np.float64)))
        inside = np.where((whole < low) | (whole >= float(high)), 0.0, whole).astype(dtype.numpy)
    return np.where(whole < low, np.array(low, dtype.numpy), np.where(whole >= float(high), np.array(high, dtype.numpy), inside))


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, rounded to nearest, halves to even; NaN canonical."""
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(np.shape(values))
    upper = ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), upper)


def from_bits(bits: np.ndarray) -> np.ndarray:
    """The float64 numbers that bfloat16 bits stand for."""
    wide = np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32).astype(np.float64).reshape(np.shape(bits))


def to_storage(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Values as they are stored: in the dtype's NumPy type, bfloat16 as bits."""
    if dtype is bfloat16:
        return bfloat16_bits(values)
    if dtype.kind in "iu" and np.asarray(values).dtype.kind == "f":
        return _saturated(values, dtype)
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype.numpy)


def from_storage(stored: np.ndarray, dtype: DType) -> np.ndarray:
    """What the oracle computes with: float64 for floats, else the values as they are stored."""
    return from_bits(stored) if dtype is bfloat16 else stored.astype(np.float64) if dtype.kind == "f" else stored
