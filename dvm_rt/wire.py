"""Every message between processes, and nothing that sends one.

A message is one frame: {u8 kind, 3 zero bytes, u32 n}, n bytes of msgpack (one flat tuple of fixed arity), zeros up to
a multiple of 8, then the body: raw bytes that msgpack never sees (plans, instances, programs). Rules: `decode` checks the
kind against what the receiver allows, the arity, and each field's type and range before anything is believed; a frame
that fails gives ProtocolError and has no effect. The sender checks the same limits, because ZeroMQ drops an oversized
message silently. HELLO is the first message of every worker; `check_peer` refuses another protocol or instruction table.

    worker -> scheduler   HELLO  PROGRAMS  PLANNED  REFUSED  BYE
    scheduler -> worker   WELCOME  PLAN  FORGET  INSTANCES  GRAPH  REFUSED  BYE

Programs of local workers go to the device through a ring and are no message. Knows no sockets and imports no NumPy:
workers and the zygote import it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgpack

from dvm_rt import config
from dvm_rt.errors import ProtocolError, VersionMismatchError

PROTOCOL_MAJOR, PROTOCOL_MINOR = 1, 0  # another major is refused, another minor is not looked at

CLOSED, DRAINING, DRAINED = "closed", "draining", "drained"
_HEAD = struct.Struct("<B3xI")
_PROGRAM_HEAD = struct.Struct("<QQ")  # program id, bytes
_INSTANCE_HEAD = struct.Struct("<QII")  # layout.RECORDS["InstanceHead"]; a test holds the two together


class Field(NamedTuple):
    """One field of a message: an unsigned integer up to `most`, bytes of length `most`, or text of at most `most` bytes."""

    name: str
    kind: type
    most: int

    def check(self, value: object, where: str) -> None:
        if type(value) is not self.kind or not self._in_range(value):
            raise ProtocolError(f"wire: {where}.{self.name}: bad field, got {_short(value)}, allowed {self._allowed()}")

    def _in_range(self, value: object) -> bool:
        if isinstance(value, int):
            return 0 <= value <= self.most
        if isinstance(value, bytes):
            return len(value) == self.most
        return len(value) <= self.most  # type: ignore[arg-type]

    def _allowed(self) -> str:
        return f"{self.kind.__name__} {'of' if self.kind is bytes else 'up to'} {self.most}"


def _u16(name: str) -> Field:
    return Field(name, int, 0xFFFF)


def _u32(name: str) -> Field:
    return Field(name, int, 0xFFFFFFFF)


def _u64(name: str) -> Field:
    return Field(name, int, 0xFFFFFFFFFFFFFFFF)


def _text(name: str, most: int = 4096) -> Field:
    return Field(name, str, most)


def _identity(name: str) -> Field:
    return Field(name, bytes, 16)


# ---- the messages ---------------------------------------------------------------------------------------------------
class Hello(NamedTuple):
    """A worker is up: what it speaks and which life of which worker it is (0..n-1 local; remote ones get their number)."""

    KIND = 1
    FIELDS = (_u16("major"), _u16("minor"), _u64("table_hash"), _u16("worker"), _u32("incarnation"), _text("host", 256))
    major: int
    minor: int
    table_hash: int
    worker: int
    incarnation: int
    host: str


class Welcome(NamedTuple):
    """The scheduler's answer to a remote HELLO: the number that it knows the worker by."""

    KIND = 2
    FIELDS = (_identity("session"), _u16("worker"))
    session: bytes
    worker: int


class PlanMessage(NamedTuple):
    """A plan, before the first of its instances. Body: plan bytes."""

    KIND = 3
    FIELDS = (_u32("plan"),)
    plan: int
    body: bytes


class Instances(NamedTuple):
    """A leased batch. Body: InstanceHead and symbol values, `count` times."""

    KIND = 4
    FIELDS = (_u64("lease"), _u32("count"))
    lease: int
    count: int
    body: bytes


class Programs(NamedTuple):
    """Encoded instances of one lease, from a remote worker. Body: `pack_programs`."""

    KIND = 5
    FIELDS = (_u64("lease"), _u32("count"))
    lease: int
    count: int
    body: bytes


class Graph(NamedTuple):
    """Please plan this graph. Body: graph bytes."""

    KIND = 7
    FIELDS = (_u64("lease"), _u64("graph"))
    lease: int
    graph: int
    body: bytes


