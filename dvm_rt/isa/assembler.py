"""The text form of programs: `disassemble` and `assemble` are exact inverses of each other.

One line a record, every line `what values... name=value...`; `;` starts a comment. Fields that hold their
usual value (reserved fields 0, no gather index, the right checksum) are not written, so what stands out is
unusual. Words read their layout from the instruction table. Whatever `program.parse` accepts can be written
and read back, broken programs included: unknown kinds, dtypes and opcodes stand as numbers.

    program workspace=0 scratch=0 fuel=7
    arg0 400 float32 read align=4
    arg1 400 float32 write align=4
    section0 vector float32 [100]
      x0 arg0+0 float32 read [4]
      x1 arg1+0 float32 write [4]
      0 pass
      1 mov.i x0
      2 mul.k 0.5
      3 store x1
      4 loop -4 {}
      5 end_row

Operands are `x`, slots `s`, row scalars `r`, reductions `sum0`..`sum3`, `max4`.., `min8`.., `prod12`..; constants are the
shortest decimal that gives the same value, NaN and anything else in hexadecimal. In a section whose elements have 8 bytes,
words name its constants `c0`, `c1`, ..., which stand behind them: `constant 0x3ff0000000000000`."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from dvm_rt import dtypes
from dvm_rt.errors import InvalidBytecodeError
from dvm_rt.isa import layout, table
from dvm_rt.isa.checksum import checksum
from dvm_rt.isa.program import (
    CHECKED_FROM,
    INDEX,
    MAX_RANK,
    MNEMONICS,
    NONE,
    SCRATCH,
    WORKSPACE,
    Argument,
    Operand,
    Program,
    Section,
    Word,
    parse,
)  # fmt: skip

KINDS = tuple(name.lower() for name in layout.ENUMS["SectionKind"])
DTYPES = {d.code: d.name for d in dtypes.DTYPES}
MODES = {value: name.lower() for name, value in layout.FLAGS["Mode"].items()}
PLACES = {WORKSPACE: "workspace", SCRATCH: "scratch", INDEX: "index"}
EACH = layout.LIMITS["REDUCTIONS_EACH"]
SHORT = {d.code: d for d in dtypes.DTYPES if d.name in table.COMPUTE_DTYPES and d.bytes == 4}  # constants in the word


def disassemble(data: bytes) -> str:
    """The listing of a program. Raises InvalidBytecodeError if `data` cannot be parsed."""
    program = parse(data)
    right = checksum(data[CHECKED_FROM:])
    lines = [
        "program" + _named(workspace=program.workspace_bytes, scratch=program.scratch_bytes, fuel=program.fuel)
        + _unusual(checksum=(program.checksum, right))
        + _unusual(reserved0=(program.reserved0, 0), reserved1=(program.reserved1, 0))
    ]  # fmt: skip
    for number, arg in enumerate(program.args):
        lines.append(f"arg{number} {arg.bytes} {_dtype(arg.dtype)} {_mode(arg.mode)}" + _named(align=arg.align)
                     + _unusual(reserved=(arg.reserved, 0)))  # fmt: skip
    for number, section in enumerate(program.sections):
        lines += _section_lines(number, section)
    return "\n".join(lines) + "\n"


def assemble(text: str) -> bytes:
    """The bytes of a listing. Raises InvalidBytecodeError naming the line that cannot be read."""
    head: dict[str, int] = {}
    args: list[Argument] = []
    sections: list[tuple[dict, list[Operand], list[Word], list[int]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        first, positional, named = _split(line)
        if first is None:
            continue
        try:
            if first == "program":
                head = named
            elif first.startswith("arg"):
                args.append(_read_arg(positional, named))
            elif first.startswith("section"):
                sections.append((_read_section(positional, named), [], [], []))
            elif first == "constant":
                sections[-1][3].append(int(positional[0], 16))
            elif first.startswith("x"):
                sections[-1][1].append(_read_operand(positional, named))
            else:
                sections[-1][2].append(_read_word(positional, named, sections[-1][0]["dtype"]))
        except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
            raise InvalidBytecodeError(
                f"assembler: line {number}: cannot be read ({error}), got {line.strip()!r}, "
                "allowed the form of a listing"
            ) from error
    made = tuple(
        Section(**fields, operands=tuple(xs), words=tuple(words), constants=tuple(constants))
        for fields, xs, words, constants in sections
    )
    return Program(
        tuple(args), made, head.get("workspace", 0), head.get("scratch", 0), head.get("fuel", 0),
        head.get("reserved0", 0), head.get("reserved1", 0), head.get("checksum"),
    ).to_bytes()  # fmt: skip


def word_text(word: Word, dtype: int = dtypes.float32.code) -> str:
    """One word as the assembler writes it: `add.i x1`, `loop -7 {sum0,max4}`."""
    if word.op >= len(table.OPCODES):
        return f"op{word.op} a={word.a} k={word.k}"
    shown, rest = [], {}
    for name, kind in _field_order(word.op):
        value = getattr(word, name)
        if kind:
            shown.append(_constant(value, dtype) if kind == "constant" else _WRITE[kind](value))
        elif value:
            rest[name] = value
    return " ".join([table.mnemonic(word.op), *shown]) + _named(**rest)


def _field_order(op: int) -> list[tuple[str, str]]:
    """Fields of a word in the order in which they are written: a loop reads better with its distance first."""
    a, k = table.word_fields(op)
    return [("k", k), ("a", a)] if k == "distance" else [("a", a), ("k", k)]


# ---- writing -----------------------------------------------------------------------------------------------


def _section_lines(number: int, section: Section) -> list[str]:
    shown = max(
        [section.rank if section.rank <= MAX_RANK else 0]
        + [i + 1 for i, d in enumerate(section.dims) if d != 1]
    )
    out = [
        f"section{number} {_name(KINDS, section.kind)} {_dtype(section.dtype)} {_list(section.dims[:shown])}"
        + _unusual(depth=(section.depth, 0), scratch=(section.scratch_bytes, 0), rank=(section.rank, shown),
                   reserved=(section.reserved, 0))
    ]  # fmt: skip
    for index, x in enumerate(section.operands):
        place = PLACES.get(x.arg, f"arg{x.arg}")
        strides = max([min(section.rank, MAX_RANK)] + [i + 1 for i, s in enumerate(x.stride) if s])
        out.append(
            f"  x{index} {place}{x.base:+d} {_dtype(x.dtype)} {_mode(x.mode)} {_list(x.stride[:strides])}"
            + _unusual(
                index=(x.index, NONE), limit=(x.limit, 0), depth=(x.depth, 0), reserved=(x.reserved, 0)
            )
        )
    of_host = section.kind < len(KINDS) and KINDS[section.kind] == "host"
    out += [f"  {index} {f'attribute {word.number}' if of_host else word_text(word, section.dtype)}"
            for index, word in enumerate(section.words)]
    out += [f"  constant {value:#018x}" for value in section.constants]
    return out


def _named(**values: int) -> str:
    return "".join(f" {name}={value}" for name, value in values.items())


def _unusual(**values: tuple[int | None, int | None]) -> str:
    return _named(**{name: value for name, (value, usual) in values.items() if value != usual})


def _name(names: tuple[str, ...], value: int) -> str:
    return names[value] if value < len(names) else str(value)


def _dtype(code: int) -> str:
    return DTYPES.get(code, str(code))


def _mode(mode: int) -> str:
    rest = mode & ~sum(MODES)
    names = [name for value, name in MODES.items() if mode & value] + ([str(rest)] if rest else [])
    return "|".join(names) or "0"


def _list(values: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, values)) + "]"


def _constant(bits: int, dtype: int) -> str:
    if dtype not in SHORT:
        return f"c{bits}"
    value = np.uint32(bits).view(SHORT[dtype].numpy)
    return hex(bits) if SHORT[dtype].kind == "f" and np.isnan(value) else str(value)


def _reduction(index: int) -> str:
    names = list(table.REDUCTIONS)
    return f"{names[index // EACH]}{index}" if index < EACH * len(names) else f"reduction{index}"


def _mask(bits: int) -> str:
    return "{" + ",".join(_reduction(i) for i in range(16) if bits >> i & 1) + "}"


_WRITE: dict[str, Callable[[int], str]] = {
    "operand": lambda v: f"x{v}",
    "slot": lambda v: f"s{v}",
    "row": lambda v: f"r{v}",
    "reduction": _reduction,
    "running": lambda v: f"t{v}",
    "mask": _mask,
    "distance": lambda v: f"-{v}",
    "ahead": str,
}

# ---- reading -----------------------------------------------------------------------------------------------


def _split(line: str) -> tuple[str | None, list[str], dict[str, int]]:
    """First word, positional values, named values of a line; lists in brackets are one value."""
    tokens = line.split(";")[0].split()
    if not tokens:
        return None, [], {}
    named = {name: int(value, 0) for name, _, value in (t.partition("=") for t in tokens[1:] if "=" in t)}
    return tokens[0], [t for t in tokens[1:] if "=" not in t], named


def _read_arg(values: list[str], named: dict[str, int]) -> Argument:
    size, dtype, mode = values
    return Argument(
        int(size), _read_mode(mode), _read_dtype(dtype), named.get("reserved", 0), named.get("align", 1)
    )


def _read_section(values: list[str], named: dict[str, int]) -> dict[str, object]:
    kind, dtype, dims_text = values
    dims = _read_list(dims_text)
    return {
        "kind": KINDS.index(kind) if kind in KINDS else int(kind), "dtype": _read_dtype(dtype),
        "rank": named.get("rank", len(dims)), "reserved": named.get("reserved", 0), "depth": named.get("depth", 0),
        "scratch_bytes": named.get("scratch", 0), "dims": dims + (1,) * (MAX_RANK - len(dims)),
    }  # fmt: skip


def _read_operand(values: list[str], named: dict[str, int]) -> Operand:
    place, dtype, mode, strides_text = values
    name, base = re.fullmatch(r"(\w+)([+-]\d+)", place).groups()
    arg = {text: number for number, text in PLACES.items()}.get(name)
    strides = _read_list(strides_text)
    return Operand(
        int(name.removeprefix("arg")) if arg is None else arg, _read_dtype(dtype), _read_mode(mode),
        named.get("index", NONE), named.get("reserved", 0), int(base), named.get("limit", 0), named.get("depth", 0),
        strides + (0,) * (MAX_RANK - len(strides)),
    )  # fmt: skip


def _read_word(values: list[str], named: dict[str, int], dtype: int) -> Word:
    mnemonic, *shown = values
    if mnemonic == "attribute":
        return Word.of_number(int(shown[0]))
    fields = {"a": named.get("a", 0), "k": named.get("k", 0)}
    if mnemonic not in MNEMONICS:
        return Word(int(mnemonic.removeprefix("op")), **fields)
    code = MNEMONICS[mnemonic]
    kinds = [(name, kind) for name, kind in _field_order(code) if kind]
    for (name, kind), text in zip(kinds, shown, strict=True):
        fields[name] = _read_constant(text, dtype) if kind == "constant" else _read_value(kind, text)
    return Word(code, **fields)


def _read_constant(text: str, dtype: int) -> int:
    if text.startswith(("0x", "c")):
        return int(text.removeprefix("c"), 16 if text.startswith("0x") else 10)
    return int(np.array([text]).astype(SHORT[dtype].numpy).view(np.uint32)[0])


def _read_value(kind: str, text: str) -> int:
    if kind == "mask":
        return sum(1 << _read_value("reduction", name) for name in text.strip("{}").split(",") if name)
    found = re.fullmatch(r"[a-z-]*(\d+)", text)
    if not found:
        raise ValueError(f"{kind} has no number")
    digits = int(found.group(1))
    if text != _WRITE[kind](digits):
        raise ValueError(f"{kind} is written {_WRITE[kind](digits)}")
    return digits


def _read_dtype(text: str) -> int:
    return dtypes.BY_NAME[text].code if text in dtypes.BY_NAME else int(text)


def _read_mode(text: str) -> int:
    values = {name: value for value, name in MODES.items()}
    return sum(values[name] if name in values else int(name) for name in text.split("|"))


def _read_list(text: str) -> tuple[int, ...]:
    return tuple(int(value) for value in text.strip("[]").split(",") if value)
