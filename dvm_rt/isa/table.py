"""THE instruction table: one row an instruction.

Opcode, operand forms, C++ enumeration, dispatch order, assembler line, manual, verifier row and oracle test of an
instruction derive from its row. What it does is written twice: here in NumPy (the definition), and in
`native/vector.cpp` for speed; a test holds one against the other for every row.

The machine. A vector section runs a short list of 8-byte words over each row of its domain, strip by strip (a strip is
128 elements on AVX-512, 64 on AVX2: words never depend on it). One accumulator `acc` holds the current strip. Word:

    u16 op      opcode = the row's first code + index of the operand form
    u16 a       operand index (forms input, per_row; loads, stores), reduction index, mask of reductions (loop)
    u32 k       constant (form const), slot, row scalar, words to jump back (loop), prefetch distance

A section has one compute dtype: float32, float64, int32, uint32, int64 or uint64. A row exists for the kinds ("f", "i",
"u") and widths that it names; strips, lanes and slots hold half as many elements of 8 bytes as of 4. Other dtypes are
storage, which loads and stores convert, and rounding: float16 and bfloat16 are computed in float32 and rounded by
`to_f16` and `to_bf16`; int8 to uint16 are computed in int32 and wrapped by `wrap_*`.

Operand forms of a binary instruction `acc <- f(acc, x)`:

    s  slot      x = slot[k]: a strip parked earlier in the same pass
    i  input     x = the strip of operand a at the current place (contiguous, stored in the compute dtype)
    k  constant  x = the 32-bit constant in the word (compute dtypes of 4 bytes), or entry k of the section's constants
                 (8 bytes)
    r  row       x = row scalar k, made earlier in the same row
    b  per row   x = one element of operand a per row (its inner stride is 0)

Booleans are 1 and 0 of the compute dtype. Integers wrap. Float to integer truncates, saturates, and makes 0 of NaN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from dvm_rt.isa import functions


class Group(Enum):
    """What an instruction reads and writes; the verifier has one rule for each group."""

    BINARY = "acc <- f(acc, operand); five operand forms"
    UNARY = "acc <- f(acc)"
    LOAD = "acc <- operand a, any storage dtype, any inner stride (0 and negative included), converted"
    STORE = "a place <- acc"
    REDUCE = "reduction lanes <- acc, in a pass"
    RUNNING = "acc <- running totals of acc along the row, in a pass: each element after the one before; once in a pass for each a"
    FOLD = "acc <- total of the lanes in every element, in a row section; the lanes go back to their identity"
    CONTROL = "loop control and hints"


FORMS = ("s", "i", "k", "r", "b")
WORD_FIELDS: dict[str, str] = {
    "operand": "operand of the section",
    "slot": "slot",
    "constant": "32 bits of the compute dtype, or (8-byte compute dtypes) number of an entry of the constants",
    "row": "row scalar",
    "reduction": "reduction: 0..3 sums, 4..7 maxima, 8..11 minima, 12..15 products",
    "running": "running total: 0..3",
    "mask": "bit i is set if reduction i is accumulated in this pass",
    "distance": "words back to `pass`",
    "ahead": "bytes ahead in this row, 0 = the next row",
}
COMPUTE_DTYPES = {  # compute dtype: kind, bytes of an element
    "float32": ("f", 4), "float64": ("f", 8), "int32": ("i", 4), "uint32": ("u", 4), "int64": ("i", 8), "uint64": ("u", 8),
}  # fmt: skip
REDUCTIONS: dict[str, str] = {"sum": "add", "max": "max", "min": "min", "prod": "mul"}  # 4 of each, in this order
FORM_FIELDS: dict[str, tuple[str, str]] = {  # what `a` and `k` hold in each operand form of a binary instruction
    "s": ("", "slot"), "i": ("operand", ""), "k": ("", "constant"), "r": ("", "row"), "b": ("operand", ""),
}  # fmt: skip
Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Instruction:
    """One row. `meaning` maps NumPy arrays of the compute dtype to one (None where the group says it all); a row with
    `ulp` > 0 means its formula in float64, rounded once, and `ulp` is the promised distance from that. `cycles` is the
    modelled cost of a strip of 128 float32 on AVX-512."""

    name: str
    group: Group
    doc: str
    meaning: Callable[..., Array] | None = None
    ulp: float = 0
    cycles: float = 8
    commuted: str = ""  # binary: the instruction with its operands exchanged
    a: str = ""  # what the word's field `a` holds (a key of WORD_FIELDS), "" = nothing; binary: the form says it
    k: str = ""  # the same for its field `k`
    kinds: str = "f"  # of compute dtypes for which the row exists
    widths: tuple[int, ...] = (4, 8)  # bytes of an element of those

    @property
    def compute_dtypes(self) -> tuple[str, ...]:
        """Names of the compute dtypes for which this row exists."""
        return tuple(n for n, (kind, width) in COMPUTE_DTYPES.items() if kind in self.kinds and width in self.widths)


def _bits(x: Array) -> Array:
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


def _merge(a: Array, x: Array) -> Array:
    return (_bits(a) | _bits(np.broadcast_to(x, a.shape).astype(a.dtype))).view(a.dtype)


def _truth(f: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, x: f(a, x).astype(a.dtype)


def _max(a: Array, x: Array) -> Array:
    """IEEE 754-2019 maximum: NaN if either is NaN, +0 above -0; so the operands can be exchanged."""
    if a.dtype.kind != "f":
        return np.maximum(a, x)
    larger = np.where((a > x) | ((a == x) & ~np.signbit(a)), a, x)
    return np.where(np.isnan(a), a, larger)


def _min(a: Array, x: Array) -> Array:
    """IEEE 754-2019 minimum: NaN if either is NaN, -0 below +0."""
    if a.dtype.kind != "f":
        return np.minimum(a, x)
    smaller = np.where((a < x) | ((a == x) & np.signbit(a)), a, x)
    return np.where(np.isnan(a), a, smaller)


def _exp(a: Array) -> Array:
    """e^a, and 0 where the result is below the smallest normal number of the compute dtype (the one written exception to
    subnormals). `a` is wider than that dtype: float64 for float32, long double for float64."""
    y = np.exp(a)
    return np.where(y < (2.0**-1022 if a.dtype == np.longdouble else 2.0**-126), np.zeros_like(y), y)


def _sigmoid(a: Array) -> Array:
    t = np.exp(-np.abs(a))
    return np.where(a < 0, t, np.ones_like(t)) / (t + 1)


def _divided(a: Array, x: Array, floor: bool) -> tuple[Array, Array]:
    """Quotient and remainder of integers: both 0 where x is 0; the quotient wraps where it does not fit."""
    x = np.broadcast_to(x, a.shape)
    minus = (x == np.array(-1).astype(a.dtype)) if a.dtype.kind == "i" else np.zeros(a.shape, bool)
    d = np.where((x == 0) | minus, np.ones_like(x), x)
    q = a // d
    r = a - q * d
    if not floor and a.dtype.kind == "i":  # NumPy rounds down
        up = (r != 0) & ((a < 0) != (d < 0))
        q, r = np.where(up, q + 1, q), np.where(up, r - d, r)
    q = np.where(minus, np.negative(a), q)
    return np.where(x == 0, 0, q).astype(a.dtype), np.where((x == 0) | minus, 0, r).astype(a.dtype)


def _bit_count(a: Array) -> Array:
    return np.array(8 * a.dtype.itemsize - 1).astype(a.dtype)


def _wrap(name: str) -> Callable[[Array], Array]:
    return lambda a: a.astype(name).astype(a.dtype)


def _to_bf16(a: Array) -> Array:
    from dvm_rt.isa.convert import bfloat16_bits, from_bfloat16_bits

    return from_bfloat16_bits(bfloat16_bits(a)).astype(a.dtype)


def _philox(a: Array, x: Array) -> Array:
    """Philox4x32-10 (Salmon et al., 2011) of the counter (a low, a high, 0, 0) under the key (x low, x high): its first
    two words, the second one high."""
    low, c = np.uint64(0xFFFFFFFF), np.broadcast_to(x, a.shape)
    key = [c & low, c >> np.uint64(32)]
    v = [a & low, a >> np.uint64(32), np.zeros_like(a), np.zeros_like(a)]
    for _ in range(10):
        p, q = v[0] * np.uint64(0xD2511F53), v[2] * np.uint64(0xCD9E8D57)
        v = [(q >> np.uint64(32)) ^ v[1] ^ key[0], q & low, (p >> np.uint64(32)) ^ v[3] ^ key[1], p & low]
        key = [(key[0] + np.uint64(0x9E3779B9)) & low, (key[1] + np.uint64(0xBB67AE85)) & low]
    return v[0] | v[1] << np.uint64(32)


B, U, S = Group.BINARY, Group.UNARY, Group.STORE
ALL: dict = {"kinds": "fiu"}
INTEGER: dict = {"kinds": "iu"}

INSTRUCTIONS: tuple[Instruction, ...] = (
    # ---- binary -------------------------------------------------------------------------------------------------
    Instruction("mov", B, "acc <- x", lambda a, x: np.broadcast_to(x, a.shape).copy(), 0, 4, "", **ALL),
    Instruction("add", B, "acc <- acc + x", np.add, 0, 8, "add", **ALL),
    Instruction("sub", B, "acc <- acc - x", np.subtract, 0, 8, "rsub", **ALL),
    Instruction("rsub", B, "acc <- x - acc", lambda a, x: np.subtract(x, a), 0, 8, "sub", **ALL),
    Instruction("mul", B, "acc <- acc * x", np.multiply, 0, 8, "mul", **ALL),
    Instruction("div", B, "acc <- acc / x, IEEE division", np.divide, 0, 80, "rdiv"),
    Instruction("rdiv", B, "acc <- x / acc", lambda a, x: np.divide(x, a), 0, 80, "div"),
    Instruction("max", B, "larger of acc and x; NaN if either is NaN; +0 is above -0", _max, 0, 16, "max", **ALL),
    Instruction("min", B, "smaller of acc and x; NaN if either is NaN; -0 is below +0", _min, 0, 16, "min", **ALL),
    Instruction("eq", B, "1 where acc == x, else 0", _truth(np.equal), 0, 12, "eq", **ALL),
    Instruction("ne", B, "1 where acc != x (NaN included), else 0", _truth(np.not_equal), 0, 12, "ne", **ALL),
    Instruction("lt", B, "1 where acc < x, else 0", _truth(np.less), 0, 12, "gt", **ALL),
    Instruction("le", B, "1 where acc <= x, else 0", _truth(np.less_equal), 0, 12, "ge", **ALL),
    Instruction("gt", B, "1 where acc > x, else 0", _truth(np.greater), 0, 12, "lt", **ALL),
    Instruction("ge", B, "1 where acc >= x, else 0", _truth(np.greater_equal), 0, 12, "le", **ALL),
    Instruction("keep", B, "acc where x is not zero (NaN counts as not zero), else +0",
                lambda a, x: np.where(x != 0, a, np.zeros_like(a)), 0, 12, "", **ALL),
    Instruction("drop", B, "acc where x is zero, else +0", lambda a, x: np.where(x == 0, a, np.zeros_like(a)), 0, 12, **ALL),
    Instruction("merge", B, "bitwise or of acc and x: where(c, p, q) = merge(keep(p, c), drop(q, c))",
                _merge, 0, 8, "merge", **ALL),
    Instruction("bit_and", B, "bitwise and (or: merge)", np.bitwise_and, 0, 8, "bit_and", **INTEGER),
    Instruction("bit_xor", B, "bitwise exclusive or", np.bitwise_xor, 0, 8, "bit_xor", **INTEGER),
    Instruction("shl", B, "acc shifted left by x modulo the bits of an element",
                lambda a, x: np.left_shift(a, x & _bit_count(a)), 0, 12, **INTEGER),
    Instruction("shr", B, "acc shifted right by x modulo the bits of an element; signed: copies of the sign enter",
                lambda a, x: np.right_shift(a, x & _bit_count(a)), 0, 12, **INTEGER),
    Instruction("floordiv", B, "acc / x rounded down; 0 where x is 0", lambda a, x: _divided(a, x, True)[0], 0, 700, **INTEGER),
    Instruction("floormod", B, "acc - floor(acc / x) * x, with the sign of x; 0 where x is 0",
                lambda a, x: _divided(a, x, True)[1], 0, 700, **INTEGER),
    Instruction("truncdiv", B, "acc / x rounded towards 0; 0 where x is 0", lambda a, x: _divided(a, x, False)[0], 0,
                700, **INTEGER),
    Instruction("truncmod", B, "acc - trunc(acc / x) * x, with the sign of acc; 0 where x is 0",
                lambda a, x: _divided(a, x, False)[1], 0, 700, **INTEGER),
    Instruction("philox", B, "64 random bits: Philox4x32-10 of the counter acc under the key x", _philox, 0, 300,
                kinds="u", widths=(8,)),
    Instruction("pow", B, "acc to the power x; special cases as in C", functions.power, 2, 500),
    Instruction("atan2", B, "angle of the point (x, acc), -pi .. pi", np.arctan2, 2, 400),
    Instruction("hypot", B, "sqrt(acc^2 + x^2); infinite if either is", np.hypot, 2, 300, "hypot"),
    Instruction("logaddexp", B, "log(e^acc + e^x)", np.logaddexp, 2, 500, "logaddexp", widths=(4,)),
    Instruction("fmod", B, "acc - n x, exact, with the sign of acc; n is acc / x, truncated", np.fmod, 0, 250),
    Instruction("remainder", B, "acc - n x, rounded once, with the sign of x; n is acc / x, rounded down",
                np.remainder, 0, 260),
    Instruction("floor_divide", B, "acc / x, rounded down", np.floor_divide, 2, 450),
    Instruction("copysign", B, "|acc| with the sign of x; NaN counts as positive", functions.copysign, 0, 8),
    Instruction("nextafter", B, "the number next to acc on the way to x", np.nextafter, 0, 30),
    # ---- unary --------------------------------------------------------------------------------------------------
    Instruction("neg", U, "-acc", np.negative, **ALL),
    Instruction("abs", U, "|acc|", np.abs, **ALL),
    Instruction("square", U, "acc * acc", lambda a: a * a, **ALL),
    Instruction("relu", U, "0 where acc < 0, else acc: -0 and NaN stay",
                lambda a: np.where(a < 0, np.zeros_like(a), a), kinds="fi"),
    Instruction("exp", U, "e^acc; 0 below 2^-126 (float64: 2^-1022)", _exp, 2, 60),
    Instruction("log", U, "natural logarithm; NaN below 0, -inf at 0", np.log, 2, 90),
    Instruction("tanh", U, "hyperbolic tangent", np.tanh, 4, 110),
    Instruction("erf", U, "error function", functions.erf, 2, 110),
    Instruction("sigmoid", U, "1 / (1 + e^-acc)", _sigmoid, 4, 120),
    Instruction("sqrt", U, "square root, correctly rounded", np.sqrt, 0, 90),
    Instruction("rsqrt", U, "1 / sqrt(acc), two roundings", lambda a: 1 / np.sqrt(a), 0, 170),
    Instruction("recip", U, "1 / acc", lambda a: 1 / a, 0, 80),
    Instruction("floor", U, "largest integer <= acc", np.floor),
    Instruction("ceil", U, "smallest integer >= acc", np.ceil),
    Instruction("trunc", U, "nearest integer towards zero", np.trunc),
    Instruction("round", U, "nearest integer, halves to even", np.rint),
    Instruction("isnan", U, "1 where acc is NaN, else 0", lambda a: np.isnan(a).astype(a.dtype)),
    Instruction("bit_not", U, "every bit inverted", np.invert, **INTEGER),
    Instruction("sign", U, "-1, +0 or 1; NaN stays", np.sign, **ALL),
    Instruction("wrap_i8", U, "wrapped to int8", _wrap("int8"), kinds="i", widths=(4,)),
    Instruction("wrap_i16", U, "wrapped to int16", _wrap("int16"), kinds="i", widths=(4,)),
    Instruction("wrap_u8", U, "wrapped to uint8", _wrap("uint8"), kinds="i", widths=(4,)),
    Instruction("wrap_u16", U, "wrapped to uint16", _wrap("uint16"), kinds="i", widths=(4,)),
    Instruction("to_f16", U, "rounded to float16, halves to even", _wrap("float16"), 0, 16, widths=(4,)),
    Instruction("to_bf16", U, "rounded to bfloat16, halves to even", _to_bf16, 0, 24, widths=(4,)),
    Instruction("isinf", U, "1 where acc is infinite, else 0", lambda a: np.isinf(a).astype(a.dtype)),
    Instruction("isfinite", U, "1 where acc is a number, else 0", lambda a: np.isfinite(a).astype(a.dtype)),
    Instruction("signbit", U, "1 where the sign of acc is negative, else 0; NaN counts as positive", functions.signbit),
    Instruction("sin", U, "sine, of any number", np.sin, 2, 300),
    Instruction("cos", U, "cosine, of any number", np.cos, 2, 300),
    Instruction("tan", U, "tangent, of any number", np.tan, 4, 450),
    Instruction("asin", U, "inverse sine; NaN beyond 1", np.arcsin, 2, 400),
    Instruction("acos", U, "inverse cosine; NaN beyond 1", np.arccos, 2, 450),
    Instruction("atan", U, "inverse tangent", np.arctan, 2, 350),
    Instruction("sinh", U, "hyperbolic sine", np.sinh, 2, 250),
    Instruction("cosh", U, "hyperbolic cosine", np.cosh, 2, 250),
    Instruction("asinh", U, "inverse hyperbolic sine", np.arcsinh, 2, 800),
    Instruction("acosh", U, "inverse hyperbolic cosine; NaN below 1", np.arccosh, 4, 600),
    Instruction("atanh", U, "inverse hyperbolic tangent; NaN beyond 1", np.arctanh, 2, 600),
    Instruction("exp2", U, "2^acc", np.exp2, 2, 200),
    Instruction("expm1", U, "e^acc - 1", np.expm1, 2, 200),
    Instruction("log2", U, "logarithm to base 2; NaN below 0, -inf at 0", np.log2, 2, 250),
    Instruction("log10", U, "logarithm to base 10; NaN below 0, -inf at 0", np.log10, 2, 250),
    Instruction("log1p", U, "log(1 + acc); NaN below -1", np.log1p, 2, 300),
    Instruction("cbrt", U, "cube root", np.cbrt, 2, 300),
    Instruction("erfc", U, "1 - erf(acc)", functions.erfc, 4, 700),
    Instruction("lgamma", U, "log |gamma(acc)|", functions.log_gamma, 2, 2500),
    Instruction("digamma", U, "derivative of log gamma(acc)", functions.digamma, 2, 2000),
    # ---- loads and stores ---------------------------------------------------------------------------------------
    Instruction("load", Group.LOAD, "acc <- operand a, converted to the compute dtype (rounded to nearest even; float to "
                "integer: truncated, saturated, NaN is 0; bool: 1 where the byte is not 0); any inner stride",
                cycles=24, a="operand", **ALL),
    Instruction("iota", Group.LOAD, "acc <- where operand a stands: base + index * stride over all dimensions, converted to the "
                "compute dtype (operand in INDEX, which has strides and no bytes)", cycles=16, a="operand", **ALL),
    Instruction("store_slot", S, "slot[k] <- acc", cycles=8, k="slot", **ALL),
    Instruction("store", S, "operand a <- acc: contiguous, compute dtype, NaN made canonical", cycles=12, a="operand", **ALL),
    Instruction("store_nt", S, "as store, past the caches (outputs beyond L2 that are not read soon)", cycles=12,
                a="operand", **ALL),
    Instruction("store_any", S, "operand a <- acc, converted to the operand's dtype (floats: rounded once to nearest "
                "even, NaN made canonical; float to integer: truncated, saturated, NaN is 0; bool: acc != 0); any inner stride "
                "but 0", cycles=24, a="operand", **ALL),
    Instruction("store_any_nt", S, "as store_any, past the caches where operand a is contiguous", cycles=24, a="operand", **ALL),
    Instruction("store_row", S, "row scalar k <- element 0 of acc (row section)", cycles=2, k="row", **ALL),
    Instruction("store_per_row", S, "operand a <- element 0 of acc, once a row (row section), converted as by store_any",
                cycles=2, a="operand", **ALL),
    # ---- reductions: element j of a row goes to lane j mod 128 (64) ----------------
    Instruction("acc_sum", Group.REDUCE, "lanes[a] += acc", cycles=16, a="reduction", **ALL),
    Instruction("acc_max", Group.REDUCE, "lanes[a] = larger of lanes[a] and acc; NaN wins", cycles=20, a="reduction", **ALL),
    Instruction("acc_min", Group.REDUCE, "lanes[a] = smaller of lanes[a] and acc; NaN wins", cycles=20, a="reduction", **ALL),
    Instruction("acc_prod", Group.REDUCE, "lanes[a] *= acc", cycles=16, a="reduction", **ALL),
    Instruction("run_sum", Group.RUNNING, "acc <- sums of the row's elements up to each one, added one after another",
                lambda a: np.add.accumulate(a, axis=-1, dtype=a.dtype), cycles=512, a="running", **ALL),
    Instruction("run_prod", Group.RUNNING, "acc <- products of the row's elements up to each one, multiplied one after another",
                lambda a: np.multiply.accumulate(a, axis=-1, dtype=a.dtype), cycles=512, a="running", **ALL),
    Instruction("fold_sum", Group.FOLD, "acc <- sum of lanes[a]", cycles=40, a="reduction", **ALL),
    Instruction("fold_max", Group.FOLD, "acc <- largest of lanes[a]; NaN wins", cycles=40, a="reduction", **ALL),
    Instruction("fold_min", Group.FOLD, "acc <- smallest of lanes[a]; NaN wins", cycles=60, a="reduction", **ALL),
    Instruction("fold_prod", Group.FOLD, "acc <- product of lanes[a]", cycles=40, a="reduction", **ALL),
    # ---- control ------------------------------------------------------------------------------------------------
    Instruction("gather", Group.CONTROL, "start of a row: operand a points at its base + i * depth, i = the operand `index` "
                "in this row; negative i counts from the end; traps if i is not in -limit..limit-1", cycles=4,
                a="operand", **ALL),
    Instruction("fetch", Group.CONTROL, "prefetch operand a: k bytes ahead in this row, or (k = 0) the next row",
                cycles=4, a="operand", k="ahead", **ALL),
    Instruction("pass", Group.CONTROL, "start of a pass: what follows runs for each strip of the row", cycles=2, **ALL),
    Instruction("loop", Group.CONTROL, "next strip: k words back to the word after `pass`, or on to the row section; "
                "a = mask of the reductions that this pass accumulates", cycles=3, a="mask", k="distance", **ALL),
    Instruction("end_row", Group.CONTROL,
                "step to the next row, back to the first word; last word of a vector section", cycles=6, **ALL),
    Instruction("end", Group.CONTROL, "last word of a matmul epilogue", cycles=1, **ALL),
)  # fmt: skip

BY_NAME: dict[str, Instruction] = {i.name: i for i in INSTRUCTIONS}


def forms(instruction: Instruction) -> tuple[str, ...]:
    """Operand forms, one opcode each; a single empty form for everything that is not binary."""
    return FORMS if instruction.group is Group.BINARY else ("",)


CODES: dict[tuple[str, str], int] = {}
OPCODES: list[tuple[Instruction, str]] = []
for _instruction in INSTRUCTIONS:
    for _form in forms(_instruction):
        CODES[_instruction.name, _form] = len(OPCODES)
        OPCODES.append((_instruction, _form))


def word_fields(code: int) -> tuple[str, str]:
    """What the fields `a` and `k` of a word with this opcode hold: keys of WORD_FIELDS, or "" for nothing."""
    instruction, form = OPCODES[code]
    return FORM_FIELDS[form] if form else (instruction.a, instruction.k)


def opcode(name: str, form: str = "") -> int:
    """The opcode of an instruction in one operand form: opcode("add", "i")."""
    return CODES[name, form]


def mnemonic(code: int) -> str:
    """How the assembler writes an opcode: `add.i`, `exp`."""
    instruction, form = OPCODES[code]
    return f"{instruction.name}.{form}" if form else instruction.name