class Planned(NamedTuple):
    """The plan of a graph. Body: plan bytes."""

    KIND = 8
    FIELDS = (_u64("lease"), _u64("graph"))
    lease: int
    graph: int
    body: bytes


class Refused(NamedTuple):
    """An answer that is an error: of the graph with this number, or of the connection (graph 0)."""

    KIND = 9
    FIELDS = (_u64("lease"), _u64("graph"), _text("error", 64), _text("text"))
    lease: int
    graph: int
    error: str
    text: str


class Bye(NamedTuple):
    """The sender leaves; nothing that it holds will be answered. A worker that is told so ends; another may take its place
    unless `why` is CLOSED or DRAINED. A remote worker that says DRAINING still answers all that it holds, and is sent nothing
    new; when it holds nothing, it is told DRAINED."""

    KIND = 10
    FIELDS = (_text("why", 256),)
    why: str


class ForgetPlan(NamedTuple):
    """No instance of this plan will come, unless the plan comes again."""

    plan: int
    KIND = 11
    FIELDS = (_u32("plan"),)


Message = Hello | Welcome | PlanMessage | Instances | Programs | Graph | Planned | Refused | Bye | ForgetPlan
MESSAGES: tuple[type[Message], ...] = (
    Hello, Welcome, PlanMessage, Instances, Programs, Graph, Planned, Refused, Bye, ForgetPlan,
)  # fmt: skip
FROM_WORKER = frozenset(m.KIND for m in (Hello, Programs, Planned, Refused, Bye))
FROM_SCHEDULER = frozenset(m.KIND for m in (Welcome, PlanMessage, Instances, Graph, Refused, Bye, ForgetPlan))
_BY_KIND = {m.KIND: m for m in MESSAGES}


# ---- frames ---------------------------------------------------------------------------------------------------------
def encode(message: Message) -> bytes:
    """One frame. Raises ProtocolError where the receiver would refuse it."""
    values = tuple(getattr(message, f.name) for f in message.FIELDS)
    for field, value in zip(message.FIELDS, values, strict=True):
        field.check(value, type(message).__name__)
    fields = msgpack.packb(values, use_bin_type=True)
    body = getattr(message, "body", b"")
    frame = b"".join((_HEAD.pack(message.KIND, len(fields)), fields, bytes(-len(fields) % 8), body))
    _check_size("frame", len(frame), config.integer("message_bytes_max"))
    return frame


def decode(frame: bytes, allowed: frozenset[int]) -> Message:
    """The message in a frame, whose kind must be in `allowed`. The body is a copy of its own, so its start is aligned."""
    _check_size("frame", len(frame), config.integer("message_bytes_max"))
    kind, length = _head(frame)
    message = _BY_KIND.get(kind)
    if message is None or kind not in allowed:
        raise ProtocolError(f"wire: frame: kind, got {kind}, allowed {sorted(allowed)}")
    start = _HEAD.size + length + -length % 8
    if start > len(frame) or any(frame[_HEAD.size + length : start]):
        raise ProtocolError(f"wire: {message.__name__}: bytes of the fields, got {length}, allowed {len(frame) - _HEAD.size}")
    values = _fields(message, frame[_HEAD.size : _HEAD.size + length])
    if hasattr(message, "body"):
        return message(*values, frame[start:])  # type: ignore[arg-type]
    if start != len(frame):
        raise ProtocolError(f"wire: {message.__name__}: body, got {len(frame) - start} bytes, allowed 0")
    return message(*values)  # type: ignore[arg-type]


def _head(frame: bytes) -> tuple[int, int]:
    if len(frame) < _HEAD.size or frame[1:4] != b"\0\0\0":
        raise ProtocolError(f"wire: frame: head, got {_short(frame[:8])}, allowed kind, 3 zero bytes, length")
    kind, length = _HEAD.unpack_from(frame)
    _check_size("fields", length, config.integer("control_bytes_max"))
    return kind, length


def _fields(message: type[Message], packed: bytes) -> tuple[object, ...]:
    try:
        values = msgpack.unpackb(
            packed, raw=False, use_list=False, strict_map_key=True, timestamp=0, ext_hook=_no_extension,
            max_str_len=4096, max_bin_len=4096, max_array_len=16, max_map_len=0, max_ext_len=0,
        )  # fmt: skip
    except ProtocolError:
        raise
    except Exception as error:  # msgpack raises ValueError, its own classes, UnicodeDecodeError
        raise ProtocolError(f"wire: {message.__name__}: msgpack, got {type(error).__name__}, allowed one flat tuple") from None
    if type(values) is not tuple or len(values) != len(message.FIELDS):
        raise ProtocolError(f"wire: {message.__name__}: fields, got {_short(values)}, allowed {len(message.FIELDS)}")
    for field, value in zip(message.FIELDS, values, strict=True):
        field.check(value, message.__name__)
    return values


