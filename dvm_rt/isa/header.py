"""Writes `layout.h` from the instruction table and the record tables. The build runs it:

python -m dvm_rt.isa.header OUTPUT"""

from __future__ import annotations

import sys
from pathlib import Path

from dvm_rt import dtypes
from dvm_rt.isa import layout, table


def _instructions() -> list[str]:
    out = ["// Rows of the instruction table for each compute dtype: X(name)."]
    for group in (table.Group.BINARY, table.Group.UNARY):
        for dtype in table.COMPUTE_DTYPES:
            names = " ".join(f"X({i.name})" for i in table.INSTRUCTIONS if i.group is group and dtype in i.compute_dtypes)
            out.append(f"#define DVM_{group.name}_{dtype}(X) {names}")
    out += ["enum class Group : uint8_t { " + ", ".join(g.name for g in table.Group) + " };", "enum Row : uint16_t {"]
    out += [f"  ROW_{i.name} = {n}," for n, i in enumerate(table.INSTRUCTIONS)]
    out += ["};", "enum Op : uint16_t {"]
    out += [f"  OP_{i.name}{'_' + f if f else ''} = {n}," for n, (i, f) in enumerate(table.OPCODES)]
    out += ["};", f"constexpr int OP_COUNT = {len(table.OPCODES)}, ROW_COUNT = {len(table.INSTRUCTIONS)};"]
    out.append("enum Form : uint8_t { " + ", ".join(f"FORM_{f.upper()}" for f in table.FORMS) + ", FORM_NONE };")
    out.append("enum class Field : uint8_t { EMPTY, " + ", ".join(name.upper() for name in table.WORD_FIELDS) + " };")
    out.append("struct OpInfo { Row row; Group group; Form form; float cycles; Field a, k; uint16_t dtypes; };  "
               "// a, k: what the word's fields hold; dtypes: a bit for each compute dtype")
    rows = []
    for code, (i, f) in enumerate(table.OPCODES):
        a, k = (f"Field::{field.upper() or 'EMPTY'}" for field in table.word_fields(code))
        rows.append(f"  {{ROW_{i.name}, Group::{i.group.name}, FORM_{f.upper() or 'NONE'}, {float(i.cycles)}f, {a}, {k}, {_mask(i.compute_dtypes):#x}}},")
    out += ["constexpr OpInfo OPS[OP_COUNT] = {", *rows, "};"]
    first = ", ".join(str(table.CODES[i.name, table.forms(i)[0]]) for i in table.INSTRUCTIONS)
    out.append(f"constexpr uint16_t FIRST_OP[ROW_COUNT] = {{{first}}};  // a row's first opcode")
    names = [i.name for i in table.INSTRUCTIONS]
    commuted = ", ".join(str(names.index(i.commuted)) if i.commuted else "0xffff" for i in table.INSTRUCTIONS)
    out.append(f"constexpr uint16_t COMMUTED[ROW_COUNT] = {{{commuted}}};  // the row with its operands exchanged")
    groups = ", ".join(f"Group::{i.group.name}" for i in table.INSTRUCTIONS)
    out.append(f"constexpr Group ROW_GROUP[ROW_COUNT] = {{{groups}}};")
    masks = ", ".join(f"{_mask(i.compute_dtypes):#x}" for i in table.INSTRUCTIONS)
    out.append(f"constexpr uint16_t ROW_DTYPES[ROW_COUNT] = {{{masks}}};")
    out.append(f"constexpr uint16_t COMPUTE_DTYPES = {_mask(tuple(table.COMPUTE_DTYPES)):#x};")
    cycles = ", ".join(f"{float(i.cycles)}f" for i in table.INSTRUCTIONS)
    out.append(f"constexpr float ROW_CYCLES[ROW_COUNT] = {{{cycles}}};")
    return out


def _mask(names: tuple[str, ...]) -> int:
    return sum(1 << dtypes.BY_NAME[name].code for name in names)


def _records() -> list[str]:
    out = [f"constexpr int64_t {name} = {value};" for name, value in layout.LIMITS.items()]
    for enum, names in layout.ENUMS.items():
        quoted = ", ".join(f'"{n}"' for n in names)
        lines = ["enum class " + enum + " : uint32_t { " + ", ".join(f"{n} = {i}" for i, n in enumerate(names)) + " };",
                 f"constexpr const char* {enum}_NAMES[] = {{{quoted}}};"]  # fmt: skip
        out += _not_in_kernels(lines) if enum == "HostFunction" else lines
    for enum, values in layout.FLAGS.items():
        out.append(f"enum {enum} : uint16_t {{ " + ", ".join(f"{n} = {v}" for n, v in values.items()) + " };")
    for record in layout.RECORD.values():
        body = " ".join(f"{c} {n}{f'[{count}]' if count else ''};" for n, c, count, _ in record.fields)
        out.append(f"struct {record.name} {{ {body} }};")
        out.append(f"static_assert(sizeof({record.name}) == {record.numpy.itemsize});")
        out += [f"static_assert(offsetof({record.name}, {n}) == {offset});" for n, _, _, offset in record.fields]
    out.append("enum class DType : uint8_t { " + ", ".join(f"{d.name.upper().rstrip('_')} = {d.code}"
                                                           for d in dtypes.DTYPES) + " };")
    out.append("constexpr uint8_t DTYPE_BYTES[] = {" + ", ".join(str(d.bytes) for d in dtypes.DTYPES) + "};")
    out.append("constexpr const char* DTYPE_NAMES[] = {" + ", ".join(f'"{d.name}"' for d in dtypes.DTYPES) + "};")
    out.append("enum ControlWord : uint16_t {")
    out += [f"  CONTROL_{name.upper()} = {index}," for name, index in layout.CONTROL_WORD.items()]
    out += [f"  CONTROL_WORKER = {layout.WORKER_WORD},", "};", "enum WorkerWord : uint16_t {"]
    out += [f"  WORKER_{name.upper()} = {i}," for i, name in enumerate(layout.WORKER_LINE)] + ["};"]
    out.append(f"constexpr uint32_t PROGRAM_MAGIC = {layout.PROGRAM_MAGIC}u, PLAN_MAGIC = {layout.PLAN_MAGIC}u;")
    out.append(f"constexpr uint16_t VERSION = {layout.VERSION};")
    out += _not_in_kernels([f"constexpr uint64_t TABLE_HASH = {layout.TABLE_HASH}ull;"])
    out.append(f"constexpr int64_t CONTROL_BYTES = {layout.CONTROL_BYTES};")
    return out


def _not_in_kernels(lines: list[str]) -> list[str]:
    """Unseen by the builds of the kernels, which take minutes: a compiler cache need not run them again when these change."""
    return ["#ifndef DVM_TARGET", *lines, "#endif"]


def header() -> str:
    """The text of layout.h."""
    lines = [
        "// Generated by dvm_rt/isa/header.py from the instruction and record tables. Do not edit.",
        "#pragma once", "#include <cstddef>", "#include <cstdint>", "namespace dvm {",
        *_instructions(), *_records(), "}  // namespace dvm", "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(header())
