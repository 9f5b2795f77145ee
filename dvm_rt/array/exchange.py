"""DLPack: arrays of other libraries come in, arrays of a runtime go out.

Nothing that comes in shares memory with what it was made of: values live in the arena of a runtime. What goes out is
read-only memory of the arena for whoever can be told so (DLPack 1.0), else a copy. PyTorch can be told, and does not look:
its tensors are always writable, those of NumPy's read-only arrays too. Arrays never change, so whoever writes into such
a tensor breaks a promise that others rely on (a killed device runs launches again); `torch.from_dlpack(x, copy=True)` gives
memory of one's own."""

from __future__ import annotations

import numpy as np

from dvm_rt import _native
from dvm_rt.dtypes import DType, bfloat16, from_numpy
from dvm_rt.errors import DTypeError

CPU = (1, 0)  # DLPack's device type and number
VERSION_WITH_FLAGS = 1  # from then on a consumer is told that memory is read-only


def is_foreign(value: object) -> bool:
    """Whether a value is an array of a library that is neither this one nor NumPy."""
    return hasattr(value.__class__, "__dlpack__") and not isinstance(value, (np.ndarray, np.generic))


def imported(value: object) -> tuple[np.ndarray, DType]:
    """The memory of a foreign array, bfloat16 as bits, and its dtype. A tensor that requires gradients counts as its
    value. Raises DTypeError for memory elsewhere than on the CPU and for dtypes that are not here."""
    try:
        host, is_bfloat = _native.from_dlpack(value)
    except (TypeError, BufferError):
        raise DTypeError(
            f"array: asarray: {type(value).__module__}.{type(value).__name__}, got no memory through DLPack, "
            "allowed arrays on the CPU"
        ) from None
    return host, bfloat16 if is_bfloat else from_numpy(host.dtype, "array: asarray")


def exported(
    view: np.ndarray, dtype: DType, max_version: tuple[int, int] | None, device: tuple[int, int] | None, copy: bool | None
) -> object:  # fmt: skip
    """The capsule of a read-only view of an arena. Raises BufferError, as the Array API standard has it, for another device,
    and if a copy is forbidden to a consumer that cannot be told that memory is read-only."""
    if device is not None and tuple(device) != CPU:
        raise BufferError(f"array: __dlpack__: device, got {device}, allowed {CPU}, the CPU")
    versioned = max_version is not None and max_version[0] >= VERSION_WITH_FLAGS
    if copy is False and not versioned:
        raise BufferError(
            f"array: __dlpack__: read-only memory without a copy, got max_version={max_version}, allowed (1, 0) and later"
        )
    own = view.copy() if copy or not versioned else view
    return _native.dlpack_of(own, dtype is bfloat16, own is not view).__dlpack__(max_version=max_version)
