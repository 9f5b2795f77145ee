"""THE instruction table: one row an instruction.

Opcode, operand forms, C++ enumeration, dispatch order, assembler line, manual, verifier row and oracle test of an
instruction derive from its row. What it does is written twice: here in NumPy (the definition), and in
`native/vector.cpp` for speed; a test holds one against the other for every row.

The machine. A vector section runs a short list of 8-byte words over each row of its domain, strip by strip (a strip is
128 elements on AVX-512, 64 on AVX2: words never depend on it). One accumulator `acc` holds the current strip. Word:

    u16 op      opcode = the row's first code + index of the operand form
    u16 a       operand index (forms input, per_row; loads, stores), reduction index, mask of reductions (loop)
    u32 k       constant bits (form const), slot, row scalar, words to jump back (loop), prefetch distance

Operand forms of a binary instruction `acc <- f(acc, x)`:

    s  slot      x = slot[k]: a strip parked earlier in the same pass
    i  input     x = the strip of operand a at the current place (contiguous, stored in the compute dtype)
    k  constant  x = the 32-bit constant in the word (compute dtypes of 4 bytes), or constant pool entry k (8 bytes)
    r  row       x = row scalar k, made earlier in the same row
    b  per row   x = one element of operand a per row (its inner stride is 0)

Booleans inside a float section are 1.0 and 0.0."""

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
    FOLD = "acc <- total of the lanes in every element, in a row section; the lanes go back to their identity"
    CONTROL = "loop control and hints"


FORMS = ("s", "i", "k", "r", "b")
WORD_FIELDS: dict[str, str] = {
    "operand": "operand of the section",
    "slot": "slot",
    "constant": "32 bits of the compute dtype",
    "row": "row scalar",
    "reduction": "reduction: 0..3 sums, 4..7 maxima",
    "mask": "bit i is set if reduction i is accumulated in this pass",
    "distance": "words back to `pass`",
    "ahead": "bytes ahead in this row, 0 = the next row",
}
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


def _bits(x: Array) -> Array:
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


def _merge(a: Array, x: Array) -> Array:
    return (_bits(a) | _bits(np.broadcast_to(x, a.shape).astype(a.dtype))).view(a.dtype)


