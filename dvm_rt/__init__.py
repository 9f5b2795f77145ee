"""dvm_rt: a real-time compiler and multi-process runtime for models whose shapes and control flow change while they run.

The packages, in the order in which data flows through them:

    array            lazy arrays and functions: Python records, a flush asks for values
    graph            what is to be computed, over symbolic dimensions
    fusion           graph -> plan: which operators share a kernel, for all shapes
    native (C++)     plan + sizes -> program; the verifier; the machine; the stream that launches
    isa              the instruction table, the table of host functions, the formats of programs and plans: all of these share it
    encoder_workers  processes that plan and encode ahead
    npu_device       the process that runs programs
    scheduler        who encodes what, leases, restarts
    runtime          starts, watches and stops the processes; or none (inline)

    onnx             models from files
    xp               the same functions under the names of the Array API standard

Below all of them: errors, dtypes, config. The names here are loaded when they are first used.

Where to start: `asarray` makes an array, `function` a traced function, `Runtime` starts processes. README.md leads through it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

_MODULES: dict[str, tuple[str, ...]] = {
    "dvm_rt.array.array": ("Array", "asarray", "eval", "aeval"),
    "dvm_rt.array.functions": (
        "abs", "acos", "acosh", "add", "all", "any", "argmax", "argmin", "asin", "asinh", "astype", "attention",
        "atan", "atan2", "atanh",
        "bitwise_and", "bitwise_invert", "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "broadcast_to",
        "cbrt", "ceil", "clip", "concat", "copysign", "cos", "cosh", "count_nonzero", "digamma", "divide", "equal", "erf", "erfc",
        "exp", "exp2", "expand_dims", "expm1", "floor", "floor_divide", "fmod", "gelu", "greater", "greater_equal",
        "grouped_matmul", "hypot",
        "isfinite", "isinf", "isnan", "layer_norm", "less", "less_equal", "lgamma", "linear", "log", "log10", "log1p", "log2",
        "log_softmax", "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "logsumexp", "matmul",
        "matmul_integer",
        "matrix_transpose", "max", "maximum", "mean", "min", "minimum", "multiply", "negative", "nextafter", "not_equal",
        "permute_dims", "pow", "prod", "reciprocal", "relu", "remainder", "reshape", "rms_norm", "round", "rsqrt",
        "sigmoid", "sign",
        "signbit", "silu", "sin", "sinh", "softmax", "split", "sqrt", "square", "squeeze", "stack", "std", "subtract", "sum",
        "tan", "tanh", "trunc", "var", "where",
    ),
    "dvm_rt.array.creation": (
        "arange", "eye", "full", "full_like", "linspace", "meshgrid", "one_hot", "ones", "ones_like", "tril", "triu",
        "zeros", "zeros_like",
    ),
    "dvm_rt.array.movement": (
        "argsort", "argwhere", "broadcast_arrays", "compress", "cumulative_prod", "cumulative_sum", "diff", "flip",
        "gather_nd", "index_add",
        "moveaxis", "nonzero", "pad", "repeat", "roll", "scatter", "scatter_nd", "searchsorted", "sort", "take",
        "take_along_axis", "tile", "topk", "unique_all",
        "unique_counts", "unique_inverse", "unique_values", "unstack", "updated",
    ),
    "dvm_rt.array.windows": ("avg_pool", "conv", "conv_transpose", "max_pool"),
    "dvm_rt.array.einsum": ("einsum", "outer", "tensordot", "vecdot"),
    "dvm_rt.array.function": ("Function", "function"),
    "dvm_rt.array.stacked": ("stacked",),
    "dvm_rt.array.control": ("append", "cond", "scan", "switch", "while_loop"),
    "dvm_rt.array.kernel": ("kernel",),
    "dvm_rt.array.explain": ("explain", "dump", "das"),
    "dvm_rt.array.session": ("stats",),
    "dvm_rt.runtime": ("Runtime",),
    "dvm_rt.errors": (
        "DvmError", "GraphError", "ShapeError", "DTypeError", "EncodeError", "InvalidBytecodeError", "DeviceTrap",
        "DeviceLostError",
        "DeviceTimeoutError", "DeviceOutOfMemoryError", "WorkerLostError", "PoisonRequestError", "PoolUnhealthyError",
        "BackpressureTimeout", "VersionMismatchError", "AuthError", "ProtocolError", "ModelFormatError",
        "UnsupportedOperatorError",
        "ForkedClientError", "ClosedError",
    ),
    "dvm_rt.dtypes": (
        "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
        "float64",
    ),
}  # fmt: skip
_SUBMODULES = {"random": "dvm_rt.array.random"}
_OWNER = {name: module for module, names in _MODULES.items() for name in names}
__version__ = "0.1.0"
__all__ = sorted([*_OWNER, *_SUBMODULES])  # noqa: PLE0605


def __getattr__(name: str) -> object:
    owner = _OWNER.get(name)
    if owner is None:
        if name == "bool":
            return __getattr__("bool_")
        if name in _SUBMODULES:
            return import_module(_SUBMODULES[name])
        if name == "_native" and find_spec("dvm_rt._native") is None:
            text = f"dvm_rt: {__path__[0]}: native core, got sources in which none was built, allowed an installed dvm_rt"
            raise ImportError(f"{text} (start Python in another folder), or scripts/build")
        raise AttributeError(f"module 'dvm_rt' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(owner), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
