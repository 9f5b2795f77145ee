"""The manual of the machine, generated from the instruction, host function and record tables.

`dvm-rt isa` prints it; `docs/isa.md` is what `dvm-rt isa --markdown docs/isa.md` wrote, and a test holds it to the tables."""

from __future__ import annotations

import inspect

from dvm_rt import dtypes
from dvm_rt.isa import attention, host, layout, matmul, program, table

SECTION_KINDS = {
    "VECTOR": "dims[0] is the row, dims[1..] the outer dimensions, walked as an odometer (dims[1] fastest). The words "
    "run once per row: `row-words* (pass body loop row-words*)* end_row`. Between `pass` and `loop` they run for each "
    "strip of the row; elsewhere they are in the row section: one element, in which row scalars and totals are made.",
    "MATMUL": "dims = N, M, batch...; depth = K. Operands 0, 1, 2 are A, B, C. Each element is one fma chain in rising "
    "k for each slice of K, starting from 0; slices are added in order. Its words, if any, are an epilogue: they run "
    "as in a pass over each finished row of C (operand 2), without reductions or a row section, and end with `end`. If A's index "
    "is 3, the rows lie in dims[2] groups, one behind the other: operand 3 holds how many rows each has, and group e is "
    "multiplied with step e of B; what lies beyond all of them is 0; a number below 0 or beyond the rows that are left "
    "traps (GATHER_RANGE). An epilogue meets every row once; its operands, 4 and more, have no stride for groups. If B's mode says "
    "windows, k counts columns of a kernel (index % 256 of them, stride[5]), its rows (index / 256, stride[6]), then channels "
    "(depth); n counts places in a row (limit of them, stride[0]), then rows of places (stride[7]); the rank is 5 at most.",
    "PACK": "dims[0] = N, depth = K. Operand 0 is B, operand 1 its packed form: elements [K slice][panel][k][{PANEL}], "
    "columns beyond N zero.",
    "COPY": "Operand 0 to operand 1, over dims, of any one dtype and any strides (the destination's meet no place twice). NaN "
    "becomes canonical. No words. With a third operand (one int32 or int64), operand 1 is a gather: its row of that number is "
    "written, counted from the end if negative, and beyond the ends it traps (GATHER_RANGE).",
    "ATTENTION": "dims = keys, queries, batch...; depth = D. Operands Q, K, V, O, perhaps a mask; four words of constants. The "
    "score matrix is never stored; the arithmetic is defined below.",
    "BRANCH": "Operand 0 is a flag, one bool. If it is 0, the next depth sections are skipped. No words.",
    "JUMP": "The next depth sections are skipped: the end of a part that another one follows in its place. No operands.",
    "LOOP": "The end of a loop that begins depth sections before: the body runs at least once. With a flag (operand 0), it runs "
    "again while that is not 0, and traps (LOOP_LIMIT) if it is still not 0 after dims[0] times; without, it runs dims[0] times. "
    "Loops that go on for longer than the machine is allowed to are stopped (STOPPED).",
    "HOST": "A function of the host table (depth = its number, from 1) on whole arrays, row-major: operands are its inputs, "
    "then its output; their strides hold the dimensions, depth the rank. Words are its attributes, 64-bit numbers. "
    "dims[0] = elements of all operands together.",
}
PLACES = (
    ("acc", "the strip that words work on; undefined after `pass`, `loop` and at the start of a row"),
    ("slots", "parked strips; they live within one strip of one pass"),
    ("row scalars", "one element each; they live until the end of the row"),
    (
        "lanes",
        "of reductions 0..3 (sums), 4..7 (maxima), 8..11 (minima) and 12..15 (products), which start from the value that "
        "changes no other, to which `fold_*` returns them",
    ),
    ("constants", "64-bit values behind the words of a section whose elements have 8 bytes"),
    ("INDEX operands", "no memory: base and strides are numbers, which `iota` reads"),
    ("row buffers", "operands in SCRATCH: a row stored in one pass and read in later passes of that row"),
)
PROGRAMS = (
    "Sections run in order. An operand lies in an argument, in the launch's workspace (arg {WORKSPACE:#x}) or in the "
    "thread's scratch (arg {SCRATCH:#x}), at a base and a stride for each dimension, in bytes. Arguments that may be "
    "written, and the workspace, start as zeros: no program sees or leaves old bytes there."
)
CONTROL_RULE = (
    "What a branch or a jump may skip, and what a loop repeats (itself included), are intervals of sections. Any two of them are "
    "nested or disjoint, and none begins before the program or ends beyond it; a jump into or out of a loop is none of these."
)
REDUCTION_RULE = (
    "Element j of a row goes to lane j mod {LANES} (half as many lanes of 8-byte elements); lanes fold in halves, neighbours "
    "last, 64, 32, .. 1 apart: v[l] = v[l] op v[l + h]. A row "
    "longer than {BLOCK} elements is cut into blocks of {BLOCK}: each is folded to one value (by `loop`), which goes "
    "to lane (block number mod {LANES}) of the block results, and those are folded in the same way."
)