def _truth(f: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, x: f(a, x).astype(a.dtype)


def _max(a: Array, x: Array) -> Array:
    """IEEE 754-2019 maximum: NaN if either is NaN, +0 above -0; so the operands can be exchanged."""
    larger = np.where((a > x) | ((a == x) & ~np.signbit(a)), a, x)
    return np.where(np.isnan(a), a, larger)


def _min(a: Array, x: Array) -> Array:
    """IEEE 754-2019 minimum: NaN if either is NaN, -0 below +0."""
    smaller = np.where((a < x) | ((a == x) & np.signbit(a)), a, x)
    return np.where(np.isnan(a), a, smaller)


def _exp(a: Array) -> Array:
    """e^a, and 0 where the result is below the smallest normal float32 (the one written exception to subnormals)."""
    y = np.exp(a)
    return np.where(y < 2.0**-126, np.zeros_like(y), y)


def _sigmoid(a: Array) -> Array:
    t = np.exp(-np.abs(a))
    return np.where(a < 0, t, np.ones_like(t)) / (t + 1)


B, U, S = Group.BINARY, Group.UNARY, Group.STORE

INSTRUCTIONS: tuple[Instruction, ...] = (
    # ---- binary -------------------------------------------------------------------------------------------------
    Instruction("mov", B, "acc <- x", lambda a, x: np.broadcast_to(x, a.shape).copy(), 0, 4, ""),
    Instruction("add", B, "acc <- acc + x", np.add, 0, 8, "add"),
    Instruction("sub", B, "acc <- acc - x", np.subtract, 0, 8, "rsub"),
    Instruction("rsub", B, "acc <- x - acc", lambda a, x: np.subtract(x, a), 0, 8, "sub"),
    Instruction("mul", B, "acc <- acc * x", np.multiply, 0, 8, "mul"),
    Instruction("div", B, "acc <- acc / x, IEEE division", np.divide, 0, 80, "rdiv"),
    Instruction("rdiv", B, "acc <- x / acc", lambda a, x: np.divide(x, a), 0, 80, "div"),
    Instruction("max", B, "larger of acc and x; NaN if either is NaN; +0 is above -0", _max, 0, 16, "max"),
    Instruction("min", B, "smaller of acc and x; NaN if either is NaN; -0 is below +0", _min, 0, 16, "min"),
    Instruction("eq", B, "1 where acc == x, else 0", _truth(np.equal), 0, 12, "eq"),
    Instruction("ne", B, "1 where acc != x (NaN included), else 0", _truth(np.not_equal), 0, 12, "ne"),
    Instruction("lt", B, "1 where acc < x, else 0", _truth(np.less), 0, 12, "gt"),
    Instruction("le", B, "1 where acc <= x, else 0", _truth(np.less_equal), 0, 12, "ge"),
    Instruction("gt", B, "1 where acc > x, else 0", _truth(np.greater), 0, 12, "lt"),
    Instruction("ge", B, "1 where acc >= x, else 0", _truth(np.greater_equal), 0, 12, "le"),
    Instruction("keep", B, "acc where x is not zero (NaN counts as not zero), else +0",
                lambda a, x: np.where(x != 0, a, np.zeros_like(a)), 0, 12, ""),
    Instruction("drop", B, "acc where x is zero, else +0", lambda a, x: np.where(x == 0, a, np.zeros_like(a)), 0, 12),
    Instruction("merge", B, "bitwise or of acc and x: where(c, p, q) = merge(keep(p, c), drop(q, c))",
                _merge, 0, 8, "merge"),
    Instruction("pow", B, "acc to the power x; special cases as in C", functions.power, 2, 500),
    Instruction("atan2", B, "angle of the point (x, acc), -pi .. pi", np.arctan2, 2, 400),
    Instruction("hypot", B, "sqrt(acc^2 + x^2); infinite if either is", np.hypot, 2, 300, "hypot"),
    Instruction("logaddexp", B, "log(e^acc + e^x)", np.logaddexp, 2, 500, "logaddexp"),
    Instruction("fmod", B, "acc - n x, exact, with the sign of acc; n is acc / x, truncated", np.fmod, 0, 250),
    Instruction("remainder", B, "acc - n x, rounded once, with the sign of x; n is acc / x, rounded down",
                np.remainder, 0, 260),
    Instruction("floor_divide", B, "acc / x, rounded down", np.floor_divide, 2, 450),
    Instruction("copysign", B, "|acc| with the sign of x; NaN counts as positive", functions.copysign, 0, 8),
    Instruction("nextafter", B, "the number next to acc on the way to x", np.nextafter, 0, 30),
    # ---- unary --------------------------------------------------------------------------------------------------
    Instruction("neg", U, "-acc", np.negative),
    Instruction("abs", U, "|acc|", np.abs),
    Instruction("square", U, "acc * acc", np.square),
    Instruction("relu", U, "0 where acc < 0, else acc: -0 and NaN stay",
                lambda a: np.where(a < 0, np.zeros_like(a), a)),
    Instruction("exp", U, "e^acc; 0 below 2^-126", _exp, 2, 60),
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
    Instruction("isinf", U, "1 where acc is infinite, else 0", lambda a: np.isinf(a).astype(a.dtype)),
    Instruction("isfinite", U, "1 where acc is a number, else 0", lambda a: np.isfinite(a).astype(a.dtype)),
    Instruction("signbit", U, "1 where the sign of acc is negative, else 0; NaN counts as positive", functions.signbit),
    Instruction("sign", U, "-1, +0 or 1; NaN stays", np.sign),
    Instruction("sin", U, "sine, of any number", np.sin, 2, 300),
    Instruction("cos", U, "cosine, of any number", np.cos, 2, 300),
    Instruction("tan", U, "tangent, of any number", np.tan, 2, 450),
    Instruction("asin", U, "inverse sine; NaN beyond 1", np.arcsin, 2, 400),
    Instruction("acos", U, "inverse cosine; NaN beyond 1", np.arccos, 2, 450),
    Instruction("atan", U, "inverse tangent", np.arctan, 2, 350),
    Instruction("sinh", U, "hyperbolic sine", np.sinh, 2, 250),
    Instruction("cosh", U, "hyperbolic cosine", np.cosh, 2, 250),
    Instruction("asinh", U, "inverse hyperbolic sine", np.arcsinh, 2, 800),
    Instruction("acosh", U, "inverse hyperbolic cosine; NaN below 1", np.arccosh, 2, 600),
    Instruction("atanh", U, "inverse hyperbolic tangent; NaN beyond 1", np.arctanh, 2, 600),
    Instruction("exp2", U, "2^acc", np.exp2, 2, 200),
    Instruction("expm1", U, "e^acc - 1", np.expm1, 2, 200),
    Instruction("log2", U, "logarithm to base 2; NaN below 0, -inf at 0", np.log2, 2, 250),
    Instruction("log10", U, "logarithm to base 10; NaN below 0, -inf at 0", np.log10, 2, 250),
    Instruction("log1p", U, "log(1 + acc); NaN below -1", np.log1p, 2, 300),
    Instruction("cbrt", U, "cube root", np.cbrt, 2, 300),
    Instruction("erfc", U, "1 - erf(acc)", functions.erfc, 2, 700),
    Instruction("lgamma", U, "log |gamma(acc)|", functions.log_gamma, 2, 2500),
    Instruction("digamma", U, "derivative of log gamma(acc)", functions.digamma, 2, 2000),
    # ---- loads and stores ---------------------------------------------------------------------------------------
    Instruction("load", Group.LOAD, "acc <- operand a, converted to the compute dtype (integers rounded to nearest even, "
                "bool: 1 where the byte is not 0); any inner stride", cycles=40, a="operand"),
    Instruction("store_slot", S, "slot[k] <- acc", cycles=8, k="slot"),
    Instruction("store", S, "operand a <- acc: contiguous, compute dtype, NaN made canonical", cycles=12, a="operand"),
    Instruction("store_nt", S, "as store, past the caches (outputs beyond L2 that are not read soon)", cycles=12, a="operand"),
    Instruction("store_any", S, "operand a <- acc, converted to the operand's dtype (integers: truncated, saturated, NaN "
                "is 0; bool: acc != 0; float32: NaN made canonical); any inner stride but 0", cycles=40, a="operand"),
    Instruction("store_row", S, "row scalar k <- element 0 of acc (row section)", cycles=2, k="row"),
    Instruction("store_per_row", S, "operand a <- element 0 of acc, once a row (row section); NaN made canonical",
                cycles=2, a="operand"),
    # ---- reductions: element j of a row goes to lane j mod 128; lanes are folded 64, 32, .. 1 apart ----------------
    Instruction("acc_sum", Group.REDUCE, "lanes[a] += acc", cycles=16, a="reduction"),
    Instruction("acc_max", Group.REDUCE, "lanes[a] = larger of lanes[a] and acc; NaN wins", cycles=20, a="reduction"),
    Instruction("fold_sum", Group.FOLD, "acc <- sum of lanes[a]", cycles=40, a="reduction"),
    Instruction("fold_max", Group.FOLD, "acc <- largest of lanes[a]; NaN wins", cycles=40, a="reduction"),
    # ---- control ------------------------------------------------------------------------------------------------
    Instruction("gather", Group.CONTROL, "start of a row: operand a points at its base + i * depth, i = the operand `index` "
                "in this row; negative i counts from the end; traps if i is not in -limit..limit-1", cycles=4, a="operand"),
    Instruction("fetch", Group.CONTROL, "prefetch operand a: k bytes ahead in this row, or (k = 0) the next row",
                cycles=4, a="operand", k="ahead"),
    Instruction("pass", Group.CONTROL, "start of a pass: what follows runs for each strip of the row", cycles=2),
    Instruction("loop", Group.CONTROL, "next strip: k words back to the word after `pass`, or on to the row section; "
                "a = mask of the reductions that this pass accumulates", cycles=3, a="mask", k="distance"),
    Instruction("end_row", Group.CONTROL, "step to the next row, back to the first word; last word of a vector section", cycles=6),
    Instruction("end", Group.CONTROL, "last word of a matmul epilogue", cycles=1),
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
