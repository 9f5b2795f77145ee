"""Every binary record that Python and C++ share, each written once.

The build turns these tables into `layout.h` (offsets `static_assert`ed there); Python reads and writes the same bytes
through NumPy structured dtypes. Fields lie at their natural alignment without padding: a record that would need
padding is refused when this module is imported. Little endian. Dimensions of programs and plans are counted from the
innermost (dims[0] is the length of a row), shapes of parameters and outputs from the outermost, as users write them.

    PROGRAM   what a device runs: head, argument table, sections {head, operands, words}; position independent
    PLAN      what an encoder turns into programs: expressions over symbols, buffers, kernels, nodes
    CONTROL   the page of counters that client, workers and device share; one writer per word
    TRACE     one span in a process's trace ring"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from dvm_rt.isa import host, table

# ---- limits of the format (not tunable: they are part of it) ------------------------------------------------------
LIMITS: dict[str, int] = {
    "MAX_RANK": 8,
    "MAX_OPERANDS": 16,  # of a section, row buffers included
    "MAX_SLOTS": 24,
    "MAX_ROW_SCALARS": 32,
    "MAX_REDUCTIONS": 16,  # 0..3 sums, 4..7 maxima, 8..11 minima, 12..15 products
    "REDUCTIONS_EACH": 4,
    "MAX_RUNNING": 4,  # running totals of a section
    "MAX_WORDS": 512,  # of a section
    "MAX_SECTIONS": 4096,
    "MAX_ARGS": 2048,
    "MAX_PROGRAM_BYTES": 4 << 20,
    "MAX_NODES": 64,  # of a kernel
    "MAX_SYMBOLS": 64,
    "MAX_EXPRS": 4096,
    "MAX_WORKERS": 8,
    "LANES": 128,  # reduction lanes of 4-byte elements; half as many of 8-byte elements
    "BLOCK": 16384,  # elements of a row that are reduced together
    "PANEL": 32,  # columns of a packed matmul panel, whatever the instruction set
    "SLICE_K": 1024,  # longest fma chain of a matmul
    "KEY_BLOCK": 128,  # keys of an attention section between two looks at the largest score
    "ARENA_ALIGN": 64,
    "MAX_CONSTANTS": 512,  # of a section
    "INDEX": 0xFFFD,  # Operand.arg: no bytes; `iota` reads where the operand stands
    "INDEX_MAX": 1 << 48,  # magnitude of that
    "WORKSPACE": 0xFFFE,  # Operand.arg: the launch's workspace
    "SCRATCH": 0xFFFF,  # Operand.arg: the thread's own scratch (row buffers)
    "NONE": 0xFFFF,  # no index, no buffer, no expression
}

# ---- enumerations -------------------------------------------------------------------------------------------------
ENUMS: dict[str, tuple[str, ...]] = {
    "SectionKind": ("VECTOR", "MATMUL", "PACK", "HOST", "COPY", "ATTENTION", "BRANCH", "JUMP", "LOOP"),
    "ExprOp": ("SYMBOL", "CONST", "ADD", "MUL", "FLOORDIV", "MOD", "MIN", "MAX"),  # SYMBOL: k = index
    "BufferRole": ("PARAMETER", "PACKED", "OUTPUT", "TEMPORARY"),
    "VerifyCode": (
        "OK", "TRUNCATED", "MAGIC", "VERSION", "TABLE_HASH", "CHECKSUM", "LIMIT", "RESERVED", "SECTION_KIND", "DTYPE",
        "DIMENSION", "ARGUMENT", "OPERAND", "OPCODE", "OPERAND_FORM", "SLOT", "ROW_SCALAR", "REDUCTION", "NESTING",
        "JUMP", "UNINITIALISED", "OUT_OF_BOUNDS", "ALIGNMENT", "PERMISSION", "OVERLAP", "FUEL", "OVERFLOW",
        "CONSTANT",
    ),
    "TrapCode": ("NONE", "GATHER_RANGE", "BINDING", "STOPPED", "HOST_RANGE", "HOST_FAILED", "LOOP_LIMIT"),
    "TraceKind": ("NONE", "CALL", "PLAN", "ENCODE", "LAUNCH", "EXPOSED", "STARVED", "WAIT", "PACK", "LOAD", "RECOVERY", "HOST"),
    "RingKind": ("PROGRAM", "LAUNCH", "DROP"),
    "EventKind": ("NONE", "PROGRAM_REFUSED", "TRAPPED"),
    "HostFunction": host.NAMES,
}  # fmt: skip

FLAGS: dict[str, dict[str, int]] = {
    "Mode": {  # Operand.mode, ProgramArg.mode, PlanArg.mode
        "READ": 1,
        "WRITE": 2,
        "GATHER": 4,  # the operand is addressed through operand `index`, stepping `depth` bytes, below `limit`
        "PACKED": 8,  # matmul B: panels [K slice][panel][k][PANEL]
        "ZERO_FILL": 16,  # ProgramArg, set by the verifier in its private copy: cleared before each run
        "WINDOWS": 32,  # matmul B: K = (depth, kernel height, kernel width), N = (rows of places, places): see Operand
    },
    "NodeOp": {  # PlanNode.op: a row number of the instruction table, or one of these
        "NODE_INPUT": 0x200,  # a = argument of the kernel
        "NODE_CONST": 0x201,  # k = value
        "NODE_SUM": 0x202,  # a = node; over the inner dimension
        "NODE_MAX": 0x203,
        "NODE_OUTPUT": 0x204,  # a = node, b = argument of the kernel
        "NODE_SIZE": 0x205,  # a = expression: its value, as a constant of the compute dtype (the n of a mean)
        "NODE_MIN": 0x206,
        "NODE_PROD": 0x207,
    },
    "KernelFlag": {
        "STREAM": 1,  # non-temporal stores allowed when the working set is beyond L2 (the encoder decides by size)
    },
}

Fields = tuple[tuple[str, str], ...]  # (name or name[count], type)

RECORDS: dict[str, Fields] = {
    # ---- program ----
    "ProgramHead": (
        ("magic", "u4"), ("version", "u2"), ("section_count", "u2"),
        ("table_hash", "u8"),  # of this instruction table and these records
        ("checksum", "u8"),  # of everything after this field
        ("bytes", "u4"), ("arg_count", "u2"), ("reserved0", "u2"),
        ("workspace_bytes", "u8"), ("scratch_bytes", "u8"),
        ("fuel", "u8"),  # upper bound of words run times strips, and of matmul steps
        ("reserved1", "u8"),
    ),
    "ProgramArg": (("bytes", "u8"), ("mode", "u1"), ("dtype", "u1"), ("reserved", "u2"), ("align", "u4")),
    "Section": (
        ("kind", "u2"), ("dtype", "u1"), ("rank", "u1"), ("operand_count", "u2"), ("word_count", "u2"),
        ("bytes", "u4"),  # of the whole section: head, operands, words, constants of 8 bytes
        ("constant_count", "u2"),  # 0 unless elements of the compute dtype have 8 bytes
        ("reserved", "u2"),
        ("depth", "i8"),  # matmul, pack: K; host: number of the function, from 1; attention: the larger of both widths;
        # branch, jump: sections to skip; loop: sections to go back
        ("scratch_bytes", "u8"),  # of SCRATCH that this section uses
        ("dims[8]", "i8"),  # innermost first; matmul: N, M, batch...; pack: N; host: elements of all
        # operands together; attention: keys, queries, batch...; loop: most iterations; unused ones are 1
    ),
    "Operand": (
        ("arg", "u2"), ("dtype", "u1"), ("mode", "u1"),
        ("index", "u2"),  # gather: the operand that holds the row index; windows: height * 256 + width of the kernel
        ("reserved", "u2"),
        ("base", "i8"),  # bytes from the start of the argument
        # gather: number of rows that the index may name; attention: Q: keys that query 0 sees, K, V: their width; windows: places
        ("limit", "i8"),  # in a row of them
        ("depth", "i8"),  # bytes per step of K (matmul, pack), of D (attention), or per gathered row; host: rank
        # bytes per step of each dimension; host: the dimensions themselves; windows: 0 a place, 5, 6 a column, a row of the kernel,
        ("stride[8]", "i8"),  # 7 a row of places
    ),
    "Word": (("op", "u2"), ("a", "u2"), ("k", "u4")),
    # ---- plan ----
    "PlanHead": (
        ("magic", "u4"), ("version", "u2"), ("symbols", "u2"), ("exprs", "u2"), ("parameters", "u2"), ("outputs", "u2"),
        ("buffers", "u2"), ("slots", "u2"), ("kernels", "u2"), ("args", "u2"), ("nodes", "u2"),
        ("packs", "u2"), ("reserved0", "u2"), ("reserved1", "u4"), ("table_hash", "u8"), ("checksum", "u8"),
    ),
    "PlanSymbol": (("parameter", "u2"), ("dim", "u2")),  # the symbol's value is this dimension of this parameter
    "PlanExpr": (("op", "u2"), ("a", "u2"), ("b", "u2"), ("reserved", "u2"), ("k", "i8")),  # a, b: earlier expressions
    "PlanParameter": (("dtype", "u1"), ("rank", "u1"), ("reserved", "u2"), ("dims[8]", "u2")),  # expressions
    "PlanOutput": (("dtype", "u1"), ("rank", "u1"), ("buffer", "u2"), ("dims[8]", "u2")),
    "PlanBuffer": (
        ("role", "u1"), ("dtype", "u1"),
        ("index", "u2"),  # parameter, output or workspace slot number
        ("bytes", "u2"),  # expression
        ("pack", "u2"),  # role PACKED: index into the plan's packs
    ),
    "PlanPack": (  # a packed form of a parameter, made once per array and kept with it
        ("parameter", "u2"), ("k", "u2"), ("n", "u2"),  # expressions: the matmul's K and N
        ("stride_k", "u2"), ("stride_n", "u2"),  # expressions: elements
        ("offset", "u2"),
        ("reserved", "u4"),  # so many packs that follow lie beside this one in the same buffer
    ),
    "PlanKernel": (
        ("kind", "u1"), ("dtype", "u1"), ("rank", "u1"), ("flags", "u1"),
        ("first_arg", "u2"), ("args", "u2"), ("first_node", "u2"), ("nodes", "u2"),
        ("depth", "u2"), ("reserved", "u2"),
        ("dims[8]", "u2"),  # expressions, innermost first
    ),
    "PlanArg": (
        ("buffer", "u2"),  # NONE: an INDEX operand; strides and offset count, they are not elements
        ("mode", "u1"), ("dtype", "u1"),
        ("index", "u2"),  # gather: argument of the kernel that holds the row index; windows: as in Operand
        ("limit", "u2"), ("offset", "u2"), ("depth", "u2"),  # expressions (NONE = 0); offset, depth in elements
        ("strides[8]", "u2"),  # expressions, elements per step, innermost first (NONE = 0)
    ),
    "PlanNode": (  # k: in kernels that compute in integers, the bits of an int64 (uint64)
        ("op", "u2"), ("a", "u2"), ("b", "u2"), ("reserved", "u2"), ("k", "f8"),
    ),
    # ---- an operator instance on its way to a worker: InstanceHead, then symbol values (i8 each) ----
    "InstanceHead": (("program", "u8"), ("plan", "u4"), ("symbols", "u4")),
    # ---- trace ----
    "TraceRecord": (("begin_ns", "u8"), ("end_ns", "u8"), ("id", "u8"), ("kind", "u4"), ("extra", "u4")),
    # ---- device -> client: what went wrong ----
    "Event": (
        ("kind", "u4"), ("code", "u4"), ("program", "u8"), ("seq", "u8"), ("section", "u4"), ("word", "u4"),
        ("got", "i8"), ("allowed", "i8"),
    ),
}  # fmt: skip

# The control page. One writer per word (named behind it), except `want_*`, which are armed and disarmed by exchange.
# Each entry is (name, writer); each lies on a cache line of its own group.
CONTROL_LINES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("done", (("done", "device"),)),  # launches committed, in stream order
    ("want", (("want_futex", "both"), ("want_eventfd", "both"), ("bell", "device and supervisor"))),
    ("device_sleep", (("asleep", "both"), ("beside", "both"), ("client_cpu", "client"))),
    (
        "device",
        (
            ("busy_ns", "device"), ("exposed_ns", "device"), ("exposed_count", "device"), ("starved_client_ns", "device"),
            ("starved_user_ns", "device"), ("waiting_program", "device"), ("device_cpu", "device"), ("device_loops", "device"),
        ),
    ),
    (
        "device_runs",  # sections that several threads have run; choices that were tried and kept, ns a run that these gained
        (("sections_split", "device"), ("choices_tried", "device"), ("choices_kept", "device"), ("choices_gained_ns", "device")),
    ),
    ("client", (("client_ns", "client"), ("client_call_began", "client"), ("launched", "client"), ("device_wakes", "device"))),
    ("events", (("event_written", "device"), ("event_read", "client"))),
    ("host", (("host_calls", "device"), ("host_ns", "device"))),
)  # fmt: skip
WORKER_LINE: tuple[str, ...] = ("encoded", "encode_ns", "worker_cpu", "received")  # one line per worker, worker-written


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its NumPy dtype, and (name, C type, count, offset) of every field."""

    name: str
    numpy: np.dtype
    fields: tuple[tuple[str, str, int, int], ...]


