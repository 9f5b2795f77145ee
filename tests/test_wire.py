"""Every message survives the trip, and nothing else does."""

import random
import struct

import msgpack
import pytest

from dvm_rt import wire
from dvm_rt.errors import ProtocolError, VersionMismatchError
from dvm_rt.isa import layout

EVERY = [
    wire.Hello(1, 0, 2**64 - 1, 3, 7, "here"),
    wire.Welcome(b"0123456789abcdef", 9),
    wire.PlanMessage(2**32 - 1, b"plan bytes"),
    wire.Instances(5, 2, bytes(48)),
    wire.Programs(5, 1, wire.pack_programs([(7, b"abc")])),
    wire.Graph(8, 9, b"graph"),
    wire.Planned(8, 9, b""),
    wire.Refused(8, 9, "GraphError", "graph: cycle"),
    wire.Bye("done"),
    wire.ForgetPlan(7),
]
ALL = frozenset(type(message).KIND for message in EVERY)


def frame_of(kind: int, values: object, body: bytes = b"") -> bytes:
    packed = msgpack.packb(values)
    return struct.pack("<B3xI", kind, len(packed)) + packed + bytes(-len(packed) % 8) + body


@pytest.mark.parametrize("message", EVERY, ids=lambda m: type(m).__name__)
def test_every_message_survives_the_trip(message):
    decoded = wire.decode(wire.encode(message), ALL)
    assert decoded == message and type(decoded) is type(message)


def test_every_kind_is_listed_once_and_travels_in_a_direction():
    assert [type(m) for m in EVERY] == list(wire.MESSAGES)
    assert len({m.KIND for m in wire.MESSAGES}) == len(wire.MESSAGES)
    assert wire.FROM_WORKER | wire.FROM_SCHEDULER == ALL


def test_bodies_start_aligned():
    for message in EVERY:
        frame = wire.encode(message)
        body = getattr(message, "body", b"")
        assert (len(frame) - len(body)) % 8 == 0


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        b"\x01\x00\x00\x00\xff\xff\xff\xff",
        frame_of(99, ()),
        frame_of(4, (1, 2, 3)),
        frame_of(4, (1,)),
        frame_of(4, (1, -1)),
        frame_of(4, (1, True)),
        frame_of(4, (1, 2.0)),
        frame_of(4, (1, 2**32)),
        frame_of(4, ((1,), 2)),
        frame_of(4, {1: 2}),
        frame_of(4, [1, msgpack.ExtType(3, b"x")]),
        frame_of(4, [1, msgpack.Timestamp(0, 0)]),
        frame_of(10, ("x" * 257,)),
        frame_of(10, (b"bytes",)),
        frame_of(6, (1, 2, 3), b"a body where none is"),
        frame_of(2, (b"too short", 1)),
        frame_of(4, (1, 2))[:-1],
        b"\x04\x01\x00\x00" + frame_of(4, (1, 2))[4:],
        struct.pack("<B3xI", 4, 3) + b"\x92\x01\x02" + b"\x00\x00\x01\x00\x00",
    ],
)
def test_malformed_frames_are_refused(frame):
    with pytest.raises(ProtocolError, match="got .* allowed"):
        wire.decode(frame, ALL)


def test_a_kind_of_the_other_direction_is_refused():
    with pytest.raises(ProtocolError):
        wire.decode(wire.encode(wire.Bye("x")), frozenset({wire.Hello.KIND}))


def test_nested_bombs_are_refused_before_they_grow():
    bomb = b"\x91" * 60_000
    with pytest.raises(ProtocolError):
        wire.decode(struct.pack("<B3xI", 4, len(bomb)) + bomb + bytes(-len(bomb) % 8), ALL)


def test_the_sender_refuses_what_the_receiver_would(monkeypatch):
    monkeypatch.setenv("DVM_RT_MESSAGE_BYTES_MAX", "4096")
    with pytest.raises(ProtocolError, match="bytes, got"):
        wire.encode(wire.PlanMessage(1, bytes(4096)))
    with pytest.raises(ProtocolError):
        wire.encode(wire.Graph(-1, 0, b""))
    with pytest.raises(ProtocolError):
        wire.encode(wire.Bye("x" * 300))


def test_mutated_frames_decode_or_raise_protocol_error():
    rng = random.Random(4)
    frames = [wire.encode(m) for m in EVERY]
    refused = 0
    for _ in range(4000):
        frame = bytearray(rng.choice(frames))
        for _ in range(rng.randint(1, 3)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        try:
            wire.decode(bytes(frame[: rng.randint(0, len(frame)) if rng.random() < 0.2 else None]), ALL)
        except ProtocolError:
            refused += 1
    assert refused > 400


def test_peers_of_another_protocol_or_table_are_refused():
    hello = wire.Hello(wire.PROTOCOL_MAJOR, 9, 77, 0, 0, "")
    wire.check_peer(hello, 77)
    with pytest.raises(VersionMismatchError, match="instruction table"):
        wire.check_peer(hello, 78)
    with pytest.raises(VersionMismatchError, match="protocol"):
        wire.check_peer(wire.Hello(wire.PROTOCOL_MAJOR + 1, 0, 77, 0, 0, ""), 77)


def instance(program: int, plan: int, *values: int) -> bytes:
    return struct.pack(f"<QII{len(values)}q", program, plan, len(values), *values)


def test_instances_are_read_as_the_layout_declares_them():
    head = layout.RECORD["InstanceHead"].numpy
    assert (head.itemsize, [head.fields[n][1] for n in ("program", "plan", "symbols")]) == (16, [0, 8, 12])
    body = instance(5, 1, 7, -8) + instance(6, 2)
    found = list(wire.instances(body))
    assert [(p, plan) for p, plan, *_ in found] == [(5, 1), (6, 2)]
    assert wire.symbols(body, *found[0][2:]) == (7, -8)
    for cut in range(1, len(body) - 1):
        if cut not in (32,):
            with pytest.raises(ProtocolError):
                list(wire.instances(body[:cut]))


def test_programs_are_counted_and_bounded():
    programs = [(1, b"abc"), (2, b""), (2**64 - 1, bytes(17))]
    body = wire.pack_programs(programs)
    assert wire.unpack_programs(body, 3) == programs
    for count in (0, 2, 4):
        with pytest.raises(ProtocolError):
            wire.unpack_programs(body, count)
    for cut in range(1, len(body)):
        with pytest.raises(ProtocolError):
            wire.unpack_programs(body[:cut], 3)