def _no_extension(code: int, _: bytes) -> None:
    raise ProtocolError(f"wire: msgpack: extension type, got {code}, allowed none")


def _check_size(what: str, got: int, most: int) -> None:
    if got > most:
        raise ProtocolError(f"wire: {what}: bytes, got {got}, allowed {most}")


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# ---- peers ----------------------------------------------------------------------------------------------------------
def check_peer(hello: Hello, table_hash: int) -> None:
    """Raises VersionMismatchError unless the peer speaks our protocol and has our instruction table."""
    if hello.major != PROTOCOL_MAJOR:
        raise VersionMismatchError(f"wire: hello: protocol, got {hello.major}.{hello.minor}, allowed {PROTOCOL_MAJOR}.*")
    if hello.table_hash != table_hash:
        raise VersionMismatchError(
            f"wire: hello: instruction table, got {hello.table_hash:016x}, allowed {table_hash:016x}"
        )


# ---- bodies ---------------------------------------------------------------------------------------------------------
def instances(body: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(program, plan, start, end) of each instance in a batch; start..end are its bytes."""
    at = 0
    while at < len(body):
        if at + _INSTANCE_HEAD.size > len(body):
            raise ProtocolError(f"wire: instances: head, got {len(body) - at} bytes, allowed {_INSTANCE_HEAD.size}")
        program, plan, symbols = _INSTANCE_HEAD.unpack_from(body, at)
        end = at + _INSTANCE_HEAD.size + 8 * symbols
        if end > len(body):
            raise ProtocolError(f"wire: instances: symbols, got {symbols}, allowed {(len(body) - at - 16) // 8}")
        yield program, plan, at, end
        at = end


def symbols(body: bytes, start: int, end: int) -> tuple[int, ...]:
    """Symbol values of the instance that lies at start..end of a batch."""
    return struct.unpack_from(f"<{(end - start - _INSTANCE_HEAD.size) // 8}q", body, start + _INSTANCE_HEAD.size)


def pack_programs(programs: Iterable[tuple[int, bytes]]) -> bytes:
    """Body of PROGRAMS: {program id, bytes}, the program, zeros up to a multiple of 8, for each."""
    parts: list[bytes] = []
    for program, data in programs:
        parts += (_PROGRAM_HEAD.pack(program, len(data)), data, bytes(-len(data) % 8))
    return b"".join(parts)


def unpack_programs(body: bytes, count: int) -> list[tuple[int, bytes]]:
    """The programs in a body, which must be exactly `count`."""
    found, at = [], 0
    while at < len(body) and len(found) < count:
        program, length = _PROGRAM_HEAD.unpack_from(body, at) if at + 16 <= len(body) else (0, len(body))
        start = at + _PROGRAM_HEAD.size
        if start + length > len(body):
            raise ProtocolError(f"wire: programs: bytes, got {length}, allowed {max(len(body) - start, 0)}")
        found.append((program, body[start : start + length]))
        at = start + length + -length % 8
    if len(found) != count or at != len(body):
        raise ProtocolError(f"wire: programs: count, got {len(found)} in {len(body)} bytes, allowed {count}")
    return found


def pack_tree(tree: object) -> bytes:
    """Body of GRAPH: nested tuples of plain values. Raises ProtocolError where `unpack_tree` would."""
    packed = msgpack.packb(tree, use_bin_type=True)
    _check_size("tree", len(packed), config.integer("tree_bytes_max"))
    return packed


def unpack_tree(body: bytes) -> object:
    """Nested tuples of ints, floats, strings, bools and None: their meaning is checked by who wants them."""
    most = config.integer("tree_bytes_max")
    _check_size("tree", len(body), most)
    try:
        return msgpack.unpackb(
            body, raw=False, use_list=False, timestamp=0, ext_hook=_no_extension,
            max_str_len=4096, max_bin_len=0, max_array_len=most, max_map_len=0, max_ext_len=0,
        )  # fmt: skip
    except ProtocolError:
        raise
    except Exception as error:  # msgpack raises ValueError, its own classes, RecursionError, UnicodeDecodeError
        raise ProtocolError(f"wire: tree: msgpack, got {type(error).__name__}, allowed nested tuples") from None