_C_TYPES = {
    "u1": "uint8_t", "u2": "uint16_t", "u4": "uint32_t", "u8": "uint64_t", "i8": "int64_t", "f4": "float", "f8": "double",
}  # fmt: skip


def _record(name: str, fields: Fields) -> Record:
    offset, rows, numpy_rows = 0, [], []
    for declared, kind in fields:
        field, _, count = declared.rstrip("]").partition("[")
        size, number = int(kind[1]), int(count or 1)
        if offset % size:
            raise ImportError(f"layout: {name}.{field}: not aligned, got offset {offset}, allowed multiples of {size}")
        rows.append((field, _C_TYPES[kind], int(count or 0), offset))
        numpy_rows.append((field, "<" + kind, (number,)) if count else (field, "<" + kind))
        offset += size * number
    largest = max(int(kind[1]) for _, kind in fields)
    if offset % largest:
        raise ImportError(f"layout: {name}: needs padding, got {offset} bytes, allowed multiples of {largest}")
    return Record(name, np.dtype(numpy_rows), tuple(rows))


RECORD: dict[str, Record] = {name: _record(name, fields) for name, fields in RECORDS.items()}
CONTROL_WORD: dict[str, int] = {
    word: 8 * line + i for line, (_, words) in enumerate(CONTROL_LINES) for i, (word, _) in enumerate(words)
}
WORKER_WORD = 8 * len(CONTROL_LINES)  # first 64-bit word of worker 0's line; worker i's is 8 * i further
CONTROL_BYTES = 4096

PROGRAM_MAGIC = int.from_bytes(b"DVMP", "little")
PLAN_MAGIC = int.from_bytes(b"DVML", "little")
VERSION = 1


def worker_word(worker: int, name: str) -> int:
    """Index of a worker's counter in the control page, in 64-bit words."""
    return WORKER_WORD + 8 * worker + WORKER_LINE.index(name)


def enum_value(enum: str, name: str) -> int:
    """Number of one name of an enumeration: enum_value("SectionKind", "MATMUL")."""
    return ENUMS[enum].index(name)


def table_hash() -> int:
    """64 bits that differ as soon as an instruction, a record or a limit differs: peers compare it before any work."""
    text = repr(([(i.name, i.group.name, table.forms(i), i.compute_dtypes) for i in table.INSTRUCTIONS], RECORDS,
                 ENUMS, FLAGS, LIMITS, VERSION))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


TABLE_HASH = table_hash()