COLUMNS = (
    "*dtypes* are the kinds of compute dtype for which the instruction exists: f floats, i signed, u unsigned integers, with bits "
    "where only one width does. *ulp* is the largest error that any input may show (0: exact, or correctly rounded; nothing: moves "
    "no values). *cycles* is the modelled cost of a strip of 128 float32 on AVX-512, which the encoder weighs."
)


def manual() -> str:
    """The whole manual in Markdown."""
    parts = [
        f"# The machine: instructions, version {layout.VERSION}, table {layout.TABLE_HASH:016x}",
        inspect.cleandoc(table.__doc__).split("\n\n", 2)[2],
        "## Programs\n" + PROGRAMS.format(**layout.LIMITS),
        "## State\n" + _table(("place", "what it is"), PLACES),
        "## Sections\n" + _table(("kind", "what it does"),
                                 tuple((k, d.format(**layout.LIMITS)) for k, d in SECTION_KINDS.items())),
        "## Control flow\n" + CONTROL_RULE,
        "## Reductions\n" + REDUCTION_RULE.format(**layout.LIMITS),
        "## Words\nA word is {u16 op, u16 a, u32 k}, 8 bytes, little endian. Its fields hold:\n\n"
        + _table(("field holds", "meaning"), tuple(table.WORD_FIELDS.items()), code=True),
        "## Instructions\n" + COLUMNS + "\n\n" + "\n\n".join(_group(group) for group in table.Group),
        "## Host functions\n" + _table(("number", "name", "inputs", "attributes", "result"), _host_functions()),
        "## Fuel\n" + inspect.cleandoc(program.fuel.__doc__),
        "## Matmul\n" + inspect.cleandoc(matmul.__doc__).partition("\n\n")[2],
        "## Attention\n" + inspect.cleandoc(attention.__doc__).partition("\n\n")[2],
        "## Element types\n"
        + _table(("code", "name", "bytes"), tuple((d.code, d.name, d.bytes) for d in dtypes.DTYPES)),
        "## Limits\n" + _table(("limit", "value"), tuple(layout.LIMITS.items()), code=True),
        "## Enumerations and flags\n" + _table(("name", "values"), _enumerations(), code=True),
        "## Records\nLittle endian, no padding.\n\n" + "\n\n".join(_record(name) for name in layout.RECORD),
    ]
    return "\n\n".join(parts) + "\n"


def instruction_line(instruction: table.Instruction) -> tuple[str, ...]:
    """One row of the manual: name, opcodes by form, word fields, compute dtypes, meaning, promised ulp, cycles."""
    codes = [(form, table.CODES[instruction.name, form]) for form in table.forms(instruction)]
    opcodes = " ".join(f"{form}:{code}" if form else str(code) for form, code in codes)
    fields = " ".join(
        f"{name}={kind}" for name, kind in zip("ak", table.word_fields(codes[0][1]), strict=True) if kind
    )
    promise = f"{instruction.ulp:g}" if instruction.meaning else ""
    form_fields = "by form" if instruction.group is table.Group.BINARY else fields
    cycles = f"{instruction.cycles:g}"
    return (f"`{instruction.name}`", opcodes, form_fields, _dtypes(instruction), instruction.doc, promise, cycles)


def _dtypes(instruction: table.Instruction) -> str:
    """Compute dtypes of a row, in short: kinds (f, i, u), with bits where not both widths exist."""
    widths = "" if len(instruction.widths) == 2 else str(8 * instruction.widths[0])
    return " ".join(f"{kind}{widths}" for kind in instruction.kinds)


def _group(group: table.Group) -> str:
    rows = tuple(instruction_line(i) for i in table.INSTRUCTIONS if i.group is group)
    heading = f"### {group.name.lower()}: {group.value}\n"
    if group is table.Group.BINARY:
        forms = tuple((form, " ".join(f"{n}={k}" for n, k in zip("ak", fields, strict=True) if k))
                      for form, fields in table.FORM_FIELDS.items())  # fmt: skip
        heading += "\n" + _table(("form", "word holds"), forms, code=True) + "\n\n"
    return heading + _table(("name", "opcodes", "word holds", "dtypes", "meaning", "ulp", "cycles"), rows)


def _host_functions() -> tuple[tuple, ...]:
    return tuple((i, f"`{f.name}`", f.inputs, ", ".join(f.attributes), f.doc) for i, f in enumerate(host.TABLE, 1))


def _enumerations() -> tuple[tuple[str, str], ...]:
    enums = [
        (name, ", ".join(f"{n} {i}" for i, n in enumerate(names))) for name, names in layout.ENUMS.items()
    ]
    flags = [
        (name, ", ".join(f"{n} {v:#x}" for n, v in values.items())) for name, values in layout.FLAGS.items()
    ]
    return tuple(enums + flags)


def _record(name: str) -> str:
    record = layout.RECORD[name]
    rows = tuple(
        (offset, f"{field}[{count}]" if count else field, kind)
        for field, kind, count, offset in record.fields
    )
    return f"### {name}, {record.numpy.itemsize} bytes\n" + _table(("offset", "field", "type"), rows)


def _table(head: tuple[str, ...], rows: tuple[tuple, ...], code: bool = False) -> str:
    lines = [head, ("---",) * len(head)]
    for first, *rest in rows:
        lines.append(
            (f"`{first}`" if code else str(first), *(str(cell).replace("|", "\\|") for cell in rest))
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
